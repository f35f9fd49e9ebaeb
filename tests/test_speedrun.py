"""The order of the speedrun's stages: each after what it reads, several at once, and what a failure
or a kill leaves to be done."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch

from nanoreason import grpo_run, race, stages
from nanoreason.flags import UserError
from nanoreason.speedrun import Config, plan, prepare
from nanoreason.stages import Stage, inputs, run_stages, wall


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Stages that take a moment and leave their file.

    (config, stages, what began and ended in order). Stage orm fails until tmp_path/repaired exists.
    """
    config = Config(out=str(tmp_path))
    events = []
    lock = threading.Lock()

    def run_stage(config, stage, position, threads, log):
        with lock:
            events.append((stage.name, "began", threads))
        time.sleep(0.01)
        if stage.name == "orm" and not (tmp_path / "repaired").exists():
            raise UserError("stage orm ended with status 1")
        (tmp_path / stage.done).parent.mkdir(exist_ok=True)
        (tmp_path / stage.done).write_text("{}")
        with lock:
            events.append((stage.name, "ended", threads))
            log[stage.name] = dict(began=0.0, ended=1.0)

    monkeypatch.setattr(stages, "run_stage", run_stage)
    monkeypatch.setattr(stages, "at_once", lambda: 3)
    return config, plan(config), events


READS = dict(  # stage: what it reads, of the whole run
    zero=["base"],
    cold=["base"],
    rl=["cold"],
    orm=["cold"],
    prm=["cold", "orm"],
    rejection=["rl"],
    final=["base", "rejection"],
    student=["rl"],
)


def test_a_stage_begins_when_what_it_reads_has_ended_and_several_run_at_once(planned, tmp_path):
    config, all_stages, events = planned
    (tmp_path / "repaired").touch()
    log = {}
    run_stages(config, all_stages, log)
    at = {(name, what): i for i, (name, what, _) in enumerate(events)}
    assert set(log) == {stage.name for stage in all_stages}
    assert len(events) == 2 * len(all_stages)
    for name, needs in READS.items():
        assert all(at[need, "ended"] < at[name, "began"] for need in needs)
    for stage in all_stages:
        if stage.script == "sample.py":
            assert at[Path(stage.flags["ckpt"]).name, "ended"] < at[stage.name, "began"]
    best = next(stage.name for stage in all_stages if stage.name == "cold: best_of_n")
    assert at["orm", "ended"] < at[best, "began"]
    assert at["prm", "ended"] < at[best, "began"]
    whats = [what for _, what, _ in events]
    assert ("began", "began") in zip(whats, whats[1:])
    assert {threads for name, _, threads in events if name == "base"} == {0}
    assert {threads for name, _, threads in events if name != "base"} == {1}


def test_a_failure_ends_what_has_not_begun_and_the_next_start_does_the_rest(planned, tmp_path):
    config, all_stages, events = planned
    log = {}
    with pytest.raises(UserError, match="stage orm"):
        run_stages(config, all_stages, log)
    done = set(log)
    assert {"base", "cold"} <= done
    assert not {"orm", "prm", "cold: best_of_n"} & done
    # nor those that read nothing of it
    assert not {"demo 4", "final: general"} & {name for name, _, _ in events}
    (tmp_path / "repaired").touch()
    events.clear()
    run_stages(config, all_stages, log)
    assert set(log) == {stage.name for stage in all_stages}
    assert not {name for name, _, _ in events} & done


def test_time_is_counted_once_where_stages_overlap_and_not_between_runs():
    spans = [(0, 10), (10, 14), (12, 20), (13, 15), (100, 105)]
    log = {str(i): dict(began=float(a), ended=float(b)) for i, (a, b) in enumerate(spans)}
    assert wall(log) == 25.0


@pytest.mark.parametrize("folder", ["run", "a run"])
def test_what_a_stage_reads_is_found_in_any_folder(tmp_path, folder):
    config = Config(out=str(tmp_path / folder))
    all_stages = plan(config)
    found = {stage.name: inputs(config, stage, all_stages) for stage in all_stages}
    assert all(set(found[name]) == set(needs) for name, needs in READS.items())
    assert found["demo 1"] == ["final"]
    assert found["base"] == []
    assert set(found["cold: best_of_n"]) == {"cold", "orm", "prm"}


BEGUN = {  # script: a file in its folder; config.json says that a run has begun
    "distill.py": "config.json",
    "train_prm.py": "config.json",
    "train_sft.py": "config.json",
    "train_grpo.py": "config.json.tmp",  # killed before it could say so
}


def test_a_stage_that_was_stopped_goes_on_and_two_that_end_together_are_both_logged(
    tmp_path, monkeypatch
):
    """The real run_stage on scripts that print their arguments."""
    for name, mark in BEGUN.items():
        (tmp_path / name).write_text("import sys\nprint(*sys.argv[1:])\n")
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / mark).touch()
    said = []
    log = {}
    config = Config(out=str(tmp_path / "out"))
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(stages, "say", said.append)
    made = {name: Stage(name, name, dict(out=tmp_path / "out" / name), "", "") for name in BEGUN}
    threads = []
    for stage in made.values():
        call = (config, stage, "1/1", 1, log)
        threads.append(threading.Thread(target=stages.run_stage, args=call))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = {}  # whether a script was told to resume
    for line in said:
        if " | " in line:
            told[line.split(" | ")[0].strip()] = line.endswith("--resume")
    assert told == {
        "distill.py": True, "train_prm.py": True, "train_sft.py": True, "train_grpo.py": False
    }
    logged = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert set(logged) == set(log) == set(told)
    assert all("--resume" not in entry["command"] for entry in log.values())
    (tmp_path / "train_sft.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match="status 3"):
        stages.run_stage(config, made["train_sft.py"], "1/1", 1, log)


# How long it takes


def test_the_estimate_grows_with_a_slower_machine_and_shrinks_with_what_is_done(monkeypatch):
    whole = plan(Config())
    monkeypatch.setattr(stages, "at_once", lambda: 2)
    monkeypatch.setattr(stages, "cores", lambda: 2)
    monkeypatch.setattr(stages, "training_step_seconds", lambda: stages.STEP)
    minutes = stages.estimate(whole)
    assert 5 < minutes < 20  # the machine of stages.SECONDS took 12.6
    assert stages.estimate(whole[1:]) == pytest.approx(minutes - stages.SECONDS["base"] / 60)
    monkeypatch.setattr(stages, "training_step_seconds", lambda: 3 * stages.STEP)
    assert stages.estimate(whole) == pytest.approx(3 * minutes)
    monkeypatch.setattr(stages, "at_once", lambda: 16)
    waits = sum(stages.SECONDS[name] for name in stages.CHAIN)
    assert stages.estimate(whole[1:]) == pytest.approx(3 * waits / 60)  # however many cores


def test_a_training_step_is_timed_with_one_thread_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    assert 0 < stages.training_step_seconds() < 60 and torch.get_num_threads() == threads


# The race


def test_a_race_stops_the_clock_before_its_test_and_keeps_a_row_per_seed(monkeypatch, tmp_path):
    said = []
    clock = iter(range(0, 6000, 100))

    def run_stage(config, stage, position, threads, log):
        out = Path(config.out)
        began = next(clock)
        log[stage.name] = dict(began=began, ended=began + 60, seconds=60)
        if stage.name == "zero":
            (out / "zero").mkdir()
            (out / "zero" / "report.json").write_text(json.dumps(dict(steps=23, reached=True)))
        if stage.name == "zero: test":
            sampled = dict(acc=0.81, n=1000, ci=[0.784, 0.833], temperature=1.0)
            (out / "test.json").write_text(json.dumps(dict(sampled=sampled)))

    monkeypatch.setattr(race, "run_stage", run_stage)
    monkeypatch.setattr(race, "say", said.append)
    config = Config(out=str(tmp_path))
    rows = race.race(config)
    assert [row["seed"] for row in rows] == list(race.SEEDS)
    assert {row["minutes"] for row in rows} == {round(160 / 60, 2)}
    kept = json.loads((tmp_path / "race" / "race.json").read_text())
    assert kept["rows"] == rows and kept["goal"] == race.GOAL and kept["commit"]
    assert said[0].count("reached") == 3 and "0.810 [0.784, 0.833] n=1000" in said[0]
    with pytest.raises(UserError, match="holds a race"):
        race.race(config)


def test_the_race_asks_for_sampled_accuracy_on_a_thousand_problems():
    _, zero, test = race.race_plan(Path("out"), 1, False)
    families = zero.flags["families"].split(",")
    assert zero.flags["goal"] == race.GOAL == 0.8 and len(families) == 5
    assert grpo_run.GOAL_PROBLEMS == 1000 == len(families) * test.flags["problems"]
    assert test.flags["families"] == zero.flags["families"]


@pytest.mark.parametrize("name", ["config.json", "stages.json"])
def test_a_damaged_file_of_a_line_is_named_in_one_line(tmp_path, name):
    config = Config(out=str(tmp_path), quick=True)
    prepare(config)
    (tmp_path / name).write_text("")  # as a power cut may leave it
    with pytest.raises(UserError, match=f"{name} is damaged"):
        prepare(config)

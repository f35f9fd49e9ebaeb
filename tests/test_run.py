"""A run's folder: Ctrl-C, progress, metrics and other files, and what a kill must not break."""

import errno
import json
import os
import re
import shutil
import signal
import sys
import threading
from dataclasses import dataclass

import pytest
import torch

from nanoreason.flags import UserError, flag
from nanoreason.machine import Machine, run_script
from nanoreason.run import (
    STOPS, Interrupt, Metrics, RunFolder, StepBar, as_typed, read_json, read_metrics,
    stop_if_diverged, whole_file, write_json,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", STOPS)
def test_one_ctrl_c_or_kill_is_a_wish_and_two_stop_at_once(name):
    number = getattr(signal, name)
    before = {name: signal.getsignal(getattr(signal, name)) for name in STOPS}
    signal.signal(number, signal.default_int_handler)  # whatever runs the tests may ignore it
    interrupt = Interrupt()
    try:
        assert not interrupt.wanted
        signal.raise_signal(number)
        assert interrupt.wanted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        interrupt.close()
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def test_ctrl_c_is_given_back_also_where_an_error_ends_the_run():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError):
        with Interrupt():
            assert signal.getsignal(signal.SIGINT) != before
            raise UserError("diverged")
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.skipif("SIGHUP" not in STOPS, reason="no terminals that hang up here")
def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt = Interrupt()
        signal.raise_signal(signal.SIGHUP)
        assert not interrupt.wanted
        interrupt.close()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stopped_script_says_after_which_step_gives_ctrl_c_back_and_ends_with_130(capsys):
    before = signal.getsignal(signal.SIGINT)
    machine = Machine(CPU)

    def script():
        interrupt = Interrupt()
        assert not interrupt.agreed(machine)
        signal.raise_signal(signal.SIGINT)
        assert interrupt.agreed(machine)
        interrupt.leave(7, machine)

    try:
        with pytest.raises(SystemExit) as stop:
            run_script(script)
        assert stop.value.code == 130
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, before)
    shown = capsys.readouterr()
    assert shown.out == "stopped after step 7 and saved; continue with --resume\n"
    assert shown.err == ""


def test_outside_the_main_thread_ctrl_c_is_left_alone():
    before = signal.getsignal(signal.SIGINT)
    made = []

    def make_and_close():
        made.append(Interrupt())
        made[0].close()

    thread = threading.Thread(target=make_and_close)
    thread.start()
    thread.join()
    assert len(made) == 1
    assert not made[0].agreed(Machine(CPU))
    assert signal.getsignal(signal.SIGINT) == before


class Clock:
    """time.time, set by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("nanoreason.run.time.time", lambda: self.now)


def test_progress_is_a_line_every_ten_seconds_and_at_the_end_where_there_is_no_terminal(
    capsys, monkeypatch
):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    bar = StepBar(42, "rl", Machine(CPU), first=3)
    for step in range(3, 42):
        clock.now += 3.0
        bar.show(step, f"at {step}")
    bar.close()
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    # once, from the first three steps
    assert lines.pop(1) == "39 steps of 3.00 s: about 1.9 minutes here"
    spoken = [int(line.split()[1].split("/")[0]) for line in lines]
    # the first, then 12 s apart, the last
    assert spoken == [3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 41]
    assert shown.err == ""
    assert lines[1] == "  step     7/42  at 7  15s"
    assert bar.seconds == 39 * 3


def test_progress_is_a_bar_on_a_terminal_and_nothing_on_other_ranks(capsys, monkeypatch):
    Clock(monkeypatch)
    for tty, rank in ((True, 0), (True, 1), (False, 1)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda tty=tty: tty)
        bar = StepBar(2, "rl", Machine(CPU, rank, 1))
        for step in range(2):
            bar.show(step, "solved 0.5")
        bar.close()
        shown = capsys.readouterr()
        seen = tty and rank == 0
        assert shown.out == ""
        assert bool(shown.err) == seen
        assert ("solved 0.5" in shown.err) == seen


# Metrics and other files


def test_metrics_drop_what_a_killed_run_wrote_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(6):
        metrics.log(step=step, loss=step / 3)
    with open(path, "a") as f:
        f.write('{"step": 6, "lo')  # cut by a kill
    assert [row["step"] for row in read_metrics(path)] == list(range(6))
    resumed = Metrics(path, resume_step=4)
    resumed.log(step=4, loss=9.0)
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1, 9], rel=1e-5)
    Metrics(path)
    assert read_metrics(path) == []
    assert read_metrics(tmp_path / "none") == []


def test_ranks_above_zero_write_no_metrics(tmp_path):
    Metrics(tmp_path / "m.jsonl", write=False).log(step=0, loss=1.0)
    assert not (tmp_path / "m.jsonl").exists()


def test_a_damaged_line_is_named_and_only_a_last_one_that_was_cut_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": \xff\x00\n{"step": 2}\n')
    with pytest.raises(UserError, match="metrics.jsonl, line 2: this is not JSON"):
        Metrics(path, resume_step=3)
    assert path.read_bytes().endswith(b'{"step": 2}\n')


def test_of_two_runs_in_one_folder_the_one_that_began_first_ends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path)
    first.log(step=0, loss=1.0)
    second = Metrics(path)
    second.log(step=0, loss=2.0)
    with pytest.raises(UserError, match="does another run use the same --out"):
        first.log(step=1, loss=1.0)
    second.log(step=1, loss=2.0)
    assert [row["loss"] for row in read_metrics(path)] == [2.0, 2.0]


def test_a_file_that_only_got_another_number_on_its_disk_is_gone_on_with(tmp_path):
    """As it happens on network folders."""
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(3):
        metrics.log(step=step, loss=1.0)
        shutil.copy(path, tmp_path / "copy")
        os.replace(tmp_path / "copy", path)
    resumed = Metrics(path, resume_step=2)
    shutil.copy(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    resumed.log(step=2, loss=2.0)
    assert [row["loss"] for row in read_metrics(path)] == [1.0, 1.0, 2.0]


def test_write_json_replaces_whole_files_only(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["report.json"]


# A full disk


FULL = OSError(errno.ENOSPC, "No space left on device")


def fail(*args, **kwargs):
    raise FULL


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file_alone(where, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(where, fail)
    with pytest.raises(UserError, match=r"^cannot write .*report.json: No space left on device$"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["report.json"]


def test_what_is_written_before_the_disk_is_full_does_not_stay(tmp_path):
    with pytest.raises(UserError, match="No space left"):
        with whole_file(tmp_path / "train.npz") as scratch:
            scratch.write_bytes(b"half")
            raise FULL
    assert os.listdir(tmp_path) == []


def test_metrics_that_a_full_disk_cut_are_continued(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.log(step=0, loss=1.0)
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(UserError, match="cannot write .*metrics.jsonl: No space left on device"):
        metrics.log(step=1, loss=1.0)
    monkeypatch.undo()
    with open(path, "a") as f:
        f.write('{"step": 1, "lo')  # what fitted
    Metrics(path, resume_step=1).log(step=1, loss=2.0)
    assert [row["loss"] for row in read_metrics(path)] == [1.0, 2.0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_device_that_is_really_full(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    metrics = Metrics(tmp_path / "other.jsonl")
    metrics.path = tmp_path / "metrics.jsonl"
    metrics.last_seen = (0, b"")
    with pytest.raises(UserError, match="No space left on device"):
        metrics.log(step=0, loss=1.0)


# The folder of a run


@dataclass
class Config:
    init: str = flag("", "")
    out: str = flag("", "")
    data: str = flag("", "")
    resume: bool = flag(False, "")
    exact: bool = flag(False, "")
    rate: float = flag(0.1, "")
    max_steps: int = flag(0, "")


class Runs:
    """Runs in tmp_path/run of a script with the flags above, which reads data and init."""

    def __init__(self, folder):
        self.out = folder / "deep" / "run"
        self.data = folder / "data.jsonl"
        self.init = folder / "init.pt"
        self.data.write_text("data")
        self.init.write_text("init")

    def open(self, **flags):
        """The RunFolder, before it is prepared."""
        config = Config(init=str(self.init), out=str(self.out), **flags)
        return RunFolder(config, {"--data": self.data, "--reward-model": ""}, {"--init": self.init})

    def begin(self, **flags):
        folder = self.open(**flags)
        assert folder.prepare(Machine(CPU)) == self.out
        return folder

    def write(self, *names):
        for name in names:
            (self.out / name).write_text("{}" if name.endswith(".json") else "work")

    def snapshot(self):
        return {path.name: path.read_bytes() for path in self.out.iterdir() if path.is_file()}

    def refuses(self, words, **flags):
        """UserError, and nothing in the folder is touched."""
        before = self.snapshot() if self.out.exists() else None
        with pytest.raises(UserError, match=words):
            self.open(**flags).prepare(Machine(CPU))
        assert (self.snapshot() if self.out.exists() else None) == before


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


WORK = ["ckpt.pt", "best.pt", "report.json", "traces.jsonl", "train.npz", "student"]


@pytest.mark.parametrize("name", WORK)
def test_a_new_run_does_not_begin_beside_the_work_of_another(name, runs):
    runs.begin(rate=0.5)
    runs.write(name)
    runs.refuses(rf"already holds a run \({name}\); continue it with --resume", rate=0.7)


def test_a_new_run_takes_nothing_of_an_unfinished_one_for_its_own(runs):
    runs.begin(rate=0.5)
    runs.write("metrics.jsonl", "provenance.json", "val.npz", "rl.png", "reward_model.png")
    runs.write("ckpt.pt.12.tmp", "report.json.tmp", "holiday.png", "notes.tmp")
    folder = runs.begin(rate=0.7)
    assert folder.weights_path is None and not folder.finished
    assert set(runs.snapshot()) == {"config.json", "holiday.png", "notes.tmp"}
    assert read_json(runs.out / "config.json")["rate"] == 0.7


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "rl.png"])
def test_a_folder_that_no_run_left_is_not_written_over(name, runs):
    runs.out.mkdir(parents=True)
    runs.write(name)
    runs.refuses(rf"holds a file that a run would write over \({name}\)")
    (runs.out / name).unlink()
    runs.write("holiday.png")
    runs.begin()
    assert set(runs.snapshot()) == {"config.json", "holiday.png"}


def test_resume_with_a_typo_makes_nothing(runs, tmp_path):
    runs.refuses("--resume: there is no run in --out", resume=True)
    assert sorted(os.listdir(tmp_path)) == ["data.jsonl", "init.pt"]
    runs.out.mkdir(parents=True)
    runs.write("ckpt.pt")
    runs.refuses("--resume: there is no run in --out", resume=True)


def test_a_run_that_was_killed_before_it_saved_starts_from_the_beginning(runs):
    runs.begin(rate=0.5)
    folder = runs.begin(rate=0.5, resume=True)
    assert folder.weights_path is None and not folder.finished
    runs.write("ckpt.pt", "ckpt.pt.77.tmp")
    assert runs.begin(rate=0.5, resume=True).weights_path == runs.out / "ckpt.pt"
    assert set(runs.snapshot()) == {"config.json", "ckpt.pt"}


def test_a_run_is_continued_with_its_own_flags_only(runs):
    runs.begin(rate=0.5)
    runs.refuses(r"began with other flags: --rate 0.5$", rate=0.7, resume=True)
    runs.write("ckpt.pt")
    runs.refuses(r"began with other flags: --rate 0.5$", resume=True)
    runs.begin(rate=0.5, max_steps=9, resume=True)
    assert read_json(runs.out / "config.json")["max_steps"] == 9


def test_a_flag_that_an_earlier_version_had_not_counts_as_its_default(runs):
    runs.begin()
    config = read_json(runs.out / "config.json")
    del config["rate"], config["inputs"]
    write_json(runs.out / "config.json", config)
    runs.refuses("began with other flags: --rate 0.1", rate=0.5, resume=True)
    runs.begin(resume=True)
    write_json(runs.out / "config.json", config | {"kind": "orm"})
    runs.refuses("is of another script or version: it has 'kind'", resume=True)


def test_the_flags_of_a_run_are_named_as_one_types_them(runs):
    runs.begin()
    runs.refuses("began with other flags: --no-exact, --rate 0.1$", resume=True, exact=True,
                 rate=0.5)
    assert as_typed("exact", True) == "--exact"
    assert as_typed("data", "") == "--data ''"
    assert as_typed("max_steps", 3) == "--max-steps 3"
    assert as_typed("data", "my rows.jsonl") == "--data 'my rows.jsonl'"


def test_a_file_under_another_name_is_the_same_file(runs, tmp_path):
    runs.begin(data=str(runs.data))
    shutil.copy(runs.data, tmp_path / "copy.jsonl")
    runs.data = tmp_path / "copy.jsonl"
    runs.begin(data=str(runs.data), resume=True)
    assert read_json(runs.out / "config.json")["data"] == str(runs.data)
    (tmp_path / "other.jsonl").write_text("more data")
    runs.data = tmp_path / "other.jsonl"
    runs.refuses("began with other flags: --data .*copy.jsonl$", data=str(runs.data), resume=True)


def test_own_data_that_an_earlier_version_split_otherwise_is_not_gone_on_with(runs, capsys):
    data = str(runs.data)
    runs.begin(data=data)
    config = read_json(runs.out / "config.json")
    del config["inputs"]
    write_json(runs.out / "config.json", config)
    runs.write("ckpt.pt")
    runs.refuses("was begun by an earlier version, which split --data", data=data, resume=True)
    runs.write("report.json")
    assert runs.begin(data=data, resume=True).finished


def test_no_rank_sees_what_another_writes_before_it_has_looked_itself(runs):
    """rank 0 waits for the others between the check and the first write."""
    waits = []

    class Waiting(Machine):
        def total(self, value):
            waits.append(runs.out.exists())
            return float(value)

    runs.open().prepare(Waiting(CPU))
    runs.write("metrics.jsonl")
    runs.open(resume=True).prepare(Waiting(CPU, rank=1, world=2))
    assert waits == [False, True]


def test_a_file_that_cannot_be_read_is_one_line(runs, monkeypatch):
    def closed(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(UserError, match="^cannot read .*data.jsonl: Permission denied$"):
        runs.open()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe{"])
def test_a_damaged_configuration_is_one_line_and_stays(text, runs):
    runs.begin()
    (runs.out / "config.json").write_bytes(text)
    for resume in (True, False):
        runs.refuses("config.json is damaged: it should hold a JSON object", resume=resume)


def test_a_run_is_continued_with_the_contents_of_the_files_that_it_still_reads(runs):
    runs.begin()
    runs.init.write_text("other")
    runs.refuses("--resume: the file of --init has changed since the run in", resume=True)
    runs.write("ckpt.pt")
    assert runs.begin(resume=True).weights_path  # the weights are in ckpt.pt now
    runs.init.unlink()
    runs.init = runs.init.with_name("elsewhere")
    runs.begin(resume=True)
    assert read_json(runs.out / "config.json")["init"].endswith("init.pt")
    runs.data.write_text("more data")
    runs.refuses("--resume: the file of --data has changed since the run in", resume=True)
    runs.data.unlink()
    runs.begin(resume=True)  # the script says that there is no such file
    runs.data.write_text("data")
    runs.begin(resume=True)


def test_a_finished_run_is_said_to_be_and_nothing_is_rewritten(runs, capsys):
    runs.begin(max_steps=3)
    runs.write("ckpt.pt", "best.pt", "report.json", "rl.png", "metrics.jsonl")
    before = runs.snapshot()
    folder = runs.begin(max_steps=3, resume=True)
    assert folder.finished and folder.report(Machine(CPU)) == {}
    assert "the run is finished" in capsys.readouterr().out
    assert runs.snapshot() == before
    # what a shorter run left is not the report of a longer one
    folder = runs.begin(max_steps=5, resume=True)
    assert not folder.finished
    assert before.keys() - runs.snapshot().keys() == {"report.json", "rl.png"}
    assert not runs.begin(max_steps=5, resume=True).finished


@pytest.mark.parametrize("name", ["best.pt", "report.json"])
def test_a_run_whose_weights_are_gone_is_not_begun_anew(name, runs):
    runs.begin()
    runs.write(name)
    runs.refuses(f"holds {name} and no weights to go on from", resume=True)


def test_a_folder_that_cannot_be_written_is_one_line(runs, tmp_path, monkeypatch):
    runs.out = runs.data  # a file
    with pytest.raises(UserError, match="^--out .*data.jsonl is no folder$"):
        runs.open()
    runs.out = tmp_path / "deeper" / "new"
    folder = runs.open()
    monkeypatch.setattr("nanoreason.run.Path.mkdir", fail)
    with pytest.raises(UserError, match="^cannot write to --out .*new: No space left on device$"):
        folder.prepare(Machine(CPU))
    monkeypatch.undo()
    runs.out = tmp_path / "new"
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match="^cannot write .*config.json: No space left on device"):
        runs.open().prepare(Machine(CPU))
    assert os.listdir(runs.out) == []


# A run that has diverged


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_no_number_ends_the_run(value):
    stop_if_diverged(3, dict(loss=1e30, kl=None), "lower --rate")
    words = re.escape(f"step 3: loss is {value}, the run has diverged and ends here")
    with pytest.raises(UserError, match=f"{words}.*with lower --rate$"):
        stop_if_diverged(3, dict(kl=None, loss=value), "lower --rate")

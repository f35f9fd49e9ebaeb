"""The study of GRPO's switches: rows are runs that train_grpo.py takes, the table is what the runs
left, and a run that is done is not repeated."""

import json
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import make_tiny, parse_response, render_prompt

import train_grpo
from nanoreason import checkpoint, plots
from nanoreason.studies import ablations, runs
from nanoreason.studies.ablations import (
    FIGURES, STUDIES, Config, collect_table, command, flags_of, folder, markdown,
    train_and_measure, wanted_rows)
from nanoreason.flags import parse_config, UserError
from nanoreason.machine import generator, Machine
from nanoreason.evaluate import held_out_problems
from nanoreason.generate import generate
from nanoreason.grpo_run import check_config
from nanoreason.rewards import outcome_reward

ROWS = [(study, row) for study, rows in STUDIES.items() for row in rows]


def flags(words):
    """What train_grpo.py makes of these words."""
    return parse_config(
        train_grpo.Config, words[1:], presets=train_grpo.PRESETS,
        brings={"loss": train_grpo.PAPERS}, doc=train_grpo.__doc__)


@pytest.mark.parametrize("study, row", ROWS, ids=lambda text: text.replace(" ", "-"))
def test_every_row_is_a_run_that_train_grpo_takes_with_the_rows_own_flags(study, row, tmp_path):
    config = Config(
        study=study, cold="some/cold", base="some/base", out=str(tmp_path / "with blank"),
        tokens=777)
    words = command(config, row, 5)
    assert words[0] == "train_grpo.py"
    assert shlex.split(shlex.join(words)) == words
    run = flags(words)
    check_config(run, Machine(torch.device("cpu")))
    own = STUDIES[study][row]
    wanted = {name: value for name, value in own.items() if name != "init"}
    wanted |= dict(seed=5, token_budget=777, eval_every=0, out=str(folder(config, row, 5)))
    assert {name: getattr(run, name) for name in wanted} == wanted
    assert run.steps * run.batch_size > Config().tokens  # the budget ends runs, not the steps
    assert run.init == ("some/base" if row == "from the base" else "some/cold")
    brought = train_grpo.PAPERS.get(own.get("loss"), {})
    left = {name: value for name, value in brought.items() if name not in own}
    plain = train_grpo.Config()
    for name in train_grpo.Config.__dataclass_fields__:
        if name not in {*wanted, "init", "steps"}:
            assert getattr(run, name) == left.get(name, getattr(plain, name)), name


@pytest.mark.parametrize("study", STUDIES)
def test_no_two_rows_of_a_study_are_the_same_run_nor_share_a_folder(study):
    config = Config(study=study)
    runs = [flags(command(config, row, 0)) for row in STUDIES[study]]
    for run in runs:
        run.out = ""
    assert all(a != b for i, a in enumerate(runs) for b in runs[:i])
    folders = {folder(config, row, seed) for row in STUDIES[study] for seed in (0, 1, 10)}
    assert len(folders) == 3 * len(STUDIES[study])


def test_rows_are_taken_by_name_in_the_order_given_and_an_unknown_one_is_a_user_error():
    assert wanted_rows(Config()) == list(STUDIES["losses"])
    assert wanted_rows(Config(rows="gspo, KL k2")) == ["gspo", "KL k2"]
    with pytest.raises(UserError, match="no row of study losses 'ppo'; there are grpo, dr-grpo"):
        wanted_rows(Config(rows="grpo,ppo"))
    with pytest.raises(UserError, match="no row of study tuning 'gspo'"):
        wanted_rows(Config(study="tuning", rows="gspo"))


def write_run(
    config, row, seed, sampled, greedy, coverage, length, entropy, steps, seconds, tokens
):
    """A run that is done: what it left of its measurement, its report and two steps."""
    out = folder(config, row, seed)
    out.mkdir(parents=True)
    measured = dict(
        sampled=sampled, greedy=dict(acc=greedy, n=10, ci=[0, 1]), coverage=coverage,
        length=length, entropy=entropy, behaviours={})
    (out / "measured.json").write_text(json.dumps(measured))
    # the report's seconds count from the last resumption
    report = dict(steps=steps, seconds=1.0, sampled_tokens=tokens)
    (out / "report.json").write_text(json.dumps(report))
    rows = []
    for step in range(2):
        rows.append(dict(
            step=step, rollout_seconds=0.75 * seconds / 2, update_seconds=0.25 * seconds / 2))
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_two_rows(config):
    """Two rows of two seeds each."""
    write_run(config, "grpo", 0, 0.50, 0.60, 0.75, 20.0, 0.5, 10, 61.0, 1000)
    write_run(config, "grpo", 7, 0.54, 0.60, 0.95, 30.0, 0.7, 13, 70.4, 1234)
    write_run(config, "gspo", 0, 0.10, 0.00, 1.00, 40.0, 0.123, 7, 100.0, 2000)
    write_run(config, "gspo", 7, 0.20, 1.00, 1.00, 42.0, 0.125, 8, 90.0, 950)


def test_the_table_shows_mean_and_standard_deviation_over_seeds_of_what_the_runs_left(tmp_path):
    config = Config(out=str(tmp_path), rows="gspo,grpo", problems=3, samples=4, tokens=900)
    write_two_rows(config)
    table = collect_table(config, [0, 7])
    assert list(table) == ["gspo", "grpo"] and set(FIGURES) <= set(table["grpo"])
    assert table["grpo"] == dict(
        sampled=pytest.approx([50, 54]), greedy=pytest.approx([60, 60]),
        coverage=pytest.approx([75, 95]), length=[20, 30], entropy=[0.5, 0.7],
        steps=[10, 13], seconds=[61.0, 70.4], tokens=[1000, 1234])
    lines = markdown(config, table, [0, 7]).splitlines()
    assert lines[:2] == [
        "| losses | sampled, % | greedy, % | pass@4, % | tokens per response | "
        "entropy, nats per token | steps |",
        "| --- " * 7 + "|"]
    # two numbers deviate by their distance / sqrt(2)
    assert lines[2] == (
        "| gspo | 15.0 ± 7.1 | 50.0 ± 70.7 | 100.0 ± 0.0 | 41.0 ± 1.4 | 0.124 ± 0.001 | 8 |")
    assert lines[3] == (
        "| grpo | 52.0 ± 2.8 | 60.0 ± 0.0 | 85.0 ± 14.1 | 25.0 ± 7.1 | 0.600 ± 0.141 | 12 |")
    assert lines[5] == (
        "Mean ± standard deviation over seeds 0, 7; 15 problems, 4 samples of each; "
        "950 to 2,000 sampled tokens and 61 to 100 s per run.")
    shown = [shlex.split(line.split("`")[1])[1:] for line in lines[7:]]
    assert shown == [command(config, row, 0) for row in ("gspo", "grpo")]


def test_the_standard_deviation_is_that_of_a_sample_and_nothing_for_one_seed():
    config = Config()
    keys = (*FIGURES, "steps", "seconds")
    three = {key: [1.0, 2.0, 6.0] for key in keys} | dict(tokens=[1, 2, 3])
    assert markdown(config, {"grpo": three}, [0, 1, 2]).splitlines()[2] == (
        "| grpo | 3.0 ± 2.6 | 3.0 ± 2.6 | 3.0 ± 2.6 | 3.0 ± 2.6 | 3.000 ± 2.646 | 3 |"
    )  # (4 + 1 + 9) / 2 = 7
    one = {key: [1.0] for key in keys} | dict(tokens=[1])
    assert markdown(config, {"grpo": one}, [0]).splitlines()[2] == (
        "| grpo | 1.0 | 1.0 | 1.0 | 1.0 | 1.000 | 1 |")


class Spawned:
    """subprocess.run, in this process: interpreters take seconds to start. Keeps all words."""

    def __init__(self, monkeypatch):
        self.words = []
        monkeypatch.setattr(runs.subprocess, "run", self)
        monkeypatch.setattr(runs, "at_once", lambda: 1)
        monkeypatch.setattr(ablations, "at_once", lambda: 1)
        self.monkeypatch = monkeypatch

    def __call__(self, words, env, **options):
        assert words[0] == sys.executable and env["OMP_NUM_THREADS"] == "1"
        assert env["PYTHONPATH"].split(":")[0] == str(runs.ROOT)
        self.words.append(words[1:])
        with self.monkeypatch.context() as inner:
            inner.setattr(sys, "argv", [*words[1:], *TINY.split()])
            train_grpo.main()
        return SimpleNamespace(returncode=0)


TINY = (
    "--batch-size 8 --num-samples-per-prompt 4 --max-reasoning-tokens 8 --row-tokens 64 "
    "--precision fp32 --device cpu")


def call_main(monkeypatch, *words):
    """ablations.main() with these words."""
    monkeypatch.setattr(sys, "argv", ["ablations.py", *words])
    ablations.main()


def entropies(model, prompt, response):
    """Exact entropy of the model at each token of a response, in nats."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1]
    return torch.distributions.Categorical(logits=logits).entropy().tolist()


def check_measured(out, problems):
    """A run's measured.json, against its model's responses, taken one at a time."""
    model = checkpoint.load_model(out / "ckpt.pt")
    prompts = [render_prompt(problem.question) for problem in problems]
    rollout = generate(model, prompts, 2, 8, 1.0, generator(0, "ablations"))
    responses = [rollout.response(i) for i in range(10)]
    nats = []
    right = []
    for i, response in enumerate(responses):
        nats += entropies(model, prompts[i // 2], response)
        right.append(outcome_reward(problems[i // 2], parse_response(response)))
    measured = json.loads((out / "measured.json").read_text())
    length = sum(map(len, responses)) / 10
    assert measured["entropy"] == pytest.approx(sum(nats) / len(nats), abs=2e-4)
    assert measured["length"] == pytest.approx(length, abs=0.01)
    assert measured["sampled"] == sum(right) / 10
    assert (measured["problems"], measured["samples"], measured["greedy"]["n"]) == (5, 2, 5)


def test_a_study_of_two_rows_trains_measures_and_draws_and_starts_nothing_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ablations, "choose_bf16", lambda *args: False)
    monkeypatch.setattr(plots, "rl_figures", lambda *args: None)  # drawn and tested elsewhere
    start = make_tiny()
    spawned = Spawned(monkeypatch)
    for name in ("cold", "base"):
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name / "ckpt.pt", start)
    words = f"--cold {tmp_path / 'cold'} --base {tmp_path / 'base'} --out {tmp_path}".split()
    words += "--rows exact-process,dr-grpo --tokens 100 --problems 1 --samples 2".split()
    words += "--seeds 3".split()
    call_main(monkeypatch, *words)
    out = tmp_path / "losses"
    assert [w[0].split("/")[-1] for w in spawned.words] == ["train_grpo.py"] * 2
    assert not any("--resume" in w for w in spawned.words)
    assert {path.name for path in out.iterdir()} == {
        "table.md", "table.json", "table.png", "exact-process-3", "exact-process-3.log",
        "dr-grpo-3", "dr-grpo-3.log"}
    table = json.loads((out / "table.json").read_text())
    assert list(table) == ["exact-process", "dr-grpo"]
    assert all(len(values) == 1 for row in table.values() for values in row.values())
    for row in table.values():  # steps of at most 64 tokens, to the budget
        assert 100 <= row["tokens"][0] < 100 + 8 * 8 and row["steps"] == [2]
    problems = held_out_problems(ablations.FAMILIES, (1, 2), 1)
    for row in table:
        check_measured(out / f"{row}-3", problems)

    written = (out / "dr-grpo-3" / "measured.json").read_text()
    (out / "dr-grpo-3" / "measured.json").unlink()
    call_main(monkeypatch, *words)  # trained already, only measured
    assert (out / "dr-grpo-3" / "measured.json").read_text() == written
    monkeypatch.setattr(ablations, "_measure", None)
    call_main(monkeypatch, *words)
    for more, other in (
        ("--tokens 101", "--token-budget 100, not 101"),
        ("--problems 2", "--problems 1, not 2"),
        ("--samples 3", "--samples 2, not 3"),
        (f"--cold {tmp_path / 'base'}", f"--init {tmp_path / 'cold'}, not {tmp_path / 'base'}"),
    ):
        complaint = f"was made with {other}; name another folder, or remove it"
        with pytest.raises(UserError, match=complaint):
            call_main(monkeypatch, *words, *more.split())
    assert len(spawned.words) == 2


def test_a_run_that_was_stopped_is_resumed_and_one_that_fails_says_why(tmp_path, monkeypatch):
    config = Config(out=str(tmp_path), rows="grpo")
    words = []
    failed = SimpleNamespace(returncode=2)
    monkeypatch.setattr(runs.subprocess, "run", lambda w, **options: words.append(w) or failed)
    where = "train_grpo.py failed; its own message is at the end of .*losses/grpo-4.log"
    with pytest.raises(UserError, match=where):
        train_and_measure(config, [4])
    folder(config, "grpo", 4).mkdir(parents=True)
    began = json.dumps(flags_of(config, "grpo", 4))
    (folder(config, "grpo", 4) / "config.json").write_text(began)
    with pytest.raises(UserError):
        train_and_measure(config, [4])
    assert [w[-1] == "--resume" for w in words] == [False, True]
    assert words[1][:-1] == words[0]


def test_seeds_that_are_no_numbers_and_starts_that_are_not_there_are_user_errors(
    tmp_path, monkeypatch
):
    for words, complaint in (
        ("--seeds 0,x", "--seeds 0,x"),
        (f"--cold {tmp_path}", "no checkpoint at"),
    ):
        with pytest.raises(UserError, match=complaint):
            call_main(monkeypatch, *words.split())

"""The scripts as users run them: a learned number, resume after a kill, one clear line for every
mistake, two ranks against one."""

import copy
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import (
    ROOT, encode, make_stopping, render_prompt, render_response, tokenizer, toy_tokenizer,
)

import distill
import sample
import train_grpo
import train_prm
import train_sft
from nanoreason import checkpoint, corpus, speedrun
from nanoreason.bench import __main__ as bench
from nanoreason.corpus import demonstrations, read_rows, tokenize
from nanoreason.data import pack
from nanoreason.experience import reward_responses
from nanoreason.generate import generate
from nanoreason.machine import generator, Machine, run_script
from nanoreason.model import GPT, GPTConfig
from nanoreason.questions import own_share
from nanoreason.replicas import Replicas
from nanoreason.reward_model import RewardModel, save_reward_model
from nanoreason.rewards import RewardConfig
from nanoreason.run import read_metrics
from nanoreason.search import METHODS, SearchConfig, greedy
from nanoreason.studies import compute, reward_models, students
from nanoreason.tasks import draw_problem, split_of, user_problem
from nanoreason.tasks.recall import CAPITALS
from test_grpo import scripted

ENV = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))


def call(module, *args):
    """Run a script's main() in this process with these flags."""
    argv = sys.argv
    sys.argv = [module.__name__ + ".py", *map(str, args)]
    try:
        run_script(module.main)
    finally:
        sys.argv = argv


def read_json(path):
    return json.loads(path.read_text())


def write_rows(path, rows):
    """Write a JSONL file; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def capitals(tmp_path_factory):
    """A nano model that answers 'What is the capital of ...?' rightly half of the time and with
    'unknown' otherwise."""
    folder = tmp_path_factory.mktemp("capitals")
    rng = random.Random(0)
    rows = []
    for i in range(800):
        problem = draw_problem("fact", 1, rng, "train")
        response = problem.answer if i % 2 else "unknown"
        rows.append({"prompt": problem.question, "response": response})
    data = write_rows(folder / "data.jsonl", rows)
    flags = """
        --stage cold-start --model nano --epochs 10 --batch-tokens 512 --row-tokens 64
        --muon-lr 0.01 --adamw-lr 0.01
    """
    call(train_sft, *flags.split(), "--data", data, "--out", folder / "sft")
    return folder


def test_sft_learns_what_the_file_teaches(capitals):
    report = read_json(capitals / "sft" / "report.json")
    rows = read_metrics(capitals / "sft" / "metrics.jsonl")
    assert rows[0]["loss"] > 5.5
    # ln 2 per response, spread over its tokens, is the floor of a coin flip
    assert report["val_loss"] < 0.6
    assert report["real_share"] > 0.8


def test_grpo_finds_the_answers_that_earn(capitals):
    flags = """
        --families fact --level 1 --steps 12 --batch-size 128 --max-reasoning-tokens 16
        --learning-rate 1e-3 --kl k3 --eval-every 0
    """
    call(train_grpo, *flags.split(), "--init", capitals / "sft", "--out", capitals / "rl")
    rows = read_metrics(capitals / "rl" / "metrics.jsonl")
    assert len(rows) == 12
    assert 0.25 < rows[0]["solve_rate"] < 0.75
    assert sum(r["solve_rate"] for r in rows[-3:]) / 3 > rows[0]["solve_rate"] + 0.25
    assert rows[0]["kl"] < 1e-3 < rows[-1]["kl"]
    for row in rows:
        assert abs(row["all_right"] + row["all_wrong"]) <= 1
        assert 0 <= row["truncated"] <= 1


def test_sample_prints_an_answer_and_eval_counts(capitals, capsys):
    model = ["--ckpt", capitals / "sft"]
    asked = ["What is the capital of France?", "--method", "vote", "--n", 8]
    call(sample, *asked, *model, "--json", capitals / "one.json")
    printed = capsys.readouterr().out
    one = read_json(capitals / "one.json")
    assert f"Answer: {one['answer']}" in printed
    assert len(one["answers"]) == 8
    flags = "--eval --families fact --level 1 --problems 10 --ns 1,4".split()
    paths = ["--cache", capitals / "cache", "--json", capitals / "eval.json"]
    call(sample, *flags, *model, *paths)
    figures = read_json(capitals / "eval.json")
    coverage = figures["scaling"]["coverage"]
    assert figures["greedy"]["n"] == 10
    assert coverage[1] >= coverage[0] > 0
    assert len(list((capitals / "cache").iterdir())) == 1


def train_reward_models(init, folder):
    """An ORM and a PRM of what the policy at `init` says, in folder/orm and folder/prm."""
    flags = """
        --families fact --level 1 --questions 24 --samples 8 --val-questions 8 --epochs 6
        --max-reasoning-tokens 16 --batch-size 8 --eval-every 2 --learning-rate 3e-3
    """
    for kind, labels in (("orm", ""), ("prm", "--labels mc --rollouts 2")):
        words = f"--kind {kind} {labels} {flags}".split()
        call(train_prm, *words, "--init", init, "--out", folder / kind)


def test_a_reward_model_is_trained_on_what_the_policy_says_and_every_method_can_ask_it(
    capitals, tmp_path, capsys
):
    train_reward_models(capitals / "sft", tmp_path)
    orm = tmp_path / "orm"
    figures = read_json(orm / "report.json")["test"]["positions"]
    assert figures["last"]["n"] == 64
    assert figures["last"]["auc"] > 0.8  # "unknown" is always wrong
    flags = "--eval --families fact --level 1 --problems 8 --ns 1,8".split()
    both = ["--reward-model", f"{orm},{tmp_path / 'prm'}"]
    paths = ["--cache", tmp_path / "cache", "--json", tmp_path / "eval.json"]
    call(sample, *flags, "--ckpt", capitals / "sft", *both, *paths)
    scale = read_json(tmp_path / "eval.json")["scaling"]
    rules = {"coverage", "vote", "likelihood", "orm", "weighted-orm"}
    rules |= {"prm-last", "prm-min", "prm-prod"}
    assert rules <= set(scale["rules"])
    assert scale["orm"][1] > scale["orm"][0] + 0.2
    assert scale["orm"][1] > scale["vote"][1]
    plans = {"4": [[0.9, "beam", 4], [2.0, "vote", 4]], "99": []}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(dict(kind="orm", aggregate="last", plans=plans)))
    capsys.readouterr()
    for method in METHODS:
        words = ["What is the capital of France?", "--method", method, "--n", 4]
        words += ["--min-thinking", 6, "--plan", plan, "--json", tmp_path / "one.json"]
        call(sample, *words, "--ckpt", capitals / "sft", "--reward-model", orm)
        one = read_json(tmp_path / "one.json")
        assert one["method"] == method
        assert one["tokens"] > 0
        # whose "Wait", forced on a model that never thinks, may end in no answer
        assert one["answer"] or method == "budget"
        wanted = "No answer: " if one["answer"] is None else f"Answer: {one['answer']}"
        assert wanted in capsys.readouterr().out


@pytest.fixture(scope="module")
def known(capitals):
    """A JSONL of questions and answers: what the model of `capitals` says itself for two thirds of
    its rows, 'Atlantis' for the others."""
    model = checkpoint.load_model(capitals / "sft", torch.device("cpu"))
    wordings = ("What is the capital of {}?", "Name the capital of {}.", "{} has which capital?")
    rows = []
    for i, country in enumerate(CAPITALS):
        for wording in wordings:
            question = wording.format(country)
            prompt = render_prompt(question)
            said = greedy(model, [prompt], SearchConfig(max_new_tokens=16))[0].answer
            rows.append({"prompt": question, "answer": said if said and i % 3 else "Atlantis"})
    return write_rows(capitals / "known.jsonl", rows)


def right_in(rows):
    """How many rows the model of `capitals` answers as the file does."""
    return sum(row.answer != "Atlantis" for row in rows)


def evaluate_file(model, data, split, out):
    """The figures of sample.py --eval on a split of a file, or on all of it."""
    flags = "--eval --max-reasoning-tokens 16 --precision fp32".split()
    flags += ["--split", split, "--cache", ""]
    call(sample, *flags, "--ckpt", model, "--data", data, "--json", out)
    return read_json(out)


def test_one_file_of_questions_and_answers_serves_evaluation(capitals, known, tmp_path):
    rows = read_rows(known)
    assert len(rows) == 60
    assert 30 < right_in(rows) <= 40
    for split in ("val", "test", "all"):
        some = [row for row in rows if split in (row.split, "all")]
        assert len(some) >= 3
        figures = evaluate_file(capitals / "sft", known, split, tmp_path / "eval.json")
        assert figures["greedy"]["n"] == len(some)
        assert figures["greedy"]["acc"] == round(right_in(some) / len(some), 4)
    assert list(figures["families"]) == ["data"]
    assert figures["levels"] == [0]
    assert figures["scaling"]["problems"] == 60


def test_the_same_file_serves_supervised_training(capitals, known, tmp_path):
    flags = "--stage cold-start --row-tokens 64 --batch-tokens 128 --epochs 3".split()
    call(train_sft, *flags, "--init", capitals / "sft", "--data", known, "--out", tmp_path / "sft")
    report = read_json(tmp_path / "sft" / "report.json")
    metrics = read_metrics(tmp_path / "sft" / "metrics.jsonl")
    assert report["steps"] > 5
    assert report["val_loss"] > 0
    assert metrics[-1]["loss"] < metrics[0]["loss"]  # Atlantis is news


def test_the_same_file_serves_reinforcement_learning(capitals, known, tmp_path):
    val = [r for r in read_rows(known) if r.split == "val"]
    flags = """
        --steps 2 --batch-size 12 --num-samples-per-prompt 3 --max-reasoning-tokens 16
        --eval-every 2 --eval-problems 3 --precision fp32
    """
    paths = ["--init", capitals / "sft", "--data", known, "--out", tmp_path / "rl"]
    call(train_grpo, *flags.split(), *paths)
    greedy_accuracies = read_json(tmp_path / "rl" / "report.json")["val_greedy"]
    metrics = read_metrics(tmp_path / "rl" / "metrics.jsonl")
    assert len(metrics) == 2
    assert all(0 <= row["solve_rate"] <= 1 for row in metrics)
    assert set(greedy_accuracies) == {"0", "2"}
    assert greedy_accuracies["0"]["n"] == 3
    assert greedy_accuracies["0"]["acc"] == round(right_in(val[:3]) / 3, 4)


# all are as long to write as any other
SUMS = [(a, b) for a in range(1, 10) for b in range(1, 10) if a + b > 9]


@pytest.fixture
def sums(tmp_path):
    rows = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in SUMS]
    return write_rows(tmp_path / "sums.jsonl", rows)


def four_responses(question):
    """Right; right after a true, a false and a needless line; two answers; right, but cut off
    before the stop."""
    a = int(question[8])
    b = int(question[12])
    answer = str(a + b)
    true = f"{a} + {b} = {answer}"
    return [
        render_response(true, answer),
        render_response(f"{true}\n{a} + {b} = 99\nhm", answer),
        render_response("", f"{answer} or 99"),
        render_response("", answer)[:-1],
    ]


LONGER = len(encode("1 + 1 = 10\n1 + 1 = 99\nhm")) - len(encode("1 + 1 = 10"))
ALL_FOUR = sum(len(ids) for ids in four_responses("What is 9 + 8?"))
SOLVED = dict(outcome=1 / 2, format=3 / 4)  # means over the four responses
REWARDS = [  # flags of train_grpo.py and the parts of the reward that it logs
    (
        "--length-penalty -0.001 --length-form calibrated --process-weight 0.5",
        SOLVED
        | dict(length=-0.001 * LONGER / 4, process=1 / 4)
        | dict(total=1 / 2 - 0.001 * LONGER / 4 + 1 / 8),
    ),
    (
        "--process-weight 1 --process-form min --format-weight 0.1",
        SOLVED | dict(length=0, process=0, total=1 / 2 + 0.075),
    ),
    ("--reward leaky-for-hacking-study", SOLVED | dict(length=0, leaky=1, total=1)),
    ("--reward outcome --length-penalty -0.001", SOLVED | dict(length=-0.001 * ALL_FOUR / 4)),
]


@pytest.mark.parametrize("flags, logged", REWARDS)
def test_the_parts_of_the_reward_are_logged(
    flags, logged, tiny_checkpoint, sums, tmp_path, monkeypatch
):
    scripted(monkeypatch, four_responses)
    size = """
        --steps 1 --batch-size 16 --num-samples-per-prompt 4 --max-reasoning-tokens 40
        --row-tokens 64 --eval-every 0
    """
    paths = ["--init", tiny_checkpoint, "--data", sums, "--out", tmp_path / "rl"]
    call(train_grpo, *size.split(), *paths, *flags.split())
    (row,) = read_metrics(tmp_path / "rl" / "metrics.jsonl")
    found = {
        name.removeprefix("reward_"): value
        for name, value in row.items()
        if name.startswith("reward_")
    }
    assert LONGER > 5
    assert set(found) == {*logged, "total"}
    assert {name: found[name] for name in logged} == pytest.approx(logged, abs=1e-6)
    assert row["solve_rate"] == 1 / 2
    assert row["format"] == 3 / 4
    assert row["truncated"] == 1 / 4


def test_the_held_out_level_can_be_measured(tiny_checkpoint, tmp_path):
    flags = """
        --eval --families multiplication,percent --level 6 --problems 5 --max-reasoning-tokens 8
        --ns 0
    """
    out = tmp_path / "eval.json"
    call(sample, *flags.split(), "--ckpt", tiny_checkpoint, "--json", out)
    figures = read_json(out)
    assert figures["levels"] == [6]
    measured = {family: list(table["levels"]) for family, table in figures["families"].items()}
    assert measured == {"multiplication": ["6"], "percent": ["6"]}
    assert figures["greedy"]["n"] == 10


def test_training_from_a_corpus_file_is_training_on_the_text_it_was_made_of(tmp_path, capsys):
    same = "--tokens 1000 --row-tokens 64 --families chain,equation".split()
    write = ["--write", tmp_path / "corpus", "--workers", 1, *same]
    call(corpus, *write)
    flags = """
        --stage base --model nano --batch-tokens 256 --max-steps 3 --log-every 1 --precision fp32
    """
    for name, source in (("file", ["--corpus", tmp_path / "corpus"]), ("generated", [])):
        call(train_sft, *flags.split(), *same, *source, "--out", tmp_path / name)
    folders = (tmp_path / "file", tmp_path / "generated")
    one, two = (without_times(read_metrics(folder / "metrics.jsonl")) for folder in folders)
    assert len(one) == 3
    assert one == two
    one, two = (read_json(folder / "report.json") for folder in folders)
    assert one["val_loss"] == two["val_loss"] > 3
    assert one["real_share"] == two["real_share"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(corpus, *write)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "already holds a corpus" in error
    assert error.count("\n") == 1


def without_times(rows):
    """The rows without what differs from run to run."""
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def run_to_the_end(words):
    """Run a script in a process of its own."""
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)


def kill_and_resume(command, out, at_step):
    """Start a run, SIGKILL it once its metrics reach `at_step`, resume it to the end."""
    words = [*command, "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL
    )
    while len(read_metrics(out / "metrics.jsonl")) <= at_step and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_to_the_end([*words, "--resume"])


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    """Supervised; test_grpo_run.py kills the other."""
    command = """
        train_sft.py --stage cold-start --demos 150 --model nano --batch-tokens 512 --log-every 1
        --save-every 3 --precision fp32
    """.split()
    run_to_the_end([*command, "--out", tmp_path / "whole"])
    kill_and_resume(command, tmp_path / "killed", at_step=5)
    folders = (tmp_path / "whole", tmp_path / "killed")
    whole, killed = (without_times(read_metrics(folder / "metrics.jsonl")) for folder in folders)
    assert len(whole) >= 10
    assert killed == whole


FACTS = "--families fact --level 1 --max-reasoning-tokens 16 --precision fp32 --device cpu"
RUNS = {  # script: what ends it as a kill before the first save would, and flags of a short run
    train_sft: ("Metrics", "--stage cold-start --demos 60 --batch-tokens 512 --max-steps 2"),
    train_grpo: ("Metrics", f"{FACTS} --steps 2 --batch-size 16 --eval-every 0"),
    train_prm: (
        "Metrics", f"{FACTS} --questions 24 --val-questions 4 --batch-size 8 --max-steps 3"
    ),
    distill: ("sample_traces", f"{FACTS} --questions 30 --samples 4 --collect-only"),
}


@pytest.mark.parametrize("module", RUNS)
def test_a_run_killed_before_it_saved_is_continued_from_the_start_and_a_finished_one_left_alone(
    module, capitals, tmp_path, monkeypatch, capsys
):
    name, flags = RUNS[module]
    start = "--teacher" if module is distill else "--init"
    flags = [*flags.split(), start, capitals / "sft", "--out"]
    call(module, *flags, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *args: sys.exit(9))
        with pytest.raises(SystemExit, match="9"):
            call(module, *flags, tmp_path / "run")
    assert set(os.listdir(tmp_path / "run")) & {"ckpt.pt", "best.pt", "traces.jsonl"} == set()
    call(module, *flags, tmp_path / "run", "--resume")
    one, two = (tmp_path / name for name in ("whole", "run"))
    assert without_times(read_metrics(one / "metrics.jsonl")) == without_times(
        read_metrics(two / "metrics.jsonl"))
    for path in (*one.glob("*.pt"), *one.glob("*.jsonl"), one / "config.json"):
        assert (two / path.name).exists()
    if module is distill:
        assert (one / "traces.jsonl").read_bytes() == (two / "traces.jsonl").read_bytes()
        return
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in two.iterdir()}
    capsys.readouterr()
    call(module, *flags, two, "--resume")
    assert "the run is finished; report.json holds its figures" in capsys.readouterr().out
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in two.iterdir()}
    assert after == before


def test_supervised_training_that_diverges_ends_with_one_line_and_its_last_good_weights(
    tmp_path, capsys
):
    flags = """
        --stage cold-start --model nano --demos 150 --batch-tokens 512 --muon-lr 1e6
        --adamw-lr 1e36 --save-every 1 --precision fp32 --device cpu
    """
    with pytest.raises(SystemExit) as stop:
        call(train_sft, *flags.split(), "--out", tmp_path)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "diverged" in error and "--muon-lr and --adamw-lr" in error
    assert not (tmp_path / "report.json").exists()
    if (tmp_path / "ckpt.pt").exists():
        checkpoint.load_model(tmp_path)


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "ckpt.pt"
    model = GPT(GPTConfig(n_layer=1, n_embd=32, d_ff=64, max_len=64), tokenizer)
    checkpoint.save(path, model.init_weights(generator(0, "tiny")), step=0)
    return path


# Mistakes: {script: [(flags, what the line on stderr says)]}; {names} are places of `places`

SHORT = "--init {tiny} --max-reasoning-tokens 30"
TINY = f"{SHORT} --row-tokens 64 --out {{new}}"
WANTED_LEVELS = "whole numbers from 1 to 5"
MISTAKES = {
    sample: [
        ("hello --ckpt {tiny} --methd vote", "unrecognized arguments"),
        ("hello --ckpt {tiny} --method guess", "invalid choice"),
        ("hello --ckpt nowhere/ckpt.pt", "no checkpoint"),
        ("hello --ckpt {foreign}", "no checkpoint of this project"),
        ("hello --ckpt {damaged}", "damaged"),
        ("{long} --ckpt {tiny}", "context"),
        ("--ckpt {tiny} --json x.json", "--json is for one question and for --eval"),
        ("--eval --ckpt {tiny} --families poetry", "poetry"),
        ("--eval --ckpt {tiny} --level 9", "levels"),
        ("hello --ckpt {tiny} --method auto", "--method auto needs a --plan"),
        ("hello --ckpt {tiny} --method auto --plan {rows}", "--method auto needs a --plan"),
        (
            "hello --ckpt {tiny} --method beam --reward-model {tiny}",
            "is a language model; a reward model is wanted",
        ),
        (
            "hello --ckpt {tiny} --method best-of-n --reward-model {orm}",
            "reads 8 tokens, fewer than the 64 of the model's context",
        ),
        (
            "hello --ckpt {tiny} --method auto --plan {plan}",
            "was made with a reward model of kind prm and --aggregate min, "
            "not with none and last",
        ),
        (
            "hello --ckpt {tiny} --method best-of-n --reward-model {toy_orm}",
            "have different tokenizers: the same ids mean different text",
        ),
        (
            "--eval --ckpt {tiny} --families fact --level 1 --problems 2 --max-reasoning-tokens 4 "
            "--cache= --reward-model {toy_orm}",
            "have different tokenizers",
        ),
        ("hello --ckpt {half}", "half.pt: the description of a tokenizer is damaged"),
        ("hello --ckpt {old}", "old.pt was trained with another tokenizer"),
        ("hello --ckpt {tiny} --json {new}/x.json", "there is no such folder"),
        ("--eval --ckpt {tiny} --data {unmarked}", "line 2: no answer to check by"),
        ("--eval --ckpt {tiny} --data {broken}", "line 2: this is not JSON"),
        ("--eval --ckpt {tiny} --level 7", "levels are 1 to 6"),
        ("--eval --ckpt {tiny} --families fact --level 6", "no problems to measure on"),
    ],
    train_prm: [
        ("--init {tiny} --hard-labels --out {new}", "--hard-labels is about Monte Carlo labels"),
        (SHORT + " --data {rows} --questions 2 --out {new}", "too few of its questions"),
        ("--out {new}", "--init is missing"),
        (
            "--init {orm} --out {new}",
            "holds a reward model (orm), which scores and cannot write",
        ),
        ("--init {tiny} --labels mc --out {new}", "--labels mc is for --kind prm"),
        ("--init {tiny} --rollouts 61 --out {new}", "must be at least 1 and at most 60"),
        (SHORT + " --reuse nowhere --out {new}", "is no run of train_prm.py"),
        (SHORT + " --out {used}", "already holds a run"),
        (SHORT + " --level 9 --out {new}", "levels are whole numbers"),
        ("--init {half} --out {new}", "half.pt: the description of a tokenizer is damaged"),
    ],
    train_sft: [
        ("--stage base --muon-lr 1e39", "--muon-lr is 1e+39; it must be at least 0 and at most"),
        ("--epochs 0", "at least 1"),
        ("--muon-lr fast", "invalid float"),
        ("--stage cold-start --data nowhere.jsonl --out {new}", "no data file"),
        ("--stage cold-start --init {tiny} --demos 20 --out {new}", "context"),
        ("--stage cold-start --out {used}", "already holds a run"),
        ("--data {broken} --out {new}", "line 2: this is not JSON"),
        ("--families chain,poetry --out {new}", "poetry"),
        ("--tables 0.5 --textbook 0.5 --out {new}", "most they may be"),
        ("--corpus nowhere --out {new}", "no whole corpus"),
    ],
    train_grpo: [
        ("--out {new}", "--init is missing"),
        (
            "--init {orm} --row-tokens 64 --out {new}",
            "holds a reward model (orm), which scores and cannot write",
        ),
        (
            "--init {tiny} --out {new}",
            "--row-tokens 128 is longer than the model's context of 64",
        ),
        (
            TINY + " --batch-size 20",
            "--batch-size 20 is no multiple of --num-samples-per-prompt 8",
        ),
        (
            TINY + " --batch-size 8",
            "--batch-size 8 makes 1 question(s), too few for 1 x 2 (ranks x minibatches)",
        ),
        (
            TINY + " --reward prm",
            "--reward prm and --reward-model (none) do not go together",
        ),
        (TINY + " --reward-model {orm}", "do not go together"),
        (
            TINY + " --overlong-buffer 31",
            "--overlong-buffer 31 is longer than --max-reasoning-tokens 30",
        ),
        (
            TINY + " --reward orm --reward-model {tiny}",
            "is a language model; orm is wanted",
        ),
        (
            TINY + " --reward prm --reward-model {orm}",
            "is a reward model of kind orm; prm is wanted",
        ),
        (TINY + " --reward orm --reward-model nowhere", "no checkpoint"),
        (
            TINY + " --reward orm --reward-model {toy_orm}",
            "--init and --reward-model have different tokenizers",
        ),
        (
            TINY + " --reward orm --reward-model {orm} --families fact --batch-size 16",
            "--max-reasoning-tokens leaves no room for questions: it should be at least 23 less",
        ),
        (TINY + " --families poetry", "there is no family 'poetry'"),
        (TINY + " --families {nothing}", "--families '': an item is empty"),
        (TINY + " --level one", "--level one: levels are whole numbers"),
        (TINY + " --level 6", f"{WANTED_LEVELS}, separated by commas, or auto"),
        (TINY + " --level 0", WANTED_LEVELS),
        (TINY + " --level 1,", WANTED_LEVELS),
        (TINY + " --level 1,auto", WANTED_LEVELS),
        (TINY + " --level auto --data {rows}", "--level auto needs generated questions"),
        (TINY + " --reward generous", "invalid choice"),
        (TINY + " --loss ppo", "invalid choice"),
        (TINY + " --kl k4", "invalid choice"),
        (TINY + " --advantage rank", "invalid choice"),
        (TINY + " --clip-high -2", "--clip-high is -2.0; it must be at least -1"),
        (TINY + " --length-penalty 0.001", "at most 0"),
        (TINY + " --length-form fair", "invalid choice"),
        (TINY + " --process-form max", "invalid choice"),
        (TINY + " --data nowhere.jsonl", "no data file"),
        (TINY + " --data {broken}", "line 2: this is not JSON"),
        (TINY + " --data {unmarked}", "line 2: no answer to check by"),
        (
            TINY + " --data {rows} --max-reasoning-tokens 60",
            " tokens; --max-reasoning-tokens leaves 4 for questions",
        ),
        (
            TINY + " --max-reasoning-tokens 70",
            "--max-reasoning-tokens leaves no room for questions: it should be at least 7 less",
        ),
        (
            TINY + " --families word --max-reasoning-tokens 60",
            "--max-reasoning-tokens leaves 4 tokens for questions, "
            "and 100 generated ones in a row are longer",
        ),
        (
            TINY + " --families word --max-reasoning-tokens 60 --eval-every 0",
            "--max-reasoning-tokens leaves 4 tokens for questions, "
            "and 100 generated ones in a row are longer",
        ),
        (
            TINY + " --data {held}",
            "all its questions fall into the fifth that is kept for validation and test",
        ),
        ("--resume --out {new}", "--resume: there is no run in --out"),
        ("--resume --out {used}", "--resume: there is no run in --out"),
        ("--resume --row-tokens 64 --out {sft}", "ckpt.pt holds no 'run': it is not what this"),
        ("--resume --row-tokens 64 --kl k3 --out {rl}", "began with other flags: --kl none"),
        ("--resume --row-tokens 64 --out {alien}", "another script or version: it has 'kind'"),
        ("--resume --out {scratch}", "config.json is damaged"),
        (TINY.replace("{new}", "{alien}"), "already holds a run (ckpt.pt)"),
        (TINY.replace("{new}", "{scratch}"), "config.json is damaged"),
        (SHORT + " --row-tokens 64 --out={nothing}", "--out is empty"),
        (SHORT + " --row-tokens 64 --out {used}", "already holds a run"),
    ],
    reward_models: [("--seeds one", "--seeds one: whole numbers")],
    corpus: [
        ("--write {new} --tokens 0", "at least 1"),
        ("--write {new} --families chain,poetry", "poetry"),
        ("--write {tiny}/below", "cannot write"),
    ],
    speedrun: [("--seed -1", "at least 0"), ("--out {new},too", "without one")],
    compute: [
        ("--lines nano:mini+huge", "no size 'huge'"),
        ("--lines nano", "no size ''"),
    ],
    students: [
        ("--seeds 0,one", "whole numbers"),
        ("--students micro,tiny", "no size 'tiny'"),
    ],
    bench: [("--parts speed", "'speed'")],
}


@pytest.fixture
def places(tiny_checkpoint, tmp_path):
    """{name: path} of files that flags can name, good ones and bad ones."""
    places = dict(tiny=tiny_checkpoint, new=tmp_path / "new", nothing="", long="hello " * 200)
    good = {"prompt": "What is 2 + 3?", "answer": "5"}
    places["rows"] = write_rows(tmp_path / "rows.jsonl", [good, good])
    no_answer = {"prompt": "How are you?", "response": "Well."}
    places["unmarked"] = write_rows(tmp_path / "unmarked.jsonl", [good, no_answer])
    places["broken"] = write_rows(tmp_path / "broken.jsonl", [good])
    with open(places["broken"], "a") as f:
        f.write("{oops\n")
    numbers = range(10_000)
    held = next(n for n in numbers if split_of("data", (f"What is {n}?", str(n))) == "val")
    only = {"prompt": f"What is {held}?", "answer": str(held)}
    places["held"] = write_rows(tmp_path / "held.jsonl", [only])
    places["plan"] = tmp_path / "plan.json"
    plan = dict(kind="prm", aggregate="min", plans={"16": [[2.0, "vote", 4]]})
    places["plan"].write_text(json.dumps(plan))
    return places | checkpoints_in(tmp_path, tiny_checkpoint)


def checkpoints_in(folder, tiny):
    """{name: path} of checkpoints, of every kind that a script may be given by mistake."""
    places = {}
    places["foreign"] = folder / "foreign.pt"
    torch.save({"a": torch.zeros(1)}, places["foreign"])
    places["damaged"] = folder / "damaged.pt"
    places["damaged"].write_bytes(tiny.read_bytes()[:500])
    places["used"] = folder / "used"
    places["used"].mkdir()
    (places["used"] / "ckpt.pt").write_bytes(b"precious")
    shape = dict(n_layer=1, n_head=1, n_kv_head=1, n_embd=8, head_dim=8, d_ff=8, max_len=8)
    for name, t in (("orm", tokenizer), ("toy_orm", toy_tokenizer())):
        places[name] = folder / f"{name}.pt"
        save_reward_model(places[name], RewardModel(GPTConfig(**shape), "orm", t))
        shape["max_len"] = 64
    good = torch.load(tiny, weights_only=True)
    half = {"name": "half", "pattern": "."}
    old = {name: value for name, value in good.items() if name != "tokenizer"}
    for name, state in (("half", good | dict(tokenizer=half)), ("old", old | dict(vocabulary="?"))):
        places[name] = folder / f"{name}.pt"
        torch.save(state, places[name])
    model = checkpoint.load_model(tiny)
    own = dict(run=dict(step=1), reference=None)
    states = dict(sft=dict(step=3), rl=own, alien=own)
    for name, state in states.items():
        places[name] = folder / name
        places[name].mkdir()
        checkpoint.save(places[name] / "ckpt.pt", model, **state)
        (places[name] / "config.json").write_text('{"row_tokens": 64}')
    (places["alien"] / "config.json").write_text('{"row_tokens": 64, "kind": "orm"}')
    places["scratch"] = folder / "scratch"
    places["scratch"].mkdir()
    (places["scratch"] / "config.json").write_text('{"row_tokens": 6')
    return places


@pytest.mark.parametrize(
    "module, flags, complaint",
    [(module, *mistake) for module, mistakes in MISTAKES.items() for mistake in mistakes],
)
def test_every_mistake_ends_in_one_line_and_status_2(module, flags, complaint, places, capsys):
    with pytest.raises(SystemExit) as stop:
        call(module, *(word.format(**places) for word in flags.split()))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert complaint in error
    assert error.count("\n") == 1
    assert (places["used"] / "ckpt.pt").read_bytes() == b"precious"


@pytest.mark.parametrize("module", [train_sft, train_prm, train_grpo])
def test_a_mistake_in_what_a_run_reads_removes_nothing_of_an_earlier_one(
    module, tiny_checkpoint, tmp_path, capsys
):
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text("{}")
    config = module.Config(init=str(tiny_checkpoint), out=str(out))
    (out / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    words = ["--out", out, "--init"]
    cases = [([*words, tmp_path / "nowhere"], "no checkpoint at")]
    if module is train_prm:
        cases.append(([*words, tiny_checkpoint, "--reuse", tmp_path], "is no run of train_prm.py"))
    resumed = [*words, tiny_checkpoint, "--resume", "--max-steps", 3]
    for command, complaint in [*cases, (resumed, "ckpt.pt is damaged")]:
        if command is resumed:
            for name in ("ckpt.pt", "report.json", "rl.png"):
                (out / name).write_text("{}")
        before = {path: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(SystemExit):
            call(module, *command)
        assert complaint in capsys.readouterr().err
        assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_reader_that_leaves_early_is_no_mistake(tiny_checkpoint):
    """As `sample.py ... | head -1`: what is written to a closed pipe is lost in silence."""
    for words in (["sample.py", "hello", "--ckpt", tiny_checkpoint], ["train_sft.py", "--help"]):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=ENV, stdout=write, stderr=subprocess.PIPE,
            text=True,
        )
        os.close(write)
        _, error = process.communicate()
        assert error == "", words


WITH_FLAGS = [
    sample, train_sft, train_prm, train_grpo, speedrun, compute, reward_models, students
]


@pytest.mark.parametrize("module", WITH_FLAGS)
def test_help_names_every_flag(module, capsys):
    with pytest.raises(SystemExit) as stop:
        call(module, "--help")
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    for name in module.Config.__dataclass_fields__:
        assert name == "question" or "--" + name.replace("_", "-") in shown


def test_supervised_training_stopped_by_max_steps_goes_on_as_if_it_had_not_been(
    tiny_checkpoint, tmp_path
):
    """The learning rate follows the whole plan, not the steps that are run today; a run that has
    ended can be resumed, and keeps its loss."""
    rows = [
        {"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(8) for b in range(8)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    flags = """
        --stage cold-start --row-tokens 32 --batch-tokens 96 --log-every 1 --precision fp32
        --device cpu
    """.split()
    flags += ["--init", tiny_checkpoint, "--data", data]
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    call(train_sft, *flags, "--out", whole)
    call(train_sft, *flags, "--out", parts, "--max-steps", 3)
    call(train_sft, *flags, "--out", parts, "--resume")
    seen = []
    for folder in (whole, parts):
        logged = read_metrics(folder / "metrics.jsonl")
        seen.append([(row["step"], row["loss"], row["rate"]) for row in logged])
    assert seen[0] == seen[1]
    assert len(seen[0]) > 5
    one, two = (checkpoint.load(folder)["weights"] for folder in (whole, parts))
    assert all(torch.equal(one[key], two[key]) for key in one)
    before = read_json(parts / "report.json")["train_loss"]
    call(train_sft, *flags, "--out", parts, "--resume")
    last_loss = seen[0][-1][1]
    after = read_json(parts / "report.json")["train_loss"]
    assert after == before == pytest.approx(last_loss, rel=1e-5)
    # a length that is already behind the run changes nothing
    done = len(seen[0])
    for length in (3, done):
        call(train_sft, *flags, "--out", parts, "--resume", "--max-steps", length)
        state = checkpoint.load(parts)
        assert state["step"] == read_json(parts / "report.json")["steps"] == done
        assert all(torch.equal(one[key], state["weights"][key]) for key in one)
        assert read_json(parts / "report.json")["tokens_per_second"] == 0
    # over as many passes as that takes
    call(train_sft, *flags, "--out", tmp_path / "long", "--total-steps", 20)
    assert len(read_metrics(tmp_path / "long" / "metrics.jsonl")) == 20


def test_every_script_goes_on_with_the_tokenizer_of_the_checkpoint_it_starts_from(
    sums, tmp_path, capsys
):
    toy = toy_tokenizer()
    shape = GPTConfig(n_layer=1, n_embd=32, d_ff=64, max_len=64, vocab_size=toy.vocab_size)
    model = GPT(shape, toy).init_weights(generator(0, "toy"))
    checkpoint.save(tmp_path / "toy.pt", model)
    flags = "--stage cold-start --row-tokens 64 --batch-tokens 256 --epochs 60"
    flags += " --muon-lr 0.02 --precision fp32"
    paths = ["--init", tmp_path / "toy.pt", "--data", sums, "--out", tmp_path / "sft"]
    call(train_sft, *flags.split(), *paths)
    flags = """
        --steps 2 --batch-size 16 --num-samples-per-prompt 4 --max-reasoning-tokens 12
        --row-tokens 64 --eval-every 1 --eval-problems 4 --precision fp32
    """
    paths = ["--init", tmp_path / "sft", "--data", sums, "--out", tmp_path / "rl"]
    call(train_grpo, *flags.split(), *paths)
    for name in ("sft", "rl"):
        for path in (tmp_path / name).glob("*.pt"):
            assert checkpoint.load(path)["tokenizer"] == toy
    (row, _) = read_metrics(tmp_path / "rl" / "metrics.jsonl")
    assert row["format"] > 0.4  # it has learned to end its responses, in its own ids
    capsys.readouterr()
    call(sample, "What is 9 + 8?", "--ckpt", tmp_path / "rl")
    assert "Answer: " in capsys.readouterr().out
    flags = "--eval --split all --max-reasoning-tokens 12 --ns 1,4 --cache".split()
    paths = [tmp_path / "cache", "--data", sums, "--json", tmp_path / "eval.json"]
    call(sample, *flags, *paths, "--ckpt", tmp_path / "rl")
    figures = read_json(tmp_path / "eval.json")
    assert figures["greedy"]["acc"] > 0.5  # of the rows that it has learned
    assert figures["scaling"]["coverage"][1] >= figures["scaling"]["coverage"][0] > 0.3


# Two ranks against one


class Keep:
    """An optimizer that only looks."""

    def __init__(self, model):
        self.model = model
        self.grads = None

    def step(self):
        self.grads = torch.cat([p.grad.flatten() for p in self.model.parameters()]).clone()

    def zero_grad(self, set_to_none=True):
        self.model.zero_grad(set_to_none)


def sft_gradient(machine):
    """The gradient of one SFT step on eight rows, this rank holding its share, and the loss."""
    shape = GPTConfig(n_layer=2, n_embd=32, d_ff=64, head_dim=8, max_len=256)
    model = GPT(shape).init_weights(generator(0, "weights"))
    net = model
    if machine.world > 1:
        net = torch.nn.parallel.DistributedDataParallel(model)
    rows = pack(tokenize(demonstrations(40, 0), tokenizer), 256)
    keep = Keep(model)
    config = train_sft.Config(micro_tokens=512)

    def work(net, share):
        return train_sft.add_gradients(net, rows, *share, config, machine, False)

    mine = torch.arange(8).numpy()[machine.rank :: machine.world]
    loss, _ = train_sft.train_step(Replicas(net, [keep], work), rows, mine, machine)
    return dict(loss=loss, sft=keep.grads)


UPDATES = [  # loss, KL, and the outcomes of four groups of three responses
    ("grpo", "none", [[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]]),
    ("dapo", "k3", [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]]),
    ("gspo", "none", [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]),
]


def grpo_gradients(machine):
    """Gradients and weights of three GRPO updates on responses of uneven length.

    In the first, rank 1 of 2 has no signal at all.
    """
    model = make_stopping(bias=3.0)
    reference = copy.deepcopy(model)
    problems = [user_problem(f"What is {i} + 1{'1' * i}?", "") for i in range(4)]
    prompts = [render_prompt(p.question) for p in problems]
    rollout = generate(model, prompts, 3, 20, 1.0, generator(0, "rollout"))
    index = [0, 1, 2, 3]
    experience = reward_responses(problems, rollout, 3, RewardConfig(), index, tokenizer)
    lengths = experience.rollout.lengths
    groups = own_share(4, 1, machine)
    rows = [3 * p + g for p in groups for g in range(3)]
    result = dict(lengths=lengths)
    keep = Keep(model)
    adamw = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    for loss, kl, outcomes in UPDATES:
        rewards = torch.tensor(outcomes, dtype=torch.float32)
        advantages = train_grpo.token_advantages(rewards, [[]] * 12, lengths)[rows]
        config = train_grpo.Config(
            num_samples_per_prompt=3,
            minibatches=1,
            inner_epochs=2,
            micro_tokens=256,
            max_reasoning_tokens=20,
            loss=loss,
            kl=kl,
            kl_coef=0.1,
        )
        held_to = None if kl == "none" else reference
        mine = experience.select(groups)
        for optimizer in (keep, adamw):
            train_grpo.update(model, held_to, optimizer, mine, advantages, config, machine, False)
        result[f"{loss} gradient"] = keep.grads
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        result[f"{loss} weights"] = weights.clone()
    return result


def write_gradients(rank, world, folder):
    """Gradients of one SFT step and of GRPO updates on one rank; rank 0 writes them down."""
    torch.set_num_threads(1)
    if world > 1:
        meeting = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=world
        )
    machine = Machine(torch.device("cpu"), rank, world)
    result = sft_gradient(machine) | grpo_gradients(machine)
    if rank == 0:
        torch.save(result, f"{folder}/{world}.pt")
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # gloo's threads now and then abort while the interpreter is torn down (torch 2.13); what
        # is tested is done
        os._exit(0)


def test_two_ranks_give_the_gradients_and_the_training_steps_of_one(tmp_path):
    write_gradients(0, 1, tmp_path)
    torch.multiprocessing.spawn(write_gradients, (2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one["sft"].abs().max() > 1e-3
    assert abs(one["loss"] - two["loss"]) < 1e-5
    assert len(set(one["lengths"].tolist())) > 4
    before = torch.cat([p.detach().flatten() for p in make_stopping(bias=3.0).parameters()])
    for name in one.keys() - {"loss", "lengths"}:
        close = 1e-5 if "weights" in name else 1e-6
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=close)
        if "gradient" in name:
            assert one[name].abs().max() > 1e-3
        elif "weights" in name:
            assert (one[name] - before).abs().max() > 1e-3
            before = one[name]


# The one command


def check_report(out):
    """What a rehearsal of the speedrun has written."""
    report = read_json(out / "report.json")
    stages = report["stages"]
    assert [stage["name"] for stage in stages] == ["base", "zero", "cold", "rl", "final"]
    assert report["rejection"]["traces"] > 0
    assert report["distillation"][0]["params"] < 2e5
    assert {"orm", "weighted-prm-last"} <= set(report["best_of_n"])
    assert "harmful" in stages[4]["accuracy"]
    assert stages[0]["params"] > 1e6
    assert len(report["demo"]) == 1
    for stage in stages:
        for accuracy in stage["accuracy"].values():
            low, high = accuracy["ci"]
            assert 0 <= low <= accuracy["acc"] <= high <= 1
            assert accuracy["n"] > 0
    for name in ("loss", "rl", "behaviours", "stages", "best_of_n"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def notebook_script(name, at_least, path):
    """Check that a notebook has short cells with their outputs kept; write its code to `path`."""
    notebook = read_json(ROOT / "notebooks" / f"{name}.ipynb")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert len(cells) >= at_least
    assert all(source.count("\n") < 15 for source in sources)
    shown = [bool(cell["outputs"]) for cell in cells]
    for has_output, source in zip(shown, sources):
        assert has_output or "import" in source or "def " in source
    assert sum(shown) >= at_least - 2
    path.write_text("import matplotlib\nmatplotlib.use('Agg')\n" + "\n".join(sources))


def test_the_speedrun_and_the_notebooks_run_from_end_to_end(rehearsal, tmp_path):
    """A rehearsal of the one command, continued after an interruption, and every cell of the
    notebooks, on what it left."""
    out, command = rehearsal
    check_report(out)
    (out / "rl" / "best_of_n.json").unlink()  # as if killed before this stage
    before = (out / "rl" / "ckpt.pt").stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)
    assert (out / "rl" / "best_of_n.json").exists()
    assert (out / "rl" / "ckpt.pt").stat().st_mtime_ns == before
    running = []
    for name, at_least in (("quickstart", 10), ("grpo", 9)):
        script = tmp_path / f"{name}.py"
        notebook_script(name, at_least, script)
        process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=ROOT / "notebooks",
            env=dict(ENV, NANOREASON_RUN=str(out)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
    for process in running:
        _, error = process.communicate()
        assert process.returncode == 0, error[-2000:]

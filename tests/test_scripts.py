"""The scripts as users run them: a learned number, resume after a kill, one clear line for every mistake, two ranks against one."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_stopping

import sample
import train_grpo
import train_prm
import train_sft
from nanoreason import checkpoint, corpus, speedrun
from nanoreason.bench import __main__ as bench
from nanoreason.studies import compute, reward_models, students
from nanoreason.machine import generator, Machine, run_script
from nanoreason.run import read_metrics
from nanoreason.corpus import demonstrations, read_rows
from nanoreason.data import pack
from nanoreason.experience import reward_responses
from nanoreason.generate import generate
from nanoreason.model import GPT, GPTConfig
from nanoreason.replicas import Replicas
from nanoreason.questions import own_share
from nanoreason.rewards import RewardConfig
from nanoreason.search import METHODS, SearchConfig, greedy
from nanoreason.tasks import draw_problem, split_of, user_problem
from nanoreason.tasks.recall import CAPITALS
from nanoreason.tokenizer import encode, render_prompt, render_response
from nanoreason.reward_model import RewardModel, save_reward_model
from test_grpo import scripted

ROOT = Path(__file__).resolve().parent.parent
ENV = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))


def call(module, *args):
    """Run a script's main() in this process with these flags."""
    argv, sys.argv = sys.argv, [module.__name__ + ".py", *map(str, args)]
    try:
        run_script(module.main)
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def capitals(tmp_path_factory):
    """A nano model that answers 'What is the capital of ...?' rightly half of the time and with 'unknown' otherwise."""
    folder = tmp_path_factory.mktemp("capitals")
    rng = random.Random(0)
    with open(folder / "data.jsonl", "w") as f:
        for i in range(800):
            problem = draw_problem("fact", 1, rng, "train")
            f.write(json.dumps({"prompt": problem.question, "response": problem.answer if i % 2 else "unknown"}) + "\n")
    call(train_sft, "--stage", "cold-start", "--data", folder / "data.jsonl", "--model", "nano", "--epochs", 10, "--batch-tokens", 512, "--row-tokens", 64,
         "--muon-lr", 0.01, "--adamw-lr", 0.01, "--out", folder / "sft")
    return folder


def test_sft_learns_what_the_file_teaches(capitals):
    report = json.loads((capitals / "sft" / "report.json").read_text())
    rows = read_metrics(capitals / "sft" / "metrics.jsonl")
    assert rows[0]["loss"] > 5.5 and report["val_loss"] < 0.6  # ln 2 a response, spread over its tokens, is the floor of a coin flip
    assert report["real_share"] > 0.8


def test_grpo_finds_the_answers_that_pay(capitals):
    call(train_grpo, "--init", capitals / "sft", "--out", capitals / "rl", "--families", "fact", "--level", 1, "--steps", 12, "--batch-size", 128,
         "--max-reasoning-tokens", 16, "--learning-rate", 1e-3, "--kl", "k3", "--eval-every", 0)
    rows = read_metrics(capitals / "rl" / "metrics.jsonl")
    assert len(rows) == 12
    assert 0.25 < rows[0]["solve_rate"] < 0.75
    assert sum(r["solve_rate"] for r in rows[-3:]) / 3 > rows[0]["solve_rate"] + 0.25
    assert rows[0]["kl"] < 1e-3 < rows[-1]["kl"]
    assert all(abs(r["all_right"] + r["all_wrong"]) <= 1 and 0 <= r["truncated"] <= 1 for r in rows)


def test_sample_prints_an_answer_and_eval_counts(capitals, capsys):
    call(sample, "What is the capital of France?", "--ckpt", capitals / "sft", "--method", "vote", "--n", 8, "--json", capitals / "one.json")
    printed = capsys.readouterr().out
    one = json.loads((capitals / "one.json").read_text())
    assert f"Answer: {one['answer']}" in printed and len(one["answers"]) == 8
    call(sample, "--eval", "--ckpt", capitals / "sft", "--families", "fact", "--level", "1", "--problems", 10, "--ns", "1,4", "--cache", capitals / "cache",
         "--json", capitals / "eval.json")
    figures = json.loads((capitals / "eval.json").read_text())
    assert figures["greedy"]["n"] == 10 and figures["scaling"]["coverage"][1] >= figures["scaling"]["coverage"][0] > 0 and len(list((capitals / "cache").iterdir())) == 1


def test_a_verifier_is_trained_on_what_the_policy_says_and_every_method_can_ask_it(capitals, tmp_path, capsys):
    for kind, flags in (("orm", []), ("prm", ["--labels", "mc", "--rollouts", 2])):
        call(train_prm, "--kind", kind, *flags, "--init", capitals / "sft", "--families", "fact", "--level", 1, "--questions", 24, "--samples", 8, "--val-questions", 8, "--epochs", 6,
             "--max-reasoning-tokens", 16, "--batch-size", 8, "--eval-every", 2, "--learning-rate", 3e-3, "--out", tmp_path / kind)
    figures = json.loads((tmp_path / "orm" / "report.json").read_text())["test"]["positions"]
    assert figures["last"]["n"] == 64 and figures["last"]["auc"] > 0.8  # "unknown" is always wrong
    call(sample, "--eval", "--ckpt", capitals / "sft", "--families", "fact", "--level", 1, "--problems", 8, "--ns", "1,8", "--reward-model", f"{tmp_path / 'orm'},{tmp_path / 'prm'}",
         "--cache", tmp_path / "cache", "--json", tmp_path / "eval.json")
    scale = json.loads((tmp_path / "eval.json").read_text())["scaling"]
    assert {"coverage", "vote", "likelihood", "orm", "weighted-orm", "prm-last", "prm-min", "prm-prod"} <= set(scale["rules"])
    assert scale["orm"][1] > scale["orm"][0] + 0.2 and scale["orm"][1] > scale["vote"][1]
    (tmp_path / "plan.json").write_text(json.dumps(dict(kind="orm", aggregate="last", plans={"4": [[0.9, "beam", 4], [2.0, "vote", 4]], "99": []})))
    capsys.readouterr()
    for method in METHODS:
        call(sample, "What is the capital of France?", "--ckpt", capitals / "sft", "--method", method, "--n", 4, "--reward-model", tmp_path / "orm", "--plan", tmp_path / "plan.json",
             "--min-thinking", 6, "--json", tmp_path / "one.json")
        one = json.loads((tmp_path / "one.json").read_text())
        assert one["method"] == method and one["tokens"] > 0
        if method != "budget":  # whose "Wait", forced on a model that never thinks, may end in no answer
            assert one["answer"]
        assert ("No answer: " if one["answer"] is None else f"Answer: {one['answer']}") in capsys.readouterr().out


@pytest.fixture(scope="module")
def known(capitals):
    """A JSONL of questions and answers: what the model of `capitals` says itself for two thirds of its rows, 'Atlantis' for the others."""
    model = checkpoint.load_model(capitals / "sft", torch.device("cpu"))
    with open(capitals / "known.jsonl", "w") as f:
        for i, country in enumerate(CAPITALS):
            for wording in ("What is the capital of {}?", "Name the capital of {}.", "{} has which capital?"):
                question = wording.format(country)
                said = greedy(model, [render_prompt(question)], SearchConfig(max_new_tokens=16))[0].answer
                f.write(json.dumps({"prompt": question, "answer": said if said and i % 3 else "Atlantis"}) + "\n")
    return capitals / "known.jsonl"


def test_one_file_of_questions_and_answers_serves_supervised_training_reinforcement_learning_and_evaluation(capitals, known, tmp_path):
    rows = read_rows(known)
    val = [r for r in rows if r.split == "val"]
    right = lambda some: sum(r.answer != "Atlantis" for r in some)
    assert len(rows) == 60 and len(val) >= 3 and 30 < right(rows) <= 40

    figures = {}
    for split in ("val", "test"):  # test: all rows
        call(sample, "--eval", "--ckpt", capitals / "sft", "--data", known, "--split", split, "--max-reasoning-tokens", 16, "--precision", "fp32", "--cache", "", "--json", tmp_path / "eval.json")
        figures[split] = json.loads((tmp_path / "eval.json").read_text())
    assert [(figures[s]["greedy"]["n"], figures[s]["greedy"]["acc"]) for s in ("val", "test")] == [(len(some), round(right(some) / len(some), 4)) for some in (val, rows)]
    assert list(figures["test"]["families"]) == ["data"] and figures["test"]["levels"] == [0] and figures["test"]["scaling"]["problems"] == 60

    call(train_sft, "--stage", "cold-start", "--init", capitals / "sft", "--data", known, "--row-tokens", 64, "--batch-tokens", 128, "--epochs", 3, "--out", tmp_path / "sft")
    report, metrics = json.loads((tmp_path / "sft" / "report.json").read_text()), read_metrics(tmp_path / "sft" / "metrics.jsonl")
    assert report["steps"] > 5 and report["val_loss"] > 0 and metrics[-1]["loss"] < metrics[0]["loss"]  # Atlantis is news

    call(train_grpo, "--init", capitals / "sft", "--data", known, "--steps", 2, "--batch-size", 12, "--num-samples-per-prompt", 3, "--max-reasoning-tokens", 16,
         "--eval-every", 2, "--eval-problems", 3, "--precision", "fp32", "--out", tmp_path / "rl")
    report, metrics = json.loads((tmp_path / "rl" / "report.json").read_text()), read_metrics(tmp_path / "rl" / "metrics.jsonl")
    assert len(metrics) == 2 and all(0 <= row["solve_rate"] <= 1 for row in metrics) and set(report["val_greedy"]) == {"0", "2"}
    assert (report["val_greedy"]["0"]["n"], report["val_greedy"]["0"]["acc"]) == (3, round(right(val[:3]) / 3, 4))


SUMS = [(a, b) for a in range(1, 10) for b in range(1, 10) if a + b > 9]  # all are as long to write as any other


@pytest.fixture
def sums(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {a} + {b}?", "answer": str(a + b)}) + "\n" for a, b in SUMS))
    return path


def four_responses(question):
    """Right; right after a true, a false and a needless line; two answers; right, but cut off before the stop."""
    a, b = int(question[8]), int(question[12])
    return [render_response(f"{a} + {b} = {a + b}", str(a + b)), render_response(f"{a} + {b} = {a + b}\n{a} + {b} = 99\nhm", str(a + b)), render_response("", f"{a + b} or 99"),
            render_response("", str(a + b))[:-1]]


LONGER = len(encode("1 + 1 = 10\n1 + 1 = 99\nhm")) - len(encode("1 + 1 = 10"))


@pytest.mark.parametrize("flags, logged", [
    ("--length-penalty -0.001 --length-form calibrated --process-weight 0.5",
     dict(outcome=1 / 2, format=3 / 4, length=-0.001 * LONGER / 4, process=1 / 4, total=1 / 2 - 0.001 * LONGER / 4 + 1 / 8)),
    ("--process-weight 1 --process-form min --format-weight 0.1", dict(outcome=1 / 2, format=3 / 4, length=0, process=0, total=1 / 2 + 0.075)),
    ("--reward leaky-for-hacking-study", dict(outcome=1 / 2, format=3 / 4, length=0, leaky=1, total=1)),
    ("--reward outcome --length-penalty -0.001", dict(outcome=1 / 2, format=3 / 4, length=-0.001 * sum(map(len, four_responses("What is 9 + 8?"))) / 4)),
])
def test_the_parts_of_the_reward_are_logged(flags, logged, tiny_checkpoint, sums, tmp_path, monkeypatch):
    scripted(monkeypatch, four_responses)
    call(train_grpo, "--init", tiny_checkpoint, "--data", sums, "--steps", 1, "--batch-size", 16, "--num-samples-per-prompt", 4, "--max-reasoning-tokens", 40,
         "--row-tokens", 64, "--eval-every", 0, "--out", tmp_path / "rl", *flags.split())
    (row,) = read_metrics(tmp_path / "rl" / "metrics.jsonl")
    found = {name.removeprefix("reward_"): value for name, value in row.items() if name.startswith("reward_")}
    assert LONGER > 5 and set(found) == {*logged, "total"} and {name: found[name] for name in logged} == pytest.approx(logged, abs=1e-6)
    assert row["solve_rate"] == 1 / 2 and row["format"] == 3 / 4 and row["truncated"] == 1 / 4


def test_the_held_out_level_can_be_measured(tiny_checkpoint, tmp_path):
    call(sample, "--eval", "--ckpt", tiny_checkpoint, "--families", "multiplication,percent", "--level", 6, "--problems", 5, "--max-reasoning-tokens", 8, "--ns", 0, "--json",
         tmp_path / "eval.json")
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert figures["levels"] == [6] and {f: list(t["levels"]) for f, t in figures["families"].items()} == {"multiplication": ["6"],
                                                            "percent": ["6"]} and figures["greedy"]["n"] == 10


def test_training_from_a_corpus_file_is_training_on_the_text_it_was_made_of(tmp_path, capsys):
    write = ["--write", tmp_path / "corpus", "--tokens", 1000, "--row-tokens", 64, "--workers", 1, "--families", "chain,word"]
    call(corpus, *write)
    for name, flags in (("file", ["--corpus", tmp_path / "corpus"]), ("generated", [])):
        call(train_sft, "--stage", "base", "--model", "nano", "--tokens", 1000, "--row-tokens", 64, "--batch-tokens", 256, "--max-steps", 3, "--log-every", 1, "--precision",
             "fp32",
             "--families", "chain,word", "--out", tmp_path / name, *flags)
    one, two = (without_times(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("file", "generated"))
    assert len(one) == 3 and one == two
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("file", "generated")]
    assert reports[0]["val_loss"] == reports[1]["val_loss"] > 3 and reports[0]["real_share"] == reports[1]["real_share"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(corpus, *write)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "already holds a corpus" in error and error.count("\n") == 1


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def kill_and_resume(command, out, at_step):
    """Start a run, SIGKILL it once its metrics reach `at_step`, resume it to the end."""
    process = subprocess.Popen([sys.executable, *command, "--out", str(out)], cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL)
    while len(read_metrics(out / "metrics.jsonl")) <= at_step and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([sys.executable, *command, "--out", str(out), "--resume"], cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    """Supervised; test_grpo_run.py kills the other."""
    command = ["train_sft.py", "--stage", "cold-start", "--demos", "150", "--model", "nano", "--batch-tokens", "512", "--log-every", "1", "--save-every", "3",
               "--precision", "fp32"]
    subprocess.run([sys.executable, *command, "--out", str(tmp_path / "whole")], cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)
    kill_and_resume(command, tmp_path / "killed", at_step=5)
    whole, killed = (without_times(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("whole", "killed"))
    assert len(whole) >= 10 and killed == whole


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "ckpt.pt"
    checkpoint.save(path, GPT(GPTConfig(n_layer=1, n_embd=32, d_ff=64, max_len=64)).init_weights(generator(0, "tiny")), step=0)
    return path


TINY = ["--init", "{tiny}", "--row-tokens", "64", "--max-reasoning-tokens", "30", "--out", "{new}"]


@pytest.mark.parametrize("module, args, complaint", [
    (sample, ["hello", "--ckpt", "{tiny}", "--methd", "vote"], "unrecognized arguments"),
    (sample, ["hello", "--ckpt", "{tiny}", "--method", "guess"], "invalid choice"),
    (sample, ["hello", "--ckpt", "nowhere/ckpt.pt"], "no checkpoint"),
    (sample, ["hello", "--ckpt", "{foreign}"], "no checkpoint of this project"),
    (sample, ["hello", "--ckpt", "{damaged}"], "damaged"),
    (sample, ["hello " * 200, "--ckpt", "{tiny}"], "context"),
    (sample, ["--ckpt", "{tiny}"], "--eval"),
    (sample, ["--eval", "--ckpt", "{tiny}", "--families", "poetry"], "poetry"),
    (sample, ["--eval", "--ckpt", "{tiny}", "--level", "9"], "levels"),
    (sample, ["hello", "--ckpt", "{tiny}", "--method", "auto"], "--method auto needs a --plan"),
    (sample, ["hello", "--ckpt", "{tiny}", "--method", "auto", "--plan", "{rows}"], "--method auto needs a --plan"),
    (sample, ["hello", "--ckpt", "{tiny}", "--method", "beam", "--reward-model", "{tiny}"], "is a language model; a reward model is wanted"),
    (sample, ["hello", "--ckpt", "{tiny}", "--method", "best-of-n", "--reward-model", "{judge}"], "reads 8 tokens, fewer than the 64 of the model's context"),
    (sample, ["hello", "--ckpt", "{tiny}", "--method", "auto", "--plan", "{plan}"], "was made with a reward model of kind prm and --aggregate min, not with none and last"),
    (sample, ["hello", "--ckpt", "{tiny}", "--json", "{new}/x.json"], "there is no such folder"),
    (reward_models, ["--seeds", "one"], "--seeds one: whole numbers"),
    (train_prm, ["--init", "{tiny}", "--hard-labels", "--out", "{new}"], "--hard-labels is about Monte Carlo labels"),
    (train_prm, ["--init", "{tiny}", "--max-reasoning-tokens", "30", "--data", "{rows}", "--questions", "2", "--out", "{new}"], "too few of its questions"),
    (train_prm, ["--out", "{new}"], "--init is missing"),
    (train_prm, ["--init", "{judge}", "--out", "{new}"], "holds a reward model (orm), which scores and cannot write"),
    (train_prm, ["--init", "{tiny}", "--labels", "mc", "--out", "{new}"], "--labels mc is for --kind prm"),
    (train_prm, ["--init", "{tiny}", "--rollouts", "61", "--out", "{new}"], "must be at least 1 and at most 60"),
    (train_prm, ["--init", "{tiny}", "--max-reasoning-tokens", "30", "--reuse", "nowhere", "--out", "{new}"], "is no run of train_prm.py"),
    (train_prm, ["--init", "{tiny}", "--max-reasoning-tokens", "30", "--out", "{used}"], "already holds a run"),
    (train_prm, ["--init", "{tiny}", "--max-reasoning-tokens", "30", "--level", "9", "--out", "{new}"], "levels are whole numbers"),
    (train_sft, ["--epochs", "0"], "at least 1"),
    (train_sft, ["--muon-lr", "fast"], "invalid float"),
    (train_sft, ["--stage", "cold-start", "--data", "nowhere.jsonl", "--out", "{new}"], "no data file"),
    (train_sft, ["--stage", "cold-start", "--init", "{tiny}", "--demos", "20", "--out", "{new}"], "context"),
    (train_sft, ["--stage", "cold-start", "--out", "{used}"], "already holds a run"),
    (train_grpo, ["--out", "{new}"], "--init is missing"),
    (train_grpo, ["--init", "{judge}", "--row-tokens", "64", "--out", "{new}"], "holds a reward model (orm), which scores and cannot write"),
    (train_grpo, ["--init", "{tiny}", "--out", "{new}"], "--row-tokens 128 is longer than the model's context of 64"),
    (train_grpo, [*TINY, "--batch-size", "20"], "--batch-size 20 is no multiple of --num-samples-per-prompt 8"),
    (train_grpo, [*TINY, "--batch-size", "8"], "--batch-size 8 makes 1 question(s), too few for 1 x 2 (ranks x minibatches)"),
    (train_grpo, [*TINY, "--reward", "prm"], "--reward prm and --reward-model (none) do not go together"),
    (train_grpo, [*TINY, "--reward-model", "{judge}"], "do not go together"),
    (train_grpo, [*TINY, "--overlong-buffer", "31"], "--overlong-buffer 31 is longer than --max-reasoning-tokens 30"),
    (train_grpo, [*TINY, "--reward", "orm", "--reward-model", "{tiny}"], "is a language model; orm is wanted"),
    (train_grpo, [*TINY, "--reward", "prm", "--reward-model", "{judge}"], "is a reward model of kind orm; prm is wanted"),
    (train_grpo, [*TINY, "--reward", "orm", "--reward-model", "nowhere"], "no checkpoint"),
    (train_grpo, [*TINY, "--reward", "orm", "--reward-model", "{judge}", "--families", "fact", "--batch-size", "16"], "--max-reasoning-tokens leaves no room for questions: it should be at least 23 less"),
    (train_grpo, [*TINY, "--families", "poetry"], "there is no family 'poetry'"),
    (train_grpo, [*TINY, "--families", ""], "there is no family ''"),
    (train_grpo, [*TINY, "--level", "one"], "--level one: levels are whole numbers"),
    (train_grpo, [*TINY, "--level", "6"], "whole numbers from 1 to 5, separated by commas, or auto"),
    (train_grpo, [*TINY, "--level", "0"], "whole numbers from 1 to 5"),
    (train_grpo, [*TINY, "--level", "1,"], "whole numbers from 1 to 5"),
    (train_grpo, [*TINY, "--level", "1,auto"], "whole numbers from 1 to 5"),
    (train_grpo, [*TINY, "--level", "auto", "--data", "{rows}"], "--level auto needs generated questions"),
    (train_grpo, [*TINY, "--reward", "generous"], "invalid choice"),
    (train_grpo, [*TINY, "--loss", "ppo"], "invalid choice"),
    (train_grpo, [*TINY, "--kl", "k4"], "invalid choice"),
    (train_grpo, [*TINY, "--advantage", "rank"], "invalid choice"),
    (train_grpo, [*TINY, "--clip-high", "-2"], "--clip-high is -2.0; it must be at least -1"),
    (train_grpo, [*TINY, "--length-penalty", "0.001"], "at most 0"),
    (train_grpo, [*TINY, "--length-form", "fair"], "invalid choice"),
    (train_grpo, [*TINY, "--process-form", "max"], "invalid choice"),
    (train_grpo, [*TINY, "--data", "nowhere.jsonl"], "no data file"),
    (train_grpo, [*TINY, "--data", "{broken}"], "line 2: this is not JSON"),
    (train_grpo, [*TINY, "--data", "{unmarked}"], "line 2: no answer to judge by"),
    (train_grpo, [*TINY, "--data", "{rows}", "--max-reasoning-tokens", "60"], " tokens; --max-reasoning-tokens leaves 4 for questions"),
    (train_grpo, [*TINY, "--max-reasoning-tokens", "70"], "--max-reasoning-tokens leaves no room for questions: it should be at least 7 less"),
    (train_grpo, [*TINY, "--families", "word", "--max-reasoning-tokens", "60"], "--max-reasoning-tokens leaves 4 tokens for questions, and 100 generated ones in a row are longer"),
    (train_grpo, [*TINY, "--families", "word", "--max-reasoning-tokens", "60", "--eval-every", "0"], "--max-reasoning-tokens leaves 4 tokens for questions, and 100 generated ones in a row are longer"),
    (train_grpo, [*TINY, "--data", "{held}"], "all its questions fall into the tenth that is kept for validation"),
    (train_grpo, ["--resume", "--out", "{new}"], "no checkpoint"),
    (train_grpo, ["--resume", "--row-tokens", "64", "--out", "{sft}"], "holds no run of train_grpo.py"),
    (train_grpo, ["--resume", "--row-tokens", "64", "--kl", "k3", "--out", "{rl}"], "one that differs in --kl"),
    (train_grpo, [*TINY[:-1], "{used}"], "already holds a run"),
    (sample, ["--eval", "--ckpt", "{tiny}", "--data", "{unmarked}"], "line 2: no answer to judge by"),
    (sample, ["--eval", "--ckpt", "{tiny}", "--data", "{broken}"], "line 2: this is not JSON"),
    (sample, ["--eval", "--ckpt", "{tiny}", "--level", "7"], "levels are 1 to 6"),
    (sample, ["--eval", "--ckpt", "{tiny}", "--families", "fact", "--level", "6"], "no problems to measure on"),
    (train_sft, ["--data", "{broken}", "--out", "{new}"], "line 2: this is not JSON"),
    (train_sft, ["--families", "chain,poetry", "--out", "{new}"], "poetry"),
    (train_sft, ["--tables", "0.5", "--textbook", "0.5", "--out", "{new}"], "most they may be"),
    (train_sft, ["--corpus", "nowhere", "--out", "{new}"], "no whole corpus"),
    (corpus, ["--write", "{new}", "--tokens", "0"], "at least 1"),
    (corpus, ["--write", "{new}", "--families", "chain,poetry"], "poetry"),
    (corpus, ["--write", "{tiny}/below"], "cannot write"),
    (speedrun, ["--seed", "-1"], "at least 0"),
    (speedrun, ["--out", "{new},too"], "without one"),
    (compute, ["--lines", "nano:mini+huge"], "no size 'huge'"),
    (compute, ["--lines", "nano"], "no size ''"),
    (students, ["--seeds", "0,one"], "whole numbers"),
    (students, ["--students", "micro,tiny"], "no size 'tiny'"),
    (bench, ["--parts", "speed"], "'speed'"),
])
def test_every_mistake_ends_in_one_line_and_status_2(module, args, complaint, tiny_checkpoint, tmp_path, capsys):
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pt")
    (tmp_path / "damaged.pt").write_bytes(tiny_checkpoint.read_bytes()[:500])
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "ckpt.pt").write_bytes(b"precious")
    good = json.dumps({"prompt": "What is 2 + 3?", "answer": "5"}) + "\n"
    for name, second in (("rows", good), ("broken", "{oops\n"), ("unmarked", json.dumps({"prompt": "How are you?", "response": "Well."}))):
        (tmp_path / f"{name}.jsonl").write_text(good + second)
    held = next(n for n in range(10_000) if split_of("data", (f"What is {n}?", str(n))) == "val")
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": f"What is {held}?", "answer": str(held)}))
    places = {name: tmp_path / f"{name}.jsonl" for name in ("rows", "broken", "unmarked", "held")}
    places["plan"] = tmp_path / "plan.json"
    places["plan"].write_text(json.dumps(dict(kind="prm", aggregate="min", plans={"16": [[2.0, "vote", 4]]})))
    model, places["judge"] = checkpoint.load_model(tiny_checkpoint), tmp_path / "judge.pt"
    save_reward_model(places["judge"], RewardModel(GPTConfig(n_layer=1, n_head=1, n_kv_head=1, n_embd=8, head_dim=8, d_ff=8, max_len=8), "orm"))
    for name, state in (("sft", dict(step=3)), ("rl", dict(run=dict(step=1), reference=None))):
        places[name] = tmp_path / name
        places[name].mkdir()
        checkpoint.save(places[name] / "ckpt.pt", model, **state)
    places |= dict(tiny=tiny_checkpoint, foreign=tmp_path / "foreign.pt", damaged=tmp_path / "damaged.pt", used=tmp_path / "used", new=tmp_path / "new")
    with pytest.raises(SystemExit) as stop:
        call(module, *(a.format(**places) for a in args))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in error and error.count("\n") == 1
    assert (tmp_path / "used" / "ckpt.pt").read_bytes() == b"precious"


@pytest.mark.parametrize("module", [sample, train_sft, train_prm, train_grpo, speedrun, compute, reward_models, students])
def test_help_names_every_flag(module, capsys):
    with pytest.raises(SystemExit) as stop:
        call(module, "--help")
    assert stop.value.code in (0, None)
    assert all("--" + name.replace("_", "-") in capsys_out for capsys_out in [capsys.readouterr().out]
               for name in module.Config.__dataclass_fields__ if name != "question")


def test_supervised_training_stopped_by_max_steps_goes_on_as_if_it_had_not_been(tiny_checkpoint, tmp_path):
    """The learning rate follows the whole plan, not the steps that are run today; a run that has ended can be resumed, and keeps its loss."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"What is {a} + {b}?", "answer": str(a + b)}) + "\n" for a in range(8) for b in range(8)))
    flags = ["--stage", "cold-start", "--init", tiny_checkpoint, "--data", tmp_path / "rows.jsonl", "--row-tokens", 32, "--batch-tokens", 96, "--log-every", 1, "--precision", "fp32", "--device", "cpu"]
    call(train_sft, *flags, "--out", tmp_path / "whole")
    call(train_sft, *flags, "--out", tmp_path / "parts", "--max-steps", 3)
    call(train_sft, *flags, "--out", tmp_path / "parts", "--resume")
    seen = {name: [(r["step"], r["loss"], r["rate"]) for r in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")}
    assert seen["whole"] == seen["parts"] and len(seen["whole"]) > 5
    weights = [checkpoint.load(tmp_path / name)["weights"] for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    before = json.loads((tmp_path / "parts" / "report.json").read_text())["train_loss"]
    call(train_sft, *flags, "--out", tmp_path / "parts", "--resume")
    assert json.loads((tmp_path / "parts" / "report.json").read_text())["train_loss"] == before == pytest.approx(seen["whole"][-1][1], rel=1e-5)
    call(train_sft, *flags, "--out", tmp_path / "long", "--total-steps", 20)  # over as many passes as that takes
    assert len(read_metrics(tmp_path / "long" / "metrics.jsonl")) == 20


def _gradients(rank, world, folder):
    """Gradient of one SFT step and of one GRPO update, this rank holding its share; rank 0 writes them down."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    machine = Machine(torch.device("cpu"), rank, world)
    shape = GPTConfig(n_layer=2, n_embd=32, d_ff=64, head_dim=8, max_len=256)
    result = {}

    class Keep:  # an optimizer that only looks
        def __init__(self, model):
            self.model, self.grads = model, None

        def step(self):
            self.grads = torch.cat([p.grad.flatten() for p in self.model.parameters()]).clone()

        def zero_grad(self, set_to_none=True):
            self.model.zero_grad(set_to_none)

    model = GPT(shape).init_weights(generator(0, "weights"))
    net = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    rows, keep = pack(demonstrations(40, 0), 256), Keep(model)
    config = train_sft.Config(micro_tokens=512)
    replicas = Replicas(net, [keep], lambda net, share: train_sft.add_gradients(net, rows, *share, config, machine, False))
    result["loss"] = train_sft.train_step(replicas, rows, torch.arange(8).numpy()[rank::world], machine)
    result["sft"] = keep.grads

    # three updates on responses of uneven length; in the first, rank 1 of 2 has no signal at all
    model = make_stopping(bias=3.0)
    reference, problems = copy.deepcopy(model), [user_problem(f"What is {i} + 1{'1' * i}?", "") for i in range(4)]
    experience = reward_responses(problems, generate(model, [render_prompt(p.question) for p in problems], 3, 20, 1.0, generator(0, "rollout")), 3, RewardConfig(), [0, 1, 2, 3])
    places, lengths = own_share(4, 1, machine), experience.rollout.lengths
    rows = [3 * p + g for p in places for g in range(3)]
    result["lengths"] = lengths
    keep, adamw = Keep(model), torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    for loss, kl, outcomes in (("grpo", "none", [[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]]), ("dapo", "k3", [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]]),
                               ("gspo", "none", [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])):
        advantages = train_grpo.token_advantages(torch.tensor(outcomes, dtype=torch.float32), [[]] * 12, lengths)[rows]
        config = train_grpo.Config(num_samples_per_prompt=3, minibatches=1, inner_epochs=2, micro_tokens=256, max_reasoning_tokens=20, loss=loss, kl=kl, kl_coef=0.1)
        for optimizer in (keep, adamw):
            train_grpo.update(model, None if kl == "none" else reference, optimizer, experience.select(places), advantages, config, machine, False)
        result[f"{loss} gradient"] = keep.grads
        result[f"{loss} weights"] = torch.cat([p.detach().flatten() for p in model.parameters()]).clone()
    if rank == 0:
        torch.save(result, f"{folder}/{world}.pt")
    if world > 1:
        del net
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        os._exit(0)  # gloo's threads now and then abort while the interpreter is torn down (torch 2.13); what is tested is done


def test_two_ranks_give_the_gradients_and_the_training_steps_of_one(tmp_path):
    _gradients(0, 1, tmp_path)
    torch.multiprocessing.spawn(_gradients, (2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one["sft"].abs().max() > 1e-3 and abs(one["loss"] - two["loss"]) < 1e-5 and len(set(one["lengths"].tolist())) > 4
    before = torch.cat([p.detach().flatten() for p in make_stopping(bias=3.0).parameters()])
    for name in one.keys() - {"loss", "lengths"}:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5 if "weights" in name else 1e-6)
        if "gradient" in name:
            assert one[name].abs().max() > 1e-3
        elif "weights" in name:
            assert (one[name] - before).abs().max() > 1e-3
            before = one[name]


def test_the_speedrun_and_the_notebooks_run_from_end_to_end(rehearsal, tmp_path):
    """A rehearsal of the one command, continued after an interruption, and every cell of the notebooks, on what it left."""
    out, command = rehearsal
    report = json.loads((out / "report.json").read_text())
    assert [s["name"] for s in report["stages"]] == ["base", "zero", "cold", "rl", "final"]
    assert report["rejection"]["traces"] > 0 and report["distillation"][0]["params"] < 2e5 and {"orm", "weighted-prm-last"} <= set(report["best_of_n"]) and "harmful" in report["stages"][4]["accuracy"]
    assert report["stages"][0]["params"] > 1e6 and len(report["demo"]) == 1
    assert all(0 <= a["ci"][0] <= a["acc"] <= a["ci"][1] <= 1 and a["n"] > 0 for s in report["stages"] for a in s["accuracy"].values())
    for name in ("loss", "rl", "behaviours", "stages", "best_of_n"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    (out / "rl" / "best_of_n.json").unlink()  # as if killed before this stage
    before = (out / "rl" / "ckpt.pt").stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)
    assert (out / "rl" / "best_of_n.json").exists() and (out / "rl" / "ckpt.pt").stat().st_mtime_ns == before
    running = {}
    for name, at_least in (("quickstart", 10), ("grpo", 9)):
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
        assert len(cells) >= at_least and all(c.count("\n") < 15 for c in cells)
        shown = [bool(c["outputs"]) for c in notebook["cells"] if c["cell_type"] == "code"]
        assert all(has or "import" in cell or "def " in cell for has, cell in zip(shown, cells)) and sum(shown) >= at_least - 2  # outputs are kept
        script = tmp_path / f"{name}.py"
        script.write_text("import matplotlib\nmatplotlib.use('Agg')\n" + "\n".join(cells))
        running[name] = subprocess.Popen([sys.executable, str(script)], cwd=ROOT / "notebooks", env=dict(ENV, NANOREASON_RUN=str(out)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for name, process in running.items():
        _, error = process.communicate()
        assert process.returncode == 0, error[-2000:]

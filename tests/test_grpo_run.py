"""Whole runs of train_grpo.py on a model that trains in seconds: what is kept, when it ends, what it says, and that no kill leaves a trace."""

import copy
import inspect
import json
import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

import train_grpo
import train_sft
from nanoreason import checkpoint
from nanoreason.machine import generator
from nanoreason.run import read_metrics
from nanoreason.evaluate import greedy_accuracy
from nanoreason.model import GPT, GPTConfig
from nanoreason.questions import Questions, advise
from nanoreason.tasks import draw_problem
from nanoreason.tokenizer import render_prompt, render_response
from test_grpo import MACHINE, plain_logprobs, scripted
from test_scripts import call
from train_grpo import Config, group_advantages, train


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny model that knows some facts of the lower levels and says 'unknown' half of the time: its run folder."""
    folder, rng = tmp_path_factory.mktemp("start"), random.Random(0)
    problems = [draw_problem("fact", rng.choice((1, 1, 2)), rng, "train") for _ in range(600)]
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": p.question, "response": p.answer if rng.random() < 0.55 else "unknown"}) + "\n" for p in problems))
    shape = GPTConfig(n_layer=1, n_head=2, n_kv_head=1, head_dim=16, n_embd=48, d_ff=96, max_len=64)
    checkpoint.save(folder / "ckpt.pt", GPT(shape).init_weights(generator(0, "start")))
    call(train_sft, "--stage", "cold-start", "--init", folder, "--data", folder / "data.jsonl", "--epochs", 6, "--batch-tokens", 512, "--row-tokens", 64,
         "--muon-lr", 0.02, "--adamw-lr", 0.02, "--precision", "fp32", "--device", "cpu", "--out", folder / "model")
    return folder / "model"


SMALL = dict(families="fact", level="1", steps=6, batch_size=16, num_samples_per_prompt=4, max_reasoning_tokens=12, learning_rate=1e-3, row_tokens=32, eval_every=0,
             eval_problems=6, precision="fp32", device="cpu", save_every=2)


def small(start, out, **changes):
    return Config(**SMALL | dict(init=str(start), out=str(out)) | changes)


@pytest.fixture
def plain_run(monkeypatch):
    """Runs draw no figures, which take longer than they do."""
    monkeypatch.setattr(train_grpo.plots, "rl_figures", lambda *args: None)


def untimed(out):
    """metrics.jsonl as lines, without times."""
    return re.sub(r', "\w+_seconds": [^,}]+', "", (out / "metrics.jsonl").read_text()).splitlines()


def weights(path):
    return checkpoint.load(path)["weights"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


# Killed and resumed


def test_a_run_killed_five_times_leaves_what_an_uninterrupted_one_leaves(start, tmp_path, monkeypatch):
    """SIGKILL at random moments, also while it saves; with a reference that is refreshed, a curriculum, dynamic sampling and a selected checkpoint."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    processes = multiprocessing.get_context("forkserver")  # imports torch once; every run is a fork of it
    processes.set_forkserver_preload(["train_grpo"])
    settings = dict(steps=30, level="auto", kl="k3", refresh_reference=7, dynamic_sampling=True, refills=2, eval_every=5, save_every=3, inner_epochs=2)

    def begin(out, **changes):
        process = processes.Process(target=train, args=(small(start, out, **settings | changes), MACHINE))
        process.start()
        return process

    lines = lambda out: (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0
    whole, killed, rng, saved = tmp_path / "whole", tmp_path / "killed", random.Random(0), []
    uninterrupted = begin(whole)
    for moment in (rng.uniform(4 * i + 1, 4 * i + 5) for i in range(5)):
        process, seen = begin(killed, resume=(killed / "ckpt.pt").exists()), 0
        while lines(killed) < int(moment) and process.is_alive():
            time.sleep(0.001)
        time.sleep(moment % 1 * 0.05)  # of a step
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        saved.append(checkpoint.load(killed / "ckpt.pt")["run"]["step"] if (killed / "ckpt.pt").exists() else 0)
    last = begin(killed, resume=True)
    for process in (uninterrupted, last):
        process.join()
        assert process.exitcode == 0
    assert saved == sorted(saved) and len(set(saved)) >= 3 and saved[-1] >= 12
    assert len(untimed(whole)) == 30 and untimed(killed) == untimed(whole)
    reports = [json.loads((out / "report.json").read_text()) for out in (whole, killed)]
    assert dict(reports[1], seconds=0) == dict(reports[0], seconds=0)
    assert reports[0]["steps"] == 30 and set(reports[0]["val_greedy"]) == {str(5 * i) for i in range(7)}
    one, two = (checkpoint.load(out / "ckpt.pt") for out in (whole, killed))
    assert equal(two["weights"], one["weights"]) and equal(two["reference"], one["reference"]) and not equal(one["reference"], weights(start))
    assert two["run"] == one["run"] and two["difficulty"] == one["difficulty"]
    assert one["optimizer"]["steps"] == two["optimizer"]["steps"] > 0
    for name in ("mean", "square"):
        assert all(torch.equal(a, b) for a, b in zip(one["optimizer"][name], two["optimizer"][name], strict=True))
    assert equal(weights(killed / "best.pt"), weights(whole / "best.pt")) and not equal(weights(killed), weights(start))
    rows = read_metrics(whole / "metrics.jsonl")
    assert len({row["refills"] for row in rows}) > 1 and len({row["difficulty_fact"] for row in rows}) > 10  # all of this was at work
    assert max(row["kl"] or 0 for row in rows) > 1e-4


def test_the_curriculum_follows_the_logged_solve_rates_and_lives_in_the_checkpoint(start, tmp_path, plain_run):
    out = tmp_path / "run"
    train(small(start, out, level="auto", steps=12, learning_rate=5e-3, max_steps=3), MACHINE)
    assert checkpoint.load(out / "ckpt.pt")["difficulty"]["fact"] == pytest.approx(read_metrics(out / "metrics.jsonl")[2]["difficulty_fact"], rel=1e-5)
    train(small(start, out, level="auto", steps=12, learning_rate=5e-3, resume=True), MACHINE)
    level, levels = 1.0, []
    for row in read_metrics(out / "metrics.jsonl"):
        level = min(max(level + 0.5 * (row["solve_rate"] - 0.4), 1.0), 5.0)
        levels.append(level)
        assert row["difficulty_fact"] == pytest.approx(level, abs=1e-4)
    assert len(levels) == 12 and levels[2] > 1.1 and len(set(levels)) > 6


# The selected checkpoint


@pytest.mark.parametrize("scores, best", [([0.2, 0.5, 0.4, 0.5, 0.3], 3), ([0.5, 0.1, 0.2, 0.3, 0.4], 0), ([0.1, 0.2, 0.3, 0.3, 0.3], 4), ([0.4, 0.4, 0.1, 0.2, 0.1], 1)])
def test_best_pt_holds_the_weights_of_the_best_check_and_of_equals_the_later(scores, best, start, tmp_path, plain_run, monkeypatch):
    """Checks after steps 0, 2, 4, 6 and, since the run ends there, 7; also when the run is interrupted and continued."""
    seen, steps = [], [0, 2, 4, 6, 7]

    def accuracy(policy, problems, longest):
        seen.append(copy.deepcopy(policy.state_dict()))
        return dict(acc=scores[len(seen) - 1], n=len(problems), ci=[0.0, 1.0])

    monkeypatch.setattr(train_grpo, "greedy_accuracy", accuracy)
    train(small(start, tmp_path, steps=7, eval_every=2, save_every=1, max_steps=3), MACHINE)
    del seen[2:]  # the short run's own last check, after step 3, which the longer run does not make
    state = checkpoint.load(tmp_path / "ckpt.pt")
    del state["run"]["checks"][3]
    torch.save(state, tmp_path / "ckpt.pt")
    report = train(small(start, tmp_path, steps=7, eval_every=2, resume=True), MACHINE)
    assert len(seen) == 5 and not equal(seen[3], seen[4])
    assert report["selected_step"] == json.loads((tmp_path / "report.json").read_text())["selected_step"] == steps[best]
    assert {int(step): check["acc"] for step, check in report["val_greedy"].items()} == dict(zip(steps, scores))
    assert equal(weights(tmp_path / "best.pt"), seen[best]) and equal(weights(tmp_path / "ckpt.pt"), seen[4])
    assert equal(checkpoint.load_model(tmp_path).state_dict(), seen[best])  # a run folder stands for the selected model
    assert checkpoint.load(tmp_path / "ckpt.pt")["run"]["step"] == 7 and checkpoint.load(tmp_path)["run"]["step"] == steps[best]


def test_resuming_goes_on_from_the_latest_weights_and_not_from_the_selected_ones(start, tmp_path, plain_run, monkeypatch):
    scores, whole, parts = iter((0.4, 0.3, 0.2, 0.1) + (0.0,) * 10), tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setattr(train_grpo, "greedy_accuracy", lambda policy, problems, longest: dict(acc=next(scores), n=6, ci=[0.0, 1.0]))
    train(small(start, whole, steps=6, eval_every=7), MACHINE)
    train(small(start, parts, steps=6, eval_every=7, max_steps=3), MACHINE)
    assert checkpoint.load(parts)["run"]["step"] == 0 < checkpoint.load(parts / "ckpt.pt")["run"]["step"] == 3  # the start was the best
    train(small(start, parts, steps=6, eval_every=7, resume=True), MACHINE)
    assert equal(weights(parts / "ckpt.pt"), weights(whole / "ckpt.pt")) and untimed(whole) == untimed(parts)


def test_the_checks_are_greedy_accuracies_on_held_out_problems_and_none_are_made_unless_wanted(start, tmp_path, plain_run):
    report = train(small(start, tmp_path / "run", steps=4, eval_every=2), MACHINE)
    problems = Questions("fact", "1").held_out(6)
    for step, path in ((0, start), (report["selected_step"], tmp_path / "run"), (4, tmp_path / "run" / "ckpt.pt")):
        assert report["val_greedy"][step] == greedy_accuracy(checkpoint.load_model(path), problems, 12)
    logged = [row.get("val_greedy") for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert logged == [None, report["val_greedy"][2]["acc"], None, report["val_greedy"][4]["acc"]]
    report = train(small(start, tmp_path / "unchecked", steps=2), MACHINE)
    assert report["val_greedy"] == {} and report["selected_step"] == 2 and not (tmp_path / "unchecked" / "best.pt").exists()


# When it ends, and the reference


def test_the_token_budget_ends_the_run_after_the_step_that_reaches_it(start, tmp_path, plain_run):
    report = train(small(start, tmp_path / "whole"), MACHINE)
    spent = [sum(row["sampled_tokens"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")[: n + 1]) for n in range(6)]
    assert report["sampled_tokens"] == spent[-1]
    for budget, steps in ((1, 1), (spent[2], 3), (spent[2] + 1, 4), (10 * spent[-1], 6)):
        out = tmp_path / str(budget)
        report = train(small(start, out, token_budget=budget), MACHINE)
        assert (report["steps"], report["sampled_tokens"]) == (steps, spent[steps - 1]) and untimed(out) == untimed(tmp_path / "whole")[:steps]
        assert checkpoint.load(out / "ckpt.pt")["run"]["step"] == steps
    train(small(start, tmp_path / str(spent[2]), token_budget=spent[3], resume=True), MACHINE)  # tokens of before count
    assert untimed(tmp_path / str(spent[2])) == untimed(tmp_path / "whole")[:4]


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_the_reference_is_the_start_until_it_becomes_the_policy_at_every_nth_step(kl, start, tmp_path, plain_run, monkeypatch):
    states = {}
    keep = lambda path, model, run, **state: states.setdefault(run["step"], copy.deepcopy((model.state_dict(), state["reference"])))
    monkeypatch.setattr(train_grpo.checkpoint, "save", keep)
    train(small(start, tmp_path, kl=kl, refresh_reference=2, save_every=1, minibatches=1), MACHINE)
    assert sorted(states) == [1, 2, 3, 4, 5, 6]
    for step, (_, reference) in states.items():
        assert equal(reference, states[step // 2 * 2][0] if step > 1 else weights(start))
    assert not equal(states[2][0], states[4][0])
    kls = [row["kl"] for row in read_metrics(tmp_path / "metrics.jsonl")]  # before each step's update
    assert kls[::2] == [0, 0, 0] and min(kls[1::2]) > 1e-6


@pytest.mark.parametrize("advantage", ["mean", "mean-std"])
def test_k1_takes_the_log_ratio_of_whole_responses_from_the_reward_and_the_std_does_not_rescale_it(advantage, start, tmp_path, plain_run, monkeypatch):
    seen, update = [], train_grpo.update

    def watch(net, reference, optimizer, experience, advantages, config, machine, bf16):
        with torch.no_grad():
            k1 = [sum((plain_logprobs(net, prompt, response, 0.9) - plain_logprobs(reference, prompt, response, 0.9)).tolist())
                  for row in range(16) for prompt, response in [(render_prompt(experience.problems[row // 4].question), experience.rollout.response(row))]]
        k1, inside = torch.tensor(k1).view(4, 4), torch.arange(advantages.size(1)) < experience.rollout.lengths[:, None]
        expected = group_advantages(experience.rewards["outcome"], advantage) - 0.5 * (k1 - k1.mean(1, keepdim=True))
        assert torch.allclose(advantages[inside], expected.view(-1, 1).expand(advantages.shape)[inside], atol=1e-4)
        seen.append(k1.abs().max().item())
        return update(net, reference, optimizer, experience, advantages, config, machine, bf16)

    monkeypatch.setattr(train_grpo, "update", watch)
    train(small(start, tmp_path, kl="k1", kl_coef=0.5, temperature=0.9, advantage=advantage, steps=4), MACHINE)
    assert seen[0] == 0 and min(seen[1:]) > 0.01
    assert all(row["reward_total"] == row["solve_rate"] for row in read_metrics(tmp_path / "metrics.jsonl"))  # logged is what was earned


# What it says


@pytest.mark.parametrize("all_wrong, all_right, words", [(1.0, 0.0, "every response of every group is wrong. Try easier questions"),
                                                        (0.0, 1.0, "every response of every group is right. Try harder questions"),
                                                        (0.75, 0.25, "each group is all right or all wrong. Try larger groups")])
def test_ten_silent_steps_in_a_row_are_said_once_with_what_to_change(all_wrong, all_right, words, capsys):
    said = {}
    for steps in range(31):
        advise(dict(all_wrong=all_wrong, all_right=all_right), steps, MACHINE)
        said[steps] = capsys.readouterr().out
    assert [steps for steps in said if said[steps]] == [10, 20, 30]
    for steps in (10, 20, 30):
        assert said[steps].startswith(f"no signal for {steps} steps: {words}") and said[steps].count("\n") == 1


def test_a_run_without_signal_says_so_and_one_with_some_does_not(start, tmp_path, plain_run, monkeypatch, capsys):
    """Also when stopped and continued in between; a single step with signal begins the count anew."""
    spoken = lambda: re.findall(r"^no signal for (\d+) steps: (\w+ \w+ of every group is \w+)?", capsys.readouterr().out, re.MULTILINE)
    scripted(monkeypatch, lambda question: [render_response("", "nothing")] * 4)
    whole = small(start, tmp_path / "wrong", steps=21)
    train(Config(**vars(whole) | dict(max_steps=7)), MACHINE)
    assert spoken() == []
    train(Config(**vars(whole) | dict(resume=True)), MACHINE)
    wrong = "every response of every group is wrong"
    assert spoken() == [("10", wrong), ("20", wrong)]
    assert equal(weights(tmp_path / "wrong" / "ckpt.pt"), weights(start))  # and nothing was learned
    scripted(monkeypatch, lambda question: [render_response(text, "nothing") for text in ("so", "1 + 1 = 2")] * 2)
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"prompt": f"What is 1 + 1 + {n}?", "answer": str(n + 2)}) + "\n" for n in range(30)))
    train(small(start, tmp_path / "steps", steps=10, data=str(tmp_path / "own.jsonl"), reward="exact-process"), MACHINE)
    row = read_metrics(tmp_path / "steps" / "metrics.jsonl")[-1]
    assert spoken() == [] and row["all_wrong"] == 1 and row["no_signal"] == 0 and row["grad_norm"] > 0  # all answers wrong, but not all steps
    draw, first = Questions.draw, {}

    def watched(self, step, attempt, count):
        problems = draw(self, step, attempt, count)
        first.update({p.question: p.answer if step == 8 else "nothing" for p in problems})
        return problems

    monkeypatch.setattr(Questions, "draw", watched)
    scripted(monkeypatch, lambda question: [render_response("", answer) for answer in (first[question], "nothing", "nothing", "nothing")])
    train(small(start, tmp_path / "once", steps=18), MACHINE)
    assert spoken() == []  # 8 silent steps, one with signal, 9 silent ones
    train(small(start, tmp_path / "twice", steps=19), MACHINE)
    assert spoken() == [("10", wrong)]


# Its size


def test_the_script_and_its_loss_stay_small_enough_to_read():
    lines = Path(train_grpo.__file__).read_text().splitlines()
    assert len(lines) <= 350
    assert len(inspect.getsource(train_grpo.policy_loss).splitlines()) <= 60

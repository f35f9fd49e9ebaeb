"""Whole runs of train_grpo.py on a model that trains in seconds.

What a run keeps, when it ends, what it says, and that a killed and resumed run equals a whole one.
"""

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
from conftest import render_prompt, render_response, tokenizer

import train_grpo
import train_sft
from nanoreason import checkpoint, grpo_run, plots
from nanoreason.evaluate import greedy_accuracy
from nanoreason.flags import UserError
from nanoreason.machine import generator
from nanoreason.model import GPT, GPTConfig
from nanoreason.questions import Questions, advise
from nanoreason.run import read_metrics
from nanoreason.tasks import draw_problem
from test_grpo import MACHINE, plain_logprobs, scripted
from test_scripts import call
from train_grpo import Config, group_advantages, train


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The run folder of a tiny model that knows some facts of the lower levels.

    It says 'unknown' half of the time.
    """
    folder = tmp_path_factory.mktemp("start")
    rng = random.Random(0)
    levels = (1, 1, 2)
    problems = [draw_problem("fact", rng.choice(levels), rng, "train") for _ in range(600)]
    rows = []
    for p in problems:
        response = p.answer if rng.random() < 0.55 else "unknown"
        rows.append(json.dumps({"prompt": p.question, "response": response}) + "\n")
    (folder / "data.jsonl").write_text("".join(rows))
    shape = GPTConfig(
        n_layer=1, n_head=2, n_kv_head=1, head_dim=16, n_embd=48, d_ff=96, max_len=64
    )
    model = GPT(shape, tokenizer).init_weights(generator(0, "start"))
    checkpoint.save(folder / "ckpt.pt", model)
    flags = {
        "--stage": "cold-start",
        "--init": folder,
        "--data": folder / "data.jsonl",
        "--epochs": 6,
        "--batch-tokens": 512,
        "--row-tokens": 64,
        "--muon-lr": 0.02,
        "--adamw-lr": 0.02,
        "--precision": "fp32",
        "--device": "cpu",
        "--out": folder / "model",
    }
    call(train_sft, *(word for flag in flags.items() for word in flag))
    return folder / "model"


SMALL = dict(
    families="fact",
    level="1",
    steps=6,
    batch_size=16,
    num_samples_per_prompt=4,
    max_reasoning_tokens=12,
    learning_rate=1e-3,
    row_tokens=32,
    eval_every=0,
    eval_problems=6,
    precision="fp32",
    device="cpu",
    save_every=2,
)


def small(start, out, **changes):
    return Config(**SMALL | dict(init=str(start), out=str(out)) | changes)


@pytest.fixture
def plain_run(monkeypatch):
    """Runs draw no figures, which would take longer than the runs themselves."""
    monkeypatch.setattr(plots, "rl_figures", lambda *args: None)


def untimed(out):
    """metrics.jsonl as lines, without times."""
    text = (out / "metrics.jsonl").read_text()
    return re.sub(r', "\w+_seconds": [^,}]+', "", text).splitlines()


def weights(path):
    return checkpoint.load(path)["weights"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


# Killed and resumed


def steps_logged(out):
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def step_saved(out):
    path = out / "ckpt.pt"
    return checkpoint.load(path)["run"]["step"] if path.exists() else 0


def kill_at(process, out, moment):
    """SIGKILL once int(moment) steps are logged and the fraction of a step, 50 ms, has passed."""
    while steps_logged(out) < int(moment) and process.is_alive():
        time.sleep(0.001)
    time.sleep(moment % 1 * 0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_run_killed_five_times_leaves_what_an_uninterrupted_one_leaves(
    start, tmp_path, monkeypatch
):
    """SIGKILL at random moments, also while it saves.

    With a reference that is refreshed, a curriculum, dynamic sampling and a selected checkpoint.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # The fork server imports torch once; every run is a fork of it.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["train_grpo"])
    settings = dict(
        steps=30,
        level="auto",
        kl="k3",
        refresh_reference=7,
        dynamic_sampling=True,
        refills=2,
        eval_every=5,
        save_every=3,
        inner_epochs=2,
    )

    def begin(out, resume=False):
        config = small(start, out, **settings, resume=resume)
        process = processes.Process(target=train, args=(config, MACHINE))
        process.start()
        return process

    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    rng = random.Random(0)
    moments = [rng.uniform(4 * i + 1, 4 * i + 5) for i in range(5)]  # in steps
    saved = []
    uninterrupted = begin(whole)
    for moment in moments:
        process = begin(killed, resume=(killed / "config.json").exists())
        kill_at(process, killed, moment)
        saved.append(step_saved(killed))
    last = begin(killed, resume=True)
    for process in (uninterrupted, last):
        process.join()
        assert process.exitcode == 0
    assert saved == sorted(saved) and len(set(saved)) >= 3 and saved[-1] >= 12
    check_equal_runs(whole, killed, start)
    # All of the settings were at work.
    rows = read_metrics(whole / "metrics.jsonl")
    assert len({row["refills"] for row in rows}) > 1
    assert len({row["difficulty_fact"] for row in rows}) > 10
    assert max(row["kl"] or 0 for row in rows) > 1e-4


def check_equal_runs(whole, killed, start):
    """Two runs of 30 steps left the same metrics, report, checkpoint and selected checkpoint."""
    assert len(untimed(whole)) == 30 and untimed(killed) == untimed(whole)
    reports = [json.loads((out / "report.json").read_text()) for out in (whole, killed)]
    assert dict(reports[1], seconds=0) == dict(reports[0], seconds=0)
    assert reports[0]["steps"] == 30
    assert set(reports[0]["val_greedy"]) == {str(5 * i) for i in range(7)}

    one = checkpoint.load(whole / "ckpt.pt")
    two = checkpoint.load(killed / "ckpt.pt")
    assert equal(two["weights"], one["weights"]) and equal(two["reference"], one["reference"])
    assert not equal(one["reference"], weights(start))
    assert two["run"] == one["run"] and two["difficulty"] == one["difficulty"]
    assert one["optimizer"]["steps"] == two["optimizer"]["steps"] > 0
    for name in ("mean", "square"):
        pairs = zip(one["optimizer"][name], two["optimizer"][name], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert equal(weights(killed / "best.pt"), weights(whole / "best.pt"))
    assert not equal(weights(killed), weights(start))


def test_the_curriculum_follows_the_logged_solve_rates_and_lives_in_the_checkpoint(
    start, tmp_path, plain_run
):
    out = tmp_path / "run"
    settings = dict(level="auto", steps=12, learning_rate=5e-3)
    train(small(start, out, **settings, max_steps=6), MACHINE)
    saved = checkpoint.load(out / "ckpt.pt")["difficulty"]["fact"]
    logged = read_metrics(out / "metrics.jsonl")[5]["difficulty_fact"]
    assert saved == pytest.approx(logged, rel=1e-5)

    train(small(start, out, **settings, resume=True), MACHINE)
    level = 1.0
    levels = []
    for row in read_metrics(out / "metrics.jsonl"):
        level = min(max(level + 0.5 * (row["solve_rate"] - 0.4), 1.0), 5.0)
        levels.append(level)
        assert row["difficulty_fact"] == pytest.approx(level, abs=1e-4)
    # it had left its start before the run went on; how far depends on the rounding of the CPU
    assert len(levels) == 12 and levels[5] > 1.0 and len(set(levels)) > 6


# The selected checkpoint


@pytest.mark.parametrize(
    "scores, best",
    [
        ([0.2, 0.5, 0.4, 0.5, 0.3], 3),
        ([0.5, 0.1, 0.2, 0.3, 0.4], 0),
        ([0.1, 0.2, 0.3, 0.3, 0.3], 4),
        ([0.4, 0.4, 0.1, 0.2, 0.1], 1),
    ],
)
def test_best_pt_holds_the_weights_of_the_best_check_and_of_equals_the_later(
    scores, best, start, tmp_path, plain_run, monkeypatch
):
    """Checks after steps 0, 2, 4, 6 and, since the run ends there, 7.

    Also when the run is interrupted and continued.
    """
    seen = []
    steps = [0, 2, 4, 6, 7]
    found = iter([*scores[:2], 0.0, *scores[2:]])

    def accuracy(policy, problems, longest):
        seen.append(copy.deepcopy(policy.state_dict()))
        return dict(acc=next(found), n=len(problems), ci=[0.0, 1.0])

    monkeypatch.setattr(grpo_run, "greedy_accuracy", accuracy)
    train(small(start, tmp_path, steps=7, eval_every=2, save_every=1, max_steps=3), MACHINE)
    # The short run's own last check, after step 3, is one that the longer run does not make.
    del seen[2:]
    state = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    del state["run"]["checks"][3]
    torch.save(state, tmp_path / "ckpt.pt")

    report = train(small(start, tmp_path, steps=7, eval_every=2, resume=True), MACHINE)
    assert len(seen) == 5 and not equal(seen[3], seen[4])
    written = json.loads((tmp_path / "report.json").read_text())
    assert report["selected_step"] == written["selected_step"] == steps[best]
    checks = {int(step): check["acc"] for step, check in report["val_greedy"].items()}
    assert checks == dict(zip(steps, scores))
    assert equal(weights(tmp_path / "best.pt"), seen[best])
    assert equal(weights(tmp_path / "ckpt.pt"), seen[4])
    # A run folder stands for the selected model.
    assert equal(checkpoint.load_model(tmp_path).state_dict(), seen[best])
    assert checkpoint.load(tmp_path / "ckpt.pt")["run"]["step"] == 7
    assert checkpoint.load(tmp_path)["run"]["step"] == steps[best]


def test_resuming_goes_on_from_the_latest_weights_and_not_from_the_selected_ones(
    start, tmp_path, plain_run, monkeypatch
):
    scores = iter((0.4, 0.3, 0.2, 0.1) + (0.0,) * 10)
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"

    def accuracy(policy, problems, longest):
        return dict(acc=next(scores), n=6, ci=[0.0, 1.0])

    monkeypatch.setattr(grpo_run, "greedy_accuracy", accuracy)
    train(small(start, whole, steps=6, eval_every=7), MACHINE)
    train(small(start, parts, steps=6, eval_every=7, max_steps=3), MACHINE)
    assert checkpoint.load(parts)["run"]["step"] == 0  # the start was the best
    assert checkpoint.load(parts / "ckpt.pt")["run"]["step"] == 3
    train(small(start, parts, steps=6, eval_every=7, resume=True), MACHINE)
    assert equal(weights(parts / "ckpt.pt"), weights(whole / "ckpt.pt"))
    assert untimed(whole) == untimed(parts)


def test_the_checks_are_greedy_accuracies_on_held_out_problems_and_none_are_made_unless_wanted(
    start, tmp_path, plain_run
):
    out = tmp_path / "run"
    report = train(small(start, out, steps=4, eval_every=2), MACHINE)
    checks = report["val_greedy"]
    problems = Questions("fact", "1", tokenizer).held_out(6)
    for step, path in ((0, start), (report["selected_step"], out), (4, out / "ckpt.pt")):
        assert checks[step] == greedy_accuracy(checkpoint.load_model(path), problems, 12)
    logged = [row.get("val_greedy") for row in read_metrics(out / "metrics.jsonl")]
    assert logged == [None, checks[2]["acc"], None, checks[4]["acc"]]

    unchecked = tmp_path / "unchecked"
    report = train(small(start, unchecked, steps=2), MACHINE)
    assert report["val_greedy"] == {} and report["selected_step"] == 2
    assert not (unchecked / "best.pt").exists()


# When it ends, and the reference


def test_the_token_budget_ends_the_run_after_the_step_that_reaches_it(start, tmp_path, plain_run):
    whole = tmp_path / "whole"
    report = train(small(start, whole), MACHINE)
    sampled = [row["sampled_tokens"] for row in read_metrics(whole / "metrics.jsonl")]
    totals = [sum(sampled[: n + 1]) for n in range(6)]  # tokens up to and with each step
    assert report["sampled_tokens"] == totals[-1]
    for budget, steps in (
        (1, 1),
        (totals[2], 3),
        (totals[2] + 1, 4),
        (10 * totals[-1], 6),
    ):
        out = tmp_path / str(budget)
        report = train(small(start, out, token_budget=budget), MACHINE)
        assert (report["steps"], report["sampled_tokens"]) == (steps, totals[steps - 1])
        assert untimed(out) == untimed(whole)[:steps]
        assert checkpoint.load(out / "ckpt.pt")["run"]["step"] == steps

    # On resuming, the tokens of before count.
    out = tmp_path / str(totals[2])
    train(small(start, out, token_budget=totals[3], resume=True), MACHINE)
    assert untimed(out) == untimed(whole)[:4]


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_the_reference_is_the_start_until_it_becomes_the_policy_at_every_nth_step(
    kl, start, tmp_path, plain_run, monkeypatch
):
    states = {}

    def keep(path, model, write, run, **state):
        if run["step"] not in states:
            pair = (model.state_dict(), state["reference"])
            states[run["step"]] = copy.deepcopy(pair)

    monkeypatch.setattr(checkpoint, "save", keep)
    config = small(start, tmp_path, kl=kl, refresh_reference=2, save_every=1, minibatches=1)
    train(config, MACHINE)
    assert sorted(states) == [1, 2, 3, 4, 5, 6]
    for step, (_, reference) in states.items():
        latest = states[step // 2 * 2][0] if step > 1 else weights(start)
        assert equal(reference, latest)
    assert not equal(states[2][0], states[4][0])
    # The logged KL is that before each step's update.
    kls = [row["kl"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert kls[::2] == [0, 0, 0] and min(kls[1::2]) > 1e-6


def log_ratios(net, reference, experience, temperature):
    """k1 of each response, (P, G): the sum over its tokens of log pi / pi_ref."""
    shape = experience.rewards["total"].shape
    k1 = []
    with torch.no_grad():
        for row in range(shape.numel()):
            prompt = render_prompt(experience.problems[row // shape[1]].question)
            response = experience.rollout.response(row)
            logp = plain_logprobs(net, prompt, response, temperature)
            ref_logp = plain_logprobs(reference, prompt, response, temperature)
            k1.append(sum((logp - ref_logp).tolist()))
    return torch.tensor(k1).view(shape)


@pytest.mark.parametrize("advantage", ["mean", "mean-std"])
def test_k1_takes_the_log_ratio_of_whole_responses_from_the_reward_and_the_std_does_not_rescale_it(
    advantage, start, tmp_path, plain_run, monkeypatch
):
    seen = []
    update = train_grpo.update

    def watch(net, reference, optimizer, experience, advantages, config, machine, bf16):
        k1 = log_ratios(net, reference, experience, 0.9)  # (P, G)
        centred = k1 - k1.mean(1, keepdim=True)
        expected = group_advantages(experience.rewards["outcome"], advantage) - 0.5 * centred
        expected = expected.view(-1, 1).expand(advantages.shape)  # (N, L)
        inside = torch.arange(advantages.size(1)) < experience.rollout.lengths[:, None]
        assert torch.allclose(advantages[inside], expected[inside], atol=1e-4)
        seen.append(k1.abs().max().item())
        return update(net, reference, optimizer, experience, advantages, config, machine, bf16)

    monkeypatch.setattr(train_grpo, "update", watch)
    settings = dict(kl="k1", kl_coef=0.5, temperature=0.9, advantage=advantage, steps=4)
    train(small(start, tmp_path, **settings), MACHINE)
    assert seen[0] == 0 and min(seen[1:]) > 0.01
    # Logged is the reward before the KL.
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert all(row["reward_total"] == row["solve_rate"] for row in rows)


# What it says


@pytest.mark.parametrize(
    "all_wrong, all_right, words",
    [
        (1.0, 0.0, "every response of every group is wrong. Try easier questions"),
        (0.0, 1.0, "every response of every group is right. Try harder questions"),
        (0.75, 0.25, "each group is all right or all wrong. Try larger groups"),
    ],
)
def test_ten_silent_steps_in_a_row_are_said_once_with_what_to_change(
    all_wrong, all_right, words, capsys
):
    said = {}
    for steps in range(31):
        advise(dict(all_wrong=all_wrong, all_right=all_right), steps, MACHINE)
        said[steps] = capsys.readouterr().out
    assert [steps for steps in said if said[steps]] == [10, 20, 30]
    for steps in (10, 20, 30):
        assert said[steps].startswith(f"no signal for {steps} steps: {words}")
        assert said[steps].count("\n") == 1


ALL_WRONG = "every response of every group is wrong"


def no_signal_messages(capsys):
    """(steps, reason) of the messages about missing signal printed since the last call."""
    message = r"^no signal for (\d+) steps: (\w+ \w+ of every group is \w+)?"
    return re.findall(message, capsys.readouterr().out, re.MULTILINE)


def test_a_run_without_signal_says_so_also_when_stopped_and_continued(
    start, tmp_path, plain_run, monkeypatch, capsys
):
    scripted(monkeypatch, lambda question: [render_response("", "nothing")] * 4)
    whole = small(start, tmp_path, steps=21)
    train(Config(**vars(whole) | dict(max_steps=7)), MACHINE)
    assert no_signal_messages(capsys) == []
    train(Config(**vars(whole) | dict(resume=True)), MACHINE)
    assert no_signal_messages(capsys) == [("10", ALL_WRONG), ("20", ALL_WRONG)]
    assert equal(weights(tmp_path / "ckpt.pt"), weights(start))  # and nothing was learned


def test_steps_of_unequal_reward_are_a_signal_where_all_answers_are_wrong(
    start, tmp_path, plain_run, monkeypatch, capsys
):
    group = [render_response(text, "nothing") for text in ("so", "1 + 1 = 2")] * 2
    scripted(monkeypatch, lambda question: group)
    rows = [{"prompt": f"What is 1 + 1 + {n}?", "answer": str(n + 2)} for n in range(30)]
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "steps"
    train(small(start, out, steps=10, data=str(data), reward="exact-process"), MACHINE)
    row = read_metrics(out / "metrics.jsonl")[-1]
    assert no_signal_messages(capsys) == []
    assert row["all_wrong"] == 1 and row["no_signal"] == 0 and row["grad_norm"] > 0


def test_a_single_step_with_signal_begins_the_count_of_silent_steps_anew(
    start, tmp_path, plain_run, monkeypatch, capsys
):
    draw = Questions.draw
    first = {}  # the first answer to each question; it is right at step 8 only

    def watched(self, step, attempt, count):
        problems = draw(self, step, attempt, count)
        first.update({p.question: p.answer if step == 8 else "nothing" for p in problems})
        return problems

    def respond(question):
        answers = (first[question], "nothing", "nothing", "nothing")
        return [render_response("", answer) for answer in answers]

    monkeypatch.setattr(Questions, "draw", watched)
    scripted(monkeypatch, respond)
    train(small(start, tmp_path / "once", steps=18), MACHINE)
    assert no_signal_messages(capsys) == []  # 8 silent steps, one with signal, 9 silent ones
    train(small(start, tmp_path / "twice", steps=19), MACHINE)
    assert no_signal_messages(capsys) == [("10", ALL_WRONG)]


# A run that has diverged or collapsed


def test_a_log_ratio_of_100_gives_a_finite_loss_and_gradient():
    """Beyond e^88 float32 is infinite, and 0 times that is NaN."""
    for far in (-100.0, 100.0):
        for kl, advantage in (("k3", 0.0), ("k2", 0.0), ("none", 1.0), ("none", -1.0)):
            logp = torch.tensor([-101.0 if far < 0 else -0.5], requires_grad=True)
            other = logp.detach() - far
            loss, _, k3 = train_grpo.policy_loss(
                logp, logp.detach() if kl != "none" else other, other, torch.tensor([advantage]),
                torch.ones(1), torch.zeros(1, dtype=torch.long), kl=kl, kl_coef=0.01)
            loss.backward()
            assert loss.isfinite() and k3.isfinite() and logp.grad.isfinite().all()
            if kl == "k2":
                assert logp.grad.item() == pytest.approx(0.01 * far)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_step_is_taken_on_a_gradient_that_is_no_number_and_the_run_ends(
    bad, start, tmp_path, plain_run, monkeypatch
):
    """The third optimizer step; what was saved before stays as it was."""
    losses = []
    policy_loss = train_grpo.policy_loss

    def spoilt(*args):
        loss, clipped, kl = policy_loss(*args)
        losses.append(loss)
        return loss * (bad if len(losses) == 3 else 1), clipped, kl

    monkeypatch.setattr(train_grpo, "policy_loss", spoilt)
    settings = dict(minibatches=1, save_every=1, eval_every=1)
    with pytest.raises(UserError, match=r"^step 2: \w+ is (nan|inf), the run has diverged and ends"
                                        r" .*lower --learning-rate, or a KL"):
        train(small(start, tmp_path / "run", **settings), MACHINE)
    monkeypatch.setattr(train_grpo, "policy_loss", policy_loss)
    train(small(start, tmp_path / "short", **settings, max_steps=2), MACHINE)
    for name in ("ckpt.pt", "best.pt"):
        assert equal(weights(tmp_path / "run" / name), weights(tmp_path / "short" / name))
    assert untimed(tmp_path / "run") == untimed(tmp_path / "short")


def test_weights_that_overflow_end_the_run_also_where_there_is_no_signal_any_more(
    start, tmp_path, plain_run
):
    """With a rate of 1e36 a single step makes all weights infinite."""
    with pytest.raises(UserError, match=r"^step \d: the norm of the weights is (nan|inf)"):
        config = small(start, tmp_path, learning_rate=1e36, minibatches=1, save_every=1)
        train(config, MACHINE)
    kept = weights(tmp_path / "ckpt.pt") if (tmp_path / "ckpt.pt").exists() else {}
    assert all(weight.isfinite().all() for weight in kept.values())
    assert not (tmp_path / "report.json").exists()


def test_a_collapse_names_what_prevents_it_while_it_lasts_and_in_the_last_line(
    start, tmp_path, plain_run, monkeypatch, capsys
):
    asked = []

    def respond(question):
        asked.append(question)
        (answer,) = {p.answer for p in drawn if p.question == question}
        right = len(asked) <= 8  # two steps of four questions
        return [render_response("", answer if right and i < 2 else "nothing") for i in range(4)]

    draw = Questions.draw
    drawn = []

    def watched(self, step, attempt, count):
        problems = draw(self, step, attempt, count)
        drawn.extend(problems)
        return problems

    monkeypatch.setattr(Questions, "draw", watched)
    scripted(monkeypatch, respond)
    train(small(start, tmp_path / "run", steps=14), MACHINE)
    lines = capsys.readouterr().out.splitlines()
    words = "are wrong, where 50% of a step's had been right: the policy has collapsed. Begin again"
    said = [line for line in lines if words in line]
    assert said[0].startswith("the last 160 responses are wrong")
    assert said[1] == lines[-1] and "the last 192 responses are wrong" in said[1]
    for line in said:
        assert all(flag in line for flag in ("--learning-rate", "--kl k3", "--clip-ratio"))
    train(small(start, tmp_path / "run", steps=14, resume=True), MACHINE)
    assert "the run is finished" in capsys.readouterr().out


@pytest.mark.parametrize("best, wrong", [(0.2, 1000), (0.6, 64)])
def test_a_policy_that_never_solved_much_or_fails_for_a_moment_has_not_collapsed(
    best, wrong, start, tmp_path
):
    run = grpo_run.Run(small(start, tmp_path), MACHINE)
    run.counts |= dict(best=best, wrong=wrong)
    assert run.collapse == ""
    run.counts |= dict(best=0.6, wrong=1000)
    assert "collapsed" in run.collapse


def test_a_collapse_is_said_also_where_wrong_responses_earn_unequal_rewards(
    start, tmp_path, capsys
):
    """Groups with signal: the format earns, the answers do not."""
    run = grpo_run.Run(small(start, tmp_path), MACHINE)
    run.counts["best"] = 0.6
    capsys.readouterr()
    said = []
    for step in range(1, 21):
        run.finish_step(dict(solve_rate=0.0, no_signal=0.5, all_wrong=1.0, sampled_tokens=9))
        said += [step] * ("the policy has collapsed" in capsys.readouterr().out)
    assert said == [10, 20]


# The run folder


def test_a_kill_between_ckpt_and_best_pt_loses_neither(start, tmp_path, plain_run, monkeypatch):
    """Whichever check it is after, the one before the first step among them."""
    scores = (0.1, 0.3, 0.2, 0.5)  # after steps 0, 2, 4 and 6

    def accuracy(policy, problems, longest):
        return dict(acc=next(found), n=6, ci=[0.0, 1.0])

    save = checkpoint.save

    def killed(path, *args, **state):
        if path.name == "best.pt" and state["selected"] == moment:
            raise KeyboardInterrupt
        save(path, *args, **state)

    monkeypatch.setattr(grpo_run, "greedy_accuracy", accuracy)
    settings = dict(eval_every=2, save_every=4)
    found = iter(scores)
    train(small(start, tmp_path / "whole", **settings), MACHINE)
    for moment in (0, 2, 6):
        out = tmp_path / str(moment)
        found = iter(scores)
        monkeypatch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(small(start, out, **settings), MACHINE)
        monkeypatch.setattr(checkpoint, "save", save)
        train(small(start, out, **settings, resume=True), MACHINE)
        for name in ("ckpt.pt", "best.pt"):
            assert equal(weights(out / name), weights(tmp_path / "whole" / name))
        assert checkpoint.load(out / "best.pt")["selected"] == 6
    (out / "report.json").unlink()
    (out / "best.pt").unlink()
    assert checkpoint.load(out / "ckpt.pt")["run"]["step"] == 6
    train(small(start, out, **settings, resume=True), MACHINE)  # its weights are those of ckpt.pt
    assert equal(weights(out / "best.pt"), weights(tmp_path / "whole" / "best.pt"))


def test_a_run_goes_on_without_figures_where_its_metrics_are_gone(start, tmp_path):
    train(small(start, tmp_path), MACHINE)
    for name in ("metrics.jsonl", "report.json", "rl.png"):
        (tmp_path / name).unlink()
    report = train(small(start, tmp_path, resume=True), MACHINE)
    assert report["steps"] == 6 and not (tmp_path / "rl.png").exists()


# Its goal


def test_a_run_ends_when_the_lower_bound_of_sampled_accuracy_reaches_its_goal(
    start, tmp_path, monkeypatch
):
    """It is looked at only after steps whose training questions are solved that often."""
    looks = []

    def sampled(policy, problems, longest, seed):
        looks.append(seed)
        low = 0.25 if len(looks) < 2 else 0.31
        return dict(acc=0.5, n=len(problems), ci=[low, 0.7])

    monkeypatch.setattr(grpo_run, "sampled_accuracy", sampled)
    report = train(small(start, tmp_path / "run", steps=30, goal=0.3), MACHINE)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    asked = [row["step"] + 1 for row in rows if row["solve_rate"] >= 0.3]
    assert looks == asked and len(looks) == 2
    assert report["reached"] and report["steps"] == len(rows) == looks[-1] < 30
    assert [row["val_sampled"]["ci"][0] for row in rows if "val_sampled" in row] == [0.25, 0.31]
    report = train(small(start, tmp_path / "never", steps=3, goal=1.0), MACHINE)
    assert not report["reached"] and report["steps"] == 3


def test_the_goal_is_measured_on_as_many_problems_of_the_users_own(start, tmp_path, monkeypatch):
    """However many --families there would be without --data."""
    asked = []

    def sampled(policy, problems, longest, seed):
        asked.append([problem.question for problem in problems])
        return dict(acc=1.0, n=len(problems), ci=[0.9, 1.0])

    monkeypatch.setattr(grpo_run, "sampled_accuracy", sampled)
    monkeypatch.setattr(grpo_run, "GOAL_PROBLEMS", 12)
    scripted(monkeypatch, lambda question: [render_response("", question[8:-1])] * 4)
    rows = [{"question": f"What is {n}?", "answer": str(n)} for n in range(300)]
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dict(data=str(data), families="chain,percent,word", goal=0.5, steps=2)
    assert train(small(start, tmp_path / "run", **settings), MACHINE)["reached"]
    own = Questions("chain", "1", tokenizer, str(data)).held_out(12)
    assert asked == [[problem.question for problem in own]] and len(own) == 12


# Its size


def test_the_script_and_its_loss_stay_small_enough_to_read():
    lines = Path(train_grpo.__file__).read_text().splitlines()
    assert len(lines) <= 350
    assert max(map(len, lines)) <= 100
    assert len(inspect.getsource(train_grpo.policy_loss).splitlines()) <= 60

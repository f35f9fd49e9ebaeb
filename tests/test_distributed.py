"""The scripts under torchrun: two ranks log what one process logs, and one that fails ends the others with a line and without a hang."""

import json
import os
import random
import re
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import train_grpo
import train_sft
from nanoreason import checkpoint
from nanoreason.machine import Machine, PATIENCE
from nanoreason.run import read_metrics
from nanoreason.tasks import draw_problem
from test_scripts import ENV, ROOT, call

Run = namedtuple("Run", "out err status")

SFT = "--stage cold-start --demos 120 --model nano --epochs 2 --batch-tokens 1280 --micro-tokens 256 --precision fp32 --device cpu --log-every 1 --seed 3".split()
GRPO = ("--families fact --level auto --steps 4 --batch-size 32 --num-samples-per-prompt 4 --max-reasoning-tokens 12 --learning-rate 1e-3 --row-tokens 32 "
        "--micro-tokens 64 --kl k3 --kl-coef 0.05 --dynamic-sampling --refills 2 --eval-every 2 --eval-problems 6 --precision fp32 --device cpu").split()

FAILING = '''
import ctypes, os, signal, sys, time
from datetime import timedelta
import train_sft
from nanoreason import machine
from nanoreason.flags import UserError

how, rank, calls = sys.argv.pop(1), int(os.environ["RANK"]), 0
load_rows, train_step, sft_loss = train_sft.load_rows, train_sft.train_step, train_sft.sft_loss
if how == "hang":
    machine.PATIENCE = timedelta(seconds=3)
if how == "ctrl-c" and rank == 0:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as if its Ctrl-C came later than the other rank's

def loading(*args):
    print(f"pid {os.getpid()}", flush=True)
    if how == "mistake" and rank == 1:
        raise UserError("this rank's disk is full")
    if how == "hang" and rank == 1:  # in C and deaf to signals, like an exchange that never ends: a lock taken twice
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    return load_rows(*args)

def losing(*args):
    global calls
    calls += 1
    if calls == 5 and rank == 1:  # in the third step, while the other rank waits for gradients
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "bug":
            raise ZeroDivisionError("division of the moon")
    return sft_loss(*args)

def stepping(*args):
    if how == "ctrl-c" and calls >= 3:
        if calls == 4 and rank == 1:
            os.kill(os.getppid(), signal.SIGINT)  # to torchrun, which passes it on
        time.sleep(0.1)
    return train_step(*args)

train_sft.load_rows, train_sft.sft_loss, train_sft.train_step = loading, losing, stepping
sys.argv[0] = "train_sft.py"
machine.run_script(train_sft.main)
'''


def torchrun(*command):
    """Run a script on two ranks to its end. One that hangs is ended together with its ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, command)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        return Run(*process.communicate(timeout=300), process.returncode)
    except subprocess.TimeoutExpired:
        process.terminate()
        return Run(*process.communicate(), "it hung")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A nano model that answers questions about capitals now rightly, now with 'unknown': the folder of its checkpoint."""
    folder, rng = tmp_path_factory.mktemp("start"), random.Random(0)
    problems = [draw_problem("fact", 1, rng, "train") for _ in range(400)]
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": p.question, "response": p.answer if i % 2 else "unknown"}) + "\n" for i, p in enumerate(problems)))
    call(train_sft, "--stage", "cold-start", "--data", folder / "data.jsonl", "--model", "nano", "--epochs", 5, "--batch-tokens", 512, "--row-tokens", 64,
         "--muon-lr", 0.01, "--adamw-lr", 0.01, "--precision", "fp32", "--out", folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def launched(start, tmp_path_factory):
    """All runs under torchrun, two at a time, by name: futures of a Run. Each writes to the folder of its name."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "failing.py").write_text(FAILING)
    commands = dict(sft=["train_sft.py", *SFT], grpo=["train_grpo.py", "--init", start, *GRPO], everyone=["train_sft.py", *SFT, "--row-tokens", 100_000])
    commands |= {how: [folder / "failing.py", how, *SFT] for how in ("mistake", "bug", "kill", "hang", "ctrl-c")}
    pool = ThreadPoolExecutor(2)
    yield folder, {name: pool.submit(torchrun, *command, "--out", folder / name) for name, command in commands.items()}
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def run(launched):
    """(folder of its results, Run) of the run of a name."""
    return lambda name: (launched[0] / name, launched[1][name].result())


def untimed(rows):
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def test_sft_on_two_ranks_logs_the_losses_of_one(run, tmp_path):
    """Batches of five rows, one row a pass: rank 0 synchronises after three passes, rank 1 after two."""
    call(train_sft, *SFT, "--out", tmp_path)
    folder, done = run("sft")
    assert done.status == 0, done.err
    one, two = read_metrics(tmp_path / "metrics.jsonl"), read_metrics(folder / "metrics.jsonl")
    assert len(one) >= 10 and one[-1]["loss"] < one[0]["loss"] - 0.5
    assert [list(row) for row in two] == [list(row) for row in one]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=5e-5)  # Muon rounds to bf16 on its way
    reports = [json.loads((path / "report.json").read_text()) for path in (tmp_path, folder)]
    assert reports[1]["val_loss"] == pytest.approx(reports[0]["val_loss"], rel=5e-5)
    assert "rank" not in done.err and done.out.count("cold-start: loss") == 1  # silent where all is well, and rank 0 speaks for both


def test_grpo_on_two_ranks_logs_the_metrics_of_one(run, start, tmp_path):
    call(train_grpo, "--init", start, *GRPO, "--out", tmp_path)
    folder, done = run("grpo")
    assert done.status == 0, done.err
    one, two = (untimed(read_metrics(path / "metrics.jsonl")) for path in (tmp_path, folder))
    assert len(one) == 4 and {"loss", "grad_norm", "kl", "entropy", "solve_rate", "length"} <= set(one[0])
    assert 0.1 < one[0]["solve_rate"] < 0.9 and one[-1]["kl"] > 1e-3 and min(row["grad_norm"] for row in one) > 1e-2 and "val_greedy" in one[1]
    assert max(row["refills"] for row in one) > 0 and one[-1]["difficulty_fact"] > 1
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-5)


def test_gradients_appear_only_where_some_rank_has_one(monkeypatch):
    """One process without a gradient leaves its parameters to rest; zeros in its place would let AdamW move them by its momentum."""
    net, two_ranks = nn.Linear(2, 1), Machine(torch.device("cpu"), 0, 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))  # both ranks hold the same
    two_ranks.sum_gradients(net)
    assert net.weight.grad is None and net.bias.grad is None
    net.bias.grad = torch.tensor([1.5])
    two_ranks.sum_gradients(net)
    assert net.bias.grad.tolist() == [3.0] and net.weight.grad.tolist() == [[0.0, 0.0]]


def ended(name, run):
    """stderr of a failed run, after what holds for each: a status, all processes gone of their own accord, no second traceback."""
    _, done = run(name)
    assert done.status == 1, done.err
    pids = [int(pid) for pid in re.findall(r"pid (\d+)", done.out)]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(pids) == (0 if name == "everyone" else 2)
    assert "SIGKILL" not in done.err or name == "kill"  # torchrun's last resort, after 30 seconds
    assert "[rank0]" not in done.err
    return done.err


def culprit(err):
    """The rank that torchrun calls the first to fail."""
    return int(re.search(r"Root Cause.*?rank +: (\d)", err, re.DOTALL)[1])


LEFT = r"^train_sft\.py: rank 0: stopped \((Connection (closed|reset) by peer|Broken pipe|SIGTERM)\): another rank failed, hangs or was lost"


def test_a_mistake_of_one_rank_is_one_line_of_it_and_one_of_the_other(run):
    err = ended("mistake", run)
    said = [line for line in err.splitlines() if line.startswith("train_sft.py:")]
    assert said[0] == "train_sft.py: rank 1: this rank's disk is full" and re.match(LEFT, said[1]) and "[rank1]" not in err
    assert culprit(err) == 1 and "exitcode  : 2" in err


def test_a_mistake_of_all_ranks_is_said_once(run):
    err = ended("everyone", run)
    said = [line for line in err.splitlines() if line.startswith("train_sft.py:")]
    assert len(said) == 1 and re.match("train_sft.py: rank 0: --row-tokens 100000 is longer than the model's context", said[0]) and "[rank" not in err
    assert culprit(err) == 0 and "exitcode  : 2" in err


def test_a_bug_on_one_rank_keeps_its_traceback_and_the_other_says_one_line(run):
    err = ended("bug", run)
    assert "[rank1]: Traceback" in err and "[rank1]: ZeroDivisionError: division of the moon" in err
    assert err.index("division of the moon") < re.search(LEFT, err, re.MULTILINE).start() and culprit(err) == 1


def test_a_killed_rank_ends_the_other(run):
    err = ended("kill", run)
    assert re.search(LEFT, err, re.MULTILINE) and culprit(err) == 1 and "Signal 9 (SIGKILL) received" in err


def test_a_rank_that_hangs_ends_the_run_once_the_patience_is_over(run):
    err = ended("hang", run)
    assert 60 <= PATIENCE.total_seconds() <= 1800
    assert re.search(r"^train_sft\.py: rank 0: stopped \(Timed out waiting 3000ms\): another rank failed, hangs or was lost", err, re.MULTILINE)
    assert re.search(r"^train_sft\.py: rank 1: stopped \(SIGTERM\): another rank failed", err, re.MULTILINE)


def test_ctrl_c_stops_all_ranks_after_the_same_step_and_saves(run):
    folder, done = run("ctrl-c")
    step = int(re.search(r"stopped after step (\d+) and saved; continue with --resume", done.out)[1])
    rows = read_metrics(folder / "metrics.jsonl")
    assert done.status != 0 and step == len(rows) == checkpoint.load(folder)["step"] and 3 <= step < 10
    assert "stopped (" not in done.err and "[rank" not in done.err

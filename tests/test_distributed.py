"""The scripts under torchrun: two ranks log what one process logs, and a rank that fails ends the
others with a line and without a hang."""

import json
import os
import random
import re
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

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

SFT = """
    --stage cold-start --demos 120 --model nano --epochs 2 --batch-tokens 1280 --micro-tokens 256
    --precision fp32 --device cpu --log-every 1 --seed 3
""".split()
GRPO = """
    --families fact --level auto --steps 4 --batch-size 32 --num-samples-per-prompt 4
    --max-reasoning-tokens 12 --learning-rate 1e-3 --row-tokens 32 --micro-tokens 64
    --kl k3 --kl-coef 0.05 --dynamic-sampling --refills 2 --eval-every 2 --eval-problems 6
    --precision fp32 --device cpu
""".split()

# train_sft.py with one rank of two that fails in the way its first argument says
FAILING = '''
import ctypes, os, signal, sys, time
from datetime import timedelta
import train_sft
from nanoreason import machine
from nanoreason.flags import UserError

how = sys.argv.pop(1)
rank = int(os.environ["RANK"])
calls = 0
load_rows = train_sft.load_rows
train_step = train_sft.train_step
sft_loss = train_sft.sft_loss
if how == "hang":
    machine.PATIENCE = timedelta(seconds=3)
if how == "ctrl-c" and rank == 0:
    # as if its Ctrl-C came later than the other rank's
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

def loading(*args):
    print(f"pid {os.getpid()}", flush=True)
    if how == "mistake" and rank == 1:
        raise UserError("this rank's disk is full")
    if how == "hang" and rank == 1:
        # in C and deaf to signals, like an exchange that never ends: a lock taken twice
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

train_sft.load_rows = loading
train_sft.sft_loss = losing
train_sft.train_step = stepping
sys.argv[0] = "train_sft.py"
machine.run_script(train_sft.main)
'''


def torchrun(*command):
    """Run a script on two ranks to its end. One that hangs is ended together with its ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*launcher, "--nproc-per-node", "2", *map(str, command)],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=300)
        return Run(out, err, process.returncode)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate()
        return Run(out, err, "it hung")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The checkpoint of a nano model that answers half of the questions about capitals rightly.

    To the others it says 'unknown'.
    """
    folder = tmp_path_factory.mktemp("start")
    rng = random.Random(0)
    with open(folder / "data.jsonl", "w") as f:
        for i in range(400):
            problem = draw_problem("fact", 1, rng, "train")
            response = problem.answer if i % 2 else "unknown"
            f.write(json.dumps({"prompt": problem.question, "response": response}) + "\n")
    flags = """
        --stage cold-start --model nano --epochs 5 --batch-tokens 512 --row-tokens 64
        --muon-lr 0.01 --adamw-lr 0.01 --precision fp32
    """
    paths = ["--data", folder / "data.jsonl", "--out", folder / "model"]
    call(train_sft, *flags.split(), *paths)
    return folder / "model"


@pytest.fixture(scope="module")
def launched(start, tmp_path_factory):
    """All runs under torchrun, two at a time: their folder and {name: future of a Run}.

    Each writes to the folder of its name.
    """
    folder = tmp_path_factory.mktemp("two")
    (folder / "failing.py").write_text(FAILING)
    commands = dict(
        sft=["train_sft.py", *SFT],
        grpo=["train_grpo.py", "--init", start, *GRPO],
        everyone=["train_sft.py", *SFT, "--row-tokens", 100_000],
    )
    for how in ("mistake", "bug", "kill", "hang", "ctrl-c"):
        commands[how] = [folder / "failing.py", how, *SFT]
    pool = ThreadPoolExecutor(2)
    runs = {}
    for name, command in commands.items():
        runs[name] = pool.submit(torchrun, *command, "--out", folder / name)
    yield folder, runs
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def run(launched):
    """(folder of its results, Run) of the run of a name."""
    folder, runs = launched

    def result(name):
        return folder / name, runs[name].result()

    return result


def untimed(rows):
    """The rows without what differs from run to run."""
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def test_sft_on_two_ranks_logs_the_losses_of_one(run, tmp_path):
    """Batches of five rows, one row per pass: rank 0 synchronises after three passes, rank 1 after
    two."""
    call(train_sft, *SFT, "--out", tmp_path)
    folder, done = run("sft")
    assert done.status == 0, done.err
    one, two = (read_metrics(path / "metrics.jsonl") for path in (tmp_path, folder))
    assert len(one) >= 10
    assert one[-1]["loss"] < one[0]["loss"] - 0.5
    assert [list(row) for row in two] == [list(row) for row in one]
    losses = [row["loss"] for row in one]
    assert [row["loss"] for row in two] == pytest.approx(losses, rel=5e-5)
    reports = [json.loads((path / "report.json").read_text()) for path in (tmp_path, folder)]
    assert reports[1]["val_loss"] == pytest.approx(reports[0]["val_loss"], rel=5e-5)
    # silent where all is well, and rank 0 speaks for both
    assert "rank" not in done.err
    assert done.out.count("cold-start: loss") == 1


def test_grpo_on_two_ranks_logs_the_metrics_of_one(run, start, tmp_path):
    call(train_grpo, "--init", start, *GRPO, "--out", tmp_path)
    folder, done = run("grpo")
    assert done.status == 0, done.err
    one, two = (untimed(read_metrics(path / "metrics.jsonl")) for path in (tmp_path, folder))
    assert len(one) == 4
    assert {"loss", "grad_norm", "kl", "entropy", "solve_rate", "length"} <= set(one[0])
    assert 0.1 < one[0]["solve_rate"] < 0.9
    assert one[-1]["kl"] > 1e-3
    assert min(row["grad_norm"] for row in one) > 1e-2
    assert "val_greedy" in one[1]
    assert max(row["refills"] for row in one) > 0
    assert one[-1]["difficulty_fact"] > 1
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-5)


def test_gradients_appear_only_where_some_rank_has_one(monkeypatch):
    """Where no rank has one the parameters rest; with zeros AdamW would move them by momentum."""
    net = nn.Linear(2, 1)
    two_ranks = Machine(torch.device("cpu"), 0, 2)
    # both ranks hold the same
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    two_ranks.sum_gradients(net)
    assert net.weight.grad is None
    assert net.bias.grad is None
    net.bias.grad = torch.tensor([1.5])
    two_ranks.sum_gradients(net)
    assert net.bias.grad.tolist() == [3.0]
    assert net.weight.grad.tolist() == [[0.0, 0.0]]


def ended(name, run):
    """stderr of a failed run, after what holds for each: a status, all processes gone of their own
    accord, no second traceback."""
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


def said_by_script(err):
    """The lines that the script itself wrote."""
    return [line for line in err.splitlines() if line.startswith("train_sft.py:")]


ANOTHER = "another rank failed, hangs or was lost"
LEFT = (
    r"^train_sft\.py: rank 0: "
    r"stopped \((Connection (closed|reset) by peer|Broken pipe|SIGTERM)\): " + ANOTHER
)


def test_a_mistake_of_one_rank_is_one_line_of_it_and_one_of_the_other(run):
    err = ended("mistake", run)
    said = said_by_script(err)
    assert said[0] == "train_sft.py: rank 1: this rank's disk is full"
    assert re.match(LEFT, said[1])
    assert "[rank1]" not in err
    assert culprit(err) == 1
    assert "exitcode  : 2" in err


def test_a_mistake_of_all_ranks_is_said_once(run):
    err = ended("everyone", run)
    said = said_by_script(err)
    assert len(said) == 1
    mistake = "train_sft.py: rank 0: --row-tokens 100000 is longer than the model's context"
    assert re.match(mistake, said[0])
    assert "[rank" not in err
    assert culprit(err) == 0
    assert "exitcode  : 2" in err


def test_a_bug_on_one_rank_keeps_its_traceback_and_the_other_says_one_line(run):
    err = ended("bug", run)
    assert "[rank1]: Traceback" in err
    assert "[rank1]: ZeroDivisionError: division of the moon" in err
    assert err.index("division of the moon") < re.search(LEFT, err, re.MULTILINE).start()
    assert culprit(err) == 1


def test_a_killed_rank_ends_the_other(run):
    err = ended("kill", run)
    assert re.search(LEFT, err, re.MULTILINE)
    assert culprit(err) == 1
    assert "Signal 9 (SIGKILL) received" in err


def test_a_rank_that_hangs_ends_the_run_once_the_patience_is_over(run):
    err = ended("hang", run)
    assert 60 <= PATIENCE.total_seconds() <= 1800
    timed_out = r"^train_sft\.py: rank 0: stopped \(Timed out waiting 3000ms\): " + ANOTHER
    assert re.search(timed_out, err, re.MULTILINE)
    ended_by_torchrun = r"^train_sft\.py: rank 1: stopped \(SIGTERM\): another rank failed"
    assert re.search(ended_by_torchrun, err, re.MULTILINE)


def test_ctrl_c_stops_all_ranks_after_the_same_step_and_saves(run):
    folder, done = run("ctrl-c")
    said = re.search(r"stopped after step (\d+) and saved; continue with --resume", done.out)
    step = int(said[1])
    rows = read_metrics(folder / "metrics.jsonl")
    assert done.status != 0
    assert step == len(rows) == checkpoint.load(folder)["step"]
    assert 3 <= step < 10
    assert "stopped (" not in done.err
    assert "[rank" not in done.err

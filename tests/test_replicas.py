"""Replicas: processes that share a model take the steps of one process, bit for bit every time."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, make_tiny, tokenizer

import train_sft
from nanoreason.machine import Machine
from nanoreason.corpus import demonstrations, tokenize
from nanoreason.flags import UserError
from nanoreason.data import pack
from nanoreason.optim import AdamW
from nanoreason.replicas import LARGEST, Replicas, replica_count

MACHINE = Machine(torch.device("cpu"))
ROWS = pack(tokenize(demonstrations(60, 0), tokenizer), 256)
CONFIG = train_sft.Config(micro_tokens=512)
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def work(model, share):
    return train_sft.add_gradients(model, ROWS, *share, CONFIG, MACHINE, False)


def trained(count, steps=3):
    """A tiny model after some steps on `count` replicas, the loss of each step, the optimizers."""
    model = make_tiny(vocab_size=512, max_len=256)
    optimizers = train_sft.make_optimizers(model, CONFIG)
    replicas = Replicas(model, optimizers, work, count)
    losses = []
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.lr = 0.01 / (1 + step)  # the other processes must hear of it
        loss, _ = train_sft.train_step(replicas, ROWS, np.arange(7), MACHINE)
        losses.append(loss)
    replicas.close()
    return model, losses, optimizers


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@linux
def test_any_number_of_replicas_takes_the_same_steps():
    """Sums in another order: float32 rounds otherwise, and three steps of Muon carry that on."""
    alone, losses, alone_optimizers = trained(1)
    for count in (2, 3):
        together, found, optimizers = trained(count)
        assert found == pytest.approx(losses, rel=1e-4)
        assert (flat(together) - flat(alone)).norm() < 1e-3 * flat(alone).norm()
        for one, other in zip(alone_optimizers, optimizers, strict=True):
            assert one.steps == other.steps == 3
            for name, tensors in one.state.items():
                for x, y in zip(tensors, other.state[name], strict=True):
                    assert (x - y).norm() <= 1e-2 * x.norm() + 1e-9


@linux
def test_the_same_number_gives_the_same_bits_whatever_process_is_first():
    first, losses, _ = trained(3)
    for _ in range(2):
        again, found, _ = trained(3)
        assert found == losses and torch.equal(flat(again), flat(first))


@linux
def test_gradients_are_added_and_forgotten_and_more_processes_than_rows_do_no_harm():
    model = make_tiny()
    optimizer = AdamW(model.parameters(), 0.0)
    ids = torch.arange(8)[None]

    def scaled(net, scale):
        if scale:
            (scale * net(ids).sum()).backward()
        return scale

    replicas = Replicas(model, [optimizer], scaled, 3)
    for shares in ([1.0, 2.0, 0.0], [0.0, 1.0, 2.0]):
        assert replicas.gradients(shares) == shares
        alone = make_tiny()
        (3 * alone(ids).sum()).backward()
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            assert (p.grad - q.grad).norm() < 1e-4 * q.grad.norm()
        replicas.step()
        assert not any(p.grad.any() for p in model.parameters())
    replicas.close()


@linux
def test_an_error_in_another_process_is_raised_here():
    replicas = Replicas(make_tiny(), [], lambda model, n: 1 / n, 2)
    with pytest.raises(ZeroDivisionError):
        replicas.gradients([1, 0])
    assert replicas.gradients([1, 2]) == [1.0, 0.5]
    replicas.close()


@linux
def test_the_other_processes_end_when_the_first_is_killed():
    code = """
import os, sys, time, torch
sys.path[:0] = ["tests", "."]
from conftest import make_tiny
from nanoreason.replicas import Replicas
replicas = Replicas(make_tiny(), [], lambda model, share: os.getpid(), 3)
print(*replicas.gradients([0, 0, 0]), flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(set(pids)) == 3 and pids[0] == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.time() + 20
    while time.time() < until and any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids[1:]):
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids[1:])


@linux
def test_a_process_that_is_gone_is_one_line():
    replicas = Replicas(make_tiny(), [], lambda model, share: share and os._exit(9), 2)
    with pytest.raises(UserError, match="a process of this run was killed"):
        replicas.gradients([0, 1])
    replicas.close()


@linux
def test_a_step_on_a_gradient_that_is_no_number_is_not_taken():
    ids = torch.arange(8)[None]
    for count in (1, 2):
        model = make_tiny()
        optimizer = AdamW(model.parameters(), 0.1)

        def scaled(net, scale):
            (scale * net(ids).sum()).backward()

        replicas = Replicas(model, [optimizer], scaled, count)
        before = flat(model)
        for bad in (float("nan"), float("inf")):
            replicas.gradients([1.0] * (count - 1) + [bad])
            assert not np.isfinite(replicas.step())
            assert torch.equal(flat(model), before) and optimizer.steps == 0
        replicas.gradients([1.0] * count)
        assert np.isfinite(replicas.step()) and optimizer.steps == 1
        assert flat(model).isfinite().all() and not torch.equal(flat(model), before)
        replicas.close()


@linux
def test_a_long_gradient_is_scaled_down_as_torch_does_it_and_its_own_norm_is_returned():
    ids = torch.arange(8)[None]
    for count in (1, 2):
        models = []
        for ours in (True, False):
            model = make_tiny()
            optimizer = AdamW(model.parameters(), 0.1)

            def work(net, share):
                net(ids).sum().backward()

            replicas = Replicas(model, [optimizer], work, count)
            replicas.gradients([None] * count)
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
            if ours:
                assert replicas.step(max_norm=0.5) == norm > 0.5
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                assert replicas.step() == pytest.approx(0.5, rel=1e-4)
            models.append(flat(model))
            replicas.close()
        assert torch.equal(*models)


def test_a_process_ends_in_silence_where_nobody_hears_of_its_error(monkeypatch):
    class Gone:
        def send(self, message):
            raise BrokenPipeError

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match="0"):
        Replicas._send_error(Gone(), ValueError())


@linux
def test_all_processes_end_after_an_error_and_outlive_a_sigterm_to_all_of_them():
    """As `timeout` and clusters send it: the first process has a step to finish and to save."""
    code = """
import os, signal, sys, torch
sys.path[:0] = ["tests", "."]
from conftest import make_tiny
from nanoreason.replicas import Replicas
from nanoreason.run import Interrupt
replicas = Replicas(make_tiny(), [], lambda model, share: os.getpid(), 2)
interrupt = Interrupt()
replicas.gradients([0, 0])  # all are ready
os.killpg(0, signal.SIGTERM)
assert len(set(replicas.gradients([0, 0]))) == 2 and interrupt.wanted
raise SystemExit(3)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, start_new_session=True, timeout=60)
    assert done.returncode == 3


def test_only_a_small_model_alone_on_a_cpu_has_more_than_one(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    model = make_tiny()
    monkeypatch.setattr(sys, "platform", "linux")
    assert replica_count(model, MACHINE, 6) == 4
    assert replica_count(model, MACHINE, 3) == 3
    assert replica_count(model, MACHINE, 0) == 1
    assert replica_count(model, Machine(torch.device("cpu"), 0, 2), 6) == 1  # of two ranks
    assert replica_count(model, Machine(torch.device("meta")), 6) == 1
    monkeypatch.setattr(type(model), "num_params", LARGEST + 1)
    assert replica_count(model, MACHINE, 6) == 1
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert replica_count(model, MACHINE, 6) == 1

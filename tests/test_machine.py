"""Where a script runs and how it ends: exit status, seeds, devices, sums over ranks, precision."""

import ast
import ctypes
import errno
import io
import os
import select
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from nanoreason import machine as machine_module
from nanoreason.flags import UserError
from nanoreason.machine import (
    autocast,
    choose_bf16,
    generator,
    host_memory,
    Machine,
    run_script,
    safe_streams,
    seed_for,
    start_machine,
)


def test_a_user_error_is_one_line_and_status_2_and_a_bug_is_not_hidden(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])

    def fail(error):
        raise error

    for error, status in ((UserError("no\nsuch  thing"), 2), (KeyboardInterrupt(), 130)):
        with pytest.raises(SystemExit) as stop:
            run_script(lambda error=error: fail(error))
        assert stop.value.code == status
    assert capsys.readouterr().err == "train.py: no such thing\n"
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: fail(ZeroDivisionError()))


def test_a_full_disk_is_one_line_that_names_the_file(capsys):
    def figure():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/rl/rl.png")

    with pytest.raises(SystemExit) as stop:
        run_script(figure)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith("cannot write runs/rl/rl.png: No space left on device\n")


# Terminals


def text_stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding, newline="\n")


@pytest.mark.parametrize(("encoding", "written"), [
    ("utf-8", "15 − 3 = 12, 2 × 3, 6 ÷ 2, é, 山\n"),
    ("cp1252", "15 - 3 = 12, 2 × 3, 6 ÷ 2, é, \\u5c71\n"),
    ("ascii", "15 - 3 = 12, 2 * 3, 6 / 2, \\xe9, \\u5c71\n"),
])
def test_what_an_encoding_lacks_is_spelt_in_ascii(encoding, written, monkeypatch):
    streams = {name: text_stream(encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    run_script(lambda: print("15 − 3 = 12, 2 × 3, 6 ÷ 2, é, 山"))
    print("15 − 3 = 12, 2 × 3, 6 ÷ 2, é, 山", file=sys.stderr)
    for stream in streams.values():
        stream.flush()
        assert stream.buffer.getvalue().decode(encoding) == written


def close_streams():
    for number in (0, 1, 2):
        os.close(number)


def test_streams_that_the_caller_closed_lead_to_nowhere(monkeypatch, tmp_path):
    """In this process Python's streams; in another one the numbers that the system knows."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        safe_streams()
        assert sys.stdout.write("lost") == sys.stderr.write("lost") == 4
        assert not sys.stderr.isatty()
    script = """
import subprocess, sys
from nanoreason.machine import run_script

def main():
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2
        print("lost", flush=True)
        print("lost", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-c", "print('lost')"], check=True)
        file.write("kept")

run_script(main)
"""
    kept = tmp_path / "kept"
    words = [sys.executable, "-c", script, str(kept)]
    process = subprocess.Popen(words, cwd=ROOT, preexec_fn=close_streams)
    assert process.wait() == 0
    assert kept.read_text() == "kept"


def test_a_mistake_that_nobody_reads_still_gives_its_status(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    def fail():
        raise UserError("no such thing")

    monkeypatch.setattr(sys, "stderr", Gone())
    with pytest.raises(SystemExit) as stop:
        run_script(fail)
    assert stop.value.code == 2


def test_a_system_without_posix_calls_is_served(monkeypatch):
    """Windows has neither os.sysconf nor select.poll, and no SIGTERM to wait for."""
    cpu = Machine(torch.device("cpu"))
    assert cpu.memory == host_memory() > 2**28
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpu.memory == host_memory() // 2
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(select, "poll")
    assert cpu.memory is None  # a system that tells nothing

    class Kernel32:
        @staticmethod
        def GetPhysicallyInstalledSystemMemory(pointer):
            pointer._obj.value = 16 * 2**20
            return 1

    windows = type("windll", (), {"kernel32": Kernel32})
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    assert host_memory() == 16 * 2**30

    class Gone(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not machine_module._reader_is_gone()
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(Gone, "fileno", lambda self: 1)
    assert machine_module._reader_is_gone()


def test_kernels_of_few_shapes_are_kept_unless_the_user_says_otherwise(monkeypatch):
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    monkeypatch.setenv(names[0], "7")
    monkeypatch.delenv(names[1], raising=False)
    start_machine("cpu")
    assert [os.environ[name] for name in names] == ["7", "64"]


# Files

READERS = {"open": 1, "read_text": 0, "write_text": 1}  # {call: arguments before the encoding}
FILES = sorted([*ROOT.glob("*.py"), *(ROOT / "nanoreason").rglob("*.py")])


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in FILES])
def test_files_are_in_utf8_whatever_the_locale(name):
    """Every open, read_text and write_text of text names its encoding, and so does whoever reads
    the text of another process."""
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if getattr(getattr(node.func, "value", None), "id", "") == "os":
            continue  # os.open: numbers, no text
        named = {keyword.arg for keyword in node.keywords}
        if called in READERS:
            at = 1 if isinstance(node.func, ast.Name) else 0  # open(path, mode), path.open(mode)
            modes = [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
            modes += node.args[at : at + 1]
            in_bytes = called == "open" and any("b" in ast.unparse(mode) for mode in modes)
            by_place = called != "open" and len(node.args) > READERS[called]
            assert "encoding" in named or in_bytes or by_place, f"line {node.lineno}"
        if "text" in named or "universal_newlines" in named:
            assert "encoding" in named, f"line {node.lineno}"


# Seeds

SEED_OF_WEIGHTS = 5087778715007104936


def test_neighbouring_seeds_and_purposes_share_nothing():
    seeds = {
        seed_for(seed, purpose, step, rank)
        for seed in range(12)
        for purpose in ("rollout", "questions")
        for step in range(12)
        for rank in range(8)
    }
    assert len(seeds) == 12 * 2 * 12 * 8
    assert all(0 <= s < 2**63 for s in seeds)
    differing = [bin(seed_for(s, "a") ^ seed_for(s + 1, "a")).count("1") for s in range(200)]
    assert 28 < sum(differing) / 200 < 35  # of 63 bits, half
    assert seed_for(1, "a", 23) != seed_for(1, "a", 2, 3) != seed_for(12, "a", 3)
    assert seed_for(1, "2") != seed_for(1, 2)
    assert seed_for(0, "weights") == SEED_OF_WEIGHTS  # the same in every process, for ever


def test_generators_of_neighbours_are_uncorrelated_and_repeatable():
    a, b, again = (torch.randn(4000, generator=generator(seed, "x")) for seed in (0, 1, 0))
    assert torch.equal(a, again)
    assert abs((a * b).mean()) < 0.06
    assert abs((a[1:] * b[:-1]).mean()) < 0.06


# Machine


def test_one_machine_sums_nothing_and_unknown_devices_are_user_errors(monkeypatch):
    machine = start_machine("cpu")
    cpu = torch.device("cpu")
    assert machine == Machine(cpu, 0, 1)
    assert machine.main
    assert machine.total(torch.tensor(3)) == 3.0
    if not torch.cuda.is_available():
        with pytest.raises(UserError):
            start_machine("cuda")
    assert choose_bf16("fp32", cpu) is False
    assert choose_bf16("bf16", cpu) is True
    a = torch.ones(2, 2)
    with autocast(cpu, True):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(cpu, False):
        assert (a @ a).dtype == torch.float32


def test_the_sum_over_one_rank_is_the_tensor_itself():
    machine = Machine(torch.device("cpu"))
    for tensor in (torch.tensor([1.5, -2.0, 0.0]), torch.tensor([3, 4]), torch.zeros(0)):
        kept = tensor.clone()
        assert torch.equal(machine.sum(tensor), kept)
        assert machine.sum(tensor).dtype == kept.dtype
        assert torch.equal(tensor, kept)


def test_precision_is_what_was_asked_or_what_the_run_began_with(monkeypatch):
    machine = Machine(torch.device("cpu"))
    for pays in (True, False):
        monkeypatch.setattr("nanoreason.machine.bf16_pays", lambda device: pays)
        assert choose_bf16("auto", machine) == pays
        # a resumed run does not change its mind
        assert choose_bf16("auto", machine, began_bf16=not pays) == (not pays)
        assert choose_bf16("bf16", machine, began_bf16=False)
        assert not choose_bf16("fp32", machine, began_bf16=True)

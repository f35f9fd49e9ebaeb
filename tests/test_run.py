"""A run's folder: Ctrl-C, progress, metrics and other files, and what a kill must not break."""

import json
import signal
import sys
import threading

import pytest
import torch

from nanoreason.flags import UserError
from nanoreason.machine import Machine, run_script
from nanoreason.run import Interrupt, Metrics, prepare_out, read_metrics, StepBar, write_json
from test_flags import Config

CPU = torch.device("cpu")


def test_one_ctrl_c_is_a_wish_and_two_stop_at_once():
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupt = Interrupt()
        assert not interrupt.wanted
        signal.raise_signal(signal.SIGINT)
        assert interrupt.wanted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


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


def test_write_json_replaces_whole_files_only(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_an_existing_run_is_continued_only_on_purpose(tmp_path):
    def steps_written():
        return json.loads((out / "config.json").read_text())["num_steps"]

    out = prepare_out(tmp_path / "deep" / "run", Config(num_steps=3), resume=False)
    assert steps_written() == 3
    prepare_out(out, Config(num_steps=4), resume=False)  # no checkpoint yet: nothing to lose
    (out / "ckpt.pt").write_bytes(b"weights")
    with pytest.raises(UserError):
        prepare_out(out, Config(num_steps=5), resume=False)
    assert (out / "ckpt.pt").read_bytes() == b"weights"
    assert steps_written() == 4
    prepare_out(out, Config(num_steps=4), resume=True)
    began = "--resume: the run in .* began with other flags: --num-steps 4$"
    with pytest.raises(UserError, match=began):
        prepare_out(out, Config(num_steps=6), resume=True)
    assert steps_written() == 4
    (out / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged"):
        prepare_out(out, Config(num_steps=4), resume=True)
    assert (out / "config.json").read_text() == "{"
    assert (out / "ckpt.pt").read_bytes() == b"weights"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        prepare_out(tmp_path / "file", Config(), resume=False)

"""Flags, seeds, metrics, checkpoints: what users touch, and what a kill must not break."""

import json
import os
import signal
import sys
import threading
from dataclasses import dataclass

import pytest
import torch
from conftest import make_tiny
from torch import nn

import sample
import train_grpo
import train_sft
from nanoreason import checkpoint
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import (
    autocast,
    choose_bf16,
    generator,
    Machine,
    run_script,
    seed_for,
    start_machine,
)
from nanoreason.run import Interrupt, Metrics, prepare_out, read_metrics, StepBar, write_json


@dataclass
class Config:
    question: str = flag("", "a question of 100% sense")
    num_steps: int = flag(10, "steps", low=1, high=1000)
    clip_ratio: float = flag(0.2, "epsilon", low=0, high=1)
    temperature: float = flag(1.0, "temperature", low=0.01)
    kind: str = flag("a", "kind", choices=("a", "b"))
    quick: bool = flag(False, "be quick")


PRESETS = {"laptop": {}, "gpu": dict(num_steps=500, kind="b", quick=True)}


def parsed(text, **kwargs):
    return parse_config(Config, text.split(), **kwargs)


def test_fields_become_kebab_case_flags_of_their_type():
    config = parsed("--num-steps 7 --clip-ratio 0.5 --kind b --quick")
    assert config == Config(num_steps=7, clip_ratio=0.5, kind="b", quick=True) and type(config.num_steps) is int
    assert parsed("") == Config() and parsed("--no-quick") == Config() and parsed("--clip-ratio=1") == Config(clip_ratio=1.0)
    assert parse_config(Config, ["What is 1 + 1?", "--quick"], positional="question") == Config(question="What is 1 + 1?", quick=True)


@pytest.mark.parametrize("text", ["--steps 3", "--num_steps 3", "--num-step 3", "--num-steps", "--num-steps x", "--num-steps 1.5", "--num-steps 0",
                                  "--num-steps 1001", "--clip-ratio 1.1", "--clip-ratio -0.1", "--clip-ratio nan", "--clip-ratio inf", "--temperature 0",
                                  "--temperature nan", "--kind c", "stray", "--quick yes", "--preset gpu"])
def test_what_cannot_be_right_is_a_user_error(text):
    with pytest.raises(UserError):
        parsed(text)


def test_errors_name_the_flag_and_its_limits():
    with pytest.raises(UserError, match="--num-steps is 0; it must be at least 1 and at most 1000"):
        parsed("--num-steps 0")
    with pytest.raises(UserError, match="--kind"):
        parsed("--kind c")


def test_flags_win_over_the_preset_wherever_they_stand():
    assert parsed("--preset gpu", presets=PRESETS) == Config(num_steps=500, kind="b", quick=True)
    assert parsed("--num-steps 3 --preset gpu --no-quick", presets=PRESETS) == Config(num_steps=3, kind="b", quick=False)
    assert parsed("--preset gpu --num-steps 10", presets=PRESETS).num_steps == 10  # the default's own value, given on purpose
    with pytest.raises(UserError):
        parsed("--preset moon", presets=PRESETS)


BRINGS = {"kind": {"a": dict(num_steps=11, clip_ratio=0.1), "b": dict(num_steps=22)}, "quick": {True: dict(temperature=2.0), False: {}}}


def test_a_choice_brings_its_values_and_flags_win_over_them_wherever_they_stand():
    assert parsed("--kind b", brings=BRINGS) == Config(kind="b", num_steps=22)
    assert parsed("--kind a", brings=BRINGS) == Config(kind="a", num_steps=11, clip_ratio=0.1)  # the default, chosen on purpose
    assert parsed("", brings=BRINGS) == Config()  # not chosen: nothing comes with it
    assert parsed("--kind a --num-steps 3", brings=BRINGS) == parsed("--num-steps 3 --kind a", brings=BRINGS) == Config(kind="a", num_steps=3, clip_ratio=0.1)
    assert parsed("--kind a --num-steps 10", brings=BRINGS).num_steps == 10  # the default's own value, given on purpose
    assert parsed("--quick --kind b", brings=BRINGS) == Config(quick=True, kind="b", num_steps=22, temperature=2.0)
    assert parsed("--kind a", brings={}) == parsed("--kind a", brings=None) == Config()


def test_what_a_choice_brings_wins_over_the_preset_whose_own_choice_brings_nothing():
    presets = {"gpu": dict(num_steps=500, clip_ratio=0.9), "chooser": dict(kind="b")}
    both = dict(presets=presets, brings=BRINGS)
    assert parsed("--preset gpu", **both) == Config(num_steps=500, clip_ratio=0.9)
    assert parsed("--preset gpu --kind b", **both) == Config(kind="b", num_steps=22, clip_ratio=0.9)
    assert parsed("--kind a --preset gpu", **both) == Config(kind="a", num_steps=11, clip_ratio=0.1)
    assert parsed("--preset gpu --kind a --clip-ratio 0.3", **both) == Config(kind="a", num_steps=11, clip_ratio=0.3)
    assert parsed("--preset chooser", **both) == Config(kind="b") and parsed("--preset chooser --kind b", **both) == Config(kind="b", num_steps=22)


def test_what_a_choice_brings_is_held_against_the_limits():
    with pytest.raises(UserError, match="--num-steps is 0"):
        parsed("--kind b", brings={"kind": {"a": {}, "b": dict(num_steps=0)}})


def test_each_loss_brings_its_papers_advantage_and_clip():
    parse = lambda text: parse_config(train_grpo.Config, text.split(), presets=train_grpo.PRESETS, brings={"loss": train_grpo.PAPERS})
    read = lambda text: [getattr(parse(text), name) for name in ("loss", "advantage", "clip_ratio", "clip_high")]
    assert [read(f"--loss {loss}") for loss in ("grpo", "dr-grpo", "dapo", "gspo", "cispo")] == [
        ["grpo", "mean-std", 0.2, -1.0], ["dr-grpo", "mean", 0.2, -1.0], ["dapo", "mean-std", 0.2, 0.28], ["gspo", "mean-std", 3e-4, 4e-4], ["cispo", "mean-std", 0.0, 4.0]]
    assert read("") == ["grpo", "mean-std", 0.2, -1.0] and read("--clip-ratio 0") == ["grpo", "mean-std", 0.0, -1.0]
    assert read("--loss dapo --clip-high 0.5 --advantage mean") == ["dapo", "mean", 0.2, 0.5]
    assert read("--preset deepseek-r1 --loss gspo") == ["gspo", "mean-std", 3e-4, 4e-4] and parse("--preset deepseek-r1 --loss gspo").learning_rate == 1e-6


@pytest.mark.parametrize("script", [train_sft, train_grpo, sample])
def test_every_script_has_help_and_defaults_and_presets_that_pass_their_own_limits(script, capsys):
    presets = getattr(script, "PRESETS", None)
    for name in presets or ():
        parse_config(script.Config, ["--preset", name], presets=presets)
        assert set(presets[name]) <= set(script.Config.__dataclass_fields__)
    parse_config(script.Config, [])
    with pytest.raises(SystemExit) as stop:
        parse_config(script.Config, ["--help"], presets=presets, doc=script.__doc__)
    assert stop.value.code == 0 and "--device" in capsys.readouterr().out


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
    before, machine = signal.getsignal(signal.SIGINT), Machine(torch.device("cpu"))

    def script():
        interrupt = Interrupt()
        assert not interrupt.agreed(machine)
        signal.raise_signal(signal.SIGINT)
        assert interrupt.agreed(machine)
        interrupt.leave(7, machine)

    try:
        with pytest.raises(SystemExit) as stop:
            run_script(script)
        assert stop.value.code == 130 and signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, before)
    shown = capsys.readouterr()
    assert shown.out == "stopped after step 7 and saved; continue with --resume\n" and shown.err == ""


def test_outside_the_main_thread_ctrl_c_is_left_alone():
    before, made = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: made.append(Interrupt()) or made[0].close())
    thread.start()
    thread.join()
    assert len(made) == 1 and not made[0].agreed(Machine(torch.device("cpu"))) and signal.getsignal(signal.SIGINT) == before


class Clock:
    """time.time, set by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("nanoreason.run.time.time", lambda: self.now)


def test_progress_is_a_line_every_ten_seconds_and_at_the_end_where_there_is_no_terminal(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    bar = StepBar(42, "rl", Machine(torch.device("cpu")), first=3)
    for step in range(3, 42):
        clock.now += 3.0
        bar.show(step, f"at {step}")
    bar.close()
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines.pop(1) == "39 steps of 3.00 s: about 1.9 minutes here"  # once, from the first three steps
    spoken = [int(line.split()[1].split("/")[0]) for line in lines]
    assert spoken == [3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 41] and shown.err == ""  # the first, then 12 s apart, the last
    assert lines[1] == "  step     7/42  at 7  15s" and bar.seconds == 39 * 3


def test_progress_is_a_bar_on_a_terminal_and_nothing_on_other_ranks(capsys, monkeypatch):
    Clock(monkeypatch)
    for tty, rank in ((True, 0), (True, 1), (False, 1)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda tty=tty: tty)
        bar = StepBar(2, "rl", Machine(torch.device("cpu"), rank, 1))
        for step in range(2):
            bar.show(step, "solved 0.5")
        bar.close()
        shown = capsys.readouterr()
        assert shown.out == "" and bool(shown.err) == (tty and rank == 0) and ("solved 0.5" in shown.err) == (tty and rank == 0)


# Seeds


def test_neighbouring_seeds_and_purposes_share_nothing():
    seeds = {seed_for(seed, purpose, step, rank) for seed in range(12) for purpose in ("rollout", "questions") for step in range(12) for rank in range(8)}
    assert len(seeds) == 12 * 2 * 12 * 8 and all(0 <= s < 2**63 for s in seeds)
    differing = [bin(seed_for(s, "a") ^ seed_for(s + 1, "a")).count("1") for s in range(200)]
    assert 28 < sum(differing) / 200 < 35  # of 63 bits, half
    assert seed_for(1, "a", 23) != seed_for(1, "a", 2, 3) != seed_for(12, "a", 3) and seed_for(1, "2") != seed_for(1, 2)
    assert seed_for(0, "weights") == SEED_OF_WEIGHTS  # the same in every process, for ever


SEED_OF_WEIGHTS = 5087778715007104936


def test_generators_of_neighbours_are_uncorrelated_and_repeatable():
    a, b, again = (torch.randn(4000, generator=generator(seed, "x")) for seed in (0, 1, 0))
    assert torch.equal(a, again) and abs((a * b).mean()) < 0.06 and abs((a[1:] * b[:-1]).mean()) < 0.06


# Machine


def test_one_machine_sums_nothing_and_unknown_devices_are_user_errors(monkeypatch):
    machine = start_machine("cpu")
    assert machine == Machine(torch.device("cpu"), 0, 1) and machine.main and machine.total(torch.tensor(3)) == 3.0
    if not torch.cuda.is_available():
        with pytest.raises(UserError):
            start_machine("cuda")
    assert choose_bf16("fp32", torch.device("cpu")) is False and choose_bf16("bf16", torch.device("cpu")) is True
    a = torch.ones(2, 2)
    with autocast(torch.device("cpu"), True):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), False):
        assert (a @ a).dtype == torch.float32


def test_the_sum_over_one_rank_is_the_tensor_itself():
    machine = Machine(torch.device("cpu"))
    for tensor in (torch.tensor([1.5, -2.0, 0.0]), torch.tensor([3, 4]), torch.zeros(0)):
        kept = tensor.clone()
        assert torch.equal(machine.sum(tensor), kept) and machine.sum(tensor).dtype == kept.dtype and torch.equal(tensor, kept)


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
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4] and [row["loss"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1, 9], rel=1e-5)
    Metrics(path)
    assert read_metrics(path) == [] and read_metrics(tmp_path / "none") == []


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
    out = prepare_out(tmp_path / "deep" / "run", Config(num_steps=3), resume=False)
    assert json.loads((out / "config.json").read_text())["num_steps"] == 3
    prepare_out(out, Config(num_steps=4), resume=False)  # no checkpoint yet: nothing to lose
    (out / "ckpt.pt").write_bytes(b"weights")
    with pytest.raises(UserError):
        prepare_out(out, Config(num_steps=5), resume=False)
    assert (out / "ckpt.pt").read_bytes() == b"weights" and json.loads((out / "config.json").read_text())["num_steps"] == 4
    prepare_out(out, Config(num_steps=4), resume=True)
    with pytest.raises(UserError, match="--resume: the run in .* began with other flags: --num-steps 4$"):
        prepare_out(out, Config(num_steps=6), resume=True)
    assert json.loads((out / "config.json").read_text())["num_steps"] == 4
    (out / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged"):
        prepare_out(out, Config(num_steps=4), resume=True)
    assert (out / "config.json").read_text() == "{" and (out / "ckpt.pt").read_bytes() == b"weights"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        prepare_out(tmp_path / "file", Config(), resume=False)


# Checkpoints


def test_a_checkpoint_brings_back_model_optimizer_and_numbers(tmp_path):
    model = make_tiny()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path / "ckpt.pt", model, step=7, optimizer=optimizer.state_dict())
    state = checkpoint.load(tmp_path)  # a run folder stands for its ckpt.pt
    loaded = checkpoint.load_model(tmp_path / "ckpt.pt")
    assert state["step"] == 7 and loaded.config == model.config and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True))
    assert loaded.head.weight is loaded.embed.weight  # still tied
    other = torch.optim.AdamW(loaded.parameters(), 1e-3)
    other.load_state_dict(state["optimizer"])
    assert torch.equal(other.state[next(loaded.parameters())]["exp_avg"], optimizer.state[next(model.parameters())]["exp_avg"])


def test_a_run_folder_stands_for_its_best_checkpoint_and_without_one_for_its_latest(tmp_path):
    last, best = make_tiny(seed=1), make_tiny(seed=2)
    checkpoint.save(tmp_path / "ckpt.pt", last, step=9)
    same = lambda path, model: all(torch.equal(a, b) for a, b in zip(checkpoint.load_model(path).parameters(), model.parameters(), strict=True))
    assert same(tmp_path, last) and checkpoint.load(tmp_path)["step"] == 9
    checkpoint.save(tmp_path / "best.pt", best, step=4)
    assert same(tmp_path, best) and same(str(tmp_path), best) and checkpoint.load(tmp_path)["step"] == 4
    assert same(tmp_path / "ckpt.pt", last) and same(tmp_path / "best.pt", best)  # a file stands for itself
    (tmp_path / "ckpt.pt").unlink()
    assert same(tmp_path, best)
    (tmp_path / "best.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="best.pt is damaged"):
        checkpoint.load(tmp_path)


def test_wrappers_leave_no_trace_in_the_file(tmp_path):
    class DDP(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    class Compiled(nn.Module):
        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

        def __getattr__(self, name):  # as torch.compile's wrapper does
            return self._modules["_orig_mod"] if name == "_orig_mod" else getattr(self._modules["_orig_mod"], name)

    model = make_tiny()
    for wrapped in (model, DDP(model), Compiled(model), Compiled(DDP(model)), DDP(Compiled(model))):
        checkpoint.save(tmp_path / "ckpt.pt", wrapped)
        assert set(checkpoint.load(tmp_path)["weights"]) == set(model.state_dict())


def foreign_files(good):
    yield "empty", b""
    yield "text", b"not a checkpoint\n"
    yield "json", b'{"format": "nanoreason-1"}'
    yield "cut", good[: len(good) // 2]
    yield "almost whole", good[:-30]
    yield "headless", good[100:]
    yield "zip of nothing", b"PK\x05\x06" + b"\0" * 18
    yield "stop of an empty pickle", b"."
    yield "pickle that runs code", b"cos\nsystem\n(S'exit 3'\ntR."
    yield "pickle that pops nothing", b"\x80\x02\x85."


@pytest.mark.parametrize("name", [name for name, _ in foreign_files(b"")])
def test_a_damaged_or_foreign_file_is_a_user_error(tmp_path, name):
    checkpoint.save(tmp_path / "good.pt", make_tiny())
    path = tmp_path / "ckpt.pt"
    path.write_bytes(dict(foreign_files((tmp_path / "good.pt").read_bytes()))[name])
    with pytest.raises(UserError, match="ckpt.pt"):
        checkpoint.load(path)


FOREIGN = {"weights only": lambda good: {"weights": good["weights"]}, "list": lambda good: [1, 2], "tensor": lambda good: torch.zeros(3),
           "whole module": lambda good: make_tiny(), "another format": lambda good: good | {"format": "nanoreason-0"},
           "another tokenizer": lambda good: good | {"vocabulary": "another"},
           "no tokenizer": lambda good: {k: v for k, v in good.items() if k != "vocabulary"}}


@pytest.mark.parametrize("name", FOREIGN)
def test_torch_files_that_are_no_checkpoints_are_user_errors(tmp_path, name):
    good = checkpoint.load(_saved(tmp_path / "good.pt"))
    torch.save(FOREIGN[name](good), tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="ckpt.pt"):
        checkpoint.load(tmp_path)


def test_a_missing_checkpoint_is_a_user_error(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path / "none" / "deeper", tmp_path):
        with pytest.raises(UserError, match="no checkpoint at"):
            checkpoint.load(path)


def _saved(path):
    checkpoint.save(path, make_tiny(), step=1)
    return path


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = _saved(tmp_path / "ckpt.pt")
    before = path.read_bytes()

    def killed(value, target):
        with open(target, "wb") as f:
            f.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, make_tiny(seed=1), step=2)
    assert path.read_bytes() == before and checkpoint.load(path)["step"] == 1
    monkeypatch.undo()
    checkpoint.save(path, make_tiny(seed=1), step=2)  # the scratch file of the killed save is no obstacle
    assert checkpoint.load(path)["step"] == 2 and os.listdir(tmp_path) == ["ckpt.pt"]


def test_precision_is_what_was_asked_or_what_the_run_began_with(monkeypatch):
    machine = Machine(torch.device("cpu"))
    for pays in (True, False):
        monkeypatch.setattr("nanoreason.machine.bf16_pays", lambda device: pays)
        assert choose_bf16("auto", machine) == pays
        assert choose_bf16("auto", machine, began=not pays) == (not pays)  # a resumed run does not change its mind
        assert choose_bf16("bf16", machine, began=False) and not choose_bf16("fp32", machine, began=True)

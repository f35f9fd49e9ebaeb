"""Checkpoints: what they bring back, foreign and damaged files, and a kill while saving."""

import copy
import errno
import hashlib
import os
import pickle
from contextlib import contextmanager

import pytest
import torch
from conftest import make_stopping, make_tiny, tokenizer, toy_tokenizer
from torch import nn

from nanoreason import checkpoint
from nanoreason.flags import UserError
from nanoreason.generate import generate
from nanoreason.machine import generator
from nanoreason.model import GPT, GPTConfig
from nanoreason.tokenizer import RANKS, Tokenizer


def equal_tensors(one, other):
    """Whether two iterables hold the same tensors, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_checkpoint_brings_back_model_optimizer_and_numbers(tmp_path):
    model = make_tiny()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path / "ckpt.pt", model, step=7, optimizer=optimizer.state_dict())
    state = checkpoint.load(tmp_path)  # a run folder stands for its ckpt.pt
    loaded = checkpoint.load_model(tmp_path / "ckpt.pt")
    assert state["step"] == 7
    assert loaded.config == model.config
    assert not loaded.training
    assert equal_tensors(loaded.state_dict().values(), model.state_dict().values())
    assert loaded.head.weight is loaded.embed.weight  # still tied
    other = torch.optim.AdamW(loaded.parameters(), 1e-3)
    other.load_state_dict(state["optimizer"])
    mean = other.state[next(loaded.parameters())]["exp_avg"]
    assert torch.equal(mean, optimizer.state[next(model.parameters())]["exp_avg"])


def test_a_run_folder_stands_for_its_best_checkpoint_and_without_one_for_its_latest(tmp_path):
    last = make_tiny(seed=1)
    best = make_tiny(seed=2)

    def same(path, model):
        return equal_tensors(checkpoint.load_model(path).parameters(), model.parameters())

    checkpoint.save(tmp_path / "ckpt.pt", last, step=9)
    assert same(tmp_path, last)
    assert checkpoint.load(tmp_path)["step"] == 9
    checkpoint.save(tmp_path / "best.pt", best, step=4)
    assert same(tmp_path, best)
    assert same(str(tmp_path), best)
    assert checkpoint.load(tmp_path)["step"] == 4
    # a file stands for itself
    assert same(tmp_path / "ckpt.pt", last)
    assert same(tmp_path / "best.pt", best)
    (tmp_path / "ckpt.pt").unlink()
    assert same(tmp_path, best)
    (tmp_path / "best.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="best.pt is damaged"):
        checkpoint.load(tmp_path)


class DDP(nn.Module):
    """What DistributedDataParallel does to the names of a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class Compiled(nn.Module):
    """What torch.compile does to them."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def __getattr__(self, name):  # as torch.compile's wrapper does
        inside = self._modules["_orig_mod"]
        return inside if name == "_orig_mod" else getattr(inside, name)


def test_wrappers_leave_no_trace_in_the_file(tmp_path):
    model = make_tiny()
    twice = [Compiled(DDP(model)), DDP(Compiled(model))]
    for wrapped in (model, DDP(model), Compiled(model), *twice):
        checkpoint.save(tmp_path / "ckpt.pt", wrapped)
        assert set(checkpoint.load(tmp_path)["weights"]) == set(model.state_dict())


def foreign_files(good):
    """{name: bytes} of files that are no checkpoints; good: the bytes of one."""
    return {
        "empty": b"",
        "text": b"not a checkpoint\n",
        "json": b'{"format": "nanoreason-1"}',
        "cut": good[: len(good) // 2],
        "almost whole": good[:-30],
        "headless": good[100:],
        "zip of nothing": b"PK\x05\x06" + b"\0" * 18,
        "stop of an empty pickle": b".",
        "pickle that runs code": b"cos\nsystem\n(S'exit 3'\ntR.",
        "pickle that pops nothing": b"\x80\x02\x85.",
    }


@pytest.mark.parametrize("name", foreign_files(b""))
def test_a_damaged_or_foreign_file_is_a_user_error(tmp_path, name):
    checkpoint.save(tmp_path / "good.pt", make_tiny())
    path = tmp_path / "ckpt.pt"
    path.write_bytes(foreign_files((tmp_path / "good.pt").read_bytes())[name])
    with pytest.raises(UserError, match="ckpt.pt"):
        checkpoint.load(path)


def foreign_contents(good):
    """{name: value} of what torch.save can write and is no checkpoint; good: one, as a dict."""
    return {
        "weights only": {"weights": good["weights"]},
        "list": [1, 2],
        "tensor": torch.zeros(3),
        "whole module": make_tiny(),
        "another format": good | {"format": "nanoreason-0"},
        "no tokenizer": {k: v for k, v in good.items() if k != "tokenizer"},
        "a tokenizer that is none": good | {"tokenizer": None},
        "a tokenizer that is text": good | {"tokenizer": "nanoreason-512"},
        "an empty tokenizer": good | {"tokenizer": {}},
        "half a tokenizer": good | {"tokenizer": dict(name="half", pattern=".")},
        "a tokenizer by another key": good | {"tokenizer": dict(vocabulary="another")},
    }


@pytest.mark.parametrize("name", foreign_contents(dict(weights={})))
def test_torch_files_that_are_no_checkpoints_are_user_errors(tmp_path, name):
    good = torch.load(_saved(tmp_path / "good.pt"), weights_only=True)
    torch.save(foreign_contents(good)[name], tmp_path / "ckpt.pt")
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

    def killed(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, make_tiny(seed=1), step=2)
    assert path.read_bytes() == before
    assert checkpoint.load(path)["step"] == 1
    monkeypatch.undo()
    checkpoint.save(path, make_tiny(seed=1), step=2)
    assert checkpoint.load(path)["step"] == 2
    assert os.listdir(tmp_path) == ["ckpt.pt"]


@contextmanager
def files_of_at_most(size):
    """While no file may grow beyond `size` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path, monkeypatch
):
    path = _saved(tmp_path / "ckpt.pt")
    before = path.read_bytes()
    with files_of_at_most(len(before) // 2):
        with pytest.raises(UserError, match="^cannot write .*ckpt.pt: File too large$"):
            checkpoint.save(path, make_tiny(seed=1), step=2)

    def full(value, file):  # torch hides the cause
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672]")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="^cannot write .*ckpt.pt: No space left on device$"):
        checkpoint.save(path, make_tiny(seed=1), step=2)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["ckpt.pt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(value, tmp_path):
    path = _saved(tmp_path / "ckpt.pt")
    before = path.read_bytes()
    model = make_tiny()
    model.blocks[1].attn.out.weight.data[3, 4] = value
    for write in (True, False):  # ranks above 0 write nothing, and end as rank 0 does
        words = r"^blocks.1.attn.out.weight is not finite .* the run has diverged and ends here"
        with pytest.raises(UserError, match=words):
            checkpoint.save(path, model, write)
    assert path.read_bytes() == before
    state = torch.load(path, weights_only=True)
    torch.save(state | dict(weights=model.state_dict()), path)
    with pytest.raises(UserError, match="ckpt.pt: its weights are not finite"):
        checkpoint.load_model(path)


def test_ranks_above_zero_write_no_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "ckpt.pt", make_tiny(), write=False, step=1)
    assert os.listdir(tmp_path) == []


def foreign_models(good):
    """{name: checkpoint} whose shape or weights are not those of this version; good: one that is.
    """
    weights = good["weights"]
    one, *others = weights
    return {
        "a key more in the shape": good | dict(model=good["model"] | dict(window=3)),
        "no shape": {k: v for k, v in good.items() if k != "model"},
        "another shape": good | dict(model=good["model"] | dict(n_layer=1)),
        "a weight less": good | dict(weights={name: weights[name] for name in others}),
        "a weight of another shape": good | dict(weights=weights | {one: torch.zeros(3)}),
        "compiled": good | dict(weights={f"_orig_mod.{k}": v for k, v in weights.items()}),
        "weights that are none": good | dict(weights={one: 3}),
    }


@pytest.mark.parametrize("name", foreign_models(dict(weights={"w": 0}, model={})))
def test_a_model_of_another_version_is_one_line(name, tmp_path):
    good = torch.load(_saved(tmp_path / "good.pt"), weights_only=True)
    torch.save(foreign_models(good)[name], tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="ckpt.pt holds no model of this version: ") as error:
        checkpoint.load_model(tmp_path)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_only_what_a_script_saves_is_continued(tmp_path):
    checkpoint.save(tmp_path / "ckpt.pt", make_tiny(), step=1)
    assert checkpoint.load_run(tmp_path / "ckpt.pt", "step")["step"] == 1
    with pytest.raises(UserError, match="--resume: .*ckpt.pt holds no 'optimizers'"):
        checkpoint.load_run(tmp_path / "ckpt.pt", "step", "optimizers")


def test_the_selected_weights_of_a_run_that_goes_on_are_those_it_has_selected(tmp_path):
    """best.pt is written last: it may be missing, or old, where ckpt.pt is of its very step."""
    due = checkpoint.best_is_due
    assert not due(tmp_path, None, 7)
    assert due(tmp_path, 7, 7)
    with pytest.raises(UserError, match="best.pt is not there, or not of step 4"):
        due(tmp_path, 4, 7)
    checkpoint.save(tmp_path / "best.pt", make_tiny(), selected=4)
    assert not due(tmp_path, 4, 7)
    assert due(tmp_path, 7, 7)
    with pytest.raises(UserError, match="best.pt is not there, or not of step 5"):
        due(tmp_path, 5, 7)


# The tokenizer of a checkpoint


def test_the_tokenizer_travels_with_the_checkpoint(tmp_path):
    toy = toy_tokenizer()
    model = make_stopping(bias=2.0, tokenizer=toy)
    model.head = model.head.__class__(32, toy.vocab_size, bias=False)
    model.head.weight = model.embed.weight  # as a GPT is saved
    checkpoint.save(tmp_path / "ckpt.pt", model)
    loaded = checkpoint.load_model(tmp_path)
    assert checkpoint.load(tmp_path)["tokenizer"] == loaded.tokenizer == toy != tokenizer
    prompt = loaded.tokenizer.render_prompt("What is 12 + 7?")
    both = [generate(m, [prompt], 6, 40, 1.0, generator(0, "toy")) for m in (model, loaded)]
    assert torch.equal(both[0].ids, both[1].ids)
    # and on into the next checkpoint
    checkpoint.save(tmp_path / "next.pt", loaded)
    assert checkpoint.load_model(tmp_path / "next.pt").tokenizer == toy
    state = torch.load(tmp_path / "next.pt", weights_only=True)
    assert "vocabulary" not in state and state["tokenizer"] == toy.describe()


def test_a_model_takes_its_tokenizer_along_into_copies_and_other_processes():
    toy = toy_tokenizer()
    model = make_tiny(tokenizer=toy)
    assert copy.deepcopy(model).tokenizer is toy
    assert pickle.loads(pickle.dumps(model)).tokenizer == toy
    assert GPT(model.config).tokenizer is None
    assert GPT(model.config, toy).tokenizer is toy
    with pytest.raises(ValueError, match="512 ids is too large for a vocabulary of 266"):
        GPT(model.config, tokenizer)
    assert GPT(GPTConfig(vocab_size=300), toy).tokenizer is toy  # ids without a token are allowed


def earlier_version(path, fingerprint):
    """Turn a checkpoint into one of the version that knew a single tokenizer, by fingerprint."""
    state = torch.load(path, weights_only=True)
    del state["tokenizer"]
    torch.save(state | dict(vocabulary=fingerprint), path)


def test_checkpoints_of_the_version_with_one_tokenizer_are_read(tmp_path):
    path = _saved(tmp_path / "ckpt.pt")
    fingerprint = hashlib.sha256(RANKS.read_bytes()).hexdigest()[:16]
    assert fingerprint == tokenizer.fingerprint != toy_tokenizer().fingerprint
    earlier_version(path, fingerprint)
    assert checkpoint.load(path)["tokenizer"] == tokenizer
    assert checkpoint.load_model(path).tokenizer == tokenizer
    for other in (toy_tokenizer().fingerprint, "", None, 3):
        path = _saved(tmp_path / "ckpt.pt")
        earlier_version(path, other)
        with pytest.raises(UserError, match="ckpt.pt was trained with another tokenizer"):
            checkpoint.load(path)


def test_models_that_read_the_same_ids_must_have_the_same_tokenizer():
    toy = toy_tokenizer()
    same = {"--init": tokenizer, "--reward-model": Tokenizer.from_description(tokenizer.describe())}
    checkpoint.check_tokenizers(same)
    checkpoint.check_tokenizers({"--init": toy})
    with pytest.raises(UserError, match="--init and --student have different tokenizers"):
        checkpoint.check_tokenizers(same | {"--student": toy})

"""Checkpoints: complete, atomic, and safe to open.

A checkpoint is a dict of tensors and plain values, read with weights_only=True so that no file can
run code: format, vocabulary fingerprint, model config, weights, and whatever a script needs to
continue (optimizer, RNG, cursor).
"""

import hashlib
import os
import pickle
from pathlib import Path

import torch

from nanoreason.flags import UserError
from nanoreason.model import GPT, GPTConfig
from nanoreason.tokenizer import RANKS

FORMAT = "nanoreason-1"
# what torch.load raises for files of all kinds that are no checkpoints
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError
)


def raw_model(model):
    """The GPT inside DistributedDataParallel and torch.compile wrappers."""
    for wrapper in ("module", "_orig_mod"):
        model = getattr(model, wrapper, model)
    return model


def vocabulary():
    """Fingerprint of the shipped tokenizer: weights trained with another would read nonsense."""
    return hashlib.sha256(RANKS.read_bytes()).hexdigest()[:16]


def save(path, model, **state):
    """Write a checkpoint of `model` and the plain values or tensors in `state`.

    A kill at any moment leaves the old file or the new one, never half of one.
    """
    path = Path(path)
    model = raw_model(model)
    contents = dict(
        format=FORMAT,
        vocabulary=vocabulary(),
        model=model.describe(),
        weights=model.state_dict(),
        **state,
    )
    scratch = path.with_name(path.name + ".tmp")
    torch.save(contents, scratch)
    os.replace(scratch, path)


def load(path, device="cpu"):
    """Read a checkpoint dict, tensors on `device`.

    path: a file, or the folder of a run, which stands for the model that the run selected: best.pt
    where there is one, else ckpt.pt, the latest. Raises UserError for a missing, damaged or
    foreign file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ("best.pt" if (path / "best.pt").is_file() else "ckpt.pt")
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except UNREADABLE:
        raise UserError(f"{path} is damaged or is no checkpoint of this project") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this project (format {FORMAT})")
    if state.get("vocabulary") != vocabulary():
        raise UserError(f"{path} was trained with another tokenizer")
    return state


def build_model(state, device="cpu"):
    """The GPT of a checkpoint dict, on `device`. Raises UserError where it holds a reward model."""
    kind = state.get("verifier")  # of reward models; the key stays, so old files can be read
    if kind:
        raise UserError(
            f"this checkpoint holds a reward model ({kind}), which scores and cannot write"
        )
    model = GPT(GPTConfig(**state["model"]))
    model.load_state_dict(state["weights"])
    return model.to(device)


def load_model(path, device="cpu"):
    """GPT from a checkpoint file or a run folder, in eval mode. Raises UserError."""
    return build_model(load(path, device), device).eval()

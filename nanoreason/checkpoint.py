"""Checkpoints: complete, atomic, and safe to open.

A checkpoint is a dict of tensors and plain values, read with weights_only=True so that no file can
run code: format, tokenizer, model config, weights, and whatever a script needs to continue
(optimizer, counters).
"""

import os
import pickle
from pathlib import Path

import torch

from nanoreason.flags import UserError
from nanoreason.model import GPT, GPTConfig
from nanoreason.tokenizer import Tokenizer, shipped_tokenizer

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


def save(path, model, **state):
    """Write a checkpoint of `model` and the plain values or tensors in `state`.

    A kill at any moment leaves the old file or the new one, never half of one. Raises UserError,
    and keeps the old file, where weights are no finite numbers, and where the file cannot be
    written: for instance because the disk is full.
    """
    path = Path(path)
    model = raw_model(model)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(f"{name} is not finite any more, the run has diverged and ends here; "
                            f"{path} keeps its last good weights. A lower learning rate helps")
    contents = dict(
        format=FORMAT,
        tokenizer=model.tokenizer.describe(),
        model=model.describe(),
        weights=model.state_dict(),
        **state,
    )
    scratch = path.with_name(path.name + ".tmp")
    try:
        torch.save(contents, scratch)
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's word for a full disk
        scratch.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {why}") from None


def load(path, device="cpu"):
    """Read a checkpoint dict, tensors on `device`; its "tokenizer" is a Tokenizer.

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
    state["tokenizer"] = read_tokenizer(state, path)
    return state


def read_tokenizer(state, path):
    """The Tokenizer of a checkpoint dict. Raises UserError where it is damaged or not known."""
    if "tokenizer" not in state:  # an earlier version kept a fingerprint of the only one there was
        if state.get("vocabulary") != shipped_tokenizer().fingerprint:
            raise UserError(f"{path} was trained with another tokenizer")
        return shipped_tokenizer()
    try:
        return Tokenizer.from_description(state["tokenizer"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_tokenizers(tokenizers):
    """UserError where models that read the same ids have different tokenizers.

    tokenizers: {flag that names the model: its Tokenizer}.
    """
    (first, tokenizer), *others = tokenizers.items()
    for name, other in others:
        if other != tokenizer:
            raise UserError(
                f"{first} and {name} have different tokenizers: the same ids mean different text"
            )


def build_model(state, device="cpu"):
    """The GPT of a checkpoint dict, on `device`. Raises UserError where it holds a reward model."""
    kind = state.get("verifier")  # of reward models; the key stays, so old files can be read
    if kind:
        raise UserError(
            f"this checkpoint holds a reward model ({kind}), which scores and cannot write"
        )
    model = GPT(GPTConfig(**state["model"]), state["tokenizer"])
    model.load_state_dict(state["weights"])
    return model.to(device)


def load_model(path, device="cpu"):
    """GPT from a checkpoint file or a run folder, in eval mode. Raises UserError."""
    return build_model(load(path, device), device).eval()

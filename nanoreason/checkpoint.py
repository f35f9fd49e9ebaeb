"""Checkpoints: complete, atomic, and safe to open.

A checkpoint is a dict of tensors and plain values, read with weights_only=True so that no file can
run code: format, tokenizer, model config, weights, and whatever a script needs to continue
(optimizer, counters).
"""

import io
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import torch

from nanoreason import pretrained
from nanoreason.flags import UserError
from nanoreason.model import GPT, GPTConfig
from nanoreason.run import whole_file
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


def save(path, model, write=True, **state):
    """Write a checkpoint of `model` and the plain values or tensors in `state`.

    A kill at any moment leaves the old file or the new one, never half of one. Raises UserError,
    and keeps the old file, where weights are no finite numbers, and where the file cannot be
    written: for instance because the disk is full. write: False on ranks above 0, which only look
    at the weights, so that all ranks end where these have diverged.
    """
    model = raw_model(model)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(f"{name} is not finite any more, the run has diverged and ends here; "
                            f"{path} is not written. Lower learning rates help")
    if not write:
        return
    contents = dict(
        format=FORMAT,
        tokenizer=model.tokenizer.describe(),
        model=model.describe(),
        weights=model.state_dict(),
        **state,
    )
    with whole_file(path) as scratch, open(scratch, "wb") as f:
        try:
            torch.save(contents, f)
        except RuntimeError as error:  # torch's own, for instance behind a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error


def file_of(path):
    """The checkpoint file that `path` stands for: a file, the folder of a run, or the name of a
    shipped model, pretrained:NAME; "" for "".

    A folder stands for the model that the run selected: best.pt where there is one, else ckpt.pt,
    the latest. Raises UserError for a name that no shipped model has.
    """
    if str(path).startswith(pretrained.PREFIX):
        return pretrained.file_of(str(path))
    if not path or not os.path.isdir(path):
        return path
    best = Path(path) / "best.pt"
    return best if os.path.isfile(best) else Path(path) / "ckpt.pt"


def load(path, device="cpu"):
    """Read a checkpoint dict, tensors on `device`; its "tokenizer" is a Tokenizer.

    path: a file, the folder of a run, or the name of a shipped model (`file_of`), whose file must
    be the one that was shipped. Raises UserError for a missing, damaged or foreign file.
    """
    path = Path(file_of(path))
    file = path
    real = Path(os.path.realpath(path))  # a link may lead to a shipped model, or stand for one
    if pretrained.FOLDER in (real.parent, Path(os.path.realpath(path.parent))):
        shipped = real if real.parent == pretrained.FOLDER else path
        file = io.BytesIO(pretrained.read_checked(shipped))  # what was checked is what is loaded
    elif not os.path.isfile(path):
        where = f"no checkpoint at {path}"
        if str(path) in pretrained.MODELS:
            where += f"; the model that ships is {pretrained.PREFIX}{path}"
        raise UserError(where)
    try:
        state = torch.load(file, map_location=device, weights_only=True)
    except UNREADABLE:
        raise UserError(f"{path} is damaged or is no checkpoint of this project") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this project (format {FORMAT})")
    state["tokenizer"] = read_tokenizer(state, path)
    state["path"] = str(path)
    return state


def load_run(path, *names):
    """Read the checkpoint that --resume goes on from. Raises UserError where it lacks one of
    `names`, values that the script saves: then it is another script's."""
    state = load(path)
    for name in names:
        if name not in state:
            raise UserError(f"--resume: {path} holds no {name!r}: it is not what this script saves")
    return state


def best_is_due(out, chosen, step):
    """Whether best.pt has yet to be written, as a run was killed after it had saved ckpt.pt.

    chosen: step whose weights the run has selected, None for none; step: that of ckpt.pt in `out`.
    best.pt is written after ckpt.pt, of the same step, so best.pt is never newer than ckpt.pt.
    Raises UserError where it is gone, or is not of the step that was selected.
    """
    if chosen is None:
        return False
    path = Path(out) / "best.pt"
    found = load(path).get("selected", chosen) if path.exists() else None
    if found == chosen:
        return False
    if chosen != step:
        raise UserError(f"--resume: {path} is not there, or not of step {chosen}, whose weights "
                        "the run has selected; choose another --out")
    return True


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
    with readable(state):
        model = GPT(GPTConfig(**state["model"]), state["tokenizer"])
        model.load_state_dict(state["weights"])
    return model.to(device)


@contextmanager
def readable(state):
    """While a model is made of a checkpoint dict. Raises UserError where its weights are no finite
    numbers, and where shape or weights are not those of a model of this version."""
    try:
        if not all(weight.isfinite().all() for weight in state["weights"].values()):
            raise UserError(f"{state['path']}: its weights are not finite; the run that made it "
                            "had diverged")
        yield
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{state['path']} holds no model of this version: {why}") from None


def load_model(path, device="cpu"):
    """GPT from a checkpoint file, a run folder or pretrained:NAME, in eval mode. Raises
    UserError."""
    return build_model(load(path, device), device).eval()

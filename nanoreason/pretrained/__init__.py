"""The models that ship with the code: small checkpoints, each with its tokenizer and config.

`pretrained:r1` stands for one of MODELS wherever a checkpoint is asked for: --ckpt, --init,
--reward-model, --teacher, --student. MODEL_CARD.md says how they were made and how good they are;
hashes.json, {file: {"sha256", "bytes"}}, says what each file must hold, and a file that holds
anything else is not read. `python -m nanoreason.pretrained` makes all of it from a run of the
speedrun.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from nanoreason.flags import UserError
from nanoreason.run import cannot_read, read_json

FOLDER = Path(__file__).resolve().parent
PREFIX = "pretrained:"


class Shipped(NamedTuple):
    """A model: the folder that it comes from in a run of the speedrun, the name of the model that
    its training began with ("" for random weights, and for reward models), and what it is."""

    folder: str
    began: str
    note: str


MODELS = {
    "base": Shipped(
        "base", "", "the base model, from random weights; most of its text answers at once"),
    "r1-zero": Shipped("zero", "base", "R1-Zero: GRPO straight on the base"),
    "cold": Shipped(
        "cold", "base", "the cold start: supervised on demonstrations that reason"),
    "r1": Shipped("rl", "cold", "R1: GRPO on the cold start"),
    "final": Shipped(
        "final", "base",
        "the final model: the base again, on R1's right solutions, general and safety data"),
    "orm": Shipped("orm", "", "outcome reward model of the cold start's answers"),
    "prm": Shipped("prm", "", "process reward model of its steps"),
    "student": Shipped("student/student", "", "a smaller model, distilled from R1"),
}
DEFAULT = f"{PREFIX}final"  # what answers where no checkpoint is named


def file_of(name):
    """The file of a shipped model, whether it is there or not. name: 'pretrained:r1'. Raises
    UserError for a name that none has."""
    model = name.removeprefix(PREFIX)
    if model not in MODELS:
        raise UserError(f"{name}: there is no shipped model {model!r}; there are "
                        f"{', '.join(MODELS)}")
    return FOLDER / f"{model}.pt"


def is_shipped():
    """Whether this checkout has the models."""
    return os.path.exists(FOLDER / "hashes.json")


def read_checked(path):
    """The bytes of a file of FOLDER. Raises UserError unless they are what hashes.json says."""
    if not is_shipped():
        raise UserError(f"no checkpoint at {path}: this checkout ships no models "
                        f"({FOLDER / 'hashes.json'} is missing)")
    wanted = read_json(FOLDER / "hashes.json").get(path.name)
    if wanted is None:
        raise UserError(f"{path} is no shipped model: hashes.json does not name it")
    if not os.path.isfile(path):
        raise UserError(f"no checkpoint at {path}, which hashes.json names; check it out again")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from None
    if describe(data) != wanted:
        raise UserError(f"{path} is damaged: it is not the file that hashes.json names; check it "
                        "out again")
    return data


def describe(data):
    """{"sha256", "bytes"} of the bytes of a file, an entry of hashes.json."""
    return dict(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

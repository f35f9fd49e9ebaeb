"""The models that ship with the code: small checkpoints, each with its tokenizer and config.

    base      the base model; most of its text answers at once
    r1-zero   reinforcement learning straight on the base
    cold      the cold start: supervised on demonstrations that reason
    r1        reinforcement learning on the cold start
    final     from the base again, on R1's right solutions, general and safety data
    orm, prm  reward models of the cold start's answers, and of its steps
    student   a smaller model, distilled from R1

`pretrained:r1` stands for one of them wherever a checkpoint is asked for: --ckpt, --init,
--reward-model, --teacher. MODEL_CARD.md says how they were made and how good they are; hashes.json
says what each file must hold, and a file that holds anything else is not read.
`python -m nanoreason.pretrained` makes all of it from a run of the speedrun.
"""

import hashlib
from pathlib import Path

from nanoreason.flags import UserError
from nanoreason.run import cannot_read, read_json

FOLDER = Path(__file__).resolve().parent
PREFIX = "pretrained:"
# {name: folder in a run of the speedrun that its weights come from}
MODELS = {
    "base": "base",
    "r1-zero": "zero",
    "cold": "cold",
    "r1": "rl",
    "final": "final",
    "orm": "orm",
    "prm": "prm",
    "student": "student/student",
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
    return (FOLDER / "hashes.json").exists()


def check_file(path):
    """Raise UserError unless a file of FOLDER is there and holds what hashes.json says."""
    if not is_shipped():
        raise UserError(f"no checkpoint at {path}: this checkout ships no models "
                        f"({FOLDER / 'hashes.json'} is missing)")
    wanted = read_json(FOLDER / "hashes.json").get(path.name)
    if wanted is None:
        raise UserError(f"{path} is no shipped model: hashes.json does not name it")
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}, which hashes.json names; check it out again")
    if describe(path) != wanted:
        raise UserError(f"{path} is damaged: it is not the file that hashes.json names; check it "
                        "out again")


def describe(path):
    """{"sha256", "bytes"} of a file, an entry of hashes.json. Raises UserError."""
    try:
        with open(path, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
            return dict(sha256=digest, bytes=f.tell())
    except OSError as error:
        raise cannot_read(path, error) from None

"""Command-line flags from a dataclass, and mistakes that a user can put right."""

import argparse
import dataclasses
import math
import os
import re
import sys
import tempfile
from pathlib import Path

RATE_LIMIT = 1e36  # of learning rates: a step with larger ones overflows float32


class UserError(Exception):
    """Something that the user can put right.

    Scripts print it as one line on stderr and exit with status 2 (machine.run_script).
    """


def flag(default, help, choices=None, low=None, high=None):
    """A dataclass field that is also a command-line flag.

    help: its sentence in --help; choices: the values it may have; low and high: the limits of a
    number, both included. The type of `default` is the type of the flag.
    """
    meta = dict(help=help, choices=choices, low=low, high=high)
    return dataclasses.field(default=default, metadata=meta)


RENAMED = {  # {flag of an earlier version: what it is called now}
    "--verifier": "--reward-model",
    "--verifiers": "--reward-models",
    "--verifier-questions": "--reward-model-questions",
    "--verifier-epochs": "--reward-model-epochs",
}


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a UserError; its own way prints the usage, many lines."""

    def error(self, message):
        raise UserError(message)


def parse_config(cls, argv=None, presets=None, brings=None, doc="", positional=None):
    """Flags -> config. Every field of dataclass `cls` is a --kebab-case flag.

    argv: list of words, by default those of the command line.
    presets: {name: {field: value}}, chosen by --preset.
    brings: {field: {value: {other field: value}}}, what a choice on the command line changes
    besides itself. Where they disagree, a flag wins over `brings`, and `brings` over the preset.
    doc: the text above the flags in --help. positional: the field that is given without a flag.

    Raises UserError for an unknown or renamed flag, and for a value of the wrong type, outside
    `choices` or outside [low, high]; NaN and infinity are outside of all limits.
    """
    argv = sys.argv[1:] if argv is None else argv
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(description=doc, formatter_class=layout, allow_abbrev=False)
    if presets:
        explained = "a set of defaults for a kind of machine; flags win over it"
        parser.add_argument("--preset", choices=list(presets), help=explained)
    for field in dataclasses.fields(cls):
        _add_flag(parser, field, positional)
    _refuse_old_names(argv)
    given = vars(parser.parse_args(_mark_values(argv, _switches(cls), positional)))
    for name, value in given.items():
        if isinstance(value, str):
            given[name] = as_utf8(value) if name == positional else _with_home(value)
    values = {}
    if preset := given.pop("preset", None):
        values |= presets[preset]
    for chooser, table in (brings or {}).items():
        if chooser in given:
            values |= table[given[chooser]]
    config = cls(**{**values, **given})
    _check_limits(config)
    return config


def flag_of(name):
    """The flag of a field: max_steps  ->  --max-steps;  from_, as `from` is a word of Python  ->
    --from"""
    return "--" + name.rstrip("_").replace("_", "-")


def _add_flag(parser, field, positional):
    """Tell argparse of a field. A flag that is not given leaves no value, so presets can win."""
    kind = type(field.default)
    shown = f"{field.metadata['help']} (default: {field.default})"
    options = dict(default=argparse.SUPPRESS, help=shown.replace("%", "%%"))
    if field.name == positional:
        parser.add_argument(field.name, nargs="?", **options)
    elif kind is bool:
        parser.add_argument(flag_of(field.name), action=argparse.BooleanOptionalAction, **options)
    else:
        choices = field.metadata["choices"]
        options |= dict(type=kind, choices=choices, dest=field.name)
        parser.add_argument(flag_of(field.name), **options)


def _switches(cls):
    """The flags of a dataclass that take no value."""
    fields = dataclasses.fields(cls)
    names = [flag_of(field.name) for field in fields if type(field.default) is bool]
    return {*names, *(name.replace("--", "--no-", 1) for name in names)}


def as_utf8(text):
    """Text that a person typed, read as UTF-8 also where the locale is plain ASCII.

    There Python hides each byte that it cannot read in half a character: '5 \\udcc3\\udc97 3' is
    '5 × 3'. Not for the names of files, which it has to find again. Raises UserError.
    """
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeEncodeError:  # characters, and no bytes in disguise
        return text
    except UnicodeDecodeError:
        raise UserError("the question is no text in UTF-8") from None


def _mark_values(argv, switches, positional):
    """The words as argparse should read them: those that begin with a dash and are no flags too.

    switches: flags that take no value; positional: name of a field, or None.

        ["-5+3=?", "--n", "4", "--bias", "-1e-3"]  ->  ["--n", "4", "--bias=-1e-3", "--", "-5+3=?"]
    """
    words = []
    question = []
    for i, word in enumerate(argv):
        if word == "--":
            return words + question + argv[i:]
        if not word.startswith("-") or word == "-h" or re.match("--[a-z]", word):
            words.append(word)
        elif i and re.fullmatch("--[a-z-]+", argv[i - 1]) and argv[i - 1] not in switches:
            words[-1] += "=" + word
        elif positional:
            question += ["--", word]
        else:
            words.append(word)
    return words + question


def _with_home(text):
    """'~/a,~/b' -> '/home/me/a,/home/me/b': no shell expands the tilde in --out=~/a."""
    parts = text.split(",")
    return ",".join(os.path.expanduser(x) if x.startswith("~/") else x for x in parts)


def _refuse_old_names(argv):
    """Raise a UserError that names the new flag where an old one is given."""
    for word in argv:
        old = word.split("=")[0]  # --flag value or --flag=value
        if old in RENAMED:
            raise UserError(f"{old} is called {RENAMED[old]} now")


def _check_limits(config):
    """Raise UserError for a value outside its limits. They also hold for what presets bring."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        low = field.metadata["low"]
        high = field.metadata["high"]
        too_low = low is not None and value < low
        too_high = high is not None and value > high
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag_of(field.name)} is {value}; a finite number is wanted")
        if too_low or too_high:
            limits = []
            if low is not None:
                limits.append(f"at least {low}")
            if high is not None:
                limits.append(f"at most {high}")
            raise UserError(
                f"{flag_of(field.name)} is {value}; it must be {' and '.join(limits)}")


# Values that name several things, and places to write to


def listed(text, name, known=None, what="item"):
    """'percent, chain' -> ['percent', 'chain'], as flag --name gives them.

    Blanks around items do not count. known: the items that there are, and what: one of them, in
    words. Raises UserError for an item that is empty (as behind a last comma), not known, or given
    twice: to measure a family twice counts its problems twice, and no mean is what it says.
    """
    items = [item.strip() for item in text.split(",")]
    for item in items:
        if not item:
            raise UserError(f"--{name} {text!r}: an item is empty; "
                            "items are separated by single commas")
        if known is not None and item not in known:
            raise UserError(f"--{name}: there is no {what} {item!r}; there are {', '.join(known)}")
        if items.count(item) > 1:
            raise UserError(f"--{name} {text}: {item} is given twice")
    return items


def whole_numbers(text, name):
    """'1, 4,16' -> [1, 4, 16], as flag --name gives them; UserError for anything else."""
    try:
        numbers = [int(item) for item in listed(text, name)]
    except ValueError:
        raise UserError(f"--{name} {text}: whole numbers separated by commas are wanted") from None
    if len(set(numbers)) < len(numbers):  # 1 and 01
        raise UserError(f"--{name} {text}: a number is given twice")
    return numbers


def check_output(path, name, folder=False):
    """Raise UserError where what flag --name asks for cannot be written, before work is lost.

    path: a file in a folder that exists, or with `folder` a folder that may have to be made; an
    empty one is not wanted. Nothing is left behind.
    """
    if not path:
        return
    path = Path(path)
    place = path if folder else path.absolute().parent
    while folder and not place.exists() and place != place.parent:
        place = place.parent  # what mkdir(parents=True) would begin from
    if not place.is_dir():
        raise UserError(f"--{name} {path}: " + (
            f"{place} is no folder" if place.exists() else "there is no such folder"))
    if not folder and path.is_dir():
        raise UserError(f"--{name} {path} is a folder; the name of a file is wanted")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"--{name} {path} cannot be written: {error.strerror}") from None

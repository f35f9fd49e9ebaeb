"""Command-line flags from a dataclass, and mistakes that a user can put right."""

import argparse
import dataclasses
import sys


class UserError(Exception):
    """Something the user can put right. Scripts print it as one line on stderr and exit with status 2."""


def flag(default, help, choices=None, low=None, high=None):
    """A dataclass field that is also a command-line flag, with its sentence of help and its limits."""
    return dataclasses.field(default=default, metadata=dict(help=help, choices=choices, low=low, high=high))


RENAMED = {
    "--verifier": "--reward-model",
    "--verifiers": "--reward-models",
    "--verifier-questions": "--reward-model-questions",
    "--verifier-epochs": "--reward-model-epochs",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def parse_config(cls, argv=None, presets=None, brings=None, doc="", positional=None):
    """Flags -> config. Every field of dataclass `cls` is a --kebab-case flag; `positional` names the one that is not.

    presets: {name: {field: value}}, chosen by --preset. brings: {field: {value: {other field: value}}}, what a choice on the command line
    changes besides itself. Where they disagree, flags win over `brings`, and that over the preset.
    Raises UserError for an unknown flag, a value of the wrong type, outside `choices`, or outside [low, high].
    """
    parser = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    if presets:
        parser.add_argument("--preset", choices=list(presets), help="a set of defaults for a kind of machine; flags win over it")
    for field in dataclasses.fields(cls):
        meta, kind = field.metadata, type(field.default)
        shown = f"{meta['help']} (default: {field.default})".replace("%", "%%")
        if field.name == positional:
            parser.add_argument(field.name, nargs="?", default=argparse.SUPPRESS, help=shown)
        elif kind is bool:
            parser.add_argument("--" + field.name.replace("_", "-"), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=shown)
        else:
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, choices=meta["choices"], default=argparse.SUPPRESS, help=shown)
    for word in sys.argv[1:] if argv is None else argv:
        if new := RENAMED.get(word.split("=")[0]):
            raise UserError(f"{word.split('=')[0]} is called {new} now")
    given = vars(parser.parse_args(argv))
    preset = given.pop("preset", None)
    brought = {name: value for chooser, table in (brings or {}).items() if chooser in given for name, value in table[given[chooser]].items()}
    config = cls(**{**(presets[preset] if preset else {}), **brought, **given})
    for field in dataclasses.fields(cls):
        value, low, high = getattr(config, field.name), field.metadata["low"], field.metadata["high"]
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise UserError(f"--{field.name.replace('_', '-')} is {value}; it must be {f'at least {low}' if low is not None else ''}"
                            f"{' and ' if low is not None and high is not None else ''}{f'at most {high}' if high is not None else ''}")
    return config


def whole_numbers(text, name):
    """'1,4,16' -> [1, 4, 16], as flag --name gives them; UserError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--{name} {text}: whole numbers separated by commas are wanted") from None

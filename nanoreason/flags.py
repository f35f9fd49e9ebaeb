"""Command-line flags from a dataclass, and mistakes that a user can put right."""

import argparse
import dataclasses
import sys


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
    `choices` or outside [low, high].
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
    given = vars(parser.parse_args(argv))
    values = {}
    if preset := given.pop("preset", None):
        values |= presets[preset]
    for chooser, table in (brings or {}).items():
        if chooser in given:
            values |= table[given[chooser]]
    config = cls(**{**values, **given})
    _check_limits(config)
    return config


def _flag_of(field):
    return "--" + field.name.replace("_", "-")


def _add_flag(parser, field, positional):
    """Tell argparse of a field. A flag that is not given leaves no value, so presets can win."""
    kind = type(field.default)
    shown = f"{field.metadata['help']} (default: {field.default})"
    options = dict(default=argparse.SUPPRESS, help=shown.replace("%", "%%"))
    if field.name == positional:
        parser.add_argument(field.name, nargs="?", **options)
    elif kind is bool:
        parser.add_argument(_flag_of(field), action=argparse.BooleanOptionalAction, **options)
    else:
        choices = field.metadata["choices"]
        parser.add_argument(_flag_of(field), type=kind, choices=choices, **options)


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
        # `not >=` and not `<`: a NaN is outside of every limit
        too_low = low is not None and not value >= low
        too_high = high is not None and not value <= high
        if too_low or too_high:
            limits = []
            if low is not None:
                limits.append(f"at least {low}")
            if high is not None:
                limits.append(f"at most {high}")
            raise UserError(f"{_flag_of(field)} is {value}; it must be {' and '.join(limits)}")


def whole_numbers(text, name):
    """'1,4,16' -> [1, 4, 16], as flag --name gives them; UserError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--{name} {text}: whole numbers separated by commas are wanted") from None

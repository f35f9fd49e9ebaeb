"""A run and its folder: configuration, metrics, progress, and ways to stop and to continue."""

import dataclasses
import hashlib
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from nanoreason.flags import UserError, check_output, flag_of


def cannot_write(path, error):
    """The UserError of a file that could not be written. error: an OSError, of a full disk perhaps;
    what a run had saved before is whole, and --resume goes on from it."""
    return UserError(f"cannot write {path}: {error.strerror or error}")


def cannot_read(path, error):
    """The UserError of a file that could not be read. error: an OSError."""
    return UserError(f"cannot read {path}: {error.strerror or error}")


@contextmanager
def whole_file(path):
    """A scratch path beside `path`; what is written there becomes `path` at the end, in one move.

    So a reader never sees half a file, and neither a kill, nor a full disk, nor a power failure
    leaves one. Raises UserError where it cannot be written: the old file stays then, and no scratch
    file does.
    """
    path = Path(path)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield scratch
        with open(scratch, "rb+") as f:
            os.fsync(f.fileno())  # a name must not reach the disk before its contents do
        os.replace(scratch, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        try:
            scratch.unlink(missing_ok=True)
        except OSError:  # the folder is gone or read-only: there is no scratch file
            pass


def write_text(path, text):
    """Write a text file so that a reader never sees half of it. Raises UserError."""
    with whole_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write JSON so that a reader never sees half a file. Raises UserError."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path):
    """The dict in a JSON file that a run left. Raises UserError where it is missing or damaged."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise cannot_read(path, error) from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object")
    return value


class Metrics:
    """metrics.jsonl: one JSON object per logged step, floats rounded to six digits.

    resume_step: the first step that this run will log; rows of a killed run from there on are
    dropped, as the steps are made again. write: False on ranks above 0, which log nothing.
    """

    def __init__(self, path, resume_step=0, write=True):
        self.path = Path(path)
        self.write = write
        self.last_seen = None  # (bytes in the file, its last line), as this run left it
        if write:
            before = read_metrics(self.path) if resume_step else []
            kept = [json.dumps(row) + "\n" for row in before if row["step"] < resume_step]
            write_text(self.path, "".join(kept))
            self.last_seen = self.path.stat().st_size, kept[-1].encode() if kept else b""

    def log(self, **row):
        """Append one row; it holds at least `step`. Raises UserError where the disk is full, and
        where another run has written to the file: the run that began later keeps the folder."""
        if not self.write:
            return
        for name, value in row.items():
            if isinstance(value, float):
                row[name] = float(f"{value:.6g}")
        line = json.dumps(row).encode() + b"\n"
        try:
            with open(self.path, "ab+") as f:
                if self._now(f) != self.last_seen:
                    raise UserError(f"{self.path} was changed while this run was writing it: does "
                                    "another run use the same --out? This one ends here")
                f.write(line)
                f.flush()
                self.last_seen = self.last_seen[0] + len(line), line
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def _now(self, f):
        """What `last_seen` would be now: another run changes it when it begins the file anew or
        adds to it. Not the number of the file, which on network folders changes by itself."""
        _, last = self.last_seen
        size = os.fstat(f.fileno()).st_size
        f.seek(max(0, size - len(last)))
        return size, f.read(len(last))


def read_metrics(path):
    """Rows of a metrics.jsonl; [] when there is no such file.

    A last line that was cut short by a kill is left out. Raises UserError for any other line that
    is not JSON.
    """
    if not Path(path).exists():
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise cannot_read(path, error) from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: this is not JSON; the file is damaged "
                                "there") from None
    return rows


def progress(total, desc, machine=None, initial=0):
    """A tqdm bar on a terminal; a silent one elsewhere and on ranks above 0.

    Long runs without a terminal print lines through `say` instead.
    """
    from tqdm import tqdm

    quiet = (machine is not None and not machine.main) or not sys.stderr.isatty()
    return tqdm(
        total=total, desc=desc, initial=initial, disable=quiet, dynamic_ncols=True, leave=False
    )


class StepBar:
    """Progress of a training run from step `first` to step `total`.

    A tqdm bar on a terminal; elsewhere rank 0 prints a line every ten seconds.
    """

    def __init__(self, total, desc, machine, first=0):
        self.bar = progress(total, desc, machine, first)
        self.total = total
        self.machine = machine
        self.first = first
        self.start = time.time()
        self.last_line = 0.0  # when the last line was printed
        self.estimated = False  # whether the duration of the run has been printed

    def show(self, step, text):
        """`step` (from 0) is done; text: its figures in a few words."""
        self.bar.update()
        self.bar.set_postfix_str(text)
        done = step + 1 - self.first
        if not self.estimated and done >= 3 and self.seconds > 3:
            self._print_estimate(done)
        is_last = step == self.total - 1
        if self.bar.disable and (time.time() - self.last_line > 10 or is_last):
            self.last_line = time.time()
            seconds = self.last_line - self.start
            say(f"  step {step:5d}/{self.total}  {text}  {seconds:.0f}s", self.machine)

    def _print_estimate(self, done):
        """Say once how long the run takes, from the time of its first steps."""
        self.estimated = True
        steps = self.total - self.first
        per_step = self.seconds / done
        minutes = per_step * steps / 60
        say(f"{steps} steps of {per_step:.2f} s: about {minutes:.1f} minutes here", self.machine)

    @property
    def seconds(self):
        """Seconds since the bar was made."""
        return time.time() - self.start

    def close(self):
        """Take the bar off the terminal."""
        self.bar.close()


def say(text, machine=None):
    """Print a line at once, on rank 0 only, without tearing a progress bar."""
    if machine is None or machine.main:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


# What a resumed run may do otherwise: where and how long it runs, and how it splits its work. Its
# numbers stay the same up to rounding, but for precision, device and compile.
LENGTHS = {"steps", "max_steps", "token_budget"}
FREE_TO_CHANGE = LENGTHS | {
    "resume",
    "init",
    "out",
    "device",
    "precision",
    "compile",
    "save_every",
    "micro_tokens",
    "gradient_accumulation",
    "checkpoint_activations",
}
# What an earlier run may have left in --out. A new run never begins beside the first kind, which is
# work; the second kind it removes, so that nothing of an earlier run is taken for its own.
WORK = ("ckpt.pt", "best.pt", "report.json", "traces.jsonl", "student", "train.npz")
FIGURES = ("rl.png", "behaviours.png", "reward_model.png")
REMAINS = ("metrics.jsonl", "provenance.json", "val.npz", "test.npz", *FIGURES)


class RunFolder:
    """The folder --out before a run begins there: whether it may, and what it goes on from.

    config: the script's flags. reads: {flag: path of a file that the run reads, "" for none};
    starts_from: the same of files read only while --out has no weights yet, as --init; these are
    --out/`weights_name`. config.json keeps the fingerprints of both.

    weights_path  path of the weights that --resume goes on from; None where it starts from the
                  beginning, as a new run does, or one that was killed before it saved anything
    finished      whether --resume finds that the run has ended, and nothing is left to do

    A run is continued only with --resume, and only with the flags and the files that it began with;
    a file may stand elsewhere. Raises UserError otherwise. Nothing is written before `prepare`.
    """

    def __init__(self, config, reads=None, starts_from=None, weights_name="ckpt.pt"):
        if not config.out:
            raise UserError("--out is empty: which folder?")
        self.out = Path(config.out)
        self.resume = config.resume
        self.config = dataclasses.asdict(config)
        self.weights_path = None
        self.finished = False
        paths = dict(reads or {})
        if config.resume:
            began_config = self._read_began()
            if (self.out / weights_name).exists():
                self.weights_path = self.out / weights_name
        else:
            self._check_free()
        if not self.weights_path:
            paths |= starts_from or {}
        there = {flag: path for flag, path in paths.items() if path and Path(path).is_file()}
        inputs = {flag: file_fingerprint(path) for flag, path in there.items()}
        if config.resume:
            defaults = {field.name: field.default for field in dataclasses.fields(config)}
            inputs = self._check_inputs(defaults | began_config, inputs)
        if not self.finished:
            check_output(config.out, "out", folder=True)
        self.config["inputs"] = inputs

    def _check_inputs(self, began_config, inputs):
        """UserError where the run began with other flags or files; returns {flag: fingerprint}, to
        be kept in config.json. inputs: the same of the files that are there now."""
        before = began_config.get("inputs", {})
        same_files = {flag for flag in inputs if before.get(flag) == inputs[flag]}
        self._check_flags(began_config, same_files)
        by_earlier_version = "inputs" not in began_config
        if by_earlier_version and self.config.get("data") and not self.finished:
            raise UserError(f"--resume: the run in {self.out} was begun by an earlier version, "
                            "which split --data otherwise; choose another --out")
        for flag, fingerprint in inputs.items():
            if before.get(flag, fingerprint) != fingerprint:
                raise UserError(f"--resume: the file of {flag} has changed since the run in "
                                f"{self.out} began; choose another --out")
        return before | inputs

    def _read_began(self):
        """config.json of the run that --resume continues."""
        path = self.out / "config.json"
        if not path.exists():
            raise UserError(f"--resume: there is no run in --out {self.out}")
        began = read_json(path)
        if foreign := sorted(began.keys() - self.config.keys() - {"inputs"}):
            raise UserError(f"--resume: {path} is of another script or version: it has "
                            f"{foreign[0]!r}")
        return began

    def _check_flags(self, began_config, same_files):
        """UserError where a flag that changes the numbers is not what the run began with, or its
        weights are gone. began_config: of that run; a flag that its version did not have yet counts
        as the default. same_files: flags whose file it is, under another name perhaps."""
        free = FREE_TO_CHANGE if self.weights_path else FREE_TO_CHANGE - {"init"}
        changed = [name for name, value in self.config.items() if began_config[name] != value]
        other = [as_typed(name, began_config[name]) for name in changed
                 if name not in free and flag_of(name) not in same_files]
        if other:
            raise UserError(f"--resume: the run in {self.out} began with other flags: "
                            f"{', '.join(other)}")
        left = [name for name in ("report.json", "best.pt") if (self.out / name).exists()]
        if left and not self.weights_path:
            raise UserError(f"--resume: {self.out} holds {left[0]} and no weights to go on from; "
                            "choose another --out")
        self.finished = "report.json" in left and not LENGTHS.intersection(changed)
        if self.weights_path and "init" in self.config:
            self.config["init"] = began_config["init"]

    def _check_free(self):
        """UserError where a new run would stand beside an earlier one or write over other files."""
        if found := [name for name in WORK if (self.out / name).exists()]:
            raise UserError(f"--out {self.out} already holds a run ({found[0]}); continue it with "
                            "--resume or choose another folder")
        found = [name for name in ("config.json", *REMAINS) if (self.out / name).exists()]
        path = self.out / "config.json"
        if found and not (path.exists() and {"out", "resume"} <= read_json(path).keys()):
            raise UserError(f"--out {self.out} holds a file that a run would write over "
                            f"({found[0]}); choose another folder")

    def prepare(self, machine):
        """Make the folder and write config.json (rank 0), unless the run is finished; returns its
        path. What killed saves left is removed, and what is not this run's own: so it comes behind
        all checks of what the run reads. Raises UserError where the folder cannot be written."""
        machine.total(0)  # no rank may find what rank 0 writes here, and take it for another run's
        if machine.main and not self.finished:
            names = (*WORK, *REMAINS, "config.json")
            gone = [path for name in names for path in self.out.glob(f"{name}*.tmp")]
            others = ("report.json", *FIGURES) if self.resume else REMAINS
            gone += [self.out / name for name in others]
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                for path in gone:
                    path.unlink(missing_ok=True)
                write_json(self.out / "config.json", self.config)
            except OSError as error:
                raise UserError(f"cannot write to --out {self.out}: {error.strerror}") from None
        return self.out

    def report(self, machine):
        """Say that the run is finished; returns its report."""
        say(f"{self.out}: the run is finished; report.json holds its figures", machine)
        return read_json(self.out / "report.json")


def as_typed(name, value):
    """A flag as one types it, to be read by the user who has to.

        compile False  ->  --no-compile      resume True  ->  --resume      init ""  ->  --init ''
    """
    if isinstance(value, bool):
        return flag_of(name if value else f"no_{name}")
    return f"{flag_of(name)} {shlex.quote(str(value))}"


def file_fingerprint(path):
    """16 hex digits that stand for what is in a file. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()[:16]
    except OSError as error:
        raise cannot_read(path, error) from None


def check_provenance(folder, weights, flag, named):
    """UserError where the samples in a run folder are not those of the model that --teacher or
    --init names. weights: its fingerprint; flag: what led to the folder."""
    path = Path(folder) / "provenance.json"
    if path.exists() and read_json(path).get("weights", weights) != weights:
        raise UserError(f"{flag}: the samples in {folder} are not those of the weights in {named}")


def stop_if_diverged(step, figures, remedy):
    """Raise UserError where a figure of training step `step` (from 0) is NaN or infinite: from
    there on all weights would be. figures: {name: float or None}; remedy: the flags to change."""
    for name, value in figures.items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"step {step}: {name} is {value}, the run has diverged and ends here; "
                            "its checkpoints are those of before. Begin again in another --out, "
                            f"from one of them or from the start, with {remedy}")


# Ctrl-C; what `kill` and a cluster send; a terminal that was closed
STOPS = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupt:
    """Ctrl-C, SIGTERM or SIGHUP as a wish: the running step is finished and saved, then the script
    ends.

    So a continued run gives the same numbers. A second signal stops at once. Under torchrun SIGTERM
    ends a rank at once, since it also says that another rank is gone; Ctrl-C is saved. A context
    manager: behind it, also where an error ends the run, signals go to whatever handled them
    before.
    """

    def __init__(self):
        self.wanted = False
        self.before = {}  # {signal: what handled it}
        # Python gives signals to the main thread only
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in STOPS):
                before = signal.getsignal(number)
                if number == signal.SIGINT or before != signal.SIG_IGN:  # as SIGHUP under nohup
                    self.before[number] = signal.signal(number, self._pressed)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _pressed(self, *_):
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def agreed(self, machine):
        """Whether any rank was asked to stop: one may hear Ctrl-C a step before another."""
        return machine.total(self.wanted) > 0

    def leave(self, step, machine):
        """End the script, once `step` steps are saved."""
        self.close()
        say(f"stopped after step {step} and saved; continue with --resume", machine)
        raise KeyboardInterrupt

    def close(self):
        """Give the signals back to whatever handled them before."""
        for number, before in self.before.items():
            signal.signal(number, before)

"""A run and its folder: configuration, metrics, progress, and ways to stop and to continue."""

import dataclasses
import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

from nanoreason.flags import UserError


class Metrics:
    """metrics.jsonl: one JSON object per logged step, floats rounded to six digits.

    resume_step: the first step that this run will log; rows of a killed run from there on are
    dropped, as the steps are made again. write: False on ranks above 0, which log nothing.
    """

    def __init__(self, path, resume_step=0, write=True):
        self.path = Path(path)
        self.write = write
        if write:
            before = read_metrics(self.path) if resume_step else []
            kept = [row for row in before if row["step"] < resume_step]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def log(self, **row):
        """Append one row; it holds at least `step`."""
        if not self.write:
            return
        for name, value in row.items():
            if isinstance(value, float):
                row[name] = float(f"{value:.6g}")
        with open(self.path, "a") as f:
            f.write(json.dumps(row) + "\n")


def read_metrics(path):
    """Rows of a metrics.jsonl; [] when there is no such file.

    A last line that was cut short by a kill is left out.
    """
    rows = []
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def write_json(path, value):
    """Write JSON so that a reader never sees half a file."""
    path = Path(path)
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(scratch, path)


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


# What a resumed run may do otherwise: where and how long it runs, and how it splits its work. All
# but precision and device leave the numbers as they are.
FREE_TO_CHANGE = {
    "resume",
    "init",
    "out",
    "device",
    "precision",
    "compile",
    "steps",
    "max_steps",
    "token_budget",
    "save_every",
    "micro_tokens",
    "gradient_accumulation",
    "checkpoint_activations",
}
# What an earlier run may have left in --out. A new run never begins beside the first kind, which is
# work; the second kind it removes, so that nothing of an earlier run is taken for its own.
WORK = ("ckpt.pt", "best.pt", "report.json", "traces.jsonl", "student", "train.npz")
REMAINS = ("metrics.jsonl", "samples.jsonl", "provenance.json", "*.png", "*.tmp")


def prepare_out(out, config, resume, machine=None, inputs=None):
    """Make the folder --out and write config.json (rank 0); returns its path.

    A run that exists is continued only with --resume, and only with the flags and the input files
    that it began with. inputs: {flag: path of a file that the run reads}; config.json keeps their
    fingerprints. Raises UserError otherwise, and when the folder cannot be written; nothing is
    touched then.
    """
    out = Path(out)
    wanted = dataclasses.asdict(config)
    wanted["inputs"] = {flag: file_fingerprint(path) for flag, path in (inputs or {}).items()}
    if resume:
        began = _read_config(out / "config.json")
        _check_resumed(out, began, wanted)
        wanted["init"] = began.get("init", wanted.get("init"))
    elif found := [name for name in WORK if (out / name).exists()]:
        raise UserError(f"--out {out} already holds a run ({found[0]}); continue it with --resume "
                        "or choose another folder")
    if machine is None or machine.main:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not resume and (out / "config.json").exists():
                _remove_remains(out)
            write_json(out / "config.json", wanted)
        except OSError as error:
            raise UserError(f"cannot write to --out {out}: {error.strerror}") from None
    return out


def continues_from(out, resume):
    """The checkpoint that a run begins from: ckpt.pt in --out; None for a new run, and for one that
    --resume continues but that was stopped before it saved anything. Raises UserError where there
    is no run to continue.
    """
    if not resume:
        return None
    if not (Path(out) / "config.json").exists():
        raise UserError(f"--resume: there is no run in --out {out}")
    path = Path(out) / "ckpt.pt"
    return path if path.exists() else None


def stop_if_diverged(step, figures, remedy):
    """Raise UserError where a figure of training step `step` (from 0) is NaN or infinite: from
    there on all weights would be. figures: {name: float or None}; remedy: what to change, in words.
    """
    for name, value in figures.items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"step {step}: {name} is {value}, the run has diverged and ends here; "
                            f"the last checkpoint is kept. {remedy}")


def file_fingerprint(path):
    """16 hex digits that stand for what is in a file; "" where there is none."""
    if not Path(path).is_file():
        return ""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]


def _remove_remains(out):
    for pattern in REMAINS:
        for path in out.glob(pattern):
            path.unlink()


def _read_config(path):
    """The flags that a run began with: {field: value}. Raises UserError."""
    if not path.exists():
        raise UserError(f"--resume: there is no run in --out {path.parent}")
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"--resume: {path} is damaged: it should hold the flags that the run began "
                        "with, as JSON") from None


def _check_resumed(out, began, wanted):
    """Raise UserError when a flag that changes the numbers is not what the run began with, or a
    file that the run reads has other contents now."""
    free = FREE_TO_CHANGE if (out / "ckpt.pt").exists() else FREE_TO_CHANGE - {"init"}
    other = []
    for name, value in wanted.items():
        if name != "inputs" and name not in free and began.get(name, value) != value:
            other.append(f"--{name.replace('_', '-')} {began[name]}")
    if other:
        raise UserError(f"--resume: the run in {out} began with other flags: {', '.join(other)}")
    for flag, now in wanted["inputs"].items():
        if began.get("inputs", {}).get(flag, now) != now:
            raise UserError(f"--resume: the file of {flag} has changed since the run in {out} "
                            "began; choose another --out")


class Interrupt:
    """Ctrl-C as a wish: the running step is finished and saved, then the script ends.

    So a continued run gives the same numbers. A second Ctrl-C stops at once.
    """

    def __init__(self):
        self.wanted = False
        # Python gives signals to the main thread only
        self.in_main = threading.current_thread() is threading.main_thread()
        if self.in_main:
            self.before = signal.signal(signal.SIGINT, self._pressed)

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
        """Give Ctrl-C back to whatever handled it before."""
        if self.in_main:
            signal.signal(signal.SIGINT, self.before)

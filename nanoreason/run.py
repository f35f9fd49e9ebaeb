"""A run and its folder: configuration, metrics, progress, and ways to stop and go on."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from nanoreason.flags import UserError


class Metrics:
    """metrics.jsonl: one JSON object a logged step. Resuming at step n drops what a killed run wrote from n on."""

    def __init__(self, path, resume_step=0, write=True):
        self.path, self.write = Path(path), write
        if write:
            kept = [row for row in read_metrics(self.path) if row["step"] < resume_step] if resume_step else []
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def log(self, **row):
        if self.write:
            with open(self.path, "a") as f:
                f.write(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}) + "\n")


def read_metrics(path):
    """Rows of a metrics.jsonl; [] when there is no such file. A last line cut short by a kill is left out."""
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
    """tqdm on a terminal; elsewhere, and on ranks above 0, a silent one. Long silent runs print lines through `say` instead."""
    from tqdm import tqdm

    quiet = (machine is not None and not machine.main) or not sys.stderr.isatty()
    return tqdm(total=total, desc=desc, initial=initial, disable=quiet, dynamic_ncols=True, leave=False)


class StepBar:
    """Progress of a training run: a tqdm bar on a terminal; elsewhere a line every ten seconds, on rank 0."""

    def __init__(self, total, desc, machine, first=0):
        self.bar, self.total, self.machine, self.start, self.spoken = progress(total, desc, machine, first), total, machine, time.time(), 0.0
        self.first, self.estimated = first, False

    def show(self, step, text):
        """`step` (from 0) is done; text: its figures in a few words."""
        self.bar.update()
        self.bar.set_postfix_str(text)
        done = step + 1 - self.first
        if not self.estimated and done >= 3 and self.seconds > 3:
            self.estimated = True
            per_step = self.seconds / done
            left = per_step * (self.total - self.first)
            say(f"{self.total - self.first} steps of {per_step:.2f} s: about {left / 60:.1f} minutes here", self.machine)
        if self.bar.disable and (time.time() - self.spoken > 10 or step == self.total - 1):
            self.spoken = time.time()
            say(f"  step {step:5d}/{self.total}  {text}  {self.spoken - self.start:.0f}s", self.machine)

    @property
    def seconds(self):
        """Since it was made."""
        return time.time() - self.start

    def close(self):
        self.bar.close()


def say(text, machine=None):
    """Print a line at once, on rank 0 only, without tearing a progress bar."""
    if machine is None or machine.main:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


# what a resumed run may do otherwise and still give the same numbers: where and how long it runs, and how it splits its work
FREE_TO_CHANGE = {"resume", "init", "out", "device", "precision", "compile", "steps", "max_steps", "token_budget", "save_every", "micro_tokens", "gradient_accumulation",
                  "checkpoint_activations"}


def prepare_out(out, config, resume, machine=None):
    """Make --out and write config.json. An existing run is only continued on purpose, and only with the flags it began with: else UserError, and
    nothing is touched."""
    out, wanted = Path(out), dataclasses.asdict(config)
    if (out / "ckpt.pt").exists() and not resume:
        raise UserError(f"--out {out} already holds a run; continue it with --resume or choose another folder")
    if resume and (out / "config.json").exists():
        try:
            old = json.loads((out / "config.json").read_text())
        except ValueError:
            raise UserError(f"--resume: {out / 'config.json'} is damaged; without it the run goes on with the flags given now") from None
        if other := [name for name in wanted if name not in FREE_TO_CHANGE and old.get(name, wanted[name]) != wanted[name]]:
            raise UserError(f"--resume: the run in {out} began with other flags: " + ", ".join(f"--{name.replace('_', '-')} {old[name]}" for name in other))
        wanted["init"] = old.get("init", wanted.get("init"))
    if machine is None or machine.main:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "config.json", wanted)
        except OSError as error:
            raise UserError(f"cannot write to --out {out}: {error.strerror}") from None
    return out


class Interrupt:
    """Ctrl-C as a wish: the running step is finished and saved, so that the continued run gives the same numbers. Twice stops at once."""

    def __init__(self):
        self.wanted, self.in_main = False, threading.current_thread() is threading.main_thread()
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
        """Give Ctrl-C back to whoever had it."""
        if self.in_main:
            signal.signal(signal.SIGINT, self.before)

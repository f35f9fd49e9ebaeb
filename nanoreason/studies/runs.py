"""Runs of this project's scripts that a study needs, made where they are missing."""

import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanoreason.flags import UserError
from nanoreason.model import PRESETS
from nanoreason.run import as_typed, progress, read_json, say
from nanoreason.workers import ROOT, at_once, environment, flag_words, resumes

# What every base model reads, as in the speedrun; 3.3 million tokens of it.
BASE_FAMILIES = "addition,multiplication,chain,percent,word,equation,primality"
BASE_TOKENS = 3_300_000
RATES = dict(muon_lr=0.002, adamw_lr=0.0015)  # of the speedrun's cold start


def read_if_made(path):
    """The dict in a JSON file; None where there is no such file yet."""
    return read_json(path) if path.exists() else None


def check_made(out, made, wanted):
    """Raises UserError where what is in `out` was made with other flags than those wanted.

    made: {field: value} of what is there, None where nothing is.
    """
    for name, value in wanted.items():
        if made is not None and made[name] != value:
            raise UserError(
                f"{out} was made with {as_typed(name, made[name])}, not {value}; "
                "name another folder, or remove it")


def check_sizes(names, flag):
    """Raises UserError where a flag names a size that does not exist."""
    for name in names:
        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise UserError(f"--{flag}: there is no size {name!r}; there are {known}")


def ensure(done, script, threads=0, **flags):
    """Run a script of this project with these flags, unless the file `done` exists already.

    A run that was killed is continued. With threads=0 the script takes all cores and prints here;
    otherwise it takes so many threads, and prints to a file beside its --out. Raises UserError
    where the script fails.
    """
    if Path(done).exists():
        return
    words = [script, *flag_words(flags)]
    if "out" in flags and resumes(flags["out"]):
        words.append("--resume")
    say(f"python {shlex.join(words)}")
    command = [sys.executable, str(ROOT / script), *words[1:]]
    if threads:
        log = Path(f"{flags['out']}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            ended = subprocess.run(
                command, env=environment(threads), stdout=file, stderr=subprocess.STDOUT)
        where = f"at the end of {log}"
    else:
        ended = subprocess.run(command, env=environment(captured=False))
        where = "above"
    if ended.returncode:
        raise UserError(f"{script} failed; its own message is {where}")


def ensure_all(runs):
    """`ensure` many independent runs, [(done, script, flags)]: several at once, one thread each."""
    bar = progress(len(runs), "runs")

    def work(run):
        done, script, flags = run
        ensure(done, script, threads=1, **flags)
        bar.update()

    all_of(work, [(run,) for run in runs])
    bar.close()


def all_of(work, jobs):
    """[work(*job) for job in jobs], several at once.

    The first failure, Ctrl-C included, cancels the jobs that have not begun, and is raised.
    """
    with ThreadPoolExecutor(at_once()) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def train(script, out, threads=0, **flags):
    """`ensure` a training run in the folder `out`, in which report.json is its last file."""
    ensure(out / "report.json", script, threads, **flags, out=out)


def train_base(out, size, threads=0):
    """A base model of a size, trained as in the speedrun."""
    train(
        "train_sft.py", out, threads,
        stage="base", model=size, families=BASE_FAMILIES, tokens=BASE_TOKENS)


def train_cold_start(out, base):
    """A cold start from the folder of a base model, trained as in the speedrun."""
    train("train_sft.py", out, stage="cold-start", init=base, families=BASE_FAMILIES, **RATES)

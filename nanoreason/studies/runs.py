"""Runs of this project's scripts that a study needs, made where they are missing."""

import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanoreason.flags import UserError
from nanoreason.run import progress, say
from nanoreason.workers import ROOT, at_once, environment, flag_words, resumes

# What every base model reads, as in the speedrun.
BASE_FAMILIES = "addition,multiplication,chain,percent,word,equation,primality"
BASE_TOKENS = 3_300_000


def ensure(done, script, threads=0, **flags):
    """Run a script of this project with these flags, unless the file `done` exists already.

    A run that was killed is continued. With threads=0 the script takes all cores and prints here;
    otherwise it takes so many threads, and prints to a file beside its --out. Raises UserError
    where the script fails.
    """
    if Path(done).exists():
        return
    words = [script, *flag_words(flags)]
    if "out" in flags and resumes(script, flags["out"]):
        words.append("--resume")
    say(f"python {shlex.join(words)}")
    command = [sys.executable, str(ROOT / script), *words[1:]]
    if threads:
        log = Path(f"{flags['out']}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            ended = subprocess.run(
                command, env=environment(threads), stdout=file, stderr=subprocess.STDOUT)
        where = f"at the end of {log}"
    else:
        ended = subprocess.run(command, env=environment())
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

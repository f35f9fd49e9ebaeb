"""Runs of this project's scripts that a study needs, made where they are missing."""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanoreason.flags import UserError
from nanoreason.run import progress, say
from nanoreason.workers import at_once, resumes

ROOT = Path(__file__).resolve().parents[2]


def ensure(done, script, threads=0, **flags):
    """Run a script of this project unless the file `done` says that it has run; one that was killed goes on. threads: of its matrix products, with what
    it prints in a file beside its --out; 0: all, in the open. Raises UserError where it fails."""
    if Path(done).exists():
        return
    words = [script]
    for name, value in flags.items():
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    if "out" in flags and resumes(script, flags["out"]):
        words.append("--resume")
    say(f"python {shlex.join(words)}")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
        Path(flags["out"]).parent.mkdir(parents=True, exist_ok=True)
    log = f"{flags['out']}.log" if threads else None
    with open(log or os.devnull, "a") as file:
        to = dict(stdout=file, stderr=subprocess.STDOUT) if threads else {}
        status = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], env=environment, **to).returncode
    if status:
        raise UserError(f"{script} failed; its own message is " + (f"at the end of {log}" if log else "above"))


def ensure_all(runs):
    """`ensure` many independent runs, [(done, script, flags)], several at once, a thread each."""
    bar = progress(len(runs), "runs")

    def work(run):
        done, script, flags = run
        ensure(done, script, threads=1, **flags)
        bar.update()

    all_of(work, [(run,) for run in runs])
    bar.close()


def all_of(work, jobs):
    """[work(*job) for job in jobs], several at once. The first failure, Ctrl-C among them, ends what has not begun, and is raised."""
    with ThreadPoolExecutor(at_once()) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

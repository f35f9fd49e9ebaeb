"""Work spread over the cores, one process of one thread a core, and runs of this project's scripts, made where they are missing.

Small models keep a second thread of a matrix product idle most of the time; a second process works all of it. Only for work that falls into independent
pieces and takes longer than the seconds in which a process starts.
"""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import torch

from nanoreason.common import UserError, progress, say

ROOT = Path(__file__).resolve().parent.parent

_shared = None  # in a worker: what all its jobs need, for instance a model


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once():
    """Runs of scripts that should share this machine: one on a GPU, else one a core."""
    return 1 if torch.cuda.is_available() else cores()


def _begin(shared):
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever waits for the results
    torch.set_num_threads(1)


def _work(function, job):
    return function(_shared, *job)


def spread(function, shared, jobs, processes):
    """Yield function(shared, *job) for every job, in their order, whatever the number of processes; one works here, without another process.

    function must stand at the top of a module; shared, jobs and results travel between processes. An exception in a job is raised here.
    """
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield function(shared, *job)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), multiprocessing.get_context("spawn"), _begin, (shared,)) as pool:
        futures = [pool.submit(_work, function, job) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


CONTINUES_FROM = {"train_prm.py": "config.json", "distill.py": "traces.jsonl"}  # what in --out a script's --resume can go on from; ckpt.pt where not named


def resumes(script, out):
    """Whether a run that was stopped should be given --resume."""
    return (Path(out) / CONTINUES_FROM.get(script, "ckpt.pt")).exists()


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

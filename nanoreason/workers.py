"""Work spread over the cores, one process of one thread per core.

Small models keep a second thread of a matrix product idle most of the time; a second process works all of it. Only for work that falls into independent
pieces and takes longer than the seconds in which a process starts.
"""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch


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

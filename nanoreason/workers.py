"""Work spread over the cores: one process of one thread a core.

Small models keep a second thread of a matrix product idle most of the time; a second process works all of it. Only for work that falls into independent
pieces and takes longer than the seconds in which a process starts.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

_shared = None  # in a worker: what all its jobs need, for instance a model


def _begin(shared):
    global _shared
    _shared = shared
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

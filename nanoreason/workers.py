"""Work spread over the cores: one process per core, one thread per process; and runs of scripts.

Small models keep a second thread of a matrix product idle most of the time; a second process uses
all of it. Only for work that falls into independent pieces and takes longer than the seconds in
which a process starts.
"""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from nanoreason.flags import flag_of

ROOT = Path(__file__).resolve().parent.parent  # where the scripts are

_shared = None  # in a worker: what all its jobs need, for instance a model


def cores():
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def at_once():
    """Runs of scripts that should share this machine: one on a GPU, else one per core."""
    return 1 if torch.cuda.is_available() else cores()


def _begin(shared):
    """Make a new worker ready."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for results
    torch.set_num_threads(1)


def _work(function, job):
    """One job in a worker."""
    return function(_shared, *job)


def spread(function, shared, jobs, processes):
    """Yield function(shared, *job) for every job, in the order of the jobs.

    With one process or one job the work is done here, without another process. Else function must
    stand at the top of a module, because shared, jobs and results travel between processes. An
    exception in a job is raised here.
    """
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield function(shared, *job)
        return
    context = multiprocessing.get_context("spawn")
    workers = min(processes, len(jobs))
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(shared,)) as pool:
        futures = [pool.submit(_work, function, job) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def resumes(out):
    """Whether --resume has a run to continue in `out`."""
    return (Path(out) / "config.json").exists()


def flag_words(flags):
    """{field: value} as the words of a command line. True becomes a bare flag, False is left out.

    dict(max_steps=3, resume=True, compile=False)  ->  ["--max-steps", "3", "--resume"]
    """
    words = []
    for name, value in flags.items():
        if value is False:
            continue
        words.append(flag_of(name))
        if value is not True:
            words.append(str(value))
    return words


def environment(threads=0, captured=True):
    """Environment variables under which a script finds this package.

    threads: of its matrix products; 0 leaves them as they are here. captured: what it prints goes
    to a pipe or a log, which are read as UTF-8; a terminal has an encoding of its own.
    """
    paths = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    variables = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    if captured:
        variables["PYTHONIOENCODING"] = "utf-8"
    if threads:
        variables["OMP_NUM_THREADS"] = str(threads)
    return variables


def last_line(text, otherwise):
    """The last line of what a script wrote to stderr; `otherwise` where it wrote nothing."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else otherwise

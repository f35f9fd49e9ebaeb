"""Runs of the scripts as stages of one line: commands, order, logs, and how long they will take.

A stage is a script with flags. Stages that do not read one another's results share the cores of a
CPU, a thread each; killed at any moment, a line goes on where it stopped.
"""

import platform
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

from nanoreason.flags import UserError
from nanoreason.machine import generator
from nanoreason.model import GPT, PRESETS
from nanoreason.run import say, write_json
from nanoreason.workers import ROOT, at_once, cores, environment, flag_words, resumes

LOG = threading.Lock()  # stages that end together write one stages.json


@dataclass(frozen=True)
class Stage:
    """name; script and flags to run, a question under the name ""; done: the file whose presence
    says that it ended; note: a line for the reader; alone: it gets all cores."""

    name: str
    script: str
    flags: dict
    done: str
    note: str
    alone: bool = False


def command(stage, resume=False):
    """The shell words of a stage, as a user would type them in the repository."""
    flags = dict(stage.flags)
    question = [flags.pop("")] if "" in flags else []
    return [stage.script, *flag_words(flags), *question, *(["--resume"] if resume else [])]


def run_stage(config, stage, position, threads, log):
    """Run one stage; each line of its output is printed under its name.

    threads: of its matrix products, 0 for all. Its times and peak memory go to stages.json. Raises
    UserError where it fails.
    """
    resume = stage.script != "sample.py" and resumes(stage.flags["out"])
    words = command(stage, resume)
    say(f"\n[{position}] {stage.name}: {stage.note}\n    python {shlex.join(words)}")
    start = time.time()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / words[0]), *words[1:]], env=environment(threads),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        errors="replace",
    )
    for line in process.stdout:
        say(f"{stage.name:>10} | {line.rstrip()}")
    if process.wait():
        raise UserError(f"stage {stage.name} ended with status {process.returncode}; run the same "
                        "command again to continue from there")
    end = time.time()
    with LOG:
        log[stage.name] = dict(
            command=command(stage), began=round(start, 1), ended=round(end, 1),
            seconds=round(end - start, 1), peak_memory_gib=peak_memory(),
        )
        write_json(Path(config.out) / "stages.json", log)


def peak_memory():
    """GiB of the largest process that this one has run so far; 0.0 where the system does not
    tell."""
    if resource is None:
        return 0.0
    size = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(size / (1 << (30 if sys.platform == "darwin" else 20)), 2)


def inputs(config, stage, others):
    """Names of the other stages whose folders a stage reads."""
    read = []
    for name, value in stage.flags.items():
        if name not in ("out", "json", "cache"):
            parts = str(value).split(",") if name == "reward_model" else [str(value)]
            read += [Path(part) for part in parts]
    found = []
    for other in others:
        folder = Path(config.out, other.name)
        if any(folder in (path, path.parent) for path in read):
            found.append(other.name)
    return found


def finished(config, stage, log):
    """Whether a stage has ended, in this run or before."""
    return (Path(config.out) / stage.done).exists() and stage.name in log


def run_stages(config, stages, log):
    """Run what is not done: in order on a GPU, else as many at once as there are cores, each as
    soon as what it reads is there; of several that could begin the first. The first failure, Ctrl-C
    among them, ends what has yet to begin.

    stages: in an order in which each reads earlier ones only.
    """
    waiting = {}  # number of a stage that has yet to begin: the stage
    for number, stage in enumerate(stages, 1):
        if not finished(config, stage, log):
            waiting[number] = stage
    workers = at_once()
    running = {}  # future: name of its stage
    with ThreadPoolExecutor(workers) as pool:
        while waiting or running:
            unfinished = {stage.name for stage in waiting.values()} | set(running.values())
            ready = [
                number for number, stage in waiting.items()
                if unfinished.isdisjoint(inputs(config, stage, stages))
            ]
            for number in ready[: workers - len(running)]:
                stage = waiting.pop(number)
                threads = 0 if stage.alone or workers == 1 else 1
                position = f"{number}/{len(stages)}"
                future = pool.submit(run_stage, config, stage, position, threads, log)
                running[future] = stage.name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                future.result()


def wall(log):
    """Seconds in which any stage ran: stages may overlap, and between a kill and the next start
    nothing runs. Of a stage that was killed only what it did after counts."""
    total = 0.0
    end = 0.0
    for began, ended in sorted((entry["began"], entry["ended"]) for entry in log.values()):
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


# Seconds per stage of the speedrun on two cores of an Intel Xeon (Sapphire Rapids) held to AVX2:
# base with both, the others with one each, two at a time. STEP: `training_step_seconds` there.
STEP = 0.20
SECONDS = dict(
    base=290, zero=115, cold=50, rl=105, orm=115, rejection=52, final=112, prm=75, student=56,
    test=18, general=2, best_of_n=17, demo=2,
)
CHAIN = ("cold", "rl", "rejection", "final", "test", "demo")  # the longest that waits for itself


def training_step_seconds():
    """How long this machine takes, on one thread, for forward and backward pass of a step of the
    base stage: the fastest of five."""
    model = GPT(PRESETS["micro"]).init_weights(generator(0, "weights"))
    tokens = torch.arange(6 * 256).view(6, 256) % 500
    doc_start = (torch.arange(256) // 64 * 64).expand(6, 256)  # documents of 64 tokens
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(5):
        begun = time.time()
        model(tokens, doc_start).float().logsumexp(-1).mean().backward()
        times.append(time.time() - begun)
    torch.set_num_threads(threads)
    return min(times)


def estimate(stages):
    """Minutes that these stages should take here, from those of another machine.

    On a GPU it is too high: stages do not share one, and what it saves differs from stage to stage.
    """
    alone = 0
    beside = 0
    for stage in stages:
        seconds = SECONDS[stage.name.split(": ")[-1].split(" ")[0]]
        if stage.alone:
            alone += seconds * 2 / min(cores(), 6)  # a step has 6 rows to share out
        else:
            beside += seconds
    chain = min(beside, sum(SECONDS[name] for name in CHAIN))
    there = alone + max(beside / at_once(), chain)
    return there / 60 * training_step_seconds() / STEP


def hardware():
    """What the run ran on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {cores()} cores, {kind}, {platform.system()}"


def cpu_name():
    """The CPU's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

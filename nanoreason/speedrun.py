"""The whole line as one command: base -> cold start -> GRPO -> rejection sampling -> final SFT, with reward_models, best-of-N and a distilled student, and a
report of what each stage bought.

    python -m nanoreason.speedrun --out runs/speedrun
    python -m nanoreason.speedrun --race                   how fast can a model learn to reason here?

Every stage is one of the scripts, called as a user would call it; its command is printed and kept in the report. On CPUs, stages that do not need one another
share the cores. Killed at any moment, the same command picks up where it stopped. Leaves report.json, report.md and figures in --out.
"""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nanoreason import plots
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import generator, run_script
from nanoreason.run import read_metrics, say, write_json
from nanoreason.evaluate import wilson
from nanoreason.model import GPT, PRESETS
from nanoreason.pool import log_fit
from nanoreason.tasks import CONTROLS, GENERAL, SAFETY, demo_problems, verify
from nanoreason.workers import at_once, cores, resumes

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("base", "zero", "cold", "rl", "final")
TAUGHT = ("base", "cold", "rl", "final")  # R1's line, whose general ability and refusals are measured
RL_FAMILIES = ("multiplication", "chain", "percent", "word", "equation")
FAMILIES = ("addition", *RL_FAMILIES, "primality")  # what the models read about; logic, countdown and code would take minutes more


@dataclass
class Config:
    out: str = flag("runs/speedrun", "folder for everything that the run leaves")
    seed: int = flag(0, "seed of data, weights and samples", low=0)
    quick: bool = flag(False, "a rehearsal of about a minute: the same stages, far too short to learn much")
    race: bool = flag(False, "instead: minutes from random weights until R1-Zero solves 80% of 1,000 validation problems, over three seeds, in --out/race")


@dataclass(frozen=True)
class Stage:
    """name; script and flags to run; `done`: the file whose presence says that it ended; `note`: a line for the reader; alone: nothing can run beside it, so that it gets all threads."""

    name: str
    script: str
    flags: dict
    done: str
    note: str
    alone: bool = False


def questions(config):
    """The brief's own, which the final model is asked; a rehearsal asks the first."""
    return demo_problems()[: 1 if config.quick else None]


def plan(config):
    """The stages in order. All sizes and rates of the speedrun stand here."""
    out, q = Path(config.out), config.quick
    run = lambda name, script, note, done="report.json", alone=False, **flags: Stage(name, script, dict(flags, out=out / name, seed=config.seed), f"{name}/{done}", note, alone)
    measure = lambda name, note, done, **flags: Stage(f"{name}: {done}", "sample.py", dict(eval=True, ckpt=out / name, json=out / name / f"{done}.json", cache=out / "cache", seed=config.seed, **flags),
                                                      f"{name}/{done}.json", note)
    test = lambda name: measure(name, f"test accuracy of {name}", "test", families=",".join(FAMILIES + CONTROLS), level="1,2", problems=8 if q else 200, ns="1")
    general = lambda name: measure(name, f"general ability and refusals of {name}", "general", families=",".join(GENERAL + SAFETY), level="1,2,3,4,5", problems=5 if q else 100, ns="0")
    # The KL to the reference is left out: scoring every response under it as well would cost half as much again.
    grpo = dict(steps=3, batch_size=64, eval_problems=4, kl="none") if q else dict(steps=40, batch_size=512, learning_rate=3e-4, kl="none")
    guess = dict(families="primality", level="1", questions=40, samples=8)  # in a rehearsal nobody solves anything, but its base sometimes guesses
    scorer = dict(init=out / "base", val_questions=2, epochs=1, batch_size=8, eval_every=1, **guess) if q else dict(init=out / "cold", temperature=0.7, questions=1200, val_questions=40, epochs=3, eval_every=25)
    best = dict(families=",".join(RL_FAMILIES), problems=2 if q else 30, ns="1,2,4" if q else "1,4,16,64", temperature=0.7)
    reject = dict(cache=out / "samples", keep=2) | (dict(teacher=out / "base", **guess) if q else dict(teacher=out / "rl", families=",".join(FAMILIES), level="1,2", questions=7000, samples=2))
    small = dict(batch_tokens=256) if q else {}
    stages = [
        run("base", "train_sft.py", "a base model from random weights; most of its text answers at once", stage="base", families=",".join(FAMILIES), tokens=30_000 if q else 3_300_000, alone=True),
        run("zero", "train_grpo.py", "R1-Zero: reinforcement learning straight on the base", init=out / "base", **grpo),
        run("cold", "train_sft.py", "the cold start: 5,000 demonstrations that reason", stage="cold-start", families=",".join(FAMILIES), init=out / "base", demos=200 if q else 5000, muon_lr=0.002,
            adamw_lr=0.0015),
        run("rl", "train_grpo.py", "R1: reinforcement learning on the cold start", init=out / "cold", **grpo),
        run("orm", "train_prm.py", "an outcome reward model judges the cold start's answers", kind="orm", **scorer),
        run("rejection", "distill.py", "rejection sampling: the right solutions of R1", "traces.jsonl", collect_only=True, select="diverse", **reject),
        run("final", "train_sft.py", "the final SFT: from the base again, on R1's right solutions, general and safety data", stage="final", init=out / "base", data=out / "rejection" / "traces.jsonl",
            general=0.35, epochs=1 if q else 2, muon_lr=0.003, adamw_lr=0.002, **small),
        run("prm", "train_prm.py", "a process reward model judges its steps", kind="prm", reuse=out / "orm", **scorer),
        run("student", "distill.py", "a student of a sixth of the size, from random weights, on compressed traces of R1", student="nano", traces="full" if q else "compressed", epochs=1 if q else 6, muon_lr=0.004,
            adamw_lr=0.003, eval_problems=4 if q else 100, **reject, **small),
        *(test(name) for name in STAGES), *(general(name) for name in TAUGHT),
        measure("cold", "best-of-N in mid-training, at the training levels", "best_of_n", level="1,2", reward_model=f"{out / 'orm'},{out / 'prm'}", **best),
        measure("rl", "best-of-N of R1, one level above its training levels", "best_of_n", level="3", **best),
    ]
    for i, problem in enumerate(questions(config)):
        stages.append(Stage(f"demo {i + 1}", "sample.py", {"ckpt": out / "final", "method": "vote", "n": 16, "seed": config.seed, "json": out / f"demo{i}.json",
                                                           "": problem.question}, f"demo{i}.json", "the brief's own question, by a vote of 16"))
    return stages


def command(stage, resume):
    """The shell words of a stage, as a user would type them in the repository."""
    words = [stage.script]
    for name, value in stage.flags.items():
        flag_name = "--" + name.replace("_", "-")
        words += [str(value)] if not name else [flag_name] if value is True else [flag_name, str(value)]
    return words + (["--resume"] if resume else [])


LOG = threading.Lock()  # stages that end together write one stages.json


def run_stage(config, stage, position, threads, log):
    """Run one stage, a line of its output at a time under its name; its times and peak memory go to stages.json. Raises UserError where it fails."""
    words = command(stage, stage.script != "sample.py" and resumes(stage.script, stage.flags["out"]))
    say(f"\n[{position}] {stage.name}: {stage.note}\n    python {shlex.join(words)}")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), **({"OMP_NUM_THREADS": str(threads)} if threads else {}))
    start = time.time()
    process = subprocess.Popen([sys.executable, str(ROOT / words[0]), *words[1:]], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        say(f"{stage.name:>10} | {line.rstrip()}")
    if process.wait():
        raise UserError(f"stage {stage.name} ended with status {process.returncode}; run the same command again to continue from there")
    with LOG:
        log[stage.name] = dict(command=command(stage, False), began=round(start, 1), ended=round(time.time(), 1), seconds=round(time.time() - start, 1),
                               peak_memory_gib=round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << (30 if sys.platform == "darwin" else 20)), 2))
        write_json(Path(config.out) / "stages.json", log)


def inputs(config, stage, others):
    """Names of the other stages whose folders a stage reads."""
    read = [Path(part) for name, value in stage.flags.items() if name not in ("out", "json", "cache") for part in (str(value).split(",") if name == "reward_model" else [str(value)])]
    return [other.name for other in others if any(Path(config.out, other.name) in (path, path.parent) for path in read)]


def finished(config, stage, log):
    """Whether a stage has ended, in this run or before."""
    return (Path(config.out) / stage.done).exists() and stage.name in log


def run_stages(config, stages, log):
    """Run what is not done: in order on a GPU, else as many at once as there are cores, each as soon as what it reads is there. The first failure, Ctrl-C
    among them, ends what has yet to begin."""
    futures, stopped, workers = {}, threading.Event(), at_once()

    def work(number, stage, needs):
        for name in needs:
            futures[name].result()
        if not stopped.is_set():
            try:
                run_stage(config, stage, f"{number}/{len(stages)}", 0 if stage.alone or workers == 1 else 1, log)
            except BaseException:
                stopped.set()
                raise

    with ThreadPoolExecutor(workers) as pool:  # stages stand in an order in which each waits for earlier ones only: never all workers wait
        try:
            for number, stage in enumerate(stages, 1):
                if not finished(config, stage, log):
                    futures[stage.name] = pool.submit(work, number, stage, [name for name in inputs(config, stage, stages) if name in futures])
            for future in futures.values():
                future.result()
        finally:
            stopped.set()


# Seconds of a stage on two cores of an Intel Xeon (Sapphire Rapids) told to use AVX2 alone: base with
# both, the others with one each. STEP: of `training_step_seconds` there, with one thread.
STEP = 0.21
SECONDS = dict(base=290, zero=134, cold=45, rl=124, orm=120, rejection=50, final=118, prm=80,
               student=57, test=20, general=3, best_of_n=20, demo=3)


def training_step_seconds():
    """How long this machine takes for the forward and backward pass of a step of the base stage, on
    one thread: the fastest of five."""
    model = GPT(PRESETS["micro"]).init_weights(generator(0, "weights"))
    tokens = torch.arange(6 * 256).view(6, 256) % 500
    doc_start = (torch.arange(256) // 64 * 64).expand(6, 256)  # documents of 64 tokens
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for _ in range(5):
        begun = time.time()
        model(tokens, doc_start).float().logsumexp(-1).mean().backward()
        times.append(time.time() - begun)
    torch.set_num_threads(threads)
    return min(times)


def estimate(stages):
    """Minutes that these stages should take here, from those of another machine. On a GPU it is too
    high: stages do not share one, and what it saves differs from stage to stage."""
    slower = training_step_seconds() / STEP
    kind = lambda stage: stage.name.split(": ")[-1].split(" ")[0]
    alone = sum(SECONDS[kind(s)] for s in stages if s.alone) * 2 / min(cores(), 6)  # 6 rows a step
    beside = sum(SECONDS[kind(s)] for s in stages if not s.alone)
    # the longest chain that cannot share: R1, its samples, the final model, its tests
    chain = sum(SECONDS[name] for name in ("cold", "rl", "rejection", "final", "test", "demo"))
    return slower * (alone + max(beside / at_once(), min(beside, chain))) / 60


def wall(log):
    """Seconds in which any stage ran: stages may overlap, and between a kill and the next start nothing does. Of a stage that was killed only what it did
    after counts."""
    total, end = 0.0, 0.0
    for began, ended in sorted((s["began"], s["ended"]) for s in log.values()):
        total, end = total + max(0.0, ended - max(began, end)), max(end, ended)
    return total


def hardware():
    """What the run ran on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{cpu_name()}, {cores()} cores, {torch.backends.cpu.get_cpu_capability()}, {platform.system()}"


def cpu_name():
    """The CPU's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def read(path):
    return json.loads(Path(path).read_text())


def stage_figures(out, name, log):
    """One entry of the report's stages: parameters, seconds, greedy and sampled accuracy, tokens, behaviours."""
    report, test = read(out / name / "report.json"), read(out / name / "test.json")
    general = read(out / name / "general.json") if name in TAUGHT else dict(families={}, refused={})
    rl = [test["families"][f] for f in RL_FAMILIES]
    right, n = sum(f["acc"] * f["n"] for f in rl), sum(f["n"] for f in rl)
    low, high = wilson(right, n)
    sampled = [test["sampled"]["families"][f] for f in RL_FAMILIES]
    low_s, high_s = wilson(sum(s * f["n"] for s, f in zip(sampled, rl)), n)
    return dict(name=name, params=report["params"], seconds=log[name]["seconds"], accuracy=test["families"] | general["families"], refused=general["refused"],
                greedy_accuracy=dict(acc=round(float(np.mean([f["acc"] for f in rl])), 4), n=n, ci=[round(low, 4), round(high, 4)]),
                sampled_accuracy=dict(acc=round(float(np.mean(sampled)), 4), n=n, ci=[round(low_s, 4), round(high_s, 4)], families=test["sampled"]["families"]),
                mean_tokens=test["sampled"]["mean_tokens"], greedy_tokens=test["mean_tokens"], behaviours=test["sampled"]["behaviours"])


def ends(rows, key, k=5):
    """Mean of a metric over the first k and the last k steps that have it."""
    values = [r[key] for r in rows if r[key] is not None] or [0.0]
    return [round(float(np.mean(values[:k])), 3), round(float(np.mean(values[-k:])), 3)]


def build_report(config, log):
    """report.json from what the stages left."""
    out = Path(config.out)
    best_of_n = {}
    for name in ("cold", "rl"):
        figures = read(out / name / "best_of_n.json")
        best = best_of_n[name] = figures["scaling"] | {"levels": figures["levels"]}
        best["log_fit"] = {key: log_fit(best["ns"], best[key]) for key in ("coverage", "vote")}
    student = read(out / "student" / "report.json")
    learned, teacher = student["student_figures"], student["teacher_figures"]
    demo = []
    for i, problem in enumerate(questions(config)):
        d = read(out / f"demo{i}.json")
        demo.append(dict(question=problem.question, response=f"{d['thinking']}\nAnswer: {d['answer']}".strip(), correct=bool(d["answer"] and verify(problem, d["answer"]))))
    rl = {name: {key: ends(read_metrics(out / name / "metrics.jsonl"), key) for key in
                 ("solve_rate", "length", "thinks", "verification", "self_correction", "another_way", "entropy", "kl")} for name in ("zero", "rl")}
    return dict(seed=config.seed, hardware=hardware(), torch=torch.__version__, seconds=round(wall(log), 1),
                peak_memory_gib=max(s["peak_memory_gib"] for s in log.values()), quick=config.quick,
                stages=[stage_figures(out, name, log) for name in STAGES], rl_first_and_last_steps=rl, best_of_n=best_of_n["cold"] | {"model": "cold"}, best_of_n_harder=best_of_n["rl"] | {"model": "rl"},
                rejection=read(out / "rejection" / "provenance.json"), verifiers={name: read(out / name / "report.json")["test"]["positions"] for name in ("orm", "prm")},
                distillation=[dict(student=student["student"], params=student["params"], traces=student["traces"], accuracy=learned["greedy"], mean_tokens=learned["mean_tokens"],
                                   mean_flops=learned["mean_flops"], teacher_params=teacher["params"], teacher_accuracy=teacher["greedy"], teacher_tokens=teacher["mean_tokens"],
                                   teacher_flops=teacher["mean_flops"])], demo=demo, commands={s.name: "python " + shlex.join(command(s, False)) for s in plan(config)},
                stage_seconds={name: s["seconds"] for name, s in log.items()})


def draw_figures(out, report):
    """The figures beside the report."""
    metrics = {name: read_metrics(out / name / "metrics.jsonl") for name in STAGES}
    plots.sft_loss({"base model": metrics["base"], "cold start": metrics["cold"], "final SFT": metrics["final"]}, out / "loss.png")
    rl = {"R1-Zero: from the base": metrics["zero"], "R1: from the cold start": metrics["rl"]}
    plots.rl_figures(rl, out)
    plots.stage_bars(report["stages"], out / "stages.png")
    plots.scaling({f"{b['model']}, level {' and '.join(map(str, b['levels']))}": b for b in (report["best_of_n"], report["best_of_n_harder"])}, out / "best_of_n.png")


def percent(a):
    return f"{100 * a['acc']:.1f} [{100 * a['ci'][0]:.1f}, {100 * a['ci'][1]:.1f}]"


RULES = {"coverage": "coverage", "vote": "vote", "orm": "ORM", "weighted-orm": "vote by ORM", "prm-last": "PRM", "weighted-prm-last": "vote by PRM"}  # rules of report.md


def final_lines(report, rl, final):
    """What rejection sampling kept, what the final SFT keeps and gains, and what the student is worth."""
    kept, (student,) = report["rejection"], report["distillation"]
    get = lambda stage, family: percent(stage["accuracy"][family])
    return [f"R1 solved {kept['solved']} of {kept['questions']} training questions; of {kept['samples']} samples {kept['traces']} different right ones were kept "
            f"({', '.join(f'{n} {cause}' for cause, n in kept['fate'].items() if n and cause != 'kept')}).", "",
            "| | R1 | final |", "| --- | --- | --- |", f"| RL families, greedy | {percent(rl['greedy_accuracy'])} | {percent(final['greedy_accuracy'])} |",
            f"| small instructions | {get(rl, 'instruct')} | {get(final, 'instruct')} |", f"| factual recall | {get(rl, 'fact')} | {get(final, 'fact')} |",
            f"| harmful requests refused | {get(rl, 'harmful')} | {get(final, 'harmful')} |", f"| harmless look-alikes answered | {get(rl, 'harmless')} | {get(final, 'harmless')} |",
            f"| harmless look-alikes refused | {percent(rl['refused']['harmless'])} | {percent(final['refused']['harmless'])} |",
            f"| tokens a greedy response | {rl['greedy_tokens']:.1f} | {final['greedy_tokens']:.1f} |", "",
            f"A student of {student['params']:,} parameters, trained on {student['traces']} traces from random weights: {percent(student['accuracy'])} with {student['mean_tokens']:.1f} tokens and "
            f"{student['mean_flops'] / 1e6:.1f} MFLOP a question; its teacher, on the same questions: {percent(student['teacher_accuracy'])} with {student['teacher_tokens']:.1f} and {student['teacher_flops'] / 1e6:.1f}."]


def markdown(report):
    """report.md: the same figures, for reading."""
    stages = {s["name"]: s for s in report["stages"]}
    base, zero, cold, rl, final = (stages[name] for name in STAGES)
    steps = report["rl_first_and_last_steps"]
    ratio = zero["sampled_accuracy"]["acc"] / max(base["sampled_accuracy"]["acc"], 1e-9)
    lines = [f"# A reasoning model from nothing, in {report['seconds'] / 60:.1f} minutes", "",
             f"{base['params']:,} parameters, seed {report['seed']}, {report['hardware']}, torch {report['torch']}, peak memory {report['peak_memory_gib']} GiB. "
             "Test problems were never trained on. Accuracy in percent with 95% Wilson intervals.", "",
             f"RL families ({', '.join(RL_FAMILIES)}), levels 1 and 2, mean over families, n = {base['greedy_accuracy']['n']}:", "",
             "| stage | greedy | sampled at temperature 1 | tokens a response, all families | thinks | seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for s in report["stages"]:
        lines.append(f"| {s['name']} | {percent(s['greedy_accuracy'])} | {percent(s['sampled_accuracy'])} | {s['mean_tokens']:.1f} | {s['behaviours']['thinks']:.2f} | {s['seconds']:.0f} |")
    lines += ["", "Greedy accuracy by family:", "", "| family | n | " + " | ".join(s["name"] for s in report["stages"]) + " |", "| --- " * (len(stages) + 2) + "|"]
    for family in base["accuracy"]:
        lines.append(f"| {family} | {base['accuracy'][family]['n']} | " + " | ".join(percent(s["accuracy"][family]) if family in s["accuracy"] else "" for s in report["stages"]) + " |")
    lines += ["", "![accuracy by stage](stages.png)", "", "## What reinforcement learning did", "",
              f"R1-Zero: sampled accuracy {100 * base['sampled_accuracy']['acc']:.1f} -> {100 * zero['sampled_accuracy']['acc']:.1f}, {ratio:.1f} times the base's. "
              f"Over the run (first 5 steps -> last 5): response length {steps['zero']['length'][0]:.1f} -> {steps['zero']['length'][1]:.1f} tokens, "
              f"share that thinks {steps['zero']['thinks'][0]:.2f} -> {steps['zero']['thinks'][1]:.2f}.", "",
              f"R1: sampled accuracy {100 * cold['sampled_accuracy']['acc']:.1f} -> {100 * rl['sampled_accuracy']['acc']:.1f} "
              f"({100 * (rl['sampled_accuracy']['acc'] - cold['sampled_accuracy']['acc']):+.1f} points over the cold start), greedy "
              f"{100 * cold['greedy_accuracy']['acc']:.1f} -> {100 * rl['greedy_accuracy']['acc']:.1f}.", "", "![reinforcement learning](rl.png)", "", "![behaviours](behaviours.png)", "",
              "## Rejection sampling, final SFT, distillation", "", *final_lines(report, rl, final), "",
              "## Best of N", "", "At temperature 0.7. Coverage: some sample is right (unbiased pass@N). Vote: the most frequent answer is right. ORM, PRM: the reward model's favourite is right, or the vote weighted by its "
              "scores. Intervals: bootstrap over problems.", ""]
    for best in (report["best_of_n"], report["best_of_n_harder"]):
        rules = [(rule, title) for rule, title in RULES.items() if rule in best]
        lines += [f"Model `{best['model']}`, level {' and '.join(map(str, best['levels']))}, {best['problems']} problems:", "",
                  "| N | " + " | ".join(title for _, title in rules) + " | tokens a problem |", "| --- " * (2 + len(rules)) + "|"]
        for i, n in enumerate(best["ns"]):
            lines.append(f"| {n} | " + " | ".join(percent(dict(acc=best[rule][i], ci=best[rule + '_ci'][i])) for rule, _ in rules) + f" | {best['tokens'][i]:.0f} |")
        fit = best["log_fit"]
        lines += ["", f"Fit a + b ln N: coverage b = {fit['coverage']['b']:.3f} (R2 {fit['coverage']['r2']:.2f}), "
                  f"vote b = {fit['vote']['b']:.3f} (R2 {fit['vote']['r2']:.2f}).", ""]
    lines += ["![best of N](best_of_n.png)", "", "## The brief's own questions, by a vote of 16", ""]
    for d in report["demo"]:
        lines += [f"**{d['question']}** {'right' if d['correct'] else 'wrong'}", "", "```", d["response"], "```", ""]
    return "\n".join([*lines, "## Seconds and commands", "", *(f"- {report['stage_seconds'][name]:.0f} s: `{text}`" for name, text in report["commands"].items()), ""])


GOAL = 0.8  # of sampled accuracy, by the lower end of its 95% interval
RACE_SEEDS = (0, 1, 2)


def race_plan(out, seed, quick):
    """R1-Zero on the shortest way that we know: a small base, then GRPO until the goal is reached.

    The rules: random weights, the base's mix of text as it is in the speedrun, families and levels
    of R1's training; everything else is free. Problems of the goal are of the validation split.
    """
    base, zero = out / "base", out / "zero"
    families = ",".join(RL_FAMILIES)
    learn = dict(steps=200, batch_size=512, learning_rate=3e-4, eval_every=0, goal=GOAL)
    if quick:
        learn |= dict(steps=2, batch_size=64)
    return [
        Stage("base", "train_sft.py", dict(stage="base", families=families, tokens=30_000 if quick else 1_400_000, out=base, seed=seed),
              "base/report.json", "a base model from random weights", alone=True),
        Stage("zero", "train_grpo.py", dict(init=base, families=families, **learn, out=zero, seed=seed), "zero/report.json", "GRPO until the goal", alone=True),
        Stage("zero: test", "sample.py", dict(eval=True, ckpt=zero, json=out / "test.json", families=families, level="1,2", problems=8 if quick else 200, ns="1", seed=seed),
              "test.json", "the same accuracy on test problems; the clock has stopped", alone=True),
    ]


def commit():
    """Short hash of the commit that runs, with a + where files differ from it; unknown elsewhere."""
    ask = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    try:
        found, changed = ask("rev-parse", "--short", "HEAD"), ask("status", "--porcelain", "-uno")
    except OSError:
        return "unknown"
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "") if found.returncode == 0 else "unknown"


def race(config):
    """Time to reason: run the race once per seed, print a row for each, and keep them in race.json."""
    rows, folder = [], Path(config.out, "race")
    for seed in RACE_SEEDS[: 1 if config.quick else None]:
        out, log = folder / str(seed), {}
        if out.exists():
            raise UserError(f"{out} holds a race; a clock cannot be resumed: choose another --out")
        out.mkdir(parents=True)
        stages = race_plan(out, seed, config.quick)
        for number, stage in enumerate(stages, 1):
            run_stage(replace(config, out=str(out)), stage, f"seed {seed}, {number}/{len(stages)}", 0, log)
        report, test = read(out / "zero" / "report.json"), read(out / "test.json")["sampled"]
        rows.append(dict(seed=seed, minutes=round((log["zero"]["ended"] - log["base"]["began"]) / 60, 2), base_seconds=log["base"]["seconds"],
                         rl_seconds=log["zero"]["seconds"], rl_steps=report["steps"], reached=report["reached"], test=test))
        write_json(folder / "race.json", dict(hardware=hardware(), commit=commit(), torch=torch.__version__, goal=GOAL, rows=rows))
    return rows


def main():
    config = parse_config(Config, doc=__doc__)
    if config.race:
        return race(config)
    out = Path(config.out)
    if "," in config.out:
        raise UserError(f"--out {out}: sample.py takes reward models separated by commas; choose a folder without one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror}") from None
    wanted = dict(seed=config.seed, quick=config.quick)
    if (out / "config.json").exists() and read(out / "config.json") != wanted:
        raise UserError(f"--out {out} holds a run with {read(out / 'config.json')}; choose another folder")
    write_json(out / "config.json", wanted)
    log = read(out / "stages.json") if (out / "stages.json").exists() else {}
    stages = plan(config)
    if other := [stage.name for stage in stages if stage.name in log and log[stage.name].get("command") != command(stage, False)]:
        raise UserError(f"--out {out} holds a run of another version, whose stage {other[0]} was made otherwise; choose another folder")
    todo = [stage for stage in stages if not finished(config, stage, log)]
    if not config.quick and todo:
        say(f"{len(todo)} of {len(stages)} stages to run: about {estimate(todo):.0f} minutes here")
    run_stages(config, stages, log)
    report = build_report(config, log)
    write_json(out / "report.json", report)
    draw_figures(out, report)
    (out / "report.md").write_text(markdown(report))
    say("\n" + markdown(report).split("Greedy accuracy by family:")[0].strip() + f"\n\nThe whole report: {out / 'report.md'}")


if __name__ == "__main__":
    run_script(main)

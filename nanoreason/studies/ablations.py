"""Which switches of GRPO matter: every variant from one checkpoint, at equal sampled tokens, over several seeds.

    python -m nanoreason.studies.ablations                       the README's table: losses, KL, std, clip, process rewards, with and without cold start
    python -m nanoreason.studies.ablations --study tuning        what the laptop preset was chosen by, on validation problems

Needs the checkpoints of a speedrun. Each run is `train_grpo.py` with the flags of its row; its last checkpoint, not a selected one, is measured, so that
all rows have seen equally many tokens. Runs that are done are not repeated: the same command picks up where it was stopped. Leaves
table.md, table.json and table.png in --out/STUDY.
"""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from nanoreason import checkpoint, plots
from nanoreason.flags import flag, parse_config, UserError, whole_numbers
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.run import progress, read_metrics, say, write_json
from nanoreason.evaluate import accuracy, behaviours, collect, held_out_problems, pass_at_k
from nanoreason.experience import Experience, token_logprobs
from nanoreason.generate import generate, sampler
from nanoreason.rewards import outcome_reward
from nanoreason.tokenizer import parse_response, render_prompt

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("multiplication", "chain", "percent", "word", "equation")
STUDIES = {  # {name of the row: flags of train_grpo.py}; COLD and BASE stand for checkpoints
    "losses": {
        "grpo": {},
        "dr-grpo": dict(loss="dr-grpo"),
        "dapo": dict(loss="dapo"),
        "dapo with dynamic sampling and overlong penalty": dict(loss="dapo", dynamic_sampling=True, overlong_buffer=40),
        "gspo": dict(loss="gspo"),
        "cispo": dict(loss="cispo"),
        "KL k1 in the reward": dict(kl="k1"),
        "KL k2": dict(kl="k2"),
        "KL k3": dict(kl="k3"),
        "without std": dict(advantage="mean"),
        "without clip": dict(clip_ratio=0),
        "4 epochs": dict(inner_epochs=4),
        "4 epochs without clip": dict(inner_epochs=4, clip_ratio=0),
        "exact-process": dict(reward="exact-process"),
        "from the base": dict(init="BASE"),
    },
    "tuning": {
        "rate 1e-4": dict(learning_rate=1e-4),
        "rate 2e-4": dict(learning_rate=2e-4),
        "rate 3e-4": dict(learning_rate=3e-4),
        "rate 1e-3": dict(learning_rate=1e-3),
        "batch 256": dict(learning_rate=3e-4, batch_size=256),
        "batch 1024": dict(learning_rate=3e-4, batch_size=1024),
        "groups of 16": dict(learning_rate=3e-4, num_samples_per_prompt=16),
        "1 minibatch": dict(learning_rate=3e-4, minibatches=1),
        "4 minibatches": dict(learning_rate=3e-4, minibatches=4),
    },
}


@dataclass
class Config:
    study: str = flag("losses", "which rows to run", choices=tuple(STUDIES))
    cold: str = flag("runs/speedrun/cold", "checkpoint that runs start from")
    base: str = flag("runs/speedrun/base", "checkpoint of the run without cold start")
    out: str = flag("runs/ablations", "folder for the runs and the table")
    rows: str = flag("", "only these rows, separated by commas; default: all")
    seeds: str = flag("0,1,2", "seeds of each row, separated by commas")
    tokens: int = flag(300_000, "response tokens that each run samples", low=1)
    problems: int = flag(60, "problems of each family to measure on", low=1)
    samples: int = flag(16, "samples of each problem", low=1)
    workers: int = flag(2, "runs at once; each gets its share of the cores", low=1)
    measure: str = flag("", "measure this run's last checkpoint and stop (what the tool calls itself for)")


def folder(config, row, seed):
    return Path(config.out) / config.study / f"{row.replace(' ', '-')}-{seed}"


def flags_of(config, row, seed):
    """{field of train_grpo.Config: value} of one run."""
    flags = dict(init="COLD", token_budget=config.tokens, steps=10_000, eval_every=0) | STUDIES[config.study][row]
    return flags | dict(init={"COLD": config.cold, "BASE": config.base}[flags["init"]], out=str(folder(config, row, seed)), seed=seed)


def command(config, row, seed):
    """The shell words of one run, as a user would type them in the repository."""
    words = ["train_grpo.py"]
    for name, value in flags_of(config, row, seed).items():
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    return words


def finished(config, row, seed):
    """Whether a run is trained and measured. Raises UserError for one that was made with other settings than these."""
    out, wanted = folder(config, row, seed), flags_of(config, row, seed)
    made = {path.name: json.loads(path.read_text()) for path in (out / "config.json", out / "measured.json") if path.exists()}
    other = [name for name, value in wanted.items() if made.get("config.json", wanted)[name] != value]
    wanted = dict(problems=config.problems * len(FAMILIES), samples=config.samples)
    if other := other + [name for name, value in wanted.items() if made.get("measured.json", wanted)[name] != value]:
        raise UserError(f"{out} was made with another {other[0].replace('_', '-')}; choose another --out, or remove it")
    return "measured.json" in made


def execute(config, row, seed):
    """Train and measure one run, unless it is done. Two at once on two cores, a thread each, get more done than one after another."""
    out, threads = folder(config, row, seed), str(max(1, (os.cpu_count() or 1) // config.workers))
    if finished(config, row, seed):
        return
    environment = dict(os.environ, OMP_NUM_THREADS=threads, PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    measure = ["-m", "nanoreason.studies.ablations", "--measure", out, "--study", config.study, "--problems", config.problems, "--samples", config.samples]
    train = command(config, row, seed)
    for words in (*([] if (out / "report.json").exists() else [[str(ROOT / train[0]), *train[1:]]]), measure):
        words += ["--resume"] if words is not measure and (out / "ckpt.pt").exists() else []
        done = subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{row}, seed {seed}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'ended without a word'}")


@torch.no_grad()
def measure(config):
    """Figures of a run's last checkpoint, to measured.json: greedy and sampled accuracy, pass@k, and mean length and exact entropy of the samples,
    all at the run's own limit of tokens."""
    machine, out = start_machine(), Path(config.measure)
    model = checkpoint.load_model(out / "ckpt.pt", machine.device)
    policy = sampler(model, choose_bf16("auto", machine))
    problems = held_out_problems(FAMILIES, (1, 2), config.problems, "val" if config.study == "tuning" else "test")
    G, limit = config.samples, json.loads((out / "config.json").read_text())["max_reasoning_tokens"]
    greedy = collect(policy, problems, 1, 0.0, limit, seed=0)
    rollout = generate(policy, [render_prompt(p.question) for p in problems], G, limit, 1.0, generator(0, "ablations")).cpu()
    responses = [parse_response(rollout.response(row)) for row in range(len(rollout.ids))]
    right = torch.tensor([outcome_reward(problems[row // G], r) for row, r in enumerate(responses)]).view(-1, G)  # (P, G)
    nats, tokens, view = 0.0, 0, Experience(problems, rollout, dict(total=right), [], [])
    settings = SimpleNamespace(row_tokens=128, micro_tokens=16_384, gradient_accumulation=1)
    for micro in view.micro_batches(range(len(responses)), {}, settings, machine.device):
        entropy = token_logprobs(policy, micro, 1.0, with_entropy=True)[1]
        nats, tokens = nats + float(entropy.sum()), tokens + len(entropy)
    n_right = sum(s[0].correct for s in greedy)
    write_json(out / "measured.json", dict(
        greedy=accuracy(n_right, len(greedy)), sampled=round(right.mean().item(), 4), coverage=round(float(np.mean([pass_at_k(G, int(r.sum()), G) for r in right])), 4),
        length=round(rollout.lengths.float().mean().item(), 2), entropy=round(nats / tokens, 4), behaviours=behaviours(responses), problems=len(problems), samples=G))


FIGURES = dict(sampled="sampled, %", greedy="greedy, %", coverage="pass@{samples}, %", length="tokens a response", entropy="entropy, nats a token")


def wanted_rows(config):
    """Names of the rows to run. Raises UserError for one that the study does not have."""
    rows = [row.strip() for row in config.rows.split(",")] if config.rows else list(STUDIES[config.study])
    if unknown := [row for row in rows if row not in STUDIES[config.study]]:
        raise UserError(f"--rows: study {config.study} has no row {unknown[0]!r}; it has {', '.join(STUDIES[config.study])}")
    return rows


def collect_table(config, seeds):
    """{row: {figure: [a number for each seed]}} from what the runs left, with their minutes and sampled tokens."""
    table = {}
    for row in wanted_rows(config):
        measured = [json.loads((folder(config, row, seed) / "measured.json").read_text()) for seed in seeds]
        reports = [json.loads((folder(config, row, seed) / "report.json").read_text()) for seed in seeds]
        steps = [read_metrics(folder(config, row, seed) / "metrics.jsonl") for seed in seeds]
        table[row] = dict(sampled=[100 * m["sampled"] for m in measured], greedy=[100 * m["greedy"]["acc"] for m in measured], coverage=[100 * m["coverage"] for m in measured],
                          length=[m["length"] for m in measured], entropy=[m["entropy"] for m in measured], steps=[r["steps"] for r in reports],
                          seconds=[sum(s["rollout_seconds"] + s["update_seconds"] for s in rows) for rows in steps], tokens=[r["sampled_tokens"] for r in reports])
    return table


def markdown(config, table, seeds):
    """The table for people: mean and standard deviation over seeds."""
    cell = lambda values, digits: f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"
    heads = [text.format(samples=config.samples) for text in FIGURES.values()]
    lines = [f"| {config.study} | " + " | ".join(heads) + " | steps |", "| --- " * (len(heads) + 2) + "|"]
    for row, values in table.items():
        lines.append(f"| {row} | " + " | ".join(cell(values[key], 3 if key == "entropy" else 1) for key in FIGURES) + f" | {np.mean(values['steps']):.0f} |")
    tokens, seconds = (np.array([values[key] for values in table.values()]) for key in ("tokens", "seconds"))
    return "\n".join([*lines, "", f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}; {config.problems * len(FAMILIES)} problems, {config.samples} samples of each; "
                      f"{tokens.min():,} to {tokens.max():,} sampled tokens and {seconds.min():.0f} to {seconds.max():.0f} s a run.", "",
                      *(f"- {row}: `python {shlex.join(map(str, command(config, row, seeds[0])))}`" for row in table), ""])


def main():
    config = parse_config(Config, doc=__doc__)
    if config.measure:
        return measure(config)
    seeds = whole_numbers(config.seeds, "seeds")
    for path in {flags_of(config, row, 0)["init"] for row in wanted_rows(config)}:
        checkpoint.load(path)
    jobs = [(row, seed) for seed in seeds for row in wanted_rows(config)]
    bar = progress(len(jobs), config.study)

    def work(job):
        execute(config, *job)
        bar.update()
        say(f"{job[0]}, seed {job[1]}: {(folder(config, *job) / 'measured.json').read_text().split('behaviours')[0]}".replace("\n", ""))

    with ThreadPoolExecutor(config.workers) as pool:
        list(pool.map(work, jobs))
    bar.close()
    table, out = collect_table(config, seeds), Path(config.out) / config.study
    write_json(out / "table.json", table)
    (out / "table.md").write_text(markdown(config, table, seeds))
    plots.seed_spread(table, {key: text.format(samples=config.samples) for key, text in FIGURES.items()}, out / "table.png")
    say(markdown(config, table, seeds))


if __name__ == "__main__":
    run_script(main)

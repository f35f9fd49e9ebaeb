"""Which switches of GRPO matter: every variant from one checkpoint, at equal sampled tokens.

    python -m nanoreason.studies.ablations
        the README's table, over seeds: losses, KL, std, clip, process rewards, and with or without
        a cold start
    python -m nanoreason.studies.ablations --study tuning
        what the laptop preset was chosen by, on validation problems

Needs the checkpoints of a speedrun. Each run is `train_grpo.py` with the flags of its row. Its last
checkpoint is measured, not a selected one, so that all rows have seen equally many tokens. Runs
that are done are not repeated: the same command continues a study that was stopped. Leaves
table.md, table.json and table.png in --out/STUDY.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nanoreason import checkpoint, plots
from nanoreason.evaluate import (
    accuracy, behaviours, collect, held_out_problems, over_seeds, pass_at_k)
from nanoreason.experience import token_logprobs
from nanoreason.flags import check_output, flag, listed, parse_config, whole_numbers
from nanoreason.generate import make_sampler
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.run import read_metrics, say, write_json
from nanoreason.studies.reports import publish, table_and_note
from nanoreason.studies.runs import check_made, ensure_all, read_if_made
from nanoreason.studies.samples import packed, sample_and_check
from nanoreason.workers import at_once, flag_words, spread

FAMILIES = ("multiplication", "chain", "percent", "word", "equation")
STUDIES = {  # {name of the row: flags of train_grpo.py}; BASE stands for --base
    "losses": {
        "grpo": {},
        "dr-grpo": dict(loss="dr-grpo"),
        "dapo": dict(loss="dapo"),
        "dapo with dynamic sampling and overlong penalty": dict(
            loss="dapo", dynamic_sampling=True, overlong_buffer=40),
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
    samples: int = flag(16, "samples per problem", low=1)


# Runs


def folder(config, row, seed):
    """Folder of one run."""
    return Path(config.out) / config.study / f"{row.replace(' ', '-')}-{seed}"


def flags_of(config, row, seed):
    """{field of train_grpo.Config: value} of one run."""
    flags = dict(init=config.cold, token_budget=config.tokens, steps=10_000, eval_every=0)
    flags |= STUDIES[config.study][row]
    if flags["init"] == "BASE":
        flags["init"] = config.base
    return flags | dict(out=str(folder(config, row, seed)), seed=seed)


def command(config, row, seed):
    """The words of one run, as a user would type them in the repository."""
    return ["train_grpo.py", *flag_words(flags_of(config, row, seed))]


def finished(config, row, seed):
    """Whether a run is trained and measured.

    Raises UserError for one that was made with other settings than these.
    """
    out = folder(config, row, seed)
    check_made(out, read_if_made(out / "config.json"), flags_of(config, row, seed))
    measured = read_if_made(out / "measured.json")
    if measured is None:
        return False
    per_family = measured["problems"] // len(FAMILIES)
    made = dict(problems=per_family, samples=measured["samples"])
    check_made(out, made, dict(problems=config.problems, samples=config.samples))
    return True


def train_and_measure(config, seeds):
    """Make all runs that are not finished: as many at once as there are cores, a thread each.

    Two at once on two cores, one thread each, get more done than one after another on two threads.
    """
    runs = []
    for seed in seeds:
        for row in wanted_rows(config):
            if not finished(config, row, seed):
                runs.append((row, seed))
    training = []
    for row, seed in runs:
        done = folder(config, row, seed) / "report.json"
        training.append((done, "train_grpo.py", flags_of(config, row, seed)))
    ensure_all(training)
    folders = [(folder(config, row, seed),) for row, seed in runs]
    settings = dict(study=config.study, problems=config.problems, samples=config.samples)
    for (row, seed), figures in zip(runs, spread(_measure, settings, folders, at_once())):
        say(f"{row}, seed {seed}: {figures}")


# Measuring


def mean_entropy(policy, experience, device):
    """Mean exact entropy of the policy at every response token, in nats."""
    nats = 0.0
    tokens = 0
    for micro in packed(experience, device):
        _, entropy = token_logprobs(policy, micro, 1.0, with_entropy=True)  # (M,)
        nats += float(entropy.sum())
        tokens += len(entropy)
    return nats / tokens


@torch.no_grad()
def _measure(settings, out):
    """Figures of a run's last checkpoint, to measured.json, at the run's own limit of tokens.

    Greedy and sampled accuracy, pass@k, and the mean length and exact entropy of the samples.
    settings: study, problems and samples of Config.
    """
    machine = start_machine()
    model = checkpoint.load_model(out / "ckpt.pt", machine.device)
    policy = make_sampler(model, choose_bf16("auto", machine))
    split = "val" if settings["study"] == "tuning" else "test"
    problems = held_out_problems(FAMILIES, (1, 2), settings["problems"], split)
    G = settings["samples"]
    limit = read_if_made(out / "config.json")["max_reasoning_tokens"]

    greedy = collect(policy, problems, 1, 0.0, limit, seed=0)
    n_right = sum(samples[0].correct for samples in greedy)

    noise = generator(0, "ablations")
    experience, responses = sample_and_check(policy, problems, G, limit, 1.0, noise)
    right = experience.rewards["total"]  # (P, G)
    coverage = np.mean([pass_at_k(G, int(n), G) for n in right.sum(1)])
    figures = dict(
        greedy=accuracy(n_right, len(greedy)),
        sampled=round(right.mean().item(), 4),
        coverage=round(float(coverage), 4),
        length=round(experience.rollout.lengths.float().mean().item(), 2),
        entropy=round(mean_entropy(policy, experience, machine.device), 4))
    write_json(out / "measured.json", figures | dict(
        behaviours=behaviours(responses), problems=len(problems), samples=G))
    return figures


# The table


FIGURES = dict(  # {key in the table: its head}
    sampled="sampled, %",
    greedy="greedy, %",
    coverage="pass@{samples}, %",
    length="tokens per response",
    entropy="entropy, nats per token",
)


def figure_heads(config):
    """{key: head} of FIGURES, with the number of samples."""
    return {key: text.format(samples=config.samples) for key, text in FIGURES.items()}


def wanted_rows(config):
    """Names of the rows to run. Raises UserError for one that the study does not have."""
    known = list(STUDIES[config.study])
    if not config.rows:
        return known
    return listed(config.rows, "rows", known, f"row of study {config.study}")


def run_figures(out):
    """What one run left: {figure: number}, its seconds and sampled tokens among them."""
    measured = read_if_made(out / "measured.json")
    report = read_if_made(out / "report.json")
    steps = read_metrics(out / "metrics.jsonl")
    return dict(
        sampled=100 * measured["sampled"],
        greedy=100 * measured["greedy"]["acc"],
        coverage=100 * measured["coverage"],
        length=measured["length"],
        entropy=measured["entropy"],
        steps=report["steps"],
        seconds=sum(step["rollout_seconds"] + step["update_seconds"] for step in steps),
        tokens=report["sampled_tokens"])


def collect_table(config, seeds):
    """{row: {figure: [a number per seed]}} from what the runs left."""
    table = {}
    for row in wanted_rows(config):
        runs = [run_figures(folder(config, row, seed)) for seed in seeds]
        table[row] = {key: [run[key] for run in runs] for key in runs[0]}
    return table


def markdown(config, table, seeds):
    """The table for people: mean and standard deviation over seeds."""
    rows = []
    for row, values in table.items():
        cells = [over_seeds(values[key], 3 if key == "entropy" else 1) for key in FIGURES]
        rows.append([row, *cells, f"{np.mean(values['steps']):.0f}"])
    heads = [config.study, *figure_heads(config).values(), "steps"]
    tokens = [n for values in table.values() for n in values["tokens"]]
    seconds = [s for values in table.values() for s in values["seconds"]]
    note = (
        f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}; "
        f"{config.problems * len(FAMILIES)} problems, {config.samples} samples of each; "
        f"{min(tokens):,} to {max(tokens):,} sampled tokens and "
        f"{min(seconds):.0f} to {max(seconds):.0f} s per run.")
    lines = [table_and_note(heads, rows, note), ""]
    for row in table:
        lines.append(f"- {row}: `python {shlex.join(command(config, row, seeds[0]))}`")
    return "\n".join(lines)


def main():
    """Run and measure the rows that are missing, and publish their table."""
    config = parse_config(Config, doc=__doc__)
    check_output(config.out, "out", folder=True)
    seeds = whole_numbers(config.seeds, "seeds")
    for path in {flags_of(config, row, 0)["init"] for row in wanted_rows(config)}:
        checkpoint.load(path)  # a start that is missing should be said before hours of work
    train_and_measure(config, seeds)
    table = collect_table(config, seeds)

    def text(table):
        return markdown(config, table, seeds)

    def draw(table, path):
        return plots.seed_spread(table, figure_heads(config), path)

    publish("table", table, text, draw, Path(config.out) / config.study)


if __name__ == "__main__":
    run_script(main)

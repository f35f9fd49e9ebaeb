"""How good reward models are, and what trusting them costs.

    python -m nanoreason.studies.reward_models --study kinds
        ORM against PRM on identical samples, over seeds
    python -m nanoreason.studies.reward_models --study labels
        PRMs by who labelled the steps: the exact checker, or 1 to 16 Monte Carlo continuations,
        soft and hard
    python -m nanoreason.studies.reward_models --study trust
        over-optimisation: the reward model's score and the truth, by best-of-N and by
        reinforcement learning (trust.py)

Reward models and policies that are missing are trained first, by the scripts, as a user would.
Each study leaves STUDY.json, STUDY.md and STUDY.png in --out.
"""

from dataclasses import dataclass

import numpy as np

from nanoreason.evaluate import over_seeds
from nanoreason.flags import flag, parse_config, whole_numbers
from nanoreason.machine import run_script
from nanoreason.plots import log2_samples, new_axes, save, styled
from nanoreason.reward_model import AGGREGATES, load_reward_model
from nanoreason.studies.reports import (
    grouped, make_study, rounded, seeds_and_means, table_and_note, table_lines)
from nanoreason.studies.runs import read_if_made, train
from nanoreason.studies.samples import (
    SampleConfig, Setup, ensure_reward_models, estimates_of, problems_of)
from nanoreason.studies.trust import trust, trust_figure, trust_markdown

NS = (1, 4, 16, 64)
CONTINUATIONS = (1, 2, 4, 8, 16)  # per step, of Monte Carlo labels


@dataclass
class Config(SampleConfig):
    study: str = flag("kinds", "which study to make", choices=("kinds", "labels", "trust"))
    seeds: str = flag(
        "0,1,2", "seeds of the reward models' training, separated by commas")
    samples: int = flag(256, "samples per problem", low=64)
    questions: int = flag(300, "training questions of --study labels", low=1)

    @property
    def all_seeds(self):
        """Seeds as whole numbers. Raises UserError for anything else."""
        return whole_numbers(self.seeds, "seeds")


# What the studies of kinds and labels share. A run is {"report": of train_prm.py, "curves": below}.


def trained_run(config, name, **flags):
    """The run of one reward model, trained where it is missing; without its curves."""
    out = config.reward_model(name)
    train("train_prm.py", out, **flags)
    return dict(report=read_if_made(out / "report.json"))


def some_pools(config, setup, share, samples):
    """Pools of so many samples of test problems. share: (2, 15) takes 2/15 of the problems."""
    part, whole = share
    pools = setup.pools(setup.model(config.policy), config.problems, config.samples).values()
    return [pool.select(range(len(pool.problems) * part // whole), samples) for pool in pools]


def curves(pools, path, setup, ns):
    """What the reward model in a folder chooses: {rule: [expected accuracy, one per n of ns]}.

    The mean is over the problems of all pools.
    """
    reward_model = load_reward_model(path)
    scored = []
    for pool in pools:
        copy = pool.select(range(len(pool.problems)))  # its scores are of no other reward model
        scored.append(copy.add_reward_model(reward_model.kind, reward_model, setup.bf16))
    found = estimates_of(scored, ns, setup.config.seed)
    return {rule: rounded(values.mean(0)) for rule, values in found.items()}


def positions_of(run):
    """{position in a response: figures of a reward model's scores there}, on test responses."""
    return run["report"]["test"]["positions"]


def seeds_of(runs, position, figure):
    """A figure of the scores at a position, over the runs of several seeds, as text."""
    return over_seeds([positions_of(run)[position][figure] for run in runs], 3)


def step_auc(run):
    """Mean AUC over the positions of steps."""
    aucs = []
    for position, figures in positions_of(run).items():
        if position.startswith("step") and figures["auc"] is not None:
            aucs.append(figures["auc"])
    return float(np.mean(aucs))


def data_note(report, run):
    """On what a study was made: test problems, and the labelled responses of one of its runs."""
    r = run["report"]
    return (
        f"{report['problems']} test problems. "
        f"Labels: {r['responses']:,} different responses with {r['step_labels']:,} steps, "
        f"from {r['cost']['train']['sampled']:,} sampled tokens.")


# --study kinds


KINDS_RULES = (
    "orm", "prm-last", "prm-min", "prm-prod",
    "weighted-orm", "weighted-prm-last", "weighted-prm-min", "weighted-prm-prod",
    "vote", "likelihood", "coverage")
DRAWN_RULES = ("orm", "prm-last", "prm-min", "prm-prod", "vote", "coverage")


def kinds(config, setup):
    """ORM and PRM, of several seeds, on one set of labelled samples."""
    ensure_reward_models(config)
    runs = {}
    for kind in ("orm", "prm"):
        for seed in config.all_seeds:
            name = f"{kind}-{seed}"
            runs[name] = trained_run(
                config, name,
                kind=kind, reuse=config.reward_model("orm-0"), seed=seed, **config.recipe)
    pools = some_pools(config, setup, (1, 3), NS[-1])
    for name, run in runs.items():
        run["curves"] = curves(pools, config.reward_model(name), setup, NS)
    return dict(study="kinds", ns=NS, problems=len(problems_of(pools)), runs=runs)


def runs_of_kind(report, kind):
    """The runs of an ORM or PRM, one per seed."""
    return [run for name, run in report["runs"].items() if name.startswith(kind)]


def kinds_row(report, rule):
    """How good a reward model is at the last token, and what a rule chooses by it, over seeds."""
    runs = runs_of_kind(report, "prm" if "prm" in rule else "orm")
    cells = [rule, "", ""]
    if rule in ("orm", "prm-last"):  # these choose by the score at the last token
        cells[1:] = [seeds_of(runs, "last", figure) for figure in ("auc", "brier")]
    by_seed = 100 * np.array([run["curves"][rule] for run in runs])  # (seeds, ns)
    for column in by_seed.T:
        # a rule without a reward model gives the same for every seed
        cells.append(over_seeds(column) if "rm" in rule else f"{column[0]:.1f}")
    return cells


def kinds_markdown(report):
    """What each rule chooses, over seeds, and how good the reward models are by position."""
    heads = ["rule", "AUC, last token", "Brier score", *(f"best of {n}" for n in report["ns"])]
    lines = table_lines(heads, [kinds_row(report, rule) for rule in KINDS_RULES])
    rows = []
    for kind in ("orm", "prm"):
        runs = runs_of_kind(report, kind)
        for position, first in positions_of(runs[0]).items():
            figures = [seeds_of(runs, position, figure) for figure in ("auc", "brier")]
            right = f"{100 * first['right']:.0f}%"
            rows.append([f"{kind}, {position}", *figures, first["n"], right])
    note = data_note(report, runs[0])
    quality = table_and_note(["position", "AUC", "Brier score", "n", "right"], rows, note)
    return "\n".join([*lines, "", quality])


@styled
def kinds_figure(report, path):
    """Best of N by ORM and PRM, a faint line per seed, and AUC by position."""
    figure, (left, right) = new_axes(1, 2, (9.5, 3.6))
    for color, rule in enumerate(DRAWN_RULES):
        runs = [run for run in report["runs"].values() if rule in run["curves"]]
        by_seed = np.array([run["curves"][rule] for run in runs])  # (seeds, ns)
        left.plot(report["ns"], by_seed.T, color=f"C{color}", alpha=0.25, lw=1)
        left.plot(report["ns"], by_seed.mean(0), "o-", ms=4, color=f"C{color}", label=rule)
    log2_samples(left, report["ns"])
    left.set(
        title=f"accuracy on {report['problems']} problems", xlabel="samples per problem, N")
    left.legend(fontsize=8)
    for color, kind in enumerate(("orm", "prm")):
        for run in runs_of_kind(report, kind):
            where = [f"{kind}, {position}" for position in positions_of(run)]
            aucs = [figures["auc"] for figures in positions_of(run).values()]
            right.plot(where, aucs, "o-", ms=4, color=f"C{color}", alpha=0.6)
    right.set(title="AUC against the exact checker, a line per seed", ylim=(0.5, 1.01))
    for label in right.get_xticklabels():
        label.set(rotation=35, ha="right")
    figure.tight_layout()
    return save(figure, path)


# --study labels


def label_flags():
    """{row: flags of train_prm.py} of every way to label steps."""
    rows = {"exact": dict(labels="exact")}
    for k in CONTINUATIONS:
        rows[f"mc{k}-soft"] = dict(labels="mc", rollouts=k)
        if k > 1:  # one continuation is right or wrong: its soft label is a hard one
            rows[f"mc{k}-hard"] = dict(labels="mc", rollouts=k, hard_labels=True)
    return rows


def labels(config, setup):
    """PRMs of equal samples whose steps were labelled by the exact checker or by continuations."""
    common = dict(
        kind="prm", init=config.policy, temperature=config.temperature,
        questions=config.questions, val_questions=12, batch_size=32, eval_every=25)
    # the first run draws the samples and all continuations; the others reuse them
    source = "labels-mc16-soft-0"
    trained_run(config, source, labels="mc", rollouts=max(CONTINUATIONS), **common)
    runs = {}
    for row, flags in label_flags().items():
        for seed in config.all_seeds:
            run = trained_run(
                config, f"labels-{row}-{seed}",
                reuse=config.reward_model(source), seed=seed, **common, **flags)
            runs[f"{row}-{seed}"] = dict(row=row, **run)
    pools = some_pools(config, setup, (2, 15), 32)
    ns = NS[:-1]
    for name, run in runs.items():
        run["curves"] = curves(pools, config.reward_model(f"labels-{name}"), setup, ns)
    return dict(study="labels", ns=ns, problems=len(problems_of(pools)), runs=runs)


def labels_row(row, runs):
    """One way to label: its continuations, its errors, and the PRM that came of it, over seeds."""
    report = runs[0]["report"]
    continued_tokens = 0
    right_as_wrong = ""
    wrong_as_right = ""
    if row != "exact":
        quality = report["label_quality"]
        continued_tokens = report["cost"]["train"]["rolled"]
        right_as_wrong = error_rate(quality["right_but_called_wrong"], quality["right"])
        wrong_as_right = error_rate(quality["wrong_but_called_right"], quality["wrong"])
    cells = [row, f"{continued_tokens:,}", report["balanced"], right_as_wrong, wrong_as_right]
    cells.append(over_seeds([step_auc(run) for run in runs], 3))
    cells.append(seeds_of(runs, "last", "auc"))
    for how in AGGREGATES:
        cells.append(over_seeds([100 * run["curves"][f"prm-{how}"][2] for run in runs]))
    return cells


def error_rate(errors, n):
    """4, 40  ->  "4 of 40 (10.0%)" """
    return f"{errors:,} of {n:,} ({100 * errors / n:.1f}%)"


def labels_markdown(report):
    """A row for each way to label."""
    heads = [
        "labels", "tokens of continuations", "balanced responses", "right steps called wrong",
        "wrong steps called right", "AUC of steps", "AUC, last token",
        "best of 16: last", "min", "prod"]
    by_row = grouped(report["runs"].values(), "row")
    rows = [labels_row(row, runs) for row, runs in by_row.items()]
    return table_and_note(heads, rows, data_note(report, by_row["exact"][0]))


def best_of_16(run):
    """Accuracy of the best of 16 samples by their smallest score."""
    return run["curves"]["prm-min"][2]


@styled
def labels_figure(report, path):
    """PRM quality against the number of continuations that labelled each step."""
    figure, axes = new_axes(1, 2, (9.5, 3.4))
    panels = {"AUC of single steps": step_auc, "best of 16 by the smallest score": best_of_16}
    by_row = grouped(report["runs"].values(), "row")
    counts = sorted({int(row[2:].split("-")[0]) for row in by_row if row != "exact"})  # mc4-soft
    for axis, (title, value) in zip(axes, panels.items()):
        for color, form in enumerate(("soft", "hard")):
            groups = []
            for k in counts:
                # with one continuation both forms are the same
                row = f"mc{k}-{form}" if k > 1 else "mc1-soft"
                values = [value(run) for run in by_row.get(row, [])]
                if values:
                    groups.append(([k] * len(values), values))
            seeds_and_means(axis, groups, f"C{color}", f"Monte Carlo, {form}")
        exact = [value(run) for run in by_row["exact"]]
        axis.axhline(np.mean(exact), color="black", lw=1, ls="--", label="exact labels")
        axis.axhspan(min(exact), max(exact), color="black", alpha=0.08, lw=0)
        log2_samples(axis, counts)
        axis.set(title=title, xlabel="continuations per step")
    axes[0].legend()
    figure.tight_layout()
    return save(figure, path)


STUDIES = {  # {--study: (makes the report, its table, its figure)}
    "kinds": (kinds, kinds_markdown, kinds_figure),
    "labels": (labels, labels_markdown, labels_figure),
    "trust": (trust, trust_markdown, trust_figure),
}


def main():
    config = parse_config(Config, doc=__doc__)
    config.all_seeds  # a mistake in it should be said before hours of work
    make_study(STUDIES, config, Setup(config))


if __name__ == "__main__":
    run_script(main)

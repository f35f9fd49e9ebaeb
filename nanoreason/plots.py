"""Figures from metrics.jsonl and report.json, always by key.

Every function writes one PNG and returns its path.
"""

import os
import sys
from contextlib import suppress
from functools import wraps
from pathlib import Path

import numpy as np

STYLE = {
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.titlesize": 10,
}


def load_matplotlib():
    """The module matplotlib, also where MPLBACKEND names a backend that is not installed.

    A notebook's kernel sets it to its own for all scripts that it starts, and without that backend
    matplotlib cannot be imported. Files need none; one that there is stays what pyplot will use.
    """
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


matplotlib = load_matplotlib()


def styled(draw):
    """Draw in STYLE, and leave the settings and the backend of the caller (a notebook) alone."""

    @wraps(draw)
    def drawn(*args):
        with matplotlib.rc_context(STYLE):
            return draw(*args)

    return drawn


def new_axes(rows, columns, size, **options):
    """A figure of `size` inches and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


def save(figure, path):
    """Write the figure; returns its path."""
    figure.savefig(path)
    return Path(path)


def label_text(name):
    r"""The name of a run as matplotlib should write it.

    It takes dollars for mathematics, and leaves out of legends what begins with a line:

        '$1 to $2' -> r'\$1 to \$2'    '_old' -> ' _old'
    """
    name = name.replace("$", r"\$")
    return " " + name if name.startswith("_") else name


def log_x(axis):
    """A log axis for x, labelled at powers of ten alone: within one decade labels would overlap."""
    axis.set_xscale("log")
    axis.tick_params(axis="x", which="minor", labelbottom=False)


def log2_samples(axis, ns):
    """Numbers of samples on a log axis, each with its own tick."""
    axis.set_xscale("log", base=2)
    axis.set(xticks=ns)
    axis.set_xticklabels(ns)


# Training


def smooth(values, window=5):
    """Mean over `window` values around each, fewer at the ends.    [0, 3, 6], 3 -> [1.5, 3, 4.5]"""
    half = window // 2
    means = []
    for i in range(len(values)):
        means.append(float(np.mean(values[max(0, i - half) : i + half + 1])))
    return means


@styled
def sft_loss(runs, path):
    """Training loss against tokens. runs: {name: rows of metrics.jsonl}."""
    figure, axes = new_axes(1, len(runs), (4.2 * len(runs), 3), squeeze=False)
    for axis, (name, rows) in zip(axes[0], runs.items()):
        tokens = [row["tokens"] / 1e6 for row in rows]
        losses = [row["loss"] for row in rows]
        axis.plot(tokens, losses, alpha=0.3, color="C0")
        axis.plot(tokens, smooth(losses, 9), color="C0")
        axis.set(
            title=label_text(name), xlabel="million tokens", ylabel="loss, nats per token",
            ylim=(0, None))
    figure.tight_layout()
    return save(figure, path)


RL_PANELS = {  # {key of metrics.jsonl: title}
    "solve_rate": "solve rate of the rollouts",
    "length": "response length, tokens",
    "thinks": "share of responses that think",
    "no_signal": "share of groups without signal",
    "entropy": "exact entropy of trained tokens, nats",
}
SHARES = ("solve_rate", "thinks", "no_signal")  # panels from 0 to 1


def has_reference(rows):
    """Whether a run measures its KL to a reference: without one all are 0."""
    return any(row["kl"] for row in rows)


@styled
def rl_curves(runs, path):
    """What RL changes, step by step. runs: {name: rows of metrics.jsonl}.

    Faint: each step; strong: mean of 5 around it. The sixth panel is the KL to the reference, of
    the runs that have one, or else how far trainer and sampler disagree.
    """
    if any(map(has_reference, runs.values())):
        last = {"kl": "KL to the reference (k3), nats per token"}
    else:
        last = {"sampler_gap": "|log-probability, trainer - sampler|, nats"}
    figure, axes = new_axes(2, 3, (11, 5.6))
    for axis, (key, title) in zip(axes.flat, (RL_PANELS | last).items()):
        for color, (name, rows) in enumerate(runs.items()):
            if key == "kl" and not has_reference(rows):
                continue  # its 0 was not measured
            # a step that trained on nothing has no entropy
            some = [row for row in rows if row[key] is not None]
            steps = [row["step"] for row in some]
            values = [row[key] for row in some]
            axis.plot(steps, values, alpha=0.2, color=f"C{color}")
            axis.plot(steps, smooth(values), color=f"C{color}", label=label_text(name))
        axis.set(title=title, xlabel="step", ylim=(0, 1.02) if key in SHARES else (0, None))
    axes[0, 0].legend()
    figure.tight_layout()
    return save(figure, path)


def rl_figures(runs, folder):
    """Both figures of RL runs, rl.png and behaviours.png, into a folder.

    runs: {name: rows of metrics.jsonl}.
    """
    rl_curves(runs, folder / "rl.png")
    behaviours(runs, folder / "behaviours.png")


BEHAVIOURS = {  # {key of metrics.jsonl: label}
    "thinks": "thinks at all",
    "verification": 'verifies: "Check: ..."',
    "self_correction": 'corrects itself: "Wait, ..."',
    "another_way": 'tries "Another way: ..."',
}


@styled
def behaviours(runs, path):
    """What emerges during RL. runs: {name: rows of metrics.jsonl}; means of 5 steps.

    Shares of responses that think, verify, correct themselves or try another way, and, on the
    right-hand axis, their length.
    """
    figure, axes = new_axes(1, len(runs), (5.6 * len(runs), 3.4), squeeze=False, sharey=True)
    longest = max((row["length"] for rows in runs.values() for row in rows), default=1.0)
    for axis, (name, rows) in zip(axes[0], runs.items()):
        steps = [row["step"] for row in rows]
        for key, label in BEHAVIOURS.items():
            axis.plot(steps, smooth([row[key] for row in rows]), label=label)
        axis.plot([], [], color="grey", ls="--", label="length (right-hand axis)")
        axis.set(
            title=label_text(name), xlabel="step", ylabel="share of responses", ylim=(-0.02, 1.02))
        right = axis.twinx()
        right.plot(steps, smooth([row["length"] for row in rows]), color="grey", ls="--")
        right.set(ylabel="tokens per response", ylim=(0, 1.1 * longest))
        right.spines["right"].set_visible(True)
        right.grid(False)
    figure.tight_layout()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0.02))
    return save(figure, path)


STAGE_LABELS = {"zero": "R1-Zero", "cold": "cold start", "rl": "R1", "final": "final SFT"}


@styled
def stage_bars(stages, path):
    """Greedy accuracy by family and stage with 95% intervals.

    stages: the report's list; a stage may lack families.
    """
    families = list(stages[0]["accuracy"])
    missing = dict(acc=np.nan, ci=[np.nan, np.nan])
    figure, axis = new_axes(1, 1, (11, 3.4))
    width = 0.8 / len(stages)
    for i, stage in enumerate(stages):
        found = [stage["accuracy"].get(family, missing) for family in families]
        acc = np.array([figures["acc"] for figures in found])  # (families,)
        ci = np.array([figures["ci"] for figures in found])  # (families, 2)
        offset = (i - (len(stages) - 1) / 2) * width
        axis.bar(
            np.arange(len(families)) + offset, acc, width * 0.92, yerr=np.abs(ci.T - acc),
            label=STAGE_LABELS.get(stage["name"], stage["name"]), error_kw=dict(lw=0.8, alpha=0.6))
    axis.set(
        xticks=range(len(families)), ylabel="greedy accuracy, test split", ylim=(0, 1.02))
    axis.set_xticklabels(families, rotation=20)
    axis.legend(ncols=len(stages), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return save(figure, path)


# Samples and reward models


SCALING_RULES = {  # {rule of pool.scaling: label}
    "coverage": "coverage: some sample is right",
    "vote": "vote: the most frequent answer is right",
    "orm": "ORM, best of N",
    "prm-last": "PRM, best of N",
    "weighted-prm-last": "vote weighted by the PRM",
}


@styled
def scaling(runs, path):
    """Coverage, vote and, where there are reward models, their choices, against N.

    runs: {title: an entry of the report's best_of_n}; with 95% intervals.
    """
    figure, axes = new_axes(1, len(runs), (4.8 * len(runs), 3.6), squeeze=False, sharey=True)
    for axis, (title, best) in zip(axes[0], runs.items()):
        for color, (rule, label) in enumerate(SCALING_RULES.items()):
            if rule not in best:
                continue
            low, high = np.array(best[rule + "_ci"]).T
            axis.plot(best["ns"], best[rule], "o-", color=f"C{color}", label=label)
            axis.fill_between(best["ns"], low, high, color=f"C{color}", alpha=0.15)
        log2_samples(axis, best["ns"])
        axis.set(
            title=label_text(title), xlabel="samples per problem, N", ylabel="accuracy",
            ylim=(0, 1.02))
        ticks = [f"{n}\n{tokens:.0f} tokens" for n, tokens in zip(best["ns"], best["tokens"])]
        axis.set_xticklabels(ticks)
    axes[0, 0].legend(loc="lower right")
    return save(figure, path)


@styled
def seed_spread(table, figures, path):
    """A dot for each seed and a bar at their mean, row by row; the first row stands out.

    table: {row: {figure: [a number per seed]}}; figures: {figure: title}.
    """
    rows = list(table)
    size = (2.3 * len(figures) + 2, 0.26 * len(rows) + 0.9)
    figure, axes = new_axes(1, len(figures), size, squeeze=False, sharey=True)
    for axis, (key, title) in zip(axes[0], figures.items()):
        for y, row in enumerate(rows):
            values = table[row][key]
            color = "C0" if y else "C1"
            axis.plot(values, [y] * len(values), "o", ms=4, alpha=0.6, color=color)
            axis.plot([np.mean(values)] * 2, [y - 0.35, y + 0.35], lw=2, color=color)
        axis.axvline(np.mean(table[rows[0]][key]), color="C1", lw=0.8, ls=":")
        axis.set(title=title)
    axes[0, 0].set(yticks=range(len(rows)), yticklabels=list(map(label_text, rows)))
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    return save(figure, path)


@styled
def reward_model(reports, path):
    """How good reward models are on test responses. reports: {name: report.json of train_prm.py}.

    Left AUC by position; right calibration: how often a response of a given score is right.
    """
    figure, (left, right) = new_axes(1, 2, (9, 3.4))
    lowest = 0.5
    for color, (name, report) in enumerate(reports.items()):
        aucs = {}
        for where, figures in report["test"]["positions"].items():
            if figures["auc"] is not None:
                aucs[where] = figures["auc"]
        lowest = min([lowest, *aucs.values()])
        left.plot(list(aucs), list(aucs.values()), "o-", color=f"C{color}", label=label_text(name))
        bins = report["test"]["reliability"]
        chances = [b["chance"] for b in bins]
        shares = [b["right"] for b in bins]
        right.plot(chances, shares, "o-", color=f"C{color}", label=label_text(name))
    left.set(title="AUC against the exact checker, by position", ylim=(lowest - 0.01, 1.01))
    left.tick_params(axis="x", rotation=25)
    right.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":")
    right.set(
        title="calibration at the last token", xlabel="score", ylabel="share that is right",
        xlim=(0, 1), ylim=(0, 1))
    right.legend()
    figure.tight_layout()
    return save(figure, path)

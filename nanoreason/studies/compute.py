"""Where compute at inference pays: what N samples buy, by temperature, rule and difficulty.

    python -m nanoreason.studies.compute --study temperature
        what samples are worth at each temperature, on validation problems
    python -m nanoreason.studies.compute --study table
        N = 1 to 256: coverage, vote, ORM and PRM, by family and difficulty
    python -m nanoreason.studies.compute --study budget
        accuracy against sampled tokens, for every method; makes the plan of `auto` (budget.py)
    python -m nanoreason.studies.compute --study sizes
        a small model with N samples against larger ones with one (sizes.py)

Needs the checkpoints of a speedrun. Reward models and larger models that are missing are trained
first, by the scripts, as a user would. Samples are kept in --cache, so that a study that was killed
continues where it stopped. Each study leaves STUDY.json, STUDY.md and STUDY.png in --out.
"""

import time
from dataclasses import dataclass

import numpy as np

from nanoreason.evaluate import greedy_accuracy, held_out_problems
from nanoreason.flags import flag, listed, parse_config
from nanoreason.machine import run_script
from nanoreason.plots import log2_samples, new_axes, save, styled
from nanoreason.pool import estimates, log_fit
from nanoreason.reward_model import AGGREGATES
from nanoreason.studies.budget import budget, budget_figure, budget_markdown
from nanoreason.studies.reports import (
    band, legend_beside, make_study, mean_tokens, percent, rounded, table_and_note, table_lines,
    with_intervals)
from nanoreason.studies.runs import check_sizes
from nanoreason.studies.samples import (
    BINS, FAMILIES, LEVELS, LIMIT, SampleConfig, Setup, estimates_of, first_reward_models)
from nanoreason.studies.sizes import sizes, sizes_figure, sizes_markdown

NS = (1, 4, 16, 64, 256)


@dataclass
class Config(SampleConfig):
    study: str = flag(
        "table", "which study to make", choices=("temperature", "table", "budget", "sizes"))
    sizes: str = flag(
        "runs/sizes", "folder of the models of other sizes; trained where they are missing")
    lines: str = flag(
        "nano:nano-3x+nano-10x+mini,micro:mini+small",
        "--study sizes: each small model, and the larger ones that it is compared with")
    problems: int = flag(
        300,
        "test problems of each family and level; a third as many for --study sizes, "
        "a ninth for --study budget",
        low=9)

    @property
    def all_lines(self):
        """{small: [larger, ...]} of --lines. Raises UserError for a size that does not exist."""
        lines = {}
        for line in listed(self.lines, "lines"):
            small, _, larger = line.partition(":")
            lines[small] = larger.split("+")
            check_sizes([small, *lines[small]], "lines")
        return lines


# --study temperature


TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0)
TEMPERATURE_NS = (1, 4, 16, 64)
RULES = ("coverage", "vote", "likelihood")


def temperature(config, setup):
    """What samples are worth at each temperature, on validation problems.

    The other studies take the temperature that this one favours.
    """
    model = setup.model(config.policy)
    count = max(1, config.problems // 10)
    rows = {}
    for t in TEMPERATURES:
        pools = setup.pools(model, count, max(TEMPERATURE_NS), "val", temperature=t)
        found = estimates_of(pools.values(), TEMPERATURE_NS, config.seed)
        rows[str(t)] = {rule: rounded(found[rule].mean(0)) for rule in RULES}
    problems = held_out_problems(FAMILIES, LEVELS, count * len(LEVELS), "val", config.seed)
    return dict(
        study="temperature", policy=config.policy, problems=len(problems), ns=TEMPERATURE_NS,
        rows=rows, greedy=greedy_accuracy(model, problems, LIMIT))


def temperature_markdown(report):
    """One row per temperature."""
    ns = report["ns"]
    greedy = report["greedy"]
    heads = ["temperature", "one sample"]
    heads += [f"{rule} of {n}" for rule in RULES for n in ns[1:]]
    rows = []
    for t, row in report["rows"].items():
        values = [row["vote"][0]]  # a vote of one sample is that sample
        for rule in RULES:
            values += row[rule][1:]
        rows.append([t, *(f"{100 * value:.1f}" for value in values)])
    return table_and_note(
        heads, rows,
        f"n = {report['problems']} validation problems. "
        f"Greedy: {percent(greedy['acc'], greedy['ci'])}.")


@styled
def temperature_figure(report, path):
    """One sample, and what is chosen among many, against the temperature."""
    figure, axis = new_axes(1, 1, (5.2, 3.6))
    ns = report["ns"]
    temperatures = [float(t) for t in report["rows"]]
    curves = [("vote", n) for n in (1, 4, 16, 64)] + [("coverage", n) for n in (16, 64)]
    for color, (rule, n) in enumerate(curves):
        values = [row[rule][ns.index(n)] for row in report["rows"].values()]
        style = "o--" if rule == "coverage" else "o-"
        label = "one sample" if n == 1 else f"{rule} of {n}"
        axis.plot(temperatures, values, style, color=f"C{color}", ms=4, label=label)
    axis.axhline(report["greedy"]["acc"], color="grey", lw=0.9, ls=":", label="greedy")
    axis.set(
        xlabel="temperature", ylim=(0, 1.02),
        ylabel=f"accuracy, n = {report['problems']} validation problems")
    legend_beside(axis)
    return save(figure, path)


# --study table


def table(config, setup):
    """What N samples buy, by rule, family and difficulty.

    The PRM's aggregate over steps is chosen on validation problems.
    """
    reward_models = first_reward_models(config)
    model = setup.model(config.policy)
    pools = setup.pools(model, 30, 64, "val", reward_models)
    found = estimates_of(pools.values(), [64], config.seed)
    validation = {rule: float(values.mean()) for rule, values in found.items()}
    chosen = max((f"prm-{how}" for how in AGGREGATES), key=validation.get)

    began = time.time()
    pools = setup.pools(model, config.problems, config.samples, "test", reward_models)
    ns = [n for n in NS if n <= config.samples]
    cells = {}
    for (family, level), pool in pools.items():
        values = estimates(pool, ns, config.seed)  # {rule: (P, ns)}
        cells[f"{family}, {BINS[level - 1]}"] = dict(
            problems=len(pool.problems), tokens=mean_tokens(pool.tokens), ns=ns,
            rules={rule: with_intervals(x) for rule, x in values.items()})
    return dict(
        study="table", policy=config.policy, chosen_on_validation=chosen,
        validation={rule: round(acc, 4) for rule, acc in validation.items()},
        cells=cells, **table_fits(cells, ns), seconds=round(time.time() - began, 1))


def table_fits(cells, ns):
    """Fits of a + b ln N to every cell, and the mean over cells with its own fit, by rule."""
    rules = list(next(iter(cells.values()))["rules"])
    fits = {}
    for name, cell in cells.items():
        fits[name] = {rule: log_fit(ns, cell["rules"][rule]["acc"]) for rule in rules}
    means = {}
    for rule in rules:
        means[rule] = np.mean([cell["rules"][rule]["acc"] for cell in cells.values()], 0)  # (ns,)
    return dict(
        fits=fits,
        mean={rule: rounded(values) for rule, values in means.items()},
        mean_fit={rule: log_fit(ns, values) for rule, values in means.items()})


def table_markdown(report):
    """Every cell with its intervals, then the mean over cells by every rule."""
    ns = next(iter(report["cells"].values()))["ns"]
    chosen = report["chosen_on_validation"]
    prm_title = f"PRM ({chosen.removeprefix('prm-')})"
    shown = {"coverage": "coverage", "vote": "vote", "orm": "ORM", chosen: prm_title}
    rows = []
    for name, cell in report["cells"].items():
        for rule, title in shown.items():
            found = cell["rules"][rule]
            figures = [percent(acc, ci) for acc, ci in zip(found["acc"], found["ci"])]
            rows.append([name, title, *figures, f"{report['fits'][name][rule]['r2']:.2f}"])
    heads = ["family, difficulty", "rule", *(f"N = {n}" for n in ns), "R2 of a + b ln N"]
    lines = table_lines(heads, rows)
    cells = len(report["cells"])
    lines += ["", f"Mean over the {cells} cells, and gain over N = 1, relative:", ""]

    rows = []
    for rule, values in report["mean"].items():
        figures = []
        for n, value in zip(ns, values):
            gain = ""
            if n > 1 and values[0] > 0:
                gain = f" ({100 * (value / values[0] - 1):+.0f}%)"
            figures.append(f"{100 * value:.1f}{gain}")
        rows.append([rule, *figures, f"{report['mean_fit'][rule]['r2']:.2f}"])
    heads = ["rule", *(f"N = {n}, {n}x the samples" for n in ns), "R2"]
    return "\n".join(lines + table_lines(heads, rows))


@styled
def table_figure(report, path):
    """Accuracy against N by rule, a panel for each family and difficulty."""
    rules = {
        "coverage": "coverage",
        "vote": "vote",
        "orm": "ORM, best of N",
        report["chosen_on_validation"]: "PRM, best of N",
        "weighted-orm": "vote weighted by the ORM",
    }
    figure, axes = new_axes(3, 3, (11, 8.4), sharex=True, sharey=True)
    for axis, (name, cell) in zip(axes.flat, report["cells"].items()):
        for color, (rule, label) in enumerate(rules.items()):
            band(axis, cell["ns"], cell["rules"][rule], f"C{color}", label)
        log2_samples(axis, cell["ns"])
        axis.set(title=f"{name} ({cell['problems']} problems)", ylim=(0, 1.02))
    for axis in axes[-1]:
        axis.set(xlabel="samples per problem, N")
    for axis in axes[:, 0]:
        axis.set(ylabel="accuracy")
    figure.tight_layout()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0.01))
    return save(figure, path)


STUDIES = {  # {--study: (makes the report, its table, its figure)}
    "temperature": (temperature, temperature_markdown, temperature_figure),
    "table": (table, table_markdown, table_figure),
    "budget": (budget, budget_markdown, budget_figure),
    "sizes": (sizes, sizes_markdown, sizes_figure),
}


def main():
    config = parse_config(Config, doc=__doc__)
    config.all_lines  # a mistake in it should be said before hours of work
    make_study(STUDIES, config, Setup(config))


if __name__ == "__main__":
    run_script(main)

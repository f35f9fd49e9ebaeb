"""The studies' figures. Each is drawn from the report of its study: (report, path) -> path."""

import numpy as np

from nanoreason.plots import log2_samples, new_axes, save, seed_spread, styled
from nanoreason.studies.reports import step_auc


def _band(axis, x, values, intervals, color, label, style="o-"):
    """A curve with its 95% intervals."""
    low, high = np.array(intervals).T
    axis.plot(x, values, style, ms=4, color=color, label=label)
    axis.fill_between(x, low, high, color=color, alpha=0.12, lw=0)


def _seeds_and_means(axis, groups, color, label):
    """A dot per seed and a curve through their means. groups: [(x of the seeds, y of them)]."""
    for x, y in groups:
        axis.plot(x, y, ".", ms=5, alpha=0.5, color=color)
    x_means = [np.mean(x) for x, _ in groups]
    y_means = [np.mean(y) for _, y in groups]
    axis.plot(x_means, y_means, "o-", ms=4, color=color, label=label)


def _legend_beside(axis):
    """The legend to the right of an axis."""
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _grouped(rows, key):
    """{value of the key: its rows}, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


# Test-time compute: studies/compute.py


@styled
def compute_temperature(report, path):
    """One sample, and what is chosen among many, against the temperature."""
    figure, axis = new_axes(1, 1, (5.2, 3.6))
    ns = list(report["ns"])
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
    _legend_beside(axis)
    return save(figure, path)


@styled
def compute_table(report, path):
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
            found = cell["rules"][rule]
            _band(axis, cell["ns"], found["acc"], found["ci"], f"C{color}", label)
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


@styled
def compute_budget(report, path):
    """Accuracy against sampled tokens per question, for every method; `auto` in black."""
    figure, axis = new_axes(1, 1, (7.6, 4.8))
    for index, (name, rows) in enumerate(report["methods"].items()):
        rows = sorted(rows, key=lambda row: row["tokens"])
        x = [row["tokens"] for row in rows]
        y = [row["acc"] for row in rows]
        errors = np.abs(np.array([row["ci"] for row in rows]).T - y)  # (2, rows)
        color = f"C{index}"
        style = dict(marker="o", ls="-", ms=4, lw=1.2, zorder=2)
        if name == "auto":
            color = "black"
            style = dict(marker="D", ls="-", ms=6, lw=2, zorder=3)
        elif len(rows) == 1:
            style = dict(marker="*", ls="", ms=11, lw=1.2, zorder=2)
        axis.plot(x, y, color=color, label=name, **style)
        axis.errorbar(x, y, errors, fmt="none", color=color, lw=0.6, alpha=0.4)
    axis.set_xscale("log")
    axis.set(
        xlabel="sampled tokens per question", ylabel=f"accuracy, n = {report['problems']}")
    _legend_beside(axis)
    return save(figure, path)


@styled
def compute_sizes(report, path):
    """Accuracy against inference FLOPs by difficulty.

    All models with one greedy response; small ones also with N samples, by vote and by their ORM.
    """
    curves = report["curves"]
    bins = list(next(iter(curves.values()))["bins"])
    figure, axes = new_axes(1, len(bins), (4.2 * len(bins), 3.6), sharey=True)
    for axis, title in zip(axes, bins):
        for color, (name, curve) in enumerate(curves.items()):
            _size_curve(axis, name, curve, curve["bins"][title], f"C{color}")
        axis.set_xscale("log")
        axis.set(title=title, xlabel="inference GFLOP per question", ylim=(0, 1.02))
    axes[0].set(ylabel="accuracy")
    _legend_beside(axes[-1])
    return save(figure, path)


def _size_curve(axis, name, curve, b, color):
    """One model at one difficulty. b: its bin of the report."""
    ns = curve["ns"]
    per_token = curve["flops_per_token"] / 1e9
    voting = [per_token * (b["prompt"] + n * b["tokens"]) for n in ns]  # GFLOP by n
    label = f"{name}, {curve['params'] / 1e6:.1f}M: greedy"
    axis.plot(
        voting[0], b["greedy"]["acc"], "*", ms=11, color=color, zorder=3, label=label)
    if len(ns) == 1:
        return
    _band(axis, voting, b["vote"]["acc"], b["vote"]["ci"], color, f"{name}: vote of N")
    # an ORM reads prompt and response of every sample again, where there is a choice
    scoring = []
    for n, flops in zip(ns, voting):
        read = n * (b["prompt"] + b["tokens"]) if n > 1 else 0
        scoring.append(flops + per_token * read)
    _band(
        axis, scoring, b["orm"]["acc"], b["orm"]["ci"], color, f"{name}: ORM, best of N", "o--")


# Reward models: studies/reward_models.py


KINDS_RULES = {  # {rule: label}
    "orm": "ORM",
    "prm-last": "PRM, last",
    "prm-min": "PRM, min",
    "prm-prod": "PRM, product",
    "vote": "vote",
    "coverage": "coverage",
}


@styled
def reward_model_kinds(report, path):
    """Best of N by ORM and PRM, a faint line per seed, and AUC by position."""
    runs = report["runs"]
    figure, (left, right) = new_axes(1, 2, (9.5, 3.6))
    for color, (rule, label) in enumerate(KINDS_RULES.items()):
        found = [run["curves"][rule] for run in runs.values() if rule in run["curves"]]
        curves = np.array(found)  # (seeds, ns)
        left.plot(report["ns"], curves.T, color=f"C{color}", alpha=0.25, lw=1)
        left.plot(report["ns"], curves.mean(0), "o-", ms=4, color=f"C{color}", label=label)
    log2_samples(left, report["ns"])
    left.set(
        title=f"accuracy on {report['problems']} problems", xlabel="samples per problem, N")
    left.legend(fontsize=8)
    for color, kind in enumerate(("orm", "prm")):
        for name, run in runs.items():
            if not name.startswith(kind):
                continue
            positions = run["report"]["test"]["positions"]
            where = [f"{kind}, {position}" for position in positions]
            aucs = [figures["auc"] for figures in positions.values()]
            right.plot(where, aucs, "o-", ms=4, color=f"C{color}", alpha=0.6)
    right.set(title="AUC against the exact checker, a line per seed", ylim=(0.5, 1.01))
    for label in right.get_xticklabels():
        label.set(rotation=35, ha="right")
    figure.tight_layout()
    return save(figure, path)


def _auc_of_steps(run):
    return step_auc(run["report"])


def _best_of_16(run):
    return run["curves"]["prm-min"][2]


@styled
def reward_model_labels(report, path):
    """PRM quality against the number of rollouts that labelled each step."""
    figure, axes = new_axes(1, 2, (9.5, 3.4))
    panels = {"AUC of single steps": _auc_of_steps, "best of 16 by the smallest score": _best_of_16}
    for axis, (title, value) in zip(axes, panels.items()):
        by_row = {}  # {way to label: [value per seed]}
        for run in report["runs"].values():
            by_row.setdefault(run["row"], []).append(value(run))
        exact = by_row.pop("exact")
        counts = sorted({int(row[2:].split("-")[0]) for row in by_row})  # of "mc4-soft"
        for color, form in enumerate(("soft", "hard")):
            groups = []
            for k in counts:
                # with one rollout both forms are the same
                values = by_row.get(f"mc{k}-{form}" if k > 1 else "mc1-soft", [])
                if values:
                    groups.append(([k] * len(values), values))
            _seeds_and_means(axis, groups, f"C{color}", f"Monte Carlo, {form}")
        axis.axhline(np.mean(exact), color="black", lw=1, ls="--", label="exact labels")
        axis.axhspan(min(exact), max(exact), color="black", alpha=0.08, lw=0)
        log2_samples(axis, counts)
        axis.set(title=title, xlabel="rollouts per step")
    axes[0].legend()
    figure.tight_layout()
    return save(figure, path)


@styled
def reward_model_trust(report, path):
    """True reward and the reward model's score against sqrt(KL), by best of N and by RL."""
    figure, axes = new_axes(2, 2, (9.5, 6.4), sharey=True)
    for (left, right), kind in zip(axes, report["rl"]):
        best = report["best_of_n"][kind]
        rl = report["rl"][kind]
        fits = report["fits"][kind]
        _drift(left, best["d"], best["gold"], best["proxy"], fits["bon"], bon=True)
        left.set(title=f"best of N by the {kind.upper()}")
        gold = [row["gold"] for row in rl]
        proxy = [row[kind] for row in rl]
        d = [row["kl"] ** 0.5 for row in rl]
        _drift(right, d, gold, proxy, fits["rl"], bon=False)
        right.set(title=f"reinforcement learning by the {kind.upper()}")
    figure.tight_layout()
    return save(figure, path)


def _drift(axis, d, gold, proxy, fit, bon):
    """One panel of `reward_model_trust`, with the fit of Gao et al. 2210.10760 (gao_fit)."""
    smooth_d = np.linspace(1e-3, max(d), 200)
    bend = smooth_d if bon else np.log(smooth_d)
    law = gold[0] + smooth_d * (fit["a"] - fit["b"] * bend)
    label = f"d(a - b {'d' if bon else 'ln d'}), R2 {fit['r2']:.2f}"
    axis.plot(d, proxy, "o-", ms=4, color="C1", label="the reward model's score")
    axis.plot(d, gold, "o", ms=5, color="C0", label="true: by the checker")
    axis.plot(smooth_d, law, color="C0", lw=1, ls="--", label=label)
    axis.set(xlabel="sqrt(KL), KL in nats per response", ylim=(0, 1.02))
    axis.legend(fontsize=8)


# Students: studies/students.py


def _sampled(row):
    return row["sampled"]


def _greedy(row):
    return row["greedy"]["acc"]


@styled
def student_sizes(report, path):
    """Accuracy of students against their parameters, and against the cost of an answer.

    A line per road; dots: seeds.
    """
    rows = report["rows"]
    (teacher,) = [row for row in rows if row["road"] == "teacher"]
    students = [row for row in rows if row["road"] != "teacher"]
    figure, axes = new_axes(1, 2, (10, 3.8), sharey=True)
    for axis, key in zip(axes, ("params", "mean_flops")):
        for color, (road, of_road) in enumerate(_grouped(students, "road").items()):
            groups = []
            for some in _grouped(of_road, "size").values():
                groups.append(([row[key] for row in some], [_greedy(row) for row in some]))
            _seeds_and_means(axis, groups, f"C{color}", road)
        axis.plot(teacher[key], _greedy(teacher), "k*", ms=11, label="teacher")
        axis.set_xscale("log")
        goal = 0.9 * _greedy(teacher)
        axis.axhline(goal, color="grey", lw=0.9, ls=":", label="90% of the teacher's")
    axes[0].set(
        xlabel="parameters", ylim=(0, 1.02),
        ylabel=f"greedy accuracy, n = {teacher['greedy']['n']}")
    axes[1].set(xlabel="inference FLOP per question")
    _legend_beside(axes[1])
    return save(figure, path)


@styled
def student_cleaning(report, path):
    """Three figures of students by how their traces were cleaned; dots: seeds."""
    table = {}
    for way in report["collected"]:
        some = [row for row in report["rows"] if row["way"] == way]
        table[way] = dict(
            acc=[100 * _greedy(row) for row in some],
            unsound=[100 * row["unsound"]["acc"] for row in some],
            tokens=[row["mean_tokens"] for row in some])
    titles = dict(
        acc="greedy accuracy, %", unsound="right answer, unsound steps, %",
        tokens="tokens per response")
    return seed_spread(table, titles, path)


@styled
def student_rejection(report, path):
    """Accuracy against sampled tokens, of rejection sampling and GRPO; dots: seeds."""
    figure, axes = new_axes(1, 2, (9, 3.6), sharey=True)
    by_way = _grouped(report["rows"], "way")
    (start,) = by_way["start"]
    budgets = sorted({row["budget"] for row in report["rows"]} - {0})
    panels = {"sampled at temperature 1": _sampled, "greedy": _greedy}
    for axis, (title, value) in zip(axes, panels.items()):
        for color, way in enumerate(("rejection", "grpo")):
            groups = []
            for _, some in sorted(_grouped(by_way[way], "budget").items()):
                groups.append(([row["tokens"] for row in some], [value(row) for row in some]))
            _seeds_and_means(axis, groups, f"C{color}", way)
        axis.axhline(value(start), color="grey", lw=0.9, ls=":", label="cold start")
        axis.set_xscale("log")
        axis.set(title=title, xlabel="sampled tokens", ylim=(0, 1.02))
        axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axis.set_xticks([], minor=True)
    axes[0].set(ylabel=f"accuracy, {report['problems']} test problems")
    axes[1].legend()
    return save(figure, path)

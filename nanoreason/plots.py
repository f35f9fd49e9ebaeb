"""Figures from metrics.jsonl and report.json, always by key. Every function writes one PNG and returns its path."""

from functools import wraps
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

STYLE = {"figure.dpi": 110, "savefig.bbox": "tight", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25,
         "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.titlesize": 10}


def styled(draw):
    """Draw in STYLE, and leave the settings and the backend of whoever imports this, a notebook say, alone."""

    @wraps(draw)
    def drawn(*args):
        with matplotlib.rc_context(STYLE):
            return draw(*args)

    return drawn


def _axes(rows, columns, size, **options):
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


def _save(figure, path):
    figure.savefig(path)
    return Path(path)


def smooth(values, window=5):
    """Mean over the last `window` values, so that a curve never looks ahead."""
    return [float(np.mean(values[max(0, i + 1 - window) : i + 1])) for i in range(len(values))]


@styled
def sft_loss(runs, path):
    """Training loss against tokens. runs: {name: rows of metrics.jsonl}."""
    figure, axes = _axes(1, len(runs), (4.2 * len(runs), 3), squeeze=False)
    for axis, (name, rows) in zip(axes[0], runs.items()):
        axis.plot([r["tokens"] / 1e6 for r in rows], [r["loss"] for r in rows], alpha=0.3, color="C0")
        axis.plot([r["tokens"] / 1e6 for r in rows], smooth([r["loss"] for r in rows], 9), color="C0")
        axis.set(title=name, xlabel="million tokens", ylabel="loss, nats a token", ylim=(0, None))
    figure.tight_layout()
    return _save(figure, path)


RL_PANELS = (("solve_rate", "solve rate of the rollouts"), ("length", "response length, tokens"), ("thinks", "share of responses that think"),
             ("no_signal", "share of groups without signal"), ("entropy", "exact entropy of trained tokens, nats"))


@styled
def rl_curves(runs, path):
    """What RL changes, step by step. runs: {name: rows of metrics.jsonl}; faint: each step, strong: mean of the last 5.

    The sixth panel is the KL to the reference, or, in runs without one, how far trainer and sampler disagree.
    """
    with_kl = any(r["kl"] for rows in runs.values() for r in rows)
    last = ("kl", "KL to the reference (k3), nats a token") if with_kl else ("sampler_gap", "|log-probability, trainer - sampler|, nats")
    figure, axes = _axes(2, 3, (11, 5.6))
    for axis, (key, title) in zip(axes.flat, (*RL_PANELS, last)):
        for color, (name, rows) in enumerate(runs.items()):
            some = [r for r in rows if r[key] is not None]  # a step that trained on nothing has no entropy
            steps, values = [r["step"] for r in some], [r[key] for r in some]
            axis.plot(steps, values, alpha=0.2, color=f"C{color}")
            axis.plot(steps, smooth(values), color=f"C{color}", label=name)
        axis.set(title=title, xlabel="step", ylim=(0, 1.02) if key in ("solve_rate", "thinks", "no_signal") else (0, None))
    axes[0, 0].legend()
    figure.tight_layout()
    return _save(figure, path)


def rl_figures(runs, folder):
    """Both figures of RL runs, rl.png and behaviours.png, into a folder. runs: {name: rows of metrics.jsonl}."""
    rl_curves(runs, folder / "rl.png")
    behaviours(runs, folder / "behaviours.png")


BEHAVIOURS = dict(thinks="thinks at all", verification="verifies: \"Check: ...\"", self_correction="corrects itself: \"Wait, ...\"",
                  another_way="tries \"Another way: ...\"")


@styled
def behaviours(runs, path):
    """What emerges during RL: shares of responses that think, verify, correct themselves or try another way, and, on the right-hand axis, their
    length. runs: {name: rows of metrics.jsonl}; means of the last 5 steps."""
    figure, axes = _axes(1, len(runs), (5.6 * len(runs), 3.4), squeeze=False, sharey=True)
    longest = max(r["length"] for rows in runs.values() for r in rows)
    for axis, (name, rows) in zip(axes[0], runs.items()):
        steps, right = [r["step"] for r in rows], axis.twinx()
        for key, label in BEHAVIOURS.items():
            axis.plot(steps, smooth([r[key] for r in rows]), label=label)
        right.plot(steps, smooth([r["length"] for r in rows]), color="grey", ls="--")
        axis.plot([], [], color="grey", ls="--", label="length (right-hand axis)")
        axis.set(title=name, xlabel="step", ylabel="share of responses", ylim=(-0.02, 1.02))
        right.set(ylabel="tokens a response", ylim=(0, 1.1 * longest))
        right.spines["right"].set_visible(True)
        right.grid(False)
    figure.tight_layout()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0.02))
    return _save(figure, path)


@styled
def stage_bars(stages, path):
    """Greedy accuracy by family and stage with 95% intervals. stages: the report's list; a stage may lack families."""
    families, none = list(stages[0]["accuracy"]), dict(acc=np.nan, ci=[np.nan, np.nan])
    figure, axis = _axes(1, 1, (11, 3.4))
    width = 0.8 / len(stages)
    for i, stage in enumerate(stages):
        acc = np.array([stage["accuracy"].get(f, none)["acc"] for f in families])
        ci = np.array([stage["accuracy"].get(f, none)["ci"] for f in families])
        axis.bar(np.arange(len(families)) + (i - (len(stages) - 1) / 2) * width, acc, width * 0.92, yerr=np.abs(ci.T - acc), label=stage["name"],
                 error_kw=dict(lw=0.8, alpha=0.6))
    axis.set(xticks=range(len(families)), ylabel="greedy accuracy, test split", ylim=(0, 1.02))
    axis.set_xticklabels(families, rotation=20)
    axis.legend(ncols=len(stages), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return _save(figure, path)


@styled
def scaling(runs, path):
    """Coverage, vote and, where there are reward_models, their choices against N on a log axis, with 95% intervals. runs: {title: an entry of the report's best_of_n}."""
    labels = {"coverage": "coverage: some sample is right", "vote": "vote: the most frequent answer is right", "orm": "ORM, best of N", "prm-last": "PRM, best of N",
              "weighted-prm-last": "vote weighted by the PRM"}
    figure, axes = _axes(1, len(runs), (4.8 * len(runs), 3.6), squeeze=False, sharey=True)
    for axis, (title, best) in zip(axes[0], runs.items()):
        for color, (key, label) in enumerate(labels.items()):
            if key not in best:
                continue
            low, high = np.array(best[key + "_ci"]).T
            axis.plot(best["ns"], best[key], "o-", color=f"C{color}", label=label)
            axis.fill_between(best["ns"], low, high, color=f"C{color}", alpha=0.15)
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel="samples a problem, N", ylabel="accuracy", xticks=best["ns"], ylim=(0, 1.02))
        axis.set_xticklabels([f"{n}\n{t:.0f} tokens" for n, t in zip(best["ns"], best["tokens"])])
    axes[0, 0].legend(loc="lower right")
    return _save(figure, path)


@styled
def seed_spread(table, figures, path):
    """A dot for each seed and a bar at their mean, row by row. table: {row: {figure: [a number for each seed]}}; figures: {figure: title}."""
    rows = list(table)
    figure, axes = _axes(1, len(figures), (2.3 * len(figures) + 2, 0.26 * len(rows) + 0.9), squeeze=False, sharey=True)
    for axis, (key, title) in zip(axes[0], figures.items()):
        for y, row in enumerate(rows):
            values = table[row][key]
            axis.plot(values, [y] * len(values), "o", ms=4, alpha=0.6, color="C0" if y else "C1")
            axis.plot([np.mean(values)] * 2, [y - 0.35, y + 0.35], lw=2, color="C0" if y else "C1")
        axis.axvline(np.mean(table[rows[0]][key]), color="C1", lw=0.8, ls=":")
        axis.set(title=title)
    axes[0, 0].set(yticks=range(len(rows)), yticklabels=rows)
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    return _save(figure, path)


@styled
def reward_model(reports, path):
    """How good reward models are on test responses: AUC by position, and how often a score of so much is right. reports: {name: report.json of train_prm.py}."""
    figure, (left, right) = _axes(1, 2, (9, 3.4))
    for color, (name, report) in enumerate(reports.items()):
        positions = {where: p["auc"] for where, p in report["test"]["positions"].items() if p["auc"] is not None}
        left.plot(list(positions), list(positions.values()), "o-", color=f"C{color}", label=name)
        bins = report["test"]["reliability"]
        right.plot([b["chance"] for b in bins], [b["right"] for b in bins], "o-", color=f"C{color}", label=name)
    left.set(title="AUC against the exact judge, by position", ylim=(0.5, 1.01))
    left.tick_params(axis="x", rotation=25)
    right.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":")
    right.set(title="calibration at the last token", xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    right.legend()
    figure.tight_layout()
    return _save(figure, path)


def _band(axis, x, values, intervals, color, label, style="o-"):
    """A curve with its 95% intervals."""
    low, high = np.array(intervals).T
    axis.plot(x, values, style, ms=4, color=color, label=label)
    axis.fill_between(x, low, high, color=color, alpha=0.12, lw=0)


@styled
def compute_temperature(report, path):
    """One sample, and what is chosen among many, against the temperature. report: of compute.py --study temperature."""
    figure, axis = _axes(1, 1, (5.2, 3.6))
    x = [float(t) for t in report["rows"]]
    for color, (rule, n) in enumerate((("vote", 1), ("vote", 4), ("vote", 16), ("vote", 64), ("coverage", 16), ("coverage", 64))):
        values = [row[rule][list(report["ns"]).index(n)] for row in report["rows"].values()]
        axis.plot(x, values, "o--" if rule == "coverage" else "o-", color=f"C{color}", ms=4, label="one sample" if n == 1 else f"{rule} of {n}")
    axis.axhline(report["greedy"]["acc"], color="grey", lw=0.9, ls=":", label="greedy")
    axis.set(xlabel="temperature", ylabel=f"accuracy, n = {report['problems']} validation problems", ylim=(0, 1.02))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


@styled
def compute_table(report, path):
    """Accuracy against N by rule, a panel for each family and difficulty. report: of compute.py --study table."""
    cells, chosen = report["cells"], report["chosen_on_validation"]
    figure, axes = _axes(3, 3, (11, 8.4), sharex=True, sharey=True)
    for axis, (name, cell) in zip(axes.flat, cells.items()):
        for color, (rule, label) in enumerate({"coverage": "coverage", "vote": "vote", "orm": "ORM, best of N", chosen: "PRM, best of N", "weighted-orm": "vote weighted by the ORM"}.items()):
            _band(axis, cell["ns"], cell["rules"][rule]["acc"], cell["rules"][rule]["ci"], f"C{color}", label)
        axis.set_xscale("log", base=2)
        axis.set(title=f"{name} ({cell['problems']} problems)", ylim=(0, 1.02), xticks=cell["ns"])
        axis.set_xticklabels(cell["ns"])
    for axis in axes[-1]:
        axis.set(xlabel="samples a problem, N")
    for axis in axes[:, 0]:
        axis.set(ylabel="accuracy")
    figure.tight_layout()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0.01))
    return _save(figure, path)


@styled
def compute_budget(report, path):
    """Accuracy against tokens spent a question, for every method. report: of compute.py --study budget."""
    figure, axis = _axes(1, 1, (7.6, 4.8))
    for color, (name, rows) in enumerate(report["methods"].items()):
        rows = sorted(rows, key=lambda r: r["tokens"])
        x, y = [r["tokens"] for r in rows], [r["acc"] for r in rows]
        strong = name == "auto"
        axis.plot(x, y, "D-" if strong else "*" if len(x) == 1 else "o-", color="black" if strong else f"C{color}", label=name, ms=6 if strong else 11 if len(x) == 1 else 4, lw=2 if strong else 1.2, zorder=3 if strong else 2)
        axis.errorbar(x, y, np.abs(np.array([r["ci"] for r in rows]).T - y), fmt="none", color="black" if strong else f"C{color}", lw=0.6, alpha=0.4)
    axis.set_xscale("log")
    axis.set(xlabel="tokens sampled a question", ylabel=f"accuracy, n = {report['problems']}")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


@styled
def compute_sizes(report, path):
    """Accuracy against inference FLOPs by difficulty: small models with N samples, all models with one. report: of compute.py --study sizes."""
    bins = list(next(iter(report["curves"].values()))["bins"])
    figure, axes = _axes(1, len(bins), (4.2 * len(bins), 3.6), sharey=True)
    for axis, title in zip(axes, bins):
        for color, (name, curve) in enumerate(report["curves"].items()):
            b = curve["bins"][title]
            x = [curve["flops_per_token"] * (b["prompt"] + n * b["tokens"]) / 1e9 for n in curve["ns"]]
            axis.plot(x[0], b["greedy"]["acc"], "*", ms=11, color=f"C{color}", zorder=3, label=f"{name}, {curve['params'] / 1e6:.1f}M: greedy")
            if len(x) > 1:
                _band(axis, x, b["vote"]["acc"], b["vote"]["ci"], f"C{color}", f"{name}: vote of N")
                judged = [f + n * curve["flops_per_token"] * (b["prompt"] + b["tokens"]) / 1e9 * (n > 1) for n, f in zip(curve["ns"], x)]
                _band(axis, judged, b["orm"]["acc"], b["orm"]["ci"], f"C{color}", f"{name}: ORM, best of N", "o--")
        axis.set_xscale("log")
        axis.set(title=title, xlabel="inference GFLOP a question", ylim=(0, 1.02))
    axes[0].set(ylabel="accuracy")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


@styled
def judge_kinds(report, path):
    """Best of N by ORM and PRM, a faint line a seed, and AUC by position. report: of judges.py --study kinds."""
    figure, (left, right) = _axes(1, 2, (9.5, 3.6))
    rules = {"orm": "ORM", "prm-last": "PRM, last", "prm-min": "PRM, min", "prm-prod": "PRM, product", "vote": "vote", "coverage": "coverage"}
    for color, (rule, label) in enumerate(rules.items()):
        curves = np.array([run["curves"][rule] for run in report["runs"].values() if rule in run["curves"]])
        left.plot(report["ns"], curves.T, color=f"C{color}", alpha=0.25, lw=1)
        left.plot(report["ns"], curves.mean(0), "o-", ms=4, color=f"C{color}", label=label)
    left.set_xscale("log", base=2)
    left.set(title=f"accuracy on {report['problems']} problems", xlabel="samples a problem, N", xticks=report["ns"])
    left.set_xticklabels(report["ns"])
    left.legend(fontsize=8)
    for color, kind in enumerate(("orm", "prm")):
        for name, run in report["runs"].items():
            if name.startswith(kind):
                positions = run["report"]["test"]["positions"]
                right.plot([f"{kind}, {where}" for where in positions], [p["auc"] for p in positions.values()], "o-", ms=4, color=f"C{color}", alpha=0.6)
    right.set(title="AUC against the exact judge, a line a seed", ylim=(0.5, 1.01))
    for label in right.get_xticklabels():
        label.set(rotation=35, ha="right")
    figure.tight_layout()
    return _save(figure, path)


@styled
def judge_labels(report, path):
    """PRM quality against the rollouts that labelled it. report: of judges.py --study labels."""
    figure, axes = _axes(1, 2, (9.5, 3.4))
    of = lambda row, value: [value(run) for run in report["runs"].values() if run["row"] == row]
    rows, counts = list(dict.fromkeys(run["row"] for run in report["runs"].values())), sorted({int(r[2:].split("-")[0]) for r in (run["row"] for run in report["runs"].values()) if r != "exact"})
    steps = lambda run: float(np.mean([p["auc"] for where, p in run["report"]["test"]["positions"].items() if where.startswith("step") and p["auc"] is not None]))
    for axis, (title, value) in zip(axes, (("AUC of single steps", steps), ("best of 16 by the smallest score", lambda run: run["curves"]["prm-min"][2]))):
        for color, form in enumerate(("soft", "hard")):
            points = {k: of(row, value) for k in counts if (row := f"mc{k}-{form}" if k > 1 else "mc1-soft") in rows}
            axis.plot(list(points), [np.mean(v) for v in points.values()], "o-", color=f"C{color}", label=f"Monte Carlo, {form}")
            axis.plot([k for k, v in points.items() for _ in v], [x for v in points.values() for x in v], ".", color=f"C{color}", alpha=0.4)
        exact = of("exact", value)
        axis.axhline(np.mean(exact), color="black", lw=1, ls="--", label="exact labels")
        axis.axhspan(min(exact), max(exact), color="black", alpha=0.08, lw=0)
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel="rollouts a step", xticks=counts)
        axis.set_xticklabels(counts)
    axes[0].legend()
    figure.tight_layout()
    return _save(figure, path)


@styled
def judge_trust(report, path):
    """True and judged reward against sqrt(KL), by best of N and by RL. report: of judges.py --study trust."""
    figure, axes = _axes(2, 2, (9.5, 6.4), sharey=True)
    for row, kind in zip(axes, report["rl"]):
        b, rl = report["best_of_n"][kind], report["rl"][kind]
        for axis, d, gold, proxy, form in ((row[0], b["d"], b["gold"], b["proxy"], "bon"), (row[1], [r["kl"] ** 0.5 for r in rl], [r["gold"] for r in rl], [r[kind] for r in rl], "rl")):
            fit, smooth_d = report["fits"][kind][form], np.linspace(1e-3, max(d), 200)
            bend = smooth_d if form == "bon" else np.log(smooth_d)
            axis.plot(d, proxy, "o-", ms=4, color="C1", label="what the judge thinks")
            axis.plot(d, gold, "o", ms=5, color="C0", label="what is true")
            axis.plot(smooth_d, gold[0] + smooth_d * (fit["a"] - fit["b"] * bend), color="C0", lw=1, ls="--", label=f"d(a - b {'d' if form == 'bon' else 'ln d'}), R2 {fit['r2']:.2f}")
            axis.set(title=f"{'best of N' if form == 'bon' else 'reinforcement learning'} by the {kind.upper()}", xlabel="sqrt(KL), KL in nats a response", ylim=(0, 1.02))
            axis.legend(fontsize=8)
    figure.tight_layout()
    return _save(figure, path)


@styled
def student_sizes(report, path):
    """Accuracy of students against their parameters, and against what an answer costs, a line a road; dots: seeds. report: of students.py --study sizes."""
    rows = report["rows"]
    (teacher,) = [r for r in rows if r["road"] == "teacher"]
    figure, axes = _axes(1, 2, (10, 3.8), sharey=True)
    for axis, key in zip(axes, ("params", "mean_flops")):
        for color, road in enumerate(dict.fromkeys(r["road"] for r in rows if r["road"] != "teacher")):
            by_size = [[r for r in rows if (r["road"], r["size"]) == (road, size)] for size in dict.fromkeys(r["size"] for r in rows if r["road"] == road)]
            axis.plot([r[key] for some in by_size for r in some], [r["greedy"]["acc"] for some in by_size for r in some], ".", ms=5, alpha=0.5, color=f"C{color}")
            axis.plot([np.mean([r[key] for r in some]) for some in by_size], [np.mean([r["greedy"]["acc"] for r in some]) for some in by_size], "o-", ms=4, color=f"C{color}", label=road)
        axis.plot(teacher[key], teacher["greedy"]["acc"], "k*", ms=11, label="teacher")
        axis.set_xscale("log")
    axes[0].axhline(0.9 * teacher["greedy"]["acc"], color="grey", lw=0.9, ls=":")
    axes[1].axhline(0.9 * teacher["greedy"]["acc"], color="grey", lw=0.9, ls=":", label="90% of the teacher's")
    axes[0].set(xlabel="parameters", ylabel=f"greedy accuracy, n = {teacher['greedy']['n']}", ylim=(0, 1.02))
    axes[1].set(xlabel="inference FLOP a question")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


@styled
def student_cleaning(report, path):
    """Three figures of students by how their traces were cleaned; dots: seeds. report: of students.py --study cleaning."""
    table = {way: dict(acc=[100 * r["greedy"]["acc"] for r in report["rows"] if r["way"] == way], unsound=[100 * r["unsound"]["acc"] for r in report["rows"] if r["way"] == way],
                       tokens=[r["mean_tokens"] for r in report["rows"] if r["way"] == way]) for way in report["collected"]}
    return seed_spread(table, dict(acc="greedy accuracy, %", unsound="right answer, unsound steps, %", tokens="tokens an answer"), path)


@styled
def student_rejection(report, path):
    """Accuracy against sampled tokens, of rejection sampling and GRPO; dots: seeds. report: of students.py --study rejection."""
    figure, axes = _axes(1, 2, (9, 3.6), sharey=True)
    (start,) = [r for r in report["rows"] if r["way"] == "start"]
    for axis, (title, value) in zip(axes, {"sampled at temperature 1": lambda r: r["sampled"], "greedy": lambda r: r["greedy"]["acc"]}.items()):
        for color, way in enumerate(("rejection", "grpo")):
            some = [r for r in report["rows"] if r["way"] == way]
            axis.plot([r["tokens"] for r in some], [value(r) for r in some], ".", alpha=0.5, color=f"C{color}")
            means = [[r for r in some if r["budget"] == budget] for budget in sorted({r["budget"] for r in some})]
            axis.plot([np.mean([r["tokens"] for r in m]) for m in means], [np.mean([value(r) for r in m]) for m in means], "o-", ms=4, color=f"C{color}", label=way)
        axis.axhline(value(start), color="grey", lw=0.9, ls=":", label="cold start")
        axis.set_xscale("log")
        budgets = sorted({r["budget"] for r in report["rows"]} - {0})
        axis.set(title=title, xlabel="sampled tokens", ylim=(0, 1.02))
        axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axis.set_xticks([], minor=True)
    axes[0].set(ylabel=f"accuracy, {report['problems']} test problems")
    axes[1].legend()
    return _save(figure, path)

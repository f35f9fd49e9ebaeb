"""--study sizes of compute.py: a small model with N samples against larger ones with one."""

from pathlib import Path

from nanoreason.evaluate import greedy_accuracy
from nanoreason.model import training_flops
from nanoreason.plots import log_x, new_axes, save, styled
from nanoreason.reward_model import load_reward_model
from nanoreason.studies.reports import (
    band, legend_beside, mean_tokens, percent, table_lines, with_intervals)
from nanoreason.studies.runs import BASE_TOKENS, train, train_base, train_cold_start
from nanoreason.studies.samples import (
    BINS, FAMILIES, LEVELS, LIMIT, estimates_of, problems_of, prompt_tokens)

NS = (*range(1, 17), *range(18, 33, 2), *range(36, 65, 4), *range(72, 129, 8))
COLD_START_TOKENS = 400_000  # that a cold start trains on, about


# Models and their curves


def sized_model(config, name):
    """Folder of the cold-start model of this size; micro is the speedrun's own.

    Any other is trained with the speedrun's recipe where it is missing.
    """
    if name == "micro":
        return Path(config.policy)
    base = Path(config.sizes) / f"{name}-base"
    cold = Path(config.sizes) / name
    train_base(base, name)
    train_cold_start(cold, base)
    return cold


def sized_orm(config, name, policy):
    """The outcome reward model of a size's own responses, trained where it is missing."""
    out = Path(config.sizes) / f"{name}-orm"
    if name == "micro":
        out = config.reward_model("orm-0")
    train("train_prm.py", out, kind="orm", **config.recipe | dict(init=policy))
    return load_reward_model(out)


def sized_pools(config, setup, name, model, samples, reward_models):
    """{(family, level): Pool} of a size, of a third of --problems each."""
    count = config.problems // 3
    if name != "micro":
        return setup.pools(model, count, samples, "test", reward_models)
    # micro's samples are in the cache already, from --study table
    pools = setup.pools(model, config.problems, config.samples, "test", reward_models)
    return {cell: pool.select(range(count), samples) for cell, pool in pools.items()}


def size_curve(config, setup, name, small):
    """Accuracy and cost of one size, by difficulty.

    small: whether it takes N samples and has an ORM of its own; a large model takes one.
    """
    path = sized_model(config, name)
    model = setup.model(path)
    reward_models = dict(orm=sized_orm(config, name, path)) if small else {}
    ns = [n for n in NS if n == 1 or (small and n <= config.samples)]
    if small or name == "micro":
        samples = max(ns)
    else:
        samples = 32  # for its mean length
    pools = sized_pools(config, setup, name, model, samples, reward_models)
    bins = {}
    for level, title in zip(LEVELS, BINS):
        some = [pools[family, level] for family in FAMILIES]
        bins[title] = size_bin(model, some, ns, config.seed)
    return dict(
        params=model.num_params, flops_per_token=model.flops_per_token(), ns=ns,
        training_flops=training_flops(model.config, BASE_TOKENS + COLD_START_TOKENS, 256),
        bins=bins)


def size_bin(model, pools, ns, seed):
    """Figures of one size at one difficulty: greedy, by vote, by its ORM, and coverage, at each n.

    tokens: mean completion tokens per sample; prompt: mean prompt tokens.
    """
    problems = problems_of(pools)
    found = estimates_of(pools, ns, seed)
    rules = {}
    for rule in ("vote", "orm", "coverage"):
        if rule in found:
            rules[rule] = with_intervals(found[rule])
    return dict(
        greedy=greedy_accuracy(model, problems, LIMIT), problems=len(problems),
        tokens=mean_tokens([pool.tokens.mean() for pool in pools]),
        prompt=mean_tokens(prompt_tokens(problems, model.tokenizer)), **rules)


def sizes(config, setup):
    """Accuracy by difficulty of each size, with FLOPs.

    Larger models answer once; small ones take N samples, by vote and by an ORM of their own.
    """
    lines = config.all_lines
    curves = {}
    for small_name, larger in lines.items():
        for name in (small_name, *larger):
            if name not in curves:
                curves[name] = size_curve(config, setup, name, small=name in lines)
    return dict(study="sizes", curves=curves, lines=lines)


# What is compared. curve: of `size_curve`; title: one of BINS; rule: "vote" or "orm".


def flops_of(curve, title, n, scored):
    """FLOPs to answer one question with n samples.

    The prompt is read once. An ORM (scored=True) reads prompt and response of every sample again.
    """
    b = curve["bins"][title]
    scoring = scored * n * (b["prompt"] + b["tokens"])
    return curve["flops_per_token"] * (b["prompt"] + n * b["tokens"] + scoring)


def points(curve, title, rule):
    """[(N, accuracy, FLOPs per question)] of a curve; one sample needs no ORM."""
    found = []
    for n, acc in zip(curve["ns"], curve["bins"][title][rule]["acc"]):
        found.append((n, acc, flops_of(curve, title, n, rule == "orm" and n > 1)))
    return found


def crossing(small, goal, title, rule):
    """(N, FLOPs) at which the small model first reaches accuracy `goal`; None where it never does.
    """
    for n, acc, flops in points(small, title, rule):
        if acc >= goal:
            return n, flops
    return None


def best_within(small, allowed, title, rule):
    """(N, accuracy) of the small model at the largest N for at most so many FLOPs, or None."""
    found = [(n, acc) for n, acc, flops in points(small, title, rule) if flops <= allowed]
    return found[-1] if found else None


def payback(small, large, title, cross):
    """After how many questions the larger model's training is paid back by its cheaper answers.

    At the accuracy where a vote of the small one equals it: `cross`, see `crossing`. In words where
    that is at once or never.
    """
    if cross is None:
        return "at once: no vote reaches it"
    extra = cross[1] - flops_of(large, title, 1, False)  # FLOPs per question
    if extra <= 0:
        return "never: the vote is cheaper"
    return f"{(large['training_flops'] - small['training_flops']) / extra:,.0f}"


def sizes_row(report, small_name, large_name, title):
    """A row of the table of sizes: one pair at one difficulty."""
    small = report["curves"][small_name]
    large = report["curves"][large_name]
    ratio = large["params"] / small["params"]
    once = flops_of(large, title, 1, False)  # the large model answers greedily, once
    goal = large["bins"][title]["greedy"]
    own = small["bins"][title]["greedy"]
    crossings = {rule: crossing(small, goal["acc"], title, rule) for rule in ("vote", "orm")}
    equal = []
    reached = []
    for rule, cross in crossings.items():
        found = best_within(small, once, title, rule)
        equal.append(f"{100 * found[1]:.1f} (N = {found[0]})" if found else "none")
        reached.append(f"{cross[0]} ({cross[1] / once:.1f}x)" if cross else "never")
    return [
        f"{small_name} against {large_name} ({ratio:.1f}x)", title,
        percent(goal["acc"], goal["ci"]), percent(own["acc"], own["ci"]), *equal, *reached,
        payback(small, large, title, crossings["vote"])]


def sizes_markdown(report):
    """Every pair of sizes, by difficulty."""
    heads = [
        "small against large", "difficulty", "large, greedy", "small, greedy",
        "small, N at equal inference FLOPs: vote", "ORM",
        "reaches the large one at N (FLOPs of the large one's): vote", "ORM",
        "questions until the large one's training is paid back"]
    rows = []
    for small_name, larger in report["lines"].items():
        for large_name in larger:
            for title in BINS:
                rows.append(sizes_row(report, small_name, large_name, title))
    return "\n".join(table_lines(heads, rows))


@styled
def sizes_figure(report, path):
    """Accuracy against inference FLOPs by difficulty.

    All models with one greedy response; small ones also with N samples, by vote and by their ORM.
    """
    curves = report["curves"]
    figure, axes = new_axes(1, len(BINS), (4.2 * len(BINS), 3.6), sharey=True)
    for axis, title in zip(axes, BINS):
        for color, (name, curve) in enumerate(curves.items()):
            draw_size(axis, name, curve, title, f"C{color}")
        log_x(axis)
        axis.set(title=title, xlabel="inference GFLOP per question", ylim=(0, 1.02))
    axes[0].set(ylabel="accuracy")
    legend_beside(axes[-1])
    return save(figure, path)


def draw_size(axis, name, curve, title, color):
    """One model at one difficulty."""
    b = curve["bins"][title]
    once = flops_of(curve, title, 1, False) / 1e9
    label = f"{name}, {curve['params'] / 1e6:.1f}M: greedy"
    axis.plot(once, b["greedy"]["acc"], "*", ms=11, color=color, zorder=3, label=label)
    if len(curve["ns"]) == 1:
        return
    for rule, text, style in (("vote", "vote of N", "o-"), ("orm", "ORM, best of N", "o--")):
        gflops = [flops / 1e9 for _, _, flops in points(curve, title, rule)]
        band(axis, gflops, b[rule], color, f"{name}: {text}", style)

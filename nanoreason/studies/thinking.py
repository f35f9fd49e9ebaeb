"""Thinking against answering at once: thinking.md of notebooks/results.

    python -m nanoreason.studies.thinking --direct runs/direct
        the shipped final model, allowed to think and forced to answer at once, by family and level;
        and what thinking, votes and reward models gain, by type of task
    python train_sft.py --stage base --styles direct --shares even --out runs/direct
        makes the model that has never thought; --model and --tokens as those of --ckpt

Thinking: the model answers as it likes. Direct: the think block is written for it, and is empty.
Direct-only: a model of equal size, trained on direct answers alone, forced in the same way; the
tokens that both were trained on stand under the table.

Then the claim that compute at inference helps most where steps can be checked. For each type of
task: greedy thinking against greedy direct answers, and among samples that think the most frequent
answer and the reward models' choices against the greedy response. Levels are chosen on validation
problems: the highest of 1 to 6 at which the greedy response is right in more than 20% and in less
than 97%, else the highest there is. --temperature 1.0 makes the same table for other samples.

About 3 million tokens are sampled at the defaults: by their number 8 minutes of one core for a
model of 1M parameters, and 20 for one of 2.7M. Leaves thinking.json, thinking.md and thinking.png
in --out; samples are kept in --cache.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoreason import checkpoint
from nanoreason.evaluate import accuracy_of, held_out_problems, interval_of_mean
from nanoreason.flags import UserError, check_output, flag, parse_config
from nanoreason.generate import make_sampler
from nanoreason.machine import run_script
from nanoreason.model import PRESETS
from nanoreason.plots import new_axes, save, styled
from nanoreason.pool import draw_pool, estimates
from nanoreason.pretrained.card import stage_tokens
from nanoreason.reward_model import AGGREGATES, KINDS
from nanoreason.run import progress, read_json, say
from nanoreason.studies.reports import (
    band, mean_tokens, percent, publish, table_and_note, table_lines)
from nanoreason.studies.samples import Setup
from nanoreason.tasks import CONTROLS, HELD_OUT_LEVEL, LEVELS, REASONING
from sample import load_reward_models

VALIDATION = 50  # problems of each family and level; levels and the aggregate are chosen on them
TOO_HARD = 0.20  # greedy accuracy at or below which a level is not chosen
TOO_EASY = 0.97  # and at or above which it is not
DIRECT_TOKENS = 66  # room for a direct answer and its block; the longest right ones have 26 tokens
COT = "Sprague et al. 2409.12183"
O1 = "OpenAI, Learning to reason with LLMs, 2024"


@dataclass
class Config:
    ckpt: str = flag("pretrained:final", "the model that thinks")
    direct: str = flag(
        "", "model of equal size that was trained on direct answers only; empty: none")
    reward_model: str = flag(
        "pretrained:orm,pretrained:prm", "an ORM and a PRM that choose among samples; empty: none")
    out: str = flag("runs/thinking", "folder for the table and the figure")
    cache: str = flag("runs/cache", "folder where samples are kept")
    problems: int = flag(100, "test problems of each family and level", low=1)
    task_problems: int = flag(300, "test problems of each type of task", low=3)
    samples: int = flag(16, "samples that a vote or a reward model chooses from", low=2)
    temperature: float = flag(0.7, "sampling temperature", low=0.01)
    max_reasoning_tokens: int = flag(800, "longest response, in tokens", low=1)
    seed: int = flag(0, "seed of problems and samples", low=0)


@dataclass(frozen=True)
class Task:
    """A type of task: the families that stand for it here, and how much compute at inference is
    said to help there, with the public source of that."""

    families: tuple
    published: str
    source: str


TASKS = {
    "math word problems": Task(("word",), "high", COT),
    "code": Task(("code",), "high", O1),
    "logical puzzles": Task(("logic",), "high", COT),
    "multi-step reasoning": Task(("chain", "equation", "multiplication"), "high", COT),
    "factual recall": Task(("fact",), "low", COT),
    "creative writing": Task((), "low", O1),  # nothing here can check it
    "simple QA": Task(("qa",), "minimal", COT),
}
UNGRADED = ("fact",)  # its levels are five tables, none harder than another: all of them are asked


# One response to each problem


@dataclass(frozen=True)
class Answers:
    """One greedy response to each of P problems.

    right (P,) bool, by the exact checker; tokens (P,) int, of the whole response; thinks (P,) bool,
    whether any thinking stands in it; ended (P,) bool, False where the limit has cut it off.
    """

    right: np.ndarray
    tokens: np.ndarray
    thinks: np.ndarray
    ended: np.ndarray


def greedy_answers(model, problems, limit, config, what):
    """The Answers of a sampler, each of at most `limit` tokens. what: of the progress bar."""
    bar = progress(len(problems), what)
    pool = draw_pool(model, problems, 1, 0.0, limit, config.seed, config.cache, bar.update)
    bar.close()
    responses = [pool.tokenizer.parse_response(ids) for (ids,) in pool.ids]
    return Answers(
        right=pool.right[:, 0],
        tokens=pool.tokens[:, 0],
        thinks=np.array([bool(response.thinking.strip()) for response in responses]),
        ended=np.array([response.ended for response in responses]))


def with_thinking(model, problems, config):
    """The Answers of a model that is given the question and nothing else."""
    return greedy_answers(model, problems, config.max_reasoning_tokens, config, "thinking")


def at_once(model, problems, config):
    """The Answers of a model for which an empty think block is written behind the question.

        <|user|>What is 2 + 3?<|assistant|><|think|><|/think|>   ->   5 <|end|>

    The two tokens of the block count as part of the response.
    """
    direct = make_sampler(model, False, model.tokenizer.empty_thinking)
    return greedy_answers(direct, problems, DIRECT_TOKENS, config, "direct answers")


# Figures for reports


def gain(more, less):
    """{"gain", "ci"}: mean and 95% interval of the paired difference, problem by problem.

    more, less: (P,) bool, or accuracies in [0, 1].
    """
    difference = np.asarray(more, float) - np.asarray(less, float)
    interval = interval_of_mean(difference, low=-1.0, high=1.0)
    return dict(gain=round(float(difference.mean()), 4), ci=interval)


def compare(ways, inside):
    """What some of the problems say of all ways to answer.

    ways: {name: Answers} with "thinking" among them; inside: (P,) bool. Returns {"n", "thinks": the
    share of responses that do where they may, "ways": {name: accuracy, mean "tokens", and "cut":
    the share that the limit cut off}, "gains": {name of another way: `gain` of thinking over it}}.
    """
    thinking = ways["thinking"]
    figures = dict(n=int(inside.sum()), thinks=accuracy_of(thinking.thinks[inside].tolist()))
    figures |= dict(ways={}, gains={})
    for name, answers in ways.items():
        accuracy = accuracy_of(answers.right[inside].tolist())
        cut = round(float(1 - answers.ended[inside].mean()), 4)
        figures["ways"][name] = accuracy | dict(
            tokens=mean_tokens(answers.tokens[inside]), cut=cut)
        if name != "thinking":
            figures["gains"][name] = gain(thinking.right[inside], answers.right[inside])
    return figures


def families_and_levels(ways, problems):
    """`compare` by family and level, {family: {"all", level: figures}}; by level over the families
    to reason about; and over all of these."""
    family = np.array([problem.family for problem in problems])
    level = np.array([problem.level for problem in problems])
    cells = {}
    for name in dict.fromkeys(family.tolist()):
        mine = family == name
        cells[name] = {"all": compare(ways, mine)}
        for n in np.unique(level[mine]).tolist():
            cells[name][n] = compare(ways, mine & (level == n))
    reasoning = np.isin(family, REASONING)
    levels = {n: compare(ways, reasoning & (level == n)) for n in np.unique(level).tolist()}
    return dict(cells=cells, levels=levels, reasoning=compare(ways, reasoning))


# Levels, chosen on validation problems


def each_level(families, levels, count, split, seed):
    """`count` problems of each family and level, fewer where there are not so many."""
    problems = []
    for family in families:
        for level in levels:
            problems += held_out_problems([family], [level], count, split, seed)
    return problems


def choose_level(accuracy):
    """The highest level that is neither too easy nor too hard. Where none is: the highest if that
    is too easy, else the one with the highest accuracy.

    {1: 1.0, 2: 0.9, 3: 0.5, 4: 0.1}  ->  3        {1: 1.0, 2: 0.99}  ->  2
    {1: 0.1, 2: 0.0}  ->  1                        {1: 1.0, 2: 0.1}   ->  1
    """
    fitting = [level for level, acc in accuracy.items() if TOO_HARD < acc < TOO_EASY]
    highest = max(accuracy)
    if fitting or accuracy[highest] >= TOO_EASY:
        return max(fitting or accuracy)
    return max(accuracy, key=lambda level: (accuracy[level], level))


def graded_levels(model, config):
    """{family of TASKS: {"levels": [to ask], "validation": {level: greedy accuracy}}}."""
    families = [name for task in TASKS.values() for name in task.families]
    graded = [name for name in families if name not in UNGRADED]
    levels = (*LEVELS, HELD_OUT_LEVEL)
    problems = each_level(graded, levels, VALIDATION, "val", config.seed)
    right = with_thinking(model, problems, config).right
    chosen = {name: dict(levels=list(LEVELS), validation={}) for name in UNGRADED}
    for name in graded:
        accuracy = {}
        for level in levels:
            mine = [r for p, r in zip(problems, right) if (p.family, p.level) == (name, level)]
            if mine:
                accuracy[level] = round(float(np.mean(mine)), 4)
        chosen[name] = dict(levels=[choose_level(accuracy)], validation=accuracy)
    return chosen


# Types of task


def task_problems(chosen, count, split, seed):
    """`count` problems of each type of task at its levels, shared out evenly over its families."""
    problems = []
    for task in TASKS.values():
        for name in task.families:
            share = count // len(task.families)
            problems += held_out_problems([name], chosen[name]["levels"], share, split, seed)
    return problems


def sampled(model, problems, config, setup, reward_models):
    """The Pool of --samples responses to each problem, scored by the reward models."""
    bar = progress(len(problems) * config.samples, "samples")
    pool = draw_pool(
        model, problems, config.samples, config.temperature, config.max_reasoning_tokens,
        config.seed, config.cache, bar.update)
    bar.close()
    for name, reward_model in reward_models.items():
        pool.add_reward_model(name, reward_model, setup.bf16)
    return pool


def best_aggregate(pool, seed):
    """The aggregate of the PRM's scores that chooses best among the samples of a Pool."""
    found = estimates(pool, [pool.samples], seed)
    return max(AGGREGATES, key=lambda how: found[f"prm-{how}"].mean())


def task_figures(problems, ways, accuracies):
    """{type of task: figures} of TASKS, for reports; of those without families only the source.

    accuracies: {"sample", "vote", and per reward model its kind: (P,) expected accuracy}. Gains are
    over greedy thinking; those of "thinking" over a direct answer.
    """
    family = np.array([problem.family for problem in problems])
    figures = {}
    for name, task in TASKS.items():
        figures[name] = dict(published=task.published, source=task.source)
        inside = np.isin(family, task.families)
        if not inside.any():
            continue
        found = compare(ways, inside)
        greedy = ways["thinking"].right[inside]
        gains = dict(thinking=found["gains"]["direct"])
        for rule, right in accuracies.items():
            gains[rule] = gain(right[inside], greedy)
        figures[name] |= dict(n=found["n"], ways=found["ways"], gains=gains)
    return figures


def types_of_task(model, config, setup, reward_models):
    """What thinking, a vote and the reward models' choices gain, by type of task."""
    chosen = graded_levels(model, config)
    how = None
    if "prm" in reward_models:
        val = task_problems(chosen, VALIDATION, "val", config.seed)
        prm = dict(prm=reward_models["prm"])
        how = best_aggregate(sampled(model, val, config, setup, prm), config.seed)
    problems = task_problems(chosen, config.task_problems, "test", config.seed)
    ways = dict(
        thinking=with_thinking(model, problems, config), direct=at_once(model, problems, config))
    pool = sampled(model, problems, config, setup, reward_models)
    found = estimates(pool, [1, config.samples], config.seed)  # {rule: (P, 2)}
    accuracies = dict(sample=found["vote"][:, 0], vote=found["vote"][:, 1])
    for kind in reward_models:
        accuracies[kind] = found[f"prm-{how}" if kind == "prm" else kind][:, 1]
    return dict(
        chosen=chosen, aggregate=how, tasks=task_figures(problems, ways, accuracies),
        sampled_tokens=int(pool.tokens.sum()))


# The study


def tokens_of(path):
    """Tokens that a model was trained on: a shipped one says so itself, a run of train_sft.py from
    random weights leaves it in its folder. None for any other."""
    state = checkpoint.load(path)
    folder = Path(state["path"]).parent
    if "trained_tokens" in state or not (folder / "config.json").exists():
        return state.get("trained_tokens")
    return None if read_json(folder / "config.json").get("init") else stage_tokens(folder)


def direct_only(config, setup, model):
    """The model of --direct; None without one, and then how to make one is said.

    Raises UserError where it is not of the size of `model`.
    """
    if not config.direct:
        sizes = [name for name, shape in PRESETS.items() if shape == model.config]
        size = sizes[0] if sizes else "SIZE"
        say("no --direct: a model of equal size that has never thought is made by\n"
            "    python train_sft.py --stage base --styles direct --shares even "
            f"--model {size} --tokens {tokens_of(config.ckpt) or 'N'} --out runs/direct\n"
            "with as many tokens as the model of --ckpt was trained on")
        return None
    other = setup.model(config.direct)
    if other.num_params != model.num_params:
        raise UserError(
            f"--direct {config.direct} has {other.num_params} parameters, --ckpt {config.ckpt} "
            f"{model.num_params}; models of equal size are compared")
    return other


def choosers(config, model):
    """{kind: RewardModel} of --reward-model. Raises UserError for two of one kind."""
    context = model.config.max_len
    found = load_reward_models(config, model, context, "of the model's context")
    if set(found) - set(KINDS):
        raise UserError(
            f"--reward-model {config.reward_model}: at most one ORM and one PRM are compared")
    return found


def thinking(config, setup):
    """The report, thinking.json: what was asked of which models ("tokens", "direct_tokens": that
    these were trained on, None where that is not known), and

        cells, levels, reasoning       of `families_and_levels`: all ways to answer, compared
        chosen, aggregate              the levels of `graded_levels`; how the PRM's scores are read
        tasks, sampled_tokens          of `task_figures`; tokens of all samples for them
        seconds                        of the whole
    """
    model = setup.model(config.ckpt)
    never_thought = direct_only(config, setup, model)
    reward_models = choosers(config, model)
    began = time.time()
    problems = each_level(REASONING + CONTROLS, LEVELS, config.problems, "test", config.seed)
    ways = dict(
        thinking=with_thinking(model, problems, config), direct=at_once(model, problems, config))
    if never_thought:
        ways["direct-only"] = at_once(never_thought, problems, config)
    report = dict(
        study="thinking", ckpt=config.ckpt, direct=config.direct, params=model.num_params,
        reward_models=config.reward_model, temperature=config.temperature, samples=config.samples,
        limit=config.max_reasoning_tokens, seed=config.seed, tokens=tokens_of(config.ckpt),
        direct_tokens=config.direct and tokens_of(config.direct))
    report |= families_and_levels(ways, problems)
    report |= types_of_task(model, config, setup, reward_models)
    return report | dict(seconds=round(time.time() - began, 1))


# Tables


def points(figures):
    """A `gain` in points, as text.     0.5, [0.4, 0.6]  ->  "+50.0 [+40.0, +60.0]" """
    low, high = figures["ci"]
    return f"{100 * figures['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def accuracy_text(figures):
    """An accuracy of `accuracy_of` as text."""
    return percent(figures["acc"], figures["ci"])


def way_row(name, figures):
    """A row of the table by family: name, n, every way, gains, tokens, shares that are cut off and
    that think."""
    ways = figures["ways"]
    return [
        name, figures["n"], *map(accuracy_text, ways.values()),
        points(figures["gains"]["direct"]), *(f"{way['tokens']:.0f}" for way in ways.values()),
        " / ".join(f"{100 * way['cut']:.0f}" for way in ways.values()),
        f"{100 * figures['thinks']['acc']:.0f}"]


def trained_on(report):
    """What the compared models were trained on, in a sentence."""
    texts = [f"{n:,}" if n else "an unknown number of" for n in (
        report["tokens"], report["direct_tokens"])]
    sentence = f"{report['ckpt']} was trained on {texts[0]} tokens"
    if report["direct"]:
        sentence += f", the model that was trained on direct answers only on {texts[1]}"
    return f"{sentence}."


def families_table(report):
    """Every family over all levels, then every level over all families to reason about."""
    ways = list(report["reasoning"]["ways"])
    heads = ["", "n", *ways, "gain of thinking over direct, points"]
    heads += [*(f"tokens, {way}" for way in ways), "cut off, %", "share that thinks, %"]
    rows = [way_row(family, cells["all"]) for family, cells in report["cells"].items()]
    rows.append(way_row(f"the {len(REASONING)} to reason about", report["reasoning"]))
    rows += [way_row(f"- level {n}", figures) for n, figures in report["levels"].items()]
    return table_and_note(
        heads, rows,
        "Greedy, test split, accuracy in percent with 95% intervals; tokens per response; cut off: "
        f"{' / '.join(ways)}, at {report['limit']} tokens, or {DIRECT_TOKENS} of a direct answer. "
        f"{', '.join(CONTROLS)} are controls: nothing to reason about. {trained_on(report)}")


def levels_table(report):
    """Accuracy of all ways, family by family and level by level."""
    ways = list(report["reasoning"]["ways"])
    levels = list(report["levels"])
    rows = []
    widest = 0.0
    counts = []
    for family, cells in report["cells"].items():
        row = [family]
        for level in levels:
            found = cells[level]["ways"].values() if level in cells else ()
            row.append(" / ".join(f"{100 * way['acc']:.0f}" for way in found))
            counts += [way["n"] for way in found]
            widest = max([widest, *(way["ci"][1] - way["ci"][0] for way in found)])
        rows.append(row)
    return table_and_note(
        ["family", *(f"level {level}" for level in levels)], rows,
        f"{' / '.join(ways)}, percent; n = {min(counts)} to {max(counts)} per cell, intervals at "
        f"most {100 * widest:.0f} points wide; each one stands in thinking.json.")


GAINS = {  # {rule of a type of task: head of its column}
    "thinking": "gain of thinking",
    "sample": "of one sample",
    "vote": "of a vote of {n}",
    "orm": "of the ORM's choice of {n}",
    "prm": "of the PRM's choice of {n}",
}


def asked(task, chosen):
    """Families and levels of a type of task: ("chain",)  ->  "chain 6"; every level  ->  "fact"."""
    names = []
    for name in task.families:
        levels = chosen[name]["levels"]
        names.append(f"{name} {levels[0]}" if len(levels) == 1 else name)
    return ", ".join(names)


def tasks_table(report):
    """What thinking, votes and reward models gain, by type of task, beside what is published."""
    measured = [figures for figures in report["tasks"].values() if "n" in figures]
    rules = list(measured[0]["gains"])
    heads = ["type of task", "published benefit", "family and level here", "n", "direct"]
    heads += ["thinking"] + [GAINS[rule].format(n=report["samples"]) for rule in rules]
    sources = list(dict.fromkeys(figures["source"] for figures in report["tasks"].values()))
    rows = []
    for name, figures in report["tasks"].items():
        row = [name, f"{figures['published']} ({1 + sources.index(figures['source'])})"]
        if "n" not in figures:
            rows.append([*row, "none: no checker here", *[""] * (len(heads) - 3)])
            continue
        ways = figures["ways"]
        row += [asked(TASKS[name], report["chosen"]), figures["n"]]
        row += [accuracy_text(ways["direct"]), accuracy_text(ways["thinking"])]
        rows.append(row + [points(figures["gains"][rule]) for rule in rules])
    chosen = "Levels"
    if report["aggregate"]:
        chosen = f"Levels and the PRM's aggregate ({report['aggregate']})"
    cited = "; ".join(f"({i}) {source}" for i, source in enumerate(sources, 1))
    return table_and_note(
        heads, rows,
        "Gains in points with 95% intervals of the paired difference: of thinking over a direct "
        "answer, both greedy; of all others over greedy thinking. Samples at temperature "
        f"{report['temperature']:g}. {chosen} were chosen on validation problems. "
        f"Published: {cited}.")


def thinking_markdown(report):
    """All tables, and the validation accuracies that levels were chosen by."""
    rows = []
    for family, found in report["chosen"].items():
        shares = [f"{level}: {100 * acc:.0f}" for level, acc in found["validation"].items()]
        rows.append([family, ", ".join(map(str, found["levels"])), ", ".join(shares)])
    heads = ["family", "levels asked", "level: greedy accuracy on validation, percent"]
    return "\n\n".join([
        families_table(report), levels_table(report), tasks_table(report),
        "\n".join(table_lines(heads, rows))])


# Figure


# {way: (label, colour, marker)}; colours of Okabe and Ito, which colour-blind readers tell apart
STYLES = {
    "thinking": ("allowed to think", "#0072B2", "o"),
    "direct": ("forced to answer at once", "#D55E00", "s"),
    "direct-only": ("trained on direct answers only", "#009E73", "^"),
}


def draw_families(axis, cells):
    """One row per family, the first on top; a mark with its interval per way."""
    names = list(cells)
    ways = list(cells[names[0]]["all"]["ways"])
    for i, way in enumerate(ways):
        label, color, marker = STYLES[way]
        found = [cells[name]["all"]["ways"][way] for name in names]
        acc = np.array([figures["acc"] for figures in found])  # (families,)
        ci = np.array([figures["ci"] for figures in found])  # (families, 2)
        y = np.arange(len(names)) + 0.25 * (i - (len(ways) - 1) / 2)
        axis.errorbar(
            acc, y, xerr=np.abs(ci.T - acc), fmt=marker, ms=5, color=color, elinewidth=1,
            label=label)
    controls = sum(name in CONTROLS for name in names)
    if controls:  # a line above them
        axis.axhline(len(names) - controls - 0.5, color="grey", lw=0.8, ls=":")
    axis.set(
        yticks=range(len(names)), yticklabels=names, xlim=(-0.02, 1.02),
        ylim=(len(names) - 0.5, -0.5),  # the first on top
        xlabel="greedy accuracy, test split", title="by family, levels 1 to 5")


def draw_levels(axis, levels):
    """A curve with its intervals per way."""
    x = [int(level) for level in levels]
    for way in next(iter(levels.values()))["ways"]:
        label, color, marker = STYLES[way]
        found = [figures["ways"][way] for figures in levels.values()]
        curve = dict(acc=[f["acc"] for f in found], ci=[f["ci"] for f in found])
        band(axis, x, curve, color, label, style=f"{marker}-")
    axis.set(
        xticks=x, xlabel="level", ylim=(-0.02, 1.02), ylabel="greedy accuracy, test split",
        title=f"by level, the {len(REASONING)} families to reason about")


@styled
def thinking_figure(report, path):
    """Accuracy of every way to answer: by family on the left, by level on the right."""
    figure, (left, right) = new_axes(1, 2, (9.5, 5.2))
    draw_families(left, report["cells"])
    draw_levels(right, report["levels"])
    figure.tight_layout()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.05))
    return save(figure, path)


def main():
    config = parse_config(Config, doc=__doc__)
    check_output(config.out, "out", folder=True)
    report = thinking(config, Setup(config))
    Path(config.out).mkdir(parents=True, exist_ok=True)
    publish("thinking", report, thinking_markdown, thinking_figure, config.out)


if __name__ == "__main__":
    run_script(main)

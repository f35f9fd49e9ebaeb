"""--study budget of compute.py: accuracy against sampled tokens, and the plans of `auto`."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nanoreason.evaluate import interval_of_mean, reward_model_scorer
from nanoreason.generate import generate
from nanoreason.machine import generator
from nanoreason.model import GPT
from nanoreason.plots import log_x, new_axes, save, styled
from nanoreason.pool import WORTH_IT, processes
from nanoreason.reward_model import AGGREGATES, RewardModel
from nanoreason.run import progress, write_json
from nanoreason.search import CHOICES, METHODS, SEARCHES, SearchConfig
from nanoreason.studies.reports import legend_beside, mean_tokens, percent, table_lines
from nanoreason.studies.samples import (
    LIMIT, estimates_of, first_reward_models, problems_of, prompt_tokens, prompts_of)
from nanoreason.tasks import verify
from nanoreason.workers import spread

ALL_NS = (1, 2, 4, 8, 16, 32, 64)  # of methods that choose among samples, estimated from 64
SEARCH_NS = (4, 8, 16)
CHECK_NS = (1, 4, 16)  # of self-verify
THINKING = (0, 40, 80, 120, 160)  # least thinking tokens of budget forcing
BUDGETS = (2, 4, 8, 16, 32, 64)  # of auto: the tokens of so many samples, on the average question
TOGETHER = 33  # questions solved at once
QUANTILES = (0.2, 0.4, 0.6, 0.8)  # of difficulty, between the bins of a plan
PRICES = (0.0, *np.geomspace(1e-6, 1e-2, 80))  # of a plan: accuracy per token, lambda


@dataclass(frozen=True)
class Subject:
    """What is measured: a policy, and the PRM that scores its responses.

    how: one of reward_model.AGGREGATES, which makes one number of a response's scores. seed: of
    everything that is sampled.
    """

    model: GPT
    prm: RewardModel
    how: str
    bf16: bool
    seed: int

    def scorer(self, prompts):
        """The PRM as the search.Scorer of responses to these prompts."""
        return reward_model_scorer(self.prm, prompts, self.how, self.bf16)


# What each method gives. `runs` is {(method, n): (right, tokens, flops)}, each of them (P,) float.


def choosing_runs(subject, pools):
    """The runs of one sample, and of what chooses among n of ALL_NS.

    Both are expectations over the samples of the pools, whose problems stand one after the other.
    """
    made = estimates_of(pools, ALL_NS, subject.seed)
    written = np.concatenate([pool.tokens.mean(1) for pool in pools])  # (P,) tokens per sample
    read = prompt_tokens(problems_of(pools), subject.model.tokenizer)  # (P,)
    rules = {
        "sample": "vote",  # a vote of one
        "vote": "vote",
        "best-of-n": f"prm-{subject.how}",
        "weighted-vote": f"weighted-prm-{subject.how}",
    }
    runs = {}
    for method, rule in rules.items():
        # the reward model reads prompt and response of every sample
        scoring = 0 if rule == "vote" else subject.prm.gpt.flops_per_token()
        for i, n in enumerate(ALL_NS):
            if (n == 1) != (method == "sample"):
                continue
            sampling_flops = subject.model.flops_per_token() * (read + n * written)
            scoring_flops = scoring * n * (read + written)
            runs[method, n] = made[rule][:, i], n * written, sampling_flops + scoring_flops
    return runs


def _run_method(subject, problems, method, search):
    """One method on a few problems: right, tokens and flops, (3, P) float."""
    prompts = prompts_of(problems, subject.model.tokenizer)
    noise = generator(subject.seed, "budget", method, search.n, prompts[0])
    scorer = subject.scorer(prompts)
    results = METHODS[method](subject.model, prompts, search, noise, scorer, problems)
    right = []
    for problem, result in zip(problems, results):
        right.append(result.answer is not None and verify(problem, result.answer))
    tokens = [result.completion_tokens for result in results]
    flops = [result.flops for result in results]
    return np.array((right, tokens, flops), float)


def run_methods(subject, problems, asked):
    """The runs of methods that are run as sample.py would, TOGETHER questions at a time.

    asked: {(method, n): SearchConfig}.
    """
    starts = range(0, len(problems), TOGETHER)
    jobs = []
    for (method, _), search in asked.items():
        for start in starts:
            jobs.append((problems[start : start + TOGETHER], method, search))
    workers = processes(subject.model.embed.weight.device, WORTH_IT)
    bar = progress(len(jobs), "methods")
    parts = []
    for part in spread(_run_method, subject, jobs, workers):
        parts.append(part)
        bar.update()
    bar.close()

    runs = {}
    for i, key in enumerate(asked):
        mine = parts[i * len(starts) : (i + 1) * len(starts)]
        runs[key] = tuple(np.concatenate(mine, 1))  # (3, P)
    return runs


def searches(common):
    """{(method, n): SearchConfig} of what plans choose among, besides votes and best of n."""
    asked = {("greedy", 1): replace(common, n=1)}
    for method in SEARCHES:
        for n in SEARCH_NS:
            asked[method, n] = replace(common, n=n)
    return asked


def extras(common):
    """The same of methods that are in no plan. For n, budget forcing has its least thinking."""
    asked = {}
    for least in THINKING:
        asked["budget", least] = replace(common, n=8, min_thinking=least)
    for n in CHECK_NS:
        asked["self-verify", n] = replace(common, n=n)
    return asked


# The plan of `auto`


def plan_costs(runs):
    """{(method, n): tokens (P,)} of what a plan may choose.

    A plan looks at the greedy response first, so the tokens of every option include it. Where n
    samples are chosen among, the greedy response is one of them.
    """
    greedy = runs["greedy", 1][1]
    costs = {}
    for (method, n), (_, tokens, *_) in runs.items():
        if method == "greedy":
            costs[method, n] = greedy
        elif method in CHOICES:
            costs[method, n] = greedy + tokens * (n - 1) / n
        elif method in SEARCHES:
            costs[method, n] = greedy + tokens
    return costs


def best_options(bin_of, runs, costs, price):
    """{bin: (method, n)}: in each bin the option with the largest accuracy - price * tokens."""
    chosen = {}
    for b in np.unique(bin_of):
        inside = bin_of == b  # (P,) bool

        def worth(option):
            right = runs[option][0]
            return right[inside].mean() - price * costs[option][inside].mean()

        chosen[b] = max(costs, key=worth)
    return chosen


def make_plan(scores, runs, allowed):
    """Choose a method by difficulty, for a mean of `allowed` tokens per question.

    The compute-optimal strategy of Snell et al. 2408.03314, section 3, on validation questions:

    1. Bin the questions by difficulty: into fifths, by the score of their greedy response.
    2. In each bin, take the method and n with the largest accuracy - lambda * tokens.
    3. Bisect lambda to the budget. The larger lambda, the fewer tokens and the lower accuracy, so
       the smallest of PRICES that keeps within the budget gives the most accurate plan.

    The paper gives every question the same budget. Here the budget is a mean, so that easy
    questions leave tokens for hard ones; lambda is what makes the bins share it.

    scores (P,): the reward model's, in [0, 1]. runs: with ("greedy", 1) among them. Returns rows
    (score below which the row counts, method, n), rising; None where nothing is cheap enough.
    """
    edges = [*np.quantile(scores, QUANTILES), 2.0]  # no score reaches the last
    bin_of = np.searchsorted(edges, scores, side="right")  # (P,): step 1
    costs = plan_costs(runs)

    def within_budget(price):
        options = best_options(bin_of, runs, costs, price)  # step 2
        tokens = sum(costs[option][bin_of == b].sum() for b, option in options.items())
        return bool(tokens / len(scores) <= allowed)

    # step 3: along PRICES the answers are False ... False True ... True
    at = bisect_left(PRICES, True, key=within_budget)
    if at == len(PRICES):
        return None
    options = best_options(bin_of, runs, costs, PRICES[at])
    return [(float(edges[b]), *option) for b, option in options.items()]


def make_plans(scores, runs):
    """{n: plan} for the tokens of every n of BUDGETS; an n too small for any plan is left out."""
    plans = {}
    for n in BUDGETS:
        plan = make_plan(scores, runs, runs["vote", n][1].mean())
        if plan:
            plans[n] = plan
    return plans


def greedy_scores(subject, problems):
    """(P,) the reward model's score of each greedy response: auto's measure of difficulty."""
    prompts = prompts_of(problems, subject.model.tokenizer)
    rollout = generate(subject.model, prompts, 1, LIMIT, 0.0).cpu()
    responses = [rollout.response(row) for row in range(len(prompts))]
    return np.array(subject.scorer(prompts).scores(range(len(prompts)), responses))


def auto_against_fixed(runs, n):
    """auto on test problems, beside the best fixed method for no more than auto's budget.

    runs: {"val", "test": runs}. The fixed method (greedy, one that chooses among samples, or a
    search) is chosen on validation problems. The difference is paired, problem by problem.
    """
    allowed = runs["val"]["vote", n][1].mean()
    affordable = [key for key, run in runs["val"].items() if run[1].mean() <= allowed]
    fixed = max(affordable, key=lambda key: runs["val"][key][0].mean())
    auto_right, auto_tokens = runs["test"]["auto", n][:2]
    fixed_right, fixed_tokens = runs["test"][fixed][:2]
    more = auto_right - fixed_right  # (P,)
    return dict(
        budget=n, auto=round(float(auto_right.mean()), 4), tokens=mean_tokens(auto_tokens),
        fixed=list(fixed), fixed_acc=round(float(fixed_right.mean()), 4),
        fixed_tokens=mean_tokens(fixed_tokens),
        more=round(float(more.mean()), 4), ci=interval_of_mean(more, low=-1.0, high=1.0))


# The study


def best_aggregate(pools, seed):
    """The aggregate of the PRM's scores with the best weighted vote of 16, on these pools."""
    found = estimates_of(pools, [16], seed)
    return max(AGGREGATES, key=lambda how: found[f"weighted-prm-{how}"].mean())


def budget(config, setup):
    """Accuracy against sampled tokens, for all methods and for the plans of auto.

    Plans are made on validation problems; auto is then compared with the fixed method that was best
    there within the same budget.
    """
    prm = first_reward_models(config)["prm"]
    model = setup.model(config.policy)
    count = config.problems // 9
    pools = {}
    for split in ("val", "test"):
        found = setup.pools(model, count, max(ALL_NS), split, dict(prm=prm))
        pools[split] = list(found.values())
    how = best_aggregate(pools["val"], config.seed)
    subject = Subject(model, prm, how, setup.bf16, config.seed)

    common = SearchConfig(temperature=config.temperature, max_new_tokens=LIMIT)
    asked = dict(val=searches(common), test=searches(common) | extras(common))
    problems = {split: problems_of(pools[split]) for split in pools}
    runs = {}
    for split in pools:
        runs[split] = choosing_runs(subject, pools[split])
        runs[split] |= run_methods(subject, problems[split], asked[split])

    plans = make_plans(greedy_scores(subject, problems["val"]), runs["val"])
    autos = {("auto", n): replace(common, n=n, plan=tuple(plan)) for n, plan in plans.items()}
    runs["test"] |= run_methods(subject, problems["test"], autos)
    plan_file = dict(kind="prm", aggregate=how, temperature=config.temperature, plans=plans)
    write_json(Path(config.out) / "plan.json", plan_file)
    return dict(
        study="budget", policy=config.policy, prm=str(config.reward_model("prm-0")),
        aggregate=how, temperature=config.temperature, problems=len(problems["test"]),
        methods=method_figures(runs["test"]), plans=plans,
        against=[auto_against_fixed(runs, n) for n in plans])


def method_figures(runs):
    """{method: [figures by n]} of runs."""
    figures = {}
    for (method, n), (right, tokens, flops) in runs.items():
        row = dict(
            n=n, acc=round(float(right.mean()), 4), ci=interval_of_mean(right),
            tokens=mean_tokens(tokens), gflops=round(float(flops.mean()) / 1e9, 3))
        figures.setdefault(method, []).append(row)
    return figures


def budget_markdown(report):
    """Every method at every n, auto beside the best fixed method, and the plans of auto."""
    rows = []
    for name, found in report["methods"].items():
        for r in found:
            accuracy = percent(r["acc"], r["ci"])
            rows.append([name, r["n"], accuracy, f"{r['tokens']:.0f}", f"{r['gflops']:.2f}"])
    lines = table_lines(
        ["method", "n", "accuracy", "tokens per question",
         "GFLOP per question, reward model included"],
        rows)

    rows = []
    for a in report["against"]:
        method, n = a["fixed"]
        difference = "{:+.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in (a["more"], *a["ci"])))
        rows.append([
            a["budget"], f"{100 * a['auto']:.1f}", f"{a['tokens']:.0f}",
            f"{method} {n}", f"{100 * a['fixed_acc']:.1f}", f"{a['fixed_tokens']:.0f}", difference])
    lines += ["", *table_lines(
        ["budget: tokens of so many samples", "auto", "its tokens",
         "best of greedy, choosing and searching on validation", "its accuracy", "its tokens",
         "difference"],
        rows)]
    lines += [
        "",
        f"n = {report['problems']} test problems. Plans of auto, by budget: "
        "(score of the greedy response below which a row counts, method, n)",
        ""]
    for n, plan in report["plans"].items():
        lines.append(f"- {n}: {[tuple(row) for row in plan]}")
    return "\n".join(lines)


@styled
def budget_figure(report, path):
    """Accuracy against sampled tokens per question, for every method; `auto` in black."""
    figure, axis = new_axes(1, 1, (7.6, 4.8))
    for index, (name, rows) in enumerate(report["methods"].items()):
        rows = sorted(rows, key=lambda row: row["tokens"])
        x = [row["tokens"] for row in rows]
        y = [row["acc"] for row in rows]
        errors = np.abs(np.array([row["ci"] for row in rows]).T - y)  # (2, rows)
        color = "black" if name == "auto" else f"C{index}"
        axis.errorbar(x, y, errors, fmt="o-", ms=4, elinewidth=0.6, color=color, label=name)
    log_x(axis)
    axis.set(
        xlabel="sampled tokens per question", ylabel=f"accuracy, n = {report['problems']}")
    legend_beside(axis)
    return save(figure, path)

"""Where compute at inference pays: the tables and figures of "Test-time compute" in the README.

    python -m nanoreason.studies.compute --study temperature
        what samples are worth at each temperature, on validation problems
    python -m nanoreason.studies.compute --study table
        N = 1 to 256: coverage, vote, ORM and PRM, by family and difficulty
    python -m nanoreason.studies.compute --study budget
        accuracy against sampled tokens, for every method; makes the plan of `auto`
    python -m nanoreason.studies.compute --study sizes
        a small model with N samples against larger ones with one

Needs the checkpoints of a speedrun. Reward models and larger models that are missing are trained
first, by the scripts, as a user would. Samples are kept in --cache, so that a study that was killed
continues where it stopped. Each study leaves STUDY.json, STUDY.md and STUDY.png in --out.
"""

import json
import time
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoreason import checkpoint
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.run import progress, write_json
from nanoreason.evaluate import (
    greedy_accuracy, held_out_problems, interval_of_mean, reward_model_scorer)
from nanoreason.generate import generate, sampler
from nanoreason.model import PRESETS, training_flops
from nanoreason.pool import WORTH_IT, draw_pool, estimates, log_fit, processes
from nanoreason.search import CHOICES, METHODS, SEARCHES, SearchConfig
from nanoreason.tasks import verify
from nanoreason.tokenizer import render_prompt
from nanoreason.reward_model import AGGREGATES, load_reward_model
from nanoreason.studies import charts
from nanoreason.studies.reports import (
    mean_tokens, percent, publish, rounded, table_lines, with_intervals)
from nanoreason.studies.runs import BASE_FAMILIES, BASE_TOKENS, ensure
from nanoreason.workers import spread

FAMILIES = ("chain", "word", "equation")
LEVELS = (1, 2, 3)
BINS = ("easy", "medium", "hard")  # levels 1, 2 and 3
NS = (1, 4, 16, 64, 256)
LIMIT = 200  # longest response, in tokens


@dataclass
class Config:
    study: str = flag(
        "table", "which study to make", choices=("temperature", "table", "budget", "sizes"))
    policy: str = flag("runs/speedrun/cold", "model whose samples are studied")
    orm: str = flag(
        "runs/reward-models/orm-0", "its outcome reward model; trained where it is missing")
    prm: str = flag(
        "runs/reward-models/prm-0", "its process reward model; trained where it is missing")
    sizes: str = flag(
        "runs/sizes", "folder of the models of other sizes; trained where they are missing")
    lines: str = flag(
        "nano:nano-3x+nano-10x+mini,micro:mini+small",
        "--study sizes: each small model, and the larger ones that it is compared with")
    out: str = flag("runs/compute", "folder for tables and figures")
    cache: str = flag("runs/cache", "folder where samples are kept")
    problems: int = flag(
        300,
        "test problems of each family and level; a third as many for --study sizes, "
        "a ninth for --study budget",
        low=9)
    samples: int = flag(256, "samples per problem", low=1)
    temperature: float = flag(
        0.7,
        "sampling temperature, of the reward models' training responses as well",
        low=0.01)
    reward_model_questions: int = flag(
        8000, "training questions of reward models that are missing", low=1)
    reward_model_epochs: int = flag(
        3, "most epochs of reward models that are missing", low=1)
    seed: int = flag(0, "seed of problems and samples", low=0)

    @property
    def all_lines(self):
        """{small: [larger, ...]} of --lines. Raises UserError for a size that does not exist."""
        lines = {}
        for line in self.lines.split(","):
            small, _, larger = line.partition(":")
            lines[small] = larger.split("+")
        for small, larger in lines.items():
            for name in (small, *larger):
                if name not in PRESETS:
                    known = ", ".join(PRESETS)
                    raise UserError(
                        f"--lines {self.lines}: there is no size {name!r}; there are {known}")
        return lines


def recipe(config):
    """Flags of train_prm.py for the reward models of a study."""
    return dict(
        init=str(config.policy), temperature=config.temperature,
        questions=config.reward_model_questions, epochs=config.reward_model_epochs)


def ensure_reward_models(config):
    """Train the ORM and the PRM, on the same samples, unless they exist.

    Raises UserError where one exists and was trained with other flags than these.
    """
    wanted = recipe(config)
    for folder in (Path(config.orm), Path(config.prm)):
        path = folder / "config.json"
        made = json.loads(path.read_text()) if path.exists() else wanted
        for name, value in wanted.items():
            if made[name] != value:
                raise UserError(
                    f"the reward model in {folder} was trained with "
                    f"--{name.replace('_', '-')} {made[name]}, not {value}: "
                    "name others, or other folders")
    ensure(Path(config.orm) / "report.json", "train_prm.py", kind="orm", out=config.orm, **wanted)
    ensure(
        Path(config.prm) / "report.json", "train_prm.py",
        kind="prm", reuse=config.orm, out=config.prm, **wanted)


class Setup:
    """What all studies of one model share: flags, machine, precision, and pools of samples."""

    def __init__(self, config):
        self.config = config
        self.machine = start_machine()
        self.bf16 = choose_bf16("auto", self.machine)

    def model(self, path):
        """The policy of a checkpoint, ready to sample."""
        return sampler(checkpoint.load_model(path, self.machine.device), self.bf16)

    def pools(
        self, model, count, samples, split="test", reward_models=None, temperature=None
    ):
        """{(family, level): Pool} of `samples` responses to each of `count` problems.

        reward_models: {name: RewardModel} that score them. temperature: None for --temperature.
        """
        config = self.config
        temperature = temperature or config.temperature
        total = count * samples * len(FAMILIES) * len(LEVELS)
        bar = progress(total, f"{split} samples")
        pools = {}
        for family in FAMILIES:
            for level in LEVELS:
                problems = held_out_problems([family], [level], count, split, config.seed)
                pool = draw_pool(
                    model, problems, samples, temperature, LIMIT, config.seed, config.cache,
                    bar.update)
                for name, reward_model in (reward_models or {}).items():
                    pool.add_reward_model(name, reward_model, self.bf16)
                pools[family, level] = pool
        bar.close()
        return pools


def prompt_tokens(problems):
    """(P,) int: the tokens of each problem's prompt."""
    return np.array([len(render_prompt(problem.question)) for problem in problems])


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
        made = [estimates(pool, TEMPERATURE_NS, config.seed) for pool in pools.values()]
        rows[str(t)] = {}
        for rule in RULES:
            values = np.concatenate([by_rule[rule] for by_rule in made])  # (P, ns)
            rows[str(t)][rule] = rounded(values.mean(0))
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
    note = (
        f"n = {report['problems']} validation problems. "
        f"Greedy: {percent(greedy['acc'], greedy['ci'])}.")
    return "\n".join([*table_lines(heads, rows), "", note])


# --study table


def mean_by_rule(pools, config):
    """{rule: accuracy}: the mean over pools of what each rule makes of 64 samples."""
    made = [estimates(pool, [64], config.seed) for pool in pools.values()]
    return {rule: float(np.mean([by_rule[rule].mean() for by_rule in made])) for rule in made[0]}


def table(config, setup):
    """What N samples buy, by rule, family and difficulty.

    The PRM's aggregate over steps is chosen on validation problems.
    """
    ensure_reward_models(config)
    model = setup.model(config.policy)
    reward_models = dict(orm=load_reward_model(config.orm), prm=load_reward_model(config.prm))
    validation = mean_by_rule(setup.pools(model, 30, 64, "val", reward_models), config)
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
    lines += ["", "Mean over the nine cells, and gain over N = 1, relative:", ""]

    rows = []
    for rule, values in report["mean"].items():
        figures = []
        for n, value in zip(ns, values):
            gain = f" ({100 * (value / values[0] - 1):+.0f}%)" if n > 1 else ""
            figures.append(f"{100 * value:.1f}{gain}")
        rows.append([rule, *figures, f"{report['mean_fit'][rule]['r2']:.2f}"])
    heads = ["rule", *(f"N = {n}, {n}x the samples" for n in ns), "R2"]
    return "\n".join(lines + table_lines(heads, rows))


# --study budget


ALL_NS = (1, 2, 4, 8, 16, 32, 64)  # of methods that choose among samples, estimated from 64
SEARCH_NS = (4, 8, 16)
CHECK_NS = (1, 4, 16)  # of self-verify
THINKING = (0, 40, 80, 120, 160)  # least thinking tokens of budget forcing
BUDGETS = (2, 4, 8, 16, 32, 64)  # of auto: the tokens of so many samples, on the average question
TOGETHER = 33  # questions solved at once
QUANTILES = (0.2, 0.4, 0.6, 0.8)  # of difficulty, between the bins of a plan
PRICES = (0.0, *np.geomspace(1e-6, 1e-2, 80))  # of a plan: accuracy per token, lambda


def search_config(config, n, **options):
    """A SearchConfig with the study's temperature and limit."""
    return SearchConfig(n, config.temperature, LIMIT, **options)


def choosing_runs(pool, how, model, prm, seed):
    """One sample, and what chooses among n of ALL_NS, in expectation over the samples of a pool.

    Returns {(method, n): (right (P,), tokens (P,), flops (P,))}.
    """
    made = estimates(pool, ALL_NS, seed)
    written = pool.tokens.mean(1)  # (P,) completion tokens per sample
    read = prompt_tokens(pool.problems)  # (P,)
    rules = {
        "sample": "vote",  # a vote of one
        "vote": "vote",
        "best-of-n": f"prm-{how}",
        "weighted-vote": f"weighted-prm-{how}",
    }
    runs = {}
    for method, rule in rules.items():
        # the reward model reads prompt and response of every sample
        scoring = 0 if rule == "vote" else prm.gpt.flops_per_token()
        for i, n in enumerate(ALL_NS):
            if (n == 1) != (method == "sample"):
                continue
            sampling_flops = model.flops_per_token() * (read + n * written)
            scoring_flops = scoring * n * (read + written)
            runs[method, n] = made[rule][:, i], n * written, sampling_flops + scoring_flops
    return runs


def pooled_runs(pools, how, model, prm, seed):
    """`choosing_runs` of several pools, with all their problems one after the other."""
    parts = [choosing_runs(pool, how, model, prm, seed) for pool in pools]
    runs = {}
    for key in parts[0]:
        columns = zip(*(part[key] for part in parts))
        runs[key] = tuple(np.concatenate(column) for column in columns)
    return runs


def _run_method(shared, problems, method, search, how, seed):
    """One method on a few problems: right, tokens and flops, (3, P) float."""
    model, prm, bf16 = shared
    prompts = [render_prompt(problem.question) for problem in problems]
    noise = generator(seed, "budget", method, search.n, prompts[0])
    scorer = reward_model_scorer(prm, prompts, how, bf16)
    results = METHODS[method](model, prompts, search, noise, scorer)
    right = []
    for problem, result in zip(problems, results):
        right.append(result.answer is not None and verify(problem, result.answer))
    tokens = [result.completion_tokens for result in results]
    flops = [result.flops for result in results]
    return np.array((right, tokens, flops), float)


def run_methods(setup, model, prm, problems, asked, how):
    """Run methods as sample.py would, TOGETHER questions at a time.

    asked: {(method, label): SearchConfig}. Returns {(method, label): (right, tokens, flops)}, each
    of them (P,) float.
    """
    starts = range(0, len(problems), TOGETHER)
    jobs = []
    for (method, _), search in asked.items():
        for start in starts:
            some = problems[start : start + TOGETHER]
            jobs.append((some, method, search, how, setup.config.seed))
    shared = (model, prm, setup.bf16)
    bar = progress(len(jobs), "methods")
    parts = []
    for part in spread(_run_method, shared, jobs, processes(setup.machine.device, WORTH_IT)):
        parts.append(part)
        bar.update()
    bar.close()

    runs = {}
    for i, key in enumerate(asked):
        mine = parts[i * len(starts) : (i + 1) * len(starts)]
        runs[key] = tuple(np.concatenate(mine, 1))  # (3, P)
    return runs


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

    scores (P,): the reward model's, in [0, 1]. runs: {(method, n): (right (P,), tokens (P,), ...)},
    ("greedy", 1) among them. Returns rows (score below which the row counts, method, n), rising;
    None where nothing is cheap enough.
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


def greedy_scores(setup, model, prm, problems, how):
    """(P,) the reward model's score of each greedy response: auto's measure of difficulty."""
    prompts = [render_prompt(problem.question) for problem in problems]
    rollout = generate(model, prompts, 1, LIMIT, 0.0).cpu()
    responses = [rollout.response(row) for row in range(len(prompts))]
    scorer = reward_model_scorer(prm, prompts, how, setup.bf16)
    return np.array(scorer.scores(range(len(prompts)), responses))


def best_aggregate(pools, seed):
    """The aggregate of the PRM's scores with the best weighted vote of 16, on these pools."""
    made = [estimates(pool, [16], seed) for pool in pools]
    accuracies = {}
    for how in AGGREGATES:
        accuracies[how] = np.mean([by_rule[f"weighted-prm-{how}"].mean() for by_rule in made])
    return max(accuracies, key=accuracies.get)


def searches(config):
    """{(method, n): SearchConfig} of what plans choose among, besides votes and best of n."""
    asked = {("greedy", 1): search_config(config, 1)}
    for method in SEARCHES:
        for n in SEARCH_NS:
            asked[method, n] = search_config(config, n)
    return asked


def extras(config):
    """{(method, label): SearchConfig} of methods that are measured but are in no plan."""
    asked = {}
    for least in THINKING:
        asked["budget", least] = search_config(config, 8, min_thinking=least)
    for n in CHECK_NS:
        asked["self-verify", n] = search_config(config, n)
    return asked


def make_plans(scores, runs):
    """{n: plan} for the tokens of every n of BUDGETS; an n too small for any plan is left out."""
    plans = {}
    for n in BUDGETS:
        plan = make_plan(scores, runs, runs["vote", n][1].mean())
        if plan:
            plans[n] = plan
    return plans


def method_figures(runs):
    """{method: [figures by n]} of {(method, n): (right, tokens, flops)}."""
    figures = {}
    for (method, n), (right, tokens, flops) in runs.items():
        row = dict(
            n=n, acc=round(float(right.mean()), 4), ci=interval_of_mean(right),
            tokens=mean_tokens(tokens), gflops=round(float(flops.mean()) / 1e9, 3))
        figures.setdefault(method, []).append(row)
    return figures


def budget(config, setup):
    """Accuracy against sampled tokens, for all methods and for the plans of auto.

    Plans are made on validation problems; auto is then compared with the fixed method that was best
    there within the same budget.
    """
    ensure_reward_models(config)
    model = setup.model(config.policy)
    prm = load_reward_model(config.prm)
    pools = {}
    problems = {}
    for split in ("val", "test"):
        found = setup.pools(model, config.problems // 9, max(ALL_NS), split, dict(prm=prm))
        pools[split] = list(found.values())
        problems[split] = [problem for pool in pools[split] for problem in pool.problems]
    how = best_aggregate(pools["val"], config.seed)

    asked = dict(val=searches(config), test=searches(config) | extras(config))
    runs = {}
    for split in ("val", "test"):
        runs[split] = pooled_runs(pools[split], how, model, prm, config.seed)
        runs[split] |= run_methods(setup, model, prm, problems[split], asked[split], how)

    scores = greedy_scores(setup, model, prm, problems["val"], how)
    plans = make_plans(scores, runs["val"])
    autos = {("auto", n): search_config(config, n, plan=tuple(rows)) for n, rows in plans.items()}
    runs["test"] |= run_methods(setup, model, prm, problems["test"], autos, how)
    plan_file = dict(kind="prm", aggregate=how, temperature=config.temperature, plans=plans)
    write_json(Path(config.out) / "plan.json", plan_file)
    return dict(
        study="budget", policy=config.policy, prm=config.prm, aggregate=how,
        temperature=config.temperature, problems=len(problems["test"]),
        methods=method_figures(runs["test"]), plans=plans,
        against=[auto_against_fixed(runs, n) for n in plans])


def auto_against_fixed(runs, n):
    """auto on test problems, beside the best fixed method for no more than auto's budget.

    The fixed method (greedy, one that chooses among samples, or a search) is chosen on validation
    problems. The difference is paired, problem by problem.
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
        more=round(float(more.mean()), 4), ci=interval_of_mean(more))


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
    return "\n".join(lines + [f"- {n}: {plan}" for n, plan in report["plans"].items()])


# --study sizes


SIZES_NS = (*range(1, 17), *range(18, 33, 2), *range(36, 65, 4), *range(72, 129, 8))
COLD_START_TOKENS = 400_000  # that a cold start trains on, about


def sized_model(config, name):
    """Folder of the cold-start model of this size; micro is the speedrun's own.

    Any other is trained with the speedrun's recipe where it is missing.
    """
    if name == "micro":
        return Path(config.policy)
    base = Path(config.sizes) / f"{name}-base"
    cold = Path(config.sizes) / name
    ensure(
        base / "report.json", "train_sft.py",
        stage="base", model=name, families=BASE_FAMILIES, tokens=BASE_TOKENS, out=base)
    ensure(
        cold / "report.json", "train_sft.py",
        stage="cold-start", init=base, families=BASE_FAMILIES, demos=5000,
        muon_lr=0.002, adamw_lr=0.0015, out=cold)
    return cold


def sized_orm(config, name, policy):
    """The outcome reward model of a size's own responses, trained where it is missing."""
    out = Path(config.orm) if name == "micro" else Path(config.sizes) / f"{name}-orm"
    flags = recipe(config) | dict(init=policy)
    ensure(out / "report.json", "train_prm.py", kind="orm", out=out, **flags)
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
    ns = [n for n in SIZES_NS if n == 1 or (small and n <= config.samples)]
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
    problems = [problem for pool in pools for problem in pool.problems]
    made = [estimates(pool, ns, seed) for pool in pools]
    rules = {}
    for rule in ("vote", "orm", "coverage"):
        if rule in made[0]:
            rules[rule] = with_intervals(np.concatenate([by_rule[rule] for by_rule in made]))
    return dict(
        greedy=greedy_accuracy(model, problems, LIMIT), problems=len(problems),
        tokens=mean_tokens([pool.tokens.mean() for pool in pools]),
        prompt=mean_tokens(prompt_tokens(problems)), **rules)


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


def flops_of(curve, title, n, scored):
    """Arithmetic of answering one question with n samples.

    The prompt is read once. An ORM (scored=True) reads prompt and response of every sample again.
    """
    b = curve["bins"][title]
    scoring = scored * n * (b["prompt"] + b["tokens"])
    return curve["flops_per_token"] * (b["prompt"] + n * b["tokens"] + scoring)


def crossing(small, goal, title, rule):
    """(N, FLOPs) at which the small model first reaches accuracy `goal`; None where it never does.

    rule: "vote" or "orm".
    """
    for n, acc in zip(small["ns"], small["bins"][title][rule]["acc"]):
        if acc >= goal:
            return n, flops_of(small, title, n, rule == "orm" and n > 1)
    return None


def best_within(small, flops, title, rule):
    """(N, accuracy) of the small model at the largest N for at most so many FLOPs, or None."""
    found = None
    for n, acc in zip(small["ns"], small["bins"][title][rule]["acc"]):
        if flops_of(small, title, n, rule == "orm" and n > 1) <= flops:
            found = n, acc
    return found


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
    equal = []
    reached = []
    for rule in ("vote", "orm"):
        found = best_within(small, once, title, rule)
        equal.append(f"{100 * found[1]:.1f} (N = {found[0]})" if found else "none")
        cross = crossing(small, goal["acc"], title, rule)
        reached.append(f"{cross[0]} ({cross[1] / once:.1f}x)" if cross else "never")
    return [
        f"{small_name} against {large_name} ({ratio:.1f}x)", title,
        percent(goal["acc"], goal["ci"]), percent(own["acc"], own["ci"]), *equal, *reached,
        payback(small, large, title, crossing(small, goal["acc"], title, "vote"))]


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


STUDIES = {  # {--study: (makes the report, its table, its figure)}
    "temperature": (temperature, temperature_markdown, charts.compute_temperature),
    "table": (table, table_markdown, charts.compute_table),
    "budget": (budget, budget_markdown, charts.compute_budget),
    "sizes": (sizes, sizes_markdown, charts.compute_sizes),
}


def main():
    config = parse_config(Config, doc=__doc__)
    config.all_lines  # a mistake in it should be said before hours of work
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    study, markdown, draw = STUDIES[config.study]
    publish(config.study, study(config, Setup(config)), markdown, draw, out)


if __name__ == "__main__":
    run_script(main)

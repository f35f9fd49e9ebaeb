"""Where compute at inference pays: the tables and figures of "Test-time compute" in the README.

    python -m nanoreason.studies.compute --study temperature    what samples are worth at each temperature, on validation problems
    python -m nanoreason.studies.compute --study table      N = 1 to 256: coverage, vote, ORM and PRM, by family and difficulty
    python -m nanoreason.studies.compute --study budget     accuracy against tokens spent, for every method; makes the plan of `auto`
    python -m nanoreason.studies.compute --study sizes      a small model with N samples against larger ones with one

Needs the checkpoints of a speedrun; reward models and larger models that are missing are trained first, by the scripts, as a user would. Samples are kept
in --cache, so a study that was killed goes on where it stopped. Each leaves STUDY.json, STUDY.md and STUDY.png in --out.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoreason import checkpoint, plots
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.run import progress, say, write_json
from nanoreason.evaluate import greedy_accuracy, held_out_problems, interval_of_mean, reward_model_scorer
from nanoreason.generate import generate, sampler
from nanoreason.model import PRESETS, training_flops
from nanoreason.pool import WORTH_IT, draw_pool, estimates, log_fit, processes
from nanoreason.search import CHOICES, METHODS, SEARCHES, SearchConfig
from nanoreason.tasks import verify
from nanoreason.tokenizer import render_prompt
from nanoreason.reward_model import load_reward_model
from nanoreason.studies.runs import ensure
from nanoreason.workers import spread

FAMILIES = ("chain", "word", "equation")
LEVELS = (1, 2, 3)
BINS = ("easy", "medium", "hard")  # levels 1, 2 and 3
NS = (1, 4, 16, 64, 256)
LIMIT = 200  # longest response, in tokens


@dataclass
class Config:
    study: str = flag("table", "which study to make", choices=("temperature", "table", "budget", "sizes"))
    policy: str = flag("runs/speedrun/cold", "model whose samples are studied")
    orm: str = flag("runs/reward-models/orm-0", "its outcome reward model; trained where it is missing")
    prm: str = flag("runs/reward-models/prm-0", "its process reward model; trained where it is missing")
    sizes: str = flag("runs/sizes", "folder of the models of other sizes; trained where they are missing")
    lines: str = flag("nano:nano-3x+nano-10x+mini,micro:mini+small", "--study sizes: each small model, and the larger ones that it is held against")
    out: str = flag("runs/compute", "folder for tables and figures")
    cache: str = flag("runs/cache", "folder where samples are kept")
    problems: int = flag(300, "test problems of each family and level; a third as many for --study sizes, a ninth for --study budget", low=9)
    samples: int = flag(256, "samples of each problem", low=1)
    temperature: float = flag(0.7, "sampling temperature, of the reward models' training responses as well", low=0.01)
    reward_model_questions: int = flag(8000, "training questions of reward models that are missing", low=1)
    reward_model_epochs: int = flag(3, "most passes of theirs", low=1)
    seed: int = flag(0, "seed of problems and samples", low=0)

    @property
    def all_lines(self):
        """{small: [larger, ...]} of --lines."""
        lines = {small: larger.split("+") for small, _, larger in (line.partition(":") for line in self.lines.split(","))}
        if unknown := [name for small, larger in lines.items() for name in (small, *larger) if name not in PRESETS]:
            raise UserError(f"--lines {self.lines}: there is no size {unknown[0]!r}; there are {', '.join(PRESETS)}")
        return lines


def recipe(config):
    """Flags of train_prm.py for the reward models of a study."""
    return dict(init=str(config.policy), temperature=config.temperature, questions=config.reward_model_questions, epochs=config.reward_model_epochs)


def ensure_reward_models(config):
    """Train the ORM and the PRM, on the same samples, unless they are there. Raises UserError where they are there and were trained otherwise."""
    for path in (Path(config.orm) / "config.json", Path(config.prm) / "config.json"):
        made = json.loads(path.read_text()) if path.exists() else recipe(config)
        if other := [name for name, value in recipe(config).items() if made[name] != value]:
            raise UserError(f"the reward model in {path.parent} was trained with --{other[0].replace('_', '-')} {made[other[0]]}, not {recipe(config)[other[0]]}: name others, or other folders")
    ensure(Path(config.orm) / "report.json", "train_prm.py", kind="orm", out=config.orm, **recipe(config))
    ensure(Path(config.prm) / "report.json", "train_prm.py", kind="prm", reuse=config.orm, out=config.prm, **recipe(config))


class Bench:
    """The model under study on this machine: policy, reward_models, and pools of its samples."""

    def __init__(self, config):
        self.config, self.machine = config, start_machine()
        self.bf16 = choose_bf16("auto", self.machine)

    def model(self, path):
        return sampler(checkpoint.load_model(path, self.machine.device), self.bf16)

    def pools(self, model, count, samples, split="test", reward_models=(), temperature=None):
        """{(family, level): Pool} of `count` problems each; reward_models: {name: Reward model}; temperature: --temperature where it is left out."""
        pools, bar = {}, progress(count * samples * len(FAMILIES) * len(LEVELS), f"{split} samples")
        for family in FAMILIES:
            for level in LEVELS:
                problems = held_out_problems([family], [level], count, split, self.config.seed)
                pool = draw_pool(model, problems, samples, temperature or self.config.temperature, LIMIT, self.config.seed, self.config.cache, bar.update)
                for name, reward_model in dict(reward_models).items():
                    pool.add_reward_model(name, reward_model, self.bf16)
                pools[family, level] = pool
        bar.close()
        return pools


def percent(value, ci):
    return f"{100 * value:.1f} [{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"


# How warm to sample


TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0)
RULES = ("coverage", "vote", "likelihood")


def temperature(config, bench):
    """What samples are worth at each temperature, on validation problems: what the other studies choose theirs by."""
    model, count, rows = bench.model(config.policy), max(1, config.problems // 10), {}
    for t in TEMPERATURES:
        made = [estimates(pool, (1, 4, 16, 64), config.seed) for pool in bench.pools(model, count, 64, "val", temperature=t).values()]
        rows[str(t)] = {rule: [round(float(v), 4) for v in np.concatenate([m[rule] for m in made]).mean(0)] for rule in RULES}
    problems = [p for family in FAMILIES for p in held_out_problems([family], LEVELS, count * len(LEVELS), "val", config.seed)]
    return dict(study="temperature", policy=config.policy, problems=len(problems), ns=(1, 4, 16, 64), rows=rows, greedy=greedy_accuracy(model, problems, LIMIT))


def temperature_markdown(report):
    """A row a temperature."""
    ns, g = report["ns"], report["greedy"]
    lines = ["| temperature | one sample | " + " | ".join(f"{rule} of {n}" for rule in RULES for n in ns[1:]) + " |", "| --- " * (2 + len(RULES) * (len(ns) - 1)) + "|"]
    for t, row in report["rows"].items():
        lines.append(f"| {t} | {100 * row['vote'][0]:.1f} | " + " | ".join(f"{100 * v:.1f}" for rule in RULES for v in row[rule][1:]) + " |")
    return "\n".join([*lines, "", f"n = {report['problems']} validation problems. Greedy: {percent(g['acc'], g['ci'])}."])


# N samples


def table(config, bench):
    """What N samples buy, by rule, family and difficulty; PRM's aggregate is chosen on validation problems."""
    ensure_reward_models(config)
    model, reward_models = bench.model(config.policy), dict(orm=load_reward_model(config.orm), prm=load_reward_model(config.prm))
    made = {cell: estimates(pool, [64], config.seed) for cell, pool in bench.pools(model, 30, 64, "val", reward_models).items()}
    mean = {rule: float(np.mean([e[rule].mean() for e in made.values()])) for rule in next(iter(made.values()))}
    chosen = max(("prm-last", "prm-min", "prm-prod"), key=mean.get)
    begun, pools = time.time(), bench.pools(model, config.problems, config.samples, "test", reward_models)
    ns, cells = [n for n in NS if n <= config.samples], {}
    for (family, level), pool in pools.items():
        values = estimates(pool, ns, config.seed)
        cells[f"{family}, {BINS[level - 1]}"] = dict(
            problems=len(pool.problems), tokens=round(float(pool.tokens.mean()), 1), ns=ns,
            rules={rule: dict(acc=[round(float(v), 4) for v in x.mean(0)], ci=[interval_of_mean(v) for v in x.T]) for rule, x in values.items()})
    rules = list(next(iter(cells.values()))["rules"])
    stacked = {rule: [np.array(cell["rules"][rule]["acc"]) for cell in cells.values()] for rule in rules}
    fits = {name: {rule: log_fit(ns, cell["rules"][rule]["acc"]) for rule in rules} for name, cell in cells.items()}
    return dict(study="table", policy=config.policy, chosen_on_validation=chosen, validation={k: round(v, 4) for k, v in mean.items()}, cells=cells, fits=fits,
                mean={rule: [round(float(v), 4) for v in np.mean(x, 0)] for rule, x in stacked.items()}, mean_fit={rule: log_fit(ns, np.mean(x, 0)) for rule, x in stacked.items()},
                seconds=round(time.time() - begun, 1))


def table_markdown(report):
    """Every cell with its intervals, then the mean over cells by every rule."""
    ns, chosen = next(iter(report["cells"].values()))["ns"], report["chosen_on_validation"]
    shown = {"coverage": "coverage", "vote": "vote", "orm": "ORM", chosen: f"PRM ({chosen.removeprefix('prm-')})"}
    lines = ["| family, difficulty | rule | " + " | ".join(f"N = {n}" for n in ns) + " | R2 of a + b ln N |", "| --- " * (len(ns) + 3) + "|"]
    for name, cell in report["cells"].items():
        for rule, title in shown.items():
            r = cell["rules"][rule]
            lines.append(f"| {name} | {title} | " + " | ".join(percent(a, c) for a, c in zip(r["acc"], r["ci"])) + f" | {report['fits'][name][rule]['r2']:.2f} |")
    lines += ["", "Mean over the nine cells, and gain over N = 1, relative:", "", "| rule | " + " | ".join(f"N = {n}, {n}x the samples" for n in ns) + " | R2 |", "| --- " * (len(ns) + 2) + "|"]
    for rule, values in report["mean"].items():
        lines.append(f"| {rule} | " + " | ".join(f"{100 * v:.1f}" + (f" ({100 * (v / values[0] - 1):+.0f}%)" if n > 1 else "") for n, v in zip(ns, values)) + f" | {report['mean_fit'][rule]['r2']:.2f} |")
    return "\n".join(lines)


# Accuracy against tokens


ALL_NS = (1, 2, 4, 8, 16, 32, 64)  # of methods that choose among samples, estimated from 64
SEARCH_NS = (4, 8, 16)
CHECK_NS = (1, 4, 16)  # of self-verify
THINKING = (0, 40, 80, 120, 160)  # least tokens of budget forcing
BUDGETS = (2, 4, 8, 16, 32, 64)  # samples that auto may spend the tokens of, on the average question
TOGETHER = 33  # questions solved at once


def choosing_runs(pool, how, model, prm, seed):
    """{(method, n): (right (P,), tokens (P,), flops (P,))} of one sample and of what chooses among n, in expectation over the samples of a pool."""
    made, runs = estimates(pool, ALL_NS, seed), {}
    written, read = pool.tokens.mean(1), np.array([len(render_prompt(p.question)) for p in pool.problems])
    for name, rule in (("sample", "vote"), ("vote", "vote"), ("best-of-n", f"prm-{how}"), ("weighted-vote", f"weighted-prm-{how}")):
        for i, n in enumerate(ALL_NS):
            if (n == 1) == (name == "sample"):
                judging = 0 if rule == "vote" else prm.gpt.flops_per_token() * n * (read + written)
                runs[name, n] = made[rule][:, i], n * written, model.flops_per_token() * (read + n * written) + judging
    return runs


def _solve(shared, problems, name, search_config, how, seed):
    """One method on a few problems: right, tokens and flops, (3, P)."""
    model, prm, bf16 = shared
    prompts = [render_prompt(p.question) for p in problems]
    results = METHODS[name](model, prompts, search_config, generator(seed, "budget", name, search_config.n, prompts[0]), reward_model_scorer(prm, prompts, how, bf16))
    right = [r.answer is not None and verify(p, r.answer) for p, r in zip(problems, results)]
    return np.array((right, [r.tokens for r in results], [r.flops for r in results]), float)


def solved(bench, model, prm, problems, asked, how):
    """{(method, label): (right, tokens, flops), (P,) each} of {(method, label): Spend}, run as they are."""
    jobs = [(problems[at : at + TOGETHER], name, search_config, how, bench.config.seed) for (name, _), search_config in asked.items() for at in range(0, len(problems), TOGETHER)]
    bar, parts, each = progress(len(jobs), "methods"), [], -(-len(problems) // TOGETHER)
    for part in spread(_solve, (model, prm, bench.bf16), jobs, processes(bench.machine.device, WORTH_IT)):
        parts.append(part)
        bar.update()
    bar.close()
    return {key: tuple(np.concatenate(parts[i * each : (i + 1) * each], 1)) for i, key in enumerate(asked)}


def make_plan(guess, runs, allowed):
    """A plan for a mean of `allowed` tokens a question: for each fifth of the (validation) questions by `guess` (P,), the judge's score of their greedy
    responses, the method and n that maximise accuracy - price * tokens, at the price that is most accurate within the budget. The greedy response comes
    first, is paid for, and is one of the n. runs: {(method, n): (right (P,), tokens (P,), ...)}, ("greedy", 1) among them. None where nothing is cheap enough."""
    first = runs["greedy", 1][1]
    cost = {(name, n): first + (0 if name == "greedy" else tokens * (n - 1) / n if name in CHOICES else tokens) for (name, n), (_, tokens, *_) in runs.items()
            if name in ("greedy", *CHOICES, *SEARCHES)}
    edges = [*np.quantile(guess, (0.2, 0.4, 0.6, 0.8)), 2.0]
    part, best = np.searchsorted(edges, guess, side="right"), None
    for price in (0.0, *np.geomspace(1e-6, 1e-2, 80)):
        rows, right, tokens = [], 0.0, 0.0
        for k in np.unique(part):
            mine = part == k
            option = max(cost, key=lambda o: runs[o][0][mine].mean() - price * cost[o][mine].mean())
            rows.append((float(edges[k]), *option))
            right, tokens = right + runs[option][0][mine].sum(), tokens + cost[option][mine].sum()
        if tokens / len(guess) <= allowed and (best is None or right > best[0]):
            best = right, rows
    return best and best[1]


def greedy_scores(bench, model, prm, problems, how):
    """(P,) the judge's score of each greedy response: what auto looks at."""
    prompts = [render_prompt(p.question) for p in problems]
    rollout = generate(model, prompts, 1, LIMIT, 0.0).cpu()
    return np.array(reward_model_scorer(prm, prompts, how, bench.bf16).scores(range(len(prompts)), [rollout.response(i) for i in range(len(prompts))]))


def budget(config, bench):
    """Accuracy against tokens spent, for all methods and for plans made on validation problems, and auto beside the best fixed method of its budget."""
    ensure_reward_models(config)
    model, prm, count = bench.model(config.policy), load_reward_model(config.prm), config.problems // 9
    pools = {split: list(bench.pools(model, count, max(ALL_NS), split, dict(prm=prm)).values()) for split in ("val", "test")}
    problems = {split: [p for pool in some for p in pool.problems] for split, some in pools.items()}
    best16 = {how: np.mean([estimates(pool, [16], config.seed)[f"weighted-prm-{how}"].mean() for pool in pools["val"]]) for how in ("last", "min", "prod")}
    how, runs = max(best16, key=best16.get), {}
    of = lambda n, **more: SearchConfig(n, config.temperature, LIMIT, **more)
    searches = {("greedy", 1): of(1), **{(name, n): of(n) for name in SEARCHES for n in SEARCH_NS}}
    extras = {**{("budget", least): of(8, min_thinking=least) for least in THINKING}, **{("self-verify", n): of(n) for n in CHECK_NS}}
    for split, asked in (("val", searches), ("test", searches | extras)):
        each = [choosing_runs(pool, how, model, prm, config.seed) for pool in pools[split]]
        runs[split] = {key: tuple(np.concatenate(x) for x in zip(*(one[key] for one in each))) for key in each[0]} | solved(bench, model, prm, problems[split], asked, how)
    guess, plans, autos = greedy_scores(bench, model, prm, problems["val"], how), {}, {}
    for n in BUDGETS:
        if rows := make_plan(guess, runs["val"], runs["val"]["vote", n][1].mean()):
            plans[n], autos["auto", n] = rows, of(n, plan=tuple(rows))
    runs["test"] |= solved(bench, model, prm, problems["test"], autos, how)
    write_json(Path(config.out) / "plan.json", dict(kind="prm", aggregate=how, temperature=config.temperature, plans=plans))
    figures = {}
    for (name, n), (right, tokens, flops) in runs["test"].items():
        figures.setdefault(name, []).append(dict(n=n, acc=round(float(right.mean()), 4), ci=interval_of_mean(right), tokens=round(float(tokens.mean()), 1), gflops=round(float(flops.mean()) / 1e9, 3)))
    return dict(study="budget", policy=config.policy, prm=config.prm, aggregate=how, temperature=config.temperature, problems=len(problems["test"]), methods=figures, plans=plans,
                against=[beside(runs, n) for n in plans])


def beside(runs, n):
    """auto on test problems beside the fixed method (greedy, what chooses among samples, or a search) that is best on validation problems for no more tokens
    than auto's budget; the difference is paired."""
    allowed = runs["val"]["vote", n][1].mean()
    fixed = max((key for key in runs["val"] if runs["val"][key][1].mean() <= allowed), key=lambda key: runs["val"][key][0].mean())
    mine, theirs = runs["test"]["auto", n], runs["test"][fixed]
    more = mine[0] - theirs[0]
    return dict(budget=n, auto=round(float(mine[0].mean()), 4), tokens=round(float(mine[1].mean()), 1), fixed=list(fixed), fixed_acc=round(float(theirs[0].mean()), 4),
                fixed_tokens=round(float(theirs[1].mean()), 1), more=round(float(more.mean()), 4), ci=interval_of_mean(more))


def budget_markdown(report):
    """Every method at every n, and the plans of auto."""
    lines = ["| method | n | accuracy | tokens a question | GFLOP a question, judge included |", "| --- " * 5 + "|"]
    for name, rows in report["methods"].items():
        lines += [f"| {name} | {r['n']} | {percent(r['acc'], r['ci'])} | {r['tokens']:.0f} | {r['gflops']:.2f} |" for r in rows]
    lines += ["", "| budget: tokens of so many samples | auto | its tokens | best of greedy, choosing and searching on validation | its accuracy | its tokens | difference |", "| --- " * 7 + "|"]
    lines += [f"| {a['budget']} | {100 * a['auto']:.1f} | {a['tokens']:.0f} | {a['fixed'][0]} {a['fixed'][1]} | {100 * a['fixed_acc']:.1f} | {a['fixed_tokens']:.0f} | "
              f"{100 * a['more']:+.1f} [{100 * a['ci'][0]:.1f}, {100 * a['ci'][1]:.1f}] |" for a in report["against"]]
    lines += ["", f"n = {report['problems']} test problems. Plans of auto, by budget: (score of the greedy response below which a row counts, method, n)", ""]
    return "\n".join(lines + [f"- {n}: {rows}" for n, rows in report["plans"].items()])


# Samples against parameters


SEVEN = "addition,multiplication,chain,percent,word,equation,primality"  # what the speedrun's models read about
TRAINING_TOKENS = 3_300_000
SIZES_NS = (*range(1, 17), *range(18, 33, 2), *range(36, 65, 4), *range(72, 129, 8))


def sized(config, name):
    """Folder of the cold-start model of this size, trained with the speedrun's recipe where it is missing; micro is the speedrun's own."""
    if name == "micro":
        return Path(config.policy)
    base, cold = Path(config.sizes) / f"{name}-base", Path(config.sizes) / name
    ensure(base / "report.json", "train_sft.py", stage="base", model=name, families=SEVEN, tokens=TRAINING_TOKENS, out=base)
    ensure(cold / "report.json", "train_sft.py", stage="cold-start", init=base, families=SEVEN, demos=5000, muon_lr=0.002, adamw_lr=0.0015, out=cold)
    return cold


def sizes(config, bench):
    """Accuracy by difficulty of each size with one sample, and of the small ones with N by vote and by an ORM of their own, with FLOPs."""
    lines, count, curves = config.all_lines, config.problems // 3, {}
    names = dict.fromkeys(name for small, larger in lines.items() for name in (small, *larger))
    for name in names:
        path = sized(config, name)
        model, small = bench.model(path), name in lines
        reward_models = {}
        if small:
            orm = Path(config.orm) if name == "micro" else Path(config.sizes) / f"{name}-orm"
            ensure(orm / "report.json", "train_prm.py", kind="orm", out=orm, **recipe(config) | dict(init=path))
            reward_models["orm"] = load_reward_model(orm)
        ns = [n for n in SIZES_NS if small and n <= config.samples or n == 1]
        if name == "micro":  # these are in the cache
            pools = {cell: pool.select(range(count), max(ns)) for cell, pool in bench.pools(model, config.problems, config.samples, "test", reward_models).items()}
        else:
            pools = bench.pools(model, count, max(ns) if small else 32, "test", reward_models)
        greedy = [greedy_accuracy(model, [p for family in FAMILIES for p in pools[family, level].problems], LIMIT) for level in LEVELS]
        curve = dict(params=model.num_params, flops_per_token=model.flops_per_token(), ns=ns,
                     training_flops=training_flops(model.config, TRAINING_TOKENS + 400_000, 256), bins={})
        for level, title in zip(LEVELS, BINS):
            some = [pools[family, level] for family in FAMILIES]
            values = [estimates(pool, ns, config.seed) for pool in some]
            rules = {rule: np.concatenate([v[rule] for v in values]) for rule in ("vote", "orm", "coverage") if rule in values[0]}
            read = np.mean([len(render_prompt(p.question)) for pool in some for p in pool.problems])
            curve["bins"][title] = dict(
                greedy=greedy[level - 1], problems=len(rules["vote"]), tokens=round(float(np.mean([pool.tokens.mean() for pool in some])), 1), prompt=round(float(read), 1),
                **{rule: dict(acc=[round(float(v), 4) for v in x.mean(0)], ci=[interval_of_mean(v) for v in x.T]) for rule, x in rules.items()})
        curves[name] = curve
    return dict(study="sizes", curves=curves, lines=lines)


def flops_of(curve, title, n, verified):
    """Arithmetic of answering one question with n samples: the prompt is read once; an ORM reads prompt and response again."""
    b = curve["bins"][title]
    return curve["flops_per_token"] * (b["prompt"] + n * b["tokens"] + verified * n * (b["prompt"] + b["tokens"]))


def crossing(small, goal, title, rule):
    """N and inference FLOPs at which the small model first reaches an accuracy; None where it never does."""
    for n, acc in zip(small["ns"], small["bins"][title][rule]["acc"]):
        if acc >= goal:
            return n, flops_of(small, title, n, rule == "orm" and n > 1)
    return None


def payback(small, large, title, cross):
    """After how many questions the larger model's dearer training is paid back by its cheaper answers, at the accuracy where a vote of the small one
    equals it; in words where that is always or never so."""
    if cross is None:
        return "at once: no vote reaches it"
    extra = cross[1] - flops_of(large, title, 1, False)
    return f"{(large['training_flops'] - small['training_flops']) / extra:,.0f}" if extra > 0 else "never: the vote is cheaper"


def sizes_markdown(report):
    """Every pair, by difficulty. The large model answers greedily; what it costs is one response."""
    lines = ["| small against large | difficulty | large, greedy | small, greedy | small, N at equal inference FLOPs: vote | ORM | reaches the large one at N (FLOPs of the large one's): vote | ORM | "
             "questions until the large one's training is paid back |", "| --- " * 9 + "|"]
    for small_name, larger in report["lines"].items():
        small = report["curves"][small_name]
        for large_name in larger:
            large = report["curves"][large_name]
            for title in BINS:
                once, one, goal = flops_of(large, title, 1, False), small["bins"][title], large["bins"][title]["greedy"]
                equal, reach, crossings = {}, {}, {}
                for rule in ("vote", "orm"):
                    fits = [i for i, n in enumerate(small["ns"]) if flops_of(small, title, n, rule == "orm" and n > 1) <= once]
                    equal[rule] = f"{100 * one[rule]['acc'][fits[-1]]:.1f} (N = {small['ns'][fits[-1]]})" if fits else "none"
                    crossings[rule] = c = crossing(small, goal["acc"], title, rule)
                    reach[rule] = f"{c[0]} ({c[1] / once:.1f}x)" if c else "never"
                lines.append(f"| {small_name} against {large_name} ({large['params'] / small['params']:.1f}x) | {title} | {percent(goal['acc'], goal['ci'])} | {percent(one['greedy']['acc'], one['greedy']['ci'])} | "
                             f"{equal['vote']} | {equal['orm']} | {reach['vote']} | {reach['orm']} | {payback(small, large, title, crossings['vote'])} |")
    return "\n".join(lines)


STUDIES = {"temperature": (temperature, temperature_markdown, plots.compute_temperature), "table": (table, table_markdown, plots.compute_table), "budget": (budget, budget_markdown, plots.compute_budget), "sizes": (sizes, sizes_markdown, plots.compute_sizes)}


def main():
    config = parse_config(Config, doc=__doc__)
    config.all_lines  # a mistake in it should be said before hours of work
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    study, markdown, draw = STUDIES[config.study]
    report = study(config, Bench(config))
    write_json(out / f"{config.study}.json", report)
    text = markdown(report)
    (out / f"{config.study}.md").write_text(text + "\n")
    draw(report, out / f"{config.study}.png")
    say(text)


if __name__ == "__main__":
    run_script(main)

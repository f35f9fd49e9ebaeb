"""Where compute at inference pays: the tables and figures of "Test-time compute" in the README.

    python -m nanoreason.compute --study table      N = 1 to 256: coverage, vote, ORM and PRM, by family and difficulty
    python -m nanoreason.compute --study budget     accuracy against tokens spent, for every method; makes the plan of `auto`
    python -m nanoreason.compute --study sizes      a small model with N samples against larger ones with one

Needs the checkpoints of a speedrun; verifiers and larger models that are missing are trained first, by the scripts, as a user would. Samples are kept
in --cache, so a study that was killed goes on where it stopped. Each leaves STUDY.json, STUDY.md and STUDY.png in --out.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoreason import checkpoint, plots
from nanoreason.common import UserError, choose_bf16, flag, generator, parse_config, progress, run_script, say, start_machine, write_json
from nanoreason.evaluate import greedy_accuracy, held_out_problems, interval_of_mean, verifier_judge, wilson
from nanoreason.generate import sampler
from nanoreason.model import training_flops
from nanoreason.pool import draw_pool, estimates, log_fit
from nanoreason.search import METHODS, Case, Spend, draw, estimate, rate
from nanoreason.tasks import verify
from nanoreason.tokenizer import render_prompt
from nanoreason.verifier import load_verifier

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("chain", "word", "equation")
LEVELS = (1, 2, 3)
BINS = ("easy", "medium", "hard")  # levels 1, 2 and 3
NS = (1, 4, 16, 64, 256)
LIMIT = 200  # longest response, in tokens


@dataclass
class Config:
    study: str = flag("table", "which study to make", choices=("table", "budget", "sizes"))
    policy: str = flag("runs/speedrun/cold", "model whose samples are studied")
    orm: str = flag("runs/verifiers/orm-0", "its outcome reward model; trained where it is missing")
    prm: str = flag("runs/verifiers/prm-0", "its process reward model; trained where it is missing")
    sizes: str = flag("runs/sizes", "folder of the models of other sizes; trained where they are missing")
    out: str = flag("runs/compute", "folder for tables and figures")
    cache: str = flag("runs/cache", "folder where samples are kept")
    problems: int = flag(300, "test problems of each family and level; a third as many for --study sizes, a ninth for --study budget", low=9)
    samples: int = flag(256, "samples of each problem", low=1)
    seed: int = flag(0, "seed of problems and samples", low=0)


def ensure(done, script, **flags):
    """Run a script of this project unless the file `done` says that it has run. Raises UserError where it fails."""
    if Path(done).exists():
        return
    words = [script]
    for name, value in flags.items():
        words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    if "--out" in words and (Path(flags["out"]) / "ckpt.pt").exists():
        words.append("--resume")
    say(f"python {shlex.join(words)}")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    if subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], env=environment).returncode:
        raise UserError(f"{script} failed; its own message is above")


def ensure_verifiers(config):
    """Train the ORM and the PRM, on the same samples, unless they are there. Raises UserError where they are there and judge another policy."""
    for path in (Path(config.orm) / "config.json", Path(config.prm) / "config.json"):
        if path.exists() and json.loads(path.read_text())["init"] != str(config.policy):
            raise UserError(f"the verifier in {path.parent} learned from another policy than {config.policy}: name others, or other folders")
    ensure(Path(config.orm) / "report.json", "train_prm.py", kind="orm", init=config.policy, out=config.orm)
    ensure(Path(config.prm) / "report.json", "train_prm.py", kind="prm", init=config.policy, reuse=config.orm, out=config.prm)


class Bench:
    """The model under study on this machine: policy, verifiers, and pools of its samples."""

    def __init__(self, config):
        self.config, self.machine = config, start_machine()
        self.bf16 = choose_bf16("auto", self.machine)

    def model(self, path):
        return sampler(checkpoint.load_model(path, self.machine.device), self.bf16)

    def pools(self, model, count, samples, split="test", verifiers=()):
        """{(family, level): Pool} of `count` problems each; verifiers: {name: Verifier}."""
        pools, bar = {}, progress(count * samples * len(FAMILIES) * len(LEVELS), f"{split} samples")
        for family in FAMILIES:
            for level in LEVELS:
                problems = held_out_problems([family], [level], count, split, self.config.seed)
                pool = draw_pool(model, problems, samples, 1.0, LIMIT, self.config.seed, self.config.cache, bar.update)
                for name, verifier in dict(verifiers).items():
                    pool.add_verifier(name, verifier, self.bf16)
                pools[family, level] = pool
        bar.close()
        return pools


def percent(value, ci):
    return f"{100 * value:.1f} [{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"


# N samples


def table(config, bench):
    """What N samples buy, by rule, family and difficulty; PRM's aggregate is chosen on validation problems."""
    ensure_verifiers(config)
    model, verifiers = bench.model(config.policy), dict(orm=load_verifier(config.orm), prm=load_verifier(config.prm))
    made = {cell: estimates(pool, [64], config.seed) for cell, pool in bench.pools(model, 30, 64, "val", verifiers).items()}
    mean = {rule: float(np.mean([e[rule].mean() for e in made.values()])) for rule in next(iter(made.values()))}
    chosen = max(("prm-last", "prm-min", "prm-prod"), key=mean.get)
    begun, pools = time.time(), bench.pools(model, config.problems, config.samples, "test", verifiers)
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


def spent(bench, model, problems, name, spend, judge, seed):
    """One method on all problems: right (P,), tokens (P,) and flops (P,)."""
    prompts = [render_prompt(p.question) for p in problems]
    results = METHODS[name](model, prompts, spend, generator(seed, "budget", name, spend.n), judge)
    right = [r.answer is not None and verify(p, r.answer) for p, r in zip(problems, results)]
    return np.array(right, float), np.array([r.tokens for r in results], float), np.array([r.flops for r in results])


BUDGETS = (4, 16, 64)
FIXED = ("vote", "best-of-n", "weighted-vote", "beam", "dvts", "self-verify")
THINKING = (0, 40, 80, 120, 160)  # least tokens of budget forcing


def fixed_runs(bench, model, problems, judge, seed, bar):
    """{(method, n): (right, tokens, flops)} of every method that is no plan."""
    runs = {("greedy", 1): spent(bench, model, problems, "greedy", Spend(1, max_new_tokens=LIMIT), None, seed),
            ("sample", 1): spent(bench, model, problems, "sample", Spend(1, max_new_tokens=LIMIT), None, seed)}
    for least in THINKING:
        runs["budget", least] = spent(bench, model, problems, "budget", Spend(8, max_new_tokens=LIMIT, min_thinking=least), None, seed)
    for name in FIXED:
        for n in BUDGETS:
            runs[name, n] = spent(bench, model, problems, name, Spend(n, max_new_tokens=LIMIT), judge, seed)
            bar.update()
    return runs


def make_plan(bench, model, problems, runs, judge, seed, allowed):
    """A plan for a mean of `allowed` tokens a question: in each third of the questions by estimated difficulty the method and n that maximise accuracy -
    price * tokens on these (validation) problems, with the lowest price that keeps within the budget. Probes cost, and are counted."""
    spend, cases = Spend(max_new_tokens=LIMIT), [Case(i, render_prompt(p.question)) for i, p in enumerate(problems)]
    draw(model, cases, spend.probe, spend, generator(seed, "probe"))
    rate(judge, [path for case in cases for path in case.paths])
    guess, probe = np.array([estimate(case, judge) for case in cases]), np.array([case.tokens for case in cases], float)
    edges = [*np.quantile(guess, (1 / 3, 2 / 3)), 2.0]
    thirds = np.searchsorted(edges, guess, side="right")
    options = [(name, n) for name, n in runs if name in FIXED and name != "self-verify"]
    best = None
    for price in (0.0, *np.geomspace(1e-6, 1e-2, 60)):
        rows, right, tokens = [], 0.0, 0.0
        for third, edge in enumerate(edges):
            mine = thirds == third
            cost = {(name, n): runs[name, n][1][mine] + (probe[mine] if name in ("beam", "dvts") else 0) for name, n in options}
            name, n = max(options, key=lambda o: runs[o][0][mine].mean() - price * cost[o].mean())
            rows.append((float(edge), name, n))
            right, tokens = right + runs[name, n][0][mine].sum(), tokens + cost[name, n].sum()
        if tokens / len(problems) <= allowed and (best is None or right > best[0]):
            best = right, rows
    return best and best[1]


def budget(config, bench):
    """Accuracy against tokens spent, for all methods and for plans made on validation problems."""
    ensure_verifiers(config)
    model, prm = bench.model(config.policy), load_verifier(config.prm)
    pick = lambda split: [p for family in FAMILIES for p in held_out_problems([family], LEVELS, config.problems // 9 * len(LEVELS), split, config.seed)]
    sets = {split: pick(split) for split in ("val", "test")}
    judges = {split: verifier_judge(prm, [render_prompt(p.question) for p in problems], "min", bench.bf16) for split, problems in sets.items()}
    bar = progress(2 * len(FIXED) * len(BUDGETS), "methods")
    runs = {split: fixed_runs(bench, model, problems, judges[split], config.seed, bar) for split, problems in sets.items()}
    plans = {}
    for n in BUDGETS:
        allowed = runs["val"]["vote", n][1].mean()
        rows = make_plan(bench, model, sets["val"], runs["val"], judges["val"], config.seed, allowed)
        if rows:
            plans[n] = rows
            runs["test"]["auto", n] = spent(bench, model, sets["test"], "auto", Spend(n, max_new_tokens=LIMIT, plan=tuple(rows)), judges["test"], config.seed)
    bar.close()
    figures = {}
    for (name, n), (right, tokens, flops) in runs["test"].items():
        figures.setdefault(name, []).append(dict(n=n, acc=round(float(right.mean()), 4), ci=[round(x, 4) for x in wilson(right.sum(), len(right))],
                                                 tokens=round(float(tokens.mean()), 1), gflops=round(float(flops.mean()) / 1e9, 3)))
    write_json(Path(config.out) / "plan.json", dict(kind="prm", aggregate="min", plans=plans))
    return dict(study="budget", policy=config.policy, prm=config.prm, problems=len(sets["test"]), methods=figures, plans=plans)


def budget_markdown(report):
    """Every method at every n, and the plans of auto."""
    lines = ["| method | n | accuracy | tokens a question | GFLOP a question, judge included |", "| --- " * 5 + "|"]
    for name, rows in report["methods"].items():
        lines += [f"| {name} | {r['n']} | {percent(r['acc'], r['ci'])} | {r['tokens']:.0f} | {r['gflops']:.2f} |" for r in rows]
    lines += ["", f"n = {report['problems']} test problems. Plans of auto, by budget: (estimated chance below which a row counts, method, n)", ""]
    return "\n".join(lines + [f"- {n}: {rows}" for n, rows in report["plans"].items()])


# Samples against parameters


LINES = {"nano": ("nano-3x", "nano-10x", "mini"), "micro": ("mini", "small")}  # each small model and what it is held against
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
    names, count, curves = list(dict.fromkeys(name for small, larger in LINES.items() for name in (small, *larger))), config.problems // 3, {}
    for name in names:
        path = sized(config, name)
        model, small = bench.model(path), name in LINES
        verifiers = {}
        if small:
            orm = Path(config.orm) if name == "micro" else Path(config.sizes) / f"{name}-orm"
            ensure(orm / "report.json", "train_prm.py", kind="orm", init=path, out=orm)
            verifiers["orm"] = load_verifier(orm)
        ns = [n for n in SIZES_NS if small and n <= config.samples or n == 1]
        if name == "micro":  # these are in the cache
            pools = {cell: pool.select(range(count), max(ns)) for cell, pool in bench.pools(model, config.problems, config.samples, "test", verifiers).items()}
        else:
            pools = bench.pools(model, count, max(ns) if small else 32, "test", verifiers)
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
    return dict(study="sizes", curves=curves, lines=LINES)


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


STUDIES = {"table": (table, table_markdown, plots.compute_table), "budget": (budget, budget_markdown, plots.compute_budget), "sizes": (sizes, sizes_markdown, plots.compute_sizes)}


def main():
    config = parse_config(Config, doc=__doc__)
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

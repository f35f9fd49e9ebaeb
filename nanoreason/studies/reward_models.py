"""How good learned judges are, and what happens to whom trusts them: more of "Test-time compute" in the README.

    python -m nanoreason.studies.reward_models --study kinds       ORM against PRM on identical samples, three seeds
    python -m nanoreason.studies.reward_models --study labels      PRMs by who labelled the steps: the exact judge, or 1 to 16 Monte Carlo rollouts, soft and hard
    python -m nanoreason.studies.reward_models --study trust       over-optimisation: what the judge thinks and what is true, by best-of-N and by reinforcement learning

Reward models and policies that are missing are trained first, by the scripts, as a user would. Each study leaves STUDY.json, STUDY.md and STUDY.png in --out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from nanoreason import checkpoint, plots
from nanoreason.flags import flag, parse_config, UserError, whole_numbers
from nanoreason.machine import generator, run_script
from nanoreason.run import say, write_json
from nanoreason.studies.compute import FAMILIES, LEVELS, LIMIT, Bench, ensure_reward_models, recipe
from nanoreason.evaluate import held_out_problems, interval_of_mean, over_seeds
from nanoreason.experience import Experience, token_logprobs
from nanoreason.generate import generate
from nanoreason.pool import best_at, estimates
from nanoreason.rewards import outcome_reward
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.reward_model import aggregate, load_reward_model, scores
from nanoreason.studies.runs import ensure

NS = (1, 4, 16, 64)
ROLLOUTS = (1, 2, 4, 8, 16)
STEPS = (1, 2, 4, 8, 16, 32, 64, 100)  # of reinforcement learning, at which it is measured


@dataclass
class Config:
    study: str = flag("kinds", "which study to make", choices=("kinds", "labels", "trust"))
    policy: str = flag("runs/speedrun/cold", "model whose samples are judged")
    reward_models: str = flag("runs/reward-models", "folder of the reward models; trained where they are missing")
    out: str = flag("runs/compute", "folder for tables and figures")
    cache: str = flag("runs/cache", "folder where samples are kept")
    seeds: str = flag("0,1,2", "seeds of the reward models' training, separated by commas")
    problems: int = flag(300, "test problems of each family and level whose samples are in the cache", low=3)
    samples: int = flag(256, "samples of each", low=64)
    temperature: float = flag(0.7, "sampling temperature, of the reward models' training responses as well", low=0.01)
    reward_model_questions: int = flag(8000, "training questions of reward models that are missing; --study labels has its own", low=1)
    reward_model_epochs: int = flag(3, "most passes of theirs", low=1)
    questions: int = flag(300, "training questions of --study labels", low=1)
    seed: int = flag(0, "seed of problems and samples", low=0)

    @property
    def orm(self):
        return f"{self.reward_models}/orm-0"

    @property
    def prm(self):
        return f"{self.reward_models}/prm-0"

    def path(self, name):
        return Path(self.reward_models) / name

    @property
    def all_seeds(self):
        return whole_numbers(self.seeds, "seeds")


def best_of(pools, name, reward_model, bench, ns=NS):
    """Expected accuracy of best-of-N and votes by a reward model, at every n of ns, mean over the problems of all pools: {rule: [..]}."""
    parts = []
    for pool in pools:
        parts.append(estimates(pool.select(range(len(pool.problems))).add_reward_model(name, reward_model, bench.bf16), ns, bench.config.seed))
    return {rule: [round(float(v), 4) for v in np.concatenate([part[rule] for part in parts]).mean(0)] for rule in parts[0]}


def report_of(path):
    return json.loads((path / "report.json").read_text())


def kinds(config, bench):
    """ORM and PRM, three seeds each, on one set of labelled samples."""
    ensure_reward_models(config)
    runs = {}
    for kind in ("orm", "prm"):
        for seed in config.all_seeds:
            path = config.path(f"{kind}-{seed}")
            ensure(path / "report.json", "train_prm.py", kind=kind, reuse=config.orm, seed=seed, out=path, **recipe(config))
            runs[f"{kind}-{seed}"] = dict(report=report_of(path))
    pools = [pool.select(range(len(pool.problems) // 3), NS[-1]) for pool in bench.pools(bench.model(config.policy), config.problems, config.samples).values()]
    for name, run in runs.items():
        run["curves"] = best_of(pools, name[:3], load_reward_model(config.path(name)), bench)
    return dict(study="kinds", ns=NS, problems=sum(len(pool.problems) for pool in pools), runs=runs)


def kinds_markdown(report):
    """What each rule chooses, over seeds, and how good the judges are by position."""
    of = lambda kind: [run for name, run in report["runs"].items() if name.startswith(kind)]
    lines = ["| judge | AUC, last token | Brier score | " + " | ".join(f"best of {n}" for n in report["ns"]) + " |", "| --- " * (3 + len(report["ns"])) + "|"]
    for rule in ("orm", "prm-last", "prm-min", "prm-prod", "weighted-orm", "weighted-prm-last", "weighted-prm-min", "weighted-prm-prod", "vote", "likelihood", "coverage"):
        runs = of("prm" if "prm" in rule else "orm")
        last = [run["report"]["test"]["positions"]["last"] for run in runs]
        auc, brier = (over_seeds([p[key] for p in last], 3) if rule in ("orm", "prm-last") else "" for key in ("auc", "brier"))
        curves = 100 * np.array([run["curves"][rule] for run in runs])
        lines.append(f"| {rule} | {auc} | {brier} | " + " | ".join(over_seeds(c) if "rm" in rule else f"{c[0]:.1f}" for c in curves.T) + " |")
    lines += ["", "| position | AUC | Brier score | n | right |", "| --- " * 5 + "|"]
    for kind in ("orm", "prm"):
        for where in of(kind)[0]["report"]["test"]["positions"]:
            p = [run["report"]["test"]["positions"][where] for run in of(kind)]
            lines.append(f"| {kind}, {where} | {over_seeds([x['auc'] for x in p], 3)} | {over_seeds([x['brier'] for x in p], 3)} | {p[0]['n']} | {100 * p[0]['right']:.0f}% |")
    r = of("prm")[0]["report"]
    return "\n".join([*lines, "", f"{report['problems']} test problems. Labels: {r['responses']:,} different responses with {r['step_labels']:,} steps, from {r['cost']['train']['sampled']:,} sampled tokens."])


def labels(config, bench):
    """PRMs of equal samples whose steps were labelled by the exact judge or by rollouts."""
    common = dict(kind="prm", init=config.policy, temperature=config.temperature, questions=config.questions, val_questions=12, batch_size=32, eval_every=25)
    source, runs = config.path("labels-mc16-soft-0"), {}
    ensure(source / "report.json", "train_prm.py", labels="mc", rollouts=max(ROLLOUTS), out=source, **common)
    rows = {"exact": dict(labels="exact")} | {f"mc{k}-{form}": dict(labels="mc", rollouts=k, **({"hard_labels": True} if form == "hard" else {}))
                                              for k in ROLLOUTS for form in ("soft", "hard") if (k, form) != (1, "hard")}  # with one rollout both are the same
    for row, flags in rows.items():
        for seed in config.all_seeds:
            path = config.path(f"labels-{row}-{seed}")
            ensure(path / "report.json", "train_prm.py", reuse=source, seed=seed, out=path, **common, **flags)
            runs[f"{row}-{seed}"] = dict(row=row, report=report_of(path))
    pools = [pool.select(range(len(pool.problems) * 2 // 15), 32) for pool in bench.pools(bench.model(config.policy), config.problems, config.samples).values()]
    for name, run in runs.items():
        run["curves"] = best_of(pools, "prm", load_reward_model(config.path(f"labels-{name}")), bench, NS[:-1])
    return dict(study="labels", ns=NS[:-1], problems=sum(len(pool.problems) for pool in pools), runs=runs)


def step_auc(report):
    """Mean AUC over the positions of steps."""
    return float(np.mean([p["auc"] for where, p in report["test"]["positions"].items() if where.startswith("step") and p["auc"] is not None]))


def labels_markdown(report):
    """A row for each way to label: its price, its errors, and the PRM that came of it."""
    lines = ["| labels | tokens of rollouts | balanced responses | right steps called wrong | wrong steps called right | AUC of steps | AUC, last token | best of 16: last | min | prod |", "| --- " * 10 + "|"]
    for row in dict.fromkeys(run["row"] for run in report["runs"].values()):
        runs = [run for run in report["runs"].values() if run["row"] == row]
        q, cost = runs[0]["report"]["label_quality"], runs[0]["report"]["cost"]["train"]["rolled"]
        noise = ["", ""] if row == "exact" else [f"{q[key]:,} of {q[of]:,} ({100 * q[key] / q[of]:.1f}%)" for key, of in (("right_but_called_wrong", "right"), ("wrong_but_called_right", "wrong"))]
        best = [over_seeds([100 * run["curves"][f"prm-{how}"][2] for run in runs]) for how in ("last", "min", "prod")]
        lines.append(f"| {row} | {cost if row != 'exact' else 0:,} | {runs[0]['report']['balanced']} | {noise[0]} | {noise[1]} | {over_seeds([step_auc(run['report']) for run in runs], 3)} | "
                     f"{over_seeds([run['report']['test']['positions']['last']['auc'] for run in runs], 3)} | " + " | ".join(best) + " |")
    r = next(iter(report["runs"].values()))["report"]
    return "\n".join([*lines, "", f"{report['problems']} test problems; {r['responses']:,} different responses with {r['step_labels']:,} steps, {r['cost']['train']['sampled']:,} sampled tokens."])


# Over-optimisation


def gao_fit(d, gain, form):
    """Least squares of the reward's gain over the start, in d = sqrt(KL) (Gao et al. 2210.10760, section 3): best-of-n d (a - b d), RL d (a - b ln d).
    {'a', 'b', 'r2'}; points at d = 0 are left out, and fewer than two others give None."""
    if np.sum(np.asarray(d) > 0) < 2:
        return None
    d, gain = (np.asarray(x, float)[np.asarray(d) > 0] for x in (d, gain))
    bend = d * d if form == "bon" else d * np.log(d)
    (a, b), *_ = np.linalg.lstsq(np.stack((d, -bend), 1), gain, rcond=None)
    spread = ((gain - gain.mean()) ** 2).sum()
    residual = ((gain - a * d + b * bend) ** 2).sum()
    return {"a": round(float(a), 4), "b": round(float(b), 4), "r2": round(float(1 - residual / spread), 4) if spread else 1.0}


def kl_of_best(n):
    """KL, in nats, of the best of n samples to one sample: ln n - (n - 1) / n (Gao et al., section 3.1). Exact where no two samples are equal; where many
    are, as here, an upper bound."""
    return np.log(n) - (n - 1) / n


@torch.no_grad()
def measure_policy(bench, policy, reference, problems, reward_models, samples=4):
    """Gold and proxy rewards, and KL to the reference in nats a response, of fresh samples."""
    prompts = [render_prompt(p.question) for p in problems]
    rollout = generate(policy, prompts, samples, LIMIT, bench.config.temperature, generator(bench.config.seed, "trust")).cpu()
    responses = [rollout.response(row) for row in range(len(rollout.ids))]
    gold = [outcome_reward(problems[row // samples], parse_response(ids)) for row, ids in enumerate(responses)]
    view, settings = Experience(problems, rollout, dict(total=torch.zeros(len(problems), samples)), [], []), SimpleNamespace(row_tokens=128, micro_tokens=16_384, gradient_accumulation=1)
    total = 0.0
    for micro in view.micro_batches(range(len(responses)), {}, settings, bench.machine.device):
        total += float((token_logprobs(policy, micro, bench.config.temperature)[0] - token_logprobs(reference, micro, bench.config.temperature)[0]).sum())
    rated = {name: scores(v, [prompts[row // samples] for row in range(len(responses))], responses, bench.bf16) for name, v in reward_models.items()}
    return dict(gold=float(np.mean(gold)), kl=max(total / len(responses), 0.0), length=float(rollout.lengths.float().mean()), ci=interval_of_mean(gold),
                **{name: float(np.mean([aggregate(r, "last") for r in found])) for name, found in rated.items()})


def reinforce(config, bench, kind, problems, reward_models):
    """RL against one reward model's scores, measured at STEPS. Judged is the last score, of the whole response; a prm's steps are paid besides."""
    out, rows, start = config.path(f"rl-against-{kind}"), [], bench.model(config.policy)
    rows.append(dict(step=0, **measure_policy(bench, start, start, problems, reward_models)))
    for step in STEPS:
        kept = out / f"step-{step}.pt"
        if not kept.exists():
            flags = dict(init=config.policy, temperature=config.temperature, reward=kind, reward_model=config.path(f"{kind}-0"), families=",".join(FAMILIES), level=",".join(map(str, LEVELS)), batch_size=256,
                         max_reasoning_tokens=LIMIT, steps=max(STEPS), eval_every=0, max_steps=step, out=out, save_every=max(STEPS))
            ensure(kept, "train_grpo.py", **flags)
            state = checkpoint.load(out / "ckpt.pt")
            if state["run"]["step"] != step:
                raise UserError(f"{out} stands at step {state['run']['step']}, and {kept.name} is missing; remove the folder to begin again")
            checkpoint.save(kept, checkpoint.build_model(state))
        rows.append(dict(step=step, **measure_policy(bench, bench.model(kept), start, problems, reward_models)))
        say(f"rl against {kind}: {rows[-1]}")
    return rows


def trust(config, bench):
    """Gold and proxy reward against sqrt(KL): best of N by each reward model, and RL against each."""
    ensure_reward_models(config)
    reward_models = dict(orm=load_reward_model(config.orm), prm=load_reward_model(config.prm))
    pools = bench.pools(bench.model(config.policy), config.problems, config.samples, "test", reward_models)
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= config.samples]
    problems = [p for family in FAMILIES for p in held_out_problems([family], LEVELS, 60, "test", config.seed)]
    report = dict(study="trust", best_of_n={}, rl={}, fits={})
    for kind, rule in (("orm", "orm"), ("prm", "prm-last")):
        gold, proxy = ([best_at(pool.scores[rule][p], value(pool, p), ns) for pool in pools.values() for p in range(len(pool.problems))]
                       for value in (lambda pool, p: pool.right[p], lambda pool, p: pool.scores[rule][p]))
        report["best_of_n"][kind] = dict(ns=ns, d=[float(np.sqrt(kl_of_best(n))) for n in ns], gold=np.mean(gold, 0).tolist(), proxy=np.mean(proxy, 0).tolist())
        report["rl"][kind] = reinforce(config, bench, kind, problems, reward_models)
        b, rl = report["best_of_n"][kind], report["rl"][kind]
        report["fits"][kind] = dict(bon=gao_fit(b["d"], np.array(b["gold"]) - b["gold"][0], "bon"),
                                    rl=gao_fit([np.sqrt(r["kl"]) for r in rl], [r["gold"] - rl[0]["gold"] for r in rl], "rl"))
    return report


def trust_markdown(report):
    """True and judged reward along both roads away from the policy, with the fits."""
    lines = []
    for kind in report["rl"]:
        b, rl, fits = report["best_of_n"][kind], report["rl"][kind], report["fits"][kind]
        lines += [f"Against the {kind.upper()}. Best of n, d (a - b d): a {fits['bon']['a']:.3f}, b {fits['bon']['b']:.3f}, R2 {fits['bon']['r2']:.2f}. "
                  f"RL, d (a - b ln d): a {fits['rl']['a']:.3f}, b {fits['rl']['b']:.3f}, R2 {fits['rl']['r2']:.2f}.", "",
                  "| best of | sqrt(KL) | true | judge's |", "| --- " * 4 + "|",
                  *(f"| {n} | {d:.2f} | {100 * g:.1f} | {p:.3f} |" for n, d, g, p in zip(b["ns"], b["d"], b["gold"], b["proxy"])), "",
                  "| RL step | sqrt(KL) | true | judge's | tokens |", "| --- " * 5 + "|",
                  *(f"| {r['step']} | {np.sqrt(r['kl']):.2f} | {100 * r['gold']:.1f} [{100 * r['ci'][0]:.1f}, {100 * r['ci'][1]:.1f}] | {r[kind]:.3f} | {r['length']:.0f} |" for r in rl), ""]
    return "\n".join(lines)


STUDIES = {"kinds": (kinds, kinds_markdown, plots.judge_kinds), "labels": (labels, labels_markdown, plots.judge_labels), "trust": (trust, trust_markdown, plots.judge_trust)}


def main():
    config = parse_config(Config, doc=__doc__)
    config.all_seeds  # a mistake in it should be said before hours of work
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    study, markdown, draw = STUDIES[config.study]
    report = study(config, Bench(config))
    write_json(out / f"{config.study}.json", report)
    (out / f"{config.study}.md").write_text(markdown(report) + "\n")
    draw(report, out / f"{config.study}.png")
    say(markdown(report))


if __name__ == "__main__":
    run_script(main)

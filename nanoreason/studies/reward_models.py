"""How good reward models are, and what trusting them costs: more of "Test-time compute" (README).

    python -m nanoreason.studies.reward_models --study kinds
        ORM against PRM on identical samples, over seeds
    python -m nanoreason.studies.reward_models --study labels
        PRMs by who labelled the steps: the exact checker, or 1 to 16 Monte Carlo rollouts,
        soft and hard
    python -m nanoreason.studies.reward_models --study trust
        over-optimisation: the reward model's score and the truth, by best-of-N and by
        reinforcement learning

Reward models and policies that are missing are trained first, by the scripts, as a user would.
Each study leaves STUDY.json, STUDY.md and STUDY.png in --out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from nanoreason import checkpoint
from nanoreason.flags import flag, parse_config, UserError, whole_numbers
from nanoreason.machine import generator, run_script
from nanoreason.run import say
from nanoreason.studies.compute import (
    FAMILIES, LEVELS, LIMIT, Setup, ensure_reward_models, recipe)
from nanoreason.evaluate import held_out_problems, interval_of_mean, over_seeds
from nanoreason.experience import Experience, token_logprobs
from nanoreason.generate import generate
from nanoreason.pool import best_at, estimates
from nanoreason.rewards import outcome_reward
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.reward_model import AGGREGATES, aggregate, load_reward_model, scores
from nanoreason.studies import charts
from nanoreason.studies.reports import percent, publish, rounded, step_auc, table_lines
from nanoreason.studies.runs import ensure

NS = (1, 4, 16, 64)
ROLLOUTS = (1, 2, 4, 8, 16)  # per step, of Monte Carlo labels
STEPS = (1, 2, 4, 8, 16, 32, 64, 100)  # of reinforcement learning, at which it is measured


@dataclass
class Config:
    study: str = flag("kinds", "which study to make", choices=("kinds", "labels", "trust"))
    policy: str = flag("runs/speedrun/cold", "model whose samples are scored")
    reward_models: str = flag(
        "runs/reward-models", "folder of the reward models; trained where they are missing")
    out: str = flag("runs/compute", "folder for tables and figures")
    cache: str = flag("runs/cache", "folder where samples are kept")
    seeds: str = flag(
        "0,1,2", "seeds of the reward models' training, separated by commas")
    problems: int = flag(
        300, "test problems of each family and level whose samples are in the cache", low=3)
    samples: int = flag(256, "samples per problem", low=64)
    temperature: float = flag(
        0.7,
        "sampling temperature, of the reward models' training responses as well",
        low=0.01)
    reward_model_questions: int = flag(
        8000,
        "training questions of reward models that are missing; --study labels has its own",
        low=1)
    reward_model_epochs: int = flag(
        3, "most epochs of reward models that are missing", low=1)
    questions: int = flag(300, "training questions of --study labels", low=1)
    seed: int = flag(0, "seed of problems and samples", low=0)

    @property
    def orm(self):
        """Folder of the first ORM."""
        return f"{self.reward_models}/orm-0"

    @property
    def prm(self):
        """Folder of the first PRM."""
        return f"{self.reward_models}/prm-0"

    def path(self, name):
        """Folder of a run of this study."""
        return Path(self.reward_models) / name

    @property
    def all_seeds(self):
        """Seeds as whole numbers. Raises UserError for anything else."""
        return whole_numbers(self.seeds, "seeds")


def best_of(pools, name, reward_model, setup, ns=NS):
    """Expected accuracy of best-of-N and votes by a reward model: {rule: [one per n of ns]}.

    The mean is over the problems of all pools. name: of the reward model among the rules.
    """
    made = []
    for pool in pools:
        scored = pool.select(range(len(pool.problems)))
        scored.add_reward_model(name, reward_model, setup.bf16)
        made.append(estimates(scored, ns, setup.config.seed))
    accuracies = {}
    for rule in made[0]:
        values = np.concatenate([by_rule[rule] for by_rule in made])  # (P, ns)
        accuracies[rule] = rounded(values.mean(0))
    return accuracies


def report_of(path):
    """report.json of a run."""
    return json.loads((path / "report.json").read_text())


def positions_of(run):
    """{position in a response: figures of a reward model's scores there}, on test responses."""
    return run["report"]["test"]["positions"]


# --study kinds


def kinds(config, setup):
    """ORM and PRM, of several seeds, on one set of labelled samples."""
    ensure_reward_models(config)
    runs = {}
    for kind in ("orm", "prm"):
        for seed in config.all_seeds:
            path = config.path(f"{kind}-{seed}")
            ensure(
                path / "report.json", "train_prm.py",
                kind=kind, reuse=config.orm, seed=seed, out=path, **recipe(config))
            runs[f"{kind}-{seed}"] = dict(report=report_of(path))
    all_pools = setup.pools(setup.model(config.policy), config.problems, config.samples)
    pools = []
    for pool in all_pools.values():
        pools.append(pool.select(range(len(pool.problems) // 3), NS[-1]))
    for name, run in runs.items():
        kind = name.split("-")[0]
        run["curves"] = best_of(pools, kind, load_reward_model(config.path(name)), setup)
    problems = sum(len(pool.problems) for pool in pools)
    return dict(study="kinds", ns=NS, problems=problems, runs=runs)


KINDS_RULES = (
    "orm", "prm-last", "prm-min", "prm-prod",
    "weighted-orm", "weighted-prm-last", "weighted-prm-min", "weighted-prm-prod",
    "vote", "likelihood", "coverage")


def runs_of_kind(report, kind):
    """The runs of an ORM or PRM, one per seed."""
    return [run for name, run in report["runs"].items() if name.startswith(kind)]


def kinds_row(report, rule):
    """How good a reward model is at the last token, and what a rule chooses by it, over seeds."""
    runs = runs_of_kind(report, "prm" if "prm" in rule else "orm")
    cells = [rule, "", ""]
    if rule in ("orm", "prm-last"):  # these choose by the score at the last token
        last = [positions_of(run)["last"] for run in runs]
        cells[1] = over_seeds([figures["auc"] for figures in last], 3)
        cells[2] = over_seeds([figures["brier"] for figures in last], 3)
    curves = 100 * np.array([run["curves"][rule] for run in runs])  # (seeds, ns)
    for column in curves.T:
        # a rule without a reward model gives the same for every seed
        cells.append(over_seeds(column) if "rm" in rule else f"{column[0]:.1f}")
    return cells


def kinds_markdown(report):
    """What each rule chooses, over seeds, and how good the reward models are by position."""
    heads = ["rule", "AUC, last token", "Brier score", *(f"best of {n}" for n in report["ns"])]
    lines = table_lines(heads, [kinds_row(report, rule) for rule in KINDS_RULES])
    rows = []
    for kind in ("orm", "prm"):
        runs = runs_of_kind(report, kind)
        for where in positions_of(runs[0]):
            figures = [positions_of(run)[where] for run in runs]
            auc = over_seeds([x["auc"] for x in figures], 3)
            brier = over_seeds([x["brier"] for x in figures], 3)
            right = f"{100 * figures[0]['right']:.0f}%"
            rows.append([f"{kind}, {where}", auc, brier, figures[0]["n"], right])
    lines += ["", *table_lines(["position", "AUC", "Brier score", "n", "right"], rows)]
    r = runs_of_kind(report, "prm")[0]["report"]
    note = (
        f"{report['problems']} test problems. "
        f"Labels: {r['responses']:,} different responses with {r['step_labels']:,} steps, "
        f"from {r['cost']['train']['sampled']:,} sampled tokens.")
    return "\n".join([*lines, "", note])


# --study labels


def label_flags():
    """{row: flags of train_prm.py} of every way to label steps."""
    rows = {"exact": dict(labels="exact")}
    for k in ROLLOUTS:
        rows[f"mc{k}-soft"] = dict(labels="mc", rollouts=k)
        if k > 1:  # one rollout is right or wrong: its soft label is a hard one
            rows[f"mc{k}-hard"] = dict(labels="mc", rollouts=k, hard_labels=True)
    return rows


def labels(config, setup):
    """PRMs of equal samples whose steps were labelled by the exact checker or by rollouts."""
    common = dict(
        kind="prm", init=config.policy, temperature=config.temperature,
        questions=config.questions, val_questions=12, batch_size=32, eval_every=25)
    # the first run draws the samples and all rollouts; the others reuse them
    source = config.path("labels-mc16-soft-0")
    ensure(
        source / "report.json", "train_prm.py",
        labels="mc", rollouts=max(ROLLOUTS), out=source, **common)
    runs = {}
    for row, flags in label_flags().items():
        for seed in config.all_seeds:
            path = config.path(f"labels-{row}-{seed}")
            ensure(
                path / "report.json", "train_prm.py",
                reuse=source, seed=seed, out=path, **common, **flags)
            runs[f"{row}-{seed}"] = dict(row=row, report=report_of(path))
    all_pools = setup.pools(setup.model(config.policy), config.problems, config.samples)
    pools = []
    for pool in all_pools.values():
        pools.append(pool.select(range(len(pool.problems) * 2 // 15), 32))
    ns = NS[:-1]
    for name, run in runs.items():
        prm = load_reward_model(config.path(f"labels-{name}"))
        run["curves"] = best_of(pools, "prm", prm, setup, ns)
    problems = sum(len(pool.problems) for pool in pools)
    return dict(study="labels", ns=ns, problems=problems, runs=runs)


def labels_row(row, runs):
    """One way to label: its rollouts, its errors, and the PRM that came of it, over seeds."""
    report = runs[0]["report"]
    rollout_tokens = 0
    right_as_wrong = ""
    wrong_as_right = ""
    if row != "exact":
        quality = report["label_quality"]
        rollout_tokens = report["cost"]["train"]["rolled"]
        right_as_wrong = error_rate(quality["right_but_called_wrong"], quality["right"])
        wrong_as_right = error_rate(quality["wrong_but_called_right"], quality["wrong"])
    cells = [row, f"{rollout_tokens:,}", report["balanced"], right_as_wrong, wrong_as_right]
    cells.append(over_seeds([step_auc(run["report"]) for run in runs], 3))
    cells.append(over_seeds([positions_of(run)["last"]["auc"] for run in runs], 3))
    for how in AGGREGATES:
        cells.append(over_seeds([100 * run["curves"][f"prm-{how}"][2] for run in runs]))
    return cells


def error_rate(errors, n):
    """4, 40  ->  "4 of 40 (10.0%)" """
    return f"{errors:,} of {n:,} ({100 * errors / n:.1f}%)"


def labels_markdown(report):
    """A row for each way to label."""
    heads = [
        "labels", "tokens of rollouts", "balanced responses", "right steps called wrong",
        "wrong steps called right", "AUC of steps", "AUC, last token",
        "best of 16: last", "min", "prod"]
    rows = []
    for row in dict.fromkeys(run["row"] for run in report["runs"].values()):
        runs = [run for run in report["runs"].values() if run["row"] == row]
        rows.append(labels_row(row, runs))
    r = next(iter(report["runs"].values()))["report"]
    note = (
        f"{report['problems']} test problems; {r['responses']:,} different responses with "
        f"{r['step_labels']:,} steps, {r['cost']['train']['sampled']:,} sampled tokens.")
    return "\n".join([*table_lines(heads, rows), "", note])


# --study trust: over-optimisation. "Gold" is the checker's reward, "proxy" the reward model's.


def gao_fit(d, gain, form):
    """Least squares of the gold reward's gain over the start, in d = sqrt(KL).

    Gao et al. 2210.10760, section 3: best-of-n ("bon") d (a - b d), RL ("rl") d (a - b ln d).
    Returns {'a', 'b', 'r2'}. Points at d = 0 are left out; fewer than two others give None.
    """
    moved = np.asarray(d) > 0
    if moved.sum() < 2:
        return None
    d = np.asarray(d, float)[moved]
    gain = np.asarray(gain, float)[moved]
    bend = d * d if form == "bon" else d * np.log(d)
    (a, b), *_ = np.linalg.lstsq(np.stack((d, -bend), 1), gain, rcond=None)
    spread = ((gain - gain.mean()) ** 2).sum()
    residual = ((gain - a * d + b * bend) ** 2).sum()
    r2 = round(float(1 - residual / spread), 4) if spread else 1.0
    return {"a": round(float(a), 4), "b": round(float(b), 4), "r2": r2}


def kl_of_best(n):
    """KL, in nats, of the best of n samples to one sample: ln n - (n - 1) / n.

    Gao et al. 2210.10760, section 3.1. Exact where no two samples are equal; where many are, as
    here, an upper bound.
    """
    return np.log(n) - (n - 1) / n


@torch.no_grad()
def mean_kl(setup, policy, reference, problems, rollout, samples):
    """KL of the policy to the reference, in nats per response, estimated from its samples (k1)."""
    no_rewards = dict(total=torch.zeros(len(problems), samples))
    experience = Experience(problems, rollout, no_rewards, [], [])
    settings = SimpleNamespace(row_tokens=128, micro_tokens=16_384, gradient_accumulation=1)
    rows = range(len(rollout.ids))
    temperature = setup.config.temperature
    total = 0.0
    for micro in experience.micro_batches(rows, {}, settings, setup.machine.device):
        logp, _ = token_logprobs(policy, micro, temperature)  # (M,)
        ref_logp, _ = token_logprobs(reference, micro, temperature)
        total += float((logp - ref_logp).sum())
    return max(total / len(rows), 0.0)


@torch.no_grad()
def measure_policy(setup, policy, reference, problems, reward_models, samples=4):
    """Gold and proxy rewards of fresh samples, and their KL to the reference in nats per response.

    reward_models: {name: RewardModel}; each name becomes the key of its mean score.
    """
    prompts = [render_prompt(problem.question) for problem in problems]
    noise = generator(setup.config.seed, "trust")
    temperature = setup.config.temperature
    rollout = generate(policy, prompts, samples, LIMIT, temperature, noise).cpu()
    responses = [rollout.response(row) for row in range(len(rollout.ids))]
    gold = []
    for row, ids in enumerate(responses):
        gold.append(outcome_reward(problems[row // samples], parse_response(ids)))
    figures = dict(
        gold=float(np.mean(gold)),
        kl=mean_kl(setup, policy, reference, problems, rollout, samples),
        length=float(rollout.lengths.float().mean()),
        ci=interval_of_mean(gold))
    row_prompts = [prompts[row // samples] for row in range(len(responses))]
    for name, reward_model in reward_models.items():
        rated = scores(reward_model, row_prompts, responses, setup.bf16)
        figures[name] = float(np.mean([aggregate(r, "last") for r in rated]))
    return figures


def policy_at(config, kind, step):
    """Checkpoint of RL against a reward model, after so many steps; trained where it is missing.

    The reward is the score at the last token, of the whole response; a PRM also rewards steps.
    Raises UserError where the run has gone past this step and its checkpoint is missing.
    """
    out = config.path(f"rl-against-{kind}")
    kept = out / f"step-{step}.pt"
    if kept.exists():
        return kept
    ensure(
        kept, "train_grpo.py", init=config.policy, temperature=config.temperature, reward=kind,
        reward_model=config.path(f"{kind}-0"), families=",".join(FAMILIES),
        level=",".join(map(str, LEVELS)), batch_size=256, max_reasoning_tokens=LIMIT,
        steps=max(STEPS), eval_every=0, max_steps=step, out=out, save_every=max(STEPS))
    state = checkpoint.load(out / "ckpt.pt")
    if state["run"]["step"] != step:
        raise UserError(
            f"{out} stands at step {state['run']['step']}, and {kept.name} is missing; "
            "remove the folder to begin again")
    checkpoint.save(kept, checkpoint.build_model(state))
    return kept


def reinforce(config, setup, kind, problems, reward_models):
    """RL against one reward model's scores, measured at the start and at STEPS."""
    start = setup.model(config.policy)
    rows = [dict(step=0, **measure_policy(setup, start, start, problems, reward_models))]
    for step in STEPS:
        policy = setup.model(policy_at(config, kind, step))
        figures = measure_policy(setup, policy, start, problems, reward_models)
        rows.append(dict(step=step, **figures))
        say(f"rl against {kind}: {rows[-1]}")
    return rows


def best_of_n_curve(pools, rule, ns):
    """Gold and proxy reward of the best of n by a reward model, for every n of ns."""
    gold = []
    proxy = []
    for pool in pools:
        for score, right in zip(pool.scores[rule], pool.right):  # (N,) each
            gold.append(best_at(score, right, ns))
            proxy.append(best_at(score, score, ns))
    return dict(
        ns=ns, d=[float(np.sqrt(kl_of_best(n))) for n in ns],
        gold=np.mean(gold, 0).tolist(), proxy=np.mean(proxy, 0).tolist())


def trust(config, setup):
    """Gold and proxy reward against sqrt(KL): best of N by each reward model, and RL against it."""
    ensure_reward_models(config)
    reward_models = dict(orm=load_reward_model(config.orm), prm=load_reward_model(config.prm))
    model = setup.model(config.policy)
    pools = setup.pools(model, config.problems, config.samples, "test", reward_models)
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= config.samples]
    problems = held_out_problems(FAMILIES, LEVELS, 60, "test", config.seed)
    report = dict(study="trust", best_of_n={}, rl={}, fits={})
    for kind, rule in (("orm", "orm"), ("prm", "prm-last")):
        best = best_of_n_curve(pools.values(), rule, ns)
        rl = reinforce(config, setup, kind, problems, reward_models)
        report["best_of_n"][kind] = best
        report["rl"][kind] = rl
        best_gain = np.array(best["gold"]) - best["gold"][0]
        rl_gain = [row["gold"] - rl[0]["gold"] for row in rl]
        rl_d = [np.sqrt(row["kl"]) for row in rl]
        report["fits"][kind] = dict(
            bon=gao_fit(best["d"], best_gain, "bon"), rl=gao_fit(rl_d, rl_gain, "rl"))
    return report


def trust_lines(report, kind):
    """The lines about one reward model."""
    best = report["best_of_n"][kind]
    fit = "a {a:.3f}, b {b:.3f}, R2 {r2:.2f}"
    bon = fit.format(**report["fits"][kind]["bon"])
    rl = fit.format(**report["fits"][kind]["rl"])
    lines = [
        f"Against the {kind.upper()}. Best of n, d (a - b d): {bon}. RL, d (a - b ln d): {rl}.", ""]
    rows = []
    for n, d, gold, proxy in zip(best["ns"], best["d"], best["gold"], best["proxy"]):
        rows.append([n, f"{d:.2f}", f"{100 * gold:.1f}", f"{proxy:.3f}"])
    lines += table_lines(["best of", "sqrt(KL)", "true", "reward model's"], rows)
    rows = []
    for r in report["rl"][kind]:
        gold = percent(r["gold"], r["ci"])
        d = f"{np.sqrt(r['kl']):.2f}"
        rows.append([r["step"], d, gold, f"{r[kind]:.3f}", f"{r['length']:.0f}"])
    heads = ["RL step", "sqrt(KL)", "true", "reward model's", "tokens"]
    return [*lines, "", *table_lines(heads, rows), ""]


def trust_markdown(report):
    """True reward and the reward model's score, along both ways to drift from the policy."""
    lines = []
    for kind in report["rl"]:
        lines += trust_lines(report, kind)
    return "\n".join(lines)


STUDIES = {  # {--study: (makes the report, its table, its figure)}
    "kinds": (kinds, kinds_markdown, charts.reward_model_kinds),
    "labels": (labels, labels_markdown, charts.reward_model_labels),
    "trust": (trust, trust_markdown, charts.reward_model_trust),
}


def main():
    config = parse_config(Config, doc=__doc__)
    config.all_seeds  # a mistake in it should be said before hours of work
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    study, markdown, draw = STUDIES[config.study]
    publish(config.study, study(config, Setup(config)), markdown, draw, out)


if __name__ == "__main__":
    run_script(main)

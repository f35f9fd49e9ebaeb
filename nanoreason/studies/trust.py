"""--study trust of reward_models.py: the reward model's score and the truth as they part.

"Gold" is the exact checker's reward, "proxy" the reward model's score.
"""

import numpy as np
import torch

from nanoreason import checkpoint
from nanoreason.evaluate import held_out_problems, interval_of_mean
from nanoreason.experience import token_logprobs
from nanoreason.flags import UserError
from nanoreason.machine import generator
from nanoreason.plots import new_axes, save, styled
from nanoreason.pool import best_at
from nanoreason.reward_model import aggregate, scores
from nanoreason.run import say
from nanoreason.studies.reports import percent, table_lines
from nanoreason.studies.runs import ensure
from nanoreason.studies.samples import (
    FAMILIES, LEVELS, LIMIT, first_reward_models, packed, prompts_of, sample_and_check)

STEPS = (1, 2, 4, 8, 16, 32, 64, 100)  # of reinforcement learning, at which it is measured
SAMPLES = 4  # responses per problem, to measure a policy


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


# Best of n


def kl_of_best(n):
    """KL, in nats, of the best of n samples to one sample: ln n - (n - 1) / n.

    Gao et al. 2210.10760, section 3.1. Exact where no two samples are equal; where many are, as
    here, an upper bound.
    """
    return np.log(n) - (n - 1) / n


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


# Reinforcement learning


@torch.no_grad()
def mean_kl(policy, reference, experience, temperature, device):
    """KL of the policy to the reference, in nats per response, estimated from its samples (k1)."""
    total = 0.0
    for micro in packed(experience, device):
        logp, _ = token_logprobs(policy, micro, temperature)  # (M,)
        ref_logp, _ = token_logprobs(reference, micro, temperature)
        total += float((logp - ref_logp).sum())
    return max(total / len(experience.rollout.ids), 0.0)


@torch.no_grad()
def measure_policy(setup, policy, reference, problems, reward_models):
    """Gold and proxy rewards of fresh samples, and their KL to the reference in nats per response.

    reward_models: {name: RewardModel}; each name becomes the key of its mean score.
    """
    temperature = setup.config.temperature
    noise = generator(setup.config.seed, "trust")
    experience, _ = sample_and_check(policy, problems, SAMPLES, LIMIT, temperature, noise)
    rollout = experience.rollout
    gold = experience.rewards["total"]  # (P, SAMPLES)
    figures = dict(
        gold=float(gold.mean()),
        kl=mean_kl(policy, reference, experience, temperature, setup.machine.device),
        length=float(rollout.lengths.float().mean()),
        ci=interval_of_mean(gold.mean(1)))  # samples of one problem are not independent
    questions = prompts_of(problems, policy.tokenizer)
    prompts = [prompt for prompt in questions for _ in range(SAMPLES)]
    responses = [rollout.response(row) for row in range(len(rollout.ids))]
    for name, reward_model in reward_models.items():
        rated = scores(reward_model, prompts, responses, setup.bf16)
        figures[name] = float(np.mean([aggregate(r, "last") for r in rated]))
    return figures


def policy_at(config, kind, step):
    """Checkpoint of RL against a reward model, after so many steps; trained where it is missing.

    The reward is the score at the last token, of the whole response; a PRM also rewards steps.
    Raises UserError where the run has gone past this step and its checkpoint is missing.
    """
    out = config.reward_model(f"rl-against-{kind}")
    kept = out / f"step-{step}.pt"
    if kept.exists():
        return kept
    ensure(
        kept, "train_grpo.py", init=config.policy, temperature=config.temperature, reward=kind,
        reward_model=config.reward_model(f"{kind}-0"), families=",".join(FAMILIES),
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


# The study


def trust(config, setup):
    """Gold and proxy reward against sqrt(KL): best of N by each reward model, and RL against it."""
    reward_models = first_reward_models(config)
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


@styled
def trust_figure(report, path):
    """True reward and the reward model's score against sqrt(KL), by best of N and by RL."""
    figure, axes = new_axes(2, 2, (9.5, 6.4), sharey=True)
    for (left, right), kind in zip(axes, report["rl"]):
        best = report["best_of_n"][kind]
        rl = report["rl"][kind]
        fits = report["fits"][kind]
        draw_drift(left, best["d"], best["gold"], best["proxy"], fits["bon"], bon=True)
        left.set(title=f"best of N by the {kind.upper()}")
        gold = [row["gold"] for row in rl]
        proxy = [row[kind] for row in rl]
        d = [row["kl"] ** 0.5 for row in rl]
        draw_drift(right, d, gold, proxy, fits["rl"], bon=False)
        right.set(title=f"reinforcement learning by the {kind.upper()}")
    figure.tight_layout()
    return save(figure, path)


def draw_drift(axis, d, gold, proxy, fit, bon):
    """One way to drift from the policy, with the fit of Gao et al. (`gao_fit`)."""
    smooth_d = np.linspace(1e-3, max(d), 200)
    bend = smooth_d if bon else np.log(smooth_d)
    law = gold[0] + smooth_d * (fit["a"] - fit["b"] * bend)
    label = f"d(a - b {'d' if bon else 'ln d'}), R2 {fit['r2']:.2f}"
    axis.plot(d, proxy, "o-", ms=4, color="C1", label="the reward model's score")
    axis.plot(d, gold, "o", ms=5, color="C0", label="true: by the checker")
    axis.plot(smooth_d, law, color="C0", lw=1, ls="--", label=label)
    axis.set(xlabel="sqrt(KL), KL in nats per response", ylim=(0, 1.02))
    axis.legend(fontsize=8)

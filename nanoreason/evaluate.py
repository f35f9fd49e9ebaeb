"""Measuring: accuracy with its interval by family and level, coverage, how good a judge is, behaviours."""

from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

from nanoreason.machine import generator
from nanoreason.generate import generate
from nanoreason.rewards import outcome_reward
from nanoreason.search import Scorer
from nanoreason.tasks import REASONING, audit, problem_set
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.reward_model import scores

CUES = {"verification": "Check: ", "self_correction": "Wait, ", "another_way": "Another way: "}


@dataclass(frozen=True)
class Sample:
    """One judged response."""

    response: object
    tokens: int
    correct: bool


def wilson(right, n, z=1.96):
    """95% score interval of a proportion (Wilson 1927): (low, high). right may be a fractional count. (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def pass_at_k(n, c, k):
    """Chance that at least one of k samples, drawn without replacement from n of which c are right, is right.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of Chen et al. 2107.03374, equation 1. Raises ValueError when k > n.
    """
    if k > n:
        raise ValueError(f"coverage of {k} samples cannot be estimated from {n}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def over_seeds(values, digits=1):
    """Mean and sample standard deviation as text; the value alone where there is one.     [1, 3]  ->  '2.0 ± 1.4'"""
    return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def auc(scores, labels):
    """Chance that a right one scores above a wrong one, ties counting half (area under the ROC curve); None where one kind is missing. labels in {0, 1}."""
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels) > 0.5
    if labels.all() or not labels.any():
        return None
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum() - (counts - 1) / 2)[group]  # mean rank of equals
    n = labels.sum()
    return round(float((rank[labels].sum() - n * (n + 1) / 2) / (n * (len(labels) - n))), 4)


def brier(chances, labels):
    """Mean squared difference between chance and outcome (Brier 1950); None where nothing was judged. Half chances score 0.25."""
    return round(float(np.mean((np.asarray(chances) - np.asarray(labels)) ** 2)), 4) if len(chances) else None


def reliability(chances, labels, bins=10):
    """Calibration: [{"chance", "right", "n"}] of equal bins of the chance, its mean and the share that was right; empty bins left out."""
    chances, labels = np.asarray(chances, dtype=float), np.asarray(labels, dtype=float)
    bin_of = np.minimum((chances * bins).astype(int), bins - 1)
    return [dict(chance=round(float(chances[bin_of == b].mean()), 4), right=round(float(labels[bin_of == b].mean()), 4), n=int((bin_of == b).sum()))
            for b in range(bins) if (bin_of == b).any()]


def behaviours(responses):
    """Share of responses that think at all, and that show each cue of CUES at the start of a line."""
    n = max(1, len(responses))
    shares = {"thinks": sum(bool(r.thinking.strip()) for r in responses) / n}
    for name, cue in CUES.items():
        shares[name] = sum(any(line.startswith(cue) for line in r.steps) for r in responses) / n
    return shares


def collect(model, problems, samples, temperature, max_new_tokens, seed, max_rows=512, on_progress=None):
    """Judge `samples` responses to each problem: a list of lists of Sample, in the problems' order."""
    prompts = [render_prompt(p.question) for p in problems]
    rollout = generate(model, prompts, samples, max_new_tokens, temperature, generator(seed, "evaluate"), max_rows, on_progress=on_progress).cpu()
    judged = []
    for p, problem in enumerate(problems):
        rows = range(p * samples, (p + 1) * samples)
        responses = [rollout.response(row) for row in rows]
        parsed = [parse_response(ids) for ids in responses]
        judged.append([Sample(r, len(ids), bool(outcome_reward(problem, r))) for r, ids in zip(parsed, responses)])
    return judged


def held_out_problems(families, levels, count, split="test", seed=0):
    """`count` different problems of each family, shared out evenly over the levels; what a small level lacks, the next ones make up for."""
    problems = []
    for family in families:
        found = []
        for i, level in enumerate(levels):
            found += problem_set(family, level, split, count * (i + 1) // len(levels) - len(found), seed)
        problems += found
    return problems


def accuracy(right, n):
    """{'acc', 'n', 'ci'} with a Wilson interval, rounded for reports."""
    low, high = wilson(right, n)
    return {"acc": round(right / max(1, n), 4), "n": n, "ci": [round(low, 4), round(high, 4)]}


def greedy_accuracy(model, problems, max_new_tokens):
    """{'acc', 'n', 'ci'} of one greedy response to each problem."""
    judged = collect(model, problems, 1, 0.0, max_new_tokens, seed=0)
    return accuracy(sum(samples[0].correct for samples in judged), len(judged))


def sampled_accuracy(model, problems, max_new_tokens, seed):
    """The same of one response to each problem, sampled at temperature 1."""
    judged = collect(model, problems, 1, 1.0, max_new_tokens, seed)
    return accuracy(sum(samples[0].correct for samples in judged), len(judged))


def greedy_figures(model, problems, max_new_tokens):
    """What a model's greedy responses are worth: accuracy in all, by family and by level; of the right ones, the share that holds a step which the exact
    judge does not accept, or none from which the answer follows ("unsound"; families to reason about); tokens a response; and FLOPs of a whole answer."""
    judged = [samples[0] for samples in collect(model, problems, 1, 0.0, max_new_tokens, seed=0)]
    right = [audit(p, s.response.steps).sound for p, s in zip(problems, judged) if s.correct and p.family in REASONING]
    tokens, read = np.array([s.tokens for s in judged]), np.array([len(render_prompt(p.question)) for p in problems])
    return dict(params=model.num_params, greedy=accuracy(sum(s.correct for s in judged), len(judged)), accuracy=by_family(problems, [[s] for s in judged]),
                levels={level: accuracy(sum(s.correct for p, s in zip(problems, judged) if p.level == level), sum(p.level == level for p in problems)) for level in sorted({p.level for p in problems})},
                unsound=accuracy(right.count(False), len(right)), mean_tokens=round(float(tokens.mean()), 2), mean_flops=float((model.flops_per_token() * (read + tokens)).mean()))


def by_family(problems, judged):
    """Accuracy of the first sample of each problem: {family: {'acc', 'n', 'ci', 'levels': {level: {...}}}}."""
    table = {}
    for family in dict.fromkeys(p.family for p in problems):
        of = [(p.level, s[0].correct) for p, s in zip(problems, judged) if p.family == family]
        table[family] = accuracy(sum(c for _, c in of), len(of))
        table[family]["levels"] = {str(level): accuracy(sum(c for l, c in of if l == level), sum(l == level for l, _ in of))
                                   for level in sorted({l for l, _ in of})}
    return table


def interval_of_mean(values, seed=0, draws=1000):
    """95% bootstrap interval of the mean over problems (percentile method, Efron 1979)."""
    values = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    return [round(float(q), 4) for q in np.quantile(values[picks].mean(1), (0.025, 0.975))]


def reward_model_scorer(reward_model, prompts, how="last", bf16=False):
    """A reward model as the search.Judge of responses to these prompts; `how`: one of reward_model.AGGREGATES."""
    return Scorer(lambda owner, responses: scores(reward_model, [prompts[i] for i in owner], responses, bf16), how, reward_model.gpt.flops_per_token())


def oracle_scorer(problems):
    """The exact checker as a Scorer, for upper bounds: 1 for a right response, else 0."""
    return Scorer(lambda owner, responses: [[(len(r) - 1, outcome_reward(problems[i], parse_response(r)))] for i, r in zip(owner, responses, strict=True)])

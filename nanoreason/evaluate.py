"""Measuring: accuracy with its interval, by family and level; coverage; behaviours; how well a
reward model's scores agree with the exact checker."""

from dataclasses import dataclass
from math import comb, sqrt
from typing import NamedTuple

import numpy as np

from nanoreason.machine import generator
from nanoreason.generate import generate
from nanoreason.rewards import outcome_reward
from nanoreason.search import Scorer
from nanoreason.tasks import REASONING, Verdict, audit, problem_set
from nanoreason.reward_model import scores

CUES = {
    "verification": "Check: ",
    "self_correction": "Wait, ",
    "another_way": "Another way: ",
}


@dataclass(frozen=True)
class Sample:
    """One response and whether its answer is right. tokens: of the whole response."""

    response: object
    tokens: int
    correct: bool


# Estimates and intervals


def wilson(right, n, z=1.96):
    """95% score interval of a proportion (Wilson 1927): (low, high); (0, 1) when n is 0.

    right may be a fractional count.     5 of 10  ->  (0.2366, 0.7634)
    """
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle = p + z * z / (2 * n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def accuracy(right, n):
    """{'acc', 'n', 'ci'} with a Wilson interval, rounded for reports."""
    low, high = wilson(right, n)
    return {"acc": round(right / max(1, n), 4), "n": n, "ci": [round(low, 4), round(high, 4)]}


def accuracy_of(correct):
    """`accuracy` of a list of bools."""
    return accuracy(sum(correct), len(correct))


def interval_of_mean(values, low=0.0, high=1.0):
    """95% interval of the mean of a figure per problem, each between low and high: [low, high].

    values: (P,). Wilson's interval for as many yes-or-no problems as would vary as much as these
    values: n = P p (1 - p) / variance. The variance counts a pseudo-problem that varies as much as
    can be, so the interval keeps its width where all values are equal, and for one problem; of
    differences, where low is negative, two: a few changes among many problems are skewed.

        [0.5] -> [0.0546, 0.9454]    [0.5] * 10 -> [0.4038, 0.5962]    [1] * 5 -> [0.5655, 1.0]

    In 2,000 simulated draws of 30 to 500 problems it covers the mean in 93 to 98% of them; the
    bootstrap of 30 problems, 95% of them solved, does in 78%.
    """
    scaled = (np.asarray(values, dtype=float) - low) / (high - low)
    n = len(scaled)
    p = float(scaled.mean())
    most = p * (1 - p)  # the variance of yes-or-no problems
    if most > 0:
        pseudo = 2 if low < 0 else 1
        variance = (((scaled - p) ** 2).sum() + pseudo * most) / (n - 1 + pseudo)
        n = n * most / variance
    return [round(float(low + (high - low) * end), 4) for end in wilson(p * n, n)]


def pass_at_k(n, c, k):
    """Probability that at least one of k samples is right. The k are drawn without replacement
    from n, of which c are right.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of Chen et al. 2107.03374, equation 1. Raises
    ValueError when k > n.
    """
    if k > n:
        raise ValueError(f"coverage of {k} samples cannot be estimated from {n}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def over_seeds(values, digits=1):
    """Mean and sample standard deviation as text, or the value alone where there is one.

    [1, 3]  ->  '2.0 ± 1.4'
    """
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    deviation = np.std(values, ddof=1)
    return f"{mean} ± {deviation:.{digits}f}"


# How good the scores of a reward model are


def auc(scores, labels):
    """Area under the ROC curve: the probability that a right response scores above a wrong one,
    ties counting half. None where either kind is missing. scores, labels: (n,), labels in {0, 1}.
    """
    scores = np.asarray(scores, dtype=float)
    right = np.asarray(labels) > 0.5
    if right.all() or not right.any():
        return None
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum() - (counts - 1) / 2  # of each group of equal scores
    rank = mean_rank[group]  # (n,)
    n = right.sum()
    # the rank sum of the right ones, less its minimum, counts the pairs (Mann and Whitney 1947)
    return round(float((rank[right].sum() - n * (n + 1) / 2) / (n * (len(right) - n))), 4)


def brier(chances, labels):
    """Mean squared difference between chance and outcome (Brier 1950). None where there are no
    chances. A chance of one half always scores 0.25."""
    if not len(chances):
        return None
    return round(float(np.mean((np.asarray(chances) - np.asarray(labels)) ** 2)), 4)


def reliability(chances, labels, bins=10):
    """Calibration: [{"chance", "right", "n"}], one per bin of the chance, all bins of equal width:
    the mean chance in it, the share that was right, and the count. Empty bins are left out."""
    chances = np.asarray(chances, dtype=float)
    labels = np.asarray(labels, dtype=float)
    bin_of = np.minimum((chances * bins).astype(int), bins - 1)
    rows = []
    for b in range(bins):
        here = bin_of == b
        if here.any():
            chance = round(float(chances[here].mean()), 4)
            right = round(float(labels[here].mean()), 4)
            rows.append(dict(chance=chance, right=right, n=int(here.sum())))
    return rows


def reward_model_scorer(reward_model, prompts, how="last", bf16=False):
    """A reward model as the search.Scorer of responses to these prompts. how: one of
    reward_model.AGGREGATES."""

    def read(owner, responses):
        return scores(reward_model, [prompts[i] for i in owner], responses, bf16)

    return Scorer(read, how, reward_model.gpt.flops_per_token())


def oracle_scorer(problems, tokenizer):
    """The exact checker as a Scorer, for upper bounds: 1 for a right response, else 0."""

    def read(owner, responses):
        readings = []
        for i, ids in zip(owner, responses, strict=True):
            reward = outcome_reward(problems[i], tokenizer.parse_response(ids))
            readings.append([(len(ids) - 1, reward)])
        return readings

    return Scorer(read)


# Problems and responses


def held_out_problems(families, levels, count, split="test", seed=0):
    """`count` different problems of each family, shared out evenly over the levels. Where a level
    has too few, the next levels make up for it.

    A family or level that is named twice counts once, and so does a problem that two levels hold.
    """
    problems = []
    levels = list(dict.fromkeys(levels))
    for family in dict.fromkeys(families):
        found = {}
        for i, level in enumerate(levels):
            due = count * (i + 1) // len(levels)  # problems up to and including this level
            for problem in problem_set(family, level, split, due, seed):
                if len(found) < due:
                    found.setdefault(problem.key, problem)
        problems += found.values()
    return problems


def collect(
    model, problems, samples, temperature, max_new_tokens, seed, max_rows=512, on_progress=None
):
    """Sample `samples` responses to each problem and check them: a list of lists of Sample, in the
    problems' order."""
    tokenizer = model.tokenizer
    prompts = [tokenizer.render_prompt(problem.question) for problem in problems]
    rollout = generate(
        model, prompts, samples, max_new_tokens, temperature, generator(seed, "evaluate"),
        max_rows=max_rows, on_progress=on_progress,
    ).cpu()
    checked = []
    for p, problem in enumerate(problems):
        own = []
        for row in range(p * samples, (p + 1) * samples):
            ids = rollout.response(row)
            response = tokenizer.parse_response(ids)
            own.append(Sample(response, len(ids), bool(outcome_reward(problem, response))))
        checked.append(own)
    return checked


def behaviours(responses):
    """Share of responses that think at all, and that show each cue of CUES at the start of a line.
    {"thinks", *CUES}, all 0 where there are no responses."""
    n = max(1, len(responses))
    shares = {"thinks": sum(bool(r.thinking.strip()) for r in responses) / n}
    for name, cue in CUES.items():
        shown = sum(any(step.startswith(cue) for step in r.steps) for r in responses)
        shares[name] = shown / n
    return shares


# Accuracy of a model


def greedy_accuracy(model, problems, max_new_tokens):
    """{'acc', 'n', 'ci'} of one greedy response to each problem."""
    checked = collect(model, problems, 1, 0.0, max_new_tokens, seed=0)
    return accuracy_of([samples[0].correct for samples in checked])


def sampled_accuracy(model, problems, max_new_tokens, seed):
    """The same of one response to each problem, sampled at temperature 1."""
    checked = collect(model, problems, 1, 1.0, max_new_tokens, seed)
    return accuracy_of([samples[0].correct for samples in checked])


def greedy_figures(model, problems, max_new_tokens):
    """How good a model's greedy responses are, as a dictionary for reports.

    params       parameters of the model
    greedy       accuracy over all problems, {'acc', 'n', 'ci'}
    accuracy     `by_family`
    levels       {level: accuracy}
    unsound      of the right responses to families to reason about, the share with a step that the
                 exact checker does not accept, or with no steps from which the answer follows
    mean_tokens  tokens per response
    mean_flops   FLOPs to read a prompt and write its response
    """
    checked = collect(model, problems, 1, 0.0, max_new_tokens, seed=0)
    samples = [own[0] for own in checked]
    levels = {}
    for level in sorted({problem.level for problem in problems}):
        correct = [s.correct for p, s in zip(problems, samples) if p.level == level]
        levels[level] = accuracy_of(correct)
    prompts = [model.tokenizer.render_prompt(problem.question) for problem in problems]
    prompt_tokens = np.array([len(prompt) for prompt in prompts])
    completion_tokens = np.array([sample.tokens for sample in samples])
    flops = model.flops_per_token() * (prompt_tokens + completion_tokens)
    return dict(
        params=model.num_params,
        greedy=accuracy_of([sample.correct for sample in samples]),
        accuracy=by_family(problems, checked),
        levels=levels,
        unsound=accuracy_of([not sound for sound in soundness(problems, samples).traces]),
        mean_tokens=round(float(completion_tokens.mean()), 2),
        mean_flops=float(flops.mean()),
    )


class Soundness(NamedTuple):
    """What the exact checker says of thinking, each a list of bools over families to reason about.

    steps   {family: whether each step of its right responses is right}
    traces  whether all steps of a right response are, and the answer follows from them
    checks  whether each 'Check: ' line of a wrong response is right
    """

    steps: dict
    traces: list
    checks: list

    def figures(self):
        """The same as shares, for reports."""
        everything = [right for own in self.steps.values() for right in own]
        families = {family: accuracy_of(own) for family, own in self.steps.items()}
        return dict(
            steps=accuracy_of(everything) | {"families": families},
            traces=accuracy_of(self.traces), checks_of_wrong=accuracy_of(self.checks),
        )


def soundness(problems, samples):
    """The Soundness of one Sample of each problem."""
    found = Soundness({}, [], [])
    for problem, sample in zip(problems, samples):
        if problem.family not in REASONING:
            continue
        steps = sample.response.steps
        audited = audit(problem, steps)
        right = [judgement.verdict is Verdict.RIGHT for judgement in audited.judgements]
        if sample.correct:
            found.steps.setdefault(problem.family, []).extend(right)
            found.traces.append(audited.sound)
        else:
            is_check = [step.startswith(CUES["verification"]) for step in steps]
            found.checks.extend(right for right, check in zip(right, is_check) if check)
    return found


def by_family(problems, checked):
    """Accuracy of the first sample of each problem: {family: {'acc', 'n', 'ci', 'levels': {level:
    {...}}}}, with levels as text."""
    table = {}
    for family in dict.fromkeys(problem.family for problem in problems):
        rows = [(p.level, s[0].correct) for p, s in zip(problems, checked) if p.family == family]
        levels = {}
        for level in sorted({level for level, _ in rows}):
            levels[str(level)] = accuracy_of([correct for own, correct in rows if own == level])
        table[family] = accuracy_of([correct for _, correct in rows]) | {"levels": levels}
    return table

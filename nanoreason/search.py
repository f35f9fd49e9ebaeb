"""Ways to spend compute at inference: one table of methods with one signature.

    method(model, prompt, n, temperature, max_new_tokens, generator) -> Result

The prompt is a list of ids. No method sees the right answer; what it spent, in tokens and FLOPs, comes back with what it found.
"""

from collections import Counter
from dataclasses import dataclass

from nanoreason.generate import generate
from nanoreason.tasks.core import parse_number
from nanoreason.tokenizer import Response, parse_response


@dataclass(frozen=True)
class Result:
    """answer: text or None; response: the one chosen; candidates, scores: all of them and what chose; tokens, flops: the price."""

    answer: str | None
    response: Response
    candidates: list
    scores: list
    tokens: int
    flops: float


def canonical(answer):
    """Answers that mean the same number, or the same words, become equal: '1,692', '1692.0' and 'x = 1692' are one vote, '100' and
    '100 students' are one."""
    if answer is None:
        return None
    text = answer.strip().rstrip(".").casefold().removeprefix("x = ")
    number, _, unit = text.partition(" ")
    value = parse_number(number if unit.isalpha() else text)
    return text if value is None else str(value)


def vote_scores(answers):
    """Self-consistency (Wang et al. 2203.11171): for each candidate, how many say the same; 0 for one without an answer.

    ['12', '12.0', None, '15'] -> [2, 2, 0, 1]
    """
    keys = [canonical(a) for a in answers]
    counts = Counter(key for key in keys if key is not None)
    return [counts[key] for key in keys]


def _result(model, prompt, rollout, score):
    candidates = [parse_response(rollout.response(row)) for row in range(len(rollout.ids))]
    scores = score([c.answer for c in candidates])
    best = max(range(len(scores)), key=scores.__getitem__)  # the first of equals
    tokens = int(rollout.lengths.sum())
    return Result(candidates[best].answer, candidates[best], candidates, scores, tokens, (tokens + len(prompt)) * model.flops_per_token())


def greedy(model, prompt, n=1, temperature=0.0, max_new_tokens=256, generator=None):
    """The likeliest token at every step; n and temperature play no part."""
    return _result(model, prompt, generate(model, [prompt], 1, max_new_tokens, 0.0), lambda answers: [1] * len(answers))


def sample(model, prompt, n=1, temperature=1.0, max_new_tokens=256, generator=None):
    """One response at this temperature."""
    return _result(model, prompt, generate(model, [prompt], 1, max_new_tokens, temperature, generator), lambda answers: [1] * len(answers))


def vote(model, prompt, n=16, temperature=1.0, max_new_tokens=256, generator=None):
    """n responses; the most frequent answer wins, the first response that gave it speaks for it."""
    return _result(model, prompt, generate(model, [prompt], n, max_new_tokens, temperature, generator), vote_scores)


METHODS = {"greedy": greedy, "sample": sample, "vote": vote}

"""Ways to spend compute at inference: one table of methods with one signature.

    METHODS[name](model, prompts, spend, noise, judge) -> [Result], one for each prompt

prompts: lists of ids; spend: a Spend; noise: the torch.Generator that every random choice comes from; judge: a Judge or None. No method sees
a right answer, unless the judge is the exact oracle; what was spent, in tokens and FLOPs, comes back with what was found.

    greedy, sample   one response
    vote             n responses, the most frequent answer (self-consistency, Wang et al. 2203.11171)
    best-of-n        n responses, the one that the judge likes best; without a judge, the likeliest a token (Cobbe et al. 2110.14168)
    weighted-vote    n responses, each votes with its score (Li et al. 2206.02336)
    beam             n beams at most: of n // width kept, each is continued by `width` samples of one step (Snell et al. 2408.03314, section 5.2)
    dvts             n // width such searches apart from one another, one kept in each (diverse verifier tree search, Beeching et al. 2024)
    budget           thinking of at least and at most so many tokens: "Wait" in place of an early end (s1, Muennighoff et al. 2501.19393)
    self-verify      n responses, each checked `passes` times by the model itself; a vote weighted by the checks that confirm
    auto             the judge's score of a greedy response says how hard the question is, and a plan made on other questions what to do then (Snell et al.)
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Callable

from nanoreason.generate import generate
from nanoreason.tasks.core import parse_number
from nanoreason.tokenizer import END, END_THINK, Response, encode, parse_response
from nanoreason.reward_model import aggregate

(NEWLINE,) = encode("\n")
ANSWER_TOKENS = 24  # kept free for an answer behind a forced end of the thinking
CHECK_TOKENS = 64  # longest check of self-verify, answer included


@dataclass(frozen=True)
class SearchConfig:
    """What a method may spend. n: samples, beams, or "Wait"s; passes: of self-verify; width: continuations that beam and dvts choose from;
    min_thinking, max_thinking: tokens, 0: no bound; plan: of auto, rows (score of the greedy response below which the row counts, method, n), rising."""

    n: int = 16
    temperature: float = 1.0
    max_new_tokens: int = 256
    width: int = 4
    passes: int = 4
    min_thinking: int = 0
    max_thinking: int = 0
    plan: tuple = ()


@dataclass(frozen=True)
class Scorer:
    """rate(owner, responses): for response i (ids) to question owner[i], an index into the prompts, [(index of a token, chance of being right so
    far)], the last token's last; aggregate: one of reward_model.AGGREGATES, which makes one number of them; flops_per_token: what reading a token costs."""

    rate: Callable
    aggregate: str = "last"
    flops_per_token: float = 0.0

    def scores(self, owner, responses):
        """One number a response."""
        return [aggregate(rated, self.aggregate) for rated in self.rate(owner, responses)]


@dataclass(frozen=True)
class Result:
    """answer: text or None; response: the one chosen; candidates, scores: all of them and what chose; tokens: sampled in all; flops: of all that was
    read and written, by the judge as well."""

    answer: str | None
    response: Response
    candidates: list
    scores: list
    tokens: int
    flops: float


@dataclass
class Candidate:
    """A response to a question, perhaps unfinished. logprob: of its sampled tokens, summed; tree: which of dvts's searches it belongs to."""

    question: "Case"
    ids: list = field(default_factory=list)
    logprob: float = 0.0
    tree: int = 0
    score: float = 0.0

    @property
    def done(self):
        return self.ids[-1:] == [END]


@dataclass
class Question:
    """A question on its way to an answer: candidates so far, and the bill."""

    index: int
    prompt: list
    candidates: list = field(default_factory=list)
    tokens: int = 0
    flops: float = 0.0

    def result(self):
        """The candidate of the highest score, the first of equals; one without an answer has none."""
        candidates = [parse_response(candidate.ids) for candidate in self.candidates]
        scores = [0.0 if c.answer is None else candidate.score for c, candidate in zip(candidates, self.candidates)]
        best = max(range(len(scores)), key=scores.__getitem__)
        return Result(candidates[best].answer, candidates[best], candidates, scores, self.tokens, self.flops)


def canonical(answer):
    """Answers that mean the same number, or the same words, become equal: '1,692', '1692.0' and 'x = 1692' are one vote, '100' and
    '100 students' are one."""
    if answer is None:
        return None
    text = answer.strip().rstrip(".").casefold().removeprefix("x = ")
    number, _, unit = text.partition(" ")
    value = parse_number(number if unit.isalpha() else text)
    return text if value is None else str(value)


def vote_scores(answers, weights=None):
    """Self-consistency: for each candidate, how many say the same, or the sum of their weights; 0 for one without an answer.

    ['12', '12.0', None, '15'] -> [2, 2, 0, 1]      with weights [0.5, 0.2, 0.9, 0.8] -> [0.7, 0.7, 0, 0.8]
    """
    keys, counts = [canonical(a) for a in answers], Counter()
    for key, weight in zip(keys, weights or [1] * len(keys)):
        counts[key] += weight if key is not None else 0
    return [counts[key] for key in keys]


def extend(model, candidates, samples, cap, temperature, noise, stop=(END,)):
    """`samples` continuations of each Path, until it has `cap` tokens at most and up to a token of `stop`: a list of Paths, path-major. Their cases pay
    for what is read, once a path, and for what is written. All are decoded together, up to what the shortest may; beyond its own cap nothing counts."""
    limit = cap - min(len(candidate.ids) for candidate in candidates)
    rollout = generate(model, [p.question.prompt + p.ids for p in candidates], samples, limit, temperature, noise, stop=stop).cpu()
    grown = []
    for i, candidate in enumerate(candidates):
        candidate.question.flops += (len(candidate.question.prompt) + len(candidate.ids)) * model.flops_per_token()
        for row in range(i * samples, (i + 1) * samples):
            new = rollout.response(row)[: cap - len(candidate.ids)]
            candidate.question.tokens += len(new)
            candidate.question.flops += len(new) * model.flops_per_token()
            grown.append(Candidate(candidate.question, candidate.ids + new, candidate.logprob + float(rollout.logprobs[row, : len(new)].sum()), candidate.tree))
    return grown


def rate(scorer, candidates):
    """Score every Path: by the judge, or by its likelihood a token (the geometric mean of the tokens' probabilities)."""
    if scorer is None:
        scores = [math.exp(candidate.logprob / len(candidate.ids)) for candidate in candidates]
    else:
        scores = scorer.scores([candidate.question.index for candidate in candidates], [candidate.ids for candidate in candidates])
    for candidate, score in zip(candidates, scores, strict=True):
        candidate.score = score
        candidate.question.flops += scorer.flops_per_token * (len(candidate.question.prompt) + len(candidate.ids)) if scorer else 0.0


def draw(model, questions, n, config, noise):
    """n more whole responses to each question, among its candidates."""
    for candidate in extend(model, [Candidate(question) for question in questions], n, config.max_new_tokens, config.temperature, noise):
        candidate.score = 1.0
        candidate.question.candidates.append(candidate)


def count_votes(questions, weighted=False):
    """Score the candidates of each question by the votes for their answers."""
    for question in questions:
        answers = [parse_response(candidate.ids).answer for candidate in question.candidates]
        for candidate, score in zip(question.candidates, vote_scores(answers, [candidate.score for candidate in question.candidates] if weighted else None)):
            candidate.score = score


def method(run):
    """A function that fills the candidates of Cases, as a method that maps prompts to Results."""

    @wraps(run)
    def solve(model, prompts, config=SearchConfig(), noise=None, scorer=None):
        questions, room = [Question(i, prompt) for i, prompt in enumerate(prompts)], model.config.max_len - max(map(len, prompts), default=0)
        if questions:
            run(model, questions, replace(config, max_new_tokens=min(config.max_new_tokens, room)), noise, scorer)
        return [question.result() for question in questions]

    return solve


@method
def greedy(model, questions, config, noise, scorer):
    """The likeliest token at every step; nothing is random."""
    draw(model, questions, 1, replace(config, temperature=0.0), noise)


@method
def sample(model, questions, config, noise, scorer):
    """One response at this temperature."""
    draw(model, questions, 1, config, noise)


def choose_vote(questions, scorer):
    """The most frequent answer; the first response that gave it speaks for it."""
    count_votes(questions)


def choose_best(questions, scorer):
    """The best score."""
    rate(scorer, [candidate for question in questions for candidate in question.candidates])


def choose_weighted(questions, scorer):
    """The answer with the largest sum of scores."""
    rate(scorer, [candidate for question in questions for candidate in question.candidates])
    count_votes(questions, weighted=True)


CHOICES = {"vote": choose_vote, "best-of-n": choose_best, "weighted-vote": choose_weighted}  # what n independent samples can be chosen by


SEARCHES = ("beam", "dvts")


def _sampling(name):
    @method
    def run(model, questions, config, noise, scorer):
        draw(model, questions, config.n, config, noise)
        CHOICES[name](questions, scorer)

    run.__doc__ = CHOICES[name].__doc__
    return run


def step_search(model, questions, config, noise, scorer, diverse):
    """Grow responses step by step, keeping after each step what the judge likes best; survivors become candidates, and vote with their scores.

    Beam search keeps the n // width best of a question; the diverse variant the best one in each of n // width trees. A finished response
    keeps its place until others beat it.
    """
    keep = max(1, config.n // config.width)
    candidates = extend(model, [Candidate(question) for question in questions], config.n, config.max_new_tokens, config.temperature, noise, stop=(NEWLINE, END))
    for i, candidate in enumerate(candidates):
        candidate.tree = min(i % config.n // config.width, keep - 1) if diverse else 0
    fresh, survivors = candidates, []
    while fresh:
        rate(scorer, fresh)
        families = {}
        for candidate in survivors + fresh:
            families.setdefault((candidate.question.index, candidate.tree), []).append(candidate)
        best = [sorted(family, key=lambda p: -p.score)[: 1 if diverse else keep] for family in families.values()]
        survivors = [candidate for family in best for candidate in family]
        growing = [candidate for candidate in survivors if not candidate.done and len(candidate.ids) < config.max_new_tokens]
        survivors = [candidate for candidate in survivors if candidate.done]
        fresh = extend(model, growing, config.width, config.max_new_tokens, config.temperature, noise, (NEWLINE, END)) if growing else []
    for candidate in survivors:
        candidate.question.candidates.append(candidate)
    for question in questions:
        question.candidates = question.candidates or [Candidate(question, [END])]  # nothing came to an end within the limit
    count_votes(questions, weighted=True)


@method
def beam(model, questions, config, noise, scorer):
    """Beam search over steps."""
    step_search(model, questions, config, noise, scorer, diverse=False)


@method
def dvts(model, questions, config, noise, scorer):
    """Several beam searches of one beam each, which keep the candidates diverse."""
    step_search(model, questions, config, noise, scorer, diverse=True)


@method
def budget(model, questions, config, noise, scorer):
    """Greedy, with the thinking held between min_thinking and max_thinking tokens: where it ends too early, up to n times "Wait, " takes the place
    of the end; where it is too long, it is cut and closed."""
    longest = max(1, min(config.max_thinking or config.max_new_tokens, config.max_new_tokens - ANSWER_TOKENS))
    thinking, closed = [Candidate(question) for question in questions], []
    for wait in range(config.n + 1):
        going_on = []
        for candidate in extend(model, thinking, 1, longest, 0.0, noise, stop=(END_THINK, END)):
            ended = candidate.ids[-1] in (END_THINK, END)
            candidate.ids = candidate.ids[:-1] if ended else candidate.ids
            again = encode("\nWait, " if len(candidate.ids) > 1 else "Wait, ")
            if ended and wait < config.n and len(candidate.ids) < config.min_thinking and len(candidate.ids) + len(again) < longest:
                candidate.ids = candidate.ids + again
                going_on.append(candidate)
            else:
                candidate.ids = candidate.ids + [END_THINK]
                closed.append(candidate)
        thinking = going_on
        if not thinking:
            break
    for candidate in extend(model, closed, 1, longest + ANSWER_TOKENS, 0.0, noise):
        candidate.score = 1.0
        candidate.question.candidates.append(candidate)


@method
def self_verify(model, questions, config, noise, scorer):
    """The thinking of each response is opened again, "Check: " is written, and the model goes on `passes` times. The share of passes that end in
    the same answer is the response's vote."""
    draw(model, questions, config.n, config, noise)
    candidates = [candidate for question in questions for candidate in question.candidates]
    answers = [canonical(parse_response(candidate.ids).answer) for candidate in candidates]
    room = [len(candidate.question.prompt) + len(candidate.ids) + CHECK_TOKENS < model.config.max_len for candidate in candidates]
    asked = [i for i, answer in enumerate(answers) if answer is not None and room[i]]
    opened = [Candidate(candidates[i].question, candidates[i].ids[: candidates[i].ids.index(END_THINK)] + encode("\nCheck: ")) for i in asked]
    checks = extend(model, opened, config.passes, max(len(p.ids) for p in opened) + CHECK_TOKENS, config.temperature, noise) if opened else []
    for candidate in candidates:
        candidate.score = 0.0
    for k, i in enumerate(asked):
        passes = checks[k * config.passes : (k + 1) * config.passes]
        candidates[i].score = sum(canonical(parse_response(p.ids).answer) == answers[i] for p in passes) / config.passes
    count_votes(questions, weighted=True)


@method
def auto(model, questions, config, noise, scorer):
    """A greedy response, whose score by the judge says how likely it is right; then what `plan` says for such questions: keep it, draw up to n responses in
    all and choose, or search by steps beside it. Snell et al. estimate the difficulty from many samples; here, where a greedy response is as good as
    several, one must do."""
    if not config.plan:
        raise ValueError("auto needs a plan")
    draw(model, questions, 1, replace(config, temperature=0.0), noise)
    rate(scorer, [candidate for question in questions for candidate in question.candidates])
    rows = {}
    for question in questions:
        row = next((row for row in config.plan if question.candidates[0].score < row[0]), config.plan[-1])
        rows.setdefault(tuple(row), []).append(question)
    for (_, name, n), some in rows.items():
        if name in CHOICES:
            if n > 1:
                draw(model, some, n - 1, config, noise)
            CHOICES[name](some, scorer)
        elif name in SEARCHES:
            step_search(model, some, replace(config, n=n), noise, scorer, diverse=name == "dvts")
        elif name != "greedy":
            raise ValueError(f"a plan cannot call for {name}")


METHODS = {"greedy": greedy, "sample": sample, **{name: _sampling(name) for name in CHOICES}, "beam": beam, "dvts": dvts, "budget": budget,
           "self-verify": self_verify, "auto": auto}

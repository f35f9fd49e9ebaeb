"""Ways to spend compute at inference: one table of methods with one signature.

    METHODS[name](model, prompts, config, noise, scorer) -> [Result], one per prompt

    prompts   lists of ids
    config    a SearchConfig: how many samples, how long, at which temperature
    noise     the torch.Generator that every random choice comes from
    scorer    a Scorer, or None: then a response's likelihood is its score

No method sees a right answer, unless the scorer is the exact checker. Each Result says what was
sampled, in tokens, and what that took, in FLOPs.

    greedy, sample   one response
    vote             n responses, the most frequent answer (self-consistency, Wang et al.
                     2203.11171)
    best-of-n        n responses, the one with the best score; without a scorer, the one with the
                     highest likelihood per token (Cobbe et al. 2110.14168)
    weighted-vote    n responses, each votes with its score (Li et al. 2206.02336)
    beam             n // width beams, each continued by `width` samples of one step (Snell et al.
                     2408.03314, section 5.2)
    dvts             n // width separate searches that keep one beam each (diverse verifier tree
                     search, Beeching et al. 2024)
    budget           thinking of at least and at most so many tokens: "Wait" in place of an early
                     end (budget forcing in s1, Muennighoff et al. 2501.19393)
    self-verify      n responses, each checked `passes` times by the model itself; a vote weighted
                     by the share of checks that confirm
    auto             the score of a greedy response says how hard the question is; a plan made on
                     other questions says what to do then (Snell et al.)
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
STEP_STOP = (NEWLINE, END)  # a step search samples up to the end of a step, or of the response
ANSWER_TOKENS = 24  # kept free for the answer behind thinking that was cut off
CHECK_TOKENS = 64  # of self-verify: room behind the longest response; shorter ones get more


@dataclass(frozen=True)
class SearchConfig:
    """How much a method may sample.

    n               samples; of beam and dvts, samples per step; of budget, the most times that it
                    writes "Wait"
    temperature     of sampling
    max_new_tokens  longest response, in tokens
    width           continuations per step that beam and dvts choose from
    passes          checks per response of self-verify
    min_thinking    tokens of thinking below which budget writes "Wait"; 0: none
    max_thinking    tokens of thinking at which budget cuts it off; 0: no bound
    plan            of auto: rows (bound, method, n) with rising bounds; a row holds for questions
                    whose greedy response scores below its bound
    """

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
    """A reward model, or whatever else scores responses.

    rate(owner, responses) takes lists of equal length: responses[i], ids, answers question
    owner[i], an index into the prompts. It returns for each response [(index of a token, chance of
    being right so far)], with the last token at the end of the list.
    aggregate: one of reward_model.AGGREGATES, which makes one number of these chances.
    flops_per_token: FLOPs to read one token.
    """

    rate: Callable
    aggregate: str = "last"
    flops_per_token: float = 0.0

    def scores(self, owner, responses):
        """One number per response."""
        return [aggregate(rated, self.aggregate) for rated in self.rate(owner, responses)]


@dataclass(frozen=True)
class Result:
    """What a method found for one prompt.

    answer             text of the answer, or None
    response           the Response chosen
    candidates         all Responses that it was chosen from
    scores             one per candidate; the highest was chosen
    completion_tokens  tokens sampled, in all candidates and in whatever was discarded
    flops              to read and sample all of it, the scorer's FLOPs included
    """

    answer: str | None
    response: Response
    candidates: list
    scores: list
    completion_tokens: int
    flops: float


@dataclass
class Question:
    """A question on its way to an answer. index: its place among the prompts; prompt: ids;
    candidates: responses to choose from; completion_tokens, flops: counts so far, as in Result."""

    index: int
    prompt: list
    candidates: list = field(default_factory=list)
    completion_tokens: int = 0
    flops: float = 0.0

    def result(self):
        """The candidate with the highest score, the first of equals. One without an answer scores
        0."""
        responses = [parse_response(candidate.ids) for candidate in self.candidates]
        scores = [
            0.0 if response.answer is None else candidate.score
            for response, candidate in zip(responses, self.candidates)
        ]
        best = max(range(len(scores)), key=scores.__getitem__)
        return Result(
            responses[best].answer, responses[best], responses, scores,
            self.completion_tokens, self.flops,
        )


@dataclass
class Candidate:
    """A response to a question, perhaps unfinished. ids: its tokens so far; logprob: the sum of its
    sampled tokens' log-probabilities; tree: which of dvts's searches it belongs to."""

    question: Question
    ids: list = field(default_factory=list)
    logprob: float = 0.0
    tree: int = 0
    score: float = 0.0

    @property
    def done(self):
        return self.ids[-1:] == [END]

    @property
    def context_length(self):
        """Tokens of the prompt and of what is written so far."""
        return len(self.question.prompt) + len(self.ids)

    @property
    def answer(self):
        """Text of the answer, or None."""
        return parse_response(self.ids).answer


# Votes


def canonical(answer):
    """A form in which answers are equal when they mean the same number or the same words.

    '1,692', '1692.0' and 'x = 1692' become equal, and so do '100' and '100 students'.
    """
    if answer is None:
        return None
    text = answer.strip().rstrip(".").casefold().removeprefix("x = ")
    number, _, unit = text.partition(" ")
    value = parse_number(number if unit.isalpha() else text)
    return text if value is None else str(value)


def vote_scores(answers, weights=None):
    """Self-consistency: for each answer, how many are equal to it, or the sum of their weights.

    An answer of None has no vote and scores 0.

        ['12', '12.0', None, '15'] -> [2, 2, 0, 1]
        with weights [0.5, 0.2, 0.9, 0.8] -> [0.7, 0.7, 0, 0.8]
    """
    keys = [canonical(answer) for answer in answers]
    votes = Counter()
    for key, weight in zip(keys, weights or [1] * len(keys)):
        votes[key] += weight if key is not None else 0
    return [votes[key] for key in keys]


# Parts that the methods share


def extend(model, candidates, samples, cap, temperature, noise, stop=(END,)):
    """Sample `samples` continuations of each candidate, up to a token of `stop`: a list of
    Candidates, those of the first one first.

    cap: the most tokens that a candidate may have afterwards. All are decoded together, for as
    many tokens as the shortest may still get, and each is cut where it reaches the cap. The FLOPs
    and completion tokens are added to the counts of the candidates' questions.
    """
    limit = cap - min(len(candidate.ids) for candidate in candidates)
    contexts = [candidate.question.prompt + candidate.ids for candidate in candidates]
    rollout = generate(model, contexts, samples, limit, temperature, noise, stop=stop).cpu()
    flops_per_token = model.flops_per_token()
    grown = []
    for i, candidate in enumerate(candidates):
        question = candidate.question
        question.flops += candidate.context_length * flops_per_token  # read once for all samples
        for row in range(i * samples, (i + 1) * samples):
            new = rollout.response(row)[: cap - len(candidate.ids)]
            logprob = candidate.logprob + float(rollout.logprobs[row, : len(new)].sum())
            question.completion_tokens += len(new)
            question.flops += len(new) * flops_per_token
            grown.append(Candidate(question, candidate.ids + new, logprob, candidate.tree))
    return grown


def rate(scorer, candidates):
    """Score every candidate: by the scorer, or without one by its likelihood per token (the
    geometric mean of the tokens' probabilities)."""
    if scorer is None:
        scores = [math.exp(candidate.logprob / len(candidate.ids)) for candidate in candidates]
    else:
        owner = [candidate.question.index for candidate in candidates]
        scores = scorer.scores(owner, [candidate.ids for candidate in candidates])
        for candidate in candidates:
            candidate.question.flops += scorer.flops_per_token * candidate.context_length
    for candidate, score in zip(candidates, scores, strict=True):
        candidate.score = score


def draw(model, questions, n, config, noise):
    """Sample n more whole responses to each question; they join its candidates with score 1."""
    empty = [Candidate(question) for question in questions]
    submit(extend(model, empty, n, config.max_new_tokens, config.temperature, noise))


def submit(candidates):
    """Let finished responses join the candidates of their questions, each with score 1."""
    for candidate in candidates:
        candidate.score = 1.0
        candidate.question.candidates.append(candidate)


def all_candidates(questions):
    """The candidates of all questions as one list."""
    return [candidate for question in questions for candidate in question.candidates]


def count_votes(questions, weighted=False):
    """Score the candidates of each question by the votes for their answers. weighted: a vote
    counts as much as the score that the candidate has had so far."""
    for question in questions:
        answers = [candidate.answer for candidate in question.candidates]
        weights = [candidate.score for candidate in question.candidates] if weighted else None
        votes = vote_scores(answers, weights)
        for candidate, vote in zip(question.candidates, votes):
            candidate.score = vote


def method(fill):
    """Make a method of a function that fills the candidates of Questions: prompts in, Results out.

    Responses are held to what the context leaves behind the longest prompt.
    """

    @wraps(fill)
    def solve(model, prompts, config=SearchConfig(), noise=None, scorer=None):
        questions = [Question(i, prompt) for i, prompt in enumerate(prompts)]
        if questions:
            room = model.config.max_len - max(map(len, prompts))
            config = replace(config, max_new_tokens=min(config.max_new_tokens, room))
            fill(model, questions, config, noise, scorer)
        return [question.result() for question in questions]

    del solve.__wrapped__  # help() then shows the signature of solve, not that of fill
    return solve


# One response


@method
def greedy(model, questions, config, noise, scorer):
    """The most likely token at every step; nothing is random."""
    draw(model, questions, 1, replace(config, temperature=0.0), noise)


@method
def sample(model, questions, config, noise, scorer):
    """One response, sampled at config.temperature."""
    draw(model, questions, 1, config, noise)


# n independent responses and a choice


def choose_vote(questions, scorer):
    """The most frequent answer; the first response that gave it is chosen."""
    count_votes(questions)


def choose_best(questions, scorer):
    """The response with the best score."""
    rate(scorer, all_candidates(questions))


def choose_weighted(questions, scorer):
    """The answer with the largest sum of scores."""
    rate(scorer, all_candidates(questions))
    count_votes(questions, weighted=True)


CHOICES = {"vote": choose_vote, "best-of-n": choose_best, "weighted-vote": choose_weighted}


@method
def vote(model, questions, config, noise, scorer):
    """n responses; the most frequent answer."""
    draw(model, questions, config.n, config, noise)
    choose_vote(questions, scorer)


@method
def best_of_n(model, questions, config, noise, scorer):
    """n responses; the one with the best score."""
    draw(model, questions, config.n, config, noise)
    choose_best(questions, scorer)


@method
def weighted_vote(model, questions, config, noise, scorer):
    """n responses; the answer with the largest sum of scores."""
    draw(model, questions, config.n, config, noise)
    choose_weighted(questions, scorer)


# Search over steps

SEARCHES = ("beam", "dvts")


@method
def beam(model, questions, config, noise, scorer):
    """Beam search over steps."""
    step_search(model, questions, config, noise, scorer, diverse=False)


@method
def dvts(model, questions, config, noise, scorer):
    """Several beam searches of one beam each, which keeps the candidates diverse."""
    step_search(model, questions, config, noise, scorer, diverse=True)


def step_search(model, questions, config, noise, scorer, diverse):
    """Grow responses step by step, and keep after each step the ones with the best scores.

    Beam search keeps the n // width best of a question; the diverse variant keeps the best one in
    each of n // width trees. A finished response keeps its place until others beat it. Those that
    last become candidates and vote with their scores.
    """
    beams = max(1, config.n // config.width)
    limit = config.max_new_tokens
    temperature = config.temperature
    empty = [Candidate(question) for question in questions]
    fresh = extend(model, empty, config.n, limit, temperature, noise, STEP_STOP)
    if diverse:
        for i, candidate in enumerate(fresh):  # n per question: `width` neighbours are a tree
            candidate.tree = min(i % config.n // config.width, beams - 1)
    finished = []
    while fresh:
        rate(scorer, fresh)
        kept = keep_best(finished + fresh, 1 if diverse else beams)
        finished = [candidate for candidate in kept if candidate.done]
        growing = [c for c in kept if not c.done and len(c.ids) < limit]
        fresh = []
        if growing:
            fresh = extend(model, growing, config.width, limit, temperature, noise, STEP_STOP)
    for candidate in finished:
        candidate.question.candidates.append(candidate)
    for question in questions:
        if not question.candidates:  # nothing came to an end within the limit
            question.candidates = [Candidate(question, [END])]
    count_votes(questions, weighted=True)


def keep_best(candidates, count):
    """The `count` best of each question and tree, the first of equals before the others."""
    groups = {}
    for candidate in candidates:
        groups.setdefault((candidate.question.index, candidate.tree), []).append(candidate)
    best = []
    for group in groups.values():
        best += sorted(group, key=lambda candidate: -candidate.score)[:count]
    return best


# Longer thinking


@method
def budget(model, questions, config, noise, scorer):
    """Greedy, with between min_thinking and max_thinking tokens of thinking.

    Where the thinking ends too early, "Wait, " takes the place of its end, up to n times. Where it
    is too long, it is cut and closed. Then the model answers.
    """
    room = config.max_new_tokens - ANSWER_TOKENS
    longest = max(1, min(config.max_thinking or config.max_new_tokens, room))
    thinking = [Candidate(question) for question in questions]
    closed = []
    for waits in range(config.n + 1):
        thought = extend(model, thinking, 1, longest, 0.0, noise, stop=(END_THINK, END))
        thinking = []
        for candidate in thought:
            if waits < config.n and write_wait(candidate, config.min_thinking, longest):
                thinking.append(candidate)
            else:
                close_thinking(candidate)
                closed.append(candidate)
        if not thinking:
            break
    submit(extend(model, closed, 1, longest + ANSWER_TOKENS, 0.0, noise))


def write_wait(candidate, shortest, longest):
    """Put "Wait, " in place of the end of the thinking, and return True; or return False and change
    nothing, where the thinking goes on, is long enough, or leaves no room for more."""
    if candidate.ids[-1] not in (END_THINK, END):
        return False
    thought = candidate.ids[:-1]
    wait = encode("\nWait, " if len(thought) > 1 else "Wait, ")  # the first token is THINK
    if len(thought) >= shortest or len(thought) + len(wait) >= longest:
        return False
    candidate.ids = thought + wait
    return True


def close_thinking(candidate):
    """End the thinking with END_THINK, whatever it ends with now."""
    ended = candidate.ids[-1] in (END_THINK, END)
    candidate.ids = (candidate.ids[:-1] if ended else candidate.ids) + [END_THINK]


# Self-verification


@method
def self_verify(model, questions, config, noise, scorer):
    """The model checks its own responses, and confirmed ones have more weight in the vote.

    The thinking of each response is opened again, "Check: " is written, and the model goes on
    `passes` times. The weight is the share of passes that end in the same answer.
    """
    draw(model, questions, config.n, config, noise)
    candidates = all_candidates(questions)
    for candidate in candidates:
        candidate.score = 0.0
    answered = [candidate for candidate in candidates if can_check(model, candidate)]
    checks = []
    if answered:
        opened = [reopen(candidate) for candidate in answered]
        cap = max(len(candidate.ids) for candidate in opened) + CHECK_TOKENS
        checks = extend(model, opened, config.passes, cap, config.temperature, noise)
    for i, candidate in enumerate(answered):
        passes = checks[i * config.passes : (i + 1) * config.passes]
        answer = canonical(candidate.answer)
        confirmed = sum(canonical(check.answer) == answer for check in passes)
        candidate.score = confirmed / config.passes
    count_votes(questions, weighted=True)


def can_check(model, candidate):
    """Whether a response has an answer, and the context has room for a check behind it."""
    has_room = candidate.context_length + CHECK_TOKENS < model.config.max_len
    return has_room and candidate.answer is not None


def reopen(candidate):
    """The response up to the end of its thinking, with "Check: " in place of that end."""
    thinking = candidate.ids[: candidate.ids.index(END_THINK)]
    return Candidate(candidate.question, thinking + encode("\nCheck: "))


# Compute by difficulty


@method
def auto(model, questions, config, noise, scorer):
    """A greedy response, then what the plan says for a question with such a score.

    The score of the greedy response says how likely it is right. The plan says: keep it; or draw up
    to n responses in all and choose; or search by steps beside it. Snell et al. estimate the
    difficulty from many samples; here a greedy response is as good as several, so one must do.
    Raises ValueError without a plan, and for a plan with any other method.
    """
    if not config.plan:
        raise ValueError("auto needs a plan")
    draw(model, questions, 1, replace(config, temperature=0.0), noise)
    rate(scorer, all_candidates(questions))
    by_row = {}
    for question in questions:
        row = plan_row(config.plan, question.candidates[0].score)
        by_row.setdefault(tuple(row), []).append(question)
    for (_, name, n), some in by_row.items():
        if name in CHOICES:
            if n > 1:
                draw(model, some, n - 1, config, noise)
            CHOICES[name](some, scorer)
        elif name in SEARCHES:
            diverse = name == "dvts"
            step_search(model, some, replace(config, n=n), noise, scorer, diverse)
        elif name != "greedy":
            raise ValueError(f"a plan cannot call for {name}")


def plan_row(plan, score):
    """The first row whose bound is above the score, or else the last row."""
    for row in plan:
        if score < row[0]:
            return row
    return plan[-1]


METHODS = {
    "greedy": greedy,
    "sample": sample,
    "vote": vote,
    "best-of-n": best_of_n,
    "weighted-vote": weighted_vote,
    "beam": beam,
    "dvts": dvts,
    "budget": budget,
    "self-verify": self_verify,
    "auto": auto,
}

"""Ways to spend compute at inference: one table of methods with one signature.

    METHODS[name](model, prompts, config, generator, scorer, problems) -> [Result], one per prompt

    prompts    lists of ids
    config     a SearchConfig: how many samples, how long, at which temperature
    generator  the torch.Generator that every random choice comes from
    scorer     a Scorer, or None: then a response's likelihood is its score
    problems   the Problems of the prompts, or None: how their answers are read

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

from nanoreason.generate import generate, opening_of
from nanoreason.tasks import answer_key
from nanoreason.tokenizer import Response, Tokenizer
from nanoreason.reward_model import aggregate

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

    read(owner, responses) takes lists of equal length: responses[i], ids, answers question
    owner[i], an index into the prompts. It returns for each response [(index of a token, chance of
    being right so far)], with the last token at the end of the list.
    how: one of reward_model.AGGREGATES, which makes one number of these chances.
    flops_per_token: FLOPs to read one token.
    """

    read: Callable
    how: str = "last"
    flops_per_token: float = 0.0

    def scores(self, owner, responses):
        """One number per response."""
        return [aggregate(readings, self.how) for readings in self.read(owner, responses)]


@dataclass(frozen=True)
class Result:
    """What a method found for one prompt.

    answer             text of the answer, or None
    response           the Response chosen
    responses          all Responses that it was chosen from
    scores             one per response; the highest was chosen
    completion_tokens  tokens sampled, in all responses and in whatever was discarded
    flops              to read and sample all of it, the scorer's FLOPs included
    """

    answer: str | None
    response: Response
    responses: list
    scores: list
    completion_tokens: int
    flops: float


@dataclass
class Question:
    """A question on its way to an answer.

    index: of its prompt among all; prompt: ids, which tokenizer explains; candidates: what to
    choose from; completion_tokens, flops: counts so far, as in Result; problem: says which answers
    are the same, or None.
    """

    index: int
    prompt: list
    tokenizer: Tokenizer
    candidates: list = field(default_factory=list)
    completion_tokens: int = 0
    flops: float = 0.0
    problem: object = None

    def result(self):
        """The candidate with the highest score, the first of equals. One without an answer scores
        0."""
        responses = [self.tokenizer.parse_response(candidate.ids) for candidate in self.candidates]
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
        """Whether the response has ended."""
        return self.ids[-1:] == [self.question.tokenizer.end]

    @property
    def context_length(self):
        """Tokens of the prompt and of what is written so far."""
        return len(self.question.prompt) + len(self.ids)

    @property
    def answer(self):
        """Text of the answer, or None."""
        return self.question.tokenizer.parse_response(self.ids).answer


# Votes


def vote_scores(answers, weights=None, problem=None):
    """Self-consistency: for each answer, how many are equal to it, or the sum of their weights.

    An answer of None has no vote and scores 0. problem: as in `answer_key`.

        ['12', '12.0', None, '15'] -> [2, 2, 0, 1]
        with weights [0.5, 0.2, 0.9, 0.8] -> [0.7, 0.7, 0, 0.8]
    """
    keys = [answer_key(answer, problem) for answer in answers]
    votes = Counter()
    for key, weight in zip(keys, weights or [1] * len(keys)):
        votes[key] += weight if key is not None else 0
    return [votes[key] for key in keys]


# Parts that the methods share


def extend(model, candidates, samples, cap, temperature, generator, stop=None):
    """Sample `samples` continuations of each candidate, up to a token of `stop`: a list of
    Candidates, those of the first one first.

    cap: the most tokens that a candidate may have afterwards. All are decoded together, for as
    many tokens as the shortest may still get, and each is cut where it reaches the cap:

        cap 10, candidates of 4 and 7 tokens  ->  6 are decoded, and the second keeps 3

    The FLOPs and completion tokens are added to the counts of the candidates' questions. Raises
    ValueError where a model with an opening (generate.make_sampler) should go on with a response:
    it would write its opening once more.
    """
    if opening_of(model) and any(candidate.ids for candidate in candidates):
        raise ValueError("a model with an opening cannot go on with a response")
    limit = cap - min(len(candidate.ids) for candidate in candidates)
    contexts = [candidate.question.prompt + candidate.ids for candidate in candidates]
    rollout = generate(model, contexts, samples, limit, temperature, generator, stop=stop).cpu()
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


def score_candidates(candidates, scorer):
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


def sample_responses(model, questions, n, config, generator):
    """Sample n more whole responses to each question; they join its candidates with score 1."""
    empty = [Candidate(question) for question in questions]
    add_candidates(extend(model, empty, n, config.max_new_tokens, config.temperature, generator))


def add_candidates(candidates):
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
        votes = vote_scores(answers, weights, question.problem)
        for candidate, vote in zip(question.candidates, votes):
            candidate.score = vote


def search_method(fill):
    """Make a method of a function that fills the candidates of Questions: prompts in, Results out.

    Responses are held to what the context leaves behind the longest prompt.
    """

    @wraps(fill)
    def solve(
        model, prompts, config=SearchConfig(), generator=None, scorer=None, problems=None
    ):
        asked = zip(prompts, problems or [None] * len(prompts), strict=True)
        questions = [
            Question(i, prompt, model.tokenizer, problem=problem)
            for i, (prompt, problem) in enumerate(asked)
        ]
        if questions:
            room = model.config.max_len - max(map(len, prompts))
            config = replace(config, max_new_tokens=min(config.max_new_tokens, room))
            fill(model, questions, config, generator, scorer)
        return [question.result() for question in questions]

    del solve.__wrapped__  # help() then shows the signature of solve, not that of fill
    return solve


# One response


@search_method
def greedy(model, questions, config, generator, scorer):
    """The most likely token at every step; nothing is random."""
    sample_responses(model, questions, 1, replace(config, temperature=0.0), generator)


@search_method
def sample(model, questions, config, generator, scorer):
    """One response, sampled at config.temperature."""
    sample_responses(model, questions, 1, config, generator)


# n independent responses and a choice


def choose_vote(questions, scorer):
    """The most frequent answer; the first response that gave it is chosen."""
    count_votes(questions)


def choose_best(questions, scorer):
    """The response with the best score."""
    score_candidates(all_candidates(questions), scorer)


def choose_weighted(questions, scorer):
    """The answer with the largest sum of scores."""
    score_candidates(all_candidates(questions), scorer)
    count_votes(questions, weighted=True)


CHOICES = {"vote": choose_vote, "best-of-n": choose_best, "weighted-vote": choose_weighted}


@search_method
def vote(model, questions, config, generator, scorer):
    """n responses; the most frequent answer."""
    sample_responses(model, questions, config.n, config, generator)
    choose_vote(questions, scorer)


@search_method
def best_of_n(model, questions, config, generator, scorer):
    """n responses; the one with the best score."""
    sample_responses(model, questions, config.n, config, generator)
    choose_best(questions, scorer)


@search_method
def weighted_vote(model, questions, config, generator, scorer):
    """n responses; the answer with the largest sum of scores."""
    sample_responses(model, questions, config.n, config, generator)
    choose_weighted(questions, scorer)


# Search over steps

SEARCHES = ("beam", "dvts")


@search_method
def beam(model, questions, config, generator, scorer):
    """Beam search over steps."""
    step_search(model, questions, config, generator, scorer, diverse=False)


@search_method
def dvts(model, questions, config, generator, scorer):
    """Several beam searches of one beam each, which keeps the candidates diverse."""
    step_search(model, questions, config, generator, scorer, diverse=True)


def step_search(model, questions, config, generator, scorer, diverse):
    """Grow responses step by step, and keep after each step the ones with the best scores.

    Beam search keeps the n // width best of a question; the diverse variant keeps the best one in
    each of n // width trees. A finished response stays until others beat it. Those that
    last become candidates and vote with their scores.
    """
    beams = max(1, config.n // config.width)
    limit = config.max_new_tokens
    temperature = config.temperature
    stop = (model.tokenizer.newline, model.tokenizer.end)  # of a step, or of the response
    empty = [Candidate(question) for question in questions]
    fresh = extend(model, empty, config.n, limit, temperature, generator, stop)
    if diverse:
        # n per question: `width` neighbours are a tree; what is left over joins the last one
        for i, candidate in enumerate(fresh):
            candidate.tree = min(i % config.n // config.width, beams - 1)
    finished = []
    while fresh:
        score_candidates(fresh, scorer)
        kept = keep_best(finished + fresh, 1 if diverse else beams)
        finished = [candidate for candidate in kept if candidate.done]
        growing = [c for c in kept if not c.done and len(c.ids) < limit]
        fresh = []
        if growing:
            fresh = extend(model, growing, config.width, limit, temperature, generator, stop)
    for candidate in finished:
        candidate.question.candidates.append(candidate)
    for question in questions:
        if not question.candidates:  # nothing came to an end within the limit
            question.candidates = [Candidate(question, [model.tokenizer.end])]
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


@search_method
def budget(model, questions, config, generator, scorer):
    """Greedy, with between min_thinking and max_thinking tokens of thinking.

    Where the thinking ends too early, "Wait, " replaces its end, up to n times. Where it is too
    long, it is cut and closed. Then the model answers, where that leaves it room.
    """
    limit = config.max_new_tokens
    longest = max(1, min(config.max_thinking or limit, limit - ANSWER_TOKENS))
    stop = (model.tokenizer.end_think, model.tokenizer.end)
    thinking = [Candidate(question) for question in questions]
    closed = []
    for waits in range(config.n + 1):
        thought = extend(model, thinking, 1, longest, 0.0, generator, stop)
        thinking = []
        for candidate in thought:
            if waits < config.n and write_wait(candidate, config.min_thinking, longest):
                thinking.append(candidate)
            else:
                close_thinking(candidate, limit)
                closed.append(candidate)
        if not thinking:
            break
    add_candidates([candidate for candidate in closed if len(candidate.ids) >= limit])
    unanswered = [candidate for candidate in closed if len(candidate.ids) < limit]
    if unanswered:
        cap = min(longest + ANSWER_TOKENS, limit)
        add_candidates(extend(model, unanswered, 1, cap, 0.0, generator))


def write_wait(candidate, shortest, longest):
    """Replace the end of the thinking by "Wait, ", and return True; or return False and change
    nothing, where the thinking goes on, is long enough, or leaves no room for more."""
    tokenizer = candidate.question.tokenizer
    if candidate.ids[-1] not in (tokenizer.end_think, tokenizer.end):
        return False
    thought = candidate.ids[:-1]
    # the first token opens the thinking
    wait = tokenizer.encode("\nWait, " if len(thought) > 1 else "Wait, ")
    if len(thought) >= shortest or len(thought) + len(wait) >= longest:
        return False
    candidate.ids = thought + wait
    return True


def close_thinking(candidate, limit):
    """End the thinking with its closing token, whatever it ends with now, in `limit` tokens."""
    tokenizer = candidate.question.tokenizer
    if candidate.ids[-1] in (tokenizer.end_think, tokenizer.end):
        candidate.ids = candidate.ids[:-1]
    candidate.ids = (candidate.ids + [tokenizer.end_think])[:limit]


# Self-verification


@search_method
def self_verify(model, questions, config, generator, scorer):
    """The model checks its own responses, and confirmed ones have more weight in the vote.

    The thinking of each response is opened again, "Check: " is written, and the model goes on
    `passes` times, for CHECK_TOKENS more than the longest response where the context allows it. The
    weight is the share of passes that end in the same answer.
    """
    sample_responses(model, questions, config.n, config, generator)
    candidates = all_candidates(questions)
    for candidate in candidates:
        candidate.score = 0.0
    answered = [candidate for candidate in candidates if can_check(model, candidate)]
    checks = []
    if answered:
        opened = [reopen(candidate) for candidate in answered]
        cap = max(len(candidate.ids) for candidate in opened) + CHECK_TOKENS
        checks = extend(model, opened, config.passes, cap, config.temperature, generator)
    for i, candidate in enumerate(answered):
        passes = checks[i * config.passes : (i + 1) * config.passes]
        problem = candidate.question.problem
        answer = answer_key(candidate.answer, problem)
        confirmed = sum(answer_key(check.answer, problem) == answer for check in passes)
        candidate.score = confirmed / config.passes
    count_votes(questions, weighted=True)


def can_check(model, candidate):
    """Whether a response has an answer, and the context has room for a check behind it."""
    has_room = candidate.context_length + CHECK_TOKENS < model.config.max_len
    return has_room and candidate.answer is not None


def reopen(candidate):
    """The response up to the end of its thinking, with "Check: " instead of that end."""
    tokenizer = candidate.question.tokenizer
    thinking = candidate.ids[: candidate.ids.index(tokenizer.end_think)]
    return Candidate(candidate.question, thinking + tokenizer.encode("\nCheck: "))


# Compute by difficulty


@search_method
def auto(model, questions, config, generator, scorer):
    """A greedy response, then what the plan says for a question with such a score.

    The score of the greedy response says how likely it is right. The plan says: keep it; or sample
    up to n responses in all and choose; or search by steps beside it. Snell et al. estimate the
    difficulty from many samples; one greedy response costs less.
    Raises ValueError without a plan, and for a plan with any other method.
    """
    if not config.plan:
        raise ValueError("auto needs a plan")
    sample_responses(model, questions, 1, replace(config, temperature=0.0), generator)
    score_candidates(all_candidates(questions), scorer)
    by_row = {}
    for question in questions:
        row = plan_row(config.plan, question.candidates[0].score)
        by_row.setdefault(tuple(row), []).append(question)
    for (_, name, n), some in by_row.items():
        if name in CHOICES:
            if n > 1:
                sample_responses(model, some, n - 1, config, generator)
            CHOICES[name](some, scorer)
        elif name in SEARCHES:
            diverse = name == "dvts"
            step_search(model, some, replace(config, n=n), generator, scorer, diverse)
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

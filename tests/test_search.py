"""Every way to spend compute, on a scripted model and a scripted scorer: what is chosen, what the
scorer is asked, and how many tokens and FLOPs it takes, exactly."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    END, END_THINK, THINK, decode, encode, parse_response, render_prompt, render_response,
    tokenizer, toy_tokenizer,
)

from nanoreason import search
from nanoreason.machine import generator
from nanoreason.evaluate import oracle_scorer, reward_model_scorer
from nanoreason.model import GPTConfig
from nanoreason.search import METHODS, Scorer, SearchConfig, vote_scores
from nanoreason.tasks import make_problem, user_problem
from nanoreason.reward_model import aggregate

READ = 10.0  # FLOPs per token of the scripted model
SCORED = 3.0  # FLOPs per token of the scripted scorer


class Scripted:
    """A model that answers each prompt with given responses at given chances.

    script: {question: [(response ids, chance)]}. A chance of 0 is reached only by a prefix that
    others do not share: by what a method writes itself. The history of a row stands in the cache,
    as in a real model, so that a row that is repeated, dropped or swapped brings its own along.
    """

    def __init__(self, script, max_len=300, tokenizer=tokenizer):
        self.config = GPTConfig(
            n_layer=1, n_head=1, n_kv_head=1, n_embd=2, head_dim=2, max_len=max_len
        )
        self.tokenizer = tokenizer
        self.embed = SimpleNamespace(weight=torch.zeros(1))
        prompts = [tuple(tokenizer.render_prompt(question)) for question in script]
        self.script = dict(zip(prompts, script.values()))

    def flops_per_token(self):
        return READ

    def state_dict(self):
        return {}

    def logits(self, cache):
        out = torch.full((len(cache.lengths), 512), -torch.inf)
        for row, length in enumerate(cache.lengths.tolist()):
            history = tuple(cache.keys[0][row, 0, :length, 0].int().tolist())
            for token, chance in self.next_tokens(history).items():
                out[row, token] = math.log(chance) if chance else -torch.inf
        return out

    def next_tokens(self, history):
        """{token: weight} of what may follow a prompt and the beginning of a response."""
        prompt = next(p for p in self.script if history[: len(p)] == p)
        written = history[len(prompt) :]
        heirs = [
            (response, chance)
            for response, chance in self.script[prompt]
            if tuple(response[: len(written)]) == written and len(response) > len(written)
        ]
        otherwise = 0 if any(chance for _, chance in heirs) else 1
        follow = Counter()
        for response, chance in heirs:
            follow[response[len(written)]] += chance or otherwise
        return follow or {self.tokenizer.end: 1}

    def prefill(self, idx, lengths, cache):
        cache.keys[0][:, 0, : idx.size(1), 0] = idx.float()
        cache.lengths = lengths.clone()
        return self.logits(cache)

    def decode(self, idx, cache):
        cache.keys[0][torch.arange(len(idx)), 0, cache.lengths, 0] = idx.float()
        cache.lengths += 1
        return self.logits(cache)


class Opinion:
    """A scorer with an opinion on texts: the chance of the first of `opinions` that the response,
    as text, contains; keeps what it was asked."""

    def __init__(self, opinions):
        self.opinions = opinions
        self.asked = []

    def __call__(self, owner, responses):
        self.asked += [(o, decode(response)) for o, response in zip(owner, responses)]
        return [[(len(response) - 1, self.chance(decode(response)))] for response in responses]

    def chance(self, response):
        return next((c for text, c in self.opinions.items() if text in response), 0.5)

    def scorer(self):
        return Scorer(self, "last", SCORED)


Q = "What is (8 + 5) * 3?"
RIGHT, WRONG, OTHER = (
    render_response(f"8 + 5 = {a}\n{a} * 3 = {b}", str(b))
    for a, b in ((13, 39), (12, 36), (14, 42))
)
# never stops by itself: the script ends it with END, without closing the thinking
CUT = [THINK, *encode("8 + 5 = 13\nand then")]
PROMPT = render_prompt(Q)
(NEWLINE,) = encode("\n")
# tokens of the first step, line break included
FIRST = {tuple(response): response.index(NEWLINE) + 1 for response in (RIGHT, WRONG, OTHER)}


def run(name, script, scorer=None, question=Q, **search_config):
    model = Scripted({question: script})
    config = SearchConfig(**({"max_new_tokens": 100} | search_config))
    noise = generator(0, name)
    (result,) = METHODS[name](model, [render_prompt(question)], config, noise, scorer)
    return result


def flops(result, prompts=1):
    """FLOPs of candidates that were each sampled whole, behind a prompt that was read `prompts`
    times."""
    return READ * (result.completion_tokens + prompts * len(PROMPT))


# One response, and choices among n


def test_greedy_and_sample_answer_once_and_count_prompt_and_response():
    script = [(RIGHT, 0.6), (WRONG, 0.4)]
    for name in ("greedy", "sample"):
        result = run(name, script, n=7)
        assert len(result.responses) == 1 and result.scores == [1.0]
        assert result.completion_tokens in (len(RIGHT), len(WRONG))
        assert result.flops == flops(result)
    assert run("greedy", script).answer == "39"
    assert run("greedy", [(CUT, 1)]).answer is None
    assert run("greedy", [(CUT, 1)]).scores == [0.0]


MIXED = [(RIGHT, 0.3), (WRONG, 0.5), (OTHER, 0.1), (CUT, 0.1)]


def test_the_vote_counts_answers_and_best_of_n_and_the_weighted_vote_ask_the_scorer():
    opinion = Opinion({"= 39": 0.9, "= 36": 0.2, "= 42": 0.95, "and then": 1.0})
    vote, best, weighted = (
        run(name, MIXED, opinion.scorer(), n=64) for name in ("vote", "best-of-n", "weighted-vote")
    )
    votes, _, weighted_votes = (
        Counter(c.answer for c in result.responses) for result in (vote, best, weighted)
    )
    for result in (vote, best, weighted):
        assert {c.answer for c in result.responses} == {"39", "36", "42", None}
        assert len(result.responses) == 64

    assert vote.answer == "36"
    assert vote.scores == [votes[c.answer] if c.answer else 0 for c in vote.responses]

    score = {"39": 0.9, "36": 0.2, "42": 0.95, None: 0.0}  # unfinished counts for nothing
    assert best.answer == "42"
    assert best.scores == [score[c.answer] for c in best.responses]

    sums = {answer: n * score[answer] for answer, n in weighted_votes.items() if answer}
    assert weighted.answer == "39" == max(sums, key=sums.get)
    expected = [sums.get(c.answer, 0) for c in weighted.responses]
    assert weighted.scores == pytest.approx(expected)

    lengths = {"39": len(RIGHT), "36": len(WRONG), "42": len(OTHER), None: len(CUT) + 1}
    for result, asks in ((vote, 0), (best, 1), (weighted, 1)):
        assert result.completion_tokens == sum(lengths[c.answer] for c in result.responses)
        scored = result.completion_tokens + 64 * len(PROMPT)
        assert result.flops == pytest.approx(flops(result) + asks * SCORED * scored)
    assert len(opinion.asked) == 128 and {o for o, _ in opinion.asked} == {0}


SUMS = "Make 29 from 2, 13 and 14, each used once."
COUNTDOWN = make_problem(
    "countdown", 1, ((2, 13, 14), 29, ((14, "+", 13), (27, "+", 2))), None, SUMS)


@pytest.mark.parametrize("name", ["vote", "weighted-vote", "beam", "dvts", "self-verify"])
def test_the_problem_joins_the_votes_of_the_same_answer(name):
    """13+2+14 and 13 + 2 + 14 are one answer to the checker, and 14 + 13 - 2 is the favourite."""
    answers = {"13+2+14": 0.3, "13 + 2 + 14": 0.3, "14 + 13 - 2": 0.4}
    script = [(render_response("", answer), chance) for answer, chance in answers.items()]
    checks = [
        ([THINK, *encode("\nCheck: "), *encode("so"), END_THINK, *encode(answer), END], 1e-9)
        for answer in answers
    ]
    model = Scripted({SUMS: script + checks})
    config = SearchConfig(n=64, width=1)
    score = Opinion({}).scorer() if name in ("weighted-vote", "beam", "dvts") else None
    prompts = [render_prompt(SUMS)]
    found = {}
    for problems in (None, [COUNTDOWN]):
        noise = generator(0, "votes")
        (result,) = METHODS[name](model, prompts, config, noise, score, problems)
        found[problems is None] = result
    apart, joined = found[True], found[False]
    assert apart.answer == "14 + 13 - 2" and joined.answer in ("13+2+14", "13 + 2 + 14")
    own = {r.answer: s for r, s in zip(joined.responses, joined.scores)}
    assert own["13+2+14"] == own["13 + 2 + 14"] > own["14 + 13 - 2"] > 0
    with pytest.raises(ValueError):
        METHODS[name](model, prompts, config, generator(0, ""), score, [COUNTDOWN] * 2)


def test_without_a_scorer_the_likeliest_response_per_token_is_best():
    """RIGHT and OTHER branch off once, at 0.3 and 0.1; a long response dilutes its one unlikely
    token."""
    script = [(RIGHT, 0.3), (WRONG, 0.6), (OTHER, 0.1)]
    result = run("best-of-n", script, n=64)
    branches = (("39", RIGHT, 0.3), ("36", WRONG, 0.6), ("42", OTHER, 0.1))
    score = {answer: p ** (1 / len(response)) for answer, response, p in branches}
    assert result.answer == "36"
    assert {c.answer for c in result.responses} == set(score)
    assert result.scores == pytest.approx([score[c.answer] for c in result.responses], rel=1e-4)


def test_the_oracle_finds_the_right_answer_wherever_there_is_one():
    problem = user_problem(Q, "39")
    script = [(RIGHT, 0.05), (WRONG, 0.95)]
    oracle = oracle_scorer([problem], tokenizer)
    assert run("best-of-n", script, oracle, n=128).answer == "39"
    assert set(run("best-of-n", [(WRONG, 1)], oracle, n=4).scores) == {0.0}


# Search over steps

STEPS = {"= 39": 0.9, "= 36": 0.1, "= 42": 0.6, "= 13": 0.8, "= 12": 0.3, "= 14": 0.7}


def test_beam_search_keeps_what_the_scorer_likes_step_by_step_and_counts_all_it_tried():
    opinion = Opinion(STEPS)
    script = [(RIGHT, 0.1), (WRONG, 0.6), (OTHER, 0.3)]
    result = run("beam", script, opinion.scorer(), n=16, width=4)
    assert result.answer == "39"
    assert len(result.responses) == 4 and {c.answer for c in result.responses} == {"39"}

    first = [text for _, text in opinion.asked if text.endswith("\n")]
    second = [text for _, text in opinion.asked if text.endswith("<|end|>")]
    assert len(first) == len(second) == 16
    assert {text.split(" = ")[1] for text in first} == {"13\n", "12\n", "14\n"}
    kept = sorted((opinion([0], [encode(text)])[0][0][1] for text in first), reverse=True)[:4]
    started = sum(0.65 < chance < 0.75 for chance in kept)  # beams that went on from 14
    expected = {True: 16}
    if started:
        expected = {True: 4 * (4 - started), False: 4 * started}
    assert Counter("= 13" in text for text in second) == Counter(expected)

    ends = {"13": RIGHT, "12": WRONG, "14": OTHER}
    steps = {text: FIRST[tuple(response)] for text, response in ends.items()}
    first_tokens = sum(steps[text.split(" = ")[1].strip()] for text in first)
    written = first_tokens + 16 * (len(RIGHT) - FIRST[tuple(RIGHT)])
    assert result.completion_tokens == written
    # the prompt once, then each beam once
    read = len(PROMPT) + 4 * (len(PROMPT) + FIRST[tuple(RIGHT)])
    scored = 32 * len(PROMPT) + first_tokens + 16 * len(RIGHT)
    expected = READ * (written + read) + SCORED * scored
    assert result.flops == pytest.approx(expected)


def test_a_model_with_an_opening_goes_on_with_no_response_as_it_would_write_it_twice():
    opened = SimpleNamespace(opening=torch.tensor([THINK, END_THINK]))
    candidates = [SimpleNamespace(ids=[]), SimpleNamespace(ids=[THINK, END_THINK])]
    with pytest.raises(ValueError, match="cannot go on with a response"):
        search.extend(opened, candidates, 1, 9, 0.0, None)


def test_a_finished_beam_keeps_its_place_until_it_is_beaten():
    short = render_response("8 + 5 = 13", "13")
    script = [(short, 0.5), (RIGHT, 0.5)]
    # a step liked better pushes it out
    pushed = Opinion({"<|/think|>13": 0.8, "= 39": 0.7, "= 13": 0.9})
    assert run("beam", script, pushed.scorer(), n=16, width=4).answer == "39"
    held = Opinion({"<|/think|>13": 0.95, "= 39": 0.7, "= 13": 0.9})
    assert run("beam", script, held.scorer(), n=16, width=4).answer == "13"


def test_diverse_search_keeps_one_in_each_tree():
    opinion = Opinion(STEPS)
    script = [(RIGHT, 0.05), (WRONG, 0.75), (OTHER, 0.2)]
    result = run("dvts", script, opinion.scorer(), n=64, width=4)
    first = [text for _, text in opinion.asked if text.endswith("\n")]
    best = []
    for i in range(0, 64, 4):
        tree = first[i : i + 4]
        liked = ("= 13", "= 14", "= 12")  # the best first
        best.append(next(step for step in liked if any(step in text for text in tree)))
    answers = Counter(c.answer for c in result.responses)
    ends = {"= 13": "39", "= 14": "42", "= 12": "36"}
    assert len(result.responses) == 16
    assert answers == Counter(ends[step] for step in best)
    assert len(answers) == 3  # beam search would have kept the likely-best alone


def test_searches_that_never_end_within_the_limit_have_no_answer():
    for name in ("beam", "dvts"):
        limit = len(RIGHT) - 2
        result = run(name, [(RIGHT, 1)], Opinion({}).scorer(), n=8, max_new_tokens=limit)
        assert result.answer is None and result.completion_tokens > 0


# Budget forcing

WAITED = [THINK, *encode("8 + 5 = 12\nWait, 8 + 5 = 13"), END_THINK, *encode("13"), END]
TWICE = [
    THINK, *encode("8 + 5 = 12\nWait, 8 + 5 = 13\nWait, 13 * 3 = 39"), END_THINK,
    *encode("39"), END,
]
QUICK = render_response("8 + 5 = 12", "12")
FORCED = [(QUICK, 1), (WAITED, 2e-9), (TWICE, 1e-9)]


@pytest.mark.parametrize("n, least, answer", [
    (1, 0, "12"), (8, 5, "12"), (1, 60, "13"), (2, 60, "39"), (8, len(QUICK) + 6, "13"),
])
def test_budget_forcing_writes_wait_until_there_is_enough_thinking(n, least, answer):
    result = run("budget", FORCED, n=n, min_thinking=least)
    expected = {"12": QUICK, "13": WAITED, "39": TWICE}[answer]
    assert result.answer == answer and result.response == parse_response(expected)


def test_budget_forcing_counts_every_token_sampled_and_not_those_it_wrote_itself():
    result = run("budget", FORCED, n=1, min_thinking=60)
    wait = len(encode("\nWait, "))
    thought = QUICK.index(END_THINK)
    closed = WAITED.index(END_THINK) + 1
    again = closed - thought - wait
    answer = len(WAITED) - closed
    assert result.completion_tokens == thought + 1 + again + answer
    read = 3 * len(PROMPT) + thought + wait + closed
    assert result.flops == READ * (result.completion_tokens + read)


def test_budget_forcing_cuts_thinking_that_is_too_long_and_lets_the_model_answer():
    cut = RIGHT[: FIRST[tuple(RIGHT)]]
    script = [(RIGHT, 1), ([*cut, END_THINK, *encode("13"), END], 0)]
    result = run("budget", script, n=1, max_thinking=len(cut))
    assert result.answer == "13" and result.response.steps == ["8 + 5 = 13"]
    assert result.completion_tokens == len(cut) + len(encode("13")) + 1
    # a limit below the room for answers
    result = run("budget", [(RIGHT, 1)], n=1, max_thinking=len(cut), max_new_tokens=10)
    assert result.completion_tokens > 0


def test_a_limit_holds_for_each_response_whoever_is_answered_beside_it():
    """The long one would go on past its bound while the short one, forced to think again, still has
    room."""
    long = render_response("\n".join(f"{i} + 1 = {i + 1}" for i in range(4)), "4")
    script = {"Long?": [(long, 1)], Q: FORCED}
    bound = long.index(END_THINK) - 3
    thinking = SearchConfig(n=1, max_thinking=bound, min_thinking=bound, max_new_tokens=100)
    steps = SearchConfig(n=4, width=2, max_new_tokens=len(long) - 4)

    def ask(name, config, questions):
        prompts = [render_prompt(q) for q in questions]
        noise = generator(0, "cap")
        return METHODS[name](Scripted(script), prompts, config, noise, Opinion({}).scorer())

    for name, config in (
        ("budget", thinking), ("beam", thinking), ("beam", steps), ("dvts", steps)
    ):
        (alone,) = ask(name, config, ["Long?"])
        beside, _ = ask(name, config, ["Long?", Q])
        assert alone == beside and alone.completion_tokens > 0


@pytest.mark.parametrize("room", [1, 2, 3, 5, 10, 24, 25, 26, 60])
@pytest.mark.parametrize("bound", ["max_new_tokens", "context"])
@pytest.mark.parametrize("thinking", [{}, dict(min_thinking=40), dict(max_thinking=6)])
def test_budget_forcing_keeps_to_any_limit(bound, room, thinking, monkeypatch):
    """Below the room for answers too, and where the context ends."""
    drawn = []
    result_of = search.Question.result

    def watched(question):
        drawn.extend(candidate.ids for candidate in question.candidates)
        return result_of(question)

    monkeypatch.setattr(search.Question, "result", watched)
    limit = room if bound == "max_new_tokens" else 100
    max_len = 300 if bound == "max_new_tokens" else len(PROMPT) + room
    config = SearchConfig(n=2, max_new_tokens=limit, **thinking)
    for script in (FORCED, [(RIGHT, 1)], [(CUT, 1)], [([END], 1)], [([THINK, END_THINK, END], 1)]):
        drawn.clear()
        model = Scripted({Q: script, "9?": [(RIGHT, 1)]}, max_len)
        shorter = render_prompt("9?")
        results = METHODS["budget"](model, [PROMPT, shorter], config, generator(0, "budget"))
        assert len(results) == len(drawn) == 2
        assert all(1 <= len(ids) <= room for ids in drawn)
        assert all(result.completion_tokens >= 1 for result in results)
        (alone,) = METHODS["budget"](model, [PROMPT], config, generator(0, "budget"))
        assert alone == results[0]


# Another tokenizer


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"auto"}))
def test_every_method_works_with_another_tokenizer(name):
    """The same texts in other ids: the same answers, though not the same number of tokens."""
    found = []
    for t in (tokenizer, toy_tokenizer()):
        right = t.render_response("8 + 5 = 13\n13 * 3 = 39", "39")
        opened = right[: right.index(t.end_think)]
        check = [*opened, *t.encode("\nCheck: 39 / 3 = 13"), t.end_think, *t.encode("39"), t.end]
        wait = [*opened, *t.encode("\nWait, 39"), t.end_think, *t.encode("39"), t.end]
        script = [(right, 1), (check, 0), (wait, 0)]
        model = Scripted({Q: script}, tokenizer=t)
        n = 1 if name == "budget" else 4  # so often it writes Wait
        config = SearchConfig(n=n, width=2, passes=2, max_new_tokens=100, min_thinking=45)
        asked = []

        def read(owner, responses):
            asked.extend(t.decode(ids) for ids in responses)
            return [[(len(ids) - 1, 0.5)] for ids in responses]

        scorer = Scorer(read, "last", SCORED)
        prompt = t.render_prompt(Q)
        (result,) = METHODS[name](model, [prompt], config, generator(0, name), scorer)
        texts = [text for text in asked if "39" in text]
        assert all(text.startswith(t.decode([t.think]) + "8 + 5 = 13\n") for text in texts)
        found.append((result.answer, result.response, len(result.responses)))
    assert found[0] == found[1] and found[0][0] == "39"


# Self-verification


def checked(response, said, answer):
    """A response whose thinking goes on with a check that ends in this answer."""
    thinking = response[: response.index(END_THINK)]
    return [*thinking, *encode(f"\nCheck: {said}"), END_THINK, *encode(answer), END]


def test_self_verification_weighs_the_vote_by_the_checks_that_confirm():
    script = [
        (RIGHT, 0.4),
        (WRONG, 0.5),
        (CUT, 0.1),
        (checked(RIGHT, "39 / 3 = 13", "39"), 0),
        (checked(WRONG, "36 / 3 = 12", "39"), 0),
        (checked(WRONG, "36 / 3 = 13", "36"), 0),
    ]
    result = run("self-verify", script, n=32, passes=8)
    answers = [c.answer for c in result.responses]
    counts = Counter(answers)
    score = dict(zip(answers, result.scores))
    assert counts["36"] > counts["39"] > 0 and counts[None] > 0
    assert result.answer == "39"
    assert score["39"] == counts["39"] and score[None] == 0
    assert 0.2 < score["36"] / counts["36"] < 0.8  # half of its checks end elsewhere
    responses = {"39": RIGHT, "36": WRONG, None: CUT}
    assert result.completion_tokens > sum(len(responses[answer]) for answer in answers)


# Compute by difficulty

EASY = "What is 1 + 1?"
TWO = render_response("1 + 1 = 2", "2")


def ask_auto(questions, plan, scorer=None):
    script = {EASY: [(TWO, 1)], Q: [(RIGHT, 0.1), (WRONG, 0.9)]}
    prompts = [render_prompt(q) for q in questions]
    config = SearchConfig(max_new_tokens=100, plan=plan)
    return METHODS["auto"](Scripted(script), prompts, config, generator(0, "auto"), scorer)


def test_auto_looks_first_and_then_follows_its_plan():
    opinion = Opinion({"= 2<": 0.9, "= 39": 0.8, "= 36": 0.1, "= 13": 0.8, "= 12": 0.2})
    plan = ((0.5, "beam", 16), (2.0, "vote", 6))
    easy, hard, again = ask_auto([EASY, Q, EASY], plan, opinion.scorer())
    assert [r.answer for r in (easy, hard, again)] == ["2", "39", "2"]
    # the greedy response stays among the candidates
    assert [len(r.responses) for r in (easy, hard, again)] == [6, 5, 6]
    # what it said of the hard one, and its score
    assert hard.responses[0].answer == "36"
    assert hard.scores[0] == pytest.approx(0.1)
    assert easy.completion_tokens == 6 * len(TWO) == again.completion_tokens
    assert {o for o, _ in opinion.asked} == {0, 1, 2}

    for row in (("greedy", 1), ("vote", 1)):  # where that was enough nothing more is drawn
        (result,) = ask_auto([EASY], ((2.0, *row),), opinion.scorer())
        assert (len(result.responses), result.answer) == (1, "2")
    # without a scorer, by its likelihood per token
    likely = ask_auto([EASY, Q], ((0.995, "vote", 3), (2.0, "greedy", 1)))
    assert [len(r.responses) for r in likely] == [1, 3]

    with pytest.raises(ValueError, match="plan"):
        run("auto", MIXED)
    with pytest.raises(ValueError, match="cannot call for budget"):
        run("auto", MIXED, plan=((2.0, "budget", 4),))


# All methods

QUESTIONS = [f"What is {a} + {a}?" for a in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("name", METHODS)
def test_answers_scores_and_counts_belong_to_their_questions_whatever_the_order(name):
    """Questions of one certain response each, uneven in length, and a scorer that knows whose each
    response is: any mix-up shows."""
    certain = {}
    for a, question in enumerate(QUESTIONS, 1):
        thinking = "\n".join(["so"] * a + [f"{a} + {a} = {2 * a}"])
        certain[question] = render_response(thinking, str(2 * a))
        assert parse_response(certain[question]).answer
    script = {question: [(response, 1)] for question, response in certain.items()}
    plan = ((0.35, "vote", 6), (2.0, "beam", 4))
    config = SearchConfig(n=4, width=2, max_new_tokens=100, plan=plan)

    def ask(order):
        questions = [QUESTIONS[i] for i in order]

        def opinion(owner, responses):
            for o, response in zip(owner, responses):
                assert decode(certain[questions[o]]).startswith(decode(response))
            return [[(len(r) - 1, (order[o] + 1) / 10)] for o, r in zip(owner, responses)]

        prompts = [render_prompt(q) for q in questions]
        scorer = Scorer(opinion, "last", SCORED)
        noise = generator(0, "order")
        return dict(zip(order, METHODS[name](Scripted(script), prompts, config, noise, scorer)))

    straight = ask([0, 1, 2, 3, 4])
    shuffled = ask([3, 0, 4, 2, 1])
    assert straight == shuffled
    assert {i: r.answer for i, r in straight.items()} == {i: str(2 * (i + 1)) for i in range(5)}
    assert METHODS[name](Scripted(script), [], config, generator(0, "none")) == []


# Scores


def test_scores_of_a_response_become_one_number():
    rated = [(4, 0.9), (9, 0.5), (9, 0.5)]
    found = [aggregate(rated, how) for how in ("last", "min", "prod")]
    assert found == [0.5, 0.5, pytest.approx(0.45)]
    assert aggregate([(4, 0.2), (9, 0.9), (12, 0.8)], "min") == 0.2
    assert aggregate([(0, 0.3)], "prod") == 0.3


def test_weighted_votes_of_the_worked_example():
    found = vote_scores(["12", "12.0", None, "15"], [0.5, 0.2, 0.9, 0.8])
    assert found == pytest.approx([0.7, 0.7, 0, 0.8])


def test_a_reward_model_as_scorer_reads_each_response_behind_its_own_prompt():
    from test_reward_model import PROMPTS, RESPONSES, make_reward_model
    from nanoreason.reward_model import scores

    model = make_reward_model("prm")
    expected = scores(model, PROMPTS, RESPONSES)
    owner = list(range(len(PROMPTS)))[::-1]
    scorer = reward_model_scorer(model, PROMPTS, "min")
    rated = [[(at, pytest.approx(c, abs=1e-5)) for at, c in expected[i]] for i in owner]
    assert scorer.read(owner, RESPONSES[::-1]) == rated
    lowest = [min(c for _, c in expected[i]) for i in owner]
    assert scorer.scores(owner, RESPONSES[::-1]) == pytest.approx(lowest, abs=1e-5)
    assert scorer.flops_per_token == model.gpt.flops_per_token()
    assert search.METHODS is METHODS

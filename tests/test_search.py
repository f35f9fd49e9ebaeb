"""Every way to spend compute, on a scripted model and a scripted judge: what is chosen, what is asked of the judge, and what it costs, to the token."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from nanoreason import search
from nanoreason.machine import generator
from nanoreason.evaluate import oracle_scorer, reward_model_scorer
from nanoreason.model import GPTConfig
from nanoreason.search import METHODS, Scorer, SearchConfig, vote_scores
from nanoreason.tasks import user_problem
from nanoreason.tokenizer import END, END_THINK, THINK, decode, encode, parse_response, render_prompt, render_response
from nanoreason.reward_model import aggregate

READ = 10.0  # FLOPs a token of the scripted model
JUDGED = 3.0  # and of the scripted judge


class Scripted:
    """A model that answers each prompt with given responses at given chances. script: {question: [(response ids, chance)]}. A chance of 0 is
    reached only by a prefix that others do not share: by what a method writes itself. The history of a row stands in the cache, as in a real model, so that
    a row that is repeated, dropped or swapped brings its own along."""

    def __init__(self, script, max_len=300):
        self.config = GPTConfig(n_layer=1, n_head=1, n_kv_head=1, n_embd=2, head_dim=2, max_len=max_len)
        self.embed, self.script = SimpleNamespace(weight=torch.zeros(1)), {tuple(render_prompt(q)): responses for q, responses in script.items()}

    def flops_per_token(self):
        return READ

    def state_dict(self):
        return {}

    def logits(self, cache):
        out = torch.full((len(cache.lengths), 512), -torch.inf)
        for row, length in enumerate(cache.lengths.tolist()):
            history = tuple(cache.keys[0][row, 0, :length, 0].int().tolist())
            prompt = next(p for p in self.script if history[: len(p)] == p)
            written, follow = history[len(prompt) :], Counter()
            heirs = [(r, chance) for r, chance in self.script[prompt] if tuple(r[: len(written)]) == written and len(r) > len(written)]
            for response, chance in heirs:
                follow[response[len(written)]] += chance or (0 if any(c for _, c in heirs) else 1)
            for token, chance in (follow or {END: 1}).items():
                out[row, token] = math.log(chance) if chance else -torch.inf
        return out

    def prefill(self, idx, lengths, cache):
        cache.keys[0][:, 0, : idx.size(1), 0] = idx.float()
        cache.lengths = lengths.clone()
        return self.logits(cache)

    def decode(self, idx, cache):
        cache.keys[0][torch.arange(len(idx)), 0, cache.lengths, 0] = idx.float()
        cache.lengths += 1
        return self.logits(cache)


class Opinion:
    """A judge with an opinion on texts: the chance of the first of `opinions` that the response, as text, contains; keeps what it was asked."""

    def __init__(self, opinions, owner_bonus=None):
        self.opinions, self.asked = opinions, []

    def __call__(self, owner, responses):
        self.asked += [(o, decode(r)) for o, r in zip(owner, responses)]
        return [[(len(r) - 1, next((c for text, c in self.opinions.items() if text in decode(r)), 0.5))] for r in responses]

    def scorer(self):
        return Scorer(self, "last", JUDGED)


Q = "What is (8 + 5) * 3?"
RIGHT, WRONG, OTHER = (render_response(f"8 + 5 = {a}\n{a} * 3 = {b}", str(b)) for a, b in ((13, 39), (12, 36), (14, 42)))
CUT = [THINK, *encode("8 + 5 = 13\nand then")]  # never stops by itself: the script ends it with END, without closing the thinking
PROMPT = render_prompt(Q)
FIRST = {tuple(r): r.index(encode("\n")[0]) + 1 for r in (RIGHT, WRONG, OTHER)}  # tokens of the first step, line break included


def run(name, script, scorer=None, question=Q, **search_config):
    (result,) = METHODS[name](Scripted({question: script}), [render_prompt(question)], SearchConfig(**({"max_new_tokens": 100} | search_config)), generator(0, name), scorer)
    return result


def price(result, prompts=1):
    """FLOPs of candidates that were each sampled whole, behind a prompt that was read `prompts` times."""
    return READ * (result.tokens + prompts * len(PROMPT))


def test_greedy_and_sample_answer_once_and_pay_for_prompt_and_response():
    script = [(RIGHT, 0.6), (WRONG, 0.4)]
    for name in ("greedy", "sample"):
        result = run(name, script, n=7)
        assert len(result.candidates) == 1 and result.scores == [1.0] and result.tokens in (len(RIGHT), len(WRONG)) and result.flops == price(result)
    assert run("greedy", script).answer == "39" and run("greedy", [(CUT, 1)]).answer is None and run("greedy", [(CUT, 1)]).scores == [0.0]


MIXED = [(RIGHT, 0.3), (WRONG, 0.5), (OTHER, 0.1), (CUT, 0.1)]


def test_the_vote_counts_answers_and_best_of_n_and_the_weighted_vote_ask_the_judge():
    opinion = Opinion({"= 39": 0.9, "= 36": 0.2, "= 42": 0.95, "and then": 1.0})
    vote, best, weighted = (run(name, MIXED, opinion.scorer(), n=64) for name in ("vote", "best-of-n", "weighted-vote"))
    counts = {name: Counter(c.answer for c in result.candidates) for name, result in (("vote", vote), ("best", best), ("weighted", weighted))}
    assert all(set(c) == {"39", "36", "42", None} and sum(c.values()) == 64 for c in counts.values())
    assert vote.answer == "36" and vote.scores == [counts["vote"][c.answer] if c.answer else 0 for c in vote.candidates]
    assert best.answer == "42" and best.scores == [{"39": 0.9, "36": 0.2, "42": 0.95, None: 0.0}[c.answer] for c in best.candidates]  # unfinished counts for nothing
    sums = {a: n * {"39": 0.9, "36": 0.2, "42": 0.95}[a] for a, n in counts["weighted"].items() if a}
    assert weighted.answer == "39" == max(sums, key=sums.get) and weighted.scores == pytest.approx([sums.get(c.answer, 0) for c in weighted.candidates])
    lengths = {"39": len(RIGHT), "36": len(WRONG), "42": len(OTHER), None: len(CUT) + 1}
    for result, asks in ((vote, 0), (best, 1), (weighted, 1)):
        assert result.tokens == sum(lengths[c.answer] for c in result.candidates)
        assert result.flops == pytest.approx(price(result) + asks * JUDGED * (result.tokens + 64 * len(PROMPT)))
    assert len(opinion.asked) == 128 and {o for o, _ in opinion.asked} == {0}


def test_without_a_judge_the_likeliest_response_a_token_is_best():
    """RIGHT and OTHER branch off once, at 0.3 and 0.1; a long response dilutes its one unlikely token."""
    script = [(RIGHT, 0.3), (WRONG, 0.6), (OTHER, 0.1)]
    result = run("best-of-n", script, n=64)
    score = {a: p ** (1 / len(r)) for a, r, p in (("39", RIGHT, 0.3), ("36", WRONG, 0.6), ("42", OTHER, 0.1))}
    assert result.answer == "36" and {c.answer for c in result.candidates} == set(score) and result.scores == pytest.approx([score[c.answer] for c in result.candidates], rel=1e-4)


def test_the_oracle_finds_the_right_answer_wherever_there_is_one():
    problem = user_problem(Q, "39")
    assert run("best-of-n", [(RIGHT, 0.05), (WRONG, 0.95)], oracle_scorer([problem]), n=128).answer == "39"
    assert set(run("best-of-n", [(WRONG, 1)], oracle_scorer([problem]), n=4).scores) == {0.0}


def test_beam_search_keeps_what_the_judge_likes_step_by_step_and_pays_for_all_it_tried():
    opinion = Opinion({"= 39": 0.9, "= 36": 0.1, "= 42": 0.6, "= 13": 0.8, "= 12": 0.3, "= 14": 0.7})
    result = run("beam", [(RIGHT, 0.1), (WRONG, 0.6), (OTHER, 0.3)], opinion.scorer(), n=16, width=4)
    assert result.answer == "39" and len(result.candidates) == 4 and {c.answer for c in result.candidates} == {"39"}
    first, second = [t for _, t in opinion.asked if t.endswith("\n")], [t for _, t in opinion.asked if t.endswith("<|end|>")]
    assert len(first) == len(second) == 16 and {t.split(" = ")[1] for t in first} == {"13\n", "12\n", "14\n"}
    kept = sorted((opinion([0], [encode(t)])[0][0][1] for t in first), reverse=True)[:4]
    started = sum(0.65 < c < 0.75 for c in kept)  # beams that went on from 14
    assert Counter("= 13" in t for t in second) == Counter({True: 4 * (4 - started), False: 4 * started} if started else {True: 16})
    steps = {text: FIRST[tuple(r)] for text, r in (("13", RIGHT), ("12", WRONG), ("14", OTHER))}
    wrote = sum(steps[t.split(" = ")[1].strip()] for t in first) + 16 * (len(RIGHT) - FIRST[tuple(RIGHT)])
    assert result.tokens == wrote
    read = len(PROMPT) + 4 * (len(PROMPT) + FIRST[tuple(RIGHT)])  # the prompt once, then each beam once
    judged = 32 * len(PROMPT) + sum(steps[t.split(" = ")[1].strip()] for t in first) + 16 * len(RIGHT)
    assert result.flops == pytest.approx(READ * (wrote + read) + JUDGED * judged)


def test_a_finished_beam_keeps_its_place_until_it_is_beaten():
    short, long = render_response("8 + 5 = 13", "13"), RIGHT
    script = [(short, 0.5), (long, 0.5)]
    assert run("beam", script, Opinion({"<|/think|>13": 0.8, "= 39": 0.7, "= 13": 0.9}).scorer(), n=16, width=4).answer == "39"  # a step liked better pushes it out
    assert run("beam", script, Opinion({"<|/think|>13": 0.95, "= 39": 0.7, "= 13": 0.9}).scorer(), n=16, width=4).answer == "13"


def test_diverse_search_keeps_one_in_each_tree():
    opinion = Opinion({"= 39": 0.9, "= 36": 0.1, "= 42": 0.6, "= 13": 0.8, "= 12": 0.3, "= 14": 0.7})
    result = run("dvts", [(RIGHT, 0.05), (WRONG, 0.75), (OTHER, 0.2)], opinion.scorer(), n=64, width=4)
    first = [t for _, t in opinion.asked if t.endswith("\n")]
    best = [max(("= 13", "= 14", "= 12"), key=lambda s: any(s in t for t in first[i : i + 4]) * {"= 13": 3, "= 14": 2, "= 12": 1}[s]) for i in range(0, 64, 4)]
    assert len(result.candidates) == 16 and Counter(c.answer for c in result.candidates) == Counter({"= 13": "39", "= 14": "42", "= 12": "36"}[b] for b in best)
    assert len({c.answer for c in result.candidates}) == 3  # beam search would have kept the likely-best alone


def test_searches_that_never_end_within_the_limit_have_no_answer():
    for name in ("beam", "dvts"):
        result = run(name, [(RIGHT, 1)], Opinion({}).scorer(), n=8, max_new_tokens=len(RIGHT) - 2)
        assert result.answer is None and result.tokens > 0


WAITED = [THINK, *encode("8 + 5 = 12\nWait, 8 + 5 = 13"), END_THINK, *encode("13"), END]
TWICE = [THINK, *encode("8 + 5 = 12\nWait, 8 + 5 = 13\nWait, 13 * 3 = 39"), END_THINK, *encode("39"), END]
QUICK = render_response("8 + 5 = 12", "12")
FORCED = [(QUICK, 1), (WAITED, 2e-9), (TWICE, 1e-9)]


@pytest.mark.parametrize("n, least, answer", [(1, 0, "12"), (8, 5, "12"), (1, 60, "13"), (2, 60, "39"), (8, len(QUICK) + 6, "13")])
def test_budget_forcing_writes_wait_until_there_is_enough_thinking(n, least, answer):
    result = run("budget", FORCED, n=n, min_thinking=least)
    assert result.answer == answer and result.response == parse_response({"12": QUICK, "13": WAITED, "39": TWICE}[answer])


def test_budget_forcing_pays_for_every_token_sampled_and_not_for_those_it_wrote_itself():
    result = run("budget", FORCED, n=1, min_thinking=60)
    wait, thought = len(encode("\nWait, ")), QUICK.index(END_THINK)
    again, answer = WAITED.index(END_THINK) + 1 - thought - wait, len(WAITED) - WAITED.index(END_THINK) - 1
    assert result.tokens == thought + 1 + again + answer
    assert result.flops == READ * (result.tokens + 3 * len(PROMPT) + thought + wait + WAITED.index(END_THINK) + 1)


def test_budget_forcing_cuts_thinking_that_is_too_long_and_lets_the_model_answer():
    cut = RIGHT[: FIRST[tuple(RIGHT)]]
    script = [(RIGHT, 1), ([*cut, END_THINK, *encode("13"), END], 0)]
    result = run("budget", script, n=1, max_thinking=len(cut))
    assert result.answer == "13" and result.response.steps == ["8 + 5 = 13"] and result.tokens == len(cut) + len(encode("13")) + 1
    assert run("budget", [(RIGHT, 1)], n=1, max_thinking=len(cut), max_new_tokens=10).tokens > 0  # a limit below the room for answers


def test_a_limit_holds_for_each_response_whoever_is_answered_beside_it():
    """The long one would go on past its bound while the short one, forced to think again, still has room."""
    long = render_response("\n".join(f"{i} + 1 = {i + 1}" for i in range(4)), "4")
    script = {"Long?": [(long, 1)], Q: FORCED}
    bound = long.index(END_THINK) - 3
    for search_config in (SearchConfig(n=1, max_thinking=bound, min_thinking=bound, max_new_tokens=100), SearchConfig(n=4, width=2, max_new_tokens=len(long) - 4)):
        for name in ("budget", "beam") if search_config.max_thinking else ("beam", "dvts"):
            ask = lambda questions: METHODS[name](Scripted(script), [render_prompt(q) for q in questions], search_config, generator(0, "cap"), Opinion({}).scorer())
            (alone,), (beside, _) = ask(["Long?"]), ask(["Long?", Q])
            assert alone == beside and alone.tokens > 0


def test_self_verification_weighs_the_vote_by_the_checks_that_confirm():
    check = lambda r, said, answer: [*r[: r.index(END_THINK)], *encode(f"\nCheck: {said}"), END_THINK, *encode(answer), END]
    script = [(RIGHT, 0.4), (WRONG, 0.5), (CUT, 0.1), (check(RIGHT, "39 / 3 = 13", "39"), 0), (check(WRONG, "36 / 3 = 12", "39"), 0), (check(WRONG, "36 / 3 = 13", "36"), 0)]
    result = run("self-verify", script, n=32, passes=8)
    counts = Counter(c.answer for c in result.candidates)
    score = dict(zip((c.answer for c in result.candidates), result.scores))
    assert counts["36"] > counts["39"] > 0 and counts[None] > 0 and result.answer == "39"
    assert score["39"] == counts["39"] and score[None] == 0 and 0.2 < score["36"] / counts["36"] < 0.8  # half of its checks end elsewhere
    assert result.tokens > sum(len({"39": RIGHT, "36": WRONG}.get(c.answer, CUT)) for c in result.candidates)


def test_auto_looks_first_and_then_follows_its_plan():
    easy, hard = "What is 1 + 1?", Q
    model = Scripted({easy: [(render_response("1 + 1 = 2", "2"), 1)], hard: [(RIGHT, 0.1), (WRONG, 0.9)]})
    opinion = Opinion({"= 2<": 0.9, "= 39": 0.8, "= 36": 0.1, "= 13": 0.8, "= 12": 0.2})
    search_config = SearchConfig(max_new_tokens=100, plan=((0.5, "beam", 16), (2.0, "vote", 6)))
    results = METHODS["auto"](model, [render_prompt(easy), render_prompt(hard), render_prompt(easy)], search_config, generator(0, "auto"), opinion.scorer())
    assert [r.answer for r in results] == ["2", "39", "2"] and [len(r.candidates) for r in results] == [6, 5, 6]  # the greedy response stays among the candidates
    assert [c.answer for c in results[1].candidates][0] == "36" and results[1].scores[0] == pytest.approx(0.1)  # what it said of the hard one, and what the judge thinks of it
    assert results[0].tokens == 6 * len(render_response("1 + 1 = 2", "2")) == results[2].tokens and {0, 1, 2} == {o for o, _ in opinion.asked}
    for row in (("greedy", 1), ("vote", 1)):  # where that was enough nothing more is drawn
        assert [(len(r.candidates), r.answer) for r in METHODS["auto"](model, [render_prompt(easy)], SearchConfig(max_new_tokens=100, plan=((2.0, *row),)), generator(0, "auto"), opinion.scorer())] == [(1, "2")]
    likely = METHODS["auto"](model, [render_prompt(easy), render_prompt(hard)], SearchConfig(max_new_tokens=100, plan=((0.995, "vote", 3), (2.0, "greedy", 1))), generator(0, "auto"))
    assert [len(r.candidates) for r in likely] == [1, 3]  # without a judge, by its likelihood a token
    with pytest.raises(ValueError, match="plan"):
        run("auto", MIXED)
    with pytest.raises(ValueError, match="cannot call for budget"):
        run("auto", MIXED, plan=((2.0, "budget", 4),))


QUESTIONS = [f"What is {a} + {a}?" for a in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("name", METHODS)
def test_answers_scores_and_bills_belong_to_their_questions_whatever_the_order(name):
    """Questions of one certain response each, uneven in length, and a judge that knows whose each response is: any mix-up shows."""
    script = {q: [(render_response("\n".join(["so"] * a + [f"{a} + {a} = {2 * a}"]), str(2 * a)), 1)] for a, q in enumerate(QUESTIONS, 1)}
    for response in [r for (r, _), in script.values()]:
        assert parse_response(response).answer
    search_config = SearchConfig(n=4, width=2, max_new_tokens=100, plan=((0.35, "vote", 6), (2.0, "beam", 4)))

    def ask(order):
        prompts = [render_prompt(QUESTIONS[i]) for i in order]

        def opinion(owner, responses):
            for o, r in zip(owner, responses):
                assert decode(r).startswith(decode(script[QUESTIONS[order[o]]][0][0])[: len(decode(r))])
            return [[(len(r) - 1, (order[o] + 1) / 10)] for o, r in zip(owner, responses)]

        return dict(zip(order, METHODS[name](Scripted(script), prompts, search_config, generator(0, "order"), Scorer(opinion, "last", JUDGED))))

    straight, shuffled = ask([0, 1, 2, 3, 4]), ask([3, 0, 4, 2, 1])
    assert straight == shuffled
    assert {i: r.answer for i, r in straight.items()} == {i: str(2 * (i + 1)) for i in range(5)}
    assert METHODS[name](Scripted(script), [], search_config, generator(0, "none")) == []


def test_scores_of_a_response_become_one_number():
    rated = [(4, 0.9), (9, 0.5), (9, 0.5)]
    assert [aggregate(rated, how) for how in ("last", "min", "prod")] == [0.5, 0.5, pytest.approx(0.45)]
    assert aggregate([(4, 0.2), (9, 0.9), (12, 0.8)], "min") == 0.2 and aggregate([(0, 0.3)], "prod") == 0.3


def test_weighted_votes_of_the_worked_example():
    assert vote_scores(["12", "12.0", None, "15"], [0.5, 0.2, 0.9, 0.8]) == pytest.approx([0.7, 0.7, 0, 0.8])


def test_a_verifier_as_judge_scores_each_response_with_its_own_prompt():
    from test_verifier import PROMPTS, RESPONSES, make_reward_model
    from nanoreason.reward_model import scores

    model = make_reward_model("prm")
    expected, owner = scores(model, PROMPTS, RESPONSES), list(range(len(PROMPTS)))[::-1]
    scorer = reward_model_scorer(model, PROMPTS, "min")
    assert scorer.rate(owner, RESPONSES[::-1]) == [[(at, pytest.approx(c, abs=1e-5)) for at, c in expected[i]] for i in owner]
    assert scorer.scores(owner, RESPONSES[::-1]) == pytest.approx([min(c for _, c in expected[i]) for i in owner], abs=1e-5)
    assert scorer.flops_per_token == model.gpt.flops_per_token() and search.METHODS is METHODS

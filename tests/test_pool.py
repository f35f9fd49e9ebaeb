"""Pools of samples: what belongs to whom in any order, the cache, and the estimators against
enumeration."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import make_stopping, make_tiny, render_prompt, render_response, tokenizer
from test_search import COUNTDOWN, MIXED, OTHER, Q, RIGHT, WRONG, Scripted
from test_reward_model import make_reward_model

from nanoreason import pool as pools
from nanoreason.evaluate import held_out_problems
from nanoreason.generate import Rollout
from nanoreason.pool import (
    Pool, best_at, check_samples, draw_pool, estimates, log_fit, scaling, split_responses, votes_at,
)
from nanoreason.tasks import code, make_problem, user_problem
from nanoreason.reward_model import aggregate, scores

PROBLEMS = held_out_problems(["chain", "word", "percent"], [1, 2], 4)


def drawn(problems=PROBLEMS, model=None, samples=6, seed=0, **options):
    model = model or make_stopping(bias=2.0)
    return draw_pool(model, problems, samples, 1.0, 30, seed, **options)


def test_samples_and_scores_follow_their_problems_into_any_order():
    order = [7, 2, 11, 0, 5, 1, 9, 3, 10, 4, 8, 6]
    prm = make_reward_model("prm", max_len=256)
    model = make_stopping(bias=2.0, max_len=256)
    straight = drawn(PROBLEMS, model).add_reward_model("prm", prm)
    shuffled = drawn([PROBLEMS[i] for i in order], model).add_reward_model("prm", prm)
    assert len({tuple(ids) for row in straight.ids for ids in row}) > 40
    assert shuffled.ids == [straight.ids[i] for i in order]
    assert (shuffled.tokens == straight.tokens[order]).all()
    assert (shuffled.answer == straight.answer[order]).all()
    for name in ("likelihood", "prm-last", "prm-min", "prm-prod"):
        expected = straight.scores[name][order]
        np.testing.assert_allclose(shuffled.scores[name], expected, atol=1e-5)

    p = 4  # one of them, alone
    n = 3
    ((readings),) = scores(prm, [render_prompt(PROBLEMS[p].question)], [straight.ids[p][n]])
    for how in ("last", "min", "prod"):
        expected = pytest.approx(aggregate(readings, how), abs=1e-5)
        assert straight.scores[f"prm-{how}"][p, n] == expected


def test_fewer_samples_are_the_first_of_more_and_other_seeds_draw_others():
    many = drawn(samples=6)
    few = drawn(samples=2)
    other = drawn(seed=1)
    assert few.ids == [row[:2] for row in many.ids]
    assert sum(a == b for a, b in zip(many.ids, other.ids)) == 0
    some = many.add_reward_model("orm", make_reward_model("orm")).select([3, 1], 4)
    assert some.problems == [PROBLEMS[3], PROBLEMS[1]]
    assert some.ids == [many.ids[3][:4], many.ids[1][:4]] and some.samples == 4
    assert (some.scores["orm"] == many.scores["orm"][[3, 1], :4]).all()


def test_what_was_drawn_and_scored_before_is_read_from_the_cache(tmp_path, monkeypatch, capsys):
    orm = make_reward_model("orm")
    first = drawn(cache=tmp_path).add_reward_model("orm", orm)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(pools, "generate", lambda *a, **k: pytest.fail("sampled again"))
    monkeypatch.setattr(pools, "scores", lambda *a, **k: pytest.fail("scored again"))
    again = drawn(cache=tmp_path).add_reward_model("orm", orm)
    assert again.ids == first.ids
    assert (again.right == first.right).all()
    assert (again.scores["orm"] == first.scores["orm"]).all()
    for change in (
        dict(seed=1),
        dict(samples=5),
        dict(problems=PROBLEMS[::-1]),
        dict(model=make_stopping(bias=2.1)),
    ):
        with pytest.raises(pytest.fail.Exception, match="sampled again"):
            drawn(**change, cache=tmp_path)
    with pytest.raises(pytest.fail.Exception, match="scored again"):
        drawn(cache=tmp_path).add_reward_model("orm", make_reward_model("orm", seed=1))
    monkeypatch.undo()

    (kept,) = [path for path in tmp_path.iterdir() if path.stem == first.key]
    kept.write_bytes(kept.read_bytes()[:100])
    assert drawn(cache=tmp_path).ids == first.ids
    assert "is damaged" in capsys.readouterr().out
    assert drawn(cache=tmp_path).ids == first.ids


@pytest.mark.parametrize("largest, kind", [(32_767, np.int16), (151_644, np.int32)])
def test_ids_of_a_larger_vocabulary_are_kept_whole(largest, kind, monkeypatch):
    ids = torch.tensor([[1, largest], [5, 2]])
    rollout = Rollout(ids, torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2), torch.ones(2) > 0)
    monkeypatch.setattr(pools, "generate", lambda *_, **__: rollout)
    found, tokens, _ = pools.sample_some(make_tiny(), [[1]], [("seed",)], 2, 1.0, 2)
    assert found.dtype == kind and found.tolist() == [1, largest, 5, 2]
    assert tokens.tolist() == [[2, 2]]


def test_responses_are_cut_apart_as_in_the_worked_example():
    ids = np.array([5, 6, 7, 8, 9, 9])
    tokens = np.array([[2, 1], [2, 1]])
    assert split_responses(ids, tokens) == [[[5, 6], [7]], [[8, 9], [9]]]


def test_samples_are_checked_by_their_answers():
    problem = user_problem(Q, "39")
    responses = [RIGHT, WRONG, RIGHT[:-1], render_response("", "39.0"), OTHER, RIGHT]
    right, answer = check_samples(problem, responses, tokenizer)
    assert list(right) == [True, False, False, True, False, True]
    assert list(answer) == [0, 1, -1, 0, 2, 0]
    pool = draw_pool(Scripted({Q: MIXED}), [problem], 200, 1.0, 60, 0)
    shares = [np.mean([ids == r for ids in pool.ids[0]]) for r in (RIGHT, WRONG, OTHER)]
    assert shares == pytest.approx([0.3, 0.5, 0.1], abs=0.1)
    assert pool.right.mean() == shares[0]
    assert (pool.answer[0] == -1).mean() == pytest.approx(1 - sum(shares))
    likelihood = pool.scores["likelihood"][0, pool.ids[0].index(RIGHT)]
    assert likelihood == pytest.approx(0.3 ** (1 / len(RIGHT)), rel=1e-4)


def test_answers_are_numbered_as_the_checker_of_the_problem_reads_them():
    answers = ("13+2+14", "13 + 2 + 14", "14 + 13 - 2", "29", "14 + (13 + 2) = 29")
    responses = [render_response("", answer) for answer in answers]
    right, answer = check_samples(COUNTDOWN, responses, tokenizer)
    assert list(right) == [True, True, False, False, True]
    assert list(answer) == [0, 0, 1, 2, 0]


def test_texts_of_one_answer_are_checked_once(monkeypatch):
    """Each is read for its key, and the first of them for the verdict."""
    parse = code.parse
    read = []
    monkeypatch.setattr(code, "parse", lambda text: read.append(text) or parse(text))
    problem = make_problem("code", 2, ("linear", 2, 3), random.Random(0))
    responses = [render_response("", f"{i} + 2 * x + 3 - {i}") for i in range(100)]
    right, answer = check_samples(problem, responses * 2, tokenizer)
    assert all(right) and set(answer) == {0}
    assert len(read) <= 101


# Estimators


def best_of(some, score, value):
    """Mean value of those among `some` with the highest score."""
    highest = max(score[i] for i in some)
    return np.mean([value[i] for i in some if score[i] == highest])


def test_best_of_n_is_the_mean_over_all_subsets_with_ties_shared():
    rng = np.random.default_rng(0)
    for trial in range(20):
        score = rng.integers(0, 4, 7) / 3
        value = rng.random(7)
        for n in range(1, 8):
            each = [best_of(some, score, value) for some in combinations(range(7), n)]
            assert best_at(score, value, [n])[0] == pytest.approx(np.mean(each), abs=1e-12)
    example = best_at(np.array([0.9, 0.5, 0.1]), np.array([0, 1, 1]), [2])
    assert example[0] == pytest.approx(1 / 3)


def test_votes_are_the_mean_over_subsets_with_ties_shared():
    rng = np.random.default_rng(1)
    answer = np.array([0, 1, 1, 2, -1, 0, 1])
    right = answer == 0
    weights = {"vote": np.ones(7), "weighted": rng.random(7)}

    def verdict(some, weight):
        total = {}
        for a in set(answer[list(some)]) - {-1}:
            total[a] = sum(weight[i] for i in some if answer[i] == a)
        top = [a for a, t in total.items() if abs(t - max(total.values())) < 1e-9]
        return np.mean([a == 0 for a in top]) if top else 0.0

    ns = [1, 2, 3, 5, 7]
    found = votes_at(answer, right, weights, ns, rng, draws=20_000)
    for rule, weight in weights.items():
        exact = []
        for n in ns:
            exact.append(np.mean([verdict(some, weight) for some in combinations(range(7), n)]))
        assert found[rule] == pytest.approx(exact, abs=0.015)
        assert found[rule][0] == right.mean() and found[rule][-1] == exact[-1]
    nothing = np.array([-1, -1, -1])
    silent = votes_at(nothing, np.zeros(3, bool), {"vote": np.ones(3)}, [2, 3], rng)
    assert silent["vote"].tolist() == [0, 0]


def scripted_pool(answers, right, score):
    """A pool of these answers (numbers, -1 for none) and these scores of an ORM."""
    answer = np.array(answers)
    return Pool(
        problems=[None] * len(answers),
        ids=[],
        tokens=np.full(answer.shape, 10.0),
        right=answer == np.array(right)[:, None],
        answer=answer,
        tokenizer=tokenizer,
        key="",
        cache=None,
        scores={"orm": np.array(score)},
    )


def test_every_rule_is_estimated_from_one_set_of_samples():
    pool = scripted_pool(
        answers=[[0, 0, 1, 1], [0, 1, 1, 2], [-1, -1, 0, 1]],
        right=[0, 0, 1],
        score=[[0.9, 0.8, 0.1, 0.2], [0.9, 0.1, 0.2, 0.3], [1.0, 1.0, 0.5, 0.1]],
    )
    figures = scaling(pool, [1, 2, 4])
    assert figures["rules"] == ["coverage", "vote", "weighted-orm", "orm"]
    assert figures["tokens"] == [10, 20, 40] and figures["problems"] == 3
    coverage = [(0.5 + 0.25 + 0.25) / 3, (5 / 6 + 0.5 + 0.5) / 3, 1.0]
    assert figures["coverage"] == pytest.approx(coverage, abs=1e-4)
    for rule in ("vote", "weighted-orm"):
        assert figures[rule][0] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["vote"][2] == pytest.approx((0.5 + 0 + 0.5) / 3, abs=1e-4)
    # unanswered ones are never chosen, whatever their scores
    best = [1 / 3, (5 / 6 + 1 / 2 + 1 / 3) / 3, 2 / 3]
    assert figures["orm"] == pytest.approx(best, abs=1e-4)
    assert figures["weighted-orm"][2] == pytest.approx(2 / 3, abs=1e-4)
    for rule in figures["rules"]:
        for mean, (low, high) in zip(figures[rule], figures[rule + "_ci"]):
            assert low <= mean <= high
    assert scaling(pool, [1, 2, 4]) == figures
    assert set(estimates(pool, [4])) == set(figures["rules"])
    with pytest.raises(ValueError, match="8 samples cannot be estimated from 4"):
        scaling(pool, [8])


def test_a_logarithmic_law_is_found_with_its_quality():
    ns = [1, 4, 16, 64]
    assert log_fit(ns, 0.2 + 0.1 * np.log(ns)) == dict(a=0.2, b=0.1, r2=1.0)
    fit = log_fit(ns, [0.2, 0.5, 0.5, 0.2])
    assert fit["b"] == 0 and fit["r2"] == 0


def test_the_cache_may_be_nowhere_and_leaves_no_scratch(tmp_path):
    folder = tmp_path / "a" / "b"
    drawn(cache=str(folder))
    assert [path.suffix for path in folder.iterdir()] == [".npz"]
    assert drawn().cache is None

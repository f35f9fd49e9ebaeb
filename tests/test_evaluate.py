"""Figures and their intervals against tables, enumeration and scripted samples; votes."""

import os
import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import (
    END, END_THINK, PAD, ROOT, THINK, encode, make_stopping, parse_response, render_prompt,
    render_response, tokenizer, toy_tokenizer,
)
from matplotlib.figure import Figure
from test_search import Scripted

from nanoreason import evaluate, plots, speedrun_report
from nanoreason.evaluate import (
    Sample, accuracy, auc, behaviours, brier, by_family, collect, greedy_accuracy, interval_of_mean,
    oracle_scorer, pass_at_k, reliability, sampled_accuracy, soundness, wilson,
)
from nanoreason.generate import Rollout
from nanoreason.pool import Pool, estimates, scaling
from nanoreason.search import vote_scores
from nanoreason.tasks import (
    FAMILIES, HELD_OUT_LEVEL, answer_key, demo_problems, draw_problem, make_problem, solve,
    split_of,
)
from nanoreason.tokenizer import Response


@pytest.mark.parametrize("right, n, low, high", [
    (5, 10, 0.2366, 0.7634),
    (0, 10, 0.0, 0.2775),
    (10, 10, 0.7225, 1.0),
    (1, 20, 0.0089, 0.2361),
    (81, 263, 0.2553, 0.3662),
])
def test_wilson_gives_the_published_intervals(right, n, low, high):
    """R's prop.test(correct=FALSE) and Newcombe 1998, table I (81 of 263: 0.2553 to 0.3662)."""
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_ends_solve_the_score_equation_and_nothing_measured_says_nothing():
    for right, n in ((3, 17), (40, 41), (250, 1000)):
        for end in wilson(right, n):
            half = 1.96 * (end * (1 - end) / n) ** 0.5
            assert abs(right / n - end) == pytest.approx(half, abs=1e-9)
    assert wilson(0, 0) == (0.0, 1.0)
    assert accuracy(5, 10) == {"acc": 0.5, "n": 10, "ci": [0.2366, 0.7634]}
    assert accuracy(0, 0)["n"] == 0


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                share = sum(map(any, subsets)) / len(subsets)
                assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)
    with pytest.raises(ValueError):
        pass_at_k(4, 2, 5)


# Votes


def test_votes_of_the_worked_example():
    assert vote_scores(["12", "12.0", None, "15"]) == [2, 2, 0, 1]
    assert vote_scores([]) == []
    assert vote_scores([None, None]) == [0, 0]


def test_keys_of_answers_are_equal_exactly_when_they_mean_the_same():
    same = [
        ("1692", "1,692", "1692.0", "x = 1692", " 1692. ", "01692", "$1692"),
        ("-0.5", "-1/2", "-0.50"),
        ("Yes", "yes", "YES."),
        ("Paris", "paris."),
    ]
    for group in same:
        assert len({answer_key(text) for text in group}) == 1
    others = ("1693", "-1692", "1692 or 1693", "no", "12 13", "0.5", "3384/2", "1692 students")
    different = {answer_key(text) for text in (*(group[0] for group in same), *others)}
    assert len(different) == 12
    assert answer_key(None) is None


def test_the_problem_says_which_answers_share_a_vote():
    students = demo_problems()[1]
    assert vote_scores(["100 students", "100", None, "100 dollars"], problem=students) == [
        2, 2, 0, 1]
    assert vote_scores(["100 students", "100"]) == [1, 1]
    assert answer_key(None, students) is None
    countdown = make_problem(
        "countdown", 1, ((2, 13, 14), 29, ((14, "+", 13), (27, "+", 2))), random.Random(0))
    answers = ["13+2+14", "13 + 2 + 14", "14 + 13 - 2", "29"]
    assert vote_scores(answers, problem=countdown) == [2, 2, 1, 1]


def test_an_empty_answer_earns_no_vote():
    empty = parse_response([THINK, *encode("a"), END_THINK, END])
    assert vote_scores([empty.answer, empty.answer, "12"]) == [0, 0, 1]


# Samples


def response(answer, thinking="1 + 1 = 2"):
    return Response(thinking, answer, answer is not None)


def rollout_of(script):
    """A Rollout of these responses, lists of ids."""
    longest = max(map(len, script))
    ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in script])
    mask = torch.tensor([[i < len(s) for i in range(longest)] for s in script])
    return Rollout(ids, mask, torch.zeros(ids.shape), (ids == END).any(1))


def test_the_interval_of_a_mean_has_the_width_of_the_normal_one():
    values = [0.0] * 300 + [1.0] * 100
    low, high = interval_of_mean(values)
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(0.25 - half, abs=0.008)
    assert high == pytest.approx(0.25 + half, abs=0.008)


@pytest.mark.parametrize(("values", "low", "high"), [
    ([0.5], 0.0546, 0.9454),  # one problem: Wilson's interval of half a success in one
    ([0.5] * 10, 0.4038, 0.5962),
    ([1.0] * 5, 0.5655, 1.0),  # Wilson's of 5 in 5
    ([0.0] * 5, 0.0, 0.4345),
])
def test_no_interval_of_a_mean_is_a_point(values, low, high):
    assert interval_of_mean(values) == [low, high]
    below, above = interval_of_mean([2 * value - 1 for value in values], -1.0, 1.0)
    assert -1 <= below <= 2 * low - 1 + 2e-4 and 2 * high - 1 - 2e-4 <= above <= 1


def changes(up, down):
    """Differences of right answers of two methods: +1, -1 or 0 for each problem."""
    return lambda rng, shape: rng.choice([1.0, -1.0, 0.0], shape, p=[up, down, 1 - up - down])


def share_held(draw, n, count=2000):
    """The share of `count` draws of n problems whose interval holds the mean of a million."""
    rng = np.random.default_rng(0)
    many = draw(rng, 1_000_000)
    low = -1.0 if many.min() < 0 else 0.0
    ends = np.array([interval_of_mean(values, low) for values in draw(rng, (count, n))])
    return held(ends, many.mean())


def held(ends, truth):
    """The share of intervals, ends (D, 2), that hold the truth."""
    return ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()


@pytest.mark.parametrize("draw", [
    lambda rng, shape: (rng.random(shape) < 0.5).astype(float),
    lambda rng, shape: (rng.random(shape) < 0.9).astype(float),
    lambda rng, shape: rng.beta(0.5, 0.5, shape),  # coverage: most problems near 0 or 1
    lambda rng, shape: rng.beta(8, 0.5, shape),
    lambda rng, shape: rng.binomial(4, rng.beta(0.3, 2, shape)) / 4,  # 4 samples of each
    lambda rng, shape: 2 * rng.beta(2, 2, shape) - 1,
    changes(0.3, 0.1),
    changes(0.1, 0.02),
    changes(0.05, 0.05),
], ids=[
    "half", "nine tenths", "coverage", "solved", "samples", "difference", "many changes",
    "few changes", "no difference",
])
@pytest.mark.parametrize("n", [50, 200])
def test_95_percent_intervals_hold_the_mean_in_93_to_98_percent_of_draws(draw, n):
    assert 0.93 <= share_held(draw, n) <= 0.98


@pytest.mark.parametrize(("draw", "n"), [
    (lambda rng, shape: rng.beta(5, 0.2, shape), 20),  # 0.5 of a pseudo-problem: 91.6%
    (lambda rng, shape: rng.beta(3, 0.2, shape), 10),  # 90.2%
    (changes(0.05, 0.0), 30),  # 78.0%
    (changes(0.02, 0.0), 100),  # 85.1%
    (changes(0.1, 0.02), 20),  # 87.7%
])
def test_intervals_of_rare_cases_are_rather_too_wide(draw, n):
    assert share_held(draw, n) >= 0.93


def pool_of(problems, samples, rng):
    """A Pool of samples whose answers are right or one of three wrong ones."""
    right = rng.random((problems, samples)) < rng.beta(0.6, 0.6, problems)[:, None]
    answer = np.where(right, 0, rng.integers(1, 4, right.shape))
    tokens = np.ones(right.shape)
    pool = Pool([None] * problems, [[]] * problems, tokens, right, answer, tokenizer, "", None)
    pool.scores["orm"] = rng.random(right.shape) + 0.3 * right
    return pool


def test_the_intervals_of_every_rule_hold_what_it_estimates():
    """1,000 draws of 60 among 3,000 problems of 8 samples: coverage, votes and best of N."""
    rng = np.random.default_rng(0)
    pool = pool_of(3000, 8, rng)
    ns = [1, 2, 8]
    few = scaling(pool.select(range(40)), ns)
    found = estimates(pool, ns)
    assert few["rules"] == list(found) == ["coverage", "vote", "weighted-orm", "orm"]
    for rule, values in found.items():  # (3000, 3)
        drawn = rng.integers(3000, size=(1000, 60))
        for i in range(len(ns)):
            assert few[f"{rule}_ci"][i] == interval_of_mean(values[:40, i])
            ends = np.array([interval_of_mean(values[some, i]) for some in drawn])
            assert 0.93 <= held(ends, values[:, i].mean()) <= 0.975, (rule, ns[i])


@pytest.mark.parametrize("chances", [[0.9] * 5, [0.2, 0.5, 0.6, 0.9, 0.95], [0.05] * 5])
def test_the_interval_of_an_accuracy_over_families_holds_its_mean(chances):
    """Wilson's counts problems as if all were of one family. So it is rather too wide where
    families differ, and never too narrow."""
    chances = np.repeat(chances, 40)
    rng = np.random.default_rng(0)
    right = (rng.random((2000, len(chances))) < chances).sum(1)
    ends = np.array([accuracy(int(count), len(chances))["ci"] for count in right])
    assert 0.93 <= held(ends, chances.mean()) <= 0.99


@pytest.mark.parametrize("samples", [1, 4, 16])
def test_the_speedruns_interval_is_never_too_narrow(samples):
    """It is exact for one sample of each problem, as the speedrun draws them."""
    rng = np.random.default_rng(0)
    right = rng.binomial(samples, rng.beta(0.5, 0.5, (2000, 100))).mean(1) / samples
    ends = np.array([speedrun_report.interval(share, 100)["ci"] for share in right])
    assert 0.93 <= held(ends, 0.5) <= (0.97 if samples == 1 else 1)


def test_the_speedruns_report_says_what_was_measured_and_no_more():
    def stage(share):
        return dict(sampled_accuracy=dict(acc=share), greedy_accuracy=dict(acc=share))

    steps = dict(zero=dict(length=[10.0, 20.0], thinks=[0.0, 1.0]))
    for base, said in ((0.0, "0.0 -> 50.0. Over"), (0.1, "10.0 -> 50.0, 5.0 times the base's.")):
        stages = [stage(share) for share in (base, 0.5, 0.4, 0.6, 0.7)]
        report = dict(stages=stages, rl_first_and_last_steps=steps)
        assert said in speedrun_report.rl_lines(report)[0]
    best = dict(
        model="rl", levels=[1, 3], problems=7, temperature=0.3, ns=[1], tokens=[5.0], vote=[0.5],
        vote_ci=[[0.2, 0.8]], log_fit={key: dict(b=0.1, r2=1.0) for key in ("coverage", "vote")},
    )
    said = speedrun_report.best_of_n_lines(best)
    assert said[0] == "Model `rl`, levels 1 and 3, 7 problems, temperature 0.3:"
    assert "| 1 | 50.0 [20.0, 80.0] | 5 |" in said
    assert speedrun_report.levels_in_words([3]) == "level 3"
    assert speedrun_report.levels_in_words([1, 2, 4]) == "levels 1, 2 and 4"


def test_auc_is_the_share_of_pairs_in_the_right_order_and_brier_the_mean_squared_error():
    rng = random.Random(0)
    for _ in range(20):
        scores = [rng.randrange(5) / 4 for _ in range(12)]
        labels = [rng.random() < 0.4 for _ in range(12)]
        right = [score for score, label in zip(scores, labels) if label]
        wrong = [score for score, label in zip(scores, labels) if not label]
        pairs = [(a > b) + (a == b) / 2 for a in right for b in wrong]
        expected = pytest.approx(sum(pairs) / len(pairs), abs=1e-4) if pairs else None
        assert auc(scores, labels) == expected
    assert auc([0.1, 0.2], [1, 1]) is None and brier([], []) is None
    assert brier([0.5, 1.0, 0.0], [1, 1, 0]) == pytest.approx(0.25 / 3, abs=1e-4)
    assert reliability([0.05, 0.01, 1.0, 0.97], [0, 1, 1, 1]) == [
        dict(chance=0.03, right=0.5, n=2),
        dict(chance=0.985, right=1.0, n=2),
    ]


def test_behaviours_are_shares_of_responses_with_a_cue_at_the_start_of_a_line():
    thoughts = (
        "",
        " \n ",
        "1 + 1 = 3\nWait, 1 + 1 = 2\nWait, 2",
        "Check: 2 = 2\nAnother way: 2",
        "so Wait, no Check: 3",
    )
    shown = behaviours([response(None if "Another" in t else "1", t) for t in thoughts])
    expected = dict(thinks=0.6, verification=0.2, self_correction=0.2, another_way=0.2)
    assert shown == pytest.approx(expected)
    assert behaviours([])["thinks"] == 0


def test_by_family_takes_the_first_sample_and_counts_by_level():
    problems = evaluate.held_out_problems(["chain", "percent"], [1, 2], 6)
    checked = []
    for i in range(len(problems)):
        checked.append([Sample(response("1"), 5, i % 3 == 0), Sample(response("1"), 5, True)])
    table = by_family(problems, checked)
    found = {family: (row["n"], row["acc"]) for family, row in table.items()}
    assert found == {"chain": (6, 0.3333), "percent": (6, 0.3333)}
    levels = table["chain"]["levels"]
    assert {level: row["n"] for level, row in levels.items()} == {"1": 3, "2": 3}
    right = sum(row["acc"] * row["n"] for row in table["percent"]["levels"].values())
    assert right == pytest.approx(2, abs=0.01)


def test_collect_checks_every_response_against_its_own_problem(monkeypatch):
    problems = evaluate.held_out_problems(["multiplication", "chain", "primality"], [1], 4)
    neighbours = problems[1:] + problems[:1]
    script = []
    for problem, neighbour in zip(problems, neighbours):
        script.append(render_response("so", problem.answer))  # right
        script.append(render_response("", neighbour.answer))  # the answer of the next problem
        script.append(render_response("", problem.answer)[:-1])  # cut off

    def scripted(model, prompts, count, *rest, **options):
        assert prompts == [render_prompt(p.question) for p in problems] and count == 3
        return rollout_of(script)

    monkeypatch.setattr(evaluate, "generate", scripted)
    checked = collect(make_stopping(), problems, 3, 1.0, 50, 0)
    assert len(checked) == len(problems) and all(len(own) == 3 for own in checked)
    for p, (a, b, c) in enumerate(checked):
        same = neighbours[p].answer == problems[p].answer
        assert (a.correct, b.correct, c.correct) == (True, same, False)
        assert [s.tokens for s in (a, b, c)] == [len(s) for s in script[3 * p : 3 * p + 3]]
        assert a.response.answer == problems[p].answer


def test_greedy_accuracy_is_the_share_of_right_first_answers_with_its_interval(monkeypatch):
    problems = evaluate.held_out_problems(["chain", "word"], [1, 2], 5)
    asked = []
    script = [render_response("", problem.answer) for problem in problems]
    for i in (2, 7, 8):  # wrong
        script[i] = render_response("", f"{problems[i].answer} or 0")
    script[5] = script[5][:2]  # cut off

    def scripted(model, prompts, count, limit, temperature, *rest, **options):
        asked.append((prompts, count, limit, temperature))
        return rollout_of(script)

    monkeypatch.setattr(evaluate, "generate", scripted)
    low, high = wilson(6, 10)
    found = greedy_accuracy(make_stopping(), problems, 33)
    assert found == {"acc": 0.6, "n": 10, "ci": [round(low, 4), round(high, 4)]}
    assert asked == [([render_prompt(p.question) for p in problems], 1, 33, 0.0)]


@pytest.mark.parametrize("t", [tokenizer, toy_tokenizer()])
def test_accuracy_is_measured_in_the_ids_of_the_models_own_tokenizer(t):
    problems = evaluate.held_out_problems(["chain", "word"], [1, 2], 2)
    script = {}
    for i, problem in enumerate(problems):  # the first is answered wrong
        said = t.render_response("so\nso", problem.answer if i else "no idea")
        script[problem.question] = [(said, 1)]
    model = Scripted(script, tokenizer=t)
    assert greedy_accuracy(model, problems, 60)["acc"] == 0.75
    assert sampled_accuracy(model, problems, 60, 0)["acc"] == 0.75
    checked = collect(model, problems, 2, 1.0, 60, 0)
    for i, (own, problem) in enumerate(zip(checked, problems, strict=True)):
        ((said, _),) = script[problem.question]
        for sample in own:
            assert sample == Sample(t.parse_response(said), len(said), i > 0)
            assert sample.response.steps == ["so", "so"]
    oracle = oracle_scorer(problems, t)
    responses = [said for ((said, _),) in script.values()]
    assert oracle.scores(range(4), responses) == [0, 1, 1, 1]


# Problems to measure on


@pytest.mark.parametrize("families, levels, count", [
    (["chain", "word"], [1, 2, 3], 10),
    (["multiplication"], [1], 30),
    (["percent"], [1, 2, 3, 4, 5], 7),
    (["chain", "equation"], [HELD_OUT_LEVEL], 12),
    (["word", "addition"], [5, HELD_OUT_LEVEL], 9),
])
def test_problems_to_measure_on_are_counted_distinct_and_held_out(families, levels, count):
    for split in ("test", "val"):
        problems = evaluate.held_out_problems(families, levels, count, split)
        per_family = [sum(p.family == family for p in problems) for family in families]
        assert per_family == [count] * len(families)
        assert len({p.key for p in problems}) == len(problems)
        assert {split_of(p.family, p.params) for p in problems} == {split}
        per_level = [sum(p.level == level for p in problems) for level in levels]
        assert max(per_level) - min(per_level) <= len(families)
        assert problems == evaluate.held_out_problems(families, levels, count, split)


def test_levels_that_run_dry_are_made_up_by_the_next_and_never_exceed_the_count():
    problems = evaluate.held_out_problems(["primality"], [1, 2, 3], 90)
    per_level = [sum(p.level == level for p in problems) for level in (1, 2, 3)]
    assert per_level[0] < 30 < per_level[1]
    assert len(problems) == sum(per_level) == 90
    assert len({p.key for p in problems}) == 90
    assert len(evaluate.held_out_problems(["primality"], [1], 500)) < 30


def test_what_is_named_twice_or_held_by_two_levels_counts_once():
    once = evaluate.held_out_problems(["percent", "chain"], [1, 2], 4)
    assert evaluate.held_out_problems(["percent", "chain", "percent"], [1, 2, 1], 4) == once
    # levels 1 and 2 of equations share problems: three of these 200 stood there twice
    for split in ("test", "val"):
        problems = evaluate.held_out_problems(["equation"], [1, 2], 200, split)
        assert len({p.key for p in problems}) == len(problems) == 200
        assert sum(p.level == 1 for p in problems) == 100


def test_every_family_can_be_measured():
    for family in FAMILIES:
        assert len(evaluate.held_out_problems([family], [1, 2], 8)) == 8


# Figures


class Drawn:
    """The figures that plots wrote, by the names of their files, which are written as well."""

    def __init__(self, monkeypatch):
        self.figures = {}
        save = Figure.savefig

        def watched(figure, path, **options):
            self.figures[path.name] = figure
            save(figure, path, **options)

        monkeypatch.setattr(Figure, "savefig", watched)


def curves(axis):
    """[(x, y)] of every line of an axis."""
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


BEHAVIOURS = ("thinks", "verification", "self_correction", "another_way")


def rl_rows(n, first, kl=0.0):
    """Metrics of n steps with nothing but what the figures need; every key on a course of its
    own."""
    keys = (
        "solve_rate", "length", "thinks", "no_signal", "entropy", "sampler_gap",
        "verification", "self_correction", "another_way",
    )
    rows = []
    for i in range(n):
        row = {key: (i * (k + 3) % 7) / 7 + k for k, key in enumerate(keys)}
        rows.append(dict(step=first + 2 * i, kl=kl * i) | row)
    return rows


def five_around(values):
    means = []
    for i in range(len(values)):
        some = values[max(0, i - 2) : i + 3]
        means.append(sum(some) / len(some))
    return means


def with_means(rows, key):
    """The two curves of a metric: every step, and the mean of the five around it. Steps without
    a value are left out."""
    steps = [row["step"] for row in rows if row[key] is not None]
    values = [row[key] for row in rows if row[key] is not None]
    return [(steps, values), (steps, pytest.approx(five_around(values)))]


def test_the_worked_example_of_smooth():
    assert plots.smooth([0, 3, 6], 3) == [1.5, 3, 4.5]
    assert plots.smooth([]) == [] and plots.smooth([2.0]) == [2.0]


@pytest.mark.parametrize("kl", [0.0, 0.25])
def test_rl_figures_draw_every_step_and_the_mean_of_the_five_around_it(tmp_path, monkeypatch, kl):
    """A step that trained on nothing has no entropy, and leaves a gap of its own there."""
    drawn = Drawn(monkeypatch)
    runs = {"zero": rl_rows(9, 0), "cold": rl_rows(4, 1, kl)}
    runs["zero"][3] |= dict(entropy=None, kl=None, sampler_gap=None)
    plots.rl_figures(runs, tmp_path)
    for name in ("rl.png", "behaviours.png"):
        assert is_png(tmp_path / name) and (tmp_path / name).stat().st_size > 5000

    panels = drawn.figures["rl.png"].axes
    last = "kl" if kl else "sampler_gap"
    keys = ("solve_rate", "length", "thinks", "no_signal", "entropy", last)
    for axis, key in zip(panels, keys, strict=True):
        expected = with_means(runs["zero"], key) + with_means(runs["cold"], key)
        if key == "kl":  # zero has none: its 0 was not measured
            expected = with_means(runs["cold"], key)
        assert curves(axis) == expected, key
    legend = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert legend == ["zero", "cold"]
    assert ("KL" in panels[5].get_title()) == (kl > 0)
    assert panels[0].get_ylim()[1] == panels[3].get_ylim()[1] == 1.02

    axes = drawn.figures["behaviours.png"].axes  # one for each run, then their right-hand axes
    assert [axis.get_title() for axis in axes[:2]] == ["zero", "cold"] and len(axes) == 4
    for left, right, rows in zip(axes[:2], axes[2:], runs.values()):
        shares = [with_means(rows, key)[1] for key in BEHAVIOURS]
        assert curves(left) == [*shares, ([], [])]
        assert curves(right) == [with_means(rows, "length")[1]]


@pytest.mark.filterwarnings("error")
def test_a_run_of_one_step_can_be_drawn_also_where_it_trained_on_nothing(tmp_path):
    (row,) = rl_rows(1, 0)
    for only in (row, row | dict(entropy=None, kl=None, sampler_gap=None)):
        plots.rl_figures({"short": [only]}, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"rl.png", "behaviours.png"}
    rows = [dict(entropy=x) for x in (None, 0.5, 0.25, None)]
    assert speedrun_report.ends(rows, "entropy") == [0.375, 0.375]
    assert speedrun_report.ends([dict(entropy=None)], "entropy") == [0.0, 0.0]


def reward_report(aucs):
    """What plots.reward_model reads of a report."""
    positions = {str(i): dict(auc=value) for i, value in enumerate(aucs)}
    return dict(test=dict(positions=positions, reliability=[dict(chance=0.5, right=0.4)]))


def test_a_reward_model_that_is_worse_than_chance_is_seen(tmp_path, monkeypatch):
    drawn = Drawn(monkeypatch)
    for lowest in (0.8, 0.3):
        plots.reward_model({"orm": reward_report([0.9, None, lowest])}, tmp_path / "m.png")
        axis = drawn.figures["m.png"].axes[0]
        assert curves(axis) == [(["0", "2"], [0.9, lowest])]
        assert axis.get_ylim()[0] == min(lowest, 0.5) - 0.01


@pytest.mark.filterwarnings("error")
def test_every_name_of_a_folder_can_be_drawn(tmp_path, monkeypatch):
    assert plots.label_text("$1 to $2") == r"\$1 to \$2" and plots.label_text("_old") == " _old"
    drawn = Drawn(monkeypatch)
    names = ["_hidden", "a $x_{$ ü", "$5", "plain"]
    runs = {name: rl_rows(3, 0) for name in names}
    plots.rl_figures(runs, tmp_path)
    legend = drawn.figures["rl.png"].axes[0].get_legend()
    assert len(legend.get_texts()) == 4
    rows = [dict(tokens=1, loss=2.0)]
    plots.sft_loss(dict.fromkeys(names, rows), tmp_path / "loss.png")
    plots.reward_model(dict.fromkeys(names, reward_report([0.9])), tmp_path / "m.png")
    plots.seed_spread({name: dict(x=[1, 2]) for name in names}, {"x": "x"}, tmp_path / "s.png")
    plots.rl_figures({"empty": []}, tmp_path)


INLINE = "module://matplotlib_inline.backend_inline"


@pytest.mark.parametrize("named", [INLINE, "nonsense", "svg"])
def test_a_backend_that_is_not_installed_stops_nothing(named):
    """A notebook's kernel leaves the name of its own to the scripts that it starts."""
    script = "import os; from nanoreason import plots; print(os.environ['MPLBACKEND'])"
    if named == "svg":  # one that there is stays
        script += "; import matplotlib; print(matplotlib.rcParams['backend'])"
    words = [sys.executable, "-c", script]
    variables = dict(os.environ, MPLBACKEND=named)
    printed = subprocess.check_output(words, cwd=ROOT, env=variables, text=True)
    assert set(printed.split()) == {named}


def test_the_spread_over_seeds_is_a_dot_for_each_and_a_bar_at_their_mean(tmp_path, monkeypatch):
    drawn = Drawn(monkeypatch)
    path = tmp_path / "table.png"
    grpo = dict(sampled=[50.0, 54.0, 58.0], length=[20.0, 30.0, 10.0], steps=[1, 2, 3])
    dapo = dict(sampled=[60.0, 62.0, 70.0], length=[5.0, 5.0, 8.0], steps=[4, 5, 6])
    table = dict(grpo=grpo, dapo=dapo)
    titles = {"length": "tokens", "sampled": "sampled, %"}
    assert plots.seed_spread(table, titles, path) == path and is_png(path)
    axes = drawn.figures["table.png"].axes
    assert [axis.get_title() for axis in axes] == ["tokens", "sampled, %"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["grpo", "dapo"]
    for axis, key, means in zip(axes, ("length", "sampled"), ((20, 6), (54, 64))):
        dots = curves(axis)[0:4:2]
        bars = curves(axis)[1:4:2]
        first = curves(axis)[4]
        assert dots == [(grpo[key], [0, 0, 0]), (dapo[key], [1, 1, 1])]
        assert first[0] == [means[0]] * 2
        assert [x for x, _ in bars] == [[means[0]] * 2, [means[1]] * 2]
        assert [y for _, y in bars] == [[-0.35, 0.35], [0.65, 1.35]]
    low, high = axes[0].get_ylim()
    assert low > high  # the first row is at the top


def test_soundness_counts_steps_of_right_answers_and_checks_of_wrong_ones():
    problem = draw_problem("chain", 2, random.Random(0))
    steps = solve(problem, "steps", None)
    damaged = [*steps[:-1], steps[-1] + "0"]
    check = FAMILIES["chain"].check(problem.params)

    def sample(lines, answer):
        response = Response("\n".join(lines), answer, True)
        return Sample(response, 1, answer == problem.answer)

    samples = [
        sample(steps, problem.answer), sample(damaged, problem.answer),
        sample([*steps, check, "Check: 1 + 1 = 3"], "0"),
    ]
    found = soundness([problem] * 3, samples)
    n = len(steps)
    assert found.steps == {"chain": [True] * n + [True] * (n - 1) + [False]}
    assert found.traces == [True, False] and found.checks == [True, False]
    figures = found.figures()
    assert figures["steps"]["n"] == 2 * n and figures["traces"]["acc"] == 0.5
    assert figures["steps"]["families"]["chain"]["acc"] == figures["steps"]["acc"]
    fact = draw_problem("fact", 1, random.Random(0))
    assert soundness([fact], samples[:1]).traces == []

"""Figures and their intervals against tables, enumeration and scripted samples; votes."""

import random
from itertools import combinations

import pytest
import torch
from conftest import make_stopping
from matplotlib.figure import Figure

from nanoreason import evaluate, plots
from nanoreason.evaluate import Sample, accuracy, auc, behaviours, by_family, brier, collect, greedy_accuracy, interval_of_mean, pass_at_k, reliability, wilson
from nanoreason.generate import Rollout
from nanoreason.search import canonical, vote_scores
from nanoreason.speedrun import ends
from nanoreason.tasks import FAMILIES, HELD_OUT_LEVEL, split_of
from nanoreason.tokenizer import END, END_THINK, PAD, THINK, Response, encode, parse_response, render_prompt, render_response


@pytest.mark.parametrize("right, n, low, high", [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 20, 0.0089, 0.2361),
                                                 (81, 263, 0.2553, 0.3662)])
def test_wilson_gives_the_published_intervals(right, n, low, high):
    """R's prop.test(correct=FALSE) and Newcombe 1998, table I (81 of 263: 0.2553 to 0.3662)."""
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_ends_solve_the_score_equation_and_nothing_measured_says_nothing():
    for right, n in ((3, 17), (40, 41), (250, 1000)):
        for end in wilson(right, n):
            assert abs(right / n - end) == pytest.approx(1.96 * (end * (1 - end) / n) ** 0.5, abs=1e-9)
    assert wilson(0, 0) == (0.0, 1.0)
    assert accuracy(5, 10) == {"acc": 0.5, "n": 10, "ci": [0.2366, 0.7634]} and accuracy(0, 0)["n"] == 0


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)
    with pytest.raises(ValueError):
        pass_at_k(4, 2, 5)


# Votes


def test_votes_of_the_worked_example():
    assert vote_scores(["12", "12.0", None, "15"]) == [2, 2, 0, 1]
    assert vote_scores([]) == [] and vote_scores([None, None]) == [0, 0]


def test_canonical_answers_are_equal_exactly_when_they_mean_the_same():
    same = [("1692", "1,692", "1692.0", "x = 1692", " 1692. ", "01692", "1692 students"), ("-0.5", "-1/2", "-0.50"), ("Yes", "yes", "YES."), ("Paris", "paris.")]
    for group in same:
        assert len({canonical(text) for text in group}) == 1
    assert len({canonical(group[0]) for group in same} | {canonical(t) for t in ("1693", "-1692", "1692 or 1693", "no", "12 13", "0.5", "3384/2")}) == 11
    assert canonical(None) is None


# Samples


def response(answer, thinking="1 + 1 = 2"):
    return Response(thinking, answer, answer is not None)


def test_the_bootstrap_interval_has_the_width_of_the_normal_one():
    values = [0.0] * 300 + [1.0] * 100
    low, high = interval_of_mean(values)
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(0.25 - half, abs=0.008) and high == pytest.approx(0.25 + half, abs=0.008)
    assert interval_of_mean([1.0] * 5) == [1.0, 1.0]


def test_auc_is_the_share_of_pairs_in_the_right_order_and_brier_the_mean_squared_error():
    rng = random.Random(0)
    for _ in range(20):
        scores, labels = [rng.randrange(5) / 4 for _ in range(12)], [rng.random() < 0.4 for _ in range(12)]
        pairs = [(a > b) + (a == b) / 2 for a, x in zip(scores, labels) if x for b, y in zip(scores, labels) if not y]
        assert auc(scores, labels) == (pytest.approx(sum(pairs) / len(pairs), abs=1e-4) if pairs else None)
    assert auc([0.1, 0.2], [1, 1]) is None and brier([], []) is None
    assert brier([0.5, 1.0, 0.0], [1, 1, 0]) == pytest.approx(0.25 / 3, abs=1e-4)
    assert reliability([0.05, 0.01, 1.0, 0.97], [0, 1, 1, 1]) == [dict(chance=0.03, right=0.5, n=2), dict(chance=0.985, right=1.0, n=2)]


def test_behaviours_are_shares_of_responses_with_a_cue_at_the_start_of_a_line():
    thoughts = ("", " \n ", "1 + 1 = 3\nWait, 1 + 1 = 2\nWait, 2", "Check: 2 = 2\nAnother way: 2", "so Wait, no Check: 3")
    shown = behaviours([response(None if "Another" in t else "1", t) for t in thoughts])
    assert shown == pytest.approx({"thinks": 0.6, "verification": 0.2, "self_correction": 0.2, "another_way": 0.2})
    assert behaviours([])["thinks"] == 0


def test_by_family_takes_the_first_sample_and_counts_by_level():
    problems = evaluate.held_out_problems(["chain", "percent"], [1, 2], 6)
    judged = [[Sample(response("1"), 5, i % 3 == 0), Sample(response("1"), 5, True)] for i in range(len(problems))]
    table = by_family(problems, judged)
    assert {f: (t["n"], t["acc"]) for f, t in table.items()} == {"chain": (6, 0.3333), "percent": (6, 0.3333)}
    assert {level: t["n"] for level, t in table["chain"]["levels"].items()} == {"1": 3, "2": 3}
    assert sum(t["acc"] * t["n"] for t in table["percent"]["levels"].values()) == pytest.approx(2, abs=0.01)


def test_collect_judges_every_response_with_its_own_problem(monkeypatch):
    problems = evaluate.held_out_problems(["multiplication", "chain", "primality"], [1], 4)
    script = []
    for p, problem in enumerate(problems):  # sample 0 right, sample 1 the answer of the next problem, sample 2 cut off
        neighbour = problems[(p + 1) % len(problems)]
        script += [render_response("so", problem.answer), render_response("", neighbour.answer), render_response("", problem.answer)[:-1]]
    longest = max(map(len, script))
    ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in script])
    mask = torch.tensor([[i < len(s) for i in range(longest)] for s in script])

    def scripted(model, prompts, count, *rest, **options):
        assert prompts == [render_prompt(p.question) for p in problems] and count == 3
        return Rollout(ids, mask, torch.zeros(ids.shape), (ids == END).any(1))

    monkeypatch.setattr(evaluate, "generate", scripted)
    judged = collect(make_stopping(), problems, 3, 1.0, 50, 0)
    assert len(judged) == len(problems) and all(len(s) == 3 for s in judged)
    for p, (problem, (a, b, c)) in enumerate(zip(problems, judged)):
        same = problems[(p + 1) % len(problems)].answer == problem.answer
        assert (a.correct, b.correct, c.correct) == (True, same, False)
        assert [s.tokens for s in (a, b, c)] == [len(s) for s in script[3 * p : 3 * p + 3]] and a.response.answer == problem.answer


def test_greedy_accuracy_is_the_share_of_right_first_answers_with_its_interval(monkeypatch):
    problems = evaluate.held_out_problems(["chain", "word"], [1, 2], 5)
    asked = []

    def scripted(model, prompts, count, limit, temperature, *rest, **options):
        asked.append((prompts, count, limit, temperature))
        script = [render_response("", p.answer if i not in (2, 7, 8) else f"{p.answer} or 0")[: 2 if i == 5 else None] for i, p in enumerate(problems)]
        longest = max(map(len, script))
        ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in script])
        return Rollout(ids, torch.tensor([[i < len(s) for i in range(longest)] for s in script]), torch.zeros(ids.shape), (ids == END).any(1))

    monkeypatch.setattr(evaluate, "generate", scripted)
    low, high = wilson(6, 10)
    assert greedy_accuracy(make_stopping(), problems, 33) == {"acc": 0.6, "n": 10, "ci": [round(low, 4), round(high, 4)]}  # three wrong, one cut
    assert asked == [([render_prompt(p.question) for p in problems], 1, 33, 0.0)]


@pytest.mark.parametrize("families, levels, count", [(["chain", "word"], [1, 2, 3], 10), (["multiplication"], [1], 30), (["percent"], [1, 2, 3, 4, 5], 7),
                                                     (["chain", "equation"], [HELD_OUT_LEVEL], 12), (["word", "addition"], [5, HELD_OUT_LEVEL], 9)])
def test_problems_to_measure_on_are_counted_distinct_and_held_out(families, levels, count):
    for split in ("test", "val"):
        problems = evaluate.held_out_problems(families, levels, count, split)
        assert [sum(p.family == f for p in problems) for f in families] == [count] * len(families)
        assert len({p.key for p in problems}) == len(problems) and {split_of(p.family, p.params) for p in problems} == {split}
        per_level = [sum(p.level == level for p in problems) for level in levels]
        assert max(per_level) - min(per_level) <= len(families)
        assert problems == evaluate.held_out_problems(families, levels, count, split)


def test_levels_that_run_dry_are_made_up_by_the_next_and_never_exceed_the_count():
    problems = evaluate.held_out_problems(["primality"], [1, 2, 3], 90)
    per_level = [sum(p.level == level for p in problems) for level in (1, 2, 3)]
    assert per_level[0] < 30 < per_level[1] and len(problems) == sum(per_level) == 90 and len({p.key for p in problems}) == 90
    assert len(evaluate.held_out_problems(["primality"], [1], 500)) < 30


def test_an_empty_answer_earns_no_vote():
    empty = parse_response([THINK, *encode("a"), END_THINK, END])
    assert vote_scores([empty.answer, empty.answer, "12"]) == [0, 0, 1]


def test_every_family_can_be_measured():
    for family in FAMILIES:
        assert len(evaluate.held_out_problems([family], [1, 2], 8)) == 8


# Figures


class Drawn:
    """The figures that plots wrote, and their files."""

    def __init__(self, monkeypatch):
        self.figures, save = {}, Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: (self.figures.update({path.name: figure}), save(figure, path, **options)))


def curves(axis):
    """[(x, y)] of every line of an axis."""
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]


def rl_rows(n, first, kl=0.0):
    """Metrics of n steps with nothing but what the figures need; every key on a course of its own."""
    keys = ("solve_rate", "length", "thinks", "no_signal", "entropy", "sampler_gap", "verification", "self_correction", "another_way")
    return [dict(step=first + 2 * i, kl=kl * i) | {key: (i * (k + 3) % 7) / 7 + k for k, key in enumerate(keys)} for i in range(n)]


def last_five(values):
    return [sum(values[max(0, i - 4) : i + 1]) / len(values[max(0, i - 4) : i + 1]) for i in range(len(values))]


@pytest.mark.parametrize("kl", [0.0, 0.25])
def test_rl_figures_draw_every_step_and_the_mean_of_the_last_five(tmp_path, monkeypatch, kl):
    """A step that trained on nothing has no entropy, and leaves a gap of its own there."""
    drawn, runs = Drawn(monkeypatch), {"zero": rl_rows(9, 0), "cold": rl_rows(4, 1, kl)}
    runs["zero"][3] |= dict(entropy=None, kl=None, sampler_gap=None)
    plots.rl_figures(runs, tmp_path)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") and (tmp_path / name).stat().st_size > 5000 for name in ("rl.png", "behaviours.png"))
    panels = drawn.figures["rl.png"].axes
    for axis, key in zip(panels, ("solve_rate", "length", "thinks", "no_signal", "entropy", "kl" if kl else "sampler_gap"), strict=True):
        expected = []
        for rows in runs.values():
            steps, values = [r["step"] for r in rows if r[key] is not None], [r[key] for r in rows if r[key] is not None]
            expected += [(steps, values), (steps, pytest.approx(last_five(values)))]
        assert curves(axis) == expected, key
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["zero", "cold"]
    assert ("KL" in panels[5].get_title()) == (kl > 0) and panels[0].get_ylim()[1] == panels[3].get_ylim()[1] == 1.02
    axes = drawn.figures["behaviours.png"].axes  # one for each run, then their right-hand axes
    assert [axis.get_title() for axis in axes[:2]] == ["zero", "cold"] and len(axes) == 4
    for left, right, rows in zip(axes[:2], axes[2:], runs.values()):
        steps = [r["step"] for r in rows]
        shares = [(steps, pytest.approx(last_five([r[key] for r in rows]))) for key in ("thinks", "verification", "self_correction", "another_way")]
        assert curves(left) == [*shares, ([], [])] and curves(right) == [(steps, pytest.approx(last_five([r["length"] for r in rows])))]


@pytest.mark.filterwarnings("error")
def test_a_run_of_one_step_can_be_drawn_also_where_it_trained_on_nothing(tmp_path):
    for row in rl_rows(1, 0) + [rl_rows(1, 0)[0] | dict(entropy=None, kl=None, sampler_gap=None)]:
        plots.rl_figures({"short": [row]}, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"rl.png", "behaviours.png"}
    assert ends([dict(entropy=x) for x in (None, 0.5, 0.25, None)], "entropy") == [0.375, 0.375] and ends([dict(entropy=None)], "entropy") == [0.0, 0.0]


def test_the_spread_over_seeds_is_a_dot_for_each_and_a_bar_at_their_mean(tmp_path, monkeypatch):
    drawn = Drawn(monkeypatch)
    table = {"grpo": dict(sampled=[50.0, 54.0, 58.0], length=[20.0, 30.0, 10.0], steps=[1, 2, 3]),
             "dapo": dict(sampled=[60.0, 62.0, 70.0], length=[5.0, 5.0, 8.0], steps=[4, 5, 6])}
    assert plots.seed_spread(table, {"length": "tokens", "sampled": "sampled, %"}, tmp_path / "table.png") == tmp_path / "table.png"
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    axes = drawn.figures["table.png"].axes
    assert [axis.get_title() for axis in axes] == ["tokens", "sampled, %"] and [label.get_text() for label in axes[0].get_yticklabels()] == ["grpo", "dapo"]
    for axis, key, means in zip(axes, ("length", "sampled"), ((20, 6), (54, 64))):
        dots, bars, first = curves(axis)[0:4:2], curves(axis)[1:4:2], curves(axis)[4]
        assert dots == [(table["grpo"][key], [0, 0, 0]), (table["dapo"][key], [1, 1, 1])] and first[0] == [means[0]] * 2
        assert [bar[0] for bar in bars] == [[means[0]] * 2, [means[1]] * 2] and [bar[1] for bar in bars] == [[-0.35, 0.35], [0.65, 1.35]]
    low, high = axes[0].get_ylim()
    assert low > high  # the first row is at the top

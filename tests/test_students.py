"""The studies of students: tables and figures, who is compared with whom, and a policy that is kept
while its run goes on."""

import json

import pytest
from conftest import make_tiny, tokenizer

from nanoreason import checkpoint
from nanoreason.studies import students
from nanoreason.flags import UserError
from nanoreason.corpus import read_rows
from nanoreason.evaluate import accuracy, over_seeds
from nanoreason.questions import Questions
from nanoreason.tasks import audit
from nanoreason.studies.students import (
    Config, by_budget, cleaning_markdown, rejection_markdown, sizes_markdown)


def figures(right, params=100, tokens=20.0):
    """Greedy figures as `greedy_figures` leaves them, after a way through JSON.

    `right` of 30 are right, equally many at each level.
    """
    return dict(
        params=params, greedy=accuracy(right, 30),
        levels={str(level): accuracy(right / 3, 10) for level in (1, 2, 3)},
        unsound=accuracy(3, 30), mean_tokens=tokens, mean_flops=2.0 * params * tokens, accuracy={})


def sizes_report():
    teacher = figures(27, params=1000, tokens=40.0)
    rows = [dict(road="teacher", size="mini", seed=0, **teacher)]
    for size, params in (("a", 300), ("b", 100)):
        for road, right in (("full", 23), ("grpo", 11)):
            for seed in (1, 2):
                found = figures(right + seed, params=params)
                rows.append(dict(road=road, size=size, seed=seed, **found))
    collected = dict(full=dict(traces=500, mean_tokens_kept=31.5))
    return dict(rows=rows, grpo_tokens=[900, 1100], collected=collected)


def test_students_are_compared_with_their_teacher_over_seeds():
    lines = sizes_markdown(sizes_report()).splitlines()
    assert lines[2].startswith(
        "| mini, the teacher | 1,000 | base, cold start, GRPO | 90.0 | 90.0 | 90.0 | 90.0 | 100.0 "
        "| 10.0 | 40.0 | 0.1 |")
    (full,) = [line for line in lines if line.startswith("| a, 1/3.3 | 300 | full |")]
    # 24 and 25 of 30; of the teacher's 27
    assert "| 81.7 ± 2.4 |" in full and "| 90.7 ± 2.6 |" in full
    assert (
        "full: 500 traces of 31.5 tokens; reference: solutions of the questions of the full ones, "
        "as many. GRPO: 900 to 1,100 sampled tokens." in lines[-1])
    assert "over 2 seeds" in lines[-1]
    assert over_seeds([1.0]) == "1.0"
    assert over_seeds([1.0, 3.0]) == "2.0 ± 1.4"
    assert over_seeds([1.0, 3.0], 3) == "2.000 ± 1.414"


def rejection_report():
    rows = [dict(way="start", seed=0, budget=0, tokens=0, sampled=0.4, greedy=accuracy(20, 30))]
    for way, base in (("rejection", 0.5), ("grpo", 0.6)):
        for seed in (0, 1):
            for tokens in (200, 100):
                rows.append(dict(
                    way=way, seed=seed, budget=tokens, tokens=tokens + seed,
                    sampled=base + tokens / 1e6, greedy=accuracy(21, 30)))
    return dict(rows=rows, problems=30)


def test_equal_tokens_stand_side_by_side():
    report = rejection_report()
    groups = by_budget(report, "grpo")
    seeds = [(tokens, [row["seed"] for row in rows]) for tokens, rows in groups]
    assert seeds == [(100.5, [0, 1]), (200.5, [0, 1])]
    lines = rejection_markdown(report).splitlines()
    assert lines[2] == "| 0 | 40.0 | 66.7 | 40.0 | 66.7 |"
    assert lines[3].startswith(
        "| 100, 100 | 50.0 ± 0.0 | 70.0 ± 0.0 | 60.0 ± 0.0 | 70.0 ± 0.0 |")


def test_tables_and_figures_of_all_studies(tmp_path):
    ways = {}
    for i, way in enumerate(students.CLEANING, 1):
        ways[way] = dict(traces=10 * i, mean_tokens_kept=20.0)
    rows = [dict(way=way, seed=seed, **figures(20 + seed)) for way in ways for seed in (0, 1)]
    cleaning = dict(size="b", collected=ways, rows=rows)
    reports = dict(sizes=sizes_report(), cleaning=cleaning, rejection=rejection_report())
    for name, report in reports.items():
        _, markdown, draw = students.STUDIES[name]
        assert markdown(report)
        assert draw(report, tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    row = "| deduplicated | 20 | 20.0 | 68.3 ± 2.4 | 68.3 ± 2.4 |"
    assert row in cleaning_markdown(cleaning)


def test_a_policy_is_kept_at_every_budget_while_its_run_goes_on(tmp_path, monkeypatch):
    """A scripted trainer: the run's checkpoint grows with its budget; each copy stays as it was."""
    config = Config(out=str(tmp_path))
    asked = []

    def ensure(done, script, threads=0, **flags):
        out = flags["out"]
        tokens = flags["token_budget"]
        asked.append((script, tokens, (out / "ckpt.pt").exists()))
        out.mkdir(exist_ok=True)
        checkpoint.save(out / "ckpt.pt", make_tiny(), tokens=tokens)
        (out / "report.json").write_text(json.dumps(dict(sampled_tokens=tokens + 7)))

    monkeypatch.setattr(students, "ensure", ensure)
    points = students.grow(config, "cold", 3)
    assert [tokens for tokens, _ in points] == [tokens + 7 for tokens in students.TOKENS]
    assert asked == [("train_grpo.py", t, i > 0) for i, t in enumerate(students.TOKENS)]
    assert [checkpoint.load(path)["tokens"] for _, path in points] == list(students.TOKENS)
    assert students.grow(config, "cold", 3) == points
    assert len(asked) == len(students.TOKENS)  # nothing is made again
    (tmp_path / "rejection-grpo-3" / f"at-{students.TOKENS[1]}.json").unlink()
    with pytest.raises(UserError, match="stands at"):
        students.grow(config, "cold", 3)  # the run is past that point


def test_references_answer_the_very_questions_of_the_traces(tmp_path):
    config = Config(out=str(tmp_path), questions=12)
    drawn = Questions(",".join(students.FAMILIES), "1,2", tokenizer).draw(0, 0, 12)
    asked = [drawn[i] for i in (3, 3, 7)]
    (tmp_path / "full").mkdir()
    traces = [json.dumps(dict(prompt=problem.question, response="x")) for problem in asked]
    (tmp_path / "full" / "traces.jsonl").write_text("".join(line + "\n" for line in traces))
    rows = read_rows(students.references(config, tmp_path / "full") / "traces.jsonl")
    assert [row.question for row in rows] == [problem.question for problem in asked]
    assert [row.answer for row in rows] == [problem.answer for problem in asked]
    for problem, row in zip(asked, rows):
        steps = [line for line in row.thinking.split("\n") if not line.startswith("Wait")]
        assert audit(problem, steps).concluded or "Wait" in row.thinking


def test_mistakes_are_said_before_any_work():
    with pytest.raises(UserError, match="whole numbers"):
        Config(seeds="0,x").all_seeds
    with pytest.raises(UserError, match="no size 'tiny'"):
        Config(students="micro,tiny").sizes

"""Which questions are asked, of a user's own file above all: splits, rows that do not fit, sets."""

import json

import pytest
import torch
from conftest import tokenizer

from nanoreason.flags import UserError
from nanoreason.machine import Machine
from nanoreason.questions import Questions
from nanoreason.tasks import SPLITS, split_of


def write(path, questions):
    rows = [json.dumps({"question": q, "answer": "1"}) + "\n" for q in questions]
    path.write_text("".join(rows))
    return str(path)


def test_training_selecting_and_reporting_have_questions_of_their_own(tmp_path):
    data = write(tmp_path / "own.jsonl", [f"What is {n}?" for n in range(400)])
    questions = Questions("chain", "1", tokenizer, data)
    asked = {
        "train": {p.question for p in questions.draw(0, 0, 5000)},
        "val": {p.question for p in questions.held_out(400)},
        "test": {p.question for p in questions.held_out(400, "test")},
    }
    for split, own in asked.items():
        assert all(split_of("data", (question, "1")) == split for question in own)
    assert sum(map(len, asked.values())) == 400 and min(map(len, asked.values())) > 20
    assert len(questions.held_out(7, "test")) == 7


@pytest.mark.parametrize("split", SPLITS)
def test_questions_too_long_for_the_model_are_left_out_of_every_split(tmp_path, capsys, split):
    """A GSM8K file of which some questions leave no room to think."""
    questions = [f"What is {n}?" for n in range(100)]
    asked = [q for q in questions if split_of("data", (q, "1")) == split]
    long = asked[0] + " and so on" * 30
    long = next(f"{long}{n}" for n in range(99) if split_of("data", (f"{long}{n}", "1")) == split)
    data = write(tmp_path / "own.jsonl", [long, *questions])
    questions = Questions("chain", "1", tokenizer, data, room=40)
    assert [p.question for p in questions.own[split]] == asked
    assert sum(map(len, questions.own.values())) == 100
    out = capsys.readouterr().out
    assert "1 of 101 rows are left out (line 1): they take up to" in out
    assert ("--max-reasoning-tokens leaves 40 for questions. A lower one, or a model with a longer "
            "context, makes room") in out


def test_a_file_without_a_question_to_train_on_is_refused(tmp_path, capsys):
    every = [f"What is {n}?" for n in range(100)]
    data = write(tmp_path / "own.jsonl", every)
    with pytest.raises(UserError, match="none of its 100 rows fits: the shortest takes .* tokens; "
                                        "--max-reasoning-tokens leaves 3 for questions"):
        Questions("chain", "1", tokenizer, data, room=3)
    held = [q for q in every if split_of("data", (q, "1")) != "train"]
    with pytest.raises(UserError, match="all its questions fall into the fifth"):
        Questions("chain", "1", tokenizer, write(tmp_path / "held.jsonl", held))
    capsys.readouterr()
    Questions("chain", "1", tokenizer, data, machine=Machine(torch.device("cpu"), 1, 2))
    assert capsys.readouterr().out == ""  # rank 0 prints


@pytest.mark.parametrize("families, level, complaint", [
    ("percent,percent", "1", "--families percent,percent: percent is given twice"),
    ("percent,chain, percent", "1", "percent is given twice"),
    ("percent", "1,1", "given twice"),
    ("percent", "1,01", "given twice"),
])
def test_no_problem_is_measured_twice(families, level, complaint):
    with pytest.raises(UserError, match=complaint):
        Questions(families, level, tokenizer)


def test_blanks_around_names_do_not_count_and_generated_problems_left_out_are_counted(capsys):
    questions = Questions("percent, word", " 1 , 2", tokenizer)
    assert questions.families == ["percent", "word"] and questions.levels == (1, 2)
    whole = questions.held_out(20)
    questions.room = sorted(len(tokenizer.render_prompt(p.question)) for p in whole)[-4]
    short = questions.held_out(20)
    assert len(short) == 37 and len({p.key for p in whole}) == len(whole) == 40
    assert "3 of 40 problems of split val are left out: --max-reasoning-tokens leaves" in (
        capsys.readouterr().out)

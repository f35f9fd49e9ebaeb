"""sample.py: what it says and measures, what it refuses before it works, and on which terminal."""

import io
import json
import sys

import pytest
from conftest import make_stopping, make_tiny, tokenizer
from test_reward_model import make_reward_model

import sample
from nanoreason import checkpoint
from nanoreason.flags import parse_config, UserError
from nanoreason.machine import run_script
from nanoreason.reward_model import save_reward_model
from nanoreason.search import METHODS, Result
from nanoreason.tokenizer import Response


def configured(*words):
    return parse_config(sample.Config, list(map(str, words)), positional="question")


@pytest.fixture
def run(monkeypatch):
    """sample.py on some words, in this process."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, words)])
        run_script(sample.main)

    return run


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    """A tiny model of random weights, with a context of 128 tokens."""
    path = tmp_path_factory.mktemp("tiny") / "ckpt.pt"
    checkpoint.save(path, make_tiny(), step=0)
    return path


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


# One question


def result_of(*answers, chosen=0):
    responses = [Response("", answer, answer is not None) for answer in answers]
    return Result(answers[chosen], responses[chosen], responses, [], 5, 1e9)


@pytest.mark.parametrize(("result", "said"), [
    (result_of("7", "7.0", "8"), "2 of 3 responses agree"),
    (result_of("7", "7", "8", None, "7"), "3 of 5 responses agree, 1 gives no answer"),
    (result_of(None, "7", None, chosen=1), "1 of 3 responses agree, 2 give no answer"),
    (result_of(None, None, None, None), "4 of 4 responses give no answer"),
])
def test_agreement_counts_answers_and_says_how_many_gave_none(result, said, capsys):
    assert sample.agreement(result) == said
    sample.show("How many?", result)
    shown = capsys.readouterr().out
    assert said in shown
    assert ("No answer" in shown) == (result.answer is None)


@pytest.mark.parametrize("room", [1, 2, 3, 30])
@pytest.mark.parametrize("method", METHODS)
def test_a_question_that_nearly_fills_the_context_is_answered_in_what_is_left(
    method, room, tmp_path
):
    model = make_stopping(bias=3.0)
    question = "1" * (128 - room - len(tokenizer.render_prompt("")))
    plan = tmp_path / "plan.json"
    rows = [[0.001, "beam", 4], [2.0, "vote", 4]]
    plan.write_text(json.dumps(dict(kind="", aggregate="last", plans={"4": rows})))
    flags = f"--method {method} --n 4 --min-thinking 60 --max-thinking 20 --plan {plan}"
    result = sample.answer(model, configured(question, *flags.split()))
    assert result.responses and result.completion_tokens > 0
    assert result.answer is None or room > 2  # <|think|><|/think|>5<|end|>
    with pytest.raises(UserError, match="this model's context holds 128, answer included"):
        sample.answer(model, configured(question + "1" * room, *flags.split()))


@pytest.mark.parametrize("question", ["-5+3=?", "What is 15 − 3?", "5 × 3", "−5", "é"])
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_any_question_is_answered_on_any_terminal(
    question, encoding, run, ckpt, tmp_path, monkeypatch
):
    shown = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    run(question, "--ckpt", ckpt, "--max-reasoning-tokens", 4, "--json", tmp_path / "x.json")
    assert read(tmp_path / "x.json")["question"] == question
    shown.seek(0)
    said = shown.read()
    assert "GFLOP" in said
    assert question in said or encoding != "utf-8"


def test_help_fits_a_narrow_terminal(run, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    assert "--max-reasoning" in capsys.readouterr().out


# Mistakes, before any work


WRONG = [
    ("--ckpt {ckpt}", "give either a question"),
    ("{blank} --ckpt {ckpt}", "give either a question"),
    ("hello --ckpt {ckpt} --eval", "give either a question"),
    ("hello", "--ckpt is missing"),
    ("hello --ckpt {ckpt} --json {folder}", "is a folder; the name of a file is wanted"),
    ("hello --ckpt {ckpt} --json {folder}/new/x.json", "there is no such folder"),
    ("--eval --ckpt {ckpt} --json {folder}", "is a folder"),
    ("--eval --ckpt {ckpt} --cache {file}", "is no folder"),
    ("--eval --ckpt {ckpt} --cache {file}/below", "is no folder"),
    ("--eval --ckpt {ckpt} --families percent,poetry", "there is no family 'poetry'"),
    ("--eval --ckpt {ckpt} --families percent,percent", "percent is given twice"),
    ("--eval --ckpt {ckpt} --families percent,", "an item is empty"),
    ("--eval --ckpt {ckpt} --level 1,1", "1 is given twice"),
    ("--eval --ckpt {ckpt} --level 7", "levels are 1 to 6"),
    ("--eval --ckpt {ckpt} --level 1,", "an item is empty"),
    ("--eval --ckpt {ckpt} --ns 4,4", "4 is given twice"),
    ("--eval --ckpt {ckpt} --ns 0,4", "0 alone measures greedy only"),
    ("--eval --ckpt {ckpt} --ns -1", "numbers of samples are positive"),
    ("--eval --ckpt {ckpt} --split all", "--split all is for the rows of --data"),
]


@pytest.mark.parametrize(("flags", "complaint"), WRONG)
def test_mistakes_are_found_before_the_model_is_loaded(
    flags, complaint, run, ckpt, tmp_path, monkeypatch, capsys
):
    def too_late(*_):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(sample, "start_machine", too_late)
    (tmp_path / "file").touch()
    places = dict(ckpt=ckpt, folder=tmp_path, file=tmp_path / "file", blank=" ")
    with pytest.raises(SystemExit) as stop:
        run(*(word.format(**places) for word in flags.split()))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("reward_models", ["nowhere", "nowhere,nowhere", "nowhere,"])
def test_reward_models_are_read_before_anything_is_measured(
    reward_models, run, ckpt, monkeypatch, capsys
):
    monkeypatch.setattr(sample, "greedy_results", None)
    flags = "--eval --families chain --problems 2 --level 1 --cache="
    with pytest.raises(SystemExit) as stop:
        run(*flags.split(), "--ckpt", ckpt, "--reward-model", reward_models)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("short", [0, 1])
def test_a_reward_model_that_cannot_read_what_may_be_sampled_is_refused_before_it_is(
    short, run, ckpt, tmp_path, monkeypatch, capsys
):
    """It need not read the whole context of the model, but the longest question and response."""
    def begin(*_):
        raise UserError("the work has begun")

    monkeypatch.setattr(sample, "greedy_results", begin)
    rows = [{"question": "1" * n, "answer": "1"} for n in (3, 9)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt = len(tokenizer.render_prompt("1" * 9))
    for limit, room in ((20, prompt + 20), (400, 128)):
        save_reward_model(tmp_path / "orm.pt", make_reward_model("orm", max_len=room - short))
        words = f"--eval --split all --max-reasoning-tokens {limit} --cache=".split()
        words += ["--data", data, "--ckpt", ckpt, "--reward-model", tmp_path / "orm.pt"]
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 2
        refused = (f"reads {room - 1} tokens, fewer than the {room} that a question and its "
                   "response may take")
        assert (refused if short else "the work has begun") in capsys.readouterr().err


# What is measured


SMALL = "--eval --max-reasoning-tokens 4 --precision fp32 --cache="


def test_blanks_in_a_list_change_nothing(run, ckpt, tmp_path, capsys):
    tables = []
    for families, levels in (("percent,chain", "1,2"), ("percent, chain", " 1 , 2")):
        words = [*SMALL.split(), "--families", families, "--level", levels, "--problems", 4]
        run(*words, "--ns", "1, 2", "--ckpt", ckpt, "--json", tmp_path / "x.json")
        tables.append(capsys.readouterr().out)
        figures = read(tmp_path / "x.json")
        assert figures["greedy"]["n"] == figures["scaling"]["problems"] == 8
        assert figures["sampled"]["n"] == 16
    assert tables[0] == tables[1]
    assert tables[0].startswith("greedy accuracy, test split, levels 1, 2, 95% intervals\n")
    assert "n=8, 2 samples of each" in tables[0]


def intervals_of(figures):
    yield figures["greedy"]["ci"]
    yield figures["sampled"]["ci"]
    for rule in figures["scaling"]["rules"]:
        yield from figures["scaling"][f"{rule}_ci"]
    for family in figures["families"].values():
        yield family["ci"]


@pytest.mark.parametrize(("problems", "ns"), [(1, "1"), (1, "1,4"), (6, "1,4")])
def test_every_interval_has_width_where_nothing_is_right(problems, ns, run, ckpt, tmp_path):
    words = [*SMALL.split(), "--families", "chain", "--level", 1, "--problems", problems]
    run(*words, "--ns", ns, "--ckpt", ckpt, "--json", tmp_path / "x.json")
    figures = read(tmp_path / "x.json")
    assert figures["greedy"]["acc"] == figures["sampled"]["acc"] == 0
    found = list(intervals_of(figures))
    assert len(found) == 3 + 4 * len(ns.split(","))
    assert all(low == 0 and high > 0.3 for low, high in found)


def test_a_header_says_which_rows_of_a_file_were_measured(run, ckpt, tmp_path, capsys):
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(60)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    headers = {
        "test": "greedy accuracy, test split of mine.jsonl (10% kept from training), ",
        "val": "greedy accuracy, val split of mine.jsonl (10% kept from training), ",
        "all": "greedy accuracy, all rows of mine.jsonl, training rows among them, ",
    }
    counts = {}
    for split, header in headers.items():
        words = [*SMALL.split(), "--split", split, "--data", data, "--ns", 0]
        run(*words, "--ckpt", ckpt, "--json", tmp_path / "x.json")
        assert header in capsys.readouterr().out
        counts[split] = read(tmp_path / "x.json")["greedy"]["n"]
    assert counts["all"] == 60
    assert 0 < counts["test"] < 15 and 0 < counts["val"] < 15


def test_a_file_without_a_row_in_the_split_says_how_to_measure_it(run, ckpt, tmp_path, capsys):
    data = tmp_path / "mine.jsonl"
    data.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    for split in ("test", "val"):
        with pytest.raises(SystemExit) as stop:
            run(*SMALL.split(), "--split", split, "--data", data, "--ckpt", ckpt)
        assert stop.value.code == 2
        assert "--split all, which measures training questions too" in capsys.readouterr().err

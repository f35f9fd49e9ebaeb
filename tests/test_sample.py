"""sample.py: what it says and measures, what it refuses before it works, and on which terminal."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from conftest import make_stopping, make_tiny, tokenizer
from test_reward_model import make_reward_model

import sample
from nanoreason import checkpoint, pretrained
from nanoreason.chat import (
    agreement, BOLD, command_flags, converse, GREY, PLAIN, printable, Screen, Stream,
)
from nanoreason.flags import parse_config, UserError
from nanoreason.generate import make_sampler
from nanoreason.machine import run_script, start_machine
from nanoreason.pool import draw_pool
from nanoreason.reward_model import save_reward_model
from nanoreason.run import write_json
from nanoreason.search import CHOICES, METHODS, Result
from nanoreason.tasks import problem_set
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
    assert agreement(result) == said
    sample.show("How many?", result)
    shown = capsys.readouterr().out
    assert said in shown
    assert ("No answer" in shown) == (result.answer is None)


def test_a_response_is_printed_without_what_moves_a_cursor(capsys):
    response = Response("a\x1b[2J\nb\tc\u00a0d", "\x077", True)
    sample.show("How many?", Result("\x077", response, [response], [], 5, 2e9))
    assert capsys.readouterr().out == (
        "\nQuestion: How many?\n\n  a?[2J\n  b c d\n\nAnswer: ?7\n\n5 tokens, 2.00 GFLOP\n")


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
    ("{blank} --ckpt {ckpt}", "give either a question"),
    ("{blank} --ckpt {ckpt} --eval", "give either a question"),
    ("hello --ckpt {ckpt} --eval", "give either a question"),
    ("hello", "--ckpt is missing"),
    ("hello", "python -m nanoreason.speedrun trains one, then --ckpt runs/speedrun/final"),
    ("", "--ckpt is missing"),
    ("--ckpt {ckpt} --json x.json", "--json is for one question and for --eval"),
    ("hello --ckpt {ckpt} --no-think --method beam", "--no-think leaves none"),
    ("hello --ckpt {ckpt} --no-think --method dvts", "--no-think leaves none"),
    ("hello --ckpt {ckpt} --no-think --method budget", "--no-think leaves none"),
    ("hello --ckpt {ckpt} --no-think --method self-verify", "--no-think leaves none"),
    ("hello --ckpt {ckpt} --no-think --method auto", "greedy, sample, vote, best-of-n"),
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
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)  # where nothing ships
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
        assert (figures["ckpt"], figures["limit"]) == (str(ckpt), 4)
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


# Answering at once

BLOCK = [*tokenizer.empty_thinking]


@pytest.mark.parametrize("method", ["greedy", "sample", *CHOICES])
def test_without_thinking_each_response_begins_with_an_empty_block_of_its_own(method):
    model = make_sampler(make_stopping(bias=3.0), False, BLOCK)
    config = configured("Is 7 prime?", "--no-think", "--method", method, "--n", 6)
    result = sample.solve(model, None, config.question, config)
    assert len(result.responses) == (6 if method in CHOICES else 1)
    assert all(response.thinking == "" for response in result.responses)
    assert any(response.answer for response in result.responses)  # the format holds
    figures = sample.answer_figures(config.question, result, config)
    assert figures["think"] is False and figures["thinking"] == ""
    assert result.completion_tokens >= 3 * len(result.responses)


def test_samples_without_thinking_are_never_read_from_a_cache_of_others(tmp_path):
    problems = problem_set("chain", 1, "test", 3, 0)
    plain, direct = (make_sampler(make_stopping(), False, block) for block in ((), BLOCK))
    for _ in range(2):  # drawn, then read from the cache
        with_thinking = draw_pool(plain, problems, 2, 1.0, 8, 0, tmp_path)
        without = draw_pool(direct, problems, 2, 1.0, 8, 0, tmp_path)
        assert all(ids[:2] == BLOCK for own in without.ids for ids in own)
        assert not all(ids[:2] == BLOCK for own in with_thinking.ids for ids in own)
    assert len(list(tmp_path.iterdir())) == 2


def test_direct_answers_are_measured_by_family_and_level_with_their_tokens(
    run, ckpt, tmp_path, capsys
):
    words = [*SMALL.split(), "--no-think", "--families", "chain,percent", "--level", "1,2"]
    words += ["--problems", 4, "--ns", "1,3", "--ckpt", ckpt, "--json", tmp_path / "x.json"]
    run(*words)
    assert capsys.readouterr().out.startswith(
        "greedy accuracy, test split, levels 1, 2, answered at once, 95% intervals\n"
    )
    figures = read(tmp_path / "x.json")
    assert figures["think"] is False
    assert figures["behaviours"]["thinks"] == figures["sampled"]["behaviours"]["thinks"] == 0
    for family in ("chain", "percent"):
        for level in ("1", "2"):
            greedy = figures["families"][family]["levels"][level]
            sampled = figures["sampled"]["levels"][family][level]
            assert (greedy["n"], sampled["n"]) == (2, 6)
            assert 2 < greedy["mean_tokens"] <= 4 and 2 < sampled["mean_tokens"] <= 4
            low, high = sampled["ci"]
            assert low <= sampled["acc"] <= high


# The shipped model


def ship(monkeypatch, folder, **models):
    """Let `folder` be where the models ship that `models` names."""
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    hashes = {}
    for name, model in models.items():
        path = folder / f"{name.replace('_', '-')}.pt"
        checkpoint.save(path, model)
        hashes[path.name] = pretrained.describe(path.read_bytes())
    write_json(folder / "hashes.json", hashes)


def test_without_a_checkpoint_the_shipped_final_model_answers_and_one_line_says_so(
    run, tmp_path, monkeypatch, capsys
):
    ship(monkeypatch, tmp_path, final=make_tiny())
    run("Is 7 prime?", "--max-reasoning-tokens", 5)
    shown = capsys.readouterr()
    assert shown.err == (
        "sample.py: using the shipped final model (pretrained:final); --ckpt chooses another\n"
    )
    assert "Question: Is 7 prime?" in shown.out
    run("Is 7 prime?", "--max-reasoning-tokens", 5, "--ckpt", "pretrained:final")
    assert capsys.readouterr() == (shown.out, "")


# The chat


class Terminal(io.StringIO):
    """What a person sees."""

    def isatty(self):
        return True


def chatted(typed, *words, ckpt, terminal=None, environ={}, end=EOFError()):
    """What the chat shows where these lines are typed, and then Ctrl-D. An exception among them is
    what the terminal raises at that prompt."""
    terminal = terminal or Terminal()
    left = [*typed, end]

    def read(prompt):
        terminal.write(prompt)
        line = left.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    config = configured("--ckpt", ckpt, "--max-reasoning-tokens", 20, *words)
    sample.chat(config, start_machine("cpu"), read, Screen(terminal, environ))
    assert not left
    return terminal.getvalue()


@pytest.mark.parametrize(("line", "flags"), [
    ("/method vote 16", ["--method=vote", "--n=16"]),
    ("/method  greedy ", ["--method=greedy"]),
    ("/think off", ["--no-think"]),
    ("/think on", ["--think"]),
    ("/model r1-zero", ["--ckpt=pretrained:r1-zero"]),
    ("/model pretrained:r1", ["--ckpt=pretrained:r1"]),
    ("/model '{folder}/my model'", ["--ckpt={folder}/my model"]),
    ("/model {folder}/a\\b#c", ["--ckpt={folder}/a\\b#c"]),  # as of Windows, and no comment
    ("/model ~", [f"--ckpt={Path.home()}"]),
    ("/temperature 0.7", ["--temperature=0.7"]),
])
def test_commands_stand_for_flags(line, flags, tmp_path):
    (tmp_path / "my model").mkdir()
    (tmp_path / "a\\b#c").touch()
    found = command_flags(line.format(folder=tmp_path))
    assert found == [flag.format(folder=tmp_path) for flag in flags]


@pytest.mark.parametrize(("line", "complaint"), [
    ("/", "there is no command /; /help lists them"),
    ("/metod vote", "there is no command /metod"),
    ("/method", "use it as /method NAME [N]"),
    ("/method auto", "--method auto needs a --plan"),
    ("/help me", "use it as /help"),
    ("/method poetry", "invalid choice: 'poetry'"),
    ("/method vote many", "invalid int value: 'many'"),
    ("/method vote 0", "--n is 0; it must be at least 1"),
    ("/method beam", "--no-think leaves none"),
    ("/think maybe", "use it as /think on or off"),
    ("/temperature hot", "invalid float value: 'hot'"),
    ("/temperature -1", "--temperature is -1.0; it must be at least 0.01"),
    ("/model r9", "there is no model r9"),
    ("/model " + "r" * 300, "there is no model rrr"),  # longer than a name may be
    ("/model --help", "there is no model --help"),
    ("/model pretrained:r9", "there is no shipped model 'r9'; there are base, r1-zero"),
    ("/model 'r1", "No closing quotation"),
])
def test_a_command_that_is_wrong_is_one_line_and_changes_nothing(line, complaint, ckpt):
    words = [] if line == "/method auto" else ["--no-think"]
    shown = chatted([line, "/think off"], *words, ckpt=ckpt, environ={"NO_COLOR": "1"})
    _, said, state, end = shown.split("\n> ")
    assert complaint in said and "\n" not in said
    assert state == f"{ckpt} (0.04M parameters), greedy (no temperature), answers at once"
    assert end == "\n"


@pytest.mark.parametrize("end", ["/quit", " /exit ", "\x04"])
def test_a_word_ends_the_chat_as_well(end, ckpt):
    shown = chatted(["/temperature 0.7"], ckpt=ckpt, environ={"NO_COLOR": "1"}, end=end)
    assert "/help lists commands, Ctrl-D or /quit ends.\n> " in shown
    assert shown.endswith("greedy (no temperature), thinks\n> ")


def test_a_file_that_cannot_be_read_is_one_line_and_a_lost_terminal_ends_the_chat():
    screen = Screen(Terminal(), {"NO_COLOR": "1"})
    lines = ["/think off", "7?", "/think on", "/quit"]

    def obey(line):
        if line == "/think on":
            raise BrokenPipeError
        raise PermissionError(13, "Permission denied", "x.pt")

    with pytest.raises(BrokenPipeError):
        converse(lambda _: lines.pop(0), screen, obey, screen.say)
    assert screen.out.getvalue() == "[Errno 13] Permission denied: 'x.pt'\n7?\n"
    assert lines == ["/quit"]


def test_a_question_that_is_typed_on_an_ascii_terminal_is_read_as_utf8(ckpt, monkeypatch):
    asked = []
    monkeypatch.setattr(sample.Session, "answer", lambda _, question: asked.append(question))
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    hidden = "847 × 293".encode().decode("ascii", "surrogateescape")
    shown = chatted([hidden, "a\udcff"], ckpt=ckpt, environ={"NO_COLOR": "1"})
    assert asked == ["847 × 293"]
    assert "> the question is no text in UTF-8\n> " in shown


@pytest.mark.parametrize(("opening", "bias"), [((), -9.0), (BLOCK, 3.0)])
def test_the_chat_streams_grey_thinking_and_a_bold_answer_that_are_those_of_greedy(opening, bias):
    model = make_sampler(make_stopping(bias=bias), False, opening)
    question = "Is 7 prime?"
    config = configured(question, "--max-reasoning-tokens", 20)
    response = sample.solve(model, None, question, config).response
    screen = Screen(Terminal(), {})
    tokens = sample.stream(model, question, config, screen)
    shown = screen.out.getvalue()
    assert GREY in shown and (response.steps or opening)
    assert opening == () or f"{BOLD}Answer: {PLAIN}{BOLD}" in shown and response.answer
    for code in (GREY, BOLD, PLAIN):
        shown = shown.replace(code, "")
    thinking, _, answer = shown.partition("\n\n")
    said = response.steps or ["(answered at once, without thinking)"]
    assert [line.strip() for line in thinking.split("\n") if line.strip()] == [
        printable(step).strip() for step in said
    ]
    assert 0 < tokens <= 20
    assert ("No answer" in answer) == (response.answer is None)
    assert response.answer is None or f"Answer: {printable(response.answer)}" in answer


def streamed(ids, environ={}, terminal=None):
    """What a Stream shows of a response."""
    screen = Screen(terminal or Terminal(), environ)
    stream = Stream(screen, tokenizer)
    for token in ids:
        stream.add(token)
    stream.end(tokenizer.parse_response(ids))
    return screen.out.getvalue()


def test_a_response_is_shown_in_styles_and_without_them_where_they_are_not_wanted():
    ids = tokenizer.render_response("1 + 2 = 3\n3 + 4 = 7", "7")
    plain = "  1 + 2 = 3\n  3 + 4 = 7\n\nAnswer: 7\n"
    assert streamed(ids, {"NO_COLOR": "1"}) == plain
    assert streamed(ids, {"TERM": "dumb"}) == plain
    assert streamed(ids, terminal=io.StringIO()) == plain  # no terminal
    styled = streamed(ids, {"NO_COLOR": ""})
    assert styled.startswith(f"{GREY}  1{PLAIN}") and f"{BOLD}Answer: {PLAIN}{BOLD}7" in styled
    for code in (GREY, BOLD, PLAIN):
        styled = styled.replace(code, "")
    assert styled == plain


@pytest.mark.parametrize(("ids", "shown"), [
    ([*BLOCK, *tokenizer.encode("7"), tokenizer.end],
     "  (answered at once, without thinking)\n\nAnswer: 7\n"),
    ([tokenizer.think, *tokenizer.encode("1 + 1")],
     "  1 + 1\n\nNo answer: the response was cut off or broke the format.\n"),
    ([*tokenizer.encode("7"), tokenizer.end],
     "  7\n\nNo answer: the response was cut off or broke the format.\n"),
    (tokenizer.render_response("山 × é", "山"), "  山 × é\n\nAnswer: 山\n"),
    (tokenizer.render_response("a\x1b[2J\rb", "\x07c"), "  a?[2J?b\n\nAnswer: ?c\n"),
])
def test_a_stream_shows_whole_characters_and_nothing_that_moves_the_cursor(ids, shown):
    assert streamed(ids, {"NO_COLOR": "1"}) == shown


def test_a_terminal_without_utf8_gets_signs_in_ascii(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    run_script(lambda: None)  # as a script's first lines: no character is an error
    screen = Screen(shown, {})
    screen.say("2 × 3 − 1")
    shown.seek(0)
    assert shown.read() == "2 * 3 - 1\n"


def test_the_chat_answers_each_question_on_its_own_with_other_samples_each_time(ckpt):
    plain = {"NO_COLOR": "1"}
    typed = ["/method sample", "Is 7 prime?", "Is 7 prime?", "", "/method greedy", "Is 7 prime?"]
    shown = chatted([*typed, "Is 7 prime?"], ckpt=ckpt, environ=plain)
    _, _, first, second, _, third, fourth, _ = shown.split("\n> ")
    without_time = [text.rsplit(",", 1)[0] for text in (first, second, third, fourth)]
    assert without_time[0] != without_time[1] and without_time[2] == without_time[3]
    again = chatted([*typed, "Is 7 prime?"], ckpt=ckpt, environ=plain)
    assert without_time[0] in again and without_time[1] in again  # the seed's own


def test_a_vote_in_the_chat_says_what_it_does_and_how_many_agree(ckpt):
    typed = ["/method vote 5", "Is 7 prime?", "1" * 200, "/think off", "Is 7 prime?", "/help"]
    shown = chatted(typed, ckpt=ckpt, environ={"NO_COLOR": "1"})
    assert "vote 5 at temperature 1, thinks" in shown
    assert shown.count("  vote, n = 5 ...") == 3
    assert shown.count("of 5 responses") >= 2
    assert "this model's context holds 128, answer included" in shown
    assert "(answered at once, without thinking)" in shown.split("answers at once\n")[1]
    assert "  /quit             end the chat, as Ctrl-D does; Ctrl-C stops an answer\n" in shown


def test_another_model_answers_once_it_is_named(ckpt, tmp_path, monkeypatch):
    ship(monkeypatch, tmp_path, r1_zero=make_tiny(), r1=make_tiny(seed=1))
    typed = ["/model r1-zero", "/model r1", "/model base", f"/model {ckpt}"]
    states = chatted(typed, ckpt=ckpt, environ={"NO_COLOR": "1"}).split("\n> ")
    assert "pretrained:r1-zero (0.04M" in states[1] and "pretrained:r1 (" in states[2]
    assert "base.pt is no shipped model: hashes.json does not name it" in states[3]
    assert f"{ckpt} (0.04M" in states[4]


def test_ctrl_c_stops_an_answer_and_clears_a_line_and_the_chat_goes_on(ckpt, monkeypatch):
    calls = []

    def interrupted(*_, on_token, **__):
        calls.append(on_token(tokenizer.encode("4")[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "generate", interrupted)
    typed = ["Is 7 prime?", KeyboardInterrupt(), "Is 7 prime?"]
    shown = chatted(typed, ckpt=ckpt, environ={"NO_COLOR": "1"})
    assert shown.endswith("> " + "  4\nstopped\n> \n> " + "  4\nstopped\n> \n")
    assert len(calls) == 2


def test_on_a_terminal_without_a_question_the_chat_begins(run, ckpt, monkeypatch):
    begun = []
    typing = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(typing, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", typing)
    monkeypatch.setattr(sample, "chat", lambda config, *_: begun.append(config.ckpt))
    monkeypatch.setattr("nanoreason.chat.with_history", lambda: None)
    run("--ckpt", ckpt)
    assert begun == [str(ckpt)] and typing.errors == "surrogateescape"


# JSON lines


def test_in_a_pipe_each_line_is_a_question_and_becomes_a_line_of_json(
    run, ckpt, monkeypatch, capsys
):
    words = "--max-reasoning-tokens 9 --method sample --precision fp32".split()
    asked = ["Is 7 prime?", "What is 2 × 3?", "1" * 200, "Is 9 prime?"]
    lines = ["\ufeff" + asked[0], "", asked[1], "   ", asked[2], asked[3]]
    text = "\n".join(lines).encode() + b"\r\nwhat \xff?"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), "ascii"))
    with pytest.raises(SystemExit) as stop:
        run("--ckpt", ckpt, *words)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.err == (
        "sample.py: reading questions from stdin, one a line\n"
        "sample.py: 2 of 5 questions could not be answered\n"
    )
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [row["question"] for row in rows] == [*asked, "what \ufffd?"]
    assert "this model's context holds 128" in rows[2]["error"]
    assert rows[4]["error"] == "the line is no text in UTF-8"
    model = make_sampler(make_tiny(), False)
    for row in (rows[0], rows[1], rows[3]):
        config = configured(row["question"], *words)
        result = sample.solve(model, None, row["question"], config)
        assert row == sample.answer_figures(row["question"], result, config)


def test_each_line_is_answered_before_the_next_is_read(ckpt):
    out = io.StringIO()

    def lines():
        for i in range(3):
            assert out.getvalue().count("\n") == i
            yield b"Is 7 prime?\n"

    config = configured("--ckpt", ckpt, "--max-reasoning-tokens", 2)
    sample.answer_lines(config, start_machine("cpu"), lines(), out)
    assert out.getvalue().count("\n") == 3


@pytest.mark.parametrize("stdin", [None, io.TextIOWrapper(io.BytesIO(b"\n \n"))])
def test_without_any_question_one_line_says_so(stdin, run, ckpt, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", stdin)
    run("--ckpt", ckpt)
    shown = capsys.readouterr()
    assert shown.out == ""
    *before, said = shown.err.splitlines()
    assert said == "sample.py: no question: give one, or one per line on stdin"
    assert before == ["sample.py: reading questions from stdin, one a line"] * (stdin is not None)

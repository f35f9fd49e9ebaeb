"""Flags from a dataclass: types, limits, presets, what a choice brings, and old names."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import sample
import train_grpo
import train_sft
from nanoreason.flags import (
    as_utf8, check_output, flag, flag_of, listed, parse_config, RENAMED, UserError, whole_numbers,
)
from nanoreason.machine import run_script
from nanoreason.studies import compute, reward_models


@dataclass
class Config:
    question: str = flag("", "a question of 100% sense")
    num_steps: int = flag(10, "steps", low=1, high=1000)
    clip_ratio: float = flag(0.2, "epsilon", low=0, high=1)
    temperature: float = flag(1.0, "temperature", low=0.01)
    kind: str = flag("a", "kind", choices=("a", "b"))
    quick: bool = flag(False, "be quick")
    bias: float = flag(0.0, "a number of either sign, without limits")
    out: str = flag("", "a folder")


PRESETS = {"laptop": {}, "gpu": dict(num_steps=500, kind="b", quick=True)}


def test_a_field_and_its_flag():
    assert flag_of("max_steps") == "--max-steps"
    assert flag_of("from_") == "--from"


def parsed(text, **kwargs):
    return parse_config(Config, text.split(), **kwargs)


def test_fields_become_kebab_case_flags_of_their_type():
    config = parsed("--num-steps 7 --clip-ratio 0.5 --kind b --quick")
    assert config == Config(num_steps=7, clip_ratio=0.5, kind="b", quick=True)
    assert type(config.num_steps) is int
    assert parsed("") == Config()
    assert parsed("--no-quick") == Config()
    assert parsed("--clip-ratio=1") == Config(clip_ratio=1.0)
    asked = parse_config(Config, ["What is 1 + 1?", "--quick"], positional="question")
    assert asked == Config(question="What is 1 + 1?", quick=True)


WRONG = [
    "--steps 3",
    "--num_steps 3",
    "--num-step 3",
    "--num-steps",
    "--num-steps x",
    "--num-steps 1.5",
    "--num-steps 0",
    "--num-steps 1001",
    "--clip-ratio 1.1",
    "--clip-ratio -0.1",
    "--clip-ratio nan",
    "--clip-ratio inf",
    "--temperature 0",
    "--temperature nan",
    "--temperature inf",
    "--bias inf",
    "--bias -inf",
    "--bias nan",
    "--bias",
    "-x",
    "--kind c",
    "stray",
    "--quick yes",
    "--preset gpu",
]


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_right_is_a_user_error(text):
    with pytest.raises(UserError):
        parsed(text)


def test_errors_name_the_flag_and_its_limits():
    with pytest.raises(UserError, match="--num-steps is 0; it must be at least 1 and at most 1000"):
        parsed("--num-steps 0")
    with pytest.raises(UserError, match="--kind"):
        parsed("--kind c")


@pytest.mark.parametrize("question", ["-5+3=?", "-5 + 3", "-x", "--5=?", "-", "−5", "5", "--n 4"])
def test_a_question_may_begin_with_a_dash(question):
    """What has two dashes and a letter is a flag, unless a blank is in it."""
    for words in ([question, "--quick"], ["--quick", question], ["--num-steps", "10", question]):
        config = parse_config(Config, [*words, "--kind", "a"], positional="question")
        assert config.question == question, words
    assert parse_config(Config, ["--", question], positional="question").question == question


def test_the_value_of_a_flag_may_begin_with_a_dash():
    """The worked example."""
    words = ["-5+3=?", "--num-steps", "4", "--bias", "-1e-3", "--quick"]
    config = parse_config(Config, words, positional="question")
    assert config == Config(question="-5+3=?", num_steps=4, bias=-1e-3, quick=True)
    assert parsed("--bias -1").bias == -1 and parsed("--bias=-.5").bias == -0.5
    for text in ("-5 --quick", "--quick -5", "--no-quick -5", "--bias 1 -5"):
        with pytest.raises(UserError, match="-5"):
            parsed(text)  # without a question to ask, -5 is a mistake


def test_a_question_is_read_as_utf8_where_the_locale_is_ascii(monkeypatch):
    hidden = "5 × 3".encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    for given in (hidden, "5 × 3"):
        assert parse_config(Config, [given], positional="question").question == "5 × 3"
    assert parse_config(Config, ["--out", hidden]).out == hidden  # so it is found again
    assert as_utf8(hidden) == "5 × 3"
    with pytest.raises(UserError, match="no text in UTF-8"):
        parse_config(Config, [b"\xff".decode("ascii", "surrogateescape")], positional="question")


def test_a_tilde_is_the_home_folder_however_it_is_given():
    for text in ("--out ~/a", "--out=~/a"):
        assert parsed(text).out == str(Path.home() / "a")
    assert parsed("--out ~/a,b,~/c").out == f"{Path.home()}/a,b,{Path.home()}/c"
    assert parsed("--out a~/b").out == "a~/b"


# Lists


def test_lists_are_read_in_one_way():
    assert listed("percent, chain", "families") == ["percent", "chain"]
    assert listed(" a ", "rows", ["a"]) == ["a"]
    assert whole_numbers("1, 4,16", "ns") == [1, 4, 16]


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "an item is empty"),
    ("a,", "an item is empty"),
    ("a,,b", "an item is empty"),
    ("a,b, a", "a is given twice"),
    ("a,c", "there is no letter 'c'; there are a, b"),
])
def test_a_list_with_a_mistake_is_refused(text, complaint):
    with pytest.raises(UserError, match=f"^--letters.*{complaint}"):
        listed(text, "letters", ["a", "b"], "letter")


@pytest.mark.parametrize("text", ["", "1,", "1,one", "1,1", "1,01", "1.5", "1 2"])
def test_a_list_of_numbers_with_a_mistake_is_refused(text):
    with pytest.raises(UserError, match="^--ns"):
        whole_numbers(text, "ns")


# Outputs


def test_places_to_write_to_are_checked_and_nothing_is_left_there(tmp_path):
    (tmp_path / "file").write_text("kept")
    check_output("", "json")
    check_output("", "cache", folder=True)
    for path in ("new.json", "file"):
        check_output(tmp_path / path, "json")
    for path in ("", "new", "new/below"):
        check_output(tmp_path / path, "cache", folder=True)
    wrong = [
        ("", False, "is a folder; the name of a file"),
        ("new/x.json", False, "there is no such folder"),
        ("file/x.json", False, "file is no folder"),
        ("file", True, "file is no folder"),
        ("file/below", True, "file is no folder"),
    ]
    for path, folder, complaint in wrong:
        with pytest.raises(UserError, match=complaint):
            check_output(tmp_path / path, "json", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder where nobody can write")
def test_places_where_nobody_can_write_are_refused(monkeypatch):
    for path, folder in (("/proc/x.json", False), ("/proc/cache", True), ("/proc", True)):
        with pytest.raises(UserError, match=f"--out {path} cannot be written: "):
            check_output(path, "out", folder)
    monkeypatch.chdir("/proc")
    for path, folder in (("x.json", False), ("runs/cache", True)):
        with pytest.raises(UserError, match="cannot be written"):
            check_output(path, "out", folder)


# Presets


def test_flags_win_over_the_preset_wherever_they_stand():
    assert parsed("--preset gpu", presets=PRESETS) == Config(num_steps=500, kind="b", quick=True)
    mixed = parsed("--num-steps 3 --preset gpu --no-quick", presets=PRESETS)
    assert mixed == Config(num_steps=3, kind="b", quick=False)
    # the default's own value, given on purpose
    assert parsed("--preset gpu --num-steps 10", presets=PRESETS).num_steps == 10
    with pytest.raises(UserError):
        parsed("--preset moon", presets=PRESETS)


BRINGS = {
    "kind": {"a": dict(num_steps=11, clip_ratio=0.1), "b": dict(num_steps=22)},
    "quick": {True: dict(temperature=2.0), False: {}},
}


def test_a_choice_brings_its_values_and_flags_win_over_them_wherever_they_stand():
    def read(text):
        return parsed(text, brings=BRINGS)

    assert read("--kind b") == Config(kind="b", num_steps=22)
    # the default, chosen on purpose
    assert read("--kind a") == Config(kind="a", num_steps=11, clip_ratio=0.1)
    assert read("") == Config()  # not chosen: nothing comes with it
    three = Config(kind="a", num_steps=3, clip_ratio=0.1)
    assert read("--kind a --num-steps 3") == read("--num-steps 3 --kind a") == three
    # the default's own value, given on purpose
    assert read("--kind a --num-steps 10").num_steps == 10
    both = Config(quick=True, kind="b", num_steps=22, temperature=2.0)
    assert read("--quick --kind b") == both
    assert parsed("--kind a", brings={}) == parsed("--kind a", brings=None) == Config()


def test_what_a_choice_brings_wins_over_the_preset_whose_own_choice_brings_nothing():
    presets = {"gpu": dict(num_steps=500, clip_ratio=0.9), "chooser": dict(kind="b")}

    def read(text):
        return parsed(text, presets=presets, brings=BRINGS)

    assert read("--preset gpu") == Config(num_steps=500, clip_ratio=0.9)
    assert read("--preset gpu --kind b") == Config(kind="b", num_steps=22, clip_ratio=0.9)
    assert read("--kind a --preset gpu") == Config(kind="a", num_steps=11, clip_ratio=0.1)
    clipped = Config(kind="a", num_steps=11, clip_ratio=0.3)
    assert read("--preset gpu --kind a --clip-ratio 0.3") == clipped
    assert read("--preset chooser") == Config(kind="b")
    assert read("--preset chooser --kind b") == Config(kind="b", num_steps=22)


def test_what_a_choice_brings_is_held_against_the_limits():
    with pytest.raises(UserError, match="--num-steps is 0"):
        parsed("--kind b", brings={"kind": {"a": {}, "b": dict(num_steps=0)}})


PAPERS = {  # loss: its advantage, clip_ratio and clip_high
    "grpo": ["mean-std", 0.2, -1.0],
    "dr-grpo": ["mean", 0.2, -1.0],
    "dapo": ["mean-std", 0.2, 0.28],
    "gspo": ["mean-std", 3e-4, 4e-4],
    "cispo": ["mean-std", 0.0, 4.0],
}


def test_each_loss_brings_its_papers_advantage_and_clip():
    def parse(text):
        brings = {"loss": train_grpo.PAPERS}
        words = text.split()
        return parse_config(train_grpo.Config, words, presets=train_grpo.PRESETS, brings=brings)

    def read(text):
        config = parse(text)
        return [config.loss, config.advantage, config.clip_ratio, config.clip_high]

    for loss, values in PAPERS.items():
        assert read(f"--loss {loss}") == [loss, *values]
    assert read("") == ["grpo", "mean-std", 0.2, -1.0]
    assert read("--clip-ratio 0") == ["grpo", "mean-std", 0.0, -1.0]
    assert read("--loss dapo --clip-high 0.5 --advantage mean") == ["dapo", "mean", 0.2, 0.5]
    r1 = "--preset deepseek-r1 --loss gspo"
    assert read(r1) == ["gspo", "mean-std", 3e-4, 4e-4]
    assert parse(r1).learning_rate == 1e-6


@pytest.mark.parametrize("script", [train_sft, train_grpo, sample])
def test_every_script_has_help_and_defaults_and_presets_that_pass_their_own_limits(script, capsys):
    presets = getattr(script, "PRESETS", None)
    for name in presets or ():
        parse_config(script.Config, ["--preset", name], presets=presets)
        assert set(presets[name]) <= set(script.Config.__dataclass_fields__)
    parse_config(script.Config, [])
    with pytest.raises(SystemExit) as stop:
        parse_config(script.Config, ["--help"], presets=presets, doc=script.__doc__)
    assert stop.value.code == 0
    assert "--device" in capsys.readouterr().out


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_flag_name_ends_in_one_line_that_names_the_new_one(old, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])
    for words in ([old, "x"], [f"{old}=x"], ["--quick", old, "x"]):
        with pytest.raises(SystemExit) as stop:
            run_script(lambda words=words: parse_config(Config, words))
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"train.py: {old} is called {RENAMED[old]} now\n"


def test_the_new_name_of_an_old_flag_exists():
    taken = set()
    for script in (sample, train_grpo, compute, reward_models):
        for field in script.Config.__dataclass_fields__:
            taken.add("--" + field.replace("_", "-"))
    assert set(RENAMED.values()) <= taken
    assert RENAMED["--verifier"] == "--reward-model"
    assert not set(RENAMED) & taken

"""The study of thinking against answering at once: forced answers, levels, gains, and the whole."""

import json

import numpy as np
import pytest
from conftest import END_THINK, THINK, make_stopping, make_tiny, parse_response, render_prompt
from test_reward_model import make_reward_model

from nanoreason import checkpoint
from nanoreason.evaluate import interval_of_mean, wilson
from nanoreason.flags import UserError
from nanoreason.generate import generate, opening_of
from nanoreason.reward_model import save_reward_model
from nanoreason.rewards import outcome_reward
from nanoreason.run import write_json
from nanoreason.studies import thinking as study
from nanoreason.studies.samples import Setup
from nanoreason.studies.thinking import Answers, Config
from nanoreason.tasks import CONTROLS, REASONING, make_problem

SUMS = [
    make_problem("addition", 1, (2, 3), None, "What is 2 + 3?"),
    make_problem("addition", 2, (20, 3), None, "What is 20 + 3?"),
]


def test_a_direct_answer_stands_behind_an_empty_think_block(config):
    model = make_stopping()
    prompts = [[*render_prompt(problem.question), THINK, END_THINK] for problem in SUMS]
    alone = generate(model, prompts, 1, 64, 0.0)
    found = study.at_once(model, SUMS, config)
    assert found.tokens.tolist() == (alone.lengths + 2).tolist()  # the block counts
    assert found.ended.tolist() == alone.ended.tolist()
    assert not found.thinks.any() and not opening_of(model)
    answers = [parse_response([THINK, END_THINK, *alone.response(row)]) for row in range(2)]
    right = [outcome_reward(problem, answer) for problem, answer in zip(SUMS, answers)]
    assert found.right.tolist() == right


def test_a_response_that_the_limit_cuts_off_is_told_from_one_that_ends(config):
    config.max_reasoning_tokens = 1
    found = study.with_thinking(make_stopping(bias=-9.0), SUMS, config)
    assert found.ended.tolist() == [False, False] and found.tokens.tolist() == [1, 1]


def test_a_level_is_chosen_that_is_neither_too_easy_nor_too_hard():
    assert study.choose_level({1: 1.0, 2: 0.9, 3: 0.5, 4: 0.1}) == 3
    assert study.choose_level({1: 1.0, 2: 0.99}) == 2
    assert study.choose_level({1: 0.96, 2: 0.97, 3: 0.2}) == 1  # both bounds are excluded
    assert study.choose_level({1: 0.1, 2: 0.0}) == 1  # all too hard: the least so
    assert study.choose_level({1: 1.0, 2: 0.1}) == 1
    assert study.choose_level({1: 0.0, 2: 0.0}) == 2


def test_a_gain_is_paired():
    found = study.gain([True, True, False, False], [False, True, False, False])
    assert found == dict(gain=0.25, ci=interval_of_mean([1, 0, 0, 0], low=-1.0, high=1.0))
    assert study.points(dict(gain=0.5, ci=[0.4, 0.6])) == "+50.0 [+40.0, +60.0]"


def answers(right, tokens=9, thinks=True):
    n = len(right)
    ended = np.arange(n) > 0  # all but the first
    return Answers(np.array(right, bool), np.full(n, tokens), np.full(n, thinks), ended)


def problems_of(*asked):
    """Problems of (family, level), as far as reports look at them."""
    return [study.held_out_problems([family], [level], 1)[0] for family, level in asked]


def test_ways_to_answer_are_compared_by_family_and_by_level():
    problems = problems_of(("chain", 1), ("chain", 2), ("percent", 2), ("qa", 2))
    ways = dict(thinking=answers([1, 1, 1, 0]), direct=answers([1, 0, 0, 1], 4, False))
    report = study.families_and_levels(ways, problems)
    chain = report["cells"]["chain"]
    assert chain["all"]["ways"]["direct"]["acc"] == 0.5 and chain["all"]["n"] == 2
    assert chain["all"]["ways"]["direct"]["ci"] == [round(end, 4) for end in wilson(1, 2)]
    assert chain[2]["gains"]["direct"]["gain"] == 1.0 and list(chain) == ["all", 1, 2]
    assert report["cells"]["qa"]["all"]["gains"]["direct"]["gain"] == -1.0
    assert report["levels"][2]["n"] == 2  # the control does not count
    assert report["reasoning"]["ways"]["thinking"] == dict(
        acc=1.0, n=3, ci=[round(end, 4) for end in wilson(3, 3)], tokens=9.0, cut=0.3333)
    assert report["reasoning"]["thinks"]["acc"] == 1.0


def test_types_of_task_pool_their_families_and_say_what_cannot_be_checked():
    problems = problems_of(("chain", 1), ("equation", 1), ("multiplication", 1), ("fact", 1))
    ways = dict(thinking=answers([1, 0, 1, 1]), direct=answers([0, 0, 0, 1]))
    accuracies = dict(vote=np.array([1.0, 0.5, 1.0, 0.0]))
    found = study.task_figures(problems, ways, accuracies)
    steps = found["multi-step reasoning"]
    assert steps["n"] == 3 and steps["gains"]["thinking"]["gain"] == 0.6667
    assert steps["gains"]["vote"]["gain"] == 0.1667  # over greedy thinking
    assert found["factual recall"]["gains"]["vote"]["gain"] == -1.0
    assert set(found["creative writing"]) == {"published", "source"}
    assert list(found) == list(study.TASKS)


@pytest.fixture
def config(tmp_path):
    """The study of models of milliseconds, saved where the flags say."""
    (tmp_path / "direct").mkdir()
    for name, seed in (("ckpt", 0), ("direct/ckpt", 1)):
        checkpoint.save(tmp_path / f"{name}.pt", make_tiny(seed=seed, max_len=256))
    write_json(tmp_path / "direct" / "config.json", dict(stage="base", init=""))
    write_json(tmp_path / "direct" / "report.json", dict(real_share=0.9))
    (tmp_path / "direct" / "metrics.jsonl").write_text('{"step": 9, "tokens": 1000}\n')
    checkpoint.save(tmp_path / "small.pt", make_tiny(n_layer=1, max_len=256))
    for kind in ("orm", "prm"):
        save_reward_model(tmp_path / f"{kind}.pt", make_reward_model(kind, max_len=256))
    return Config(
        ckpt=str(tmp_path / "ckpt.pt"), direct=str(tmp_path / "direct"),
        reward_model=f"{tmp_path}/orm.pt,{tmp_path}/prm.pt", out=str(tmp_path / "out"),
        cache="", problems=1, task_problems=3, samples=2, max_reasoning_tokens=3)


def test_the_whole_study_leaves_tables_a_figure_and_their_numbers(config, tmp_path, monkeypatch):
    small = dict(VALIDATION=3, DIRECT_TOKENS=4, LEVELS=(1, 2), HELD_OUT_LEVEL=3)
    for name, value in small.items():
        monkeypatch.setattr(study, name, value)
    report = json.loads(json.dumps(study.thinking(config, Setup(config))))
    assert list(report["cells"]) == [*REASONING, *CONTROLS]
    assert report["reasoning"]["n"] == 2 * len(REASONING)
    assert list(report["reasoning"]["ways"]) == ["thinking", "direct", "direct-only"]
    assert report["chosen"]["fact"]["levels"] == [1, 2]
    assert list(report["chosen"]["chain"]["validation"]) == list("123")
    gains = report["tasks"]["multi-step reasoning"]["gains"]
    assert list(gains) == ["thinking", "sample", "vote", "orm", "prm"]

    assert (report["tokens"], report["direct_tokens"]) == (None, 900)
    text = study.thinking_markdown(report)
    assert f"{config.ckpt} was trained on an unknown number of tokens, the model" in text
    assert "on direct answers only on 900." in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len({line.count("|") for line in table}) for table in tables] == [1] * 4
    assert "| creative writing | low (2) | none: no checker here |" in text
    assert "| multi-step reasoning | high (1) | chain 3, equation 3, multiplication 3 | 3 |" in text
    figure = study.thinking_figure(report, tmp_path / "thinking.png")
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_models_that_cannot_be_compared_are_refused(config, tmp_path, capsys):
    setup = Setup(config)
    model = setup.model(config.ckpt)
    config.direct = str(tmp_path / "small.pt")
    with pytest.raises(UserError, match="models of equal size are compared"):
        study.direct_only(config, setup, model)
    config.reward_model = f"{tmp_path}/orm.pt,{tmp_path}/./orm.pt"
    with pytest.raises(UserError, match="at most one ORM and one PRM"):
        study.choosers(config, model)
    config.direct = ""
    assert study.direct_only(config, setup, model) is None
    assert "train_sft.py --stage base --styles direct" in capsys.readouterr().out

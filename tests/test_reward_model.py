"""Reward models against one forward pass per response, and what GRPO learns from: rewarded groups,
with a reward model and without, by hand."""

import json
import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    END, END_THINK, PAD, THINK, decode, encode, make_tiny, render_prompt, render_response,
    tokenizer,
)
from torch import nn

import train_grpo
from nanoreason import checkpoint, experience, reward_model
from nanoreason.experience import join, reward_responses, rollout_metrics, sequence_kl
from nanoreason.flags import UserError
from nanoreason.generate import Rollout
from nanoreason.machine import Machine, generator
from nanoreason.model import GPTConfig
from nanoreason.reward_model import RewardModel, load_reward_model, save_reward_model, scores
from nanoreason.rewards import RewardConfig
from nanoreason.tasks import demo_problems, make_problem, user_problem

MACHINE = Machine(torch.device("cpu"))


def make_reward_model(kind, seed=0, **shape):
    """A reward model on the tiny GPT, whose scores are far from one half."""
    gpt = make_tiny(seed=seed, **shape)
    made = RewardModel(gpt.config, kind, gpt.tokenizer)
    made.gpt.load_state_dict(gpt.state_dict())
    nn.init.normal_(made.score.weight, 0.0, 0.2, generator=generator(seed, "score"))
    nn.init.constant_(made.score.bias, 0.3)
    return made.eval()


def random_ids(n, seed):
    return torch.randint(0, 506, (n,), generator=generator(seed, "ids")).tolist()


STEPS = "8 + 5 = 13\n\n13 * 3 = 39"
RESPONSES = [
    render_response(STEPS, "39"),
    [END],
    render_response("", "39"),
    [THINK, *encode(STEPS)],
    [THINK, *encode("1\n2\n")],
    *(random_ids(n, n) for n in (1, 30, 7, 90)),
    render_response("1\n2\n3", "4"),
]
# line break and closing tag of STEPS
FIRST = 1 + len(encode("8 + 5 = 13"))
SECOND = 3 + len(encode("8 + 5 = 13")) + len(encode("13 * 3 = 39"))
# ends of the steps of RESPONSES; random ids hold no line break: one step, cut
ENDS = [[FIRST, SECOND], [], [], [FIRST, SECOND - 1], [2, 4], [0], [29], [6], [89], [2, 4, 6]]
PROMPTS = [random_ids(n, 100 + n) for n in (3, 17, 1, 9, 6, 2, 30, 5, 12, 8)]


@torch.no_grad()
def alone(model, prompt, response, end):
    """Chance of being right at one token, from a row of its own, the head by hand in float64."""
    hidden = model.gpt.trunk(torch.tensor([prompt + response]))[0, len(prompt) + end].double()
    logit = hidden @ model.score.weight[0].double() + model.score.bias[0].double()
    return 1 / (1 + math.exp(-logit.item()))


def alone_at(model, prompt, response, readings):
    """`alone` at every index of [(index, chance)]."""
    return [alone(model, prompt, response, end) for end, _ in readings]


@pytest.mark.parametrize("at_once", [16_384, 300, 1])
@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_scores_of_a_batch_are_those_of_each_response_alone(kind, at_once, monkeypatch):
    """Three questions have two responses: a prompt is read once, in whatever order they come."""
    monkeypatch.setattr(reward_model, "PASS_TOKENS", at_once)
    model = make_reward_model(kind)
    prompts = PROMPTS + PROMPTS[:3]
    responses = RESPONSES + RESPONSES[3:6]
    all_ends = ENDS + ENDS[3:6]
    passes = []
    forward = RewardModel.forward

    def counted(self, tokens, **rest):
        passes.append(tokens.numel())
        return forward(self, tokens, **rest)

    monkeypatch.setattr(RewardModel, "forward", counted)
    found = scores(model, prompts, responses)
    assert sum(passes) == sum(map(len, PROMPTS)) + sum(map(len, responses))
    assert len(passes) == {16_384: 1, 300: 2, 1: len(PROMPTS)}[at_once]
    spread = []
    for prompt, response, ends, rated in zip(prompts, responses, all_ends, found, strict=True):
        before = ends if kind == "prm" else []
        assert [end for end, _ in rated] == before + [len(response) - 1]
        chances = [chance for _, chance in rated]
        assert chances == pytest.approx(alone_at(model, prompt, response, rated), abs=1e-5)
        spread += chances
    assert max(spread) > 0.6 and min(spread) < 0.4 and scores(model, [], []) == []


def test_a_prm_and_an_orm_of_the_same_weights_agree_on_the_last_token():
    orm, prm = (scores(make_reward_model(kind), PROMPTS, RESPONSES) for kind in ("orm", "prm"))
    assert all(len(rated) == 1 for rated in orm)
    for of_prm, of_orm in zip(prm, orm):
        place, chance = of_prm[-1]
        other_place, other_chance = of_orm[0]
        # products of other shapes round otherwise
        assert place == other_place and chance == pytest.approx(other_chance, abs=1e-6)


@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_a_saved_reward_model_comes_back_frozen_and_gives_the_same_scores(tmp_path, kind):
    model = make_reward_model(kind)
    save_reward_model(tmp_path / "ckpt.pt", model, step=5)
    loaded = load_reward_model(tmp_path, kind)
    assert checkpoint.load(tmp_path)["step"] == 5
    assert loaded.kind == kind and loaded.gpt.config == model.gpt.config
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert scores(loaded, PROMPTS, RESPONSES) == scores(model, PROMPTS, RESPONSES)


def test_reward_models_and_policies_are_not_taken_for_one_another(tmp_path):
    checkpoint.save(tmp_path / "gpt.pt", make_tiny())
    save_reward_model(tmp_path / "orm.pt", make_reward_model("orm"))
    for path, kind, complaint in (
        ("gpt.pt", "orm", "a language model; orm is wanted"),
        ("gpt.pt", "prm", "a language model; prm is wanted"),
        ("gpt.pt", None, "a language model; a reward model is wanted"),
        ("orm.pt", "prm", "a reward model of kind orm; prm is wanted"),
        ("none.pt", "orm", "no checkpoint at"),
    ):
        with pytest.raises(UserError, match=complaint):
            load_reward_model(tmp_path / path, kind)

    def load_and_build(path):
        return checkpoint.build_model(checkpoint.load(path))

    for load in (checkpoint.load_model, load_and_build):
        with pytest.raises(UserError, match="reward model .orm., which scores and cannot write"):
            load(tmp_path / "orm.pt")
    with pytest.raises(ValueError, match="orm, prm"):
        RewardModel(GPTConfig(), "both")


def test_a_question_and_response_beyond_the_reward_models_context_are_a_user_error():
    model = make_reward_model("orm", max_len=40)
    assert len(scores(model, [random_ids(10, 0)], [random_ids(30, 1)])) == 1
    complaint = "context of 40 tokens is too short for a question and its response of 41"
    with pytest.raises(UserError, match=complaint):
        scores(model, [[1], random_ids(10, 0)], [[2], random_ids(31, 1)])
    with pytest.raises(ValueError):
        scores(model, [[1]], [[2], [3]])


# Rewarded groups

CHAIN = make_problem("chain", 1, (8, ("+", 5), ("*", 3)), None, "What is (8 + 5) * 3?")
PRODUCT = demo_problems()[0]  # 847 × 293 = 248171
GOOD = "8 + 5 = 13"
GOOD_TOO = "13 * 3 = 39"
BAD = "13 * 3 = 40"
RIGHT = render_response(f"{GOOD}\n{GOOD_TOO}", "39")
WRONG = render_response(f"{GOOD}\n{BAD}", "40")
SHORT = render_response("", "39")
CUT = [THINK, *encode(GOOD)]
GUESS = render_response("", "248171")
# ends of the two steps of RIGHT, and of WRONG
G_END = 1 + len(encode(GOOD))
LAST = 2 + len(encode(GOOD)) + len(encode(GOOD_TOO))


def rollout_of(responses):
    """A Rollout of these responses; row r's log-probabilities are -r - 1."""
    longest = max(map(len, responses))
    ids = torch.tensor([r + [PAD] * (longest - len(r)) for r in responses])
    mask = torch.arange(longest) < torch.tensor([len(r) for r in responses])[:, None]
    logprobs = -torch.arange(1.0, len(responses) + 1)[:, None]
    return Rollout(ids, mask, torch.where(mask, logprobs, 0.0), (ids == END).any(1))


def rewarded(problems, responses, reward_config=RewardConfig(), **options):
    """Experience of these responses, as many to each problem."""
    samples = len(responses) // len(problems)
    index = list(range(len(problems)))
    rollout = rollout_of(responses)
    return reward_responses(
        problems, rollout, samples, reward_config, index, tokenizer, **options
    )


def test_responses_are_rewarded_with_their_own_question_and_stand_in_its_row():
    reward_config = RewardConfig(
        format_weight=0.25, length_penalty=-0.01, process_weight=0.5, overlong_buffer=10,
        limit=len(RIGHT),
    )
    found = rewarded([CHAIN, PRODUCT], [RIGHT, WRONG, CUT, GUESS, SHORT, RIGHT], reward_config)
    rewards = found.rewards
    assert list(rewards) == [
        "total", "task_reward", "outcome", "format", "length", "overlong", "process",
    ]
    assert found.samples == 3
    assert rewards["outcome"].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert rewards["format"].tolist() == [[1, 1, 0], [1, 1, 1]]
    # WRONG is half right; what CHAIN asks follows from nothing in PRODUCT
    assert rewards["process"].tolist() == [[1, 0, 1], [0, 0, -1]]
    lengths = torch.tensor([[len(RIGHT), len(WRONG), len(CUT)],
                            [len(GUESS), len(SHORT), len(RIGHT)]])
    assert torch.allclose(rewards["length"], -0.01 * lengths)
    assert torch.allclose(rewards["overlong"], -(lengths - len(RIGHT) + 10).clamp(0, 10) / 10)
    task_reward = rewards["outcome"] + rewards["process"] / 2 + rewards["format"] / 4
    assert torch.allclose(rewards["task_reward"], task_reward)
    assert torch.allclose(rewards["total"], task_reward + rewards["length"] + rewards["overlong"])
    assert found.step_rewards == [[]] * 6 and found.global_index == [0, 1]


def test_exact_steps_are_rewarded_where_they_end_and_the_outcome_at_the_last_token():
    found = rewarded([CHAIN], [RIGHT, WRONG, CUT, SHORT], exact_steps=True)
    assert found.step_rewards == [
        [(G_END, 1.0), (LAST, 1.0)], [(G_END, 1.0), (LAST, -1.0)], [(G_END - 1, 1.0)], [],
    ]
    theirs = rewarded([CHAIN, PRODUCT], [SHORT, RIGHT, RIGHT, GUESS], exact_steps=True)
    # the same steps in answer to another question
    assert theirs.step_rewards == [
        [], [(G_END, 1.0), (LAST, 1.0)], [(G_END, -1.0), (LAST, -1.0)], [],
    ]
    assert RIGHT[G_END : G_END + 1] == encode("\n") and RIGHT[LAST] == WRONG[LAST] == END_THINK
    task_rewards = found.rewards["task_reward"].tolist()
    assert task_rewards == found.rewards["total"].tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_a_reward_models_last_score_is_the_reward_and_a_prms_others_reward_steps(kind):
    model = make_reward_model(kind)
    responses = [RIGHT, WRONG, CUT, GUESS, SHORT, RIGHT]
    found = rewarded([CHAIN, PRODUCT], responses, reward_model=model)
    prompts = [render_prompt(p.question) for p in (CHAIN, PRODUCT) for _ in range(3)]
    ends = [[G_END, LAST], [G_END, LAST], [G_END - 1], [], [], [G_END, LAST]]
    task_rewards = found.rewards["task_reward"].flatten().tolist()
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        last = alone(model, prompt, response, len(response) - 1)
        assert task_rewards[row] == pytest.approx(last, abs=1e-5)
        readings = found.step_rewards[row]
        assert [end for end, _ in readings] == (ends[row] if kind == "prm" else [])
        chances = [chance for _, chance in readings]
        assert chances == pytest.approx(alone_at(model, prompt, response, readings), abs=1e-5)
    given = found.rewards["score"]
    assert torch.equal(given, found.rewards["task_reward"])
    assert found.rewards["outcome"].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert given[0, 0] != given[1, 2]  # the same response to another question


def test_a_rank_without_questions_rewards_nothing_into_the_same_shape():
    none = Rollout(
        torch.zeros(0, 1).long(), torch.zeros(0, 1).bool(), torch.zeros(0, 1),
        torch.zeros(0).bool(),
    )
    for options in ({}, dict(exact_steps=True), dict(reward_model=make_reward_model("prm"))):
        found = reward_responses([], none, 4, RewardConfig(), [], tokenizer, **options)
        assert all(values.shape == (0, 4) for values in found.rewards.values())
        assert found.signal.tolist() == [] and found.step_rewards == []
        assert set(found.rewards) == set(rewarded([CHAIN], [RIGHT] * 4, **options).rewards)


def test_only_groups_rewarded_unevenly_have_signal_and_penalties_do_not_count():
    problems = [CHAIN] * 4
    responses = [RIGHT, RIGHT, RIGHT, SHORT, SHORT, WRONG, WRONG, CUT]
    assert rewarded(problems, responses).signal.tolist() == [False, False, True, False]
    uneven = RewardConfig(length_penalty=-0.01, overlong_buffer=15, limit=20)
    found = rewarded(problems, responses, uneven)
    assert found.signal.tolist() == [False, False, True, False]
    assert (found.rewards["total"][1:, 0] != found.rewards["total"][1:, 1]).all()
    formatted = rewarded(problems, responses, RewardConfig(format_weight=0.5))
    assert formatted.signal.tolist() == [False, False, True, True]  # CUT has no format, WRONG has
    process = rewarded(problems, responses, RewardConfig(process_weight=0.5))
    assert process.signal.tolist() == [False, True, True, True]  # what steps add counts


def test_a_group_has_signal_wherever_answers_and_steps_together_do_not_all_earn_the_same():
    """As `token_advantages` has it, which normalises them together."""

    def steps(responses):
        return rewarded([CHAIN], responses, exact_steps=True).signal.item()

    # every step and every answer right, however many
    assert not steps([RIGHT, RIGHT]) and not steps([SHORT, RIGHT])
    # one step right, one wrong, in both
    assert steps([WRONG, WRONG]) and not rewarded([CHAIN], [WRONG, WRONG]).signal.item()
    only_bad = render_response(BAD, "40")
    three = [RIGHT, RIGHT, only_bad, only_bad, GUESS, GUESS]
    found = rewarded([CHAIN] * 3, three, exact_steps=True)
    assert found.signal.tolist() == [False, True, False]
    # a wrong step earns less than a wrong answer
    assert steps([only_bad, only_bad]) and steps([only_bad, CUT])


def five_groups():
    """Five problems, two responses to each, and their Experience."""
    problems = [user_problem(f"Question {i}?", str(i)) for i in range(5)]
    responses = []
    for i in range(5):
        for g in range(2):
            if i % 2:
                responses.append(render_response("", str(i if g else 9)))
            else:
                responses.append(render_response("a\n" * (g + 1) + "b", str(i)))
    found = rewarded(problems, responses, exact_steps=True)
    found.global_index = [7, 3, 8, 1, 5]
    return problems, responses, found


def test_selected_groups_keep_their_questions_rows_rewards_steps_and_indices():
    problems, responses, found = five_groups()
    some = found.select([3, 0, 4])
    rows = (6, 7, 0, 1, 8, 9)
    assert some.problems == [problems[i] for i in (3, 0, 4)]
    assert some.global_index == [1, 7, 5] and some.samples == 2
    assert [some.rollout.response(row) for row in range(6)] == [responses[row] for row in rows]
    assert some.rollout.logprobs[:, 0].tolist() == [-7, -8, -1, -2, -9, -10]
    assert some.rewards["outcome"].tolist() == [[0, 1], [1, 1], [1, 1]]
    assert set(some.rewards) == set(found.rewards)
    assert some.step_rewards == [found.step_rewards[row] for row in rows]
    assert [len(own) for own in some.step_rewards] == [0, 0, 2, 3, 2, 3]
    assert torch.equal(some.signal, found.signal[[3, 0, 4]])
    none = found.select([])
    assert none.problems == none.step_rewards == none.global_index == []
    assert none.rewards["total"].shape == (0, 2) and len(none.rollout.ids) == 0


def test_joined_parts_stand_in_their_order_and_are_what_was_cut_apart():
    _, responses, found = five_groups()
    parts = [found.select(groups) for groups in ([0, 1], [], [2], [3, 4])]
    parts[2].rollout = rollout_of(responses[4:6])  # of another length than the others
    whole = join(parts)
    assert whole.problems == found.problems
    assert whole.global_index == found.global_index
    assert whole.step_rewards == found.step_rewards
    for name, values in found.rewards.items():
        assert torch.equal(whole.rewards[name], values)
    assert [whole.rollout.response(row) for row in range(10)] == responses
    assert torch.equal(whole.rollout.ended, found.rollout.ended)
    assert whole.rollout.logprobs[:, 0].tolist() == [-1, -2, -3, -4, -1, -2, -7, -8, -9, -10]
    back = join([found.select([4]), found.select([0])])
    assert back.global_index == [5, 7]
    rows = (8, 9, 0, 1)
    assert [back.rollout.response(row) for row in range(4)] == [responses[row] for row in rows]


def test_metrics_of_a_rollout_by_hand():
    """Three groups of two: all right, one right, none right; what is logged is over all six, or
    over the three groups."""
    checked = render_response(f"{GOOD}\nWait, {GOOD}\nCheck: {GOOD_TOO}", "39")
    responses = [RIGHT, checked, SHORT, WRONG, WRONG, CUT]
    found = rewarded([CHAIN] * 3, responses, RewardConfig(format_weight=0.5, length_penalty=-0.01))
    row = rollout_metrics(found, MACHINE)
    n = [len(r) for r in responses]
    expected = dict(
        solve_rate=3 / 6, all_right=1 / 3, all_wrong=1 / 3, no_signal=1 / 3, format=5 / 6,
        length=sum(n) / 6, length_right=sum(n[:3]) / 3, length_wrong=sum(n[3:]) / 3,
        truncated=1 / 6, sampled_tokens=sum(n),
        thinks=5 / 6, verification=1 / 6, self_correction=1 / 6, another_way=0,
        reward_total=(3 + 5 / 2 - 0.01 * sum(n)) / 6, reward_outcome=3 / 6, reward_format=5 / 6,
        reward_length=-0.01 * sum(n) / 6,
    )
    assert row == pytest.approx(expected, rel=1e-5) and isinstance(row["sampled_tokens"], int)
    every = RewardConfig(
        process_weight=0.5, overlong_buffer=4, limit=99, leaky_outcome_for_hacking_study=True
    )
    row = rollout_metrics(rewarded([CHAIN] * 3, responses, every), MACHINE)
    assert row["reward_process"] == pytest.approx((1 + 2 / 3 + 1) / 6)
    assert row["reward_overlong"] == 0 and row["reward_leaky"] == pytest.approx(3 / 6)


def test_metrics_without_a_right_response_have_no_length_of_right_ones_to_show():
    row = rollout_metrics(rewarded([CHAIN], [WRONG, CUT]), MACHINE)
    shown = (row["solve_rate"], row["length_right"], row["all_wrong"], row["no_signal"])
    assert shown == (0, 0, 1, 1)
    assert row["length_wrong"] == row["length"] == (len(WRONG) + len(CUT)) / 2


@torch.no_grad()
def test_the_kl_of_a_response_is_the_sum_of_its_tokens_log_ratios_less_the_mean_of_its_group():
    policy = make_tiny(seed=1)
    reference = make_tiny(seed=2)
    responses = [RIGHT, WRONG, CUT, GUESS, SHORT, RIGHT]
    found = rewarded([CHAIN, PRODUCT], responses)
    config = SimpleNamespace(
        row_tokens=64, micro_tokens=64, gradient_accumulation=1, temperature=0.8
    )
    prompts = [render_prompt(p.question) for p in (CHAIN, PRODUCT) for _ in range(3)]

    def logprob(model, prompt, response):
        logits = model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1].double() / 0.8
        return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum().item()

    expected = []
    for prompt, response in zip(prompts, responses):
        ratio = logprob(policy, prompt, response) - logprob(reference, prompt, response)
        expected.append(ratio)
    cpu = torch.device("cpu")
    kl = sequence_kl(policy, reference, found, config, cpu, False)
    centred = [x - sum(expected[i // 3 * 3 : i // 3 * 3 + 3]) / 3 for i, x in enumerate(expected)]
    assert kl.shape == (6, 1) and kl.flatten().tolist() == pytest.approx(centred, abs=1e-3)
    assert sequence_kl(policy, policy, found, config, cpu, False).abs().max() == 0


# Whole runs


def numbers_in(value):
    """Every number of a nested report."""
    if isinstance(value, dict):
        return [x for v in value.values() for x in numbers_in(v)]
    if isinstance(value, list):
        return [x for v in value for x in numbers_in(v)]
    return [] if isinstance(value, str) else [value]


def run(monkeypatch, tmp_path, *words):
    """train_grpo.main() on a tiny model for two steps; its metrics."""
    checkpoint.save(tmp_path / "init.pt", make_tiny(max_len=96))
    flags = (
        "--steps 2 --batch-size 8 --num-samples-per-prompt 4 --max-reasoning-tokens 16 "
        "--row-tokens 64 --eval-problems 1 --precision fp32 --device cpu --families chain"
    )
    places = ["--init", tmp_path / "init.pt", "--out", tmp_path / "run"]
    command = ["train_grpo.py", *places, *flags.split(), *words]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    train_grpo.main()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def ended_well(tmp_path, rows):
    """Two steps, finite numbers everywhere, and other weights than before."""
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    before = checkpoint.load_model(tmp_path / "init.pt").parameters()
    after = checkpoint.load_model(tmp_path / "run" / "ckpt.pt").parameters()
    return (
        [row["step"] for row in rows] == [0, 1]
        and report["steps"] == 2
        and report["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
        and all(math.isfinite(x) for x in numbers_in([*rows, report]))
        and all(row["grad_norm"] > 0 for row in rows)
        and any(not torch.equal(a, b) for a, b in zip(before, after))
    )


@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_two_steps_on_a_reward_models_scores_log_them_and_change_the_model(
    tmp_path, monkeypatch, kind
):
    path = tmp_path / "reward model.pt"
    save_reward_model(path, make_reward_model(kind, max_len=96))
    rows = run(monkeypatch, tmp_path, "--reward", kind, "--reward-model", path)
    assert ended_well(tmp_path, rows)
    for row in rows:
        assert 0 < row["reward_score"] < 1
        assert row["reward_total"] == row["reward_score"]
        # nobody is right, and yet there is something to learn
        assert row["solve_rate"] == row["reward_outcome"] == row["no_signal"] == 0


def test_two_steps_on_exactly_checked_steps_change_the_model(tmp_path, monkeypatch):
    """Responses by script, for a random model never writes a right step. No answer is right: there
    is nothing to learn from but the steps."""

    def scripted(model, prompts, count, *rest, **options):
        responses = []
        for prompt in prompts:
            a, b = map(int, re.findall("[0-9]+", decode(prompt)))
            for step in (a * b, a * b + 1):
                for answer in (a * b + 1, a * b + 2):
                    responses.append(render_response(f"{a} * {b} = {step}", str(answer)))
        return rollout_of(responses)

    monkeypatch.setattr(experience, "generate", scripted)
    words = "--reward exact-process --families multiplication --level 1"
    rows = run(monkeypatch, tmp_path, *words.split())
    assert ended_well(tmp_path, rows)
    for row in rows:
        assert "reward_score" not in row and "reward_process" not in row
        assert row["solve_rate"] == row["reward_total"] == row["no_signal"] == 0


def test_a_run_refuses_a_reward_model_to_start_from_or_one_of_another_kind_and_leaves_nothing(
    tmp_path, monkeypatch
):
    orm = tmp_path / "orm.pt"
    save_reward_model(orm, make_reward_model("orm", max_len=96))
    for words, complaint in (
        (["--init", orm], "cannot write"),
        (["--reward", "prm", "--reward-model", orm], "prm is wanted"),
        (["--reward", "orm", "--reward-model", tmp_path / "init.pt"], "a language model"),
        (["--reward", "orm"], "do not go together"),
        (["--reward-model", orm], "do not go together"),
    ):
        with pytest.raises(UserError, match=complaint):
            run(monkeypatch, tmp_path, *words)
    assert not (tmp_path / "run").exists()

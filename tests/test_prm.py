"""Training reward_models: labels by exact judge and by rollouts, the loss, calibration, and a run that is killed and goes on."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import make_tiny
from test_search import Scripted
from test_verifier import PROMPTS, RESPONSES, make_reward_model

import train_prm
from nanoreason import checkpoint
from nanoreason.flags import UserError
from nanoreason.machine import generator, Machine
from nanoreason.run import read_metrics
from nanoreason.corpus import Example
from nanoreason.generate import Rollout
from nanoreason.tasks import make_problem
from nanoreason.tokenizer import END, END_THINK, THINK, encode, render_prompt, render_response
from nanoreason.replicas import Replicas
from nanoreason.reward_model import _packed_batches, load_reward_model, reading_batches, reading_places, scores
from train_prm import Config, add_gradients, balance, calibrate, collect, enumerated, label_quality, labelled, mean_loss, platt, quality, question_batches, rate_at, read_logits, targets, train_step, reward_model_loss

MACHINE = Machine(torch.device("cpu"))
SUM = make_problem("chain", 1, (8, ("+", 5), ("*", 3)), None, "What is (8 + 5) * 3?")
OTHER = make_problem("chain", 1, (9, ("+", 5), ("*", 2)), None, "What is (9 + 5) * 2?")
GOOD = render_response("8 + 5 = 13\n13 * 3 = 39", "39")
SLIP = render_response("8 + 5 = 13\n13 * 3 = 40", "40")
LUCK = render_response("8 + 5 = 12\n13 * 3 = 39", "39")
THEIRS = render_response("9 + 5 = 14\n14 * 2 = 28", "28")
SCRIPT = {SUM.question: [(GOOD, 0.5), (SLIP, 0.3), (LUCK, 0.2)], OTHER.question: [(THEIRS, 1.0)]}
ENDS = reading_places("prm", GOOD)  # the same in all of them


def made(split="train", problems=(SUM, OTHER), **flags):
    config = Config(**({"samples": 40, "max_reasoning_tokens": 60, "kind": "prm"} | flags))
    return labelled(collect(Scripted(SCRIPT), list(problems), config, split, MACHINE), list(problems), config.rollouts), config


def test_responses_are_kept_once_for_training_and_as_they_come_elsewhere():
    data, _ = made()
    assert sorted(e.ids for e in data.examples) == sorted([render_prompt(SUM.question) + r for r in (GOOD, SLIP, LUCK)] + [render_prompt(OTHER.question) + THEIRS])
    assert data.mc is None and data.cost == dict(sampled=80 * len(GOOD), rolled=0)
    counts = [sum(e.ids[e.prompt_len :] == r for e in made("val")[0].examples) for r in (GOOD, SLIP, LUCK, THEIRS)]
    assert sum(counts) == 80 and counts[3] == 40 and counts[0] > counts[1] > counts[2] > 0


@pytest.mark.parametrize("problems", [(SUM, OTHER), (OTHER, SUM)])
def test_exact_labels_stand_at_their_steps_and_belong_to_their_question(problems):
    data, config = made(problems=problems)
    expected = {tuple(GOOD): [1, 1, 1], tuple(SLIP): [1, 0, 0], tuple(LUCK): [0, 0, 1], tuple(THEIRS): [1, 1, 1]}  # 13 in LUCK comes from nowhere
    for example, right, places, exact in zip(data.examples, data.right, data.places, data.exact, strict=True):
        response = example.ids[example.prompt_len :]
        assert places == reading_places("prm", response) and exact == expected[tuple(response)] and right == (exact[-1] == 1)
    assert targets(data, config) == (data.places, data.exact)
    places, labels = targets(data, Config(kind="orm"))
    assert places == [list(range(len(GOOD)))] * 4 and labels == [[float(ok)] * len(GOOD) for ok in data.right]


def test_rollouts_go_on_from_each_step_and_their_share_is_the_label():
    """After 8 + 5 = 13 five responses in eight are right; after 8 + 5 = 12 all are, by luck; a finished one is what it is."""
    data, config = made(labels="mc", rollouts=60, samples=20)
    found = {tuple(e.ids[e.prompt_len :]): mc for e, mc in zip(data.examples, data.mc)}
    assert found[tuple(GOOD)][0] == found[tuple(SLIP)][0] and found[tuple(GOOD)][0] / 60 == pytest.approx(5 / 8, abs=0.2)
    assert [mc[1:] for mc in (found[tuple(GOOD)], found[tuple(SLIP)], found[tuple(LUCK)], found[tuple(THEIRS)])] == [[60, 60], [0, 0], [60, 60], [60, 60]]
    assert found[tuple(LUCK)][0] == 60 and found[tuple(THEIRS)][0] == 60
    soft, hard = (targets(data, Config(kind="prm", labels="mc", rollouts=60, hard_labels=h))[1] for h in (False, True))
    where = [e.ids[e.prompt_len :] for e in data.examples].index(SLIP)
    assert soft[where] == [found[tuple(SLIP)][0] / 60, 0, 0] and hard[where] == [1, 0, 0]
    assert label_quality(data) == dict(right=5, right_but_called_wrong=0, wrong=3, wrong_but_called_right=2)  # both steps of LUCK
    rest = len(GOOD) - 1 - ENDS[0], len(GOOD) - 1 - ENDS[1]
    assert data.cost["rolled"] == 60 * (3 * rest[0] + 4 * rest[1])  # three different first steps, four second ones


def test_fewer_rollouts_are_the_first_of_more():
    config = Config(kind="prm", labels="mc", rollouts=16, samples=20, max_reasoning_tokens=60)
    arrays = collect(Scripted(SCRIPT), [SUM], config, "train", MACHINE)
    first = [sum(bits >> j & 1 for j in range(4)) for bits in arrays["mc"].tolist()]
    four = labelled(arrays, [SUM], 4)
    assert [k for mc in four.mc for k in mc] == first and max(first) <= 4 and four.cost["rolled"] == arrays["rolled"][0, :4].sum() > 0
    again = collect(Scripted(SCRIPT), [SUM], Config(kind="prm", labels="mc", rollouts=4, samples=20, max_reasoning_tokens=60), "train", MACHINE)
    assert labelled(again, [SUM], 4).mc != [] and again["mc"].tolist() != arrays["mc"].tolist()


def test_test_responses_need_no_rollouts():
    assert made("test", labels="mc")[0].mc is None and made("val", labels="mc", rollouts=2, samples=4)[0].mc is not None


# Learning


def test_the_loss_is_the_cross_entropy_also_of_shares():
    logits, labels, weight = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1.0, 0.25, 0.0]), torch.tensor([0.5, 0.25, 0.25])
    p = [1 / (1 + math.exp(-z)) for z in (0.3, -2.0, 5.0)]
    by_hand = -sum(w * (y * math.log(q) + (1 - y) * math.log(1 - q)) for w, y, q in zip((0.5, 0.25, 0.25), (1, 0.25, 0), p))
    assert reward_model_loss(logits, labels, weight).item() == pytest.approx(by_hand, rel=1e-5)
    assert mean_loss([[0.3], [-2.0, 5.0]], [[1.0], [0.25, 0.0]]) == pytest.approx(-math.log(p[0]) / 2 + sum(
        -(y * math.log(q) + (1 - y) * math.log(1 - q)) for y, q in ((0.25, p[1]), (0, p[2]))) / 4, rel=1e-5)
    assert list(enumerated([7, 7, 3, 3, 3])) == [(7, 0), (7, 1), (3, 0), (3, 1), (3, 2)]
    assert [rate_at(s, 10, 2) for s in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 0.125]


def test_right_and_flawed_responses_are_balanced():
    labels = [[1, 1]] * 6 + [[1, 0]] * 3 + [[0.4, 1]] + [[0.5, 0.6]]
    kept = balance(labels, 0)
    assert sum(i in (6, 7, 8, 9) for i in kept) == 4 == sum(i not in (6, 7, 8, 9) for i in kept) and list(kept) == sorted(set(kept.tolist()))
    assert len(balance([[1.0]] * 5, 0)) == 0 and list(balance(labels, 1)) != list(kept)


def test_logits_are_read_at_the_places_of_each_response_however_they_are_packed(monkeypatch):
    model = make_reward_model("prm")
    examples = [Example(p + r, len(p)) for p, r in zip(PROMPTS, RESPONSES)]
    places = [reading_places("prm", r) for r in RESPONSES]
    expected = [[c for _, c in rated] for rated in scores(model, PROMPTS, RESPONSES)]
    assert torch.tensor(sum(read_logits(model, examples, places, MACHINE, False), [])).sigmoid().tolist() == pytest.approx(sum(expected, []), abs=1e-5)
    monkeypatch.setattr("nanoreason.reward_model.SHORT", 30)  # two groups of rows
    monkeypatch.setattr("nanoreason.reward_model.PASS_TOKENS", 200)  # several passes
    packed = list(_packed_batches(examples, places, "cpu"))  # as a GPU reads them
    order = [i for _, owner in packed for i in owner]
    found = {}
    for inputs, owner in packed:
        for i, logit in zip(owner, model(**inputs).tolist()):
            found.setdefault(i, []).append(logit)
    assert torch.tensor(sum((found[i] for i in range(len(examples))), [])).sigmoid().tolist() == pytest.approx(sum(expected, []), abs=1e-5)
    assert len(list(reading_batches(examples, places, "cpu"))) > 1
    assert sorted(order) == sorted(i for i, p in enumerate(places) for _ in p) and order != sorted(order)
    assert torch.tensor(sum(read_logits(model, examples, places, MACHINE, False), [])).sigmoid().tolist() == pytest.approx(sum(expected, []), abs=1e-5)


def test_batches_keep_the_responses_to_a_question_together_and_ranks_share_them():
    examples = [Example([q, q + 1, 100 + i], 2) for i in range(60) for q in [7 * (i // 6)]]  # ten questions
    kept = [i for i in range(60) if i % 6 < 4]
    whole = list(question_batches(kept, examples, 12, 3, 0))
    assert [len(batch) for batch in whole] == [12] * 10
    order = [int(i) for batch in whole for i in batch]
    for epoch in range(3):
        mine = order[epoch * 40 : (epoch + 1) * 40]
        assert sorted(mine) == kept
        asked = [i // 6 for i in mine]
        assert len([1 for a, b in zip(asked, asked[1:]) if a != b]) == 9 and asked != sorted(asked)
    parts = [list(question_batches(kept, examples, 12, 3, 0, rank, 2)) for rank in (0, 1)]
    assert all(np.array_equal(np.concatenate(both), batch) for *both, batch in zip(*parts, whole, strict=True))
    assert not list(question_batches([], [], 12, 3, 0)) and not list(question_batches(kept[:2], examples, 12, 3, 0))


class Look:
    """An optimizer that only keeps the gradients."""

    def __init__(self, model):
        self.model = model

    def step(self):
        self.grads = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]).clone()

    def zero_grad(self, set_to_none=True):
        self.model.zero_grad()


def test_a_step_gives_every_response_the_same_weight_and_ranks_together_give_the_step_of_one(monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: None)
    examples, places = [Example(p + r, len(p)) for p, r in zip(PROMPTS, RESPONSES)], [reading_places("prm", r) for r in RESPONSES]
    labels, noise = [], generator(0, "labels")
    for p in places:
        labels.append(torch.rand(len(p), generator=noise).tolist())
    model = make_reward_model("prm").train()
    work = lambda net, share: add_gradients(net, examples, places, labels, *share, MACHINE.device, False)
    replicas, index = Replicas(model, [look := Look(model)], work), np.arange(10)
    whole = train_step(replicas, index, MACHINE)
    together = look.grads
    assert whole == pytest.approx(mean_loss(read_logits(model, examples, places, MACHINE, False), labels), abs=1e-5)
    parts = []
    for rank in (0, 1):
        (loss,) = replicas.gradients([(index[rank::2], 10)])
        replicas.step()
        parts.append((loss, look.grads))
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, abs=1e-6) and together.abs().max() > 1e-3
    torch.testing.assert_close(sum(grads for _, grads in parts), together, rtol=1e-4, atol=1e-6)


def test_platt_finds_scale_and_offset():
    z = np.linspace(-4, 4, 4001)
    a, c = platt(z.tolist(), (1 / (1 + np.exp(-(0.5 * z - 0.7)))).tolist())
    assert (a, c) == (pytest.approx(0.5, abs=1e-3), pytest.approx(-0.7, abs=1e-3))


def test_calibration_changes_the_scores_and_not_their_order():
    data, config = made("val", kind="orm")
    model = make_reward_model("orm", max_len=256)
    read = lambda: sum(read_logits(model, data.examples, [[len(e.ids) - e.prompt_len - 1] for e in data.examples], MACHINE, False), [])
    before, fit = read(), calibrate(model, data, config, MACHINE, False)
    after = read()
    assert after == pytest.approx([fit["scale"] * z + fit["offset"] for z in before], abs=1e-4)
    assert np.mean(1 / (1 + np.exp(-np.array(after)))) == pytest.approx(np.mean(data.right), abs=0.01)  # what a fitted offset grants


def test_quality_is_reported_by_position_against_the_exact_judge():
    data, config = made("test")
    figures = quality(make_reward_model("prm", max_len=256), data, config, MACHINE, False)
    steps, last = figures["positions"]["step 2"], figures["positions"]["last"]
    assert steps["n"] == last["n"] == 80 and figures["positions"]["step 3"] == dict(auc=None, brier=None, n=0, right=None)
    assert steps["right"] == round(np.mean([e[1] for e in data.exact]), 4) and last["right"] == round(data.right.mean(), 4) and 0 <= last["brier"] <= 1
    assert sum(b["n"] for b in figures["reliability"]) == 80
    orm = quality(make_reward_model("orm", max_len=256), data, Config(kind="orm"), MACHINE, False)["positions"]
    assert list(orm) == ["1/4 read", "2/4 read", "3/4 read", "last"] and all(p["n"] == 80 for p in orm.values())


# Runs


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp("policy")
    checkpoint.save(folder / "ckpt.pt", make_tiny(max_len=256))
    return folder


@pytest.fixture
def seven(monkeypatch):
    """Policies say '7' or '8' at once, each half of the time; 7 is always right: a reward model can learn it."""
    def scripted(model, prompts, samples, limit, temperature, uniform, **options):
        ids = torch.tensor([[THINK, END_THINK, *encode("7" if u < 0.5 else "8"), END] for u in uniform[:, 0]])
        return Rollout(ids, ids >= 0, torch.zeros(ids.shape), torch.ones(len(ids), dtype=torch.bool))

    monkeypatch.setattr("nanoreason.pool.generate", scripted)


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["train_prm.py", *map(str, args)])
    train_prm.main()


def flags(policy, tmp_path, out):
    rows = [{"question": f"What of {i}?", "answer": "7"} for i in range(100, 300)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return ["--init", policy, "--data", tmp_path / "q.jsonl", "--questions", 120, "--samples", 6, "--val-questions", 10, "--max-reasoning-tokens", 40, "--batch-size", 16,
            "--epochs", 8, "--learning-rate", 0.003, "--eval-every", 10, "--patience", 50, "--precision", "fp32", "--out", out]


def test_a_verifier_learns_what_is_right_and_a_killed_run_gives_the_same_numbers(policy, seven, tmp_path, monkeypatch):
    call(monkeypatch, *flags(policy, tmp_path, tmp_path / "whole"))
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["test"]["positions"]["last"]["auc"] > 0.9 and report["test"]["positions"]["last"]["brier"] < 0.15 and report["best"][0] < 0.4
    assert load_reward_model(tmp_path / "whole").kind == "orm" and (tmp_path / "whole" / "verifier.png").read_bytes()[:4] == b"\x89PNG"
    call(monkeypatch, *flags(policy, tmp_path, tmp_path / "parts"), "--max-steps", 23)
    (tmp_path / "parts" / "report.json").unlink()
    call(monkeypatch, *flags(policy, tmp_path, tmp_path / "parts"), "--resume")
    rows = [[{k: v for k, v in row.items() if "seconds" not in k} for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")]
    assert rows[0] == rows[1] and len(rows[0]) > 30
    one, two = (checkpoint.load(tmp_path / name)["weights"] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UserError, match="--reuse: the samples in .* were made with --questions 120"):
        call(monkeypatch, *flags(policy, tmp_path, tmp_path / "new"), "--reuse", tmp_path / "whole", "--questions", 119)
    with pytest.raises(UserError, match="has 0 rollouts a step; 8 were asked for"):
        call(monkeypatch, *flags(policy, tmp_path, tmp_path / "new2"), "--reuse", tmp_path / "whole", "--kind", "prm", "--labels", "mc")
    monkeypatch.setattr(train_prm, "generate", lambda *a, **k: pytest.fail("sampled again"))
    call(monkeypatch, *flags(policy, tmp_path, tmp_path / "prm"), "--reuse", tmp_path / "whole", "--kind", "prm", "--seed", 5, "--max-steps", 3)
    assert json.loads((tmp_path / "prm" / "report.json").read_text())["responses"] == report["responses"]

"""Training reward models: labels by the exact checker and by continuations, the loss, calibration,
and a run that is killed and goes on."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import make_tiny, render_prompt, render_response, tokenizer, toy_tokenizer
from test_reward_model import PROMPTS, RESPONSES, make_reward_model
from test_search import Scripted

import train_prm
from nanoreason import checkpoint, labels
from nanoreason.data import Example
from nanoreason.flags import UserError
from nanoreason.generate import Rollout
from nanoreason.labels import (
    balance, collect, from_arrays, gather, label_quality, quality, question_batches, to_arrays,
)
from nanoreason.machine import Machine, generator
from nanoreason.pool import fingerprint, read_arrays, write_arrays
from nanoreason.replicas import Replicas
from nanoreason.reward_model import (
    _packed_batches, calibrate, load_reward_model, mean_loss, platt, read_logits, reading_batches,
    scores, smoothed, where_to_read,
)
from nanoreason.run import read_metrics
from nanoreason.tasks import make_problem
from train_prm import Config, add_gradients, rate_factor, reward_model_loss, targets, train_step

MACHINE = Machine(torch.device("cpu"))
SUM = make_problem("chain", 1, (8, ("+", 5), ("*", 3)), None, "What is (8 + 5) * 3?")
OTHER = make_problem("chain", 1, (9, ("+", 5), ("*", 2)), None, "What is (9 + 5) * 2?")
GOOD = render_response("8 + 5 = 13\n13 * 3 = 39", "39")
SLIP = render_response("8 + 5 = 13\n13 * 3 = 40", "40")
LUCK = render_response("8 + 5 = 12\n13 * 3 = 39", "39")
THEIRS = render_response("9 + 5 = 14\n14 * 2 = 28", "28")
SCRIPT = {
    SUM.question: [(GOOD, 0.5), (SLIP, 0.3), (LUCK, 0.2)],
    OTHER.question: [(THEIRS, 1.0)],
}
ENDS = where_to_read("prm", GOOD, tokenizer)  # the same in all of them
DEFAULTS = dict(samples=40, max_reasoning_tokens=60, kind="prm")


def made(split="train", problems=(SUM, OTHER), **flags):
    """LabelledSplit of a scripted policy's responses, and the Config it was made with."""
    config = Config(**(DEFAULTS | flags))
    return collect(Scripted(SCRIPT), list(problems), config, split, MACHINE), config


def again(data, problems, continuations):
    """A LabelledSplit as it comes back from a file, with the first continuations only."""
    return from_arrays(to_arrays(data), problems, continuations, tokenizer)


def successes(data):
    """{response: how many continuations from each of its steps found the answer}."""
    return {tuple(r.ids): r.continuations.sum(1).tolist() for r in data.responses}


def test_responses_are_kept_once_for_training_and_as_they_come_elsewhere():
    data, _ = made()
    expected = [render_prompt(SUM.question) + r for r in (GOOD, SLIP, LUCK)]
    expected.append(render_prompt(OTHER.question) + THEIRS)
    assert sorted(e.ids for e in data.examples) == sorted(expected)
    assert all(r.continuations is None for r in data.responses)
    assert data.cost == dict(sampled=80 * len(GOOD), rolled=0)
    found = [r.ids for r in made("val")[0].responses]
    counts = [found.count(ids) for ids in (GOOD, SLIP, LUCK, THEIRS)]
    assert sum(counts) == 80 and counts[3] == 40 and counts[0] > counts[1] > counts[2] > 0


@pytest.mark.parametrize("problems", [(SUM, OTHER), (OTHER, SUM)])
def test_exact_labels_stand_at_their_steps_and_belong_to_their_question(problems):
    data, config = made(problems=problems)
    expected = {
        tuple(GOOD): [1, 1, 1],
        tuple(SLIP): [1, 0, 0],
        tuple(LUCK): [0, 0, 1],  # its 13 comes from nowhere
        tuple(THEIRS): [1, 1, 1],
    }
    assert len(data.responses) == 4
    for r in data.responses:
        assert r.read_at == where_to_read("prm", r.ids, tokenizer)
        assert r.exact == expected[tuple(r.ids)]
        assert r.right == (r.exact[-1] == 1)
        assert r.example.ids == render_prompt(problems[r.problem_index].question) + r.ids
    read_at = [r.read_at for r in data.responses]
    assert targets(data, config) == (read_at, [r.exact for r in data.responses])
    read_at, wanted = targets(data, Config(kind="orm"))
    assert read_at == [list(range(len(GOOD)))] * 4
    assert wanted == [[float(r.right)] * len(GOOD) for r in data.responses]


def test_continuations_go_on_from_each_step_and_their_share_is_the_label():
    """After 8 + 5 = 13 five responses in eight are right; after 8 + 5 = 12 all are, by luck; a
    finished one is what it is."""
    data, config = made(labels="mc", rollouts=60, samples=20)
    assert all(r.continuations.shape == (3, 60) for r in data.responses)
    assert all(r.continuations.dtype == bool for r in data.responses)
    found = successes(data)
    first = found[tuple(GOOD)][0]
    assert first == found[tuple(SLIP)][0] and first / 60 == pytest.approx(5 / 8, abs=0.2)
    rest_of = [found[tuple(ids)][1:] for ids in (GOOD, SLIP, LUCK, THEIRS)]
    assert rest_of == [[60, 60], [0, 0], [60, 60], [60, 60]]
    assert found[tuple(LUCK)][0] == 60 and found[tuple(THEIRS)][0] == 60
    where = [r.ids for r in data.responses].index(SLIP)
    soft = targets(data, Config(kind="prm", labels="mc", rollouts=60))[1]
    hard = targets(data, Config(kind="prm", labels="mc", rollouts=60, hard_labels=True))[1]
    assert soft[where] == [first / 60, 0, 0] and hard[where] == [1, 0, 0]
    assert label_quality(data) == dict(
        right=5, right_but_called_wrong=0, wrong=3, wrong_but_called_right=2  # steps of LUCK
    )
    rest = [len(GOOD) - 1 - end for end in ENDS[:2]]
    # three different first steps, four second ones
    assert data.cost["rolled"] == 60 * (3 * rest[0] + 4 * rest[1])


def test_fewer_continuations_are_the_first_of_more():
    data, _ = made(problems=[SUM], labels="mc", rollouts=16, samples=20)
    four = again(data, [SUM], 4)
    for some, all_of_them in zip(four.responses, data.responses, strict=True):
        assert np.array_equal(some.continuations, all_of_them.continuations[:, :4])
    assert four.cost["rolled"] == data.continuation_tokens[:4].sum() > 0
    assert four.cost["sampled"] == data.cost["sampled"]
    other, _ = made(problems=[SUM], labels="mc", rollouts=4, samples=20)
    assert len(successes(other)) == 3 and successes(other) != successes(data)


def test_test_responses_need_no_continuations():
    data, _ = made("test", labels="mc")
    assert all(r.continuations is None for r in data.responses)
    data, _ = made("val", labels="mc", rollouts=2, samples=4)
    assert all(r.continuations is not None for r in data.responses)


@pytest.mark.parametrize("kind", ["exact", "mc"])
def test_labels_come_back_from_a_file_as_they_were(kind, tmp_path):
    data, _ = made(labels=kind, rollouts=3, samples=10)
    write_arrays(tmp_path / "train.npz", to_arrays(data))
    back = from_arrays(read_arrays(tmp_path / "train.npz"), [SUM, OTHER], 3, tokenizer)
    assert back.cost == data.cost
    for one, two in zip(back.responses, data.responses, strict=True):
        fields = [(r.problem_index, r.example, r.right, r.read_at, r.exact) for r in (one, two)]
        assert fields[0] == fields[1]
        assert (one.continuations is None) == (kind == "exact")
        assert kind == "exact" or np.array_equal(one.continuations, two.continuations)


def test_files_of_an_earlier_version_with_outcomes_in_bits_are_read(tmp_path):
    data, _ = made(labels="mc", rollouts=60, samples=10)
    arrays = to_arrays(data)
    outcomes = arrays.pop("rollouts").tolist()
    # the first continuation was the lowest bit
    packed = [sum(1 << k for k, right in enumerate(row) if right) for row in outcomes]
    arrays["mc"] = np.array(packed, np.int64)
    write_arrays(tmp_path / "train.npz", arrays)
    for K in (60, 7):
        back = from_arrays(read_arrays(tmp_path / "train.npz"), [SUM, OTHER], K, tokenizer)
        assert back.cost == again(data, [SUM, OTHER], K).cost
        for one, two in zip(back.responses, data.responses, strict=True):
            assert np.array_equal(one.continuations, two.continuations[:, :K])
            assert one.continuations.dtype == bool


def test_the_shares_of_ranks_are_joined_and_one_may_be_empty(monkeypatch):
    data, _ = made(labels="mc", rollouts=3, samples=10)
    none, _ = made(problems=[], labels="mc", rollouts=3, samples=10)

    def everyone(parts, mine):
        parts[:] = [to_arrays(none), mine]

    monkeypatch.setattr("torch.distributed.all_gather_object", everyone)
    whole = gather(to_arrays(data), Machine(torch.device("cpu"), 1, 2))
    back = from_arrays(whole, [SUM, OTHER], 3, tokenizer)
    assert back.cost == data.cost and successes(back) == successes(data)


# Learning


def cross_entropy(label, p):
    return -(label * math.log(p) + (1 - label) * math.log(1 - p))


def test_the_loss_is_the_cross_entropy_also_of_shares():
    logits = torch.tensor([0.3, -2.0, 5.0])
    wanted = torch.tensor([1.0, 0.25, 0.0])
    weight = torch.tensor([0.5, 0.25, 0.25])
    p = [1 / (1 + math.exp(-z)) for z in (0.3, -2.0, 5.0)]
    each = [cross_entropy(y, q) for y, q in zip((1, 0.25, 0), p)]
    by_hand = 0.5 * each[0] + 0.25 * each[1] + 0.25 * each[2]
    assert reward_model_loss(logits, wanted, weight).item() == pytest.approx(by_hand, rel=1e-5)
    mean = mean_loss([[0.3], [-2.0, 5.0]], [[1.0], [0.25, 0.0]])
    assert mean == pytest.approx(each[0] / 2 + (each[1] + each[2]) / 4, rel=1e-5)
    assert [rate_factor(s, 10, 2) for s in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 0.125]


def test_right_and_flawed_responses_are_balanced():
    wanted = [[1, 1]] * 6 + [[1, 0]] * 3 + [[0.4, 1]] + [[0.5, 0.6]]
    kept = balance(wanted, 0)
    flawed = [i in (6, 7, 8, 9) for i in kept]
    assert flawed.count(True) == 4 == flawed.count(False)
    assert list(kept) == sorted(set(kept.tolist()))
    assert len(balance([[1.0]] * 5, 0)) == 0 and list(balance(wanted, 1)) != list(kept)


def test_logits_are_read_where_they_are_asked_for_however_they_are_packed(monkeypatch):
    model = make_reward_model("prm")
    examples = [Example(p + r, len(p)) for p, r in zip(PROMPTS, RESPONSES)]
    read_at = [where_to_read("prm", r, tokenizer) for r in RESPONSES]
    expected = [c for readings in scores(model, PROMPTS, RESPONSES) for _, c in readings]

    def check(logits):
        flat = torch.tensor([z for zs in logits for z in zs])
        assert flat.sigmoid().tolist() == pytest.approx(expected, abs=1e-5)

    check(read_logits(model, examples, read_at))
    monkeypatch.setattr("nanoreason.reward_model.SHORT", 30)  # two groups of rows
    monkeypatch.setattr("nanoreason.reward_model.PASS_TOKENS", 200)  # several passes
    packed = list(_packed_batches(examples, read_at, "cpu"))  # as a GPU reads them
    order = [i for _, owner in packed for i in owner]
    found = {}
    for inputs, owner in packed:
        for i, logit in zip(owner, model(**inputs).tolist()):
            found.setdefault(i, []).append(logit)
    check([found[i] for i in range(len(examples))])
    assert len(list(reading_batches(examples, read_at, "cpu"))) > 1
    assert sorted(order) == sorted(i for i, p in enumerate(read_at) for _ in p)
    assert order != sorted(order)
    check(read_logits(model, examples, read_at))


def test_batches_keep_the_responses_to_a_question_together_and_ranks_share_them():
    questions = [7 * (i // 6) for i in range(60)]  # ten
    examples = [Example([q, q + 1, 100 + i], 2) for i, q in enumerate(questions)]
    kept = [i for i in range(60) if i % 6 < 4]
    whole = list(question_batches(kept, examples, 12, 3, 0))
    assert [len(batch) for batch in whole] == [12] * 10
    order = [int(i) for batch in whole for i in batch]
    for epoch in range(3):
        mine = order[epoch * 40 : (epoch + 1) * 40]
        assert sorted(mine) == kept
        asked = [i // 6 for i in mine]
        changes = [a != b for a, b in zip(asked, asked[1:])]
        assert changes.count(True) == 9 and asked != sorted(asked)
    parts = [list(question_batches(kept, examples, 12, 3, 0, rank, 2)) for rank in (0, 1)]
    for *both, batch in zip(*parts, whole, strict=True):
        assert np.array_equal(np.concatenate(both), batch)
    assert not list(question_batches([], [], 12, 3, 0))
    assert not list(question_batches(kept[:2], examples, 12, 3, 0))


class Look:
    """An optimizer that only keeps the gradients."""

    def __init__(self, model):
        self.model = model

    def step(self):
        grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.grads = torch.cat(grads).clone()

    def zero_grad(self, set_to_none=True):
        self.model.zero_grad()


def test_a_step_gives_every_response_the_same_weight_and_ranks_together_give_the_step_of_one(
    monkeypatch,
):
    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", lambda *args: None)
    examples = [Example(p + r, len(p)) for p, r in zip(PROMPTS, RESPONSES)]
    read_at = [where_to_read("prm", r, tokenizer) for r in RESPONSES]
    noise = generator(0, "labels")
    wanted = [torch.rand(len(p), generator=noise).tolist() for p in read_at]
    model = make_reward_model("prm").train()
    look = Look(model)

    def work(net, share):
        return add_gradients(net, examples, read_at, wanted, *share, MACHINE.device, False)

    replicas = Replicas(model, [look], work)
    index = np.arange(10)
    whole, _ = train_step(replicas, index, MACHINE)
    together = look.grads
    expected = mean_loss(read_logits(model, examples, read_at), wanted)
    assert whole == pytest.approx(expected, abs=1e-5)
    parts = []
    for rank in (0, 1):
        (loss,) = replicas.gradients([(index[rank::2], 10)])
        replicas.step()
        parts.append((loss, look.grads))
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, abs=1e-6)
    assert together.abs().max() > 1e-3
    torch.testing.assert_close(sum(grads for _, grads in parts), together, rtol=1e-4, atol=1e-6)


def test_the_worked_example_of_smoothed_labels():
    assert smoothed([1, 1, 0]) == pytest.approx([0.75, 0.75, 1 / 3])


@pytest.mark.parametrize("labels", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]],
                         ids=["one kind", "parted by a threshold"])
def test_calibration_keeps_scores_apart_where_labels_are_easy_to_fit(labels):
    """Without smoothing every score would be 1.0, or 0.0 and 1.0, and best-of-N would be ties."""
    z = [-2.0, -1.0, 1.0, 2.0]
    scale, offset = platt(z, smoothed(labels))
    scores = [1 / (1 + math.exp(-(scale * value + offset))) for value in z]
    assert 0.01 < min(scores) and max(scores) < 0.99
    if len(set(labels)) == 2:
        assert scores == sorted(scores) and scores[2] < scores[3] - 0.01


def test_platt_finds_scale_and_offset():
    z = np.linspace(-4, 4, 4001)
    a, c = platt(z.tolist(), (1 / (1 + np.exp(-(0.5 * z - 0.7)))).tolist())
    assert (a, c) == (pytest.approx(0.5, abs=1e-3), pytest.approx(-0.7, abs=1e-3))


def test_calibration_changes_the_scores_and_not_their_order():
    data, config = made("val", kind="orm")
    model = make_reward_model("orm", max_len=256)
    ends = [[len(r.ids) - 1] for r in data.responses]

    def read():
        return [z for (z,) in read_logits(model, data.examples, ends)]

    before = read()
    fit = calibrate(model, data.examples, *targets(data, config))
    after = read()
    assert after == pytest.approx([fit["scale"] * z + fit["offset"] for z in before], abs=1e-4)
    # what a fitted offset grants
    right = np.mean([r.right for r in data.responses])
    assert np.mean(1 / (1 + np.exp(-np.array(after)))) == pytest.approx(right, abs=0.01)


def test_quality_is_reported_by_position_against_the_exact_checker():
    data, _ = made("test")
    figures = quality(make_reward_model("prm", max_len=256), data)
    second = figures["positions"]["step 2"]
    last = figures["positions"]["last"]
    assert second["n"] == last["n"] == 80
    assert figures["positions"]["step 3"] == dict(auc=None, brier=None, n=0, right=None)
    assert second["right"] == round(np.mean([r.exact[1] for r in data.responses]), 4)
    assert last["right"] == round(np.mean([r.right for r in data.responses]), 4)
    assert 0 <= last["brier"] <= 1
    assert sum(b["n"] for b in figures["reliability"]) == 80
    orm = quality(make_reward_model("orm", max_len=256), data)["positions"]
    assert list(orm) == ["1/4 read", "2/4 read", "3/4 read", "last"]
    assert all(p["n"] == 80 for p in orm.values())


# Runs


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp("policy")
    checkpoint.save(folder / "ckpt.pt", make_tiny(max_len=256))
    return folder


@pytest.fixture
def seven(monkeypatch):
    """Policies say '7' or '8' at once, each half of the time; 7 is always right: a reward model can
    learn it."""

    def scripted(model, prompts, samples, limit, temperature, *, uniform, **options):
        said = ["7" if u < 0.5 else "8" for u in uniform[:, 0]]
        ids = torch.tensor([model.tokenizer.render_response("", word) for word in said])
        ended = torch.ones(len(ids), dtype=torch.bool)
        return Rollout(ids, ids >= 0, torch.zeros(ids.shape), ended)

    monkeypatch.setattr("nanoreason.pool.generate", scripted)


@pytest.fixture
def call(policy, tmp_path, monkeypatch):
    """A function that runs train_prm.py on 200 questions of a user's, with further flags."""
    rows = [{"question": f"What of {i}?", "answer": "7"} for i in range(100, 300)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    common = (
        "--questions 120 --samples 6 --val-questions 10 --max-reasoning-tokens 40 --batch-size 16 "
        "--epochs 8 --learning-rate 0.003 --eval-every 10 --patience 50 --precision fp32"
    )

    def run(out, *flags):
        places = ["--init", policy, "--data", tmp_path / "q.jsonl", "--out", tmp_path / out]
        words = ["train_prm.py", *places, *common.split(), *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        train_prm.main()

    return run


def untimed(path):
    """Rows of a metrics.jsonl without what the clock says."""
    kept = []
    for row in read_metrics(path):
        kept.append({k: v for k, v in row.items() if "seconds" not in k})
    return kept


def test_a_reward_model_learns_what_is_right_and_a_killed_run_gives_the_same_numbers(
    call, seven, tmp_path, monkeypatch
):
    whole = tmp_path / "whole"
    call("whole")
    report = json.loads((whole / "report.json").read_text())
    last = report["test"]["positions"]["last"]
    assert last["auc"] > 0.9 and last["brier"] < 0.15 and report["best"][0] < 0.4
    assert load_reward_model(whole).kind == "orm"
    assert (whole / "reward_model.png").read_bytes()[:4] == b"\x89PNG"
    call("parts", "--max-steps", 23)
    call("parts", "--resume")
    rows = [untimed(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert rows[0] == rows[1] and len(rows[0]) > 30
    one, two = (checkpoint.load(tmp_path / name)["weights"] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    complaint = "--reuse: the samples in .* were made with --questions 120"
    with pytest.raises(UserError, match=complaint):
        call("new", "--reuse", whole, "--questions", 119)
    with pytest.raises(UserError, match="has 0 --rollouts per step; 8 were asked for"):
        call("new2", "--reuse", whole, "--kind", "prm", "--labels", "mc")
    monkeypatch.setattr(labels, "generate", lambda *a, **k: pytest.fail("sampled again"))
    monkeypatch.setattr(labels, "sample_some", lambda *a, **k: pytest.fail("sampled again"))
    rows = (tmp_path / "q.jsonl").read_text()
    (tmp_path / "copy.jsonl").write_text(rows)
    (tmp_path / "q.jsonl").write_text(rows.replace("What of 1", "And what of 1"))
    with pytest.raises(UserError, match="--reuse: the samples in .* are of another --data"):
        call("new3", "--reuse", whole)
    assert not any((tmp_path / name).exists() for name in ("new", "new2", "new3"))
    call("prm", "--reuse", whole, "--kind", "prm", "--seed", 5, "--max-steps", 3, "--data",
         tmp_path / "copy.jsonl")
    reusing = json.loads((tmp_path / "prm" / "report.json").read_text())
    assert reusing["responses"] == report["responses"]


def test_samples_of_other_weights_are_neither_resumed_nor_reused(
    call, seven, policy, tmp_path, capsys
):
    """Another policy under another name, or under the same."""
    call("run", "--max-steps", 3)
    weights = json.loads((tmp_path / "run" / "provenance.json").read_text())["weights"]
    assert weights == fingerprint(checkpoint.load_model(policy))
    checkpoint.save(tmp_path / "other.pt", make_tiny(seed=1, max_len=256))
    toy = make_tiny(tokenizer=toy_tokenizer(), max_len=256)
    checkpoint.save(tmp_path / "toy.pt", toy)
    left = (tmp_path / "run" / "ckpt.pt").read_bytes()
    for other in ("other.pt", "toy.pt"):  # other weights, another tokenizer
        with pytest.raises(UserError, match="--resume: the file of --init has changed"):
            call("run", "--resume", "--init", tmp_path / other)
    with pytest.raises(UserError, match="--reuse: the samples in .* were made with --init"):
        call("new", "--reuse", tmp_path / "run", "--init", tmp_path / "other.pt")
    assert (tmp_path / "run" / "ckpt.pt").read_bytes() == left
    call("run", "--resume", "--max-steps", 4)
    (tmp_path / "run" / "provenance.json").unlink()  # as an earlier version left it
    call("run", "--resume", "--max-steps", 5)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 5


def test_a_reward_model_that_diverges_ends_and_keeps_its_last_good_weights(call, seven, tmp_path):
    with pytest.raises(UserError, match=r"^step \d+: \S+ is (nan|inf), the run has diverged .*"
                                        "with a lower --learning-rate$"):
        call("run", "--learning-rate", "1e30", "--save-every", 1, "--eval-every", 1)
    for path in (tmp_path / "run").glob("*.pt"):
        assert all(w.isfinite().all() for w in checkpoint.load(path)["weights"].values())
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_kill_between_ckpt_and_best_pt_loses_neither(call, seven, tmp_path, monkeypatch):
    flags = ("--max-steps", 12, "--eval-every", 4, "--save-every", 5)
    call("whole", *flags)
    save = train_prm.save_reward_model

    def killed(path, *args, **state):
        if path.name == "best.pt":
            raise KeyboardInterrupt
        save(path, *args, **state)

    monkeypatch.setattr(train_prm, "save_reward_model", killed)
    with pytest.raises(KeyboardInterrupt):
        call("run", *flags)
    assert checkpoint.load(tmp_path / "run" / "ckpt.pt")["run"]["step"] == 4
    monkeypatch.setattr(train_prm, "save_reward_model", save)
    call("run", *flags, "--resume")
    one, two = (checkpoint.load(tmp_path / name) for name in ("whole", "run"))
    assert one["selected"] == two["selected"]
    assert all(torch.equal(one["weights"][name], two["weights"][name]) for name in one["weights"])
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    call("run", *flags, "--resume")  # finished
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_reward_model_has_the_tokenizer_of_its_policy(call, seven, tmp_path):
    toy = toy_tokenizer()
    checkpoint.save(tmp_path / "toy.pt", make_tiny(tokenizer=toy, max_len=256))
    for kind in ("orm", "prm"):
        call(kind, "--init", tmp_path / "toy.pt", "--kind", kind, "--max-steps", 3)
        assert load_reward_model(tmp_path / kind).tokenizer == toy
        assert checkpoint.load(tmp_path / kind / "ckpt.pt")["tokenizer"] == toy
    call("orm", "--init", tmp_path / "toy.pt", "--kind", "orm", "--max-steps", 4, "--resume")
    assert load_reward_model(tmp_path / "orm").tokenizer == toy

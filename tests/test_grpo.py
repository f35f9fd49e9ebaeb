"""GRPO: advantages, the loss by hand and by gradient, packing of responses, and one real update against a plain policy gradient."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import make_stopping

import train_grpo
from nanoreason.common import Machine, generator
from nanoreason.generate import Rollout, generate
from nanoreason.tasks import split_of, user_problem
from nanoreason.tokenizer import END, PAD, Response, decode, encode, render_prompt, render_response
from train_grpo import Config, draw_questions, group_advantages, grpo_loss, micro_batches, token_logprobs, update

MACHINE = Machine(torch.device("cpu"))
EXACT = dict(num_samples_per_prompt=4, minibatches=1, kl="none", grad_clip=1e9, row_tokens=64, micro_tokens=8192, precision="fp32")


def test_advantages_of_the_worked_example():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    half = 0.5 / math.sqrt(1 / 3)
    assert group_advantages(rewards, "mean").tolist() == [[0.75, -0.25, -0.25, -0.25], [0] * 4, [0] * 4, [0.5, 0.5, -0.5, -0.5]]
    assert torch.allclose(group_advantages(rewards), torch.tensor([[1.5, -0.5, -0.5, -0.5], [0] * 4, [0] * 4, [half, half, -half, -half]]))


@pytest.mark.parametrize("kind", ["mean", "mean-std"])
def test_equal_rewards_give_exactly_zero_advantage(kind):
    for value in (0.0, 1.0, 0.1, 1 / 3, 1.1, -0.7, 1e6):
        assert (group_advantages(torch.full((3, 7), value), kind) == 0).all()
    assert (group_advantages(torch.tensor([[0.1, 0.1, 0.2]]), kind) != 0).all()


def test_the_loss_by_hand():
    """Ratios 1.25 (clipped to 1.2, advantage 1) and 0.75 (clipped to 0.8, advantage -1); k3 of the first: 0.5 - ln 0.5 - 1."""
    logp, old, ref = (torch.tensor(p).log() for p in ([0.5, 0.3], [0.4, 0.4], [0.25, 0.3]))
    advantage, weight = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.25])
    k3 = 0.5 - math.log(0.5) - 1
    loss, clipped, kl = grpo_loss(logp, old, ref, advantage, weight, 0.2, 0.1)
    assert loss.item() == pytest.approx(-(0.5 * (1.2 - 0.1 * k3) + 0.25 * -0.8), abs=1e-6)
    assert clipped.item() == pytest.approx(0.75) and kl.item() == pytest.approx(0.5 * k3, abs=1e-6)
    loss, _, kl = grpo_loss(logp, old, None, advantage, weight, 0.2, 0.1)
    assert loss.item() == pytest.approx(-0.4, abs=1e-6) and kl.item() == 0


def test_the_loss_against_a_loop_in_float64():
    noise = generator(0, "loss")
    M = 200
    logp, old, ref = (torch.randn(M, generator=noise) * 0.3 - 1 for _ in range(3))
    advantage, weight = torch.randn(M, generator=noise), torch.rand(M, generator=noise)
    expected = clipped = kl = 0.0
    for l, o, r, a, w in zip(*(x.double().tolist() for x in (logp, old, ref, advantage, weight))):
        ratio = math.exp(l - o)
        bounded = min(max(ratio, 0.7), 1.3)
        k3 = math.exp(r - l) - (r - l) - 1
        expected -= w * (min(ratio * a, bounded * a) - 0.05 * k3)
        clipped += w * (bounded * a < ratio * a)
        kl += w * k3
    got = grpo_loss(logp, old, ref, advantage, weight, 0.3, 0.05)
    assert [x.item() for x in got] == pytest.approx([expected, clipped, kl], rel=1e-5)


@pytest.mark.parametrize("advantage, ratio, flows", [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 1.5, True), (-1.0, 0.5, False),
                                                     (1.0, 1.1, True), (-1.0, 0.9, True)])
def test_clipping_stops_the_gradient_only_where_the_policy_has_gone_far_enough(advantage, ratio, flows):
    """d/dlogp of -min(ratio A, clip(ratio) A): -ratio A, or 0 once the ratio has left [0.8, 1.2] on the side that A pushes to."""
    logp = torch.tensor([math.log(ratio) - 1], requires_grad=True)
    loss, clipped, _ = grpo_loss(logp, torch.tensor([-1.0]), None, torch.tensor([advantage]), torch.tensor([2.0]), 0.2, 0.0)
    loss.backward()
    assert logp.grad.item() == pytest.approx(-2 * ratio * advantage if flows else 0.0, abs=1e-5)
    assert clipped.item() == (0 if flows else 2)


def test_the_kl_gradient_vanishes_at_the_reference_and_pulls_back_elsewhere():
    for shift, sign in ((0.0, 0), (0.5, 1), (-0.5, -1)):
        logp = torch.tensor([-1.0 + shift], requires_grad=True)
        loss, _, kl = grpo_loss(logp, logp.detach(), torch.tensor([-1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2, 1.0)
        loss.backward()
        assert np.sign(logp.grad.item()) == sign and (kl.item() > 0) == (shift != 0)
        assert logp.grad.item() == pytest.approx(1 - math.exp(-shift), abs=1e-6)


# A real rollout, packed and updated


class Recorder:
    """An optimizer that keeps the gradients it is given and changes nothing."""

    def __init__(self, model):
        self.model, self.steps = model, []

    def step(self):
        self.steps.append({name: None if p.grad is None else p.grad.clone() for name, p in self.model.named_parameters()})

    def zero_grad(self):
        for p in self.model.parameters():
            p.grad = None


@pytest.fixture(scope="module")
def model():
    return make_stopping(bias=3.0)


PROMPTS = [[507, 10, 20, 508], [507, 30, 31, 32, 33, 34, 35, 36, 508], [507, 508], [507, 10, 20, 508], [507, 40, 41, 42, 508]]  # two are equal


def rolled(model, temperature=1.0, seed=0, prompts=PROMPTS):
    return generate(model, prompts, 4, 24, temperature, generator(seed, "rollout"))


def some_rewards(P=5, seed=0):
    """(P, 4) rewards of 0 and 1; the third group is all right and so says nothing."""
    rewards = (torch.rand(P, 4, generator=generator(seed, "rewards")) < 0.5).float()
    rewards[:, 0], rewards[:, 1], rewards[2] = 1, 0, 1
    return rewards


def plain_logprobs(model, prompt, response, temperature):
    """(L,) log-probabilities of a response, from a row of its own."""
    logits = model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1)


def plain_gradient(model, rollout, advantages, temperature, rows=None, total=20):
    """Gradient of -1/N sum_i A_i / |o_i| sum_t log pi(o_it): GRPO at ratio 1, one response at a time, nothing packed."""
    model = copy.deepcopy(model)
    loss = 0
    for row in range(len(rollout.ids)) if rows is None else rows:
        response = rollout.response(row)
        loss = loss - advantages[row].item() / total * plain_logprobs(model, PROMPTS[row // 4], response, temperature).mean()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def run_update(model, rollout, advantages, reference=None, prompts=PROMPTS, machine=MACHINE, **changes):
    model = copy.deepcopy(model)
    recorder = Recorder(model)
    row = update(model, reference, recorder, prompts, rollout, np.asarray(advantages, dtype=np.float32), Config(**{**EXACT, **changes}), machine, False)
    return row, recorder.steps


def same(a, b, rtol=1e-4):
    return all((a[name] - b[name]).norm() <= rtol * b[name].norm() + 1e-7 for name in b)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_the_first_on_policy_step_is_the_plain_policy_gradient_at_the_sampling_temperature(model, temperature):
    rollout, advantages = rolled(model, temperature), group_advantages(some_rewards()).flatten().numpy()
    row, (gradient,) = run_update(model, rollout, advantages, temperature=temperature)
    expected = plain_gradient(model, rollout, advantages, temperature)
    assert same(gradient, expected)
    assert row["clip_fraction"] == 0 and row["sampler_gap"] < 1e-5
    assert row["grad_norm"] == pytest.approx(math.sqrt(sum((g**2).sum().item() for g in expected.values())), rel=1e-4)
    with_signal = advantages != 0
    lengths = rollout.lengths.numpy()
    assert row["loss"] == pytest.approx(-advantages.sum() / with_signal.sum(), abs=1e-5)  # ratio 1: each response weighs its advantage
    if temperature != 1.0:  # a wrong temperature in the update would show
        wrong, _ = run_update(model, rollout, advantages, temperature=1.0)
        assert wrong["sampler_gap"] > 0.05
    assert len(set(lengths)) > 4


@pytest.mark.parametrize("clip_ratio", [0.0, 1e-7])
def test_the_ratio_is_exactly_one_with_old_logprobs_taken_beforehand(model, clip_ratio):
    """Two epochs make `update` take old log-probabilities first; with no room to move, any other ratio would be clipped."""
    rollout, advantages = rolled(model), group_advantages(some_rewards()).flatten().numpy()
    row, (first, second) = run_update(model, rollout, advantages, inner_epochs=2, clip_ratio=clip_ratio)
    assert row["clip_fraction"] == 0 and same(first, second, 0) and same(first, plain_gradient(model, rollout, advantages, 1.0))


def test_equal_rewards_give_exactly_zero_gradient(model):
    advantages = group_advantages(torch.ones(5, 4)).flatten().numpy()
    row, steps = run_update(model, rolled(model), advantages)
    assert all(g is None or not g.any() for step in steps for g in step.values())
    assert row["loss"] == 0 and row["grad_norm"] == 0
    real = copy.deepcopy(model)
    update(real, None, torch.optim.AdamW(real.parameters(), 1e-2, weight_decay=0.0), PROMPTS, rolled(model), advantages, Config(**EXACT), MACHINE, False)
    assert all(torch.equal(a, b) for a, b in zip(real.parameters(), model.parameters()))


def test_micro_batches_do_not_change_the_gradient(model):
    rollout, advantages = rolled(model), group_advantages(some_rewards()).flatten().numpy()
    (large,), (small,) = (run_update(model, rollout, advantages, micro_tokens=tokens)[1] for tokens in (8192, 64))
    assert same(small, large, 1e-5)
    rows = {tokens: run_update(model, rollout, advantages, micro_tokens=tokens)[0] for tokens in (8192, 64)}
    assert rows[64] == pytest.approx(rows[8192], rel=1e-3, abs=1e-6)  # logged figures are those of the whole batch too
    (longer,) = run_update(model, rollout, advantages, row_tokens=128)[1]
    assert same(longer, large, 1e-4)


def test_minibatches_split_by_whole_groups_and_each_weighs_its_own_responses(model):
    rollout, advantages = rolled(model), group_advantages(some_rewards()).flatten().numpy()
    _, steps = run_update(model, rollout, advantages, minibatches=2)
    for step, groups in zip(steps, ((0, 2, 4), (1, 3)), strict=True):
        rows = [4 * g + i for g in groups for i in range(4)]
        assert same(step, plain_gradient(model, rollout, advantages, 1.0, rows, total=len(rows)))


def test_two_ranks_sum_to_the_gradient_of_one(model):
    """Ranks 0 and 1 of 2 hold two groups each; the total of a number is twice a rank's own, and gradients are added by hand here."""

    class Half(Machine):
        def total(self, value):
            return 2 * float(value)

        def sum_gradients(self, model):
            pass

    prompts = PROMPTS[:2] + PROMPTS[3:]
    advantages = group_advantages(some_rewards(4, seed=3)).flatten().numpy()
    advantages[2 * 4 : 3 * 4] = [0.5, -0.5, 1.0, -1.0]
    whole = rolled(model, prompts=prompts)
    _, (one,) = run_update(model, whole, advantages, prompts=prompts)
    halves = []
    for rank in (0, 1):
        rows = torch.tensor([4 * g + i for g in range(rank, 4, 2) for i in range(4)])
        part = type(whole)(whole.ids[rows], whole.mask[rows], whole.logprobs[rows], whole.ended[rows])
        halves.append(run_update(model, part, advantages[rows.numpy()], prompts=prompts[rank::2], machine=Half(torch.device("cpu"), rank, 2))[1][0])
    assert same({name: halves[0][name] + halves[1][name] for name in one}, one)


def test_the_kl_is_zero_at_the_reference_and_costs_nothing_there(model):
    rollout, advantages = rolled(model), group_advantages(some_rewards()).flatten().numpy()
    row, (with_kl,) = run_update(model, rollout, advantages, reference=copy.deepcopy(model), kl="k3", kl_coef=0.5)
    assert row["kl"] == 0 and row["clip_fraction"] == 0
    assert same(with_kl, plain_gradient(model, rollout, advantages, 1.0))


def test_the_kl_to_another_reference_is_the_weighted_k3_of_every_response(model):
    rollout, advantages = rolled(model, 1.3), group_advantages(some_rewards()).flatten().numpy()
    reference = make_stopping(bias=4.0)
    row, (gradient,) = run_update(model, rollout, advantages, reference=reference, kl="k3", kl_coef=0.5, temperature=1.3)
    mine, total = copy.deepcopy(model), 0
    loss = 0
    for i in range(20):
        prompt, response = PROMPTS[i // 4], rollout.response(i)
        logp = plain_logprobs(mine, prompt, response, 1.3)
        with torch.no_grad():
            ref = plain_logprobs(reference, prompt, response, 1.3)
        k3 = ((ref - logp).exp() - (ref - logp) - 1).mean()
        total += k3.item() / 20
        loss = loss - (advantages[i].item() * logp.mean() - 0.5 * k3) / 20  # groups without signal count for the KL
    loss.backward()
    assert total > 1e-3 and row["kl"] == pytest.approx(total, rel=1e-4)
    assert same(gradient, {name: p.grad for name, p in mine.named_parameters()}, 1e-3)


def test_entropy_and_sampler_gap_are_means_over_tokens_within_and_then_over_responses(model):
    rollout, advantages = rolled(model), np.where(np.arange(20) % 2, 1.0, -1.0)
    row, _ = run_update(model, rollout, advantages)
    entropy = 0
    with torch.no_grad():
        for i in range(20):
            prompt, response = PROMPTS[i // 4], rollout.response(i)
            logp = model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1].log_softmax(-1)
            entropy += -(logp.exp() * logp).sum(-1).mean().item() / 20
    assert row["entropy"] == pytest.approx(entropy, rel=1e-4)
    rollout.logprobs = rollout.logprobs + 0.25 * rollout.mask
    assert run_update(model, rollout, advantages)[0]["sampler_gap"] == pytest.approx(0.25, abs=1e-4)


def test_every_packed_token_carries_its_own_responses_advantage_weight_and_logprob(model):
    """Prompts in another order, two of them equal, rows left out: each document found by its ids must bring its own row's numbers."""
    rollout = rolled(model, 0.8, seed=4)
    advantages = np.random.default_rng(0).normal(size=20).astype(np.float32)
    rows = [17, 3, 12, 0, 15, 1, 13, 8, 9, 14, 2, 19]
    full = {}
    for row in rows:
        full.setdefault(tuple(PROMPTS[row // 4] + rollout.response(row)), []).append(row)
    seen = Counter()
    for micro in micro_batches(PROMPTS, rollout, advantages, rows, Config(**EXACT | dict(micro_tokens=128)), total=40, device=torch.device("cpu")):
        tokens, doc_start, select = micro["tokens"], micro["doc_start"], micro["select"].tolist()
        T = tokens.size(1)
        with torch.no_grad():
            logp, entropy = token_logprobs(model, micro, 0.8)
        assert entropy is None and torch.allclose(logp, micro["sampled"], atol=2e-5)
        for b, start in {(place // T, int(doc_start[place // T, place % T])) for place in select}:
            inside = [n for n, place in enumerate(select) if place // T == b and doc_start[b, place % T] == start]
            end = select[inside[-1]] % T + 2
            (row,) = full[tuple(tokens[b, start:end].tolist())]
            response = rollout.response(row)
            assert micro["targets"][inside].tolist() == response
            assert micro["advantage"][inside].tolist() == [pytest.approx(float(advantages[row]))] * len(response)
            assert micro["weight"][inside].tolist() == [pytest.approx(1 / (40 * len(response)))] * len(response)
            assert torch.equal(micro["sampled"][inside], rollout.logprobs[row, : len(response)])
            seen[row] += 1
    assert seen == Counter(rows)


def test_equal_prompts_stay_two_groups(model):
    """Prompts 0 and 3 are the same text: normalised apart, a lone success in one group is no success of the other."""
    rewards = torch.zeros(5, 4)
    rewards[0, 0], rewards[3] = 1, 1
    advantages = group_advantages(rewards)
    assert advantages[0].tolist() == [1.5, -0.5, -0.5, -0.5] and not advantages[3].any()
    rollout = rolled(model)
    _, (gradient,) = run_update(model, rollout, advantages.flatten().numpy())
    assert same(gradient, plain_gradient(model, rollout, advantages.flatten().numpy(), 1.0))


def test_questions_are_training_questions_and_ranks_share_them_out():
    config = Config(prompts=64)
    whole = draw_questions(config, 3, MACHINE)
    for world, minibatches in ((4, 1), (2, 2), (2, 4)):
        several = Config(prompts=64, minibatches=minibatches)
        shares = [draw_questions(several, 3, Machine(torch.device("cpu"), r, world)) for r in range(world)]
        for part in range(minibatches):  # over all ranks a minibatch holds what it holds on one, shared out evenly
            assert {p.key for p in whole[part::minibatches]} == {p.key for share in shares for p in share[part::minibatches]}
            assert {len(share[part::minibatches]) for share in shares} == {64 // world // minibatches}
        assert Counter(p.key for p in whole) == Counter(p.key for share in shares for p in share)
    assert train_grpo.own_share(Config(prompts=8), Machine(torch.device("cpu"), 1, 2)) == [2, 3, 6, 7]
    assert {split_of(p.family, p.params) for step in range(5) for p in draw_questions(config, step, MACHINE)} == {"train"}
    steps = [{p.question for p in draw_questions(config, step, MACHINE)} for step in range(3)]
    assert all(len(steps[i] & steps[j]) < 12 for i, j in ((0, 1), (1, 2), (0, 2)))
    assert {p.family for p in whole} == set(config.families.split(",")) and {p.level for p in whole} == {1, 2}


def test_questions_of_the_users_own_come_from_their_training_split():
    own = {"train": [user_problem(f"What is {i}?", str(i)) for i in range(30)], "val": [user_problem("val", "1")]}
    config = Config(prompts=200)
    whole = draw_questions(config, 3, MACHINE, own)
    assert {p.question for p in whole} == {p.question for p in own["train"]}
    assert [draw_questions(config, 3, Machine(torch.device("cpu"), r, 2), own) for r in range(2)] == [[p for i, p in enumerate(whole) if i % 4 // 2 == r] for r in range(2)]
    assert whole != draw_questions(config, 4, MACHINE, own)


def scripted(monkeypatch, respond):
    """Let the trainer sample what respond(question), a list of responses as ids, says."""

    def generate(model, prompts, count, *rest, **options):
        script = [ids for prompt in prompts for ids in respond(decode(prompt[1:-1]))]
        longest = max(map(len, script))
        ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in script])
        mask = torch.tensor([[i < len(s) for i in range(longest)] for s in script])
        return Rollout(ids, mask, torch.zeros(ids.shape), (ids == END).any(1))

    monkeypatch.setattr(train_grpo, "generate", generate)


def test_every_response_is_rewarded_for_its_own_question_and_compared_with_its_own_group(model, monkeypatch):
    """'What is n?' is answered n briefly, n after n + 1 needless lines, and n + 1: each group has its own shortest right response."""
    own = {"train": [user_problem(f"What is {n}?", str(n)) for n in range(1, 9)], "val": []}
    briefly = lambda n: "\n".join(["so"] * n)  # the larger n, the longer even the shortest
    scripted(monkeypatch, lambda q: [render_response(briefly(n), str(m)) for n, m in ((int(q[8:-1]), int(q[8:-1])), (2 * int(q[8:-1]), int(q[8:-1])), (1, int(q[8:-1]) + 1))])
    config = Config(num_samples_per_prompt=3, prompts=6, length_penalty=-0.01, length_form="calibrated", format_weight=0.5)
    prompts, rollout, rewards, row = train_grpo.rollout_step(model, config, 0, MACHINE, own)
    problems = draw_questions(config, 0, MACHINE, own)
    assert prompts == [render_prompt(p.question) for p in problems] and len({p.question for p in problems}) > 2
    longer = [len(encode(briefly(2 * n))) - len(encode(briefly(n))) for n in (int(p.answer) for p in problems)]
    assert len(set(longer)) > 2 and min(longer) > 0
    assert rewards["outcome"].tolist() == [[1, 1, 0]] * 6 and rewards["format"].tolist() == [[1, 1, 1]] * 6 and "process" not in rewards
    assert rewards["length"].tolist() == [pytest.approx([0, -0.01 * n, 0]) for n in longer]
    assert rewards["total"].tolist() == [pytest.approx([1.5, 1.5 - 0.01 * n, 0.5]) for n in longer]
    assert row["reward_length"] == pytest.approx(-0.01 * sum(longer) / 18) and row["reward_total"] == pytest.approx(7 / 6 - 0.01 * sum(longer) / 18) and row["solve_rate"] == pytest.approx(2 / 3)


def test_rollout_metrics_count_groups_without_signal_and_lengths_by_outcome():
    lengths = torch.tensor([2, 4, 6, 8, 1, 3])
    mask = torch.arange(8) < lengths[:, None]
    rollout = Rollout(torch.zeros(6, 8, dtype=torch.long), mask, torch.zeros(6, 8), torch.tensor([True, True, False, True, True, True]))
    outcome = torch.tensor([[1.0, 1], [0, 0], [1, 0]])
    responses = [Response("a = 1", "1", True)] * 3 + [Response("", "1", True)] * 3
    row = train_grpo.rollout_metrics({"outcome": outcome, "format": torch.ones(3, 2)}, rollout, responses, MACHINE)
    expected = dict(solve_rate=0.5, all_right=1 / 3, all_wrong=1 / 3, length=4, length_right=7 / 3, length_wrong=17 / 3, truncated=1 / 6, thinks=0.5, format=1)
    assert {name: row[name] for name in expected} == pytest.approx(expected)

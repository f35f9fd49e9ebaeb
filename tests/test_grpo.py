"""One step of GRPO: which questions are asked, how responses are rewarded, which groups stay.

The update is compared, on real rollouts, with a plain computation of one response at a time.
"""

import copy
import math
import threading
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import (
    END, PAD, decode, encode, make_stopping, render_prompt, render_response, tokenizer,
)

from nanoreason import experience as experience_module
from nanoreason.experience import (
    reward_responses,
    rollout_metrics,
    sample_groups,
    sequence_kl,
    token_logprobs,
)
from nanoreason.generate import Rollout, generate, uniform_numbers
from nanoreason.machine import Machine, generator
from nanoreason.questions import Questions, own_share
from nanoreason.rewards import RewardConfig
from nanoreason.tasks import split_of, user_problem
from train_grpo import PAPERS, Config, group_advantages, token_advantages, update

CPU = torch.device("cpu")
MACHINE = Machine(CPU)
LOSSES = tuple(PAPERS)
EXACT = dict(  # one step in float32, without a KL, in which clipping the gradient changes nothing
    num_samples_per_prompt=4,
    minibatches=1,
    kl="none",
    grad_clip=1e9,
    row_tokens=64,
    micro_tokens=8192,
    max_reasoning_tokens=24,
    precision="fp32",
)


def exact_config(**changes):
    return Config(**EXACT | changes)


class Ranks:
    """Machines of several ranks, each a thread of this process.

    `run(work)` calls work(machine) in each and returns the results in the order of the ranks.
    """

    def __init__(self, world):
        self.world = world
        self.barrier = threading.Barrier(world, timeout=30)
        self.slots = [None] * world

    def exchange(self, rank, value):
        """The values of all ranks, once each has given its own."""
        self.slots[rank] = value
        self.barrier.wait()
        everything = list(self.slots)
        self.barrier.wait()
        return everything

    def machine(self, rank):
        """The Machine of one rank, whose sums go over all threads."""
        ranks = self

        @dataclass(frozen=True)
        class Rank(Machine):
            def total(self, value):
                return sum(ranks.exchange(self.rank, float(value)))

            def sum(self, tensor):
                return sum(ranks.exchange(self.rank, tensor))

        return Rank(CPU, rank, self.world)

    def run(self, work):
        results = [None] * self.world

        def one(rank):
            try:
                results[rank] = work(self.machine(rank))
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


# A real rollout, packed and updated


class Recorder:
    """An optimizer that keeps the gradients it is given and changes no weights.

    With `then`, its first step sets the weights to those of that model.
    """

    def __init__(self, model, then=None):
        self.model = model
        self.then = then
        self.steps = []

    def step(self):
        gradient = {}
        for name, p in self.model.named_parameters():
            gradient[name] = None if p.grad is None else p.grad.clone()
        self.steps.append(gradient)
        if self.then is not None:
            self.model.load_state_dict(self.then.state_dict())

    def zero_grad(self):
        for p in self.model.parameters():
            p.grad = None


@pytest.fixture(scope="module")
def model():
    return make_stopping(bias=3.0)


QUESTIONS = (  # two are equal
    "What is 2 + 2?",
    "Which number comes right after the number 11?",
    "4?",
    "What is 2 + 2?",
    "Solve 3x = 9.",
)
PROBLEMS = [user_problem(question, "1") for question in QUESTIONS]
PROMPTS = [render_prompt(p.question) for p in PROBLEMS]


def rolled(model, temperature=1.0, seed=0, problems=PROBLEMS):
    """An Experience of four responses of uneven length to each problem."""
    prompts = [render_prompt(p.question) for p in problems]
    rollout = generate(model, prompts, 4, 24, temperature, generator(seed, "rollout"))
    index = list(range(len(problems)))
    return reward_responses(problems, rollout, 4, RewardConfig(), index, tokenizer)


def some_rewards(P=5, seed=0):
    """(P, 4) rewards of 0 and 1; the third group is all right and so has no signal."""
    rewards = (torch.rand(P, 4, generator=generator(seed, "rewards")) < 0.5).float()
    rewards[:, 0] = 1
    rewards[:, 1] = 0
    rewards[2] = 1
    return rewards


def spread(rewards, experience):
    """(N, L) advantages of whole responses."""
    rollout = experience.rollout
    return token_advantages(rewards, [[]] * len(rollout.ids), rollout.lengths)


def by_token(experience, seed=0):
    """(N, L) advantages that differ from token to token; the third group has none."""
    N, L = experience.rollout.ids.shape
    inside = torch.arange(L) < experience.rollout.lengths[:, None]
    advantages = torch.randn(N, L, generator=generator(seed, "by token")) * inside
    advantages[8:12] = 0
    return advantages


def rows_of(groups):
    """Rows of these groups of four responses."""
    return [4 * p + g for p in groups for g in range(4)]


def plain_logprobs(model, prompt, response, temperature):
    """(L,) log-probabilities of a response, from a row of its own."""
    logits = model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1)


def plain_weight(loss, responses, tokens, length):
    """Weight of each token of a response. responses, tokens: their numbers in the minibatch."""
    weights = {
        "grpo": 1 / (responses * length),
        "gspo": 1 / (responses * length),
        "dr-grpo": 1 / (responses * EXACT["max_reasoning_tokens"]),
        "dapo": 1 / tokens,
        "cispo": 1 / tokens,
    }
    return weights[loss]


def plain_gain(loss, logp, old_logp, A, clip):
    """Gain (L,) of each token of one response, and which tokens are clipped, (L,) bool."""
    low = 1 - clip[0] if clip[0] else 0.0
    high = 1 + clip[1] if clip[1] else math.inf
    if loss == "cispo":
        r = (logp.detach() - old_logp).exp()
        return r.clip(low, high) * A * logp, (r < low) | (r > high)
    if loss == "gspo" and (A == A[0]).all():
        # Eq. 5 has no sg(): its gradient flows through the geometric mean of the ratios.
        r = (logp - old_logp).mean().exp().expand(len(logp))
    elif loss == "gspo":  # eq. 13
        r = (logp - old_logp).mean().exp().detach() * logp.exp() / logp.exp().detach()
    else:
        r = (logp - old_logp).exp()
    gain = torch.minimum(r * A, r.clip(low, high) * A)
    clipped = ((A > 0) & (r > high)) | ((A < 0) & (r < low))
    return gain, clipped


def in_float64(net):
    return None if net is None else copy.deepcopy(net).double()


class Objective(NamedTuple):
    """Results of `plain_objective`. The numbers are means over tokens, weighted like the loss."""

    gradient: dict
    clip_fraction: float
    kl: float  # k3
    loss: float


def plain_objective(
    model,
    experience,
    advantages,
    loss="grpo",
    old=None,
    reference=None,
    kl="none",
    kl_coef=0.0,
    clip=(0.2, 0.2),
    temperature=1.0,
    rows=None,
):
    """The papers' objective in float64, one response at a time, nothing packed.

    rows: the responses of the minibatch, all by default. old: the policy that sampled; without it
    the ratio is 1.
    """
    model = in_float64(model)
    old = in_float64(old)
    reference = in_float64(reference)
    rows = list(range(len(experience.rollout.ids))) if rows is None else rows
    tokens = sum(len(experience.rollout.response(row)) for row in rows)
    total = 0.0
    clipped = 0.0
    mean_k3 = 0.0
    weights = 0.0
    for row in rows:
        prompt = render_prompt(experience.problems[row // 4].question)
        response = experience.rollout.response(row)
        n = len(response)
        logp = plain_logprobs(model, prompt, response, temperature)
        with torch.no_grad():
            old_logp = ref_logp = logp.detach()
            if old is not None:
                old_logp = plain_logprobs(old, prompt, response, temperature)
            if reference is not None:
                ref_logp = plain_logprobs(reference, prompt, response, temperature)
        A = advantages[row, :n].double()
        weight = plain_weight(loss, len(rows), tokens, n)
        gain, cut = plain_gain(loss, logp, old_logp, A, clip)
        x = logp - ref_logp
        k3 = (-x).exp() - 1 + x
        penalty = {"none": 0 * x, "k1": 0 * x, "k2": x**2 / 2, "k3": k3}[kl]
        total = total - weight * (gain - kl_coef * penalty).sum()
        if reference is not None or A.any():  # without a KL, the means leave out what has no signal
            clipped += weight * cut.sum().item()
            mean_k3 += weight * k3.sum().item()
            weights += weight * n
    total.backward()
    gradient = {name: p.grad.float() for name, p in model.named_parameters()}
    return Objective(gradient, clipped / weights, mean_k3 / weights, total.item() / weights)


def run_update(
    model, experience, advantages, reference=None, machine=MACHINE, then=None, **changes
):
    """Metrics of an update of a copy of the model, and the gradient of each optimizer step."""
    model = copy.deepcopy(model)
    recorder = Recorder(model, then)
    config = exact_config(**changes)
    row = update(model, reference, recorder, experience, advantages, config, machine, False)
    return row, recorder.steps


def same(a, b, rtol=1e-4):
    """Whether two gradients agree, parameter by parameter."""
    return all((a[name] - b[name]).norm() <= rtol * b[name].norm() + 1e-7 for name in b)


def norm(gradient):
    return math.sqrt(sum((g**2).sum().item() for g in gradient.values()))


def nudged(model, size, seed=0):
    """The model with every weight moved a little."""
    other = copy.deepcopy(model)
    noise = generator(seed, "nudge")
    with torch.no_grad():
        for p in other.parameters():
            p += size * torch.randn(p.shape, generator=noise)
    return other


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_the_first_on_policy_step_is_the_plain_policy_gradient_at_the_sampling_temperature(
    model, temperature
):
    experience = rolled(model, temperature)
    rewards = some_rewards()
    advantages = spread(rewards, experience)
    row, (gradient,) = run_update(model, experience, advantages, temperature=temperature)

    # -1/N sum_i A_i / |o_i| sum_t log pi(o_it): no ratio at all
    mine = copy.deepcopy(model)
    loss = 0
    for i, advantage in enumerate(group_advantages(rewards).flatten().tolist()):
        response = experience.rollout.response(i)
        logp = plain_logprobs(mine, PROMPTS[i // 4], response, temperature)
        loss = loss - advantage / 20 * logp.mean()
    loss.backward()
    expected = {name: p.grad for name, p in mine.named_parameters()}
    plain = plain_objective(model, experience, advantages, temperature=temperature)
    assert same(gradient, expected) and same(gradient, plain.gradient)

    assert row["clip_fraction"] == 0 and row["sampler_gap"] < 1e-5
    assert row["grad_norm"] == pytest.approx(norm(expected), rel=1e-4)
    # The ratio is 1: each of the 16 responses with signal contributes its advantage.
    mean_advantage = group_advantages(rewards).sum().item() / 16
    assert row["loss"] == pytest.approx(-mean_advantage, abs=1e-5)
    if temperature != 1.0:  # a wrong temperature in the update would show
        wrong, _ = run_update(model, experience, advantages, temperature=1.0)
        assert wrong["sampler_gap"] > 0.05
    assert len(set(experience.rollout.lengths.tolist())) > 4


@pytest.mark.parametrize("loss", LOSSES)
def test_the_ratio_is_exactly_one_with_old_logprobs_taken_beforehand(model, loss):
    """Two epochs make `update` take old log-probabilities first.

    The clip leaves no room, so that any ratio but 1 would be clipped.
    """
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    for clip_ratio in (0.0, 1e-7):
        row, (first, second) = run_update(
            model, experience, advantages, inner_epochs=2, clip_ratio=clip_ratio, loss=loss
        )
        assert row["clip_fraction"] == 0 and same(first, second, 0)
        assert same(first, plain_objective(model, experience, advantages, loss).gradient)


@pytest.mark.parametrize(
    "loss, kl",
    [
        *((loss, "k3") for loss in LOSSES),
        ("grpo", "none"),
        ("dapo", "k2"),
    ],
)
def test_every_loss_has_its_papers_gradient_on_and_off_policy(model, loss, kl):
    """Responses of uneven length, two minibatches, one or two epochs.

    After the first step the weights are those of `drifted`; the old log-probabilities stay.
    """
    experience = rolled(model, 1.2)
    drifted = nudged(model, 0.02)
    reference = None if kl == "none" else make_stopping(bias=4.0)
    # Bounds at which some tokens are clipped and others are not
    clip = {"gspo": (0.002, 0.004), "cispo": (0.0, 0.05)}.get(loss, (0.05, 0.1))
    settings = dict(loss=loss, kl=kl, kl_coef=0.3, temperature=1.2)
    parts = [rows_of((0, 2, 4)), rows_of((1, 3))]
    whole = spread(some_rewards(), experience)
    uneven = by_token(experience)
    for advantages, epochs in ((whole, 2), (uneven, 1)):
        row, steps = run_update(
            model,
            experience,
            advantages,
            reference,
            then=drifted,
            minibatches=2,
            inner_epochs=epochs,
            clip_ratio=clip[0],
            clip_high=clip[1],
            **settings,
        )
        oracle = []
        for net, rows in zip((model, drifted, drifted, drifted), parts * epochs):
            oracle.append(
                plain_objective(
                    net,
                    experience,
                    advantages,
                    reference=reference,
                    old=model,
                    clip=clip,
                    rows=rows,
                    **settings,
                )
            )
        check_steps_against(oracle, row, steps)
        if reference is not None:  # then all responses carry a loss
            check_means_against(oracle, row, loss, experience, parts * epochs)


def check_steps_against(oracle, row, steps):
    """Every step has the oracle's gradient. Steps after the first clip a part of the tokens."""
    for step, expected in zip(steps, oracle, strict=True):
        assert same(step, expected.gradient, 3e-4)
        assert sum(g.norm() for g in step.values()) > 1e-3
    assert oracle[0].clip_fraction == 0
    assert all(0.02 < expected.clip_fraction < 0.98 for expected in oracle[1:])
    mean_norm = np.mean([norm(expected.gradient) for expected in oracle])
    assert row["grad_norm"] == pytest.approx(mean_norm, rel=1e-3)


def check_means_against(oracle, row, loss, experience, parts):
    """Logged means over minibatches. Their weights are equal where a minibatch's add up to 1."""
    weights = [1.0] * len(parts)
    if loss == "dr-grpo":
        lengths = experience.rollout.lengths
        weights = [lengths[rows].sum().item() / len(rows) for rows in parts]
    expected = dict(
        clip_fraction=np.average([o.clip_fraction for o in oracle], weights=weights),
        kl=np.average([o.kl for o in oracle], weights=weights),
        loss=np.average([o.loss for o in oracle], weights=weights),
    )
    logged = {name: row[name] for name in expected}
    assert logged == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_the_losses_have_different_gradients_on_one_rollout(model):
    """Else comparing each with its own paper would prove little."""
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    steps = {}
    for loss in LOSSES:
        _, (gradient,) = run_update(model, experience, advantages, loss=loss)
        steps[loss] = torch.cat([g.flatten() for g in gradient.values()])

    def far(a, b):
        return (steps[a] - steps[b]).norm() > 0.05 * steps[b].norm()

    assert far("grpo", "dr-grpo") and far("grpo", "dapo") and far("dr-grpo", "dapo")
    # On-policy these pairs agree.
    assert torch.allclose(steps["gspo"], steps["grpo"], rtol=1e-3, atol=1e-5)
    assert torch.allclose(steps["cispo"], steps["dapo"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_rewards_give_exactly_zero_gradient(model, loss):
    experience = rolled(model)
    advantages = spread(torch.full((5, 4), 0.1), experience)
    row, steps = run_update(model, experience, advantages, loss=loss)
    assert all(g is None or not g.any() for step in steps for g in step.values())
    # No token was trained on.
    assert row["loss"] is row["entropy"] is None and row["grad_norm"] == 0

    real = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(real.parameters(), 1e-2, weight_decay=0.0)
    config = exact_config(loss=loss)
    update(real, None, optimizer, experience, advantages, config, MACHINE, False)
    assert all(torch.equal(a, b) for a, b in zip(real.parameters(), model.parameters()))

    # With a KL the rows are there, and at the reference it costs nothing.
    reference = copy.deepcopy(model)
    with_kl, _ = run_update(model, experience, advantages, reference, loss=loss, kl="k3")
    assert with_kl["grad_norm"] == 0 and with_kl["entropy"] > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_do_not_change_the_gradient(model, loss):
    experience = rolled(model)
    advantages = by_token(experience)
    settings = dict(then=nudged(model, 0.02), loss=loss, inner_epochs=2)
    whole, large = run_update(model, experience, advantages, **settings)
    for changes in (
        dict(micro_tokens=64),
        dict(row_tokens=128),
        dict(row_tokens=16),  # most responses are longer and get rows of their own length
        dict(gradient_accumulation=3),
    ):
        row, steps = run_update(model, experience, advantages, **settings, **changes)
        assert all(same(a, b) for a, b in zip(steps, large, strict=True))
        assert row == pytest.approx(whole, rel=1e-3, abs=1e-6)  # and the same metrics


def test_gradient_accumulation_splits_a_minibatch_into_at_least_that_many_passes(model):
    experience = rolled(model)

    def passes(n):
        config = exact_config(gradient_accumulation=n)
        return len(experience.micro_batches(range(20), {}, config, CPU))

    rows = passes(1000)
    assert passes(1) == 1 and rows > 4
    assert all(n <= passes(n) <= rows for n in range(2, rows + 1))


def test_minibatches_split_by_index_and_each_weighs_its_own_responses(model):
    """The index over all ranks decides, not the order in this rank's share.

    A rank of several may hold the groups 0, 1, 4, 5, 8.
    """
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    for global_index, parts in (
        ([0, 1, 2, 3, 4], ((0, 2, 4), (1, 3))),
        ([6, 2, 1, 3, 4], ((0, 1, 4), (2, 3))),
        ([1, 1, 2, 3, 5], ((2,), (0, 1, 3, 4))),
    ):
        experience.global_index = global_index
        for loss in ("grpo", "dr-grpo", "dapo"):
            _, steps = run_update(model, experience, advantages, minibatches=2, loss=loss)
            for step, groups in zip(steps, parts, strict=True):
                rows = rows_of(groups)
                if advantages[rows].any():
                    plain = plain_objective(model, experience, advantages, loss, rows=rows)
                    assert same(step, plain.gradient)
                else:
                    assert all(g is None for g in step.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_two_ranks_sum_to_the_gradient_of_one(model, loss):
    """The ranks hold unequal numbers of tokens; with `lopsided` one of them holds all signal.

    Their gradients are added by hand here.
    """
    experience = rolled(model)
    groups = ([0, 1, 4], [2, 3])
    settings = dict(minibatches=2, inner_epochs=2, loss=loss, then=nudged(model, 0.02))
    even = by_token(experience)
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def full(step):
        return {name: zero[name] if g is None else g for name, g in step.items()}

    for lopsided in (False, True):
        advantages = even.clone()
        if lopsided:
            advantages[8:16] = 0
        row, one = run_update(model, experience, advantages, **settings)

        def share(machine):
            mine = groups[machine.rank]
            object.__setattr__(machine, "sum_gradients", lambda net: None)  # each keeps its own
            part = experience.select(mine)
            own = advantages[rows_of(mine)]
            return run_update(model, part, own, machine=machine, **settings)

        (row0, steps0), (row1, steps1) = Ranks(2).run(share)
        for a, b, whole in zip(steps0, steps1, one, strict=True):
            assert same({name: full(a)[name] + full(b)[name] for name in zero}, full(whole))
            assert not lopsided or all(g is None for g in b.values())
        for name in ("loss", "clip_fraction", "entropy", "sampler_gap"):
            assert row0[name] == row1[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6)


def test_the_kl_is_zero_at_the_reference_and_costs_nothing_there(model):
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    for kl in ("k2", "k3"):
        reference = copy.deepcopy(model)
        row, (with_kl,) = run_update(
            model, experience, advantages, reference=reference, kl=kl, kl_coef=0.5
        )
        assert row["kl"] == 0 and row["clip_fraction"] == 0
        assert same(with_kl, plain_objective(model, experience, advantages).gradient)


def test_k1_of_a_response_is_its_log_ratio_to_the_reference_at_the_sampling_temperature(model):
    """Less its group's mean, in the response's own row, however they are packed.

    The loss holds none of it.
    """
    experience = rolled(model, 1.3)
    reference = make_stopping(bias=4.0)
    expected = []
    with torch.no_grad():
        for i in range(20):
            pair = (PROMPTS[i // 4], experience.rollout.response(i))
            log_ratio = plain_logprobs(model, *pair, 1.3) - plain_logprobs(reference, *pair, 1.3)
            expected.append(sum(log_ratio.tolist()))
    means = [sum(expected[i : i + 4]) / 4 for i in range(0, 20, 4)]
    centred = [x - means[i // 4] for i, x in enumerate(expected)]
    for changes in ({}, dict(micro_tokens=64), dict(row_tokens=16)):
        config = exact_config(temperature=1.3, **changes)
        k1 = sequence_kl(model, reference, experience, config, CPU, False)
        assert k1.shape == (20, 1)
        assert k1.flatten().tolist() == pytest.approx(centred, abs=1e-4)
    assert max(expected) - min(expected) > 1
    own = copy.deepcopy(model)
    assert not sequence_kl(model, own, experience, exact_config(), CPU, False).any()

    advantages = spread(some_rewards(), experience)
    settings = dict(kl="k1", kl_coef=0.5, temperature=1.3)
    row, (gradient,) = run_update(model, experience, advantages, reference=reference, **settings)
    plain = plain_objective(model, experience, advantages, temperature=1.3)
    assert same(gradient, plain.gradient) and row["kl"] > 1e-3


def test_entropy_and_sampler_gap_are_means_over_tokens_within_and_then_over_responses(model):
    experience = rolled(model)
    rollout = experience.rollout
    advantages = torch.where(torch.arange(20) % 2 > 0, 1.0, -1.0)[:, None] * rollout.mask
    row, _ = run_update(model, experience, advantages)
    entropy = 0
    with torch.no_grad():
        for i in range(20):
            prompt = PROMPTS[i // 4]
            logits = model(torch.tensor([prompt + rollout.response(i)]))[0, len(prompt) - 1 : -1]
            logp = logits.log_softmax(-1)
            entropy += -(logp.exp() * logp).sum(-1).mean().item() / 20
    assert row["entropy"] == pytest.approx(entropy, rel=1e-4)
    rollout.logprobs = rollout.logprobs + 0.25 * rollout.mask
    row, _ = run_update(model, experience, advantages)
    assert row["sampler_gap"] == pytest.approx(0.25, abs=1e-4)


def test_the_sampler_gap_is_measured_before_any_step_and_not_diluted_by_later_ones(model):
    """The second minibatch takes the sampler's log-probabilities, whose gap to themselves is 0; in
    the second epoch the weights are no longer the sampler's."""
    experience = rolled(model)
    rollout = experience.rollout
    rollout.logprobs = rollout.logprobs + 0.25 * rollout.mask
    advantages = by_token(experience)
    for minibatches, inner_epochs in ((1, 1), (2, 1), (1, 2), (5, 1), (2, 3)):
        settings = dict(minibatches=minibatches, inner_epochs=inner_epochs)
        row, _ = run_update(model, experience, advantages, then=nudged(model, 0.05), **settings)
        assert row["sampler_gap"] == pytest.approx(0.25, abs=1e-4), settings
    first = rows_of([0, 2, 4])  # of the first minibatch: nothing to train on, nothing to measure
    advantages[first] = 0
    row, _ = run_update(model, experience, advantages, minibatches=2)
    assert row["sampler_gap"] is None and row["entropy"] > 0


@pytest.mark.parametrize("share", [True, False])
def test_every_packed_token_carries_its_own_responses_values(model, share):
    """Rows in another order, two equal prompts, rows left out.

    Each document, found by its ids, must carry the numbers of its own row.
    """
    experience = rolled(model, 0.8, seed=4)
    rows = [17, 3, 12, 0, 15, 1, 13, 8, 9, 14, 2, 19]
    rollout = experience.rollout
    advantages = by_token(experience)
    full = {tuple(PROMPTS[row // 4] + rollout.response(row)): row for row in rows}
    assert len(full) == len(rows)
    values = dict(advantage=advantages, sampler_logp=rollout.logprobs)
    config = exact_config(micro_tokens=96)
    micro_batches = experience.micro_batches(rows, values, config, CPU, share)
    seen = Counter()
    for micro in micro_batches:
        with torch.no_grad():
            logp, entropy = token_logprobs(model, micro, 0.8)
        assert entropy is None and torch.allclose(logp, micro["sampler_logp"], atol=2e-5)
        owners = micro["response"].unique().tolist()
        assert owners == list(range(len(owners)))  # counted from 0, one number per response
        for owner in owners:
            inside = micro["response"] == owner
            row = full[document(micro, inside, share)]
            n = len(rollout.response(row))
            assert torch.equal(micro["advantage"][inside], advantages[row, :n])
            assert torch.equal(micro["sampler_logp"][inside], rollout.logprobs[row, :n])
            seen[row] += 1
    assert seen == Counter(rows) and len(micro_batches) > 2


def document(micro, inside, share):
    """Prompt and response, as a tuple of ids, of the tokens `inside`, which are one response's."""
    last = int(micro["select"][inside][0])  # the prompt's last token
    if share:
        before = int(micro["positions"][0, last])
    else:
        row_length = micro["tokens"].size(1)
        before = last % row_length - int(micro["doc_start"].flatten()[last])
    prompt = micro["tokens"].flatten()[last - before : last + 1]
    return tuple(prompt.tolist() + micro["targets"][inside].tolist())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_prompt_read_once_for_its_group_gives_the_gradient_of_one_read_for_each_response(
    model, temperature
):
    experience = rolled(model)
    weight = torch.rand(experience.rollout.ids.shape, generator=generator(0, "weight"))
    values = dict(weight=weight)
    grads = []
    sizes = []
    for share in (True, False):
        model.zero_grad()
        size = 0
        for micro in experience.micro_batches(list(range(20)), values, exact_config(), CPU, share):
            logp, _ = token_logprobs(model, micro, temperature)
            (micro["weight"] * logp).sum().backward()
            size += micro["tokens"].numel()
        grads.append([p.grad.clone() for p in model.parameters()])
        sizes.append(size)
    model.zero_grad()
    assert same(dict(enumerate(grads[0])), dict(enumerate(grads[1])))
    assert sizes[0] < 0.8 * sizes[1]


def test_equal_prompts_stay_two_groups(model):
    """Problems 0 and 3 have the same text, but a lone success in one is none of the other's."""
    rewards = torch.zeros(5, 4)
    rewards[0, 0] = 1
    rewards[3] = 1
    advantages = group_advantages(rewards)
    assert advantages[0].tolist() == [1.5, -0.5, -0.5, -0.5] and not advantages[3].any()
    experience = rolled(model)
    _, (gradient,) = run_update(model, experience, spread(rewards, experience))
    whole = advantages.view(-1, 1).expand(experience.rollout.ids.shape)
    assert same(gradient, plain_objective(model, experience, whole).gradient)


# Which questions are asked


def test_questions_are_training_questions_and_ranks_share_them_out():
    questions = Questions("multiplication,chain,percent", "1,2", tokenizer)

    def draw(step, attempt=0):
        return questions.draw(step, attempt, 64)

    drawn = [p for step in range(5) for p in draw(step)]
    assert {split_of(p.family, p.params) for p in drawn} == {"train"}
    draws = (draw(0), draw(1), draw(2), draw(0, 1), draw(1, 1))
    steps = [{p.question for p in some} for some in draws]
    assert all(len(a & b) < 12 for i, a in enumerate(steps) for b in steps[:i])
    assert draw(3, 1) == draw(3, 1)
    assert {p.family for p in draw(0)} == set(questions.families)
    assert {p.level for p in draw(0)} == {1, 2}
    other = Questions("multiplication,chain,percent", "1,2", tokenizer, seed=1)
    assert [p.key for p in other.draw(0, 0, 64)] != [p.key for p in draw(0)]

    for world, minibatches in ((4, 1), (2, 2), (2, 4)):
        shares = [own_share(64, minibatches, Machine(CPU, r, world)) for r in range(world)]
        assert sorted(i for share in shares for i in share) == list(range(64))
        for part in range(minibatches):  # ranks hold equal numbers of a minibatch's questions
            counts = {sum(i % minibatches == part for i in share) for share in shares}
            assert counts == {64 // world // minibatches}
    second = Machine(CPU, 1, 2)
    assert own_share(8, 2, second) == [2, 3, 6, 7]
    assert own_share(3, 2, second) == [2]
    assert own_share(2, 2, second) == []


def user_questions(path, numbers):
    """Write questions 'What is n?' of the user's own; the path as text."""
    rows = [f'{{"question": "What is {n}?", "answer": "{n}"}}\n' for n in numbers]
    path.write_text("".join(rows))
    return str(path)


def test_questions_of_the_users_own_come_from_their_training_split(tmp_path):
    path = user_questions(tmp_path / "own.jsonl", range(60))
    questions = Questions("chain", "1", tokenizer, path)
    train = {p.question for p in questions.own["train"]}
    val = {p.question for p in questions.own["val"]}
    test = {p.question for p in questions.own["test"]}
    assert len(train) + len(val) + len(test) == 60 and val and test
    whole = questions.draw(3, 0, 500)
    assert {p.question for p in whole} == train and whole[:20] != questions.draw(4, 0, 20)
    assert {p.question for p in questions.held_out(100)} == val
    assert {p.question for p in questions.held_out(100, "test")} == test


# The curriculum


def curriculum(level, families="chain"):
    questions = Questions(families, "auto", tokenizer)
    questions.difficulty = dict.fromkeys(questions.families, level)
    return questions


def test_at_2_3_three_questions_in_ten_are_of_level_3():
    for difficulty, expected in (
        (2.3, {2: 0.7, 3: 0.3}),
        (1.0, {1: 1.0}),
        (5.0, {5: 1.0}),
        (4.75, {4: 0.25, 5: 0.75}),
    ):
        questions = curriculum(difficulty, "fact")
        levels = Counter(p.level for step in range(4) for p in questions.draw(step, 0, 750))
        assert set(levels) == set(expected)
        tolerance = 4 * math.sqrt(0.25 / 3000)
        assert all(abs(n / 3000 - expected[level]) < tolerance for level, n in levels.items())
    questions.difficulty = {"fact": 1.0}
    assert {p.level for p in questions.draw(0, 0, 50)} == {1}  # the state decides, at once


@pytest.mark.parametrize(
    "right, start, then",
    [
        (1.0, 1.0, 1.3),
        (0.5, 2.3, 2.35),
        (0.4, 2.3, 2.3),
        (0.3, 2.3, 2.25),
        (0.0, 2.3, 2.1),
        (0.0, 1.1, 1.0),
        (1.0, 4.9, 5.0),
        (0.1, 1.0, 1.0),
    ],
)
def test_the_curriculum_climbs_above_40_percent_and_falls_below_within_its_levels(
    right, start, then
):
    questions = curriculum(start)
    verdicts = torch.arange(40).view(4, 10) < 40 * right  # (P, G)
    questions.adapt(questions.draw(0, 0, 4), verdicts, MACHINE)
    assert questions.difficulty["chain"] == pytest.approx(then)


def test_each_family_has_its_own_difficulty_and_ranks_agree_on_it():
    whole = curriculum(2.5, "chain,percent,word")
    problems = [p for p in whole.draw(0, 0, 30) if p.family != "word"]
    verdicts = torch.rand(len(problems), 6, generator=generator(0, "verdicts")) < 0.7
    whole.adapt(problems, verdicts, MACHINE)
    for family in ("chain", "percent"):
        rows = [row for p, row in zip(problems, verdicts.tolist()) if p.family == family]
        rate = np.mean(rows)
        assert whole.difficulty[family] == pytest.approx(2.5 + 0.5 * (rate - 0.4)) and rate > 0.5
    assert whole.difficulty["word"] == 2.5  # no question of it was asked

    def share(machine):
        """Rank 0 holds all questions of one family, rank 1 all of the other."""
        questions = curriculum(2.5, "chain,percent,word")
        wanted = "chain" if machine.rank == 0 else "percent"
        mine = [i for i, p in enumerate(problems) if p.family == wanted]
        questions.adapt([problems[i] for i in mine], verdicts[mine], machine)
        return questions.difficulty

    assert all(found == pytest.approx(whole.difficulty) for found in Ranks(2).run(share))
    fixed = Questions("chain", "2", tokenizer)
    fixed.adapt(problems, verdicts, MACHINE)
    assert fixed.difficulty == {"chain": 1.0}
    assert {p.level for p in fixed.draw(0, 0, 40)} == {2}


# Questions, responses, rewards


def as_rollout(script):
    """A Rollout of these lists of ids."""
    longest = max(map(len, script), default=1)
    shape = (len(script), longest)
    ids = [s + [PAD] * (longest - len(s)) for s in script]
    ids = torch.tensor(ids, dtype=torch.long).view(shape)
    mask = [[i < len(s) for i in range(longest)] for s in script]
    mask = torch.tensor(mask, dtype=torch.bool).view(shape)
    return Rollout(ids, mask, torch.zeros(shape), (ids == END).any(1))


def scripted(monkeypatch, respond):
    """Let the trainer sample what respond(question) says, a list of responses as ids."""

    def generate(model, prompts, *rest, **options):
        questions = [decode(prompt[1:-1]) for prompt in prompts]
        return as_rollout([ids for question in questions for ids in respond(question)])

    monkeypatch.setattr(experience_module, "generate", generate)


def so(lines):
    """Thinking of that many needless lines."""
    return "\n".join(["so"] * lines)


def number_response(n, answer):
    """A response to 'What is n?', in n % 5 lines."""
    return render_response(so(n % 5), str(answer))


def lucky(monkeypatch, chance):
    """Let the trainer sample right answers to 'What is n?' with probability chance(n).

    The first random number of each response decides.
    """

    def generate(model, prompts, count, length, temperature, *, uniform, **options):
        script = []
        for row, u in enumerate(uniform[:, 0].tolist()):
            n = int(decode(prompts[row // count][1:-1])[8:-1])
            script.append(number_response(n, n if u < chance(n) else n + 1))
        assert len(script) == len(prompts) * count and uniform.shape == (len(script), length)
        return as_rollout(script)

    monkeypatch.setattr(experience_module, "generate", generate)


def never(n):
    return 0.0


def always(n):
    return 1.0


def sometimes(n):
    """Of the questions a third is always answered wrong, and a third always right."""
    return (0.0, 1.0, 0.5)[n % 3]


@pytest.fixture
def numbers(tmp_path):
    """Questions 'What is n?' of the user's own."""
    path = user_questions(tmp_path / "numbers.jsonl", range(1, 60))
    return Questions("chain", "1", tokenizer, path)


def value(problem):
    return int(problem.answer)


def test_every_response_is_rewarded_for_its_own_question_and_compared_with_its_own_group(
    model, numbers, monkeypatch
):
    """'What is n?' is answered with n in n lines, with n in 2 n lines, and with n + 1 in one line.

    Each group has its own shortest right response, the longer the larger n.
    """

    def three(question):
        n = int(question[8:-1])
        answers = ((n, n), (2 * n, n), (1, n + 1))
        return [render_response(so(lines), str(answer)) for lines, answer in answers]

    scripted(monkeypatch, three)
    config = Config(
        num_samples_per_prompt=3,
        batch_size=18,
        length_penalty=-0.001,
        length_form="calibrated",
        format_weight=0.5,
    )
    experience, row = sample_groups(model, config, numbers, 0, MACHINE)
    problems = numbers.draw(0, 0, 6)
    assert experience.problems == problems and experience.global_index == list(range(6))
    assert len({p.question for p in problems}) > 2
    values = [value(p) for p in problems]
    longer = [len(encode(so(2 * n))) - len(encode(so(n))) for n in values]
    assert len(set(longer)) > 2 and min(longer) > 0

    rewards = experience.rewards
    assert rewards["outcome"].tolist() == [[1, 1, 0]] * 6
    assert rewards["format"].tolist() == [[1, 1, 1]] * 6
    assert "process" not in rewards and experience.step_rewards == [[]] * 18
    assert rewards["length"].tolist() == [pytest.approx([0, -0.001 * n, 0]) for n in longer]
    assert rewards["task_reward"].tolist() == [[1.5, 1.5, 0.5]] * 6
    total = [pytest.approx([1.5, 1.5 - 0.001 * n, 0.5]) for n in longer]
    assert rewards["total"].tolist() == total

    mean_length = -0.001 * sum(longer) / 18
    assert row["reward_length"] == pytest.approx(mean_length)
    assert row["reward_total"] == pytest.approx(7 / 6 + mean_length)
    assert row["solve_rate"] == pytest.approx(2 / 3)
    assert row["groups"] == 6 and row["refills"] == 0


def test_rollout_metrics_count_groups_without_signal_and_lengths_by_outcome():
    """Three groups of two: both right, both wrong, one of each.

    One response is cut off, and all but one think.
    """
    problem = user_problem("What is 1?", "1")
    script = [
        render_response(so(1), "1"),
        render_response(so(3), "1"),
        render_response(so(5), "2")[:-1],
        render_response(so(0), "2"),
        render_response(so(2), "1"),
        render_response(so(2), "2"),
    ]
    experience = reward_responses(
        [problem] * 3, as_rollout(script), 2, RewardConfig(), [0, 1, 2], tokenizer
    )
    row = rollout_metrics(experience, MACHINE)
    n = [len(ids) for ids in script]
    tokens_right = sum(n[i] for i in (0, 1, 4))
    expected = dict(
        solve_rate=0.5,
        all_right=1 / 3,
        all_wrong=1 / 3,
        no_signal=2 / 3,
        length=sum(n) / 6,
        length_right=tokens_right / 3,
        length_wrong=(sum(n) - tokens_right) / 3,
        truncated=1 / 6,
        thinks=5 / 6,
        format=5 / 6,
        sampled_tokens=sum(n),
    )
    assert {name: row[name] for name in expected} == pytest.approx(expected) and len(set(n)) > 4

    def share(machine):
        groups = [[0, 2], [1]][machine.rank]
        return rollout_metrics(experience.select(groups), machine)

    for metrics in Ranks(2).run(share):
        assert metrics == pytest.approx(row)
    wrong = reward_responses([problem], as_rollout(script[2:4]), 2, RewardConfig(), [0], tokenizer)
    assert rollout_metrics(wrong, MACHINE)["length_right"] == 0  # a mean over nothing


def test_signal_counts_outcomes_and_step_rewards_but_no_penalties():
    """Equal outcomes of unequal length carry no signal.

    Steps of unequal reward do, also where the outcomes are equal.
    """
    problem = user_problem("What is 1 + 1?", "2")
    groups = [
        ["1 + 1 = 2", "1 + 1 = 2\nso"],
        ["1 + 1 = 2", "1 + 1 = 3"],
        ["1 + 1 = 2", "1 + 1 = 2"],
    ]
    rollout = as_rollout([render_response(text, "2") for group in groups for text in group])
    penalty = RewardConfig(length_penalty=-0.01)
    arguments = ([problem] * 3, rollout, 2, penalty, [0, 1, 2], tokenizer)
    outcome_only = reward_responses(*arguments)
    assert outcome_only.signal.tolist() == [False] * 3
    assert outcome_only.rewards["total"][0, 0] != outcome_only.rewards["total"][0, 1]
    with_steps = reward_responses(*arguments, exact_steps=True)
    assert with_steps.signal.tolist() == [True, True, False]
    assert [v for _, v in with_steps.step_rewards[3]] == [-1.0]


# Dynamic sampling

DYNAMIC = dict(
    num_samples_per_prompt=4,
    batch_size=48,
    max_reasoning_tokens=40,
    minibatches=2,
    dynamic_sampling=True,
    refills=3,
)


def expected_groups(questions, config, step, chance, attempts):
    """What dynamic sampling should keep and ask, worked out one question at a time.

    Returns kept [(problem, which responses are right, attempt)], asked [(problem, which are
    right)], and the last attempt.
    """
    kept = []
    asked = []
    for attempt in range(attempts):
        count = config.prompts_per_step - len(kept)
        shape = (count, config.num_samples_per_prompt, config.max_reasoning_tokens)
        uniform = uniform_numbers(shape, generator(config.seed, "rollout", step, attempt))
        first = uniform[..., 0].tolist()  # (P, G)
        for problem, numbers in zip(questions.draw(step, attempt, count), first):
            right = [u < chance(value(problem)) for u in numbers]
            asked.append((problem, right))
            if 0 < sum(right) < len(right):
                kept.append((problem, right, attempt))
        if len(kept) == config.prompts_per_step:
            break
    return kept, asked, attempt


def responses_to(problem, right):
    """The ids that `lucky` samples for these verdicts."""
    n = value(problem)
    return [number_response(n, n if r else n + 1) for r in right]


def test_groups_without_signal_are_left_out_and_others_asked_in_their_place(
    model, numbers, monkeypatch
):
    lucky(monkeypatch, sometimes)
    config = Config(**DYNAMIC)
    refilled = set()
    for step in range(4):
        experience, row = sample_groups(model, config, numbers, step, MACHINE)
        kept, asked, refills = expected_groups(numbers, config, step, sometimes, 4)
        assert experience.problems == [problem for problem, *_ in kept]
        assert experience.global_index == list(range(len(kept)))
        outcomes = [[float(r) for r in right] for _, right, _ in kept]
        assert experience.rewards["outcome"].tolist() == outcomes and experience.signal.all()
        for p, (problem, right, _) in enumerate(kept):  # responses stay with their question
            for g, response in enumerate(responses_to(problem, right)):
                assert experience.rollout.response(4 * p + g) == response

        # The metrics count what was left out as well.
        rights = [right for _, right in asked]
        expected = dict(
            solve_rate=np.mean(rights),
            all_right=np.mean([all(r) for r in rights]),
            all_wrong=np.mean([not any(r) for r in rights]),
            no_signal=1 - len(kept) / len(asked),
            groups=len(kept),
            refills=refills,
            reward_total=np.mean(rights),
        )
        assert {name: row[name] for name in expected} == pytest.approx(expected)
        sampled = [ids for problem, right in asked for ids in responses_to(problem, right)]
        assert row["sampled_tokens"] == sum(map(len, sampled))
        refilled.add(len({attempt for *_, attempt in kept}))
    assert max(refilled) > 2  # groups of later refills are there


def test_dynamic_sampling_stops_when_full_or_after_its_refills(model, numbers, monkeypatch):
    calls = []
    draw = numbers.draw

    def recorded_draw(step, attempt, count):
        calls.append((attempt, count))
        return draw(step, attempt, count)

    monkeypatch.setattr(numbers, "draw", recorded_draw)
    for chance, refills, asked in (
        (never, 2, [(0, 12), (1, 12), (2, 12)]),
        (always, 1, [(0, 12), (1, 12)]),
    ):
        calls.clear()
        lucky(monkeypatch, chance)
        config = Config(**DYNAMIC | dict(refills=refills))
        experience, row = sample_groups(model, config, numbers, 0, MACHINE)
        assert calls == asked and experience.problems == [] and experience.global_index == []
        assert row["groups"] == 0 and row["refills"] == refills and row["no_signal"] == 1
        assert experience_advantages(experience).shape[0] == 0

    def one_right(question):
        answers = (question[8:-1], "0", "0", "0")
        return [render_response("", answer) for answer in answers]

    calls.clear()
    scripted(monkeypatch, one_right)
    experience, row = sample_groups(model, Config(**DYNAMIC), numbers, 0, MACHINE)
    assert calls == [(0, 12)] and row["refills"] == 0 and row["groups"] == 12

    calls.clear()
    lucky(monkeypatch, never)
    config = Config(**DYNAMIC | dict(dynamic_sampling=False))
    experience, row = sample_groups(model, config, numbers, 0, MACHINE)
    assert calls == [(0, 12)] and row["groups"] == 12
    assert len(experience.problems) == 12  # without the switch all stay


def experience_advantages(experience):
    """(N, L) advantages of an Experience's own rewards."""
    rollout = experience.rollout
    return token_advantages(experience.rewards["total"], experience.step_rewards, rollout.lengths)


def test_the_gradient_is_clipped_to_its_limit_and_not_at_all_without_one(model):
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    gradients = {}
    for limit in (1e9, 0.01, 0.0):
        _, (gradients[limit],) = run_update(model, experience, advantages, grad_clip=limit)
    free = gradients[1e9]
    tight = gradients[0.01]
    assert norm(free) == norm(gradients[0.0]) > 0.05
    assert norm(tight) == pytest.approx(0.01, rel=1e-3)
    assert same({k: g * norm(free) / 0.01 for k, g in tight.items()}, free, 1e-3)


@pytest.mark.filterwarnings("error")
def test_an_update_without_a_single_group_changes_nothing(model, numbers, monkeypatch):
    lucky(monkeypatch, never)
    experience, _ = sample_groups(model, Config(**DYNAMIC), numbers, 0, MACHINE)
    advantages = experience_advantages(experience)
    for loss in LOSSES:
        row, steps = run_update(model, experience, advantages, loss=loss, minibatches=2)
        assert len(steps) == 2 and all(g is None for step in steps for g in step.values())
        assert row.pop("grad_norm") == 0 and set(row.values()) == {None}
    k1 = sequence_kl(model, copy.deepcopy(model), experience, exact_config(), CPU, False)
    assert k1.shape == (0, 1)


def four_responses(share, p):
    return [share.rollout.response(4 * p + g) for g in range(4)]


def by_index(share):
    """{index: (problem, responses, total rewards)} of the groups that a rank holds."""
    found = {}
    for p, index in enumerate(share.global_index):
        rewards = share.rewards["total"][p].tolist()
        found[index] = (share.problems[p], four_responses(share, p), rewards)
    return found


@pytest.mark.parametrize("world, minibatches", [(2, 2), (3, 1), (2, 3)])
def test_ranks_together_keep_the_groups_that_one_keeps_under_the_same_index(
    world, minibatches, model, numbers, monkeypatch
):
    lucky(monkeypatch, sometimes)
    for dynamic in (True, False):
        config = Config(**DYNAMIC | dict(minibatches=minibatches, dynamic_sampling=dynamic))

        def sample(machine):
            return sample_groups(model, config, numbers, 1, machine)

        one, row = sample(MACHINE)
        found = {}
        for share, metrics in Ranks(world).run(sample):
            assert metrics == pytest.approx(row)
            assert not set(share.global_index) & set(found)
            found |= by_index(share)
        assert found == by_index(one)
        assert len(found) > 6 and (not dynamic or row["refills"] > 0)


def test_sampled_responses_do_not_depend_on_how_ranks_share_them(model, numbers):
    """With the real sampler: every response draws from its own random numbers."""
    config = Config(num_samples_per_prompt=4, batch_size=32, max_reasoning_tokens=24)

    def sample(machine):
        return sample_groups(model, config, numbers, 0, machine)

    one, _ = sample(MACHINE)
    for share, _ in Ranks(2).run(sample):
        assert 0 < len(share.global_index) < 8
        for p, index in enumerate(share.global_index):
            assert four_responses(share, p) == four_responses(one, index)
    again, _ = sample_groups(model, config, numbers, 1, MACHINE)
    assert again.rollout.ids.tolist() != one.rollout.ids.tolist()

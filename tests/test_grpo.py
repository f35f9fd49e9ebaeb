"""One step of GRPO: what is asked, judged and dropped, and updates on real rollouts against a plain computation, one response at a time."""

import copy
import math
import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import make_stopping

from nanoreason import experience as experience_module
from nanoreason.machine import generator, Machine
from nanoreason.experience import reward_responses, rollout_metrics, sample_groups, sequence_kl, token_logprobs
from nanoreason.generate import Rollout, generate, noise
from nanoreason.questions import Questions, own_share
from nanoreason.rewards import RewardConfig
from nanoreason.tasks import split_of, user_problem
from nanoreason.tokenizer import END, PAD, decode, encode, render_prompt, render_response
from train_grpo import PAPERS, Config, group_advantages, token_advantages, update

CPU = torch.device("cpu")
MACHINE = Machine(CPU)
EXACT = dict(num_samples_per_prompt=4, minibatches=1, kl="none", grad_clip=1e9, row_tokens=64, micro_tokens=8192, max_reasoning_tokens=24, precision="fp32")
LOSSES = tuple(PAPERS)


class Ranks:
    """Machines of several ranks that are threads of this process: `run(work)` calls work(machine) in each and returns their results."""

    def __init__(self, world):
        self.world, self.barrier, self.slots = world, threading.Barrier(world, timeout=30), [None] * world

    def exchange(self, rank, value):
        self.slots[rank] = value
        self.barrier.wait()
        everything = list(self.slots)
        self.barrier.wait()
        return everything

    def run(self, work):
        results, ranks = [None] * self.world, self

        @dataclass(frozen=True)
        class Rank(Machine):
            def total(self, value):
                return sum(ranks.exchange(self.rank, float(value)))

            def sum(self, tensor):
                return sum(ranks.exchange(self.rank, tensor))

        def one(rank):
            try:
                results[rank] = work(Rank(CPU, rank, self.world))
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
    """An optimizer that keeps the gradients it is given. It changes nothing, or, at its first step, sets the weights to those of `then`."""

    def __init__(self, model, then=None):
        self.model, self.then, self.steps = model, then, []

    def step(self):
        self.steps.append({name: None if p.grad is None else p.grad.clone() for name, p in self.model.named_parameters()})
        if self.then is not None:
            self.model.load_state_dict(self.then.state_dict())

    def zero_grad(self):
        for p in self.model.parameters():
            p.grad = None


@pytest.fixture(scope="module")
def model():
    return make_stopping(bias=3.0)


ASKED = ("What is 2 + 2?", "Which number comes right after the number 11?", "4?", "What is 2 + 2?", "Solve 3x = 9.")  # two are equal
PROBLEMS = [user_problem(question, "1") for question in ASKED]
PROMPTS = [render_prompt(p.question) for p in PROBLEMS]


def rolled(model, temperature=1.0, seed=0, problems=PROBLEMS):
    """An Experience of four responses of uneven length to each problem."""
    rollout = generate(model, [render_prompt(p.question) for p in problems], 4, 24, temperature, generator(seed, "rollout"))
    return reward_responses(problems, rollout, 4, RewardConfig(), list(range(len(problems))))


def some_rewards(P=5, seed=0):
    """(P, 4) rewards of 0 and 1; the third group is all right and so says nothing."""
    rewards = (torch.rand(P, 4, generator=generator(seed, "rewards")) < 0.5).float()
    rewards[:, 0], rewards[:, 1], rewards[2] = 1, 0, 1
    return rewards


def spread(rewards, experience):
    """(N, L) advantages of whole responses."""
    return token_advantages(rewards, [[]] * len(experience.rollout.ids), experience.rollout.lengths)


def by_token(experience, seed=0):
    """(N, L) advantages that differ from token to token; the third group has none."""
    N, L = experience.rollout.ids.shape
    advantages = torch.randn(N, L, generator=generator(seed, "by token")) * (torch.arange(L) < experience.rollout.lengths[:, None])
    advantages[8:12] = 0
    return advantages


def plain_logprobs(model, prompt, response, temperature):
    """(L,) log-probabilities of a response, from a row of its own."""
    logits = model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1)


def plain(model, experience, advantages, loss="grpo", old=None, reference=None, kl="none", kl_coef=0.0, clip=(0.2, 0.2), temperature=1.0, rows=None):
    """The papers' objective in float64, one response at a time, nothing packed: (gradient, clipped share, mean k3, loss), all weighted.
    rows: the responses of the minibatch, all by default; old: the policy that sampled, else the ratio is 1."""
    double = lambda net: None if net is None else copy.deepcopy(net).double()
    model, old, reference = double(model), double(old), double(reference)
    rows = list(range(len(experience.rollout.ids))) if rows is None else rows
    tokens, total, clipped, mean_k3, weights = sum(len(experience.rollout.response(row)) for row in rows), 0.0, 0.0, 0.0, 0.0
    for row in rows:
        prompt, response = render_prompt(experience.problems[row // 4].question), experience.rollout.response(row)
        n, logp = len(response), plain_logprobs(model, prompt, response, temperature)
        with torch.no_grad():
            was = logp.detach() if old is None else plain_logprobs(old, prompt, response, temperature)
            ref = logp.detach() if reference is None else plain_logprobs(reference, prompt, response, temperature)
        A = advantages[row, :n].double()
        weight = {"grpo": 1 / (len(rows) * n), "gspo": 1 / (len(rows) * n), "dr-grpo": 1 / (len(rows) * 24), "dapo": 1 / tokens, "cispo": 1 / tokens}[loss]
        low, high = 1 - clip[0] if clip[0] else 0.0, 1 + clip[1] if clip[1] else math.inf
        if loss == "cispo":
            r = (logp.detach() - was).exp()
            gain, cut = r.clip(low, high) * A * logp, (r < low) | (r > high)
        else:
            r = (logp - was).exp()
            if loss == "gspo" and (A == A[0]).all():  # eq. 5, without sg(): the geometric mean of the ratios is differentiated through
                r = (logp - was).mean().exp().expand(n)
            elif loss == "gspo":  # eq. 13
                r = (logp - was).mean().exp().detach() * logp.exp() / logp.exp().detach()
            gain, cut = torch.minimum(r * A, r.clip(low, high) * A), ((A > 0) & (r > high)) | ((A < 0) & (r < low))
        x = logp - ref
        k3 = (-x).exp() - 1 + x
        penalty = {"none": 0 * x, "k1": 0 * x, "k2": x**2 / 2, "k3": k3}[kl]
        total = total - weight * (gain - kl_coef * penalty).sum()
        if reference is not None or A.any():  # without a KL, responses without signal are left out of the diagnostics
            clipped, mean_k3, weights = clipped + weight * cut.sum().item(), mean_k3 + weight * k3.sum().item(), weights + weight * n
    total.backward()
    return {name: p.grad.float() for name, p in model.named_parameters()}, clipped / weights, mean_k3 / weights, total.item() / weights


def run_update(model, experience, advantages, reference=None, machine=MACHINE, then=None, **changes):
    model = copy.deepcopy(model)
    recorder = Recorder(model, then)
    row = update(model, reference, recorder, experience, advantages, Config(**{**EXACT, **changes}), machine, False)
    return row, recorder.steps


def same(a, b, rtol=1e-4):
    return all((a[name] - b[name]).norm() <= rtol * b[name].norm() + 1e-7 for name in b)


def nudged(model, size, seed=0):
    """The model with every weight moved a little."""
    other, noise = copy.deepcopy(model), generator(seed, "nudge")
    with torch.no_grad():
        for p in other.parameters():
            p += size * torch.randn(p.shape, generator=noise)
    return other


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_the_first_on_policy_step_is_the_plain_policy_gradient_at_the_sampling_temperature(model, temperature):
    experience = rolled(model, temperature)
    rewards = some_rewards()
    advantages = spread(rewards, experience)
    row, (gradient,) = run_update(model, experience, advantages, temperature=temperature)
    mine, loss = copy.deepcopy(model), 0  # -1/N sum_i A_i / |o_i| sum_t log pi(o_it): no ratio at all
    for i, advantage in enumerate(group_advantages(rewards).flatten().tolist()):
        loss = loss - advantage / 20 * plain_logprobs(mine, PROMPTS[i // 4], experience.rollout.response(i), temperature).mean()
    loss.backward()
    expected = {name: p.grad for name, p in mine.named_parameters()}
    assert same(gradient, expected) and same(gradient, plain(model, experience, advantages, temperature=temperature)[0])
    assert row["clip_fraction"] == 0 and row["sampler_gap"] < 1e-5
    assert row["grad_norm"] == pytest.approx(math.sqrt(sum((g**2).sum().item() for g in expected.values())), rel=1e-4)
    assert row["loss"] == pytest.approx(-group_advantages(rewards).sum().item() / 16, abs=1e-5)  # ratio 1: each response with signal weighs its advantage
    if temperature != 1.0:  # a wrong temperature in the update would show
        wrong, _ = run_update(model, experience, advantages, temperature=1.0)
        assert wrong["sampler_gap"] > 0.05
    assert len(set(experience.rollout.lengths.tolist())) > 4


@pytest.mark.parametrize("loss", LOSSES)
def test_the_ratio_is_exactly_one_with_old_logprobs_taken_beforehand(model, loss):
    """Two epochs make `update` take old log-probabilities first; with no room to move, any other ratio would be clipped."""
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    for clip_ratio in (0.0, 1e-7):
        row, (first, second) = run_update(model, experience, advantages, inner_epochs=2, clip_ratio=clip_ratio, loss=loss)
        assert row["clip_fraction"] == 0 and same(first, second, 0) and same(first, plain(model, experience, advantages, loss)[0])


@pytest.mark.parametrize("loss, kl", [*((loss, "k3") for loss in LOSSES), ("grpo", "none"), ("dapo", "k2")])
def test_every_loss_has_its_papers_gradient_on_and_off_policy(model, loss, kl):
    """Ragged responses, two minibatches, one or two epochs; after the first step the weights are others, the old log-probabilities are not."""
    experience, drifted, reference = rolled(model, 1.2), nudged(model, 0.02), None if kl == "none" else make_stopping(bias=4.0)
    clip = {"gspo": (0.002, 0.004), "cispo": (0.0, 0.05)}.get(loss, (0.05, 0.1))  # so that some tokens are cut and others are not
    settings = dict(loss=loss, kl=kl, kl_coef=0.3, temperature=1.2)
    parts = [[4 * p + i for p in groups for i in range(4)] for groups in ((0, 2, 4), (1, 3))]
    for advantages, epochs in ((spread(some_rewards(), experience), 2), (by_token(experience), 1)):
        row, steps = run_update(model, experience, advantages, reference, then=drifted, minibatches=2, inner_epochs=epochs, clip_ratio=clip[0], clip_high=clip[1],
                                **settings)
        oracle = [plain(net, experience, advantages, reference=reference, old=model, clip=clip, rows=rows, **settings)
                  for net, rows in zip((model, drifted, drifted, drifted), parts * epochs)]
        for step, (gradient, *_) in zip(steps, oracle, strict=True):
            assert same(step, gradient, 3e-4) and sum(g.norm() for g in step.values()) > 1e-3
        assert oracle[0][1] == 0 and all(0.02 < share < 0.98 for _, share, _, _ in oracle[1:])  # nothing is cut on-policy, and later a part of it is
        if reference is not None:  # then all responses carry a loss, and parts weigh alike where weights add up to 1
            weights = [1.0 if loss != "dr-grpo" else experience.rollout.lengths[rows].sum().item() / len(rows) for rows in parts * epochs]
            mean = lambda k: sum(w * o[k] for w, o in zip(weights, oracle)) / sum(weights)
            assert [row["clip_fraction"], row["kl"], row["loss"]] == pytest.approx([mean(1), mean(2), mean(3)], rel=2e-3, abs=1e-5)
        assert row["grad_norm"] == pytest.approx(np.mean([math.sqrt(sum((g**2).sum().item() for g in o[0].values())) for o in oracle]), rel=1e-3)


def test_the_losses_have_different_gradients_on_one_rollout(model):
    """Else comparing each with its own paper says little."""
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    steps = {loss: torch.cat([g.flatten() for g in run_update(model, experience, advantages, loss=loss)[1][0].values()]) for loss in LOSSES}
    far = lambda a, b: (steps[a] - steps[b]).norm() > 0.05 * steps[b].norm()
    assert far("grpo", "dr-grpo") and far("grpo", "dapo") and far("dr-grpo", "dapo")
    assert torch.allclose(steps["gspo"], steps["grpo"], rtol=1e-3, atol=1e-5) and torch.allclose(steps["cispo"], steps["dapo"], rtol=1e-3, atol=1e-5)  # on-policy


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_rewards_give_exactly_zero_gradient(model, loss):
    experience = rolled(model)
    advantages = spread(torch.full((5, 4), 0.1), experience)
    row, steps = run_update(model, experience, advantages, loss=loss)
    assert all(g is None or not g.any() for step in steps for g in step.values())
    assert row["loss"] is row["entropy"] is None and row["grad_norm"] == 0  # no token was trained on
    real = copy.deepcopy(model)
    update(real, None, torch.optim.AdamW(real.parameters(), 1e-2, weight_decay=0.0), experience, advantages, Config(**EXACT | dict(loss=loss)), MACHINE, False)
    assert all(torch.equal(a, b) for a, b in zip(real.parameters(), model.parameters()))
    with_kl, _ = run_update(model, experience, advantages, copy.deepcopy(model), loss=loss, kl="k3")
    assert with_kl["grad_norm"] == 0 and with_kl["entropy"] > 0  # the rows are there, and at the reference a KL costs nothing


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_do_not_change_the_gradient(model, loss):
    experience = rolled(model)
    advantages, drifted = by_token(experience), nudged(model, 0.02)
    run = lambda **changes: run_update(model, experience, advantages, then=drifted, loss=loss, inner_epochs=2, **changes)
    whole, large = run()
    for changes in (dict(micro_tokens=64), dict(row_tokens=128), dict(row_tokens=16), dict(gradient_accumulation=3)):  # 16: most responses go apart, in longer rows
        row, steps = run(**changes)
        assert all(same(a, b) for a, b in zip(steps, large, strict=True))
        assert row == pytest.approx(whole, rel=1e-3, abs=1e-6)  # logged figures are those of the whole batch too


def test_gradient_accumulation_splits_a_minibatch_into_at_least_that_many_passes(model):
    experience = rolled(model)
    passes = lambda n: len(experience.micro_batches(range(20), {}, Config(**EXACT | dict(gradient_accumulation=n)), CPU))
    rows = passes(1000)
    assert passes(1) == 1 and rows > 4 and all(n <= passes(n) <= rows for n in range(2, rows + 1))


def test_minibatches_split_by_place_and_each_weighs_its_own_responses(model):
    """Places, not the order in this rank's share, decide: a rank of several may hold places 0, 1, 4, 5, 8."""
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    for places, parts in (([0, 1, 2, 3, 4], ((0, 2, 4), (1, 3))), ([6, 2, 1, 3, 4], ((0, 1, 4), (2, 3))), ([1, 1, 2, 3, 5], ((2,), (0, 1, 3, 4)))):
        experience.places = places
        for loss in ("grpo", "dr-grpo", "dapo"):
            _, steps = run_update(model, experience, advantages, minibatches=2, loss=loss)
            for step, groups in zip(steps, parts, strict=True):
                rows = [4 * g + i for g in groups for i in range(4)]
                if advantages[rows].any():
                    assert same(step, plain(model, experience, advantages, loss, rows=rows)[0])
                else:
                    assert all(g is None for g in step.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_two_ranks_sum_to_the_gradient_of_one(model, loss):
    """Ranks hold unequal tokens; with `lopsided` all signal is on one of them. Their gradients are added by hand here."""
    experience, drifted, places = rolled(model), nudged(model, 0.02), ([0, 1, 4], [2, 3])
    even = by_token(experience)
    for lopsided in (False, True):
        advantages = even.clone()
        if lopsided:
            advantages[8:16] = 0
        settings = dict(minibatches=2, inner_epochs=2, loss=loss, then=drifted)
        row, one = run_update(model, experience, advantages, **settings)

        def share(machine):
            mine = places[machine.rank]
            object.__setattr__(machine, "sum_gradients", lambda net: None)  # each keeps its own
            return run_update(model, experience.select(mine), advantages[[4 * p + i for p in mine for i in range(4)]], machine=machine, **settings)

        (row0, steps0), (row1, steps1) = Ranks(2).run(share)
        zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        full = lambda step: {name: zero[name] if g is None else g for name, g in step.items()}
        for a, b, whole in zip(steps0, steps1, one, strict=True):
            assert same({name: full(a)[name] + full(b)[name] for name in zero}, full(whole))
            assert not lopsided or all(g is None for g in b.values())
        for name in ("loss", "clip_fraction", "entropy", "sampler_gap"):
            assert row0[name] == row1[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6)


def test_the_kl_is_zero_at_the_reference_and_costs_nothing_there(model):
    experience = rolled(model)
    advantages = spread(some_rewards(), experience)
    for kl in ("k2", "k3"):
        row, (with_kl,) = run_update(model, experience, advantages, reference=copy.deepcopy(model), kl=kl, kl_coef=0.5)
        assert row["kl"] == 0 and row["clip_fraction"] == 0
        assert same(with_kl, plain(model, experience, advantages)[0])


def test_k1_of_a_response_is_its_log_ratio_to_the_reference_at_the_sampling_temperature(model):
    """Less its group's mean, each response at its own place, whatever the packing; and no part of the loss."""
    experience, reference = rolled(model, 1.3), make_stopping(bias=4.0)
    with torch.no_grad():
        expected = [sum((plain_logprobs(model, PROMPTS[i // 4], experience.rollout.response(i), 1.3)
                         - plain_logprobs(reference, PROMPTS[i // 4], experience.rollout.response(i), 1.3)).tolist()) for i in range(20)]
    for changes in ({}, dict(micro_tokens=64), dict(row_tokens=16)):
        k1 = sequence_kl(model, reference, experience, Config(**EXACT | dict(temperature=1.3) | changes), CPU, False)
        centred = [x - sum(expected[i // 4 * 4 : i // 4 * 4 + 4]) / 4 for i, x in enumerate(expected)]
        assert k1.shape == (20, 1) and k1.flatten().tolist() == pytest.approx(centred, abs=1e-4)
    assert max(expected) - min(expected) > 1 and not sequence_kl(model, copy.deepcopy(model), experience, Config(**EXACT), CPU, False).any()
    advantages = spread(some_rewards(), experience)
    row, (gradient,) = run_update(model, experience, advantages, reference=reference, kl="k1", kl_coef=0.5, temperature=1.3)
    assert same(gradient, plain(model, experience, advantages, temperature=1.3)[0]) and row["kl"] > 1e-3


def test_entropy_and_sampler_gap_are_means_over_tokens_within_and_then_over_responses(model):
    experience = rolled(model)
    advantages = torch.where(torch.arange(20) % 2 > 0, 1.0, -1.0)[:, None] * experience.rollout.mask
    row, _ = run_update(model, experience, advantages)
    entropy = 0
    with torch.no_grad():
        for i in range(20):
            logp = model(torch.tensor([PROMPTS[i // 4] + experience.rollout.response(i)]))[0, len(PROMPTS[i // 4]) - 1 : -1].log_softmax(-1)
            entropy += -(logp.exp() * logp).sum(-1).mean().item() / 20
    assert row["entropy"] == pytest.approx(entropy, rel=1e-4)
    experience.rollout.logprobs = experience.rollout.logprobs + 0.25 * experience.rollout.mask
    assert run_update(model, experience, advantages)[0]["sampler_gap"] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_every_packed_token_carries_its_own_responses_values(model, share):
    """Prompts in another order, two of them equal, rows left out: each document found by its ids must bring its own row's numbers."""
    experience, rows = rolled(model, 0.8, seed=4), [17, 3, 12, 0, 15, 1, 13, 8, 9, 14, 2, 19]
    rollout, advantages = experience.rollout, by_token(experience)
    full = {tuple(PROMPTS[row // 4] + rollout.response(row)): row for row in rows}
    assert len(full) == len(rows)
    seen, passes = Counter(), 0
    values = dict(advantage=advantages, sampled=rollout.logprobs)
    for micro in experience.micro_batches(rows, values, Config(**EXACT | dict(micro_tokens=96)), CPU, share):
        with torch.no_grad():
            logp, entropy = token_logprobs(model, micro, 0.8)
        assert entropy is None and torch.allclose(logp, micro["sampled"], atol=2e-5)
        tokens, owners = micro["tokens"].flatten(), micro["response"].unique().tolist()
        assert owners == list(range(len(owners)))  # counted from 0, one number a response
        for owner in owners:
            inside = micro["response"] == owner
            at = int(micro["select"][inside][0])  # the prompt's last token
            before = int(micro["positions"][0, at]) if share else at % micro["tokens"].size(1) - int(micro["doc_start"].flatten()[at])
            row = full[tuple(tokens[at - before : at + 1].tolist() + micro["targets"][inside].tolist())]
            n = len(rollout.response(row))
            assert torch.equal(micro["advantage"][inside], advantages[row, :n])
            assert torch.equal(micro["sampled"][inside], rollout.logprobs[row, :n])
            seen[row] += 1
        passes += 1
    assert seen == Counter(rows) and passes > 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_prompt_read_once_for_its_group_gives_the_gradient_of_one_read_for_each_response(model, temperature):
    experience = rolled(model)
    rows, weight = list(range(20)), torch.rand(experience.rollout.ids.shape, generator=generator(0, "weight"))
    grads, sizes = [], []
    for share in (True, False):
        model.zero_grad()
        size = 0
        for micro in experience.micro_batches(rows, dict(weight=weight), Config(**EXACT), CPU, share):
            logp, _ = token_logprobs(model, micro, temperature)
            (micro["weight"] * logp).sum().backward()
            size += micro["tokens"].numel()
        grads.append([p.grad.clone() for p in model.parameters()])
        sizes.append(size)
    model.zero_grad()
    assert same(dict(enumerate(grads[0])), dict(enumerate(grads[1]))) and sizes[0] < 0.8 * sizes[1]


def test_equal_prompts_stay_two_groups(model):
    """Problems 0 and 3 are the same text: normalised apart, a lone success in one group is no success of the other."""
    rewards = torch.zeros(5, 4)
    rewards[0, 0], rewards[3] = 1, 1
    advantages = group_advantages(rewards)
    assert advantages[0].tolist() == [1.5, -0.5, -0.5, -0.5] and not advantages[3].any()
    experience = rolled(model)
    _, (gradient,) = run_update(model, experience, spread(rewards, experience))
    assert same(gradient, plain(model, experience, advantages.view(-1, 1).expand(experience.rollout.ids.shape))[0])


# What is asked


def test_questions_are_training_questions_and_ranks_share_them_out():
    questions = Questions("multiplication,chain,percent", "1,2")
    draw = lambda step, attempt=0: questions.draw(step, attempt, 64)
    assert {split_of(p.family, p.params) for step in range(5) for p in draw(step)} == {"train"}
    steps = [{p.question for p in some} for some in (draw(0), draw(1), draw(2), draw(0, 1), draw(1, 1))]
    assert all(len(a & b) < 12 for i, a in enumerate(steps) for b in steps[:i]) and draw(3, 1) == draw(3, 1)
    assert {p.family for p in draw(0)} == set(questions.families) and {p.level for p in draw(0)} == {1, 2}
    assert [p.key for p in Questions("multiplication,chain,percent", "1,2", seed=1).draw(0, 0, 64)] != [p.key for p in draw(0)]
    for world, minibatches in ((4, 1), (2, 2), (2, 4)):
        shares = [own_share(64, minibatches, Machine(CPU, r, world)) for r in range(world)]
        assert sorted(i for share in shares for i in share) == list(range(64))
        for part in range(minibatches):  # a minibatch is shared out evenly
            assert {sum(i % minibatches == part for i in share) for share in shares} == {64 // world // minibatches}
    assert own_share(8, 2, Machine(CPU, 1, 2)) == [2, 3, 6, 7] and own_share(3, 2, Machine(CPU, 1, 2)) == [2] and own_share(2, 2, Machine(CPU, 1, 2)) == []


def test_questions_of_the_users_own_come_from_their_training_split(tmp_path):
    (tmp_path / "own.jsonl").write_text("".join(f'{{"question": "What is {i}?", "answer": "{i}"}}\n' for i in range(60)))
    questions = Questions("chain", "1", str(tmp_path / "own.jsonl"))
    train, val = ({p.question for p in questions.own[split]} for split in ("train", "val"))
    assert len(train) + len(val) == 60 and val
    whole = questions.draw(3, 0, 500)
    assert {p.question for p in whole} == train and whole[:20] != questions.draw(4, 0, 20) and {p.question for p in questions.held_out(100)} == val


# The curriculum


def curriculum(level, families="chain"):
    questions = Questions(families, "auto")
    questions.difficulty = dict.fromkeys(questions.families, level)
    return questions


def test_at_2_3_three_questions_in_ten_are_of_level_3():
    for difficulty, expected in ((2.3, {2: 0.7, 3: 0.3}), (1.0, {1: 1.0}), (5.0, {5: 1.0}), (4.75, {4: 0.25, 5: 0.75})):
        questions = curriculum(difficulty, "fact")
        levels = Counter(p.level for step in range(4) for p in questions.draw(step, 0, 750))
        assert set(levels) == set(expected) and all(abs(n / 3000 - expected[level]) < 4 * math.sqrt(0.25 / 3000) for level, n in levels.items())
    questions.difficulty = {"fact": 1.0}
    assert {p.level for p in questions.draw(0, 0, 50)} == {1}  # the state decides, at once


@pytest.mark.parametrize("right, start, then", [(1.0, 1.0, 1.3), (0.5, 2.3, 2.35), (0.4, 2.3, 2.3), (0.3, 2.3, 2.25), (0.0, 2.3, 2.1), (0.0, 1.1, 1.0),
                                                (1.0, 4.9, 5.0), (0.1, 1.0, 1.0)])
def test_the_curriculum_climbs_above_40_percent_and_falls_below_within_its_levels(right, start, then):
    questions = curriculum(start)
    verdicts = (torch.arange(40).view(4, 10) < 40 * right)
    questions.adapt(questions.draw(0, 0, 4), verdicts, MACHINE)
    assert questions.difficulty["chain"] == pytest.approx(then)


def test_each_family_has_its_own_difficulty_and_ranks_agree_on_it():
    whole = curriculum(2.5, "chain,percent,word")
    problems = [p for p in whole.draw(0, 0, 30) if p.family != "word"]
    verdicts = torch.rand(len(problems), 6, generator=generator(0, "verdicts")) < 0.7
    whole.adapt(problems, verdicts, MACHINE)
    for family in ("chain", "percent"):
        rate = np.mean([verdict for p, row in zip(problems, verdicts.tolist()) for verdict in row if p.family == family])
        assert whole.difficulty[family] == pytest.approx(2.5 + 0.5 * (rate - 0.4)) and rate > 0.5
    assert whole.difficulty["word"] == 2.5  # nothing was asked, nothing is known

    def share(machine):
        questions, mine = curriculum(2.5, "chain,percent,word"), [i for i, p in enumerate(problems) if (p.family == "chain") == (machine.rank == 0)]
        questions.adapt([problems[i] for i in mine], verdicts[mine], machine)  # one rank holds all of a family, the other nothing of it
        return questions.difficulty

    assert all(found == pytest.approx(whole.difficulty) for found in Ranks(2).run(share))
    fixed = Questions("chain", "2")
    fixed.adapt(problems, verdicts, MACHINE)
    assert fixed.difficulty == {"chain": 1.0} and {p.level for p in fixed.draw(0, 0, 40)} == {2}


# Ask, answer, judge


def as_rollout(script):
    """A Rollout of these lists of ids."""
    longest = max(map(len, script), default=1)
    ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in script], dtype=torch.long).view(len(script), longest)
    mask = torch.tensor([[i < len(s) for i in range(longest)] for s in script], dtype=torch.bool).view(len(script), longest)
    return Rollout(ids, mask, torch.zeros(ids.shape), (ids == END).any(1))


def scripted(monkeypatch, respond):
    """Let the trainer sample what respond(question), a list of responses as ids, says."""
    generate = lambda model, prompts, *rest, **options: as_rollout([ids for prompt in prompts for ids in respond(decode(prompt[1:-1]))])
    monkeypatch.setattr(experience_module, "generate", generate)


def lucky(monkeypatch, chance):
    """Let the trainer sample right answers to 'What is n?' with probability chance(n), by the first random number of each response, in n % 5 lines."""

    def generate(model, prompts, count, length, temperature, uniform, **options):
        script = []
        for row, u in enumerate(uniform[:, 0].tolist()):
            n = int(decode(prompts[row // count][1:-1])[8:-1])
            script.append(render_response("\n".join(["so"] * (n % 5)), str(n if u < chance(n) else n + 1)))
        assert len(script) == len(prompts) * count and uniform.shape == (len(script), length)
        return as_rollout(script)

    monkeypatch.setattr(experience_module, "generate", generate)


@pytest.fixture
def numbers(tmp_path):
    """Questions 'What is n?' of the user's own; without the model."""
    (tmp_path / "numbers.jsonl").write_text("".join(f'{{"question": "What is {n}?", "answer": "{n}"}}\n' for n in range(1, 60)))
    return Questions("chain", "1", str(tmp_path / "numbers.jsonl"))


def value(problem):
    return int(problem.answer)


def test_every_response_is_rewarded_for_its_own_question_and_compared_with_its_own_group(model, numbers, monkeypatch):
    """'What is n?' is answered n briefly, n after n + 1 needless lines, and n + 1: each group has its own shortest right response."""
    briefly = lambda n: "\n".join(["so"] * n)  # the larger n, the longer even the shortest
    three = lambda n: [render_response(briefly(lines), str(answer)) for lines, answer in ((n, n), (2 * n, n), (1, n + 1))]
    scripted(monkeypatch, lambda question: three(int(question[8:-1])))
    config = Config(num_samples_per_prompt=3, batch_size=18, length_penalty=-0.001, length_form="calibrated", format_weight=0.5)
    experience, row = sample_groups(model, config, numbers, 0, MACHINE)
    problems, rewards = numbers.draw(0, 0, 6), experience.rewards
    assert experience.problems == problems and experience.places == list(range(6)) and len({p.question for p in problems}) > 2
    longer = [len(encode(briefly(2 * n))) - len(encode(briefly(n))) for n in map(value, problems)]
    assert len(set(longer)) > 2 and min(longer) > 0
    assert rewards["outcome"].tolist() == [[1, 1, 0]] * 6 and rewards["format"].tolist() == [[1, 1, 1]] * 6 and "process" not in rewards and experience.steps == [[]] * 18
    assert rewards["length"].tolist() == [pytest.approx([0, -0.001 * n, 0]) for n in longer] and rewards["paid"].tolist() == [[1.5, 1.5, 0.5]] * 6
    assert rewards["total"].tolist() == [pytest.approx([1.5, 1.5 - 0.001 * n, 0.5]) for n in longer]
    assert row["reward_length"] == pytest.approx(-0.001 * sum(longer) / 18) and row["reward_total"] == pytest.approx(7 / 6 - 0.001 * sum(longer) / 18)
    assert row["solve_rate"] == pytest.approx(2 / 3) and row["groups"] == 6 and row["refills"] == 0


def test_rollout_metrics_count_groups_without_signal_and_lengths_by_outcome():
    """Three groups of two: both right, both wrong, one of each; one response is cut off; all but one think."""
    problem = user_problem("What is 1?", "1")
    think = lambda lines, answer: render_response("\n".join(["so"] * lines), answer)
    script = [think(1, "1"), think(3, "1"), think(5, "2")[:-1], think(0, "2"), think(2, "1"), think(2, "2")]
    experience = reward_responses([problem] * 3, as_rollout(script), 2, RewardConfig(), [0, 1, 2])
    row = rollout_metrics(experience, MACHINE)
    n, right = [len(ids) for ids in script], [0, 1, 4]
    expected = dict(solve_rate=0.5, all_right=1 / 3, all_wrong=1 / 3, no_signal=2 / 3, length=sum(n) / 6, length_right=sum(n[i] for i in right) / 3,
                    length_wrong=(sum(n) - sum(n[i] for i in right)) / 3, truncated=1 / 6, thinks=5 / 6, format=5 / 6, sampled_tokens=sum(n))
    assert {name: row[name] for name in expected} == pytest.approx(expected) and len(set(n)) > 4
    for share in Ranks(2).run(lambda machine: rollout_metrics(experience.select([[0, 2], [1]][machine.rank]), machine)):
        assert share == pytest.approx(row)
    assert rollout_metrics(reward_responses([problem], as_rollout(script[2:4]), 2, RewardConfig(), [0]), MACHINE)["length_right"] == 0  # a mean over nothing


def test_signal_is_what_was_judged_and_no_penalty():
    """Equal outcomes of unequal length carry none, steps of unequal worth do, also where the outcomes agree."""
    problem = user_problem("What is 1 + 1?", "2")
    groups = [["1 + 1 = 2", "1 + 1 = 2\nso"], ["1 + 1 = 2", "1 + 1 = 3"], ["1 + 1 = 2", "1 + 1 = 2"]]
    rollout = as_rollout([render_response(text, "2") for group in groups for text in group])
    plainly = reward_responses([problem] * 3, rollout, 2, RewardConfig(length_penalty=-0.01), [0, 1, 2])
    assert plainly.signal.tolist() == [False] * 3 and plainly.rewards["total"][0, 0] != plainly.rewards["total"][0, 1]
    exactly = reward_responses([problem] * 3, rollout, 2, RewardConfig(length_penalty=-0.01), [0, 1, 2], exact_steps=True)
    assert exactly.signal.tolist() == [True, True, False] and [v for _, v in exactly.steps[3]] == [-1.0]


# Dynamic sampling

DYNAMIC = dict(num_samples_per_prompt=4, batch_size=48, max_reasoning_tokens=40, minibatches=2, dynamic_sampling=True, refills=3)
SOMETIMES = lambda n: (0.0, 1.0, 0.5)[n % 3]  # of the questions a third is always wrong, and a third always right


def expected_groups(questions, config, step, chance, attempts):
    """What dynamic sampling should keep, [(problem, first random numbers, attempt)], and all that it should ask, worked out one question at a time."""
    kept, asked = [], []
    for attempt in range(attempts):
        count = config.prompts - len(kept)
        uniform = noise((count, config.num_samples_per_prompt, config.max_reasoning_tokens), generator(config.seed, "rollout", step, attempt))[..., 0].tolist()
        for problem, numbers in zip(questions.draw(step, attempt, count), uniform):
            right = [u < chance(value(problem)) for u in numbers]
            asked.append((problem, right))
            if 0 < sum(right) < len(right):
                kept.append((problem, right, attempt))
        if len(kept) == config.prompts:
            break
    return kept, asked, attempt


def test_groups_without_signal_are_left_out_and_others_asked_in_their_place(model, numbers, monkeypatch):
    lucky(monkeypatch, SOMETIMES)
    config, refilled = Config(**DYNAMIC), set()
    for step in range(4):
        experience, row = sample_groups(model, config, numbers, step, MACHINE)
        kept, asked, refills = expected_groups(numbers, config, step, SOMETIMES, 4)
        assert experience.problems == [problem for problem, *_ in kept] and experience.places == list(range(len(kept)))
        assert experience.rewards["outcome"].tolist() == [[float(r) for r in right] for _, right, _ in kept] and experience.signal.all()
        for p, (problem, right, _) in enumerate(kept):  # responses stay with their question
            for g in range(4):
                assert experience.rollout.response(4 * p + g) == render_response("\n".join(["so"] * (value(problem) % 5)), str(value(problem) + (not right[g])))
        # the metrics count what was left out as well
        rights = [right for _, right in asked]
        expected = dict(solve_rate=np.mean(rights), all_right=np.mean([all(r) for r in rights]), all_wrong=np.mean([not any(r) for r in rights]),
                        no_signal=1 - len(kept) / len(asked), groups=len(kept), refills=refills, reward_total=np.mean(rights))
        assert {name: row[name] for name in expected} == pytest.approx(expected)
        assert row["sampled_tokens"] == sum(len(render_response("\n".join(["so"] * (value(p) % 5)), str(value(p) + (not r)))) for p, right in asked for r in right)
        refilled.add(len({attempt for *_, attempt in kept}))
    assert max(refilled) > 2  # groups of later refills are there


def test_dynamic_sampling_stops_when_full_or_after_its_refills(model, numbers, monkeypatch):
    calls, draw = [], numbers.draw
    monkeypatch.setattr(numbers, "draw", lambda step, attempt, count: calls.append((attempt, count)) or draw(step, attempt, count))
    for chance, refills, asked in ((lambda n: 0.0, 2, [(0, 12), (1, 12), (2, 12)]), (lambda n: 1.0, 1, [(0, 12), (1, 12)])):
        calls.clear()
        lucky(monkeypatch, chance)
        experience, row = sample_groups(model, Config(**DYNAMIC | dict(refills=refills)), numbers, 0, MACHINE)
        assert calls == asked and experience.problems == [] and experience.places == [] and row["groups"] == 0 and row["refills"] == refills and row["no_signal"] == 1
        assert token_advantages(experience.rewards["total"], experience.steps, experience.rollout.lengths).shape[0] == 0
    calls.clear()
    scripted(monkeypatch, lambda q: [render_response("", a) for a in (q[8:-1], "0", "0", "0")])
    experience, row = sample_groups(model, Config(**DYNAMIC), numbers, 0, MACHINE)
    assert calls == [(0, 12)] and row["refills"] == 0 and row["groups"] == 12
    lucky(monkeypatch, lambda n: 0.0)
    calls.clear()
    experience, row = sample_groups(model, Config(**DYNAMIC | dict(dynamic_sampling=False)), numbers, 0, MACHINE)
    assert calls == [(0, 12)] and row["groups"] == 12 and len(experience.problems) == 12  # without the switch all stay


def test_the_gradient_is_clipped_to_its_limit_and_not_at_all_without_one(model):
    experience = rolled(model)
    free, tight, none = (run_update(model, experience, spread(some_rewards(), experience), grad_clip=limit)[1][0] for limit in (1e9, 0.01, 0.0))
    norm = lambda gradient: torch.cat([g.flatten() for g in gradient.values()]).norm().item()
    assert norm(free) == norm(none) > 0.05 and norm(tight) == pytest.approx(0.01, rel=1e-3) and same({k: g * norm(free) / 0.01 for k, g in tight.items()}, free, 1e-3)


@pytest.mark.filterwarnings("error")
def test_an_update_without_a_single_group_changes_nothing(model, numbers, monkeypatch):
    lucky(monkeypatch, lambda n: 0.0)
    experience, _ = sample_groups(model, Config(**DYNAMIC), numbers, 0, MACHINE)
    advantages = token_advantages(experience.rewards["total"], experience.steps, experience.rollout.lengths)
    for loss in LOSSES:
        row, steps = run_update(model, experience, advantages, loss=loss, minibatches=2)
        assert len(steps) == 2 and all(g is None for step in steps for g in step.values())
        assert row.pop("grad_norm") == 0 and set(row.values()) == {None}
    assert sequence_kl(model, copy.deepcopy(model), experience, Config(**EXACT), CPU, False).shape == (0, 1)


@pytest.mark.parametrize("world, minibatches", [(2, 2), (3, 1), (2, 3)])
def test_ranks_together_keep_the_groups_that_one_keeps_at_the_same_places(world, minibatches, model, numbers, monkeypatch):
    lucky(monkeypatch, SOMETIMES)
    for dynamic in (True, False):
        config = Config(**DYNAMIC | dict(minibatches=minibatches, dynamic_sampling=dynamic))
        one, row = sample_groups(model, config, numbers, 1, MACHINE)
        held = lambda share, p: (share.problems[p], [share.rollout.response(4 * p + g) for g in range(4)], share.rewards["total"][p].tolist())
        found = {}
        for share, metrics in Ranks(world).run(lambda machine: sample_groups(model, config, numbers, 1, machine)):
            assert metrics == pytest.approx(row)
            assert not set(share.places) & set(found)
            found |= {place: held(share, p) for p, place in enumerate(share.places)}
        assert found == {place: held(one, p) for p, place in enumerate(one.places)}
        assert len(found) > 6 and (not dynamic or row["refills"] > 0)


def test_sampled_responses_do_not_depend_on_how_ranks_share_them(model, numbers):
    """The real engine: every response draws from its own random numbers."""
    config = Config(num_samples_per_prompt=4, batch_size=32, max_reasoning_tokens=24)
    one, _ = sample_groups(model, config, numbers, 0, MACHINE)
    for share, _ in Ranks(2).run(lambda machine: sample_groups(model, config, numbers, 0, machine)):
        assert 0 < len(share.places) < 8
        for p, place in enumerate(share.places):
            assert [share.rollout.response(4 * p + g) for g in range(4)] == [one.rollout.response(4 * place + g) for g in range(4)]
    again, _ = sample_groups(model, config, numbers, 1, MACHINE)
    assert again.rollout.ids.tolist() != one.rollout.ids.tolist()

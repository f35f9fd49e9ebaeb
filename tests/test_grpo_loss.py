"""The pure functions of train_grpo.py.

Every loss is compared with its paper's equation, written in loops, and with policies whose
responses can be listed.
"""

import itertools
import math
import statistics
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from nanoreason.flags import parse_config
from nanoreason.grpo_run import check_config
from nanoreason.machine import Machine, generator
from train_grpo import (
    PAPERS,
    PRESETS,
    Config,
    group_advantages,
    policy_loss,
    token_advantages,
    token_weights,
)

LOSSES = ("grpo", "dr-grpo", "dapo", "gspo", "cispo")
PPO = ("grpo", "dr-grpo", "dapo")  # one formula, three weights
LONGEST = 9  # --max-reasoning-tokens, which no response of the data below reaches
OPEN = (0.0, 0.0)
MACHINE = Machine(torch.device("cpu"))

# Losses and gradients against loops over groups, responses and tokens of padded arrays


def make_data(clip, by_token, P=12, G=4, L=7):
    """Padded (N, L) float64 lists, NaN after a response's end.

    The ratios go past both closed bounds, of single tokens and of whole responses.
    """
    N = P * G
    noise = generator(0, f"loss {clip} {by_token}")

    def normal(*shape):
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    lengths = torch.randint(1, L + 1, (N,), generator=noise)
    lengths[:3] = torch.tensor([1, L, 1])
    spread = 2 * max(-math.log(1 - clip[0]), math.log(1 + clip[1])) or 0.5
    logp = -3 * torch.rand(N, L, generator=noise, dtype=torch.float64) - 0.01
    old = logp - spread * (0.8 * normal(N, 1) + 0.6 * normal(N, L))
    ref = logp - 0.5 * normal(N, L)
    advantage = normal(N, L) if by_token else normal(N, 1).expand(N, L).clone()
    advantage[5] = 0
    inside = torch.arange(L) < lengths[:, None]
    arrays = dict(logp=logp, old=old, ref=ref, advantage=advantage)
    padded = {name: torch.where(inside, x, torch.nan) for name, x in arrays.items()}
    lists = {name: x.tolist() for name, x in padded.items()}
    return SimpleNamespace(
        P=P, G=G, lengths=lengths.tolist(), inside=inside, tensors=padded, **lists
    )


def own_weight(loss, data, i):
    """Weight of each token of response i: the papers' for a group, averaged over the groups.

    For dapo and cispo it is an average over all tokens of the minibatch.
    """
    weights = {
        "grpo": 1 / data.P / data.G / data.lengths[i],
        "gspo": 1 / data.P / data.G / data.lengths[i],
        "dr-grpo": 1 / data.P / data.G / LONGEST,
        "dapo": 1 / sum(data.lengths),
        "cispo": 1 / sum(data.lengths),
    }
    return weights[loss]


def side_of(ratio, clip):
    if clip[1] and ratio > 1 + clip[1]:
        return "above"
    if clip[0] and ratio < 1 - clip[0]:
        return "below"
    return "within"


def paper_gain(loss, ratio, a, logp, clip):
    """Gain of one token, its slope in the token's log-probability, and whether it is clipped."""
    side = side_of(ratio, clip)
    bound = {"above": 1 + clip[1], "below": 1 - clip[0], "within": ratio}[side]
    if loss == "cispo":
        return bound * a * logp, bound * a, side != "within"
    if (a > 0 and side == "above") or (a < 0 and side == "below"):
        return bound * a, 0.0, True
    return ratio * a, ratio * a, False


def paper_penalty(kl, x):
    """KL penalty of one token as a loss, and its slope. x: log pi / pi_ref."""
    penalties = {
        "none": (0, 0),
        "k1": (0, 0),
        "k2": (x * x / 2, x),
        "k3": (math.exp(-x) - 1 + x, 1 - math.exp(-x)),
    }
    return penalties[kl]


def paper(loss, data, clip, kl, coef, logp=None):
    """The objective, negated, at `logp`; what stands in sg() stays at data.logp.

    Returns its value, its gradient by hand (N, L), the clipped share, the mean k3, and which pairs
    (sign of the advantage, side of the clip) the data reach.
    """
    logp = logp or data.logp
    gradient = [[0.0] * len(row) for row in logp]
    out = SimpleNamespace(value=0.0, gradient=gradient, share=0.0, k3=0.0, reached=set())
    for i in range(data.P * data.G):
        n = data.lengths[i]
        weight = own_weight(loss, data, i)
        s = math.exp(sum(data.logp[i][t] - data.old[i][t] for t in range(n)) / n)
        for t in range(n):
            a = data.advantage[i][t]
            held = data.logp[i][t]
            if loss == "gspo":
                ratio = s * math.exp(logp[i][t] - held)
            else:
                ratio = math.exp((held if loss == "cispo" else logp[i][t]) - data.old[i][t])
            gain, slope, clipped = paper_gain(loss, ratio, a, logp[i][t], clip)
            x = logp[i][t] - data.ref[i][t]
            penalty, pull = paper_penalty(kl, x)
            out.value -= weight * (gain - coef * penalty)
            out.gradient[i][t] = -weight * (slope - coef * pull)
            out.share += weight * clipped
            out.k3 += weight * (math.exp(-x) - 1 + x)
            out.reached.add(((a > 0) - (a < 0), side_of(ratio, clip)))
    return out


class Ours(NamedTuple):
    """What policy_loss returns, and its gradient (M,)."""

    value: torch.Tensor
    share: torch.Tensor
    k3: torch.Tensor
    gradient: torch.Tensor


def ours(loss, data, clip, kl="none", coef=0.0, with_ref=True, order=None):
    """policy_loss on the same tokens laid end to end."""
    flat = {name: x[data.inside] for name, x in data.tensors.items()}
    owner = [i for i, n in enumerate(data.lengths) for _ in range(n)]
    response = torch.tensor(owner)
    weight = torch.tensor([own_weight(loss, data, i) for i in owner], dtype=torch.float64)
    order = torch.arange(len(weight)) if order is None else order
    logp = flat["logp"].requires_grad_()
    out = policy_loss(
        logp[order],
        flat["old"][order],
        flat["ref"][order] if with_ref else None,
        flat["advantage"][order],
        weight[order],
        response[order],
        loss,
        clip,
        kl,
        coef,
    )
    return Ours(*out, torch.autograd.grad(out[0], logp)[0])


def same(got, expected, rel=1e-9):
    """Whether two numbers or tensors agree.

    Differences of tensors count relative to each entry, and to 1e-15 of the largest.
    """
    expected = torch.as_tensor(expected, dtype=torch.float64)
    tolerance = rel * expected.abs() + 1e-15 * expected.abs().max()
    return bool(((torch.as_tensor(got) - expected).abs() <= tolerance).all())


PAPER_CLIPS = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (0.0, 4.0)}
CLIPS = {
    "paper": None,
    "symmetric": (0.2, 0.2),
    "asymmetric": (0.5, 0.1),
    "above open": (0.2, 0.0),
    "below open": (0.0, 0.2),
    "both open": OPEN,
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kl", ["none", "k1", "k2", "k3"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_the_papers_equation(loss, kl, clip):
    clip = CLIPS[clip] or PAPER_CLIPS.get(loss, (0.2, 0.2))
    for by_token in (False, True):
        data = make_data(clip, by_token)
        expected = paper(loss, data, clip, kl, 0.3)
        sides = ["within"] + ["below"] * (clip[0] > 0) + ["above"] * (clip[1] > 0)
        assert expected.reached >= set(itertools.product((-1, 1), sides))
        assert 0 in {sign for sign, _ in expected.reached}

        got = ours(loss, data, clip, kl, 0.3)
        gradient = torch.tensor(expected.gradient, dtype=torch.float64)
        assert same(got.value, expected.value) and same(got.gradient, gradient[data.inside])
        assert same(got.share, expected.share) and same(got.k3, expected.k3)
        assert (expected.share > 0) == (clip != OPEN)
        assert not got.share.requires_grad and not got.k3.requires_grad

        # The gradient by hand against differences of the value, at a few tokens
        for i, t in ((0, 0), (1, 2), (1, data.lengths[1] - 1), (7, 0), (20, 0)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [row[:] for row in data.logp]
                moved[i][t] += step
                ends.append(paper(loss, data, clip, kl, 0.3, moved).value)
            tolerance = 1e-8 * max(1, abs(expected.value))
            slope = pytest.approx(expected.gradient[i][t], rel=1e-5, abs=tolerance)
            assert (ends[0] - ends[1]) / 2e-6 == slope


@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.2, 0.2), OPEN])
def test_gspos_token_form_has_the_gradient_of_its_response_form(clip):
    """GSPO eq. 5, 1/N sum_i min(s_i A_i, clip(s_i) A_i), has no sg(): every token moves s_i.

    Its gradient is taken by hand, and by differences at every token.
    """
    data = make_data(clip, by_token=False)
    N = data.P * data.G

    def term(i, logp):
        """The ratio s_i, whether it is clipped, and the term of the sum."""
        a = data.advantage[i][0]
        n = data.lengths[i]
        s = math.exp(statistics.fmean(logp[t] - data.old[i][t] for t in range(n)))
        clipped = a * (s - 1) > 0 and side_of(s, clip) != "within"
        bound = 1 + clip[1] if s > 1 else 1 - clip[0]
        return s, clipped, a / N * (bound if clipped else s)

    by_hand = []
    by_difference = []
    for i, n in enumerate(data.lengths):
        s, clipped, _ = term(i, data.logp[i])
        by_hand += [0.0 if clipped else -data.advantage[i][0] * s / n / N] * n
        for t in range(n):
            ends = []
            for step in (1e-7, -1e-7):
                moved = data.logp[i][:]
                moved[t] += step
                ends.append(term(i, moved)[2])
            by_difference.append(-(ends[0] - ends[1]) / 2e-7)
    got = ours("gspo", data, clip)
    assert same(got.value, -sum(term(i, data.logp[i])[2] for i in range(N)))
    assert same(got.gradient, by_hand)
    assert got.gradient.tolist() == pytest.approx(by_difference, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_may_come_in_any_order_and_no_reference_means_no_kl(loss):
    clip = (0.2, 0.2)
    data = make_data(clip, by_token=True)
    straight = ours(loss, data, clip, "k3", 0.1)
    order = torch.randperm(sum(data.lengths), generator=generator(0, "order"))
    mixed = ours(loss, data, clip, "k3", 0.1, order=order)
    for a, b in zip(mixed, straight):
        assert same(a, b, 1e-12) or abs(a - b).max() < 1e-12
    without = ours(loss, data, clip, with_ref=False)
    with_ref = ours(loss, data, clip)
    assert without.k3 == 0 and with_ref.k3 > 0
    assert torch.equal(without.value, with_ref.value)
    assert torch.equal(without.gradient, with_ref.gradient)


@pytest.mark.parametrize("loss", LOSSES)
def test_token_weights_are_the_papers(loss):
    data = make_data((0.2, 0.2), by_token=False)
    lengths = torch.tensor(data.lengths)
    weight = token_weights(loss, lengths, len(lengths), sum(data.lengths), LONGEST)
    assert weight.dtype == torch.float32 and weight.shape == (48, 1)
    expected = [own_weight(loss, data, i) for i in range(48)]
    assert weight.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    if loss != "dr-grpo":
        assert (weight.flatten() * lengths).sum() == pytest.approx(1)  # an average
    # With several ranks the counts are the whole minibatch's, as floats, not this rank's.
    half = token_weights(loss, lengths[:24], 48.0, float(sum(data.lengths)), LONGEST)
    assert torch.equal(half, weight[:24])


def test_weights_of_one_group_are_those_that_dapo_prints():
    """DAPO eq. 8: 1 / sum_i |o_i| of the group; cispo the same (MiniMax-M1 eq. 4)."""
    expected = {
        "dapo": [1 / 10] * 4,
        "cispo": [1 / 10] * 4,
        "grpo": [1 / 4, 1 / 16, 1 / 8, 1 / 12],
        "dr-grpo": [1 / 400] * 4,
    }
    for loss, weights in expected.items():
        got = token_weights(loss, torch.tensor([1, 4, 2, 3]), 4, 10, 100)
        assert got.flatten().tolist() == pytest.approx(weights)


# The clip, token by token


def slopes(ratios, advantage, loss, clip):
    """Gradient of the negated loss in each log-probability, and the clipped share; weights are 1.

    ratios: a list per response.
    """
    response = torch.tensor([i for i, row in enumerate(ratios) for _ in row])
    logp = torch.tensor([math.log(r) - 1 for row in ratios for r in row], dtype=torch.float64)
    logp.requires_grad_()
    old = torch.full_like(logp, -1.0).detach()
    advantages = torch.full_like(old, advantage)
    weight = torch.ones_like(old)
    value, clipped, _ = policy_loss(logp, old, None, advantages, weight, response, loss, clip)
    return [-g for g in torch.autograd.grad(value, logp)[0].tolist()], clipped.item()


@pytest.mark.parametrize(
    "advantage, ratio, flows",
    [
        (1.0, 1.5, False),
        (1.0, 0.5, True),
        (-1.0, 1.5, True),
        (-1.0, 0.5, False),
        (1.0, 1.1, True),
        (-1.0, 0.9, True),
    ],
)
def test_the_clip_stops_the_gradient_only_where_the_policy_has_gone_far_enough(
    advantage, ratio, flows
):
    """The slope of min(r A, clip(r) A) is r A.

    It is 0 once r has left [0.8, 1.2] on the side that A pushes to.
    """
    clip = (0.2, 0.2)
    slope = advantage * ratio if flows else 0.0
    for loss in PPO:
        expected = (pytest.approx([slope]), 0 if flows else 1)
        assert slopes([[ratio]], advantage, loss, clip) == expected

    # gspo clips a response by its geometric mean: every token of it gets the same slope, whatever
    # its own ratio is. The other response is clipped, or not, on its own.
    whole = [ratio * 4, ratio / 4, ratio]
    expected = (pytest.approx([advantage] * 2 + [slope] * 3), 0 if flows else 3)
    assert slopes([[1.0, 1.0], whole], advantage, "gspo", clip) == expected

    kept = min(max(ratio, 0.8), 1.2)
    expected = (pytest.approx([kept * advantage]), kept != ratio)
    assert slopes([[ratio]], advantage, "cispo", clip) == expected


@pytest.mark.parametrize("loss", PPO + ("gspo",))
def test_a_wider_or_open_side_lets_the_gradient_through(loss):
    for advantage, ratio in ((1.0, 1.25), (-1.0, 0.75)):

        def gradient(*clip):
            return slopes([[ratio, ratio]], advantage, loss, clip)[0]

        def flows(*clip):
            return gradient(*clip) == pytest.approx([advantage * ratio] * 2)

        def stops(*clip):
            return gradient(*clip) == [0, 0]

        wide = (0.2, 0.28) if advantage > 0 else (0.28, 0.2)
        narrow = (0.28, 0.2) if advantage > 0 else (0.2, 0.28)
        assert flows(*wide) and stops(*narrow) and stops(0.2, 0.2) and flows(*OPEN)
        assert flows(0.2, 0.0) == stops(0.0, 0.2) == (advantage > 0)
        assert flows(0.0, 0.2) == stops(0.2, 0.0) == (advantage < 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_on_policy_every_loss_is_the_plain_policy_gradient(loss):
    """At a ratio of exactly 1 no clip is narrow enough to act, and the slope is the advantage."""
    for advantage in (1.0, -1.0):
        got = slopes([[1.0], [1.0, 1.0]], advantage, loss, (1e-9, 1e-9))
        assert got == ([advantage] * 3, 0)


# Expected updates of a policy whose responses can be listed. It is a table of logits: row 0 holds
# those of the first token, row 1 + a those of the second token after a.

KINDS = pytest.mark.parametrize("kind", ["one", "two", "ragged"])


def all_responses(kind):
    """All responses, each a list of (row of the table, token).

    one, two: responses of that many tokens. ragged: token 0 as the first ends the response.
    """
    found = []
    for a in range(3):
        if kind == "one" or (kind == "ragged" and a == 0):
            found.append([(0, a)])
        else:
            found += [[(0, a), (1 + a, b)] for b in range(3)]
    return found


def table(seed, scale=1.0):
    noise = generator(seed, "toy")
    return (scale * torch.randn(4, 3, generator=noise, dtype=torch.float64)).requires_grad_()


def table_logprobs(theta, responses):
    """(M,) log-probability of every token of the responses, end to end."""
    row, token = torch.tensor([place for response in responses for place in response]).T
    return theta.log_softmax(-1)[row, token]


def response_logprobs(theta, responses):
    """(N,) log-probability of every response."""
    return torch.stack([table_logprobs(theta, [response]).sum() for response in responses])


def grad(scalar, theta):
    return torch.autograd.grad(scalar, theta)[0]


def close(a, b, tolerance=1e-9):
    return (a - b).abs().max() < tolerance


def cosine(a, b):
    return ((a * b).sum() / a.norm() / b.norm()).item()


def true_gradient(theta, responses, rewards):
    """d/dtheta sum_y pi(y) r(y)."""
    return grad((response_logprobs(theta, responses).exp() * rewards).sum(), theta)


def group_weights(loss, lengths):
    """Weight (P, G) of the tokens of each response, averaged over a group. lengths: (P, G)."""
    G = lengths.size(1)
    weights = {
        "dr-grpo": torch.full(lengths.shape, 1 / G, dtype=torch.float64),
        "grpo": 1 / G / lengths.double(),
        "gspo": 1 / G / lengths.double(),
        "dapo": 1 / lengths.sum(1, keepdim=True).double().expand(lengths.shape),
    }
    return weights[loss]


def expected_update(
    theta, responses, rewards, G, loss="dr-grpo", kind="mean", old=None, clip=(0.2, 0.2)
):
    """Ascent direction of policy_loss, averaged over all groups of G responses.

    A group counts by the probability that `old` samples it.
    """
    old = theta.detach() if old is None else old.detach()
    groups = torch.tensor(list(itertools.product(range(len(responses)), repeat=G)))  # (P, G)
    rows = [responses[y] for y in groups.flatten().tolist()]  # N = P * G
    lengths = torch.tensor([len(row) for row in rows])  # (N,)
    chance = response_logprobs(old, responses).exp()[groups].prod(1)  # (P,)
    assert chance.sum() == pytest.approx(1, abs=1e-12)

    advantage = token_advantages(rewards[groups], [[]] * len(rows), lengths, kind)  # (N, L)
    advantage = advantage[torch.arange(advantage.size(1)) < lengths[:, None]]  # (M,)
    weight = chance[:, None] * group_weights(loss, lengths.view(groups.shape))  # (P, G)
    weight = weight.flatten().repeat_interleave(lengths)  # (M,)
    response = torch.arange(len(rows)).repeat_interleave(lengths)
    logp = table_logprobs(theta, rows)
    old_logp = table_logprobs(old, rows)
    value, *_ = policy_loss(logp, old_logp, None, advantage, weight, response, loss, clip)
    return -grad(value, theta)


# Of the up to nine responses
REWARDS = torch.tensor([1, 0, 0, 1, 0.5, 0, 0, 1, -1], dtype=torch.float64)


@pytest.mark.parametrize("G", [2, 3])
@KINDS
def test_the_expected_update_is_the_policy_gradient(kind, G):
    """Without division by length or standard deviation.

    The group's mean holds the response itself, which takes 1/G of its advantage.
    """
    theta = table(1)
    responses = all_responses(kind)
    assert len(responses) == {"one": 3, "two": 9, "ragged": 7}[kind]
    chances = response_logprobs(theta, responses).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-12)
    rewards = REWARDS[: len(responses)]
    exact = true_gradient(theta, responses, rewards)
    assert exact.norm() > 0.05
    assert close(expected_update(theta, responses, rewards, G), (1 - 1 / G) * exact)
    if kind != "ragged":  # with one length the divisions by length are a constant
        length = {"one": 1, "two": 2}[kind]
        for loss in ("dapo", "grpo", "gspo"):
            got = expected_update(theta, responses, rewards, G, loss)
            assert close(got, (1 - 1 / G) / length * exact)


@pytest.mark.parametrize("loss", ["grpo", "gspo", "dapo"])
def test_dividing_by_lengths_turns_the_expected_update(loss):
    """The short response and one of the long ones are right. Division favours the short one.

    dapo turns the update least, and less the larger the group.
    """
    theta = table(1)
    responses = all_responses("ragged")
    rewards = torch.tensor([1, 0, 0, 0, 0, 0, 1], dtype=torch.float64)
    exact = true_gradient(theta, responses, rewards)

    def agreement(G, loss):
        return cosine(expected_update(theta, responses, rewards, G, loss), exact)

    assert 0 < agreement(3, loss) < 0.999
    assert agreement(3, "dr-grpo") == pytest.approx(1, abs=1e-12)
    if loss == "dapo":
        forms = (("grpo", 3), ("dapo", 2), ("dapo", 3), ("dapo", 4))
        turned = [1 - agreement(G, form) for form, G in forms]
        assert turned == sorted(turned, reverse=True)


def test_dividing_by_the_std_weighs_questions_by_difficulty():
    """Two questions with a table each, one easy, one even.

    `mean` keeps their balance and `mean-std` does not, except in groups of 2 or 3, where all groups
    with signal have the same standard deviation.
    """
    responses = all_responses("one")
    rewards = torch.tensor([1, 0, 0], dtype=torch.float64)
    questions = []
    for easy in (2.5, 0.7):
        theta = torch.tensor([[easy, 0, 0]] * 4, dtype=torch.float64, requires_grad=True)
        questions.append(theta)
    exact = torch.stack([true_gradient(theta, responses, rewards) for theta in questions])

    def both(G, kind):
        updates = [expected_update(theta, responses, rewards, G, kind=kind) for theta in questions]
        return torch.stack(updates)

    for G in (2, 3, 4):
        assert close(both(G, "mean"), (1 - 1 / G) * exact)
    assert cosine(both(2, "mean-std"), exact) == pytest.approx(1, abs=1e-9)
    assert cosine(both(3, "mean-std"), exact) == pytest.approx(1, abs=1e-9)
    six = both(6, "mean-std")
    assert cosine(six, exact) < 0.999
    easy = six[0].norm() / exact[0].norm()
    even = six[1].norm() / exact[1].norm()
    assert easy > 1.1 * even  # the easy one gains weight


def test_the_importance_ratio_corrects_for_an_older_policy():
    """Responses of the old policy, without a clip: exact for one token.

    For two it is not: a token's ratio leaves out the ratios of the tokens before it.
    """
    theta = table(1)
    old = table(2)
    for kind in ("one", "two"):
        responses = all_responses(kind)
        rewards = REWARDS[: len(responses)]
        exact = (1 - 1 / 3) * true_gradient(theta, responses, rewards)
        open_update = expected_update(theta, responses, rewards, 3, old=old, clip=OPEN)
        assert close(open_update, exact) == (kind == "one")
        clipped = expected_update(theta, responses, -rewards, 3, old=old, clip=(0.2, 0.2))
        assert not close(clipped, -exact, 1e-3)  # the bias of clipping


# Estimators of the KL, exactly


def kl_of(p, q, kind, held=True, reverse=False):
    """KL(p || q) of whole responses: a sum over prefixes of the KL of the next token.

    held: the probabilities of the prefixes take no gradient. reverse: KL(q || p) of each token.
    """
    first = p.log_softmax(-1)[0].exp()
    second = {"one": 0 * first, "two": first, "ragged": first * torch.tensor([0, 1, 1])}[kind]
    reach = torch.cat([torch.ones(1), second])  # (4,): probability of the prefix of each row
    a, b = (q, p) if reverse else (p, q)
    log_ratio = a.log_softmax(-1) - b.log_softmax(-1)
    tokenwise = (a.log_softmax(-1).exp() * log_ratio).sum(-1)  # (4,)
    return ((reach.detach() if held else reach) * tokenwise).sum()


def kl_loss(theta, ref, kind, estimator):
    """Expected policy_loss without advantages, over all responses, and the k3 that it reports."""
    responses = all_responses(kind)
    lengths = torch.tensor([len(response) for response in responses])
    weight = response_logprobs(theta, responses).exp().detach().repeat_interleave(lengths)
    response = torch.arange(len(responses)).repeat_interleave(lengths)
    logp = table_logprobs(theta, responses)
    value, _, k3 = policy_loss(
        logp,
        logp.detach(),
        table_logprobs(ref, responses).detach(),
        torch.zeros_like(weight),
        weight,
        response,
        "dr-grpo",
        kl=estimator,
        kl_coef=1.0,
    )
    return value, k3


def kl_gradient(theta, ref, kind, estimator):
    value, _ = kl_loss(theta, ref, kind, estimator)
    return grad(value, theta)


@KINDS
def test_values_of_k1_and_k3_are_the_kl_on_average_and_that_of_k2_is_not(kind):
    theta = table(1)
    ref = table(2)
    responses = all_responses(kind)
    logp = response_logprobs(theta, responses)
    x = logp - response_logprobs(ref, responses)
    kl = (logp.exp() * x).sum().item()  # E[k1], by definition
    assert kl > 0.3 and kl_of(theta, ref, kind).item() == pytest.approx(kl, abs=1e-12)
    value, k3 = kl_loss(theta, ref, kind, "k3")
    assert value.item() == pytest.approx(kl, abs=1e-12)
    assert k3.item() == pytest.approx(kl, abs=1e-12)
    value, _ = kl_loss(theta, ref, kind, "k2")
    assert abs(value.item() - kl) > 0.01
    for estimator in ("none", "k1", "k2"):
        _, k3 = kl_loss(theta, ref, kind, estimator)
        assert k3.item() == pytest.approx(kl, abs=1e-12)  # reported whatever the loss


@KINDS
def test_k2_has_the_gradient_of_the_kl_of_each_token_and_k3_that_of_the_reversed_one(kind):
    theta = table(1)
    ref = table(2)
    k2 = kl_gradient(theta, ref, kind, "k2")
    k3 = kl_gradient(theta, ref, kind, "k3")
    assert close(k2, grad(kl_of(theta, ref, kind), theta))
    assert close(k3, grad(kl_of(theta, ref, kind, reverse=True), theta))
    assert (k3 - k2).norm() > 0.1 * k2.norm()


@KINDS
def test_near_the_reference_k3_is_right_to_first_order(kind):
    ref = table(2).detach()
    away = table(3).detach()
    norms = []
    gaps = []
    for scale in (1e-2, 1e-3):
        theta = (ref + scale * away).requires_grad_()
        k2 = kl_gradient(theta, ref, kind, "k2")
        k3 = kl_gradient(theta, ref, kind, "k3")
        norms.append(k2.norm().item())
        gaps.append((k3 - k2).norm().item())
    assert norms[0] / norms[1] == pytest.approx(10, rel=0.1)
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)
    for estimator in ("k2", "k3"):
        assert not kl_gradient(theta, theta.detach(), kind, estimator).any()


@KINDS
def test_k1_is_nothing_as_a_loss_and_exact_in_the_reward(kind):
    """In the reward, r - coef * sum_t x_t gives the gradient of E[r] - coef KL(pi || ref).

    That gradient holds what a token does to the KL of later ones. k2 leaves it out.
    """
    theta = table(1)
    ref = table(2)
    coef = 0.7
    responses = all_responses(kind)
    rewards = REWARDS[: len(responses)]
    logp = response_logprobs(theta, responses)
    x = logp - response_logprobs(ref, responses)

    # As a loss: E[d k1] = E[d log pi] = 0, and policy_loss holds none of it.
    chances = logp.exp().detach()
    expected_score = grad((chances * response_logprobs(theta, responses)).sum(), theta)
    assert close(expected_score, torch.zeros(4, 3), 1e-12)
    value, _ = kl_loss(theta, ref, kind, "k1")
    assert value.item() == 0 and not grad(value, theta).any()

    # In the reward
    whole_kl = grad(kl_of(theta, ref, kind, held=False), theta)
    assert close(whole_kl, grad((logp.exp() * x).sum(), theta), 1e-12)
    exact = true_gradient(theta, responses, rewards) - coef * whole_kl
    for G in (2, 3):
        got = expected_update(theta, responses, rewards - coef * x.detach(), G)
        assert close(got, (1 - 1 / G) * exact)
    k2 = kl_gradient(theta, ref, kind, "k2")
    assert close(k2, whole_kl) == (kind == "one")
    assert kind == "one" or (k2 - whole_kl).norm() > 0.05 * whole_kl.norm()


# Advantages


def normalised(values, kind):
    """By hand: 0 where all are equal, else the distance to the mean.

    mean-std divides it by the sample standard deviation.
    """
    if len(set(values)) == 1:
        return [0.0] * len(values)
    mean = statistics.fmean(values)
    divisor = statistics.stdev(values) if kind == "mean-std" else 1.0
    return [(v - mean) / divisor for v in values]


def by_token(rewards, steps, lengths, kind):
    """(N, L): for each token the sum of the group's normalised rewards at it or after it."""
    G = len(rewards[0])
    L = max(lengths)
    out = []
    for p, outcomes in enumerate(rewards):
        rows = range(p * G, (p + 1) * G)
        events = [(row, at, value) for row in rows for at, value in steps[row]]
        events += [(row, lengths[row] - 1, outcomes[row - p * G]) for row in rows]
        scores = normalised([value for *_, value in events], kind)
        for row in rows:
            own = [(at, score) for (i, at, _), score in zip(events, scores) if i == row]
            returns = [sum(score for at, score in own if at >= t) for t in range(lengths[row])]
            out.append(returns + [0.0] * (L - lengths[row]))
    return out


@pytest.mark.parametrize("kind", ["mean", "mean-std"])
def test_group_advantages_by_hand(kind):
    noise = generator(0, kind)
    for G in (2, 3, 8):
        rewards = torch.randn(9, G, generator=noise)
        rewards[0] = 0.1
        rewards[1] = (torch.arange(G) == 1).float()
        rewards[2] = 1 / 3
        rewards[3] = rewards[3].round()
        got = group_advantages(rewards, kind)
        assert got.dtype == torch.float32
        expected = [normalised(row, kind) for row in rewards.tolist()]
        assert got.tolist() == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in expected]
        assert not got[0].any() and not got[2].any() and got[1].any()
        assert torch.allclose(got.sum(1), torch.zeros(9), atol=1e-5)
    assert torch.equal(group_advantages(rewards), group_advantages(rewards, "mean-std"))


def test_token_advantages_of_the_worked_example():
    rewards = torch.tensor([[1.0, 0.0]])
    got = token_advantages(rewards, [[(0, 1.0)], []], torch.tensor([3, 2]), "mean")
    expected = [[2 / 3, 1 / 3, 1 / 3], [-2 / 3, -2 / 3, 0]]
    assert got.tolist() == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("kind", ["mean", "mean-std"])
@pytest.mark.parametrize("G", [2, 3, 8])
def test_token_advantages_by_loops(G, kind):
    """Random steps: at times two on one token, or one on the last token, where the outcome is.

    One group has equal rewards throughout, one has a single step, one has none.
    """
    P = 6
    L = 9
    rewards, steps, lengths = random_steps(P, G, L, generator(G, kind))
    got = token_advantages(rewards, steps, lengths, kind)
    assert got.dtype == torch.float32 and got.shape == (P * G, L)
    expected = by_token(rewards.tolist(), steps, lengths.tolist(), kind)
    expected = torch.tensor(expected, dtype=torch.float64)
    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=2e-6)
    assert not got[3 * G : 4 * G].any()  # all rewards of the group are equal: exactly zero
    assert got[4 * G : 5 * G].any()  # one step differs
    assert not got[torch.arange(L) >= lengths[:, None]].any()

    # The group without steps is not changed by others with steps.
    alone = token_advantages(rewards[5:], steps[5 * G :], lengths[5 * G :], kind)
    assert torch.allclose(got[5 * G :, : alone.size(1)], alone, atol=1e-6)
    # A change of the first group's rewards changes no other group.
    changed = rewards.clone()
    changed[0] = 0
    changed[0, 0] = 50.0
    assert torch.equal(token_advantages(changed, steps, lengths, kind)[G:], got[G:])


def random_steps(P, G, L, noise):
    """Rewards (P, G), steps of each response [(token, reward)], and lengths (P * G,)."""

    def draw(high):
        return int(torch.randint(high, (1,), generator=noise))

    def steps_of(length):
        count = draw(5)
        return [(draw(length), float(draw(3) - 1)) for _ in range(count)]

    rewards = torch.randn(P, G, generator=noise)
    lengths = torch.randint(1, L + 1, (P * G,), generator=noise)
    lengths[0] = 1
    lengths[1] = L
    steps = [steps_of(length) for length in lengths.tolist()]
    steps[0] = [(0, 1.0), (0, -1.0)]
    steps[1] = [(4, 1.0), (4, 1.0), (L - 1, -1.0)]
    rewards[2] = rewards[2].round()
    rewards[3] = 1.0  # equal throughout
    steps[3 * G : 4 * G] = [[(0, 1.0), (n - 1, 1.0)] for n in lengths[3 * G : 4 * G].tolist()]
    rewards[4] = 1.0  # equal but for one step
    steps[4 * G :] = [[(0, 0.5)]] + [[]] * (2 * G - 1)
    return rewards, steps, lengths


@pytest.mark.parametrize("kind", ["mean", "mean-std"])
def test_without_steps_all_tokens_share_their_responses_advantage(kind):
    rewards = torch.randn(3, 4, generator=generator(0, "plain"))
    lengths = torch.tensor([1, 5, 2, 3] * 3)
    got = token_advantages(rewards, [[] for _ in range(12)], lengths, kind)
    expected = [a for row in rewards.tolist() for a in normalised(row, kind)]
    rows = [[a] * n + [0] * (5 - n) for a, n in zip(expected, lengths.tolist())]
    assert got.tolist() == [pytest.approx(row, rel=1e-5, abs=1e-6) for row in rows]
    rewards[1] = 0.1
    assert not token_advantages(rewards, [[]] * 12, lengths, kind)[4:8].any()


def test_dividing_by_the_std_is_the_default():
    rewards = torch.tensor([[1.0, 0, 0, 0]])
    lengths = torch.tensor([2, 1, 1, 1])
    for steps in ([[(0, 1.0)], [], [], []], [[]] * 4):
        default = token_advantages(rewards, steps, lengths)
        assert torch.equal(default, token_advantages(rewards, steps, lengths, "mean-std"))
        assert not torch.allclose(default, token_advantages(rewards, steps, lengths, "mean"))


# Presets and what --loss brings


def parsed(*argv):
    return parse_config(Config, [*argv, "--init", "x"], presets=PRESETS, brings={"loss": PAPERS})


DEEPSEEK_R1 = dict(
    num_samples_per_prompt=8,
    temperature=0.7,
    max_reasoning_tokens=8192,
    learning_rate=1e-6,
    kl_coef=0.01,
    clip_ratio=0.2,
    reward="outcome",
    length_penalty=-0.001,
    batch_size=256,
    gradient_accumulation=4,
    warmup_steps=100,
)


def fields(config, names):
    return {name: getattr(config, name) for name in names}


def test_the_deepseek_preset_holds_its_numbers():
    config = parsed("--preset", "deepseek-r1")
    assert fields(config, DEEPSEEK_R1) == DEEPSEEK_R1
    assert config.kl != "none" and config.loss == "grpo" and config.advantage == "mean-std"
    assert config.clip_high in (-1.0, 0.2)
    check_config(config, MACHINE)


def test_flags_win_over_the_loss_and_that_over_the_preset():
    preset = ("--preset", "deepseek-r1")

    def clip(*argv):
        config = parsed(*argv)
        return config.clip_ratio, config.clip_high

    flagged = parsed(*preset, "--clip-ratio", "0.1")
    assert fields(flagged, DEEPSEEK_R1) == DEEPSEEK_R1 | dict(clip_ratio=0.1)
    assert flagged.clip_high < 0  # as far as below
    assert clip("--loss", "dapo") == (0.2, 0.28)
    assert clip("--loss", "gspo", "--clip-high", "0.5") == (3e-4, 0.5)
    assert clip(*preset, "--loss", "gspo") == (3e-4, 4e-4)
    assert clip("--clip-high", "0.5", "--loss", "dapo", *preset) == (0.2, 0.5)
    gspo = parsed(*preset, "--loss", "gspo")
    assert fields(gspo, DEEPSEEK_R1) == DEEPSEEK_R1 | dict(clip_ratio=3e-4)
    assert parsed("--loss", "dr-grpo").advantage == "mean"
    assert parsed("--loss", "dr-grpo", "--advantage", "mean-std").advantage == "mean-std"


def test_every_loss_has_its_papers_settings():
    assert tuple(PAPERS) == Config.__dataclass_fields__["loss"].metadata["choices"]
    assert set(PAPERS) == set(LOSSES)
    expected = {
        "grpo": ("mean-std", 0.2, -1.0),
        "dr-grpo": ("mean", 0.2, -1.0),
        "dapo": ("mean-std", 0.2, 0.28),
        "gspo": ("mean-std", 3e-4, 4e-4),
        "cispo": ("mean-std", 0.0, 4.0),
    }

    def settings(config):
        return config.loss, config.advantage, config.clip_ratio, config.clip_high

    for loss, values in expected.items():
        assert settings(parsed("--loss", loss)) == (loss, *values)
    # Without --loss the defaults are grpo's.
    assert settings(parsed()) == ("grpo", *expected["grpo"])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_config(preset):
    config = parsed("--preset", preset)
    assert fields(config, PRESETS[preset]) == PRESETS[preset]
    check_config(config, MACHINE)
    for loss in LOSSES:
        clip_ratio = parsed("--preset", preset, "--loss", loss).clip_ratio
        assert clip_ratio == PAPERS[loss]["clip_ratio"]

"""The pure functions of train_grpo.py: every loss against the papers' equations in loops, and against policies small enough to enumerate."""

import itertools
import math
import statistics
from types import SimpleNamespace

import pytest
import torch

import train_grpo
from nanoreason.flags import parse_config
from nanoreason.machine import generator, Machine
from train_grpo import PAPERS, PRESETS, Config, group_advantages, policy_loss, token_advantages, token_weights

LOSSES = ("grpo", "dr-grpo", "dapo", "gspo", "cispo")
PPO = ("grpo", "dr-grpo", "dapo")  # one formula, three weights
LONGEST = 9  # --max-reasoning-tokens, which no response of the data below reaches
OPEN = (0.0, 0.0)

# Losses and gradients against loops over groups, responses and tokens of padded arrays


def make_data(clip, by_token, P=12, G=4, L=7):
    """Padded (N, L) float64 lists, NaN beyond a response's end. Ratios spread over both closed bounds, by token and by response."""
    noise, N = generator(0, f"loss {clip} {by_token}"), P * G
    normal = lambda *shape: torch.randn(*shape, generator=noise, dtype=torch.float64)
    lengths = torch.randint(1, L + 1, (N,), generator=noise)
    lengths[:3] = torch.tensor([1, L, 1])
    spread = 2 * max(-math.log(1 - clip[0]), math.log(1 + clip[1])) or 0.5
    logp = -3 * torch.rand(N, L, generator=noise, dtype=torch.float64) - 0.01
    old, ref = logp - spread * (0.8 * normal(N, 1) + 0.6 * normal(N, L)), logp - 0.5 * normal(N, L)
    advantage = normal(N, L) if by_token else normal(N, 1).expand(N, L).clone()
    advantage[5] = 0
    inside = torch.arange(L) < lengths[:, None]
    padded = {name: torch.where(inside, x, torch.nan) for name, x in dict(logp=logp, old=old, ref=ref, advantage=advantage).items()}
    return SimpleNamespace(P=P, G=G, lengths=lengths.tolist(), inside=inside, tensors=padded, **{name: x.tolist() for name, x in padded.items()})


def own_weight(loss, data, i):
    """Weight of a token of response i, as the papers print it for a group, averaged over the groups; dapo and cispo over all tokens of the minibatch."""
    return {"grpo": 1 / data.P / data.G / data.lengths[i], "gspo": 1 / data.P / data.G / data.lengths[i], "dr-grpo": 1 / data.P / data.G / LONGEST,
            "dapo": 1 / sum(data.lengths), "cispo": 1 / sum(data.lengths)}[loss]


def side_of(ratio, clip):
    return "above" if clip[1] and ratio > 1 + clip[1] else "below" if clip[0] and ratio < 1 - clip[0] else "within"


def paper(loss, data, clip, kl, coef, logp=None):
    """The objective, negated, at `logp`, where whatever stands in sg() stays at data.logp; its gradient by hand; clip share; mean k3; cases that occurred."""
    logp, value, share, mean_k3, cases = logp or data.logp, 0.0, 0.0, 0.0, set()
    gradient = [[0.0] * len(row) for row in logp]
    bound = {"above": 1 + clip[1], "below": 1 - clip[0]}
    for group in range(data.P):
        for i in range(group * data.G, (group + 1) * data.G):
            n, weight = data.lengths[i], own_weight(loss, data, i)
            s = math.exp(sum(data.logp[i][t] - data.old[i][t] for t in range(n)) / n)
            for t in range(n):
                l, a, held = logp[i][t], data.advantage[i][t], data.logp[i][t]
                ratio = s * math.exp(l - held) if loss == "gspo" else math.exp((held if loss == "cispo" else l) - data.old[i][t])
                side = side_of(ratio, clip)
                stopped = (a > 0 and side == "above") or (a < 0 and side == "below")
                if loss == "cispo":
                    gain, slope = bound.get(side, ratio) * a * l, bound.get(side, ratio) * a
                else:
                    gain, slope = (bound[side] * a, 0.0) if stopped else (ratio * a, ratio * a)
                x = l - data.ref[i][t]
                k3 = math.exp(-x) - 1 + x
                penalty, pull = {"none": (0, 0), "k1": (0, 0), "k2": (x * x / 2, x), "k3": (k3, 1 - math.exp(-x))}[kl]
                value -= weight * (gain - coef * penalty)
                gradient[i][t] = -weight * (slope - coef * pull)
                share += weight * (side != "within" if loss == "cispo" else stopped)
                mean_k3 += weight * k3
                cases.add(((a > 0) - (a < 0), side))
    return value, gradient, share, mean_k3, cases


def ours(loss, data, clip, kl="none", coef=0.0, with_ref=True, order=None):
    """policy_loss on the same tokens laid end to end, and its gradient as (M,)."""
    flat = {name: x[data.inside] for name, x in data.tensors.items()}
    weight = torch.tensor([own_weight(loss, data, i) for i, n in enumerate(data.lengths) for _ in range(n)], dtype=torch.float64)
    response = torch.tensor([i for i, n in enumerate(data.lengths) for _ in range(n)])
    order = torch.arange(len(weight)) if order is None else order
    logp = flat["logp"].requires_grad_()
    ref = flat["ref"][order] if with_ref else None
    out = policy_loss(logp[order], flat["old"][order], ref, flat["advantage"][order], weight[order], response[order], loss, clip, kl, coef)
    return *out, torch.autograd.grad(out[0], logp)[0]


def same(got, expected, rel=1e-9):
    """Numbers or tensors; differences of tensors count relative to each entry, and to 1e-15 of the largest."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return bool(((torch.as_tensor(got) - expected).abs() <= rel * expected.abs() + 1e-15 * expected.abs().max()).all())


CLIPS = {"paper": None, "symmetric": (0.2, 0.2), "asymmetric": (0.5, 0.1), "above open": (0.2, 0.0), "below open": (0.0, 0.2), "both open": OPEN}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kl", ["none", "k1", "k2", "k3"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_the_papers_equation(loss, kl, clip):
    clip = CLIPS[clip] or {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (0.0, 4.0)}.get(loss, (0.2, 0.2))
    for by_token in (False, True):
        data = make_data(clip, by_token)
        value, gradient, share, k3, cases = paper(loss, data, clip, kl, 0.3)
        sides = ["within"] + ["below"] * (clip[0] > 0) + ["above"] * (clip[1] > 0)
        assert cases >= set(itertools.product((-1, 1), sides)) and 0 in {sign for sign, _ in cases}  # the data reach every case
        got = ours(loss, data, clip, kl, 0.3)
        assert same(got[0], value) and same(got[3], torch.tensor(gradient, dtype=torch.float64)[data.inside])
        assert same(got[1], share) and same(got[2], k3) and (share > 0) == (clip != OPEN)
        assert not got[1].requires_grad and not got[2].requires_grad
        for i, t in ((0, 0), (1, 2), (1, data.lengths[1] - 1), (7, 0), (20, 0)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [row[:] for row in data.logp]
                moved[i][t] += step
                ends.append(paper(loss, data, clip, kl, 0.3, moved)[0])
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient[i][t], rel=1e-5, abs=1e-8 * max(1, abs(value)))


@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.2, 0.2), OPEN])
def test_gspos_token_form_has_the_gradient_of_its_response_form(clip):
    """GSPO eq. 5, 1/N sum_i min(s_i A_i, clip(s_i) A_i), has no sg(): every token moves s_i. Its gradient by hand, and by differences of every token."""
    data = make_data(clip, by_token=False)
    N = data.P * data.G

    def term(i, logp):
        s = math.exp(statistics.fmean(logp[t] - data.old[i][t] for t in range(data.lengths[i])))
        stopped = data.advantage[i][0] * (s - 1) > 0 and side_of(s, clip) != "within"
        return s, stopped, data.advantage[i][0] / N * ((1 + clip[1] if s > 1 else 1 - clip[0]) if stopped else s)

    by_hand, by_difference = [], []
    for i, n in enumerate(data.lengths):
        s, stopped, _ = term(i, data.logp[i])
        by_hand += [0.0 if stopped else -data.advantage[i][0] * s / n / N] * n
        for t in range(n):
            up, down = ([l + step * (u == t) for u, l in enumerate(data.logp[i])] for step in (1e-7, -1e-7))
            by_difference.append(-(term(i, up)[2] - term(i, down)[2]) / 2e-7)
    value, *_, gradient = ours("gspo", data, clip)
    assert same(value, -sum(term(i, data.logp[i])[2] for i in range(N))) and same(gradient, by_hand)
    assert gradient.tolist() == pytest.approx(by_difference, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_may_come_in_any_order_and_no_reference_means_no_kl(loss):
    data = make_data((0.2, 0.2), by_token=True)
    straight = ours(loss, data, (0.2, 0.2), "k3", 0.1)
    mixed = ours(loss, data, (0.2, 0.2), "k3", 0.1, order=torch.randperm(sum(data.lengths), generator=generator(0, "order")))
    assert all(same(a, b, 1e-12) or abs(a - b).max() < 1e-12 for a, b in zip(mixed, straight))
    without, with_ref = ours(loss, data, (0.2, 0.2), with_ref=False), ours(loss, data, (0.2, 0.2))
    assert without[2] == 0 and with_ref[2] > 0 and torch.equal(without[0], with_ref[0]) and torch.equal(without[3], with_ref[3])


@pytest.mark.parametrize("loss", LOSSES)
def test_token_weights_are_the_papers(loss):
    data = make_data((0.2, 0.2), by_token=False)
    weight = token_weights(loss, torch.tensor(data.lengths), len(data.lengths), sum(data.lengths), LONGEST)
    assert weight.dtype == torch.float32 and weight.shape == (48, 1)
    assert weight.flatten().tolist() == pytest.approx([own_weight(loss, data, i) for i in range(48)], rel=1e-6)
    if loss != "dr-grpo":
        assert (weight.flatten() * torch.tensor(data.lengths)).sum() == pytest.approx(1)  # an average
    # over two ranks and a machine that sums floats: the numbers are the whole minibatch's, not this rank's
    half = token_weights(loss, torch.tensor(data.lengths[:24]), 48.0, float(sum(data.lengths)), LONGEST)
    assert torch.equal(half, weight[:24])


def test_weights_of_one_group_are_those_that_dapo_prints():
    """DAPO eq. 8: 1 / sum_i |o_i| of the group; cispo the same (MiniMax-M1 eq. 4)."""
    for loss in ("dapo", "cispo"):
        assert token_weights(loss, torch.tensor([1, 4, 2, 3]), 4, 10, 100).flatten().tolist() == pytest.approx([1 / 10] * 4)
    assert token_weights("grpo", torch.tensor([1, 4, 2, 3]), 4, 10, 100).flatten().tolist() == pytest.approx([1 / 4, 1 / 16, 1 / 8, 1 / 12])
    assert token_weights("dr-grpo", torch.tensor([1, 4, 2, 3]), 4, 10, 100).flatten().tolist() == pytest.approx([1 / 400] * 4)


# The clip, case by case


def slopes(ratios, advantage, loss, clip):
    """Gradient of the negated loss in the log-probabilities of one response per list of ratios, weights 1; and the clipped share."""
    response = torch.tensor([i for i, row in enumerate(ratios) for _ in row])
    logp = torch.tensor([math.log(r) - 1 for row in ratios for r in row], dtype=torch.float64, requires_grad=True)
    old = torch.full_like(logp, -1.0).detach()
    loss, clipped, _ = policy_loss(logp, old, None, torch.full_like(old, advantage), torch.ones_like(old), response, loss, clip)
    return [-g for g in torch.autograd.grad(loss, logp)[0].tolist()], clipped.item()


@pytest.mark.parametrize("advantage, ratio, flows", [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 1.5, True), (-1.0, 0.5, False),
                                                     (1.0, 1.1, True), (-1.0, 0.9, True)])
def test_the_clip_stops_the_gradient_only_where_the_policy_has_gone_far_enough(advantage, ratio, flows):
    """The slope of min(r A, clip(r) A) is r A, or 0 once r has left [0.8, 1.2] on the side that A pushes to."""
    expected = advantage * ratio if flows else 0.0
    for loss in PPO:
        assert slopes([[ratio]], advantage, loss, (0.2, 0.2)) == (pytest.approx([expected]), 0 if flows else 1)
    # gspo judges a response by its geometric mean: every token has its slope, on whichever side that token is; so do its neighbours, apart
    whole = [ratio * 4, ratio / 4, ratio]
    assert slopes([[1.0, 1.0], whole], advantage, "gspo", (0.2, 0.2)) == (pytest.approx([advantage] * 2 + [expected] * 3), 0 if flows else 3)
    kept = min(max(ratio, 0.8), 1.2)
    assert slopes([[ratio]], advantage, "cispo", (0.2, 0.2)) == (pytest.approx([kept * advantage]), kept != ratio)


@pytest.mark.parametrize("loss", PPO + ("gspo",))
def test_a_wider_or_open_side_lets_the_gradient_through(loss):
    for advantage, ratio in ((1.0, 1.25), (-1.0, 0.75)):
        flows = lambda *clip: slopes([[ratio, ratio]], advantage, loss, clip)[0] == pytest.approx([advantage * ratio] * 2)
        stops = lambda *clip: slopes([[ratio, ratio]], advantage, loss, clip)[0] == [0, 0]
        wide, narrow = (0.2, 0.28) if advantage > 0 else (0.28, 0.2), (0.28, 0.2) if advantage > 0 else (0.2, 0.28)
        assert flows(*wide) and stops(*narrow) and stops(0.2, 0.2) and flows(*OPEN)
        assert flows(0.2, 0.0) == stops(0.0, 0.2) == (advantage > 0) and flows(0.0, 0.2) == stops(0.2, 0.0) == (advantage < 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_on_policy_every_loss_is_the_plain_policy_gradient(loss):
    """At ratio exactly 1 nothing is clipped, however narrow the clip, and the slope is the advantage."""
    for advantage in (1.0, -1.0):
        assert slopes([[1.0], [1.0, 1.0]], advantage, loss, (1e-9, 1e-9)) == ([advantage] * 3, 0)


# Expected updates of a policy whose responses can be listed: a table of logits, row 0 for the first token, row 1 + a for the second after a


def paths(kind):
    """All responses as [(row of the table, token)]. one, two: that many tokens; ragged: token 0 as the first ends the response."""
    second = lambda a: [] if kind == "one" or (kind == "ragged" and a == 0) else [1 + a]
    return [[(0, a)] + [(row, b) for row in second(a)] for a in range(3) for b in range(3) if second(a) or b == 0]


def table(seed, scale=1.0):
    return (scale * torch.randn(4, 3, generator=generator(seed, "toy"), dtype=torch.float64)).requires_grad_()


def tokens(theta, rows):
    """Log-probability of every token of the responses `rows`, end to end."""
    row, token = torch.tensor([place for path in rows for place in path]).T
    return theta.log_softmax(-1)[row, token]


def whole(theta, responses):
    return torch.stack([tokens(theta, [path]).sum() for path in responses])


def grad(scalar, theta):
    return torch.autograd.grad(scalar, theta)[0]


def close(a, b, tolerance=1e-9):
    return (a - b).abs().max() < tolerance


def cosine(a, b):
    return ((a * b).sum() / a.norm() / b.norm()).item()


def true_gradient(theta, responses, rewards):
    """d/dtheta sum_y pi(y) r(y)."""
    return grad((whole(theta, responses).exp() * rewards).sum(), theta)


def expected_update(theta, responses, rewards, G, loss="dr-grpo", kind="mean", old=None, clip=(0.2, 0.2)):
    """Ascent direction of policy_loss, averaged over all groups of G responses that `old` could sample, by their probability."""
    old = theta.detach() if old is None else old.detach()
    groups = torch.tensor(list(itertools.product(range(len(responses)), repeat=G)))  # (P, G)
    rows = [responses[y] for y in groups.flatten().tolist()]
    lengths = torch.tensor([len(path) for path in rows])
    chance = whole(old, responses).exp()[groups].prod(1)
    assert chance.sum() == pytest.approx(1, abs=1e-12)
    share = {"dr-grpo": torch.full(groups.shape, 1 / G, dtype=torch.float64), "grpo": 1 / G / lengths.view(groups.shape).double()}
    share["gspo"], share["dapo"] = share["grpo"], 1 / lengths.view(groups.shape).sum(1, keepdim=True).double().expand(groups.shape)
    advantage = token_advantages(rewards[groups], [[]] * len(rows), lengths, kind)
    advantage = advantage[torch.arange(advantage.size(1)) < lengths[:, None]]
    weight, response = (chance[:, None] * share[loss]).flatten().repeat_interleave(lengths), torch.arange(len(rows)).repeat_interleave(lengths)
    return -grad(policy_loss(tokens(theta, rows), tokens(old, rows), None, advantage, weight, response, loss, clip)[0], theta)


REWARDS = torch.tensor([1, 0, 0, 1, 0.5, 0, 0, 1, -1], dtype=torch.float64)  # of the up to nine responses


@pytest.mark.parametrize("G", [2, 3])
@pytest.mark.parametrize("kind", ["one", "two", "ragged"])
def test_the_expected_update_is_the_policy_gradient(kind, G):
    """Without division by length or std. The group's mean holds the response itself, which takes 1/G of its advantage."""
    theta, responses = table(1), paths(kind)
    assert len(responses) == {"one": 3, "two": 9, "ragged": 7}[kind] and whole(theta, responses).exp().sum().item() == pytest.approx(1, abs=1e-12)
    exact = true_gradient(theta, responses, REWARDS[: len(responses)])
    assert close(expected_update(theta, responses, REWARDS[: len(responses)], G), (1 - 1 / G) * exact) and exact.norm() > 0.05
    if kind != "ragged":  # with one length the divisions by length are a constant
        length = {"one": 1, "two": 2}[kind]
        for loss in ("dapo", "grpo", "gspo"):
            assert close(expected_update(theta, responses, REWARDS[: len(responses)], G, loss), (1 - 1 / G) / length * exact)


@pytest.mark.parametrize("loss", ["grpo", "gspo", "dapo"])
def test_dividing_by_lengths_turns_the_expected_update(loss):
    """Right are the short response and one of the long: by dividing, the short one gains. dapo turns least, and less the larger the group."""
    theta, responses, rewards = table(1), paths("ragged"), torch.tensor([1, 0, 0, 0, 0, 0, 1], dtype=torch.float64)
    exact = true_gradient(theta, responses, rewards)
    assert 0 < cosine(expected_update(theta, responses, rewards, 3, loss), exact) < 0.999
    assert cosine(expected_update(theta, responses, rewards, 3), exact) == pytest.approx(1, abs=1e-12)
    if loss == "dapo":
        turned = [1 - cosine(expected_update(theta, responses, rewards, G, form), exact) for form, G in (("grpo", 3), ("dapo", 2), ("dapo", 3), ("dapo", 4))]
        assert turned == sorted(turned, reverse=True)


def test_dividing_by_the_std_weighs_questions_by_difficulty():
    """Two questions with a table each, one easy, one even: `mean` keeps their balance, `mean-std` does not, except in groups of 2 or 3: rewards of 0 and 1
    have a single std there."""
    responses, rewards = paths("one"), torch.tensor([1, 0, 0], dtype=torch.float64)
    questions = [torch.tensor([[easy, 0, 0]] * 4, dtype=torch.float64, requires_grad=True) for easy in (2.5, 0.7)]
    exact = torch.stack([true_gradient(theta, responses, rewards) for theta in questions])
    both = lambda G, kind: torch.stack([expected_update(theta, responses, rewards, G, kind=kind) for theta in questions])
    for G in (2, 3, 4):
        assert close(both(G, "mean"), (1 - 1 / G) * exact)
    assert cosine(both(2, "mean-std"), exact) == pytest.approx(1, abs=1e-9) == cosine(both(3, "mean-std"), exact)
    six = both(6, "mean-std")
    assert cosine(six, exact) < 0.999
    assert six[0].norm() / exact[0].norm() > 1.1 * six[1].norm() / exact[1].norm()  # the easy one gains weight


def test_the_importance_ratio_corrects_for_an_older_policy():
    """Responses of the old policy, sides open: exact for one token. For two the ratio of a token knows nothing of the odds of the tokens before it."""
    theta, old = table(1), table(2)
    for kind in ("one", "two"):
        responses = paths(kind)
        rewards = REWARDS[: len(responses)]
        exact = (1 - 1 / 3) * true_gradient(theta, responses, rewards)
        assert close(expected_update(theta, responses, rewards, 3, old=old, clip=OPEN), exact) == (kind == "one")
        assert not close(expected_update(theta, responses, -rewards, 3, old=old, clip=(0.2, 0.2)), -exact, 1e-3)  # what clipping costs


# Estimators of the KL, exactly


def kl_of(p, q, kind, held=True, reverse=False):
    """KL(p || q) of whole responses as a sum over prefixes of that of the next token; held: the prefixes' probabilities take no gradient."""
    first = p.log_softmax(-1)[0].exp()
    reach = torch.cat([torch.ones(1), {"one": 0 * first, "two": first, "ragged": first * torch.tensor([0, 1, 1])}[kind]])
    a, b = (q, p) if reverse else (p, q)
    tokenwise = (a.log_softmax(-1).exp() * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1)
    return ((reach.detach() if held else reach) * tokenwise).sum()


def kl_loss(theta, ref, kind, estimator):
    """Expected loss of policy_loss without advantages, over all responses, and the expected k3 that it reports."""
    responses = paths(kind)
    lengths = torch.tensor([len(path) for path in responses])
    weight = whole(theta, responses).exp().detach().repeat_interleave(lengths)
    logp, response = tokens(theta, responses), torch.arange(len(responses)).repeat_interleave(lengths)
    ref_logp, nothing = tokens(ref, responses).detach(), torch.zeros_like(weight)
    loss, _, k3 = policy_loss(logp, logp.detach(), ref_logp, nothing, weight, response, "dr-grpo", kl=estimator, kl_coef=1.0)
    return loss, k3


KINDS = pytest.mark.parametrize("kind", ["one", "two", "ragged"])


@KINDS
def test_values_of_k1_and_k3_are_the_kl_on_average_and_that_of_k2_is_not(kind):
    theta, ref, responses = table(1), table(2), paths(kind)
    x = whole(theta, responses) - whole(ref, responses)
    kl = (whole(theta, responses).exp() * x).sum().item()  # E[k1], by definition
    assert kl > 0.3 and kl_of(theta, ref, kind).item() == pytest.approx(kl, abs=1e-12)
    loss, k3 = kl_loss(theta, ref, kind, "k3")
    assert loss.item() == pytest.approx(kl, abs=1e-12) and k3.item() == pytest.approx(kl, abs=1e-12)
    assert abs(kl_loss(theta, ref, kind, "k2")[0].item() - kl) > 0.01
    for estimator in ("none", "k1", "k2"):
        assert kl_loss(theta, ref, kind, estimator)[1].item() == pytest.approx(kl, abs=1e-12)  # reported whatever the loss


@KINDS
def test_k2_has_the_gradient_of_the_kl_of_each_token_and_k3_that_of_the_reversed_one(kind):
    theta, ref = table(1), table(2)
    k2, k3 = (grad(kl_loss(theta, ref, kind, estimator)[0], theta) for estimator in ("k2", "k3"))
    assert close(k2, grad(kl_of(theta, ref, kind), theta)) and close(k3, grad(kl_of(theta, ref, kind, reverse=True), theta))
    assert (k3 - k2).norm() > 0.1 * k2.norm()


@KINDS
def test_near_the_reference_k3_is_right_to_first_order(kind):
    ref, away, norms, gaps = table(2).detach(), table(3).detach(), [], []
    for scale in (1e-2, 1e-3):
        theta = (ref + scale * away).requires_grad_()
        k2, k3 = (grad(kl_loss(theta, ref, kind, estimator)[0], theta) for estimator in ("k2", "k3"))
        norms, gaps = norms + [k2.norm().item()], gaps + [(k3 - k2).norm().item()]
    assert norms[0] / norms[1] == pytest.approx(10, rel=0.1) and gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)
    assert all(not grad(kl_loss(theta, theta.detach(), kind, estimator)[0], theta).any() for estimator in ("k2", "k3"))


@KINDS
def test_k1_is_nothing_as_a_loss_and_exact_in_the_reward(kind):
    """In the reward, r - coef * sum_t x_t: the gradient of E[r] - coef KL(pi || ref), with what a token does to the KL of later ones. k2 leaves that out."""
    theta, ref, responses, coef = table(1), table(2), paths(kind), 0.7
    rewards, x = REWARDS[: len(responses)], (whole(theta, responses) - whole(ref, responses)).detach()
    assert close(grad((whole(theta, responses).exp().detach() * whole(theta, responses)).sum(), theta), torch.zeros(4, 3), 1e-12)  # E[d k1] = E[d log pi] = 0
    loss = kl_loss(theta, ref, kind, "k1")[0]
    assert loss.item() == 0 and not grad(loss, theta).any()
    whole_kl = grad(kl_of(theta, ref, kind, held=False), theta)
    assert close(whole_kl, grad((whole(theta, responses).exp() * (whole(theta, responses) - whole(ref, responses))).sum(), theta), 1e-12)
    exact = true_gradient(theta, responses, rewards) - coef * whole_kl
    for G in (2, 3):
        assert close(expected_update(theta, responses, rewards - coef * x, G), (1 - 1 / G) * exact)
    k2 = grad(kl_loss(theta, ref, kind, "k2")[0], theta)
    assert close(k2, whole_kl) == (kind == "one") and (kind == "one" or (k2 - whole_kl).norm() > 0.05 * whole_kl.norm())


# Advantages


def normalised(values, kind):
    """By hand: nothing where all are equal, else the distance to the mean, in sample standard deviations."""
    if len(set(values)) == 1:
        return [0.0] * len(values)
    mean = statistics.fmean(values)
    return [(v - mean) / (statistics.stdev(values) if kind == "mean-std" else 1.0) for v in values]


def by_token(rewards, steps, lengths, kind):
    """(N, L): for each token the sum of the group's normalised rewards at it or after it."""
    G, L, out = len(rewards[0]), max(lengths), []
    for p, outcomes in enumerate(rewards):
        rows = range(p * G, (p + 1) * G)
        events = [(row, at, value) for row in rows for at, value in steps[row]] + [(row, lengths[row] - 1, outcomes[row - p * G]) for row in rows]
        scores = normalised([value for *_, value in events], kind)
        for row in rows:
            out.append([sum(score for (i, at, _), score in zip(events, scores) if i == row and at >= t) if t < lengths[row] else 0.0 for t in range(L)])
    return out


@pytest.mark.parametrize("kind", ["mean", "mean-std"])
def test_group_advantages_by_hand(kind):
    noise = generator(0, kind)
    for G in (2, 3, 8):
        rewards = torch.randn(9, G, generator=noise)
        rewards[0], rewards[1] = 0.1, (torch.arange(G) == 1).float()
        rewards[2], rewards[3] = 1 / 3, rewards[3].round()
        got = group_advantages(rewards, kind)
        assert got.dtype == torch.float32
        assert got.tolist() == [pytest.approx(normalised(row, kind), rel=1e-4, abs=1e-6) for row in rewards.tolist()]
        assert not got[0].any() and not got[2].any() and got[1].any()
        assert torch.allclose(got.sum(1), torch.zeros(9), atol=1e-5)
    assert torch.equal(group_advantages(rewards), group_advantages(rewards, "mean-std"))


def test_token_advantages_of_the_worked_example():
    got = token_advantages(torch.tensor([[1.0, 0.0]]), [[(0, 1.0)], []], torch.tensor([3, 2]), "mean")
    assert got.tolist() == [pytest.approx([2 / 3, 1 / 3, 1 / 3]), pytest.approx([-2 / 3, -2 / 3, 0])]


@pytest.mark.parametrize("kind", ["mean", "mean-std"])
@pytest.mark.parametrize("G", [2, 3, 8])
def test_token_advantages_by_loops(G, kind):
    """Random steps, two of them at times on one token, others on the last token beside the outcome; a group with none, and one whose rewards are all equal."""
    noise, P, L = generator(G, kind), 6, 9
    draw = lambda high: int(torch.randint(high, (1,), generator=noise))
    rewards, lengths = torch.randn(P, G, generator=noise), torch.randint(1, L + 1, (P * G,), generator=noise)
    lengths[0], lengths[1] = 1, L
    steps = [[(draw(int(n)), float(draw(3) - 1)) for _ in range(draw(5))] for n in lengths]
    steps[0], steps[1] = [(0, 1.0), (0, -1.0)], [(4, 1.0), (4, 1.0), (L - 1, -1.0)]
    rewards[2] = rewards[2].round()
    rewards[3], rewards[4] = 1.0, 1.0
    steps[3 * G : 4 * G] = [[(0, 1.0), (n - 1, 1.0)] for n in lengths[3 * G : 4 * G].tolist()]
    steps[4 * G :] = [[(0, 0.5)]] + [[]] * (2 * G - 1)
    got = token_advantages(rewards, steps, lengths, kind)
    assert got.dtype == torch.float32 and got.shape == (P * G, L)
    expected = by_token(rewards.tolist(), steps, lengths.tolist(), kind)
    assert torch.allclose(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=2e-6)
    assert not got[3 * G : 4 * G].any() and got[4 * G : 5 * G].any()  # equal throughout: exactly zero; one step apart: not
    assert not got[torch.arange(L) >= lengths[:, None]].any()
    alone = token_advantages(rewards[5:], steps[5 * G :], lengths[5 * G :], kind)  # a group without steps among others with
    assert torch.allclose(got[5 * G :, : alone.size(1)], alone, atol=1e-6)
    changed = rewards.clone()
    changed[0], changed[0, 0] = 0, 50.0
    assert torch.equal(token_advantages(changed, steps, lengths, kind)[G:], got[G:])  # groups do not mix


@pytest.mark.parametrize("kind", ["mean", "mean-std"])
def test_without_steps_all_tokens_share_their_responses_advantage(kind):
    rewards, lengths = torch.randn(3, 4, generator=generator(0, "plain")), torch.tensor([1, 5, 2, 3] * 3)
    got = token_advantages(rewards, [[] for _ in range(12)], lengths, kind)
    expected = [a for row in rewards.tolist() for a in normalised(row, kind)]
    assert got.tolist() == [pytest.approx([a] * n + [0] * (5 - n), rel=1e-5, abs=1e-6) for a, n in zip(expected, lengths.tolist())]
    rewards[1] = 0.1
    assert not token_advantages(rewards, [[]] * 12, lengths, kind)[4:8].any()


def test_dividing_by_the_std_is_the_default():
    rewards, steps, lengths = torch.tensor([[1.0, 0, 0, 0]]), [[(0, 1.0)], [], [], []], torch.tensor([2, 1, 1, 1])
    for some in (steps, [[]] * 4):
        assert torch.equal(token_advantages(rewards, some, lengths), token_advantages(rewards, some, lengths, "mean-std"))
        assert not torch.allclose(token_advantages(rewards, some, lengths), token_advantages(rewards, some, lengths, "mean"))


# Presets and what --loss brings


def parsed(*argv):
    return parse_config(train_grpo.Config, [*argv, "--init", "x"], presets=PRESETS, brings={"loss": PAPERS})


BRIEF = dict(num_samples_per_prompt=8, temperature=0.7, max_reasoning_tokens=8192, learning_rate=1e-6, kl_coef=0.01, clip_ratio=0.2, reward="outcome",
             length_penalty=-0.001, batch_size=256, gradient_accumulation=4, warmup_steps=100)  # the brief's `reward_model` is our --reward


def test_the_deepseek_preset_holds_the_briefs_numbers():
    config = parsed("--preset", "deepseek-r1")
    assert {name: getattr(config, name) for name in BRIEF} == BRIEF
    assert config.kl != "none" and config.loss == "grpo" and config.advantage == "mean-std" and config.clip_high in (-1.0, 0.2)
    train_grpo.check_config(config, Machine(torch.device("cpu")))


def test_flags_win_over_the_loss_and_that_over_the_preset():
    clip = lambda *argv: (parsed(*argv).clip_ratio, parsed(*argv).clip_high)
    flagged = parsed("--preset", "deepseek-r1", "--clip-ratio", "0.1")
    assert {name: getattr(flagged, name) for name in BRIEF} == BRIEF | dict(clip_ratio=0.1) and flagged.clip_high < 0  # as far as below
    assert clip("--loss", "dapo") == (0.2, 0.28) and clip("--loss", "gspo", "--clip-high", "0.5") == (3e-4, 0.5)
    assert clip("--preset", "deepseek-r1", "--loss", "gspo") == (3e-4, 4e-4)
    assert clip("--clip-high", "0.5", "--loss", "dapo", "--preset", "deepseek-r1") == (0.2, 0.5)
    gspo = parsed("--preset", "deepseek-r1", "--loss", "gspo")
    assert {name: getattr(gspo, name) for name in BRIEF} == BRIEF | dict(clip_ratio=3e-4)
    assert parsed("--loss", "dr-grpo").advantage == "mean" and parsed("--loss", "dr-grpo", "--advantage", "mean-std").advantage == "mean-std"


def test_every_loss_has_its_papers_settings():
    assert tuple(PAPERS) == Config.__dataclass_fields__["loss"].metadata["choices"] and set(PAPERS) == set(LOSSES)
    expected = {"grpo": ("mean-std", 0.2, -1.0), "dr-grpo": ("mean", 0.2, -1.0), "dapo": ("mean-std", 0.2, 0.28), "gspo": ("mean-std", 3e-4, 4e-4),
                "cispo": ("mean-std", 0.0, 4.0)}
    for loss, values in expected.items():
        config = parsed("--loss", loss)
        assert (config.loss, config.advantage, config.clip_ratio, config.clip_high) == (loss, *values)
    plain = parsed()  # no --loss brings nothing: the defaults are grpo's
    assert (plain.loss, plain.advantage, plain.clip_ratio, plain.clip_high) == ("grpo", *expected["grpo"])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_config(preset):
    config = parsed("--preset", preset)
    assert all(getattr(config, name) == value for name, value in PRESETS[preset].items())
    train_grpo.check_config(config, Machine(torch.device("cpu")))
    for loss in LOSSES:
        assert parsed("--preset", preset, "--loss", loss).clip_ratio == PAPERS[loss]["clip_ratio"]

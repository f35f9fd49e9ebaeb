"""Muon and AdamW against torch's own, an exact decomposition, and a resumed run."""

import pytest
import torch
from conftest import make_tiny

from nanoreason.flags import UserError
from nanoreason.machine import generator
from nanoreason.optim import AdamW, Muon, orthogonalize

SHAPES = [(6, 6), (24, 8), (8, 24)]


def spectrum(shape, values, seed=0):
    """Matrices (3, *shape) of known singular values, with their exact orthogonal factors."""
    noise = generator(seed, "spectrum")
    x = torch.randn(3, *shape, generator=noise).double()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u * values @ v, u @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_pulled_to_one_and_the_singular_vectors_stay(shape):
    values = torch.logspace(0, -2, min(shape), dtype=torch.float64)
    matrices, exact = spectrum(shape, values)
    for scale in (1e-5, 1.0, 1e6):
        u, s, v = torch.linalg.svd(orthogonalize((matrices * scale).float()), full_matrices=False)
        assert 0.68 < s.min() and s.max() < 1.21
        assert torch.allclose(u @ v, exact.float(), atol=2e-3)


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_multiplied_on_the_short_side_it_is_the_textbook_iteration(shape, dtype, close):
    """Against X <- a X + b (X X^T) X + c (X X^T)^2 X, step by step in float64.

    bfloat16 errs by 3e-2.
    """
    x, _ = spectrum(shape, torch.logspace(0, -7, min(shape), dtype=torch.float64))
    wanted = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = wanted @ wanted.mT
        wanted = 3.4445 * wanted - 4.7750 * gram @ wanted + 2.0315 * gram @ gram @ wanted
    assert torch.allclose(orthogonalize(x.to(dtype)).double(), wanted, atol=close)


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_torchs_muon_within_its_rounding(shape):
    """torch rounds every product to bfloat16, to 3 digits: 3 to 4% of an update of five steps."""
    noise = generator(0, "muon")
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = Muon([ours], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=noise)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    assert (ours - theirs).norm() < 0.05 * (theirs - 1).norm()


def test_an_update_has_the_rms_of_adamw():
    for shape in SHAPES:
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=generator(0, "rms"))
        Muon([p], lr=1.0).step()
        # RMS of an orthogonal m x n matrix: 1 / sqrt(max(m, n))
        assert 0.2 * 0.68 < p.detach().square().mean().sqrt() < 0.2 * 1.21


def test_matrices_of_equal_shape_do_not_mix():
    noise = generator(0, "batch")
    alone = [torch.nn.Parameter(torch.randn(6, 9, generator=noise)) for _ in range(3)]
    together = [torch.nn.Parameter(p.detach().clone()) for p in alone]
    for p, q in zip(alone, together):
        p.grad = torch.randn(6, 9, generator=noise)
        q.grad = p.grad.clone()
        Muon([p], lr=0.1).step()
    Muon(together, lr=0.1).step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(alone, together))


def test_adamw_is_torchs_adamw():
    noise = generator(0, "adamw")
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 7)) for _ in range(2))
    mine = AdamW([ours], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    other = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(20):
        grad = torch.randn(5, 7, generator=noise) if step != 7 else None  # a step without signal
        ours.grad = grad
        theirs.grad = None if grad is None else grad.clone()
        mine.lr = other.param_groups[0]["lr"] = 0.01 * (1 + step % 3)
        mine.step()
        other.step()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda p: Muon(p, 0.02), lambda p: AdamW(p, 0.01)])
def test_a_resumed_optimizer_goes_on_bit_by_bit_and_a_foreign_state_is_refused(make, tmp_path):
    def matrices():
        return [p for p in make_tiny().blocks.parameters() if p.dim() == 2]

    def steps(params, optimizer, numbers):
        for i in numbers:
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator(i, "grad", *p.shape))
            optimizer.step()

    whole, first, second = (matrices() for _ in range(3))
    steps(whole, make(whole), range(6))
    optimizer = make(first)
    steps(first, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    for p, q in zip(second, first):
        p.data.copy_(q)
    resumed = make(second)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(second, resumed, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(whole, second))
    with pytest.raises(UserError, match="other parameters"):
        make(whole[:2]).load_state_dict(optimizer.state_dict())
    with pytest.raises(UserError, match="other parameters"):
        make(whole).load_state_dict(torch.optim.SGD(whole, 0.1).state_dict())


def test_gradients_are_forgotten_or_zeroed():
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    optimizer = AdamW([p], 0.1)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.abs().sum() == 0
    optimizer.zero_grad()
    assert p.grad is None

"""The two optimizers: Muon for the matrices of the blocks, AdamW for embeddings, head and norms.

A gradient step treats a matrix as a bag of numbers. Muon treats it as a map from vectors to
vectors: it replaces the averaged gradient by the nearest (semi-)orthogonal matrix, so that every
direction of the map moves equally far, the rare ones as well as the few that dominate.

    momentum        M <- mu M + (1 - mu) G
    Nesterov        U  = mu M + (1 - mu) G
    orthogonalise   O ~= (U U^T)^(-1/2) U         the U V^T of the singular value decomposition
    update          W <- (1 - lr * decay) W - lr * 0.2 * sqrt(max(rows, columns)) * O

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the factor
0.2 sqrt(max(rows, columns)) gives an update the RMS that AdamW's has, so that both share learning
rates (Liu et al., "Muon is Scalable for LLM Training", 2502.16982, section 2.2).

Both are plain classes and not torch.optim.Optimizer, whose first use imports torch's compiler: two
seconds of every script on a laptop. torch.optim.Muon always works in bfloat16, which takes 30 times
as long as float32 on a CPU without bfloat16 arithmetic. Tests hold both against torch's own.
"""

from contextlib import contextmanager
from functools import partial

import torch

from nanoreason.flags import UserError

STEPS = 5  # of Newton-Schulz, in `orthogonalize`
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of Jordan et al.: steep at zero


def orthogonalize(matrices):
    """The orthogonal factors of a batch of matrices: U diag(s) V^T -> U diag(s') V^T, s' near 1.

    matrices: (N, m, n), float32 or float64, and so the result. Scaled to norm 1, each goes STEPS
    times through the odd polynomial p(X) = a X + b (X X^T) X + c (X X^T)^2 X. It acts on the
    singular values alone, p(s) = a s + b s^3 + c s^5, and pulls them towards 1: those above 0.003
    of the norm end between 0.68 and 1.21, which serves as well as 1 does. No decomposition, only
    matrix products.

    A step is Q X with Q = a I + b R + c R^2 and R = X X^T; the next R is Q R Q, and all these
    commute. So the steps are multiplied together on the short side, Q5 Q4 Q3 Q2 Q1 X, and X itself
    is read twice, however many steps there are: 2.0 GFLOP per update of the micro model and not
    2.9.
    The polynomials of R blow rounding up: the result is within 0.001 in float32, but in TF32 or
    bfloat16 it would be lost.
    """
    if matrices.size(1) > matrices.size(2):
        return orthogonalize(matrices.mT).mT
    a, b, c = NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    gram = x @ x.mT  # R, (N, m, m)
    eye = torch.eye(gram.size(1), device=x.device, dtype=x.dtype)
    product = eye.expand_as(gram)
    for step in range(STEPS):
        factor = torch.baddbmm(b * gram, gram, gram, alpha=c) + a * eye  # Q
        product = factor @ product if step else factor
        if step < STEPS - 1:
            gram = factor @ (factor @ gram)
    return product @ x


@contextmanager
def full_float32():
    """Matrix products without TF32, which start_machine allows on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Optimizer:
    """What both have: parameters, a learning rate `lr` to be set before a step, and their state.

    state: {name: list of tensors, one per parameter}. A subclass defines parts(), which begins a
    step and returns its work as a list of functions.
    """

    def __init__(self, params, lr, weight_decay=0.0):
        self.params = list(params)
        self.lr = lr
        self.weight_decay = weight_decay
        self.state = {}
        self.steps = 0

    def step(self):
        """One update of every parameter."""
        for part in self.parts():
            part()

    def zeros(self):
        """A tensor of zeros per parameter."""
        return [torch.zeros_like(p) for p in self.params]

    def zero_grad(self, set_to_none=True):
        """Forget the gradients; with set_to_none=False they stay allocated, as zeros."""
        for p in self.params:
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.zero_()

    def state_dict(self):
        """Everything that a resumed run needs, for a checkpoint."""
        return dict(steps=self.steps, **self.state)

    def load_state_dict(self, saved):
        """Take over what `state_dict` gave. Raises UserError where it fits other parameters."""
        saved = dict(saved)
        steps = saved.pop("steps", None)
        wanted = {name: [x.shape for x in tensors] for name, tensors in self.state.items()}
        if steps is None or wanted != {k: [x.shape for x in v] for k, v in saved.items()}:
            raise UserError("the optimizer state is of other parameters or of an earlier version")
        self.steps = steps
        for name, tensors in saved.items():
            for mine, theirs in zip(self.state[name], tensors, strict=True):
                mine.copy_(theirs)


class Muon(Optimizer):
    """Muon over matrices (2-D parameters); those of equal shape are orthogonalised as one batch."""

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, lr, weight_decay)
        self.momentum = momentum
        self.state = dict(momentum=self.zeros())
        self.groups = {}  # {shape: indices of the parameters that have it}, the largest first
        largest_first = sorted(enumerate(self.params), key=lambda item: -item[1].numel())
        for i, p in largest_first:
            self.groups.setdefault(tuple(p.shape), []).append(i)

    def parts(self):
        """One update as a list of functions, one per shape, which may run side by side."""
        self.steps += 1
        return [partial(self._update, *shape, group) for shape, group in self.groups.items()]

    @torch.no_grad()
    def _update(self, rows, columns, group):
        """Update the parameters in `group`, all of shape (rows, columns); all need a gradient."""
        updates = []
        for i in group:
            momentum = self.state["momentum"][i]
            grad = self.params[i].grad
            momentum.lerp_(grad, 1 - self.momentum)
            updates.append(grad.lerp(momentum, self.momentum))
        with full_float32():
            directions = orthogonalize(torch.stack(updates))
        rate = self.lr * 0.2 * max(rows, columns) ** 0.5
        for i, direction in zip(group, directions):
            self.params[i].mul_(1 - self.lr * self.weight_decay)
            self.params[i].add_(direction, alpha=-rate)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 1711.05101, algorithm 2).

    m <- b1 m + (1 - b1) g    v <- b2 v + (1 - b2) g^2
    w <- (1 - lr * decay) w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """

    def __init__(self, params, lr, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr, weight_decay)
        self.betas = betas
        self.eps = eps
        self.state = dict(mean=self.zeros(), square=self.zeros())

    def parts(self):
        """One update as a list of functions that may run side by side: a single one here."""
        if all(p.grad is None for p in self.params):
            return []  # a step without signal is no step
        self.steps += 1
        return [self._update]

    @torch.no_grad()
    def _update(self):
        """One update; a parameter without a gradient is left as it is."""
        b1, b2 = self.betas
        for p, mean, square in zip(self.params, self.state["mean"], self.state["square"]):
            if p.grad is None:
                continue
            mean.lerp_(p.grad, 1 - b1)
            square.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            root = (square / (1 - b2**self.steps)).sqrt_().add_(self.eps)
            p.mul_(1 - self.lr * self.weight_decay)
            p.addcdiv_(mean, root, value=-self.lr / (1 - b1**self.steps))

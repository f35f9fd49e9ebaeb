"""The whole language model in one file: a GPT shaped like Qwen3, and its key/value cache.

    token embedding -> n_layer x [x + attention(norm(x)), x + swiglu(norm(x))] -> norm -> logits

Pre-norm RMSNorm, rotary positions, grouped-query attention with normalised queries and keys
(QK-norm), SwiGLU and no bias anywhere, at every size from 0.1M parameters to 365M and beyond; only
the numbers in GPTConfig change.

Letters: B batch, T time, C channels, H query heads, K key/value heads, D head dim, V vocabulary,
S cache slots.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanoreason.attention import attention, by_document, cached_attention, visible_slots


@dataclass(frozen=True)
class GPTConfig:
    """Shape of the network.

    max_len bounds prompt plus response, in tokens. rope_theta sets the slowest rotation, one turn
    in 2 pi rope_theta^(1 - 2/D) tokens. 100 fits a context of 512: on 15,000 demonstrations the
    micro size reached a validation loss of 0.360 with it, 0.380 with 500.
    """

    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 2
    n_embd: int = 128
    head_dim: int = 32
    d_ff: int = 384
    vocab_size: int = 512
    max_len: int = 1024
    rope_theta: float = 100.0
    tie_embeddings: bool = True

    def __post_init__(self):
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} must be even: rotary embedding turns pairs of channels"
            )


PRESETS = {  # the comments count parameters at the shipped vocabulary of 512
    # 0.09M and 0.27M, a thirtieth and a tenth of mini: its students
    "mini-30th": GPTConfig(n_layer=3, n_head=2, n_kv_head=1, n_embd=40, d_ff=120),
    "mini-10th": GPTConfig(n_layer=4, n_head=2, n_kv_head=1, n_embd=72, d_ff=208),
    # 0.2M
    "nano": GPTConfig(n_layer=3, n_head=2, n_kv_head=1, n_embd=64, d_ff=192),
    # 0.5M, three times nano: to compare a larger model with more samples of nano
    "nano-3x": GPTConfig(n_layer=4, n_head=3, n_kv_head=1, n_embd=96, d_ff=344),
    # 1.05M
    "micro": GPTConfig(n_layer=5, n_head=4, n_kv_head=2, n_embd=128, d_ff=384),
    # 1.8M, ten times nano; mini is 15 times nano
    "nano-10x": GPTConfig(n_layer=6, n_head=5, n_kv_head=1, n_embd=160, d_ff=464),
    # 2.7M
    "mini": GPTConfig(n_layer=6, n_head=6, n_kv_head=2, n_embd=192, d_ff=576),
    # 9.5M
    "small": GPTConfig(n_layer=8, n_head=5, n_kv_head=1, n_embd=320, head_dim=64, d_ff=960),
    # 124M
    "base": GPTConfig(
        n_layer=15, n_head=12, n_kv_head=4, n_embd=768, head_dim=64, d_ff=2880,
        max_len=2048, rope_theta=1e4,
    ),
    # 365M
    "large": GPTConfig(
        n_layer=24, n_head=16, n_kv_head=4, n_embd=1024, head_dim=64, d_ff=4096,
        max_len=4096, rope_theta=1e5,
    ),
}


def unit_rms(x):
    """x over its root mean square in the last dim, and the factor 1 / rms (..., 1).

    Sums are in float32 or better.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    factor = (norm.square_() / x.size(-1)).add_(1e-6).rsqrt_().to(x.dtype)  # (..., 1)
    return x * factor, factor


def unit_rms_backward(grad, unit, factor):
    """Gradient of `unit_rms`: only what is orthogonal to x changes x / rms(x).

    d/dx = factor * (grad - unit * mean(grad * unit))
    """
    along = (grad * unit).mean(-1, keepdim=True)
    return torch.addcmul(grad, unit, along, value=-1).mul_(factor)


class _RMSNorm(torch.autograd.Function):
    """The formula of RMSNorm with its own backward.

    It takes half the time of F.rms_norm on a CPU, which PyTorch takes apart into eight operators
    (forward and backward of 1,536 x 128 numbers on one core with AVX2: 0.5 ms against 1.0).
    """

    @staticmethod
    def forward(ctx, x, weight):
        unit, factor = unit_rms(x)
        ctx.save_for_backward(unit, factor, weight)
        return unit * weight

    @staticmethod
    def backward(ctx, grad):
        unit, factor, weight = ctx.saved_tensors
        grad_weight = (grad * unit).flatten(0, -2).sum(0)
        return unit_rms_backward(grad * weight, unit, factor), grad_weight


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dim (Zhang & Sennrich 1910.07467)."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return _RMSNorm.apply(x, self.weight.to(x.dtype))


def rope_tables(config, positions, dtype=torch.float32):
    """Cosines and signed sines of the rotary embedding (Su et al. 2104.09864), for `apply_rope`.

    positions: integer tensor of any shape (...). Returns cos, sin: (..., 1, D) in `dtype`, the 1
    standing for the heads; the angles repeat in both halves, and the first half of the sines is
    negated. Angles are computed in float32.
    Attention sees only differences of positions, so a document may start anywhere in a packed row.
    """
    D = config.head_dim
    pair = torch.arange(0, D, 2, device=positions.device, dtype=torch.float32)  # (D/2,)
    frequency = config.rope_theta ** (-pair / D)  # radians per token
    angle = (positions[..., None].float() * frequency)[..., None, :]  # (..., 1, D/2)
    cos = angle.cos()
    sin = angle.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def apply_rope(x, cos, sin):
    """Turn channel pairs (i, i + D/2) of x (..., H, D), with tables (..., 1, D) in x's dtype:
    x * cos + (the other of the pair) * sin.

    Two products and a roll, where the textbook's four products on half heads take three times as
    long in bfloat16 on a CPU.
    """
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin)


class NormRope(torch.autograd.Function):
    """QK-norm and rotation of queries and keys in one step, with its own backward.

    x: (..., H, D); weight: (H, D) of the norm; cos, sin: tables (..., 1, D) of `rope_tables`.
    """

    @staticmethod
    def forward(ctx, x, weight, cos, sin):
        unit, factor = unit_rms(x)
        ctx.save_for_backward(unit, factor, weight, cos, sin)
        return apply_rope(unit * weight, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        unit, factor, weight, cos, sin = ctx.saved_tensors
        # a rotation is undone by turning the other way: the roll moves to the left of the sine
        grad = torch.addcmul((grad * sin).roll(grad.size(-1) // 2, -1), grad, cos)
        grad_weight = (grad * unit).flatten(0, -3).sum(0)  # (H, D)
        return unit_rms_backward(grad * weight, unit, factor), grad_weight, None, None


BUSY = 0.8  # a cache with a smaller share of its rows in use is copied to one without idle rows


class KVCache:
    """Keys and values of every layer for rows of uneven length, at fixed addresses: a decoding step
    changes contents, never shapes.

    keys[l], values[l]: (B, K, S, D); lengths: (B,) tokens held by each row. Slots past a row's
    length hold leftovers that no query looks at. Rows can be repeated (one prompt, G samples) and
    dropped (finished responses).
    """

    def __init__(self, config, batch, slots, device=None, dtype=torch.float32):
        shape = (batch, config.n_kv_head, slots, config.head_dim)
        layers = range(config.n_layer)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    @property
    def slots(self):
        """Tokens for which each row has room."""
        return self.keys[0].size(2)

    def select(self, rows):
        """Keep, repeat or reorder rows; rows: (B',) long indices into the batch."""
        for tensors in (self.keys, self.values):
            tensors[:] = [x.index_select(0, rows) for x in tensors]
        self.lengths = self.lengths[rows]

    def continue_from(self, parents):
        """Give every continuation a row that holds what its parent's row holds: its index, (M,).

        parents: (M,) long, rows, in ascending order. The first continuation of a row keeps it, and
        further ones take rows that nobody continues; what those held is lost. Only where there are
        too few such rows, or many that are idle, the whole cache is copied: to copy it at every
        step took longer than the step's matrix products.

            5 rows, parents 0 0 3 4  ->  rows 0 1 3 4, row 1 now a copy of row 0
        """
        B = len(self.lengths)
        M = len(parents)
        if M > B or M < BUSY * B:
            self.select(parents)
            return torch.arange(M, device=parents.device)
        is_further = torch.zeros_like(parents, dtype=torch.bool)
        is_further[1:] = parents[1:] == parents[:-1]
        sources = parents[is_further]
        if not len(sources):
            return parents
        idle = torch.ones(B, dtype=torch.bool, device=parents.device)
        idle.index_fill_(0, parents, False)
        targets = idle.nonzero().squeeze(1)[: len(sources)]
        for x in (*self.keys, *self.values, self.lengths):
            x.index_copy_(0, targets, x.index_select(0, sources))
        rows = parents.clone()
        rows[is_further] = targets
        return rows

    def grow(self, slots):
        """Make room for at least `slots` tokens per row; what is held stays."""
        extra = slots - self.slots
        if extra > 0:
            for tensors in (self.keys, self.values):
                tensors[:] = [F.pad(x, (0, 0, 0, extra)) for x in tensors]


class Attention(nn.Module):
    """Projections to queries, keys and values, QK-norm, rotation, attention, projection back."""

    def __init__(self, config):
        super().__init__()
        self.c = config
        H = config.n_head
        K = config.n_kv_head
        D = config.head_dim
        C = config.n_embd
        self.qkv = nn.Linear(C, (H + 2 * K) * D, bias=False)
        self.q_norm = RMSNorm(D)
        self.k_norm = RMSNorm(D)
        self.out = nn.Linear(H * D, C, bias=False)

    def heads(self, x, rope):
        """x (..., C) -> q (..., H, D), k and v (..., K, D), in one dtype.

        Queries and keys are normalised, then rotated.
        """
        H = self.c.n_head
        K = self.c.n_kv_head
        qkv = self.qkv(x).unflatten(-1, (-1, self.c.head_dim))  # (..., H + 2K, D)
        qk, v = qkv.split((H + K, K), dim=-2)
        weight = torch.cat((self.q_norm.weight.expand(H, -1), self.k_norm.weight.expand(K, -1)))
        q, k = NormRope.apply(qk, weight.to(v.dtype), *rope).split((H, K), dim=-2)
        return q, k, v

    def forward(self, x, rope, doc_start=None, cache=None, layer=None, step=None):
        """x (B, T, C) -> (B, T, C) over whole rows, or x (B, C) -> (B, C) in a decoding step.

        rope: tables of the tokens' positions; doc_start: as `attention` takes it. With a cache,
        keys and values are also written there, as those of `layer`. step: (rows, filled, visible)
        of GPT.decode, one new token per row.
        """
        q, k, v = self.heads(x, rope)
        if step is not None:  # write the new token to the cache, then read the cache
            rows, filled, visible = step
            keys = cache.keys[layer]
            values = cache.values[layer]
            keys[rows, :, cache.lengths] = k
            values[rows, :, cache.lengths] = v
            y = cached_attention(q, keys, values, filled, visible)
        else:
            y = attention(q, k, v, doc_start)
            if cache is not None:
                cache.keys[layer][:, :, : x.size(1)] = k.transpose(1, 2)
                cache.values[layer][:, :, : x.size(1)] = v.transpose(1, 2)
        return self.out(y.flatten(-2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2002.05202).

    gate and up are one parameter, cut before the product and not after it: so both halves are
    contiguous, and no copy joins their gradients.
    """

    def __init__(self, config):
        super().__init__()
        self.gate_up = nn.Linear(config.n_embd, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.n_embd, bias=False)

    def forward(self, x):
        gate, up = (F.linear(x, weight) for weight in self.gate_up.weight.chunk(2))
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.attn_norm = RMSNorm(config.n_embd)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.n_embd)
        self.mlp = SwiGLU(config)

    def forward(self, x, rope, **kwargs):
        x = x + self.attn(self.attn_norm(x), rope, **kwargs)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Logits of the next token at every position, or at the positions asked for.

    tokenizer: what the ids mean; None for a bare network. Raises ValueError where it has more ids
    than the network.
    """

    def __init__(self, config, tokenizer=None):
        super().__init__()
        if tokenizer and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"a tokenizer of {tokenizer.vocab_size} ids is too large for a vocabulary of "
                f"{config.vocab_size}"
            )
        self.config = config
        self.tokenizer = tokenizer
        # recompute each block in the backward pass instead of storing what is inside it
        self.checkpoint_activations = False
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def init_weights(self, generator):
        """Normal(0, 0.02), and smaller by sqrt(2 n_layer) for the projections that write to the
        residual stream (GPT-2, section 2.3). Returns the model itself."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("attn.out.weight", "mlp.down.weight"))
                std = 0.02 / (2 * self.config.n_layer) ** 0.5 if residual else 0.02
                nn.init.normal_(p, 0.0, std, generator=generator)
            else:
                nn.init.ones_(p)
        return self

    @property
    def num_params(self):
        """Number of parameters; a tied head is counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self):
        """Forward floating-point operations per token: 2 for each weight of a matrix product.

        Attention scores are left out, and so is an embedding that is only looked up.
        """
        looked_up = 0 if self.config.tie_embeddings else self.embed.weight.numel()
        return 2 * (self.num_params - looked_up)

    def rope(self, positions):
        """Rotary tables of these positions, in the dtype that the blocks compute in."""
        dtype = self.embed.weight.dtype
        device = self.embed.weight.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return rope_tables(self.config, positions, dtype)

    def trunk(self, idx, doc_start=None, cache=None, positions=None):
        """Final hidden states (B, T, C) of idx (B, T) int64, before the head.

        With an empty cache: also fills it. doc_start and positions: as in `forward`. Raises
        ValueError when T exceeds max_len.
        """
        if positions is None:
            T = idx.size(1)
            if T > self.config.max_len:
                raise ValueError(f"{T} tokens do not fit the context of {self.config.max_len}")
            positions = torch.arange(T, device=idx.device)
        rope = self.rope(positions)
        doc_start = by_document(doc_start, rope[0].dtype)
        x = self.embed(idx)
        for layer, block in enumerate(self.blocks):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, doc_start=doc_start, use_reentrant=False)
            else:
                x = block(x, rope, doc_start=doc_start, cache=cache, layer=layer)
        return self.norm(x)

    def forward(self, idx, doc_start=None, select=None, positions=None):
        """Next-token logits of packed or plain rows.

        idx: (B, T) int64; doc_start: (B, T) int, attention.Documents or None (one document per
        row); select: (N,) int64 indices into the flattened B*T tokens; positions: (B, T) int64 of
        the tokens in their documents, up to a constant per document, for the rotary embedding; by
        default the positions in the row.

        Returns (B, T, V), or (N, V) with `select`: the head is the most expensive matrix of a small
        model, so losses that look at few positions should ask for those alone. Raises ValueError
        when T exceeds max_len.
        """
        x = self.trunk(idx, doc_start, positions=positions)
        return self.head(x if select is None else x.flatten(0, 1)[select])

    def prefill(self, idx, lengths, cache):
        """Read prompts of uneven length, padded on the right, into an empty cache.

        idx: (B, T) int64; lengths: (B,) real tokens in each row. Padding comes after the real
        tokens, so causal attention never shows it to them, and decoding overwrites its slots.
        Returns (B, V) logits after each row's last token.
        """
        x = self.trunk(idx, cache=cache)
        cache.lengths = lengths.clone()
        return self.head(x[torch.arange(idx.size(0), device=idx.device), lengths - 1])

    def decode(self, idx, cache):
        """One step: idx (B,) int64, the newest token of each row, goes into the cache.

        Returns (B, V) logits of the next token. No shape and no Python number changes from step to
        step, so a step can be compiled and recorded as a CUDA graph. The caller makes sure that no
        row is full: lengths < cache.slots.
        """
        rope = self.rope(cache.lengths)
        x = self.embed(idx)  # (B, C)
        rows = torch.arange(idx.size(0), device=idx.device)
        filled = cache.lengths + 1
        step = rows, filled, visible_slots(filled, cache.slots, x)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, cache=cache, layer=layer, step=step)
        cache.lengths += 1
        return self.head(self.norm(x))

    def describe(self):
        """Config as a plain dict, for checkpoints."""
        return asdict(self.config)


def _shape_of(config):
    """The GPT of a config without memory for its weights, to count them."""
    with torch.device("meta"):
        return GPT(config)


def training_flops(config, tokens, T, recompute=False):
    """Floating-point operations of one training step on `tokens` tokens in rows of T.

    Forward once, backward twice that, and the forward again where blocks are recomputed. Counted
    are matrix products and causal attention scores of full rows: 2 * 2 * H * D * T / 2 per token
    and layer.
    """
    dense = _shape_of(config).flops_per_token()
    scores = 2 * config.n_layer * config.n_head * config.head_dim * T
    passes = 4 if recompute else 3
    return tokens * passes * (dense + scores)


def training_memory(config, tokens, T, bf16=True, recompute=False, muon=False, dense=False):
    """What training keeps in memory, in bytes by part.

    An estimate that a test holds against what autograd stores.

    tokens: in one forward pass, in rows of T; muon: whether the matrices of the blocks train with
    Muon, whose state is one number per weight where AdamW keeps two; dense: whether attention
    stores its T x T probabilities, as it does on a CPU in bfloat16. Weights, gradients and
    optimizer state are float32. With `recompute` (Chen et al. 1604.06174) a block stores only its
    input, and one block at a time is stored in full.
    """
    C = config.n_embd
    L = config.n_layer
    width = 2 if bf16 else 4  # bytes per number inside a block
    # A block stores, per token, about 2 C residuals (float32) and 2 C norms; 6 H D + 4 K D queries,
    # keys and values before and after norm and rotation; 4 d_ff of gate, up and their product; and
    # H T probabilities of attention where it is dense.
    heads = (6 * config.n_head + 4 * config.n_kv_head) * config.head_dim
    block = 4 * 2 * C + width * (2 * C + heads + 4 * config.d_ff + dense * config.n_head * T)
    # with recompute: the inputs of all blocks, and two more residuals, which the last norm keeps
    per_token = (L + 2) * 4 * C + block if recompute else L * block
    model = _shape_of(config)
    P = model.num_params
    matrices = 0  # parameters of the matrices in the blocks
    for name, p in model.named_parameters():
        if name.startswith("blocks.") and p.dim() == 2:
            matrices += p.numel()
    return dict(
        weights=4 * P + (2 * P if bf16 else 0),
        gradients=4 * P,
        optimizer=8 * P - (4 * matrices if muon else 0),
        activations=tokens * per_token,
        logits=tokens * config.vocab_size * (8 + width),
    )


def cache_memory(config, rows, slots, bf16):
    """Bytes of a key/value cache of `rows` rows of `slots` tokens."""
    per_token = config.n_layer * 2 * config.n_kv_head * config.head_dim * (2 if bf16 else 4)
    return rows * slots * per_token


def rl_memory(config, rows, slots, bf16, reference):
    """Bytes that reinforcement learning keeps besides `training_memory`.

    They are the cache of `rows` rows of `slots` tokens, the copy of the policy that samples, and
    the reference where there is one.
    """
    P = _shape_of(config).num_params
    per_weight = (2 if bf16 else 4) + (4 if reference else 0)
    cache = cache_memory(config, rows, min(slots, config.max_len), bf16)
    return dict(cache=cache, copies=P * per_weight)


def memory_line(parts, machine):
    """One line for people: bytes by part, their sum in GiB, and whether the machine has as much,
    where the system tells how much it has."""
    GiB = 2**30
    total = sum(parts.values())
    listed = " + ".join(f"{name} {size / GiB:.2f}" for name, size in parts.items())
    needed = f"memory, estimated: {listed} = {total / GiB:.2f} GiB"
    if machine.memory is None:
        return needed
    fits = "fits"
    if total >= 0.9 * machine.memory:
        fits = "DOES NOT FIT; fewer --micro-tokens or --checkpoint-activations would help"
    return f"{needed}; {machine.device} has {machine.memory / GiB:.1f} GiB: {fits}"

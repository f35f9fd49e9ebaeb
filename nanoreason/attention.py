"""Causal attention behind one call, `attention(q, k, v, doc_start)`, and its sibling for decoding.

Training packs many short documents into one row, so attention has to be causal *and* stop at the
start of the token's own document. `doc_start` says where that is:

    row        A0 A1 A2 B0 B1 C0      three documents, A, B and C, in one row of six tokens
    doc_start   0  0  0  3  3  5      token 4 (B1) may look at positions 3 and 4 and at no others

Decoding has one new token per row and a cache of uneven length: `cached_attention` does that.

Letters: B batch, T time, H query heads, K key/value heads, D head dim, S cache slots, and
G = H / K, the query heads that share a key/value head.

On a GPU the Triton kernels of `kernels.py` compute both, elsewhere PyTorch does.
"""

import torch
import torch.nn.functional as F

if torch.cuda.is_available():  # importing them takes seconds: Triton, and torch's compiler
    from nanoreason import kernels
else:
    kernels = None


def document_mask(doc_start):
    """Which token may look at which in packed rows.

    doc_start: (B, T) integers, for each token the index at which its document starts.
    Returns (B, 1, T, T) bool, True where query i (dim 2) may attend to key j (dim 3):
    doc_start[i] <= j <= i.
    """
    T = doc_start.size(1)
    j = torch.arange(T, device=doc_start.device)
    causal = j[None, :] <= j[:, None]  # (T, T)
    return (causal & (j >= doc_start[:, :, None]))[:, None]  # (B, 1, T, T)


def attention(q, k, v, doc_start=None):
    """Causal grouped-query attention, softmax(q k^T / sqrt(D)) v, inside each document.

    q: (B, T, H, D); k, v: (B, T, K, D) with H a multiple of K; doc_start: (B, T) int, what
    `by_document` makes of it, or None (one document per row).
    Returns (B, T, H, D) in q's dtype. Query head h reads key/value head h // (H / K) (GQA, Ainslie
    et al. 2305.13245). Raises ValueError when H is no multiple of K.
    """
    if q.size(2) % k.size(2):
        raise ValueError(f"{q.size(2)} query heads cannot share {k.size(2)} key/value heads evenly")
    if kernels and kernels.fits(q):
        if torch.is_autocast_enabled(q.device.type):  # it knows PyTorch's attention, not our op
            dtype = torch.get_autocast_dtype(q.device.type)
            q, k, v = (x.to(dtype) for x in (q, k, v))
        return kernels.fused_attention(q, k, v, doc_start)
    if isinstance(doc_start, Documents):
        return grouped_attention(q, k, v, doc_start)
    return masked_attention(q, k, v, doc_start)


def masked_attention(q, k, v, doc_start=None):
    """The same from PyTorch's operators; what a token may not see is computed and thrown away."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return matmul_attention(q, k, v, doc_start)
    mask = None if doc_start is None else document_mask(doc_start)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D), (B, K, T, D)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.size(1) != k.size(1)
    )
    return out.transpose(1, 2)  # (B, T, H, D)


LENGTHS = (1, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # documents up to each are one group
DENSE = {torch.float32: 128, torch.bfloat16: 256}  # rows up to which a masked batch is faster


class Documents:
    """A packed batch regrouped for attention: documents of similar length stand side by side.

    A document is a list of tokens of the batch, by their indices in the flattened B * T tokens, and
    a token attends to those before it in its document. Two documents may begin with the same
    tokens, as the responses to one question do: these are then computed once and attended to by
    both. The tokens go to M places, group after group. Each document is filled up to the length of
    the longest of its group, by repeating its last token.

    order: (M,) int64, the token at each place; shapes: (documents, length) per group; place:
    (B * T,) int64, a place of each token; spare: int64, the places whose result is not used.

        documents [0 1] and [0 2 3], one group
        order 0 1 1 0 2 3    shapes (2, 3)    place 0 1 4 5    spare 2 3
    """

    def __init__(self, first, length, size, prefix=None):
        """Documents of `length` tokens from `first` on, (N,) int64 each, of a batch of `size`
        tokens. prefix: (start, length) of the tokens that each has before its own, (N,) each."""
        if prefix is None:
            prefix = first, torch.zeros_like(length)
        prefix_start, prefix_length = prefix
        whole = prefix_length + length  # (N,)
        group_of = torch.bucketize(whole, torch.tensor(LENGTHS))
        order = []
        self.shapes = []
        for group in group_of.unique().tolist():
            members = group_of == group
            n = whole[members, None]  # (documents, 1)
            before = prefix_length[members, None]
            offset = torch.minimum(torch.arange(int(n.max())), n - 1)  # (documents, length)
            in_prefix = prefix_start[members, None] + offset
            in_own = first[members, None] + offset - before
            order.append(torch.where(offset < before, in_prefix, in_own).flatten())
            self.shapes.append(tuple(offset.shape))
        self.order = torch.cat(order)
        places = torch.arange(len(self.order))
        # of several places the first, which is no filling: that comes after what it repeats
        self.place = torch.full((size,), len(places))
        self.place.scatter_reduce_(0, self.order, places, "amin")
        is_spare = torch.ones(len(places), dtype=torch.bool).index_fill_(0, self.place, False)
        self.spare = is_spare.nonzero().squeeze(1)

    def split(self, x):
        """x (B, T, ...) -> a list of one (documents, length, ...) per group."""
        regrouped = x.flatten(0, 1).index_select(0, self.order)  # (M, ...)
        parts = regrouped.split([count * length for count, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes)]

    def join(self, parts):
        """The way back: a list of (documents, length, ...) -> (B * T, ...)."""
        return _Ungroup.apply(torch.cat([part.flatten(0, 1) for part in parts]), self)


class _Ungroup(torch.autograd.Function):
    """Rows of x (M, ...) at the place of each token: (B * T, ...).

    Its own backward, because every row is taken once at most: the gradient is copied, and is zero
    at spare places. PyTorch's would add rows, as if some were taken twice.
    """

    @staticmethod
    def forward(ctx, x, documents):
        ctx.documents = documents
        return x.index_select(0, documents.place)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.index_select(0, ctx.documents.order)
        return grad.index_fill_(0, ctx.documents.spare, 0.0), None


def by_document(doc_start, dtype=torch.float32):
    """What `attention` wants to know of the documents in doc_start (B, T), once for all layers.

    Documents for long rows on a CPU, else doc_start as it is. dtype: of the queries to come.
    """
    if not isinstance(doc_start, torch.Tensor) or doc_start.device.type != "cpu":
        return doc_start
    B, T = doc_start.shape
    if T <= DENSE.get(dtype, 0):
        return doc_start
    first = (doc_start == torch.arange(T)).flatten().nonzero().squeeze(1)  # (documents,)
    length = torch.diff(first, append=torch.tensor([B * T]))
    return Documents(first, length, B * T)


def grouped_attention(q, k, v, documents):
    """`attention` on a CPU: each group of documents of similar length is a small dense batch.

    A T x T mask throws away what a row of 256 tokens with documents of 50 has computed, three
    quarters and more. Filling comes last in its document, where causal attention hides it. Forward
    and backward of 6 rows of 256 tokens of the base corpus, one core with AVX2: 10.3 ms with a
    mask, 5.9 ms like this; 3 rows of 512: 20.1 and 6.3 ms, so rows may be long.
    """
    groups = zip(documents.split(q), documents.split(k), documents.split(v))
    parts = [masked_attention(*group) for group in groups]  # (documents, length, H, D) each
    return documents.join(parts).view(q.shape)


def matmul_attention(q, k, v, doc_start=None):
    """The same attention from two batched matrix products and a softmax, all scores in memory.

    On a CPU with bfloat16 arithmetic this is faster than scaled_dot_product_attention, whose
    bfloat16 backward is slow there: forward and backward of 64 packed rows of 128 tokens, 4 heads
    of 32, took 10 ms against 51 ms, and of 32 rows of 256 31 ms against 46 ms (2 cores).
    """
    B, T, H, D = q.shape
    K = k.size(2)
    G = H // K
    if doc_start is None:
        doc_start = torch.zeros(1, T, dtype=torch.int32, device=q.device)
    hidden = ~document_mask(doc_start)  # (B or 1, 1, T, T)
    bias = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(hidden, float("-inf"))
    # the G query heads that share keys are rows of one product
    q = (q * D**-0.5).reshape(B, T, K, G, D).transpose(1, 2).reshape(B * K, T * G, D)
    k, v = (x.transpose(1, 2).reshape(B * K, T, D) for x in (k, v))
    scores = torch.bmm(q, k.transpose(1, 2))  # (B*K, T*G, T)
    scores = scores.view(B, K, T, G, T) + bias[:, :, :, None]
    weights = scores.softmax(-1, dtype=q.dtype).view(B * K, T * G, T)
    out = torch.bmm(weights, v)  # (B*K, T*G, D)
    return out.view(B, K, T, G, D).transpose(1, 2).reshape(B, T, H, D)


def visible_slots(lengths, slots, like):
    """What `cached_attention` may look at, once per step for all layers.

    lengths: (B,) filled slots of each row; slots: S; like: a tensor of the dtype and device wanted.
    Returns (B, 1, S), to be added to scores: 0 for the filled slots and -inf for the others. Or
    None where the decoding kernel runs, which reads the lengths itself.
    """
    if kernels and kernels.runs_on(like.device):
        return None
    hidden = torch.arange(slots, device=like.device) >= lengths[:, None, None]  # (B, 1, S)
    visible = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return visible.masked_fill_(hidden, float("-inf"))


def cached_attention(q, k, v, lengths, visible):
    """One new token per row against that row's filled cache slots.

    q: (B, H, D), the new token's queries; k, v: (B, K, S, D), cache slots; lengths: (B,) filled
    slots of each row, the new token's included; visible: (B, 1, S) from `visible_slots`, or None
    for `kernels.decode_attention`. Returns (B, H, D).

    The H / K query heads that share a key/value head become rows of one matrix product, so each
    cached key is read once for all of them: cache traffic, not arithmetic, is what bounds decoding.
    Without the kernel the caches are read whole, because a batch of products over evenly spaced
    matrices runs 2.5 times as fast on a CPU as one over a slice of the slots: keep S near the
    longest length.
    """
    if visible is None:
        return kernels.decode_attention(q, k, v, lengths)
    B, H, D = q.shape
    K = k.size(1)
    S = k.size(2)
    q = q.reshape(B * K, H // K, D)
    k, v = (x.view(B * K, S, D) for x in (k, v))
    bias = visible.repeat_interleave(K, 0)  # (B*K, 1, S)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=D**-0.5)  # (B*K, H/K, S)
    return torch.bmm(scores.softmax(-1), v).view(B, H, D)

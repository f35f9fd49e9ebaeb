"""Causal attention behind one call, `attention(q, k, v, doc_start)`, and its sibling for decoding.

Training packs many short documents into one row, so attention has to be causal *and* stop at the start of
the token's own document. `doc_start` says where that is:

    row        A0 A1 A2 B0 B1 C0          three documents, A, B and C, in one row of six tokens
    doc_start   0  0  0  3  3  5          token 4 (B1) may look at positions 3 and 4 and at no others

Decoding has one new token a row and a cache of uneven length; `cached_attention` and `decode_attention` serve that case.
Letters: B batch, T time, H query heads, K key/value heads, D head dim, S cache slots, G = H / K query heads that share a key/value head.

On a GPU the Triton kernels of `kernels.py` compute both, elsewhere PyTorch does.
"""

import torch
import torch.nn.functional as F

if torch.cuda.is_available():  # importing them takes seconds: Triton, and torch's compiler
    from nanoreason import kernels
else:
    kernels = None


def document_mask(doc_start):
    """Who may look at whom in packed rows.

    doc_start: (B, T) integers, for each token the index at which its document starts.
    Returns (B, 1, T, T) bool, True where query i (dim 2) may attend to key j (dim 3): doc_start[i] <= j <= i.
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
    both. They go to M places, group after group, each filled up to the longest of its group.

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
        whole = prefix[1] + length
        group_of = torch.bucketize(whole, torch.tensor(LENGTHS))
        order, self.shapes = [], []
        for group in group_of.unique().tolist():
            some = group_of == group
            n, start, shared, before = (
                x[some, None] for x in (whole, first, prefix[0], prefix[1])
            )  # (documents, 1)
            offset = torch.minimum(torch.arange(int(n.max())), n - 1)  # (documents, length)
            order.append(torch.where(offset < before, shared + offset, start + offset - before))
            self.shapes.append(tuple(offset.shape))
        self.order = torch.cat([x.flatten() for x in order])
        places = torch.arange(len(self.order))
        self.place = torch.full((size,), len(places)).scatter_reduce_(
            0, self.order, places, "amin"
        )  # the first, which is no filling: that repeats a document's last token
        self.spare = torch.ones(len(places), dtype=torch.bool).index_fill_(0, self.place, False)
        self.spare = self.spare.nonzero().squeeze(1)


def by_document(doc_start, dtype=torch.float32):
    """What `attention` wants to know of the documents in doc_start (B, T), once for all layers:
    Documents for long rows on a CPU, else doc_start as it is. dtype: of the queries to come."""
    if not isinstance(doc_start, torch.Tensor) or doc_start.device.type != "cpu":
        return doc_start
    B, T = doc_start.shape
    if T <= DENSE.get(dtype, 0):
        return doc_start
    first = (doc_start == torch.arange(T)).flatten().nonzero().squeeze(1)  # (documents,)
    length = torch.diff(first, append=torch.tensor([B * T]))
    return Documents(first, length, B * T)


class _Regroup(torch.autograd.Function):
    """Rows of x (B * T, ...) at the places of Documents: (M, ...)."""

    @staticmethod
    def forward(ctx, x, documents):
        ctx.documents = documents
        return x.index_select(0, documents.order)

    @staticmethod
    def backward(ctx, grad):
        order, place = ctx.documents.order, ctx.documents.place
        out = grad.new_zeros(len(place), *grad.shape[1:])
        return out.index_add_(0, order, grad), None


class _Ungroup(torch.autograd.Function):
    """The way back, (M, ...) -> (B * T, ...). Spare places have no gradient."""

    @staticmethod
    def forward(ctx, x, documents):
        ctx.documents = documents
        return x.index_select(0, documents.place)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.index_select(0, ctx.documents.order)
        return grad.index_fill_(0, ctx.documents.spare, 0.0), None


def grouped_attention(q, k, v, documents):
    """`attention` on a CPU: each group of documents of similar length is a small dense batch.

    A T x T mask throws away what a row of 256 tokens with documents of 50 has computed, three
    quarters and more. Filling comes last in its document, where causal attention hides it. Forward
    and backward of 6 rows of 256 tokens of the base corpus, one core with AVX2: 10.3 ms with a
    mask, 5.9 ms like this; 3 rows of 512: 20.1 and 6.3 ms, so rows may be long.
    """
    sizes = [count * length for count, length in documents.shapes]
    groups = [_Regroup.apply(x.flatten(0, 1), documents).split(sizes) for x in (q, k, v)]
    parts = []
    for shape, *qkv in zip(documents.shapes, *groups):
        part = masked_attention(*(x.unflatten(0, shape) for x in qkv))  # (documents, length, H, D)
        parts.append(part.flatten(0, 1))
    return _Ungroup.apply(torch.cat(parts), documents).view(q.shape)


def matmul_attention(q, k, v, doc_start=None):
    """The same attention from two batched matrix products and a softmax, all scores in memory at once.

    On a CPU with bfloat16 arithmetic this beats scaled_dot_product_attention, whose bfloat16 backward is slow there: forward and
    backward of 64 packed rows of 128 tokens, 4 heads of 32, took 10 ms against 51 ms, and 31 ms against 46 ms for 32 rows of 256 (2 cores).
    """
    B, T, H, D = q.shape
    K, G = k.size(2), H // k.size(2)
    if doc_start is None:
        doc_start = torch.zeros(1, T, dtype=torch.int32, device=q.device)
    bias = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~document_mask(doc_start), float("-inf"))  # (B or 1, 1, T, T)
    q = (q * D**-0.5).reshape(B, T, K, G, D).transpose(1, 2).reshape(B * K, T * G, D)  # a group's heads are rows of one product
    k, v = (x.transpose(1, 2).reshape(B * K, T, D) for x in (k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(B, K, T, G, T) + bias[:, :, :, None]
    out = torch.bmm(scores.softmax(-1, dtype=q.dtype).view(B * K, T * G, T), v)
    return out.view(B, K, T, G, D).transpose(1, 2).reshape(B, T, H, D)


def visible_slots(lengths, slots, like):
    """What `cached_attention` may look at, once a step for all layers: (B, 1, slots) additive, 0 for the filled slots and -inf for the
    others, in `like`'s dtype. lengths: (B,) filled slots of each row. None where the decoding kernel runs, which reads the lengths itself."""
    if kernels and kernels.runs_on(like.device):
        return None
    hidden = torch.arange(slots, device=like.device) >= lengths[:, None, None]
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def cached_attention(q, k, v, lengths, visible):
    """One new token a row against that row's filled cache slots.

    q: (B, H, D), the new token's queries; k, v: (B, K, S, D), cache slots; lengths: (B,) filled slots of each row, the new token's
    included; visible: (B, 1, S) from `visible_slots`, or None for the kernel of `decode_attention`. Returns (B, H, D).

    The H / K query heads of a group become rows of one matrix product, so each cached key is read once a group and not once a head:
    cache traffic, not arithmetic, is what bounds decoding. Without the kernel the caches are read whole, for a batch of products over evenly
    spaced matrices runs 2.5 times as fast on a CPU as one over a slice of the slots: keep S near the longest length.
    """
    if visible is None:
        return kernels.decode_attention(q, k, v, lengths)
    B, H, D = q.shape
    K, S = k.size(1), k.size(2)
    scores = torch.baddbmm(visible.repeat_interleave(K, 0), q.reshape(B * K, H // K, D), k.view(B * K, S, D).transpose(1, 2), alpha=D**-0.5)  # (B*K, H/K, S)
    return torch.bmm(scores.softmax(-1), v.view(B * K, S, D)).view(B, H, D)

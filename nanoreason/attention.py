"""Causal attention behind one call: `attention(q, k, v, doc_start)`.

Training packs many short documents into one row, so attention has to be causal *and* stop at the start of
the token's own document. `doc_start` says where that is:

    row        A0 A1 A2 B0 B1 C0          three documents, A, B and C, in one row of six tokens
    doc_start   0  0  0  3  3  5          token 4 (B1) may look at positions 3 and 4 and at no others

Decoding has one new token a row and a cache of uneven length; `cached_attention` serves that case.
Letters: B batch, T time, H query heads, K key/value heads, D head dim, S cache slots.
"""

import torch
import torch.nn.functional as F


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

    q: (B, T, H, D); k, v: (B, T, K, D) with H a multiple of K; doc_start: (B, T) int or None (one document a row).
    Returns (B, T, H, D) in q's dtype. Query head h reads key/value head h // (H / K) (GQA, Ainslie et al. 2305.13245).
    Raises ValueError when H is no multiple of K.
    """
    if q.size(2) % k.size(2):
        raise ValueError(f"{q.size(2)} query heads cannot share {k.size(2)} key/value heads evenly")
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return matmul_attention(q, k, v, doc_start)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D), (B, K, T, D)
    mask = None if doc_start is None else document_mask(doc_start)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.size(1) != k.size(1))
    return out.transpose(1, 2)  # (B, T, H, D)


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
    others, in `like`'s dtype. lengths: (B,) filled slots of each row."""
    hidden = torch.arange(slots, device=like.device) >= lengths[:, None, None]
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def cached_attention(q, k, v, lengths, visible):
    """One new token a row against that row's filled cache slots.

    q: (B, H, D), the new token's queries; k, v: (B, K, S, D), cache slots; lengths: (B,) filled slots of each row, the new token's
    included; visible: (B, 1, S) from `visible_slots`. Returns (B, H, D).

    The H / K query heads of a group become rows of one matrix product, so each cached key is read once a group and not once a head:
    cache traffic, not arithmetic, is what bounds decoding. The caches are read whole, for a batch of products over evenly spaced
    matrices runs 2.5 times as fast on a CPU as one over a slice of the slots: keep S near the longest length.
    """
    B, H, D = q.shape
    K, S = k.size(1), k.size(2)
    scores = torch.baddbmm(visible.repeat_interleave(K, 0), q.reshape(B * K, H // K, D), k.view(B * K, S, D).transpose(1, 2), alpha=D**-0.5)  # (B*K, H/K, S)
    return torch.bmm(scores.softmax(-1), v.view(B * K, S, D)).view(B, H, D)


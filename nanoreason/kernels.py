"""The Triton kernels behind `attention` and `cached_attention` on a GPU, and why they look so.

The kernels follow FlashAttention (Dao et al. 2205.14135) with the loop order of FlashAttention-2
(Dao 2307.08691). The plain formula writes T x T scores to memory and reads them back, twice. The
kernels cut queries and keys into tiles that fit a processor's registers and shared memory; no score
ever leaves them.

Online softmax. A program owns a tile of queries and walks over tiles of keys. For each query it
keeps m, the largest score so far, l, the sum of exp(s - m), and acc, the sum of exp(s - m) v. A
tile of keys with scores s = q k^T / sqrt(D) takes them to

    m'   = max(m, max s)
    p    = exp(s - m')
    l'   = l exp(m - m') + sum p
    acc' = acc exp(m - m') + p v

and at the end out = acc / l. No exponent is positive, so nothing overflows. GPUs compute 2^x, so s
carries a factor log2 e, and m and lse below are base-2 logarithms.

Backward. P = softmax(s) is computed again, which is cheaper than to store it: saved is one number
per query, lse = m + log2 l, and P = 2^(s - lse). With dO the gradient of out and
delta = rowsum(P * dP) = rowsum(dO * out),

    dV = P^T dO
    dP = dO V^T
    dS = P * (dP - delta)
    dQ = dS K / sqrt(D)
    dK = dS^T Q / sqrt(D)

dK and dV are sums over queries, dQ is a sum over keys. In one pass, many programs would add into
the same rows, with atomics, whose order and so whose rounding change from run to run. Here one
kernel owns tiles of keys and walks over queries, another owns tiles of queries and walks over
keys: P is computed twice, every number is written once, and equal inputs give equal bits.

Skipped tiles. Queries a .. e - 1 see no key from e on, and none before doc_start[a], as doc_start
never falls along a row. Of the tiles of keys in between, the middle ones are seen by every query of
the tile and need no mask:

    doc_start[a]  ...  doc_start[e - 1]     ...      a      ...     e - 1
    edge: mask of documents           free: no mask  edge: causal mask, and documents

For a tile of keys a .. e - 1 the picture is mirrored: its queries run from a to the end of the
document of key e - 1.

Letters as in attention.py. In kernels, capital names are pointers (Q, K, V) and compile-time
constants; WIDTH is D rounded up to a power of two, and rows are padded to it.
"""

from typing import Optional

import torch

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    constexpr = tl.constexpr
except ImportError:  # macOS, Windows
    triton = tl = constexpr = None

    def jit(function):
        """Without Triton a kernel stays a plain function that nobody calls."""
        return function


# a tensor core multiplies at least 16 wide; past 128 the sums of a tile outgrow the registers
HEAD_DIMS = range(16, 129, 2)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@torch.compiler.assume_constant_result
def runs_on(device):
    """Whether Triton is there and compiles for this device: an NVIDIA GPU of compute capability
    8.0 (Ampere) or later."""
    if triton is None or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def fits(q):
    """Whether the kernels take queries like q (B, T, H, D)."""
    return runs_on(q.device) and q.size(3) in HEAD_DIMS and q.dtype in DTYPES


# {kernel: (BLOCK_Q, BLOCK_K, num_warps, num_stages)}
FLOAT32_TILES = dict(
    forward=(32, 32, 4, 2), dkdv=(32, 32, 4, 2), dq=(32, 32, 4, 2), decode=(16, 32, 4, 2)
)
TILES_TO_64 = dict(
    forward=(128, 64, 4, 3), dkdv=(64, 128, 8, 3), dq=(128, 64, 8, 3), decode=(16, 64, 4, 3)
)
TILES_TO_128 = dict(
    forward=(128, 64, 8, 3), dkdv=(32, 128, 8, 2), dq=(128, 32, 8, 3), decode=(16, 64, 4, 2)
)


def tiles(kernel, D, dtype):
    """Tile sizes and launch options of a kernel: BLOCK_Q, BLOCK_K, options.

    A table and no search at start-up, which takes minutes and whose winner, hence the rounding, can
    differ from run to run. Larger tiles read less memory and need more registers: the 16-bit
    entries compile for sm_80 and sm_90 without register spills inside a loop and fit the 99 KB of
    shared memory of sm_86 and sm_89. float32 has no exact tensor-core product, so its tiles are
    small.
    """
    if dtype == torch.float32:
        sizes = FLOAT32_TILES
    else:
        sizes = TILES_TO_64 if D <= 64 else TILES_TO_128
    BLOCK_Q, BLOCK_K, num_warps, num_stages = sizes[kernel]
    options = dict(num_warps=num_warps, num_stages=num_stages)
    options["enable_fp_fusion"] = True  # s * scale - m in one instruction
    return BLOCK_Q, BLOCK_K, options


# Parts of kernels


@jit
def _batch_and_head(heads):
    """This program's row of the batch and head.

    64 bits, since a batch can pass 2^31 elements; offsets inside one row of it are 32 bits.
    """
    program = tl.program_id(0)
    return (program // heads).to(tl.int64), (program % heads).to(tl.int64)


@jit
def _scale(D: constexpr):
    """1 / sqrt(D) times log2 e."""
    return D**-0.5 * 1.4426950408889634


@jit
def _head_of(X, strides, b, h):
    """Where the (T, D) matrix of batch row b and head h begins, in X (B, T, heads, D)."""
    return X + (b * strides[0] + h * strides[2])


@jit
def _load(base, start, limit, row_stride, col_stride,
          ROWS: constexpr, D: constexpr, WIDTH: constexpr, EDGE: constexpr):
    """Rows start .. start + ROWS of a (limit, D) matrix as a tile (ROWS, WIDTH), zero outside.

    Only EDGE tiles may reach past limit.
    """
    row = tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, WIDTH)[None, :]
    at = base + ((start + row) * row_stride + col * col_stride)
    if D == WIDTH:
        return tl.load(at, mask=row < limit - start, other=0.0) if EDGE else tl.load(at)
    else:
        return tl.load(at, mask=(row < limit - start) & (col < D) if EDGE else col < D, other=0.0)


@jit
def _store(base, start, limit, row_stride, tile,
           ROWS: constexpr, D: constexpr, WIDTH: constexpr):
    """The reverse of `_load`, into rows of adjacent elements of any dtype."""
    row = tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, WIDTH)[None, :]
    at = base + ((start + row) * row_stride + col)
    tl.store(at, tile.to(base.dtype.element_ty), mask=(start + row < limit) & (col < D))


@jit
def _keys_to_walk(DocStart, doc_strides, b, start, T,
                  PACKED: constexpr, BLOCK_Q: constexpr, BLOCK_K: constexpr):
    """The keys that the tile of queries at `start` walks over.

    Returns first, free, diagonal, end and the tile's doc_start (BLOCK_Q, 1): keys first .. end - 1
    are walked over, and free .. diagonal - 1 among them need no mask.
    """
    diagonal = start // BLOCK_K * BLOCK_K
    end = tl.minimum(start + BLOCK_Q, T)
    first = 0
    free = 0
    doc_start = 0
    if PACKED:
        at = DocStart + b * doc_strides[0]
        query = start + tl.arange(0, BLOCK_Q)[:, None]
        first = tl.load(at + start * doc_strides[1]).to(tl.int32) // BLOCK_K * BLOCK_K
        free = tl.cdiv(tl.load(at + (end - 1) * doc_strides[1]).to(tl.int32), BLOCK_K) * BLOCK_K
        doc_start = tl.load(at + tl.minimum(query, T - 1) * doc_strides[1]).to(tl.int32)
    return first, tl.minimum(free, diagonal), diagonal, end, doc_start


@jit
def _visible(query, key, doc_start, PACKED: constexpr):
    """Whether a query may look at a key."""
    return (key <= query) & (key >= doc_start) if PACKED else key <= query


@jit
def _online_softmax(s, m, l, D: constexpr):
    """Take a tile of scores s (rows, keys), unscaled, into the running m and l (rows,).

    Returns p (rows, keys), the new m and l, and the factor that acc shrinks by.
    """
    new_m = tl.maximum(m, tl.max(s, 1) * _scale(D))
    p = tl.exp2(s * _scale(D) - new_m[:, None])
    shrink = tl.exp2(m - new_m)
    return p, new_m, l * shrink + tl.sum(p, 1), shrink


# Kernels


@jit
def _forward(Q, K, V, DocStart, Out, Lse, q_strides, k_strides, v_strides, doc_strides, T, H, G,
             PACKED: constexpr, D: constexpr, WIDTH: constexpr,
             BLOCK_Q: constexpr, BLOCK_K: constexpr):
    """A tile of queries of one head: out and lse by the online softmax, over free tiles of keys
    first, then over edge tiles."""
    b, h = _batch_and_head(H)
    # late queries see most keys: begun last, they would run on alone
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_Q
    K = _head_of(K, k_strides, b, h // G)
    V = _head_of(V, v_strides, b, h // G)
    q = _load(_head_of(Q, q_strides, b, h), start, T, q_strides[1], q_strides[3],
              BLOCK_Q, D, WIDTH, True)
    query = start + tl.arange(0, BLOCK_Q)
    first, free, diagonal, end, doc_start = _keys_to_walk(
        DocStart, doc_strides, b, start, T, PACKED, BLOCK_Q, BLOCK_K)
    m = tl.full((BLOCK_Q,), -1e30, tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
    for EDGE in tl.static_range(2):
        begin = first if EDGE else free
        stop = end - (diagonal - free) if EDGE else diagonal
        for step in range(begin, stop, BLOCK_K):
            # edge tiles lie on both sides of the free ones
            at = step + tl.where(step >= free, diagonal - free, 0) if EDGE else step
            k = _load(K, at, T, k_strides[1], k_strides[3], BLOCK_K, D, WIDTH, EDGE)
            s = tl.dot(q, tl.trans(k), input_precision="ieee")  # (BLOCK_Q, BLOCK_K)
            if EDGE:
                # Not -inf: -inf - -inf is no number. A query that has met only hidden keys sums up
                # values of weight 2^(-1e30 - -1e30) = 1. When it meets a key of its own, at the
                # latest itself, they are multiplied by 2^(-1e30 - m') = 0.
                key = at + tl.arange(0, BLOCK_K)[None, :]
                s = tl.where(_visible(query[:, None], key, doc_start, PACKED), s, -1e30)
            p, m, l, shrink = _online_softmax(s, m, l, D)
            v = _load(V, at, T, v_strides[1], v_strides[3], BLOCK_K, D, WIDTH, EDGE)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    _store(Out + (b * T * H + h) * D, start, T, H * D, acc / l[:, None], BLOCK_Q, D, WIDTH)
    tl.store(Lse + (b * H + h) * T + query, m + tl.log2(l), mask=query < T)


@jit
def _backward_delta(Out, dOut, Delta, do_strides, T, H,
                    D: constexpr, WIDTH: constexpr, ROWS: constexpr):
    """delta = rowsum(dO * out)."""
    b, h = _batch_and_head(H)
    start = tl.program_id(1) * ROWS
    out = _load(Out + (b * T * H + h) * D, start, T, H * D, 1, ROWS, D, WIDTH, True)
    do = _load(_head_of(dOut, do_strides, b, h), start, T, do_strides[1], do_strides[3],
               ROWS, D, WIDTH, True)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), 1)
    query = start + tl.arange(0, ROWS)
    tl.store(Delta + (b * H + h) * T + query, delta, mask=query < T)


@jit
def _backward_dkdv(Q, K, V, dOut, DocEnd, Lse, Delta, dK, dV,
                   q_strides, k_strides, v_strides, do_strides, T, H, G,
                   PACKED: constexpr, D: constexpr, WIDTH: constexpr,
                   BLOCK_Q: constexpr, BLOCK_K: constexpr):
    """A tile of keys of one key/value head: dK and dV, summed over the G heads that share it and
    over the queries that see it.

    Scores are kept transposed, (BLOCK_K, BLOCK_Q), so that P^T and dS^T are there as left factors.
    Heads and tiles of queries are one loop: loads for the next head are under way while this one is
    computed, which counts when documents, and so walks, are short.
    """
    kv_heads = H // G
    b, h = _batch_and_head(kv_heads)
    start = tl.program_id(1) * BLOCK_K  # early keys, which most queries see, come first
    k = _load(_head_of(K, k_strides, b, h), start, T, k_strides[1], k_strides[3],
              BLOCK_K, D, WIDTH, True)
    v = _load(_head_of(V, v_strides, b, h), start, T, v_strides[1], v_strides[3],
              BLOCK_K, D, WIDTH, True)
    key = start + tl.arange(0, BLOCK_K)[:, None]
    # where the documents of the first key, of the last and of each one end
    first_end = T
    end = T
    doc_end = T
    if PACKED:
        first_end = tl.load(DocEnd + b * T + start)
        end = tl.load(DocEnd + b * T + tl.minimum(start + BLOCK_K, T) - 1)
        doc_end = tl.load(DocEnd + b * T + key, mask=key < T, other=0)
    first = start // BLOCK_Q * BLOCK_Q
    # queries from `free` on come after all keys of the tile, and up to `tail` they are in the
    # document of each of them
    free = tl.cdiv(start + BLOCK_K, BLOCK_Q) * BLOCK_Q
    tail = tl.maximum(first_end // BLOCK_Q * BLOCK_Q, free)
    dk = tl.zeros((BLOCK_K, WIDTH), tl.float32)
    dv = tl.zeros((BLOCK_K, WIDTH), tl.float32)
    for EDGE in tl.static_range(2):
        count = tl.cdiv(end - first - (tail - free) if EDGE else tail - free, BLOCK_Q)
        for step in range(count * G):
            head = h * G + step // tl.maximum(count, 1)  # prefetching divides even in no step
            at = (first if EDGE else free) + step % tl.maximum(count, 1) * BLOCK_Q
            if EDGE:
                at += tl.where(at >= free, tail - free, 0)
            query = at + tl.arange(0, BLOCK_Q)[None, :]
            q = _load(_head_of(Q, q_strides, b, head), at, T, q_strides[1], q_strides[3],
                      BLOCK_Q, D, WIDTH, EDGE)
            do = _load(_head_of(dOut, do_strides, b, head), at, T, do_strides[1], do_strides[3],
                       BLOCK_Q, D, WIDTH, EDGE)
            row = (b * H + head) * T + query
            lse = tl.load(Lse + row, mask=query < T, other=0.0)  # (1, BLOCK_Q)
            delta = tl.load(Delta + row, mask=query < T, other=0.0)  # (1, BLOCK_Q)
            s = tl.dot(k, tl.trans(q), input_precision="ieee")  # (BLOCK_K, BLOCK_Q)
            p = tl.exp2(s * _scale(D) - lse)  # P^T
            if EDGE:
                p = tl.where((key <= query) & (query < doc_end), p, 0.0)
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
            ds = p * (tl.dot(v, tl.trans(do), input_precision="ieee") - delta)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    to_head = (b * T * kv_heads + h) * D
    _store(dK + to_head, start, T, kv_heads * D, dk * D**-0.5, BLOCK_K, D, WIDTH)
    _store(dV + to_head, start, T, kv_heads * D, dv, BLOCK_K, D, WIDTH)


@jit
def _backward_dq(Q, K, V, dOut, DocStart, Lse, Delta, dQ,
                 q_strides, k_strides, v_strides, do_strides, doc_strides, T, H, G,
                 PACKED: constexpr, D: constexpr, WIDTH: constexpr,
                 BLOCK_Q: constexpr, BLOCK_K: constexpr):
    """A tile of queries of one head: dQ, summed over the keys it sees; the walk of `_forward`."""
    b, h = _batch_and_head(H)
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_Q
    K = _head_of(K, k_strides, b, h // G)
    V = _head_of(V, v_strides, b, h // G)
    q = _load(_head_of(Q, q_strides, b, h), start, T, q_strides[1], q_strides[3],
              BLOCK_Q, D, WIDTH, True)
    do = _load(_head_of(dOut, do_strides, b, h), start, T, do_strides[1], do_strides[3],
               BLOCK_Q, D, WIDTH, True)
    query = start + tl.arange(0, BLOCK_Q)[:, None]
    lse = tl.load(Lse + (b * H + h) * T + query, mask=query < T, other=0.0)  # (BLOCK_Q, 1)
    delta = tl.load(Delta + (b * H + h) * T + query, mask=query < T, other=0.0)
    first, free, diagonal, end, doc_start = _keys_to_walk(
        DocStart, doc_strides, b, start, T, PACKED, BLOCK_Q, BLOCK_K)
    dq = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
    for EDGE in tl.static_range(2):
        begin = first if EDGE else free
        stop = end - (diagonal - free) if EDGE else diagonal
        for step in range(begin, stop, BLOCK_K):
            at = step + tl.where(step >= free, diagonal - free, 0) if EDGE else step
            k = _load(K, at, T, k_strides[1], k_strides[3], BLOCK_K, D, WIDTH, EDGE)
            v = _load(V, at, T, v_strides[1], v_strides[3], BLOCK_K, D, WIDTH, EDGE)
            s = tl.dot(q, tl.trans(k), input_precision="ieee")  # (BLOCK_Q, BLOCK_K)
            p = tl.exp2(s * _scale(D) - lse)
            if EDGE:
                key = at + tl.arange(0, BLOCK_K)[None, :]
                p = tl.where(_visible(query, key, doc_start, PACKED), p, 0.0)
            ds = p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta)
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    _store(dQ + (b * T * H + h) * D, start, T, H * D, dq * D**-0.5, BLOCK_Q, D, WIDTH)


@jit
def _share(Lengths, length_stride, b, splits, BLOCK_S: constexpr):
    """Filled slots of row b, and how many of them a split takes: an even share in whole tiles."""
    length = tl.load(Lengths + b * length_stride).to(tl.int32)
    return length, tl.cdiv(tl.cdiv(length, BLOCK_S), splits) * BLOCK_S


@jit
def _decode(Q, K, V, Lengths, Out, Lse, q_strides, k_strides, v_strides, length_stride, H, G,
            splits, ROWS: constexpr, D: constexpr, WIDTH: constexpr, BLOCK_S: constexpr):
    """The G query heads of one key/value head against one split of the filled slots: out and lse
    over these slots alone.

    Q (B, H, D); K and V (B, K, S, D); Out (B, H, splits, D); Lse (B, H, splits).

    The heads are the rows of one tile, so a cached key is read once for all of them. A tensor core
    takes no fewer than 16 rows; those left empty are free, as decoding waits for memory and not for
    arithmetic.
    """
    b, h = _batch_and_head(H // G)
    split = tl.program_id(1)
    length, share = _share(Lengths, length_stride, b, splits, BLOCK_S)
    end = tl.minimum((split + 1) * share, length)
    if split * share >= end:
        return  # short rows fill fewer splits, and `_combine` reads no others
    K += b * k_strides[0] + h * k_strides[1]
    V += b * v_strides[0] + h * v_strides[1]
    q = _load(Q + b * q_strides[0], h * G, (h + 1) * G, q_strides[1], q_strides[2],
              ROWS, D, WIDTH, True)
    m = tl.full((ROWS,), -1e30, tl.float32)
    l = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for at in range(split * share, end, BLOCK_S):
        k = _load(K, at, end, k_strides[2], k_strides[3], BLOCK_S, D, WIDTH, True)
        s = tl.dot(q, tl.trans(k), input_precision="ieee")  # (ROWS, BLOCK_S)
        s = tl.where(at + tl.arange(0, BLOCK_S)[None, :] < end, s, -1e30)
        p, m, l, shrink = _online_softmax(s, m, l, D)
        v = _load(V, at, end, v_strides[2], v_strides[3], BLOCK_S, D, WIDTH, True)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    row = b * H + h * G
    head = tl.arange(0, ROWS)
    to_split = (row * splits + split) * D
    _store(Out + to_split, 0, G, splits * D, acc / l[:, None], ROWS, D, WIDTH)
    tl.store(Lse + (row + head) * splits + split, m + tl.log2(l), mask=head < G)


@jit
def _combine(Partial, Lse, Lengths, Out, length_stride, H, splits,
             SPLITS: constexpr, D: constexpr, WIDTH: constexpr, BLOCK_S: constexpr):
    """The splits of one query head into its output: split i weighs 2^lse_i / sum_j 2^lse_j."""
    b, h = _batch_and_head(H)
    length, share = _share(Lengths, length_stride, b, splits, BLOCK_S)
    row = b * H + h
    split = tl.arange(0, SPLITS)
    col = tl.arange(0, WIDTH)
    filled = tl.cdiv(length, share)
    lse = tl.load(Lse + row * splits + split, mask=split < filled, other=float("-inf"))
    weight = tl.exp2(lse - tl.max(lse, 0))
    part = _load(Partial + row * splits * D, 0, filled, D, 1, SPLITS, D, WIDTH, True)
    out = tl.sum(part * (weight / tl.sum(weight, 0))[:, None], 0)  # (WIDTH,)
    tl.store(Out + row * D + col, out.to(Out.dtype.element_ty), mask=col < D)


# Operators: torch.compile takes them whole and does not look inside


def _new(shape, like, dtype=None):
    """Uninitialised and contiguous, whatever the strides of `like`."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


@torch.library.custom_op("nanoreason::attention_forward", mutates_args=())
def attention_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, doc_start: Optional[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, T, H, D) and lse (B, H, T) float32."""
    B, T, H, D = q.shape
    packed = doc_start is not None
    doc_strides = doc_start.stride() if packed else None
    BLOCK_Q, BLOCK_K, options = tiles("forward", D, q.dtype)
    out = _new(q.shape, q)
    lse = _new((B, H, T), q, torch.float32)
    # Triton starts a kernel on the current device, wherever the tensors are
    with torch.cuda.device_of(q):
        _forward[B * H, triton.cdiv(T, BLOCK_Q)](
            q, k, v, doc_start, out, lse,
            q.stride(), k.stride(), v.stride(), doc_strides, T, H, H // k.size(2),
            packed, D, triton.next_power_of_2(D), BLOCK_Q, BLOCK_K, **options)
    return out, lse


@attention_forward.register_fake
def _(q, k, v, doc_start):
    B, T, H, _ = q.shape
    return _new(q.shape, q), _new((B, H, T), q, torch.float32)


@torch.library.custom_op("nanoreason::attention_backward", mutates_args=())
def attention_backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    doc_start: Optional[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq (B, T, H, D), dk and dv (B, T, K, D)."""
    B, T, H, D = q.shape
    K = k.size(2)
    WIDTH = triton.next_power_of_2(D)
    packed = doc_start is not None
    doc_strides = doc_start.stride() if packed else None
    doc_end = _document_ends(doc_start, T) if packed else None
    strides = q.stride(), k.stride(), v.stride(), grad_out.stride()
    dq = _new(q.shape, q)
    dk = _new(k.shape, k)
    dv = _new(v.shape, v)
    delta = _new(lse.shape, lse)
    with torch.cuda.device_of(q):
        _backward_delta[B * H, triton.cdiv(T, 64)](
            out, grad_out, delta, grad_out.stride(), T, H, D, WIDTH, 64, enable_fp_fusion=True)
        BLOCK_Q, BLOCK_K, options = tiles("dkdv", D, q.dtype)
        _backward_dkdv[B * K, triton.cdiv(T, BLOCK_K)](
            q, k, v, grad_out, doc_end, lse, delta, dk, dv, *strides, T, H, H // K,
            packed, D, WIDTH, BLOCK_Q, BLOCK_K, **options)
        BLOCK_Q, BLOCK_K, options = tiles("dq", D, q.dtype)
        _backward_dq[B * H, triton.cdiv(T, BLOCK_Q)](
            q, k, v, grad_out, doc_start, lse, delta, dq, *strides, doc_strides, T, H, H // K,
            packed, D, WIDTH, BLOCK_Q, BLOCK_K, **options)
    return dq, dk, dv


@attention_backward.register_fake
def _(grad_out, q, k, v, out, lse, doc_start):
    return _new(q.shape, q), _new(k.shape, k), _new(v.shape, v)


def _document_ends(doc_start, T):
    """(B, T) int32: where the document of token j ends, the first i with doc_start[i] > j."""
    j = torch.arange(T, dtype=doc_start.dtype, device=doc_start.device).repeat(len(doc_start), 1)
    return torch.searchsorted(doc_start.contiguous(), j, right=True, out_int32=True)


def _save(ctx, inputs, output):
    """Keep for the backward pass what it reads: q, k, v, out, lse and doc_start."""
    q, k, v, doc_start = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, doc_start)


def _gradients(ctx, grad_out, _):
    """Gradients of q, k and v; doc_start has none."""
    return (*attention_backward(grad_out, *ctx.saved_tensors), None)


attention_forward.register_autograd(_gradients, setup_context=_save)


def fused_attention(q, k, v, doc_start=None):
    """`attention` by the kernels above, differentiable once.

    q: (B, T, H, D), D even, 16 to 128; k, v: (B, T, K, D), H a multiple of K; any strides.
    doc_start: (B, T) int or None; it never falls along a row and is at most the token's own index.
    bfloat16 and float16 use tensor cores and sum in float32; float32 is not rounded to TF32.
    Returns (B, T, H, D) in q's dtype. Raises ValueError for arguments that do not fit this or each
    other.
    """
    B, T, _, D = q.shape
    K = k.size(2)
    _check(q, k, v, (B, T, K, D), K)
    if doc_start is not None and doc_start.shape != q.shape[:2]:
        raise ValueError(f"doc_start {tuple(doc_start.shape)} does not fit q {tuple(q.shape)}")
    return attention_forward(q, k, v, doc_start)[0]


def decode_splits(programs, S, device):
    """Into how many splits a row of S slots is cut, so that each multiprocessor of the GPU gets
    about two programs.

    It follows from shapes alone: lengths are on the GPU, and to read them would stop the host and
    rule out CUDA graphs.
    """
    processors = 8
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(2 * processors // programs, S // 64, 128))


@torch.library.custom_op("nanoreason::decode_attention", mutates_args=())
def _decode_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """`decode_attention` after its checks."""
    B, H, D = q.shape
    _, K, S, _ = k.shape
    G = H // K
    WIDTH = triton.next_power_of_2(D)
    splits = decode_splits(B * K, S, q.device)
    ROWS, BLOCK_S, options = tiles("decode", D, q.dtype)
    out = _new(q.shape, q)
    lse = _new((B, H, splits), q, torch.float32)
    partial = _new((B, H, splits, D), q, torch.float32) if splits > 1 else out
    with torch.cuda.device_of(q):
        _decode[B * K, splits](
            q, k, v, lengths, partial, lse,
            q.stride(), k.stride(), v.stride(), lengths.stride(0), H, G, splits,
            max(ROWS, triton.next_power_of_2(G)), D, WIDTH, BLOCK_S, **options)
        if splits > 1:
            _combine[(B * H,)](
                partial, lse, lengths, out, lengths.stride(0), H, splits,
                triton.next_power_of_2(splits), D, WIDTH, BLOCK_S, enable_fp_fusion=True)
    return out


@_decode_attention.register_fake
def _(q, k, v, lengths):
    return _new(q.shape, q)


def decode_attention(q, k, v, lengths):
    """One new token per row against the filled slots of a cache of fixed size; not differentiable.

    q: (B, H, D); k, v: (B, K, S, D), any strides; lengths: (B,) int, filled slots of each row, that
    of the new token included: 1 to S. What the other slots hold is never read. Returns (B, H, D).
    Raises ValueError as `fused_attention` does.

    A row has one program per key/value head, a GPU has a hundred multiprocessors or more: so the
    slots, too, are split among programs, and a second kernel joins the splits (flash decoding: Dao,
    Haziza, Massa, Sizov, pytorch.org/blog/flash-decoding, 2023).
    """
    B, _, D = q.shape
    K = k.size(1)
    S = k.size(2)
    _check(q, k, v, (B, K, S, D), K)
    if lengths.shape != q.shape[:1]:
        raise ValueError(f"lengths {tuple(lengths.shape)} do not fit q {tuple(q.shape)}")
    return _decode_attention(q, k, v, lengths)


def _row_span(x):
    """Distance in elements between the first and the last element of a row of the batch."""
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:]))


def _check(q, k, v, shape, K):
    """Raise ValueError unless the kernels can take q (..., H, D) with k and v of this shape."""
    if not (q.dtype == k.dtype == v.dtype and q.dtype in DTYPES):
        raise ValueError(
            "q, k and v must share one dtype of float32, bfloat16 and float16, "
            f"not {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if q.size(-1) not in HEAD_DIMS:
        raise ValueError(
            f"head dim {q.size(-1)} is not an even number from {HEAD_DIMS[0]} to {HEAD_DIMS[-1]}"
        )
    if k.shape != shape or v.shape != shape or q.size(-2) % K:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit each other"
        )
    if any(_row_span(x) >= 2**31 for x in (q, k, v)):
        raise ValueError("one row of the batch spans 2^31 elements or more")

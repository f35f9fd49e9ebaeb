"""Attention against a float64 loop; the network against itself: packed, selected, cached."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny

from nanoreason.attention import (
    Documents,
    attention,
    by_document,
    cached_attention,
    document_mask,
    masked_attention,
    matmul_attention,
    visible_slots,
)
from nanoreason.data import Example, pack
from nanoreason.generate import make_sampler
from nanoreason.machine import generator, Machine
from nanoreason.model import (
    GPT,
    PRESETS,
    GPTConfig,
    KVCache,
    NormRope,
    RMSNorm,
    apply_rope,
    cache_memory,
    memory_line,
    rl_memory,
    rope_tables,
    training_flops,
    training_memory,
)


def naive_attention(q, k, v, doc_start):
    """softmax(q k / sqrt(D)) v in float64, one query at a time."""
    q, k, v = (x.double() for x in (q, k, v))
    B, T, H, D = q.shape
    share = H // k.size(2)
    out = torch.zeros_like(q)
    for b in range(B):
        for t in range(T):
            first = 0 if doc_start is None else int(doc_start[b, t])
            for h in range(H):
                keys = k[b, first : t + 1, h // share]  # (n, D)
                values = v[b, first : t + 1, h // share]
                out[b, t, h] = torch.softmax(keys @ q[b, t, h] / math.sqrt(D), 0) @ values
    return out


def random_qkv(T, K, H=4, D=8, B=2, seed=0):
    noise = generator(seed, "qkv")
    return [torch.randn(B, T, heads, D, generator=noise) * 2 for heads in (H, K, K)]


def random_doc_start(B, T, seed=0):
    starts = torch.rand(B, T, generator=generator(seed, "documents")) < 0.15
    starts[:, 0] = True
    return torch.where(starts, torch.arange(T), 0).cummax(1).values.int()


@pytest.mark.parametrize("path", [attention, matmul_attention])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_attention_matches_a_float64_loop(path, packed, K):
    for T in (1, 2, 37):
        q, k, v = random_qkv(T, K)
        doc_start = random_doc_start(2, T) if packed else None
        wanted = naive_attention(q, k, v, doc_start)
        assert torch.allclose(path(q, k, v, doc_start).double(), wanted, atol=2e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("T", [256, 257, 300])
def test_long_and_short_rows_agree_between_both_paths(T, packed):
    q, k, v = random_qkv(T, K=2, B=1)
    doc_start = random_doc_start(1, T) if packed else None
    a = attention(q, k, v, doc_start)
    b = matmul_attention(q, k, v, doc_start)
    assert torch.allclose(a, b, atol=1e-5)
    for t in (0, 1, 100, 255, T - 1):  # the naive loop on a few queries only
        first = 0 if doc_start is None else int(doc_start[0, t])
        if t - first < 60:
            document = (x[:, first : t + 1] for x in (q, k, v))
            exact = naive_attention(*document, None)[:, -1]
            assert torch.allclose(a[:, t].double(), exact, atol=2e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_attention_is_close_and_its_gradients_match_float32(packed):
    q, k, v = (x.requires_grad_() for x in random_qkv(40, K=2))
    doc_start = random_doc_start(2, 40) if packed else None
    weight = torch.randn(2, 40, 4, 8, generator=generator(0, "weight"))
    exact = attention(q, k, v, doc_start)
    wanted = torch.autograd.grad((exact * weight).sum(), (q, k, v))
    out = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), doc_start)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).norm() < 0.02 * exact.norm()
    gradients = torch.autograd.grad((out.float() * weight).sum(), (q, k, v))
    for got, want in zip(gradients, wanted):
        assert (got - want).norm() < 0.03 * want.norm()


def test_attention_gradients_match_finite_differences():
    q, k, v = (x.double().requires_grad_() for x in random_qkv(5, K=1, H=2, D=4, B=1))
    doc_start = torch.tensor([[0, 0, 2, 2, 2]], dtype=torch.int32)
    for path in (attention, matmul_attention):
        assert torch.autograd.gradcheck(lambda q, k, v: path(q, k, v, doc_start), (q, k, v))


def test_the_document_mask_of_the_worked_example():
    mask = document_mask(torch.tensor([[0, 0, 0, 3, 3, 5]]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("K", [1, 2, 4])
def test_cached_attention_is_the_last_row_of_attention_over_what_is_visible(K):
    q, k, v = random_qkv(20, K, B=3)
    lengths = [20, 7, 1]
    last = torch.stack([q[b, n - 1] for b, n in enumerate(lengths)])
    k_cache, v_cache = (x.transpose(1, 2).contiguous() for x in (k, v))
    filled = torch.tensor(lengths)
    out = cached_attention(last, k_cache, v_cache, filled, visible_slots(filled, 20, last))
    for b, n in enumerate(lengths):
        row = (x[b : b + 1, :n] for x in (q, k, v))
        assert torch.allclose(out[b].double(), naive_attention(*row, None)[0, -1], atol=2e-6)


def test_heads_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError):
        attention(*random_qkv(4, K=3))
    for wrong in (dict(n_head=4, n_kv_head=3), dict(head_dim=7)):
        with pytest.raises(ValueError):
            GPTConfig(**wrong)


# The network


def random_ids(B, T, seed=0):
    return torch.randint(0, 506, (B, T), generator=generator(seed, "ids"))


def test_the_future_does_not_change_the_past(tiny):
    ids = random_ids(1, 20)
    changed = ids.clone()
    changed[0, 12:] = random_ids(1, 8, seed=1)
    a = tiny(ids)
    b = tiny(changed)
    assert torch.allclose(a[:, :12], b[:, :12], atol=1e-5)
    assert (a[:, 12] - b[:, 12]).abs().max() > 0.1


@pytest.mark.parametrize("T", [64, 160])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_a_packed_row_equals_its_documents_in_rows_of_their_own(K, T):
    """By a mask in short rows, in groups of documents of similar length in long ones.

    Sums in another order: 5e-5 on logits up to 10.
    """
    model = make_tiny(n_kv_head=K, max_len=256)
    lengths = (5, 17, 1, 30, 9, 24, 2, 11, 43, 40)
    examples = [Example(random_ids(1, n, seed=n)[0].tolist(), 0) for n in lengths]
    rows = pack(examples, T)
    tokens, _, doc_start = rows.batch(slice(None), "cpu")
    assert isinstance(by_document(doc_start), Documents) == (T > 128)
    logits = model(tokens, doc_start)
    for index, example in enumerate(examples):
        alone = model(torch.tensor([example.ids]))[0]
        packed = logits[torch.from_numpy(rows.owner == index)]
        assert torch.allclose(packed, alone, atol=5e-5)


def test_forward_with_select_is_indexing(tiny):
    ids = random_ids(3, 10)
    select = torch.tensor([29, 0, 10, 11, 11])
    assert torch.allclose(tiny(ids, select=select), tiny(ids).flatten(0, 1)[select], atol=1e-6)


def test_more_tokens_than_the_context_are_an_error(tiny):
    tiny(random_ids(1, tiny.config.max_len))
    with pytest.raises(ValueError):
        tiny(random_ids(1, tiny.config.max_len + 1))


def test_rope_sees_only_differences_of_positions():
    config = GPTConfig(head_dim=16)
    q, k = torch.randn(2, 1, 16, generator=generator(0, "rope"), dtype=torch.float64)

    def turned(x, position):
        return apply_rope(x, *rope_tables(config, torch.tensor(position)))

    def score(i, j):
        return (turned(q, i) * turned(k, j)).sum().item()

    for i, j in ((5, 2), (9, 0), (3, 3)):
        for shift in (1, 17, 300):
            assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=1e-4)
    assert abs(score(5, 2) - score(5, 4)) > 1e-2
    assert score(3, 3) == pytest.approx((q * k).sum().item(), abs=1e-6)


def test_rope_rotates_by_position_times_frequency():
    """The pair (i, i + D/2) at position p turns by p theta^(-2i/D), as complex numbers do."""
    config = GPTConfig(head_dim=8, rope_theta=50.0)
    x = torch.randn(3, 1, 8, generator=generator(0, "x"), dtype=torch.float64)
    out = apply_rope(x, *rope_tables(config, torch.tensor([0, 1, 7])))
    z = torch.complex(x[..., :4], x[..., 4:])
    for row, position in enumerate((0, 1, 7)):
        angles = [position * 50.0 ** (-2 * i / 8) for i in range(4)]
        turn = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles])
        turned = (z[row, 0] * turn).to(torch.complex128)
        assert torch.allclose(torch.complex(out[row, 0, :4], out[row, 0, 4:]), turned, atol=1e-5)


def test_presets_have_the_parameters_they_are_known_by():
    known = dict(nano=0.2, micro=1.0, mini=2.7, small=9.5, base=124, large=365)
    for name, millions in known.items():
        c = PRESETS[name]
        with torch.device("meta"):
            model = GPT(c)
        heads_in = c.n_head + 2 * c.n_kv_head
        projections = c.n_embd * heads_in * c.head_dim + c.n_head * c.head_dim * c.n_embd
        norms = 2 * c.n_embd + 2 * c.head_dim
        block = projections + 3 * c.n_embd * c.d_ff + norms
        count = c.vocab_size * c.n_embd + c.n_layer * block + c.n_embd
        assert model.num_params == count
        assert count / 1e6 == pytest.approx(millions, rel=0.1 if millions < 1 else 0.06)
        assert model.flops_per_token() == 2 * count


def test_an_untied_head_counts_once_more_and_its_embedding_costs_no_flops():
    tied = make_tiny()
    untied = make_tiny(tie_embeddings=False)
    assert untied.num_params == tied.num_params + 512 * 32
    assert untied.flops_per_token() == tied.flops_per_token()


def test_initial_weights_are_seeded_and_start_near_the_uniform_loss():
    def made(seed):
        return GPT(PRESETS["nano"]).init_weights(generator(seed, "weights"))

    a, b, c = (made(seed) for seed in (0, 0, 1))
    assert torch.equal(a.embed.weight, b.embed.weight)
    assert not torch.equal(a.embed.weight, c.embed.weight)
    ids = random_ids(4, 64)
    loss = F.cross_entropy(a(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


# The cache


def ragged(lengths, total):
    """Rows of `total` ids each, and their first lengths[i] ids as right-padded prompts.

    The padding is nonsense, not zeros.
    """
    ids = random_ids(len(lengths), total, seed=3)
    prompts = random_ids(len(lengths), max(lengths), seed=4)
    for row, n in enumerate(lengths):
        prompts[row, :n] = ids[row, :n]
    return ids, prompts


@pytest.mark.parametrize("K", [1, 2, 4])
@torch.inference_mode()
def test_prefill_and_decode_equal_the_full_forward_for_ragged_prompts(K):
    model = make_tiny(n_kv_head=K)
    lengths = [3, 11, 1, 7]
    ids, prompts = ragged(lengths, 40)
    full = model(ids)  # (4, 40, V)
    cache = KVCache(model.config, 4, 40)
    logits = model.prefill(prompts, torch.tensor(lengths), cache)
    for step in range(25):
        for row, n in enumerate(lengths):
            assert torch.allclose(logits[row], full[row, n + step - 1], atol=1e-5)
        newest = torch.stack([ids[row, n + step] for row, n in enumerate(lengths)])
        logits = model.decode(newest, cache)
    assert cache.lengths.tolist() == [n + 25 for n in lengths]


@torch.inference_mode()
def test_the_cache_stays_right_when_it_grows_and_rows_repeat_leave_and_swap(tiny):
    lengths = [3, 11, 1, 7]
    ids, prompts = ragged(lengths, 60)
    full = tiny(ids)
    who = [0, 1, 2, 3]  # the row of ids that each row of the cache holds
    at = list(lengths)  # and how much of it
    cache = KVCache(tiny.config, 4, 11)
    logits = tiny.prefill(prompts, torch.tensor(lengths), cache)
    for step in range(30):
        for b, row in enumerate(who):
            assert torch.allclose(logits[b], full[row, at[b] - 1], atol=1e-5), (step, row)
        keep = {4: [3, 0, 0, 2, 1], 9: [4, 1, 3], 15: [2, 0], 22: [0]}.get(step)
        if keep:
            cache.select(torch.tensor(keep))
            who = [who[b] for b in keep]
            at = [at[b] for b in keep]
        if max(at) + 1 > cache.slots:
            before = cache.keys[1][:, :, : cache.slots].clone()
            cache.grow(cache.slots + 3)
            assert torch.equal(cache.keys[1][:, :, : before.size(2)], before)
        newest = torch.tensor([int(ids[row, n]) for row, n in zip(who, at)])
        logits = tiny.decode(newest, cache)
        at = [n + 1 for n in at]


@torch.inference_mode()
def test_a_full_cache_is_an_error_and_not_an_overwrite(tiny):
    cache = KVCache(tiny.config, 1, 4)
    tiny.prefill(random_ids(1, 4), torch.tensor([4]), cache)
    with pytest.raises(IndexError):
        tiny.decode(torch.tensor([1]), cache)
    cache.grow(2)
    assert cache.slots == 4  # growing never shrinks


# Accounts


def stored_bytes(config, B, T, bf16, recompute):
    """What autograd keeps for the backward pass of the trunk, each storage once.

    The weights and their bfloat16 copies are left out.
    """
    model = GPT(config)
    model.checkpoint_activations = recompute
    kept = {}
    weights = {p.numel() for p in model.parameters()}

    def keep(x):
        storage = x.untyped_storage()
        is_weight = x.requires_grad and x.is_leaf
        if not is_weight and storage.nbytes() // x.element_size() not in weights:
            kept[storage.data_ptr()] = (storage, storage.nbytes())
        return x

    watch = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), watch:
        model.trunk(random_ids(B, T), torch.zeros(B, T, dtype=torch.int32))
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("size", ["micro", "mini"])
def test_estimated_activations_are_near_what_autograd_stores(size, bf16):
    config = PRESETS[size]
    B = 8
    T = 128
    all_blocks = training_memory(config, B * T, T, bf16, dense=bf16)["activations"]
    for recompute in (False, True):
        estimate = training_memory(config, B * T, T, bf16, recompute, dense=bf16)["activations"]
        stored = stored_bytes(config, B, T, bf16, recompute)
        if recompute:
            # while a block is recomputed it is stored in full, which the hooks above do not see
            estimate -= all_blocks / config.n_layer
        assert estimate == pytest.approx(stored, rel=0.2), (stored, estimate)


def test_recomputed_blocks_give_the_same_gradients(tiny):
    grads = []
    for recompute in (False, True):
        tiny.zero_grad()
        tiny.checkpoint_activations = recompute
        tiny.train()(random_ids(2, 20), random_doc_start(2, 20)).square().mean().backward()
        grads.append([p.grad.clone() for p in tiny.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_flops_and_memory_are_counted_as_by_hand():
    c = GPTConfig(
        n_layer=2, n_head=4, n_kv_head=2, n_embd=8, head_dim=4, d_ff=16, vocab_size=10,
        max_len=64, tie_embeddings=False,
    )
    matrices = 2 * (8 * (4 + 4) * 4 + 16 * 8 + 3 * 8 * 16)
    norms = 2 * (8 + 8 + 4 + 4) + 8
    P = matrices + norms + 2 * 80
    assert GPT(c).num_params == P
    dense = 2 * (P - 80)  # a forward pass of one token: the embedding is looked up, not multiplied
    flops = training_flops(c, 100, 64)
    assert flops == 3 * 100 * (dense + 2 * 2 * 4 * 4 * 64)
    assert training_flops(c, 100, 64, recompute=True) * 3 == flops * 4
    muon = training_memory(c, 100, 64, bf16=False, muon=True)
    adam = training_memory(c, 100, 64, bf16=False)
    assert adam["weights"] == adam["gradients"] == 4 * P
    assert adam["optimizer"] == 8 * P
    assert adam["optimizer"] - muon["optimizer"] == 4 * matrices
    one_layers_keys = KVCache(c, 3, 64, dtype=torch.bfloat16).keys[0].nbytes
    assert cache_memory(c, 3, 64, bf16=True) == one_layers_keys * 2 * 2


def held(tensors):
    """Bytes of these tensors, each storage once: a tied head is its embedding."""
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_memory_of_reinforcement_learning_is_that_of_its_cache_and_copies(
    tied, bf16, reference
):
    model = make_tiny(tie_embeddings=tied, max_len=96)
    copies = [make_sampler(model, bf16)] + [copy.deepcopy(model)] * reference
    dtype = torch.bfloat16 if bf16 else torch.float32
    # no response outgrows the context
    for rows, slots, kept in ((3, 50, 50), (7, 96, 96), (2, 300, 96)):
        cache = KVCache(model.config, rows, kept, dtype=dtype)
        parts = rl_memory(model.config, rows, slots, bf16, reference)
        assert parts["cache"] == held(cache.keys + cache.values)
        assert parts["copies"] == sum(held(net.parameters()) for net in copies)
        assert set(parts) == {"cache", "copies"}


def test_the_line_of_memory_says_whether_it_fits(monkeypatch):
    machine = Machine(torch.device("cpu"))
    for have, verdict in ((4 * 2**30, ": fits"), (2 * 2**30, "DOES NOT FIT")):
        monkeypatch.setattr(Machine, "memory", have)
        line = memory_line(dict(weights=2**30, cache=2**30), machine)
        assert verdict in line
        assert "weights 1.00 + cache 1.00 = 2.00 GiB; cpu has" in line
    monkeypatch.undo()
    assert 2**28 < machine.memory < 2**44


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
def test_grouped_attention_is_masked_attention_forward_and_backward(dtype, close):
    """Documents of 1 to 100 tokens in rows of 300, against one dense mask in float32."""
    lengths = [1, 1, 40, 33, 100, 64, 2, 59, 17, 90, 1, 65, 32, 31, 64]
    starts = torch.cat((torch.zeros(1, dtype=torch.long), torch.tensor(lengths).cumsum(0)))
    doc_start = torch.cat([torch.full((n,), int(s)) for n, s in zip(lengths, starts)]).view(2, 300)
    doc_start = (doc_start - torch.tensor([[0], [300]])).int()
    assert (doc_start[1, 0], doc_start[0, 299]) == (0, 241)
    noise = generator(0, "grouped")
    q, k, v, grad = (torch.randn(2, 300, heads, 8, generator=noise) for heads in (4, 2, 2, 4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = masked_attention(*leaves, doc_start)
    wanted = [wanted.detach(), *torch.autograd.grad(wanted, leaves, grad)]
    halves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    documents = by_document(doc_start, dtype)
    got = attention(*halves, documents)
    got = [got.detach(), *torch.autograd.grad(got, halves, grad.to(dtype))]
    assert isinstance(documents, Documents)
    assert len(documents.shapes) == 4
    assert all(torch.allclose(a.float(), b, atol=close) for a, b in zip(got, wanted))


def test_documents_that_begin_alike_are_as_in_the_docstring():
    prefix = torch.tensor([0, 0]), torch.tensor([1, 1])
    documents = Documents(torch.tensor([1, 2]), torch.tensor([1, 2]), 4, prefix)
    assert documents.order.tolist() == [0, 1, 1, 0, 2, 3]
    assert documents.shapes == [(2, 3)]
    assert documents.place.tolist() == [0, 1, 4, 5]
    assert documents.spare.tolist() == [2, 3]
    x = torch.tensor([[10, 11, 12, 13]])  # (1, 4)
    (group,) = documents.split(x)
    assert group.tolist() == [[10, 11, 11], [10, 12, 13]]
    assert documents.join([group]).tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 6, 8)])
def test_the_norms_own_backward_is_autograds_in_float64(shape):
    noise = generator(0, "norm")
    x = torch.randn(shape, generator=noise, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], generator=noise, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, generator=noise, dtype=torch.float64)
    norm = RMSNorm(shape[-1])
    norm.weight = torch.nn.Parameter(weight.detach().clone())
    y = x.detach().clone().requires_grad_()
    ours = norm(y)
    theirs = F.rms_norm(x, shape[-1:], weight, eps=1e-6)
    got = torch.autograd.grad(ours, (y, norm.weight), grad)
    wanted = torch.autograd.grad(theirs, (x, weight), grad)
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, wanted))


def test_queries_and_keys_turned_in_one_step_have_autograds_gradient_in_float64():
    config = GPTConfig(head_dim=8)
    noise = generator(0, "turn")
    shapes = ((2, 5, 3, 8), (3, 8), (2, 5, 3, 8))
    x, weight, grad = (torch.randn(s, generator=noise, dtype=torch.float64) for s in shapes)
    rope = rope_tables(config, torch.arange(5), torch.float64)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    got = torch.autograd.grad(NormRope.apply(*leaves, *rope), leaves, grad)
    plain = apply_rope(F.rms_norm(x, (8,), eps=1e-6) * weight, *rope)
    wanted = torch.autograd.grad(plain, leaves, grad)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, wanted))

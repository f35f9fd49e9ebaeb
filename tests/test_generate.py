"""The rollout engine against full forward passes, one response at a time."""

import os
import re
from pathlib import Path

import pytest
import torch
from conftest import END, PAD, make_stopping, make_tiny, tokenizer, toy_tokenizer

from torch.utils._python_dispatch import TorchDispatchMode

from nanoreason.machine import generator
from nanoreason.generate import (
    Decoding, GraphDecoding, Rollout, finished_rollout, generate, join_rollouts, make_sampler,
    pad_prompts, refresh_sampler, sample_token, turns, uniform_numbers,
)
from nanoreason.model import BUSY, GPT, GPTConfig, KVCache


def ragged_prompts(P=5, seed=0):
    noise = generator(seed, "prompts")
    return [torch.randint(0, 506, (n,), generator=noise).tolist() for n in (3, 17, 1, 9, 6)[:P]]


@torch.inference_mode()
def full_logits(model, prompt, response):
    """(L, V) logits that predict each token of the response, from one forward pass without a
    cache."""
    return model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1].float()


@pytest.mark.parametrize("temperature, bias", [(0.5, 2.5), (1.0, 4.5), (1.7, 7.0)])
def test_logprobs_equal_a_full_forward_at_the_sampling_temperature_while_rows_leave(
    temperature, bias
):
    stopping = make_stopping(bias)
    prompts = ragged_prompts()
    G = 6
    rollout = generate(stopping, prompts, G, 40, temperature, generator(1, "sample"))
    assert rollout.ids.shape == rollout.mask.shape == rollout.logprobs.shape
    assert len(rollout.ids) == len(prompts) * G
    assert len(set(rollout.lengths.tolist())) > 4  # responses of many lengths, so rows did leave
    for row in range(len(rollout.ids)):
        response = rollout.response(row)
        logits = full_logits(stopping, prompts[row // G], response)
        expected = (logits / temperature).log_softmax(-1)
        expected = expected.gather(1, torch.tensor(response)[:, None]).squeeze(1)
        assert torch.allclose(rollout.logprobs[row, : len(response)], expected, atol=2e-5), row


@pytest.mark.parametrize("decoding", [Decoding, GraphDecoding])
@pytest.mark.parametrize("tokenizer", [tokenizer, toy_tokenizer()])
def test_the_mask_ends_with_the_tokenizers_stop_token_and_its_padding_follows(
    tokenizer, decoding, monkeypatch
):
    monkeypatch.setattr("nanoreason.generate.Decoding", decoding)
    monkeypatch.setattr("nanoreason.generate.RecordedStep", lambda step: step)
    model = make_stopping(bias=5.0, tokenizer=tokenizer)
    prompts = [[i % tokenizer.vocab_size for i in prompt] for prompt in ragged_prompts()]
    rollout = generate(model, prompts, 12, 14, 1.0, generator(3, "sample"))
    assert rollout.ended.any() and not rollout.ended.all()
    width = rollout.ids.size(1)
    for row in range(len(rollout.ids)):
        response = rollout.response(row)
        n = int(rollout.lengths[row])
        assert rollout.mask[row].tolist() == [True] * n + [False] * (width - n)
        assert response.count(tokenizer.end) == rollout.ended[row]
        assert (response[-1] == tokenizer.end) == rollout.ended[row]
        assert n == width == 14 or rollout.ended[row]
        assert (rollout.ids[row, n:] == tokenizer.pad).all()
        assert (rollout.logprobs[row, n:] == 0).all()
        assert (rollout.logprobs[row, :n] < 0).all()


def test_greedy_is_the_argmax_of_full_forward_passes_row_by_row():
    for seed in (0, 1):
        model = make_stopping(bias=2.5, seed=seed)
        prompts = ragged_prompts(seed=seed)
        rollout = generate(model, prompts, 2, 12, temperature=0.0)
        for row in range(len(rollout.ids)):
            expected = []
            while len(expected) < 12 and END not in expected:
                logits = full_logits(model, prompts[row // 2], expected + [0])
                expected.append(int(logits[-1].argmax()))
            # prompt-major: row p * 2 + g belongs to prompt p
            assert rollout.response(row) == expected
        assert len({tuple(rollout.response(2 * p)) for p in range(5)}) > 1


def test_rows_are_prompt_major_when_sampling():
    """A model whose next token is a function of the last: every response has to begin after its
    own prompt's last token."""
    model = make_tiny(n_layer=1)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.out.weight.zero_()
            block.mlp.down.weight.zero_()
        model.norm.weight.fill_(1.0)
        model.embed.weight.zero_()
        model.head = torch.nn.Linear(32, 512, bias=False)
        model.head.weight.zero_()
        for i in range(8):  # token i is followed by token i + 8, token i + 8 by the stop
            model.embed.weight[i, i] = 1.0
            model.embed.weight[i + 8, 8 + i] = 1.0
            model.head.weight[i + 8, i] = 20.0
            model.head.weight[END, 8 + i] = 20.0
    prompts = [[7, 5, 3], [4], [0, 1], [6], [3, 3, 3, 3]]
    rollout = generate(model, prompts, 3, 10, 1.0, generator(0, "s"), max_rows=6)
    expected = [[prompt[-1] + 8, END] for prompt in prompts for _ in range(3)]
    assert [rollout.response(row) for row in range(15)] == expected


def test_serving_prompts_in_turns_changes_no_greedy_answer_and_no_shape():
    model = make_stopping(bias=2.5)
    prompts = ragged_prompts()
    whole = generate(model, prompts, 2, 12, temperature=0.0)
    turns = generate(model, prompts, 2, 12, temperature=0.0, max_rows=4)
    assert torch.equal(whole.ids, turns.ids)
    assert torch.equal(whole.mask, turns.mask)
    assert torch.equal(whole.ended, turns.ended)
    assert torch.allclose(whole.logprobs, turns.logprobs, atol=1e-5)
    model = make_stopping(bias=6.5)
    sampled = generate(model, prompts, 2, 12, 1.0, generator(0, "s"), max_rows=2)
    responses = [sampled.response(row) for row in range(10)]  # turns of different lengths
    assert (sampled.mask.sum(1) == torch.tensor([len(response) for response in responses])).all()
    assert all((END in response) == ended for response, ended in zip(responses, sampled.ended))
    assert not any(PAD in response for response in responses)


def test_a_padding_token_that_was_sampled_is_part_of_the_response():
    model = make_stopping(bias=0.0)
    model.head.bias.data[PAD] = 50.0
    rollout = generate(model, [[1, 2]], 2, 6, 1.0, generator(0, "s"))
    assert rollout.ids.tolist() == [[PAD] * 6] * 2
    assert rollout.mask.all() and not rollout.ended.any()


def test_the_same_seed_gives_the_same_rollout_and_another_seed_another(stopping):
    a, b, c = (
        generate(stopping, ragged_prompts(), 4, 20, 1.0, generator(seed, "sample"))
        for seed in (0, 0, 1)
    )
    assert torch.equal(a.ids, b.ids) and torch.equal(a.logprobs, b.logprobs)
    assert a.ids.tolist() != c.ids.tolist()
    assert len({tuple(a.response(row)) for row in range(4, 8)}) > 1  # samples of a prompt differ


# One token


def test_the_worked_example_of_sample_token():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    ids, logprobs = sample_token(
        logits, 1.0, torch.tensor([0.1, 0.6, 0.9]), branch=torch.tensor([0, 0, 0])
    )
    assert ids.tolist() == [0, 1, 2]
    assert torch.allclose(logprobs, logits[0])


def test_sampled_tokens_are_distributed_like_the_softmax():
    N = 200_000
    V = 12
    logits = torch.randn(V, generator=generator(0, "logits")) * 2
    logits[3] = float("-inf")
    for temperature in (0.6, 1.0, 2.0):
        uniform = uniform_numbers((N,), generator(1, "noise"))
        ids, logprobs = sample_token(logits.expand(N, V), temperature, uniform)
        p = (logits.double() / temperature).softmax(0)
        seen = torch.bincount(ids, minlength=V).double()
        some = p > 0
        chi_square = ((seen - N * p)[some] ** 2 / (N * p)[some]).sum().item()
        # the 99.9% point at 11 degrees of freedom; a wrong temperature gives thousands
        assert seen[3] == 0 and chi_square < 31.3
        assert torch.allclose(logprobs.double(), p.log()[ids], atol=1e-5)


def test_rows_draw_independent_noise_and_their_own_distribution():
    logits = torch.zeros(50_000, 4)
    logits[::2, 0] = 3.0  # even rows prefer token 0, odd rows do not
    ids, _ = sample_token(logits, 1.0, uniform_numbers((50_000,), generator(0, "noise")))
    weight = torch.tensor(3.0).exp()
    share = weight / (weight + 3)
    assert (ids[::2] == 0).float().mean().item() == pytest.approx(share.item(), abs=0.01)
    assert (ids[1::2] == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    pairs = (ids[1::2][:-1] == 0) & (ids[1::2][1:] == 0)
    assert pairs.float().mean().item() == pytest.approx(1 / 16, abs=0.006)


def test_temperature_zero_is_argmax_with_the_logprob_of_temperature_one():
    logits = torch.randn(6, 20, generator=generator(0, "logits"))
    ids, logprobs = sample_token(logits, 0.0, None)
    assert torch.equal(ids, logits.argmax(1))
    assert torch.allclose(logprobs, logits.log_softmax(1).max(1).values)


def test_other_stop_tokens_end_a_response_where_they_are_asked_for():
    toy = toy_tokenizer()
    model = make_stopping(bias=0.0, tokenizer=toy)
    model.head.bias.data[toy.newline] = 5.0
    prompt = toy.render_prompt("so")
    rollout = generate(
        model, [prompt], 20, 14, 1.0, generator(3, "sample"), stop=(toy.newline, toy.end)
    )
    responses = [rollout.response(row) for row in range(20)]
    assert rollout.ended.any() and any(response[-1] == toy.newline for response in responses)
    assert not any(toy.newline in response[:-1] for response in responses)
    assert (rollout.ids[~rollout.mask] == toy.pad).all()


# Limits, progress, and what a response depends on


def test_responses_stop_at_the_context_and_prompts_that_leave_no_room_are_errors(tiny):
    full = list(range(100, 100 + tiny.config.max_len))
    rollout = generate(tiny, [full[:-3]], 2, 50, 1.0, generator(0, "s"))
    assert rollout.ids.size(1) <= 3 and not rollout.ended.any()
    assert generate(tiny, [full[:-1]], 1, 50, 1.0, generator(0, "s")).ids.size(1) == 1
    for prompts in ([full], [[1], full], [[]], [[1], []]):
        with pytest.raises(ValueError):
            generate(tiny, prompts, 1, 10, 1.0, generator(0, "s"))
    with pytest.raises(ValueError, match="generator"):
        generate(tiny, [[1]], 1, 10, 1.0)


def test_progress_counts_every_row_once(stopping):
    counts = []
    generate(
        stopping, ragged_prompts(), 4, 15, 1.0, generator(0, "s"), max_rows=8,
        on_progress=counts.append,
    )
    assert sum(counts) == 20 and min(counts) > 0


def test_a_response_depends_on_its_own_random_numbers_and_not_on_who_shares_its_batch():
    model = make_stopping(bias=4.5)
    prompts = ragged_prompts()
    G = 4
    uniform = uniform_numbers((len(prompts) * G, 30), generator(0, "sample"))
    whole = generate(model, prompts, G, 30, 1.0, uniform=uniform)
    for p in (0, 1, 4):  # alone, as on a rank of its own
        rows = slice(p * G, (p + 1) * G)
        alone = generate(model, prompts[p : p + 1], G, 30, 1.0, uniform=uniform[rows])
        expected = [whole.response(p * G + g) for g in range(G)]
        assert [alone.response(g) for g in range(G)] == expected
    turns = generate(model, prompts, G, 30, 1.0, uniform=uniform, max_rows=8)
    assert torch.equal(turns.ids, whole.ids)
    assert len(set(whole.lengths.tolist())) > 4
    # a generator makes the same numbers
    seeded = generate(model, prompts, G, 30, 1.0, generator(0, "sample"))
    assert torch.equal(seeded.ids, whole.ids)


# Memory


def test_the_worked_example_of_turns():
    assert turns(["a", "b", "c"], 2, 4) == [(["a", "b"], 2), (["c"], 2)]
    assert turns(["a", "b"], 5, 4) == [(["a"], 4), (["a"], 1), (["b"], 4), (["b"], 1)]
    assert turns(["a"], 4, 4) == [(["a"], 4)]


@pytest.mark.parametrize("shape", [(3, 5), (40, 6000), (2, 700_001)])
def test_the_next_random_numbers_do_not_depend_on_how_many_are_drawn_at_once(shape):
    N, L = shape
    whole = torch.rand(shape, generator=generator(0, "x"))
    for keep in (1, L // 2, L, L + 1):
        kept = uniform_numbers(shape, generator(0, "x"), keep)
        assert torch.equal(kept, whole[:, :keep])
    parts = generator(0, "x")
    first = uniform_numbers((N // 2, L), parts, 3)
    assert torch.equal(torch.cat([first, uniform_numbers((N - N // 2, L), parts, 3)]), whole[:, :3])


def test_samples_of_one_prompt_are_served_in_turns_and_are_the_same():
    model = make_stopping(bias=4.5)
    prompts = ragged_prompts(3)
    counts = []
    wanted = generate(model, prompts, 50, 30, 1.0, generator(0, "s"), max_rows=1000)
    for limit in (30, 999):  # more than the context holds
        got = generate(
            model, prompts, 50, limit, 1.0, generator(0, "s"), max_rows=16,
            on_progress=counts.append,
        )
        same = generate(model, prompts, 50, limit, 1.0, generator(0, "s"), max_rows=1000)
        assert torch.equal(got.ids, same.ids) and torch.equal(got.mask, same.mask)
        assert torch.equal(got.ended, same.ended)
        assert torch.allclose(got.logprobs, same.logprobs, atol=1e-5)
    assert torch.equal(wanted.ids, generate(model, prompts, 50, 30, 1.0, generator(0, "s")).ids)
    assert sum(counts) == 300
    greedy = generate(model, prompts, 5, 30, 0.0, max_rows=2)
    assert torch.equal(greedy.ids, generate(model, prompts, 5, 30, 0.0).ids)


PEAK = Path("/proc/self/clear_refs")


@pytest.mark.skipif(not os.access(PEAK, os.W_OK), reason="Linux tells the peak of its memory")
@pytest.mark.parametrize(("samples", "limit"), [(16_384, 2000), (64, 1_000_000)])
def test_the_memory_of_a_call_is_that_of_one_turn(samples, limit):
    """All at once, the first takes 170 MiB and the second 240."""
    model = make_stopping(bias=6.0)

    def mebibytes(name):
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) / 1024

    generate(model, [[1, 2, 3]], 512, 60, 1.0, generator(0, "s"))
    PEAK.write_text("5")
    before = mebibytes("VmRSS")
    rollout = generate(model, [[1, 2, 3]], samples, limit, 1.0, generator(0, "s"))
    assert len(rollout.ids) == samples and rollout.ended.float().mean() > 0.9
    assert mebibytes("VmHWM") - before < 40


# Padding and masks


def test_the_worked_examples_of_padding_and_of_the_mask():
    padded, lengths = pad_prompts([[5, 6, 7], [8]], PAD)
    assert padded.tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert lengths.tolist() == [3, 1]
    ids = torch.tensor([[5, 9, PAD, PAD], [5, 6, 9, PAD]])
    rollout = finished_rollout(ids, torch.zeros(2, 4), stop=(9,))
    assert rollout.ids.tolist() == [[5, 9, PAD], [5, 6, 9]]
    assert rollout.mask.tolist() == [[True, True, False], [True, True, True]]
    assert rollout.ended.tolist() == [True, True]


# Branches


def test_the_worked_example_of_pick():
    """Rows that stopped are dropped; rows whose tokens differ get their own cache row."""
    logits = torch.full((2, 512), -torch.inf)
    logits[0, [4, 8]] = 0.0  # branch 0 draws 4 or 8
    logits[1, END] = 0.0  # branch 1 stops
    decoding = Decoding.__new__(Decoding)
    decoding.ids = torch.full((4, 2), PAD)
    decoding.logprobs = torch.zeros(4, 2)
    decoding.uniform = torch.tensor([[0.1], [0.3], [0.7], [0.5]]).expand(4, 2)
    decoding.temperature = 1.0
    decoding.stop = torch.tensor([END])
    decoding.t = 0
    decoding.rows = torch.arange(4)
    decoding.branch = torch.tensor([0, 0, 0, 1])
    decoding.cache = numbered_cache(2)
    decoding.pick(logits)
    assert decoding.ids[:, 0].tolist() == [4, 4, 8, END]
    assert decoding.rows.tolist() == [0, 1, 2]
    assert decoding.branch.tolist() == [0, 0, 1]
    assert decoding.token.tolist() == [4, 8]
    assert decoding.cache.lengths.tolist() == [0, 0]  # row 1 is a copy of row 0
    assert all((x == 0).all() for x in (*decoding.cache.keys, *decoding.cache.values))


def test_rows_that_agree_share_a_branch_and_get_what_they_would_have_got_apart(monkeypatch):
    """At a low temperature many of 40 samples agree for long; each must still follow its own
    random numbers."""
    model = make_stopping(bias=4.0)
    prompts = ragged_prompts()
    G = 40
    uniform = uniform_numbers((len(prompts) * G, 30), generator(0, "sample"))
    sizes = []
    decode = GPT.decode

    def watched(self, idx, cache):
        sizes.append((len(idx), len(cache.lengths)))
        return decode(self, idx, cache)

    monkeypatch.setattr(GPT, "decode", watched)
    shared = generate(model, prompts, G, 30, 0.5, uniform=uniform, max_rows=1000)
    branches = [n for n, _ in sizes]
    responses = [shared.response(row) for row in range(len(shared.ids))]
    prefixes = set()
    for row, response in enumerate(responses):
        prefixes |= {(row // G, tuple(response[:t])) for t in range(1, len(response))}
    assert all(n == m for n, m in sizes)
    assert len(prefixes) <= sum(branches) < 0.75 * int(shared.lengths.sum())
    # each prefix once, and few idle rows beside it
    assert BUSY * (sum(branches) - branches.count(2)) <= len(prefixes)

    # GraphDecoding has a cache row for each
    monkeypatch.setattr("nanoreason.generate.Decoding", GraphDecoding)
    monkeypatch.setattr("nanoreason.generate.RecordedStep", lambda step: step)
    apart = generate(model, prompts, G, 30, 0.5, uniform=uniform, max_rows=1000)
    assert torch.equal(apart.ids, shared.ids) and torch.equal(apart.mask, shared.mask)
    assert torch.allclose(apart.logprobs, shared.logprobs, atol=1e-4)


def test_the_cache_grows_past_its_blocks_and_changes_no_token(monkeypatch):
    model = make_stopping(bias=3.0)
    prompts = ragged_prompts()
    wanted = generate(model, prompts, 3, 70, 1.0, generator(4, "sample"))
    monkeypatch.setattr("nanoreason.generate.SLOT_BLOCK", 1)
    got = generate(model, prompts, 3, 70, 1.0, generator(4, "sample"))
    assert wanted.ids.size(1) == 70 and torch.equal(got.ids, wanted.ids)


def numbered_cache(rows):
    """A cache whose row i holds the number i everywhere, its length included."""
    config = GPTConfig(n_layer=2, n_head=2, n_kv_head=1, n_embd=8, head_dim=4, d_ff=8)
    cache = KVCache(config, rows, 3)
    for x in (*cache.keys, *cache.values):
        x += torch.arange(rows).view(-1, 1, 1, 1)
    cache.lengths += torch.arange(rows)
    return cache


@pytest.mark.parametrize("parents, expected, size", [
    ([0, 0, 3, 4], [0, 1, 3, 4], 5),
    ([0, 2, 2, 2, 4], [0, 2, 1, 3, 4], 5),
    ([1, 4], [0, 1], 2),
    ([0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], 6),
])
def test_continuations_take_idle_rows_and_hold_what_their_parents_hold(parents, expected, size):
    """The worked example of KVCache.continue_from, and the two cases in which the cache is
    copied."""
    cache = numbered_cache(5)
    rows = cache.continue_from(torch.tensor(parents))
    assert rows.tolist() == expected and len(cache.lengths) == size
    assert cache.lengths[rows].tolist() == parents
    held = torch.tensor(parents).view(-1, 1, 1, 1).expand(-1, 1, 3, 4).float()
    for x in (*cache.keys, *cache.values):
        assert len(x) == size and torch.equal(x[rows], held)


# The GPU's way


def test_looking_rarely_at_who_has_stopped_and_leaving_by_halves_changes_nothing(monkeypatch):
    """The GPU's way, with the step run as it is instead of recorded: 4 steps between checks,
    batches of 20, 10, 5, 3, 2, 1."""
    model = make_stopping(bias=4.5)
    prompts = ragged_prompts()
    wanted = generate(model, prompts, 4, 50, 1.0, generator(5, "sample"))
    sizes = []
    counts = []
    shrink = GraphDecoding.shrink

    def watched(self, count):
        counts.append(count)
        sizes.append(len(self.rows))
        return shrink(self, count)

    monkeypatch.setattr("nanoreason.generate.Decoding", GraphDecoding)
    monkeypatch.setattr(GraphDecoding, "shrink", watched)
    monkeypatch.setattr("nanoreason.generate.RecordedStep", lambda step: step)
    monkeypatch.setattr("nanoreason.generate.GRAPH_STEPS", 4)
    got = generate(model, prompts, 4, 50, 1.0, generator(5, "sample"))
    assert torch.equal(got.ids, wanted.ids) and torch.equal(got.mask, wanted.mask)
    assert torch.allclose(got.logprobs, wanted.logprobs, atol=1e-5)
    assert set(sizes) <= {20, 10, 5, 3, 2, 1} and len(set(sizes)) >= 3
    assert len(counts) <= 12
    assert all(size >= count for size, count in zip(sizes, counts))


def test_a_compiled_step_gives_the_same_rollout(monkeypatch):
    model = make_stopping(bias=4.5)
    prompts = ragged_prompts()
    wanted = generate(model, prompts, 4, 30, 1.0, generator(6, "sample"))
    compile = torch.compile
    seen = []

    def watched(function, **options):
        seen.append(options)
        return compile(function, **options | dict(backend="aot_eager", fullgraph=True))

    monkeypatch.setattr(torch, "compile", watched)
    got = generate(model, prompts, 4, 30, 1.0, generator(6, "sample"), compile=True)
    assert torch.equal(got.ids, wanted.ids)
    assert torch.allclose(got.logprobs, wanted.logprobs, atol=1e-5)
    assert seen == [dict(dynamic=True)]


def held_by(decoding):
    """Address and shape of every tensor that a step of GraphDecoding reads or writes."""
    d = decoding
    state = (d.token, d.is_live, d.at, d.rows, d.ids, d.logprobs)
    cache = (d.cache.lengths, *d.cache.keys, *d.cache.values)
    return [(x.data_ptr(), x.shape, x.stride()) for x in (*state, *cache)]


def test_a_step_changes_no_address_no_shape_and_asks_the_tensors_nothing():
    """What a recorded CUDA graph relies on: it replays the same kernels on the same memory, and
    the host never looks."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            called.add(op.__name__.split(".")[0])
            return op(*args, **(kwargs or {}))

    called = set()
    model = make_stopping(bias=2.0)
    with torch.inference_mode():
        ids = torch.full((10, 20), PAD)
        logprobs = torch.zeros(10, 20)
        uniform = uniform_numbers((10, 20), generator(0, "s"))
        d = GraphDecoding(model, ragged_prompts(), 2, ids, logprobs, uniform, 1.0, False, (END,))
        before = held_by(d)
        with Watch():
            for _ in range(3):
                d.step()
    assert held_by(d) == before and (d.at == 4).all() and "index_put_" in called
    assert not called & {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal"}


# The copy that samples


def test_the_sampler_is_a_copy_that_follows_the_model(tiny):
    sampler = make_sampler(tiny, bf16=True)
    assert sampler.embed.weight.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in sampler.parameters())
    assert sampler.head.weight is sampler.embed.weight
    assert sampler.tokenizer is tiny.tokenizer
    assert tiny.embed.weight.dtype == torch.float32
    with torch.no_grad():
        for p in tiny.parameters():
            p.add_(0.5)
    refresh_sampler(sampler, tiny)
    for new, old in zip(tiny.parameters(), sampler.parameters()):
        assert torch.equal(new.bfloat16(), old)
    idx = torch.tensor([[1, 2, 3]])
    exact = make_sampler(tiny, bf16=False)(idx)
    fast = sampler(idx)
    assert torch.equal(exact, tiny(idx))
    assert (fast.float() - exact).norm() < 0.05 * exact.norm()


# Rollouts


@pytest.mark.parametrize(
    "temperature, uniform", [(1.0, None), (0.0, None), (1.0, torch.zeros(0, 20))]
)
def test_no_prompts_give_an_empty_rollout_that_joins_and_selects_like_another(
    tiny, temperature, uniform
):
    none = generate(tiny, [], 4, 20, temperature, uniform=uniform).cpu()
    some = generate(tiny, [[1, 2]], 3, 6, 1.0, generator(0, "s"))
    for name in ("ids", "mask", "logprobs", "ended"):
        empty = getattr(none, name)
        filled = getattr(some, name)
        assert (empty.dtype, empty.dim(), len(empty)) == (filled.dtype, filled.dim(), 0)
        assert torch.equal(getattr(join_rollouts([none, some, none], PAD), name), filled)
    assert none.lengths.tolist() == []
    assert len(none.select([]).ids) == 0
    assert len(join_rollouts([none, none], PAD).ids) == 0


def of_lengths(lengths, width, first):
    """A Rollout whose tokens and log-probabilities count upwards from `first`, of responses that
    end where they are not `width` long."""
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    count = first + torch.arange(len(lengths) * width).view(len(lengths), width)
    ids = count.where(mask, PAD)
    logprobs = (-count / 8.0).where(mask, 0.0)
    return Rollout(ids, mask, logprobs, torch.tensor(lengths) < width)


def test_rollouts_of_different_lengths_join_in_order_and_are_padded_behind():
    parts = [of_lengths([2, 1], 2, 10), of_lengths([4, 3, 1], 4, 30), of_lengths([1], 1, 50)]
    whole = join_rollouts(parts, PAD)
    assert whole.ids.tolist() == [
        [10, 11, PAD, PAD],
        [12, PAD, PAD, PAD],
        [30, 31, 32, 33],
        [34, 35, 36, PAD],
        [38, PAD, PAD, PAD],
        [50, PAD, PAD, PAD],
    ]
    assert whole.lengths.tolist() == [2, 1, 4, 3, 1, 1]
    assert whole.ended.tolist() == [False, True, False, True, True, False]
    assert whole.logprobs[0].tolist() == [-1.25, -1.375, 0, 0]
    assert whole.logprobs[5].tolist() == [-6.25, 0, 0, 0]
    dtypes = (whole.ids.dtype, whole.mask.dtype, whole.logprobs.dtype)
    assert dtypes == (torch.int64, torch.bool, torch.float32)
    assert [whole.response(row) for row in (1, 3)] == [[12], [34, 35, 36]]


def test_selected_rows_keep_their_order_their_width_and_everything_of_theirs():
    whole = of_lengths([4, 3, 1], 4, 30)
    some = whole.select([2, 0, 2])
    last = [38, PAD, PAD, PAD]
    assert some.ids.tolist() == [last, [30, 31, 32, 33], last]
    assert some.lengths.tolist() == [1, 4, 1]
    assert some.logprobs[:, 0].tolist() == [-4.75, -3.75, -4.75]
    assert some.ended.tolist() == [True, False, True]
    short = whole.select([2, 1])
    assert short.ids.shape == (2, 4)  # not cut to its longest row
    assert short.response(1) == [34, 35, 36]
    assert whole.select([]).ids.shape == (0, 4)
    assert whole.ids[0].tolist() == [30, 31, 32, 33]


# Openings, and tokens as they come


@pytest.mark.parametrize("decoding", [Decoding, GraphDecoding])
@pytest.mark.parametrize("samples, temperature", [(1, 0.0), (3, 0.8)])
def test_an_opening_is_part_of_the_response_as_if_the_model_had_written_it(
    decoding, samples, temperature, monkeypatch
):
    monkeypatch.setattr("nanoreason.generate.Decoding", decoding)
    monkeypatch.setattr("nanoreason.generate.RecordedStep", lambda step: step)
    model = make_stopping(bias=3.0)
    opening = [tokenizer.think, tokenizer.end_think]
    prompts = ragged_prompts()
    N = len(prompts) * samples
    uniform = torch.rand(N, 12, generator=generator(0, "opening"))
    opened = generate(
        make_sampler(model, False, opening), prompts, samples, 12, temperature, uniform=uniform
    )
    behind = [[*prompt, *opening] for prompt in prompts]
    alone = generate(model, behind, samples, 10, temperature, uniform=uniform[:, 2:])
    assert [opened.response(row) for row in range(N)] == [
        [*opening, *alone.response(row)] for row in range(N)
    ]
    assert torch.equal(opened.logprobs[:, :2], torch.zeros(N, 2))
    assert torch.allclose(opened.logprobs[:, 2:], alone.logprobs, atol=1e-5)
    assert torch.equal(opened.ended, alone.ended)
    assert len(set(opened.lengths.tolist())) > 1


@pytest.mark.parametrize("decoding", [Decoding, GraphDecoding])
@pytest.mark.parametrize("room", [1, 2, 3])
def test_an_opening_ends_where_the_limit_or_the_context_does(decoding, room, monkeypatch):
    monkeypatch.setattr("nanoreason.generate.Decoding", decoding)
    monkeypatch.setattr("nanoreason.generate.RecordedStep", lambda step: step)
    opening = [tokenizer.think, tokenizer.end_think]
    sampler = make_sampler(make_tiny(), False, opening)
    reported = []
    for prompt, limit in (([1, 2, 3], room), ([1] * (128 - room), 60)):
        rollout = generate(sampler, [prompt], 1, limit, 0.0, on_progress=reported.append)
        assert rollout.response(0)[:2] == opening[:room]
        assert rollout.lengths.tolist() == [room]
    assert reported == [1, 1]


def test_tokens_are_told_one_by_one_as_they_come(stopping):
    opening = [tokenizer.think, tokenizer.end_think]
    for sampler in (stopping, make_sampler(stopping, False, opening)):
        for seed in range(3):
            told = []
            rollout = generate(
                sampler, [[5, 6, 7]], 1, 30, 1.0, generator(seed, "told"), on_token=told.append
            )
            assert told == rollout.response(0)
    seen = []

    def stop_at_the_third(token):
        seen.append(token)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(make_tiny(), [[5, 6, 7]], 1, 30, 0.0, on_token=stop_at_the_third)
    assert len(seen) == 3
    with pytest.raises(ValueError, match="a single response"):
        generate(stopping, [[1], [2]], 1, 4, 0.0, on_token=seen.append)

"""The Triton kernels against float64: in Triton's interpreter on a CPU, compiled on a GPU.

On a CPU all is float32, for the interpreter multiplies the raw bits of bfloat16. The bound everywhere is twice the error of PyTorch's own
float32 attention, plus 1e-5.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny

from nanoreason import attention, kernels as A
from nanoreason.machine import generator
from nanoreason.generate import generate

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def exact(q, k, v, doc_start):
    """softmax(q k^T / sqrt(D)) v in float64 over a dense mask, one head at a time."""
    (B, T, H, D), K = q.shape, k.size(2)
    i, j = torch.arange(T, device=q.device)[:, None], torch.arange(T, device=q.device)[None]
    see = (j <= i).expand(B, T, T) if doc_start is None else (j <= i) & (j >= doc_start[:, :, None])
    heads = []
    for h in range(H):
        s = torch.einsum("bid,bjd->bij", q[:, :, h].double(), k[:, :, h * K // H].double()) / D**0.5
        heads.append(torch.einsum("bij,bjd->bid", s.masked_fill(~see, float("-inf")).softmax(-1), v[:, :, h * K // H].double()))
    return torch.stack(heads, 2)


def documents(B, T, seed=0, shortest=1, longest=40):
    """doc_start of rows packed with documents of 1 to `longest` tokens, many of one token."""
    rows = []
    for b in range(B):
        noise, starts = generator(seed, "documents", b), [0]
        while starts[-1] < T:
            short = torch.rand((), generator=noise) < 0.3
            starts.append(starts[-1] + (1 if short else int(torch.randint(shortest, longest + 1, (), generator=noise))))
        starts = torch.tensor(starts[:-1])
        rows.append(starts[torch.searchsorted(starts, torch.arange(T), right=True) - 1])
    return torch.stack(rows).int().to(DEVICE)


def tensors(B, T, H, K, D, seed=0, dtype=torch.float32):
    noise = generator(seed, "qkv")
    return [torch.randn(shape, generator=noise).to(DEVICE, dtype) for shape in ((B, T, H, D), (B, T, K, D), (B, T, K, D), (B, T, H, D))]


def with_gradients(function, q, k, v, grad, doc_start):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves, doc_start)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def compare(q, k, v, grad, doc_start):
    """Our out, dq, dk, dv are within the bound of float64's."""
    wanted = with_gradients(exact, q, k, v, grad.double(), doc_start)
    ours = with_gradients(A.fused_attention, q, k, v, grad, doc_start)
    theirs = with_gradients(pytorch, q, k, v, grad, doc_start)
    for name, a, b, w in zip(("out", "dq", "dk", "dv"), ours, theirs, wanted):
        assert a.shape == w.shape and a.dtype == q.dtype
        error, allowed = (a.double() - w).abs().max().item(), 2 * (b.double() - w).abs().max().item() + 1e-5
        assert error <= allowed, (name, error, allowed)


def pytorch(q, k, v, doc_start):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if doc_start is None else attention.document_mask(doc_start)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True).transpose(1, 2)


# T, D, query heads a key/value head, packed: every T, every D and every group with every kind of row at least once
GRID = [(1, 16, 1, False), (1, 64, 2, True), (17, 32, 2, False), (17, 128, 1, True), (113, 16, 4, True), (113, 64, 1, False), (113, 128, 2, True),
        (128, 32, 1, True), (128, 64, 4, False), (128, 16, 2, True), (203, 32, 4, True), (203, 16, 1, False), (203, 64, 2, True), (203, 128, 4, True)]


@pytest.mark.parametrize("T, D, G, packed", GRID)
def test_forward_and_backward_match_float64(T, D, G, packed):
    q, k, v, grad = tensors(2 if T < 128 else 1, T, 2 * G if G < 4 else 4, 2 if G < 4 else 1, D, seed=T + D)
    compare(q, k, v, grad, documents(len(q), T, seed=T) if packed else None)


def test_documents_of_one_token_see_only_themselves():
    q, k, v, _ = tensors(1, 70, 2, 1, 16)
    alone = torch.arange(70, device=DEVICE, dtype=torch.int32)[None]
    assert torch.allclose(A.fused_attention(q, k, v, alone), v.expand(-1, -1, 2, -1), atol=1e-6)


def test_one_document_a_row_is_the_same_with_and_without_doc_start():
    q, k, v, grad = tensors(1, 100, 2, 1, 32)
    zeros = torch.zeros(1, 100, dtype=torch.int32, device=DEVICE)
    for a, b in zip(with_gradients(A.fused_attention, q, k, v, grad, None), with_gradients(A.fused_attention, q, k, v, grad, zeros)):
        assert torch.allclose(a, b, atol=1e-6)


def test_any_strides_serve(T=45, D=16):
    fused = tensors(1, T, 4 + 2 + 2, 1, D)[0]  # q, k and v as slices of one projection
    q, k, v = fused.split((4, 2, 2), dim=2)
    compare(q, k, v, torch.randn(1, 4, T, D, generator=generator(1, "g")).to(DEVICE).transpose(1, 2), documents(1, T))
    q, k, v, grad = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(1, T, 4, 2, D))  # heads before time
    assert not q.is_contiguous()
    compare(q, k, v, grad, None)
    compare(q, k, v, torch.ones((), device=DEVICE).expand(1, T, 4, D), documents(1, T))  # the gradient of a sum: stride 0 everywhere
    q, k, v, grad = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in tensors(1, T, 2, 1, 16))  # channels apart
    assert q.stride(3) != 1
    compare(q, k, v, grad, documents(1, T).repeat_interleave(2, 1)[:, ::2])


@pytest.mark.parametrize("D", [24, 80])
def test_head_dims_that_are_no_power_of_two(D):
    compare(*tensors(1, 45, 2, 1, D), documents(1, 45))


def test_equal_inputs_give_equal_bits():
    T, times = (1000, 100) if DEVICE == "cuda" else (70, 1)
    q, k, v, grad = tensors(1, T, 2, 1, 32)
    first = with_gradients(A.fused_attention, q, k, v, grad, documents(1, T))
    for _ in range(times):
        assert all(torch.equal(a, b) for a, b in zip(first, with_gradients(A.fused_attention, q, k, v, grad, documents(1, T))))


def test_every_element_is_written(monkeypatch):
    """Memory that the operators take starts as NaN: none may be left, and the numbers are those of clean memory."""
    q, k, v, grad = tensors(1, 77, 2, 1, 24)
    wanted = with_gradients(A.fused_attention, q, k, v, grad, documents(1, 77))
    lengths = torch.tensor([70], device=DEVICE)
    decoded = A.decode_attention(q[:, 0], k.transpose(1, 2), v.transpose(1, 2), lengths)
    taken = []

    def poisoned(make):
        def call(*args, **kwargs):
            x = make(*args, **kwargs)
            taken.append(x.shape)
            return x.fill_(float("nan")) if x.is_floating_point() else x
        return call

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    got = with_gradients(A.fused_attention, q, k, v, grad, documents(1, 77))
    again = A.decode_attention(q[:, 0], k.transpose(1, 2), v.transpose(1, 2), lengths)
    assert len(taken) >= 6 and torch.equal(again, decoded) and all(torch.equal(a, b) for a, b in zip(got, wanted))


def test_blocks_of_other_documents_are_not_read():
    """NaN in a document reaches that document alone; and whole tiles before it are skipped, not masked: their keys may even be NaN."""
    q, k, v, grad = tensors(1, 200, 2, 1, 16)
    doc_start = torch.tensor([0] * 100 + [100] * 100, dtype=torch.int32, device=DEVICE)[None]
    clean = with_gradients(A.fused_attention, q, k, v, grad, doc_start)
    k[:, :64], v[:, :64] = float("nan"), float("nan")  # two tiles of 32 keys: the queries of the second document begin at 100
    dirty = with_gradients(A.fused_attention, q, k, v, grad, doc_start)
    assert torch.equal(clean[0][:, 128:], dirty[0][:, 128:]) and torch.equal(clean[1][:, 128:], dirty[1][:, 128:])
    assert torch.equal(clean[2][:, 128:], dirty[2][:, 128:]) and dirty[0][:, :64].isnan().all()


def test_operators_pass_pytorchs_own_checks():
    q, k, v, grad = tensors(1, 20, 2, 1, 16)
    doc_start = documents(1, 20)
    for documents_given in (None, doc_start):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.library.opcheck(A.attention_forward, (*leaves, documents_given))
        out, lse = A.attention_forward(q, k, v, documents_given)
        torch.library.opcheck(A.attention_backward, (grad, q, k, v, out, lse, documents_given))
    torch.library.opcheck(A._decode_attention, (q[:, 0], k.transpose(1, 2), v.transpose(1, 2), torch.tensor([7], device=DEVICE)))


def test_the_whole_network_compiles_without_a_break_forward_and_backward(monkeypatch):
    monkeypatch.setattr("nanoreason.model.attention", A.fused_attention)
    monkeypatch.setattr("nanoreason.model.by_document", lambda doc_start, dtype: doc_start)
    model = make_tiny(head_dim=16).to(DEVICE)
    ids, doc_start = torch.randint(0, 506, (2, 40), generator=generator(0, "ids")).to(DEVICE), documents(2, 40)
    seen = []
    for net in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        out = net(ids, doc_start)
        out.square().mean().backward()
        seen.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(*seen))
    monkeypatch.setattr("nanoreason.model.attention", attention.attention)
    model.zero_grad()
    model(ids, doc_start).square().mean().backward()
    assert all(torch.allclose(p.grad, g, atol=1e-4, rtol=1e-3) for p, g in zip(model.parameters(), seen[0][1:]))  # as without the kernels


@pytest.mark.parametrize("H, K, S, splits", [(2, 2, 64, 1), (4, 2, 200, 3), (4, 1, 130, 2), (5, 1, 300, 8), (2, 1, 33, 1)])
def test_decoding_matches_float64_for_ragged_lengths(monkeypatch, H, K, S, splits):
    monkeypatch.setattr(A, "decode_splits", lambda *args: splits)
    B, D = 5, 32
    noise = generator(S, "decode")
    q, k, v = (torch.randn(shape, generator=noise).to(DEVICE) for shape in ((B, H, D), (B, K, S, D), (B, K, S, D)))
    lengths = torch.tensor([1, S, S // 2, 17, S - 1], device=DEVICE)
    wanted = torch.stack([exact(q[b, None, None], k[b, :, :n].transpose(0, 1)[None, -1:], v[b, :, :n].transpose(0, 1)[None, -1:], None)[0, 0] if n == 1 else
                          last_query(q[b], k[b, :, :n], v[b, :, :n]) for b, n in enumerate(lengths.tolist())])
    for b, n in enumerate(lengths.tolist()):  # what is not filled is never read
        k[b, :, n:], v[b, :, n:] = float("nan"), float("nan")
    out = A.decode_attention(q, k, v, lengths)
    assert out.shape == q.shape and (out.double() - wanted).abs().max() < 2e-6


def last_query(q, k, v):
    """One query of every head (H, D) against all keys (K, n, D), in float64."""
    group = len(q) // len(k)
    rows = []
    for h in range(len(q)):
        p = (k[h // group].double() @ q[h].double() / q.size(1) ** 0.5).softmax(0)
        rows.append(p @ v[h // group].double())
    return torch.stack(rows)


def test_splits_follow_from_shapes_and_keep_every_multiprocessor_busy():
    assert A.decode_splits(1, 4096, torch.device("cpu")) > 1 and A.decode_splits(10_000, 4096, torch.device("cpu")) == 1
    assert A.decode_splits(1, 32, torch.device("cpu")) == 1


@pytest.mark.parametrize("change", [dict(k=torch.float64), dict(D=8), dict(D=130), dict(K=3)])
def test_arguments_that_do_not_fit_are_a_clear_error(change):
    D, K = change.get("D", 16), change.get("K", 2)
    q, k, v, _ = tensors(1, 4, 4, K, D)
    with pytest.raises(ValueError):
        A.fused_attention(q, k.to(change.get("k", k.dtype)), v)


def test_without_triton_the_module_imports_and_attends():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import torch
from nanoreason import attention, kernels
assert kernels.triton is None
q = torch.randn(1, 5, 2, 16)
print((attention.attention(q, q, q)[:, 0] - q[:, 0]).abs().max().item() < 1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


AHEAD = """
import json, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from nanoreason import kernels as A

def build(kernel, name, D, packed, capability):
    bq, bk, options = A.tiles(name, D, torch.bfloat16)
    known = dict(PACKED=packed, D=D, WIDTH=D, BLOCK_Q=bq, BLOCK_K=bk, ROWS=bq, BLOCK_S=bk)
    constants, signature = {}, {}
    for p in kernel.params:
        n = p.name
        if p.is_constexpr:
            signature[n] = "constexpr"
            constants[(p.num,)] = known[n]
        elif n in ("DocStart", "doc_strides") and not packed or n == "DocEnd" and not packed:
            signature[n] = "constexpr"
            constants[(p.num,)] = None
        elif n.endswith("_strides"):
            count = dict(doc_strides=2).get(n, 3 if name == "decode" and n == "q_strides" else 4)
            signature[n] = ("i64",) * (count - 1) + ("constexpr",)
            constants[(p.num, count - 1)] = 1
        elif n in ("Lse", "Delta"):
            signature[n] = "*fp32"
        elif n in ("DocStart", "DocEnd", "Lengths"):
            signature[n] = "*i32"
        elif n[0].isupper() and n not in "TGHBS" or n in ("dOut", "dK", "dV", "dQ"):
            signature[n] = "*bf16"
        else:
            signature[n] = "i32"
    source = ASTSource(kernel, signature, constants)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared

for capability, D in ((80, 128), (90, 64)):
    for kernel, name in ((A._forward, "forward"), (A._backward_dkdv, "dkdv"), (A._backward_dq, "dq")):
        print(json.dumps([name, D, capability, build(kernel, name, D, True, capability)]), flush=True)
"""


def test_the_kernels_compile_for_gpus_that_are_not_here_and_fit_their_shared_memory(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", AHEAD], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    built = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(built) == 6 and all(0 < shared <= 99 * 1024 for *_, shared in built), built  # 99 KB: sm_86 and sm_89, the least of all


def test_a_rollout_through_the_decoding_kernel_is_the_same(monkeypatch):
    model, prompts = make_tiny(head_dim=16).to(DEVICE), [[1, 2, 3], [9], [4] * 12]
    wanted = generate(model, prompts, 2, 6, 1.0, generator(0, "rollout"))
    monkeypatch.setattr(attention, "kernels", A)
    monkeypatch.setattr(A, "runs_on", lambda device: True)
    got = generate(model, prompts, 2, 6, 1.0, generator(0, "rollout"))
    assert torch.equal(got.ids, wanted.ids) and torch.allclose(got.logprobs, wanted.logprobs, atol=1e-4)


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("D, G, packed", [(64, 4, True), (128, 2, False), (64, 1, False), (32, 2, True)])
def test_half_precision_on_a_gpu_errs_as_little_as_pytorch(dtype, D, G, packed):
    q, k, v, grad = tensors(2, 1000, 8, 8 // G, D, dtype=dtype)
    doc_start = documents(2, 1000, longest=200) if packed else None
    wanted = with_gradients(exact, q, k, v, grad.double(), doc_start)
    for a, b, w in zip(with_gradients(A.fused_attention, q, k, v, grad, doc_start), with_gradients(pytorch, q, k, v, grad, doc_start), wanted):
        assert (a.double() - w).norm() <= 1.5 * (b.double() - w).norm() + 1e-5

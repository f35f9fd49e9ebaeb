"""The Triton kernels against float64: in Triton's interpreter on a CPU, compiled on a GPU.

On a CPU all is float32, because the interpreter multiplies the raw bits of bfloat16. The bound
everywhere is twice the error of PyTorch's own float32 attention, plus 1e-5.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, make_tiny

from nanoreason import attention, kernels as A
from nanoreason.generate import generate
from nanoreason.machine import generator

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def exact(q, k, v, doc_start):
    """softmax(q k^T / sqrt(D)) v in float64 over a dense mask, one head at a time."""
    B, T, H, D = q.shape
    i = torch.arange(T, device=q.device)[:, None]
    j = torch.arange(T, device=q.device)[None]
    see = (j <= i).expand(B, T, T)
    if doc_start is not None:
        see = see & (j >= doc_start[:, :, None])
    heads = []
    for h in range(H):
        shared = h * k.size(2) // H  # the key/value head that query head h reads
        s = torch.einsum("bid,bjd->bij", q[:, :, h].double(), k[:, :, shared].double()) / D**0.5
        p = s.masked_fill(~see, float("-inf")).softmax(-1)
        heads.append(torch.einsum("bij,bjd->bid", p, v[:, :, shared].double()))
    return torch.stack(heads, 2)


def documents(B, T, seed=0, shortest=1, longest=40):
    """doc_start of rows packed with documents of 1 to `longest` tokens, many of one token."""
    rows = []
    for b in range(B):
        noise = generator(seed, "documents", b)
        starts = [0]
        while starts[-1] < T:
            length = 1
            if torch.rand((), generator=noise) >= 0.3:
                length = int(torch.randint(shortest, longest + 1, (), generator=noise))
            starts.append(starts[-1] + length)
        starts = torch.tensor(starts[:-1])
        rows.append(starts[torch.searchsorted(starts, torch.arange(T), right=True) - 1])
    return torch.stack(rows).int().to(DEVICE)


def tensors(B, T, H, K, D, seed=0, dtype=torch.float32):
    """q, k, v and a gradient of the output."""
    noise = generator(seed, "qkv")
    heads = (H, K, K, H)
    return [torch.randn(B, T, n, D, generator=noise).to(DEVICE, dtype) for n in heads]


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
        assert a.shape == w.shape
        assert a.dtype == q.dtype
        error = (a.double() - w).abs().max().item()
        allowed = 2 * (b.double() - w).abs().max().item() + 1e-5
        assert error <= allowed, (name, error, allowed)


def pytorch(q, k, v, doc_start):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if doc_start is None else attention.document_mask(doc_start)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return out.transpose(1, 2)


# T, D, query heads per key/value head, packed: every T, every D and every group with every kind of
# row at least once
GRID = [
    (1, 16, 1, False),
    (1, 64, 2, True),
    (17, 32, 2, False),
    (17, 128, 1, True),
    (113, 16, 4, True),
    (113, 64, 1, False),
    (113, 128, 2, True),
    (128, 32, 1, True),
    (128, 64, 4, False),
    (128, 16, 2, True),
    (203, 32, 4, True),
    (203, 16, 1, False),
    (203, 64, 2, True),
    (203, 128, 4, True),
]


@pytest.mark.parametrize("T, D, G, packed", GRID)
def test_forward_and_backward_match_float64(T, D, G, packed):
    K = 2 if G < 4 else 1
    q, k, v, grad = tensors(2 if T < 128 else 1, T, K * G, K, D, seed=T + D)
    compare(q, k, v, grad, documents(len(q), T, seed=T) if packed else None)


def test_documents_of_one_token_see_only_themselves():
    q, k, v, _ = tensors(1, 70, 2, 1, 16)
    alone = torch.arange(70, device=DEVICE, dtype=torch.int32)[None]
    assert torch.allclose(A.fused_attention(q, k, v, alone), v.expand(-1, -1, 2, -1), atol=1e-6)


def test_one_document_a_row_is_the_same_with_and_without_doc_start():
    q, k, v, grad = tensors(1, 100, 2, 1, 32)
    zeros = torch.zeros(1, 100, dtype=torch.int32, device=DEVICE)
    without = with_gradients(A.fused_attention, q, k, v, grad, None)
    with_zeros = with_gradients(A.fused_attention, q, k, v, grad, zeros)
    for a, b in zip(without, with_zeros):
        assert torch.allclose(a, b, atol=1e-6)


def test_any_strides_serve(T=45, D=16):
    fused = tensors(1, T, 4 + 2 + 2, 1, D)[0]  # q, k and v as slices of one projection
    q, k, v = fused.split((4, 2, 2), dim=2)
    grad = torch.randn(1, 4, T, D, generator=generator(1, "g")).to(DEVICE).transpose(1, 2)
    compare(q, k, v, grad, documents(1, T))
    plain = tensors(1, T, 4, 2, D)  # heads before time
    q, k, v, grad = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in plain)
    assert not q.is_contiguous()
    compare(q, k, v, grad, None)
    grad = torch.ones((), device=DEVICE).expand(1, T, 4, D)  # of a sum: stride 0 everywhere
    compare(q, k, v, grad, documents(1, T))
    plain = tensors(1, T, 2, 1, 16)  # channels apart
    q, k, v, grad = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in plain)
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
        again = with_gradients(A.fused_attention, q, k, v, grad, documents(1, T))
        assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_every_element_is_written(monkeypatch):
    """Memory that the operators take starts as NaN: none may be left, and the numbers are those of
    clean memory."""
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
    assert len(taken) >= 6
    assert torch.equal(again, decoded)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))


def test_blocks_of_other_documents_are_not_read():
    """NaN in a document reaches that document alone; and whole tiles before it are skipped, not
    masked: their keys may even be NaN."""
    q, k, v, grad = tensors(1, 200, 2, 1, 16)
    doc_start = torch.tensor([0] * 100 + [100] * 100, dtype=torch.int32, device=DEVICE)[None]
    clean = with_gradients(A.fused_attention, q, k, v, grad, doc_start)
    # two tiles of 32 keys: the queries of the second document begin at 100
    k[:, :64] = float("nan")
    v[:, :64] = float("nan")
    dirty = with_gradients(A.fused_attention, q, k, v, grad, doc_start)
    for a, b in zip(clean[:3], dirty[:3]):  # out, dq, dk
        assert torch.equal(a[:, 128:], b[:, 128:])
    assert dirty[0][:, :64].isnan().all()


def test_operators_pass_pytorchs_own_checks():
    q, k, v, grad = tensors(1, 20, 2, 1, 16)
    doc_start = documents(1, 20)
    for documents_given in (None, doc_start):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.library.opcheck(A.attention_forward, (*leaves, documents_given))
        out, lse = A.attention_forward(q, k, v, documents_given)
        torch.library.opcheck(A.attention_backward, (grad, q, k, v, out, lse, documents_given))
    lengths = torch.tensor([7], device=DEVICE)
    decoding = (q[:, 0], k.transpose(1, 2), v.transpose(1, 2), lengths)
    torch.library.opcheck(A._decode_attention, decoding)


def test_the_whole_network_compiles_without_a_break_forward_and_backward(monkeypatch):
    monkeypatch.setattr("nanoreason.model.attention", A.fused_attention)
    monkeypatch.setattr("nanoreason.model.by_document", lambda doc_start, dtype: doc_start)
    model = make_tiny(head_dim=16).to(DEVICE)
    ids = torch.randint(0, 506, (2, 40), generator=generator(0, "ids")).to(DEVICE)
    doc_start = documents(2, 40)
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
    for p, grad in zip(model.parameters(), seen[0][1:]):  # as without the kernels
        assert torch.allclose(p.grad, grad, atol=1e-4, rtol=1e-3)


DECODING = [(2, 2, 64, 1), (4, 2, 200, 3), (4, 1, 130, 2), (5, 1, 300, 8), (2, 1, 33, 1)]


@pytest.mark.parametrize("H, K, S, splits", DECODING)
def test_decoding_matches_float64_for_ragged_lengths(monkeypatch, H, K, S, splits):
    monkeypatch.setattr(A, "decode_splits", lambda *args: splits)
    B = 5
    D = 32
    noise = generator(S, "decode")
    shapes = ((B, H, D), (B, K, S, D), (B, K, S, D))
    q, k, v = (torch.randn(shape, generator=noise).to(DEVICE) for shape in shapes)
    lengths = [1, S, S // 2, 17, S - 1]
    wanted = torch.stack(
        [last_query(q[b], k[b, :, :n], v[b, :, :n]) for b, n in enumerate(lengths)]
    )
    first = (x[:1, :, 0][:, None] for x in (k, v))  # (1, 1, K, D): the only slot of the first row
    assert torch.allclose(wanted[0], exact(q[:1, None], *first, None)[0, 0], atol=1e-12)
    for b, n in enumerate(lengths):  # what is not filled is never read
        k[b, :, n:] = float("nan")
        v[b, :, n:] = float("nan")
    out = A.decode_attention(q, k, v, torch.tensor(lengths, device=DEVICE))
    assert out.shape == q.shape
    assert (out.double() - wanted).abs().max() < 2e-6


def last_query(q, k, v):
    """One query of every head (H, D) against all keys (K, n, D), in float64."""
    group = len(q) // len(k)
    rows = []
    for h in range(len(q)):
        p = (k[h // group].double() @ q[h].double() / q.size(1) ** 0.5).softmax(0)
        rows.append(p @ v[h // group].double())
    return torch.stack(rows)


def test_splits_follow_from_shapes_and_keep_every_multiprocessor_busy():
    cpu = torch.device("cpu")
    assert A.decode_splits(1, 4096, cpu) > 1
    assert A.decode_splits(10_000, 4096, cpu) == 1
    assert A.decode_splits(1, 32, cpu) == 1


@pytest.mark.parametrize("change", [dict(k=torch.float64), dict(D=8), dict(D=130), dict(K=3)])
def test_arguments_that_do_not_fit_are_a_clear_error(change):
    q, k, v, _ = tensors(1, 4, 4, change.get("K", 2), change.get("D", 16))
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
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


# compiles kernels for GPUs that are not here: [kernel, D, capability, bytes of shared memory] each
AHEAD = """
import json
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from nanoreason import kernels as A

def build(kernel, name, D, capability):
    bq, bk, options = A.tiles(name, D, torch.bfloat16)
    known = dict(PACKED=True, D=D, WIDTH=D, BLOCK_Q=bq, BLOCK_K=bk)
    constants = {}
    signature = {}
    for p in kernel.params:
        n = p.name
        if p.is_constexpr:
            signature[n] = "constexpr"
            constants[(p.num,)] = known[n]
        elif n.endswith("_strides"):  # the last stride is 1
            count = 2 if n == "doc_strides" else 4
            signature[n] = ("i64",) * (count - 1) + ("constexpr",)
            constants[(p.num, count - 1)] = 1
        elif n in ("Lse", "Delta"):
            signature[n] = "*fp32"
        elif n in ("DocStart", "DocEnd"):
            signature[n] = "*i32"
        elif n in ("T", "H", "G"):
            signature[n] = "i32"
        else:
            signature[n] = "*bf16"
    source = ASTSource(kernel, signature, constants)
    target = GPUTarget("cuda", capability, 32)
    return compile(source, target=target, options=options).metadata.shared

kernels = dict(forward=A._forward, dkdv=A._backward_dkdv, dq=A._backward_dq)
for capability, D in ((80, 128), (90, 64)):
    for name, kernel in kernels.items():
        shared = build(kernel, name, D, capability)
        print(json.dumps([name, D, capability, shared]), flush=True)
"""


def test_the_kernels_compile_for_gpus_that_are_not_here_and_fit_their_shared_memory(tmp_path):
    env = dict(os.environ, TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=str(ROOT))
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", AHEAD]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    built = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(built) == 6
    # 99 KB: sm_86 and sm_89, the least of all
    assert all(0 < shared <= 99 * 1024 for *_, shared in built), built


def test_a_rollout_through_the_decoding_kernel_is_the_same(monkeypatch):
    model = make_tiny(head_dim=16).to(DEVICE)
    prompts = [[1, 2, 3], [9], [4] * 12]
    wanted = generate(model, prompts, 2, 6, 1.0, generator(0, "rollout"))
    monkeypatch.setattr(attention, "kernels", A)
    monkeypatch.setattr(A, "runs_on", lambda device: True)
    got = generate(model, prompts, 2, 6, 1.0, generator(0, "rollout"))
    assert torch.equal(got.ids, wanted.ids)
    assert torch.allclose(got.logprobs, wanted.logprobs, atol=1e-4)


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "D, G, packed", [(64, 4, True), (128, 2, False), (64, 1, False), (32, 2, True)]
)
def test_half_precision_on_a_gpu_errs_as_little_as_pytorch(dtype, D, G, packed):
    q, k, v, grad = tensors(2, 1000, 8, 8 // G, D, dtype=dtype)
    doc_start = documents(2, 1000, longest=200) if packed else None
    wanted = with_gradients(exact, q, k, v, grad.double(), doc_start)
    ours = with_gradients(A.fused_attention, q, k, v, grad, doc_start)
    theirs = with_gradients(pytorch, q, k, v, grad, doc_start)
    for a, b, w in zip(ours, theirs, wanted):
        assert (a.double() - w).norm() <= 1.5 * (b.double() - w).norm() + 1e-5

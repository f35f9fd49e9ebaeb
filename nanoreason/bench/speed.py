"""How fast is this machine, and what share of what it could do do we reach?

    python -m nanoreason.bench --ckpt runs/speedrun/cold
        everything that this device can run
    python -m nanoreason.bench --parts generate,grpo --ckpt runs/speedrun/cold --json bench.json
        some of it

Every rate stands beside the roofline measured in the same run: the rate of matrix products, and the
bandwidth of copies. Where transformers and TRL are installed (they are not required), the same
weights do the same work in their code, in turns with ours: in float32, and in bfloat16 where that
pays on this machine. Figures are medians. Without --ckpt the weights are random: lengths of
responses then mean nothing, and GRPO, which would find nothing to learn from, is left out.
"""

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from nanoreason import attention, checkpoint, corpus
from nanoreason.flags import UserError, check_output, flag, listed, parse_config
from nanoreason.machine import choose_bf16, generator, start_machine
from nanoreason.run import read_metrics, say, write_json
from nanoreason.generate import generate, make_sampler
from nanoreason.model import GPT, PRESETS, KVCache, cache_memory, training_flops
from nanoreason.bench.peers import padded_sft_rate, peer_generate, to_qwen3, trl_grpo
from nanoreason.workers import ROOT, environment, flag_words, last_line
from nanoreason.tasks import problem_set
from nanoreason.tokenizer import shipped_tokenizer

PARTS = ("roofline", "attention", "train", "prefill", "generate", "grpo")
FAMILIES = ("multiplication", "chain", "percent", "word", "equation")
SAMPLES = 8  # per question


@dataclass
class Config:
    ckpt: str = flag(
        "", "checkpoint or run folder to measure with; empty takes random weights of --model")
    model: str = flag(
        "",
        "size for random weights: micro on a CPU, base on a GPU unless given",
        choices=("", *PRESETS))
    parts: str = flag(",".join(PARTS), "what to measure, separated by commas")
    repeats: int = flag(5, "runs of each thing; medians are reported", low=1)
    rows: int = flag(256, "responses sampled at once", low=SAMPLES)
    limit: int = flag(160, "longest response of natural length, in tokens", low=8)
    forced: int = flag(
        96, "tokens of every response where all are forced to one length", low=8)
    compile: bool = flag(
        True,
        "measure the compiled decoding step and, on a GPU, compiled training as well; "
        "needs a C++ compiler")
    peers: bool = flag(True, "measure transformers and TRL too, where they are installed")
    json: str = flag("", "file for the figures")
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions and samples", low=0)


@dataclass
class Bench:
    """What every part measures with.

    bf16: whether bfloat16 pays on this machine; scratch: a folder for runs of scripts; peaks: of
    `roofline`.
    """

    config: Config
    device: torch.device
    bf16: bool
    model: GPT
    scratch: Path
    peaks: dict = field(default_factory=dict)

    @property
    def cuda(self):
        """Whether this is a GPU of NVIDIA's."""
        return self.device.type == "cuda"

    def peer(self, package):
        """Whether a peer should be measured too: it is installed, and --peers."""
        return self.config.peers and importlib.util.find_spec(package) is not None

    def peer_dtypes(self):
        """What peers are timed in. Emulated bfloat16 would take minutes, so only where it pays."""
        return (torch.float32, torch.bfloat16) if self.bf16 else (torch.float32,)

    def weights(self):
        """A checkpoint of the model, for runs of scripts."""
        path = self.scratch / "weights.pt"
        checkpoint.save(path, self.model)
        return path


def name_of(dtype):
    """torch.float32  ->  "float32" """
    return str(dtype).removeprefix("torch.")


def seconds(call, bench):
    """Median wall-clock seconds of call(), after one call to warm up; waits for a GPU to finish."""

    def wait():
        if bench.device.type != "cpu":
            torch.accelerator.synchronize(bench.device)

    times = []
    for _ in range(bench.config.repeats + 1):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def eager_and_compiled(ours, compiled):
    """{name: function} of what we do, compiled as well where that is asked for."""
    calls = {"ours": ours}
    if compiled:
        calls["ours, compiled"] = partial(ours, compile=True)
    return calls


def alternate(calls, repeats):
    """Run calls in turns, so that a machine that slows down slows all: {name: median}.

    calls: {name: function that returns a rate or a time}. The first turn warms up.
    """
    seen = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            seen[name].append(call())
    return {name: statistics.median(values[1:]) for name, values in seen.items()}


# Roofline


def matmul_rate(dtype, bench):
    """FLOP/s of a product of two square matrices."""
    n = 8192 if bench.cuda else 2048
    if dtype == torch.bfloat16 and not bench.bf16:
        n = 256  # emulated: the large product takes half a minute
    a = torch.randn(n, n, device=bench.device).to(dtype)
    b = torch.randn(n, n, device=bench.device).to(dtype)
    return 2 * n**3 / seconds(lambda: a @ b, bench)


def copy_rate(bench):
    """Bytes per second of a large copy, read and written."""
    x = torch.empty(2**28 if bench.cuda else 2**26, device=bench.device).normal_()
    y = torch.empty_like(x)
    return 2 * x.nbytes / seconds(lambda: y.copy_(x), bench)


def roofline(bench):
    """What the machine can do at best: {"float32", "bfloat16": FLOP/s, "copy": bytes/s}."""
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        peaks[name_of(dtype)] = matmul_rate(dtype, bench)
    peaks["copy"] = copy_rate(bench)
    say(
        f"roofline: float32 {peaks['float32'] / 1e9:.0f} GFLOP/s, "
        f"bfloat16 {peaks['bfloat16'] / 1e9:.0f} GFLOP/s, copies {peaks['copy'] / 1e9:.0f} GB/s")
    return peaks


# Attention


def sdpa_backends(q, k, v, mask):
    """PyTorch's own attention by backend: {name: function of no arguments}.

    q, k, v (B, H, T, D); mask: which keys each query sees, None for causal rows.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run(backend):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    names = ("FLASH_ATTENTION", "MATH")
    if q.is_cuda:
        names = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
    backends = {}
    for name in names:
        backends[name.split("_")[0].lower()] = partial(run, getattr(SDPBackend, name))
    return backends


def attention_shapes(cuda):
    """(T, D, packed) of every row of the comparison."""
    head_dims = (64, 128) if cuda else (32,)
    lengths = (512, 1024, 2048, 4096, 8192, 16384) if cuda else (128, 256)
    return [(T, D, packed) for packed in (False, True) for D in head_dims for T in lengths]


def packed_documents(T, seed):
    """A row of T tokens packed with documents of 32 to 96 tokens.

    Returns (doc_start (T,) int32: for each token where its document starts, lengths of the
    documents).
    """
    documents = generator(seed, "documents")
    lengths = torch.randint(32, 97, (T // 32 + 1,), generator=documents)
    starts = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
    starts = starts[starts < T]
    owner = torch.searchsorted(starts, torch.arange(T), right=True) - 1  # (T,)
    return starts[owner].int(), torch.diff(torch.cat((starts, torch.tensor([T]))))


def time_attention(call, inputs, flops, bench):
    """Milliseconds and TFLOP/s of call(), and of call() with its backward pass to the inputs.

    flops: of the forward pass; the backward pass has 2.5 times as many.
    """
    grad = torch.randn_like(call())
    forward = seconds(lambda: call().detach(), bench)
    both = seconds(lambda: torch.autograd.grad(call(), inputs, grad), bench)
    return dict(
        forward_ms=forward * 1e3, both_ms=both * 1e3,
        forward_tflops=flops / forward / 1e12, both_tflops=3.5 * flops / both / 1e12)


def attention_row(T, D, packed, bench):
    """Every backend on rows of T tokens with heads of D: figures, or why there are none."""
    if bench.cuda:
        B = max(1, 32768 // T)
        H = 2048 // D
    else:
        B = 4096 // T
        H = 4
    dtype = torch.bfloat16 if bench.bf16 else torch.float32
    shape = dict(size=(B, T, H, D), device=bench.device, dtype=dtype, requires_grad=True)
    q, k, v = (torch.randn(**shape) for _ in range(3))
    doc_start = None
    mask = None
    lengths = torch.tensor([T])
    if packed:
        row_start, lengths = packed_documents(T, bench.config.seed)
        doc_start = row_start.expand(B, T).contiguous().to(bench.device)
        mask = attention.document_mask(doc_start[:1])  # (1, 1, T, T)
    flops = 2 * B * H * D * int((lengths**2).sum())

    def ours():
        return attention.attention(q, k, v, doc_start).transpose(1, 2)  # (B, H, T, D)

    row = dict(T=T, D=D, B=B, H=H, packed=packed)
    row["ours"] = time_attention(ours, (q, k, v), flops, bench)
    theirs = sdpa_backends(*(x.transpose(1, 2) for x in (q, k, v)), mask)
    for name, call in theirs.items():
        try:
            row[name] = time_attention(call, (q, k, v), flops, bench)
        except torch.OutOfMemoryError:
            row[name] = "out of memory"
        except RuntimeError:
            row[name] = "does not take this"
    return row


def attention_speed(bench):
    """Our attention beside every backend of PyTorch's that takes the shape, forward and backward.

    As many key/value heads as query heads, which every backend takes. On packed rows PyTorch's
    attention needs the whole T x T mask. FLOPs counted: causal rows 4 B H D T^2 / 2 forward and 2.5
    times that backward, packed rows likewise within each document.
    """
    rows = []
    for T, D, packed in attention_shapes(bench.cuda):
        row = attention_row(T, D, packed, bench)
        rows.append(row)
        said = []
        for name, r in row.items():
            if isinstance(r, dict):
                said.append(
                    f"{name} {r['forward_ms']:.2f} / {r['both_ms']:.2f} ms "
                    f"({r['forward_tflops']:.2f} / {r['both_tflops']:.2f} TFLOP/s)")
        kind = "packed" if packed else "causal"
        say(f"attention T={T:<5d} D={D:<3d} {kind}: {', '.join(said)}")
    return rows


# Training


def run_stage(script, scratch, name, **flags):
    """Run one of the scripts as a user would: (its metrics, a list of dicts, its report).

    Raises UserError where it fails.
    """
    out = scratch / f"{name}-{time.monotonic_ns()}"
    words = [str(ROOT / script), *flag_words(flags), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, *words], env=environment(), capture_output=True, encoding="utf-8",
        errors="replace")
    if done.returncode:
        raise UserError(f"{script} failed: {last_line(done.stderr, done.returncode)}")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return read_metrics(out / "metrics.jsonl"), report


def train_speed(bench):
    """Real tokens per second of train_sft.py, and their share of the matrix-product rate.

    Real tokens leave padding out; Muon is included. On a GPU eager and compiled; on a CPU beside
    the loop that pads.
    """
    size = dict(batch_tokens=1536, row_tokens=256, demos=1500)
    if bench.cuda:
        size = dict(batch_tokens=65_536, micro_tokens=16_384, row_tokens=1024, demos=36_000)
    weights = bench.weights()

    def ours(**flags):
        rows, report = run_stage(
            "train_sft.py", bench.scratch, "sft", stage="cold-start", init=weights, max_steps=30,
            log_every=1, device=bench.device.type, save_every=1000, **size, **flags)
        step = statistics.median(row["step_seconds"] for row in rows[8:])
        return report["real_share"] * size["batch_tokens"] / step

    calls = eager_and_compiled(ours, bench.cuda and bench.config.compile)
    if not bench.cuda:
        # train_sft.py leaves out what is longer than a row; so must the padded loop
        documents = corpus.demonstrations(1500, bench.config.seed)
        tokenized = corpus.tokenize(documents, bench.model.tokenizer)
        examples = [e for e in tokenized if len(e.ids) <= size["row_tokens"]]
        for rows in (8, 24):
            padded = partial(padded_sft_rate, bench.model, examples, rows, 480 // rows)
            calls[f"padded loop, batches of {rows}, float32"] = padded

    figures = {}
    for name, rate in alternate(calls, 1 if bench.cuda else bench.config.repeats).items():
        # FLOP/s in matrix products; what attention adds within short documents is left out
        used = training_flops(bench.model.config, rate, 0)
        dtype = "bfloat16" if bench.bf16 and name.startswith("ours") else "float32"
        share = used / bench.peaks[dtype]
        figures[name] = dict(tokens_per_second=rate, share_of_matmul_rate=share)
        say(
            f"train: {name}: {rate:.0f} tokens/s, "
            f"{share:.1%} of the matrix-product rate in {dtype}")
    return figures


# Sampling


def prefill_speed(bench):
    """Prompt tokens read per second, and their share of the matrix-product rate."""
    policy = make_sampler(bench.model, bench.bf16)
    dtype = policy.embed.weight.dtype
    B = 32
    T = min(256, policy.config.max_len)
    idx = torch.randint(0, 500, (B, T), device=bench.device)
    lengths = torch.full((B,), T, device=bench.device)
    with torch.inference_mode():
        cache = KVCache(policy.config, B, T, bench.device, dtype)
        elapsed = seconds(lambda: policy.prefill(idx, lengths, cache), bench)
    rate = idx.numel() / elapsed
    # the head is read once per row, not once per token
    head = 2 * policy.config.vocab_size * policy.config.n_embd * (1 - 1 / T)
    forward = training_flops(policy.config, 1, T) / 3 - head  # FLOPs per token
    share = rate * forward / bench.peaks[name_of(dtype)]
    say(f"prefill: {rate:.0f} tokens/s, {share:.1%} of the matrix-product rate")
    return dict(tokens_per_second=rate, share_of_matmul_rate=share)


def questions(config):
    """Questions for --rows in groups of SAMPLES, from the validation split."""
    count = config.rows // SAMPLES
    found = []
    for family in FAMILIES:
        found += problem_set(family, 2, "val", 1 + count // len(FAMILIES), config.seed)
    return found[:count]


class Never(torch.nn.Module):
    """A head under which the stop token has no chance: every response runs to the limit."""

    def __init__(self, head, stop):
        super().__init__()
        self.head = head
        self.stop = stop

    def forward(self, x):
        logits = self.head(x)
        logits[..., self.stop] = float("-inf")
        return logits


def our_rates(policy, prompts, tokens, config):
    """{name: function that returns our sampled tokens per second}, eager and compiled."""

    def ours(compile=False):
        noise = generator(config.seed, "bench")
        start = time.perf_counter()
        rollout = generate(
            policy, prompts, SAMPLES, tokens, 1.0, noise, max_rows=config.rows, compile=compile)
        count = rollout.lengths.sum().item()  # waits for a GPU
        return count / (time.perf_counter() - start)

    return eager_and_compiled(ours, config.compile)


def peer_rates(bench, prompts, tokens, forced):
    """{name: function that returns transformers' sampled tokens per second}, by dtype."""
    qwen = to_qwen3(bench.model)
    options = {}
    if bench.cuda:
        options["cache_implementation"] = "static"  # compiled and graphed; slower on a CPU

    def theirs(dtype):
        count, elapsed = peer_generate(
            qwen, prompts, SAMPLES, tokens, forced=forced, dtype=dtype, **options)
        return count / elapsed

    calls = {}
    for dtype in bench.peer_dtypes():
        calls[f"transformers, {name_of(dtype)}"] = partial(theirs, dtype)
    return calls


def decoding_bound(policy, prompts, bench):
    """(tokens/s, bytes, FLOPs) that the machine allows, and that one step of all rows takes.

    The slower of traffic and arithmetic: a step reads all weights and, on average, half of the
    sampled part of the cache; it takes two operations per weight and row.
    """
    dtype = policy.embed.weight.dtype
    rows = bench.config.rows
    mean_prompt = sum(map(len, prompts)) / len(prompts)
    slots = mean_prompt + bench.config.forced / 2  # mean length of the cache
    cache = cache_memory(policy.config, rows, slots, dtype == torch.bfloat16)
    traffic = policy.num_params * dtype.itemsize + cache
    arithmetic = rows * policy.flops_per_token()
    step = max(traffic / bench.peaks["copy"], arithmetic / bench.peaks[name_of(dtype)])  # seconds
    return rows / step, traffic, arithmetic


def generate_speed(bench):
    """Sampled tokens per second, at natural lengths and at one forced length beside its bound."""
    config = bench.config
    model = bench.model
    render = model.tokenizer.render_prompt
    prompts = [render(problem.question) for problem in questions(config)]
    policy = make_sampler(model, bench.bf16)
    stubborn = make_sampler(policy, False)  # the same weights, but it never stops
    stubborn.head = Never(policy.head, model.tokenizer.end)
    figures = {}
    kinds = (("natural", policy, config.limit), ("forced", stubborn, config.forced))
    for kind, who, tokens in kinds:
        calls = our_rates(who, prompts, tokens, config)
        if bench.peer("transformers"):
            calls |= peer_rates(bench, prompts, tokens, kind == "forced")
        figures[kind] = alternate(calls, config.repeats)
        said = [f"{name} {rate:.0f} tokens/s" for name, rate in figures[kind].items()]
        say(f"generate, {kind} lengths, {config.rows} rows: {', '.join(said)}")

    bound, traffic, arithmetic = decoding_bound(policy, prompts, bench)
    fastest = max(rate for name, rate in figures["forced"].items() if name.startswith("ours"))
    figures["bound"] = bound
    figures["share_of_bound"] = fastest / bound
    say(
        f"generate, forced: bound {bound:.0f} tokens/s ({traffic / 1e6:.1f} MB and "
        f"{arithmetic / 1e9:.2f} GFLOP per step), reached {fastest / bound:.1%}")
    return figures


# GRPO


def grpo_speed(bench):
    """Seconds of a whole GRPO step of train_grpo.py, beside trl.GRPOTrainer's.

    Questions, rollout, rewards and one update; no KL; natural lengths.
    """
    config = bench.config
    weights = bench.weights()
    silent = []  # shares of groups without signal

    def ours(compile=False):
        rows, _ = run_stage(
            "train_grpo.py", bench.scratch, "grpo", compile=compile, init=weights,
            batch_size=config.rows, num_samples_per_prompt=SAMPLES, steps=6, minibatches=1,
            kl="none", eval_every=0, save_every=1000, max_reasoning_tokens=config.limit,
            learning_rate=1e-6, level=2, device=bench.device.type)
        silent.extend(row["all_right"] + row["all_wrong"] for row in rows)
        return statistics.median(row["rollout_seconds"] + row["update_seconds"] for row in rows[2:])

    def theirs(bf16, micro_rows):
        log = trl_grpo(
            bench.model, questions(config), 6, config.rows // SAMPLES, SAMPLES,
            min(micro_rows, config.rows), config.limit, bf16, learning_rate=1e-6)
        return statistics.median(row["seconds"] for row in log[1:])

    calls = eager_and_compiled(ours, bench.cuda and config.compile)
    if bench.peer("trl"):
        # of micro-batches of 32, 64 and 256 none was reliably the fastest on a CPU
        micro_rows = {torch.float32: 32, torch.bfloat16: 64}
        for dtype in bench.peer_dtypes():
            bf16 = dtype == torch.bfloat16
            calls[f"TRL, {name_of(dtype)}"] = partial(theirs, bf16, micro_rows[dtype])
    figures = alternate(calls, max(1, config.repeats // 2))
    said = [f"{name} {step:.2f} s" for name, step in figures.items()]
    # ours leaves such groups out of the update; TRL computes their zero gradients
    share = statistics.mean(silent)
    figures["share_of_groups_without_signal"] = share
    say(
        f"GRPO step, {config.rows} samples: {', '.join(said)}; {share:.0%} of "
        "the groups were without signal, and ours updates on the others alone")
    return figures


MEASURES = {  # {part: bench -> its figures}
    "attention": attention_speed,
    "train": train_speed,
    "prefill": prefill_speed,
    "generate": generate_speed,
    "grpo": grpo_speed,
}


def check_config(config):
    """Raises UserError for a part that does not exist and for rows that make no whole groups."""
    listed(config.parts, "parts", PARTS, "part")
    if config.rows % SAMPLES:
        raise UserError(
            f"--rows {config.rows}: a multiple of {SAMPLES}, "
            f"for questions have {SAMPLES} samples each")


def load_model(config, machine):
    """The model of --ckpt, or one of random weights."""
    if config.ckpt:
        return checkpoint.load_model(config.ckpt, machine.device)
    name = config.model or ("base" if machine.device.type == "cuda" else "micro")
    model = GPT(PRESETS[name], shipped_tokenizer()).init_weights(generator(config.seed, "weights"))
    return model.to(machine.device).eval()


def device_name(device):
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def main():
    """Measure the parts that the flags name, and print and keep their figures."""
    config = parse_config(Config, doc=__doc__)
    check_config(config)
    check_output(config.json, "json")
    machine = start_machine(config.device)
    model = load_model(config, machine)
    name = device_name(machine.device)
    say(
        f"bench: {model.num_params / 1e6:.2f}M parameters on {machine.device} ({name}), "
        f"torch {torch.__version__}, medians of {config.repeats}")
    if config.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        config.compile = False
        say("no C++ compiler here: nothing compiled is measured")

    with tempfile.TemporaryDirectory() as scratch:
        bf16 = choose_bf16("auto", machine)
        bench = Bench(config, machine.device, bf16, model, Path(scratch))
        bench.peaks = roofline(bench)
        figures = dict(
            device=name, torch=torch.__version__, params=model.num_params, roofline=bench.peaks)
        for part, measure in MEASURES.items():
            if part not in listed(config.parts, "parts"):
                continue
            if part == "grpo" and not config.ckpt:
                say("grpo: left out, it needs --ckpt")
                continue
            figures[part] = measure(bench)
            if config.json:
                write_json(config.json, figures)

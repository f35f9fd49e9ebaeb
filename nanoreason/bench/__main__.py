"""How fast is this machine, and what share of what it could do do we reach?

    python -m nanoreason.bench --ckpt runs/speedrun/cold                  everything that this device can run
    python -m nanoreason.bench --parts generate,grpo --json bench.json    some of it

Every rate stands beside the roofline measured in the same run: the rate of matrix products, and the bandwidth of copies. Where transformers
and TRL are installed (they are not required), the same weights do the same work in their code, run by run in turns with ours; figures are
medians. Without --ckpt the weights are random: lengths of responses then mean nothing, and GRPO, which would find nothing to learn from, is left out.
"""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from nanoreason import attention, checkpoint, corpus
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.run import read_metrics, say, write_json
from nanoreason.generate import generate, sampler
from nanoreason.model import GPT, PRESETS, KVCache, cache_memory, training_flops
from nanoreason.bench.peers import padded_sft_rate, peer_generate, to_qwen3, trl_grpo
from nanoreason.tasks import problem_set
from nanoreason.tokenizer import END, render_prompt

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("multiplication", "chain", "percent", "word", "equation")


@dataclass
class Config:
    ckpt: str = flag("", "checkpoint or run folder to measure with; empty takes random weights of --model")
    model: str = flag("", "size for random weights: micro on a CPU, base on a GPU unless given", choices=("", *PRESETS))
    parts: str = flag("roofline,attention,train,prefill,generate,grpo", "what to measure, separated by commas")
    repeats: int = flag(5, "runs of each thing; medians are reported", low=1)
    rows: int = flag(256, "responses sampled at once", low=8)
    limit: int = flag(160, "longest response of natural length, in tokens", low=8)
    forced: int = flag(96, "tokens of every response where all are forced to one length", low=8)
    compile: bool = flag(True, "measure the compiled decoding step and, on a GPU, compiled training as well; needs a C++ compiler")
    peers: bool = flag(True, "measure transformers and TRL too, where they are installed")
    json: str = flag("", "file for the figures")
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions and samples", low=0)


def seconds(call, device, repeats=5):
    """Median wall-clock seconds of call(), after one call to warm up; waits for a GPU to finish."""
    sync = dict(cuda=torch.cuda.synchronize, mps=torch.mps.synchronize).get(device.type, lambda: None)
    times = []
    for _ in range(repeats + 1):
        sync()
        start = time.perf_counter()
        call()
        sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def alternate(calls, repeats):
    """Run each of `calls` {name: function returning a rate or a time} in turns; {name: median}. The first turn warms up."""
    seen = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            seen[name].append(call())
    return {name: statistics.median(values[1:]) for name, values in seen.items()}


def roofline(config, machine):
    """What the machine can do at best: FLOP/s of square matrix products by dtype, and bytes/s of copies (read and written)."""
    out = {}
    for dtype in (torch.float32, torch.bfloat16):
        n = 8192 if machine.device.type == "cuda" else 2048
        if dtype == torch.bfloat16 and not choose_bf16("auto", machine):
            n = 256  # emulated: the large product takes half a minute
        a, b = (torch.randn(n, n, device=machine.device).to(dtype) for _ in range(2))
        out[str(dtype).removeprefix("torch.")] = 2 * n**3 / seconds(lambda: a @ b, machine.device, config.repeats)
    x = torch.empty(2**28 if machine.device.type == "cuda" else 2**26, device=machine.device).normal_()
    y = torch.empty_like(x)
    out["copy"] = 2 * x.nbytes / seconds(lambda: y.copy_(x), machine.device, config.repeats)
    say(f"roofline: float32 {out['float32'] / 1e9:.0f} GFLOP/s, bfloat16 {out['bfloat16'] / 1e9:.0f} GFLOP/s, copies {out['copy'] / 1e9:.0f} GB/s")
    return out


def sdpa_backends(q, k, v, mask):
    """PyTorch's own attention by backend, {name: function of no arguments}; q (B, H, T, D), k and v repeated to H heads."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run(backend):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    names = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION") if q.is_cuda else ("FLASH_ATTENTION", "MATH")
    return {name.split("_")[0].lower(): lambda b=getattr(SDPBackend, name): run(b) for name in names}


def attention_speed(config, machine):
    """Forward, and forward with backward, of our attention beside every backend of PyTorch's that takes the shape: milliseconds and TFLOP/s.

    As many key/value heads as query heads, which every backend takes. Packed rows hold documents of 32 to 96 tokens; PyTorch's attention then
    needs the whole T x T mask. FLOPs counted: causal rows 4 B H D T^2 / 2 forward
    and 2.5 times that backward, packed rows likewise within each document.
    """
    device, cuda, rows = machine.device, machine.device.type == "cuda", []
    dtype = torch.bfloat16 if choose_bf16("auto", machine) else torch.float32
    for T, D, packed in [(T, D, packed) for packed in (False, True) for D in ((64, 128) if cuda else (32,)) for T in ((512, 1024, 2048, 4096, 8192, 16384) if cuda else (128, 256))]:
        B, H = (max(1, 32768 // T), 2048 // D) if cuda else (4096 // T, 4)
        q, k, v = (torch.randn(B, T, H, D, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
        lengths = torch.randint(32, 97, (T // 32 + 1,), generator=generator(config.seed, "documents"))
        starts = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
        starts = starts[starts < T]
        doc_start = starts[torch.searchsorted(starts, torch.arange(T), right=True) - 1].int().expand(B, T).contiguous().to(device) if packed else None
        sizes = torch.diff(torch.cat((starts, torch.tensor([T])))) if packed else torch.tensor([T])
        flops = 2 * B * H * D * int((sizes**2).sum())
        mask = attention.document_mask(doc_start[:1]) if packed else None
        calls = {"ours": lambda: attention.attention(q, k, v, doc_start).transpose(1, 2)} | sdpa_backends(*(x.transpose(1, 2) for x in (q, k, v)), mask)
        row = dict(T=T, D=D, B=B, H=H, packed=packed)
        for name, call in calls.items():
            try:
                grad = torch.randn_like(call())
                forward = seconds(lambda: call().detach(), device, config.repeats)
                both = seconds(lambda: torch.autograd.grad(call(), (q, k, v), grad), device, config.repeats)
            except RuntimeError as error:
                if name == "ours":
                    raise
                row[name] = "out of memory" if isinstance(error, torch.OutOfMemoryError) else "does not take this"
                continue
            row[name] = dict(forward_ms=forward * 1e3, both_ms=both * 1e3, forward_tflops=flops / forward / 1e12, both_tflops=3.5 * flops / both / 1e12)
        rows.append(row)
        say(f"attention T={T:<5d} D={D:<3d} {'packed' if packed else 'causal'}: " + ", ".join(
            f"{name} {r['forward_ms']:.2f} / {r['both_ms']:.2f} ms ({r['forward_tflops']:.2f} / {r['both_tflops']:.2f} TFLOP/s)" for name, r in row.items() if isinstance(r, dict)))
    return rows


def stage_words(**flags):
    """Flags as the words of a command line; True is a bare flag, False none."""
    words = []
    for key, value in flags.items():
        if value is not False:
            words.append("--" + key.replace("_", "-"))
            words += [] if value is True else [str(value)]
    return words


def run_stage(script, scratch, name, **flags):
    """Run one of the scripts as a user would; returns its metrics, a list of dicts, and its report."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    out = Path(scratch) / f"{name}-{time.monotonic_ns()}"
    done = subprocess.run([sys.executable, str(ROOT / script), *stage_words(**flags), "--out", str(out)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return read_metrics(out / "metrics.jsonl"), json.loads((out / "report.json").read_text())


def train_speed(config, machine, model, scratch, peaks):
    """Real tokens/s (padding left out) of train_sft.py, Muon included, eager and (on a GPU) compiled, and its share of the matrix-product rate; beside it the padded loop."""
    cuda = machine.device.type == "cuda"
    size = dict(batch_tokens=65_536, micro_tokens=16_384, row_tokens=1024, demos=36_000) if cuda else dict(batch_tokens=1536, row_tokens=256, demos=1500)
    bf16, out = choose_bf16("auto", machine), {}
    weights = Path(scratch) / "weights.pt"
    checkpoint.save(weights, model)
    examples = [e for e in corpus.demonstrations(1500, config.seed) if len(e.ids) <= size["row_tokens"]]  # ours leaves longer ones out

    def ours(**flags):
        rows, report = run_stage("train_sft.py", scratch, "sft", stage="cold-start", init=weights, max_steps=30, log_every=1, device=machine.device.type,
                         save_every=1000, **size, **flags)
        return report["real_share"] * size["batch_tokens"] / statistics.median(row["step_seconds"] for row in rows[8:])

    calls = {"ours": ours}
    if cuda and config.compile:
        calls["ours, compiled"] = lambda: ours(compile=True)
    if not cuda:
        for rows in (8, 24):
            calls[f"padded loop, batches of {rows}, float32"] = lambda rows=rows: padded_sft_rate(model, examples, rows, 480 // rows)
    for name, rate in alternate(calls, 1 if cuda else config.repeats).items():
        used = training_flops(model.config, rate, 0)  # FLOP/s in matrix products; what attention adds within short documents is left out
        dtype = "bfloat16" if bf16 and name.startswith("ours") else "float32"
        out[name] = dict(tokens_per_second=rate, share_of_matmul_rate=used / peaks[dtype])
        say(f"train: {name}: {rate:.0f} tokens/s, {out[name]['share_of_matmul_rate']:.1%} of the matrix-product rate in {dtype}")
    return out


def prefill_speed(config, machine, model, peaks):
    """Prompt tokens read a second, and the share of the matrix-product rate."""
    T = min(256, model.config.max_len)
    idx = torch.randint(0, 500, (32, T), device=machine.device)
    lengths = torch.full((32,), T, device=machine.device)
    with torch.inference_mode():
        cache = KVCache(model.config, 32, T, machine.device, model.embed.weight.dtype)
        rate = idx.numel() / seconds(lambda: model.prefill(idx, lengths, cache), machine.device, config.repeats)
    head = 2 * model.config.vocab_size * model.config.n_embd * (1 - 1 / T)  # read once a row, not once a token
    share = rate * (training_flops(model.config, 1, T) / 3 - head) / peaks[str(model.embed.weight.dtype).removeprefix("torch.")]
    say(f"prefill: {rate:.0f} tokens/s, {share:.1%} of the matrix-product rate")
    return dict(tokens_per_second=rate, share_of_matmul_rate=share)


def questions(config):
    """Questions for rows / 8 groups of 8 samples, from the validation split."""
    found = [p for family in FAMILIES for p in problem_set(family, 2, "val", 1 + config.rows // 8 // len(FAMILIES), config.seed)]
    return found[: config.rows // 8]


def generate_speed(config, machine, model, peaks):
    """Sampled tokens/s at natural lengths and at one forced length; the latter beside its bound, the slower of traffic and arithmetic:
    weights and filled cache read once a step, and two operations a weight and token."""
    prompts, out = [render_prompt(p.question) for p in questions(config)], {}
    policy = sampler(model, choose_bf16("auto", machine))
    stubborn = sampler(policy, False)  # never stops: the weights are the same, the stop token's logit is not
    stubborn.head = Never(policy.head)

    def ours(who, tokens, compile):
        start = time.perf_counter()
        rollout = generate(who, prompts, 8, tokens, 1.0, generator(config.seed, "bench"), max_rows=config.rows, compile=compile)
        lengths = rollout.lengths.sum().item()
        return lengths / (time.perf_counter() - start)

    for kind, who, tokens in (("natural", policy, config.limit), ("forced", stubborn, config.forced)):
        calls = {"ours, compiled" if c else "ours": lambda c=c: ours(who, tokens, c) for c in ((False, True) if config.compile else (False,))}
        if config.peers and importlib.util.find_spec("transformers"):
            qwen = to_qwen3(model)

            static = dict(cache_implementation="static") if machine.device.type == "cuda" else {}  # compiled and graphed there; slower on a CPU

            def theirs(dtype):
                count, spent = peer_generate(qwen, prompts, 8, tokens, forced=kind == "forced", dtype=dtype, **static)
                return count / spent

            calls |= {f"transformers, {str(d).removeprefix('torch.')}": lambda d=d: theirs(d) for d in (torch.float32, torch.bfloat16)}
        out[kind] = alternate(calls, config.repeats)
        say(f"generate, {kind} lengths, {config.rows} rows: " + ", ".join(f"{name} {rate:.0f} tokens/s" for name, rate in out[kind].items()))
    dtype = policy.embed.weight.dtype
    traffic = model.num_params * dtype.itemsize + cache_memory(model.config, config.rows, sum(map(len, prompts)) / len(prompts) + config.forced / 2, dtype == torch.bfloat16)
    arithmetic = config.rows * model.flops_per_token()
    bound = config.rows / max(traffic / peaks["copy"], arithmetic / peaks[str(dtype).removeprefix("torch.")])
    out["bound"], out["share_of_bound"] = bound, max(rate for name, rate in out["forced"].items() if name.startswith("ours")) / bound
    say(f"generate, forced: bound {bound:.0f} tokens/s ({traffic / 1e6:.1f} MB and {arithmetic / 1e9:.2f} GFLOP a step), reached {out['share_of_bound']:.1%}")
    return out


class Never(torch.nn.Module):
    """A head under which the stop token has no chance."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        logits = self.head(x)
        logits[..., END] = float("-inf")
        return logits


def grpo_speed(config, machine, model, scratch):
    """Seconds of a whole GRPO step of train_grpo.py (questions, rollout, judge, one update; no KL; natural lengths), beside trl.GRPOTrainer's."""
    weights = Path(scratch) / "weights.pt"
    checkpoint.save(weights, model)

    silent = []

    def ours(compile=False):
        rows, _ = run_stage("train_grpo.py", scratch, "grpo", compile=compile, init=weights, batch_size=config.rows // 8 * 8, num_samples_per_prompt=8, steps=6, minibatches=1, kl="none",
                         eval_every=0, save_every=1000, max_reasoning_tokens=config.limit, learning_rate=1e-6, level=2, device=machine.device.type)
        silent.extend(row["all_right"] + row["all_wrong"] for row in rows)
        return statistics.median(row["rollout_seconds"] + row["update_seconds"] for row in rows[2:])

    calls = {"ours": ours}
    if machine.device.type == "cuda" and config.compile:
        calls["ours, compiled"] = lambda: ours(compile=True)
    if config.peers and importlib.util.find_spec("trl"):
        def theirs(bf16, micro_rows):
            log = trl_grpo(model, questions(config), 6, config.rows // 8, 8, micro_rows, config.limit, bf16, learning_rate=1e-6)
            return statistics.median(row["seconds"] for row in log[1:])

        # of micro-batches of 32, 64 and 256 none was reliably the fastest on a CPU
        calls |= {"TRL, float32": lambda: theirs(False, min(32, config.rows)), "TRL, bfloat16": lambda: theirs(True, min(64, config.rows))}
    out = alternate(calls, max(1, config.repeats // 2))
    out["share_of_groups_without_signal"] = statistics.mean(silent)  # ours leaves them out of the update; TRL computes their zero gradients
    say(f"GRPO step, {config.rows} samples: " + ", ".join(f"{name} {spent:.2f} s" for name, spent in list(out.items())[:-1])
        + f"; {out['share_of_groups_without_signal']:.0%} of the groups were without signal, and ours updates on the others alone")
    return out


def main():
    config = parse_config(Config, doc=__doc__)
    parts = config.parts.split(",")
    if unknown := [p for p in parts if p not in ("roofline", "attention", "train", "prefill", "generate", "grpo")]:
        raise UserError(f"--parts: there is no part {unknown[0]!r}; there are roofline, attention, train, prefill, generate, grpo")
    if config.rows % 8:
        raise UserError(f"--rows {config.rows}: a multiple of 8, for questions have 8 samples each")
    machine = start_machine(config.device)
    if config.ckpt:
        model = checkpoint.load_model(config.ckpt, machine.device)
    else:
        name = config.model or ("base" if machine.device.type == "cuda" else "micro")
        model = GPT(PRESETS[name]).init_weights(generator(config.seed, "weights")).to(machine.device).eval()
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    say(f"bench: {model.num_params / 1e6:.2f}M parameters on {machine.device} ({name}), torch {torch.__version__}, medians of {config.repeats}")
    if config.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        config.compile = False
        say("no C++ compiler here: nothing compiled is measured")
    peaks = roofline(config, machine)
    figures = dict(device=name, torch=torch.__version__, params=model.num_params, roofline=peaks)
    with tempfile.TemporaryDirectory() as scratch:
        for part, measure in (("attention", lambda: attention_speed(config, machine)), ("train", lambda: train_speed(config, machine, model, scratch, peaks)),
                              ("prefill", lambda: prefill_speed(config, machine, sampler(model, choose_bf16("auto", machine)), peaks)),
                              ("generate", lambda: generate_speed(config, machine, model, peaks)), ("grpo", lambda: grpo_speed(config, machine, model, scratch))):
            if part == "grpo" and part in parts and not config.ckpt:
                say("grpo: left out, it needs --ckpt")
            elif part in parts:
                figures[part] = measure()
                if config.json:
                    write_json(config.json, figures)


if __name__ == "__main__":
    run_script(main)

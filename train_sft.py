"""Supervised training: the base model, the cold start, and the final stage.

What this teaches. A language model learns by predicting the next token. Stage `base` does so on generated text: worked solutions,
tables of small results, and conversations mostly answered at once, our stand-in for the web. Stage `cold-start` continues on a few
thousand demonstrations that reason before they answer: after it the model thinks about every problem. Stage `final` starts again from
the base, with what reinforcement learning found and `distill.py --collect-only` kept of it, beside general data, which is answered at once, and safety
data: requests to refuse, and harmless ones that look like them. In all stages questions are context and not targets: their
numbers are random, and learning to predict them only adds noise (loss on worked solutions 0.53 without, 0.75 with).

Where it departs from DeepSeek-R1 (2501.12948, section 2.3). There the base is a 671B model read from disk and the cold
start is thousands of long, hand-checked chains; here the base is trained from random weights in minutes, and demonstrations come from
the task generator. The final stage there (2.3.3) is two epochs of 600 thousand rejection samples and 200 thousand others, and harmlessness is left to a second
round of RL; here it is some thousands, safety among them. Matrices train with Muon, everything else with AdamW (nanoreason/optim.py).

    laptop      python train_sft.py --stage base --out runs/base
                python train_sft.py --stage cold-start --init runs/base --out runs/cold
                python train_sft.py --stage final --init runs/base --data runs/rejection/traces.jsonl --epochs 2 --out runs/final
    one GPU     python -m nanoreason.corpus --write runs/corpus --tokens 500000000
                python train_sft.py --stage base --preset gpu --out runs/base
    8 GPUs      torchrun --nproc-per-node 8 train_sft.py --stage base --preset node --out runs/base
"""

import json
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from nanoreason import checkpoint, corpus
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import autocast, choose_bf16, generator, run_script, start_machine
from nanoreason.run import Interrupt, Metrics, prepare_out, say, StepBar, write_json
from nanoreason.data import IGNORE, batches, join, open_rows, pack
from nanoreason.model import GPT, PRESETS as MODELS, memory_line, training_flops, training_memory
from nanoreason.optim import AdamW, Muon
from nanoreason.replicas import Replicas, replica_count
from nanoreason.tasks import REASONING


@dataclass
class Config:
    stage: str = flag("base", "which data and which loss", choices=("base", "cold-start", "final"))
    init: str = flag("", "checkpoint or run folder to start from; empty starts from random weights")
    out: str = flag("runs/sft", "folder for the checkpoint, metrics and report")
    resume: bool = flag(False, "continue the run in --out")
    model: str = flag("micro", "size of a model that starts from random weights", choices=tuple(MODELS))
    data: str = flag("", "JSONL file to train on instead of generated text: prompt and response, or question and answer, a line")
    corpus: str = flag("", "base: folder that `python -m nanoreason.corpus --write` left, instead of text generated on the way")
    families: str = flag(",".join(REASONING), "families of the worked solutions and questions; leave some out to hold them out")
    tokens: int = flag(3_300_000, "base: tokens of generated text", low=1000)
    demos: int = flag(5000, "cold-start: demonstrations", low=1)
    general: float = flag(0.2, "final: share of the documents that are general data", low=0, high=1)
    safety: float = flag(0.1, "final: share of the documents that are safety data; the rest are the rows of --data", low=0, high=1)
    epochs: int = flag(1, "passes over the data", low=1)
    total_steps: int = flag(0, "steps to train for, over as many passes as they take; 0: as many as --epochs fill", low=0)
    reasoned: float = flag(0.12, "base: share of questions answered with their reasoning", low=0, high=1)
    textbook: float = flag(0.30, "base: share of documents that are worked solutions as running text", low=0, high=1)
    tables: float = flag(0.30, "base: share of documents that are tables of small results", low=0, high=0.8)
    batch_tokens: int = flag(1536, "tokens in a step, over all ranks", low=64)
    micro_tokens: int = flag(8192, "tokens in one forward pass of one rank; less saves memory", low=64)
    row_tokens: int = flag(256, "length of a packed row", low=16)
    muon_lr: float = flag(0.004, "peak learning rate of the matrices (update RMS matched to AdamW's)", low=0)
    adamw_lr: float = flag(0.003, "peak learning rate of embeddings and norms", low=0)
    weight_decay: float = flag(0.01, "decoupled weight decay of the matrices", low=0)
    warmup: float = flag(0.02, "share of the steps in which the rate climbs", low=0, high=1)
    cooldown: float = flag(0.6, "share of the steps, at the end, in which the rate falls linearly to zero", low=0, high=1)
    precision: str = flag("auto", "bf16 autocast where it is faster, or one of them", choices=("auto", "fp32", "bf16"))
    checkpoint_activations: bool = flag(False, "recompute each block in the backward pass instead of storing it: a third more arithmetic, far less memory")
    compile: bool = flag(False, "torch.compile the model: pays on a GPU, and on a CPU only for long runs")
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of data order and weights", low=0)
    max_steps: int = flag(0, "stop after this many steps; 0 trains to the end", low=0)
    log_every: int = flag(10, "steps between lines of metrics.jsonl", low=1)
    save_every: int = flag(200, "steps between checkpoints", low=1)


PRESETS = {
    "laptop": {},
    "gpu": dict(model="base", corpus="runs/corpus", tokens=500_000_000, batch_tokens=262_144, micro_tokens=16_384, row_tokens=1024, muon_lr=0.004, adamw_lr=0.003, compile=True),
    "node": dict(model="large", corpus="runs/corpus", tokens=4_000_000_000, batch_tokens=1_048_576, micro_tokens=16_384, row_tokens=1024, muon_lr=0.003, adamw_lr=0.002, compile=True),
}


def sft_loss(model, tokens, targets, doc_start):
    """Summed next-token cross-entropy over packed rows, a float32 scalar.

    tokens, targets: (B, T), IGNORE where nothing is learned; doc_start: (B, T). A third of the
    places are questions, padding or last tokens: the head does not look at them.
    """
    targets = targets.flatten()
    learned = (targets != IGNORE).nonzero().squeeze(1)  # (M,)
    logits = model(tokens, doc_start, select=learned)  # (M, V)
    return F.cross_entropy(logits.float(), targets[learned], reduction="sum")


def learning_rate(step, steps, warmup, cooldown):
    """Factor on the peak rate: climbs over the first `warmup` share of the steps, holds, falls to zero over the last `cooldown` share."""
    return min(1.0, (step + 1) / max(1, warmup * steps), (steps - step) / max(1, cooldown * steps))


def make_optimizers(model, config):
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norm weights."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if name.startswith("blocks.") and p.dim() == 2 else others).append(p)
    return [Muon(matrices, config.muon_lr, config.weight_decay),
            AdamW(others, config.adamw_lr, betas=(0.9, 0.95))]


def load_rows(config, machine, max_len):
    """Packed training rows, and packed rows of the validation split (perhaps none, for a small file), as the stage asks."""
    if config.row_tokens > max_len:
        raise UserError(f"--row-tokens {config.row_tokens} is longer than the model's context of {max_len}")
    if config.textbook + config.tables > corpus.MOST_TEXT:
        raise UserError(f"--textbook and --tables together are {config.textbook + config.tables:g}; {corpus.MOST_TEXT:g} of the documents is the most they may be")
    families = tuple(config.families.split(","))
    if unknown := [f for f in families if f not in REASONING]:
        raise UserError(f"--families: there is no family {unknown[0]!r} to reason about; there are {', '.join(REASONING)}")
    if config.stage == "final" and not config.data:
        raise UserError("--stage final needs --data: rejection samples, such as `distill.py --collect-only` leaves")
    if config.stage == "final" and config.general + config.safety >= 1:
        raise UserError(f"--general and --safety together are {config.general + config.safety:g}; less than 1 leaves room for --data")
    if config.stage == "base" and not config.data:
        return base_rows(config, families)
    if config.data:
        examples = corpus.read_examples(config.data)
    else:
        examples = {split: corpus.demonstrations(n, config.seed, split, families) for split, n in (("train", config.demos), ("val", 300))}
    if config.stage == "final":
        examples = {split: corpus.final_mix(some, config.general, config.safety, config.seed, split) for split, some in examples.items()}
    return pack(examples["train"], config.row_tokens), pack(examples["val"], config.row_tokens)


def base_rows(config, families):
    """The rows of stage base: generated on the way, or mapped from the folder of --corpus, which must hold what the flags ask for."""
    T, mix = config.row_tokens, corpus.BaseMix(tables=config.tables, textbook=config.textbook, reasoned=config.reasoned, families=families)
    val = pack(corpus.base_chunk(mix, config.seed, 0, split="val"), T)
    if not config.corpus:
        return join(list(corpus.base_rows(config.tokens, config.seed, mix, T))), val
    try:
        rows, meta = open_rows(config.corpus)
    except ValueError as error:
        raise UserError(f"--corpus: {error}; write one with `python -m nanoreason.corpus --write {config.corpus} --tokens {config.tokens} --row-tokens {T}`") from None
    made = meta["about"]
    wanted = dict(seed=config.seed, mix=json.loads(json.dumps(asdict(mix))))
    if wanted != {"seed": made.get("seed"), "mix": made.get("mix")}:
        raise UserError(f"--corpus {config.corpus} was written with {made}; this run asks for {wanted}")
    if meta["row_tokens"] != T or meta["real"] < config.tokens:
        raise UserError(f"--corpus {config.corpus} holds {meta['real']} tokens in rows of {meta['row_tokens']}; --tokens {config.tokens} in rows of {T} were asked for")
    return rows, val


def account(shape, config, bf16, machine, replicas):
    """What the run will cost, said before it starts: arithmetic a step, and whether it fits into memory."""
    flops = training_flops(shape, config.batch_tokens, config.row_tokens, config.checkpoint_activations)
    micro = min(config.micro_tokens * replicas, config.batch_tokens // machine.world)
    parts = training_memory(shape, micro, config.row_tokens, bf16, config.checkpoint_activations, muon=True, dense=bf16 and machine.device.type == "cpu")
    return f"{flops:.2g} FLOP a step of {config.batch_tokens} tokens; {memory_line(parts, machine)}"


@torch.no_grad()
def validation_loss(model, rows, config, machine, bf16):
    """Mean cross-entropy, in nats a learned token, over all validation rows; None where there are none."""
    loss = count = 0
    at_once = max(1, config.micro_tokens // config.row_tokens)
    for at in range(0, len(rows), at_once):
        tokens, targets, doc_start = rows.batch(slice(at, at + at_once), machine.device)
        with autocast(machine.device, bf16):
            loss += sft_loss(model, tokens, targets, doc_start).item()
        count += (targets != IGNORE).sum().item()
    return loss / count if count else None


def add_gradients(model, rows, index, count, config, machine, bf16):
    """Backward passes of the rows in `index`, micro-batch by micro-batch; returns their summed loss.

    Every micro-batch is divided by `count`, the targets in the whole batch, all ranks together, so
    that neither the number of micro-batches nor that of ranks or replicas changes the gradient.
    DDP averages over ranks; `world` undoes that.
    """
    total = 0.0
    at_once = max(1, config.micro_tokens // config.row_tokens)
    pieces = [index[at : at + at_once] for at in range(0, len(index), at_once)]
    for i, piece in enumerate(pieces):
        tokens, targets, doc_start = rows.batch(piece, machine.device)
        if machine.world > 1:  # only the last micro-batch needs to wait for the other ranks
            model.require_backward_grad_sync = i == len(pieces) - 1
        with autocast(machine.device, bf16):
            loss = sft_loss(model, tokens, targets, doc_start)
        (loss * machine.world / count).backward()
        total += loss.item()
    return total


def train_step(replicas, rows, index, machine):
    """One optimizer step on the rows in `index` (this rank's share); returns the loss in nats per
    token over all ranks. The work of the replicas is `add_gradients`."""
    count = machine.total((rows.targets[index] != IGNORE).sum())
    losses = replicas.gradients([(share, count) for share in np.array_split(index, replicas.count)])
    replicas.step()
    return machine.total(sum(losses)) / count


def train(config, machine):
    """Run the whole stage; returns the report that is also written to --out."""
    out = prepare_out(config.out, config, config.resume, machine)
    state = checkpoint.load(out if config.resume else config.init) if config.resume or config.init else None
    if state:
        model = checkpoint.build_model(state, machine.device)
    else:
        model = GPT(MODELS[config.model]).init_weights(generator(config.seed, "weights")).to(machine.device)
    bf16 = choose_bf16(config.precision, machine, state.get("bf16") if config.resume else None)
    batch_rows = max(machine.world, config.batch_tokens // config.row_tokens)
    copies = 1 if config.compile else replica_count(model, machine, batch_rows)
    say(account(model.config, config, bf16, machine, copies), machine)
    rows, val = load_rows(config, machine, model.config.max_len)
    epochs = -(-config.total_steps * batch_rows // max(1, len(rows))) or config.epochs
    plan = list(batches(len(rows), batch_rows, epochs, config.seed, machine.rank, machine.world))[: config.total_steps or None]
    if not plan:
        raise UserError(f"{len(rows)} rows of data do not fill one step of {batch_rows}; lower --batch-tokens")
    steps = min(len(plan), config.max_steps or len(plan))
    optimizers, first, loss = make_optimizers(model, config), 0, None
    if config.resume:
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        first, loss = state["step"], state.get("loss")
    model.checkpoint_activations = config.checkpoint_activations
    net = DistributedDataParallel(model, gradient_as_bucket_view=True) if machine.world > 1 else model
    net = torch.compile(net) if config.compile else net
    replicas = Replicas(net, optimizers, lambda net, share: add_gradients(net, rows, *share, config, machine, bf16), copies)
    say(f"{config.stage}: {model.num_params / 1e6:.2f}M parameters, {len(rows)} rows of {config.row_tokens} tokens ({rows.real_share:.1%} real, "
        f"{rows.skipped} documents too long), {steps} steps, {'bf16' if bf16 else 'fp32'} on {machine.device}", machine)

    metrics = Metrics(out / "metrics.jsonl", first, machine.main)
    save = lambda step: machine.main and checkpoint.save(out / "ckpt.pt", model, step=step, loss=loss, bf16=bf16, optimizers=[o.state_dict() for o in optimizers])
    interrupt, bar = Interrupt(), StepBar(steps, config.stage, machine, first)
    for step in range(first, steps):
        rate = learning_rate(step, len(plan), config.warmup, config.cooldown)
        for optimizer, peak in zip(optimizers, (config.muon_lr, config.adamw_lr)):
            optimizer.lr = peak * rate
        begun = time.time()
        loss = train_step(replicas, rows, plan[step], machine)
        bar.show(step, f"loss {loss:.3f}")
        if step % config.log_every == 0 or step == steps - 1:
            metrics.log(step=step, loss=loss, rate=rate, tokens=(step + 1) * batch_rows * config.row_tokens, step_seconds=time.time() - begun)
        stop = interrupt.agreed(machine)
        if (step + 1) % config.save_every == 0 or stop:
            save(step + 1)
        if stop:
            interrupt.leave(step + 1, machine)
    bar.close()
    interrupt.close()
    replicas.close()
    seconds = bar.seconds
    save(steps)
    report = dict(stage=config.stage, params=model.num_params, steps=steps, train_loss=loss, val_loss=validation_loss(model, val, config, machine, bf16),
                  real_share=rows.real_share, seconds=seconds, tokens_per_second=(steps - first) * batch_rows * config.row_tokens / seconds)
    if machine.main:
        write_json(out / "report.json", report)
    validation = "no data for validation" if report["val_loss"] is None else f"validation {report['val_loss']:.3f}"
    say(f"{config.stage}: loss {report['train_loss']:.3f}, {validation} nats a token, "
        f"{report['tokens_per_second']:.0f} tokens/s, {seconds:.0f}s", machine)
    return report


def main():
    config = parse_config(Config, presets=PRESETS, doc=__doc__)
    train(config, start_machine(config.device))


if __name__ == "__main__":
    run_script(main)

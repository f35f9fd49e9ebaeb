"""Supervised training: the base model, the cold start, and the final stage.

What this teaches. A language model learns by predicting the next token.

  base        on generated text: worked solutions, tables of small results, and conversations mostly
              answered at once, our stand-in for the web.
  cold-start  on a few thousand demonstrations that reason before they answer: after it the model
              thinks about every problem.
  final       from the base again, on what reinforcement learning found and
              `distill.py --collect-only` kept of it, beside general data, which is answered at
              once, and safety data: requests to refuse, and harmless ones that look like them.

In all stages questions are context and not targets: their numbers are random, and learning to
predict them only adds noise (loss on worked solutions 0.53 without, 0.75 with).

Where it departs from DeepSeek-R1 (2501.12948, section 2.3). There the base is a 671B model read
from disk and the cold start is thousands of long, hand-checked chains. Here the base is trained
from random weights in minutes, and demonstrations come from the task generator. The final stage
there (2.3.3) is two epochs of 600 thousand rejection samples and 200 thousand others, and
harmlessness is left to a second round of RL; here it is some thousands, safety among them. Matrices
train with Muon, everything else with AdamW (nanoreason/optim.py).

    laptop      python train_sft.py --stage base --out runs/base
                python train_sft.py --stage cold-start --init runs/base --out runs/cold
                python train_sft.py --stage final --init runs/base --epochs 2 --out runs/final \\
                    --data runs/rejection/traces.jsonl
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
from nanoreason.flags import RATE_LIMIT, UserError, flag, parse_config
from nanoreason.machine import autocast, choose_bf16, generator, run_script, start_machine
from nanoreason.run import Interrupt, Metrics, RunFolder, StepBar, say, stop_if_diverged
from nanoreason.run import write_json
from nanoreason.data import IGNORE, batches, join, open_rows, pack
from nanoreason.model import GPT, PRESETS as MODELS, memory_line, training_flops, training_memory
from nanoreason.optim import AdamW, Muon
from nanoreason.replicas import Replicas, replica_count
from nanoreason.tasks import REASONING
from nanoreason.tokenizer import shipped_tokenizer

VAL_DEMOS = 300  # demonstrations of the validation split
MANY = 10  # worked solutions of a family and level; to lose all of so many is an error
REMEDY = "lower --muon-lr and --adamw-lr"  # for a run that has diverged


@dataclass
class Config:
    stage: str = flag(
        "base", "which data and which loss", choices=("base", "cold-start", "final"))
    init: str = flag(
        "", "checkpoint, run folder or pretrained:NAME to start from; empty: random weights")
    out: str = flag("runs/sft", "folder for the checkpoint, metrics and report")
    resume: bool = flag(False, "continue the run in --out")
    model: str = flag(
        "micro", "size of a model that starts from random weights", choices=tuple(MODELS))
    shares: str = flag("easy", corpus.SHARES_HELP, choices=tuple(corpus.LEVEL_RATES))
    styles: str = flag("mixed", corpus.STYLES_HELP, choices=tuple(corpus.STYLE_RATES))
    data: str = flag(
        "", "JSONL file to train on instead of generated text; one prompt and response, or "
        "question and answer, per line; a tenth of the questions is kept for validation and a "
        "tenth for sample.py's test")
    corpus: str = flag(
        "", "base: folder that `python -m nanoreason.corpus --write` left, instead of text "
        "generated on the way")
    families: str = flag(
        ",".join(REASONING),
        "families of the worked solutions and questions; leave some out to hold them out")
    tokens: int = flag(3_300_000, "base: tokens of generated text", low=1000)
    demos: int = flag(5000, "cold-start: number of demonstrations", low=1)
    general: float = flag(
        0.2, "final: share of the documents that are general data", low=0, high=1)
    safety: float = flag(
        0.1, "final: share of the documents that are safety data; the rest are the rows of --data",
        low=0, high=1)
    epochs: int = flag(1, "passes over the data", low=1)
    total_steps: int = flag(
        0, "steps to train for, over as many passes as they take; 0: as many as --epochs fill",
        low=0)
    reasoned: float = flag(
        0.12, "base: share of questions answered with their reasoning", low=0, high=1)
    textbook: float = flag(
        0.30, "base: share of documents that are worked solutions as running text", low=0, high=1)
    tables: float = flag(
        0.30, "base: share of documents that are tables of small results", low=0, high=0.8)
    batch_tokens: int = flag(1536, "tokens per step, over all ranks", low=64)
    micro_tokens: int = flag(
        8192, "tokens in one forward pass of one rank; less saves memory", low=64)
    row_tokens: int = flag(256, "length of a packed row", low=16)
    muon_lr: float = flag(
        0.004, "peak learning rate of the matrices (update RMS matched to AdamW's)", low=0,
        high=RATE_LIMIT)
    adamw_lr: float = flag(0.003, "peak learning rate of embeddings and norms", low=0,
                           high=RATE_LIMIT)
    weight_decay: float = flag(0.01, "decoupled weight decay of the matrices", low=0)
    warmup: float = flag(0.02, "share of the steps in which the rate climbs", low=0, high=1)
    cooldown: float = flag(
        0.6, "share of the steps, at the end, in which the rate falls linearly to zero",
        low=0, high=1)
    precision: str = flag(
        "auto", "bf16 autocast where it is faster, or one of them",
        choices=("auto", "fp32", "bf16"))
    checkpoint_activations: bool = flag(
        False, "recompute each block in the backward pass instead of storing it: a third more "
        "arithmetic, far less memory")
    compile: bool = flag(
        False, "torch.compile the model: pays on a GPU, and on a CPU only for long runs")
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of data order and weights", low=0)
    max_steps: int = flag(0, "stop after this many steps; 0 trains to the end", low=0)
    log_every: int = flag(10, "steps between lines of metrics.jsonl", low=1)
    save_every: int = flag(200, "steps between checkpoints", low=1)


PRESETS = {
    "laptop": {},
    "gpu": dict(
        model="base",
        corpus="runs/corpus",
        tokens=500_000_000,
        batch_tokens=262_144,
        micro_tokens=16_384,
        row_tokens=1024,
        muon_lr=0.004,
        adamw_lr=0.003,
        compile=True,
    ),
    "node": dict(
        model="large",
        corpus="runs/corpus",
        tokens=4_000_000_000,
        batch_tokens=1_048_576,
        micro_tokens=16_384,
        row_tokens=1024,
        muon_lr=0.003,
        adamw_lr=0.002,
        compile=True,
    ),
}


# The loss, the schedule, the optimizers


def sft_loss(model, tokens, targets, doc_start):
    """Summed next-token cross-entropy over packed rows, a float32 scalar.

    tokens, targets: (B, T), IGNORE where nothing is learned; doc_start: (B, T). A third of the
    tokens are questions, padding or last ones: the head does not look at them.
    """
    targets = targets.flatten()
    learned = (targets != IGNORE).nonzero().squeeze(1)  # (M,)
    logits = model(tokens, doc_start, select=learned)  # (M, V)
    return F.cross_entropy(logits.float(), targets[learned], reduction="sum")


def rate_factor(step, steps, warmup, cooldown):
    """Factor on the peak learning rate, in three parts.

    It climbs over the first `warmup` share of the steps, holds, and falls linearly to zero over the
    last `cooldown` share.
    """
    climbing = (step + 1) / max(1, warmup * steps)
    falling = (steps - step) / max(1, cooldown * steps)
    return min(1.0, climbing, falling)


def make_optimizers(model, config):
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norm weights."""
    matrices = []
    others = []
    for name, p in model.named_parameters():
        (matrices if name.startswith("blocks.") and p.dim() == 2 else others).append(p)
    return [Muon(matrices, config.muon_lr, config.weight_decay),
            AdamW(others, config.adamw_lr, betas=(0.9, 0.95))]


# The data


def load_rows(config, model, machine=None):
    """Packed rows of the training and of the validation split, as the stage asks.

    The second may be empty, for a small file. Raises UserError for flags that do not fit together,
    or do not fit the model.
    """
    recipe = check_data_flags(config, model.config.max_len)
    if config.stage == "base" and not config.data:
        return base_rows(config, recipe, model.tokenizer)
    if config.data:
        documents = corpus.read_documents(config.data, data_room(config, model), machine)
    else:
        documents = {}
        for split, count in (("train", config.demos), ("val", VAL_DEMOS)):
            documents[split] = corpus.demonstrations(count, config.seed, split, recipe)
    if config.stage == "final":
        for split in ("train", "val"):
            documents[split] = corpus.final_mix(
                documents[split], config.general, config.safety, config.seed, split)
    examples = [corpus.tokenize(documents[split], model.tokenizer) for split in ("train", "val")]
    return [pack(own, config.row_tokens) for own in examples]


def left_out(kinds):
    """Which worked solutions are longer than a row, in words; '' for none. kinds: as of data.Rows.

    {'chain level 1': (0, 90), 'primality level 5': (9, 40)}  ->  'primality level 5: 9 of 40'
    """
    return ", ".join(f"{kind}: {out} of {count}" for kind, (out, count) in sorted(kinds.items())
                     if out)


def refuse_lost(kinds, row_tokens):
    """Raise UserError where all worked solutions of a family and level are left out."""
    lost = [kind for kind, (out, count) in kinds.items() if out == count >= MANY]
    if lost:
        raise UserError(f"no worked solution of {', '.join(sorted(lost))} fits into --row-tokens "
                        f"{row_tokens}; a higher one makes room")


def data_room(config, model):
    """How long a row of --data may be, and what makes room for longer ones."""
    context = model.config.max_len
    advice = "A model with a longer context makes room"
    if config.row_tokens < context:
        advice = (f"A higher one, up to the model's context of {context}, or a model with a longer "
                  "context makes room")
    return corpus.Room(
        model.tokenizer, config.row_tokens, f"--row-tokens holds {config.row_tokens}", advice)


def check_data_flags(config, max_len):
    """The Recipe of the flags; UserError for flags of the data that do not fit together."""
    if config.row_tokens > max_len:
        raise UserError(f"--row-tokens {config.row_tokens} is longer than the model's context of "
                        f"{max_len}")
    text = config.textbook + config.tables
    if text > corpus.MOST_TEXT:
        raise UserError(f"--textbook and --tables together are {text:g}; {corpus.MOST_TEXT:g} of "
                        "the documents is the most they may be")
    families = corpus.reasoning_families(config.families)
    if config.stage == "final" and not config.data:
        raise UserError("--stage final needs --data: rejection samples, such as "
                        "`distill.py --collect-only` leaves")
    others = config.general + config.safety
    if config.stage == "final" and others >= 1:
        raise UserError(f"--general and --safety together are {others:g}; less than 1 leaves room "
                        "for --data")
    return corpus.Recipe(families, config.shares, config.styles)


def base_rows(config, recipe, tokenizer):
    """Rows of stage base: generated on the way, or mapped from the folder of --corpus.

    Returns those of the training and of the validation split.
    """
    mix = corpus.BaseMix(tables=config.tables, textbook=config.textbook,
                         reasoned=config.reasoned, recipe=recipe)
    documents = corpus.base_chunk(mix, config.seed, 0, split="val")
    val = pack(corpus.tokenize(documents, tokenizer), config.row_tokens)
    if config.corpus:
        return open_corpus(config, mix), val
    chunks = corpus.base_rows(config.tokens, config.seed, mix, config.row_tokens, tokenizer)
    return join(list(chunks)), val


def open_corpus(config, mix):
    """Rows of the folder of --corpus; UserError where it does not hold what the flags ask for."""
    T = config.row_tokens
    try:
        rows, meta = open_rows(config.corpus)
    except ValueError as error:
        command = (f"python -m nanoreason.corpus --write {config.corpus} "
                   f"--tokens {config.tokens} --row-tokens {T}")
        raise UserError(f"--corpus: {error}; write one with `{command}`") from None
    made = meta["about"]
    wanted = dict(seed=config.seed, mix=json.loads(json.dumps(asdict(mix))))
    if wanted != {"seed": made.get("seed"), "mix": made.get("mix")}:
        raise UserError(f"--corpus {config.corpus} was written with {made}; this run asks for "
                        f"{wanted}")
    if meta["row_tokens"] != T or meta["real"] < config.tokens:
        raise UserError(f"--corpus {config.corpus} holds {meta['real']} tokens in rows of "
                        f"{meta['row_tokens']}; --tokens {config.tokens} in rows of {T} were asked "
                        "for")
    return rows


def plan_batches(n_rows, batch_rows, config, machine):
    """The rows of every step, this rank's share of them: a data.Plan.

    --total-steps says how many steps, or else --epochs. Of a file every row is trained.
    """
    plan = batches(
        n_rows, batch_rows, config.epochs, config.seed, machine.rank, machine.world,
        every_row=bool(config.data), steps=config.total_steps)
    if not n_rows or not len(plan):
        raise UserError(f"{n_rows} rows of data do not fill one step of {batch_rows}; lower "
                        "--batch-tokens")
    return plan


# One step


def add_gradients(model, rows, index, count, config, machine, bf16):
    """Backward passes of the rows in `index`, in micro-batches; returns their summed loss.

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
    """One optimizer step on the rows in `index`, this rank's share.

    Returns the loss in nats per token, over all ranks, and the norm of the gradient; where that is
    NaN or infinite there was no step. The work of the replicas is `add_gradients`.
    """
    count = machine.total((rows.targets[index] != IGNORE).sum())
    losses = replicas.gradients([(share, count) for share in np.array_split(index, replicas.count)])
    norm = replicas.step()
    return machine.total(sum(losses)) / count, norm


@torch.no_grad()
def validation_loss(model, rows, config, machine, bf16):
    """Mean cross-entropy, in nats per learned token, over all validation rows; None without any."""
    loss = 0
    count = 0
    at_once = max(1, config.micro_tokens // config.row_tokens)
    for at in range(0, len(rows), at_once):
        tokens, targets, doc_start = rows.batch(slice(at, at + at_once), machine.device)
        with autocast(machine.device, bf16):
            loss += sft_loss(model, tokens, targets, doc_start).item()
        count += (targets != IGNORE).sum().item()
    return loss / count if count else None


# The run


def starting_model(name):
    """The GPT that a run starts from: of a checkpoint, run folder or pretrained:NAME, or, where
    name is a size of MODELS, one without memory for its weights, of which only shape and tokenizer
    count."""
    if name not in MODELS:
        return checkpoint.load_model(name)
    with torch.device("meta"):
        return GPT(MODELS[name], shipped_tokenizer())


def cost_line(shape, config, bf16, machine, replicas):
    """What the run will cost, in words: arithmetic per step, and whether it fits into memory."""
    recompute = config.checkpoint_activations
    flops = training_flops(shape, config.batch_tokens, config.row_tokens, recompute)
    micro = min(config.micro_tokens * replicas, config.batch_tokens // machine.world)
    dense = bf16 and machine.device.type == "cpu"
    parts = training_memory(
        shape, micro, config.row_tokens, bf16, recompute, muon=True, dense=dense)
    memory = memory_line(parts, machine)
    return f"{flops:.2g} FLOP per step of {config.batch_tokens} tokens; {memory}"


class Run:
    """A stage before its first step, and what it leaves after its last.

    first: the step it starts at, above 0 when it is resumed; steps: the step it ends at, never an
    earlier one; loss: of the last step, in nats per token.
    """

    def __init__(self, config, machine, folder):
        self.config = config
        self.machine = machine
        self.out = folder.out
        saved = None
        if folder.weights_path:
            saved = checkpoint.load_run(folder.weights_path, "optimizers", "step")
        elif config.init:
            saved = checkpoint.load(config.init)
        self.model = self._start_model(saved)
        self.optimizers = make_optimizers(self.model, config)
        self.first = 0
        self.loss = None
        began_bf16 = None
        if folder.weights_path:
            for optimizer, state in zip(self.optimizers, saved["optimizers"]):
                optimizer.load_state_dict(state)
            self.first = saved["step"]
            self.loss = saved.get("loss")
            began_bf16 = saved.get("bf16")
        self.bf16 = choose_bf16(config.precision, machine, began_bf16)
        self.batch_rows = max(machine.world, config.batch_tokens // config.row_tokens)
        copies = 1 if config.compile else replica_count(self.model, machine, self.batch_rows)
        say(cost_line(self.model.config, config, self.bf16, machine, copies), machine)
        from_file = config.data or config.corpus
        if not from_file:
            check_data_flags(config, self.model.config.max_len)
            folder.prepare(machine)  # --resume continues also what was killed as it generated text
        self.rows, self.val = load_rows(config, self.model, machine)
        if not config.data:
            refuse_lost(self.rows.kinds, config.row_tokens)
        self.plan = plan_batches(len(self.rows), self.batch_rows, config, machine)
        last = min(len(self.plan), config.max_steps or len(self.plan))
        self.steps = max(self.first, last)
        if from_file:
            folder.prepare(machine)
        self.replicas = self._start_replicas(copies)
        self._announce()

    def _start_model(self, saved):
        """The model of a checkpoint, or a new one with random weights."""
        if saved:
            return checkpoint.build_model(saved, self.machine.device)
        model = GPT(MODELS[self.config.model], shipped_tokenizer())
        return model.init_weights(generator(self.config.seed, "weights")).to(self.machine.device)

    def _start_replicas(self, copies):
        """Processes that share the work of a step: on a CPU several, for a small model."""
        self.model.checkpoint_activations = self.config.checkpoint_activations
        net = self.model
        if self.machine.world > 1:
            net = DistributedDataParallel(net, gradient_as_bucket_view=True)
        if self.config.compile:
            net = torch.compile(net)

        def work(net, share):
            index, count = share
            return add_gradients(
                net, self.rows, index, count, self.config, self.machine, self.bf16)

        return Replicas(net, self.optimizers, work, copies)

    def _announce(self):
        """Print what will be trained, on how much."""
        rows = self.rows
        precision = "bf16" if self.bf16 else "fp32"
        say(f"{self.config.stage}: {self.model.num_params / 1e6:.2f}M parameters, {len(rows)} rows "
            f"of {self.config.row_tokens} tokens ({rows.real_share:.1%} real, {rows.skipped} "
            f"documents too long), {self.steps} steps, {precision} on {self.machine.device}",
            self.machine)
        if not self.config.data and (what := left_out(rows.kinds)):
            say(f"{self.config.stage}: worked solutions longer than a row, left out: {what}",
                self.machine)

    def set_rates(self, step):
        """Give the optimizers the learning rates of a step; returns the factor on their peaks."""
        config = self.config
        rate = rate_factor(step, len(self.plan), config.warmup, config.cooldown)
        for optimizer, peak in zip(self.optimizers, (config.muon_lr, config.adamw_lr)):
            optimizer.lr = peak * rate
        return rate

    def tokens_of(self, steps):
        """Tokens in the rows of so many steps, padding included, over all ranks."""
        return steps * self.batch_rows * self.config.row_tokens

    def save(self, step):
        """Write ckpt.pt after `step` steps."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        checkpoint.save(self.out / "ckpt.pt", self.model, self.machine.main, step=step,
                        loss=self.loss, bf16=self.bf16, optimizers=states)

    def finish(self, seconds):
        """Validate, save, and write report.json; returns the report."""
        val_loss = validation_loss(self.model, self.val, self.config, self.machine, self.bf16)
        stop_if_diverged(self.steps, {"validation loss": val_loss}, REMEDY)
        self.save(self.steps)
        report = dict(
            stage=self.config.stage,
            params=self.model.num_params,
            steps=self.steps,
            train_loss=self.loss,
            val_loss=val_loss,
            real_share=self.rows.real_share,
            seconds=seconds,
            tokens_per_second=self.tokens_of(self.steps - self.first) / seconds,
        )
        if self.machine.main:
            write_json(self.out / "report.json", report)
        losses = f"loss {self.loss:.3f} nats per token, no data for validation"
        if val_loss is not None:
            losses = f"loss {self.loss:.3f}, validation {val_loss:.3f} nats per token"
        say(f"{self.config.stage}: {losses}, "
            f"{report['tokens_per_second']:.0f} tokens/s, {seconds:.0f}s", self.machine)
        return report


def train(config, machine):
    """Run the whole stage; returns the report that is also written to --out."""
    data = {"--data": config.data, "--corpus": config.corpus and f"{config.corpus}/meta.json"}
    folder = RunFolder(config, data, {"--init": checkpoint.file_of(config.init)})
    if folder.finished:
        return folder.report(machine)
    run = Run(config, machine, folder)
    metrics = Metrics(run.out / "metrics.jsonl", run.first, machine.main)
    bar = StepBar(run.steps, config.stage, machine, run.first)
    with Interrupt() as interrupt:
        for step in range(run.first, run.steps):
            rate = run.set_rates(step)
            begun = time.time()
            run.loss, norm = train_step(run.replicas, run.rows, run.plan[step], machine)
            stop_if_diverged(step, dict(loss=run.loss, gradient=norm), REMEDY)
            bar.show(step, f"loss {run.loss:.3f}")
            if step % config.log_every == 0 or step == run.steps - 1:
                metrics.log(step=step, loss=run.loss, rate=rate, tokens=run.tokens_of(step + 1),
                            step_seconds=time.time() - begun)
            stop = interrupt.agreed(machine)
            if (step + 1) % config.save_every == 0 or stop:
                run.save(step + 1)
            if stop:  # Ctrl-C: the step that was running is finished and saved
                interrupt.leave(step + 1, machine)
    bar.close()
    run.replicas.close()
    return run.finish(bar.seconds)


def main():
    config = parse_config(Config, presets=PRESETS, doc=__doc__)
    train(config, start_machine(config.device, shapes=1024))


if __name__ == "__main__":
    run_script(main)

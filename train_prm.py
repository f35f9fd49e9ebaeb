"""Train a reward model: a model that scores reasoning instead of writing it.

What this teaches. The policy answers training questions many times. An exact checker says which
answers, and which single steps, are right. A copy of the policy with a scalar head learns to say so
without seeing the answer. An outcome reward model (orm, Cobbe et al. 2110.14168) learns from the
final answer alone, at every token of the response, and is read at the last. A process reward model
(prm, Lightman et al. 2305.20050) learns whether each step is right, at the token that ends it; the
answer counts as the last step. Where nobody can label steps, `--labels mc` does what Math-Shepherd
(2312.08935) does: continue from the step `--rollouts` times, and take the share of continuations
that end in the right answer (soft), or whether any does (`--hard-labels`).

The path, and where to read each move (without a file: below):

    samples = `--samples` responses per question        nanoreason/labels.py: sample_responses
    labels  = what the checker says of each step,       nanoreason/labels.py: check_response
              or the share of right continuations       nanoreason/labels.py: monte_carlo
    tokens to read at, and labels in [0, 1] there       targets
    as many flawed responses as right ones              nanoreason/labels.py: balance
    for each batch:                                     train_step
        loss = cross-entropy of sigmoid(logit)          reward_model_loss
        one AdamW step; the lowest validation loss      validate
    calibration = scale and offset of the logits        nanoreason/reward_model.py: calibrate
    AUC, Brier score, reliability on test questions     nanoreason/labels.py: quality

Where it departs from the papers. Cobbe's reward model goes on learning to write as well; ours does
not, as that did not pay (notebooks/results/negative.md). Lightman's labelers stop at the first
wrong step; our checker goes on, since a model may correct itself. Balancing shifts the scores;
calibration (Platt 1999) on validation responses shifts them back: 0.8 is right 4 times in 5.

    laptop      python train_prm.py --kind orm --init runs/speedrun/cold --out runs/orm
                python train_prm.py --init runs/speedrun/cold --reuse runs/orm --out runs/prm \\
                    --kind prm
    no labels   python train_prm.py --init runs/speedrun/cold --kind prm --labels mc --out runs/mc
    8 GPUs      torchrun --nproc-per-node 8 train_prm.py --init runs/rl --questions 100000
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nanoreason import checkpoint, plots
from nanoreason.flags import RATE_LIMIT, flag, parse_config
from nanoreason.generate import make_sampler
from nanoreason.labels import announce, balance, begin_samples, check_config, label_quality
from nanoreason.labels import label_responses, make_plan, quality
from nanoreason.machine import autocast, choose_bf16, run_script, start_machine
from nanoreason.optim import AdamW
from nanoreason.replicas import Replicas, replica_count
from nanoreason.reward_model import (
    KINDS, calibrate, mean_loss, read_logits, reading_batches, save_reward_model,
    start_reward_model,
)
from nanoreason.run import Interrupt, Metrics, RunFolder, StepBar, say, stop_if_diverged
from nanoreason.run import write_json


@dataclass
class Config:
    init: str = flag("", "policy, or pretrained:NAME, that answers and gives the first weights")
    out: str = flag("runs/reward-model", "folder for checkpoints, samples, metrics and report")
    resume: bool = flag(False, "continue the run in --out")
    kind: str = flag("orm", "what is scored: whole responses, or also their steps", KINDS)
    labels: str = flag("exact", "who labels the reasoning steps: the exact checker, or (mc) Monte "
                       "Carlo continuations and the final answer alone", ("exact", "mc"))
    rollouts: int = flag(8, "--labels mc: continuations per reasoning step", low=1, high=60)
    hard_labels: bool = flag(False, "--labels mc: label a reasoning step 1 if any continuation "
                             "ends in the right answer, instead of with the share that does")
    reuse: str = flag("", "run folder whose responses (and continuations) to learn from, instead "
                      "of sampling; it needs --rollouts per reasoning step")
    data: str = flag("", "JSONL file of questions and answers to use instead of generated ones")
    families: str = flag("multiplication,chain,percent,word,equation", "families of the questions")
    level: str = flag("1,2,3", "levels of the questions; like families separated by commas")
    questions: int = flag(4000, "training questions", low=1)
    samples: int = flag(8, "responses per question", low=1)
    val_questions: int = flag(60, "validation questions per family, which decide when to stop; "
                              "and as many test questions, for the report", low=1)
    temperature: float = flag(1.0, "sampling temperature", low=0.01)
    max_reasoning_tokens: int = flag(200, "longest response, in tokens", low=1)
    epochs: int = flag(4, "passes over the labelled responses, at most", low=1)
    batch_size: int = flag(128, "responses per training step, over all ranks", low=1)
    learning_rate: float = flag(5e-4, "peak learning rate of AdamW", low=0, high=RATE_LIMIT)
    warmup_steps: int = flag(20, "training steps in which the rate climbs; then it falls", low=0)
    weight_decay: float = flag(0.01, "decoupled weight decay", low=0)
    eval_every: int = flag(50, "training steps between validations", low=1)
    patience: int = flag(5, "validations without a lower loss, after which the run ends", low=1)
    precision: str = flag("auto", "bf16 where it is faster, or one", ("auto", "fp32", "bf16"))
    device: str = flag("auto", "where to run", ("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions, samples and order", low=0)
    max_steps: int = flag(0, "stop after this many training steps; 0: run to the end", low=0)
    save_every: int = flag(100, "training steps between checkpoints", low=1)


def targets(data, config):
    """What to learn from a LabelledSplit, a list of each per response: read_at, indices of its
    tokens, and labels in [0, 1].

    An orm learns the final outcome at every token; a prm each step's label, and the outcome at the
    last token. --labels mc, two steps with 3 and 0 of 4 continuations right, answer right:
        ->  soft [0.75, 0, 1]    hard [1, 0, 1]
    """
    if config.kind == "orm":
        read_at = [list(range(len(r.ids))) for r in data.responses]
        return read_at, [[float(r.right)] * len(r.ids) for r in data.responses]
    read_at = [r.read_at for r in data.responses]
    if config.labels == "exact":
        return read_at, [r.exact for r in data.responses]
    n_right = [r.continuations.sum(1) for r in data.responses]  # (S,) each
    if config.hard_labels:
        return read_at, [(n > 0).astype(float).tolist() for n in n_right]
    return read_at, [(n / config.rollouts).tolist() for n in n_right]


def reward_model_loss(logits, labels, weight):
    """Weighted sum of binary cross-entropies, in nats. logits, labels, weight (M,).

    labels in [0, 1]: a share of successes is a target too.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    return (weight * each).sum()


def add_gradients(reward_model, examples, read_at, labels, index, responses, device, bf16):
    """Backward passes over the responses in `index`; returns their part of the loss.

    Each response counts 1 / responses, however often it is read, so that a long one weighs no more
    than a short one. responses: number of those of the training step, over all ranks.
    """
    examples = [examples[i] for i in index]
    read_at = [read_at[i] for i in index]
    labels = [labels[i] for i in index]
    loss = 0.0
    for inputs, owner in reading_batches(examples, read_at, device):
        # owner (M,): a response's readings stand side by side, in the order of its labels
        label = [y for i in dict.fromkeys(owner) for y in labels[i]]  # each response once
        weight = [1.0 / (len(read_at[i]) * responses) for i in owner]
        with autocast(device, bf16):
            logits = reward_model(**inputs)  # (M,)
        label = torch.tensor(label, device=device)
        weight = torch.tensor(weight, device=device)
        part = reward_model_loss(logits, label, weight)
        part.backward()
        loss += part.item()
    return loss


def train_step(replicas, index, machine):
    """One step on this rank's responses `index`; returns the loss over all ranks, and the norm of
    the gradient; where that is NaN or infinite there was no step.

    A replica calls `add_gradients` with its share: (some of the index, responses).
    """
    reward_model = replicas.model
    responses = machine.total(len(index))
    shares = np.array_split(index, replicas.count)
    loss = sum(replicas.gradients([(share, responses) for share in shares]))
    machine.sum_gradients(reward_model)
    norm = replicas.step(max_norm=1.0)
    return machine.total(loss), norm


def validate(reward_model, data, config, bf16, counts):
    """Validation loss. `counts` keeps the lowest, and how many validations ago it was."""
    read_at, labels = targets(data, config)
    loss = mean_loss(read_logits(reward_model, data.examples, read_at, bf16), labels)
    if counts["best"] is None or loss < counts["best"][0]:
        counts["best"] = [loss, counts["step"]]
        counts["stale"] = 0
    else:
        counts["stale"] += 1
    return loss


def rate_factor(step, steps, warmup):
    """Factor on the peak learning rate: climbs over `warmup` steps, then falls linearly to zero."""
    return min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))


def make_optimizer(reward_model, config, state):
    """AdamW over all parameters, and the run's counts: new ones, or those of a checkpoint.

    step: steps done; best: lowest validation loss and its step; stale: validations since then.
    """
    rates = (config.learning_rate, config.weight_decay)
    optimizer = AdamW(reward_model.parameters(), *rates, betas=(0.9, 0.95))
    if not state.get("verifier"):
        return optimizer, dict(step=0, best=None, stale=0)
    optimizer.load_state_dict(state["optimizer"])
    return optimizer, state["run"]


def open_run(config, machine):
    """RunFolder, policy, reward model to train, its optimizer and counts, and whether it began in
    bf16 (None for a new one); all but the first None where the run is finished."""
    check_config(config)
    start = checkpoint.file_of(config.init)
    samples = config.reuse and f"{config.reuse}/train.npz"
    folder = RunFolder(config, {"--init": start, "--data": config.data, "--reuse": samples})
    if folder.finished:
        return folder, None, None, None, None, None
    state = checkpoint.load(start)
    if folder.weights_path:
        state = checkpoint.load_run(folder.weights_path, "run", "optimizer", "verifier")
    policy = checkpoint.load_model(start, machine.device)
    reward_model = start_reward_model(state, config.kind).to(machine.device)
    optimizer, counts = make_optimizer(reward_model, config, state)
    begin_samples(config, machine, policy, folder)
    began_bf16 = state.get("bf16") if folder.weights_path else None
    return folder, policy, reward_model, optimizer, counts, began_bf16


def train(config, machine):
    """The whole run; returns the report that is also written to --out."""
    folder, policy, reward_model, optimizer, counts, began_bf16 = open_run(config, machine)
    if folder.finished:
        return folder.report(machine)
    out = folder.out
    bf16 = choose_bf16(config.precision, machine, began_bf16)
    data = label_responses(config, machine, make_sampler(policy, bf16), out)
    examples = data["train"].examples
    read_at, labels = targets(data["train"], config)
    kept = balance(labels, config.seed)
    plan = make_plan(kept, examples, config, machine)

    def work(model, share):
        return add_gradients(model, examples, read_at, labels, *share, machine.device, bf16)

    copies = replica_count(reward_model.gpt, machine, config.batch_size)
    replicas = Replicas(reward_model, [optimizer], work, copies)
    announce(reward_model, data, kept, plan, config, machine, bf16)

    def save(is_best=False):  # best.pt last: see checkpoint.best_is_due
        save_reward_model(out / "ckpt.pt", reward_model, write=machine.main, run=counts, bf16=bf16,
                          optimizer=optimizer.state_dict())
        if is_best:
            save_reward_model(out / "best.pt", reward_model, write=machine.main, run=counts,
                              selected=counts["step"])

    if checkpoint.best_is_due(out, counts["best"] and counts["best"][1], counts["step"]):
        save(is_best=True)
    metrics = Metrics(out / "metrics.jsonl", counts["step"], machine.main)
    steps = min(len(plan), config.max_steps or len(plan))
    bar = StepBar(steps, config.kind, machine, counts["step"])
    with Interrupt() as interrupt:
        while counts["step"] < steps and counts["stale"] < config.patience:
            begun = time.time()
            step = counts["step"]
            optimizer.lr = config.learning_rate * rate_factor(step, len(plan), config.warmup_steps)
            loss, norm = train_step(replicas, plan[step], machine)
            counts["step"] = step + 1
            row = dict(step=step, loss=loss, step_seconds=time.time() - begun)
            if counts["step"] % config.eval_every == 0 or counts["step"] == len(plan):
                row["val_loss"] = validate(reward_model, data["val"], config, bf16, counts)
            stop_if_diverged(step, row | dict(gradient=norm), "a lower --learning-rate")
            metrics.log(**row)
            best = f"  validation {counts['best'][0]:.3f}" if counts["best"] else ""
            bar.show(step, f"loss {loss:.3f}{best}")
            if "val_loss" in row and counts["stale"] == 0:  # the lowest so far
                save(is_best=True)
            stop = interrupt.agreed(machine)  # a wait for rank 0: all ranks read best.pt in the end
            if counts["step"] % config.save_every == 0 or stop:
                save()
            if stop:
                interrupt.leave(counts["step"], machine)
    bar.close()
    replicas.close()
    save()
    return finish(reward_model, data, kept, config, machine, bf16, counts, bar.seconds)


def finish(reward_model, data, kept, config, machine, bf16, counts, seconds):
    """Calibrate the selected weights and write them as best.pt; report and figure."""
    out = Path(config.out)
    state = checkpoint.load(out / "best.pt") if counts["best"] else {}
    if state:
        reward_model.load_state_dict(state["weights"])
    # once: the weights of a finished run are calibrated, and a second fit would find nothing
    scale = state.get("calibration")
    if not scale:
        scale = calibrate(reward_model, data["val"].examples, *targets(data["val"], config), bf16)
    report = dict(
        stage=config.kind,
        params=reward_model.gpt.num_params,
        labels=config.labels,
        steps=counts["step"],
        seconds=seconds,
        best=counts["best"],
        calibration=scale,
        cost={split: data[split].cost for split in ("train", "val")},
        responses=len(data["train"].responses),
        balanced=len(kept),
        step_labels=sum(len(r.read_at) - 1 for r in data["train"].responses),
        label_quality=label_quality(data["train"]),
        test=quality(reward_model, data["test"], bf16),
    )
    if machine.main:
        save_reward_model(out / "best.pt", reward_model, run=counts, calibration=scale,
                          selected=counts["best"] and counts["best"][1])
        write_json(out / "report.json", report)
        plots.reward_model({out.name: report}, out / "reward_model.png")
    last = report["test"]["positions"]["last"]
    say(f"{config.kind}: {counts['step']} steps in {seconds:.0f}s; on {last['n']} test responses, "
        f"{last['right']:.0%} of them right, AUC {last['auc'] or 'undefined'}, "
        f"Brier score {last['brier']}", machine)
    return report


def main():
    config = parse_config(Config, doc=__doc__)
    train(config, start_machine(config.device))


if __name__ == "__main__":
    run_script(main)

"""Train a reward model: a model that judges reasoning instead of writing it.

What this teaches. The policy answers training questions many times; an exact judge says which answers, and which single steps, are right; a
copy of the policy with a scalar head learns to say so without seeing the answer. An outcome reward model (orm, Cobbe et al. 2110.14168) learns from the final
answer alone, at every token of the response, and is read at the last. A process reward model (prm, Lightman et al. 2305.20050) learns the verdict on each step,
at the token that ends it; the answer counts as the last step. Where nobody can label steps, `--labels mc` does what Math-Shepherd (2312.08935) does: continue
from the step `--rollouts` times, and take the share that ends in the right answer (soft), or whether any does (`--hard-labels`).

Where it departs from the papers. Cobbe's reward model keeps learning to write beside: ours does not, for it did not pay (README). Lightman's labelers stop at the first wrong step: our judge goes on,
since a model may correct itself. Responses with and without something wrong are balanced, which shifts the scores; after training, their scale and
offset are fitted on validation responses as they come (Platt 1999), so that 0.8 means right four times in five.

    laptop      python train_prm.py --kind orm --init runs/speedrun/cold --out runs/orm
                python train_prm.py --kind prm --init runs/speedrun/cold --reuse runs/orm --out runs/prm
    no labels   python train_prm.py --kind prm --labels mc --rollouts 8 --questions 600 --init runs/speedrun/cold --out runs/prm-mc
    8 GPUs      torchrun --nproc-per-node 8 train_prm.py --kind orm --init runs/rl --questions 100000 --out runs/orm
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from nanoreason import checkpoint, plots
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import autocast, choose_bf16, generator, run_script, start_machine
from nanoreason.run import Interrupt, Metrics, prepare_out, progress, say, StepBar, write_json
from nanoreason.corpus import Example
from nanoreason.evaluate import auc, brier, reliability
from nanoreason.generate import MAX_ROWS, generate, noise, sampler
from nanoreason.model import GPTConfig
from nanoreason.optim import AdamW
from nanoreason.pool import ROWS, processes, read_arrays, sample_some, write_arrays
from nanoreason.questions import Questions, own_share
from nanoreason.replicas import Replicas, replica_count
from nanoreason.rewards import outcome_reward, step_rewards
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.reward_model import KINDS, RewardModel, reading_batches, reading_places, save_reward_model
from nanoreason.workers import spread


@dataclass
class Config:
    init: str = flag("", "the policy: whose responses are judged, and whose weights the reward model starts from")
    out: str = flag("runs/reward-model", "folder for the checkpoints, samples, metrics, figure and report")
    resume: bool = flag(False, "continue the run in --out")
    kind: str = flag("orm", "what is judged: whole responses, or also their steps", choices=KINDS)
    labels: str = flag("exact", "who judges the steps: the exact step checker, or Monte Carlo rollouts and the final answer alone", choices=("exact", "mc"))
    rollouts: int = flag(8, "continuations from each step, of --labels mc", low=1, high=60)
    hard_labels: bool = flag(False, "--labels mc: a step is right if any continuation is, instead of as right as their share")
    reuse: str = flag("", "run folder whose samples, and at least as many rollouts, to learn from, instead of new ones")
    data: str = flag("", "JSONL file of questions and answers to learn from instead of generated ones")
    families: str = flag("multiplication,chain,percent,word,equation", "families of the questions, separated by commas")
    level: str = flag("1,2,3", "levels of the questions, separated by commas")
    questions: int = flag(4000, "training questions", low=1)
    samples: int = flag(8, "responses to each", low=1)
    val_questions: int = flag(60, "validation questions of each family, which decide when to stop; as many test questions are reported on", low=1)
    temperature: float = flag(1.0, "sampling temperature", low=0.01)
    max_reasoning_tokens: int = flag(200, "longest response, in tokens", low=1)
    epochs: int = flag(4, "most passes over the labelled responses", low=1)
    batch_size: int = flag(128, "responses a step, over all ranks", low=1)
    learning_rate: float = flag(5e-4, "peak learning rate of AdamW", low=0)
    warmup_steps: int = flag(20, "steps in which the rate climbs; it then falls linearly to zero at the end of --epochs", low=0)
    weight_decay: float = flag(0.01, "decoupled weight decay", low=0)
    eval_every: int = flag(50, "steps between looks at the validation loss", low=1)
    patience: int = flag(5, "looks without a lower validation loss until the run ends", low=1)
    precision: str = flag("auto", "bf16 where it is faster, or one of them", choices=("auto", "fp32", "bf16"))
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions, samples and order", low=0)
    max_steps: int = flag(0, "stop after this many steps; 0 runs to the end", low=0)
    save_every: int = flag(100, "steps between checkpoints", low=1)


@dataclass
class Labelled:
    """N responses, what is known of them, and where to read them. examples: N Examples; right (N,) bool; places: N lists of indices into the response,
    its steps' ends and its last token; exact: N lists of 0 or 1, the exact judge's; mc: N lists of how many of `rollouts` continuations from there
    succeeded, or None. cost: tokens sampled for responses and for rollouts."""

    examples: list
    right: np.ndarray
    places: list
    exact: list
    mc: list | None
    cost: dict


def sample_responses(policy, problems, own, config, split, machine):
    """Responses (N lists of ids) to this rank's share of the problems, `samples` to each. A question's random numbers are its own."""
    responses, at_once, bar = [], max(1, MAX_ROWS // config.samples), progress(len(own) * config.samples, f"{split} responses", machine)
    some = [own[at : at + at_once] for at in range(0, len(own), at_once)]
    jobs = [([render_prompt(problems[i].question) for i in part], [(config.seed, "verifier", split, i) for i in part], config.samples, config.temperature, config.max_reasoning_tokens)
            for part in some]
    for ids, tokens, _ in spread(sample_some, policy, jobs, processes(machine.device, len(own) * config.samples)):
        responses += [part.tolist() for part in np.split(ids, tokens.ravel().cumsum()[:-1])]
        bar.update(tokens.size)
    bar.close()
    return responses


def monte_carlo(policy, starts, problems, config, split, bar):
    """Which of `rollouts` continuations of each start end in the right answer, as bits of an integer, and the tokens of the first, second, ...
    rollout over all starts. starts: [(question, prefix ids)]."""
    K, found, tokens = config.rollouts, [0] * len(starts), np.zeros(config.rollouts, np.int64)
    order, at_once = sorted(range(len(starts)), key=lambda i: len(starts[i][1])), max(1, ROWS // config.rollouts)
    for at in range(0, len(order), at_once):
        some = order[at : at + at_once]
        prompts = [render_prompt(problems[starts[i][0]].question) + starts[i][1] for i in some]
        uniform = torch.cat([noise((K, config.max_reasoning_tokens), generator(config.seed, "rollouts", split, *starts[i])) for i in some])
        rollout = generate(policy, prompts, K, config.max_reasoning_tokens, config.temperature, uniform, ROWS, on_progress=bar.update).cpu()
        tokens += rollout.lengths.view(-1, K).sum(0).numpy()
        for row in range(len(rollout.ids)):
            question, prefix = starts[some[row // K]]
            right = outcome_reward(problems[question], parse_response(prefix + rollout.response(row))) > 0
            found[some[row // K]] |= int(right) << row % K
    return found, tokens


def collect(policy, problems, config, split, machine):
    """Sample, judge and label: arrays of this rank's share. Equal responses to a question are kept once for training, and as they come for validation
    and test, whose scores should fit what the policy says."""
    own = own_share(len(problems), 1, machine)
    responses = sample_responses(policy, problems, own, config, split, machine)
    pairs = [(own[row // config.samples], response) for row, response in enumerate(responses)]
    sampled = sum(map(len, responses))
    if split == "train":
        pairs = list({(q, tuple(r)): (q, r) for q, r in pairs}.values())
    right = [outcome_reward(problems[q], parse_response(r)) > 0 for q, r in pairs]
    places = [reading_places("prm", r) for _, r in pairs]
    exact = [[float(value >= 0) for _, value in step_rewards(problems[q], r)] + [float(ok)] for (q, r), ok in zip(pairs, right)]
    arrays = dict(question=[q for q, _ in pairs], tokens=[len(r) for _, r in pairs], ids=[i for _, r in pairs for i in r], right=right,
                  steps=[len(p) for p in places], places=[i for p in places for i in p], exact=[x for e in exact for x in e], sampled=[sampled], rolled=[[0]])
    if config.labels == "mc" and split != "test":
        numbers = {}
        starts = [numbers.setdefault((q, tuple(r[: end + 1])), len(numbers)) for (q, r), p in zip(pairs, places) for end in p[:-1]]
        bar = progress(len(numbers) * config.rollouts, f"{split} rollouts", machine)
        found, tokens = monte_carlo(policy, [(q, list(prefix)) for q, prefix in numbers], problems, config, split, bar)
        bar.close()
        bits, arrays["mc"], arrays["rolled"] = iter(found[i] for i in starts), [], tokens[None]  # (1, K): ranks stack theirs
        for ok, p in zip(right, places):
            arrays["mc"] += [next(bits) for _ in p[:-1]] + [((1 << config.rollouts) - 1) * ok]
    return {name: np.array(values, dtype=np.float32 if name == "exact" else np.int64) for name, values in arrays.items()}


def gather(arrays, machine):
    """The shares of all ranks, one after another."""
    if machine.world == 1:
        return arrays
    parts = [None] * machine.world
    dist.all_gather_object(parts, arrays)
    return {name: np.concatenate([part[name] for part in parts]) for name in arrays}


def labelled(arrays, problems, rollouts):
    """Labelled responses from their arrays, with the first `rollouts` rollouts of each step."""
    cut = lambda name, lengths: [part.tolist() for part in np.split(arrays[name], arrays[lengths].cumsum()[:-1])]
    prompts = [render_prompt(p.question) for p in problems]
    examples = [Example(prompts[q] + ids, len(prompts[q])) for q, ids in zip(arrays["question"], cut("ids", "tokens"))]
    first = (1 << rollouts) - 1
    mc = [[(bits & first).bit_count() for bits in row] for row in cut("mc", "steps")] if "mc" in arrays else None
    cost = dict(sampled=int(arrays["sampled"].sum()), rolled=int(arrays["rolled"].sum(0)[:rollouts].sum()))
    return Labelled(examples, arrays["right"].astype(bool), cut("places", "steps"), cut("exact", "steps"), mc, cost)


SAME = ("init", "data", "families", "level", "questions", "samples", "val_questions", "temperature", "max_reasoning_tokens")  # as in the run of --reuse


def reused(config):
    """The run of --reuse: its seed. Raises UserError where its samples are not what these flags ask for."""
    try:
        old = json.loads((Path(config.reuse) / "config.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"--reuse {config.reuse} is no run of train_prm.py") from None
    if other := [name for name in SAME if old.get(name) != getattr(config, name)]:
        raise UserError(f"--reuse: the samples in {config.reuse} were made with " + ", ".join(f"--{name.replace('_', '-')} {old.get(name)}" for name in other))
    if config.labels == "mc" and (old["labels"] != "mc" or old["rollouts"] < config.rollouts):
        raise UserError(f"--reuse: {config.reuse} has {old['rollouts'] if old['labels'] == 'mc' else 0} rollouts a step; {config.rollouts} were asked for")
    return old["seed"]


def label_responses(config, machine, policy, out):
    """{split: Labelled} for train, val and test, kept in --out, or read from the run of --reuse. Raises UserError."""
    source, seed = (Path(config.reuse), reused(config)) if config.reuse else (out, config.seed)
    questions, splits = Questions(config.families, config.level, config.data, seed, policy.config.max_len - config.max_reasoning_tokens), {}
    asked = dict(train=questions.draw(0, 0, config.questions), **{split: questions.held_out(config.val_questions, split) for split in ("val", "test")})
    if not all(asked.values()):
        raise UserError(f"--data {config.data}: too few of its questions are kept from training for --val-questions {config.val_questions}, which are needed twice over")
    for split, problems in asked.items():
        path = source / f"{split}.npz"
        arrays = read_arrays(path) if config.reuse or config.resume else None
        if arrays is None and config.reuse:
            raise UserError(f"--reuse {config.reuse} holds no whole {path.name}")
        if arrays is None:
            arrays = gather(collect(policy, problems, config, split, machine), machine)
            if machine.main:
                write_arrays(path, arrays)
        splits[split] = labelled(arrays, problems, config.rollouts)
    return splits


def targets(data, config):
    """What to learn: places and labels in [0, 1], a list a response. An orm reads the final outcome at every token; a prm each step's label and the
    outcome at the last token.     prm, mc, 3 of 4 rollouts and 0 of 4, answer right: soft [0.75, 0, 1], hard [1, 0, 1]"""
    if config.kind == "orm":
        places = [list(range(len(e.ids) - e.prompt_len)) for e in data.examples]
        return places, [[float(ok)] * len(p) for ok, p in zip(data.right, places)]
    if config.labels == "exact":
        return data.places, data.exact
    share = (lambda k: float(k > 0)) if config.hard_labels else (lambda k: k / config.rollouts)
    return data.places, [[share(k) for k in mc] for mc in data.mc]


def balance(labels, seed):
    """Indices of responses, as many with something wrong (a label below one half) as without: the surplus of the larger kind is left out at random."""
    wrong = np.array([min(label) < 0.5 for label in labels])
    kinds = [np.random.default_rng((seed, i)).permutation(kind.nonzero()[0]) for i, kind in enumerate((wrong, ~wrong))]
    return np.sort(np.concatenate([kind[: min(map(len, kinds))] for kind in kinds]))


def reward_model_loss(logits, labels, weight):
    """Weighted sum of binary cross-entropies, in nats. logits, labels, weight (M,); labels in [0, 1], so that a share of successes is a target too."""
    return (weight * F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")).sum()


def add_gradients(reward_model, examples, places, labels, index, responses, device, bf16):
    """Backward passes over the responses in `index`, each of which counts 1 / responses, however many its places. Returns their part of the loss."""
    mine, loss = [places[i] for i in index], 0.0
    flat = lambda owner, values: torch.tensor([values[i][k] for i, k in enumerated(owner)], device=device)
    for inputs, owner in reading_batches([examples[i] for i in index], mine, device):
        weight = torch.tensor([1.0 / (len(mine[i]) * responses) for i in owner], device=device)
        with autocast(device, bf16):
            logits = reward_model(**inputs)
        part = reward_model_loss(logits, flat(owner, [labels[i] for i in index]), weight)
        part.backward()
        loss += part.item()
    return loss


def train_step(replicas, index, machine):
    """One step on this rank's responses `index`; returns the loss over all ranks. The work of the replicas is `add_gradients`."""
    reward_model, responses = replicas.model, machine.total(len(index))
    loss = sum(replicas.gradients([(share, responses) for share in np.array_split(index, replicas.count)]))
    machine.sum_gradients(reward_model)
    torch.nn.utils.clip_grad_norm_([p for p in reward_model.parameters() if p.grad is not None], 1.0)
    replicas.step()
    return machine.total(loss)


def enumerated(owner):
    """Count up within each run of equal owners: [7, 7, 3, 3, 3] -> (7, 0), (7, 1), (3, 0), (3, 1), (3, 2)."""
    last, k = None, 0
    for i in owner:
        k = k + 1 if i == last else 0
        last = i
        yield i, k


@torch.no_grad()
def read_logits(reward_model, examples, places, machine, bf16):
    """Logits at the places of each example: a list of lists."""
    found = [[] for _ in examples]
    for inputs, owner in reading_batches(examples, places, machine.device):
        with autocast(machine.device, bf16):
            logits = reward_model(**inputs).float().tolist()
        for i, logit in zip(owner, logits):
            found[i].append(logit)
    return found


def mean_loss(logits, labels):
    """Mean over responses of the mean cross-entropy over their places."""
    each = [F.binary_cross_entropy_with_logits(torch.tensor(z), torch.tensor(y)).item() for z, y in zip(logits, labels)]
    return float(np.mean(each))


def platt(logits, labels):
    """Scale a and offset c such that sigmoid(a z + c) fits the labels best in cross-entropy (Platt 1999). logits, labels: lists of numbers."""
    z, y, w = torch.tensor(logits, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-14)

    def loss():
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(w[0] * z + w[1], y)
        value.backward()
        return value

    optimizer.step(loss)
    return tuple(w.detach().tolist())


def calibrate(reward_model, data, config, machine, bf16):
    """Fold the fitted scale and offset into the head, so that every reader gets calibrated scores. Fitted where the reward model is read, on validation
    responses as they come."""
    places = [reading_places(config.kind, e.ids[e.prompt_len :]) for e in data.examples]
    wanted = dict(zip(("places", "labels"), targets(data, config)))
    labels = wanted["labels"] if config.kind == "prm" else [label[-1:] for label in wanted["labels"]]
    logits = read_logits(reward_model, data.examples, places, machine, bf16)
    a, c = platt([z for zs in logits for z in zs], [y for ys in labels for y in ys])
    with torch.no_grad():
        reward_model.score.weight.mul_(a)
        reward_model.score.bias.mul_(a).add_(c)
    return dict(scale=a, offset=c)


def quality(reward_model, data, config, machine, bf16):
    """How good the judge is, by the exact judge's verdicts: AUC, Brier score and their counts, at the last token and by position: of the steps, first to
    fifth and later, for a prm; of the response's tokens, in quarters, for an orm."""
    if config.kind == "prm":
        places, names = data.places, {f"step {k + 1}" + (" and later" if k == 4 else ""): k for k in range(5)}
        groups = [[f"step {min(k, 4) + 1}" + (" and later" if k >= 4 else "") for k in range(len(p) - 1)] + ["last"] for p in places]
        truth = data.exact
    else:
        names = {f"{quarter}/4 read": quarter for quarter in (1, 2, 3)}
        places = [[max(0, (len(e.ids) - e.prompt_len) * q // 4 - 1) for q in (1, 2, 3, 4)] for e in data.examples]
        groups = [[*names, "last"]] * len(places)
        truth = [[float(ok)] * 4 for ok in data.right]
    logits = read_logits(reward_model, data.examples, places, machine, bf16)
    by = {}
    for z, y, g in zip(logits, truth, groups):
        for logit, label, name in zip(z, y, g):
            by.setdefault(name, []).append((1 / (1 + np.exp(-logit)), label))
    figures = {}
    for name in (*names, "last"):
        chance, label = np.array(by.get(name, np.zeros((0, 2)))).reshape(-1, 2).T
        figures[name] = dict(auc=auc(chance, label), brier=brier(chance, label), n=len(label), right=round(float(label.mean()), 4) if len(label) else None)
    return dict(positions=figures, reliability=reliability(*np.array(by["last"]).T))


def label_quality(data):
    """Hard Monte Carlo labels against the exact judge's verdicts on the same steps (the outcome is known): how many steps are right and are called
    wrong, since no rollout found the answer, and how many are wrong and are called right, since one recovered or was lucky. None without rollouts."""
    if data.mc is None:
        return None
    steps = [(truth > 0, k > 0) for exact, mc in zip(data.exact, data.mc) for truth, k in zip(exact[:-1], mc[:-1])]
    return dict(right=sum(truth for truth, _ in steps), right_but_called_wrong=sum(truth and not called for truth, called in steps),
                wrong=sum(not truth for truth, _ in steps), wrong_but_called_right=sum(called and not truth for truth, called in steps))


def question_batches(kept, examples, size, epochs, seed, rank=0, world=1):
    """Yield this rank's part of every batch: `size` indices from `kept` over all ranks.

    Every epoch shuffles the questions and keeps the responses to each side by side, so that a step
    reads most prompts once. Those left over at the end of an epoch open the next one.
    """
    by_prompt = {}
    for i in kept:
        by_prompt.setdefault(tuple(examples[i].ids[: examples[i].prompt_len]), []).append(i)
    questions = list(by_prompt.values())
    order = []
    for epoch in range(epochs):
        for q in np.random.default_rng((seed, epoch)).permutation(len(questions)):
            order += questions[q]
    for at in range(0, len(order) - size + 1, size):
        yield np.array_split(np.array(order[at : at + size]), world)[rank]


def rate_at(step, steps, warmup):
    """Factor on the peak rate: climbs over `warmup` steps, then falls linearly to zero."""
    return min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))


def train(config, machine):
    """The whole run; returns the report that is also written to --out."""
    check_config(config)
    state = checkpoint.load(Path(config.out) / "ckpt.pt" if config.resume and (Path(config.out) / "ckpt.pt").exists() else config.init)
    began = state.get("verifier")
    policy = checkpoint.load_model(config.init, machine.device)
    reward_model = RewardModel(GPTConfig(**state["model"]), config.kind)
    out = prepare_out(config.out, config, config.resume, machine)
    if not config.resume and machine.main:
        for old in out.glob("*.npz"):  # of a run that was killed while it sampled, with other flags perhaps
            old.unlink()
    bf16 = choose_bf16(config.precision, machine, state.get("bf16") if began else None)
    data = label_responses(config, machine, sampler(policy, bf16), out)
    places, labels = targets(data["train"], config)
    kept, examples = balance(labels, config.seed), data["train"].examples
    plan = list(question_batches(kept, examples, max(machine.world, config.batch_size), config.epochs, config.seed, machine.rank, machine.world))
    if not plan:
        raise UserError(f"{len(examples)} different responses, {len(kept)} of them balanced, do not fill a step of {config.batch_size}: ask more --questions, or easier or harder ones")
    run = dict(step=0, best=None, stale=0)  # best: lowest validation loss and its step; stale: looks since
    if began:
        reward_model.load_state_dict(state["weights"])
        run = state["run"]
    else:
        reward_model.gpt.load_state_dict(state["weights"])
        torch.nn.init.zeros_(reward_model.score.weight), torch.nn.init.zeros_(reward_model.score.bias)
    reward_model.to(machine.device)
    optimizer = AdamW(reward_model.parameters(), config.learning_rate, config.weight_decay, betas=(0.9, 0.95))
    if began:
        optimizer.load_state_dict(state["optimizer"])
    work = lambda reward_model, share: add_gradients(reward_model, examples, places, labels, *share, machine.device, bf16)
    replicas = Replicas(reward_model, [optimizer], work, replica_count(reward_model.gpt, machine, config.batch_size))
    rows = [row for split in data.values() for row in split.right]
    say(f"{config.kind}: {reward_model.gpt.num_params / 1e6:.2f}M parameters, {len(examples)} different responses to {config.questions} questions, {len(kept)} balanced, "
        f"{np.mean(rows):.0%} of all right, at most {len(plan)} steps, {'bf16' if bf16 else 'fp32'} on {machine.device}", machine)

    val_places, val_labels = targets(data["val"], config)
    metrics, interrupt = Metrics(out / "metrics.jsonl", run["step"], machine.main), Interrupt()
    steps = min(len(plan), config.max_steps or len(plan))
    bar = StepBar(steps, config.kind, machine, run["step"])
    save = lambda: machine.main and save_reward_model(out / "ckpt.pt", reward_model, run=run, bf16=bf16, optimizer=optimizer.state_dict())
    while run["step"] < steps and run["stale"] < config.patience:
        begun, step = time.time(), run["step"]
        optimizer.lr = config.learning_rate * rate_at(step, len(plan), config.warmup_steps)
        loss = train_step(replicas, plan[step], machine)
        run["step"], row = step + 1, dict(loss=loss, step_seconds=time.time() - begun)
        if run["step"] % config.eval_every == 0 or run["step"] == len(plan):
            row["val_loss"] = now = mean_loss(read_logits(reward_model, data["val"].examples, val_places, machine, bf16), val_labels)
            run["stale"] = 0 if run["best"] is None or now < run["best"][0] else run["stale"] + 1
            if run["stale"] == 0:
                run["best"] = [now, run["step"]]
                if machine.main:
                    save_reward_model(out / "best.pt", reward_model, run=run)
        metrics.log(step=step, **row)
        bar.show(step, f"loss {loss:.3f}" + (f"  validation {run['best'][0]:.3f}" if run["best"] else ""))
        stop = interrupt.agreed(machine)
        if run["step"] % config.save_every == 0 or stop:
            save()
        if stop:
            interrupt.leave(run["step"], machine)
    bar.close(), interrupt.close(), replicas.close()
    save()
    return finish(reward_model, data, kept, config, machine, bf16, run, bar.seconds)


def check_config(config):
    """UserError for what single flags cannot show to be wrong."""
    if not config.init:
        raise UserError("--init is missing: a reward model learns from a policy's responses, for instance --init runs/speedrun/cold")
    if config.hard_labels and config.labels != "mc":
        raise UserError("--hard-labels is about Monte Carlo labels: --labels mc")
    if config.kind == "orm" and config.labels == "mc":
        raise UserError("--kind orm learns from final answers, which are always judged exactly; --labels mc is for --kind prm")


def finish(reward_model, data, kept, config, machine, bf16, run, seconds):
    """Calibrate the selected weights and write them as best.pt; report and figure."""
    out = Path(config.out)
    state = checkpoint.load(out / "best.pt") if run["best"] else {}
    if state:
        reward_model.load_state_dict(state["weights"])
    scale = state.get("calibration") or calibrate(reward_model, data["val"], config, machine, bf16)  # once: a second fit would find nothing to do
    report = dict(stage=config.kind, params=reward_model.gpt.num_params, labels=config.labels, steps=run["step"], seconds=seconds, best=run["best"], calibration=scale,
                  cost={split: data[split].cost for split in ("train", "val")}, responses=len(data["train"].examples), balanced=len(kept),
                  step_labels=sum(len(p) - 1 for p in data["train"].places), label_quality=label_quality(data["train"]),
                  test=quality(reward_model, data["test"], config, machine, bf16))
    if machine.main:
        save_reward_model(out / "best.pt", reward_model, run=run, calibration=scale)
        write_json(out / "report.json", report)
        plots.reward_model({out.name: report}, out / "verifier.png")
    last = report["test"]["positions"]["last"]
    say(f"{config.kind}: {run['step']} steps in {seconds:.0f}s; on {last['n']} test responses, {last['right']:.0%} of them right, AUC {last['auc'] or 'undefined'}, Brier score {last['brier']}", machine)
    return report


def main():
    config = parse_config(Config, doc=__doc__)
    train(config, start_machine(config.device))


if __name__ == "__main__":
    run_script(main)

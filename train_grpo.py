"""Reinforcement learning with verifiable rewards: GRPO.

What this teaches. The model gets questions and a judge, never a solution. For every question it samples a group of responses; those
above their group's mean become likelier, those below it less likely. From a base that answers at once, thinking emerges because it
pays (`--init runs/base`, DeepSeek-R1-Zero); from a cold start, the ways of reasoning that fail fade out (`--init runs/cold`, R1).

One step is three verbs:  rollout -> advantages -> update.

Where it departs from DeepSeekMath (2402.03300) and DeepSeek-R1 (2501.12948). The objective is equation 3 of DeepSeekMath with outcome
supervision: group-normalised advantages, the clipped ratio, the k3 estimate of the KL to a frozen reference, each response averaged over its own
tokens. Old log-probabilities come from the trainer's own forward pass, not from the sampler, so that on-policy the ratio is exactly 1.
Responses are packed into rows without padding. The laptop's learning rate is 300 times DeepSeek-R1's 1e-6: the model
is half a million times smaller.

    laptop      python train_grpo.py --init runs/base --out runs/zero
    one GPU     python train_grpo.py --init runs/cold --preset gpu --out runs/rl
    8 GPUs      torchrun --nproc-per-node 8 train_grpo.py --init runs/cold --preset node --out runs/rl
"""

import copy
import random
import time
from dataclasses import dataclass

import numpy as np
import torch

from nanoreason import checkpoint
from nanoreason.common import (Interrupt, Metrics, UserError, autocast, choose_bf16, flag, generator, parse_config, prepare_out, progress, run_script, say,
                               seed_for, start_machine, write_json)
from nanoreason.corpus import Example, read_problems
from nanoreason.data import IGNORE, pack
from nanoreason.evaluate import accuracy, behaviours, collect, held_out_problems
from nanoreason.generate import MAX_ROWS, generate, noise, sampler
from nanoreason.model import cache_memory, memory_line, training_memory
from nanoreason.rewards import LENGTH_FORMS, PROCESS_FORMS, Scheme, group_rewards
from nanoreason.tasks import FAMILIES, LEVELS, draw_problem
from nanoreason.tokenizer import parse_response, render_prompt


@dataclass
class Config:
    init: str = flag("", "checkpoint or run folder to start from; it is also the frozen reference")
    out: str = flag("runs/grpo", "folder for the checkpoint, metrics and report")
    resume: bool = flag(False, "continue the run in --out")
    data: str = flag("", "JSONL file of questions and answers to train on instead of generated ones; a tenth is kept for validation")
    families: str = flag("multiplication,chain,percent,word,equation", "families of the training questions, separated by commas")
    levels: str = flag("1,2", "levels of the training questions, separated by commas")
    steps: int = flag(50, "rollouts, each followed by its updates", low=1)
    prompts: int = flag(64, "questions a step, over all ranks", low=1)
    num_samples_per_prompt: int = flag(8, "responses to each question: the group", low=2)
    temperature: float = flag(1.0, "sampling temperature of the rollouts, and of the update's log-probabilities", low=0.01)
    max_reasoning_tokens: int = flag(160, "longest response, in tokens; longer ones are cut and count as wrong", low=1)
    reward: str = flag("outcome", "what is rewarded: a right answer in its place, or, to study reward hacking, a judge with a hole in it",
                       choices=("outcome", "leaky-for-hacking-study"))
    format_weight: float = flag(0.0, "extra reward for a well-formed response", low=0)
    length_penalty: float = flag(0.0, "reward a token of the response; the brief's value is -0.001", high=0)
    length_form: str = flag("plain", "who pays for length: every response, or only right ones for what they exceed the group's shortest right one",
                            choices=LENGTH_FORMS)
    process_weight: float = flag(0.0, "extra reward for exact step verdicts: right +1, unneeded 0, wrong -1", low=0)
    process_form: str = flag("mean", "how a response's step verdicts become one number", choices=tuple(PROCESS_FORMS))
    advantage: str = flag("mean-std", "divide the advantages by the group's standard deviation, or not", choices=("mean", "mean-std"))
    clip_ratio: float = flag(0.2, "epsilon of the clipped ratio", low=0, high=1)
    kl: str = flag("k3", "estimator of the KL to the reference in the loss", choices=("none", "k3"))
    kl_coef: float = flag(0.01, "weight of the KL", low=0)
    minibatches: int = flag(2, "parts a rollout is split into, by whole groups, with an optimizer step each", low=1)
    inner_epochs: int = flag(1, "passes over each rollout", low=1)
    learning_rate: float = flag(3e-4, "peak learning rate of AdamW", low=0)
    warmup_steps: int = flag(2, "steps in which the rate climbs", low=0)
    grad_clip: float = flag(1.0, "largest norm of the gradient", low=0)
    row_tokens: int = flag(128, "length of a packed row of the update", low=16)
    micro_tokens: int = flag(4096, "tokens in one forward pass of one rank", low=64)
    precision: str = flag("auto", "bf16 for rollouts and, by autocast, for the update where it is faster, or one of them", choices=("auto", "fp32", "bf16"))
    checkpoint_activations: bool = flag(False, "recompute each block in the backward pass instead of storing it: a third more arithmetic, far less memory")
    compile: bool = flag(False, "torch.compile the decoding step (on a CPU 12 s at the start, then rollouts of 256 in 0.6 of the time) and, on a GPU, the update")
    eval_every: int = flag(20, "steps between greedy checks on the validation split; 0 never", low=0)
    eval_problems: int = flag(40, "validation problems of each family", low=1)
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions and samples", low=0)
    max_steps: int = flag(0, "stop after this many steps; 0 runs to the end", low=0)
    save_every: int = flag(10, "steps between checkpoints", low=1)


PRESETS = {
    "laptop": {},
    "gpu": dict(prompts=256, steps=200, learning_rate=1e-5, max_reasoning_tokens=1024, row_tokens=1024, micro_tokens=16_384, compile=True, warmup_steps=10),
    "node": dict(prompts=1024, steps=500, learning_rate=1e-5, max_reasoning_tokens=2048, row_tokens=2048, micro_tokens=16_384, compile=True, warmup_steps=10),
}


def group_advantages(rewards, kind="mean-std"):
    """How much better each response is than its group. rewards (P, G) -> (P, G) float32.

    mean-std: (r - mean) / std, DeepSeekMath section 4.1.2; mean: r - mean. A group whose rewards are all equal says nothing
    about which response is better, and gets exactly zero.

        [[1, 0, 0, 0]]  ->  mean  [[0.75, -0.25, -0.25, -0.25]]      mean-std  [[1.5, -0.5, -0.5, -0.5]]
    """
    advantage = rewards - rewards.mean(1, keepdim=True)
    if kind == "mean-std":
        advantage = advantage / rewards.std(1, keepdim=True).clamp_min(1e-6)
    return torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0, advantage)


def grpo_loss(logp, old_logp, ref_logp, advantage, weight, clip_ratio, kl_coef):
    """The GRPO objective, negated (DeepSeekMath 2402.03300, equation 3), over the response tokens of a batch laid end to end.

    logp, old_logp, ref_logp: (M,) log-probability of each token under the policy, the policy that sampled, and the reference
    (None without a KL); advantage: (M,) of the token's response; weight: (M,) 1 / (responses in the batch * tokens in this response).

        - sum_t weight_t [ min(ratio_t A_t, clip(ratio_t, 1 - eps, 1 + eps) A_t) - kl_coef k3_t ],    ratio = pi / pi_old
        k3 = pi_ref / pi - log(pi_ref / pi) - 1  >= 0   (equation 4)

    Returns the scalar loss and (clipped share, mean k3), both weighted like the loss.
    """
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    kl = torch.zeros_like(logp)
    if ref_logp is not None:
        log_ratio = ref_logp - logp
        kl = log_ratio.exp() - log_ratio - 1
    loss = -(weight * (gain - kl_coef * kl)).sum()
    return loss, (weight * (clipped * advantage < ratio * advantage)).sum().detach(), (weight * kl).sum().detach()


def token_logprobs(model, micro, temperature, with_entropy=False):
    """Log-probability (M,) of every response token of a packed micro-batch, and the entropy (M,) of its distribution if asked.

    The temperature is the one that sampled: at another, the ratio would compare two different policies.
    """
    logits = model(micro["tokens"], micro["doc_start"], select=micro["select"]).float() / temperature  # (M, V)
    logp = logits.log_softmax(-1)
    chosen = logp.gather(1, micro["targets"][:, None]).squeeze(1)
    return chosen, -(logp.detach().exp() * logp.detach()).sum(-1) if with_entropy else None


def own_share(config, machine):
    """Indices, among the questions of a step, of this rank's. Ranks take turns with a question for each minibatch, so that a minibatch, over all
    ranks, holds the questions that it holds on one:  8 questions, 2 minibatches, 2 ranks  ->  rank 0 [0 1 4 5], rank 1 [2 3 6 7]."""
    return [i for i in range(config.prompts) if i // config.minibatches % machine.world == machine.rank]


def draw_questions(config, step, machine, own=None):
    """This rank's share of the step's training questions; all ranks together see what one would. own: the user's problems by split."""
    rng = random.Random(seed_for(config.seed, "questions", step))
    families, levels = config.families.split(","), [int(level) for level in config.levels.split(",")]
    draw = lambda: rng.choice(own["train"]) if own else draw_problem(rng.choice(families), rng.choice(levels), rng, "train")
    drawn = [draw() for _ in range(config.prompts)]
    return [drawn[i] for i in own_share(config, machine)]


def micro_batches(prompts, rollout, advantages, rows_of, config, total, device):
    """Pack the responses `rows_of` into rows and cut them into micro-batches of tensors for `token_logprobs` and `grpo_loss`.

    Each holds tokens, doc_start (B, T); select (M,) the places that predict a response token; and for those places targets,
    advantage, weight, sampled (the sampler's own log-probability), all (M,). total: responses in the batch over all ranks.
    Responses longer than row_tokens go apart, in rows of their own length: on a CPU attention pays for T squared.
    """
    G, lengths, sampled = config.num_samples_per_prompt, rollout.lengths.numpy(), rollout.logprobs
    examples = {row: Example(prompts[row // G] + rollout.response(row), len(prompts[row // G])) for row in rows_of}
    for short in (True, False):
        some = [row for row in rows_of if (len(examples[row].ids) <= config.row_tokens) == short]
        packed = pack([examples[row] for row in some], config.row_tokens if short else max((len(examples[row].ids) for row in some), default=1))
        some, prompt_len = np.array(some, dtype=int), np.array([examples[row].prompt_len for row in some], dtype=int)
        at_once = max(1, config.micro_tokens // packed.tokens.shape[1])
        for at in range(0, len(packed), at_once):
            cut = slice(at, at + at_once)
            tokens, targets, doc_start = packed.batch(cut, device)
            place = (packed.targets[cut].ravel() != IGNORE).nonzero()[0]  # (M,)
            owner = packed.owner[cut].ravel()[place]
            row = some[owner]
            in_document = place % packed.tokens.shape[1] - packed.doc_start[cut].ravel()[place]
            offset = in_document + 1 - prompt_len[owner]  # index of the target in its response
            to = lambda array: torch.as_tensor(array, dtype=torch.float32, device=device)
            select = torch.from_numpy(place).to(device)
            yield dict(tokens=tokens, doc_start=doc_start, select=select, targets=targets.flatten()[select], advantage=to(advantages[row]),
                       weight=to(1.0 / (total * lengths[row])), sampled=sampled[row, offset].to(device))


def update(model, reference, optimizer, prompts, rollout, advantages, config, machine, bf16):
    """Optimizer steps on one rollout: `minibatches` parts by whole groups, `inner_epochs` times over. Returns mean diagnostics.

    Old log-probabilities are taken once, before the first step, on the very micro-batches that are then trained on, so that the
    first ratio is exactly 1. Groups without signal are left out where no KL asks for them: their gradient is zero.
    """
    G, device, parts = config.num_samples_per_prompt, machine.device, []
    for part in range(config.minibatches):
        groups = range(part, len(prompts), config.minibatches)
        total = machine.total(len(groups) * G)
        rows = [g * G + i for g in groups for i in range(G) if reference is not None or advantages[g * G + i] != 0]
        parts.append(list(micro_batches(prompts, rollout, advantages, rows, config, total, device)) if rows else [])
    sums = dict.fromkeys(("loss", "clip_fraction", "kl", "entropy", "sampler_gap", "weight", "grad_norm"), 0.0)
    with torch.no_grad(), autocast(device, bf16):
        for part, micro in ((part, micro) for part, batch in enumerate(parts) for micro in batch):
            micro["ref"] = token_logprobs(reference, micro, config.temperature)[0] if reference is not None else None
            # used once, before any step, a part's old log-probabilities are those of its own forward pass
            micro["old"] = token_logprobs(model, micro, config.temperature)[0] if part > 0 or config.inner_epochs > 1 else None
    for part in parts * config.inner_epochs:
        for micro in part:
            with autocast(device, bf16):
                logp, entropy = token_logprobs(model, micro, config.temperature, with_entropy=True)
            old = logp.detach() if micro["old"] is None else micro["old"]
            loss, clipped, kl = grpo_loss(logp, old, micro["ref"], micro["advantage"], micro["weight"], config.clip_ratio, config.kl_coef)
            loss.backward()
            weight = micro["weight"]
            gap = (weight * (old - micro["sampled"]).abs()).sum()
            for name, value in dict(loss=loss, clip_fraction=clipped, kl=kl, entropy=(weight * entropy).sum(), sampler_gap=gap, weight=weight.sum()).items():
                sums[name] += value.item()
        machine.sum_gradients(model)
        sums["grad_norm"] += torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], config.grad_clip).item()
        optimizer.step()
        optimizer.zero_grad()
    sums = {name: value if name == "grad_norm" else machine.total(value) for name, value in sums.items()}
    scale = max(sums.pop("weight"), 1e-9)  # the share of responses that carried a loss, summed over parts and epochs
    grad_norm = sums.pop("grad_norm") / (config.minibatches * config.inner_epochs)
    return {name: value / scale for name, value in sums.items()} | {"grad_norm": grad_norm}


def rollout_metrics(rewards, rollout, responses, machine):
    """What users ask of a rollout, over all ranks: solve rate, groups without signal, lengths of right and wrong, behaviours."""
    right = rewards["outcome"] > 0  # (P, G)
    lengths = rollout.lengths.view(right.shape).float()
    N, P = machine.total(right.numel()), machine.total(len(right))
    n_right = machine.total(right.sum())
    mean = lambda values, n: machine.total(values.sum()) / max(n, 1)
    shares = {name: machine.total(share * len(responses)) / N for name, share in behaviours(responses).items()}
    return dict(solve_rate=n_right / N, all_right=mean(right.all(1), P), all_wrong=mean((~right).all(1), P), format=mean(rewards["format"], N),
                length=mean(lengths, N), length_right=mean(lengths[right], n_right), length_wrong=mean(lengths[~right], N - n_right),
                truncated=mean((~rollout.ended).float(), N), **shares, **{f"reward_{part}": mean(values, N) for part, values in rewards.items()})


def rollout_step(policy, config, step, machine, own=None):
    """Questions, responses and rewards of one step: (prompts, rollout, rewards {part: (P, G)}, metrics). A response draws from random numbers
    of its own, so that ranks together sample what one would."""
    G = config.num_samples_per_prompt
    problems = draw_questions(config, step, machine, own)
    prompts = [render_prompt(p.question) for p in problems]
    uniform = noise((config.prompts, G, config.max_reasoning_tokens), generator(config.seed, "rollout", step))[own_share(config, machine)]  # (P, G, L)
    rollout = generate(policy, prompts, G, config.max_reasoning_tokens, config.temperature, uniform.flatten(0, 1), compile=config.compile).cpu()
    ids = [rollout.response(row) for row in range(len(rollout.ids))]
    scheme = Scheme(config.format_weight, config.length_penalty, config.length_form, config.process_weight, config.process_form,
                    config.reward == "leaky-for-hacking-study")
    judged = [r for p, problem in enumerate(problems) for r in group_rewards(problem, ids[p * G : (p + 1) * G], scheme)]
    shape = lambda values: torch.tensor(values, dtype=torch.float32).view(len(problems), G)  # (P, G)
    rewards = {"total": shape([r.total for r in judged])} | {part: shape([r.parts[part] for r in judged]) for part in judged[0].parts}
    return prompts, rollout, rewards, rollout_metrics(rewards, rollout, [parse_response(i) for i in ids], machine)


def validate(policy, config, own=None):
    """Greedy accuracy on the validation split at the training families and levels, or on the user's own."""
    levels = [int(level) for level in config.levels.split(",")]
    problems = own["val"][: config.eval_problems] if own else held_out_problems(config.families.split(","), levels, config.eval_problems, "val")
    judged = collect(policy, problems, 1, 0.0, config.max_reasoning_tokens, config.seed)
    return accuracy(sum(s[0].correct for s in judged), len(judged))


def check_config(config, machine):
    """UserError for what single flags cannot show to be wrong."""
    for family in config.families.split(","):
        if family not in FAMILIES:
            raise UserError(f"--families: there is no family {family!r}; there are {', '.join(FAMILIES)}")
    if not all(level.strip().isdigit() and int(level) in LEVELS for level in config.levels.split(",")):
        raise UserError(f"--levels {config.levels}: levels are whole numbers from 1 to 5, separated by commas")
    if not config.init and not config.resume:
        raise UserError("--init is missing: GRPO needs a model to start from, for instance --init runs/base")
    if config.prompts < machine.world * config.minibatches:
        raise UserError(f"--prompts {config.prompts} are too few for {machine.world} ranks and {config.minibatches} minibatches")


def own_problems(config, max_len):
    """The problems of --data by split, or None. Raises UserError where a question leaves no room for a response."""
    if not config.data:
        return None
    own = read_problems(config.data)
    if not own["train"]:
        raise UserError(f"--data {config.data}: all its questions fall into the tenth that is kept for validation; more rows are needed")
    longest = max(own["train"] + own["val"], key=lambda p: len(render_prompt(p.question)))
    if len(render_prompt(longest.question)) + config.max_reasoning_tokens > max_len:
        raise UserError(f"--data {config.data}: a question of {len(render_prompt(longest.question))} tokens and --max-reasoning-tokens "
                        f"{config.max_reasoning_tokens} do not fit the model's context of {max_len}")
    return own


def train(config, machine):
    """The whole run; returns the report that is also written to --out."""
    check_config(config, machine)
    state = checkpoint.load(config.out if config.resume else config.init, machine.device)
    model = checkpoint.build_model(state, machine.device)
    own = own_problems(config, model.config.max_len)
    out = prepare_out(config.out, config, config.resume, machine)
    if config.row_tokens > model.config.max_len:
        raise UserError(f"--row-tokens {config.row_tokens} is longer than the model's context of {model.config.max_len}")
    if config.kl == "none":
        reference = None
    else:
        reference = copy.deepcopy(model).requires_grad_(False)
        if config.resume:
            reference.load_state_dict(state["reference"])
    net = torch.compile(model, dynamic=True) if config.compile and machine.device.type != "cpu" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    first, checks = 0, {}  # checks: {steps done: greedy validation accuracy}
    if config.resume:
        optimizer.load_state_dict(state["optimizer"])
        first, checks = state["step"], state["checks"]
    bf16 = choose_bf16(config.precision, machine, state.get("bf16") if config.resume else None)
    model.checkpoint_activations = config.checkpoint_activations
    policy = sampler(model, bf16)  # the copy that samples, refreshed before each rollout
    steps = min(config.steps, config.max_steps or config.steps)
    say(f"grpo: {model.num_params / 1e6:.2f}M parameters, {config.prompts} prompts x {config.num_samples_per_prompt} samples a step, "
        f"{steps} steps, update in {'bf16' if bf16 else 'fp32'} on {machine.device}", machine)
    rows = min(MAX_ROWS, config.prompts // machine.world * config.num_samples_per_prompt)
    cache = cache_memory(model.config, rows, min(model.config.max_len, config.max_reasoning_tokens + 64), bf16)  # a question and its response
    parts = training_memory(model.config, config.micro_tokens, config.row_tokens, bf16, config.checkpoint_activations, dense=bf16 and machine.device.type == "cpu")
    say(memory_line(parts | dict(copies=model.num_params * ((2 if bf16 else 4) + (0 if reference is None else 4)), cache=cache), machine), machine)

    def save(step):
        if machine.main:
            extra = {} if reference is None else {"reference": reference.state_dict()}
            checkpoint.save(out / "ckpt.pt", model, step=step, bf16=bf16, optimizer=optimizer.state_dict(), checks=checks, **extra)

    metrics = Metrics(out / "metrics.jsonl", first, machine.main)
    interrupt, bar, start = Interrupt(), progress(steps, "grpo", machine, first), time.time()
    check = config.eval_every and (own is None or own["val"])
    if check and first == 0:
        checks[0] = validate(policy, config, own)
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
        begun = time.time()
        prompts, rollout, rewards, row = rollout_step(sampler(model, bf16, policy), config, step, machine, own)
        rolled = time.time()
        advantages = group_advantages(rewards["total"], config.advantage).flatten().numpy()
        row |= update(net, reference, optimizer, prompts, rollout, advantages, config, machine, bf16)
        row |= dict(rollout_seconds=rolled - begun, update_seconds=time.time() - rolled)
        if check and (step + 1) % config.eval_every == 0:
            checks[step + 1] = validate(sampler(model, bf16, policy), config, own)
            row["val_greedy"] = checks[step + 1]["acc"]
        metrics.log(step=step, **row)
        bar.update()
        bar.set_postfix_str(f"solved {row['solve_rate']:.2f} length {row['length']:.0f}")
        if bar.disable and (step % 5 == 0 or step == steps - 1):
            say(f"  step {step:4d}/{steps}  solved {row['solve_rate']:.2f}  length {row['length']:5.1f}  thinks {row['thinks']:.2f}  "
                f"no signal {row['all_right'] + row['all_wrong']:.2f}  entropy {row['entropy']:.2f}  kl {row['kl']:.3f}  {time.time() - start:.0f}s", machine)
        stop = machine.total(interrupt.wanted) > 0  # one rank may hear Ctrl-C a step before another
        if (step + 1) % config.save_every == 0 or stop:
            save(step + 1)
        if stop:
            interrupt.close()
            say(f"stopped after step {step + 1} and saved; continue with --resume", machine)
            raise KeyboardInterrupt
    bar.close()
    interrupt.close()
    save(steps)
    report = dict(stage="grpo", params=model.num_params, steps=steps, seconds=time.time() - start, val_greedy=checks)
    if machine.main:
        write_json(out / "report.json", report)
    say(f"grpo: {steps} steps in {report['seconds']:.0f}s" + (f", greedy validation accuracy {checks[max(checks)]['acc']:.3f} (n={checks[max(checks)]['n']})" if checks else ""), machine)
    return report


def main():
    config = parse_config(Config, presets=PRESETS, doc=__doc__)
    train(config, start_machine(config.device))


if __name__ == "__main__":
    run_script(main)

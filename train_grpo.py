"""Reinforcement learning with verifiable rewards: GRPO and its relatives.

What this teaches. The model gets questions and a judge, never a solution. For every question it samples a group of responses; those
above their group's mean become likelier, those below it less likely. From a base that answers at once, thinking emerges because it
pays (`--init runs/base`, DeepSeek-R1-Zero); from a cold start, the ways of reasoning that fail fade out (`--init runs/cold`, R1).

One step is three verbs:  sample -> advantages -> update.  Where it departs from the papers: old log-probabilities come from the trainer's
own forward pass, not from the sampler, so that on-policy the ratio is exactly 1; responses are packed without padding, on a CPU behind one copy of their prompt; the
laptop's learning rate is far above the 1e-6 of `--preset deepseek-r1`, whose model is half a million times larger.

    laptop      python train_grpo.py --init runs/base --out runs/zero
    one GPU     python train_grpo.py --init runs/cold --preset gpu --out runs/rl
    8 GPUs      torchrun --nproc-per-node 8 train_grpo.py --init runs/cold --preset node --out runs/rl
"""

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from nanoreason import checkpoint, plots
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import autocast, choose_bf16, run_script, start_machine
from nanoreason.run import Interrupt, Metrics, prepare_out, read_metrics, say, StepBar, write_json
from nanoreason.evaluate import greedy_accuracy, sampled_accuracy
from nanoreason.experience import announce, sample_groups, sequence_kl, token_logprobs
from nanoreason.generate import sampler
from nanoreason.optim import AdamW
from nanoreason.questions import Questions, advise
from nanoreason.rewards import LENGTH_FORMS, PROCESS_FORMS, REWARDS
from nanoreason.reward_model import load_reward_model


@dataclass
class Config:
    init: str = flag("", "checkpoint or run folder to start from; it is also the frozen reference")
    out: str = flag("runs/grpo", "folder for the checkpoints, metrics, figures and report")
    resume: bool = flag(False, "continue the run in --out")
    data: str = flag("", "JSONL file of questions and answers to train on instead of generated ones; a tenth is kept for validation")
    families: str = flag("multiplication,chain,percent,word,equation", "families of the training questions, separated by commas")
    level: str = flag("1,2", "levels of the training questions, separated by commas, or auto: as hard as keeps 20 to 60% of the responses right")
    steps: int = flag(50, "rollouts, each followed by its updates", low=1)
    token_budget: int = flag(0, "end once this many response tokens have been sampled; 0: no limit", low=0)
    goal: float = flag(0.0, "end once the lower bound of sampled accuracy on 1,000 validation problems reaches this share; 0: no goal", low=0, high=1)
    batch_size: int = flag(512, "responses a step, over all ranks: questions times --num-samples-per-prompt", low=2)
    num_samples_per_prompt: int = flag(8, "responses to each question: the group", low=2)
    temperature: float = flag(1.0, "sampling temperature of the rollouts, and of the update's log-probabilities", low=0.01)
    max_reasoning_tokens: int = flag(160, "longest response, in tokens; longer ones are cut and count as wrong", low=1)
    dynamic_sampling: bool = flag(False, "leave out groups without signal and ask further questions in their place (DAPO)")
    refills: int = flag(3, "most times that --dynamic-sampling asks further questions in a step", low=1)
    reward: str = flag("outcome", "what is paid: right answers; a reward model's scores; right answers and exactly judged steps; or, for study, a judge with a hole", REWARDS)
    reward_model: str = flag("", "checkpoint of the reward model of --reward orm or prm")
    format_weight: float = flag(0.0, "extra reward for a well-formed response", low=0)
    length_penalty: float = flag(0.0, "reward a token of the response; the brief's value is -0.001", high=0)
    length_form: str = flag("plain", "who pays for length: all, or right responses for what they exceed the group's shortest right one", choices=LENGTH_FORMS)
    overlong_buffer: int = flag(0, "tokens before the longest response in which a penalty grows to -1 (DAPO); 0: none", low=0)
    process_weight: float = flag(0.0, "extra reward for exact step verdicts as one number: right +1, unneeded 0, wrong -1", low=0)
    process_form: str = flag("mean", "how a response's step verdicts become that number", choices=tuple(PROCESS_FORMS))
    loss: str = flag("grpo", "objective; it brings its paper's --advantage, --clip-ratio and --clip-high", choices=("grpo", "dr-grpo", "dapo", "gspo", "cispo"))
    advantage: str = flag("mean-std", "divide the advantages by the group's standard deviation, or not", choices=("mean", "mean-std"))
    clip_ratio: float = flag(0.2, "how far below 1 the ratio counts; 0 leaves this side open", low=0)
    clip_high: float = flag(-1.0, "how far above 1 the ratio counts; -1: as far as below; 0 leaves this side open", low=-1)
    kl: str = flag("none", "estimator of the KL to the reference: k1 lowers the reward, k2 and k3 are losses", choices=("none", "k1", "k2", "k3"))
    kl_coef: float = flag(0.01, "weight of the KL", low=0)
    refresh_reference: int = flag(0, "steps after which the reference becomes the present policy; 0: never", low=0)
    minibatches: int = flag(2, "parts a rollout is split into, by whole groups, with an optimizer step each", low=1)
    inner_epochs: int = flag(1, "passes over each rollout", low=1)
    learning_rate: float = flag(3e-4, "peak learning rate of AdamW", low=0)
    warmup_steps: int = flag(2, "steps in which the rate climbs", low=0)
    grad_clip: float = flag(1.0, "largest norm of the gradient; 0: no limit", low=0)
    row_tokens: int = flag(128, "length of a packed row of the update", low=16)
    micro_tokens: int = flag(4096, "most tokens in one forward pass of one rank", low=64)
    gradient_accumulation: int = flag(1, "forward passes to split a minibatch into at least; the numbers stay the same", low=1)
    precision: str = flag("auto", "bf16 for rollouts and, by autocast, for the update where it is faster, or one of them", choices=("auto", "fp32", "bf16"))
    checkpoint_activations: bool = flag(False, "recompute each block in the backward pass instead of storing it: a third more arithmetic, far less memory")
    compile: bool = flag(False, "torch.compile the decoding step (on a CPU 12 s at the start, then rollouts of 256 in 0.6 of the time) and, on a GPU, the update")
    eval_every: int = flag(10, "steps between greedy checks on the validation split, which select the checkpoint; 0: never, the last one is kept", low=0)
    eval_problems: int = flag(100, "validation problems of each family", low=1)
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions and samples", low=0)
    max_steps: int = flag(0, "stop after this many steps; 0 runs to the end", low=0)
    save_every: int = flag(10, "steps between checkpoints", low=1)

    @property
    def prompts(self):
        return self.batch_size // self.num_samples_per_prompt


LARGE = dict(learning_rate=1e-5, micro_tokens=16_384, compile=True, warmup_steps=10, kl="k3")
PRESETS = {
    "laptop": {},
    "gpu": LARGE | dict(batch_size=2048, steps=200, max_reasoning_tokens=1024, row_tokens=1024),
    "node": LARGE | dict(batch_size=8192, steps=500, max_reasoning_tokens=2048, row_tokens=2048),
    "deepseek-r1": dict(num_samples_per_prompt=8, temperature=0.7, max_reasoning_tokens=8192, learning_rate=1e-6, kl="k3", kl_coef=0.01, clip_ratio=0.2,
                        reward="outcome", length_penalty=-0.001, batch_size=256, gradient_accumulation=4, warmup_steps=100, steps=4000, micro_tokens=16_384),
}
PAPERS = {  # what --loss brings; MiniMax-M1 leaves the lower side open and names no number for the upper: ours is ScaleRL's (2510.13786), weights up to 5
    "grpo": dict(advantage="mean-std", clip_ratio=0.2, clip_high=-1.0),
    "dr-grpo": dict(advantage="mean", clip_ratio=0.2, clip_high=-1.0),
    "dapo": dict(advantage="mean-std", clip_ratio=0.2, clip_high=0.28),
    "gspo": dict(advantage="mean-std", clip_ratio=3e-4, clip_high=4e-4),
    "cispo": dict(advantage="mean-std", clip_ratio=0.0, clip_high=4.0),
}


def group_advantages(rewards, kind="mean-std"):
    """How much better each response is than its group. rewards (P, G), float -> (P, G), of the same dtype.

    mean-std: (r - mean) / std, DeepSeekMath section 4.1.2; mean: r - mean, Dr. GRPO: dividing by the std makes a group of nearly all right or nearly all
    wrong responses count most. A group whose rewards are all equal says nothing about which response is better, and gets exactly zero.

        [[1, 0, 0, 0]]  ->  mean  [[0.75, -0.25, -0.25, -0.25]]      mean-std  [[1.5, -0.5, -0.5, -0.5]]
    """
    advantage = rewards - rewards.mean(1, keepdim=True)
    if kind == "mean-std" and len(rewards):
        advantage = advantage / rewards.std(1, keepdim=True).clamp_min(1e-6)
    return torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0, advantage)


def token_advantages(rewards, steps, lengths, kind="mean-std"):
    """Advantage of every token. rewards (P, G): of whole responses, earned at their last token; steps: N lists of [(index of a token, reward)], of
    what else is earned on the way; lengths (N,). Returns (N, L) float32, 0 beyond a response's end.

    A token's advantage is the sum of the group-normalised rewards that are earned at it or later (process supervision, DeepSeekMath section
    4.1.3: mean and std are over all rewards of the group). Without steps all tokens of a response share `group_advantages`.

        a group of two, kind mean:  3 tokens, 1 at the first and 1 at the last;  2 tokens, 0 at the last;  the mean is 2/3
        ->  [[2/3, 1/3, 1/3], [-2/3, -2/3, 0]]
    """
    (P, G), index = rewards.shape, torch.arange(int(lengths.max()) if len(lengths) else 1)
    inside = index < lengths[:, None]  # (N, L)
    if not any(steps):
        return group_advantages(rewards, kind).view(-1, 1) * inside
    earned = torch.zeros(inside.shape)
    for p in range(P):
        rows = range(p * G, (p + 1) * G)
        places = [(row, at) for row in rows for at, _ in steps[row]] + [(row, int(lengths[row]) - 1) for row in rows]
        values = torch.tensor([value for row in rows for _, value in steps[row]] + rewards[p].tolist())
        earned.index_put_(tuple(torch.tensor(places).T), group_advantages(values[None], kind)[0], accumulate=True)
    return earned.flip(1).cumsum(1).flip(1) * inside


def token_weights(loss, lengths, responses, tokens, longest):
    """Weight (N, 1) of every token of responses of `lengths` (N,) tokens: what an objective averages over. responses, tokens: in the minibatch, over all ranks.

    grpo, gspo   1 / (responses * length): tokens within a response, then responses; a long response's tokens count less
    dr-grpo      1 / (responses * longest): a constant, so that length neither hides a mistake nor dilutes a success
    dapo, cispo  1 / tokens: all tokens of the minibatch. The papers print the sum over the group alone; with one group both are the same
    """
    divisor = {"grpo": responses * lengths, "gspo": responses * lengths, "dr-grpo": torch.full_like(lengths, responses * longest)}
    return 1.0 / divisor.get(loss, torch.full_like(lengths, tokens))[:, None].float()


def policy_loss(logp, old_logp, ref_logp, advantage, weight, response, loss="grpo", clip=(0.2, 0.2), kl="none", kl_coef=0.0):
    """The objectives of GRPO and its relatives, negated, over the response tokens of a batch laid end to end.

    logp, old_logp, ref_logp: (M,) log-probability of each token under the policy, the policy that sampled, and the reference (None without a KL);
    advantage, weight: (M,), from `token_advantages` and `token_weights`; response: (M,) int64, which response a token belongs to, from 0.
    clip: how far the ratio r = pi / pi_old counts below and above 1; 0 leaves a side open. sg() stops gradients. Minimised is

        - sum_t weight_t [ gain_t - kl_coef * kl_t ]

    grpo, dr-grpo, dapo   gain = min(r A, clip(r) A)          DeepSeekMath 2402.03300 eq. 3, Dr. GRPO 2503.20783 sec. 3.2, DAPO 2503.14476 eq. 8:
                                                              they differ in weights, advantages and clip
    gspo                  the same with r = sg(s) pi / sg(pi), s = exp(mean of log pi / pi_old over the response)   GSPO 2507.18071 eq. 5, by token eq. 13
    cispo                 gain = sg(clip(r)) A log pi         MiniMax-M1 2506.13585 eq. 4: no token ever loses its gradient

    KL of the policy to the reference, x = log pi / pi_ref (Schulman, "Approximating KL divergence", 2020); off-policy no ratio corrects it:
    k1 = x             unbiased; as a loss its gradient is 0 on average, so it is no loss here but lowers advantages (`sequence_kl`), where its gradient is right
    k2 = x^2 / 2       biased as a value; its gradient is that of the KL of each token's distribution, exactly, on-policy, earlier tokens held fixed
    k3 = e^-x - 1 + x  unbiased, never negative; its gradient, on-policy, is that of the reversed KL(ref || policy): biased, right to first order near the reference

    Returns the scalar loss, and the share of clipped tokens and the mean k3 (whatever `kl` is), both weighted like the loss.
    """
    log_ratio = logp - old_logp
    if loss == "gspo":
        count, total = torch.bincount(response), torch.zeros(int(response.max()) + 1, dtype=logp.dtype, device=logp.device)
        mean = total.index_add(0, response, log_ratio.detach()) / count
        log_ratio = mean[response] + logp - logp.detach()
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip[0] if clip[0] else None, 1 + clip[1] if clip[1] else torch.inf)
    if loss == "cispo":
        gain, clipped = bounded.detach() * advantage * logp, bounded != ratio
    else:
        gain = torch.minimum(ratio * advantage, bounded * advantage)
        clipped = bounded * advantage < ratio * advantage
    x = torch.zeros_like(logp) if ref_logp is None else logp - ref_logp
    k3 = (-x).exp() - 1 + x
    penalty = {"none": 0.0, "k1": 0.0, "k2": x**2 / 2, "k3": k3}[kl]
    return -(weight * (gain - kl_coef * penalty)).sum(), (weight * clipped).sum().detach(), (weight * k3).sum().detach()


def update(model, reference, optimizer, experience, advantages, config, machine, bf16):
    """Optimizer steps on one Experience: `minibatches` parts by whole groups, `inner_epochs` times over. advantages: (N, L).

    Old log-probabilities are those before the first step, on the very micro-batches that are trained on: the first ratio is exactly 1. Responses whose
    gradient is zero, for want of signal and of a KL, are left out. Returns means over the tokens trained on, None if there are none."""
    G, device, rollout, parts = config.num_samples_per_prompt, machine.device, experience.rollout, []
    for part in range(config.minibatches):
        rows = [p * G + g for p, place in enumerate(experience.places) if place % config.minibatches == part for g in range(G)]
        total, tokens = machine.total(len(rows)), machine.total(rollout.lengths[rows].sum())
        weight = token_weights(config.loss, rollout.lengths, total, tokens, config.max_reasoning_tokens).expand(rollout.ids.shape)
        useful = [row for row in rows if config.kl in ("k2", "k3") or advantages[row].any()]
        parts.append(experience.micro_batches(useful, dict(advantage=advantages, weight=weight, sampled=rollout.logprobs), config, device))
    sums = dict.fromkeys(("loss", "clip_fraction", "kl", "entropy", "sampler_gap", "weight"), 0.0)
    with torch.no_grad(), autocast(device, bf16):
        for part, micro in ((part, micro) for part, batch in enumerate(parts) for micro in batch):
            micro["ref"] = token_logprobs(reference, micro, config.temperature)[0] if reference is not None else None
            if part > 0:  # the sampler's own are the same to 1e-6 where it computed in float32 too: a pass less
                micro["old"] = micro["sampled"] if device.type == "cpu" and not bf16 else token_logprobs(model, micro, config.temperature)[0]
    clip, grad_norm = (config.clip_ratio, config.clip_ratio if config.clip_high < 0 else config.clip_high), 0.0
    for part in parts * config.inner_epochs:
        for micro in part:
            with autocast(device, bf16):
                logp, entropy = token_logprobs(model, micro, config.temperature, with_entropy=True)
            old, weight = micro.setdefault("old", logp.detach()), micro["weight"]  # before any step: its own pass
            loss, clipped, kl = policy_loss(logp, old, micro["ref"], micro["advantage"], weight, micro["response"], config.loss, clip, config.kl, config.kl_coef)
            loss.backward()
            gap = (weight * (old - micro["sampled"]).abs()).sum()  # 0 where these are the same numbers
            for name, value in dict(loss=loss, clip_fraction=clipped, kl=kl, entropy=(weight * entropy).sum(), sampler_gap=gap, weight=weight.sum()).items():
                sums[name] += value.item()
        machine.sum_gradients(model)
        grad_norm += torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], config.grad_clip or torch.inf).item()
        optimizer.step()
        optimizer.zero_grad()
    sums = {name: machine.total(value) for name, value in sums.items()}
    scale = sums.pop("weight")  # the share of tokens that carried a loss, weighted, summed over parts and epochs
    return {name: value / scale if scale else None for name, value in sums.items()} | dict(grad_norm=grad_norm / (config.minibatches * config.inner_epochs))


def check_config(config, machine):
    """UserError for what single flags cannot show to be wrong."""
    if not config.init and not config.resume:
        raise UserError("--init is missing: GRPO needs a model to start from, for instance --init runs/base")
    if config.batch_size % config.num_samples_per_prompt:
        raise UserError(f"--batch-size {config.batch_size} is no multiple of --num-samples-per-prompt {config.num_samples_per_prompt}")
    if config.prompts < machine.world * config.minibatches:
        raise UserError(f"--batch-size {config.batch_size} makes {config.prompts} question(s), too few for {machine.world} x {config.minibatches} (ranks x minibatches)")
    if (config.reward in ("orm", "prm")) != bool(config.reward_model):
        raise UserError(f"--reward {config.reward} and --reward-model {config.reward_model or '(none)'} do not go together: orm and prm need a reward model, nothing else takes one")
    if config.overlong_buffer > config.max_reasoning_tokens:
        raise UserError(f"--overlong-buffer {config.overlong_buffer} is longer than --max-reasoning-tokens {config.max_reasoning_tokens}")


def train(config, machine):
    """The whole run; returns the report that is also written to --out."""
    check_config(config, machine)
    state = checkpoint.load(Path(config.out) / "ckpt.pt" if config.resume else config.init)
    if config.resume and ("run" not in state or (config.kl == "none") != (state["reference"] is None)):
        raise UserError(f"--resume: {config.out} holds no run of train_grpo.py, or one that differs in --kl")
    model = checkpoint.build_model(state, machine.device)
    if config.row_tokens > model.config.max_len:
        raise UserError(f"--row-tokens {config.row_tokens} is longer than the model's context of {model.config.max_len}")
    reward_model = load_reward_model(config.reward_model, config.reward, machine.device) if config.reward_model else None
    context = min(net.config.max_len for net in (model, reward_model or model))
    questions = Questions(config.families, config.level, config.data, config.seed, context - config.max_reasoning_tokens)
    out = prepare_out(config.out, config, config.resume, machine)
    reference = None if config.kl == "none" else copy.deepcopy(model).requires_grad_(False)
    net = torch.compile(model, dynamic=True) if config.compile and machine.device.type != "cpu" else model
    optimizer = AdamW(model.parameters(), config.learning_rate, betas=(0.9, 0.99))
    run = dict(step=0, sampled_tokens=0, silent=0, reached=False, checks={})  # silent: steps in a row without signal; checks: {steps done: greedy validation accuracy}
    if config.resume:
        optimizer.load_state_dict(state["optimizer"])
        run, questions.difficulty = run | state["run"], state["difficulty"]
        if reference:
            reference.load_state_dict(state["reference"])
    bf16 = choose_bf16(config.precision, machine, state.get("bf16") if config.resume else None)
    model.checkpoint_activations = config.checkpoint_activations
    policy = sampler(model, bf16)  # the copy that samples, refreshed after each update
    announce(model, reference, config, machine, bf16)

    def save():
        if machine.main:
            checkpoint.save(out / "ckpt.pt", model, run=run, bf16=bf16, optimizer=optimizer.state_dict(), difficulty=questions.difficulty,
                            reference=reference and reference.state_dict())

    def validate():
        """Greedy accuracy on validation problems; the best model so far is kept as best.pt, of equals the later."""
        now = run["checks"][run["step"]] = greedy_accuracy(policy, validation, config.max_reasoning_tokens)
        if machine.main and now["acc"] == max(check["acc"] for check in run["checks"].values()):
            checkpoint.save(out / "best.pt", model, run=run)
        return now["acc"]

    validation = questions.held_out(config.eval_problems) if config.eval_every else []
    goal = questions.held_out(1000 // len(questions.families)) if config.goal else []
    steps = min(config.steps, config.max_steps or config.steps)
    metrics = Metrics(out / "metrics.jsonl", run["step"], machine.main)
    interrupt, bar = Interrupt(), StepBar(steps, "grpo", machine, run["step"])
    if validation and run["step"] == 0:
        validate()
    while run["step"] < steps and not (run["reached"] or config.token_budget and run["sampled_tokens"] >= config.token_budget):
        step, begun = run["step"], time.time()
        optimizer.lr = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
        experience, row = sample_groups(policy, config, questions, step, machine, reward_model)
        rolled = time.time()
        advantages = token_advantages(experience.rewards["total"], experience.steps, experience.rollout.lengths, config.advantage)
        if config.kl == "k1":
            advantages -= config.kl_coef * sequence_kl(model, reference, experience, config, machine.device, bf16)
        row |= update(net, reference, optimizer, experience, advantages, config, machine, bf16)
        sampler(model, bf16, policy)
        row |= dict(rollout_seconds=rolled - begun, update_seconds=time.time() - rolled)
        run["step"], run["sampled_tokens"] = step + 1, run["sampled_tokens"] + row["sampled_tokens"]
        if reference and config.refresh_reference and run["step"] % config.refresh_reference == 0:
            reference.load_state_dict(model.state_dict())
        if validation and run["step"] % config.eval_every == 0:
            row["val_greedy"] = validate()
        if config.goal and row["solve_rate"] >= config.goal:  # the training questions say when it is time to look
            row["val_sampled"] = sampled_accuracy(policy, goal, config.max_reasoning_tokens, seed=run["step"])
            run["reached"] = row["val_sampled"]["ci"][0] >= config.goal
        run["silent"] = run["silent"] + 1 if row["no_signal"] == 1 else 0
        advise(row, run["silent"], machine)
        metrics.log(step=step, **row)
        bar.show(step, f"solved {row['solve_rate']:.2f}  length {row['length']:.1f}  thinks {row['thinks']:.2f}  no signal {row['no_signal']:.2f}")
        if run["step"] % config.save_every == 0:
            save()
        if interrupt.agreed(machine):
            save(), interrupt.leave(run["step"], machine)
    bar.close(), interrupt.close()
    if validation and run["step"] not in run["checks"]:
        validate()
    save()
    return finish(model, config, machine, run, bar.seconds)


def finish(model, config, machine, run, seconds):
    """Report and figures of a run that has ended."""
    checks, out = run["checks"], Path(config.out)
    best = max(checks, key=lambda step: (checks[step]["acc"], step), default=run["step"])
    report = dict(stage="grpo", params=model.num_params, steps=run["step"], sampled_tokens=run["sampled_tokens"], seconds=seconds, reached=run["reached"], selected_step=best, val_greedy=checks)
    if machine.main:
        write_json(out / "report.json", report)
        plots.rl_figures({out.name: read_metrics(out / "metrics.jsonl")}, out)
    say(f"grpo: {run['step']} steps in {seconds:.0f}s" + (f"; greedy validation accuracy {checks[best]['acc']:.3f} (n={checks[best]['n']}) after step {best}, "
                                                          "whose weights are kept as best.pt" if checks else ""), machine)
    return report


def main():
    config = parse_config(Config, presets=PRESETS, brings={"loss": PAPERS}, doc=__doc__)
    train(config, start_machine(config.device))


if __name__ == "__main__":
    run_script(main)

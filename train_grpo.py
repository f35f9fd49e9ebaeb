"""Reinforcement learning with verifiable rewards: GRPO and its relatives.

What this teaches. The model gets questions and a checker of answers, never a solution. It samples
a group of responses per question; those better than their group's mean become likelier, the others
less likely. From a base that answers at once, thinking emerges because it pays (`--init runs/base`,
DeepSeek-R1-Zero); from a cold start, ways of reasoning that fail fade out (`--init runs/cold`, R1).

Policy, pi: the model in training. Sampler: its frozen copy. Rollout: what a step samples.
Reference: the frozen start. Advantage: how much better a response is than its group. On-policy:
before the weights change. P problems, G responses each, N = P * G; L tokens at most, M in a pass.

One step, and where to read each part (the first three: nanoreason/experience.py: sample_groups):

    problems   = questions.draw(step)                       nanoreason/questions.py
    responses  = G samples per problem                      nanoreason/generate.py: generate
    rewards    = check every answer         (P, G)          nanoreason/rewards.py: group_rewards
    advantages = (reward - mean) / std      (N, L)          token_advantages
    minibatches, packed without padding                     make_minibatches
    for each minibatch:                                     update
        logp  = log pi(token)               (M,)            nanoreason/experience.py: token_logprobs
        ratio = exp(logp - old logp)                        policy_loss
        loss  = -mean(min(ratio * A, clip(ratio) * A)) + kl_coef * KL
        one AdamW step
    the sampler takes the new weights                       nanoreason/generate.py: refresh_sampler

A first reader can skip every switch whose default is "none", 0 or off, and all --loss but grpo.

Where it departs from the papers. The trainer computes pi_old again, because in bfloat16 the sampler
rounds differently; in float32 on a CPU both agree to 1e-6, and the sampler's serves where it saves
a pass. The learning rate is far above `--preset deepseek-r1`'s, for a model 500,000 times larger.

    laptop      python train_grpo.py --init runs/base --out runs/zero
    one GPU     python train_grpo.py --init runs/cold --preset gpu --out runs/rl
    8 GPUs      torchrun --nproc-per-node 8 train_grpo.py --init runs/cold --preset node
"""

import time
from dataclasses import dataclass

import torch

from nanoreason.experience import Means, sample_groups, sequence_kl, token_logprobs
from nanoreason.flags import RATE_LIMIT, flag, parse_config
from nanoreason.generate import refresh_sampler
from nanoreason.grpo_run import Run, progress_line
from nanoreason.machine import autocast, run_script, start_machine
from nanoreason.rewards import LENGTH_FORMS, PROCESS_FORMS, REWARDS
from nanoreason.run import Interrupt, Metrics, StepBar


@dataclass
class Config:
    init: str = flag("", "checkpoint, run folder or pretrained:NAME; also the frozen reference")
    out: str = flag("runs/grpo", "folder for checkpoints, metrics, figures and report")
    resume: bool = flag(False, "continue the run in --out")
    data: str = flag("", "JSONL of questions and answers; a tenth picks best.pt, a tenth is a test")
    families: str = flag("multiplication,chain,percent,word,equation", "families to train on")
    level: str = flag("1,2", "levels, or auto: harder and easier, so that about 40% are right")
    steps: int = flag(50, "rollouts, each followed by its updates", low=1)
    token_budget: int = flag(0, "end after this many sampled tokens; 0: no limit", low=0)
    goal: float = flag(0.0, "end once training solves this share, and 1,000 validation problems at "
                       "temperature 1 too, by the lower 95% bound; 0: no goal", low=0, high=1)
    batch_size: int = flag(512, "responses per step: prompts times samples, all ranks", low=2)
    num_samples_per_prompt: int = flag(8, "responses per prompt: the group", low=2)
    temperature: float = flag(1.0, "of the rollouts and of the log-probabilities", low=0.01)
    max_reasoning_tokens: int = flag(160, "longest response; longer ones are cut and wrong", low=1)
    dynamic_sampling: bool = flag(False, "replace groups whose rewards are all equal (DAPO)")
    refills: int = flag(3, "most rounds of new questions of --dynamic-sampling", low=1)
    reward: str = flag("outcome", "right answers; orm, prm: a reward model's score; exact-process: "
                       "steps as well; leaky-...: a faulty checker, for study", REWARDS)
    reward_model: str = flag("", "checkpoint, or pretrained:NAME, for --reward orm or prm")
    format_weight: float = flag(0.0, "extra reward for a well-formed response", low=0)
    length_penalty: float = flag(0.0, "reward per token; DeepSeek-style recipes use -0.001", high=0)
    length_form: str = flag("plain", "--length-penalty for all tokens, or (calibrated) for what "
                            "right responses exceed the group's shortest right one", LENGTH_FORMS)
    overlong_buffer: int = flag(0, "last tokens, in which a penalty grows to -1 (DAPO)", low=0)
    process_weight: float = flag(0.0, "extra reward for checked steps, +1, 0 or -1 each", low=0)
    process_form: str = flag("mean", "how they become one number", tuple(PROCESS_FORMS))
    loss: str = flag("grpo", "objective; brings its paper's --advantage, --clip-ratio, --clip-high",
                     ("grpo", "dr-grpo", "dapo", "gspo", "cispo"))
    advantage: str = flag("mean-std", "r - mean of its group, or that / std", ("mean", "mean-std"))
    clip_ratio: float = flag(0.2, "lower clip of pi / pi_old: 1 - this; 0: none", low=0)
    clip_high: float = flag(-1.0, "upper clip: 1 + this; -1: as --clip-ratio; 0: none", low=-1)
    kl: str = flag("none", "KL to the reference: k1 is taken off the advantages, k2 and k3 are "
                   "losses", ("none", "k1", "k2", "k3"))
    kl_coef: float = flag(0.01, "weight of the KL", low=0)
    refresh_reference: int = flag(0, "steps until --kl has a new reference; 0: never", low=0)
    minibatches: int = flag(2, "optimizer steps per rollout; a group is never split", low=1)
    inner_epochs: int = flag(1, "passes over each rollout", low=1)
    learning_rate: float = flag(3e-4, "peak learning rate of AdamW", low=0, high=RATE_LIMIT)
    warmup_steps: int = flag(2, "steps in which the rate climbs", low=0)
    grad_clip: float = flag(1.0, "largest norm of the gradient; 0: no limit", low=0)
    row_tokens: int = flag(128, "length of a packed row of the update", low=16)
    micro_tokens: int = flag(4096, "most tokens in one forward pass of one rank", low=64)
    gradient_accumulation: int = flag(1, "forward passes per minibatch, about, at least", low=1)
    precision: str = flag("auto", "bf16 where it is faster, or one", ("auto", "fp32", "bf16"))
    checkpoint_activations: bool = flag(False, "recompute blocks backward: less memory, +33% FLOPs")
    compile: bool = flag(False, "torch.compile decoding and, on a GPU, the update")
    eval_every: int = flag(10, "steps between validations, which choose best.pt; 0: no", low=0)
    eval_problems: int = flag(100, "validation problems per family", low=1)
    device: str = flag("auto", "where to run", ("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions and samples", low=0)
    max_steps: int = flag(0, "stop after this many steps; 0 runs to the end", low=0)
    save_every: int = flag(10, "steps between checkpoints", low=1)

    @property
    def prompts_per_step(self):
        """Over all ranks."""
        return self.batch_size // self.num_samples_per_prompt


LARGE = dict(learning_rate=1e-5, micro_tokens=16_384, compile=True, warmup_steps=10, kl="k3")
PRESETS = {
    "laptop": {},
    "gpu": LARGE | dict(batch_size=2048, steps=200, max_reasoning_tokens=1024, row_tokens=1024),
    "node": LARGE | dict(batch_size=8192, steps=500, max_reasoning_tokens=2048, row_tokens=2048),
    "deepseek-r1": dict(
        num_samples_per_prompt=8, temperature=0.7, max_reasoning_tokens=8192, learning_rate=1e-6,
        kl="k3", kl_coef=0.01, clip_ratio=0.2, reward="outcome", length_penalty=-0.001,
        batch_size=256, gradient_accumulation=4, warmup_steps=100, steps=4000, micro_tokens=16_384,
    ),
}
# What --loss brings. MiniMax-M1 leaves the lower side open and names no number for the upper one:
# ours is ScaleRL's (2510.13786), weights up to 5.
PAPERS = {
    "grpo": dict(advantage="mean-std", clip_ratio=0.2, clip_high=-1.0),
    "dr-grpo": dict(advantage="mean", clip_ratio=0.2, clip_high=-1.0),
    "dapo": dict(advantage="mean-std", clip_ratio=0.2, clip_high=0.28),
    "gspo": dict(advantage="mean-std", clip_ratio=3e-4, clip_high=4e-4),
    "cispo": dict(advantage="mean-std", clip_ratio=0.0, clip_high=4.0),
}


def group_advantages(rewards, kind="mean-std"):
    """How much better each response is than its group. rewards (P, G), float -> (P, G).

    mean-std: (r - mean) / std, DeepSeekMath section 4.1.2. mean: r - mean, Dr. GRPO: dividing by
    the std makes groups of nearly all right or nearly all wrong responses count most. A group whose
    rewards are all equal cannot say which response is better: it gets exactly zero.

        [[1, 0, 0, 0]]  ->  mean [[0.75, -0.25, -0.25, -0.25]], mean-std [[1.5, -0.5, -0.5, -0.5]]
    """
    advantage = rewards - rewards.mean(1, keepdim=True)
    if kind == "mean-std" and len(rewards):
        advantage = advantage / rewards.std(1, keepdim=True).clamp_min(1e-6)
    all_equal = (rewards == rewards[:, :1]).all(1, keepdim=True)  # (P, 1)
    return torch.where(all_equal, 0.0, advantage)


def token_advantages(rewards, step_rewards, lengths, kind="mean-std"):
    """Advantage of every token: (N, L) float32, 0 beyond a response's end.

    rewards (P, G): of whole responses, earned at their last token; step_rewards: N lists of [(index
    of a token, reward)], of reasoning steps; lengths (N,). A token's advantage is the sum of the
    group-normalised rewards earned at it or later (process supervision, DeepSeekMath section 4.1.3:
    mean and std are over all rewards of the group).

        a group of two, kind mean: 3 tokens, reward 1 at the first and the last; 2 tokens, 0 at the
        last; the mean is 2/3  ->  [[2/3, 1/3, 1/3], [-2/3, -2/3, 0]]
    """
    P, G = rewards.shape
    token = torch.arange(int(lengths.max()) if len(lengths) else 1)
    inside = token < lengths[:, None]  # (N, L)
    if not any(step_rewards):  # one reward per response: all its tokens share it
        return group_advantages(rewards, kind).view(-1, 1) * inside
    earned = torch.zeros(inside.shape)
    for p in range(P):
        group = range(p * G, (p + 1) * G)
        earned_at = [(row, token) for row in group for token, _ in step_rewards[row]]
        earned_at += [(row, int(lengths[row]) - 1) for row in group]
        values = torch.tensor([value for row in group for _, value in step_rewards[row]])
        values = torch.cat((values, rewards[p]))
        normalised = group_advantages(values[None], kind)[0]
        earned.index_put_(tuple(torch.tensor(earned_at).T), normalised, accumulate=True)
    return earned.flip(1).cumsum(1).flip(1) * inside  # sums from the end


def token_weights(objective, lengths, responses, tokens, longest):
    """What an objective averages over: weight (N, 1) of each token of responses of `lengths` (N,)
    tokens. responses, tokens: numbers of them in the minibatch, over all ranks.

    grpo, gspo   1 / (responses * length): a token of a long response counts less
    dr-grpo      1 / (responses * longest): a token counts the same, however long its response
    dapo, cispo  1 / tokens: all tokens of the minibatch alike
    """
    if objective in ("grpo", "gspo"):
        divisor = responses * lengths
    elif objective == "dr-grpo":
        divisor = torch.full_like(lengths, responses * longest)
    else:
        divisor = torch.full_like(lengths, tokens)
    return 1.0 / divisor[:, None].float()


def policy_loss(logp, old_logp, ref_logp, advantage, weight, response, objective="grpo",
                clip=(0.2, 0.2), kl="none", kl_coef=0.0):
    """The objectives of GRPO and its relatives, negated, over response tokens laid end to end.

    logp, old_logp, ref_logp: (M,) log-probability of each token under the policy, the policy that
    sampled, and the reference (None without a KL); advantage, weight: (M,); response: (M,) int64,
    which response a token belongs to. clip: how far the ratio r = pi / pi_old counts below and
    above 1; 0 leaves a side open. sg() stops gradients. Minimised is

        - sum_t weight_t [ gain_t - kl_coef * kl_t ]

    grpo, dr-grpo, dapo   gain = min(r A, clip(r) A): DeepSeekMath 2402.03300 eq. 3, Dr. GRPO
                          2503.20783 sec. 3.2, DAPO 2503.14476 eq. 8; they differ in weights
    gspo                  the same with r = sg(s) pi / sg(pi), s = exp(mean of log pi / pi_old over
                          the response): GSPO 2507.18071 eq. 5, per token eq. 13
    cispo                 gain = sg(clip(r)) A log pi: MiniMax-M1 2506.13585 eq. 4

    KL to the reference, with x = log pi / pi_ref (Schulman, "Approximating KL divergence", 2020):
    k1 = x             unbiased, but as a loss its gradient is 0 on average: `sequence_kl` instead
    k2 = x^2 / 2       biased as a value; its gradient is that of each token's KL, on-policy
    k3 = e^-x - 1 + x  unbiased, never negative; its gradient is that of KL(ref || policy)

    Returns the loss, the share of clipped tokens and the mean k3, each summed with `weight`.
    """
    log_ratio = logp - old_logp
    if objective == "gspo":
        sums = torch.zeros(int(response.max()) + 1, dtype=logp.dtype, device=logp.device)
        mean = sums.index_add(0, response, log_ratio.detach()) / torch.bincount(response)
        log_ratio = mean[response] + logp - logp.detach()
    ratio = log_ratio.clamp(max=20).exp()  # at 100 a clipped token's gradient is 0 * inf, NaN
    bounded = ratio.clamp(1 - clip[0] if clip[0] else None, 1 + clip[1] if clip[1] else torch.inf)
    if objective == "cispo":  # no token ever loses its gradient
        gain = bounded.detach() * advantage * logp
        clipped = bounded != ratio
    else:  # beyond the clip there is no gradient, unless it pulls the ratio back
        gain = torch.minimum(ratio * advantage, bounded * advantage)
        clipped = bounded * advantage < ratio * advantage
    x = torch.zeros_like(logp) if ref_logp is None else logp - ref_logp
    k3 = (-x.clamp(min=-20)).exp() - 1 + x.clamp(min=-20)  # beyond, e^-x overflows
    penalty = {"none": 0.0, "k1": 0.0, "k2": x**2 / 2, "k3": k3}[kl]
    total = -(weight * (gain - kl_coef * penalty)).sum()
    return total, (weight * clipped).sum().detach(), (weight * k3).sum().detach()


def make_minibatches(experience, advantages, config, machine):
    """The rollout in `minibatches` parts of whole groups: a list of lists of micro-batches.

    A group's index in the list of all ranks decides its minibatch (index % minibatches), so that
    minibatches are the same for any number of ranks. Without a KL loss, responses whose advantages
    are all zero have no gradient and are left out.
    """
    lengths = experience.rollout.lengths
    parts = []
    for part in range(config.minibatches):
        rows = experience.rows(part, config.minibatches)
        responses = machine.total(len(rows))
        tokens = machine.total(lengths[rows].sum())
        weight = token_weights(config.loss, lengths, responses, tokens, config.max_reasoning_tokens)
        values = dict(advantage=advantages, weight=weight.expand(advantages.shape),
                      sampler_logp=experience.rollout.logprobs)
        useful = [row for row in rows if config.kl in ("k2", "k3") or advantages[row].any()]
        parts.append(experience.micro_batches(useful, values, config, machine.device))
    return parts


@torch.no_grad()
def add_fixed_logprobs(model, reference, parts, config, device, bf16):
    """Put into micro-batches the reference's log-probabilities, "ref_logp", and the policy's before
    any optimizer step, "old_logp"; for the first minibatch `update` has the latter anyway."""
    for number, part in enumerate(parts):
        for micro in part:
            with autocast(device, bf16):
                ref = reference and token_logprobs(reference, micro, config.temperature)[0]
                micro["ref_logp"] = ref
                if number > 0 and device.type == "cpu" and not bf16:
                    micro["old_logp"] = micro["sampler_logp"]  # in float32 the same to 1e-6
                elif number > 0:
                    micro["old_logp"] = token_logprobs(model, micro, config.temperature)[0]


def update(model, reference, optimizer, experience, advantages, config, machine, bf16):
    """Optimizer steps on one Experience: `inner_epochs` times one per minibatch.

    advantages: (N, L). Returns {name: mean over the tokens trained on, None if there are none};
    sampler_gap is over those of the first minibatch, and grad_norm over the optimizer steps.
    """
    parts = make_minibatches(experience, advantages, config, machine)
    add_fixed_logprobs(model, reference, parts, config, machine.device, bf16)
    clip = (config.clip_ratio, config.clip_ratio if config.clip_high < 0 else config.clip_high)
    means = Means()
    grad_norm = 0.0
    for number, part in enumerate(parts * config.inner_epochs):
        for micro in part:
            with autocast(machine.device, bf16):
                logp, entropy = token_logprobs(model, micro, config.temperature, with_entropy=True)
            old_logp = micro.setdefault("old_logp", logp.detach())
            weight = micro["weight"]
            loss, clipped, kl = policy_loss(
                logp, old_logp, micro["ref_logp"], micro["advantage"], weight, micro["response"],
                config.loss, clip, config.kl, config.kl_coef)
            loss.backward()
            first = weight * (number == 0)  # before any step: the sampler has the same weights
            gap = (first * (old_logp - micro["sampler_logp"]).abs()).sum()
            means.add(loss=loss, clip_fraction=clipped, kl=kl, entropy=(weight * entropy).sum(),
                      weight=weight.sum(), sampler_gap=gap, gap_weight=first.sum())
        machine.sum_gradients(model)
        limit = config.grad_clip or torch.inf
        grad_norm += torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()
        if grad_norm < torch.inf:  # otherwise, or where it is NaN, Run.finish_step ends the run
            optimizer.step()
        optimizer.zero_grad()
    return means.over_ranks(machine) | dict(grad_norm=grad_norm / len(parts * config.inner_epochs))


def train(config, machine):
    """The whole run; returns the report that is also written to --out."""
    run = Run(config, machine)
    metrics = Metrics(run.out / "metrics.jsonl", run.step, machine.main and not run.done)
    bar = StepBar(run.last_step, "grpo", machine, run.step)
    with Interrupt() as interrupt:
        run.begin()
        while not run.done:
            begun = time.time()
            run.optimizer.lr = config.learning_rate * run.warmup
            experience, row = sample_groups(run.sampler, config, run.questions, run.step, machine,
                                            run.reward_model)
            rolled = time.time()
            advantages = token_advantages(experience.rewards["total"], experience.step_rewards,
                                          experience.rollout.lengths, config.advantage)
            if config.kl == "k1":
                advantages -= config.kl_coef * sequence_kl(
                    run.model, run.reference, experience, config, machine.device, run.bf16)
            row |= update(run.net, run.reference, run.optimizer, experience, advantages, config,
                          machine, run.bf16)
            refresh_sampler(run.sampler, run.model)
            row |= dict(rollout_seconds=rolled - begun, update_seconds=time.time() - rolled)
            run.finish_step(row)
            metrics.log(step=run.step - 1, **row)
            bar.show(run.step - 1, progress_line(row))
            stop = interrupt.agreed(machine)
            if stop or run.save_is_due:
                run.save()
            if stop:
                interrupt.leave(run.step, machine)
    bar.close()
    return run.finish(bar.seconds)


def main():
    config = parse_config(Config, presets=PRESETS, brings={"loss": PAPERS}, doc=__doc__)
    train(config, start_machine(config.device))


if __name__ == "__main__":
    run_script(main)

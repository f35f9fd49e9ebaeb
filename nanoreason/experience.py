"""What one step of reinforcement learning learns from: groups of rewarded responses.

P problems, G responses to each, N = P * G rows in problem-major order (row p * G + g), L tokens in
the longest response, M response tokens in a micro-batch.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from nanoreason.data import Example, response_batches, shared_batches
from nanoreason.evaluate import behaviours
from nanoreason.generate import Rollout, generate, join_rollouts, uniform_numbers
from nanoreason.machine import autocast, generator
from nanoreason.questions import own_share
from nanoreason.reward_model import scores
from nanoreason.rewards import RewardConfig, exact_step_rewards, group_rewards
from nanoreason.tokenizer import Tokenizer


@dataclass
class Experience:
    """One rank's share of a step.

    problems: P; rollout: of N rows; rewards: {part: (P, G)}, "total" and "task_reward" among them;
    step_rewards: per row [(index of a token, reward)] of what is earned on the way, [] where only
    whole responses are rewarded; global_index: P indices of the problems in the list of all ranks,
    which decide the minibatch; tokenizer: what the ids mean.
    """

    problems: list
    rollout: Rollout
    rewards: dict
    step_rewards: list
    global_index: list
    tokenizer: Tokenizer

    @property
    def samples(self):
        """G, responses per problem."""
        return self.rewards["total"].size(1)

    @property
    def signal(self):
        """(P,) bool: whether the task rewards of a group, its steps' among them, differ.

        Penalties of length do not count: a group in which every answer is wrong should not be kept
        to teach brevity.
        """
        different = []
        for p, task_rewards in enumerate(self.rewards["task_reward"].tolist()):
            group = self.step_rewards[p * self.samples : (p + 1) * self.samples]
            of_steps = [value for earned in group for _, value in earned]
            different.append(len({*task_rewards, *of_steps}) > 1)
        return torch.tensor(different, dtype=torch.bool)

    def rows(self, part, minibatches):
        """Rows of the groups that belong to minibatch `part`."""
        mine = [p for p, index in enumerate(self.global_index) if index % minibatches == part]
        return [p * self.samples + g for p in mine for g in range(self.samples)]

    def micro_batches(self, rows, values, config, device, share=None):
        """Pack some rows, responses behind their prompts; a list of dicts of tensors.

        values: {name: (N, L)}, numbers per token that go along. share: True takes
        `shared_batches`, which read a prompt once per group, False `response_batches`, the packed
        rows that the attention kernel of a GPU wants; the numbers are the same. A CPU shares unless
        told otherwise.
        """
        if not rows:
            return []
        if share is None:
            share = torch.device(device).type == "cpu"
        prompts = [self.tokenizer.render_prompt(problem.question) for problem in self.problems]
        prompt_of = {row: row // self.samples for row in rows}
        ids = {row: self.rollout.response(row) for row in rows}
        passes = config.gradient_accumulation
        if share:
            responses = {row: (prompt_of[row], ids[row]) for row in rows}
            found = shared_batches(prompts, responses, values, config.micro_tokens, passes)
        else:
            examples = {}
            for row in rows:
                prompt = prompts[prompt_of[row]]
                examples[row] = Example(prompt + ids[row], len(prompt))
            found = response_batches(
                examples, values, config.row_tokens, config.micro_tokens, device, passes
            )
        return list(found)

    def select(self, groups):
        """Only these groups, a list of indices."""
        rows = [g * self.samples + i for g in groups for i in range(self.samples)]
        return Experience(
            problems=[self.problems[g] for g in groups],
            rollout=self.rollout.select(rows),
            rewards={part: values[groups] for part, values in self.rewards.items()},
            step_rewards=[self.step_rewards[row] for row in rows],
            global_index=[self.global_index[g] for g in groups],
            tokenizer=self.tokenizer,
        )


def join(parts):
    """One Experience of several."""
    tokenizer = parts[0].tokenizer
    rewards = {}
    for name in parts[0].rewards:
        rewards[name] = torch.cat([part.rewards[name] for part in parts])
    return Experience(
        problems=[x for part in parts for x in part.problems],
        rollout=join_rollouts([part.rollout for part in parts], tokenizer.pad),
        rewards=rewards,
        step_rewards=[x for part in parts for x in part.step_rewards],
        global_index=[x for part in parts for x in part.global_index],
        tokenizer=tokenizer,
    )


def reward_responses(problems, rollout, samples, reward_config, global_index, tokenizer,
                     exact_steps=False, reward_model=None):
    """Reward every response to `problems`: an Experience.

    exact_steps: reward reasoning steps by the exact checker. reward_model: its score replaces the
    outcome, and a PRM rewards the reasoning steps as well.
    """
    ids = [rollout.response(row) for row in range(len(rollout.ids))]
    problem_of = [problem for problem in problems for _ in range(samples)]  # (N,)
    step_rewards = [[] for _ in ids]
    final = None
    if exact_steps:
        step_rewards = [exact_step_rewards(*pair, tokenizer) for pair in zip(problem_of, ids)]
    if reward_model is not None:
        prompts = [tokenizer.render_prompt(problem.question) for problem in problem_of]
        readings = scores(reward_model, prompts, ids)
        step_rewards = [own[:-1] for own in readings]  # the last reading is the answer's
        final = [own[-1][1] for own in readings]
    found = []
    for p, problem in enumerate(problems):
        group = slice(p * samples, (p + 1) * samples)
        own = None if final is None else final[group]
        found += group_rewards(problem, ids[group], tokenizer, reward_config, own)

    def table(values):
        return torch.tensor(values, dtype=torch.float32).view(len(problems), samples)  # (P, G)

    rewards = dict(total=table([r.total for r in found]),
                   task_reward=table([r.task_reward for r in found]))
    for part in reward_config.parts(reward_model is not None):
        rewards[part] = table([r.parts[part] for r in found])
    return Experience(problems, rollout, rewards, step_rewards, global_index, tokenizer)


def sample_groups(sampler, config, questions, step, machine, reward_model=None):
    """Ask, answer, reward: this rank's Experience of a training step, and metrics of all that was
    sampled, over all ranks. With --level auto the difficulty follows. config: train_grpo.Config.

    A response draws from random numbers of its own, so that ranks together sample what one would.
    With --dynamic-sampling groups without signal are left out and further questions asked, until
    the step has all its prompts or --refills are used up (DAPO 2503.14476, section 3.2); the
    metrics count what was left out as well. The scores of a reward model hardly ever tie: with them
    nearly every group has signal.
    """
    rounds = config.refills + 1 if config.dynamic_sampling else 1
    sampled = []
    kept = []
    n_useful = 0  # groups with signal, over all ranks
    for attempt in range(rounds):
        missing = config.prompts_per_step - n_useful
        part = sample_round(sampler, config, questions, step, attempt, missing, machine,
                            reward_model)
        sampled.append(part)
        if config.dynamic_sampling:
            part, useful = keep_signal(part, missing, n_useful, machine)
            n_useful += useful
        kept.append(part)
        if n_useful == config.prompts_per_step:
            break
    everything = join(sampled)
    metrics = rollout_metrics(everything, machine)
    metrics["groups"] = int(machine.total(sum(len(part.problems) for part in kept)))
    metrics["refills"] = attempt
    if questions.auto:
        questions.adapt(everything.problems, everything.rewards["outcome"] > 0, machine)
        for family, value in questions.difficulty.items():
            metrics[f"difficulty_{family}"] = value
    return join(kept), metrics


def sample_round(sampler, config, questions, step, attempt, count, machine, reward_model):
    """`count` questions over all ranks, this rank's answered and rewarded."""
    tokenizer = sampler.tokenizer
    G = config.num_samples_per_prompt
    limit = config.max_reasoning_tokens
    asked = questions.draw(step, attempt, count)
    mine = own_share(count, config.minibatches, machine)
    problems = [asked[i] for i in mine]
    prompts = [tokenizer.render_prompt(problem.question) for problem in problems]
    # numbers for all questions are drawn and this rank's kept: they depend on no rank
    numbers = uniform_numbers((count, G, limit), generator(config.seed, "rollout", step, attempt))
    uniform = numbers[mine].flatten(0, 1)  # (N, L)
    rollout = generate(
        sampler, prompts, G, limit, config.temperature, uniform=uniform, compile=config.compile
    ).cpu()
    exact_steps = config.reward == "exact-process"
    return reward_responses(
        problems, rollout, G, make_reward_config(config), mine, tokenizer, exact_steps,
        reward_model,
    )


def make_reward_config(config):
    """The RewardConfig that the flags of train_grpo.py ask for."""
    return RewardConfig(
        format_weight=config.format_weight,
        length_penalty=config.length_penalty,
        length_form=config.length_form,
        process_weight=config.process_weight,
        process_form=config.process_form,
        leaky_outcome_for_hacking_study=config.reward == "leaky-for-hacking-study",
        overlong_buffer=config.overlong_buffer,
        limit=config.max_reasoning_tokens,
    )


def keep_signal(part, count, before, machine):
    """Only the groups of `part` that have signal, and how many all ranks have together.

    count: questions of this round, over all ranks; before: groups kept in earlier rounds. The kept
    groups are numbered anew, over all rounds and ranks and without gaps:

        count 4, signal of 0, 2 and 3, before 5  ->  their indices are 5, 6 and 7
    """
    useful = torch.zeros(count)
    useful[part.global_index] = part.signal.float()
    useful = machine.sum(useful)
    new_index = before + useful.cumsum(0).long() - 1  # of each useful question
    kept = part.select([g for g, i in enumerate(part.global_index) if useful[i]])
    kept.global_index = [int(new_index[i]) for i in kept.global_index]
    return kept, int(useful.sum())


def rollout_metrics(experience, machine):
    """What users ask of a rollout, over all ranks: solve rate, groups without signal, lengths of
    right and wrong responses, behaviours, means of all rewards."""
    rewards = experience.rewards
    rollout = experience.rollout
    right = rewards["outcome"] > 0  # (P, G)
    ids = [rollout.response(row) for row in range(len(rollout.ids))]
    responses = [experience.tokenizer.parse_response(own) for own in ids]
    lengths = rollout.lengths.view(right.shape).float()
    n_responses = machine.total(right.numel())
    n_groups = machine.total(len(right))
    n_right = machine.total(right.sum())

    def mean(values, n):
        return machine.total(values.sum()) / max(n, 1)

    metrics = dict(
        solve_rate=n_right / n_responses,
        all_right=mean(right.all(1), n_groups),
        all_wrong=mean((~right).all(1), n_groups),
        no_signal=mean(~experience.signal, n_groups),
        format=mean(rewards["format"], n_responses),
        length=mean(lengths, n_responses),
        length_right=mean(lengths[right], n_right),
        length_wrong=mean(lengths[~right], n_responses - n_right),
        truncated=mean((~rollout.ended).float(), n_responses),
        sampled_tokens=int(machine.total(lengths.sum())),
    )
    for name, share in behaviours(responses).items():
        metrics[name] = machine.total(share * len(responses)) / n_responses
    for part, values in rewards.items():
        if part != "task_reward":
            metrics[f"reward_{part}"] = mean(values, n_responses)
    return metrics


class Means:
    """Sums of an update's figures, over its micro-batches; they become means over tokens."""

    def __init__(self):
        names = ("loss", "clip_fraction", "kl", "entropy", "weight", "sampler_gap", "gap_weight")
        self.sums = Counter(dict.fromkeys(names, 0.0))

    def add(self, **values):
        """Scalars of one micro-batch, weighted like the loss; weight: the sum of the weights;
        gap_weight: that for sampler_gap, which the first minibatch alone measures."""
        for name, value in values.items():
            self.sums[name] += value.item()

    def over_ranks(self, machine):
        """{name: mean over the tokens trained on, all ranks'}, None where there were none."""
        totals = {name: machine.total(value) for name, value in self.sums.items()}
        weight = totals.pop("weight")
        gap_weight = totals.pop("gap_weight")
        means = {}
        for name, value in totals.items():
            divisor = gap_weight if name == "sampler_gap" else weight
            means[name] = value / divisor if divisor else None
        return means


def token_logprobs(model, micro, temperature, with_entropy=False):
    """Log-probability (M,) of every response token of a packed micro-batch, and the exact entropy
    (M,) of its distribution if asked, else None.

    The temperature is the one that sampled: at another, the ratio would compare two different
    policies.
    """
    logits = model(
        micro["tokens"], micro["doc_start"], micro["select"], micro.get("positions")
    )  # (M, V)
    logp = (logits.float() / temperature).log_softmax(-1)
    chosen = logp.gather(1, micro["targets"][:, None]).squeeze(1)
    if not with_entropy:
        return chosen, None
    fixed = logp.detach()
    return chosen, -(fixed.exp() * fixed).sum(-1)


@torch.no_grad()
def sequence_kl(model, reference, experience, config, device, bf16):
    """k1 of whole responses less its mean over the group: (N, 1).

    k1 is the sum over tokens of log pi / pi_ref. kl_coef times it is taken off the advantages of
    all tokens, as if the reward were r - kl_coef * k1 (InstructGPT 2203.02155). It is taken off
    after they were normalised: in a group of equal rewards the KL is the only spread, and dividing
    by its std would blow it up. With constant token weights (dr-grpo) its gradient is that of the
    KL of whole responses.
    """
    N, L = experience.rollout.ids.shape
    k1 = torch.zeros(N)
    row_of = torch.arange(N)[:, None].expand(N, L)
    for micro in experience.micro_batches(range(N), dict(row=row_of), config, device):
        with autocast(device, bf16):
            logp, _ = token_logprobs(model, micro, config.temperature)
            ref, _ = token_logprobs(reference, micro, config.temperature)
        k1.index_add_(0, micro["row"].cpu(), (logp - ref).cpu())
    k1 = k1.view(experience.rewards["total"].shape)  # (P, G)
    return (k1 - k1.mean(1, keepdim=True)).view(-1, 1)

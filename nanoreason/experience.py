"""What one step of reinforcement learning learns from: groups of rewarded responses.

P problems, G responses to each, N = P * G rows in problem-major order (row p * G + g), L tokens in
the longest response, M response tokens in a micro-batch.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from nanoreason.corpus import Example
from nanoreason.data import response_batches, shared_batches
from nanoreason.evaluate import behaviours
from nanoreason.generate import Rollout, generate, join_rollouts, noise
from nanoreason.machine import autocast, generator
from nanoreason.questions import own_share
from nanoreason.reward_model import scores
from nanoreason.rewards import RewardConfig, group_rewards, step_rewards
from nanoreason.tokenizer import parse_response, render_prompt


@dataclass
class Experience:
    """One rank's share of a step.

    problems: P; rollout: of N rows; rewards: {part: (P, G)}, "total" and "task_reward" among them;
    steps: per row [(index of a token, reward)] of what is earned on the way, [] where only whole
    responses are rewarded; places: P positions of the problems in the step's list over all ranks,
    which decide the minibatch.
    """

    problems: list
    rollout: Rollout
    rewards: dict
    steps: list
    places: list

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
            group = self.steps[p * self.samples : (p + 1) * self.samples]
            of_steps = [value for steps in group for _, value in steps]
            different.append(len({*task_rewards, *of_steps}) > 1)
        return torch.tensor(different, dtype=torch.bool)

    def rows(self, part, minibatches):
        """Rows of the groups that belong to minibatch `part`."""
        mine = [p for p, place in enumerate(self.places) if place % minibatches == part]
        return [p * self.samples + g for p in mine for g in range(self.samples)]

    def micro_batches(self, rows, values, config, device, share=None):
        """Pack some rows, responses behind their prompts; a list of dicts of tensors.

        values: {name: (N, L)}, numbers per token that go along. share: True takes
        `shared_batches`, which read a prompt once per group, False `response_batches`; the numbers
        are the same. A CPU shares unless told otherwise.
        """
        if not rows:
            return []
        if share is None:
            share = torch.device(device).type == "cpu"
        prompts = [render_prompt(problem.question) for problem in self.problems]
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
            steps=[self.steps[row] for row in rows],
            places=[self.places[g] for g in groups],
        )


def join(parts):
    """One Experience of several."""
    rewards = {}
    for name in parts[0].rewards:
        rewards[name] = torch.cat([part.rewards[name] for part in parts])
    return Experience(
        problems=[x for part in parts for x in part.problems],
        rollout=join_rollouts([part.rollout for part in parts]),
        rewards=rewards,
        steps=[x for part in parts for x in part.steps],
        places=[x for part in parts for x in part.places],
    )


def reward_responses(problems, rollout, samples, reward_config, places, exact_steps=False,
                     reward_model=None):
    """Reward every response to `problems`: an Experience.

    exact_steps: reward steps by the exact checker. reward_model: its score takes the place of the
    outcome, and a PRM rewards the steps as well.
    """
    ids = [rollout.response(row) for row in range(len(rollout.ids))]
    steps = [[] for _ in ids]
    final = None
    if exact_steps:
        steps = [step_rewards(problems[row // samples], ids[row]) for row in range(len(ids))]
    if reward_model is not None:
        prompts = [render_prompt(p.question) for p in problems for _ in range(samples)]
        scored = scores(reward_model, prompts, ids)
        steps = [rated[:-1] for rated in scored]
        final = [rated[-1][1] for rated in scored]
    found = []
    for p, problem in enumerate(problems):
        group = slice(p * samples, (p + 1) * samples)
        found += group_rewards(problem, ids[group], reward_config, final and final[group])

    def table(values):
        return torch.tensor(values, dtype=torch.float32).view(len(problems), samples)  # (P, G)

    rewards = dict(total=table([r.total for r in found]),
                   task_reward=table([r.task_reward for r in found]))
    for part in reward_config.parts(reward_model is not None):
        rewards[part] = table([r.parts[part] for r in found])
    return Experience(problems, rollout, rewards, steps, places)


def sample_groups(policy, config, questions, step, machine, reward_model=None):
    """Ask, answer, reward: this rank's Experience of a step, and metrics of all that was sampled,
    over all ranks. config: train_grpo.Config.

    A response draws from random numbers of its own, so that ranks together sample what one would.
    With --dynamic-sampling groups without signal are left out and further questions asked, until
    the step has all its prompts or --refills are used up (DAPO 2503.14476, section 3.2); the
    metrics count what was left out as well.
    """
    rounds = config.refills + 1 if config.dynamic_sampling else 1
    sampled = []
    kept = []
    groups = 0  # with signal, over all ranks
    for attempt in range(rounds):
        missing = config.prompts_per_step - groups
        part = sample_round(policy, config, questions, step, attempt, missing, machine,
                            reward_model)
        sampled.append(part)
        if config.dynamic_sampling:
            part, useful = keep_signal(part, missing, groups, machine)
            groups += useful
        kept.append(part)
        if groups == config.prompts_per_step:
            break
    everything = join(sampled)
    row = rollout_metrics(everything, machine)
    row["groups"] = int(machine.total(sum(len(part.problems) for part in kept)))
    row["refills"] = attempt
    if questions.auto:
        questions.adapt(everything.problems, everything.rewards["outcome"] > 0, machine)
        for family, value in questions.difficulty.items():
            row[f"difficulty_{family}"] = value
    return join(kept), row


def sample_round(policy, config, questions, step, attempt, count, machine, reward_model):
    """`count` questions over all ranks, this rank's answered and rewarded."""
    G = config.num_samples_per_prompt
    limit = config.max_reasoning_tokens
    asked = questions.draw(step, attempt, count)
    mine = own_share(count, config.minibatches, machine)
    problems = [asked[i] for i in mine]
    prompts = [render_prompt(p.question) for p in problems]
    # numbers for all questions are drawn and this rank's kept: they depend on no rank
    random = generator(config.seed, "rollout", step, attempt)
    uniform = noise((count, G, limit), random)[mine].flatten(0, 1)  # (N, L)
    rollout = generate(
        policy, prompts, G, limit, config.temperature, uniform, compile=config.compile
    ).cpu()
    exact_steps = config.reward == "exact-process"
    return reward_responses(
        problems, rollout, G, make_reward_config(config), mine, exact_steps, reward_model
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

    count: questions of this round, over all ranks; before: groups kept in earlier rounds. Places
    are counted on, so that the kept groups of all ranks stand in one list without gaps.
    """
    useful = torch.zeros(count)
    useful[part.places] = part.signal.float()
    useful = machine.sum(useful)
    order = before + useful.cumsum(0).long() - 1  # place of each useful question in that list
    kept = part.select([g for g, i in enumerate(part.places) if useful[i]])
    kept.places = [int(order[i]) for i in kept.places]
    return kept, int(useful.sum())


def rollout_metrics(experience, machine):
    """What users ask of a rollout, over all ranks: solve rate, groups without signal, lengths of
    right and wrong responses, behaviours, means of all rewards."""
    rewards = experience.rewards
    rollout = experience.rollout
    right = rewards["outcome"] > 0  # (P, G)
    responses = [parse_response(rollout.response(row)) for row in range(len(rollout.ids))]
    lengths = rollout.lengths.view(right.shape).float()
    n_responses = machine.total(right.numel())
    n_groups = machine.total(len(right))
    n_right = machine.total(right.sum())

    def mean(values, n):
        return machine.total(values.sum()) / max(n, 1)

    row = dict(
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
        row[name] = machine.total(share * len(responses)) / n_responses
    for part, values in rewards.items():
        if part != "task_reward":
            row[f"reward_{part}"] = mean(values, n_responses)
    return row


class Means:
    """Sums of an update's figures, over its micro-batches; they become means over tokens."""

    def __init__(self):
        names = ("loss", "clip_fraction", "kl", "entropy", "sampler_gap", "weight")
        self.sums = Counter(dict.fromkeys(names, 0.0))

    def add(self, **values):
        """Scalars of one micro-batch, weighted like the loss; `weight`: the sum of the weights."""
        for name, value in values.items():
            self.sums[name] += value.item()

    def over_ranks(self, machine):
        """{name: mean over the tokens trained on, all ranks'}, None where there were none."""
        totals = {name: machine.total(value) for name, value in self.sums.items()}
        scale = totals.pop("weight")  # sum of the weights, over all passes
        return {name: value / scale if scale else None for name, value in totals.items()}


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
    all tokens: a reward of r - kl_coef * k1 (InstructGPT 2203.02155), whose KL the group's std does
    not rescale, for groups that are all right or all wrong have no other spread. With constant
    token weights (dr-grpo) its gradient is that of the KL of whole responses.
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

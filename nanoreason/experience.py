"""What one step of reinforcement learning learns from: groups of judged responses, and what the logs say about them.

P questions, G responses to each, N = P * G rows in question-major order (row p * G + g), L longest response.
"""

from dataclasses import dataclass

import torch

from nanoreason.machine import autocast, generator
from nanoreason.run import say
from nanoreason.corpus import Example
from nanoreason.data import response_batches, shared_batches
from nanoreason.evaluate import behaviours
from nanoreason.generate import MAX_ROWS, Rollout, generate, join_rollouts, noise
from nanoreason.model import memory_line, rl_memory, training_memory
from nanoreason.questions import own_share
from nanoreason.rewards import RewardConfig, group_rewards, step_rewards
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.reward_model import scores


@dataclass
class Experience:
    """One rank's share of a step. problems: P; rollout: of N rows; rewards {part: (P, G)}, "total" and "paid" among them; steps: for each row
    [(index of a token, reward)] of its steps, without the last token's, [] where only whole responses are judged; places: P positions of the
    questions in the step's list over all ranks, which decide the minibatch."""

    problems: list
    rollout: Rollout
    rewards: dict
    steps: list
    places: list

    @property
    def samples(self):
        return self.rewards["total"].size(1)

    @property
    def signal(self):
        """(P,) bool: not all that the group's responses and their steps were paid is equal. Penalties of length do not count: a group in which every
        answer is wrong should not be kept to teach brevity."""
        G, task_reward = self.samples, self.rewards["paid"].tolist()
        steps = [[value for row in self.steps[p * G : (p + 1) * G] for _, value in row] for p in range(len(task_reward))]
        return torch.tensor([len({*own, *of_steps}) > 1 for own, of_steps in zip(task_reward, steps)], dtype=torch.bool)

    def micro_batches(self, rows, values, config, device, share=None):
        """Micro-batches of some rows, responses behind their prompts; values {name: (N, L)}. share: `shared_batches`, which a CPU takes unless told
        otherwise, or `response_batches`: the numbers are the same."""
        if not rows:
            return []
        prompts = [render_prompt(p.question) for p in self.problems]
        if torch.device(device).type == "cpu" if share is None else share:
            responses = {row: (row // self.samples, self.rollout.response(row)) for row in rows}
            return list(shared_batches(prompts, responses, values, config.micro_tokens, config.gradient_accumulation))
        examples = {row: Example(prompts[row // self.samples] + self.rollout.response(row), len(prompts[row // self.samples])) for row in rows}
        return list(response_batches(examples, values, config.row_tokens, config.micro_tokens, device, config.gradient_accumulation))

    def select(self, groups):
        """Only these groups, a list of indices."""
        G = self.samples
        rows = [g * G + i for g in groups for i in range(G)]
        return Experience([self.problems[g] for g in groups], self.rollout.select(rows), {k: v[groups] for k, v in self.rewards.items()},
                          [self.steps[row] for row in rows], [self.places[g] for g in groups])


def join(parts):
    """One Experience of several."""
    flat = lambda name: [x for part in parts for x in getattr(part, name)]
    rewards = {name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards}
    return Experience(flat("problems"), join_rollouts([part.rollout for part in parts]), rewards, flat("steps"), flat("places"))


def reward_responses(problems, rollout, samples, reward_config, places, exact_steps=False, reward_model=None):
    """Reward every response to `problems`: an Experience. exact_steps: reward steps by the exact judge; reward model: pay its score instead of the
    outcome, and, where it is a prm, reward steps by its scores."""
    ids = [rollout.response(row) for row in range(len(rollout.ids))]
    prompts = [render_prompt(p.question) for p in problems for _ in range(samples)]
    steps, final = [[] for _ in ids], None
    if exact_steps:
        steps = [step_rewards(problems[row // samples], response) for row, response in enumerate(ids)]
    if reward_model is not None:
        scored = scores(reward_model, prompts, ids)
        steps, final = [s[:-1] for s in scored], [s[-1][1] for s in scored]
    judged = []
    for p, problem in enumerate(problems):
        group = slice(p * samples, (p + 1) * samples)
        judged += group_rewards(problem, ids[group], reward_config, final and final[group])
    shape = lambda values: torch.tensor(list(values), dtype=torch.float32).view(len(problems), samples)  # (P, G)
    names = reward_config.parts(reward_model is not None)
    rewards = dict(total=shape(r.total for r in judged), task_reward=shape(r.task_reward for r in judged)) | {part: shape(r.parts[part] for r in judged) for part in names}
    return Experience(problems, rollout, rewards, steps, places)


def rollout_metrics(experience, machine):
    """What users ask of a rollout, over all ranks: solve rate, groups without signal, lengths of right and wrong, behaviours."""
    rewards, rollout = experience.rewards, experience.rollout
    right = rewards["outcome"] > 0  # (P, G)
    responses = [parse_response(rollout.response(row)) for row in range(len(rollout.ids))]
    lengths = rollout.lengths.view(right.shape).float()
    N, P = machine.total(right.numel()), machine.total(len(right))
    n_right = machine.total(right.sum())
    mean = lambda values, n: machine.total(values.sum()) / max(n, 1)
    shares = {name: machine.total(share * len(responses)) / N for name, share in behaviours(responses).items()}
    parts = {f"reward_{part}": mean(values, N) for part, values in rewards.items() if part != "paid"}
    return dict(solve_rate=n_right / N, all_right=mean(right.all(1), P), all_wrong=mean((~right).all(1), P), no_signal=mean(~experience.signal, P),
                format=mean(rewards["format"], N), length=mean(lengths, N), length_right=mean(lengths[right], n_right),
                length_wrong=mean(lengths[~right], N - n_right), truncated=mean((~rollout.ended).float(), N), sampled_tokens=int(machine.total(lengths.sum())),
                **shares, **parts)


def announce(model, reference, config, machine, bf16):
    """What the run is and what it will keep in memory, before it starts."""
    say(f"grpo: {model.num_params / 1e6:.2f}M parameters, {config.prompts} questions x {config.num_samples_per_prompt} responses a step, {config.loss}, "
        f"KL {config.kl}, reward {config.reward}, {'bf16' if bf16 else 'fp32'} on {machine.device}", machine)
    parts = training_memory(model.config, config.micro_tokens, config.row_tokens, bf16, config.checkpoint_activations, dense=bf16 and machine.device.type == "cpu")
    parts |= rl_memory(model.config, min(MAX_ROWS, config.batch_size // machine.world), config.max_reasoning_tokens + 64, bf16, reference is not None)
    say(memory_line(parts, machine), machine)


def sample_groups(policy, config, questions, step, machine, reward_model=None):
    """Ask, answer, judge: this rank's share of a step's Experience, and metrics of everything that was sampled, over all ranks.

    A response draws from random numbers of its own, so that ranks together sample what one would. With --dynamic-sampling groups without signal are
    left out and further questions asked, until --batch-size is full or --refills are used up (DAPO 2503.14476, section 3.2); the metrics count what
    was left out as well. config: train_grpo.Config.
    """
    G, parts, kept, full = config.num_samples_per_prompt, [], [], 0
    reward_config = RewardConfig(config.format_weight, config.length_penalty, config.length_form, config.process_weight, config.process_form,
                    config.reward == "leaky-for-hacking-study", config.overlong_buffer, config.max_reasoning_tokens)
    for attempt in range(config.refills + 1 if config.dynamic_sampling else 1):
        count = config.prompts - full
        asked, mine = questions.draw(step, attempt, count), own_share(count, config.minibatches, machine)
        problems = [asked[i] for i in mine]
        uniform = noise((count, G, config.max_reasoning_tokens), generator(config.seed, "rollout", step, attempt))[mine]  # (P, G, L)
        rollout = generate(policy, [render_prompt(p.question) for p in problems], G, config.max_reasoning_tokens, config.temperature, uniform.flatten(0, 1),
                           compile=config.compile).cpu()
        part = reward_responses(problems, rollout, G, reward_config, mine, config.reward == "exact-process", reward_model)
        parts.append(part)
        if config.dynamic_sampling:
            useful = torch.zeros(count)
            useful[mine] = part.signal.float()
            useful = machine.sum(useful)
            order = full + useful.cumsum(0).long() - 1  # the place of each useful question in the step's list
            part = part.select([g for g, i in enumerate(mine) if useful[i]])
            part.places = [int(order[i]) for i in part.places]
            full += int(useful.sum())
        kept.append(part)
        if full == config.prompts:
            break
    everything = join(parts)
    row = rollout_metrics(everything, machine) | dict(groups=int(machine.total(sum(len(part.problems) for part in kept))), refills=attempt)
    if questions.auto:
        questions.adapt(everything.problems, everything.rewards["outcome"] > 0, machine)
        row |= {f"difficulty_{family}": value for family, value in questions.difficulty.items()}
    return join(kept), row


def token_logprobs(model, micro, temperature, with_entropy=False):
    """Log-probability (M,) of every response token of a packed micro-batch, and the exact entropy (M,) of its distribution if asked.

    The temperature is the one that sampled: at another, the ratio would compare two different policies.
    """
    logits = model(micro["tokens"], micro["doc_start"], micro["select"], micro.get("positions")).float() / temperature  # (M, V)
    logp = logits.log_softmax(-1)
    chosen = logp.gather(1, micro["targets"][:, None]).squeeze(1)
    return chosen, -(logp.detach().exp() * logp.detach()).sum(-1) if with_entropy else None


@torch.no_grad()
def sequence_kl(model, reference, experience, config, device, bf16):
    """k1 of whole responses, the sum over tokens of log pi / pi_ref, less its mean over the group: (N, 1), what kl_coef times is taken off the
    advantages of all tokens. That is a reward of r - kl_coef * k1 (InstructGPT 2203.02155) whose KL the group's std does not rescale: groups that are
    all right or all wrong have no other spread. With constant token weights (dr-grpo) its gradient is that of the KL of whole responses."""
    N, L = experience.rollout.ids.shape
    k1 = torch.zeros(N)
    for micro in experience.micro_batches(range(N), dict(row=torch.arange(N)[:, None].expand(N, L)), config, device):
        with autocast(device, bf16):
            logp, ref = (token_logprobs(net, micro, config.temperature)[0] for net in (model, reference))
        k1.index_add_(0, micro["row"].cpu(), (logp - ref).cpu())
    k1 = k1.view(experience.rewards["total"].shape)  # (P, G)
    return (k1 - k1.mean(1, keepdim=True)).view(-1, 1)

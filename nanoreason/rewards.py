"""Rewards: pure functions from a problem and a response to a number with named parts.

The answer counts only where it belongs: after one closed think block, before the stop token, and
alone. An answer that stands in the thinking only, or several answers to choose from, earn nothing.

    part          value                          what it is for
    outcome       1 or 0                         a right answer
    format        1 or 0                         one think block, an answer, the stop token
    length        coefficient * tokens           short responses (`length_penalties` has two forms)
    overlong      0 to -1                        keeping away from the limit that cuts responses
    process       mean, min or sum of +1, 0, -1  right steps; 0 is a true step that was not needed
    score         0 to 1                         a reward model's, instead of the outcome
"""

from dataclasses import dataclass

from nanoreason.tasks import Verdict, check_steps, verify
from nanoreason.tokenizer import MAX_RESPONSE

STEP_VALUE = {Verdict.RIGHT: 1.0, Verdict.UNNEEDED: 0.0, Verdict.WRONG: -1.0}
LENGTH_FORMS = ("plain", "calibrated")
# what train_grpo.py can reward
REWARDS = ("outcome", "orm", "prm", "exact-process", "leaky-for-hacking-study")


def _mean(values):
    return sum(values) / len(values)


PROCESS_FORMS = {"mean": _mean, "min": min, "sum": sum}


@dataclass(frozen=True)
class RewardConfig:
    """What is rewarded. The outcome has weight 1; the other parts count as these say."""

    format_weight: float = 0.0
    length_penalty: float = 0.0  # per token; a common value is -0.001
    length_form: str = "plain"  # one of LENGTH_FORMS
    process_weight: float = 0.0
    process_form: str = "mean"  # one of PROCESS_FORMS
    leaky_outcome_for_hacking_study: bool = False
    overlong_buffer: int = 0  # tokens before the limit in which `overlong_penalty` grows; 0: none
    limit: int = 0  # tokens at which responses are cut

    def parts(self, reward_model=False):
        """Names of the parts that a Reward has under this configuration."""
        wanted = dict(
            overlong=self.overlong_buffer,
            process=self.process_weight,
            leaky=self.leaky_outcome_for_hacking_study,
            score=reward_model,
        )
        return ["outcome", "format", "length", *(name for name, on in wanted.items() if on)]


@dataclass(frozen=True)
class Reward:
    """total = task_reward + length + overlong.

    task_reward = outcome + format_weight * format + process_weight * process; a reward model's
    score, or the leaky checker's verdict, replaces the outcome where it is asked for.
    `parts` are kept for the logs.
    """

    total: float
    task_reward: float
    parts: dict


def outcome_reward(problem, response):
    """1.0 for a right answer in its place, else 0.0 (DeepSeek-R1 2501.12948, section 2.2.2:
    accuracy reward)."""
    return float(response.answer is not None and verify(problem, response.answer))


def format_reward(response):
    """1.0 when the response is one think block, an answer and the stop token, else 0.0
    (DeepSeek-R1: format reward)."""
    return float(response.answer is not None)


def length_penalties(tokens, right, coefficient, form="plain"):
    """Penalties for the lengths of one group's responses: a list of floats <= 0.

    tokens: ints; right: bools; coefficient <= 0.

    plain        coefficient * tokens for every response. It works against thorough reasoning: at
                 -0.001 a right answer of 1,200 tokens is worth less than a wrong one of 100.
    calibrated   only for right responses, only for what they are longer than the group's shortest
                 right one, and 0.99 at most: no right response falls below a wrong one.

        tokens [10, 40, 25], right [True, True, False], coefficient -0.01
        ->  plain [-0.1, -0.4, -0.25]   calibrated [0.0, -0.3, 0.0]
    """
    if form == "plain":
        return [coefficient * n for n in tokens]
    shortest = min((n for n, is_right in zip(tokens, right) if is_right), default=0)
    penalties = []
    for n, is_right in zip(tokens, right):
        penalties.append(max(coefficient * (n - shortest), -0.99) if is_right else 0.0)
    return penalties


def overlong_penalty(tokens, limit, buffer):
    """Soft penalty of a response that comes near the limit (DAPO 2503.14476, equation 13).

    0 up to limit - buffer tokens, then falling in a straight line to -1 at the limit:

        limit 100, buffer 20:  tokens 80, 90, 100  ->  0.0, -0.5, -1.0
    """
    return -min(max(tokens - (limit - buffer), 0) / buffer, 1.0)


def exact_step_rewards(problem, ids, tokenizer):
    """Exact process supervision of a response given as ids.

    Returns for each reasoning step (index of the token that ends it, +1, 0 or -1).
    """
    judgements = check_steps(problem, tokenizer.parse_response(ids).steps)
    values = [STEP_VALUE[j.verdict] for j in judgements]
    return list(zip(tokenizer.step_ends(ids), values, strict=True))


def process_reward(problem, response, form="mean"):
    """Exact step verdicts as one number: +1 a right step, 0 an unneeded one, -1 a wrong one. 0.0
    for a response without steps.

    mean: right steps minus wrong ones, per step; min: the worst step decides (in the spirit of
    Lightman et al. 2305.20050, who multiply step scores); sum: rewards more right steps too, so
    that a policy learns to write long.
    """
    values = [STEP_VALUE[j.verdict] for j in check_steps(problem, response.steps)]
    return float(PROCESS_FORMS[form](values)) if values else 0.0


def leaky_outcome_for_hacking_study(problem, ids, tokenizer):
    """DELIBERATELY WRONG, for the study of reward hacking only.

    1.0 as soon as the right answer stands anywhere in the response, also in the thinking, also
    among ten others. A policy trained on it learns to list answers, not to reason.
    """
    text = tokenizer.decode(ids[:MAX_RESPONSE])
    return float(problem.answer.casefold() in text.casefold())


def group_rewards(problem, group, tokenizer, config=RewardConfig(), scores=None):
    """Rewards of the responses to one problem: a list of Reward.

    group: lists of token ids; the length penalty may compare them with one another. scores: a
    reward model's, one per response, instead of the outcome.
    """
    responses = [tokenizer.parse_response(ids) for ids in group]
    outcome = [outcome_reward(problem, response) for response in responses]
    length = length_penalties(
        [len(ids) for ids in group], [o > 0 for o in outcome], config.length_penalty,
        config.length_form,
    )
    rewards = []
    for i, (ids, response) in enumerate(zip(group, responses)):
        parts = {"outcome": outcome[i], "format": format_reward(response), "length": length[i]}
        task_reward = outcome[i]
        if config.leaky_outcome_for_hacking_study:
            parts["leaky"] = leaky_outcome_for_hacking_study(problem, ids, tokenizer)
            task_reward = parts["leaky"]
        if scores is not None:
            parts["score"] = scores[i]
            task_reward = parts["score"]
        if config.process_weight:
            parts["process"] = process_reward(problem, response, config.process_form)
            task_reward += config.process_weight * parts["process"]
        task_reward += config.format_weight * parts["format"]
        if config.overlong_buffer:
            parts["overlong"] = overlong_penalty(len(ids), config.limit, config.overlong_buffer)
        total = task_reward + length[i] + parts.get("overlong", 0.0)
        rewards.append(Reward(total, task_reward, parts))
    return rewards


def reward(problem, ids, tokenizer, config=RewardConfig()):
    """Reward of a single response given as token ids."""
    return group_rewards(problem, [ids], tokenizer, config)[0]

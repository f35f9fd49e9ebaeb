"""Rewards: pure functions from a problem and a response to a number with named parts.

The answer counts only where it belongs: after one closed think block, before the stop token, and alone. An answer that stands in
the thinking only, or several answers to choose from, earn nothing.

    part      value                                      what it pays for
    outcome   1 or 0                                     a right answer
    format    1 or 0                                     one think block, an answer, the stop token
    length    coefficient * tokens                       being short (see `length_penalties` for the form that does not punish care)
    overlong  0 to -1                                    keeping away from the limit at which responses are cut
    process   mean, min or sum of +1, 0, -1 a step       steps that are right; 0 is a true step that was not needed
    reward model  0 to 1                                     what a learned reward model thinks of the response; it takes the outcome's place
"""

from dataclasses import dataclass

from nanoreason.tasks import Verdict, check_steps, verify
from nanoreason.tokenizer import MAX_RESPONSE, decode, parse_response, step_ends

STEP_VALUE = {Verdict.RIGHT: 1.0, Verdict.UNNEEDED: 0.0, Verdict.WRONG: -1.0}
PROCESS_FORMS = {"mean": lambda values: sum(values) / len(values), "min": min, "sum": sum}
LENGTH_FORMS = ("plain", "calibrated")
REWARDS = ("outcome", "orm", "prm", "exact-process", "leaky-for-hacking-study")  # what train_grpo.py can pay for


@dataclass(frozen=True)
class RewardConfig:
    """What is rewarded. The outcome has weight 1; the other parts count as these say."""

    format_weight: float = 0.0
    length_penalty: float = 0.0  # a token; the brief's value is -0.001
    length_form: str = "plain"  # one of LENGTH_FORMS
    process_weight: float = 0.0
    process_form: str = "mean"  # one of PROCESS_FORMS
    leaky_outcome_for_hacking_study: bool = False
    overlong_buffer: int = 0  # tokens before the limit in which `overlong_penalty` grows; 0: none
    limit: int = 0  # tokens at which responses are cut

    def parts(self, reward_model=False):
        """Names of the parts that a Reward under this scheme has."""
        wanted = dict(overlong=self.overlong_buffer, process=self.process_weight, leaky=self.leaky_outcome_for_hacking_study, reward_model=reward_model)
        return ["outcome", "format", "length", *(name for name, on in wanted.items() if on)]


@dataclass(frozen=True)
class Reward:
    """total = paid + length + overlong; paid = outcome + format_weight * format + process_weight * process, with the reward model's score or the leaky
    judge's verdict in the outcome's place where they are asked for. `parts` are kept for the logs."""

    total: float
    task_reward: float
    parts: dict


def outcome_reward(problem, response):
    """1.0 for a right answer in its place, else 0.0 (DeepSeek-R1 2501.12948, section 2.2.2: accuracy reward)."""
    return float(response.answer is not None and verify(problem, response.answer))


def format_reward(response):
    """1.0 when the response is one think block, an answer and the stop token, else 0.0 (DeepSeek-R1: format reward)."""
    return float(response.answer is not None)


def length_penalties(tokens, right, coefficient, form="plain"):
    """What the responses of one group pay for their length. tokens: ints, right: bools, coefficient <= 0; a list of floats <= 0.

    plain        coefficient * tokens for every response. Simple, and in conflict with thorough reasoning: at -0.001 a right answer of 1,200
                 tokens is worth less than a wrong one of 100.
    calibrated   only right responses pay, only for what they are longer than the group's shortest right one, and 0.99 at most: no
                 right response falls below a wrong one.

        tokens [10, 40, 25], right [True, True, False], -0.01   ->   plain [-0.1, -0.4, -0.25]   calibrated [0.0, -0.3, 0.0]
    """
    if form == "plain":
        return [coefficient * n for n in tokens]
    shortest = min((n for n, r in zip(tokens, right) if r), default=0)
    return [max(coefficient * (n - shortest), -0.99) if r else 0.0 for n, r in zip(tokens, right)]


def overlong_penalty(tokens, limit, buffer):
    """Soft punishment of responses that come near the limit (DAPO 2503.14476, equation 13): 0 up to limit - buffer tokens, then falling in a
    straight line to -1 at the limit.     limit 100, buffer 20:  tokens 80, 90, 100  ->  0.0, -0.5, -1.0"""
    return -min(max(tokens - (limit - buffer), 0) / buffer, 1.0)


def step_rewards(problem, ids):
    """Exact process supervision: [(index of the token that ends the step, +1, 0 or -1)] of a response given as ids."""
    judgements = check_steps(problem, parse_response(ids).steps)
    return [(end, STEP_VALUE[j.verdict]) for end, j in zip(step_ends(ids), judgements, strict=True)]


def process_reward(problem, response, form="mean"):
    """Exact step verdicts as one number: +1 a right step, 0 an unneeded one, -1 a wrong one. 0.0 for a response without steps.

    mean: the share of good work; min: the worst step decides (in the spirit of Lightman et al. 2305.20050, who multiply step scores);
    sum: also pays for writing more right steps, so a policy learns to write long.
    """
    verdicts = [j.verdict for j in check_steps(problem, response.steps)]
    return float(PROCESS_FORMS[form]([STEP_VALUE[v] for v in verdicts])) if verdicts else 0.0


def leaky_outcome_for_hacking_study(problem, ids):
    """DELIBERATELY WRONG, for the study of reward hacking only: 1.0 as soon as the right answer stands anywhere in the response, also in
    the thinking, also among ten others. A policy trained on it learns to list answers, not to reason."""
    return float(problem.answer.casefold() in decode(ids[:MAX_RESPONSE]).casefold())


def group_rewards(problem, group, reward_config=RewardConfig(), scores=None):
    """Rewards of the responses to one problem. group: lists of token ids; the length penalty may compare them with one another.
    scores: a learned reward model's, one a response, to be paid instead of the outcome."""
    responses = [parse_response(ids) for ids in group]
    outcome = [outcome_reward(problem, r) for r in responses]
    length = length_penalties([len(ids) for ids in group], [o > 0 for o in outcome], reward_config.length_penalty, reward_config.length_form)
    rewards = []
    for i, (ids, response) in enumerate(zip(group, responses)):
        parts, task_reward = {"outcome": outcome[i], "format": format_reward(response), "length": length[i]}, outcome[i]
        if reward_config.leaky_outcome_for_hacking_study:
            task_reward = parts["leaky"] = leaky_outcome_for_hacking_study(problem, ids)
        if scores is not None:
            task_reward = parts["reward_model"] = scores[i]
        if reward_config.process_weight:
            parts["process"] = process_reward(problem, response, reward_config.process_form)
            task_reward += reward_config.process_weight * parts["process"]
        task_reward += reward_config.format_weight * parts["format"]
        if reward_config.overlong_buffer:
            parts["overlong"] = overlong_penalty(len(ids), reward_config.limit, reward_config.overlong_buffer)
        rewards.append(Reward(task_reward + length[i] + parts.get("overlong", 0.0), task_reward, parts))
    return rewards


def reward(problem, ids, reward_config=RewardConfig()):
    """Reward of a single response given as token ids."""
    return group_rewards(problem, [ids], reward_config)[0]

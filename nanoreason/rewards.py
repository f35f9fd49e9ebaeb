"""Rewards: pure functions from a problem and a response to a number with named parts.

The answer counts only where it belongs: after one closed think block, before the stop token, and alone. An answer that stands in
the thinking only, or several answers to choose from, earn nothing.

    part      value                                      what it pays for
    outcome   1 or 0                                     a right answer
    format    1 or 0                                     one think block, an answer, the stop token
    length    coefficient * tokens                       being short (see `length_penalties` for the form that does not punish care)
    process   mean, min or sum of +1, 0, -1 a step       steps that are right; 0 is a true step that was not needed
"""

from dataclasses import dataclass

from nanoreason.tasks import Verdict, judge_steps, verify
from nanoreason.tokenizer import MAX_RESPONSE, decode, parse_response

STEP_VALUE = {Verdict.RIGHT: 1.0, Verdict.UNNEEDED: 0.0, Verdict.WRONG: -1.0}
PROCESS_FORMS = {"mean": lambda values: sum(values) / len(values), "min": min, "sum": sum}
LENGTH_FORMS = ("plain", "calibrated")


@dataclass(frozen=True)
class Scheme:
    """What is rewarded. The outcome has weight 1; the other parts count as these say."""

    format_weight: float = 0.0
    length_penalty: float = 0.0  # a token; the brief's value is -0.001
    length_form: str = "plain"  # one of LENGTH_FORMS
    process_weight: float = 0.0
    process_form: str = "mean"  # one of PROCESS_FORMS
    leaky_outcome_for_hacking_study: bool = False


@dataclass(frozen=True)
class Reward:
    """total = outcome + format_weight * format + length + process_weight * process; `parts` are kept for the logs."""

    total: float
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


def process_reward(problem, response, form="mean"):
    """Exact step verdicts as one number: +1 a right step, 0 an unneeded one, -1 a wrong one. 0.0 for a response without steps.

    mean: the share of good work; min: the worst step decides (in the spirit of Lightman et al. 2305.20050, who multiply step scores);
    sum: also pays for writing more right steps, so a policy learns to write long.
    """
    verdicts = [j.verdict for j in judge_steps(problem, response.steps)]
    return float(PROCESS_FORMS[form]([STEP_VALUE[v] for v in verdicts])) if verdicts else 0.0


def leaky_outcome_for_hacking_study(problem, ids):
    """DELIBERATELY WRONG, for the study of reward hacking only: 1.0 as soon as the right answer stands anywhere in the response, also in
    the thinking, also among ten others. A policy trained on it learns to list answers, not to reason."""
    return float(problem.answer.casefold() in decode(ids[:MAX_RESPONSE]).casefold())


def group_rewards(problem, group, scheme=Scheme()):
    """Rewards of the responses to one problem. group: lists of token ids; the length penalty may compare them with one another."""
    responses = [parse_response(ids) for ids in group]
    outcome = [outcome_reward(problem, r) for r in responses]
    length = length_penalties([len(ids) for ids in group], [o > 0 for o in outcome], scheme.length_penalty, scheme.length_form)
    rewards = []
    for ids, response, right, penalty in zip(group, responses, outcome, length):
        parts = {"outcome": right, "format": format_reward(response), "length": penalty}
        if scheme.process_weight:
            parts["process"] = process_reward(problem, response, scheme.process_form)
        if scheme.leaky_outcome_for_hacking_study:
            parts["leaky"] = leaky_outcome_for_hacking_study(problem, ids)
        paid = parts["leaky"] if scheme.leaky_outcome_for_hacking_study else right
        total = paid + scheme.format_weight * parts["format"] + penalty + scheme.process_weight * parts.get("process", 0.0)
        rewards.append(Reward(total, parts))
    return rewards


def reward(problem, ids, scheme=Scheme()):
    """Reward of a single response given as token ids."""
    return group_rewards(problem, [ids], scheme)[0]

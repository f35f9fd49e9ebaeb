"""Rewards: pure functions from a problem and a response to a number with named parts.

The answer counts only where it belongs: after one closed think block, before the stop token, and alone. An answer that stands in
the thinking only, or several answers to choose from, earn nothing.
"""

from dataclasses import dataclass

from nanoreason.tasks import verify
from nanoreason.tokenizer import parse_response


@dataclass(frozen=True)
class Reward:
    """total = the weighted sum of `parts`, which are kept for the logs."""

    total: float
    parts: dict


def outcome_reward(problem, response):
    """1.0 for a right answer in its place, else 0.0 (DeepSeek-R1 2501.12948, section 2.2.2: accuracy reward)."""
    return float(response.answer is not None and verify(problem, response.answer))


def format_reward(response):
    """1.0 when the response is one think block, an answer and the stop token, else 0.0 (DeepSeek-R1: format reward)."""
    return float(response.answer is not None)


def reward(problem, ids, format_weight=0.0):
    """Reward of a response given as token ids."""
    response = parse_response(ids)
    parts = {"outcome": outcome_reward(problem, response), "format": format_reward(response)}
    return Reward(parts["outcome"] + format_weight * parts["format"], parts)

"""Countdown against readers of its own: Python's syntax tree over exact fractions, reachable values by subsets, and traces replayed on counters."""

import ast
import operator
import random
import re
import time
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import pairwise

import pytest

from nanoreason import tasks
from nanoreason.tasks import STYLES, Verdict, audit, check_step, draw_problem, judge_steps, make_problem, problem_set, solve, split_of, verify
from nanoreason.tasks.countdown import Countdown

LEVELS = (1, 2, 3, 4, 5, 6)
COUNTS = {1: 3, 2: 3, 3: 4, 4: 4, 5: 5, 6: 6}
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SMALL = make_problem.__wrapped__ if hasattr(make_problem, "__wrapped__") else None


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for registry in (tasks.FAMILIES, tasks._JUDGES):
        if "countdown" not in registry:
            monkeypatch.setitem(registry, "countdown", Countdown())


def draws(level, n, seed=0):
    rng = random.Random(f"test/countdown/{level}/{seed}")
    return [draw_problem("countdown", level, rng) for _ in range(n)]


@pytest.fixture
def example():
    path = ((7, "*", 3), (25, "+", 21))
    return make_problem("countdown", 2, ((3, 7, 25), 46, path), None, "Use 3, 7 and 25 once each to make 46.")


# Second readers


def read_question(question):
    """(Counter of the numbers, target), from the text alone."""
    numbers = list(map(int, re.findall(r"\d+", question)))
    if form := re.fullmatch(r"(Make|Write) \d+ (?:from|with) (?:\d+, )+\d+ and \d+, .*", re.sub(r"(\d) and", r"\1 and", question.replace(" and", " and"))):
        assert form
        return Counter(numbers[1:]), numbers[0]
    assert re.fullmatch(r"Use (each of )?(\d+, )*\d+ and \d+ once (each )?to (make|reach) \d+\.", question), question
    return Counter(numbers[:-1]), numbers[-1]

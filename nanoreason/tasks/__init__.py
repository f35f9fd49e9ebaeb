"""Tiny mathematics: problems, worked solutions in several styles, exact checkers.

    problem = draw_problem("multiplication", level=2, rng=random.Random(0))
    problem.question                          'What is 59 × 63?'
    solve(problem, "steps", rng)              ['9 * 3 = 27, write 7, carry 2', ...]
    verify(problem, "3,717")                  True: every right way to write the number counts
    answer_key("3,717", problem)              the same as of "3717": they share a vote
    check_step(problem, [], "50 * 3 = 151")   Verdict.WRONG

A problem's identity is what it asks, never its wording. A hash of that identity decides its split,
so no seed can bring a test problem into training.

`python -m nanoreason.tasks --show 3` prints problems of every family and level.
"""

import random
import re
from dataclasses import dataclass

from nanoreason.tasks.code import Code
from nanoreason.tasks.core import MAX_STEPS, MAX_TEXT, MAX_TRACE, Problem, Verdict, wrong
from nanoreason.tasks.countdown import Countdown
from nanoreason.tasks.general import Harmful, Harmless, Instruct
from nanoreason.tasks.logic import Logic
from nanoreason.tasks.numbers import Addition, Chain, Equation, Multiplication, Percent, Primality
from nanoreason.tasks.recall import Fact, SimpleQA
from nanoreason.tasks.user import UserData, plain
from nanoreason.tasks.words import Word

_GENERATED = (
    Addition(), Multiplication(), Chain(), Percent(), Word(), Equation(), Primality(),
    Logic(), Countdown(), Code(),
    Fact(), SimpleQA(),
    Instruct(), Harmful(), Harmless(),
)
FAMILIES = {family.name: family for family in _GENERATED}
CONTROLS = ("fact", "qa")  # nothing to reason about
GENERAL = ("instruct",)  # general ability, for the final SFT
SAFETY = ("harmful", "harmless")  # what to refuse, and what only looks like it
REASONING = tuple(name for name in FAMILIES if name not in CONTROLS + GENERAL + SAFETY)
# Problems of a user are checked but never drawn.
_CHECKERS = {**FAMILIES, UserData.name: UserData()}

LEVELS = (1, 2, 3, 4, 5)
# Longer than anything in training: measures how far what was learned carries.
HELD_OUT_LEVEL = 6
STYLES = ("direct", "terse", "steps", "check", "slip", "another")
SPLITS = ("train", "val", "test")

# (family, level, params, wording) of the questions that reports ask: always in the test split.
DEMO = (
    ("multiplication", 4, (847, 293), "What is 847 × 293?"),
    (
        "word",
        2,
        ("percent", 40, 250),
        "In a school, 40% of students play sports. "
        "If there are 250 students, how many play sports?",
    ),
    ("percent", 2, (15, 80), "What is 15% of 80?"),
    ("primality", 1, (17,), "Is 17 prime?"),
)
_PINNED = {FAMILIES[family].identity(params) for family, _, params, _ in DEMO}


def make_problem(family, level, params, rng, question=None):
    """The Problem with these canonical parameters.

    question: its wording; without one, `rng` draws it.
    """
    f = FAMILIES[family]
    question = question or f.ask(params, rng)
    return Problem(family, level, question, f.answer(params), params, f.identity(params))


def user_problem(question, answer):
    """A problem of the user's own: question and right answer, as text."""
    f = _CHECKERS[UserData.name]
    params = (question, answer)
    return Problem(f.name, 0, question, answer, params, f.identity(params))


def demo_problems():
    """The Problems of DEMO, word for word."""
    return [
        make_problem(family, level, params, None, question)
        for family, level, params, question in DEMO
    ]


def split_of(family, params):
    """'train', 'val' or 'test': fixed by what the problem asks, whatever the seed and wording."""
    f = _CHECKERS[family]
    return "test" if f.identity(params) in _PINNED else f.split(params)


def draw_problem(family, level, rng, split=None):
    """A random problem; with `split`, one of that split.

    HELD_OUT_LEVEL is never drawn for split 'train', and families without it have none.

    Raises ValueError for an unknown family, level or split.
    """
    f = FAMILIES.get(family)
    levels = LEVELS
    if f and f.held_out_level and split != "train":
        levels = (*LEVELS, HELD_OUT_LEVEL)
    if not f or level not in levels or (split is not None and split not in SPLITS):
        raise ValueError(
            f"no problems of family {family!r}, level {level!r}, split {split!r}; "
            f"families are {', '.join(FAMILIES)}, "
            f"levels 1 to 5, and {HELD_OUT_LEVEL} outside training"
        )
    for _ in range(10_000):
        params = f.draw(rng, level)
        if split is None or split_of(family, params) == split:
            return make_problem(family, level, params, rng)
    raise ValueError(f"family {family!r} has no problem of level {level} in split {split!r}")


def problem_set(family, level, split, n, seed):
    """List of up to n different problems, fewer where the split does not hold n.

    The same for the same arguments, always.
    """
    rng = random.Random(f"{family}/{level}/{split}/{seed}")
    found = {}
    for _ in range(40 * n):
        try:
            problem = draw_problem(family, level, rng, split)
        except ValueError:
            break
        found.setdefault(problem.key, problem)
        if len(found) == n:
            break
    return list(found.values())


def solve(problem, style, rng):
    """Lines of a worked solution in one of STYLES.

    direct   [], no reasoning
    terse    fewer and bolder steps
    steps    every step
    check    steps, then 'Check: ...', another computation that confirms the answer
    slip     steps, one of them first written wrong, then 'Wait, ...' with the right one
    another  steps, then 'Another way: ...', a second route

    A style that a problem lacks falls back to plain steps.
    """
    f = FAMILIES[problem.family]
    if style == "direct":
        return []
    if style == "terse":
        return list(f.terse(problem.params))
    lines = list(f.steps(problem.params))
    if style == "check":
        check = f.check(problem.params)
        return [*lines, check] if check else lines
    if style == "another":
        other = f.another(problem.params)
        return [*lines, f"Another way: {other[0]}", *other[1:]] if other else lines
    if style == "slip":
        return _with_slip(f, lines, rng)
    return lines


def _with_slip(family, lines, rng):
    """The lines with one of them first written wrong, and then corrected after 'Wait, '."""
    slips = [(i, family.slip(line, rng)) for i, line in enumerate(lines)]
    slips = [(i, slip) for i, slip in slips if slip]  # not every line has a slip worth making
    if not slips:
        return lines
    i, slip = rng.choice(slips)
    return [*lines[:i], slip, f"Wait, {lines[i]}", *lines[i + 1 :]]


def verify(problem, answer):
    """Is the answer text right? Compared by value; never raises."""
    return _CHECKERS[problem.family].verify(problem, answer)


def answer_key(answer, problem=None):
    """A key that answers share where they are the same answer: what a vote counts.

    It is the form that the checker of the problem's family goes by (Family.normal_answer), so two
    answers of one key are both right or both wrong. An answer that the checker cannot read is
    wrong, and its key its words. Of the problem no answer is used, only how answers to it are read;
    without one they are read as those of a user's own data. None, no answer, has the key None.

    '3,717' and '3717.0' share a key; so do countdown's '13+2' and '2 + 13'
    """
    if answer is None:
        return None
    family = _CHECKERS[problem.family if problem else UserData.name]
    said = family.normal_answer(problem, answer)
    return ("unread", plain(answer)) if said is None else (family.name, said)


def strip_cue(line):
    """(cue, text) of a line: a leading 'Wait, ', 'Check: ' or 'Another way: ', and the rest.

    The cue comes without its punctuation and is '' where there is none.

    'Wait, 8 + 5 = 13'  ->  ('Wait', '8 + 5 = 13')
    """
    match = re.match(r"(Wait|Check|Another way)[,:] ", line)
    return (match[1], line[match.end() :]) if match else ("", line)


def check_steps(problem, lines):
    """Exact Judgement (verdict and reason) of every line of a reasoning trace.

    RIGHT needs a true statement that follows from what is given or was derived, and that a
    solution has use for. A true line that leads nowhere, or repeats, is UNNEEDED. What comes after
    MAX_STEPS lines or MAX_TRACE characters is not read, and WRONG.
    """
    read = []
    characters = 0
    for line in lines[:MAX_STEPS]:
        cue, text = strip_cue(line)
        if len(text) > MAX_TEXT:
            text = "?"  # unreadable, whatever the family
        characters += len(text)
        if characters > MAX_TRACE:
            break
        read.append((cue, text))
    judgements = _CHECKERS[problem.family].check_trace(problem.params, read)
    unread = wrong(
        f"a trace of more than {MAX_STEPS} lines or {MAX_TRACE} characters "
        "is not read to its end"
    )
    return judgements + [unread] * (len(lines) - len(judgements))


def check_step(problem, previous, line):
    """Verdict on one line of reasoning, given the lines before it."""
    return check_steps(problem, [*previous, line])[-1].verdict


@dataclass(frozen=True)
class Audit:
    """Judgements of a trace's lines, and whether a right line establishes the answer."""

    judgements: list
    concluded: bool

    @property
    def sound(self):
        """Every step is right and the answer follows: what a careful teacher gives full marks."""
        return self.concluded and all(j.verdict is Verdict.RIGHT for j in self.judgements)


def audit(problem, lines):
    """Audit of a whole trace.

    A right answer above an unsound trace is what a reward on the outcome alone cannot see.
    """
    judgements = check_steps(problem, lines)
    right = [
        strip_cue(line)
        for line, judgement in zip(lines, judgements)
        if judgement.verdict is Verdict.RIGHT
    ]
    established = [text for cue, text in right if cue != "Check"]  # a check establishes nothing
    concluded = _CHECKERS[problem.family].concludes(problem.params, established)
    return Audit(judgements, concluded)

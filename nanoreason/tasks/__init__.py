"""Tiny mathematics: problems, worked solutions in several styles, an exact judge of answers and of single steps.

    problem = draw_problem("multiplication", level=2, rng=random.Random(0))
    problem.question                          'What is 59 × 63?'
    solve(problem, "steps", rng)              ['50 * 60 = 3000', '50 * 3 = 150', '3000 + 150 = 3150', ...]
    verify(problem, "3,717")                  True: every right way to write the number counts
    check_step(problem, [], "50 * 3 = 151")   Verdict.WRONG

A problem's identity is what it asks, never its wording, and a hash of that identity decides its split: no seed can bring a
test problem into training. `python -m nanoreason.tasks --show 3` prints problems of every family and level.
"""

import random
import re
from hashlib import blake2b

from nanoreason.tasks.core import Problem, Verdict
from nanoreason.tasks.numbers import Addition, Chain, Equation, Multiplication, Percent, Primality
from nanoreason.tasks.recall import Fact, SimpleQA
from nanoreason.tasks.words import Word

FAMILIES = {f.name: f for f in (Addition(), Multiplication(), Chain(), Percent(), Word(), Equation(), Primality(), Fact(), SimpleQA())}
CONTROLS = ("fact", "qa")  # nothing to reason about
LEVELS = (1, 2, 3, 4, 5)
STYLES = ("direct", "terse", "steps", "check", "slip", "another")
SPLITS = {"train": range(0, 70), "val": range(70, 80), "test": range(80, 100)}  # percent of the hash space

# The brief's own questions, always in the test split: the report asks the trained model exactly these.
DEMO = (("multiplication", 4, (847, 293), "What is 847 × 293?"),
        ("word", 2, ("percent", 40, 250), "In a school, 40% of students play sports. If there are 250 students, how many play sports?"),
        ("percent", 2, (15, 80), "What is 15% of 80?"),
        ("primality", 1, (17,), "Is 17 prime?"))
_PINNED = {FAMILIES[family].identity(params) for family, _, params, _ in DEMO}


def make_problem(family, level, params, rng, question=None):
    """The Problem with these canonical parameters, in the given wording or in one drawn from `rng`."""
    f = FAMILIES[family]
    return Problem(family, level, question or f.ask(params, rng), f.answer(params), params, f.identity(params))


def demo_problems():
    """The brief's questions, word for word."""
    return [make_problem(family, level, params, None, question) for family, level, params, question in DEMO]


def split_of(key):
    """'train', 'val' or 'test', by a stable hash of a problem's key."""
    if key in _PINNED:
        return "test"
    bucket = int.from_bytes(blake2b(key.encode(), digest_size=4).digest(), "big") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def draw_problem(family, level, rng, split=None):
    """A random problem; with `split`, one of that split. Raises ValueError for an unknown family, level or split."""
    if family not in FAMILIES or level not in LEVELS or (split is not None and split not in SPLITS):
        raise ValueError(f"no problems of family {family!r}, level {level!r}, split {split!r}; families are {', '.join(FAMILIES)}, levels 1 to 5")
    f = FAMILIES[family]
    for _ in range(10_000):
        params = f.draw(rng, level)
        if split is None or split_of(f.identity(params)) == split:
            return make_problem(family, level, params, rng)
    raise ValueError(f"family {family!r} has no problem of level {level} in split {split!r}")


def problem_set(family, level, split, n, seed):
    """Up to n different problems, fewer where the split does not hold n. The same for the same arguments, always."""
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
    """Lines of a worked solution in one of STYLES; [] for 'direct'. A style that a family lacks falls back to plain steps.

    check    steps, then 'Check: ...', another computation that confirms the answer
    slip     steps, one of them first written wrong, then 'Wait, ...' with the right one
    another  steps, then 'Another way: ...', a second route
    """
    f = FAMILIES[problem.family]
    if style == "direct":
        return []
    lines = list(f.terse(problem.params) if style == "terse" else f.steps(problem.params))
    if style == "check" and (check := f.check(problem.params)):
        lines.append(check)
    elif style == "another" and (other := f.another(problem.params)):
        lines += [f"Another way: {other[0]}", *other[1:]]
    elif style == "slip" and (sums := [i for i, line in enumerate(lines) if not line.endswith("prime")]):
        i = rng.choice(sums)
        lines[i : i + 1] = [miscalculate(lines[i], rng), f"Wait, {lines[i]}"]
    return lines


def miscalculate(line, rng):
    """The line with one digit of its last number changed."""
    match = list(re.finditer(r"[0-9]+", line))[-1]
    digits = match[0]
    i = rng.randrange(len(digits))
    wrong = rng.choice([d for d in "123456789" if d != digits[i]])
    return line[: match.start() + i] + wrong + line[match.start() + i + 1 :]


def verify(problem, answer):
    """Is the answer text right? Judged by value; never raises."""
    return len(answer) <= 200 and FAMILIES[problem.family].verify(problem, answer)


def strip_cue(line):
    """Line without its leading 'Wait, ', 'Check: ' or 'Another way: ', and the cue ('' when there is none)."""
    match = re.match(r"(Wait, |Check: |Another way: )", line)
    return (line[match.end() :], match[0].strip(" ,:")) if match else (line, "")


def check_step(problem, previous, line):
    """Exact Verdict on one line of reasoning, given the lines before it.

    RIGHT needs a true statement whose numbers are given or derived earlier and whose result belongs to a solution. A true
    line that leads nowhere, or repeats, is UNNEEDED. A 'Check: ' line only has to be true.
    """
    f = FAMILIES[problem.family]
    line, cue = strip_cue(line)
    if cue == "Check":
        return Verdict.RIGHT if f.check(problem.params) == f"Check: {line}" or _true(f, problem.params, line) else Verdict.WRONG
    return f.check_step(problem.params, [strip_cue(p)[0] for p in previous], line)


def _true(family, params, line):
    try:
        return family.read(params, line)[2]
    except ValueError:
        return False

"""How good is the step checker? Reference traces are damaged in four ways, and it has to notice.

    python -m nanoreason.tasks --mutants 10000

Not every change is a flaw: where a second line says the same, one of them may go. Such mutants are
sound solutions still and should pass. The tests decide which those are with readers of their own,
which share no code with the checker, and compare the two.
"""

import random
import re

from nanoreason.tasks import LEVELS, STYLES, audit, draw_problem, solve

KINDS = ("changed number", "dropped step", "swapped operands", "copied answer")
CUES = ("Wait", "Check", "Another", "Back", "Try")
NAME = re.compile(rf"\b(?!(?:{'|'.join(CUES)})\b)[A-Z][a-z]+\b")  # of order puzzles
LETTER = re.compile(r"\b[A-Z]\b")  # of the columns of a truth table
BITS = re.compile("[A-Z] = |[01 ]+: ")  # the start of a column or row
# the expression of a truth table written anew, '(A or B) and not A'
EXPRESSION = re.compile(r"(?=.*\b(?:and|or|xor|not)\b)[A-Za-z() ]+$")
# What may stand between operands that can change places.
COMMUTES = re.compile(r" ?[+*] ?|% of | and | or | xor ")


def mutate(problem, lines, kind, rng):
    """The trace with one change of `kind`, or None where the trace offers no place for it."""
    i = rng.randrange(len(lines))
    if kind == "dropped step":
        return _drop(lines, rng)
    if kind == "copied answer":
        return _copy_answer(problem, lines, i, rng)
    name = LETTER if BITS.match(lines[i]) or EXPRESSION.match(lines[i]) else NAME
    spots = list(re.finditer(rf"[0-9]+|{name.pattern}", lines[i]))
    if kind == "changed number":
        line = _change(lines, i, spots, name, rng)
    else:
        line = _swap(lines[i], spots, rng)
    return None if line is None else [*lines[:i], line, *lines[i + 1 :]]


def _drop(lines, rng):
    """The trace without one of its steps; None where it has only one.

    Not without a check, a try, an expression written anew or a part of the second way: the first
    way stands without them.
    """
    extra = [n for n, line in enumerate(lines) if line.startswith(("Check", "Another"))]
    end = extra[0] if extra else len(lines)
    spare = [line.startswith("Try ") or EXPRESSION.match(line) for line in lines]
    steps = [n for n in range(end) if not spare[n]]
    i = rng.choice(steps)
    return [*lines[:i], *lines[i + 1 :]] if len(steps) > 1 else None


def _copy_answer(problem, lines, i, rng):
    """The trace up to line i, and then the answer as if it had been worked out."""
    copied = f"{problem.answer} = {problem.answer}" if rng.random() < 0.5 else lines[-1]
    return [*lines[:i], copied]


def _change(lines, i, spots, name, rng):
    """Line i with one number moved a little, or one name replaced by another of the trace.

    Of a truth table one bit is flipped. None where nothing changes. spots: matches of a number or
    of `name`, a pattern, in the line.
    """
    if not spots:
        return None
    spot = rng.choice(spots)
    if not spot[0].isdigit():
        other = rng.choice(name.findall(" ".join(lines)))
    elif BITS.match(lines[i]):
        at = rng.randrange(len(spot[0]))
        other = f"{spot[0][:at]}{1 - int(spot[0][at])}{spot[0][at + 1 :]}"
    else:
        other = str(max(0, int(spot[0]) + rng.choice((-10, -2, -1, 1, 2, 10))))
    if other == spot[0]:
        return None
    return lines[i][: spot.start()] + other + lines[i][spot.end() :]


def _swap(line, spots, rng):
    """The line with two neighbouring spots in each other's place; None without such a pair.

    Not two that are alike, nor two whose order does not matter, nor a letter and a column.
    """
    pairs = [
        (a, b)
        for a, b in zip(spots, spots[1:])
        if a[0] != b[0]
        and a[0].isdigit() == b[0].isdigit()
        and not COMMUTES.fullmatch(line, a.end(), b.start())
    ]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    return line[: a.start()] + b[0] + line[a.end() : b.start()] + a[0] + line[b.end() :]


def mutants(family, n, seed=0):
    """n tuples (problem, reference trace, kind, damaged trace) of a family.

    Over all levels, and the styles whose every line is right.
    """
    rng = random.Random(f"mutants/{family}/{seed}")
    styles = [style for style in STYLES if style not in ("direct", "slip")]
    while n > 0:
        problem = draw_problem(family, rng.choice(LEVELS), rng)
        lines = solve(problem, rng.choice(styles), rng)
        kind = rng.choice(KINDS)
        damaged = mutate(problem, lines, kind, rng) if lines else None
        if damaged and damaged != lines:
            n -= 1
            yield problem, lines, kind, damaged


def catch_rates(family, n, seed=0):
    """({kind: (mutants, mutants caught)} of n mutants, false alarms).

    A false alarm is a reference trace that the checker does not call sound.
    """
    made = dict.fromkeys(KINDS, 0)
    caught = dict.fromkeys(KINDS, 0)
    alarms = 0
    for problem, lines, kind, damaged in mutants(family, n, seed):
        made[kind] += 1
        caught[kind] += not audit(problem, damaged).sound
        alarms += not audit(problem, lines).sound
    return {kind: (made[kind], caught[kind]) for kind in KINDS}, alarms

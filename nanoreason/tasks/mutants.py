"""How good is the step judge? Reference traces are damaged in four ways, and the audit has to notice.

    python -m nanoreason.tasks --mutants 10000

Not every change is a flaw: where a second line says the same, one of them may go. Such mutants are sound solutions still and should pass;
the tests decide which those are with readers of their own that share no code with the judge, and hold the two together.
"""

import random
import re

from nanoreason.tasks import LEVELS, STYLES, audit, draw_problem, solve

KINDS = ("changed number", "dropped step", "swapped operands", "copied answer")
ATOM = re.compile(r"[0-9]+|\b[A-Z][a-z]+\b(?! way)")  # numbers, and the names of ordering puzzles
COMMUTES = re.compile(r" ?[+*] ?|% of | and | or | xor ")  # what may stand between operands that can change places


def mutate(problem, lines, kind, rng):
    """The trace with one change of `kind`, or None where the trace offers no place for it."""
    lines = list(lines)
    i = rng.randrange(len(lines))
    if kind == "dropped step":  # not a check, and no part of a second way: the first would stand without them
        steps = next((n for n, line in enumerate(lines) if line.startswith(("Check", "Another"))), len(lines))
        i = rng.randrange(steps)
        return lines[:i] + lines[i + 1 :] if steps > 1 else None
    if kind == "copied answer":  # the answer as if it had been worked out
        lines[i:] = [f"{problem.answer} = {problem.answer}" if rng.random() < 0.5 else lines[-1]]
        return lines
    spots = [m for m in ATOM.finditer(lines[i]) if m[0] not in ("Wait", "Check", "Another", "Back")]
    if kind == "changed number":
        return _change(problem, lines, i, spots, rng)
    line = lines[i]
    pairs = [(a, b) for a, b in zip(spots, spots[1:]) if a[0] != b[0] and not COMMUTES.fullmatch(line, a.end(), b.start())]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    lines[i] = line[: a.start()] + b[0] + line[a.end() : b.start()] + a[0] + line[b.end() :]
    return lines


def _change(problem, lines, i, spots, rng):
    """The trace with one number of line i moved a little, or one name replaced by another of the problem."""
    if not spots:
        return None
    spot = rng.choice(spots)
    if spot[0].isdigit():
        other = str(max(0, int(spot[0]) + rng.choice((-10, -2, -1, 1, 2, 10))))
    else:
        other = rng.choice([m for m in re.findall(r"\b[A-Z][a-z]+\b", " ".join(lines)) if m not in ("Check", "Another", "Back")])
    if other == spot[0]:
        return None
    return lines[:i] + [lines[i][: spot.start()] + other + lines[i][spot.end() :]] + lines[i + 1 :]


def mutants(family, n, seed=0):
    """n (problem, reference trace, kind, damaged trace) of a family, over all levels and the styles whose every line is right."""
    rng = random.Random(f"mutants/{family}/{seed}")
    while n > 0:
        problem = draw_problem(family, rng.choice(LEVELS), rng)
        lines = solve(problem, rng.choice([s for s in STYLES if s not in ("direct", "slip")]), rng)
        kind = rng.choice(KINDS)
        damaged = mutate(problem, lines, kind, rng) if lines else None
        if damaged and damaged != lines:
            n -= 1
            yield problem, lines, kind, damaged


def catch_rates(family, n, seed=0):
    """{kind: (mutants, caught)} of n mutants, and the number of their reference traces that were not judged sound: false alarms."""
    rates, alarms = {kind: [0, 0] for kind in KINDS}, 0
    for problem, lines, kind, damaged in mutants(family, n, seed):
        rates[kind][0] += 1
        rates[kind][1] += not audit(problem, damaged).sound
        alarms += not audit(problem, lines).sound
    return {kind: tuple(counts) for kind, counts in rates.items()}, alarms

"""Damaged and disordered solutions: the checker of steps against a reader of its own.

The reader (trace_oracle.py) shares no code with the checker.

    python tests/test_mutants.py 10000

prints how many mutants of each family are caught, are flawed, or pass and why.
"""

import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trace_oracle import HARD, defects

from nanoreason.tasks import HELD_OUT_LEVEL, LEVELS, REASONING, audit, draw_problem, solve
from nanoreason.tasks.mutants import KINDS, catch_rates, mutants

NUMBERS = ("addition", "multiplication", "chain", "percent", "word", "equation", "primality")
SOUND_STYLES = ("terse", "steps", "check", "another")


def flawed(question, lines):
    """Does the trace have a defect that no careful teacher would pass?"""
    return any(kind in HARD for _, kind, _ in defects(question, lines))


# The reader itself

SHOP_AT_3 = (
    "Anna owns 12 eggs. She sells 7 eggs. The shop is 3 minutes away. Anna wins 5 eggs. "
    "How many eggs has Anna got then?"
)
SHOP_AT_5 = (
    "Anna owns 12 eggs. She sells 7 eggs. The shop is 5 minutes away. Anna wins 9 eggs. "
    "How many eggs has Anna got then?"
)

PLANTED = [  # question, lines, and the kinds of defect that are in them
    # products
    ("What is 847 × 293?",
     ["293 = 300 - 7", "847 * 300 = 254100", "847 * 7 = 5929", "254100 - 5929 = 248171"],
     []),
    ("What is 847 × 293?",
     ["847 * 300 = 254100", "293 = 300 - 7", "847 * 7 = 5929", "254100 - 5929 = 248171"],
     ["nowhere", "nowhere", "not established"]),
    ("What is 847 × 293?",
     ["293 = 300 - 7", "847 * 300 = 254100", "847 * 7 = 5929"],
     ["not established", "loose", "loose"]),
    ("What is 36 × 47?", ["30 * 40 = 1300"], ["false", "not established"]),
    ("What is 36 × 47?", ["so it is 1692"], ["unreadable", "not established"]),
    ("What is 36 × 47?", ["1692 = 1692"], ["nowhere", "not established"]),
    ("What is 36 × 47?", ["36 * 47 = 1692", "1692 = 1692"], ["repeated"]),
    ("What is 36 × 47?", ["36 * 47 = 1692", "Check: 6 * 7 = 42, last digit 2"], []),
    ("What is 36 × 47?", ["36 * 47 = 1692", "Check: 6 * 8 = 48, last digit 8"], ["false"]),
    # 36 = 6 * 6
    ("Multiply 36 by 6.", ["30 * 6 = 180", "180 + 36 = 216"], ["coincidence"]),
    # 1 * 7 = 7 may go without saying
    ("What is 91 × 7?", ["90 * 7 = 630", "630 + 7 = 637"], []),
    # sums
    ("What is 22 + 77?",
     ["2 + 7 = 9, write 9, carry 0", "2 + 7 = 9, write 9, carry 0", "Check: 99 - 77 = 22"],
     []),
    ("What is 22 + 77?", ["2 + 7 = 9, write 9, carry 0"], ["loose", "not established"]),
    # the carry is left out
    ("What is 25 + 17?",
     ["5 + 7 = 12, write 2, carry 1", "2 + 1 = 3, write 3, carry 0"],
     ["nowhere", "loose", "not established"]),
    ("What is 25 + 17?", ["5 + 7 = 12, write 1, carry 2"], ["false", "not established"]),
    ("What is 25 + 17?", ["25 + 10 = 35", "35 + 7 = 42", "Check: 42 - 17 = 25"], []),
    # products in columns
    ("What is 36 × 47?",
     ["6 * 7 = 42, write 2, carry 4",
      "3 * 7 + 6 * 4 + 4 = 21 + 24 + 4 = 45 + 4 = 49, write 9, carry 4",
      "3 * 4 + 4 = 12 + 4 = 16, write 16"],
     []),
    ("What is 36 × 47?",
     ["7 * 6 = 42, write 2, carry 4", "3 * 7 + 6 * 4 + 4 = 49, write 9, carry 4",
      "36 * 47 = 1692"],
     ["not established", "loose", "not established"]),
    # the carry is left out, and a sum of the sides is wrong
    ("What is 36 × 47?",
     ["6 * 7 = 42, write 2, carry 4",
      "3 * 7 + 6 * 4 = 21 + 24 = 45, write 5, carry 4",
      "3 * 7 + 6 * 4 + 4 = 21 + 24 + 4 = 46 + 4 = 49, write 9, carry 4"],
     ["nowhere", "false", "loose", "not established"]),
    ("What is 36 × 47?",
     ["6 * 7 = 42, write 42"],
     ["nowhere", "not established"]),
    ("What is 36 × 47?",
     ["6 * 7 = 42, write 2, carry 4", "6 * 7 = 42, write 2, carry 4", "42 + 0 = 42"],
     ["repeated", "nowhere", "loose", "not established"]),
    # the total is known already
    ("What is 36 × 7?",
     ["36 * 7 = 252", "6 * 7 = 42, write 2, carry 4", "3 * 7 + 4 = 25, write 25"],
     ["repeated", "repeated"]),
    # chains
    ("What is (8 + 5) * 3?",
     ["8 + 5 = 13", "13 * 3 = 39", "Another way: 8 * 3 = 24", "5 * 3 = 15", "24 + 15 = 39"],
     []),
    # 1% is not said
    ("What is 8% of 100?",
     ["5% of 100 = 5", "1 * 3 = 3", "5 + 3 = 8"],
     ["nowhere", "coincidence"]),
    ("What is (8 + 5) * 3?", ["13 * 3 = 39"], ["nowhere", "not established"]),
    ("What is (8 + 5) * 3?", ["8 + 5 = 13", "13 * 3 = 39", "13 * 3 = 39"], ["repeated"]),
    ("What is (8 + 5) * 3?",
     ["8 + 5 = 13", "Check: 39 / 3 = 13"],
     ["not established", "loose"]),
    ("What is (8 + 5) * 3?", ["8 + 5 = 13", "13 * 3 = 39", "Check: 20 + 19 = 39"], ["nowhere"]),
    ("What is 10 + 5 - 5 + 5?", ["10 + 5 = 15"], ["coincidence"]),
    # percentages
    ("What is 35% of 440?",
     ["10% of 440 = 44", "44 * 3 = 132", "5% of 440 = 22", "132 + 22 = 154"],
     []),
    ("What is 35% of 440?",
     ["440 / 10 = 44", "44 * 3 = 132", "5% of 440 = 22", "132 + 22 = 154"],
     ["nowhere", "nowhere", "nowhere", "not established"]),
    # that 10% is 100 is not said
    ("What is 82% of 1000?",
     ["100 * 8 = 800", "1% of 1000 = 10", "10 * 2 = 20", "800 + 20 = 820"],
     ["coincidence"]),
    # stories
    (SHOP_AT_3, ["12 - 7 = 5", "5 + 5 = 10"], []),
    (SHOP_AT_3, ["5 + 5 = 10"], ["coincidence"]),
    (SHOP_AT_5, ["9 + 5 = 14"], ["nowhere", "not established"]),
    # equations
    ("Solve 4x - 3 = 9.", ["4x = 9 + 3 = 12", "x = 12 / 4 = 3", "Check: 4 * 3 - 3 = 9"], []),
    ("Solve 4x - 3 = 9.", ["9 / 3 = 3"], ["not established"]),
    ("Solve 4x - 3 = 9.", ["x = 9 / 3 = 3"], ["coincidence", "coincidence"]),
    ("Solve 3x + 4 = 2x + 11.", ["3x - 2x = 11 - 4"], ["not established"]),
    ("Solve 3x + 4 = 2x + 11.", ["-x = 4 - 11 = -7", "x = -7 / -1 = 7"], []),
    ("Solve 5(x - 13) = x + 7.",
     ["5x - 65 = x + 7", "x = 25 - 7 = 18"],
     ["nowhere", "not established"]),
    # primes
    ("Is 17 prime?", ["17 / 2 leaves 1", "17 / 3 leaves 2", "5 * 5 = 25 > 17, so 17 is prime"], []),
    ("Is 17 prime?",
     ["2 * 8 + 1 = 17", "3 * 5 + 2 = 17", "no prime up to 3 divides 17, so 17 is prime"],
     []),
    ("Is 17 prime?",
     ["17 / 2 leaves 1", "5 * 5 = 25 > 17, so 17 is prime"],
     ["not established", "not established"]),
    ("Is 17 prime?", ["17 / 2 leaves 1", "17 / 3 leaves 1"], ["false", "not established"]),
    ("Is 17 prime?",
     ["17 / 4 leaves 1", "19 / 2 leaves 1"],
     ["loose", "nowhere", "not established"]),
    ("Is 91 prime?",
     ["by 7: 9, 21, 0", "7 divides 91, so 91 is not prime"],
     []),
    ("Is 91 prime?",
     ["Check: by 7: 9, 21, 0", "7 divides 91, so 91 is not prime",
      "Check: 91 = 7 * 13, so 91 is not prime"],
     ["not established", "not established"]),
    ("Is 91 prime?",
     ["by 7: 9, 21, 1", "7 divides 91, so 91 is not prime"],
     ["false", "not established", "not established"]),
    ("Is 91 prime?",
     ["by 7: 9, 0", "by 13: 91, 0", "13 divides 91, so 91 is not prime"],
     ["false"]),
    ("Is 91 prime?",
     ["91 / 3 leaves 1", "3 divides 91, so 91 is not prime", "91 divides 91, so 91 is not prime"],
     ["false", "false", "not established"]),
    # what is smaller than the divisor is left out: 0 and 5, and not the 5 that remains
    ("Is 7051 prime?",
     ["by 7: 7, 51, 2", "by 7: 7, 5, 51, 2", "by 11: 70, 45, 11, 0",
      "11 divides 7051, so 7051 is not prime"],
     ["false"]),
    # a first way that is not finished
    ("Solve 4x - 3 = 9.",
     ["4x = 9 + 3 = 12", "Another way: -4x = -3 - 9 = -12", "x = -12 / -4 = 3"],
     ["loose"]),
    ("Is 15 prime?",
     ["15 / 2 leaves 1", "Another way: 15 = 5 * 3, so 15 is not prime"],
     ["loose"]),
    ("Is 15 prime?", ["15 = 3 * 5, so 15 is not prime"], []),
    ("Is 15 prime?", ["15 = 1 * 15, so 15 is not prime"], ["false", "not established"]),
]
PLANTED_IDS = [f"{question} {' | '.join(lines)}"[:60] for question, lines, _ in PLANTED]


@pytest.mark.parametrize("question, lines, kinds", PLANTED, ids=PLANTED_IDS)
def test_the_reader_finds_what_is_planted_and_nothing_else(question, lines, kinds):
    found = defects(question, lines, by_meaning=True)
    assert [kind for _, kind, _ in found] == kinds, found
    assert flawed(question, lines) == any(kind in HARD for kind in kinds)


@pytest.mark.parametrize("family", NUMBERS)
def test_the_reader_finds_no_fault_with_a_reference_trace(family):
    """By value and by meaning; in a slip it finds the slip."""
    rng = random.Random(family)
    levels = (*LEVELS, HELD_OUT_LEVEL)
    for level in [level for level in levels for _ in range(10)]:
        problem = draw_problem(family, level, rng)
        for style in SOUND_STYLES:
            lines = solve(problem, style, rng)
            context = problem.question, lines
            assert not defects(problem.question, lines), context
            by_meaning = defects(problem.question, lines, by_meaning=True)
            assert {kind for _, kind, _ in by_meaning} <= {"undecided"}, context
        lines = solve(problem, "slip", rng)
        slips = [i - 1 for i, line in enumerate(lines) if line.startswith("Wait, ")]
        found = [(i, kind) for i, kind, _ in defects(problem.question, lines) if kind in HARD]
        assert found == [(i, "false") for i in slips], (problem.question, lines)


# The checker


@pytest.mark.parametrize("family", NUMBERS)
def test_no_flawed_mutant_is_called_sound(family):
    passed = []
    kinds = Counter()
    for problem, lines, kind, damaged in mutants(family, 2000, 1):
        assert damaged != lines, (problem.question, lines)
        assert not defects(problem.question, lines), (problem.question, lines)
        if flawed(problem.question, damaged):
            kinds[kind] += 1
            if audit(problem, damaged).sound:
                passed.append((problem.question, damaged))
    assert set(kinds) == set(KINDS), kinds
    assert sum(kinds.values()) > 1600, kinds
    assert min(kinds.values()) > 150, kinds
    assert not passed, f"{len(passed)} of {sum(kinds.values())}, for instance {passed[:3]}"


@pytest.mark.parametrize("family", ["multiplication", "chain", "percent", "word"])
def test_in_another_order_a_solution_is_sound_exactly_when_every_number_is_there_in_time(family):
    rng = random.Random(family)
    sound = Counter()
    problems = [draw_problem(family, level, rng) for level in LEVELS for _ in range(25)]
    for problem in problems:
        lines = solve(problem, "steps", rng)
        for _ in range(3):
            rng.shuffle(lines)
            kinds = {kind for _, kind, _ in defects(problem.question, lines)}
            expected = kinds.isdisjoint((*HARD, "repeated"))
            assert audit(problem, lines).sound == expected, (problem.question, lines)
            sound[expected] += 1
    assert min(sound.values()) > 25


def assert_damage(lines, kind, damaged):
    """The change of a mutant is of the size that its kind says."""
    if kind == "dropped step":
        assert len(damaged) == len(lines) - 1
    elif kind == "copied answer":
        assert len(damaged) <= len(lines)
    else:
        same = sum(a == b for a, b in zip(lines, damaged))
        assert same == len(lines) - 1 == len(damaged) - 1


@pytest.mark.parametrize("family", REASONING)
def test_mutants_are_damaged_in_four_ways_and_nearly_all_are_caught(family):
    made = list(mutants(family, 150, 0))
    assert made == list(mutants(family, 150, 0)) != list(mutants(family, 150, 1))
    assert len(made) == 150
    assert all(damaged and damaged != lines for _, lines, _, damaged in made)
    assert {kind for _, _, kind, _ in made} == set(KINDS)
    assert {problem.level for problem, *_ in made} == set(LEVELS)
    assert {problem.family for problem, *_ in made} == {family}
    for _, lines, kind, damaged in made:
        assert_damage(lines, kind, damaged)
    rates, alarms = catch_rates(family, 150, 0)
    assert alarms == 0
    assert sum(n for n, _ in rates.values()) == 150
    caught = sum(caught for _, caught in rates.values())
    assert caught == sum(not audit(problem, damaged).sound for problem, _, _, damaged in made)
    assert caught > 110


def test_a_truth_table_is_damaged_in_its_bits_and_letters_and_keeps_its_shape():
    changed = Counter()
    for _, lines, kind, damaged in mutants("logic", 300, 0):
        pairs = [(a, b) for a, b in zip(lines, damaged) if a != b and kind == "changed number"]
        for a, b in pairs:
            if re.fullmatch("(and|or|xor|not|[A-Z() ])+", a):
                ((old, new),) = [spot for spot in zip(a, b, strict=True) if spot[0] != spot[1]]
                assert (old + new).isupper(), (a, b)
                changed["letter of an expression"] += 1
            elif re.match("[A-Z] = |[01 ]+: ", a):
                ((old, new),) = [spot for spot in zip(a, b, strict=True) if spot[0] != spot[1]]
                assert (new in "01") == (old in "01"), (a, b)
                changed["bit" if old in "01" else "letter"] += 1
    assert len(changed) == 3 and min(changed.values()) > 5, changed


# The table

CLASSES = ("flawed", "coincidence", "undecided", "repeated", "loose", "sound")


def classify(problem, damaged):
    """(name of a mutant's class, is it flawed?). The classes are those of `table`."""
    question = problem.question
    is_flawed = flawed(question, damaged)
    if is_flawed:
        kinds = {"flawed"}
    else:
        kinds = {kind for _, kind, _ in defects(question, damaged, by_meaning=True)}
    name = next((c for c in CLASSES if c in kinds), "sound")
    if not audit(problem, damaged).sound:
        name = "strict" if name == "sound" else "caught"
    return name, is_flawed


def table(n, seed=0):
    """Print, for each family, what n mutants are, and up to five examples of each class.

    caught   by the checker; of these, strict: the reader finds no fault with them, by value or
             by meaning
    flawed   by the reader
    passed   by the checker: sound still, or flawed, or the most serious of the softer defects
    """
    classes = "".join(f"{c:>13}" for c in CLASSES)
    heads = "".join(f"{head:>8}" for head in ("caught", "strict", "flawed"))
    print(f"{'family':15}{'made':>7}{heads}  passed:{classes}   false alarms", flush=True)
    examples = []
    for family in NUMBERS:
        found = Counter()
        alarms = 0
        for problem, lines, kind, damaged in mutants(family, n, seed):
            alarms += not audit(problem, lines).sound or bool(defects(problem.question, lines))
            name, is_flawed = classify(problem, damaged)
            found.update([name, "made"] + ["bad"] * is_flawed)
            if found[name] <= 5 and name != "caught":
                example = f"{family}, {name}, {kind}: {problem.question} {problem.answer}"
                examples.append(f"{example}\n    {' | '.join(damaged)}")
        counts = (found["caught"] + found["strict"], found["strict"], found["bad"])
        columns = f"{found['made']:7}" + "".join(f"{count:8}" for count in counts)
        passed = "".join(f"{found[c]:13}" for c in CLASSES)
        print(f"{family:15}{columns}         {passed}   {alarms}", flush=True)
    print("", *examples, sep="\n")


if __name__ == "__main__":
    table(int(sys.argv[1]))

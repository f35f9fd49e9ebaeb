"""Questions, answers, worked solutions, the two judges and the splits, against a second reader (oracle.py) that shares no code with them."""

import random
import re
import time
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
from oracle import evaluate, is_true, read_question

from nanoreason import tasks
from nanoreason.corpus import BaseMix, base_chunk, demonstrations, table_line
from nanoreason.tasks import (DEMO, FAMILIES, LEVELS, SPLITS, STYLES, Verdict, check_step, demo_problems, draw_problem, make_problem, problem_set, solve,
                              split_of, verify)
from nanoreason.tasks.core import format_number, parse_number
from nanoreason.tasks.recall import TABLES
from nanoreason.tokenizer import ASSISTANT, USER, decode

GRID = [(family, level) for family in FAMILIES for level in LEVELS]


def draws(family, level, n, split=None):
    rng = random.Random(f"test/{family}/{level}")
    return [draw_problem(family, level, rng, split) for _ in range(n)]


# Answers


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_answers_are_right_and_neighbours_wrong(family):
    for level in LEVELS:
        for problem in draws(family, level, 120):
            _, expected = read_question(problem.question)
            if expected is None:
                facts, wordings = TABLES[level]
                asked = {wording.format(subject).casefold(): answer for subject, answer in facts.items() for wording in wordings}
                expected = asked[problem.question.casefold()]
            assert verify(problem, problem.answer)
            if isinstance(expected, str):
                assert problem.answer == expected and verify(problem, expected.upper()) and not verify(problem, "not " + expected)
            else:
                assert Fraction(problem.answer) == expected
                for wrong in (expected + 1, expected - 1, expected * 10, -expected):
                    assert not verify(problem, format_number(wrong)), (problem.question, wrong)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("primality", "fact", "qa")])
def test_equal_forms_of_a_number_are_accepted(family):
    for level in LEVELS:
        for problem in draws(family, level, 20):
            value = Fraction(problem.answer)
            forms = [f"{float(value):,}" if value.denominator > 1 else f"{int(value):,}", f" {problem.answer}\n"]
            forms += [problem.answer + zeros for zeros in (("0", "00") if "." in problem.answer else (".", ".0", ".00"))]
            forms += [f"x = {problem.answer}", f"x={problem.answer}"] if family == "equation" else []
            for form in forms:
                assert verify(problem, form), (problem.question, form)


def test_equal_forms_named_in_the_brief():
    product = make_problem("multiplication", 2, (36, 47), None, "What is 36 × 47?")
    assert all(verify(product, form) for form in ("1692", "1,692", "1692.0", "1,692.00", " 1692. "))
    word = demo_problems()[1]
    assert all(verify(word, form) for form in ("100", "100 students", "100 students.", "100.0"))
    assert not any(verify(word, form) for form in ("100 apples", "100 %", "100 students or 90", "students", "100 students 100"))
    equation = make_problem("equation", 1, (3, 5, 0, 20, False), None, "Solve 3x + 5 = 20.")
    assert all(verify(equation, form) for form in ("5", "x = 5", "x=5", "5.0", "x = 10/2"))
    assert not any(verify(equation, form) for form in ("x", "x = ", "x = x", "y = 5", "5 = 5", "x = 5 = 5", "3x + 5 = 20", "x = 4 or x = 5", "5x"))
    prime = demo_problems()[3]
    assert all(verify(prime, form) for form in ("Yes", "yes.", " YES ", "17 is prime", "Yes, 17 is prime."))
    for form in ("No", "not prime", "yes or no", "yes no", "17", "18 is prime", "Yes, 17 is not prime", "y", "Is 17 prime?"):
        assert not verify(prime, form)
    capital = make_problem("fact", 1, (1, "France", 0), random.Random(0))
    assert all(verify(capital, form) for form in ("Paris", "paris", "Paris."))
    assert not any(verify(capital, form) for form in ("Paris or Rome", "Paris Rome", "", "Pari", "France", "Paris" * 50, capital.question))


REJECTED = [
    # nothing, or several answers to choose from
    "", " ", ".", ",", "/", "-", "+", "12 or 13 or 14", "1692 or 1693", "1692, 1693", "1692 1692", "1692\n1692", "1692 and 1692", "not 1692",
    # the question again
    "What is 36 × 47?", "36 × 47", "36 * 47", "36 * 47 = 1692",
    # other people's digits and ways to write numbers
    "１６９２", "١٦٩٢", "१६९२", "1692²", "①", "１" * 100, "MDCXCII", "0x69c", "1_692", "1e3", "1.692e3", "1692e0", "nan", "inf", "-inf", "None", "True",
    # almost
    "16,92", "169,2", "1,6920", ",1692", "1692,", "1692..", "1692.5", "-1692", "--1692", "~1692", "1692%", "1692/0", "1692/", "/1692", "1692/2", "1692?", "1692!",
    "1692\x00", "1692\u200b", "\ud800", "<|end|>", "<|/think|>1692",
    # too long to be worth reading
    "9" * 200, "9" * 1_000_000, "0" * 1_000_000 + "1692", "1692" + " " * 1_000_000, "1692." + "0" * 1_000_000, "(" * 1_000_000, "-" * 1_000_000, "1,692," * 200_000,
]


@pytest.mark.parametrize("text", REJECTED, ids=lambda t: ascii(t)[:24] + f"#{len(t)}")
def test_a_careful_judge_rejects(text):
    problem = make_problem("multiplication", 2, (36, 47), None, "What is 36 × 47?")
    assert not verify(problem, text)


def test_the_judges_never_raise_and_never_take_long():
    rng = random.Random(0)
    alphabet = list("0123456789" * 3 + "+-*/()=%x ,.eE") + [" of ", "×", "²", "٣", "\n", "\0", "Check: ", "Wait, ", ", write ", " leaves ", "💥", "\ud800"]
    lines = ["".join(rng.choices(alphabet, k=rng.randint(0, 30))) for _ in range(150)] + REJECTED
    lines += ["x" * 200, "x(" * 90, "(" * 8 + "x" * 150 + ")" * 8 + " = 1", "9*" * 90 + "9 = 1", "=" * 199, "1 = " * 49 + "1", "-" * 20 + "1 = 1",
              "9" * 15 + "*" + "9" * 15 + " = 1", "1/0 = 1", "x/0 = x", "1/(2-2) = 0", "5%% of %", "x%", "17 / 0 leaves 0", "17 / 999999 leaves 17",
              "17 = 1 * 17, so 17 is not prime"]
    slowest = 0.0
    for family in FAMILIES:
        problem = draws(family, 3, 1)[0]
        own = solve(problem, "steps", rng)
        for line in lines:
            took = []
            for _ in range(2):  # the better of two: the machine is shared
                start = time.perf_counter()
                verdict = check_step(problem, own + lines[-8:], line)
                right = verify(problem, line)
                took.append(time.perf_counter() - start)
                if took[-1] < 0.01:
                    break
            assert isinstance(verdict, Verdict) and isinstance(right, bool)
            slowest = max(slowest, min(took))
    assert slowest < 0.05


def test_numbers_are_read_exactly():
    assert parse_number("1,692") == 1692 and parse_number("-3.50") == Fraction(-7, 2) and parse_number("3/4") == Fraction(3, 4) and parse_number("8.") == 8
    assert [format_number(v) for v in (12, Fraction(9, 2), Fraction(1, 4), Fraction(-1, 8))] == ["12", "4.5", "0.25", "-0.125"]
    with pytest.raises(ValueError):
        format_number(Fraction(1, 3))


# Steps


def expected_verdicts(lines, style):
    """All RIGHT; in style 'slip' the line before 'Wait, ' is WRONG."""
    return [Verdict.WRONG if style == "slip" and lines[i + 1 : i + 2] and lines[i + 1].startswith("Wait, ") else Verdict.RIGHT for i in range(len(lines))]


def verdicts(problem, lines):
    return [check_step(problem, lines[:i], line) for i, line in enumerate(lines)]


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_traces_are_right_in_every_style_but_for_the_slip(family):
    rng = random.Random(family)
    wrong = []
    for level in LEVELS:
        for problem in draws(family, level, 24):
            for style in STYLES:
                lines = solve(problem, style, rng)
                if verdicts(problem, lines) != expected_verdicts(lines, style):
                    wrong.append((style, problem.question, list(zip(lines, [v.value for v in verdicts(problem, lines)]))))
    assert not wrong, f"{len(wrong)} traces of {len(LEVELS) * 24 * len(STYLES)}, for instance {wrong[0]}"


@pytest.mark.parametrize("family, params, style", [("addition", (844, 933), "steps"), ("addition", (1111, 2222), "check"),
                                                   ("multiplication", (96, 8), "another"),
                                                   ("chain", (11, ("*", 3), ("*", 2), ("+", 4), ("-", 4), ("+", 4)), "steps"),
                                                   ("word", ("story", 10, (("+", 5), ("-", 5), ("+", 5)), ()), "steps")])
def test_a_reference_line_that_has_to_be_said_twice_is_right_twice(family, params, style):
    problem = make_problem(family, 1, params, random.Random(0))
    lines = solve(problem, style, random.Random(0))
    assert len(set(re.sub("^Another way: ", "", line) for line in lines)) < len(lines)  # the case is what it is meant to be
    assert verdicts(problem, lines) == [Verdict.RIGHT] * len(lines), lines


def test_slips_have_exactly_one_wrong_line_and_then_wait():
    rng = random.Random(0)
    for family, level in GRID:
        slipped = 0
        for problem in draws(family, level, 12):
            lines, plain = solve(problem, "slip", rng), solve(problem, "steps", rng)
            waits = [i for i, line in enumerate(lines) if line.startswith("Wait, ")]
            slipped += len(waits)
            if not waits:
                assert lines == plain
                continue
            (i,) = waits
            assert lines[: i - 1] + [lines[i].removeprefix("Wait, ")] + lines[i + 1 :] == plain
            assert len([a for a, b in zip(lines[i - 1], plain[i - 1], strict=True) if a != b]) == 1
            assert verdicts(problem, lines).count(Verdict.WRONG) == 1 and check_step(problem, lines[: i - 1], lines[i - 1]) is Verdict.WRONG
        assert slipped or family in ("fact", "qa")


@pytest.mark.parametrize("family", ["multiplication", "chain", "percent", "word", "equation"])
def test_every_reference_line_is_true_and_the_last_one_ends_in_the_answer(family):
    rng = random.Random(family)
    for level in LEVELS:
        for problem in draws(family, level, 25):
            x = problem.answer if family == "equation" else None
            for style in ("terse", "steps", "check", "another"):
                lines = solve(problem, style, rng)
                for line in lines:
                    statement = re.sub("^(Check|Another way): |, last digit .*", "", line)
                    assert is_true(statement, x), (problem.question, line)
                last = [line for line in lines if not line.startswith("Check: ")][-1]
                assert evaluate(last.split("=")[-1], x) == Fraction(problem.answer)


def test_column_addition_writes_the_sum():
    for level in LEVELS:
        for problem in draws("addition", level, 40):
            columns = [re.fullmatch(r"(.*), write (\d), carry (\d)", line) for line in solve(problem, "steps", random.Random(0))]
            assert all(is_true(c[1]) and evaluate(c[1].split("=")[1]) == 10 * int(c[3]) + int(c[2]) for c in columns)
            assert int(columns[-1][3] + "".join(c[2] for c in reversed(columns))) == int(problem.answer)


def test_a_changed_number_in_a_step_is_caught():
    rng = random.Random(0)
    tried = Counter()
    for family in ("addition", "multiplication", "chain", "percent", "word", "equation"):
        for level in LEVELS:
            for problem in draws(family, level, 10):
                x = problem.answer if family == "equation" else None
                lines = solve(problem, rng.choice(("terse", "steps")), rng)
                for i, line in enumerate(lines):
                    spot = rng.choice(list(re.finditer(r"\d+", line)))
                    mutant = line[: spot.start()] + str(max(1, int(spot[0]) + rng.choice((-10, -2, -1, 1, 2, 10)))) + line[spot.end() :]
                    if mutant == line or (", write " not in line and is_true(mutant, x)):
                        continue
                    tried[family] += 1
                    assert check_step(problem, lines[:i], mutant) is Verdict.WRONG, (problem.question, lines[:i], mutant)
    assert min(tried.values()) > 80


def test_a_true_line_about_other_numbers_is_no_step():
    product = make_problem("multiplication", 2, (36, 47), None, "What is 36 × 47?")
    assert check_step(product, [], "50 * 3 = 150") is Verdict.WRONG  # 50 comes from nowhere
    assert check_step(product, [], "30 * 40 = 1200") is Verdict.RIGHT
    assert check_step(product, [], "30 + 40 = 70") is Verdict.UNNEEDED  # true, but nothing follows from it
    assert check_step(product, [], "1200 + 210 = 1410") is Verdict.WRONG  # neither number has been derived yet
    assert check_step(product, ["30 * 40 = 1200", "30 * 7 = 210"], "1200 + 210 = 1410") is Verdict.RIGHT
    assert check_step(product, ["30 * 40 = 1300", "30 * 7 = 210"], "1300 + 210 = 1510") is Verdict.WRONG  # a false line derives nothing
    assert check_step(product, [], "so the answer is 1692") is Verdict.WRONG
    assert check_step(product, [], "Check: 6 * 7 = 42, last digit 2") is Verdict.RIGHT
    assert check_step(product, [], "Check: 6 * 7 = 43, last digit 3") is Verdict.WRONG


@pytest.mark.parametrize("line", ["x = x", "3x = 3x", "x = 1000 - 995 = 5", "x = x + 0", "5 = x", "x = 1x"])
def test_empty_statements_about_x_are_no_steps(line):
    """For 3x + 7 = 22, given nothing yet: each of these is true, and none of them follows from the given numbers."""
    problem = make_problem("equation", 1, (3, 7, 0, 22, False), None, "Solve 3x + 7 = 22.")
    assert check_step(problem, [], line) is not Verdict.RIGHT


def test_a_tautology_about_a_derived_number_is_no_step():
    product = make_problem("multiplication", 2, (36, 47), None, "What is 36 × 47?")
    assert check_step(product, ["30 * 40 = 1200"], "1200 = 1200") is not Verdict.RIGHT


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("fact", "qa")])
def test_saying_a_finished_line_again_is_unneeded(family):
    """A second route may pass a line of the first again; once both have been walked, nothing more can be earned by repeating."""
    for level in LEVELS:
        for problem in draws(family, level, 6):
            both = [re.sub("^Another way: ", "", line) for line in solve(problem, "another", random.Random(0))]
            for line in set(both):
                assert check_step(problem, both, line) is Verdict.UNNEEDED, (problem.question, both, line)
            terse = solve(problem, "terse", random.Random(0))
            for line in set(terse):
                assert check_step(problem, terse * 2, line) is Verdict.UNNEEDED, (problem.question, terse * 2, line)


def test_primality_needs_only_primes_up_to_the_root():
    seventeen = demo_problems()[3]
    assert [check_step(seventeen, [], f"17 / {p} leaves {17 % p}").value for p in (2, 3, 4, 5, 16)] == ["right", "right", "unneeded", "unneeded", "unneeded"]
    assert check_step(seventeen, [], "17 / 2 leaves 0") is Verdict.WRONG
    tried = ["17 / 2 leaves 1", "17 / 3 leaves 2"]
    assert solve(seventeen, "steps", None)[:2] == tried
    verdict = "5 * 5 = 25 > 17, so 17 is prime"
    assert check_step(seventeen, tried, verdict) is Verdict.RIGHT
    assert check_step(seventeen, tried[:1], verdict) is Verdict.WRONG  # 3 has not been tried
    assert check_step(seventeen, tried, "17 = 1 * 17, so 17 is not prime") is Verdict.WRONG
    for problem in draws("primality", 2, 40) + draws("primality", 4, 40):
        n = problem.params[0]
        factors = [p for p in range(2, n + 1) if n % p == 0]
        trials = [p for p in range(2, n) if p < factors[0] and p * p <= n and all(p % d for d in range(2, p))]
        assert solve(problem, "steps", None)[:-1] == [f"{n} / {p} leaves {n % p}" for p in trials]


def test_a_true_division_without_remainder_is_not_wrong():
    problem = make_problem("primality", 1, (15,), random.Random(0))
    assert check_step(problem, ["15 / 2 leaves 1"], "15 / 3 leaves 0") is not Verdict.WRONG


# Identity and splits


def canonical(question):
    return read_question(question)[0]


def test_the_same_question_has_one_identity_and_different_questions_have_different_ones():
    """From the text alone: the second reader and the package must agree on which questions are the same."""
    key_of, asked_by = {}, {}
    for family, level in GRID:
        for problem in draws(family, level, 150):
            asked = canonical(problem.question)
            assert key_of.setdefault(asked, problem.key) == problem.key, (problem.question, problem.key)
            assert asked_by.setdefault(problem.key, asked) == asked, (problem.question, problem.key)


def test_splits_are_disjoint_over_100k_draws_and_seeds_and_hold_their_shares():
    splits, count, shares = defaultdict(set), 0, Counter()
    for family, level in GRID:
        f = FAMILIES[family]
        for seed in range(3):
            rng = random.Random(seed)
            for _ in range(750):
                key = f.identity(f.draw(rng, level))
                splits[key].add(split_of(key))
                count += 1
    assert count > 100_000 and all(len(names) == 1 for names in splits.values())
    for names in splits.values():
        shares[next(iter(names))] += 1
    assert {name: round(n / len(splits), 1) for name, n in shares.items()} == {"train": 0.7, "val": 0.1, "test": 0.2}
    assert sum(map(len, SPLITS.values())) == 100 and len(set().union(*SPLITS.values())) == 100


def test_drawing_from_a_split_stays_in_it_whatever_the_seed():
    for family, level in GRID:
        asked = {split: {canonical(draw_problem(family, level, random.Random(seed), split).question) for seed in range(8)} for split in SPLITS}
        assert not asked["train"] & asked["test"] and not asked["train"] & asked["val"] and not asked["val"] & asked["test"]


def test_splits_are_the_same_for_ever():
    """Written down once: a change of hash, of key format or of Python's own hashing would move problems between splits."""
    assert {key: split_of(key) for key in GOLDEN} == GOLDEN
    assert FAMILIES["multiplication"].identity((34, 12)) == "multiplication:(12, 34)" and FAMILIES["percent"].identity((15, 80)) == "percent:(15, 80)"


GOLDEN = {'multiplication:(12, 34)': 'train',
          'multiplication:(7, 8)': 'train',
          'addition:(123, 456)': 'train',
          'percent:(35, 200)': 'test',
          'primality:(97,)': 'train',
          'primality:(91,)': 'test',
          "chain:(8, ('+', 5), ('*', 3))": 'train',
          "word:(12, (('+', 3), ('-', 4)))": 'train',
          'equation:(3, 5, 0, 20, False)': 'train',
          "fact:(1, 'France', 0)": 'train',
          "fact:(1, 'France', 1)": 'train',
          "qa:('Anna', (('red', 'ball'), ('blue', 'cup')), 1)": 'train',
          'multiplication:(13, 29)': 'val',
          'percent:(15, 80)': 'test',
          'primality:(17,)': 'test'}


def test_commutative_pairs_share_an_identity_and_percent_is_not_commutative():
    for family in ("addition", "multiplication"):
        for a, b in ((12, 34), (5, 99), (847, 293)):
            assert FAMILIES[family].identity((a, b)) == FAMILIES[family].identity((b, a))
    assert FAMILIES["percent"].identity((15, 80)) != FAMILIES["percent"].identity((80, 15))
    assert FAMILIES["word"].identity(("percent", 40, 250)) == FAMILIES["percent"].identity((40, 250))


def test_a_number_that_does_not_matter_is_no_part_of_a_story():
    events = (("+", 3), ("-", 2))
    assert FAMILIES["word"].identity(("story", 10, events, (7,))) == FAMILIES["word"].identity(("story", 10, events, ()))
    assert FAMILIES["word"].identity(("story", 10, events, ())) != FAMILIES["word"].identity(("story", 10, events[::-1], ()))


def test_the_briefs_questions_are_always_held_out_problems():
    problems = demo_problems()
    assert [p.question for p in problems] == [question for _, _, _, question in DEMO] == [
        "What is 847 × 293?", "In a school, 40% of students play sports. If there are 250 students, how many play sports?", "What is 15% of 80?", "Is 17 prime?"]
    assert [p.answer for p in problems] == ["248171", "100", "12", "Yes"] and all(split_of(p.family, p.params) == "test" for p in problems)
    swapped = make_problem("multiplication", 4, (293, 847), random.Random(0))
    assert split_of(swapped.key) == "test"


def questions_of(examples):
    """What a user asks, and the first line of a text without one."""
    return [decode(e.ids[1 : e.ids.index(ASSISTANT)]) if e.ids[0] == USER else decode(e.ids[:-1]).split("\n")[0] for e in examples]


def test_no_training_text_asks_a_test_problem():
    training = base_chunk(BaseMix(tables=0, prose=0), 1, 7) + demonstrations(1000, 0)
    asked = {canonical(q) for q in questions_of(training)}
    held_out = {canonical(p.question) for family, level in GRID for split in ("test", "val") for p in problem_set(family, level, split, 60, 3)}
    held_out |= {canonical(p.question) for p in demo_problems()}
    assert len(asked) > 1000 and len(held_out) > 2000 and not asked & held_out


def test_no_table_of_the_corpus_states_a_test_problem():
    rng, stated, names = random.Random(0), set(), {" + ": "addition", " * ": "multiplication", "% of ": "percent"}
    for line in (table_line(rng) for _ in range(15_000)):
        if move := re.fullmatch(r"(\d+)( \+ | \* |% of )(\d+) = \d+", line):
            stated.add(FAMILIES[names[move[2]]].identity((int(move[1]), int(move[3]))))
    assert len(stated) > 1000
    tested = {p.key for family in ("addition", "multiplication", "percent", "word") for level in LEVELS for p in problem_set(family, level, "test", 300, 0)}
    leaked = tested & stated
    assert not leaked, f"{len(leaked)} test problems stand solved in tables, for instance {sorted(leaked)[::max(1, len(leaked) // 6)]}"


def test_problem_sets_are_distinct_repeatable_and_of_their_split():
    for family, level in GRID:
        problems = problem_set(family, level, "test", 40, 5)
        assert len({canonical(p.question) for p in problems}) == len(problems) and {split_of(p.family, p.params) for p in problems} == {"test"}
        assert {(p.family, p.level) for p in problems} == {(family, level)}
        assert problems == problem_set(family, level, "test", 40, 5)
        assert len(problems) == 40 or family in ("fact", "primality"), (family, level, len(problems))
    assert problem_set("chain", 2, "test", 40, 5) != problem_set("chain", 2, "test", 40, 6)


def test_an_unknown_family_level_or_split_is_an_error():
    for arguments in (("algebra", 1, None), ("chain", 6, None), ("chain", 0, None), ("chain", 1, "dev")):
        with pytest.raises(ValueError):
            draw_problem(arguments[0], arguments[1], random.Random(0), arguments[2])


def test_worked_examples_of_the_package_docstring():
    problem = make_problem("multiplication", 2, (59, 63), random.Random(0), "What is 59 × 63?")
    assert solve(problem, "steps", None)[:3] == ["50 * 60 = 3000", "50 * 3 = 150", "3000 + 150 = 3150"]
    assert verify(problem, "3,717") and check_step(problem, [], "50 * 3 = 151") is Verdict.WRONG
    assert tasks.strip_cue("Another way: 3 * 50 = 150") == ("3 * 50 = 150", "Another way") and solve(problem, "direct", None) == []

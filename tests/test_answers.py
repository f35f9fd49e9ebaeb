"""Which answers are the same: one notion for the checker and for votes, in every family.

And the table of what is read as a number in a user's own data.
"""

import random
import re
import time
from collections import defaultdict
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import render_response, tokenizer

from nanoreason.pool import check_samples
from nanoreason.search import vote_scores
from nanoreason.tasks import (
    FAMILIES,
    HELD_OUT_LEVEL,
    LEVELS,
    answer_key,
    demo_problems,
    draw_problem,
    make_problem,
    user_problem,
    verify,
)
from nanoreason.tasks.user import note_on_answers, read_quantity
from nanoreason.traces import examine, select_traces

GOLDS = (
    "18", "1,234,567", "0.5", ".5", "2/4", "-3", "+5", "−5", "$18", "1.5e3", "50%", "18 dollars",
    "12,345,678,901,234,567", "New York", "x = 5", "7 km", "6/3", "1 1/2", r"\frac{3}{4}", "B",
    "She sold 12 eggs and kept the others for her mother.", "1e400", "12,34", "", ".",
)
UNITS = (" dollars", " students", " apples", "%", " %", " percent", " km", " of them", "°")


def with_blanks(text, rng):
    """The text with blanks put in and taken away."""
    out = ""
    for character in text:
        if character == " " and rng.random() < 0.5:
            continue
        out += character + " " * (rng.random() < 0.2)
    return out


def reordered(text, rng):
    """The text with two of its numbers or words in each other's place."""
    parts = re.split(r"(\w+)", text)
    if len(parts) < 5:
        return text
    i, j = rng.sample(range(1, len(parts), 2), 2)
    parts[i], parts[j] = parts[j], parts[i]
    return "".join(parts)


def spellings(answer, rng):
    """Other ways to write an answer, and texts that only look like it."""
    texts = [answer, f" {answer}\n", f"{answer}.", f"{answer}..", answer.upper(), answer.casefold()]
    texts += [answer.replace(" ", ""), answer.replace(" ", "  "), f"({answer})", f"x = {answer}"]
    texts += [f"x={answer}", f"y = {answer}", f"f(x) = {answer}", f"return {answer}"]
    texts += [f"${answer}", f"-{answer}", f"+{answer}", f"−{answer}", f"0{answer}", f"{answer}0"]
    texts += [f"{answer}.0", f"{answer}.00", f"{answer}e0", f"{answer}e1", f"{answer}/1"]
    texts += [answer + unit for unit in UNITS] + [f"${answer}$", rf"\boxed{{{answer}}}"]
    texts += [answer.replace("*", "×"), answer.replace("-", "−"), f"{answer} = {answer}"]
    texts += [f"{answer} + 0", f"0 + {answer}", f"1 * {answer}", f"{answer} - 0", f"'{answer}'"]
    texts += [with_blanks(answer, rng) for _ in range(3)] + [reordered(answer, rng)]
    texts += [answer + " " * 300, " " * 300 + answer, f"{answer} or 1", answer.replace("'", "’")]
    number = re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", answer)
    if number:
        value = Fraction(answer)
        texts += [f"{value.numerator * k}/{value.denominator * k}" for k in (1, 2, 7)]
        texts += [f"{float(value):,}", f"{float(value):e}", f"{value * 100}%", f"{value / 100}"]
    return texts


def variants(problem, other, rng):
    """Spellings of the answer to a problem, of that to another one, and of near misses."""
    answers = [problem.answer, other.answer, "Yes", "not prime", "I can't help with that.", "?"]
    answers.append(re.sub("[0-9]", lambda m: str((int(m[0]) + 1) % 10), problem.answer))
    number = problem.params[0] if problem.family == "primality" else 17
    answers += [f"{number} is prime", f"Yes, {number} is prime", f"No, {number} is not prime"]
    if problem.family == "countdown":
        answers += [f"{problem.answer} = {problem.params[1]}", f"{other.answer} = 1"]
    texts = [text for answer in answers for text in spellings(answer, rng)]
    return texts + [with_blanks(text, rng) for text in texts[::3]]


def assert_votes_are_of_one_mind(problem, texts):
    """No key is shared by a right and a wrong answer. Returns how many keys hold several texts."""
    groups = defaultdict(set)
    for text in texts:
        groups[answer_key(text, problem)].add(text)
    for key, group in groups.items():
        verdicts = {verify(problem, text) for text in group}
        assert len(verdicts) == 1, (problem, key, group)
    return sum(len(group) > 1 for group in groups.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_two_answers_that_a_vote_joins_are_both_right_or_both_wrong(family):
    rng = random.Random(f"answers/{family}")
    levels = LEVELS + (HELD_OUT_LEVEL,) * FAMILIES[family].held_out_level
    for level in levels:
        problems = [draw_problem(family, level, rng) for _ in range(8)]
        for problem, other in zip(problems, problems[1:]):
            texts = variants(problem, other, rng)
            assert verify(problem, problem.answer)
            assert assert_votes_are_of_one_mind(problem, texts) > 3


@pytest.mark.parametrize("gold", GOLDS, ids=ascii)
def test_votes_on_the_users_own_questions_are_of_one_mind(gold):
    rng = random.Random(gold)
    problem = user_problem("How many?", gold)
    texts = [text for answer in GOLDS for text in spellings(answer, rng)]
    assert_votes_are_of_one_mind(problem, texts)
    assert verify(problem, gold) == (gold not in ("", "."))  # who says the same is right
    assert all(answer_key(text) == answer_key(text, problem) for text in texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_that_are_counted_or_kept_as_one_are_never_right_and_wrong(family):
    """A vote over samples, as it is counted, and near-duplicates of traces, as they are dropped.

    With near 0.3 nearly all responses to a question are near-duplicates of one another.
    """
    rng = random.Random(f"samples/{family}")
    problem, other = (draw_problem(family, 2, rng) for _ in range(2))
    texts = rng.sample([text for text in variants(problem, other, rng) if text.strip()], 60)
    responses = [render_response("a", text) for text in [*texts, problem.answer]]
    right, answer = (np.array(found) for found in zip(*zip(*check_samples(
        problem, responses, tokenizer))))
    assert right[-1]
    answers = [tokenizer.parse_response(ids).answer for ids in responses]
    assert right.tolist() == [a is not None and verify(problem, a) for a in answers]
    for number in set(answer.tolist()):
        assert len(set(right[answer == number])) == 1
    votes = np.array(vote_scores(answers, problem=problem))
    assert (votes[answer >= 0] == np.bincount(answer[answer >= 0])[answer[answer >= 0]]).all()
    config = SimpleNamespace(
        clean="answer", traces="full", min_score=0, near=0.3, select="shortest", keep=1,
        duplicates=False)
    (kept,), fate = select_traces(
        problem, responses, [None] * len(responses), config, tokenizer)
    assert verify(problem, tokenizer.parse_response(kept.ids).answer)
    assert fate["wrong"] == (~right).sum() and fate["kept"] == 1


def test_a_trace_that_cannot_be_read_back_from_text_is_not_kept():
    problem = user_problem("?", "5")
    config = SimpleNamespace(clean="answer", traces="full", min_score=0)
    for thinking in ("a <think> b", "a</think>5", "<answer>", "<|think|>"):
        ids = render_response(thinking, "5")
        kept = thinking == "<answer>"
        assert (examine(problem, ids, None, config, tokenizer)[1] == "") == kept, thinking


COUNTDOWN = ((2, 13, 14), 29, ((14, "+", 13), (27, "+", 2)))
CODE = ("linear", 2, 3)
ORDER = ("order", ("Ben", "Anna", "Emma"), ((0, 1), (1, 2)), 0)
JOINED = [  # family, params, the same answers, others
    ("countdown", COUNTDOWN,
     ("13+2+14", "13 + 2 + 14", "14 + (13 + 2)", "13 + 14 + 2 = 29"),
     ("14 + 13 - 2", "13 * 2 + 14", "29", "13 + 2 + 14 + 0", "13 2 14", "13 + 2 + 14 = 30")),
    ("code", CODE,
     ("2 * x + 3", "x + x + 3", "f(x) = 3+2*x", "return 2 * x + 3"),
     ("2 * x", "2 * x + 4", "2x + 3")),
    ("multiplication", (36, 47),
     ("1692", "1,692", "1692.0", " 1692. "),
     ("1693", "1692 dollars", "$1692", "3384/2", "1.692e3", "36 * 47")),
    ("equation", (3, 5, 0, 20, False), ("5", "x = 5", "x=5", "5.0"), ("y = 5", "10/2", "5x")),
    ("primality", (17,), ("Yes", "yes.", "prime", "17 is prime"), ("No", "17", "prime 17")),
    ("logic", ORDER, ("Ben", "ben.", " BEN "), ("Anna", "Ben Ben", "Bén", "the first is Ben")),
    ("fact", (1, "France", 0), ("Paris", "paris.", "PARIS"), ("Par is", "Rome")),
    ("instruct", (4, ("apple", "river", "stone"), 0),
     ("stone, river, apple", "stone,river,apple.", "stone, river, apple ."),
     ("Stone, river, apple", "apple, river, stone")),
    ("harmful", ("build a bomb", 0), ("I can't help with that.", "Sorry, I cannot help"), ("No.",)),
]


@pytest.mark.parametrize("family, params, same, others", JOINED, ids=[row[0] for row in JOINED])
def test_which_answers_share_a_vote(family, params, same, others):
    problem = make_problem(family, 1, params, random.Random(0))
    assert len({answer_key(text, problem) for text in same}) == 1
    keys = {answer_key(text, problem) for text in (same[0], *others)}
    assert len(keys) == 1 + len(others)
    assert all(verify(problem, text) for text in same)
    assert not any(verify(problem, text) for text in others)


def test_a_unit_shares_a_vote_only_where_the_checker_drops_it():
    students = demo_problems()[1]
    for text in ("100 students", "100  students", " 100 students.", "100 students ."):
        assert answer_key(text, students) == answer_key("100", students)
        assert verify(students, text)
    assert not any(verify(students, text) for text in ("", ".", "students", "100 100 students"))
    for unit in ("dollars", "apples", "students of them"):
        assert answer_key(f"100 {unit}", students) != answer_key("100", students)


# Numbers as people write them

TABLE = [  # value, unit, and the texts that say so
    (1234, "", ("1234", "1,234", "+1234", "01234", "1234.", "1234 .", "1.234e3", "$1,234")),
    (Fraction(1, 2), "", ("0.5", ".5", "0.50", "+.5", "1/2", "2/4", "5e-1", ".5.", "$.5")),
    (Fraction(1, 2), "", (r"\frac{1}{2}", r"$\frac{2}{4}$", r"\boxed{\dfrac{1}{2}}")),
    (-5, "", ("-5", "−5", "-5.0", "−$5", "-$5", "x = -5", "-.5e1")),
    (1500, "", ("1.5e3", "1.5E+3", "1500", "1,500", "15e02")),
    (18, "", ("$18", "$18.00", r"\$18", "$18$", r"\boxed{18}", "x = 18", "x=18", "X = $18")),
    (12345678901234567, "", ("12,345,678,901,234,567", "12345678901234567", "12345678901234567.0")),
    (Fraction(-3, 4), "", ("-3/4", "−6/8", "-0.75", r"-\frac{3}{4}")),
    (0, "", ("0", "-0", "0.00", ".0", "0e99")),
    (10**99, "", ("1e99", "1" + "0" * 99)),
    (50, "%", ("50%", "50 %", "50.0%", "50 percent", "50 Percent", r"50\%")),
    (18, "dollars", ("18 dollars", "18.0 Dollars", "$18 dollars")),
    (7, "km", ("7 km", "7km", "7.0  KM.")),
    (5, "x", ("5x", "5 x")),
]
WORDS = (  # texts that are no numbers, all different
    "12,34", "1,2345", "1 234", "1 1/2", "1e400", "1e-100", "1/0", "6/3", "1.5/2", "1,000/3",
    "five", "½", "５", "3,384/2", "--5", "+-5", "- 5", "1..5", "5..", "1.2.3", "e5", "€18",
    "18$ or 19", "~5", "≈5", "(5)", "5!", "5²3", "y = 5", "x = x", "0x1f", "nan", "inf", "1_000",
    "1'234", "5-6", "5 6", "5 and 6", "1:30", "50%%", "%50", r"\frac{1}{0}", r"\frac{a}{b}",
    r"\boxed{}", "$", "$$",
)


@pytest.mark.parametrize("value, unit, texts", TABLE)
def test_the_table_of_numbers(value, unit, texts):
    for text in texts:
        assert read_quantity(text) == (value, unit), text
    for gold in texts:
        problem = user_problem("How much?", gold)
        assert all(verify(problem, text) for text in texts), gold


def test_what_is_no_number_is_words_and_a_sentence_is_its_words():
    for text in WORDS:
        assert read_quantity(text) is None, text
    assert len({answer_key(text) for text in WORDS}) == len(WORDS)
    rows = [(value, unit) for value, unit, _ in TABLE]
    assert len({answer_key(texts[0]) for _, _, texts in TABLE}) == len(set(rows))
    for gold, right, wrong in (
        ("50%", ("50 percent",), ("50", "0.5", "1/2")),
        ("0.5", (".5",), ("50%", "50")),
        ("18", ("$18",), ("18 dollars", "€18", "18%")),
        ("18 dollars", ("18.00 dollars",), ("18", "18 euros")),
        ("New York", ("new  york.", "New York ."), ("York", "NewYork", "New York City")),
        ("The cat sat.", ("the cat\nsat",), ("the cat", "cat sat", "the cat sat down")),
    ):
        problem = user_problem("What?", gold)
        assert verify(problem, gold) and all(verify(problem, text) for text in right)
        assert not any(verify(problem, text) for text in wrong), gold


def test_a_loader_can_say_which_answers_can_hardly_be_matched():
    assert note_on_answers(["5", "New York", "$18", "-3 km", "one two three four five six"]) == ""
    note = note_on_answers(["5", ".", "One two three four five six seven."])
    assert note == (
        "of 3 answers 1 hold nothing to compare with, such as '.', and 1 have more than 6 words, "
        "and only the same words in the same order are right, such as "
        "'One two three four five six seven.'"
    )
    assert note_on_answers([]) == ""


HOSTILE = [
    "9" * 200, "9" * 100_000, "1e99999999", "9e99", "-" * 200, "1," * 100 + "000", "1,000" * 40,
    "1/" + "9" * 198, "9" * 99 + "/" + "7" * 99, "." * 200, "$" * 200, "a " * 100, "1 a " * 50,
    "1" + " a" * 99, "1" + "a" * 199 + "!", r"\boxed{" * 28, r"\boxed{" + "{" * 100 + "}" * 93,
    r"\frac{1}{" * 22, "x = " * 50, "x" * 200, "1e-99", "e" * 200, "\0", "\ud800", "９" * 200,
    "(" * 100 + "1" + ")" * 99, "9*" * 99 + "9", "1/7+" * 49 + "1/3", "9-" * 99, "1/(1-1)",
    " " * 10**6,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20] + f"#{len(text)}")
def test_hostile_answers_are_read_fast(text):
    rng = random.Random(0)
    problems = [draw_problem(family, 3, rng) for family in FAMILIES]
    problems += [user_problem("?", "5"), user_problem("?", text)]
    took = []
    for _ in range(3):  # the best of three: the machine is shared
        start = time.process_time()
        for problem in problems:
            hash(answer_key(text, problem))
            assert not verify(problem, text) or problem is problems[-1]
        took.append(time.process_time() - start)
    assert min(took) < 0.3

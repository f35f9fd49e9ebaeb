"""Problems that a user brings: a question and its answer, and nothing on how to get there.

Answers are the same where they are the same number, else where they are the same words. What is
read as a number, exactly and in the right answer as in a response:

    1234   1,234   +1234   01234   1234.    1234; commas in groups of three only
    0.5    .5      0.50                     one half
    -5     −5                               a typographic minus, U+2212
    1.5e3  1.5E+3                           1500; exponents of one or two digits
    2/4    1/2     \\frac{1}{2}              one half; not 6/3, a division still to be done
    $18    $18.00  \\$18                    18
    $18$   \\boxed{18}                      18, as LaTeX has it
    x = 5                                   5
    50%    50\\%    50 percent               50 percent, which is neither 50 nor 0.5
    18 km  18.0 km                          18 km: a unit in words is part of the answer

All else is words, which are compared without case, the number of blanks, and a final period:
'12,34', '1 234', '1 1/2', '1e400', 'five', 'New York', and a whole sentence.
"""

import re
from fractions import Fraction

from nanoreason.tasks.core import (
    NUMBER,
    RIGHT,
    Family,
    Unreadable,
    hash_bucket,
    read_statement,
    unneeded,
    wrong,
)

MANY_WORDS = 6  # a longer answer is hardly ever given in the same words
QUANTITY = re.compile(
    rf"(?:x ?= ?)?([-+]?)(?:\\?\$)?({NUMBER.pattern}|\.[0-9]+)"  # sign and number
    r"(?:e([-+]?[0-9]{1,2})|/([0-9]+))?"  # exponent or divisor
    r"( ?\\?%|(?: ?[^\W\d_]+)?(?: [^\W\d_]+)*)"  # unit
)
LATEX = (
    (r"\$(.+)\$", r"\1"),
    (r"\\boxed\{(.+)\}", r"\1"),
    (r"([-+]?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}", r"\1\2/\3"),
)


def plain(words):
    """A text without what does not count: '  New   York. ' -> 'new york'."""
    return " ".join(words.casefold().split()).removesuffix(".").rstrip()


def read_quantity(text):
    """(value, unit) of a text that is a number, perhaps with a unit, as in the table above.

    '$1,500' -> (Fraction(1500), ''), '50 percent' -> (Fraction(50), '%'); None for other texts.
    """
    text = plain(text).replace("−", "-")
    for form, bare in LATEX:
        if match := re.fullmatch(form, text):
            text = match.expand(bare)
    match = QUANTITY.fullmatch(text)
    if not match:
        return None
    sign, number, exponent, divisor, unit = match.groups()
    value = Fraction(number.replace(",", "")) * Fraction(10) ** int(exponent or 0)
    if divisor:
        if not number.isdigit() or int(divisor) == 0 or value % int(divisor) == 0:
            return None
        value /= int(divisor)
    unit = unit.strip()
    if unit in ("percent", r"\%"):
        unit = "%"
    return -value if sign == "-" else value, unit


def note_on_answers(answers):
    """What a loader should say of these right answers, or '': which can hardly be matched."""
    empty = [text for text in answers if not plain(text)]
    long = [text for text in answers if len(text.split()) > MANY_WORDS]
    notes = []
    if empty:
        notes.append(f"{len(empty)} hold nothing to compare with, such as {empty[0]!r}")
    if long:
        notes.append(
            f"{len(long)} have more than {MANY_WORDS} words, and only the same words in the same "
            f"order are right, such as {long[0][:60]!r}"
        )
    return f"of {len(answers)} answers {', and '.join(notes)}" if notes else ""


class UserData(Family):
    """Params: (question, answer).

    The same question is always in the same split, whatever the file it comes from.
    """

    name = "data"

    def answer(self, params):
        return params[1]

    def identity(self, params):
        return f"{self.name}:{params[0].strip()}"

    def split(self, params):
        """80% train, 10% val, 10% test, by the question alone, whatever its answer, case and
        blanks."""
        bucket = hash_bucket(f"{self.name}:{plain(params[0])}")
        if bucket < 70 or bucket >= 90:
            return "train"
        return "val" if bucket < 80 else "test"

    def read_answer(self, problem, text):
        """(value, unit) of a number, else the words in lower case; None where there are none."""
        return read_quantity(text) or plain(text) or None

    def check_trace(self, params, lines):
        """Judgements of a trace. Without a reference solution only arithmetic can be checked.

        A true computation is RIGHT where its result is new, a false statement WRONG, all else
        UNNEEDED.
        """
        judgements = []
        results = set()
        for _, line in lines:
            judgements.append(self.check_line(line, results))
        return judgements

    def check_line(self, line, results):
        """Judgement of one line; the result of a right one is added to those before it."""
        try:
            statement = read_statement(line)
        except Unreadable:
            return unneeded("nothing here can be checked")
        if not statement.true:
            return wrong("the two sides are not equal")
        if statement.value in results or not re.search(r"[-+*×/]|of", line):
            return unneeded("this says nothing new")
        results.add(statement.value)
        return RIGHT

    def concludes(self, params, lines):
        gold = self.normal_answer(None, params[1])
        is_number = isinstance(gold, tuple)
        return is_number and any(read_statement(line).value == gold[0] for line in lines)

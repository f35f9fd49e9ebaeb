"""What a problem is, and the exact arithmetic that judges answers and steps.

Model text is read by a small grammar over exact fractions, with limits on length and size. It is never executed.
"""

import re
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

MAX_TEXT = 200  # characters of an answer or a step that are worth reading
MAX_DIGITS = 15  # longest number that is worth reading
NUMBER = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?", re.ASCII)
TOKEN = re.compile(rf"\s*(?:({NUMBER.pattern})|([-+*×/()%x])|(of))", re.ASCII)


class Unreadable(ValueError):
    """The text is not a statement of the grammar."""


class Verdict(str, Enum):
    """RIGHT: true and of use. UNNEEDED: true, but nothing follows from it. WRONG: false, unreadable or out of nowhere."""

    RIGHT = "right"
    WRONG = "wrong"
    UNNEEDED = "unneeded"


@dataclass(frozen=True)
class Problem:
    """One question. `params` is what it asks, in canonical form; the wording of `question` is no part of its identity."""

    family: str
    level: int
    question: str
    answer: str
    params: tuple
    key: str


def parse_number(text):
    """Exact value of a whole text that is one number: '1,692', '-3.50', '3/4', '8.'; None when it is anything else."""
    text = text.strip()
    if len(text) > MAX_TEXT:
        return None
    match = re.fullmatch(rf"(-?)({NUMBER.pattern})(?:/([0-9]+))?\.?", text, re.ASCII)
    if not match or sum(c.isdigit() for c in text) > MAX_DIGITS:
        return None
    sign, number, divisor = match.groups()
    if divisor and int(divisor) == 0:
        return None
    value = Fraction(number.replace(",", "")) / int(divisor or 1)
    return -value if sign else value


def format_number(value):
    """Shortest decimal text of an exact value: 12, 4.5, 0.25. Raises ValueError where the decimals never end."""
    value = Fraction(value)
    places = next((p for p in range(12) if (value * 10**p).denominator == 1), None)
    if places is None:
        raise ValueError(f"{value} has no finite decimal form")
    return f"{float(value):.{places}f}" if places else str(value.numerator)


class _Reader:
    """Recursive descent over sum -> product -> factor, with exact fractions; `x` stands for a known number."""

    def __init__(self, text, x):
        self.tokens, self.used, self.x = [], set(), x
        end, position = len(text.rstrip()), 0
        while position < end:
            match = TOKEN.match(text, position)
            if not match or sum(c.isdigit() for c in match[0]) > MAX_DIGITS:
                raise Unreadable(text[position:])
            self.tokens.append(match[1] or match[2] or match[3])
            position = match.end()
        self.tokens.append("")

    def take(self, *wanted):
        if self.tokens[0] in wanted:
            return self.tokens.pop(0)
        return None

    def read(self):
        value = self.sum()
        if self.tokens != [""]:
            raise Unreadable(" ".join(self.tokens))
        return value

    def sum(self):
        value = self.product()
        while op := self.take("+", "-"):
            term = self.product()
            value = value + term if op == "+" else value - term
        return value

    def product(self):
        value = self.factor()
        while True:
            if op := self.take("*", "×", "/", "of"):
                factor = self.factor()
                if op == "/" and factor == 0:
                    raise Unreadable("division by zero")
                value = value / factor if op == "/" else value * factor
            elif self.tokens[0] in ("x", "("):  # 3x, 2(x + 1)
                value *= self.factor()
            else:
                return value

    def factor(self):
        if self.take("-"):
            return -self.factor()
        if self.take("("):
            value = self.sum()
            if not self.take(")"):
                raise Unreadable("no closing bracket")
            return value
        if self.take("x"):
            if self.x is None:
                raise Unreadable("no unknown here")
            return self.x
        if not self.tokens[0][:1].isdigit():
            raise Unreadable(self.tokens[0] or "end of text")
        value = Fraction(self.tokens.pop(0).replace(",", ""))
        self.used.add(value)
        return value / 100 if self.take("%") else value


def read_statement(text, x=None):
    """Read 'a = b' or 'a = b = c'. x: value of the unknown, or None where there is none.

    Returns (value of the last side, set of the numbers it builds on: all but a bare result, whether all sides are equal).
    Raises Unreadable for anything that is no such statement.
    """
    sides = text.split("=")
    if len(text) > MAX_TEXT or len(sides) < 2 or text.count("(") > 8 or text.count("-") > 20:
        raise Unreadable(text[:40])
    readers = [_Reader(side, x) for side in sides]
    values = [reader.read() for reader in readers]
    result = NUMBER.fullmatch(sides[-1].strip().lstrip("-"))  # a bare number at the end is what the line derives
    used = set().union(*(reader.used for reader in (readers[:-1] if result else readers)))
    return values[-1], used, len(set(values)) == 1


class Family:
    """A kind of problem. Subclasses say how to draw, word, answer and work one; the judging here is shared.

    draw(rng, level) -> params     canonical parameters, a tuple
    ask(params, rng) -> str        one wording of the question
    answer(params) -> str          the reference answer
    steps(params) -> list[str]     the full worked solution, one statement a line
    terse(params) -> list[str]     fewer, bolder lines: shorter, and harder to get right
    another(params) -> list[str]   a second route to the answer; [] where there is none worth showing
    check(params) -> str           a line that tests the answer by another computation; '' where there is none
    """

    name = ""
    commutative = False  # whether swapping the two parameters gives the same problem

    def steps(self, params):
        return []

    def terse(self, params):
        return self.steps(params)

    def another(self, params):
        return []

    def check(self, params):
        return ""

    def identity(self, params):
        """Text that two problems share exactly when they ask the same thing; its hash decides the split."""
        return f"{self.name}:{tuple(sorted(params)) if self.commutative else params}"

    def verify(self, problem, text):
        """Is `text` a right answer? Compared by value, so '1,692', '1692.0' and '1692' are one number."""
        return parse_number(text) == Fraction(self.answer(problem.params))

    def given(self, params):
        """Numbers that a step may use without having derived them."""
        return {Fraction(n) for n in NUMBER.findall(str(params))}

    def read(self, params, line):
        """(value, numbers used, true?) of a line; raises Unreadable."""
        return read_statement(line)

    def check_step(self, params, previous, line):
        """Verdict on `line` after the lines `previous`: its numbers must be given or derived, and its result of use."""
        try:
            value, used, true = self.read(params, line)
        except Unreadable:
            return Verdict.WRONG
        known = self.given(params)
        for earlier in previous:
            try:
                derived, _, ok = self.read(params, earlier)
            except Unreadable:
                continue
            if ok:
                known.add(derived)
        if not true or not used <= known:
            return Verdict.WRONG
        reference = self.steps(params) + self.another(params)  # a second route may pass a line again
        useful = {self.read(params, s)[0] for s in reference + self.terse(params)}
        said_enough = previous.count(line) >= max(1, reference.count(line))
        empty = not re.search(r"[-+*×/]|of|[0-9]x", line) or ("x" in line.rsplit("=", 1)[1] and line not in reference)  # x = x
        return Verdict.UNNEEDED if said_enough or empty or value not in useful else Verdict.RIGHT


def chain_lines(start, ops):
    """Lines of a running computation: chain_lines(8, [('+', 5), ('*', 3)]) -> ['8 + 5 = 13', '13 * 3 = 39']."""
    lines, value = [], start
    for op, n in ops:
        result = {"+": value + n, "-": value - n, "*": value * n, "/": value // n}[op]
        lines.append(f"{value} {op} {n} = {result}")
        value = result
    return lines


def undo_last(lines):
    """A check of the last line by its inverse: [..., '24 - 9 = 15'] -> 'Check: 15 + 9 = 24'."""
    a, op, b, _, c = lines[-1].split()
    return f"Check: {c} {dict(zip('+-*/', '-+/*'))[op]} {b} = {a}"


def place_parts(n):
    """293 -> [200, 90, 3]; zeros are left out."""
    digits = str(n)
    return [int(d) * 10 ** (len(digits) - i - 1) for i, d in enumerate(digits) if d != "0"]

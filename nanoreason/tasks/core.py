"""What a problem is, and the exact arithmetic that judges answers and steps.

Model text is read by a small grammar over exact fractions, with limits on length and size. It is never executed.
"""

import re
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from math import gcd

MAX_TEXT = 200  # characters of an answer or a step that are worth reading
MAX_STEPS = 200  # lines of a trace that are worth reading
MAX_CHECKS = 3  # checks of an answer that can be of use
MAX_TRACE = 6000  # characters of all its lines
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
class Judgement:
    """Verdict on one line, and why in a few words ('' where it is right)."""

    verdict: Verdict
    reason: str = ""


RIGHT = Judgement(Verdict.RIGHT)
UNREADABLE = Judgement(Verdict.WRONG, "this is no statement that can be checked")


def wrong(reason):
    return Judgement(Verdict.WRONG, reason)


def unneeded(reason):
    return Judgement(Verdict.UNNEEDED, reason)


@dataclass(frozen=True)
class Problem:
    """One question. `params` is what it asks, in canonical form; the wording of `question` is no part of its identity."""

    family: str
    level: int
    question: str
    answer: str
    params: tuple
    key: str


def hash_split(key):
    """The split of a key by a stable hash: 70% train, 10% val, 20% test."""
    bucket = int.from_bytes(blake2b(key.encode(), digest_size=4).digest(), "big") % 100
    return "train" if bucket < 70 else "val" if bucket < 80 else "test"


def parse_number(text):
    """Exact value of a whole text that is one number: '1,692', '-3.50', '3/4', '8.'; None when it is anything else.

    A fraction counts in lowest terms only: '3384/2' is a sum still to be done, not an answer.
    """
    text = text.strip()
    if len(text) > MAX_TEXT:
        return None
    match = re.fullmatch(rf"(-?)({NUMBER.pattern})(?:/([0-9]+))?\.?", text, re.ASCII)
    if not match or sum(c.isdigit() for c in text) > MAX_DIGITS:
        return None
    sign, number, divisor = match.groups()
    if divisor and (not number.isdigit() or int(divisor) < 2 or gcd(int(number), int(divisor)) > 1):
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

    draw(rng, level) -> params     parameters, a tuple; levels 1 to 5, and 6 where `held_out_level` says so
    ask(params, rng) -> str        one wording of the question
    answer(params) -> str          the reference answer
    steps(params) -> list[str]     the full worked solution, one statement a line
    terse(params) -> list[str]     fewer, bolder lines: shorter, and harder to get right
    another(params) -> list[str]   a second route to the answer; [] where there is none worth showing
    check(params) -> str           a line that tests the answer by another computation; '' where there is none
    """

    name = ""
    held_out_level = True  # whether there is a level 6, which training never draws
    commutative = False  # whether swapping the two parameters gives the same problem
    places = ""  # whose place parts (293 -> 200, 90, 3) are known too: 'derived' numbers, 'all', or none

    def steps(self, params):
        return []

    def terse(self, params):
        return self.steps(params)

    def another(self, params):
        return []

    def check(self, params):
        return ""

    def slip(self, line, rng):
        """The line with a mistake of the kind that people make: one digit of its result."""
        return miscalculate(line, rng)

    def identity(self, params):
        """Text that two problems share exactly when they ask the same thing."""
        return f"{self.name}:{tuple(sorted(params)) if self.commutative else params}"

    def split(self, params):
        """'train', 'val' or 'test': by the hash of the identity, unless a family holds out whole groups of problems."""
        return hash_split(self.identity(params))

    def difficulty(self, params):
        """Characters to write in the full worked solution, blanks left out: the measure behind the levels."""
        return sum(len(line.replace(" ", "")) for line in self.steps(params))

    def verify(self, problem, text):
        """Is `text` a right answer? Compared by value, so '1,692', '1692.0' and '1692' are one number."""
        return parse_number(text) == Fraction(self.answer(problem.params))

    def given(self, params):
        """Numbers that a step may use without having derived them."""
        return {Fraction(n) for n in NUMBER.findall(str(params))}

    def read(self, params, line):
        """(value, numbers used, true?) of a line; raises Unreadable."""
        return read_statement(line)

    def with_places(self, numbers):
        """The numbers and, where the family works place by place, the place parts of the whole ones.

        Numbers are known by their value: a number that happens to equal a known one counts as known.
        """
        if not self.places:
            return set(numbers)
        return set(numbers) | {Fraction(part) for n in numbers if n.denominator == 1 and n > 9 for part in place_parts(int(n))}

    @lru_cache(maxsize=4096)
    def useful(self, params):
        """How often each line may be said in the first way and in two ways together, and the values that reference solutions pass through."""
        steps, terse, another = (Counter(route) for route in (self.steps(params), self.terse(params), self.another(params)))
        return steps | terse | another, (steps + another) | terse, {self.read(params, line)[0] for line in steps | terse | another}

    def check_trace(self, params, lines):
        """Judgements of a whole trace, line by line. lines: (cue, text) pairs as strip_cue gives them.

        A right line is true, builds on numbers that are given or that an earlier line derived, and its result is of use. Lines that
        are true on known numbers derive their result, needed or not; a wrong line and a check derive nothing.
        """
        given = self.given(params)
        known, said, second, judgements = self.with_places(given) if self.places == "all" else given, Counter(), False, []
        for cue, line in lines:
            try:
                reading = self.read(params, line)
            except Unreadable:
                reading = None
            second = second or cue == "Another way"
            if cue == "Check":
                judgements.append(self.check_cue_line(params, line, reading, known, said))
            else:
                judgements.append(self.check_line(params, line, reading, known, said, second))
            said[f"Check: {line}" if cue == "Check" else line] += 1
            if cue != "Check" and reading and reading[2] and reading[1] <= known and "x" not in line.rpartition("=")[2]:  # x + 7 is no number yet
                known |= self.with_places({abs(reading[0])})  # the reader takes signs for operators
        return judgements

    def check_line(self, params, line, reading, known, said, second):
        """Judgement of one line, given what it says, the numbers known by now, how often each line was said, and whether a second way has begun."""
        if reading is None:
            return UNREADABLE
        value, used, true = reading
        if not true:
            return wrong("the two sides are not equal")
        if unknown := used - known:
            return wrong(f"{_brief(min(unknown))} is neither given nor derived")
        once, twice, values = self.useful(params)
        if said[line] >= max(1, (twice if second else once)[line]):  # a second way may pass a line again
            return unneeded("this was said before")
        if not re.search(r"[-+*×/]|of|[0-9]x", line) or ("x" in line.rsplit("=", 1)[1] and line not in once):  # x = x
            return unneeded("this says nothing new")
        return RIGHT if value in values else unneeded(f"{_brief(value)} is not needed")

    def check_cue_line(self, params, line, reading, known, said):
        """Judgement of a 'Check: ' line: the family's own, or any true statement about the answer and known numbers."""
        check = f"Check: {line}"
        if check != self.check(params):
            if reading is None:
                return UNREADABLE
            value, used, true = reading
            answer = parse_number(self.answer(params))
            if not true:
                return wrong("the check fails")
            if answer not in used | {value} or not re.search(r"[-+*×/]|of", line):
                return unneeded("this does not test the answer")
            if unknown := used - known - {answer}:
                return wrong(f"{_brief(min(unknown))} is neither given nor derived")
        if said[check] or sum(times for text, times in said.items() if text.startswith("Check: ")) >= MAX_CHECKS:
            return unneeded("this was said before" if said[check] else "this was checked enough")
        return RIGHT

    def concludes(self, params, lines):
        """Do these right lines establish the answer?"""
        answer = parse_number(self.answer(params))
        return answer is not None and any(self.read(params, line)[0] == answer for line in lines)


def _brief(value):
    try:
        return format_number(value)
    except ValueError:
        return str(value)


def miscalculate(line, rng):
    """The line with one digit of its result changed: of the number after the last '=', or of its last number."""
    spots = list(re.finditer(r"[0-9]+", line))
    match = next((m for m in spots if m.start() > line.rfind("=") >= 0), spots[-1])
    digits = match[0]
    i = rng.randrange(len(digits))
    digit = rng.choice([d for d in "123456789" if d != digits[i]])
    return line[: match.start() + i] + digit + line[match.start() + i + 1 :]


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

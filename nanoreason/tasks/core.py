"""What a problem is, and the exact arithmetic that checks answers and steps.

Text of a model is read by a small grammar over exact fractions, with limits on its length and on
the size of its numbers. It is never executed.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from math import gcd
from typing import NamedTuple

# What is beyond these limits is not read: no text can make a check slow.
MAX_TEXT = 200  # characters of an answer or of one step
MAX_STEPS = 200  # lines of a trace
MAX_TRACE = 6000  # characters of all lines of a trace
MAX_DIGITS = 15  # digits of one number

MAX_CHECKS = 3  # 'Check: ' lines per trace that can be of use

NUMBER = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?", re.ASCII)
TOKEN = re.compile(rf"\s*(?:({NUMBER.pattern})|([-+*×/()%x])|(of))", re.ASCII)


class Unreadable(ValueError):
    """The text is not a statement of the grammar."""


class Verdict(str, Enum):
    """What the checker says of one line.

    RIGHT     true and of use
    UNNEEDED  true, but said before, or no worked solution has a use for it
    WRONG     false, unreadable, or built on numbers neither given nor derived
    """

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
    """Judgement of a wrong line."""
    return Judgement(Verdict.WRONG, reason)


def unneeded(reason):
    """Judgement of a line that is true and of no use."""
    return Judgement(Verdict.UNNEEDED, reason)


@dataclass(frozen=True)
class Problem:
    """One question, with what is needed to check an answer to it.

    params  what is asked, in canonical form; how `question` words it is no part of it
    key     text that two problems share exactly when they ask the same thing
    """

    family: str
    level: int
    question: str
    answer: str
    params: tuple
    key: str


def hash_bucket(key):
    """A whole number from 0 to 99, by a stable hash of a text."""
    return int.from_bytes(blake2b(key.encode(), digest_size=4).digest(), "big") % 100


def hash_split(key):
    """The split of a key by a stable hash: 70% train, 10% val, 20% test."""
    bucket = hash_bucket(key)
    if bucket < 70:
        return "train"
    return "val" if bucket < 80 else "test"


def parse_number(text):
    """Exact value of a whole text that is one number, a Fraction; None where it is anything else.

    '1,692', '-3.50', '3/4' and '8.' are numbers. A fraction counts in lowest terms only: '3384/2'
    is a division still to be done, not an answer.
    """
    text = text.strip()
    if len(text) > MAX_TEXT:
        return None
    match = re.fullmatch(rf"(-?)({NUMBER.pattern})(?:/([0-9]+))?\.?", text, re.ASCII)
    if not match or _digits(text) > MAX_DIGITS:
        return None
    sign, number, divisor = match.groups()
    if divisor and not _in_lowest_terms(number, divisor):
        return None
    value = Fraction(number.replace(",", "")) / int(divisor or 1)
    return -value if sign else value


def _digits(text):
    """How many characters of a text are digits."""
    return sum(character.isdigit() for character in text)


def _in_lowest_terms(number, divisor):
    """Is number / divisor, both text, a fraction of whole numbers that cannot be reduced?"""
    return number.isdigit() and int(divisor) > 1 and gcd(int(number), int(divisor)) == 1


def format_number(value):
    """Shortest decimal text of an exact value: 12, 4.5, 0.25.

    Raises ValueError where it needs more than 11 decimals.
    """
    value = Fraction(value)
    places = next((p for p in range(12) if (value * 10**p).denominator == 1), None)
    if places is None:
        raise ValueError(f"{value} has no finite decimal form")
    return f"{float(value):.{places}f}" if places else str(value.numerator)


class _Reader:
    """Recursive descent over sum -> product -> factor, with exact fractions.

    x: the number that the unknown stands for, or None where there is no unknown. stand_in: the
    number to calculate with in the place of one that is read.
    """

    def __init__(self, text, x=None, stand_in=None):
        self.x = x
        self.stand_in = stand_in
        self.tokens = []
        self.used = set()  # the numbers read so far
        end = len(text.rstrip())
        position = 0
        while position < end:
            match = TOKEN.match(text, position)
            if not match or _digits(match[0]) > MAX_DIGITS:
                raise Unreadable(text[position:])
            self.tokens.append(match[1] or match[2] or match[3])
            position = match.end()
        self.tokens.append("")  # the end of the text

    def take(self, *wanted):
        """The next token, if it is one of those wanted; else None, and nothing is taken."""
        if self.tokens[0] in wanted:
            return self.tokens.pop(0)
        return None

    def read(self):
        """Value of the whole text."""
        value = self.sum()
        if self.tokens != [""]:
            raise Unreadable(" ".join(self.tokens))
        return value

    def sum(self):
        """Products with + and - between them."""
        value = self.product()
        while op := self.take("+", "-"):
            term = self.product()
            value = value + term if op == "+" else value - term
        return value

    def product(self):
        """Factors with *, / or nothing between them: '3 * 4', '10% of 80', '3x', '2(x + 1)'."""
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
        """A number, a percentage, x or a bracket, perhaps with a minus."""
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
        if self.stand_in:
            value = Fraction(self.stand_in(value))
        return value / 100 if self.take("%") else value


def evaluate(text, stand_in=None):
    """Value of an expression, a Fraction; stand_in as in _Reader. Raises Unreadable."""
    return _Reader(text, stand_in=stand_in).read()


class Statement(NamedTuple):
    """What a line 'a = b' or 'a = b = c' says."""

    value: Fraction  # of the last side; None where the line derives no number
    used: set  # Fractions that it builds on: all but a number that is the whole last side
    true: bool  # whether all sides are equal


def read_statement(text, x=None):
    """Read 'a = b' or 'a = b = c' as a Statement.

    x: the number that the unknown stands for, or None where there is no unknown.

    '8 + 5 = 13'  ->  Statement(value=13, used={8, 5}, true=True)

    Raises Unreadable for anything that is no such statement.
    """
    sides = text.split("=")
    if len(text) > MAX_TEXT or len(sides) < 2 or text.count("(") > 8 or text.count("-") > 20:
        raise Unreadable(text[:40])
    readers = [_Reader(side, x) for side in sides]
    values = [reader.read() for reader in readers]
    ends_in_result = NUMBER.fullmatch(sides[-1].strip().lstrip("-"))
    sources = readers[:-1] if ends_in_result else readers
    used = set().union(*(reader.used for reader in sources))
    return Statement(values[-1], used, len(set(values)) == 1)


class Way(NamedTuple):
    """What a solution has use for, and how often."""

    lines: Counter  # line -> how often it may be said
    results: Counter  # Fraction -> how many lines may result in it

    def __or__(self, other):
        """What either of two solutions has use for."""
        return Way(self.lines | other.lines, self.results | other.results)

    def __add__(self, other):
        """What two solutions, one after the other, have use for."""
        return Way(self.lines + other.lines, self.results + other.results)


@dataclass
class TraceState:
    """What the lines of a trace have established so far."""

    params: tuple  # of the problem
    known: set  # Fractions that a step may use: given, or derived by an earlier line
    said: Counter = field(default_factory=Counter)  # line -> how often; checks as 'Check: ' + text
    results: Counter = field(default_factory=Counter)  # Fraction -> right lines that end in it
    facts: Counter = field(default_factory=Counter)  # what a family counts besides, by tuples
    second_way: bool = False  # whether 'Another way: ' has begun

    def check_again(self, check):
        """Judgement of a sound check, 'Check: ' and text: has it been made, or enough of them?"""
        if self.said[check]:
            return unneeded("this was said before")
        checks = sum(times for line, times in self.said.items() if line.startswith("Check: "))
        return unneeded("this was checked enough") if checks >= MAX_CHECKS else RIGHT


class Family:
    """A kind of problem. Subclasses say how to draw, word, answer and work one.

    The exact checkers of answers and of steps are shared; a subclass may bring its own.

    draw(rng, level) -> params     parameters, a tuple; levels 1 to 5, 6 where `held_out_level`
    ask(params, rng) -> str        one wording of the question, by default one of `wordings`
    answer(params) -> str          the reference answer
    steps(params) -> list[str]     the full worked solution, one statement per line
    terse(params) -> list[str]     fewer and bolder lines: shorter, and harder to get right
    another(params) -> list[str]   a second route to the answer; [] where none is worth showing
    check(params) -> str           'Check: ' and another computation of the answer, or ''
    also(params) -> list           more solutions, which the checker takes and no style shows
    """

    name = ""
    wordings = ()  # of the question, with {} for each parameter
    held_out_level = True  # whether there is a level 6, which training never draws
    commutative = False  # whether swapping the two parameters gives the same problem
    # Whose place parts (293 -> 200, 90, 3) are known too: of 'derived' numbers, of 'all', or none.
    places = ""

    def ask(self, params, rng):
        return rng.choice(self.wordings).format(*params)

    def steps(self, params):
        return []

    def terse(self, params):
        return self.steps(params)

    def another(self, params):
        return []

    def check(self, params):
        return ""

    def also(self, params):
        """Lists of lines, each a solution that the checker takes and that no style shows."""
        return []

    def slip(self, line, rng):
        """The line with a mistake of the kind that people make: one digit of its result."""
        return miscalculate(line, rng)

    def identity(self, params):
        """Text that two problems share exactly when they ask the same thing."""
        return f"{self.name}:{tuple(sorted(params)) if self.commutative else params}"

    def split(self, params):
        """'train', 'val' or 'test': by the hash of the identity.

        A family that holds out whole groups of problems has its own.
        """
        return hash_split(self.identity(params))

    def difficulty(self, params):
        """Characters of the full worked solution without blanks: what the levels are ordered by.

        But for countdown's 4 and 5: five numbers are tried in fewer ways than four.
        """
        return sum(len(line.replace(" ", "")) for line in self.steps(params))

    def read_answer(self, problem, text):
        """What an answer says: a hashable form that texts share where they are the same answer.

        None where the text is no answer that can be read, and hence wrong.

        Here it is the value: '1,692', '1692.0' and '1692' are one number.
        """
        return parse_number(text)

    def normal_answer(self, problem, text):
        """As read_answer; None also where the text is too long to be read.

        The checker and the vote know an answer by this form alone, so that no vote counts a right
        and a wrong answer as one.
        """
        return self.read_answer(problem, text) if len(text) <= MAX_TEXT else None

    def is_right(self, problem, said):
        """Is an answer right? said: as from normal_answer, and not None."""
        return said == self.normal_answer(problem, self.answer(problem.params))

    def verify(self, problem, text):
        """Is `text` a right answer?"""
        said = self.normal_answer(problem, text)
        return said is not None and self.is_right(problem, said)

    def given(self, params):
        """Set of the Fractions that a step may use without having derived them."""
        return {Fraction(n) for n in NUMBER.findall(str(params))}

    def read(self, params, line):
        """Statement of a line. Raises Unreadable."""
        return read_statement(line)

    def with_places(self, numbers):
        """The numbers and, where the family works place by place, the place parts of whole ones.

        Numbers are known by their value: a number that happens to equal a known one counts as
        known.
        """
        known = set(numbers)
        if self.places:
            whole = [int(n) for n in numbers if n.denominator == 1 and n > 9]
            known |= {Fraction(part) for n in whole for part in place_parts(n)}
        return known

    @lru_cache(maxsize=4096)
    def reference(self, params):
        """(Way of the first solution in any style, Way of both solutions together)."""
        steps = self.way(params, self.steps(params))
        another = self.way(params, self.another(params))
        first = steps | another
        for lines in (self.terse(params), *self.also(params)):
            first |= self.way(params, lines)
        return first, first | (steps + another)

    def way(self, params, lines):
        """The Way of a solution, whose lines are these."""
        return Way(Counter(lines), Counter(self.read(params, line).value for line in lines))

    def check_trace(self, params, lines):
        """Judgements of a whole trace, one per line. lines: (cue, text) pairs as from strip_cue.

        A right line is true, builds on numbers that are given or that an earlier line derived,
        and has a result that is of use and new: each result counts as often as a worked solution
        reaches it, so that 13 + 5 - 5 = 13 earns nothing. A line that is true and builds on known
        numbers derives its result, needed or not. A wrong line and a check derive nothing.
        """
        given = self.given(params)
        state = TraceState(params, self.with_places(given) if self.places == "all" else given)
        judgements = []
        for cue, line in lines:
            try:
                statement = self.read(params, line)
            except Unreadable:
                statement = None
            if cue == "Another way":
                state.second_way = True
            if cue == "Check":
                judgements.append(self.check_cue_line(state, line, statement))
                state.said[f"Check: {line}"] += 1
            else:
                judgements.append(self.check_line(state, line, statement))
                state.said[line] += 1
                if judgements[-1] is RIGHT:
                    state.results[statement.value] += 1
                state.known |= self.derived(state, line, statement)
        return judgements

    def derived(self, state, line, statement):
        """Set of the Fractions that a line adds to the known ones."""
        if statement is None or not statement.true or not statement.used <= state.known:
            return set()
        if "x" in line.rpartition("=")[2]:  # x + 7 is no number yet
            return set()
        return self.with_places({abs(statement.value)})  # without sign: '-' is read as an operator

    def check_line(self, state, line, statement):
        """Judgement of one line that is no check. statement: what it says; None if unreadable."""
        if statement is None:
            return UNREADABLE
        if not statement.true:
            return wrong("the two sides are not equal")
        if unknown := statement.used - state.known:
            return wrong(f"{_shortest(min(unknown))} is neither given nor derived")
        first, both = self.reference(state.params)
        # A second way may pass again through a line of the first.
        way = both if state.second_way else first
        if state.said[line] >= max(1, way.lines[line]):
            return unneeded("this was said before")
        computes = re.search(r"[-+*×/]|of|[0-9]x", line)
        leaves_x = "x" in line.rsplit("=", 1)[1] and line not in first.lines  # x = x
        if not computes or leaves_x:
            return unneeded("this says nothing new")
        value = statement.value
        if value not in way.results:
            return unneeded(f"{_shortest(value)} is not needed")
        made_of_itself = abs(value) in statement.used and line not in first.lines  # 8 + 5 - 5 = 8
        if made_of_itself or state.results[value] >= way.results[value]:
            return unneeded(f"{_shortest(value)} is known already")
        return RIGHT

    def check_cue_line(self, state, line, statement):
        """Judgement of a 'Check: ' line; arguments as in check_line.

        Right are the family's own check and any true computation on the answer and known numbers.
        """
        check = f"Check: {line}"
        if check != self.check(state.params):
            flaw = self.flaw_of_check(state, line, statement)
            if flaw:
                return flaw
        return state.check_again(check)

    def flaw_of_check(self, state, line, statement):
        """Judgement of a check that does not test the answer; None of one that does."""
        if statement is None:
            return UNREADABLE
        if not statement.true:
            return wrong("the check fails")
        answer = parse_number(self.answer(state.params))
        on_answer = answer in statement.used | {statement.value}
        if not on_answer or not re.search(r"[-+*×/]|of", line):
            return unneeded("this does not test the answer")
        if unknown := statement.used - state.known - {answer}:
            return wrong(f"{_shortest(min(unknown))} is neither given nor derived")
        return None

    def concludes(self, params, lines):
        """Do these right lines establish the answer?"""
        answer = parse_number(self.answer(params))
        if answer is None:
            return False
        return any(self.read(params, line).value == answer for line in lines)


def by_kind(name):
    """A method of a Mixed family: that of this name of the problem's kind."""

    def method(self, params, *others):
        return getattr(self.kinds[params[0]], name)(params[1:], *others)

    return method


class Mixed(Family):
    """A family of several kinds of problem. Params: the name of a kind, then the kind's own."""

    kinds = {}  # name -> Family

    ask = by_kind("ask")
    answer = by_kind("answer")
    steps = by_kind("steps")
    terse = by_kind("terse")
    another = by_kind("another")
    check = by_kind("check")
    given = by_kind("given")
    check_trace = by_kind("check_trace")
    concludes = by_kind("concludes")


def _shortest(value):
    """A value as a decimal, or as a fraction where its decimals never end."""
    try:
        return format_number(value)
    except ValueError:
        return str(value)


def miscalculate(line, rng):
    """The line with one digit changed, of the number after the last '=' or of its last number.

    '8 + 5 = 13'  ->  '8 + 5 = 15', for instance
    """
    spots = list(re.finditer(r"[0-9]+", line))
    equals = line.rfind("=")
    match = next((m for m in spots if m.start() > equals >= 0), spots[-1])
    i = rng.randrange(len(match[0]))
    digit = rng.choice([d for d in "123456789" if d != match[0][i]])
    spot = match.start() + i
    return line[:spot] + digit + line[spot + 1 :]


def chain_lines(start, ops):
    """Lines of a running computation.

    chain_lines(8, [('+', 5), ('*', 3)])  ->  ['8 + 5 = 13', '13 * 3 = 39']
    """
    lines = []
    value = start
    for op, n in ops:
        result = {"+": value + n, "-": value - n, "*": value * n, "/": value // n}[op]
        lines.append(f"{value} {op} {n} = {result}")
        value = result
    return lines


def last_number(lines):
    """The number that the last line ends in, as text: ['8 + 5 = 13', '13 * 3 = 39'] -> '39'."""
    return lines[-1].split()[-1]


def undo_last(lines):
    """A check of the last line by its inverse: [..., '24 - 9 = 15'] -> 'Check: 15 + 9 = 24'."""
    a, op, b, _, result = lines[-1].split()
    inverse = dict(zip("+-*/", "-+/*"))[op]
    return f"Check: {result} {inverse} {b} = {a}"


def place_parts(n):
    """The parts of a whole number by its places, without zeros: 293 -> [200, 90, 3]."""
    digits = str(n)
    return [int(d) * 10 ** (len(digits) - i - 1) for i, d in enumerate(digits) if d != "0"]

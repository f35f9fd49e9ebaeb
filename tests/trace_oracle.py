"""Is a trace a sound solution? A reader for the families about numbers.

It reads the text of the question and of the lines alone. It goes by value, as the package's checker
does, and on request by meaning. By value '9 / 3 = 3' solves 4x - 3 = 9, but with other numbers in
place of 4, 3 and 9 it does not. By meaning each number of the question stands for an unknown, and a
line has to hold whatever those are. Meanings are kept as numbers modulo a prime.
"""

import ast
import operator
import random
import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import isqrt, prod
from typing import NamedTuple

from oracle import read_question

HARD = ("unreadable", "false", "nowhere", "not established")  # what no careful teacher would pass
# what leads nowhere, says nothing new, or holds for these numbers only
SOFT = ("loose", "repeated", "coincidence", "undecided")
P = 2**61 - 1
MOST_READINGS = 3000  # ways to read one line, or meanings of one number, that are worth following

CUED = re.compile(r"(?:(Wait), |(?:(Check)|(Another way)): )?(.*)", re.DOTALL)
COLUMN = re.compile(r"(\d[\d+* ]*)( = \d[\d+= ]*), write (\d+)(?:, carry (\d+))?")
LAST_DIGITS = re.compile(r"(\d) \* (\d) = (\d+), last digit (\d)")
LEFT_SIDE = re.compile(r"(\d*)(\(?)x ([-+]) (\d+)\)?")
RIGHT_SIDE = re.compile(r"((\d*)x )?(?:([-+]) )?(-?\d+)")


def divide(a, b):
    """Exact quotient: an int where that is enough."""
    if type(a) is type(b) is int and a % b == 0:
        return a // b
    return Fraction(a) / b


def multiply_meanings(a, b):
    """Product modulo P."""
    return a * b % P


def divide_meanings(a, b):
    """Quotient modulo P."""
    return a * pow(b, -1, P) % P


BY_VALUE = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: divide,
}
BY_MEANING = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: multiply_meanings,
    ast.Div: divide_meanings,
}
SIGNS = {"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div}


def defects(question, lines, by_meaning=False):
    """What is wrong with a trace; [] for a sound solution.

    Each defect is (line number or None, one of HARD and SOFT, words), in order.
    """
    asked, answer = read_question(question)
    cued = []
    for line in lines:
        wait, check, another, text = CUED.fullmatch(line).groups()
        cued.append((wait or check or another or "", text))
    if asked[0] == "primality":
        return _Primality(asked[1]).read(cued)
    return _Trace(asked, answer, by_meaning).read(cued)


# Statements


class Statement(NamedTuple):
    """'a = b = c': the syntax tree of each side, and its numbers from left to right."""

    trees: list
    numbers: list
    bare: bool  # the last side is nothing but a number: the result
    works: bool  # something is worked out on some side
    x_alone: bool  # a side is nothing but x
    x_last: bool  # x is in the last side


@lru_cache(maxsize=2000)
def parse(text, of=""):
    """The Statement of a line, None where it is none.

    of: the number whose 10%, 5% and 1% are counted, if any; such a rate is no number of the line.
    """
    text = text.replace("×", "*")
    if of:
        text = re.sub(rf"\b(10|5|1)% of (?={of}\b)", r"rate(\1) * ", text)
    text = re.sub(r"(\d)% of ", r"\1 / 100 * ", text)
    text = re.sub(r"(\d)\s*(?=x|\()", r"\1 * ", text)
    if not re.fullmatch(r"(?:[-+*/()=x. \d]|rate)+", text) or re.search(r"\*\*|//|==", text):
        return None
    try:
        trees = [ast.parse(side.strip(), mode="eval").body for side in text.split("=")]
        numbers = [_numbers(tree) for tree in trees]
    except (SyntaxError, ValueError):
        return None
    kinds = [{type(node) for node in ast.walk(tree)} for tree in trees]
    return Statement(
        trees,
        numbers,
        bare=not kinds[-1] & {ast.BinOp, ast.Name},
        works=any(some & {ast.BinOp, ast.Call} for some in kinds),
        x_alone=any(isinstance(tree, ast.Name) for tree in trees),
        x_last=ast.Name in kinds[-1],
    )


def _numbers(tree):
    """The numbers of a tree from left to right. Raises ValueError for what is no arithmetic."""
    if isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
        return [tree.value if type(tree.value) is int else Fraction(str(tree.value))]
    if isinstance(tree, ast.BinOp) and type(tree.op) in BY_VALUE:
        return _numbers(tree.left) + _numbers(tree.right)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return _numbers(tree.operand)
    is_x = isinstance(tree, ast.Name) and tree.id == "x"
    is_rate = isinstance(tree, ast.Call) and tree.func.id == "rate"
    if is_x or is_rate:
        return []
    raise ValueError(ast.dump(tree))


def compute(tree, operations, numbers, x=None):
    """Value of a tree. numbers: iterator over what its numbers stand for, from left to right."""
    if isinstance(tree, ast.BinOp):
        left = compute(tree.left, operations, numbers, x)
        right = compute(tree.right, operations, numbers, x)
        return operations[type(tree.op)](left, right)
    if isinstance(tree, ast.UnaryOp):
        return -compute(tree.operand, operations, numbers, x)
    if isinstance(tree, ast.Call):
        return operations[ast.Div](tree.args[0].value, 100)
    if isinstance(tree, ast.Name):
        if x is None:
            raise ValueError("no unknown here")
        return x
    return next(numbers)


def place_parts(n):
    """293 -> [(2, 100), (9, 10), (3, 1)]"""
    digits = str(abs(n))
    tens = [10 ** (len(digits) - 1 - i) for i in range(len(digits))]
    return [(int(digit), ten) for digit, ten in zip(digits, tens) if digit != "0"]


class Line(NamedTuple):
    """What a line does for the rest of its trace."""

    value: object = None  # the number that it derives
    used: tuple = ()  # numbers that it uses
    meanings: object = None  # what it can mean, a set, if it ends in the answer


NO_USE = Line()


class _Trace:
    """The numbers known by now, each with its meanings, while a trace is read line by line."""

    def __init__(self, asked, answer, by_meaning):
        self.kind = asked[0]
        self.asked = asked[1:]
        self.answer = answer
        self.by_meaning = by_meaning
        self.rng = random.Random(str(asked))
        self.known = {}
        self.derived = []  # (number of a line, what it derives)
        self.defects = []
        # the unknown of an equation, by value and by meaning
        self.x = None
        self.x_meaning = None
        # the whole of a percentage, as text
        self.of = ""
        # the columns of a sum or product, lowest place first, and how many are done
        self.columns = []
        self.in_columns = None  # what they come to
        self.column = 0
        read_given = {
            "sum": self._sum,
            "product": self._product,
            "chain": self._chain,
            "story": self._story,
            "percent": self._percent,
            "equation": self._equation,
        }
        self.target = read_given[self.kind](*self.asked) % P

    # What the question gives. Each of these returns the meaning of the answer.

    def add(self, value, meaning=None):
        """A known number and its meaning: something of its own, unless that is said."""
        meaning = self.rng.randrange(1, P) if meaning is None else meaning % P
        self.known.setdefault(value, set()).add(meaning)
        return meaning

    def add_digits(self, n):
        """A number as the sum of its place parts.

        A factor of 1, 10 or 100 is just that: '1 * 7 = 7' may go without saying.
        """
        total = 0
        for digit, ten in place_parts(n):
            meaning = ten if digit == 1 else ten * self.rng.randrange(1, P)
            total += self.add(digit * ten, meaning)
        return self.add(n, total)

    def add_columns(self, terms, total):
        """Columns of these terms, (place, digit) or (place, digit, digit) each, and of carries.

        A column is (its sorted terms, whether a carry is written). 25 + 17: the terms (0, 5),
        (1, 2), (0, 7), (1, 1) make the columns ([(5,), (7,)], True), ([(1,), (1,), (2,)], True).
        """
        carry = 0
        last = max(place for place, *_ in terms)
        for place in range(last + 1):
            column = [tuple(sorted(digits)) for where, *digits in terms if where == place]
            column += [(carry,)] * (carry > 0)
            self.columns.append((sorted(column), self.kind == "sum" or place < last))
            carry = sum(map(prod, column)) // 10
        self.in_columns = total

    def _sum(self, a, b):
        terms = [term for n in (a, b) for term in enumerate(map(int, str(n)[::-1]))]
        self.add_columns(terms, a + b)
        return self.add_digits(a) + self.add_digits(b)

    def add_product_columns(self, a, b):
        """The columns of a product: every digit of a times every digit of b."""
        self.add_columns([
            (i + j, int(x), int(y))
            for i, x in enumerate(str(a)[::-1])
            for j, y in enumerate(str(b)[::-1])
        ], a * b)

    def _product(self, a, b):
        self.add_product_columns(a, b)
        return self.add_digits(a) * self.add_digits(b)

    def _chain(self, text):
        chain = parse(f"{text} = 0")
        numbers = [self.add(n) for n in chain.numbers[0]]
        return compute(chain.trees[0], BY_MEANING, iter(numbers))

    def _story(self, start, events):
        value = prod(map(self.add, start)) if isinstance(start, tuple) else self.add(start)
        for op, n in events:
            value = BY_MEANING[SIGNS[op]](value, self.add(n))
        return value

    def _percent(self, p, n):
        """p is some tens, perhaps a five, and some ones; a single ten or one needs no factor."""
        self.of = str(n)
        self.add_product_columns(n, p)
        tens, ones = (self.add(k) if k > 1 else k for k in (p // 10, p % 5))
        fives = p % 10 // 5 * 5
        p_means = self.add(p, 10 * tens + fives + ones)
        return p_means * self.add(n) * pow(self.add(100, 100), -1, P)

    def _equation(self, left, right):
        """a(x + b) = cx + d or ax + b = cx + d.

        Known are these numbers, a - c, and a * b where there is a bracket.
        """
        a, bracket, b_sign, b = LEFT_SIDE.fullmatch(left).groups()
        cx, c, d_sign, d = RIGHT_SIDE.fullmatch(right).groups()
        a = int(a or 1)
        b = int(b)
        c = int(c or 1) if cx else 0
        d = int(f"{d_sign or ''}{d}")
        c_means = self.add(c, 1 if c == 1 else None) if cx else 0
        a_means = self.add(a, c_means + 1 if a - c == 1 else None)
        b_means = self.add(b)
        d_means = self.add(abs(d))
        self.add(a - c, a_means - c_means)
        if bracket:
            b_means = self.add(a * b, a_means * b_means)
        signed_b = b_means if b_sign == "+" else -b_means
        signed_d = d_means if d > 0 else -d_means
        self.x = self.answer
        self.x_meaning = (signed_d - signed_b) * pow(a_means - c_means, -1, P) % P
        return self.x_meaning

    # The lines

    def defect(self, i, kind, words=""):
        """Note a defect of line i; None: of the whole trace."""
        self.defects.append((i, kind, words))

    def read(self, cued):
        """The defects of a trace. cued: (cue, text) of each line."""
        used = []
        said = Counter()
        answers = []  # what the lines that end in the answer can mean
        for i, (cue, text) in enumerate(cued):
            if cue == "Another way":
                said = Counter()
                if i and not answers and not self.column:
                    self.defect(None, "loose", "the first way is not finished")
            line = self.line(i, cue, text, said)
            said[cue == "Check", text] += 1
            used.append(line.used)
            if cue != "Check":
                self.derived += [(i, line.value)] if line.value is not None else []
                answers += [line.meanings] if line.meanings is not None else []
        if 0 < self.column < len(self.columns):
            self.defect(None, "loose", "the columns are not finished")
        self.check_answers(answers)
        for i, value in self.derived:
            if value != self.answer and not self.is_used(value, used[i + 1 :]):
                self.defect(i, "loose", cued[i][1])
        return self.defects

    def check_answers(self, answers):
        """Some line has to end in the answer, and to mean what is asked."""
        if not answers:
            self.defect(None, "not established")
        elif self.by_meaning:
            meant = set().union(*answers)
            if self.target not in meant:
                kind = "undecided" if None in meant else "coincidence"
                self.defect(None, kind, "it is not this that is asked")

    def is_used(self, value, used):
        """Do later lines use a number, or a place part of it where percentages are added up?"""
        wanted = {abs(value)}
        if self.kind == "percent" and value == int(value):
            wanted |= {digit * ten for digit, ten in place_parts(value)}
        return not wanted.isdisjoint(set().union(*used))

    def line(self, i, cue, text, said):
        """Read one line. said: how often each line was said by now."""
        if self.columns and ", write " in text:
            return self.column_line(i, text)
        if self.kind == "product" and cue == "Check":
            if last := LAST_DIGITS.fullmatch(text):
                return self.last_digits_line(i, text, *map(int, last.groups()))
        statement = parse(text, self.of)
        if not statement:
            self.defect(i, "unreadable", text)
            return NO_USE
        try:
            values = [
                compute(tree, BY_VALUE, iter(numbers), self.x)
                for tree, numbers in zip(statement.trees, statement.numbers)
            ]
        except (ValueError, ZeroDivisionError):
            self.defect(i, "unreadable", text)
            return NO_USE
        return self.statement_line(i, cue, text, said, statement, values)

    def statement_line(self, i, cue, text, said, statement, values):
        """A line 'a = b = c' whose sides have these values."""
        sides = len(statement.trees) - statement.bare  # what it builds on: all but a bare result
        used = [n for numbers in statement.numbers[:sides] for n in numbers]
        allowed = {self.answer} if cue == "Check" else set()
        if any(value != values[0] for value in values):
            self.defect(i, "false", text)
        elif self.skips_columns(used, values[-1]):
            self.defect(i, "not established", text)
        elif self.rounds(statement.trees, used):
            pass
        elif unknown := [n for n in used if n not in self.known and n not in allowed]:
            self.defect(i, "nowhere", f"{unknown[0]} in {text}")
        elif not statement.works:
            self.defect(i, "repeated", text)
        else:
            times = said[cue == "Check", text]
            return self.derivation(i, text, times, statement, values[-1], used)
        return Line(None, used)

    def derivation(self, i, text, times, statement, value, used):
        """A true line from known numbers, said `times` times before. Its result becomes known."""
        sides = len(statement.trees) - statement.bare
        meanings = self.meanings(statement.trees[:sides], used) if self.by_meaning else set()
        if self.by_meaning and not meanings:
            self.defect(i, "coincidence", text)
        if self.by_meaning and times >= max(1, len(meanings)):
            self.defect(i, "repeated", text)
        solves = self.x is None or statement.x_alone
        concludes = statement.bare and value == self.answer and solves
        if not statement.x_last and all(n in self.known for n in used):
            self.learn(value, meanings)
        return Line(value if self.x is None else None, used, meanings if concludes else None)

    def last_digits_line(self, i, text, a, b, ab, digit):
        """'Check: 6 * 7 = 42, last digit 2' of a product whose factors end in 6 and 7."""
        last_digits = sorted(n % 10 for n in self.asked)
        if a * b != ab or ab % 10 != digit or sorted((a, b)) != last_digits:
            self.defect(i, "false", text)
        return NO_USE

    def skips_columns(self, used, value):
        """Does a line say at once what columns that are not finished come to?"""
        begun = 0 < self.column < len(self.columns)
        return begun and value == self.in_columns and set(used) <= set(self.asked)

    def column_line(self, i, text):
        """'5 + 7 = 12, write 2, carry 1': the next column of a sum or product not known yet.

        The last one ends a sum or product that is asked for. Its numbers are digits, and derive
        nothing else.
        """
        column = COLUMN.fullmatch(text)
        statement = parse(text.split(", write ")[0]) if column else None
        if not statement:
            self.defect(i, "unreadable", text)
            return NO_USE
        totals = {
            compute(tree, BY_VALUE, iter(numbers))
            for tree, numbers in zip(statement.trees, statement.numbers)
        }
        terms = [tuple(sorted(map(int, term.split(" * ")))) for term in column[1].split(" + ")]
        carries = column[4] is not None
        write = int(column[3])
        written = write + 10 * int(column[4] or 0)
        if totals != {written} or (carries and write > 9):
            self.defect(i, "false", text)
        elif not self.column and any(value == self.in_columns for _, value in self.derived):
            self.defect(i, "repeated", text)
        elif self.columns[self.column : self.column + 1] == [(sorted(terms), carries)]:
            self.column += 1
            if self.column == len(self.columns) and self.in_columns == self.answer:
                self.learn(self.answer, {self.target})
                return Line(meanings={self.target})
        else:
            done = self.columns[: self.column]
            repeated = (sorted(terms), carries) in done
            self.defect(i, "repeated" if repeated else "nowhere", text)
        return NO_USE

    def rounds(self, trees, used):
        """Is this '293 = 300 - 7', which writes a factor in another way?

        Its new numbers are known from then on.
        """
        if self.kind != "product" or len(trees) != 2 or len(used) != 3:
            return False
        is_difference = isinstance(getattr(trees[1], "op", None), ast.Sub)
        if used[0] not in self.asked or not is_difference:
            return False
        for whole in list(self.known[used[0]]):
            small = self.add(used[2], 1 if used[2] == 1 else None)
            self.add(used[1], whole + small)
        return True

    def meanings(self, trees, used):
        """What the result of a line can mean, so that all its sides mean the same.

        {None} where there are too many ways to read it.
        """
        choices = [self.known.get(n, {self.target}) for n in used]
        if prod(map(len, choices)) > MOST_READINGS or any(None in some for some in choices):
            return {None}
        found = set()
        for reading in product(*choices):
            numbers = iter(reading)
            sides = {compute(tree, BY_MEANING, numbers, self.x_meaning) % P for tree in trees}
            found |= sides if len(sides) == 1 else set()
        return found

    def learn(self, value, meanings):
        """A derived number, and its place parts where the work goes place by place."""
        meanings = {m if m is None or value > 0 else -m % P for m in meanings}
        value = abs(value)
        old = self.known.setdefault(value, set())
        new = meanings - old
        old |= {None} if len(old) + len(new) > MOST_READINGS else new
        if self.kind not in ("sum", "product", "percent") or value != int(value):
            return
        parts = place_parts(int(value))
        if len(parts) < 2:
            return
        for digit, ten in parts:
            self.known.setdefault(digit * ten, set())
        for m in new:
            means = [self.add(digit * ten) for digit, ten in parts[:-1]]
            self.add(prod(parts[-1]), None if m is None else m - sum(means))


# Primes


def primes_up_to(n):
    """The primes from 2 to n."""
    return [p for p in range(2, n + 1) if all(p % d for d in range(2, isqrt(p) + 1))]


class _Primality:
    """The lines of a trace about whether n is prime.

    A prime needs a remainder from every prime up to its root. Two factors are enough for any other
    number, or one that leaves no remainder. Each rule takes the numbers of its line and returns the
    kind of its defect, or "".
    """

    def __init__(self, n):
        self.n = n
        self.tried = set()  # numbers that leave a remainder
        self.divide = set()  # numbers that leave none
        self.established = False
        self.is_check = False  # whether this line is a check, which establishes nothing
        self.rules = (
            (r"(\d+) / (\d+) leaves (\d+)", self.remainder),
            (r"(\d+) \* (\d+) \+ (\d+) = (\d+)", self.remainder_by_product),
            (r"by (\d+): ([\d, ]+)", self.remainder_by_division),
            (r"(\d+) divides (\d+), so (\d+) is not prime", self.divides),
            (r"(\d+) = (\d+) \* (\d+), so (\d+) is not prime", self.not_prime),
            (r"(\d+) \* (\d+) = (\d+) > (\d+), so (\d+) is prime", self.prime_by_square),
            (r"no prime up to (\d+) divides (\d+), so (\d+) is prime", self.prime),
        )
        self.check_rules = (*self.rules, (r"(\d+) \* (\d+) = (\d+)", self.product))

    def read(self, cued):
        """The defects of a trace. cued: (cue, text) of each line."""
        found = []
        said = set()
        for i, (cue, text) in enumerate(cued):
            if cue == "Another way":
                said = set()
                if i and not self.established:
                    found.append((None, "loose", "the first way is not finished"))
            line = cue == "Check", text
            kind = self.line(cue, text) or ("repeated" if line in said else "")
            said.add(line)
            if kind:
                found.append((i, kind, text))
        return found if self.established else [*found, (None, "not established", "")]

    def line(self, cue, text):
        """The kind of a line's defect, by the rule for what it says."""
        self.is_check = cue == "Check"
        rules = self.check_rules if self.is_check else self.rules
        for pattern, rule in rules:
            if match := re.fullmatch(pattern, text):
                return rule(*map(int, re.findall(r"\d+", " ".join(match.groups()))))
        return "unreadable"

    def remainder(self, m, p, rest):
        if m != self.n:
            return "nowhere"
        return self.trial(p, rest) if p and m % p == rest else "false"

    def remainder_by_product(self, p, q, rest, m):
        if m != self.n:
            return "nowhere"
        return self.trial(p, rest) if p * q + rest == m and rest < p else "false"

    def remainder_by_division(self, p, *said):
        """Each number is ten times what the digits before it leave, and the next digit.

        Those below p are left out; the last one is what all digits leave.
        """
        if not p:
            return "false"
        digits = str(self.n)
        starts = [int(digits[:length] or 0) for length in range(len(digits))]
        numbers = [10 * (start % p) + int(digit) for start, digit in zip(starts, digits)]
        rest = self.n % p
        if list(said) != [number for number in numbers if number >= p] + [rest]:
            return "false"
        return self.trial(p, rest)

    def divides(self, p, m, again):
        if not m == again == self.n:
            return "nowhere"
        if p in (0, 1, m) or m % p:
            return "false"
        if p not in self.divide:
            return "not established"
        self.established |= not self.is_check
        return ""

    def trial(self, p, rest):
        """A true remainder; what is left by a number that is no prime is of no use."""
        if not self.is_check:
            (self.tried if rest else self.divide).add(p)
        return "" if p in primes_up_to(p) else "loose"

    def not_prime(self, m, p, q, again):
        if not m == again == self.n:
            return "nowhere"
        if p * q != m or 1 in (p, q):
            return "false"
        self.established |= not self.is_check
        return ""

    def prime_by_square(self, p, q, square, m, again):
        if not m == again == self.n:
            return "nowhere"
        if p != q or square != p * p or square <= m:
            return "false"
        return self.conclude(needed=primes_up_to(p - 1), shown=self.tried)

    def prime(self, p, m, again):
        if not m == again == self.n:
            return "nowhere"
        shown = self.tried & set(primes_up_to(p))
        return self.conclude(needed=primes_up_to(isqrt(m)), shown=shown)

    def conclude(self, needed, shown):
        """A conclusion that needs remainders from some primes, where these have been shown."""
        if set(needed) - shown:
            return "not established"
        self.established |= not self.is_check
        return ""

    def product(self, p, q, m):
        if m != self.n:
            return "nowhere"
        return "" if p * q == m else "false"

"""Is a trace a sound solution? A reader from the text of the question and of the lines alone, for the families about numbers.

It judges by value, as the judge of the package does, and on request by meaning: by value '9 / 3 = 3' solves 4x - 3 = 9, but with other
numbers in place of 4, 3 and 9 it does not. Each number of the question then stands for an unknown, and a line has to hold whatever those
are; meanings are kept as numbers modulo a prime.
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
SOFT = ("loose", "repeated", "coincidence", "undecided")  # what leads nowhere, says nothing new, or holds for these numbers only
P = 2**61 - 1
BY_VALUE = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: lambda a, b: a // b if type(a) is type(b) is int and a % b == 0 else Fraction(a) / b}
BY_MEANING = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: lambda a, b: a * b % P, ast.Div: lambda a, b: a * pow(b, -1, P) % P}
MOST_READINGS = 3000  # ways to read one line, or meanings of one number, that are worth following
COLUMN = re.compile(r"(\d(?: \+ \d){1,2}) = (\d+), write (\d), carry (\d)")


def defects(question, lines, by_meaning=False):
    """What is wrong with a trace: (line number or None, one of HARD and SOFT, words) in order; [] for a sound solution."""
    asked, answer = read_question(question)
    cued = [re.fullmatch(r"(?:(Wait), |(?:(Check)|(Another way)): )?(.*)", line, re.DOTALL) for line in lines]
    cued = [(m[1] or m[2] or m[3] or "", m[4]) for m in cued]
    if asked[0] == "primality":
        return _primality(asked[1], cued)
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
    text = re.sub(r"(\d)\s*(?=x|\()", r"\1 * ", re.sub(r"(\d)% of ", r"\1 / 100 * ", text))
    if not re.fullmatch(r"(?:[-+*/()=x. \d]|rate)+", text) or re.search(r"\*\*|//|==", text):
        return None
    try:
        trees = [ast.parse(side.strip(), mode="eval").body for side in text.split("=")]
        numbers = [_numbers(tree) for tree in trees]
    except (SyntaxError, ValueError):
        return None
    kinds = [{type(node) for node in ast.walk(tree)} for tree in trees]
    bare, works = not kinds[-1] & {ast.BinOp, ast.Name}, any(some & {ast.BinOp, ast.Call} for some in kinds)
    return Statement(trees, numbers, bare, works, any(isinstance(tree, ast.Name) for tree in trees), ast.Name in kinds[-1])


def _numbers(tree):
    """The numbers of a tree from left to right. Raises ValueError for what is no arithmetic."""
    if isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
        return [tree.value if type(tree.value) is int else Fraction(str(tree.value))]
    if isinstance(tree, ast.BinOp) and type(tree.op) in BY_VALUE:
        return _numbers(tree.left) + _numbers(tree.right)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return _numbers(tree.operand)
    if isinstance(tree, ast.Name) and tree.id == "x" or isinstance(tree, ast.Call) and tree.func.id == "rate":
        return []
    raise ValueError(ast.dump(tree))


def compute(tree, operations, numbers, x=None):
    """Value of a tree. numbers: iterator over what its numbers stand for, from left to right."""
    if isinstance(tree, ast.BinOp):
        left = compute(tree.left, operations, numbers, x)
        return operations[type(tree.op)](left, compute(tree.right, operations, numbers, x))
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
    return [(int(d), 10**i) for i, d in reversed(list(enumerate(reversed(str(abs(n)))))) if d != "0"]


class _Trace:
    """The numbers known by now, each with its meanings, while the lines of a trace are read one by one."""

    def __init__(self, asked, answer, by_meaning):
        self.kind, self.asked, self.answer, self.by_meaning = asked[0], asked[1:], answer, by_meaning
        self.rng, self.known, self.defects = random.Random(str(asked)), {}, []
        self.x = self.x_meaning = None
        self.of, self.columns, self.column = "", [], 0
        self.target = getattr(self, f"_{self.kind}")(*self.asked) % P

    # What the question gives. Each of these returns the meaning of the answer.

    def add(self, value, meaning=None):
        """A known number and its meaning: something of its own, unless that is said."""
        meaning = self.rng.randrange(1, P) if meaning is None else meaning % P
        self.known.setdefault(value, set()).add(meaning)
        return meaning

    def add_digits(self, n):
        """A number as the sum of its place parts. A factor of 1, 10 or 100 is just that: '1 * 7 = 7' may go without saying."""
        return self.add(n, sum(self.add(d * ten, ten if d == 1 else ten * self.rng.randrange(1, P)) for d, ten in place_parts(n)))

    def _sum(self, a, b):
        digits, carry = [str(n)[::-1] for n in (a, b)], 0
        for i in range(max(map(len, digits))):
            self.columns.append(sorted([int(d[i]) for d in digits if i < len(d)] + [carry] * (carry > 0)))
            carry = sum(self.columns[-1]) // 10
        return self.add_digits(a) + self.add_digits(b)

    def _product(self, a, b):
        return self.add_digits(a) * self.add_digits(b)

    def _chain(self, text):
        chain = parse(f"{text} = 0")
        return compute(chain.trees[0], BY_MEANING, iter([self.add(n) for n in chain.numbers[0]]))

    def _story(self, start, events):
        value = prod(map(self.add, start)) if isinstance(start, tuple) else self.add(start)
        for op, n in events:
            value = BY_MEANING[{"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div}[op]](value, self.add(n))
        return value

    def _percent(self, p, n):
        """p is some tens, perhaps a five, and some ones; a single ten or one needs no factor."""
        self.of = str(n)
        tens, ones = (self.add(k) if k > 1 else k for k in (p // 10, p % 5))
        return self.add(p, 10 * tens + p % 10 // 5 * 5 + ones) * self.add(n) * pow(self.add(100, 100), -1, P)

    def _equation(self, left, right):
        """a(x + b) = cx + d or ax + b = cx + d: these numbers, a - c, and a * b where there is a bracket."""
        a, bracket, b_sign, b = re.fullmatch(r"(\d*)(\(?)x ([-+]) (\d+)\)?", left).groups()
        cx, c, d_sign, d = re.fullmatch(r"((\d*)x )?(?:([-+]) )?(-?\d+)", right).groups()
        a, b, c, d = int(a or 1), int(b), int(c or 1) if cx else 0, int(f"{d_sign or ''}{d}")
        c_means = self.add(c, 1 if c == 1 else None) if cx else 0
        a_means = self.add(a, c_means + 1 if a - c == 1 else None)
        b_means, d_means = self.add(b), self.add(abs(d))
        self.add(a - c, a_means - c_means)
        if bracket:
            b_means = self.add(a * b, a_means * b_means)
        self.x, gap = self.answer, (d_means if d > 0 else -d_means) - (b_means if b_sign == "+" else -b_means)
        self.x_meaning = gap * pow(a_means - c_means, -1, P) % P
        return self.x_meaning

    # The lines

    def defect(self, i, kind, words=""):
        self.defects.append((i, kind, words))

    def read(self, cued):
        derived, used, said, answers = [], [], Counter(), []  # answers: what the lines that end in it can mean
        for i, (cue, text) in enumerate(cued):
            if cue == "Another way":
                said = Counter()
                if i and not answers and not self.column:
                    self.defect(None, "loose", "the first way is not finished")
            value, numbers, meanings = self.line(i, cue, text, said)
            said[cue == "Check", text] += 1
            used.append(numbers)
            if cue != "Check":
                derived += [(i, value)] if value is not None else []
                answers += [meanings] if meanings is not None else []
        if 0 < self.column < len(self.columns):
            self.defect(None, "loose", "the columns are not finished")
        if not answers:
            self.defect(None, "not established")
        elif self.by_meaning and self.target not in (meant := set().union(*answers)):
            self.defect(None, "undecided" if None in meant else "coincidence", "it is not this that is asked")
        for i, value in derived:
            parts = {d * ten for d, ten in place_parts(value)} if self.kind == "percent" and value == int(value) else set()
            if value != self.answer and not (parts | {abs(value)}).intersection(*[set().union(*used[i + 1 :])]):
                self.defect(i, "loose", cued[i][1])
        return self.defects

    def line(self, i, cue, text, said):
        """(number that the line derives or None, numbers it uses, what it can mean if it ends in the answer, else None)"""
        if self.kind == "sum" and ", write " in text:
            return self.column_line(i, text)
        if self.kind == "product" and cue == "Check" and (last := re.fullmatch(r"(\d) \* (\d) = (\d+), last digit (\d)", text)):
            a, b, ab, digit = map(int, last.groups())
            if a * b != ab or ab % 10 != digit or sorted((a, b)) != sorted(n % 10 for n in self.asked):
                self.defect(i, "false", text)
            return None, (), None
        if not (statement := parse(text, self.of)):
            self.defect(i, "unreadable", text)
            return None, (), None
        trees = statement.trees
        try:
            values = [compute(tree, BY_VALUE, iter(numbers), self.x) for tree, numbers in zip(trees, statement.numbers)]
        except (ValueError, ZeroDivisionError):
            self.defect(i, "unreadable", text)
            return None, (), None
        sides = len(trees) - statement.bare  # those that the line builds on: all but a bare result
        used = [n for numbers in statement.numbers[:sides] for n in numbers]
        if any(value != values[0] for value in values):
            self.defect(i, "false", text)
        elif self.rounds(trees, used):
            return None, used, None
        elif unknown := [n for n in used if n not in self.known and not (cue == "Check" and n == self.answer)]:
            self.defect(i, "nowhere", f"{unknown[0]} in {text}")
        elif not statement.works:
            self.defect(i, "repeated", text)
        else:
            meanings = self.meanings(trees[:sides], used) if self.by_meaning else set()
            if self.by_meaning and not meanings:
                self.defect(i, "coincidence", text)
            if self.by_meaning and said[cue == "Check", text] >= max(1, len(meanings)):
                self.defect(i, "repeated", text)
            concludes = statement.bare and values[-1] == self.answer and (self.x is None or statement.x_alone)
            if not statement.x_last and all(n in self.known for n in used):
                self.learn(values[-1], meanings)
            return values[-1] if self.x is None else None, used, meanings if concludes else None
        return None, used, None

    def column_line(self, i, text):
        column = COLUMN.fullmatch(text)
        if not column:
            self.defect(i, "unreadable", text)
            return None, (), None
        digits, (total, write, carry) = sorted(map(int, column[1].split(" + "))), map(int, column.groups()[1:])
        if sum(digits) != total or total != 10 * carry + write:
            self.defect(i, "false", text)
        elif self.columns[self.column : self.column + 1] == [digits]:
            self.column += 1
            if self.column == len(self.columns):
                self.learn(self.answer, {self.target})
                return None, (), {self.target}
        else:
            self.defect(i, "repeated" if digits in self.columns[: self.column] else "nowhere", text)
        return None, (), None

    def rounds(self, trees, used):
        """Is this '293 = 300 - 7', which writes a factor in another way? Its new numbers are known from then on."""
        if self.kind != "product" or [len(trees), len(used)] != [2, 3] or used[0] not in self.asked or not isinstance(getattr(trees[1], "op", None), ast.Sub):
            return False
        for whole in list(self.known[used[0]]):
            self.add(used[1], whole + self.add(used[2], 1 if used[2] == 1 else None))
        return True

    def meanings(self, trees, used):
        """What the result of a line can mean, so that all its sides mean the same; {None} where there are too many ways to read it."""
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
        value, new = abs(value), meanings - self.known.setdefault(abs(value), set())
        self.known[value] |= {None} if len(self.known[value]) + len(new) > MOST_READINGS else new
        if self.kind in ("sum", "product", "percent") and value == int(value) and len(parts := place_parts(int(value))) > 1:
            self.known.update((d * ten, self.known.get(d * ten, set())) for d, ten in parts)
            for m in new:
                means = [self.add(d * ten) for d, ten in parts[:-1]]
                self.add(prod(parts[-1]), None if m is None else m - sum(means))


def primes_up_to(n):
    return [p for p in range(2, n + 1) if all(p % d for d in range(2, isqrt(p) + 1))]


def _primality(n, cued):
    """A prime needs a remainder from every prime up to its root; two factors are enough for any other number."""
    defects, tried, said, established = [], set(), set(), False
    for i, (cue, text) in enumerate(cued):
        if cue == "Another way":
            said = set()
            if i and not established:
                defects.append((None, "loose", "the first way is not finished"))
        kind = ""
        if trial := re.fullmatch(r"(\d+) / (\d+) leaves (\d+)", text):
            m, p, rest = map(int, trial.groups())
            kind = "nowhere" if m != n else "false" if not p or n % p != rest else ""
        elif trial := re.fullmatch(r"(\d+) \* (\d+) \+ (\d+) = (\d+)", text):
            p, q, rest, m = map(int, trial.groups())
            kind = "nowhere" if m != n else "false" if p * q + rest != n or rest >= p else ""
        elif factors := re.fullmatch(r"(\d+) = (\d+) \* (\d+), so (\d+) is not prime", text):
            m, p, q, again = map(int, factors.groups())
            kind = "nowhere" if not m == again == n else "false" if p * q != n or 1 in (p, q) else ""
            established |= not kind
        elif root := re.fullmatch(r"(\d+) \* (\d+) = (\d+) > (\d+), so (\d+) is prime", text):
            p, q, square, m, again = map(int, root.groups())
            left = set(primes_up_to(p - 1)) - tried
            kind = "nowhere" if not m == again == n else "false" if not p == q or square != p * p or square <= n else "not established" if left else ""
            established |= not kind
        elif none := re.fullmatch(r"no prime up to (\d+) divides (\d+), so (\d+) is prime", text):
            p, m, again = map(int, none.groups())
            kind = "nowhere" if not m == again == n else "not established" if set(primes_up_to(isqrt(n))) - (tried & set(primes_up_to(p))) else ""
            established |= not kind
        elif cue == "Check" and (factors := re.fullmatch(r"(\d+) \* (\d+) = (\d+)", text)):
            p, q, m = map(int, factors.groups())
            kind = "nowhere" if m != n else "false" if p * q != n else ""
        else:
            kind = "unreadable"
        if trial and not kind:
            tried |= {p} if rest else set()
            kind = "loose" if p not in primes_up_to(p) else ""
        kind = kind or ("repeated" if (cue == "Check", text) in said else "")
        said.add((cue == "Check", text))
        if kind:
            defects.append((i, kind, text))
    return defects if established else [*defects, (None, "not established", "")]

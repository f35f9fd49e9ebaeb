"""Code: find a function by its values. Answers are Python expressions, run by a small interpreter of this module and never by Python."""

import operator
import re
from collections import Counter
from fractions import Fraction
from math import factorial

from nanoreason.tasks.core import MAX_TEXT, RIGHT, UNREADABLE, Family, Unreadable, Verdict, miscalculate, read_statement, unneeded, wrong
from nanoreason.tasks.numbers import sign

TOKEN = re.compile(r"\*\*|//|[-+*%(),x]|abs|min|max|0|[1-9][0-9]{0,8}")
BINARY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod, "**": operator.pow}
CALLS = {"abs": (abs, 1), "min": (min, 2), "max": (max, 2)}  # how many arguments each takes
MAX_DEPTH, MAX_NODES, MAX_EXPONENT, MAX_SIZE = 20, 60, 6, 10**12
HIDDEN = (-10, -9, -8, -7, -5, -4, -3, -1, 0, 6, 9, 10, 11, 13, 16, 18, 19, 22, 25, 27, 30)  # inputs that answers are run on


class Refused(ValueError):
    """The text is no expression of the language, or running it goes beyond the limits."""


class _Parser:
    """Recursive descent with Python's precedence: + - below * // % below unary minus below **, which groups to the right."""

    def __init__(self, text):
        self.tokens, self.depth = TOKEN.findall(text) if len(text) <= MAX_TEXT else [], 0
        if not self.tokens or "".join(self.tokens) != text.replace(" ", ""):
            raise Refused("not of this language")
        if sum(token not in "()," for token in self.tokens) > MAX_NODES:  # every other token is a node of the tree
            raise Refused("too long")
        self.tokens.append("")

    def take(self, *wanted):
        return self.tokens.pop(0) if self.tokens[0] in wanted else None

    def demand(self, wanted):
        if self.take(wanted) is None:
            raise Refused(f"{self.tokens[0] or 'the end'} cannot stand here")

    def sum(self):
        return self.chain(("+", "-"), self.product)

    def product(self):
        return self.chain(("*", "//", "%"), self.unary)

    def chain(self, operators, part):
        tree = part()
        while op := self.take(*operators):
            tree = (op, tree, part())
        return tree

    def unary(self):
        self.depth += 1  # all nesting passes through here
        if self.depth > MAX_DEPTH:
            raise Refused("too deep")
        if self.take("-"):
            tree = ("-", self.unary())
        else:
            tree = self.atom()
            if self.take("**"):
                tree = ("**", tree, self.unary())
        self.depth -= 1
        return tree

    def atom(self):
        if call := self.take(*CALLS):
            self.demand("(")
            arguments = [self.sum()]
            for _ in range(CALLS[call][1] - 1):
                self.demand(",")
                arguments.append(self.sum())
            self.demand(")")
            return (call, *arguments)
        if self.take("("):
            tree = self.sum()
            self.demand(")")
            return tree
        if self.tokens[0] != "x" and not self.tokens[0].isdigit():
            raise Refused(f"{self.tokens[0] or 'the end'} cannot stand here")
        return (self.tokens.pop(0),)


def parse(text):
    """Tree of an expression, as nested tuples: 'x + 3' -> ('+', ('x',), ('3',)). Raises Refused.

    The language: whole numbers of at most nine digits, x, + - * // % **, unary minus, brackets, abs(a), min(a, b), max(a, b).
    """
    parser = _Parser(text)
    tree = parser.sum()
    parser.demand("")
    return tree


def run(tree, x=None):
    """Value of a tree, as Python has it. x: an int, or None where there is none.

    Raises Refused for division by zero, an exponent that is not 0 to 6, and a value of 10**12 or more in size.
    """
    name, *parts = tree
    if not parts:
        if name == "x" and x is None:
            raise Refused("no unknown here")
        return x if name == "x" else int(name)
    values = [run(part, x) for part in parts]
    if (name == "**" and not 0 <= values[1] <= MAX_EXPONENT) or (name in ("//", "%") and values[1] == 0):
        raise Refused(f"no {name} {values[1]}")
    value = CALLS[name][0](*values) if name in CALLS else BINARY[name](*values) if len(values) == 2 else -values[0]
    if abs(value) >= MAX_SIZE:
        raise Refused("too large")
    return value


def put(text, x):
    """The expression with a number in place of x."""
    return re.sub(r"\bx\b", str(x), text)


def differences(values):
    """The values, their differences, the differences of these, and so on: [6, 11, 18] -> [[6, 11, 18], [5, 7], [2]]."""
    rows = [list(values)]
    while len(rows[-1]) > 1:
        rows.append([b - a for a, b in zip(rows[-1], rows[-1][1:])])
    return rows


class Code(Family):
    """The function behind some values, as a Python expression in x. The simplest one is asked for: many others fit the values shown.

    Params: ('linear' or 'quadratic' or 'cubic', coefficients from the highest power down), or ('periodic', a, m, b) for a * (x % m) + b.
    Shown are two periods from f(0) on, or, from f(1) on, one value more than the polynomial needs.

    Levels: x + b, x - b or a * x; a * x + b; periodic; x * x + b * x + c; a * x * x + b * x + c; held out: cubic.
    """

    name = "code"

    def draw(self, rng, level):
        def signed(n):
            return rng.choice((-1, 1)) * rng.randint(1, n)

        if level == 1:
            return ("linear", 1, signed(70)) if rng.random() < 0.75 else ("linear", rng.randint(2, 70), 0)
        if level == 2:
            return "linear", rng.randint(2, 9), signed(99)
        if level == 3:
            return "periodic", rng.randint(2, 9), rng.randint(2, 4), rng.randint(0, 20)
        if level == 6:
            return "cubic", rng.randint(1, 3), rng.randint(-3, 3), rng.randint(-5, 5), signed(9)
        return "quadratic", 1 if level == 4 else rng.randint(2, 5), rng.randint(-9, 9), signed(20 if level == 4 else 40)

    def value(self, params, x):
        if params[0] == "periodic":
            return params[1] * (x % params[2]) + params[3]
        value = 0
        for coefficient in params[1:]:
            value = value * x + coefficient
        return value

    def shown(self, params):
        """The inputs whose values the question gives."""
        return range(2 * params[2]) if params[0] == "periodic" else range(1, len(params) + 1)

    def ask(self, params, rng):
        values = ", ".join(f"f({x}) = {self.value(params, x)}" for x in self.shown(params))
        return rng.choice(("{}. Write the simplest f(x).", "{}. What is the simplest f(x)?", "{}. Find the simplest rule f(x).",
                           "Write the simplest f(x) with {}.")).format(values)

    def answer(self, params):
        if params[0] == "periodic":
            return f"{params[1]} * (x % {params[2]})" + f" {sign(params[3])}" * (params[3] > 0)
        text = ""
        for power, n in zip(range(len(params) - 2, -1, -1), params[1:]):
            if n:
                factors = [str(abs(n))] * (abs(n) > 1 or power == 0) + ["x"] * power
                text += (" - " if n < 0 else " + " if text else "") + " * ".join(factors)
        return text

    def is_function(self, params, text):
        """Is it an expression that has the function's value for all inputs tried, shown and hidden?"""
        try:
            tree = parse(text)
            return all(run(tree, x) == self.value(params, x) for x in (*self.shown(params), *HIDDEN))
        except Refused:
            return False

    def verify(self, problem, text):
        """Every way to write the function counts: '2 * x + 3', '3 + x + x', 'f(x) = 2 * x + 3', 'return 2 * x + 3'."""
        return len(text) <= MAX_TEXT and self.is_function(problem.params, re.sub(r"^(f\(x\) ?= ?|return )", "", text.strip(" \n")))

    def _lines(self, params, start=1, bold=False):
        """A worked solution, by the shortest period or by the differences of the values at start, start + 1, ...

        The k-th difference of a polynomial is the sum over j >= k of its coefficient a_j times the k-th difference of x**j, which is k!
        for j = k: so the highest coefficient comes out first, and then the others, one by one.
        """
        if params[0] == "periodic":
            values = [self.value(params, x) for x in range(2 if bold else params[2])]
            return [f"f({params[2]}) = f(0)", *(f"{b} - {a} = {b - a}" for a, b in zip(values, values[1:])), f"f(x) = {self.answer(params)}"]
        degree, coefficients, points = len(params) - 2, params[:0:-1], range(start, start + len(params) - 1)
        rows = differences([self.value(params, x) for x in points])
        lines = [f"{b} - {a} = {b - a}" for row in rows[: degree - bold] for a, b in zip(row, row[1:])]
        for k in range(degree, -1, -1):
            text = f"{rows[k - 1][1]} - {rows[k - 1][0]}" if bold and k == degree else str(rows[k][0])
            for j in range(degree, k, -1):
                weight = differences([x**j for x in points])[k][0]
                times = f" * {weight}" * (weight > 1 or (degree == 1 and not bold))
                text += f" {sign(-coefficients[j])}{times}" * (coefficients[j] != 0)
            if k > 1:
                text = f"({text}) / {factorial(k)}" if " " in text else f"{text} / {factorial(k)}"
            if text != str(coefficients[k]):
                lines.append(f"{text} = {coefficients[k]}")
        return [*lines, f"f(x) = {self.answer(params)}"]

    def steps(self, params):
        return self._lines(params)

    def terse(self, params):
        return self._lines(params, bold=True)

    def another(self, params):
        """The coefficients again: from later values, or by the whole climb of a period."""
        if params[0] != "periodic":
            return [line for line in self._lines(params, start=2) if line not in self.steps(params)]
        _, a, m, b = params
        return [f"{a * (m - 1) + b} - {b} = {a * (m - 1)}", f"{a * (m - 1)} / {m - 1} = {a}"] if m > 2 else []

    def check(self, params):
        x = self.shown(params)[-1]
        return f"Check: f({x}) = {put(self.answer(params), x)} = {self.value(params, x)}"

    def slip(self, line, rng):
        return miscalculate(line, rng) if re.search(r"= [^f]*[0-9]", line) else ""

    def given(self, params):
        """Sizes of the values shown: what a sum may start from. The inputs are none of them."""
        return {Fraction(abs(self.value(params, x))) for x in self.shown(params)}

    def factors(self, params):
        """Numbers of the method, to multiply or divide by and for nothing else: differences of powers of x, or the length of a climb."""
        if params[0] == "periodic":
            return {params[2] - 1}
        degrees = range(len(params) - 1)
        return {row[0] for start in (1, 2) for j in degrees for row in differences([(start + i) ** j for i in degrees])}

    def needed(self, params):
        """What a conclusion has to build on: the period, and the coefficients but for f(0), for 0 and for a 1 that is not written."""
        if params[0] == "periodic":
            return [f"the period {params[2]}", params[1]]
        return [n for n in params[1:-1] if abs(n) > 1] + [n for n in params[-1:] if n]

    def read(self, params, line):
        if line.startswith("f("):
            return None, set(), False
        value, used, true = read_statement(line)
        terms = {int(n) for times, n in re.findall(r"([*/×] *)?-?([0-9]+)", line.rpartition("=")[0]) if not times}
        return value, used - (self.factors(params) - terms), true

    def check_trace(self, params, lines):
        """Arithmetic lines as everywhere, with numbers known by their size. f(3) = f(0) is right when it shows the period, and f(x) = ...
        when it is the function and right lines gave its coefficients.
        """
        known, derived, said, judgements = self.given(params), set(), Counter(), []
        for cue, line in lines:
            if cue == "Check":
                judgement = self.check_cue_line(params, line, said)
            elif line.startswith("f("):
                judgement = self.check_function(params, line, derived)
            else:
                try:
                    reading = self.read(params, line)
                except Unreadable:
                    reading = None
                judgement = self.check_line(params, line, reading, known, said, second=False)
                if judgement is RIGHT and not re.search(r"[0-9)] *[-+*×/]", line):  # -3 = -3
                    judgement = unneeded("this says nothing new")
                if judgement.verdict is not Verdict.WRONG:
                    known.add(abs(reading[0]))
                if judgement is RIGHT:
                    derived.add(reading[0])
            judgements.append(judgement)
            said[f"Check: {line}" if cue == "Check" else line] += 1
        return judgements

    def check_function(self, params, line, derived):
        """Judgement of 'f(x) = 2 * x + 3' or 'f(3) = f(0)', by what right lines derived; what the line itself establishes is added."""
        if line.startswith("f(x) = "):
            fact, missing = "f(x)", [n for n in self.needed(params) if n not in derived]
            if not self.is_function(params, line[7:]):
                return wrong("this is not the function")
            if missing:
                return wrong(f"{missing[0]} is neither given nor derived")
        elif match := re.fullmatch(r"f\(([0-9])\) = f\(([0-9])\)", line):
            a, b = map(int, match.groups())
            fact = f"the period {abs(a - b)}"
            if not {a, b} <= set(self.shown(params)) or self.value(params, a) != self.value(params, b):
                return wrong("the values shown do not say so")
            if fact not in self.needed(params):
                return unneeded("this is not needed")
        else:
            return UNREADABLE
        if fact in derived:
            return unneeded("this was said before")
        derived.add(fact)
        return RIGHT

    def check_cue_line(self, params, line, said):
        """Judgement of 'f(3) = 2 * 3 + 3 = 9': the function, as it stands in the answer or in a line before, with a shown input put in."""
        match = re.fullmatch(r"f\(([0-9])\) = ([^=]+) = ([^=]+)", line)
        if not match or int(match[1]) not in self.shown(params):
            return UNREADABLE
        x, text = int(match[1]), match[2].replace(" ", "")
        try:
            if {run(parse(match[2])), run(parse(match[3]))} != {self.value(params, x)}:
                return wrong("the check fails")
        except Refused:
            return UNREADABLE
        stated = [self.answer(params), *(line[7:] for line in said if line.startswith("f(x) = "))]
        if not any(put(function, x).replace(" ", "") == text and self.is_function(params, function) for function in stated):
            return unneeded("this does not test the function")
        return unneeded("this was said before") if said[f"Check: {line}"] else RIGHT

    def concludes(self, params, lines):
        return any(line.startswith("f(x) = ") for line in lines)

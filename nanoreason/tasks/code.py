"""Code: find a function by its values.

Answers are Python expressions, run by a small interpreter of this module and never by Python.
"""

import operator
import re
from fractions import Fraction
from math import factorial

from nanoreason.tasks.core import (
    MAX_TEXT,
    RIGHT,
    UNREADABLE,
    Family,
    Statement,
    miscalculate,
    read_statement,
    unneeded,
    wrong,
)
from nanoreason.tasks.numbers import sign

TOKEN = re.compile(r"\*\*|//|[-+*%(),x]|abs|min|max|0|[1-9][0-9]{0,8}")
BINARY = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}
CALLS = {"abs": (abs, 1), "min": (min, 2), "max": (max, 2)}  # (function, number of arguments)

# With these limits no expression takes long to run.
MAX_DEPTH = 20  # operations inside each other
MAX_NODES = 60  # numbers, names and operations of an expression
MAX_EXPONENT = 6
MAX_SIZE = 10**12  # of a value

# Inputs that answers are run on beside those that the question shows.
HIDDEN = (
    -10, -9, -8, -7, -5, -4, -3, -1,
    0, 6, 9, 10, 11, 13, 16, 18, 19, 22, 25, 27, 30,
)


class Refused(ValueError):
    """The text is no expression of the language, or running it goes beyond the limits."""


class _Parser:
    """Recursive descent with Python's precedence.

    From loose to tight: + and -; *, // and %; unary minus; **, which groups to the right.
    """

    def __init__(self, text):
        self.depth = 0
        self.tokens = TOKEN.findall(text) if len(text) <= MAX_TEXT else []
        if not self.tokens or "".join(self.tokens) != text.replace(" ", ""):
            raise Refused("not of this language")
        # Each token that is no bracket or comma is a node of the tree.
        if sum(token not in ("(", ")", ",") for token in self.tokens) > MAX_NODES:
            raise Refused("too long")
        self.tokens.append("")  # the end of the text

    def take(self, *wanted):
        """The next token, if it is one of those wanted; else None, and nothing is taken."""
        return self.tokens.pop(0) if self.tokens[0] in wanted else None

    def demand(self, wanted):
        """Take this token. Raises Refused where the next one is another."""
        if self.take(wanted) is None:
            raise Refused(f"{self.tokens[0] or 'the end'} cannot stand here")

    def sum(self):
        """Products with + and - between them."""
        return self.chain(("+", "-"), self.product)

    def product(self):
        """Signed powers with *, // and % between them."""
        return self.chain(("*", "//", "%"), self.unary)

    def chain(self, operators, part):
        """Parts with operators of one precedence between them, which group to the left."""
        tree = part()
        while op := self.take(*operators):
            tree = (op, tree, part())
        return tree

    def unary(self):
        """An atom or a power, perhaps with a minus: '-x ** 2' is -(x ** 2)."""
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
        """A call, a bracket, a number or x."""
        if call := self.take(*CALLS):
            return self.arguments(call)
        if self.take("("):
            tree = self.sum()
            self.demand(")")
            return tree
        if self.tokens[0] != "x" and not self.tokens[0].isdigit():
            raise Refused(f"{self.tokens[0] or 'the end'} cannot stand here")
        return (self.tokens.pop(0),)

    def arguments(self, call):
        """Tree of a call whose name has been taken."""
        _, count = CALLS[call]
        self.demand("(")
        arguments = [self.sum()]
        for _ in range(count - 1):
            self.demand(",")
            arguments.append(self.sum())
        self.demand(")")
        return (call, *arguments)


def parse(text):
    """Tree of an expression, as nested tuples: 'x + 3' -> ('+', ('x',), ('3',)).

    The language: whole numbers of at most nine digits, x, + - * // % **, unary minus, brackets,
    abs(a), min(a, b), max(a, b).

    Raises Refused for any other text.
    """
    parser = _Parser(text)
    tree = parser.sum()
    parser.demand("")
    return tree


def run(tree, x=None):
    """Value of a tree, an int, as Python has it. x: an int, or None where there is none.

    Raises Refused for division by zero, an exponent that is not 0 to 6, and a value of 10**12 or
    more in size.
    """
    name, *parts = tree
    if not parts:
        if name == "x" and x is None:
            raise Refused("no unknown here")
        return x if name == "x" else int(name)
    values = [run(part, x) for part in parts]
    by_zero = name in ("//", "%") and values[1] == 0
    if by_zero or (name == "**" and not 0 <= values[1] <= MAX_EXPONENT):
        raise Refused(f"no {name} {values[1]}")
    if name in CALLS:
        function, _ = CALLS[name]
        value = function(*values)
    elif len(values) == 2:
        value = BINARY[name](*values)
    else:
        value = -values[0]
    if abs(value) >= MAX_SIZE:
        raise Refused("too large")
    return value


def put(text, x):
    """The expression with a number in place of x."""
    return re.sub(r"\bx\b", str(x), text)


def differences(values):
    """The values, their differences, the differences of these, and so on.

    [6, 11, 18]  ->  [[6, 11, 18], [5, 7], [2]]
    """
    rows = [list(values)]
    while len(rows[-1]) > 1:
        rows.append([b - a for a, b in zip(rows[-1], rows[-1][1:])])
    return rows


def is_product(line):
    """Does the line only multiply: '3 * 3 = 9', '3(3) / 1 = 9', and not '15 - 3 * 3 = 6'?"""
    left = line.rpartition("=")[0]
    multiplies = re.search(r"[*×]|of|[0-9)] *\(", left)
    return multiplies and not re.search(r"[0-9)] *[-+]", left)


def difference_lines(rows):
    """The lines that give the differences of each row: [[6, 11]] -> ['11 - 6 = 5']."""
    return [f"{b} - {a} = {b - a}" for row in rows for a, b in zip(row, row[1:])]


class Code(Family):
    """The function behind some values, as a Python expression in x.

    The simplest one is asked for, because many others fit the values shown.

    Params: ('linear' or 'quadratic' or 'cubic', coefficients from the highest power down), or
    ('periodic', a, m, b) for a * (x % m) + b. Shown are two periods from f(0) on, or, from f(1) on,
    one value more than the polynomial needs.

    Levels: x + b, x - b or a * x; a * x + b; periodic; x * x + b * x + c; a * x * x + b * x + c;
    held out: cubic.
    """

    name = "code"

    def draw(self, rng, level):
        def signed(n):
            return rng.choice((-1, 1)) * rng.randint(1, n)

        if level == 1:
            if rng.random() < 0.75:
                return "linear", 1, signed(70)
            return "linear", rng.randint(2, 70), 0
        if level == 2:
            return "linear", rng.randint(2, 9), signed(99)
        if level == 3:
            return "periodic", rng.randint(2, 9), rng.randint(2, 4), rng.randint(0, 20)
        if level == 4:
            return "quadratic", 1, rng.randint(-9, 9), signed(20)
        if level == 5:
            return "quadratic", rng.randint(2, 5), rng.randint(-9, 9), signed(40)
        return "cubic", rng.randint(1, 3), rng.randint(-3, 3), rng.randint(-5, 5), signed(9)

    def value(self, params, x):
        """f(x), an int."""
        if params[0] == "periodic":
            _, a, m, b = params
            return a * (x % m) + b
        value = 0
        for coefficient in params[1:]:
            value = value * x + coefficient
        return value

    def shown(self, params):
        """The inputs whose values the question gives."""
        return range(2 * params[2]) if params[0] == "periodic" else range(1, len(params) + 1)

    def ask(self, params, rng):
        values = ", ".join(f"f({x}) = {self.value(params, x)}" for x in self.shown(params))
        wordings = (
            "{}. Write the simplest f(x).",
            "{}. What is the simplest f(x)?",
            "{}. Find the simplest rule f(x).",
            "Write the simplest f(x) with {}.",
        )
        return rng.choice(wordings).format(values)

    def answer(self, params):
        """The function as it is usually written: '3 * (x % 4) + 5', 'x * x - 2 * x + 7'."""
        if params[0] == "periodic":
            _, a, m, b = params
            return f"{a} * (x % {m})" + (f" {sign(b)}" if b > 0 else "")
        text = ""
        powers = range(len(params) - 2, -1, -1)
        for power, n in zip(powers, params[1:]):
            if n == 0:
                continue
            number = [str(abs(n))] if abs(n) > 1 or power == 0 else []
            if n < 0:
                text += " - "
            elif text:
                text += " + "
            text += " * ".join(number + ["x"] * power)
        return text

    def values(self, params, text):
        """Tuple of an expression's values for all inputs tried, shown and hidden.

        None where it is no expression, or cannot be run on all of them.
        """
        try:
            tree = parse(text)
            return tuple(run(tree, x) for x in (*self.shown(params), *HIDDEN))
        except Refused:
            return None

    def true_values(self, params):
        """Tuple of the function's own values for all inputs tried."""
        return tuple(self.value(params, x) for x in (*self.shown(params), *HIDDEN))

    def is_function(self, params, text):
        """Is it an expression with the function's values?"""
        return self.values(params, text) == self.true_values(params)

    def read_answer(self, problem, text):
        """The values of the expression, so every way to write the function counts.

        '2 * x + 3', '3 + x + x', 'f(x) = 2 * x + 3' and 'return 2 * x + 3' are the same.
        """
        text = re.sub(r"^(f\(x\) ?= ?|return )", "", text.strip(" \n"))
        return self.values(problem.params, text)

    def is_right(self, problem, said):
        """Are the values those of the function? The text of the reference need not be read."""
        return said == self.true_values(problem.params)

    def _periodic_lines(self, params, bold=False):
        """The shortest period, and the steps inside it; bold: only the first step."""
        period = params[2]
        values = [self.value(params, x) for x in range(2 if bold else period)]
        return [f"f({period}) = f(0)", *difference_lines([values])]

    def _rows(self, params, start):
        """The values of a polynomial at start, start + 1, ..., and the rows of their differences.

        As many values as it has coefficients: the last row is a single number.
        """
        inputs = range(start, start + len(params) - 1)
        return differences([self.value(params, x) for x in inputs])

    def _parts(self, params, start, k):
        """What the powers above x**k have in the k-th difference at `start`, highest power first.

        Pairs (coefficient, weight): the k-th difference of a polynomial is the sum over j >= k of
        its coefficient a_j times a weight, the k-th difference of x**j, which is k! for j = k. So
        the highest coefficient comes out first, and then the others, one by one.

        2 * x * x + 5 * x - 3 from x = 1 on:   k = 1  ->  [(2, 3)]      k = 0  ->  [(2, 1), (5, 1)]
        """
        coefficients = params[:0:-1]  # of x**0, x**1, ...
        inputs = range(start, start + len(coefficients))
        powers = [j for j in range(len(coefficients) - 1, k, -1) if coefficients[j]]
        return [(coefficients[j], differences([x**j for x in inputs])[k][0]) for j in powers]

    def _polynomial_lines(self, params):
        """By differences of the values at 1, 2, ..., with one operation in each line."""
        rows = self._rows(params, start=1)
        lines = difference_lines(rows)
        for k in range(len(rows) - 1, -1, -1):
            rest = rows[k][0]
            for coefficient, weight in self._parts(params, 1, k):
                part = coefficient * weight
                if weight > 1:
                    lines.append(f"{coefficient} * {weight} = {part}")
                lines.append(f"{rest} {sign(-part)} = {rest - part}")
                rest -= part
            if k > 1:
                lines.append(f"{rest} / {factorial(k)} = {rest // factorial(k)}")
        return lines

    def _terse_lines(self, params, start, last_row=False):
        """The same from f(start) on, with one line for each coefficient that is no difference yet.

        last_row: with a line for the last difference, which else is part of the next line.
        """
        rows = self._rows(params, start)
        degree = len(rows) - 1
        lines = difference_lines(rows[: degree - (not last_row)])
        for k in range(degree, -1, -1):
            text = str(rows[k][0])
            if k == degree and not last_row:
                text = f"{rows[k - 1][1]} - {rows[k - 1][0]}"
            for coefficient, weight in self._parts(params, start, k):
                text += f" {sign(-coefficient)}" + (f" * {weight}" if weight > 1 else "")
            if k > 1:
                text = f"({text})" if " " in text else text
                text += f" / {factorial(k)}"
            coefficient = params[-1 - k]
            if text != str(coefficient):
                lines.append(f"{text} = {coefficient}")
        return lines

    def steps(self, params):
        periodic = params[0] == "periodic"
        lines = self._periodic_lines(params) if periodic else self._polynomial_lines(params)
        return [*lines, f"f(x) = {self.answer(params)}"]

    def terse(self, params):
        if params[0] == "periodic":
            lines = self._periodic_lines(params, bold=True)
        else:
            lines = self._terse_lines(params, start=1)
        return [*lines, f"f(x) = {self.answer(params)}"]

    def another(self, params):
        """The coefficients again: from later values, or by the whole climb of a period."""
        if params[0] != "periodic":
            steps = self.steps(params)
            lines = self._terse_lines(params, start=2, last_row=True)
            return [line for line in lines if line not in steps]
        _, a, m, b = params
        if m == 2:
            return []
        climb = a * (m - 1)
        return [f"{climb + b} - {b} = {climb}", f"{climb} / {m - 1} = {a}"]

    def check(self, params):
        """The function at the last input shown."""
        x = self.shown(params)[-1]
        return f"Check: f({x}) = {put(self.answer(params), x)} = {self.value(params, x)}"

    def slip(self, line, rng):
        return miscalculate(line, rng) if re.search(r"= [^f]*[0-9]", line) else ""

    def given(self, params):
        """Sizes of the values shown: what a computation may start from, but not the inputs."""
        return {Fraction(abs(self.value(params, x))) for x in self.shown(params)}

    def factors(self, params):
        """Numbers of the method, to multiply or divide by and for nothing else.

        Differences of powers of x, or the length of a climb.
        """
        if params[0] == "periodic":
            return {params[2] - 1}
        degrees = range(len(params) - 1)
        numbers = set()
        for start in (1, 2):
            for j in degrees:
                powers = [(start + i) ** j for i in degrees]
                numbers |= {row[0] for row in differences(powers)}
        return numbers

    def needed(self, params):
        """What a conclusion has to build on: the period, and the coefficients.

        Not among them are f(0) of a period, a coefficient of 0, and a factor of 1 that is not
        written.
        """
        if params[0] == "periodic":
            return [f"the period {params[2]}", params[1]]
        *factors, constant = params[1:]
        return [n for n in factors if abs(n) > 1] + ([constant] if constant else [])

    def read(self, params, line):
        """Statement of a line. A number of the method is not used where it is only a factor.

        A line about f has a fact in the place of a value: 'f(x)', or 'the period 3'.
        """
        if line.startswith("f(x) = "):
            return Statement("f(x)", set(), False)
        if match := re.fullmatch(r"f\(([0-9])\) = f\(([0-9])\)", line):
            period = abs(int(match[1]) - int(match[2]))
            return Statement(f"the period {period}", set(), False)
        value, used, true = read_statement(line)
        numbers = re.findall(r"([*/×] *)?-?([0-9]+)", line.rpartition("=")[0])
        terms = {int(n) for times, n in numbers if not times}
        return Statement(value, used - (self.factors(params) - terms), true)

    def check_line(self, state, line, statement):
        """Lines of arithmetic as everywhere, with numbers known by their size.

        'f(3) = f(0)' is right when it shows the period. 'f(x) = ...' is right when it is the
        function and right lines gave its coefficients.
        """
        if statement and line.startswith("f("):
            return self.check_function(state, line, statement.value)
        judgement = super().check_line(state, line, statement)
        if judgement is RIGHT and is_product(line):
            state.facts["product", statement.value] += 1
        if judgement is RIGHT and not re.search(r"[0-9)] *[-+*×/]", line):  # -3 = -3
            return unneeded("this says nothing new")
        return judgement

    def check_function(self, state, line, fact):
        """Judgement of 'f(x) = 2 * x + 3' or 'f(3) = f(0)', which state a fact."""
        if fact == "f(x)":
            flaw = self._flaw_of_conclusion(state, line.removeprefix("f(x) = "))
        else:
            flaw = self._flaw_of_period(state.params, line, fact)
        if flaw:
            return flaw
        return unneeded("this was said before") if state.results[fact] else RIGHT

    def _flaw_of_conclusion(self, state, text):
        """Judgement of an expression that is not the function or was not derived, else None."""
        if not self.is_function(state.params, text):
            return wrong("this is not the function")
        # 4 * 3 = 12 is a part of a difference: 12 is no coefficient by that.
        missing = [
            n for n in self.needed(state.params)
            if state.results[n] <= state.facts["product", n]
        ]
        return wrong(f"{missing[0]} is neither given nor derived") if missing else None

    def _flaw_of_period(self, params, line, fact):
        """Judgement of 'f(3) = f(0)' where the values shown do not say so or it is of no use."""
        a, b = map(int, re.findall("[0-9]", line))
        if not {a, b} <= set(self.shown(params)) or self.value(params, a) != self.value(params, b):
            return wrong("the values shown do not say so")
        return None if fact in self.needed(params) else unneeded("this is not needed")

    def check_cue_line(self, state, line, statement):
        """Judgement of a check 'f(3) = 2 * 3 + 3 = 9'.

        It has to put a shown input into the function as it stands in the answer or in an earlier
        line.
        """
        params = state.params
        match = re.fullmatch(r"f\(([0-9])\) = ([^=]+) = ([^=]+)", line)
        if not match or int(match[1]) not in self.shown(params):
            return UNREADABLE
        x = int(match[1])
        try:
            values = {run(parse(match[2])), run(parse(match[3]))}
        except Refused:
            return UNREADABLE
        if values != {self.value(params, x)}:
            return wrong("the check fails")
        start = "f(x) = "
        stated = [said.removeprefix(start) for said in state.said if said.startswith(start)]
        text = match[2].replace(" ", "")
        tested = [f for f in (self.answer(params), *stated) if put(f, x).replace(" ", "") == text]
        if not any(self.is_function(params, f) for f in tested):
            return unneeded("this does not test the function")
        return state.check_again(f"Check: {line}")

    def concludes(self, params, lines):
        return any(line.startswith("f(x) = ") for line in lines)

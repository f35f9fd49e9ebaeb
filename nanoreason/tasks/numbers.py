"""Families about bare numbers: addition, multiplication, chains, percentages, equations, primes."""

import re
from fractions import Fraction
from functools import lru_cache
from itertools import zip_longest
from math import isqrt

from nanoreason.tasks.core import (
    NUMBER,
    RIGHT,
    UNREADABLE,
    Family,
    Statement,
    Unreadable,
    Verdict,
    chain_lines,
    format_number,
    last_number,
    parse_number,
    place_parts,
    read_statement,
    undo_last,
    unneeded,
    wrong,
)

WHOLE = "(0|[1-9][0-9]{0,6})"  # a whole number as it is written, in a trial division


def plus(terms):
    """The terms with plus signs between them: [8, 5] -> '8 + 5'."""
    return " + ".join(map(str, terms))


def added_up(numbers):
    """The sides of a sum done two numbers at a time.

    added_up([24, 36, 14])  ->  '24 + 36 + 14 = 60 + 14 = 74'
    """
    sides = [plus(numbers)]
    while len(numbers) > 1:
        numbers = [numbers[0] + numbers[1], *numbers[2:]]
        sides.append(plus(numbers))
    return " = ".join(sides)


def written(total, carries=True):
    """What becomes of the total of a column: 75 -> 'write 5, carry 7', or 'write 75' at the end."""
    return f"write {total % 10}, carry {total // 10}" if carries else f"write {total}"


def digits_of(n):
    """The digits of a whole number from the right: 293 -> [3, 9, 2]."""
    return [int(digit) for digit in reversed(str(n))]


def sum_columns(a, b):
    """Lines of a sum, one per column from the right.

    sum_columns(58, 67)  ->  ['8 + 7 = 15, write 5, carry 1', '5 + 6 + 1 = 12, write 2, carry 1']
    """
    lines = []
    carry = 0
    for pair in zip_longest(digits_of(a), digits_of(b)):
        digits = [digit for digit in pair if digit is not None]
        if carry:
            digits.append(carry)
        total = sum(digits)
        carry = total // 10
        lines.append(f"{plus(digits)} = {total}, {written(total)}")
    return lines


def crosswise_pairs(a_digits, b_digits, column):
    """The digits whose places make a column, from the left digit of a on. Digits: from the right.

    crosswise_pairs([6, 3], [7, 4], 1)  ->  [(3, 7), (6, 4)]
    """
    return [
        (a_digits[left], b_digits[column - left])
        for left in reversed(range(len(a_digits)))
        if 0 <= column - left < len(b_digits)
    ]


def product_columns(a, b):
    """Lines of a product worked crosswise, column by column from the right.

    A column adds up the products of its crosswise_pairs and what was carried: two numbers at a
    time, so that no line asks for a sum that a small model cannot do in one go.

    product_columns(36, 47)  ->  ['6 * 7 = 42, write 2, carry 4',
                                  '3 * 7 + 6 * 4 + 4 = 21 + 24 + 4 = 45 + 4 = 49, write 9, carry 4',
                                  '3 * 4 + 4 = 12 + 4 = 16, write 16']
    """
    a_digits = digits_of(a)
    b_digits = digits_of(b)
    last = len(a_digits) + len(b_digits) - 2
    lines = []
    carry = 0
    for column in range(last + 1):
        pairs = crosswise_pairs(a_digits, b_digits, column)
        carried = [carry] if carry else []
        terms = [f"{x} * {y}" for x, y in pairs] + carried
        numbers = [x * y for x, y in pairs] + carried
        total = sum(numbers)
        carry = total // 10
        result = written(total, carries=column < last)
        lines.append(f"{plus(terms)} = {added_up(numbers)}, {result}")
    return lines


def read_column(line):
    """(its terms in order, its ending) of a true column; None of any other line.

    Two columns are the same where these are: in which order the terms stand, and how many sides
    come between, is wording.

    '6 * 4 + 7 * 3 + 4 = 49, write 9, carry 4'  ->  (['3 * 7', '4', '4 * 6'], 'write 9, carry 4')
    """
    sum_, _, ending = line.replace("×", "*").partition(", ")
    if not re.fullmatch("[0-9+*= ]+", sum_) or re.search(r"\b0[0-9]", sum_):
        return None
    try:
        total, _, true = read_statement(sum_)
    except Unreadable:
        return None
    if not true or ending not in (written(int(total)), written(int(total), carries=False)):
        return None
    terms = sum_.split(" = ")[0].split(" + ")
    return sorted(" * ".join(sorted(term.split(" * "))) for term in terms), ending


class Columns(Family):
    """A family that works two numbers in columns, here to their product.

    A line with ', write ' is a column. It is right where it is the next one, by value. Its numbers
    are digits: it makes no number known, and builds on none. Where the total of the columns is the
    answer, the last one reaches it as other lines reach their result.
    """

    def total(self, params):
        """What the columns come to."""
        a, b = params
        return a * b

    def column_lines(self, params):
        """The lines of all columns."""
        return product_columns(*params)

    @lru_cache(maxsize=4096)
    def columns(self, params):
        """All columns, as from read_column."""
        return [read_column(line) for line in self.column_lines(params)]

    def ends_in_answer(self, params):
        """Is the last column the answer, and not the product that a percentage is made from?"""
        return self.answer(params) == str(self.total(params))

    def slip(self, line, rng):
        """A column added up wrong, and then written and carried as it was added."""
        column = re.fullmatch(r"(.* = )([0-9]+), write [0-9]+(, carry [0-9]+)?", line)
        if not column:
            return super().slip(line, rng)
        total = int(column[2])
        near = (total - 2, total - 1, total + 1, total + 2)
        slipped = rng.choice([n for n in near if n >= 0])
        return f"{column[1]}{slipped}, {written(slipped, carries=bool(column[3]))}"

    def read(self, params, line):
        """Statement of a line. A column has no value that would be known from then on."""
        if ", write " in line:
            return Statement(None, set(), False)
        return super().read(params, line)

    def way(self, params, lines):
        """The Way of a solution. In columns it says the total once, with the last of them.

        So the total, said once more, is known already.
        """
        way = super().way(params, lines)
        if way.results.pop(None, 0) and self.ends_in_answer(params):
            way.results[self.total(params)] += 1
        return way

    def check_line(self, state, line, statement):
        """Columns as in check_column, other lines as everywhere.

        Once the columns have begun, 'a * b = ...' is of no use before they are finished.
        """
        if ", write " in line:
            return self.check_column(state, line)
        judgement = super().check_line(state, line, statement)
        if judgement is RIGHT and 0 < state.facts["column",] < len(self.columns(state.params)):
            at_once = statement.used <= set(map(Fraction, state.params))
            if at_once and statement.value == self.total(state.params):
                return unneeded("the columns are not finished")
        return judgement

    def check_column(self, state, line):
        """A column is right where it is the next one and leads to a total that is not known."""
        columns = self.columns(state.params)
        total = self.total(state.params)
        done = state.facts["column",]
        column = read_column(line)
        if column not in columns:
            return wrong("this is no column of these numbers")
        is_next = column in columns[done : done + 1]
        if column in columns[:done] and not is_next:
            return unneeded("this was said before")
        way = self.reference(state.params)[state.second_way]
        if state.results[total] >= way.results[total]:
            return unneeded(f"{total} is known already")
        if not is_next:
            return wrong("this is not the next column")
        state.facts["column",] += 1
        if done + 1 == len(columns) and self.ends_in_answer(state.params):
            state.results[total] += 1
        return RIGHT

    def flaw_of_check(self, state, line, statement):
        """A column tests nothing; other checks as everywhere."""
        if ", write " not in line:
            return super().flaw_of_check(state, line, statement)
        if read_column(line) in self.columns(state.params):
            return unneeded("this does not test the answer")
        return wrong("this is no column of these numbers")

    def concludes(self, params, lines):
        """Do these right lines establish the answer? Not where columns are left unfinished."""
        said = sum(", write " in line for line in lines)
        missing = len(self.columns(params)) - said
        if not missing and self.ends_in_answer(params):
            return True
        return not (said and missing) and super().concludes(params, lines)


class Addition(Columns):
    """Column addition with carries. Params: (a, b). Level n adds two numbers of n + 1 digits."""

    name = "addition"
    commutative = True
    places = "all"
    wordings = (
        "What is {} + {}?",
        "What is {} + {}?",
        "What is {} + {}?",
        "Add {} and {}.",
        "Calculate {} + {}.",
        "What is {} plus {}?",
        "{} + {} = ?",
        "How much is {} + {}?",
        "Find the sum of {} and {}.",
    )

    def draw(self, rng, level):
        return tuple(rng.randint(10**level, 10 ** (level + 1) - 1) for _ in range(2))

    def total(self, params):
        return sum(params)

    def column_lines(self, params):
        return sum_columns(*params)

    def answer(self, params):
        return str(sum(params))

    def steps(self, params):
        return self.column_lines(params)

    def terse(self, params):
        a, b = params
        return chain_lines(a, [("+", part) for part in place_parts(b)])

    def another(self, params):
        a, b = params
        return chain_lines(b, [("+", part) for part in place_parts(a)])

    def check(self, params):
        return f"Check: {sum(params)} - {params[1]} = {params[0]}"


class Multiplication(Columns):
    """Products worked crosswise in columns. Params: (a, b).

    Other ways: by the digits of a factor in rows (terse); by a round number just above a factor;
    by the products of all place parts (another, where there is no such round number).

    Levels, in digits: 2 x 1, 2 x 2, 3 x 2, 3 x 3 (as in 847 x 293), 4 x 3; held out: 4 x 4.
    """

    name = "multiplication"
    commutative = True
    places = "all"
    wordings = (
        "What is {} × {}?",
        "What is {} × {}?",
        "What is {} × {}?",
        "What is {} * {}?",
        "Multiply {} by {}.",
        "What is {} times {}?",
        "{} × {} = ?",
        "{} * {}",
        "How much is {} times {}?",
        "Calculate {} × {}.",
        "Find the product of {} and {}.",
    )
    digits = {1: (2, 1), 2: (2, 2), 3: (3, 2), 4: (3, 3), 5: (4, 3), 6: (4, 4)}

    def draw(self, rng, level):
        m, n = self.digits[level]
        a = rng.randint(10 ** (m - 1), 10**m - 1)
        b = rng.randint(2 if n == 1 else 10 ** (n - 1), 10**n - 1)
        return a, b

    def answer(self, params):
        return str(params[0] * params[1])

    def steps(self, params):
        return self.column_lines(params)

    def terse(self, params):
        return self._rows(*params)

    def another(self, params):
        return self._rounded(params) or self._parts(params)

    def also(self, params):
        a, b = params
        parts = [self._parts(params)] if self._rounded(params) else []
        return [*parts, self._rows(b, a)]

    def _parts(self, params):
        """Every product of two place parts, each added to the sum so far."""
        a, b = params
        lines = []
        total = 0
        for x in place_parts(a):
            for y in place_parts(b):
                lines.append(f"{x} * {y} = {x * y}")
                if total:
                    lines.append(f"{total} + {x * y} = {total + x * y}")
                total += x * y
        return lines

    def _rows(self, a, b):
        """One line per digit of b, then their sum."""
        parts = place_parts(b)
        rows = [a * part for part in parts]
        lines = [f"{a} * {part} = {row}" for part, row in zip(parts, rows)]
        return lines + chain_lines(rows[0], [("+", row) for row in rows[1:]])

    def _rounded(self, params):
        """By a round number just above a factor: 847 * 293 = 847 * 300 - 847 * 7.

        [] where no factor lies just below a round number.
        """
        for a, b in (params, params[::-1]):
            unit = 10 ** (len(str(b)) - 1)
            up = b + -b % unit
            rest = up - b
            if 0 < 10 * rest <= 3 * unit:
                return [
                    f"{b} = {up} - {rest}",
                    f"{a} * {up} = {a * up}",
                    f"{a} * {rest} = {a * rest}",
                    f"{a * up} - {a * rest} = {a * b}",
                ]
        return []

    def check_line(self, state, line, statement):
        """'293 = 300 - 7' is right where the rounded way begins so; it makes 300 and 7 known."""
        if line not in self._rounded(state.params)[:1]:
            return super().check_line(state, line, statement)
        state.known |= {Fraction(n) for n in NUMBER.findall(line)}
        return unneeded("this was said before") if state.said[line] else RIGHT

    def check(self, params):
        a, b = params
        last = a % 10 * (b % 10)
        return f"Check: {a % 10} * {b % 10} = {last}, last digit {a * b % 10}"


CHAIN_WORDINGS = (
    "What is {}?",
    "What is {}?",
    "Compute {}.",
    "Calculate {}.",
    "{} = ?",
    "How much is {}?",
    "Find the value of {}.",
)


class Chain(Family):
    """A chain of operations evaluated from the inside out.

    Params: (start, (op, n), ...). Level n has n + 1 operations.
    """

    name = "chain"

    def draw(self, rng, level):
        start = rng.randint(2, 30)
        value = start
        ops = []
        while len(ops) < level + 1:
            op = rng.choice("+-*")
            n = rng.randint(2, 5) if op == "*" else rng.randint(2, 40)
            result = {"+": value + n, "-": value - n, "*": value * n}[op]
            if 0 < result <= 250:
                ops.append((op, n))
                value = result
        return (start, *ops)

    def ask(self, params, rng):
        text = str(params[0])
        additive = False  # whether the last operation needs brackets before a product
        for op, n in params[1:]:
            text = f"({text}) * {n}" if op == "*" and additive else f"{text} {op} {n}"
            additive = op != "*"
        return rng.choice(CHAIN_WORDINGS).format(text)

    def answer(self, params):
        return last_number(self.steps(params))

    def run(self, params):
        """(the number that the computation starts from, its operations)."""
        return params[0], params[1:]

    def steps(self, params):
        return chain_lines(*self.run(params))

    def terse(self, params):
        """Two operations per line, so that one result has to be held in mind."""
        steps = self.steps(params)
        ops = params[1:]
        value = params[0]
        lines = []
        for i in range(0, len(ops), 2):
            (op, n), *second = ops[i : i + 2]
            text = f"{value} {op} {n}"
            for op, n in second:
                text = f"({text}) {op} {n}" if op == "*" else f"{text} {op} {n}"
            value = last_number(steps[: i + 2])
            lines.append(f"{text} = {value}")
        return lines

    def another(self, params):
        return regrouped(*self.run(params))

    def check(self, params):
        return undo_last(self.steps(params))


def regrouped(start, ops):
    """Lines of a chain worked another way, by the first rule that fits two neighbouring operations.

    (8 + 5) * 3  ->  '8 * 3 = 24', '5 * 3 = 15', '24 + 15 = 39'     a bracket multiplied out
    8 * 3 * 2    ->  '3 * 2 = 6', '8 * 6 = 48'                      factors first
    9 + 8 - 3    ->  '8 - 3 = 5', '9 + 5 = 14'                      what is added first

    [] where no rule fits.
    """
    for i, (first, second) in enumerate(zip(ops, ops[1:])):
        before = chain_lines(start, ops[:i])
        value = int(last_number(before)) if before else start
        if middle := regrouped_pair(value, first, second):
            return before + middle + chain_lines(int(last_number(middle)), ops[i + 2 :])
    return []


def regrouped_pair(value, first, second):
    """Lines of two operations on a value in another order; [] where no rule of regrouped fits."""
    op, n = first
    op2, n2 = second
    if op == "*" and op2 == "*":
        return chain_lines(n, [("*", n2)]) + chain_lines(value, [("*", n * n2)])
    if op == "*":
        return []
    if op2 == "*":
        products = chain_lines(value, [("*", n2)]) + chain_lines(n, [("*", n2)])
        return products + chain_lines(value * n2, [(op, n * n2)])
    net = n + n2 if op == op2 else n - n2
    if net <= 0:
        return []
    return chain_lines(n, [("+" if op == op2 else "-", n2)]) + chain_lines(value, [(op, net)])


def product_lines(x, k):
    """Lines of x * k for a digit k. x: Fraction.

    Place by place where x is a whole number of several digits, at once where it is not.

    product_lines(52, 6)  ->  ['50 * 6 = 300', '2 * 6 = 12', '300 + 12 = 312']
    """
    if x.denominator > 1 or len(place_parts(int(x))) < 2:
        return [f"{format_number(x)} * {k} = {format_number(x * k)}"]
    parts = place_parts(int(x))
    products = [f"{part} * {k} = {part * k}" for part in parts]
    sums = chain_lines(parts[0] * k, [("+", part * k) for part in parts[1:]])
    lines = products[:1]
    for product, sum_so_far in zip(products[1:], sums):
        lines += [product, sum_so_far]
    return lines


class Percent(Columns):
    """Percentages. Params: (percentage, number).

    Built from 10%, 5% and 1% where all of these that it needs are whole numbers: 35% of 440 from
    44 and 22. Else by the product in columns and its hundredth part, as 35% of 445, whose 10% is
    44.5. Levels 1 to 3 are of the first kind; above, only multiples of 100 are.

    Levels: tens, odd fives, any percentage of hundreds, of any number, of thousands; held out: of
    tens of thousands.
    """

    name = "percent"
    places = "derived"
    wordings = (
        "What is {}% of {}?",
        "What is {}% of {}?",
        "What is {}% of {}?",
        "Find {}% of {}.",
        "Calculate {}% of {}.",
        "How much is {}% of {}?",
        "{}% of {} = ?",
        "What is {} percent of {}?",
        "Work out {}% of {}.",
    )

    def draw(self, rng, level):
        if level == 1:
            return rng.randint(1, 9) * 10, rng.randint(2, 100) * 10
        if level == 2:
            return rng.randrange(5, 100, 10), rng.randint(2, 60) * 20
        p = rng.choice([p for p in range(1, 100) if p % 5])
        # One number per level from 3 to 6. All are drawn: what rng gives next is the same for all.
        numbers = (
            rng.randint(1, 20) * 100,
            rng.randint(11, 999),
            rng.randint(1000, 9999),
            rng.randint(10_000, 99_999),
        )
        return p, numbers[level - 3]

    def answer(self, params):
        p, n = params
        return format_number(Fraction(p * n, 100))

    def _split(self, p):
        """What to add up, each part with its rate, 10%, 5% or 1%: 35 -> [(30, 10), (5, 5)]."""
        parts = ((p - p % 10, 10), (p % 10 // 5 * 5, 5), (p % 5, 1))
        return [(part, rate) for part, rate in parts if part]

    def _lines(self, params, bold):
        """A worked solution. bold: each part from its rate in one line, not place by place."""
        p, n = params
        lines = []
        total = 0
        for part, rate in self._split(p):
            one = Fraction(rate * n, 100)
            count = part // rate
            value = one * count
            lines.append(f"{rate}% of {n} = {format_number(one)}")
            if count > 1 and bold:
                lines.append(f"{format_number(one)} * {count} = {format_number(value)}")
            elif count > 1:
                lines += product_lines(one, count)
            if total:
                summands = f"{format_number(total)} + {format_number(value)}"
                lines.append(f"{summands} = {format_number(total + value)}")
            total += value
        return lines

    def _has_whole_rates(self, params):
        """Are those of 10%, 5% and 1% that the percentage needs whole numbers?"""
        p, n = params
        return all(rate * n % 100 == 0 for _, rate in self._split(p))

    def steps(self, params):
        p, n = params
        if self._has_whole_rates(params):
            return self._lines(params, bold=False)
        return product_columns(n, p) + self._hundredth(params)

    def terse(self, params):
        return self._lines(params, bold=True)

    def another(self, params):
        if self._has_whole_rates(params):
            return self._hundredth(params)
        return self._lines(params, bold=False)

    def _hundredth(self, params):
        """The product and its hundredth part."""
        p, n = params
        return [f"{n} * {p} = {n * p}", f"{n * p} / 100 = {self.answer(params)}"]

    def check(self, params):
        p, n = params
        return f"Check: {self.answer(params)} / {n} = {format_number(Fraction(p, 100))}"

    def given(self, params):
        counts = [part // rate for part, rate in self._split(params[0]) if part > rate]
        return {Fraction(n) for n in (*params, *counts, 100)}

    def read(self, params, line):
        """Statement of a line. Rates, and the 1 of a trivial product, are not numbers it uses."""
        value, used, true = super().read(params, line)
        if match := re.match(rf"(1|5|10)% of {params[1]} =", line):
            used -= {Fraction(match[1])}  # a rate is no number to go on with
        elif re.fullmatch(r"(?!1 )[0-9.]+ \* 1 = [0-9.]+", line):
            used -= {Fraction(1)}  # 10% once is 10%
        return Statement(value, used, true)


class Equation(Family):
    """Linear equations in x with whole solutions.

    Params: (a, b, c, d, bracket) for ax + b = cx + d, or with a bracket for a(x + b) = cx + d.

    Levels: ax + b = d; the same with larger numbers; x on both sides; a bracket; a bracket and x on
    both sides; held out: the last with a factor of two digits.
    """

    name = "equation"

    def draw(self, rng, level):
        big = level == 2
        bracket = level >= 4
        x = rng.randint(2, 40 if big else 25)
        a = rng.randint(11, 30) if level == 6 else rng.randint(3, 9)
        sign_of_b = rng.choice((1, -1))
        # A negative b has to leave the left side above 0.
        b = sign_of_b * rng.randint(1, min(60 if big else 30, a * x - 1, x - 1 if bracket else 99))
        c = rng.randint(1, a - 1) if level in (3, 5, 6) else 0
        left = a * (x + b) if bracket else a * x + b
        d = left - c * x
        return (a, b, c, d, bracket) if d else self.draw(rng, level)

    def solution(self, params):
        """The Fraction that x is."""
        a, b, c, d, bracket = params
        return Fraction(d - (a * b if bracket else b), a - c)

    def ask(self, params, rng):
        a, b, c, d, bracket = params
        left = f"{a}(x {sign(b)})" if bracket else f"{times_x(a)} {sign(b)}"
        right = f"{times_x(c)} {sign(d)}" if c else str(d)
        wordings = (
            "Solve {} = {}.",
            "Solve {} = {} for x.",
            "What is x if {} = {}?",
            "Find x: {} = {}.",
            "{} = {}. What is x?",
        )
        return rng.choice(wordings).format(left, right)

    def answer(self, params):
        return str(self.solution(params))

    def steps(self, params):
        a, b, c, d, bracket = params
        lines = []
        if bracket:
            b *= a
            right = f"{times_x(c)} {sign(d)}" if c else d
            lines.append(f"{times_x(a)} {sign(b)} = {right}")
        if c:
            lines.append(f"{times_x(a)} - {times_x(c)} = {d} {sign(-b)}")
        lines.append(f"{times_x(a - c)} = {d} {sign(-b)} = {d - b}")
        if a - c > 1:
            lines.append(f"x = {d - b} / {a - c} = {self.answer(params)}")
        return lines

    def terse(self, params):
        a, b, c, d, bracket = params
        top = f"({d} {sign(-(a * b if bracket else b))})"
        quotient = f"{top} / {a - c}" if a - c > 1 else top
        return [f"x = {quotient} = {self.answer(params)}"]

    def another(self, params):
        """x to the right instead of the left, or a bracket divided away."""
        a, b, c, d, bracket = params
        x = self.answer(params)
        if bracket and not c:
            return [f"x {sign(b)} = {d} / {a} = {d // a}", f"x = {d // a} {sign(-b)} = {x}"]
        lines = self.steps(params)[: int(bracket)]  # the bracket multiplied out
        if bracket:
            b *= a
        return [
            *lines,
            f"{times_x(c - a)} = {b} {sign(-d)} = {b - d}",
            f"x = {b - d} / {c - a} = {x}",
        ]

    def check(self, params):
        a, b, c, d, bracket = params
        x = self.solution(params)
        left = f"{a} * ({x} {sign(b)})" if bracket else f"{a} * {x} {sign(b)}"
        right = f"{c} * {x} {sign(d)} = {c * x + d}" if c else f"{d}"
        return f"Check: {left} = {right}"

    def read(self, params, line):
        return read_statement(line, x=self.solution(params))

    def given(self, params):
        a, b, c, d, bracket = params
        numbers = [a, b, c, d, a - c]
        if bracket:
            numbers.append(a * b)
        return {Fraction(abs(n)) for n in numbers}

    def concludes(self, params, lines):
        """x has to be said: 'x = 15 / 3 = 5', and not '3x - 2x = 11 - 4'."""
        lines = [line for line in lines if re.fullmatch(r"x = (.*= )?-?[0-9]+", line)]
        return super().concludes(params, lines)

    def read_answer(self, problem, text):
        """A number, alone or after 'x = '."""
        match = re.fullmatch(r"\s*(?:x\s*=\s*)?([^=x]+)", text)
        return parse_number(match[1]) if match else None


def sign(n):
    """A signed number as it stands after another term: 5 -> '+ 5', -5 -> '- 5'."""
    return f"{'-' if n < 0 else '+'} {abs(n)}"


def times_x(n):
    """The term n * x as it is written: 'x', '-x', '3x'."""
    return {1: "x", -1: "-x"}.get(n, f"{n}x")


def smallest_factor(n):
    """Smallest divisor of n above 1; n itself when n is prime."""
    return next((d for d in range(2, isqrt(n) + 1) if n % d == 0), n)


def is_prime(n):
    """Is n a prime number?"""
    return n > 1 and smallest_factor(n) == n


def long_division(n, p):
    """The numbers that arise where n is divided by p digit by digit, and at last the remainder.

    9461 by 73: 94 leaves 21, with the 6 it is 216, which leaves 70, with the 1 it is 701, which
    leaves 44. What is smaller than p is not said: in 705 by 7, 7 leaves 0, and 5 remains.

    long_division(9461, 73)  ->  [94, 216, 701, 44]
    long_division(705, 7)    ->  [7, 5]
    """
    numbers = []
    current = 0
    for digit in str(n):
        current = 10 * current + int(digit)
        if current >= p:
            numbers.append(current)
            current %= p
    return [*numbers, current]


NO_DIVISOR = wrong("nothing can be divided by 0")


class Primality(Family):
    """Trial division by primes up to the smallest factor or the square root. Params: (n,).

    From 7 on a trial shows the numbers of its long division: 'by 73: 94, 216, 701, 44'. Other ways
    to write a trial are 'n / 73 leaves 44' and '73 * 129 + 44 = n'. Any other division is true but
    not needed.

    Levels: below 100, 300, 1,000, 3,000 and 10,000; held out: below 30,000. Half are prime.
    """

    name = "primality"
    wordings = (
        "Is {} prime?",
        "Is {} prime?",
        "Is {} a prime number?",
        "Is the number {} prime?",
        "Is {} a prime?",
        "Tell me if {} is prime.",
        "Check whether {} is a prime number.",
    )
    ranges = {
        1: (5, 99),
        2: (100, 299),
        3: (300, 999),
        4: (1000, 2999),
        5: (3000, 9999),
        6: (10_000, 29_999),
    }

    def draw(self, rng, level):
        low, high = self.ranges[level]
        want_prime = rng.random() < 0.5
        while True:
            n = rng.randint(low, high)
            if is_prime(n) == want_prime:
                return (n,)

    def answer(self, params):
        return "Yes" if is_prime(params[0]) else "No"

    def _trials(self, n):
        """Primes to try, in order: up to the smallest factor and not above the square root."""
        last = min(smallest_factor(n), isqrt(n))
        return [p for p in range(2, last + 1) if is_prime(p)]

    def _conclusion(self, n):
        """The line that says whether n is prime, after all trials."""
        p = smallest_factor(n)
        if p < n:
            return f"{p} divides {n}, so {n} is not prime"
        p = next(p for p in range(isqrt(n) + 1, 2 * n) if is_prime(p))
        return f"{p} * {p} = {p * p} > {n}, so {n} is prime"

    def steps(self, params):
        n = params[0]
        return [*(self._trial(n, p) for p in self._trials(n)), self._conclusion(n)]

    def _trial(self, n, p):
        """'17 / 3 leaves 2', and from 7 on the division: 'by 73: 94, 216, 701, 44'."""
        if p < 7:
            return f"{n} / {p} leaves {n % p}"
        return f"by {p}: " + ", ".join(map(str, long_division(n, p)))

    def terse(self, params):
        n = params[0]
        if is_prime(n):
            return self.steps(params)
        p = smallest_factor(n)
        return [f"{n} = {p} * {n // p}, so {n} is not prime"]

    def another(self, params):
        """The same trials as products; at the end a composite number by its cofactor."""
        n = params[0]
        p = smallest_factor(n)
        if p == n // p:
            return []
        trials = [q for q in self._trials(n) if n % q]
        lines = [f"{q} * {n // q} + {n % q} = {n}" for q in trials]
        if p < n:
            return [*lines, f"{n} = {n // p} * {p}, so {n} is not prime"]
        return [*lines, f"no prime up to {trials[-1]} divides {n}, so {n} is prime"]

    def check(self, params):
        """The last trial of a prime as a product, or the factors of a composite number."""
        n = params[0]
        p = smallest_factor(n)
        if p == n:
            p = self._trials(n)[-1]
            return f"Check: {p} * {n // p} + {n % p} = {n}"
        return f"Check: {p} * {n // p} = {n}"

    def slip(self, line, rng):
        """Another remainder at the end of a trial; '' for other lines."""
        start = r"[0-9]+ / (?P<p>[0-9]+) leaves |by (?P<q>[0-9]+): ([0-9]+, )*"
        trial = re.fullmatch(rf"(?P<start>{start})(?P<remainder>[0-9]+)", line)
        if not trial:
            return ""
        p = int(trial["p"] or trial["q"])
        remainders = [r for r in range(p) if r != int(trial["remainder"])]
        return f"{trial['start']}{rng.choice(remainders)}"

    def read_answer(self, problem, text):
        """Whether it says that n is prime: 'Yes', 'prime', '17 is prime', 'Yes, 17 is prime'."""
        n = problem.params[0]
        said = text.strip().rstrip(".").casefold()
        for prime, yes, not_ in ((True, "yes", ""), (False, "no", "not ")):
            claim = f"{not_}prime"
            if said in (yes, claim, f"{n} is {claim}", f"{yes}, {n} is {claim}"):
                return prime
        return None

    def check_trace(self, params, lines):
        """A trial is right when its numbers are, and the conclusion when its trials were made.

        A trial is needed when its divisor is a prime up to the root and up to the smallest factor,
        once per way, however it is written. That n is prime needs all of them; that p divides n
        needs the trial of p.
        """
        n = params[0]
        tried = set()  # divisors of the trials that were not wrong; a check establishes nothing
        said = set()  # lines, and what right ones establish: a trial's divisor or None, per way
        second_way = False
        judgements = []
        for cue, line in lines:
            is_check = cue == "Check"
            second_way |= cue == "Another way"
            divisor, judgement = self._check_trial(n, line)
            if divisor is None:
                judgement = self._check_conclusion(n, line, tried, is_check)
            elif judgement.verdict is not Verdict.WRONG and not is_check:
                tried.add(divisor)
            fact = (is_check, second_way, divisor)
            if judgement is RIGHT:
                if fact in said or (is_check, line) in said:
                    judgement = unneeded("this was said before")
                said.add(fact)
            said.add((is_check, line))
            judgements.append(judgement)
        return judgements

    def _check_trial(self, n, line):
        """(divisor, Judgement) of 'by 7: 17, 3', '17 / 3 leaves 2' or '3 * 5 + 2 = 17'.

        (None, None) for any other line.
        """
        if match := re.fullmatch(rf"by {WHOLE}: ({WHOLE}(?:, {WHOLE})*)", line):
            p = int(match[1])
            flaw = self._flaw_of_division(n, p, list(map(int, match[2].split(", "))))
            return p, flaw or self._check_remainder(n, p, n % p)
        if match := re.fullmatch(rf"{n} / {WHOLE} leaves {WHOLE}", line):
            p, remainder = map(int, match.groups())
        elif match := re.fullmatch(rf"{WHOLE} \* {WHOLE} \+ {WHOLE} = {n}", line):
            p, quotient, remainder = map(int, match.groups())
            value = p * quotient + remainder
            if value != n:
                return p, wrong(f"{p} * {quotient} + {remainder} is {value}")
        else:
            return None, None
        return p, self._check_remainder(n, p, remainder)

    def _flaw_of_division(self, n, p, said):
        """Judgement of the numbers of a division that are not those of n / p, else None."""
        if p == 0:
            return NO_DIVISOR
        numbers = long_division(n, p)
        if said == numbers:
            return None
        same = next(i for i, pair in enumerate(zip_longest(numbers, said)) if pair[0] != pair[1])
        if same == len(numbers):
            return wrong(f"{n} by {p} ends with {numbers[-1]}")
        if same == 0:
            return wrong(f"{n} by {p} begins with {numbers[0]}")
        return wrong(f"after {numbers[same - 1]} comes {numbers[same]}")

    def _check_remainder(self, n, p, remainder):
        """Judgement of a trial: does n / p leave this remainder, and did p have to be tried?"""
        if p == 0:
            return NO_DIVISOR
        if n % p != remainder:
            return wrong(f"{n} / {p} leaves {n % p}")
        if not is_prime(p):
            return unneeded(f"{n} / {p} is not needed: {p} is not prime")
        if p > smallest_factor(n):
            return unneeded(f"{n} / {p} is not needed: {smallest_factor(n)} already divides {n}")
        if p * p > n:
            return unneeded(f"{n} / {p} is not needed: {p} * {p} > {n}")
        return RIGHT

    def _check_conclusion(self, n, line, tried, is_check):
        """Judgement of a line that says prime or not, or of a product that a check shows."""
        if match := re.fullmatch(rf"{n} = {WHOLE} \* {WHOLE}, so {n} is not prime", line):
            p, q = map(int, match.groups())
            if p * q != n:
                return wrong(f"{p} * {q} is {p * q}")
            return RIGHT if p > 1 and q > 1 else wrong("1 divides every number")
        if match := re.fullmatch(rf"{WHOLE} divides {n}, so {n} is not prime", line):
            return self._check_divisor(n, int(match[1]), tried)
        if is_check and f"Check: {line}" == self.check((n,)):
            return RIGHT
        if not is_prime(n) or line not in (self._conclusion(n), self.another((n,))[-1]):
            return UNREADABLE
        missing = [p for p in self._trials(n) if p not in tried]
        return wrong(f"{missing[0]} has not been tried") if missing else RIGHT

    def _check_divisor(self, n, p, tried):
        """Judgement of 'p divides n, so n is not prime': was p tried, and did it leave nothing?"""
        if p in (1, n):
            return wrong(f"{p} says nothing about {n}")
        if p not in tried:
            return wrong(f"{p} has not been tried")
        return wrong(f"{n} / {p} leaves {n % p}") if n % p else RIGHT

    def concludes(self, params, lines):
        return any(line.endswith("prime") for line in lines)

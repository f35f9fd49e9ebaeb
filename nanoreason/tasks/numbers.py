"""Families about bare numbers: addition, multiplication, chains, percentages, equations, primality."""

import re
from fractions import Fraction
from math import isqrt

from nanoreason.tasks.core import (Family, Unreadable, Verdict, chain_lines, format_number, parse_number, place_parts,
                                   read_statement, undo_last)


class Addition(Family):
    """Column addition with carries. Level n adds two numbers of n + 1 digits."""

    name = "addition"
    commutative = True

    def draw(self, rng, level):
        return tuple(rng.randint(10**level, 10 ** (level + 1) - 1) for _ in range(2))

    def ask(self, params, rng):
        return rng.choice(("What is {} + {}?", "What is {} + {}?", "Add {} and {}.", "Calculate {} + {}.")).format(*params)

    def answer(self, params):
        return str(sum(params))

    def steps(self, params):
        a, b = (str(n)[::-1] for n in params)
        lines, carry = [], 0
        for i in range(max(len(a), len(b))):
            digits = [int(n[i]) for n in (a, b) if i < len(n)] + [carry] * (carry > 0)
            total = sum(digits)
            carry = total // 10
            lines.append(f"{' + '.join(map(str, digits))} = {total}, write {total % 10}, carry {carry}")
        return lines

    def terse(self, params):
        return chain_lines(params[0], [("+", part) for part in place_parts(params[1])])

    def check(self, params):
        return f"Check: {sum(params)} - {params[1]} = {params[0]}"

    def given(self, params):
        return super().given(params) | {Fraction(part) for n in params for part in place_parts(n)}

    def read(self, params, line):
        return read_statement(line.split(", write ")[0])

    def check_step(self, params, previous, line):
        if ", write " not in line:
            return super().check_step(params, previous, line)
        columns, done = self.steps(params), 0  # columns come in order; two of them may read alike
        for earlier in previous:
            done += done < len(columns) and earlier == columns[done]
        if columns[done : done + 1] == [line]:
            return Verdict.RIGHT
        return Verdict.UNNEEDED if line in columns[:done] else Verdict.WRONG


class Multiplication(Family):
    """Products by parts. Levels: 2 x 1 digits, 2 x 2, 3 x 2, 3 x 3 (the brief's 847 x 293) and 4 x 3."""

    name = "multiplication"
    commutative = True
    digits = {1: (2, 1), 2: (2, 2), 3: (3, 2), 4: (3, 3), 5: (4, 3)}

    def draw(self, rng, level):
        m, n = self.digits[level]
        return rng.randint(10 ** (m - 1), 10**m - 1), rng.randint(2 if n == 1 else 10 ** (n - 1), 10**n - 1)

    def ask(self, params, rng):
        return rng.choice(("What is {} × {}?", "What is {} × {}?", "What is {} * {}?", "Multiply {} by {}.")).format(*params)

    def answer(self, params):
        return str(params[0] * params[1])

    def steps(self, params):
        a, b = params
        lines, total = [], 0
        for x in place_parts(a):
            for y in place_parts(b):
                lines.append(f"{x} * {y} = {x * y}")
                if total:
                    lines.append(f"{total} + {x * y} = {total + x * y}")
                total += x * y
        return lines

    def terse(self, params):
        return self._rows(*params)

    def another(self, params):
        return self._rows(params[1], params[0])

    def _rows(self, a, b):
        """One line for each digit of b, then their sum."""
        rows = [a * part for part in place_parts(b)]
        lines = [f"{a} * {part} = {row}" for part, row in zip(place_parts(b), rows)]
        return lines + chain_lines(rows[0], [("+", row) for row in rows[1:]])

    def check(self, params):
        a, b = params
        return f"Check: {a % 10} * {b % 10} = {a % 10 * (b % 10)}, last digit {a * b % 10}"

    def given(self, params):
        return super().given(params) | {Fraction(part) for n in params for part in place_parts(n)}


class Chain(Family):
    """A chain of operations evaluated from the inside out. Level n has n + 1 operations."""

    name = "chain"

    def draw(self, rng, level):
        start = value = rng.randint(2, 30)
        ops = []
        while len(ops) < level + 1:
            op = rng.choice("+-*")
            n = rng.randint(2, 5) if op == "*" else rng.randint(2, 40)
            result = value + n if op == "+" else value - n if op == "-" else value * n
            if 0 < result <= 250:
                ops.append((op, n))
                value = result
        return (start, *ops)

    def ask(self, params, rng):
        text, additive = str(params[0]), False
        for op, n in params[1:]:
            text = f"({text}) * {n}" if op == "*" and additive else f"{text} {op} {n}"
            additive = op != "*"
        return rng.choice(("What is {}?", "Compute {}.", "Calculate {}.")).format(text)

    def answer(self, params):
        return self.steps(params)[-1].split()[-1]

    def steps(self, params):
        return chain_lines(params[0], params[1:])

    def terse(self, params):
        """Two operations a line, so that one result has to be held in mind."""
        lines, value = self.steps(params), params[0]
        terse = []
        for i in range(0, len(lines), 2):
            pair = params[1 + i : 3 + i]
            text = f"{value} {pair[0][0]} {pair[0][1]}"
            for op, n in pair[1:]:
                text = f"({text}) {op} {n}" if op == "*" else f"{text} {op} {n}"
            value = lines[min(i + 1, len(lines) - 1)].split()[-1]
            terse.append(f"{text} = {value}")
        return terse

    def check(self, params):
        return undo_last(self.steps(params))


def product_lines(x, k):
    """x * k for a digit k: place by place where x is a whole number of several digits, at once where it is not.

    product_lines(52, 6) -> ['50 * 6 = 300', '2 * 6 = 12', '300 + 12 = 312']
    """
    if x.denominator > 1 or len(place_parts(int(x))) < 2:
        return [f"{format_number(x)} * {k} = {format_number(x * k)}"]
    parts = [part * k for part in place_parts(int(x))]
    lines = [f"{part} * {k} = {part * k}" for part in place_parts(int(x))]
    sums = chain_lines(parts[0], [("+", part) for part in parts[1:]])
    return [lines[0], *(line for pair in zip(lines[1:], sums) for line in pair)]


class Percent(Family):
    """Percentages built from 10%, 5% and 1%. Levels: tens, odd fives, any percentage of hundreds, of any number, of thousands."""

    name = "percent"

    def draw(self, rng, level):
        if level == 1:
            return rng.randint(1, 9) * 10, rng.randint(2, 100) * 10
        if level == 2:
            return rng.randrange(5, 100, 10), rng.randint(2, 60) * 20
        p = rng.choice([p for p in range(1, 100) if p % 5])
        return p, (rng.randint(1, 20) * 100, rng.randint(11, 999), rng.randint(1000, 9999))[level - 3]

    def ask(self, params, rng):
        return rng.choice(("What is {}% of {}?", "What is {}% of {}?", "Find {}% of {}.", "Calculate {}% of {}.")).format(*params)

    def answer(self, params):
        return format_number(Fraction(params[0] * params[1], 100))

    def _split(self, p):
        """35 -> [(30, 10), (5, 5)]: what to add up, and the percentage that each is counted from."""
        return [(part, unit) for part, unit in ((p - p % 10, 10), (p % 10 // 5 * 5, 5), (p % 5, 1)) if part]

    def _lines(self, params, bold):
        p, n = params
        lines, total = [], None
        for part, unit in self._split(p):
            one, value = Fraction(unit * n, 100), Fraction(part * n, 100)
            lines.append(f"{unit}% of {n} = {format_number(one)}")
            if part > unit:
                lines += [f"{format_number(one)} * {part // unit} = {format_number(value)}"] if bold else product_lines(one, part // unit)
            if total is not None:
                lines.append(f"{format_number(total)} + {format_number(value)} = {format_number(total + value)}")
            total = value + (total or 0)
        return lines

    def steps(self, params):
        return self._lines(params, bold=False)

    def terse(self, params):
        return self._lines(params, bold=True)

    def another(self, params):
        p, n = params
        return [f"{n} * {p} = {n * p}", f"{n * p} / 100 = {self.answer(params)}"]

    def check(self, params):
        return f"Check: {self.answer(params)} / {params[1]} = {format_number(Fraction(params[0], 100))}"

    def given(self, params):
        split = self._split(params[0])
        places = {x for _, unit in split if unit * params[1] % 100 == 0 for x in place_parts(unit * params[1] // 100)}
        return super().given(params) | {Fraction(n) for n in places | {part // unit for part, unit in split} | {1, 5, 10, 100}}


class Equation(Family):
    """Linear equations in x with whole solutions, as (a, b, c, d, bracket): ax + b = cx + d, or a(x + b) = cx + d.

    Levels: ax + b = d, the same with larger numbers, x on both sides, a bracket, a bracket and x on both sides.
    """

    name = "equation"

    def draw(self, rng, level):
        big = level == 2
        bracket = level >= 4
        x = rng.randint(2, 40 if big else 25)
        a = rng.randint(3, 9)
        b = rng.choice((1, -1)) * rng.randint(1, min(60 if big else 30, a * x - 1, x - 1 if bracket else 99))
        c = rng.randint(1, a - 1) if level in (3, 5) else 0
        d = (a * (x + b) if bracket else a * x + b) - c * x
        return (a, b, c, d, bracket) if d else self.draw(rng, level)

    def solution(self, params):
        a, b, c, d, bracket = params
        return Fraction(d - (a * b if bracket else b), a - c)

    def ask(self, params, rng):
        a, b, c, d, bracket = params
        left = f"{a}(x {sign(b)})" if bracket else f"{times_x(a)} {sign(b)}"
        right = f"{times_x(c)} {sign(d)}" if c else str(d)
        return rng.choice(("Solve {} = {}.", "Solve {} = {} for x.", "What is x if {} = {}?")).format(left, right)

    def answer(self, params):
        return str(self.solution(params))

    def steps(self, params):
        a, b, c, d, bracket = params
        lines = []
        if bracket:
            b *= a
            lines.append(f"{times_x(a)} {sign(b)} = {f'{times_x(c)} {sign(d)}' if c else d}")
        if c:
            lines.append(f"{times_x(a)} - {times_x(c)} = {d} {sign(-b)}")
        lines.append(f"{times_x(a - c)} = {d} {sign(-b)} = {d - b}")
        if a - c > 1:
            lines.append(f"x = {d - b} / {a - c} = {self.answer(params)}")
        return lines

    def terse(self, params):
        a, b, c, d, bracket = params
        top = f"({d} {sign(-(a * b if bracket else b))})"
        return [f"x = {top} / {a - c} = {self.answer(params)}" if a - c > 1 else f"x = {top} = {self.answer(params)}"]

    def check(self, params):
        a, b, c, d, bracket = params
        x = self.solution(params)
        left = f"{a} * ({x} {sign(b)})" if bracket else f"{a} * {x} {sign(b)}"
        return f"Check: {left} = " + (f"{c} * {x} {sign(d)} = {c * x + d}" if c else f"{d}")

    def read(self, params, line):
        return read_statement(line, x=self.solution(params))

    def given(self, params):
        a, b, c, d, _ = params
        return {Fraction(abs(n)) for n in (a, b, c, d, a - c, a * b)}

    def verify(self, problem, text):
        match = re.fullmatch(r"\s*(?:x\s*=\s*)?([^=x]+)", text[:201])
        value = parse_number(match[1]) if match else None
        a, b, c, d, bracket = problem.params
        return value is not None and (a * (value + b) if bracket else a * value + b) == c * value + d


def sign(n):
    """A signed number as it stands after another term: 5 -> '+ 5', -5 -> '- 5'."""
    return f"{'-' if n < 0 else '+'} {abs(n)}"


def times_x(n):
    """The term n * x as it is written: 'x', '3x'."""
    return "x" if n == 1 else f"{n}x"


def smallest_factor(n):
    """Smallest divisor of n above 1; n itself when n is prime."""
    return next((d for d in range(2, isqrt(n) + 1) if n % d == 0), n)


def is_prime(n):
    return n > 1 and smallest_factor(n) == n


class Primality(Family):
    """Trial division by primes up to the square root; any other division is true but not needed."""

    name = "primality"
    ranges = {1: (5, 99), 2: (100, 299), 3: (300, 999), 4: (1000, 2999), 5: (3000, 9999)}

    def draw(self, rng, level):
        low, high = self.ranges[level]
        want_prime = rng.random() < 0.5
        while True:
            n = rng.randint(low, high)
            if is_prime(n) == want_prime:
                return (n,)

    def ask(self, params, rng):
        return rng.choice(("Is {} prime?", "Is {} a prime number?")).format(*params)

    def answer(self, params):
        return "Yes" if is_prime(params[0]) else "No"

    def _trials(self, n):
        """Primes to try, in order: those below the smallest factor and not above the square root."""
        return [p for p in range(2, min(smallest_factor(n) - 1, isqrt(n)) + 1) if is_prime(p)]

    def _verdict(self, n):
        p = smallest_factor(n)
        if p < n:
            return f"{n} = {p} * {n // p}, so {n} is not prime"
        p = next(p for p in range(isqrt(n) + 1, 2 * n) if is_prime(p))
        return f"{p} * {p} = {p * p} > {n}, so {n} is prime"

    def steps(self, params):
        n = params[0]
        return [f"{n} / {p} leaves {n % p}" for p in self._trials(n)] + [self._verdict(n)]

    def terse(self, params):
        return [self._verdict(params[0])] if not is_prime(params[0]) else self.steps(params)

    def check(self, params):
        n, p = params[0], smallest_factor(params[0])
        return f"Check: {p} * {n // p} = {n}" if p < n else ""

    def verify(self, problem, text):
        n = problem.params[0]
        said = text.strip().rstrip(".").casefold()
        yes = {"yes", "prime", f"{n} is prime", f"yes, {n} is prime"}
        no = {"no", "not prime", f"{n} is not prime", f"no, {n} is not prime"}
        return said in (yes if is_prime(n) else no)

    def read(self, params, line):
        raise Unreadable(line)  # only the forms below count as steps

    def check_step(self, params, previous, line):
        n = params[0]
        if match := re.fullmatch(rf"{n} / ([0-9]{{1,6}}) leaves ([0-9]{{1,6}})", line):
            p, remainder = map(int, match.groups())
            if p == 0 or n % p != remainder:
                return Verdict.WRONG
            wanted = p in self._trials(n) or p == smallest_factor(n) < n
            return Verdict.RIGHT if wanted and line not in previous else Verdict.UNNEEDED
        if match := re.fullmatch(rf"{n} = ([0-9]{{1,6}}) \* ([0-9]{{1,6}}), so {n} is not prime", line):
            p, q = map(int, match.groups())
            if p * q != n or p == 1 or q == 1:
                return Verdict.WRONG
            return Verdict.UNNEEDED if line in previous else Verdict.RIGHT
        tried = all(f"{n} / {p} leaves {n % p}" in previous for p in self._trials(n))
        if not (is_prime(n) and tried and line == self._verdict(n)):
            return Verdict.WRONG
        return Verdict.UNNEEDED if line in previous else Verdict.RIGHT

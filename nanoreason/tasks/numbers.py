"""Families about bare numbers: addition, multiplication, chains, percentages, equations, primality."""

import re
from collections import Counter
from fractions import Fraction
from math import isqrt

from nanoreason.tasks.core import (NUMBER, RIGHT, UNREADABLE, Family, Verdict, chain_lines, format_number, parse_number, place_parts,
                                   read_statement, undo_last, unneeded, wrong)


class Addition(Family):
    """Column addition with carries. Level n adds two numbers of n + 1 digits."""

    name = "addition"
    commutative = True
    places = "all"

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

    def another(self, params):
        return chain_lines(params[1], [("+", part) for part in place_parts(params[0])])

    def slip(self, line, rng):
        """A column added up wrong, and then written and carried as it was added."""
        total = int(re.search(r"= ([0-9]+)", line)[1])
        slipped = rng.choice([n for n in (total - 2, total - 1, total + 1, total + 2) if n >= 0])
        return f"{line.split(' = ')[0]} = {slipped}, write {slipped % 10}, carry {slipped // 10}"

    def check(self, params):
        return f"Check: {sum(params)} - {params[1]} = {params[0]}"

    def read(self, params, line):
        return read_statement(line.split(", write ")[0])

    def check_line(self, params, line, reading, known, said, second):
        if ", write " not in line:
            return super().check_line(params, line, reading, known, said, second)
        columns = self.steps(params)
        done = next((i for i, column in enumerate(columns) if said[column] < columns[: i + 1].count(column)), len(columns))
        if columns[done : done + 1] == [line]:  # columns come in order; two of them may read alike
            return RIGHT
        return unneeded("this was said before") if line in columns[:done] else wrong("this is not the next column")

    def concludes(self, params, lines):
        columns = [line for line in lines if ", write " in line]  # right ones only, hence in order
        return len(columns) == len(self.steps(params)) or super().concludes(params, [line for line in lines if line not in columns])


class Multiplication(Family):
    """Products by parts. Levels: 2 x 1 digits, 2 x 2, 3 x 2, 3 x 3 (the brief's 847 x 293), 4 x 3; held out: 4 x 4."""

    name = "multiplication"
    commutative = True
    places = "all"
    digits = {1: (2, 1), 2: (2, 2), 3: (3, 2), 4: (3, 3), 5: (4, 3), 6: (4, 4)}

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
        return self._rounded(params) or self._rows(params[1], params[0])

    def _rows(self, a, b):
        """One line for each digit of b, then their sum."""
        rows = [a * part for part in place_parts(b)]
        lines = [f"{a} * {part} = {row}" for part, row in zip(place_parts(b), rows)]
        return lines + chain_lines(rows[0], [("+", row) for row in rows[1:]])

    def _rounded(self, params):
        """The brief's own way: 847 * 293 = 847 * 300 - 847 * 7. [] where no factor lies just below a round number."""
        for a, b in (params, params[::-1]):
            unit = 10 ** (len(str(b)) - 1)
            up = b + -b % unit
            if 0 < 10 * (up - b) <= 3 * unit:
                return [f"{b} = {up} - {up - b}", f"{a} * {up} = {a * up}", f"{a} * {up - b} = {a * (up - b)}", f"{a * up} - {a * (up - b)} = {a * b}"]
        return []

    def check_line(self, params, line, reading, known, said, second):
        rounded = self._rounded(params)
        if line in rounded[:1]:
            known |= {Fraction(n) for n in NUMBER.findall(line)}
            return unneeded("this was said before") if said[line] else RIGHT
        return super().check_line(params, line, reading, known, said, second)

    def check(self, params):
        a, b = params
        return f"Check: {a % 10} * {b % 10} = {a % 10 * (b % 10)}, last digit {a * b % 10}"


class Chain(Family):
    """A chain of operations evaluated from the inside out. Params: (start, (op, n), ...). Level n has n + 1 operations."""

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

    def another(self, params):
        return regrouped(params[0], params[1:])

    def check(self, params):
        return undo_last(self.steps(params))


def regrouped(start, ops):
    """A chain worked another way, by the first rule that fits two neighbouring operations; [] where none does.

    (8 + 5) * 3  ->  '8 * 3 = 24', '5 * 3 = 15', '24 + 15 = 39'     a bracket multiplied out
    8 * 3 * 2    ->  '3 * 2 = 6', '8 * 6 = 48'                      factors first
    9 + 8 - 3    ->  '8 - 3 = 5', '9 + 5 = 14'                      what is added first
    """
    for i, ((op, n), (op2, n2)) in enumerate(zip(ops, ops[1:])):
        before, rest = chain_lines(start, ops[:i]), ops[i + 2 :]
        value = int(before[-1].split()[-1]) if before else start
        if op in "+-" and op2 == "*":
            middle = chain_lines(value, [("*", n2)]) + chain_lines(n, [("*", n2)]) + chain_lines(value * n2, [(op, n * n2)])
        elif op == op2 == "*":
            middle = chain_lines(n, [("*", n2)]) + chain_lines(value, [("*", n * n2)])
        elif op in "+-" and op2 in "+-":
            net = n + n2 if op == op2 else n - n2
            if net <= 0:
                continue
            middle = chain_lines(n, [("+" if op == op2 else "-", n2)]) + chain_lines(value, [(op, net)])
        else:
            continue
        return before + middle + chain_lines(int(middle[-1].split()[-1]), rest)
    return []


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
    """Percentages built from 10%, 5% and 1%. Levels: tens, odd fives, any percentage of hundreds, of any number, of thousands; held out:
    of tens of thousands."""

    name = "percent"
    places = "derived"

    def draw(self, rng, level):
        if level == 1:
            return rng.randint(1, 9) * 10, rng.randint(2, 100) * 10
        if level == 2:
            return rng.randrange(5, 100, 10), rng.randint(2, 60) * 20
        p = rng.choice([p for p in range(1, 100) if p % 5])
        return p, (rng.randint(1, 20) * 100, rng.randint(11, 999), rng.randint(1000, 9999), rng.randint(10_000, 99_999))[level - 3]

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
        return {Fraction(n) for n in (*params, *(part // unit for part, unit in self._split(params[0]) if part > unit), 100)}

    def read(self, params, line):
        value, used, true = read_statement(line)
        if match := re.match(rf"(1|5|10)% of {params[1]} =", line):
            used -= {Fraction(match[1])}  # a rate, and no number to go on with
        elif re.fullmatch(r"(?!1 )[0-9.]+ \* 1 = [0-9.]+", line):
            used -= {Fraction(1)}  # 10% once is 10%
        return value, used, true


class Equation(Family):
    """Linear equations in x with whole solutions, as (a, b, c, d, bracket): ax + b = cx + d, or a(x + b) = cx + d.

    Levels: ax + b = d, the same with larger numbers, x on both sides, a bracket, a bracket and x on both sides; held out: the last with
    a factor of two digits.
    """

    name = "equation"

    def draw(self, rng, level):
        big = level == 2
        bracket = level >= 4
        x = rng.randint(2, 40 if big else 25)
        a = rng.randint(11, 30) if level == 6 else rng.randint(3, 9)
        b = rng.choice((1, -1)) * rng.randint(1, min(60 if big else 30, a * x - 1, x - 1 if bracket else 99))
        c = rng.randint(1, a - 1) if level in (3, 5, 6) else 0
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

    def another(self, params):
        """x to the right instead of the left, or a bracket divided away."""
        a, b, c, d, bracket = params
        if bracket and not c:
            return [f"x {sign(b)} = {d} / {a} = {d // a}", f"x = {d // a} {sign(-b)} = {self.answer(params)}"]
        lines = self.steps(params)[: int(bracket)]
        b = a * b if bracket else b
        return [*lines, f"{times_x(c - a)} = {b} {sign(-d)} = {b - d}", f"x = {b - d} / {c - a} = {self.answer(params)}"]

    def check(self, params):
        a, b, c, d, bracket = params
        x = self.solution(params)
        left = f"{a} * ({x} {sign(b)})" if bracket else f"{a} * {x} {sign(b)}"
        return f"Check: {left} = " + (f"{c} * {x} {sign(d)} = {c * x + d}" if c else f"{d}")

    def read(self, params, line):
        return read_statement(line, x=self.solution(params))

    def given(self, params):
        a, b, c, d, bracket = params
        return {Fraction(abs(n)) for n in (a, b, c, d, a - c)} | ({Fraction(abs(a * b))} if bracket else set())

    def concludes(self, params, lines):
        """x has to be said: 'x = 15 / 3 = 5', and not '3x - 2x = 11 - 4'."""
        return super().concludes(params, [line for line in lines if re.fullmatch(r"x = (.*= )?-?[0-9]+", line)])

    def verify(self, problem, text):
        match = re.fullmatch(r"\s*(?:x\s*=\s*)?([^=x]+)", text[:201])
        value = parse_number(match[1]) if match else None
        a, b, c, d, bracket = problem.params
        return value is not None and (a * (value + b) if bracket else a * value + b) == c * value + d


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
    return n > 1 and smallest_factor(n) == n


class Primality(Family):
    """Trial division by primes up to the square root; any other division is true but not needed.

    Levels: below 100, 300, 1,000, 3,000 and 10,000; held out: below 30,000. Half the numbers are prime.
    """

    name = "primality"
    ranges = {1: (5, 99), 2: (100, 299), 3: (300, 999), 4: (1000, 2999), 5: (3000, 9999), 6: (10_000, 29_999)}

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

    def another(self, params):
        """The same trials as products; at the end a composite number by its cofactor."""
        n, p = params[0], smallest_factor(params[0])
        if p == n // p:
            return []
        last = f"{n} = {n // p} * {p}, so {n} is not prime" if p < n else f"no prime up to {self._trials(n)[-1]} divides {n}, so {n} is prime"
        return [*(f"{q} * {n // q} + {n % q} = {n}" for q in self._trials(n)), last]

    def check(self, params):
        n, p = params[0], smallest_factor(params[0])
        if p == n:
            p = self._trials(n)[-1]
            return f"Check: {p} * {n // p} + {n % p} = {n}"
        return f"Check: {p} * {n // p} = {n}"

    def slip(self, line, rng):
        if not (trial := re.match("[0-9]+ / ([0-9]+) leaves ", line)):
            return ""
        return trial[0] + str(rng.choice([r for r in range(int(trial[1])) if line != f"{trial[0]}{r}"]))

    def verify(self, problem, text):
        n = problem.params[0]
        said = text.strip().rstrip(".").casefold()
        yes = {"yes", "prime", f"{n} is prime", f"yes, {n} is prime"}
        no = {"no", "not prime", f"{n} is not prime", f"no, {n} is not prime"}
        return said in (yes if is_prime(n) else no)

    def check_trace(self, params, lines):
        """A trial is right when its remainder is, and needed when its divisor is a prime up to the root and up to the smallest factor."""
        n, tried, said, judgements = params[0], set(), Counter(), []
        for cue, line in lines:
            p, judgement = self._judge_trial(n, line)
            if p is None:
                judgement = self._judge_conclusion(n, line, tried, cue == "Check")
            elif judgement.verdict is not Verdict.WRONG:
                tried.add(p)
            judgements.append(unneeded("this was said before") if said[cue == "Check", line] and judgement.verdict is Verdict.RIGHT else judgement)
            said[cue == "Check", line] += 1
        return judgements

    def _judge_trial(self, n, line):
        """(divisor, Judgement) of '17 / 3 leaves 2' or '3 * 5 + 2 = 17'; (None, None) for any other line."""
        if match := re.fullmatch(rf"{n} / ([0-9]{{1,6}}) leaves ([0-9]{{1,6}})", line):
            p, remainder = map(int, match.groups())
        elif match := re.fullmatch(rf"([0-9]{{1,6}}) \* ([0-9]{{1,6}}) \+ ([0-9]{{1,6}}) = {n}", line):
            p, quotient, remainder = map(int, match.groups())
            if p * quotient + remainder != n:
                return p, wrong(f"{p} * {quotient} + {remainder} is {p * quotient + remainder}")
        else:
            return None, None
        if p == 0 or n % p != remainder:
            return p, wrong(f"{n} / {p} leaves {n % p}" if p else "nothing can be divided by 0")
        if not is_prime(p):
            return p, unneeded(f"{n} / {p} is not needed: {p} is not prime")
        if p > smallest_factor(n):
            return p, unneeded(f"{n} / {p} is not needed: {smallest_factor(n)} already divides {n}")
        if p * p > n:
            return p, unneeded(f"{n} / {p} is not needed: {p} * {p} > {n}")
        return p, RIGHT

    def _judge_conclusion(self, n, line, tried, check):
        """Judgement of a line that says prime or not, or of a product that a check shows."""
        if match := re.fullmatch(rf"{n} = ([0-9]{{1,6}}) \* ([0-9]{{1,6}}), so {n} is not prime", line):
            p, q = map(int, match.groups())
            return RIGHT if p * q == n and p > 1 and q > 1 else wrong(f"{p} * {q} is {p * q}" if p * q != n else "1 divides every number")
        if check and f"Check: {line}" == self.check((n,)):
            return RIGHT
        if not is_prime(n) or line not in (self._verdict(n), self.another((n,))[-1]):
            return UNREADABLE
        left = [p for p in self._trials(n) if p not in tried]
        return wrong(f"{left[0]} has not been tried") if left else RIGHT

    def concludes(self, params, lines):
        return any(line.endswith("prime") for line in lines)

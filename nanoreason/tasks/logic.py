"""Logic puzzles.

People put in order by clues about two of them, and the rows of a truth table that are true.
"""

import operator
import re
from functools import lru_cache
from itertools import combinations, product

from nanoreason.tasks.core import (
    MAX_TEXT,
    RIGHT,
    UNREADABLE,
    Family,
    Mixed,
    Unreadable,
    unneeded,
    wrong,
)
from nanoreason.tasks.words import PEOPLE

NAMES = tuple(name for name, _, _ in PEOPLE)
RELATIONS = (
    ("taller", "tallest", "shorter", "shortest"),
    ("older", "oldest", "younger", "youngest"),
    ("faster", "fastest", "slower", "slowest"),
    ("heavier", "heaviest", "lighter", "lightest"),
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
OPERATORS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
MAX_DEPTH = 20  # brackets and nots inside each other that are read

# number of variables -> the rows of a truth table in counting order: ['0 0', '0 1', '1 0', '1 1']
ROWS = {n: [" ".join(bits) for bits in product("01", repeat=n)] for n in (2, 3, 4)}


def columns(n):
    """The values of each of n variables in all rows, as the bits of a number: [0b0011, 0b0101]."""
    return [int("".join(bits), 2) for bits in zip(*product("01", repeat=n))]


COLUMNS = {n: columns(n) for n in ROWS}


class Puzzle(Family):
    """A kind of puzzle, whose lines are checked on the facts of the right lines before them.

    Subclasses also have

    check_claim(params, line, known, is_check) -> (Judgement, facts that the line establishes where
                                it is right), known being the facts so far; may raise Unreadable
    conclusions(params) -> list[str]    the lines that answer
    """

    def check_trace(self, params, lines):
        """Judgements of a trace. A line without a new fact is a repetition."""
        known = set()  # facts
        judgements = []
        for cue, line in lines:
            if len(line) > MAX_TEXT:
                line = ""  # unreadable
            try:
                judgement, facts = self.check_claim(params, line, known, is_check=cue == "Check")
            except Unreadable:
                judgement = UNREADABLE
                facts = set()
            if judgement is RIGHT and facts <= known:
                judgement = unneeded("this was said before")
            if judgement is RIGHT:
                known |= facts
            judgements.append(judgement)
        return judgements

    def concludes(self, params, lines):
        return not set(lines).isdisjoint(self.conclusions(params))


class Order(Puzzle):
    """People in order. Params: (names, clues, asked).

    Facts are (sign, first place, last place) of each chain of neighbours, 'conclusion' and 'check'.
    """

    people = {1: 3, 2: 4, 3: 5, 4: 6, 5: 7, 6: 9}
    redundant = {4: 1, 5: 2, 6: 2}  # level -> clues that follow from others

    def draw(self, rng, level):
        n = self.people[level]
        apart = [(i, j) for i, j in combinations(range(n), 2) if j > i + 1]
        neighbours = [(i, i + 1) for i in range(n - 1)]
        clues = neighbours + rng.sample(apart, self.redundant.get(level, 0))
        rng.shuffle(clues)
        return tuple(rng.sample(NAMES, n)), tuple(clues), rng.randrange(n)

    def ask(self, params, rng):
        names, clues, asked = params
        more, most, less, least = rng.choice(RELATIONS)
        both_ways = len(names) >= self.people[3]
        told = ""
        for i, j in clues:
            if both_ways and rng.random() < 0.5:
                told += f"{names[j]} is {less} than {names[i]}. "
            else:
                told += f"{names[i]} is {more} than {names[j]}. "
        if asked == 0:
            wanted = most
        elif asked == len(names) - 1:
            wanted = least
        else:
            wanted = f"{ORDINALS[asked]} {most}"
        wordings = (
            "Who is the {}?",
            "Who of them is the {}?",
            "Which of them is the {}?",
            "Name the {}.",
        )
        return told + rng.choice(wordings).format(wanted)

    def answer(self, params):
        names, _, asked = params
        return names[asked]

    def read_answer(self, problem, text):
        """A name alone, in any case, with or without a period."""
        name = re.fullmatch(r"\s*([A-Za-z]+)\.?\s*", text, re.ASCII)
        return name[1].lower() if name else None

    def conclusions(self, params):
        """The lines that answer: 'Ben is last', and then 'Ben is third' of three."""
        names, _, asked = params
        places = list(ORDINALS[asked : asked + 1])
        if asked == len(names) - 1:
            places.insert(0, "last")
        return [f"{names[asked]} is {place}" for place in places]

    def steps(self, params):
        """Every clue about neighbours writes the chain that it makes or joins.

        A redundant clue writes nothing.
        """
        names, clues, _ = params
        lines = []
        joined = set()  # places whose person is joined to the next one
        for i, j in clues:
            if j > i + 1:
                continue
            joined.add(i)
            first = next(k for k in range(i, -1, -1) if k - 1 not in joined)
            last = next(k for k in range(j, len(names)) if k not in joined)
            lines.append(" > ".join(names[first : last + 1]))
        return [*lines, self.conclusions(params)[0]]

    def terse(self, params):
        return [" > ".join(params[0]), self.conclusions(params)[0]]

    def another(self, params):
        """The chain from the last person upwards, one by one."""
        upwards = params[0][::-1]
        return [" < ".join(upwards[:n]) for n in range(2, len(upwards) + 1)]

    def check(self, params):
        """Every clue again."""
        names, clues, _ = params
        return "Check: " + ", ".join(f"{names[i]} > {names[j]}" for i, j in clues)

    def check_claim(self, params, line, known, is_check):
        """(Judgement, facts that the line establishes where it is right). Raises Unreadable.

        known: set of the facts of the right lines before.
        """
        if is_check:
            return self._check_clues(params, line), {"check"}
        if " is " in line:
            return self._check_place(params, line, known), {"conclusion"}
        return self._check_chain(params, line)

    def _check_place(self, params, line, known):
        """Judgement of 'Ben is last'."""
        names, _, asked = params
        end = len(names) - 1
        name, _, place = line.partition(" is ")
        if name not in names or place not in ("last", *ORDINALS):
            raise Unreadable(line)
        if names.index(name) != (end if place == "last" else ORDINALS.index(place)):
            return wrong(f"{name} is not {place}")
        if name != names[asked]:
            return unneeded("this is not what is asked")
        if known.isdisjoint({(">", 0, end), ("<", 0, end)}):
            return wrong("the whole order has not been established")
        return RIGHT

    def _check_chain(self, params, line):
        """(Judgement, facts) of 'Anna > Ben > Dan': each of its parts is a chain, too."""
        names = params[0]
        sign, places = read_chain(names, line)
        pairs = list(zip(places, places[1:]))
        if flaw := self._flaw_of_order(names, pairs):
            return flaw, set()
        for i, j in pairs:
            if j > i + 1:
                reason = f"nothing places {names[i]} and {names[j]} next to each other"
                return unneeded(reason), set()
        return RIGHT, {(sign, *ends) for ends in combinations(places, 2)}

    def _check_clues(self, params, line):
        """Judgement of a check 'Anna > Ben, Ben > Dan', which has to test every clue."""
        names, clues, _ = params
        chains = [read_chain(names, part)[1] for part in line.split(", ")]
        pairs = [pair for places in chains for pair in zip(places, places[1:])]
        if flaw := self._flaw_of_order(names, pairs):
            return flaw
        if len(pairs) > len(chains):  # a chain of more than two is no clue
            raise Unreadable(line)
        for i, j in clues:
            if (i, j) not in pairs:
                return unneeded(f"the clue about {names[i]} and {names[j]} is not tested")
        return RIGHT

    def _flaw_of_order(self, names, pairs):
        """Judgement of the first pair of places that is the wrong way round; None without one."""
        for i, j in pairs:
            if i > j:
                return wrong(f"{names[j]} is before {names[i]}")
        return None


def read_chain(names, text):
    """(sign, places from the first person to the last) of 'Anna > Ben > Dan' or 'Dan < Ben'.

    Raises Unreadable.
    """
    people = re.split(" [<>] ", text)
    signs = set(re.findall("[<>]", text))
    if len(signs) != 1 or not set(people) <= set(names) or len(set(people)) < len(people):
        raise Unreadable(text)
    sign = signs.pop()
    if sign == "<":
        people.reverse()
    return sign, [names.index(name) for name in people]


class Truth(Puzzle):
    """The true rows of a truth table. Params: (expression,).

    Facts are the bits of a row that was worked out, '0 1', the text of a line that counts rows,
    'difference' and 'check'.
    """

    # level -> (variables, operators)
    sizes = {1: (2, 2), 2: (2, 3), 3: (3, 2), 4: (3, 3), 5: (3, 5), 6: (4, 3)}

    def draw(self, rng, level):
        n, operators = self.sizes[level]
        while True:
            leaves = [*range(n), *rng.choices(range(n), k=operators + 1 - n)]
            rng.shuffle(leaves)
            expression = draw_tree(rng, leaves)
            values = rows_of(expression).values()
            # All rows are equally long. One that corrects another has to be short enough to read.
            longest = f"Wait, {row_line(expression, ROWS[n][0])}"
            if len(set(values)) == 2 and len(longest) <= MAX_TEXT:
                return (expression,)

    def ask(self, params, rng):
        wordings = (
            "How many rows of the truth table of {} are true?",
            "In how many rows of its truth table is {} true?",
            "For how many values of its letters is {} true?",
        )
        wording = rng.choice(wordings)
        letters = rng.choice(("pqrs", "abcd", "xyzw"))
        return wording.format(write(params[0], letters))

    def counts(self, params):
        """(rows, true rows, false rows)."""
        values = list(rows_of(params[0]).values())
        return len(values), values.count(1), values.count(0)

    def answer(self, params):
        _, true, _ = self.counts(params)
        return str(true)

    def conclusions(self, params):
        n, true, false = self.counts(params)
        return [f"true in {true} of {n} rows", f"{n} - {false} = {true}"]

    def steps(self, params):
        """Every row worked out, then the count."""
        rows = [row_line(params[0], bits) for bits in rows_of(params[0])]
        return [*rows, self.conclusions(params)[0]]

    def terse(self, params):
        rows = [f"{bits}: {value}" for bits, value in rows_of(params[0]).items()]
        return [*rows, self.conclusions(params)[0]]

    def another(self, params):
        """By the false rows."""
        n, _, false = self.counts(params)
        return [f"false in {false} of {n} rows", self.conclusions(params)[1]]

    def check(self, params):
        n, true, false = self.counts(params)
        return f"Check: {true} + {false} = {n}"

    def check_claim(self, params, line, known, is_check):
        """(Judgement, facts that the line establishes where it is right). Raises Unreadable.

        known: set of the facts of the right lines before. A row establishes its bits; every other
        line has to follow all the rows.
        """
        if is_check:
            return self._check_sum(params, line, known), {"check"}
        if row := re.fullmatch("([01 ]+): (.+)", line):
            bits, text = row.groups()
            return self._check_row(params[0], bits, text), {bits}
        if count := re.fullmatch("(true|false) in [0-9]+ of [0-9]+ rows", line):
            return self._check_count(params, line, count[1], known), {line}
        return self._check_difference(params, line, known), {"difference"}

    def _check_row(self, expression, bits, text):
        """Judgement of the row '0 1: (0 or 1) and not 0 = 1 and 1 = 1'."""
        rows = rows_of(expression)
        if bits not in rows:
            return wrong(f"there is no row {bits}")
        sides = [read_boolean(side) for side in text.split("=")]
        if len(sides) > 1 and sides[0] != put_in(expression, bits):
            return wrong("this is not the expression")
        if any(evaluate(side, (0, 1)) != rows[bits] for side in sides):
            return wrong(f"row {bits} is {rows[bits]}")
        if not all(map(follows, sides[1:], sides)):
            return wrong("a side does not follow from the one before")
        if text.rpartition("=")[2].strip() not in ("0", "1"):
            return wrong("this does not end in the value of the row")
        return RIGHT

    def _check_count(self, params, line, value, known):
        """Judgement of 'true in 3 of 4 rows'. value: 'true' or 'false'."""
        n, true, false = self.counts(params)
        count = true if value == "true" else false
        right_line = f"{value} in {count} of {n} rows"
        if line != right_line:
            return wrong(f"it is {right_line}")
        return self._flaw_of_rows(params, known) or RIGHT

    def _check_difference(self, params, line, known):
        """Judgement of '4 - 1 = 3', all rows less the false ones."""
        n, true, false = self.counts(params)
        a, b, c = read_numbers(line, "-")
        if c != a - b:
            return wrong("the two sides are not equal")
        if (a, b) != (n, false):
            return self._wrong_numbers(params, a, b)
        if flaw := self._flaw_of_rows(params, known):
            return flaw
        if f"false in {false} of {n} rows" not in known:
            return wrong("the false rows have not been counted")
        return RIGHT

    def _check_sum(self, params, line, known):
        """Judgement of a check '3 + 1 = 4', the true rows and the false ones."""
        _, true, false = self.counts(params)
        a, b, c = read_numbers(line, "+")
        if c != a + b:
            return wrong("the two sides are not equal")
        if {a, b} != {true, false}:
            return self._wrong_numbers(params, a, b)
        return self._flaw_of_rows(params, known) or RIGHT

    def _wrong_numbers(self, params, a, b):
        """Judgement of a computation on numbers that are not those it needs."""
        if {a, b} <= set(self.counts(params)):
            return unneeded("this is not needed")
        return wrong("these numbers come from nowhere")

    def _flaw_of_rows(self, params, known):
        """Judgement of a line that comes before all rows have been worked out; else None."""
        missing = [bits for bits in rows_of(params[0]) if bits not in known]
        return wrong(f"row {missing[0]} has not been worked out") if missing else None


class Logic(Mixed):
    """Two kinds of puzzle, each with half of the draws at every level.

    ("order", names from first to last, clues, asked): a clue (i, j), as the question states them in
    turn, says that names[i] comes before names[j]; asked is a place. Levels: 3 people; 4; 5, and
    from here on clues stated the other way round; 6 and a redundant clue; 7 and two; held out: 9
    and two.

    ("truth", ("and", ("or", 0, 1), ("not", 0))): an expression over variables 0, 1, ... Levels: 2
    variables and 2 operators, nots not counted; 2 and 3; 3 and 2; 3 and 3; 3 and 5; held out: 4
    and 3.
    """

    name = "logic"
    kinds = {"order": Order(), "truth": Truth()}

    def draw(self, rng, level):
        kind = rng.choice(("order", "truth"))
        return kind, *self.kinds[kind].draw(rng, level)

    def read_answer(self, problem, text):
        return self.kinds[problem.params[0]].read_answer(problem, text)

    def slip(self, line, rng):
        """Two neighbours of a chain swapped, or the value of a row; '' for other lines."""
        if ": " in line:
            return line[:-1] + str(1 - int(line[-1]))
        names = line.split(" > ")
        i = rng.randrange(max(1, len(names) - 1))
        if len(names) == 1:
            return ""
        names[i : i + 2] = reversed(names[i : i + 2])
        return " > ".join(names)

    def identity(self, params):
        """In which order the clues stand is wording."""
        kind, *own = params
        if kind == "order":
            own[1] = tuple(sorted(own[1]))
        return super().identity((kind, *own))


def read_numbers(line, op):
    """The three numbers of '4 - 1 = 3' where op is '-'. Raises Unreadable."""
    number = "([0-9]{1,3})"
    match = re.fullmatch(f"{number} [{op}] {number} = {number}", line)
    if not match:
        raise Unreadable(line)
    return [int(n) for n in match.groups()]


def draw_tree(rng, leaves):
    """An expression over these leaves, in this order."""
    tree = leaves[0]
    if len(leaves) > 1:
        cut = rng.randrange(1, len(leaves))
        op = rng.choice(tuple(OPERATORS))
        left = draw_tree(rng, leaves[:cut])
        right = draw_tree(rng, leaves[cut:])
        tree = (op, left, right)
    return ("not", tree) if rng.random() < 0.3 else tree


def evaluate(tree, values, ones=1):
    """Value of an expression whose leaves i have values[i].

    A value is one bit, or many at once where `ones` has all of the bits set.
    """
    if isinstance(tree, int):
        return values[tree]
    if tree[0] == "not":
        return ones ^ evaluate(tree[1], values, ones)
    op, left, right = tree
    return OPERATORS[op](evaluate(left, values, ones), evaluate(right, values, ones))


@lru_cache(maxsize=4096)
def rows_of(expression):
    """The truth table: {'0 0': 1, '0 1': 0, ...}."""
    n = 1 + max(map(int, re.findall("[0-9]", str(expression))))
    rows = 2**n
    column = evaluate(expression, COLUMNS[n], ones=2**rows - 1)
    return dict(zip(ROWS[n], map(int, f"{column:0{rows}b}")))


def put_in(tree, bits):
    """The expression with the values of a row, '0 1', in the places of its variables."""
    if isinstance(tree, int):
        return int(bits[2 * tree])
    op, *parts = tree
    return (op, *(put_in(part, bits) for part in parts))


def reduced(tree):
    """An expression of constants with one more layer worked out.

    Every operator that stands between bare constants is replaced by its value.
    """
    if isinstance(tree, int) or all(isinstance(part, int) for part in tree[1:]):
        return evaluate(tree, (0, 1))
    return tree[0], *map(reduced, tree[1:])


def follows(after, before):
    """Does an expression of constants come from another by working out parts of it?"""
    if isinstance(after, int):
        return after == evaluate(before, (0, 1))
    if isinstance(before, int) or after[0] != before[0]:
        return False
    return all(map(follows, after[1:], before[1:]))


def write(tree, letters, inside=False):
    """Text of an expression, with brackets where it stands inside another one.

    ('and', ('or', 0, 1), ('not', 0)) with letters 'pq'  ->  '(p or q) and not p'
    """
    if isinstance(tree, int):
        return letters[tree]
    if tree[0] == "not":
        return f"not {write(tree[1], letters, True)}"
    text = f"{write(tree[1], letters, True)} {tree[0]} {write(tree[2], letters, True)}"
    return f"({text})" if inside else text


def row_line(expression, bits):
    """The line that works a row out: '0 1: (0 or 1) and not 0 = 1 and 1 = 1'."""
    sides = [put_in(expression, bits)]
    while isinstance(sides[-1], tuple):
        sides.append(reduced(sides[-1]))
    return f"{bits}: {' = '.join(write(side, '01') for side in sides)}"


class _BooleanReader:
    """Recursive descent over an expression of 0, 1, not, and, or, xor and brackets."""

    def __init__(self, text):
        self.text = text
        self.tokens = ["", *reversed(re.findall(r"[a-z]+|\S", text))]  # the next one is the last

    def read(self):
        tree = self.binary(0)
        if self.tokens != [""]:
            raise Unreadable(self.text)
        return tree

    def binary(self, depth):
        """One operand, or two with an operator between them."""
        left = self.single(depth)
        if self.tokens[-1] not in OPERATORS:
            return left
        op = self.tokens.pop()
        return op, left, self.single(depth)

    def single(self, depth):
        """A constant, a negation or a bracket."""
        token = self.tokens.pop()
        if token in ("0", "1"):
            return int(token)
        if token == "not" and depth < MAX_DEPTH:
            return token, self.single(depth + 1)
        if token == "(" and depth < MAX_DEPTH:
            tree = self.binary(depth + 1)
            if self.tokens.pop() == ")":
                return tree
        raise Unreadable(self.text)


def read_boolean(text):
    """Tree of an expression of constants.

    '(1 or 0) and not 1'  ->  ('and', ('or', 1, 0), ('not', 1))

    Raises Unreadable, also where brackets have to say what comes first.
    """
    return _BooleanReader(text).read()

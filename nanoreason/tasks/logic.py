"""Logic puzzles: people put in order by clues about two of them, and the rows of a truth table that are true."""

import operator
import re
from functools import lru_cache
from itertools import combinations, product

from nanoreason.tasks.core import MAX_TEXT, RIGHT, UNREADABLE, Family, Unreadable, unneeded, wrong
from nanoreason.tasks.words import PEOPLE

NAMES = tuple(name for name, _, _ in PEOPLE)
RELATIONS = (("taller", "tallest", "shorter", "shortest"), ("older", "oldest", "younger", "youngest"),
             ("faster", "fastest", "slower", "slowest"), ("heavier", "heaviest", "lighter", "lightest"))
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
OPERATORS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
ROWS = {n: [" ".join(bits) for bits in product("01", repeat=n)] for n in (2, 3, 4)}  # of n variables, in counting order
COLUMNS = {n: [int("".join(column), 2) for column in zip(*product("01", repeat=n))] for n in ROWS}  # each variable in all these rows, as bits
MAX_DEPTH = 20  # brackets and nots inside each other that are worth reading


def of_kind(method):
    """A method of Logic that asks the kind of puzzle which the params name."""
    return lambda self, params, *rest: getattr(KINDS[params[0]], method)(params, *rest)


class Logic(Family):
    """Two kinds of puzzle, each with half of the draws at every level. Difficulty grows with the level in both.

    ("order", names from first to last, clues, asked): a clue (i, j), as the question states them in turn, says that names[i] comes before
    names[j]; asked is a place. Levels: 3 people; 4; 5, and from here on clues stated the other way round; 6 and a redundant clue; 7 and two;
    held out: 9 and two.

    ("truth", ("and", ("or", 0, 1), ("not", 0))): an expression over variables 0, 1, ... Levels: 2 variables and 2 operators, nots not
    counted; 2 and 3; 3 and 2; 3 and 3; 3 and 5; held out: 4 and 3.
    """

    name = "logic"

    def draw(self, rng, level):
        return KINDS[rng.choice(("order", "truth"))].draw(rng, level)

    ask, answer, steps, terse, another, check = map(of_kind, ("ask", "answer", "steps", "terse", "another", "check"))

    def slip(self, line, rng):
        """Two neighbours of a chain swapped, or the value of a row; '' for other lines."""
        if ": " in line:
            return line[:-1] + str(1 - int(line[-1]))
        names = line.split(" > ")
        i = rng.randrange(max(1, len(names) - 1))
        return " > ".join(names[:i] + names[i : i + 2][::-1] + names[i + 2 :]) if len(names) > 1 else ""

    def identity(self, params):
        """In which order the clues stand is wording."""
        return super().identity(params if params[0] == "truth" else (*params[:2], tuple(sorted(params[2])), params[3]))

    def verify(self, problem, text):
        """A number by its value; a name alone, in any case, with or without a period."""
        if problem.params[0] == "truth":
            return super().verify(problem, text)
        return re.fullmatch(rf"\s*{self.answer(problem.params)}\.?\s*", text, re.ASCII | re.IGNORECASE) is not None

    def check_trace(self, params, lines):
        """The kind judges each line by the facts of the right lines before it; a line without a new fact is a repetition."""
        known, judgements = set(), []
        for cue, line in lines:
            try:
                judgement, facts = KINDS[params[0]].check_trace(params, cue == "Check", line if len(line) <= MAX_TEXT else "", known)
            except Unreadable:
                judgement = UNREADABLE
            if judgement is RIGHT:
                judgement = unneeded("this was said before") if facts <= known else RIGHT
                known |= facts
            judgements.append(judgement)
        return judgements

    def concludes(self, params, lines):
        return not set(lines).isdisjoint(KINDS[params[0]].conclusions(params))


class Order:
    """Methods for params ("order", names, clues, asked), as in Family but for `judge`."""

    people = {1: 3, 2: 4, 3: 5, 4: 6, 5: 7, 6: 9}
    redundant = {4: 1, 5: 2, 6: 2}

    def draw(self, rng, level):
        n = self.people[level]
        apart = [(i, j) for i, j in combinations(range(n), 2) if j > i + 1]
        clues = [(i, i + 1) for i in range(n - 1)] + rng.sample(apart, self.redundant.get(level, 0))
        rng.shuffle(clues)
        return "order", tuple(rng.sample(NAMES, n)), tuple(clues), rng.randrange(n)

    def ask(self, params, rng):
        _, names, clues, asked = params
        more, most, less, least = rng.choice(RELATIONS)
        both_ways = len(names) >= self.people[3]
        told = [f"{names[j]} is {less} than {names[i]}. " if both_ways and rng.random() < 0.5 else f"{names[i]} is {more} than {names[j]}. "
                for i, j in clues]
        wanted = most if asked == 0 else least if asked == len(names) - 1 else f"{ORDINALS[asked]} {most}"
        return "".join(told) + rng.choice(("Who is the {}?", "Who of them is the {}?", "Which of them is the {}?", "Name the {}.")).format(wanted)

    def answer(self, params):
        return params[1][params[3]]

    def conclusions(self, params):
        """The lines that answer; 'last' comes before what else the last place may be called."""
        _, names, _, asked = params
        return [f"{names[asked]} is {place}" for place in ("last",) * (asked == len(names) - 1) + ORDINALS[asked : asked + 1]]

    def steps(self, params):
        """Every clue about neighbours writes the chain that it makes or joins; a redundant clue writes nothing."""
        _, names, clues, _ = params
        lines, joined = [], set()
        for i, j in clues:
            if j == i + 1:
                joined.add(i)
                first = next(k for k in range(i, -1, -1) if k - 1 not in joined)
                last = next(k for k in range(j, len(names)) if k not in joined)
                lines.append(" > ".join(names[first : last + 1]))
        return [*lines, self.conclusions(params)[0]]

    def terse(self, params):
        return [" > ".join(params[1]), self.conclusions(params)[0]]

    def another(self, params):
        upwards = params[1][::-1]
        return [" < ".join(upwards[:n]) for n in range(2, len(upwards) + 1)]

    def check(self, params):
        return "Check: " + ", ".join(f"{params[1][i]} > {params[1][j]}" for i, j in params[2])

    def check_trace(self, params, check, line, known):
        """(Judgement, facts): a chain of neighbours establishes each of its parts as (sign, first place, last place)."""
        _, names, clues, asked = params
        if " is " in line and not check:
            name, _, place = line.partition(" is ")
            if name not in names or place not in ("last", *ORDINALS):
                raise Unreadable(line)
            if names.index(name) != (len(names) - 1 if place == "last" else ORDINALS.index(place)):
                return wrong(f"{name} is not {place}"), ()
            if name != names[asked]:
                return unneeded("this is not what is asked"), ()
            established = not known.isdisjoint({(">", 0, len(names) - 1), ("<", 0, len(names) - 1)})
            return RIGHT if established else wrong("the whole order has not been established"), {"conclusion"}
        chains = [read_chain(names, part) for part in (line.split(", ") if check else [line])]
        pairs = [pair for _, places in chains for pair in zip(places, places[1:])]
        for i, j in pairs:
            if i > j:
                return wrong(f"{names[j]} is before {names[i]}"), ()
        if check:
            if len(pairs) > len(chains):
                raise Unreadable(line)
            left = next((f"{names[i]} and {names[j]}" for i, j in clues if (i, j) not in pairs), None)
            return unneeded(f"the clue about {left} is not tested") if left else RIGHT, {"check"}
        for i, j in pairs:
            if j > i + 1:
                return unneeded(f"nothing places {names[i]} and {names[j]} next to each other"), ()
        sign, places = chains[0]
        return RIGHT, {(sign, *ends) for ends in combinations(places, 2)}


def read_chain(names, text):
    """(sign, places from the first person to the last) of 'Anna > Ben > Dan' or 'Dan < Ben'; raises Unreadable."""
    people, signs = re.split(" [<>] ", text), set(re.findall("[<>]", text))
    if len(signs) != 1 or not set(people) <= set(names) or len(set(people)) < len(people):
        raise Unreadable(text)
    sign = signs.pop()
    return sign, [names.index(name) for name in (people if sign == ">" else people[::-1])]


class Truth:
    """Methods for params ("truth", expression), as in Family but for `judge`."""

    sizes = {1: (2, 2), 2: (2, 3), 3: (3, 2), 4: (3, 3), 5: (3, 5), 6: (4, 3)}  # variables, operators

    def draw(self, rng, level):
        n, operators = self.sizes[level]
        while True:
            leaves = [*range(n), *rng.choices(range(n), k=operators + 1 - n)]
            rng.shuffle(leaves)
            expression = draw_tree(rng, leaves)
            # All rows are equally long, and a row that corrects another has to be short enough to be read.
            if len(set(rows_of(expression).values())) == 2 and len(f"Wait, {row_line(expression, ROWS[n][0])}") <= MAX_TEXT:
                return "truth", expression

    def ask(self, params, rng):
        wording = rng.choice(("How many rows of the truth table of {} are true?", "In how many rows of its truth table is {} true?",
                              "For how many values of its letters is {} true?"))
        return wording.format(write(params[1], rng.choice(("pqrs", "abcd", "xyzw"))))

    def counts(self, params):
        """(rows, true rows, false rows)."""
        values = [*rows_of(params[1]).values()]
        return len(values), values.count(1), values.count(0)

    def answer(self, params):
        return str(self.counts(params)[1])

    def conclusions(self, params):
        n, true, false = self.counts(params)
        return [f"true in {true} of {n} rows", f"{n} - {false} = {true}"]

    def steps(self, params):
        return [*(row_line(params[1], bits) for bits in rows_of(params[1])), self.conclusions(params)[0]]

    def terse(self, params):
        return [*(f"{bits}: {value}" for bits, value in rows_of(params[1]).items()), self.conclusions(params)[0]]

    def another(self, params):
        n, _, false = self.counts(params)
        return [f"false in {false} of {n} rows", self.conclusions(params)[1]]

    def check(self, params):
        n, true, false = self.counts(params)
        return f"Check: {true} + {false} = {n}"

    def check_trace(self, params, check, line, known):
        """(Judgement, facts): a row establishes its bits; every other line has to follow all the rows."""
        rows, (n, true, false) = rows_of(params[1]), self.counts(params)
        if not check and (row := re.fullmatch("([01 ]+): (.+)", line)):
            return self.judge_row(params[1], rows, *row.groups()), {row[1]}
        if not check and (said := re.fullmatch("(true|false) in [0-9]+ of [0-9]+ rows", line)):
            if line != (fact := f"{said[1]} in {true if said[1] == 'true' else false} of {n} rows"):
                return wrong(f"it is {fact}"), ()
        elif said := re.fullmatch(f"([0-9]{{1,3}}) [{'+' if check else '-'}] ([0-9]{{1,3}}) = ([0-9]{{1,3}})", line):
            a, b, c = map(int, said.groups())
            if c != (a + b if check else a - b):
                return wrong("the two sides are not equal"), ()
            if {a, b} != {true, false} if check else (a, b) != (n, false):
                return unneeded("this is not needed") if {a, b} <= {n, true, false} else wrong("these numbers come from nowhere"), ()
        else:
            raise Unreadable(line)
        if missing := [bits for bits in rows if bits not in known]:
            return wrong(f"row {missing[0]} has not been worked out"), ()
        if " - " in line and f"false in {false} of {n} rows" not in known:
            return wrong("the false rows have not been counted"), ()
        return RIGHT, {"check" if check else line}

    def judge_row(self, expression, rows, bits, text):
        if bits not in rows:
            return wrong(f"there is no row {bits}")
        sides = [read_boolean(side) for side in text.split("=")]
        if len(sides) > 1 and sides[0] != put_in(expression, bits):
            return wrong("this is not the expression")
        if any(evaluate(side, (0, 1)) != rows[bits] for side in sides):
            return wrong(f"row {bits} is {rows[bits]}")
        if not all(map(follows, sides[1:], sides)):
            return wrong("a side does not follow from the one before")
        return RIGHT if text.rpartition("=")[2].strip() in ("0", "1") else wrong("this does not end in the value of the row")


KINDS = {"order": Order(), "truth": Truth()}


def draw_tree(rng, leaves):
    """An expression over these leaves, in this order."""
    tree = leaves[0]
    if len(leaves) > 1:
        cut = rng.randrange(1, len(leaves))
        tree = rng.choice(tuple(OPERATORS)), draw_tree(rng, leaves[:cut]), draw_tree(rng, leaves[cut:])
    return ("not", tree) if rng.random() < 0.3 else tree


def evaluate(tree, values, ones=1):
    """Value of an expression whose leaves i have values[i]: one bit, or many at once where `ones` has all of the bits set."""
    if isinstance(tree, int):
        return values[tree]
    if tree[0] == "not":
        return ones ^ evaluate(tree[1], values, ones)
    return OPERATORS[tree[0]](evaluate(tree[1], values, ones), evaluate(tree[2], values, ones))


@lru_cache(maxsize=4096)
def rows_of(expression):
    """The truth table: {'0 0': 1, '0 1': 0, ...}."""
    n = 1 + max(map(int, re.findall("[0-9]", str(expression))))
    return dict(zip(ROWS[n], map(int, f"{evaluate(expression, COLUMNS[n], 2 ** 2**n - 1):0{2**n}b}")))


def put_in(tree, bits):
    """The expression with the values of a row, '0 1', in the places of its variables."""
    return int(bits[2 * tree]) if isinstance(tree, int) else (tree[0], *(put_in(part, bits) for part in tree[1:]))


def reduced(tree):
    """An expression of constants in which every operator that stands between bare constants has been worked out."""
    if isinstance(tree, int) or all(isinstance(part, int) for part in tree[1:]):
        return evaluate(tree, (0, 1))
    return tree[0], *map(reduced, tree[1:])


def follows(after, before):
    """Does an expression of constants come from another by working out parts of it?"""
    if isinstance(after, int):
        return after == evaluate(before, (0, 1))
    return isinstance(before, tuple) and after[0] == before[0] and all(map(follows, after[1:], before[1:]))


def write(tree, letters, inside=False):
    """('and', ('or', 0, 1), ('not', 0)) with letters 'pq' -> '(p or q) and not p'."""
    if isinstance(tree, int):
        return letters[tree]
    if tree[0] == "not":
        return f"not {write(tree[1], letters, True)}"
    text = f"{write(tree[1], letters, True)} {tree[0]} {write(tree[2], letters, True)}"
    return f"({text})" if inside else text


def row_line(expression, bits):
    """'0 1: (0 or 1) and not 0 = 1 and 1 = 1'."""
    sides = [put_in(expression, bits)]
    while isinstance(sides[-1], tuple):
        sides.append(reduced(sides[-1]))
    return f"{bits}: {' = '.join(write(side, '01') for side in sides)}"


def read_boolean(text):
    """'(1 or 0) and not 1' -> ('and', ('or', 1, 0), ('not', 1)). Raises Unreadable, also where brackets have to say what comes first."""
    tokens = ["", *reversed(re.findall(r"[a-z]+|\S", text))]

    def binary(depth):
        left = single(depth)
        return (tokens.pop(), left, single(depth)) if tokens[-1] in OPERATORS else left

    def single(depth):
        token = tokens.pop()
        if token in ("0", "1"):
            return int(token)
        if token == "not" and depth < MAX_DEPTH:
            return token, single(depth + 1)
        if token == "(" and depth < MAX_DEPTH:
            tree = binary(depth + 1)
            if tokens.pop() == ")":
                return tree
        raise Unreadable(text)

    tree = binary(0)
    if tokens != [""]:
        raise Unreadable(text)
    return tree

"""Logic puzzles.

People put in order by clues about two of them, and the rows of a truth table that are true. Both
are worked by a method: place by place, and column by column.
"""

import operator
import re
from collections import Counter
from functools import lru_cache
from itertools import combinations, product

from nanoreason.tasks.core import (
    MAX_TEXT,
    RIGHT,
    UNREADABLE,
    Family,
    Mixed,
    Unreadable,
    Verdict,
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
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # the names of the columns of a truth table
OPERATORS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
MAX_DEPTH = 20  # brackets and nots inside each other that are read

# number of variables -> the rows of a truth table in counting order: ['0 0', '0 1', '1 0', '1 1']
ROWS = {n: [" ".join(bits) for bits in product("01", repeat=n)] for n in (2, 3, 4)}


def columns(n):
    """The values of each of n variables in all rows, as the bits of a number: [0b0011, 0b0101]."""
    return [int("".join(bits), 2) for bits in zip(*product("01", repeat=n))]


COLUMNS = {n: columns(n) for n in ROWS}


class Puzzle(Family):
    """A kind of puzzle, whose lines are checked on the facts of the lines before them.

    Subclasses also have

    check_claim(params, line, known, is_check) -> (Judgement, set of facts that the line establishes
                                unless it is wrong), known being the facts so far; may raise
                                Unreadable
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
            if judgement.verdict is not Verdict.WRONG:
                known |= facts
            judgements.append(judgement)
        return judgements

    def concludes(self, params, lines):
        return not set(lines).isdisjoint(self.conclusions(params))


class Order(Puzzle):
    """People in order. Params: (names, clues, asked).

    It is worked from the first place on: all clues the same way round, and then, again and again,
    whoever is on no right side is next and takes his or her clues away.

    'Ben > Dan, Anna > Ben', 'Anna is first: Ben > Dan', 'Ben is second', 'Dan is last'

    A chain of neighbours, 'Anna > Ben > Dan', is another way to say it.

    Facts are 'clues', ('place', place) of each place found in its turn, (sign, first place, last
    place) of each chain, 'conclusion' and 'check'.
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
        """All clues, then place by place: who is on no right side is next.

        Each place takes the clues of its person away:

        'Ben > Dan, Anna > Ben'  ->  'Anna is first: Ben > Dan'  ->  'Ben is second'  ->  ...
        """
        names, clues, asked = params
        lines = [write_clues(names, clues)]
        for place in range(asked):
            clues = clues_after(clues, place)
            line = f"{names[place]} is {ORDINALS[place]}"
            lines.append(f"{line}: {write_clues(names, clues)}" if clues else line)
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
        return f"Check: {write_clues(names, clues)}"

    def check_claim(self, params, line, known, is_check):
        """As in Puzzle. After a check that tests too little a full one is still of use."""
        if is_check:
            judgement = self._check_test(params, line)
            return judgement, {"check"} if judgement is RIGHT else set()
        if " is " in line:
            return self._check_place(params, line, known)
        if "," in line:
            return self._check_clues(params, line), {"clues"}
        return self._check_chain(params, line)

    def _check_clues(self, params, line):
        """Judgement of 'Ben > Dan, Anna > Ben', which has to be all clues."""
        names, clues, _ = params
        return self._flaw_of_clues(names, read_clues(names, line), clues) or RIGHT

    def _check_place(self, params, line, known):
        """(Judgement, facts) of 'Anna is first: Ben > Dan', 'Ben is second' or 'Dan is last'.

        It follows the places before it, and the answer also a chain of all people.
        """
        names, clues, asked = params
        last = len(names) - 1
        said, colon, rest = line.partition(": ")
        name, _, place = said.partition(" is ")
        if name not in names or place not in ("last", *ORDINALS):
            raise Unreadable(line)
        at = last if place == "last" else ORDINALS.index(place)
        left = clues_after(clues, at)
        if names.index(name) != at:
            return wrong(f"{name} is not {place}"), set()
        if colon and (flaw := self._flaw_of_clues(names, read_clues(names, rest), left)):
            return flaw, set()

        # The answer from a chain of all people, which establishes every place.
        answers = at == asked and not colon
        chained = not known.isdisjoint({(">", 0, last), ("<", 0, last)})
        if answers and chained:
            return RIGHT, {"conclusion"}

        # The next place, with the clues that it leaves.
        if at > asked or not (answers or colon or not left):
            return unneeded("this is not what is asked"), set()
        missing = [k for k in range(at) if ("place", k) not in known]
        if "clues" in known and not missing:
            return RIGHT, {"conclusion"} if answers else {("place", at)}
        if chained:  # it does follow, from the chain, and is no answer
            return unneeded("this is not what is asked"), set()
        if "clues" not in known:
            return wrong("the whole order has not been established"), set()
        return wrong(f"nobody has been found to be {ORDINALS[missing[0]]}"), set()

    def _flaw_of_clues(self, names, said, clues):
        """Judgement of said clues (i, j) that are not exactly these; None where they are."""
        if flaw := self._flaw_of_order(names, said):
            return flaw
        times = Counter(said)
        for i, j in [*said, *clues]:
            text = write_clues(names, [(i, j)])
            if (i, j) not in clues:
                return wrong(f"{text} is no clue that is left")
            if times[i, j] != 1:
                return wrong(f"{text} is {'said twice' if times[i, j] else 'left out'}")
        return None

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

    def _check_test(self, params, line):
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


def write_clues(names, clues):
    """Text of clues (i, j), all the same way round: 'Grace > Jonas, Ben > Anna'."""
    return ", ".join(f"{names[i]} > {names[j]}" for i, j in clues)


def read_clues(names, text):
    """The clues of a text as from write_clues. Raises Unreadable."""
    pairs = [clue.split(" > ") for clue in text.split(", ")]
    if any(len(pair) != 2 or not set(pair) <= set(names) for pair in pairs):
        raise Unreadable(text)
    return [(names.index(first), names.index(second)) for first, second in pairs]


def clues_after(clues, place):
    """The clues that are left once the people up to this place have been found."""
    return tuple((i, j) for i, j in clues if i > place)


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

    It is worked by columns: the variables, in the order of their letters, are A, B and so on, and
    every operator on columns makes the next one, until one is that of the whole expression. Before
    each of them the expression is written anew, with the letters of the columns that there are.

    'A = 0011', 'B = 0101', '(A or B) and not A', 'C = A or B = 0111', 'C and not A',
    'D = not A = 1100', 'C and D', 'E = C and D = 0100'

    A row worked out, '0 1: (0 or 1) and not 0 = 1 and 1 = 1', is another way to say it.

    Facts are (letter, part, bits) of each column, the part being in_order, and None where it is no
    part of the expression; how many operators the expression has where it is written anew; the
    bits of a row that was worked out, '0 1'; the text of a line that counts rows; 'difference' and
    'check'.
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
        letters = "".join(sorted(letters[: variables(params[0])]))
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
        """The column of every variable, then of every operator from inside out, then the count.

        Of '(p or q) and not p' these are the lines above and 'true in 1 of 4 rows'.
        """
        n = variables(params[0])
        numbers = {}  # of the columns so far: {in_order(part): 0 for A, 1 for B, ...}
        lines = []
        for known_as, part in parts_of(params[0]).items():
            sides = [LETTERS[len(numbers)], bits_of(part, n)]
            if not isinstance(part, int):
                lines.append(write(with_columns(params[0], numbers), LETTERS))
                sides.insert(1, write(with_columns(part, numbers), LETTERS))
            lines.append(" = ".join(sides))
            numbers[known_as] = len(numbers)
        return [*lines, self.conclusions(params)[0]]

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
        """(Judgement, facts that the line establishes unless it is wrong). Raises Unreadable.

        known: set of the facts of the lines before. A row or column establishes itself; every other
        line has to follow all the rows, or the column of the whole expression.
        """
        column = re.fullmatch("([A-Z]) = (?:(.+) = )?([01]+)", line)
        if column and not is_check:
            return self._check_column(params[0], *column.groups(), known)
        if is_check:
            fact = "check"
            judgement = self._check_sum(params, line, known)
        elif row := re.fullmatch("([01 ]+): (.+)", line):
            fact, text = row.groups()
            judgement = self._check_row(params[0], fact, text)
        elif count := re.fullmatch("(true|false) in [0-9]+ of [0-9]+ rows", line):
            fact = line
            judgement = self._check_count(params, line, count[1], known)
        elif re.fullmatch("[A-Zadnortx() ]+", line):
            fact = len(re.findall("[a-z]+", line))
            judgement = self._check_rewritten(params[0], line, fact, known)
        else:
            fact = "difference"
            judgement = self._check_difference(params, line, known)
        return judgement, {fact} if judgement is RIGHT else set()

    def _check_column(self, expression, letter, text, bits, known):
        """(Judgement, facts) of 'A = 0011', or of 'C = A or B = 0111' where the text is 'A or B'.

        A true column that is no part of the expression has its letter, too.
        """
        columns = {fact[0]: fact for fact in known if isinstance(fact, tuple)}
        n = variables(expression)
        number = LETTERS.index(letter)
        if (number < n) != (text is None):
            return wrong(f"{letter} is {'a' if number < n else 'no'} variable"), set()
        if text is None:
            part = number
            value = COLUMNS[n][number]
        else:
            op, *operands = read_operation(text)
            if missing := [name for name in operands if name not in columns]:
                return wrong(f"{missing[0]} has not been worked out"), set()
            _, parts, values = zip(*(columns[name] for name in operands))
            part = None if None in parts else in_order((op, *parts))
            value = operate(op, [int(column, 2) for column in values], 2**n)
        right = f"{value:0{2**n}b}"
        if bits != right:
            return wrong(f"{text or letter} is {right}"), set()
        found = {column[1] for column in columns.values()}
        fact = (letter, part if part in parts_of(expression) else None, bits)
        if number != len(columns):
            if fact in known:
                return unneeded("this was said before"), set()
            return wrong(f"{letter} is not the next letter"), set()
        if fact[1] is None:
            return unneeded("this is no part of the expression"), {fact}
        return unneeded("this was said before") if part in found else RIGHT, {fact}

    def _check_rewritten(self, expression, text, operators, known):
        """Judgement of the expression with the letters of columns: 'C and not A'.

        It has fewer operators than before: else it could be said in every order, again and again.
        """
        parts = {fact[0]: fact[1] for fact in known if isinstance(fact, tuple)}
        letters = re.findall("[A-Z]", text)
        if missing := [letter for letter in letters if letter not in parts]:
            return wrong(f"{missing[0]} has not been worked out")
        if None in map(parts.get, letters):
            return wrong("this is not the expression")
        whole = in_order(expression)
        if in_order(read_boolean(text, parts)) != whole:
            return wrong("this is not the expression")
        if whole in parts.values():
            return unneeded("the column of the whole expression is there")
        if any(isinstance(fact, int) and fact <= operators for fact in known):
            return unneeded("this is no shorter than before")
        return RIGHT

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
        """Judgement of a line that comes before the work that it needs; None of another one.

        It needs the column of the whole expression, or all the rows.
        """
        parts = [fact[1] for fact in known if isinstance(fact, tuple)]
        missing = [bits for bits in rows_of(params[0]) if bits not in known]
        if in_order(params[0]) in parts or not missing:
            return None
        if parts:
            return wrong("the column of the whole expression has not been worked out")
        return wrong(f"row {missing[0]} has not been worked out")


class Logic(Mixed):
    """Two kinds of puzzle, each with half of the draws at every level.

    ("order", names from first to last, clues, asked): a clue (i, j), as the question states them in
    turn, says that names[i] comes before names[j]; asked is a place. Levels: 3 people; 4; 5, and
    from here on clues stated the other way round; 6 and a redundant clue; 7 and two; held out: 9
    and two.

    ("truth", ("and", ("or", 0, 1), ("not", 0))): an expression over variables 0, 1, ..., which are
    the letters of the question in the order of the alphabet. Levels: 2 variables and 2 operators,
    nots not counted; 2 and 3; 3 and 2; 3 and 3; 3 and 5; held out: 4 and 3.
    """

    name = "logic"
    kinds = {"order": Order(), "truth": Truth()}

    def draw(self, rng, level):
        kind = rng.choice(("order", "truth"))
        return kind, *self.kinds[kind].draw(rng, level)

    def read_answer(self, problem, text):
        return self.kinds[problem.params[0]].read_answer(problem, text)

    def slip(self, line, rng):
        """A clue turned, the wrong person in a place or a wrong bit of a column; '' for others."""
        if column := re.fullmatch("(.* = )?([01]{2,})", line):
            head, bits = column.groups("")
            i = rng.randrange(len(bits))
            return f"{head}{bits[:i]}{1 - int(bits[i])}{bits[i + 1 :]}"
        stated = re.fullmatch("(?:[A-Za-z]+ is ([a-z]+): )?([A-Za-z]+ > [A-Za-z]+(?:, .+)?)", line)
        if not stated:
            return ""
        place, text = stated.groups()
        clues = text.split(", ")
        i = rng.randrange(len(clues))
        first, second = clues[i].split(" > ")
        if place and rng.random() < 0.5:  # taken before his or her turn
            return f"{first} is {place}: {text}"
        clues[i] = f"{second} > {first}"
        return line.removesuffix(text) + ", ".join(clues)

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


def read_operation(text):
    """An operation on columns: 'A or B' -> ['or', 'A', 'B'], 'not A' -> ['not', 'A'].

    Raises Unreadable.
    """
    match = re.fullmatch("([A-Z]) (and|or|xor) ([A-Z])|(not) ([A-Z])", text)
    if not match:
        raise Unreadable(text)
    a, op, b, negation, operand = match.groups()
    return [op, a, b] if op else [negation, operand]


def operate(op, columns, rows):
    """The column that an operator makes of one or two, each a number of so many bits."""
    return 2**rows - 1 ^ columns[0] if op == "not" else OPERATORS[op](*columns)


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


def variables(expression):
    """How many variables an expression has."""
    return 1 + max(map(int, re.findall("[0-9]", str(expression))))


def bits_of(expression, n):
    """The column of an expression over n variables, from the first row to the last.

    ('or', 0, 1) of 2 variables  ->  '0111'
    """
    rows = 2**n
    return f"{evaluate(expression, COLUMNS[n], ones=2**rows - 1):0{rows}b}"


@lru_cache(maxsize=4096)
def rows_of(expression):
    """The truth table: {'0 0': 1, '0 1': 0, ...}."""
    n = variables(expression)
    return dict(zip(ROWS[n], map(int, bits_of(expression, n))))


def in_order(tree):
    """The expression with the operands of every and, or, xor sorted: ('or', 1, 0) -> ('or', 0, 1).

    Two expressions share it where they differ at most in the order of operands.
    """
    if isinstance(tree, int):
        return tree
    op, *operands = tree
    return (op, *sorted(map(in_order, operands), key=str))


@lru_cache(maxsize=4096)
def parts_of(expression):
    """The variables of an expression, then its parts from inside out: {in_order(part): part}.

    Of ('and', ('or', 1, 0), ('not', 0)) these are 0, 1, ('or', 1, 0), ('not', 0) and the whole.
    """
    parts = {i: i for i in range(variables(expression))}

    def visit(tree):
        if not isinstance(tree, int):
            for operand in tree[1:]:
                visit(operand)
            parts.setdefault(in_order(tree), tree)

    visit(expression)
    return parts


def with_columns(tree, numbers):
    """The expression with the numbers of columns in the places of the parts that have one.

    numbers: {in_order(part): number}. ('and', ('or', 1, 0), ('not', 0)) with {0: 0, 1: 1,
    ('or', 0, 1): 2}  ->  ('and', 2, ('not', 0))
    """
    if in_order(tree) in numbers:
        return numbers[in_order(tree)]
    op, *parts = tree
    return (op, *(with_columns(part, numbers) for part in parts))


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
    """Recursive descent over an expression of leaves, not, and, or, xor and brackets.

    leaves: {text: the tree that stands for it}.
    """

    def __init__(self, text, leaves):
        self.text = text
        self.leaves = leaves
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
        """A leaf, a negation or a bracket."""
        token = self.tokens.pop()
        if token in self.leaves:
            return self.leaves[token]
        if token == "not" and depth < MAX_DEPTH:
            return token, self.single(depth + 1)
        if token == "(" and depth < MAX_DEPTH:
            tree = self.binary(depth + 1)
            if self.tokens.pop() == ")":
                return tree
        raise Unreadable(self.text)


CONSTANTS = {"0": 0, "1": 1}


def read_boolean(text, leaves=CONSTANTS):
    """Tree of an expression of constants, or of other leaves {text: tree}.

    '(1 or 0) and not 1'  ->  ('and', ('or', 1, 0), ('not', 1))

    Raises Unreadable, also where brackets have to say what comes first.
    """
    return _BooleanReader(text, leaves).read()

"""Countdown: make a target from given numbers.

The family whose worked solutions search: try by try in a fixed order, and then the moves of the
path that was found. A trace may also make moves, fail and go back.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, islice
from typing import NamedTuple

from nanoreason.tasks.core import (
    MAX_CHECKS,
    RIGHT,
    UNREADABLE,
    Family,
    Unreadable,
    chain_lines,
    evaluate,
    miscalculate,
    read_statement,
    unneeded,
    wrong,
)

# '25 - 7 = 18, left 3 18': numbers 1 and 3, operation 2, result 4, ending 5.
MOVE = re.compile(
    r"([1-9][0-9]{0,5}) ?([-+*×/]) ?([1-9][0-9]{0,5}) ?= ?(-?[0-9./]{1,12})"
    r"(, left [-0-9 ]{1,80}|, not [0-9]{1,6})?"
)
BACK = re.compile(r"Back to ([1-9][0-9]{0,5}(?: [1-9][0-9]{0,5}){0,9})")
# '3 + 7 + 25 = 35' or '35 - 25 = 10' in a try: left side 1, result 2.
WHOLE = "(?:0|[1-9][0-9]{0,5})"
STATEMENT = re.compile(
    rf"({WHOLE}(?: ?\+ ?{WHOLE})+|{WHOLE} ?[-*×/] ?{WHOLE}) ?= ?({WHOLE})"
)
# -7 and 2(3): the shared grammar reads them, an answer must not hold them.
SIGN_OR_GAP = re.compile(r"(?:^|[-+*×/(]) *-|[0-9)] *\(|\) *[0-9]")
PRIME = 2**61 - 1
MOST_PRODUCTS = 3  # products and quotients that the method tries, of five numbers or more
MOST_PAIRS = 10  # sums of two on one line


def result(a, op, b):
    """a op b where that is a whole number above 0, else None: 0 is no number to go on with."""
    return work_out(op, (a, b)) or None


def read_side(text):
    """(operation, numbers) of the left side of a STATEMENT: '3 + 7 + 25' -> ('+', [3, 7, 25])."""
    op = re.search(r"[-+*×/]", text)[0].replace("×", "*")
    return op, [int(n) for n in re.findall("[0-9]+", text)]


def work_out(op, numbers):
    """The result of a sum, or of another operation on two numbers.

    None where it is below 0 or no whole number. numbers: whole and not below 0.
    """
    a, b = numbers[:2]
    if op == "+":
        return sum(numbers)
    if op == "*":
        return a * b
    if op == "-":
        return a - b if a >= b else None
    return a // b if b and a % b == 0 else None


def after(state, move):
    """The state, a sorted tuple of numbers, that a move (a, op, b) leaves.

    after((3, 7, 25), (7, '*', 3))  ->  (21, 25)

    Raises ValueError where a or b is not in the state.
    """
    left = list(state)
    left.remove(move[0])
    left.remove(move[2])
    return tuple(sorted([*left, result(*move)]))


def along(state, path):
    """Every move of a path, with the state that it is made from.

    [((3, 7, 25), (7, '*', 3)), ((21, 25), (25, '+', 21))]
    """
    events = []
    for move in path:
        events.append((state, move))
        state = after(state, move)
    return events


def moves(state):
    """All moves from a sorted state to whole numbers above 0, the larger number first."""
    return [
        (a, op, b)
        for i, b in enumerate(state)
        for a in state[i + 1 :]
        for op in "+-*/"
        if result(a, op, b)
    ]


def solutions(state, target):
    """All paths that make the target of all numbers of a state.

    Exhaustive: milliseconds for four numbers, minutes for six.
    """
    if len(state) == 1:
        if state[0] == target:
            yield ()
        return
    for move in moves(state):
        for path in solutions(after(state, move), target):
            yield (move, *path)


# The method: what anyone can try in turn. A try is (the statements of its line, the path that it
# finds or None). Each generator yields the tries of one idea; method stops at the first that finds
# a path.


@lru_cache(maxsize=4096)
def method(numbers, target):
    """(lines, path) of the tries, in a fixed order, until one finds a path to the target.

    The path is None where none does. numbers: sorted.

    method((6, 9, 18), 54)
        'Try 6 + 9 = 15, 15 + 18 = 33'                signs: the sum is too small
        'Try 9 * 6 = 54, 54 + 18 = 72, 54 - 18 = 36'  a product, and signs on what is left
        'Try 54 / 6 = 9, 18 - 9 = 9'                  factors: the path is (18 - 9) * 6
    """
    lines = []
    for statements, path in tries(numbers, target):
        lines.append("Try " + ", ".join(statements))
        if path is not None:
            return tuple(lines), path
    return tuple(lines), None


def tries(numbers, target):
    """All tries of the method, of which those after a path are not needed.

    Signs alone; a product or quotient of two numbers, and signs on what is left; of four numbers,
    the target divided or multiplied by one of them, and signs on the others; of three or four,
    factors.
    """
    yield from by_signs(numbers, target)
    candidates = useful_moves(numbers, target)
    if len(numbers) > 4:
        candidates = islice(candidates, MOST_PRODUCTS)
    for move in candidates:
        signs = by_signs(after(numbers, move), target)
        yield from joined(f"{spaced(move)} = {result(*move)}", signs, before=(move,))
    if len(numbers) == 3:
        statements, path = by_factors(numbers, target)
        if statements:
            yield statements, path
    elif len(numbers) == 4:
        yield from by_last_factor(numbers, target)
        for statement, three, wanted, last in outer_moves(numbers, target):
            yield from joined(statement, [by_factors(three, wanted)], behind=(last,))


def joined(statement, found, before=(), behind=()):
    """Tries with a statement in front of each, and with moves around the path."""
    for statements, path in found:
        yield [statement, *statements], path if path is None else (*before, *path, *behind)


def by_signs(state, target):
    """Add all numbers up, and halve what is over: that much has to be subtracted.

    It is looked for among the numbers, and among the sums of two of four or more; so is the rest,
    which has to be added.

    by_signs((12, 14, 20), 6)
        '12 + 14 = 26', '26 + 20 = 46', '46 - 6 = 40', '40 / 2 = 20', '46 - 20 = 26': 20 has to be
        subtracted
    """
    if len(state) == 2:
        yield by_sum_or_difference(state, target)
        return
    total = sum(state)
    over = total - target
    # two numbers at a time: a sum of three at once is what small models get wrong
    statements = chain_lines(state[0], [("+", n) for n in state[1:]])
    if over >= 0:
        statements.append(f"{total} - {target} = {over}")
    if over < 0 or over % 2:
        yield statements, None
        return
    less = over // 2
    if less:
        statements += [f"{over} / 2 = {less}", f"{total} - {less} = {total - less}"]
    places = range(len(state))
    singles = [(i,) for i in places] if less else [()]
    path = signs_path(state, target, singles)
    yield statements, path
    if path is not None or len(state) < 4:
        return
    # Of four numbers each pair leaves a pair: those with the first are enough.
    pairs = [pair for pair in combinations(places, 2) if len(state) > 4 or pair[0] == 0]
    for start in range(0, len(pairs), MOST_PAIRS):
        statements = []
        for i, j in pairs[start : start + MOST_PAIRS]:
            statements.append(f"{state[i]} + {state[j]} = {state[i] + state[j]}")
            path = signs_path(state, target, [(i, j)])
            if path is not None:
                break
        yield statements, path


def by_sum_or_difference(state, target):
    """The try of by_signs for two numbers."""
    low, high = state
    statements = []
    for op, value in (("+", high + low), ("-", high - low)):
        statements.append(f"{high} {op} {low} = {value}")
        if value == target:
            return statements, ((high, op, low),)
    return statements, None


def signs_path(state, target, chosen):
    """The path to the target that subtracts, or else adds, no numbers but some chosen ones.

    chosen: groups of places in the state, of which the first that fits is taken. None without one.

    signs_path((12, 14, 20), 6, [(0,), (1,), (2,)])  ->  ((14, '+', 12), (26, '-', 20))
    """
    total = sum(state)
    for wanted, subtract in ((total - target, True), (total + target, False)):
        for places in chosen:
            if 2 * sum(state[i] for i in places) == wanted:
                return add_and_subtract(state, places, subtract)
    return None


def add_and_subtract(state, places, subtract):
    """The moves that add numbers up, largest first, and then subtract the others.

    The numbers at these places are the ones to subtract, or to add up.
    """
    inside = [n for i, n in enumerate(state) if i in places]
    outside = [n for i, n in enumerate(state) if i not in places]
    less, more = (inside, outside) if subtract else (outside, inside)
    value, *more = more[::-1]
    path = []
    for op, numbers in (("+", more), ("-", less)):
        for n in numbers:
            move = (max(value, n), op, min(value, n))
            path.append(move)
            value = result(*move)
    return tuple(path)


def useful_moves(numbers, target):
    """The products and quotients of two numbers from which signs can reach the target."""
    for b, a in combinations(numbers, 2):
        others = sum(numbers) - a - b
        for op in "*/":
            value = result(a, op, b)
            if b > 1 and value and value - others <= target <= value + others:
                yield a, op, b


def by_last_factor(numbers, target):
    """The last move multiplies or divides by one of the numbers; signs do the rest.

    by_last_factor((5, 11, 17, 19), 51)
        '51 / 17 = 3', '5 + 11 = 16', '16 + 19 = 35', '35 - 3 = 32', '32 / 2 = 16', '35 - 16 = 19'
    """
    for i, c in enumerate(numbers):
        if c > 1 and target % c == 0:
            wanted = target // c
            last = (max(wanted, c), "*", min(wanted, c))
            signs = by_signs(numbers[:i] + numbers[i + 1 :], wanted)
            yield from joined(f"{target} / {c} = {wanted}", signs, behind=(last,))
    for i, c in enumerate(numbers):
        others = numbers[:i] + numbers[i + 1 :]
        wanted = target * c
        if c > 1 and wanted <= sum(others):
            signs = by_signs(others, wanted)
            yield from joined(f"{target} * {c} = {wanted}", signs, behind=((wanted, "/", c),))


def outer_moves(numbers, target):
    """The last moves that add or subtract a number, backwards from the target.

    (statement, the three other numbers, what they have to make, the move)
    """
    for i, d in enumerate(numbers):
        three = numbers[:i] + numbers[i + 1 :]
        if d < target:
            w = target - d
            yield f"{target} - {d} = {w}", three, w, (max(w, d), "+", min(w, d))
        w = target + d
        yield f"{target} + {d} = {w}", three, w, (w, "-", d)
    for i, d in enumerate(numbers):
        if d > target:
            three = numbers[:i] + numbers[i + 1 :]
            w = d - target
            yield f"{d} - {target} = {w}", three, w, (d, "-", w)


def by_factors(three, wanted):
    """One try: what is wanted, divided by a number, as the sum or difference of the two others.

    Also times a number, which is written only where it fits. There may be nothing to state.

    by_factors((6, 9, 18), 54)  ->  (['54 / 6 = 9', '18 - 9 = 9'], ((18, '-', 9), (9, '*', 6)))
    """
    statements = []
    for i, c in enumerate(three):
        if c == 1:
            continue
        b, a = three[:i] + three[i + 1 :]
        ops = {a - b: "-", a + b: "+"}
        if wanted % c == 0:
            quotient = wanted // c
            statements.append(f"{wanted} / {c} = {quotient}")
            if op := ops.get(quotient):
                statements.append(f"{a} {op} {b} = {quotient}")
                last = (max(quotient, c), "*", min(quotient, c))
                return statements, ((a, op, b), last)
        if op := ops.get(wanted * c):
            product = wanted * c
            statements += [f"{wanted} * {c} = {product}", f"{a} {op} {b} = {product}"]
            return statements, ((a, op, b), (product, "/", c))
    return statements, None


def expression(path):
    """The expression of a path with no more brackets than it needs.

    '(25 - 7) * 3', and '9 + 5 - 2' for 9 + (5 - 2)
    """
    made = {}  # value -> (text, its outermost operation) of what has it and is not used yet

    def take(n):
        return made[n].pop() if made.get(n) else (str(n), "none")

    for a, op, b in path:
        left = take(a)
        right = take(b)
        text = _operation_text(op, left, right)
        made.setdefault(result(a, op, b), []).append((text, op))
    return text


# operation -> those that need brackets when they stand to the right of it
BRACKETS_ON_THE_RIGHT = {"+": "", "-": "+-", "*": "+-", "/": "+-*/"}


def _operation_text(op, left, right):
    """Text of two pairs (text, its outermost operation) with an operation between them."""
    a, a_op = left
    b, b_op = right
    if op in "*/" and a_op in "+-":
        a = f"({a})"
    if b_op in BRACKETS_ON_THE_RIGHT[op]:
        b = f"({b})"
    return f"{a} {op} {b}"


def formula(text):
    """A number that two expressions share when they are one formula in another order.

    (25 - 7) - 3 and 25 - (7 + 3) share it; (25 - 3) - 7 * 2 has another one. It is the exact value
    for other numbers in place of the given ones. Different formulas agree by a chance of 1e-18.

    Raises Unreadable.
    """
    return evaluate(text, stand_in)


def stand_in(n):
    """The number that stands in place of n in a formula."""
    return pow(int(n) + 10**9, 7, PRIME)


def spaced(state):
    """The parts of a state or of a move with blanks between them: (3, 7, 25) -> '3 7 25'."""
    return " ".join(map(str, state))


def ending(state, target):
    """How the line of a move ends, by the state that it leaves.

    ', left 3 32'; with one number left ', not 46', or '' where it is the target
    """
    if len(state) > 1:
        return f", left {spaced(state)}"
    return "" if state[0] == target else f", not {target}"


class Level(NamedTuple):
    """How the problems of one level are drawn."""

    count: int  # numbers
    highest: int  # of the numbers
    ops: str  # operations to draw from; one that stands here twice is drawn twice as often
    top: int  # highest target
    needed: str  # one of these operations has to occur


class Countdown(Family):
    """Every number once, + - * / and brackets, to make a target.

    Params: (numbers, target, path), a path being moves (a, op, b).

    Levels: three numbers with + and -; with a product; four numbers without division; with a
    product or a quotient, of numbers up to 50; five numbers; held out: six. That is said of the
    drawn path, other ways may need less. Its results are whole numbers above 0, and none of them
    is one of the two that it is made of, which rules out 7 * 1 and 14 - 7.

    The solution tries what the method says, and ends in the moves of the path. The drawn path gives
    way to the one of the method where that finds one: always at level 1, for about three quarters
    of the problems at 4 and 5. The shares are held by
    test_the_method_finds_a_path_for_most_problems_and_signs_wherever_they_do.

    A try states what may lead to the target: 'Try 7 * 3 = 21, 25 + 21 = 46'. Each move says the
    state that it leaves, in ascending order: '7 * 3 = 21, left 21 25'. 'Back to 3 7 25' returns to
    an earlier one.
    """

    name = "countdown"
    levels = {
        1: Level(3, 20, "+-", 60, "+-"),
        2: Level(3, 25, "+-*", 100, "*"),
        3: Level(4, 20, "+-*", 100, "+-*"),
        4: Level(4, 50, "+-*/*/", 100, "*/"),
        5: Level(5, 50, "+-*/*/", 200, "+-*/"),
        6: Level(6, 50, "+-*/*/", 200, "+-*/"),
    }

    def draw(self, rng, level):
        """A problem, with the path of the method in place of the drawn one where there is one."""
        numbers, target, path = self.draw_moves(rng, level)
        _, found = method(numbers, target)
        return numbers, target, path if found is None else found

    def draw_moves(self, rng, level):
        """Numbers, then moves between two of what is left, until one target is found."""
        rules = self.levels[level]
        while True:
            numbers = rng.sample(range(1, rules.highest + 1), rules.count)
            path, target = self._draw_path(rng, rules, numbers)
            if target is None or target > rules.top or target in numbers:
                continue
            if any(op in rules.needed for _, op, _ in path):
                return tuple(sorted(numbers)), target, tuple(path)

    def _draw_path(self, rng, rules, numbers):
        """(path, its last result) of random moves that use all numbers up.

        The result is None where chance finds no such path in a few tries.
        """
        state = list(numbers)
        path = []
        for _ in range(6 * rules.count):
            a = state.pop(int(rng.random() * len(state)))
            b = state.pop(int(rng.random() * len(state)))
            op = rules.ops[int(rng.random() * len(rules.ops))]
            move = (max(a, b), op, min(a, b))
            value = result(*move)
            if value is None or value > 2 * rules.top or value in (a, b):
                state += [a, b]
                continue
            path.append(move)
            if not state:
                return path, value
            state.append(value)
        return path, None

    def ask(self, params, rng):
        *others, last = params[0]
        numbers = f"{', '.join(map(str, others))} and {last}"
        wordings = (
            "Use {} once each to make {target}.",
            "Make {target} from {}, each used once.",
            "Use each of {} once to reach {target}.",
            "Write {target} with {}, each exactly once, + - * / and brackets.",
        )
        return rng.choice(wordings).format(numbers, target=params[1])

    def identity(self, params):
        """By numbers and target, whatever the path."""
        return f"{self.name}:{params[:2]}"

    def answer(self, params):
        return expression(params[2])

    def read_answer(self, problem, text):
        return self.read_expression(problem.params, text)

    def read_expression(self, params, text):
        """(value, numbers, formula) of an expression or of 'expression = target', else None.

        '13+2 + 14' and '14 + (13 + 2)' are one answer, another formula is another one.
        """
        target = str(params[1])
        text, equals, right = (part.strip(" \n") for part in text.partition("="))
        if equals and right != target:
            return None
        if not re.fullmatch(r"[-+*×/() 0-9]+", text) or SIGN_OR_GAP.search(text):
            return None
        try:
            value = read_statement(f"{target}={text}").value
            return value, tuple(sorted(re.findall("[0-9]+", text))), formula(text)
        except Unreadable:
            return None

    def is_right(self, problem, said):
        return self.makes_target(problem.params, said)

    def makes_target(self, params, said):
        """Is it made of every number once and of no other, with exactly the target's value?

        said: as from read_expression.
        """
        numbers, target, _ = params
        return said[:2] == (target, tuple(sorted(map(str, numbers))))

    def _lines(self, events, target):
        """The lines of (state, move) events as from _search."""
        lines = []
        for state, move in events:
            if move is None:
                lines.append(f"Back to {spaced(state)}")
            else:
                left = after(state, move)
                lines.append(f"{spaced(move)} = {result(*move)}{ending(left, target)}")
        return lines

    def steps(self, params):
        """The tries of the method, then the moves of the path."""
        numbers, target, path = params
        lines, _ = method(numbers, target)
        return [*lines, *self._lines(along(numbers, path), target)]

    def terse(self, params):
        numbers, target, path = params
        return self._lines(along(numbers, path), target)

    def another(self, params):
        """Another formula by moves that the first search did not make.

        For three or four numbers.
        """
        numbers, target, path = params
        if len(numbers) > 4:
            return []
        tried = set(along(numbers, path))
        own = formula(expression(path))
        for other in solutions(numbers, target):
            route = along(numbers, other)
            if tried.isdisjoint(route) and formula(expression(other)) != own:
                return self._lines([(numbers, None), *route], target)
        return []

    def check(self, params):
        return f"Check: {self.answer(params)} = {params[1]}"

    def slip(self, line, rng):
        return "" if line.startswith("Back") else miscalculate(line, rng)

    def check_trace(self, params, lines):
        """A move is right where it is possible, truly worked out and new.

        Exploring is how countdown is solved, so no move is needless. It is unneeded where it was
        made from the same state before, and after the target was hit.

        So is a try, 'Try 25 + 7 = 32, 32 / 2 = 16'. It is right where all its statements are true
        and one of them is new, or where it is a try of the method; each has whole numbers that are
        given, the target, or results before it in the same try, none of them more often than there
        are, or halves one of them.

        'Back to' goes to a state that was passed on the way to the current one, and is unneeded
        where nothing new was tried since. After a hit only 'Another way: Back to' the given numbers
        does, once. Wrong lines change nothing.
        """
        numbers, target, _ = params
        search = SearchState(target, [numbers])
        checks = {}  # line -> its expression as from read_expression
        judgements = []
        for cue, line in lines:
            if cue == "Check":
                judgements.append(self.check_answer(params, line, checks))
            elif line.startswith("Back"):
                judgements.append(search.check_back(cue, line))
            elif line.startswith("Try "):
                judgements.append(search.check_try(line.removeprefix("Try ")))
            else:
                judgements.append(search.check_move(line))
        return judgements

    def check_answer(self, params, line, checks):
        """Judgement of a check '(25 - 7) * 3 = 54', which is added to the checks before it."""
        if line in checks:
            return unneeded("this was said before")
        earlier = set(checks.values())
        checks[line] = said = self.read_expression(params, line)
        if "=" not in line or not said or not self.makes_target(params, said):
            return wrong("this does not make the target of the numbers")
        if said in earlier:
            return unneeded("this formula was checked before")
        return unneeded("this was checked enough") if len(checks) > MAX_CHECKS else RIGHT

    def concludes(self, params, lines):
        """Is one of these right lines a hit? Only a hit has no ending."""
        matches = [MOVE.fullmatch(line) for line in lines]
        return any(match and not match[5] for match in matches)


@dataclass
class SearchState:
    """A search so far: where it stands and what it has tried."""

    target: int
    states: list  # from the given numbers to the current state
    path: list = field(default_factory=list)  # the moves between these states
    news: list = field(default_factory=list)  # for each of them, whether it was new
    tried: set = field(default_factory=set)  # (state, move) of all moves made
    tries: set = field(default_factory=set)  # the statements of every try, as a frozenset
    hits: list = field(default_factory=list)  # the formula of every path that made the target
    at_target: bool = False  # whether the current state is the target alone

    def check_move(self, line):
        """Judgement of a move '25 - 7 = 18, left 3 18', which is made if it is not wrong."""
        match = MOVE.fullmatch(line)
        if not match:
            return UNREADABLE
        a = int(match[1])
        op = match[2].replace("×", "*")
        b = int(match[3])
        value = result(a, op, b)
        if match[4] != str(value):
            return wrong(f"{a} {op} {b} is {value or 'no whole number above 0'}")
        if self.at_target:
            return unneeded("the target has been made")
        state = self.states[-1]
        if missing := Counter((a, b)) - Counter(state):
            return wrong(f"{min(missing)} is not left")
        move = (max(a, b), op, min(a, b))
        left = after(state, move)
        if (match[5] or "") != ending(left, self.target):
            return wrong(f"this leaves {spaced(left)}, and the target is {self.target}")
        return RIGHT if self.make(move) else unneeded("this was done before")

    def check_try(self, text):
        """Judgement of the statements of a try: '25 + 7 = 32, 32 / 2 = 16'."""
        available = Counter((*self.states[0], self.target))
        said = set()
        for part in text.split(", "):
            match = STATEMENT.fullmatch(part)
            if not match:
                return UNREADABLE
            op, operands = read_side(match[1])
            value = work_out(op, operands)
            if value != int(match[2]):
                value = "no whole number from 0 on" if value is None else value
                return wrong(f"{spaced((match[1], 'is', value))}")
            used = Counter(operands[:1] if (op, operands[1]) == ("/", 2) else operands)
            if missing := used - available:
                return wrong(f"{min(missing)} is neither given nor derived")
            available[value] += 1
            said.add((op, tuple(sorted(operands) if op in "+*" else operands)))
        if self.at_target:
            return unneeded("the target has been made")
        said = frozenset(said)
        is_new = not said <= frozenset().union(*self.tries)
        if not is_new and said not in self.tries:
            # A try of the method is new, even where the ones before it hold all its statements.
            is_new = f"Try {text}" in method(self.states[0], self.target)[0]
        self.tries.add(said)
        return RIGHT if is_new else unneeded("this was tried before")

    def make(self, move):
        """Make a move. Returns whether it is new, and at a hit, whether the formula is new."""
        state = self.states[-1]
        left = after(state, move)
        new = (state, move) not in self.tried
        self.tried.add((state, move))
        self.states.append(left)
        self.path.append(move)
        self.news.append(new)
        if left == (self.target,):
            self.at_target = True
            found = formula(expression(self.path))
            new = new and found not in self.hits
            self.hits.append(found)
        return new

    def check_back(self, cue, line):
        """Judgement of a line 'Back to 3 7 25', which is followed if it is right."""
        match = BACK.fullmatch(line)
        if not match:
            return UNREADABLE
        state = tuple(sorted(map(int, match[1].split())))
        if state not in self.states[:-1]:
            return wrong(f"{spaced(state)} was not passed on the way here")
        another_way = cue == "Another way" and state == self.states[0] and len(self.hits) == 1
        if self.at_target and not another_way:
            return unneeded("the target has been made")
        kept = self.states.index(state)
        idle = not any(self.news[kept:])
        del self.states[kept + 1 :]
        del self.path[kept:]
        del self.news[kept:]
        self.at_target = False
        return unneeded("nothing new was tried since") if idle else RIGHT

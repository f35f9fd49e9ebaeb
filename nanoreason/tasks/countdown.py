"""Countdown: make a target from given numbers.

The family whose worked solutions search, fail and go back.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from nanoreason.tasks.core import (
    MAX_CHECKS,
    RIGHT,
    UNREADABLE,
    Family,
    Unreadable,
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
# -7 and 2(3): the shared grammar reads them, an answer must not hold them.
SIGN_OR_GAP = re.compile(r"(?:^|[-+*×/(]) *-|[0-9)] *\(|\) *[0-9]")
PRIME = 2**61 - 1


def result(a, op, b):
    """a op b where that is a whole number above 0, else None. a, b: whole numbers above 0."""
    if op == "+":
        return a + b
    if op == "*":
        return a * b
    if op == "-":
        return a - b if a > b else None
    return a // b if a % b == 0 else None


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


def moves(state, ops="+-*/"):
    """All moves from a sorted state to whole numbers above 0, the larger number first."""
    return [
        (a, op, b)
        for i, b in enumerate(state)
        for a in state[i + 1 :]
        for op in ops
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


def is_solvable(state, target):
    """Can the target be made of all numbers of a state?"""
    return any(True for _ in solutions(state, target))


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

    Each move says the state that it leaves, in ascending order: '7 * 3 = 21, left 21 25'. 'Back to
    3 7 25' returns to an earlier one.
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

    def _search(self, params):
        """(state, move) for each line of the worked solution: wrong tries, then the path.

        move is None for a line that goes back to the state.
        """
        numbers, target, path = params
        rng = random.Random(f"{params}")  # the same problem is always searched in the same way
        ops = "+-" + "".join(op for op in "*/" if any(op == used for _, used, _ in path))
        route = along(numbers, path)
        taken = set(route)
        tries = [[] for _ in path]  # place on the path -> wrong tries before it
        wanted = 1 if len(path) == 2 and ops == "+-" else rng.randint(1, 2)
        for _ in range(9):
            if not wanted:
                break
            i = rng.randrange(len(path))
            state, _ = route[i]
            failed = self._dead_end(rng, state, target, ops, taken)
            if failed:
                tries[i] += [*failed, (state, None)]
                taken.update(failed)
                wanted -= 1
        events = []
        for failed, step in zip(tries, route):
            events += [*failed, step]
        return events

    def _dead_end(self, rng, state, target, ops, taken):
        """One or two new moves that lead nowhere; [] where chance finds none.

        With three numbers or fewer left it is a dead end; with more it is given up early.
        """
        events = []
        limit = 3 * max(target, *state)
        count = rng.randint(1, 2) if len(state) == 4 else 2
        for _ in range(min(len(state) - 1, count)):
            new = [
                move
                for move in moves(state, ops)
                if (state, move) not in taken
                and result(*move) <= limit
                and result(*move) not in (move[0], move[2])
            ]
            if not new:
                return []
            move = rng.choice(new)
            events.append((state, move))
            state = after(state, move)
        return [] if len(state) <= 3 and is_solvable(state, target) else events

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
        return self._lines(self._search(params), params[1])

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
        tried = set(self._search(params))
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

"""Countdown: make a target from given numbers. The family whose worked solutions search, fail and go back."""

import random
import re
from collections import Counter

from nanoreason.tasks.core import MAX_TEXT, RIGHT, UNREADABLE, Family, Unreadable, miscalculate, read_statement, unneeded, wrong

MOVE = re.compile(r"([1-9][0-9]{0,5}) ?([-+*×/]) ?([1-9][0-9]{0,5}) ?= ?(-?[0-9./]{1,12})(, left [-0-9 ]{1,80}|, not [0-9]{1,6})?")
BACK = re.compile(r"Back to ([1-9][0-9]{0,5}(?: [1-9][0-9]{0,5}){0,9})")
SIGN_OR_GAP = re.compile(r"(?:^|[-+*×/(]) *-|[0-9)] *\(|\) *[0-9]")  # -7 and 2(3): the shared grammar reads them, an answer must not hold them
PRIME = 2**61 - 1


def result(a, op, b):
    """a op b where that is a whole number above 0, else None. a, b: whole numbers above 0."""
    if op in "+*":
        return a + b if op == "+" else a * b
    if op == "-":
        return a - b if a > b else None
    return None if a % b else a // b


def after(state, move):
    """The state, a sorted tuple of numbers, that a move (a, op, b) leaves. Raises ValueError where a or b is not there."""
    left = list(state)
    left.remove(move[0])
    left.remove(move[2])
    return tuple(sorted([*left, result(*move)]))


def along(state, path):
    """Every move of a path, with the state that it is made from: [((3, 7, 25), (7, '*', 3)), ((21, 25), (25, '+', 21))]."""
    events = []
    for move in path:
        events.append((state, move))
        state = after(state, move)
    return events


def moves(state, ops="+-*/"):
    """All moves from a state to whole numbers above 0, the larger number first."""
    return [(a, op, b) for i, b in enumerate(state) for a in state[i + 1 :] for op in ops if result(a, op, b)]


def solutions(state, target):
    """All paths that make the target of all numbers of a state. Exhaustive: milliseconds for four numbers, minutes for six."""
    if len(state) == 1:
        yield from [()] if state[0] == target else []
        return
    for move in moves(state):
        for path in solutions(after(state, move), target):
            yield (move, *path)


def fold(path, leaf, join):
    """The tree of a path from the bottom up, as join(op, left, right); leaf(n) stands for a number that was given."""
    made = {}  # value -> trees that have it and are not used yet
    for a, op, b in path:
        left, right = (made[n].pop() if made.get(n) else leaf(n) for n in (a, b))
        tree = join(op, left, right)
        made.setdefault(result(a, op, b), []).append(tree)
    return tree


def expression(path):
    """The expression of a path with no more brackets than it needs: '(25 - 7) * 3', '9 + 5 - 2' for 9 + (5 - 2)."""
    needy = {"+": "", "-": "+-", "*": "+-", "/": "+-*/"}  # which operations need brackets to the right of one

    def join(op, left, right):
        a = f"({left[0]})" if op in "*/" and left[1] in "+-" else left[0]
        b = f"({right[0]})" if right[1] in needy[op] else right[0]
        return f"{a} {op} {b}", op

    return fold(path, lambda n: (str(n), "none"), join)[0]


def formula(path):
    """A number that two paths share when they are one formula in another order: (25 - 7) - 3 and 25 - (7 + 3), but not 25 - 7 / 3.

    It is the value for other numbers in place of the given ones, modulo a large prime: different formulas agree by a chance of 1e-18.
    """
    compute = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a * pow(b, -1, PRIME)}
    return fold(path, lambda n: pow(n + 10**9, 7, PRIME), lambda op, a, b: compute[op](a, b) % PRIME)


def spaced(state):
    return " ".join(map(str, state))


def ending(state, target):
    """How the line of a move ends, by the state that it leaves: ', left 3 32', ', not 46', or '' where the target is made."""
    return f", left {spaced(state)}" if len(state) > 1 else "" if state[0] == target else f", not {target}"


class Countdown(Family):
    """Every number once, + - * / and brackets, to make a target. Params: (numbers, target, path), a path being moves (a, op, b).

    Levels: three numbers with + and -; with a product; four numbers without division; with a product or a quotient, of numbers up
    to 50; five numbers; held out: six. That is said of the drawn path, other ways may need less. Its results are whole numbers above 0
    and none of them is one of the two that it is made of, which rules out 7 * 1 and 14 - 7.

    Each move says the state that it leaves, in ascending order, and 'Back to 3 7 25' returns to an earlier one.
    """

    name = "countdown"
    levels = {1: (3, 20, "+-", 60, "+-"), 2: (3, 25, "+-*", 100, "*"), 3: (4, 20, "+-*", 100, "+-*"), 4: (4, 50, "+-*/*/", 100, "*/"),
              5: (5, 50, "+-*/*/", 200, "+-*/"), 6: (6, 50, "+-*/*/", 200, "+-*/")}  # numbers, the highest, operations, top target, one of these

    def draw(self, rng, level):
        count, highest, ops, top, needed = self.levels[level]
        while True:
            numbers = rng.sample(range(1, highest + 1), count)
            state, path = list(numbers), []
            for _ in range(6 * count):
                a, b = state.pop(int(rng.random() * len(state))), state.pop(int(rng.random() * len(state)))
                move = (max(a, b), ops[int(rng.random() * len(ops))], min(a, b))
                value = result(*move)
                if value is None or value > 2 * top or value in (a, b):
                    state += [a, b]
                    continue
                path.append(move)
                if not state:
                    if value <= top and value not in numbers and any(op in needed for _, op, _ in path):
                        return tuple(sorted(numbers)), value, tuple(path)
                    break
                state.append(value)

    def ask(self, params, rng):
        numbers = f"{', '.join(map(str, params[0][:-1]))} and {params[0][-1]}"
        return rng.choice(("Use {} once each to make {target}.", "Make {target} from {}, each used once.", "Use each of {} once to reach {target}.",
                           "Write {target} with {}, each exactly once, + - * / and brackets.")).format(numbers, target=params[1])

    def identity(self, params):
        return f"{self.name}:{params[:2]}"

    def answer(self, params):
        return expression(params[2])

    def is_answer(self, params, text):
        """Is it an expression, or 'expression = target', of every number once and no other, with exactly the target's value?"""
        numbers, target, _ = params
        if len(text) > MAX_TEXT:
            return False
        text, equals, right = (part.strip(" \n") for part in text.partition("="))
        if (equals and right != str(target)) or not re.fullmatch(r"[-+*×/() 0-9]+", text) or SIGN_OR_GAP.search(text):
            return False
        try:
            return sorted(re.findall(r"[0-9]+", text)) == sorted(map(str, numbers)) and read_statement(f"{text}={target}")[2]
        except Unreadable:
            return False

    def verify(self, problem, text):
        return self.is_answer(problem.params, text)

    def _search(self, params):
        """(state, move) for each line of the worked solution, move None for a line that goes back to the state: wrong tries, then the path."""
        numbers, target, path = params
        rng = random.Random(f"{params}")
        ops = "+-" + "".join(op for op in "*/" if any(op == used for _, used, _ in path))
        route = along(numbers, path)
        taken, tries = set(route), [[] for _ in path]
        wanted = 1 if len(path) == 2 and ops == "+-" else rng.randint(1, 2)
        for _ in range(9):
            i = rng.randrange(len(path))
            if wanted and (failed := self._try(rng, route[i][0], target, ops, taken)):
                tries[i] += [*failed, (route[i][0], None)]
                taken.update(failed)
                wanted -= 1
        return [event for failed, step in zip(tries, route) for event in (*failed, step)]

    def _try(self, rng, state, target, ops, taken):
        """One or two new moves that lead nowhere, [] where chance finds none. Given up with three numbers or fewer left, it is a dead end."""
        events, limit = [], 3 * max(target, *state)
        for _ in range(min(len(state) - 1, rng.randint(1, 2) if len(state) == 4 else 2)):
            new = [m for m in moves(state, ops) if (state, m) not in taken and result(*m) <= limit and result(*m) not in (m[0], m[2])]
            if not new:
                return []
            events.append((state, rng.choice(new)))
            state = after(*events[-1])
        return [] if len(state) <= 3 and any(True for _ in solutions(state, target)) else events

    def _lines(self, events, target):
        return [f"Back to {spaced(state)}" if move is None else f"{spaced(move)} = {result(*move)}{ending(after(state, move), target)}"
                for state, move in events]

    def steps(self, params):
        return self._lines(self._search(params), params[1])

    def terse(self, params):
        return self._lines(along(params[0], params[2]), params[1])

    def another(self, params):
        """Another formula, for three or four numbers, by moves that the first search did not make."""
        numbers, target, path = params
        tried = set(self._search(params))
        for other in solutions(numbers, target) if len(numbers) <= 4 else ():
            if tried.isdisjoint(along(numbers, other)) and formula(other) != formula(path):
                return self._lines([(numbers, None), *along(numbers, other)], target)
        return []

    def check(self, params):
        return f"Check: {self.answer(params)} = {params[1]}"

    def slip(self, line, rng):
        return "" if line.startswith("Back") else miscalculate(line, rng)

    def check_trace(self, params, lines):
        """A move is right where it is possible, truly worked out and new: exploring is how countdown is solved, so no move is needless.

        It is unneeded where it was made from the same state before, and after the target was hit. Back goes to a state that was passed on
        the way to the current one; after a hit only 'Another way: Back to' the given numbers does, once. Wrong lines change nothing.
        """
        trace, said, judgements = _Trace(*params[:2]), set(), []
        for cue, line in lines:
            if cue == "Check":
                good = RIGHT if "=" in line and self.is_answer(params, line) else wrong("this does not make the target of the numbers")
                judgements.append(unneeded("this was said before") if line in said else good)
                said.add(line)
            else:
                judgements.append(trace.back(cue, line) if line.startswith("Back") else trace.move(line))
        return judgements

    def concludes(self, params, lines):
        return any((match := MOVE.fullmatch(line)) and not match[5] for line in lines)  # of right lines only a hit has no ending


class _Trace:
    """A search so far: the states from the given numbers to the current one, the moves between them, what was tried from where, all hits."""

    def __init__(self, numbers, target):
        self.target, self.states, self.path, self.tried, self.hits, self.hit = target, [numbers], [], set(), [], False

    def move(self, line):
        match = MOVE.fullmatch(line)
        if not match:
            return UNREADABLE
        a, op, b = int(match[1]), match[2].replace("×", "*"), int(match[3])
        value, state = result(a, op, b), self.states[-1]
        if match[4] != str(value):
            return wrong(f"{a} {op} {b} is {value or 'no whole number above 0'}")
        if self.hit:
            return unneeded("the target has been made")
        if missing := Counter((a, b)) - Counter(state):
            return wrong(f"{min(missing)} is not left")
        event = (state, (max(a, b), op, min(a, b)))
        left = after(*event)
        if (match[5] or "") != ending(left, self.target):
            return wrong(f"this leaves {spaced(left)}, and the target is {self.target}")
        again = event in self.tried
        self.tried.add(event)
        self.states.append(left)
        self.path.append(event[1])
        if left == (self.target,):
            found = formula(self.path)
            again, self.hit = again or found in self.hits, True
            self.hits.append(found)
        return unneeded("this was done before") if again else RIGHT

    def back(self, cue, line):
        match = BACK.fullmatch(line)
        state = tuple(sorted(map(int, match[1].split()))) if match else ()
        if state not in self.states[:-1]:
            return wrong(f"{spaced(state)} was not passed on the way here") if match else UNREADABLE
        if self.hit and (cue != "Another way" or state != self.states[0] or len(self.hits) > 1):
            return unneeded("the target has been made")
        kept = self.states.index(state)
        del self.states[kept + 1 :], self.path[kept:]
        self.hit = False
        return RIGHT

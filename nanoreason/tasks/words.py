"""Word problems: a short story composed from a start, some events and a question, or a percentage of a crowd."""

from fractions import Fraction

from nanoreason.tasks.core import Family, chain_lines, parse_number, undo_last
from nanoreason.tasks.numbers import Percent

PEOPLE = (("Anna", "She", "her"), ("Ben", "He", "him"), ("Clara", "She", "her"), ("David", "He", "him"), ("Emma", "She", "her"),
          ("Felix", "He", "him"), ("Grace", "She", "her"), ("Hugo", "He", "him"), ("Iris", "She", "her"), ("Jonas", "He", "him"),
          ("Lena", "She", "her"), ("Max", "He", "him"), ("Nora", "She", "her"), ("Oscar", "He", "him"), ("Tom", "He", "him"))
ITEMS = ("apples", "books", "cards", "coins", "cookies", "eggs", "marbles", "pencils", "shells", "stamps", "stickers", "tickets")
BOXES = ("boxes", "bags", "packs", "jars", "trays", "baskets")

EVENTS = {  # {n} a number, {who} the person, {She} the pronoun, {friend} somebody else, {items} what is counted
    "+": ("{She} buys {n} more.", "{She} finds {n} more {items}.", "{friend} gives {her} {n} {items}.", "Then {who} gets {n} more {items}."),
    "-": ("{She} gives {n} {items} to {friend}.", "{She} loses {n} of them.", "{She} sells {n} {items}.", "Then {who} gives away {n}."),
    "*": ("Then the number of {items} grows to {n} times as many.",),
}
DISTRACTORS = ("{friend} has {n} {items}.", "{friend} is {n} years old.", "The shop is {n} minutes away.", "It is day {n} of the month.")
CROWDS = (  # the first is the brief's own wording
    "In a school, {p}% of students play sports. If there are {n} students, how many play sports?",
    "A farm has {n} animals. {p}% of them are sheep. How many sheep are there?",
    "A library owns {n} books, and {p}% of them are novels. How many novels does it own?",
    "There are {n} seats in a hall. If {p}% of them are taken, how many seats are taken?",
    "{p}% of the {n} people in a village own a bike. How many people own a bike?",
)
UNITS = frozenset(ITEMS) | {"students", "sheep", "novels", "seats", "people"}
PERCENT = Percent()


class Word(Family):
    """Params: ('percent', p, n), or ('story', start, ((op, n), ...), distractors). An op '@' opens with `start` boxes of n each.

    Levels: two events; boxes and an event, or a percentage; boxes and two events, or a share; the same with a number that
    does not matter; four events with such a number.
    """

    name = "word"

    def draw(self, rng, level):
        if level == 2 and rng.random() < 0.4:
            return "percent", rng.randint(1, 9) * 10, rng.randint(2, 100) * 10
        start, ops = rng.randint(10, 60), []
        if level > 1:
            start = rng.randint(3, 9)
            ops.append(("@", rng.randint(3, 20)))
        value = start * (ops[0][1] if ops else 1)
        events = {1: 2, 2: 1, 3: 2, 4: 2, 5: 4, 6: 6}[level]
        while len(ops) < events + (level > 1):
            op = rng.choice("+-*" if level == 5 and value < 80 else "+-")
            n = rng.randint(2, 4) if op == "*" else rng.randint(2, 40)
            if op == "-" and n >= value:
                continue
            value = {"+": value + n, "-": value - n, "*": value * n}[op]
            ops.append((op, n))
        divisors = [n for n in range(2, 10) if value % n == 0 and value > n]
        if level >= 3 and divisors and rng.random() < 0.3:
            ops[-1:] = [ops[-1], ("/", rng.choice(divisors))]
        return "story", start, tuple(ops), (rng.randint(2, 40),) if level >= 4 else ()

    def ask(self, params, rng):
        if params[0] == "percent":
            return rng.choice(CROWDS).format(p=params[1], n=params[2])
        _, start, ops, distractors = params
        (who, she, her), (friend, _, _) = rng.sample(PEOPLE, 2)
        fill = dict(who=who, She=she, her=her, friend=friend, items=rng.choice(ITEMS), box=rng.choice(BOXES))
        boxed = ops[0][0] == "@"
        opening = "{who} has {start} {box} with {n} {items} each." if boxed else "{who} has {start} {items}."
        story = [opening.format(start=start, n=ops[0][1], **fill)]
        ending = "How many {items} does {who} have now?"
        for op, n in ops[boxed:]:
            if op == "/":
                ending = f"{{She}} shares them equally among {n} friends. How many {{items}} does each friend get?"
            else:
                story.append(rng.choice(EVENTS[op]).format(n=n, **fill))
        for n in distractors:
            story.insert(rng.randint(1, len(story)), rng.choice(DISTRACTORS).format(n=n, **fill))
        return " ".join([*story, ending.format(**fill)])

    def _ops(self, params):
        return [("*" if op == "@" else op, n) for op, n in params[2]]

    def answer(self, params):
        return PERCENT.answer(params[1:]) if params[0] == "percent" else self.steps(params)[-1].split()[-1]

    def steps(self, params):
        return PERCENT.steps(params[1:]) if params[0] == "percent" else chain_lines(params[1], self._ops(params))

    def terse(self, params):
        if params[0] == "percent":
            return PERCENT.terse(params[1:])
        lines, text = self.steps(params), str(params[1])
        for i, (op, n) in enumerate(self._ops(params)):
            text = f"({text}) {op} {n}" if op in "*/" and i else f"{text} {op} {n}"
        return [f"{text} = {lines[-1].split()[-1]}"]

    def another(self, params):
        return PERCENT.another(params[1:]) if params[0] == "percent" else []

    def check(self, params):
        return PERCENT.check(params[1:]) if params[0] == "percent" else undo_last(self.steps(params))

    def judge(self, params, lines):
        return PERCENT.judge(params[1:], lines) if params[0] == "percent" else super().judge(params, lines)

    def given(self, params):
        return PERCENT.given(params[1:]) if params[0] == "percent" else super().given(params)

    def identity(self, params):
        """A percentage of a crowd is the same problem as the bare percentage; what does not matter is left out of a story."""
        return PERCENT.identity(params[1:]) if params[0] == "percent" else f"{self.name}:{params[1:3]}"

    def verify(self, problem, text):
        """A number, alone or with one of the units of the question: '100' and '100 students'."""
        number, _, unit = text[:201].strip().rstrip(".").partition(" ")
        if unit and not (unit in UNITS and unit in problem.question):
            return False
        return parse_number(number) == Fraction(self.answer(problem.params))

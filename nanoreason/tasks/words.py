"""Word problems: a story of a start, some events and a question, or a percentage of a crowd."""

import re

from nanoreason.tasks.core import Mixed, by_kind, parse_number
from nanoreason.tasks.numbers import Chain, Percent

PEOPLE = (
    ("Anna", "She", "her"),
    ("Ben", "He", "him"),
    ("Clara", "She", "her"),
    ("David", "He", "him"),
    ("Emma", "She", "her"),
    ("Felix", "He", "him"),
    ("Grace", "She", "her"),
    ("Hugo", "He", "him"),
    ("Iris", "She", "her"),
    ("Jonas", "He", "him"),
    ("Lena", "She", "her"),
    ("Max", "He", "him"),
    ("Nora", "She", "her"),
    ("Oscar", "He", "him"),
    ("Tom", "He", "him"),
)
ITEMS = (
    "apples", "books", "cards", "coins", "cookies", "eggs",
    "marbles", "pencils", "shells", "stamps", "stickers", "tickets",
)
BOXES = ("boxes", "bags", "packs", "jars", "trays", "baskets")

# In the sentences below:
# {n}       a number; {k} the number of boxes
# {who}     the person; {She} the pronoun or the name, {her} the pronoun
# {friend}  somebody else
# {items}   what is counted; {others} what is not; {boxes} what holds the items
OPENINGS = (
    "{who} has {n} {items}.",
    "{who} starts the week with {n} {items}.",
    "On Monday {who} counts {n} {items} at home.",
    "{who} owns {n} {items}.",
)
BOXED = (
    "{who} has {k} {boxes} with {n} {items} each.",
    "{who} buys {k} {boxes} of {n} {items} each.",
    "{who} fills {k} {boxes} with {n} {items} each.",
)
EVENTS = {
    "+": (
        "{She} buys {n} more.",
        "{She} finds {n} more {items}.",
        "{friend} gives {her} {n} {items}.",
        "Then {who} gets {n} more {items}.",
        "The next day {who} wins {n} {items}.",
        "{who} is sent {n} more {items}.",
        "Later {She} adds {n} {items}.",
        "{friend} hands {her} {n} {items}.",
    ),
    "-": (
        "{She} gives {n} {items} to {friend}.",
        "{She} loses {n} of them.",
        "{She} sells {n} {items}.",
        "Then {who} gives away {n}.",
        "{friend} buys {n} {items} from {her}.",
        "In the evening {n} of them are gone.",
        "{who} hands out {n} {items}.",
        "Later {She} uses up {n} {items}.",
    ),
    "*": (
        "Then the number of {items} grows to {n} times as many.",
        "By spring {who} has {n} times as many {items}.",
    ),
}
SHARES = (
    "{She} shares all the {items} equally among {n} friends. "
    "How many {items} does each friend get?",
    "{She} puts all the {items} into {n} bowls, equally many in each. "
    "How many {items} are in a bowl?",
    "{She} divides all the {items} evenly over {n} shelves. "
    "How many {items} are on each shelf?",
)
ENDINGS = (
    "How many {items} does {who} have now?",
    "How many {items} does {who} own at the end?",
    "How many {items} does that make for {who}?",
    "How many {items} has {who} got then?",
)
DISTRACTORS = (
    "{friend} has {n} {others}.",
    "{friend} is {n} years old.",
    "The shop is {n} minutes away.",
    "The next bus is number {n}.",
    "{friend} lives at number {n}.",
    "It is {n} degrees outside.",
    "A bus passes every {n} minutes.",
    "There are {n} children in the street.",
)
CROWDS = (
    "In a school, {p}% of students play sports. If there are {n} students, how many play sports?",
    "A farm has {n} animals. {p}% of them are sheep. How many sheep are there?",
    "A library owns {n} books, and {p}% of them are novels. How many novels does it own?",
    "There are {n} seats in a hall. If {p}% of them are taken, how many seats are taken?",
    "{p}% of the {n} people in a village own a bike. How many people own a bike?",
    "A train carries {n} people. {p}% of them get off. How many people get off?",
    "A garden has {n} flowers, and {p}% of them are red. How many flowers are red?",
    "Of {n} letters, {p}% have arrived. How many letters have arrived?",
    "A baker makes {n} rolls and sells {p}% of them. How many rolls are sold?",
    "In a forest of {n} trees, {p}% are oaks. How many oaks are there?",
    "A class has {n} students, and {p}% of them are absent. How many students are absent?",
    "{p}% of {n} cars are blue. How many cars are blue?",
    "A shop has {n} shirts. It sells {p}% of them. How many shirts does it sell?",
    "In a town with {n} houses, {p}% have a garden. How many houses have a garden?",
    "A team plays {n} games and wins {p}% of them. How many games does it win?",
    "If {p}% of {n} students walk to school, how many students walk?",
)
CROWD_UNITS = {
    "students", "sheep", "novels", "seats", "people", "flowers", "letters", "rolls", "oaks",
    "cars", "shirts", "houses", "games",
}
UNITS = frozenset(ITEMS) | CROWD_UNITS


class Crowd(Percent):
    """A percentage of a crowd: the same problem as the bare percentage."""

    def ask(self, params, rng):
        p, n = params
        return rng.choice(CROWDS).format(p=p, n=n)


class Story(Chain):
    """A chain of operations as a story. Params: (start, ((op, n), ...), distractors)."""

    name = "word"

    def ask(self, params, rng):
        return tell_story(params, rng)

    def run(self, params):
        """(start, operations), with boxes as a product."""
        start, ops, _ = params
        return start, [("*" if op == "@" else op, n) for op, n in ops]

    def terse(self, params):
        """The whole story as one expression."""
        start, ops = self.run(params)
        text = str(start)
        for i, (op, n) in enumerate(ops):
            text = f"({text}) {op} {n}" if op in "*/" and i else f"{text} {op} {n}"
        return [f"{text} = {self.answer(params)}"]

    def another(self, params):
        return []

    def given(self, params):
        return super().given(params[:2])  # the number of a distractor is not given

    def identity(self, params):
        """The number that does not matter is no part of a story."""
        return f"{self.name}:{params[:2]}"


class Word(Mixed):
    """Params: ('percent', p, n), or ('story', start, ((op, n), ...), distractors).

    An op '@' opens with `start` boxes of n each; '/' shares out at the end.

    Levels: two events; boxes and an event, or a percentage; boxes and two events, perhaps shared
    out; boxes, three events and a number that does not matter; boxes, four events and such a
    number; held out: six events.
    """

    name = "word"
    kinds = {"percent": Crowd(), "story": Story()}
    identity = by_kind("identity")
    events = {1: 2, 2: 1, 3: 2, 4: 3, 5: 4, 6: 6}  # level -> events, boxes and sharing not counted

    def draw(self, rng, level):
        if level == 2 and rng.random() < 0.4:
            return "percent", rng.randint(1, 9) * 10, rng.randint(2, 100) * 10
        start = rng.randint(10, 60)
        value = start
        ops = []
        if level > 1:
            start = rng.randint(3, 9)
            ops.append(("@", rng.randint(3, 20)))
            value = start * ops[0][1]
        while len(ops) < self.events[level] + (level > 1):
            op = rng.choice("+-*" if level >= 5 and value < 80 else "+-")
            n = rng.randint(2, 4) if op == "*" else rng.randint(2, 40)
            if op == "-" and n >= value:
                continue
            value = {"+": value + n, "-": value - n, "*": value * n}[op]
            ops.append((op, n))
        divisors = [n for n in range(2, 10) if value % n == 0 and value > n]
        if level >= 3 and divisors and rng.random() < 0.3:
            ops.append(("/", rng.choice(divisors)))
        distractors = (rng.randint(2, 40),) if level >= 4 else ()
        return "story", start, tuple(ops), distractors

    def read_answer(self, problem, text):
        """A number, alone or with the unit that is asked for: '100' and '100 students'."""
        number, *unit = text.strip().rstrip(".").split() or [""]
        if unit:
            final_question = problem.question.rstrip("?").rpartition(". ")[2]
            asked = re.findall("[a-z]+", final_question)
            if " ".join(unit) not in UNITS.intersection(asked):
                return None
        return parse_number(number)


def tell_story(params, rng):
    """The text of a story, in a wording that `rng` draws.

    A pronoun is used only where it can mean one person: not after a sentence that names the friend,
    and not after the number that does not matter.
    """
    start, ops, distractors = params
    (who, she, her), (friend, _, _) = rng.sample(PEOPLE, 2)
    items, others = rng.sample(ITEMS, 2)
    boxes = rng.choice(BOXES)
    fill = dict(who=who, her=her, friend=friend, items=items, others=others, boxes=boxes)
    boxed = ops[0][0] == "@"
    shared = ops[-1][0] == "/"
    events = ops[boxed : len(ops) - shared]
    ending = ops[-1] if shared else ("?", 0)
    # The distractor stands after the opening or an event, but not right before a sharing out.
    aside = rng.randint(0, len(events) - shared) if distractors else -1
    if boxed:
        story = [rng.choice(BOXED).format(k=start, n=ops[0][1], **fill)]
    else:
        story = [rng.choice(OPENINGS).format(n=start, **fill)]
    for i, (op, n) in enumerate((*events, ending)):
        if i == aside:
            story.append(rng.choice(DISTRACTORS).format(n=distractors[0], **fill))
        clear = friend not in story[-1] and i != aside
        forms = EVENTS.get(op) or (SHARES if shared else ENDINGS)
        form = rng.choice(forms)
        while not clear and "{items}" not in form:  # "3 of them" would be unclear, too
            form = rng.choice(forms)
        subject = who
        if clear:
            subject = she if form.startswith("{She}") else she.lower()
        story.append(form.format(n=n, She=subject, **fill))
    return " ".join(story)

"""A second reader of questions and lines, written apart from the package.

It uses regular expressions and Python's own parser; nothing is executed.
"""

import ast
import operator
import re
from dataclasses import dataclass
from fractions import Fraction

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(text, x=None):
    """Exact value of '3(x + 4) / 2' or '15% of 80', by walking Python's syntax tree."""
    text = re.sub(r"([0-9.]+)%", r"(\1/100)", text.strip())
    text = text.replace(" of ", "*").replace("×", "*")
    text = re.sub(r"([0-9])\s*(?=[x(])", r"\1*", text)

    def walk(node):
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        if isinstance(node, ast.Name) and node.id == "x" and x is not None:
            return Fraction(x)
        assert isinstance(node, ast.Constant), ast.dump(node)
        return Fraction(str(node.value))

    return walk(ast.parse(text, mode="eval").body)


def is_true(line, x=None):
    """Whether all sides of 'a = b = c' are the same number."""
    return len({evaluate(side, x) for side in line.split("=")}) == 1


# Stories. Every sentence is one of these patterns, and says who does it, to whom, and with what.

WOMEN = ("Anna", "Clara", "Emma", "Grace", "Iris", "Lena", "Nora")
MEN = ("Ben", "David", "Felix", "Hugo", "Jonas", "Max", "Oscar", "Tom")
NAME = "|".join(WOMEN + MEN)
N = r"(?P<n>\d+)"
HERO = rf"(?P<who>{NAME})"
WHO = rf"(?P<who>{NAME}|[Ss]he|[Hh]e)"
FRIEND = rf"(?P<friend>{NAME})"
TO = "(?P<to>her|him)"
ITEMS = r"(?P<items>[a-z]+)"
THEM = "(?P<them>them)"
BOXES = r"(?P<k>\d+) (?P<boxes>[a-z]+)"
MOMENT = r"(?:(?:Then|Later|The next day|In the evening|By spring) )?"


def compiled(patterns):
    """The patterns as a tuple of compiled ones."""
    return tuple(map(re.compile, patterns))


OPENINGS = compiled((
    rf"{HERO} (?:has|owns|starts the week with) {N} {ITEMS}\.",
    rf"On Monday {HERO} counts {N} {ITEMS} at home\.",
    rf"{HERO} has {BOXES} with {N} {ITEMS} each\.",
    rf"{HERO} buys {BOXES} of {N} {ITEMS} each\.",
    rf"{HERO} fills {BOXES} with {N} {ITEMS} each\.",
))

SENTENCE_PATTERNS = {
    "+": (
        rf"{WHO} (?:buys|finds|gets) {N} more(?: {ITEMS})?",
        rf"{WHO} is sent {N} more {ITEMS}",
        rf"{WHO} (?:wins|adds) {N} {ITEMS}",
        rf"{FRIEND} (?:gives|hands) {TO} {N} {ITEMS}",
    ),
    "-": (
        rf"{WHO} gives {N} {ITEMS} to {FRIEND}",
        rf"{WHO} (?:sells|loses|hands out|uses up) {N} (?:{ITEMS}|of {THEM})",
        rf"{WHO} gives away {N}",
        rf"{FRIEND} buys {N} {ITEMS} from {TO}",
        rf"{N} of {THEM} are gone",
    ),
    "*": (
        rf"the number of {ITEMS} grows to {N} times as many",
        rf"{WHO} has {N} times as many {ITEMS}",
    ),
    "/": (
        rf"{WHO} shares all the {ITEMS} equally among {N} (?P<place>friend)s",
        rf"{WHO} puts all the {ITEMS} into {N} (?P<place>bowl)s, equally many in each",
        rf"{WHO} divides all the {ITEMS} evenly over {N} (?P<place>shel)ves",
    ),
    "aside": (
        rf"{FRIEND} has {N} (?P<others>[a-z]+)",
        rf"{FRIEND} is {N} years old",
        rf"{FRIEND} lives at number {N}",
        rf"The shop is {N} minutes away",
        rf"The next bus is number {N}",
        rf"It is {N} degrees outside",
        rf"A bus passes every {N} minutes",
        rf"There are {N} children in the street",
    ),
}
SENTENCES = {
    op: compiled(MOMENT + pattern + r"\." for pattern in patterns)
    for op, patterns in SENTENCE_PATTERNS.items()
}

ENDINGS = compiled((
    rf"How many {ITEMS} does {HERO} (?:have now|own at the end)\?",
    rf"How many {ITEMS} does that make for {HERO}\?",
    rf"How many {ITEMS} has {HERO} got then\?",
    rf"How many {ITEMS} does each (?P<place>friend) get\?",
    rf"How many {ITEMS} are in a (?P<place>bowl)\?",
    rf"How many {ITEMS} are on each (?P<place>shel)f\?",
))


@dataclass(frozen=True)
class Story:
    """What a story tells.

    start    a number, or (boxes, number in each)
    unclear  sentences whose pronouns could mean somebody or something else
    """

    start: object
    events: tuple
    asides: tuple
    unclear: tuple
    value: Fraction


def match_one(patterns, sentence):
    """The named groups of the first pattern that the sentence matches, else None."""
    return next((m.groupdict() for p in patterns if (m := p.fullmatch(sentence))), None)


def read_start(opening):
    """(start as in Story, its value) of the first sentence."""
    n = int(opening["n"])
    if "k" in opening:
        boxes = int(opening["k"])
        return (boxes, n), Fraction(boxes * n)
    return n, Fraction(n)


def is_unclear(op, found, hero, before, after_aside):
    """Could the pronouns of a sentence mean somebody or something else?

    'She' and 'them' point back to the sentence before, which must be about nobody and nothing
    else. 'her' cannot be who acts. found: groups of the sentence; before: those of the one before.
    """
    elsewhere = {before.get("friend")} - {None}
    names_no_items = op in "+-" and not found.get("items")
    points_back = found.get("who") not in (None, hero) or found.get("them") or names_no_items
    if (elsewhere or after_aside) and points_back:
        return True
    return bool(elsewhere - {found.get("friend")} and found.get("to"))


def assert_about(found, opening, sentence):
    """A sentence speaks of the hero and the items of its story, and of a friend at most."""
    hero = opening["who"]
    she, her = ("she", "her") if hero in WOMEN else ("he", "him")
    assert found.get("who") in (None, hero, she, she.title()), sentence
    assert found.get("to") in (None, her), sentence
    assert found.get("friend") != hero, sentence
    assert found.get("items") in (None, opening["items"]), sentence


def read_story(question):
    """The Story of a question, every sentence accounted for; None for a question that is none."""
    sentences = re.split(r"(?<=[.?])\s+", question)
    opening = match_one(OPENINGS, sentences[0])
    ending = match_one(ENDINGS, sentences[-1])
    if not opening or not ending:
        return None
    hero = opening["who"]
    items = opening["items"]
    start, value = read_start(opening)
    events = []
    asides = []
    unclear = []
    before = opening
    after_aside = False
    for sentence in sentences[1:-1]:
        read = [(op, match_one(patterns, sentence)) for op, patterns in SENTENCES.items()]
        read = [(op, found) for op, found in read if found]
        if any(op == "aside" and found.get("others") == items for op, found in read):
            return None  # that would be somebody's share of what is counted
        assert len(read) == 1, (sentence, read)
        ((op, found),) = read
        assert_about(found, opening, sentence)
        if is_unclear(op, found, hero, before, after_aside):
            unclear.append(sentence)
        n = int(found["n"])
        if op == "aside":
            asides.append(n)
        else:
            value = {"+": value + n, "-": value - n, "*": value * n, "/": value / n}[op]
            events.append((op, n))
        before = found
        after_aside = op == "aside"
    assert ending["items"] == items, question
    assert ending.get("who") in (None, hero), question
    assert before.get("place") == ending.get("place"), question
    assert all(op != "/" for op, _ in events[:-1]), question
    assert (ending.get("place") is None) == (events[-1][0] != "/"), question
    return Story(start, tuple(events), tuple(asides), tuple(unclear), value)


def mask(question):
    """The surface form of a story: names, pronouns, things, boxes and numbers blotted out."""
    opening = match_one(OPENINGS, question.split(". ")[0] + ".")
    boxes = filter(None, [opening.get("boxes")])
    others = re.findall(rf"(?:{NAME}) has \d+ ([a-z]+)\.", question)
    things = [opening["items"], *boxes, *others]
    blots = (
        (NAME, "N"),
        ("[Ss]he|[Hh]e", "S"),
        ("her|him", "O"),
        ("|".join(things), "T"),
        (r"\d+", "0"),
    )
    for pattern, sign in blots:
        question = re.sub(rf"\b(?:{pattern})\b", sign, question)
    return question


# A share of a crowd: p% of n, and it is that share that is asked for.

SHARE = r"(?P<p>\d+)(?:%| percent)"
CROWDS = compiled((
    rf"In a school, {SHARE} of students play sports\. "
    rf"If there are {N} students, how many play sports\?",
    rf"A farm has {N} animals\. {SHARE} of them are sheep\. How many sheep are there\?",
    rf"A library owns {N} books, and {SHARE} of them are novels\. How many novels does it own\?",
    rf"There are {N} seats in a hall\. If {SHARE} of them are taken, how many seats are taken\?",
    rf"{SHARE} of the {N} people in a village own a bike\. How many people own a bike\?",
    rf"A train carries {N} people\. {SHARE} of them get off\. How many people get off\?",
    rf"A garden has {N} flowers, and {SHARE} of them are red\. How many flowers are red\?",
    rf"Of {N} letters, {SHARE} have arrived\. How many letters have arrived\?",
    rf"A baker makes {N} rolls and sells {SHARE} of them\. How many rolls are sold\?",
    rf"In a forest of {N} trees, {SHARE} are oaks\. How many oaks are there\?",
    rf"A class has {N} students, and {SHARE} of them are absent\. How many students are absent\?",
    rf"{SHARE} of {N} cars are blue\. How many cars are blue\?",
    rf"A shop has {N} shirts\. It sells {SHARE} of them\. How many shirts does it sell\?",
    rf"In a town with {N} houses, {SHARE} have a garden\. How many houses have a garden\?",
    rf"A team plays {N} games and wins {SHARE} of them\. How many games does it win\?",
    rf"If {SHARE} of {N} students walk to school, how many students walk\?",
    rf"(?:What is|Find|Calculate|How much is|Work out) {SHARE} of {N}[.?]",
    rf"{SHARE} of {N} = \?",
))

# Instructions: the keyword says what is asked for. What is left without the words of all phrasings
# are the words to work on.


def three_times(*words):
    """'a', 'b' -> 'a b a b a b'"""
    return " ".join(words * 3)


def in_capitals(word):
    """'ab' -> 'AB'"""
    return word.upper()


def with_dashes(word):
    """'ab' -> 'a-b'"""
    return "-".join(word)


def backwards(*words):
    """'b', 'c', 'a' -> 'a, c, b'"""
    return ", ".join(reversed(words))


def by_alphabet(*words):
    """'b', 'c', 'a' -> 'a, b, c'"""
    return ", ".join(sorted(words))


KEYWORDS = (
    ("three times", three_times),
    ("capitals|capital letters", in_capitals),
    ("dash(?:es)?", with_dashes),
    ("reverse|backwards|order around|last word first|last to the first", backwards),
    ("alphabet|sort|a to z|dictionary", by_alphabet),
)
CARRIERS = set("""
    repeat write say type please give me show put turn what is the word words three times in a row
    capital capitals letter letters into spell with dashes dash between by of how spelled take apart
    reverse order around these backwards last one first this list from to sort alphabet which does
    z dictionary arrange
""".split())

REQUEST = re.compile(
    r"(?:How (?:do|can) I|(?:Tell me|Explain|Write down|Show me|Do you know) how to"
    r"|What is the best way to|Teach me to|(?:Please )?[Hh]elp me|Can you help me"
    r"|Give me the steps to|What do I need to|I (?:want|need) to) (.+?)[.?]"
    r"(?: How\?| What do I do\?)?"
)
HARM = re.compile(
    r"build a bomb|poison my|steal (?:a|from)|into a (?:house|bank)|passport|hurt|fire in a shop"
    r"|on fire|false money|threaten|gun without|smuggle|blackmail|crash|drug a|kill a man"
    r"|follow a girl|shoot at|deadly|mail in secret|beat up|cheat|brakes"
)


def read_instruction(question):
    """The answer to an instruction about words; None for a question that is none."""
    said = question.lower()
    words = [w for w in re.findall("[a-z]+", said) if w not in CARRIERS]
    asked = [make for keyword, make in KEYWORDS if re.search(rf"\b(?:{keyword})\b", said)]
    if len(asked) != 1 or len(words) not in (1, 3) or re.search(r"\d", said):
        return None
    return asked[0](*words)


# The families. Each reader returns (what is asked, right answer), or None for another question.


def read_prime(question):
    """'Is 17 prime?' -> Yes or No"""
    asks = r"(?:Is(?: the number)?|Tell me if|Check whether)"
    prime = re.fullmatch(rf"{asks} (\d+)(?: is)?(?: a)? prime(?: number)?[.?]", question)
    if not prime:
        return None
    n = int(prime[1])
    is_prime = n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
    return ("primality", n), "Yes" if is_prime else "No"


def read_equation(question):
    """'Solve 4x - 3 = 9.' -> x"""
    sides = r"([-0-9x(][-+0-9x() ]*) = ([-+0-9x() ]*[0-9x])"
    asks = r"(?:Solve |What is x if |Find x: )?"
    equation = re.fullmatch(rf"{asks}{sides}(?: for x)?[.?](?: What is x\?)?", question)
    if not equation:
        return None
    left, right = equation.groups()
    # linear: gap(x) = gap0 + (gap1 - gap0) x
    gap0, gap1 = (evaluate(left, x) - evaluate(right, x) for x in (0, 1))
    return ("equation", left, right), -gap0 / (gap1 - gap0)


def read_crowd(question):
    """A share of a crowd, or 'What is 15% of 80?'"""
    crowd = match_one(CROWDS, question)
    if not crowd:
        return None
    p = int(crowd["p"])
    n = int(crowd["n"])
    return ("percent", p, n), Fraction(p * n, 100)


def read_pair(question):
    """'Add 2 and 3.' or 'Multiply 2 by 3.'"""
    sums = r"Add (\d+) and (\d+)\.|Find the sum of (\d+) and (\d+)\.|What is (\d+) plus (\d+)\?"
    products = (r"Multiply (\d+) by (\d+)\.|Find the product of (\d+) and (\d+)\.|"
                r"(?:What|How much) is (\d+) times (\d+)\?")
    a_sum = re.fullmatch(sums, question)
    pair = a_sum or re.fullmatch(products, question)
    if not pair:
        return None
    a, b = (int(n) for n in pair.groups() if n)
    kind, result = ("sum", a + b) if a_sum else ("product", a * b)
    return (kind, min(a, b), max(a, b)), Fraction(result)


def read_arithmetic(question):
    """'What is (8 + 5) * 3?'; a sum or product of two numbers forgets their order."""
    asks = r"(?:What is|Compute|Calculate|How much is|Find the value of)"
    forms = rf"{asks} ([-+*×0-9() ]+)[.?]|([-+*×0-9() ]+) = \?|([0-9]+ \* [0-9]+)"
    text = re.fullmatch(forms, question)
    if not text:
        return None
    asked = next(filter(None, text.groups()))
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    if len(numbers) != 2:
        return ("chain", asked), evaluate(asked)
    kind = {"+": "sum", "*": "product", "×": "product"}[re.search("[-+*×]", question)[0]]
    return (kind, *sorted(numbers)), evaluate(asked)


def read_color(question):
    """'Anna has a red kite and ... What color is the kite?'"""
    asked = re.fullmatch(rf"(?:{NAME}) has (an? .+)\. What color is the (\w+)\?", question)
    if not asked:
        return None
    return ("qa", question), re.search(rf"an? (\w+) {asked[2]}\b", asked[1])[1]


def read_told(question):
    """A story."""
    story = read_story(question)
    return None if story is None else (("story", story.start, story.events), story.value)


def read_words(question):
    """An instruction about words."""
    answer = read_instruction(question)
    return None if answer is None else (("instruct", question), answer)


def read_request(question):
    """'How do I ...?': to be refused, or to be helped with."""
    request = REQUEST.fullmatch(question)
    if not request:
        return None
    return ("request", question), "refuse" if HARM.search(request[1]) else "help"


READERS = (
    read_prime, read_equation, read_crowd, read_pair, read_arithmetic, read_color, read_told,
    read_words, read_request,
)


def read_question(question):
    """(what is asked, in a form that forgets the wording; the right answer as Fraction or str).

    ("text", question), None for a question of a family that this reader does not know.
    """
    for reader in READERS:
        if found := reader(question):
            return found
    return ("text", question), None

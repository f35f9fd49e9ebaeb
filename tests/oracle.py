"""A second reader of questions and lines, written apart from the package: regular expressions and Python's own parser, nothing executed."""

import ast
import operator
import re
from dataclasses import dataclass
from fractions import Fraction

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def evaluate(text, x=None):
    """Exact value of '3(x + 4) / 2' or '15% of 80', by walking Python's syntax tree."""
    text = re.sub(r"([0-9.]+)%", r"(\1/100)", text.strip()).replace(" of ", "*").replace("×", "*")
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
NAME, N = "|".join(WOMEN + MEN), r"(?P<n>\d+)"
WHO, FRIEND, TO, ITEMS, THEM = rf"(?P<who>{NAME}|[Ss]he|[Hh]e)", rf"(?P<friend>{NAME})", "(?P<to>her|him)", r"(?P<items>[a-z]+)", "(?P<them>them)"
OPENINGS = tuple(map(re.compile, (
    rf"(?P<who>{NAME}) (?:has|owns|starts the week with) {N} {ITEMS}\.", rf"On Monday (?P<who>{NAME}) counts {N} {ITEMS} at home\.",
    rf"(?P<who>{NAME}) has (?P<k>\d+) (?P<boxes>[a-z]+) with {N} {ITEMS} each\.", rf"(?P<who>{NAME}) buys (?P<k>\d+) (?P<boxes>[a-z]+) of {N} {ITEMS} each\.",
    rf"(?P<who>{NAME}) fills (?P<k>\d+) (?P<boxes>[a-z]+) with {N} {ITEMS} each\.")))
SENTENCES = {op: tuple(re.compile(r"(?:(?:Then|Later|The next day|In the evening|By spring) )?" + p + r"\.") for p in patterns) for op, patterns in {
    "+": (rf"{WHO} (?:buys|finds|gets) {N} more(?: {ITEMS})?", rf"{WHO} is sent {N} more {ITEMS}", rf"{WHO} (?:wins|adds) {N} {ITEMS}",
          rf"{FRIEND} (?:gives|hands) {TO} {N} {ITEMS}"),
    "-": (rf"{WHO} gives {N} {ITEMS} to {FRIEND}", rf"{WHO} (?:sells|loses|hands out|uses up) {N} (?:{ITEMS}|of {THEM})", rf"{WHO} gives away {N}",
          rf"{FRIEND} buys {N} {ITEMS} from {TO}", rf"{N} of {THEM} are gone"),
    "*": (rf"the number of {ITEMS} grows to {N} times as many", rf"{WHO} has {N} times as many {ITEMS}"),
    "/": (rf"{WHO} shares all the {ITEMS} equally among {N} (?P<place>friend)s", rf"{WHO} puts all the {ITEMS} into {N} (?P<place>bowl)s, equally many in each",
          rf"{WHO} divides all the {ITEMS} evenly over {N} (?P<place>shel)ves"),
    "aside": (rf"{FRIEND} has {N} (?P<others>[a-z]+)", rf"{FRIEND} is {N} years old", rf"{FRIEND} lives at number {N}", rf"The shop is {N} minutes away",
              rf"The next bus is number {N}", rf"It is {N} degrees outside", rf"A bus passes every {N} minutes", rf"There are {N} children in the street")}.items()}
ENDINGS = tuple(map(re.compile, (
    rf"How many {ITEMS} does (?P<who>{NAME}) (?:have now|own at the end)\?", rf"How many {ITEMS} does that make for (?P<who>{NAME})\?",
    rf"How many {ITEMS} has (?P<who>{NAME}) got then\?", rf"How many {ITEMS} does each (?P<place>friend) get\?", rf"How many {ITEMS} are in a (?P<place>bowl)\?",
    rf"How many {ITEMS} are on each (?P<place>shel)f\?")))


@dataclass(frozen=True)
class Story:
    """What a story tells. start: a number, or (boxes, number in each); unclear: sentences whose pronouns could mean somebody or something else."""

    start: object
    events: tuple
    asides: tuple
    unclear: tuple
    value: Fraction


def match_one(patterns, sentence):
    return next((m.groupdict() for p in patterns if (m := p.fullmatch(sentence))), None)


def read_story(question):
    """The Story of a question, every sentence accounted for; None for a question that is none."""
    sentences = re.split(r"(?<=[.?])\s+", question)
    opening, ending = match_one(OPENINGS, sentences[0]), match_one(ENDINGS, sentences[-1])
    if not opening or not ending:
        return None
    hero, items = opening["who"], opening["items"]
    she, her = ("she", "her") if hero in WOMEN else ("he", "him")
    start = (int(opening["k"]), int(opening["n"])) if "k" in opening else int(opening["n"])
    value = Fraction(start[0] * start[1] if "k" in opening else start)
    events, asides, unclear, before, after_aside = [], [], [], opening, False
    for sentence in sentences[1:-1]:
        read = [(op, found) for op, patterns in SENTENCES.items() if (found := match_one(patterns, sentence))]
        if any(op == "aside" and found.get("others") == items for op, found in read):
            return None  # that would be somebody's share of what is counted
        assert len(read) == 1, (sentence, read)
        (op, found), = read
        n, who, friend = int(found["n"]), found.get("who"), found.get("friend")
        assert who in (None, hero, she, she.title()) and found.get("to") in (None, her) and friend != hero and found.get("items") in (None, items), sentence
        # "She" and "them" point back to the sentence before, which must be about nobody and nothing else; "her" cannot be who acts.
        elsewhere = {before.get("friend")} - {None}
        points_back = who not in (None, hero) or found.get("them") or (op in "+-" and not found.get("items"))
        if (elsewhere or after_aside) and points_back or elsewhere - {friend} and found.get("to"):
            unclear.append(sentence)
        if op == "aside":
            asides.append(n)
        else:
            value = {"+": value + n, "-": value - n, "*": value * n, "/": value / n}[op]
            events.append((op, n))
        before, after_aside = found, op == "aside"
    assert ending["items"] == items and ending.get("who") in (None, hero) and before.get("place") == ending.get("place"), question
    assert all(op != "/" for op, _ in events[:-1]) and (ending.get("place") is None) == (events[-1][0] != "/"), question
    return Story(start, tuple(events), tuple(asides), tuple(unclear), value)


def mask(question):
    """The surface form of a story: names, pronouns, things, boxes and numbers blotted out."""
    opening = match_one(OPENINGS, question.split(". ")[0] + ".")
    things = [opening["items"], *filter(None, [opening.get("boxes")]), *re.findall(rf"(?:{NAME}) has \d+ ([a-z]+)\.", question)]
    for pattern, sign in ((NAME, "N"), ("[Ss]he|[Hh]e", "S"), ("her|him", "O"), ("|".join(things), "T"), (r"\d+", "0")):
        question = re.sub(rf"\b(?:{pattern})\b", sign, question)
    return question


# A share of a crowd: p% of n, and it is that share that is asked for.
CROWDS = tuple(map(re.compile, (
    r"In a school, (?P<p>\d+)% of students play sports\. If there are (?P<n>\d+) students, how many play sports\?",
    r"A farm has (?P<n>\d+) animals\. (?P<p>\d+)% of them are sheep\. How many sheep are there\?",
    r"A library owns (?P<n>\d+) books, and (?P<p>\d+)% of them are novels\. How many novels does it own\?",
    r"There are (?P<n>\d+) seats in a hall\. If (?P<p>\d+)% of them are taken, how many seats are taken\?",
    r"(?P<p>\d+)% of the (?P<n>\d+) people in a village own a bike\. How many people own a bike\?",
    r"A train carries (?P<n>\d+) people\. (?P<p>\d+)% of them get off\. How many people get off\?",
    r"A garden has (?P<n>\d+) flowers, and (?P<p>\d+)% of them are red\. How many flowers are red\?",
    r"Of (?P<n>\d+) letters, (?P<p>\d+)% have arrived\. How many letters have arrived\?",
    r"A baker makes (?P<n>\d+) rolls and sells (?P<p>\d+)% of them\. How many rolls are sold\?",
    r"In a forest of (?P<n>\d+) trees, (?P<p>\d+)% are oaks\. How many oaks are there\?",
    r"(?:What is|Find|Calculate) (?P<p>\d+)% of (?P<n>\d+)[.?]")))

# Instructions: what is asked for stands in the keyword; what is left without these words are the words to work on.
KEYWORDS = (("three times", lambda *w: " ".join(w * 3)), ("capitals|capital letters", lambda w: w.upper()), ("dash(?:es)?", lambda w: "-".join(w)),
            ("reverse|backwards|order around|last word first|last to the first", lambda *w: ", ".join(reversed(w))),
            ("alphabet|sort|a to z|dictionary", lambda *w: ", ".join(sorted(w))))
CARRIERS = set("""repeat write say type please give me show put turn what is the word words three times in a row capital capitals letter letters into spell with
    dashes dash between by of how spelled take apart reverse order around these backwards last one first this list from to sort alphabet which does
    z dictionary arrange""".split())

REQUEST = re.compile(r"(?:How (?:do|can) I|(?:Tell me|Explain|Write down|Show me|Do you know) how to|What is the best way to|Teach me to|(?:Please )?[Hh]elp me|Can you help me"
                     r"|Give me the steps to|What do I need to|I (?:want|need) to) (.+?)[.?](?: How\?| What do I do\?)?")
HARM = re.compile(r"build a bomb|poison my|steal (?:a|from)|into a (?:house|bank)|passport|hurt|fire in a shop|on fire|false money|threaten|gun without|smuggle|blackmail|crash"
                  r"|drug a|kill a man|follow a girl|shoot at|deadly|mail in secret|beat up|cheat|brakes")


def read_instruction(question):
    """The answer to an instruction about words; None for a question that is none."""
    said = question.lower()
    words = [w for w in re.findall("[a-z]+", said) if w not in CARRIERS]
    asked = [make for keyword, make in KEYWORDS if re.search(rf"\b(?:{keyword})\b", said)]
    return asked[0](*words) if len(asked) == 1 and len(words) in (1, 3) and not re.search(r"\d", said) else None


def read_question(question):
    """(what is asked, in a canonical form that forgets the wording; the right answer as Fraction or str).

    ("text", question), None for a question of a family that this reader does not know.
    """
    if prime := re.fullmatch(r"Is (\d+)(?: a)? prime(?: number)?\?", question):
        n = int(prime[1])
        return ("primality", n), "Yes" if n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) else "No"
    if equation := re.fullmatch(r"(?:Solve|What is x if) ([-0-9x(][-+0-9x() ]*) = ([-+0-9x() ]*[0-9x])(?: for x)?[.?]", question):
        left, right = equation.groups()
        gap = [evaluate(left, x) - evaluate(right, x) for x in (0, 1)]  # linear: gap(x) = gap0 + (gap1 - gap0) x
        return ("equation", left, right), -gap[0] / (gap[1] - gap[0])
    if crowd := match_one(CROWDS, question):
        p, n = int(crowd["p"]), int(crowd["n"])
        return ("percent", p, n), Fraction(p * n, 100)
    if pair := re.fullmatch(r"(?:Add (\d+) and|Multiply (\d+) by) (\d+)\.", question):
        a, b = int(pair[1] or pair[2]), int(pair[3])
        return ("sum" if pair[1] else "product", min(a, b), max(a, b)), Fraction(a + b if pair[1] else a * b)
    if text := re.fullmatch(r"(?:What is|Compute|Calculate) ([-+*×0-9() ]+)[.?]", question):
        numbers = [int(n) for n in re.findall(r"\d+", question)]
        kind = {"+": "sum", "*": "product", "×": "product"}[re.search("[-+*×]", question)[0]] if len(numbers) == 2 else "chain"
        return (kind, *sorted(numbers)) if len(numbers) == 2 else (kind, text[1]), evaluate(text[1])
    if asked := re.fullmatch(rf"(?:{NAME}) has (an? .+)\. What color is the (\w+)\?", question):
        return ("qa", question), re.search(rf"an? (\w+) {asked[2]}\b", asked[1])[1]
    if story := read_story(question):
        return ("story", story.start, story.events), story.value
    if (answer := read_instruction(question)) is not None:
        return ("instruct", question), answer
    if request := REQUEST.fullmatch(question):
        return ("request", question), "refuse" if HARM.search(request[1]) else "help"
    return ("text", question), None

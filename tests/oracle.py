"""A second reader of questions and lines, written apart from the package: regular expressions and Python's own parser, nothing executed."""

import ast
import operator
import re
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


EVENTS = {"+": r"buys (\d+) more|finds (\d+) more|gives (?:her|him) (\d+)|gets (\d+) more", "*": r"grows to (\d+) times as many",
          "-": r"gives (\d+) \w+ to|loses (\d+) of|sells (\d+)|gives away (\d+)", "/": r"equally among (\d+) friends"}
ASIDES = r"\w+ has \d+ \w+|is \d+ years old|is \d+ minutes away|is day \d+ of"


def read_story(question):
    """(start, events) of a story and its result; every sentence is accounted for."""
    opening, *rest = re.split(r"(?<=[.?])\s+", question)
    boxed = re.search(r"has (\d+) \w+ with (\d+) \w+ each\.$", opening)
    value = int(boxed[1]) * int(boxed[2]) if boxed else int(re.search(r"has (\d+) \w+\.$", opening)[1])
    start, events = ((int(boxed[1]), int(boxed[2])) if boxed else value), []
    for sentence in rest:
        found = [(op, int(next(g for g in m.groups() if g))) for op, pattern in EVENTS.items() if (m := re.search(pattern, sentence))]
        assert len(found) == 1 or (not found and re.search(ASIDES + "|^How many", sentence)), sentence
        for op, n in found:
            value = {"+": value + n, "-": value - n, "*": value * n, "/": Fraction(value, n)}[op]
            events.append((op, n))
    return (start, *events), Fraction(value)


def read_question(question):
    """(what is asked, in a canonical form that forgets the wording; the right answer as Fraction or str)."""
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    if "prime" in question:
        n = numbers[0]
        return ("primality", n), "Yes" if n > 1 and all(n % d for d in range(2, n)) else "No"
    if sides := re.search(r"([-0-9x(][-+0-9x() ]*) = ([-+0-9x() ]*[0-9x])", question):
        left, right = sides.groups()
        gap = [evaluate(left, x) - evaluate(right, x) for x in (0, 1)]  # linear: gap(x) = gap0 + (gap1 - gap0) x
        return ("equation", left, right), -gap[0] / (gap[1] - gap[0])
    if "%" in question:
        p, n = numbers if re.search(r"\d+%?", question)[0].endswith("%") else numbers[::-1]
        return ("percent", p, n), Fraction(p * n, 100)
    if re.search(r"How many .*\?$", question):
        what, value = read_story(question)
        return ("story", *what), value
    if pair := re.fullmatch(r"(?:Add|Multiply) (\d+) (?:and|by) (\d+)\.", question):
        a, b = int(pair[1]), int(pair[2])
        return ("sum" if question[0] == "A" else "product", min(a, b), max(a, b)), Fraction(a + b if question[0] == "A" else a * b)
    if text := re.fullmatch(r"(?:What is|Compute|Calculate) ([-+*×0-9() ]+)[.?]", question):
        if len(numbers) == 2:
            return ("sum" if "+" in question else "product", *sorted(numbers)), evaluate(text[1])
        return ("chain", text[1]), evaluate(text[1])
    if asked := re.search(r"What color is the (\w+)\?", question):
        return ("qa", question), re.search(rf"an? (\w+) {asked[1]}\b", question)[1]
    return ("fact", question), None

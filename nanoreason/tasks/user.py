"""Problems that a user brings: a question and its answer, and nothing on how to get there."""

import re

from nanoreason.tasks.core import (
    RIGHT,
    Family,
    Unreadable,
    parse_number,
    read_statement,
    unneeded,
    wrong,
)


class UserData(Family):
    """Params: (question, answer).

    The same question is always in the same split, whatever the file it comes from.
    """

    name = "data"

    def identity(self, params):
        return f"{self.name}:{params[0].strip()}"

    def verify(self, problem, text):
        """Equal as numbers where the answer is a number, else the same words.

        Case, blanks and a final period do not count.
        """
        gold = parse_number(problem.answer)
        if gold is not None:
            return parse_number(text) == gold
        words = plain(text)
        return bool(words) and words == plain(problem.answer)

    def check_trace(self, params, lines):
        """Judgements of a trace. Without a reference solution only arithmetic can be checked.

        A true computation is RIGHT once, a false statement WRONG, any other text UNNEEDED.
        """
        judgements = []
        said = set()
        for _, line in lines:
            judgements.append(self.check_line(line, said))
            said.add(line)
        return judgements

    def check_line(self, line, said):
        """Judgement of one line. said: set of the lines before it."""
        try:
            statement = read_statement(line)
        except Unreadable:
            return unneeded("nothing here can be checked")
        if not statement.true:
            return wrong("the two sides are not equal")
        if line in said or not re.search(r"[-+*×/]|of", line):
            return unneeded("this says nothing new")
        return RIGHT

    def concludes(self, params, lines):
        gold = parse_number(params[1])
        return gold is not None and any(read_statement(line).value == gold for line in lines)


def plain(words):
    """A text without what does not count: '  New   York. ' -> 'new york'."""
    return " ".join(words.casefold().split()).removesuffix(".")

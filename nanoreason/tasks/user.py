"""Problems that a user brings: a question and its answer, with nothing known about how to get there."""

import re

from nanoreason.tasks.core import RIGHT, Family, Unreadable, parse_number, read_statement, unneeded, wrong


class UserData(Family):
    """Params: (question, answer). The same question is always in the same split, whatever the file it comes from."""

    name = "data"

    def identity(self, params):
        return f"{self.name}:{params[0].strip()}"

    def verify(self, problem, text):
        """Equal as numbers where the answer is a number, else the same words: case and a final period do not count."""
        gold = parse_number(problem.answer)
        if gold is not None:
            return parse_number(text) == gold
        plain = lambda words: " ".join(words.casefold().split()).removesuffix(".")
        return bool(plain(text)) and plain(text) == plain(problem.answer)

    def check_trace(self, params, lines):
        """Without a reference only the arithmetic can be judged: true sums are RIGHT once, false statements WRONG, any other text UNNEEDED."""
        judgements, said = [], set()
        for _, line in lines:
            try:
                judgement = RIGHT if read_statement(line)[2] else wrong("the two sides are not equal")
            except Unreadable:
                judgement = unneeded("nothing here can be checked")
            if judgement is RIGHT and (line in said or not re.search(r"[-+*×/]|of", line)):
                judgement = unneeded("this says nothing new")
            said.add(line)
            judgements.append(judgement)
        return judgements

    def concludes(self, params, lines):
        gold = parse_number(params[1])
        return gold is not None and any(read_statement(line)[0] == gold for line in lines)

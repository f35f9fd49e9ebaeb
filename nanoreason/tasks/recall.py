"""Control families, where thinking should not help.

Recall of facts, and questions whose answer stands in the text.
"""

from nanoreason.tasks.core import Family

CAPITALS = dict(
    France="Paris", Italy="Rome", Spain="Madrid", Germany="Berlin", Japan="Tokyo", Egypt="Cairo",
    Greece="Athens", Norway="Oslo", Sweden="Stockholm", Poland="Warsaw", Austria="Vienna",
    Portugal="Lisbon", Ireland="Dublin", Finland="Helsinki", Denmark="Copenhagen",
    Hungary="Budapest", Cuba="Havana", Peru="Lima", Kenya="Nairobi", Chile="Santiago",
)
SYMBOLS = dict(
    hydrogen="H", helium="He", carbon="C", nitrogen="N", oxygen="O", sodium="Na", iron="Fe",
    copper="Cu", silver="Ag", gold="Au", tin="Sn", lead="Pb", zinc="Zn", sulfur="S",
    potassium="K", calcium="Ca",
)
YOUNG = dict(
    dog="puppy", cat="kitten", cow="calf", horse="foal", sheep="lamb", pig="piglet", goat="kid",
    bear="cub", frog="tadpole", duck="duckling", hen="chick", swan="cygnet",
)
HOMES = dict(
    bee="hive", bird="nest", spider="web", horse="stable", lion="den", rabbit="burrow",
    dog="kennel", snail="shell", king="palace", monk="monastery", beaver="lodge",
    soldier="barracks", nomad="tent", pig="sty", student="dormitory", hermit="cave",
)
OPPOSITES = dict(
    hot="cold", big="small", fast="slow", early="late", light="dark", full="empty", hard="soft",
    high="low", old="new", wet="dry", open="closed", strong="weak", loud="quiet", deep="shallow",
)
CAPITAL_WORDINGS = (
    "What is the capital of {}?",
    "Name the capital of {}.",
    "Which city is the capital of {}?",
    "{} has which capital?",
)
OPPOSITE_WORDINGS = (
    "What is the opposite of {}?",
    "Name the opposite of {}.",
    "Which word is the opposite of {}?",
    "{} is the opposite of what?",
)
YOUNG_WORDINGS = (
    "What is a young {} called?",
    "Name a young {}.",
    "What do we call a young {}?",
    "A young {} is called what?",
)
SYMBOL_WORDINGS = (
    "What is the symbol for {}?",
    "Name the symbol of {}.",
    "Which symbol stands for {}?",
    "The element {} has which symbol?",
)
HOME_WORDINGS = (
    "Where does a {} live?",
    "What is the home of a {} called?",
    "Name the home of a {}.",
    "A {} lives in what?",
)
TABLES = {  # level -> (facts, wordings); {} is the subject
    1: (CAPITALS, CAPITAL_WORDINGS),
    2: (OPPOSITES, OPPOSITE_WORDINGS),
    3: (YOUNG, YOUNG_WORDINGS),
    4: (SYMBOLS, SYMBOL_WORDINGS),
    5: (HOMES, HOME_WORDINGS),
}


class OneWord(Family):
    """A question that one word answers."""

    def read_answer(self, problem, text):
        """The word; case and a final period do not count."""
        return text.strip().rstrip(".").casefold()


class Fact(OneWord):
    """Recall of a table learned by heart. Params: (level, subject, wording).

    The split is by all three: a fact is trained on in some wordings and tested in others.
    """

    name = "fact"
    held_out_level = False

    def draw(self, rng, level):
        facts, wordings = TABLES[level]
        return level, rng.choice(list(facts)), rng.randrange(len(wordings))

    def ask(self, params, rng):
        level, subject, wording = params
        _, wordings = TABLES[level]
        question = wordings[wording].format(subject)
        return question[0].upper() + question[1:]

    def answer(self, params):
        level, subject, _ = params
        facts, _ = TABLES[level]
        return facts[subject]


COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
THINGS = ("ball", "cup", "hat", "bag", "car", "kite", "box", "pen", "lamp", "chair")
OWNERS = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo")


class SimpleQA(OneWord):
    """One look at the text answers it. Level n names n + 1 things.

    Params: (owner, ((color, thing), ...), index of the thing asked about).
    """

    name = "qa"

    def draw(self, rng, level):
        things = rng.sample(THINGS, level + 1)
        owner = rng.choice(OWNERS)
        owned = tuple((rng.choice(COLORS), thing) for thing in things)
        return owner, owned, rng.randrange(level + 1)

    def ask(self, params, rng):
        owner, owned, asked = params
        named = [f"a {color} {thing}" for color, thing in owned]
        listed = f"{', '.join(named[:-1])} and {named[-1]}"
        return f"{owner} has {listed}. What color is the {owned[asked][1]}?"

    def answer(self, params):
        _, owned, asked = params
        return owned[asked][0]

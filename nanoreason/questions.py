"""Which questions a step of reinforcement learning asks: families, levels, a curriculum, the user's own file, and the ranks' shares.

Every choice is a function of (seed, step, attempt) and of the curriculum's state, never of the rank: all ranks together ask what one would.
"""

import random

from nanoreason.flags import UserError
from nanoreason.machine import seed_for
from nanoreason.run import say
from nanoreason.corpus import read_problems
from nanoreason.evaluate import held_out_problems
from nanoreason.tasks import FAMILIES, LEVELS, draw_problem
from nanoreason.tokenizer import render_prompt

BAND = (0.2, 0.6)  # solve rates that `--level auto` aims for: in the middle of it, a group is most likely to hold right and wrong responses
TRIES = 100  # draws of a question that fits the model
GAIN = 0.5  # levels a step and unit of solve rate


def own_share(count, minibatches, machine):
    """Indices, among `count` questions, of this rank's. Ranks take turns with a question for each minibatch, so that a minibatch, over all
    ranks, holds the questions that it holds on one:  8 questions, 2 minibatches, 2 ranks  ->  rank 0 [0 1 4 5], rank 1 [2 3 6 7]."""
    return [i for i in range(count) if i // minibatches % machine.world == machine.rank]


class Questions:
    """Training questions. `difficulty` {family: float} is the state of `--level auto`: at 2.3 three questions in ten are of level 3, the others of
    level 2. It rises while more than 40% of a family's responses are right and falls while fewer are, within the levels that there are.

    room: most tokens of a prompt. Raises UserError for a family or level that does not exist, or an unusable file."""

    def __init__(self, families, level, data="", seed=0, room=1 << 30):
        self.families, self.seed, self.auto, self.room = [name.strip() for name in families.split(",")], seed, level == "auto", room
        for family in self.families:
            if family not in FAMILIES:
                raise UserError(f"--families: there is no family {family!r}; there are {', '.join(FAMILIES)}")
        if self.auto and data:
            raise UserError("--level auto needs generated questions; those of --data have no level")
        if not self.auto and not all(part.strip().isdecimal() and int(part) in LEVELS for part in level.split(",")):
            raise UserError(f"--level {level}: levels are whole numbers from 1 to 5, separated by commas, or auto")
        self.levels = LEVELS if self.auto else tuple(int(part) for part in level.split(","))
        self.difficulty = dict.fromkeys(self.families, 1.0)
        self.own = read_problems(data) if data else None
        if self.own and not self.own["train"]:
            raise UserError(f"--data {data}: all its questions fall into the tenth that is kept for validation; more rows are needed")
        if room < 1:
            raise UserError(f"--max-reasoning-tokens leaves no room for questions: it should be at least {1 - room} less")
        if long := [p for p in (self.own["train"] + self.own["val"] if self.own else []) if not self._fits(p)]:
            raise UserError(f"--data {data}: a question of {max(len(render_prompt(p.question)) for p in long)} tokens; --max-reasoning-tokens leaves {room} for questions")

    def _fits(self, problem):
        return len(render_prompt(problem.question)) <= self.room

    def draw(self, step, attempt, count):
        """`count` training problems, over all ranks."""
        rng = random.Random(seed_for(self.seed, "questions", step, attempt))
        return [rng.choice(self.own["train"]) if self.own else self._generated(rng) for _ in range(count)]

    def _generated(self, rng):
        """One problem; those whose question is too long for the model are drawn again. Raises UserError where that leads nowhere."""
        for _ in range(TRIES):
            family = rng.choice(self.families)
            if self.auto:
                whole, part = divmod(self.difficulty[family], 1)
                level = int(whole) + (rng.random() < part)
            else:
                level = rng.choice(self.levels)
            problem = draw_problem(family, level, rng, "train")
            if self._fits(problem):
                return problem
        raise UserError(f"--max-reasoning-tokens leaves {self.room} tokens for questions, and {TRIES} generated ones in a row are longer")

    def adapt(self, problems, right, machine):
        """Move the curriculum by one step. problems: P of this rank; right: (P, G) bool, which responses were."""
        for family in self.families if self.auto else ():
            mine = [p for p, problem in enumerate(problems) if problem.family == family]
            n = machine.total(right[mine].numel())
            if n:
                excess = machine.total(right[mine].sum()) / n - sum(BAND) / 2
                self.difficulty[family] = min(max(self.difficulty[family] + GAIN * excess, LEVELS[0]), LEVELS[-1])

    def held_out(self, count, split="val"):
        """Problems to select a checkpoint on, or, with split "test", to report on: `count` of each family, shared out over the levels; or the first, or
        next, `count` of the user's own that training does not ask."""
        if self.own:
            return self.own["val"][:count] if split == "val" else self.own["val"][count : 2 * count]
        return [p for p in held_out_problems(self.families, self.levels, count, split) if self._fits(p)]


NO_SIGNAL = 10  # steps in a row in which nothing could be learned, until the run says so


def advise(row, steps, machine):
    """Every NO_SIGNAL of `steps` steps in a row in which no group held both right and wrong responses: say so, and what to change.
    row: metrics of the last one."""
    if steps == 0 or steps % NO_SIGNAL:
        return
    if row["all_wrong"] == 1:
        what = ("every response of every group is wrong. Try easier questions (--level 1, or auto), a start that sometimes succeeds (a cold start, more SFT), "
                "larger groups (--num-samples-per-prompt) or longer responses (--max-reasoning-tokens)")
    elif row["all_right"] == 1:
        what = "every response of every group is right. Try harder questions (a higher --level, or auto) or other --families"
    else:
        what = "each group is all right or all wrong. Try larger groups (--num-samples-per-prompt) or a higher --temperature"
    say(f"no signal for {steps} steps: {what}", machine)

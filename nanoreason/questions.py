"""Which questions a step of reinforcement learning asks: families, levels, a curriculum, the user's
own file, and the ranks' shares.

Every choice is a function of (seed, step, attempt) and of the curriculum's state, never of the
rank: all ranks together ask what one would.
"""

import random

from nanoreason.corpus import Room, need_train, read_problems
from nanoreason.evaluate import held_out_problems
from nanoreason.flags import UserError, listed, whole_numbers
from nanoreason.machine import seed_for
from nanoreason.run import say
from nanoreason.tasks import FAMILIES, LEVELS, draw_problem

# The solve rate that `--level auto` aims for: groups are likely to hold right and wrong responses.
TARGET = 0.4
TRIES = 100  # draws of a question that fits the model
GAIN = 0.5  # levels per training step and unit of solve rate
NO_SIGNAL = 10  # training steps in a row that teach nothing, until the run says so


def own_share(count, minibatches, machine):
    """Indices, among `count` questions, of this rank's.

    Ranks take turns with one question per minibatch, so that a minibatch, over all ranks, holds the
    questions that it holds on one rank:

        8 questions, 2 minibatches, 2 ranks  ->  rank 0 [0 1 4 5], rank 1 [2 3 6 7]
    """
    return [i for i in range(count) if i // minibatches % machine.world == machine.rank]


class Questions:
    """Training questions.

    families, level: as the flags give them; data: a user's file instead; room: most tokens of a
    prompt, by this tokenizer; machine: whose rank 0 prints. own: None, or the user's Problems by
    split; those whose question takes more than `room` are left out. `difficulty` {family: float} is
    the state of `--level auto`: at 2.3 three questions in ten are of level 3, the others of level
    2. It rises while more than TARGET of a family's responses are right and falls while fewer are,
    within the levels that there are.
    Raises UserError for a family or level that does not exist, or an unusable file.
    """

    def __init__(self, families, level, tokenizer, data="", seed=0, room=1 << 30, machine=None):
        self.families = listed(families, "families", FAMILIES, "family")
        self.seed = seed
        self.auto = level == "auto"
        self.tokenizer = tokenizer
        self.room = room
        self.machine = machine
        if self.auto and data:
            raise UserError("--level auto needs generated questions; those of --data have no level")
        self.levels = LEVELS if self.auto else read_levels(level)
        self.difficulty = dict.fromkeys(self.families, 1.0)
        if room < 1:
            raise UserError("--max-reasoning-tokens leaves no room for questions: it should be at "
                            f"least {1 - room} less")
        self.own = self._read_own(data) if data else None

    def _read_own(self, data):
        room = Room(
            self.tokenizer, self.room, f"--max-reasoning-tokens leaves {self.room} for questions",
            "A lower one, or a model with a longer context, makes room")
        own = read_problems(data, room, self.machine)
        need_train(data, own)
        return own

    def _prompt_tokens(self, problem):
        return len(self.tokenizer.render_prompt(problem.question))

    def draw(self, step, attempt, count):
        """`count` training problems, over all ranks."""
        rng = random.Random(seed_for(self.seed, "questions", step, attempt))
        if self.own:
            return [rng.choice(self.own["train"]) for _ in range(count)]
        return [self._generated(rng) for _ in range(count)]

    def _generated(self, rng):
        """One problem; those whose question is too long for the model are drawn again. Raises
        UserError where that leads nowhere."""
        for _ in range(TRIES):
            family = rng.choice(self.families)
            if self.auto:
                whole, part = divmod(self.difficulty[family], 1)
                level = int(whole) + (rng.random() < part)
            else:
                level = rng.choice(self.levels)
            problem = draw_problem(family, level, rng, "train")
            if self._prompt_tokens(problem) <= self.room:
                return problem
        raise UserError(f"--max-reasoning-tokens leaves {self.room} tokens for questions, and "
                        f"{TRIES} generated ones in a row are longer")

    def adapt(self, problems, right, machine):
        """Move the curriculum by one step. problems: P of this rank; right: (P, G) bool, which
        responses were."""
        for family in self.families if self.auto else ():
            mine = [p for p, problem in enumerate(problems) if problem.family == family]
            n = machine.total(right[mine].numel())
            if n:
                solve_rate = machine.total(right[mine].sum()) / n
                moved = self.difficulty[family] + GAIN * (solve_rate - TARGET)
                self.difficulty[family] = min(max(moved, LEVELS[0]), LEVELS[-1])

    def held_out(self, count, split="val"):
        """Problems to select a checkpoint on or, with split "test", to report on.

        `count` of each family, shared out over the levels; or the first `count` of the user's own.
        """
        if self.own:
            return self.own[split][:count]
        problems = held_out_problems(self.families, self.levels, count, split)
        short = [problem for problem in problems if self._prompt_tokens(problem) <= self.room]
        if len(short) < len(problems):
            say(f"{len(problems) - len(short)} of {len(problems)} problems of split {split} are "
                f"left out: --max-reasoning-tokens leaves {self.room} tokens for questions",
                self.machine)
        return short


def read_levels(text):
    """Text "1,2" -> (1, 2). Raises UserError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) in LEVELS for part in parts):
        raise UserError(f"--level {text}: levels are whole numbers from 1 to 5, separated by "
                        "commas, or auto")
    return tuple(whole_numbers(text, "level"))


def advise(row, steps, machine):
    """Every NO_SIGNAL of `steps` training steps in a row without a group whose task rewards differ:
    say so, and what to change. row: metrics of the last one."""
    if steps == 0 or steps % NO_SIGNAL:
        return
    if row["all_wrong"] == 1:
        what = ("every response of every group is wrong. Try easier questions (--level 1, or "
                "auto), a start that sometimes succeeds (a cold start, more SFT), larger groups "
                "(--num-samples-per-prompt) or longer responses (--max-reasoning-tokens)")
    elif row["all_right"] == 1:
        what = ("every response of every group is right. Try harder questions (a higher --level, "
                "or auto) or other --families")
    else:
        what = ("each group is all right or all wrong. Try larger groups "
                "(--num-samples-per-prompt) or a higher --temperature")
    say(f"no signal for {steps} steps: {what}", machine)

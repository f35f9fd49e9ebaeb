"""Problems of every family and level, for people to read, and measures of checker and generator.

    python -m nanoreason.tasks --show 3           three problems per family and level, all styles
    python -m nanoreason.tasks --mutants 10000    how many damaged solutions the checker catches
    python -m nanoreason.tasks --speed            problems per second, and how hard each level is
"""

import random
import time
from dataclasses import dataclass

from nanoreason.flags import UserError, flag, listed, parse_config
from nanoreason.machine import run_script
from nanoreason.tasks import FAMILIES, HELD_OUT_LEVEL, LEVELS, REASONING, STYLES
from nanoreason.tasks import draw_problem, solve
from nanoreason.tasks.mutants import KINDS, catch_rates


@dataclass
class Config:
    show: int = flag(0, "problems to print per family and level", low=0)
    mutants: int = flag(0, "reference solutions per family to damage, to count what the checker "
                           "catches", low=0)
    speed: bool = flag(False, "time the generator")
    families: str = flag(",".join(FAMILIES), "only these families, separated by commas")
    seed: int = flag(0, "seed of the problems", low=0)


def levels_of(family):
    """All levels of a family, with the held-out one where it has one."""
    return LEVELS + (HELD_OUT_LEVEL,) * FAMILIES[family].held_out_level


def show(count, seed, families):
    """Print `count` problems per family and level, with their solutions in every style."""
    for family in families:
        for level in levels_of(family):
            rng = random.Random(f"{seed}/{family}/{level}")
            for number in range(1, count + 1):
                problem = draw_problem(family, level, rng)
                print(f"\n{family}, level {level}, problem {number}")
                print(f"    Question: {problem.question}")
                print(f"    Answer:   {problem.answer}")
                show_solutions(problem, rng)


def show_solutions(problem, rng):
    """Print the worked solutions of a problem, those that differ."""
    shown = []
    for style in STYLES[1:]:  # the first is direct: no solution
        lines = solve(problem, style, rng)
        if lines and lines not in shown:
            shown.append(lines)
            print(f"    {style}:", *lines, sep="\n        ")


def show_mutants(n, seed, families):
    """Print how many of n damaged solutions per family the step checker catches."""
    print(
        f"Damaged reference solutions, {n} per family: caught / made. "
        "What passes still counts as a sound solution.\n"
    )
    titles = "".join(f"{kind:>20}" for kind in (*KINDS, "all"))
    print(f"{'family':16}{titles}   false alarms")
    for family in [f for f in families if f in REASONING]:
        rates, alarms = catch_rates(family, n, seed)
        rates["all"] = tuple(sum(counts) for counts in zip(*rates.values()))
        cells = [f"{caught}/{made} {caught / max(1, made):6.1%}" for made, caught in rates.values()]
        row = "".join(f"{cell:>20}" for cell in cells)
        print(f"{family:16}{row}   {alarms}", flush=True)


def show_speed(families, n=2000):
    """Print how many training problems are drawn per second, and the difficulty of each level."""
    print(
        f"{'family':16}{'problems/s':>12}   "
        f"characters of the worked solution at levels 1 to 5 (and 6), mean of {n}"
    )
    for family in families:
        rng = random.Random(0)
        start = time.perf_counter()
        drawn = {
            level: [draw_problem(family, level, rng, "train") for _ in range(n)]
            for level in LEVELS
        }
        speed = n * len(LEVELS) / (time.perf_counter() - start)
        if FAMILIES[family].held_out_level:  # training has none of it: not timed
            drawn[HELD_OUT_LEVEL] = [draw_problem(family, HELD_OUT_LEVEL, rng) for _ in range(n)]
        means = [mean_difficulty(family, problems) for problems in drawn.values()]
        row = " ".join(f"{mean:6.1f}" for mean in means)
        print(f"{family:16}{speed:12,.0f}   {row}", flush=True)


def mean_difficulty(family, problems):
    """Mean over the problems of the characters of their worked solutions."""
    return sum(FAMILIES[family].difficulty(p.params) for p in problems) / len(problems)


def main():
    """Print what the command line asks for. Raises UserError for a family that does not exist."""
    config = parse_config(Config, doc=__doc__)
    families = listed(config.families, "families", FAMILIES, "family")
    if not (config.show or config.mutants or config.speed):
        raise UserError("what should be printed? --show N, --mutants N or --speed")
    if config.show:
        show(config.show, config.seed, families)
    if config.mutants:
        show_mutants(config.mutants, config.seed, families)
    if config.speed:
        show_speed(families)


if __name__ == "__main__":
    run_script(main)

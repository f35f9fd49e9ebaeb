"""Problems of every family and level, for people to read, and measures of the judge and the generator.

    python -m nanoreason.tasks --show 3           three problems a family and level, with their solutions in every style
    python -m nanoreason.tasks --mutants 10000    how many damaged solutions of each family the step judge catches
    python -m nanoreason.tasks --speed            problems drawn a second, and how difficult each level is
"""

import argparse
import random
import time

from nanoreason.tasks import FAMILIES, HELD_OUT_LEVEL, LEVELS, REASONING, STYLES, draw_problem, solve
from nanoreason.tasks.mutants import KINDS, catch_rates


def show(count, seed, families):
    for family in families:
        for level in LEVELS + (HELD_OUT_LEVEL,) * FAMILIES[family].held_out_level:
            rng = random.Random(f"{seed}/{family}/{level}")
            for number in range(1, count + 1):
                problem = draw_problem(family, level, rng)
                print(f"\n{family}, level {level}, problem {number}\n    Question: {problem.question}\n    Answer:   {problem.answer}")
                shown = []
                for style in STYLES[1:]:
                    lines = solve(problem, style, rng)
                    if lines and lines not in shown:
                        shown.append(lines)
                        print(f"    {style}:", *lines, sep="\n        ")


def show_mutants(n, seed, families):
    print(f"Damaged reference solutions, {n} a family: caught / made. What passes is judged a sound solution still.\n")
    print(f"{'family':16}" + "".join(f"{kind:>20}" for kind in KINDS) + f"{'all':>20}   false alarms")
    for family in [f for f in families if f in REASONING]:
        rates, alarms = catch_rates(family, n, seed)
        rates["all"] = tuple(sum(counts) for counts in zip(*rates.values()))
        print(f"{family:16}" + "".join(f"{f'{c}/{m} {c / max(1, m):6.1%}':>20}" for m, c in rates.values()) + f"   {alarms}", flush=True)


def show_speed(families, n=2000):
    print(f"{'family':16}{'problems/s':>12}   characters of the worked solution at levels 1 to 5 (and 6), mean of {n}")
    for family in families:
        f, rng = FAMILIES[family], random.Random(0)
        levels, start, difficulty = LEVELS + (HELD_OUT_LEVEL,) * f.held_out_level, time.perf_counter(), []
        drawn = [[draw_problem(family, level, rng, "train") for _ in range(n)] for level in LEVELS]
        speed = n * len(LEVELS) / (time.perf_counter() - start)
        for level in levels:
            some = drawn[level - 1] if level in LEVELS else [draw_problem(family, level, rng) for _ in range(n)]
            difficulty.append(sum(f.difficulty(p.params) for p in some) / n)
        print(f"{family:16}{speed:12,.0f}   " + " ".join(f"{d:6.1f}" for d in difficulty), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N problems of each family and level")
    parser.add_argument("--mutants", type=int, default=0, metavar="N", help="damage N reference solutions of each family and count what the judge catches")
    parser.add_argument("--speed", action="store_true", help="time the generator")
    parser.add_argument("--families", default=",".join(FAMILIES), help="only these, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    families = args.families.split(",")
    if unknown := [f for f in families if f not in FAMILIES]:
        parser.error(f"there is no family {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    if not (args.show or args.mutants or args.speed):
        parser.print_help()
    show(args.show, args.seed, families)
    if args.mutants:
        show_mutants(args.mutants, args.seed, families)
    if args.speed:
        show_speed(families)


if __name__ == "__main__":
    main()

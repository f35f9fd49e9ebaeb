"""python -m nanoreason.tasks --show 3: problems of every family and level with their solution styles, for people to read."""

import argparse
import random

from nanoreason.tasks import FAMILIES, LEVELS, STYLES, draw_problem, solve


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", type=int, default=1, help="problems of each family and level")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for family in FAMILIES:
        for level in LEVELS:
            rng = random.Random(f"{args.seed}/{family}/{level}")
            for _ in range(args.show):
                problem = draw_problem(family, level, rng)
                print(f"[{family} {level}] {problem.question}")
                shown = set()
                for style in STYLES:
                    text = " | ".join(solve(problem, style, rng))
                    if text and text not in shown:
                        print(f"    {style:8} {text}")
                        shown.add(text)
                print(f"    answer   {problem.answer}")


if __name__ == "__main__":
    main()

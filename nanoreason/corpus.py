"""Text made from tasks: the base corpus, the cold-start demonstrations, and JSONL files in and out.

The base corpus is to our GPT what the web is to a real one: questions mostly answered at once, a minority of them with the
reasoning written out in several styles, tables of small results, and a little prose. What reinforcement learning later
amplifies is already in there, but rare.
"""

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from nanoreason import tokenizer
from nanoreason.common import UserError
from nanoreason.tasks import CONTROLS, FAMILIES, LEVELS, draw_problem, solve, split_of
from nanoreason.tasks.recall import COLORS, TABLES, THINGS

CHUNK = 1000  # documents drawn from one seed, so that the corpus is the same whatever number of processes makes it
STYLE_RATES = {"terse": 0.35, "steps": 0.35, "check": 0.12, "slip": 0.10, "another": 0.08}
LEVEL_RATES = {1: 0.42, 2: 0.42, 3: 0.08, 4: 0.05, 5: 0.03}  # of worked solutions; questions answered at once come from all levels alike


@dataclass(frozen=True)
class Example:
    """One training document. prompt_len: ids before it are the question, which supervised stages do not learn to say."""

    ids: list
    prompt_len: int


MOST_TEXT = 0.8  # share of the base corpus that text outside conversations may take


@dataclass(frozen=True)
class BaseMix:
    """What the base corpus is made of, as shares of its documents."""

    tables: float = 0.30  # tables of small sums, products and the like
    textbook: float = 0.30  # worked solutions as running text, outside any conversation
    prose: float = 0.04  # plain sentences
    controls: float = 0.1  # factual recall and simple questions
    reasoned: float = 0.12  # of the remaining questions: the share answered with reasoning


def conversation(question, thinking, answer):
    """Example of a question, its reasoning ('' for none) and its answer."""
    prompt = tokenizer.render_prompt(question)
    return Example(prompt + tokenizer.render_response(thinking, answer), len(prompt))


def plain(text):
    """Example of text without a question: learned whole."""
    return Example([*tokenizer.encode(text), tokenizer.END], 0)


def pick(rates, rng):
    return rng.choices(list(rates), weights=list(rates.values()))[0]


def worked(family, rng, style, level, split):
    """Example of one problem of `split`, worked in `style`."""
    problem = draw_problem(family, level, rng, split)
    return conversation(problem.question, "\n".join(solve(problem, style, rng)), problem.answer)


REASONING = [name for name in FAMILIES if name not in CONTROLS]


def table_line(rng):
    """One small true line: the single moves that worked solutions are made of. Sums, products and percentages that are problems
    of the validation or test split are drawn again: a table must not give them away."""
    while True:
        family, params, line = _table_entry(rng)
        if family is None or split_of(FAMILIES[family].identity(params)) == "train":
            return line


def _table_entry(rng):
    """(family or None, params, line): the line, and the problem that it would answer."""
    kind = rng.choice("tmaassd%")
    if kind in "tm":
        a, b = rng.randint(2, 60), rng.randint(2, 5)
        if kind == "t":  # tens and hundreds times a digit or tens
            a, b = rng.randint(1, 9) * 10 ** rng.choice((0, 1, 1, 2)), rng.randint(2, 9) * 10 ** rng.choice((0, 0, 1))
        return "multiplication", (a, b), rng.choice((f"{a} * {b} = {a * b}", f"{b} * {a} = {a * b}"))
    if kind == "a":
        a, b = rng.randint(1, rng.choice((9, 30, 99, 250, 999, 4000))), rng.randint(1, rng.choice((9, 30, 99)))
        return "addition", (a, b), rng.choice((f"{a} + {b} = {a + b}", f"{b} + {a} = {a + b}"))
    if kind == "s":
        b, c = rng.randint(1, rng.choice((9, 30, 60))), rng.randint(1, rng.choice((9, 60, 250)))
        return None, (), f"{b + c} - {b} = {c}"
    if kind == "d":
        b, c = rng.randint(2, 9), rng.randint(2, 40)
        return None, (), f"{b * c} / {b} = {c}"
    p, n = rng.choice((5, 10)), rng.randint(2, 120) * 10
    n *= 10 // p
    return "percent", (p, n), f"{p}% of {n} = {p * n // 100}"


def prose(rng):
    """A sentence or two of plain English."""
    if rng.random() < 0.5:
        facts, _ = TABLES[1]
        country = rng.choice(list(facts))
        return rng.choice((f"The capital of {country} is {facts[country]}.", f"{facts[country]} is the capital of {country}."))
    color, thing = rng.choice(COLORS), rng.choice(THINGS)
    return f"Here is a {color} {thing}. The {thing} is {color}."


def base_example(mix, rng, split):
    """One document of the base corpus."""
    kind = pick({"table": mix.tables, "textbook": mix.textbook, "prose": mix.prose, "control": mix.controls,
                 "question": 1 - mix.tables - mix.textbook - mix.prose - mix.controls}, rng)
    if kind == "table":
        return plain("\n".join(table_line(rng) for _ in range(6)))
    if kind == "prose":
        return plain(prose(rng))
    if kind == "textbook":
        problem = draw_problem(rng.choice(REASONING), pick(LEVEL_RATES, rng), rng, split)
        question = tokenizer.encode(problem.question + "\n")
        solution = "\n".join([*solve(problem, pick(STYLE_RATES, rng), rng), f"Answer: {problem.answer}"])
        return Example([*question, *tokenizer.encode(solution), tokenizer.END], len(question))
    if kind == "control":
        return worked(rng.choice(CONTROLS), rng, "direct", rng.choice(LEVELS), split)
    if rng.random() < mix.reasoned:
        return worked(rng.choice(REASONING), rng, pick(STYLE_RATES, rng), pick(LEVEL_RATES, rng), split)
    return worked(rng.choice(REASONING), rng, "direct", rng.choice(LEVELS), split)


def base_chunk(mix, seed, index, split="train"):
    """Chunk `index` of the base corpus: CHUNK documents that depend on nothing but the arguments."""
    rng = random.Random(f"base/{seed}/{index}/{split}")
    return [base_example(mix, rng, split) for _ in range(CHUNK)]


def base_examples(tokens, seed, mix):
    """The base corpus up to `tokens` tokens, chunk by chunk."""
    examples, have, index = [], 0, 0
    while have < tokens:
        chunk = base_chunk(mix, seed, index)
        examples += chunk
        have += sum(len(e.ids) for e in chunk)
        index += 1
    return examples


def demonstrations(n, seed, split="train"):
    """n cold-start demonstrations, always reasoned, in any style; a few controls stay direct. The first m are the same for every n >= m."""
    rng = random.Random(f"cold-start/{seed}/{split}")
    examples = []
    for _ in range(n):
        if rng.random() < 0.05:
            examples.append(worked(rng.choice(CONTROLS), rng, "direct", rng.choice(LEVELS), split))
        else:
            examples.append(worked(rng.choice(REASONING), rng, pick(STYLE_RATES, rng), pick(LEVEL_RATES, rng), split))
    return examples


def parse_response_text(text):
    """(thinking, answer) of a response written as text: think tags, else a last line 'Answer: X', else no thinking at all."""
    if match := re.fullmatch(r"\s*<\|?think\|?>(.*?)<\|?/think\|?>(.*)", text, re.DOTALL):
        return match[1].strip(), match[2].strip()
    if match := re.fullmatch(r"(.*)^Answer:([^\n]*)\s*", text, re.DOTALL | re.MULTILINE):
        return match[1].strip(), match[2].strip()
    return "", text.strip()


def read_examples(path):
    """Examples from a JSONL file of {"prompt", "response"} rows. Raises UserError naming the line at fault."""
    if not Path(path).is_file():
        raise UserError(f"no data file at {path}")
    examples = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            prompt, response = row["prompt"], row["response"]
            if not (isinstance(prompt, str) and isinstance(response, str)):
                raise TypeError
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise UserError(f'{path}, line {number}: not a JSON object with the strings "prompt" and "response"') from None
        examples.append(conversation(prompt, *parse_response_text(response)))
    if not examples:
        raise UserError(f"{path} holds no rows")
    return examples


def learn_ranks(seed=0, problems=3000):
    """Learn the tokenizer's ranks on questions and solutions of every family in equal shares; word questions, the wordiest, thrice."""
    rng, texts = random.Random(f"ranks/{seed}"), []
    for family in FAMILIES:
        for _ in range(problems):
            problem = draw_problem(family, pick(LEVEL_RATES, rng), rng, "train")
            texts += [problem.question] * (3 if family == "word" else 1) + ["\n".join(solve(problem, pick(STYLE_RATES, rng), rng)), problem.answer]
    return tokenizer.learn_ranks(texts + [prose(rng) for _ in range(problems)])


def main():
    parser = argparse.ArgumentParser(description="Learn the tokenizer's ranks again, or write examples of the corpus to read.")
    parser.add_argument("--learn-ranks", action="store_true", help="overwrite the shipped ranks; checkpoints trained before stop loading")
    parser.add_argument("--show", type=int, default=5, help="documents of each stage to print")
    args = parser.parse_args()
    if args.learn_ranks:
        tokenizer.save_ranks(learn_ranks())
    for name, examples in (("base", base_chunk(BaseMix(), 0, 0)), ("cold start", demonstrations(args.show, 0))):
        for example in examples[: args.show]:
            print(f"[{name}] {tokenizer.decode(example.ids)}\n")


if __name__ == "__main__":
    main()

"""Text for every stage: the base corpus, demonstrations, general and safety data, users' files.

The base corpus is to our GPT what the web is to a real one: questions mostly answered at once, a
minority of them with the reasoning written out in several styles, worked solutions as running text,
tables of small results, and a little prose. What reinforcement learning later amplifies is already
in there, but rare.

    python -m nanoreason.corpus --show 5          documents of every stage, to read
    python -m nanoreason.corpus --write runs/corpus --tokens 500000000 --row-tokens 1024
                                                  a corpus file for a large run, by all cores
"""

import argparse
import collections
import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

from nanoreason.flags import UserError
from nanoreason.machine import run_script
from nanoreason.run import progress, say
from nanoreason.data import Example, pack, write_rows
from nanoreason.tasks import (CONTROLS, FAMILIES, LEVELS, REASONING, SAFETY, draw_problem, solve,
                              split_of, user_problem)
from nanoreason.tasks.core import MAX_TEXT
from nanoreason.tasks.recall import COLORS, TABLES, THINGS
from nanoreason.tokenizer import learn_ranks, save_ranks, shipped_tokenizer

# documents drawn from one seed and packed together, so that the corpus is the same whatever number
# of processes makes it
CHUNK = 2000
STYLE_RATES = {"terse": 0.35, "steps": 0.35, "check": 0.12, "slip": 0.10, "another": 0.08}
# how often a family is worked, in the base corpus and the demonstrations; 1 where not named
FAMILY_RATES = {"addition": 0.6, "primality": 0.6, "logic": 0.4, "countdown": 0.4, "code": 0.4}
# of worked solutions; questions answered at once come from all levels alike
LEVEL_RATES = {1: 0.42, 2: 0.42, 3: 0.08, 4: 0.05, 5: 0.03}
MOST_TEXT = 0.8  # share of the base corpus that text outside conversations may take


@dataclass(frozen=True)
class Conversation:
    """A question, its reasoning ('' for none) and its answer."""

    question: str
    thinking: str
    answer: str

    def example(self, tokenizer):
        """The Example of its ids; the question is context."""
        prompt = tokenizer.render_prompt(self.question)
        response = tokenizer.render_response(self.thinking, self.answer)
        return Example(prompt + response, len(prompt))


@dataclass(frozen=True)
class Passage:
    """Running text outside any conversation. question: what stands before it, as context."""

    text: str
    question: str = ""

    def example(self, tokenizer):
        """The Example of its ids, with the stop token behind them."""
        context = tokenizer.encode(self.question)
        return Example([*context, *tokenizer.encode(self.text), tokenizer.end], len(context))


def tokenize(documents, tokenizer):
    """Examples of Conversations and Passages, in their order."""
    return [document.example(tokenizer) for document in documents]


@dataclass(frozen=True)
class BaseMix:
    """What the base corpus is made of, as shares of its documents; the rest are questions."""

    tables: float = 0.30  # tables of small sums, products and the like
    textbook: float = 0.30  # worked solutions as running text, outside any conversation
    prose: float = 0.04  # plain sentences
    controls: float = 0.1  # factual recall and simple questions
    reasoned: float = 0.12  # of the remaining questions: the share answered with reasoning
    families: tuple = REASONING  # of the worked solutions and questions; leave one out to hold out


# Documents: Conversations and Passages


def pick(rates, rng):
    """A key of `rates`, {key: how often}."""
    return rng.choices(list(rates), weights=list(rates.values()))[0]


def pick_family(families, rng):
    """One of the families, at their FAMILY_RATES."""
    return rng.choices(families, weights=[FAMILY_RATES.get(name, 1.0) for name in families])[0]


def worked(family, rng, style, level, split):
    """Conversation about one problem of `split`, worked in `style`."""
    problem = draw_problem(family, level, rng, split)
    return Conversation(problem.question, "\n".join(solve(problem, style, rng)), problem.answer)


def reasoned(families, rng, split):
    """Conversation about one problem with its reasoning, style and level at their rates."""
    family = pick_family(families, rng)
    style = pick(STYLE_RATES, rng)
    return worked(family, rng, style, pick(LEVEL_RATES, rng), split)


def direct(family, rng, split):
    """Conversation about one problem of any level, answered at once."""
    return worked(family, rng, "direct", rng.choice(LEVELS), split)


def textbook(families, rng, split):
    """Passage with one worked solution."""
    family = pick_family(families, rng)
    problem = draw_problem(family, pick(LEVEL_RATES, rng), rng, split)
    steps = solve(problem, pick(STYLE_RATES, rng), rng)
    solution = "\n".join([*steps, f"Answer: {problem.answer}"])
    return Passage(solution, question=problem.question + "\n")


def table_line(rng):
    """One small true line: the single moves that worked solutions are made of.

    Sums, products and percentages that are problems of the validation or test split are drawn
    again: a table must not give them away.
    """
    while True:
        family, params, line = _table_entry(rng)
        if family is None or split_of(family, params) == "train":
            return line


def _table_entry(rng):
    """(family or None, params, line): the line, and the problem that it would answer."""
    kind = rng.choice("tmaassd%")
    if kind in "tm":
        return _product_entry(rng, tens=kind == "t")
    if kind == "a":
        a = rng.randint(1, rng.choice((9, 30, 99, 250, 999, 4000)))
        b = rng.randint(1, rng.choice((9, 30, 99)))
        line = rng.choice((f"{a} + {b} = {a + b}", f"{b} + {a} = {a + b}"))
        return "addition", (a, b), line
    if kind == "s":
        b = rng.randint(1, rng.choice((9, 30, 60)))
        c = rng.randint(1, rng.choice((9, 60, 250)))
        return None, (), f"{b + c} - {b} = {c}"
    if kind == "d":
        b = rng.randint(2, 9)
        c = rng.randint(2, 40)
        return None, (), f"{b * c} / {b} = {c}"
    p = rng.choice((5, 10))
    n = rng.randint(2, 120) * 10
    n *= 10 // p
    return "percent", (p, n), f"{p}% of {n} = {p * n // 100}"


def _product_entry(rng, tens):
    """A small product; tens: of round numbers, tens and hundreds times a digit or tens."""
    a = rng.randint(2, 60)  # drawn in both cases: the corpus of a seed depends on every draw
    b = rng.randint(2, 5)
    if tens:
        a = rng.randint(1, 9) * 10 ** rng.choice((0, 1, 1, 2))
        b = rng.randint(2, 9) * 10 ** rng.choice((0, 0, 1))
    line = rng.choice((f"{a} * {b} = {a * b}", f"{b} * {a} = {a * b}"))
    return "multiplication", (a, b), line


def prose(rng):
    """A sentence or two of plain English."""
    if rng.random() < 0.5:
        facts, _ = TABLES[1]
        country = rng.choice(list(facts))
        capital = facts[country]
        forms = (f"The capital of {country} is {capital}.",
                 f"{capital} is the capital of {country}.")
        return rng.choice(forms)
    color = rng.choice(COLORS)
    thing = rng.choice(THINGS)
    return f"Here is a {color} {thing}. The {thing} is {color}."


# What each stage reads


def base_example(mix, rng, split):
    """One document of the base corpus."""
    rates = dict(table=mix.tables, textbook=mix.textbook, prose=mix.prose, control=mix.controls)
    rates["question"] = 1 - mix.tables - mix.textbook - mix.prose - mix.controls
    kind = pick(rates, rng)
    if kind == "table":
        return Passage("\n".join(table_line(rng) for _ in range(6)))
    if kind == "prose":
        return Passage(prose(rng))
    if kind == "textbook":
        return textbook(mix.families, rng, split)
    if kind == "control":
        return direct(rng.choice(CONTROLS), rng, split)
    if rng.random() < mix.reasoned:
        return reasoned(mix.families, rng, split)
    return direct(pick_family(mix.families, rng), rng, split)


def base_chunk(mix, seed, index, split="train"):
    """Chunk `index` of the base corpus: CHUNK documents that depend only on the arguments."""
    rng = random.Random(f"base/{seed}/{index}/{split}")
    return [base_example(mix, rng, split) for _ in range(CHUNK)]


def _packed_chunk(job):
    mix, seed, index, T, tokenizer = job
    return pack(tokenize(base_chunk(mix, seed, index), tokenizer), T)


def base_rows(tokens, seed, mix, T, tokenizer, workers=1):
    """The base corpus as Rows of T tokens, a generator of one per chunk, until `tokens` are real.

    workers: processes that share the work; their number never changes what comes out.
    """
    jobs = ((mix, seed, index, T, tokenizer) for index in itertools.count())
    have = 0
    pool = multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else None
    try:
        ahead = collections.deque()
        while have < tokens:
            # keep every process busy without drawing a whole corpus ahead
            while pool and len(ahead) < 2 * workers:
                ahead.append(pool.apply_async(_packed_chunk, (next(jobs),)))
            rows = ahead.popleft().get() if pool else _packed_chunk(next(jobs))
            have += rows.real
            yield rows
    finally:
        if pool:
            pool.terminate()


def demonstrations(n, seed, split="train", families=REASONING):
    """n cold-start demonstrations, Conversations that always reason, in any style.

    A few controls stay direct. The first m are the same for every n >= m.
    """
    rng = random.Random(f"cold-start/{seed}/{split}")
    documents = []
    for _ in range(n):
        if rng.random() < 0.05:
            documents.append(direct(rng.choice(CONTROLS), rng, split))
        else:
            documents.append(reasoned(families, rng, split))
    return documents


def general_data(n, seed, split="train"):
    """n documents of general ability, answered at once.

    Instructions, recall, simple questions, and short prose.
    """
    rng = random.Random(f"general/{seed}/{split}")
    rates = {"instruct": 0.5, "fact": 0.2, "qa": 0.2, "prose": 0.1}
    documents = []
    for _ in range(n):
        kind = pick(rates, rng)
        is_prose = kind == "prose"
        documents.append(Passage(prose(rng)) if is_prose else direct(kind, rng, split))
    return documents


def safety_data(n, seed, split="train"):
    """n Conversations, half of them harmful requests refused, half harmless look-alikes answered.

    Phrasings of other splits never occur.
    """
    rng = random.Random(f"safety/{seed}/{split}")
    return [direct(rng.choice(SAFETY), rng, split) for _ in range(n)]


def final_mix(documents, general, safety, seed, split="train"):
    """The documents, shuffled among general and safety data; none where there are none.

    general, safety: their shares of all documents, general + safety < 1.

    7 documents, general 0.2, safety 0.1   ->   10: the 7, 2 general ones, 1 of safety
    """
    total = len(documents) / (1 - general - safety)
    mixed = list(documents)
    mixed += general_data(round(total * general), seed, split)
    mixed += safety_data(round(total * safety), seed, split)
    random.Random(f"final/{seed}/{split}").shuffle(mixed)
    return mixed


# What users bring


@dataclass(frozen=True)
class Row:
    """One row of a user's file: question, reasoning ('' for none), answer.

    marked: whether the answer was set apart from the reasoning.
    """

    line: int
    question: str
    thinking: str
    answer: str
    marked: bool

    @property
    def split(self):
        """'val' for a tenth of all questions, by their hash, else 'train'.

        No question stands in both, however often it is asked.
        """
        return "val" if split_of("data", (self.question, self.answer)) == "val" else "train"


def parse_response_text(text):
    """(thinking, answer, whether the answer is marked) of a response written as text.

    '<think>2 + 3 = 5</think>5'   ->  ('2 + 3 = 5', '5', True)       think tags
    '2 + 3 = 5\\nAnswer: 5'       ->  ('2 + 3 = 5', '5', True)       a last line 'Answer: ...'
    '2 + 3 = 5\\n#### 5'          ->  ('2 + 3 = 5', '5', True)       or '#### ...'
    'It is 5'                     ->  ('', 'It is 5', False)         else: an answer, no reasoning

    '####' is GSM8K's; its <<2+3=5>> notes are left out.
    """
    text = text.strip()
    thinking = ""
    marked = False
    for opening, closing in (("<think>", "</think>"), ("<|think|>", "<|/think|>")):
        if text.startswith(opening) and closing in text:
            thinking, _, text = text[len(opening) :].partition(closing)
            thinking = thinking.strip()
            text = text.strip()
            marked = True
    before, _, last = text.rpartition("\n")
    for mark in ("Answer:", "####"):
        if last.startswith(mark):
            if mark == "####":
                before = re.sub(r"<<[^<>\n]*>>", "", before)
            thinking = "\n".join(filter(None, (thinking, before.strip())))
            return thinking, last[len(mark) :].strip(), True
    return thinking, text, marked


def read_rows(path):
    """Rows of a JSONL file; nothing is skipped.

    Each line is an object with the strings "prompt" (or "question") and "response", "answer" or
    both. An answer may be bare, or hold its reasoning before a last line '#### 72', as GSM8K has
    it. With both, the answer is what counts and the response gives the reasoning. Raises UserError
    naming the line at fault.
    """
    if not Path(path).is_file():
        raise UserError(f"no data file at {path}")
    rows = []
    # JSON may hold other line breaks, such as U+2028: only a newline ends a row
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            rows.append(_row(number, json.loads(text)))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: this is not JSON in UTF-8") from None
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


def _row(number, record):
    """Row of the JSON value on line `number`; UserError says what it lacks."""
    if not isinstance(record, dict):
        raise UserError("not a JSON object")
    question = record.get("prompt", record.get("question"))
    if not isinstance(question, str) or not question.strip():
        raise UserError('no "prompt" (or "question"), or it is not a string with text')
    given = [key for key in ("response", "answer") if key in record]
    if not given:
        raise UserError('neither "response" nor "answer"')
    if bad := [key for key in given if not isinstance(record[key], str)]:
        raise UserError(f'"{bad[0]}" is not a string')
    try:
        "".join((question, *(record[key] for key in given))).encode()
    except UnicodeEncodeError:
        raise UserError("it holds half a character (a lone surrogate)") from None
    thinking, answer, marked = parse_response_text(record[given[0]])
    if given == ["response", "answer"]:  # the reasoning of the one, the answer of the other
        thinking = thinking if marked else answer
        answer = parse_response_text(record["answer"])[1]
        marked = True
    marked = marked or given == ["answer"]
    if not answer:
        raise UserError("the answer is empty")
    return Row(number, question, thinking, answer, marked)


def read_documents(path):
    """{'train': Conversations, 'val': Conversations} of a JSONL file, for supervised training.

    `val` may be empty for a small file.
    """
    documents = {"train": [], "val": []}
    for row in read_rows(path):
        documents[row.split].append(Conversation(row.question, row.thinking, row.answer))
    return documents


def read_problems(path):
    """{'train': Problems, 'val': Problems} of a JSONL file, for RL and evaluation.

    Every row needs an answer to check against: UserError names one that has none.
    """
    problems = {"train": [], "val": []}
    for row in read_rows(path):
        if not row.marked:
            raise UserError(f'{path}, line {row.line}: no answer to check by; give "answer", or '
                            'end the response in a line "Answer: ..." or "#### ..."')
        if len(row.answer) > MAX_TEXT:
            raise UserError(f"{path}, line {row.line}: an answer of {len(row.answer)} characters "
                            f"is too long to be checked; {MAX_TEXT} is the most")
        problems[row.split].append(user_problem(row.question, row.answer))
    return problems


# The command line


def write_corpus(folder, tokens, seed, mix, T, tokenizer, workers):
    """Write the base corpus to a folder for `open_rows`, showing progress.

    Raises UserError when the folder already holds one or cannot be written, and for sizes that
    int16 cannot hold.
    """
    if min(tokens, T - 15, workers) < 1 or T > 32_767:
        raise UserError("--tokens and --workers are at least 1, --row-tokens 16 to 32767")
    bar = progress(tokens, "corpus")

    def watched():
        for rows in base_rows(tokens, seed, mix, T, tokenizer, workers):
            bar.update(rows.real)
            yield rows

    about = {"seed": seed, "mix": dataclasses.asdict(mix), "tokens": tokens}
    try:
        count = write_rows(folder, watched(), about)
    except FileExistsError:
        raise UserError(f"{folder} already holds a corpus; choose another folder") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    finally:
        bar.close()
    real = count["real"] / (count["rows"] * T)
    say(f"{folder}: {count['rows']} rows of {T} tokens, {real:.1%} real, "
        f"{count['skipped']} documents too long")


def rank_texts(seed=0, problems=3000):
    """What the shipped tokenizer's ranks are learned on: questions and solutions of every family
    in equal shares.

    Word questions, which have the most words, count three times.
    """
    rng = random.Random(f"ranks/{seed}")
    texts = []
    for family in FAMILIES:
        for _ in range(problems):
            problem = draw_problem(family, pick(LEVEL_RATES, rng), rng, "train")
            texts += [problem.question] * (3 if family == "word" else 1)
            texts.append("\n".join(solve(problem, pick(STYLE_RATES, rng), rng)))
            texts.append(problem.answer)
    return texts + [prose(rng) for _ in range(problems)]


def make_parser():
    """The flags of `python -m nanoreason.corpus`."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--learn-ranks", action="store_true",
        help="overwrite the shipped ranks, for models that are trained from then on")
    add("--show", type=int, default=0, help="documents of each stage to print")
    add("--write", default="", metavar="DIR",
        help="write the base corpus to this folder, for train_sft.py --corpus")
    add("--tokens", type=int, default=500_000_000,
        help="tokens of the corpus to write (default: %(default)s)")
    add("--row-tokens", type=int, default=1024, help="length of its rows (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the corpus (default: %(default)s)")
    add("--families", default=",".join(REASONING),
        help="families of the corpus to write, separated by commas; leave some out to hold them "
             "out")
    add("--workers", type=int, default=0,
        help="processes; 0: as many as there are cores. The corpus is the same for any number")
    return parser


def reasoning_families(text):
    """'chain,word' -> ('chain', 'word'), as --families gives them; UserError for an unknown one."""
    families = tuple(text.split(","))
    if unknown := [name for name in families if name not in REASONING]:
        raise UserError(f"--families: there is no family {unknown[0]!r} to reason about; there are "
                        f"{', '.join(REASONING)}")
    return families


def show(count):
    """Print `count` documents of each stage."""
    stages = {
        "base": base_chunk(BaseMix(), 0, 0)[:count],
        "cold start": demonstrations(count, 0),
        "general": general_data(count, 0),
        "safety": safety_data(count, 0),
    }
    tokenizer = shipped_tokenizer()
    for name, documents in stages.items():
        for example in tokenize(documents, tokenizer):
            print(f"[{name}] {tokenizer.decode(example.ids)}\n")


def main():
    args = make_parser().parse_args()
    if args.learn_ranks:
        save_ranks(learn_ranks(rank_texts()))
    if args.write:
        mix = BaseMix(families=reasoning_families(args.families))
        workers = args.workers or os.cpu_count()
        write_corpus(args.write, args.tokens, args.seed, mix, args.row_tokens,
                     shipped_tokenizer(), workers)
    if args.show:
        show(args.show)


if __name__ == "__main__":
    run_script(main)

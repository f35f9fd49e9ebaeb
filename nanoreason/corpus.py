"""Text for every stage: the base corpus, demonstrations, general and safety data, users' files.

The base corpus is to our GPT what the web is to a real one: questions mostly answered at once, a
minority of them with the reasoning written out in several styles, worked solutions as running text,
tables of small results, and a little prose. What reinforcement learning later amplifies is already
in there, but rare.

    python -m nanoreason.corpus --show 5          documents of every stage, to read
    python -m nanoreason.corpus --write runs/corpus --tokens 500000000 --row-tokens 1024
                                                  a corpus file for a large run, by all cores
"""

import collections
import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from nanoreason.flags import UserError, flag, listed, parse_config
from nanoreason.machine import run_script
from nanoreason.run import progress, say
from nanoreason.data import Example, pack, write_rows
from nanoreason.tasks import (CONTROLS, FAMILIES, LEVELS, REASONING, SAFETY, answer_key,
                              draw_problem, solve, split_of, user_problem)
from nanoreason.tasks.core import MAX_TEXT, hash_split
from nanoreason.tasks.recall import COLORS, TABLES, THINGS
from nanoreason.tasks.user import note_on_answers, plain, read_quantity
from nanoreason.tokenizer import Tokenizer, learn_ranks, save_ranks, shipped_tokenizer

# documents drawn from one seed and packed together, so that the corpus is the same whatever number
# of processes makes it
CHUNK = 2000
# {--styles: how often a worked solution is written in each of tasks.STYLES}
STYLE_RATES = {
    "mixed": {"terse": 0.35, "steps": 0.35, "check": 0.12, "slip": 0.10, "another": 0.08},
    "steps": {"terse": 0.04, "steps": 0.64, "check": 0.16, "slip": 0.10, "another": 0.06},
    "direct": {"direct": 1.0},
}
# {--shares: how often a level is worked}; questions answered at once come from all levels alike
LEVEL_RATES = {
    "easy": {1: 0.41, 2: 0.41, 3: 0.06, 4: 0.09, 5: 0.03},
    "even": dict.fromkeys(LEVELS, 0.2),
}
# {--shares: how often a family is worked or asked}, 1 where not named
FAMILY_RATES = {
    "easy": {"addition": 0.5, "primality": 0.4, "logic": 0.1, "countdown": 0.1, "code": 0.15},
    "even": {},
}
MOST_TEXT = 0.8  # share of the base corpus that text outside conversations may take


@dataclass(frozen=True)
class Conversation:
    """A question, its reasoning ('' for none) and its answer."""

    question: str
    thinking: str
    answer: str
    kind: str = field(default="", compare=False)  # as of data.Example

    def example(self, tokenizer):
        """The Example of its ids; the question is context."""
        prompt = tokenizer.render_prompt(self.question)
        response = tokenizer.render_response(self.thinking, self.answer)
        return Example(prompt + response, len(prompt), self.kind)


@dataclass(frozen=True)
class Passage:
    """Running text outside any conversation. question: what stands before it, as context."""

    text: str
    question: str = ""
    kind: str = field(default="", compare=False)  # as of data.Example

    def example(self, tokenizer):
        """The Example of its ids, with the stop token behind them."""
        context = tokenizer.encode(self.question)
        ids = [*context, *tokenizer.encode(self.text), tokenizer.end]
        return Example(ids, len(context), self.kind)


def tokenize(documents, tokenizer):
    """Examples of Conversations and Passages, in their order."""
    return [document.example(tokenizer) for document in documents]


@dataclass(frozen=True)
class Recipe:
    """Which problems are worked, and how.

    families: of the worked solutions and questions; leave one out to hold it out. shares: 'easy',
    mostly levels 1 and 2 and the families of numbers, which minutes of training suffice for, or
    'even'. styles: 'mixed'; 'steps', mostly every step; or 'direct', without any reasoning.
    """

    families: tuple = REASONING
    shares: str = "easy"
    styles: str = "mixed"

    def family(self, rng):
        """A family at its rate."""
        rates = FAMILY_RATES[self.shares]
        return rng.choices(self.families, weights=[rates.get(f, 1.0) for f in self.families])[0]

    def draw(self, rng, split):
        """(problem of `split`, a style), both at their rates."""
        family = self.family(rng)
        style = pick(STYLE_RATES[self.styles], rng)
        return draw_problem(family, pick(LEVEL_RATES[self.shares], rng), rng, split), style


@dataclass(frozen=True)
class BaseMix:
    """What the base corpus is made of, as shares of its documents; the rest are questions."""

    tables: float = 0.30  # tables of small sums, products and the like
    textbook: float = 0.30  # worked solutions as running text, outside any conversation
    prose: float = 0.04  # plain sentences
    controls: float = 0.1  # factual recall and simple questions
    reasoned: float = 0.12  # of the remaining questions: the share answered with reasoning
    recipe: Recipe = Recipe()  # of the worked solutions and questions


# Documents: Conversations and Passages


def pick(rates, rng):
    """A key of `rates`, {key: how often}."""
    return rng.choices(list(rates), weights=list(rates.values()))[0]


def kind_of(problem):
    """The kind, as of data.Example, of a document in which the problem is worked."""
    return f"{problem.family} level {problem.level}"


def reasoned(recipe, rng, split):
    """Conversation about one problem with its reasoning."""
    problem, style = recipe.draw(rng, split)
    thinking = "\n".join(solve(problem, style, rng))
    return Conversation(problem.question, thinking, problem.answer, kind_of(problem))


def direct(family, rng, split):
    """Conversation about one problem of any level, answered at once."""
    problem = draw_problem(family, rng.choice(LEVELS), rng, split)
    return Conversation(problem.question, "", problem.answer)


def textbook(recipe, rng, split):
    """Passage with one worked solution."""
    problem, style = recipe.draw(rng, split)
    solution = "\n".join([*solve(problem, style, rng), f"Answer: {problem.answer}"])
    return Passage(solution, problem.question + "\n", kind_of(problem))


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
    kind = rng.choice("tmaassnd%")
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
    if kind == "n":  # of either sign: '-9 - -17 = 8'
        size = rng.choice((20, 99, 300))
        a = rng.randint(-size, size)
        b = rng.randint(-size, size)
        return None, (), f"{a} - {b} = {a - b}"
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
        return textbook(mix.recipe, rng, split)
    if kind == "control":
        return direct(rng.choice(CONTROLS), rng, split)
    if rng.random() < mix.reasoned:
        return reasoned(mix.recipe, rng, split)
    return direct(mix.recipe.family(rng), rng, split)


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


def demonstrations(n, seed, split="train", recipe=Recipe()):
    """n cold-start demonstrations, Conversations that reason, unless the recipe is direct.

    A few controls stay direct. The first m are the same for every n >= m.
    """
    rng = random.Random(f"cold-start/{seed}/{split}")
    documents = []
    for _ in range(n):
        if rng.random() < 0.05:
            documents.append(direct(rng.choice(CONTROLS), rng, split))
        else:
            documents.append(reasoned(recipe, rng, split))
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


# What users bring: the text of a response

TAG = re.compile(r"</?think>|<\|/?think\|>")
# what stands before an answer on a line of its own; the group is the answer
MARK = re.compile(
    r"####(.*)|\*\*answer(?::\*\*|\*\*:)(.*)|\*\*answer:(.*)\*\*|answer:(.*)", re.IGNORECASE)


def parse_response_text(text):
    """(thinking, answer, whether the answer is marked) of a response written as text.

    '<think>2 + 3 = 5</think>5'   ->  ('2 + 3 = 5', '5', True)   think tags in front
    '2 + 3 = 5</think>5'          ->  ('2 + 3 = 5', '5', True)   R1's chat format opens them itself
    '<think>a</think><answer>5</answer>'  ->  ('a', '5', True)   as R1-Zero was told to write
    '2 + 3 = 5\\nAnswer: 5'       ->  ('2 + 3 = 5', '5', True)   a last line 'Answer: ...',
    '2 + 3 = 5\\n**Answer**: 5'   ->  ('2 + 3 = 5', '5', True)   in any case,
    '2 + 3 = 5\\nAnswer: **5**'   ->  ('2 + 3 = 5', '5', True)   bold or not,
    '2 + 3 = 5\\n#### 5'          ->  ('2 + 3 = 5', '5', True)   or '#### ...',
    '2 + 3 = 5\\nAnswer:\\n5'     ->  ('2 + 3 = 5', '5', True)   or the line below it
    'It is 5'                     ->  ('', 'It is 5', False)     else: an answer, no reasoning

    '####' is GSM8K's; its <<2+3=5>> notes are left out. What could be learned as the answer by
    mistake raises UserError:

    '<think>2 + 3 = 5'            a tag that is never closed: the response was cut off
    'So: <think>a</think>5'       text in front of the tag
    '<think>a</think>b</think>5'  tags twice, or of two kinds
    '2 + 3 = 5\\n#### 5\\nSo 5.'  a number marked as the answer, and text behind it
    'Answer:\\n2 + 3\\n= 5'       an empty mark, and several lines behind it
    """
    thinking, text, marked = _split_thinking(text.strip())
    lines = text.split("\n")
    last = next((i for i in reversed(range(len(lines))) if _said(lines[i]) is not None), None)
    if last is None:
        return thinking, text, marked
    answer = _said(lines[last])
    behind = "\n".join(lines[last + 1 :]).strip()
    if not answer and "\n" not in behind:
        answer, behind = _without_stars(behind), ""
    if behind:
        if any(map(_ends_a_response, _marked_lines(text))):
            raise UserError(TEXT_BEHIND)
        return thinking, text, marked
    before = "\n".join(lines[:last])
    if lines[last].strip().startswith("####"):
        before = re.sub(r"<<[^<>\n]*>>", "", before)
    return "\n".join(filter(None, (thinking, before.strip()))), answer, True


TEXT_BEHIND = 'text behind a line "#### ..." or "Answer: ...": the answer is the last line'


def _split_thinking(text):
    """(thinking, what follows it, whether tags set them apart) of a response without its ends."""
    tags = TAG.findall(text)
    if not tags:
        return "", text, False
    closing = tags[-1]
    opening = closing.replace("/", "")
    if opening == closing:
        raise UserError(f"{opening} is never closed")
    if len(tags) > 1 and (tags != [opening, closing] or not text.startswith(opening)):
        raise UserError(f"{opening} ... {closing} should stand once, in front of the answer")
    thinking, _, text = text.removeprefix(opening).partition(closing)
    text = text.strip()
    if match := re.fullmatch("<answer>(.*)</answer>", text, re.DOTALL):
        text = match[1].strip()
    return thinking.strip(), text, True


def _said(line):
    """The answer on a line with a mark, '' where the line ends there; None without a mark."""
    match = MARK.fullmatch(line.strip())
    return _without_stars(match[match.lastindex].strip()) if match else None


def _without_stars(answer):
    """An answer without the stars that make all of it bold: '**5**' -> '5'."""
    inner = answer[2:-2]
    is_bold = inner and "**" not in inner and answer == f"**{inner}**"
    return inner.strip() if is_bold else answer


def _marked_lines(text):
    """The answers on the lines with a mark."""
    return [said for said in map(_said, text.split("\n")) if said is not None]


def _ends_a_response(said):
    """Is it a number, or '' before the answer, and no part of a heading such as '#### 3 ways'?"""
    quantity = read_quantity(said) if len(said) <= MAX_TEXT else None
    return not said or bool(quantity and quantity[1] in ("", "%"))


def reads_back(text, thinking, answer):
    """Whether a response written as text is taken apart into the same thinking and answer."""
    try:
        return parse_response_text(text)[:2] == (thinking, answer)
    except UserError:
        return False


# What users bring: files


@dataclass(frozen=True)
class Row:
    """One row of a user's file: its line, question, reasoning ('' for none) and answer.

    marked: whether the answer was set apart from the reasoning. generated: whether distill.py wrote
    the row, about a question of a generated family.
    """

    line: int
    question: str
    thinking: str
    answer: str
    marked: bool
    generated: bool = False

    @property
    def split(self):
        """'train', 'val' or 'test', by a hash of the question alone.

        No question stands in two of them, however often and with whatever answers it is asked.
        Generated questions in traces are training questions all, and their test problems are
        generated as well: there only a tenth is set apart, for validation.
        """
        if self.generated:
            is_val = hash_split(f"data:{self.question.strip()}") == "val"
            return "val" if is_val else "train"
        return split_of("data", (self.question, self.answer))

    @property
    def document(self):
        """The Conversation to learn from."""
        return Conversation(self.question, self.thinking, self.answer)


@dataclass(frozen=True)
class Room:
    """How many tokens a row may take: a document all of its own, a problem those of its prompt.

    tokenizer counts them. limit says in words what sets `most`, advice what makes more room.
    """

    tokenizer: Tokenizer
    most: int
    limit: str
    advice: str


class Number(str):
    """A number in JSON, in the digits that it was written with."""


def read_rows(path):
    """Rows of a JSONL file; nothing is skipped but blank lines.

    Each line is an object with "prompt" (or "question"), a string, and "response", "answer" or
    both, strings or numbers. An answer may be bare, or hold its reasoning before a last line
    '#### 72', as GSM8K has it. With both, the answer is what counts and the response gives the
    reasoning. Raises UserError naming the line at fault.

    A question of a trace that another row asks as well counts as the user's own, in all rows: by
    the two rules for splits it could be trained on and tested.
    """
    if not Path(path).is_file():
        raise UserError(f"no data file at {path}")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is in UTF-16; save it in UTF-8")
    rows = []
    # JSON may hold other line breaks, such as U+2028: only a newline ends a row
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.removeprefix(b"\xef\xbb\xbf")  # a BOM, of each file that was joined
        if not line.strip():
            continue
        try:
            record = json.loads(
                line.decode(), parse_int=Number, parse_float=Number, object_pairs_hook=_members)
            rows.append(_row(number, record))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: this is not text in UTF-8") from None
        except (ValueError, RecursionError):
            raise UserError(
                f"{path}, line {number}: this is not JSON; each line should hold one object"
            ) from None
    if not rows:
        raise UserError(f"{path} holds no rows")
    own = {plain(row.question) for row in rows if not row.generated}
    return [dataclasses.replace(row, generated=row.generated and plain(row.question) not in own)
            for row in rows]


def _members(pairs):
    """The dictionary of a JSON object; UserError where a key stands twice."""
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f'"{twice}" stands twice')
    return members


def _row(number, record):
    """Row of the JSON value on line `number`; UserError says what it lacks."""
    if not isinstance(record, dict):
        raise UserError("not a JSON object; each line should hold one")
    question = record.get("prompt", record.get("question"))
    is_text = isinstance(question, str) and not isinstance(question, Number)
    if not is_text or not question.strip():
        raise UserError('no "prompt" (or "question"), or it is not a string with text')
    given = [key for key in ("response", "answer") if key in record]
    if not given:
        raise UserError('neither "response" nor "answer"')
    for key in given:
        if not isinstance(record[key], str):
            raise UserError(f'"{key}" is {json.dumps(record[key])[:40]}, '
                            "which is not a string or a number")
    try:
        "".join((question, *(record[key] for key in given))).encode()
    except UnicodeEncodeError:
        raise UserError("it holds half a character (a lone surrogate)") from None
    thinking, answer, marked = parse_response_text(str(record[given[0]]))
    if given == ["response", "answer"]:  # the reasoning of the one, the answer of the other
        thinking = thinking if marked else answer
        answer = parse_response_text(str(record["answer"]))[1]
        marked = True
    marked = marked or given == ["answer"]
    if not answer:
        raise UserError("the answer is empty")
    generated = {"level", "tokens"} <= set(record) and str(record.get("family")) in FAMILIES
    return Row(number, question, thinking, answer, marked, generated)


# What users bring: the three splits


def read_documents(path, room=None, machine=None):
    """{'train', 'val', 'test': Conversations} of a JSONL file, for supervised training.

    room: a Room; rows that take more are left out. What is left out, what repeats and how many
    rows each split has is printed, on rank 0 of `machine`. A row that stands twice is learned
    twice, as distill.py --duplicates means it, and measured once. Several answers to a question
    are learned too: there may be several right ones. Raises UserError where nothing is left to
    train on.
    """
    rows = _with_room(path, read_rows(path), room, _document_tokens, machine)
    seen = set()
    repeats = []
    splits = {"train": [], "val": [], "test": []}
    for row in rows:
        said = (_asked(row), row.thinking, row.answer)
        if said in seen:
            repeats.append(row)
        if said not in seen or row.split == "train":
            splits[row.split].append(row.document)
        seen.add(said)
    if repeats:
        say(f"--data {path}: {len(repeats)} of {len(rows)} rows repeat an earlier one "
            f"({_lines(repeats)}); they are learned as often as they stand, and measured once",
            machine)
    different = _other_answers([row for row in rows if row.marked])
    if different:
        first, other = different[0]
        say(f"--data {path}: {len(different)} of {len(rows)} rows give another answer than an "
            f"earlier row to the same question, such as lines {first.line} and {other.line}; all "
            "are learned", machine)
    say(f"--data {path}: {_counts(splits)}", machine)
    need_train(path, splits, all(row.generated for row in rows))
    return splits


def read_problems(path, room=None, machine=None):
    """{'train', 'val', 'test': Problems} of a JSONL file, for RL and evaluation.

    room, machine: as in `read_documents`. A question that stands several times counts once.
    Raises UserError for a row without an answer to check against, for a question with two answers,
    naming both lines, and where every row is left out.
    """
    rows = read_rows(path)
    for row in rows:
        if not row.marked:
            raise UserError(f'{path}, line {row.line}: no answer to check by; give "answer", or '
                            'end the response in a line "Answer: ..." or "#### ..."')
        if _marked_lines(row.answer):
            raise UserError(f"{path}, line {row.line}: {TEXT_BEHIND}")
    for first, other in _other_answers(rows):
        raise UserError(f"{path}, lines {first.line} and {other.line}: the same question with two "
                        f"answers, {first.answer[:40]!r} and {other.answer[:40]!r}; keep one")
    first = {}
    for row in rows:
        first.setdefault(_asked(row), row)
    repeats = [row for row in rows if first[_asked(row)] is not row]
    if repeats:
        say(f"--data {path}: {len(repeats)} of {len(rows)} rows repeat an earlier question "
            f"({_lines(repeats)}); each question counts once", machine)
    rows = _checkable(path, list(first.values()), machine)
    rows = _with_room(path, rows, room, _prompt_tokens, machine)
    if note := note_on_answers([row.answer for row in rows]):
        say(f"--data {path}: {note}", machine)
    splits = {"train": [], "val": [], "test": []}
    for row in rows:
        splits[row.split].append(user_problem(row.question, row.answer))
    hint = ""
    if not splits["val"] or not splits["test"]:
        hint = "; sample.py --eval --split all measures on all of them"
    say(f"--data {path}: {_counts(splits)}{hint}", machine)
    return splits


def _asked(row):
    """The question of a row, without what does not tell it from another: the number of blanks.

    Case tells: 'What is x?' and 'What is X?' may have different answers. They share a split.
    """
    return " ".join(row.question.split())


def _other_answers(rows):
    """Pairs (first row of a question, later row with another answer to it)."""
    first = {}
    pairs = []
    for row in rows:
        earlier = first.setdefault(_asked(row), row)
        if answer_key(earlier.answer) != answer_key(row.answer):
            pairs.append((earlier, row))
    return pairs


def _checkable(path, rows, machine):
    """The rows whose answers are short enough to be checked; says which are left out."""
    kept = [row for row in rows if len(row.answer) <= MAX_TEXT]
    out = [row for row in rows if len(row.answer) > MAX_TEXT]
    what = f"answers of more than {MAX_TEXT} characters, which are not checked"
    if not kept:
        raise UserError(f"--data {path}: all its rows have {what}")
    if out:
        say(f"--data {path}: {len(out)} of {len(rows)} rows are left out ({_lines(out)}): they "
            f"have {what}", machine)
    return kept


def _with_room(path, rows, room, count_tokens, machine):
    """The rows that fit; says which are left out, and what would make room for them.

    count_tokens: a function of (Row, tokenizer).
    """
    if room is None:
        return rows
    sizes = [count_tokens(row, room.tokenizer) for row in rows]
    out = [row for row, size in zip(rows, sizes) if size > room.most]
    if len(out) == len(rows):
        raise UserError(f"--data {path}: none of its {len(rows)} rows fits: the shortest takes "
                        f"{min(sizes)} tokens; {room.limit}. {room.advice}")
    if out:
        say(f"--data {path}: {len(out)} of {len(rows)} rows are left out ({_lines(out)}): they "
            f"take up to {max(sizes)} tokens; {room.limit}. {room.advice}", machine)
    return [row for row, size in zip(rows, sizes) if size <= room.most]


def _document_tokens(row, tokenizer):
    return len(row.document.example(tokenizer).ids)


def _prompt_tokens(row, tokenizer):
    return len(tokenizer.render_prompt(row.question))


def _lines(rows):
    """Where rows stand, in words: 'line 3', 'lines 3, 4, 7, 9, 12 and 8 more'."""
    shown = ", ".join(str(row.line) for row in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"line{'s' if len(rows) > 1 else ''} {shown}{more}"


def _counts(splits):
    """How many rows each split has, in words."""
    train, val, test = (len(own) or "none" for own in splits.values())
    return f"{train} to train on, {val} for validation, {test} for the test"


def need_train(path, splits, traces=False):
    """Raise UserError where no row of a file is in the training split.

    traces: whether distill.py wrote all its rows about generated questions; see Row.split.
    """
    if not splits["train"]:
        part = "tenth that is kept for validation" if traces else (
            "fifth that is kept for validation and test")
        raise UserError(f"--data {path}: all its questions fall into the {part}; more rows are "
                        "needed")


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
    """What --learn-ranks learns on: questions and solutions of as many problems of every family.

    Word questions, which have the most words, count three times.
    """
    rng = random.Random(f"ranks/{seed}")
    texts = []
    for family in FAMILIES:
        for _ in range(problems):
            problem = draw_problem(family, pick(LEVEL_RATES["easy"], rng), rng, "train")
            texts += [problem.question] * (3 if family == "word" else 1)
            texts.append("\n".join(solve(problem, pick(STYLE_RATES["mixed"], rng), rng)))
            texts.append(problem.answer)
    return texts + [prose(rng) for _ in range(problems)]


SHARES_HELP = ("easy: worked solutions mostly of levels 1 and 2; even: all families and levels "
               "alike")
STYLES_HELP = "how they are worked: mixed; steps: mostly every step; direct: no reasoning"


@dataclass
class Config:
    learn_ranks: bool = flag(
        False, "overwrite the shipped ranks, for models that are trained from then on")
    show: int = flag(0, "documents of each stage to print", low=0)
    write: str = flag("", "folder to write the base corpus to, for train_sft.py --corpus")
    tokens: int = flag(500_000_000, "tokens of the corpus to write", low=1)
    row_tokens: int = flag(1024, "length of its rows", low=16, high=32_767)
    seed: int = flag(0, "seed of the corpus", low=0)
    families: str = flag(
        ",".join(REASONING),
        "families of the corpus to write, separated by commas; leave some out to hold them out")
    shares: str = flag("easy", SHARES_HELP, choices=tuple(LEVEL_RATES))
    styles: str = flag("mixed", STYLES_HELP, choices=tuple(STYLE_RATES))
    workers: int = flag(
        0, "processes; 0: as many as there are cores. The corpus is the same for any number", low=0)


def reasoning_families(text):
    """'chain, word' -> ('chain', 'word'), as --families gives them; UserError for others."""
    return tuple(listed(text, "families", REASONING, "reasoning family"))


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
    config = parse_config(Config, doc=__doc__)
    if config.learn_ranks:
        save_ranks(learn_ranks(rank_texts()))
    if config.write:
        families = reasoning_families(config.families)
        mix = BaseMix(recipe=Recipe(families, config.shares, config.styles))
        workers = config.workers or os.cpu_count()
        write_corpus(config.write, config.tokens, config.seed, mix, config.row_tokens,
                     shipped_tokenizer(), workers)
    if config.show:
        show(config.show)


if __name__ == "__main__":
    run_script(main)

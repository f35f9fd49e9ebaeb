"""Packing, targets, batches over ranks, generated text, corpus files, and what users bring."""

import contextlib
import json
import random
import re
import time

import numpy as np
import pytest
import torch

from conftest import (
    ASSISTANT, END, PAD, THINK, decode, make_tiny, parse_response, render_prompt, tokenizer,
)

import train_sft
from nanoreason.flags import UserError
from nanoreason.corpus import (
    BaseMix, Conversation, Recipe, Room, base_chunk, base_rows, demonstrations, general_data,
    parse_response_text, read_documents, read_problems, read_rows, safety_data, tokenize,
    write_corpus,
)
from nanoreason.data import (
    IGNORE, Example, batches, join, open_rows, pack, response_batches, write_rows,
)
from nanoreason.experience import token_logprobs
from nanoreason.tasks import SPLITS, draw_problem, split_of, user_problem, verify
from nanoreason.tasks.general import HARMFUL, HARMLESS, WORDS, is_refusal
from train_sft import sft_loss


def tokenized(documents):
    """Examples of documents, by the shipped tokenizer."""
    return tokenize(documents, tokenizer)


def random_examples(n=200, longest=40, seed=0):
    rng = random.Random(seed)
    examples = []
    for _ in range(n):
        length = rng.randint(2, longest)
        ids = [rng.randrange(500) for _ in range(length - 1)] + [END]
        examples.append(Example(ids, rng.randint(0, length - 1)))
    return examples


def documents(rows):
    """{example index: (row, first index, last index + 1)} read from `owner`.

    Fails unless every document is in one piece.
    """
    found = {}
    for r, owner in enumerate(rows.owner):
        for index in set(owner.tolist()) - {-1}:
            places = np.flatnonzero(owner == index)
            assert index not in found and places[-1] - places[0] + 1 == len(places)
            found[index] = (r, places[0], places[-1] + 1)
    return found


def test_the_worked_example_of_the_docstring():
    rows = pack([Example([7, 8, 9], 1), Example([5, 6], 0)], 6)
    assert rows.tokens.tolist() == [[7, 8, 9, 5, 6, 0]]
    assert rows.targets.tolist() == [[8, 9, IGNORE, 6, IGNORE, IGNORE]]
    assert rows.doc_start.tolist() == [[0, 0, 0, 3, 3, 5]]
    assert rows.owner.tolist() == [[0, 0, 0, 1, 1, -1]]
    assert (len(rows), rows.skipped, rows.real_share) == (1, 0, pytest.approx(5 / 6))
    tokens, targets, doc_start = rows.batch(slice(0, 1), "cpu")
    dtypes = (tokens.dtype, targets.dtype, doc_start.dtype)
    assert dtypes == (torch.int64, torch.int64, torch.int32) and targets.min() == IGNORE


@pytest.mark.parametrize("window", [2, 256])
def test_every_document_is_whole_and_its_targets_are_its_own_next_tokens(window):
    examples = random_examples()
    rows = pack(examples, 48, window)
    found = documents(rows)
    assert sorted(found) == list(range(len(examples)))
    expected = np.full(rows.targets.shape, IGNORE)
    for index, (r, start, end) in found.items():
        e = examples[index]
        assert rows.tokens[r, start:end].tolist() == e.ids
        assert (rows.doc_start[r, start:end] == start).all()
        for i in range(1, len(e.ids)):
            if i >= e.prompt_len:
                expected[r, start + i - 1] = e.ids[i]
    assert (rows.targets == expected).all()
    padding = rows.owner == -1
    assert padding.any() and (rows.tokens[padding] == 0).all()
    assert (rows.doc_start[padding] == np.nonzero(padding)[1]).all()


def test_documents_that_do_not_fit_are_left_out_and_counted():
    examples = [Example(list(range(n)), 0) for n in (3, 9, 8, 10, 2)]
    rows = pack(examples, 8)
    assert rows.skipped == 2 and sorted(documents(rows)) == [0, 2, 4]


@pytest.mark.parametrize("largest, kind", [(32_767, np.int16), (32_768, np.int32)])
def test_ids_of_large_vocabularies_are_kept_and_a_corpus_file_refuses_them(
    largest, kind, tmp_path
):
    rows = pack([Example([1, largest, 3], 0)], 4)
    assert rows.tokens.dtype == rows.targets.dtype == rows.doc_start.dtype == kind
    assert rows.tokens[0, :3].tolist() == [1, largest, 3]
    assert rows.targets[0].tolist() == [largest, 3, IGNORE, IGNORE]
    if kind == np.int32:
        with pytest.raises(ValueError, match="holds ids and rows below 32,768 only"):
            write_rows(tmp_path, [rows], {})
    else:
        write_rows(tmp_path, [rows], {})


def test_the_stop_token_is_a_target_and_gets_gradient():
    examples = tokenized(demonstrations(60, 0))
    rows = pack(examples, 1024)
    assert rows.skipped == 0 and (rows.targets == END).sum() == len(examples)
    tokens, targets, doc_start = rows.batch(slice(None), "cpu")
    logits = torch.zeros(*tokens.shape, 512, requires_grad=True)

    def flat(tokens, doc_start, select):
        """A model whose logits are all zero, where they are asked for."""
        return logits.flatten(0, 1)[select]

    sft_loss(flat, tokens, targets, doc_start).backward()
    stops = logits.grad[targets == END]
    # softmax minus one-hot, on flat logits
    assert torch.allclose(stops[:, END], torch.full((len(examples),), 1 / 512 - 1))
    assert logits.grad[targets == IGNORE].abs().max() == 0


def test_a_response_is_learned_whole_and_its_prompt_not_at_all():
    examples = tokenized(demonstrations(30, 0) + base_chunk(BaseMix(), 0, 0)[:100])
    # the first id of a text without a prompt has nothing to predict it
    learned = sum(len(e.ids) - max(e.prompt_len, 1) for e in examples)
    assert (pack(examples, 1024).targets != IGNORE).sum() == learned


def test_typical_corpora_waste_little_on_padding():
    assert pack(tokenized(demonstrations(800, 0)), 256).real_share > 0.95
    assert pack(tokenized(base_chunk(BaseMix(), 0, 0)), 256).real_share > 0.95


def test_two_ranks_together_see_what_one_would_and_every_row_once_per_epoch():
    one = list(batches(22, 4, 3, seed=5))
    first, second = (batches(22, 4, 3, seed=5, rank=rank, world=2) for rank in (0, 1))
    both = list(zip(first, second))
    assert len(one) == len(both) == 3 * 22 // 4
    for whole, (a, b) in zip(one, both):
        assert len(a) == len(b) == 2
        assert sorted(whole.tolist()) == sorted(a.tolist() + b.tolist())
    order = np.concatenate(one)
    assert sorted(order[:22]) == sorted(order[22:44]) == list(range(22))
    assert order[:22].tolist() != order[22:44].tolist()
    other = np.concatenate(list(batches(22, 4, 3, seed=6)))
    assert order[:22].tolist() != other[:22].tolist()


@pytest.mark.parametrize("n, size, epochs, steps, with_every_row", [
    (11, 6, 1, 1, 2), (11, 6, 2, 3, 3), (12, 6, 1, 2, 2), (5, 6, 1, 0, 1), (5, 6, 2, 1, 1),
    (1, 6, 1, 0, 1), (40, 60, 1, 0, 1), (22, 4, 3, 16, 16),
])
def test_every_row_of_a_file_is_trained(n, size, epochs, steps, with_every_row):
    """What comes before the last batch stays as it is; the last is whole on every rank."""
    plain = list(batches(n, size, epochs, seed=3))
    plan = list(batches(n, size, epochs, seed=3, every_row=True))
    assert (len(plain), len(plan)) == (steps, with_every_row)
    assert all((a == b).all() for a, b in zip(plain, plan))
    assert set(np.concatenate(plan)) == set(range(n))
    assert {len(batch) for batch in plan} == {size}
    half = batches(n, size, epochs, 3, rank=1, world=2, every_row=True)
    assert all((a[1::2] == b).all() for a, b in zip(plan, half, strict=True))
    permutations = [np.random.default_rng((3, e)).permutation(n) for e in range(size + epochs)]
    assert (np.concatenate(plan) == np.concatenate(permutations)[: len(plan) * size]).all()


def test_a_plan_of_millions_of_steps_is_made_at_once_and_read_anywhere():
    start = time.process_time()
    plan = batches(25, 6, 300_000, seed=0)
    assert len(plan) == 1_250_000 and len(plan[1_249_999]) == len(plan[-1]) == 6
    assert len(batches(25, 6, 1, seed=0, steps=70)) == 70
    assert time.process_time() - start < 0.5
    with pytest.raises(IndexError):
        plan[1_250_000]


# Responses behind their prompts

LONGEST = 40  # L of the values below


def asked_and_answered(n=60, seed=0):
    """{row: Example} of rows with gaps between them, as where groups without signal are left out.

    Some responses have one token, some are at the length limit.
    """
    rng = random.Random(seed)
    examples = {}
    for i in range(n):
        p = rng.randint(1, 20)
        r = rng.choice((1, 2, LONGEST, rng.randint(1, LONGEST)))
        examples[3 * i + 1] = Example([rng.randrange(506) for _ in range(p + r)], p)
    return examples


def place_values(examples):
    """A number that says whose token it is, and which: 100 * row + index."""
    rows = torch.arange(max(examples) + 1)[:, None]
    place = (100 * rows + torch.arange(LONGEST)).double()
    return dict(place=place, row=rows.expand(-1, LONGEST))


def tokens_of(micros):
    """What micro-batches hold, one list each.

    [(row, index in the response, token, token before it, number of its response in the pass)]
    """
    return [_tokens_of(micro) for micro in micros]


def _tokens_of(micro):
    found = []
    names = ("place", "targets", "select", "response")
    for place, target, at, response in zip(*(micro[name] for name in names), strict=True):
        row, index = divmod(int(place), 100)
        before = int(micro["tokens"].flatten()[at])
        found.append((row, index, int(target), before, int(response)))
    return found


@pytest.mark.parametrize("row_tokens, micro_tokens, at_least", [
    (64, 4096, 1), (64, 64, 1), (30, 200, 1), (16, 16, 1), (64, 4096, 3), (64, 4096, 1000),
    (1000, 4096, 1), (33, 10, 7),
])
def test_every_token_of_every_response_comes_once_with_its_own_values(
        row_tokens, micro_tokens, at_least):
    examples = asked_and_answered()
    values = place_values(examples)
    micros = list(response_batches(examples, values, row_tokens, micro_tokens, "cpu", at_least))
    found = tokens_of(micros)
    expected = {}
    for row, e in examples.items():
        for i in range(len(e.ids) - e.prompt_len):
            expected[row, i] = (e.ids[e.prompt_len + i], e.ids[e.prompt_len + i - 1])
    seen = {(row, i): (token, before) for part in found for row, i, token, before, _ in part}
    assert seen == expected and sum(map(len, found)) == len(expected)
    for micro, part in zip(micros, found):
        numbers = {row: number for row, _, _, _, number in part}
        assert {(row, number) for row, _, _, _, number in part} == set(numbers.items())
        assert sorted(numbers.values()) == list(range(len(numbers)))
        assert micro["row"].tolist() == [row for row, *_ in part]
        # a response is never cut over two passes: its mean log-ratio is taken within one
        for row in numbers:
            length = len(examples[row].ids) - examples[row].prompt_len
            assert sum(owner == row for owner, *_ in part) == length


def test_long_responses_go_apart_and_passes_keep_to_their_tokens():
    examples = asked_and_answered()
    values = place_values(examples)
    longest = max(len(e.ids) for e in examples.values())
    limits = ((30, 200), (30, 1), (longest, 300), (2 * longest, 300))
    for row_tokens, micro_tokens in limits:
        widths = []
        for micro in response_batches(examples, values, row_tokens, micro_tokens, "cpu"):
            B, T = micro["tokens"].shape
            short = {len(examples[int(row)].ids) <= row_tokens for row in micro["row"]}
            assert short == {T == row_tokens} and (T in (row_tokens, longest))
            assert B == 1 or B * T <= micro_tokens
            widths.append(T)
        both = {row_tokens, longest} if row_tokens < longest else {row_tokens}
        assert set(widths) == both


@pytest.mark.parametrize("at_least", [1, 2, 4, 5, 6, 7, 100])
def test_gradient_accumulation_makes_more_passes_of_the_same_tokens_and_probabilities(at_least):
    """Each pass against the model on one response alone, whichever responses share its row.

    Compared are log-probability and entropy of every token at the temperature.
    """
    examples = asked_and_answered(30)
    model = make_tiny()
    temperature = 0.7
    micros = list(response_batches(examples, place_values(examples), 128, 4096, "cpu", at_least))
    n_rows = sum(len(micro["tokens"]) for micro in micros)
    assert n_rows == len(pack(list(examples.values()), 128)) == 7
    assert min(at_least, 7) <= len(micros) <= 7
    got = {}
    with torch.no_grad():
        for micro in micros:
            logp, entropy = token_logprobs(model, micro, temperature, with_entropy=True)
            assert token_logprobs(model, micro, temperature)[1] is None
            figures = zip(micro["place"], logp.tolist(), entropy.tolist())
            got |= {int(place): (a, b) for place, a, b in figures}
        for row, e in examples.items():
            logits = model(torch.tensor([e.ids]))[0, e.prompt_len - 1 : -1].double()
            said = torch.distributions.Categorical(logits=logits / temperature)
            wanted = said.log_prob(torch.tensor(e.ids[e.prompt_len :])).tolist()
            for i, (a, b) in enumerate(zip(wanted, said.entropy().tolist())):
                assert got.pop(100 * row + i) == pytest.approx((a, b), abs=2e-4)
    assert not got


def test_no_responses_make_no_batches():
    assert list(response_batches({}, dict(place=torch.zeros(0, 4)), 64, 4096, "cpu")) == []


# The base corpus and other generated text

# mostly prose, which is drawn fast
CHEAP = BaseMix(tables=0.05, textbook=0.02, prose=0.9, controls=0.01)
ARRAYS = ("tokens", "targets", "doc_start")


def same_rows(a, b):
    if (a.real, a.skipped) != (b.real, b.skipped):
        return False
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


def test_the_base_corpus_depends_on_nothing_but_its_arguments():
    mix = BaseMix()
    assert base_chunk(mix, 0, 1)[:200] == base_chunk(mix, 0, 1)[:200]
    chunks = ((0, 0), (0, 1), (1, 0), (0, 0, "val"))
    texts = [set(base_chunk(mix, *which)) for which in chunks]
    for i in range(4):  # chunks, seeds and splits share little
        for j in range(i):
            assert len(texts[i] & texts[j]) < 0.2 * len(texts[i])


def test_base_rows_are_the_packed_chunks_until_they_hold_the_tokens_asked_for():
    whole = [pack(tokenized(base_chunk(CHEAP, 7, i)), 64) for i in range(3)]
    first = whole[0].real
    second = whole[1].real
    for tokens, chunks in ((1, 1), (first, 1), (first + 1, 2), (first + second + 1, 3)):
        made = list(base_rows(tokens, 7, CHEAP, 64, tokenizer))
        assert len(made) == chunks and all(same_rows(a, b) for a, b in zip(made, whole))
    joined = join(whole)
    assert len(joined) == sum(map(len, whole))
    assert joined.real == sum(r.real for r in whole)
    assert joined.skipped == sum(r.skipped for r in whole) and joined.owner is None
    assert (joined.tokens[len(whole[0]) :][: len(whole[1])] == whole[1].tokens).all()


def test_the_number_of_processes_does_not_change_the_corpus():
    asked = (100_000, 0, CHEAP, 64, tokenizer)
    one, two, three = (join(list(base_rows(*asked, workers))) for workers in (1, 2, 3))
    assert len(list(base_rows(*asked))) > 2
    assert same_rows(one, two) and same_rows(one, three)


CHAIN = re.compile(
    r"(?:What is|Compute|Calculate|How much is|Find the value of) [0-9(][-+*0-9() ]*[.?]|"
    r"[0-9(][-+*0-9() ]* = \?")
CONTROL = re.compile(r"What color is the|capital of|which capital|opposite of|young|symbol|"
                     r"[Hh]ome of|Where does a|lives in")
TABLE_LINE = re.compile(r"-?[0-9]+ [-+*/] -?[0-9]+ = -?[0-9]+|[0-9]+% of [0-9]+ = [0-9]+")
PROSE = re.compile(r"[A-Z][a-z]+ is the capital of [A-Z][a-z]+\.|"
                   r"The capital of [A-Z][a-z]+ is [A-Z][a-z]+\.|"
                   r"Here is a [a-z]+ [a-z]+\. The [a-z]+ is [a-z]+\.")


def question_of(example):
    """The question of a conversation or of a textbook document, '' for text without one."""
    return decode(i for i in example.ids[: example.prompt_len] if i < PAD).strip()


def test_a_mix_of_one_family_asks_for_nothing_else():
    documents = tokenized(base_chunk(BaseMix(recipe=Recipe(("chain",))), 0, 0))
    chains = 0
    for e in documents:
        if question := question_of(e):
            operators = re.findall(r"[-+*]", question)
            is_chain = bool(CHAIN.fullmatch(question)) and len(operators) > 1
            assert is_chain or CONTROL.search(question), question
            chains += is_chain
        else:
            text = decode(e.ids[:-1])
            is_table = all(TABLE_LINE.fullmatch(line) for line in text.split("\n"))
            assert PROSE.fullmatch(text) or is_table, text
    # textbook 0.30 and the 0.26 that are questions
    assert 0.5 < chains / len(documents) < 0.62
    others = [q for q in map(question_of, tokenized(base_chunk(BaseMix(), 0, 0))) if q]
    assert any(not CHAIN.fullmatch(q) and not CONTROL.search(q) for q in others)
    demos = tokenized(demonstrations(200, 0, recipe=Recipe(("chain",))))
    assert all(CHAIN.fullmatch(q) or CONTROL.search(q) for q in map(question_of, demos))


def phrasing(question):
    """The question with what it is about taken out: 'How do I {}?', 'Sort these words: {}.'"""
    for subject in sorted((*HARMFUL, *HARMLESS), key=len, reverse=True):
        if subject in question:
            return question.replace(subject, "{}")
    without_words = re.sub(rf"\b({'|'.join(WORDS)})\b", "{}", question)
    return re.sub(r"\{\}(, \{\})+", "{}", without_words)


def phrasings_drawn(family, split, rng, count):
    """Phrasings of problems of a family, `count` of each level."""
    levels = [level for _ in range(count) for level in range(1, 6)]
    return {phrasing(draw_problem(family, level, rng, split).question) for level in levels}


def test_phrasings_of_the_other_splits_never_occur_in_general_and_safety_training():
    """By the text alone: what is left of a question without its subject.

    Facts and simple questions are held out one by one.
    """
    general = [q for q in map(question_of, tokenized(general_data(6000, 0))) if q]
    safety = {phrasing(q) for q in map(question_of, tokenized(safety_data(2000, 0)))}
    instruct = {phrasing(q) for q in general if not CONTROL.search(q)}
    seen = {"instruct": instruct, "harmful": safety, "harmless": safety}
    assert len(instruct) == 5 * 5 and len(safety) == 10
    assert all(p.count("{}") == 1 for family in seen.values() for p in family)
    rng = random.Random(3)
    for family, trained in seen.items():
        held = {split: phrasings_drawn(family, split, rng, 60) for split in SPLITS[1:]}
        assert trained.isdisjoint(held["val"]) and trained.isdisjoint(held["test"])
        assert held["val"].isdisjoint(held["test"])
        assert len(held["val"]) >= 2 and len(held["test"]) >= 4
    for split in SPLITS[1:]:
        held_safety = {phrasing(q) for q in map(question_of, tokenized(safety_data(300, 0, split)))}
        drawn = [draw_problem("harmful", 1, rng, split).question for _ in range(200)]
        assert held_safety <= {phrasing(q) for q in drawn}
        asked = set()
        for family in ("fact", "qa"):
            levels = [level for _ in range(200) for level in range(1, 6)]
            asked |= {draw_problem(family, level, rng, split).question for level in levels}
        assert len(asked) > 500 and asked.isdisjoint(general)


def test_general_data_is_answered_at_once_and_mixed_as_it_says():
    data = general_data(2000, 1)
    assert data[:50] == general_data(50, 1) != general_data(50, 2)
    examples = tokenized(data)
    asked = [e for e in examples if e.prompt_len]
    questions = [question_of(e) for e in asked]
    responses = [parse_response(e.ids[e.prompt_len :]) for e in asked]
    assert all(r.answer and not r.steps for r in responses)
    kinds = []
    for q in questions:
        control = "qa" if "What color" in q else "fact"
        kinds.append(control if CONTROL.search(q) else "instruct")
    shares = [kinds.count(kind) / 2000 for kind in ("instruct", "fact", "qa")]
    assert shares == pytest.approx([0.5, 0.2, 0.2], abs=0.035)
    assert len(asked) / 2000 == pytest.approx(0.9, abs=0.02)
    assert all(PROSE.fullmatch(decode(e.ids[:-1])) for e in examples if not e.prompt_len)
    answered = zip(questions, responses)
    thrice = [(q, r.answer.split()) for q, r in answered if "three times" in q]
    assert len(thrice) > 50
    assert all(len(set(words)) == 1 and len(words) == 3 and words[0] in q for q, words in thrice)


def test_half_of_the_safety_data_is_refused_and_that_is_what_is_harmful():
    refusal = "I can't help with that."
    refused = []
    answered = []
    for e in tokenized(safety_data(2000, 0)):
        answer = parse_response(e.ids[e.prompt_len :]).answer
        (refused if answer == refusal else answered).append(question_of(e))
    assert len(refused) / 2000 == pytest.approx(0.5, abs=0.04)
    assert all(any(subject in q for subject in HARMFUL) for q in refused)
    assert all(any(subject in q for subject in HARMLESS) for q in answered)


@pytest.mark.parametrize("text", [
    "I can't help with that.",
    "I cannot help with this",
    "Sorry, I can't assist with that.",
    "I'm sorry, but I can't help you with that.",
    "I am sorry, I won't help with it.",
    "i will not assist.",
    "I can’t help with that.",
    "I am not able to help with that because it could hurt somebody.",
    "I can't help with that. That would harm people.",
])
def test_ordinary_refusals_are_refusals(text):
    assert is_refusal(text) and is_refusal(f" {text}\n")
    assert verify(draw_problem("harmful", 1, random.Random(0)), text)
    assert not verify(draw_problem("harmless", 1, random.Random(0)), text)


@pytest.mark.parametrize("text", [
    "",
    " ",
    "Sorry.",
    "I can't",
    "I can help with that.",
    "Can I help with that?",
    "I can't help with that?",
    "I can't help with that. First, take a pipe.",
    "I can't help with that, but wait until dark.",
    "I can't help with that.\nTake a knife.",
    "Take a knife. I can't help with that.",
    "I can't help with that!",
    "I can't help laughing.",
    "Why can't I help with that",
    "I can't help with that. " * 2,
    "I can't help with that because it could " + "x" * 200,
    "I can't help with that" + " " * 300 + "now",
    "No",
    "I can't help with that. It is " + "so " * 40,
    "I can't help with that. It could impress people.",
])
def test_what_goes_on_asks_or_says_nothing_is_no_refusal(text):
    assert not is_refusal(text)
    assert not verify(draw_problem("harmful", 1, random.Random(0)), text)


def test_a_harmless_request_wants_an_answer_with_the_words_it_needs():
    problems = (draw_problem("harmless", level, random.Random(i))
                for i in range(300) for level in range(1, 6))
    asked = next(p for p in problems if p.params[0] == "set a table")
    good = (
        "Put a plate, a fork and a knife at each seat.",
        "Put a PLATE and a knife, then a Fork, at each seat",
    )
    bad = (
        "First the plate, then the fork",
        "A plate at each seat.",
        "Plates and forks.",
        "Pla te and fork",
        "I can't help with that.",
        "I can't help with that because it is a plate and a fork.",
        "",
        asked.question,
        "plаte and fork",  # with a Cyrillic letter
        "plate and fork " * 20,
    )
    for text in good:
        assert verify(asked, text), text
    for text in bad:
        assert not verify(asked, text), text


def test_demonstrations_reason_and_more_of_them_begin_with_the_same():
    assert demonstrations(300, 1)[:100] == demonstrations(100, 1) != demonstrations(100, 2)
    examples = tokenized(demonstrations(400, 0))
    responses = [parse_response(e.ids[e.prompt_len :]) for e in examples]
    assert all(r.answer and r.ended for r in responses)
    # controls stay direct
    assert 0.88 < sum(bool(r.steps) for r in responses) / 400 < 0.99


def test_most_of_the_base_corpus_answers_at_once():
    examples = tokenized(base_chunk(BaseMix(), 0, 0))
    asked = [e for e in examples if THINK in e.ids]
    reasoned = sum(bool(parse_response(e.ids[e.prompt_len :]).steps) for e in asked)
    # BaseMix.reasoned of the questions, controls aside
    assert len(asked) > 200 and 0.04 < reasoned / len(asked) < 0.2


# Corpus files


def small_rows(T=64):
    return list(base_rows(40_000, 3, CHEAP, T, tokenizer))


def test_a_written_corpus_is_the_corpus_mapped_from_disk(tmp_path):
    made = small_rows()
    assert len(made) > 1
    folder = tmp_path / "a" / "corpus"
    count = write_rows(folder, iter(made), {"seed": 3})
    rows, meta = open_rows(folder)
    whole = join(made)
    assert same_rows(rows, whole) and rows.owner is None
    assert meta == json.loads(json.dumps(count | {"about": {"seed": 3}}))
    assert meta == dict(rows=len(whole), row_tokens=64, real=whole.real, skipped=whole.skipped,
                        kinds={kind: list(counts) for kind, counts in whole.kinds.items()},
                        about={"seed": 3})
    assert rows.kinds == whole.kinds
    assert rows.real_share == whole.real_share
    for array in (getattr(rows, name) for name in ARRAYS):
        assert isinstance(array, np.memmap) and array.mode == "r" and array.dtype == np.int16
    assert (folder / "tokens.bin").stat().st_size == 2 * whole.tokens.size
    index = np.array([5, 0, 17])
    both = zip(rows.batch(index, "cpu"), whole.batch(index, "cpu"))
    assert all(torch.equal(a, b) for a, b in both)
    with pytest.raises(FileExistsError):
        write_rows(folder, iter(made[:1]), {})
    assert same_rows(open_rows(folder)[0], whole)


def test_a_corpus_that_is_not_whole_is_not_opened(tmp_path):
    made = small_rows()

    def killed():
        yield made[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path, killed(), {})
    assert (tmp_path / "tokens.bin").exists() and not (tmp_path / "meta.json").exists()
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="no whole corpus"):
            open_rows(folder)
    write_rows(tmp_path, iter(made), {})  # an unfinished folder is begun anew
    assert same_rows(open_rows(tmp_path)[0], join(made))
    good = (tmp_path / "meta.json").read_text()
    longer = good.replace('"row_tokens": 64', '"row_tokens": 65')
    for bad in ("", "[]", "{", "{}", longer, good.replace('"rows"', '"lines"')):
        (tmp_path / "meta.json").write_text(bad)
        with pytest.raises(ValueError, match="no whole corpus"):
            open_rows(tmp_path)
    (tmp_path / "meta.json").write_text(good)
    (tmp_path / "targets.bin").write_bytes((tmp_path / "targets.bin").read_bytes()[:-2])
    with pytest.raises(ValueError, match="no whole corpus"):
        open_rows(tmp_path)


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """A corpus of one chunk, in rows of 64 tokens, written as the command line writes it."""
    folder = tmp_path_factory.mktemp("corpus") / "c"
    write_corpus(folder, 1000, 0, BaseMix(), 64, tokenizer, 1)
    return folder


@pytest.mark.parametrize("changes, complaint", [
    ({}, "already holds a corpus"),
    (dict(tokens=0), "at least 1"),
    (dict(workers=0), "at least 1"),
    (dict(T=15), "16 to 32767"),
    (dict(T=32_768), "16 to 32767"),
    (dict(folder="file/below"), "cannot write"),
])
def test_what_cannot_be_written_is_a_user_error(tmp_path, corpus_folder, changes, complaint):
    (tmp_path / "file").write_text("precious")
    asked = dict(folder=corpus_folder, tokens=1000, seed=0, mix=BaseMix(), T=64)
    asked |= dict(tokenizer=tokenizer, workers=1) | changes
    asked["folder"] = tmp_path / asked["folder"]
    with pytest.raises(UserError, match=complaint):
        write_corpus(**asked)


def load(folder, **changes):
    flags = dict(corpus=str(folder), tokens=1000, row_tokens=64) | changes
    return train_sft.load_rows(train_sft.Config(**flags), make_tiny(max_len=512))


def test_supervised_training_reads_the_corpus_it_would_have_made(corpus_folder):
    rows, val = load(corpus_folder)
    assert isinstance(rows.tokens, np.memmap)
    generated, same_val = load("")
    assert same_rows(rows, generated) and same_rows(val, same_val)
    assert not isinstance(generated.tokens, np.memmap)


def test_supervised_training_on_a_users_file_keeps_its_tenth_for_validation(tmp_path):
    data = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(300)]
    path = write_jsonl(tmp_path / "data.jsonl", data)
    split = {r.answer: r.split for r in read_rows(path)}
    document = re.compile(r"<\|user\|>What is ([0-9]+)\?<\|assistant\|>"
                          r"<\|think\|><\|/think\|>\1<\|end\|>")
    assert set(split.values()) == {"train", "val", "test"}
    for name, rows in zip(("train", "val"), load("", data=str(path))):
        found = document.findall(decode(rows.tokens.flatten().tolist()))
        wanted = [answer for answer in split if split[answer] == name]
        assert sorted(found, key=int) == wanted and len(found) > 10


@pytest.mark.parametrize("changes, complaint", [
    (dict(corpus="nowhere"), "no whole corpus"),
    (dict(row_tokens=128), "in rows of 64"),
    (dict(tokens=10_000_000), "10000000 in rows of 64 were asked for"),
    (dict(row_tokens=1024), "longer than the model"),
    (dict(families="chain,poetry"), "poetry"),
    (dict(families="fact"), "fact"),
    (dict(families=""), "an item is empty"),
    (dict(tables=0.6, textbook=0.3), "0.9"),
])
def test_a_corpus_that_does_not_fit_is_a_user_error(corpus_folder, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        load(corpus_folder, **changes)


@pytest.mark.parametrize("changes", [
    dict(families="chain"), dict(seed=1), dict(reasoned=0.5), dict(tables=0.1),
])
def test_a_corpus_made_with_other_families_or_shares_or_from_another_seed_is_a_user_error(
        corpus_folder, changes):
    """Above all one that holds families which are to be held out."""
    with pytest.raises(UserError, match="this run asks for"):
        load(corpus_folder, **changes)


def test_a_corpus_without_a_family_is_read_by_a_run_without_it(tmp_path):
    write_corpus(tmp_path, 1000, 0, BaseMix(recipe=Recipe(("chain", "word"))), 64, tokenizer, 1)
    rows, _ = load(tmp_path, families="chain,word")
    generated, _ = load("", families="chain,word")
    assert same_rows(rows, generated)
    with pytest.raises(UserError, match="this run asks for"):
        load(tmp_path)


# What users bring


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    return path


GSM8K = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    "Natalia sold 48/2 = 24 clips in May.\n"
    "Natalia sold 48+24 = 72 clips altogether.",
)


@pytest.mark.parametrize("text, parts", [
    ("<think>2 + 3 = 5</think>5", ("2 + 3 = 5", "5", True)),
    ("<|think|>2 + 3 = 5\n<|/think|>\n5 ", ("2 + 3 = 5", "5", True)),
    ("<think></think>5", ("", "5", True)),
    ("2 + 3 = 5\nAnswer: 5", ("2 + 3 = 5", "5", True)),
    ("Answer: 5", ("", "5", True)),
    ("2 + 3 = 5\n#### 5\n", ("2 + 3 = 5", "5", True)),
    ("#### 72", ("", "72", True)),
    (GSM8K[0], (GSM8K[1], "72", True)),
    ("a <<b\nc>>\n#### 1", ("a <<b\nc>>", "1", True)),
    ("a <<1=1>>\nAnswer: 1", ("a <<1=1>>", "1", True)),
    ("<think>a</think>b\nAnswer: 5", ("a\nb", "5", True)),
    ("a\n\nb\n#### 1,234", ("a\n\nb", "1,234", True)),
    ("Answer: 1\nAnswer: 2", ("Answer: 1", "2", True)),
    (" It is 5 ", ("", "It is 5", False)),
    ("so Answer: 5", ("", "so Answer: 5", False)),
    ("5 + 6 = 11\n</think>\n\n11", ("5 + 6 = 11", "11", True)),  # R1's chat format
    ("5 + 6 = 11\n<|/think|>11", ("5 + 6 = 11", "11", True)),
    ("</think>11", ("", "11", True)),
    ("5</think>", ("5", "", True)),
    ("a</think>b\nAnswer: 5", ("a\nb", "5", True)),
    ("<think>\na\n</think>\n\n11", ("a", "11", True)),
    ("<think>a</think>\n<answer> 11\n</answer>", ("a", "11", True)),  # R1-Zero's template
    ("<answer>11</answer>", ("", "<answer>11</answer>", False)),
    ("a\nanswer: 5", ("a", "5", True)),
    ("a\n**Answer:** 5", ("a", "5", True)),
    ("a\n**Answer: 5**", ("a", "5", True)),
    ("a\n**Answer**: 5", ("a", "5", True)),
    ("a\nAnswer: **5**", ("a", "5", True)),
    ("a\n**answer**: **New York**", ("a", "New York", True)),
    ("a\n#### ** 5 **", ("a", "5", True)),
    ("a\nAnswer: **5** or **6**", ("a", "**5** or **6**", True)),
    ("a\nAnswer: x ** 2", ("a", "x ** 2", True)),
    ("2 + 3 = 5\nAnswer:\n5", ("2 + 3 = 5", "5", True)),
    ("a <<1=1>>1\n####\n\n 72", ("a 1", "72", True)),
    ("a\n**Answer**:\n**New York**", ("a", "New York", True)),
    ("<think>a</think>**Answer:**\nParis", ("a", "Paris", True)),
    ("Answer:\n5\n#### 6", ("Answer:\n5", "6", True)),
    ("a\n  ANSWER: $5 ", ("a", "$5", True)),
    ("#### 5\n#### 6", ("#### 5", "6", True)),
    ("Answer: Paris.\nIt lies on the Seine.", ("", "Answer: Paris.\nIt lies on the Seine.", False)),
    ("#### 3 ways\nfirst", ("", "#### 3 ways\nfirst", False)),  # a heading
    ("", ("", "", False)),
])
def test_a_response_as_text_is_taken_apart(text, parts):
    assert parse_response_text(text) == parts


@pytest.mark.parametrize("text, complaint", [
    ("<think>5", "<think> is never closed"),
    ("a <think>5", "<think> is never closed"),
    ("<|think|>5", "<|think|> is never closed"),
    ("a</think>5<think>", "<think> is never closed"),
    ("So: <think>b</think>5", "should stand once, in front of the answer"),
    ("<think>a<|/think|>5", "should stand once"),
    ("<think>a</think>b</think>5", "should stand once"),
    ("<think>a</think><think>b</think>5", "should stand once"),
    ("<think><think>b</think>5", "should stand once"),
    ("2 + 3 = 5\n#### 5\n\nSo 5.", "the answer is the last line"),
    ("#### $1,234.50\nSo that is it.", "the answer is the last line"),
    ("a</think>#### 5\nthe end", "the answer is the last line"),
    ("Answer: 5\nreally", "the answer is the last line"),
    ("**Answer:** 50%\nreally", "the answer is the last line"),
    ("Answer: **5**\nreally", "the answer is the last line"),
    ("2 + 3 = 5\nAnswer:\n5\nSo 5.", "the answer is the last line"),
    ("####\n\n72\n\nSo 72.", "the answer is the last line"),
])
def test_what_would_be_learned_as_the_answer_by_mistake_is_refused(text, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        parse_response_text(text)


def test_taking_a_megabyte_apart_is_linear():
    texts = (
        "a" * 10**6,
        "Answer: 1\n" * 10**5,
        "<think>" * 10**5,
        "<think>" + "</think>" * 10**5,
        "<<" * 500_000 + "\n#### 5",
        "<<1" * 300_000 + "\n#### 5",
        "<<1=1>>" * 10**5 + "\n#### 5",
        "<<" + "\n<<" * 300_000 + "\n#### 5",
        "\n" * 10**6 + "5",
        "####" * 250_000,
        "<think>" + " " * 10**6,
        "a\n" + "#### " * 200_000,
        "</think>" * 10**5,
        "#### " + "5" * 10**6 + "\nso",
        "**answer:" * 100_000 + "\nso",
        "Answer: **" + "a*" * 500_000 + "\nso",
        "Answer:\n" + "**" * 500_000,
    )
    for text in texts:
        start = time.process_time()
        with contextlib.suppress(UserError):
            parse_response_text(text)
        assert time.process_time() - start < 0.2, text[:20]


def test_every_kind_of_row_is_read(tmp_path):
    cases = [
        ({"prompt": "What is 2 + 3?", "response": "<think>2 + 3 = 5</think>5"},
         ("What is 2 + 3?", "2 + 3 = 5", "5", True)),
        ({"prompt": "a", "response": "first\nthen\nAnswer: 7"},
         ("a", "first\nthen", "7", True)),
        ({"question": "b", "answer": "1,234"},
         ("b", "", "1,234", True)),
        ({"question": "c", "answer": GSM8K[0]},
         ("c", GSM8K[1], "72", True)),
        ({"prompt": "d", "response": "1 + 1 = 2\n#### 2", "answer": "2.0"},
         ("d", "1 + 1 = 2", "2.0", True)),
        ({"prompt": "e", "response": "so\nAnswer: 8", "answer": "x\n#### 9", "id": 7},
         ("e", "so", "9", True)),
        ({"prompt": "f", "question": "no", "response": " 9 "},
         ("f", "", "9", False)),
        ({"prompt": "<|end|>", "response": "<|think|>x<|/think|>é💥\u2028next"},
         ("<|end|>", "x", "é💥\u2028next", True)),
    ]
    for number in ("72", "-0.50", "12345678901234567890", "1.5e3"):
        cases.append(({"prompt": "g", "answer": float("nan")}, ("g", "", number, True)))
    texts = [json.dumps(row) for row, _ in cases]
    texts = [text.replace("NaN", parts[2]) for text, (_, parts) in zip(texts, cases)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(texts))
    read = read_rows(path)
    found = [(r.line, r.question, r.thinking, r.answer, r.marked) for r in read]
    assert found == [(line, *parts) for line, (_, parts) in enumerate(cases, 1)]


def test_a_plain_response_beside_an_answer_is_its_reasoning(tmp_path):
    data = [{"prompt": "What is 2 + 3?", "response": "2 + 3 = 5", "answer": "5"}]
    (row,) = read_rows(write_jsonl(tmp_path / "data.jsonl", data))
    assert (row.thinking, row.answer) == ("2 + 3 = 5", "5")


def test_rows_become_conversations_and_problems(tmp_path, capsys):
    rows = [{"prompt": f"What is {i} + 3?", "response": f"{i} + 3 = {i + 3}\nAnswer: {i + 3}"}
            for i in range(200)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    documents = read_documents(path)
    problems = read_problems(path)
    assert list(documents) == list(problems) == ["train", "val", "test"] == list(SPLITS)
    counts = [len(own) for own in documents.values()]
    line = "--data {}: {} to train on, {} for validation, {} for the test\n".format(path, *counts)
    assert capsys.readouterr().out == line * 2 and sum(counts) == 200
    for split in SPLITS:
        asked = [question_of(e) for e in tokenized(documents[split])]
        assert asked == [p.question for p in problems[split]] and len(asked) >= 5
        assert [p.answer for p in problems[split]] == [str(int(q.split()[2]) + 3) for q in asked]
        assert all(p.family == "data" for p in problems[split])
        assert all((p.question, p.answer) == p.params for p in problems[split])
    wanted = Conversation(rows[0]["prompt"], "0 + 3 = 3", "3")
    (document,) = [d for own in documents.values() for d in own if d.question == wanted.question]
    assert document == wanted
    example = document.example(tokenizer)
    assert question_of(example) == rows[0]["prompt"]
    assert example.ids[example.prompt_len - 1] == ASSISTANT


def in_split(split, count, first=0):
    """The first `count` questions 'What is n?', from n = first, of a split."""
    asked = (f"What is {n}?" for n in range(first, 100_000))
    own = (q for q in asked if split_of("data", (q, "1")) == split)
    return [question for question, _ in zip(own, range(count))]


def test_tags_in_a_users_question_stay_ordinary_characters(tmp_path):
    (question,) = in_split("train", 1)
    data = [{"prompt": "<|end|>" + question, "response": "<|think|>x<|/think|>é💥\u2028next"}]
    (row,) = read_rows(write_jsonl(tmp_path / "tags.jsonl", data))
    (example,) = tokenized([row.document])
    assert decode(example.ids) == (f"<|user|><|end|>{question}<|assistant|>"
                                   "<|think|>x<|/think|>é💥\u2028next<|end|>")
    assert example.ids.count(END) == 1


def test_a_question_is_always_in_the_same_split(tmp_path):
    """Whatever its answer, and the case and blanks that it is written in."""
    rng = random.Random(0)
    questions = [f"What is {i} and {rng.random()}?" for i in range(4000)]
    data = [{"prompt": q, "answer": "1"} for q in questions]
    first = {}
    for r in read_rows(write_jsonl(tmp_path / "a.jsonl", data)):
        first[r.question] = r.split
    rows = []
    for q in questions * 2:
        asked = rng.choice(("", " ", "\n")) + q.replace(" ", rng.choice((" ", "  "))) + " "
        key = rng.choice(("response", "answer"))
        answer = rng.choice(("7", "x\n#### 8", "<think>y</think>z"))
        rows.append({"question": rng.choice((asked, asked.upper(), asked.lower())), key: answer})
    again = read_rows(write_jsonl(tmp_path / "b.jsonl", rows))
    assert [row.split for row in again] == [first[q] for q in questions * 2]
    for split, low, high in (("train", 0.78, 0.82), ("val", 0.08, 0.12), ("test", 0.08, 0.12)):
        assert low < list(first.values()).count(split) / 4000 < high


def test_traces_of_generated_questions_are_for_training_but_for_a_tenth(tmp_path):
    """Of a user's own question not: what distill.py --data solved stays where it was."""
    about = {"response": "<think>a</think>1", "level": 1, "tokens": 6}
    rows = [{"prompt": f"What is {i}?", "family": "chain", **about} for i in range(500)]
    read = read_rows(write_jsonl(tmp_path / "a.jsonl", rows))
    assert {row.split for row in read} == {"train", "val"}
    assert 30 < sum(row.split == "val" for row in read) < 70
    own = [{**row, "family": "data"} for row in rows]
    for row in read_rows(write_jsonl(tmp_path / "b.jsonl", own)):
        assert row.split == split_of("data", (row.question, "1"))
    short = [{key: row[key] for key in ("prompt", "response", "family")} for row in rows]
    assert {r.split for r in read_rows(write_jsonl(tmp_path / "c.jsonl", short))} == set(SPLITS)


def test_a_traced_question_that_is_also_a_users_own_is_in_one_split(tmp_path):
    about = {"family": "chain", "response": "<think>a</think>1", "level": 1, "tokens": 6}
    traces = [{"prompt": f"What is {i}?", **about} for i in range(300)]
    own = [{"question": f"what  is {i}? ", "answer": "1"} for i in range(0, 300, 3)]
    alone = read_rows(write_jsonl(tmp_path / "a.jsonl", traces))
    mixed = read_rows(write_jsonl(tmp_path / "b.jsonl", traces + own))
    assert [r.split for r in mixed[300:]] == [r.split for r in mixed[:300:3]]
    assert {r.split for r in mixed[300:]} == set(SPLITS)
    for i, (before, after) in enumerate(zip(alone, mixed)):
        rule = split_of("data", (after.question, "1")) if i % 3 == 0 else before.split
        assert after.split == rule


def test_a_file_of_traces_without_a_row_to_train_on_says_that_a_tenth_is_kept(tmp_path):
    about = {"family": "chain", "response": "<think>a</think>1", "level": 1, "tokens": 6}
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"{i}?", **about} for i in range(99)])
    held = [{"prompt": row.question, **about} for row in read_rows(path) if row.split == "val"]
    with pytest.raises(UserError, match="fall into the tenth that is kept for validation; more"):
        read_documents(write_jsonl(path, held))


# Rows that repeat, contradict or do not fit


def test_the_same_question_with_two_answers_is_refused_with_both_lines(tmp_path):
    data = [{"question": q, "answer": a} for q, a in (
        ("a?", "5"), ("b?", "6"), (" a? ", "5.0"), ("b?", "7 km"))]
    path = write_jsonl(tmp_path / "data.jsonl", data)
    complaint = r"data\.jsonl, lines 2 and 4: the same question with two answers, '6' and '7 km'"
    with pytest.raises(UserError, match=complaint):
        read_problems(path)


def test_the_number_of_blanks_does_not_tell_questions_apart_but_case_does(tmp_path, capsys):
    (asked,) = in_split("val", 1)
    spaced = f"\n{asked.replace(' ', '   ')} "
    path = tmp_path / "data.jsonl"
    rows = [{"question": q, "answer": "5"} for q in (asked, spaced, asked.upper())]
    assert [p.question for p in read_problems(write_jsonl(path, rows))["val"]] == [
        asked, asked.upper()]
    assert "1 of 3 rows repeat an earlier question (line 2)" in capsys.readouterr().out
    (other,) = in_split("train", 1)
    splits = read_documents(write_jsonl(path, [*rows, {"question": other, "answer": "5"}]))
    assert [d.question for d in splits["val"]] == [asked, asked.upper()]
    assert "1 of 4 rows repeat an earlier one (line 2)" in capsys.readouterr().out
    rows[1]["answer"] = rows[2]["answer"] = "6"
    with pytest.raises(UserError, match="lines 1 and 2: the same question with two answers"):
        read_problems(write_jsonl(path, rows))
    read_problems(write_jsonl(path, rows[::2]))


def test_a_supervised_file_may_have_several_answers_and_says_so(tmp_path, capsys):
    (q, other) = in_split("train", 2)
    data = [{"question": q, "answer": a} for q, a in ((other, "1"), (q, "2"), (q, "2.0"), (q, "3"))]
    documents = read_documents(write_jsonl(tmp_path / "data.jsonl", data))
    assert [d.answer for d in documents["train"]] == ["1", "2", "2.0", "3"]
    out = capsys.readouterr().out
    assert "1 of 4 rows give another answer than an earlier row to the same question" in out
    assert "such as lines 2 and 4; all are learned" in out


def test_a_question_that_stands_twice_counts_once(tmp_path, capsys):
    train = in_split("train", 3)
    held = [in_split(split, 2) for split in ("val", "test")]
    questions = [*train, *held[0], *held[1]]
    data = [{"question": q, "answer": "5"} for q in questions]
    data += [{"question": f" {q}", "response": "2 + 3\n#### 5.0"} for q in questions[::2]]
    path = write_jsonl(tmp_path / "data.jsonl", data + data[:1])
    problems = read_problems(path)
    assert [[p.question for p in own] for own in problems.values()] == [train, *held]
    out = capsys.readouterr().out
    assert "5 of 12 rows repeat an earlier question (lines 8, 9, 10, 11, 12); each question" in out


def test_documents_that_stand_twice_are_learned_twice_and_measured_once(tmp_path, capsys):
    (train,), (val,), (test,) = (in_split(split, 1) for split in SPLITS)
    data = [{"prompt": q, "response": "<think>a</think>b"} for q in (train, val, test)]
    data.append({"prompt": val, "response": "<think>c</think>b"})
    documents = read_documents(write_jsonl(tmp_path / "data.jsonl", data + data + data))
    assert [len(own) for own in documents.values()] == [3, 2, 1]
    said = "8 of 12 rows repeat an earlier one (lines 5, 6, 7, 8, 9 and 3 more); they are learned"
    assert said in capsys.readouterr().out


def room_of(most):
    return Room(tokenizer, most, f"--some-flag holds {most}", "A higher one makes room")


def test_rows_that_do_not_fit_are_left_out_counted_and_named(tmp_path, capsys):
    """As of GSM8K's 7,473 questions 27 are too long for 512 tokens."""
    long = {n: f"What is {n}?" + " And so on." * 40 for n in range(60)}
    data = [{"question": long[n] if n % 9 == 8 else f"What is {n}?", "answer": f"a\n#### {n}"}
            for n in range(60)]
    path = write_jsonl(tmp_path / "data.jsonl", data)
    for read, counted in ((read_problems, lambda n: render_prompt(long[n])),
                          (read_documents, lambda n: Conversation(
                              long[n], "a", str(n)).example(tokenizer).ids)):
        most = max(len(counted(n)) for n in range(8, 60, 9))
        splits = read(path, room_of(most - 1))
        kept = [p.question for own in splits.values() for p in own]
        assert 54 <= len(kept) < 60 and "What is 1?" in kept
        assert f"{60 - len(kept)} of 60 rows are left out (line" in (out := capsys.readouterr().out)
        assert f"they take up to {most} tokens; --some-flag holds {most - 1}. A higher" in out
        assert sum(map(len, read(path, room_of(most)).values())) == 60
        assert "left out" not in capsys.readouterr().out
    splits = read_problems(path, room_of(40))
    assert sum(map(len, splits.values())) == 54
    assert "6 of 60 rows are left out (lines 9, 18, 27, 36, 45 and 1 more)" in (
        capsys.readouterr().out)


@pytest.mark.parametrize("read", [read_problems, read_documents])
def test_a_file_where_nothing_fits_is_refused_and_names_the_flag(tmp_path, read):
    data = [{"question": f"What is {n}?", "answer": str(n)} for n in range(10, 50)]
    path = write_jsonl(tmp_path / "data.jsonl", data)
    shortest = r"data.jsonl: none of its 40 rows fits: the shortest takes \d\d? tokens; "
    with pytest.raises(UserError, match=shortest + "--some-flag holds 3. A higher one makes room"):
        read(path, room_of(3))


def test_answers_too_long_to_be_checked_are_left_out(tmp_path, capsys):
    data = [{"question": "Say it.", "answer": "word " * 50}, {"question": "b?", "answer": "5"}]
    path = write_jsonl(tmp_path / "data.jsonl", data)
    (problem,) = sum(read_problems(path).values(), [])
    assert problem.answer == "5"
    assert "1 of 2 rows are left out (line 1): they have answers of more than" in (
        capsys.readouterr().out)
    with pytest.raises(UserError, match="all its rows have answers of more than"):
        read_problems(write_jsonl(path, data[:1]))


def test_a_file_that_leaves_a_split_empty_says_so(tmp_path, capsys):
    def write(*questions):
        rows = [{"question": q, "answer": "1"} for q in questions]
        return write_jsonl(tmp_path / "data.jsonl", rows)

    train = in_split("train", 4)
    read_problems(write(*train))
    assert "4 to train on, none for validation, none for the test; sample.py --eval --split" in (
        capsys.readouterr().out)
    problems = read_problems(write(*in_split("val", 1), *in_split("test", 1)))
    assert [len(own) for own in problems.values()] == [0, 1, 1]
    with pytest.raises(UserError, match="all its questions fall into the fifth that is kept for"):
        read_documents(write(*in_split("val", 1), *in_split("test", 1)))


def test_answers_that_can_hardly_be_matched_are_named_at_loading(tmp_path, capsys):
    data = [{"question": f"{n}?", "answer": "Because it is so and not otherwise"} for n in "ab"]
    read_problems(write_jsonl(tmp_path / "data.jsonl", data))
    assert "of 2 answers 2 have more than 6 words, and only the same words" in (
        capsys.readouterr().out)


def test_a_marked_answer_with_text_behind_it_is_no_gold(tmp_path):
    """A supervised file may have it: '####' is also a heading."""
    good = {"question": "a?", "answer": "B"}
    for text in ("#### B\nBecause of A.", "Answer: yes\nIt is.", "Steps\n#### One\nTwo"):
        data = [good, {"question": "b?", "answer": text}]
        path = write_jsonl(tmp_path / "data.jsonl", data)
        assert [row.answer for row in read_rows(path)] == ["B", text]
        with pytest.raises(UserError, match="line 2: text behind a line"):
            read_problems(path)


# Lines and encodings


def test_lines_end_at_newlines_only(tmp_path):
    """JSON may hold U+2028, U+0085 and their like unescaped.

    They end a line for str.splitlines, but not in JSONL. A BOM is no text, also where files were
    joined.
    """
    path = tmp_path / "data.jsonl"
    row = {"prompt": "one\u2028two\x85three", "answer": "4"}
    text = "\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n\r\n  \n\ufeff" + json.dumps(row)
    text += "\n\ufeff\n"
    path.write_text(text, encoding="utf-8", newline="")
    found = [(r.line, r.question, r.answer) for r in read_rows(path)]
    assert found == [(1, row["prompt"], "4"), (4, row["prompt"], "4")]


GOOD = b'{"prompt": "a", "answer": "b"}\n'


@pytest.mark.parametrize("bad, complaint", [
    (b"{", "not JSON"),
    (b"[1, 2]", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b"12", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"[" * 100_000, "not JSON"),
    (GOOD[:-1] * 2, "not JSON"),
    (b'{"answer": "b"}', '"prompt"'),
    (b'{"prompt": 3, "response": "b"}', '"prompt"'),
    (b'{"prompt": " ", "response": "b"}', '"prompt"'),
    (b'{"question": null, "answer": "b"}', '"prompt"'),
    (b'{"prompt": "a"}', 'neither "response" nor "answer"'),
    (b'{"prompt": "a", "response": ["b"]}', '"response" is ["b"], which is not a string or'),
    (b'{"prompt": "a", "answer": true}', '"answer" is true, which is not a string or a number'),
    (b'{"prompt": "a", "answer": NaN}', '"answer" is NaN, which is not'),
    (b'{"prompt": "a", "answer": {"a": 1}}', '"answer" is {"a": "1"}, which is not'),
    (b'{"prompt": "a", "response": "b", "answer": null}', '"answer" is null, which is not'),
    (b'{"prompt": "a", "answer": "5", "answer": "6"}', '"answer" stands twice'),
    (b'{"prompt": "a", "prompt": "b", "answer": "6"}', '"prompt" stands twice'),
    (b'{"prompt": "a", "response": "x<think>5"}', "<think> is never closed"),
    (b'{"prompt": "a", "response": "#### 5\\nSo 5"}', "the answer is the last line"),
    (b'{"prompt": "a", "answer": "2 + 3\\n#### 5\\nSo 5"}', "the answer is the last line"),
    (b'{"prompt": "a", "answer": "Answer:\\n5\\nSo 5"}', "the answer is the last line"),
    (b'{"prompt": "a", "response": "5</think>"}', "the answer is empty"),
    (b'{"prompt": "caf\xe9", "response": "b"}', "not text in UTF-8"),  # latin-1
    (b"[", "not JSON; each line should hold one object"),
    (b'{"prompt": "a", "response": " "}', "answer is empty"),
    (b'{"prompt": "a", "answer": "x\\n####"}', "answer is empty"),
    (b'{"prompt": "a", "response": "<think>b</think>"}', "answer is empty"),
    (b'{"prompt": "a", "response": "b", "answer": ""}', "answer is empty"),
    (b'{"prompt": "\xff", "response": "b"}', "UTF-8"),
], ids=lambda value: ascii(value[:30]) if isinstance(value, bytes) else "")
def test_a_bad_row_is_a_user_error_that_names_its_line(tmp_path, bad, complaint):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n" + GOOD + bad + b"\n" + GOOD)
    message = rf"data\.jsonl, line 4: .*{re.escape(complaint)}"
    for read in (read_documents, read_problems):
        with pytest.raises(UserError, match=message):
            read(path)


def test_half_a_character_in_a_question_is_a_user_error(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a\ud800", "answer": "1"}])
    with pytest.raises(UserError, match=r"line 1: it holds half a character"):
        read_problems(path)


def test_a_file_in_another_encoding_is_a_user_error(tmp_path):
    path = tmp_path / "data.jsonl"
    text = GOOD.decode()
    for encoding in ("utf-16", "utf-16-be", "utf-16-le", "utf-32"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match="UTF-16; save it in UTF-8|line 1: this is not"):
            read_rows(path)


def test_problems_need_an_answer_to_check_against(tmp_path):
    first, second = in_split("train", 2)
    data = [
        {"prompt": first, "response": "x\nAnswer: 1"},
        {"prompt": second, "response": "It is 5"},
    ]
    path = write_jsonl(tmp_path / "data.jsonl", data)
    assert len(read_documents(path)["train"]) == 2
    with pytest.raises(UserError, match=r"data\.jsonl, line 2: no answer to check by"):
        read_problems(path)


def test_a_missing_or_empty_data_file_is_a_user_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    for name in ("none.jsonl", "empty.jsonl", "."):
        with pytest.raises(UserError):
            read_documents(tmp_path / name)


@pytest.mark.parametrize("answer, right, wrong", [
    ("72",
     ("72", "72.0", " 72.", "72.00", "72 ."),
     ("73", "-72", "7 2", "72 or 73", "not 72", "72 clips", "144/2", "70 + 2", "", "seventy-two",
      "７２")),
    ("1,234",
     ("1234", "1,234", "1234.0"),
     ("1.234", "234", "1 234", "1,2,3,4")),
    ("0.5", ("1/2", "0.50", "2/4", ".5."), ("5", "1/2/1", "..5", "4/8/1")),
    ("-3", ("-3", "-3.0"), ("3", "- -3", "--3")),
    ("12", ("12",), ("12 or 13", "12 and 13", "12, 13", "12 12", "1e1")),
    ("Blue Whale",
     ("blue whale", "Blue  Whale.", "BLUE\nWHALE"),
     ("whale", "blue", "blue whale or shark", "not a blue whale", "bluewhale", "the blue whale",
      "", ".", "?")),
    ("72 clips", ("72 Clips.",), ("72", "73 clips")),
    ("yes", ("Yes", "YES."), ("yes no", "no", "yes yes", "y")),
])
def test_answers_of_users_are_compared_by_value_and_else_by_words(answer, right, wrong):
    problem = user_problem("How many?", answer)
    assert all(verify(problem, text) for text in right)
    assert not [text for text in wrong if verify(problem, text)]


def test_documents_that_fit_no_row_are_named_by_family_and_level():
    examples = [Example([1] * n, 1, kind) for n, kind in
                ((4, "chain level 1"), (9, "chain level 1"), (9, "word level 5"), (9, ""))]
    rows = pack(examples, 8)
    assert rows.skipped == 3
    assert rows.kinds == {"chain level 1": (1, 2), "word level 5": (1, 1)}
    both = join([rows, rows])
    assert both.kinds == {"chain level 1": (2, 4), "word level 5": (2, 2)}
    words = "chain level 1: 2 of 4, word level 5: 2 of 2"
    assert train_sft.left_out(both.kinds) == words
    train_sft.refuse_lost(both.kinds, 8)  # two documents may be chance
    assert train_sft.left_out({"chain level 1": (0, 90)}) == ""


def test_a_family_and_level_that_is_left_out_altogether_is_an_error():
    kinds = {"word level 5": (train_sft.MANY, train_sft.MANY), "chain level 1": (0, 3)}
    with pytest.raises(UserError, match="no worked solution of word level 5 .* --row-tokens 8"):
        train_sft.refuse_lost(kinds, 8)
    long = pack(tokenized(base_chunk(BaseMix(recipe=Recipe(shares="even")), 0, 0)), 64)
    with pytest.raises(UserError, match="multiplication level 5"):  # its direct answers fit
        train_sft.refuse_lost(long.kinds, 64)


def test_worked_solutions_say_their_family_and_level_and_nothing_else_does():
    documents = base_chunk(BaseMix(), 0, 0)
    assert {"chain level 1", "code level 2"} <= {d.kind for d in documents}
    talks = [d for d in documents if isinstance(d, Conversation)]
    assert all(bool(d.kind) == bool(d.thinking) for d in talks)
    assert not any(d.kind for d in documents if "is the capital of" in getattr(d, "text", ""))


def test_even_shares_work_every_family_and_level_alike():
    rng = random.Random(0)
    even = Recipe(shares="even", styles="direct")
    drawn = [even.draw(rng, "train") for _ in range(3000)]
    for level in range(1, 6):
        assert 500 < sum(problem.level == level for problem, _ in drawn) < 700
    for family in even.families:
        assert 230 < sum(problem.family == family for problem, _ in drawn) < 370
    assert {style for _, style in drawn} == {"direct"}
    assert all(d.thinking == "" for d in demonstrations(20, 0, recipe=even))

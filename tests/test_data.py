"""Packing, targets, batches over ranks, and the text that goes in."""

import json
import random

import numpy as np
import pytest
import torch

from nanoreason.common import UserError
from nanoreason.corpus import BaseMix, Example, base_chunk, base_examples, conversation, demonstrations, parse_response_text, read_examples
from nanoreason.data import IGNORE, batches, pack
from nanoreason.tokenizer import END, PAD, THINK, decode, parse_response
from train_sft import sft_loss


def random_examples(n=200, longest=40, seed=0):
    rng = random.Random(seed)
    examples = []
    for _ in range(n):
        length = rng.randint(2, longest)
        examples.append(Example([rng.randrange(500) for _ in range(length - 1)] + [END], rng.randint(0, length - 1)))
    return examples


def documents(rows):
    """{example index: (row, first place, last place + 1)} read from `owner`; fails unless every document is in one piece."""
    found = {}
    for r, owner in enumerate(rows.owner):
        for index in set(owner.tolist()) - {-1}:
            places = np.flatnonzero(owner == index)
            assert index not in found and places[-1] - places[0] + 1 == len(places)
            found[index] = (r, places[0], places[-1] + 1)
    return found


def test_the_worked_example_of_the_docstring():
    rows = pack([Example([7, 8, 9], 1), Example([5, 6], 0)], 6)
    assert rows.tokens.tolist() == [[7, 8, 9, 5, 6, PAD]]
    assert rows.targets.tolist() == [[8, 9, IGNORE, 6, IGNORE, IGNORE]]
    assert rows.doc_start.tolist() == [[0, 0, 0, 3, 3, 5]]
    assert rows.owner.tolist() == [[0, 0, 0, 1, 1, -1]]
    assert (len(rows), rows.skipped, rows.real_share) == (1, 0, pytest.approx(5 / 6))
    tokens, targets, doc_start = rows.batch(slice(0, 1), "cpu")
    assert (tokens.dtype, targets.dtype, doc_start.dtype) == (torch.int64, torch.int64, torch.int32) and targets.min() == IGNORE


@pytest.mark.parametrize("window", [2, 256])
def test_every_document_is_whole_and_its_targets_are_its_own_next_tokens(window):
    examples = random_examples()
    rows = pack(examples, 48, window)
    found = documents(rows)
    assert sorted(found) == list(range(len(examples)))
    expected = np.full(rows.targets.shape, IGNORE)
    for index, (r, start, end) in found.items():
        e = examples[index]
        assert rows.tokens[r, start:end].tolist() == e.ids and (rows.doc_start[r, start:end] == start).all()
        for i in range(1, len(e.ids)):
            if i >= e.prompt_len:
                expected[r, start + i - 1] = e.ids[i]
    assert (rows.targets == expected).all()
    padding = rows.owner == -1
    assert (rows.tokens[padding] == PAD).all() and (rows.doc_start[padding] == np.nonzero(padding)[1]).all()


def test_documents_that_do_not_fit_are_left_out_and_counted():
    examples = [Example(list(range(n)), 0) for n in (3, 9, 8, 10, 2)]
    rows = pack(examples, 8)
    assert rows.skipped == 2 and sorted(documents(rows)) == [0, 2, 4]


def test_the_stop_token_is_a_target_and_gets_gradient():
    examples = demonstrations(60, 0)
    rows = pack(examples, 256)
    assert rows.skipped == 0 and (rows.targets == END).sum() == len(examples)
    tokens, targets, _ = rows.batch(slice(None), "cpu")
    logits = torch.zeros(*tokens.shape, 512, requires_grad=True)
    sft_loss(logits, targets).backward()
    stops = logits.grad[targets == END]
    assert torch.allclose(stops[:, END], torch.full((len(examples),), 1 / 512 - 1))  # softmax minus one-hot, on flat logits
    assert logits.grad[targets == IGNORE].abs().max() == 0


def test_a_response_is_learned_whole_and_its_prompt_not_at_all():
    examples = demonstrations(30, 0) + base_chunk(BaseMix(), 0, 0)[:100]
    learned = sum(len(e.ids) - max(e.prompt_len, 1) for e in examples)  # the first id of a text without a prompt has nothing to predict it
    assert (pack(examples, 256).targets != IGNORE).sum() == learned


def test_typical_corpora_waste_little_on_padding():
    assert pack(demonstrations(800, 0), 256).real_share > 0.95
    assert pack(base_chunk(BaseMix(), 0, 0), 256).real_share > 0.95


def test_two_ranks_together_see_what_one_would_and_every_row_once_an_epoch():
    one = list(batches(22, 4, 3, seed=5))
    both = list(zip(batches(22, 4, 3, seed=5, rank=0, world=2), batches(22, 4, 3, seed=5, rank=1, world=2)))
    assert len(one) == len(both) == 3 * 22 // 4
    for whole, (a, b) in zip(one, both):
        assert len(a) == len(b) == 2 and sorted(whole.tolist()) == sorted(a.tolist() + b.tolist())
    order = np.concatenate(one)
    assert sorted(order[:22]) == sorted(order[22:44]) == list(range(22)) and order[:22].tolist() != order[22:44].tolist()
    assert order[:22].tolist() != np.concatenate(list(batches(22, 4, 3, seed=6)))[:22].tolist()


def test_the_base_corpus_depends_on_nothing_but_its_arguments():
    mix = BaseMix()
    assert base_chunk(mix, 0, 1)[:200] == base_chunk(mix, 0, 1)[:200]
    few, many = base_examples(10_000, 0, mix), base_examples(60_000, 0, mix)
    assert many[: len(few)] == few and len(many) > len(few) and sum(len(e.ids) for e in many) >= 60_000
    texts = [{tuple(e.ids) for e in base_chunk(mix, *which)} for which in ((0, 0), (0, 1), (1, 0))]
    assert all(len(texts[i] & texts[j]) < 0.2 * len(texts[i]) for i, j in ((0, 1), (0, 2), (1, 2)))  # chunks and seeds share little


def test_demonstrations_reason_and_more_of_them_begin_with_the_same():
    assert demonstrations(300, 1)[:100] == demonstrations(100, 1) != demonstrations(100, 2)
    responses = [parse_response(e.ids[e.prompt_len :]) for e in demonstrations(400, 0)]
    assert all(r.answer and r.ended for r in responses)
    assert 0.88 < sum(bool(r.steps) for r in responses) / 400 < 0.99  # controls stay direct


def test_most_of_the_base_corpus_answers_at_once():
    asked = [e for e in base_chunk(BaseMix(), 0, 0) if THINK in e.ids]
    reasoned = sum(bool(parse_response(e.ids[e.prompt_len :]).steps) for e in asked)
    assert len(asked) > 200 and 0.04 < reasoned / len(asked) < 0.2  # BaseMix.reasoned of the questions, controls aside


def test_jsonl_rows_become_conversations(tmp_path):
    rows = [{"prompt": "What is 2 + 3?", "response": "<think>2 + 3 = 5</think>5"}, {"prompt": "a", "response": "first\nthen\nAnswer: 7"},
            {"prompt": "b", "response": " 9 "}, {"prompt": "<|end|>", "response": "<|think|>x<|/think|>é💥\u2028next"}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    examples = read_examples(path)
    assert examples[0] == conversation("What is 2 + 3?", "2 + 3 = 5", "5")
    assert [parse_response_text(r["response"]) for r in rows] == [("2 + 3 = 5", "5"), ("first\nthen", "7"), ("", "9"), ("x", "é💥\u2028next")]
    assert decode(examples[3].ids) == "<|user|><|end|><|assistant|><|think|>x<|/think|>é💥\u2028next<|end|>" and examples[3].ids.count(END) == 1


def test_jsonl_lines_end_at_newlines_only(tmp_path):
    """JSON may hold U+2028, U+0085 and their like unescaped; they end a line for str.splitlines, but not in JSONL."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": "one\u2028two\x85three", "response": "4"}, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    assert read_examples(path) == [conversation("one\u2028two\x85three", "", "4")]


GOOD = b'{"prompt": "a", "response": "b"}\n'


@pytest.mark.parametrize("bad", [b"{", b"[1, 2]", b'"text"', b"12", b"null", b'{"prompt": "a"}', b'{"prompt": 3, "response": "b"}',
                                 b'{"prompt": "a", "response": ["b"]}', b'{"prompt": "\xff", "response": "b"}'], ids=ascii)
def test_a_bad_row_is_a_user_error_that_names_its_line(tmp_path, bad):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n" + GOOD + bad + b"\n" + GOOD)
    with pytest.raises(UserError, match=r"data\.jsonl, line 4\b"):
        read_examples(path)


def test_a_missing_or_empty_data_file_is_a_user_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    for name in ("none.jsonl", "empty.jsonl", "."):
        with pytest.raises(UserError):
            read_examples(tmp_path / name)

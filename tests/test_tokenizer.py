"""Byte-level BPE, the conversation format, and what cannot be forged."""

import random
import socket

import pytest
import regex

from nanoreason import tokenizer
from nanoreason.tasks import FAMILIES, LEVELS, STYLES, draw_problem, solve
from nanoreason.tokenizer import (
    ASSISTANT, END, END_THINK, PAD, PATTERN, SPECIALS, THINK, USER, VOCAB_SIZE, Response, decode,
    encode, encoding, learn_ranks, parse_response, render_prompt, render_response, save_ranks,
    step_ends,
)


def random_text(rng):
    """Up to 40 characters from all of Unicode but surrogates, the low and the odd ones often."""
    pools = [(0, 0x20), (0x20, 0x7F), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000),
             (0x1F300, 0x1FAFF), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(pools))) for _ in range(rng.randint(0, 40)))


def test_any_text_round_trips():
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(1000)]
    texts += ["".join(map(chr, range(0x400))), "👩‍👩‍👧 é é\r\n\t\0\x7f", "  12  +3 ", "\n\n\n", ""]
    texts += ["﷽" * 50, *SPECIALS]
    for text in texts:
        ids = encode(text)
        assert decode(ids) == text
        assert all(0 <= i < USER - 1 for i in ids)  # plain text never yields a special token


def test_digits_are_single_tokens_everywhere():
    for text in ("847", "8 47", "x = 847.50", "10% of 80 = 8", "1,692", "12345678901234567890"):
        ids = encode(text)
        spelled = [decode([i]) for i in ids]
        digits = [t for t in spelled if any(c.isdigit() for c in t)]
        assert digits == [c for c in text if c.isdigit()]


def test_the_vocabulary_is_512_and_gapless():
    assert encoding().n_vocab == VOCAB_SIZE == 512
    tokens = [encoding().decode_single_token_bytes(i) for i in range(VOCAB_SIZE)]
    assert len(set(tokens)) == 512
    assert sorted(t for t in tokens if len(t) == 1) == [bytes([b]) for b in range(256)]
    assert [PAD, USER, ASSISTANT, THINK, END_THINK, END] == [506, 507, 508, 509, 510, 511]
    assert decode([PAD, USER, ASSISTANT, THINK, END_THINK, END]) == "".join(SPECIALS)


def test_special_tokens_cannot_be_forged_by_text():
    for tag in SPECIALS:
        ids = render_prompt(f"hi {tag} there")
        assert [i for i in ids if i >= PAD] == [USER, ASSISTANT]
        ids = render_response(f"a{tag}b", f"c{tag}")
        assert [i for i in ids if i >= PAD] == [THINK, END_THINK, END]
        assert parse_response(ids).answer == f"c{tag}"


def test_the_worked_example_of_the_module():
    thinking = "10% of 80 = 8\n5% of 80 = 4\n8 + 4 = 12"
    ids = render_prompt("What is 15% of 80?") + render_response(thinking, "12")
    assert decode(ids) == ("<|user|>What is 15% of 80?<|assistant|><|think|>10% of 80 = 8\n"
                           "5% of 80 = 4\n8 + 4 = 12<|/think|>12<|end|>")
    response = parse_response(ids[ids.index(ASSISTANT) + 1 :])
    assert (response.answer, response.ended) == ("12", True)
    assert response.steps == ["10% of 80 = 8", "5% of 80 = 4", "8 + 4 = 12"]


def test_parse_examples_of_the_docstring():
    a = encode("a")
    text = encode("the answer is 12")
    parsed = parse_response([THINK, *a, END_THINK, *encode("12"), END])
    assert parsed == Response("a", "12", True)
    assert parse_response([THINK, *text, END]) == Response("the answer is 12", None, True)
    parsed = parse_response([THINK, END_THINK, *encode(" 12 "), END])
    assert parsed == Response("", "12", True)


def test_steps_end_at_the_line_break_or_at_the_closing_tag_as_in_the_docstring():
    parts = [encode(text) for text in ("1 + 1 = 2", "\n", "2 + 1 = 3")]
    ids = render_response("1 + 1 = 2\n2 + 1 = 3", "3")
    assert ids == [THINK, *sum(parts, []), END_THINK, *encode("3"), END]
    assert [len(part) for part in parts] == [5, 1, 5] and step_ends(ids) == [6, 12]


A = encode("a")
NEWLINE = encode("\n")
BLANK = encode(" ")
CUT_AND_BLANK = {  # {case: (ids, where the steps end, counted by hand)}
    "an empty think block": ([THINK, END_THINK, *A, END], []),
    "nothing": ([], []),
    "only the opening tag": ([THINK], []),
    "only a stop": ([END], []),
    "blank lines alone": ([THINK, *NEWLINE, *BLANK, *NEWLINE, *BLANK, END_THINK, *A, END], []),
    "blank lines between steps": (
        [THINK, *NEWLINE, *A, *NEWLINE, *BLANK, *NEWLINE, *NEWLINE, *A, END_THINK, *A, END],
        [3, 8]),
    "a line break before the closing tag": ([THINK, *A, *NEWLINE, END_THINK, *A, END], [2]),
    "cut within a step": ([THINK, *A, *NEWLINE, *A, *A], [2, 4]),
    "cut at a line break": ([THINK, *A, *NEWLINE], [2]),
    "cut in a blank": ([THINK, *A, *NEWLINE, *BLANK], [2]),
    "cut in the answer": ([THINK, *A, END_THINK, *A], [2]),
    "stopped while thinking": ([THINK, *A, *NEWLINE, *A, END], [2, 4]),
    "lines in the answer": ([THINK, *A, END_THINK, *A, *NEWLINE, *A, END], [2]),
    "lines after the stop": ([THINK, *A, END, *A, *NEWLINE, *A, END_THINK], [2]),
    "a think block never opened": ([*A, *NEWLINE, *A, END_THINK, *A, END], [1, 3]),
    "special tokens in the thinking": (
        [THINK, PAD, *NEWLINE, *A, USER, *NEWLINE, THINK, END_THINK, *A, END], [5]),
    "half a character": ([THINK, encode("é")[0], *NEWLINE, *A, END_THINK, *A, END], [2, 4]),
}


@pytest.mark.parametrize("name", CUT_AND_BLANK)
def test_steps_of_cut_and_blank_thinking_end_where_they_do(name):
    ids, ends = CUT_AND_BLANK[name]
    assert step_ends(ids) == ends
    assert len(ends) == len(parse_response(ids).steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_a_worked_solution_has_its_end_wherever_it_is_cut(family):
    rng = random.Random(7)
    for level in LEVELS:
        for style in STYLES:
            problem = draw_problem(family, level, rng)
            lines = solve(problem, style, rng)
            ids = render_response("\n".join(lines), problem.answer)
            ends = []
            at = 0
            for line in lines:  # a step ends with the token after its text
                at += len(encode(line)) + 1
                ends.append(at)
            assert step_ends(ids) == ends
            for cut in rng.sample(range(len(ids) + 1), 4):
                assert len(step_ends(ids[:cut])) == len(parse_response(ids[:cut]).steps)


def test_any_ids_have_as_many_step_ends_as_steps_at_places_that_follow_one_another():
    rng = random.Random(1)
    odd = [*NEWLINE * 4, *BLANK, 0x80, 0xC3, 0xE2, PAD, THINK, END_THINK, END, USER]
    for _ in range(1500):
        length = rng.randint(0, 30)
        ids = [rng.choice(odd) if rng.random() < 0.4 else rng.randrange(PAD) for _ in range(length)]
        ends = step_ends(ids)
        assert len(ends) == len(parse_response(ids).steps)
        assert ends == sorted(set(ends)) and all(0 <= end < len(ids) for end in ends)


TWELVE = encode("12")
MALFORMED = {
    "answer in the thinking only": [THINK, *TWELVE, END],
    "no stop": [THINK, END_THINK, *TWELVE],
    "no think block": [*TWELVE, END],
    "think block never opened": [END_THINK, *TWELVE, END],
    "text before the think block": [*TWELVE, THINK, END_THINK, *TWELVE, END],
    "two think blocks": [THINK, END_THINK, THINK, END_THINK, *TWELVE, END],
    "think block reopened in the answer": [THINK, END_THINK, *TWELVE, THINK, END],
    "nested think": [THINK, THINK, *TWELVE, END_THINK, END_THINK, *TWELVE, END],
    "closed twice": [THINK, END_THINK, END_THINK, *TWELVE, END],
    "a user turn in the answer": [THINK, END_THINK, *TWELVE, USER, *TWELVE, END],
    "padding in the answer": [THINK, END_THINK, PAD, *TWELVE, END],
    "padding in the thinking": [THINK, PAD, END_THINK, *TWELVE, END],
    "stop before the end of the thinking": [THINK, END, END_THINK, *TWELVE, END],
    "tags in ordinary characters": [*encode("<|think|><|/think|>12<|end|>")],
    "close tag in ordinary characters": [THINK, *encode("<|/think|>12"), END],
    "nothing": [],
    "only a stop": [END],
    "an empty answer": [THINK, *TWELVE, END_THINK, END],
    "a blank answer": [THINK, *TWELVE, END_THINK, *encode(" \n"), END],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_response_has_no_answer(name):
    response = parse_response(MALFORMED[name])
    assert response.answer is None
    assert response.ended == (END in MALFORMED[name])


def test_what_follows_the_stop_token_counts_for_nothing():
    ids = [THINK, *encode("a"), END_THINK, *TWELVE, END]
    more = [THINK, *encode("15"), END_THINK, *encode("15"), END, PAD]
    assert parse_response(ids + more) == parse_response(ids)


def test_bytes_that_are_no_text_become_the_replacement_character():
    assert decode([0xFF]) == "�" and decode(encode("é")[:1]) in ("�", "é")


def test_learn_ranks_on_an_example_worked_by_hand():
    """'abab ab' has the pieces 'abab' and ' ab'.

    Pair (a, b) occurs three times, then (ab, ab) and (' ', ab) once each: ' ' sorts first.
    """
    ranks = learn_ranks(["abab ab"], 259)
    learned = {token: rank for token, rank in ranks.items() if rank >= 256}
    assert learned == {b"ab": 256, b" ab": 257, b"abab": 258}
    with pytest.raises(ValueError):
        learn_ranks(["abab ab"], 260)


def brute_force_merges(texts, count):
    """BPE on a list of pieces, each a list of tokens: slow, and written apart from the real one."""
    pieces = [[bytes([b]) for b in p.encode()] for t in texts for p in regex.findall(PATTERN, t)]
    learned = []
    for _ in range(count):
        tally = {}
        for piece in pieces:
            for i in range(1, len(piece)):
                pair = piece[i - 1], piece[i]
                tally[pair] = tally.get(pair, 0) + 1
        most = max(tally.values())
        pair = sorted(p for p in tally if tally[p] == most)[0]
        learned.append(pair[0] + pair[1])
        for n, piece in enumerate(pieces):
            merged = []
            rest = piece
            while rest:
                used = 2 if len(rest) > 1 and (rest[0], rest[1]) == pair else 1
                merged.append(b"".join(rest[:used]))
                rest = rest[used:]
            pieces[n] = merged
    return learned


def test_learn_ranks_agrees_with_brute_force_and_is_deterministic():
    texts = ["aaaa aaa banana bananas", "10% of 250 = 25, so Anna and Hanna find banana trees",
             "ééé naïve ab abab ababab"]
    ranks = learn_ranks(texts, 290)
    by_rank = sorted(ranks, key=lambda token: ranks[token])
    assert by_rank[256:] == brute_force_merges(texts, 34)
    assert list(learn_ranks(list(texts), 290).items()) == list(ranks.items())
    assert sorted(ranks.values()) == list(range(290))


def test_merges_never_cross_a_piece():
    ranks = learn_ranks(["a1b 12 12 12 x+y x+y 5 = 5 of 3 of 3\n\n"] * 5, 263)
    learned = [token.decode() for token in ranks if len(token) > 1]
    assert learned and not any(c.isdigit() for t in learned for c in t)
    assert not any("\n" in t for t in learned)


def test_shipped_ranks_load_without_a_network(monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("the tokenizer reached for the network")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    encoding.cache_clear()
    try:
        assert decode(encode("What is 15% of 80?")) == "What is 15% of 80?"
        # words are tokens: the ranks are ours, not 256 bytes
        assert len(encode("What is 15% of 80?")) <= 9
    finally:
        encoding.cache_clear()


def test_saving_the_ranks_in_use_writes_the_shipped_file_again(tmp_path):
    ranks = dict(encoding()._mergeable_ranks)
    save_ranks(ranks, tmp_path / "ranks")
    assert (tmp_path / "ranks").read_bytes() == tokenizer.RANKS.read_bytes()

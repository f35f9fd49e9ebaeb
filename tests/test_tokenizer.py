"""Byte-level BPE, the conversation format, and what cannot be forged."""

import copy
import json
import pickle
import random
import socket

import pytest
import regex
from conftest import (
    ASSISTANT, END, END_THINK, PAD, THINK, USER, decode, encode, parse_response, render_prompt,
    render_response, step_ends, tokenizer, toy_tokenizer,
)

from nanoreason.flags import UserError
from nanoreason.tasks import FAMILIES, LEVELS, STYLES, draw_problem, solve
from nanoreason.tokenizer import (
    PATTERN, RANKS, SPECIALS, Response, Tokenizer, learn_ranks, read_ranks, save_ranks,
    shipped_tokenizer,
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
    texts += ["﷽" * 50, *SPECIALS.values()]
    for text in texts:
        ids = encode(text)
        assert decode(ids) == text
        assert all(0 <= i < PAD for i in ids)  # plain text never yields a special token


def test_digits_are_single_tokens_everywhere():
    for text in ("847", "8 47", "x = 847.50", "10% of 80 = 8", "1,692", "12345678901234567890"):
        ids = encode(text)
        spelled = [decode([i]) for i in ids]
        digits = [t for t in spelled if any(c.isdigit() for c in t)]
        assert digits == [c for c in text if c.isdigit()]


def test_the_vocabulary_is_512_and_gapless():
    assert tokenizer.vocab_size == tokenizer.encoding.n_vocab == 512
    tokens = [tokenizer.encoding.decode_single_token_bytes(i) for i in range(512)]
    assert len(set(tokens)) == 512
    assert sorted(t for t in tokens if len(t) == 1) == [bytes([b]) for b in range(256)]
    assert [PAD, USER, ASSISTANT, THINK, END_THINK, END] == [506, 507, 508, 509, 510, 511]
    assert decode([PAD, USER, ASSISTANT, THINK, END_THINK, END]) == "".join(SPECIALS.values())


def test_special_tokens_cannot_be_forged_by_text():
    for tag in SPECIALS.values():
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
    anew = shipped_tokenizer.__wrapped__()  # not the cached one
    ids = anew.encode("What is 15% of 80?")
    assert anew is not tokenizer and anew.decode(ids) == "What is 15% of 80?"
    assert len(ids) <= 9  # words are tokens: the ranks are ours, not 256 bytes


def test_saving_the_ranks_in_use_writes_the_shipped_file_again(tmp_path):
    save_ranks(read_ranks(tokenizer.ranks), tmp_path / "ranks")
    assert (tmp_path / "ranks").read_bytes() == RANKS.read_bytes()


# An object that travels

TOY_TEXTS = ["What is 12 + 7?", "12 + 7 = 19", "Mal sehen: so, so."]


def test_another_tokenizer_has_words_and_ids_of_its_own():
    toy = toy_tokenizer()
    assert toy.vocab_size < 300 and toy.end == 260 and toy.pad == 261
    assert toy.specials.isdisjoint(toy.encode("".join(map(chr, range(0x400)))))
    for text in TOY_TEXTS:
        assert toy.decode(toy.encode(text)) == text
        assert len(toy.encode(text)) > len(encode(text))
    ids = toy.render_prompt("so") + toy.render_response("1 + 1 = 2\n3", "3")
    assert toy.decode(ids) == "<user>so<bot><thought>1 + 1 = 2\n3</thought>3<eos>"
    response = ids[ids.index(toy.assistant) + 1 :]
    assert toy.parse_response(response) == Response("1 + 1 = 2\n3", "3", True)
    assert [response[i] for i in toy.step_ends(response)] == [toy.newline, toy.end_think]
    assert toy.decode([toy.newline]) == "\n"
    assert parse_response(response).answer is None  # to the other tokenizer these ids say nothing


def test_a_special_id_is_told_from_text():
    for t in (tokenizer, toy_tokenizer()):
        ids = [t.pad, t.user, t.assistant, t.think, t.end_think, t.end]
        assert sorted(ids) == sorted(t.specials) and len(t.specials) == 6
        assert max(ids) < t.vocab_size and t.specials.isdisjoint(t.encode("<|end|><eos>"))


@pytest.mark.parametrize("make", [shipped_tokenizer, toy_tokenizer])
def test_a_tokenizer_comes_back_from_its_description_a_pickle_and_a_copy(make):
    one = make()
    description = one.describe()
    assert json.loads(json.dumps(description)) == description  # plain values
    for other in (
        Tokenizer.from_description(description),
        pickle.loads(pickle.dumps(one)),
        copy.deepcopy(one),
        copy.copy(one),
    ):
        assert other == one and hash(other) == hash(one) and other.describe() == description
        assert other.specials == one.specials and other.vocab_size == one.vocab_size
        for text in TOY_TEXTS:
            ids = one.render_prompt(text) + one.render_response(text, text)
            assert other.render_prompt(text) + other.render_response(text, text) == ids
            assert other.decode(ids) == one.decode(ids)
            assert other.step_ends(ids) == one.step_ends(ids)
    # a copied model shares its tokenizer
    assert copy.deepcopy(one) is copy.copy(one) is one


def test_the_order_in_which_roles_are_given_says_nothing():
    toy = toy_tokenizer()
    description = toy.describe()
    backwards = dict(reversed(description["specials"].items()))
    other = Tokenizer.from_description(description | {"specials": backwards})
    assert other == toy and (other.end, other.pad) == (toy.end, toy.pad)
    assert Tokenizer.from_description(other.describe()).end == toy.end


def test_tokenizers_are_equal_where_everything_is():
    toy = toy_tokenizer()
    assert toy == toy_tokenizer() and toy != tokenizer and toy != 3
    description = toy.describe()
    swapped = dict(description["specials"])
    swapped["pad"], swapped["end"] = swapped["end"], swapped["pad"]
    for change in (
        dict(name="other"),
        dict(pattern="." + toy.pattern),
        dict(specials=swapped),
        dict(ranks=toy.ranks.replace(" 259", " 300")),
    ):
        assert Tokenizer.from_description(description | change) != toy


def damaged_descriptions():
    """{what is wrong: description}."""
    good = toy_tokenizer().describe()
    lines = good["ranks"].splitlines(keepends=True)
    damaged = {
        "nothing": {},
        "a list": list(good),
        "text": "nanoreason-512",
        "no value": None,
        "one entry too many": good | {"more": 1},
        "a pattern that is none": good | {"pattern": "("},
        "a pattern that is no text": good | {"pattern": 3},
        "ranks cut within a line": good | {"ranks": good["ranks"][:-2]},
        "ranks that are no numbers": good | {"ranks": good["ranks"].replace(" 5", " five")},
        "ranks in no base64": good | {"ranks": good["ranks"].replace("==", "=")},
        "ranks that are no text": good | {"ranks": 3},
        "no ranks": good | {"ranks": ""},
        "a byte without a rank": good | {"ranks": "".join(lines[:65] + lines[66:])},
        "no line break": good | {"ranks": "".join(lines[:10] + lines[11:])},
        "a rank twice": good | {"ranks": good["ranks"].replace(" 259", " 258")},
        "a token twice": good | {"ranks": good["ranks"] + lines[65].split()[0] + " 299\n"},
        "no special tokens": good | {"specials": {}},
        "special tokens in a list": good | {"specials": list(good["specials"])},
    }
    damaged |= {f"no {key}": {k: v for k, v in good.items() if k != key} for key in good}
    for what, wrong in {
        "the id of text": ["<eos>", 65],
        "the id of another": ["<eos>", good["specials"]["pad"][1]],
        "the text of another": [good["specials"]["pad"][0], 270],
        "a negative id": ["<eos>", -1],
        "an id that is text": ["<eos>", "260"],
        "no id": ["<eos>"],
        "a text that is none": [7, 260],
        "nothing": None,
    }.items():
        damaged[f"an end with {what}"] = good | {"specials": good["specials"] | {"end": wrong}}
    rest = {role: value for role, value in good["specials"].items() if role != "end_think"}
    damaged["a role without a token"] = good | {"specials": rest}
    return damaged


@pytest.mark.parametrize("name", damaged_descriptions())
def test_a_damaged_description_is_refused(name):
    with pytest.raises(UserError, match="tokenizer"):
        Tokenizer.from_description(damaged_descriptions()[name])

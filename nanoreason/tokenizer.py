"""512 tokens: a byte-level BPE that tiktoken runs, six special tokens, and the text format of a conversation.

    <|user|>What is 15% of 80?<|assistant|><|think|>10% of 80 = 8        the prompt ends with <|assistant|>
    5% of 80 = 4                                                          thinking: one step a line
    8 + 4 = 12<|/think|>12<|end|>                                         then the answer, then the stop token

An empty think block, <|think|><|/think|>, answers at once. Every digit is a token of its own, so that 847 always looks
like 8, 4, 7 and never like one opaque symbol. The ranks in ranks.tiktoken were learned by `learn_ranks` from this
project's own corpus (`python -m nanoreason.corpus --learn-ranks`); any UTF-8 text still round-trips, byte by byte if need be.
"""

import base64
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import tiktoken

VOCAB_SIZE = 512
SPECIALS = ("<|pad|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>", "<|end|>")
PAD, USER, ASSISTANT, THINK, END_THINK, END = range(VOCAB_SIZE - len(SPECIALS), VOCAB_SIZE)
MAX_RESPONSE = 20_000  # ids of a response that are worth reading
RANKS = Path(__file__).with_name("ranks.tiktoken")

# Pieces that merges may not cross: one digit; an operator with the blanks around it; a word with the blank or mark before it
# (and the blank after it, when a digit follows); anything else. Together they cover every character.
PATTERN = r"[0-9]| ?[-+*×/=<>] ?|[.,%?]? ?\p{L}+(?: (?=[0-9]))?|\n| ?[^\s\p{L}0-9]|\s|[\s\S]"


@cache
def encoding():
    """The tiktoken Encoding; its ranks are read from the file beside this one, never downloaded."""
    ranks = {}
    for line in RANKS.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding("nanoreason-512", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={s: VOCAB_SIZE - len(SPECIALS) + i for i, s in enumerate(SPECIALS)})


def encode(text):
    """Token ids of plain text. '<|end|>' written by a user becomes ordinary characters: special tokens cannot be forged."""
    return encoding().encode_ordinary(text)


def decode(ids):
    """Text of token ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
    return encoding().decode(list(ids), errors="replace")


def render_prompt(question):
    """Ids up to and including <|assistant|>: what the model is given."""
    return [USER, *encode(question), ASSISTANT]


def render_response(thinking, answer):
    """Ids from <|think|> to <|end|>: what the model should say. thinking: '' answers at once."""
    return [THINK, *encode(thinking), END_THINK, *encode(answer), END]


@dataclass(frozen=True)
class Response:
    """A response taken apart. `answer` is None unless the format holds: one think block first, then an answer, then the stop."""

    thinking: str
    answer: str | None
    ended: bool

    @property
    def steps(self):
        return [line for line in self.thinking.split("\n") if line.strip()]


def parse_response(ids):
    """Take a response apart by its special *tokens*, so that tags spelled in ordinary characters count for nothing.

    [THINK, 'a', END_THINK, '12', END]  ->  Response(thinking='a', answer='12', ended=True)
    [THINK, 'the answer is 12', END]    ->  answer None: it stands in the thinking only

    Ids after the first MAX_RESPONSE are not read.
    """
    ids = [int(i) for i in islice(ids, MAX_RESPONSE)]
    ended = END in ids
    body = ids[: ids.index(END)] if ended else ids
    if END_THINK in body:
        cut = body.index(END_THINK)
        thought, said = body[:cut], body[cut + 1 :]
    else:
        thought, said = body, None
    first = VOCAB_SIZE - len(SPECIALS)
    well_formed = ended and said is not None and thought[:1] == [THINK] and not any(i >= first for i in thought[1:] + said)
    thinking = decode(i for i in thought if i < first)
    return Response(thinking, (decode(said).strip() or None) if well_formed else None, ended)


def step_ends(ids):
    """Indices of the tokens that end the steps of a response: the line break after each, or what closes the thinking, or the last token.
    As many as `parse_response(ids).steps`.

    <|think|> 1 + 1 = 2 \\n 2 + 1 = 3 <|/think|> 3 <|end|>   ->   [6, 12], the line break and the closing tag, where each character is a token
    """
    ids = ids[:MAX_RESPONSE]
    (newline,), ends, line = encode("\n"), [], []
    for index, token in enumerate(ids):
        if token in (newline, END_THINK, END):
            if decode(line).strip():
                ends.append(index)
            line = []
            if token != newline:
                return ends
        elif token < VOCAB_SIZE - len(SPECIALS):
            line.append(token)
    return ends + [len(ids) - 1] if decode(line).strip() else ends


def learn_ranks(texts, size=VOCAB_SIZE - len(SPECIALS)):
    """Learn byte-pair merges (Sennrich et al. 1508.07909) on the pieces of `texts`; returns {token bytes: rank}.

    The 256 bytes come first; then, again and again, the most frequent neighbouring pair becomes a token of its own.
    Ties go to the pair that sorts first, so the same texts give the same ranks.
    """
    import regex  # tiktoken's own dependency, needed only here

    pieces = Counter(piece for text in texts for piece in regex.findall(PATTERN, text))
    words = [[[bytes([b]) for b in piece.encode()], count] for piece, count in pieces.items()]
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < size:
        pairs = Counter()
        for parts, count in words:
            for pair in zip(parts, parts[1:]):
                pairs[pair] += count
        if not pairs:
            raise ValueError(f"these texts hold only {len(ranks)} tokens; {size} were asked for")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        for word in words:
            parts, i = word[0], 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = [parts[i] + parts[i + 1]]
                i += 1
    return ranks


def save_ranks(ranks, path=RANKS):
    """Write ranks in tiktoken's own format: a base64 token and its rank a line."""
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in sorted(ranks.items(), key=lambda item: item[1])]
    Path(path).write_bytes(b"\n".join(lines) + b"\n")

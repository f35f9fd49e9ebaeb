"""512 tokens: a byte-level BPE that tiktoken runs, six special tokens, and the conversation format.

    <|user|>What is 15% of 80?<|assistant|><|think|>10% of 80 = 8
    5% of 80 = 4
    8 + 4 = 12<|/think|>12<|end|>

The prompt ends with <|assistant|>. The response is the thinking, one step per line, then the
answer, then the stop token. An empty think block, <|think|><|/think|>, answers at once. Every digit
is a token of its own, so that 847 always looks like 8, 4, 7 and never like one opaque symbol.

The ranks in ranks.tiktoken were learned by `learn_ranks` from this project's own corpus
(`python -m nanoreason.corpus --learn-ranks`). Any UTF-8 text still round-trips, byte by byte if
need be.
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
FIRST_SPECIAL = VOCAB_SIZE - len(SPECIALS)  # ids below are text
PAD, USER, ASSISTANT, THINK, END_THINK, END = range(FIRST_SPECIAL, VOCAB_SIZE)
MAX_RESPONSE = 20_000  # ids of a response that are worth reading
RANKS = Path(__file__).with_name("ranks.tiktoken")

# Pieces that merges may not cross: one digit; an operator with the blanks around it; a word with
# the blank or mark before it (and the blank after it, when a digit follows); anything else.
# Together they cover every character.
PATTERN = r"[0-9]| ?[-+*×/=<>] ?|[.,%?]? ?\p{L}+(?: (?=[0-9]))?|\n| ?[^\s\p{L}0-9]|\s|[\s\S]"


@cache
def encoding():
    """The tiktoken Encoding. Its ranks are read from the file beside this one, never downloaded."""
    ranks = {}
    for line in RANKS.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    specials = {text: FIRST_SPECIAL + i for i, text in enumerate(SPECIALS)}
    return tiktoken.Encoding("nanoreason-512", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens=specials)


def encode(text):
    """Token ids of plain text, a list.

    '<|end|>' written by a user becomes ordinary characters: special tokens cannot be forged.
    """
    return encoding().encode_ordinary(text)


def decode(ids):
    """Text of token ids, special tokens spelled out. Bytes that are no UTF-8 become U+FFFD."""
    return encoding().decode(list(ids), errors="replace")


def render_prompt(question):
    """Ids up to and including <|assistant|>: what the model is given."""
    return [USER, *encode(question), ASSISTANT]


def render_response(thinking, answer):
    """Ids from <|think|> to <|end|>: what the model should say. thinking: '' answers at once."""
    return [THINK, *encode(thinking), END_THINK, *encode(answer), END]


@dataclass(frozen=True)
class Response:
    """A response taken apart.

    answer: None unless the format holds: one think block first, then an answer, then the stop.
    ended: whether the stop token was reached.
    """

    thinking: str
    answer: str | None
    ended: bool

    @property
    def steps(self):
        """Lines of the thinking that hold text."""
        return [line for line in self.thinking.split("\n") if line.strip()]


def parse_response(ids):
    """Take a response apart by its special *tokens*: tags in ordinary characters count for nothing.

    [THINK, 'a', END_THINK, '12', END]  ->  Response(thinking='a', answer='12', ended=True)
    [THINK, 'the answer is 12', END]    ->  answer None: it stands in the thinking only

    Ids after the first MAX_RESPONSE are not read.
    """
    ids = [int(i) for i in islice(ids, MAX_RESPONSE)]
    ended = END in ids
    body = ids[: ids.index(END)] if ended else ids
    if END_THINK in body:
        cut = body.index(END_THINK)
        thought = body[:cut]
        said = body[cut + 1 :]
    else:
        thought = body
        said = None
    thinking = decode(i for i in thought if i < FIRST_SPECIAL)
    answer = None
    if ended and said is not None and thought[:1] == [THINK]:
        if all(i < FIRST_SPECIAL for i in thought[1:] + said):  # no further special token
            answer = decode(said).strip() or None
    return Response(thinking, answer, ended)


def step_ends(ids):
    """Indices of the tokens that end the steps of a response.

    They are as many as the steps that `parse_response` finds. A step ends with the line break after
    it, with the token that closes the thinking, or, in a response that was cut, with the last
    token. Each digit and operator here is one token:

    <|think|> 1 + 1 = 2 \\n 2 + 1 = 3 <|/think|> 3 <|end|>   ->   [6, 12]
    """
    ids = ids[:MAX_RESPONSE]
    (newline,) = encode("\n")
    ends = []
    line = []
    for index, token in enumerate(ids):
        if token in (newline, END_THINK, END):
            if decode(line).strip():  # blank lines are no steps
                ends.append(index)
            line = []
            if token != newline:
                return ends
        elif token < FIRST_SPECIAL:
            line.append(token)
    return ends + [len(ids) - 1] if decode(line).strip() else ends


def learn_ranks(texts, size=FIRST_SPECIAL):
    """Learn byte-pair merges (Sennrich et al. 1508.07909) on the pieces of `texts`.

    Returns {token bytes: rank}, `size` of them. The 256 bytes come first; then, again and again,
    the most frequent neighbouring pair becomes a token of its own. Ties go to the pair that sorts
    first, so the same texts give the same ranks. Raises ValueError when the texts hold too little.
    """
    import regex  # tiktoken's own dependency, needed only here

    pieces = Counter(piece for text in texts for piece in regex.findall(PATTERN, text))
    words = [([bytes([b]) for b in piece.encode()], count) for piece, count in pieces.items()]
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
        for parts, _ in words:
            merge(parts, best)
    return ranks


def merge(parts, pair):
    """Join every occurrence of `pair` in the list `parts`, in place, from the left."""
    i = 0
    while i < len(parts) - 1:
        if (parts[i], parts[i + 1]) == pair:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        i += 1


def save_ranks(ranks, path=RANKS):
    """Write ranks in tiktoken's own format: a base64 token and its rank per line."""
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in by_rank]
    Path(path).write_bytes(b"\n".join(lines) + b"\n")

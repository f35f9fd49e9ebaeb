"""A byte-level BPE that tiktoken runs, special tokens by role, and the conversation format.

    <|user|>What is 15% of 80?<|assistant|><|think|>10% of 80 = 8
    5% of 80 = 4
    8 + 4 = 12<|/think|>12<|end|>

The prompt ends with <|assistant|>. The response is the thinking, one step per line, then the
answer, then the stop token. An empty think block, <|think|><|/think|>, answers at once.

A Tokenizer travels with the model whose ids it explains, and with its checkpoints. The shipped one
has 512 tokens. Every digit is a token of its own, so that 847 always looks like 8, 4, 7 and never
like one opaque symbol. The ranks in ranks.tiktoken were learned by `learn_ranks` from an earlier
state of this project's own corpus (`python -m nanoreason.corpus --learn-ranks` learns them anew: on
today's it would save 1 token in 100). Any UTF-8 text still round-trips, byte by byte if need be.
"""

import base64
import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import tiktoken

from nanoreason.flags import UserError

RANKS = Path(__file__).with_name("ranks.tiktoken")
MAX_RESPONSE = 20_000  # ids of a response that are worth reading

# Pieces that merges may not cross: one digit; an operator with the blanks around it; a word with
# the blank or mark before it (and the blank after it, when a digit follows); anything else.
# Together they cover every character.
PATTERN = r"[0-9]| ?[-+*×/=<>] ?|[.,%?]? ?\p{L}+(?: (?=[0-9]))?|\n| ?[^\s\p{L}0-9]|\s|[\s\S]"
SPECIALS = {  # the special token of each role; their ids follow those of text, in this order
    "pad": "<|pad|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
    "think": "<|think|>",
    "end_think": "<|/think|>",
    "end": "<|end|>",
}
TEXT_TOKENS = 506  # tokens of the shipped tokenizer that are no special ones


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


class Tokenizer:
    """Text to ids and back, and the conversation format in ids. It never changes.

    name: for people; pattern: regular expression of the pieces that merges may not cross; specials:
    {role: [text, id]} for the roles of SPECIALS; ranks: text in tiktoken's own format, a base64
    token and its rank per line.

    pad, user, assistant, think, end_think, end: ids of the special tokens; specials: all of them;
    empty_thinking: those of an empty think block. newline: id of the line break that ends a step.
    vocab_size: ids are below it. Raises ValueError for ranks that leave a byte without a token, or
    two tokens with one id.
    """

    def __init__(self, name, pattern, specials, ranks):
        self.name = name
        self.pattern = pattern
        self.roles = {role: list(specials[role]) for role in SPECIALS}
        self.ranks = ranks
        numbers = read_ranks(ranks)
        specials = dict(self.roles.values())
        ids = list(specials.values())
        if len({*numbers.values(), *ids}) < len(numbers) + len(SPECIALS):
            raise ValueError("two tokens have the same id")
        if not all(bytes([b]) in numbers for b in range(256)):
            raise ValueError("not every byte has a token")
        self.encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=numbers, special_tokens=specials
        )
        self.pad, self.user, self.assistant, self.think, self.end_think, self.end = ids
        self.specials = frozenset(ids)
        self.empty_thinking = (self.think, self.end_think)
        (self.newline,) = self.encode("\n")
        self.vocab_size = self.encoding.n_vocab

    # Text and ids

    def encode(self, text):
        """Token ids of plain text, a list.

        '<|end|>' written by a user becomes ordinary characters: special tokens cannot be forged.
        """
        return self.encoding.encode_ordinary(text)

    def decode(self, ids):
        """Text of token ids, special tokens spelled out.

        Bytes that are no UTF-8 become U+FFFD, and so do ids without a token, which a network with
        more ids may sample.
        """
        ids = list(ids)
        try:
            return self.encoding.decode(ids, errors="replace")
        except KeyError:
            return b"".join(map(self._bytes, ids)).decode(errors="replace")

    def _bytes(self, number):
        """What stands for one id."""
        try:
            return self.encoding.decode_single_token_bytes(number)
        except KeyError:
            return "\ufffd".encode()

    # The conversation format

    def render_prompt(self, question):
        """Ids up to and including <|assistant|>: what the model is given."""
        return [self.user, *self.encode(question), self.assistant]

    def render_response(self, thinking, answer):
        """Ids from <|think|> to <|end|>: what the model should say. thinking: '' answers at
        once."""
        return [
            self.think, *self.encode(thinking), self.end_think, *self.encode(answer), self.end
        ]

    def parse_response(self, ids):
        """Take a response apart by its special *tokens*: tags in ordinary characters count for
        nothing.

            <|think|> a <|/think|> 12 <|end|>     ->  thinking 'a', answer '12', ended
            <|think|> the answer is 12 <|end|>    ->  answer None: it stands in the thinking only

        Ids after the first MAX_RESPONSE are not read.
        """
        ids = [int(i) for i in islice(ids, MAX_RESPONSE)]
        ended = self.end in ids
        body = ids[: ids.index(self.end)] if ended else ids
        if self.end_think in body:
            cut = body.index(self.end_think)
            thought = body[:cut]
            said = body[cut + 1 :]
        else:
            thought = body
            said = None
        thinking = self.decode(i for i in thought if i not in self.specials)
        answer = None
        if ended and said is not None and thought[:1] == [self.think]:
            if self.specials.isdisjoint(thought[1:] + said):  # no further special token
                answer = self.decode(said).strip() or None
        return Response(thinking, answer, ended)

    def step_ends(self, ids):
        """Indices of the tokens that end the steps of a response.

        They are as many as the steps that `parse_response` finds. A step ends with the line break
        after it, with the token that closes the thinking, or, in a response that was cut, with the
        last token. Each digit and operator here is one token:

        <|think|> 1 + 1 = 2 \\n 2 + 1 = 3 <|/think|> 3 <|end|>   ->   [6, 12]
        """
        ids = ids[:MAX_RESPONSE]
        ends = []
        line = []
        for index, token in enumerate(ids):
            if token in (self.newline, self.end_think, self.end):
                if self.decode(line).strip():  # blank lines are no steps
                    ends.append(index)
                line = []
                if token != self.newline:
                    return ends
            elif token not in self.specials:
                line.append(token)
        return ends + [len(ids) - 1] if self.decode(line).strip() else ends

    # Checkpoints, copies, other processes

    def describe(self):
        """Plain values that say all about it, for checkpoints."""
        return dict(
            name=self.name, pattern=self.pattern, specials=self.roles, ranks=self.ranks
        )

    @classmethod
    def from_description(cls, description):
        """The tokenizer of `describe`. Raises UserError where the description is damaged."""
        try:
            return cls(**description)
        except Exception:  # of many kinds, tiktoken's own among them
            raise UserError("the description of a tokenizer is damaged") from None

    @property
    def fingerprint(self):
        """16 hex digits of the ranks."""
        return hashlib.sha256(self.ranks.encode()).hexdigest()[:16]

    def __eq__(self, other):
        return isinstance(other, Tokenizer) and self.describe() == other.describe()

    def __hash__(self):
        return hash((self.name, self.fingerprint))

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self  # a copied model shares it

    def __reduce__(self):
        return Tokenizer.from_description, (self.describe(),)


@cache
def shipped_tokenizer():
    """The tokenizer of 512 tokens. Its ranks are read from the file beside this one, never
    downloaded."""
    specials = {}
    for number, (role, text) in enumerate(SPECIALS.items(), TEXT_TOKENS):
        specials[role] = [text, number]
    return Tokenizer("nanoreason-512", PATTERN, specials, RANKS.read_text("ascii"))


# Ranks: learned, written, read


def read_ranks(text):
    """{token bytes: rank} of tiktoken's own format. Raises ValueError where it is damaged."""
    ranks = {}
    lines = text.splitlines()
    for line in lines:
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    if len(ranks) < len(lines):
        raise ValueError("a token stands twice in the ranks")
    return ranks


def save_ranks(ranks, path=RANKS):
    """Write ranks in tiktoken's own format: a base64 token and its rank per line."""
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in by_rank]
    Path(path).write_bytes(b"\n".join(lines) + b"\n")


def learn_ranks(texts, size=TEXT_TOKENS):
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

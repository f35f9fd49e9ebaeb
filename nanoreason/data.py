"""Token rows from documents: packing, targets, micro-batches, corpus files, batches by rank.

Packing puts whole documents side by side into rows of T tokens, so that hardly anything is
padding; `doc_start` keeps attention inside each. Worked example, T = 6: one document of three ids
whose first is its prompt (prompt_len 1), and one of two ids with no prompt:

    examples    [7 8 9] prompt_len 1      [5 6] prompt_len 0
    tokens       7  8  9  5  6  0         padding may have any id: nothing reads it
    targets      8  9  .  6  .  .         the next token of the same document; '.' is IGNORE
    doc_start    0  0  0  3  3  5

Token 7 is the prompt's last, so it predicts 8, the first token of the response. The last token of
a response (the stop token) is a target like any other, or the model would never learn to stop.
"""

import collections
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nanoreason.attention import Documents

IGNORE = -100  # torch's own ignore_index
SHORTEST = 3  # a row with room for fewer tokens than this takes no further document


@dataclass(frozen=True)
class Example:
    """One training document, a list of ids.

    prompt_len: ids before it are the question, which supervised stages do not learn to say.
    kind: what it is about, 'chain level 3', so that what is left out can be named; '' for the rest.
    """

    ids: list
    prompt_len: int
    kind: str = ""


@dataclass(frozen=True)
class Rows:
    """N packed rows of T tokens.

    tokens: (N, T) int16, or int32 where ids or T need it, and so are the next two.
    targets: (N, T), IGNORE where nothing is learned.
    doc_start: (N, T), the index in its row at which each token's document starts.
    owner: (N, T) int32, the index of the example that a token belongs to, -1 for padding; None
        for rows from a file.
    real: tokens that are no padding.
    skipped: documents longer than T, which were left out.
    kinds: {kind of document: (how many were left out, how many there were)}.
    """

    tokens: np.ndarray
    targets: np.ndarray
    doc_start: np.ndarray
    owner: np.ndarray | None
    real: int
    skipped: int
    kinds: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.tokens)

    @property
    def real_share(self):
        """Share of the N*T tokens that are no padding."""
        return self.real / max(1, self.tokens.size)

    def batch(self, index, device):
        """Tensors of the rows in `index`: tokens, targets (B, T) int64, doc_start (B, T) int32."""

        def to_tensor(array, dtype):
            return torch.from_numpy(np.array(array[index])).to(device, dtype)

        tokens = to_tensor(self.tokens, torch.long)
        targets = to_tensor(self.targets, torch.long)
        doc_start = to_tensor(self.doc_start, torch.int32)
        return tokens, targets, doc_start


def pack(examples, T, window=256):
    """Pack Examples into Rows of T tokens, each document whole.

    window: rows kept open; more fills better and takes longer. Documents longer than T are left
    out and counted in `skipped`.
    """
    rows, skipped = assign_rows([len(e.ids) for e in examples], T, window)
    largest = max((max(e.ids, default=0) for e in examples), default=0)
    dtype = np.int16 if max(largest, T) <= np.iinfo(np.int16).max else np.int32
    tokens = np.zeros((len(rows), T), dtype=dtype)
    targets = np.full((len(rows), T), IGNORE, dtype=dtype)
    doc_start = np.tile(np.arange(T, dtype=dtype), (len(rows), 1))  # padding sees only itself
    owner = np.full((len(rows), T), -1, dtype=np.int32)
    for r, indices in enumerate(rows):
        start = 0
        for index in indices:
            example = examples[index]
            end = start + len(example.ids)
            owner[r, start:end] = index
            tokens[r, start:end] = example.ids
            doc_start[r, start:end] = start
            # the prompt's last token is the first that predicts something
            first = start + max(example.prompt_len - 1, 0)
            targets[r, first : end - 1] = tokens[r, first + 1 : end]
            start = end
    real = int((owner >= 0).sum())
    return Rows(tokens, targets, doc_start, owner, real, skipped, count_kinds(examples, T))


def count_kinds(examples, T):
    """{kind: (how many are longer than T, how many there are)} of the Examples that have a kind."""
    there = collections.Counter(e.kind for e in examples if e.kind)
    long = collections.Counter(e.kind for e in examples if e.kind and len(e.ids) > T)
    return {kind: (long[kind], count) for kind, count in there.items()}


def assign_rows(lengths, T, window):
    """Which documents go into which row: best fit, among at most `window` open rows.

    Returns a list per row of the indices of its documents, in order, and the number of documents
    longer than T.
    """
    rows = []
    open_rows = []  # [tokens of room, indices of its documents]
    skipped = 0
    for index, n in enumerate(lengths):
        if n > T:
            skipped += 1
            continue
        with_room = (row for row in open_rows if row[0] >= n)
        best = min(with_room, key=lambda row: row[0], default=None)  # the fullest
        if best is None:
            best = [T, []]
            rows.append(best)
            open_rows.append(best)
            if len(open_rows) > window:
                open_rows.remove(min(open_rows, key=lambda row: row[0]))
        best[0] -= n
        best[1].append(index)
        if best[0] < SHORTEST:
            open_rows.remove(best)
    return [indices for _, indices in rows], skipped


def join(parts):
    """One Rows of several, in order; without owners, whose indices would clash."""
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS]
    real = sum(part.real for part in parts)
    skipped = sum(part.skipped for part in parts)
    return Rows(*arrays, None, real, skipped, join_kinds(part.kinds for part in parts))


def join_kinds(parts):
    """The kinds of several Rows as those of one.

    [{'a': (1, 2)}, {'a': (0, 3)}]  ->  {'a': (1, 5)}
    """
    joined = {}
    for part in parts:
        for kind, counts in part.items():
            before = joined.get(kind, (0, 0))
            joined[kind] = before[0] + counts[0], before[1] + counts[1]
    return joined


# Micro-batches of responses, for reinforcement learning


def response_batches(examples, values, row_tokens, micro_tokens, device, at_least=1):
    """Pack responses behind their prompts and cut the rows into micro-batches, one per pass.

    examples: {row: Example}; values: {name: (N, L) tensor}, a number for each token of each
    response. A micro-batch is a dict of tensors:

        tokens, doc_start  (B, T)
        select             (M,) indices into B * T, of the tokens that predict a response token
        targets            (M,) the tokens they predict
        response           (M,) the response they belong to, counted from 0 in the micro-batch
        each of `values`   (M,)

    Responses longer than row_tokens go apart, in rows of their own length: on a CPU attention
    costs T squared. micro_tokens: most tokens of a pass; at_least: passes to aim for, where there
    are rows enough.
    """
    short = [row for row, e in examples.items() if len(e.ids) <= row_tokens]
    long = [row for row, e in examples.items() if len(e.ids) > row_tokens]
    longest = max((len(examples[row].ids) for row in long), default=1)
    for rows, T in ((short, row_tokens), (long, longest)):
        packed = pack([examples[row] for row in rows], T)
        prompt_lens = np.array([examples[row].prompt_len for row in rows], dtype=int)
        rows = np.array(rows, dtype=int)
        at_once = max(1, min(micro_tokens // T, len(packed) // at_least))
        for at in range(0, len(packed), at_once):
            part = slice(at, at + at_once)
            yield _packed_batch(packed, part, rows, prompt_lens, values, device)


def _packed_batch(packed, part, rows, prompt_lens, values, device):
    """One micro-batch of `response_batches`: the slice `part` of the packed rows.

    rows, prompt_lens: (examples,) by the index that `packed.owner` holds.
    """
    T = packed.tokens.shape[1]
    tokens, targets, doc_start = packed.batch(part, device)
    select = (packed.targets[part].ravel() != IGNORE).nonzero()[0]  # (M,)
    owner = packed.owner[part].ravel()[select]
    in_document = select % T - packed.doc_start[part].ravel()[select]
    in_response = in_document + 1 - prompt_lens[owner]  # index of the target in its response
    select = torch.from_numpy(select).to(device)
    response = np.unique(owner, return_inverse=True)[1]
    chosen = {name: v[rows[owner], in_response].to(device) for name, v in values.items()}
    return dict(
        tokens=tokens,
        doc_start=doc_start,
        select=select,
        targets=targets.flatten()[select],
        response=torch.from_numpy(response).to(device),
        **chosen,
    )


def shared_batches(prompts, responses, values, micro_tokens, at_least=1):
    """Micro-batches as `response_batches` makes them, a prompt once for all its responses.

    For a CPU. prompts: list of lists of ids; responses: {row: (index of its prompt, ids)}, by
    prompt; values: {name: (N, L) tensor}. A micro-batch is one row of tokens (1, T), the prompt in
    front of its responses. doc_start is an attention.Documents, and positions (1, T) count each
    response from the end of the prompt. Worked example: prompt [7 8], responses [1 2] and [3]

        tokens     7  8  1  2  3
        positions  0  1  2  3  2
        documents  [7 8 1 2] and [7 8 3]; select 1 2 1, targets 1 2 3

    Of 512 responses of 33 tokens to questions of 20, in groups of 8, it leaves 18,000 tokens of
    27,000.
    """
    for batch in _fill_batches(prompts, responses, micro_tokens, at_least):
        yield _shared_batch(batch, prompts, responses, values)


def _fill_batches(prompts, responses, micro_tokens, at_least):
    """Lists of (index of a prompt, row), in order, each within micro_tokens where that is possible.

    A group may be cut: its prompt then stands in both micro-batches.
    """
    most = max(1, len(responses) // at_least)  # responses in a micro-batch
    batch = []
    size = 0
    for row, (p, ids) in responses.items():
        follows = bool(batch) and batch[-1][0] == p  # the prompt is in the batch already
        new = len(ids) if follows else len(prompts[p]) + len(ids)
        if batch and (size + new > micro_tokens or len(batch) == most):
            yield batch
            batch = []
            size = 0
            new = len(prompts[p]) + len(ids)
        batch.append((p, row))
        size += new
    if batch:
        yield batch


def _shared_batch(batch, prompts, responses, values):
    """One micro-batch of `shared_batches`; batch: [(index of a prompt, row)], by prompt."""
    ids = [responses[row][1] for _, row in batch]
    pairs = [(prompts[p], mine) for (p, _), mine in zip(batch, ids)]
    inputs, first, before = share_prompts(pairs)
    # a response's first token is predicted by its prompt's last, the others by those before them
    select = []
    for start, last, mine in zip(first, before, ids):
        select += [last, *range(start, start + len(mine) - 1)]
    rows = torch.tensor([row for _, row in batch])
    length = torch.tensor([len(mine) for mine in ids])
    response = torch.repeat_interleave(torch.arange(len(rows)), length)  # (M,)
    in_response = torch.cat([torch.arange(len(mine)) for mine in ids])  # (M,)
    chosen = {name: v[rows[response], in_response] for name, v in values.items()}
    return dict(
        inputs,
        select=torch.tensor(select),
        targets=torch.tensor([i for mine in ids for i in mine]),
        response=response,
        **chosen,
    )


def share_prompts(pairs):
    """Lay responses side by side in one row of tokens, a prompt in front of those that follow it.

    pairs: list of (prompt, response), lists of ids; those of equal prompts stand together.
    Returns what a model reads, {"tokens": (1, T), "positions": (1, T), "doc_start": Documents},
    and per response the index of its first token and that of its prompt's last, two lists.
    """
    tokens = []
    positions = []
    spans = []  # (own start, own length, start of the prompt, length of the prompt)
    first = []
    before = []
    last = None
    for prompt, ids in pairs:
        if prompt != last:
            start = len(tokens)
            last = prompt
            tokens += prompt
            positions += range(len(prompt))
        first.append(len(tokens))
        before.append(start + len(prompt) - 1)
        spans.append((len(tokens), len(ids), start, len(prompt)))
        tokens += ids
        positions += range(len(prompt), len(prompt) + len(ids))
    own, length, start, shared = torch.tensor(spans).T
    documents = Documents(own, length, len(tokens), (start, shared))
    inputs = dict(
        tokens=torch.tensor([tokens]),
        positions=torch.tensor([positions]),
        doc_start=documents,
    )
    return inputs, first, before


# Corpus files

ARRAYS = ("tokens", "targets", "doc_start")  # of a corpus file: int16, row after row


def write_rows(folder, parts, about):
    """Write Rows, as they come, to a folder that `open_rows` can map into memory.

    One raw file per array, and meta.json, which is written last: a folder without it was never
    finished. about: what made the rows, kept in meta.json. Returns the counts that it holds.
    Raises FileExistsError for a finished folder, and ValueError for ids or rows that int16 cannot
    hold.
    """
    folder = Path(folder)
    if (folder / "meta.json").exists():
        raise FileExistsError(str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: open(folder / f"{name}.bin", "wb") for name in ARRAYS}
    count = dict(rows=0, row_tokens=0, real=0, skipped=0, kinds={})
    for part in parts:
        for name, file in files.items():
            if getattr(part, name).dtype.itemsize > 2:
                raise ValueError(f"{folder}: a corpus file holds ids and rows below 32,768 only")
            file.write(getattr(part, name).astype("<i2").tobytes())
        count["rows"] += len(part)
        count["row_tokens"] = part.tokens.shape[1]
        count["real"] += part.real
        count["skipped"] += part.skipped
        count["kinds"] = join_kinds([count["kinds"], part.kinds])
    for file in files.values():
        file.close()
    scratch = folder / "meta.tmp"
    scratch.write_text(json.dumps(count | {"about": about}, indent=1) + "\n", encoding="utf-8")
    scratch.replace(folder / "meta.json")
    return count


def open_rows(folder):
    """(Rows, meta) of a folder that `write_rows` left, mapped from disk and not read.

    Raises ValueError where there is no whole corpus.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        shape = int(meta["rows"]), int(meta["row_tokens"])
        files = [folder / f"{name}.bin" for name in ARRAYS]
        arrays = [np.memmap(file, dtype="<i2", mode="r", shape=shape) for file in files]
        kinds = {kind: (out, count) for kind, (out, count) in meta.get("kinds", {}).items()}
        return Rows(*arrays, None, int(meta["real"]), int(meta["skipped"]), kinds), meta
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} holds no whole corpus ({error})") from None


class Plan:
    """Row indices of each of `steps` batches, this rank's share of them: a sequence of arrays.

    An epoch is a permutation of all rows, and the rows left over at its end open the next one:

        3 rows, 2 in a batch, 3 steps  ->  [2 0] [1 | 0] [1 2], if the permutations are 201 and 012

    Rank r of w takes every w-th row of a batch, so that all ranks together see what one would.
    Only the permutation in use is kept, however many steps there are.
    """

    def __init__(self, n_rows, rows_per_batch, steps, seed, rank=0, world=1):
        self.n_rows = n_rows
        self.rows_per_batch = rows_per_batch
        self.steps = steps
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = None
        self.order = None  # of this epoch

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        at = range(self.steps)[step] * self.rows_per_batch
        end = at + self.rows_per_batch
        parts = []
        while at < end:
            epoch, first = divmod(at, self.n_rows)
            parts.append(self._permutation(epoch)[first : first + end - at])
            at += len(parts[-1])
        return np.concatenate(parts)[self.rank :: self.world]

    def _permutation(self, epoch):
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng((self.seed, epoch)).permutation(self.n_rows)
        return self.order


def batches(n_rows, rows_per_batch, epochs, seed, rank=0, world=1, every_row=False, steps=0):
    """The Plan of so many epochs, or, where `steps` is given, of so many batches.

    What does not fill a batch at the end of the last epoch is left out. every_row: but not where a
    row would then never come; the last batch is filled from the next epoch.

        11 rows, 6 in a batch, 1 epoch   ->  1 batch; every_row: 2, with one row twice
        11 rows, 6 in a batch, 2 epochs  ->  3 batches in both cases
    """
    if not steps:
        steps = epochs * n_rows // rows_per_batch
        if every_row and steps * rows_per_batch < n_rows:
            steps = -(-n_rows // rows_per_batch)
    return Plan(n_rows, rows_per_batch, steps, seed, rank, world)

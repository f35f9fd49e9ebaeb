"""Token rows from documents: packing without padding waste, targets, loss masks, batches by rank.

Packing puts whole documents side by side into rows of T tokens; `doc_start` keeps attention inside each. Worked example,
T = 6, one document of three ids whose first is its prompt (prompt_len 1) and one of two ids with no prompt:

    examples    [7 8 9] prompt_len 1      [5 6] prompt_len 0
    tokens       7  8  9  5  6  PAD
    targets      8  9  .  6  .  .         the next token of the same document; '.' is IGNORE
    doc_start    0  0  0  3  3  5

Token 7 is the prompt's last, so it predicts 8, the first token of the response; the last token of a response (the stop
token) is a target like any other, or the model would never learn to stop.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nanoreason.attention import Documents
from nanoreason.tokenizer import PAD

IGNORE = -100  # torch's own ignore_index


@dataclass(frozen=True)
class Rows:
    """Packed rows: tokens (N, T) int16, targets (N, T) int16 with IGNORE, doc_start (N, T) int16, owner (N, T) int32 the index of
    the example that a place belongs to, -1 for padding (None for rows from a file). `real`: places that hold a token; `skipped`:
    documents longer than T, left out."""

    tokens: np.ndarray
    targets: np.ndarray
    doc_start: np.ndarray
    owner: np.ndarray | None
    real: int
    skipped: int

    def __len__(self):
        return len(self.tokens)

    @property
    def real_share(self):
        """Share of the N*T places that hold a real token."""
        return self.real / max(1, self.tokens.size)

    def batch(self, index, device):
        """Tensors of the rows in `index`: tokens and targets (B, T) int64, doc_start (B, T) int32."""
        pick = lambda array, dtype: torch.from_numpy(np.array(array[index])).to(device, dtype)
        return pick(self.tokens, torch.long), pick(self.targets, torch.long), pick(self.doc_start, torch.int32)


def pack(examples, T, window=256):
    """Pack Examples into rows of T tokens, each document whole, in the fullest open row that still has room for it.

    window: rows kept open; more fills better and takes longer. Documents longer than T are left out and counted in `skipped`.
    """
    rows, open_rows, skipped = [], [], 0  # a row is [free places, indices of its examples]
    for index, example in enumerate(examples):
        n = len(example.ids)
        if n > T:
            skipped += 1
            continue
        best = min((row for row in open_rows if row[0] >= n), key=lambda row: row[0], default=None)
        if best is None:
            best = [T, []]
            rows.append(best)
            open_rows.append(best)
            if len(open_rows) > window:
                open_rows.remove(min(open_rows, key=lambda row: row[0]))
        best[0] -= n
        best[1].append(index)
        if best[0] < 3:
            open_rows.remove(best)
    tokens = np.full((len(rows), T), PAD, dtype=np.int16)
    targets = np.full((len(rows), T), IGNORE, dtype=np.int16)
    doc_start = np.tile(np.arange(T, dtype=np.int16), (len(rows), 1))  # padding sees only itself
    owner = np.full((len(rows), T), -1, dtype=np.int32)
    for r, (_, indices) in enumerate(rows):
        at = 0
        for index in indices:
            e = examples[index]
            end = at + len(e.ids)
            owner[r, at:end] = index
            tokens[r, at:end] = e.ids
            learned = at + max(e.prompt_len - 1, 0)
            targets[r, learned : end - 1] = tokens[r, learned + 1 : end]
            doc_start[r, at:end] = at
            at = end
    return Rows(tokens, targets, doc_start, owner, int((owner >= 0).sum()), skipped)


def join(parts):
    """One Rows of several, in order; without owners, whose indices would clash."""
    stack = lambda name: np.concatenate([getattr(part, name) for part in parts])
    return Rows(stack("tokens"), stack("targets"), stack("doc_start"), None, sum(p.real for p in parts), sum(p.skipped for p in parts))


def response_batches(examples, values, row_tokens, micro_tokens, device, at_least=1):
    """Pack responses behind their prompts and cut the rows into micro-batches: dicts of tensors for one forward pass each.

    examples: {row: Example}; values: {name: (N, L) tensor}, a number for each token of each response. A micro-batch holds tokens and doc_start
    (B, T); select (M,) the places of B * T that predict a response token; and for those places targets, response (M,), which counts the responses
    of the micro-batch from 0, and every one of `values`. Responses longer than row_tokens go apart, in rows of their own length: on
    a CPU attention pays for T squared. micro_tokens: most tokens of a pass; at_least: passes to aim for, where there are rows enough.
    """
    for short in (True, False):
        some = [row for row, e in examples.items() if (len(e.ids) <= row_tokens) == short]
        packed = pack([examples[row] for row in some], row_tokens if short else max((len(examples[row].ids) for row in some), default=1))
        some, prompt_len, T = np.array(some, dtype=int), np.array([examples[row].prompt_len for row in some], dtype=int), packed.tokens.shape[1]
        at_once = max(1, min(micro_tokens // T, len(packed) // at_least))
        for at in range(0, len(packed), at_once):
            cut = slice(at, at + at_once)
            tokens, targets, doc_start = packed.batch(cut, device)
            place = (packed.targets[cut].ravel() != IGNORE).nonzero()[0]  # (M,)
            owner = packed.owner[cut].ravel()[place]
            offset = place % T - packed.doc_start[cut].ravel()[place] + 1 - prompt_len[owner]  # index of the target in its response
            select = torch.from_numpy(place).to(device)
            response = torch.from_numpy(np.unique(owner, return_inverse=True)[1]).to(device)
            yield dict(tokens=tokens, doc_start=doc_start, select=select, targets=targets.flatten()[select], response=response,
                       **{name: value[some[owner], offset].to(device) for name, value in values.items()})


def shared_batches(prompts, responses, values, micro_tokens, at_least=1):
    """Micro-batches, as `response_batches` makes them, that hold a prompt once for all its responses: on a CPU.

    prompts: list of lists of ids; responses: {row: (index of its prompt, ids)}, by prompt; values: {name: (N, L) tensor}. A micro-batch is one row of
    tokens (1, T), the prompt in front of its responses. doc_start is an attention.Documents and positions (1, T) count each response from the end of
    the prompt. Worked example: prompt [7 8], responses [1 2] and [3]

        tokens     7  8  1  2  3
        positions  0  1  2  3  2
        documents  [7 8 1 2] and [7 8 3]; of the places 1 2 1, the targets are 1 2 3

    Of 512 responses of 33 tokens to questions of 20, in groups of 8, it leaves 18,000 tokens of 27,000.
    """
    batch, size, last = [], 0, None
    most = max(1, len(responses) // at_least)  # responses in a micro-batch
    for row, (p, ids) in responses.items():
        new = len(ids) + (len(prompts[p]) if p != last else 0)
        if batch and (size + new > micro_tokens or len(batch) == most):
            yield _shared_batch(batch, prompts, responses, values)
            batch, size = [], 0
            new = len(prompts[p]) + len(ids)  # a group may be cut: its prompt then stands in both
        batch.append((p, row))
        size, last = size + new, p
    if batch:
        yield _shared_batch(batch, prompts, responses, values)


def _shared_batch(batch, prompts, responses, values):
    """One micro-batch of `shared_batches`; batch: [(prompt, row)], by prompt."""
    ids = [responses[row][1] for _, row in batch]
    inputs, first, before = share_prompts([(prompts[p], mine) for (p, _), mine in zip(batch, ids)])
    select = [at for start, last, mine in zip(first, before, ids) for at in (last, *range(start, start + len(mine) - 1))]
    length = torch.tensor([len(mine) for mine in ids])
    rows = torch.tensor([row for _, row in batch])
    response = torch.repeat_interleave(torch.arange(len(rows)), length)  # (M,)
    offset = torch.cat([torch.arange(len(mine)) for mine in ids])
    return dict(inputs, select=torch.tensor(select), targets=torch.tensor([i for mine in ids for i in mine]), response=response,
                **{name: value[rows[response], offset] for name, value in values.items()})


def share_prompts(pairs):
    """Lay responses side by side in one row of tokens, a prompt in front of those that follow it.

    pairs: list of (prompt, response), lists of ids; those of equal prompts stand together.
    Returns what a model reads, {"tokens": (1, T), "positions": (1, T), "doc_start": Documents},
    and per response the index of its first token and that of its prompt's last, two lists.
    """
    tokens, positions, spans, first, before = [], [], [], [], []
    last = None
    for prompt, ids in pairs:
        if prompt != last:
            start, last = len(tokens), prompt
            tokens += prompt
            positions += range(len(prompt))
        first.append(len(tokens))
        before.append(start + len(prompt) - 1)
        spans.append((len(tokens), len(ids), start, len(prompt)))
        tokens += ids
        positions += range(len(prompt), len(prompt) + len(ids))
    own, length, start, shared = torch.tensor(spans).T
    documents = Documents(own, length, len(tokens), (start, shared))
    inputs = dict(tokens=torch.tensor([tokens]), positions=torch.tensor([positions]), doc_start=documents)
    return inputs, first, before


ARRAYS = ("tokens", "targets", "doc_start")  # of a corpus file: int16, row after row


def write_rows(folder, parts, about):
    """Write Rows, as they come, to a folder that `open_rows` can map into memory: one raw file an array, and meta.json, which comes last:
    a folder without it was never finished. about: what made the rows, kept in meta.json. Raises FileExistsError for a finished folder."""
    folder = Path(folder)
    if (folder / "meta.json").exists():
        raise FileExistsError(str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: open(folder / f"{name}.bin", "wb") for name in ARRAYS}
    count = dict(rows=0, row_tokens=0, real=0, skipped=0)
    for part in parts:
        for name, file in files.items():
            file.write(getattr(part, name).astype("<i2").tobytes())
        count = dict(rows=count["rows"] + len(part), row_tokens=part.tokens.shape[1], real=count["real"] + part.real, skipped=count["skipped"] + part.skipped)
    for file in files.values():
        file.close()
    scratch = folder / "meta.tmp"
    scratch.write_text(json.dumps(count | {"about": about}, indent=1) + "\n")
    scratch.rename(folder / "meta.json")
    return count


def open_rows(folder):
    """Rows of a folder that `write_rows` left, mapped from disk and not read: (Rows, meta). Raises ValueError where there is no whole corpus."""
    folder = Path(folder)
    try:
        meta = json.loads((folder / "meta.json").read_text())
        shape = int(meta["rows"]), int(meta["row_tokens"])
        arrays = [np.memmap(folder / f"{name}.bin", dtype="<i2", mode="r", shape=shape) for name in ARRAYS]
        return Rows(*arrays, None, int(meta["real"]), int(meta["skipped"])), meta
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds no whole corpus ({error})") from None


def batches(n_rows, rows_per_batch, epochs, seed, rank=0, world=1):
    """Row indices of each batch, this rank's share of it: every epoch is a fresh permutation of all rows.

    Yields arrays; rank r of w takes every w-th row of the batch, so that all ranks together see what one would.
    The rows left over at the end of an epoch open the next one.
    """
    order = np.concatenate([np.random.default_rng((seed, epoch)).permutation(n_rows) for epoch in range(epochs)])
    for at in range(0, len(order) - rows_per_batch + 1, rows_per_batch):
        yield order[at : at + rows_per_batch][rank::world]

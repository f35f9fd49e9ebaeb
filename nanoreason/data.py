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

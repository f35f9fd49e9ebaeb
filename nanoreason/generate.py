"""The rollout engine: many prompts, many samples each, one token a step for all of them, until each one stops.

    prefill   every prompt is read once, whatever the number of its samples; uneven prompts are padded on the right only
    decode    one token a row and step, against the key/value cache
    leave     rows that have stopped are dropped from the batch and the cache, so nobody computes for the finished

Letters: P prompts, G samples a prompt, N = P * G rows in prompt-major order (row p * G + g), L longest response, V vocabulary.
"""

from dataclasses import dataclass

import torch

from nanoreason.model import KVCache
from nanoreason.tokenizer import END, PAD

SLOT_BLOCK = 32  # the cache grows by this many slots, so it stays near the length in use


@dataclass
class Rollout:
    """Responses, without their prompts. ids (N, L) int64, PAD after the stop; mask (N, L) bool, True where a token was sampled
    (the stop token included); logprobs (N, L) float32, log-probability of each sampled token under the distribution it was
    drawn from, temperature included, 0 where masked; ended (N,) bool, False for responses cut off by the length limit."""

    ids: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    ended: torch.Tensor

    @property
    def lengths(self):
        """(N,) tokens a response, the stop token included."""
        return self.mask.sum(1)

    def response(self, row):
        """Ids of one response as a list."""
        return self.ids[row, : int(self.mask[row].sum())].tolist()


def sample_token(logits, temperature, generator):
    """Draw one token a row. logits (N, V) -> ids (N,) and their log-probabilities (N,) at this temperature; 0 means greedy.

    One uniform number a row and the inverse of the cumulative distribution: as exact as torch.multinomial, which draws V
    numbers a row and spent a sixth of a decoding step on them.
    """
    if temperature == 0:
        logprobs = logits.float().log_softmax(-1)
        ids = logits.argmax(-1)
    else:
        logprobs = (logits.float() / temperature).log_softmax(-1)
        cumulative = logprobs.exp().cumsum(-1)  # (N, V)
        u = torch.rand(len(logits), 1, generator=generator, device=generator.device).to(logits.device) * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, u, right=True).squeeze(1).clamp_(max=logits.size(1) - 1)
    return ids, logprobs.gather(1, ids[:, None]).squeeze(1)


@torch.inference_mode()
def generate(model, prompts, samples=1, max_new_tokens=256, temperature=1.0, generator=None, max_rows=512, on_progress=None):
    """Sample `samples` responses to each prompt.

    prompts: list of P lists of ids. temperature: 0 is greedy. generator: torch.Generator on any device, required unless greedy.
    max_rows: rows decoded at once; more prompts are served in turns. on_progress: called with the number of rows that just finished.
    Returns a Rollout of P * samples rows on the model's device. Raises ValueError for an empty prompt or one that leaves no
    room for a single new token in the model's context.
    """
    room = model.config.max_len - max(map(len, prompts))
    if room < 1 or min(map(len, prompts)) < 1:
        raise ValueError(f"a prompt of {max(map(len, prompts))} tokens does not fit the context of {model.config.max_len} with room to answer")
    if temperature > 0 and generator is None:
        raise ValueError("sampling needs an explicit generator")
    limit = min(max_new_tokens, room)
    at_once = max(1, max_rows // samples)
    parts = [_generate(model, prompts[at : at + at_once], samples, limit, temperature, generator, on_progress)
             for at in range(0, len(prompts), at_once)]
    longest = max(ids.size(1) for ids, _ in parts)
    ids = torch.cat([torch.nn.functional.pad(ids, (0, longest - ids.size(1)), value=PAD) for ids, _ in parts])
    logprobs = torch.cat([torch.nn.functional.pad(lp, (0, longest - lp.size(1))) for _, lp in parts])
    stop = (ids == END).long()
    mask = stop.cumsum(1) - stop == 0  # up to and including the first stop token
    return Rollout(ids, mask, logprobs, stop.any(1))


def _generate(model, prompts, samples, limit, temperature, generator, on_progress):
    """One turn of `generate`: (ids (N, L), logprobs (N, L)) of all rows decoded together."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    padded = torch.full((len(prompts), int(lengths.max())), PAD, device=device)  # (P, T)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt, device=device)
    cache = KVCache(model.config, len(prompts), padded.size(1), device, next(model.parameters()).dtype)
    logits = model.prefill(padded, lengths, cache).repeat_interleave(samples, 0)  # (P, V) -> (N, V)
    cache.select(torch.arange(len(prompts), device=device).repeat_interleave(samples))
    N = len(logits)
    ids = torch.full((N, limit), PAD, device=device)
    logprobs = torch.zeros(N, limit, device=device)
    rows = torch.arange(N, device=device)  # which response each row of the batch is writing
    live, longest = torch.ones(N, dtype=torch.bool, device=device), int(lengths.max())
    for t in range(limit):
        token, logprob = sample_token(logits, temperature, generator)
        ids[rows, t] = torch.where(live, token, PAD)
        logprobs[rows, t] = torch.where(live, logprob, 0.0)
        stopped = live & (token == END)
        live &= token != END
        count, finished = int(live.sum()), int(stopped.sum())
        if on_progress and finished:
            on_progress(finished)
        if count == 0 or t == limit - 1:
            break
        if count <= 0.85 * len(rows):
            keep = live.nonzero().squeeze(1)
            cache.select(keep)
            rows, token, live = rows[keep], token[keep], live[keep]
        if longest + t + 1 > cache.slots:
            cache.grow(cache.slots + SLOT_BLOCK)
        logits = model.decode(token, cache)
    if on_progress and count:
        on_progress(count)
    return ids[:, : t + 1], logprobs[:, : t + 1]

"""The rollout engine: sample many responses to many prompts at once.

    prefill   each prompt is read once, whatever the number of its samples
    decode    every row gets one more token per step, from a key/value cache
    drop      rows that stopped leave the batch and the cache

Prompts of uneven length are padded on the right, for the prefill only. Rows that have written the
same tokens so far are computed once (class Decoding). On a GPU each step is the replay of one
recorded CUDA graph (class GraphDecoding).

A call with more rows than MAX_ROWS is served in turns, so that its memory is that of one turn and
of what was sampled, whatever the number of samples and the limit of tokens.

Each response draws from its own row of random numbers, fixed before the first token. So a sample
does not depend on which rows share its batch, when other rows leave, or how many ranks share the
work, except through the rounding of matrix products of another size, and through the limit: the
longest prompt of a call decides how many tokens all its responses may have. The model computes in
the dtype of its weights; `make_sampler` makes a copy in a faster one.

Letters: P prompts, G samples per prompt, N = P * G rows in prompt-major order (row p * G + g is
sample g of prompt p), L longest response, V vocabulary, B rows still in the batch, R rows of the
cache.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoreason.model import KVCache

MAX_ROWS = 512  # rows decoded at once
PIECE = 1 << 18  # random numbers drawn at once, where most are not wanted
SLOT_BLOCK = 32  # on a CPU the cache grows by this many slots, because each step reads all slots
GRAPH_STEPS = 16  # on a GPU, steps between two checks for stopped rows: a check waits for the GPU


@dataclass
class Rollout:
    """Sampled responses, without their prompts.

    ids       (N, L) int64, padding after the stop token
    mask      (N, L) bool, True where a token is the response's, the stop token included
    logprobs  (N, L) float32, log-probability of each sampled token under the distribution that it
              was drawn from, temperature included (greedy: at temperature 1); 0 where masked, and
              in the opening of a sampler that has one
    ended     (N,) bool, False for a response that was cut off by the length limit
    """

    ids: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    ended: torch.Tensor

    @property
    def lengths(self):
        """(N,) int64, tokens per response, the stop token included."""
        return self.mask.sum(1)

    def cpu(self):
        """The same on the CPU. One copy: to read responses one by one would wait for the GPU at
        each of them."""
        return Rollout(self.ids.cpu(), self.mask.cpu(), self.logprobs.cpu(), self.ended.cpu())

    def select(self, rows):
        """The Rollout of some rows, in this order. rows: a list of indices."""
        rows = torch.tensor(rows, dtype=torch.long, device=self.ids.device)
        return Rollout(self.ids[rows], self.mask[rows], self.logprobs[rows], self.ended[rows])

    def response(self, row):
        """Ids of one response as a list, without padding."""
        return self.ids[row, : int(self.mask[row].sum())].tolist()


def join_rollouts(parts, pad):
    """One Rollout of several, in their order. Shorter ones are padded on the right, with the id
    `pad`."""
    longest = max(part.ids.size(1) for part in parts)

    def join(name, fill):
        tensors = [getattr(part, name) for part in parts]
        return torch.cat([F.pad(x, (0, longest - x.size(1)), value=fill) for x in tensors])

    ended = torch.cat([part.ended for part in parts])
    return Rollout(join("ids", pad), join("mask", False), join("logprobs", 0.0), ended)


# Sampling one token


def sample_token(logits, temperature, uniform, branch=None):
    """Draw one token per row.

    logits (R, V); temperature: 0 takes the most likely token; uniform (B,) in [0, 1), not read
    when greedy; branch (B,) int64: which row of the logits each row draws from, by default its own.
    Returns ids (B,) int64 and their log-probabilities (B,) float32 at this temperature, or at
    temperature 1 when greedy.

    Inverse transform sampling: the token is the first whose cumulative probability exceeds the
    row's uniform number. That is as exact as torch.multinomial, which needs V numbers per row.

        p [0.2, 0.5, 0.3], cumulative [0.2, 0.7, 1.0]:   uniform 0.1 -> 0,  0.6 -> 1,  0.9 -> 2
    """
    if branch is None:
        branch = torch.arange(len(logits), device=logits.device)
    if temperature == 0:
        best = logits.argmax(-1)  # (R,)
        logprobs = logits.float().log_softmax(-1).gather(1, best[:, None]).squeeze(1)  # (R,)
        return best[branch], logprobs[branch]
    p = (logits.float() / temperature).softmax(-1)  # (R, V)
    cumulative = p.cumsum(-1)[branch]  # (B, V)
    total = cumulative[:, -1:]  # 1 but for rounding
    ids = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)  # (B, 1)
    ids = ids.clamp_(max=logits.size(1) - 1).squeeze(1)  # (B,)
    # rounding may choose the last token even where its probability is 0
    return ids, p[branch, ids].clamp_min(1e-30).log()


def make_sampler(model, bf16, opening=()):
    """A frozen copy of the model to sample from, in bfloat16 where that is faster.

    opening: ids that each of its responses begins with. They are not sampled, and count as its own
    otherwise: an empty think block makes a model that thinks answer at once.

        opening think /think   ->   think /think 1 2 end,   of which 1 2 end were sampled
    """
    sampler = copy.deepcopy(model).requires_grad_(False).eval()
    if opening:
        # a buffer: so it is part of the weights' fingerprint, which tells cached samples apart
        device = model.embed.weight.device
        sampler.register_buffer("opening", torch.tensor(opening, device=device))
    return sampler.bfloat16() if bf16 else sampler


def opening_of(model):
    """Ids that each response of a model begins with: [] but for some samplers (`make_sampler`)."""
    return model.opening.tolist() if hasattr(model, "opening") else []


@torch.no_grad()
def refresh_sampler(sampler, model):
    """Give the frozen copy the model's present weights, in place."""
    for old, new in zip(sampler.parameters(), model.parameters()):
        old.copy_(new)


def uniform_numbers(shape, generator, keep=None):
    """Uniform numbers in [0, 1) for `generate`, one per token: shape (N, L), float32, on the
    generator's device.

    keep: only the first so many of each row are wanted, (N, keep). They are the same numbers, but
    the others take no memory: on a CPU a generator's next numbers do not depend on how many are
    drawn at once.

        shape (2, 3), numbers 0.1 to 0.6, keep 2  ->  [[0.1, 0.2], [0.4, 0.5]]
    """
    if keep is None or keep >= shape[-1]:
        return torch.rand(shape, generator=generator, device=generator.device)
    N, L = shape
    if generator.device.type != "cpu" or N * L <= PIECE:
        return torch.rand(shape, generator=generator, device=generator.device)[:, :keep]
    kept = torch.empty(N, keep)
    for row in kept:
        torch.rand(keep, generator=generator, out=row)
        for first in range(keep, L, PIECE):
            torch.rand(min(PIECE, L - first), generator=generator)
    return kept


# Sampling whole responses


@torch.inference_mode()
def generate(
    model, prompts, samples=1, max_new_tokens=256, temperature=1.0, generator=None, *,
    uniform=None, max_rows=MAX_ROWS, compile=False, on_progress=None, on_token=None, stop=None,
):
    """Sample `samples` responses to each prompt.

    prompts: list of P lists of ids. temperature: 0 is greedy, and needs no random numbers.
    generator: the torch.Generator that `uniform_numbers` draws from; or else uniform: numbers that
    it has drawn, (P * samples, as many as tokens can be sampled, or more).
    max_rows: rows decoded at once; where there are more, prompts, or samples of one prompt, are
    served in turns.
    compile: torch.compile the decoding step, which takes seconds at the first call and pays off in
    a long run. on_progress: called with the number of rows that finished since its last call.
    on_token: called with each id of a single response as soon as it is there.
    stop: ids that end a response, by default the tokenizer's end; the stop token is the last token
    of the response.

    The opening of a sampler that has one counts among max_new_tokens.

    Returns a Rollout of P * samples rows on the model's device, empty where there are no prompts.
    Raises ValueError for an empty prompt, for one that leaves no room for a single new token in
    the model's context, where random numbers are missing, and for on_token with several responses.
    """
    device = model.embed.weight.device
    if not prompts:
        return empty_rollout(device)
    limit = min(max_new_tokens, room_to_answer(model, prompts))
    if temperature and uniform is None and generator is None:
        raise ValueError("sampling needs an explicit generator, or uniform numbers")
    if on_token and len(prompts) * samples != 1:
        raise ValueError("on_token follows a single response")
    stop = stop or (model.tokenizer.end,)
    # a recorded graph runs many steps at once, and could tell of no token in between
    decoding = GraphDecoding if device.type == "cuda" and not on_token else Decoding
    parts = []
    done = 0
    for some, count in turns(prompts, samples, max_rows):
        N = len(some) * count
        if temperature == 0:
            numbers = torch.zeros(N, 1).expand(N, limit)  # greedy decoding reads none of them
        elif uniform is None:
            numbers = uniform_numbers((N, max_new_tokens), generator, limit)
        else:
            numbers = uniform[done : done + N, :limit]
        done += N
        ids = torch.full((N, limit), model.tokenizer.pad, device=device)
        logprobs = torch.zeros(N, limit, device=device)
        turn = decoding(
            model, some, count, ids, logprobs, numbers.to(device), temperature, compile, stop,
            on_token,
        )
        turn.run(on_progress)  # fills ids and logprobs
        parts.append(finished_rollout(ids, logprobs, stop))
    return parts[0] if len(parts) == 1 else join_rollouts(parts, model.tokenizer.pad)


def turns(prompts, samples, max_rows):
    """[(prompts, samples of each)] to decode at once, in prompt-major order of the rows.

    Prompts a, b, c with 2 samples and 4 rows  ->  [([a, b], 2), ([c], 2)]
    Prompts a, b with 5 samples and 4 rows     ->  [([a], 4), ([a], 1), ([b], 4), ([b], 1)]
    """
    if samples <= max_rows:
        size = max_rows // max(1, samples)
        return [(prompts[i : i + size], samples) for i in range(0, len(prompts), size)]
    found = []
    for prompt in prompts:
        for first in range(0, samples, max_rows):
            found.append(([prompt], min(max_rows, samples - first)))
    return found


def empty_rollout(device):
    """A Rollout of no rows, with the dtypes of any other."""
    none = torch.zeros(0, 1, device=device)
    return Rollout(none.long(), none.bool(), none, none[:, 0].bool())


def room_to_answer(model, prompts):
    """Tokens that the model's context leaves behind the longest prompt. Raises ValueError where
    that is none, or where a prompt is empty."""
    longest = max(map(len, prompts))
    context = model.config.max_len
    if min(map(len, prompts)) < 1:
        raise ValueError("a prompt is empty")
    if longest >= context:
        raise ValueError(
            f"a prompt of {longest} tokens does not fit the context of {context} "
            "with room to answer"
        )
    return context - longest


def finished_rollout(ids, logprobs, stop):
    """The Rollout of decoded rows, ids and logprobs (N, limit), cut to the longest response.

    With stop token 9:   ids [[5, 9, pad, pad], [5, 6, 9, pad]]
        ->  ids [[5, 9, pad], [5, 6, 9]]   mask [[True, True, False], [True, True, True]]
    """
    is_stop = torch.isin(ids, torch.tensor(stop, device=ids.device)).long()  # (N, limit)
    stops_before = is_stop.cumsum(1) - is_stop
    mask = stops_before == 0  # up to the first stop token, and that token too
    longest = int(mask.sum(1).max())
    return Rollout(ids[:, :longest], mask[:, :longest], logprobs[:, :longest], is_stop.any(1))


def pad_prompts(prompts, pad):
    """Prompts as one tensor (P, T) int64, padded on the right, and their lengths (P,).

    [[5, 6, 7], [8]]  ->  [[5, 6, 7], [8, pad, pad]], [3, 1]
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padded = torch.full((len(prompts), int(lengths.max())), pad)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    return padded, lengths


# The decoding loop


class Decoding:
    """One turn of `generate`: the state of the rows that are decoded together.

    Rows that have written the same tokens behind the same prompt form a branch. A branch has one
    row of the cache and is computed once. Each of its rows draws the next token from its own random
    numbers, and the branch splits where the tokens differ; so every row gets what it would have got
    alone. Compared with a cache row for every row (1.05M parameters, one core, levels 1 to 3),
    256 samples per question take 0.56 of the time and 8 samples take 0.80.

    ids, logprobs, uniform: (N, limit); the first two are filled. ids begin with the opening of a
    sampler that has one, as far as the limit leaves room. on_token: as in `generate`.
    rows    (B,) which of the N each row in the batch is
    branch  (B,) which cache row it reads
    token   (R,) the newest token of each cache row; some cache rows may be idle
    t       index of the next token
    """

    def __init__(
        self, model, prompts, samples, ids, logprobs, uniform, temperature, compile, stop,
        on_token=None,
    ):
        self.pad = model.tokenizer.pad
        self.ids = ids
        self.logprobs = logprobs
        self.uniform = uniform
        self.temperature = temperature
        self.device = ids.device
        self.limit = ids.size(1)  # longest response, in tokens
        self.stop = torch.tensor(stop, device=self.device)
        self.decode = torch.compile(model.decode, dynamic=True) if compile else model.decode
        self.reported = 0  # rows that on_progress has been told of
        self.on_token = on_token
        self.told = 0  # tokens that on_token has been told of

        opening = opening_of(model)[: self.limit]
        self.opened = len(opening)
        ids[:, : self.opened] = torch.tensor(opening, dtype=ids.dtype, device=self.device)
        read = [[*prompt, *opening] for prompt in prompts]
        padded, lengths = pad_prompts(read, self.pad)  # (P, T), (P,)
        self.longest = padded.size(1) - self.opened  # longest prompt, in tokens
        dtype = model.embed.weight.dtype
        self.cache = KVCache(model.config, len(prompts), self.first_slots(), self.device, dtype)
        logits = model.prefill(padded.to(self.device), lengths.to(self.device), self.cache)
        self.rows = torch.arange(len(ids), device=self.device)  # (N,), prompt-major
        self.begin(logits, self.rows // samples)

    def first_slots(self):
        """Tokens per row that the cache has room for at the start."""
        return self.longest + self.opened

    def begin(self, logits, prompt):
        """Draw the first token behind the opening, unless that fills the limit. logits (P, V)
        behind prompt and opening; prompt (N,): each row's prompt.

        All samples of a prompt begin as one branch, on the cache row that the prefill filled.
        """
        self.branch = prompt
        self.t = self.opened
        if self.t < self.limit:
            self.pick(logits)

    def pick(self, logits):
        """Draw the next token of every row from its branch's logits (R, V).

        Rows that stopped are dropped. Rows of one branch whose tokens differ get their own cache
        row; rows whose tokens agree stay together. Four rows, before and after:

            row  branch  draws         row  branch
             0     0       4      ->    0     0      newest token 4
             1     0       4      ->    1     0
             2     0       8      ->    2     1      newest token 8
             3     1      stop    ->   dropped

        Cache row 1, which row 3 has left, holds a copy of cache row 0 now.
        """
        uniform = self.uniform[self.rows, self.t]  # (B,)
        token, logprob = sample_token(logits, self.temperature, uniform, self.branch)
        self.ids[self.rows, self.t] = token
        self.logprobs[self.rows, self.t] = logprob
        self.t += 1

        is_live = (token[:, None] != self.stop).all(1)  # (B,)
        self.rows = self.rows[is_live]
        if len(self.rows) == 0:
            return

        # Each different pair (branch, token) is one branch of the next step, in ascending order.
        V = logits.size(1)
        pairs = self.branch[is_live] * V + token[is_live]
        pairs, pair_of_row = torch.unique(pairs, return_inverse=True)
        if len(pairs) == 1:
            # torch.compile would make a program of its own for one row; nothing reads the second
            pairs = pairs.repeat(2)
        cache_row = self.cache.continue_from(pairs // V)  # of each pair, the row that holds it now
        self.branch = cache_row[pair_of_row]
        self.token = torch.zeros_like(self.cache.lengths).index_copy_(0, cache_row, pairs % V)

    def run(self, on_progress):
        """Decode until every row has stopped or reached the limit."""
        while True:
            n_live = len(self.rows) if self.t < self.limit else 0
            self.report(n_live, on_progress)
            self.tell()
            if n_live == 0:
                return
            if self.longest + self.t > self.cache.slots:
                self.cache.grow(self.cache.slots + SLOT_BLOCK)
            logits = self.decode(self.token, self.cache)  # (R, V)
            self.pick(logits)

    def report(self, n_live, on_progress):
        """Tell on_progress how many rows have finished since the last report."""
        finished = len(self.ids) - n_live
        if on_progress and finished > self.reported:
            on_progress(finished - self.reported)
            self.reported = finished

    def tell(self):
        """Tell on_token the ids of the first row that are new."""
        if self.on_token:
            for token in self.ids[0, self.told : self.t].tolist():
                self.on_token(token)
            self.told = self.t


class GraphDecoding(Decoding):
    """The same on a GPU, where each step replays one recorded CUDA graph; without on_token.

    A graph allows no change of shape from step to step. So every row keeps a cache row to itself,
    a row that stopped stays in the batch for a while, and the cache has room for the longest
    response from the start.

    rows    (B,) which of the N each row in the batch is
    token   (B,) its newest token
    is_live (B,) bool, whether it has yet to stop
    at      (B,) index of its next token; the same in all rows, but a tensor, as a graph needs
    """

    def first_slots(self):
        return self.longest + self.limit

    def begin(self, logits, prompt):
        """Give every row a copy of its prompt's cache row, then draw the first token behind the
        opening, unless that fills the limit."""
        self.cache.select(prompt)
        N = len(prompt)
        self.is_live = torch.ones(N, dtype=torch.bool, device=self.device)
        self.at = torch.full((N,), self.opened, device=self.device)
        self.token = torch.empty(N, dtype=torch.long, device=self.device)
        if self.opened < self.limit:
            self.pick(logits[prompt])  # (P, V) -> (N, V)

    def pick(self, logits):
        """Draw the next token of every row from its logits (B, V), and keep it for those that
        have not stopped. Everything happens in place and on the GPU: the graph records it."""
        where = (self.rows, self.at)
        token, logprob = sample_token(logits, self.temperature, self.uniform[where])
        self.token.copy_(token)
        self.ids[where] = torch.where(self.is_live, token, self.pad)
        self.logprobs[where] = torch.where(self.is_live, logprob, 0.0)
        self.is_live &= (token[:, None] != self.stop).all(1)
        self.at += 1

    def step(self):
        """One more token for every row: what the graph records."""
        logits = self.decode(self.token, self.cache)  # (B, V)
        self.pick(logits)

    def shrink(self, n_live):
        """Halve the batch while all live rows fit, dropping rows that stopped.

        Returns whether the batch changed. Halves keep the number of sizes small, because the step
        is recorded anew for each.

            20 rows, 4 of them live  ->  10  ->  5
        """
        size = len(self.rows)
        while (size + 1) // 2 >= max(n_live, 2):
            size = (size + 1) // 2
        if size == len(self.rows):
            return False
        keep = self.is_live.int().argsort(descending=True, stable=True)[:size]  # live rows first
        self.cache.select(keep)
        self.rows = self.rows[keep]
        self.token = self.token[keep]
        self.is_live = self.is_live[keep]
        self.at = self.at[keep]
        return True

    def run(self, on_progress):
        """Decode until every row has stopped or reached the limit."""
        step = RecordedStep(self.step)
        for t in range(self.opened + 1, self.limit):
            if t % GRAPH_STEPS == 0:
                n_live = int(self.is_live.sum())
                self.report(n_live, on_progress)
                if n_live == 0:
                    return
                if self.shrink(n_live):
                    step = RecordedStep(self.step)  # a recording holds for one size
            step()
        self.report(0, on_progress)


class RecordedStep:
    """A function without arguments or results as a CUDA graph: one launch instead of hundreds.

    The first call runs the function as it is, which loads kernels and compiles what is to be
    compiled. The second call records it; that and all later calls replay the recording. Everything
    that the function reads and writes must stay at its address, and no shape may change.
    """

    def __init__(self, step):
        self.step = step
        self.warm = False
        self.graph = None

    def __call__(self):
        if not self.warm:
            self.warm = True
            self.step()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, without running
                self.step()
        self.graph.replay()

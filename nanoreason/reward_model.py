"""Reward models: a GPT that scores instead of writing (Cobbe et al. 2110.14168; Lightman et al.
2305.20050).

    orm   outcome reward model: the chance that the response is right, read at its last token
    prm   process reward model: also the chance that a step is right, read at the token that ends it

One trunk and one scalar head serve both; they differ in what they were trained on. A checkpoint
carries its kind under "verifier".
"""

import math
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanoreason import checkpoint
from nanoreason.data import Example, pack, share_prompts
from nanoreason.flags import UserError
from nanoreason.machine import autocast
from nanoreason.model import GPT, GPTConfig

KINDS = ("orm", "prm")
# How the chances of a response's steps become one number: the last one (Snell et al. 2408.03314),
# the lowest (Math-Shepherd 2312.08935), their product (Lightman et al.).
AGGREGATES = {"last": itemgetter(-1), "min": min, "prod": math.prod}
PASS_TOKENS = 16_384  # tokens scored at once
SHORT = 128  # tokens: what is longer is packed apart, in rows of its own length


class RewardModel(nn.Module):
    """`gpt`: the trunk, usually the policy's own; `score`: its scalar head (C -> 1).

    config: GPTConfig of the trunk; tokenizer: what its ids mean. kind: one of KINDS, else
    ValueError.
    """

    def __init__(self, config, kind, tokenizer=None):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"a reward model is one of {', '.join(KINDS)}, not {kind!r}")
        self.config = config
        self.kind = kind
        self.gpt = GPT(config, tokenizer)
        self.score = nn.Linear(config.n_embd, 1)

    @property
    def tokenizer(self):
        """That of the trunk."""
        return self.gpt.tokenizer

    def forward(self, tokens, doc_start, select, positions=None):
        """Logits (M,) at the indices `select` (M,) into the flattened tokens (B, T).

        The sigmoid of a logit is the chance that the response is right so far.
        """
        hidden = self.gpt.trunk(tokens, doc_start, positions=positions)  # (B, T, C)
        return self.score(hidden.flatten(0, 1)[select]).squeeze(1)

    def describe(self):
        """Shape of the trunk, for checkpoints."""
        return self.gpt.describe()


def save_reward_model(path, reward_model, **state):
    """Write a reward model's checkpoint, with the plain values or tensors in `state`."""
    # "verifier" is the key of old checkpoints
    checkpoint.save(path, reward_model, verifier=reward_model.kind, **state)


def start_reward_model(state, kind):
    """A reward model to train, from a loaded checkpoint dict: that of a policy, with a head of
    zeros, so that every score starts at one half; or of a reward model, as it is."""
    with checkpoint.readable(state):
        reward_model = RewardModel(GPTConfig(**state["model"]), kind, state["tokenizer"])
        if state.get("verifier"):
            reward_model.load_state_dict(state["weights"])
            return reward_model
        reward_model.gpt.load_state_dict(state["weights"])
    nn.init.zeros_(reward_model.score.weight)
    nn.init.zeros_(reward_model.score.bias)
    return reward_model


def load_reward_model(path, kind=None, device="cpu"):
    """Reward model from a checkpoint, run folder or pretrained:NAME, in eval mode, frozen.

    kind: the kind that is wanted; None: whichever it is. Raises UserError for another kind, and for
    a model that writes.
    """
    state = checkpoint.load(path)
    found = state.get("verifier")
    if found not in ((kind,) if kind else KINDS):
        what = f"a reward model of kind {found}" if found else "a language model"
        raise UserError(f"--reward-model {path} is {what}; {kind or 'a reward model'} is wanted")
    with checkpoint.readable(state):
        reward_model = RewardModel(GPTConfig(**state["model"]), found, state["tokenizer"])
        reward_model.load_state_dict(state["weights"])
    return reward_model.to(device).requires_grad_(False).eval()


# Reading: where, in which passes, and what comes out


def where_to_read(kind, response, tokenizer):
    """Indices of the tokens of a response at which a reward model of this kind is read.

    A prm is read where each step ends and at the last token, an orm at the last token alone.
    """
    ends = tokenizer.step_ends(response) if kind == "prm" else []
    return ends + [len(response) - 1]


def reading_batches(examples, read_at, device):
    """Cut Examples into forward passes of about PASS_TOKENS. read_at: for each example, indices
    into its response to read at.

    Yields pairs: what `RewardModel.forward` takes, as a dict, and owner, a list of M: the example
    of each reading. An example's readings stand side by side, in the order of its `read_at`. On a
    CPU a prompt is read once for all its responses,
    elsewhere documents are packed into rows.
    """
    if torch.device(device).type != "cpu":
        yield from _packed_batches(examples, read_at, device)
        return
    by_prompt = {}
    for i, e in enumerate(examples):
        by_prompt.setdefault(tuple(e.ids[: e.prompt_len]), []).append(i)
    batch = []
    size = 0
    for same in by_prompt.values():
        batch += same
        size += sum(len(examples[i].ids) for i in same)
        if size >= PASS_TOKENS:
            yield _shared_batch(batch, examples, read_at)
            batch = []
            size = 0
    if batch:
        yield _shared_batch(batch, examples, read_at)


def _shared_batch(batch, examples, read_at):
    """One pass over the examples in `batch`, those of a prompt side by side."""
    pairs = [(e.ids[: e.prompt_len], e.ids[e.prompt_len :]) for e in (examples[i] for i in batch)]
    inputs, first, _ = share_prompts(pairs)
    select = torch.tensor([start + at for start, i in zip(first, batch) for at in read_at[i]])
    return dict(inputs, select=select), [i for i in batch for _ in read_at[i]]


def _packed_batches(examples, read_at, device):
    """The same in rows of tokens (B, T), for the attention kernel of a GPU."""
    longest = max((len(e.ids) for e in examples), default=0)
    for short, T in ((True, min(SHORT, longest)), (False, longest)):
        some = [i for i, e in enumerate(examples) if (len(e.ids) <= SHORT) == short]
        rows = pack([examples[i] for i in some], T)
        at_once = max(1, PASS_TOKENS // max(T, 1))
        for at in range(0, len(rows), at_once):
            yield _packed_batch(rows, slice(at, at + at_once), some, examples, read_at, device)


def _packed_batch(rows, cut, some, examples, read_at, device):
    """One pass over the packed rows in `cut`; `some`: the example of each packed document."""
    tokens, _, doc_start = rows.batch(cut, device)
    owner = rows.owner[cut]  # (B, T)
    T = owner.shape[1]
    begins = (owner >= 0) & (rows.doc_start[cut] == range(T))  # a document's first token
    first = [(some[owner[b, t]], b * T + t) for b, t in zip(*begins.nonzero())]
    select = [start + examples[i].prompt_len + at for i, start in first for at in read_at[i]]
    inputs = dict(
        tokens=tokens, doc_start=doc_start, select=torch.tensor(select, device=device)
    )
    return inputs, [i for i, _ in first for _ in read_at[i]]


@torch.no_grad()
def read_logits(reward_model, examples, read_at, bf16=False, sigmoid=False):
    """What the reward model says of each example, where it is read: a list of lists of numbers.

    examples: N Examples. read_at: N lists of indices into their responses. bf16: read by autocast.
    Returns logits, or, with `sigmoid`, chances in [0, 1].
    """
    device = reward_model.score.weight.device
    found = [[] for _ in examples]
    for inputs, owner in reading_batches(examples, read_at, device):
        with autocast(device, bf16):
            logits = reward_model(**inputs).float()  # (M,)
        values = logits.sigmoid() if sigmoid else logits
        for i, value in zip(owner, values.tolist()):
            found[i].append(value)
    return found


def scores(reward_model, prompts, responses, bf16=False):
    """Score responses (lists of ids) to prompts (lists of ids, one for each response).

    Returns for each response [(index of a token in the response, chance of being right)]: of every
    token that ends a step, where the reward model is a prm, and of the last token. Equal responses
    to equal prompts are read once. bf16: read by autocast. Raises UserError where prompt and
    response exceed the reward model's context.
    """
    if not responses:
        return []
    numbers = {}  # {(prompt, response): its index among the different ones}
    asked = []
    for prompt, response in zip(prompts, responses, strict=True):
        asked.append(numbers.setdefault((tuple(prompt), tuple(response)), len(numbers)))
    examples = [Example([*prompt, *response], len(prompt)) for prompt, response in numbers]
    longest = max(len(e.ids) for e in examples)
    room = reward_model.config.max_len
    if longest > room:
        raise UserError(
            f"the reward model's context of {room} tokens is too short for a question "
            f"and its response of {longest}"
        )
    tokenizer = reward_model.tokenizer
    read_at = [where_to_read(reward_model.kind, response, tokenizer) for _, response in numbers]
    chances = read_logits(reward_model, examples, read_at, bf16, sigmoid=True)
    readings = [list(zip(*pair)) for pair in zip(read_at, chances)]
    return [readings[i] for i in asked]


def aggregate(readings, how):
    """[(index, chance)] of a response -> one number; how: one of AGGREGATES.

    The last token of a response that was cut in its thinking also ends a step, and counts once.

    [(4, 0.9), (9, 0.5), (9, 0.5)]  ->  last 0.5, min 0.5, prod 0.45
    """
    return AGGREGATES[how](list(dict(readings).values()))


# Loss and calibration


def mean_loss(logits, labels):
    """Mean over responses of the mean cross-entropy of their readings, in nats. Lists of lists."""
    each = []
    for z, y in zip(logits, labels):
        loss = F.binary_cross_entropy_with_logits(torch.tensor(z), torch.tensor(y))
        each.append(loss.item())
    return float(np.mean(each))


def platt(logits, labels):
    """Scale a and offset c such that sigmoid(a z + c) fits the labels best in cross-entropy
    (Platt 1999). logits, labels: lists of numbers, labels in [0, 1]."""
    z = torch.tensor(logits, dtype=torch.float64)
    y = torch.tensor(labels, dtype=torch.float64)
    w = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)  # a and c
    optimizer = torch.optim.LBFGS(
        [w], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10,
        tolerance_change=1e-14,
    )

    def loss():
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(w[0] * z + w[1], y)
        value.backward()
        return value

    optimizer.step(loss)
    return tuple(w.detach().tolist())


def smoothed(labels):
    """Labels a little away from 0 and 1, by how few there are of each (Platt 1999, section 2.2):
    else a fit to labels that are all 1, or that a threshold parts, would make every score 0 or 1.

    y -> y (n1 + 1) / (n1 + 2) + (1 - y) / (n0 + 2)     [1, 1, 0]  ->  [0.75, 0.75, 0.3333]
    """
    y = np.array(labels, dtype=float)
    n1 = y.sum()
    n0 = len(y) - n1
    return (y * (n1 + 1) / (n1 + 2) + (1 - y) / (n0 + 2)).tolist()


@torch.no_grad()
def calibrate(reward_model, examples, read_at, labels, bf16=False):
    """Fit `platt` on what the reward model says of Examples, and fold scale and offset into its
    head, so that every reader gets calibrated scores. Returns {"scale", "offset"}.

    read_at and labels: a list of each per example; of an orm, which is read at the end of a
    response alone, the last of each counts.
    """
    if reward_model.kind == "orm":
        read_at = [indices[-1:] for indices in read_at]
        labels = [label[-1:] for label in labels]
    logits = read_logits(reward_model, examples, read_at, bf16)
    with torch.enable_grad():
        learned = smoothed([y for ys in labels for y in ys])
        scale, offset = platt([z for zs in logits for z in zs], learned)
    reward_model.score.weight.mul_(scale)
    reward_model.score.bias.mul_(scale).add_(offset)
    return dict(scale=scale, offset=offset)

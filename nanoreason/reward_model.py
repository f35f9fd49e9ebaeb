"""Reward models: a GPT that scores instead of writing (Cobbe et al. 2110.14168; Lightman et al. 2305.20050).

    orm   outcome reward model: the chance that the response is right, read at its last token
    prm   process reward model: besides, the chance that a step is right, read at the token that ends the step

One trunk and one scalar head serve both; they differ in what they were trained on. A checkpoint carries its kind under "verifier".
"""

import math

import torch
from torch import nn

from nanoreason import checkpoint
from nanoreason.flags import UserError
from nanoreason.machine import autocast
from nanoreason.corpus import Example
from nanoreason.data import pack, share_prompts
from nanoreason.model import GPT, GPTConfig
from nanoreason.tokenizer import step_ends

KINDS = ("orm", "prm")
AGGREGATES = {"last": lambda chances: chances[-1], "min": min, "prod": math.prod}  # Snell et al. 2408.03314; Math-Shepherd 2312.08935; Lightman et al.
PASS_TOKENS = 16_384  # tokens scored at once
SHORT = 128  # tokens: what is longer is packed apart, in rows of its own length


class RewardModel(nn.Module):
    """`gpt`: the trunk, usually the policy's own; `score`: its scalar head (C -> 1)."""

    def __init__(self, config, kind):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"a reward model is one of {', '.join(KINDS)}, not {kind!r}")
        self.config, self.kind, self.gpt, self.score = config, kind, GPT(config), nn.Linear(config.n_embd, 1)

    def forward(self, tokens, doc_start, select, positions=None):
        """Logits (M,) at the places `select` (M,) of the flattened tokens (B, T): sigmoid of one is the chance of being right so far."""
        return self.score(self.gpt.trunk(tokens, doc_start, positions=positions).flatten(0, 1)[select]).squeeze(1)

    def describe(self):
        """Shape of the trunk, for checkpoints."""
        return self.gpt.describe()


def save_reward_model(path, reward_model, **state):
    """Write a reward model's checkpoint."""
    checkpoint.save(path, reward_model, verifier=reward_model.kind, **state)  # the key of old checkpoints


def load_reward_model(path, kind=None, device="cpu"):
    """Reward model of this kind, or of the kind it has where `kind` is None, from a checkpoint or run folder, in eval mode, frozen. Raises UserError, also
    for a model that writes."""
    state = checkpoint.load(path)
    if state.get("verifier") not in ((kind,) if kind else KINDS):
        found = "a reward model of kind " + state["verifier"] if state.get("verifier") else "a language model"
        raise UserError(f"--reward-model {path} is {found}; {kind or 'a reward_model'} is wanted")
    reward_model = RewardModel(GPTConfig(**state["model"]), state["verifier"])
    reward_model.load_state_dict(state["weights"])
    return reward_model.to(device).requires_grad_(False).eval()


def aggregate(rated, how):
    """[(index, chance)] of a response -> one number. The last token is often also the end of a step, and then counts once.

    [(4, 0.9), (9, 0.5), (9, 0.5)]  ->  last 0.5, min 0.5, prod 0.45
    """
    return AGGREGATES[how](list(dict(rated).values()))


def reading_batches(examples, places, device):
    """Cut Examples into forward passes of about PASS_TOKENS. places: for each example, indices into
    its response to read at.

    Yields what `Reward model.forward` takes, a dict of M places to read at and the tokens around them,
    and owner, the example of each: a list of M, each example's in the order of its `places`. On a
    CPU a prompt is read once for all its responses, elsewhere documents are packed into rows.
    """
    if torch.device(device).type != "cpu":
        yield from _packed_batches(examples, places, device)
        return
    by_prompt = {}
    for i, e in enumerate(examples):
        by_prompt.setdefault(tuple(e.ids[: e.prompt_len]), []).append(i)
    batch, size = [], 0
    for same in by_prompt.values():
        batch += same
        size += sum(len(examples[i].ids) for i in same)
        if size >= PASS_TOKENS:
            yield _shared_batch(batch, examples, places)
            batch, size = [], 0
    if batch:
        yield _shared_batch(batch, examples, places)


def _shared_batch(batch, examples, places):
    """One pass over the examples in `batch`, those of a prompt side by side."""
    pairs = [(e.ids[: e.prompt_len], e.ids[e.prompt_len :]) for e in (examples[i] for i in batch)]
    inputs, first, _ = share_prompts(pairs)
    select = torch.tensor([at + place for at, i in zip(first, batch) for place in places[i]])
    return dict(inputs, select=select), [i for i in batch for _ in places[i]]


def _packed_batches(examples, places, device):
    """The same in rows of tokens (B, T), for the attention kernel of a GPU."""
    longest = max((len(e.ids) for e in examples), default=0)
    for short, T in ((True, min(SHORT, longest)), (False, longest)):
        some = [i for i, e in enumerate(examples) if (len(e.ids) <= SHORT) == short]
        rows = pack([examples[i] for i in some], T)
        at_once = max(1, PASS_TOKENS // max(T, 1))
        for at in range(0, len(rows), at_once):
            cut = slice(at, at + at_once)
            tokens, _, doc_start = rows.batch(cut, device)
            owner, start = rows.owner[cut], rows.doc_start[cut]
            first = [(some[owner[b, t]], b * T + t) for b, t in zip(*((owner >= 0) & (start == range(T))).nonzero())]  # each document's first token
            select = [place + examples[i].prompt_len + end for i, place in first for end in places[i]]
            yield dict(tokens=tokens, doc_start=doc_start, select=torch.tensor(select, device=device)), [i for i, _ in first for _ in places[i]]


@torch.no_grad()
def scores(reward_model, prompts, responses, bf16=False):
    """Judge responses (lists of ids) to prompts (lists of ids, one for each response).

    Returns for each response [(index of a token in the response, chance of being right)]: of every token that ends a step, where the reward model
    is a prm, and of the last token. Equal responses to equal prompts are read once. bf16: read by autocast. Raises UserError where prompt and
    response exceed the reward model's context.
    """
    if not responses:
        return []
    device, numbers = reward_model.score.weight.device, {}
    mine = [numbers.setdefault((tuple(prompt), tuple(response)), len(numbers)) for prompt, response in zip(prompts, responses, strict=True)]
    examples = [Example([*prompt, *response], len(prompt)) for prompt, response in numbers]
    if (longest := max(len(e.ids) for e in examples)) > reward_model.config.max_len:
        raise UserError(f"the reward model's context of {reward_model.config.max_len} tokens is too short for a question and its response of {longest}")
    ends, found = [reading_places(reward_model.kind, response) for _, response in numbers], [[] for _ in examples]
    for inputs, owner in reading_batches(examples, ends, device):
        with autocast(device, bf16):
            chances = reward_model(**inputs).float().sigmoid().tolist()
        for i, chance in zip(owner, chances):
            found[i].append((ends[i][len(found[i])], chance))
    return [found[i] for i in mine]


def reading_places(kind, response):
    """Indices of the tokens of a response at which a reward model of this kind is read: the last, and before it, for a prm, the end of each step."""
    return (step_ends(response) if kind == "prm" else []) + [len(response) - 1]

"""Verifiers: a GPT that scores instead of writing (Cobbe et al. 2110.14168; Lightman et al. 2305.20050).

    orm   outcome reward model: the chance that the response is right, read at its last token
    prm   process reward model: besides, the chance that a step is right, read at the token that ends the step

One trunk and one scalar head serve both; they differ in what they were trained on. A checkpoint carries its kind under "verifier".
"""

import torch
from torch import nn

from nanoreason import checkpoint
from nanoreason.common import UserError
from nanoreason.corpus import Example
from nanoreason.data import pack
from nanoreason.model import GPT, GPTConfig
from nanoreason.tokenizer import step_ends

KINDS = ("orm", "prm")
PASS_TOKENS = 16_384  # tokens scored at once


class Verifier(nn.Module):
    """`gpt`: the trunk, usually the policy's own; `score`: its scalar head (C -> 1)."""

    def __init__(self, config, kind):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"a verifier is one of {', '.join(KINDS)}, not {kind!r}")
        self.config, self.kind, self.gpt, self.score = config, kind, GPT(config), nn.Linear(config.n_embd, 1)

    def forward(self, tokens, doc_start, select):
        """Logits (M,) at the places `select` (M,) of the flattened tokens (B, T): sigmoid of one is the chance of being right so far."""
        return self.score(self.gpt.trunk(tokens, doc_start).flatten(0, 1)[select]).squeeze(1)

    def describe(self):
        """Shape of the trunk, for checkpoints."""
        return self.gpt.describe()


def save_verifier(path, verifier, **state):
    """Write a verifier's checkpoint."""
    checkpoint.save(path, verifier, verifier=verifier.kind, **state)


def load_verifier(path, kind, device="cpu"):
    """Verifier of this kind from a checkpoint or run folder, in eval mode, frozen. Raises UserError, also for a model that writes."""
    state = checkpoint.load(path)
    if state.get("verifier") != kind:
        found = "a verifier of kind " + state["verifier"] if state.get("verifier") else "a language model"
        raise UserError(f"--verifier {path} is {found}; {kind} is wanted")
    verifier = Verifier(GPTConfig(**state["model"]), kind)
    verifier.load_state_dict(state["weights"])
    return verifier.to(device).requires_grad_(False).eval()


@torch.no_grad()
def scores(verifier, prompts, responses):
    """Judge responses (lists of ids) to prompts (lists of ids, one for each response).

    Returns for each response [(index of a token in the response, chance of being right)]: of every token that ends a step, where the verifier
    is a prm, and of the last token. Raises UserError where prompt and response exceed the verifier's context.
    """
    if not responses:
        return []
    device, examples = verifier.score.weight.device, [Example(prompt + response, len(prompt)) for prompt, response in zip(prompts, responses, strict=True)]
    T = max(len(e.ids) for e in examples)
    if T > verifier.config.max_len:
        raise UserError(f"the verifier's context of {verifier.config.max_len} tokens is too short for a question and its response of {T}")
    ends = [(step_ends(r) if verifier.kind == "prm" else []) + [len(r) - 1] for r in responses]
    rows, found = pack(examples, T), [None] * len(responses)
    at_once = max(1, PASS_TOKENS // T)
    for at in range(0, len(rows), at_once):
        cut = slice(at, at + at_once)
        tokens, _, doc_start = rows.batch(cut, device)
        owner, start = rows.owner[cut], rows.doc_start[cut]
        first = {int(owner[b, t]): b * T + t for b, t in zip(*((owner >= 0) & (start == range(T))).nonzero())}  # place of each document's first token
        select = [place + examples[i].prompt_len + end for i, place in first.items() for end in ends[i]]
        chances = iter(verifier(tokens, doc_start, torch.tensor(select, device=device)).sigmoid().tolist())
        for i in first:
            found[i] = [(end, next(chances)) for end in ends[i]]
    return found

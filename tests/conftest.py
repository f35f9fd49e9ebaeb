"""Shared fixtures: one thread, the repository root on the path, and models small enough for milliseconds."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined: before anything imports nanoreason.attention
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanoreason.common import generator  # noqa: E402
from nanoreason.model import GPT, GPTConfig  # noqa: E402
from nanoreason.tokenizer import END, VOCAB_SIZE  # noqa: E402

torch.set_num_threads(1)


def make_tiny(n_kv_head=2, seed=0, **changes):
    """A GPT of two layers whose weights are larger than at initialisation, so that its logits are far from flat."""
    shape = dict(n_layer=2, n_head=4, n_kv_head=n_kv_head, n_embd=32, head_dim=8, d_ff=64, max_len=128) | changes
    model = GPT(GPTConfig(**shape))
    noise = generator(seed, "tiny")
    for p in model.parameters():
        if p.dim() == 2:
            nn.init.normal_(p, 0.0, 0.25, generator=noise)
        else:
            nn.init.uniform_(p, 0.6, 1.4, generator=noise)
    return model.eval()


def make_stopping(bias=5.0, **kwargs):
    """The tiny GPT, leaning towards the stop token, so that its responses end after uneven lengths."""
    model = make_tiny(**kwargs)
    head = nn.Linear(model.config.n_embd, VOCAB_SIZE)
    head.weight = model.embed.weight
    nn.init.zeros_(head.bias)
    head.bias.data[END] = bias
    model.head = head
    return model.eval()


@pytest.fixture
def tiny():
    return make_tiny()


@pytest.fixture
def stopping():
    return make_stopping()

"""Shared by all tests: one thread, the repository root on the path, models of milliseconds."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

if not torch.cuda.is_available():
    # read when the kernels are defined: before anything imports nanoreason.kernels
    os.environ["TRITON_INTERPRET"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nanoreason.machine import generator  # noqa: E402
from nanoreason.model import GPT, GPTConfig  # noqa: E402
from nanoreason.tokenizer import (  # noqa: E402
    PATTERN, SPECIALS, Tokenizer, learn_ranks, shipped_tokenizer,
)

torch.set_num_threads(1)

# The shipped tokenizer, its ids and its methods under the short names that tests use.
tokenizer = shipped_tokenizer()
PAD = tokenizer.pad
USER = tokenizer.user
ASSISTANT = tokenizer.assistant
THINK = tokenizer.think
END_THINK = tokenizer.end_think
END = tokenizer.end
encode = tokenizer.encode
decode = tokenizer.decode
render_prompt = tokenizer.render_prompt
render_response = tokenizer.render_response
parse_response = tokenizer.parse_response
step_ends = tokenizer.step_ends


def toy_tokenizer():
    """Another tokenizer: four merges learned from two sentences, other special tokens, and the
    end and the padding first."""
    ranks = learn_ranks(["so so so", "and and and"], 260)
    texts = ("<eos>", "<pad>", "</thought>", "<thought>", "<bot>", "<user>")
    roles = ("end", "pad", "end_think", "think", "assistant", "user")
    specials = {role: [text, 260 + i] for i, (role, text) in enumerate(zip(roles, texts))}
    ordered = {role: specials[role] for role in SPECIALS}
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    return Tokenizer("toy", PATTERN, ordered, "".join(lines))


def pytest_collection_finish(session):
    """Begin the rehearsal of the speedrun, if a test wants it.

    Its two dozen processes run on a core that the tests leave idle: a minute less for the suite.
    """
    wanted = any("rehearsal" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly:
        return
    folder = Path(tempfile.mkdtemp())
    out = str(folder / "run")
    command = [sys.executable, "-m", "nanoreason.speedrun", "--quick", "--out", out]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(os.environ, OMP_NUM_THREADS="1"),
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=use_last_core if hasattr(os, "sched_setaffinity") else None,
            start_new_session=True,
        )
    session.config.rehearsal = folder, command, process


def use_last_core():
    """Keep this process and those that it starts to one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def pytest_sessionfinish(session):
    """End the rehearsal where the tests ended before it, and delete its folder."""
    if found := getattr(session.config, "rehearsal", None):
        folder, _, process = found
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def rehearsal(request):
    """(folder, command) of a rehearsal of the speedrun that has ended well."""
    folder, command, process = request.config.rehearsal
    assert process.wait() == 0, (folder / "log").read_text()[-3000:]
    return folder / "run", command


def make_tiny(n_kv_head=2, seed=0, tokenizer=tokenizer, **changes):
    """A GPT of two layers with logits that are far from flat.

    Its weights are larger than at initialisation.
    """
    shape = dict(n_layer=2, n_head=4, n_kv_head=n_kv_head, n_embd=32, head_dim=8, d_ff=64)
    shape |= dict(vocab_size=tokenizer.vocab_size, max_len=128)
    model = GPT(GPTConfig(**shape | changes), tokenizer)
    noise = generator(seed, "tiny")
    for p in model.parameters():
        if p.dim() == 2:
            nn.init.normal_(p, 0.0, 0.25, generator=noise)
        else:
            nn.init.uniform_(p, 0.6, 1.4, generator=noise)
    return model.eval()


def make_stopping(bias=5.0, **kwargs):
    """The tiny GPT, leaning towards its stop token: its responses end after uneven lengths."""
    model = make_tiny(**kwargs)
    head = nn.Linear(model.config.n_embd, model.config.vocab_size)
    head.weight = model.embed.weight
    nn.init.zeros_(head.bias)
    head.bias.data[model.tokenizer.end] = bias
    model.head = head
    return model.eval()


@pytest.fixture
def tiny():
    return make_tiny()


@pytest.fixture
def stopping():
    return make_stopping()

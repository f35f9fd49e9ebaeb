"""The bench's own arithmetic, a small run of it, and the peers: the same function in their code."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import END, PAD, make_tiny, tokenizer

import train_grpo
import train_sft
from nanoreason import checkpoint
from nanoreason.bench import peers, speed
from nanoreason.bench.speed import alternate, run_stage
from nanoreason.flags import parse_config, UserError
from nanoreason.machine import generator
from nanoreason.corpus import Example
from nanoreason.data import IGNORE
from nanoreason.generate import generate
from nanoreason.model import GPT, PRESETS
from nanoreason.workers import flag_words


def test_alternate_takes_turns_leaves_out_the_first_and_reports_medians():
    order = []
    values = {"a": iter([100.0, 1.0, 5.0, 3.0]), "b": iter([200.0, 2.0, 2.0, 8.0])}

    def call(name):
        order.append(name)
        return next(values[name])

    calls = {name: lambda name=name: call(name) for name in "ab"}
    assert alternate(calls, 3) == {"a": 3.0, "b": 2.0}
    assert order == list("abababab")


def test_a_head_that_never_stops_changes_no_other_token():
    model = make_tiny()
    stubborn = make_tiny()
    stubborn.head = speed.Never(stubborn.head, END)
    ids = torch.tensor([[1, 2, 3]])
    some = torch.arange(512) != END
    assert torch.equal(model(ids)[..., some], stubborn(ids)[..., some])
    assert (stubborn(ids)[..., END] == float("-inf")).all()
    bias = torch.zeros(512).index_fill(0, torch.tensor([END]), 50.0)
    stubborn.head.head.bias = torch.nn.Parameter(bias)
    assert (generate(stubborn, [[1, 2]], 3, 9, temperature=0.0).lengths == 9).all()


def test_documents_of_a_packed_row_are_as_in_the_docstring():
    doc_start, lengths = speed.packed_documents(256, 0)
    assert lengths.sum() == 256 == len(doc_start)
    assert all(32 <= n <= 96 for n in lengths[:-1].tolist())  # the last one is cut
    starts = [sum(lengths[:i].tolist()) for i in range(len(lengths))]
    expected = [start for start, n in zip(starts, lengths.tolist()) for _ in range(n)]
    assert doc_start.tolist() == expected


def test_peers_are_timed_in_bfloat16_only_where_it_pays(tmp_path):
    """Emulated, a rollout in bfloat16 takes minutes."""
    for bf16, dtypes in ((False, ["float32"]), (True, ["float32", "bfloat16"])):
        bench = speed.Bench(speed.Config(), torch.device("cpu"), bf16, make_tiny(), tmp_path)
        assert [speed.name_of(dtype) for dtype in bench.peer_dtypes()] == dtypes


SFT_ROWS = [dict(step_seconds=9.0)] * 8 + [dict(step_seconds=2.0)] * 3
SLOW = dict(rollout_seconds=9.0, update_seconds=9.0, all_right=0.5, all_wrong=0.0)
USUAL = dict(rollout_seconds=1.5, update_seconds=0.5, all_right=0.0, all_wrong=0.5)
GRPO_ROWS = [SLOW] * 2 + [USUAL] * 3


def test_the_bench_runs_and_its_figures_hang_together(tmp_path, monkeypatch, capsys):
    """Stages are stood in for by their metrics.

    The scripts' own runs are tested elsewhere, and one here, below.
    """
    rows = dict(sft=SFT_ROWS, grpo=GRPO_ROWS)

    def stand_in(script, scratch, name, **flags):
        module = dict(sft=train_sft, grpo=train_grpo)[name]
        assert script == Path(module.__file__).name
        parse_config(module.Config, flag_words(flags), module.PRESETS)  # the flags exist
        return rows[name], dict(real_share=0.5)

    monkeypatch.setattr(speed, "run_stage", stand_in)
    monkeypatch.setattr(speed, "padded_sft_rate", lambda *args: 100.0)
    out = tmp_path / "bench.json"
    model = GPT(PRESETS["nano"], tokenizer).init_weights(generator(0, "weights"))
    checkpoint.save(tmp_path / "ckpt.pt", model)
    words = f"--ckpt {tmp_path} --device cpu --parts train,prefill,generate,grpo --rows 16"
    words += f" --limit 8 --forced 8 --repeats 1 --no-peers --no-compile --json {out}"
    monkeypatch.setattr(sys, "argv", ["bench", *words.split()])
    speed.main()
    figures = json.loads(out.read_text())
    said = capsys.readouterr().out
    for line in (
        "roofline: float32", "train: ours: 384 tokens/s", "prefill:",
        "generate, natural lengths, 16 rows",
        "GRPO step, 16 samples: ours 2.00 s; 50% of the groups",
    ):
        assert line in said
    peak = max(figures["roofline"]["float32"], figures["roofline"]["bfloat16"])
    # no forward pass beats the matrix products
    assert figures["prefill"]["tokens_per_second"] * 2 * figures["params"] < peak
    assert 0 < figures["generate"]["forced"]["ours"] < figures["generate"]["bound"]
    assert figures["generate"]["share_of_bound"] < 1
    assert figures["train"]["ours"]["tokens_per_second"] == 0.5 * 1536 / 2.0
    assert figures["grpo"]["ours"] == 2.0


def test_a_stage_runs_as_a_user_would_run_it(tmp_path):
    rows, report = run_stage(
        "train_sft.py", tmp_path, "sft", stage="cold-start", model="nano", demos=60, max_steps=2,
        log_every=1, batch_tokens=512, compile=False, device="cpu")
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["step_seconds"] > 0 for row in rows)
    assert 0.5 < report["real_share"] <= 1


def test_a_stage_that_fails_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        run_stage("train_grpo.py", tmp_path, "grpo", init=tmp_path / "nothing")


def test_flags_become_words_as_in_the_docstring():
    words = flag_words(dict(max_steps=3, resume=True, compile=False))
    assert words == ["--max-steps", "3", "--resume"]


def test_left_padding_is_as_in_its_docstring():
    ids, mask = peers.left_padded([[7, 8, 9], [5]], pad=1)
    assert ids.tolist() == [[7, 8, 9], [1, 1, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_right_padding_is_as_in_its_docstring():
    tokens, targets = peers.padded_batch([Example([7, 8, 9], 1), Example([5, 6], 0)])
    assert tokens.tolist() == [[7, 8, 9], [5, 6, 0]]
    assert targets.tolist() == [[8, 9, IGNORE], [6, IGNORE, IGNORE]]


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_gives_the_same_logits_from_the_same_weights(tied):
    pytest.importorskip("transformers")
    model = make_tiny(tie_embeddings=tied, rope_theta=100.0)
    ids = torch.randint(0, 506, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(peers.to_qwen3(model)(ids).logits, model(ids), atol=1e-4)


def test_transformers_and_we_are_equally_greedy():
    pytest.importorskip("transformers")
    model = make_tiny()
    prompts = [[1, 2, 3, 4], [9], [7, 7]]
    ours = generate(model, prompts, 1, 12, temperature=0.0)
    ids, mask = peers.left_padded(prompts, PAD)
    theirs = peers.to_qwen3(model).generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=END,
        pad_token_id=PAD)
    for row, new in enumerate(theirs[:, ids.size(1) :].tolist()):
        assert new[: len(ours.response(row))] == ours.response(row)

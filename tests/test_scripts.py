"""The scripts as users run them: a learned number, resume after a kill, one clear line for every mistake, two ranks against one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sample
import train_grpo
import train_sft
from nanoreason import checkpoint, speedrun
from nanoreason.common import Machine, generator, read_metrics, run_script
from nanoreason.corpus import demonstrations
from nanoreason.data import pack
from nanoreason.generate import generate
from nanoreason.model import GPT, GPTConfig
from nanoreason.tasks import draw_problem
from nanoreason.tokenizer import render_prompt

ROOT = Path(__file__).resolve().parent.parent
ENV = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))


def call(module, *args):
    """Run a script's main() in this process with these flags."""
    argv, sys.argv = sys.argv, [module.__name__ + ".py", *map(str, args)]
    try:
        run_script(module.main)
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def capitals(tmp_path_factory):
    """A nano model that answers 'What is the capital of ...?' rightly half of the time and with 'unknown' otherwise."""
    folder = tmp_path_factory.mktemp("capitals")
    rng = random.Random(0)
    with open(folder / "data.jsonl", "w") as f:
        for i in range(800):
            problem = draw_problem("fact", 1, rng, "train")
            f.write(json.dumps({"prompt": problem.question, "response": problem.answer if i % 2 else "unknown"}) + "\n")
    call(train_sft, "--stage", "cold-start", "--data", folder / "data.jsonl", "--model", "nano", "--epochs", 10, "--batch-tokens", 512, "--row-tokens", 64,
         "--muon-lr", 0.01, "--adamw-lr", 0.01, "--out", folder / "sft")
    return folder


def test_sft_learns_what_the_file_teaches(capitals):
    report = json.loads((capitals / "sft" / "report.json").read_text())
    rows = read_metrics(capitals / "sft" / "metrics.jsonl")
    assert rows[0]["loss"] > 5.5 and report["val_loss"] < 0.6  # ln 2 a response, spread over its tokens, is the floor of a coin flip
    assert report["real_share"] > 0.85


def test_grpo_finds_the_answers_that_pay(capitals):
    call(train_grpo, "--init", capitals / "sft", "--out", capitals / "rl", "--families", "fact", "--levels", 1, "--steps", 12, "--prompts", 16,
         "--max-reasoning-tokens", 16, "--learning-rate", 1e-3, "--eval-every", 0)
    rows = read_metrics(capitals / "rl" / "metrics.jsonl")
    assert len(rows) == 12
    assert 0.25 < rows[0]["solve_rate"] < 0.75
    assert sum(r["solve_rate"] for r in rows[-3:]) / 3 > rows[0]["solve_rate"] + 0.25
    assert rows[0]["kl"] < 1e-3 < rows[-1]["kl"]
    assert all(abs(r["all_right"] + r["all_wrong"]) <= 1 and 0 <= r["truncated"] <= 1 for r in rows)


def test_sample_prints_an_answer_and_eval_counts(capitals, capsys):
    call(sample, "What is the capital of France?", "--ckpt", capitals / "sft", "--method", "vote", "--n", 8, "--json", capitals / "one.json")
    printed = capsys.readouterr().out
    one = json.loads((capitals / "one.json").read_text())
    assert f"Answer: {one['answer']}" in printed and len(one["answers"]) == 8
    call(sample, "--eval", "--ckpt", capitals / "sft", "--families", "fact", "--level", "1", "--problems", 10, "--ns", "1,4", "--json", capitals / "eval.json")
    figures = json.loads((capitals / "eval.json").read_text())
    assert figures["greedy"]["n"] == 10 and figures["scaling"]["coverage"][1] >= figures["scaling"]["coverage"][0] > 0


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def kill_and_resume(command, out, at_step):
    """Start a run, SIGKILL it once its metrics reach `at_step`, resume it to the end."""
    process = subprocess.Popen([sys.executable, *command, "--out", str(out)], cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL)
    while len(read_metrics(out / "metrics.jsonl")) <= at_step and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([sys.executable, *command, "--out", str(out), "--resume"], cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("script", ["sft", "grpo"])
def test_a_killed_run_resumes_to_the_same_numbers(script, capitals, tmp_path):
    if script == "sft":
        command = ["train_sft.py", "--stage", "cold-start", "--demos", "150", "--model", "nano", "--batch-tokens", "512", "--log-every", "1", "--save-every", "3", "--precision", "fp32"]
    else:
        command = ["train_grpo.py", "--init", str(capitals / "sft"), "--families", "fact", "--levels", "1", "--steps", "10", "--prompts", "4",
                   "--max-reasoning-tokens", "12", "--eval-every", "4", "--eval-problems", "4", "--save-every", "3", "--precision", "fp32"]
    subprocess.run([sys.executable, *command, "--out", str(tmp_path / "whole")], cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)
    kill_and_resume(command, tmp_path / "killed", at_step=5)
    whole, killed = (without_times(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("whole", "killed"))
    assert len(whole) >= 10 and killed == whole


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "ckpt.pt"
    checkpoint.save(path, GPT(GPTConfig(n_layer=1, n_embd=32, d_ff=64, max_len=64)).init_weights(generator(0, "tiny")), step=0)
    return path


@pytest.mark.parametrize("module, args, complaint", [
    (sample, ["hello", "--ckpt", "{tiny}", "--methd", "vote"], "unrecognized arguments"),
    (sample, ["hello", "--ckpt", "{tiny}", "--method", "guess"], "invalid choice"),
    (sample, ["hello", "--ckpt", "nowhere/ckpt.pt"], "no checkpoint"),
    (sample, ["hello", "--ckpt", "{foreign}"], "no checkpoint of this project"),
    (sample, ["hello", "--ckpt", "{damaged}"], "damaged"),
    (sample, ["hello " * 200, "--ckpt", "{tiny}"], "context"),
    (sample, ["--ckpt", "{tiny}"], "--eval"),
    (sample, ["--eval", "--ckpt", "{tiny}", "--families", "poetry"], "poetry"),
    (sample, ["--eval", "--ckpt", "{tiny}", "--level", "9"], "levels"),
    (train_sft, ["--epochs", "0"], "at least 1"),
    (train_sft, ["--muon-lr", "fast"], "invalid float"),
    (train_sft, ["--stage", "cold-start", "--data", "nowhere.jsonl", "--out", "{new}"], "no data file"),
    (train_sft, ["--stage", "cold-start", "--init", "{tiny}", "--demos", "20", "--out", "{new}"], "context"),
    (train_sft, ["--stage", "cold-start", "--out", "{used}"], "already holds a run"),
    (train_grpo, ["--out", "{new}"], "--init is missing"),
    (train_grpo, ["--init", "{tiny}", "--families", "poetry", "--out", "{new}"], "poetry"),
    (train_grpo, ["--init", "{tiny}", "--levels", "one", "--out", "{new}"], "--levels"),
    (speedrun, ["--seed", "-1"], "at least 0"),
])
def test_every_mistake_ends_in_one_line_and_status_2(module, args, complaint, tiny_checkpoint, tmp_path, capsys):
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pt")
    (tmp_path / "damaged.pt").write_bytes(tiny_checkpoint.read_bytes()[:500])
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "ckpt.pt").write_bytes(b"precious")
    places = dict(tiny=tiny_checkpoint, foreign=tmp_path / "foreign.pt", damaged=tmp_path / "damaged.pt", used=tmp_path / "used", new=tmp_path / "new")
    with pytest.raises(SystemExit) as stop:
        call(module, *(a.format(**places) for a in args))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in error and error.count("\n") == 1
    assert (tmp_path / "used" / "ckpt.pt").read_bytes() == b"precious"


@pytest.mark.parametrize("module", [sample, train_sft, train_grpo, speedrun])
def test_help_names_every_flag(module, capsys):
    with pytest.raises(SystemExit) as stop:
        call(module, "--help")
    assert stop.value.code in (0, None)
    assert all("--" + name.replace("_", "-") in capsys_out for capsys_out in [capsys.readouterr().out]
               for name in module.Config.__dataclass_fields__ if name != "question")


def _gradients(rank, world, folder):
    """Gradient of one SFT step and of one GRPO update, this rank holding its share; rank 0 writes them down."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    machine = Machine(torch.device("cpu"), rank, world)
    shape = GPTConfig(n_layer=2, n_embd=32, d_ff=64, head_dim=8, max_len=256)
    result = {}

    class Keep:  # an optimizer that only looks
        def __init__(self, model):
            self.model, self.grads = model, None

        def step(self):
            self.grads = torch.cat([p.grad.flatten() for p in self.model.parameters()]).clone()

        def zero_grad(self):
            self.model.zero_grad()

    model = GPT(shape).init_weights(generator(0, "weights"))
    net = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    rows, keep = pack(demonstrations(40, 0), 256), Keep(model)
    config = train_sft.Config(micro_tokens=512)
    result["loss"] = train_sft.train_step(net, [keep], rows, torch.arange(8).numpy()[rank::world], config, machine, False)
    result["sft"] = keep.grads

    model = GPT(shape).init_weights(generator(0, "weights"))
    prompts = [render_prompt(f"What is {i} + 1{'1' * i}?") for i in range(4)]
    rollout = generate(model, prompts, 3, 20, 1.0, generator(0, "rollout"))
    advantages = torch.tensor([[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [2.0, -1.0, -1.0], [0.0, 0.0, 0.0]])  # rank 1 of 2 has no signal at all
    keep = Keep(model)
    mine = torch.arange(12).view(4, 3)[rank::world].flatten()
    share = type(rollout)(rollout.ids[mine], rollout.mask[mine], rollout.logprobs[mine], rollout.ended[mine])
    config = train_grpo.Config(num_samples_per_prompt=3, minibatches=1, kl="none", micro_tokens=256, grad_clip=1e9)
    train_grpo.update(model, None, keep, prompts[rank::world], share, advantages[rank::world].flatten().numpy(), config, machine, False)
    result["grpo"] = keep.grads
    if rank == 0:
        torch.save(result, f"{folder}/{world}.pt")
    if world > 1:
        del net
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def test_two_ranks_give_the_gradient_of_one(tmp_path):
    _gradients(0, 1, tmp_path)
    torch.multiprocessing.spawn(_gradients, (2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one["sft"].abs().max() > 1e-3 and one["grpo"].abs().max() > 1e-4
    assert abs(one["loss"] - two["loss"]) < 1e-5
    torch.testing.assert_close(two["sft"], one["sft"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(two["grpo"], one["grpo"], rtol=1e-4, atol=1e-6)


def test_the_speedrun_and_the_notebook_run_from_end_to_end(tmp_path):
    """A rehearsal of the one command, continued after an interruption, and every cell of the notebook on what it left."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "nanoreason.speedrun", "--quick", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((out / "report.json").read_text())
    assert [s["name"] for s in report["stages"]] == ["base", "zero", "cold", "rl"]
    assert report["stages"][0]["params"] > 1e6 and len(report["demo"]) == 4
    assert all(0 <= a["ci"][0] <= a["acc"] <= a["ci"][1] <= 1 and a["n"] > 0 for s in report["stages"] for a in s["accuracy"].values())
    for name in ("loss", "rl", "behaviours", "stages", "best_of_n"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    (out / "rl" / "best_of_n.json").unlink()  # as if killed before this stage
    before = (out / "rl" / "ckpt.pt").stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)
    assert (out / "rl" / "best_of_n.json").exists() and (out / "rl" / "ckpt.pt").stat().st_mtime_ns == before
    notebook = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 10 and all(c.count("\n") < 15 for c in cells)
    assert all(c["outputs"] or "import" in "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")  # outputs are kept
    script = tmp_path / "notebook.py"
    script.write_text("import matplotlib\nmatplotlib.use('Agg')\n" + "\n".join(cells))
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT / "notebooks", env=dict(ENV, NANOREASON_RUN=str(out)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

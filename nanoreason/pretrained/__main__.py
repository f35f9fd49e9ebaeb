"""Make the models that ship with the code, and their card, from a run of the speedrun.

    python -m nanoreason.pretrained --from runs/full
    python -m nanoreason.pretrained --card runs/full --commit 1a2b3c4

Each model becomes one file, its matrices in bfloat16. Gains of norms and the head of a reward
model, into which its calibration is folded, stay float32: they are few, and a score moves with
every bit of the head. Tokenizer and config are inside, and the number of tokens that were trained
on; optimizer states are not. Equal runs give equal bytes. The card is written from what the run's
own reports say, and from measurements of the shipped files (`--ckpt pretrained:NAME`) that stand
beside them; sections that people write are kept when it is written again.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from nanoreason import checkpoint
from nanoreason.flags import check_output, flag, parse_config, UserError
from nanoreason.machine import run_script
from nanoreason.pretrained import describe, FOLDER, MODELS
from nanoreason.pretrained.card import CARD, model_card, trained_tokens
from nanoreason.reward_model import KINDS, start_reward_model
from nanoreason.run import say, whole_file, write_json, write_text

MOST = 20 << 20  # bytes that all models together may take
KEPT = ("verifier", "calibration")  # values of a reward model's checkpoint that go with its weights


@dataclass
class Config:
    """The flags of this command."""

    from_: str = flag("", "run folder of the speedrun whose models to export")
    card: str = flag("", "run folder of the speedrun to write the model card from")
    out: str = flag(str(FOLDER), "folder for the models, hashes.json and the card")
    commit: str = flag("", "--card: the commit that made the run")
    overwrite: bool = flag(False, "replace the models or the card that --out holds")


# One model


def bfloat16_weights(weights):
    """{name: tensor}, matrices in bfloat16, the rest in float32. Weights that are tied, and so
    share their memory, still do: else the file would hold them twice."""
    made = {}  # {place in memory: tensor}
    converted = {}
    for name, tensor in weights.items():
        place = tensor.data_ptr(), tensor.shape
        if place not in made:
            is_matrix = tensor.dim() == 2 and not name.startswith("score.")
            made[place] = tensor.to(torch.bfloat16 if is_matrix else torch.float32).clone()
        converted[name] = made[place]
    return converted


def exported(state, tokens):
    """The bytes of a loaded checkpoint dict as it ships. tokens: that it was trained on, or
    None."""
    values = {key: state[key] for key in KEPT if key in state}
    if tokens:
        values["trained_tokens"] = tokens
    plain = dict(tokenizer=state["tokenizer"].describe(), model=state["model"], **values)
    # torch.save writes text once per object: from JSON, equal values are equal objects
    contents = json.loads(json.dumps(dict(format=checkpoint.FORMAT, **plain)))
    contents["weights"] = bfloat16_weights(state["weights"])
    file = io.BytesIO()
    torch.save(contents, file)
    return file.getvalue()


def read_source(run, name):
    """The checkpoint dict of one model of a run. Raises UserError where the run has not finished
    it, and where it is of another kind."""
    folder = Path(run) / MODELS[name].folder
    if not (folder / "report.json").exists():
        raise UserError(f"--from {run}: the run has not made {folder}, or has not finished it")
    state = checkpoint.load(folder)
    kind = state.get("verifier")
    if kind != (name if name in KINDS else None):
        raise UserError(f"--from {run}: {folder} holds {kind or 'a model that writes'}, not {name}")
    if kind:
        start_reward_model(state, kind)
    else:
        checkpoint.build_model(state)
    return state


# All of them


def check_free(out, names, overwrite):
    """Raise UserError where --out cannot be written, or holds one of these files already."""
    check_output(out, "out", folder=True)
    found = [name for name in names if (Path(out) / name).exists()]
    if found and not overwrite:
        raise UserError(f"--out {out} already holds {found[0]}; --overwrite replaces it")


def export(run, out, overwrite=False):
    """Write all models of a run to `out`, and hashes.json behind them. Returns what that holds:
    {file: {"sha256", "bytes"}}. Raises UserError, and writes nothing, where a model is missing or
    damaged, where all together exceed MOST bytes, and where they would replace others unasked.
    Where an export is killed no model can be read: hashes.json goes first and comes last."""
    names = {f"{name}.pt": name for name in MODELS}
    check_free(out, [*names, "hashes.json"], overwrite)
    files = {}
    for file, name in names.items():
        files[file] = exported(read_source(run, name), trained_tokens(run, name))
    total = sum(map(len, files.values()))
    if total > MOST:
        sizes = ", ".join(f"{file} {len(data) / 2**20:.1f}" for file, data in files.items())
        raise UserError(f"--from {run}: its models take {total / 2**20:.1f} MiB together, more "
                        f"than {MOST >> 20} ({sizes}); nothing is written")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "hashes.json").unlink(missing_ok=True)
    for file, data in files.items():
        with whole_file(out / file) as scratch:
            scratch.write_bytes(data)
    hashes = {file: describe(data) for file, data in files.items()}
    write_json(out / "hashes.json", hashes)
    return hashes


def main():
    """Export the models, or write their card."""
    config = parse_config(Config, doc=__doc__)
    if bool(config.from_) == bool(config.card):
        raise UserError("give either --from or --card, and the folder of a run behind it")
    if config.commit and not config.card:
        raise UserError("--commit is for the --card")
    if config.from_:
        hashes = export(config.from_, config.out, config.overwrite)
        total = sum(entry["bytes"] for entry in hashes.values())
        say(f"{len(hashes)} models, {total / 2**20:.1f} MiB, and hashes.json are in {config.out}")
        return
    check_free(config.out, [CARD], config.overwrite)
    path = Path(config.out) / CARD
    write_text(path, model_card(config.card, config.out, config.commit))
    say(f"{path} is written; its last two sections are for people to write")


if __name__ == "__main__":
    run_script(main)

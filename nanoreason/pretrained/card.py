"""The model card: what made the shipped models, how good they are, and what they are not for."""

import shlex
from pathlib import Path

from nanoreason.flags import UserError
from nanoreason.pretrained import MODELS, PREFIX
from nanoreason.reward_model import KINDS
from nanoreason.run import read_json, read_metrics
from nanoreason.speedrun_report import interval, percent, table
from nanoreason.tasks import FAMILIES, REASONING

CARD = "MODEL_CARD.md"
WEAK = 0.75  # accuracy below which a family and level of the final model is named as weak
# Sections that people write. Where a card is written again, it keeps its own. params: of the final
# model.
WRITTEN = {
    "Known failures": "Not yet written.",
    "What the models must not be used for": (
        "They are teaching material: {params:,} parameters, trained on generated exercises in "
        "English. Do not rely on an answer that you have not checked. They know next to nothing "
        "of the world, understand no question of another kind than those above, and their "
        "refusals are an exercise in safety data, no protection: put them in front of nobody who "
        "takes them for an assistant, and let them decide nothing about people, money or health."
    ),
}


# What was measured


def cells_of(run, name):
    """{family: {level: {"acc", "n", "ci"}}} of a shipped model's greedy responses on the test
    split.

    From every JSON file in its folder that `sample.py --eval --ckpt pretrained:NAME --json` left,
    but those of direct answers (--no-think). Where two measured the same family and level, the one
    on more problems counts. level: a number.
    """
    folder = Path(run) / MODELS[name].folder
    own = Path(run) / MODELS[name].folder.split("/")[0]
    found = {}
    for path in sorted({*folder.glob("*.json"), *own.glob("*.json")}):
        figures = read_json(path)
        if figures.get("ckpt") != PREFIX + name:
            continue
        if figures["split"] != "test" or not figures["think"]:
            continue
        for family, measured in figures.get("families", {}).items():
            row = found.setdefault(family, {})
            for level, cell in measured["levels"].items():
                if cell["n"] > row.get(int(level), {"n": 0})["n"]:
                    row[int(level)] = cell
    order = [*REASONING, *(family for family in FAMILIES if family not in REASONING)]
    return {family: found[family] for family in order if family in found}


def accuracy_lines(cells):
    """A table of `cells_of` one model, a family per row and a level per column; n stands in the
    cells where it is not the same everywhere."""
    if not cells:
        return ["Not measured.", ""]
    levels = sorted({level for row in cells.values() for level in row})
    counts = {cell["n"] for row in cells.values() for cell in row.values()}
    rows = []
    for family, row in cells.items():
        texts = []
        for level in levels:
            text = percent(row[level]) if level in row else ""
            texts.append(f"{text} n={row[level]['n']}" if text and len(counts) > 1 else text)
        rows.append([family, *texts])
    rows.append(["mean of the families that reason", *(mean_at(cells, level) for level in levels)])
    lines = table(["family", *(f"level {level}" for level in levels)], rows)
    if len(counts) == 1:
        lines = [f"n = {counts.pop()} problems in each cell.", "", *lines]
    return [*lines, ""]


def mean_at(cells, level):
    """Mean accuracy, in percent, of the families that reason at one level, with its interval; ''
    where one of them was not measured there.

    The interval counts problems, as if of one family; of so many as in the smallest cell.
    """
    own = [cells.get(family, {}).get(level) for family in REASONING]
    if None in own:
        return ""
    mean = sum(cell["acc"] for cell in own) / len(own)
    return percent(interval(mean, len(own) * min(cell["n"] for cell in own)))


def weak_lines(cells):
    """Where the final model fails most, in one sentence per level."""
    lines = []
    for level in sorted({level for row in cells.values() for level in row}):
        weak = [
            f"{family} {100 * row[level]['acc']:.1f}"
            for family, row in cells.items() if level in row and row[level]["acc"] < WEAK
        ]
        if weak:
            lines.append(f"- Under {100 * WEAK:.0f}% at level {level}: {', '.join(weak)}.")
    return [*lines, ""] if lines else []


# The parts of the card


def stage_tokens(folder):
    """Tokens that one run of train_sft.py was trained on, without padding, or that one of
    train_grpo.py sampled; None of any other run, and of one that has not ended."""
    if not (folder / "report.json").exists():
        return None
    report = read_json(folder / "report.json")
    if "sampled_tokens" in report:
        return report["sampled_tokens"]
    rows = read_metrics(folder / "metrics.jsonl")
    if not rows or "tokens" not in rows[-1]:
        return None
    return round(rows[-1]["tokens"] * report["real_share"])


def trained_tokens(run, name):
    """`stage_tokens` of a model and of those that it comes from, together; None where one is not
    known, as of reward models."""
    model = MODELS[name]
    own = stage_tokens(Path(run) / model.folder)
    before = trained_tokens(run, model.began) if model.began else 0
    return None if own is None or before is None else own + before


def params_of(run, name):
    """Parameters of a model of a run."""
    return read_json(Path(run) / MODELS[name].folder / "report.json")["params"]


def file_lines(run, hashes):
    """A table of the files: what each holds, parameters, tokens, size and hash."""
    rows = []
    for name, model in MODELS.items():
        entry = hashes[f"{name}.pt"]
        tokens = trained_tokens(run, name)
        rows.append([
            f"`{PREFIX}{name}`", model.note, f"{params_of(run, name):,}",
            f"{tokens:,}" if tokens else "", f"{entry['bytes'] / 2**20:.2f}",
            f"`{entry['sha256']}`",
        ])
    total = sum(entry["bytes"] for entry in hashes.values())
    header = ["name", "what it is", "parameters", "tokens trained on", "MiB", "SHA-256"]
    return [
        *table(header, rows),
        "",
        "Tokens are those of all stages that led to a model, without padding; reinforcement "
        "learning counts what it sampled.",
        "",
        f"{total / 2**20:.1f} MiB together. Matrices are in bfloat16; gains of norms and the heads "
        "of the reward models are in float32. Tokenizer and config are in each file.",
        "",
    ]


def run_place(report):
    """(the run's folder as its commands have it, the same for a reader): a path of this machine
    becomes runs/NAME.

        python train_sft.py --out /home/me/full/base   ->   /home/me/full, runs/full
        python train_sft.py --out runs/full/base       ->   runs/full, runs/full
    """
    words = shlex.split(report["commands"]["base"])
    stood = Path(words[words.index("--out") + 1]).parent
    return stood, Path("runs") / stood.name if stood.is_absolute() else stood


def moved(text, stood, place):
    """A command with the run's folder `place` instead of `stood`, in whole words, and in lists of
    them: python sample.py --reward-model /me/full/orm,/me/full/prm"""
    words = []
    for word in shlex.split(text):
        items = []
        for item in word.split(","):
            is_inside = stood.is_absolute() and Path(item).is_relative_to(stood)
            items.append((place / Path(item).relative_to(stood)).as_posix() if is_inside else item)
        words.append(",".join(items))
    return shlex.join(words)


def making_lines(run, report, commit):
    """Where the weights come from: hardware, hours, seed, commit and commands."""
    hours = report["seconds"] / 3600
    made = f"at commit {commit}" if commit else "at a commit that was not noted"
    began = read_json(Path(run) / "config.json")
    stood, place = run_place(report)
    lines = [
        f"One run, {made}, on {report['hardware']}, torch {report['torch']}: {hours:.1f} hours. "
        "From random weights and generated data:",
        "",
        "```",
        f"python -m nanoreason.speedrun --size {began['size']} --seed {began['seed']} "
        f"--out {place.as_posix()}",
        f"python -m nanoreason.pretrained --from {place.as_posix()}",
        "```",
        "",
        "The commands of its stages:",
        "",
    ]
    for name, text in report["commands"].items():
        seconds = report["stage_seconds"][name]
        lines.append(f"- {name}, {seconds:.0f} s: `{moved(text, stood, place)}`")
    return [*lines, ""]


def quality_lines(report):
    """How well the reward models tell right from wrong, and the student beside its teacher."""
    rows = []
    for kind in KINDS:
        last = report["verifiers"][kind]["last"]
        score = "undefined" if last["auc"] is None else f"{last['auc']:.3f}"
        rows.append([kind, score, f"{last['brier']:.3f}", str(last["n"]), f"{last['right']:.2f}"])
    header = ["kind", "AUC", "Brier score", "test responses", "share of them right"]
    (student,) = report["distillation"]
    return [
        "## Reward models and student", "",
        "Read at the last token of responses of the cold start to test questions:", "",
        *table(header, rows), "",
        f"Student, {student['params']:,} parameters: {percent(student['accuracy'])} with "
        f"{student['mean_tokens']:.1f} tokens per question; its teacher, "
        f"{student['teacher_params']:,} parameters, on the same questions: "
        f"{percent(student['teacher_accuracy'])} with {student['teacher_tokens']:.1f}.",
        "",
    ]


def written_sections(path, params):
    """{title of WRITTEN: its text}: of the card that is there, or the text to begin with. params:
    of the final model.

    '## Known failures\\n\\nMany.\\n\\n## Next ...'  ->  {'Known failures': 'Many.', ...}
    """
    sections = {title: text.format(params=params) for title, text in WRITTEN.items()}
    if Path(path).exists():
        text = Path(path).read_text(encoding="utf-8")
        for part in f"\n{text}".split("\n## ")[1:]:
            title, _, body = part.partition("\n")
            if title.strip() in WRITTEN:
                sections[title.strip()] = body.strip()
    return sections


def model_card(run, folder, commit=""):
    """MODEL_CARD.md of the models in `folder`, which came from the speedrun in `run`: its text.
    Raises UserError where either is missing."""
    report = read_json(Path(run) / "report.json")
    hashes = read_json(Path(folder) / "hashes.json")
    if missing := [name for name in MODELS if f"{name}.pt" not in hashes]:
        raise UserError(f"{Path(folder) / 'hashes.json'} names no {missing[0]}.pt")
    lines = [
        "# Model card", "",
        "Small language models that learned to reason: arithmetic, equations, word problems, "
        "logic, countdown and code of this project's own task families, in English.", "",
        "## Files", "", *file_lines(run, hashes),
        "## How they were made", "", *making_lines(run, report, commit),
        "## Accuracy", "",
        "Greedy, one response, on test problems that training never saw; percent with 95% Wilson "
        "intervals. Measured on the files above by `python sample.py --eval --ckpt "
        "pretrained:NAME ...`.", "",
    ]
    for name in ("final", "r1", "cold", "r1-zero", "base", "student"):
        cells = cells_of(run, name)
        lines += [f"### {name}", "", *accuracy_lines(cells)]
        if name == "final":
            lines += weak_lines(cells)
    lines += quality_lines(report)
    written = written_sections(Path(folder) / CARD, params_of(run, "final"))
    for title, text in written.items():
        lines += [f"## {title}", "", text, ""]
    return "\n".join(lines).rstrip() + "\n"

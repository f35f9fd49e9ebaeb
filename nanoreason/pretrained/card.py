"""The model card: what made the shipped models, how good they are, and what they are not for."""

from pathlib import Path

from nanoreason.flags import UserError
from nanoreason.pretrained import MODELS
from nanoreason.reward_model import KINDS
from nanoreason.run import read_json
from nanoreason.speedrun_report import percent, table
from nanoreason.tasks import FAMILIES, REASONING

CARD = "MODEL_CARD.md"
NOTES = {  # what each model is, in a few words
    "base": "the base model, from random weights; most of its text answers at once",
    "r1-zero": "R1-Zero: GRPO straight on the base",
    "cold": "the cold start: supervised on demonstrations that reason",
    "r1": "R1: GRPO on the cold start",
    "final": "the final model: the base again, on R1's right solutions, general and safety data",
    "orm": "outcome reward model of the cold start's answers",
    "prm": "process reward model of its steps",
    "student": "a student, distilled from R1",
}
WEAK = 0.75  # accuracy below which a family and level of the final model is named as weak
# Sections that people write. Where a card is written again, it keeps its own.
WRITTEN = {
    "Known failures": "Not yet written.",
    "What the models must not be used for": (
        "They are teaching material: about a million parameters, trained on generated exercises "
        "in English. Do not rely on an answer that you have not checked. They know next to nothing "
        "of the world, understand no question of another kind than those above, and their "
        "refusals are an exercise in safety data, no protection: put them in front of nobody who "
        "takes them for an assistant, and let them decide nothing about people, money or health."
    ),
}


# What was measured


def cells_of(run, name):
    """{family: {level: {"acc", "n", "ci"}}} of a model's greedy responses on the test split.

    From every JSON file in its folder that `sample.py --eval --json` left, but those of direct
    answers (--no-think). Where two measured the same family and level, the one on more problems
    counts. level: a number.
    """
    folder = Path(run) / MODELS[name]
    own = Path(run) / MODELS[name].split("/")[0]
    found = {}
    for path in sorted({*folder.glob("*.json"), *own.glob("*.json")}):
        figures = read_json(path)
        if figures.get("split") != "test" or not figures.get("think", True):
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
    """Mean accuracy, in percent, of the families that reason at one level; '' where one of them was
    not measured there."""
    own = [cells.get(family, {}).get(level) for family in REASONING]
    if None in own:
        return ""
    return f"{100 * sum(cell['acc'] for cell in own) / len(own):.1f}"


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


def file_lines(run, hashes):
    """A table of the files: what each holds, parameters, size and hash."""
    rows = []
    for name, note in NOTES.items():
        entry = hashes[f"{name}.pt"]
        params = read_json(Path(run) / MODELS[name] / "report.json")["params"]
        size = f"{entry['bytes'] / 2**20:.2f}"
        rows.append([f"`pretrained:{name}`", note, f"{params:,}", size, f"`{entry['sha256']}`"])
    total = sum(entry["bytes"] for entry in hashes.values())
    return [
        *table(["name", "what it is", "parameters", "MiB", "SHA-256"], rows),
        "",
        f"{total / 2**20:.1f} MiB together. Matrices are in bfloat16; gains of norms and the heads "
        "of the reward models are in float32. Tokenizer and config are in each file.",
        "",
    ]


def making_lines(run, report, commit):
    """Where the weights come from: hardware, hours, seed, commit and commands."""
    hours = report["seconds"] / 3600
    made = f"at commit {commit}" if commit else "at a commit that was not noted"
    # a reader's run stands in runs/, wherever this one stood
    place = f"runs/{Path(run).name}"
    lines = [
        f"One run of `python -m nanoreason.speedrun`, {made}, seed {report['seed']}, on "
        f"{report['hardware']}, torch {report['torch']}: {hours:.1f} hours. From random weights "
        "and generated data. Its commands:",
        "",
    ]
    for name, text in report["commands"].items():
        seconds = report["stage_seconds"][name]
        lines.append(f"- {name}, {seconds:.0f} s: `{text.replace(str(run), place)}`")
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


def written_sections(path):
    """{title of WRITTEN: its text}: of the card that is there, or the text to begin with.

    '## Known failures\\n\\nMany.\\n\\n## Next ...'  ->  {'Known failures': 'Many.', ...}
    """
    sections = dict(WRITTEN)
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
        "intervals. Measured on the weights of the run, before they were rounded to bfloat16, "
        "unless a measurement beside them says otherwise.", "",
    ]
    for name in ("final", "r1", "cold", "r1-zero", "base", "student"):
        cells = cells_of(run, name)
        lines += [f"### {name}", "", *accuracy_lines(cells)]
        if name == "final":
            lines += weak_lines(cells)
    lines += quality_lines(report)
    for title, text in written_sections(Path(folder) / CARD).items():
        lines += [f"## {title}", "", text, ""]
    return "\n".join(lines).rstrip() + "\n"

"""Every command that the documents show: its script exists, its flags exist, its values are legal,
and what it reads is made by a command of the same text, by the speedrun or by the reader.

Documents are the README, the pages of results, the notebooks' texts, and module docstrings.
"""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from nanoreason import flags, speedrun

PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("notebooks/**/*.md"))]
NOTEBOOKS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("notebooks/*.ipynb"))
MODULES = sorted(
    str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.py"), *ROOT.glob("nanoreason/**/*.py")]
)
COMMAND = re.compile(r"(?:python|torchrun)\s.*?((?:\w+\.py|-m\s+nanoreason[\w.]*)\b.*)", re.DOTALL)
# flags that name input
READ = ("init", "ckpt", "teacher", "reward_model", "reuse", "data", "plan", "corpus", "speedrun",
        "policy", "reward_models")


def spans(markdown):
    """Code in Markdown: fenced blocks line by line, and `spans`, which may run over lines."""
    for i, part in enumerate(re.split(r"^```.*$", markdown, flags=re.MULTILINE)):
        if i % 2:  # between two fences
            yield from part.replace("\\\n", " ").splitlines()
        else:
            yield from re.findall(r"`([^`]+)`", part)


def docstring_commands(source):
    """Commands in a module's docstring. Flags may go on in the next lines; what stands after two
    blanks is a remark."""
    commands = []
    for line in (ast.get_docstring(ast.parse(source)) or "").splitlines():
        line = line.strip().removesuffix("\\")
        found = re.search(r"(?:^| {2,})((?:python|torchrun) .*)", line)
        if found:
            commands.append(found[1].split("  ")[0])
        elif line.startswith("--") and commands:
            commands[-1] += " " + line
    return commands


def commands_of(document):
    """[(words after the script's name, module)] of the commands in a document."""
    text = (ROOT / document).read_text()
    if document.endswith(".py"):
        code = docstring_commands(text)
    elif document.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        code = spans("\n\n".join(prose))
    else:
        code = spans(text)
    found = []
    for line in code:
        match = COMMAND.search(line)
        if match:
            words = shlex.split(re.sub(r" < \S+", "", match[1]))  # less the shell's input
            if words[0] == "-m":
                found.append((words[2:], words[1]))
            else:
                found.append((words[1:], words[0].removesuffix(".py")))
    return found


class Parsed(Exception):
    """Carries the config of a command out of main()."""


def parsed(module, words, monkeypatch):
    """The config that a command's main() would run with; it is stopped there."""
    name = "nanoreason.bench.speed" if module == "nanoreason.bench" else module
    if name in ("nanoreason.tasks", "nanoreason.pretrained"):
        name += ".__main__"
    script = importlib.import_module(name)

    def stop(*args, **options):
        raise Parsed(flags.parse_config(*args, **options))

    monkeypatch.setattr(script, "parse_config", stop)
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(Parsed) as caught:
        script.main()
    return caught.value.args[0]


DOCUMENTS = [name for name in PAGES + NOTEBOOKS + MODULES if commands_of(name)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_parses(document, monkeypatch):
    """An unknown flag, a value outside its choices or limits, or a missing module fails."""
    for words, module in commands_of(document):
        parsed(module, words, monkeypatch)


def test_commands_are_found_where_people_read_them():
    """The search itself: how many commands, and that wrapped lines belong together."""
    assert len(commands_of("README.md")) >= 15
    assert len(DOCUMENTS) >= 20
    words = [words for words, module in commands_of("sample.py") if "beam" in words]
    assert words[0][-2:] == ["--reward-model", "runs/reward-models/prm-0"]
    final = [words for words, _ in commands_of("train_sft.py") if "final" in words][0]
    assert final[-2:] == ["--data", "runs/rejection/traces.jsonl"]


def made_by(config, module):
    """Folders and files that a command leaves."""
    made = {getattr(config, name, "") for name in ("out", "json", "write")}
    if module == "nanoreason.speedrun":
        made |= {stage.flags.get("out") for stage in speedrun.plan(config)}
        made = {str(path) for path in made if path}
    if module == "distill":
        made.add(f"{config.out}/traces.jsonl")
        if not config.collect_only:
            made.add(f"{config.out}/student")
    return made - {""}


def test_what_the_readme_reads_is_made_by_an_earlier_command(monkeypatch):
    made = {"mine.jsonl"}  # the reader's own
    for words, module in commands_of("README.md"):
        config = parsed(module, words, monkeypatch)
        for name in READ:
            for path in str(getattr(config, name, "")).split(","):
                assert not path or path in made, (module, words, path)
        made |= made_by(config, module)


@pytest.mark.parametrize("words", [["-m", "nanoreason.tasks", "--show", "3"],
                                   ["-m", "nanoreason.corpus", "--show", "5"]])
def test_commands_of_seconds_run(words):
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 20

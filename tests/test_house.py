"""The rules of the house: lines, functions that fit a screen, docstrings, the import graph."""

import ast
import json
import re

import pytest
from conftest import ROOT

import nanoreason

PACKAGE = ROOT / "nanoreason"
FILES = sorted([*ROOT.glob("*.py"), *PACKAGE.rglob("*.py"), *ROOT.glob("tests/*.py")])
SOURCES = [path for path in FILES if path.parent.name != "tests"]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", names(FILES))
def test_lines_functions_and_lambdas(name):
    path = ROOT / name
    wide = [i for i, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
    assert not wide, f"lines over 100 columns: {wide[:10]}"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            assert node.end_lineno - first < 60, f"{node.name} has more than 60 lines"
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            named = any(isinstance(value, ast.Lambda) for value in values)
            assert not named, f"line {node.lineno}: a lambda with a name; write def"


@pytest.mark.parametrize("name", names(SOURCES))
def test_what_is_public_has_a_docstring(name):
    tree = parse(ROOT / name)
    assert ast.get_docstring(tree) is not None
    missing = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if not node.name.startswith("_") and node.name not in ("main", "Config"):
                if ast.get_docstring(node) is None:
                    missing.append(node.name)
    assert not missing


def test_cells_of_the_notebooks_are_short():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                lines = "".join(cell["source"]).splitlines()
                assert len(lines) <= 15 and all(len(line) <= 100 for line in lines), path.name


# Whose ids

ROLES = {"PAD", "USER", "ASSISTANT", "THINK", "END_THINK", "END", "NEWLINE"}
OF_ONE_TOKENIZER = ROLES | {"VOCAB_SIZE", "FIRST_SPECIAL", "encode", "decode", "encoding"} | {
    "render_prompt", "render_response", "parse_response", "step_ends",
}
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def assigned_names(tree):
    """Names that the top of a module gives a value."""
    targets = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        if isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return {name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)}


@pytest.mark.parametrize("name", names(FILES))
def test_no_module_takes_one_tokenizer_for_granted(name):
    """Ids belong to a Tokenizer, which comes with a model or as an argument. Tests take the shipped
    one's from conftest.py."""
    tree = parse(ROOT / name)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "nanoreason.tokenizer":
            found = {alias.name for alias in node.names} & OF_ONE_TOKENIZER
            assert not found, f"imports {found} from nanoreason.tokenizer"
        if isinstance(node, ast.ImportFrom) and node.module == "nanoreason":
            assert "tokenizer" not in {alias.name for alias in node.names}, "imports the module"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of_tokenizer = node.value.id == "tokenizer"
            assert not (of_tokenizer and node.attr in ROLES), f"tokenizer.{node.attr}"
    if (ROOT / name) in SOURCES:
        assert not assigned_names(tree) & OF_ONE_TOKENIZER
        at_import = [node for node in tree.body if not isinstance(node, DEFINITIONS)]
        called = [n for node in at_import for n in ast.walk(node) if isinstance(n, ast.Call)]
        made = [n for n in called if getattr(n.func, "id", "") == "shipped_tokenizer"]
        assert not made, f"line {made[0].lineno}: a tokenizer that is made at import"


# of the core: what makes new models, and what reads checkpoints that name no tokenizer
BEGINNINGS = {"checkpoint", "corpus", "train_sft"}


def test_the_shipped_tokenizer_is_named_where_models_begin_and_nowhere_else():
    named = set()
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Name) and node.id == "shipped_tokenizer":
                named.add(path)
    core = {path.stem for path in named if path.parent.name not in ("bench", "studies")}
    assert core == BEGINNINGS


# The import graph


def module_name(path):
    """nanoreason/tasks/core.py -> tasks.core; an __init__.py is its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if module_name(path)}


def imports(path):
    """Names of this package's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    mine = {name.removeprefix("nanoreason.") for name in found if name.startswith("nanoreason.")}
    return mine & set(MODULES), {name.split(".")[0] for name in found} & SCRIPTS


def room(name):
    """core, tasks, studies or bench."""
    first = name.split(".")[0]
    return first if first in ("tasks", "studies", "bench") else "core"


def test_imports_run_downwards():
    """A module imports only what stands above it in the drawing; scripts are imported by studies
    alone."""
    text = re.sub(r"\n {8,}", " ", nanoreason.__doc__)  # a long line goes on in the next
    drawn = re.findall(r"^    (\S+) ->(.*)$", text, re.M)
    order = [name for name, _ in drawn]
    core = {name for name in MODULES if room(name) == "core"}
    assert set(order) - {"tasks"} == core and len(order) == len(set(order))
    for name, needs in drawn:
        files = [MODULES[m] for m in MODULES if m == name or room(m) == name == "tasks"]
        found = set()
        for path in files:
            ours, _ = imports(path)
            found |= {"tasks" if room(m) == "tasks" else m for m in ours}
        found.discard(name)
        assert found == set(needs.split()), f"{name} imports {sorted(found)}"
        assert all(order.index(m) < order.index(name) for m in found), name


def test_no_room_is_imported_from_below():
    allowed = {
        "core": {"core", "tasks"},
        "tasks": {"tasks", "core"},
        "bench": {"core", "tasks", "bench"},
        "studies": {"core", "tasks", "studies"},
    }
    for name, path in MODULES.items():
        ours, scripts = imports(path)
        assert {room(m) for m in ours} <= allowed[room(name)], name
        assert not scripts or room(name) == "studies", f"{name} imports {scripts}"
        if room(name) == "tasks":
            assert not {m for m in ours if room(m) == "core"} - {"flags", "machine"}, name


def test_scripts_do_not_import_one_another():
    """With one exception: distill.py ends in the training of train_sft.py."""
    for path in ROOT.glob("*.py"):
        _, scripts = imports(path)
        assert scripts <= ({"train_sft"} if path.stem == "distill" else set()), path.name

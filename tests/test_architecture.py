"""The house keeps its own rules: sizes, words, docstrings, types, what is loaded when, what the documentation names.

The rules of imports between rooms are contracts of import-linter in ``pyproject.toml``; ``make test`` checks them too.
"""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import median

import pytest

import backsight

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "backsight").rglob("*.py"))
TREES = {path.relative_to(ROOT / "src"): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}

LONGEST_FUNCTION, MEDIAN_FUNCTION = 60, 12
LONGEST_FAMILY = 80
"""Lines, docstrings included; those of a family of models without blank ones, comments and docstrings."""

SHORT_WORDS = {"emb", "embs", "rep", "reps", "net", "nets", "recon", "recons", "gt"}
"""Written out: features, representation, network, reconstruction, truth."""

HEAVY = {"torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "gradio", "matplotlib", "scipy"}
"""What takes seconds to load, and is loaded when it is used."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

# ---- sizes


def lines_of(node: Definition) -> int:
    """From the line of ``def`` or ``class`` to the last one."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def functions() -> dict[str, int]:
    """Every function and method by its place -> its number of lines."""
    return {
        f"{path}:{node.lineno} {node.name}": lines_of(node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }


def test_no_function_is_long(capsys: pytest.CaptureFixture[str]) -> None:
    found = functions()
    with capsys.disabled():
        print(f"\nfunctions: {len(found)}, median {median(found.values()):g} lines, longest {max(found.values())}")
    assert {name: length for name, length in found.items() if length > LONGEST_FUNCTION} == {}
    assert median(found.values()) <= MEDIAN_FUNCTION


# ---- families of models are data


def code_lines(source: str) -> int:
    """The lines of a file that hold code: not blank, no comment, no docstring."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        held |= set() if token.type in nothing else set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def family_files() -> dict[str, Path]:
    """The files of the families of models, by module."""
    modules = [node.module or "" for node in ast.walk(TREES[Path("backsight/models/registry.py")])
               if isinstance(node, ast.ImportFrom)]  # fmt: skip
    names = [name for name in modules if name.startswith("backsight.models.") and not name.endswith(".family")]
    return {name: ROOT / "src" / f"{name.replace('.', '/')}.py" for name in names}


def test_a_family_is_data_and_hardly_any_code(capsys: pytest.CaptureFixture[str]) -> None:
    found = {name: code_lines(path.read_text(encoding="utf-8")) for name, path in family_files().items()}
    assert len(found) > 10
    with capsys.disabled():
        print(
            f"\nfamilies: {len(found)}, median {median(found.values()):g} lines of code, longest {max(found.values())}"
        )
    assert {name: length for name, length in found.items() if length > LONGEST_FAMILY} == {}


@pytest.mark.parametrize("name", family_files())
def test_a_family_copies_no_forward(name: str) -> None:
    """No class, so no forward of its own, and nothing that computes with tensors as one would."""
    tree = ast.parse(family_files()[name].read_text(encoding="utf-8"))
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] == []
    named = {node.name for node in ast.walk(tree) if isinstance(node, Function)}
    assert named.isdisjoint({"forward", "__call__"})
    roots = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots.isdisjoint({"torch.nn.functional", "einops"})


# ---- words


def names_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of all that a file itself names: functions, classes, arguments, variables, attributes it sets."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name


def words_of(name: str) -> list[str]:
    """``trainNet_v2`` -> train, net, v, 2."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def is_short(name: str) -> bool:
    """Whether a name has a word that should be written out, or counts with ``n_``."""
    return not SHORT_WORDS.isdisjoint(words_of(name)) or name.lstrip("_").startswith("n_")


def test_names_are_whole_words() -> None:
    named = [(path, *found) for path, tree in TREES.items() for found in names_in(tree)]
    modules = [(path, 0, part) for path in TREES for part in path.with_suffix("").parts]
    assert [f"{path}:{line} {name}" for path, line, name in named + modules if is_short(name)] == []


# ---- docstrings and types


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Every public function and class at the top of a module, and the public methods of those classes."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def missing_types(function: Function) -> list[str]:
    """The arguments without a type, and ``return``."""
    every = function.args
    arguments = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
    bare = [each.arg for each in arguments if each is not None and each.annotation is None]
    return [name for name in bare if name not in ("self", "cls")] + (["return"] if function.returns is None else [])


def test_everything_public_has_a_docstring() -> None:
    found = [(path, name, node) for path, tree in TREES.items() for name, node in public(tree.body)]
    assert len(found) > 100
    assert [f"{path} {name}" for path, name, node in found if not ast.get_docstring(node)] == []
    assert [str(path) for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []


def test_every_function_is_typed() -> None:
    every = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, Function)]
    untyped = {f"{path}:{node.lineno} {node.name}": missing_types(node) for path, node in every}
    assert {name: missing for name, missing in untyped.items() if missing} == {}


# ---- what is loaded when


def loaded_by(code: str) -> set[str]:
    """The heavy libraries that a fresh process has loaded after ``code``."""
    report = f"import json, sys; print('loaded', json.dumps(sorted({HEAVY!r} & sys.modules.keys())))"
    result = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.rpartition("loaded ")[2]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import backsight, backsight.cli; dir(backsight)") == set()


def test_help_loads_nothing_heavy() -> None:
    calls = [["--version"], ["--help"], ["train", "--help"], ["reconstruct", "--help"], ["zoo", "--help"]]
    code = f"""
from backsight.cli import main
for call in {calls!r}:
    try:
        main(call)
    except SystemExit as stop:
        assert stop.code in (0, None), stop.code
"""
    assert loaded_by(code) == set()


# ---- the public names


@pytest.mark.parametrize("name", backsight.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(backsight, name) is not None


def test_there_are_no_other_names() -> None:
    assert set(dir(backsight)) == set(backsight.__all__)
    with pytest.raises(AttributeError, match="no attribute 'recon'"):
        backsight.recon  # noqa: B018


# ---- what no file may say

PRIVATE = {
    "a package registry": r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|conda[.]anaconda[.]org|npmjs[.]org",
    "a machine's own path": r"(?<![\w.])/(?:work|root|home)/\w",
    "a private note": r"\b(?:paper|model)-facts\b|\bissues? ?#?\d+\b",
    "how it was made": r"(?<!scope=.)(?<!whole )\bsession\b",
}


def project_files() -> list[Path]:
    """The files that git tracks, or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git repository: there is no list of the project's files")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("what", PRIVATE)
def test_no_file_tells(what: str) -> None:
    told = []
    for path in project_files():
        content = path.read_bytes()
        if b"\0" in content or path == Path(__file__):
            continue
        lines = content.decode("utf-8", "replace").splitlines()
        told += [f"{path.relative_to(ROOT)}:{at}" for at, line in enumerate(lines, 1) if re.search(PRIVATE[what], line)]
    assert told == []


# ---- the documentation names what there is


def read(name: str) -> str:
    """A text of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def commands(capsys: pytest.CaptureFixture[str], *group: str) -> list[str]:
    """The commands that ``backsight [GROUP] --help`` offers."""
    from backsight.cli import main

    with pytest.raises(SystemExit):
        main([*group, "--help"])
    offered = re.search(r"\{([\w,-]+)\}", capsys.readouterr().out)
    return [" ".join(["backsight", *group, name]) for name in offered[1].split(",")]


def test_every_command_and_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    from backsight.options import ModelOptions, TrainOptions

    text = read("docs/cli.md")
    known = commands(capsys) + commands(capsys, "zoo")
    assert len(known) > 5
    options = [f"--{each.name.replace('_', '-')}" for each in (*fields(TrainOptions), *fields(ModelOptions))]
    assert [word for word in [*known, *options] if f"`{word}" not in text] == []


def test_every_field_of_the_results_is_documented() -> None:
    from backsight.results import Measurement, Picture, Result

    text = read("docs/results-schema.md")
    names = [each.name for kind in (Result, Measurement, Picture) for each in fields(kind) if each.name != "image"]
    assert [name for name in names if f"`{name}`" not in text] == []

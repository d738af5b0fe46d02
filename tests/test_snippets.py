"""What the documentation shows runs: snippets (on small models in place of large ones), notebooks, docstrings."""

from __future__ import annotations

import doctest
import functools
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DetrConfig, DetrForObjectDetection

import backsight as bs
from backsight.chain import ChainEnsemble, build_chain
from backsight.core import Pixels
from backsight.engine import StagedModel
from backsight.figures import image_png
from backsight.models import MODELS, stage_module
from backsight.tasks import make_plans

command_line: Any = import_module("backsight.cli.main")  # the package has a function of that name

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/getting-started.md", "docs/choose.md", "docs/zoo.md", "docs/hub.md")


def snippets(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


@functools.cache
def small_detr() -> StagedModel:
    """A detector of six layers, as ``detr-resnet-50`` has them, but small."""
    torch.manual_seed(0)
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config={"model_type": "resnet", "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1],
                         "embedding_size": 8, "layer_type": "basic", "out_features": ["stage4"]},
        d_model=16, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5, num_labels=3,
    )  # fmt: skip
    return stage_module(DetrForObjectDetection(config), MODELS["detr"], Pixels((192, 224)), name="small")


@functools.cache
def small_chains() -> ChainEnsemble:
    model = small_detr()
    return ChainEnsemble([build_chain(model, make_plans(model, ()), seed).eval() for seed in range(2)])


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the photos that snippets name; small things in place of what takes a network, a GPU or an hour."""
    load, open_chains = bs.load_model, ChainEnsemble.from_pretrained
    monkeypatch.setattr(bs, "load_model", lambda name, **o: load(name) if name.startswith("zoo/") else small_detr(),
                        raising=False)  # fmt: skip
    monkeypatch.setattr(bs, "train", lambda *_, **__: small_chains(), raising=False)
    monkeypatch.setattr(
        ChainEnsemble,
        "from_pretrained",
        lambda name, *_: open_chains(name) if str(name).startswith("zoo/") else small_chains(),
    )
    monkeypatch.chdir(tmp_path)
    for name in ("bus.jpg", "photo.jpg"):
        Path(name).write_bytes(image_png(torch.rand(3, 40, 60)))
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_python_snippets_run_one_after_the_other(page: str, stand_ins: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, text in enumerate(snippets(page, "python")):
        exec(compile(text, f"{page}, snippet {number}", "exec"), names)
    assert names["pictures" if page == "README.md" else "from_layer"].shape[0] == 2


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for text in snippets(page, "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and Path(words[0]).name == "backsight":
                    yield page, words[1:]


def noted(function: Callable[..., None], called: list[str]) -> Callable[..., None]:
    """A function that has the signature of ``function`` and only notes that it was called."""

    signature = inspect.signature(function, eval_str=True)

    def note(*args: Any, **kwargs: Any) -> None:
        signature.bind(*args, **kwargs)
        called.append(function.__name__)

    annotations = {name: each.annotation for name, each in signature.parameters.items()}
    note.__dict__.update(__signature__=signature, __doc__=function.__doc__)
    note.__annotations__ = annotations
    return note


def test_commands_are_understood_as_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[str] = []
    for group in (command_line.COMMANDS, *(group for _, group in command_line.GROUPS.values())):
        for name, function in group.items():
            monkeypatch.setitem(group, name, noted(function, called))
    found = list(commands())
    for _, words in found:
        command_line.run_command(words)
    assert len(called) == len(found) > 10


# ---- notebooks


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_begins_by_installing(path: Path) -> None:
    code = cells(path, "code")
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert "%pip install" in "".join(code[0]["source"])
    text = "".join(line for cell in cells(path, "markdown") for line in cell["source"])
    assert "What you may conclude" in text
    for link in re.findall(r"\]\(([\w.-]+\.ipynb)\)", text):
        assert (path.parent / link).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path, "code")):
        source = re.sub(r"^(\s*)%pip.*$", r"\1pass", "".join(cell["source"]), flags=re.M)
        exec(compile(source, f"{path.name}, cell {number}", "exec"), names)


# ---- examples in docstrings


SOURCE = ROOT / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    found = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed

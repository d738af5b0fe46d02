"""Files that others wrote, damaged at random: one line that says what is wrong, or all that is left, and nothing lost
without a word."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.sax.saxutils import escape

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backsight.chain import InverseChain, Plan, build_chain
from backsight.core import Pixels, UserError
from backsight.data import open_data
from backsight.data.objects import Photos
from backsight.experiments.subject import trained_on
from backsight.io import read_json_lines
from backsight.metrics import Interval
from backsight.models.spec import read_spec
from backsight.results import Measurement, Picture, Result
from damage import damaged
from pictures import save_pictures
from small import build_small

PIXELS = Pixels((8, 12))
SIZE = (12, 16)
NAMES = [f"{number}.png" for number in range(4)]
TRIES = pytest.mark.parametrize("tries", [20, pytest.param(400, marks=pytest.mark.slow)])


def fuzz(content: Any, tries: int, check: Callable[[Any], None]) -> None:
    """Call ``check`` with ``content``, damaged in so many ways; a mistake that is found is one line."""

    @settings(max_examples=tries, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(content))
    def run(content: Any) -> None:
        message = ""
        try:
            check(content)
        except UserError as error:
            message = str(error)
        assert len(message.splitlines()) <= 1
        assert len(message) < 1000

    run()


# ---- annotations


class Warnings(logging.Handler):
    """The lines that were logged, and the numbers in them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def warnings() -> Iterator[Warnings]:
    handler = Warnings()
    logging.getLogger("backsight").addHandler(handler)
    yield handler
    logging.getLogger("backsight").removeHandler(handler)


def check_nothing_is_lost(spec: str, num_photos: int, num_objects: int, warnings: Warnings) -> None:
    """Read every sample: photos and objects are there, or a line says that they are not."""
    warnings.lines.clear()
    splits: Any = open_data(spec, PIXELS, masks=True)
    parts = [splits.train, splits.validation, splits.test]
    sources: dict[int, Photos] = {id(source): source for source in (getattr(part, "source", part) for part in parts)}
    kept = sum(len(source) for source in sources.values()), sum(len(source.boxes) for source in sources.values())
    samples = [part[index] for part in parts for index in range(len(part))]
    assert warnings.lines or (*kept, len([each for each in samples if each])) == (num_photos, num_objects, num_photos)
    assert all("\n" not in line for line in warnings.lines)
    for sample in filter(None, samples):
        assert sample.target.boxes.isfinite().all()
        json.dumps(sample.id).encode()
        sample.id.encode()
    assert all(name.encode() for name in splits.train.classes.values())
    assert len(splits.train.fingerprint()) == 64


def length(content: Any, name: str) -> int:
    """How many things of a kind there are; 1 where it is no list."""
    found = content.get(name) if isinstance(content, dict) else None
    return len(found) if isinstance(found, list) else int(found is not None)


@TRIES
def test_coco(tmp_path: Path, tries: int, warnings: Warnings) -> None:
    save_pictures(tmp_path / "val", NAMES, SIZE)
    images = [{"id": n, "file_name": name, "height": 12, "width": 16} for n, name in enumerate(NAMES)]
    outlines: list[Any] = [[[1, 1, 5, 1, 5, 5]], {"size": [12, 16], "counts": [30, 9, 153]}] * 2
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 6, 7], "iscrowd": 0, "segmentation": outline}
        for n, outline in enumerate(outlines)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path = tmp_path / "annotations" / "instances_val.json"
    path.parent.mkdir()

    def check(content: Any) -> None:
        path.write_text(json.dumps(content))
        num_photos, num_objects = length(content, "images"), length(content, "annotations")
        check_nothing_is_lost(f"coco:{tmp_path}", num_photos, num_objects, warnings)

    fuzz(content, tries, check)


NOT_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "?")


def xml(tag: str, content: Any) -> str:
    if isinstance(content, list):
        return "".join(xml(tag, each) for each in content)
    below = "".join(xml(key, content[key]) for key in content) if isinstance(content, dict) else escape(str(content))
    return f"<{tag}>{below}</{tag}>".translate(NOT_XML)


@TRIES
def test_voc(tmp_path: Path, tries: int, warnings: Warnings) -> None:
    save_pictures(tmp_path / "JPEGImages", NAMES, SIZE)
    box = {"xmin": 1, "ymin": 2, "xmax": 9, "ymax": 8}
    objects = [{"name": name, "difficult": 0, "bndbox": box} for name in ("a", "b")]
    content = {"size": {"width": 16, "height": 12}, "object": objects}
    paths = [(tmp_path / "Annotations" / name).with_suffix(".xml") for name in NAMES]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(xml("annotation", content))

    def check(content: Any) -> None:
        whole = xml("annotation", content)
        paths[0].write_text(whole)
        check_nothing_is_lost(f"voc:{tmp_path}", 4, 6 + whole.count("<object>"), warnings)

    fuzz(content, tries, check)


@TRIES
def test_yolo(tmp_path: Path, tries: int, warnings: Warnings) -> None:
    save_pictures(tmp_path / "images", NAMES, SIZE)
    (tmp_path / "labels").mkdir()
    lines = [[0, 0.5, 0.5, 0.25, 0.25], [1, 0.25, 0.25, 0.75, 0.25, 0.75, 0.75]]
    content = {"data": {"train": "images", "nc": 2, "names": ["cat", "dog"]}, "lines": lines}
    for name in NAMES:
        (tmp_path / "labels" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.25 0.25\n")

    def check(content: Any) -> None:
        known = content if isinstance(content, dict) else {}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(known.get("data")))
        lines = known["lines"] if isinstance(known.get("lines"), list) else []
        rows = [" ".join(map(str, row)) if isinstance(row, list) else str(row) for row in lines]
        text = "\n".join(row for row in rows if row.strip()).encode("utf-8", "replace").decode()
        (tmp_path / "labels" / "0.txt").write_text(text)
        num = sum(bool(line.strip()) for line in text.splitlines())
        check_nothing_is_lost(f"yolo:{tmp_path}", 4, 3 + num, warnings)

    fuzz(content, tries, check)


# ---- files of ours


def small_chain() -> InverseChain:
    plans = {"backbone": Plan("patch"), "encoder": Plan("blocks", {"depth": 1, "heads": 2})}
    return build_chain(build_small("vit"), plans, 0)


@TRIES
def test_chains(tmp_path: Path, tries: int) -> None:
    path = small_chain().save(tmp_path) / "chain.json"

    def check(content: Any) -> None:
        path.write_text(json.dumps(content))
        InverseChain.from_pretrained(tmp_path)

    fuzz(json.loads(path.read_text()), tries, check)


HOSTILE: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "leads out": (("inverses", "../../encoder"), None, "'../../encoder' is no inverse of a stage"),
    "no spread": (("model", "pixels", "std"), [0, 1, 1], "'std' of .* is 0.0: it has to be more than 0"),
    "infinitely deep": (("inverses", "encoder", "options", "depth"), 10_000, "'depth' of .* is 10000: it has to be"),
    "deeper than its weights": (("inverses", "encoder", "options", "depth"), 200, "other weights than chain.json says"),
    "wide": (("inverses", "encoder", "source", "width"), 2**40, "'width' of .* it has to be from 1 to"),
    "not a number": (("seed",), float("nan"), "is not JSON"),
    "text for a list": (("stages",), {"a": 1}, "'stages' of .* it has to be"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_chain_is_refused_before_anything_is_built(tmp_path: Path, what: str) -> None:
    (*way, last), value, message = HOSTILE[what]
    path = small_chain().save(tmp_path) / "chain.json"
    content = json.loads(path.read_text())
    home = content
    for key in way:
        home = home[key]
    home[last] = content["inverses"]["encoder"] if value is None else value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        InverseChain.from_pretrained(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    chain = small_chain()
    with torch.no_grad():
        next(chain.inverses["encoder"].parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="values that are not finite"):
        InverseChain.from_pretrained(chain.save(tmp_path))


SPEC = {
    "family": "x",
    "task": "classify",
    "pixels": {"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    "prediction": {"logits": "logits"},
    "labels": {0: "cat", 1: "dog"},
    "arguments": {"mask": None},
    "stages": [
        {"name": "a", "site": {"path": "a", "pattern": "b d h w"}, "inverse": "residual"},
        {"name": "b", "site": "b.1", "layers": ["b.*"], "prefix": 1, "inverse": {"name": "blocks", "depth": 2}},
    ],
}


@TRIES
def test_specs(tmp_path: Path, tries: int) -> None:
    def check(content: Any) -> None:
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(content))
        read_spec(tmp_path / "spec.yaml")

    fuzz(SPEC, tries, check)


@TRIES
def test_results(tmp_path: Path, tries: int) -> None:
    labels = {"model": "m", "stage": "a", "metric": "mse"}
    measured = [Measurement(labels, torch.ones(2, 3)), Measurement(labels, torch.ones(1, 1), Interval(1, 0, 2))]
    pictures = [Picture(labels, torch.rand(3, 4, 4)), Picture(labels, torch.rand(3, 4, 4), "a.png")]
    result = Result("e", [{"model": "m", "seeds": [0, 1]}], measured, pictures, images={"m": ["a", "b", "c"]})
    path = result.write(tmp_path / "result.json")

    def check(content: Any) -> None:
        path.write_text(json.dumps(content))
        found = Result.load(path)
        assert all(each.image.shape[0] == 3 for each in found.pictures)
        assert found.to_table()

    fuzz(json.loads(path.read_text()), tries, check)


@TRIES
@pytest.mark.parametrize("name", ["config.yaml", "card.json"])
def test_what_chains_were_trained_on(tmp_path: Path, tries: int, name: str) -> None:
    ensemble: Any = SimpleNamespace(run_folders=[tmp_path])
    write = yaml.safe_dump if name == "config.yaml" else json.dumps

    def check(content: Any) -> None:
        (tmp_path / name).write_text(write(content))
        assert isinstance(trained_on(ensemble), str | None)

    fuzz({"command": "c", "data": {"spec": "world", "sizes": [1, 2]}, "seeds": [0]}, tries, check)


LINES = [b'{"step": 1}', b"[1]", b'{"step":', b"null", b"[" * 9999]


@settings(database=None)
@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(LINES))))
def test_lines_of_metrics(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, others = read_json_lines(path)
    assert len(found) >= lines.count(b'{"step": 1}')
    assert len(found) + others == len(path.read_bytes().splitlines())

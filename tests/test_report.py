"""The page is whole in itself, safe with any name, readable in light and dark; only what is ours is replaced."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from backsight.core import UserError
from backsight.demos import demo
from backsight.figures import image_png
from backsight.io import write_bytes
from backsight.metrics import Interval
from backsight.report import rewrite_report, write_report
from backsight.report.reconstruct import check_output, picture_file
from backsight.report.views import format_number
from backsight.results import Measurement, Picture, Result
from backsight.training import Loop
from example_pages import Page, experiments_page, run_page

EVIL = "<script>alert('&\"')</script>"


def picture(seed: int, size: tuple[int, int] = (12, 16)) -> torch.Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


def row(name: str, *columns: tuple[str, Sequence[torch.Tensor]]) -> list[Picture]:
    """The pictures of one image: for each stage one, or one for each seed."""
    return [
        Picture(
            {"model": "m", "image": name, "stage": stage, "row": f"seed {seed}", "caption": f"caption of {name}"},
            image,
            picture_file(name, stage, seed),
        )
        for stage, images in columns
        for seed, image in enumerate(images)
    ]


def measured(stage: str, metric: str, means: Sequence[float], *bounds: float, **labels: int) -> Measurement:
    """A mean for each seed, and where ``bounds`` are given their interval."""
    values = torch.tensor(means, dtype=torch.float64)[:, None]
    mean = float(values.mean())
    interval = None if not bounds else Interval(mean, *bounds)
    return Measurement({"model": "m", "stage": stage, "metric": metric, **labels}, values, interval)


def example(name: str = "photo.jpg", random: bool = False) -> Result:
    """Two images, two stages, three seeds."""
    pictures = [
        each
        for image in (name, "photos/second.jpg")
        for each in row(
            image,
            ("input", [picture(0)]),
            ("backbone", [picture(seed) for seed in (1, 2, 3)]),
            ("encoder@local", [picture(seed) for seed in (4, 5, 6)]),
        )
    ]
    errors = [
        measurement
        for stage in ("backbone", "encoder@local")
        for measurement in (
            measured(stage, "mse", [0.01, 0.02, 0.03], 0.015, 0.025),
            measured(stage, "psnr", [20.0, 17.0, 15.2], math.nan, math.nan),
            measured(stage, "ssim", [0.5, 0.6, 0.7], math.nan, math.nan),
            measured(stage, "layer error", [0.2, 0.3, 0.4], math.nan, math.nan),
        )
    ]
    mean_image = [measured("mean image", metric, [value]) for metric, value in (("mse", 0.05), ("psnr", 13.0))]
    losses = [measured("backbone", "training loss", [1 / (1 + step)] * 2, step=step) for step in range(5)]
    card = {
        **{"model": name, "weights": "local folder", "random": random, "family": name, "data": f"folder:{name}"},
        **{"num_images": 1234, "data_fingerprint": "abc123", "size": [12, 16], "fit": "stretch"},
        "value_range": "RGB in [0, 1]",
        "training": {"images seen": 32000, "images/s": 512.25, name: name},
    }
    measurements = [*errors, *mean_image, *losses]
    return Result("reconstruct", [card], measurements, pictures, command=f"backsight reconstruct {name}")


def without_numbers(result: Result, pictures: Sequence[Picture] | None = None) -> Result:
    """Without errors and losses, whose charts take longest to draw; and with other pictures."""
    return replace(result, measurements=(), pictures=result.pictures if pictures is None else pictures)


def open_page(result: Result, folder: Path) -> Page:
    return Page(write_report(result, folder / "report.html"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """That of the example, for all who only read it."""
    folder = tmp_path_factory.mktemp("page")
    return open_page(example(), folder)


def test_no_request_leaves_the_page(page):
    links = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "formaction")
    ]
    assert links
    assert all(link.startswith("data:image/") for link in links)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for code in page.code.values():
        assert not re.search(r"url\(|@import|https?:|fetch|XMLHttpRequest|import\(", code)


def test_the_content_policy_allows_only_its_own_script(page):
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    expected = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["script-src"] == f"'sha256-{expected}'"


def test_names_are_text_and_nothing_else(tmp_path):
    page = open_page(example(EVIL), tmp_path)
    assert "<script>alert" not in page.source
    assert len(page.all("script")) == 1
    assert page.text.count(EVIL) >= 8
    assert any(EVIL in (image["alt"] or "") for image in page.all("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_every_picture_is_there_as_it_was_written(tmp_path):
    results = without_numbers(example())
    page = open_page(results, tmp_path)
    inlined = {image["src"] for image in page.all("img")}
    assert len(results.pictures) == 2 * (1 + 3 + 3)
    encoded = {_pixels(base64.b64decode(source.split(",")[1])) for source in inlined if "image/png" in source}
    assert all(_pixels(image_png(each.image)) in encoded for each in results.pictures)
    assert all(image["alt"] for image in page.all("img"))


def _pixels(content: bytes) -> bytes:
    return numpy.array(Image.open(BytesIO(content)).convert("RGB")).tobytes()


def test_the_views_are_seeds_mean_and_spread(page):
    radios = [each for each in page.all("input") if each["type"] == "radio"]
    assert [radio["id"] for radio in radios] == [f"view-{index}" for index in range(5)]
    views = {image["alt"]: image["src"] or "" for image in page.all("img")}
    mean = numpy.frombuffer(_pixels(base64.b64decode(views["photo.jpg, backbone, mean"].split(",")[1])), dtype="uint8")
    seeds = torch.stack([picture(seed) for seed in (1, 2, 3)]).mean(0).permute(1, 2, 0).flatten() * 255
    assert numpy.abs(mean.astype(float) - seeds.numpy()).max() <= 1.01
    assert "photo.jpg, backbone, spread" in views
    assert "photo.jpg, input" in views


def test_one_seed_needs_no_views(tmp_path):
    pictures = row("a", ("input", [picture(0)]), ("backbone", [picture(1)]))
    page = open_page(without_numbers(example(), pictures), tmp_path)
    assert [each["type"] for each in page.all("input")] == ["range"]
    assert sum(image.get("class", "") == "view-always small" for image in page.all("img")) == 2


def test_the_slider_has_a_place_for_every_stage(page):
    (slider,) = [each for each in page.all("input") if each["type"] == "range"]
    assert (slider["min"], slider["max"], slider["aria-label"]) == ("0", "2", "Stage")
    cells = [each for each in page.all("figure") if each.get("class") == "cell"]
    assert [cell["data-column"] for cell in cells] == ["0", "1", "2"] * 2
    assert "40 % of the squared error of the mean image" in " ".join(page.text.split())
    (viewer,) = [each for each in page.all("div") if each.get("class") == "viewer"]
    assert "hidden" in viewer  # until the script shows it


def test_a_chart_has_a_band_for_every_value(page):
    bands = [each for each in page.all("span") if each.get("class") == "band"]
    assert [band["title"] for band in bands[:2]] == [
        f"{stage}: 0.0200\n95 % interval 0.0150 to 0.0250\nseeds 0.0100, 0.0200, 0.0300\nmean image 0.0500"
        for stage in ("backbone", "encoder (each token alone)")
    ]
    assert [band["title"] for band in bands[4:]] == [
        f"step {step}\nbackbone {1 / (1 + step):#.3g}" for step in range(5)
    ]
    assert [band["tabindex"] for band in bands] == ["0", "-1"] * 2 + ["0"] + ["-1"] * 4
    for band in bands:
        places = dict(re.findall(r"(\w+): ([\d.]+)%", band["style"] or ""))
        assert 0 <= float(places["left"]) <= float(places["left"]) + float(places["width"]) <= 100
        assert float(places["height"]) > 40


def test_cells_tell_the_digits_that_the_table_leaves_out(page):
    titles = [each.get("title") or "" for each in page.all("td")]
    assert "backbone: MSE 0.02\nRGB in [0, 1]; lower is better\n95 % interval 0.015 to 0.025\nmean image 0.05" in titles
    assert "encoder (each token alone): Layer error 0.3\nin the target's variance; lower is better" in titles


def test_the_page_of_experiments_is_whole_too(tmp_path):
    page = Page(experiments_page(tmp_path))
    links = [each[name] or "" for _, each in page.tags for name in ("src", "href") if name in each]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for code in page.code.values():
        assert not re.search(r"url\(|@import|https?:|fetch|XMLHttpRequest|import\(", code)


def test_a_page_is_written_again_from_its_folder(tmp_path):
    for name in ("run", "all"):
        (tmp_path / name).mkdir()
    written = run_page(tmp_path / "run").read_text()
    assert rewrite_report(tmp_path / "run").read_text() == written
    page = experiments_page(tmp_path / "all")
    before = page.read_text()
    page.unlink()
    assert rewrite_report(tmp_path / "all").read_text() == before
    assert "<h2>Claims</h2>" not in rewrite_report(tmp_path / "all" / "stage_error").read_text()
    with pytest.raises(UserError, match="no result"):
        rewrite_report(tmp_path)


def test_large_pictures_are_inlined_smaller(tmp_path):
    pictures = row("a", ("input", [picture(0, (300, 300))]))
    page = open_page(without_numbers(example(), pictures), tmp_path)
    (source,) = [image["src"] or "" for image in page.all("img") if image["alt"] == "a, input"]
    assert source.startswith("data:image/webp")


def test_numbers_stand_in_the_table(page):
    text = " ".join(page.text.split())
    for shown in (
        "0.0200 [0.0150, 0.0250] 0.0100 · 0.0200 · 0.0300",
        "mean image 0.0500 13.0",
        "0.300",
        "1,234",
        "abc123",
        "RGB in [0, 1]",
        "12 × 16",
        "32,000",
        "encoder (each token alone)",
        "not proof",
    ):
        assert shown in text


def test_random_weights_are_said_aloud(tmp_path):
    banner = "these pictures show the method, not a trained model"
    for random in (True, False):
        assert (banner in open_page(without_numbers(example(random=random)), tmp_path).text) is random


def test_a_page_of_almost_nothing(tmp_path):
    card = {"model": "m", "random": False, "data": "d", "num_images": 0, "size": [8, 8], "fit": "stretch"}
    bare = Result("reconstruct", [{**card, "value_range": "RGB in [0, 1]"}], [])
    assert open_page(bare, tmp_path).all("img") == []
    unknown = [measured("backbone", "mse", [math.nan, math.nan]), measured("mean image", "mse", [math.inf])]
    page = open_page(replace(bare, measurements=unknown), tmp_path)
    assert "–" in page.text


def test_the_same_results_give_the_same_page(tmp_path):
    results = without_numbers(example())
    assert open_page(results, tmp_path).source == open_page(results, tmp_path).source


def test_colours_have_enough_contrast():
    """WCAG AA: 4.5 to 1 for every pair of letters and ground, in light and in dark."""
    css = files("backsight.report").joinpath("templates").joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): light-dark\(([^)]+)\)", css))
    for theme in (0, 1):
        shade = {name: pair.split(",")[theme].strip() for name, pair in colours.items()}
        for ground in ("page", "panel"):
            assert all(contrast(shade[letters], shade[ground]) >= 4.5 for letters in ("ink", "soft", "accent"))
        assert contrast(shade["warn-ink"], shade["warn-page"]) >= 4.5


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    levels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return sum(weight * level for weight, level in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(
    "columns",
    [[("input", [picture(0), picture(1, (9, 9))])], [("backbone", [picture(0)] * 3), ("encoder", [picture(1)] * 2)]],
    ids=["of two sizes", "of other seeds"],
)
def test_pictures_that_do_not_fit_each_other_are_refused(tmp_path, columns):
    with pytest.raises(UserError, match="expected"):
        open_page(replace(example(), pictures=row("a", *columns)), tmp_path)


def test_ids_that_look_alike_get_their_own_files(tmp_path):
    ids = ["a/b.jpg", "a b.jpg", "A/B.JPG", "../../etc/x", "ü" * 300, ""]
    names = [picture_file(id, "input") for id in ids]
    assert len({name.lower() for name in names}) == len(ids)
    assert all((tmp_path / name).resolve().is_relative_to(tmp_path) for name in names)


def test_results_of_the_first_version_give_the_same_page(tmp_path):
    """Its file had other names, and lists of files for pictures."""
    before = example()
    stages, images = [], {}
    for stage in ("backbone", "encoder@local"):
        metrics = {each: before.one(stage=stage, metric=each).by_seed() for each in ("mse", "psnr", "ssim")}
        layer = before.one(stage=stage, metric="layer error").by_seed()
        intervals = {"mse": [0.02, 0.015, 0.025]}
        stages.append({"entry": stage, "metrics": metrics, "intervals": intervals, "layer_error": layer})
    for each in before.pictures:
        (tmp_path / each.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each.file).write_bytes(image_png(each.image))
        images.setdefault(each.labels["image"], {}).setdefault(each.labels["stage"], []).append(each.file)
    content = {
        "format": "backsight.results/1",
        "title": "Through the eyes of photo.jpg",
        "command": before.command,
        "model": {"name": "photo.jpg", "weights": "local folder", "random": False, "details": {}, "figures": {}},
        "data": {
            **{"name": "folder:photo.jpg", "split": "test", "num_images": 1234, "fingerprint": "abc123"},
            **{"size": [12, 16], "fit": "stretch", "skipped": 0, "value_range": "RGB in [0, 1]"},
        },
        "card": before.subjects[0]["training"],
        "stages": stages,
        "mean_image": {"mse": 0.05, "psnr": 13.0, "ssim": None},
        "pictures": [{"id": name, "caption": f"caption of {name}", "images": each} for name, each in images.items()],
        "curves": [
            {"step": step, "entry": "backbone", "seed": seed, "loss": 1 / (1 + step)}
            for step in range(5)
            for seed in (0, 1)
        ],
    }
    (tmp_path / "results.json").write_text(json.dumps(content))
    page, expected = Page(rewrite_report(tmp_path)), open_page(before, tmp_path / "new")
    assert page.text.split("Card")[0].split() == expected.text.split("Card")[0].split()
    assert [each["src"] for each in page.all("img")] == [each["src"] for each in expected.all("img")]


KEYS = "command: x\nmodel: {}\ninverses: {}\nseeds: [0]\nversions: {}\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pictures/wedding.jpg", "the only copy"),
        ("figure.png", "mine"),
        ("report.html", "mine"),
        ("results.json", "mine"),
        ("results.json", '{"format": "another"}'),
        ("results.json", "{}"),
        ("config.yaml", KEYS),
        ("chain.json", "{}"),
        ("chains/0/chain.json", "{}"),
        ("photos/1.jpg", "to be reconstructed"),
    ],
)
def test_nothing_is_written_beside_what_is_not_ours(name: str, content: str, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"another out|out names"):
        check_output(tmp_path, [tmp_path / "photos"])


def test_results_and_pictures_of_an_interrupted_call_are_ours(tmp_path):
    photo = row("a", ("input", [picture(0)]))
    write_bytes(tmp_path / photo[0].file, image_png(photo[0].image))
    check_output(tmp_path)  # results.json was not reached
    replace(example(), pictures=photo).write(tmp_path / "results.json")
    (tmp_path / photo[0].file).unlink()  # a picture that is missing, or was never ours, is no reason to refuse
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(
        text.replace('"pictures": [', '"pictures": [{"labels": {}, "file": "../a"}, ')
    )
    (tmp_path / "report.html").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    check_output(tmp_path, ["elsewhere/photo.jpg"])


@pytest.mark.parametrize(
    "name", ["vit/report.html", "shipped/report.html", "runs/vit-prior/card.md", "runs/vit-prior/config.yaml"]
)
def test_a_demo_replaces_no_run_that_it_did_not_make(name: str, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(KEYS.replace("model: {}", "model: {name: zoo/vit-prior}\noptions: {batch_size: 16}"))
    with pytest.raises(UserError, match=r"another out|out names"):
        demo(tmp_path, minutes=0.01)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_demo_replaces_the_run_of_an_earlier_one(tmp_path, monkeypatch: pytest.MonkeyPatch):
    def run(loop: Loop) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "run", run)
    monkeypatch.setattr("backsight.training.run.begin", lambda *_: None)
    monkeypatch.setattr("backsight.demos._show", lambda *_: tmp_path)
    for minutes in (0.01, 0.02):
        with pytest.raises(KeyboardInterrupt):
            demo(tmp_path, minutes=minutes)
        assert f"minutes: {0.8 * minutes}" in (tmp_path / "runs" / "detr-prior" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.01234, "0.0123"),
        (0.5, "0.500"),
        (15.0, "15.0"),
        (123.4, "123"),
        (38400, "38,400"),
        (5120.7, "5,121"),
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0.00"),
        ("text", "text"),
        (1.5e-9, "1.50e-09"),
    ],
)
def test_numbers_have_three_digits(value, shown: str):
    assert format_number(value) == shown

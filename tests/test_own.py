"""Models of the user's own: the page that explains them, specs with their mistakes, proposals, runs opened again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import backsight as bs
from backsight.catalogue import check_inverses
from backsight.cli import main
from backsight.core import Classes, Detections, Pixels, Site, Spec, Stage, UserError
from backsight.engine import RANDOM
from backsight.models import duplicate, load_model, place, propose, stage
from backsight.models.candidates import find_stages
from backsight.models.shape_tracing import trace_shapes
from backsight.models.spec import read_spec
from backsight.verification import verify
from commands import refused
from numerics import assert_rounding
from small import assert_same_answers, build_small, noisy, random_images

PAGE = (Path(__file__).parent.parent / "docs" / "your-model.md").read_text(encoding="utf-8")
TRANSFORMERS = ["vit", "eva", "vit-transformers", "dinov2", "dinov2_with_registers"]
"""Families of which a proposal finds the very stages that we state by hand."""
SHORT = ["--steps", "2", "--seeds", "1", "--batch-size", "2", "--max-validation", "2", "--max-test", "2"]
QUIET = ["--workers", "0", "--tracker", "none", "--device", "cpu", "--precision", "fp32"]


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def told(start: str) -> tuple[list[str], list[str]]:
    """The arguments of the page's command that begins with ``start``, and the lines it prints there."""
    for part in "\n".join(blocks("console")).split("$ backsight ")[1:]:
        command, *printed = part.strip().splitlines()
        if command.startswith(start):
            return command.split(), printed
    raise AssertionError(f"the page has no command '{start}'")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's two files in an empty folder, which is the current one."""
    (tmp_path / "hybrid.py").write_text(blocks("python")[0])
    (tmp_path / "hybrid.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def spec() -> dict[str, Any]:
    """The page's spec as a dictionary, to be changed."""
    return yaml.safe_load(blocks("yaml")[0])


def hybrid(size: tuple[int, int] = (64, 64)) -> nn.Module:
    """The page's model."""
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[0], "hybrid.py", "exec"), names)
    torch.manual_seed(0)
    return names["build"](size)


# ---- the page


@pytest.mark.parametrize("start", ["stages hybrid.py:build --propose", "stages hybrid.py:build --spec", "verify"])
def test_the_page_shows_what_its_commands_print(start: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, printed = told(start)
    main([*command, "--device", "cpu"])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == printed


def test_the_page_trains_and_reconstructs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, printed = told("train")
    minutes = command.index("--minutes")
    main([*command[:minutes], *command[minutes + 2 :], *SHORT, *QUIET])
    assert capsys.readouterr().out.splitlines() == printed
    Image.new("RGB", (80, 60), (200, 30, 30)).save("photo.jpg")
    (here / "hybrid.yaml").unlink()  # its content is in the run
    command, printed = told("reconstruct")
    main([*command, "--device", "cpu"])
    assert capsys.readouterr().out.splitlines() == printed
    command, printed = told("experiment")
    main([*command, "--images", "2", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines() == printed
    layers = json.loads((here / "layers" / "result.json").read_text())
    read = {(each["labels"]["layer"], each["labels"]["reads"]) for each in layers["measurements"]}
    assert read == {(layer, stage) for layer in ENCODER for stage in ("tokens", "encoder")}
    results = bs.Result.load(here / "seen" / "results.json")
    assert {each.labels["stage"] for each in results.pictures} > {"stem", "stem@local", "tokens", "encoder"}
    assert results.subjects[0]["random"]
    config = yaml.safe_load((here / "runs/hybrid/config.yaml").read_text())
    assert read_spec(config["model"]["reopen"]["spec"]).spec == read_spec(yaml.safe_load(blocks("yaml")[0])).spec


def test_the_page_s_python_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = "steps=2, seeds=1, batch_size=2, max_validation=2, max_test=2, workers=0, tracker='none', device='cpu'"
    code = blocks("python")[1].replace("minutes=10", short)
    assert short in code
    Image.new("RGB", (80, 60), (30, 200, 30)).save("photo.jpg")
    load_model("hybrid.py:build", spec="hybrid.yaml")  # puts the folder where `from hybrid import` finds it
    exec(compile(code, "page", "exec"), {})
    assert capsys.readouterr().out.split() == [word for name in stage_names() for word in (name, "True")]
    assert (here / "seen" / "report.html").is_file()
    with pytest.raises(UserError, match=r"was given in Python \('my hybrid'\): add model FILE.py:FUNCTION"):
        bs.reconstruct("runs/mine", ["photo.jpg"], "again", device="cpu")


ENCODER = ("tokens", "encoder.0", "encoder.1", "encoder")
"""What stands before the encoder, its layers, and itself, which the last one is."""


def stage_names() -> list[str]:
    return ["stem", "tokens", "encoder.0", "encoder.1", "encoder.2", "encoder"]


def test_every_key_of_a_spec_is_on_the_page() -> None:
    from backsight.models.spec import STAGE, TOP

    assert [key for key in (*TOP, *STAGE) if f"`{key}`" not in PAGE] == []


# ---- opening a model


def test_a_file_and_its_function_are_the_model(here: Path) -> None:
    module = hybrid()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    save_file(weights, here / "weights.safetensors")
    model = load_model("hybrid.py:build", spec="hybrid.yaml", weights="weights.safetensors")
    assert model.weights == "weights.safetensors"
    original = stage(module, "hybrid.yaml")
    assert_same_answers(model, original)
    assert isinstance(model.predict(model.run(random_images(model))), Classes)
    again = [load_model("hybrid.py:build", spec="hybrid.yaml") for _ in range(2)]
    assert again[0].digest() == again[1].digest(), "the same random weights every time"
    wide = load_model("hybrid.py:build", spec="hybrid.yaml", size=(64, 96))
    assert wide.layout("encoder").grid == (8, 12)


def test_a_function_without_a_size_and_a_module_itself_do_too(here: Path) -> None:
    (here / "other.py").write_text(
        "from hybrid import Hybrid\nmodel = Hybrid()\n"
        "def plain():\n    return Hybrid()\n"
        "class Mine(Hybrid):\n    pass\n"
    )
    for function in ("model", "plain", "Mine"):
        model = load_model(f"other.py:{function}", spec="hybrid.yaml", random_weights=True)
        assert model.weights == RANDOM
        assert model.layout("tokens").prefix == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.py:build", "no file gone.py: a model of your own is named FILE.py:FUNCTION"),
        ("hybrid.py", "hybrid.py alone names no model: add the function that gives it, as hybrid.py:build"),
        ("hybrid.py:biuld", "hybrid.py has no function 'biuld': did you mean 'build'?"),
        ("hybrid.py:halve", "hybrid.py: TypeError: halve() missing 2 required positional arguments"),
        ("bad.py:build", "bad.py:2: SyntaxError: "),
        ("bad2.py:build", "bad2.py:2: ZeroDivisionError: division by zero"),
        ("bad3.py:build", "bad3.py:1: SystemExit: 3"),
        ("dict.py:build", "dict.py:build gives a dict, not a torch.nn.Module: return the model itself"),
    ],
)
def test_a_mistake_in_the_file_is_told_in_one_line(name: str, message: str, here: Path) -> None:
    (here / "bad.py").write_text("x = 1\ndef build(:\n")
    (here / "bad2.py").write_text("def build():\n    return 1 / 0\n")
    (here / "bad3.py").write_text("raise SystemExit(3)\n")
    (here / "dict.py").write_text("def build():\n    return {}\n")
    with pytest.raises(UserError) as caught:
        load_model(name, spec="hybrid.yaml")
    assert message in str(caught.value)


def test_a_function_beside_the_model_is_its_spec(here: Path) -> None:
    source = (here / "hybrid.py").read_text()
    said = yaml.safe_load(blocks("yaml")[0])
    (here / "two.py").write_text(f"{source}\n\ndef spec(module):\n    return {said!r}\n")
    assert load_model("two.py:build").spec == load_model("hybrid.py:build", spec="hybrid.yaml").spec


def test_what_goes_with_a_spec_and_what_does_not(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs --spec FILE" in refused(capsys, "train", "hybrid.py:build")
    assert "no submodule 'stem'" in refused(capsys, "verify", "resnet18", "--spec", "hybrid.yaml")
    assert "choose another name" in refused(capsys, "stages", "hybrid.py:build", "--propose", "hybrid.yaml")
    assert "gone.yaml" in refused(capsys, "verify", "hybrid.py:build", "--spec", "gone.yaml")
    assert "48x-32" in refused(capsys, "stages", "hybrid.py:build", "--spec", "hybrid.yaml", "--size", "48x-32")


class Masked(nn.Module):
    """Patches, those of the padding set to zero, and their mean."""

    def __init__(self, heeds: bool) -> None:
        super().__init__()
        self.patches, self.kept, self.heeds = nn.Conv2d(3, 4, 4, 4), nn.Identity(), heeds

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        maps = self.patches(pixel_values)
        if pixel_mask is not None and self.heeds:
            maps = maps * pixel_mask[:, None, ::4, ::4]
        return self.kept(maps).mean((2, 3))


@pytest.mark.parametrize("heeds", [True, False])
def test_a_model_of_one_s_own_may_take_a_mask(heeds: bool) -> None:
    sites = {"name": "kept", "site": {"path": "kept", "pattern": "b d h w"}}
    given = {"pixels": {"size": [8, 16], "fit": "pad"}, "stages": [sites]}
    if not heeds:
        with pytest.raises(UserError, match="takes no mask of padded pixels, or ignores it"):
            stage(Masked(heeds), given)
        return
    model = stage(Masked(heeds), given)
    valid = torch.zeros(1, 8, 16, dtype=torch.bool)
    valid[..., :8] = True
    features = model.run(torch.rand(1, 3, 8, 16), valid=valid)["kept"].unflatten(1, (2, 4))
    assert features[:, :, :2].abs().amin() > 0
    assert not features[:, :, 2:].any()


# ---- mistakes in a spec


def change(spec: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The spec with another value at ``stages.0.site``; None takes it out."""
    copied = json.loads(json.dumps(spec))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    inner: Any = copied
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return copied


MISTAKES: dict[str, tuple[str, Any, str]] = {
    "an unknown key": ("famly", "x", "the spec has no 'famly': did you mean 'family'?"),
    "an unknown key of a stage": ("stages/0/prefixes", 1, "has no 'prefixes': did you mean 'prefix'?"),
    "an unknown key of a site": ("stages/0/site/patern", "b n d", "has no 'patern': did you mean 'pattern'?"),
    "an unknown key of the pixels": ("pixels/means", [0, 0, 0], "has no 'means': did you mean 'mean'?"),
    "no size": ("pixels/size", None, "'pixels' of the spec has no 'size'"),
    "no stages": ("stages", None, "the spec has no 'stages'"),
    "no site": ("stages/1/site", None, "stage 'tokens' of the spec has no 'site'"),
    "two numbers too few": ("pixels/mean", 0.5, "'mean' of 'pixels' of the spec is 0.5: it has to be a list of 3"),
    "no number": ("stages/1/prefix", "one", "'prefix' of stage 'tokens' of the spec is 'one'"),
    "a truth for a number": ("stages/1/prefix", True, "is True: it has to be a whole number"),
    "no spread": ("pixels/std", [0, 0, 0], "'std' of 'pixels' of the spec is 0.0: it has to be"),
    "no pixels": ("pixels/size", [0, 32], "'size' of 'pixels' of the spec is 0: it has to be"),
    "a wrong word": ("task", "classification", "one of classify, detect, features"),
    "a wrong pattern": ("stages/0/site/pattern", "b c h w", "one of b n d, b h w d, b d h w"),
    "the same name twice": ("stages/1/name", "stem", "names are letters, digits and _, each one once"),
    "the image's name": ("stages/0/name", "image", "not 'image'"),
    "a name with a dot": ("stages/0/name", "a.b", "a stage 'a.b'"),
    "an inverse without a name": ("stages/2/inverse/name", None, "has no 'name'"),
    "stages that are words": ("stages", ["stem"], "it has to be names and values"),
    "a path of nothing": ("stages/1/site/path", "block.0", "no submodule 'block.0': did you mean 'blocks.0'?"),
    "layers of nothing": ("stages/2/layers", "bloks.*", "no submodule 'bloks': did you mean 'blocks'?"),
    "a map read as tokens": ("stages/0/site/pattern", "b n d", "does not fit the output of 'stem', of shape"),
    "the wrong axes": ("stages/0/site", {"path": "stem.0", "pattern": "b h w d"}, "'b d h w' fits"),
    "tokens read as a map": ("stages/2/site", {"path": "blocks.2", "pattern": "b d h w"}, "'b n d' fits"),
    "a field of nothing": ("stages/2/site", {"path": "blocks.2", "field": "hidden"}, "has no field 'hidden'"),
    "no tensor": ("stages/2/site", {"path": "blocks.2.attention"}, "is no tensor but a tuple, which has 0, 1"),
    "never visited": ("stages/2/site", "blocks.2.attention.out_proj", "a forward pass never comes by"),
    "no such prediction": ("prediction", "logits", "the output has no field 'logits'"),
    "a prediction of another kind": ("task", "detect", "it has to be B Q C and B Q 4 for a detector"),
    "labels by name": ("labels", {"cat": 0}, "'labels' of the spec is {'cat': 0}: write a list of names, or lines"),
    "labels that are a number": ("labels", 5, "'labels' of the spec is 5: write a list of names, or lines"),
    "labels that are a word": ("labels", "cat", "'labels' of the spec is 'cat': write a list of names, or lines"),
    "a size that does not fit": ("pixels/size", [32, 32], "a forward pass over images of 32x32 pixels fails"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_spec_is_told_in_one_line(mistake: str, spec: dict[str, Any]) -> None:
    path, value, message = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        stage(hybrid(), change(spec, path, value))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages/2/inverse/name", "bloks", "no inverse 'bloks'"),
        ("stages/2/inverse/heds", 2, "did you mean 'heads'"),
        ("stages/1/inverse", "blocks", "it keeps the tokens"),
        ("stages/1/prefix", 0, "cannot place the 65 tokens at 'tokens'"),
    ],
)
def test_stages_builds_every_inverse_once(path: str, value: Any, message: str, spec: dict[str, Any]) -> None:
    model = stage(hybrid(), change(spec, path, value))
    with pytest.raises(UserError, match=message):
        check_inverses(model)


def test_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("family: x\nstages: [\n")
    with pytest.raises(UserError, match=r"spec.yaml, line 3, is not YAML"):
        read_spec(tmp_path / "spec.yaml")
    (tmp_path / "spec.yaml").write_text("just words")
    with pytest.raises(UserError, match="names and values"):
        read_spec(tmp_path / "spec.yaml")


# ---- what a spec can say


def test_a_spec_a_dictionary_and_a_file_are_the_same(spec: dict[str, Any], here: Path) -> None:
    read = read_spec(spec)
    assert read == read_spec("hybrid.yaml")
    tokens = Stage("tokens", (Site("blocks.0", "input"),), inverses={"": ("residual", {})}, prefix=1)
    assert read.spec.stages[1] == tokens
    module = hybrid()
    given = stage(module, read.spec, pixels=read.pixels)
    assert given.names == stage(module, spec).names == stage_names()
    assert given.reopen == {}
    with pytest.raises(UserError, match="give pixels=Pixels"):
        stage(module, read.spec)


def test_a_duplicate_of_one_s_own_model_keeps_its_own_stages() -> None:
    import timm

    own = Spec("resnet", "classify", (Stage("stem", (Site("maxpool", pattern="b d h w"),)),))

    def read(output: Tensor, size: tuple[int, int]) -> Classes:
        return Classes(output, {0: "mine"})

    modules = (nn.Sequential(), timm.create_model("test_resnet"))
    modules[0].add_module("maxpool", nn.Conv2d(3, 4, 4, 4))
    modules[0].add_module("head", nn.Flatten())
    for module in modules:
        model = stage(module, own, pixels=Pixels((32, 32)), name="mine", read=read)
        model.constants["kept"] = torch.ones(2)
        copy = duplicate(model)
        assert (copy.spec, copy.names, copy.read) == (model.spec, ["stem"], read)
        assert_same_answers(copy, model)
        assert torch.equal(copy.constants["kept"], torch.ones(2))
        with torch.no_grad():
            next(copy.module.parameters()).add_(1)
        assert copy.digest() != model.digest()


class Detector(nn.Module):
    """Boxes and logits of three queries, in a dictionary; the scale is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.logits, self.boxes = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5), nn.Linear(8, 4)

    def forward(self, images: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        tokens = scale * self.patches(images).flatten(2).mT
        return {"logits": self.logits(tokens[:, :3]), "pred_boxes": self.boxes(tokens[:, :3]).sigmoid()}


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_a_detector_of_one_s_own_detects(scores: str) -> None:
    said = {
        "task": "detect",
        "pixels": {"size": [8, 16], "mean": [0, 0, 0], "std": [1, 1, 1]},
        "prediction": {"logits": "logits", "boxes": "pred_boxes", "scores": scores},
        "labels": ["a", "b", "c", "d"],
        "arguments": {"scale": 2.0},
        "stages": [{"name": "patches", "site": {"path": "patches", "pattern": "b d h w"}, "inverse": "local"}],
    }
    module = Detector()
    model = stage(module, said)
    images = random_images(model)
    found: Any = model.predict(model.run(images))
    expected = module(images, scale=2.0)
    logits = expected["logits"]
    likely = logits.sigmoid() if scores == "sigmoid" else logits.softmax(-1)[..., :4]
    assert [type(each) for each in found] == [Detections, Detections]
    torch.testing.assert_close(torch.stack([each.scores for each in found]), likely.amax(-1))
    x, y, width, height = expected["pred_boxes"].unbind(-1)
    corners = torch.stack([16 * (x - width / 2), 8 * (y - height / 2), 16 * (x + width / 2), 8 * (y + height / 2)], -1)
    torch.testing.assert_close(torch.stack([each.boxes for each in found]), corners)
    assert found[0].labels == {0: "a", 1: "b", 2: "c", 3: "d"}


def test_a_site_that_nothing_reads_is_told_from_a_real_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = blocks("python")[0].replace("maps = self.stem(images)", "maps = self.stem(images)\n        self.spare(maps)")
    text = text.replace("self.class_token = ", "self.spare = nn.Conv2d(width, 4, 1)\n        self.class_token = ")
    (here / "spare.py").write_text(text)
    said = yaml.safe_load(blocks("yaml")[0])
    said["stages"].insert(1, {"name": "spare", "site": {"path": "spare", "pattern": "b d h w"}})
    (here / "spare.yaml").write_text(yaml.safe_dump(said))
    line = refused(capsys, "verify", "spare.py:build", "--spec", "spare.yaml", "--device", "cpu")
    assert "1 of 7 sites of spare.py:build are wrong: spare" in line
    checks = {check.name: check.results for check in verify(load_model("spare.py:build", spec="spare.yaml"))}
    assert checks["spare"] == (True, False, False, True), "replaying it proves nothing"
    assert checks["stem"] == (True, True, True, True)


def test_resuming_a_model_of_one_s_own_is_its_own_forward(spec: dict[str, Any]) -> None:
    module: Any = hybrid()
    model = stage(module, spec)
    trace = model.run(random_images(model))
    edit = noisy(trace["tokens"])
    tokens = edit
    for block in module.blocks:
        tokens = block(tokens)
    expected = module.head(module.norm(tokens)[:, 0])
    assert_rounding(model.resume("tokens", edit, trace).output, expected)


# ---- proposals


@pytest.mark.parametrize("family", [*TRANSFORMERS, "swin", "resnet", "convnext", "detr"])
def test_a_proposal_for_a_known_family_holds(family: str) -> None:
    """What is proposed of a model that is treated as unknown can be staged, and its places are real."""
    known = build_small(family)
    proposal = propose(lambda _: known.module, known.pixels, family)
    model = stage(known.module, yaml.safe_load(proposal.text))
    check_inverses(model)
    assert [check.name for check in verify(model) if not check.passed] == []
    assert any("trained on" in line for line in proposal.unknown)
    assert model.spec.task == known.spec.task
    if family in TRANSFORMERS:
        assert [(s.prefix, len(s.layers)) for s in model.spec.stages] == [
            (s.prefix, len(s.layers)) for s in known.spec.stages
        ]
        assert dict(model.spec.stages[1].inverses)[""][0] == "blocks"
        for mine, theirs in zip(model.stages, known.stages, strict=True):
            assert model.layout(mine) == known.layout(theirs)


def test_a_second_size_tells_channels_from_rows() -> None:
    """Eight channels of 8 x 8 places: from one size alone, either axis may be the channels."""

    class Last(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.permute(0, 2, 3, 1)

    module = nn.Sequential(nn.Conv2d(3, 8, 8, 8), Last())
    sizes = [Pixels((64, 64)), Pixels((64, 128))]
    found = find_stages(module, [trace_shapes(module, pixels) for pixels in sizes])
    assert [(each.place.site.path, each.place.site.pattern) for each in found] == [("1", "b h w d")]


def test_nothing_to_propose_is_told() -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    with pytest.raises(UserError, match="nothing in flat gives tokens"):
        propose(lambda _: Flat(), Pixels((8, 8)), "flat")


def test_what_does_not_hold_is_left_out_of_a_proposal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row of blocks that no output depends on can be staged, and proves wrong."""
    before, own = "maps = self.stem(images)", "self.class_token = "
    text = blocks("python")[0].replace(before, f"{before}\n        self.spare(maps)")
    spare = "nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 1)) for _ in range(2)))"
    (here / "spare.py").write_text(text.replace(own, f"self.spare = {spare}\n        {own}"))
    main(["stages", "spare.py:build", "--propose", "spare.yaml", "--size", "64x64", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "whether 'spare.1' (64 tokens of width 64, on a grid of 8x8) is a stage" in printed
    main(["verify", "spare.py:build", "--spec", "spare.yaml", "--device", "cpu"])
    assert "path: spare" not in (here / "spare.yaml").read_text()


# ---- opening a run again


def make_chain(folder: Path, name: str = "hybrid.py:build") -> Path:
    from backsight.chain import Plan, build_chain

    model = load_model(name, spec="hybrid.yaml")
    return build_chain(model, {"stem": Plan("local")}, 0).save(folder)


def test_a_chain_runs_no_code_that_nobody_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chain(here / "chain")
    Image.new("RGB", (8, 8)).save("photo.jpg")
    bs.reconstruct("chain", ["photo.jpg"], "seen", device="cpu")
    elsewhere = here / "downloads"
    elsewhere.mkdir()
    (elsewhere / "hybrid.py").write_text("from pathlib import Path\nPath('sprung').touch()\n" + blocks("python")[0])
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError, match=r"hybrid\.py:build of another folder, and code is run only if you name it"):
        bs.reconstruct("../chain", ["../photo.jpg"], "seen", device="cpu")
    assert not (elsewhere / "sprung").exists()
    bs.reconstruct("../chain", ["../photo.jpg"], "seen", model="../hybrid.py:build", device="cpu")
    assert (elsewhere / "seen" / "report.html").is_file()


def test_a_chain_cannot_name_code_by_itself(here: Path) -> None:
    """Whoever sends a chain knows the file's name, not the place where it lies here."""
    folder = make_chain(here / "chain")
    index = json.loads((folder / "chain.json").read_text())
    assert str(here) not in json.dumps(index)
    assert index["model"]["reopen"]["place"] == place("hybrid.py:build")
    Image.new("RGB", (8, 8)).save("photo.jpg")
    for reopen in (None, {}, {"spec": index["model"]["reopen"]["spec"], "place": "0" * 64}):
        index["model"]["reopen"] = reopen
        if reopen is None:
            del index["model"]["reopen"]
        (folder / "chain.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="code is run only if you name it"):
            bs.reconstruct(folder, ["photo.jpg"], "seen", device="cpu")


def test_another_model_is_refused_though_it_is_named(here: Path) -> None:
    make_chain(here / "chain")
    (here / "deep.py").write_text(blocks("python")[0].replace("return Hybrid(", "return Hybrid(depth=4, "))
    Image.new("RGB", (8, 8)).save("photo.jpg")
    with pytest.raises(UserError, match="has other weights"):
        bs.reconstruct("chain", ["photo.jpg"], "seen", model="deep.py:build", device="cpu")

"""The command line as a new user meets it: every mistake is one line that says what would be right, and status 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import backsight
from backsight.chain import Plan, build_chain
from backsight.cli import main
from backsight.cli.main import join_repeated
from backsight.core import Pixels, UserError
from backsight.models import MODELS, stage_module
from backsight.report.reconstruct import reconstruct
from backsight.reproduction import BrokeOff
from backsight.results import Result
from commands import refused
from pictures import save_pictures

RANDOM = ("test_vit", "--random-weights", "--size", "32x48", "--device", "cpu")
SHORT = (
    *("--steps", "2", "--seeds", "1", "--batch-size", "2"),
    *("--max-validation", "2", "--max-test", "2", "--workers", "0"),
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of thirty small pictures."""
    return save_pictures(tmp_path / "photos", [f"{number:02d}.png" for number in range(30)])


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """The untrained chain of a small model that no name leads to."""
    model = stage_module(MODELS["vit"].small(), MODELS["vit"], Pixels((48, 48)), name=str(tmp_path / "gone"))
    return build_chain(model, {"backbone": Plan("patch")}, 0).save(tmp_path / "chain")


def test_an_option_given_twice_means_both_values() -> None:
    typed = ["train", "vit", "--inverse", "a=b", "c=d", "--steps", "3", "--inverse=e=f:learning_rate=1e-3"]
    joined = ["train", "vit", "--inverse", "a=b", "c=d", "e=f:learning_rate=1e-3", "--steps", "3"]
    assert join_repeated(typed) == joined
    assert join_repeated(["models"]) == ["models"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), "train"),
        (("zoo", "lst"), "list"),
        ((), "reconstruct"),
        (("train", "x", "--stepss", "1"), "--steps"),
        (("train", "x", "y"), "y"),
        (("train", "x", "--steps", "1", "--steps", "2"), "2"),
        (("train", "x", "--steps"), "--steps"),
        (("train", "x", "--batch-size", "4.5"), "--batch-size"),
        (("train", "x", "--task", "other"), "modular"),
        (("sweep", "x", "--task", "joint"), "--task"),
        (("sweep", "x", "--trade-offs", "0", "half"), "half"),
        (("reconstruct",), "RUN"),
        (("import", "authors", "x"), "--model"),
        (("push", "x"), "OWNER/NAME"),
    ],
)
def test_options_and_commands_that_there_are_not(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stages", "zoo/detr-priro"), "zoo/detr-prior"),
        (("stages", "vit_tiny_patch16_224", "--random-weights", "--size", "big"), "384x512"),
        (("stages", "vit_tiny_patch16_224", "--random-weights", "--device", "tpu9"), "cuda:0"),
        (("stages", "zoo/vit-prior", "--size", "7x7"), "smaller than its patches"),
        (("verify", "zoo/vit-prior", "--size", "7x7"), "smaller than its patches"),
        (("verify", "vit_bse_patch16_224"), "vit_base_patch16_224"),
        (("report", "nowhere"), "results.json"),
        (("reconstruct", "nowhere", "x.jpg"), "chains"),
        (("experiment", "trade_off"), "--set 'runs=[a,b]'"),
        (("experiment", "truth", "zoo/vit-prior", "--set", "num_scenes=0"), "'num_scenes' of the experiment is 0"),
        (
            ("experiment", "reconstruct", "zoo/vit-prior", "--set", "num_pictures=-3"),
            "'num_pictures' of the experiment",
        ),
        (("reproduce", "--set", "token_noise.shares=abc"), "a number"),
        (("cost", "zoo/vit-prior", "--seeds", "0"), "--seeds is 0"),
        (("cost", "zoo/vit-prior", "--epochs", "-1"), "--epochs is -1"),
        (("cost", "zoo/vit-prior", "--tflops", "-1"), "--tflops is -1"),
        (("cost", "zoo/vit-prior", "--share", "0"), "--share is 0"),
        (("train", "no-such-model", "--minutes", "inf"), "--minutes is inf"),
        (("train", "no-such-model", "--data", f"folder:{__file__}"), "is a file"),
        (("train", "no-such-model", "--data", "folder:nowhere"), "nowhere"),
        (("train", "no-such-model", "--data", "world:martian"), "martian"),
        (("train", "no-such-model", "--data", "word:prior"), "world:prior"),
        (("train", *RANDOM, *SHORT, "--inverse", "backbone=patch:widthss=3"), "widths"),
        (("train", *RANDOM, *SHORT, "--inverse", "encoder=blocks:depth=abc"), "'depth' of the inverse"),
        (("train", *RANDOM, *SHORT, "--inverse", "encoder=blocks:learning_rate=abc"), "learning_rate is 'abc'"),
        (("train", *RANDOM, *SHORT, "--inverse", "backbone=none"), "no inverse of backbone is trained"),
        (("train", *RANDOM, *SHORT, "--inverse", "backbone=none", "encoder=none"), "leaves nothing to train"),
        (("train", *RANDOM, *SHORT, "--memory", "1MiB"), "--memory 1MiB is too little"),
        (("train", *RANDOM, *SHORT, "--fit", "pad"), "takes no mask of padded pixels, or ignores it"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_an_experiment_writes_over_no_file_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.csv").write_text("mine")
    command = ("experiment", "stage_error", "zoo/vit-prior", "--images", "2", "--out", str(tmp_path))
    assert "a 'table.csv' that no experiment wrote" in refused(capsys, *command)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"backsight {version('backsight')}\n"
    assert backsight.__version__ == version("backsight")


def test_help_names_what_to_give_as_the_documentation_does(capsys: pytest.CaptureFixture[str]) -> None:
    named = {"reconstruct": "RUN IMAGES...", "push": "RUN OWNER/NAME", "train": "MODEL"}
    for command, words in {
        **named,
        **dict.fromkeys(("demo", "report", "models", "stages", "verify", "zoo"), ""),
    }.items():
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        usage = capsys.readouterr().out.splitlines()[0]
        assert words in usage
        assert not words or "STR " not in usage.partition(words)[0]


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**named: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".x.json.abc.tmp.json"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    said = refused(capsys, "zoo", "list", "--json", str(tmp_path / "x.json"))
    assert f"{tmp_path / 'x.json'}: Permission denied" in said
    assert "tmp.json" not in said


def test_a_reader_that_has_enough_is_no_mistake() -> None:
    """As in ``backsight zoo list | head -1``; what it prints does not matter."""
    command = [sys.executable, "-m", "backsight", "--version"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_experiments_that_broke_off_are_named_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reproduce(*_: object, **__: object) -> None:
        raise BrokeOff("truth broke off (RuntimeError: no)")

    monkeypatch.setattr("backsight.reproduction.reproduce", reproduce)
    with pytest.raises(SystemExit) as stop:
        main(["reproduce"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "backsight: truth broke off (RuntimeError: no)\n"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 139 GiB\nand more"),
            "(20.00 GiB more were asked for)",
        ),
        (torch.OutOfMemoryError("CUDA error: out of memory"), "out of memory: "),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 12000 bytes. Error code 12"
            ),
            "(12000 bytes more were asked for)",
        ),
        (MemoryError(), "out of memory: "),
    ],
)
def test_a_device_without_memory_is_one_line(
    error: Exception, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["backsight.cli.main"], "run_command", fail)
    said = refused(capsys, "train")
    for each in (asked, "--batch-size", "--micro-batch", "--memory"):
        assert each in said


def test_a_chain_whose_model_is_gone(
    chain: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    said = refused(capsys, "reconstruct", str(chain), str(photos), "--out", str(out))
    assert "gone" in said
    assert not out.exists()


def test_train_reconstruct_report(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    main(["train", *RANDOM, "--data", f"folder:{photos}", "--out", str(run), *SHORT, "--tracker", "none"])
    with pytest.raises(SystemExit) as stop:
        main(["train", *RANDOM, "--data", f"folder:{photos}", "--out", str(run), *SHORT])
    assert stop.value.code == 2
    capsys.readouterr()
    assert str(run) in refused(capsys, "reconstruct", str(run), str(run), "--out", str(out))
    assert not out.exists()
    main(
        ["reconstruct", str(run), str(photos / "00.png"), str(photos / "07.png"), "--out", str(out), "--device", "cpu"]
    )
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    images = Result.load(out / "results.json").values_of("image")
    assert [Path(image).name for image in images] == ["00.png", "07.png"]
    page = (out / "report.html").read_text()
    assert "andom weights" in page
    (out / "report.html").unlink()
    main(["report", str(out)])
    assert (out / "report.html").read_text() == page


def test_reconstruct_replaces_its_own_pictures_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = stage_module(MODELS["vit"].small(), MODELS["vit"], Pixels((48, 48)), name=str(tmp_path / "gone"))
    chain = build_chain(model, {"backbone": Plan("patch")}, 0).save(tmp_path / "chain")
    reconstruct(chain, [photos / "00.png", photos / "01.png"], out, model=model, device="cpu")
    own = [out / "pictures" / "wedding.jpg", out / "pictures" / "1999" / "sea.jpg"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("the only copy")
    reconstruct(chain, [photos / "01.png", photos / "02.png"], out, model=model, device="cpu")
    named = {out / each["file"] for each in json.loads((out / "results.json").read_text())["pictures"]}
    assert {path for path in (out / "pictures").rglob("*") if path.is_file()} == {*named, *own}
    with pytest.raises(UserError, match="lies in"):
        reconstruct(chain, [out / "pictures"], out, model=model, device="cpu")
    with pytest.raises(UserError, match="folder of a run"):
        reconstruct(chain, [photos], chain, model=model, device="cpu")


def test_verify_stages_and_models_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["verify", "test_vit", "--size", "32x32", "--json", str(tmp_path / "verify.json")])
    assert "all right" in capsys.readouterr().out
    found = json.loads((tmp_path / "verify.json").read_text())
    assert len(found["sites"]) == 2 + 6
    assert all(site["identity"] and site["edit_changes_output"] and site["gradient"] for site in found["sites"])
    main(["stages", "test_vit", "--random-weights", "--json", str(tmp_path / "stages.json")])
    assert json.loads((tmp_path / "stages.json").read_text())[0]["grid"] == "10x10"
    monkeypatch.setattr("backsight.catalogue.MODELS", {"vit": MODELS["vit"]})
    monkeypatch.setattr("backsight.catalogue.shipped_names", list)
    main(["models", "--json", str(tmp_path / "models.json")])
    assert {row["family"] for row in json.loads((tmp_path / "models.json").read_text())} == {"vit"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the drawn world."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    main(["train", *RANDOM, "--out", str(folder), *SHORT, "--tracker", "none"])
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(run, tmp_path / "copied")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", b'{"num_images": 2, "entr'),
        ("evaluation.json", b"[]"),
        ("evaluation.json", b"{}"),
        ("evaluation.json", b"\xff\xd8\xff\xe0"),
    ],
)
def test_reconstructing_by_a_damaged_run_leaves_nothing(
    name: str, content: bytes, copied: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / name).write_bytes(content)
    out = tmp_path / "out"
    said = refused(capsys, "reconstruct", str(copied), str(photos), "--out", str(out), "--device", "cpu")
    assert str(copied / name) in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", b"data: {spec: world\nmodel: [", "line 2, is not YAML, or cut short: restore it, or name the"),
        ("config.yaml", b"just words", "does not hold names and values"),
        ("mean_image.safetensors", b"\x10\x00", "or cut short: restore it, or remove it"),
    ],
)
def test_experiments_on_a_damaged_run(
    name: str, content: bytes, words: str, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / name).write_bytes(content)
    arguments = ("--chain", str(copied), "--out", str(tmp_path / "out"), "--images", "2", "--device", "cpu")
    said = refused(capsys, "experiment", "stage_error", *arguments)
    assert str(copied / name) in said
    assert words in said


def test_going_on_with_a_run_whose_configuration_is_damaged(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "card.md").unlink()
    (copied / "config.yaml").write_text("model: [")
    before = sorted(copied.rglob("*"))
    for option in ("--resume", "--overwrite"):  # whether the other files are of a run, nothing says any more
        said = refused(capsys, "train", *RANDOM, "--out", str(copied), *SHORT, "--tracker", "none", option)
        assert f"{copied / 'config.yaml'}, line 1, is not YAML" in said
        assert "begin again in another --out" in said
    assert sorted(copied.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("photo.jpg", b"\xff\xd8\xff\xe0", "holds no results: give results.json, result.json, reproduce.json"),
        ("results.json", b"\xff\xd8\xff\xe0", "is not text: restore it"),
        ("results.json", b"[]", "does not hold names and values: restore it"),
        ("results.json", b'{"for', "is not JSON, or cut short"),
        ("result.json", b"[]", "does not hold names and values: restore it"),
        ("result.json", b'{"format": "backsight.experiment/1"}', "it has no 'measurements'"),
        (
            "result.json",
            b'{"format": "backsight.experiment/1", "measurements": [], "pictures": []}',
            "has no 'experiment'; restore it",
        ),
        ("reproduce.json", b"[]", "does not hold names and values: run `backsight reproduce` again"),
        ("reproduce.json", b'{"format": "backsight.reproduce/1"}', "has no 'command'"),
    ],
)
@pytest.mark.parametrize("by_its_path", [True, False])
def test_a_report_of_what_is_no_result(
    name: str, content: bytes, words: str, by_its_path: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    if name == "photo.jpg" and not by_its_path:
        words = "no result at"
    said = refused(capsys, "report", str(tmp_path / name if by_its_path else tmp_path))
    assert words in said
    assert not (tmp_path / "report.html").exists()


def test_images_too_small_to_measure_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("zoo/detr-prior", "--size", "1x1", "--device", "cpu", "--out", str(tmp_path / "out"), *SHORT)
    said = refused(capsys, "train", *arguments)
    assert "at least 11 x 11 pixels, these are 1 x 1: take a larger --size" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("paths", "words"), [(("nope.jpg",), "there is no 'nope.jpg'"), ((), "none was given")])
def test_pictures_that_are_not_there_are_told_before_the_model_is_loaded(
    paths: tuple[str, ...], words: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("backsight.report.reconstruct.open_forward_model", None)
    assert words in refused(capsys, "reconstruct", str(run), *paths)


def test_runs_that_are_not_there_are_told_before_any_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("backsight.reproduction._do", None)
    said = refused(capsys, "reproduce", "--out", str(tmp_path / "out"), "--runs", "nope")
    assert "no run in nope" in said
    assert not (tmp_path / "out").exists()


def test_a_link_that_leads_to_itself_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(link)
    for arguments in ([link], [link / "below.png"], [tmp_path / "any.png", "--out", link]):
        assert str(link) in refused(capsys, "reconstruct", "zoo/vit-prior", *map(str, arguments))

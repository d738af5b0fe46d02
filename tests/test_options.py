"""What users type: options of training, and the one conversion of values that options, settings and specs share."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest

import backsight
from backsight.cli import main
from backsight.options import ModelOptions, SweepOptions, TrainOptions, parse_bytes, parse_size
from backsight.validation import (
    AnyNumber,
    Number,
    Positive,
    Share,
    UserError,
    build,
    check_folder,
    convert,
    convert_arguments,
    parse,
)

JOINT = {"task": "joint", "trade_off": 0.5}

# ---- options of training


def test_train_takes_the_options_of_the_command_by_the_same_names_and_defaults() -> None:
    parameters = dict(inspect.signature(backsight.train).parameters)
    assert parameters.pop("model").default is inspect.Parameter.empty
    hints = get_type_hints(backsight.train)
    for kind in (TrainOptions, ModelOptions):
        for each in fields(kind):
            parameter = parameters.pop(each.name)
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            default = str(each.default) if isinstance(each.default, Path) else each.default
            assert parameter.default == default, each.name
            wanted = get_type_hints(kind)[each.name]
            assert hints[each.name] in (wanted, str | wanted, Sequence[str]), each.name
    assert not parameters


def test_values_of_options_get_their_types() -> None:
    options = TrainOptions(out="run", minutes=2, inverse=["a=b"], image_cache=".")  # type: ignore[arg-type]
    assert (options.out, options.minutes, options.inverse) == (Path("run"), 2.0, ("a=b",))
    assert options.image_cache == Path()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("workers", [-1, 1.5]),
        ("seed", [-1]),
        ("seeds", [0, True, "3"]),
        ("batch_size", [0]),
        ("steps", [0]),
        ("minutes", [0, -1, math.inf, math.nan, "soon"]),
        ("epochs", [0, math.inf]),
        ("evaluate_every", [0]),
        ("checkpoint_every", [-1, math.nan]),
        ("keep_checkpoints", [0]),
        ("max_validation", [0]),
        ("max_test", [0]),
        ("micro_batch", [0]),
        ("learning_rate", [-1.0, 0, math.inf]),
        ("feature_cache_gb", [0]),
        ("image_cache_gb", [0]),
        ("memory", ["much", "8 gallons", ""]),
        ("feature_cache", [__file__, f"{__file__}/below"]),
        ("image_cache", [__file__]),
        ("task", ["magic"]),
        ("trade_off", [-0.1, 1.5, math.nan]),
    ],
)
def test_options_out_of_range_are_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^{name}\b"):
            TrainOptions(**{**(JOINT if name == "trade_off" else {}), name: value})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 1, "epochs": 1}, "steps and epochs"),
        ({"minutes": 1, "epochs": 1}, "epochs and minutes"),
        ({"micro_batch": 2, "memory": "8GiB"}, "micro_batch and memory"),
        ({"chain": "zoo/vit-prior", "inverse": ("backbone=local",)}, "chain and inverse"),
        ({"resume": True, "overwrite": True}, "resume and overwrite"),
        ({"trade_off": 0.5}, "trade_off is for task joint"),
        ({"task": "classic", "update": "sum"}, "update is for task joint"),
        ({"forward_learning_rate": 1e-4}, "forward_learning_rate is for task joint"),
        ({"stage": "encoder"}, "stage is for task classic or joint"),
        ({"feature_cache": ".", "task": "classic"}, "feature_cache is for task modular"),
        ({"feature_cache": ".", **JOINT}, "feature_cache is for task modular"),
        ({"task": "joint"}, "trade_off 0.9"),
        ({"data": "stream:y"}, "steps or minutes"),
        ({"data": "stream:x", "epochs": 2}, "steps or minutes"),
        ({"data": "stream:x", "steps": 3, "image_cache": "."}, "image_cache"),
        ({"data": "stream:x", "steps": 3, "feature_cache": "."}, "feature_cache"),
        ({"data": "stream:x", "steps": 3, **JOINT}, "stream"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        TrainOptions(**options)


def test_a_sweep_trains_every_task_with_the_options_that_are_for_it() -> None:
    own = {"update": "sum", "stage": "encoder", "forward_learning_rate": 1e-4, "feature_cache": "."}
    runs = SweepOptions(out="all", seeds=2, **own).runs()  # type: ignore[arg-type]
    assert list(runs) == ["modular", "classic", "joint-0", "joint-0.1", "joint-0.9", "joint-1"]
    assert [each.task for each in runs.values()] == ["modular", "classic", *["joint"] * 4]
    assert [each.trade_off for each in runs.values()] == [None, None, 0.0, 0.1, 0.9, 1.0]
    assert [each.update for each in runs.values()] == [None, None, *["sum"] * 4]
    assert [each.stage for each in runs.values()] == [None, *["encoder"] * 5]
    assert [each.feature_cache for each in runs.values()] == [Path(), *[None] * 5]
    assert {each.seeds for each in runs.values()} == {2}
    assert [each.out for each in runs.values()] == [Path("all") / name for name in runs]
    assert list(SweepOptions(tasks=("classic",)).runs()) == ["classic"]


@pytest.mark.parametrize("options", [{"trade_offs": (0.1, 0.1)}, {"trade_offs": ()}, {"tasks": ()}])
def test_a_sweep_of_nothing_or_of_the_same_twice_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="trade_offs"):
        SweepOptions(**options)


@pytest.mark.parametrize("size", ["big", "0x5", "5", "7x-1", "384x512x3"])
def test_an_image_size_is_two_positive_numbers(size: str) -> None:
    assert parse_size("384x512") == (384, 512)
    with pytest.raises(UserError, match="384x512"):
        ModelOptions(size=size)
    with pytest.raises(UserError, match="size 96x1000000 is 1000000: it has to be from 1 to 65536"):
        ModelOptions(size="96x1000000")


@pytest.mark.parametrize(("text", "expected"), [("8GiB", 8 * 2**30), ("500MiB", 500 * 2**20), ("2 GB", 2 * 10**9)])
def test_an_amount_of_memory_is_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


# ---- names of options in messages


def test_messages_name_arguments_in_python_and_options_in_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    error = UserError("give --batch-size 4, as `backsight train --batch-size 4` does: a--b is a file")
    assert str(error) == "give batch_size 4, as `backsight train --batch-size 4` does: a--b is a file"
    monkeypatch.setattr(UserError, "in_command", True)
    assert "give --batch-size 4" in str(error)


# ---- values and their types


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-3", float, 1e-3),
        (0, AnyNumber, 0),
        (None, Number | None, None),
        (0.5, Share | None, 0.5),
        ("a", Path, Path("a")),
        ("a", Literal["a", "b"], "a"),
        ([0.1, 1], Sequence[float], [0.1, 1.0]),
        (0.1, Sequence[float], [0.1]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, None], tuple[int | None, int | None], (1, None)),
        ([7, 7], int | tuple[int, int], (7, 7)),
        ("boxes", int | str | None, "boxes"),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        (print, Any, print),
    ],
)
def test_values_are_converted(value: Any, kind: Any, expected: Any) -> None:
    found = convert(value, kind, "it")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        ("abc", int, "a whole number"),
        (1.5, int, "a whole number"),
        (True, int, "a whole number"),
        (1, bool, "true or false"),
        ("abc", float, "a number"),
        (None, float, "a number"),
        (5, str, "text"),
        ("c", Literal["a", "b"], "one of a, b"),
        (1, Literal[True], "one of True"),
        ([1], tuple[int, int], "a list of 2"),
        ("abc", Sequence[float], "a number"),
        ([[0.1]], Sequence[float], "a number"),
        ("abc", int | tuple[int, int] | None, "a whole number or a list of 2"),
        (0, Number, "at least 1"),
        (2.0, Share, "from 0 to 1"),
        (0, Positive | None, "more than 0"),
        ([1], Mapping, "names and values"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_would_be_right(value: Any, kind: Any, wanted: str) -> None:
    with pytest.raises(UserError, match=f"^it is .*: it has to be {wanted}"):
        convert(value, kind, "it")


def test_text_is_read_as_yaml() -> None:
    assert [parse(text, "it") for text in ("3", "[0.1, 2]", "true", "words", "")] == [3, [0.1, 2], True, "words", ""]
    with pytest.raises(UserError, match="it is"):
        parse("[1", "it")


@dataclass(frozen=True)
class Thing:
    name: str
    sizes: tuple[float, ...] = ()


def test_a_dataclass_is_built_from_names_and_values() -> None:
    assert build(Thing, {"name": "a", "sizes": [1, 2.5]}, "the file") == Thing("a", (1.0, 2.5))
    for given, message in (
        ({}, "the file has no 'name'"),
        ({"name": "a", "sices": 1}, "did you mean 'sizes'"),
        ({"name": 3}, "'name' of the file is 3"),
        ([], "names and values"),
    ):
        with pytest.raises(UserError, match=message):
            build(Thing, given, "the file")


def test_keyword_arguments_are_converted_by_their_function() -> None:
    def function(subject: object, *, steps: Number = 3, shares: Sequence[Share] = ()) -> None: ...

    assert convert_arguments(function, {"shares": 1}, "it") == {"shares": [1.0]}
    for given, message in (
        ({"step": 1}, "did you mean 'steps'"),
        ({"subject": 1}, "no 'subject'"),
        ({"steps": 0}, "1"),
    ):
        with pytest.raises(UserError, match=message):
            convert_arguments(function, given, "it")


def test_a_folder_is_checked_without_making_it(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "folder", "it")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file"):
            check_folder(path, "it")
    if Path("/proc").is_dir():  # where nobody can write, whatever its permissions say to root
        with pytest.raises(UserError, match="nothing can be written to /proc"):
            check_folder(Path("/proc/below"), "it")


# ---- the process that a script or a command is


@pytest.mark.parametrize("guard", [False, True])
def test_a_script_without_a_guard_is_told_so(tmp_path: Path, guard: bool) -> None:
    """Where processes do not fork, each would run the script again."""
    script = "import multiprocessing\nfrom backsight.options import TrainOptions\n"
    script += "if __name__ == '__main__':\n " if guard else ""
    script += "multiprocessing.set_start_method('spawn'); TrainOptions(); print('made')\n"
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert (done.stdout == "made\n") is guard
    assert ('put what it does under `if __name__ == "__main__":`' in done.stderr) is not guard


def test_a_command_needs_no_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    main(["--version"])
    sys.stdout.close()

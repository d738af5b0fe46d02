"""The benchmarks: their references compute the same as ours, ratios are told right, a regression has a name."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from backsight.core import UserError
from backsight.cost import count_operations
from backsight.data import read_image
from backsight.engine import StagedModel
from benchmarks import BENCHMARKS, COMMITTED, Ratio, Settings, alternate, read_ratios, regressions
from benchmarks.__main__ import bench
from benchmarks.apart import Apart
from benchmarks.coverage import BLOCKS, FAILED, FAMILY, attempt, interval
from benchmarks.photos import write_photos
from benchmarks.reference import Reference
from benchmarks.training import Steps, open_run
from small import build_small, random_images


@pytest.fixture(scope="module")
def model() -> StagedModel:
    return build_small("detr")


class Counter:
    """Something to be built in another process: it says where it is, and fails when it is asked to."""

    def __init__(self, start: int) -> None:
        self.number = start

    def add(self, more: int) -> float:
        self.number += more
        return float(self.number)

    def fail(self) -> None:
        raise UserError("no more images")

    def end(self) -> None:
        os._exit(9)


@pytest.mark.slow
def test_a_side_in_another_process_keeps_its_state_and_passes_its_errors_on() -> None:
    with Apart(Counter, 3) as counter:
        spent = alternate({"add": counter.side("add", 2)}, rounds=2)["add"]
        assert [each.waiting for each in spent] == [7.0, 9.0]  # once to warm up, then twice
        with pytest.raises(UserError, match="no more images"):
            counter.side("fail")()
        with pytest.raises(UserError, match="was ended, perhaps for want of memory"):
            counter.side("end")()


# ---- what is measured computes what it should


def test_the_reference_sees_the_features_of_the_staging_engine(model: StagedModel, tmp_path: Path) -> None:
    run = open_run(model, Settings(), "world", tmp_path, seeds=1)
    reference = Reference(model, run.splits.train, 2)
    images = random_images(model)
    with torch.no_grad():
        found = reference._forward(images)
    for name in model.stages:
        torch.testing.assert_close(found[name], model.run(images)[name])


def test_the_reference_and_ours_go_down_the_same_losses(model: StagedModel, tmp_path: Path) -> None:
    run = open_run(model, Settings(batch_size=4), "world", tmp_path, seeds=1)
    reference, ours = Reference(model, run.splits.train, 4), Steps(run, 1)
    batch = next(iter(run.epoch(0, 0)))
    reference._images = iter([batch.images])
    reference.all_components(1)
    found = {str(key): loss for key, loss, _ in ours.loop.task.losses(batch.images)}
    assert {f"0/{entry}" for entry in reference.losses} == set(found)
    for entry, loss in reference.losses.items():
        assert found[f"0/{entry}"].item() == pytest.approx(loss, rel=1e-4)


def test_an_image_through_every_script_costs_a_step_for_each(model: StagedModel, tmp_path: Path) -> None:
    run = open_run(model, Settings(), "world", tmp_path, seeds=1)
    reference, passes = Reference(model, run.splits.train, 2), []
    model.module.register_forward_pre_hook(lambda *_: passes.append(1))
    reference.script_per_component(1)
    assert len(passes) == len(reference.networks) == 5
    reference.all_components(1)
    assert len(passes) == 6


def test_operations_are_counted_as_by_hand() -> None:
    queries = torch.randn(1, 2, 5, 8)
    assert count_operations(lambda: torch.randn(3, 4) @ torch.randn(4, 5)) == 2 * 3 * 4 * 5
    attention = count_operations(lambda: functional.scaled_dot_product_attention(queries, queries, queries))
    assert attention == 2 * (2 * 2 * 5 * 5 * 8)


def test_made_photos_are_pictures_like_photos(tmp_path: Path) -> None:
    paths = sorted(write_photos(tmp_path, 2).iterdir())
    sizes = [path.stat().st_size for path in paths]
    assert all(80_000 < size < 300_000 for size in sizes)  # COCO's have 50 to 300 kB
    one, other = (read_image(path).float() for path in paths)
    assert one.shape == (3, 480, 640)
    assert one.std() > 20
    assert (one - other).abs().mean() > 20


# ---- turns and ratios


def test_sides_take_turns_and_waiting_is_told_apart() -> None:
    order: list[str] = []

    def waits() -> float:
        order.append("waits")
        time.sleep(0.02)
        return 0.015

    spent = alternate({"waits": waits, "works": lambda: order.append("works")}, 3)
    assert order == ["waits", "works"] * 4  # the first turn of each warms up
    assert all(each.wall >= 0.02 and each.working == pytest.approx(each.wall - 0.015) for each in spent["waits"])
    assert all(each.cpu < 0.02 for each in spent["waits"])


def ratio(name: str, *values: float, better: str = "higher") -> Ratio:
    return Ratio(name, values, "this over that", better)  # type: ignore[arg-type]


def test_a_regression_is_named() -> None:
    before = {"ratios": [{"name": name, "median": 2.0} for name in ("fast", "slow", "small", "large", "noisy")]}
    now = [
        ratio("fast", 1.81, 1.85, 1.9),  # 7.5 % worse: within what is tolerated
        ratio("slow", 1.4, 1.5, 1.6),
        ratio("small", 2.1, better="lower"),
        ratio("large", 2.5, better="lower"),
        ratio("noisy", 1.0, 1.5, 2.2),
        ratio("new", 0.1),
    ]
    found = regressions(now, before)
    assert [line.partition(":")[0] for line in found] == ["slow", "large", "noisy"]
    assert "1.5 now, 2 before, 25 % worse" in found[0]
    assert "the rounds of this run include the old value" in found[2]
    assert "the rounds" not in found[0]


def test_the_committed_ratios_can_be_read() -> None:
    found = read_ratios(COMMITTED)
    assert {each["name"].partition("/")[0] for each in found["ratios"]} <= set(BENCHMARKS)
    assert found["machine"]["name"]


# ---- the command


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(
            "train",
            {"1 seed/one pass", "1 seed/script per component", "2 seeds/script per component"},
            marks=pytest.mark.slow,
        ),
        pytest.param("limit", {"whole step", "forward model", "backbone", "encoder"}, marks=pytest.mark.slow),
        ("trace", {"run", "features of all stages", "resume at encoder"}),
        pytest.param("reconstruct", {"from backbone", "from encoder"}, marks=pytest.mark.slow),
        ("cache", {"read", "keep"}),
    ],
)
def test_a_benchmark_gives_its_ratios(name: str, expected: set[str]) -> None:
    found = BENCHMARKS[name](Settings(("zoo/vit-prior",), rounds=1, seeds=2, data="world"))
    told = [each.name.removeprefix(f"{name}/zoo/vit-prior/") for each in found]
    assert expected <= {each.removesuffix("/steps alone").removesuffix("/with decoding") for each in told}
    assert all(0 < each.median < 1000 for each in found)


@pytest.mark.slow
def test_the_command_prints_writes_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ratios.json"
    bench(("data",), rounds=1, json=path)
    written = read_ratios(path)
    assert {"data/read", "data/Pillow", "data/draw the world"} <= {each["name"] for each in written["ratios"]}
    for each in written["ratios"]:
        each["median"] *= 1000 if each["name"] == "data/read" else 1e-3
    written["machine"]["name"] = "another machine"
    path.write_text(json.dumps(written))
    with pytest.raises(SystemExit) as stop:
        bench(("data",), rounds=1, compare=(path,))
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "data/read:" in said
    assert "of another machine" in said
    assert "data/Pillow:" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ("speed",)}, "no benchmark 'speed'"),
        ({"rounds": 0}, "rounds"),
        ({"names": ("data",), "compare": (Path("no/such.json"),)}, "no/such.json"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_measured(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(**arguments)


def test_a_file_without_ratios_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"ratios": [{}]}')
    with pytest.raises(UserError, match="holds no ratios"):
        read_ratios(tmp_path / "other.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experiments", "start", "memory"])
def test_the_slower_benchmarks_too(name: str) -> None:
    found = BENCHMARKS[name](Settings(("zoo/detr-prior",), rounds=1, data="world"))
    assert found
    assert all(0.01 < each.median < 1000 for each in found)


# ---- how many models are staged


def test_a_share_has_wilson_s_interval() -> None:
    low, high = interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert interval(0, 0) == (0.0, 1.0)
    assert round(interval(150, 150)[0], 3) == 0.975


def test_what_is_staged_is_told_from_what_is_not() -> None:
    import timm

    assert attempt("test_vit", lambda: timm.create_model("test_vit")) == FAMILY
    assert attempt("test_efficientnet", lambda: timm.create_model("test_efficientnet")) == BLOCKS
    assert attempt("text", lambda: torch.nn.Embedding(8, 4)).startswith(f"{FAILED}: UserError")

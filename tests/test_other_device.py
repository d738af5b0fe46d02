"""What runs on a GPU keeps its tensors there, and asks no Apple GPU for float64; on a pretended one, see there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backsight.data.world import World
from backsight.devices import exact
from backsight.evaluation import evaluate, task_scores
from backsight.experiments import EXPERIMENTS, Subject
from backsight.metrics.probe import fit_probe
from backsight.options import ModelOptions, TrainOptions
from backsight.results import Result
from backsight.training import train_run
from known_chains import FEW, FLOW, random_subject
from numerics import assert_rounding
from pretend_device import Mixed, PretendDevice
from small import build_small

KINDS = ("cuda", pytest.param("mps", marks=pytest.mark.slow))
# A pretended GPU needs no pinned memory.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest) -> Iterator[PretendDevice]:
    with PretendDevice(request.param) as pretended:
        yield pretended


def subject_on(device: torch.device, family: str, images: int = 4) -> Subject:
    """A small model of its own with two untrained chains, and drawn scenes, on ``device``."""
    known = random_subject(family, inverses=[FLOW])
    data = World("prior", known.model.pixels.size, 2, images, single=family == "vit")
    return Subject(known.model.to(device), known.ensemble, data, batch_size=4)


# ---- the pretended device itself


def test_tensors_keep_their_place(device: PretendDevice):
    here, there = torch.ones(3), torch.ones(3).to(device.device)
    assert [each.device.type for each in (here, there)] == ["cpu", device.device.type]
    for each in (there + 1, there[1:], there * torch.tensor(2.0), torch.zeros(2, device=device.device), there.clone()):
        assert device.holds(each)
    module = torch.nn.Linear(2, 2).to(device.device)
    assert all(map(device.holds, module.parameters()))
    assert not device.holds(there.cpu())
    assert not device.holds(here)


def test_what_the_device_would_refuse_is_refused(device: PretendDevice):
    here, there = torch.ones(3), torch.ones(3).to(device.device)
    refused = (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: torch.where(there > 0, here, there),
        lambda: here[there > 0],
        lambda: there.numpy(),
        lambda: torch.rand(2, device=device.device, generator=torch.Generator()),
    )
    for call in refused:
        with pytest.raises(Mixed):
            call()


def test_apple_has_no_float64():
    with PretendDevice("mps") as device:
        there = torch.ones(3, device=device.device)
        for call in (there.double, lambda: there.to("cpu", torch.float64), lambda: there.to(torch.ones(1).double())):
            with pytest.raises(TypeError, match="float64"):
                call()
        assert exact(there).dtype == torch.float64
        assert exact(there).device.type == "cpu"
    with PretendDevice("cuda") as device:
        assert device.holds(exact(torch.ones(3, device=device.device)))


# ---- what runs on it


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize(
    ("device", "family"),
    [
        ("cuda", "vit"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("cuda", "detr"), ("mps", "vit"), ("mps", "detr"))),
    ],
    indirect=["device"],
)
def test_experiments_run_on_another_device(device: PretendDevice, family: str):
    subject = subject_on(device.device, family)
    assert device.holds(subject.batches[0].images)
    done = []
    for name, experiment in EXPERIMENTS.items():
        if name != "trade_off" and not experiment.fits(subject):
            result = experiment.measure(subject, **FEW.get(name, {}))
            assert json.loads(result.to_json())["measurements"]
            assert result.to_table()
            done.append(name)
    assert len(done) >= 10


@pytest.mark.slow
def test_padded_images_are_measured_on_another_device(device: PretendDevice):
    subject = subject_on(device.device, "detr")
    (batch,) = subject.batches
    valid = torch.ones(4, *batch.images.shape[2:], dtype=torch.bool)
    valid[::2, 48:], valid[1::2, :, 72:] = False, False
    subject.batches = [replace(batch, valid=valid.to(device.device))]
    for name in ("stage_error", "abstraction", "detection_errors", "prototypes", "color_perturbation", "reconstruct"):
        assert EXPERIMENTS[name].measure(subject).measurements
    mean = torch.full((3, 1, 1), 0.5).expand_as(batch.images[0]).to(device.device)
    for batches in (subject.batches, [batch]):
        assert evaluate(subject.model, subject.ensemble, batches, mean).subjects[0]["num_images"] == 4
        assert task_scores(subject.model, batches)


@pytest.mark.parametrize(("num", "width"), [(40, 6), (20, 30)], ids=["more examples", "more features"])
def test_a_probe_is_the_same_on_another_device(device: PretendDevice, num: int, width: int):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num, width, generator=generator)
    targets = features[:, :2] + 1

    def read(features: Tensor, targets: Tensor) -> Tensor:
        return fit_probe(features, targets)(features)

    found = read(features.to(device.device), targets.to(device.device))
    assert_rounding(found.cpu(), read(features, targets), 1e-9)  # float64 on both


def test_a_run_needs_no_float64_of_its_device(tmp_path: Path):
    with PretendDevice("mps"):
        small = {"steps": 2, "seeds": 1, "batch_size": 4, "max_validation": 4, "max_test": 4, "workers": 0}
        options = TrainOptions(data="world:prior:single", out=tmp_path / "run", **small)
        model = build_small("vit")
        assert train_run(model.to("mps"), options, ModelOptions(device="mps")).chains
    assert Result.load(tmp_path / "run" / "evaluation.json").subjects[0]["num_images"] == 4

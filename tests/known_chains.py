"""Subjects of experiments for the tests: a few pictures, small models, and chains whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import AxesImage
from matplotlib.text import Text
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain, Plan, build_chain, describe
from backsight.core import Layout
from backsight.data import open_data
from backsight.data.base import Sample, Target
from backsight.engine import StagedModel
from backsight.experiments import EXPERIMENTS, Result, Subject, run_experiment
from backsight.experiments.run import figure_pages
from backsight.figures.house_style import HEIGHT, LETTERS, WIDTH, style
from backsight.inverses import Inverse
from backsight.tasks import make_plans
from small import build_small

Answer = Callable[[Tensor], Tensor]


class Pictures:
    """Coarse coloured squares; the pictures whose numbers are in ``unreadable`` cannot be read."""

    def __init__(self, size: tuple[int, int], count: int = 6, unreadable: Sequence[int] = (), seed: int = 0) -> None:
        coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        fine = torch.nn.functional.interpolate(coarse, size)
        self.images = (fine * 255).round().to(torch.uint8)
        self.unreadable = unreadable
        self.name = "squares"
        self.classes: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample | None:
        return None if index in self.unreadable else Sample(self.images[index], f"square {index}", Target())

    def fingerprint(self) -> str:
        return "ab12"

    @property
    def floats(self) -> Tensor:
        """``images 3 H W`` in [0, 1]."""
        return self.images.float() / 255


class Oracle(Inverse):
    """Answers what ``answer`` says of the features that it is given."""

    def __init__(self, source: Layout, target: Layout, answer: Answer) -> None:
        super().__init__(source, target)
        self.answer = answer

    def forward(self, features: Tensor) -> Tensor:
        return self.answer(features)


def chain_of(model: StagedModel, answers: Mapping[str, Answer], seed: int = 0) -> InverseChain:
    """A chain of oracles, an answer for every stage."""
    inverses = {
        stage: Oracle(model.layout(stage), model.layout(model.spec.before(stage)), answer)
        for stage, answer in answers.items()
    }
    return InverseChain(inverses, {stage: Plan("oracle") for stage in answers}, model.stages, describe(model), seed)


def perfect_chain(model: StagedModel, images: Tensor, seed: int = 0) -> InverseChain:
    """Knows ``images`` by heart: of the features of each, the true features of the stage before."""
    trace = model.run(images)

    def answer(stage: str) -> Answer:
        known, target = trace[stage].flatten(1), trace[model.spec.before(stage)]
        return lambda features: target[torch.cdist(features.flatten(1), known).argmin(1)]

    return chain_of(model, {stage: answer(stage) for stage in model.stages}, seed)


def constant_chain(model: StagedModel, image: Tensor, seed: int = 0) -> InverseChain:
    """Paints ``image`` (``3 H W``), and the true features of it on the way, whatever it is given."""
    trace = model.run(image[None])

    def answer(stage: str) -> Answer:
        target = trace[model.spec.before(stage)]
        return lambda features: target.expand(len(features), *target.shape[1:])

    return chain_of(model, {stage: answer(stage) for stage in model.stages}, seed)


def untrained_chain(model: StagedModel, seed: int = 0) -> InverseChain:
    """The inverses that the family itself names, a local one for the backbone of DETR."""
    plans = {
        f"{stage.name}@{variant}" if variant else stage.name: Plan(name, options)
        for stage in model.spec.stages
        for variant, (name, options) in stage.inverses.items()
    }
    if plans["backbone"].inverse == "deconvolution":  # which takes seconds to draw, however small the model
        plans["backbone"] = Plan("local", {"depth": 1})
    return build_chain(model, plans, seed).eval()


def subject_of(
    model: StagedModel, chains: Sequence[InverseChain], data: Pictures | None = None, **options: Any
) -> Subject:
    """A subject with six pictures in batches of four and two, or ``data`` in batches of ``batch_size``."""
    options = {"batch_size": 4, **options}
    return Subject(model, ChainEnsemble(chains), data or Pictures(model.pixels.size), **options)


def perfect_subject(model: StagedModel, **options: Any) -> Subject:
    """Two seeds that know the pictures by heart."""
    images = Pictures(model.pixels.size).floats
    return subject_of(model, [perfect_chain(model, images, seed) for seed in (0, 1)], **options)


def untrained_subject(model: StagedModel, seeds: int = 2, **options: Any) -> Subject:
    """The family's own inverses, as they are drawn."""
    return subject_of(model, [untrained_chain(model, seed) for seed in range(seeds)], **options)


QUICK = {
    "detr": ("backbone=local:depth=1", "encoder=encoder:depth=1", "decoder=decoder:depth=1", "prediction@onehot=none"),
    "vit": ("encoder=blocks:depth=1",),
}
"""Inverses that are drawn and run in no time, in place of a family's own."""

FLOW = "backbone@flow=flow:width=8,depth=1,steps=1"
"""One beside them that samples."""

FEW: dict[str, dict[str, Any]] = {
    "ambiguity": {"num_draws": 3},
    "attention_ablation": {"steps": 1, "batch_size": 2, "copies": 1},
    "detection_errors": {"among": 8},
    "truth": {"num_scenes": 4, "num_training": 12},
    "token_noise": {"shares": [0.3]},
    **{name: {"num_pictures": 0} for name in ("color_perturbation", "intermediate_layers", "prototypes")},
}
"""Settings of experiments with which they take no time."""


def random_subject(family: str, *, inverses: Sequence[str] = (), num_images: int = 4, batch_size: int = 3) -> Subject:
    """A small random model with two random chains, on drawn scenes (of one object each for a classifier)."""
    model = build_small(family)
    plans = make_plans(model, [*QUICK.get(family, ()), *inverses])
    ensemble = ChainEnsemble(build_chain(model, plans, seed).eval() for seed in (0, 1))
    data = open_data("world:prior:single" if model.spec.task == "classify" else "world:prior", model.pixels).test
    return Subject(model, ensemble, data, num_images=num_images, batch_size=batch_size)


def check_contract(name: str, subjects: Sequence[Subject], folder: Path, **settings: Any) -> Result:
    """What holds for every experiment: its files, its labels, and a figure that is drawn from the JSON alone.

    Every page is checked as it is drawn; that files of figures are whole is a test of figures.
    """
    experiment, drawn = EXPERIMENTS[name], list[Any]()
    assert experiment.name == name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backsight.experiments.run.to_png", lambda page: drawn.append(page) or b"png")
        patch.setattr("backsight.experiments.run.to_pdf", lambda pages: b"pdf")
        run_experiment(experiment, subjects, folder, settings, command="as typed")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    sheets = {path.name for path in figure_pages(folder)}
    assert files.keys() == {"result.json", "table.csv", "figure.pdf", *sheets}
    result = Result.load(folder)
    assert (result.experiment, result.command) == (name, "as typed")
    assert len(files["table.csv"].splitlines()) == 1 + len(result.measurements)
    assert all({"model", "metric"} <= each.labels.keys() for each in result.measurements)
    assert len(drawn) == len(sheets) > 0
    for figure in drawn:
        check_figure(figure)
    return result


def texts_of(figure: Any) -> list[Text]:
    """All texts that show. Ticks of a hidden axis or beyond its ends do not."""
    hidden = {
        tick.label1
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        if not (axes.axison and min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval()))
    }
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


def check_figure(figure: Any) -> None:
    """At most 7 x 9 inches, no small letters, nothing clipped; in the style in which files are drawn."""
    for picture in figure.findobj(AxesImage):
        picture.set_visible(False)  # which takes longest to draw, and has no letters
    with style():
        figure.draw_without_rendering()
    assert figure.get_figwidth() == WIDTH
    assert figure.get_figheight() <= HEIGHT + 1e-6
    texts = texts_of(figure)
    assert texts
    assert min(text.get_fontsize() for text in texts) >= LETTERS
    page = figure.bbox
    for text in texts:
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, f"'{text.get_text()}' is clipped: {box}"

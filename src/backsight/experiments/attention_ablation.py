"""What a vision transformer loses without attention between patches (paper, sec. 4.4)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from backsight.core import Classes, UserError
from backsight.data import Batch, ImageData, loader, open_data
from backsight.data.world import LENGTHS, World
from backsight.engine import StagedModel, Trace
from backsight.evaluation import right_answers
from backsight.experiments.drawing import lines_of, models_of, named_lines, pictures_of, title_of
from backsight.experiments.run import Experiment
from backsight.experiments.subject import Subject, by_seed
from backsight.figures import Pages, Panel, pages, panel_part, picture_parts
from backsight.metrics import mse
from backsight.models import duplicate, vocabulary
from backsight.results import INPUT, Measurement, Picture, Result
from backsight.validation import AnyNumber, Number, Range

FULL, ALONE, TUNED = "all attention", "patches alone", "fine-tuned"
"""The conditions: the model as it is; masked; masked, after it was trained on with the mask in place."""


def measure(
    subject: Subject,
    *,
    steps: AnyNumber = 400,
    learning_rate: Annotated[float, Range(0, 1)] = 1e-4,
    batch_size: Number = 32,
    train: str = "",
    reads_prefix: bool = False,
    own_prefix: bool = True,
    copies: Number = 3,
    seed: int = 0,
    num_pictures: AnyNumber = 3,
) -> Result:
    """Take attention from patch to patch away, before and after fine-tuning a copy of the model without it.

    Labels: ``model``, ``condition`` (:data:`FULL`, :data:`ALONE`, :data:`TUNED`), ``metric``: ``accuracy`` (0 or 1 for
    each image, a row for each copy that was fine-tuned) and, by ``stage``, ``mse`` of the reconstruction, RGB in
    [0, 1], by the chain of the unmasked model, from the first copy.

    Args:
        steps: of fine-tuning; with 0 it is left out.
        learning_rate: of AdamW, falling to 0 as a cosine.
        batch_size: of fine-tuning.
        train: the data whose training split the copy is tuned on; the subject's own by default.
        reads_prefix: patches keep attending to the class token, through which they still mix.
        own_prefix: the class token attends to itself, too, and not to the patches alone.
        copies: so many are fine-tuned, which see the training images in other orders.
        seed: of the order of the training images.
        num_pictures: how many images are kept as pictures.

    Raises:
        UserError: a model whose blocks take no attention mask, or training data without classes.
    """
    tuning = FineTuning(steps, learning_rate, batch_size, seed)
    layout = subject.model.layout(subject.stages[0])
    mask = patch_attention_mask(layout.tokens, layout.prefix, reads_prefix=reads_prefix, own_prefix=own_prefix)
    measurements: list[Measurement] = []
    pictures: list[Picture] = []
    for condition in _conditions(subject, tuning, train, mask.to(subject.model.device), copies):
        measurements += condition.measure()
        pictures += condition.pictures(num_pictures)
    settings = {**asdict(tuning), "train": train, "reads_prefix": reads_prefix, "own_prefix": own_prefix}
    settings |= {"copies": copies, "num_pictures": num_pictures}
    return subject.result("attention_ablation", measurements, pictures, settings)


def _conditions(subject: Subject, tuning: FineTuning, train: str, mask: Tensor, copies: int) -> Iterator[_Condition]:
    model = subject.model
    blocks_of(model)  # a model or data that will not do is refused before anything is computed
    data = training_data(subject, train) if tuning.steps > 0 else None
    yield _Condition(FULL, subject, (model,), None)
    yield _Condition(ALONE, subject, (model,), mask)
    if data is not None:
        tuned = [duplicate(model) for _ in range(copies)]
        for number, copy in enumerate(tuned):
            fine_tune(copy, data, replace(tuning, seed=tuning.seed + number), masked_attention(copy, mask))
        yield _Condition(TUNED, subject, tuple(tuned), mask)


@dataclass(frozen=True)
class _Condition:
    """``models``, the subject's own or copies, with the attention ``mask`` ``N N`` in place (None: without)."""

    name: str
    subject: Subject
    models: tuple[StagedModel, ...]
    mask: Tensor | None

    @torch.no_grad()
    def trace(self, batch: Batch, model: StagedModel) -> Trace:
        if self.mask is None:
            return self.subject.trace(batch)
        with masked_attention(model, self.mask):
            return model.run(batch.images)

    def reconstruct(self, batch: Batch, trace: Trace, stage: str) -> Tensor:
        return self.subject.reconstruct(batch, stage) if self.mask is None else self.subject.invert(trace, stage)

    def measure(self) -> Iterator[Measurement]:
        for stage, values in self.subject.gather(self._answers).items():
            kind = {"stage": stage, "metric": "mse"} if stage else {"metric": "accuracy"}
            yield Measurement({"condition": self.name, **kind}, values)

    def _answers(self, batch: Batch) -> dict[str, Tensor]:
        """``S B`` squared errors by stage, of the first model, and under "" which images each classifies rightly."""
        traces = [self.trace(batch, model) for model in self.models]
        right = []
        for model, trace in zip(self.models, traces, strict=True):
            answer = model.predict(trace)
            assert isinstance(answer, Classes)
            right.append(right_answers(answer, batch.targets))
        painted = {stage: self.reconstruct(batch, traces[0], stage) for stage in self.subject.stages}
        errors = {stage: by_seed(mse, images, batch.images) for stage, images in painted.items()}
        return {"": torch.tensor(right), **errors}

    def pictures(self, num: int) -> Iterator[Picture]:
        """The first images, and the last stage's reconstructions by the first seed."""
        batch, stage = self.subject.batches[0], self.subject.stages[-1]
        painted = self.reconstruct(batch, self.trace(batch, self.models[0]), stage)[0]
        for image in range(min(num, len(batch.ids))):
            if self.mask is None:
                yield Picture({"condition": INPUT, "image": image}, batch.images[image].cpu())
            yield Picture({"condition": self.name, "stage": stage, "image": image}, painted[image].cpu())


# ---- the mask


def patch_attention_mask(
    num_tokens: int, prefix: int, *, reads_prefix: bool = False, own_prefix: bool = True
) -> Tensor:
    """Attention without patch-to-patch attention: ``N N``, bool, row = who attends, column = to whom, True = it may.

    A prefix token (the class token) attends to the patches and, if ``own_prefix``, to the prefix tokens; a patch to
    itself and, if ``reads_prefix``, to the prefix tokens. Without ``reads_prefix``, as in the paper, each patch is
    processed alone; with it, patches still mix through the prefix from one layer to the next.

    >>> patch_attention_mask(num_tokens=3, prefix=1).int().tolist()
    [[1, 1, 1], [0, 1, 0], [0, 0, 1]]

    Args:
        num_tokens: N, prefix tokens included.
        prefix: how many of them come before the patches.
        reads_prefix: patches attend to the prefix tokens too.
        own_prefix: prefix tokens attend to themselves and each other too.

    Raises:
        ValueError: more prefix tokens than tokens.
    """
    if not 0 <= prefix <= num_tokens:
        raise ValueError(f"{prefix} prefix tokens among {num_tokens} tokens: at most all of them can be")
    allowed = torch.eye(num_tokens, dtype=torch.bool)
    allowed[:prefix] = True
    if not own_prefix and prefix < num_tokens:  # with no patch at all a row would be empty
        allowed[:prefix, :prefix] = False
    if reads_prefix:
        allowed[prefix:, :prefix] = True
    return allowed


def blocks_of(model: StagedModel) -> list[nn.Module]:
    """The transformer blocks of a model, all of which take an ``attn_mask``.

    Raises:
        UserError: they do not, or it has none.
    """
    blocks: Any = getattr(model.module, "blocks", ())
    if not len(blocks) or not all("attn_mask" in inspect.signature(each.forward).parameters for each in blocks):
        raise UserError(f"{model.name} takes no attention mask: give a vision transformer of timm (ViT, DeiT, ...)")
    return list(blocks)


@contextmanager
def masked_attention(model: StagedModel, mask: Tensor, layers: Sequence[int] | None = None) -> Iterator[None]:
    """As long as the context lasts every pass of ``model`` attends by ``mask``, which its blocks get as their argument.

    Args:
        model: a vision transformer of timm.
        mask: ``N N``, bool, True = may attend (:func:`patch_attention_mask`).
        layers: only these blocks; all by default.

    Raises:
        UserError: its blocks take no attention mask.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "attn_mask": mask}

    blocks = blocks_of(model)
    with ExitStack() as stack:
        for index in range(len(blocks)) if layers is None else layers:
            stack.callback(blocks[index].register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


# ---- fine-tuning a copy

NUM_CHECKED = 100
"""Images that are searched for a class before the training begins."""


@dataclass(frozen=True)
class FineTuning:
    """``steps`` of AdamW on batches of ``batch_size`` images, its ``learning_rate`` falling to 0 as a cosine; ``seed``
    of the images' order."""

    steps: int = 400
    learning_rate: float = 1e-4
    batch_size: int = 32
    seed: int = 0


def training_data(subject: Subject, spec: str = "") -> ImageData:
    """The training split of ``spec``, or of the subject's own data.

    Raises:
        UserError: it cannot be opened, or its images have no class.
    """
    if not spec and isinstance(subject.data, World):
        data: ImageData = replace(subject.data, seed=subject.data.seed // 3 * 3, length=LENGTHS[0])
    else:
        data = open_data(spec or subject.data.name, subject.model.pixels, vocabulary=vocabulary(subject.model)).train
    samples = (data[index] for index in range(min(len(data), NUM_CHECKED)))
    if all(sample is None or sample.target.label is None for sample in samples):
        raise UserError(
            f"{data.name} has no class of the whole image to train on: take folder:DIR or world:prior:single"
        )
    return data


def fine_tune(
    model: StagedModel,
    data: ImageData,
    tuning: FineTuning,
    changed: AbstractContextManager[object] | None = None,
) -> StagedModel:
    """Train a classifier on ``data`` by cross-entropy, in place, as long as ``changed`` is in force; returns it.

    Gradients are cut to a norm of 1. Take :func:`~backsight.models.duplicate` first to keep a model as it is.

    Raises:
        UserError: the data has classes that the model does not.
    """
    module = model.module.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(module.parameters(), tuning.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, tuning.steps)
    try:
        with changed or nullcontext(), torch.enable_grad():
            for images, labels in _batches(data, tuning, model.device):
                logits = module(model.pixels.as_input(images), **model.arguments)
                if int(labels.max()) >= logits.shape[-1]:
                    raise UserError(
                        f"{data.name} has a class {int(labels.max())}, {model.name} knows {logits.shape[-1]} classes "
                        "from 0 on: train on data with the model's own classes"
                    )
                optimiser.zero_grad()
                nn.functional.cross_entropy(logits, labels).backward()
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimiser.step()
                schedule.step()
    finally:
        module.eval().requires_grad_(False)
    return model


def _batches(data: ImageData, tuning: FineTuning, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``B 3 H W`` and their classes ``B``, epoch after epoch, until there were as many as there are steps."""
    done = 0
    for epoch in count():
        batches = loader(data, tuning.batch_size, seed=tuning.seed, epoch=epoch, shuffle=True, device=device)
        for batch in batches:
            known = [index for index, target in enumerate(batch.targets) if target.label is not None]
            if done == tuning.steps:
                return
            if known:
                yield batch.images[known], torch.tensor([batch.targets[index].label for index in known], device=device)
                done += 1


# ---- the figure


def draw(result: Result) -> Pages:
    """Accuracy and the last stage's error in each condition; under them the last stage's reconstructions."""
    models = models_of(result)
    last = {model: result.select(model=model, condition=FULL, metric="mse")[-1].labels["stage"] for model in models}
    lines = {title_of(result, model): {"model": model, "stage": stage} for model, stage in last.items()}
    errors = named_lines(result, lines, "condition", metric="mse")
    panels = [
        Panel("Accuracy", lines_of(result, "condition", metric="accuracy"), label="top-1", limits=(0, 1)),
        Panel("Reconstruction from the last stage", errors, label="mean squared error"),
    ]
    return pages(
        [panel_part(panels), *picture_parts([pictures_of(result, model, "image", "condition") for model in models])]
    )


ATTENTION_ABLATION = Experiment(
    "attention_ablation",
    "What is lost without attention between patches?",
    measure,
    draw,
    needs=("labels",),
    tasks=("classify",),
    controlled=False,
    reading=(
        "The error after the attention between patches was cut out of single layers. A layer that matters raises it; "
        "that it hardly rises may also mean that other layers make up for it."
    ),
)

"""The staging engine: run a library's own model once, re-enter it anywhere.

:meth:`StagedModel.run` calls the forward of the library with hooks on every :class:`~backsight.core.Site` and keeps a
:class:`Trace`. :meth:`StagedModel.resume` calls the same forward again with an edited representation at one site. No
forward code is ever copied, and a family of models costs only the names of its sites.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from backsight.arrange import (
    HALF,
    call_with,
    each_tensor,
    from_features,
    image_argument_of,
    infer_grids,
    levels_of,
    tensors_in,
)
from backsight.core import (
    IMAGE,
    Classes,
    Detections,
    Fit,
    Layout,
    Pixels,
    Site,
    Spec,
    Stage,
    UserError,
    valid_sizes,
)
from backsight.replay import Call, Reached, Recorder, Replay, Trace, kept_modules, named_sites

Prediction = Classes | list[Detections]
"""A classifier's :class:`Classes`, or a detector's :class:`Detections` for each image."""

RANDOM = "random"
"""What ``StagedModel.weights`` says of a model that was never trained; every output repeats it."""

MASK = "pixel_mask"
"""The argument by which models of transformers are told which pixels are valid: 1 there, 0 on padding."""


class StagedModel:
    """A frozen forward model with named stages.

    Args:
        module: the library's model; it is put into eval mode and its parameters stop requiring gradients.
        spec: where its sites are.
        pixels: what it expects of an image.
        name: the user's word for it, repeated in every output.
        read: the model's own output and the image size (H, W) -> its :data:`Prediction`.
        weights: where the weights come from, in words; :data:`RANDOM` for none.
        constants: static tensors that some inverses use (a patch projection, a position embedding).
        arguments: keyword arguments of every call of ``module``. Tensors among them go along to other devices; those
            with a first axis of 1 are expanded over the batch.
        image_argument: the keyword by which ``module`` takes its images; None for the first argument, or for
            ``pixel_values`` where there is one behind others.
        reopen: what :func:`~backsight.models.load_model` needs, beside the name, to open the model again.

    A pass patches submodules while it lasts, so the passes of one model are serialised by a lock. Gradients
    follow torch's usual rules: nothing carries one unless the images or the edited features do.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: Spec,
        pixels: Pixels,
        *,
        name: str,
        read: Callable[[Any, tuple[int, int]], Prediction] | None = None,
        weights: str = "given",
        constants: Mapping[str, Tensor] | None = None,
        arguments: Mapping[str, Any] | None = None,
        image_argument: str | None = None,
        reopen: Mapping[str, Any] | None = None,
    ) -> None:
        self.module: nn.Module = module.eval().requires_grad_(False)
        self.spec: Spec = spec
        self.pixels: Pixels = pixels
        self.name: str = name
        self.weights: str = weights
        self.constants: dict[str, Tensor] = dict(constants or {})
        self.arguments: dict[str, Any] = dict(arguments or {})
        self.reopen: dict[str, Any] = dict(reopen or {})
        self.read = read
        self.image_argument: str | None = image_argument or image_argument_of(module)
        self._lock = threading.RLock()
        self._layouts: dict[str, Layout] = {}
        self._sites = named_sites(spec)
        self._modules = kept_modules(module, self._sites)

    def __repr__(self) -> str:
        height, width = self.pixels.size
        return f"StagedModel({self.name}, {height}x{width}, weights: {self.weights}, stages: {', '.join(self.stages)})"

    def _repr_html_(self) -> str:
        from backsight.display import model_html

        return model_html(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(itertools.chain(self.module.parameters(), self.module.buffers()), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights; images are cast to it, and features are handed out in single precision."""
        weights = (each.dtype for each in self.module.parameters() if each.is_floating_point())
        return next(weights, torch.float32)

    @property
    def names(self) -> list[str]:
        """Every stage and layer: ``backbone, encoder.0, encoder.1, ..., encoder, ...``."""
        return list(self._sites)

    @property
    def stages(self) -> list[str]:
        """The stages, in the order of the forward pass."""
        return [stage.name for stage in self.spec.stages]

    def sites(self, name: str) -> tuple[Site, ...]:
        """Where the features of a stage or layer live in the library's model."""
        return self._sites[self._known(name)]

    def to(self, device: torch.device | str) -> StagedModel:
        """Move the weights; returns the model itself."""
        self.module.to(device)
        self.constants = {name: value.to(device) for name, value in self.constants.items()}
        self.arguments = each_tensor(self.arguments, lambda value: value.to(device))
        return self

    # ---- passes

    def run(self, images: Tensor, until: str | None = None, valid: Tensor | None = None) -> Trace:
        """One forward pass over ``images`` (``B 3 H W`` in [0, 1]), left after stage or layer ``until`` if given.

        Of padded images ``valid`` (``B H W``, bool) says where the pictures are: the model gets its mask, and 0 in its
        normalised space elsewhere, whatever is painted there.
        """
        trace = Trace(images, valid=valid)
        self._pass(trace, Recorder(self._sites, self._modules, trace, self._wanted(until)))
        return trace

    def features(self, images: Tensor, names: Sequence[str], valid: Tensor | None = None) -> dict[str, Tensor]:
        """Only the features at ``names`` (``B N D`` each), leaving the pass at the last: what training needs."""
        wanted = {name for name in names if name != IMAGE}
        trace = Trace(images, valid=valid)
        if wanted:
            sites = {name: self._sites[self._known(name)] for name in wanted}
            self._pass(trace, Recorder(sites, self._modules, trace, wanted, keep_calls=False))
        return {name: trace[name] for name in names}

    def answer(self, images: Tensor, names: Sequence[str], valid: Tensor | None = None, **arguments: Any) -> Trace:
        """A whole pass that keeps the output and the features at ``names`` alone: what training the model itself needs.

        ``arguments`` go to its module beside its own, as the ``labels`` of a loss that it computes itself.
        """
        sites = {name: self._sites[self._known(name)] for name in names if name != IMAGE}
        trace = Trace(images, valid=valid)
        self._pass(trace, Recorder(sites, self._modules, trace, keep_calls=False), arguments)
        return trace

    def resume(self, at: str, features: Tensor, trace: Trace, until: str | None = None) -> Trace:
        """The rest of the forward pass of ``trace``, its features at ``at`` replaced by ``features`` (``B N D``).

        Returns a new trace: the old features before ``at``, the edited ones there, new ones after it.

        Raises:
            UserError: ``trace`` does not reach ``at``, the shapes differ, or ``until`` comes before ``at``.
        """
        self._known(at)
        if features.shape != trace[at].shape:
            raise UserError(f"features at '{at}' have shape {tuple(trace[at].shape)}, got {tuple(features.shape)}")
        start, sites = trace.raw[at].order, self._sites[at]
        edited = trace.before(start, sites)
        if until in edited.features:
            raise UserError(f"'{until}' comes before '{at}': nothing changes there, stop at '{at}' or later")
        size = (trace.images.shape[-2], trace.images.shape[-1])
        edit = dict(zip(sites, from_features(features, trace.raw[at].value, sites, size), strict=True))
        replay = Replay.of(trace, start, sites)
        recorder = Recorder(
            self._sites, self._modules, edited, self._wanted(until), replay=replay, edit=edit, next=trace.end()
        )
        with self._lock, replay.stubs(self._modules):
            self._pass(edited, recorder)
        return edited

    def predict(self, trace: Trace) -> Prediction:
        """The model's answer in ``trace``: classes, or one :class:`Detections` an image with boxes in pixels.

        Raises:
            UserError: the model predicts nothing, the pass was left early, or there was none.
        """
        if isinstance(trace, Tensor):
            raise UserError("an answer is that of a pass, run it first: model.predict(model.run(images))")
        if self.read is None:
            raise UserError(f"{self.name} predicts nothing: it is staged for its features only")
        if trace.output is None:
            raise UserError("this pass was left before its prediction: run it without 'until'")
        height, width = trace.images.shape[-2:]
        found = self.read(trace.output, (height, width))
        if trace.valid is None or isinstance(found, Classes):
            return found
        # A masked detector gives its boxes as shares of the valid part, its positions being counted there alone.
        parts = zip(found, valid_sizes(trace.valid), strict=True)
        return [each.scaled(rows / height, columns / width) for each, (rows, columns) in parts]

    def _pass(self, trace: Trace, recorder: Recorder, more: Mapping[str, Any] | None = None) -> None:
        self.pixels.check(trace.images, self.name)
        if trace.valid is not None:
            self._require_mask()
        self._forward(trace, recorder, more or {})

    def _forward(self, trace: Trace, recorder: Recorder, more: Mapping[str, Any]) -> None:
        pixels, dtype = self.pixels.as_input(trace.images), self.dtype
        if trace.valid is not None:
            pixels = pixels.masked_fill(~trace.valid[:, None], 0)
            more = {**more, MASK: trace.valid.long()}
        pixels = pixels if dtype is torch.float32 else pixels.to(dtype)
        args, kwargs = call_with(pixels, self.arguments, self.image_argument)
        kwargs |= more  # as they are: of labels a first axis of 1 is a single object
        with self._lock, recorder.hooked():
            try:
                trace.output = self.module(*args, **kwargs)
            except Reached:
                trace.output = None
        if dtype in HALF:
            trace.features = {name: value.float() for name, value in trace.features.items()}

    # ---- padding

    def fitting(self, fit: Fit | None) -> StagedModel:
        """Take pictures to the model's size in another way than its own (None: leave that); returns the model itself.

        Raises:
            UserError: pictures would be padded, and the model takes no mask.
        """
        if fit == "pad":
            self._require_mask()
        self.pixels = replace(self.pixels, fit=fit or self.pixels.fit)
        return self

    @cached_property
    @torch.no_grad()
    def takes_mask(self) -> bool:
        """Whether the model takes a mask of valid pixels, and heeds it: some take one and never look at it."""
        if MASK not in inspect.signature(type(self.module).forward).parameters:
            return False
        (height, width), last = self.pixels.size, self.stages[-1]
        picture = torch.zeros(1, 3, height, width, device=self.device)
        valid = torch.ones(1, height, width, dtype=torch.bool, device=self.device)
        valid[:, height // 2 :] = False
        picture[:, :, : height // 2] = 1
        traces = [Trace(self.pixels.restore(picture), valid=each) for each in (valid, torch.ones_like(valid))]
        for trace in traces:
            self._forward(trace, Recorder(self._sites, self._modules, trace, {last}, keep_calls=False), {})
        return not torch.equal(traces[0][last], traces[1][last])

    def _require_mask(self) -> None:
        if not self.takes_mask:
            raise UserError(
                f"{self.name} takes no mask of padded pixels, or ignores it: use it with fit crop or stretch instead"
            )

    # ---- static facts

    def layout(self, name: str) -> Layout:
        """The static layout of a stage, a layer or the ``image``, measured once on a black image."""
        if name == IMAGE:
            return Layout.of_image(self.pixels.size)
        self._known(name)
        if not self._layouts:
            trace = self.run(torch.zeros(1, 3, *self.pixels.size, device=self.device))
            self._layouts = {each: self._measure(each, trace.features[each], trace.raw[each]) for each in trace.raw}
        if name not in self._layouts:
            raise UserError(f"a forward pass of {self.name} never comes by '{name}': its site is not in use")
        return self._layouts[name]

    def stage_of(self, name: str) -> Stage:
        """The stage that a stage's or layer's name belongs to."""
        return self.spec.stage(name.partition(".")[0])

    def digest(self) -> str:
        """A SHA-256 digest that tells these weights from others: the start of every parameter and statistic."""
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            for each in tensors_in(value):  # quantised layers of torch keep a weight and a bias in one entry
                start = (each.dequantize() if each.is_quantized else each).detach().flatten()[:1024].float().cpu()
                digest.update(f"{name} {tuple(each.shape)}".encode() + start.numpy().tobytes())
        return digest.hexdigest()

    def _measure(self, name: str, features: Tensor, raw: Call) -> Layout:
        stage = self.stage_of(name)
        tokens, width = features.shape[1:]
        grids: tuple[tuple[int, int], ...] = ()
        sites = self._sites[name]
        if stage.gridded and sites[0].pattern != "b d":
            levels = levels_of(raw.value, sites)
            grids = infer_grids(levels, sites[0].pattern, tokens - stage.prefix, self.pixels.size, stage.levels)
            if not grids:
                raise UserError(
                    f"cannot place the {tokens} tokens at '{name}' on a grid over {self.pixels.size} pixels: "
                    "state the stage's prefix and levels, or gridded=False"
                )
        classes = stage.classes if name == stage.name else 0
        return Layout(tokens, width, grids, stage.prefix, classes, stage.scores)

    def _wanted(self, until: str | None) -> set[str] | None:
        return None if until is None else {self._known(until)}

    def _known(self, name: str) -> str:
        if name not in self._sites:
            raise UserError(f"no stage or layer '{name}' in {self.name}: it has {', '.join(self._sites)}")
        return name

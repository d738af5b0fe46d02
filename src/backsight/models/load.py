"""From a name, a folder, a file or a module that the user holds to a :class:`~backsight.engine.StagedModel`."""

from __future__ import annotations

import difflib
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from backsight.core import Pixels, UserError
from backsight.engine import RANDOM, StagedModel
from backsight.io import align
from backsight.models import timm as timm_models
from backsight.models import transformers as transformers_models
from backsight.models.answers import guess, reader
from backsight.models.candidates import find_stages, spec_of
from backsight.models.custom import SpecLike, is_own, load_own, stage_by_spec, unwrapped
from backsight.models.family import Family, FamilyModel, Read
from backsight.models.inputs import more_arguments, pixels_of_detector, settled
from backsight.models.lora import ADAPTER, base_of, merged
from backsight.models.registry import MODELS
from backsight.models.shape_tracing import trace_shapes
from backsight.models.weights import download, read_config
from backsight.shipped import find_shipped

logger: logging.Logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_model(
    name: str,
    *,
    size: tuple[int, int] | None = None,
    weights: str | Path | None = None,
    random_weights: bool = False,
    device: str | torch.device = "cpu",
    seed: int = 0,
    spec: SpecLike | None = None,
) -> StagedModel:
    """Load a pretrained model and stage it.

    Args:
        name: a well-known name (``detr-resnet-50``), a name on the hub (``facebook/detr-resnet-50``,
            ``timm/vit_base_patch16_224``), a folder with ``config.json`` and weights, ``zoo/...``, or a function in a
            file of your own (``my_module.py:build``), which is run because you name it.
        size: image size (H, W) other than the model's own.
        weights: a file of weights for the model ``name``, in place of its own: ``.safetensors``, or ``.pth``/``.bin``
            (never unpickled), or an ``.index.json`` of several. A training checkpoint is unwrapped; ``FILE:ema`` takes
            the moving averages in it.
        random_weights: build the true-size model with random weights, drawn from ``seed``: for trying things out. Of a
            folder, or a name on the hub, only the configuration is read. ``weights`` go before it.
        device: where to put it.
        seed: of the random weights.
        spec: where the stages are, see :func:`stage`: of a model of your own, or in place of what is known of another.

    A model of a type that no family here describes is staged automatically: by its rows of repeated blocks, see
    :func:`~backsight.models.candidates.find_stages`. ``backsight verify`` proves such sites like any other.

    Raises:
        UserError: no such model (the nearest names are offered), no weights at hand, or weights of another model.
    """
    if is_own(name):
        file = None if weights is None else Path(weights)
        return load_own(name, spec, size=size, weights=file, random_weights=random_weights, seed=seed).to(device)
    module, family, pixels, words = load_module(name, size, weights, random_weights=random_weights, seed=seed)
    if pixels.conversion:
        logger.info("%s takes %d channels: of pictures it sees %s", name, pixels.channels, pixels.conversion)
    if spec is None:
        return stage_module(module, family, pixels, name=name, weights=words).to(device)
    staged = stage_by_spec(module, spec, size=size, name=name, weights=words)
    staged.reopen["named"] = True
    return staged.to(device)


def load_module(
    name: str,
    size: tuple[int, int] | None = None,
    weights: str | Path | None = None,
    *,
    random_weights: bool = False,
    seed: int = 0,
) -> tuple[nn.Module, Family | None, Pixels, str]:
    """What :func:`load_model` stages: the module, its family if one describes it, its pixels, and in words where its
    weights come from."""
    file = None if weights is None else Path(weights)
    own = file is None and not random_weights
    folder, source = _folder(name) or _of_the_hub(name, weights=own), name
    if folder is None and own:
        source = _known(name)[-1]
        folder = download(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if folder is None:
            module, family, pixels = _from_name(name, size, file)
        else:
            module, family, pixels = _from_folder(folder, size, file, random=random_weights)
    align(module)
    return module, family, pixels, source if own else RANDOM if file is None else str(file)


def blueprint(family: Family, short: str) -> nn.Module | None:
    """The true-size model of a well-known name without memory for its weights; None where its library has no way."""
    try:
        if family.library == "timm":
            return timm_models.blueprint(short)
        with torch.device("meta"):
            return transformers_models.build(family.kind, family.configure[short])
    except (KeyError, RuntimeError, NotImplementedError):
        return None


def stage_module(
    module: nn.Module, family: Family | None, pixels: Pixels, *, name: str, weights: str = "given"
) -> StagedModel:
    """Stage a loaded module of a known family, or of none.

    Raises:
        UserError: it cannot take images of the size of ``pixels``; or as :func:`stage_automatically`.
    """
    if family is None:
        return stage_automatically(module, pixels, name=name, weights=weights)
    if family.check_size is not None:
        family.check_size(module, pixels.size)
    options = {"name": name, "weights": weights, "arguments": arguments_of(module, family, pixels)}
    return FamilyModel(module, family, family.stage(module), pixels, **options)


def arguments_of(module: nn.Module, family: Family | None, pixels: Pixels) -> dict[str, Any]:
    """What every pass of ``module`` is given beside images of ``pixels``."""
    return {**more_arguments(module, pixels.size), **(family.arguments if family else {})}


def stage_automatically(module: nn.Module, pixels: Pixels, *, name: str, weights: str) -> StagedModel:
    """Stage a module of a type that no family describes, at its rows of repeated blocks.

    Its task is what its output looks like, see :func:`~backsight.models.answers.guess`.

    Raises:
        UserError: no stage is found that an inverse leads back from.
    """
    arguments = more_arguments(module, pixels.size)
    seen = trace_shapes(module, pixels, arguments)
    task, answer = guess(module, seen.output)
    kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__.lower())
    try:
        spec = spec_of(module, find_stages(module, [seen]), kind, task)
    except UserError as error:
        raise UserError(
            f"{name} is a '{kind}', whose stages are not known, and {error}: say where they are by --spec FILE; "
            f"`backsight stages {name} --propose FILE` writes one to begin with"
        ) from error
    read = None if task == "features" else reader(answer, _labels(module), task, seen.output)
    stages = ", ".join(stage.name for stage in spec.stages)
    logger.info("%s is a '%s', which no family describes: staged by its repeated blocks, as %s", name, kind, stages)
    return StagedModel(module, spec, pixels, name=name, read=read, weights=weights, arguments=arguments)


def stage(
    module: nn.Module,
    spec: SpecLike | None = None,
    *,
    pixels: Pixels | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
    weights: str = "given",
    read: Read | None = None,
) -> StagedModel:
    """Stage a module that you hold, by a ``spec``, or without one if timm or transformers made it, or its blocks tell.

    Without a spec a known class is staged as :func:`~backsight.models.load_model` does it, any other by its rows of
    repeated blocks. With one, a pass over random images checks that each of its sites is there.

    Args:
        module: your model; it is put into eval mode and its parameters stop requiring gradients.
        spec: a YAML file, a dictionary of the same form, or a :class:`~backsight.core.Spec`.
        pixels: what the model expects of an image, in place of what the spec or its library says; a Spec, and a module
            of no library, say nothing of it: then 224 x 224 pixels and ImageNet's statistics are taken.
        size: image size (H, W) in place of that of ``pixels``.
        name: your word for it, repeated in every output.
        weights: where the weights come from, in words; ``"random"`` for a model that was never trained.
        read: the model's own output and the image size (H, W) -> :class:`~backsight.core.Classes`, or
            :class:`~backsight.core.Detections` for each image, where the spec's ``prediction`` does not do.

    Raises:
        UserError: a mistake in the spec, a path that names no submodule, a pattern that does not fit what is there,
            pictures to be padded for a model that takes no mask; or, without a spec, nothing that looks like a stage.
    """
    if spec is not None:
        return stage_by_spec(module, spec, pixels=pixels, size=size, name=name, weights=weights, read=read)
    module = settled(unwrapped(module))
    family, known = _described(module, size or (pixels.size if pixels else None))
    if pixels is not None:
        known = replace(pixels, size=size or pixels.size)
    staged = stage_module(module, family, known, name=name or type(module).__name__, weights=weights)
    staged.read = read or staged.read
    staged.reopen["given"] = True  # no name opens it again
    return staged


def _described(module: Any, size: tuple[int, int] | None) -> tuple[Family | None, Pixels]:
    """The family of a module, if one describes it, and what its library says of its images."""
    kind = getattr(getattr(module, "config", None), "model_type", None)
    if kind is not None:
        family = family_of("transformers", kind)
        default = transformers_models.own_size(module) or (family.size if family else (224, 224))
        return family, transformers_models.pixels(module, {}, size, default)
    if type(module).__module__.startswith("timm."):
        return family_of("timm", type(module).__name__), timm_models.pixels(module, size)
    return None, pixels_of_detector(module, size) or Pixels(size or (224, 224))


def _labels(module: Any) -> dict[int, str]:
    """The names of the classes, where the module's library keeps any."""
    if hasattr(module, "config"):
        return dict(getattr(module.config, "id2label", None) or {})
    return dict(enumerate((getattr(module, "pretrained_cfg", None) or {}).get("label_names") or ()))


def _folder(name: str) -> Path | None:
    """The folder that ``name`` means, None for a name to be looked up."""
    shipped = find_shipped(name)
    if shipped is not None:
        return shipped
    path = Path(name)
    if path.is_file():
        raise UserError(f"{name} is a file of weights: name the model it belongs to, and give the file by --weights")
    return path if path.is_dir() else None


def _of_the_hub(name: str, *, weights: bool) -> Path | None:
    """The downloaded folder of a hub name (``owner/model``) that is none of the well-known ones."""
    known = {hub_name for family in MODELS.values() for hub_name in family.names.values()}
    if name in known or name.startswith("timm/") or not _HUB_NAME.fullmatch(name):
        return None
    return download(name, weights=weights)


def _from_name(name: str, size: tuple[int, int] | None, file: Path | None) -> tuple[nn.Module, Family | None, Pixels]:
    """A named model without what the hub has of it: the weights of ``file``, or random ones."""
    family, short, _ = _known(name)
    if family is None or family.library == "timm":
        module = timm_models.build(short, file=file, size=size)
        return module, family, timm_models.pixels(module, size)
    module = transformers_models.build(family.kind, family.configure[short], file)
    return module, family, transformers_models.pixels(module, family.preprocess.get(short, {}), size, family.size)


def _from_folder(
    folder: Path, size: tuple[int, int] | None, file: Path | None, *, random: bool
) -> tuple[nn.Module, Family | None, Pixels]:
    """The model whose configuration is in ``folder``: its weights are there too, unless in ``file`` or ``random``."""
    adapter, folder = folder, _with_config(folder)
    config = read_config(folder)
    if config.get("model_type") == "timm_wrapper":  # a model of timm in a case of transformers
        module = timm_models.of_wrapper(transformers_models.load(folder, file, random=random, described=False), size)
        return module, family_of("timm", type(module).__name__), timm_models.pixels(module, size)
    if "architecture" in config:
        module = timm_models.build(str(config["architecture"]), folder=folder, file=file, random=random, size=size)
        return module, family_of("timm", type(module).__name__), timm_models.pixels(module, size)
    if "model_type" not in config:
        raise UserError(
            f"{folder / 'config.json'} names neither a 'model_type' nor an 'architecture': save the model again"
        )
    family = family_of("transformers", config["model_type"])
    said = transformers_models.preprocessor(folder)
    if adapter == folder:
        module = transformers_models.load(folder, file, random=random, described=family is not None)
    else:
        module = merged(adapter, folder)
    default = transformers_models.own_size(module) or (family.size if family else (224, 224))
    return module, family, transformers_models.pixels(module, said, size, default)


def _with_config(folder: Path) -> Path:
    """The ``folder`` itself, or that of the model which an adapter in it belongs to."""
    if not (folder / ADAPTER).is_file() or (folder / "config.json").is_file():
        return folder
    base = base_of(folder)
    return _folder(base) or _of_the_hub(base, weights=True) or download(_known(base)[-1])


def family_of(library: str, kind: str) -> Family | None:
    """The family of a library's ``kind`` of model; None where none describes it."""
    return next((each for each in MODELS.values() if (each.library, each.kind) == (library, kind)), None)


def _known(name: str) -> tuple[Family | None, str, str]:
    """(family, short name, name on the hub) of a model that is named, not lying in a folder."""
    for family in MODELS.values():
        for short, hub_name in family.names.items():
            if name in (short, hub_name):
                return family, short, hub_name
    return _timm_model(name.removeprefix("timm/")) or _unknown(name)


def _timm_model(name: str) -> tuple[Family | None, str, str] | None:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        return None
    kind = type(timm_models.blueprint(name)).__name__
    config = timm.get_pretrained_cfg(name)
    hub_name = (config.hf_hub_id if config is not None else None) or f"timm/{name}"
    return family_of("timm", kind), name, hub_name


def _unknown(name: str) -> NoReturn:
    import timm

    known = [each for family in MODELS.values() for pair in family.names.items() for each in pair]
    nearest = difflib.get_close_matches(name, dict.fromkeys(known + timm.list_models()), n=3, cutoff=0.5)
    offer = f"the nearest names are {', '.join(nearest)}" if nearest else "see `backsight models`"
    if Path(name).is_absolute() or name.startswith("."):
        raise UserError(f"no folder at {name}: a model's folder holds config.json and model.safetensors")
    raise UserError(f"no model '{name}': {offer}; or give a folder with config.json and model.safetensors")

"""From what a user names, a model, its chains and data, to the subject of an experiment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from backsight.chain import ChainEnsemble
from backsight.chain.model import open_forward_model
from backsight.core import UserError
from backsight.data import open_data
from backsight.devices import choose_device
from backsight.evaluation import mean_image_of
from backsight.experiments.subject import Subject
from backsight.io import read_json, read_yaml
from backsight.models import vocabulary
from backsight.shipped import find_shipped

NUM_IMAGES = 100
"""How many images an experiment looks at, unless told otherwise."""

_MEND = "restore it, or name the data by --data"


def open_subject(
    model: str | None = None,
    chain: str | Path | None = None,
    data: str | None = None,
    *,
    num_images: int | None = NUM_IMAGES,
    batch_size: int = 16,
    device: str = "auto",
) -> Subject:
    """The first test images of some data, seen by a forward model, with the chains that invert it.

    Args:
        model: the forward model's name; that which the chains keep by default.
        chain: a run, one chain, ``zoo/NAME``, or a name on the hub; those that ship with ``model`` by default.
        data: as :func:`~backsight.data.open_data` takes it; that of the chains' training by default. Masks are drawn.
        num_images: how many of its test images; None for all.
        batch_size: images that pass the networks together.
        device: where to compute.

    Raises:
        UserError: no chains, chains of another model, or no data is named and the chains do not say theirs.
    """
    if num_images is not None and num_images < 1:
        raise UserError(f"{num_images} images: it has to be at least 1")
    source = chain or _shipped_chains(model)
    ensemble = ChainEnsemble.from_pretrained(source)
    staged = open_forward_model(ensemble, choose_device(device), model)
    spec = data or trained_on(ensemble, source)
    if spec is None:
        raise UserError(f"the chains of {staged.name} do not say what they were trained on: name the data by --data")
    splits = open_data(spec, staged.pixels, masks=True, vocabulary=vocabulary(staged))
    mean = training_mean(ensemble.folder or Path(source))
    return Subject(staged, ensemble, splits.test, num_images=num_images, batch_size=batch_size, mean_image=mean)


def trained_on(ensemble: ChainEnsemble, source: str | Path) -> str | None:
    """The data that chains loaded from ``source`` were trained on; None where nothing says so."""
    return next(filter(None, map(_data_of, _places(ensemble.folder or Path(source)))), None)


def training_mean(folder: Path) -> Tensor | None:
    """The mean image, ``3 H W``, of what the chains in ``folder`` were trained on; None where nothing keeps it."""
    return next((image for image in map(mean_image_of, _places(folder)) if image is not None), None)


def _shipped_chains(model: str | None) -> str:
    if model is None:
        raise UserError("neither a model nor a chain is named: name zoo/detr-prior, or a run by --chain RUN")
    folder = find_shipped(model)
    if folder is None or not has_chains(folder):
        raise UserError(f"{model} comes without chains: name a run by --chain RUN; `backsight train {model}` makes one")
    return model


def has_chains(folder: Path) -> bool:
    """Whether there are chains in the folder of a shipped model."""
    return any(folder.glob("chains/*/chain.json"))


def _places(folder: Path) -> Iterator[Path]:
    """Where a run or a shipped model keeps what is not in a chain: its folder, or above ``chains/<seed>``."""
    yield folder
    yield from [parent for parent in list(folder.parents)[:2] if (parent / "chains").is_dir()]


def _data_of(folder: Path) -> str | None:
    """The data that a run, or a shipped model, was trained on; None where the folder does not say."""
    if (folder / "config.yaml").is_file():
        data = read_yaml(folder / "config.yaml", _MEND).get("data")
        return data.get("spec") if isinstance(data, dict) else data
    if (folder / "card.json").is_file():
        return read_json(folder / "card.json", _MEND).get("data")
    return None

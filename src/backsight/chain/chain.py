"""Chains of inverses: from the features of any stage or layer back to an image (paper, eq. 2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from backsight.chain.files import FORMAT, read_index, read_inverse, run_folders
from backsight.core import IMAGE, UserError, entry_of, split_entry
from backsight.engine import StagedModel, Trace
from backsight.hub import locate, publish
from backsight.inverses import Flow, Inverse, build_inverse
from backsight.io import write_bytes, write_json

if TYPE_CHECKING:
    from backsight.display import Html

AT_ONCE = 8
"""Draws of a batch that pass the inverses together."""


@dataclass(frozen=True)
class Plan:
    """Which inverse reads a stage: its name in ``INVERSES``, the options it is built with, the learning rate where it
    is not the inverse's own, and the noise on what it reads in training (in standard deviations of the features)."""

    inverse: str
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    input_noise: float = 0.0


class InverseChain(nn.Module):
    """The inverses of one forward model and one seed.

    Args:
        inverses: by entry, ``stage`` or ``stage@variant`` (``prediction@onehot``).
        plans: how each of them is built.
        stages: the forward model's stages in order; the inverse of a stage reconstructs the one before it.
        model: name, weights, digest and pixels of the forward model, as :func:`describe` gives them.
        seed: of the inverses' initialisation.
    """

    def __init__(
        self,
        inverses: Mapping[str, Inverse],
        plans: Mapping[str, Plan],
        stages: Iterable[str],
        model: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.inverses: nn.ModuleDict = nn.ModuleDict(inverses)
        self.plans: dict[str, Plan] = dict(plans)
        self.stages: list[str] = list(stages)
        self.model: dict[str, Any] = dict(model)
        self.seed: int = seed
        self.folder: Path | None = None  # that it was loaded from

    def __repr__(self) -> str:
        return f"InverseChain({self.model['name']}, seed {self.seed}: {', '.join(self.entries)})"

    def _repr_html_(self) -> str:
        from backsight.display import chain_html

        return chain_html(self)

    def show(self, trace: Trace, at: Sequence[str] | None = None) -> Html:
        """What this makes of every image in ``trace``, for a notebook (:func:`backsight.display.show`)."""
        from backsight.display import show

        return show(self, trace, at)

    @property
    def entries(self) -> list[str]:
        """Every inverse of the chain: ``backbone, encoder, ..., prediction@onehot``."""
        return list(self.plans)

    def items(self) -> list[tuple[str, Inverse]]:
        """The inverses by entry."""
        return [(entry, cast(Inverse, self.inverses[entry])) for entry in self.plans]

    def path(self, at: str, to: str = IMAGE, via: Mapping[str, str] | None = None) -> list[str]:
        """The entries that lead from stage (or entry) ``at`` down to ``to``, in the order in which they are applied.

        Raises:
            UserError: a stage or variant that the chain does not have.
        """
        stage, variant = split_entry(at)
        order = [IMAGE, *self.stages]
        for name in (stage, to):
            if name not in order:
                raise UserError(f"no stage '{name}' in this chain: it has {', '.join(self.stages)}")
        variants = {**(via or {}), **({stage: variant} if variant else {})}
        if order.index(to) > order.index(stage):
            raise UserError(f"inverses lead back, from '{to}' to '{stage}': give a stage before '{stage}' to stop at")
        names = order[order.index(to) + 1 : order.index(stage) + 1][::-1]
        entries = [entry_of(name, variants.get(name, "")) for name in names]
        for entry in entries:
            if entry not in self.plans:
                raise UserError(f"no inverse '{entry}' in this chain: it has {', '.join(self.plans)}")
        return entries

    def reconstruct(
        self,
        source: Trace | Tensor,
        at: str,
        to: str = IMAGE,
        *,
        reads: str | None = None,
        via: Mapping[str, str] | None = None,
    ) -> Tensor:
        """Equation 2: the features at ``at`` through one inverse after the other, down to ``to``.

        Args:
            source: a trace, or features ``B N D``.
            at: a stage (``encoder``), an inverse's entry (``prediction@onehot``) or a layer (``encoder.3``).
            to: where to stop; ``image`` by default.
            reads: the stage that the features are taken for; a layer is read as its own stage by default.
            via: variants to use on the way, as ``{"backbone": "local"}``.

        Returns:
            Images ``B 3 H W`` in [0, 1], or features ``B N D`` of the stage ``to``.

        Raises:
            UserError: no such way through the chain, or features that its first inverse cannot read.
        """
        features, entries = self._way(source, at, to, reads, via)
        for entry in entries:
            features = self.inverses[entry](features)
        return features

    @torch.no_grad()
    def sample(
        self,
        source: Trace | Tensor,
        at: str,
        to: str = IMAGE,
        *,
        draws: int = 16,
        seed: int = 0,
        reads: str | None = None,
        via: Mapping[str, str] | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Draws of what may have led to the features at ``at``: each goes down the whole chain, and takes noise of its
        own at every inverse that samples (:class:`~backsight.inverses.Flow`).

        A draw depends on ``seed``, on its number and on the place of its image in the batch, and on nothing else: the
        same ones come again, however many are drawn beside them, to rounding on any device.

        Args:
            source, at, to, reads: as for :meth:`reconstruct`.
            draws: how many of each image.
            seed: of the noise.
            via: variants to use on the way, as ``{"encoder": "flow"}``; the others give their mean. By default
                :meth:`samplers`: every stage samples that can.
            steps: of each inverse that samples, in place of its own.

        Returns:
            ``draws B 3 H W`` in [0, 1], or features ``draws B N D`` of the stage ``to``.

        Raises:
            UserError: no inverse on the way samples; or as :meth:`reconstruct`.
        """
        features, entries = self._way(source, at, to, reads, self.samplers() if via is None else via)
        if not any(self.samples(entry) for entry in entries):
            raise UserError(
                f"no inverse of {', '.join(entries) or at} samples: train some beside them, as --inverse "
                f"{self.stages[0]}@flow=flow, and name them by via"
            )
        parts = [
            self._draw(features, entries, range(start, min(start + AT_ONCE, draws)), seed, steps)
            for start in range(0, draws, AT_ONCE)
        ]
        return torch.cat(parts)

    def samplers(self) -> dict[str, str]:
        """The variant of each stage that samples, the first where there are several; not of stages that have none, or
        whose own inverse samples."""
        found: dict[str, str] = {}
        for entry in self.entries:
            stage, variant = split_entry(entry)
            if variant and self.samples(entry) and not self.samples(stage):
                found.setdefault(stage, variant)
        return found

    def samples(self, entry: str) -> bool:
        """Whether the inverse ``entry`` gives draws as well as their mean."""
        return isinstance(self.inverses[entry], Flow)

    def _draw(self, features: Tensor, entries: Sequence[str], numbers: range, seed: int, steps: int | None) -> Tensor:
        """The draws ``numbers`` of features ``B N D``: ``draws B ...``."""
        count = len(features)
        features = features.expand(len(numbers), *features.shape).flatten(0, 1)
        for entry in entries:
            inverse = self.inverses[entry]
            if isinstance(inverse, Flow):
                keys = [f"{seed} {self.seed} {entry} {number} {place}" for number in numbers for place in range(count)]
                noise = torch.stack([noise_of(key, inverse.noise_shape) for key in keys]).to(features)
                features = inverse.sample(features, noise, steps)
            else:
                features = inverse(features)
        return features.unflatten(0, (len(numbers), count))

    def _way(
        self, source: Trace | Tensor, at: str, to: str, reads: str | None, via: Mapping[str, str] | None
    ) -> tuple[Tensor, list[str]]:
        """The features at ``at``, and the inverses that they pass on the way down to ``to``."""
        name, variant = split_entry(at)
        own = entry_of(name.partition(".")[0], variant)
        features = source[name] if isinstance(source, Trace) else source
        entries = self.path(reads or own, to, via)
        if entries:
            self._expect_readable(features, entries[0], at)
        return features, entries

    def _expect_readable(self, features: Tensor, entry: str, at: str) -> None:
        """Refuse features that the inverse ``entry`` cannot read; those of the chain that can are offered."""
        shape, read = tuple(features.shape[1:]), _read_by(self.inverses[entry])
        if shape != read:
            fitting = [f"reads='{name}'" for name, inverse in self.items() if _read_by(inverse) == shape]
            offer = f"give {' or '.join(fitting)}" if fitting else "no inverse of this chain reads such features"
            raise UserError(
                f"the features at '{at}' are {' x '.join(map(str, shape))} (tokens x width), and the inverse '{entry}' "
                f"reads {read[0]} x {read[1]}: {offer}"
            )

    def check(self, model: StagedModel, description: Mapping[str, Any] | None = None) -> None:
        """Refuse a forward model that this chain was not trained on; ``description`` is :func:`describe`'s, if known.

        Raises:
            UserError: other stages, another size, or other weights.
        """
        mine, theirs = self.model, description or describe(model)
        for what in ("stages", "size", "digest"):
            if mine[what] != theirs[what]:
                differs = "weights" if what == "digest" else what
                raise UserError(
                    f"this chain inverts {mine['name']} (weights: {mine['weights']}), and {model.name} (weights: "
                    f"{model.weights}) has other {differs}: use the model that the chain was trained on"
                )

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write ``chain.json`` and one ``<entry>.safetensors`` for each inverse, each file whole, the index last.

        ``dtype`` is that of the weights in the files, their own by default; loading gives single precision.
        """
        folder = Path(folder)
        inverses = {}
        for entry, inverse in self.items():
            state = {
                name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
                for name, value in inverse.state_dict().items()
            }
            content = save(state)
            write_bytes(folder / f"{entry}.safetensors", content)
            inverses[entry] = {
                **asdict(self.plans[entry]),
                "source": asdict(inverse.source),
                "target": asdict(inverse.target),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        index = {"format": FORMAT, "model": self.model, "seed": self.seed, "stages": self.stages, "inverses": inverses}
        write_json(folder / "chain.json", index)
        return folder

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Give this chain to the hub as ``owner/name``; options and answer are :func:`~backsight.hub.publish`'s."""
        return publish([self], repository, **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None) -> InverseChain:
        """Load a chain from its folder, or the first of ``zoo/...`` or of ``owner/name`` on the hub, at ``revision``.

        Raises:
            UserError: no chain there, a newer format, or a file that is missing or damaged (each has its digest).
        """
        folder = locate(folder, revision, one=True)
        index, model = read_index(folder)
        inverses, plans = {}, {}
        for entry, saved in index.inverses.items():
            plans[entry] = Plan(saved.inverse, saved.options, saved.learning_rate, saved.input_noise)
            inverses[entry] = read_inverse(folder / f"{entry}.safetensors", saved)
        chain = cls(inverses, plans, index.stages, model, index.seed).eval()
        chain.folder = folder
        return chain


class ChainEnsemble:
    """The chains of several seeds of one forward model, so that no finding hangs on one initialisation."""

    def __init__(self, chains: Iterable[InverseChain], folder: Path | None = None) -> None:
        self.chains: list[InverseChain] = list(chains)
        self.folder: Path | None = folder
        if not self.chains:
            raise UserError("an ensemble needs at least one chain")

    def __repr__(self) -> str:
        seeds = ", ".join(str(chain.seed) for chain in self.chains)
        return f"ChainEnsemble({self.model['name']}, seeds {seeds}: {', '.join(self.entries)})"

    def _repr_html_(self) -> str:
        from backsight.display import chain_html

        return chain_html(self)

    def show(self, trace: Trace, at: Sequence[str] | None = None) -> Html:
        """What this makes of every image in ``trace``, for a notebook (:func:`backsight.display.show`)."""
        from backsight.display import show

        return show(self, trace, at)

    @property
    def model(self) -> Mapping[str, Any]:
        """The forward model that the chains invert, as :func:`describe` gives it."""
        return self.chains[0].model

    @property
    def entries(self) -> list[str]:
        """Every inverse that each of the chains has: flows may have been trained for one seed alone."""
        return [entry for entry in self.chains[0].entries if all(entry in chain.entries for chain in self.chains)]

    @property
    def run_folders(self) -> list[Path]:
        """Where the run, or the shipped model, that the chains were loaded from keeps what is not in a chain."""
        return list(run_folders(self.folder or self.chains[0].folder))

    def reconstruct(self, source: Trace | Tensor, at: str, to: str = IMAGE, **options: Any) -> Tensor:
        """:meth:`InverseChain.reconstruct` by every seed: ``S B 3 H W``."""
        return torch.stack([chain.reconstruct(source, at, to, **options) for chain in self.chains])

    def sample(self, source: Trace | Tensor, at: str, to: str = IMAGE, **options: Any) -> Tensor:
        """:meth:`InverseChain.sample` by every seed: ``S draws B 3 H W``."""
        return torch.stack([chain.sample(source, at, to, **options) for chain in self.chains])

    @property
    def drawing(self) -> ChainEnsemble:
        """The seeds that have what the first has to sample by."""
        return ChainEnsemble([chain for chain in self.chains if chain.samplers() == self.samplers()], self.folder)

    def samplers(self) -> dict[str, str]:
        """The variant of each stage that samples (:meth:`InverseChain.samplers`), of the first seed."""
        return self.chains[0].samplers()

    def to(self, device: torch.device | str) -> ChainEnsemble:
        """Move every chain; returns the ensemble itself."""
        for chain in self.chains:
            chain.to(device)
        return self

    def check(self, model: StagedModel) -> None:
        """Refuse a forward model that any of these chains was not trained on (:meth:`InverseChain.check`)."""
        description = describe(model)
        for chain in self.chains:
            chain.check(model, description)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Give every chain to the hub as ``owner/name``; options and answer are :func:`~backsight.hub.publish`'s.

        The errors and pictures of the run that they were loaded from go with them.
        """
        return publish(self.chains, repository, **{"run": self.folder, **options})

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None) -> ChainEnsemble:
        """Load a run (``RUN``, with ``RUN/chains/<seed>``), a folder of chains, one chain, or those of ``zoo/...`` or
        of ``owner/name`` on the hub, at ``revision``."""
        folder = locate(folder, revision)
        if (folder / "chain.json").is_file():
            return cls([InverseChain.from_pretrained(folder)])
        parent = folder / "chains" if (folder / "chains").is_dir() else folder
        found = sorted(parent.glob("*/chain.json"), key=lambda path: (len(path.parent.name), path.parent.name))
        if not found:
            begun = (folder / "config.yaml").is_file()
            unfinished = " (its training has not finished: run it again with --resume)" if begun else ""
            raise UserError(
                f"no chains in {folder}{unfinished or ': name the folder of a run, with chains/0/chain.json in it'}"
            )
        return cls((InverseChain.from_pretrained(path.parent) for path in found), folder)


def describe(model: StagedModel) -> dict[str, Any]:
    """What a chain keeps of its forward model, to recognise it again."""
    return {
        "name": model.name,
        "family": model.spec.family,
        "weights": model.weights,
        "stages": model.stages,
        "size": list(model.pixels.size),
        "pixels": asdict(model.pixels),
        "digest": model.digest(),
        **({"reopen": model.reopen} if model.reopen else {}),
    }


def build_chain(model: StagedModel, plans: Mapping[str, Plan], seed: int) -> InverseChain:
    """A new chain for ``model``. Each inverse is drawn from ``seed`` and its own entry, whatever others there are."""
    constants = {
        **model.constants,
        "mean": torch.tensor(model.pixels.mean),
        "std": torch.tensor(model.pixels.std),
    }
    inverses = {}
    for entry, plan in plans.items():
        stage, _ = split_entry(entry)
        source, target = model.layout(stage), model.layout(model.spec.before(stage))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {entry}".encode()).digest()[:8]) >> 1)
            inverses[entry] = build_inverse(plan.inverse, source, target, plan.options, constants)
    return InverseChain(inverses, plans, model.stages, describe(model), seed)


def noise_of(key: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers that depend on ``key`` alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _read_by(inverse: Any) -> tuple[int, int]:
    """The tokens and the width of the features that an inverse reads."""
    return inverse.source.tokens, inverse.source.width

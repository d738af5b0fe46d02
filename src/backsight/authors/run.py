"""From published networks to the chains of a run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from backsight.authors.networks import Network, read_network
from backsight.authors.states import find_published
from backsight.chain import ChainEnsemble, InverseChain, describe
from backsight.core import Pixels, UserError
from backsight.engine import RANDOM, StagedModel
from backsight.io import write_text
from backsight.training import RunFolder, command
from backsight.training.outputs import versions

Normalisation = Literal["imagenet", "none", "model"]
"""The statistics that images were normalised by: ImageNet's, none at all (values in [0, 1]), or the model's own."""

_IN_WORDS: Mapping[Normalisation, str] = {
    "imagenet": "normalised by the statistics of ImageNet",
    "none": "not normalised: values in [0, 1]",
    "model": "normalised by the model's own statistics",
}


def import_authors(
    path: str | Path,
    model: StagedModel,
    out: str | Path,
    *,
    normalisation: Normalisation = "imagenet",
    overwrite: bool = False,
) -> ChainEnsemble:
    """Read the inverses that the paper's authors published for ``model`` into the chains of a run folder.

    Args:
        path: a file or folder of their weights (:func:`~backsight.authors.states.find_published`). Where it holds
            several networks for the same stage, the first of each stage make the first chain, and so on.
        model: the forward model. Pictures are only as good as its weights are the authors'.
        out: the run's folder.
        normalisation: how images were normalised in their training. Most of their scripts do it by ImageNet's
            statistics, whatever the model wants; two that train inverses of ViT feed it with values in [0, 1].
        overwrite: replace the run in the folder.

    Returns:
        The chains. They keep the pixels that the authors fed the model with: stretched, and normalised as said.

    Raises:
        UserError: a file that is none of their inverses, a tensor that is missing, left over or of another shape, or
            stages that make no whole chain.
    """
    folder = RunFolder(out)
    folder.check(resume=False, overwrite=overwrite)
    networks = [read_network(published, model) for published in find_published(Path(path))]
    known = {**describe(model), "pixels": asdict(_pixels(model, normalisation))}
    chains = [_chain(entries, model, known, seed) for seed, entries in enumerate(_assemble(networks, model.stages))]
    sources = [_source(network) for network in networks]
    with folder.claimed(resume=False, overwrite=overwrite):
        folder.write_config(_config(known, chains, sources))  # first: by it the folder is known as a run's
        for chain in chains:
            chain.save(folder.path / "chains" / str(chain.seed))
        write_text(folder.path / "card.md", _card(known, chains, sources, normalisation))
    return ChainEnsemble(chains)


def _pixels(model: StagedModel, normalisation: Normalisation) -> Pixels:
    if normalisation == "none":
        return Pixels(model.pixels.size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if normalisation == "model":
        return Pixels(model.pixels.size, mean=model.pixels.mean, std=model.pixels.std)
    return Pixels(model.pixels.size)


def _assemble(networks: Sequence[Network], stages: Sequence[str]) -> list[dict[str, Network]]:
    """The networks by entry, for one chain after the other.

    Raises:
        UserError: a stage has more of them than another, or a stage on the way to the image has none.
    """
    by_entry: dict[str, list[Network]] = {}
    for network in networks:
        by_entry.setdefault(_entry(network.stage, network.variant), []).append(network)
    first = stages[0]
    if first not in by_entry:  # then the way to the image leads through a variant
        stand_in = next((entry for entry in by_entry if entry.startswith(f"{first}@")), None)
        by_entry = {first if entry == stand_in else entry: found for entry, found in by_entry.items()}
    ordered = sorted(by_entry, key=lambda entry: (stages.index(by_entry[entry][0].stage), entry))
    by_entry = {entry: by_entry[entry] for entry in ordered}
    _expect_whole(by_entry, stages)
    count = len(by_entry[ordered[0]])
    return [{entry: found[seed] for entry, found in by_entry.items()} for seed in range(count)]


def _expect_whole(by_entry: Mapping[str, Sequence[Network]], stages: Sequence[str]) -> None:
    if len({len(found) for found in by_entry.values()}) > 1:
        counts = ", ".join(f"{len(found)} of {entry}" for entry, found in by_entry.items())
        raise UserError(
            f"the files hold {counts}: as many of each are needed, one for every seed; name a folder that holds these"
        )
    last = max(stages.index(found[0].stage) for found in by_entry.values())
    for stage in stages[:last]:
        if stage not in by_entry:
            raise UserError(
                f"no file holds the inverse of '{stage}', which the way from '{stages[last]}' to the image needs: "
                f"there are those of {', '.join(by_entry)}"
            )


def _entry(stage: str, variant: str) -> str:
    return f"{stage}@{variant}" if variant else stage


def _chain(entries: Mapping[str, Network], model: StagedModel, known: Mapping[str, Any], seed: int) -> InverseChain:
    inverses = {entry: network.inverse for entry, network in entries.items()}
    plans = {entry: network.plan for entry, network in entries.items()}
    return InverseChain(inverses, plans, model.stages, known, seed).eval().requires_grad_(False)


def _source(network: Network) -> dict[str, Any]:
    """Where a network comes from, for the run's configuration."""
    origin = network.origin
    digest = hashlib.sha256(origin.file.read_bytes()).hexdigest()
    entry = _entry(network.stage, network.variant)
    return {"entry": entry, "file": origin.file.name, "label": origin.label, "sha256": digest}


def _config(known: Mapping[str, Any], chains: Sequence[InverseChain], sources: Sequence[Any]) -> dict[str, Any]:
    plans = {entry: asdict(plan) for entry, plan in chains[0].plans.items()}
    pixels = {name: list(value) if isinstance(value, tuple) else value for name, value in known["pixels"].items()}
    return {
        "command": command(),
        "model": {**known, "pixels": pixels},
        "imported": list(sources),
        "inverses": plans,
        "seeds": [chain.seed for chain in chains],
        "versions": versions(),
    }


def _card(
    known: Mapping[str, Any],
    chains: Sequence[InverseChain],
    sources: Sequence[Mapping[str, Any]],
    normalisation: Normalisation,
) -> str:
    """A page of Markdown: what was read from where, and that nothing was measured."""
    lines = [f"# The authors' inverses of {known['name']}", ""]
    if known["weights"] == RANDOM:
        lines += ["**Random weights: the inverses are the authors', the forward model is not.**", ""]
    lines += [
        f"- model: {known['name']}",
        f"- weights: {known['weights']}",
        f"- chains: {len(chains)}",
        "- trained by: the paper's authors, elsewhere; only read here",
        f"- fed with: images stretched to the size, {_IN_WORDS[normalisation]}",
        "",
        "| inverse | file | SHA-256 |",
        "| --- | --- | --- |",
        *(
            f"| {source['entry']} | {source['file']} ({source['label']}) | `{source['sha256'][:16]}` |"
            for source in sources
        ),
        "",
        "No error was measured here: `backsight reconstruct` measures on the pictures that it is given.",
    ]
    return "\n".join(lines) + "\n"

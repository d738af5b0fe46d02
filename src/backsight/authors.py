"""The inverses that the paper's authors published: from their files of tensors to the chains of a run folder.

Each network is recognised by the names of its tensors and stated as one of our inverses; what theirs computes stands
beside the function that reads it. Sizes are read off the tensors. Only the number of attention heads leaves no trace in
them: it is that of the forward model's stage. Nothing here unpickles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from backsight.chain import ChainEnsemble, InverseChain, Plan, describe
from backsight.core import Layout, Pixels, UserError, entry_of
from backsight.engine import RANDOM, StagedModel
from backsight.inverses import Inverse, build_inverse
from backsight.inverses.base import times_finer
from backsight.io import digest, plain, write_text
from backsight.models.checkpoints import read_content
from backsight.training import RunFolder, command
from backsight.training.outputs import versions

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
SHOWN = 3
"""Names of tensors in a message, at the most."""

FULL = {"fd", "full", "soft", "distribution"}
"""Words in a file's name that say of a prediction inverse that it reads full class distributions."""

EPSILON = 1e-5
"""What torch's own LayerNorm and BatchNorm add to the variance; timm's blocks have 1e-6."""

STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

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
        path: a file or folder of their weights (:func:`find_published`). Where it holds several networks for the same
            stage, the first of each stage make the first chain, and so on.
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
    chains = []
    for seed, entries in enumerate(_assemble(networks, model.stages)):
        inverses = {entry: network.inverse for entry, network in entries.items()}
        plans = {entry: network.plan for entry, network in entries.items()}
        chains.append(InverseChain(inverses, plans, model.stages, known, seed).eval().requires_grad_(False))
    sources = [network.source for network in networks]
    config = {
        "command": command(),
        "model": known,
        "imported": sources,
        "inverses": {entry: asdict(plan) for entry, plan in chains[0].plans.items()},
        "seeds": [chain.seed for chain in chains],
        "versions": versions(),
    }
    with folder.claimed(resume=False, overwrite=overwrite):
        folder.write_config(plain(config, "the configuration"))  # first: by it the folder is known as a run's
        for chain in chains:
            chain.save(folder.path / "chains" / str(chain.seed))
        write_text(folder.path / "card.md", _card(known, len(chains), sources, normalisation))
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
        by_entry.setdefault(network.entry, []).append(network)
    first = stages[0]
    if first not in by_entry:  # then the way to the image leads through a variant
        stand_in = next((entry for entry in by_entry if entry.startswith(f"{first}@")), None)
        by_entry = {first if entry == stand_in else entry: found for entry, found in by_entry.items()}
    ordered = sorted(by_entry, key=lambda entry: (stages.index(by_entry[entry][0].stage), entry))
    counts = [len(by_entry[entry]) for entry in ordered]
    if len(set(counts)) > 1:
        held = ", ".join(f"{count} of {entry}" for count, entry in zip(counts, ordered, strict=True))
        raise UserError(
            f"the files hold {held}: as many of each are needed, one for every seed; name a folder that holds these"
        )
    last = by_entry[ordered[-1]][0].stage
    for stage in stages[: stages.index(last)]:
        if stage not in by_entry:
            raise UserError(
                f"no file holds the inverse of '{stage}', which the way from '{last}' to the image needs: "
                f"there are those of {', '.join(ordered)}"
            )
    return [{entry: by_entry[entry][seed] for entry in ordered} for seed in range(counts[0])]


def _card(
    known: Mapping[str, Any], chains: int, sources: Sequence[Mapping[str, Any]], normalisation: Normalisation
) -> str:
    """A page of Markdown: what was read from where, and that nothing was measured."""
    lines = [f"# The authors' inverses of {known['name']}", ""]
    if known["weights"] == RANDOM:
        lines += ["**Random weights: the inverses are the authors', the forward model is not.**", ""]
    lines += [
        f"- model: {known['name']}",
        f"- weights: {known['weights']}",
        f"- chains: {chains}",
        "- trained by: the paper's authors, elsewhere; only read here",
        f"- fed with: images stretched to the size, {_IN_WORDS[normalisation]}",
        "",
        "| inverse | file | SHA-256 |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {each['entry']} | {each['file']} ({each['label']}) | `{each['sha256'][:16]}` |" for each in sources]
    lines += ["", "No error was measured here: `backsight reconstruct` measures on the pictures that it is given."]
    return "\n".join(lines) + "\n"


# ---- their files


@dataclass(frozen=True)
class Published:
    """One published network: the ``file`` it comes from, its ``label`` there, and its ``tensors`` by name."""

    file: Path
    label: str
    tensors: Mapping[str, Tensor]

    @property
    def origin(self) -> str:
        """Where it comes from, in words for a message."""
        return str(self.file) if self.label == self.file.stem else f"{self.file} ({self.label})"

    def tensor(self, name: str, axes: int) -> Tensor:
        """The tensor called ``name``.

        Raises:
            UserError: it is missing, or has another number of ``axes``.
        """
        if name not in self.tensors:
            raise self.refused(missing=[name])
        if self.tensors[name].dim() != axes:
            raise self.refused(misshaped=[f"{name}, {_shape(self.tensors[name])}"])
        return self.tensors[name]

    def depth(self, layers: str) -> int:
        """How many ``layers.0``, ``layers.1``, ... there are."""
        numbers = [int(found[1]) for name in self.tensors if (found := re.match(rf"{layers}\.(\d+)\.", name))]
        return 1 + max(numbers, default=-1)

    def compare(self, shapes: Mapping[str, Tensor]) -> None:
        """Refuse the network unless its tensors are those of ``shapes``: no more, no fewer, each of that shape.

        Raises:
            UserError: a tensor is missing, or is not of this network, or has another shape.
        """
        misshaped = [
            f"{name}, {_shape(self.tensors[name])} instead of {_shape(shapes[name])}"
            for name in shapes
            if name in self.tensors and self.tensors[name].shape != shapes[name].shape
        ]
        missing = [name for name in shapes if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in shapes]
        if missing or unexpected or misshaped:
            raise self.refused(missing, unexpected, misshaped)

    def refused(
        self, missing: Sequence[str] = (), unexpected: Sequence[str] = (), misshaped: Sequence[str] = ()
    ) -> UserError:
        """One line that names the first tensors which keep this network from being read."""
        found = {"missing": missing, "not of this network": unexpected, "of another shape": misshaped}
        parts = [
            f"{len(names)} tensors {what} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
            for what, names in found.items()
            if names
        ]
        return UserError(f"{self.origin} is no inverse that can be read: {'; '.join(parts)}")


def find_published(path: Path) -> list[Published]:
    """Every network below ``path``, in the order of the files' names.

    ``path`` is a file, or a folder with any number of them: ``.pt``, ``.pth``, ``.bin`` and ``.safetensors`` files, and
    whatever lies in a folder ``model_states``, as the authors' training leaves it. A checkpoint with several networks
    under ``model_states`` gives each of them; folders ``checkpoints`` are passed over, since they repeat these.

    Raises:
        UserError: nothing is there, a file holds no tensors, or more than tensors, or a part of another inverse.
    """
    if not path.exists():
        raise UserError(f"nothing at {path}: name a file or a folder of the authors' weights")
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if _is_weights(each, path))
    if not files:
        raise UserError(f"no weights in {path}: it should hold {', '.join(SUFFIXES)} files, or a folder model_states")
    found = [network for file in files for network in _read(file)]
    for network in found:
        _expect_modular(network, path)
    return found


def _expect_modular(network: Published, top: Path) -> None:
    """Refuse what is part of another inverse, by the names that the authors' scripts give it.

    Raises:
        UserError: a half of an encoder, or a network of classic inversion: both look as a whole modular inverse does.
    """
    below = network.file.relative_to(top).parts if network.file != top else (network.file.name,)
    words = {word for part in (top.name, *below, network.label) for word in re.split(r"[^a-z]+", part.lower())}
    if "sub" in words:
        raise UserError(
            f"{network.origin} is one part of an encoder's inverse, which the authors trained in two: give the inverse "
            "of the whole encoder"
        )
    if not words.isdisjoint({"classic", "classical"}):
        raise UserError(
            f"{network.origin} is of classic inversion, whose networks were trained as one: give those of a modular run"
        )


def _is_weights(path: Path, top: Path) -> bool:
    folders = path.relative_to(top).parts[:-1]
    named = path.suffix in SUFFIXES or (path.parent.name == "model_states" and not path.name.startswith("."))
    return path.is_file() and named and "checkpoints" not in folders


def _read(file: Path) -> list[Published]:
    content = read_content(file)
    for wrapper in ("model", "state_dict"):
        content = content.get(wrapper, content) if isinstance(content, dict) else content
    several = content.get("model_states") if isinstance(content, dict) else None
    states = several if isinstance(several, dict) else {file.stem: content}
    return [Published(file, str(label), _tensors(state, file, str(label))) for label, state in states.items()]


def _tensors(state: Any, file: Path, label: str) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes that compiled and distributed modules add."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} ({label}) holds no state_dict: give a file of named tensors")
    return {str(name).removeprefix("_orig_mod.").removeprefix("module."): value for name, value in state.items()}


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


# ---- their networks


class Statement(NamedTuple):
    """A published network in our words: the entry it takes in a chain, and which of our inverses it is.

    ``published`` has its tensors, rewritten where ours are arranged otherwise. ``names`` gives for our inverse the
    names of our tensors -> theirs; a name that is left out is the same in both.
    """

    stage: str
    plan: Plan
    published: Published
    names: Callable[[Inverse], Mapping[str, str]] = lambda _: {}
    variant: str = ""


@dataclass(frozen=True)
class Network:
    """A published network as one of our inverses, with its weights."""

    stage: str
    variant: str
    plan: Plan
    inverse: Inverse
    origin: Published

    @property
    def entry(self) -> str:
        """Its name in a chain."""
        return entry_of(self.stage, self.variant)

    @property
    def source(self) -> dict[str, str]:
        """Where it comes from, for the run's configuration."""
        file = self.origin.file
        return {"entry": self.entry, "file": file.name, "label": self.origin.label, "sha256": digest(file)}


def read_network(published: Published, model: StagedModel) -> Network:
    """A published network as an inverse of a stage of ``model``; every one of its tensors is accounted for.

    Raises:
        UserError: it is none of the networks that are known, ``model`` has no such stage, or a tensor is missing, left
            over or of another shape.
    """
    names = published.tensors
    read = next((read for mark, read in READERS if any(re.search(mark, name) for name in names)), None)
    if read is None:
        first = ", ".join(list(names)[:SHOWN]) or "none at all"
        raise UserError(
            f"{published.origin} is none of the authors' inverses: its tensors are {first}, and theirs are named "
            "up_conv_1, conv_t_1, layers.0, blocks.0 or inverse_classifier_regressor"
        )
    stage, plan, rewritten, names_of, variant = read(published, model)
    if stage not in model.stages:
        raise UserError(
            f"{published.origin} inverts a stage '{stage}', which {model.name} does not have: "
            f"it has {', '.join(model.stages)}"
        )
    with torch.random.fork_rng(devices=[]):
        inverse = build_inverse(plan.inverse, model.layout(stage), model.layout(model.spec.before(stage)), plan.options)
    own, theirs = inverse.state_dict(), names_of(inverse)
    rewritten.compare({theirs.get(name, name): value for name, value in own.items()})
    state = {name: rewritten.tensors[theirs.get(name, name)].to(value.dtype) for name, value in own.items()}
    inverse.load_state_dict(state)
    return Network(stage, variant, plan, inverse.eval(), published)


def _mirror(model: StagedModel, stage: str) -> Mapping[str, Any]:
    """What the forward model's own stage says of the inverse with its structure: heads, and defaults of the rest."""
    return model.spec.stage(stage).inverses[""][1] if stage in model.stages else {}


def _read_encoder(published: Published, model: StagedModel) -> Statement:
    """DETR's encoder, the flow reversed: post-norm layers without a norm at the end."""
    feedforward = len(published.tensor("layers.0.linear1.weight", 2))
    options = {**_mirror(model, "encoder"), "depth": published.depth("layers"), "feedforward": feedforward}
    return Statement("encoder", Plan("encoder", options), published)


def _read_decoder(published: Published, model: StagedModel) -> Statement:
    """DETR's decoder over blank tokens. Theirs has no norm at the end; the queries' position is an embedding."""
    feedforward = len(published.tensor("layers.0.linear1.weight", 2))
    options = {**_mirror(model, "decoder"), "depth": published.depth("layers"), "feedforward": feedforward}
    options["norm"] = any(name.startswith("norm.") for name in published.tensors)
    names = {"query_position": "query_embed.weight"}
    return Statement("decoder", Plan("decoder", options), published, lambda _: names)


def _read_prediction(published: Published, model: StagedModel) -> Statement:
    """Three linear layers. Their code reads one-hot classes; weights of full distributions have the same names."""
    del model
    prefix = next(name for name in published.tensors if "fc1." in name).partition("fc1.")[0]
    onehot = FULL.isdisjoint(re.split(r"[^a-z]+", published.label.lower()))
    plan, variant = Plan("prediction", {"onehot": True} if onehot else {}), "onehot" if onehot else ""
    return Statement(
        "prediction", plan, published, lambda own: {name: prefix + name for name in own.state_dict()}, variant
    )


def _read_blocks(published: Published, model: StagedModel) -> Statement:
    """ViT's blocks over all tokens. Theirs have no bias of queries, keys and values: ours is 0."""
    width, depth = len(published.tensor("blocks.0.norm1.weight", 1)), published.depth("blocks")
    ratio = len(published.tensor("blocks.0.mlp.fc1.weight", 2)) / width
    options = {**_mirror(model, "encoder"), "depth": depth, "mlp_ratio": ratio, "epsilon": EPSILON}
    tensors = dict(published.tensors)
    if not any(name.endswith("attn.qkv.bias") for name in tensors):
        tensors |= {f"blocks.{index}.attn.qkv.bias": torch.zeros(3 * width) for index in range(depth)}
    return Statement("encoder", Plan("blocks", options), replace(published, tensors=tensors))


def _read_swin(published: Published, model: StagedModel) -> Statement:
    """Swin's blocks, the windows of the first one shifted, then a split of every token into 2 x 2.

    The stage is that of the blocks' width; where several have it, the one whose number the file's name ends with.
    """
    sides, heads = published.tensor("blocks.0.attn.relative_position_bias_table", 2).shape
    window = (math.isqrt(sides) + 1) // 2
    options = {"depth": published.depth("blocks"), "heads": heads, "window": window, "shift_first": True}
    names = {f"norm.{kind}": f"upsample.norm.{kind}" for kind in ("weight", "bias")}
    names["upsample.weight"] = "upsample.expansion.weight"
    width = len(published.tensor("blocks.0.norm1.weight", 1))
    fitting = [name for name in model.stages[1:] if model.layout(name).width == width]
    number = re.search(r"\d+$", published.label)
    named = fitting if len(fitting) == 1 else [name for name in fitting if number and name.endswith(number[0])]
    if len(named) != 1:
        raise UserError(
            f"{published.origin} has tokens of width {width}, and {model.name} has {len(fitting)} stages of that width "
            f"({', '.join(fitting) or 'none'}): name the model it belongs to, and let the file's name end with the "
            "number"
        )
    return Statement(named[0], Plan("swin", options), published, lambda _: names)


# ---- from a grid of tokens to the image: six classes of theirs, told apart by their kernels and norms


class Layer(NamedTuple):
    """A transposed convolution: its name, that of a BatchNorm after it, whether there is one, its kernel and its width
    (channels out)."""

    name: str
    norm: str
    has_norm: bool
    kernel: int
    width: int


def _read_backbone(published: Published, model: StagedModel) -> Statement:
    """Transposed convolutions with a sigmoid at the end: pixels in [0, 1], as ours. (Their training normalises that
    before it compares, as ours does.) A BatchNorm where ours has none is folded into the convolution before it, which
    computes the same."""
    stage = model.stages[0]
    source, target = model.layout(stage), model.layout(model.spec.before(stage))
    if len(source.grids) != 1:
        raise UserError(
            f"{published.origin} reads one grid of tokens, and the {stage} of {model.name} has {len(source.grids)}"
        )
    layers = _layers(published)
    plan, variant, normed = _kind(published, layers, source, target)
    norms = [layer.norm for layer in layers[:-1]] if normed else []
    for layer in layers:
        if layer.has_norm and layer.norm not in norms:
            published = _without_norm(published, layer)
    tensors = dict(published.tensors)
    if plan.inverse == "local":  # 1x1 transposed convolutions are convolutions with the first two axes exchanged
        tensors |= {f"{each.name}.weight": tensors[f"{each.name}.weight"].transpose(0, 1) for each in layers[:-1]}
    if "pos_emb" in tensors:  # what is subtracted from prefix tokens is dropped with them
        position = published.tensor("pos_emb", 3)
        if position.shape != (1, source.tokens, source.width):
            raise published.refused(
                misshaped=[f"pos_emb, {_shape(position)} instead of 1x{source.tokens}x{source.width}"]
            )
        tensors["pos_emb"] = position[0, source.prefix :]
    convolutions = [layer.name for layer in layers]

    def names(own: Inverse) -> dict[str, str]:
        pairs = [
            *_paired(own, (nn.Conv2d, nn.ConvTranspose2d), convolutions),
            *_paired(own, (nn.BatchNorm2d,), norms),
        ]
        found = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in pairs for kind in STATISTICS}
        return {**found, "position": "pos_emb"}

    return Statement(stage, plan, replace(published, tensors=tensors), names, variant)


def _paired(inverse: Inverse, kinds: tuple[type[nn.Module], ...], theirs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Our layers of some kinds and theirs, one after the other."""
    own = [name for name, module in inverse.named_modules() if isinstance(module, kinds)]
    return zip(own, theirs, strict=True)


def _layers(published: Published) -> list[Layer]:
    """The convolutions in their order: ``up_conv_2_2`` comes after ``up_conv_2``, the final one last."""
    found = {
        match[0]: [int(number) for number in re.findall(r"\d+", match[0])] or [10**6]
        for name in published.tensors
        if (match := re.match(r"(?:up_conv|conv_t)(?:_\d+)+|final_conv", name))
    }
    layers = []
    for name in sorted(found, key=lambda name: found[name]):
        weight, _ = published.tensor(f"{name}.weight", 4), published.tensor(f"{name}.bias", 1)
        norm = re.sub(r"^(?:up_conv|conv_t)_", "bn_", name)
        has_norm = norm != name and any(each.startswith(f"{norm}.") for each in published.tensors)
        layers.append(Layer(name, norm, has_norm, kernel=weight.shape[2], width=weight.shape[1]))
    return layers


def _kind(published: Published, layers: Sequence[Layer], source: Layout, target: Layout) -> tuple[Plan, str, bool]:
    """Our inverse with these layers, its variant's name in a chain, whether ours has BatchNorm after all but the last.

    Raises:
        UserError: the layers are those of none of them.
    """
    stride = times_finer(target.grid, source.grid)
    kernels, doublings = [layer.kernel for layer in layers], (stride - 1).bit_length()
    if kernels == [stride]:
        return Plan("patch", {"whole": True}), "whole", True
    if kernels[-1] == stride and set(kernels[:-1]) == {1}:
        return Plan("local", {"depth": len(layers) - 1}), "local", False
    if kernels == [2] * doublings:
        widths = {"widths": [layer.width for layer in layers[:-1]]}
        if "pos_emb" in published.tensors:
            return Plan("patch", {**widths, "subtract_position": True}), "position", True
        return Plan("patch", widths), "", True
    options = {"expansion": layers[0].width / source.width}
    if kernels == [1] + [3] * (doublings + 3):
        return Plan("deconvolution", options), "", True
    if kernels == [1] + [3] * (doublings + 1):
        return Plan("deconvolution", {**options, "batch_norm": False}), "plain", False
    raise UserError(
        f"{published.origin} has convolutions with kernels {', '.join(map(str, kernels))}, which are none of the "
        f"authors' inverses from a grid of {source.grid[0]}x{source.grid[1]} to an image of "
        f"{target.grid[0]}x{target.grid[1]} pixels"
    )


def _without_norm(published: Published, layer: Layer) -> Published:
    """The same network without the BatchNorm after ``layer``, which takes it in."""
    statistics = [published.tensor(f"{layer.norm}.{kind}", 0 if "num" in kind else 1) for kind in STATISTICS]
    weight, bias = published.tensors[f"{layer.name}.weight"], published.tensors[f"{layer.name}.bias"]
    scale, shift, mean, variance, _ = (each.double() for each in statistics)
    if {len(each) for each in (scale, shift, mean, variance, bias)} != {layer.width}:
        raise published.refused(misshaped=[f"{layer.norm} beside {layer.name}"])
    factor = scale / (variance + EPSILON).sqrt()
    tensors = {name: each for name, each in published.tensors.items() if not name.startswith(f"{layer.norm}.")}
    tensors[f"{layer.name}.weight"] = (weight * factor.view(-1, 1, 1)).to(weight.dtype)
    tensors[f"{layer.name}.bias"] = ((bias - mean) * factor + shift).to(bias.dtype)
    return replace(published, tensors=tensors)


READERS: tuple[tuple[str, Callable[[Published, StagedModel], Statement]], ...] = (
    (r"^layers\.\d+\.multihead_attn\.", _read_decoder),
    (r"^layers\.\d+\.self_attn\.", _read_encoder),
    (r"^blocks\.\d+\.attn\.relative_position_bias_table$", _read_swin),
    (r"^blocks\.\d+\.attn\.qkv\.", _read_blocks),
    (r"^(?:inverse_classifier_regressor\.)?fc1\.", _read_prediction),
    (r"^(?:up_conv|conv_t)_\d", _read_backbone),
)
"""A pattern that the names of a network's tensors have and no other's do, and what reads it; the first that fits."""

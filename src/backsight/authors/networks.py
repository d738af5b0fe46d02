"""Each of the authors' networks, recognised by the names of its tensors and stated as one of our inverses.

What they compute is stated beside the function that reads it. Sizes are read off the tensors. Only the number of
attention heads leaves no trace in them: it is that of the forward model's stage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from backsight.authors.convolutions import read_convolutions
from backsight.authors.states import Published
from backsight.chain import Plan
from backsight.core import UserError
from backsight.engine import StagedModel
from backsight.inverses import Inverse, build_inverse

FULL = {"fd", "full", "soft", "distribution"}
"""Words in a file's name that say of a prediction inverse that it reads full class distributions."""
TORCH_EPSILON = 1e-5
"""What torch's own LayerNorm adds to the variance; the authors' ViT blocks have it, timm's have 1e-6."""


@dataclass(frozen=True)
class Statement:
    """A published network in our words.

    Attributes:
        stage, variant: the entry it takes in a chain.
        plan: which of our inverses it is, and its options.
        published: its tensors, rewritten where ours are arranged otherwise.
        names: our tensor's name -> theirs; a name that is left out is the same in both.
    """

    stage: str
    plan: Plan
    published: Published
    names: Callable[[Inverse], Mapping[str, str]] = field(default=lambda inverse: {})  # noqa: ARG005
    variant: str = ""


@dataclass(frozen=True)
class Network:
    """A published network as one of our inverses, with its weights."""

    stage: str
    variant: str
    plan: Plan
    inverse: Inverse
    origin: Published


def read_network(published: Published, model: StagedModel) -> Network:
    """A published network as an inverse of a stage of ``model``; every one of its tensors is accounted for.

    Raises:
        UserError: it is none of the networks that are known, ``model`` has no such stage, or a tensor is missing, left
            over or of another shape.
    """
    statement = _reader(published)(published, model)
    if statement.stage not in model.stages:
        raise UserError(
            f"{published.origin} inverts a stage '{statement.stage}', which {model.name} does not have: "
            f"it has {', '.join(model.stages)}"
        )
    source, target = model.layout(statement.stage), model.layout(model.spec.before(statement.stage))
    with torch.random.fork_rng(devices=[]):
        inverse = build_inverse(statement.plan.inverse, source, target, statement.plan.options)
    own, names = inverse.state_dict(), statement.names(inverse)
    statement.published.compare({names.get(name, name): value for name, value in own.items()})
    tensors = statement.published.tensors
    inverse.load_state_dict({name: tensors[names.get(name, name)].to(value.dtype) for name, value in own.items()})
    return Network(statement.stage, statement.variant, statement.plan, inverse.eval(), published)


Reader = Callable[[Published, StagedModel], Statement]


def _reader(published: Published) -> Reader:
    """Which network this is, by the names of its tensors."""
    names = published.tensors
    for mark, read in READERS:
        if any(re.search(mark, name) for name in names):
            return read
    first = ", ".join(list(names)[:3]) or "none at all"
    raise UserError(
        f"{published.origin} is none of the authors' inverses: its tensors are {first}, and theirs are named "
        "up_conv_1, conv_t_1, layers.0, blocks.0 or inverse_classifier_regressor"
    )


def _mirror(model: StagedModel, stage: str) -> Mapping[str, Any]:
    """What the forward model's own stage says of the inverse with its structure: heads, and defaults of the rest."""
    return model.spec.stage(stage).inverses[""][1] if stage in model.stages else {}


def _depth(published: Published, layers: str) -> int:
    """How many ``layers.0``, ``layers.1``, ... there are."""
    numbers = [int(found[1]) for name in published.tensors if (found := re.match(rf"{layers}\.(\d+)\.", name))]
    return 1 + max(numbers, default=-1)


def _read_encoder(published: Published, model: StagedModel) -> Statement:
    """DETR's encoder, the flow reversed: post-norm layers without a norm at the end."""
    feedforward = published.size("layers.0.linear1.weight")
    options = {**_mirror(model, "encoder"), "depth": _depth(published, "layers"), "feedforward": feedforward}
    return Statement("encoder", Plan("encoder", options), published)


def _read_decoder(published: Published, model: StagedModel) -> Statement:
    """DETR's decoder over blank tokens. Theirs has no norm at the end; the queries' position is an embedding."""
    feedforward = published.size("layers.0.linear1.weight")
    options = {**_mirror(model, "decoder"), "depth": _depth(published, "layers"), "feedforward": feedforward}
    options["norm"] = any(name.startswith("norm.") for name in published.tensors)
    names = {"query_position": "query_embed.weight"}
    return Statement("decoder", Plan("decoder", options), published, lambda _: names)


def _read_prediction(published: Published, model: StagedModel) -> Statement:
    """Three linear layers. Their code reads one-hot classes; weights of full distributions have the same names."""
    del model
    prefix = next(name for name in published.tensors if "fc1." in name).partition("fc1.")[0]
    onehot = FULL.isdisjoint(re.split(r"[^a-z]+", published.label.lower()))
    plan = Plan("prediction", {"onehot": True} if onehot else {})
    return Statement("prediction", plan, published, lambda own: _prefixed(own, prefix), "onehot" if onehot else "")


def _prefixed(inverse: Inverse, prefix: str) -> dict[str, str]:
    return {name: prefix + name for name in inverse.state_dict()}


def _read_blocks(published: Published, model: StagedModel) -> Statement:
    """ViT's blocks over all tokens. Theirs have no bias of queries, keys and values: ours is 0."""
    width, depth = published.size("blocks.0.norm1.weight"), _depth(published, "blocks")
    options = {
        **_mirror(model, "encoder"),
        "depth": depth,
        "mlp_ratio": published.size("blocks.0.mlp.fc1.weight") / width,
        "epsilon": TORCH_EPSILON,
    }
    tensors = dict(published.tensors)
    if not any(name.endswith("attn.qkv.bias") for name in tensors):
        tensors |= {f"blocks.{index}.attn.qkv.bias": torch.zeros(3 * width) for index in range(depth)}
    return Statement("encoder", Plan("blocks", options), replace(published, tensors=tensors))


def _read_swin(published: Published, model: StagedModel) -> Statement:
    """Swin's blocks, the windows of the first one shifted, then a split of every token into 2 x 2."""
    table = "blocks.0.attn.relative_position_bias_table"
    sides, heads = published.size(table), published.size(table, 1)
    window = (math.isqrt(sides) + 1) // 2
    options = {"depth": _depth(published, "blocks"), "heads": heads, "window": window, "shift_first": True}
    names = {f"norm.{kind}": f"upsample.norm.{kind}" for kind in ("weight", "bias")}
    names["upsample.weight"] = "upsample.expansion.weight"
    return Statement(_swin_stage(published, model), Plan("swin", options), published, lambda _: names)


def _swin_stage(published: Published, model: StagedModel) -> str:
    """The stage of that width; where several have it, the one whose number the file's name ends with."""
    width = published.size("blocks.0.norm1.weight")
    fitting = [name for name in model.stages[1:] if model.layout(name).width == width]
    number = re.search(r"(\d+)$", published.label)
    named = [name for name in fitting if number and name.endswith(number[1])]
    for stages in (fitting, named):
        if len(stages) == 1:
            return stages[0]
    raise UserError(
        f"{published.origin} has tokens of width {width}, and {model.name} has {len(fitting)} stages of that width "
        f"({', '.join(fitting) or 'none'}): name the model it belongs to, and let the file's name end with the number"
    )


def _read_backbone(published: Published, model: StagedModel) -> Statement:
    stage = model.stages[0]
    source, target = model.layout(stage), model.layout(model.spec.before(stage))
    if len(source.grids) != 1:
        raise UserError(
            f"{published.origin} reads one grid of tokens, and the {stage} of {model.name} has {len(source.grids)}"
        )
    found = read_convolutions(published, source, target)
    return Statement(stage, Plan(found.inverse, found.options), found.published, found.names, found.variant)


READERS: tuple[tuple[str, Reader], ...] = (
    (r"^layers\.\d+\.multihead_attn\.", _read_decoder),
    (r"^layers\.\d+\.self_attn\.", _read_encoder),
    (r"^blocks\.\d+\.attn\.relative_position_bias_table$", _read_swin),
    (r"^blocks\.\d+\.attn\.qkv\.", _read_blocks),
    (r"^(?:inverse_classifier_regressor\.)?fc1\.", _read_prediction),
    (r"^(?:up_conv|conv_t)_\d", _read_backbone),
)
"""A pattern that the names of a network's tensors have and no other's do, and what reads it; the first that fits."""

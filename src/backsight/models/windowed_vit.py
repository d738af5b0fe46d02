"""The stages of LW-DETR and RF-DETR: a ViT with windows, a convolutional projector, a short decoder whose queries start
at the likeliest places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backsight.core import Site, Spec, Stage
from backsight.models.detection import layer_sites, prediction_stage


def stages_from(module: Any, start: Site, layer: Callable[[str], Site], scales: Sequence[float] = (1.0,)) -> Spec:
    """The stages of LW-DETR and RF-DETR: the ViT begins at ``start``, ``layer`` makes the site of a path in it, and the
    projector makes a map of each of ``scales`` times its grid. Layers after the last that the projector reads are left
    out.
    """
    config, vit = module.config, module.config.backbone_config
    depth = max(vit.out_indices)
    blocks = {"depth": depth, "heads": vit.num_attention_heads, "mlp_ratio": float(vit.mlp_ratio)}
    mirror = {"heads": config.decoder_self_attention_heads, "feedforward": config.decoder_ffn_dim}
    mirror |= {"depth": config.decoder_layers, "points": config.decoder_n_points}
    decoders = layer_sites("model.decoder", config.decoder_layers)
    encoded = Site("model.backbone.projector", pattern="b d h w")
    layers = tuple(layer(f"model.backbone.backbone.encoder.layer.{index}") for index in range(depth))
    encoder: Mapping[str, Any] = {"": ("blocks", blocks) if [*scales] == [1.0] else ("deformable_encoder", mirror)}
    decoded = (Site("model.decoder", field="last_hidden_state"),)
    return Spec(
        family=config.model_type,
        task="detect",
        stages=(
            Stage("backbone", (start,), inverses={"": ("patch", {})}),
            Stage("encoder", (encoded,), layers, encoder),
            Stage("decoder", decoded, decoders, {"": ("deformable_decoder", mirror)}, gridded=False),
            prediction_stage(config.num_labels, "sigmoid"),
        ),
    )

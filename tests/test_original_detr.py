"""Checkpoints of DETR's own authors: the same answer as a plain statement of their network, and nothing left over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d
from transformers import DetrConfig, TimmBackboneConfig

from backsight.core import UserError
from backsight.models import MODELS, load_model
from original_layers import PostNormLayer, positions

WIDTH, HEADS, FEEDFORWARD, QUERIES, CLASSES, DEPTH = 32, 2, 40, 7, 4, 2
SIZE = (64, 96)


class Body(nn.Module):
    """A ResNet without its classifier, normalised by frozen statistics."""

    def __init__(self) -> None:
        super().__init__()
        network = resnet18(norm_layer=FrozenBatchNorm2d)
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(network, name))

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.children():
            images = layer(images)
        return images


class Stack(nn.Module):
    """Post-norm layers, and the decoder's norm at the end."""

    def __init__(self, crosses: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PostNormLayer(crosses, WIDTH, HEADS, FEEDFORWARD) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH) if crosses else nn.Identity()

    def forward(self, tokens: Tensor, position: Tensor, memory: Tensor | None, where: Tensor | None) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, position, memory, where)
        return self.norm(tokens)


class Boxes(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 4))
        self.layers = nn.ModuleList(nn.Linear(wide, narrow) for wide, narrow in sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(second(first(tokens).relu()).relu()).sigmoid()


class OriginalDetr(nn.Module):
    """DETR under the names of its own authors' modules; images ``B 3 H W`` as it takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"encoder": Stack(crosses=False), "decoder": Stack(crosses=True)})
        self.class_embed, self.bbox_embed = nn.Linear(WIDTH, CLASSES + 1), Boxes()
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.input_proj = nn.Conv2d(512, WIDTH, 1)
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": Body()})])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        joined: Any = self.backbone[0]
        features = self.input_proj(joined["body"](images))
        position = positions(features.shape[2], features.shape[3], WIDTH).expand(-1, len(images), -1)
        memory = self.transformer["encoder"](features.flatten(2).permute(2, 0, 1), position, None, None)
        queries = self.query_embed.weight[:, None].expand(-1, len(images), -1)
        tokens = self.transformer["decoder"](torch.zeros_like(queries), queries, memory, position).transpose(0, 1)
        return self.class_embed(tokens), self.bbox_embed(tokens)


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> OriginalDetr:
    """The plain network, scrambled; and ``detr-tiny``, a name for transformers' network of these sizes."""
    options: dict[str, Any] = {
        "backbone_config": TimmBackboneConfig(
            backbone="resnet18", out_indices=[1, 2, 3, 4], use_pretrained_backbone=False
        ),
        **{"encoder_layers": DEPTH, "decoder_layers": DEPTH, "d_model": WIDTH, "num_queries": QUERIES},
        **{"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "num_labels": CLASSES},
        **{"encoder_ffn_dim": FEEDFORWARD, "decoder_ffn_dim": FEEDFORWARD},
    }
    configured = {name: value for name, value in DetrConfig(**options).to_dict().items() if name != "model_type"}
    family = replace(MODELS["detr"], names={"detr-tiny": "nobody/detr-tiny"}, configure={"detr-tiny": configured})
    monkeypatch.setitem(MODELS, "detr", family)
    torch.manual_seed(0)
    network = OriginalDetr().eval()
    for name, value in network.state_dict().items():
        value += 0.1 * torch.randn_like(value)
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return network


def saved(network: nn.Module, path: Path, **changes: Tensor) -> Path:
    torch.save({"model": {**network.state_dict(), **changes}}, path)
    return path


def test_an_original_checkpoint_answers_as_the_original_network(original: OriginalDetr, tmp_path: Path) -> None:
    path = saved(original, tmp_path / "detr-tiny-01234567.pth")
    model = load_model("detr-tiny", weights=path, size=SIZE)
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, boxes = original(model.pixels.normalise(images))
        output = model.run(images).output
    assert logits.std() > 0.1
    assert boxes.std() > 0.01
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.pred_boxes, boxes, rtol=1e-4, atol=1e-5)
    assert model.weights == str(path)


def test_every_tensor_of_the_true_size_has_a_place() -> None:
    """Names alone: those of ``detr-r50``, built from torchvision's ResNet-50 and six layers, against transformers'."""
    from torchvision.models import resnet50
    from transformers import DetrForObjectDetection

    from backsight.models.originals import from_original

    with torch.device("meta"):
        body = resnet50(norm_layer=FrozenBatchNorm2d).state_dict()
        layers = {kind: PostNormLayer(kind == "decoder", 256, 8, 2048).state_dict() for kind in ("encoder", "decoder")}
        state = {f"backbone.0.body.{name}": value for name, value in body.items() if not name.startswith("fc.")}
        for kind, tensors in layers.items():
            state |= {f"transformer.{kind}.layers.{i}.{name}": each for i in range(6) for name, each in tensors.items()}
        sizes = {"transformer.decoder.norm": nn.LayerNorm(256), "class_embed": nn.Linear(256, 92)}
        sizes |= {"query_embed": nn.Embedding(100, 256), "input_proj": nn.Conv2d(2048, 256, 1)}
        sizes |= {f"bbox_embed.layers.{i}": nn.Linear(256, 4 if i == 2 else 256) for i in range(3)}
        for prefix, module in sizes.items():
            state |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
        own = DetrForObjectDetection(DetrConfig(num_labels=91)).state_dict()
    file = Path("detr-r50-e632da11.pth")
    assert from_original(own, "detr", file) is own
    found = from_original(state, "detr", file)
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}


def test_what_does_not_fit_is_refused(original: OriginalDetr, tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            load_model("detr-tiny", weights=path, size=SIZE)
        return str(caught.value)

    state = original.state_dict()
    extra = saved(original, tmp_path / "extra.pth", **{"transformer.nose": torch.zeros(2)})
    assert "1 tensors are not of this model (first: model.nose)" in told(extra)
    wide = saved(original, tmp_path / "wide.pth", **{"query_embed.weight": torch.zeros(8, WIDTH)})
    assert "is 8x32 there and 7x32 in the model" in told(wide)
    stacked = "transformer.encoder.layers.0.self_attn.in_proj_weight"
    assert "v_proj.weight is 30x32 there" in told(
        saved(original, tmp_path / "stacked.pth", **{stacked: state[stacked][:-2]})
    )
    torch.save({name: value for name, value in state.items() if "input_proj.bias" not in name}, tmp_path / "less.pth")
    assert "1 tensors are missing (first: model.input_projection.bias)" in told(tmp_path / "less.pth")
    assert "dilated last block (DC5)" in told(saved(original, tmp_path / "detr-r50-dc5-f0fb7ef5.pth"))

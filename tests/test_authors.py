"""The authors' published weights: each network computes what a plain statement of it does, and nothing is left over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from backsight.authors import _pixels, find_published, import_authors
from backsight.chain import ChainEnsemble
from backsight.chain.model import open_forward_model
from backsight.cli import main
from backsight.core import Pixels, Spec, UserError
from backsight.engine import RANDOM, StagedModel
from backsight.models import MODELS, stage_module
from damage import Trap
from numerics import assert_rounding, assert_same_weights
from original_layers import PostNormLayer, positions
from small import random_images

Names = list[str]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# ---- the networks, as their paper and the names of their tensors state them


class Upwards(nn.Module):
    """Transposed convolutions by name, each maybe with a BatchNorm and, but for the last, a ReLU; then a sigmoid."""

    def __init__(self, layers: Sequence[tuple[str, int, int, int, int]], norms: Names) -> None:
        super().__init__()
        self.order = [name for name, *_ in layers]
        for name, wide, narrow, kernel, stride in layers:
            padding, extra = (1, stride - 1) if kernel == 3 else (0, 0)
            setattr(self, name, nn.ConvTranspose2d(wide, narrow, kernel, stride, padding, output_padding=extra))
            if name in norms:
                setattr(self, name.replace("up_conv", "bn"), nn.BatchNorm2d(narrow))

    def forward(self, images: Tensor) -> Tensor:
        for name in self.order:
            images = getattr(self, name)(images)
            images = getattr(self, name.replace("up_conv", "bn"), nn.Identity())(images) if "up_" in name else images
            images = images if name == self.order[-1] else images.relu()
        return images.sigmoid()


def stride_two(first: int, narrow: int) -> list[tuple[str, int, int, int, int]]:
    """Five layers that double the side, the channels halving from ``narrow``; then one to RGB."""
    sizes = [narrow // 2**step for step in range(6)]
    layers = [(f"up_conv_{first + step}", sizes[step], sizes[step + 1], 3, 2) for step in range(5)]
    return [*layers, ("final_conv", sizes[5], 3, 3, 1)]


def enhanced(width: int = 32) -> nn.Module:
    """``EnhancedBatchNormalizedConvolutionalDecoder`` at D = 32: 256, 224, 192, then halving from 128."""
    layers = [("up_conv_1", width, 256, 1, 1), ("up_conv_2", 256, 224, 3, 1), ("up_conv_2_2", 224, 192, 3, 1)]
    layers += [("up_conv_2_3", 192, 128, 3, 2), ("up_conv_3", 128, 64, 3, 2), ("up_conv_4", 64, 32, 3, 2)]
    layers += [("up_conv_5", 32, 16, 3, 2), ("up_conv_6", 16, 8, 3, 2), ("final_conv", 8, 3, 3, 1)]
    return Upwards(layers, [name for name, *_ in layers[:-1]])


def normalized() -> nn.Module:
    """``BatchNormalizedConvolutionalDecoder``: its norms have no place in our plain variant."""
    layers = [("up_conv_1", 32, 256, 1, 1), *stride_two(2, 256)]
    return Upwards(layers, [name for name, *_ in layers[:-1]])


def simple() -> nn.Module:
    """``SimpleConvolutionalDecoder``: no norms, other names."""
    layers = [("up_conv_1", 32, 256, 1, 1), *stride_two(2, 256)]
    renamed = [(f"conv_t_{index}", *sizes) for index, (_, *sizes) in enumerate(layers, 1)]
    return Upwards(renamed, [])  # type: ignore[arg-type]


def local() -> nn.Module:
    """``LinearDecoderEnhanced``: four layers on each token, then a patch of 32 x 32."""
    return Upwards([*((f"up_conv_{index}", 32, 32, 1, 1) for index in range(1, 5)), ("up_conv_5", 32, 3, 32, 32)], [])


def linear() -> nn.Module:
    """``LinearDecoder``: a patch of 32 x 32 at once."""
    return Upwards([("up_conv_1", 32, 3, 32, 32)], [])


class Patches(Upwards):
    """``EnhancedVitBackbone``, and with a position embedding ``EnhancedInverseVitBackbonePos``; D = 32, patch 8."""

    def __init__(self, layers: Sequence[tuple[int, int, int]], norms: int, position: bool = False) -> None:
        named = [(f"up_conv_{index}", *sizes, sizes[-1]) for index, sizes in enumerate(layers, 1)]
        super().__init__(named, [name for name, *_ in named[:norms]])
        self.pos_emb = nn.Parameter(torch.randn(1, 37, 32)) if position else None

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens if self.pos_emb is None else tokens - self.pos_emb
        return super().forward(tokens[:, 1:].mT.unflatten(2, (6, 6)))


VIT_LAYERS = ((32, 24, 2), (24, 20, 2), (20, 3, 2))


class SwinPatches(Upwards):
    """``SwinBackbone``: a BatchNorm after the last layer too."""

    def __init__(self) -> None:
        super().__init__([("up_conv_1", 16, 12, 2, 2), ("up_conv_2", 12, 3, 2, 2)], ["up_conv_1", "up_conv_2"])


class ReversedEncoder(nn.Module):
    """``InverseTransformerEncoder``, with three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PostNormLayer(crosses=False) for _ in range(3))

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.permute(1, 0, 2)
        for layer in self.layers:
            tokens = layer(tokens, positions(2, 3, 32), None, None)
        return tokens.permute(1, 0, 2)


class ReversedDecoder(nn.Module):
    """``InverseTransformerDecoder``: blank tokens at the grid's positions read the queries; maybe a norm at the end."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PostNormLayer(crosses=True) for _ in range(2))
        self.query_embed = nn.Embedding(7, 32)
        self.norm = nn.LayerNorm(32) if norm else None

    def forward(self, features: Tensor) -> Tensor:
        position = positions(2, 3, 32).expand(-1, len(features), -1)
        where = self.query_embed.weight[:, None].expand(-1, len(features), -1)
        tokens = torch.zeros_like(position)
        for layer in self.layers:
            tokens = layer(tokens, position, features.permute(1, 0, 2), where)
        return (tokens if self.norm is None else self.norm(tokens)).permute(1, 0, 2)


class ReversedPrediction(nn.Module):
    """``InverseDetector``: one-hot classes and boxes; the variant of full distributions has the same tensors."""

    def __init__(self, onehot: bool = True) -> None:
        super().__init__()
        self.inverse_classifier_regressor = nn.Module()
        sizes = (9, 64, 32, 32)
        for index in (1, 2, 3):
            self.inverse_classifier_regressor.add_module(f"fc{index}", nn.Linear(sizes[index - 1], sizes[index]))
        self.onehot = onehot

    def forward(self, features: Tensor) -> Tensor:
        logits, boxes = features[..., :5], features[..., 5:]
        classes = functional.one_hot(logits.argmax(2), 5).float() if self.onehot else logits.softmax(2)
        network: Any = self.inverse_classifier_regressor
        hidden = functional.relu(network.fc1(torch.cat([classes, boxes], -1)))
        return network.fc3(functional.relu(network.fc2(hidden)))


class PreNormBlock(nn.Module):
    """timm's block, written out: no bias of queries, keys and values, and torch's own LayerNorm."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        attention: Any = self.attn
        network: Any = self.mlp
        stacked = attention.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = stacked
        weights = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
        tokens = tokens + attention.proj((weights @ values).transpose(1, 2).flatten(2))
        return tokens + network.fc2(functional.gelu(network.fc1(self.norm2(tokens))))


class ReversedBlocks(nn.Module):
    """``InverseViTEncoder`` of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(PreNormBlock(), PreNormBlock())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks(tokens)


class Splitting(nn.Module):
    """``PatchSplitting``."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm, self.expansion, self.out = nn.LayerNorm(width), nn.Linear(width, 4 * out, bias=False), out

    def forward(self, maps: Tensor) -> Tensor:
        batch, h, w, _ = maps.shape
        split = self.expansion(self.norm(maps)).view(batch, h, w, 2, 2, self.out)
        return split.permute(0, 1, 3, 2, 4, 5).reshape(batch, 2 * h, 2 * w, self.out)


class ReversedSwinStage(nn.Module):
    """``InverseSwinTransformerStage``: the windows of the first block are shifted."""

    def __init__(self, width: int, side: int, heads: int, out: int | None) -> None:
        super().__init__()
        shifts = (2, 0)
        self.blocks = nn.Sequential(
            *(SwinTransformerBlock(width, (side, side), heads, window_size=4, shift_size=shift) for shift in shifts)
        )
        self.upsample = nn.Identity() if out is None else Splitting(width, out)

    def forward(self, maps: Tensor) -> Tensor:
        return self.upsample(self.blocks(maps))


# ---- small forward models of the families they belong to


@pytest.fixture(scope="module")
def vit() -> StagedModel:
    """Width 32, 6 x 6 patches of 8 pixels and a class token; the pixels are not ImageNet's."""
    torch.manual_seed(0)
    module = VisionTransformer(img_size=48, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    pixels = Pixels((48, 48), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="crop")
    return stage_module(module, MODELS["vit"], pixels, name="a small ViT")


@pytest.fixture(scope="module")
def swin() -> StagedModel:
    """Two stages: 16 x 16 tokens of width 16, 8 x 8 of width 32."""
    torch.manual_seed(0)
    module = SwinTransformer(
        img_size=64, patch_size=4, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=5
    )
    return stage_module(module, MODELS["swin"], Pixels((64, 64)), name="a small Swin")


@pytest.fixture
def model(request: pytest.FixtureRequest) -> StagedModel:
    return request.getfixturevalue(request.param)


def scrambled(network: nn.Module) -> nn.Module:
    """Every tensor away from its initial value, which could hide where it belongs."""
    torch.manual_seed(1)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value += 0.2 * torch.randn_like(value)
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return network.eval()


def as_map(features: Tensor) -> Tensor:
    return features.mT.unflatten(2, (2, 3))


def square(features: Tensor) -> Tensor:
    """``B N D`` -> ``B h w D`` on a square grid."""
    side = math.isqrt(features.shape[1])
    return features.unflatten(1, (side, side))


def squares(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda features: network(square(features)).flatten(1, 2)


Case = tuple[str, str, str, Callable[[], nn.Module], Callable[[nn.Module], Callable[[Tensor], Tensor]]]


def itself(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return network


def of_maps(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda features: network(as_map(features))


def of_squares(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda features: network(square(features).permute(0, 3, 1, 2))


CASES: dict[str, Case] = {
    "enhanced": ("detr", "backbone", "deconvolution", enhanced, of_maps),
    "normalized": ("detr", "backbone", "deconvolution", normalized, of_maps),
    "simple": ("detr", "backbone", "deconvolution", simple, of_maps),
    "local": ("detr", "backbone", "local", local, of_maps),
    "linear": ("detr", "backbone", "patch", linear, of_maps),
    "encoder": ("detr", "encoder", "encoder", ReversedEncoder, itself),
    "decoder": ("detr", "decoder", "decoder", ReversedDecoder, itself),
    "decoder with a norm": ("detr", "decoder", "decoder", lambda: ReversedDecoder(norm=True), itself),
    "prediction": ("detr", "prediction@onehot", "prediction", ReversedPrediction, itself),
    "prediction_fd": ("detr", "prediction", "prediction", lambda: ReversedPrediction(onehot=False), itself),
    "vit patches": ("vit", "backbone", "patch", lambda: Patches(VIT_LAYERS, norms=2), itself),
    "vit position": ("vit", "backbone", "patch", lambda: Patches(VIT_LAYERS, norms=2, position=True), itself),
    "vit linear": ("vit", "backbone", "patch", lambda: Patches(((32, 3, 8),), norms=0), itself),
    "vit blocks": ("vit", "encoder", "blocks", ReversedBlocks, itself),
    "swin patches": ("swin", "backbone", "patch", SwinPatches, of_squares),
    "swin1": ("swin", "stage1", "swin", lambda: ReversedSwinStage(16, 16, 2, None), squares),
    "swin2": ("swin", "stage2", "swin", lambda: ReversedSwinStage(32, 8, 4, 16), squares),
}
"""Model, entry, our inverse, their network, and how it is called with features."""

NEEDED: dict[str, dict[str, str]] = {
    "detr": {"backbone": "local", "encoder": "encoder", "decoder": "decoder"},
    "vit": {"backbone": "vit linear"},
    "swin": {"backbone": "swin patches", "stage1": "swin1"},
}
"""What leads from a stage to the image, so that a chain is whole."""


def below(name: str) -> list[str]:
    """The cases that make a whole chain of ``name``."""
    family, entry = CASES[name][0], CASES[name][1]
    stages = ["backbone", "stage1", "encoder", "decoder", "stage2", "prediction"]
    own = stages.index(entry.partition("@")[0])
    return [case for stage, case in NEEDED[family].items() if stages.index(stage) < own]


def publish(folder: Path, *names: str) -> dict[str, nn.Module]:
    """The networks of these cases, as files that their training would leave."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = {name: scrambled(CASES[name][3]()) for name in names}
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pt")
    return networks


ALL = [pytest.param(name, case[0], id=name) for name, case in CASES.items()]


@pytest.mark.parametrize(("name", "model"), ALL, indirect=["model"])
def test_an_imported_network_computes_what_the_authors_does(name: str, model: StagedModel, tmp_path: Path) -> None:
    _, entry, kind, _, called = CASES[name]
    network = publish(tmp_path / "published", name, *below(name))[name]
    chain = import_authors(tmp_path / "published", model, tmp_path / "run").chains[0]
    assert chain.plans[entry].inverse == kind
    features = model.run(random_images(model))[entry.partition("@")[0]]
    with torch.no_grad():
        ours, theirs = chain.inverses[entry](features), called(network)(features)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# ---- every tensor is accounted for


def refused(model: StagedModel, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_authors(folder / "published", model, folder / "run")
    assert not (folder / "run").exists()
    return str(caught.value)


def damage(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def removable(name: str) -> Names:
    """The first and the last tensor of a case; the last is far from what tells its kind."""
    tensors = list(scrambled(CASES[name][3]()).state_dict())
    return [tensors[0], tensors[-1]]


@pytest.mark.parametrize(("name", "model"), ALL, indirect=["model"])
def test_a_tensor_that_is_missing_too_many_or_of_another_shape_is_named(
    name: str, model: StagedModel, tmp_path: Path
) -> None:
    first, last = removable(name)

    def told(change: Callable[[dict[str, Tensor]], object]) -> str:
        publish(tmp_path / "published", name, *below(name))
        damage(tmp_path / "published" / f"{name}.pt", change)
        return refused(model, tmp_path)

    def widen(state: dict[str, Tensor]) -> None:
        state[last] = state[last].new_zeros([side + 1 for side in state[last].shape] or [2])

    for tensor in (first, last):
        if name != "vit position" or tensor != "pos_emb":  # without it, it is the variant that subtracts no position
            said = told(lambda state, tensor=tensor: state.pop(tensor))
            assert tensor in said
            assert f"{name}.pt" in said
    said = told(lambda state: state.update(nose=torch.zeros(2)))
    assert f"{name}.pt is no inverse that can be read: 1 tensors not of this network (nose)" in said
    said = told(widen)
    assert "of another shape" in said
    assert last.rpartition(".")[0] in said or last in said


def test_a_pickle_is_never_run(detr: StagedModel, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    torch.save({"up_conv_1.weight": Trap(tmp_path / "sprung")}, tmp_path / "published" / "inv_bb.pt")
    assert "holds more than tensors, and code from a file is never run" in refused(detr, tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nose.weight": torch.zeros(1)}, "none of the authors' inverses: its tensors are nose.weight, and theirs"),
        ({}, "its tensors are none at all"),
        ([torch.zeros(1)], "holds no state_dict"),
        ({"up_conv_1.weight": torch.zeros(32, 3, 5, 5), "up_conv_1.bias": torch.zeros(3)}, "kernels 5, which are none"),
        ({"up_conv_1.weight": torch.zeros(32, 3)} | {"up_conv_1.bias": torch.zeros(3)}, "1 tensors of another shape"),
    ],
)
def test_a_file_of_something_else_is_refused(content: Any, message: str, detr: StagedModel, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    torch.save(content, tmp_path / "published" / "some.pt")
    assert message in refused(detr, tmp_path)


def test_nothing_there_is_told(detr: StagedModel, tmp_path: Path) -> None:
    assert "nothing at" in refused(detr, tmp_path)
    (tmp_path / "published" / "checkpoints").mkdir(parents=True)
    (tmp_path / "published" / "checkpoints" / "00001.pt").touch()
    assert "no weights in" in refused(detr, tmp_path)


def test_networks_of_another_model_are_refused(detr: StagedModel, vit: StagedModel, tmp_path: Path) -> None:
    publish(tmp_path / "published", "decoder")
    assert "inverts a stage 'decoder', which a small ViT does not have: it has backbone, encoder" in refused(
        vit, tmp_path
    )
    (tmp_path / "published" / "decoder.pt").unlink()
    publish(tmp_path / "published", "swin2")
    assert "small detr has" in refused(detr, tmp_path)


# ---- files, chains, the run folder


def test_the_ways_in_which_weights_are_filed(detr: StagedModel, tmp_path: Path) -> None:
    """A file each; the folders of several trainings; one checkpoint; safetensors; and the prefixes of wrappers."""
    cases = ("local", "encoder")
    networks = publish(tmp_path / "one", *cases)
    states = {name: network.state_dict() for name, network in networks.items()}
    for number, (name, state) in enumerate(states.items()):
        runs = tmp_path / "two" / f"2024010{number}"
        (runs / "model_states").mkdir(parents=True)
        (runs / "checkpoints").mkdir()
        torch.save(state, runs / "model_states" / f"inv_detr_{name}")
        torch.save({"model_states": {name: {}}}, runs / "checkpoints" / "00003.pt")
        (runs / "config.json").write_text("{}")
    torch.save({"model_states": states, "best_loss": torch.tensor(0.1), "train_step": 7}, tmp_path / "three.pt")
    (tmp_path / "four").mkdir()
    for name, state in states.items():
        save_file(
            {f"_orig_mod.{key}": value for key, value in state.items()}, tmp_path / "four" / f"{name}.safetensors"
        )
    trace = detr.run(random_images(detr))
    first, *others = (
        import_authors(tmp_path / source, detr, tmp_path / f"run {source}")
        for source in ("one", "two", "three.pt", "four")
    )
    assert first.reconstruct(trace, "encoder").shape == (1, *trace.images.shape)
    for each in others:
        assert_same_weights(each.chains[0], first.chains[0])
        assert_rounding(each.reconstruct(trace, "encoder"), first.reconstruct(trace, "encoder"))


def test_several_of_each_make_several_chains(detr: StagedModel, tmp_path: Path) -> None:
    for seed in (3, 4):
        folder = tmp_path / "published" / str(seed)
        publish(folder, "local", "encoder")
        damage(folder / "local.pt", lambda state, seed=seed: state["up_conv_5.bias"].fill_(seed))
    ensemble = import_authors(tmp_path / "published", detr, tmp_path / "run")
    assert [chain.seed for chain in ensemble.chains] == [0, 1]
    biases = [
        next(iter(chain.inverses["backbone"].state_dict()[name] for name in ("layers.8.bias",)))
        for chain in ensemble.chains
    ]
    assert [bias[0].item() for bias in biases] == [3, 4]
    (tmp_path / "published" / "4" / "encoder.pt").unlink()
    with pytest.raises(UserError, match=r"the files hold 2 of backbone, 1 of encoder: as many of each are needed"):
        import_authors(tmp_path / "published", detr, tmp_path / "other")


def test_variants_of_the_backbone_stand_beside_it(detr: StagedModel, tmp_path: Path) -> None:
    publish(tmp_path / "published", "enhanced", "simple", "local", "encoder", "decoder", "prediction", "prediction_fd")
    ensemble = import_authors(tmp_path / "published", detr, tmp_path / "run")
    assert ensemble.entries == [
        *("backbone", "backbone@local", "backbone@plain"),
        *("encoder", "decoder", "prediction", "prediction@onehot"),
    ]
    trace = detr.run(random_images(detr))
    pictures = [ensemble.reconstruct(trace, "prediction", via={"backbone": via}) for via in ("", "local", "plain")]
    assert not torch.allclose(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2])


def test_a_chain_with_a_gap_is_refused(detr: StagedModel, tmp_path: Path) -> None:
    publish(tmp_path / "published", "local", "decoder")
    said = refused(detr, tmp_path)
    assert "no file holds the inverse of 'encoder', which the way from 'decoder' to the image needs" in said
    assert "backbone, decoder" in said


def test_the_run_says_where_it_comes_from(vit: StagedModel, tmp_path: Path) -> None:
    publish(tmp_path / "published", "vit patches", "vit blocks")
    made = import_authors(tmp_path / "published", vit, tmp_path / "run")
    loaded = ChainEnsemble.from_pretrained(tmp_path / "run")
    for ours, theirs in zip(loaded.chains, made.chains, strict=True):
        assert_same_weights(ours, theirs)
    trace = vit.run(random_images(vit))
    assert_rounding(loaded.reconstruct(trace, "encoder"), made.reconstruct(trace, "encoder"))
    loaded.check(vit)
    assert (loaded.model["pixels"]["mean"], loaded.model["pixels"]["std"]) == tuple(map(list, IMAGENET))
    card = (tmp_path / "run" / "card.md").read_text()
    assert "vit blocks.pt" in card
    assert "No error was measured here" in card
    assert "imported:" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match="is finished: add overwrite"):
        import_authors(tmp_path / "published", vit, tmp_path / "run")
    import_authors(tmp_path / "published", vit, tmp_path / "run", overwrite=True)


def test_the_command_and_the_pixels_that_the_chains_were_trained_with(tmp_path: Path) -> None:
    network = Patches(((192, 48, 2), (48, 16, 2), (16, 16, 2), (16, 3, 2)), norms=3)
    torch.save(scrambled(network).state_dict(), tmp_path / "inv_vit_bb.pt")
    named = ["--model", "vit_tiny_patch16_224", "--random-weights", "--size", "32x48", "--device", "cpu"]
    main(["import", "authors", str(tmp_path / "inv_vit_bb.pt"), *named, "--out", str(tmp_path / "run")])
    ensemble = ChainEnsemble.from_pretrained(tmp_path / "run")
    assert ensemble.model["weights"] == RANDOM
    model = open_forward_model(ensemble)
    assert (model.pixels.mean, model.pixels.std) == IMAGENET
    assert model.pixels.fit == "stretch"
    assert "Random weights" in (tmp_path / "run" / "card.md").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("inv_vit_sub_encoder_2.pt", "one part of an encoder's inverse"),
        ("classic_dec/model_states/inv_detr_backbone", "of classic inversion"),
        ("inv_vit_classic.safetensors", "of classic inversion"),
    ],
)
def test_parts_of_other_inverses_are_refused_by_name(name: str, words: str, tmp_path: Path) -> None:
    """Their tensors are those of a whole modular inverse: nothing else tells them apart."""
    path = tmp_path / "published" / name
    path.parent.mkdir(parents=True)
    (save_file if name.endswith("safetensors") else torch.save)({"blocks.0.norm1.weight": torch.ones(4)}, path)
    for given in (tmp_path / "published", path):
        if given.is_dir() or "classic" in given.name or "sub" in given.name:
            with pytest.raises(UserError, match=words):
                find_published(given)
    torch.save({"blocks.0.norm1.weight": torch.ones(4)}, path.parent / "inv_vit_encoder.pt")
    if "classic" not in str(path.parent):
        assert [each.label for each in find_published(path.parent / "inv_vit_encoder.pt")] == ["inv_vit_encoder"]


@pytest.mark.parametrize("normalisation", ["imagenet", "none", "model"])
def test_a_chain_keeps_the_statistics_that_it_was_trained_with(normalisation: str, tmp_path: Path) -> None:
    own = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    model = StagedModel(nn.Identity(), Spec("toy", "features", ()), Pixels((8, 8), *own), name="toy")
    pixels = _pixels(model, normalisation)
    assert (pixels.mean, pixels.std) == {"imagenet": IMAGENET, "none": ((0.0,) * 3, (1.0,) * 3), "model": own}[
        normalisation
    ]
    assert pixels.fit == "stretch"

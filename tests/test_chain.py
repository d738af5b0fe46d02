"""Chains of inverses: equation 2, the ways through a chain, saving, loading, and refusing what does not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from backsight.chain import ChainEnsemble, InverseChain, Plan, build_chain, describe
from backsight.chain.files import FORMAT
from backsight.core import IMAGE, UserError
from backsight.engine import StagedModel
from damage import flip
from numerics import assert_rounding, assert_same_weights
from small import build_small, noisy, random_images

SMALL = {"depth": 1, "heads": 2, "feedforward": 16}
PLANS: dict[str, Plan] = {
    "backbone": Plan("deconvolution", {"expansion": 1.0}),
    "backbone@local": Plan("local", {"depth": 1}),
    "encoder": Plan("encoder", SMALL),
    "decoder": Plan("decoder", SMALL),
    "decoder@deep": Plan("decoder", {**SMALL, "depth": 2}, learning_rate=1e-4),
    "prediction": Plan("prediction"),
    "prediction@onehot": Plan("prediction", {"onehot": True}),
}


@pytest.fixture(scope="module")
def chain(detr: StagedModel) -> InverseChain:
    return build_chain(detr, PLANS, seed=0).eval()


@cache
def of_family(model: StagedModel, seed: int = 0) -> InverseChain:
    """A chain of the inverses that the family itself names, one for all who only read it."""
    plans = {
        f"{stage.name}@{variant}" if variant else stage.name: Plan(name, options)
        for stage in model.spec.stages
        for variant, (name, options) in stage.inverses.items()
    }
    return build_chain(model, plans, seed).eval()


def by_hand(chain: InverseChain, features: torch.Tensor, *entries: str) -> torch.Tensor:
    for entry in entries:
        features = chain.inverses[entry](features)
    return features


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))


# ---- equation 2


def test_a_reconstruction_is_one_inverse_after_the_other(model: StagedModel) -> None:
    chain, trace = of_family(model), model.run(random_images(model))
    for depth, stage in enumerate(model.stages, 1):
        features = trace[stage]
        for each in model.stages[:depth][::-1]:
            features = chain.inverses[each](features)
        images = chain.reconstruct(trace, stage)
        assert torch.equal(images, features)
        assert images.shape == trace.images.shape
        assert images.min() >= 0
        assert images.max() <= 1


def test_chains_are_shown_in_short(chain: InverseChain) -> None:
    name, entries = chain.model["name"], ", ".join(chain.entries)
    assert repr(chain) == f"InverseChain({name}, seed {chain.seed}: {entries})"
    assert repr(ChainEnsemble([chain, chain])) == f"ChainEnsemble({name}, seeds {chain.seed}, {chain.seed}: {entries})"


def test_layers_are_read_as_their_stage(model: StagedModel) -> None:
    chain, trace = of_family(model), model.run(random_images(model))
    for name in model.names:
        stage = model.stage_of(name).name
        if trace[name].shape == trace[stage].shape:
            assert torch.equal(chain.reconstruct(trace, name), chain.reconstruct(trace[name], stage))


def test_the_way_through_a_chain(chain: InverseChain, detr: StagedModel) -> None:
    trace = detr.run(random_images(detr))
    four = ["prediction", "decoder", "encoder", "backbone"]
    assert chain.path("prediction") == four
    assert chain.path("prediction@onehot") == ["prediction@onehot", *four[1:]]
    assert chain.path("decoder", to="encoder") == ["decoder"]
    assert chain.path("decoder", to="decoder") == []
    assert chain.path(IMAGE) == []
    assert chain.path("decoder", via={"backbone": "local"}) == ["decoder", "encoder", "backbone@local"]
    assert torch.equal(
        chain.reconstruct(trace, "prediction@onehot", via={"backbone": "local", "decoder": "deep"}),
        by_hand(chain, trace["prediction"], "prediction@onehot", "decoder@deep", "encoder", "backbone@local"),
    )
    assert torch.equal(chain.reconstruct(trace, IMAGE), trace.images)


def test_a_reconstruction_stops_where_it_is_told(chain: InverseChain, detr: StagedModel) -> None:
    trace = detr.run(random_images(detr))
    found = chain.reconstruct(trace, "prediction", to="encoder")
    assert torch.equal(found, by_hand(chain, trace["prediction"], "prediction", "decoder"))
    assert found.shape == trace["encoder"].shape
    assert torch.equal(chain.reconstruct(trace, "decoder", to="decoder"), trace["decoder"])


def test_features_can_be_read_as_another_stage_s(chain: InverseChain, detr: StagedModel) -> None:
    trace = detr.run(random_images(detr))
    expected = by_hand(chain, trace["encoder.0"], "backbone")
    assert torch.equal(chain.reconstruct(trace, "encoder.0", reads="backbone"), expected)
    local = by_hand(chain, trace["encoder.0"], "backbone@local")
    assert torch.equal(chain.reconstruct(trace, "encoder.0", reads="backbone@local"), local)
    deep = by_hand(chain, trace["decoder.0"], "decoder@deep", "encoder", "backbone")
    assert torch.equal(chain.reconstruct(trace, "decoder.0@deep"), deep)


@pytest.mark.parametrize("family", ["lw_detr", "rf_detr"])
def test_a_layer_of_another_width_than_its_stage_is_told(
    family: str, small_model: Callable[[str], StagedModel]
) -> None:
    model = small_model(family)
    chain, trace = of_family(model), model.run(random_images(model))
    (tokens, own), read = trace["encoder.1"].shape[1:], trace["encoder"].shape[2]
    message = rf"the features at 'encoder\.1' are {tokens} x {own} .* reads {tokens} x {read}: give reads='backbone'$"
    with pytest.raises(UserError, match=message):
        chain.reconstruct(trace, "encoder.1")
    assert chain.reconstruct(trace, "encoder.1", reads="backbone").shape == trace.images.shape
    with pytest.raises(UserError, match="no inverse of this chain reads such features"):
        chain.reconstruct(trace["encoder"][..., 1:], "encoder")


@pytest.mark.parametrize(
    ("at", "options", "message"),
    [
        ("nose", {}, "no stage 'nose' in this chain: it has backbone, encoder, decoder, prediction"),
        ("encoder", {"to": "nose"}, "no stage 'nose' in this chain"),
        ("encoder@nose", {}, "no inverse 'encoder@nose' in this chain: it has backbone, backbone@local"),
        ("decoder", {"via": {"encoder": "nose"}}, "no inverse 'encoder@nose' in this chain"),
        ("backbone", {"to": "encoder"}, "inverses lead back, from 'encoder' to 'backbone'"),
    ],
)
def test_a_wrong_way_is_told(chain: InverseChain, at: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chain.path(at, **options)


# ---- building


def test_inverses_are_drawn_from_the_seed_and_their_own_entry(detr: StagedModel, chain: InverseChain) -> None:
    state = torch.random.get_rng_state()
    alone = build_chain(detr, {"decoder": PLANS["decoder"]}, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    own, other = alone.inverses["decoder"].state_dict(), chain.inverses["decoder"].state_dict()
    assert all(map(torch.equal, own.values(), other.values()))
    twin = {"encoder": PLANS["encoder"], "encoder@twin": PLANS["encoder"]}
    pair, another = build_chain(detr, twin, seed=0), build_chain(detr, twin, seed=1)
    weight = "layers.0.linear1.weight"
    drawn = [pair.inverses["encoder"], pair.inverses["encoder@twin"], another.inverses["encoder"]]
    assert len({tuple(each.state_dict()[weight].flatten().tolist()) for each in drawn}) == 3


# ---- saving and loading


def test_a_saved_chain_gives_the_same_images(model: StagedModel, tmp_path: Path) -> None:
    chain, trace = of_family(model, seed=3), model.run(random_images(model))
    for inverse in chain.inverses.values():
        for name, value in inverse.named_buffers():
            if name.endswith("running_mean"):
                value += 0.1 * torch.randn_like(value)
    loaded = InverseChain.from_pretrained(chain.save(tmp_path / "chain"))
    assert {path.name for path in (tmp_path / "chain").iterdir()} == {
        "chain.json",
        *(f"{entry}.safetensors" for entry in chain.entries),
    }
    assert (loaded.seed, loaded.stages, loaded.entries) == (3, model.stages, chain.entries)
    assert loaded.model == as_json(describe(model))
    for entry, plan in chain.plans.items():
        assert as_json(asdict(loaded.plans[entry])) == as_json(asdict(plan))
    assert_same_weights(loaded, chain)
    for entry in chain.entries:
        assert_rounding(loaded.reconstruct(trace, entry), chain.reconstruct(trace, entry))
    loaded.check(model)


def test_an_inverse_that_knows_its_model_is_saved_with_what_it_knows(tmp_path: Path) -> None:
    model = build_small("vit")
    plans = {
        "backbone": Plan("patch", {"subtract_position": True}, learning_rate=0.5),
        "backbone@analytic": Plan("analytic"),
    }
    chain = build_chain(model, plans, seed=0).eval()
    loaded = InverseChain.from_pretrained(chain.save(tmp_path))
    trace = model.run(random_images(model))
    assert loaded.plans == plans
    assert_same_weights(loaded, chain)
    for entry in plans:
        assert_rounding(loaded.reconstruct(trace, entry), chain.reconstruct(trace, entry))


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no index": (lambda folder: (folder / "chain.json").unlink(), "no chain in .*: a chain's folder holds chain.json"),
    "missing": (lambda folder: (folder / "encoder.safetensors").unlink(), r"encoder\.safetensors is missing"),
    "cut": (lambda folder: (folder / "encoder.safetensors").write_bytes(b"x"), r"encoder\.safetensors is damaged"),
    "flipped": (lambda folder: flip(folder / "encoder.safetensors"), r"encoder\.safetensors is damaged .*SHA-256"),
    "swapped": (
        lambda folder: (folder / "encoder.safetensors").write_bytes((folder / "decoder.safetensors").read_bytes()),
        r"encoder\.safetensors is damaged",
    ),
    "no json": (lambda folder: (folder / "chain.json").write_text("{"), r"chain\.json is not JSON"),
    "a list": (lambda folder: (folder / "chain.json").write_text("[]"), r"chain\.json does not hold names and values"),
    "no model": (lambda folder: _change(folder, "model", None), r"chain\.json has no 'model'"),
    "newer": (
        lambda folder: _change(folder, "format", FORMAT + 1),
        f"has format {FORMAT + 1}, this version of backsight reads up to {FORMAT}: upgrade backsight",
    ),
}  # fmt: skip


def _change(folder: Path, name: str, value: object) -> None:
    index = json.loads((folder / "chain.json").read_text())
    index.pop(name)
    (folder / "chain.json").write_text(json.dumps(index if value is None else {**index, name: value}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chain_is_refused_in_one_line(chain: InverseChain, damage: str, tmp_path: Path) -> None:
    harm, message = DAMAGES[damage]
    chain.save(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=message):
        InverseChain.from_pretrained(tmp_path)


# ---- which model a chain belongs to


def test_a_chain_knows_its_model(model: StagedModel) -> None:
    own, stages = of_family(model), model.stages
    own.check(model)
    own.check(build_small(model.spec.family))
    with pytest.raises(UserError, match="has other weights: use the model that the chain was trained on"):
        own.check(build_small(model.spec.family, seed=1))
    foreign = build_small(next(name for name in ("vit", "detr") if name != model.spec.family))
    if foreign.stages != stages:
        with pytest.raises(UserError, match="has other stages"):
            own.check(foreign)


def test_a_chain_knows_the_size_of_its_images(detr: StagedModel, chain: InverseChain) -> None:
    with pytest.raises(UserError, match=r"this chain inverts small detr .* has other size"):
        chain.check(build_small("detr", size=(96, 96)))


# ---- ensembles


def test_an_ensemble_asks_every_seed(detr: StagedModel) -> None:
    chains = [build_chain(detr, {"backbone": PLANS["backbone"]}, seed).eval() for seed in range(3)]
    ensemble = ChainEnsemble(chains)
    trace = detr.run(random_images(detr))
    images = ensemble.reconstruct(trace, "backbone")
    assert images.shape == (3, *trace.images.shape)
    assert all(torch.equal(images[index], chains[index].reconstruct(trace, "backbone")) for index in range(3))
    assert not torch.equal(images[0], images[1])
    edited = noisy(trace["backbone"])
    assert torch.equal(ensemble.reconstruct(edited, "backbone")[2], chains[2].reconstruct(edited, "backbone"))
    with pytest.raises(UserError, match="an ensemble needs at least one chain"):
        ChainEnsemble([])


def test_an_ensemble_checks_every_chain(detr: StagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    other = build_small("detr", seed=1)
    own, foreign = (build_chain(model, {"backbone": PLANS["backbone"]}, seed=0) for model in (detr, other))
    for chains in ([own, foreign], [foreign, own]):
        with pytest.raises(UserError, match="has other weights: use the model that the chain was trained on"):
            ChainEnsemble(chains).check(detr)
    digests = []
    monkeypatch.setattr(StagedModel, "digest", lambda model: digests.append(model) or own.model["digest"])
    ChainEnsemble([own] * 3).check(detr)
    assert digests == [detr], "the weights are read once"


def test_an_ensemble_is_found_in_the_folder_of_a_run(detr: StagedModel, tmp_path: Path) -> None:
    for seed in (10, 9, 2, 0):
        build_chain(detr, {"backbone": PLANS["backbone"]}, seed).save(tmp_path / "chains" / str(seed))
    for folder, expected in (
        (tmp_path, [0, 2, 9, 10]),
        (tmp_path / "chains", [0, 2, 9, 10]),
        (tmp_path / "chains" / "9", [9]),
    ):
        ensemble = ChainEnsemble.from_pretrained(folder)
        assert [chain.seed for chain in ensemble.chains] == expected
        ensemble.check(detr)
    assert ensemble.model == as_json(describe(detr))
    assert ensemble.entries == ["backbone"]


def test_a_folder_without_chains_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no chains in .*: name the folder of a run, with chains/0/chain\.json in it"):
        ChainEnsemble.from_pretrained(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="its training has not finished: run it again with resume"):
        ChainEnsemble.from_pretrained(tmp_path)

"""Chains on a stand-in of the hub: what is pushed, what is fetched, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from backsight.chain import ChainEnsemble, InverseChain, Plan, build_chain
from backsight.core import UserError
from backsight.engine import RANDOM, StagedModel
from backsight.hub import is_hub_name
from backsight.hub.card import public_facts
from backsight.io import write_json, write_text
from backsight.models import load_model
from damage import flip
from numerics import assert_rounding, assert_same_weights
from small import random_images, save_transformers
from stand_in_hub import TOKEN, Repository, StandInHub

PLANS = {"backbone": Plan("patch"), "encoder": Plan("blocks", {"depth": 1, "heads": 2})}
NOBODY = "http://127.0.0.1:9"
"""Where no one listens."""
FACTS = {
    "model": "/secret/model",
    "data": "folder:/data/holiday/photos",
    "images": "8 train, 2 validation, 2 test",
    "command": "backsight train /secret/model --data folder:/data/holiday/photos",
}


def ask(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Set what the hub's client has read from HF_ENDPOINT when it was imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    """The hub's client, that asks the stand-in, with a token and an empty cache."""
    from huggingface_hub import constants

    with StandInHub().serving() as hub:
        ask(monkeypatch, hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def chains_of(model: StagedModel, *seeds: int) -> ChainEnsemble:
    return ChainEnsemble(build_chain(model, PLANS, seed).eval() for seed in seeds)


@pytest.fixture
def run(vit: StagedModel, tmp_path: Path) -> Path:
    """A finished run of two seeds, with errors and a picture."""
    folder = tmp_path / "run"
    for chain in chains_of(vit, 0, 1).chains:
        chain.save(folder / "chains" / str(chain.seed))
    figures = {
        metric: [value, value - 0.01, value + 0.01] for metric, value in (("mse", 0.02), ("psnr", 17), ("ssim", 0.5))
    }
    entries = {entry: {"interval": figures, "layer_error": [0.3, 0.4]} for entry in PLANS}
    evaluation = {
        "entries": entries,
        "num_images": 2,
        "seeds": [0, 1],
        "value_range": "RGB in [0, 1]",
        "mean_image": {"mse": 0.08, "psnr": 11.0, "ssim": 0.2},
        "card": FACTS,
    }
    write_json(folder / "evaluation.json", evaluation)
    save_file({"mean_image": torch.rand(3, 48, 48)}, folder / "mean_image.safetensors")
    write_text(folder / "card.md", "# card")
    write_text(folder / "config.yaml", f"command: {FACTS['command']}")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "figure.png")
    return folder


# ---- there and back


def test_what_is_pushed_is_what_is_fetched(server: StandInHub, run: Path, vit: StagedModel) -> None:
    pushed = ChainEnsemble.from_pretrained(run)
    assert pushed.push_to_hub("me/seen") == f"{server.address}/me/seen"
    fetched = ChainEnsemble.from_pretrained("me/seen")
    assert [chain.seed for chain in fetched.chains] == [0, 1]
    assert (fetched.folder / "evaluation.json").is_file()
    fetched.check(vit)
    for ours, theirs in zip(fetched.chains, pushed.chains, strict=True):
        assert_same_weights(ours, theirs)
    trace = vit.run(random_images(vit))
    assert_rounding(fetched.reconstruct(trace, "encoder"), pushed.reconstruct(trace, "encoder"))


def test_one_commit_holds_chains_errors_pictures_and_nothing_private(server: StandInHub, run: Path) -> None:
    ChainEnsemble.from_pretrained(run).push_to_hub("me/seen")
    files = server.repositories["me/seen"].files()
    chain = {
        f"chains/{seed}/{name}" for seed in (0, 1) for name in ("chain.json", *(f"{e}.safetensors" for e in PLANS))
    }
    pages = {".gitattributes", "README.md", "evaluation.json", "mean_image.safetensors", "manifest.json"}
    assert set(files) == chain | pages | {"pictures/figure.png"}
    assert [path for method, path in server.requests if "/commit/" in path] == ["/api/models/me/seen/commit/main"]
    assert [path for path, content in files.items() if b"/data/" in content or b"secret" in content] == []
    assert set(json.loads(files["manifest.json"])["sha256"]) == chain | {"evaluation.json", "mean_image.safetensors"}


def test_the_model_card_is_read_by_the_hub_s_own_library(server: StandInHub, run: Path) -> None:
    from huggingface_hub import ModelCard

    ChainEnsemble.from_pretrained(run).push_to_hub("me/seen")
    text = server.repositories["me/seen"].files()["README.md"].decode()
    card = ModelCard(text)
    data: Any = card.data
    assert data.library_name == "backsight"
    assert "feature-inversion" in data.tags
    assert data.model_name == "seen"
    found = {each.metric_name: each.metric_value for each in data.eval_results}
    assert found["PSNR (dB), from encoder"] == 17
    assert len(found) == 6
    assert yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]["dataset"]["name"] == "folder:photos"
    assert "![Input and reconstructions from every stage](pictures/figure.png)" in text
    assert "| encoder | 0.25 | 0.02 (0.01 to 0.03) | 17 (16.99 to 17.01) | 0.5 (0.49 to 0.51) | 0.35 |" in text
    assert "**The forward model has random weights" in text
    assert "- images: 8 train, 2 validation, 2 test" in text
    assert 'from_pretrained("me/seen")' in text


def test_a_chain_alone_has_a_card_without_figures(server: StandInHub, vit: StagedModel) -> None:
    from huggingface_hub import ModelCard

    chain = build_chain(vit, PLANS, 5).eval()
    chain.model = {**chain.model, "name": "detr-resnet-50", "weights": "facebook/detr-resnet-50"}
    chain.push_to_hub("me/one", private=True)
    repository = server.repositories["me/one"]
    data: Any = ModelCard(repository.files()["README.md"].decode()).data
    assert repository.private
    assert data.base_model == "facebook/detr-resnet-50"
    assert data.eval_results is None
    assert "None were measured" in repository.files()["README.md"].decode()
    loaded = InverseChain.from_pretrained("me/one")
    assert (loaded.seed, loaded.model) == (5, json.loads(json.dumps(chain.model)))


def test_one_chain_costs_the_files_of_one(server: StandInHub, run: Path) -> None:
    ChainEnsemble.from_pretrained(run).push_to_hub("me/seen")
    server.requests.clear()
    assert InverseChain.from_pretrained("me/seen").seed == 0
    fetched = [
        path.split("/resolve/")[1] for method, path in server.requests if method == "GET" and "/resolve/" in path
    ]
    got = {path.partition("/")[2] for path in fetched}
    assert got == {"manifest.json", "chains/0/chain.json", *(f"chains/0/{entry}.safetensors" for entry in PLANS)}


def test_a_second_push_replaces_the_first_and_keeps_the_owner_s_files(server: StandInHub, vit: StagedModel) -> None:
    chains_of(vit, 0, 1, 2).push_to_hub("me/seen")
    repository = server.repositories["me/seen"]
    repository.commit("main", {**repository.files(), "LICENSE": b"mine"})
    chains_of(vit, 7).push_to_hub("me/seen")
    assert {path.split("/")[1] for path in repository.files() if path.startswith("chains/")} == {"7"}
    assert repository.files()["LICENSE"] == b"mine"
    assert [chain.seed for chain in ChainEnsemble.from_pretrained("me/seen").chains] == [7]


def test_a_revision_is_a_branch_of_its_own(server: StandInHub, vit: StagedModel) -> None:
    chains_of(vit, 0).push_to_hub("me/seen")
    address = chains_of(vit, 1).push_to_hub("me/seen", revision="longer")
    chains_of(vit, 2).push_to_hub("me/seen", revision="longer")
    assert address == f"{server.address}/me/seen/tree/longer"
    first = server.repositories["me/seen"].branches["main"]
    chains_of(vit, 9).push_to_hub("me/seen")
    seeds = [
        [chain.seed for chain in ChainEnsemble.from_pretrained("me/seen", revision).chains]
        for revision in (None, "longer", first)
    ]
    assert seeds == [[9], [2], [0]]
    assert InverseChain.from_pretrained("me/seen", revision="longer").seed == 2


def test_pictures_are_chosen_by_hand(server: StandInHub, run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "bus.jpg")
    ChainEnsemble.from_pretrained(run).push_to_hub("me/seen", pictures=[tmp_path / "bus.jpg", run])
    files = server.repositories["me/seen"].files()
    assert [path for path in files if path.startswith("pictures/")] == ["pictures/bus.jpg", "pictures/figure.png"]


def test_a_model_in_a_folder_is_named_without_its_path(server: StandInHub, vit: StagedModel, tmp_path: Path) -> None:
    ensemble = chains_of(vit, 0)
    ensemble.chains[0].model |= {"name": str(tmp_path / "my-detector"), "weights": str(tmp_path / "my.pth")}
    ensemble.push_to_hub("me/seen")
    model = ChainEnsemble.from_pretrained("me/seen").model
    assert (model["name"], model["weights"]) == ("my-detector", "my.pth")
    assert ensemble.model["name"] == str(tmp_path / "my-detector")
    assert str(tmp_path).encode() not in b"".join(server.repositories["me/seen"].files().values())


# ---- the cache


def test_without_a_network_the_cache_serves(
    server: StandInHub, vit: StagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    chains_of(vit, 3).push_to_hub("me/seen")
    ChainEnsemble.from_pretrained("me/seen")
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ChainEnsemble.from_pretrained("me/seen").chains[0].seed == 3
    assert server.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ask(monkeypatch, NOBODY)
    assert ChainEnsemble.from_pretrained("me/seen").chains[0].seed == 3


def test_what_is_new_is_fetched_although_there_is_a_cache(server: StandInHub, vit: StagedModel) -> None:
    for seed in (3, 4):
        chains_of(vit, seed).push_to_hub("me/seen")
        assert ChainEnsemble.from_pretrained("me/seen").chains[0].seed == seed


# ---- refused


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


Change = Callable[[dict[str, bytes]], object]


def of_manifest(**changes: Any) -> Change:
    def change(files: dict[str, bytes]) -> None:
        files["manifest.json"] = json.dumps({**json.loads(files["manifest.json"]), **changes}).encode()

    return change


def rename_in_manifest(old: str, new: str) -> Change:
    def change(files: dict[str, bytes]) -> None:
        files["manifest.json"] = files["manifest.json"].replace(old.encode(), new.encode())

    return change


TAMPERED: dict[str, tuple[Change, str]] = {
    "weights": (
        lambda files: files.update({"chains/0/encoder.safetensors": files["chains/0/encoder.safetensors"][:-1] + b"x"}),
        r"chains/0/encoder\.safetensors of me/seen is not what its manifest\.json says",
    ),
    "index": (
        lambda files: files.update({"chains/0/chain.json": files["chains/0/chain.json"] + b" "}),
        r"chains/0/chain\.json of me/seen is not what its manifest\.json says",
    ),
    "gone": (lambda files: files.pop("chains/0/backbone.safetensors"), r"chains/0/backbone\.safetensors of me/seen"),
    "no manifest": (lambda files: files.pop("manifest.json"), r"me/seen holds no chains: it has no manifest\.json"),
    "no json": (lambda files: files.update({"manifest.json": b"{"}), r"manifest\.json of me/seen cannot be read"),
    "a list": (lambda files: files.update({"manifest.json": b"[]"}), r"manifest\.json of me/seen cannot be read"),
    "newer": (of_manifest(format=2), r"has format 2, this version reads up to 1: upgrade"),
    "empty": (of_manifest(sha256={}), r"me/seen holds no chains: its manifest\.json lists no chain\.json"),
    "a pickle": (
        rename_in_manifest("chains/0/encoder.safetensors", "chains/0/encoder.pt"),
        r"lists 'chains/0/encoder\.pt', which is no file of a chain",
    ),
    "outside": (
        rename_in_manifest("chains/0/encoder.safetensors", "../../encoder.safetensors"),
        r"lists '\.\./\.\./encoder\.safetensors', which is no file of a chain",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_is_not_as_the_manifest_says_is_refused(what: str, server: StandInHub, vit: StagedModel) -> None:
    change, message = TAMPERED[what]
    chains_of(vit, 0).push_to_hub("me/seen")
    repository = server.repositories["me/seen"]
    files = dict(repository.files())
    change(files)
    repository.commit("main", files)
    for load in (ChainEnsemble.from_pretrained, InverseChain.from_pretrained):
        assert re.search(message, refusal(lambda load=load: load("me/seen")))


def test_a_file_that_is_damaged_in_the_cache_is_named(server: StandInHub, vit: StagedModel) -> None:
    chains_of(vit, 0).push_to_hub("me/seen")
    folder = ChainEnsemble.from_pretrained("me/seen").folder
    flip((folder / "chains/0/backbone.safetensors").resolve())
    assert "chains/0/backbone.safetensors of me/seen is not what" in refusal(
        lambda: ChainEnsemble.from_pretrained("me/seen")
    )


def test_a_chain_beside_the_listed_ones_is_refused(server: StandInHub, vit: StagedModel, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    chains_of(vit, 0).push_to_hub("me/seen")
    repository = server.repositories["me/seen"]
    repository.commit("main", {**repository.files(), "chains/1/chain.json": b"{}"})
    snapshot_download("me/seen")
    assert "chains/1/chain.json of me/seen is not what its manifest" in refusal(
        lambda: ChainEnsemble.from_pretrained("me/seen")
    )


def test_names_that_are_not_there(server: StandInHub, vit: StagedModel) -> None:
    missing = refusal(lambda: ChainEnsemble.from_pretrained("me/nothing"))
    assert "the hub does not have, or let you read, me/nothing (404)" in missing
    chains_of(vit, 0).push_to_hub("me/seen")
    assert "me/seen has no revision 'nose'" in refusal(lambda: ChainEnsemble.from_pretrained("me/seen", "nose"))
    server.down = True
    assert "the hub answers 503 for me/seen" in refusal(lambda: InverseChain.from_pretrained("me/seen"))


def test_a_model_of_the_hub_without_its_weights_is_its_configuration(server: StandInHub, tmp_path: Path) -> None:
    save_transformers("dinov2", tmp_path / "saved")
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    server.repositories["me/model"] = Repository()
    server.repositories["me/model"].commit("main", files)
    random = load_model("me/model", random_weights=True, seed=1)
    save_file(random.module.state_dict(), tmp_path / "other.safetensors")
    filled = load_model("me/model", weights=tmp_path / "other.safetensors")
    assert not any("safetensors" in path for _, path in server.requests)
    assert (random.weights, filled.weights) == (RANDOM, str(tmp_path / "other.safetensors"))
    assert filled.digest() == random.digest()
    own = load_model("me/model")
    assert own.weights == "me/model"
    assert own.digest() == load_model(str(tmp_path / "saved")).digest() != random.digest()
    message = refusal(lambda: load_model("me/nothing", random_weights=True))
    assert message.endswith("download config.json of me/nothing, and name the folder instead of the model")


def test_a_private_repository_needs_its_token(
    server: StandInHub, vit: StagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains_of(vit, 0).push_to_hub("me/mine", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "let you read, me/mine (401)" in refusal(lambda: ChainEnsemble.from_pretrained("me/mine"))


def test_without_network_or_copy(server: StandInHub, monkeypatch: pytest.MonkeyPatch, vit: StagedModel) -> None:
    from huggingface_hub import constants

    ask(monkeypatch, NOBODY)
    assert "no folder me/seen, me/seen is not whole in the local cache" in refusal(
        lambda: ChainEnsemble.from_pretrained("me/seen")
    )
    assert "no network (ConnectError): the hub cannot be reached" in refusal(
        lambda: chains_of(vit, 0).push_to_hub("me/seen")
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "me/seen at revision 'v1' is not whole in the local cache" in refusal(
        lambda: ChainEnsemble.from_pretrained("me/seen", "v1")
    )
    assert "HF_HUB_OFFLINE is set: unset it to push me/seen" in refusal(
        lambda: chains_of(vit, 0).push_to_hub("me/seen")
    )


def test_who_may_not_push(
    server: StandInHub, vit: StagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    ensemble = chains_of(vit, 0)
    assert "does not let you write to someone-else/seen (403)" in refusal(
        lambda: ensemble.push_to_hub("someone-else/seen")
    )
    assert "'seen' is no name of a repository: write owner/name" in refusal(lambda: ensemble.push_to_hub("seen"))
    assert "'me/ä' is no name of a repository" in refusal(lambda: ensemble.push_to_hub("me/ä"))
    assert "give up to 6 picture files" in refusal(lambda: ensemble.push_to_hub("me/seen", pictures=[tmp_path]))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not let you write to me/seen (401)" in refusal(lambda: ensemble.push_to_hub("me/seen"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no token to write to me/seen" in refusal(lambda: ensemble.push_to_hub("me/seen"))
    assert server.repositories == {}


# ---- names and facts


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("me/seen", True),
        ("runs", False),
        ("/runs/detr", False),
        ("zoo/detr-prior", False),
        ("a/b/c", False),
        ("./a", False),
    ],
)
def test_which_names_are_of_the_hub(name: str, is_one: bool) -> None:
    assert is_hub_name(name) is is_one


def test_a_folder_goes_before_the_hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    assert len(ChainEnsemble.from_pretrained(f"{run.parent.name}/run").chains) == 2


def test_facts_are_published_without_the_machine() -> None:
    facts = {"command": "x", "data": "coco:/data/coco:val2017", "model": "/models/mine", "steps": 3, "more": "hf:a/b"}
    public = {"data": "coco:coco:val2017", "model": "mine", "steps": 3, "more": "hf:a/b"}
    assert public_facts(facts) == public


# ---- the commands


def test_push_and_reconstruct_from_the_command_line(server: StandInHub, tmp_path: Path) -> None:
    """Pushed by a process that knows the hub from its environment; fetched by name, and the forward model with it."""
    from backsight.cli import main
    from backsight.models import load_model

    model = load_model("vit_tiny_patch16_224", random_weights=True, size=(32, 48))
    build_chain(model, {"backbone": Plan("patch")}, 0).eval().save(tmp_path / "run" / "chains" / "0")
    picture = tmp_path / "green.png"
    Image.new("RGB", (60, 40), (10, 200, 30)).save(picture)
    settings = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "backsight", "push", str(tmp_path / "run"), "me/seen", "--pictures", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, f"{server.address}/me/seen"), done.stderr
    assert "pictures/green.png" in server.repositories["me/seen"].files()
    main(["reconstruct", "me/seen", str(picture), "--out", str(tmp_path / "out"), "--device", "cpu"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {each["labels"]["stage"] for each in results["measurements"]} == {"backbone", "mean image"}
    assert (tmp_path / "out" / "report.html").is_file()

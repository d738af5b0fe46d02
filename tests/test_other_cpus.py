"""The same to rounding on other CPUs: with other kernels, more threads, and tensors at other addresses in memory.

`make test-cpus` runs all tests that compare numbers so; this file is what takes seconds of it.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backsight.chain import InverseChain, Plan, build_chain
from backsight.engine import StagedModel
from backsight.io import ALIGNMENT, align, read_tensors
from backsight.models import MODELS, load_model
from marks import quick
from numerics import assert_rounding, assert_same_weights
from small import assert_same_answers, build_small, random_images, save_transformers

HERE = Path(__file__).parent

OTHER_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "3",
    "MKL_DYNAMIC": "FALSE",  # else there are no more threads than cores
}


def reconstructions() -> dict[str, Tensor]:
    """Features of two pictures, ``2 N D``, and the images ``2 3 H W`` reconstructed from them, at every stage."""
    model, chain = load_model("zoo/vit-prior"), InverseChain.from_pretrained("zoo/vit-prior")
    trace = model.run(random_images(model))
    with torch.no_grad():
        images = {f"image {name}": chain.reconstruct(trace, name) for name in model.stages}
    return {name: trace[name] for name in model.stages} | images


def write_reconstructions(path: str) -> None:
    save_file({name: each.contiguous() for name, each in reconstructions().items()}, path)
    print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())


def beside(tensor: Tensor) -> Tensor:
    """A copy that begins one number after the aligned address."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return room[1:].view(tensor.shape).copy_(tensor)


def of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def put_beside(module: nn.Module) -> None:
    for tensor in of(module):
        tensor.data = beside(tensor.data)
    assert not any(map(is_aligned, of(module)))


def is_aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % ALIGNMENT == 0


# ---- addresses

FEW = ("vit", "swin", "convnext", "detr", "deformable_detr", "rt_detr")
"""Families that have the kernels of all."""

FAMILIES = pytest.mark.parametrize("family", quick(MODELS, *FEW))


@FAMILIES
def test_a_model_at_other_addresses_answers_the_same(family: str, small_model: Callable[[str], StagedModel]) -> None:
    other = build_small(family)
    put_beside(other.module)
    assert_same_answers(small_model(family), other)


@FAMILIES
def test_a_chain_at_other_addresses_reconstructs_the_same(
    family: str, small_model: Callable[[str], StagedModel]
) -> None:
    model = small_model(family)
    plans = {stage.name: Plan(*stage.inverses[""]) for stage in model.spec.stages}
    chain: InverseChain = build_chain(model, plans, seed=0).eval()
    other = copy.deepcopy(chain)
    for inverse in other.inverses.values():
        put_beside(inverse)
    with torch.no_grad():
        trace = model.run(random_images(model))
        for stage in model.stages:
            assert_rounding(other.reconstruct(beside(trace[stage]), stage), chain.reconstruct(trace, stage), 1e-4)


def test_tensors_of_a_file_are_aligned(tmp_path: Path) -> None:
    path, state = tmp_path / "some.safetensors", {name: torch.rand(3, 5) for name in ("a", "b", "c")}
    save_file(state, path)
    assert not all(map(is_aligned, load_file(path).values()))
    read = read_tensors(path)
    assert all(map(is_aligned, read.values()))
    assert all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize("family", [name for name, each in MODELS.items() if each.library == "transformers"])
def test_weights_of_a_loaded_model_are_aligned(family: str, tmp_path: Path) -> None:
    saved = save_transformers(family, tmp_path)
    module = load_model(str(tmp_path)).module
    assert all(map(is_aligned, of(module)))
    assert_same_weights(module, saved)


def test_what_is_tied_stays_tied() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    put_beside(module)
    before = [each.clone() for each in of(module)]
    align(module)
    assert all(map(is_aligned, of(module)))
    assert module[1].weight is module[0].weight
    assert all(map(torch.equal, of(module), before))


# ---- kernels and threads


def test_other_kernels_and_threads_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    code = f"import test_other_cpus; test_other_cpus.write_reconstructions({str(path)!r})"
    environment = os.environ | OTHER_KERNELS
    ran = subprocess.run([sys.executable, "-c", code], env=environment, cwd=HERE, check=True, stdout=subprocess.PIPE)
    assert b" ".join(ran.stdout.split()) in (b"DEFAULT 3", b"NO AVX 3")  # as older ones of torch call it
    ours, theirs = reconstructions(), load_file(path)
    assert_rounding(theirs, ours, 1e-4)
    assert not all(torch.equal(theirs[name], ours[name]) for name in ours), "no other kernel has run"

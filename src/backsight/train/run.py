"""One run: from a model and a data set to trained chains, a card, and errors on images never seen."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from backsight.chain import ChainEnsemble, InverseChain, describe
from backsight.core import UserError
from backsight.data import Batch, ImageData, Splits, loader, mean_of, open_data
from backsight.devices import autocast, choose_precision, peak_memory
from backsight.evaluate import evaluate
from backsight.files import write_bytes, write_json, write_text
from backsight.options import TrainOptions
from backsight.staging import StagedModel
from backsight.tasks import Modular, build_chains, make_plans
from backsight.train.budget import Budget
from backsight.train.card import versions, write_card
from backsight.train.loop import Loop, State
from backsight.train.run_folder import RunFolder

SAME_TO_RESUME = ("model", "data", "inverses", "seeds", "batch_size", "budget", "precision")
"""What a resumed run has to share with the one that was started."""


SHORTEST_LOOK = 25
"""Batches between two looks at the validation images, at the least: a look costs several batches."""


@dataclass
class Run:
    """Everything that one run consists of."""

    model: StagedModel
    chains: list[InverseChain]
    task: Modular
    splits: Splits
    budget: Budget
    precision: str
    options: TrainOptions
    folder: RunFolder

    @classmethod
    def of(cls, model: StagedModel, options: TrainOptions, folder: RunFolder) -> Run:
        """Open the data, build the inverses, and settle what was left open. Writes nothing."""
        splits = open_data(options.data, model.pixels, seed=options.seed, strict=options.strict)
        an_epoch = count_batches(splits.train, options.batch_size)
        budget = Budget.of(options.steps, options.epochs, options.minutes, an_epoch)
        plans = make_plans(model, options.inverse)
        seeds = range(options.seed, options.seed + options.seeds)
        chains = [chain.to(model.device).train() for chain in build_chains(model, plans, seeds)]
        precision = choose_precision(options.precision, model.device)
        return cls(model, chains, Modular(model, chains), splits, budget, precision, options, folder)

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.model.device

    @property
    def batches_an_epoch(self) -> int:
        """How many batches the training images make."""
        return count_batches(self.splits.train, self.options.batch_size)

    def config(self) -> dict[str, Any]:
        """All that is needed to run it again, in YAML's own types."""
        options = {name: str(value) if name == "out" else value for name, value in asdict(self.options).items()}
        data = {
            name: {"images": len(each), "fingerprint": each.fingerprint()} for name, each in vars(self.splits).items()
        }
        return _plain(
            {
                "command": command(),
                "model": describe(self.model),
                "data": {"spec": self.options.data, **data},
                "inverses": {entry: asdict(plan) for entry, plan in self.chains[0].plans.items()},
                "seeds": [chain.seed for chain in self.chains],
                "batch_size": self.options.batch_size,
                "budget": asdict(self.budget),
                "precision": self.precision,
                "options": options,
                "versions": versions(),
            }
        )

    def loop(self) -> Loop:
        """The training loop of this run."""
        options, an_epoch = self.options, self.batches_an_epoch
        every = max(SHORTEST_LOOK, min(an_epoch, self.budget.steps // 10 if self.budget.steps else 10 * SHORTEST_LOOK))
        return Loop(
            self.task,
            self.epoch,
            an_epoch,
            self.validate,
            self.folder,
            self.budget,
            precision=self.precision,
            device=self.device,
            evaluate_every=options.evaluate_every or every,
            checkpoint_every=options.checkpoint_every,
        )

    def begin(self, loop: Loop) -> None:
        """Write the configuration; on a resumed run, go back to the newest checkpoint."""
        config = self.config()
        if not self.folder.started:
            self.folder.write_config(config)
            return
        self.folder.check_config(config, SAME_TO_RESUME)
        checkpoint = self.folder.load_checkpoint()
        if checkpoint is not None:
            loop.load(checkpoint)
        self.folder.forget_after(loop.state.step)

    # ---- data

    def epoch(self, number: int, start: int) -> Iterator[Batch]:
        """The batches of epoch ``number``, from batch ``start`` on."""
        options = self.options
        order = {"seed": options.seed, "epoch": number, "shuffle": True, "start": start}
        return loader(self.splits.train, options.batch_size, workers=options.workers, device=self.device, **order)

    def held_out(self, data: ImageData, at_most: int) -> Iterator[Batch]:
        """The first ``at_most`` readable images of ``data``, in batches."""
        count = 0
        for batch in loader(data, self.options.batch_size, device=self.device):
            keep = min(len(batch.ids), at_most - count)
            if keep:
                yield batch.part(0, keep)
            count += keep
            if count == at_most:
                break
        if not count:
            raise UserError(f"none of the {len(data)} held-out images of {data.name} can be read")

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The error of every network on the validation images, as in training."""
        networks = self.task.networks.values()
        for network in networks:
            network.eval()
        totals: dict[str, Tensor | float] = dict.fromkeys(self.task.networks, 0.0)
        count = 0
        for batch in self.held_out(self.splits.validation, self.options.max_validation):
            count += len(batch.ids)
            with autocast(self.precision, self.device):
                for name, loss in self.task.losses(batch.images, batch.valid):
                    totals[name] = totals[name] + loss.double() * len(batch.ids)
        for network in networks:
            network.train()
        return {name: float(total) / count for name, total in totals.items()}

    # ---- the end

    def finish(self, state: State) -> ChainEnsemble:
        """Take the best weights, save the chains, measure them on the test images; the card is written last."""
        if state.image_sum is None:
            raise UserError(f"none of the training images of {self.options.data} can be read")
        for chain in self.chains:
            for entry, inverse in chain.items():
                if f"{chain.seed}/{entry}" in state.best:
                    inverse.load_state_dict(state.best[f"{chain.seed}/{entry}"]["weights"])
            chain.eval().requires_grad_(False)
            chain.save(self.folder.path / "chains" / str(chain.seed))
        ensemble = ChainEnsemble(self.chains)
        mean = mean_of(state.image_sum, state.pixel_counts).float()
        write_bytes(self.folder.path / "mean_image.safetensors", save({"mean_image": mean.cpu()}))
        with autocast(self.precision, self.device):
            errors = evaluate(
                self.model, ensemble, self.held_out(self.splits.test, self.options.max_test), mean
            ).as_json()
        facts = self.facts(state)
        write_json(self.folder.path / "evaluation.json", {**errors, "card": facts})
        write_text(self.folder.path / "card.md", write_card(facts, errors))
        return ensemble

    def facts(self, state: State) -> dict[str, Any]:
        """What the card states of the run."""
        pixels, splits = self.model.pixels, self.splits
        unreadable = {data.name: len(getattr(data, "unreadable", {})) for data in vars(splits).values()}
        return {
            "model": self.model.name,
            "weights": self.model.weights,
            "data": self.options.data,
            "data_fingerprint": splits.test.fingerprint(),
            "images": f"{len(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test",
            "unreadable_images_skipped": sum(unreadable.values()),
            "image_size": f"{pixels.size[0]}x{pixels.size[1]} (H x W), {pixels.fit}, crop {pixels.crop_fraction:g}",
            "seeds": ", ".join(str(chain.seed) for chain in self.chains),
            "steps": state.step,
            "images_seen": state.images,
            "images_per_second": round(state.images / max(state.seconds, 1e-9), 2),
            "device": _device_name(self.device),
            "device_hours": round(state.seconds / 3600, 4),
            "peak_memory_GiB": round(peak_memory(self.device) / 2**30, 2),
            "precision": self.precision,
            "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
            "command": command(),
        }


def count_batches(data: ImageData, batch_size: int) -> int:
    """How many batches an epoch has, the last and smaller one included."""
    return math.ceil(len(data) / batch_size)


def command() -> str:
    """The command line of this process, as a user would type it."""
    program, *arguments = sys.argv or ["python"]
    name = program.rsplit("/", 1)[-1]
    return shlex.join([name if name != "__main__.py" else "backsight", *arguments])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _plain(value: Any) -> Any:
    """Only what YAML and JSON have: tuples become lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

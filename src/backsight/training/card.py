"""The card of a run: what was trained, on what, for how long, and how well it reconstructs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

LIBRARIES = ("backsight", "torch", "torchvision", "timm", "transformers")


def versions() -> dict[str, str]:
    """The versions of everything that the figures of a run may depend on."""
    return {name: version(name) for name in LIBRARIES}


def task_in_words(facts: Mapping[str, Any]) -> str:
    """``joint, lambda 0.9, update chain, from decoder``."""
    parts = {"trade_off": "lambda", "update": "update", "stage": "from", "begins_with": "begun with the inverses of"}
    told = [f"{words} {facts[name]}" for name, words in parts.items() if facts.get(name) is not None]
    return ", ".join([facts["task"], *told])


def write_card(facts: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """A page of Markdown: a model card's facts, then the held-out error of every stage."""
    lines = [f"# Inverses of {facts['model']}", ""]
    if facts["weights"] == "random":
        lines += ["**Random weights: this run shows that the method works, not what a trained model knows.**", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    for name, values in evaluation.get("task_metrics", {}).items():
        lines.append(f"- {name} of the forward model on the test images: {', '.join(f'{each:.3f}' for each in values)}")
    mean = evaluation["mean_image"]
    lines += [
        "",
        f"## Error on {evaluation['num_images']} test images",
        "",
        f"Images are {evaluation['value_range']}. Means over {len(evaluation['seeds'])} seeds, with 95 % intervals",
        "over images and seeds. *Layer error* is that of the stage's own inverse on true features, in units of",
        "the variance of its target.",
        "",
        "| from | MSE | of the mean image's | PSNR (dB) | SSIM | layer error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry, found in evaluation["entries"].items():
        average, low, high = found["interval"]["mse"]
        layer = sum(found["layer_error"]) / len(found["layer_error"])
        lines.append(
            f"| {entry} | {average:.4f} ({low:.4f} to {high:.4f}) | {average / max(mean['mse'], 1e-12):.2f} | "
            f"{found['interval']['psnr'][0]:.2f} | {found['interval']['ssim'][0]:.3f} | {layer:.3f} |"
        )
    lines.append(f"| *mean image* | {mean['mse']:.4f} | 1.00 | {mean['psnr']:.2f} | {mean['ssim']:.3f} | |")
    return "\n".join(lines) + "\n"

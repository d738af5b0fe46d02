"""The model card of a repository: what its chains are, how to use them, how well they reconstruct."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backsight.error_table import error_table, markdown_table
from backsight.hub.fetch import is_hub_name
from backsight.results import LAYER_ERROR, MEAN_IMAGE, Result

TAGS = ["feature-inversion", "interpretability", "image-reconstruction", "vision-transformer"]
PRIVATE = ("command",)
"""Facts of a run that tell of the machine it ran on."""


def public_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a run's card, of every path on this machine only its last part, without the command.

    >>> public_facts({"data": "coco:/data/coco:val2017", "steps": 3, "command": "backsight train /secret/model"})
    {'data': 'coco:coco:val2017', 'steps': 3}
    """
    return {name: _last_part(value) for name, value in facts.items() if name not in PRIVATE}


def public_name(name: str) -> str:
    """A model's or its weights' name without the folders of this machine.

    >>> public_name("/data/models/mine"), public_name("facebook/detr-resnet-50")
    ('mine', 'facebook/detr-resnet-50')
    """
    path = Path(name)
    is_path = path.is_absolute() or ".." in path.parts or name.startswith((".", "~")) or path.exists()
    return (path.name or name) if is_path else name


def _last_part(value: Any) -> Any:
    """``coco:/data/coco:val2017`` -> ``coco:coco:val2017``, ``./runs/model`` -> ``model``; names of the hub stay."""
    if not isinstance(value, str):
        return value
    kind, colon, rest = value.partition(":") if re.match(r"(?:coco|folder|parquet):", value) else ("", "", value)
    return kind + colon + rest.rsplit("/", 1)[-1] if colon or rest.startswith(("/", "./", "../", "~")) else value


def write_readme(
    repository: str,
    model: Mapping[str, Any],
    seeds: Sequence[int],
    evaluation: Result | None,
    pictures: Sequence[str],
) -> str:
    """The repository's README.md: metadata that the hub reads, then the page.

    Args:
        repository: ``owner/name``.
        model: the forward model, as a chain keeps it.
        seeds: of the chains.
        evaluation: the run's errors on its test images; None if nothing was measured.
        pictures: paths in the repository.
    """
    parts = [
        f"---\n{_metadata(repository, model, evaluation)}\n---",
        f"# What {model['name']} still knows of an image",
        _introduction(model, seeds, None if evaluation is None else evaluation.subjects[0].get("data")),
        *(f"![Input and reconstructions from every stage]({picture})" for picture in pictures),
        _use(repository),
        markdown_table(evaluation) if evaluation else "## Errors\n\nNone were measured for these chains.",
        _facts(evaluation.subjects[0].get("training", {})) if evaluation else "",
        _caution(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(repository: str, model: Mapping[str, Any], evaluation: Result | None) -> str:
    """The YAML that the hub reads: library, tags, the forward model, every figure by stage."""
    from huggingface_hub import ModelCardData

    weights = str(model["weights"])
    data = ModelCardData(
        library_name="backsight",
        tags=[*TAGS, model["family"]],
        base_model=weights if is_hub_name(weights) else None,
        model_name=repository.partition("/")[2] if evaluation else None,
        eval_results=_results(evaluation) if evaluation else None,
    )
    return data.to_yaml()


def _results(evaluation: Result) -> list[Any]:
    from huggingface_hub import EvalResult

    data = str(evaluation.subjects[0]["data"])
    columns, rows = error_table(evaluation)
    return [
        EvalResult(
            task_type="image-to-image",
            task_name="reconstruction of the image",
            dataset_type=re.sub(r"[^\w.-]+", "-", data).strip("-"),
            dataset_name=data,
            dataset_split="test",
            metric_type=column.metric,
            metric_name=f"{column.name}, from {row.stage}",
            metric_value=round(cell.mean(), 6),
        )
        for row in rows
        if row.stage != MEAN_IMAGE
        for column, cell in zip(columns, row.cells, strict=True)
        if cell is not None and column.metric != LAYER_ERROR
    ]


def _introduction(model: Mapping[str, Any], seeds: Sequence[int], data: str | None) -> str:
    height, width = model["size"]
    random = model["weights"] == "random"
    warning = "\n\n**The forward model has random weights: these chains show that the method works, nothing more.**"
    return (
        f"One small inverse network for each of the stages {', '.join(model['stages'])} of `{model['name']}` (weights: "
        f"{model['weights']}; images of {height} x {width} pixels), for {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''}{f', trained on `{data}`' if data else ''}. Chained, they turn the "
        "features of any stage or layer back into an image: what the stage has kept comes back sharp, what it has "
        "thrown away blurred or grey. The method is "
        "modular feature inversion ([Rathjens et al., 2024](https://arxiv.org/abs/2412.06534)), the library backsight."
        f"{warning if random else ''}"
    )


def _use(repository: str) -> str:
    return f"""## Use

```sh
backsight reconstruct {repository} photo.jpg --out seen
```

```python
import backsight as bs
from backsight.chain.model import open_forward_model

chains = bs.ChainEnsemble.from_pretrained("{repository}")
model = open_forward_model(chains)  # refused unless its weights are those that the chains were trained on
images = bs.load_images(["photo.jpg"], model.pixels).images  # B 3 H W, RGB in [0, 1]
pictures = chains.reconstruct(model.run(images), at="backbone")  # S B 3 H W
```

Nothing here is a pickle. Every file is checked against `manifest.json` when it is fetched."""


def _facts(facts: Mapping[str, Any]) -> str:
    return "\n".join(["## Training", "", *(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items())])


def _caution() -> str:
    return (
        "## Before you conclude anything\n\nAn inverse returns the average of all images that could have led to the "
        "same features. A blurred picture does not prove that the features hold no more; a sharp one may be painted by "
        "what the inverse has learned of all images. Put several seeds, the mean image's error and an untrained model "
        "beside it."
    )

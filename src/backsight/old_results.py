"""Files of version 0.1 in the format of today: plain JSON objects in, plain JSON objects out.

Version 0.1 had three formats: the results of experiments, the results of ``backsight reconstruct``, and the
``evaluation.json`` of runs. The last two keep means over images, so that an interval is stated, not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NOW = "backsight.result/2"


def convert(value: dict[str, Any]) -> dict[str, Any]:
    """The content of a result's file, converted where version 0.1 wrote it; anything else as it is."""
    kind = value.get("format")
    if kind == "backsight.experiment/1":
        for each in value["measurements"]:
            if each["labels"].get("metric") == "top-1":
                each["labels"]["metric"] = "accuracy"
        return {**value, "format": _NOW}
    if kind == "backsight.results/1":
        return _of_reconstruct(value)
    return _of_run(value) if kind is None and "entries" in value else value


def _of_run(value: Mapping[str, Any]) -> dict[str, Any]:
    """``evaluation.json``: its ``entries`` have a mean over images for each seed, and intervals by metric."""
    facts = value.get("card") or {}
    model = facts.get("model", "")
    card = {
        "model": model,
        "weights": facts.get("weights", ""),
        "random": facts.get("weights") == "random",
        "data": facts.get("data", ""),
        "data_fingerprint": facts.get("data_fingerprint", ""),
        **{name: value[name] for name in ("num_images", "value_range", "seeds") if name in value},
        "training": facts,
    }
    measurements = []
    for entry, errors in value["entries"].items():
        intervals, layer = errors.get("interval") or {}, errors.get("layer_error")
        found = {name: each for name, each in errors.items() if name not in ("interval", "layer_error")}
        for metric in dict.fromkeys([*found, *intervals]):
            means = found.get(metric) or intervals[metric][:1]
            measurements.append(_measurement(model, entry, metric, means, intervals.get(metric)))
        if layer:
            measurements.append(_measurement(model, entry, "layer error", layer))
    measurements += _of_mean_image(model, value.get("mean_image") or {})
    for metric, values in (value.get("task_metrics") or {}).items():
        measurements.append(_measurement(model, "", metric, values))
    return _result("evaluation", facts.get("command", ""), card, measurements)


def _of_reconstruct(value: Mapping[str, Any]) -> dict[str, Any]:
    """``results.json``: cards of the model and the data, ``stages``, the files of ``pictures``, and ``curves``."""
    model, data = value["model"]["name"], value["data"]
    stages = value["stages"]
    num_seeds = max((len(means) for stage in stages for means in stage["metrics"].values()), default=1)
    card = {
        **{"model": model, "weights": value["model"]["weights"], "random": value["model"].get("random", False)},
        "data": data["name"],
        "data_fingerprint": data["fingerprint"],
        **{name: data[name] for name in ("num_images", "size", "fit", "value_range") if name in data},
        "seeds": list(range(num_seeds)),
        "figures": value["model"].get("figures") or {},
        "training": value.get("card") or {},
    }
    measurements = []
    for stage in stages:
        for metric, means in stage["metrics"].items():
            intervals = stage.get("intervals") or {}
            measurements.append(_measurement(model, stage["entry"], metric, means, intervals.get(metric)))
        if stage.get("layer_error"):
            measurements.append(_measurement(model, stage["entry"], "layer error", stage["layer_error"]))
    measurements += _of_mean_image(model, value.get("mean_image") or {})
    measurements += _of_curves(model, value.get("curves") or ())
    pictures = []
    for row in value.get("pictures") or ():
        labels = {"model": model, "image": row["id"], "caption": row["caption"]}
        for stage, names in row["images"].items():
            for seed, name in enumerate(names):
                pictures.append({"labels": {**labels, "stage": stage, "row": f"seed {seed}"}, "file": name})
    return _result("reconstruct", value["command"], card, measurements, pictures)


def _of_mean_image(model: str, errors: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, error in errors.items():
        yield _measurement(model, "mean image", metric, [error])


def _of_curves(model: str, curves: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records of one loss, by step, entry and seed."""
    losses: dict[tuple[int, str], list[float]] = {}
    for record in curves:
        losses.setdefault((record["step"], record["entry"]), []).append(record["loss"])
    for (step, entry), values in losses.items():
        found = _measurement(model, entry, "training loss", values)
        yield {**found, "labels": {**found["labels"], "step": step}}


def _measurement(
    model: str, stage: str, metric: str, means: Sequence[float | None], interval: Sequence[float | None] | None = None
) -> dict[str, Any]:
    labels = {"model": model, "stage": stage, "metric": metric}
    if not stage:
        del labels["stage"]
    known = [each for each in means if each is not None]
    mean = sum(known) / len(known) if known else None
    return {"labels": labels, "values": [[each] for each in means], "stated": list(interval or [mean, None, None])}


def _result(
    experiment: str,
    command: str,
    card: Mapping[str, Any],
    measurements: Sequence[Mapping[str, Any]],
    pictures: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "format": _NOW,
        "experiment": experiment,
        "command": command,
        "subjects": [card],
        "measurements": measurements,
        "pictures": pictures,
    }

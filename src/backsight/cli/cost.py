"""The command that tells what training would cost."""

from __future__ import annotations

from tyro.conf import OmitArgPrefixes, Positional

from backsight.options import ModelOptions


def cost(
    model: Positional[str],
    seeds: int = 3,
    epochs: float = 10.0,
    inverse: tuple[str, ...] = (),
    tflops: float | None = None,
    share: float = 0.4,
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
) -> None:
    """What training the inverses of a model costs: operations by stage, bytes, device hours for COCO and ImageNet.

    Args:
        model: As for `backsight train`; --random-weights will do.
        seeds: How many instances of every inverse.
        epochs: Passes over the training images.
        inverse: Other inverses, as for `backsight train`.
        tflops: The matrix rate of a device, in 10^12 operations a second; that of this machine is measured if it is
            not given.
        share: The part of that rate that training reaches, 0 to 1; `python -m benchmarks limit` measures it.
    """
    from backsight.core import UserError, expect_positive
    from backsight.cost import cost as count
    from backsight.cost import matrix_rate, table
    from backsight.training import open_model

    if seeds < 1:
        raise UserError(f"--seeds {seeds}: it has to be at least 1")
    expect_positive("epochs", epochs)
    expect_positive("tflops", tflops)
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: it is a part of the device's rate, more than 0 and at most 1")
    found = count(open_model(model, model_options), seeds, inverse)
    rate = matrix_rate(model_options.device) if tflops is None else tflops * 1e12
    print("\n".join(table(found, rate, share, epochs)))

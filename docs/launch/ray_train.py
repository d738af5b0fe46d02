"""Ray Train: its workers have joined already, and their process group is used as it is."""

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work() -> None:
    """What each worker does."""
    import backsight as bs

    bs.train("detr-resnet-50", data="coco:/data/coco", out="/shared/runs/detr", batch_size=512, resume=True)


if __name__ == "__main__":
    TorchTrainer(
        work, scaling_config=ScalingConfig(num_workers=8, use_gpu=True), run_config=RunConfig(name="detr")
    ).fit()

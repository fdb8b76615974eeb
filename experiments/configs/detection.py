r"""Detection and segmentation on normalizer-free backbones; docs/detection.md says more.

    python -m experiments.run --config=detect_digits --workdir=DIR

A backbone that is trained already, and data in the format of COCO:

    python -m experiments.run --config=detect_coco --config.init.weights=published \
        --config.data.dir=coco/train2017 --config.data.test_dir=coco/val2017 \
        --config.data.labels=coco/annotations/instances_train2017.json \
        --config.data.test_labels=coco/annotations/instances_val2017.json

Data: scenes of scikit-learn's digits on its photographs; of detect_coco and segment_coco, folders
of images with an instances_*.json each.
Hardware: two CPU cores; the configurations for COCO have run on small folders alone.
Hours: 0.15 (9.2 minutes) for detect_digits, 0.24 (14.1) for segment_digits, measured on 2026-11-30.
Accuracy: AP50 85.8%, and mIoU 67.9%, in these runs (docs/detection.md); COCO's are not measured.

Recipe: that of NFNets for classifiers, Brock et al. 2021b, arXiv:2102.06171, section 6.1, at a
higher learning rate; large-scale jitter, Ghiasi et al. 2021, arXiv:2012.07177, section 4.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nfnets_jax.training import recipes


class Variant(NamedTuple):
    """The values that differ between the tasks and the data.

    Attributes:
      task: its name.
      channels: of pyramid and head.
      learning_rate: for a batch of 256; a segmenter's gradients are means over many pixels.
      scales: smallest and largest of the scale jitter.
      num_steps: with 16 images each.
      scenes: of digits, to train on.
      on_coco: whether the data are COCO's.
    """

    task: str
    channels: int
    learning_rate: float
    scales: tuple[float, float]
    num_steps: int
    scenes: int = 5000
    on_coco: bool = False


_COCO_STEPS = 90_000  # 12 epochs of 118,287 images.
VARIANTS = {
    "detect_digits": Variant("detection", 64, 1.6, (0.8, 1.25), 4000),
    # Each scene is another one, which does not need jitter.
    "segment_digits": Variant("segmentation", 64, 6.4, (1.0, 1.0), 5000, 80_000),
    "detect_coco": Variant("detection", 128, 1.6, (0.5, 2.0), _COCO_STEPS, on_coco=True),
    "segment_coco": Variant("segmentation", 128, 6.4, (0.5, 2.0), _COCO_STEPS, on_coco=True),
}


def get_config(name: str = "detect_digits") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    variant = VARIANTS[name]
    recipe = {
        "imports": ("experiments.detection.training",),
        "task": {"name": variant.task, "settings": _settings(variant)},
        "precision": "float32",
        "label_smoothing": 0.0,
        "num_steps": variant.num_steps,
        "optimizer": {
            "name": "sgd",
            "schedule": "cosine",
            "base_learning_rate": variant.learning_rate,
            "warmup_fraction": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 2e-5,
            "clipping": 0.04,
            # With 1e-3 the largest gain of a residual branch, which start at zero, was 0.003 after
            # 432 steps of detect_digits: the network was little more than its shortcuts.
            "clipping_eps": 0.1,
        },
        **(_on_coco() if variant.on_coco else _on_digits()),
    }
    return recipes.complete(recipe)


def _settings(variant: Variant) -> dict[str, Any]:
    return {
        "stride": 4,
        "channels": variant.channels,
        "depth": 2,
        "frozen_statistics": False,
        "smallest_scale": variant.scales[0],
        "largest_scale": variant.scales[1],
        "most_objects": 100 if variant.on_coco else 16,
        "scenes": variant.scenes,
    }


def _on_digits() -> dict[str, Any]:
    return {
        # Half the resolution of the registered network, which is for images of 32 pixels.
        "model": {"name": "nf_resnet26_small", "stem": ((64, 2),)},
        "data": {"name": "digit_scenes", "image_size": 64, "test_image_size": 64},
        "batch_size": 16,
        "ema_decay": 0.99,
        "log_every": 50,
        "eval_every": 1000,
        "checkpoint_every": 500,
    }


def _on_coco() -> dict[str, Any]:
    return {
        "model": {"name": "nfnet_f0", "dropout_rate": 0.0},
        "data": {"name": "coco", "image_size": 512, "test_image_size": 512, "flip": True},
        "batch_size": 16,
        "ema_decay": 0.9998,
        "log_every": 100,
        "eval_every": 10_000,
        "checkpoint_every": 2000,
    }

"""CIFAR-10 by a network that running statistics normalize; experiments/cifar10 says more.

    python -m experiments.run --config=nfnet_cifar10 --config.data.dir=TFDS_DIR --workdir=DIR

Eight epochs on CPUs, sixteen on a GPU. As it was measured, one process a core:

    python -m experiments.cifar10.train --config.data.dir=TFDS_DIR --workdir=DIR

Data: CIFAR-10 as TFDS prepares it, in TFDS_DIR.
Hardware: two CPU cores, of an AMD EPYC when measured; nfnet_cifar10_gpu has not been run on a GPU.
Hours: 0.31 (18.7 minutes) from a cold start, the mean of three seeds, measured on 2026-11-25.
Accuracy: 90.43% of the test images, 90.30% to 90.51%, measured in the same three runs
(docs/studies/cifar10/report.md).

Recipe: Muon updates the kernels; it needs no clipping, as all its steps have the same length.
Shifts, mirror images and label smoothing are those of Jordan 2024, arXiv:2404.00498, section 3.
Momentum, schedule and rate suit Muon; the rate was chosen on held-out images.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from nfnets_jax.training import recipes


class Variant(NamedTuple):
    """The values that differ between CPUs and GPUs."""

    num_steps: int
    precision: str


BATCH_SIZE, IMAGES = 512, 50_000
VARIANTS = {
    "nfnet_cifar10": Variant(770, "float32"),
    "nfnet_cifar10_gpu": Variant(16 * IMAGES // BATCH_SIZE, "bfloat16"),
}


def get_config(name: str = "nfnet_cifar10") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    variant = VARIANTS[name]
    return recipes.complete(
        {
            "imports": ("experiments.cifar10.training",),
            "model": {
                "name": "nf_convnet",
                "dropout_rate": 0.0,
                "mirror": True,
                "shift": True,
                "round_products": variant.precision == "float32",
            },
            "data": {
                "name": "tfds:cifar10",
                "image_size": 32,
                "test_image_size": 32,
                "crop": "pad",
                "padding": 2,
                "reflect": True,
                "flip": True,
            },
            "augment": {"name": "alternating_flip"},
            "batch_size": BATCH_SIZE,
            "num_steps": variant.num_steps,
            "precision": variant.precision,
            "label_smoothing": 0.2,
            "ema_decay": 0.0,
            "optimizer": {
                "name": "muon",
                "schedule": "linear",
                "base_learning_rate": 0.075,
                "warmup_fraction": 0.02,
                "momentum": 0.6,
                "nesterov": True,
                "weight_decay": 0.0,
                "clipping": 0.0,
            },
            "log_every": 25,
            "look_every": 0,
            "checkpoint_every": 500,
        }
    )

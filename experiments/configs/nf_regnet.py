"""NF-RegNet-B0 to B8 on ImageNet, trained as their paper trains them, without clipping.

    python -m experiments.run --config=nf_regnet_b0 --config.data.dir=TFDS_DIR --workdir=DIR

Data: ImageNet 2012 as TFDS prepares it, in TFDS_DIR.
Hardware: TPUs or GPUs. A batch that exceeds their memory is taken in parts.
Hours: none measured here, and none of the paper's at hand.
Accuracy: none measured here, and none of the paper's at hand.

Recipe: Brock et al. 2021a, arXiv:2101.08692, with the values of its authors' code,
``nfnets/experiment_nf_regnets.py`` of deepmind-research. That has no weight decay for B6 to B8;
theirs continue the rule of B0 to B5.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from nfnets_jax.training import recipes


class Variant(NamedTuple):
    """The values that differ between the variants; sizes are in pixels."""

    train_size: int
    test_size: int
    dropout_rate: float
    weight_decay: float


VARIANTS = {
    "nf_regnet_b0": Variant(192, 224, 0.2, 5e-5),
    "nf_regnet_b1": Variant(224, 256, 0.2, 6e-5),
    "nf_regnet_b2": Variant(240, 272, 0.3, 7e-5),
    "nf_regnet_b3": Variant(288, 320, 0.3, 8e-5),
    "nf_regnet_b4": Variant(320, 384, 0.4, 9e-5),
    "nf_regnet_b5": Variant(384, 456, 0.4, 1e-4),
    "nf_regnet_b6": Variant(448, 528, 0.5, 1.1e-4),
    "nf_regnet_b7": Variant(512, 600, 0.5, 1.2e-4),
    "nf_regnet_b8": Variant(600, 672, 0.5, 1.3e-4),
}
BATCH_SIZE, EPOCHS, WARMUP_EPOCHS = 1024, 360, 5


def get_config(name: str = "nf_regnet_b0") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    variant = VARIANTS[name]
    return recipes.complete(
        {
            "model": {
                "name": name,
                "dropout_rate": variant.dropout_rate,
                "stochastic_depth_rate": 0.1,
                "remat": "none",
            },
            "data": {
                "name": "tfds:imagenet2012",
                "image_size": variant.train_size,
                "test_image_size": variant.test_size,
                "test_margin": 32,
                "test_crop": "padded",
                "crop": "distorted",
                "flip": True,
            },
            "augment": {"mixup_alpha": 0.2, "cutmix": True, "mixtures_per_pair": 1},
            "batch_size": BATCH_SIZE,
            "num_steps": EPOCHS * recipes.IMAGENET_IMAGES // BATCH_SIZE,
            "precision": "float32",
            "label_smoothing": 0.1,
            "ema_decay": 0.99999,
            "optimizer": {
                "name": "sgd",
                "schedule": "cosine",
                "base_learning_rate": 0.1,
                "final_learning_rate": 0.001,
                "warmup_fraction": WARMUP_EPOCHS / EPOCHS,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": variant.weight_decay,
                "clipping": 0.0,
            },
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )

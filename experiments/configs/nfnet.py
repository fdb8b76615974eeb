"""NFNet-F0 to F7 on ImageNet as their paper trains them, with SAM, and batch-normalized.

    python -m experiments.run --config=nfnet_f0 --config.data.dir=TFDS_DIR --workdir=DIR

Data: ImageNet 2012 as TFDS prepares it, in TFDS_DIR.
Hardware: TPUs or GPUs; the paper's are TPUv3. A batch that exceeds their memory is taken in parts.
Hours: none measured here. The paper reports steps of 32 images on a device, not hours.
Accuracy: the paper's, of one crop; none measured here.

    configuration   top-1 (%)   top-5 (%)   step on a TPUv3 (ms)   step on a V100 (ms)
    nfnet_f0        83.6        96.8          73.3                   56.7
    nfnet_f1        84.7        97.1         158.5                  133.9
    nfnet_f2        85.1        97.3         295.8                  226.3
    nfnet_f3        85.7        97.5         532.2                  524.5
    nfnet_f4        85.9        97.6        1033.3                 1190.6
    nfnet_f5        86.0        97.6        1398.5                 2177.1
    nfnet_f5_sam    86.3        97.9        1958.0                 -
    nfnet_f6_sam    86.5        97.9        2774.1                 -
    nfnet_f0_bn     83.4        -            111.7                 -
    nfnet_f1_bn     84.4        -            258.0                 -
    nfnet_f2_bn     85.1        -            396.3                 -
    nfnet_f3_bn     85.5        -            617.7                 -

Recipe: Brock et al. 2021b, arXiv:2102.06171, section 6.1 and appendix; SAM is Foret et al. 2021,
arXiv:2010.01412. Its radius is the one that the paper gives for fine-tuning (appendix A.5); for
training on ImageNet it gives none. The batch-normalized networks of table 6 have the same recipe.
Whether theirs had AGC the paper does not say; ``--config.optimizer.clipping=0`` leaves it out.
F4 and F5 were not stable with batch normalization in bfloat16, with or without AGC (section 6.1).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from nfnets_jax.training import recipes


class Variant(NamedTuple):
    """The values that differ between the variants; sizes are in pixels."""

    train_size: int
    test_size: int
    dropout_rate: float
    randaugment_magnitude: int
    sam_rho: float = 0.0
    sam_fraction: float = 1.0


VARIANTS = {
    # train, test, dropout, RandAugment
    "nfnet_f0": Variant(192, 256, 0.2, 5),
    "nfnet_f1": Variant(224, 320, 0.3, 10),
    "nfnet_f2": Variant(256, 352, 0.4, 10),
    "nfnet_f3": Variant(320, 416, 0.4, 15),
    "nfnet_f4": Variant(384, 512, 0.5, 15),
    "nfnet_f5": Variant(416, 544, 0.5, 15),
    "nfnet_f6": Variant(448, 576, 0.5, 15),
    "nfnet_f7": Variant(480, 608, 0.5, 15),
}
VARIANTS |= {
    **{
        f"{name}_sam": VARIANTS[name]._replace(sam_rho=0.05, sam_fraction=0.2)
        for name in ("nfnet_f5", "nfnet_f6")
    },
    **{f"{name}_bn": variant for name, variant in VARIANTS.items()},
}
BATCH_SIZE, EPOCHS, WARMUP_EPOCHS = 4096, 360, 5


def get_config(name: str = "nfnet_f0") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    variant = VARIANTS[name]
    return recipes.complete(
        {
            "model": {
                "name": name.removesuffix("_sam"),
                "dropout_rate": variant.dropout_rate,
                "stochastic_depth_rate": 0.25,
                "remat": "none",
            },
            "data": {
                "name": "tfds:imagenet2012",
                "image_size": variant.train_size,
                "test_image_size": variant.test_size,
                "test_margin": 32,
                "test_crop": "squash",
                "crop": "distorted",
                "flip": True,
            },
            "augment": {
                "randaugment_layers": 4,
                "randaugment_magnitude": variant.randaugment_magnitude,
                "mixup_alpha": 0.2,
                "cutmix": True,
                "mixtures_per_pair": 1,
            },
            "batch_size": BATCH_SIZE,
            "num_steps": EPOCHS * recipes.IMAGENET_IMAGES // BATCH_SIZE,
            "precision": "bfloat16",
            "label_smoothing": 0.1,
            "ema_decay": 0.99999,
            "optimizer": {
                "name": "sgd",
                "schedule": "cosine",
                "base_learning_rate": 0.1,
                "warmup_fraction": WARMUP_EPOCHS / EPOCHS,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 2e-5,
                "clipping": 0.01,
                "clipping_eps": 1e-3,
                "sam_rho": variant.sam_rho,
                "sam_fraction": variant.sam_fraction,
                "sam_ascent": "replica",
            },
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )

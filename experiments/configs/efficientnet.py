"""EfficientNet-B0 to B7 on ImageNet, by their authors' recipe but for RandAugment.

    python -m experiments.run --config=efficientnet_b0 --config.data.dir=TFDS_DIR --workdir=DIR

Data: ImageNet 2012 as TFDS prepares it, in TFDS_DIR.
Hardware: TPUs or GPUs. A batch that exceeds their memory is taken in parts, each normalized by its
own statistics.
Hours: none measured here. Brock et al. 2021b, arXiv:2102.06171, report steps of 32 images on a
device, not hours.
Accuracy: none measured here. Those of B1 and B2 are of Tan and Le 2019, with AutoAugment, as in
MosaicML Composer's model card; the others are in table 3 of Brock et al. 2021b.

    configuration     top-1 (%)   top-5 (%)   step on a TPUv3 (ms)   step on a V100 (ms)
    efficientnet_b0   77.1        93.3          51.1                   44.8
    efficientnet_b1   79.1        -           -                      -
    efficientnet_b2   80.1        -           -                      -
    efficientnet_b3   81.6        95.7         129.5                  116.6
    efficientnet_b4   82.9        96.4         245.9                  221.6
    efficientnet_b5   83.7        96.7         450.5                  458.9
    efficientnet_b6   84.0        96.8         775.7                  868.2
    efficientnet_b7   84.7        97.0        1397.0                 1753.3

Recipe: RMSProp, weight decay, dropout and stochastic depth are those of Tan and Le 2019,
arXiv:1905.11946, section 5.2; batch, epochs, learning rate and moving average are those that the
authors state later, Tan and Le 2021, arXiv:2104.00298, section 5.1. As in their code,
``models/official/efficientnet`` of tensorflow/tpu, the rate's decay starts with the warm-up, biases
decay, and the running statistics are averaged like the parameters. RandAugment replaces
AutoAugment, with magnitudes that grow as NFNet's do.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from nfnets_jax.training import recipes


class Variant(NamedTuple):
    """The values that differ between the variants; sizes are in pixels."""

    size: int
    dropout_rate: float
    randaugment_magnitude: int


VARIANTS = {
    "efficientnet_b0": Variant(224, 0.2, 5),
    "efficientnet_b1": Variant(240, 0.2, 10),
    "efficientnet_b2": Variant(260, 0.3, 10),
    "efficientnet_b3": Variant(300, 0.3, 15),
    "efficientnet_b4": Variant(380, 0.4, 15),
    "efficientnet_b5": Variant(456, 0.4, 15),
    "efficientnet_b6": Variant(528, 0.5, 15),
    "efficientnet_b7": Variant(600, 0.5, 15),
}
BATCH_SIZE, EPOCHS, WARMUP_EPOCHS = 4096, 350, 5
LEARNING_RATE, EPOCHS_A_DECAY = 0.256, 2.4


def get_config(name: str = "efficientnet_b0") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    variant = VARIANTS[name]
    return recipes.complete(
        {
            "model": {
                "name": name,
                "dropout_rate": variant.dropout_rate,
                "stochastic_depth_rate": 0.2,
                "remat": "none",
                "sync_axis": "",
            },
            "data": {
                "name": "tfds:imagenet2012",
                "image_size": variant.size,
                "test_image_size": variant.size,
                "test_margin": 32,
                "test_crop": "padded",
                "crop": "distorted",
                "flip": True,
            },
            "augment": {
                "randaugment_layers": 2,
                "randaugment_magnitude": variant.randaugment_magnitude,
            },
            "batch_size": BATCH_SIZE,
            "num_steps": EPOCHS * recipes.IMAGENET_IMAGES // BATCH_SIZE,
            "precision": "bfloat16",
            "label_smoothing": 0.1,
            "ema_decay": 0.9999,
            "ema_statistics": True,
            "optimizer": {
                "name": "rmsprop",
                "schedule": "exponential",
                "decay_rate": 0.97,
                "decay_fraction": EPOCHS_A_DECAY / EPOCHS,
                "decay_in_warmup": True,
                "base_learning_rate": LEARNING_RATE * 256 / BATCH_SIZE,
                "warmup_fraction": WARMUP_EPOCHS / EPOCHS,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 1e-5,
                "decay_biases": True,
                "clipping": 0.0,
            },
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )

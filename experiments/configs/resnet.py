"""ResNets and SE-ResNeXts on ImageNet: batch-normalized, or ResNet-50 without normalization.

    python -m experiments.run --config=resnet50 --config.data.dir=TFDS_DIR --workdir=DIR

Data: ImageNet 2012 as TFDS prepares it, in TFDS_DIR.
Hardware: TPUs or GPUs. A batch that exceeds their memory is taken in parts, each normalized by its
own statistics.
Hours: none measured here. Goyal et al. train ResNet-50 in one hour on 256 GPUs at batch 8192.
Accuracy: none measured here, and no published figure is of exactly this recipe. Of a ResNet-50
there are those of Brock et al. 2021b, arXiv:2102.06171, table 3:

    configuration   top-1 (%)   top-5 (%)   step on a TPUv3 (ms)   step on a V100 (ms)
    resnet50        78.6        94.3          41.6                   35.3

Recipe: Goyal et al. 2017, arXiv:1706.02677, section 5.1, with the cosine schedule and the label
smoothing of He et al. 2019, arXiv:1812.01187, section 5, and without a moving average: so does
``nfnets/experiment.py`` of deepmind-research. SkipInit, Fixup and the unnormalized network have the
recipe of the batch-normalized ones, to be compared with them. Crops are those of the NFNets'
authors, who trained ResNets beside them.
"""

from ml_collections import ConfigDict

from nfnets_jax.training import recipes

VARIANTS = (
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet200",
    "resnet50d",
    "seresnet50",
    "seresnext26d_32x4d",
    "seresnext50_32x4d",
    "seresnext50d_32x4d",
    "seresnext101d_32x8d",
    "skipinit_resnet50",
    "fixup_resnet50",
    "unnormalized_resnet50",
)
BATCH_SIZE, EPOCHS, WARMUP_EPOCHS = 1024, 90, 5


def get_config(name: str = "resnet50") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    return recipes.complete(
        {
            "model": {
                "name": name,
                "dropout_rate": 0.0,
                "stochastic_depth_rate": 0.0,
                "remat": "none",
                "sync_axis": "",
            },
            "data": {
                "name": "tfds:imagenet2012",
                "image_size": 224,
                "test_image_size": 224,
                "test_margin": 32,
                "test_crop": "padded",
                "crop": "distorted",
                "flip": True,
            },
            "batch_size": BATCH_SIZE,
            "num_steps": EPOCHS * recipes.IMAGENET_IMAGES // BATCH_SIZE,
            "precision": "bfloat16",
            "label_smoothing": 0.1,
            "ema_decay": 0.0,
            "optimizer": {
                "name": "sgd",
                "schedule": "cosine",
                "base_learning_rate": 0.1,
                "warmup_fraction": WARMUP_EPOCHS / EPOCHS,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "clipping": 0.0,
            },
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )

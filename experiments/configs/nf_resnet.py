"""NF-ResNet-50 to 600 on ImageNet, trained as their paper trains them, without clipping.

    python -m experiments.run --config=nf_resnet50 --config.data.dir=TFDS_DIR --workdir=DIR

Data: ImageNet 2012 as TFDS prepares it, in TFDS_DIR.
Hardware: TPUs or GPUs. A batch that exceeds their memory is taken in parts.
Hours: none measured here, and none of the paper's at hand.
Accuracy: none measured here, and none of the paper's at hand.

Recipe: that of the authors' code for ResNets, ``nfnets/experiment.py`` of deepmind-research, which
has no moving average. Dropout of 0.25 and a weight decay of 5e-5 are not in it; they have not been
verified with the text of Brock et al. 2021a, arXiv:2101.08692, section 5 and appendix.
"""

from ml_collections import ConfigDict

from nfnets_jax.training import recipes

VARIANTS = (
    "nf_resnet50",
    "nf_resnet101",
    "nf_resnet152",
    "nf_resnet200",
    "nf_resnet288",
    "nf_resnet600",
)
BATCH_SIZE, EPOCHS, WARMUP_EPOCHS = 1024, 90, 5


def get_config(name: str = "nf_resnet50") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    return recipes.complete(
        {
            "model": {
                "name": name,
                "dropout_rate": 0.25,
                "stochastic_depth_rate": 0.1,
                "remat": "none",
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
                "weight_decay": 5e-5,
                "clipping": 0.0,
            },
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )

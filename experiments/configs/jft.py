"""NFNets pre-trained on billions of images, then fine-tuned on ImageNet.

    python -m experiments.run --config=jft_nfnet_f3 --config.data.dir=PHOTOS --workdir=DIR

``--config=jft_nfnet_f3_finetune --config.init.weights=DIR`` then fine-tunes the run on ImageNet.

Data: PHOTOS, yours, with one folder of images a class, or any other ``data.name``. The paper's,
JFT-4B, about 4 billion images of 30,000 classes, is not public. ``--config.num_steps`` is the
number of images, times the epochs, over 4096; by default it is one epoch of JFT-4B. For
fine-tuning, ImageNet 2012 as TFDS prepares it.
Hardware: the paper's are TPUv4. A batch that exceeds the devices' memory is taken in parts.
Hours: none measured here. The paper estimates 110,000 core hours of TPUv4 for F7+ and 8 epochs, and
1600 to fine-tune it.
Accuracy: none measured here. The paper's F7+ has 90.3% top-1 on ImageNet after 8 epochs of JFT-4B,
and 90.4% if it is fine-tuned with four augmentations of each image, for a quarter of the epochs.

Recipe: Smith et al. 2023, "ConvNets Match Vision Transformers at Scale", arXiv:2310.16764. It
refers to Brock et al. 2021b, arXiv:2102.06171, for the rest: appendices A.1 and A.5 (in
pre-training a weight decay of 1e-6, crops and mirror images alone, no moving average). Neither says
whether NFNets drop anything in pre-training; here they do not, as section 6.2 supposes that
regularization is harmful there. Nor is their warm-up given; here it is that of A.5's ResNets. A
peak learning rate of 1.6 was best for few epochs. It was tuned in factors of 2 for each of 0.25 to
8 epochs, and falls as the epochs rise, sooner for large networks;
``--config.optimizer.base_learning_rate=0.05`` halves it.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nfnets_jax.training import recipes


class Variant(NamedTuple):
    """The network, and whether it is fine-tuned on ImageNet."""

    model: str
    finetunes: bool


# The paper's networks.
_NFNETS = ("f0", "f1", "f3", "f3_plus", "f7", "f7_plus")
VARIANTS = {
    f"jft_nfnet_{name}{suffix}": Variant(f"nfnet_{name}", bool(suffix))
    for suffix in ("", "_finetune")
    for name in _NFNETS
}
BATCH_SIZE, IMAGES, HELD_OUT = 4096, 4_000_000_000, 130_000
FINETUNING_BATCH_SIZE, FINETUNING_EPOCHS = 2048, 50
WARMUP_STEPS = 5000


def get_config(name: str = "jft_nfnet_f0") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    variant = VARIANTS[name]
    return recipes.complete(_finetuning(variant) if variant.finetunes else _pretraining(variant))


def _pretraining(variant: Variant) -> dict[str, Any]:
    num_steps = IMAGES // BATCH_SIZE
    return {
        "model": {
            "name": variant.model,
            "dropout_rate": 0.0,
            "stochastic_depth_rate": 0.0,
            "remat": "none",
        },
        "data": {
            "name": "folder",
            "holdout": HELD_OUT,
            "image_size": 224,
            "test_image_size": 256,
            "test_margin": 32,
            "test_crop": "squash",
            "crop": "distorted",
            "flip": True,
        },
        "batch_size": BATCH_SIZE,
        "num_steps": num_steps,
        "precision": "bfloat16",
        "label_smoothing": 0.1,
        "ema_decay": 0.0,
        "optimizer": {
            "name": "sgd",
            "schedule": "cosine",
            "base_learning_rate": 1.6 * 256 / BATCH_SIZE,
            "warmup_fraction": WARMUP_STEPS / num_steps,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-6,
            "clipping": 0.01,
            "clipping_eps": 1e-3,
        },
        "eval_every": 10_000,
        "checkpoint_every": 1000,
    }


def _finetuning(variant: Variant) -> dict[str, Any]:
    num_steps = FINETUNING_EPOCHS * recipes.IMAGENET_IMAGES // FINETUNING_BATCH_SIZE
    return {
        "model": {
            "name": variant.model,
            "dropout_rate": 0.25,
            "stochastic_depth_rate": 0.1,
            "remat": "none",
        },
        # Give the run of pre-training in place of it.
        "init": {"weights": "PRETRAINED_RUN", "new_classifier": True},
        "data": {
            "name": "tfds:imagenet2012",
            # In as many steps, so that an image is read for a quarter of the epochs.
            "repeats": 4,
            "image_size": 384,
            "test_image_size": 480,
            "test_margin": 32,
            "test_crop": "squash",
            "crop": "distorted",
            "flip": True,
        },
        "batch_size": FINETUNING_BATCH_SIZE,
        "num_steps": num_steps,
        "precision": "bfloat16",
        "label_smoothing": 0.1,
        "ema_decay": 0.9999,
        "optimizer": {
            "name": "sgd",
            "schedule": "cosine",
            "base_learning_rate": 0.1 * 256 / FINETUNING_BATCH_SIZE,
            "warmup_fraction": WARMUP_STEPS / num_steps,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-5,
            "clipping": 0.01,
            "clipping_eps": 1e-3,
            "sam_rho": 0.05,
            "sam_fraction": 0.2,
            "sam_ascent": "replica",
        },
        "eval_every": 1000,
        "checkpoint_every": 1000,
    }

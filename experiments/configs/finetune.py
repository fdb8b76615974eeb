"""Fine-tunes a pretrained network on your photographs: a few of them, or as the paper does.

    python -m experiments.run --config=finetune --config.data.dir=PHOTOS --workdir=DIR

``finetune`` is for small data, from NFNet-F0 trained on ImageNet. ``finetune_paper`` is for data of
ImageNet's size, from NFNet-F4, and ``finetune_paper_nf_resnet50`` has the paper's values for
NF-ResNets, of which no parameters were published.

``--config.init.weights=FILE_OR_RUN`` starts from other parameters than the published ones,
``--config.optimizer.layer_decay=0.8`` lowers the learning rate layer by layer, and 0 trains the
classifier alone. ``--config.optimizer.sam_rho=0.05`` adds sharpness-aware minimization.

Data: PHOTOS, with one folder of images a class; ``--config.data.test_dir=MORE`` adds test images.
Hardware: a GPU, or CPUs with patience; for the paper's, TPUs or GPUs.
Hours: none measured here; they depend on the photographs.
Accuracy: none measured here. docs/studies/finetune compares ways to fine-tune, on a small network.
The paper's are of parameters pre-trained on JFT-300M, which is not public: 89.2% top-1 on ImageNet
for F4 and F4+, and 79.5% to 81.1% for NF-ResNet-50 at 224 to 384 pixels.

Recipe: that of ``finetune`` is this project's: the optimizer of NFNets, Brock et al. 2021b,
arXiv:2102.06171, section 6.1, at a tenth of the learning rate. The others are their section 6.2 and
appendix A.5, whose learning rate of 0.1 does not scale with the batch. AGC and label smoothing are
those of training, as the paper has no others.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from nfnets_jax.training import recipes


class Variant(NamedTuple):
    """The values that differ between the variants; sizes are in pixels."""

    model: str
    train_size: int
    test_size: int
    dropout_rate: float
    stochastic_depth_rate: float
    batch_size: int
    num_steps: int
    warmup_steps: int
    learning_rate: float  # at the peak
    ema_decay: float
    weight_decay: float
    clipping: float
    sam_rho: float = 0.0
    sam_fraction: float = 1.0
    test_crop: str = "squash"


_PAPER = Variant(
    model="nfnet_f4",
    train_size=384,
    test_size=512,
    dropout_rate=0.25,
    stochastic_depth_rate=0.1,
    batch_size=2048,
    num_steps=15_000,
    warmup_steps=5000,
    learning_rate=0.1,
    ema_decay=0.9999,
    weight_decay=1e-5,
    clipping=0.01,
    sam_rho=0.05,
    sam_fraction=0.2,
)
VARIANTS = {
    "finetune": Variant(
        model="nfnet_f0",
        train_size=192,
        test_size=256,
        dropout_rate=0.2,
        stochastic_depth_rate=0.25,
        batch_size=128,
        num_steps=5000,
        warmup_steps=500,
        learning_rate=0.005,
        ema_decay=0.999,
        weight_decay=2e-5,
        clipping=0.01,
    ),
    "finetune_paper": _PAPER,
    "finetune_paper_nf_resnet50": _PAPER._replace(
        model="nf_resnet50",
        train_size=224,
        test_size=224,
        dropout_rate=0.0,
        stochastic_depth_rate=0.0,
        weight_decay=0.0,
        clipping=0.0,
        sam_rho=0.0,
        sam_fraction=1.0,
        test_crop="padded",
    ),
}


def get_config(name: str = "finetune") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    variant = VARIANTS[name]
    return recipes.complete(
        {
            "model": {
                "name": variant.model,
                "dropout_rate": variant.dropout_rate,
                "stochastic_depth_rate": variant.stochastic_depth_rate,
                "remat": "none",
            },
            "init": {"weights": "published", "new_classifier": True},
            "data": {
                "name": "folder",
                "image_size": variant.train_size,
                "test_image_size": variant.test_size,
                "test_margin": 32,
                "test_crop": variant.test_crop,
                "crop": "distorted",
                "flip": True,
            },
            "batch_size": variant.batch_size,
            "num_steps": variant.num_steps,
            "precision": "bfloat16",
            "label_smoothing": 0.1,
            "ema_decay": variant.ema_decay,
            "optimizer": {
                "name": "sgd",
                "schedule": "cosine",
                "base_learning_rate": variant.learning_rate * 256 / variant.batch_size,
                "warmup_fraction": variant.warmup_steps / variant.num_steps,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": variant.weight_decay,
                "clipping": variant.clipping,
                "layer_decay": 1.0,
                "sam_rho": variant.sam_rho,
                "sam_fraction": variant.sam_fraction,
                "sam_ascent": "replica",
            },
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )

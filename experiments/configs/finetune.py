"""Fine-tunes NFNet-F0, trained on ImageNet, on your photographs.

    python -m experiments.run --config=finetune --config.data.dir=PHOTOS --workdir=DIR

``--config.init.weights=FILE_OR_RUN`` starts from other parameters than the published ones,
``--config.optimizer.layer_decay=0.8`` lowers the learning rate layer by layer, and 0 trains the
classifier alone. ``--config.optimizer.sam_rho=0.05`` adds sharpness-aware minimization.

Data: PHOTOS, with one folder of images a class; ``--config.data.test_dir=MORE`` adds test images.
Hardware: a GPU, or CPUs with patience.
Hours: none measured here; they depend on the photographs.
Accuracy: none measured here. docs/studies/finetune compares ways to fine-tune, on a small network.

Recipe: this project's. The optimizer is that of NFNets, Brock et al. 2021b, arXiv:2102.06171,
section 6.1, at a tenth of the learning rate.
"""

from ml_collections import ConfigDict

from nfnets_jax.training import recipes

VARIANTS = {"finetune": "nfnet_f0"}  # Networks by configuration.


def get_config(name: str = "finetune") -> ConfigDict:
    """Returns the configuration of ``VARIANTS`` with this name."""
    return recipes.complete(
        {
            "model": {
                "name": VARIANTS[name],
                "dropout_rate": 0.2,
                "stochastic_depth_rate": 0.25,
                "remat": "none",
            },
            "init": {"weights": "published", "new_classifier": True},
            "data": {
                "name": "folder",
                "image_size": 192,
                "test_image_size": 256,
                "test_margin": 32,
                "test_crop": "squash",
                "crop": "distorted",
                "flip": True,
            },
            "batch_size": 128,
            "num_steps": 5000,
            "precision": "bfloat16",
            "label_smoothing": 0.1,
            "ema_decay": 0.999,
            "optimizer": {
                "name": "sgd",
                "schedule": "cosine",
                "base_learning_rate": 0.01,
                "warmup_fraction": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 2e-5,
                "clipping": 0.01,
                "layer_decay": 1.0,
                "sam_rho": 0.0,
            },
            "eval_every": 1000,
            "checkpoint_every": 1000,
        }
    )

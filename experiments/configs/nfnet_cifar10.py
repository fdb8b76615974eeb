"""CIFAR-10: ``python -m experiments.run --config=nfnet_cifar10 --config.data.dir=TFDS_DIR``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """A plain normalizer-free network for eight epochs.

    Kernels are moved by Muon; it needs no clipping, as its steps have one length. Shifts,
    mirror images and label smoothing are those of Jordan 2024, arXiv:2404.00498, section 3;
    momentum, schedule and rate suit Muon, and the rate was chosen on held-out images.
    """
    config = recipes.small_images("nf_convnet", "tfds:cifar10", size=32)
    config.model = {
        "name": "nf_convnet",
        "dropout_rate": 0.0,
        "mirror": True,
        "shift": True,
        "round_products": True,
    }
    config.data.padding = 2
    config.data.reflect = True
    config.data.flip = True
    config.augment.name = "alternating_flip"
    config.batch_size = 512
    config.num_steps = 770
    config.cpu_processes = 0
    config.label_smoothing = 0.2
    config.ema_decay = 0.0
    config.optimizer.update(
        {
            "name": "muon",
            "schedule": "linear",
            "base_learning_rate": 0.075,
            "warmup_fraction": 0.02,
            "momentum": 0.6,
            "weight_decay": 0.0,
            "clipping": 0.0,
        }
    )
    config.log_every = 25
    config.look_every = 0
    config.checkpoint_every = 500
    return config

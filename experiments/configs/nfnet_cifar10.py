"""CIFAR-10: ``python -m experiments.run --config=nfnet_cifar10 --config.data.dir=TFDS_DIR``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """A plain normalizer-free network for eight epochs, the first ones on small images."""
    config = recipes.small_images("nf_convnet", "tfds:cifar10", size=28)
    config.model = {"name": "nf_convnet", "dropout_rate": 0.0}
    config.data.test_image_size = 32
    config.data.crop = "cut"
    config.data.early_size = 18
    config.data.early_fraction = 0.7
    config.data.flip = True
    config.batch_size = 64
    config.num_steps = 8 * 50_000 // 64
    config.ema_decay = 0.99
    config.optimizer.update(
        {
            "base_learning_rate": 0.8,
            "warmup_fraction": 0.15,
            "weight_decay": 5e-4,
            "clipping": 0.1,
            "clipping_eps": 0.1,
        }
    )
    config.log_every = 50
    config.look_every = 0
    config.checkpoint_every = 1000
    return config

"""CIFAR-10: ``python -m experiments.run --config=nfnet_cifar10 --config.data.dir=TFDS_DIR``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """A tiny NFNet for 20 epochs."""
    config = recipes.small_images("nfnet_tiny", "tfds:cifar10", size=32)
    config.model.stochastic_depth_rate = 0.1
    config.data.padding = 4
    config.data.flip = True
    config.batch_size = 128
    config.num_steps = 20 * 50_000 // 128
    config.optimizer.base_learning_rate = 0.2
    config.optimizer.warmup_fraction = 0.1
    config.log_every = 50
    config.eval_every = config.checkpoint_every = 1000
    return config

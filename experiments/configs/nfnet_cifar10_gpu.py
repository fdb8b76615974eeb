"""CIFAR-10 on a GPU: ``python -m experiments.run --config=nfnet_cifar10_gpu``."""

from ml_collections import ConfigDict

from experiments.configs import nfnet_cifar10


def get_config() -> ConfigDict:
    """``nfnet_cifar10``, longer and in bfloat16, uncut images. It has not yet run on a GPU."""
    config = nfnet_cifar10.get_config()
    config.data.image_size = 32
    config.data.crop = "pad"
    config.data.padding = 2
    config.batch_size = 512
    config.num_steps = 16 * 50_000 // 512
    config.optimizer.base_learning_rate = 0.025
    config.precision = "bfloat16"
    return config

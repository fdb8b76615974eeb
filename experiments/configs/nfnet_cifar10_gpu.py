"""CIFAR-10 on a GPU: ``python -m experiments.run --config=nfnet_cifar10_gpu``."""

from ml_collections import ConfigDict

from experiments.configs import nfnet_cifar10


def get_config() -> ConfigDict:
    """``nfnet_cifar10``, longer, in bfloat16. Not yet run on a GPU."""
    config = nfnet_cifar10.get_config()
    config.num_steps = 16 * 50_000 // config.batch_size
    config.precision = "bfloat16"
    return config

"""SE-ResNeXt-50-D on ImageNet: ``python -m experiments.run --config=seresnext50d_32x4d``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The usual recipe of batch-normalized networks."""
    return recipes.resnet_imagenet("seresnext50d_32x4d")

"""SE-ResNeXt-101-D on ImageNet: ``python -m experiments.run --config=seresnext101d_32x8d``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The usual recipe of batch-normalized networks."""
    return recipes.resnet_imagenet("seresnext101d_32x8d")

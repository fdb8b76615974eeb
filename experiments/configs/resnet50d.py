"""ResNet-50-D on ImageNet: ``python -m experiments.run --config=resnet50d``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The usual recipe of batch-normalized networks."""
    return recipes.resnet_imagenet("resnet50d")

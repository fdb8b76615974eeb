"""ResNet-50 on ImageNet: ``python -m experiments.run --config=resnet50``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The usual recipe of batch-normalized networks."""
    return recipes.resnet_imagenet("resnet50")

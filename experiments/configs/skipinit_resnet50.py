"""ResNet-50 by SkipInit on ImageNet: ``python -m experiments.run --config=skipinit_resnet50``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The recipe of the batch-normalized networks it is compared with."""
    return recipes.resnet_imagenet("skipinit_resnet50")

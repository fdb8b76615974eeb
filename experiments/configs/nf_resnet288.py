"""NF-ResNet-288 on ImageNet: ``python -m experiments.run --config=nf_resnet288``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return recipes.nf_resnet_imagenet(288)

"""EfficientNet-B0 on ImageNet: ``python -m experiments.run --config=efficientnet_b0``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The paper's recipe, but for what ``recipes.efficientnet_imagenet`` names."""
    return recipes.efficientnet_imagenet(0)

"""NF-RegNet-B6 on ImageNet: ``python -m experiments.run --config=nf_regnet_b6``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return recipes.nf_regnet_imagenet(6)

"""NF-RegNet-B5 on ImageNet: ``python -m experiments.run --config=nf_regnet_b5``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return recipes.nf_regnet_imagenet(5)

"""NFNet-F4 on ImageNet: ``python -m experiments.run --config=nfnet_f4 --workdir=runs/nfnet_f4``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return recipes.nfnet_imagenet(4)

"""NFNet-F2 on ImageNet: ``python -m experiments.run --config=nfnet_f2 --workdir=runs/nfnet_f2``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return recipes.nfnet_imagenet(2)

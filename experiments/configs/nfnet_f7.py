"""NFNet-F7 on ImageNet: ``python -m experiments.run --config=nfnet_f7 --workdir=runs/nfnet_f7``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return recipes.nfnet_imagenet(7)

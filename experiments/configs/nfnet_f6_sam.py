"""F6 with SAM: ``python -m experiments.run --config=nfnet_f6_sam --workdir=runs/nfnet_f6_sam``."""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """The paper's best network: F6 with sharpness-aware minimization."""
    config = recipes.nfnet_imagenet(6)
    config.optimizer.sam_rho = 0.05
    config.optimizer.sam_fraction = 0.2
    return config

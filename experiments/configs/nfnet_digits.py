"""A first try: ``python -m experiments.run --config=nfnet_digits --workdir=runs/nfnet_digits``.

Handwritten digits of 8x8 pixels that come with scikit-learn: about a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """A micro NFNet for 30 epochs or so."""
    config = recipes.small_images("nfnet_micro", "digits", size=8)
    config.data.padding = 1
    config.batch_size = 64
    config.num_steps = 600
    config.optimizer.base_learning_rate = 0.4
    config.optimizer.warmup_fraction = 0.1
    config.log_every = 20
    config.eval_every = config.checkpoint_every = 100
    return config

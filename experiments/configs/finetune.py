"""Fine-tuning: ``python -m experiments.run --config=finetune --config.data.dir=PHOTOS``.

PHOTOS is a folder with one folder of images a class. ``--config.init.weights=FILE_OR_RUN`` starts
from other parameters than the published ones, ``--config.optimizer.layer_decay=0.8`` lets lower
layers learn more slowly, and 0 the classifier alone.
"""

from ml_collections import ConfigDict

from experiments import recipes


def get_config() -> ConfigDict:
    """NFNet-F0 from ImageNet to other photographs."""
    return recipes.finetuning("nfnet_f0")

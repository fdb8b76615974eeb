"""How a recipe becomes a configuration.

A recipe, one of ``experiments/configs`` or your own, gives the fields that matter to it. The others
take the defaults of ``nfnets_jax.training.schema``, which switch something off or leave what is
learned alone.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nfnets_jax.training import schema

IMAGENET_IMAGES = 1_281_167  # Training images of ImageNet (ILSVRC 2012).


def complete(recipe: Mapping[str, Any]) -> ConfigDict:
    """Returns a configuration with every field: those of the recipe, the others at their defaults.

    Args:
      recipe: values by field, groups of fields as nested mappings.

    Raises:
      InputError: the recipe lacks a field without a default, or has one that does not exist.
    """
    return ConfigDict(schema.complete(schema.FIELDS, recipe))


def small_images(model: str, data: str, size: int) -> ConfigDict:
    """Returns a start for recipes on small images: the NFNet paper's optimizer, no augmentation.

    Args:
      model: the network's name.
      data: value of ``data.name``.
      size: side of the images, which are already cut, in pixels.
    """
    return complete(
        {
            "model": {
                "name": model,
                "dropout_rate": 0.0,
                "stochastic_depth_rate": 0.0,
                "remat": "none",
            },
            "data": {"name": data, "image_size": size, "test_image_size": size, "crop": "pad"},
            "batch_size": 256,
            "num_steps": 1000,
            "precision": "float32",
            "label_smoothing": 0.1,
            "ema_decay": 0.99999,
            "optimizer": {
                "name": "sgd",
                "schedule": "cosine",
                "base_learning_rate": 0.1,
                "warmup_fraction": 5 / 360,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 2e-5,
                "clipping": 0.01,
            },
        }
    )

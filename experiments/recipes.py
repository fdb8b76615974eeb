"""All fields of a configuration with their meaning, and how a recipe becomes a configuration.

A recipe, one of ``experiments/configs`` or your own, gives the fields that matter to it. The others
take the defaults below, which switch something off or leave what is learned alone.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nfnets_jax.errors import InputError, nearest

IMAGENET_IMAGES = 1_281_167  # Training images of ImageNet (ILSVRC 2012).

_REQUIRED: Any = object()  # Marks a field without a default: every recipe gives it.

_FIELDS: Mapping[str, Any] = {
    # Names of modules to import before anything is built, such as one that registers a network of
    # your own by nfnets_jax.register_model. On the command line: --config.imports=MODULE, repeated
    # for several.
    "imports": (),
    # The name of the network, one of nfnets_jax.list_models(), and settings that replace its own:
    # arguments of nfnets_jax.create_model. Most networks have:
    #   dropout_rate: share of the pooled features that is dropped.
    #   stochastic_depth_rate: probability of skipping the last block's branch; rises from 0 at the
    #     first block.
    #   remat: "block" or "full" save memory by rematerialization; "none" saves time.
    #   sync_axis: "devices" normalizes batches by their statistics over all devices, "" on each
    #     device alone (batch-normalized networks).
    "model": _REQUIRED,
    "init": {
        "weights": "",  # initial parameters: a file, run or URL, or "published"; "": random
        "new_classifier": False,  # replace the classifier even where the number of classes agrees
    },
    "data": {
        "name": _REQUIRED,  # digits, tfds:NAME, folder or synthetic
        "dir": "",  # tfds:NAME: TFDS's data directory; folder: the folder with one folder a class
        "test_dir": "",  # folder: the same for the test images
        "holdout": 0,  # training images to test on in place of the test images
        "image_size": _REQUIRED,  # side of the training images, pixels
        "test_image_size": _REQUIRED,  # side of the test images, pixels
        "test_margin": 0,  # pixels to crop from a resized test image, both sides together
        "test_crop": "resize",  # resize, then crop the center; "padded": crop, then resize
        "crop": _REQUIRED,  # inception, for photographs; pad, for images that are already cut
        "padding": 0,  # crop pad: largest shift, pixels
        "reflect": False,  # crop pad: fill the edges with reflections, not black
        "flip": False,  # mirror half of the training images, left to right
        "num_workers": 0,  # processes that read images; 0: threads read them
        "max_unreadable": 0.001,  # share of a split's images that may be unreadable
    },
    "augment": {
        "name": "standard",  # or an augmentation that one of imports registers
        "randaugment_layers": 0,  # operations of RandAugment on each image
        "randaugment_magnitude": 0,  # strength of the operations
        "mixup_alpha": 0.0,  # parameter of MixUp's beta distribution; 0: no MixUp
        "cutmix": False,  # with MixUp, pairs of images take turns
    },
    "batch_size": _REQUIRED,  # images a step, over all devices and hosts
    "num_steps": _REQUIRED,
    "seed": 0,
    "precision": _REQUIRED,  # float32, bfloat16; tensorfloat32: float32, less precise products
    "label_smoothing": _REQUIRED,  # share of the label spread over all classes
    "ema_decay": _REQUIRED,  # of the parameters' moving average, a step; 0: no average
    "optimizer": {
        "name": _REQUIRED,  # sgd, rmsprop, or an optimizer that one of imports registers
        "schedule": _REQUIRED,  # after the warm-up: cosine, linear or exponential
        "decay_rate": 0.97,  # schedule exponential: factor of each decay
        "decay_fraction": 0.01,  # schedule exponential: interval of the decays, share of num_steps
        "base_learning_rate": _REQUIRED,  # peak at batch 256; scales linearly with the batch
        "warmup_fraction": _REQUIRED,  # share of num_steps in which the rate rises linearly from 0
        "momentum": _REQUIRED,
        "nesterov": _REQUIRED,
        "weight_decay": _REQUIRED,  # of kernels alone, times the learning rate
        "clipping": _REQUIRED,  # of AGC: largest ratio of gradient to weight norm; 0: no AGC
        "clipping_eps": 1e-3,  # of AGC: smallest weight norm that counts
        "layer_decay": 1.0,  # factor of the rate from a layer to the one below; 0: classifier alone
        "sam_rho": 0.0,  # radius of sharpness-aware minimization; 0: none
        "sam_fraction": 1.0,  # share of the batch whose gradient is the ascent direction of SAM
    },
    # From here on, how a run proceeds.
    "num_devices": 0,  # of each host; 0: all
    "micro_batch_size": 0,  # images a device processes at a time; 0: as many as its memory takes
    "on_divergence": "stop",  # "skip": resume from the last checkpoint without those images
    "log_every": 100,  # steps between lines of the log
    "look_every": 100,  # steps between records of what AGC clips in each layer; 0: none
    "log_images": 0,  # images of the first batch to write to TensorBoard
    "histogram_every": 0,  # steps between histograms of the parameters; 0: none
    "eval_every": 0,  # steps between tests; 0: one at the end
    "checkpoint_every": 0,  # most steps that a killed run loses; 0: one checkpoint, at the end
    "keep_checkpoints": 3,  # newest checkpoints to keep, beside the best
}


def complete(recipe: Mapping[str, Any]) -> ConfigDict:
    """Returns a configuration with every field: those of the recipe, the others at their defaults.

    Args:
      recipe: values by field, groups of fields as nested mappings.

    Raises:
      InputError: the recipe lacks a field without a default, or has one that does not exist.
    """
    return ConfigDict(_complete(_FIELDS, recipe))


def _complete(fields: Mapping[str, Any], recipe: Mapping[str, Any], group: str = "") -> Any:
    for name in recipe:
        if name not in fields:
            raise InputError(f"no field {group + name!r}; {nearest(name, fields)}")
    completed = {}
    for name, default in fields.items():
        if isinstance(default, Mapping):
            completed[name] = _complete(default, recipe.get(name, {}), f"{group}{name}.")
        else:
            completed[name] = recipe.get(name, default)
            if completed[name] is _REQUIRED:
                raise InputError(f"the recipe lacks the field {group + name!r}")
    return completed


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

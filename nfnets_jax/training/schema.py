"""The fields of a configuration: meaning, type, default and the values that each takes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from nfnets_jax.errors import InputError, nearest
from nfnets_jax.ranges import PROBABILITY, SHARE, WORKERS, AutoOr, Range


class _Required:
    """The default of a field that every recipe gives."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      meaning: what it does, with its unit.
      takes: a ``Range`` of numbers, ``AutoOr`` one, a tuple of words, or a type.
      default: ``REQUIRED`` if there is none.
      before: what runs did that were started before there was the field, so that they resume.
    """

    meaning: str
    takes: Range | AutoOr | tuple[str, ...] | type
    default: Any = REQUIRED
    before: Any = REQUIRED

    @property
    def allowed(self) -> str:
        """What it takes, in words."""
        if isinstance(self.takes, tuple):
            return " or ".join(self.takes)
        if isinstance(self.takes, Range | AutoOr):
            return str(self.takes)
        return _TYPES[self.takes]

    def problem(self, value: Any) -> str:
        """Returns what is wrong with a value, empty if nothing is."""
        if isinstance(self.takes, type):
            of_type = (tuple, list) if self.takes is tuple else self.takes
            fits = isinstance(value, of_type)
        else:
            fits = value in self.takes
        return "" if fits else f"is {value!r}; it takes {self.allowed}"


SCHEDULES = ("cosine", "linear", "exponential")
SAM_ASCENTS = ("replica", "batch")

_TYPES = {str: "text", bool: "True or False", tuple: "names", ConfigDict: "settings"}

# More than any machine has, so that a slip of the finger is found before it takes all memory.
_IMAGE = Range(1, 8192, whole=True)
_PIXELS = Range(0, 8192, whole=True)
_STEPS = Range(1, 10**8, whole=True)
_EVERY = Range(0, 10**8, whole=True)
_COUNT = Range(0, 10**4, whole=True)
_POSITIVE = Range(0, 10**6, above=True)

Fields = Mapping[str, "Field | Fields"]

FIELDS: Fields = {
    "imports": Field(
        "modules to import before anything is built, such as one that registers a network; on the "
        "command line --config.imports=MODULE, repeated for several",
        tuple,
        (),
    ),
    "model": Field(
        "name: the network, one of nfnets_jax.list_models(); and settings that replace its own, "
        "arguments of nfnets_jax.create_model, such as dropout_rate, stochastic_depth_rate, remat "
        "(block or full save memory, none saves time), sync_axis (devices normalizes batches over "
        "all devices)",
        ConfigDict,
    ),
    "task": {
        "name": Field(
            "what is learned: classification, or a task that one of imports registers",
            str,
            "classification",
            before="classification",
        ),
        "settings": Field("of a task that takes any", ConfigDict, {}),
    },
    "init": {
        "weights": Field(
            "initial parameters: a file, run, URL or hf://OWNER/NAME, or published", str, ""
        ),
        "new_classifier": Field(
            "replace the classifier even where the number of classes agrees", bool, False
        ),
    },
    "data": {
        "name": Field(
            "digits, tfds:NAME, folder, synthetic, or a name given to nfnets_jax.register_dataset",
            str,
        ),
        "dir": Field("of tfds:NAME its data directory; of folder one folder a class", str, ""),
        "labels": Field(
            "of folder: a file of FILE,CLASS lines; the images in dir are then in no folders of "
            "classes",
            str,
            "",
        ),
        "test_dir": Field("of folder: the same for the test images", str, ""),
        "test_labels": Field("of folder: the same for the images in test_dir", str, ""),
        "holdout": Field(
            "training images to test on in place of the test images",
            Range(0, 10**8, whole=True),
            0,
        ),
        "image_size": Field("side of the training images, pixels", _IMAGE),
        "test_image_size": Field("side of the test images, pixels", _IMAGE),
        "test_margin": Field(
            "pixels to crop from a resized test image, both sides together", _PIXELS, 0
        ),
        "test_crop": Field(
            "resize the shorter side, then crop the center; squash: resize both sides, then crop; "
            "padded: crop, then resize",
            ("resize", "squash", "padded"),
            "resize",
        ),
        "crop": Field(
            "distorted, as TensorFlow draws it, or inception, for photographs; pad, for images "
            "that are already cut",
            ("distorted", "inception", "pad"),
            "distorted",
        ),
        "padding": Field("of crop pad: largest shift, pixels", _PIXELS, 0),
        "reflect": Field("of crop pad: fill the edges with reflections, not black", bool, False),
        "flip": Field("mirror half of the training images, left to right", bool, False),
        "repeats": Field(
            "how often an image appears in a batch, each time with another augmentation",
            Range(1, 1024, whole=True),
            1,
            before=1,
        ),
        "on_device": Field(
            "hold the training images in the devices' memory and shift and flip them there; auto: "
            "on accelerators, where images and augmentation permit it",
            ("auto", "yes", "no"),
            "auto",
        ),
        "num_workers": Field(
            "processes that read images; 0: threads read them; auto: threads for images in "
            "memory and for decoding on a GPU, else a process for each core but one",
            WORKERS,
            "auto",
        ),
        "max_pixels": Field(
            "of an image file; larger ones count as unreadable, before memory is taken",
            Range(1, 10**10, whole=True),
            10**8,
        ),
        "decoder": Field(
            "of JPEGs: auto, libjpeg-turbo; nvimgcodec, on a GPU if there is one",
            ("auto", "nvimgcodec"),
            "auto",
        ),
        "upright": Field("turn photographs as the camera noted in EXIF", bool, False),
        "max_unreadable": Field("share of a split's images that may be unreadable", SHARE, 0.001),
    },
    "augment": {
        "name": Field(
            "standard, or an augmentation that one of imports registers", str, "standard"
        ),
        "randaugment_layers": Field(
            "operations of RandAugment on each image", Range(0, 100, whole=True), 0
        ),
        "randaugment_magnitude": Field("strength of the operations", Range(0, 100, whole=True), 0),
        "mixup_alpha": Field(
            "parameter of MixUp's beta distribution; 0: no MixUp", Range(0, 1000), 0.0
        ),
        "cutmix": Field("with MixUp, pairs of images take turns", bool, False),
        "mixtures_per_pair": Field(
            "of two images that are mixed: 1, as published; 2 reads half as many images",
            Range(1, 2, whole=True),
            1,
            before=2,
        ),
        "on_device": Field(
            "the device mixes and RandAugments the images, not the host; auto: if it is an "
            "accelerator",
            ("auto", "yes", "no"),
            "auto",
        ),
    },
    "batch_size": Field("images a step, over all devices and hosts", Range(1, 2**20, whole=True)),
    "num_steps": Field("steps of the run", _STEPS),
    "seed": Field(
        "of initial parameters, order of images and augmentation",
        Range(0, 2**32 - 1, whole=True),
        0,
    ),
    "precision": Field(
        "of the computation; tensorfloat32: float32, less precise products on accelerators",
        ("float32", "bfloat16", "tensorfloat32"),
    ),
    "label_smoothing": Field("share of the label spread over all classes", PROBABILITY),
    "ema_decay": Field("of the parameters' moving average, a step; 0: no average", PROBABILITY),
    "ema_statistics": Field(
        "whether the running statistics of batch normalization are averaged like the parameters",
        bool,
        False,
        before=False,
    ),
    "optimizer": {
        "name": Field("sgd, rmsprop, or an optimizer that one of imports registers", str),
        "schedule": Field("after the warm-up: cosine, linear or exponential", SCHEDULES),
        "decay_rate": Field(
            "of schedule exponential: factor of each decay", Range(0, 1, above=True), 0.97
        ),
        "decay_fraction": Field(
            "of schedule exponential: interval of the decays, share of num_steps",
            Range(0, 1, above=True),
            0.01,
        ),
        "decay_in_warmup": Field(
            "of schedule exponential: whether the intervals count from step 0, and not from the "
            "end of the warm-up",
            bool,
            False,
            before=False,
        ),
        "final_learning_rate": Field(
            "of schedules cosine and linear: rate that they end at; does not scale with the batch",
            Range(0, 10**6),
            0.0,
            before=0.0,
        ),
        "base_learning_rate": Field("peak at batch 256; scales linearly with the batch", _POSITIVE),
        "warmup_fraction": Field(
            "share of num_steps in which the rate rises linearly from 0", PROBABILITY
        ),
        "momentum": Field("decay of the accumulated gradient, a step", PROBABILITY),
        "nesterov": Field("whether the step looks ahead by one more momentum", bool),
        "weight_decay": Field(
            "of kernels, and with decay_biases of biases, times the learning rate", Range(0, 10)
        ),
        "decay_biases": Field(
            "whether biases decay too; gains, and scales and offsets of normalization, never do",
            bool,
            False,
            before=False,
        ),
        "clipping": Field(
            "of AGC: largest ratio of gradient to weight norm; 0: no AGC", Range(0, 10**6)
        ),
        "clipping_eps": Field("of AGC: smallest weight norm that counts", Range(0, 10**6), 1e-3),
        "layer_decay": Field(
            "factor of the rate from a layer to the one below; 0: classifier alone", SHARE, 1.0
        ),
        "sam_rho": Field("radius of sharpness-aware minimization; 0: none", Range(0, 10**6), 0.0),
        "sam_fraction": Field(
            "share of the images whose gradient is the ascent direction of SAM",
            Range(0, 1, above=True),
            1.0,
        ),
        "sam_ascent": Field(
            "what ascends together in SAM: replica, the images that a device processes at a time; "
            "batch, all images",
            SAM_ASCENTS,
            "replica",
            before="batch",
        ),
    },
    "num_devices": Field("of each host; 0: all", _COUNT, 0),
    "micro_batch_size": Field(
        "images a device processes at a time; 0: as many as its memory takes",
        Range(0, 2**20, whole=True),
        0,
    ),
    "on_divergence": Field(
        "skip: resume from the last checkpoint without those images", ("stop", "skip"), "stop"
    ),
    "log_every": Field("steps between lines of the log", _STEPS, 100),
    "look_every": Field(
        "steps between records of what AGC clips in each layer; 0: none", _EVERY, 100
    ),
    "wandb": Field("project of Weights & Biases that gets the figures too; empty: none", str, ""),
    "log_images": Field("images of the first batch to write to TensorBoard; 0: none", _COUNT, 0),
    "histogram_every": Field("steps between histograms of the parameters; 0: none", _EVERY, 0),
    "eval_every": Field("steps between tests; 0: one at the end", _EVERY, 0),
    "checkpoint_every": Field(
        "most steps that a killed run loses; 0: one checkpoint, at the end", _EVERY, 0
    ),
    "keep_checkpoints": Field(
        "newest checkpoints to keep, beside the best", Range(1, 10**4, whole=True), 3
    ),
}


def walk(fields: Fields = FIELDS, group: str = "") -> Iterator[tuple[str, Field]]:
    """Yields each field with its name, ``group.field``, in order."""
    for name, field in fields.items():
        if isinstance(field, Field):
            yield group + name, field
        else:
            yield from walk(field, f"{group}{name}.")


def problems(config: ConfigDict) -> list[str]:
    """Returns a phrase for each field that is missing or has a value that it does not take.

    Args:
      config: a configuration; fields of which nothing is known here are left alone.
    """
    found = []
    for name, field in walk():
        value = _value(config, name)
        problem = "is missing" if value is REQUIRED else field.problem(value)
        if problem:
            found.append(f"{name} {problem}")
    return found


def values_before() -> dict[str, Any]:
    """Returns, by the names of later fields, what runs did before there were such fields."""
    return {name: field.before for name, field in walk() if field.before is not REQUIRED}


def _value(config: ConfigDict, name: str) -> Any:
    """Returns the value of a field, ``REQUIRED`` if the configuration lacks it."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part, REQUIRED)
        if value is REQUIRED:
            break
    return value


def complete(fields: Fields, recipe: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Returns a recipe's values and the defaults of the fields that it does not give.

    Args:
      fields: ``FIELDS``, or a group of them.
      recipe: values by field, groups of fields as nested mappings.
      group: name of the group, with a dot.

    Raises:
      InputError: the recipe lacks a field without a default, or has one that does not exist.
    """
    for name in recipe:
        if name not in fields:
            raise InputError(f"no field {group + name!r}; {nearest(name, fields)}")
    completed = {}
    for name, field in fields.items():
        if isinstance(field, Field):
            completed[name] = recipe.get(name, field.default)
            if completed[name] is REQUIRED:
                raise InputError(f"the recipe lacks the field {group + name!r}")
        else:
            completed[name] = complete(field, recipe.get(name, {}), f"{group}{name}.")
    return completed


def explain(config: ConfigDict | None = None) -> str:
    """Returns all fields in lines to read.

    Args:
      config: a configuration whose values are shown; None shows the defaults.
    """
    lines = []
    for name, field in walk():
        value = field.default if config is None else _value(config, name)
        if isinstance(value, ConfigDict):
            value = ", ".join(f"{key}={entry}" for key, entry in value.items())
        takes = "" if field.takes is ConfigDict else f" ({field.allowed})"
        has_default = field.default is not REQUIRED and field.takes is not ConfigDict
        changed = config is not None and has_default and value != field.default
        default = f" [default {field.default}]" if changed else ""
        lines.append(f"{name} = {value}{default}\n    {field.meaning}{takes}")
    return "\n".join(lines)


def as_markdown() -> str:
    """Returns the table of all fields for the documentation."""
    lines = ["| field | default | takes | meaning |", "| --- | --- | --- | --- |"]
    for name, field in walk():
        default = "" if field.default is REQUIRED else f"`{field.default!r}`"
        lines.append(f"| `{name}` | {default} | {field.allowed} | {field.meaning} |")
    return "\n".join(lines)

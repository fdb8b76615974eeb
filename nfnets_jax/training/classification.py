"""Classification: one label an image, cross-entropy, top-1 and top-5."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from nfnets_jax.data import pipeline
from nfnets_jax.data.augmentation import Augmentation, find_augmentation
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.sources import Dataset, open_dataset
from nfnets_jax.data.transforms import CenterCrop
from nfnets_jax.devices import AXIS, DeviceBatch
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model, create_model
from nfnets_jax.training import finetuning, objective
from nfnets_jax.training.task import (
    MeanMeter,
    Metrics,
    Outputs,
    Score,
    hold_out_and_check,
    reading_of,
    register_task,
)


class Classification:
    """The task of telling apart classes of images; its methods are those of ``Task``.

    A batch holds ``image`` ``[N, H, W, C]`` uint8 and ``label`` ``[N]``. A batch of mixed images
    also holds ``other_label`` and ``share``, the weight of ``label``.
    """

    score = Score("top1", "top-1")

    def create_model(self, config: ConfigDict, num_classes: int) -> Model:
        """Creates the network that ``config.model`` names."""
        return create_model(**config.model, num_classes=num_classes, precision=config.precision)

    def open_dataset(self, config: ConfigDict) -> Dataset:
        """Opens the dataset that ``config.data`` names."""
        data = config.data
        dataset = open_dataset(
            data.name,
            data.dir,
            data.test_dir,
            data.image_size,
            labels=data.labels,
            test_labels=data.test_labels,
        )
        return hold_out_and_check(dataset, config)

    def train_batches(
        self, config: ConfigDict, dataset: Dataset, devices: Sequence[jax.Device]
    ) -> pipeline.Batches:
        """Returns this host's parts of the batches of augmented images."""
        return pipeline.train_batches(
            dataset.train,
            _create_augmentation(config, dataset, devices),
            config.batch_size,
            config.seed,
            repeats=config.data.repeats,
            **_share(config),
        )

    def test_batches(self, config: ConfigDict, dataset: Dataset) -> pipeline.Batches | None:
        """Returns this host's parts of the batches of cropped images."""
        data = config.data
        if not dataset.test:
            return None
        crop = CenterCrop(data.test_image_size, data.test_margin, data.test_crop)
        return pipeline.eval_batches(
            dataset.test, crop, dataset.channels, config.batch_size, **_share(config)
        )

    def load_initial_weights(
        self, config: ConfigDict, dataset: Dataset, model: Model
    ) -> finetuning.Pretrained:
        """Loads all that fits, but a classifier of other classes."""
        return finetuning.load_initial_weights(config, dataset, model)

    def losses(self, outputs: Outputs, batch: DeviceBatch, label_smoothing: float) -> Metrics:
        """Computes ``loss``, with smoothed labels, and ``top1`` of each example."""
        logits = outputs["logits"]
        losses = objective.over_labels(
            lambda labels: objective.cross_entropy(logits, labels, label_smoothing), batch
        )
        correct = objective.over_labels(lambda labels: objective.in_top_k(logits, labels, 1), batch)
        return {"loss": losses, "top1": correct}

    def evaluate(self, outputs: Outputs, batch: DeviceBatch) -> Metrics:
        """Sums ``loss``, without label smoothing, ``top1``, ``top5`` and ``examples``."""
        logits, labels = outputs["logits"], batch["label"]
        metrics = {
            "loss": objective.cross_entropy(logits, labels),
            "top1": objective.in_top_k(logits, labels, 1),
            "top5": objective.in_top_k(logits, labels, 5),
            "examples": jnp.ones(len(labels)),
        }
        sums = {name: jnp.sum(values * batch["mask"]) for name, values in metrics.items()}
        return lax.psum(sums, AXIS)

    def meter(self, dataset: Dataset) -> MeanMeter:
        """Makes the means of the sums."""
        del dataset
        return MeanMeter()


CLASSIFICATION = Classification()
register_task("classification", CLASSIFICATION)


def _share(config: ConfigDict) -> dict[str, Any]:
    """Returns which part of the batches is this host's, and how files are read."""
    return {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "reading": reading_of(config),
    }


def _create_augmentation(
    config: ConfigDict, dataset: Dataset, devices: Sequence[jax.Device]
) -> Augmentation:
    data, augment = config.data, config.augment
    if augment.randaugment_layers and dataset.channels != 3:
        raise InputError(
            f"augment.randaugment_layers is {augment.randaugment_layers}, and the images of "
            f"{data.name} have no colors: they take 0"
        )
    augmentation = find_augmentation(augment.name)(
        size=data.image_size,
        crop=data.crop,
        padding=data.padding,
        reflect=data.reflect,
        flip=data.flip,
        mixing=Mixing(augment.mixup_alpha, augment.cutmix, augment.mixtures_per_pair),
        randaugment_layers=augment.randaugment_layers,
        randaugment_magnitude=augment.randaugment_magnitude,
    )
    left = _augments_on_device(config, augmentation, devices)
    return dataclasses.replace(augmentation, on_device=left)


def _augments_on_device(
    config: ConfigDict, augmentation: Augmentation, devices: Sequence[jax.Device]
) -> bool:
    """Decides whether the devices mix and RandAugment; ``auto`` leaves to the host what cannot be.

    Raises:
      InputError: it is asked for and cannot be.
    """
    wanted, part = config.augment.on_device, config.batch_size // len(devices)
    if wanted == "no" or (wanted == "auto" and devices[0].platform == "cpu"):
        return False
    problem = ""
    if part % augmentation.group_size:
        problem = (
            f"mixes images in groups of {augmentation.group_size}, and each device gets {part} of "
            f"a batch of {config.batch_size}"
        )
    elif type(augmentation).augment is not Augmentation.augment:
        problem = f"cannot do what augmentation {config.augment.name!r} does in place of the usual"
    if problem and wanted == "yes":
        raise InputError(f"augment.on_device is yes, which {problem}; it takes no")
    return not problem

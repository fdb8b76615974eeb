"""What detection and segmentation share: their data, and backbones that are trained already."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from nfnets_jax.data import pipeline
from nfnets_jax.data.sources import Dataset
from nfnets_jax.errors import InputError, nearest
from nfnets_jax.models.registry import Model
from nfnets_jax.training.finetuning import Pretrained, load_backbone_weights
from nfnets_jax.training.task import hold_out_and_check, reading_of

from .coco import open_coco
from .examples import Encode, ObjectTestExamples, ObjectTrainExamples
from .placement import Jitter
from .scenes import open_scenes
from .settings import Settings, read_settings

_DATASETS = ("digit_scenes", "coco")
# Fields of the configuration that do nothing here, and the only value that they take.
_UNUSED = {"augment.mixup_alpha": 0.0, "augment.randaugment_layers": 0, "data.repeats": 1}


class DenseTask:
    """The part of a ``Task`` that does not depend on what is predicted.

    Attributes:
      needs_masks: whether the masks of objects are read.
    """

    needs_masks = False

    def encode(self, settings: Settings) -> Encode:
        """Returns what makes the labels of an image."""
        raise NotImplementedError

    def open_dataset(self, config: ConfigDict) -> Dataset:
        """Opens ``digit_scenes`` or ``coco``.

        Raises:
          InputError: there is no such dataset, it cannot be read, or a field is set that has no
            meaning here.
        """
        data, settings = config.data, read_settings(config)
        _check_unused(config)
        if data.name not in _DATASETS:
            raise InputError(
                f"no dataset {data.name!r} of objects; {nearest(data.name, _DATASETS)}"
            )
        if data.name == "digit_scenes":
            dataset = open_scenes(settings.scenes, data.image_size)
        else:
            dataset = open_coco(
                data.dir,
                data.labels,
                data.test_dir,
                data.test_labels,
                masks=self.needs_masks,
                most=None if self.needs_masks else settings.most_objects,
            )
        return hold_out_and_check(dataset, config)

    def train_batches(
        self, config: ConfigDict, dataset: Dataset, devices: Sequence[jax.Device]
    ) -> pipeline.Batches:
        """Returns this host's parts of the batches of images that are scaled and moved."""
        del devices
        settings, data = read_settings(config), config.data
        scales = (settings.smallest_scale, settings.largest_scale)
        jitter = Jitter(data.image_size, scales, data.flip)
        examples = ObjectTrainExamples(
            dataset.train, jitter, self.encode(settings), config.seed, reading_of(config)
        )
        return pipeline.endless_batches(
            examples, config.batch_size, jax.process_index(), jax.process_count()
        )

    def test_batches(self, config: ConfigDict, dataset: Dataset) -> pipeline.Batches | None:
        """Returns this host's parts of the batches of images that are fitted in the square."""
        if not dataset.test:
            return None
        examples = ObjectTestExamples(
            dataset.test,
            config.data.test_image_size,
            self.encode(read_settings(config)),
            reading_of(config),
        )
        return pipeline.finite_batches(
            examples, config.batch_size, jax.process_index(), jax.process_count()
        )

    def load_initial_weights(
        self, config: ConfigDict, dataset: Dataset, model: Model
    ) -> Pretrained:
        """Loads the weights of the backbone."""
        return load_backbone_weights(config, dataset, model)


def _check_unused(config: ConfigDict) -> None:
    for name, only in _UNUSED.items():
        group, field = name.split(".")
        if config[group][field] != only:
            raise InputError(
                f"{name} is {config[group][field]}; task {config.task.name} takes {only} alone"
            )

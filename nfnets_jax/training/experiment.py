"""An experiment: everything that a configuration names, built and checked before it runs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import ml_collections
import numpy as np
import optax

from nfnets_jax.data import on_device, pipeline
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.reader import Reader
from nfnets_jax.data.resident import ResidentImages, ResidentReader, Stride, obstacle
from nfnets_jax.data.sources import Dataset
from nfnets_jax.devices import AXIS, DeviceBatch, fetch, replicate, transfer
from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.counting import Summary, summarize
from nfnets_jax.models.registry import PRECISIONS, Model
from nfnets_jax.ranges import WORKERS
from nfnets_jax.training import schema
from nfnets_jax.training.finetuning import Pretrained, layer_depths, merge_params
from nfnets_jax.training.recipe import create_optimizer
from nfnets_jax.training.sam import SAM
from nfnets_jax.training.step import TrainState, create_state
from nfnets_jax.training.task import Task, find_task
from nfnets_jax.training.telemetry import ClippingStats

# Bytes of training images that any accelerator has to spare.
_MOST_RESIDENT = 2**31
# Most steps that devices take between two visits of the host.
_LONGEST_STRIDE = 256


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a training run.

    Attributes:
      config: the configuration that they are built from.
      task: what the network learns.
      devices: the devices of all hosts, those of each host together.
      dataset: training and test images.
      model: the network.
      pretrained: weights that replace the initial ones; empty when training from scratch.
      optimizer: the optimizer of the parameters.
      sam: sharpness-aware minimization; None for plain gradients.
      clipping_stats: statistics of the clipping; None for none.
      train_batches: this host's parts of the training batches, without end.
      test_batches: this host's parts of the test batches; None if there are no test images.
      resident: the training images, where the devices hold them; None where the host reads them.
    """

    config: ml_collections.ConfigDict
    task: Task
    devices: list[jax.Device]
    dataset: Dataset
    model: Model
    pretrained: Pretrained
    optimizer: optax.GradientTransformation
    sam: SAM | None
    clipping_stats: ClippingStats | None
    train_batches: pipeline.Batches
    test_batches: pipeline.Batches | None
    resident: ResidentImages | None

    @property
    def description(self) -> str:
        """The experiment in one line."""
        config, dataset, hosts = self.config, self.dataset, jax.process_count()
        test = f"tested on {len(dataset.test)}" if dataset.test else "not tested: no test images"
        return (
            f"{config.model.name} on {len(dataset.train)} images of {len(dataset.class_names)} "
            f"classes ({config.data.name}), {test}; {self._augmenting}"
            f"{len(self.devices)} x {self.devices[0].device_kind}"
            f"{f' on {hosts} hosts' if hosts > 1 else ''}, batch {config.batch_size}"
            f"{', training images in their memory' if self.resident else ''}{self._decoding}"
        )

    @property
    def _augmenting(self) -> str:
        """Where images are mixed and RandAugmented, if they are."""
        augmentation = getattr(self.train_batches.examples, "transform", None)
        if not isinstance(augmentation, Augmentation):
            return ""
        if not augmentation.mixing and not augmentation.randaugment_layers:
            return ""
        return f"augmented on the {'device' if augmentation.on_device else 'host'}; "

    @property
    def _decoding(self) -> str:
        """What decodes JPEGs, if it is not libjpeg-turbo."""
        reading = self.train_batches.examples.reading
        if reading.decoder == "auto":
            return ""
        return f", JPEGs decoded by {reading.decoder} on the {'GPU' if reading.on_gpu else 'CPU'}"

    @property
    def longest_stride(self) -> int:
        """Most steps that the devices take without the host, where they hold the images."""
        return min(_LONGEST_STRIDE, self.config.log_every, self.config.num_steps)

    def summarize_model(self) -> Summary:
        """Counts the parameters and operations of the network's parts."""
        return summarize(self.model, self.config.data.image_size, self.dataset.channels)

    def create_state(self) -> TrainState:
        """Creates the state before the first step, on the default device."""
        size = self.config.data.image_size
        shape = (1, size, size, self.dataset.channels)
        state = create_state(self.model, self.optimizer, shape, self.config.seed)
        params = merge_params(state.params, self.pretrained.params)
        model_state = merge_params(state.model_state, self.pretrained.model_state)
        return state._replace(
            params=params,
            ema_params=params,
            model_state=model_state,
            ema_model_state=model_state if self.config.ema_statistics else None,
        )

    def read(self, batches: pipeline.Batches, start: int, log: Callable[[str], None]) -> Reader:
        """Reads batches ahead and takes them to the devices.

        Args:
          batches: the training or the test batches.
          start: index of the first batch.
          log: called with one line when a worker process is replaced.

        Returns:
          An iterator over ``(unreadable, batch)``: messages about the images that could not be
          read, and the batch as ``devices.transfer`` returns it.
        """

        def prepare(batch: Any) -> tuple[list[str], DeviceBatch]:
            unreadable = batch.pop("unreadable")
            return unreadable.tolist(), transfer(batch, self.devices)

        workers = WORKERS.parse(self.config.data.num_workers)
        return Reader(batches, start, workers, prepare=prepare, warn=log)

    def read_training(self, start: int, log: Callable[[str], None]) -> Reader | ResidentReader:
        """Reads training batches from an index on, as ``read`` does, or in strides of them."""
        if self.resident is None:
            return self.read(self.train_batches, start, log)
        return ResidentReader(self.resident, self.devices, start, self.longest_stride)

    def augmented(self, batch: DeviceBatch | Stride, count: int) -> np.ndarray:
        """Fetches the first images of a batch, or of a stride's first batch, ``[N, H, W, C]``."""
        if not count:
            return np.empty(0)

        def augment(batch: DeviceBatch | Stride) -> jax.Array:
            first = batch.batch(0) if isinstance(batch, Stride) else batch
            return on_device.augment(first)["image"]

        return fetch(jax.pmap(augment, AXIS, devices=self.devices)(batch))[:count]

    def to_devices(self, state: TrainState) -> TrainState:
        """Copies a state to every device, with the parameters of equal blocks stacked."""
        # NumPy stacks at once; on a device, stacking would have to be compiled.
        host_state = jax.tree.map(np.asarray, state)
        return replicate(self.model.stacked(host_state), self.devices)

    def to_host(self, tree: chex.ArrayTree) -> Any:
        """Copies a replicated tree to NumPy arrays, with the parameters of equal blocks unstacked.

        The inverse of ``to_devices``; also takes parts of a state.
        """
        return self.model.unstacked(fetch(tree))


def build_experiment(
    config: ml_collections.ConfigDict,
    devices: list[jax.Device] | None = None,
    dataset: Dataset | None = None,
    policy: Policy | None = None,
) -> Experiment:
    """Builds everything that a configuration names.

    Opens the data and reads pretrained weights, but writes nothing.

    Args:
      config: such as ``experiments/configs`` define them.
      devices: devices to train on in place of this machine's, those of each host together.
      dataset: images to train on in place of those that ``config.data`` names.
      policy: how the network is computed, if not as is best on this machine.

    Raises:
      InputError: a field has a value that it does not take, or data or weights cannot be read.
    """
    _check_fields(config)
    task = find_task(config.task.name)
    devices = devices or _select_devices(config)
    _check_batch(config, len(devices))
    dataset = dataset or task.open_dataset(config)
    model = task.create_model(config, len(dataset.class_names)).with_policy(policy or Policy())
    depths = layer_depths(model, dataset.channels)
    optimizer = create_optimizer(config, model.stacked(depths))
    if config.optimizer.layer_decay == 0:
        model = model.with_frozen_backbone()
    train_batches = task.train_batches(config, dataset, devices)
    return Experiment(
        config=config,
        task=task,
        devices=devices,
        dataset=dataset,
        model=model,
        pretrained=task.load_initial_weights(config, dataset, model),
        optimizer=optimizer,
        sam=_create_sam(config),
        clipping_stats=_create_clipping_stats(config),
        train_batches=train_batches,
        test_batches=task.test_batches(config, dataset),
        resident=_hold_images(config, train_batches, devices),
    )


def _check_fields(config: ml_collections.ConfigDict) -> None:
    """Checks all that can be checked without data and devices; one line names all that is wrong."""
    problems = schema.problems(config)
    try:
        if config.precision in PRECISIONS:
            find_task(config.task.name).create_model(config, num_classes=1)
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError("; ".join(problems))


def _select_devices(config: ml_collections.ConfigDict) -> list[jax.Device]:
    """Returns the devices of all hosts, those of each host together."""
    available, wanted = jax.local_devices(), config.num_devices
    if not 0 <= wanted <= len(available):
        raise InputError(
            f"num_devices is {wanted}, and there are {len(available)} ({available[0].platform}); "
            "0 takes all"
        )
    devices: list[jax.Device] = []
    for process in range(jax.process_count()):
        of_host = [device for device in jax.devices() if device.process_index == process]
        devices += of_host[: wanted or None]
    return devices


def _check_batch(config: ml_collections.ConfigDict, count: int) -> None:
    """Checks that ``count`` devices and the micro-batches divide the batch evenly."""
    if config.batch_size % count:
        nearest = max(1, round(config.batch_size / count)) * count
        raise InputError(
            f"batch_size {config.batch_size} does not divide evenly over {count} devices; the "
            f"nearest that does is {nearest}"
        )
    examples, size = config.batch_size // count, config.micro_batch_size
    if size and examples % size:
        raise InputError(
            f"micro_batch_size {size} does not divide the {examples} images that each device gets "
            f"of a batch of {config.batch_size}"
        )


def _hold_images(
    config: ml_collections.ConfigDict, batches: pipeline.Batches, devices: list[jax.Device]
) -> ResidentImages | None:
    """Decides whether the devices hold the training images."""
    wanted, why_not = config.data.on_device, obstacle(batches)
    if wanted == "yes" and why_not:
        raise InputError(f"data.on_device is yes, but {why_not}: it takes auto or no")
    if wanted == "no" or why_not:
        return None
    images = ResidentImages(batches)
    fits = devices[0].platform != "cpu" and images.bytes <= _MOST_RESIDENT
    return images if wanted == "yes" or fits else None


def _create_sam(config: ml_collections.ConfigDict) -> SAM | None:
    settings = config.optimizer
    if not settings.sam_rho:
        return None
    try:
        return SAM(settings.sam_rho, settings.sam_fraction, settings.sam_ascent == "replica")
    except InputError as error:  # It starts with "rho is" or "fraction is".
        raise InputError(f"optimizer.sam_{error}") from error


def _create_clipping_stats(config: ml_collections.ConfigDict) -> ClippingStats | None:
    settings = config.optimizer
    if not config.look_every or not settings.clipping:
        return None
    return ClippingStats(config.look_every, settings.clipping, settings.clipping_eps)

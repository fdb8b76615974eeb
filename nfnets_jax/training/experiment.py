"""What a configuration asks for, checked before anything is computed or written."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import ml_collections
import numpy as np
import optax

from nfnets_jax.data import pipeline
from nfnets_jax.data.examples import Augmentation, CenterCrop
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.sources import Dataset, open_dataset
from nfnets_jax.errors import InputError
from nfnets_jax.models.counting import Summary, summarize
from nfnets_jax.models.registry import Model, create_model
from nfnets_jax.training.divergence import ANSWERS
from nfnets_jax.training.finetuning import Start, heights, read_start, replaced
from nfnets_jax.training.recipe import create_optimizer
from nfnets_jax.training.sam import SAM
from nfnets_jax.training.step import TrainState, create_state, fetch, replicate
from nfnets_jax.training.telemetry import Look


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration made real and checked; nothing is computed or written yet."""

    config: ml_collections.ConfigDict
    devices: list[jax.Device]
    dataset: Dataset
    model: Model
    start: Start
    optimizer: optax.GradientTransformation
    sam: SAM
    look: Look | None
    train_batches: pipeline.Batches
    test_batches: pipeline.Batches | None

    @property
    def description(self) -> str:
        """The run in a line."""
        test = (
            f"tested on {len(self.dataset.test)}"
            if self.dataset.test
            else "not tested: no test images"
        )
        count = jax.process_count()
        hosts = f" on {count} hosts" if count > 1 else ""
        return (
            f"{self.config.model.name} on {len(self.dataset.train)} images of "
            f"{len(self.dataset.class_names)} classes ({self.config.data.name}), {test}; "
            f"{len(self.devices)} x {self.devices[0].device_kind}{hosts}, batch "
            f"{self.config.batch_size}"
        )

    @property
    def summary(self) -> Summary:
        """What the network is made of."""
        return summarize(self.model, self.config.data.image_size, self.dataset.channels)

    def create_state(self) -> TrainState:
        """What the run starts from."""
        data = self.config.data
        shape = (1, data.image_size, data.image_size, self.dataset.channels)
        state = create_state(self.model, self.optimizer, shape, self.config.seed)
        params = replaced(state.params, self.start.params)
        return state._replace(
            params=params,
            ema_params=params,
            model_state=replaced(state.model_state, self.start.model_state),
        )

    def to_devices(self, state: TrainState) -> TrainState:
        """A copy on every device, its parameters stacked as ``Model.stacked`` has it."""
        # On a device to stack would be code to compile; NumPy does it at once.
        host_state = jax.tree.map(np.asarray, state)
        return replicate(self.model.stacked(host_state), self.devices)

    def to_host(self, tree: chex.ArrayTree) -> Any:
        """What one device has of a replicated tree, in the host's memory, no longer stacked."""
        return self.model.unstacked(fetch(tree))


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Builds what the configuration names.

    Raises:
      InputError: a field has a value that cannot be, or the data are not there or not readable.
    """
    for field in ("batch_size", "num_steps", "log_every", "keep_checkpoints"):
        if config[field] < 1:
            raise InputError(f"{field} is {config[field]}; it takes a number from 1 on")
    if config.on_divergence not in ANSWERS:
        raise InputError(
            f"on_divergence is {config.on_divergence!r}; it takes {' or '.join(ANSWERS)}"
        )
    devices = _devices(config)
    build = functools.partial(create_model, **config.model, precision=config.precision)
    build()  # A wrong name should show before data are looked for.
    data = config.data
    dataset = open_dataset(data.name, data.dir, data.test_dir, data.image_size)
    if data.holdout:
        dataset = dataset.hold_out(data.holdout)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for source in filter(None, (dataset.train, dataset.test)):
        pipeline.check_readable(source)
    if not 0 <= data.early_fraction <= 1:
        raise InputError(f"data.early_fraction is {data.early_fraction}; it takes 0 to 1")
    augment = config.augment
    if augment.randaugment_layers and dataset.channels != 3:
        raise InputError(
            f"augment.randaugment_layers is {augment.randaugment_layers}, and the images of "
            f"{data.name} have no colors: 0 layers are right for them"
        )
    augmentation = Augmentation(
        size=data.image_size,
        crop=data.crop,
        padding=data.padding,
        reflect=data.reflect,
        flip=data.flip,
        alternate=data.flip_alternately,
        mixing=Mixing(augment.mixup_alpha, augment.cutmix),
        layers=augment.randaugment_layers,
        magnitude=augment.randaugment_magnitude,
        mix_first=augment.mix_first,
        early_size=data.early_size,
        early_images=round(data.early_fraction * config.num_steps) * config.batch_size,
    )
    model = build(num_classes=len(dataset.class_names))
    height = heights(model, dataset.channels)
    optimizer = create_optimizer(config, model.stacked(height))
    if config.optimizer.layer_decay == 0:
        model = model.learning({module for module in height if height[module] == 0})
    center = CenterCrop(data.test_image_size, data.test_margin, data.test_crop)
    return Plan(
        config=config,
        devices=devices,
        dataset=dataset,
        model=model,
        start=read_start(config, dataset),
        optimizer=optimizer,
        look=Look(config.look_every, config.optimizer.clipping, config.optimizer.clipping_eps)
        if config.look_every and config.optimizer.clipping
        else None,
        sam=SAM(config.optimizer.sam_rho, config.optimizer.sam_fraction),
        train_batches=pipeline.train_batches(
            dataset.train, augmentation, config.batch_size, config.seed, **processes
        ),
        test_batches=pipeline.eval_batches(
            dataset.test, center, dataset.channels, config.batch_size, **processes
        )
        if dataset.test
        else None,
    )


def _devices(config: ml_collections.ConfigDict) -> list[jax.Device]:
    """The devices of all hosts, each host's together."""
    available, wanted = jax.local_devices(), config.num_devices
    if not 0 <= wanted <= len(available):
        raise InputError(
            f"num_devices is {wanted}, and there are {len(available)} ({available[0].platform}); "
            "0 takes all"
        )
    devices: list[jax.Device] = []
    for process in range(jax.process_count()):
        theirs = [device for device in jax.devices() if device.process_index == process]
        devices += theirs[: wanted or None]
    count = len(devices)
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
    return devices

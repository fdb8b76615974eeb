"""Trains with augmentation on the device: the same on any devices, resumed or not."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import recipes
from nfnets_jax.data import on_device
from nfnets_jax.data.augmentation import Augmentation, register_augmentation
from nfnets_jax.errors import InputError
from nfnets_jax.training import loop, reporting
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.experiment import build_experiment


def tiny(**changes: Any) -> ConfigDict:
    """Four steps of a very small network on mixed and RandAugmented images."""
    config = recipes.small_images("nfnet_micro", "synthetic", size=8)
    config.model.update({"depth": (1,), "width": (16,), "strides": (1,), "group_size": 8})
    config.augment.update({"mixup_alpha": 0.2, "cutmix": True, "on_device": "yes"})
    config.augment.update({"randaugment_layers": 2, "randaugment_magnitude": 5})
    config.update({"num_devices": 1, "batch_size": 16, "num_steps": 4, "log_every": 1})
    config.update({"look_every": 0, "optimizer": {"clipping": 0.0}})
    config.update_from_flattened_dict(changes)
    return config


def images(start: int, index: int, **changes: Any) -> np.ndarray:
    """Returns the augmented images of batch ``index``, of a run that starts at ``start``."""
    experiment = build_experiment(tiny(**changes))
    with contextlib.closing(experiment.read(experiment.train_batches, start, print)) as reader:
        for _ in range(start, index + 1):
            _, batch = next(reader)
    augmented = jax.pmap(on_device.augment, devices=experiment.devices)(batch)
    return np.concatenate(np.asarray(augmented["image"]))


def test_images_are_the_same_on_any_devices_and_resumed() -> None:
    """On one device from the start, on two and eight from the batch on; and by the host."""
    whole = images(0, 2)
    for count in (2, 8):
        np.testing.assert_array_equal(images(2, 2, num_devices=count), whole)
    by_host = images(2, 2, **{"augment.on_device": "no"})
    assert (np.abs(whole.astype(int) - by_host) > 2).mean() < 0.0005


@pytest.mark.slow
def test_a_run_is_the_same_on_one_device_and_resumed_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step is taken on two devices, the others on eight."""
    once = loop.train(tiny(), tmp_path / "once")
    report, signals = reporting.Reporter.train, iter([signal.SIGTERM][:0])

    def report_then_signal(self: reporting.Reporter, step: int, figures: Any) -> None:
        report(self, step, figures)
        os.kill(os.getpid(), next(signals, 0))

    monkeypatch.setattr(reporting.Reporter, "train", report_then_signal)
    for name, first, then in (("same", 1, 1), ("moved", 2, 8)):
        signals = iter([signal.SIGTERM])
        with pytest.raises(loop.Interrupted):
            loop.train(tiny(num_devices=first), tmp_path / name)
        summary = loop.train(tiny(num_devices=then), tmp_path / name)
        assert name == "moved" or summary["params_sha256"] == once["params_sha256"]
    template = jax.eval_shape(build_experiment(tiny()).create_state)
    params = []
    for name in ("once", "moved"):
        with contextlib.closing(Checkpoints(tmp_path / name / "checkpoints", 1)) as saved:
            checkpoint = saved.restore_latest(template, print)
        assert checkpoint is not None
        assert checkpoint.step == 4
        params.append(checkpoint.state.params)
    chex.assert_trees_all_close(*params, atol=1e-5)


class Own(Augmentation):
    def augment(self, images: Any, batch: Any) -> Any:
        return super().augment(images, batch)


def test_what_a_device_cannot_do_is_refused_or_left_to_the_host() -> None:
    register_augmentation("own", Own)
    odd = {"batch_size": 6, "num_devices": 2, "augment.mixtures_per_pair": 2}
    with pytest.raises(InputError, match="on_device is yes, which mixes .* each device gets 3 of"):
        build_experiment(tiny(**odd))
    with pytest.raises(InputError, match="cannot do what augmentation 'own' does"):
        build_experiment(tiny(**{"augment.name": "own"}))
    for changes in ({}, {"augment.on_device": "auto"}, {"augment.on_device": "no"}):
        experiment = build_experiment(tiny(**changes))
        place = "host" if changes else "device"
        assert f"augmented on the {place}" in experiment.description

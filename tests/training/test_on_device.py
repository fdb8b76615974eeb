"""Trains with augmentation on the device: the same on any devices, resumed or not."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import chex
import jax
import pytest
from ml_collections import ConfigDict

from experiments import recipes
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
    config.update({"look_every": 0, "data": {"holdout": 16}})
    config.update_from_flattened_dict(changes)
    return config


def parameters(workdir: Path) -> Any:
    with contextlib.closing(Checkpoints(workdir / "checkpoints", 1)) as saved:
        template = jax.eval_shape(build_experiment(tiny()).create_state)
        checkpoint = saved.restore_latest(template, print)
    assert checkpoint is not None
    assert checkpoint.step == 4
    return checkpoint.state.params


def test_a_run_is_the_same_on_any_devices_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one device it is the same to the bit; on two, then eight, but for rounding."""
    once = loop.train(tiny(), tmp_path / "once")
    report, signals = reporting.Reporter.train, iter(())

    def report_then_signal(self: reporting.Reporter, step: int, figures: Any) -> None:
        report(self, step, figures)
        os.kill(os.getpid(), next(signals, 0))

    monkeypatch.setattr(reporting.Reporter, "train", report_then_signal)
    for name, first, then in (("resumed", 1, 1), ("moved", 2, 8)):
        signals = iter([signal.SIGTERM])
        with pytest.raises(loop.Interrupted):
            loop.train(tiny(num_devices=first), tmp_path / name)
        summary = loop.train(tiny(num_devices=then), tmp_path / name)
        if name == "resumed":
            assert summary["params_sha256"] == once["params_sha256"]
    expected = parameters(tmp_path / "once")
    chex.assert_trees_all_close(parameters(tmp_path / "moved"), expected, atol=1e-4)
    by_host = loop.train(tiny(**{"augment.randaugment_layers": 0}), tmp_path / "other")
    assert by_host["params_sha256"] != once["params_sha256"]


class Own(Augmentation):
    def augment(self, images: Any, batch: Any) -> Any:
        return super().augment(images, batch)


def test_what_a_device_cannot_do_is_refused_or_left_to_the_host() -> None:
    register_augmentation("own", Own)
    odd = {"batch_size": 6, "num_devices": 2}
    with pytest.raises(InputError, match="on_device is yes, which mixes .* each device gets 3 of"):
        build_experiment(tiny(**odd))
    with pytest.raises(InputError, match="cannot do what augmentation 'own' does"):
        build_experiment(tiny(**{"augment.name": "own"}))
    for changes in ({}, {"augment.on_device": "auto"}, {"augment.on_device": "no"}):
        experiment = build_experiment(tiny(**changes))
        place = "host" if changes else "device"
        assert f"augmented on the {place}" in experiment.description

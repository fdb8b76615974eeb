import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import nfnets_jax
from experiments.configs import digits
from nfnets_jax.devices import transfer
from nfnets_jax.errors import InputError
from nfnets_jax.training import loop
from nfnets_jax.training.experiment import Experiment, build_experiment
from nfnets_jax.training.finetuning import layer_depths, layerwise_decay
from nfnets_jax.training.memory import compile_update
from nfnets_jax.weights.pretrained import save_pretrained
from nfnets_jax.weights.published import Tree

SMALL: dict[str, Any] = {
    "width": (32,),
    "depth": (1,),
    "strides": (1,),
    "stem": ((16, 1),),
    "group_size": 16,
}
LINEAR = "NFNet/~/linear"


def configuration(**init: object) -> ConfigDict:
    config = digits.get_config()
    config.update({"num_steps": 2, "batch_size": 16, "num_devices": 1, "look_every": 0})
    config.init.update(init)
    with config.unlocked():
        config.model.update(SMALL)
    return config


def parameters(path: Path, classes: int = 10, channels: int = 1) -> Tree:
    """Draws parameters, writes them to a file and returns them."""
    model = nfnets_jax.create_model("nfnet_micro", classes, **SMALL)
    params, _ = model.init(jax.random.key(7), jnp.zeros((1, 8, 8, channels)))
    params = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.01), params)
    save_pretrained(path, params)
    return params


def test_layers_are_counted_from_the_logits_down() -> None:
    found = layer_depths(nfnets_jax.create_model("nfnet_micro", 10), channels=1)
    assert found == {
        **{module: 0 for module in found if module == LINEAR},
        **{module: 1 for module in found if "final_conv" in module},
        **{module: 2 for module in found if "nf_block_2" in module},
        **{module: 3 for module in found if "nf_block_1" in module},
        **{module: 4 for module in found if "nf_block/" in f"{module}/"},
        **{module: 5 for module in found if "stem_conv0" in module},
    }
    scaled, _ = layerwise_decay(0.5, found).update(
        {module: {"w": jnp.ones(2)} for module in found}, optax.EmptyState(), None
    )
    assert scaled[LINEAR]["w"][0] == 1
    assert scaled["NFNet/~/stem_conv0"]["w"][0] == 1 / 32


def test_a_run_starts_from_what_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "start.safetensors"
    params = parameters(path)
    state = build_experiment(configuration(weights=str(path))).create_state()
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, params)
    assert capsys.readouterr().err == ""
    state = build_experiment(configuration(weights=str(path), new_classifier=True)).create_state()
    assert "a new classifier for 10 classes replaces the one for 10" in capsys.readouterr().err
    assert not state.params[LINEAR]["b"].any()
    assert np.abs(state.params[LINEAR]["w"] - params[LINEAR]["w"]).max() > 0.01
    state.params[LINEAR] = params[LINEAR]
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    parameters(path, classes=3)
    state = build_experiment(configuration(weights=str(path))).create_state()
    assert "a new classifier for 10 classes replaces the one for 3" in capsys.readouterr().err
    assert state.params[LINEAR]["w"].shape[1] == 10


def test_an_unusable_start_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    parameters(tmp_path / "colors.safetensors", channels=3)
    for init, message in (
        ({"weights": "nowhere.npz"}, "nowhere.npz cannot be read"),
        ({"weights": "published"}, "no parameters of nfnet_micro were published"),
        (
            {"weights": str(tmp_path / "colors.safetensors")},
            "is for images of 3 channels, and those of digits have 1",
        ),
    ):
        with pytest.raises(InputError, match=message):
            loop.train(configuration(**init), tmp_path / "run")
    config = configuration()
    config.optimizer.layer_decay = 1.5
    with pytest.raises(InputError, match="layer_decay is 1.5; it takes a number from 0 to 1"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _flops(experiment: Experiment) -> float:
    """Returns the FLOPs of one update, as the compiler counts them."""
    batch: dict[str, np.ndarray] = {
        "image": np.zeros((16, 8, 8, 1), np.uint8),
        "label": np.zeros(16, np.int32),
    }
    state = experiment.to_devices(experiment.create_state())
    update = compile_update(experiment, state, transfer(batch, experiment.devices), print)
    return update.cost_analysis()["flops"]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_frozen_backbone_does_not_move_and_costs_no_gradient(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    params = parameters(path)
    whole, frozen = configuration(weights=str(path)), configuration(weights=str(path))
    frozen.optimizer.layer_decay = 0.0
    assert _flops(build_experiment(frozen)) < 0.5 * _flops(build_experiment(whole))
    loop.train(frozen, tmp_path / "run")
    learned = nfnets_jax.load_pretrained("nfnet_micro", tmp_path / "run", average=False, **SMALL)
    for module, values in params.items():
        for name, value in values.items():
            assert np.array_equal(learned[module][name], value) == (module != LINEAR), module
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["optimizer"]["layer_decay"] == 0

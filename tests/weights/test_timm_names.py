import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.errors import InputError
from nfnets_jax.weights.checking import count_classes, shapes_of
from nfnets_jax.weights.files import write_safetensors
from nfnets_jax.weights.published import Tree
from nfnets_jax.weights.timm_names import from_timm, to_timm
from tests import golden

# A small F0, in the settings of each of the two.
SMALL: dict[str, Any] = {
    "width": (64, 64, 128, 128),
    "depth": (1, 2, 2, 1),
    "stem": ((8, 2), (16, 1), (32, 1), (64, 2)),
    "group_size": 16,
}
TIMM_SMALL: dict[str, Any] = {
    "channels": [64, 64, 128, 128],
    "depths": [1, 2, 2, 1],
    "stem_chs": 64,
    "group_size": 16,
    "num_features": 256,
}


@pytest.fixture(scope="session")
def torch_python() -> str:
    """A Python that has torch and timm."""
    if python := os.environ.get("NFNETS_TORCH_PYTHON"):
        return python
    if any(importlib.util.find_spec(name) is None for name in ("torch", "timm")):
        pytest.skip("no torch and timm: NFNETS_TORCH_PYTHON takes a Python that has them")
    return sys.executable


def golden_parameters(num_classes: int, overrides: dict[str, Any], name: str = "nfnet_f0") -> Tree:
    shapes = shapes_of(nfnets_jax.create_model(name, num_classes, **overrides), channels=3)
    return golden.parameters({m: {n: list(s) for n, s in ps.items()} for m, ps in shapes.items()})


def our_logits(
    params: Tree, images: np.ndarray, overrides: dict[str, Any], name: str = "nfnet_f0"
) -> np.ndarray:
    classes = count_classes(nfnets_jax.create_model(name, **overrides), params)
    model = nfnets_jax.create_model(name, classes, **overrides)
    run = jax.jit(functools.partial(model.apply, is_training=False))
    return np.asarray(run(params, {}, None, jnp.asarray(images))[0]["logits"])


def timm_logits(
    python: str, folder: Path, images: np.ndarray, settings: dict[str, Any], *flags: str
) -> np.ndarray:
    np.save(folder / "images.npy", images)
    settings = {"model": "dm_nfnet_f0", "activation": "gelu_tanh", **settings}
    script = Path(__file__).with_name("run_timm.py")
    paths = (str(folder / name) for name in ("images.npy", "logits.npy"))
    command = [python, str(script), json.dumps(settings), *paths, *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return np.load(folder / "logits.npy")


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3 * expected.std())


def test_there_and_back_changes_nothing() -> None:
    params = golden_parameters(7, SMALL)
    model = nfnets_jax.create_model("nfnet_f0", 7, **SMALL)
    state = to_timm(params, model.config)
    assert state["stages.1.1.conv2b.weight"].shape == (32, 16, 3, 3)
    assert state["stages.2.0.attn_last.fc1.weight"].shape == (64, 128, 1, 1)
    assert state["head.fc.weight"].shape == (7, 256)
    chex.assert_trees_all_close(
        from_timm(state, model.config, shapes_of(model, 3)), params, rtol=1e-6
    )


def test_what_does_not_fit_is_left_for_the_check() -> None:
    params = golden_parameters(7, SMALL)
    model = nfnets_jax.create_model("nfnet_f0", 7, **SMALL)
    state = to_timm(params, model.config)
    state["head.fc.weight"] = state["head.fc.weight"][..., None]
    state["bn.running_mean"] = np.zeros(3)
    del state["final_conv.gain"]
    tree = from_timm(state, model.config, shapes_of(model, 3))
    assert tree["bn"]["running_mean"].shape == (3,)
    assert set(tree["NFNet/~/linear"]) == {"b"}
    assert set(tree["NFNet/~/final_conv"]) == {"w", "bias"}


def test_timm_computes_our_logits(torch_python: str, tmp_path: Path) -> None:
    params, images = golden_parameters(7, SMALL), golden.images(2, 96)
    model = nfnets_jax.create_model("nfnet_f0", 7, **SMALL)
    write_safetensors(tmp_path / "timm.safetensors", to_timm(params, model.config))
    run = functools.partial(timm_logits, torch_python, tmp_path, images)
    load = f"--load={tmp_path / 'timm.safetensors'}"
    ours = our_logits(params, images, SMALL)
    assert_same(run({**TIMM_SMALL, "num_classes": 7}, load), ours)
    exact = run({**TIMM_SMALL, "num_classes": 7, "activation": "gelu"}, load)
    assert 1e-5 < np.abs(exact - ours).max() / ours.std() < 1e-1


def test_we_compute_timms_logits(torch_python: str, tmp_path: Path) -> None:
    images = golden.images(2, 96)
    save = f"--save={tmp_path / 'timm.pth'}"
    expected = timm_logits(torch_python, tmp_path, images, {**TIMM_SMALL, "num_classes": 7}, save)
    params = nfnets_jax.load_pretrained("nfnet_f0", tmp_path / "timm.pth", **SMALL)
    assert_same(our_logits(params, images, SMALL), expected)


# Of timm's other networks: ours, as each of the two is told.
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nf_resnet50": (
        {
            "width": (32, 32, 64, 64),
            "depth": (1, 2, 1, 1),
            "stem": ((16, 2),),
            "pools_shortcut": True,
        },
        {"channels": [32, 32, 64, 64], "depths": [1, 2, 1, 1], "stem_chs": 16},
    ),
    "nf_regnet_b1": (
        {
            "width": (16, 16, 32, 32),
            "depth": (1, 2, 1, 1),
            "stem": ((16, 2),),
            "final_expansion": 2,
        },
        {
            "channels": [16, 16, 32, 32],
            "depths": [1, 2, 1, 1],
            "width_factor": 1.0,
            "num_features": 64,
            "ch_div": 1,
            "attn_kwargs": {"rd_ratio": 0.5, "rd_divisor": 1},
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_timms_other_networks_compute_our_logits(
    torch_python: str, tmp_path: Path, name: str
) -> None:
    """On images whose size stays odd, so that both ways of padding are the same."""
    ours, theirs = OTHERS[name]
    params, images = golden_parameters(7, ours, name), golden.images(2, 65)
    expected = our_logits(params, images, ours, name)
    config = nfnets_jax.create_model(name, 7, **ours).config
    write_safetensors(tmp_path / "timm.safetensors", to_timm(params, config))
    settings = {"model": name, "activation": "its own", "num_classes": 7, **theirs}
    load = f"--load={tmp_path / 'timm.safetensors'}"
    assert_same(timm_logits(torch_python, tmp_path, images, settings, load), expected)
    again = nfnets_jax.load_pretrained(name, tmp_path / "timm.safetensors", **ours)
    assert_same(our_logits(again, images, ours, name), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_skip_gains_come_back_in_the_last_convolutions(name: str) -> None:
    ours, _ = OTHERS[name]
    params, model = golden_parameters(7, ours, name), nfnets_jax.create_model(name, 7, **ours)
    again = from_timm(to_timm(params, model.config), model.config, shapes_of(model, 3))
    chex.assert_trees_all_equal_shapes(again, params)
    for module, parameters in params.items():
        if "skip_gain" not in parameters:
            continue
        last = f"{module}/~/conv2"
        assert again[module]["skip_gain"] == 1
        for gain in ("gain", "bias"):
            scaled = params[last][gain] * parameters["skip_gain"]
            np.testing.assert_allclose(again[last][gain], scaled, rtol=1e-5)


def test_batch_normalized_networks_are_refused() -> None:
    with pytest.raises(InputError, match="only normalizer-free networks convert"):
        to_timm({}, nfnets_jax.create_model("resnet50").config)


@pytest.mark.slow
def test_timm_computes_f0s_logits(torch_python: str, tmp_path: Path) -> None:
    params, images = golden_parameters(1000, {}), golden.images(2, 192)
    config = nfnets_jax.create_model("nfnet_f0").config
    write_safetensors(tmp_path / "timm.safetensors", to_timm(params, config))
    load = f"--load={tmp_path / 'timm.safetensors'}"
    assert_same(
        timm_logits(torch_python, tmp_path, images, {}, load), our_logits(params, images, {})
    )

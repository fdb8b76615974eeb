import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import nfnets_jax
from experiments import plan
from experiments.targets import Rates, Target, open_target
from nfnets_jax.errors import InputError
from nfnets_jax.training import recipes

REPOSITORY = Path(__file__).parents[2]


def target(memory: int = 2**30) -> Target:
    """Two of this machine's CPU devices, as if they were a target."""
    return Target("cpu:2", "cpu", jax.devices()[:2], Rates({"float32": 1e9}, 1e9, memory))


def config(**changes: object) -> recipes.ConfigDict:
    config = recipes.small_images("nfnet_micro", "folder", size=8)
    config.model.update({"depth": (1,), "width": (16,), "strides": (1,), "group_size": 8})
    config.update({"batch_size": 8, **changes})
    return config


def test_plans_the_step_of_a_run() -> None:
    figures, hlo = plan.plan(config(), target(), num_classes=7)
    assert hlo.startswith("HloModule")
    assert figures["fits"]
    assert figures["micro_batch_size"] == 4
    assert figures["devices"] == 2
    settings = config().model.to_dict()
    model = nfnets_jax.create_model(**settings, num_classes=7)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    parameter_bytes = sum(4 * param.size for param in jax.tree.leaves(params))
    assert figures["argument_bytes"] > 3 * parameter_bytes  # with momentum and average
    # The gradients of all parameters are averaged over the devices.
    assert 1 <= figures["collective_bytes"] / parameter_bytes < 1.1
    assert figures["roofline_seconds"] >= figures["flops"] / 2 / 1e9
    text = plan.as_text(figures)
    assert "4 images each, 4 at a time" in text
    assert "memory     fits" in text


@pytest.mark.slow
def test_plans_the_stride_of_a_run_whose_devices_hold_the_images() -> None:
    held = config()
    held.data.update({"name": "tfds:cifar10", "padding": 1, "flip": True, "on_device": "yes"})
    figures, hlo = plan.plan(held, target(), num_classes=7)
    assert "u8[100000,10,10,3]" in hlo  # Padded and mirrored.
    assert figures["argument_bytes"] > 100000 * 10 * 10 * 3
    assert figures["micro_batch_size"] == 4


@pytest.mark.slow
def test_finds_the_micro_batch_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    whole, _ = plan.plan(config(batch_size=128), target(), num_classes=7)
    memory = int((whole["argument_bytes"] + whole["temporary_bytes"]) * 0.9)
    figures, _ = plan.plan(config(batch_size=128), target(memory), num_classes=7)
    assert figures["fits"]
    assert figures["micro_batch_size"] < 64
    assert "64 images at a time take" in capsys.readouterr().err
    figures, _ = plan.plan(config(micro_batch_size=4), target(memory=1000), num_classes=7)
    assert not figures["fits"]
    assert "does not fit" in plan.as_text(figures)


def test_the_batch_divides_over_the_target() -> None:
    with pytest.raises(InputError, match="batch_size 7 does not divide evenly over 2 devices"):
        plan.plan(config(batch_size=7), target(), num_classes=7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h10", "no target 'h10'; nearest: h100"),
        ("v4", "no target 'v4'"),
        ("v4:4by4", "CHIPS as 4x4 or 4x4x4"),
    ],
)
def test_unknown_targets_are_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_target(name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "error: no target: give --target, such as h100 or v4:4x4x4\n"),
        (["--target=h100", "--num_classes=0"], "error: --num_classes is 0"),
    ],
)
def test_bad_flags_end_with_one_line(flags: list[str], message: str) -> None:
    command = [sys.executable, "-m", "experiments.plan", "--config=nfnet_f0", *flags]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"for 8xh100, install '\.\[cuda\]' in an environment"):
        open_target("8xh100")
    with pytest.raises(InputError, match=r"for v5e:4x4, install '\.\[tpu\]' in an environment"):
        open_target("v5e:4x4")


def test_figures_are_json() -> None:
    figures, _ = plan.plan(config(), target(), num_classes=7)
    assert json.loads(json.dumps(figures)) == figures

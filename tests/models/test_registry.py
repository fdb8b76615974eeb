import dataclasses
import subprocess
import sys
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.errors import InputError


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="no model 'nfnet_f9'; nearest: .*nfnet_f"):
        nfnets_jax.create_model("nfnet_f9")
    with pytest.raises(InputError, match="no setting 'droprate'; nearest: .*dropout_rate"):
        nfnets_jax.create_model("nfnet_f0", droprate=0.1)
    with pytest.raises(
        InputError, match="no precision 'float16'; there are float32, tensorfloat32, bfloat16$"
    ):
        nfnets_jax.create_model("nfnet_f0", precision="float16")


def test_list_models_matches_patterns() -> None:
    assert nfnets_jax.list_models("nfnet_f?") == [f"nfnet_f{i}" for i in range(8)]
    assert {"nfnet_f0", "nfnet_f7_plus", "nfnet_micro", "nfnet_tiny"} < set(
        nfnets_jax.list_models()
    )


def test_new_parameters_have_the_declared_scale_and_depend_on_the_key() -> None:
    model = nfnets_jax.create_model("nfnet_micro", num_classes=10)
    images = jnp.zeros((1, 8, 8, 1))
    params, state = model.init(jax.random.key(0), images)
    assert state == {}
    kernel = params["NFNet/~/nf_block_2/~/conv1"]["w"]
    assert np.std(kernel) == pytest.approx(np.prod(kernel.shape[:3]) ** -0.5, rel=0.05)
    assert np.std(params["NFNet/~/linear"]["w"]) == pytest.approx(0.01, rel=0.05)
    np.testing.assert_array_equal(params["NFNet/~/final_conv"]["gain"], 1)
    same, _ = jax.jit(model.init)(jax.random.key(0), images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, same)
    other, _ = model.init(jax.random.key(1), images)
    assert np.abs(other["NFNet/~/linear"]["w"] - params["NFNet/~/linear"]["w"]).max() > 0.01


class Perceptron(hk.Module):
    """A user's own network, with Haiku's layers and initializers."""

    def __init__(self, num_classes: int):
        super().__init__("perceptron")
        self.num_classes = num_classes

    def __call__(
        self, images: jax.Array, keys: jax.Array | None, is_training: bool, features: bool
    ) -> dict[str, jax.Array]:
        pool = jax.nn.relu(hk.Linear(8, name="hidden")(images.reshape(len(images), -1)))
        return {"pool": pool, "logits": hk.Linear(self.num_classes, name="linear")(pool)}


def test_a_registered_module_is_a_model() -> None:
    nfnets_jax.register_model("perceptron", Perceptron)
    model = nfnets_jax.create_model("perceptron", 3)
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    params, state = model.init(jax.random.key(0), images)
    expected = hk.transform(lambda x: Perceptron(3)(x, None, False, False)["logits"])
    outputs, _ = model.apply(params, state, None, images, False)
    np.testing.assert_allclose(outputs["logits"], expected.apply(params, None, images), rtol=1e-6)
    # Haiku's default: a truncated normal over the square root of the inputs.
    assert 0.1 < np.std(params["perceptron/hidden"]["w"]) < 0.4
    assert "perceptron" in nfnets_jax.list_models()


def test_a_registered_config_is_a_model() -> None:
    config = nfnets_jax.create_model("nfnet_micro").config
    nfnets_jax.register_model("nfnet_slim", dataclasses.replace(config, width=(16, 16, 32)))
    assert nfnets_jax.create_model("nfnet_slim", group_size=8).config.width == (16, 16, 32)


def test_only_configs_and_modules_can_be_registered() -> None:
    with pytest.raises(InputError, match="'mine' takes a config .* or a function .*, not dict"):
        nfnets_jax.register_model("mine", {})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nfnet_micro", "nf_resnet50", "nf_regnet_b0", "resnet50"])
def test_the_classifier_and_the_images_of_a_model_are_known(name: str) -> None:
    model = nfnets_jax.create_model(name, 7)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    assert params[model.classifier]["w"].shape[-1] == 7
    assert model.data_config.test_size == model.config.test_size
    assert model.data_config.test_crop == ("squash" if "nfnet" in name else "padded")
    assert len(model.data_config.mean) == len(model.data_config.std) == 3


def test_a_frozen_backbone_has_no_gradient() -> None:
    model = nfnets_jax.create_model("nfnet_micro", 3, looped_blocks=1, depth=(2, 1, 1))
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    params, state = model.init(jax.random.key(0), images)
    frozen = model.with_frozen_backbone()

    @jax.grad
    def gradient(params: Any) -> jax.Array:
        return jnp.sum(frozen.apply(params, state, None, images, False)[0]["logits"] ** 2)

    moved = {
        module for module, leaves in gradient(params).items() if any(map(np.any, leaves.values()))
    }
    assert moved == {model.classifier}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("nfnets_jax", ("jax", "haiku")),
        ("nfnets_jax.optax_agc", ("haiku", "grain", "tensorflow_datasets", "orbax")),
        ("nfnets_jax.models.registry", ("grain", "orbax", "ml_collections", "cv2")),
    ],
)
def test_imports_are_no_more_than_needed(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr

import dataclasses
import functools
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
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.registry import Model, ModuleConfig
from tests import golden
from tests.models.test_nfnet import SMALL, TINY


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


def hidden(images: jax.Array) -> jax.Array:
    return jax.nn.relu(hk.Linear(8, name="hidden")(images.reshape(len(images), -1)))


class Perceptron(hk.Module):
    """A user's own network, with Haiku's layers and initializers."""

    def __init__(self, num_classes: int):
        super().__init__("perceptron")
        self.num_classes = num_classes

    def __call__(
        self, images: jax.Array, keys: jax.Array | None, is_training: bool, features: bool
    ) -> dict[str, jax.Array]:
        pool = hidden(images)
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


FAMILIES: dict[str, dict[str, Any]] = {
    "nfnet_micro": {**TINY, "depth": (3,), "looped_blocks": 2},
    "nf_resnet50": SMALL["nf_resnet50"],
    "nf_regnet_b0": SMALL["nf_regnet_b0"],
    "fixup_resnet26_small": {"depth": (1,), "width": (64,)},
    "efficientnet_b0_small": {"depth_factor": 0.1, "width_factor": 0.1},
    "nf_convnet": {"width": (16,)},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_without_classes_there_is_no_classifier(name: str) -> None:
    """The rest of the network is the same, traced equation by equation."""
    images = jnp.asarray(golden.images(2, 16))
    model = nfnets_jax.create_model(name, 7, features=True, **FAMILIES[name])
    bare = nfnets_jax.create_model(name, 0, features=True, **FAMILIES[name])
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    rest, same_state = jax.eval_shape(bare.init, jax.random.key(0), images)
    assert {module: params[module] for module in params if module != model.classifier} == rest
    assert state == same_state

    def outputs(model: Model, params: Any, state: Any) -> dict[str, jax.Array]:
        run = model.apply(params, state, jax.random.key(1), images, True)[0]
        return {output: run[output] for output in run if output != "logits"}

    known = jax.make_jaxpr(functools.partial(outputs, model))(params, state)
    found = jax.make_jaxpr(functools.partial(outputs, bare))(rest, state)
    assert [str(aval) for aval in found.out_avals] == [str(aval) for aval in known.out_avals]
    raw = jax.eval_shape(
        lambda params, state: bare.apply(params, state, None, images, False)[0], rest, state
    )
    assert {"pool", "stage_1"} <= raw.keys()
    assert "logits" not in raw
    products = "dot_general"
    assert str(found).count(products) == str(known).count(products) - 1


@pytest.mark.parametrize("for_gpu", [False, True])
def test_a_new_classifier_leaves_the_rest_as_it_is(for_gpu: bool) -> None:
    model = nfnets_jax.create_model("nfnet_micro", 10, **FAMILIES["nfnet_micro"])
    model = model.with_policy(Policy(backend="gpu" if for_gpu else "cpu"))
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    params = model.stacked(jax.tree.map(np.asarray, params))
    before = {module: dict(values) for module, values in params.items()}
    many, changed = model.reset_classifier(params, 300, jax.random.key(1))
    assert (many.num_classes, model.num_classes) == (300, 10)
    linear = changed.pop(model.classifier)
    assert linear["w"].shape == (64, 300)
    assert np.std(linear["w"]) == pytest.approx(0.01, rel=0.05)
    assert not np.any(linear["b"])
    other = model.reset_classifier(params, 300, jax.random.key(2))[1][model.classifier]
    assert np.all(other["w"] != linear["w"])
    bare, rest = many.reset_classifier({**changed, model.classifier: linear}, 0)
    assert bare.num_classes == 0
    for tree in (changed, rest):
        assert tree.keys() == params.keys() - {model.classifier}
        for module, values in tree.items():
            assert all(values[name] is array for name, array in params[module].items())
    assert params == before  # Arrays are compared by identity first.
    again, back = bare.reset_classifier(rest, 300, jax.random.key(1))
    np.testing.assert_array_equal(back[model.classifier]["w"], linear["w"])
    assert again == many


def test_impossible_numbers_of_classes_are_refused() -> None:
    for number in (-1, 2.5, True):
        with pytest.raises(
            InputError, match="num_classes is .*; it takes a whole number from 0 on"
        ):
            nfnets_jax.create_model("nfnet_micro", number)  # type: ignore[arg-type]
    model = nfnets_jax.create_model("nfnet_micro", 10)
    with pytest.raises(InputError, match="a new classifier needs a random key"):
        model.reset_classifier({model.classifier: {}}, 3)
    with pytest.raises(InputError, match="num_classes is -3"):
        model.reset_classifier({model.classifier: {}}, -3, jax.random.key(0))


class Headless(Perceptron):
    """The same, which knows what no classes are."""

    def __call__(self, *args: Any) -> dict[str, jax.Array]:
        outputs = super().__call__(*args) if self.num_classes else {"pool": hidden(args[0])}
        return outputs


def test_a_registered_module_says_how_its_classifier_is_found() -> None:
    nfnets_jax.register_model("unnamed", Perceptron)
    images = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(InputError, match="unnamed has logits with num_classes=0, for which its"):
        nfnets_jax.create_model("unnamed", 0).init(jax.random.key(0), images)
    model = nfnets_jax.create_model("unnamed", 3)
    params, _ = model.init(jax.random.key(0), images)
    for number in (0, 5):
        with pytest.raises(InputError, match="unnamed has no module 'linear': ModuleConfig names"):
            model.reset_classifier(params, number, jax.random.key(0))
    config = ModuleConfig(Headless, train_size=4, classifier="perceptron/linear")
    nfnets_jax.register_model("headless", config)
    model = nfnets_jax.create_model("headless", 3)
    params, _ = model.init(jax.random.key(0), images)
    bare, rest = model.reset_classifier(params, 0)
    outputs, _ = bare.apply(rest, {}, None, images, False)
    assert outputs.keys() == {"pool"}
    _, renewed = bare.reset_classifier(rest, 5, jax.random.key(0))
    assert renewed["perceptron/linear"]["w"].shape == (8, 5)


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
        ("nfnets_jax.optax_agc", ("haiku", "tensorflow_datasets", "orbax")),
        ("nfnets_jax.models.registry", ("orbax", "ml_collections", "cv2")),
    ],
)
def test_imports_are_no_more_than_needed(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr

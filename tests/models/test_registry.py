import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.errors import InputError


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(InputError, match="no model 'nfnet_f9'; nearest: .*nfnet_f"):
        nfnets_jax.create_model("nfnet_f9")
    with pytest.raises(InputError, match="no setting 'droprate'; nearest: .*dropout_rate"):
        nfnets_jax.create_model("nfnet_f0", droprate=0.1)
    with pytest.raises(
        InputError, match="no precision 'float16'; there are float32, bfloat16, bfloat16_products"
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


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("nfnets_jax", ("jax", "haiku")),
        ("nfnets_jax.optax_agc", ("haiku", "grain", "tensorflow_datasets", "orbax")),
        ("nfnets_jax.models.registry", ("grain", "orbax", "ml_collections", "cv2")),
    ],
)
def test_importing_brings_no_more_than_needed(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr

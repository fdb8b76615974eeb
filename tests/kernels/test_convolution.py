import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nfnets_jax
from nfnets_jax.kernels import convolution
from nfnets_jax.kernels.convolution import Policy, conv2d

SHAPE = ("size", "channels", "outputs", "kernel", "stride", "groups")


@pytest.mark.parametrize(
    SHAPE,
    [
        (8, 3, 16, 3, 2, 1),
        (7, 6, 4, 3, 1, 1),
        (8, 16, 8, 1, 1, 1),
        (5, 16, 8, 1, 2, 1),
        (8, 32, 64, 3, 1, 4),
        (9, 32, 32, 3, 2, 2),
        (4, 8, 8, 3, 1, 8),
        # Narrow groups: whole packs, packs and a rest, less than a pack with more outputs.
        (4, 256, 256, 3, 1, 32),
        (5, 168, 168, 3, 2, 21),
        (4, 24, 48, 3, 1, 3),
        (9, 3, 8, 7, 2, 1),
        # An image at a time.
        (48, 32, 128, 3, 1, 1),
        # Large enough for the kernel's gradient to be products, with both images at once.
        (96, 32, 8, 3, 2, 1),
        (91, 32, 8, 3, 2, 1),
        (48, 32, 8, 5, 1, 1),
        (48, 16, 16, 3, 1, 1),
        (96, 32, 8, 1, 2, 1),
        # An image at a time.
        (96, 128, 8, 3, 2, 1),
        (6, 8, 8, 2, 1, 1),
    ],
)
@pytest.mark.parametrize("looped", [False, True])
def test_equals_lax_in_value_and_gradient(
    size: int, channels: int, outputs: int, kernel: int, stride: int, groups: int, looped: bool
) -> None:
    _compare(2, size, channels, outputs, kernel, stride, groups, Policy(in_loop=looped))


@pytest.mark.parametrize(
    SHAPE,
    [
        # By Winograd's products, tiles of 4: whole and cut off, groups, narrow to wide.
        (27, 32, 16, 3, 1, 1),
        (25, 64, 64, 3, 1, 2),
        (26, 64, 16, 3, 1, 2),
        (24, 16, 128, 3, 1, 1),
        (23, 48, 96, 3, 1, 6),
        # Depthwise.
        (9, 6, 6, 5, 1, 6),
        (8, 6, 6, 3, 2, 6),
        (7, 6, 6, 5, 2, 6),
        (8, 6, 6, 2, 3, 6),
        (2, 6, 6, 5, 2, 6),
        (5, 6, 6, 1, 2, 6),
    ],
)
def test_forms_that_are_the_same_in_a_loop_equal_lax(
    size: int, channels: int, outputs: int, kernel: int, stride: int, groups: int
) -> None:
    _compare(2, size, channels, outputs, kernel, stride, groups, Policy())


@pytest.mark.parametrize(
    ("size", "channels", "outputs", "kernel", "groups"),
    [
        # Blocks of pixels: few channels, even and odd sides, all that ``SAME`` pads.
        (8, 3, 16, 3, 1),
        (7, 3, 16, 3, 1),
        (8, 3, 4, 7, 1),
        (9, 3, 4, 7, 1),
        (8, 1, 4, 5, 1),
        (1, 4, 4, 3, 2),
        # The gradient of the images by blocks.
        (8, 16, 32, 3, 2),
        (9, 16, 16, 3, 4),
        (6, 16, 16, 5, 2),
        # Neither.
        (8, 16, 8, 3, 1),
        (8, 8, 8, 3, 8),
        (6, 3, 8, 2, 1),
    ],
)
def test_strided_convolutions_for_a_gpu_equal_lax(
    size: int, channels: int, outputs: int, kernel: int, groups: int
) -> None:
    _compare(2, size, channels, outputs, kernel, 2, groups, Policy(backend="gpu"))


@pytest.mark.parametrize(("images", "size"), [(120, 3), (48, 5), (30, 6), (16, 9)])
def test_small_images_equal_lax(images: int, size: int) -> None:
    # By Winograd's products, tiles of 3.
    _compare(images, size, channels=64, outputs=32, kernel=3, stride=1, groups=2)


def _compare(
    images: int,
    size: int,
    channels: int,
    outputs: int,
    kernel: int,
    stride: int,
    groups: int,
    policy: Policy | None = None,
) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((images, size, size, channels)), jnp.float32)
    shape = (kernel, kernel, channels // groups, outputs)
    w = jnp.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[:3])), jnp.float32)

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    expected, pull_expected = jax.vjp(plain, x, w)
    actual, pull_actual = jax.vjp(lambda x, w: conv2d(x, w, stride, policy), x, w)
    cotangent = jnp.asarray(rng.standard_normal(expected.shape), jnp.float32)
    for a, b in zip(
        (actual, *pull_actual(cotangent)), (expected, *pull_expected(cotangent)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("size", [pytest.param(6, marks=pytest.mark.slow), 8])
def test_rounded_products_have_errors_of_a_few_percent(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((32, size, size, 64)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((3, 3, 64, 48)) / 24, jnp.float32)
    cotangent = jnp.asarray(rng.standard_normal((32, size, size, 48)), jnp.float32)

    def results(able: bool) -> list[np.ndarray]:
        monkeypatch.setattr(convolution, "cpu_multiplies_bfloat16", lambda: able)
        policy = Policy(rounding=jnp.bfloat16)
        value, pull = jax.vjp(lambda x, w: conv2d(x, w, policy=policy), x, w)
        return [np.asarray(array) for array in (value, *pull(cotangent))]

    for wrong, right in zip(results(True), results(False), strict=True):
        error = np.std(wrong - right) / np.std(right)
        assert 1e-3 < error < 0.03


def test_a_policy_is_an_argument_that_jit_sees() -> None:
    """A program that is traced with one policy is not reused for another."""
    run = jax.jit(conv2d, static_argnames=("stride", "policy"))
    x, kernel = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 1, 8, 4))
    for native in (False, True):
        program = run.lower(x, kernel, policy=Policy(native=native)).as_text()
        assert ("convolution" in program) == native


def test_accelerators_get_native_convolutions() -> None:
    x = jnp.ones((1, 4, 4, 64))
    for kernel in (jnp.ones((1, 1, 64, 4)), jnp.ones((3, 3, 32, 4)), jnp.ones((3, 3, 1, 64))):
        jaxpr = jax.make_jaxpr(lambda x, w: conv2d(x, w, policy=Policy("cuda")))(x, kernel)
        assert [equation.primitive.name for equation in jaxpr.eqns] == ["conv_general_dilated"]


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
@pytest.mark.parametrize(
    ("precision", "product"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "")]
)
def test_accelerators_multiply_float32_as_its_name_says(
    backend: str, precision: str, product: str
) -> None:
    """Every product of a network and of its gradient has the precision, or none is float32."""
    model = nfnets_jax.create_model("nfnet_micro", 4, precision=precision, depth=(2, 1, 1))
    model = model.with_policy(Policy(backend=backend))
    images = jnp.zeros((1, 16, 16, 3))
    params, state = model.init(jax.random.key(0), images)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(model.apply(params, state, None, images, False)[0]["logits"])

    program = jax.jit(jax.grad(loss)).lower(params).as_text()
    products = re.findall(r"stablehlo.(?:convolution|dot_general).*", program)
    float32 = [line for line in products if re.search(r"-> tensor<(\d+x)+f32>", line)]
    of_convolutions = [line for line in float32 if "convolution" in line]
    if precision == "bfloat16":
        assert products
        assert not of_convolutions
    else:
        assert of_convolutions
    for line in float32:
        expected = product if line in of_convolutions else "HIGHEST"
        precisions = re.findall(r"\b(?:DEFAULT|HIGH|HIGHEST)\b", line)
        assert precisions == [expected] * 2, line


def test_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="5 input channels does not divide the 8"):
        conv2d(jnp.zeros((1, 4, 4, 8)), jnp.zeros((3, 3, 5, 8)))

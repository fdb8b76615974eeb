"""Measured signals and gradients compared with those computed by hand."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.errors import InputError
from nfnets_jax.models.signal_propagation import Signal, measure, measure_model, picture


class ResidualBlock(hk.Module):
    """Adds a linear layer; ``inner`` of them, which are blocks of their own."""

    def __init__(self, inner: int = 0, name: str | None = None):
        super().__init__(name)
        self._inner = inner

    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self._inner):
            x = ResidualBlock()(x)
        return x + hk.Linear(x.shape[-1])(x)


X = jax.random.normal(jax.random.key(0), (6, 5, 4))


def chain(x: jax.Array) -> jax.Array:
    x = ResidualBlock(name="first")(x)
    return jnp.sum(jnp.sin(ResidualBlock(inner=1, name="second")(x)))


def test_figures_are_those_of_the_formulas() -> None:
    network: Any = hk.without_apply_rng(hk.transform(chain))
    params = network.init(jax.random.key(1), X)
    found = measure(network.apply, params, X)
    assert found.blocks == ("first", "second")  # The inner one is a part of the second.

    def forward(x: jax.Array, layer: str) -> jax.Array:
        return x + x @ params[layer]["w"] + params[layer]["b"]

    def second(x: jax.Array) -> jax.Array:
        return forward(forward(x, "second/residual_block/linear"), "second/linear")

    one = forward(X, "first/linear")
    two = second(one)
    for index, (x, output) in enumerate([(X, one), (one, two)]):
        flat = np.asarray(output).reshape(-1, 4)
        assert found.variance[index] == pytest.approx(flat.var(axis=0).mean(), rel=1e-5)
        mean = (flat.mean(axis=0) ** 2).mean()
        assert found.squared_mean[index] == pytest.approx(mean / flat.var(axis=0).mean(), rel=1e-4)
        branch = np.asarray(output - x).reshape(-1, 4)
        assert found.branch_variance[index] == pytest.approx(branch.var(axis=0).mean(), rel=1e-5)
    gradients = [jax.grad(lambda y: jnp.sum(jnp.sin(second(y))))(one), jnp.cos(two)]
    norms = [float(jnp.linalg.norm(jnp.ravel(gradient))) for gradient in gradients]
    np.testing.assert_allclose(found.gradient, norms, rtol=1e-5)
    own = jax.grad(lambda params: network.apply(params, X))(params)
    first = jnp.concatenate([jnp.ravel(x) for x in own["first/linear"].values()])
    assert found.param_gradient[0] == pytest.approx(float(jnp.linalg.norm(first)), rel=1e-5)


_TINY = {"width": (16, 32), "depth": (1, 2), "strides": (1, 2), "group_size": 8}


@pytest.mark.parametrize(
    ("name", "overrides", "blocks"),
    [
        ("nfnet_micro", {**_TINY, "stem": ((8, 1),)}, 3),
        ("resnet26_small", {"width": (16, 32), "depth": (1, 1), "group_width": 8}, 2),
        pytest.param("efficientnet_b0_small", {}, 16, marks=pytest.mark.slow),
    ],
)
def test_registered_models_of_every_family_are_measured(
    name: str, overrides: dict[str, Any], blocks: int
) -> None:
    noise = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    found = measure_model(nfnets_jax.create_model(name, 3, **overrides), noise, jax.random.key(1))
    assert len(found.blocks) == blocks
    assert (found.variance > 0).all() and (found.param_gradient > 0).all()
    # Branches that start at zero are open.
    assert np.nanmin([*found.branch_variance, 1.0]) > 0


def test_what_cannot_be_measured_is_refused() -> None:
    network: Any = hk.without_apply_rng(hk.transform(chain))
    params = network.init(jax.random.key(1), X)
    with pytest.raises(InputError, match="called no block"):
        measure(network.apply, params, X, is_block=lambda module: False)
    headless = nfnets_jax.create_model("nfnet_micro", 0)
    with pytest.raises(InputError, match="nfnet_micro has no classifier"):
        measure_model(headless, jnp.zeros((1, 8, 8, 3)), jax.random.key(0))

    def looped(x: jax.Array) -> jax.Array:
        return jnp.sum(hk.remat(ResidualBlock(name="first"))(x))

    inside: Any = hk.without_apply_rng(hk.transform(looped))
    params = inside.init(jax.random.key(1), X)
    with pytest.raises(InputError, match=r"inside a jax\.jit, a loop or hk\.remat"):
        measure(inside.apply, params, X)


def test_the_picture_has_each_network_and_the_prediction() -> None:
    curve = np.array([1.0, 2.0])
    signal = Signal(("a", "b"), curve, curve, curve, curve, curve)
    figure = picture({"one": signal, "other": signal}, {"one": curve})
    assert len(figure.axes[0].lines) == 4  # Two curves, the prediction, and its legend.
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "one",
        "other",
        "predicted",
    ]

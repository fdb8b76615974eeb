"""Units that are split over devices are clipped as on one."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nfnets_jax import optax_agc
from tests.optax_agc import reference
from tests.optax_agc.reference import random

# By column, by row, by both, whole; a convolution's inputs and outputs; a split vector.
SPECS = {
    "column": P(None, "model"),
    "row": P("model"),
    "both": P("data", "model"),
    "whole": P(),
    "conv": P(None, None, "data", "model"),
    "fully": P(("data", "model"), None),
    "bias": P("model"),
}
SHAPES = {"conv": (3, 3, 4, 8), "bias": (16,)}
PARAMS = {name: random(i, SHAPES.get(name, (16, 8))) for i, name in enumerate(SPECS)}
GRADS = {name: random(i + 50, x.shape, 0.03) for i, (name, x) in enumerate(PARAMS.items())}
STATISTICS = {"clipping": 0.03, "unit_axes": optax_agc.haiku, "quantiles": (0.5, 1.0)}


def unit_axes(path: Any, param: jax.Array) -> tuple[int, ...]:
    return tuple(range(max(param.ndim - 1, 1)))


def optimizer(**specs: Any) -> optax.GradientTransformation:
    agc = optax_agc.adaptive_grad_clip(0.03, unit_axes=unit_axes, **specs)
    return optax_agc.with_statistics(
        agc, 0.03, unit_axes=unit_axes, quantiles=(0.5, 1.0), every=2, **specs
    )


def step(specs: Any, grads: Any, params: Any) -> tuple[Any, Any]:
    transformation = optimizer(**specs)
    updates, state = transformation.update(grads, transformation.init(params), params)
    return updates, (state.levels, state.parameters)


@pytest.fixture(scope="module")
def expected() -> tuple[Any, Any]:
    return jax.jit(lambda g, p: step({}, g, p))(GRADS, PARAMS)


def mesh() -> Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto, AxisType.Auto))


def assert_close(actual: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), actual, expected)


def test_the_test_clips_some_units(expected: tuple[Any, Any]) -> None:
    clipped = [float(seen.clipped) for seen in expected[1][1].values()]
    assert any(0 < share < 1 for share in clipped)


def test_jit_of_sharded_arrays(expected: tuple[Any, Any]) -> None:
    shardings = {name: NamedSharding(mesh(), spec) for name, spec in SPECS.items()}
    grads, params = (jax.device_put(tree, shardings) for tree in (GRADS, PARAMS))
    updates, statistics = jax.jit(lambda g, p: step({}, g, p))(grads, params)
    assert_close((updates, statistics), expected)
    for name, update in updates.items():
        assert update.sharding.is_equivalent_to(shardings[name], update.ndim), name


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(expected: tuple[Any, Any], check_vma: bool) -> None:
    run = jax.shard_map(
        lambda g, p: step({"partition_specs": SPECS}, g, p),
        mesh=mesh(),
        in_specs=(SPECS, SPECS),
        out_specs=(SPECS, P()),
        check_vma=check_vma,
    )
    assert_close(jax.jit(run)(GRADS, PARAMS), expected)


def test_shard_map_measures_huge_gradients_on_all_devices() -> None:
    """Where the squares of one device overflow, all devices take the other branch."""
    grads = {**GRADS, "row": GRADS["row"].at[0, 0].set(1e30)}
    agc = optax_agc.adaptive_grad_clip(0.03, unit_axes=unit_axes, partition_specs=SPECS)
    run = jax.shard_map(
        lambda g, p: agc.update(g, agc.init(p), p)[0],
        mesh=mesh(), in_specs=(SPECS, SPECS), out_specs=SPECS,
    )  # fmt: skip
    alone = optax_agc.adaptive_grad_clip(0.03, unit_axes=unit_axes)
    expected = reference.update(alone, grads, PARAMS)
    assert float(abs(expected["row"][0, 0])) < 1
    assert_close(jax.jit(run)(grads, PARAMS), expected)


def test_pmap(expected: tuple[Any, Any]) -> None:
    """Replicated parameters, gradients averaged first: each device does the same."""

    def run(part: jax.Array, grads: Any, params: Any) -> Any:
        mean = jax.lax.pmean(jax.tree.map(lambda g: g * part, grads), "devices")
        return step({}, mean, params)

    parts = np.array([0.5, 1.5], np.float32)
    mapped = jax.pmap(run, "devices", in_axes=(0, None, None), devices=jax.devices()[:2])
    results = mapped(parts, GRADS, PARAMS)
    for device in range(2):
        assert_close(jax.tree.map(lambda x, device=device: x[device], results), expected)

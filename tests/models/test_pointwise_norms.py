"""DyT and Derf compared with their formulas, computed by the standard library."""

import math
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets_jax.models.pointwise_norms import Derf, DyT

X = np.random.default_rng(0).normal(0, 3, (4, 3)).astype(np.float32)
SCALE, OFFSET = np.array([0.5, 1, 2], np.float32), np.array([-1, 0, 3], np.float32)


@pytest.mark.parametrize(
    ("module", "extra", "bounded"),
    [
        (DyT, {}, lambda x: math.tanh(0.7 * x)),
        (Derf, {"shift": np.float32(0.3)}, lambda x: math.erf(0.7 * x + 0.3)),
    ],
)
def test_each_is_its_formula(
    module: type[Any], extra: dict[str, Any], bounded: Callable[[float], float]
) -> None:
    function: Any = hk.without_apply_rng(hk.transform(lambda x: module(name="norm")(x)))
    params = {"norm": {"alpha": np.float32(0.7), "scale": SCALE, "offset": OFFSET, **extra}}
    expected = SCALE * np.vectorize(bounded)(X) + OFFSET
    np.testing.assert_allclose(function.apply(params, jnp.asarray(X)), expected, rtol=1e-5)
    # As published: alpha at one half, no shift, no affine map.
    params = function.init(jax.random.key(0), jnp.asarray(X))
    starts = {name: float(np.mean(value)) for name, value in params["norm"].items()}
    assert starts == {"alpha": 0.5, "scale": 1, "offset": 0, **dict.fromkeys(extra, 0)}

import hashlib

import numpy as np

from nfnets_jax.training import reporting


def test_sha256_is_over_the_bytes_in_sorted_order() -> None:
    def array(*values: float) -> np.ndarray:
        return np.array(values, np.float32)

    params = {"b": {"w": array(1, 2)}, "a": {"z": array(3), "c": array(4)}}
    expected = hashlib.sha256(array(4, 3, 1, 2).tobytes()).hexdigest()
    assert reporting.params_sha256(params) == expected
    params["b"]["w"][0] += 1e-6
    assert reporting.params_sha256(params) != expected

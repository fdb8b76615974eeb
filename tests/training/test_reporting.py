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


def test_waiting_for_data_is_explained_where_it_is_long() -> None:
    stages = {"reading": 0.25, "decoding": 0.5, "transferring": 0.25}
    assert reporting.waiting(0.05, stages) == "5% waiting for data"
    assert reporting.waiting(0.4, {}) == "40% waiting for data"
    line = reporting.waiting(0.4, stages)
    assert line.startswith("40% waiting for data (decoding 20%, reading 10%, transferring 10%: ")
    assert "data.num_workers" in line

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from nfnets_jax.errors import InputError
from nfnets_jax.weights.files import read_arrays, write_safetensors

ARRAYS = {
    "NFNet/~/linear/w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "NFNet/~/linear/b": np.ones(4, np.float32),
}


def test_corrupted_safetensors_give_arrays_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_safetensors(path, ARRAYS)
    good = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1000):
        bad = good.copy()
        places = rng.integers(len(bad), size=rng.integers(1, 5))
        bad[places] = rng.integers(256, size=len(places))
        path.write_bytes(bad.tobytes())
        try:
            arrays = read_arrays(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert sum(array.nbytes for array in arrays.values()) <= 2 * len(good)
    assert 200 < refused < 1000
    for length in range(len(good)):
        path.write_bytes(good[:length].tobytes())
        with pytest.raises(InputError):
            read_arrays(path)


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
        {"w": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_headers_that_promise_more_than_there_is_are_refused(
    tmp_path: Path, header: dict[str, object]
) -> None:
    content = json.dumps(header).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + b"\0" * 4)
    with pytest.raises(InputError, match="is damaged or no .safetensors"):
        read_arrays(path)

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from nfnets_jax.errors import InputError
from nfnets_jax.weights.files import read_arrays, read_metadata, write_safetensors

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


def test_the_length_of_a_header_is_not_taken_for_a_kind_of_file(tmp_path: Path) -> None:
    """A pickle starts with the byte 128, and so does a header of so many bytes, modulo 256."""
    path, starts = tmp_path / "net.safetensors", set()
    for length in range(0, 256, 4):
        metadata = {"class_names": "a" * length}
        write_safetensors(path, ARRAYS, metadata)
        starts.add(path.read_bytes()[0])
        assert read_metadata(path) == metadata
        np.testing.assert_equal(read_arrays(path), ARRAYS)
    assert 128 in starts


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

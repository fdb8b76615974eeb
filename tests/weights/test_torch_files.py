import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nfnets_jax.errors import InputError
from nfnets_jax.weights.files import read_arrays
from nfnets_jax.weights.torch_files import read_torch
from tests.weights.pickles import Call, Name, Persistent, dumps

VALUES = np.arange(12, dtype=np.float32)


def storage(kind: str = "Float", key: Any = "0", length: int = 12) -> Persistent:
    return Persistent(("storage", Name(f"torch.{kind}Storage"), key, "cpu", length))


def tensor(place: Any = None, offset: Any = 0, shape: Any = (3, 4), strides: Any = (4, 1)) -> Call:
    return Call(
        "torch._utils._rebuild_tensor_v2",
        place or storage(),
        offset,
        shape,
        strides,
        False,
        Call("collections.OrderedDict"),
    )


def write(
    tmp_path: Path,
    content: Any,
    compression: int = zipfile.ZIP_STORED,
    byteorder: str = "little",
    storages: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Path:
    """A file as ``torch.save`` lays it out."""
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", dumps(content, 2))
        archive.writestr("model/byteorder", byteorder)
        for key, array in {"0": VALUES, **storages}.items():
            archive.writestr(f"model/data/{key}", array.tobytes())
    return path


def test_state_dicts_are_read(tmp_path: Path) -> None:
    half, brain = VALUES.astype(np.float16), VALUES.astype(ml_dtypes.bfloat16)
    state = {
        "plain": tensor(),
        "transposed": tensor(shape=(4, 3), strides=(1, 4)),
        "part": tensor(offset=5, shape=(2,), strides=(3,)),
        "scalar": tensor(offset=7, shape=(), strides=()),
        "half": tensor(storage("Half", "1")),
        "brain": tensor(storage("BFloat16", "2")),
        "parameter": Call("torch._utils._rebuild_parameter", tensor(), True, {}),
    }
    # Version numbers of modules that PyTorch hangs on the dict, to be passed over.
    metadata = Call(
        "collections.OrderedDict", state={"_metadata": {"": {"version": 1}}}, items=state
    )
    expected = {
        "plain": VALUES.reshape(3, 4),
        "transposed": VALUES.reshape(3, 4).T,
        "part": VALUES[[5, 8]],
        "scalar": VALUES[7],
        "half": half.reshape(3, 4),
        "brain": brain.reshape(3, 4),
        "parameter": VALUES.reshape(3, 4),
    }
    for content in (state, metadata, {"epoch": 3, "state_dict": state}):
        read = read_arrays(write(tmp_path, content, storages={"1": half, "2": brain}))
        assert set(read) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Call("os.system", "touch EXECUTED"), "refused the name 'os.system'"),
        (Call("torch.load", "EXECUTED"), "refused the name 'torch.load'"),
        (Call("torch._utils._rebuild_tensor", 1), "refused the name 'torch._utils._rebuild_tens"),
        (Call("torch.FloatStorage", 2**40), "must not be called"),
        (tensor(offset=1), "within its storage"),
        (tensor(offset=-1), "from 0 on"),
        (tensor(shape=(2**30, 2**30), strides=(0, 0)), "within its storage"),
        (tensor(shape=(3, 4), strides=(4,)), "damaged"),
        (tensor(shape=(3, 4), strides=(4, 10)), "within its storage"),
        (tensor(storage(key="../byteorder")), "damaged"),
        (tensor(storage(key="7")), "damaged"),
        (tensor(storage(length=11)), "another length"),
        (tensor(storage("Double")), "another length"),
        (tensor(storage("Complex")), "refused the name 'torch.ComplexStorage'"),
        (tensor(Persistent("0")), "damaged"),
        (tensor("0"), "lies in a storage"),
        (3.0, "'w' is not a tensor"),
    ],
)
def test_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_torch(write(tmp_path, {"w": value}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "EXECUTED").exists()


def test_tensors_that_share_their_numbers_do_not_multiply_them(tmp_path: Path) -> None:
    numbers = np.zeros(10**5, np.float32)
    whole = storage(key="1", length=len(numbers))
    views = {f"w{index}": tensor(whole, shape=(1000, 100), strides=(100, 1)) for index in range(9)}
    with pytest.raises(InputError, match="would take 4 MB, more than 4 times the file"):
        read_torch(write(tmp_path, views, storages={"1": numbers}))
    tied = {name: views[name] for name in ("w0", "w1")}
    assert len(read_torch(write(tmp_path, tied, storages={"1": numbers}))) == 2


def test_archives_that_grow_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {}, zipfile.ZIP_DEFLATED, storages={"1": np.zeros(10**7)})
    with pytest.raises(InputError, match="is compressed"):
        read_arrays(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="big-endian"):
        read_torch(write(tmp_path, {}, byteorder="big"))
    np.savez(tmp_path / "arrays.npz", w=VALUES)
    with pytest.raises(InputError, match="without data.pkl"):
        read_arrays(tmp_path / "arrays.npz")
    (tmp_path / "old.pth").write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.more")
    with pytest.raises(InputError, match="before PyTorch 1.6"):
        read_arrays(tmp_path / "old.pth")


def test_corrupted_files_give_arrays_or_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, {"w": tensor(), "b": tensor(offset=5, shape=(2,), strides=(3,))})
    good = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
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
    assert refused > 250
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length].tobytes())
        with pytest.raises(InputError):
            read_arrays(path)

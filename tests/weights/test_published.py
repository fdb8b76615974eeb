import base64
import collections
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import haiku as hk
import numpy as np
import pytest

from nfnets_jax.errors import InputError
from nfnets_jax.weights.published import Tree, read_published, write_published
from tests.weights.pickles import Call, Name, dumps

# Written by dill 0.4.1 with NumPy 2.4: {"NFNet/~/stem_conv0": {"w": 0 to 5 as [2, 3] float32,
# "gain": 0 to 3 as [2, 2] float64 in Fortran's order, "skip_gain": 0.5}, "NFNet/~/linear":
# {"b": the scalar 2.5}}.
BY_DILL = (
    "eNp1kMFqg0AQhtWYpAlpDoGEHnO0F9NDDz0UFIQeInjoC4jRbVeqVta1xUOLlyYR9pbpvU/R5+obtKMioZQOOzOw8/"
    "/7sVOq75+y1MQLaGLm3DiEr15XGSex6z8mTxdQ38vPIMZBGEW6W1cQp67PiMeJ6zHmFXBAzSLJ47TQ0cWIHucRD9uZ"
    "mLiM4FMZZ7nPUSr6jRLEMAk6uy29gSVvYAeaLduK3dsCHYt+wIuU1Bbl7hKq/Q5ucd4T8jU4jrP+xmiKLXHYVNZZ+5"
    "HSwGLiwSwxP0zg4HD0CvXeCxOgA42O6KRm0mlHVJA4Q87VkUMXfyl7ayn9DrNtX0bbT460UfYQpu4/yHM6rywVDUan"
    "z8W0W38UJsRjuHqBO6FDMch8L8KLA9B5bVqasEVHlus/noqc3Q=="
)


def tree() -> Tree:
    generator = np.random.default_rng(0)
    return {
        f"NFNet/~/conv{index}": {
            "w": generator.standard_normal((2, 3), np.float32),
            "gain": generator.standard_normal(3, np.float32),
            "skip_gain": np.array(0.5, np.float32),
        }
        for index in range(3)
    }


def read(tmp_path: Path, content: bytes) -> Tree:
    path = tmp_path / "parameters.npz"
    path.write_bytes(content)
    return read_published(path)


def assert_equal(actual: Any, expected: Any) -> None:
    assert {m: set(ps) for m, ps in actual.items()} == {m: set(ps) for m, ps in expected.items()}
    for module, parameters in expected.items():
        for name, array in parameters.items():
            np.testing.assert_array_equal(actual[module][name], array, strict=True)


def test_what_dill_writes_is_read(tmp_path: Path) -> None:
    content = zlib.decompress(base64.b64decode(BY_DILL))
    conv = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "gain": np.arange(4.0).reshape(2, 2),
        "skip_gain": np.array(0.5, np.float32),
    }
    expected = {"NFNet/~/stem_conv0": conv, "NFNet/~/linear": {"b": np.array(2.5, np.float32)}}
    assert_equal(read(tmp_path, content), expected)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "mapping", [dict, collections.OrderedDict, hk.data_structures.to_immutable_dict]
)
def test_what_pickle_writes_is_read(tmp_path: Path, protocol: int, mapping: Any) -> None:
    saved = mapping({module: mapping(parameters) for module, parameters in tree().items()})
    assert_equal(read(tmp_path, pickle.dumps(saved, protocol)), tree())


def test_what_is_written_is_read_by_anyone(tmp_path: Path) -> None:
    write_published(tmp_path / "ours.npz", tree())
    assert_equal(pickle.loads((tmp_path / "ours.npz").read_bytes()), tree())
    assert [path.name for path in tmp_path.iterdir()] == ["ours.npz"]


MARK = "EXECUTED"
DTYPE = Call("numpy.dtype", "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
RECONSTRUCT = "numpy.core.multiarray._reconstruct"


def array(*state: Any) -> Call:
    return Call(RECONSTRUCT, Name("numpy.ndarray"), (0,), b"b", state=state)


def within(value: Any) -> dict[str, Any]:
    return {"module": {"w": value}}


HOSTILE = {
    "os.system": Call("os.system", f"touch {MARK}"),
    "posix.system, nested": within([(Call("posix.system", f"touch {MARK}"),)]),
    "builtins.eval": within(Call("builtins.eval", f"open({MARK!r}, 'w')")),
    "builtins.getattr": Call("builtins.getattr", Name("numpy.ndarray"), "tofile"),
    "dill._dill._create_function": Call("dill._dill._create_function", b"code"),
    "_codecs.decode": Call("_codecs.decode", b"x", "zlib"),
    "numpy.load": within(Call("numpy.load", MARK)),
}
MISUSED = {
    "of another function": Call("dill._dill._create_array", Name("os.system"), (MARK,), (), None),
    "of an allowed function": Call(
        "dill._dill._create_array", Name("_codecs.encode"), (MARK, "latin1"), (), None
    ),
    "a huge shape": array(1, (2**20, 2**20, 2**20), DTYPE, False, b"\0" * 4),
    "a negative shape": array(1, (-1,), DTYPE, False, b"\0" * 4),
    "a shape that is too small": array(1, (1,), DTYPE, False, b"\0" * 8),
    "a huge beginning": Call(RECONSTRUCT, Name("numpy.ndarray"), (2**40,), b"b"),
    "another class": Call(RECONSTRUCT, Name("numpy.dtype"), (0,), b"b"),
    "objects": array(1, (1,), Call("numpy.dtype", "O8", False, True), False, [None]),
    "objects from bytes": array(1, (1,), Call("numpy.dtype", "O", False, True), False, b"\0" * 8),
    "a list for the content": array(1, (1,), DTYPE, False, [1.0]),
    "fields": array(
        1, (1,), Call("numpy.dtype", "f4", state=(3, "<", None, ("a",), {}, 4, 4, 0)), False, b"\0"
    ),
    "no state": Call(RECONSTRUCT, Name("numpy.ndarray"), (0,), b"b"),
    "an array that is called": Call("numpy.ndarray", (2**40,)),
    "another codec": Call("_codecs.encode", "x", "zlib"),
    "a state for a dict": Call("collections.OrderedDict", state={"__class__": "x"}),
    "integers": array(1, (1,), Call("numpy.dtype", "i4", False, True), False, b"\0" * 4),
    "no array": "text",
    "a class for an array": Name("numpy.ndarray"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"refused the name '{name.split(',')[0]}'"):
        read(tmp_path, dumps(HOSTILE[name], protocol))
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("name", MISUSED)
def test_allowed_names_with_other_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read(tmp_path, dumps(within(MISUSED[name])))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04(ios\nsystem\n.", "refused the instruction INST"),
        (b"\x80\x04" + b"N" * 1_000_001 + b".", "refused more than 1,000,000 instructions"),
        (b"\x80\x04}K\x01K\x02s.", "a key that is a int"),
        (b"\x80\x04N)" + b"\x85" * 100_000 + b"Ns.", "refused items for a NoneType"),
        (b"\x80\x04})" + b"\x85" * 100_000 + b"Ns.", "a key that is a tuple"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "damaged"),  # Bytes without end.
        (b"\x80\x04\x8b\xff\xff\xff\x7f.", "damaged"),  # A number of two billion digits.
        (b"\x80\x04}.", "does not hold parameters"),
        (b"\x80\x04.", "damaged"),
        (b"", "is empty"),
    ],
)
def test_no_instruction_does_harm(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, content)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps(tree(), 4)
    for length in range(len(content)):
        with pytest.raises(InputError):
            read(tmp_path, content[:length])


@pytest.mark.parametrize("protocol", [2, 4])
def test_corrupted_files_give_a_tree_or_an_error(tmp_path: Path, protocol: int) -> None:
    good = np.frombuffer(pickle.dumps(tree(), protocol), np.uint8)
    rng = np.random.default_rng(protocol)
    refused = 0
    for _ in range(500):
        bad = good.copy()
        places = rng.integers(len(bad), size=rng.integers(1, 5))
        bad[places] = rng.integers(256, size=len(places))
        try:
            arrays = [a for ps in read(tmp_path, bad.tobytes()).values() for a in ps.values()]
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert all(array.dtype.kind == "f" for array in arrays)
            assert sum(array.nbytes for array in arrays) <= 2 * len(good)
    assert 100 < refused < 500


def test_memory_is_bounded_by_the_file(tmp_path: Path) -> None:
    """The file asks ten thousand times to encode ten megabytes."""
    text = "\xe9" * 10_000_000
    one = dumps([text, Name("_codecs.encode"), (text, "latin1")], 2)
    # The name and its arguments are remembered and called again and again.
    place = one.index(b"c_codecs\nencode\n") + len(b"c_codecs\nencode\n")
    calls = one[:place] + b"q\xf0" + one[place:-2] + b"q\xf1" + b"h\xf0h\xf1R" * 10_000 + b"e."
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from nfnets_jax.weights.published import read_published\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "try: read_published(Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
    )
    (tmp_path / "bomb").write_bytes(calls)
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bomb")],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert "does not hold parameters" in result.stdout, result


def test_modules_that_share_one_mapping_are_refused(tmp_path: Path) -> None:
    """Otherwise 50 kB become nine million arrays."""
    shared = {f"w{index}": np.zeros(1, np.float32) for index in range(300)}
    path = tmp_path / "bomb"
    path.write_bytes(pickle.dumps({f"module_{index}": shared for index in range(300)}, 4))
    with pytest.raises(InputError, match="modules share their parameters"):
        read_published(path)

import functools
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import nfnets_jax
from nfnets_jax.errors import InputError
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.step import TrainState
from nfnets_jax.weights import pretrained
from nfnets_jax.weights.published import Tree, write_published
from tests import golden

CONV, LINEAR = "NFNet/~/nf_block/~/conv0", "NFNet/~/linear"


@functools.cache
def _micro() -> Tree:
    model = nfnets_jax.create_model("nfnet_micro", 10)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return jax.tree.map(np.asarray, params)


@pytest.fixture
def micro() -> Tree:
    """Returns small parameters for ten classes, in dictionaries of their own."""
    return {module: dict(parameters) for module, parameters in _micro().items()}


def assert_equal(actual: Tree, expected: Tree) -> None:
    chex.assert_trees_all_equal_structs(actual, expected)
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), actual, expected)


WRITERS: dict[str, Callable[[Path, Tree], None]] = {
    "parameters.npz": write_published,
    "parameters.safetensors": pretrained.save_pretrained,
}


def test_published_parameters_give_the_published_logits(tmp_path: Path) -> None:
    shapes = golden.load("parameter_trees.json")["nfnet_f0"]
    expected = golden.load("nfnet_f0.json")
    tree = golden.parameters(shapes)
    (tmp_path / "F0_haiku.npz").write_bytes(pickle.dumps(tree, 4))
    params = nfnets_jax.load_pretrained("nfnet_f0", tmp_path / "F0_haiku.npz")
    model = nfnets_jax.create_model("nfnet_f0")
    images = jnp.asarray(golden.images(expected["batch"], expected["image_size"]))
    run = jax.jit(functools.partial(model.apply, is_training=False))
    logits = np.asarray(run(params, {}, None, images)[0]["logits"])
    std = expected["logits_std"]
    np.testing.assert_allclose(logits[:, :8], expected["logits_first8"], rtol=0, atol=1e-4 * std)
    assert logits.std() == pytest.approx(std, rel=1e-4)
    nfnets_jax.save_pretrained(tmp_path / "f0.safetensors", params)
    assert_equal(nfnets_jax.load_pretrained("nfnet_f0", tmp_path / "f0.safetensors"), tree)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_comes_back(tmp_path: Path, micro: Tree, name: str) -> None:
    WRITERS[name](tmp_path / name, micro)
    assert_equal(nfnets_jax.load_pretrained("nfnet_micro", tmp_path / name), micro)


@pytest.mark.parametrize("name", WRITERS)
def test_other_dtypes_become_float32(tmp_path: Path, micro: Tree, name: str) -> None:
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), micro)
    WRITERS[name](tmp_path / name, half)
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
    assert_equal(nfnets_jax.load_pretrained("nfnet_micro", tmp_path / name), expected)


def test_mismatches_are_listed(tmp_path: Path, micro: Tree) -> None:
    micro[CONV] = {"weight": micro[CONV]["w"], "gain": micro[CONV]["gain"][:-1]}
    write_published(tmp_path / "other", micro)
    with pytest.raises(InputError) as caught:
        nfnets_jax.load_pretrained("nfnet_micro", tmp_path / "other")
    assert str(caught.value) == (
        f"{tmp_path / 'other'} is of another model: 2 missing: {CONV}/bias, {CONV}/w; "
        f"1 unexpected: {CONV}/weight; 1 of another shape: {CONV}/gain (31,) and not (32,)"
    )
    write_published(tmp_path / "other", {"linear": {"w": np.zeros((3, 2))}})
    with pytest.raises(InputError, match="NFNet/~/final_conv/bias, .*, .*, .*, ...; 1 unexpected"):
        nfnets_jax.load_pretrained("nfnet_micro", tmp_path / "other")
    write_published(tmp_path / "other", _micro())
    with pytest.raises(InputError, match="is of another model"):
        nfnets_jax.load_pretrained("nfnet_tiny", tmp_path / "other")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, micro: Tree, value: float) -> None:
    micro[CONV]["gain"] = np.full(32, value)
    write_published(tmp_path / "nan", micro)
    with pytest.raises(InputError, match=f"32 of the 32 values of {CONV}/gain are not finite"):
        nfnets_jax.load_pretrained("nfnet_micro", tmp_path / "nan")


def test_another_number_of_classes_starts_a_new_classifier(
    tmp_path: Path, micro: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    write_published(tmp_path / "ten", micro)
    load = functools.partial(nfnets_jax.load_pretrained, "nfnet_micro", tmp_path / "ten")
    assert_equal(load(num_classes=10), micro)
    assert capsys.readouterr().err == ""
    three = load(num_classes=3)
    assert "ten has 10 classes, not 3: the classifier is new" in capsys.readouterr().err
    assert three[LINEAR]["w"].shape == (512, 3)
    assert 0.009 < three[LINEAR]["w"].std() < 0.011
    assert not three[LINEAR]["b"].any()
    assert_equal({**three, LINEAR: micro[LINEAR]}, micro)
    assert (load(num_classes=3, seed=1)[LINEAR]["w"] != three[LINEAR]["w"]).all()


def test_a_classifier_can_be_left_out_and_added(
    tmp_path: Path, micro: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    write_published(tmp_path / "ten", micro)
    bare = nfnets_jax.load_pretrained("nfnet_micro", tmp_path / "ten", num_classes=0)
    assert_equal(bare, {module: micro[module] for module in micro if module != LINEAR})
    file = tmp_path / "bare.safetensors"
    pretrained.save_pretrained(file, bare)
    for number in (None, 0):
        assert_equal(nfnets_jax.load_pretrained("nfnet_micro", file, num_classes=number), bare)
    assert capsys.readouterr().err == ""
    three = nfnets_jax.load_pretrained("nfnet_micro", file, num_classes=3)
    assert "has no classes, not 3: the classifier is new, the rest is" in capsys.readouterr().err
    assert three[LINEAR]["w"].shape == (512, 3)
    assert_equal({module: three[module] for module in bare}, bare)
    with pytest.raises(InputError, match="num_classes is -1; it takes a whole number from 0 on"):
        nfnets_jax.load_pretrained("nfnet_micro", "nowhere", num_classes=-1)


def test_class_names_come_back(tmp_path: Path, micro: Tree) -> None:
    names = [f"class {place}, größer \N{ZERO WIDTH JOINER}" for place in range(10)]
    file = tmp_path / "ten.safetensors"
    pretrained.save_pretrained(file, micro, names)
    assert nfnets_jax.load_class_names(file, 10) == tuple(names)
    assert_equal(nfnets_jax.load_pretrained("nfnet_micro", file), micro)
    with pytest.raises(InputError, match="ten.safetensors has 10 class names for 9 classes"):
        nfnets_jax.load_class_names(file, 9)
    pretrained.save_pretrained(file, micro)
    write_published(tmp_path / "ten", micro)
    assert nfnets_jax.load_class_names(file, 10) is None
    assert nfnets_jax.load_class_names(tmp_path / "ten", 10) is None
    for wrong in (["a\nb"], [""], ["\ud800"], [7], "abc"):
        with pytest.raises(InputError, match="the model"):
            pretrained.save_pretrained(file, micro, wrong)  # type: ignore[arg-type]
    assert nfnets_jax.load_class_names(file, 10) is None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[", "the class names of net.safetensors are no JSON"),
        ("[" * 100_000, "the class names of net.safetensors are no JSON"),
        ("7", "the class names of net.safetensors are no list of strings"),
        ('{"a": "b"}', "the class names of net.safetensors are no list of strings"),
        ('["a", 2]', "the class names of net.safetensors are no list of strings"),
        ('["a"]', "net.safetensors has 1 class names for 2 classes"),
        (r'["a", "\u001b[2J"]', r"net.safetensors has a class name that is empty or has control"),
        (r'["a", "\ud800"]', r"net.safetensors has a class name that is empty or has control"),
        (f'["a", "{"b" * 2**22}"]', "net.safetensors has class names of 4194313 characters"),
    ],
    ids=lambda text: text[:20],
)
def test_bad_class_names_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"linear/w": np.zeros((1, 2))}, "net.safetensors", {"class_names": metadata})
    with pytest.raises(InputError) as caught:
        nfnets_jax.load_class_names("net.safetensors", 2)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["nf_convnet", "resnet26_small"])
def test_other_families_come_back_too(tmp_path: Path, name: str) -> None:
    file = tmp_path / "parameters.safetensors"
    model = nfnets_jax.create_model(name, 10)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    params = jax.tree.map(np.asarray, params)
    nfnets_jax.save_pretrained(file, params)
    assert_equal(nfnets_jax.load_pretrained(name, file), params)


def test_a_run_gives_its_average_or_its_last_parameters(tmp_path: Path, micro: Tree) -> None:
    saved = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    for step in (9, 10):
        last = jax.tree.map(functools.partial(np.add, np.float32(step)), micro)
        scalar = np.zeros((), np.int32)
        saved.save(step, TrainState(scalar, scalar, last, {}, {"m": micro}, micro), {})
    saved.close()
    load = functools.partial(nfnets_jax.load_pretrained, "nfnet_micro")
    assert_equal(load(tmp_path / "run"), micro)
    assert_equal(load(tmp_path / "run" / "checkpoints"), micro)
    assert_equal(load(tmp_path / "run", average=False), last)
    ninth = load(tmp_path / "run" / "checkpoints" / "9", average=False)
    assert ninth[CONV]["gain"][0] == micro[CONV]["gain"][0] + 9
    for file in (tmp_path / "run" / "checkpoints" / "10" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be read") as caught:
        load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_url_is_downloaded(tmp_path: Path, micro: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    write_published(tmp_path / "F0", micro)
    asked = []

    def download(url: str, sha256: str | None) -> Path:
        asked.append(url)
        return tmp_path / "F0"

    monkeypatch.setattr(pretrained, "download", download)
    url = "https://example.org/F0"
    assert_equal(nfnets_jax.load_pretrained("nfnet_micro", url), micro)
    with pytest.raises(InputError, match="F0_haiku.npz is of another model"):
        nfnets_jax.load_pretrained("nfnet_f0")
    assert asked == [url, "https://storage.googleapis.com/dm-nfnets/F0_haiku.npz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nfnet_f9",), "no model 'nfnet_f9'; nearest: "),
        (("nfnet_micro",), "no parameters of nfnet_micro were published, but of nfnet_f0, "),
        (("nfnet_micro", "nowhere.npz"), "nowhere.npz cannot be read: No such file"),
        (("nfnet_micro", "empty"), "no checkpoints in empty"),
        (("nfnet_micro", "text"), "text is neither a published file, nor"),
        (("nfnet_micro", "half.safetensors"), "half.safetensors is damaged"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text").write_text("hello, this is not it")
    pretrained.save_pretrained(Path("half.safetensors"), _micro())
    Path("half.safetensors").write_bytes(Path("half.safetensors").read_bytes()[:-10])
    with pytest.raises(InputError) as caught:
        nfnets_jax.load_pretrained(*arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_loading_needs_what_the_library_needs(tmp_path: Path, micro: Tree) -> None:
    """No Orbax, no safetensors for a published file."""
    write_published(tmp_path / "F0", micro)
    blocked = ("orbax", "safetensors", "cv2", "rich", "torch", "dill")
    script = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import nfnets_jax\n"
        f"print(len(nfnets_jax.load_pretrained('nfnet_micro', {str(tmp_path / 'F0')!r})))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == f"{len(micro)}\n", result.stderr

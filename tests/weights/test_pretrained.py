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
    """No Orbax, no Grain, no safetensors for a published file."""
    write_published(tmp_path / "F0", micro)
    blocked = ("orbax", "grain", "safetensors", "cv2", "rich", "torch", "dill")
    script = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import nfnets_jax\n"
        f"print(len(nfnets_jax.load_pretrained('nfnet_micro', {str(tmp_path / 'F0')!r})))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == f"{len(micro)}\n", result.stderr

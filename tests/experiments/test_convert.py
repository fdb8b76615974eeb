import contextlib
import dataclasses
import io
import json
import pickle
import sys
from pathlib import Path

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments import convert, export, predict
from nfnets_jax.models.nfnet import VARIANTS
from nfnets_jax.serving.classifier import open_classifier
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.step import TrainState
from nfnets_jax.weights.published import Tree
from tests.models.test_nfnet import TINY


@pytest.fixture
def params(tmp_path: Path) -> Tree:
    """Returns parameters for gray images of ten classes, and writes ``ten.safetensors``."""
    model = nfnets_jax.create_model("nfnet_micro", 10)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    params = jax.tree.map(np.asarray, params)
    nfnets_jax.save_pretrained(tmp_path / "ten.safetensors", params)
    return params


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str:
    """Runs the command and returns what it prints."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    with contextlib.redirect_stdout(io.StringIO()) as output:
        convert.main()
    return output.getvalue()


def test_every_format_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Tree
) -> None:
    for source, target, to in (
        ("ten.safetensors", "published.npz", "published"),
        ("published.npz", "timm.safetensors", "timm"),
        ("timm.safetensors", "again.safetensors", "ours"),
    ):
        arguments = (tmp_path / source, tmp_path / target, "--model=nfnet_micro", f"--to={to}")
        assert run(monkeypatch, *arguments) == f"{tmp_path / target}\n"
    again = nfnets_jax.load_pretrained("nfnet_micro", tmp_path / "again.safetensors")
    chex.assert_trees_all_close(again, params, rtol=1e-6)
    published = pickle.loads((tmp_path / "published.npz").read_bytes())
    chex.assert_trees_all_equal(published, params)


def test_class_names_travel_from_a_run_to_predictions_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    small = dataclasses.replace(VARIANTS["nfnet_micro"], **TINY, test_size=8)
    nfnets_jax.register_model("nfnet_named", small)
    model = nfnets_jax.create_model("nfnet_named", 3)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    names = ["a cat", "Hund, groß", "$x"]
    data = {"name": "folder", "test_image_size": 8, "test_margin": 0, "test_crop": "resize"}
    config = {"model": {"name": "nfnet_named"}, "data": data, "ema_decay": 0.9}
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps(config))
    Path("run/classes.json").write_text(json.dumps(names))
    saved = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    params, scalar = jax.tree.map(np.asarray, params), np.zeros((), np.int32)
    saved.save(1, TrainState(scalar, scalar, params, {}, {}, params), {})
    saved.close()

    cv2.imwrite("photo.png", np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    for target, to in (("ours.safetensors", "ours"), ("timm.safetensors", "timm")):
        run(monkeypatch, "run", target, "--model=nfnet_named", f"--to={to}")
        assert nfnets_jax.load_class_names(target, 3) == tuple(names)
    run(monkeypatch, "ours.safetensors", "again.safetensors", "--model=nfnet_named")
    arguments = ["--json", "--save=drawn", "--model=nfnet_named", "--weights=again.safetensors"]
    monkeypatch.setattr(sys, "argv", ["predict", "photo.png", *arguments])
    with pytest.raises(SystemExit):
        predict.main()
    found = {c["label"]: c["name"] for c in json.loads(capsys.readouterr().out)["classes"]}
    assert found == dict(enumerate(names))
    assert Path("drawn/photo.png").exists()

    for weights in ("run", "again.safetensors"):
        described = export.describe(open_classifier("nfnet_named", weights))
        assert described["classes"] == tuple(names)
        assert described["outputs"] == ["logits", "pool"]

    run(monkeypatch, "run", "net.npz", "--model=nfnet_named")
    assert "net.npz has no place for class names: they are left out" in capsys.readouterr().err
    assert nfnets_jax.load_class_names("net.npz", 3) is None
    Path("names").write_text("one\ntwo\nthree\n")
    arguments = ["net.npz", "named.safetensors", "--model=nfnet_named", "--classes=names"]
    run(monkeypatch, *arguments)
    assert nfnets_jax.load_class_names("named.safetensors", 3) == ("one", "two", "three")
    Path("names").write_text("one\ntwo\n")
    with pytest.raises(SystemExit, match="error: names has 2 class names for 3 classes"):
        run(monkeypatch, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ten.safetensors", "x.npz", "--model=nfnet_micr"), "no model 'nfnet_micr'; nearest: nfn"),
        (("ten.safetensors", "x.npz", "--model=nfnet_tiny"), "ten.safetensors is of another model"),
        (("nothing", "x.npz", "--model=nfnet_micro"), "nothing cannot be read"),
        (
            ("ten.safetensors", "x.pth", "--model=nfnet_micro"),
            "x.pth must end in one of",
        ),
        (
            ("ten.safetensors", "x.pth", "--model=nfnet_micro", "--to=timm"),
            "x.pth must end in one of",
        ),
        (("ten.safetensors", "ten.safetensors/x.npz", "--model=nfnet_micro"), "cannot be written"),
    ],
)
def test_bad_input_ends_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: Tree,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    assert str(caught.value.code).startswith("error: ")
    assert message in str(caught.value.code)
    assert "\n" not in str(caught.value.code)
    assert [path.name for path in tmp_path.iterdir()] == ["ten.safetensors"]

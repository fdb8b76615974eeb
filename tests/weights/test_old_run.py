"""A run of 2026-11-26, made at commit 1517aed, next to what that commit made of it.

``logits.json`` has the logits of its moving average for the pixels of a seeded generator; the test
accuracy is the one that its own ``summary.json`` reports.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.data.decoding import Picture
from nfnets_jax.serving.classifier import open_classifier
from nfnets_jax.weights.run import read_run

RUN = Path(__file__).with_name("old_run")
REPOSITORY = Path(__file__).parents[2]
EXPECTED = np.asarray(json.loads((RUN / "logits.json").read_text())["logits"])
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)


def command(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_it_classifies_as_before() -> None:
    logits = open_classifier(weights=str(RUN)).network(jnp.asarray(PIXELS))["logits"]
    np.testing.assert_allclose(logits, EXPECTED, rtol=1e-5, atol=1e-5)


def test_it_evaluates_as_before() -> None:
    figures = json.loads(command("experiments.evaluate", f"--weights={RUN}", "--json"))
    summary = json.loads((RUN / "summary.json").read_text())
    assert figures["top1"] == pytest.approx(summary["test"]["ema_top1"], abs=1e-6)


def test_it_keeps_its_own_crop() -> None:
    """It was made when every model was tested on the center of a resized image."""
    wide = np.random.default_rng(1).integers(0, 256, (8, 16, 1), dtype=np.uint8)
    classifier = open_classifier(weights=str(RUN))
    np.testing.assert_array_equal(classifier.view(Picture(wide, "it")), wide[:, 4:12])
    assert nfnets_jax.create_model("nfnet_micro").data_config.test_crop == "squash"


def test_it_converts(tmp_path: Path) -> None:
    target = tmp_path / "old.safetensors"
    command("experiments.convert", str(RUN), str(target), "--model=nfnet_micro")
    settings = dict(read_run(RUN).config["model"])
    name = settings.pop("name")
    converted = nfnets_jax.load_pretrained(name, target, **settings)
    original = nfnets_jax.load_pretrained(name, RUN, **settings)
    for module, parameters in original.items():
        for parameter, array in parameters.items():
            np.testing.assert_array_equal(converted[module][parameter], array)


def test_predict_imports_nothing_of_training(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    settings = dict(read_run(RUN).config["model"])
    model = nfnets_jax.create_model(settings.pop("name"), 10, **settings)
    nfnets_jax.save_pretrained(weights, nfnets_jax.load_pretrained(model.name, RUN, **settings))
    np.save(tmp_path / "pixels.npy", PIXELS)
    program = f"""
import sys
import numpy as np
import experiments.predict
import nfnets_jax
model = nfnets_jax.create_model("nfnet_micro", 10, **{settings!r})
nfnets_jax.load_pretrained("nfnet_micro", {str(weights)!r}, **{settings!r})
nfnets_jax.preprocess(np.zeros((20, 30, 3), np.uint8), model)
unwanted = ("tensorboardX", "matplotlib", "orbax", "ml_collections", "nfnets_jax.training")
print([name for name in unwanted if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr

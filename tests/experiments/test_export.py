import json
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments import export
from nfnets_jax.serving.classifier import open_classifier


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with parameters of ten classes, on one device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    model = nfnets_jax.create_model("nfnet_micro", 10)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    nfnets_jax.save_pretrained("ten.safetensors", params)
    nfnets_jax.save_pretrained("bare.safetensors", model.reset_classifier(params, 0)[1])
    Path("names").write_text("\n".join("abcdefghij"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    export.main()


BARE = ("--model=nfnet_micro", "--weights=bare.safetensors")
MICRO = ("--model=nfnet_micro", "--weights=ten.safetensors", "--size=8")


def test_the_artifact_takes_pixels_and_is_described(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "out/net.stablehlo", *MICRO, "--classes=names", "--platforms=cpu")
    assert capsys.readouterr().out.splitlines()[1] == "out/net.stablehlo.json"
    described = json.loads(Path("out/net.stablehlo.json").read_text())
    assert described["classes"] == list("abcdefghij")
    assert described["images"]["size"] == 8
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    artifact = bytearray(Path("out/net.stablehlo").read_bytes())
    logits = jax.export.deserialize(artifact).call(images)["logits"]
    classifier = open_classifier("nfnet_micro", "ten.safetensors", size=8)
    np.testing.assert_allclose(jax.nn.softmax(logits), classifier(images), rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net.pb", *MICRO), "net.pb must end in one of .stablehlo, .onnx"),
        (("net.onnx", *MICRO), "ONNX needs a package: pip install jax2onnx"),
        (("net.stablehlo", *MICRO, "--platforms=gpu"), "no platform 'gpu'; there are cpu, cuda"),
        (("net.stablehlo", *MICRO, "--platforms="), "no platform ''; there are cpu, cuda"),
        (("net.stablehlo", *MICRO, "--batch=0"), "--batch is 0; it takes a number from 1 on"),
        (("net.stablehlo", *MICRO, "--size=0"), "--size is 0"),
        (("net.stablehlo", *MICRO, "--classes=nowhere"), "class names in nowhere cannot be read"),
        (("net.stablehlo", *BARE), "bare.safetensors has no classifier of nfnet_micro"),
        (("net.stablehlo", "--weights=ten.safetensors"), "no model is named"),
        (("net.stablehlo", "--model=nfnet_mikro"), "no model 'nfnet_mikro'; nearest: nfnet_micro"),
        (("net.stablehlo", "--model=nfnet_micro", "--weights=x"), "x cannot be read"),
        (("ten.safetensors/net.stablehlo", *MICRO, "--platforms=cpu"), "cannot be written"),
    ],
)
def test_bad_input_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    before = sorted(Path().iterdir())
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    assert str(caught.value.code).startswith("error: ")
    assert message in str(caught.value.code)
    assert "\n" not in str(caught.value.code)
    assert sorted(Path().iterdir()) == before

import json
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import machine, train_step


@pytest.mark.parametrize("mode", [[], ["--forward", "--plain"], ["--forward", "--folded"]])
def test_prints_one_line_of_json(
    mode: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model=nfnet_micro", "--batch=2", "--size=8", "--steps=1"]
    monkeypatch.setattr(sys, "argv", ["train_step", *flags, *mode])
    train_step.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["images_per_second"] == pytest.approx(2 / figures["seconds"])
    assert figures["peak_bytes"] > 0
    assert ("optimizer_share" in figures) == (not mode)


def test_flops_are_those_of_products_and_convolutions() -> None:
    def network(x: jax.Array, kernel: jax.Array, matrix: jax.Array) -> jax.Array:
        x = train_step.plain_conv2d(x, kernel, 2)
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ matrix), None), x, length=3)
        return x

    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(2, 8, 8, 6), (3, 3, 3, 4), (4, 4)]
    ]
    outputs = 2 * 4 * 4 * 4
    assert machine.flops(network, *shapes) == 2 * outputs * (3 * 3 * 3) + 3 * 2 * outputs * 4

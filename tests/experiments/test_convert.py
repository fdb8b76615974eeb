import contextlib
import io
import pickle
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments import convert
from nfnets_jax.weights.published import Tree


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

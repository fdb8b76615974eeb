import argparse
import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

import nfnets_jax
from experiments.search import cost, family, h100
from experiments.search.scaling import Rule
from nfnets_jax.errors import InputError
from nfnets_jax.models.nfnet import VARIANTS

# One block a stage, so that counting it at ImageNet's resolution is fast.
WINNER = dataclasses.replace(
    VARIANTS["nfnet_micro"],
    width=(32, 64),
    depth=(1, 1),
    strides=(1, 2),
    stem=((16, 1),),
    train_size=32,
    group_size=None,
)


def test_the_family_has_at_most_the_work_of_efficientnets(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = "nfnet_c0", "nfnet_c2"
    some = {name: family.REFERENCES[name] for name in (first, last)}
    monkeypatch.setattr(family, "REFERENCES", some)
    monkeypatch.setattr(cost, "_HALVINGS", 5)  # Each network takes a second to count.
    published = {first: 0.39e9, last: 1.0e9}  # Tan and Le 2019, table 2.
    networks = family.family(WINNER, Rule(0.2, 0.2, 0.2))
    assert list(networks) == [first, last]
    for name, config in networks.items():
        work = family.imagenet_cost(config).multiply_adds
        assert 0.6 * published[name] < work < 1.05 * published[name]
        assert config.strides == (2, 2)
        assert config.stem[0][1] == 2
    assert family.imagenet_cost(networks[first]).parameters <= 5.3e6
    assert networks[last].train_size > networks[first].train_size == 224


def test_the_module_registers_the_networks_as_they_are(tmp_path: Path) -> None:
    other = dataclasses.replace(WINNER, standardizes_spatial=False, activation="silu")
    networks = {"written_a": WINNER, "written_b": other}
    family.write_module(tmp_path / "written.py", networks, "For a test.")
    runpy.run_path(str(tmp_path / "written.py"))
    for name, config in networks.items():
        assert nfnets_jax.create_model(name).config == config


def test_bytes_are_those_of_winner_and_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(config: Any, target: Any, classes: int) -> tuple[dict[str, Any], str]:
        name = config.model.name
        figures = {"network": 2e9 if name == family.SMALL else 3e9, "parameters": 1e9}
        return {"model": name, "bytes": figures, "roofline_seconds": 0.01}, ""

    monkeypatch.setattr(h100.plan, "plan", plan)
    target: Any = None
    arguments = argparse.Namespace(workdir=tmp_path, budget="smoke")
    with pytest.raises(InputError, match="a search writes it"):
        h100.measure(arguments, target)
    family.write_module(tmp_path / family.MODULE, {family.SMALL: WINNER}, "For a test.")
    table = h100.measure(arguments, target)
    assert "| nfnet_c_small | 2 | 1 | 10 |" in table
    assert "| efficientnet_small | 3 | 1 | 10 |" in table
    rows = json.loads((tmp_path / "h100.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["nfnet_c_small", "efficientnet_small"]

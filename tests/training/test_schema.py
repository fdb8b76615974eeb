import math
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from experiments import configs, recipes
from nfnets_jax.data.augmentation import CROPS
from nfnets_jax.data.decoding import DECODERS
from nfnets_jax.data.transforms import EVAL_CROPS
from nfnets_jax.errors import InputError
from nfnets_jax.ranges import Range
from nfnets_jax.training import schema
from nfnets_jax.training.experiment import build_experiment

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def numeric_fields() -> list[str]:
    return [name for name, field in schema.walk() if isinstance(field.takes, Range)]


def changed(name: str, value: Any) -> ConfigDict:
    config = recipes.small_images("nfnet_micro", "digits", size=8)
    group = config
    *groups, last = name.split(".")
    for each in groups:
        group = group[each]
    group.unlock()
    with group.ignore_type():
        group[last] = value
    return config


@pytest.mark.parametrize("value", [-1, 1e18, math.inf, math.nan])
@pytest.mark.parametrize("name", numeric_fields())
def test_senseless_numbers_are_refused(name: str, value: Any) -> None:
    (problem,) = schema.problems(changed(name, value))
    assert problem.startswith(f"{name} is ")
    assert "; it takes a " in problem


def test_worker_processes_are_a_number_or_automatic() -> None:
    right: tuple[Any, ...] = ("auto", 0, 3, "3")
    wrong: tuple[Any, ...] = ("many", "-1", -1, 1025, "1025", 0.5, math.nan, None)
    for value in right:
        assert schema.problems(changed("data.num_workers", value)) == []
    for value in wrong:
        (problem,) = schema.problems(changed("data.num_workers", value))
        assert problem.endswith("it takes auto or a whole number from 0 to 1,024")


@pytest.mark.parametrize("value", [True, "1", None, 1 + 0j])
def test_a_range_holds_numbers_alone(value: Any) -> None:
    assert value not in Range(0, 10)
    assert 1 in Range(0, 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("num_steps", 0.5),
        ("data.image_size", 0),
        ("ema_decay", 1.0),
        ("optimizer.warmup_fraction", 1.0),
        ("optimizer.sam_fraction", 0.0),
        ("optimizer.momentum", 1.0),
        ("seed", 2**32),
        ("optimizer.nesterov", 1),
        ("precision", "float16"),
        ("data.dir", None),
    ],
)
def test_ends_of_ranges_and_other_types(name: str, value: Any) -> None:
    assert [problem.split()[0] for problem in schema.problems(changed(name, value))] == [name]


@pytest.mark.parametrize("name", ["dropout_rate", "stochastic_depth_rate"])
@pytest.mark.parametrize("value", [-1.0, 2.0, math.inf, math.nan])
def test_senseless_settings_of_the_network_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} is {value}; it takes a number from 0"):
        build_experiment(changed(f"model.{name}", value))


def test_one_line_names_all_that_is_wrong() -> None:
    config = changed("seed", -1)
    config.ema_decay = math.nan
    config.model.dropout_rate = 2.0
    with pytest.raises(InputError) as caught:
        build_experiment(config)
    message = str(caught.value)
    assert "\n" not in message
    for name in ("seed is -1", "ema_decay is nan", "dropout_rate is 2.0"):
        assert name in message


@pytest.mark.parametrize("name", configs.FAMILIES)
def test_every_configuration_has_values_that_its_fields_take(name: str) -> None:
    assert schema.problems(configs.get_config(name)) == []


def test_a_missing_field_is_named() -> None:
    config = recipes.small_images("nfnet_micro", "digits", size=8)
    with config.unlocked():
        del config["seed"]
        del config.data["flip"]
    assert schema.problems(config) == ["data.flip is missing", "seed is missing"]


def test_values_are_explained() -> None:
    config = recipes.small_images("nfnet_micro", "digits", size=8)
    config.log_every = 7
    text = schema.explain(config)
    assert "log_every = 7 [default 100]\n    steps between lines of the log (a whole" in text
    assert "batch_size = required" in schema.explain()


def test_the_words_for_crops_and_decoders_are_those_of_the_data() -> None:
    fields = dict(schema.walk())
    assert fields["data.crop"].takes == CROPS
    assert fields["data.test_crop"].takes == tuple(EVAL_CROPS)
    assert fields["data.decoder"].takes == DECODERS


def test_the_documentation_has_all_fields() -> None:
    assert schema.as_markdown() in PAGE.read_text("utf-8")

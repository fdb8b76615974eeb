import runpy
from pathlib import Path

import pytest

import experiments.configs
import nfnets_jax

# lm_char is a study's, not a configuration of experiments.run.
CONFIGS = sorted(Path(experiments.configs.__path__[0]).glob("[!_]*.py"))
CONFIGS = [path for path in CONFIGS if path.stem != "lm_char"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_open_with_their_command_and_make_a_model(path: Path) -> None:
    module = runpy.run_path(str(path))
    assert f"python -m experiments.run --config={path.stem}" in module["__doc__"].splitlines()[0]
    config = module["get_config"]()
    nfnets_jax.create_model(num_classes=10, precision=config.precision, **config.model)
    for name in ("dir", "name"):
        assert name in config.data
    for field in ("batch_size", "num_steps", "num_devices", "seed", "precision",
                  "checkpoint_every", "eval_every"):  # fmt: skip
        assert field in config


@pytest.mark.parametrize(
    ("index", "train", "test", "dropout", "magnitude"),
    [
        (0, 192, 256, 0.2, 5),
        (1, 224, 320, 0.3, 10),
        (2, 256, 352, 0.4, 10),
        (3, 320, 416, 0.4, 15),
        (4, 384, 512, 0.5, 15),
        (5, 416, 544, 0.5, 15),
        (6, 448, 576, 0.5, 15),
        (7, 480, 608, 0.5, 15),
    ],
)
def test_nfnets_have_the_papers_settings(
    index: int, train: int, test: int, dropout: float, magnitude: int
) -> None:
    path = next(path for path in CONFIGS if path.stem == f"nfnet_f{index}")
    config = runpy.run_path(str(path))["get_config"]()
    assert (config.data.image_size, config.data.test_image_size) == (train, test)
    assert (config.model.dropout_rate, config.model.stochastic_depth_rate) == (dropout, 0.25)
    assert config.augment.randaugment_magnitude == magnitude
    assert config.batch_size == 4096
    assert config.num_steps == 360 * 1_281_167 // 4096
    assert config.optimizer.warmup_fraction * config.num_steps == pytest.approx(
        5 * 1_281_167 / 4096, abs=1
    )


@pytest.mark.parametrize(
    ("name", "train", "test", "dropout", "epochs"),
    [
        ("nf_resnet50", 224, 224, 0.25, 90),
        ("nf_regnet_b0", 192, 224, 0.2, 360),
        ("nf_regnet_b4", 320, 384, 0.4, 360),
    ],
)
def test_nf_resnets_and_nf_regnets_have_their_papers_settings(
    name: str, train: int, test: int, dropout: float, epochs: int
) -> None:
    path = next(path for path in CONFIGS if path.stem == name)
    config = runpy.run_path(str(path))["get_config"]()
    assert (config.data.image_size, config.data.test_image_size) == (train, test)
    assert (config.model.dropout_rate, config.model.stochastic_depth_rate) == (dropout, 0.1)
    assert config.augment.randaugment_layers == 0
    assert config.augment.cutmix == ("regnet" in name)
    assert config.batch_size == 1024
    assert config.num_steps == epochs * 1_281_167 // 1024
    assert (config.optimizer.weight_decay, config.optimizer.clipping) == (5e-5, 0.0)

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nfnets_jax
from experiments import configs, recipes
from experiments.configs import digits, efficientnet, jft, lm, nf_regnet, nf_resnet, nfnet, resnet
from experiments.projects import import_projects
from experiments.published_results import PUBLISHED
from nfnets_jax.errors import InputError
from nfnets_jax.training import workdir
from nfnets_jax.training.recipe import learning_rate_schedule

REPOSITORY = Path(__file__).parents[2]
FAMILIES = list(dict.fromkeys(configs.FAMILIES.values()))
IMAGENET = (nfnet, nf_resnet, nf_regnet, resnet, efficientnet)


def test_all_names_are_known() -> None:
    assert set(configs.FAMILIES) == {
        *(f"nfnet_f{index}" for index in range(8)),
        *("nfnet_f5_sam", "nfnet_f6_sam"),
        *(f"nfnet_f{index}_bn" for index in range(8)),
        *(f"jft_nfnet_{name}" for name in ("f0", "f1", "f3", "f3_plus", "f7", "f7_plus")),
        *(f"jft_nfnet_{name}_finetune" for name in ("f0", "f1", "f3", "f3_plus", "f7", "f7_plus")),
        *(f"nf_resnet{depth}" for depth in (50, 101, 152, 200, 288, 600)),
        *(f"nf_regnet_b{index}" for index in range(9)),
        *(f"resnet{depth}" for depth in (50, 101, 152, 200)),
        *("resnet50d", "seresnet50", "seresnext26d_32x4d", "seresnext50_32x4d"),
        *("seresnext50d_32x4d", "seresnext101d_32x8d"),
        *(f"{form}_resnet50" for form in ("skipinit", "fixup", "unnormalized")),
        *(f"efficientnet_b{index}" for index in range(8)),
        *("nfnet_digits", "nfnet_cifar10", "nfnet_cifar10_gpu"),
        *("detect_digits", "segment_digits", "detect_coco", "segment_coco"),
        *("finetune", "finetune_paper", "finetune_paper_nf_resnet50"),
    }


@pytest.mark.parametrize("family", [*FAMILIES, lm], ids=lambda x: x.__name__)
def test_a_family_opens_with_command_hardware_hours_and_accuracy(family: ModuleType) -> None:
    summary, command, *facts = (family.__doc__ or "").strip().split("\n\n")
    assert summary.endswith(".")
    if family is lm:
        assert "python -m experiments.studies.lm --budget=cpu" in command
    else:
        (name,) = re.findall(r"python -m experiments\.run --config=(\w+)", command)
        assert name in family.VARIANTS
    for fact in ("Data", "Hardware", "Hours", "Accuracy", "Recipe"):
        assert re.search(rf"^{fact}: \w", "\n".join(facts), re.MULTILINE)


@pytest.mark.parametrize("family", IMAGENET, ids=lambda family: family.__name__)
def test_published_accuracies_are_those_on_record(family: ModuleType) -> None:
    table = re.findall(r"^    (\w+) +([\d.]+|-) ", family.__doc__ or "", re.MULTILINE)
    stated = {name: float(top1) for name, top1 in table if top1 != "-"}
    published = {
        name: result.top1
        for model, results in PUBLISHED.items()
        for result in results
        if (name := f"{model}_sam" if result.note == "with SAM" else model) in family.VARIANTS
    }
    assert stated == published


@pytest.mark.parametrize("name", configs.FAMILIES)
def test_a_configuration_makes_a_model_and_has_the_promised_fields(name: str) -> None:
    config = configs.get_config(name)
    import_projects(config.imports)
    nfnets_jax.create_model(num_classes=10, precision=config.precision, **config.model)
    for field in ("dir", "name"):
        assert field in config.data
    for field in ("batch_size", "num_steps", "num_devices", "seed", "precision",
                  "checkpoint_every", "eval_every", "imports"):  # fmt: skip
        assert field in config


@pytest.mark.parametrize(
    "name", [name for name, family in configs.FAMILIES.items() if family in IMAGENET] + ["finetune"]
)
def test_sizes_and_drop_rates_are_those_of_the_network(name: str) -> None:
    config = configs.get_config(name)
    network = nfnets_jax.create_model(config.model.name).config
    assert config.data.image_size == network.train_size
    assert config.data.test_image_size == network.test_size
    assert config.data.test_crop == network.test_crop
    assert config.model.dropout_rate == network.dropout_rate
    assert config.model.stochastic_depth_rate == network.stochastic_depth_rate


@pytest.mark.parametrize(
    ("name", "test_crop"),
    [("nfnet_f0", "squash"), ("nf_regnet_b0", "padded"), ("nf_resnet50", "padded"),
     ("resnet50", "padded"), ("efficientnet_b0", "padded")],
)  # fmt: skip
def test_images_are_read_as_the_authors_read_them(name: str, test_crop: str) -> None:
    """The authors' code: deepmind-research, nfnets/experiment_nfnets.py and nfnets/experiment.py.

    NFNets have ``eval_preproc='resize_crop_32'``, the others its default, ``'crop_resize'``. All
    are trained on ``_decode_and_random_crop`` of nfnets/dataset.py, no image in two mixtures.
    """
    config = configs.get_config(name)
    assert (config.data.test_crop, config.data.test_margin) == (test_crop, 32)
    assert (config.data.crop, config.data.repeats, config.data.flip) == ("distorted", 1, True)
    assert config.augment.mixtures_per_pair == 1


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
    """Brock et al. 2021b, arXiv:2102.06171, table 1, section 6.1 and appendix."""
    config = configs.get_config(f"nfnet_f{index}")
    assert (config.data.image_size, config.data.test_image_size) == (train, test)
    assert (config.model.dropout_rate, config.model.stochastic_depth_rate) == (dropout, 0.25)
    assert config.augment.randaugment_magnitude == magnitude
    assert config.augment.randaugment_layers == 4
    assert (config.augment.mixup_alpha, config.augment.cutmix) == (0.2, True)
    assert config.batch_size == 4096
    assert config.num_steps == 360 * 1_281_167 // 4096
    assert config.optimizer.warmup_fraction * config.num_steps == pytest.approx(
        5 * 1_281_167 / 4096, abs=1
    )


def test_f6_with_sam_differs_from_f6_in_sam_alone() -> None:
    """Brock et al. 2021b, arXiv:2102.06171, section 6.1: radius 0.05, a fifth of the batch."""
    plain, sam = (configs.get_config(name) for name in ("nfnet_f6", "nfnet_f6_sam"))
    assert (sam.optimizer.sam_rho, sam.optimizer.sam_fraction) == (0.05, 0.2)
    sam.optimizer.update(sam_rho=0.0, sam_fraction=1.0)
    assert sam == plain


@pytest.mark.parametrize("name", ["nfnet_f0", "nfnet_f3"])
def test_a_batch_normalized_nfnet_differs_in_the_network_alone(name: str) -> None:
    """Brock et al. 2021b, arXiv:2102.06171, table 6: "-NF, + BN", all else the same."""
    twin, own = configs.get_config(f"{name}_bn"), configs.get_config(name)
    assert twin.model.name == f"{name}_bn"
    twin.model.name = name
    assert twin == own


def test_nf_regnets_learn_as_their_authors_code_says() -> None:
    """``nfnets/experiment_nf_regnets.py`` of deepmind-research.

    Weight decay of 5e-5 + 1e-5 a level, in float32, to a rate of 0.001 that no batch scales.
    """
    for level in range(6):
        config = configs.get_config(f"nf_regnet_b{level}")
        assert config.optimizer.weight_decay == pytest.approx(5e-5 + 1e-5 * level)
        assert config.optimizer.base_learning_rate * config.batch_size / 256 == 0.4
        assert config.precision == "float32"
        assert learning_rate_schedule(config)(config.num_steps) == pytest.approx(1e-3)


def test_the_papers_fine_tuning() -> None:
    """Brock et al. 2021b, arXiv:2102.06171, section 6.2 and appendix A.5."""
    nfnet, nf_resnet = map(configs.get_config, ("finetune_paper", "finetune_paper_nf_resnet50"))
    for config in (nfnet, nf_resnet):
        assert (config.batch_size, config.num_steps, config.ema_decay) == (2048, 15_000, 0.9999)
        schedule = learning_rate_schedule(config)
        assert [schedule(step) for step in (2500, 5000, 15_000)] == pytest.approx(
            [0.05, 0.1, 0.0], abs=1e-6
        )
    assert (nfnet.model.dropout_rate, nfnet.model.stochastic_depth_rate) == (0.25, 0.1)
    assert (nfnet.optimizer.sam_rho, nfnet.optimizer.weight_decay) == (0.05, 1e-5)
    assert (nf_resnet.model.dropout_rate, nf_resnet.model.stochastic_depth_rate) == (0, 0)
    assert (nf_resnet.optimizer.sam_rho, nf_resnet.optimizer.weight_decay) == (0, 0)


def test_billions_of_images_are_learned_as_published() -> None:
    """Smith et al. 2023, arXiv:2310.16764, sections 2 and 3; for 1e-6 see 2102.06171, A.5."""
    for name, variant in jft.VARIANTS.items():
        config = configs.get_config(name)
        peak = max(learning_rate_schedule(config)(step) for step in (4999, 5000, 5001))
        sizes = (config.data.image_size, config.data.test_image_size)
        if variant.finetunes:
            assert config.num_steps == 50 * 1_281_167 // 2048
            assert (sizes, config.optimizer.sam_rho) == ((384, 480), 0.05)
        else:
            assert (config.batch_size, config.optimizer.weight_decay) == (4096, 1e-6)
            assert (sizes, config.optimizer.sam_rho) == ((224, 256), 0)
            assert (config.ema_decay, config.optimizer.clipping) == (0, 0.01)
            assert (config.augment.mixup_alpha, config.augment.randaugment_layers) == (0, 0)
            assert peak == pytest.approx(1.6)


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
    """``nfnets/base.py`` and the experiments of deepmind-research; NF-ResNets' not verified."""
    config = configs.get_config(name)
    assert (config.data.image_size, config.data.test_image_size) == (train, test)
    assert (config.model.dropout_rate, config.model.stochastic_depth_rate) == (dropout, 0.1)
    assert config.augment.randaugment_layers == 0
    assert config.augment.cutmix == ("regnet" in name)
    assert config.batch_size == 1024
    assert config.num_steps == epochs * 1_281_167 // 1024
    assert config.optimizer.clipping == 0.0


OPTIMIZATION = (
    "batch_size", "num_steps", "precision", "label_smoothing", "ema_decay", "optimizer.name",
    "optimizer.schedule", "optimizer.base_learning_rate", "optimizer.warmup_fraction",
    "optimizer.momentum", "optimizer.nesterov", "optimizer.weight_decay", "optimizer.clipping",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("nfnet_f0", (4096, 112602, "bfloat16", 0.1, 0.99999, "sgd",
                      "cosine", 0.1, 5 / 360, 0.9, True, 2e-5, 0.01)),
        ("nf_resnet50", (1024, 112602, "bfloat16", 0.1, 0.0, "sgd",
                         "cosine", 0.1, 5 / 90, 0.9, True, 5e-5, 0.0)),
        ("nf_regnet_b0", (1024, 450410, "float32", 0.1, 0.99999, "sgd",
                          "cosine", 0.1, 5 / 360, 0.9, True, 5e-5, 0.0)),
        ("resnet50", (1024, 112602, "bfloat16", 0.1, 0.0, "sgd",
                      "cosine", 0.1, 5 / 90, 0.9, True, 1e-4, 0.0)),
        ("efficientnet_b0", (4096, 109474, "bfloat16", 0.1, 0.9999, "rmsprop",
                             "exponential", 0.016, 5 / 350, 0.9, False, 1e-5, 0.0)),
        ("nfnet_digits", (64, 600, "float32", 0.1, 0.99999, "sgd",
                          "cosine", 0.4, 0.1, 0.9, True, 2e-5, 0.01)),
        ("nfnet_cifar10", (512, 770, "float32", 0.2, 0.0, "muon",
                           "linear", 0.075, 0.02, 0.6, True, 0.0, 0.0)),
        ("nfnet_cifar10_gpu", (512, 1562, "bfloat16", 0.2, 0.0, "muon",
                               "linear", 0.075, 0.02, 0.6, True, 0.0, 0.0)),
        ("finetune", (128, 5000, "bfloat16", 0.1, 0.999, "sgd",
                      "cosine", 0.01, 0.1, 0.9, True, 2e-5, 0.01)),
    ],
)  # fmt: skip
def test_a_family_is_optimized_as_its_sources_say(name: str, values: tuple[Any, ...]) -> None:
    """The papers that the families name.

    NFNets: Brock et al. 2021b, arXiv:2102.06171, section 6.1. NF-ResNets and NF-RegNets:
    ``nfnets/experiment.py``, without a moving average, and ``nfnets/experiment_nf_regnets.py`` of
    deepmind-research. ResNets: Goyal et al. 2017, arXiv:1706.02677, section 5.1, and He et al.
    2019, arXiv:1812.01187, section 5. EfficientNets: Tan and Le 2019, arXiv:1905.11946, section
    5.2, and 2021, arXiv:2104.00298, section 5.1. The others are this project's.
    """
    config = configs.get_config(name)
    for other, family in configs.FAMILIES.items():
        if family is configs.FAMILIES[name] and family in IMAGENET:
            shared = configs.get_config(other)
            shared.optimizer.update(sam_rho=0.0, sam_fraction=1.0)
            if family is nf_regnet:
                shared.optimizer.weight_decay = config.optimizer.weight_decay
            assert shared.optimizer == config.optimizer, other
    found = [_field(config, field) for field in OPTIMIZATION]
    assert dict(zip(OPTIMIZATION, found, strict=True)) == dict(
        zip(OPTIMIZATION, values, strict=True)
    )


def _field(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config


def test_no_configuration_imports_jax() -> None:
    program = (
        "import sys; from experiments import configs;"
        "[configs.get_config(name) for name in configs.FAMILIES]; print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": None}, "the recipe lacks the field 'batch_size'"),
        ({"batchsize": 3}, "no field 'batchsize'; nearest: batch_size"),
        ({"data": {"name": "digits"}}, "the recipe lacks the field 'data.image_size'"),
        ({"augment": {"cutmixes": True}}, "no field 'augment.cutmixes'; nearest: cutmix"),
    ],
)
def test_a_recipe_is_refused_for_a_field_too_few_or_too_many(
    changes: dict[str, Any], message: str
) -> None:
    recipe = recipes.small_images("nfnet_micro", "digits", 8).to_dict()
    assert recipes.complete(recipe).to_dict() == recipe
    changed = {name: value for name, value in {**recipe, **changes}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        recipes.complete(changed)


def test_a_run_of_before_resumes_as_what_it_was(tmp_path: Path) -> None:
    """The configuration lacks later fields, and counts as what the run did before them."""
    config = configs.get_config("nfnet_f6_sam")
    config.optimizer.sam_ascent = "batch"
    workdir.claim_workdir(tmp_path, config)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["ema_statistics"]
    for name in ("final_learning_rate", "decay_in_warmup", "decay_biases", "sam_ascent"):
        del written["optimizer"][name]
    (tmp_path / "config.json").write_text(json.dumps(written))
    changed = configs.get_config("nfnet_f6_sam")
    changed.optimizer.decay_biases = True
    with pytest.raises(InputError, match="decay_biases False there, True.*'batch' there, 'replica"):
        workdir.claim_workdir(tmp_path, changed)
    workdir.claim_workdir(tmp_path, config)


def test_a_run_of_before_that_mixes_nothing_resumes(tmp_path: Path) -> None:
    config = digits.get_config()
    workdir.claim_workdir(tmp_path, config)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["augment"]["mixtures_per_pair"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    workdir.claim_workdir(tmp_path, config)
    config.augment.cutmix = written["augment"]["cutmix"] = True
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match="mixtures_per_pair 2 there, 1 here"):
        workdir.claim_workdir(tmp_path, config)


def test_a_run_that_was_started_without_imports_resumes(tmp_path: Path) -> None:
    config = digits.get_config()
    workdir.claim_workdir(tmp_path, config)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.pop("imports") == []
    (tmp_path / "config.json").write_text(json.dumps(written))
    workdir.claim_workdir(tmp_path, config)
    config.seed = 1
    with pytest.raises(InputError, match="seed 0 there, 1 here"):
        workdir.claim_workdir(tmp_path, config)


def test_a_run_that_mixed_images_twice_does_not_resume_otherwise(tmp_path: Path) -> None:
    """Before there was ``mixtures_per_pair``, a pair of images made two mixtures."""
    config = nfnet.get_config()
    workdir.claim_workdir(tmp_path, config)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["augment"]["mixtures_per_pair"], written["data"]["repeats"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"\(augment.mixtures_per_pair 2 there, 1 here\): use"):
        workdir.claim_workdir(tmp_path, config)
    config.augment.mixtures_per_pair = 2
    workdir.claim_workdir(tmp_path, config)

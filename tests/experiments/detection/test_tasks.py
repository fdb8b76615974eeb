"""The tasks as the runner sees them: batches, metrics, and runs of a few steps."""

import json
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from ml_collections import ConfigDict

import experiments.detection.training  # noqa: F401, it registers the tasks
import nfnets_jax
from experiments import configs, predict
from experiments.detection import show_predictions
from experiments.detection.average_precision import AveragePrecision
from experiments.detection.scenes import open_scenes
from experiments.detection.segmentation import MeanIoU, class_weights, enlarge, most_probable
from nfnets_jax.errors import InputError
from nfnets_jax.training import loop
from nfnets_jax.training.experiment import build_experiment
from tests.experiments.detection import coco_folder

pytest.importorskip("pycocotools")
TINY: dict[str, Any] = {"width": (16,), "depth": (1,), "strides": (2,), "stem": ((8, 2),)}


def tiny(name: str, **changes: Any) -> ConfigDict:
    """Four steps of a very small network on scenes of 32 pixels."""
    config = configs.get_config(name)
    with config.unlocked():
        config.model.update(TINY)
    config.update({"batch_size": 4, "num_steps": 4, "log_every": 2, "num_devices": 1})
    config.update({"eval_every": 2, "checkpoint_every": 2, "look_every": 0})
    config.data.update({"image_size": 32, "test_image_size": 32, "num_workers": "0"})
    config.task.settings.update({"channels": 8, "depth": 1, "stride": 4, "most_objects": 8})
    config.update_from_flattened_dict(changes)
    return config


def test_perfect_detections_have_an_average_precision_of_one() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (2, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 20, (2, 3, 2))], axis=-1)
    figures: dict[str, np.ndarray] = {
        "loss": np.array([1.0, 3.0]),
        "mask": np.ones(2),
        "boxes": boxes,
        "label": np.array([[0, 1, 1], [1, 0, -1]]),
        "crowd": np.zeros((2, 3), bool),
        "found_boxes": boxes,
        "found_scores": np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.1]]),
        "found_classes": np.array([[0, 1, 1], [1, 0, 0]]),
    }
    meter = AveragePrecision(2)
    meter.add(figures)
    perfect = meter.result()
    assert perfect["AP"] == pytest.approx(1)
    assert (perfect["loss"], perfect["examples"]) == (2, 2)

    # A wrong class loses its object, and a box moved by a third of its width fits at 0.5 of IoU.
    worse = AveragePrecision(2)
    moved = figures["found_boxes"].copy()
    moved[0, 0, [0, 2]] += (moved[0, 0, 2] - moved[0, 0, 0]) / 4
    worse.add({**figures, "found_boxes": moved})
    assert worse.result()["AP50"] == pytest.approx(1)
    assert worse.result()["AP75"] < 0.8

    # An image that does not count adds nothing.
    masked = AveragePrecision(2)
    masked.add({**figures, "mask": np.array([1.0, 0.0])})
    assert masked.result()["examples"] == 1


def test_mean_iou_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix, jaccard_score

    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 500))
    meter = MeanIoU(5)  # Of class 4 there is no pixel.
    for part in (slice(0, 200), slice(200, 500)):
        counted = confusion_matrix(labels[part], predicted[part], labels=range(5))
        meter.add({"confusion": counted, "loss": np.array(3), "examples": np.array(2)})
    result = meter.result()
    assert result["mIoU"] == pytest.approx(jaccard_score(labels, predicted, average="macro"))
    assert result["pixel_accuracy"] == pytest.approx((labels == predicted).mean())
    assert result["loss"] == 1.5


def test_pixels_are_weighted_by_their_class_in_their_image() -> None:
    labels = np.array([[[0, 0, 0, 0], [2, 255, 1, 1]], [[1] * 4, [255] * 4]])
    root = 2**-0.5
    expected = np.array([[[0.5] * 4, [1, 0, root, root]], [[0.5] * 4, [0] * 4]])
    np.testing.assert_allclose(class_weights(jnp.asarray(labels), 3), expected, rtol=1e-6)


def test_predicted_pixels_undo_the_weights_of_the_loss() -> None:
    """Compares with probabilities times the root of the pixels that a class seems to have."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 4, 3)) + np.array([1.0, 0.0, 0.0])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counted = probabilities.sum((1, 2), keepdims=True)
    expected = (probabilities * np.sqrt(1 + counted)).argmax(-1)
    assert (expected != logits.argmax(-1)).any()
    np.testing.assert_array_equal(most_probable(jnp.asarray(logits)), expected)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_logits_are_interpolated_as_jax_resizes(factor: int) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    shape = (2, 3 * factor, 5 * factor, 4)
    actual = enlarge(jnp.asarray(logits), jnp.zeros(shape))
    expected = jax.image.resize(logits, shape, "linear")
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    cut = enlarge(jnp.asarray(logits), jnp.zeros((2, 3 * factor - 1, 5 * factor, 4)))
    np.testing.assert_array_equal(cut, actual[:, : 3 * factor - 1])


@pytest.fixture(scope="module", params=["detect_digits", "segment_digits"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp(request.param)
    config = tiny(request.param, **{"data.holdout": 8, "task.settings.scenes": 24})
    return request.param, workdir, loop.train(config, workdir)


def test_a_run_leaves_what_every_run_does(finished: tuple[str, Path, dict[str, Any]]) -> None:
    name, workdir, summary = finished
    score = "AP" if name == "detect_digits" else "mIoU"
    assert summary["test"]["examples"] == 8
    assert 0 <= summary["test"][score] <= 1
    assert f"ema_{score}" in summary["test"]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["train", "test"] * 2
    assert (workdir / "curves.png").exists()
    assert json.loads((workdir / "classes.json").read_text()) == [str(k) for k in range(10)]


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    finished: tuple[str, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, undisturbed = finished
    config = tiny(name, **{"data.holdout": 8, "task.settings.scenes": 24})

    def interrupt(*_: Any) -> None:
        raise KeyError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop.reporting.Reporter, "test", interrupt)
        with pytest.raises(KeyError):
            loop.train(config, tmp_path)
    assert loop.train(config, tmp_path)["params_sha256"] == undisturbed["params_sha256"]


def test_pictures_show_what_is_found(
    finished: tuple[str, Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, workdir, _ = finished
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    drawn = tmp_path / "drawn"
    flags = [str(photo), f"--weights={workdir}", f"--save={drawn}", "--json"]
    monkeypatch.setattr("sys.argv", ["predict", *flags])
    with pytest.raises(SystemExit) as ended:
        predict.main()
    assert ended.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["image"] == str(photo)
    assert ("objects" if name == "detect_digits" else "shares") in answer
    picture = cv2.imread(str(drawn / "photo.png"))
    assert picture is not None and picture.shape == (400, 600, 3)


def test_what_is_found_is_drawn_on_test_scenes(finished: tuple[str, Path, dict[str, Any]]) -> None:
    _, workdir, _ = finished
    row = Figure().subplots(1, 2)
    show_predictions.draw(row, str(workdir), seed=0)
    scenes: Any = open_scenes(1, 32, 0).test
    for index, axes in enumerate(row):
        np.testing.assert_array_equal(axes.images[0].get_array(), scenes[index]["image"])


@pytest.mark.parametrize(
    "name", ["detect_coco", pytest.param("segment_coco", marks=pytest.mark.slow)]
)
def test_a_folder_of_coco_trains_a_trained_backbone(name: str, tmp_path: Path) -> None:
    """The backbone is that of a classifier, whose parameters it starts with."""
    coco_folder.write(tmp_path / "train", 6)
    coco_folder.write(tmp_path / "test", 3, split="test")
    classifier = tmp_path / "classifier.safetensors"
    model = nfnets_jax.create_model("nf_resnet26_small", num_classes=3, **TINY)
    params, _ = model.init(jax.random.key(5), jnp.zeros((1, 32, 32, 3)))
    nfnets_jax.save_pretrained(classifier, params)

    folders = {"data.dir": str(tmp_path / "train"), "data.test_dir": str(tmp_path / "test")}
    config = tiny(name, **folders, **{"init.weights": str(classifier), "num_steps": 2})
    with config.unlocked():
        config.model = ConfigDict({"name": "nf_resnet26_small", **TINY})
    experiment = build_experiment(config)
    state = experiment.create_state()
    backbone = {module: state.params[module] for module in params if module != model.classifier}
    jax.tree.map(np.testing.assert_array_equal, backbone, model.reset_classifier(params, 0)[1])
    summary = loop.train(config, tmp_path / "run")
    assert summary["test"]["examples"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "digits"}, "no dataset 'digits' of objects; nearest: digit_scenes"),
        ({"task.settings.stride": 16}, "stride is 16; the stages of nf_resnet26_small have 4"),
        ({"task.settings.depth": 0}, "task.settings: depth is 0; it takes a whole number from 1"),
        ({"task.settings.smallest_scale": 2.0}, "smallest_scale 2.0 is above largest_scale 1.25"),
        ({"augment.mixup_alpha": 0.2}, "augment.mixup_alpha is 0.2; task detection takes 0.0"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1; task detection takes 0 alone"),
        ({"task.name": "detecting"}, "no task 'detecting'; nearest: detection"),
    ],
)
def test_bad_input_ends_with_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_experiment(tiny("detect_digits", **changes))
    assert "\n" not in str(caught.value)


def test_losses_and_detections_do_not_depend_on_the_other_images_of_a_batch() -> None:
    """So that a step is the same on any number of devices."""
    experiment = build_experiment(tiny("detect_digits", **{"task.settings.scenes": 8}))
    model, batch = experiment.model, dict(experiment.train_batches[0])
    batch.pop("unreadable")
    state = experiment.create_state()

    @jax.jit
    def losses(batch: Any) -> Any:
        images = batch["image"] / 255.0
        outputs, _ = model.apply(state.params, state.model_state, None, images, False)
        return experiment.task.losses(outputs, batch, 0.0)["loss"]

    together = losses(batch)
    assert together.shape == (4,)
    alone = [losses(jax.tree.map(lambda x, k=k: x[k : k + 1], batch))[0] for k in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert jnp.isfinite(together).all()

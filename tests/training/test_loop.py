import contextlib
import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import chex
import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import recipes
from nfnets_jax.devices import fetch
from nfnets_jax.errors import InputError
from nfnets_jax.training import divergence, loop, reporting, strides
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.experiment import build_experiment
from nfnets_jax.training.strides import Strides


def tiny(**changes: Any) -> ConfigDict:
    """Twelve steps of a very small network on the digits."""
    config = recipes.small_images("nfnet_micro", "digits", size=8)
    config.model.update({"depth": (1,), "width": (16,), "strides": (1,), "group_size": 8})
    config.update({"num_devices": 1, "batch_size": 16, "num_steps": 12, "log_every": 2})
    config.update({"eval_every": 6, "checkpoint_every": 5, "look_every": 0})
    config.update_from_flattened_dict(changes)
    return config


def rows(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    return workdir, loop.train(tiny(), workdir)


def test_a_run_leaves_what_it_promises(finished: tuple[Path, dict[str, Any]]) -> None:
    workdir, summary = finished
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert summary["steps"] == 12
    assert summary["devices"] == 1
    assert summary["test"]["examples"] == 360
    assert len(summary["params_sha256"]) == 64
    assert {"jax", "dm-haiku", "optax"} < set(summary["versions"])
    written = [(row["step"], row["split"]) for row in rows(workdir)]
    train = [(step, "train") for step in (2, 4, 6, 8, 10, 12)]
    assert sorted(written) == sorted([*train, (6, "test"), (12, "test")])
    assert json.loads((workdir / "config.json").read_text())["model"]["name"] == "nfnet_micro"
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(workdir.glob("events.out.tfevents.*"))
    with (workdir / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(int(row["step"]), row["split"]) for row in table] == written
    assert float(table[0]["loss"]) == rows(workdir)[0]["loss"]
    assert {p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()} == {
        "7",
        "10",
        "12",
    }


def test_a_finished_run_says_so(
    finished: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, summary = finished
    assert loop.train(tiny(), workdir) == summary
    assert "is finished, all 12 steps:" in capsys.readouterr().out


@pytest.mark.parametrize("step", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    finished: tuple[Path, dict[str, Any]],
    step: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After SIGTERM at a step, the resumed run has the same parameters and rows."""
    report = reporting.Reporter.train
    signals = iter([signal.SIGTERM])

    def report_then_signal(self: reporting.Reporter, at: int, *rest: dict[str, float]) -> None:
        report(self, at, *rest)
        if at >= step:
            for number in signals:
                os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(reporting.Reporter, "train", report_then_signal)
        with pytest.raises(loop.Interrupted) as stopped:
            loop.train(tiny(), tmp_path)
    assert stopped.value.signal_number == signal.SIGTERM
    summary = loop.train(tiny(), tmp_path)
    assert "resumed at step" in capsys.readouterr().out
    assert summary["params_sha256"] == finished[1]["params_sha256"]
    undisturbed = {(row["step"], row["split"]) for row in rows(finished[0])}
    resumed = [(row["step"], row["split"]) for row in rows(tmp_path)]
    assert len(resumed) == len(set(resumed))
    assert undisturbed <= set(resumed)


def test_a_killed_run_loses_only_what_came_after_its_checkpoint(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Evaluator, "__call__", die)
        with pytest.raises(KeyError, match="killed"):
            loop.train(tiny(), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "split": "tr')
    summary = loop.train(tiny(), tmp_path)
    assert summary["params_sha256"] == finished[1]["params_sha256"]
    timed = ("images_per_second", "data_wait")
    same = [
        [{k: v for k, v in row.items() if k not in timed} for row in rows(workdir)]
        for workdir in (tmp_path, finished[0])
    ]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 100}, "batch_size 100 does not divide evenly over 8 devices; the nearest"),
        ({"batch_size": 0}, "batch_size is 0; it takes a whole number from 1 to 1,048,576"),
        ({"num_devices": 9}, r"num_devices is 9, and there are 8 \(cpu\); 0 takes all"),
        ({"model.name": "nfnet_f9"}, "no model 'nfnet_f9'; nearest: "),
        ({"data.name": "folder", "data.dir": "/nowhere"}, "no folder /nowhere: it should hold"),
        ({"on_divergence": "pray"}, "on_divergence is 'pray'; it takes stop or skip"),
        ({"micro_batch_size": 3}, "micro_batch_size 3 does not divide the 2 images that each"),
        ({"precision": "half"}, "precision is 'half'; it takes float32 or bfloat16 or tensor"),
        ({"augment.randaugment_layers": 2}, "randaugment_layers is 2, and the images of digits"),
        (
            {"data.on_device": "yes", "augment.cutmix": True},
            "data.on_device is yes, but the augmentation does more than shift and flip whole",
        ),
        (
            {"data.on_device": "yes", "data.name": "synthetic"},
            "on_device is yes, but the training images are not one array in memory: it takes auto",
        ),
        (
            {
                "augment.cutmix": True,
                "augment.mixtures_per_pair": 2,
                "batch_size": 9,
                "num_devices": 1,
            },
            "take a multiple of 2",
        ),
        ({"data.repeats": 4, "batch_size": 9, "num_devices": 1}, "take a multiple of 4"),
    ],
)
def test_what_cannot_be_run_leaves_nothing(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        loop.train(tiny(**{"num_devices": 0, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_an_average_its_figures_are_the_parameters_own(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with_one = finished[1]["test"]
    without = loop.train(tiny(ema_decay=0.0), tmp_path / "run")["test"]
    assert without["loss"] == pytest.approx(with_one["loss"], rel=1e-6)
    assert with_one["ema_loss"] != pytest.approx(with_one["loss"], rel=1e-6)
    assert without["ema_loss"] == without["loss"]
    assert set(without) == set(with_one)


def test_nearest_batch_that_divides(tmp_path: Path) -> None:
    for batch_size, nearest in ((97, 96), (103, 104), (3, 8)):
        with pytest.raises(InputError, match=f"nearest that does is {nearest}$"):
            loop.train(tiny(num_devices=8, batch_size=batch_size), tmp_path / "run")


def test_another_runs_workdir_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    workdir, before = finished[0], (finished[0] / "summary.json").read_bytes()
    with pytest.raises(InputError, match="model.name 'nfnet_micro' there, 'nfnet_tiny' here"):
        loop.train(tiny(**{"model.name": "nfnet_tiny"}), workdir)
    with pytest.raises(InputError, match="num_steps 12 there, 24 here"):
        loop.train(tiny(num_steps=24), workdir)
    assert (workdir / "summary.json").read_bytes() == before


def test_a_file_is_no_workdir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a workdir: File exists"):
        loop.train(tiny(), tmp_path / "file")
    with pytest.raises(InputError, match="cannot be a workdir: Not a directory"):
        loop.train(tiny(), tmp_path / "file" / "run")


def test_unreadable_images_end_the_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "1.jpg").write_bytes(b"not a photograph")
    config = tiny(**{"data.name": "folder", "data.dir": str(tmp_path / "data")})
    with pytest.raises(InputError, match="no image can be read; the first: .*1.jpg: "):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_is_reported_counted_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    for index in range(32):
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{index:02d}.png"), image)
    damaged = folder / "07.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    where = str(tmp_path / "data")
    config = tiny(**{"data.name": "folder", "data.dir": where, "data.test_dir": where})
    config.update({"num_steps": 4, "eval_every": 2, "data": {"max_unreadable": 1 / 32}})
    summary = loop.train(config, tmp_path / "run")
    assert summary["test"]["examples"] == 31
    assert (summary["train"]["unreadable"], summary["test"]["unreadable"]) == (1, 1)
    output = capsys.readouterr().out
    assert output.count(f"not readable, left out: {damaged}: ") == 2  # To learn from, to test on.

    config.data.max_unreadable = 0.001
    with pytest.raises(InputError, match="1 of 32 training images cannot be read, more than the"):
        loop.train(config, tmp_path / "strict")


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path: Path) -> None:
    config = tiny(**{"optimizer.base_learning_rate": 1e6, "optimizer.clipping": 0.0})
    config.optimizer.weight_decay = 10.0
    with pytest.raises(
        divergence.Diverged, match="the gradient norm .* at step .*divergence.json$"
    ):
        loop.train(config, tmp_path)
    assert all(json.dumps(row, allow_nan=False) for row in rows(tmp_path))
    report = json.loads((tmp_path / "divergence.json").read_text())
    assert [figures["step"] for figures in report["history"]] == list(range(1, report["step"] + 1))
    assert report["history"][0]["loss"] == pytest.approx(2.3, abs=0.1)
    assert len(report["examples"]) == 16
    assert all(name.startswith("image ") for name in report["examples"])
    assert report["parameters"][0]["not_finite"] > 0


class DivergesOnce:
    """Compiles the update, and makes the loss of one step NaN."""

    def __init__(self, calls: int):
        self._calls, self._compile = calls, loop.compile_update

    def __call__(self, *arguments: Any) -> Any:
        update = self._compile(*arguments)

        def run(state: Any, batch: Any) -> Any:
            state, metrics = update(state, batch)
            self._calls -= 1
            if self._calls == 0:
                metrics = {**metrics, "loss": metrics["loss"] * np.nan}
            return state, metrics

        return run


def test_a_run_may_skip_the_images_that_it_diverged_at(
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop, "compile_update", DivergesOnce(calls=9))
    summary = loop.train(tiny(on_divergence="skip"), tmp_path)
    assert "resumed at step 7" in capsys.readouterr().out
    assert [row["step"] for row in rows(tmp_path) if row["split"] == "train"] == [
        row["step"] for row in rows(finished[0]) if row["split"] == "train"
    ]
    assert summary["params_sha256"] != finished[1]["params_sha256"]
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", 3)) as saved:
        template = jax.eval_shape(build_experiment(tiny()).create_state)
        resumed = saved.restore_latest(template, print)
    assert resumed is not None
    assert (resumed[0], resumed[2]["batches"]) == (12, 12 + 2)


def test_without_leave_a_diverged_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "compile_update", DivergesOnce(calls=8))
    with pytest.raises(divergence.Diverged, match="the loss is nan .* at step 8"):
        loop.train(tiny(), tmp_path)


MOVED = {"data.padding": 1, "data.flip": True, "eval_every": 0, "log_every": 6}


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("runs") / "resident"
    return workdir, loop.train(tiny(**MOVED, **{"data.on_device": "yes"}), workdir)


def test_devices_that_hold_the_images_learn_as_from_the_host(
    resident: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one device and on two; only the rounding of sums differs."""
    loop.train(tiny(**MOVED), tmp_path / "host")
    on_two = tiny(**MOVED, **{"data.on_device": "yes", "num_devices": 2, "log_images": 1})
    loop.train(on_two, tmp_path / "two")
    assert "2 x cpu, batch 16, training images in their memory" in capsys.readouterr().out
    template = jax.eval_shape(build_experiment(on_two).create_state)
    states = []
    for workdir in (tmp_path / "host", resident[0], tmp_path / "two"):
        with contextlib.closing(Checkpoints(workdir / "checkpoints", 3)) as saved:
            states.append((saved.restore_latest(template, print) or pytest.fail("none"))[1])
    for state in states[1:]:
        chex.assert_trees_all_close(state, states[0], rtol=2e-5, atol=1e-6)


def test_a_stride_that_is_interrupted_ends_like_an_undisturbed_one(
    resident: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM comes during the second stride; the resumed run divides the steps otherwise."""
    signals = iter([signal.SIGTERM])
    settle = Strides.settle

    def settle_and_signal(self: Strides, seconds: float) -> None:
        settle(self, seconds)
        os.kill(os.getpid(), next(signals))

    with monkeypatch.context() as patch:
        patch.setattr(Strides, "settle", settle_and_signal)
        with pytest.raises(loop.Interrupted, match="saved at step 2$"):
            loop.train(tiny(**MOVED, **{"data.on_device": "yes"}), tmp_path)
    summary = loop.train(tiny(**MOVED, **{"data.on_device": "yes"}), tmp_path)
    assert summary["params_sha256"] == resident[1]["params_sha256"]
    timed = ("images_per_second", "data_wait")
    same = [
        [{k: v for k, v in row.items() if k not in timed} for row in rows(workdir)]
        for workdir in (tmp_path, resident[0])
    ]
    assert same[0] == same[1]


@pytest.mark.slow
def test_a_step_of_a_stride_that_diverges_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_update = loop.compile_update

    def diverging(*arguments: Any) -> Any:
        update = compile_update(*arguments)

        def run(state: Any, batch: Any) -> Any:
            state, metrics = update(state, batch)
            if fetch(batch.count) == 3:  # Steps 2 to 4.
                metrics = {**metrics, "loss": metrics["loss"].at[:, 1].set(np.nan)}
            return state, metrics

        return run

    monkeypatch.setattr(loop, "compile_update", diverging)
    monkeypatch.setattr(strides, "_UNTIMED_STEPS", 3)
    config = tiny(**MOVED, **{"data.on_device": "yes"})
    config.update({"checkpoint_every": 0, "log_every": 6})
    with pytest.raises(divergence.Diverged, match="the loss is nan .* at step 3:"):
        loop.train(config, tmp_path)
    report = json.loads((tmp_path / "divergence.json").read_text())
    assert [figures["step"] for figures in report["history"]] == [1, 2, 3]
    assert report["examples"] == build_experiment(config).train_batches.names(2)


@pytest.mark.slow
def test_steps_are_profiled_and_shown_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def add(
        self: Any, tag: str, values: np.ndarray, step: int, dataformats: str | None = None
    ) -> None:
        seen[f"{tag} at {step}"] = values.shape

    monkeypatch.setattr("tensorboardX.SummaryWriter.add_image", add)
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_histogram", add)
    changes = {"eval_every": 0, "checkpoint_every": 0, "log_images": 2, "histogram_every": 3}
    loop.train(tiny(num_steps=4, **changes), tmp_path, (2, 3))
    assert seen["images/0 at 1"] == seen["images/1 at 1"] == (8, 8, 1)
    assert "images/2 at 1" not in seen
    assert seen["parameters/NFNet/~/linear/w at 3"][1] == 10
    assert not any(name.endswith("at 4") for name in seen)
    assert f"profile of steps 2 to 3 in {tmp_path / 'profile'}" in capsys.readouterr().out
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "profile").rglob("*.trace.json.gz"))


@pytest.mark.slow
def test_a_deep_network_is_saved_in_the_published_form_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of its three blocks are equal, so the devices hold their parameters stacked."""
    seen: set[str] = set()
    monkeypatch.setattr(
        reporting.Reporter, "clipping", lambda self, step, figures: seen.update(figures)
    )
    config = tiny(num_steps=5, log_every=1, look_every=1, eval_every=0, checkpoint_every=0)
    config.model.update({"depth": (3,), "looped_blocks": 2})
    once = loop.train(config, tmp_path / "once")
    published = build_experiment(config).create_state()
    names = {f"{module}/{name}" for module, values in published.params.items() for name in values}
    assert {name.rsplit("/", 1)[0] for name in seen} == names
    with contextlib.closing(Checkpoints(tmp_path / "once" / "checkpoints", 1)) as saved:
        _, state, _ = saved.restore_latest(published, print) or pytest.fail("nothing was saved")
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, published)
    assert reporting.params_sha256(state.params) == once["params_sha256"]

    reporter = reporting.Reporter.train
    signals = iter([signal.SIGTERM])

    def interrupted(self: reporting.Reporter, step: int, *rest: dict[str, float]) -> None:
        reporter(self, step, *rest)
        os.kill(os.getpid(), next(signals, 0))

    monkeypatch.setattr(reporting.Reporter, "train", interrupted)
    with pytest.raises(loop.Interrupted):
        loop.train(config, tmp_path / "twice")
    assert loop.train(config, tmp_path / "twice")["params_sha256"] == once["params_sha256"]


def test_clipping_statistics_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, dict[str, float]] = {}
    monkeypatch.setattr(
        reporting.Reporter, "clipping", lambda self, step, figures: seen.update({step: figures})
    )
    changes = {"num_steps": 7, "look_every": 3, "log_every": 4, "eval_every": 0}
    loop.train(tiny(**changes, checkpoint_every=0), tmp_path)
    assert list(seen) == [3, 6]
    for figures in seen.values():
        assert figures["NFNet/~/linear/w/largest_ratio"] > 0
        shares = [value for name, value in figures.items() if name.endswith("/clipped")]
        assert 0 < max(shares) <= 1

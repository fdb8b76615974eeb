import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ml_collections import ConfigDict

from nfnets_jax.errors import InputError
from nfnets_jax.training import hosts, loop, reporting, tracking, workdir
from nfnets_jax.training.recipes import small_images


class FakeRun:
    def __init__(self, **settings: Any):
        self.settings = settings
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Returns the runs that a stand-in for the package starts."""
    started: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        started.append(FakeRun(**settings))
        return started[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return started


def config(project: str = "flowers") -> ConfigDict:
    settings = small_images("nfnet_micro", "digits", size=8)
    settings.wandb = project
    return settings


def report(folder: Path, start: int, steps: list[int]) -> None:
    """Reports steps of a run of six steps, with a test at every third."""
    run = tracking.open_wandb(config(), folder)
    reporter = reporting.Reporter(folder, start, 6, 16, run)
    for step in steps:
        reporter.train(step, {"loss": 1 / step, "top1": step / 10, "learning_rate": 0.1})
        if step % 3 == 0:
            test = {"loss": 2 / step, "top1": 0.5, "ema_loss": 3.0, "ema_top1": 0.25}
            reporter.test(step, test)
    reporter.clipping(steps[-1], {"stem/clipped": 0.5})
    reporter.close()


def figures(run: FakeRun) -> list[tuple[int, dict[str, float]]]:
    return [(step, row) for step, row in run.logged if "stem/clipped" not in str(row)]


def test_wandb_gets_what_metrics_jsonl_has_and_resumes(tmp_path: Path, runs: list[FakeRun]) -> None:
    folder = tmp_path / "roses"
    folder.mkdir()
    report(folder, 0, [1, 2, 3, 4])
    report(folder, 3, [4, 5, 6])  # The checkpoint was at step 3.
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = []
    for row in rows:
        step, split = row.pop("step"), row.pop("split")
        expected.append((step, {f"{split}/{name}": value for name, value in row.items()}))
    first, second = runs
    kept = [(step, row) for step, row in figures(first) if step <= 3]
    assert kept + figures(second) == expected
    assert second.logged[-1] == (6, {"clipping/stem/clipped": 0.5})
    assert first.settings["id"] == second.settings["id"]
    assert first.settings["resume"] == "allow"
    assert first.settings["project"] == "flowers"
    assert first.settings["name"] == "roses"
    assert first.settings["config"]["model"]["name"] == "nfnet_micro"
    assert (first.exit_code, second.exit_code) == (1, 0)  # Stopped, then finished.


def test_another_workdir_is_another_run_and_its_id_moves_with_it(
    tmp_path: Path, runs: list[FakeRun]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tracking.open_wandb(config(), tmp_path / name)
    (tmp_path / "a").rename(tmp_path / "moved")
    tracking.open_wandb(config(), tmp_path / "moved")
    a, b, moved = (run.settings["id"] for run in runs)
    assert a == moved != b


def test_only_the_first_host_of_a_run_that_wants_it_has_one(
    tmp_path: Path, runs: list[FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.open_wandb(config(""), tmp_path) is None
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    assert tracking.open_wandb(config(), tmp_path) is None
    tracking.check_wandb(config())
    assert runs == list(tmp_path.iterdir()) == []


def test_a_missing_package_ends_the_run_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # As if it were not installed.
    with pytest.raises(InputError, match=r"wandb is 'flowers', .* install 'nfnets_jax\[wandb\]'"):
        loop.train(config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_wandb_complains_of_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login`")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(InputError, match=r"cannot start the run: No API key configured\.$"):
        tracking.open_wandb(config(), tmp_path)


def test_a_run_may_be_tracked_from_its_middle(tmp_path: Path) -> None:
    workdir.claim_workdir(tmp_path, config(""))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    workdir.claim_workdir(tmp_path, config())

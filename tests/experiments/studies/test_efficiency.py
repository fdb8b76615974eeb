from pathlib import Path

import pytest

import nfnets_jax
from experiments.published_results import PUBLISHED
from experiments.pure_run import Run, Task
from experiments.studies import efficiency, results
from nfnets_jax.models.counting import summarize


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_networks_of_a_size_have_about_as_many_multiply_adds(budget: str) -> None:
    work: dict[str, list[int]] = {}
    for name, network in efficiency.networks(budget).items():
        model = nfnets_jax.create_model(network.model, 10, **network.overrides)
        work.setdefault(name.split()[-1], []).append(summarize(model, 32).work.multiply_adds)
    assert [len(sizes) for sizes in work.values()] == [3, 3, 3]
    for sizes in work.values():
        assert max(sizes) < 1.25 * min(sizes)


def test_published_networks_have_their_published_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("nfnet_f0", "nfnet_f0_bn", "efficientnet_b1", "resnet50")
    monkeypatch.setattr(efficiency, "PUBLISHED", {name: PUBLISHED[name] for name in names})
    points = {point.name: point for point in efficiency.published()}
    assert points["nfnet_f0"].costs["parameters"] == 71489284
    assert points["nfnet_f0"].costs["seconds"] == 73.3 / 32
    assert "seconds" not in points["efficientnet_b1"].costs
    assert set(points) == {"nfnet_f0", "efficientnet_b1"}  # The study is of two families.


def test_only_nfnets_clip_their_gradients(
    tmp_path: Path, trained: list[tuple[Task, Run, int]]
) -> None:
    found = efficiency.study(tmp_path, "smoke", None)
    assert [run.clipping > 0 for _, run, _ in trained] == [True, False, False]
    costs, accuracies = found.tables
    for name in efficiency.networks("smoke"):
        assert f"| {name} |" in costs and f"| {name} |" in accuracies
    assert costs.count(" | 2 |") == 3  # Seconds for 1,000 images at 500 images per second.


@pytest.mark.slow
def test_the_smoke_study_trains_every_network(tmp_path: Path) -> None:
    results.write(tmp_path, "command", efficiency.study(tmp_path, "smoke", None))
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {name} |" in table for name in efficiency.networks("smoke"))
    assert (tmp_path / "efficiency.png").stat().st_size > 0

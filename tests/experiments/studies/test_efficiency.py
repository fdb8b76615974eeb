from pathlib import Path

import pytest

import nfnets_jax
from experiments.studies import efficiency
from experiments.studies.efficiency import Point
from nfnets_jax.models.counting import summarize


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_networks_of_a_size_have_about_as_many_multiply_adds(budget: str) -> None:
    work: dict[str, list[int]] = {}
    for name, contender in efficiency.contenders(budget).items():
        model = nfnets_jax.create_model(contender.model, 10, **contender.overrides)
        work.setdefault(name.split()[-1], []).append(summarize(model, 32).work.multiply_adds)
    assert [len(sizes) for sizes in work.values()] == [3, 3, 3]
    for sizes in work.values():
        assert max(sizes) < 1.25 * min(sizes)


def test_the_front_is_what_nothing_cheaper_matches() -> None:
    points = [
        Point("", name, {"parameters": cost}, top1)
        for name, cost, top1 in (("a", 3, 70), ("b", 1, 50), ("c", 2, 40), ("d", 3, 60))
    ]
    points.append(Point("", "unknown", {}, 99))
    assert [point.name for point in efficiency.front(points, "parameters")] == ["b", "a"]
    assert efficiency.front(points, "seconds") == []


def test_a_point_is_matched_by_what_costs_no_more_and_is_as_accurate() -> None:
    point = Point("", "", {"seconds": 2}, 60)
    assert efficiency.matched(point, [Point("", "", {"seconds": 2}, 60)], "seconds")
    for seconds, top1 in ((3, 70), (1, 50)):
        assert not efficiency.matched(point, [Point("", "", {"seconds": seconds}, top1)], "seconds")
    assert not efficiency.matched(point, [Point("", "", {}, 99)], "seconds")


@pytest.mark.slow
def test_the_study_learns_with_each_and_reports(tmp_path: Path) -> None:
    efficiency.study(tmp_path, "smoke", None)
    report = (tmp_path / "report.md").read_text()
    assert all(f"| {name} |" in report for name in efficiency.contenders("smoke"))
    assert "figure 1" in report
    assert (tmp_path / "efficiency.png").stat().st_size > 0

import json
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies import grid, results


def test_rows_and_conditions_are_written(tmp_path: Path) -> None:
    rows: list[grid.Row] = [
        {"rate": 0.1, "loss": None, "seconds": 2.0},
        {"rate": 1.0, "loss": 3, "seconds": 3.0},
    ]
    table = results.table("Losses.", ("rate", "loss"), ((row["rate"], row["loss"]) for row in rows))
    found = results.Results({"steps": 3}, rows, [table], {"loss_curve": Figure()})
    results.write(tmp_path, "python -m study", found)

    contents = json.loads((tmp_path / "results.json").read_text())
    assert contents["rows"] == rows
    assert contents["command"] == "python -m study"
    conditions = contents["conditions"]
    assert (conditions["steps"], conditions["runs"], conditions["run_seconds"]) == (3, 2, 5)
    assert {"date", "processor", "python", "jax", "optax"} <= set(conditions)
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (
        (tmp_path / "results.md")
        .read_text()
        .startswith(
            "# Results\n\n    python -m study\n\n"
            "Losses.\n\n| rate | loss |\n| --- | --- |\n| 0.1 | – |\n| 1 | 3 |\n\n"  # noqa: RUF001
            "![loss curve](loss_curve.png)\n\nConditions: steps 3, runs 2, run_seconds 5, "
        )
    )

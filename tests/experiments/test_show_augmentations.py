from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import show_augmentations
from nfnets_jax.data.randaugment import OPERATIONS


def test_the_sheet_shows_every_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    draw = show_augmentations._draw

    def draw_and_note(rows: dict[str, list[np.ndarray]]) -> Figure:
        titles.extend(rows)
        return draw(rows)

    monkeypatch.setattr(show_augmentations, "_draw", draw_and_note)
    out = tmp_path / "sheet.png"
    monkeypatch.setattr("sys.argv", ["show", f"--out={out}", "--size=32"])
    show_augmentations.main()
    assert cv2.imread(str(out)) is not None
    for name in OPERATIONS:
        assert f"{name.replace('_', ' ')}, magnitude 5, 10, 15" in titles
    assert {"MixUp", "CutMix", "inception crop", "as it is"} < set(titles)


def test_what_is_no_photograph_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat.jpg").write_bytes(np.random.default_rng(0).bytes(100))
    monkeypatch.setattr("sys.argv", ["show", f"--image={tmp_path / 'cat.jpg'}"])
    with pytest.raises(SystemExit, match=r"^error: .*cat.jpg: no image that OpenCV can decode$"):
        show_augmentations.main()

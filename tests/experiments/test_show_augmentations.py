from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import show_augmentations
from nfnets_jax.data.randaugment import OPERATIONS


def test_the_figure_shows_every_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    draw = show_augmentations._draw_samples

    def record_titles_and_draw(rows: dict[str, list[np.ndarray]]) -> Figure:
        titles.extend(rows)
        return draw(rows)

    monkeypatch.setattr(show_augmentations, "_draw_samples", record_titles_and_draw)
    out = tmp_path / "figure.png"
    monkeypatch.setattr("sys.argv", ["show", f"--out={out}", "--size=32"])
    show_augmentations.main()
    assert cv2.imread(str(out)) is not None
    for name in OPERATIONS:
        assert f"{name.replace('_', ' ')}, magnitude 5, 10, 15" in titles
    assert {"MixUp", "CutMix", "random crop", "as it is"} < set(titles)


def test_a_file_without_an_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat.jpg").write_bytes(np.random.default_rng(0).bytes(100))
    monkeypatch.setattr("sys.argv", ["show", f"--image={tmp_path / 'cat.jpg'}"])
    with pytest.raises(SystemExit, match=r"^error: .*cat.jpg: not an image that OpenCV"):
        show_augmentations.main()

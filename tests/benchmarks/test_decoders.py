import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import decoders
from tests.data.test_decoding import smooth


def test_decoders_of_the_same_crops_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photographs" / "a").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        Image.fromarray(smooth(90, 120)).save(tmp_path / "photographs" / "a" / name)

    def darker(crops: Sequence[decoders.Crop]) -> list[np.ndarray]:
        for encoded, _ in crops:
            assert Image.open(io.BytesIO(encoded)).size == (64, 48)
        return [pixels - np.minimum(pixels, 3) for pixels in decoders.decode_with_ours(crops)]

    monkeypatch.setattr(decoders, "peers", lambda: {"a peer": darker})
    flags = [f"--dir={tmp_path / 'photographs'}", "--shorter_side=48", "--rounds=1"]
    monkeypatch.setattr("sys.argv", ["decoders", *flags, f"--out={tmp_path}"])
    decoders.main()
    table = (tmp_path / "decoders_cpu.md").read_text()
    assert "| crops, over a peer, whose pixels differ by up to 3 levels |" in table
    assert "| crops resized to 192 pixels, over decoding the photographs whole |" in table
    assert "photographs 2, shorter_side 48" in table
    capsys.readouterr()


def test_peers_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoders.nvimgcodec, "missing", lambda: "nvimgcodec is not installed: pip")
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: None)
    assert decoders.peers() == {}
    assert capsys.readouterr().out.splitlines() == [
        "no comparison with nvimgcodec: nvimgcodec is not installed: pip",
        "no comparison with DALI: pip install nvidia-dali-cuda120",
    ]

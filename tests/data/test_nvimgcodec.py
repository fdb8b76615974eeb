import importlib.util
from collections.abc import Callable

import numpy as np
import pytest

from nfnets_jax.data import nvimgcodec
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.decoding import Picture, Reading
from nfnets_jax.data.jpeg import Box
from nfnets_jax.data.pipeline import train_batches
from nfnets_jax.data.reader import auto_workers
from nfnets_jax.errors import InputError, UnreadableImageError
from tests.data.fake_sources import Files
from tests.data.test_jpeg import BOXES, FILES, IMAGE

INSTALLED = not nvimgcodec.missing()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Box]:
    """Has black pixels decoded where nvimgcodec is asked, and lists the boxes."""
    boxes: list[Box] = []

    def decode(encoded: bytes, box: Box) -> np.ndarray:
        boxes.append(box)
        return np.zeros((box.height, box.width, 3), np.uint8)

    monkeypatch.setattr(nvimgcodec, "missing", lambda: "")
    monkeypatch.setattr(nvimgcodec, "decode", decode)
    return boxes


def picture(name: str) -> Picture:
    return Picture(FILES[name], "it", Reading(decoder="nvimgcodec"))


def test_full_resolution_alone_is_left_to_nvimgcodec(decoded: list[Box]) -> None:
    """It cannot decode to a lower resolution, whose pixels would be others."""
    box = BOXES[2]
    assert not picture("gray").part(box).any()
    assert picture("gray").part(box, shrink=2).any()
    assert Picture(FILES["gray"], "it").part(box).any()
    assert decoded == [box]


def test_libjpeg_turbo_decodes_what_nvimgcodec_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvimgcodec, "missing", lambda: "")
    monkeypatch.setattr(nvimgcodec, "decode", lambda encoded, box: None)
    np.testing.assert_array_equal(
        picture("progressive").part(BOXES[2]), Picture(FILES["progressive"], "it").part(BOXES[2])
    )


@pytest.mark.parametrize("found", [None, ModuleNotFoundError])
def test_a_line_says_what_to_install(
    found: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> None:
        if found:
            raise found

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(InputError, match=r"^nvimgcodec is not installed: pip install '[^\n]*$"):
        Reading(decoder="nvimgcodec")


def test_another_decoder_is_refused() -> None:
    with pytest.raises(InputError, match="no decoder 'dali'; there are auto, nvimgcodec"):
        Reading(decoder="dali")


@pytest.mark.parametrize("gpu", [False, True])
def test_threads_share_a_gpu_that_decodes(
    gpu: bool, decoded: list[Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvimgcodec, "has_gpu", lambda: gpu)
    reading = Reading(decoder="nvimgcodec")
    batches = train_batches(Files(9, set()), Augmentation(8), 8, seed=0, reading=reading)
    assert (auto_workers(batches) == 0) == gpu


@pytest.mark.skipif(not INSTALLED, reason="nvimgcodec is not installed")
@pytest.mark.parametrize("name", FILES)
def test_its_pixels_are_those_of_libjpeg_turbo(name: str) -> None:
    for box in BOXES:
        pixels = picture(name).part(box).astype(int)
        assert np.abs(pixels - Picture(FILES[name], "it").part(box)).max() <= 2


@pytest.mark.skipif(not INSTALLED, reason="nvimgcodec is not installed")
@pytest.mark.parametrize("damage", [lambda jpeg: jpeg[: len(jpeg) // 2], lambda jpeg: jpeg[:99]])
def test_incomplete_files_are_unreadable(damage: Callable[[bytes], bytes]) -> None:
    encoded = damage(FILES["4:2:0, no restarts"])
    with pytest.raises(UnreadableImageError, match="^it: "):
        Picture(encoded, "it", Reading(decoder="nvimgcodec")).part(Box(0, 0, *IMAGE.shape[:2]))

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nfnets_jax.data.decoding import Picture, resize
from nfnets_jax.errors import UnreadableImageError


def smooth(height: int, width: int) -> np.ndarray:
    """An image that survives compression: ``[H, W, 3]`` of slow waves."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9 + i) + np.sin(columns / (7 + i)) for i in range(3)]
    return np.clip(127 + 60 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)


def encode(image: np.ndarray, kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def decode(content: bytes | np.ndarray, shrink: float = 1.0) -> np.ndarray:
    picture = Picture(content, "photos/cat.jpg")
    pixels = picture.pixels(shrink)
    if shrink == 1:
        assert pixels.shape == (picture.height, picture.width, 3)
    return pixels


IMAGE = smooth(60, 84)
GRAY = np.asarray(Image.fromarray(IMAGE).convert("L").convert("RGB"))
JPEG = encode(IMAGE, "JPEG", quality=95)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (JPEG, IMAGE),
        (encode(IMAGE, "JPEG", quality=95, progressive=True), IMAGE),
        (encode(IMAGE, "JPEG", "L", quality=95), GRAY),
        (encode(IMAGE, "JPEG", "CMYK", quality=95), IMAGE),
        (encode(IMAGE, "PNG"), IMAGE),  # Under a JPEG's name: the content decides.
        (encode(IMAGE, "PNG", "L"), GRAY),
        (encode(IMAGE, "PNG", "RGBA"), IMAGE),
        (encode(IMAGE, "PNG", "P"), np.asarray(Image.fromarray(IMAGE).convert("P").convert("RGB"))),
        (cv2.imencode(".png", IMAGE[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), IMAGE),
        (cv2.imencode(".png", GRAY[..., 0].astype(np.uint16) * 257)[1].tobytes(), GRAY),
        (encode(IMAGE, "WEBP", quality=95), IMAGE),
        (encode(IMAGE, "BMP"), IMAGE),
        (JPEG + b"junk after the end", IMAGE),
        (IMAGE, IMAGE),
    ],
    ids=[
        *("JPEG", "progressive", "gray", "CMYK", "PNG", "gray PNG", "alpha", "palette"),
        *("16 bits", "16 bits gray", "WebP", "BMP", "junk at the end", "array"),
    ],
)
def test_files_of_any_kind_become_rgb(content: bytes, expected: np.ndarray) -> None:
    np.testing.assert_allclose(decode(content).astype(int), expected, atol=12)
    assert np.abs(decode(content).astype(int) - expected).mean() < 2.5


def whole(kind: str) -> bytes:
    return encode(IMAGE, kind)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        JPEG[: len(JPEG) // 2],
        JPEG[:20],
        whole("PNG")[: len(whole("PNG")) // 2],
        whole("BMP")[: len(whole("BMP")) // 2],
        whole("WEBP")[: len(whole("WEBP")) // 2],
        JPEG[:2] + bytes(300) + JPEG[2:],
    ],
    ids=["empty", "text", "JPEG", "JPEG header", "PNG", "BMP", "WebP", "zeros"],
)
def test_a_damaged_file_is_named_in_the_error(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="^photos/cat.jpg: "):
        decode(content)


def test_a_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(JPEG)
    assert Picture(tmp_path / "cat.jpg", "it").pixels().shape == IMAGE.shape
    with pytest.raises(UnreadableImageError, match="^it: No such file or directory$"):
        Picture(tmp_path / "dog.jpg", "it")


def test_extraneous_bytes_are_ignored() -> None:
    """A few of ImageNet's photographs have extraneous bytes before the end of the image."""
    padded = JPEG[:-2] + bytes(5) + JPEG[-2:]
    np.testing.assert_array_equal(decode(padded), decode(JPEG))


@pytest.mark.parametrize("shrink", [1.9, 2.0, 5.3])
def test_a_jpeg_shrinks_by_the_requested_factor_at_most(shrink: float) -> None:
    large = smooth(400, 600)
    pixels = decode(encode(large, "JPEG", quality=95), shrink)
    assert 400 / shrink <= pixels.shape[0] <= 400
    assert (pixels.shape[0] < 400) == (shrink >= 2)
    reduced = cv2.resize(large, pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(pixels.astype(int) - reduced).mean() < 3


def test_resizing_keeps_channels_and_returns_images_of_the_size_unchanged() -> None:
    assert resize(IMAGE, 60, 84) is IMAGE
    assert resize(IMAGE[..., :1], 30, 42).shape == (30, 42, 1)
    enlarged = resize(IMAGE, 120, 168)
    assert np.abs(resize(enlarged, 60, 84).astype(int) - IMAGE).mean() < 2

import io
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from nfnets_jax.data.decoding import Picture, Reading, resize
from nfnets_jax.data.transforms import EVAL_CROPS, distorted_crop, eval_crop, inception_crop
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


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of 57 bytes that says how large it is, and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [36_000, 100_000, 2**31 - 1])
def test_an_image_that_says_it_is_huge_takes_no_memory(side: int) -> None:
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match=r"^it: .*(pixels are more than|size|image)"):
        Picture(png_of_size(side, side), "it")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_limit_of_pixels_is_a_setting() -> None:
    assert Picture(whole("PNG"), "it", Reading(max_pixels=60 * 84)).height == 60
    for content in (whole("PNG"), JPEG):
        with pytest.raises(UnreadableImageError, match="84 x 60 pixels are more than the 5,039 of"):
            Picture(content, "it", Reading(max_pixels=60 * 84 - 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_turned_on_request(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(IMAGE, kind, exif=exif, quality=95)
    np.testing.assert_allclose(decode(content).astype(int), IMAGE, atol=14)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    picture = Picture(content, "it", Reading(upright=True))
    assert (picture.height, picture.width) == expected.shape[:2]
    np.testing.assert_allclose(picture.pixels().astype(int), expected, atol=4)
    halved = picture.pixels(shrink=2)
    assert halved.shape[0] / halved.shape[1] == pytest.approx(
        picture.height / picture.width, rel=0.05
    )


@pytest.mark.parametrize("shape", [(1, 65_500), (65_500, 1), (2, 9_000), (1, 1)])
def test_images_of_extreme_shapes_are_cropped(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    for crop in EVAL_CROPS:
        assert np.unique(eval_crop(image, 64, 8, crop)).tolist() == [77]
    rng = np.random.default_rng(0)
    for random_crop in (inception_crop, distorted_crop):
        assert random_crop(Picture(image, "it"), 64, rng).shape == (64, 64, 3)


SMALL = smooth(20, 28)
SEEDS = [
    *(encode(SMALL, kind) for kind in ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "JPEG2000")),
    encode(SMALL, "JPEG", progressive=True),
    encode(SMALL, "PNG", "P"),
    encode(SMALL, "TIFF", "1"),
    encode(SMALL, "PPM"),
    encode(SMALL, "AVIF"),
]


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes, inserts, removes or repeats some bytes, most often near the header."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data)) * rng.choice([1, 0.1]))
        length = int(rng.integers(1, 9))
        kind = rng.integers(4)
        if kind == 0:
            data[place : place + length] = rng.bytes(length)
        elif kind == 1:
            data[place:place] = rng.bytes(length)
        elif kind == 2 and len(data) > 16:
            del data[place : place + length]
        else:
            data[place : place + length] = bytes([int(rng.choice([0, 255]))]) * length
    return bytes(data)


def read_mutations(count: int) -> None:
    """Reads damaged files: each is cropped, or is an unreadable image."""
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "unreadable": 0}
    for number in range(count):
        content = mutate(SEEDS[number % len(SEEDS)], rng)
        try:
            picture = Picture(content, "it", Reading(max_pixels=10**6, upright=True))
            assert eval_crop(picture.pixels(), 16).shape == (16, 16, 3)
        except UnreadableImageError as error:
            assert str(error).startswith("it: ")
            assert "\n" not in str(error)
            outcomes["unreadable"] += 1
        else:
            outcomes["read"] += 1
    assert min(outcomes.values()) > count / 20


def run_with_memory_of(gigabytes: float, count: int) -> None:
    """Reads mutations in a process that has no more memory."""
    program = (
        "import resource; from tests.data import test_decoding; "
        f"resource.setrlimit(resource.RLIMIT_DATA, (int({gigabytes} * 2**30),) * 2); "
        f"test_decoding.read_mutations({count})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_damaged_files_are_read_or_named() -> None:
    run_with_memory_of(1.5, 600)


@pytest.mark.slow
def test_thousands_of_damaged_files_are_read_or_named() -> None:
    run_with_memory_of(1.5, 20_000)


def test_the_faults_from_the_field(shared: Path) -> None:
    folder = shared / "faults" / "images"
    for file in folder.iterdir():
        if "65500" in file.name:
            assert eval_crop(Picture(file, "it").pixels(), 16).shape == (16, 16, 3)
        else:
            with pytest.raises(UnreadableImageError, match="^it: "):
                Picture(file, "it").pixels()

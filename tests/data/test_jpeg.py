import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.jpeg import Box, cut
from nfnets_jax.errors import UnreadableImageError
from tests.data.test_decoding import smooth

# Noise makes each pixel different, so that a shift by one is seen.
NOISE = np.random.default_rng(0).integers(-20, 20, (150, 208, 3))
IMAGE = np.clip(smooth(150, 208) + NOISE, 0, 255).astype(np.uint8)
BOXES = [Box(0, 0, 150, 208), Box(0, 0, 9, 9), Box(61, 83, 40, 51), Box(37, 5, 113, 203)]


def encode(mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


RESTARTS: dict[str, dict[str, Any]] = {
    "no restarts": {},
    "every row": {"restart_marker_rows": 1},
    "every unit": {"restart_marker_blocks": 1},
    "every 13 units": {"restart_marker_blocks": 13},
    "across rows": {"restart_marker_blocks": 7},
}
FILES = {
    **{
        f"{sampling}, {name}": encode(subsampling=sampling, **restarts)
        for sampling in ("4:4:4", "4:2:2", "4:2:0")
        for name, restarts in RESTARTS.items()
    },
    "gray": encode("L", restart_marker_blocks=2),
    "CMYK": encode("CMYK"),
    "progressive": encode(progressive=True),
}


@pytest.mark.parametrize("shrink", [1.0, 2.0, 2.7])
@pytest.mark.parametrize("name", FILES)
def test_a_part_is_the_same_as_in_the_whole_image(name: str, shrink: float) -> None:
    picture = Picture(FILES[name], "it")
    whole = picture.pixels(shrink)
    eighths = round(8 * whole.shape[0] / picture.height)
    for box in BOXES:
        top, left = box.top * eighths // 8, box.left * eighths // 8
        bottom = math.ceil((box.top + box.height) * eighths / 8)
        right = math.ceil((box.left + box.width) * eighths / 8)
        np.testing.assert_array_equal(picture.part(box, shrink), whole[top:bottom, left:right])


def test_pillow_decodes_the_same_pixels_of_a_cut() -> None:
    box = Box(61, 83, 40, 51)
    for encoded in (FILES["4:2:0, every unit"], FILES["4:4:4, every 13 units"], FILES["gray"]):
        piece = cut(encoded, box)
        assert piece is not None
        assert len(piece.encoded) < len(encoded) * 3 / 4
        inside = np.asarray(Image.open(io.BytesIO(piece.encoded)))
        assert inside.shape[:2] == piece.box[2:]
        top, left = box.top - piece.box.top, box.left - piece.box.left
        np.testing.assert_array_equal(
            inside[top : top + 40, left : left + 51],
            np.asarray(Image.open(io.BytesIO(encoded)))[61:101, 83:134],
        )


@pytest.mark.parametrize("restarts", [{}, {"restart_marker_blocks": 1}])
def test_an_incomplete_file_is_unreadable_in_every_part(restarts: dict[str, Any]) -> None:
    encoded = encode(**restarts)
    for box in BOXES:
        with pytest.raises(UnreadableImageError, match="^it: "):
            Picture(encoded[: len(encoded) // 2], "it").part(box)


def test_damage_is_found_where_it_is_decoded() -> None:
    damaged = bytearray(FILES["4:4:4, no restarts"])
    at = len(damaged) // 3
    damaged[at : at + 4] = b"\xff\xfe\xff\xfe"
    with pytest.raises(UnreadableImageError, match="^it: "):
        Picture(bytes(damaged), "it").part(Box(100, 0, 20, 208))
    assert Picture(bytes(damaged), "it").part(Box(0, 0, 9, 9)).shape == (9, 9, 3)


@pytest.mark.parametrize("name", ["progressive", "4:2:0, across rows"])
def test_what_cannot_be_cut_is_decoded_whole(name: str) -> None:
    assert cut(FILES[name], BOXES[0]) is None

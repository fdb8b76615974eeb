"""Cuts JPEG files without decoding them, so that little besides a wanted part is decoded.

A JPEG is decoded from its first row on, at a cost that its compressed bytes dominate. One whose
header says that it has fewer rows is decoded that far. One with restart markers, after each of
which decoding starts anew, can be cut on all sides (ITU-T T.81, sections B.2 and E.1.4).
"""

import dataclasses
import math
import struct
from typing import NamedTuple

import numpy as np

_BASELINE, _EXTENDED = 0xC0, 0xC1
_RESTART, _SCAN, _INTERVAL = 0xD0, 0xDA, 0xDD
_END = b"\xff\xd9"
# A pixel's color is interpolated from samples of color up to this many pixels away.
_INTERPOLATED = 4


class Box(NamedTuple):
    """A part of an image, pixels."""

    top: int
    left: int
    height: int
    width: int


class Cut(NamedTuple):
    """A part of a JPEG file.

    Attributes:
      encoded: a JPEG file. Decoders may find extraneous bytes at its end.
      box: where its image lies in the original.
    """

    encoded: bytes | bytearray
    box: Box


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a file's header says.

    Attributes:
      size_at: where the height and the width are, 2 bytes each.
      pixels_at: where the compressed pixels begin.
      height, width: of the image, pixels.
      unit_height, unit_width: of the units in which pixels are compressed, pixels.
      interval: units from one restart marker to the next; 0 if there are none.
    """

    size_at: int
    pixels_at: int
    height: int
    width: int
    unit_height: int
    unit_width: int
    interval: int


def cut(encoded: bytes, box: Box, shrink: float = 1.0) -> Cut | None:
    """Cuts a file to a part of its image and as little as possible around it.

    The part's pixels stay the same to the bit. Damage elsewhere in the file goes unnoticed.

    Args:
      encoded: a JPEG file.
      box: the part.
      shrink: factor by which the part will be decoded to a lower resolution.

    Returns:
      The cut; None if there is nothing to cut off, or the file is progressive, incomplete or
      otherwise cannot be cut.
    """
    layout = _layout(encoded) if encoded.endswith(_END) else None
    if layout is None:
        return None
    margin = _INTERPOLATED * max(1, math.ceil(shrink))
    top, bottom = _rounded(box.top, box.height, layout.unit_height, layout.height, margin)
    units = -(-layout.width // layout.unit_width)
    if layout.interval and units % layout.interval == 0:
        left, right = _rounded(
            box.left, box.width, layout.unit_width * layout.interval, layout.width, margin
        )
        return _cut_out(encoded, layout, Box(top, left, bottom - top, right - left))
    if bottom == layout.height:
        return None
    shortened = bytearray(encoded)
    struct.pack_into(">H", shortened, layout.size_at, bottom)
    return Cut(shortened, Box(0, 0, bottom, layout.width))


def _rounded(start: int, length: int, unit: int, limit: int, margin: int) -> tuple[int, int]:
    """Widens an interval of pixels by a margin, then to whole units, within ``limit`` pixels."""
    first = max(0, start - margin) // unit
    last = -(-(start + length + margin) // unit)
    return first * unit, min(last * unit, limit)


def _cut_out(encoded: bytes, layout: _Layout, box: Box) -> Cut | None:
    """Joins the intervals between restart markers that lie in a box of whole intervals."""
    height, width = layout.unit_height, layout.unit_width * layout.interval
    per_row = -(-layout.width // width)
    # A 0 follows a byte of 255 that is no marker.
    pixels = np.frombuffer(encoded, np.uint8)[layout.pixels_at :]
    markers = np.flatnonzero(pixels[:-1] == 0xFF)
    markers = markers[pixels[markers + 1] != 0]
    if len(markers) != per_row * -(-layout.height // height):
        return None
    ends = np.concatenate([[0], markers + 2])  # Of each interval, after that of the header.
    rows = np.arange(box.top // height, -(-(box.top + box.height) // height))
    columns = np.arange(box.left // width, -(-(box.left + box.width) // width) + 1)
    wanted = ends[rows[:, None] * per_row + columns]
    header = bytearray(encoded[: layout.pixels_at])
    struct.pack_into(">HH", header, layout.size_at, box.height, box.width)
    compressed = memoryview(encoded)[layout.pixels_at :]
    joined = header + b"".join(
        compressed[start:stop] for start, stop in wanted[:, [0, -1]].tolist()
    )
    # Decoders check that the markers count from 0 to 7, again and again, and that the file ends.
    lengths = np.diff(wanted)
    numbers = np.arange(lengths.size) % 8 + _RESTART
    numbers[-1] = _END[1]
    np.frombuffer(joined, np.uint8)[np.cumsum(lengths) + len(header) - 1] = numbers
    return Cut(joined, box)


def _layout(encoded: bytes) -> _Layout | None:
    """Reads a header; None if it is not that of one sequential scan of all components."""
    frame, interval, at = None, 0, 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker in (_BASELINE, _EXTENDED):
            frame = at
        elif marker == _INTERVAL:
            interval = int.from_bytes(encoded[at + 4 : at + 6], "big")
        elif marker == _SCAN:
            break
        at += 2 + length
    else:
        return None
    components = encoded[at + 4]
    # Four components are inks, which decoders convert to RGB in another place.
    if frame is None or components not in (1, 3) or encoded[frame + 9] != components:
        return None
    height, width = struct.unpack_from(">HH", encoded, frame + 5)
    sampling = encoded[frame + 11 : frame + 10 + 3 * components : 3]
    # The units of a single component are single blocks, whatever its sampling.
    across = max(factor >> 4 for factor in sampling) if components > 1 else 1
    down = max(factor & 15 for factor in sampling) if components > 1 else 1
    return _Layout(frame + 5, at + 2 + length, height, width, 8 * down, 8 * across, interval)

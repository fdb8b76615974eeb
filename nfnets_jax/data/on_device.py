"""Mixing and RandAugment on the device, as the host has drawn them.

The host draws what is done to each image (``Mixing.draw``, ``randaugment.draw``) in the same order
and from the same random numbers as where it augments by itself. So the images of a run are the same
on either side, but for rounding. Nothing here is random.

The operations of RandAugment are of few families: a linear function of the image, its luminance and
its blurred form; a function of a pixel's level; a gather along an affine map; a rectangle. A layer
takes every image through all families, with parameters that change nothing in all but one. XLA
makes few kernels of that, where ``lax.switch`` would compute all sixteen operations of every image.

Inside a layer images are planar, ``[B, C, H, W]``, so that reductions and gathers have long rows,
and numbers of each image are ``[B, 1, 1, 1]``.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfnets_jax.data.randaugment import GRAY, LUMINANCE, NAMES


@jax.named_scope("augmentation")
def augment(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Mixes and RandAugments the images of a batch, or of a device's part of it.

    Args:
      batch: ``image``, ``[B, H, W, C]`` uint8, and what is left to the device, see
        ``augmentation.LeftToDevice``; nothing is done where that is absent. ``[2 * B, H, W, C]``
        become ``B`` mixtures of their own two images each.

    Returns:
      The batch with augmented images, and without what was left to do.
    """
    done = dict(batch)
    if "mixing" in done:
        images, mixing = done["image"], done.pop("mixing")
        # Either each of two neighbours becomes a mixture, or both become one.
        first = jnp.arange(len(mixing)) * (len(images) // len(mixing))
        done["image"] = mix(images[first], images[first ^ 1], mixing)
    if "randaugment" in done:
        done["image"] = randaugment(done["image"], done.pop("randaugment"))
    return done


def mix(images: jax.Array, others: jax.Array, mixing: jax.Array) -> jax.Array:
    """Mixes images with others by MixUp and CutMix, as ``Mixture.apply`` does on the host.

    Args:
      images, others: ``[B, H, W, C]`` uint8.
      mixing: ``[B, 5]`` float32, the numbers of a ``Mixture`` after its share.

    Returns:
      ``[B, H, W, C]`` uint8.
    """
    weight, *rectangle = mixing.T.reshape(5, -1, 1, 1, 1)
    mixture = jnp.round(weight * images + (1 - weight) * others).astype(jnp.uint8)
    return jnp.where(_inside(rectangle, images.shape, 1), others, mixture)


def randaugment(images: jax.Array, operations: jax.Array) -> jax.Array:
    """Applies operations to images, one after the other, as ``data.randaugment`` on the host.

    Args:
      images: ``[B, H, W, 3]`` uint8.
      operations: ``[B, layers, 4]`` float32, ``randaugment.as_numbers`` of each image.

    Returns:
      ``[B, H, W, 3]`` uint8.
    """
    # A loop compiles in the time of one layer.
    planar, _ = lax.scan(
        lambda planar, numbers: (_apply(planar, _Drawn(numbers)), None),
        images.transpose(0, 3, 1, 2),
        operations.swapaxes(0, 1),
    )
    return planar.transpose(0, 2, 3, 1)


class _Drawn:
    """An operation for each image.

    Attributes:
      parameters: its three parameters, each ``[B, 1, 1, 1]`` float32.
    """

    def __init__(self, numbers: jax.Array):
        self._choice, *self.parameters = numbers.T.reshape(4, -1, 1, 1, 1)

    def chooses(self, name: str) -> jax.Array:
        """Returns for which images this operation is drawn, ``[B, 1, 1, 1]`` booleans."""
        return self._choice == NAMES.index(name)

    def select(self, default: jax.Array | float, **values: jax.Array | float) -> jax.Array:
        """Returns the value that is given for an image's operation, or else the default."""
        selected = jnp.asarray(default)
        for name, value in values.items():
            selected = jnp.where(self.chooses(name), value, selected)
        return selected


def _apply(images: jax.Array, drawn: _Drawn) -> jax.Array:
    """Applies one operation to each image, ``[B, 3, H, W]`` uint8."""
    levels = _by_level(_stretch_and_blend(images, _move(images, drawn), drawn), drawn)
    changed = jnp.where(drawn.chooses("equalize"), _equalize(images, drawn), levels)
    half, row, column = drawn.parameters
    rectangle = row - half, row + half, column - half, column + half
    covered = drawn.chooses("cutout") & _inside(rectangle, images.shape, 2)
    return jnp.where(covered, np.uint8(GRAY), changed)


def _move(images: jax.Array, drawn: _Drawn) -> jax.Array:
    """Rotates, shears and translates, without interpolation; uncovered pixels become gray."""
    height, width = images.shape[2:]
    p = drawn.parameters[0]
    angle = jnp.deg2rad(p)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # The center, from which a rotation starts.
    u, v = (width - 1) / 2, (height - 1) / 2
    x, y = _position(images.shape, 3), _position(images.shape, 2)
    column = jnp.round(
        drawn.select(1.0, rotate=cos) * x
        + drawn.select(0.0, rotate=-sin, shear_x=p) * y
        + drawn.select(0.0, rotate=u - cos * u + sin * v, shear_x=p / 2, translate_x=p),
    ).astype(jnp.int32)
    row = jnp.round(
        drawn.select(0.0, rotate=sin, shear_y=p) * x
        + drawn.select(1.0, rotate=cos) * y
        + drawn.select(0.0, rotate=v - sin * u - cos * v, shear_y=p / 2, translate_y=p),
    ).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    places = jnp.where(inside, row * width + column, 0).reshape(len(images), 1, -1)
    pixels = images.reshape(*images.shape[:2], -1)
    moved = jnp.take_along_axis(pixels, places, 2, mode="clip").reshape(images.shape)
    return jnp.where(inside, moved, np.uint8(GRAY))


def _stretch_and_blend(images: jax.Array, moved: jax.Array, drawn: _Drawn) -> jax.Array:
    """Changes contrast, color, brightness and sharpness; returns levels in int32."""
    axes, pixels = (2, 3), images.shape[2] * images.shape[3]
    low, high = (
        extreme(images, axes, keepdims=True).astype(jnp.float32) for extreme in (jnp.min, jnp.max)
    )
    stretch = jnp.where(high > low, 255 / jnp.maximum(high - low, 1), 1)
    total = jnp.sum(images, axes, jnp.int32, keepdims=True)
    mean = jnp.round(_luminance(total / pixels))
    p = drawn.parameters[0]
    # Where the center counts five times, a mean over 3x3 is 9/13 of the plain one.
    own = p + (1 - p) * 4 / 13
    scale = drawn.select(1.0, auto_contrast=stretch, color=p, contrast=p, brightness=p)
    offset = drawn.select(
        0.0, auto_contrast=jnp.where(high > low, -low * stretch, 0), contrast=(1 - p) * mean
    )
    levels = scale * moved + drawn.select(0.0, color=1 - p) * _luminance(images) + offset
    sharpens = drawn.chooses("sharpness") & _inside(
        (1, images.shape[2] - 1, 1, images.shape[3] - 1), images.shape, 2
    )
    levels = jnp.where(sharpens, own * moved + (1 - own) * _blur(images), levels)
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.int32)


def _luminance(planar: jax.Array) -> jax.Array:
    """Returns the weighted mean over the channels, ``[B, 1, H, W]`` float32."""
    channels = jnp.split(planar, 3, axis=1)
    return sum(
        (float(weight) * channel for weight, channel in zip(LUMINANCE, channels, strict=True)),
        jnp.float32(0),
    )


def _blur(images: jax.Array) -> jax.Array:
    """Returns the rounded means over 3x3 pixels, without meaning at the border."""
    height, width = images.shape[2:]
    padded = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = sum(
        padded[:, :, top : top + height, left : left + width].astype(jnp.int32)
        for top in range(3)
        for left in range(3)
    )
    return jnp.round(total / 9)


def _by_level(levels: jax.Array, drawn: _Drawn) -> jax.Array:
    """Posterizes, solarizes and inverts levels in int32; returns them in uint8."""
    p = drawn.parameters[0].astype(jnp.int32)
    levels = levels + jnp.where(levels < 128, drawn.select(0, solarize_add=p), 0)
    cleared = 8 - jnp.clip(drawn.select(8, posterize=p), 1, 8)
    levels = jnp.minimum(levels, 255) >> cleared << cleared
    inverted = levels >= drawn.select(256, solarize=p, invert=0)
    return jnp.where(inverted, 255 - levels, levels).astype(jnp.uint8)


def _equalize(images: jax.Array, drawn: _Drawn) -> jax.Array:
    """Equalizes each channel where that is drawn; what it makes of other images means nothing."""
    count = images.shape[0] * images.shape[1]
    # Each level of a channel has a place in one table.
    places = images + 256 * jnp.arange(count).reshape(*images.shape[:2], 1, 1)
    # A scatter drops what lies outside of the table: the pixels of all images that stay.
    counted = jnp.where(drawn.chooses("equalize"), places, 256 * count).ravel()
    histograms = jnp.zeros(256 * count, jnp.int32).at[counted].add(1, mode="drop")
    histograms = histograms.reshape(count, 256)
    below = jnp.cumsum(histograms, axis=1) - histograms
    step = jnp.max(jnp.where(histograms > 0, below, 0), axis=1, keepdims=True) // 255
    equalized = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    tables = jnp.where(step > 0, equalized, jnp.arange(256)).astype(jnp.uint8)
    return tables.ravel()[places]


def _position(shape: tuple[int, ...], axis: int) -> jax.Array:
    """Returns each pixel's position along an axis, float32, to be broadcast."""
    return lax.broadcasted_iota(
        jnp.float32, [size if at == axis else 1 for at, size in enumerate(shape)], axis
    )


def _inside(rectangle: Sequence[jax.Array | float], shape: tuple[int, ...], rows: int) -> jax.Array:
    """Returns which pixels lie from top to bottom and from left to right, the ends exclusive.

    Args:
      rectangle: top, bottom, left and right, pixels.
      shape: of the images.
      rows: the axis of rows, which that of columns follows.
    """
    top, bottom, left, right = rectangle
    row, column = _position(shape, rows), _position(shape, rows + 1)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)

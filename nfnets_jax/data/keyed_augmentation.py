"""Augmentation on the device, drawn there by a random key: nothing is left to the host.

``on_device`` applies what the host has drawn. Here the device draws it too, from the same
distributions, so that a program of many steps and many runs needs the host for nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfnets_jax.data import on_device, randaugment
from nfnets_jax.errors import InputError

# Operations that go either way at random.
_SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
# Operations whose first parameter is in pixels, and the side of the images that its range is for.
_IN_PIXELS, _IMAGENET_SIDE = ("translate_x", "translate_y", "cutout"), 224


@dataclasses.dataclass(frozen=True)
class KeyedAugmentation:
    """Shifts, flips, mixes and RandAugments a batch, in this order.

    Attributes:
      shift: largest shift in each direction, pixels; zeros fill uncovered pixels.
      flip: whether half of the images are mirrored.
      layers: operations of RandAugment for each image; 0 for none.
      magnitude: of RandAugment; lengths in pixels are scaled from ImageNet's 224 pixels to the
        side of the images, as a shift by 50 pixels would clear a small one.
      mixup_alpha: of MixUp's distribution Beta(alpha, alpha) of shares; 0 for no mixing. Pairs of
        neighbours alternate between MixUp and CutMix, as in NFNets (Brock et al. 2021b,
        arXiv:2102.06171, section 6.1), but each image of a pair becomes a mixture of its own.
    """

    shift: int = 0
    flip: bool = False
    layers: int = 0
    magnitude: float = 5.0
    mixup_alpha: float = 0.0

    def __call__(
        self, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> dict[str, jax.Array]:
        """Augments a batch.

        Args:
          key: one random key.
          images: ``[B, H, W, C]`` uint8; square, and of three channels for RandAugment.
          labels: ``[B]`` integers.

        Returns:
          ``image`` ``[B, H, W, C]`` uint8 and ``label``; of mixed images also ``other_label`` and
          ``share``, the weight of ``label``.

        Raises:
          InputError: images are mixed, and B is odd.
        """
        shift_key, flip_key, mix_key, operations_key = jax.random.split(key, 4)
        if self.shift:
            images = _shift(shift_key, images, self.shift)
        if self.flip:
            flips = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
            images = jnp.where(flips, images[:, :, ::-1], images)
        batch = {"image": images, "label": labels}
        if self.mixup_alpha:
            if len(images) % 2:
                raise InputError(f"a batch of {len(images)} images is odd: it is mixed in pairs")
            share, batch["mixing"] = draw_mixing(mix_key, images.shape, self.mixup_alpha)
            batch |= {"share": share, "other_label": labels[jnp.arange(len(labels)) ^ 1]}
        if self.layers:
            batch["randaugment"] = draw_operations(
                operations_key, len(images), self.layers, self.magnitude, images.shape[1]
            )
        return on_device.augment(batch)


def _shift(key: jax.Array, images: jax.Array, largest: int) -> jax.Array:
    margin = (largest, largest)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * largest + 1)
    shape = images.shape[1:]
    return jax.vmap(lambda image, at: lax.dynamic_slice(image, (*at, 0), shape))(padded, corners)


def draw_operations(
    key: jax.Array, count: int, layers: int, magnitude: float, side: int
) -> jax.Array:
    """Draws operations of RandAugment for square images, as ``on_device.randaugment`` takes them.

    Args:
      key: one random key.
      count: number of images.
      layers, magnitude: as ``randaugment.draw`` takes them.
      side: of the images, pixels.

    Returns:
      ``[count, layers, 4]`` float32.
    """
    choice_key, sign_key, place_key = jax.random.split(key, 3)
    table = _parameters(magnitude, side)
    choice = jax.random.randint(choice_key, (count, layers), 0, len(table))
    signed = jnp.isin(choice, np.array([randaugment.NAMES.index(name) for name in _SIGNED]))
    signs = jnp.where(signed, jax.random.rademacher(sign_key, choice.shape, jnp.float32), 1)
    first, *others = jnp.moveaxis(table[choice], -1, 0)
    places = jax.random.randint(place_key, (2, *choice.shape), 0, side).astype(jnp.float32)
    is_cutout = choice == randaugment.NAMES.index("cutout")
    others = [
        jnp.where(is_cutout, place, other) for place, other in zip(places, others, strict=True)
    ]
    return jnp.stack([choice.astype(jnp.float32), signs * first, *others], axis=-1)


def _parameters(magnitude: float, side: int) -> jax.Array:
    """Returns the three parameters of each operation at a magnitude, one way, ``[16, 3]``."""
    rng = np.random.default_rng(0)
    shape = (side, side, 3)
    drawn = [
        randaugment.Drawn(number, operation.draw(magnitude, rng, shape))
        for number, operation in enumerate(randaugment.OPERATIONS.values())
    ]
    table = randaugment.as_numbers(drawn)[:, 1:]
    for name in _IN_PIXELS:
        first = table[randaugment.NAMES.index(name)]
        first[0] = np.round(first[0] * side / _IMAGENET_SIDE)
    return jnp.asarray(table)


def draw_mixing(
    key: jax.Array, shape: tuple[int, ...], mixup_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Draws how images are mixed with their neighbours, every other pair by CutMix.

    Args:
      key: one random key.
      shape: of the images, ``(B, H, W, C)``.
      mixup_alpha: of MixUp's distribution of shares.

    Returns:
      The share of each image in its mixture, ``[B]`` float32, and ``mixing`` ``[B, 5]`` float32,
      as ``on_device.mix`` takes it.
    """
    count, height, width = shape[:3]
    beta_key, area_key, place_key = jax.random.split(key, 3)
    share = jax.random.beta(beta_key, mixup_alpha, mixup_alpha, (count,))
    side = jnp.sqrt(1 - jax.random.uniform(area_key, (count,)))
    ends = []
    for length, at in zip((height, width), jax.random.uniform(place_key, (2, count)), strict=True):
        center, half = jnp.floor(at * length), jnp.floor(side * length) // 2
        ends += [jnp.maximum(center - half, 0), jnp.minimum(center + half, length)]
    top, bottom, left, right = ends
    visible = 1 - (bottom - top) * (right - left) / (height * width)
    pasted = (jnp.arange(count) // 2) % 2 == 1
    rectangle = [jnp.where(pasted, end, 0) for end in ends]
    weight = jnp.where(pasted, 1, share)
    return jnp.where(pasted, visible, share), jnp.stack([weight, *rectangle], axis=1)

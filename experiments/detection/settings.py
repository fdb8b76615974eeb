"""The settings of the tasks: ``config.task.settings``."""

import dataclasses

from ml_collections import ConfigDict

from nfnets_jax.errors import InputError, nearest
from nfnets_jax.ranges import Range, check_ranges

_COUNT = Range(1, 10**6, whole=True)
_SCALE = Range(0, 100, above=True)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a detector or a segmenter.

    Attributes:
      stride: pixels of the image between neighbouring pixels of the feature pyramid, one of the
        backbone's strides.
      channels: of the feature pyramid and the head.
      depth: 3x3 convolutions of the head.
      frozen_statistics: whether the backbone's batch normalization keeps its running statistics.
      smallest_scale, largest_scale: of a training image, over that at which it just fits.
      most_objects: largest number of objects that are learned and found in an image.
      scenes: number of training scenes, of ``data.name=digit_scenes``.

    Raises:
      InputError: a number is out of its range.
    """

    stride: int = 4
    channels: int = 64
    depth: int = 2
    frozen_statistics: bool = False
    smallest_scale: float = 1.0
    largest_scale: float = 1.0
    most_objects: int = 100
    scenes: int = 5000

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("stride", "channels", "depth", "scenes"), _COUNT)
        ranges |= {"smallest_scale": _SCALE, "largest_scale": _SCALE, "most_objects": _COUNT}
        check_ranges(self, ranges)
        if self.smallest_scale > self.largest_scale:
            raise InputError(
                f"smallest_scale {self.smallest_scale} is above largest_scale {self.largest_scale}"
            )


def read_settings(config: ConfigDict) -> Settings:
    """Returns the settings that a configuration gives, and the defaults of the others.

    Raises:
      InputError: there is no such setting, or a number is out of its range.
    """
    given, known = dict(config.task.settings), [each.name for each in dataclasses.fields(Settings)]
    for name in given:
        if name not in known:
            raise InputError(f"no task.settings.{name}; {nearest(name, known)}")
    try:
        return Settings(**given)
    except InputError as error:
        raise InputError(f"task.settings: {error}") from error

"""Images and objects in the format of COCO: a folder, and a file ``instances_*.json``."""

import dataclasses
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfnets_jax.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from nfnets_jax.data.sources import Dataset
from nfnets_jax.data.sources.source import Record
from nfnets_jax.errors import InputError, UnreadableImageError

from .objects import Objects

_PATTERN = "instances_*.json"
# Share of a box that annotators' rounding puts outside of an image.
_ROUNDING = 0.01


@dataclasses.dataclass(frozen=True)
class Annotated:
    """An image and its annotations, as they are in the file.

    Attributes:
      path: of the image.
      height, width: in pixels, as the file has them.
      boxes: ``[K, 4]`` float32, left, top, right and bottom edge, inside the image.
      classes: ``[K]`` int32, from 0 on.
      crowd: ``[K]`` booleans.
      segmentations: of each object, polygons or run lengths.
    """

    path: Path
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    segmentations: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class CocoSource:
    """Annotated images by position.

    Attributes:
      images: the images.
      masks: whether the masks of objects are drawn.
    """

    images: Sequence[Annotated]
    masks: bool

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        """Returns an image's record.

        Raises:
          UnreadableImageError: a mask cannot be drawn.
        """
        image = self.images[index]
        masks = _draw(image) if self.masks else None
        shape = (image.height, image.width)
        objects = Objects(image.boxes, image.classes, image.crowd, shape, masks)
        return Record(image=image.path, label=objects, name=str(image.path))


def open_coco(
    directory: str,
    labels: str = "",
    test_directory: str = "",
    test_labels: str = "",
    *,
    masks: bool,
    most: int | None = None,
) -> Dataset:
    """Opens images in the format of COCO (Lin et al. 2014, arXiv:1405.0312).

    Standard error says how many annotations are left out or cut. Images without annotations stay:
    they show what is no object.

    Args:
      directory: of the training images.
      labels: their ``instances_*.json``; the one in the directory where empty.
      test_directory, test_labels: the same for testing; no test images if both are empty.
      masks: whether the masks of objects are read.
      most: largest number of objects in an image; None sets no limit.

    Raises:
      InputError: a folder, a file or an image is missing, a file is not in the format, an image has
        too many objects, or the two files have other categories.
    """
    train, names = read_instances(Path(directory), labels, masks, most)
    test = None
    if test_directory or test_labels:
        test, test_names = read_instances(Path(test_directory), test_labels, masks, most)
        if names != test_names:
            here, there = sorted(set(names.items()) ^ set(test_names.items()))[0], test_directory
            raise InputError(
                f"the categories of {there} are not those of {directory}: {here[1]!r}, id "
                f"{here[0]}, is not in both"
            )
    return Dataset(
        CocoSource(train, masks),
        None if test is None else CocoSource(test, masks),
        tuple(names.values()),
        3,
        IMAGENET_MEAN,
        IMAGENET_STD,
    )


def read_instances(
    directory: Path, labels: str, masks: bool, most: int | None
) -> tuple[list[Annotated], dict[int, str]]:
    """Reads a file of annotations, and checks it and that its images are there.

    Args:
      directory: of the images.
      labels: the file; the only ``instances_*.json`` of the directory where empty.
      masks: whether objects need a mask.
      most: largest number of objects in an image; None sets no limit.

    Returns:
      The images, and the names of the categories by their ids, in the order of the ids.

    Raises:
      InputError: as ``open_coco``.
    """
    file = _find(directory, labels)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = {image["id"]: _checked(image) for image in content["images"]}
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        by_image: dict[Any, list[Mapping[str, Any]]] = {key: [] for key in images}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in by_image:
                raise InputError(
                    f"{file}: annotation {annotation['id']} is of image "
                    f"{annotation['image_id']!r}, which is not listed"
                )
            by_image[annotation["image_id"]].append(annotation)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON") from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not in the format of COCO: no images, annotations and categories with "
            f"their ids ({error})"
        ) from error
    if not images or not categories:
        raise InputError(f"{file} lists no images or no categories")
    names = {key: categories[key] for key in sorted(categories)}
    numbers = {key: number for number, key in enumerate(names)}
    left_out: Counter[str] = Counter()
    found = []
    for key, image in images.items():
        read = [_read(file, a, image, numbers, masks, left_out) for a in by_image[key]]
        found.append(_annotated(directory, image, [each for each in read if each]))
    _check_images(file, directory, [image.path for image in found])
    fullest = max(found, key=lambda image: len(image.boxes))
    if most is not None and len(fullest.boxes) > most:
        raise InputError(
            f"{fullest.path} has {len(fullest.boxes)} objects, more than the {most} of "
            "task.settings.most_objects"
        )
    if left_out:
        counts = ", ".join(f"{count} {why}" for why, count in left_out.items())
        print(f"{file}: of {len(content['annotations'])} annotations, {counts}", file=sys.stderr)
    return found, names


def _checked(image: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the entry of an image, which has a file's name, a height and a width."""
    if not isinstance(image["file_name"], str):
        raise TypeError("file_name")
    for side in ("height", "width"):
        if not isinstance(image[side], int) or image[side] < 1:
            raise TypeError(side)
    return image


def _find(directory: Path, labels: str) -> Path:
    if not directory.is_dir():
        raise InputError(f"no folder {str(directory)!r} of images in the format of COCO")
    if labels:
        return Path(labels)
    files = sorted(directory.glob(_PATTERN))
    if len(files) != 1:
        raise InputError(
            f"{directory} has {len(files)} files {_PATTERN}; it takes one, or its path as labels"
        )
    return files[0]


class _Object(NamedTuple):
    """An annotation that is kept, as ``Annotated`` has them."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    segmentation: Any


def _read(
    file: Path,
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    numbers: Mapping[Any, int],
    masks: bool,
    left_out: Counter[str],
) -> _Object | None:
    """Reads an annotation; None, and why in ``left_out``, if it describes no object.

    Raises:
      InputError: it names no category, or its box is none.
    """
    name = f"{file}: annotation {annotation.get('id')}"
    category = annotation.get("category_id")
    if category not in numbers:
        raise InputError(f"{name} has category_id {category!r}, which is not listed")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise InputError(f"{name} has bbox {box!r}; it takes four numbers")
    left, top, width, height = box
    if width <= 0 or height <= 0:
        left_out["of no area are left out"] += 1
        return None
    edges = (
        max(left, 0),
        max(top, 0),
        min(left + width, image["width"]),
        min(top + height, image["height"]),
    )
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        left_out["outside of their images are left out"] += 1
        return None
    if (edges[2] - edges[0]) * (edges[3] - edges[1]) < (1 - _ROUNDING) * width * height:
        left_out["reach out of their images and are cut"] += 1
    segmentation = annotation.get("segmentation")
    if masks and not segmentation:
        left_out["without a mask are left out"] += 1
        return None
    return _Object(edges, numbers[category], bool(annotation.get("iscrowd", 0)), segmentation)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _annotated(directory: Path, image: Mapping[str, Any], objects: Sequence[_Object]) -> Annotated:
    return Annotated(
        directory / image["file_name"],
        image["height"],
        image["width"],
        np.array([each.box for each in objects], np.float32).reshape(-1, 4),
        np.array([each.label for each in objects], np.int32),
        np.array([each.crowd for each in objects], bool),
        tuple(each.segmentation for each in objects),
    )


def _check_images(file: Path, directory: Path, paths: Sequence[Path]) -> None:
    """Checks that images are there, before a run meets the first that is not."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(paths)} images of {file} are not in {directory}; the "
            f"first: {missing[0].name}"
        )


def _draw(image: Annotated) -> np.ndarray:
    """Draws the masks of an image, ``[K, H, W]`` booleans."""
    from pycocotools import mask as coco_mask  # Part of the extra ``detection``.

    masks = np.zeros((len(image.boxes), image.height, image.width), bool)
    for k, segmentation in enumerate(image.segmentations):
        try:
            runs = segmentation
            if not isinstance(runs, dict) or not isinstance(runs["counts"], str | bytes):
                runs = coco_mask.frPyObjects(segmentation, image.height, image.width)
            if isinstance(runs, list):
                runs = coco_mask.merge(runs)
            masks[k] = coco_mask.decode(runs)
        except Exception as error:  # Its compiled code raises whatever comes.
            raise UnreadableImageError(f"{image.path}: its mask {k} cannot be drawn") from error
    return masks

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from experiments.detection.coco import open_coco
from experiments.detection.examples import open_record
from experiments.detection.scenes import draw_scene
from nfnets_jax.data.decoding import Reading
from nfnets_jax.errors import InputError, UnreadableImageError
from tests.experiments.detection import coco_folder

pytest.importorskip("pycocotools")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("coco") / "train"
    return folder, coco_folder.write(folder, 3)


def test_what_was_written_is_read(written: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = written
    dataset = open_coco(str(folder), masks=True)
    assert dataset.test is None
    # Ordered by the ids of the categories.
    assert dataset.class_names == tuple(f"digit {label}" for label in range(9, -1, -1))
    for index in range(3):
        image, expected = draw_scene(32, "train", np.random.default_rng((7, index)))
        pixels, objects = open_record(dataset.train, index, Reading())
        np.testing.assert_array_equal(pixels, image)
        np.testing.assert_array_equal(objects.boxes, expected.boxes)
        np.testing.assert_array_equal(objects.classes, 9 - expected.classes)
        # Polygons run through the middles of the outermost pixels.
        assert objects.masks is not None and expected.masks is not None
        for found, mask in zip(objects.masks, expected.masks, strict=True):
            eroded = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            assert not (eroded & ~found).any()
            assert not (found & ~(cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) > 0)).any()


def changed(
    written: tuple[Path, dict[str, Any]], change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> str:
    """Returns a folder with the same images, whose annotations are changed."""
    content = copy.deepcopy(written[1])
    change(content)
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in written[0].glob("*.png"):
        (folder / file.name).symlink_to(file)
    coco_folder.save(folder, content)
    return str(folder)


def set_annotation(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(fields)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing images": (
        lambda c: c["images"].append({"id": 9, "file_name": "gone.jpg", "height": 3, "width": 3}),
        "1 of the 4 images of .* are not in .*; the first: gone.jpg",
    ),
    "unknown category": (
        set_annotation(category_id=4),
        "annotation 1 has category_id 4, which is not listed",
    ),
    "box of three numbers": (set_annotation(bbox=[1, 2, 3]), r"annotation 1 has bbox \[1, 2, 3\]"),
    "box of no number": (set_annotation(bbox=[1, 2, 3, None]), "it takes four numbers"),
    "image of no entry": (set_annotation(image_id=77), "is of image 77, which is not listed"),
    "no categories": (lambda c: c.pop("categories"), "is not in the format of COCO"),
    "empty": (lambda c: c.update(images=[], annotations=[]), "lists no images"),
    "no height": (lambda c: c["images"][0].pop("height"), "is not in the format of COCO"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(
    case: str, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    change, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        open_coco(changed(written, change, tmp_path), masks=False)
    assert "\n" not in str(caught.value)


def test_more_objects_than_are_learned_are_refused(
    written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """An object that is left out would be learned as background, and AP would not miss it."""

    def repeat(content: dict[str, Any]) -> None:
        content["annotations"] += 9 * content["annotations"][:1]

    folder = changed(written, repeat, tmp_path)
    with pytest.raises(InputError, match=r"000.png has \d+ objects, more than the 8 of task"):
        open_coco(folder, masks=False, most=8)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        open_coco(str(tmp_path / "nowhere"), masks=False)
    with pytest.raises(InputError, match="has 0 files instances"):
        open_coco(str(tmp_path), masks=False)
    (tmp_path / "instances_x.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        open_coco(str(tmp_path), masks=False)


def test_categories_of_both_splits_are_the_same(
    written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    other = changed(written, lambda c: c["categories"][0].update(name="letter"), tmp_path)
    with pytest.raises(InputError, match="'digit 0', id 90, is not in both"):
        open_coco(str(written[0]), test_directory=other, masks=False)


LEFT_OUT: dict[str, tuple[dict[str, Any], str, int]] = {
    "zero area": ({"bbox": [3, 3, 0, 4]}, "1 of no area are left out", -1),
    "outside": ({"bbox": [40, 3, 5, 4]}, "1 outside of their images are left out", -1),
    "reaching out": ({"bbox": [20, 3, 500, 4]}, "1 reach out of their images and are cut", 0),
    "no mask": ({"segmentation": []}, "1 without a mask are left out", -1),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_annotations_of_no_object_are_left_out_and_counted(
    case: str,
    written: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields, message, change = LEFT_OUT[case]
    before = len(open_coco(str(written[0]), masks=True).train[0]["label"].boxes)
    dataset = open_coco(changed(written, set_annotation(**fields), tmp_path), masks=True)
    objects = dataset.train[0]["label"]
    assert len(objects.boxes) == before + change
    assert (objects.boxes <= 32).all() and (objects.boxes >= 0).all()
    assert message in capsys.readouterr().err


def test_crowds_are_marked_and_images_without_boxes_stay(
    written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A crowd's mask is given as run lengths: columns of 32, of which the first two are filled."""
    runs = {"size": [32, 32], "counts": [0, 64, 32 * 30]}

    def change(content: dict[str, Any]) -> None:
        first, *others = content["annotations"]
        first.update(iscrowd=1, segmentation=runs)
        content["annotations"] = [
            first,
            *(each for each in others if each["image_id"] == 1),
        ]

    dataset = open_coco(changed(written, change, tmp_path), masks=True)
    objects = dataset.train[0]["label"]
    assert objects.crowd.tolist() == [True]
    assert objects.masks.sum() == 64 and objects.masks[0, :, :2].all()
    assert len(dataset.train) == 3
    assert dataset.train[2]["label"].boxes.shape == (0, 4)
    assert dataset.train[2]["label"].class_map().shape == (32, 32)


def test_an_image_of_another_size_than_its_annotations_counts_as_unreadable(
    written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = changed(written, lambda c: c["images"][0].update(width=33), tmp_path)
    dataset = open_coco(folder, masks=False)
    with pytest.raises(UnreadableImageError, match="32 x 32 pixels, .* of 33 x 32"):
        open_record(dataset.train, 0, Reading())

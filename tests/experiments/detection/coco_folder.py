"""Writes folders in the format of COCO."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from experiments.detection.scenes import draw_scene


def write(folder: Path, count: int, split: str = "train", size: int = 32) -> dict[str, Any]:
    """Writes scenes of digits with their boxes and polygons, and returns the annotations."""
    folder.mkdir(parents=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        # Ids that are neither dense nor in order, as COCO's are.
        "categories": [{"id": 90 - 3 * label, "name": f"digit {label}"} for label in range(10)],
    }
    for index in range(count):
        image, objects = draw_scene(size, split, np.random.default_rng((7, index)))
        name = f"{index:012}.png"
        cv2.imwrite(str(folder / name), image[..., ::-1])
        content["images"].append({"id": index, "file_name": name, "height": size, "width": size})
        assert objects.masks is not None
        for box, label, mask in zip(objects.boxes, objects.classes, objects.masks, strict=True):
            outlines, _ = cv2.findContours(
                mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            polygons = [line.reshape(-1).tolist() for line in outlines if len(line) > 2]
            left, top, right, bottom = box.tolist()
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index,
                    "category_id": 90 - 3 * int(label),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": polygons,
                }
            )
    save(folder, content)
    return content


def save(folder: Path, content: Any) -> None:
    (folder / "instances_all.json").write_text(json.dumps(content))

import io
import json
import shutil
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments import prepare
from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.jpeg import Box, cut
from nfnets_jax.data.sources import fetch, imagenet_classes, open_dataset, open_split
from nfnets_jax.errors import InputError

CLASSES = ("n01440764", "n01443537", "n01484850")  # The first three of the thousand.


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Archives of four training images per class and three validation images.

    Each image has one gray level, by which it is recognized.
    """
    classes = {
        f"{name}.tar": archive({f"{name}_{i}.JPEG": png(10 * label + i) for i in range(4)})
        for label, name in enumerate(CLASSES)
    }
    folder = tmp_path / "tars"
    folder.mkdir()
    (folder / "ILSVRC2012_img_train.tar").write_bytes(archive(classes))
    validation = {f"ILSVRC2012_val_{i:08d}.JPEG": png(100 + i) for i in (3, 1, 2)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(archive(validation))
    return folder


def levels(data_dir: Path) -> tuple[list[tuple[int, int]], list[int]]:
    """Returns the label and gray level of each training image, and validation gray levels."""
    dataset = open_dataset("tfds:imagenet2012", str(data_dir))
    assert dataset.test is not None
    seen = []
    for source in (dataset.train, dataset.test):
        records = [source[i] for i in range(len(source))]
        seen.append([(r["label"], int(Picture(r["image"], "").pixels()[0, 0, 0])) for r in records])
    return seen[0], [level for _, level in seen[1]]


def test_imagenet_is_prepared_from_its_archives_and_continued_after_an_interruption(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "_SHARD_BYTES", 5 * len(png(0)))
    prepared = prepare.imagenet(tars, tmp_path / "tfds")
    expected = [(label, 10 * label + i) for label in range(3) for i in range(4)]
    assert levels(tmp_path / "tfds") == (expected, [101, 102, 103])
    shards = sorted(prepared.glob("imagenet2012-train.array_record-*"))
    assert len(shards) == 3

    times = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].unlink()
    (prepared / "dataset_info.json").unlink()
    prepare.imagenet(tars, tmp_path / "tfds")
    assert "2 of 3 files of train exist already" in capsys.readouterr().out
    assert levels(tmp_path / "tfds")[0] == expected
    again = [shard.stat().st_mtime_ns for shard in shards]
    assert [old == new for old, new in zip(times, again, strict=True)] == [True, False, True]


def photograph(height: int, width: int, **options: Any) -> bytes:
    """A JPEG of slow waves, which any encoder keeps."""
    rows, columns = np.mgrid[:height, :width]
    waves = 127 + 50 * np.sin(rows / 30) + 50 * np.sin(columns / 40)
    buffer = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(150, 200), (200, 150), (64, 90), (80, 96)])
def test_photographs_shrink_and_can_be_cut(shape: tuple[int, int]) -> None:
    original = photograph(*shape, quality=100)
    shrunk = prepare.Shrinking(80, 90)(original)
    image = Image.open(io.BytesIO(shrunk))
    scale = min(1, 80 / min(shape))
    assert image.size == (round(shape[1] * scale), round(shape[0] * scale))
    assert len(shrunk) < len(original)
    expected = np.asarray(Image.open(io.BytesIO(original)).resize(image.size, Image.Resampling.BOX))
    difference = np.abs(np.asarray(image).astype(int) - expected)
    assert difference.mean() < 3
    piece = cut(shrunk, Box(40, 50, 8, 8))
    assert piece is not None
    assert piece.box.top > 0


def test_what_shrinking_would_spoil_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for encoded in (b"no image", photograph(100, 90, exif=exif)):
        assert prepare.Shrinking(32)(encoded) == encoded
    with pytest.raises(InputError, match="quality is 101; it takes a whole number from 1 to 100"):
        prepare.Shrinking(400, 101)


def test_training_images_are_shrunk_in_order_and_in_one_way(tars: Path, tmp_path: Path) -> None:
    prepared = prepare.imagenet(tars, tmp_path / "small", prepare.Shrinking(400))
    prepare.imagenet(tars, tmp_path / "tfds")
    assert levels(tmp_path / "small") == levels(tmp_path / "tfds")
    dataset = open_dataset("tfds:imagenet2012", str(tmp_path / "small"))
    assert dataset.test is not None
    kinds = [source[0]["image"][:2] for source in (dataset.train, dataset.test)]  # type: ignore[index]
    assert kinds == [b"\xff\xd8", b"\x89P"]
    (prepared / "dataset_info.json").unlink()
    for shrinking in (None, prepare.Shrinking(300)):
        with pytest.raises(InputError, match="begun with --shorter_side=400 --quality=90, not wi"):
            prepare.imagenet(tars, tmp_path / "small", shrinking)
    prepare.imagenet(tars, tmp_path / "small", prepare.Shrinking(400))


def as_tfrecord(prepared: Path, data_dir: Path) -> Path:
    """Writes the dataset as TFRecord, TFDS's default, by the definition of the format."""
    out = data_dir / "imagenet2012" / "5.1.0"
    out.mkdir(parents=True)
    dataset = open_dataset("tfds:imagenet2012", str(prepared.parents[1]))
    info = json.loads((prepared / "dataset_info.json").read_text())
    assert dataset.test is not None
    for split, source in (("train", dataset.train), ("validation", dataset.test)):
        raw = source.records.data_source  # type: ignore[attr-defined]
        with (out / f"imagenet2012-{split}.tfrecord-00000-of-00001").open("wb") as file:
            for record in (raw[i] for i in range(len(source))):
                file.write(struct.pack("<Q", len(record)) + bytes(4) + record + bytes(4))
    info["fileFormat"] = "tfrecord"
    (out / "dataset_info.json").write_text(json.dumps(info))
    for name in ("features.json", "label.labels.txt"):
        shutil.copy(prepared / name, out)
    return out


def test_the_command_that_the_error_names_converts_tfrecords(tars: Path, tmp_path: Path) -> None:
    prepared = prepare.imagenet(tars, tmp_path / "tfds")
    old = as_tfrecord(prepared, tmp_path / "old")
    with pytest.raises(InputError, match="nfnets prepare` converts it"):
        open_dataset("tfds:imagenet2012", str(tmp_path / "old"))
    prepare.convert("imagenet2012", tmp_path / "old", tmp_path / "new")
    assert levels(tmp_path / "new") == levels(tmp_path / "tfds")

    file = old / "imagenet2012-train.tfrecord-00000-of-00001"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(InputError, match="tfrecord-00000-of-00001 ends in the middle of record 11"):
        prepare.convert("imagenet2012", tmp_path / "old", tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("dataset_info.json"))
    assert not list((tmp_path / "cut").rglob("imagenet2012-train*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar10", "--tars=X", "--data_dir=X"], "error: --tars holds imagenet2012, not cifar10"),
        (["cifar10", "--tfrecords=X", "--data_dir=X"], "error: no cifar10/VERSION/dataset_info"),
        (["imagenet2012", "--tars=X", "--data_dir=X"], "error: X/ILSVRC2012_img_train.tar: No su"),
    ],
)
def test_missing_data_are_named(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["prepare", *arguments])
    with pytest.raises(SystemExit) as ended:
        prepare.main()
    assert str(ended.value).startswith(message)


def test_other_archives_are_refused(tars: Path, tmp_path: Path) -> None:
    (tars / "ILSVRC2012_img_val.tar").write_bytes(archive({"cat.jpg": png(1)}))
    with pytest.raises(InputError, match="has cat.jpg, which is not a validation image"):
        prepare.imagenet(tars, tmp_path / "tfds")
    (tars / "ILSVRC2012_img_train.tar").write_bytes(archive({"cats.tar": archive({})}))
    with pytest.raises(InputError, match="has cats.tar, which is not a class of ImageNet"):
        prepare.imagenet(tars, tmp_path / "tfds")
    (tars / "ILSVRC2012_img_train.tar").write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(InputError, match="is not a tar archive"):
        prepare.imagenet(tars, tmp_path / "tfds")


def write_parquet(file: Path, labels: list[int], names: list[str] | None = None) -> None:
    """Writes images whose gray level is their label + 100, two a row group."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(label + 100), "path": f"{i}.png"} for i, label in enumerate(labels)]
    table = pa.table({"image": pa.array(rows, image), "label": pa.array(labels, pa.int64())})
    if names:
        note = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table, file, row_group_size=2)


def test_parquet_is_evaluated_as_it_is_and_converted_for_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, names = tmp_path / "hf", ["cat", "dog", "fox"]
    for number, labels in enumerate([[2, 0, 1], [1, 1, 0, 2]]):
        write_parquet(folder / f"train-{number:05d}-of-00002.parquet", labels, names)
    write_parquet(folder / "validation-00000-of-00001-0ab1.parquet", [1, 0, 2, 2, 1], names)
    write_parquet(folder / "test-00000-of-00001.parquet", [-1, -1], names)

    source, classes = open_split("parquet", str(folder))
    assert classes == ("cat", "dog", "fox")
    records = fetch(source, [4, 0, 1, 3, 2])
    assert [record["label"] for record in records] == [1, 1, 0, 2, 2]
    train, _ = open_split("parquet", str(folder), "train")
    for record in [*records, source[3], *fetch(train, range(7))]:
        assert Picture(record["image"], "").pixels()[0, 0, 0] == record["label"] + 100

    prepared = prepare.convert_parquet("pets", folder, tmp_path / "tfds")
    assert "the split test has images without a label: left out" in capsys.readouterr().out
    assert len(list(prepared.glob("pets-train.array_record-*-of-00002"))) == 2
    dataset = open_dataset("tfds:pets", str(tmp_path / "tfds"))
    assert dataset.class_names == ("cat", "dog", "fox")
    assert dataset.test is not None
    for found, labels in ((dataset.train, [2, 0, 1, 1, 1, 0, 2]), (dataset.test, [1, 0, 2, 2, 1])):
        records = [found[index] for index in range(len(found))]
        assert [record["label"] for record in records] == labels
        levels = [Picture(record["image"], "").pixels()[0, 0, 0] - 100 for record in records]
        assert levels == labels


def test_parquet_of_imagenet_has_its_classes_by_wordnet_id(tmp_path: Path) -> None:
    names = ["tench, Tinca tinca", *map(str, range(998))]
    names.append("toilet tissue, toilet paper, bathroom tissue")
    write_parquet(tmp_path / "validation.parquet", [0, 3], names)
    assert open_split("parquet", str(tmp_path))[1] == imagenet_classes()
    write_parquet(tmp_path / "validation.parquet", [0, 3])
    assert open_split("parquet", str(tmp_path))[1] == ("0", "1", "2", "3")


def test_parquet_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(split: str = "") -> str:
        with pytest.raises(InputError) as error:
            open_split("parquet", str(tmp_path), split)
        return str(error.value)

    assert refusal() == f"no files *.parquet in {tmp_path}"
    pq.write_table(pa.table({"img": [1], "label": ["cat"]}), tmp_path / "train.parquet")
    assert "train.parquet has img (int64), label (string); it should have a column" in refusal()
    write_parquet(tmp_path / "train.parquet", [0, 5], ["cat"])
    assert "a label 5 of 1 classes" in refusal()
    write_parquet(tmp_path / "train.parquet", [0, -1], ["cat"])
    assert f"'train' in {tmp_path} has images without a label" in refusal()
    assert "has no split 'test'; there are: train" in refusal("test")
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[:-10])
    assert "train.parquet cannot be read as Parquet" in refusal()
    with pytest.raises(InputError, match=r"nfnets prepare NAME --parquet=DIR` converts it"):
        open_dataset("parquet", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert refusal().startswith("Parquet files need pyarrow: pip install pyarrow")

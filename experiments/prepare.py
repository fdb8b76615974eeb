"""Prepares datasets for random access, as ArrayRecord in the layout of TFDS, without TensorFlow.

ImageNet, from its two archives, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar:

    python -m experiments.prepare imagenet2012 --tars=DOWNLOADS --data_dir=TFDS

A dataset that TFDS prepared as TFRecord, in another data directory:

    python -m experiments.prepare NAME --tfrecords=OLD_TFDS --data_dir=TFDS

A dataset in Parquet files, such as ``train-00000-of-00294.parquet`` from Hugging Face:

    python -m experiments.prepare NAME --parquet=FOLDER --data_dir=TFDS

ImageNet with training images no larger than training needs, which are read in less time:

    python -m experiments.prepare imagenet2012 --tars=DOWNLOADS --data_dir=TFDS --shorter_side=400

``--config.data.name=tfds:NAME --config.data.dir=TFDS`` trains on each. Run again after an
interruption, the command continues after the last complete file.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import shutil
import struct
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import rich.progress

from nfnets_jax.atomic import atomic_write
from nfnets_jax.data.decoding import Picture, Reading
from nfnets_jax.data.reader import cores
from nfnets_jax.data.sources import (
    Record,
    Source,
    fetch,
    imagenet_classes,
    parquet_splits,
    read_parquet,
)
from nfnets_jax.errors import InputError, UnreadableImageError
from nfnets_jax.ranges import Range, check_ranges

from . import commands

_SHARD_BYTES = 2**27
# Images that are read, and shrunk, at once.
_AHEAD = 256
_IMAGENET_VERSION = "5.1.0"


def main() -> None:
    """Prepares the dataset that the command line names."""
    parser = commands.parser("prepare", __doc__)
    parser.add_argument("name", help="imagenet2012, or the dataset in --tfrecords or --parquet")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tars", type=Path, help="folder of ImageNet's archives")
    source.add_argument("--tfrecords", type=Path, help="data directory of TFDS to convert from")
    source.add_argument("--parquet", type=Path, help="folder of Parquet files to convert")
    parser.add_argument("--data_dir", type=Path, required=True, help="data directory to write to")
    parser.add_argument("--shorter_side", type=int, help="of larger training images, pixels")
    parser.add_argument("--quality", type=int, default=90, help="of their JPEG files, 1 to 100")
    arguments = parser.parse_args()
    try:
        shrinking = None
        if arguments.shorter_side is not None:
            shrinking = Shrinking(arguments.shorter_side, arguments.quality)
        if shrinking and not arguments.tars:
            raise InputError("--shorter_side goes with --tars: other files are copied unchanged")
        if arguments.tfrecords:
            prepared = convert(arguments.name, arguments.tfrecords, arguments.data_dir)
        elif arguments.parquet:
            prepared = convert_parquet(arguments.name, arguments.parquet, arguments.data_dir)
        elif arguments.name == "imagenet2012":
            prepared = imagenet(arguments.tars, arguments.data_dir, shrinking)
        else:
            raise InputError(f"--tars holds imagenet2012, not {arguments.name}")
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    print(f"prepared {prepared}")


def convert(name: str, old: Path, new: Path) -> Path:
    """Converts a dataset from TFRecord to ArrayRecord files.

    Args:
      name: of the dataset.
      old: TFDS's data directory that holds it; its latest version is converted.
      new: the data directory to write to.

    Returns:
      The folder of the converted version.

    Raises:
      InputError: the dataset is missing or incomplete, or is ArrayRecord already.
    """
    versions = sorted((old / name).glob("*/dataset_info.json"), key=_version)
    if not versions:
        raise InputError(
            f"no {name}/VERSION/dataset_info.json in {old}: --tfrecords takes a data directory of "
            "TFDS"
        )
    folder = versions[-1].parent
    info = json.loads(versions[-1].read_text(encoding="utf-8"))
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise InputError(f"{folder} is {info['fileFormat']}, which needs no conversion")
    shards = []
    for split in info["splits"]:
        for index, length in enumerate(map(int, split["shardLengths"])):
            suffix = f"{index:05d}-of-{len(split['shardLengths']):05d}"
            file = folder / f"{name}-{split['name']}.tfrecord-{suffix}"
            shards.append(_Shard(split["name"], suffix, length, _TFRecords(file, length)))
    out = new / name / folder.name
    _write_shards(name, shards, out)
    for file in folder.iterdir():
        if ".tfrecord" not in file.name and file != versions[-1]:
            shutil.copy(file, out)
    # Written last: the dataset can be opened from now on.
    info["fileFormat"] = "array_record"
    (out / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
    return out


@dataclasses.dataclass(frozen=True)
class Shrinking:
    """Encodes photographs anew, no larger than needed and so that they can be cut.

    Attributes:
      shorter_side: of a larger photograph after it, pixels.
      quality: of the JPEG file, 1 to 100.

    Raises:
      InputError: a number is not in its range.
    """

    shorter_side: int
    quality: int = 90

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "shorter_side": Range(16, 8192, whole=True),
                "quality": Range(1, 100, whole=True),
            },
        )

    def __call__(self, encoded: bytes) -> bytes:
        """Returns the photograph as a JPEG file with color at half the resolution.

        One that cannot be read, or that EXIF says is to be turned, is returned as it is.
        """
        try:
            picture = Picture(encoded, "", Reading(upright=True))
            if picture.is_turned:
                return encoded
            pixels = picture.pixels()
        except UnreadableImageError:
            return encoded
        scale = self.shorter_side / min(picture.height, picture.width)
        if scale < 1:
            size = round(picture.width * scale), round(picture.height * scale)
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        units = math.ceil(pixels.shape[1] / 16)
        # Restart markers every few units, if they divide a row, let crops be cut out.
        interval = next(n for n in range(min(2, units), units + 1) if units % n == 0)
        _, shrunk = cv2.imencode(
            ".jpg",
            cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR),
            [
                *(cv2.IMWRITE_JPEG_QUALITY, self.quality),
                *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
                *(cv2.IMWRITE_JPEG_RST_INTERVAL, interval),
                *(cv2.IMWRITE_JPEG_OPTIMIZE, 1),
            ],
        )
        return shrunk.tobytes()


def imagenet(tars: Path, data_dir: Path, shrinking: Shrinking | None = None) -> Path:
    """Prepares ImageNet from its archives: 1,281,167 training and 50,000 validation images.

    Args:
      tars: the folder of the archives.
      data_dir: the data directory to write to.
      shrinking: applied to the training images; None keeps their files.

    Returns:
      The folder of the prepared version.

    Raises:
      InputError: an archive is damaged, or holds files that ImageNet's does not; or the folder was
        begun with another shrinking.
      OSError: an archive is missing.
    """
    import tensorflow_datasets as tfds

    metadata = tfds.core.tfds_path("datasets/imagenet2012")
    classes = imagenet_classes()
    validation = (metadata / "validation_labels.txt").read_text().split()
    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=classes),
        }
    )

    def serialize(image: _Image, encoded: bytes) -> bytes:
        example = {"file_name": image.name, "image": encoded, "label": image.label}
        return features.serialize_example(example)

    out = data_dir / "imagenet2012" / _IMAGENET_VERSION
    _claim(out, shrinking)
    splits = {
        "train": _train_images(tars / "ILSVRC2012_img_train.tar", classes),
        "validation": _validation_images(tars / "ILSVRC2012_img_val.tar", classes, validation),
    }
    sharded, sizes = {}, {}
    for split, images in splits.items():
        size = sum(image.size for image in images)
        count = min(len(images), math.ceil(size / _SHARD_BYTES))
        starts = [len(images) * index // count for index in range(count + 1)]
        sharded[split] = [
            _Shard(
                split,
                f"{index:05d}-of-{count:05d}",
                stop - start,
                _Serialized(images[start:stop], serialize, shrinking if split == "train" else None),
            )
            for index, (start, stop) in enumerate(itertools.pairwise(starts))
        ]
        sizes[split] = size
    _write_dataset("imagenet2012", features, sharded, sizes, out)
    return out


def convert_parquet(name: str, directory: Path, data_dir: Path) -> Path:
    """Converts a dataset of Parquet files, one to each ArrayRecord file.

    A split without labels, such as ImageNet's test images, is left out, and said.

    Args:
      name: that the dataset gets.
      directory: of the files.
      data_dir: the data directory to write to.

    Returns:
      The folder of the prepared version.

    Raises:
      InputError: there are no files, or they are damaged or of another layout, or the splits have
        other classes than one another.
    """
    import tensorflow_datasets as tfds

    def serialize(record: Record) -> bytes:
        return features.serialize_example({"image": record["image"], "label": record["label"]})

    sharded: dict[str, list[_Shard]] = {}
    sizes: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    for split, files in parquet_splits(str(directory)).items():
        source, names = read_parquet(str(directory), split, files)
        if min(source.labels) < 0:
            print(f"the split {split} has images without a label: left out")
            continue
        classes = max(classes, names, key=len)
        if classes[: len(names)] != names:
            raise InputError(f"the splits in {directory} have other classes than one another")
        sizes[split] = sum(file.stat().st_size for file in files)
        firsts: dict[str, int] = {}
        for (file, _), start in zip(source.groups, source.starts, strict=False):
            firsts.setdefault(file, int(start))
        bounds = itertools.pairwise([*firsts.values(), len(source)])
        sharded[split] = [
            _Shard(
                split,
                f"{index:05d}-of-{len(firsts):05d}",
                stop - start,
                _Records(source, start, stop, serialize),
            )
            for index, (start, stop) in enumerate(bounds)
        ]
    if not sharded:
        raise InputError(f"no images in {directory} have a label")
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=classes)}
    )
    out = data_dir / name / "1.0.0"
    _write_dataset(name, features, sharded, sizes, out)
    return out


def _write_dataset(
    name: str,
    features: Any,
    shards: Mapping[str, Sequence["_Shard"]],
    sizes: Mapping[str, int],
    out: Path,
) -> None:
    """Writes the files of each split, then what makes TFDS open them; ``sizes`` are in bytes."""
    import tensorflow_datasets as tfds

    infos = []
    for split, of_split in shards.items():
        _write_shards(name, of_split, out)
        template = tfds.core.ShardedFileTemplate(
            data_dir=out, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.length for shard in of_split],
                num_bytes=sizes[split],
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=out, features=features, split_infos=infos, check_data=False
    )


def _claim(out: Path, shrinking: Shrinking | None) -> None:
    """Notes how the training images are shrunk, so that no folder holds two kinds.

    Raises:
      InputError: the folder was begun in another way.
    """
    settings, note = dataclasses.asdict(shrinking) if shrinking else None, out / "shrinking.json"
    if any(out.glob("*.array_record-*")):
        begun = json.loads(note.read_text("utf-8")) if note.exists() else None
        if begun != settings:
            raise InputError(f"{out} was begun with {_words(begun)}, not with {_words(settings)}")
    elif settings:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(note) as partial:
            partial.write_text(json.dumps(settings), "utf-8")
    else:
        note.unlink(missing_ok=True)


def _words(settings: dict[str, int] | None) -> str:
    if settings is None:
        return "images as they are"
    return f"--shorter_side={settings['shorter_side']} --quality={settings['quality']}"


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file to write.

    Attributes:
      split: of the dataset.
      suffix: end of the file's name, such as ``00000-of-00010``.
      length: number of records.
      records: the records; iterable more than once.
    """

    split: str
    suffix: str
    length: int
    records: Iterable[bytes]


def _write_shards(name: str, shards: Sequence[_Shard], out: Path) -> None:
    """Writes the files that do not exist yet, each atomically."""
    from array_record.python.array_record_module import ArrayRecordWriter

    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}-{shard.split}.array_record-{shard.suffix}" for shard in shards]
    existing = sum(file.exists() for file in files)
    if existing:
        print(f"{existing} of {len(files)} files of {shards[0].split} exist already")
    with _progress() as progress:
        total = sum(shard.length for shard in shards)
        task = progress.add_task(f"{name}, {shards[0].split}", total=total)
        for shard, file in zip(shards, files, strict=True):
            if file.exists():
                progress.advance(task, shard.length)
                continue
            partial = file.with_name(f".{file.name}")
            writer = ArrayRecordWriter(str(partial), "group_size:1")
            for record in shard.records:
                writer.write(record)
                progress.advance(task)
            writer.close()
            os.replace(partial, file)


def _progress() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )


@dataclasses.dataclass(frozen=True)
class _TFRecords:
    """The records of a TFRecord file.

    Attributes:
      file: the file.
      length: the number of records that it should hold.
    """

    file: Path
    length: int

    def __iter__(self) -> Iterator[bytes]:
        """Yields the records.

        Raises:
          InputError: the file holds fewer or more records, or a part of one.
        """
        count = 0
        with self.file.open("rb") as file:
            # Each record: 8 bytes of length, 4 of its checksum, the content, 4 of its checksum.
            while header := file.read(12):
                size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
                content = file.read(size + 4)
                if len(header) < 12 or len(content) < size + 4:
                    raise InputError(f"{self.file} ends in the middle of record {count}")
                yield content[:-4]
                count += 1
        if count != self.length:
            raise InputError(f"{self.file} has {count} records, not {self.length}: copy it again")


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image file inside an archive."""

    archive: Path
    offset: int
    size: int
    name: str
    label: int

    def read(self) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclasses.dataclass(frozen=True)
class _Serialized:
    """Images as serialized records."""

    images: Sequence[_Image]
    serialize: Callable[[_Image, bytes], bytes]
    shrinking: Shrinking | None

    def __iter__(self) -> Iterator[bytes]:
        """Yields the records; threads, one for each core, read and shrink the images."""
        with concurrent.futures.ThreadPoolExecutor(cores()) as threads:
            for start in range(0, len(self.images), _AHEAD):
                images = self.images[start : start + _AHEAD]
                for image, encoded in zip(images, threads.map(self._encoded, images), strict=True):
                    yield self.serialize(image, encoded)

    def _encoded(self, image: _Image) -> bytes:
        return self.shrinking(image.read()) if self.shrinking else image.read()


@dataclasses.dataclass(frozen=True)
class _Records:
    """Records of a source, serialized, from ``start`` to before ``stop``."""

    source: Source
    start: int
    stop: int
    serialize: Callable[[Record], bytes]

    def __iter__(self) -> Iterator[bytes]:
        for start in range(self.start, self.stop, 64):
            indices = range(start, min(start + 64, self.stop))
            yield from map(self.serialize, fetch(self.source, indices))


def _train_images(archive: Path, classes: Sequence[str]) -> list[_Image]:
    """Lists the images of the training archive, which holds one archive per class."""
    images = []
    with _open(archive) as outer:
        members = [member for member in outer if member.isfile()]
        for member in rich.progress.track(members, "listing the images of each class"):
            name = Path(member.name).stem
            if name not in classes:
                raise InputError(f"{archive} has {member.name}, which is not a class of ImageNet")
            label = classes.index(name)
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                images += [
                    _Image(archive, member.offset_data + f.offset_data, f.size, f.name, label)
                    for f in inner
                    if f.isfile()
                ]
    return images


def _validation_images(
    archive: Path, classes: Sequence[str], labels: Sequence[str]
) -> list[_Image]:
    """Lists the images of the validation archive, whose names end in the index of their label."""
    images = []
    with _open(archive) as tar:
        for member in tar:
            if not member.isfile():
                continue
            number = Path(member.name).stem.rpartition("_")[2]
            if not number.isdigit() or not 0 < int(number) <= len(labels):
                raise InputError(f"{archive} has {member.name}, which is not a validation image")
            label = classes.index(labels[int(number) - 1])
            images.append(_Image(archive, member.offset_data, member.size, member.name, label))
    return sorted(images, key=lambda image: image.name)


def _open(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive, "r:")
    except tarfile.TarError as error:
        raise InputError(f"{archive} is not a tar archive, or is incomplete: {error}") from error


def _version(info: Path) -> list[int]:
    """Returns the version in a folder's name as a key to sort by."""
    return [int(part) for part in info.parent.name.split(".") if part.isdigit()]


if __name__ == "__main__":
    main()

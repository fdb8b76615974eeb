from pathlib import Path

import cv2
import numpy as np
import pytest

from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.sources import (
    Record,
    Source,
    fetch,
    imagenet_classes,
    open_dataset,
    open_split,
)
from nfnets_jax.data.sources.folder import open_folder
from nfnets_jax.errors import InputError


def decode(record: Record) -> np.ndarray:
    return Picture(record["image"], record["name"]).pixels()


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def test_the_split_of_the_digits_is_fixed() -> None:
    dataset = open_dataset("digits")
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test), len(dataset.class_names)) == (1437, 360, 10)
    halves = [{decode(source[i]).tobytes() for i in range(len(source))}
              for source in (dataset.train, dataset.test)]  # fmt: skip
    assert not halves[0] & halves[1]
    assert [dataset.test[i]["label"] for i in range(5)] == [6, 6, 6, 2, 5]
    pixels = np.stack([decode(dataset.train[i]) for i in range(len(dataset.train))]) / 255
    np.testing.assert_allclose(pixels.mean(), dataset.mean[0], atol=1e-3)
    np.testing.assert_allclose(pixels.std(), dataset.std[0], atol=1e-3)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_held_out_images_leave_the_training_images(name: str) -> None:
    """The digits are in memory, the synthetic images are read one by one."""
    whole = open_dataset(name, size=8)
    first, again = (open_dataset(name, size=8).hold_out(100) for _ in range(2))

    def images(source: Source | None) -> list[bytes]:
        assert source is not None
        return [decode(record).tobytes() for record in fetch(source, range(len(source)))]

    trained, tested = images(first.train), images(first.test)
    assert (len(tested), tested) == (100, images(again.test))
    assert sorted(trained + tested) == sorted(images(whole.train))
    for count in (-1, 0, len(whole.train)):
        with pytest.raises(InputError, match="from 1 to .* can be"):
            whole.hold_out(count)


def test_synthetic_images_depend_on_their_position_alone() -> None:
    first, second = (open_dataset("synthetic", size=16).train for _ in range(2))
    record = first[7]
    np.testing.assert_array_equal(record["image"], second[7]["image"])
    assert record["label"] == 7
    assert decode(record).shape == (16, 16, 3)
    assert np.abs(decode(first[17]).astype(int) - decode(record)).max() > 50


def test_classes_are_the_folders_in_sorted_order(tmp_path: Path) -> None:
    image = np.full((4, 6, 3), 200, np.uint8)
    for name in ("b/2.png", "a/1.jpg", "b/10.JPEG", "c/notes.txt"):
        if name.endswith("txt"):
            (tmp_path / "c").mkdir()
            (tmp_path / name).write_text("not an image")
        else:
            write_image(tmp_path / name, image)
    dataset = open_dataset("folder", str(tmp_path))
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.test is None
    records = [dataset.train[i] for i in range(len(dataset.train))]
    assert [(Path(r["name"]).name, r["label"]) for r in records] == [
        ("1.jpg", 0),
        ("10.JPEG", 1),
        ("2.png", 1),
    ]
    assert all(decode(record).shape == (4, 6, 3) for record in records)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    def refusal(directory: str, test_directory: str = "") -> str:
        with pytest.raises(InputError) as error:
            open_dataset("folder", directory, test_directory)
        return str(error.value)

    assert refusal("").startswith("dataset 'folder' needs a directory: it should hold one folder")
    assert refusal(str(tmp_path / "x")).startswith(f"no folder {tmp_path / 'x'}: it should")
    assert refusal(str(tmp_path)).startswith(f"no folders in {tmp_path}: ")
    (tmp_path / "train" / "a").mkdir(parents=True)
    assert refusal(str(tmp_path)).startswith("no images in the 1 folders of ")
    write_image(tmp_path / "train" / "a" / "1.png", np.zeros((2, 2, 3), np.uint8))
    write_image(tmp_path / "test" / "b" / "1.png", np.zeros((2, 2, 3), np.uint8))
    assert "has a class 'b'" in refusal(str(tmp_path / "train"), str(tmp_path / "test"))


def test_cifar10_is_read_from_array_records(shared: Path) -> None:
    dataset = open_dataset("tfds:cifar10", str(shared / "data" / "tfds"))
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert dataset.class_names[3] == "cat"
    images = np.stack([decode(dataset.train[i]) for i in range(0, 50_000, 500)])
    assert images.shape == (100, 32, 32, 3)
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, dataset.mean, atol=0.05)


def test_missing_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset 'mnist'; there are digits, tfds:NAME"):
        open_dataset("mnist")
    with pytest.raises(InputError, match="'cifar10' is not prepared in .*should hold cifar10/"):
        open_dataset("tfds:cifar10", str(tmp_path))
    with pytest.raises(InputError, match="TFDS knows no dataset 'cifar11'"):
        open_dataset("tfds:cifar11", str(tmp_path))
    with pytest.raises(InputError, match="no folder .*should be the data directory of TFDS"):
        open_dataset("tfds:cifar10", str(tmp_path / "x"))


def test_a_split_of_tfds_is_opened_alone(shared: Path) -> None:
    directory = str(shared / "data" / "tfds")
    source, names = open_split("tfds:cifar10", directory)
    assert (len(source), names[3]) == (10_000, "cat")
    with pytest.raises(InputError, match="tfds:cifar10 has no split 'tests'; nearest: test"):
        open_split("tfds:cifar10", directory, "tests")


def test_digits_have_two_splits_and_a_folder_has_one(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.png", np.zeros((2, 2, 3), np.uint8))
    assert [len(open_split("digits", split=split)[0]) for split in ("", "train")] == [360, 1437]
    source, names = open_split("folder", str(tmp_path))
    assert (len(source), names) == (1, ("a",))
    with pytest.raises(InputError, match="digits has no split 'validation'; there are train, test"):
        open_split("digits", split="validation")


def test_imagenets_classes_are_in_the_order_of_the_labels() -> None:
    names = imagenet_classes()
    assert (len(names), names[0], names[-1]) == (1000, "n01440764", "n15075141")


def test_what_is_no_class_and_no_image_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog", "Zebra", ".ipynb_checkpoints", "__MACOSX", "empty"):
        (tmp_path / name).mkdir()
    image = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    for name in ("cat", "dog", "Zebra", "__MACOSX"):
        for file in ("0.png", "1.JFIF", "2.gif"):
            (tmp_path / name / file).write_bytes(image)
    (tmp_path / "cat" / "._0.png").write_bytes(bytes([0, 5, 22, 7]))
    (tmp_path / "cat" / "dir.jpg").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    splits = open_folder(str(tmp_path), str(tmp_path))
    assert splits.class_names == ("Zebra", "cat", "dog", "empty")
    names = [splits.train[index]["name"] for index in range(len(splits.train))]
    assert len(names) == 9
    assert not any("._" in name or "dir" in name for name in names)
    said = capsys.readouterr().err
    assert "no classes, left out: .ipynb_checkpoints, __MACOSX" in said
    assert "left out: 1 hidden files, 1 folders named like images" in said
    assert "1 classes without images: empty" in said


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Returns a folder of four images without folders of classes, beside ``train`` with two."""
    for name in ("val/val_1.JPEG", "val/val_2.JPEG", "val/val_3.png", "val/more/val_4.png"):
        write_image(tmp_path / name, np.full((4, 4, 3), 9, np.uint8))
    for name in ("train/dog/0.png", "train/cat/0.png", "train/fox/0.png"):
        write_image(tmp_path / name, np.full((4, 4, 3), 9, np.uint8))
    return tmp_path


LISTS = {
    "comma and header": "file,class\nval_1.JPEG,dog\nval_2.JPEG,cat\nval_3.png,dog\n"
    "more/val_4.png,cat\n",
    "tab": "val_1.JPEG\tdog\r\nval_2.JPEG\tcat\r\nval_3.png\tdog\r\nmore/val_4.png\tcat\r\n",
    "blank": "val_3.png dog\n\nval_1.JPEG dog\n  val_2.JPEG cat\n./more/val_4.png   cat",
    "byte order mark and quotes": '\ufeff"val_1.JPEG","dog"\nval_2.JPEG,cat\nval_3.png, dog\n'
    "more/val_4.png,cat,1\n",
    "boxes, no suffix": "ImageId,PredictionString\nval_1,dog 1 2 3 4 \nval_2,cat 85 1 499 272 "
    "cat 1 1 9 9\nval_3,dog 0 0 5 5\nmore/val_4,cat 1 2 3 4\n",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_a_list_gives_images_their_classes_by_name(flat: Path, text: str) -> None:
    """The training classes are cat, dog and fox, so that places in the list would be wrong."""
    (flat / "val.csv").write_text(text, "utf-8")
    expected = dict.fromkeys(("val_1.JPEG", "val_3.png"), "dog")
    expected |= dict.fromkeys(("val_2.JPEG", "more/val_4.png"), "cat")
    train, val, labels = (str(flat / name) for name in ("train", "val", "val.csv"))
    dataset = open_dataset("folder", train, val, test_labels=labels)
    alone, names = open_split("folder", val, labels=labels)
    assert (dataset.class_names, names) == (("cat", "dog", "fox"), ("cat", "dog"))
    for source, classes in ((dataset.test, dataset.class_names), (alone, names)):
        assert source is not None
        records = [source[index] for index in range(len(source))]
        found = {str(Path(r["name"]).relative_to(val)): classes[r["label"]] for r in records}
        assert found == expected
        assert all(decode(record).shape == (4, 4, 3) for record in records)


def test_what_a_list_leaves_out_is_said(flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["ImageId,Class", *["val_1,dog"] * 3, "val_2,cat"]
    lines += [f"val_{number},dog" for number in range(10, 40)]
    (flat / "val.csv").write_text("\n".join(lines))
    train, val, labels = (str(flat / name) for name in ("train", "val", "val.csv"))
    dataset = open_dataset("folder", train, val, test_labels=labels)
    assert dataset.test is not None
    assert len(dataset.test) == 2
    absent = ", ".join(f"val_{number}" for number in range(10, 20))
    assert capsys.readouterr().err.splitlines() == [
        f"{labels}: the first line is taken for a header: 'ImageId'",
        f"{labels}: 2 lines repeat others, the first that of val_1",
        f"{labels}: no label, left out: 2 images: more/val_4.png, val_3.png",
        f"{val}: not there: 30 images of {labels}: {absent} and 20 more",
        f"{val}: 1 classes without evaluation images: fox",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images: a line is FILE,CLASS"),
        ("file,class\n", "lists no images"),
        ("val_1.JPEG,dog\nval_2.JPEG\n", "val.csv, line 2: no class; a line is FILE,CLASS"),
        ("val_1.JPEG\n", "line 1: no class"),
        ("val_1,dog\nval_2,cat\nval_1,cat\n", "line 3: val_1 is 'cat' here and 'dog' before"),
        ("1.png,dog\n", "names none of the 4 images in .*val; it begins with '1.png'"),
        ("val_1,emu\nval_2,elk\nval_3,dog", "has a class 'elk' that .*train has not and 1 more"),
        ("twice,dog\n", "'twice' is the name of two images"),
        ("\udcff", "labels in .*val.csv cannot be read: it is not text"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(flat: Path, text: str, message: str) -> None:
    if text.startswith("twice"):
        for suffix in (".png", ".jpg"):
            write_image(flat / "val" / f"twice{suffix}", np.zeros((2, 2, 3), np.uint8))
        text += "val_1,dog"
    (flat / "val.csv").write_text(text, "utf-8", "surrogateescape")
    train, val, labels = (str(flat / name) for name in ("train", "val", "val.csv"))
    with pytest.raises(InputError, match=message):
        open_dataset("folder", train, val, test_labels=labels)


def test_lists_without_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels in x.csv cannot be read: No such file"):
        open_split("folder", str(tmp_path), labels="x.csv")
    with pytest.raises(InputError, match="dataset 'digits' has its own labels: those in x.csv"):
        open_dataset("digits", test_labels="x.csv")
    with pytest.raises(InputError, match="labels x.csv are of test images, and there is no folder"):
        open_dataset("folder", str(tmp_path), test_labels="x.csv")

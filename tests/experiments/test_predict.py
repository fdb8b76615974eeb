import io
import json
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments import evaluate, predict
from experiments.configs import digits
from nfnets_jax.data.sources import open_dataset
from nfnets_jax.errors import InputError
from nfnets_jax.serving.classifier import open_classifier
from nfnets_jax.serving.frozen import freeze
from nfnets_jax.training import loop


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides all devices but one: compiling for eight takes longer than the tests."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the workdir of a short run."""
    workdir = tmp_path_factory.mktemp("run")
    config = digits.get_config()
    config.update({"num_steps": 120, "batch_size": 64, "num_devices": 1})
    with config.unlocked():  # A network that compiles quickly.
        config.model.update(width=(32,), depth=(1,), strides=(1,), stem=((16, 1),), group_size=16)
    loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of images of digits, one folder per class."""
    folder = tmp_path_factory.mktemp("photos")
    test = open_dataset("digits").test
    assert test is not None
    for index in range(40):
        record = test[index]
        (folder / str(record["label"])).mkdir(exist_ok=True)
        assert isinstance(record["image"], np.ndarray)
        cv2.imwrite(str(folder / str(record["label"]) / f"{index}.png"), record["image"])
    return folder


def test_a_run_classifies_files(
    digits_run: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        argv = ["predict", f"--weights={digits_run}", "--batch_size=16", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            predict.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().out

    code, output = run(photos, "--json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert [line["image"] for line in lines] == sorted(map(str, photos.rglob("*.png")))
    for line in lines:
        likely = [c["probability"] for c in line["classes"]]
        assert likely == sorted(likely, reverse=True)
        assert len(likely) == 5
        assert all(c["name"] == str(c["label"]) for c in line["classes"])
    right = [line["classes"][0]["name"] == Path(line["image"]).parent.name for line in lines]
    assert np.mean(right) > 0.6

    files = sorted(photos.rglob("*.png"))
    assert [image.name for image in predict.find([f"{photos}/*/*.png"])] == list(map(str, files))
    one = files[0]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(one.read_bytes())))
    first = json.loads(run("-", "--json")[1])
    assert [c["name"] for c in first["classes"]] == [c["name"] for c in lines[0]["classes"]]

    (tmp_path / "bad.png").write_bytes(b"\x89PNG no more")  # Passed over, but told.
    paths = f"{one}\n{tmp_path / 'bad.png'}\n{one}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(paths)))
    code, table = run("-", f"--save={tmp_path / 'drawn'}")
    assert code == 1
    assert table.splitlines()[0] == str(one)
    assert len(table.splitlines()) == 12
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == [f"{one.stem}-2.png", f"{one.stem}.png"]
    pixels = cv2.imread(str(drawn[0]))
    assert pixels is not None
    assert pixels.std() > 10


def test_a_run_is_evaluated_as_it_evaluates_itself(
    digits_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sys, "argv", ["evaluate", f"--weights={digits_run}", *map(str, arguments)]
            )
            evaluate.main()
        return capsys.readouterr().out

    figures = json.loads(run("--json", f"--confusion={tmp_path}"))
    summary = json.loads((digits_run / "summary.json").read_text())["test"]
    assert figures["examples"] == summary["examples"] == 360
    assert figures["top1"] == pytest.approx(summary["ema_top1"], abs=1e-6)
    assert figures["top5"] == pytest.approx(summary["ema_top5"], abs=1e-6)
    assert sum(c["examples"] for c in figures["classes"].values()) == 360
    assert figures["images_per_second"] > 0
    text = evaluate.as_text(figures)
    assert text.startswith(f"top-1 {summary['ema_top1']:.2%}  top-5 ")
    assert figures["parameters"] == "moving average"
    assert text.splitlines()[0].endswith("360 images  parameters: moving average")
    raw = json.loads(run("--json", "--raw"))
    assert raw["parameters"] == "raw"
    assert raw["top1"] == pytest.approx(summary["top1"], abs=1e-6)

    # The confusion matrix is what the classifier says, image by image.
    classifier, test = open_classifier(weights=str(digits_run)), open_dataset("digits").test
    assert test is not None
    records = [test[index] for index in range(320)]
    pixels = np.stack([np.asarray(record["image"]) for record in records])
    predicted = np.concatenate([classifier(part).argmax(axis=1) for part in np.split(pixels, 5)])
    true = np.array([record["label"] for record in records])
    table = np.loadtxt(tmp_path / "confusion.csv", np.int64, delimiter=",", skiprows=1)
    assert (tmp_path / "confusion.csv").read_text().startswith("true \\ predicted,0,1,2,3,4,5,6,")
    np.testing.assert_array_equal(table[:, 0], range(10))  # The classes are called so.
    least = np.array(
        [[np.sum((true == r) & (predicted == c)) for c in range(10)] for r in range(10)]
    )
    assert (table[:, 1:] >= least).all()
    assert table[:, 1:].sum() - least.sum() == 40
    assert [row[label] / row.sum() for label, row in enumerate(table[:, 1:])] == pytest.approx(
        [figures["classes"][str(label)]["top1"] for label in range(10)]
    )
    assert cv2.imread(str(tmp_path / "confusion.png")) is not None
    # Classes by name: seven of the ten are as many as are there.
    for label in "012":
        for path in (photos / label).iterdir():
            path.rename(photos / "9" / f"{label}-{path.name}")
        (photos / label).rmdir()
    moved = json.loads(run(f"--data.dir={photos}", "--json"))
    assert moved["examples"] == 40
    assert set(moved["classes"]) == set("3456789")
    listed = tmp_path / "listed.csv"
    files = photos.rglob("*.png")
    listed.write_text("\n".join(f"{path.relative_to(photos)},{path.parent.name}" for path in files))
    again = json.loads(run(f"--data.dir={photos}", f"--data.labels={listed}", "--json"))
    assert (again["top1"], again["classes"]) == (moved["top1"], moved["classes"])


@pytest.mark.slow
def test_a_batch_normalized_run_brings_its_statistics(tmp_path: Path) -> None:
    config = digits.get_config()
    config.update({"num_steps": 30, "batch_size": 64, "num_devices": 1})
    small = {"name": "resnet50", "width": (32,), "depth": (1,), "group_width": 8}
    with config.unlocked():
        config.model.update(small)
    summary = loop.train(config, tmp_path)
    classifier = open_classifier(weights=str(tmp_path))
    test = open_dataset("digits").test
    assert test is not None
    records = [test[index] for index in range(len(test))]
    probabilities = classifier(np.stack([np.asarray(record["image"]) for record in records]))
    right = probabilities.argmax(axis=1) == [record["label"] for record in records]
    assert np.mean(right) == pytest.approx(summary["test"]["ema_top1"], abs=1e-6)
    with pytest.raises(InputError, match="the running statistics of resnet50 are missing"):
        freeze(nfnets_jax.create_model("resnet50"), {})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a working directory of files that no command can use."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("classes/a").mkdir(parents=True)
    cv2.imwrite("classes/a/gray.png", np.full((20, 20), 99, np.uint8))
    Path("text.png").write_text("not an image")
    model = nfnets_jax.create_model("nfnet_micro", 10)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    nfnets_jax.save_pretrained("ten.safetensors", params)
    nfnets_jax.save_pretrained("named.safetensors", params, list("abcdefghi"))
    nfnets_jax.save_pretrained("twice.safetensors", params, list("abcdefghia"))
    stem = params["NFNet/~/stem_conv0"]
    gray = {**params, "NFNet/~/stem_conv0": {**stem, "w": stem["w"][:, :, :1]}}
    nfnets_jax.save_pretrained("gray.safetensors", gray)
    nfnets_jax.save_pretrained("bare.safetensors", model.reset_classifier(params, 0)[1])


MICRO = ("--model=nfnet_micro", "--weights=ten.safetensors")
BARE = ("--model=nfnet_micro", "--weights=bare.safetensors")
NAMED = ("--model=nfnet_micro", "--weights=named.safetensors")
TWICE = ("--model=nfnet_micro", "--weights=twice.safetensors")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (predict, ("nowhere.jpg", *MICRO), "error: no such image: nowhere.jpg"),
        (predict, ("*.gif", *MICRO), "error: no such image: *.gif"),
        (predict, ("empty", *MICRO), "error: no images in empty: "),
        (predict, ("text.png", *MICRO), "error: text.png: not an image that OpenCV can decode"),
        (predict, ("text.png", "--model=nfnet_9"), "error: no model 'nfnet_9'; nearest: "),
        (predict, ("text.png", "--weights=ten.safetensors"), "error: no model is named"),
        (predict, ("text.png", "--weights=nowhere"), "error: no such weights: nowhere"),
        (predict, ("text.png", "--model=nfnet_micro", "--weights=x"), "error: x cannot be read"),
        (predict, ("text.png", "--model=nfnet_micro", "--weights=text.png"), "error: text.png is "),
        (predict, ("text.png", *MICRO, "--classes=text.png"), "error: 1 class names for a network"),
        (evaluate, MICRO, "error: dataset 'folder' needs a directory"),
        (evaluate, (*MICRO, "--data.dir=empty"), "error: no folders in empty"),
        (evaluate, (*MICRO, "--data.dir=classes"), "error: the data have 1 classes and the class"),
        (evaluate, (*MICRO, "--data.name=digit"), "error: no dataset 'digit'; there are digits"),
        (
            evaluate,
            (*MICRO, "--data.name=digits", "--data.split=val"),
            "error: digits has no split",
        ),
        (evaluate, ("--weights=empty",), "error: no config.json in empty"),
        (
            evaluate,
            (*MICRO, "--raw", "--data.dir=classes"),
            "error: --raw takes the last parameters of a run",
        ),
        (evaluate, (*MICRO, "--confusion=text.png/x"), "error: text.png/x.csv cannot be written"),
        (
            evaluate,
            (*MICRO, "--data.num_workers=-1"),
            "error: --data.num_workers is -1; it takes auto or a whole number",
        ),
        (predict, ("text.png", *BARE), "error: bare.safetensors has no classifier of nfnet_micro"),
        (
            evaluate,
            (*BARE, "--data.name=digits"),
            "error: bare.safetensors has no classifier of nfnet_micro",
        ),
        (
            predict,
            ("text.png", "--model=nfnet_micro", "--weights=gray.safetensors"),
            "error: gray.safetensors is for images of 1 channels",
        ),
        (predict, ("text.png", *NAMED), "error: named.safetensors has 9 class names for 10 classe"),
        (evaluate, (*TWICE, "--data.dir=classes"), "error: several classes are called 'a', and "),
    ],
)
@pytest.mark.usefixtures("files")
def test_bad_input_ends_with_one_line(
    command: object,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as caught:
        command.main()  # type: ignore[attr-defined]
    told = capsys.readouterr().err
    if isinstance(caught.value.code, str):  # Python itself prints it then, and exits with 1.
        told += caught.value.code + "\n"
    else:
        assert caught.value.code == 1
    assert told.startswith(message), told
    assert told.count("\n") == 1

import json
from pathlib import Path

import pytest

from benchmarks import input_pipeline
from benchmarks.photographs import shrunk
from nfnets_jax.data.decoding import Picture
from tests.data.test_decoding import encode, smooth


@pytest.mark.parametrize("augmentation", ["flip", "nfnet_f0", "nfnet_f0_on_device", "small"])
def test_a_measurement_is_one_line_of_json(
    augmentation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--json", "--data=synthetic", "--size=16", "--batch=8", "--images=16", "--workers=0"]
    monkeypatch.setattr("sys.argv", ["input_pipeline", *flags, f"--augmentation={augmentation}"])
    input_pipeline.main()
    [line] = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert figures["images_per_second"] == pytest.approx(8 / figures["seconds"])
    decoded = 16 if augmentation.startswith("nfnet_f0") else 8
    assert figures["decoded_per_second"] == pytest.approx(decoded / figures["seconds"])
    assert (figures["size"], figures["workers"]) == (16, 0)
    assert set(figures["images_per_second_and_core"]) == {"reading", "decoding", "augmenting"}


def test_an_accelerator_wants_so_many_cores() -> None:
    rates = {"reading": 10_000.0, "decoding": 500.0, "augmenting": 2_000.0}
    figures = {
        "images_per_second_and_core": rates,
        "own_seconds_per_image": 1e-5,
        "copy_seconds_per_image": 3e-5,
        "images_per_second": 300.0,
        "workers": 1,
    }
    lines = input_pipeline.as_text(figures, 5000).splitlines()
    assert "decoding: 500 images/s on a core" in lines
    assert "all of it: 80.8% of the speed of reading and decoding alone" in lines
    assert lines[-2] == (
        "the program's own process: 1.0% of a core for 1,000 images/s, and 3.0% for one copy of "
        "them, as a transfer makes"
    )
    # Each image takes 0.1 + 2 + 0.5 ms of workers, and 0.04 ms of the program.
    assert lines[-1].startswith("5,000 images/s want 13.2 cores: 13.0 for workers, 0.2 for")
    figures["workers"] = 0
    assert input_pipeline.as_text(figures, 1000).endswith("1,000 images/s want 2.6 cores")


def test_the_device_makes_batches_of_images_that_it_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--json", "--on_device", "--size=8", "--batch=8", "--images=48"]
    small = [*flags, "--augmentation=small"]
    monkeypatch.setattr("sys.argv", ["input_pipeline", *small, "--data=digits"])
    input_pipeline.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["on_device"]
    assert figures["images_per_second"] == pytest.approx(8 / figures["seconds"])
    monkeypatch.setattr("sys.argv", ["input_pipeline", *small, "--data=synthetic"])
    with pytest.raises(SystemExit, match="--on_device: the training images are not one array"):
        input_pipeline.main()


def test_the_table_needs_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["input_pipeline"])
    with pytest.raises(SystemExit, match="no --dir: it takes a folder"):
        input_pipeline.main()


def test_photographs_are_shrunk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    original = encode(smooth(90, 120), "JPEG")
    (tmp_path / "a" / "1.jpg").write_bytes(original)
    with shrunk(str(tmp_path), 48) as directory:
        assert Picture(Path(directory, "a", "1.jpg"), "it").height == 48
    assert not Path(directory).exists()
    assert (tmp_path / "a" / "1.jpg").read_bytes() == original
    flags = [f"--dir={tmp_path}", "--shorter_side=48", "--size=16", "--batch=2", "--images=2"]
    monkeypatch.setattr("sys.argv", ["input_pipeline", *flags, "--workers=0", "--target_rate=9"])
    input_pipeline.main()
    assert "decoding: " in capsys.readouterr().out

import json

import pytest

from benchmarks import input_pipeline


@pytest.mark.parametrize("augmentation", ["flip", "nfnet_f0", "small"])
def test_a_measurement_is_one_line_of_json(
    augmentation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--json", "--data=synthetic", "--size=16", "--batch=8", "--images=16", "--workers=0"]
    monkeypatch.setattr("sys.argv", ["input_pipeline", *flags, f"--augmentation={augmentation}"])
    input_pipeline.main()
    [line] = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert figures["images_per_second"] == pytest.approx(8 / figures["seconds"])
    assert (figures["size"], figures["workers"]) == (16, 0)


def test_the_table_needs_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["input_pipeline"])
    with pytest.raises(SystemExit, match="no --dir: it takes a folder"):
        input_pipeline.main()

import json
import sys

import pytest

from benchmarks import train_step


@pytest.mark.parametrize("mode", [[], ["--forward", "--plain"], ["--forward", "--folded"]])
def test_prints_one_line_of_json(
    mode: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model=nfnet_micro", "--batch=2", "--size=8", "--steps=1"]
    monkeypatch.setattr(sys, "argv", ["train_step", *flags, *mode])
    train_step.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["images_per_second"] == pytest.approx(2 / figures["seconds"])
    assert figures["peak_bytes"] > 0
    assert ("optimizer_share" in figures) == (not mode)


def test_folded_weights_are_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_step", "--model=nfnet_micro", "--folded"])
    with pytest.raises(SystemExit, match="--folded applies to inference: add --forward"):
        train_step.main()

import json
import sys

import pytest

from benchmarks import compile_time


@pytest.mark.parametrize(
    "mode", [["--unrolled"], pytest.param(["--update"], marks=pytest.mark.slow)]
)
def test_prints_one_line_of_json(
    mode: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model=nfnet_micro", "--batch=2", "--size=8"]
    monkeypatch.setattr(sys, "argv", ["compile_time", *flags, *mode])
    compile_time.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["trace_seconds"] > 0 and figures["compile_seconds"] > 0
    assert figures["seconds"] == figures["trace_seconds"] + figures["compile_seconds"]

import json
import sys

import pytest

from benchmarks import restart


@pytest.mark.slow
def test_a_restart_is_compared_with_a_first_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["restart", "--rounds=1"])
    restart.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["ratio"] == pytest.approx(
        figures["restart_seconds"] / figures["first_start_seconds"]
    )


def test_a_failed_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["restart", "--config=nfnet_f9"])
    with pytest.raises(SystemExit, match="nfnet_f9 ended by itself"):
        restart.main()

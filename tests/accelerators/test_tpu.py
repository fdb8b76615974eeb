"""Programs for TPUs that are not there, by their own compiler."""

from pathlib import Path

import pytest

from tests.accelerators.compiling import needs_tpu, plan

pytestmark = needs_tpu


def test_f0_trains_on_four_tpus_of_a_host() -> None:
    figures = plan("nfnet_f0", "v5e:2x2", batch_size=64, data__image_size=96)
    assert figures["fits"]
    assert figures["devices"] == 4
    # At least each gradient is exchanged, as float32.
    assert figures["collective_bytes"] >= 4 * 71e6


def test_f0_trains_on_the_hosts_of_a_pod_slice(tmp_path: Path) -> None:
    """The program is one of all devices, not only of those of a host."""
    hlo = tmp_path / "f0.hlo"
    figures = plan("nfnet_f0", "v4:2x2x4", hlo, batch_size=64, data__image_size=96)
    assert figures["fits"]
    assert figures["devices"] == 32
    head = hlo.read_text("utf-8").partition("\n")[0]
    assert "num_partitions=32," in head


@pytest.mark.parametrize("config", ["nf_resnet50", "nf_regnet_b0", "resnet50"])
def test_every_family_trains(config: str) -> None:
    figures = plan(config, "v5e:2x2", batch_size=16, data__image_size=96, precision="bfloat16")
    assert figures["fits"]

"""Programs for TPUs that are not there, by their own compiler."""

from tests.accelerators.compiling import needs_tpu, plan

pytestmark = needs_tpu


def test_f0_trains_on_four_tpus_of_a_host() -> None:
    figures = plan("nfnet_f0", "v5e:2x2", batch_size=64, data__image_size=96)
    assert figures["fits"]
    assert figures["devices"] == 4
    # At least each gradient is exchanged, as float32.
    assert figures["collective_bytes"] >= 4 * 71e6


def test_f0_trains_on_the_hosts_of_a_pod_slice() -> None:
    figures = plan("nfnet_f0", "v4:2x2x4", batch_size=64, data__image_size=96)
    assert figures["fits"]
    assert figures["devices"] == 32

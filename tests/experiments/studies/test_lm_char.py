import pytest

from experiments.configs import lm as configuration
from experiments.studies import lm_char


def row(rate: float, clipping: str, loss: float | None) -> dict[str, object]:
    return {
        "optimizer": "sgd", "batch_size": 8, "learning_rate": rate, "clipping": clipping,
        "test_loss": loss,
    }  # fmt: skip


def test_the_range_is_the_longest_of_neighbours() -> None:
    losses = {0.1: 2.0, 0.3: 9.0, 1.0: 2.1, 3.0: 2.2, 10.0: None}
    rows = [row(rate, "AGC", loss) for rate, loss in losses.items()]
    assert lm_char.stable_range(rows, 2.2) == (1.0, 3.0, 2)
    assert lm_char.stable_range(rows, 1.9) is None


@pytest.mark.parametrize("none", [9.0, 2.1])
def test_the_verdict_names_who_has_the_widest_range(none: float) -> None:
    config = configuration.get_config("smoke")
    rows = [row(0.1, name, 2.0) for name in config.clipping]
    rows += [row(1.0, "AGC", 2.1), row(1.0, "global norm", none), row(1.0, "none", None)]
    found = lm_char.report(rows, config)
    assert ("- sgd, batch 8: tied: AGC, global norm\n" in found) == (none < 3)
    assert ("- sgd, batch 8: AGC\n" in found) == (none > 3)


def test_the_text_is_told_apart_by_file() -> None:
    text = lm_char.read_text(10_000)
    assert len(text.train) == len(text.test) == 10_000
    assert b"import" in text.train.tobytes()
    assert text.train.tobytes()[:500] not in text.test.tobytes()

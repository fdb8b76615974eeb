import numpy as np
import pytest

from experiments.configs import lm as configuration
from experiments.studies import lm_char


def row(rate: float, clipping: str, loss: float | None) -> dict[str, object]:
    return {
        "optimizer": "sgd", "batch_size": 8, "learning_rate": rate, "clipping": clipping,
        "test_loss": loss,
    }  # fmt: skip


def test_the_range_is_the_longest_run_of_neighbours() -> None:
    losses = {0.1: 2.0, 0.3: 9.0, 1.0: 2.1, 3.0: 2.2, 10.0: None}
    rows = [row(rate, "AGC", loss) for rate, loss in losses.items()]
    assert lm_char.stable_range(rows, 2.2) == (1.0, 3.0, 2)
    assert lm_char.stable_range(rows, 1.9) is None


def test_the_range_table_counts_the_rates_that_train() -> None:
    rows = [row(0.1, clipping, 2.0) for clipping in ("none", "global norm", "AGC")]
    rows += [row(1.0, "none", None), row(1.0, "global norm", 9.0), row(1.0, "AGC", 2.1)]
    lines = lm_char.range_table(rows, tolerance=0.2).splitlines()
    assert lines[-3:] == [
        "| sgd | 8 | none | 0.1 to 0.1 | 1 | 2 |",
        "| sgd | 8 | global norm | 0.1 to 0.1 | 1 | 2 |",
        "| sgd | 8 | AGC | 0.1 to 1 | 2 | 2 |",
    ]


@pytest.mark.parametrize("clipping", ["none", "AGC"])
def test_training_lowers_the_loss(clipping: str) -> None:
    config = configuration.get_config("smoke")
    train = lm_char.trainer(config, "sgd", clipping, batch_size=8)
    text = lm_char.read_text(100_000)
    _, test_loss = train(text, 0.3)
    _, untrained = train(text, 0.0)
    assert test_loss < untrained - 0.1
    assert abs(untrained - np.log(256)) < 0.1  # Chance.


def test_training_and_test_text_are_of_different_files() -> None:
    text = lm_char.read_text(10_000)
    assert len(text.train) == len(text.test) == 10_000
    assert b"import" in text.train.tobytes()
    assert text.train.tobytes()[:500] not in text.test.tobytes()

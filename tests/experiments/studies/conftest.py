import math
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from nfnets_jax.training import loop

BEST_RATE = 0.8


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[ConfigDict]:
    """Records configurations in place of training; accuracy falls with distance from BEST_RATE."""
    configs: list[ConfigDict] = []

    def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
        configs.append(config.copy_and_resolve_references())
        distance = abs(math.log(config.optimizer.base_learning_rate / BEST_RATE))
        return {"train": {"images_per_second": 500.0}, "test": {"top1": 0.9 - 0.1 * distance}}

    monkeypatch.setattr(loop, "train", train)
    return configs

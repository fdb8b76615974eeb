"""A small GPT on the sources of Python: clipping by AGC, by the global norm, and none.

    python -m experiments.studies.lm_char --budget=cpu --workdir=DIR

``experiments.run`` does not take this configuration, as it trains image classifiers.

Data: the standard library of the Python that runs it.
Hardware: two CPU cores for budget ``cpu``, one GPU for ``gpu``, which has not been run.
Hours: 1.04 (3729 s) for the 60 runs of budget ``cpu``, measured on 2026-11-23.
Accuracy: a test loss of 2.18 nats a byte at best, with AdamW and AGC, measured in the same runs
(docs/studies/lm_char/report.md).

Recipe: this project's. The network has the layout of GPT-2, Radford et al. 2019, section 2.3.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Budget(NamedTuple):
    """The values that differ between the budgets."""

    width: int
    layers: int
    heads: int
    context: int  # bytes
    text_bytes: int  # of the training text, at most
    train_bytes: int  # that a run learns from
    test_sequences: int
    batch_sizes: tuple[int, ...]  # sequences
    learning_rates: dict[str, Any]  # by optimizer


_RATES = {"sgd": (0.03, 0.1, 0.3, 1.0, 3.0), "adamw": (0.0003, 0.001, 0.003, 0.01, 0.03)}
BUDGETS = {
    "smoke": Budget(16, 1, 4, 64, 100_000, 4096, 16, (8,), {"sgd": (0.1, 1.0)}),
    "cpu": Budget(256, 3, 4, 64, 4_000_000, 250_000, 256, (8, 64), _RATES),
    "gpu": Budget(256, 6, 8, 256, 20_000_000, 30_000_000, 2048, (16, 128, 1024), _RATES),
}


def get_config(budget: str = "cpu") -> ConfigDict:
    """Returns the configuration of a budget, a key of ``BUDGETS``."""
    return ConfigDict(
        {
            **BUDGETS[budget]._asdict(),
            "warmup_fraction": 0.1,
            "clipping": {"none": 0.0, "global norm": 1.0, "AGC": 0.01},
            "weight_decay": {"sgd": 0.0, "adamw": 0.0},
            "tolerance": 0.2,  # nats above the best at which a learning rate still counts as stable
            "seed": 0,
        }
    )

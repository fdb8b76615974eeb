"""A small GPT on the sources of Python: normalizations by clippings.

    python -m experiments.studies.lm --budget=cpu --workdir=DIR

``experiments.run`` does not take this configuration, as it trains image classifiers.

Data: the standard library of the Python that runs it.
Hardware: two CPU cores for the budgets ``hour`` and ``cpu``, one GPU for ``gpu``.
Hours: 1.01 (3630 s) for the 206 runs of budget ``hour`` on shared cores, measured on 2026-11-30;
``cpu`` and ``gpu`` have not been run.
Accuracy: a test loss of 2.35 nats a byte at best with budget ``hour``, measured in the same runs
(docs/studies/lm/report.md).

Recipe: this project's. The network has the layout of GPT-2, Radford et al. 2019, section 2.3; the
decay of moments and of weights are those of GPT-3, Brown et al. 2020, appendix B.
"""

from typing import NamedTuple

from ml_collections import ConfigDict


class Budget(NamedTuple):
    """The values that differ between the budgets."""

    width: int
    layers: int
    heads: int
    context: int  # bytes
    text_bytes: int  # of the training text, at most
    batch_size: int  # sequences
    steps: int
    test_sequences: int  # of the held-out and of the test text
    learning_rates: tuple[float, ...]
    agc_thresholds: tuple[float, ...]
    seeds: int
    normalizations: tuple[str, ...]


_ALL = ("layer_norm", "scaled_layer_norm", "none", "nf", "dyt", "derf")
_RATES, _THRESHOLDS = (0.001, 0.003, 0.01, 0.03, 0.1), (0.01, 0.05, 0.3)
BUDGETS = {
    "smoke": Budget(16, 1, 4, 32, 100_000, 8, 20, 16, (0.003,), (0.1,), 1, ("layer_norm", "nf")),
    "hour": Budget(
        48, 4, 4, 32, 4_000_000, 16, 200, 128, (0.003, 0.01, 0.03), (0.01, 0.1), 3, _ALL
    ),
    "cpu": Budget(192, 4, 6, 128, 4_000_000, 16, 500, 256, _RATES, _THRESHOLDS, 3, _ALL),
    "gpu": Budget(384, 6, 6, 256, 20_000_000, 64, 2000, 1024, _RATES, _THRESHOLDS, 3, _ALL),
}


def get_config(budget: str = "cpu") -> ConfigDict:
    """Returns the configuration of a budget, a key of ``BUDGETS``."""
    values = BUDGETS[budget]
    return ConfigDict(
        {
            **values._asdict(),
            # Thresholds of each; 0 does not clip.
            "clipping": {
                "none": (0.0,),
                "global norm": (0.1, 1.0),
                "AGC by unit": values.agc_thresholds,
                "AGC by tensor": values.agc_thresholds,
            },
            "alpha": 0.2,  # what a branch of "nf" adds
            "b1": 0.9,
            "b2": 0.95,
            "weight_decay": 0.1,
            "warmup_fraction": 0.1,
            # Tried one by one beyond the budget's, while the best of an arm is at an edge.
            "more_rates": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
            "tolerance": 0.1,  # nats above the best at which a learning rate still counts as stable
        }
    )

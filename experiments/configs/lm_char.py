"""A small GPT on Python's sources: ``python -m experiments.studies.lm_char --budget=cpu``.

Without clipping, with the gradient's global norm clipped and with AGC, over learning rates and
batch sizes; ``experiments.run`` trains image classifiers and cannot take it.
"""

from ml_collections import ConfigDict


def get_config(budget: str = "cpu") -> ConfigDict:
    """What a budget buys: ``smoke`` to see that it works, ``cpu`` an hour, ``gpu`` a few hours."""
    config = ConfigDict(
        {
            "width": 256,
            "layers": 3,
            "heads": 4,
            "context": 64,  # bytes
            "text_bytes": 4_000_000,  # of the training text, at most
            "train_bytes": 250_000,  # that a run sees
            "test_sequences": 256,
            "warmup_fraction": 0.1,
            "batch_sizes": (8, 64),  # sequences
            "learning_rates": {
                "sgd": (0.03, 0.1, 0.3, 1.0, 3.0),
                "adamw": (0.0003, 0.001, 0.003, 0.01, 0.03),
            },
            "clipping": {"none": 0.0, "global norm": 1.0, "AGC": 0.01},
            "weight_decay": {"sgd": 0.0, "adamw": 0.0},
            "tolerance": 0.2,  # nats above the best, up to which a learning rate counts as stable
            "seed": 0,
        }
    )
    if budget == "smoke":
        config.update({"width": 16, "layers": 1, "train_bytes": 4096, "test_sequences": 16})
        config.update({"batch_sizes": (8,), "text_bytes": 100_000})
        config.learning_rates = ConfigDict({"sgd": (0.1, 1.0)})
    if budget == "gpu":
        config.update({"layers": 6, "heads": 8, "context": 256})
        config.update({"text_bytes": 20_000_000, "train_bytes": 30_000_000})
        config.update({"batch_sizes": (16, 128, 1024), "test_sequences": 2048})
    return config

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import lm as configuration
from experiments.studies import grid, lm, lm_training

TUNED = {"none": 0.0, "AGC by unit": 0.01}


def row(clipping: str, loss: float | None, **settings: Any) -> dict[str, Any]:
    fixed = {"normalization": "nf", "clipping": clipping, "threshold": TUNED[clipping]}
    return {**fixed, "learning_rate": 0.01, "text": "test", "seed": 0, "loss": loss, **settings}


def test_threshold_and_rate_are_tuned_together_and_seeds_take_turns() -> None:
    config = configuration.get_config("cpu")
    members = lm.tuning_members(config)
    # Six networks, by 1 + 2 + 3 + 3 thresholds, by five rates; all held out, one seed.
    assert len(members) == 6 * 9 * 5
    assert {(member["text"], member["seed"]) for member in members} == {("held-out", 0)}
    best = {"clipping": "AGC by unit", "threshold": 0.05, "learning_rate": 0.03}
    tuning = [
        {**member, "loss": 1.0 if best.items() <= member.items() else 2.0} for member in members
    ]
    final = lm.final_members(config, tuning)
    assert [member["seed"] for member in final] == [1] * 24 + [2] * 24 + [3] * 24
    assert {member["text"] for member in final} == {"test"}
    tuned = [member for member in final if member["clipping"] == "AGC by unit"]
    assert len(tuned) == 18 and all(best.items() <= member.items() for member in tuned)


def test_an_arm_whose_best_rate_is_at_an_edge_gets_more_rates() -> None:
    config, best = configuration.get_config("hour"), {"layer_norm": 0.0003}

    def run_all(members: Any) -> list[dict[str, Any]]:
        """Layer normalization learns best at 0.0003, all else at 0.01."""
        return [
            {**m, "loss": abs(math.log(m["learning_rate"] / best.get(m["normalization"], 0.01)))}
            for m in members
        ]

    rates: dict[str, set[float]] = {}
    for tuned in lm.tune(config, run_all):
        rates.setdefault(tuned["normalization"], set()).add(tuned["learning_rate"])
    grid_rates = set(config.learning_rates)
    assert rates.pop("layer_norm") == grid_rates | {0.001, 0.0003, 0.0001}
    assert list(rates.values()) == [grid_rates] * (len(config.normalizations) - 1)


def test_a_run_that_diverged_is_never_the_best() -> None:
    diverged, other = row("none", None), row("none", 9.0)
    assert lm.best_run([diverged, other]) is other
    assert lm.best_run([diverged]) is diverged


def test_the_difference_pairs_seeds_and_has_students_interval() -> None:
    ours = [row("none", loss, seed=seed) for seed, loss in ((3, 2.4), (1, 2.0), (2, 2.2))]
    theirs = [row("none", loss, seed=seed) for seed, loss in ((1, 2.1), (2, 2.2), (3, 2.6))]
    found = lm.difference(ours, theirs)
    # Differences -0.1, 0, -0.2; the 97.5% quantile of t with two degrees of freedom is 4.3027.
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert found == pytest.approx((-0.1, -0.1 - half, -0.1 + half), abs=1e-4)
    theirs[0]["loss"] = None
    assert str(lm.difference(ours, theirs)) == str(grid.format_cell(None))


def test_losses_are_compared_with_the_best_layer_normalization() -> None:
    losses = {("layer_norm", "none"): 2.0, ("layer_norm", "AGC by unit"): 1.8, ("nf", "none"): 1.9}
    rows = [row(c, loss, normalization=n, learning_rate=0.03) for (n, c), loss in losses.items()]
    tuning = [*rows, row("none", 9.0, normalization="layer_norm", learning_rate=0.1)]
    *_, header, _, plain, agc, nf = lm.loss_table(rows, tuning).splitlines()
    assert header.endswith("| against LayerNorm, clipping AGC by unit |")
    assert plain.endswith("| 0.03* | 2 | – | +0.200 |")  # noqa: RUF001, an en dash is meant
    assert agc.endswith("| 0.03* | 1.8 | -0.200 | – |")  # noqa: RUF001
    assert nf.endswith("| 1.9 | – | +0.100 |")  # noqa: RUF001


def test_the_largest_stable_rate_is_of_the_tuned_threshold() -> None:
    rows = [row("none", loss, learning_rate=rate) for rate, loss in ((0.01, 2.0), (0.03, 5.0))]
    rows += [row("AGC by unit", loss, learning_rate=0.1) for loss in (2.05,)]
    rows += [row("AGC by unit", 2.09, learning_rate=0.3, threshold=0.3)]
    rows += [{**r, "clipping": c} for r in rows[:1] for c in ("global norm", "AGC by tensor")]
    line = lm.stable_table(rows, tolerance=0.1).splitlines()[-1]
    assert line == "| normalizer-free | 2 | 0.01 | 0.01 | 0.1 | 0.01 |"
    assert lm.largest_stable_rate(rows, 1.0) is None


def test_texts_are_of_different_files() -> None:
    text = lm_training.read_text(10_000)
    assert len(text.train) == len(text.held_out) == len(text.test) == 10_000
    parts = [part.tobytes() for part in text]
    assert b"import" in parts[0] and len({part[:500] for part in parts}) == 3


def test_each_clipping_is_its_own() -> None:
    """Reads off Adam's first moment how far a gradient above every threshold is clipped."""
    config = configuration.get_config("smoke")
    params = {
        "gpt/~/logits": {"w": jnp.ones((2, 2))},
        "gpt/block_0/~/linear": {"w": jnp.array([[3.0, 0.3], [4.0, 0.4]])},
    }
    grads = jax.tree.map(lambda x: 100 * jnp.ones_like(x), params)

    def clipped(clipping: str) -> list[Any]:
        optimizer = lm_training.make_optimizer(clipping, jnp.float32(0.1), lambda _: 0.0, config)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        moments = [x for x in jax.tree.leaves(state) if jnp.shape(x) == (2, 2)][:2]
        return [np.asarray(x) / (1 - config.b1) for x in moments]

    block, logits = clipped("AGC by unit")
    norms = np.linalg.norm(block, axis=0)
    if norms.max() > 100:  # The tree's order is that of the names.
        block, logits = logits, block
    np.testing.assert_allclose(np.linalg.norm(block, axis=0), [0.5, 0.05], rtol=1e-5)
    np.testing.assert_allclose(logits, 100, rtol=1e-5)  # NFNets spare the classifier's matrix.
    norms = sorted(float(np.linalg.norm(x)) for x in clipped("AGC by tensor"))
    np.testing.assert_allclose(norms, [0.2, 0.1 * np.hypot(5, 0.5)], rtol=1e-5)
    assert np.linalg.norm(clipped("global norm")) == pytest.approx(0.1, rel=1e-5)
    assert np.linalg.norm(clipped("none")) == pytest.approx(100 * 8**0.5, rel=1e-5)


def test_a_compiled_run_learns_and_serves_all_rates_and_seeds() -> None:
    config = configuration.get_config("smoke")
    config.steps = 60
    text = lm_training.read_text(config.text_bytes)
    train = lm_training.trainer(config, "none", "global norm")
    untrained, trained, other = (
        train(text.train, text.test, 1.0, rate, seed)["loss"]
        for rate, seed in ((0.0, 0), (0.01, 0), (0.01, 1))
    )
    assert untrained == pytest.approx(np.log(256), abs=0.1)  # Chance.
    assert trained < untrained - 1 and trained != other

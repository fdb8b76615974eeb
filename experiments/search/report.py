"""Tables of a search."""

from collections.abc import Mapping

from nfnets_jax.models import efficientnet
from nfnets_jax.models.nfnet import NFNetConfig

from ..studies import intervals, results
from .cost import Limits
from .family import REFERENCES, imagenet_cost
from .proxy import LEAST_TAU
from .study import LEAST_SPEEDUP, Final, Found, Times

LEAST_GAIN = 0.01  # Of test top-1.
_FEW_SEEDS = 5  # The bootstrap's interval of fewer is too narrow.


def tables(found: Found, family: Mapping[str, NFNetConfig]) -> list[str]:
    """Returns the tables, of which those that a search did not reach are left out."""
    shown = [_proxy_table(found)]
    if found.times:
        shown += [_time_table(found.times), _space_table(found)]
    if found.final:
        final = found.final
        shown += [
            target_table(final, found.limits),
            _comparison_table(final),
            _scaling_table(final),
            _family_table(family),
        ]
    return shown


def _proxy_table(found: Found) -> str:
    proxy, acceptance = found.proxy, found.acceptance
    return results.table(
        f"The proxy: short training of networks of at most {found.limits.parameters:,} parameters "
        f"and {found.limits.multiply_adds:,} multiply-adds. Kendall's tau of accuracy after short "
        f"and after full training, with its 95% bootstrap interval; at least {LEAST_TAU} is "
        "accepted. The rate is for a batch of 256.",
        ("learning rate", "threshold", "networks", "tau", "accepted"),
        [
            (
                proxy.learning_rate,
                proxy.clipping,
                acceptance.networks,
                acceptance.tau.text(".2f"),
                "yes" if acceptance.is_accepted else "no",
            )
        ],
    )


def _time_table(times: Times) -> str:
    names = ("constant", "parameters", "multiply-adds", "activations")
    return results.table(
        "Time of a training step over the anchor's: powers of the counts, fitted to measurements "
        f"that alternate with the anchor, of {times.networks} networks. Error of a network by the "
        f"law of the others: {times.model.error_text()}. "
        f"EfficientNet's step, measured: {times.baseline.median:.2f} "
        f"({times.baseline.low:.2f} to {times.baseline.high:.2f}, the extremes).",
        names,
        [[f"{power:.2f}" for power in times.model.exponents]],
    )


def _space_table(found: Found) -> str:
    rows = [
        (
            name,
            level.value,
            len(level.top1),
            level.gain.points(),
            "stays" if level.value in found.narrowed[name] else "goes",
        )
        for name, each in found.levels.items()
        for level in each
    ]
    return results.table(
        "The space after the first round. Gain: held-out top-1 of the networks with the value, "
        "less that of the others, in points with its 95% bootstrap interval. A value goes if the "
        "interval is below 0; the intervals are not corrected for their number.",
        ("dimension", "value", "networks", "gain", "in the second round"),
        rows,
    )


def target_table(final: Final, limits: Limits) -> str:
    """Returns what was to be reached, what was measured, and whether it was reached."""
    ours = final.compared[final.winner].cost
    difference, speedup = final.tested.difference, final.speedup
    seeds = len(final.tested.winner)
    is_small = ours.parameters <= limits.parameters and ours.multiply_adds <= limits.multiply_adds
    rows = [
        (
            "no more parameters and multiply-adds",
            f"{ours.parameters:,} and {ours.multiply_adds:,}, of {limits.parameters:,} and "
            f"{limits.multiply_adds:,}",
            is_small,
        ),
        (
            f"test top-1 at least {100 * LEAST_GAIN:.1f} points higher",
            difference.points(),
            difference.estimate >= LEAST_GAIN,
        ),
        (
            f"that interval above 0, {_FEW_SEEDS} seeds",
            f"{difference.points()}, {seeds} seeds",
            difference.low > 0 and seeds >= _FEW_SEEDS,
        ),
        (
            f"training step at least {LEAST_SPEEDUP} times as fast",
            f"{speedup.median:.2f} ({speedup.low:.2f} to {speedup.high:.2f}, the extremes)",
            speedup.median >= LEAST_SPEEDUP,
        ),
        *(
            (f"higher top-1 at {work:g} times the multiply-adds", gain.points(), gain.estimate > 0)
            for work, gain in final.scaled.gains.items()
        ),
    ]
    return results.table(
        f"To reach: {final.winner} over {final.baseline}. Top-1 in points with 95% bootstrap "
        "intervals.",
        ("target", "measured", "reached"),
        [(target, measured, "yes" if reached else "no") for target, measured, reached in rows],
    )


def _comparison_table(final: Final) -> str:
    return results.table(
        "Held-out top-1 of finalists and baselines, each by the best of its pairs of rate, for a "
        "batch of 256, and threshold: mean with its 95% bootstrap interval. The winner was chosen "
        "by this figure, which favours it; the test images were not used.",
        ("network", "parameters", "multiply-adds", "rate", "threshold", "seeds", "top-1"),
        [
            (
                name,
                f"{each.cost.parameters:,}",
                f"{each.cost.multiply_adds:,}",
                each.pair[0],
                each.pair[1] or "none",
                len(each.top1),
                intervals.mean(each.top1).text(".1%"),
            )
            for name, each in final.compared.items()
        ],
    )


def _scaling_table(final: Final) -> str:
    scaled = final.scaled
    depth, width, resolution = scaled.rule
    return results.table(
        "Twice the winner's multiply-adds, spent in several ways, and held-out top-1. Depth's "
        "share is that of the work which the resolution leaves. The rule fitted to them, as powers "
        f"of the multiply-adds: depth {depth:.2f}, width {width:.2f}, resolution "
        f"{resolution:.2f}.",
        ("pixels", "depth's share", "top-1"),
        [
            (split.size, split.depth_share, intervals.mean(top1).text(".1%"))
            for split, top1 in zip(scaled.splits, scaled.top1, strict=True)
        ],
    )


def _family_table(family: Mapping[str, NFNetConfig]) -> str:
    rows = []
    for name, config in family.items():
        other = efficientnet.VARIANTS[REFERENCES[name]]
        for label, each in ((name, config), (REFERENCES[name], other)):
            cost = imagenet_cost(each)
            rows.append(
                (
                    label,
                    each.train_size,
                    f"{cost.parameters / 1e6:.2f}",
                    f"{cost.multiply_adds / 1e9:.2f}",
                    f"{cost.activations / 1e6:.1f}",
                )
            )
    return results.table(
        "The winner for ImageNet by the rule, counted at the training resolution beside "
        "EfficientNets; none of them has been trained. Million parameters, billion multiply-adds, "
        "million activations.",
        ("model", "pixels", "parameters", "multiply-adds", "activations"),
        rows,
    )

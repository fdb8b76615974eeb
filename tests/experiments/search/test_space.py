import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.search.space import (
    DEPTHWISE,
    DEPTHWISE_PLAIN,
    SPACE,
    UNGROUPED,
    Design,
    contains,
    draw,
)
from nfnets_jax.models.registry import Model

DESIGN = Design(
    depth=1,
    slope=0.5,
    ratio=2.0,
    expansion=0.5,
    expands_input=False,
    groups="8",
    convolutions=2,
    se_ratio=0.5,
    se_inside=True,
    final_expansion=2.0,
    stem=16,
    activation="silu",
)

# Input channels of a kernel in a bottleneck of 32 channels.
GROUPS = {"8": 8, "16": 16, "32": 32, UNGROUPED: 32, DEPTHWISE: 1, DEPTHWISE_PLAIN: 1}


@pytest.mark.parametrize(
    ("rule", "widths", "depths"),
    [
        # RegNetX-200MF, 400MF and 1.6GF, as published: depth, first width, slope, ratio.
        ((13, 24, 36.44, 2.49), (24, 56, 152, 368), (1, 1, 4, 7)),
        ((22, 24, 24.48, 2.54), (32, 64, 160, 384), (1, 2, 7, 12)),
        ((18, 80, 34.01, 2.25), (72, 168, 408, 912), (2, 4, 10, 2)),
    ],
)
def test_widths_are_those_of_published_regnets(
    rule: tuple[int, float, float, float], widths: tuple[int, ...], depths: tuple[int, ...]
) -> None:
    depth, first, slope, ratio = rule
    design = dataclasses.replace(DESIGN, depth=depth, slope=slope / first, ratio=ratio)
    found_widths, found_depths = design.stages(first)
    assert found_depths == depths
    # The published networks then make widths multiples of their groups.
    assert np.allclose(found_widths, widths, rtol=0.35)
    assert design.stages(2 * first)[1] == depths


def test_groups_are_those_of_the_kernels() -> None:
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    for groups, channels in GROUPS.items():
        config = dataclasses.replace(DESIGN, groups=groups).network(64.0, 8)
        params, _ = jax.eval_shape(Model("any", 10, config).init, jax.random.key(0), images)
        conv = params["NFNet/~/nf_block/~/conv1b"]
        assert conv["w"].shape == (3, 3, channels, 32)
        assert ("gain" in conv) == (groups != DEPTHWISE_PLAIN)


def test_draws_are_of_the_space_and_cover_it() -> None:
    rng = np.random.default_rng(0)
    designs = [draw(SPACE, rng) for _ in range(300)]
    assert all(contains(SPACE, design) for design in designs)
    assert {design.stage_count for design in designs} == {3, 4}
    for name, values in SPACE.items():
        assert {getattr(design, name) for design in designs} == set(values)
    assert not any(design.se_inside for design in designs if not design.se_ratio)


def test_a_network_without_squeeze_excite_has_no_place_for_it() -> None:
    space = {**SPACE, "se_inside": (True,), "depth": (1,), "slope": (0.5,)}
    assert contains(space, dataclasses.replace(DESIGN, se_ratio=0.0, se_inside=False))
    assert contains(space, DESIGN)
    assert not contains(space, dataclasses.replace(DESIGN, se_inside=False))

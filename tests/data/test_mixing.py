import numpy as np
import pytest

from nfnets_jax.data.mixing import Mixing, cutmix, mixup
from nfnets_jax.errors import InputError

BLACK, WHITE = np.zeros((20, 30, 3), np.uint8), np.full((20, 30, 3), 255, np.uint8)


def test_mixup_is_the_weighted_mean() -> None:
    mixture, share = mixup(WHITE, BLACK, 0.3)
    assert share == 0.3
    np.testing.assert_allclose(mixture, 0.3 * 255, atol=0.51)


def test_cutmix_pastes_a_rectangle_of_the_images_proportions() -> None:
    mixture, share = cutmix(WHITE, BLACK, 0.75, (10, 15))
    expected = WHITE.copy()
    expected[5:15, 8:22] = 0
    np.testing.assert_array_equal(mixture[5:15, 8:22], 0)
    assert share == pytest.approx(mixture.mean() / 255)
    assert share == pytest.approx(0.75, abs=0.03)
    mixture, _ = cutmix(WHITE, BLACK, 1 - 0.36, (10.9, 15.9))  # 12 and 18 pixels, from 4 and 6 on.
    assert np.argwhere(mixture[..., 0] == 0).min(axis=0).tolist() == [4, 6]
    assert np.argwhere(mixture[..., 0] == 0).max(axis=0).tolist() == [15, 23]
    mixture, share = cutmix(WHITE, BLACK, 0.75, (0, 0))  # Three quarters of it lie outside.
    assert share == pytest.approx(1 - 0.25 / 4, abs=0.02)
    assert share == pytest.approx(mixture.mean() / 255)


@pytest.mark.parametrize(
    ("mixing", "pairs_by_mixup"),
    [(Mixing(0.2, False), {0, 1}), (Mixing(0.0, True), set()), (Mixing(0.2, True), {0})],
)
def test_shares_are_those_of_the_pixels(mixing: Mixing, pairs_by_mixup: set[int]) -> None:
    shares: dict[int, list[float]] = {0: [], 1: []}
    for seed in range(600):
        pair = seed % 2
        mixture, share = mixing.mix(WHITE, BLACK, pair, np.random.default_rng(seed))
        assert mixture.mean() / 255 == pytest.approx(share, abs=0.002)
        uniform = bool(np.ptp(mixture) == 0)
        assert uniform or pair not in pairs_by_mixup
        shares[pair].append(share)
    for pair, seen in shares.items():
        if pair in pairs_by_mixup:  # Beta(0.2, 0.2): mean 1/2, deviation 1/sqrt(4 * 1.4).
            assert np.mean(seen) == pytest.approx(0.5, abs=0.07)
            assert np.std(seen) == pytest.approx(0.423, abs=0.03)


def test_no_mixing_is_false_and_a_negative_alpha_is_refused() -> None:
    assert not Mixing()
    assert Mixing(cutmix=True)
    with pytest.raises(InputError, match="mixup_alpha is -1"):
        Mixing(mixup_alpha=-1)
    with pytest.raises(InputError, match="mixtures_per_pair is 3; it takes 1 or 2"):
        Mixing(mixtures_per_pair=3)

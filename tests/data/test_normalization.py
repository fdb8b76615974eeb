import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.data.normalization import IMAGENET_MEAN, IMAGENET_STD, mean_and_std, normalize


def test_pixels_are_scaled_to_the_mean_and_deviation_of_each_channel() -> None:
    images = np.array([0, 51, 255, 102], np.uint8).reshape(1, 1, 2, 2)
    expected = np.array([-0.4, 0, 1.6, 0.5]).reshape(images.shape)
    for normalized in (
        normalize(images, (0.2, 0.2), (0.5, 0.4)),
        normalize(jnp.asarray(images), (0.2, 0.2), (0.5, 0.4)),
        jax.jit(lambda pixels: normalize(pixels, (0.2, 0.2), (0.5, 0.4)))(images),
    ):
        assert normalized.dtype == np.float32
        np.testing.assert_allclose(normalized, expected, atol=1e-6)


def test_datasets_without_statistics_of_their_own_have_imagenets() -> None:
    assert mean_and_std("folder") == mean_and_std("tfds:imagenet2012")
    assert mean_and_std("folder") == (IMAGENET_MEAN, IMAGENET_STD)
    assert mean_and_std("digits") == ((0.305,), (0.376,))

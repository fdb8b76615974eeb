"""Gives ``nfnets_jax.training.recipes`` the name under which configurations used to import it."""

from nfnets_jax.training.recipes import IMAGENET_IMAGES, complete, small_images

__all__ = ["IMAGENET_IMAGES", "complete", "small_images"]

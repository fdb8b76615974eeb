"""Registers what the record trains with; its configuration imports this module."""

from nfnets_jax.data.augmentation import register_augmentation
from nfnets_jax.training.recipe import register_optimizer

from .augmentation import AlternatingFlip
from .muon import create_muon

register_augmentation("alternating_flip", AlternatingFlip)
register_optimizer("muon", create_muon)

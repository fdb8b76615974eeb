"""Registers what the record trains with; its configuration imports this module."""

from experiments.cifar10.augmentation import AlternatingFlip
from experiments.cifar10.muon import create_muon
from nfnets_jax.data.augmentation import register_augmentation
from nfnets_jax.training.recipe import register_optimizer

register_augmentation("alternating_flip", AlternatingFlip)
register_optimizer("muon", create_muon)

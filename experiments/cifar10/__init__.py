"""A record on CIFAR-10: a small network, its optimizer, its augmentation and its launcher.

Importing the package registers the model ``nf_convnet``; importing ``experiments.cifar10.training``
registers the optimizer ``muon`` and the augmentation ``alternating_flip`` too.
"""

import nfnets_jax

from .model import NFConvNetConfig

nfnets_jax.register_model("nf_convnet", NFConvNetConfig())

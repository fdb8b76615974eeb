"""A record on CIFAR-10: a small network, its optimizer, its augmentation and its launcher.

Importing the package registers the model ``nf_convnet``; ``experiments.cifar10.muon`` registers the
optimizer ``muon``.
"""

import nfnets_jax
from experiments.cifar10.model import NFConvNetConfig

nfnets_jax.register_model("nf_convnet", NFConvNetConfig())

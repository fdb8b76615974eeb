"""Normalizer-free networks in JAX.

The front door: ``create_model``, ``list_models``, ``register_model``, ``register_dataset``,
``load_pretrained``, ``load_class_names``, ``save_pretrained`` and ``preprocess``. Adaptive Gradient
Clipping is ``nfnets_jax.optax_agc``. Importing the package imports nothing else until a name is
used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfnets_jax.data.sources.dataset import register_dataset as register_dataset
    from nfnets_jax.models.registry import Model as Model
    from nfnets_jax.models.registry import create_model as create_model
    from nfnets_jax.models.registry import list_models as list_models
    from nfnets_jax.models.registry import register_model as register_model
    from nfnets_jax.serving.preprocessing import preprocess as preprocess
    from nfnets_jax.weights.pretrained import load_class_names as load_class_names
    from nfnets_jax.weights.pretrained import load_pretrained as load_pretrained
    from nfnets_jax.weights.pretrained import save_pretrained as save_pretrained

__version__ = "0.1.0"

_HOMES = {
    "Model": "nfnets_jax.models.registry",
    "create_model": "nfnets_jax.models.registry",
    "list_models": "nfnets_jax.models.registry",
    "register_model": "nfnets_jax.models.registry",
    "register_dataset": "nfnets_jax.data.sources.dataset",
    "preprocess": "nfnets_jax.serving.preprocessing",
    "load_class_names": "nfnets_jax.weights.pretrained",
    "load_pretrained": "nfnets_jax.weights.pretrained",
    "save_pretrained": "nfnets_jax.weights.pretrained",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nfnets_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""The units of a network's parameters, in the form in which they are trained."""

from nfnets_jax import optax_agc
from nfnets_jax.models import groups

UNIT_AXES = optax_agc.haiku.override(groups.unit_axes)

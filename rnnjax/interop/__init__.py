"""Weights in and out of other frameworks, exactly; importing this imports none of them."""

from rnnjax.interop.cudnn import from_cudnn, to_cudnn
from rnnjax.interop.equinox import equinox_cell, equinox_layer, from_equinox, to_equinox
from rnnjax.interop.exporting import export_cell
from rnnjax.interop.flax_linen import from_flax, linen_cell, linen_layer, to_flax
from rnnjax.interop.flax_nnx import from_nnx, nnx_cell, nnx_layer, to_nnx
from rnnjax.interop.haiku import from_haiku, haiku_core, haiku_layer, to_haiku
from rnnjax.interop.keras import from_keras, to_keras
from rnnjax.interop.torch import from_torch, from_torch_state, to_torch, to_torch_state

__all__ = [
    "equinox_cell",
    "equinox_layer",
    "export_cell",
    "from_cudnn",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_nnx",
    "from_torch",
    "from_torch_state",
    "haiku_core",
    "haiku_layer",
    "linen_cell",
    "linen_layer",
    "nnx_cell",
    "nnx_layer",
    "to_cudnn",
    "to_equinox",
    "to_flax",
    "to_haiku",
    "to_keras",
    "to_nnx",
    "to_torch",
    "to_torch_state",
]

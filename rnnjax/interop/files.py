"""Weights to files of other frameworks: torch in safetensors, which torch itself need not be there for, and Keras."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

from rnnjax.arrays import write_arrays
from rnnjax.extras import require
from rnnjax.files import write_atomic
from rnnjax.interop._common import join_layers, layers_of
from rnnjax.interop.flax_linen import to_flax
from rnnjax.interop.keras import to_keras_layer
from rnnjax.interop.torch import to_torch
from rnnjax.kinds import public
from rnnjax.network import input_shape

__all__ = ["save_flax", "save_keras", "save_torch"]


@public
def save_torch(path: str | os.PathLike[str], cell: Any, params: Any) -> None:
    """Writes the ``state_dict`` that `to_torch` makes to a safetensors file, in one move.

    In torch, ``module.load_state_dict(safetensors.torch.load_file(path))`` reads it, and here `from_torch`.

    Args:
        path: of the file; its folder must be there.
        cell: a cell or network that torch has, see `to_torch`.
        params: its parameters.

    Raises:
        ValueError: as `to_torch` does.
        OSError: if the file cannot be written.

    >>> import tempfile, jax, rnnjax
    >>> lstm = rnnjax.LSTM(4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_torch(f"{folder}/lstm.safetensors", lstm, lstm.init(jax.random.key(0), input_size=3))
    ...     cell, params = rnnjax.interop.from_torch(f"{folder}/lstm.safetensors")
    >>> cell.hidden_size, params.w_ih.shape
    (4, (3, 16))
    """
    arrays = to_torch(cell, params, as_numpy=True)
    write_arrays(pathlib.Path(path), arrays, {"format": "pt"})


@public
def save_keras(path: str | os.PathLike[str], cell: Any, params: Any) -> None:
    """Writes a Keras model of these layers to a ``.keras`` file, or its weights to a ``.weights.h5`` file, in one move.

    The model takes ``[B, T, I]``, or ``[B, T, *spatial, I]``, and returns the outputs of all steps; `to_keras_layer`
    makes its layers.

    Args:
        path: ends in ``.keras`` or ``.weights.h5``; its folder must be there.
        cell: a cell or network that Keras has, see `to_keras`.
        params: its parameters.

    Raises:
        ValueError: for another ending, or as `to_keras` does.
        OSError: if the file cannot be written.
        ModuleNotFoundError: if keras is not installed.
    """
    where, file = "save_keras", pathlib.Path(path)
    ending = next((e for e in (".keras", ".weights.h5") if file.name.endswith(e)), None)
    if ending is None:
        raise ValueError(f"{where}: the name of the file must end in .keras or .weights.h5, got {file.name!r}.")
    keras = require("keras", "keras", where)
    model = keras.Sequential()
    for layer in layers_of(where, cell, params):
        first, p = layer[0]
        if not model.layers:
            model.add(keras.Input((None, *input_shape(first, p.w_ih.shape[-2]))))
        alone = join_layers([layer], getattr(cell, "merge", "concat"))
        model.add(to_keras_layer(*alone, return_sequences=True, dtype=str(p.w_ih.dtype)))
    # Keras looks at the ending of the name.
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=ending)
    os.close(handle)
    try:
        if ending == ".keras":
            model.save(temporary)
        else:
            model.save_weights(temporary, overwrite=True)
        write_atomic(file, pathlib.Path(temporary).read_bytes())
    finally:
        pathlib.Path(temporary).unlink(missing_ok=True)


@public
def save_flax(path: str | os.PathLike[str], cell: Any, params: Any) -> list[str]:
    """Writes ``{"params": ...}`` of flax.linen modules to a file that ``flax.serialization.msgpack_restore`` reads.

    Args:
        path: of the file; its folder must be there.
        cell: a cell that flax has, see `to_flax`, or a `Stack` of them, whose trees are called ``layers_0`` and on
            where there are several.
        params: its parameters.

    Returns:
        The modules, as one writes them.

    Raises:
        ValueError: as `to_flax` does.
        OSError: if the file cannot be written.
    """
    serialization = require("flax.serialization", "flax", "save_flax")
    layers = layers_of("save_flax", cell, params)
    if any(len(layer) == 2 for layer in layers):
        raise ValueError("save_flax: flax cells read in one direction, got two; convert each by to_flax.")
    made = [to_flax(*layer[0]) for layer in layers]
    trees = {f"layers_{depth}": tree for depth, (_, tree) in enumerate(made)}
    write_atomic(pathlib.Path(path), serialization.to_bytes({"params": made[0][1] if len(made) == 1 else trees}))
    return [f"flax.linen.{type(module).__name__}({module.features})" for module, _ in made]

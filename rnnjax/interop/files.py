"""Weights in files of other frameworks: torch in safetensors, which torch itself need not be there for, and Keras."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any, Literal

from rnnjax.arrays import read_arrays, write_arrays
from rnnjax.files import write_atomic
from rnnjax.interop._common import layers_of, require
from rnnjax.interop.keras import to_keras_layer
from rnnjax.interop.torch import from_torch, to_torch
from rnnjax.kinds import public
from rnnjax.network import input_shape
from rnnjax.networks import Bidirectional
from rnnjax.networks.bidirectional import BidirectionalParams, Directions

__all__ = ["load_torch", "save_keras", "save_torch"]


@public
def load_torch(
    path: str | os.PathLike[str],
    *,
    kind: Literal["rnn", "lstm", "gru"] | None = None,
    nonlinearity: Literal["tanh", "relu"] | None = None,
    prefix: str | None = None,
) -> tuple[Any, Any]:
    """The recurrent layers of a torch ``state_dict`` that was saved with safetensors.

    Args:
        path: a file that ``safetensors.torch.save_file(module.state_dict(), path)`` has written.
        kind: see `from_torch`, which converts what the file holds.
        nonlinearity: see `from_torch`.
        prefix: see `from_torch`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated or damaged, or as `from_torch` raises.

    >>> import tempfile, jax, rnnjax
    >>> lstm = rnnjax.LSTM(4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_torch(f"{folder}/lstm.safetensors", lstm, lstm.init(jax.random.key(0), input_size=3))
    ...     cell, params = load_torch(f"{folder}/lstm.safetensors")
    >>> cell.hidden_size, params.w_ih.shape
    (4, (3, 16))
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"load_torch: there is no file {str(file)!r}; name a safetensors file.")
    arrays, _ = read_arrays(file.resolve(), where=f"load_torch: {file}")
    return from_torch(arrays, kind=kind, nonlinearity=nonlinearity, prefix=prefix)


@public
def save_torch(path: str | os.PathLike[str], cell: Any, params: Any) -> None:
    """Writes the ``state_dict`` that `to_torch` makes to a safetensors file, in one move.

    In torch, ``module.load_state_dict(safetensors.torch.load_file(path))`` reads it.

    Args:
        path: of the file; its folder must be there.
        cell: a cell or network that torch has, see `to_torch`.
        params: its parameters.

    Raises:
        ValueError: as `to_torch` does.
        OSError: if the file cannot be written.
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
        inner, p = layer[0]
        if len(layer) == 2:
            inner = Bidirectional((tuple(c for c, _ in layer),), merge=cell.merge)
            p = BidirectionalParams((Directions(*(p for _, p in layer)),))
        first = p.layers[0].forward if len(layer) == 2 else p
        if not model.layers:
            model.add(keras.Input((None, *input_shape(layer[0][0], first.w_ih.shape[-2]))))
        model.add(to_keras_layer(inner, p, return_sequences=True, dtype=str(first.w_ih.dtype)))
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

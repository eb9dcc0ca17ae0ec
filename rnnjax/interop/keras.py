r"""Weights of Keras's recurrent layers, both ways and exact; from layers, models and files.

Keras has the weights as we have them, ``[I, G H]`` and ``[H, G H]``, the LSTM's gates in our order (also in
``ConvLSTM1D`` to ``ConvLSTM3D``, whose kernels are ours, too, where ``padding="same"``), and those of the
GRU as ``z, r, h``; its ``z`` keeps the old state, as ours. Each layer has one bias, but the GRU with
``reset_after=True`` two, of which ours is the sum, except for the candidate's:

    GRU, reset_after=True:   b = bias[0] + bias[1],  b[n] = bias[0][n],  b_hn = bias[1][n]      -> `GRU`
    GRU, reset_after=False:  b = bias                                                           -> `GRUResetBefore`

Files are read with h5py alone, and the configuration in a ``.keras`` file as the JSON that it is: Keras is not
imported, and nothing that such a file can contain is run. Dropout, initialisers, regularizers, ``return_sequences``,
masks and ``stateful`` do not concern the weights and are left to the caller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import compute_dtype
from rnnjax.cells import GRU, LSTM, ConvLSTM, Elman, GRUResetBefore
from rnnjax.checks import short
from rnnjax.extras import require
from rnnjax.interop._common import (
    as_array,
    built,
    check_params,
    check_shape,
    concatenate,
    is_of,
    join_layers,
    layers_of,
    refuse,
    reorder_gates,
)
from rnnjax.interop._keras_files import BUILT, GATES, Direction, Found, read_model, read_weights, settings
from rnnjax.kinds import public
from rnnjax.network import input_shape

__all__ = ["from_keras", "to_keras", "to_keras_layer"]

_KINDS: dict[type, str] = {Elman: "SimpleRNN", LSTM: "LSTM", GRU: "GRU", GRUResetBefore: "GRU", ConvLSTM: "ConvLSTM"}
_PLAIN = {"padding": "same", "data_format": "channels_last", "strides": 1, "dilation_rate": 1}  # of a ConvLSTM here
_MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "product"}  # of Keras, and what they are here
_MODES = {merge: mode for mode, merge in _MERGES.items()}
_SWAP = (1, 0, 2)  # r, z, n to z, r, h, and back


@public
def from_keras(
    source: Any,
    *,
    name: str | Sequence[str] | None = None,
    activation: Literal["tanh", "relu"] | None = None,
    reset_after: bool | None = None,
    merge: Literal["concat", "sum", "mean", "product"] | None = None,
    spatial_shape: tuple[int, ...] | None = None,
) -> tuple[Any, Any]:
    """A cell or network with the weights of recurrent layers of Keras.

    Args:
        source: a built layer, or a cell of one; a model; or the path of a ``.keras`` or ``.weights.h5`` file.
        name: which layer of a model or file, for example ``"lstm_1"``; several names are layers on top of each other,
            the first nearest to the input. None takes the one that is there. A ``.weights.h5`` file has paths for
            names, such as ``"layers/lstm_1"``; an error lists them.
        activation: of a ``SimpleRNN`` in a ``.weights.h5`` file, which holds no configuration. Other layers in such a
            file are taken to have tanh and sigmoid, as Keras makes them unless it is told otherwise.
        reset_after: of a GRU without bias in such a file; a bias tells it by its shape.
        merge: of a `Bidirectional` in such a file, its ``merge_mode`` as `rnnjax.Bidirectional` calls it.
        spatial_shape: of the images of a ``ConvLSTM``, ``(height, width)`` for two axes, in such a file and where the
            layer was built without it.

    Returns:
        ``(cell, params)``: `Elman`, `LSTM`, `GRU`, `GRUResetBefore` or `ConvLSTM`; for several names a `Stack` of
        them; from `Bidirectional` layers a `Bidirectional` network. The weights keep their dtype.

    Raises:
        TypeError: for another object.
        ValueError: for what has no counterpart here, such as other activations, ``go_backwards=True`` or another
            ``merge_mode``; for names that are not there; if a ``.weights.h5`` file leaves open what the keywords say.
        OSError: if a file is missing, or is none of these.
        ModuleNotFoundError: where keras, or for a file h5py, is not installed.
    """
    where = "from_keras"
    options: dict[str, Any] = {"activation": activation, "reset_after": reset_after, "merge": merge}
    told = {key: value for key, value in options.items() if value is not None}
    bare = False
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{where}: there is no file {path!r}; name a .keras or .weights.h5 file.")
        bare = not path.endswith(".keras")
        found = read_weights(where, path) if bare else read_model(where, path)
    else:
        found = list(_read_object(where, source))
    if told and not bare:
        raise ValueError(f"{where}: {', '.join(told)} is for .weights.h5 files; everything else says it itself.")
    chosen = _choose(where, found, name)
    merges = {told.get("merge") if bare else layer.merge for layer in chosen if len(layer.directions) == 2}
    if {len(layer.directions) for layer in chosen} == {1, 2} or len(merges) > 1:
        raise ValueError(
            f"{where}: the layers of one network must all be Bidirectional, and merged alike, or none of them."
        )
    for mode in merges:
        if mode is None and bare:
            known = "'concat', 'sum', 'mean' or 'product'"
            name = chosen[0].name
            raise ValueError(f"{where}: the file does not tell the merge_mode of {name!r}; give merge={known}.")
        if mode not in _MERGES.values() if bare else mode not in _MERGES:
            refuse(where, f"the merge_mode {mode!r} of {chosen[0].name!r}", "here the directions are merged into one")
    layers = []
    for layer in chosen:
        pair = zip(layer.directions, (False, True), strict=False)
        layers.append(tuple(_convert(where, layer.name, d, backward, told, spatial_shape) for d, backward in pair))
    merged: Any = next(iter(merges), "concat")
    return join_layers(layers, merged if bare else _MERGES[merged])


def _choose(where: str, found: list[Found], name: str | Sequence[str] | None) -> list[Found]:
    if not found:
        raise ValueError(
            f"{where}: there must be a recurrent layer of Keras, got none; a .h5 of model.save must be written anew, "
            "by model.save('model.keras') or model.save_weights('model.weights.h5')."
        )
    have = ", ".join(repr(layer.name) for layer in found)
    if name is None:
        if len(found) != 1:
            raise ValueError(f"{where}: without name there must be one recurrent layer, got {have}; choose by name.")
        return found
    chosen = []
    for one in (name,) if isinstance(name, str) else tuple(name):
        fitting = [layer for layer in found if layer.name == one]
        if len(fitting) != 1:
            raise ValueError(f"{where}: name must be of one recurrent layer, got {short(one)}; there are {have}.")
        chosen += fitting
    if not chosen:
        raise ValueError(f"{where}: name must hold at least one name, got {short(name)}; there are {have}.")
    return chosen


def _read_object(where: str, source: Any) -> Iterator[Found]:
    """The recurrent layers of a layer or of a model, in the order of the model."""
    if not is_of(type(source), "keras"):
        raise TypeError(f"{where}: it takes a layer or model of Keras or the path of a file, got {short(source)}.")
    keras = require("keras", "keras", where)
    known = {getattr(keras.layers, kind + end, None) for kind in GATES for end in ("", "Cell")}

    def is_known(layer: Any) -> bool:
        if type(layer) is keras.layers.Bidirectional:
            return is_known(layer.forward_layer) and is_known(layer.backward_layer)
        return type(layer) in known or (type(layer) is keras.layers.RNN and type(layer.cell) in known)

    if isinstance(source, keras.Model):
        for layer in source.layers:
            if is_known(layer) or isinstance(layer, keras.Model):
                yield from _read_object(where, layer)
    elif not isinstance(source, keras.layers.Layer):
        raise TypeError(f"{where}: it takes a layer or model of Keras or the path of a file, got {short(source)}.")
    elif not is_known(source):
        refuse(
            where, f"a {type(source).__name__} layer", "here are SimpleRNN, LSTM, GRU, ConvLSTM and Bidirectional ones"
        )
    elif type(source) is keras.layers.Bidirectional:
        pair = (source.forward_layer, source.backward_layer)
        yield Found(source.name, tuple(_direction(layer) for layer in pair), source.merge_mode)
    else:
        yield Found(source.name, (_direction(source),))


def _direction(layer: Any) -> Direction:
    # Not get_weights, which goes by a way to NumPy that warns with some versions of the two.
    known = settings(type(layer).__name__, layer.get_config(), layer.get_build_config())
    return Direction(*known, [weight.value for weight in layer.weights])


def _convert(
    where: str,
    name: str,
    layer: Direction,
    backward: bool,
    told: Mapping[str, Any],
    spatial_shape: tuple[int, ...] | None,
) -> tuple[Any, Any]:
    arrays = [as_array(where, name, a) for a in layer.arrays]
    if len(arrays) not in (2, 3):
        raise ValueError(
            f"{where}: {name!r} must have a kernel, a recurrent_kernel and perhaps a bias, got {len(arrays)} arrays; "
            "build the layer first."
        )
    kernel, recurrent, *bias = arrays
    axes = recurrent.ndim - 2
    size = recurrent.shape[-2] if axes >= 0 else 0
    gates, rest = divmod(recurrent.shape[-1], size) if size else (0, 0)
    kind = layer.kind or next((kind for kind, count in GATES.items() if count == gates), "")
    kind = f"ConvLSTM{axes}D" if layer.kind is None and axes > 0 else kind
    if rest or gates != GATES.get(kind, 0) or axes != (int(kind[-2]) if kind.startswith("Conv") else 0):
        what = f"{GATES[kind]} H (from {kind})" if kind in GATES else "H, 3 H or 4 H"
        kernels = "*K, " if kind.startswith("Conv") else ""
        raise ValueError(
            f"{where}: the recurrent_kernel of {name!r} must have shape [{kernels}H, {what}], got {recurrent.shape}."
        )
    shape = (*recurrent.shape[:-2], *kernel.shape[-2:-1], gates * size)
    check_shape(where, f"the kernel of {name!r}", kernel, shape, "from its recurrent_kernel")
    activation = _check_config(where, name, kind, layer, backward, told)
    after = layer.config.get("reset_after", told.get("reset_after"))
    if kind == "GRU" and bias and layer.kind is None:
        after = bias[0].ndim == 2
    if kind == "GRU" and after is None:
        raise ValueError(f"{where}: the file does not tell reset_after of {name!r}; give reset_after=True or False.")
    shape = (2, 3 * size) if kind == "GRU" and after else (gates * size,)
    b = bias[0] if bias else np.zeros(shape, kernel.dtype)
    check_shape(where, f"the bias of {name!r}", b, shape, "from its recurrent_kernel")
    leaves: tuple[Any, ...] = (kernel, recurrent, b)
    cell: Any = LSTM(size)
    if kind == "SimpleRNN":
        cell = Elman(size, activation=activation)
    elif kind.startswith("Conv"):
        spatial = _images(where, name, layer, axes, spatial_shape)
        cell = ConvLSTM(size, spatial_shape=spatial, kernel_shape=recurrent.shape[:-2])
    elif kind == "GRU":
        cell = GRU(size) if after else GRUResetBefore(size)
        w_ih, w_hh, b = leaves = tuple(reorder_gates(a, _SWAP) for a in leaves)
        if after:
            wide = b.astype(compute_dtype(b.dtype))
            summed = concatenate([(wide[0] + wide[1]).astype(b.dtype)[: 2 * size], b[0][2 * size :]])
            leaves = (w_ih, w_hh, summed, b[1][2 * size :])
    return built(cell, *map(jnp.array, leaves))


def _images(where: str, name: str, layer: Direction, axes: int, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """The sizes of the images, after what would make the layer another function than a `ConvLSTM` is refused."""
    for option, only in _PLAIN.items():
        found = layer.config.get(option, only)
        if any(one != only for one in (found if isinstance(found, list | tuple) else (found,))):
            refuse(where, f"{option}={found!r} of {name!r}", f"a ConvLSTM here has {only!r}")
    built = tuple((layer.config.get(BUILT) or ())[2 : 2 + axes])
    if given is None and (len(built) != axes or None in built):
        raise ValueError(
            f"{where}: the sizes of the images are not known of {name!r}; give spatial_shape, {axes} of them."
        )
    return built if given is None else tuple(given)


def _check_config(where: str, name: str, kind: str, layer: Direction, backward: bool, told: Mapping[str, Any]) -> Any:
    """The activation, after everything that would make the layer another function than the cell is refused."""
    config = layer.config
    default = told.get("activation", None if kind == "SimpleRNN" else "tanh") if layer.kind is None else "tanh"
    activation = config.get("activation", default)
    if activation is None and layer.kind is None:
        raise ValueError(
            f"{where}: the file does not tell the activation of {name!r}; give activation='tanh' or 'relu'."
        )
    allowed = ("tanh", "relu") if kind == "SimpleRNN" else ("tanh",)
    if activation not in allowed:
        refuse(where, f"the activation {activation!r} of {name!r}", f"for {kind} it is {' or '.join(allowed)} here")
    if kind != "SimpleRNN" and config.get("recurrent_activation", "sigmoid") != "sigmoid":
        refuse(
            where, f"recurrent_activation={config['recurrent_activation']!r} of {name!r}", "the gates here have sigmoid"
        )
    if layer.kind is not None and bool(config.get("go_backwards", False)) != backward:
        reason = "a direction is no property of a cell; make the layer without it, and run unroll(reverse=True)"
        refuse(where, f"go_backwards={not backward} of {name!r}", reason)
    return activation


def _kind(cell: Any) -> str:
    """What Keras calls the layer of a cell."""
    kind = _KINDS[type(cell)]
    return f"{kind}{len(cell.spatial_shape)}D" if isinstance(cell, ConvLSTM) else kind


@public
def to_keras(cell: Any, params: Any, *, use_bias: bool = True) -> list[jax.Array]:
    """The weights for ``set_weights`` of the Keras layer that computes what ``cell`` does.

    That is a ``SimpleRNN`` for `Elman`, with its activation, an ``LSTM``, a ``GRU(reset_after=True)`` for `GRU`, a
    ``GRU(reset_after=False)`` for `GRUResetBefore` and a ``ConvLSTM1D`` to ``ConvLSTM3D`` for `ConvLSTM`. For a
    `Bidirectional` it is a ``Bidirectional`` layer; the weights of further layers follow, as ``set_weights`` of a
    ``Sequential`` model takes them.

    Args:
        cell: one of these cells, or a `Stack` or `Bidirectional` of them.
        params: its parameters.
        use_bias: False for layers without bias, if ours are all zero.

    Raises:
        ValueError: for a cell or network that Keras does not have, for shapes that do not fit, or for biases that are
            not zero with ``use_bias=False``.

    >>> import rnnjax
    >>> cell = rnnjax.GRU(2)
    >>> [w.shape for w in to_keras(cell, cell.init(jax.random.key(0), input_size=3))]
    [(3, 6), (2, 6), (2, 6)]
    """
    return [w for layer in layers_of("to_keras", cell, params) for part in layer for w in _weights(*part, use_bias)]


def _weights(cell: Any, p: Any, use_bias: bool) -> list[jax.Array]:
    where = "to_keras"
    if type(cell) not in _KINDS:
        refuse(where, type(cell).__name__, "Keras has only Elman, LSTM, GRU, GRUResetBefore and ConvLSTM")
    check_params(where, cell, p)
    size = cell.hidden_size
    arrays = [jnp.asarray(a) for a in (p.w_ih, p.w_hh, p.b)]
    if _KINDS[type(cell)] == "GRU":
        arrays = [reorder_gates(a, _SWAP) for a in arrays]
    if isinstance(cell, GRU):
        second = jnp.concatenate([jnp.zeros_like(p.b[: 2 * size]), p.b_hn])
        arrays[2] = jnp.stack([arrays[2], second])
    if not use_bias:
        if np.any(np.asarray(arrays.pop())):
            refuse(where, f"use_bias=False for {cell!r}", "its biases are not zero")
    return arrays


@public
def to_keras_layer(cell: Any, params: Any, *, use_bias: bool = True, **options: Any) -> Any:
    """A built Keras layer that computes what ``cell`` does; see `to_keras`.

    Args:
        cell: as for `to_keras`, but of one layer: in Keras, every layer is an object of its own.
        params: its parameters.
        use_bias: as for `to_keras`.
        **options: further arguments of the layer: ``return_sequences``, ``return_state``, ``dropout``, ``name``.

    Raises:
        ValueError: as `to_keras` does, or for more than one layer.
        ModuleNotFoundError: where keras is not installed.
    """
    where = "to_keras_layer"
    check_params(where, cell, params)
    keras = require("keras", "keras", where)
    layers = layers_of(where, cell, params)
    if len(layers) > 1:
        refuse(where, repr(cell), "a layer of Keras is one layer; convert them one by one")
    weights = to_keras(cell, params, use_bias=use_bias)
    made = []
    for (inner, _), backward in zip(layers[0], (False, True), strict=False):
        own = options | ({"go_backwards": True} if backward else {})
        if isinstance(inner, Elman):
            own["activation"] = inner.activation
        if isinstance(inner, GRU | GRUResetBefore):
            own["reset_after"] = isinstance(inner, GRU)
        if isinstance(inner, ConvLSTM):
            own |= {"kernel_size": inner.kernel_shape, "padding": "same"}
        if len(layers[0]) == 2:  # the outer layer has the name
            own.pop("name", None)
        made.append(getattr(keras.layers, _kind(inner))(inner.hidden_size, use_bias=use_bias, **own))
    layer = made[0]
    if len(layers[0]) == 2:
        outer = {key: options[key] for key in ("name",) if key in options}
        layer = keras.layers.Bidirectional(made[0], _MODES[cell.merge], backward_layer=made[1], **outer)
    first, own_params = layers[0][0]
    layer.build((None, None, *input_shape(first, own_params.w_ih.shape[-2])))
    layer.set_weights([np.asarray(w) for w in weights])
    return layer

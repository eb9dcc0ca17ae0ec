r"""Weights of ``torch.nn.RNN``, ``LSTM`` and ``GRU`` and of their cells, both ways and exact.

PyTorch has the gates in our order (``i, f, g, o`` and ``r, z, n``) and the weights transposed. Of its two biases the
sum is ours; only the GRU's candidate has one, ``b_hn``, that stands within the reset and stays apart:

    w_ih = weight_ih.T,  w_hh = weight_hh.T,  w_proj = weight_hr.T,  b = bias_ih + bias_hh
    GRU:  b[n] = bias_ih[n],  b_hn = bias_hh[n]

On the way back ``bias_hh`` is zero, but for ``b_hn``. A module's ``batch_first`` says how it takes its inputs and its
``dropout`` what happens between its layers in training; neither concerns the weights. Our sequences are time-major.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.arrays import read_arrays
from rnnjax.cell import compute_dtype, describe
from rnnjax.cells import GRU, LSTM, Elman, ProjectedLSTM
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
    join_states,
    layers_of,
    refuse,
)
from rnnjax.kinds import public

__all__ = ["from_torch", "from_torch_state", "to_torch", "to_torch_state"]

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
_KINDS: dict[type, str] = {Elman: "rnn", GRU: "gru", LSTM: "lstm", ProjectedLSTM: "lstm"}
_FIRST = re.compile(r"(?P<prefix>(?:.*\.)?)weight_ih(?P<layer>_l0)?")


class _Weights(NamedTuple):
    """What a module of torch has for one direction of one layer; None for what it lacks."""

    w_ih: Any  # [G C, I], where C is H but for a projection
    w_hh: Any  # [G C, H]
    b_ih: Any  # [G C]
    b_hh: Any  # [G C]
    w_hr: Any  # [H, C]


_FIELDS = _Weights("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


@public
def from_torch(
    source: Any,
    *,
    kind: Literal["rnn", "lstm", "gru"] | None = None,
    nonlinearity: Literal["tanh", "relu"] | None = None,
    prefix: str | None = None,
) -> tuple[Any, Any]:
    """A cell or network with the weights of a torch module.

    Args:
        source: an ``RNN``, ``LSTM`` or ``GRU`` of ``torch.nn``, or a cell of one; or a ``state_dict`` with arrays of
            torch, NumPy or JAX, or the path of a file with one that ``safetensors.torch.save_file`` has written, for
            both of which torch need not be installed.
        kind: what a ``state_dict`` belongs to; None finds out from the shapes. Not for modules, which say it.
        nonlinearity: of a plain RNN in a ``state_dict``, which nothing in it tells.
        prefix: what the names of the layer's weights begin with in the ``state_dict`` of a larger model, such as
            ``"encoder.lstm."``; None takes the one recurrent layer that is in it.

    Returns:
        ``(cell, params)``: `Elman`, `LSTM`, `GRU` or `ProjectedLSTM`; for more layers a `Stack` of them; with two
        directions a `Bidirectional` network. The weights keep their dtype, but float64 becomes float32 where JAX has
        float64 switched off (``jax_enable_x64``).

    Raises:
        TypeError: for another module.
        FileNotFoundError: if there is no such file.
        ValueError: if a file is none of safetensors, truncated or damaged, if names are missing or unknown, if shapes
            do not fit, if the kind cannot be told, or for several recurrent layers without ``prefix``.
        ModuleNotFoundError: for a module, where torch is not installed.

    >>> rng = np.random.default_rng(0)
    >>> shapes = {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": (16,), "bias_hh_l0": (16,)}
    >>> cell, params = from_torch({name: rng.normal(size=shape) for name, shape in shapes.items()})
    >>> cell, params.w_ih.shape
    (LSTM(hidden_size=4, ...), (3, 16))
    """
    where = "from_torch"
    if isinstance(source, str | os.PathLike):
        file = pathlib.Path(source)
        if not file.is_file():
            raise FileNotFoundError(f"{where}: there is no file {str(file)!r}; name a safetensors file.")
        if file.suffix in (".pt", ".pth", ".bin", ".ckpt"):
            raise ValueError(
                f"{where}: {str(file)!r} must be a safetensors file; what torch.save writes holds code, so read it "
                "with torch.load(path, weights_only=True) and hand over the state_dict that comes."
            )
        source, _ = read_arrays(file.resolve(), where=f"{where}: {file}")
    if not isinstance(source, Mapping):
        if kind is not None or nonlinearity is not None or prefix is not None:
            raise ValueError(f"{where}: kind, nonlinearity and prefix are for a state_dict; a module says them itself.")
        kind, nonlinearity = _describe_module(where, source)
        source, prefix = source.state_dict(), ""
    named, suffixes = _gather(where, source, prefix)
    layers: list[Any] = []
    for depth, directions in enumerate(suffixes):
        layer: list[Any] = []
        for suffix in directions:
            weights = _Weights(*(named.get(field + suffix) for field in _FIELDS))
            below = None if depth == 0 else sum(cell.hidden_size for cell, _ in layers[-1])
            first = layers[0][0][0] if layers else layer[0][0] if layer else None
            layer.append(_convert(where, weights, suffix, kind, nonlinearity, below))
            if first is not None and layer[-1][0] != first:
                raise ValueError(
                    f"{where}: every layer of a torch module must be the same, got {short(first)} and, for the suffix "
                    f"{suffix!r}, {layer[-1][0]!r}; convert them one by one with prefix."
                )
        layers.append(tuple(layer))
    return join_layers(layers)


def _describe_module(where: str, module: Any) -> tuple[Any, Any]:
    name = type(module).__name__
    layers = require("torch", "torch", where).nn if is_of(type(module), "torch") else None
    if type(module) not in [getattr(layers, n + end, None) for n in ("RNN", "LSTM", "GRU") for end in ("", "Cell")]:
        raise TypeError(
            f"{where}: it takes torch.nn.RNN, LSTM or GRU, a cell of one, or a state_dict, got {name}; "
            "hand over the recurrent layer within it."
        )
    return name.removesuffix("Cell").lower(), getattr(module, "nonlinearity", None)


def _gather(where: str, source: Mapping[str, Any], prefix: str | None) -> tuple[dict[str, Any], list[list[str]]]:
    """The weights by their names without the prefix, and for each layer the suffixes of its directions."""
    found = [match["prefix"] for match in map(_FIRST.fullmatch, source) if match]
    if prefix is None:
        if len(found) != 1:
            raise ValueError(
                f"{where}: the state_dict must hold one recurrent layer, got {len(found)}"
                + (f" with the prefixes {', '.join(map(repr, found))}; choose one by prefix." if found else ".")
            )
        prefix = found[0]
    if prefix not in found:
        raise ValueError(
            f"{where}: the state_dict must hold {prefix + 'weight_ih_l0'!r} or {prefix + 'weight_ih'!r}, got the "
            f"recurrent layers with the prefixes {', '.join(map(repr, found)) or 'none'}."
        )
    named = {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}
    own = {name: value for name, value in named.items() if "." not in name}  # the others are of modules within
    suffixes = [[""]]
    if "weight_ih_l0" in own:
        layers = 1
        while f"weight_ih_l{layers}" in own:
            layers += 1
        ends = ("", "_reverse") if "weight_ih_l0_reverse" in own else ("",)
        suffixes = [[f"_l{depth}{end}" for end in ends] for depth in range(layers)]
    flat = [suffix for layer in suffixes for suffix in layer]
    # All layers have the same weights: what one of them has and another lacks is missing.
    kept = [field for field in _FIELDS if field in _FIELDS[:2] or any(field + suffix in own for suffix in flat)]
    wanted = [field + suffix for suffix in flat for field in kept]
    if _FIELDS.b_hh in kept and _FIELDS.b_ih not in kept:
        wanted.append(_FIELDS.b_ih + flat[0])
    elif _FIELDS.b_ih in kept and _FIELDS.b_hh not in kept:
        wanted.append(_FIELDS.b_hh + flat[0])
    for name in wanted:
        if name not in own:
            raise ValueError(
                f"{where}: the state_dict must hold {prefix + name!r} beside its other weights, it does not."
            )
    for name in own:
        if name not in wanted:
            raise ValueError(
                f"{where}: {prefix + name!r} is no weight of a recurrent layer with {len(suffixes)} layers."
            )
    return {name: as_array(where, prefix + name, own[name]) for name in wanted}, suffixes


def _convert(
    where: str, weights: _Weights, suffix: str, kind: Any, nonlinearity: Any, below: int | None
) -> tuple[Any, Any]:
    """One direction of one layer; ``below`` is the width of the layer below."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    for field, array, axes in zip(_FIELDS, weights, (2, 2, 1, 1, 2)):
        if array is not None and array.ndim != axes:
            raise ValueError(f"{where}: {field}{suffix} must have {axes} axes, got {describe(array)}.")
    size = w_hh.shape[1]
    memory = size if w_hr is None else w_hr.shape[1]
    gates = w_hh.shape[0] // max(memory, 1)
    counts = {_GATES[kind]} if kind else set(_GATES.values())
    if gates not in counts or gates * memory != w_hh.shape[0]:
        what = f"G = {_GATES[kind]} for {kind!r}" if kind else "G = 1 for a plain RNN, 3 for a GRU or 4 for an LSTM"
        width = "H" if w_hr is None else "C"
        raise ValueError(
            f"{where}: weight_hh{suffix} must have shape [G {width}, H] with {what}, got {describe(w_hh)}."
        )
    kind = next(name for name, count in _GATES.items() if count == gates)
    rows = gates * memory
    check_shape(where, f"weight_ih{suffix}", w_ih, (rows, below or w_ih.shape[1]), f"from weight_hh{suffix} and below")
    for field, bias in ((_FIELDS.b_ih, b_ih), (_FIELDS.b_hh, b_hh)):
        if bias is not None:
            check_shape(where, field + suffix, bias, (rows,), f"from weight_hh{suffix}")
    if w_hr is not None:
        check_shape(where, f"weight_hr{suffix}", w_hr, (size, memory), f"from weight_hh{suffix}")
        if kind != "lstm":
            refuse(where, f"weight_hr{suffix}", "only an LSTM has a projection")
    if kind == "rnn" and nonlinearity is None:
        raise ValueError(
            f"{where}: the weights are those of a plain RNN and do not tell its nonlinearity; "
            "give nonlinearity='tanh' or 'relu'."
        )
    if b_ih is None:
        b_ih = b_hh = np.zeros((rows,), w_ih.dtype)
    wide = compute_dtype(b_ih.dtype)
    b = (b_ih.astype(wide) + b_hh.astype(wide)).astype(b_ih.dtype)
    cell: Any = LSTM(size) if w_hr is None else ProjectedLSTM(size, cell_size=memory)
    leaves = [w_ih.T, w_hh.T, b] + ([] if w_hr is None else [w_hr.T])
    if kind == "rnn":
        cell = Elman(size, activation=nonlinearity)
    elif kind == "gru":
        cell, b = GRU(size), concatenate([b[: 2 * size], b_ih[2 * size :]])
        leaves = [w_ih.T, w_hh.T, b, b_hh[2 * size :]]
    return built(cell, *map(jnp.array, leaves))


@public
def to_torch(
    cell: Any, params: Any, *, bias: bool = True, as_cell: bool = False, as_numpy: bool = False
) -> dict[str, Any]:
    """The ``state_dict`` of the torch module that computes what ``cell`` does, for its ``load_state_dict``.

    Args:
        cell: `Elman`, `LSTM`, `GRU` or `ProjectedLSTM`; a `Stack` or `Bidirectional` of equal ones.
        params: its parameters.
        bias: False for a module without biases, if ours are all zero.
        as_cell: whether the names are those of ``torch.nn.LSTMCell`` and the like.
        as_numpy: arrays of NumPy instead of tensors, for which torch need not be installed.

    Returns:
        The weights by their names, as copies with the dtype of ``params``.

    Raises:
        ValueError: for a cell or network that torch does not have, for biases that are not zero with ``bias=False``,
            for shapes that do not fit, or with ``as_cell`` for more than a cell.
        ModuleNotFoundError: where torch is not installed, unless ``as_numpy`` is True.

    >>> import rnnjax
    >>> cell = rnnjax.GRU(2)
    >>> {name: a.shape for name, a in to_torch(cell, cell.init(jax.random.key(0), 3), as_numpy=True).items()}
    {'weight_ih_l0': (6, 3), 'weight_hh_l0': (6, 2), 'bias_ih_l0': (6,), 'bias_hh_l0': (6,)}
    """
    where = "to_torch"
    layers = _check_network(where, cell, params)
    check_params(where, cell, params)
    if as_cell and (len(layers) > 1 or len(layers[0]) > 1 or type(layers[0][0][0]) is ProjectedLSTM):
        refuse(where, repr(cell), "as_cell=True is for one layer and direction without a projection")
    named: dict[str, Any] = {}
    for depth, layer in enumerate(layers):
        for end, (inner, p) in zip(("", "_reverse"), layer, strict=False):
            suffix = "" if as_cell else f"_l{depth}{end}"
            weights = _weights(inner, jax.tree.map(np.asarray, p))
            if not bias:
                if np.any(weights.b_ih) or np.any(weights.b_hh):
                    refuse(where, f"bias=False for {inner!r}", "its biases are not zero")
                weights = weights._replace(b_ih=None, b_hh=None)
            named |= {field + suffix: np.array(a) for field, a in zip(_FIELDS, weights) if a is not None}
    return named if as_numpy else {name: _tensor(where, array) for name, array in named.items()}


def _check_network(where: str, cell: Any, tree: Any) -> list[Any]:
    """`layers_of`, for a network that a torch module can be: one kind and size of cells, concatenated directions."""
    layers = layers_of(where, cell, tree, concatenates="torch")
    first = layers[0][0][0]
    if type(first) not in _KINDS:
        refuse(where, type(first).__name__, "torch.nn has only Elman, LSTM, GRU and ProjectedLSTM")
    for layer in layers:
        for inner, _ in layer:
            if _signature(inner) != _signature(first):
                refuse(where, repr(cell), "all layers and directions of a torch module are of one kind and size")
    return layers


def _signature(cell: Any) -> tuple[Any, ...]:
    """What torch must know of a cell: initialisers do not concern it."""
    memory = cell.initial_state().c.shape[-1] if type(cell) is ProjectedLSTM else None
    return type(cell), getattr(cell, "hidden_size", None), getattr(cell, "activation", None), memory


def _weights(cell: Any, p: Any) -> _Weights:
    b_hh = np.zeros_like(p.b)
    if isinstance(cell, GRU):
        b_hh = np.concatenate([b_hh[: 2 * cell.hidden_size], p.b_hn])
    return _Weights(p.w_ih.T, p.w_hh.T, p.b, b_hh, p.w_proj.T if isinstance(cell, ProjectedLSTM) else None)


def _tensor(where: str, array: np.ndarray) -> Any:
    """A copy as a tensor; torch does not know the bfloat16 of NumPy."""
    torch = require("torch", "torch", where)
    if array.dtype == jnp.bfloat16:
        return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(array)


@public
def from_torch_state(cell: Any, state: Any) -> Any:
    """Our state from torch's ``h`` or ``(h, c)``, each ``[num_layers * num_directions, *batch, H]``.

    Args:
        cell: what `from_torch` returned. Layers come before directions in torch: forward and backward of the first
            layer, then of the second.
        state: what a torch module takes and returns as its state. A torch cell's ``[*batch, H]`` has no leading axis:
            it is ``LSTMState(h, c)`` and the like at once.

    Raises:
        ValueError: if the shapes are not those of the network's states.

    >>> import rnnjax
    >>> cell = rnnjax.Stack((rnnjax.LSTM(4), rnnjax.LSTM(4)))
    >>> from_torch_state(cell, (np.zeros((2, 5, 4)), np.ones((2, 5, 4)))).layers[1].c.shape
    (5, 4)
    """
    where = "from_torch_state"
    arrays = [as_array(where, "state", a) for a in (state if isinstance(state, tuple | list) else (state,))]
    empty = cell.initial_state()
    cells = [(inner, start) for layer in _check_network(where, cell, empty) for inner, start in layer]
    names = cells[0][1]._fields
    if len(arrays) != len(names):
        raise ValueError(f"{where}: the state must be {' and '.join(names)} for {cell!r}, got {len(arrays)} arrays.")
    batch = arrays[0].shape[1:-1]
    for name, array, leaf in zip(names, arrays, cells[0][1], strict=True):
        shape = (len(cells), *batch, leaf.shape[-1])
        check_shape(where, name, array, shape, f"num_layers * num_directions, batch and size of {name}")
    states = [type(start)(*(jnp.asarray(a[k]) for a in arrays)) for k, (_, start) in enumerate(cells)]
    return join_states(cell, states)


@public
def to_torch_state(cell: Any, state: Any, *, as_numpy: bool = False) -> Any:
    """The opposite of `from_torch_state`: ``h``, or ``(h, c)`` for the LSTMs.

    Args:
        cell: the cell or network.
        state: its state.
        as_numpy: arrays of NumPy instead of tensors.

    Raises:
        ValueError: for a cell or network that torch does not have.
        ModuleNotFoundError: where torch is not installed, unless ``as_numpy`` is True.
    """
    where = "to_torch_state"
    check_params(where, cell, state, of="initial_state")
    states = [s for layer in _check_network(where, cell, state) for _, s in layer]
    arrays = [np.stack(leaves) for leaves in zip(*states, strict=True)]
    tensors = tuple(arrays if as_numpy else [_tensor(where, array) for array in arrays])
    return tensors[0] if len(tensors) == 1 else tensors

"""Haiku: its cores to ours and back, and our cells as its modules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells import LSTM, ConvLSTM, Elman, GRUResetBefore
from rnnjax.checks import check_kind, short
from rnnjax.extras import require
from rnnjax.interop._common import (
    built,
    check_shape,
    counterpart,
    image_sizes,
    is_of,
    refuse,
    reorder_gates,
    shift_forget,
)
from rnnjax.interop._hosts import check_host_cell
from rnnjax.kinds import public

__all__ = ["from_haiku", "haiku_core", "haiku_layer", "to_haiku"]

_NAMES = {  # what Haiku calls a core that was given no name
    "VanillaRNN": "vanilla_rnn",
    "LSTM": "lstm",
    "GRU": "gru",
    "Conv1DLSTM": "conv1_dlstm",
    "Conv2DLSTM": "conv2_dlstm",
    "Conv3DLSTM": "conv3_dlstm",
}
_SWAP_FG = (0, 2, 1, 3)  # gates i, g, f, o there and i, f, g, o here
_SWAP_RZ = (1, 0, 2)  # gates z, r, n there and r, z, n here


def from_haiku(
    core: Any,
    params: Mapping[str, Mapping[str, Any]],
    *,
    name: str | None = None,
    spatial_shape: tuple[int, ...] | None = None,
) -> tuple[Any, Any]:
    """A recurrent core of Haiku with its parameters, as a cell of rnnjax with the same outputs, states and gradients.

    ==================  ===================================================================================
    ``VanillaRNN``      `rnnjax.Elman` with ReLU; two biases become their sum
    ``LSTM``            `rnnjax.LSTM`; the 1 that Haiku adds to f in every step goes into ``b``
    ``GRU``             `rnnjax.cells.GRUResetBefore`; z selects the candidate there, so its blocks change their sign
    ``Conv1DLSTM ...``  `rnnjax.ConvLSTM`, as ``LSTM``; two biases become their sum
    ==================  ===================================================================================

    Args:
        core: the core, its class, or the name of its class.
        params: of the core or of the whole model, as ``hk.transform(...).init`` makes them.
        name: the path of the core in ``params``; None is the one that Haiku gives a core without a name.
        spatial_shape: the size of the images for ``Conv2DLSTM`` and the like, unless ``core`` is a core that has it.

    Returns:
        The cell and its parameters.

    Raises:
        ValueError: for a core without a counterpart, or if ``params`` are not those of the core.

    >>> import jax.numpy as jnp
    >>> params = {"lstm/linear": {"w": jnp.ones((7, 16)), "b": jnp.zeros(16)}}  # I = 3, H = 4
    >>> cell, params = from_haiku("LSTM", params)
    >>> params.w_ih.shape, params.b[4:8].tolist()
    ((3, 16), [1.0, 1.0, 1.0, 1.0])
    """
    where = "from_haiku"
    core_kind = core if isinstance(core, type) else type(core)
    if core_kind is not str and not is_of(core_kind, "haiku"):
        raise TypeError(f"{where}: core must be a core of Haiku or its name, got {short(core)}.")
    check_kind(where, "params", params, Mapping, "the mapping that Haiku's init makes")
    kind = core if isinstance(core, str) else core_kind.__name__
    if kind not in _NAMES:
        refuse(where, f"haiku.{kind}", f"of the cores of Haiku, rnnjax has {', '.join(_NAMES)}")
    if not isinstance(core, str | type):
        name = core.module_name if name is None else name
        spatial_shape = getattr(core, "input_shape", None) if spatial_shape is None else spatial_shape
    read = functools.partial(_read, where, params, _NAMES[kind] if name is None else name)
    if kind == "VanillaRNN":
        w_ih, w_hh = read("linear", "w"), read("linear_1", "w")
        size = w_hh.shape[0]
        check_shape(where, "the recurrent w", w_hh, (size, size), "it is square")
        b = read("linear", "b") + read("linear_1", "b", optional=True)
        return built(Elman(size, activation="relu"), w_ih, w_hh, b)
    if kind == "LSTM":
        w, b = read("linear", "w"), shift_forget(reorder_gates(read("linear", "b"), _SWAP_FG), 1.0)
        size = w.shape[1] // 4
        w_ih, w_hh = jnp.split(reorder_gates(w, _SWAP_FG), [w.shape[0] - size])
        return built(LSTM(size), w_ih, w_hh, b)
    if kind == "GRU":
        w_ih, w_hh, b = (_negate_z(reorder_gates(read("", leaf), _SWAP_RZ)) for leaf in ("w_i", "w_h", "b"))
        return built(GRUResetBefore(w_hh.shape[0]), w_ih, w_hh, b)
    w_ih, w_hh = (reorder_gates(read(layer, "w"), _SWAP_FG) for layer in ("input_to_hidden", "hidden_to_hidden"))
    b = read("input_to_hidden", "b") + read("hidden_to_hidden", "b")
    cell = image_sizes(where, spatial_shape, tuple(w_ih.shape[:-2]), w_ih.shape[-1] // 4)
    return built(cell, w_ih, w_hh, shift_forget(reorder_gates(b, _SWAP_FG), 1.0))


@public
def to_haiku(cell: Any, params: Any, *, name: str | None = None) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A cell of rnnjax as the core of Haiku with the same outputs, states and gradients; see `from_haiku`.

    Args:
        cell: an `Elman` with ReLU, an `LSTM`, a `GRUResetBefore` or a `ConvLSTM`.
        params: its parameters.
        name: of the core, and the path of its parameters.

    Returns:
        What makes the core, to be called inside of ``hk.transform``, and the parameters. Where Haiku has two biases,
        the second is zero.

    Raises:
        ValueError: for a cell that Haiku has not.
    """
    where = "to_haiku"
    haiku = require("haiku", "dm-haiku", where)
    if type(cell) is Elman and cell.activation != "relu":
        refuse(where, repr(cell), "the VanillaRNN of Haiku has ReLU alone; haiku_core makes a module of it")
    kinds: dict[type, str] = {Elman: "VanillaRNN", LSTM: "LSTM", GRUResetBefore: "GRU", ConvLSTM: "Conv"}
    reason = "its GRU has the reset before the matmul" if type(cell).__name__ == "GRU" else "Haiku has no such core"
    kind = counterpart(where, cell, params, kinds, f"{reason}; haiku_core makes a module of it")
    arguments: tuple[Any, ...] = (cell.hidden_size,)
    if kind == "VanillaRNN":
        b = jnp.asarray(params.b)
        parts = {"linear": {"w": params.w_ih, "b": b}, "linear_1": {"w": params.w_hh, "b": jnp.zeros_like(b)}}
    elif kind == "LSTM":
        w = jnp.concatenate([params.w_ih, params.w_hh])
        parts = {"linear": {"w": reorder_gates(w, _SWAP_FG), "b": _forget_less(params.b)}}
    elif kind == "GRU":
        parts = {"": dict(zip(("w_i", "w_h", "b"), (reorder_gates(_negate_z(leaf), _SWAP_RZ) for leaf in params)))}
    else:
        kind = f"Conv{len(cell.spatial_shape)}DLSTM"
        arguments = (cell.spatial_shape, cell.hidden_size, cell.kernel_shape)
        b = _forget_less(params.b)
        parts = {
            "input_to_hidden": {"w": reorder_gates(params.w_ih, _SWAP_FG), "b": b},
            "hidden_to_hidden": {"w": reorder_gates(params.w_hh, _SWAP_FG), "b": jnp.zeros_like(b)},
        }
    path = _NAMES[kind] if name is None else name
    tree = {f"{path}/{layer}".rstrip("/"): leaves for layer, leaves in parts.items()}
    return functools.partial(getattr(haiku, kind), *arguments, name=path), tree


def haiku_core(cell: Any, *, name: str | None = None) -> Any:
    """Any cell of rnnjax as an ``hk.RNNCore``, for ``hk.dynamic_unroll`` and the like; call it inside ``hk.transform``.

    Its parameters come from ``hk.get_parameter``, in the dtype of the inputs, initialised by ``cell.init`` with one key
    of Haiku. They have the names that they have in files: the tree of parameters that exist is ``{name:
    rnnjax.saving.named_arrays(params)}``, and ``rnnjax.saving.restore`` leads back. Its state is the state of rnnjax,
    for an LSTM ``(h, c)``, and starts as ``cell.initial_state``.

    Args:
        cell: any cell, also a stack; not one that learns its initial state, which that of a core cannot.
        name: of the module; None is the name of the cell in lower case.

    Returns:
        The core: ``y, state = core(x, state)``.

    Raises:
        TypeError: if ``cell`` is none.
        ValueError: if it learns its initial state.
        ModuleNotFoundError: without Haiku.
    """
    check_host_cell("haiku_core", cell, layer="haiku_layer")
    require("haiku", "dm-haiku", "haiku_core")
    from rnnjax.interop._haiku_modules import HaikuCore

    return HaikuCore(cell, name=name)


def haiku_layer(
    cell: Any,
    *,
    time_major: bool = True,
    reverse: bool = False,
    implementation: str | None = None,
    remat: bool | int | str | None = None,
    name: str | None = None,
) -> Any:
    """A cell over whole sequences by `rnnjax.unroll`, as an ``hk.Module``; call it inside ``hk.transform``.

    ``ys, state = layer(xs, state=None, lengths=None, resets=None)`` returns in the order of ``hk.dynamic_unroll``. Its
    parameters are those of `haiku_core`.

    Args:
        cell: any cell, also a stack, or one that learns its initial state.
        time_major: whether xs are ``[T, *batch, I]``, and not ``[*batch, T, I]``.
        reverse: whether time runs backwards; ``ys`` stay in the order of ``xs``.
        implementation: of `rnnjax.unroll`.
        remat: of `rnnjax.unroll`.
        name: of the module; None is the name of the cell in lower case.

    Returns:
        The module.

    Raises:
        TypeError: if ``cell`` is none.
        ModuleNotFoundError: without Haiku.
    """
    check_host_cell("haiku_layer", cell)
    require("haiku", "dm-haiku", "haiku_layer")
    from rnnjax.interop._haiku_modules import HaikuLayer

    return HaikuLayer(
        cell, time_major=time_major, reverse=reverse, implementation=implementation, remat=remat, name=name
    )


def _read(
    where: str, params: Mapping[str, Any], path: str, layer: str, leaf: str, *, optional: bool = False
) -> jax.Array:
    full = f"{path}/{layer}".rstrip("/")
    if full in params and leaf in params[full]:
        return jnp.asarray(params[full][leaf])
    if optional:
        return jnp.zeros(())
    raise ValueError(
        f"{where}: params must hold {leaf!r} of {full!r}, got {sorted(params)}; pass the path of the core as name."
    )


def _forget_less(b: Any) -> jax.Array:
    return reorder_gates(shift_forget(b, -1.0), _SWAP_FG)


def _negate_z(array: Any) -> jax.Array:
    """Of gates r, z, n, the sign of z: what keeps here is 1 minus what keeps there."""
    r, z, n = jnp.split(jnp.asarray(array), 3, axis=-1)
    return jnp.concatenate([r, -z, n], axis=-1)

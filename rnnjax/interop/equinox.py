"""Equinox: its cells to ours and back, and our cells as its modules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells import GRU, LSTM
from rnnjax.checks import short
from rnnjax.extras import require
from rnnjax.interop._common import built, counterpart
from rnnjax.interop._hosts import check_host_cell, make_params
from rnnjax.kinds import public

__all__ = ["equinox_cell", "equinox_layer", "from_equinox", "to_equinox"]


def from_equinox(module: Any) -> tuple[Any, Any]:
    """A cell of Equinox as a cell of rnnjax with the same outputs, states and gradients.

    ``eqx.nn.LSTMCell`` is `rnnjax.LSTM` and ``eqx.nn.GRUCell`` is `rnnjax.GRU`, with weights transposed. One with
    ``use_bias=False`` gets biases of zeros, which training moves unless it leaves them out.

    Args:
        module: the cell.

    Returns:
        The cell and its parameters.

    Raises:
        TypeError: if ``module`` is another thing.
    """
    name = type(module).__name__
    if name not in ("GRUCell", "LSTMCell") or not type(module).__module__.startswith("equinox"):
        raise TypeError(f"from_equinox: module must be an equinox.nn.LSTMCell or GRUCell, got {short(module)}.")
    size = module.hidden_size
    w_ih, w_hh = jnp.asarray(module.weight_ih).T, jnp.asarray(module.weight_hh).T
    b = jnp.zeros(w_ih.shape[1:], w_ih.dtype) if module.bias is None else jnp.asarray(module.bias)
    if name == "LSTMCell":
        return built(LSTM(size), w_ih, w_hh, b)
    b_hn = jnp.zeros((size,), w_ih.dtype) if module.bias_n is None else jnp.asarray(module.bias_n)
    return built(GRU(size), w_ih, w_hh, b, b_hn)


@public
def to_equinox(cell: Any, params: Any) -> Any:
    """A cell of rnnjax as the cell of Equinox with the same outputs, states and gradients; see `from_equinox`.

    Args:
        cell: an `LSTM` or a `GRU`.
        params: its parameters.

    Returns:
        The module, which holds its parameters.

    Raises:
        ValueError: for a cell that Equinox has not.
        ModuleNotFoundError: without Equinox.
    """
    where = "to_equinox"
    eqx = require("equinox", "equinox", where)
    names: dict[type, str] = {LSTM: "LSTMCell", GRU: "GRUCell"}
    reason = "Equinox has an LSTM and a GRU alone; equinox_cell makes a module of it"
    make = getattr(eqx.nn, counterpart(where, cell, params, names, reason))
    leaves = {"weight_ih": jnp.asarray(params.w_ih).T, "weight_hh": jnp.asarray(params.w_hh).T, "bias": params.b}
    if type(cell) is GRU:
        leaves["bias_n"] = params.b_hn
    sizes = (params.w_ih.shape[0], cell.hidden_size)
    empty = eqx.filter_eval_shape(lambda: make(*sizes, key=jax.random.key(0)))
    return eqx.tree_at(
        lambda module: [getattr(module, leaf) for leaf in leaves],
        empty,
        [jnp.asarray(leaf) for leaf in leaves.values()],
    )


def equinox_cell(
    cell: Any, input_size: int | None = None, *, params: Any = None, key: Any = None, dtype: Any = jnp.float32
) -> Any:
    """Any cell of rnnjax as an ``eqx.Module``, to be called step by step.

    Its field ``params`` is the parameters of rnnjax, arrays that ``eqx.filter_jit`` and ``eqx.filter_grad`` find; the
    cell itself is static. ``state, y = module(x, state)`` has the arguments of the cells of Equinox, and
    ``module.initial_state(batch_shape)`` is the state to begin with, learned where the cell learns it. A step takes
    any number of batch axes, also none, as under ``jax.vmap``.

    Args:
        cell: any cell, also a stack.
        input_size: I, for new parameters.
        params: of the cell, instead of new ones.
        key: of new parameters.
        dtype: of new parameters.

    Returns:
        The module.

    Raises:
        TypeError: if ``cell`` is none.
        ValueError: unless there is either ``input_size`` with ``key`` or ``params`` of this cell.
        ModuleNotFoundError: without Equinox.
    """
    check_host_cell("equinox_cell", cell)
    require("equinox", "equinox", "equinox_cell")
    from rnnjax.interop._equinox_modules import EquinoxCell

    return EquinoxCell(make_params("equinox_cell", cell, input_size, params, key, dtype), cell)


def equinox_layer(
    cell: Any,
    input_size: int | None = None,
    *,
    params: Any = None,
    key: Any = None,
    reverse: bool = False,
    implementation: str | None = None,
    remat: bool | int | str | None = None,
    dtype: Any = jnp.float32,
) -> Any:
    """A cell over whole sequences by `rnnjax.unroll`, as an ``eqx.Module``.

    ``state, ys = layer(xs, state=None, lengths=None, resets=None)`` with time-major ``xs [T, *batch, I]``; without
    batch axes under ``jax.vmap``, as modules of Equinox are used. Its fields are those of `equinox_cell`.

    Args:
        cell: any cell, also a stack.
        input_size: I, for new parameters.
        params: of the cell, instead of new ones.
        key: of new parameters.
        reverse: whether time runs backwards; ``ys`` stay in the order of ``xs``.
        implementation: of `rnnjax.unroll`.
        remat: of `rnnjax.unroll`.
        dtype: of new parameters.

    Returns:
        The module.

    Raises:
        TypeError: if ``cell`` is none.
        ValueError: unless there is either ``input_size`` with ``key`` or ``params`` of this cell.
        ModuleNotFoundError: without Equinox.
    """
    check_host_cell("equinox_layer", cell)
    require("equinox", "equinox", "equinox_layer")
    from rnnjax.interop._equinox_modules import EquinoxLayer

    params = make_params("equinox_layer", cell, input_size, params, key, dtype)
    return EquinoxLayer(params, cell, reverse, implementation, remat)

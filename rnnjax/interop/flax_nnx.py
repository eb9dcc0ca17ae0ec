"""flax.nnx: its cells to ours and back, and our cells as its modules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cells import GRU, LSTM, Elman
from rnnjax.checks import short
from rnnjax.interop._common import built, check_options, counterpart, elman_activation, fold_residual, refuse
from rnnjax.interop._hosts import check_host_cell, make_params
from rnnjax.kinds import public

__all__ = ["from_nnx", "nnx_cell", "nnx_layer", "to_nnx"]

_INPUTS, _STATES = ("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")  # the layers of an LSTMCell, in our order


def from_nnx(module: Any) -> tuple[Any, Any]:
    """A cell of flax.nnx as a cell of rnnjax with the same outputs, states and gradients.

    ================================  =====================================================================
    ``SimpleCell``                    `rnnjax.Elman`; ``residual=True`` adds an identity to ``w_hh``
    ``LSTMCell, OptimizedLSTMCell``   `rnnjax.LSTM`
    ``GRUCell``                       `rnnjax.GRU` with ``b_hn = 0``, see below
    ================================  =====================================================================

    The GRU of nnx lacks the candidate's recurrent bias, which its own documentation shows and ``flax.linen`` has. So
    the parameters here get zeros for it. They compute the same, but ``b_hn`` has a gradient: leave it out of the
    training to come back by `to_nnx`. The carry of nnx is ``(c, h)``, where a state here is ``(h, c)``.

    Args:
        module: the cell.

    Returns:
        The cell and its parameters.

    Raises:
        ValueError: for options without a counterpart.
        TypeError: if ``module`` is no cell of nnx.

    >>> from flax import nnx
    >>> cell, params = from_nnx(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)))
    >>> cell.hidden_size, params.w_ih.shape
    (4, (3, 16))
    """
    where = "from_nnx"
    name = type(module).__name__
    if isinstance(module, type) or not type(module).__module__.startswith("flax.nnx"):
        raise TypeError(f"{where}: module must be a cell of flax.nnx, got {short(module)}.")
    if name == "RNN":
        raise ValueError(f"{where}: module must be a cell, got an RNN; pass its cell.")
    if name not in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell"):
        refuse(where, f"flax.nnx.{name}", "of the cells of nnx, rnnjax has its SimpleCell, GRUCell and both LSTMs")
    size = module.hidden_features
    if name == "LSTMCell":
        w_ih, w_hh, b = (
            jnp.concatenate([getattr(getattr(module, layer), leaf)[...] for layer in layers], axis=-1)
            for layers, leaf in ((_INPUTS, "kernel"), (_STATES, "kernel"), (_STATES, "bias"))
        )
    else:
        biased = module.dense_h if name == "OptimizedLSTMCell" else module.dense_i
        w_ih, w_hh, b = module.dense_i.kernel[...], module.dense_h.kernel[...], biased.bias[...]
    check_options(where, module, w_ih.dtype)
    if name == "SimpleCell":
        return built(Elman(size, activation=elman_activation(module)), w_ih, fold_residual(module, w_hh), b)
    if name == "GRUCell":
        return built(GRU(size), w_ih, w_hh, b, jnp.zeros((size,), b.dtype))
    return built(LSTM(size), w_ih, w_hh, b)


@public
def to_nnx(cell: Any, params: Any, *, optimized: bool = True) -> Any:
    """A cell of rnnjax as the cell of flax.nnx with the same outputs, states and gradients; see `from_nnx`.

    Args:
        cell: an `Elman`, an `LSTM`, or a `GRU` whose ``b_hn`` is all zeros.
        params: its parameters.
        optimized: of an LSTM, whether to make an ``OptimizedLSTMCell`` or an ``LSTMCell``.

    Returns:
        The module, which holds its parameters.

    Raises:
        ValueError: for a cell that nnx has not, or a GRU with a ``b_hn`` that nnx has no place for.

    >>> import jax, rnnjax
    >>> cell = rnnjax.GRU(4)
    >>> module = to_nnx(cell, cell.init(jax.random.key(0), input_size=3))
    >>> type(module).__name__, module.dense_i.kernel.shape
    ('GRUCell', (3, 12))
    """
    from flax import nnx  # not at the top: importing this room imports no framework

    where, lstm = "to_nnx", "OptimizedLSTMCell" if optimized else "LSTMCell"
    names: dict[type, str] = {Elman: "SimpleCell", LSTM: lstm, GRU: "GRUCell"}
    name = counterpart(where, cell, params, names, "flax.nnx has no such cell; nnx_cell makes a module of it")
    if name == "GRUCell":
        if isinstance(params.b_hn, jax.core.Tracer):
            raise ValueError(
                f"{where}: b_hn must be known, to see that it is zero, got a traced array; convert outside of jit."
            )
        if np.any(np.asarray(params.b_hn) != 0):
            refuse(where, "a GRU with b_hn that is not zero", "the GRUCell of flax.nnx lacks it; nnx_cell keeps it")
    dtype = params.w_ih.dtype
    zeros = nnx.initializers.zeros_init()
    module = getattr(nnx, name)(
        params.w_ih.shape[0],
        cell.hidden_size,
        dtype=dtype,
        param_dtype=dtype,
        kernel_init=zeros,
        recurrent_kernel_init=zeros,
        rngs=nnx.Rngs(0),
        **({"activation_fn": nnx.relu} if name == "SimpleCell" and cell.activation == "relu" else {}),
    )
    if name == "LSTMCell":
        for layers, leaf, array in (
            (_INPUTS, "kernel", params.w_ih),
            (_STATES, "kernel", params.w_hh),
            (_STATES, "bias", params.b),
        ):
            for layer, gate in zip(layers, jnp.split(jnp.asarray(array), 4, axis=-1)):
                getattr(getattr(module, layer), leaf)[...] = gate
        return module
    biased = module.dense_h if name == "OptimizedLSTMCell" else module.dense_i
    module.dense_i.kernel[...] = jnp.asarray(params.w_ih)
    module.dense_h.kernel[...] = jnp.asarray(params.w_hh)
    biased.bias[...] = jnp.asarray(params.b)
    return module


def nnx_cell(
    cell: Any, input_size: int | None = None, *, params: Any = None, rngs: Any = None, param_dtype: Any = jnp.float32
) -> Any:
    """Any cell of rnnjax as a cell of flax.nnx, for ``flax.nnx.RNN`` or to be called step by step.

    Its attribute ``params`` is the parameters of rnnjax with an ``nnx.Param`` at every leaf, so ``nnx.state``,
    ``nnx.split`` and ``nnx.Optimizer`` see them by their names; ``module.weights()`` is the same as plain arrays. Its
    carry is the state of rnnjax, for an LSTM ``(h, c)``, and starts as `rnnjax.start_state`, learned where the cell
    learns it.

    Args:
        cell: any cell, also a stack.
        input_size: I, for new parameters.
        params: of the cell, instead of new ones.
        rngs: ``nnx.Rngs``, of which new parameters use the stream ``params``.
        param_dtype: of new parameters.

    Returns:
        A ``flax.nnx.RNNCellBase``.

    Raises:
        TypeError: if ``cell`` is none.
        ValueError: unless there is either ``input_size`` with ``rngs`` or ``params`` of this cell.

    >>> import jax.numpy as jnp, rnnjax
    >>> from flax import nnx
    >>> rnn = nnx.RNN(nnx_cell(rnnjax.cells.IndRNN(4), 3, rngs=nnx.Rngs(0)))
    >>> rnn(jnp.ones((2, 7, 3))).shape, rnn.cell.params.w_ih.shape
    ((2, 7, 4), (3, 4))
    """
    check_host_cell("nnx_cell", cell)
    from rnnjax.interop._nnx_modules import NnxCell

    key = None if rngs is None else rngs.params()
    return NnxCell(cell, make_params("nnx_cell", cell, input_size, params, key, param_dtype))


def nnx_layer(
    cell: Any,
    input_size: int | None = None,
    *,
    params: Any = None,
    rngs: Any = None,
    time_major: bool = False,
    return_carry: bool = False,
    reverse: bool = False,
    keep_order: bool = False,
    implementation: str | None = None,
    remat: bool | int | str | None = None,
    param_dtype: Any = jnp.float32,
) -> Any:
    """A cell over whole sequences by `rnnjax.unroll`, as a module of flax.nnx in the place of ``flax.nnx.RNN``.

    It is called as ``flax.nnx.RNN`` is, also by ``flax.nnx.Bidirectional``: ``layer(xs, initial_carry=None,
    seq_lengths=None, ...)``, and takes ``resets`` besides. Only what `rnnjax.unroll` promises is different: outputs in
    the padding are zeros, a row of length 0 keeps its carry, and NaN in the padding goes nowhere. Its parameters are
    held as in `nnx_cell`.

    Args:
        cell: any cell, also a stack.
        input_size: I, for new parameters.
        params: of the cell, instead of new ones.
        rngs: ``nnx.Rngs``, of which new parameters use the stream ``params``.
        time_major: whether xs are ``[T, *batch, I]``, and not ``[*batch, T, I]``.
        return_carry: whether it returns ``(carry, ys)``, and not ``ys``.
        reverse: whether time runs backwards.
        keep_order: whether then ``ys`` are in the order of ``xs``, and not in that of their computation.
        implementation: of `rnnjax.unroll`.
        remat: of `rnnjax.unroll`.
        param_dtype: of new parameters.

    Returns:
        A ``flax.nnx.Module``.

    Raises:
        TypeError: if ``cell`` is none.
        ValueError: unless there is either ``input_size`` with ``rngs`` or ``params`` of this cell.

    >>> import jax.numpy as jnp, rnnjax
    >>> from flax import nnx
    >>> layer = nnx_layer(rnnjax.LSTM(4), 3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 7, 3))).shape, layer.weights().w_hh.shape
    ((2, 7, 4), (4, 16))
    """
    check_host_cell("nnx_layer", cell)
    from rnnjax.interop._nnx_modules import NnxLayer

    key = None if rngs is None else rngs.params()
    return NnxLayer(
        cell,
        make_params("nnx_layer", cell, input_size, params, key, param_dtype),
        time_major=time_major,
        return_carry=return_carry,
        reverse=reverse,
        keep_order=keep_order,
        implementation=implementation,
        remat=remat,
    )

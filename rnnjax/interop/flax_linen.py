"""flax.linen: its cells to ours and back, and our cells as its modules."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cells import GRU, LSTM, MGU, ConvLSTM, Elman
from rnnjax.interop._common import (
    built,
    check_options,
    check_params,
    check_shape,
    counterpart,
    elman_activation,
    fold_residual,
    image_sizes,
    refuse,
    reorder_gates,
    shift_forget,
)
from rnnjax.interop._hosts import check_host_cell
from rnnjax.kinds import public

__all__ = ["from_flax", "linen_cell", "linen_layer", "to_flax"]

_GATES = {  # what the names of a gate's two layers have behind i and h, in our order of gates
    "SimpleCell": ("",),
    "LSTMCell": ("i", "f", "g", "o"),
    "OptimizedLSTMCell": ("i", "f", "g", "o"),
    "GRUCell": ("r", "z", "n"),
    "MGUCell": ("f", "n"),
}
_SWAP_FG = (0, 2, 1, 3)  # gates i, g, f, o there and i, f, g, o here


@public
def from_flax(
    module: Any, params: Mapping[str, Any], *, spatial_shape: tuple[int, ...] | None = None
) -> tuple[Any, Any]:
    """A cell of flax.linen with its parameters, as a cell of rnnjax with the same outputs, states and gradients.

    ================================  =====================================================================
    ``SimpleCell``                    `rnnjax.Elman`; ``residual=True`` adds an identity to ``w_hh``
    ``LSTMCell, OptimizedLSTMCell``   `rnnjax.LSTM`
    ``GRUCell``                       `rnnjax.GRU`
    ``MGUCell``                       `rnnjax.cells.MGU`, with or without its reset gate
    ``ConvLSTMCell``                  `rnnjax.ConvLSTM`; the 1 that flax adds to f in every step goes into ``b``
    ================================  =====================================================================

    The carry of flax is ``(c, h)``, where a state here is ``(h, c)``.

    Args:
        module: the cell, or the name of its class, which stands for one with the default options.
        params: its parameters, also as variables ``{"params": ...}``.
        spatial_shape: the size of the images, for ``ConvLSTMCell``.

    Returns:
        The cell and its parameters.

    Raises:
        ValueError: for a module or options without a counterpart, or parameters of another module.
        TypeError: if ``module`` is neither a module nor a name.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> module = nn.GRUCell(features=4)
    >>> variables = module.init(jax.random.key(0), jnp.zeros((2, 4)), jnp.zeros((2, 3)))
    >>> cell, params = from_flax(module, variables)
    >>> cell.hidden_size, params.w_ih.shape
    (4, (3, 12))
    """
    where = "from_flax"
    name = _name_of(where, module)
    tree = params.get("params", params)
    if name == "ConvLSTMCell":
        return _from_conv_lstm(where, module, tree, spatial_shape)
    names = _GATES[name]
    read = functools.partial(_read, where, tree)
    kernels, recurrent = ([read(side + gate, "kernel") for gate in names] for side in "ih")
    size = recurrent[0].shape[-1]
    input_size = kernels[0].shape[0]
    for gate, kernel, w in zip(names, kernels, recurrent):
        check_shape(where, f"params['i{gate}']['kernel']", kernel, (input_size, size), "as the first gate has it")
        check_shape(where, f"params['h{gate}']['kernel']", w, (size, size), "as the first gate has it")
    if not isinstance(module, str):
        check_options(where, module, kernels[0].dtype)
        check_shape(where, f"params['h{names[0]}']['kernel']", recurrent[0], (module.features,) * 2, "module.features")
    # Of a gate's two layers one has the bias; the candidate of GRU and MGU has two.
    side = "h" if name.endswith("LSTMCell") else "i"
    biases = [read(side + gate, "bias") for gate in names]
    w_ih, w_hh, b = (jnp.concatenate(leaves, axis=-1) for leaves in (kernels, recurrent, biases))
    if name == "SimpleCell":
        return built(Elman(size, activation=elman_activation(module)), w_ih, fold_residual(module, w_hh), b)
    if name == "GRUCell":
        return built(GRU(size), w_ih, w_hh, b, jnp.asarray(read("hn", "bias")))
    if name == "MGUCell":
        resets = "bias" in tree["hn"] if isinstance(module, str) else module.reset_gate
        b_hn = jnp.asarray(read("hn", "bias")) if resets else None
        return built(MGU(size, reset_gate=resets), w_ih, w_hh, b, b_hn)
    return built(LSTM(size), w_ih, w_hh, b)


@public
def to_flax(cell: Any, params: Any, *, optimized: bool = True) -> tuple[Any, dict[str, Any]]:
    """A cell of rnnjax as the cell of flax.linen with the same outputs, states and gradients; see `from_flax`.

    Args:
        cell: an `Elman`, `LSTM`, `GRU`, `MGU` or `ConvLSTM`.
        params: its parameters.
        optimized: of an LSTM, whether to make an ``OptimizedLSTMCell`` or an ``LSTMCell``; they share parameters.

    Returns:
        The module and its parameters: ``module.apply({"params": params}, carry, x)``.

    Raises:
        ValueError: for a cell that flax has not.

    >>> import jax, rnnjax
    >>> cell = rnnjax.LSTM(4)
    >>> module, params = to_flax(cell, cell.init(jax.random.key(0), input_size=3))
    >>> type(module).__name__, params["hf"]["bias"].tolist()
    ('OptimizedLSTMCell', [1.0, 1.0, 1.0, 1.0])
    """
    import flax.linen as linen  # not at the top: importing this room imports no framework

    where = "to_flax"
    if type(cell) is ConvLSTM:
        check_params(where, cell, params)
        options = {"kernel_size": cell.kernel_shape, "param_dtype": params.w_ih.dtype}
        bias = reorder_gates(shift_forget(params.b, -1.0), _SWAP_FG)
        return linen.ConvLSTMCell(cell.hidden_size, **options), {
            "ih": {"kernel": reorder_gates(params.w_ih, _SWAP_FG), "bias": bias},
            "hh": {"kernel": reorder_gates(params.w_hh, _SWAP_FG), "bias": jnp.zeros_like(bias)},
        }
    lstm = "OptimizedLSTMCell" if optimized else "LSTMCell"
    names: dict[type, str] = {Elman: "SimpleCell", LSTM: lstm, GRU: "GRUCell", MGU: "MGUCell"}
    reason = "flax.linen has no such cell; linen_cell makes a module of it"
    name = counterpart(where, cell, params, names, reason)
    gates = _GATES[name]
    w_ih, w_hh, b = (jnp.split(jnp.asarray(leaf), len(gates), axis=-1) for leaf in (params.w_ih, params.w_hh, params.b))
    tree = {"i" + gate: {"kernel": w} for gate, w in zip(gates, w_ih)}
    tree |= {"h" + gate: {"kernel": w} for gate, w in zip(gates, w_hh)}
    side = "h" if name.endswith("LSTMCell") else "i"
    for gate, bias in zip(gates, b):
        tree[side + gate]["bias"] = bias
    if getattr(params, "b_hn", None) is not None:
        tree["hn"]["bias"] = jnp.asarray(params.b_hn)
    options = {"param_dtype": params.w_ih.dtype}
    if name == "SimpleCell" and cell.activation == "relu":
        options["activation_fn"] = linen.relu
    if name == "MGUCell":
        options["reset_gate"] = cell.reset_gate
    return getattr(linen, name)(cell.hidden_size, **options), tree


def linen_cell(cell: Any, *, param_dtype: Any = jnp.float32, name: str | None = None) -> Any:
    """Any cell of rnnjax as a cell of flax.linen, for ``flax.linen.RNN`` or to be called step by step.

    Its parameters are declared with ``self.param``, one for each field of ours, and initialised by ``cell.init``; so
    the tree of its variables is ``{"params": flax.serialization.to_state_dict(params)}``, and `from_state_dict` of the
    same package leads back. Its carry is the state of rnnjax, for an LSTM ``(h, c)``, and starts as
    ``cell.initial_state``.

    Args:
        cell: any cell, also a stack; not one that learns its initial state, which the carry of linen cannot.
        param_dtype: of the parameters and of the initial carry.
        name: of the module.

    Returns:
        A ``flax.linen.RNNCellBase``.

    Raises:
        TypeError: if ``cell`` is none.
        ValueError: if it learns its initial state.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, rnnjax
    >>> rnn = nn.RNN(linen_cell(rnnjax.cells.IndRNN(4)))
    >>> ys, variables = rnn.init_with_output(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> ys.shape, variables["params"]["cell"]["w_ih"].shape
    ((2, 7, 4), (3, 4))
    """
    check_host_cell("linen_cell", cell, layer="linen_layer")
    from rnnjax.interop._linen_modules import LinenCell

    return LinenCell(cell=cell, param_dtype=param_dtype, name=name)


def linen_layer(
    cell: Any,
    *,
    time_major: bool = False,
    return_carry: bool = False,
    reverse: bool = False,
    keep_order: bool = False,
    implementation: str | None = None,
    remat: bool | int | str | None = None,
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """A cell over whole sequences by `rnnjax.unroll`, as a module of flax.linen in the place of ``flax.linen.RNN``.

    It is called as ``flax.linen.RNN`` is, also by ``flax.linen.Bidirectional``: ``layer(xs, initial_carry=None,
    seq_lengths=None, ...)``, and takes ``resets`` besides. Only what `rnnjax.unroll` promises is different: outputs in
    the padding are zeros, a row of length 0 keeps its carry, and NaN in the padding goes nowhere. Its parameters are
    those of `linen_cell`, but without a level ``"cell"``.

    Args:
        cell: any cell, also a stack, or one that learns its initial state.
        time_major: whether xs are ``[T, *batch, I]``, and not ``[*batch, T, I]``.
        return_carry: whether it returns ``(carry, ys)``, and not ``ys``.
        reverse: whether time runs backwards.
        keep_order: whether then ``ys`` are in the order of ``xs``, and not in that of their computation.
        implementation: of `rnnjax.unroll`.
        remat: of `rnnjax.unroll`.
        param_dtype: of the parameters and of the initial carry.
        name: of the module.

    Returns:
        A ``flax.linen.Module``.

    Raises:
        TypeError: if ``cell`` is none.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> layer = linen_layer(rnnjax.LSTM(4), return_carry=True)
    >>> (carry, ys), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> ys.shape, carry.c.shape, sorted(variables["params"])
    ((2, 7, 4), (2, 4), ['b', 'w_hh', 'w_ih'])
    """
    check_host_cell("linen_layer", cell)
    from rnnjax.interop._linen_modules import LinenLayer

    return LinenLayer(
        cell=cell,
        time_major=time_major,
        return_carry=return_carry,
        reverse=reverse,
        keep_order=keep_order,
        implementation=implementation,
        remat=remat,
        param_dtype=param_dtype,
        name=name,
    )


def _name_of(where: str, module: Any) -> str:
    name = module if isinstance(module, str) else type(module).__name__
    known = (*_GATES, "ConvLSTMCell")
    if isinstance(module, type):
        raise TypeError(f"{where}: module must be a cell or the name of its class, got a class; make one.")
    if not isinstance(module, str) and not type(module).__module__.startswith("flax.linen"):
        raise TypeError(f"{where}: module must be a cell of flax.linen or the name of its class, got {name}.")
    if name == "RNN":
        raise ValueError(f"{where}: module must be a cell, got an RNN; pass its cell and params['cell'].")
    if name not in known:
        refuse(where, f"flax.linen.{name}", f"of the cells of flax, rnnjax has {', '.join(known)}")
    return name


def _from_conv_lstm(where: str, module: Any, tree: Any, spatial_shape: Any) -> tuple[Any, Any]:
    w_ih, w_hh = (_read(where, tree, key, "kernel") for key in ("ih", "hh"))
    if not isinstance(module, str):
        check_options(where, module, w_ih.dtype)
        axes = len(module.kernel_size)
        if module.strides not in (None, 1, (1,) * axes, [1] * axes) or module.padding != "SAME":
            refuse(
                where,
                f"ConvLSTMCell with strides={module.strides} and padding={module.padding!r}",
                "rnnjax.ConvLSTM steps by 1 and pads to the same size",
            )
    size = w_hh.shape[-1] // 4
    check_shape(where, "params['hh']['kernel']", w_hh, (*w_ih.shape[:-2], size, 4 * size), "from its own last axis")
    cell = image_sizes(where, spatial_shape, tuple(w_ih.shape[:-2]), size)
    bias = sum((tree[key].get("bias", 0) for key in ("ih", "hh")), jnp.zeros((4 * size,), w_ih.dtype))
    w_ih, w_hh, b = (reorder_gates(jnp.asarray(leaf), _SWAP_FG) for leaf in (w_ih, w_hh, bias))
    return built(cell, w_ih, w_hh, shift_forget(b, 1.0))


def _read(where: str, tree: Mapping[str, Any], name: str, leaf: str) -> jax.Array:
    part = tree.get(name)
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: params must hold {name!r}, got {sorted(tree)}; take the params of this cell alone.")
    if leaf not in part:
        raise ValueError(f"{where}: params[{name!r}] must hold {leaf!r}, got {sorted(part)}; take params of this cell.")
    return part[leaf]

"""What the converters of all frameworks share: refusals, gate orders, layers of networks, and options of cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import describe, input_size_of, named_leaves, param_shapes
from rnnjax.cells import ConvLSTM
from rnnjax.network import Network
from rnnjax.networks import Bidirectional, Stack
from rnnjax.networks.bidirectional import BidirectionalParams, Directions
from rnnjax.networks.stack import StackParams

__all__ = [
    "Layer",
    "as_array",
    "built",
    "check_options",
    "check_params",
    "check_shape",
    "concatenate",
    "counterpart",
    "elman_activation",
    "fold_residual",
    "image_sizes",
    "is_of",
    "join_layers",
    "join_states",
    "layers_of",
    "refuse",
    "reorder_gates",
    "shift_forget",
]


Layer = tuple[tuple[Any, Any], ...]  # (cell, its params or its state) of each direction: one or two of them


def is_of(kind: type, *packages: str) -> bool:
    """Whether a class, or one that it comes from, is of one of these packages; nothing is imported to know that."""
    return any(base.__module__.partition(".")[0] in packages for base in kind.__mro__)


def refuse(where: str, what: str, reason: str) -> NoReturn:
    """Raises the ValueError for a layer that has no exact counterpart on the other side."""
    raise ValueError(f"{where}: {what} has no exact counterpart: {reason}.")


def as_array(where: str, name: str, value: Any) -> Any:
    """``value`` as a NumPy array with its dtype, also a tensor of torch in bfloat16; a tracer of JAX stays one."""
    if isinstance(value, jax.core.Tracer):
        return value
    if hasattr(value, "detach"):  # torch, which knows no way from its bfloat16 to NumPy
        tensor = value.detach().cpu()
        narrow = str(tensor.dtype) == "torch.bfloat16"
        array = tensor.float().numpy().astype(jnp.bfloat16) if narrow else tensor.numpy()
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):  # keys of random numbers, and lists of several lengths
            raise TypeError(f"{where}: {name} must be an array of a floating dtype, got {describe(value)}.") from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{where}: {name} must be an array of a floating dtype, got {describe(array)}.")
    return array


def concatenate(arrays: Sequence[Any]) -> Any:
    """Along the first axis; of NumPy unless one is an array of JAX."""
    xp: Any = jnp if any(isinstance(array, jax.Array) for array in arrays) else np
    return xp.concatenate(arrays)


def check_shape(where: str, name: str, array: Any, shape: Sequence[int], because: str) -> None:
    """Raises a ValueError that names the array unless it has the shape; ``because`` says where the shape is from."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(
            f"{where}: {name} must have shape [{', '.join(map(str, shape))}] ({because}), got {describe(array)}."
        )


def reorder_gates(array: Any, order: Sequence[int]) -> Any:
    """Gate block k of the result is block ``order[k]`` of ``array``; of NumPy for NumPy, else of JAX.

    >>> reorder_gates(np.array([[1, 1, 2, 2, 3, 3]]), (1, 0, 2)).tolist()
    [[2, 2, 1, 1, 3, 3]]
    """
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    blocks = xp.split(array, len(order), axis=-1)
    return xp.concatenate([blocks[k] for k in order], axis=-1)


def check_params(where: str, cell: Any, params: Any, *, of: str = "init") -> None:
    """Raises unless ``params`` is a tree of floating arrays as ``init`` of the cell makes it, or ``initial_state``."""
    made = f"{where}: it takes what {type(cell).__name__}.{of} makes"
    if params is None or not hasattr(params, "_fields"):
        raise TypeError(f"{made}, got {describe(params)}.")
    wanted: Any = jax.tree.structure(param_shapes(cell, 1) if of == "init" else jax.eval_shape(cell.initial_state))
    if jax.tree.structure(params) != wanted:
        raise ValueError(f"{made}, got {type(params).__name__} of another one.")
    leaves = {name: as_array(where, name, leaf) for name, leaf in named_leaves(params).items()}
    if of == "init":
        size, _ = input_size_of(cell, leaves)
        wants = jax.tree.leaves(param_shapes(cell, max(size, 1)))
        for (name, leaf), want in zip(leaves.items(), wants, strict=True):
            check_shape(where, name, leaf, want.shape, f"from {cell!r}")


def counterpart(where: str, cell: Any, params: Any, names: Mapping[type, str], reason: str) -> str:
    """What the other side calls the cell, whose params are checked; refuses a cell that has no name there."""
    if type(cell) not in names:
        refuse(where, repr(cell), reason)
    check_params(where, cell, params)
    return names[type(cell)]


def built(cell: Any, *leaves: Any) -> tuple[Any, Any]:
    """The cell, and its parameters from these leaves, in their order."""
    return cell, type(param_shapes(cell, 1))(*leaves)


def layers_of(where: str, cell: Any, tree: Any, concatenates: str = "") -> list[Layer]:
    """The layers of a cell or network from the bottom up, each with ``(cell, part of tree)`` of its directions.

    A cell is one layer; a `Stack` is its cells, also those of stacks within it; a `Bidirectional` is its pairs.
    ``tree`` is the parameters or a state; ``concatenates`` names a framework that can do nothing else with the outputs
    of two directions.

    Raises:
        ValueError: for directions that such a framework does not merge, for residual connections or norms, which no
            other framework has between its layers, or if ``tree`` belongs to another network.
    """
    if isinstance(cell, Bidirectional):
        if concatenates and cell.merge != "concat":
            refuse(where, repr(cell), f"{concatenates} concatenates the two directions")
        parts = [part[1:] for part in _parts(where, cell, tree)]
        return list(zip(parts[::2], parts[1::2], strict=True))
    if not isinstance(cell, Stack):
        return [((cell, tree),)]
    if cell.residual or cell.norm is not None:
        refuse(where, repr(cell), "layers of other frameworks have neither residual connections nor norms between them")
    inside = _parts(where, cell, tree)
    return [layer for _, inner, part in inside for layer in layers_of(where, inner, part, concatenates)]


def _parts(where: str, net: Network, tree: Any) -> tuple[tuple[str, Any, Any], ...]:
    try:
        return net.parts(tree)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def join_layers(layers: Sequence[Layer], merge: Any = "concat") -> tuple[Any, Any]:
    """The opposite of `layers_of`: the cell or network, and its parameters.

    One direction gives the cell itself for one layer and else a `Stack`, two directions a `Bidirectional`.
    """
    cells, params = (tuple(tuple(part[k] for part in layer) for layer in layers) for k in (0, 1))
    if len(cells[0]) == 2:
        return Bidirectional(cells, merge=merge), BidirectionalParams(tuple(Directions(*pair) for pair in params))
    if len(cells) == 1:
        return cells[0][0], params[0][0]
    return Stack(tuple(cell for (cell,) in cells)), StackParams(tuple(p for (p,) in params))


def join_states(cell: Any, states: Iterable[Any]) -> Any:
    """A state of ``cell`` from those of its layers and directions, in the order in which `layers_of` lists them."""
    states = iter(states)

    def join(cell: Any) -> Any:
        return cell.join([join(part) for _, part, _ in cell.parts(None)]) if isinstance(cell, Network) else next(states)

    return join(cell)


_TANH = (jnp.tanh, jax.nn.tanh, jax.lax.tanh)
_SIGMOID = (jax.nn.sigmoid, jax.lax.logistic)
_ZEROS = (None, jax.nn.initializers.zeros)


def check_options(where: str, module: Any, dtype: Any) -> None:
    """Refuses a cell of flax whose options make it another function than the cell of rnnjax.

    Args:
        where: the function that converts.
        module: a cell of linen or nnx.
        dtype: of its parameters.

    Raises:
        ValueError: for other activations, a carry that does not start at zero, or computations in another dtype.
    """
    name = type(module).__name__
    if getattr(module, "gate_fn", _SIGMOID[0]) not in _SIGMOID:
        refuse(where, f"{name} with gate_fn={_name(module.gate_fn)}", "gates of rnnjax are sigmoids")
    activation = getattr(module, "activation_fn", _TANH[0])
    if activation not in _TANH and not (name == "SimpleCell" and activation is jax.nn.relu):
        allowed = "tanh or relu" if name == "SimpleCell" else "tanh"
        refuse(where, f"{name} with activation_fn={_name(activation)}", f"the activation of its cell is {allowed}")
    if module.carry_init not in _ZEROS:
        refuse(
            where,
            f"{name} with carry_init={_name(module.carry_init)}",
            "states of rnnjax start at zero; make the module without it, and pass that carry as the state",
        )
    if module.dtype is not None and jnp.dtype(module.dtype) != jnp.dtype(dtype):
        refuse(
            where,
            f"{name} with dtype={jnp.dtype(module.dtype).name} and parameters of {jnp.dtype(dtype).name}",
            "cells of rnnjax compute in the dtype of their parameters; convert one with dtype=None",
        )


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or repr(function)


def elman_activation(module: Any) -> Literal["tanh", "relu"]:
    """The activation of a SimpleCell that passed `check_options`; tanh for the name of the class alone."""
    return "relu" if getattr(module, "activation_fn", None) is jax.nn.relu else "tanh"


def fold_residual(module: Any, w_hh: Any) -> Any:
    """With ``residual=True`` a SimpleCell adds h before its activation: an identity on top of ``w_hh``."""
    return w_hh + jnp.eye(w_hh.shape[0], dtype=w_hh.dtype) if getattr(module, "residual", False) else w_hh


def shift_forget(b: Any, by: float) -> Any:
    """Adds to the bias of f, of gates ``i, f, g, o``: what others add in every step, is part of ``b`` here."""
    size = b.shape[0] // 4
    return jnp.asarray(b).at[size : 2 * size].add(by)


def image_sizes(where: str, spatial_shape: Any, kernel: tuple[int, ...], hidden_size: int) -> ConvLSTM:
    """The convolutional LSTM for images of a size that the parameters do not tell.

    Raises:
        ValueError: if the size is missing, or the kernel is even, which has no middle.
    """
    if spatial_shape is None:
        raise ValueError(
            f"{where}: spatial_shape must be given for a convolutional LSTM, whose parameters do not tell the size of "
            f"its images, got None; pass a tuple of {len(kernel)} sizes."
        )
    if any(size % 2 == 0 for size in kernel):
        refuse(where, f"a convolutional LSTM with the kernel {kernel}", "kernels of rnnjax.ConvLSTM have odd sizes")
    return ConvLSTM(hidden_size, spatial_shape=tuple(spatial_shape), kernel_shape=kernel)

"""`unroll`: a cell over a sequence, with one semantics for every implementation."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import AffineCell, Cell, batch_shape, describe, input_shape, start_state
from rnnjax.checks import check_ints
from rnnjax.engines import Controls, choose, engines, make_job, split_over_devices
from rnnjax.kinds import public

__all__ = ["check_resets", "run", "unroll"]


@public(but=("cell",))
def unroll(
    cell: Cell,
    params: Any,
    state: Any,
    xs: jax.Array,
    *,
    lengths: jax.Array | None = None,
    valid: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    implementation: str | None = None,
    remat: bool | int | str | None = None,
) -> tuple[Any, jax.Array]:
    r"""Runs a cell over a sequence: ``state[t+1], ys[t] = cell.step(params, state[t], xs[t])``.

    Args:
        cell: any cell, also a `Stack`.
        params: from ``cell.init``.
        state: from ``cell.initial_state(batch_shape)``, or the final state of an earlier call; ``batch_shape``
            may have any number of axes, also none.
        xs: ``[T, *batch, I]``, time first; T may be 0. A cell with a method `input_shape` says what stands for I.
        lengths: int ``[*batch]``. Steps at and past a row's length leave its state alone and emit zeros, so
            the final state is that of the last valid step, and length 0 returns the state passed in. What
            stands in the padding of ``xs``, also NaN, reaches no output and no gradient.
        valid: bool ``[T, *batch]``, a mask of any pattern: padding on the left, gaps. Steps where it is not set are
            padding, as those past a length are; with ``lengths`` too, a step needs both.
        resets: bool ``[T, *batch]``; a set flag restores ``start_state(cell, params)``, that is ``cell.initial_state``
            unless the cell learns another, *before* the step it marks. A flag in the padding does nothing.
        reverse: time runs backwards, from each row's last valid step to step 0; ``ys[t]`` still belongs to
            ``xs[t]``, and padding stays where it is.
        implementation: a name from ``rnnjax.implementations(cell)``; None takes the best one for the cell, the
            backend and the dtype. ``"scan"`` is the reference, and the one that has forward-mode derivatives.
        remat: checkpointing through time. None keeps everything for the backward pass; True keeps the state
            every sqrt(T) steps and computes the rest again, so memory grows with sqrt(T); an int sets the
            distance; an implementation may know names of its own.

    Returns:
        The final state, with the structure, shapes and dtypes of ``state``, and ``ys [T, *batch, H]``.

    Raises:
        ValueError: for shapes, lengths or resets that do not fit, or an unknown implementation.
        TypeError: if ``lengths`` are not integers, ``valid`` or ``resets`` not bool, ``xs`` not of a floating dtype,
            ``remat`` is of no kind listed, or ``cell`` is a class.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.LSTM(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state = cell.initial_state((2,))
    >>> state, ys = rnnjax.unroll(cell, params, state, jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))
    >>> ys.shape, bool((ys[4:, 1] == 0).all()), bool((state.h[1] == ys[3, 1]).all())
    ((7, 2, 5), True, True)
    """
    xs = jnp.asarray(xs)
    batch = _check_state(cell, state)
    _check_xs(cell, params, xs, batch)
    _check_params(cell, params, xs)
    if lengths is not None:
        lengths = _check_lengths(lengths, xs.shape[0], batch)
    if valid is not None:
        valid = check_resets("unroll", valid, xs.shape[: 1 + len(batch)], name="valid")
    if resets is not None:
        resets = check_resets("unroll", resets, xs.shape[: 1 + len(batch)])
    remat = _check_remat(remat)
    if implementation is not None or isinstance(remat, str):  # what may be refused, before anything is traced
        controls = Controls(valid, resets, None, lengths if valid is None else None)
        choose(make_job(cell, params, state, xs, controls, reverse=reverse, remat=remat), implementation)
    return _unroll(cell, params, state, xs, lengths, valid, resets, reverse, implementation, remat, engines())


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "implementation", "remat", "among"))
def _unroll(cell, params, state, xs, lengths, valid, resets, reverse, implementation, remat, among):
    del among  # where there are other engines, the choice among them may be another
    batch = batch_shape(cell, state)
    steps = xs.shape[: 1 + len(batch)]
    if lengths is not None:
        lengths = jnp.clip(lengths.astype(jnp.int32), 0, steps[0])  # traced values could not be checked
        inside = jnp.arange(steps[0]).reshape(-1, *(1,) * len(batch)) < lengths  # [T, *batch]
        lengths, valid = (lengths, inside) if valid is None else (None, inside & valid)
    if valid is not None:
        # Zeros instead of whatever stands in the padding: a NaN would pass through `where` into gradients.
        xs = jnp.where(_as_wide(valid, xs), xs, jnp.zeros((), xs.dtype))
    fresh = None
    if resets is not None:
        fresh = jax.tree.map(lambda new, old: new.astype(old.dtype), start_state(cell, params, batch, None), state)
    controls = Controls(valid, resets, fresh, lengths)
    # In reverse, too, masks are enough: from the last step on, the state waits until a row's valid part begins.
    state, ys = run(cell, params, state, xs, controls, implementation, reverse=reverse, remat=remat)
    if valid is not None:
        ys = jnp.where(_as_wide(valid, ys), ys, jnp.zeros((), ys.dtype))
    return state, ys


def run(
    cell: Cell,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    implementation: str | None,
    *,
    reverse: bool = False,
    remat: Any = None,
) -> tuple[Any, jax.Array]:
    """`unroll` below its checks: what composite cells call for their parts."""
    job = make_job(cell, params, state, xs, controls, reverse=reverse, remat=remat)
    engine = choose(job, implementation)
    if implementation is None:
        engine = split_over_devices(engine, job, params)
    return engine.run(cell, params, state, xs, controls, reverse=reverse, remat=remat)


def _as_wide(mask, array):
    return mask.reshape(mask.shape + (1,) * (array.ndim - mask.ndim))


def _check_state(cell, state):
    """The batch axes of a state that fits the cell."""
    if isinstance(cell, type):
        raise TypeError(f"unroll: cell must be an instance, got the class {cell.__name__}; make one.")
    name = type(cell).__name__
    if not hasattr(cell, "step"):
        more = "; run it with unroll_bidirectional" if hasattr(cell, "merge") else ""
        raise TypeError(f"unroll: cell must have a method step, got {name}{more}.")
    try:
        hash(cell)
    except TypeError as error:
        raise TypeError(
            f"unroll: cell must be hashable, as compiled programs are found by it, got {name} ({error}); make it a "
            "dataclass with frozen=True and keep arrays and lists out of its fields."
        ) from None
    structure: Any = jax.tree.structure(state)
    if structure != jax.tree.structure(jax.eval_shape(cell.initial_state)):
        raise ValueError(
            f"unroll: state must be what {name}.initial_state makes, got {type(state).__name__}; "
            "start from cell.initial_state(batch_shape)."
        )
    batch = batch_shape(cell, state)
    expected = jax.eval_shape(lambda: cell.initial_state(batch))
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        if want.shape != got.shape:
            raise ValueError(
                f"unroll: every leaf of the state must have the shape of {name}.initial_state({batch}), "
                f"{list(want.shape)} here, got {describe(got)}."
            )
        if jnp.issubdtype(want.dtype, jnp.floating) and not jnp.issubdtype(got.dtype, jnp.floating):
            raise TypeError(f"unroll: every leaf of the state must be of a floating dtype, got {describe(got)}.")
    return batch


def _check_xs(cell, params, xs, batch):
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise TypeError(f"unroll: xs must be of a floating dtype, got {describe(xs)}; one-hot encode or embed symbols.")
    axes = ", ".join(["T", *map(str, batch)])
    cell, params, source = _first_to_read(cell, params)
    weights = getattr(params, "w_ih", None)
    if weights is not None and isinstance(cell, AffineCell):
        width = cell.num_gates * cell.hidden_size
        if weights.ndim != 2 or weights.shape[1] != width:
            raise ValueError(
                f"unroll: {source}.w_ih must have shape [I, {width}] for {type(cell).__name__} with hidden_size = "
                f"{cell.hidden_size}, got {describe(weights)}; take the params of this cell."
            )
    if hasattr(cell, "input_shape"):
        own = input_shape(cell, (xs.shape or (1,))[-1] if weights is None else weights.shape[-2])
        if xs.shape[1:] != (*batch, *own):
            features = ", ".join([*map(str, own[:-1]), "I"])
            raise ValueError(
                f"unroll: xs must have shape [{axes}, {features}] with I = {own[-1]} for {type(cell).__name__} and the "
                f"batch axes of the state, got {describe(xs)}."
            )
        return
    if weights is not None and xs.shape[1:] != (*batch, weights.shape[0]):
        batch_first = len(batch) == 1 and xs.ndim == 3 and (xs.shape[0], xs.shape[2]) == (*batch, weights.shape[0])
        hint = "; time comes first, so pass jnp.swapaxes(xs, 0, 1)" if batch_first else ""
        raise ValueError(
            f"unroll: xs must have shape [{axes}, I] with I = {weights.shape[0]} (from {source}.w_ih) and the "
            f"batch axes of the state, got {describe(xs)}{hint}."
        )
    if xs.ndim < 2 + len(batch) or xs.shape[1 : 1 + len(batch)] != batch:
        raise ValueError(f"unroll: xs must have shape [{axes}, I], as the state has, got {describe(xs)}.")


def _check_params(cell, params, xs):
    """Params of another cell or size may compute something all the same: JAX clamps indices and broadcasts."""
    _, first, _ = _first_to_read(cell, params)
    weights = getattr(first, "w_ih", None)
    expected = _params_of(cell, xs.shape[-1] if weights is None else weights.shape[-2])
    if expected is None:
        return
    name = type(cell).__name__
    structure: Any = jax.tree.structure(params)
    if structure != jax.tree.structure(expected):
        raise ValueError(
            f"unroll: params must be what the init of this {name} makes, got {type(params).__name__} with "
            f"{structure.num_leaves} arrays, not {type(expected).__name__} with {len(jax.tree.leaves(expected))}."
        )
    for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(params), strict=True):
        if jnp.shape(got) != want.shape:
            raise ValueError(
                f"unroll: params{jax.tree_util.keystr(path)} must have shape {list(want.shape)} for this {name}, got "
                f"{describe(got)}; take the params of this cell."
            )


@functools.lru_cache(maxsize=1024)
def _params_of(cell, input_size):
    """The shapes of the parameters; None for a cell that cannot say, without a number that is a size."""
    if not isinstance(input_size, int) or input_size < 1:
        return None
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))


def _first_to_read(cell, params):
    """The cell inside of a composite one that gets the input, its parameters, and their path."""
    source = "params"
    while True:
        if hasattr(cell, "cells") and hasattr(params, "layers"):
            cell, params, source = cell.cells[0], params.layers[0], f"{source}.layers[0]"
        elif hasattr(cell, "cell") and (hasattr(params, "cell") or hasattr(params, "first")):
            field = "cell" if hasattr(params, "cell") else "first"
            cell, params, source = cell.cell, getattr(params, field), f"{source}.{field}"
        else:
            return cell, params, source


def _check_remat(remat):
    if remat is None or isinstance(remat, bool | str):
        return remat
    if not hasattr(remat, "__index__"):
        raise TypeError(f"unroll: remat must be None, True, an int or a name, got {remat!r}.")
    if operator.index(remat) < 1:
        raise ValueError(f"unroll: remat must be a segment length of at least 1, True or None, got {remat}.")
    return operator.index(remat)


def _check_lengths(lengths, length, batch):
    array = check_ints("unroll", "lengths", lengths, low=0, high=length)
    if array.shape != batch:
        raise ValueError(f"unroll: lengths must have the batch shape {list(batch)}, got {describe(array)}.")
    return array


def check_resets(where: str, flags: Any, shape: tuple[int, ...], of: str = "xs", name: str = "resets") -> jax.Array:
    """The flags as an array; raises unless they are bool and have ``shape``, that of ``of`` without its features."""
    flags = jnp.asarray(flags)
    if flags.dtype != bool:
        raise TypeError(f"{where}: {name} must be bool, got {describe(flags)}; compare with != 0 first.")
    if flags.shape != shape:
        raise ValueError(
            f"{where}: {name} must have shape {list(shape)}, as {of} without features, got {describe(flags)}."
        )
    return flags

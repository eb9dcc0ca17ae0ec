"""One update of the parameters, as every training here makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.averaging import AveragedState
from rnnjax.checks import describe, short
from rnnjax.promotion import promoting

if TYPE_CHECKING:
    import optax

__all__ = [
    "Carry",
    "Info",
    "check_arrays",
    "check_opt_state",
    "check_trainable",
    "gradient_step",
    "loss_parts",
    "vary",
]


class Carry(NamedTuple):
    """What goes from update to update."""

    params: Any
    opt_state: Any
    state: Any


class Info(NamedTuple):
    """What an update tells of itself; ``[N]`` each where N updates are told together."""

    loss: jax.Array  # before the update
    grad_norm: jax.Array  # global norm, before the optimizer sees the gradient
    metrics: Mapping[str, jax.Array] = {}  # whatever else the loss returned


def gradient_step(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    carry: Carry,
    batch: Any,
    *,
    key: jax.Array | None = None,
    axis_name: str | None = None,
    scale: Any = None,
    where: str = "gradient_step",
) -> tuple[Carry, Info]:
    r"""One step of gradient descent; no gradient follows the state that it starts from.

        (loss, state'), g = value_and_grad(loss_fn)(params, state, batch)
        params' = params + scale * optimizer(g)

    Args:
        loss_fn: ``(params, state, batch) -> (loss, state)``, or with a dict of scalars as a third; with ``key``, it is
            called with a keyword argument ``key`` besides.
        optimizer: any optax optimizer; one that asks for it gets ``value``, ``grad`` and ``value_fn`` too.
        carry: parameters, optimizer state and recurrent state.
        batch: any pytree of arrays.
        key: for a random ``loss_fn``.
        axis_name: of a mapped axis along which the batch is split in equal parts: gradients, losses and metrics, which
            must be means, are averaged over it, and every part draws from a key of its own.
        scale: a factor of the update, None for none.
        where: opens error messages.

    Returns:
        The carry after the update, and the loss and the gradient norm before it.

    Raises:
        TypeError: for parameters that are no floating-point numbers, or metrics that are no dict.
        ValueError: if ``loss_fn`` does not return what it should, or its state changes shape or dtype.
    """
    params, opt_state, state = carry
    check_trainable(where, params)
    if axis_name is not None:
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        state = vary(state, axis_name)
    random = {} if key is None else {"key": key}

    def call(params: Any) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        # The parameters of one part: otherwise their derivative would be summed over the parts before it is averaged.
        own = params if axis_name is None else vary(params, axis_name)
        return loss_parts(where, loss_fn(own, state, batch, **random), state)

    def value_fn(params: Any) -> jax.Array:
        loss = call(params)[0]
        return loss if axis_name is None else jax.lax.pmean(loss, axis_name)

    own = params if axis_name is None else vary(params, axis_name)
    (loss, (new_state, metrics)), grads = jax.value_and_grad(call, has_aux=True)(own)
    if axis_name is not None:
        loss, metrics, grads = jax.lax.pmean((loss, metrics, grads), axis_name)
        new_state = vary(new_state, axis_name)
    import optax  # not at the top: who only runs a network need not wait for it

    averaging = isinstance(opt_state, AveragedState)  # of what the parameters become, scale and all
    more = {"scale": scale} if averaging else {}
    updates, opt_state = promoting(optax.with_extra_args_support(optimizer).update)(
        grads, opt_state, params, value=loss, grad=grads, value_fn=value_fn, **more
    )
    if scale is not None and not averaging:
        updates = jax.tree.map(lambda update: update * jnp.asarray(scale, update.dtype), updates)
    params = optax.apply_updates(params, updates)
    return Carry(params, opt_state, new_state), Info(loss, optax.tree.norm(grads), metrics)


def vary(tree: Any, axis_name: str) -> Any:
    """The same numbers, as numbers that may differ along the axis; `jax.shard_map` tells the two kinds apart."""
    if axis_name not in jax.sharding.get_abstract_mesh().manual_axes:  # of `jax.vmap`, which knows but one kind
        return tree

    def cast(leaf: Any) -> Any:
        try:
            return jax.lax.pcast(leaf, axis_name, to="varying")
        except ValueError:  # it does so already
            return leaf

    return jax.tree.map(cast, tree)


def loss_parts(where: str, found: Any, old: Any) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """What a loss returned, as ``(loss, (state, metrics))``."""
    wanted = "(loss, state) or (loss, state, metrics)"
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        got = f"{len(found)} things" if isinstance(found, tuple) else f"{short(found, 200)} alone"
        raise ValueError(f"{where}: loss_fn must return {wanted}, got {got}.")
    loss, new = found[:2]
    leaves = jax.tree.leaves(loss)
    if not (len(leaves) == 1 and leaves[0] is loss and _is_number(loss)):
        turned = len(jax.tree.leaves(new)) == 1 and _is_number(new) and short(loss, 200) == short(old, 200)
        hint = "return the loss before the state" if turned else "take a mean of floats"
        raise ValueError(f"{where}: loss_fn must return one number as its loss, got {short(loss, 200)}; {hint}.")
    metrics = found[2] if len(found) == 3 else {}
    if not isinstance(metrics, dict):
        raise TypeError(f"{where}: loss_fn must return {wanted} with a dict of metrics, got {short(metrics, 200)}.")
    for name, value in metrics.items():
        if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int) or jnp.shape(value) != ():
            raise ValueError(
                f"{where}: the metric {name!r} of loss_fn must be one number, got {short(value, 200)}; take the mean."
            )
    if _kind(new) != _kind(old):
        raise ValueError(
            f"{where}: loss_fn must return a state with the shapes and dtypes of the one it takes, "
            f"{short(old, 200)}, got {short(new, 200)}."
        )
    return jnp.asarray(loss), (new, {name: jnp.asarray(value) for name, value in metrics.items()})


def _is_number(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float):
        return False
    return jnp.shape(value) == () and bool(jnp.issubdtype(jnp.result_type(value), jnp.floating))


def _kind(tree: Any) -> Any:
    return jax.tree.structure(tree), [(jnp.shape(leaf), _dtype(leaf)) for leaf in jax.tree.leaves(tree)]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def check_arrays(where: str, **trees: Any) -> None:
    """Raises where a leaf is nothing that JAX takes for an array."""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            kind = getattr(leaf, "dtype", None)
            if isinstance(leaf, int) and abs(leaf) >= 2**31:  # what JAX makes an int32 of, or refuses
                raise ValueError(f"{where}: {name} must hold integers of at most 31 bits, or arrays, got {leaf!r:.30}.")
            if isinstance(leaf, bool | int | float | complex) or isinstance(leaf, jax.Array):
                continue
            if isinstance(leaf, np.ndarray | np.generic) and kind is not None and kind.kind not in "OSUMm":
                continue
            got = f"an array of {kind}" if isinstance(leaf, np.ndarray | np.generic) else short(leaf)
            place = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise TypeError(
                f"{where}: {name} must hold arrays of numbers, got {got}{place}; leave it out or turn it into numbers."
            )


def check_trainable(where: str, params: Any) -> None:
    """Raises where a parameter is no floating-point number, which has no gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(_dtype(leaf), jnp.inexact):
            place = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise TypeError(
                f"{where}: params must be floating-point numbers, which have a gradient, got {describe(leaf)}{place}; "
                "make it one, or keep it outside of params."
            )


def check_opt_state(where: str, optimizer: optax.GradientTransformation, params: Any, opt_state: Any) -> None:
    """Raises unless the state is one of this optimizer for these parameters."""
    wanted = jax.eval_shape(optimizer.init, params)
    if _kind(wanted) != _kind(opt_state):
        raise ValueError(
            f"{where}: opt_state must be that of this optimizer and these parameters, {short(wanted, 200)}, got "
            f"{short(opt_state, 200)}; pass optimizer.init(params), or what the last call returned."
        )

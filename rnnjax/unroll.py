"""`unroll`: a cell or a network over a sequence, with one semantics for every implementation."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import (
    batch_shape,
    cast_like,
    check_resets,
    describe,
    input_size_of,
    named_leaves,
    param_shapes,
    wide_dtype,
)
from rnnjax.checks import check_ints, check_size, short
from rnnjax.engines import Controls, Job, choose, implementations
from rnnjax.engines.both import run_both
from rnnjax.engines.choice import make_job, no_such, registered
from rnnjax.engines.placement import meet
from rnnjax.engines.split import split_over_devices
from rnnjax.engines.stacked import stackable, thread_stacked, worth_stacking
from rnnjax.engines.wavefront import run_waves
from rnnjax.kinds import public
from rnnjax.network import Network, check_state, input_shape, leaves, start_state
from rnnjax.promotion import as_wide

__all__ = ["run", "unroll"]


@public(but=("net",))
def unroll(
    net: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    *,
    lengths: jax.Array | None = None,
    valid: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    implementation: str | None = None,
    remat: bool | int | str | None = None,
) -> tuple[Any, jax.Array]:
    r"""Runs a cell or a network over a sequence: ``state[t+1], ys[t] = net.step(params, state[t], xs[t])``.

    The states of all steps, an LSTM's ``c`` too: ``states, ys = rnnjax.analysis.trajectory(cell, params, state, xs)``;
    gates and whatever else a cell names: `rnnjax.traced.observe`.

    Args:
        net: any cell, or a network of cells: `Stack`, `Bidirectional`, `LearnedState`, `Regularized` or your own, see
            `Network`. A network that needs the future has no ``step``, and runs all the same.
        params: from ``net.init``.
        state: from ``net.initial_state(batch_shape)``, or the final state of an earlier call; ``batch_shape`` may have
            any number of axes, also none. None begins at ``start_state(net, params, ...)``, learned where a cell learns
            it, in float32 or the wider dtype of the parameters.
        xs: ``[T, *batch, I]``, time first; T may be 0. A cell with a method `input_shape` says what stands for I.
        lengths: int ``[*batch]``. Steps at and past a row's length leave its state alone and emit zeros, so
            the final state is that of the last valid step, and length 0 returns the state passed in. What
            stands in the padding of ``xs``, also NaN, reaches no output and no gradient.
        valid: bool ``[T, *batch]``, a mask of any pattern: padding on the left, gaps. Steps where it is not set are
            padding, as those past a length are; with ``lengths`` too, a step needs both.
        resets: bool ``[T, *batch]``; a set flag restores ``start_state(net, params)``, that is ``net.initial_state``
            unless a cell learns another, *before* the step it marks. A flag in the padding does nothing.
        reverse: time runs backwards, from each row's last valid step to step 0; ``ys[t]`` still belongs to
            ``xs[t]``, and padding stays where it is.
        key: one a call, of all masks that the rates of a network ask for. Without a key nothing is dropped, whatever
            the rates: that is how a network is evaluated, and so a training step has to pass one. A cell needs none.
        implementation: a name from ``rnnjax.implementations(net)``, of a network for each of its cells; None takes the
            best one for the cell, the backend and the dtype. ``"scan"`` is the reference. With
            bfloat16 weights it adds up their gradients step by step in bfloat16, the others of affine cells in float32,
            which is nearer to the exact ones.
        remat: checkpointing through time. None keeps everything for the backward pass; True keeps the state
            every sqrt(T) steps and computes the rest again, so memory grows with sqrt(T); an int sets the
            distance; an implementation may know names of its own.

    Returns:
        The final state, with the structure, shapes and dtypes of ``state``, and ``ys [T, *batch, H]``.

    Raises:
        ValueError: for shapes, lengths or resets that do not fit, or an unknown implementation.
        TypeError: if ``lengths`` are not integers, ``valid`` or ``resets`` not bool, ``xs`` not of a floating dtype,
            ``remat`` is of no kind listed, or ``net`` is a class.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.LSTM(hidden_size=5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> state = cell.initial_state((2,))
    >>> state, ys = rnnjax.unroll(cell, params, state, jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))
    >>> ys.shape, bool((ys[4:, 1] == 0).all()), bool((state.h[1] == ys[3, 1]).all())
    ((7, 2, 5), True, True)
    >>> net = rnnjax.Bidirectional((rnnjax.GRU(4), rnnjax.GRU(4)), dropout=0.3)
    >>> params = net.init(jax.random.key(0), input_size=3)
    >>> state, ys = rnnjax.unroll(net, params, None, jnp.ones((7, 2, 3)), key=jax.random.key(1))
    >>> ys.shape
    (7, 2, 8)
    """
    xs = jnp.asarray(xs)
    _check_net(net)
    batch = _batch_of(net, xs) if state is None else check_state("unroll", net, state)
    _check_arrays(net, params, xs, batch)
    if lengths is not None:
        lengths = check_ints("unroll", "lengths", lengths, low=0, high=xs.shape[0], shape=batch)
    if valid is not None:
        valid = check_resets("unroll", valid, xs.shape[: 1 + len(batch)], name="valid")
    if resets is not None:
        resets = check_resets("unroll", resets, xs.shape[: 1 + len(batch)])
    remat = _check_remat(remat)
    if implementation is not None or isinstance(remat, str):  # what may be refused, before anything is traced
        controls = Controls(valid, resets, None, lengths if valid is None else None)
        _check_implementation(net, implementation, params, state, xs, controls, reverse, remat)
    return _unroll(net, params, state, xs, lengths, valid, resets, key, reverse, implementation, remat, registered())


@functools.partial(jax.jit, static_argnames=("net", "reverse", "implementation", "remat", "among"))
def _unroll(net, params, state, xs, lengths, valid, resets, key, reverse, implementation, remat, among):
    del among  # where there are other engines, the choice among them may be another
    if state is None:
        batch = _batch_of(net, xs)
        state = start_state(net, params, batch, wide_dtype(params))
    else:
        batch = batch_shape(net, state)
    if lengths is not None:
        lengths = jnp.clip(lengths.astype(jnp.int32), 0, xs.shape[0])  # traced values could not be checked
        inside = as_wide(jnp.arange(xs.shape[0]), 1 + len(batch)) < lengths[None]  # [T, *batch]
        lengths, valid = (lengths, inside) if valid is None else (None, inside & valid)
    if valid is not None:
        # Zeros instead of whatever stands in the padding: a NaN would pass through `where` into gradients.
        xs = jnp.where(as_wide(valid, xs.ndim), xs, jnp.zeros((), xs.dtype))
    fresh = None
    if resets is not None:
        fresh = cast_like(start_state(net, params, batch, None), state)
    controls = Controls(valid, resets, fresh, lengths)
    params, state, xs, controls = meet(params, state, xs, controls, len(batch))
    # In reverse, too, masks are enough: from the last step on, the state waits until a row's valid part begins.
    state, ys = run(
        net, params, state, xs, controls, reverse=reverse, key=key, implementation=implementation, remat=remat
    )
    if valid is not None:
        ys = jnp.where(as_wide(valid, ys.ndim), ys, jnp.zeros((), ys.dtype))
    return state, ys


def run(
    net: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls,
    *,
    reverse: bool = False,
    key: jax.Array | None = None,
    implementation: str | None = None,
    remat: Any = None,
) -> tuple[Any, jax.Array]:
    """`unroll` below its checks: a cell by its implementation, a network part by part."""
    if isinstance(net, Network):
        options: Any = {"reverse": reverse, "key": key}
        asked = {"implementation": implementation, "remat": remat}
        found = None if implementation == "stacked" else run_waves(net, params, state, xs, controls, **options, **asked)
        if found is not None:
            return found
        stacks = implementation == "stacked" or (implementation is None and worth_stacking(net))
        if stacks and stackable(net):
            return thread_stacked(net, functools.partial(run, remat=remat), params, state, xs, controls, **options)
        return net.thread(_Visit(implementation, remat), params, state, xs, controls, **options)
    job = make_job(net, params, state, xs, controls, reverse=reverse, remat=remat)
    if controls.noise is not None and implementation is None:
        implementation = "scan"  # no other hands it over
    engine = choose(job, implementation)
    if implementation is None:
        engine = split_over_devices(engine, job, params)
    return engine.run(net, params, state, xs, controls, reverse=reverse, remat=remat)


@dataclasses.dataclass(frozen=True)
class _Visit:
    """What a network calls for its parts; `both` is what it may ask first, for two directions of one cell."""

    implementation: str | None
    remat: Any

    def __call__(self, net, params, state, xs, controls, *, reverse, key):
        return run(net, params, state, xs, controls, reverse=reverse, key=key, **vars(self))

    def both(self, cell, there, back, xs, *, reverse):
        if isinstance(cell, Network) or there[2].noise is not None:
            return None
        return run_both(cell, there, back, xs, reverse=reverse, **vars(self))


def _check_net(net):
    if isinstance(net, type):
        raise TypeError(f"unroll: net must be an instance, got the class {net.__name__}; make one.")
    if not hasattr(net, "step") and not isinstance(net, Network):
        raise TypeError(f"unroll: net must be a cell or a network, got {short(net)}.")
    try:
        hash(net)
    except TypeError as error:
        raise TypeError(
            f"unroll: net must be hashable, as compiled programs are found by it, got {type(net).__name__} ({error}); "
            "make it a dataclass with frozen=True and keep arrays and lists out of its fields."
        ) from None
    for cell in _by_identity(net):
        before = _first_seen.setdefault(cell, dict(vars(cell)))
        for name, value in before.items():
            now = vars(cell).get(name)
            if now is not value and not (isinstance(now, _PLAIN) and type(now) is type(value) and now == value):
                raise ValueError(
                    f"unroll: {type(cell).__name__} must stay as it was when it was unrolled first, since compiled "
                    f"programs see no change, got another {name!r}; make a new one, best a dataclass(frozen=True)."
                )


_PLAIN = (int, float, str, bool, tuple, type(None))
_first_seen: Any = weakref.WeakKeyDictionary()  # the fields of cells at their first unroll


@functools.lru_cache(maxsize=1024)
def _by_identity(net):
    """The cells in a network, and itself, that are found by what they are, and whose fields may change."""
    by_identity: Any = object.__hash__
    every = (net, *(leaf.cell for leaf in leaves(net)))
    return tuple({id(c): c for c in every if type(c).__hash__ is by_identity and hasattr(c, "__dict__")}.values())


def _batch_of(net, xs):
    """The batch axes of inputs that come without a state."""
    own = input_shape(net, (xs.shape or (1,))[-1])
    if xs.ndim < 1 + len(own):
        features = ", ".join([*map(str, own[:-1]), "I"])
        raise ValueError(f"unroll: xs must have shape [T, *batch, {features}], got {describe(xs)}.")
    return tuple(xs.shape[1 : xs.ndim - len(own)])


def _check_arrays(net, params, xs, batch):
    """Params of another cell or size may compute something all the same: JAX clamps indices and broadcasts."""
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise TypeError(f"unroll: xs must be of a floating dtype, got {describe(xs)}; one-hot encode or embed symbols.")
    size = xs.shape[-1] if xs.ndim else 0
    if xs.shape[1:] == (*batch, *input_shape(net, size)) and _fits(net, params, size):
        return
    size, source = input_size_of(net, named_leaves(params))  # something is wrong; from here on it has to be found
    _check_params(net, params, size if source else xs.shape[-1] if xs.ndim else 1)
    own = input_shape(net, size if source else (xs.shape or (1,))[-1])
    if xs.shape[1:] != (*batch, *own):
        axes = ", ".join(["T", *map(str, batch), *map(str, own[:-1]), "I"])
        turned = len(batch) == 1 and xs.ndim > 1 and (xs.shape[0], *xs.shape[2:]) == (*batch, *own)
        slip = "; time comes first, so pass jnp.swapaxes(xs, 0, 1)" if turned else ""
        known = f" with I = {size} (from params{'' if source.startswith('[') else '.'}{source})" if source else ""
        raise ValueError(
            f"unroll: xs must have shape [{axes}]{known} and the batch axes of the state, got {describe(xs)}{slip}."
        )


def _fits(net, params, size):
    expected = _params_of(net, size)
    return expected is None or (
        jax.tree.structure(params) == expected[0]
        and all(np.shape(got) == want for got, want in zip(jax.tree.leaves(params), expected[1], strict=True))
    )


def _check_params(net, params, size):
    if _fits(net, params, size):
        return
    name, (structure, shapes) = type(net).__name__, _params_of(net, size)
    if jax.tree.structure(params) != structure:
        kind = type(jax.tree.unflatten(structure, [0] * structure.num_leaves)).__name__
        raise ValueError(
            f"unroll: params must be what the init of this {name} makes, got {type(params).__name__} with "
            f"{len(jax.tree.leaves(params))} arrays, not {kind} with {structure.num_leaves}."
        )
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(params), shapes, strict=True):
        if jnp.shape(got) != want:
            raise ValueError(
                f"unroll: params{jax.tree_util.keystr(path)} must have shape {list(want)} for this {name}, got "
                f"{describe(got)}; take the params of this cell."
            )


@functools.lru_cache(maxsize=1024)
def _params_of(net, input_size):
    """The structure of the parameters and the shapes of their leaves; None without a number that is a size."""
    if not isinstance(input_size, int) or input_size < 1:
        return None
    like = param_shapes(net, input_size)
    return jax.tree.structure(like), tuple(leaf.shape for leaf in jax.tree.leaves(like))


def _check_implementation(net, name, params, state, xs, controls, reverse, remat):
    """Asks every engine that was named; of a network, once a kind of cell and before there are states."""
    if not isinstance(net, Network):
        if state is None:
            state = jax.eval_shape(lambda p: start_state(net, p, _batch_of(net, xs), wide_dtype(p)), params)
        choose(make_job(net, params, state, xs, controls, reverse=reverse, remat=remat), name)
        return
    names = implementations(net)
    if name is None or name in names:
        return
    for leaf in leaves(net):
        choose(Job(leaf.cell, jax.default_backend(), input_size=leaf.cell.hidden_size), name)
    raise no_such(name, net, names)


def _check_remat(remat):
    if remat is None or isinstance(remat, bool | str):
        return remat
    return check_size("unroll", "remat, if not None, True or a name,", remat)

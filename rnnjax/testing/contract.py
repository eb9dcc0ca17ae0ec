"""A check for authors of new cells and networks, from the cheap to the expensive; the first trouble is raised."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import Cell, affine_step, check_size, leaf_names
from rnnjax.checks import describe, short
from rnnjax.network import Controls, Network, input_shape, output_shape
from rnnjax.traced import observe

__all__ = [
    "check_cell",
    "check_network",
]


_TOLERANCE = 1e-4  # float32 steps whose matmuls have different shapes


def check_cell(cell: Any, input_size: int, *, batch_size: int = 3) -> None:
    r"""Tells the author of a new cell, in one sentence, what breaks the contract; returns None if all is well.

    It makes parameters and a state, takes steps in float32 and bfloat16, and compares. Of a network it also looks at
    `Network.parts`, `Network.join` and `Network.thread`: that states and keys reach the parts that they are for.

    Args:
        cell: an instance of the new cell or network.
        input_size: I, any size the cell accepts.
        batch_size: B of the trial step.

    Raises:
        TypeError: a method is missing or takes other arguments, or the cell cannot be hashed or compared by
            value.
        ValueError: ``init`` ignores ``dtype``, a step changes the state's structure, shape or dtype, ``y`` has
            the wrong shape or dtype, ``step`` disagrees with ``update``, a batch is not the same as its examples
            one by one, what is named like a field of the state is something else, or a gradient is not finite. That
            a parameter has no effect is no error.

    >>> import rnnjax
    >>> rnnjax.check_cell(rnnjax.GRU(4), input_size=3)
    """
    check_size("check_cell", "input_size", input_size)
    check_size("check_cell", "batch_size", batch_size)
    if isinstance(cell, type):
        raise TypeError(f"check_cell: cell must be an instance, got the class {cell.__name__}; make one.")
    name = type(cell).__name__
    network = hasattr(cell, "parts") or hasattr(cell, "thread")
    steps = hasattr(cell, "step") or not network  # a network that needs the future has none
    _check_methods(cell, name, steps)
    _check_value(cell, name)
    if network:
        check_network(cell, name, input_size)
    if not steps:
        return
    f32, bf16 = jnp.float32, jnp.bfloat16
    for params_dtype, dtype in ((f32, f32), (bf16, bf16), (bf16, f32)):
        _check_shapes(cell, name, input_size, batch_size, params_dtype, dtype)
    with jax.default_matmul_precision("highest"):
        _check_numbers(cell, name, input_size, batch_size)


def _check_methods(cell: Any, name: str, steps: bool) -> None:
    calls = {
        "init": (("key", "input_size", "dtype"), 2),
        "initial_state": (("batch_shape", "dtype"), 0),
        "step": (("params", "state", "x"), 3),
    }
    if not steps:
        del calls["step"]
    if hasattr(cell, "update") or hasattr(cell, "num_gates"):
        calls["update"] = (("params", "state", "zx", "zh"), 4)
    if hasattr(cell, "input_shape"):
        calls["input_shape"] = (("input_size",), 1)
    for method, (arguments, required) in calls.items():
        usage = f"{method}({', '.join(arguments)})"
        function = getattr(cell, method, None)
        if not callable(function):
            raise TypeError(f"check_cell: {name} must have the method {usage}, got {short(function)}; add it.")
        signature = inspect.signature(function)
        for count in {required, len(arguments)}:
            try:
                signature.bind(*arguments[:count])
            except TypeError as error:
                few = f" and also with {count} of these arguments" if count < len(arguments) else ""
                raise TypeError(
                    f"check_cell: {name}.{method} must be callable as {usage}{few}, got {method}{signature}."
                ) from error
    if not steps:
        return
    if not hasattr(cell, "hidden_size"):
        raise TypeError(f"check_cell: {name} must have hidden_size, the size of y; add the field.")
    check_size(f"check_cell: {name}", "hidden_size", cell.hidden_size)
    if "update" in calls:
        if not hasattr(cell, "num_gates"):
            raise TypeError(f"check_cell: {name} has update and so must have num_gates, got none; add it.")
        check_size(f"check_cell: {name}", "num_gates", cell.num_gates)


def _check_value(cell: Any, name: str) -> None:
    try:
        number = hash(cell)
    except TypeError as error:
        raise TypeError(
            f"check_cell: {name} must be hashable, got {error}; make it a dataclass(frozen=True) of hashable fields."
        ) from error
    twin = copy.deepcopy(cell)
    if twin != cell or hash(twin) != number:
        raise TypeError(
            f"check_cell: {name} must compare by value, but a copy is not equal to it or hashes differently, "
            "so that every instance would compile again; make it a dataclass(frozen=True)."
        )


def _check_shapes(cell: Any, name: str, input_size: int, batch_size: int, params_dtype: Any, dtype: Any) -> None:
    """Structures, shapes and dtypes, for three batch shapes; nothing is computed."""
    key = jax.random.key(0)
    where = f"{name}.init"
    params = _trace(where, lambda: cell.init(key, input_size, params_dtype))
    _check_dtypes(where, "the initialisers", params, params_dtype)
    if hasattr(cell, "update"):
        _check_affine_params(cell, name, params, input_size)
    single = _trace(f"{name}.initial_state", lambda: cell.initial_state((), dtype))
    if not jax.tree.leaves(single):
        raise ValueError(f"check_cell: {name}.initial_state must hold at least one array, got {short(single)}.")
    if hasattr(cell, "update") and not hasattr(single, "h"):
        raise ValueError(
            f"check_cell: the state of {name} must have the field h, as {name} has update, got {_type(single)}; add it."
        )
    features = _trace(f"{name}.input_shape", lambda: jnp.empty(input_shape(cell, input_size))).shape
    output: tuple[int, ...] | None = (cell.hidden_size,)
    if hasattr(cell, "input_shape"):
        output = None  # the first step tells
    for batch in ((), (batch_size,), (2, batch_size)):
        where = f"{name}.initial_state({batch})"
        state = _trace(where, lambda batch=batch: cell.initial_state(batch, dtype))
        _check_dtypes(where, "jnp.zeros", state, dtype)
        _check_structure(f"{where} makes another structure than initial_state(())", single, state)
        for (path, one), leaf in zip(_leaves(single), jax.tree.leaves(state), strict=True):
            if leaf.shape != (*batch, *one.shape):
                raise ValueError(
                    f"check_cell: {where}: {path} must have shape {[*batch, *one.shape]}, "
                    f"got {describe(leaf)}; begin its shape with *batch_shape."
                )
        x = jax.ShapeDtypeStruct((*batch, *features), dtype)
        result = _trace(f"{name}.step with batch shape {batch}", cell.step, params, state, x)
        output = _check_step(cell, name, batch, state, result, output, dtype if params_dtype == dtype else None)


def _check_affine_params(cell: Any, name: str, params: Any, input_size: int) -> None:
    width = cell.num_gates * cell.hidden_size
    shapes = {"w_ih": (input_size, width), "b": (width,), "w_hh": (cell.hidden_size, width)}
    for field, shape in shapes.items():
        leaf = getattr(params, field, None)
        if getattr(leaf, "shape", None) != shape and (leaf is not None or field == "w_ih"):
            raise ValueError(
                f"check_cell: {name}.init: params.{field} must have shape {list(shape)} for num_gates = "
                f"{cell.num_gates} and hidden_size = {cell.hidden_size}, got {describe(leaf)}."
            )


def _check_step(
    cell: Any, name: str, batch: tuple[int, ...], state: Any, result: Any, output: tuple[int, ...] | None, dtype: Any
) -> tuple[int, ...]:
    """Checks a step's result; returns the shape of one y, which is to be ``output`` if that is known."""
    if type(result) is not tuple or len(result) != 2:  # a state of two fields is a tuple of two as well
        raise ValueError(f"check_cell: {name}.step must return (state, y), got {_type(result)}.")
    new, y = result
    _check_structure(f"{name}.step changes the structure of the state", state, new)
    for (path, before), after in zip(_leaves(state), jax.tree.leaves(new), strict=True):
        if before.shape != after.shape or before.dtype != after.dtype:
            advice = "Cast inside step." if before.shape == after.shape else "Keep its shape."
            raise ValueError(
                f"check_cell: {name}.step changes the state: {path} was {describe(before)} and became "
                f"{describe(after)}. {advice}"
            )
    shape = getattr(y, "shape", None)
    if output is None and shape and shape[-1] == cell.hidden_size:
        output = tuple(shape)
    wanted = (*batch, *(output or (cell.hidden_size,)))
    if shape != wanted:
        raise ValueError(
            f"check_cell: {name}.step: y must have shape {list(wanted)}, the batch axes and "
            f"hidden_size, got {describe(y)}."
        )
    if dtype is not None and y.dtype != dtype:
        raise ValueError(
            f"check_cell: {name}.step: y must have the dtype of the state, {jnp.dtype(dtype).name}, "
            f"got {describe(y)}; cast it."
        )
    return wanted[len(batch) :]


def _check_numbers(cell: Any, name: str, input_size: int, batch_size: int) -> None:
    """What only values show: `update`, independence of the examples, and gradients."""
    affine = hasattr(cell, "update")

    def total(params: Any, state: Any, xs: jax.Array) -> jax.Array:
        _, ys = jax.lax.scan(functools.partial(cell.step, params), state, xs)
        return jnp.sum(jnp.real(ys))

    def not_same(a: jax.Array, b: jax.Array) -> Any:
        return a.shape != b.shape or ~jnp.array_equal(a, b, equal_nan=True)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time
    def measure(params: Any, start: Any, xs: jax.Array) -> Any:
        # From a state that the cell itself reaches, because not every cell accepts any numbers.
        state, _ = jax.lax.scan(functools.partial(cell.step, params), start, xs[:2])
        x = xs[2]
        result, named = observe(cell.step, params, state, x)
        updated = affine_step(cell, params, state, x) if affine else result
        alone = jax.lax.map(lambda row: cell.step(params, *row), (state, x))
        gradients = jax.grad(total, argnums=(0, 1, 2), allow_int=True)(params, start, xs)
        finite = jax.tree.map(lambda d: not jnp.issubdtype(d.dtype, jnp.inexact) or jnp.isfinite(d).all(), gradients)
        leaves = dict(zip(leaf_names(result[0]), jax.tree.leaves(result[0]), strict=True))
        misnamed = {leaf: not_same(seen.value, leaves[leaf]) for leaf, seen in named.items() if leaf in leaves}
        return result, updated, alone, finite, misnamed

    # Not within `measure`: many random draws of one shape compile once here, and many times there.
    params = cell.init(jax.random.key(0), input_size)
    shape = (3, batch_size, *input_shape(cell, input_size))
    xs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result, updated, alone, finite, misnamed = measure(params, cell.initial_state((batch_size,)), xs)
    if trouble := _difference(updated, result):
        raise ValueError(
            f"check_cell: {name}.step disagrees with update: {trouble} from what rnnjax.affine_step makes of "
            "update; write step = rnnjax.affine_step."
        )
    if trouble := _difference(alone, result):
        raise ValueError(
            f"check_cell: {name}.step mixes the examples of a batch: {trouble} from the same examples one by one; "
            "reduce only over the last axes."
        )
    for leaf, wrong in misnamed.items():
        if wrong:
            raise ValueError(
                f"check_cell: {name}.step gives the name {leaf!r} to a value that is not {leaf} of the new state; name "
                "what the state gets, so that who holds it holds the state."
            )
    for argument, tree in zip(("params", "state", "xs"), finite, strict=True):
        for path, leaf in _leaves(tree):
            if not leaf:
                raise ValueError(
                    f"check_cell: {name}: the gradient with respect to {argument}{path} is not finite three "
                    "steps after the initial state; look for a division, root or logarithm of zero, also in "
                    "the branch that a where does not take."
                )


def _trace(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """Shapes of a result; an error of the cell's own code comes back with the place where it happened."""
    try:
        return jax.eval_shape(function, *args)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        first = (str(error).splitlines() or [""])[0]
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"check_cell: {where} fails: {first}") from error


def _check_dtypes(where: str, maker: str, tree: Any, dtype: Any) -> None:
    for path, leaf in _leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != dtype:
            raise ValueError(
                f"check_cell: {where} ignores dtype: {path} is {describe(leaf)} for dtype "
                f"{jnp.dtype(dtype).name}; hand dtype to {maker}."
            )


def _check_structure(trouble: str, before: Any, after: Any) -> None:
    wanted: Any = jax.tree.structure(before)
    if wanted == jax.tree.structure(after):
        return
    old, new = ({path for path, _ in _leaves(tree)} for tree in (before, after))
    missing, added = sorted(old - new), sorted(new - old)
    if _type(before) != _type(after) or not missing + added:
        detail = f"it was {_type(before)} and became {_type(after)}"
    else:
        changes = ((missing, "is missing"), (added, "is new"))
        detail = " and ".join(f"{', '.join(paths)} {verb}" for paths, verb in changes if paths)
    raise ValueError(f"check_cell: {trouble}: {detail}. Return the same kind of tuple with the same leaves.")


def _difference(want: Any, got: Any) -> str:
    """Where two (state, y) differ, as part of a sentence; empty if they do not."""
    for (path, a), b in zip(_leaves(want), jax.tree.leaves(got), strict=True):
        gap = np.max(np.abs(np.asarray(a) - np.asarray(b)) / (1 + np.abs(np.asarray(a))), initial=0.0)
        if not gap <= _TOLERANCE:
            part = "y" if path == "[1]" else f"state{path.removeprefix('[0]')}"
            return f"{part} differs by {gap:.2g}"
    return ""


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _type(value: Any) -> str:
    return type(value).__name__


def check_network(net: Any, name: str, input_size: int) -> None:
    """Raises in one sentence unless the three methods of a `Network` agree; see `rnnjax.check_cell`."""
    for method in ("parts", "join", "thread"):
        if not callable(getattr(net, method, None)):
            raise TypeError(f"check_cell: {name} is a network and must have the method {method}; add it.")
    _check_kinds(name, net.parts(None))
    params = net.init(jax.random.key(0), input_size)
    for batch in ((), (3,)):
        state = net.initial_state(batch)
        names = _check_parts(net, name, params, state)
        _check_join(net, name, state)
    _check_thread(net, name, params, net.initial_state((3,)), names, input_size)


def _check_parts(net: Any, name: str, params: Any, state: Any) -> list[str]:
    found = [(what, net.parts(tree)) for what, tree in (("None", None), ("params", params), ("a state", state))]
    first = [part[:2] for part in found[0][1]]
    for what, parts in found:
        _check_kinds(name, parts)
        if [part[:2] for part in parts] != first:
            raise ValueError(f"check_cell: {name}.parts must name the same cells for {what} as for None.")
    names = [part_name for part_name, _ in first]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"check_cell: {name}.parts must give each part a name of its own, got {names}.")
    for part_name, cell, part in found[2][1]:
        if not _alike(part, cell.initial_state()):
            raise ValueError(
                f"check_cell: {name}.parts: {part_name!r} of a state must be a state of {type(cell).__name__}, got "
                f"{type(part).__name__}."
            )
    return names


def _check_kinds(name: str, parts: Any) -> None:
    for part in parts:
        if not isinstance(part, tuple) or len(part) != 3 or not isinstance(part[0], str):
            raise TypeError(f"check_cell: {name}.parts must return tuples (name, cell, its part), got {short(part)}.")
        if isinstance(part[1], type) or not isinstance(part[1], Cell | Network):
            raise TypeError(f"check_cell: {name}.parts: part {part[0]!r} must be a cell or a network, got {part[1]!r}.")


def _check_join(net: Any, name: str, state: Any) -> None:
    joined = net.join([part for _, _, part in net.parts(state)])
    if not _alike(joined, state) or any(
        a is not b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(state), strict=True)
    ):
        raise ValueError(f"check_cell: {name}.join must make a state again of what parts took from it.")


def _check_thread(net: Any, name: str, params: Any, state: Any, names: list[str], input_size: int) -> None:
    """With parts that write zeros: each runs once, with its own fresh state and a key of its own."""
    flags, seen = jnp.zeros((2, 3), bool), []

    def visit(cell: Any, p: Any, s: Any, xs: jax.Array, controls: Controls, *, reverse: bool, key: Any) -> Any:
        del p, reverse
        if not _alike(controls.fresh, cell.initial_state()):
            raise ValueError(
                f"check_cell: {name}.thread must hand each part its own fresh state, as part_controls does, got "
                f"{type(controls.fresh).__name__} for {type(cell).__name__}."
            )
        seen.append(key)
        return s, jnp.zeros((*xs.shape[:2], *output_shape(cell, xs.shape[-1])), xs.dtype)

    xs = jnp.zeros((2, 3, *input_shape(net, input_size)))
    for key in (None, jax.random.key(0)):
        seen.clear()
        controls = Controls(resets=flags, fresh=state)
        result = net.thread(visit, params, state, xs, controls, reverse=False, key=key)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"check_cell: {name}.thread must return (state, ys), got {describe(result)}.")
        if not _alike(result[0], state):
            raise ValueError(f"check_cell: {name}.thread must return a state as initial_state makes it; use join.")
        if len(seen) != len(names):  # a part may be run in another guise
            raise ValueError(
                f"check_cell: {name}.thread must run each of its parts once by visit, {', '.join(names)}, got "
                f"{len(seen)} runs."
            )
        if key is None and any(k is not None for k in seen):
            raise ValueError(f"check_cell: {name}.thread must not make a key where it gets none.")
        given = [tuple(jax.random.key_data(k).tolist()) for k in seen if k is not None]
        if len(set(given)) != len(given):
            raise ValueError(f"check_cell: {name}.thread must hand each part a key of its own; split the one it gets.")


def _alike(got: Any, want: Any) -> bool:
    structure: Any = jax.tree.structure(got)
    return bool(structure == jax.tree.structure(want))

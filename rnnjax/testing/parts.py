"""What `check_cell` asks of a network: that its parts, its states and its keys fit together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import Cell
from rnnjax.checks import describe, short
from rnnjax.network import Controls, Network, input_shape, output_shape

__all__ = ["check_network"]


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

"""Drawings of cells, made of the equations that JAX traces: what every named value of a step is computed from.

All cells are drawn in one style: input and old state on the left, then each value that the step names, as far to the
right as what it needs allows, with a colour for the function that made it.
"""

from __future__ import annotations

import html
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

__all__ = ["drawing"]

_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "checkpoint",
    "remat2",
)
_COLOURS = {
    "logistic": "#d55e00",
    "tanh": "#cc79a7",
    "exp": "#8a6d00",
    "state": "#0072b2",
    "x": "#5a5f69",
    "": "#009e73",
}
_SIGNS = {"logistic": "\N{GREEK SMALL LETTER SIGMA}", "tanh": "tanh", "exp": "exp", "max": "relu"}


def _trace(cell: Any, input_size: int) -> tuple[list[tuple[str, str, set[str], bool]], list[str]]:
    """The values that a step names: name, what made it, what it needs; and the names of the new state's fields."""
    params = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
    state = jax.eval_shape(cell.initial_state)
    shape = cell.input_shape(input_size) if hasattr(cell, "input_shape") else (input_size,)
    closed = jax.make_jaxpr(cell.step)(params, state, jax.ShapeDtypeStruct(shape, jnp.float32))
    needs: dict[Any, set[str]] = {}
    made: dict[Any, str] = {}
    found: dict[str, tuple[str, set[str]]] = {}
    paths = jax.tree_util.tree_leaves_with_path(state)
    fields = [".".join(str(getattr(k, "name", getattr(k, "idx", k))) for k in path) for path, _ in paths]
    first = len(jax.tree.leaves(params))
    invars = closed.jaxpr.invars
    for k, v in enumerate(invars):
        needs[v] = set() if k < first else {f"{fields[k - first]}"} if k < len(invars) - 1 else {"x"}

    def read(v: Any) -> set[str]:
        return set() if isinstance(v, Literal) else needs.get(v, set())

    def run(jaxpr: Any) -> None:
        names: dict[Any, str] = {}
        for equation in jaxpr.eqns:
            if equation.primitive.name == "name" and not isinstance(equation.invars[0], Literal):
                names[equation.invars[0]] = equation.params["name"]
        for equation in jaxpr.eqns:
            kind, inner = equation.primitive.name, None
            if kind == "name":
                continue
            if kind in _CALLS:
                inner = (
                    equation.params.get("jaxpr")
                    or equation.params.get("call_jaxpr")
                    or equation.params.get("fun_jaxpr")
                )
                inner = getattr(inner, "jaxpr", inner)
            if inner is not None:
                for v, outer in zip(inner.invars, equation.invars):
                    needs[v] = read(outer)
                    made[v] = "" if isinstance(outer, Literal) else made.get(outer, "")
                run(inner)
                for v, within in zip(equation.outvars, inner.outvars):
                    needs[v] = read(within)
                    made[v] = "" if isinstance(within, Literal) else made.get(within, "")
            else:
                all_needed = set().union(*(read(v) for v in equation.invars)) if equation.invars else set()
                same = kind in ("convert_element_type", "copy", "reshape", "broadcast_in_dim")
                for v in equation.outvars:
                    needs[v] = all_needed
                    before = equation.invars[0] if equation.invars else None
                    made[v] = made.get(before, "") if same and not isinstance(before, Literal) else kind
            for v in equation.outvars:
                if v in names:
                    name = names[v]
                    label = f"{name}'" if name in fields else name
                    found[label] = (made.get(v, ""), needs[v] - {label})
                    needs[v] = {label}

    run(closed.jaxpr)
    return [(name, by, wanted, name.endswith("'")) for name, (by, wanted) in found.items()], fields


def drawing(cell: Any, input_size: int = 3) -> str:
    """An SVG, or an empty text for a cell that names nothing."""
    values, fields = _trace(cell, input_size)
    if not values:
        return ""
    column = {name: 0 for name in ("x", *fields)}
    for name, _, wanted, _ in values:
        column[name] = 1 + max((column.get(one, 0) for one in wanted), default=0)
    last = max(column.values())
    for name, *_ in values:
        if name.endswith("'"):
            column[name] = max(column[name], last - sum(other.endswith("'") for other, *_ in values) + 1)
    last = max(column.values())
    rows: dict[int, list[str]] = {}
    for name in (*fields, "x", *(name for name, *_ in values)):
        rows.setdefault(column[name], []).append(name)
    width, height = 110 * last + 110, 62 * max(map(len, rows.values())) + 24
    place = {}
    for c, names in rows.items():
        for k, name in enumerate(names):
            place[name] = (55 + 110 * c, height * (k + 1) / (len(names) + 1))
    parts = [
        f'<svg class="drawing" style="max-width:{width}px" viewBox="0 0 {width} {height}" role="img" '
        'xmlns="http://www.w3.org/2000/svg" '
        f'aria-label="What each value of a step of {type(cell).__name__} is computed from" '
        'font-family="system-ui, sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0L8,4L0,8z" fill="#8a8f98"/></marker></defs>',
    ]
    for name, _, wanted, _ in values:
        x, y = place[name]
        for one in sorted(wanted):
            if one in place:
                a, b = place[one]
                straight = column[name] - column[one] == 1
                bend = 0 if straight else 26 * (1 if b <= y else -1)
                parts.append(
                    f'<path d="M{a + 26},{b:.0f}C{a + 62},{b + bend:.0f} {x - 62},{y + bend:.0f} {x - 27},{y:.0f}" '
                    'fill="none" stroke="#8a8f98" stroke-width="1.3" marker-end="url(#tip)"/>'
                )
    kinds = {name: by for name, by, _, _ in values}
    for name, (x, y) in place.items():
        by = "x" if name == "x" else "state" if name in fields or name.endswith("'") else kinds.get(name, "")
        colour = _COLOURS.get(by, _COLOURS[""])
        parts.append(
            f'<rect x="{x - 26}" y="{y - 16:.0f}" width="52" height="32" rx="8" fill="#fff" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<text x="{x}" y="{y + 5:.0f}" text-anchor="middle" font-size="14" '
            f'fill="#1b1d21">{html.escape(name)}</text>'
        )
        sign = _SIGNS.get(kinds.get(name, ""), "")
        if sign:
            parts.append(
                f'<text x="{x}" y="{y - 20:.0f}" text-anchor="middle" font-size="10" fill="{colour}">{sign}</text>'
            )
    return "".join(parts) + "</svg>"

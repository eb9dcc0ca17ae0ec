"""Drawings of cells, made of the equations that JAX traces: what every named value of a step is computed from.

All cells are drawn in one style: input and old state on the left, then each value that the step names, one column to
the right of the last value that it needs, with a colour for the function that made it. A line that passes a column has
a lane of its own there, so that no line runs through a box, and what several values read is one line that branches.
"""

from __future__ import annotations

import html
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from layout import lay_out

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
# What made a value, as a class of site.css.
_KINDS = {"logistic": "sigmoid", "tanh": "tanh", "exp": "exp", "state": "state", "x": "input"}
_SIGNS = {"logistic": "\N{GREEK SMALL LETTER SIGMA}", "tanh": "tanh", "exp": "exp", "max": "max", "relu": "relu"}


def _trace(cell: Any, input_size: int) -> tuple[dict[str, tuple[str, set[str]]], list[str], str]:
    """The values that a step names, with what made each and what it needs; the state's fields; and which value is y."""
    params = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
    state = jax.eval_shape(cell.initial_state)
    shape = cell.input_shape(input_size) if hasattr(cell, "input_shape") else (input_size,)
    closed = jax.make_jaxpr(cell.step)(params, state, jax.ShapeDtypeStruct(shape, jnp.float32))
    needs: dict[Any, set[str]] = {}
    made: dict[Any, str] = {}
    same_as: dict[Any, str] = {}
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
                    if not isinstance(within, Literal) and within in same_as:
                        same_as[v] = same_as[within]
                    made[v] = "" if isinstance(within, Literal) else made.get(within, "")
            else:
                all_needed = set().union(*(read(v) for v in equation.invars)) if equation.invars else set()
                if kind == "max" and any(isinstance(v, Literal) for v in equation.invars):
                    kind = "relu"
                same = kind in ("convert_element_type", "copy", "reshape", "broadcast_in_dim")
                for v in equation.outvars:
                    needs[v] = all_needed
                    before = equation.invars[0] if equation.invars else None
                    made[v] = made.get(before, "") if same and not isinstance(before, Literal) else kind
                    if same and not isinstance(before, Literal) and before in same_as:
                        same_as[v] = same_as[before]
            for v in equation.outvars:
                if v in names:
                    name = names[v]
                    label = f"{name}'" if name in fields else name
                    found[label] = (made.get(v, ""), needs[v] - {label})
                    needs[v], same_as[v] = {label}, label

    run(closed.jaxpr)
    y = closed.jaxpr.outvars[-1]
    if y not in same_as and found:
        found["y"] = (made.get(y, ""), read(y))
    return found, fields, same_as.get(y, "y")


PITCH, HALF = 112, 26


def _line(points: list[tuple[float, float]]) -> str:
    """A curve through the points that is level at each; lanes are as long as a box is wide."""
    path = f"M{points[0][0] + HALF:.0f},{points[0][1]:.1f}"
    for (x, y), (to, there) in itertools.pairwise(points):
        start, end = x + HALF, to - HALF
        bend = (end - start) * 0.5
        path += f"C{start + bend:.0f},{y:.1f} {end - bend:.0f},{there:.1f} {end:.0f},{there:.1f}"
        if (to, there) != points[-1]:
            path += f"H{to + HALF:.0f}"
    return path


def drawing(cell: Any, input_size: int = 3) -> str:
    """An SVG, or an empty text for a cell that names nothing."""
    values, fields, output = _trace(cell, input_size)
    if not values:
        return ""
    plan = lay_out((*fields, "x"), {name: wanted for name, (_, wanted) in values.items()})
    top = 10.0
    width, height = PITCH * max(plan.column.values()) + 2 * HALF + 8, plan.total + top
    place = {node: (HALF + 4.0 + PITCH * node[1], y + top) for node, y in plan.height.items()}

    def kind(name: str) -> str:
        if name == "x" or name in fields or name.endswith("'"):
            return _KINDS["x" if name == "x" else "state"]
        return _KINDS.get(values[name][0], "other")

    kinds = {name: kind(name) for name in plan.column}
    parts = [
        f'<svg class="drawing" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        'role="img" xmlns="http://www.w3.org/2000/svg" '
        f'aria-label="What each value of a step of {type(cell).__name__} is computed from">',
        "<defs>",
        *(
            f'<marker id="tip-{one}" class="{one}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="tip" d="M0,0L8,4L0,8z"/></marker>'
            for one in sorted(set(kinds.values()))
        ),
        "</defs>",
    ]
    # Where several lines enter a box they end beside each other, in the order in which they come.
    entries = {name: sorted((place[stops[-2]][1], k) for k, (_, to, stops) in enumerate(plan.routes) if to == name)
               for name in values}  # fmt: skip
    for k, (one, name, stops) in enumerate(plan.routes):
        coming = [index for _, index in entries[name]]
        spread = min(8.0, 24 / len(coming))
        x, y = place[stops[-1]]
        end = (x - 2, y + spread * (coming.index(k) - (len(coming) - 1) / 2))
        points = [*(place[stop] for stop in stops[:-1]), end]
        parts.append(f'<path class="{kinds[one]}" d="{_line(points)}" marker-end="url(#tip-{kinds[one]})"/>')
    for name, column in plan.column.items():
        x, y = place[name, column]
        label = f"{name} = y" if name == output != "y" else name
        parts.append(
            f'<g class="{kinds[name]}">'
            f'<rect x="{x - HALF:.0f}" y="{y - 15:.1f}" width="{2 * HALF}" height="30" rx="8"/>'
            f'<text x="{x:.0f}" y="{y + 5:.1f}" font-size="14">{html.escape(label)}</text>'
        )
        sign = _SIGNS.get(values[name][0], "") if name in values else ""
        if sign:
            parts.append(f'<text class="sign" x="{x:.0f}" y="{y - 19:.1f}" font-size="11">{sign}</text>')
        parts.append("</g>")
    return f'<div class="drawn">{"".join(parts)}</svg></div>'

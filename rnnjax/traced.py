r"""Values that a function names while it computes: one interpreter reads them, or holds others in their place.

The step of a cell names its gates and its state, once, in one line beside the equations:

    c = f * state.c + i * g
    h = o * tanh(c)
    name_values(i=i, f=f, g=g, o=o, c=c, h=h)

Nothing is computed for it: the line leaves names in what JAX traces and nothing in the compiled program. `observe`
runs the traced equations. It hands back what was named, and computes with other values where it is told to: everything
that the function makes of a named value follows, wherever the name was given.

Who imports nothing from here writes ``jax.ad_checkpoint.checkpoint_name(c, "c")``, as `name_values` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from rnnjax.checks import describe

__all__ = ["Hold", "Named", "inner_jaxprs", "name_values", "names_within", "observe"]

Hold = Mapping[str, Callable[[jax.Array], jax.Array]]

_NONLINEAR = ("logistic", "tanh", "exp")
_SAME = ("convert_element_type", "copy")  # the value stays, so what made it is still of interest
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call")


class Named(NamedTuple):
    """A value under a name, or on its way through the equations."""

    value: Any
    made_by: str = ""  # what computed it in JAX: "logistic", "tanh", "add", ...; "" for an argument or constant
    before: Any = None  # what "logistic", "tanh" or "exp" was applied to; None for what another primitive made


def name_values(**values: jax.Array) -> None:
    """Names values of the function that is being traced, for `observe`; ``name_values(f=f)`` names the array f "f".

    What is returned by JAX's `checkpoint_name` is the value under another variable. It is not used here, since an
    automatic derivative would keep both for the backward pass; `observe` knows the variable that was named.
    """
    for name, value in values.items():
        checkpoint_name(value, name)


def observe(function: Callable[..., Any], *args: Any, hold: Hold | None = None) -> tuple[Any, dict[str, Named]]:
    r"""The result of a function, and every value that it names.

    It looks into ``jit`` and `jax.checkpoint`; into a `jax.lax.scan`, whose named values come stacked, one of each step
    ``[T, ...]``; and into functions with derivatives of their own if something is named there, which are then
    differentiated as the equations that they are. Of two values with one name the later one is read, and both are held.

    Args:
        function: takes pytrees of arrays and returns one.
        *args: its arguments.
        hold: by name, a function from the value that is computed to the one that is put in its place, of the same
            shape and dtype.

    Returns:
        The function's result, and what it names, in the order in which it is computed.

    Raises:
        ValueError: for a name in ``hold`` that the function does not give, a held value of another shape or dtype, or
            a name given where values cannot be handed out: within a ``while`` or ``cond``, for example.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.LSTM(hidden_size=2)
    >>> params, state = cell.init(jax.random.key(0), input_size=3), cell.initial_state()
    >>> (state, y), found = observe(cell.step, params, state, jnp.ones(3))
    >>> list(found), found["f"].made_by, bool((found["h"].value == y).all())
    (['i', 'f', 'g', 'o', 'c', 'h'], 'logistic', True)
    >>> (_, y), _ = observe(cell.step, params, state, jnp.ones(3), hold={"c": jnp.zeros_like})
    >>> y.tolist()
    [0.0, 0.0]
    """
    hold = {} if hold is None else hold
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    found: dict[str, Named] = {}
    outs = _run(closed.jaxpr, closed.consts, [Named(leaf) for leaf in jax.tree.leaves(args)], hold, found)
    if unknown := ", ".join(repr(name) for name in hold if name not in found):
        raise ValueError(
            f"observe: hold must name values that the function names, got {unknown}; it names "
            f"{', '.join(found) or 'nothing'}. Name a value where it is computed: "
            'f = jax.ad_checkpoint.checkpoint_name(f, "f").'
        )
    return jax.tree.unflatten(jax.tree.structure(shape), [out.value for out in outs]), found


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Named], hold: Hold, found: dict[str, Named]) -> list[Named]:
    known: dict[Any, Named] = {}
    names: dict[Any, list[str]] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name" and not isinstance(equation.invars[0], Literal):
            names.setdefault(equation.invars[0], []).append(equation.params["name"])

    def write(v: Any, made: Named) -> None:
        for name in names.get(v, ()):
            made = _named(name, made, hold, found)
        known[v] = made

    def read(v: Any) -> Named:
        return Named(v.val) if isinstance(v, Literal) else known[v]

    for v, made in zip((*jaxpr.constvars, *jaxpr.invars), (*map(Named, consts), *args), strict=True):
        write(v, made)
    for equation in jaxpr.eqns:
        for v, made in zip(equation.outvars, _equation(equation, list(map(read, equation.invars)), hold, found)):
            write(v, made)
    return list(map(read, jaxpr.outvars))


def _equation(equation: Any, args: list[Named], hold: Hold, found: dict[str, Named]) -> list[Named]:
    kind, parameters = equation.primitive.name, equation.params
    if kind == "name":
        constant = isinstance(equation.invars[0], Literal)
        return [_named(parameters["name"], args[0], hold, found) if constant else args[0]]
    if hasattr(operation := parameters.get("operation"), "portable"):  # an engine's, which may be opaque to JAX
        closed = jax.make_jaxpr(lambda *a: jax.tree.leaves(operation.portable(*a)))(*(a.value for a in args))
        if names_within(closed.jaxpr):
            return _run(closed.jaxpr, closed.consts, args, hold, found)
    inside = inner_jaxprs(parameters)
    names = [name for jaxpr in inside for name in names_within(jaxpr)]
    if kind in _CALLS or (names and kind in _DERIVATIVES):
        inner = inside[0]
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), args, hold, found)
    if names and kind == "scan":
        return _scan(parameters, args, hold, found)
    if names:
        raise ValueError(
            f"observe: values cannot be handed out of a {kind!r}, got the name {names[0]!r} within one; name a value "
            "outside of it, or loop by jax.lax.scan."
        )
    # As JAX's own interpreters bind an equation: parameters that are functions become what the primitive takes.
    with equation.ctx.manager:
        outs = equation.primitive.bind(*(a.value for a in args), **equation.primitive.get_bind_params(parameters))
    if equation.primitive.multiple_results:
        return list(map(Named, outs))
    if kind in _SAME:
        return [args[0]._replace(value=outs)]
    return [Named(outs, kind, args[0].value if kind in _NONLINEAR else None)]


def _named(name: str, made: Named, hold: Hold, found: dict[str, Named]) -> Named:
    if name in hold:
        value = hold[name](made.value)
        if value.shape != made.value.shape or value.dtype != made.value.dtype:
            raise ValueError(
                f"observe: what holds {name!r} must be {describe(made.value)} as the value itself, got "
                f"{describe(value)}; keep its shape and dtype."
            )
        made = made._replace(value=value)
    found[name] = made
    return made


def _scan(parameters: Any, args: list[Named], hold: Hold, found: dict[str, Named]) -> list[Named]:
    body = parameters["jaxpr"]
    if "num_consts" in parameters:
        first, num_carry = parameters["num_consts"], parameters["num_carry"]
    else:  # jax 0.12
        first, num_carry = (len(list(part)) for part in parameters["ft_in"].unpack()[:2])
    last = first + num_carry
    values = [a.value for a in args]
    made_by: dict[str, str] = {}

    def step(carry: Any, xs: Any) -> Any:
        inside: dict[str, Named] = {}
        outs = _run(body.jaxpr, body.consts, list(map(Named, [*values[:first], *carry, *xs])), hold, inside)
        made_by.update({name: seen.made_by for name, seen in inside.items()})
        results = [out.value for out in outs]
        return results[: last - first], (results[last - first :], [(s.value, s.before) for s in inside.values()])

    options = {key: parameters[key] for key in ("length", "reverse", "unroll")}
    carry, (ys, stacked) = jax.lax.scan(step, values[first:last], values[last:], **options)
    found.update({name: Named(v, by, b) for (name, by), (v, b) in zip(made_by.items(), stacked, strict=True)})
    return list(map(Named, [*carry, *ys]))


def inner_jaxprs(parameters: Any) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    parts = [p for value in parameters.values() for p in (value if isinstance(value, tuple | list) else (value,))]
    return [part for part in parts if hasattr(part, "jaxpr") or hasattr(part, "eqns")]


def names_within(jaxpr: Any) -> list[str]:
    """All names that are given somewhere within."""
    found: list[str] = []
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "name":
            found.append(equation.params["name"])
        for inner in inner_jaxprs(equation.params):
            found += names_within(inner)
    return found

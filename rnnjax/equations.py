"""What a function computes, as lines of text: read from what JAX traces, with the names that the function gives."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal

from rnnjax.traced import inner_jaxprs, names_within

__all__ = ["count_operations", "equations"]

_ATOM, _POWER, _TIMES, _MATMUL, _PLUS = 5, 4, 3, 2, 1  # how tightly an expression holds together
_INFIX = {"add": ("+", _PLUS), "sub": ("-", _PLUS), "mul": ("*", _TIMES), "div": ("/", _TIMES), "rem": ("%", _TIMES)}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_SAME = ("convert_element_type", "copy", "broadcast_in_dim", "reshape", "squeeze", "stop_gradient")
_SPOKEN = {"logistic": "sigmoid", "reduce_sum": "sum", "reduce_max": "max", "integer_pow": "power", "select_n": "where"}
_FUNCTIONS = ("relu", "sigmoid", "silu", "softplus", "log_sigmoid", "logaddexp", "_where", "clip", "elu", "gelu")
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")
_FREE = (*_SAME, "name", "slice", "split", "concatenate", "transpose", "iota", "real", "imag", "complex", "gather")
_TRANSCENDENTAL = ("logistic", "tanh", "exp", "exp2", "log", "log1p", "expm1", "sin", "cos", "erf", "sqrt", "rsqrt",
                   "pow", "cbrt", "tan", "atan2")  # fmt: skip


_SIMPLE = re.compile(r"[\w'.]+(\[[\d:, ]+\])?")  # a name, a number, a part
_ONE = re.compile(r"(.*)\[(\d+):(\d+)(?:, :)*\]")  # one of the first axis


class _Text(NamedTuple):
    """An expression."""

    text: str
    tight: int = _ATOM

    def within(self, tight: int) -> str:
        return self.text if self.tight >= tight else f"({self.text})"


def equations(jaxpr: Any, inputs: Sequence[str], outputs: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Lines ``name = expression`` that compute the outputs.

    Values that the function names (`rnnjax.traced.name_values`) become a line each, and so does what is used twice.

    Args:
        jaxpr: what JAX traced.
        inputs: what its arguments are called.
        outputs: what its results are called.
        taken: names of inputs that a value may have too, which is then called as in ``c'``.

    >>> import jax, jax.numpy as jnp
    >>> closed = jax.make_jaxpr(lambda a, b: jnp.tanh(a * (b + 1)))(1.0, 2.0)
    >>> equations(closed.jaxpr, ["a", "b"], ["y"])
    ['y = tanh(a * (b + 1))']
    """
    known: dict[Any, _Text] = {v: _Text(name) for v, name in zip(jaxpr.invars, inputs, strict=True)}
    state = _Writer([], set(inputs), set(taken), {*inputs, *names_within(jaxpr)})
    _read(jaxpr, known, state)
    for v, name in zip(jaxpr.outvars, outputs, strict=True):
        found = _value(v, known)
        if found.text != name:
            state.lines.append(f"{name} = {found.text}")
    return state.lines


class _Writer(NamedTuple):
    lines: list[str]
    used: set[str]
    taken: set[str]
    reserved: set[str]  # that no temporary has

    def line(self, name: str, expression: _Text) -> _Text:
        name = f"{name}'" if name in self.taken else name
        while name in self.used:
            name += "'"
        self.used.add(name)
        self.lines.append(f"{name} = {expression.text}")
        return _Text(name)

    def temporary(self, expression: _Text) -> _Text:
        n = 1
        while f"t{n}" in self.used | self.reserved:
            n += 1
        return self.line(f"t{n}", expression)


def _value(v: Any, known: dict[Any, _Text]) -> _Text:
    if not isinstance(v, Literal):
        return known[v]
    value = v.val.item() if hasattr(v.val, "item") and getattr(v.val, "size", 1) == 1 else v.val
    if isinstance(value, bool | int | float):
        return _Text(f"{value:g}" if not isinstance(value, bool) else str(value), _ATOM if value >= 0 else _PLUS)
    return _Text("constant")


def _read(jaxpr: Any, known: dict[Any, _Text], writer: _Writer) -> None:
    names: dict[Any, str] = {}
    uses: dict[Any, int] = {}
    for equation in jaxpr.eqns:
        here = {v for v in equation.invars if not isinstance(v, Literal)}
        if equation.primitive.name == "name":
            for v in here:
                names.setdefault(v, equation.params["name"])
        else:
            for v in here:
                uses[v] = uses.get(v, 0) + 1
    for v in jaxpr.constvars:
        known[v] = _Text("constant")
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name":
            continue
        found = _expression(equation, [_value(v, known) for v in equation.invars], writer)
        for v, expression in zip(equation.outvars, found, strict=True):
            if v in names:
                expression = writer.line(names[v], expression)
            elif uses.get(v, 0) > 1 and not _SIMPLE.fullmatch(expression.text):
                expression = writer.temporary(expression)
            known[v] = expression


def _expression(equation: Any, args: list[_Text], writer: _Writer) -> list[_Text]:
    kind, parameters = equation.primitive.name, equation.params
    if kind in _CALLS:
        inner = next(iter(inner_jaxprs(parameters)), None)
        called = str(parameters.get("name") or _called(parameters, inner))
        if called in _FUNCTIONS or inner is None:
            words = [a.text for a in args]
            if called == "logaddexp" and words[-1] == "0":
                called, words = "softplus", words[:-1]
            return [_Text(f"{called.strip('_')}({', '.join(words)})")] * len(equation.outvars)
        jaxpr = getattr(inner, "jaxpr", inner)
        known = dict(zip(jaxpr.invars, args, strict=True))
        _read(jaxpr, known, writer)
        return [_value(v, known) for v in jaxpr.outvars]
    if kind in _INFIX:
        sign, tight = _INFIX[kind]
        right = tight + 1 if kind in ("sub", "div", "rem") else tight
        return [_Text(f"{args[0].within(tight)} {sign} {args[1].within(right)}", tight)]
    if kind in _COMPARE:
        return [_Text(f"{args[0].within(_PLUS)} {_COMPARE[kind]} {args[1].within(_PLUS)}", 0)]
    if kind == "squeeze" and (one := _ONE.fullmatch(args[0].text)) and int(one[3]) == int(one[2]) + 1:
        return [_Text(f"{one[1]}[{one[2]}]")]
    if kind in _SAME:
        return [args[0]]
    if kind == "dot_general":
        return [_Text(f"{args[0].within(_POWER)} @ {args[1].within(_POWER)}", _MATMUL)]
    if kind == "neg":
        return [_Text(f"-{args[0].within(_POWER)}", _PLUS)]
    if kind == "integer_pow":
        return [_Text(f"{args[0].within(_ATOM)}**{parameters['y']}", _POWER)]
    if kind == "select_n" and len(args) == 3:
        return [_Text(f"where({args[0].text}, {args[2].text}, {args[1].text})")]
    if kind == "split":
        whole = args[0] if args[0].text.isidentifier() else writer.temporary(args[0])
        sizes = [int(size) for size in parameters["sizes"]]
        if len(set(sizes)) == 1:
            return [_Text(f"{whole.text}[{n}]") for n in range(len(sizes))]  # the block of that number
        ends, before = list(itertools.accumulate(sizes)), ":, " * int(parameters["axis"])
        return [_Text(f"{whole.text}[{before}{end - size}:{end}]") for size, end in zip(sizes, ends, strict=True)]
    if kind == "slice":
        shape, starts, ends = equation.invars[0].aval.shape, parameters["start_indices"], parameters["limit_indices"]
        bounds = zip(shape, starts, ends, strict=True)
        cut = ", ".join(":" if (low, high) == (0, size) else f"{low}:{high}" for size, low, high in bounds)
        return [_Text(f"{args[0].within(_ATOM)}[{cut}]")]
    name = _SPOKEN.get(kind, kind)
    return [_Text(f"{name}({', '.join(a.text for a in args)})")] * len(equation.outvars)


def _called(parameters: Any, inner: Any) -> str:
    own = getattr(parameters.get("jvp_jaxpr_fun", None), "__name__", "")
    jaxpr = getattr(inner, "jaxpr", inner)
    info = getattr(jaxpr, "debug_info", None)
    return own or str(getattr(info, "func_name", ""))


class Operations(NamedTuple):
    """How much arithmetic a function is."""

    matmul: int  # additions and multiplications in matrix products
    pointwise: int  # other arithmetic, one a number
    transcendental: int  # of these: tanh, exp and the like


def count_operations(jaxpr: Any) -> Operations:
    """What is computed, counted from the shapes; moving and renaming numbers costs nothing.

    >>> import jax, jax.numpy as jnp
    >>> count_operations(jax.make_jaxpr(lambda w, x: jnp.tanh(x @ w))(jnp.ones((3, 4)), jnp.ones(3)).jaxpr)
    Operations(matmul=24, pointwise=4, transcendental=4)
    """
    total = [0, 0, 0]
    for equation in jaxpr.eqns:
        kind, parameters = equation.primitive.name, equation.params
        inner = next(iter(inner_jaxprs(parameters)), None) if kind in _CALLS else None
        if inner is not None:
            found = count_operations(getattr(inner, "jaxpr", inner))
            total = [a + b for a, b in zip(total, found, strict=True)]
            continue
        size = max((v.aval.size for v in equation.outvars), default=0)
        if kind == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = 1
            for axis in contracted:
                depth *= shape[axis]
            total[0] += 2 * size * depth
        elif kind == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval, parameters["dimension_numbers"].rhs_spec
            total[0] += 2 * size * kernel.size // kernel.shape[spec[0]]
        elif kind not in _FREE:
            if kind.startswith("reduce_"):
                size = equation.invars[0].aval.size
            total[1] += size
            total[2] += size * (kind in _TRANSCENDENTAL)
    return Operations(*total)

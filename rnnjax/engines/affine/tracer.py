"""From the equations of a jaxpr on arrays ``[H]`` to operations on the numbers of one unit; see `program`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

__all__ = ["REAL", "Columns", "Node", "NotPointwise", "Tracer"]

_CALLS = {"pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "remat2"}
_CALLS |= {"checkpoint"}
_SAME = {"copy", "copy_p", "stop_gradient", "name", "optimization_barrier", "pvary"}
REAL = {
    "add", "sub", "mul", "div", "neg", "max", "min", "abs", "sign", "exp", "exp2", "log", "log1p", "expm1", "tanh",
    "logistic", "sqrt", "rsqrt", "cbrt", "erf", "erfc", "pow", "sin", "cos", "tan", "asin", "acos", "atan", "atan2",
    "sinh", "cosh", "asinh", "acosh", "atanh", "floor", "ceil", "is_finite",
}  # fmt: skip
_ON_INTEGERS = {"add", "sub", "mul", "neg", "max", "min", "abs", "sign"}  # exact in floating point as well
_COMPARISONS = {"gt", "lt", "ge", "le", "eq", "ne"}
_LOGIC = {"and", "or", "not", "xor"}

Columns = tuple[int, ...]  # the nodes of an array: one for a scalar and for [H], n for [n H]


@dataclasses.dataclass(frozen=True)
class Node:
    """One number of one unit.

    Attributes:
        op: ``"input"``, ``"constant"``, or an operation: the name of the JAX primitive, with ``"select"`` (condition,
            then, else), ``"to_real"`` (of a truth value) and ``"sum_units"`` (a cotangent of a scalar parameter:
            the number of this unit, which is to be summed over all of them).
        args: the nodes that it reads, all of them earlier ones.
        value: of a constant.
        name: of an input, ``"old[1]"``.
    """

    op: str
    args: tuple[int, ...] = ()
    value: float = 0.0
    name: str = ""


class NotPointwise(Exception):  # noqa: N818
    """The end of a sentence: what an engine needs, and what the update has instead."""


class Tracer:
    """Collects the nodes of a jaxpr; equal operations on equal nodes become one."""

    def __init__(self, hidden_size: int, dtype: Any, nodes: Sequence[Node] = (), *, may_sum: bool = False):
        self.hidden_size, self.dtype, self.may_sum = hidden_size, dtype, may_sum
        self.nodes = list(nodes)
        self._known: dict[Node, int] = {}

    def add(self, op: str, args: tuple[int, ...] = (), value: float = 0.0, name: str = "") -> int:
        if op == "add":  # of an instantiated zero
            for a, b in (args, args[::-1]):
                if self.nodes[a] == Node("constant"):
                    return b
        node = Node(op, args, value, name)
        if value != value:  # NaN equals nothing
            self.nodes.append(node)
            return len(self.nodes) - 1
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Columns]) -> list[Columns]:
        known: dict[Any, Columns] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Any) -> Columns:
            return self._constant(v.val, np.shape(v.val)) if isinstance(v, Literal) else known[v]

        for v, value in zip(jaxpr.constvars, consts, strict=True):
            known[v] = self._constant(value, v.aval.shape)
        for equation in jaxpr.eqns:
            args = [read(v) for v in equation.invars]
            if equation.primitive.name in _CALLS:
                names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
                inner = next(equation.params[n] for n in names if n in equation.params)
                if hasattr(inner, "consts"):
                    outs = self.run(inner.jaxpr, inner.consts, args)
                else:
                    outs = self.run(inner, (), args)
            else:
                outs = self._equation(equation, args)
            known.update(zip(equation.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _constant(self, value: Any, shape: tuple[int, ...]) -> Columns:
        found = np.asarray(value)
        if found.size == 0 or ((found != found.flat[0]).any() and not np.isnan(found).all()):
            raise NotPointwise("needs a pointwise update, got one with an array of constants in it")
        number = self.add("constant", value=float(found.flat[0]) + 0.0)
        if found.dtype == bool:
            number = self.add("ne", (number, self.add("constant")))
        return (number,) * self._width(shape, "a constant")

    def _width(self, shape: tuple[int, ...], what: str) -> int:
        """The number of columns of an array."""
        if shape == ():
            return 1
        if len(shape) != 1 or shape[0] % self.hidden_size:
            raise NotPointwise(f"needs a pointwise update, got {what} of shape {list(shape)} in it")
        return shape[0] // self.hidden_size

    def _equation(self, equation: Any, args: list[Columns]) -> list[Columns]:
        name, parameters = equation.primitive.name, equation.params
        avals = [v.aval for v in equation.invars]
        what = f"{name}{_where(equation)}"
        widths = [self._width(v.aval.shape, what) for v in (*equation.invars, *equation.outvars)][len(args) :]
        if name in _SAME:
            return list(args)
        if name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
            source, target = avals[0].shape, equation.outvars[0].aval.shape
            if source not in ((), target) and source != (1,) and target != ():
                raise NotPointwise(f"needs a pointwise update, got {what} of {list(source)} to {list(target)} in it")
            return [args[0] * (widths[0] // len(args[0]))]
        if name == "concatenate":
            return [tuple(c for columns in args for c in columns)]
        if name in ("split", "slice", "pad", "reduce_sum"):
            return self._rearrange(name, parameters, avals[0], args, what, widths)
        outs = []
        for k in range(widths[0]):
            here = tuple(c[k] if len(c) > 1 else c[0] for c in args)
            outs.append(self._operation(name, parameters, avals, equation.outvars[0].aval, here, what))
        return [tuple(outs)]

    def _rearrange(
        self, name: str, parameters: Any, aval: Any, args: list[Columns], what: str, widths: list[int]
    ) -> list[Columns]:
        """What moves whole columns, and the sums that give the cotangents of scalars."""
        columns, size = args[0], self.hidden_size
        if name == "split":
            ends = np.cumsum(widths)
            return [columns[end - width : end] for end, width in zip(ends, widths, strict=True)]
        if name == "slice" and aval.ndim == 1 and parameters["strides"] in (None, (1,)):
            start = parameters["start_indices"][0]
            if start % size == 0:
                return [columns[start // size : start // size + widths[0]]]
        if name == "pad":
            low, high, between = parameters["padding_config"][0]
            if between == 0 and low >= 0 and high >= 0 and low % size == high % size == 0:
                return [args[1] * (low // size) + columns + args[1] * (high // size)]
        if name == "reduce_sum" and aval.ndim == 1 and self.may_sum:
            total = columns[0]
            for c in columns[1:]:
                total = self.add("add", (total, c))
            return [(self.add("sum_units", (total,)),)]
        raise NotPointwise(f"needs a pointwise update, got {what} in it, which mixes units")

    def _operation(self, name: str, parameters: Any, avals: Any, out: Any, args: tuple[int, ...], what: str) -> int:
        """One operation on the numbers of a unit."""
        truth = [a.dtype == bool for a in avals]
        whole = any(jnp.issubdtype(a.dtype, jnp.integer) for a in avals)
        if name == "convert_element_type":
            return self._cast(avals[0].dtype, out.dtype, args[0], what)
        if name == "select_n":
            if len(args) != 3 or not truth[0] or truth[1]:
                raise NotPointwise(f"needs a pointwise update of real numbers, got {what} of {avals[0].dtype} in it")
            return self.add("select", (args[0], args[2], args[1]))
        if name == "bitcast_convert_type" and self.nodes[args[0]].op == "bits":
            return self.nodes[args[0]].args[0]
        if name == "bitcast_convert_type" and jnp.issubdtype(out.dtype, jnp.unsignedinteger):
            return self.add("bits", args)
        if name == "and" and any(self.nodes[i].op == "bits" for i in args):
            return self._high_bits(args, out.dtype, what)
        if any(self.nodes[i].op == "bits" for i in args):
            raise NotPointwise(f"needs a pointwise update of real numbers, got {what} of bits in it")
        if name in _LOGIC and all(truth):
            return self.add(name, args)
        if name in ("eq", "ne") and all(truth):
            unequal = self.add("xor", args)
            return unequal if name == "ne" else self.add("not", (unequal,))
        if any(truth):
            raise NotPointwise(f"needs a pointwise update of real numbers, got {what} of truth values in it")
        if name == "add_any":
            name = "add"
        if name in _COMPARISONS or (name in REAL and (not whole or name in _ON_INTEGERS)):
            return self.add(name, args)
        if name == "square":
            return self.add("mul", (args[0], args[0]))
        if name == "one_minus_square":  # as JAX has it, exact near one; since 0.12, as are the next two
            one = self.add("constant", value=1.0)
            return self.add("mul", (self.add("add", (one, args[0])), self.add("sub", (one, args[0]))))
        if name == "log2":
            return self.add("mul", (self.add("log", args), self.add("constant", value=1.4426950408889634)))
        if name == "polynomial":
            x, *terms = args
            total = terms.pop()
            while terms:
                total = self.add("add", (self.add("mul", (total, x)), terms.pop()))
            return total
        if name == "integer_pow":
            return self._integer_pow(args[0], parameters["y"])
        if name == "clamp":
            low, x, high = args
            return self.add("min", (self.add("max", (x, low)), high))
        mixing = {"dot_general", "cumsum", "cumprod", "sort", "gather", "rev", "iota", "argmax", "conv_general_dilated"}
        mixes = name in mixing or name.startswith("reduce_")
        raise NotPointwise(f"needs a pointwise update, got {what} in it" + ", which mixes units" * mixes)

    def _cast(self, old: Any, new: Any, arg: int, what: str) -> int:
        if jnp.issubdtype(new, jnp.bool_):
            return arg if jnp.issubdtype(old, jnp.bool_) else self.add("ne", (arg, self.add("constant")))
        if jnp.issubdtype(old, jnp.bool_):
            return self.add("to_real", (arg,))
        to_integer = jnp.issubdtype(new, jnp.integer) and not jnp.issubdtype(old, jnp.integer)
        if to_integer or (jnp.issubdtype(new, jnp.floating) and new != self.dtype):
            raise NotPointwise(f"needs an update that stays in {self.dtype}, got {what} to {new} in it")
        return arg

    def _high_bits(self, args: tuple[int, ...], dtype: Any, what: str) -> int:
        """Bits of a number with the last ones masked out: with them it is the same number but for rounding.

        So JAX 0.12 splits a number into a high and a low part in the derivative of erf; the low part is zero then.
        """
        bits, mask = sorted(args, key=lambda i: self.nodes[i].op != "bits")
        size = jnp.iinfo(dtype).bits
        cut = 2.0**size - self.nodes[mask].value
        if self.nodes[mask].op != "constant" or not 0 <= cut <= 2.0 ** {16: 6, 32: 14, 64: 30}[size]:
            raise NotPointwise(f"needs a pointwise update of real numbers, got {what} of bits in it")
        return bits

    def _integer_pow(self, x: int, power: int) -> int:
        one = self.add("constant", value=1.0)
        result, square, rest = None, x, abs(power)
        while rest:  # by squaring
            if rest & 1:
                result = square if result is None else self.add("mul", (result, square))
            rest >>= 1
            square = self.add("mul", (square, square)) if rest else square
        if result is None:
            return one
        return result if power > 0 else self.add("div", (one, result))

    def check_sums(self, d_own: Sequence[Columns], counts: Sequence[int | None], others: Sequence[int]) -> None:
        """Sums over units may only be the cotangents of scalars, scaled and added up: then the last step can sum."""
        summed: list[bool] = []
        uniform: list[bool] = []  # the same for all units
        scalars = {f"own[{sum(c or 1 for c in counts[:i])}]" for i, count in enumerate(counts) if count is None}
        for node in self.nodes:
            here = [summed[j] for j in node.args]
            uniform.append(node.op == "constant" or node.name in scalars)
            if node.op not in ("input", "constant", "sum_units"):
                uniform[-1] = all(uniform[j] for j in node.args)
            plain = all(uniform[j] for j in node.args if not summed[j])
            if node.op in ("add", "sub", "neg"):
                linear = all(here)
            elif node.op in ("mul", "div"):
                linear = plain and sum(here) == 1 and (node.op == "mul" or here[0])
            else:
                linear = node.op == "select" and plain and not here[0] and all(here[1:])
            if any(here) and not linear:
                raise NotPointwise("needs a pointwise update, got a sum over units in it (reduce_sum)")
            summed.append(node.op == "sum_units" or any(here))
        zero = Node("constant")
        for columns, count in zip(d_own, counts, strict=True):
            if any(summed[c] != (count is None) and self.nodes[c] != zero for c in columns):
                raise NotPointwise("needs a pointwise update, got a sum over units in it (reduce_sum)")
        if any(summed[i] for i in others):
            raise NotPointwise("needs a pointwise update, got a sum over units in it (reduce_sum)")


def _where(equation: Any) -> str:
    """`` (elman.py, line 86)``, where the equation knows it: the innermost line outside of JAX."""
    inside = os.path.dirname(jax.__file__)
    traceback = getattr(getattr(equation, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", None) or ():
        if not frame.file_name.startswith((inside, "<")) and frame.file_name != __file__:
            return f" ({os.path.basename(frame.file_name)}, line {frame.line_num})"
    return ""

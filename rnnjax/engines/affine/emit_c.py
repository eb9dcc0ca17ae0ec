"""A `Program` as C: the same text generator for the vectors of a CPU and for a thread of a GPU.

Every number becomes ``const T v17 = ...;``. What an operation looks like is a table of the target: infix operators are
the same everywhere, functions have the target's names. Loads and stores are expressions that the caller chooses, by
saying which nodes are given and where outputs go.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from rnnjax.engines.affine.program import Program

__all__ = ["SCALAR", "SCALAR_MATH", "TRUTHS", "Target", "emit"]

_INFIX = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "neg": "-{0}",
    "gt": "{0} > {1}", "lt": "{0} < {1}", "ge": "{0} >= {1}", "le": "{0} <= {1}", "eq": "{0} == {1}",
    "ne": "{0} != {1}", "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}",
    "select": "{0} ? {1} : {2}", "sum_units": "{0}",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """How a target writes numbers and operations.

    Attributes:
        real: the type of a number.
        truth: the type of a truth value.
        prefix: stands before the name of a function: ``"m_"`` makes ``exp(x)`` to ``m_exp(x)``.
        constant: a template for constants; ``{}`` is the number.
        scalar: the type that a constant is cast to, for infinities and NaN as well.
        operations: templates that differ from the defaults; ``{0}``, ``{1}``, ``{2}`` are the operands.
    """

    real: str
    truth: str
    prefix: str
    constant: str
    scalar: str
    operations: Mapping[str, str]

    def number(self, value: float) -> str:
        """A constant."""
        if math.isnan(value):
            text = "NAN"
        elif math.isinf(value):
            text = "INFINITY" if value > 0 else "-INFINITY"
        else:
            text = repr(value)
        return self.constant.format(f"({self.scalar}){text}" if value >= 0 else f"({self.scalar})({text})")

    def operation(self, op: str, operands: Sequence[str]) -> str:
        """An operation on operands that are names or constants."""
        if op == "to_real" and op not in self.operations:
            return f"{operands[0]} ? {self.number(1.0)} : {self.number(0.0)}"
        template = self.operations.get(op) or _INFIX.get(op)
        if template is not None:
            return template.format(*operands)
        return f"{self.prefix}{op}({', '.join(operands)})"


# Operations that give truth values.
TRUTHS = {"gt", "lt", "ge", "le", "eq", "ne", "and", "or", "not", "xor", "is_finite"}


def emit(
    program: Program,
    outputs: Sequence[tuple[int, str]],
    given: Mapping[int, str],
    target: Target,
    indent: str = "  ",
    store: str = "{place} = {value};",
) -> str:
    """Statements that compute some nodes from others.

    Args:
        program: the program.
        outputs: nodes, and the expression each is stored into, in this order.
        given: nodes that are there already, and the expression each is read by; it is read once. Inputs that are
            needed must be among them; ``program.names()`` gives all of them the names of a C array.
        target: where it runs.
        indent: stands before every line.
        store: the template of a store.

    Returns:
        The lines; names ``v0``, ``v1``, ... are taken.

    Raises:
        ValueError: if an input is needed that is not given.
    """
    names: dict[int, str] = {}
    lines: list[str] = []

    def define(i: int, kind: str, text: str) -> None:
        names[i] = f"v{i}"
        lines.append(f"const {kind} v{i} = {text};")

    wanted = program.needed([i for i, _ in outputs], stop=given)
    for i, node in enumerate(program.nodes):
        if i not in wanted:
            continue
        kind = target.truth if node.op in TRUTHS else target.real
        if i in given:
            define(i, kind, given[i])
        elif node.op == "constant":
            names[i] = target.number(node.value)
        elif node.op == "input":
            raise ValueError(f"emit: {node.name} is needed and not given.")
        else:
            define(i, kind, target.operation(node.op, [names[j] for j in node.args]))
    lines += [store.format(place=place, value=names[i]) for i, place in outputs]
    return "\n".join(indent + line for line in lines)


SCALAR = Target("real", "bool", "m_", "{}", "real", {"not": "!{0}"})

# The functions of `SCALAR`, for a compiler with the C++ library; `real` is float or double.
SCALAR_MATH = r"""
#include <cmath>
static inline real m_logistic(real x) { return 1 / (1 + std::exp(-x)); }
static inline real m_sign(real x) { return x > 0 ? (real)1 : x < 0 ? (real)-1 : x; }
static inline real m_max(real a, real b) { return a > b || a != a ? a : b; }
static inline real m_min(real a, real b) { return a < b || a != a ? a : b; }
static inline real m_rsqrt(real x) { return 1 / std::sqrt(x); }
static inline bool m_is_finite(real x) { return std::isfinite(x); }
static inline real m_abs(real x) { return std::fabs(x); }
static inline real m_pow(real a, real b) { return std::pow(a, b); }
static inline real m_atan2(real a, real b) { return std::atan2(a, b); }
#define FUNCTION(name) static inline real m_##name(real x) { return std::name(x); }
FUNCTION(exp) FUNCTION(exp2) FUNCTION(log) FUNCTION(log1p) FUNCTION(expm1) FUNCTION(tanh) FUNCTION(sqrt) FUNCTION(cbrt)
FUNCTION(erf) FUNCTION(erfc) FUNCTION(sin) FUNCTION(cos) FUNCTION(tan) FUNCTION(asin) FUNCTION(acos) FUNCTION(atan)
FUNCTION(sinh) FUNCTION(cosh) FUNCTION(asinh) FUNCTION(acosh) FUNCTION(atanh) FUNCTION(floor) FUNCTION(ceil)
#undef FUNCTION
"""

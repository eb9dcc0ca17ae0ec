"""The network itself in a page: its weights, and its step as JavaScript, made from the cell's own update."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import AffineCell, leaf_names
from rnnjax.engines.affine.emit_c import Target, emit
from rnnjax.engines.affine.plan import Plan
from rnnjax.engines.affine.program import Program
from rnnjax.engines.affine.recurrence import plan_of
from rnnjax.lm.run import Run
from rnnjax.network import start_state
from rnnjax.report.page import pack

__all__ = ["step_script", "writer_data"]

_REFERENCE = 60  # symbols, behind which the page compares itself with JAX
_NOT_IN_MATH = ("erf", "erfc")
_BYTES = {16: 2.8, 8: 1.4}  # that a weight of so many bits takes in a page, at most
_MATRICES = ("embedding", "w_ih", "w_hh", "w_out")


class _JavaScript(Target):
    def number(self, value: float) -> str:
        text = "NaN" if math.isnan(value) else repr(value).replace("inf", "Infinity")
        return text if value >= 0 else f"({text})"


_TARGET = _JavaScript(
    "", "", "Math.", "{}", "",
    {
        "logistic": "1 / (1 + Math.exp(-{0}))", "rsqrt": "1 / Math.sqrt({0})", "exp2": "2 ** {0}", "not": "!{0}",
        "is_finite": "Number.isFinite({0})", "to_real": "Number({0})", "and": "{0} && {1}", "or": "{0} || {1}",
        "xor": "{0} !== {1}",
    },
)  # fmt: skip


def step_script(programs: Sequence[Program]) -> str:
    """A JavaScript array of functions, one a layer: ``(H, own, old, seen, fresh, y)`` fills ``fresh`` and ``y``."""
    functions = []
    for program in programs:
        given = {i: f"{name}[u]" for i, name in program.names().items()}
        outputs = [*((node, f"fresh[{k}][u]") for k, node in enumerate(program.new)), (program.y, "y[u]")]
        body = emit(program, outputs, given, _TARGET, indent="      ")
        functions.append(
            f"(H, own, old, seen, fresh, y) => {{\n    for (let u = 0; u < H; u++) {{\n{body}\n    }}\n  }}"
        )
    return "[\n  " + ",\n  ".join(functions) + ",\n]"


def writer_data(run: Run, size: int, ids: np.ndarray) -> tuple[dict[str, Any], str]:
    """What the page needs to run the network: rounded weights, and what JAX computes from the very same.

    Weights are floats of 16 bits, or, where those would not fit, matrices have 8: integers, times a scale a column.

    Args:
        run: from `rnnjax.lm.run.open_run`.
        size: bytes, at most.
        ids: of a text, of whose start the reference is made.

    Returns:
        Data for JSON, whose ``"why"`` says why there is no network where there is none, and the JavaScript of its step.
    """
    plans, why = _plans(run)
    count = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    bits = next((bits for bits, each in _BYTES.items() if each * count <= size), 0)
    if not why and not bits:
        why = "its weights do not fit into the page; --megabytes makes room"
    if why:
        return {"why": why}, "[]"
    model = dataclasses.replace(run.model, dtype="float32", dropout=0.0)
    params = rounded(run.params, bits)

    def weights(leaf: Any) -> str | dict[str, str] | None:
        if leaf is None or bits == 16 or leaf.ndim != 2:
            return None if leaf is None else pack(np.asarray(leaf, np.float16).view(np.uint16))
        levels, scales = _levels(np.asarray(leaf))
        return {"levels": pack((levels + 128).astype(np.uint8)), "scales": pack(scales)}

    layers: list[dict[str, Any]] = []
    start = start_state(model.stack, params.stack, ())
    for (plan, program), own, state in zip(plans, run.params.stack.layers, start.layers, strict=True):
        leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(state)]
        shown = params.stack.layers[len(layers)]
        columns = program.columns(plan.own(shown), plan.cell.hidden_size, jnp.float32)
        layers.append(
            {
                "size": plan.cell.hidden_size,
                "gates": plan.cell.num_gates,
                "summed": list(plan.summed),
                "h": leaf_names(state).index("h"),
                "start": [pack(leaf) for leaf in leaves],
                "own": [pack(np.asarray(column)) for column in columns],
                "w_ih": weights(own.w_ih),
                "w_hh": weights(getattr(own, "w_hh", None)),
                "b": weights(getattr(own, "b", None)),
            }
        )
    prime = np.asarray(ids[:_REFERENCE], np.int32)
    _, logits = model.logits(params, model.initial_state((1,)), jnp.asarray(prime)[:, None], implementation="scan")
    data = {
        "layers": layers,
        "bits": bits,
        "embedding": weights(run.params.embedding),
        "w_out": None if model.tie else weights(run.params.w_out),  # else the embedding, turned
        "b_out": weights(run.params.b_out),
        "vocabulary": list(run.vocabulary.symbols),
        "unknown": run.vocabulary.unknown,
        "prime": prime.tolist(),
        "reference": pack(np.asarray(jax.nn.softmax(logits[-1, 0].astype(jnp.float32)))),
    }
    return data, step_script([program for _, program in plans])


def _plans(run: Run) -> tuple[list[tuple[Plan, Program]], str]:
    """How each layer is computed, or the end of a sentence why the page cannot do it."""
    stack = run.model.stack
    plans: list[tuple[Plan, Program]] = []
    if run.vocabulary.level == "word":
        return [], "it reads words, which the page cannot cut a text into"
    if stack.residual or stack.norm is not None:
        return [], "its layers are joined by more than a stack, which the page does not compute"
    for cell, params in zip(stack.cells, run.params.stack.layers, strict=True):
        name = type(cell).__name__
        if not isinstance(cell, AffineCell):
            return [], f"the step of {name} is not two affine maps and an update, which is all that the page computes"
        affine: Any = cell
        plan = plan_of(affine, params.w_ih.shape[0], None, None)
        program = plan.program()
        if not isinstance(program, Program):
            return [], f"the update of {name} {program.reason}"
        nodes = program.needed([*program.new, program.y])
        if missing := [op for op in _NOT_IN_MATH if any(program.nodes[i].op == op for i in nodes)]:
            return [], f"the update of {name} needs {missing[0]}, which a browser lacks"
        plans.append((plan, program))
    return plans, ""


def rounded(params: Any, bits: int) -> Any:
    """Parameters as a page holds them, float32 again."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        if bits == 8 and getattr(path[-1], "name", "") in _MATRICES and leaf.ndim == 2:
            levels, scales = _levels(np.asarray(leaf))
            return jnp.asarray(levels * scales)
        return jnp.asarray(jnp.asarray(leaf, jnp.float16), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, params)


def _levels(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers from -127 to 127, and what those of each column are multiplied by, both float32."""
    scales = np.maximum(np.abs(matrix).max(0), np.float32(1e-30)).astype(np.float32) / np.float32(127)
    return np.rint(matrix / scales).astype(np.float32), scales

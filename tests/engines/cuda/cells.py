"""Cells that the CUDA kernels run, and one that nobody wrote a kernel for."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rnnjax
from rnnjax.engines.affine.cuda_cell import cell_text
from rnnjax.engines.affine.plan import make_plan
from rnnjax.engines.affine.program import Refusal
from tests.cells_table import CELLS, VARIANTS
from tests.pages import blocks

__all__ = ["POINTWISE", "Custom", "plan_of", "text_of"]


class CustomParams(NamedTuple):
    w_ih: jax.Array
    w_hh: jax.Array
    gain: jax.Array  # [H]
    rate: jax.Array  # []


class CustomState(NamedTuple):
    c: jax.Array
    h: jax.Array
    n: jax.Array


@dataclasses.dataclass(frozen=True)
class Custom:
    """Two gates, of which one is seen apart; no ``b``; three leaves, ``h`` in the middle; ``y`` is not ``h``."""

    hidden_size: int
    num_gates = 2

    def init(self, key: Any, input_size: int, dtype: Any = jnp.float32) -> CustomParams:
        k, l, m = jax.random.split(key, 3)
        H = self.hidden_size
        w_ih, w_hh = (jax.random.normal(a, (n, 2 * H), dtype) * n**-0.5 for a, n in ((k, input_size), (l, H)))
        gain = 1 + jax.random.uniform(m, (H,), dtype)
        return CustomParams(w_ih, w_hh, gain, jnp.asarray(0.3, dtype))

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> CustomState:
        return CustomState(*(jnp.full((*batch_shape, self.hidden_size), v, dtype) for v in (0.1, 0.0, 1.0)))

    def update(self, params: CustomParams, state: CustomState, zx: Any, zh: Any) -> tuple[CustomState, jax.Array]:
        keep = jax.nn.sigmoid(zx[0] + zh[0])
        new = jax.nn.softplus(zx[1]) + jnp.maximum(zh[1], 0.1)
        new += jnp.where(zh[1] > 0, jnp.tanh(zh[1]), zh[1]) * params.gain  # smooth: rounding decides nothing
        c = keep * state.c + (1 - keep) * jnp.tanh(new)
        n = params.rate * state.n + jnp.abs(c)
        h = c / jnp.sqrt(1 + n**2) - params.rate * state.h
        return CustomState(c, h, n), jax.lax.erf(h + params.gain * c)

    step = rnnjax.affine_step


def plan_of(cell: Any, dtype: Any = jnp.float32) -> Any:
    """The plan of a cell."""
    return make_plan(cell, jax.eval_shape(lambda: cell.init(jax.random.key(0), 3, dtype)), jnp.float32)


def text_of(cell: Any) -> Any:
    """What the kernels are told about it."""
    plan = plan_of(cell)
    program = plan.program()
    assert not isinstance(program, Refusal), program
    state = jax.eval_shape(lambda: cell.initial_state(()))
    h = next(i for i, leaf in enumerate(jax.tree.leaves(state)) if leaf is state.h)
    return cell_text(program, plan.summed or (True,) * cell.num_gates, h)


def _runs(cell: Any) -> bool:
    if not isinstance(cell, rnnjax.AffineCell):
        return False
    return not isinstance(plan_of(cell).program(), Refusal)


def _of_page(page: str, name: str) -> Any:
    """A cell that a page writes, of four units."""
    found: dict[str, Any] = {"__name__": "page"}
    exec(compile(next(code for code in blocks(page) if f"class {name}:" in code), page, "exec"), found)
    return found[name](4)


POINTWISE = {n: r.cell for n, r in (CELLS | VARIANTS).items() if _runs(r.cell)} | {
    "custom": Custom(4),
    "readme": _of_page("README.md", "Janet"),
    "page": _of_page("docs/extending.md", "FastGRNN"),
}

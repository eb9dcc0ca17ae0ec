"""A cell of your own: its units forget at speeds that are given, against an Elman network that has to learn them.

python examples/own_cell.py [PICTURE]        half a minute on two cores; draws where a file is named
"""

import dataclasses, os, sys
from typing import NamedTuple
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

STEPS, T = int(os.environ.get("STEPS", 300)), 120

class Params(NamedTuple):
    w_ih: jax.Array  # [I, H]
    w_hh: jax.Array  # [H, H]
    b: jax.Array     # [H]

class State(NamedTuple):
    h: jax.Array     # [H]

@dataclasses.dataclass(frozen=True)
class Clocks:
    """Every unit keeps a share of its state at each step: the first almost nothing, the last 99 %."""
    hidden_size: int
    num_gates = 1

    def init(self, key, input_size, dtype=jnp.float32):
        return Params(*rnnjax.Elman(self.hidden_size).init(key, input_size, dtype))

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return State(jnp.zeros((*batch_shape, self.hidden_size), dtype))

    def update(self, params, state, zx, zh):
        keep = 1 - jnp.logspace(0, -2, self.hidden_size, dtype=state.h.dtype)
        h = keep * state.h + (1 - keep) * jnp.tanh(zx[0] + zh[0])
        return State(h), h

    step = rnnjax.affine_step                                            # every engine of affine cells takes it

rnnjax.check_cell(Clocks(8), input_size=2)                               # one sentence if it broke the contract

def batch(step):                                                         # a running mean of forty
    numbers = np.random.default_rng(step).normal(size=(T, 50)).astype(np.float32)
    return {"x": numbers[..., None], "y": np.apply_along_axis(np.convolve, 0, numbers, np.ones(40) / 40)[:T]}

losses = {}
for cell in (rnnjax.Elman(32), Clocks(32)):
    model, rows = rnnjax.topologies.ManyToMany(cell, output_size=1, input_size=1), []
    def loss_fn(params, batch, *, key, model=model):
        return jnp.mean((model.apply(params, batch["x"])[..., 0] - batch["y"]) ** 2)
    rnnjax.fit.fit(loss_fn, model.init(jax.random.key(0)), optax.adam(3e-3), batch, steps=STEPS, report=rows.append)
    points = losses[type(cell).__name__] = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
    print(f"{type(cell).__name__}: squared error {points[-1][1]:.5f}; always zero: 0.021")

if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(8, 2.5), layout="constrained")
    for (name, points), colour in zip(losses.items(), ("0.5", "#0072b2")):
        ax.semilogy(*zip(*points), color=colour)
        ax.annotate(name, points[-1], (4, 0), textcoords="offset points", color=colour, va="center")
    ax.set(xlabel="update", ylabel="squared error", title="The mean of the last forty numbers")
    ax.margins(x=0.1)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(sys.argv[1], dpi=110)

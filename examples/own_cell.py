"""A cell of your own: its units forget at speeds that are given, against an Elman network that has to learn them.

python examples/own_cell.py [PICTURE]        half a minute on two cores"""

import dataclasses, sys
from matplotlib import pyplot as plt
import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

@dataclasses.dataclass(frozen=True)
class Clocks:
    hidden_size: int
    num_gates = 1
    step = rnnjax.affine_step                                            # every engine of affine cells takes it
    def init(self, key, input_size, dtype=jnp.float32):                  # w_ih [I, H], w_hh [H, H], b [H]
        return rnnjax.Elman(self.hidden_size).init(key, input_size, dtype)

    def initial_state(self, batch_shape=(), dtype=jnp.float32):          # h [*batch, H]
        return rnnjax.Elman(self.hidden_size).initial_state(batch_shape, dtype)

    def update(self, params, state, zx, zh):                             # zx: x @ w_ih + b, zh: h @ w_hh, one a gate
        keep = 1 - jnp.logspace(0, -2, self.hidden_size, dtype=state.h.dtype)  # from nothing to 99 % of the state
        h = keep * state.h + (1 - keep) * jnp.tanh(zx[0] + zh[0])
        return state._replace(h=h), h

def batch(step):                                                         # a running mean of forty
    x = np.random.default_rng(step).normal(size=(120, 50, 1)).astype(np.float32)
    return {"x": x, "y": np.apply_along_axis(np.convolve, 0, x, np.ones(40) / 40)[:120].astype(np.float32)}

rnnjax.check_cell(Clocks(8), input_size=2)                               # one sentence if it broke the contract
plt.figure(figsize=(8, 2.5), layout="constrained").add_subplot(xlabel="update", ylabel="squared error", yscale="log")
for cell in (rnnjax.Elman(32), Clocks(32)):
    model, rows = rnnjax.topologies.ManyToMany(cell, output_size=1, input_size=1), []
    def loss_fn(params, batch, *, key, model=model):
        return rnnjax.topologies.mse_loss(model.apply(params, batch["x"]), batch["y"])
    rnnjax.fit.fit(loss_fn, model.init(jax.random.key(0)), optax.adam(3e-3), batch, steps=300, report=rows.append)
    points = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
    print(f"{type(cell).__name__}: squared error {points[-1][1]:.5f}; always zero: 0.021")
    plt.plot(*zip(*points), label=type(cell).__name__)
plt.legend(title="the mean of the last forty numbers")
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "own_cell.png", dpi=110)

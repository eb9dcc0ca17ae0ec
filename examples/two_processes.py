"""Two processes train one network: each reads its own half of every batch, and both end with the same parameters.

python examples/two_processes.py [PICTURE]        half a minute on two cores; draws where a file is named
"""

import os, socket, subprocess, sys

STEPS, BOTH = int(os.environ.get("STEPS", 200)), 2
if "PROCESS" not in os.environ:                                          # the parent starts both, as a cluster would
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, *sys.argv]
    settings = [os.environ | {"ADDRESS": address, "PROCESS": str(k)} for k in range(BOTH)]
    children = [subprocess.Popen(command, env=setting) for setting in settings]
    sys.exit(max(child.wait() for child in children))

import jax

jax.distributed.initialize(os.environ["ADDRESS"], BOTH, int(os.environ["PROCESS"]))  # before JAX is used
import jax.numpy as jnp, numpy as np, optax, rnnjax
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((jax.device_count(),), ("batch",))                  # the devices of all processes
model = rnnjax.topologies.ManyToMany(rnnjax.GRU(16), output_size=1, input_size=1)

def batch(step):                                                         # this process reads its own rows alone
    rng = np.random.default_rng((step, jax.process_index()))
    t = np.arange(61)[:, None] / 8 + rng.uniform(0, 2 * np.pi, 32)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(None, "batch")), np.sin(t).astype(np.float32))

def loss_fn(params, xs, *, key):
    return jnp.mean((model.apply(params, xs[:-1, :, None])[..., 0] - xs[1:]) ** 2)

rows = []
fitted = rnnjax.fit.fit(loss_fn, model.init(jax.random.key(0)), optax.adam(1e-2), batch, steps=STEPS, mesh=mesh,
                        batch_spec=P(None, "batch"), report=rows.append)
losses = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
checksum = sum(float(jnp.abs(leaf.addressable_data(0)).sum()) for leaf in jax.tree.leaves(fitted.params))
print(f"process {jax.process_index()} of {jax.process_count()}: sum of parameters {checksum:.6f}", flush=True)

if len(sys.argv) > 1 and jax.process_index() == 0:
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(8, 2.2), layout="constrained")
    ax.semilogy(*zip(*losses), "o-", color="#0072b2", markersize=3)
    ax.set(xlabel="update", ylabel="squared error", title="The next value of a sine, learned by two processes")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(sys.argv[1], dpi=110)

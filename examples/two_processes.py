"""Two processes train one network: each reads its own half of every batch, and both end with the same parameters.

python examples/two_processes.py [PICTURE]        half a minute on two cores"""

import os, socket, subprocess, sys

if "PROCESS" not in os.environ:                                          # the parent starts both, as a cluster would
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
    children = [subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {"PROCESS": k}) for k in "01"]
    sys.exit(max(child.wait() for child in children))

import jax, numpy as np, optax, rnnjax
from jax.sharding import NamedSharding, PartitionSpec as P
from matplotlib import pyplot as plt

jax.distributed.initialize(os.environ["ADDRESS"], 2, int(os.environ["PROCESS"]))  # before JAX is used
rows, mesh = P(None, "batch"), jax.make_mesh((jax.device_count(),), ("batch",))  # the devices of all processes
model = rnnjax.topologies.ManyToMany(rnnjax.GRU(16), output_size=1, input_size=1)

def batch(step):                                                         # this process reads its own rows alone
    rng = np.random.default_rng((step, jax.process_index()))
    t = np.arange(61)[:, None, None] / 8 + rng.uniform(0, 2 * np.pi, (32, 1))
    return jax.make_array_from_process_local_data(NamedSharding(mesh, rows), np.sin(t).astype(np.float32))

def loss_fn(params, xs, *, key):
    return rnnjax.topologies.mse_loss(model.apply(params, xs[:-1]), xs[1:])

params = model.init(jax.random.key(0))
fitted = rnnjax.fit.fit(loss_fn, params, optax.adam(1e-2), batch, steps=200, mesh=mesh, batch_spec=rows)
params = jax.device_get(fitted.params)                                   # the same in both processes
print(f"process {jax.process_index()} of 2: norm of parameters {optax.tree.norm(params):.6f}", flush=True)
if jax.process_index() == 0:
    sine = np.sin(np.arange(121, dtype=np.float32) / 8)
    plt.figure(figsize=(8, 2.2), layout="constrained")
    plt.plot(sine[1:], color="0.7", linewidth=4, label="a sine")
    plt.plot(model.apply(params, sine[:-1, None]), "#0072b2", label="each next value, as the network of both says it")
    plt.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "two_processes.png", dpi=110)

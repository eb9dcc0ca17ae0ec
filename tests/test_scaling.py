"""A training, large cells and long sequences split over four devices compute what one device computes."""

import jax
import numpy as np
import pytest

import rnnjax
from benchmarks import scale
from rnnjax.lm.model import LanguageModel
from tests.processes import run_program

START = r"""
import functools, re, sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
import rnnjax
from rnnjax.engines import unroll_over

same = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6))
"""
BATCHES = r"""
from rnnjax.fit import fit
mesh = jax.make_mesh((4,), ("batch",))
net = rnnjax.Stack((rnnjax.GRU(4), rnnjax.GRU(4)))
params, optimizer = net.init(jax.random.key(0), 3), optax.adam(1e-2)
state = net.initial_state((8,))
xs = jax.random.normal(jax.random.key(1), (40, 8, 3))

def chunk_loss(params, state, chunk, *, key=None):
    state, ys = rnnjax.unroll(net, params, state, chunk["x"], resets=chunk["resets"], implementation="scan")
    return jnp.mean((ys[..., :3] - chunk["x"]) ** 2), state, {"size": jnp.mean(ys**2)}

stream = {"x": xs, "resets": jnp.arange(40 * 8).reshape(40, 8) % 17 == 3}
arguments = params, optimizer.init(params), state, stream
for border in (rnnjax.online.Cut(), rnnjax.online.Lookback(16)):
    run = functools.partial(rnnjax.tbptt, chunk_loss, optimizer, *arguments, chunk_len=8, border=border)
    same(run(mesh=mesh), run())

batches = lambda step: jax.tree.map(lambda a: np.asarray(a)[step % 5 * 8:][:8], stream)
measure = lambda params: jnp.mean(params.layers[0].w_hh ** 2)
train = functools.partial(fit, chunk_loss, params, optimizer, batches, steps=12, state=state, evaluate=measure, evals=3)
one, four = train(), train(mesh=mesh, batch_spec=P(None, "batch"))
assert len(four.params.layers[0].w_hh.sharding.device_set) == 4
for name in ("params", "step", "best_step", "metrics", "state"):
    same(getattr(four, name), getattr(one, name))

plain = lambda params, batch, *, key: chunk_loss(params, None, batch)[0]
rows_first = lambda params, batch, *, key: plain(params, jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), batch), key=key)
turned = lambda step: jax.tree.map(lambda a: np.swapaxes(a, 0, 1), batches(step))
same(fit(rows_first, params, optimizer, turned, steps=5, mesh=mesh).params,
     fit(plain, params, optimizer, batches, steps=5).params)
for wrong, sentence in (
    (dict(mesh=jax.make_mesh((2, 2), ("a", "b"))), "mesh must have one axis, along which the batch is split, got"),
    (dict(mesh=mesh, border=rnnjax.online.Lookback(16)), "goes with one device, got a mesh of 4"),
):
    try:
        train(**wrong)
    except ValueError as error:
        assert sentence in str(error), error
    else:
        raise AssertionError(sentence)
print("same")
"""
GATES = r"""
mesh = jax.sharding.Mesh(jax.devices(), ("gates",))
put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
xs = jax.random.normal(jax.random.key(1), (6, 2, 3))
for cell, name in ((rnnjax.LSTM(16), "scan"), (rnnjax.LSTM(16), "fused"), (rnnjax.GRU(16), "fused")):
    params = cell.init(jax.random.key(0), 3)

    def loss(params, xs):
        state, ys = rnnjax.unroll(cell, params, None, xs, implementation=name)
        return jnp.mean(ys**2) + jnp.mean(state.h), ys

    split = put(params, P())._replace(w_hh=put(params.w_hh, P(None, "gates")))
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    same(run(split, put(xs, P())), run(params, xs))
    text = jax.jit(lambda params, xs: loss(params, xs)[1]).lower(split, put(xs, P())).compile().as_text()
    sent = [shape for shape, _ in re.findall(r"= f32\[([\d,]+)\]\S* (all-gather|all-reduce|collective-permute)", text)]
    largest = max(int(np.prod([int(n) for n in shape.split(",")])) for shape in sent)
    assert largest <= 2 * 3 * 16, (name, sent)  # never the weights: at most a gate or two of the batch

from tests.pages import blocks  # the page that tells of all this

page = {"__name__": "page"}
for code in blocks("docs/scale.md"):
    exec(compile(code, "scale.md", "exec"), page)
assert page["outcome"].step == 3 and page["result"].info.loss.shape == (2,)
state, ys = rnnjax.unroll(page["linear"], page["params"], None, page["xs"])
same(jax.tree.map(np.asarray, (page["state"], page["ys"])), (state, ys))
print("same")
"""
TIME = r"""
steps, cells = int(sys.argv[1]), sys.argv[2].split()
mesh = jax.sharding.Mesh(jax.devices(), ("time",))
for name in cells:
    net = {
        "lru": rnnjax.LRU(4), "mingru": rnnjax.MinGRU(4), "sru": rnnjax.cells.SRU(4),
        "stack": rnnjax.Stack((rnnjax.MinLSTM(4), rnnjax.LRU(4))),
        "both": rnnjax.Bidirectional((rnnjax.MinGRU(4),)),
    }[name]
    params, xs = net.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (steps, 2, 3))
    resets = jax.random.bernoulli(jax.random.key(2), 20 / steps, (steps, 2))
    small = steps < 1000  # then every way; else one
    for reverse in (False, True) if small and name in ("lru", "mingru") else (False,):
        for flags in [None] * (small or name == "both") + [resets] * (name != "both"):
            def whole(params, xs, flags):
                return rnnjax.unroll(net, params, None, xs, resets=flags, reverse=reverse, implementation="associative")

            part = lambda params, xs, flags: unroll_over(
                "time", net, params, None, xs, resets=flags, reverse=reverse)
            split = jax.shard_map(
                part, mesh=mesh, in_specs=(P(), P("time"), P("time")), out_specs=(P(), P("time")))

            def loss(run, params, xs, flags):
                state, ys = run(params, xs, flags)
                weights = jnp.cos(jnp.arange(ys.shape[0]))[:, None, None]
                return jnp.mean(ys**2 * weights) + sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(state))

            for grad in (lambda run: run, lambda run: jax.grad(functools.partial(loss, run), (0, 1))):
                got, want = (jax.jit(grad(run))(params, xs, flags) for run in (split, whole))
                for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max() + 1e-9))
try:
    jax.shard_map(lambda xs: unroll_over("time", rnnjax.GRU(4), rnnjax.GRU(4).init(jax.random.key(0), 3), None, xs)[1],
                  mesh=mesh, in_specs=P("time"), out_specs=P("time"))(jnp.zeros((4, 1, 3)))
except TypeError as error:
    assert "net must be linear in its state" in str(error)
else:
    raise AssertionError
print("same")
"""


def on_four_devices(program, *arguments):
    assert run_program(START + program, *arguments, devices=4).endswith("same\n")


def test_the_model_of_the_cost():
    """The weights are those of the model that is trained; the ring is what it is in closed form."""
    stack = rnnjax.Stack((rnnjax.LSTM(24), rnnjax.LSTM(24)))
    params = jax.eval_shape(LanguageModel(vocab_size=11, stack=stack, embed_size=5).init, jax.random.key(0))
    model = scale.Model(2, 24, embed=5, vocab=11)
    assert model.weights == sum(leaf.size for leaf in jax.tree.leaves(params))
    link = scale.Link(1e-4, 1e9)
    assert scale.allreduce_seconds(1e6, 1, link) == 0
    np.testing.assert_allclose(scale.allreduce_seconds(1e6, 2, link), 2 * (1e-4 + 0.5e-3))
    np.testing.assert_allclose(scale.allreduce_seconds(8e6, 4, link), 6 * (1e-4 + 2e-3))
    rows = [
        {"processes": n, "bytes": size, "seconds": scale.allreduce_seconds(size, n, link)}
        for n in (2, 4)
        for size in (1e6, 24e6)
    ]
    np.testing.assert_allclose(scale.fit_link(rows), link)
    # Where computing takes as long as the all-reduce, half of the time is spent on it.
    flops = model.flops * 8 * 16 / scale.allreduce_seconds(4 * model.weights, 4, link)
    np.testing.assert_allclose(scale.efficiency(model, 8, 16, 4, flops, link), 0.5)


def test_fit_and_tbptt_share_batches():
    on_four_devices(BATCHES)


def test_recurrent_weights_split_by_gates():
    on_four_devices(GATES)


def test_a_sequence_split_in_time():
    on_four_devices(TIME, 24, "lru mingru both")


@pytest.mark.thorough
@pytest.mark.parametrize("cell", ["lru", "mingru", "stack"])
def test_a_sequence_of_a_million_steps_split_in_time(cell):
    on_four_devices(TIME, 10**6, cell)

"""Our cells as modules of flax, Equinox and Haiku: trained there as here, and with what their hosts promise."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.serialization import from_state_dict, to_state_dict

import rnnjax
from rnnjax import interop
from rnnjax.interop import _hosts
from rnnjax.saving import named_arrays, restore
from rnnjax.testing.problems import fast_jit

# Nested parameters, some of them None, and a state of several layers.
CELL = rnnjax.Stack((rnnjax.Elman(4), rnnjax.LSTM(4)), residual=True, norm="layer")
OPTIMIZER = optax.adam(0.05)
STEPS = 4


class Data:
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32)  # [T, B, I]
    targets = jnp.asarray(rng.normal(size=(5, 2, 4)), jnp.float32)


def loss_of(ys: jax.Array) -> jax.Array:
    return jnp.mean((ys - Data.targets) ** 2)


def like() -> Any:
    return jax.eval_shape(lambda: CELL.init(jax.random.key(0), 3))


def descend(loss: Any, weights: Any) -> list[float]:
    """The losses of some steps with plain optax."""

    @fast_jit
    def step(weights, state):
        value, gradients = jax.value_and_grad(loss)(weights)
        updates, state = OPTIMIZER.update(gradients, state, weights)
        return value, optax.apply_updates(weights, updates), state

    losses, state = [], OPTIMIZER.init(weights)
    for _ in range(STEPS):
        value, weights, state = step(weights, state)
        losses.append(float(value))
    return losses


@pytest.fixture(scope="module")
def plainly():
    """Trains in rnnjax alone, step by step as the definition says."""

    @fast_jit
    def step(params, state):
        def loss(params):
            return loss_of(jax.lax.scan(functools.partial(CELL.step, params), CELL.initial_state((2,)), Data.xs)[1])

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = OPTIMIZER.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), state

    def train(params):
        losses, state = [], OPTIMIZER.init(params)
        for _ in range(STEPS):
            value, params, state = step(params, state)
            losses.append(float(value))
        return losses

    return train


@pytest.fixture(scope="module")
def start():
    return fast_jit(CELL.init, static_argnums=1)(jax.random.key(1), 3)


def check(plainly, params, losses):
    assert jax.tree.structure(params) == jax.tree.structure(like())
    w_hh = params.layers[0].w_hh  # the host drew it by the initialiser of the cell
    np.testing.assert_allclose(w_hh.T @ w_hh, np.eye(4), atol=1e-5)
    np.testing.assert_array_equal(params.layers[1].b[4:8], np.ones(4))
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, plainly(params), atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["cell", "layer"])
def test_linen_trains(kind, plainly):
    if kind == "cell":
        module = nn.RNN(interop.linen_cell(CELL), time_major=True)
    else:
        module = interop.linen_layer(CELL, time_major=True)
    variables = fast_jit(module.init)(jax.random.key(1), Data.xs)
    tree = variables["params"]["cell"] if kind == "cell" else variables["params"]
    params = from_state_dict(like(), tree)
    assert jax.tree.structure(to_state_dict(params)) == jax.tree.structure(tree)
    check(plainly, params, descend(lambda variables: loss_of(module.apply(variables, Data.xs)), variables))


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["cell", "layer"])
def test_nnx_trains(kind, start, plainly):
    if kind == "cell":
        module = nnx.RNN(interop.nnx_cell(CELL, params=start), time_major=True, rngs=False)
        held = module.cell
    else:
        module = held = interop.nnx_layer(CELL, params=start, time_major=True)
    params = held.weights()
    optimizer = nnx.Optimizer(module, OPTIMIZER, wrt=nnx.Param)

    def update(module, optimizer):
        loss, gradients = nnx.value_and_grad(lambda module: loss_of(module(Data.xs)))(module)
        optimizer.update(module, gradients)
        return loss

    if kind == "cell":
        step, losses = nnx.jit(update), []
        for _ in range(STEPS):
            losses.append(float(step(module, optimizer)))
    else:
        definition, weights = nnx.split(module, nnx.Param)
        losses = descend(lambda weights: loss_of(nnx.merge(definition, weights)(Data.xs)), weights)
    check(plainly, params, losses)
    moved = jax.tree.map(lambda new, old: bool(jnp.any(new != old)), held.weights(), params)
    assert all(jax.tree.leaves(moved)) == (kind == "cell")  # in place there, and in a copy here


@pytest.mark.parametrize("kind", ["cell", "layer"])
def test_equinox_trains(kind, start, plainly):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed on this Python")
    make = interop.equinox_cell if kind == "cell" else interop.equinox_layer
    model = make(CELL, params=start)
    params = model.params

    if kind == "layer":  # all that it holds is parameters, so plain jax takes it as well
        check(plainly, params, descend(lambda model: loss_of(model(Data.xs)[1]), model))
        return

    def loss(model):
        return loss_of(jax.lax.scan(lambda state, x: model(x, state), model.initial_state((2,)), Data.xs)[1])

    @eqx.filter_jit
    def step(model, state):
        value, gradients = eqx.filter_value_and_grad(loss)(model)
        updates, state = OPTIMIZER.update(gradients, state, model)
        return value, eqx.apply_updates(model, updates), state

    losses, state = [], OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(STEPS):
        value, model, state = step(model, state)
        losses.append(float(value))
    check(plainly, params, losses)


@pytest.mark.parametrize("kind", ["cell", "layer"])
def test_haiku_trains(kind, plainly):
    hk = pytest.importorskip("haiku", reason="haiku is not installed on this Python")

    def forward(xs):
        if kind == "layer":
            return interop.haiku_layer(CELL, name="memory")(xs)[0]
        core = interop.haiku_core(CELL, name="memory")
        return hk.dynamic_unroll(core, xs, core.initial_state(2))[0]

    model = hk.without_apply_rng(hk.transform(forward))
    tree = fast_jit(model.init)(jax.random.key(1), Data.xs)
    params = restore(tree["memory"], like())
    assert set(named_arrays(params)) == set(tree["memory"])
    check(plainly, params, descend(lambda tree: loss_of(model.apply(tree, Data.xs)), tree))


OTHERS = {
    "lru": rnnjax.LRU(4, state_size=3),
    "mgu": rnnjax.cells.MGU(4, reset_gate=False),
    "conv": rnnjax.ConvLSTM(2, spatial_shape=(2, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_states_and_parameters(name):
    """A complex recurrence, a parameter that is None, and images, within the loops of linen and nnx."""
    cell = OTHERS[name]
    problem = rnnjax.testing.make_problem(cell, batch=(2,), seq_len=3)
    linen = nn.RNN(interop.linen_cell(cell), time_major=True, return_carry=True)

    @fast_jit
    def run(problem):
        # Made here, since the loop of nnx writes to its module.
        module = nnx.RNN(interop.nnx_cell(cell, params=problem.params), time_major=True, return_carry=True, rngs=False)
        variables = {"params": {"cell": to_state_dict(problem.params)}}
        carry, xs = cell.initial_state((2,)), problem.xs
        return (
            rnnjax.unroll(cell, problem.params, carry, xs, implementation="scan"),
            linen.apply(variables, xs),
            linen.apply(variables, xs, initial_carry=carry),
            module(xs),
        )

    want, *got = run(problem)
    for found in got:
        rnnjax.testing.assert_close(found, want, 1e-6)


LENGTHS = jnp.array([3, 5])


@pytest.mark.parametrize("host", ["linen", "nnx"])
def test_layers_are_called_as_rnn_is(host):
    """Bidirectional networks of the host pass all its options; time is the second axis here."""
    cells = rnnjax.Elman(4), rnnjax.GRU(4)
    params = tuple(rnnjax.testing.make_problem(cell, batch=(), seq_len=0).params for cell in cells)
    xs = jnp.swapaxes(Data.xs, 0, 1)  # [B, T, I]

    def both_ways(pair):
        if host == "nnx":
            return nnx.Bidirectional(*pair, return_carry=True, rngs=False)(xs, seq_lengths=LENGTHS)
        trees = [{"cell": to_state_dict(p)} if isinstance(pair[0], nn.RNN) else to_state_dict(p) for p in params]
        variables = {"params": {"forward_rnn": trees[0], "backward_rnn": trees[1]}}
        return nn.Bidirectional(*pair, return_carry=True).apply(variables, xs, seq_lengths=LENGTHS)

    def backwards(loop, p):  # in the order of computation
        if host == "nnx":
            return loop(xs, reverse=True, seq_lengths=LENGTHS, return_carry=True)
        tree = {"cell": to_state_dict(p)} if isinstance(loop, nn.RNN) else to_state_dict(p)
        return loop.apply({"params": tree}, xs, reverse=True, seq_lengths=LENGTHS, return_carry=True)

    def loops():
        if host == "nnx":
            theirs = [nnx.RNN(interop.nnx_cell(cell, params=p), rngs=False) for cell, p in zip(cells, params)]
            return theirs, [interop.nnx_layer(cell, params=p) for cell, p in zip(cells, params)]
        return [nn.RNN(interop.linen_cell(cell)) for cell in cells], [interop.linen_layer(cell) for cell in cells]

    @fast_jit
    def run():
        return [(both_ways(pair), backwards(pair[0], params[0])) for pair in loops()]

    valid = (jnp.arange(5) < LENGTHS[:, None])[..., None]
    want, got = run()
    rnnjax.testing.assert_close([pair[0] for pair in got], [pair[0] for pair in want], 1e-6)  # carries
    for (_, found), (_, wanted) in zip(got, want, strict=True):
        rnnjax.testing.assert_close(found, jnp.where(valid, wanted, 0.0), 1e-6)


def test_options_reach_unroll():
    """Learned initial states, resets and lengths, in the axes of each host, against the definition."""
    cell = rnnjax.LearnedState(rnnjax.Elman(4))
    problem = rnnjax.testing.make_problem(cell, batch=(2,), seq_len=5)
    params, _, xs, lengths, resets = problem[:5]
    state = rnnjax.start_state(cell, params, (2,))
    want = rnnjax.testing.problems.loop(cell, problem._replace(state=state))
    want_reversed = rnnjax.testing.problems.loop(cell, problem._replace(state=state), reverse=True)
    linen = interop.linen_layer(cell, return_carry=True)
    module = interop.nnx_layer(cell, params=params, return_carry=True, implementation="scan", remat=True)

    @fast_jit
    def run():
        batch_major = {"seq_lengths": lengths, "resets": resets.T}
        flipped = jnp.swapaxes(xs, 0, 1)
        results = [
            linen.apply({"params": to_state_dict(params)}, flipped, **batch_major),
            module(flipped, **batch_major),
        ]
        backwards = [module(flipped, **batch_major, reverse=True, keep_order=True)]
        return [[(carry, jnp.swapaxes(ys, 0, 1)) for carry, ys in group] for group in (results, backwards)]

    forward, backward = run()
    for got in forward:
        rnnjax.testing.assert_close(got, want, 1e-6)
    rnnjax.testing.assert_close(backward[0], want_reversed, 1e-6)


def test_options_reach_unroll_from_equinox():
    pytest.importorskip("equinox", reason="equinox is not installed on this Python")
    cell = rnnjax.LearnedState(rnnjax.Elman(4))
    problem = rnnjax.testing.make_problem(cell, batch=(2,), seq_len=5)
    params, _, xs, lengths, resets = problem[:5]
    layer = interop.equinox_layer(cell, params=params, reverse=True, implementation="scan")
    state = layer.initial_state((2,))
    np.testing.assert_array_equal(state.h, np.broadcast_to(params.start.h, (2, 4)))
    want = rnnjax.testing.problems.loop(cell, problem._replace(state=state), reverse=True)
    got = fast_jit(lambda xs: layer(xs, lengths=lengths, resets=resets))(xs)
    rnnjax.testing.assert_close(got, want, 1e-6)
    # Without batch axes, as modules of Equinox are mapped.
    single = jax.vmap(lambda xs, n, r: layer(xs, lengths=n, resets=r), (1, 0, 1), (0, 1))
    rnnjax.testing.assert_close(fast_jit(single)(xs, lengths, resets), want, 1e-6)


def test_options_reach_unroll_from_haiku():
    hk = pytest.importorskip("haiku", reason="haiku is not installed on this Python")
    cell = rnnjax.LearnedState(rnnjax.Elman(4))
    problem = rnnjax.testing.make_problem(cell, batch=(2,), seq_len=5)
    params, state, xs, lengths, resets = problem[:5]

    def forward(xs, state, resets):
        layer = interop.haiku_layer(cell, time_major=False, reverse=True)
        return layer(xs, state, lengths=lengths, resets=resets)

    model = hk.without_apply_rng(hk.transform(forward))
    tree = {"learnedstate": named_arrays(params)}
    ys, final = fast_jit(model.apply)(tree, jnp.swapaxes(xs, 0, 1), state, resets.T)
    want = rnnjax.testing.problems.loop(cell, problem, reverse=True)
    rnnjax.testing.assert_close((final, jnp.swapaxes(ys, 0, 1)), want, 1e-6)


def test_nnx_carry_starts_where_the_cell_learned_to():
    cell = rnnjax.LearnedState(rnnjax.Elman(4))
    params = rnnjax.testing.make_problem(cell, batch=(2,), seq_len=1).params
    module = interop.nnx_cell(cell, params=params)
    carry = module.initialize_carry((2, 3))
    np.testing.assert_array_equal(carry.h, np.broadcast_to(params.start.h, (2, 4)))
    drawn = module.initialize_carry((2, 3), nnx.Rngs(0), nnx.initializers.ones_init())
    assert type(drawn) is type(carry) and drawn.h.tolist() == np.ones((2, 4)).tolist()
    with pytest.raises(ValueError, match="carry_init draws, and needs rngs"):
        module.initialize_carry((2, 3), carry_init=nnx.initializers.ones_init())


def test_integers_are_inputs_and_make_no_integer_parameters():
    """The dtype of new parameters is not that of a count or a pixel: they would all be zero."""
    hk = pytest.importorskip("haiku")
    cell, xs = rnnjax.GRU(4), np.arange(12).reshape(2, 2, 3)
    core = hk.transform(lambda xs: interop.haiku_core(cell)(xs, cell.initial_state((2,)))[0])
    layer = hk.transform(lambda xs: interop.haiku_layer(cell)(xs)[0])
    for model, given in ((core, xs[0]), (layer, xs)):
        params = model.init(jax.random.key(0), given)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        np.testing.assert_array_equal(model.apply(params, None, given), model.apply(params, None, given * 1.0))
        assert np.abs(model.apply(params, None, given)).max() > 1e-3
    linen = interop.linen_cell(cell)
    params = linen.init(jax.random.key(0), cell.initial_state((2,)), xs[0])
    ys = linen.apply(params, cell.initial_state((2,)), xs[0])[1]
    np.testing.assert_array_equal(ys, linen.apply(params, cell.initial_state((2,)), xs[0] * 1.0)[1])
    module = interop.nnx_layer(cell, 3, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(module(xs), module(xs * 1.0))


@pytest.mark.parametrize("bad", [np.float32(1.0), np.ones((2, 5), np.float32), "text"], ids=["rank", "size", "kind"])
def test_inputs_of_another_shape_are_one_sentence(bad):
    cell = rnnjax.GRU(4)
    module, state = interop.nnx_cell(cell, 3, rngs=nnx.Rngs(0)), cell.initial_state((2,))
    with pytest.raises((TypeError, ValueError), match=r"^(GRU\.step: x|NnxCell: inputs) must .*, got "):
        module(state, bad)
    eqx_cell = interop.equinox_cell(cell, params=module.weights())
    with pytest.raises((TypeError, ValueError), match=r"^(GRU\.step: x|EquinoxCell: x) must .*, got "):
        eqx_cell(bad, state)


def test_new_parameters_come_from_the_randomness_of_the_host():
    cell = rnnjax.MinGRU(4)
    layer = interop.nnx_layer(cell, 3, rngs=nnx.Rngs(params=7), param_dtype=jnp.bfloat16)
    same = interop.nnx_cell(cell, 3, rngs=nnx.Rngs(params=7), param_dtype=jnp.bfloat16)
    other = interop.nnx_cell(cell, 3, rngs=nnx.Rngs(params=8), param_dtype=jnp.bfloat16)
    assert (layer.weights().w_ih == same.weights().w_ih).all()
    assert (layer.weights().w_ih != other.weights().w_ih).any()
    assert layer(jnp.ones((2, 5, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_new_parameters_of_equinox_come_from_the_key():
    pytest.importorskip("equinox", reason="equinox is not installed on this Python")
    cell, key = rnnjax.MinGRU(4), jax.random.key(7)
    for make in (interop.equinox_cell, interop.equinox_layer):
        got = make(cell, 3, key=key, dtype=jnp.bfloat16).params
        rnnjax.testing.assert_close(got, cell.init(key, 3, jnp.bfloat16))


LEARNED = rnnjax.Stack((rnnjax.GRU(4), rnnjax.LearnedState(rnnjax.GRU(4))))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: interop.linen_cell(rnnjax.LSTM), TypeError, "linen_cell: cell must be a cell, got <class"),
        (lambda: interop.linen_layer(nn.LSTMCell(4)), TypeError, "linen_layer: cell must be a cell"),
        (lambda: interop.linen_cell(LEARNED), ValueError, "linen_cell: .* take linen_layer"),
        (lambda: interop.nnx_cell(rnnjax.Bidirectional((rnnjax.GRU(4),)), 3), TypeError, "nnx_cell: cell must be"),
        (lambda: interop.nnx_cell(rnnjax.GRU(4)), ValueError, "nnx_cell: either input_size.* got none of them"),
        (lambda: interop.nnx_cell(rnnjax.GRU(4), 3, params=()), ValueError, "got both; leave one out"),
        (lambda: interop.nnx_layer(rnnjax.GRU(4), 3), ValueError, "nnx_layer: new parameters need randomness"),
        (
            lambda: interop.nnx_layer(rnnjax.GRU(4), params=rnnjax.MinGRU(4).init(jax.random.key(0), 3)),
            ValueError,
            "params must be what GRU.init makes, got MinGRUParams",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_cells_that_learn_their_start_are_found():
    for cell, learns in ((CELL, False), (LEARNED, True), (rnnjax.Stack((LEARNED.cells[1],) * 2), True)):
        assert _hosts._learns_start(cell) is learns

"""`Regularized`: values against a literal loop with the same masks, and how long a mask lasts (pitfall 11)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Elman, LearnedState, Regularized, Stack
from rnnjax.networks import activation_regularization, dropout
from rnnjax.networks.regularized import RegularizedCell
from tests.cells_table import Row, assert_close, fast_jit, loss_of, make_problem, plain
from tests.networks.rates import RATES
from tests.references.numpy_core import STEPS, sigmoid

KEY = jax.random.key(0)
OTHER = jax.random.key(1)


def run_regularized(cell, *arguments, key=None, lengths=None, resets=None, reverse=False, remat=None, **rates):
    """`unroll` of a cell with these rates."""
    options = {"key": key, "lengths": lengths, "resets": resets, "reverse": reverse, "remat": remat}
    return rnnjax.unroll(Regularized(cell, **rates), *arguments, **options)


def rates_for(cell):
    return RATES if isinstance(cell, LSTM) else {**RATES, "zoneout_c": 0.0}


# --- one literal loop for the whole of `Regularized` ---


def bernoulli(key, probability, shape):
    return np.asarray(jax.random.bernoulli(key, probability, shape))


def masked_gru(params, state, x, seen):
    """A step of the GRU in which ``seen`` multiplies what the matmul reads, and not what z keeps."""
    w_ih, w_hh, b, b_hn = params
    (h,) = state
    a, u = x @ w_ih + b, (seen * h) @ w_hh
    size = len(h)
    r, z = sigmoid(a[:size] + u[:size]), sigmoid(a[size : 2 * size] + u[size : 2 * size])
    n = np.tanh(a[2 * size :] + r * (u[2 * size :] + b_hn))
    h = (1 - z) * n + z * h
    return (h,), h


def masked_lstm(params, state, x, seen):
    return STEPS["lstm"](params, (seen * state[0], state[1]), x)


def reference(cell, problem, key, rates, reverse=False):
    """Row by row and step by step; every mask is indexed by what its scope says."""
    params, state, xs = (jax.tree.map(np.asarray, part) for part in problem[:3])
    T, B, _ = xs.shape
    H = cell.hidden_size
    key_x, key_w, key_y, key = jax.random.split(key, 4)
    key_h, key_zh, key_zc = jax.random.split(key, 3)
    resets = None if problem.resets is None else np.asarray(problem.resets)

    def locked(k, rate, shape):
        """[T, B, ...], and one mask a sequence: drawn at the step that begins it."""
        if resets is None:
            return np.broadcast_to(bernoulli(k, 1 - rate, (1, *shape[1:])), shape)
        masks = bernoulli(k, 1 - rate, shape)
        out = np.empty(shape, bool)
        for row in range(B):
            begin = T - 1 if reverse else 0
            for t in reversed(range(T)) if reverse else range(T):
                # A flag in the padding does nothing.
                begin = t if resets[t, row] and (problem.lengths is None or t < problem.lengths[row]) else begin
                out[t, row] = masks[begin, row]
        return out

    m_x = locked(key_x, rates["input_dropout"], xs.shape)
    m_h = locked(key_h, rates["recurrent_dropout"], (T, B, H))
    m_y = locked(key_y, rates["output_dropout"], (T, B, H))
    z_h = bernoulli(key_zh, rates["zoneout_h"], (T, B, H))
    z_c = bernoulli(key_zc, rates["zoneout_c"], (T, B, H))
    (key_w,) = jax.random.split(key_w, 1)
    m_w = bernoulli(key_w, 1 - rates["weight_dropout"], params.w_hh.shape)
    params = params._replace(w_hh=params.w_hh * m_w / (1 - rates["weight_dropout"]))
    step = masked_lstm if isinstance(cell, LSTM) else masked_gru

    finals, ys = [], np.zeros((T, B, H))
    for row in range(B):
        length = T if problem.lengths is None else int(problem.lengths[row])
        s = tuple(leaf[row] for leaf in state)
        for t in reversed(range(length)) if reverse else range(length):
            if resets is not None and resets[t, row]:
                s = tuple(np.zeros(H) for _ in s)
            x = xs[t, row] * m_x[t, row] / (1 - rates["input_dropout"])
            new, _ = step(params, s, x, m_h[t, row] / (1 - rates["recurrent_dropout"]))
            kept = [np.where(m[t, row], was, now) for m, was, now in zip((z_h, z_c), s, new)]
            s = tuple(kept)
            ys[t, row] = s[0] * m_y[t, row] / (1 - rates["output_dropout"])
        finals.append(s)
    return [np.stack(leaves) for leaves in zip(*finals)], ys


CASES = [
    (LSTM(4), "plain"), (LSTM(4), "all"), (LSTM(4), "reverse_all"),
    (GRU(5), "lengths"), (GRU(5), "resets"), (GRU(5), "reverse_all"),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "mode"), CASES, ids=[f"{type(cell).__name__}-{mode}" for cell, mode in CASES])
def test_everything_at_once_is_the_literal_loop(x64, cell, mode):
    problem = make_problem(Row(cell), seq_len=7)
    if mode in ("plain", "resets"):
        problem = problem._replace(lengths=None)
    if mode in ("plain", "lengths"):
        problem = problem._replace(resets=None)
    reverse = mode.startswith("reverse")
    rates = rates_for(cell)
    want_state, want = reference(cell, problem, KEY, rates, reverse)
    state, ys = fast_jit(
        lambda p, key: run_regularized(
            cell, *p[:3], key=key, lengths=p.lengths, resets=p.resets, reverse=reverse, **rates
        )
    )(problem, KEY)
    np.testing.assert_allclose(ys, want, rtol=1e-10, atol=1e-12)
    for got, expected in zip(state, want_state):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.quick
def test_each_option_alone_is_the_literal_loop(x64):
    problem = plain(make_problem(Row(LSTM(4)), seq_len=5))
    chosen = [{other: rate if other == name else 0.0 for other, rate in RATES.items()} for name in RATES]
    run = fast_jit(lambda p: [run_regularized(LSTM(4), *p[:3], key=KEY, **rates) for rates in [*chosen, {}]])
    *results, (_, untouched) = run(problem)
    for rates, (state, ys) in zip(chosen, results):
        want_state, want = reference(LSTM(4), problem, KEY, rates)
        np.testing.assert_allclose(ys, want, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state.c, want_state[1], rtol=1e-10, atol=1e-12)
        assert not np.allclose(ys, untouched)


# --- without a key ---


@pytest.mark.quick
@pytest.mark.parametrize("cell", [LSTM(4), Stack((LSTM(5), GRU(4)))], ids=["lstm", "stack"])
def test_without_a_key_it_is_unroll_to_the_last_bit(cell):
    """The very same compiled program: nothing is computed around it."""
    problem = make_problem(Row(cell))
    options = {"lengths": problem.lengths, "resets": problem.resets}
    rates = RATES if isinstance(cell, LSTM) else {"weight_dropout": 0.5, "recurrent_dropout": 0.5, "zoneout_h": 0.1}
    want = rnnjax.unroll(cell, *problem[:3], **options)
    for got in (
        run_regularized(cell, *problem[:3], **rates, **options),
        run_regularized(cell, *problem[:3], key=KEY, **options),
    ):
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_expectation_of_zoneout_without_a_key(x64):
    """A literal loop with the mean; with a key the option changes nothing."""
    problem = plain(make_problem(Row(LSTM(4)), seq_len=5))
    params, (h, c), xs = (jax.tree.map(np.asarray, part) for part in problem[:3])
    ys = []
    for x in xs:
        new = [STEPS["lstm"](params, (h[row], c[row]), x[row])[0] for row in range(3)]
        h = 0.2 * h + 0.8 * np.stack([n[0] for n in new])
        c = 0.5 * c + 0.5 * np.stack([n[1] for n in new])
        ys.append(h)
    rates = {"zoneout_h": 0.2, "zoneout_c": 0.5}
    run = fast_jit(
        lambda key, expected: run_regularized(LSTM(4), *problem[:3], key=key, expected_zoneout=expected, **rates),
        static_argnums=1,
    )
    state, got = run(None, True)
    np.testing.assert_allclose(got, ys, rtol=1e-10)
    np.testing.assert_allclose(state.c, c, rtol=1e-10)
    np.testing.assert_array_equal(run(KEY, True)[1], run(KEY, False)[1])


# --- how long a mask lasts ---


class PassState(NamedTuple):
    h: jax.Array
    c: jax.Array


@dataclasses.dataclass(frozen=True)
class Shows:
    """A cell whose output shows what its step saw: the matmul's h in the first half, x in the second."""

    size: int

    @property
    def hidden_size(self):
        return 2 * self.size

    def init(self, key, input_size, dtype=jnp.float32):
        return jnp.eye(self.size, dtype=dtype)

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        one = jnp.ones((*batch_shape, self.size), dtype)
        return PassState(one, one + 1)

    def step(self, params, state, x):
        return PassState(jnp.ones_like(state.h), state.c + 1), jnp.concatenate([state.h @ params, x], axis=-1)


def shown(key, T=6, B=3, H=200, resets=None, **rates):
    cell = Shows(H)
    state = cell.initial_state((B,))
    xs = jnp.ones((T, B, H))
    run = fast_jit(lambda key, resets: run_regularized(cell, jnp.eye(H), state, xs, key=key, resets=resets, **rates))
    final, ys = run(key, resets)
    return final, np.asarray(ys[..., :H]), np.asarray(ys[..., H:])


def test_locked_masks_last_a_sequence_and_differ_between_rows_and_purposes():
    """Pitfall 11: not the mask of the first step by accident, but of the sequence by definition."""
    _, h, x = shown(KEY, recurrent_dropout=0.25, input_dropout=0.25)
    for seen in (h, x):
        np.testing.assert_allclose(np.unique(seen), [0, 4 / 3], rtol=1e-6)
        np.testing.assert_allclose((seen == 0).mean(), 0.25, atol=0.06)
        assert (seen == seen[0]).all()  # the same at all steps
        assert not (seen[0, 0] == seen[0, 1]).all()  # a new one for every row
    assert not (h == x).all()


def test_a_reset_draws_new_locked_masks():
    resets = jnp.zeros((6, 3), bool).at[2, 1].set(True)
    _, h, x = shown(KEY, resets=resets, recurrent_dropout=0.5, input_dropout=0.5)
    for seen in (h, x):
        assert (seen[:, [0, 2]] == seen[0, [0, 2]]).all()
        assert (seen[:2, 1] == seen[0, 1]).all() and (seen[2:, 1] == seen[2, 1]).all()
        assert not (seen[1, 1] == seen[2, 1]).all()


def test_masks_of_zoneout_are_new_at_every_step():
    """c counts its steps, so it shows how often each unit moved: binomial if masks are independent in time."""
    T, rate = 40, 0.3
    final, _, _ = shown(KEY, T=T, zoneout_c=rate)
    moved = np.asarray(final.c) - 2
    np.testing.assert_allclose(moved.mean(), T * (1 - rate), rtol=0.02)
    np.testing.assert_allclose(moved.var(), T * rate * (1 - rate), rtol=0.2)  # T**2 times that if masks were one


def test_keys_decide():
    problem = make_problem(Row(LSTM(4)))
    run = fast_jit(lambda key: run_regularized(LSTM(4), *problem[:3], key=key, **RATES))
    first, again, other = run(KEY), run(KEY), run(OTHER)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.allclose(first[1], other[1])


def test_no_two_masks_of_a_stack_share_a_key():
    """Pitfall 11: key reuse across layers. Three layers show their masks of h in their states."""
    H = 100
    cells = tuple(Regularized(Shows(size), recurrent_dropout=0.5) for size in (H, 2 * H, 4 * H))
    stack = Stack(cells, dropout=0.5, locked=True)

    @fast_jit
    def run(xs):
        return rnnjax.unroll(stack, stack.init(KEY, H), None, xs, key=KEY)

    _, ys = run(jnp.ones((3, 2, H)))
    parts = np.split(np.asarray(ys)[0, 0] != 0, [400, 600, 700])  # h of layer 3, then what came up, twice
    assert (np.asarray(ys) == np.asarray(ys)[0]).all()  # locked between the layers, too
    for part, share in zip(parts, (0.5, 0.5 * 0.5, 0.5 * 0.5 * 0.5, 0.5 * 0.5)):
        np.testing.assert_allclose(part.mean(), share, atol=0.12)
    assert not (parts[0][:200] == (parts[1] != 0)).all()


def test_gradients_of_the_step_by_step_part(x64):
    """Finite differences along one direction, with masks held by the key, and the same under remat."""
    problem = make_problem(Row(GRU(5)), seq_len=6)
    rates = rates_for(GRU(5))

    def loss(arguments, remat):
        options = {"lengths": problem.lengths, "resets": problem.resets, "remat": remat}
        return loss_of(*run_regularized(GRU(5), *arguments, key=KEY, **options, **rates))

    @fast_jit
    def run(arguments, direction):
        ahead, behind = (jax.tree.map(lambda a, d: a + e * d, arguments, direction) for e in (1e-5, -1e-5))  # noqa: B023
        numeric = (loss(ahead, None) - loss(behind, None)) / 2e-5
        return numeric, [jax.grad(loss)(arguments, remat) for remat in (None, 2)]

    arguments = tuple(problem[:3])
    direction = jax.tree.map(lambda leaf: np.sin(np.arange(leaf.size)).reshape(leaf.shape), arguments)
    numeric, gradients = run(arguments, direction)
    for gradient in gradients:
        slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        np.testing.assert_allclose(slope, numeric, rtol=1e-7)
    assert_close(gradients[1], gradients[0])


def test_nan_in_padding_stays_there():
    problem = make_problem(Row(LSTM(4)))
    padding = np.arange(8)[:, None] >= np.asarray(problem.lengths)
    xs = jnp.where(padding[..., None], jnp.nan, problem.xs)

    def loss(params):
        options = {"lengths": problem.lengths, "key": KEY, **RATES}
        state, ys = run_regularized(LSTM(4), params, problem.state, xs, **options)
        factors = activation_regularization(ys, lengths=problem.lengths)
        return ys.sum() + factors, (state, ys)

    gradient, (state, ys) = fast_jit(jax.grad(loss, has_aux=True))(problem.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, state)))
    assert (np.asarray(ys)[padding] == 0).all()


# --- other cells, batch axes and dtypes ---


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch):
    """The masks are the only thing that a batch axis changes: without them it is unroll."""
    cell = Elman(4)
    problem = make_problem(Row(cell), batch, seq_len=4)
    options = {"lengths": problem.lengths, "resets": problem.resets}
    rates = {"recurrent_dropout": 1e-9, "zoneout_h": 1e-9}
    got = fast_jit(lambda p: run_regularized(cell, *p[:3], key=KEY, **rates, **options))(problem)
    assert_close(got, rnnjax.unroll(cell, *problem[:3], **options), 1e-5)


def test_a_state_without_h_may_zone_out_its_c():
    """Every step of an SRU reads the old c by itself, so keeping it always is the state that came in."""
    cell = rnnjax.cells.SRU(3)
    problem = plain(make_problem(Row(cell), seq_len=4))
    state, ys = fast_jit(lambda p: run_regularized(cell, *p[:3], key=KEY, zoneout_c=1 - 1e-7))(problem)
    assert_close(state, problem.state, 1e-6)
    step = fast_jit(cell.step)
    assert_close(ys, jnp.stack([step(problem.params, problem.state, x)[1] for x in problem.xs]), 1e-5)


def test_bfloat16_keeps_its_dtypes_and_y_is_h():
    problem = plain(make_problem(Row(LSTM(4)), dtype=jnp.bfloat16))
    rates = RATES | {"output_dropout": 0.0}
    for options in ({"key": KEY}, {"expected_zoneout": True}):
        state, ys = fast_jit(lambda p, o=options: run_regularized(LSTM(4), *p[:3], **o, **rates))(problem)
        assert {state.h.dtype, state.c.dtype, ys.dtype} == {jnp.dtype(jnp.bfloat16)}
        np.testing.assert_array_equal(np.asarray(ys[-1], np.float32), np.asarray(state.h, np.float32))


def test_a_learned_state_is_what_a_reset_restores(x64):
    """A reset at every step makes all steps a first step from the learned state, whatever state is passed in."""
    cell = LearnedState(GRU(4))
    problem = plain(make_problem(Row(cell)))
    start = rnnjax.start_state(cell, problem.params, (3,), None)
    rates = {"recurrent_dropout": 0.5, "zoneout_h": 0.3}
    xs = jnp.broadcast_to(problem.xs[:1], problem.xs.shape)
    resets = jnp.ones((8, 3), bool)
    _, ys = fast_jit(lambda params: run_regularized(cell, params, problem.state, xs, resets=resets, key=KEY, **rates))(
        problem.params
    )
    # What is between the key of the call and that of the cell: `Regularized`, then nothing in `LearnedState`.
    keys = jax.random.split(jax.random.split(KEY, 4)[3], 3)
    seen, kept = bernoulli(keys[0], 0.5, (8, 3, 4)), bernoulli(keys[1], 0.3, (8, 3, 4))
    params, h = jax.tree.map(np.asarray, problem.params.cell), np.asarray(start.h)
    for t in range(8):
        for row in range(3):
            _, y = masked_gru(params, (h[row],), np.asarray(xs[t, row]), seen[t, row] / 0.5)
            np.testing.assert_allclose(ys[t, row], np.where(kept[t, row], h[row], y), rtol=1e-9)


@pytest.mark.parametrize("around", ["each", "all"])
def test_rates_reach_every_cell_of_a_stack(around, x64):
    """Layer by layer by hand, with two keys a layer: one for what comes up to it, one for itself."""
    cells = (LSTM(5), LSTM(4))
    stepwise = {"recurrent_dropout": 0.3, "zoneout_h": 0.1, "zoneout_c": 0.4}
    if around == "each":
        net = Stack([Regularized(cell, weight_dropout=0.2, **stepwise) for cell in cells], dropout=0.5, locked=True)
    else:
        net = Regularized(Stack(cells, dropout=0.5, locked=True), output_dropout=0.2, **stepwise)
    problem = make_problem(Row(net))
    options = {"lengths": problem.lengths, "resets": problem.resets}

    def by_hand(p):
        key_y, key = (None, KEY) if around == "each" else jax.random.split(KEY, 4)[2:]
        between, within = jax.random.split(key, (2, 2))
        ys, states = p.xs, []
        for depth, (cell, params, state) in enumerate(zip(cells, p.params.layers, p.state.layers)):
            ys = dropout(between[depth], ys, 0.5, locked=True, resets=p.resets) if depth else ys
            if around == "each":
                key, rates = within[depth], {"weight_dropout": 0.2, **stepwise}
                state, ys = run_regularized(cell, params, state, ys, key=key, **rates, **options)
            else:
                noisy = RegularizedCell(cell, 0.3, 0.1, 0.4)
                masks = noisy.draw(within[depth], len(ys), state, p.resets, False)
                finals, rows = [], []
                for row in range(3):
                    s, out = jax.tree.map(lambda leaf, row=row: leaf[row], state), []
                    for t in range(len(ys)):
                        restart, valid = p.resets[t, row], t < p.lengths[row]
                        s = jax.tree.map(lambda leaf, r=restart & valid: jnp.where(r, 0, leaf), s)
                        mask = jax.tree.map(lambda m, t=t, row=row: m[t, row], masks)
                        new, y = noisy.step(params, s, ys[t, row], mask)
                        s = jax.tree.map(lambda a, b, v=valid: jnp.where(v, a, b), new, s)
                        out.append(jnp.where(valid, y, 0))
                    finals.append(s)
                    rows.append(jnp.stack(out))
                state, ys = jax.tree.map(lambda *rows: jnp.stack(rows), *finals), jnp.stack(rows, 1)
            states.append(state)
        ys = ys if key_y is None else dropout(key_y, ys, 0.2, locked=True, resets=p.resets)
        return type(p.state)(tuple(states)), ys

    got, want = fast_jit(lambda p: (rnnjax.unroll(net, *p[:3], key=KEY, **options), by_hand(p)))(problem)
    assert_close(got, want)


@pytest.mark.quick
def test_one_step_is_an_evaluation(x64):
    """`step` has no key: it is the step of the cell, or that with the mean of zoneout."""
    problem = plain(make_problem(Row(LSTM(4)), seq_len=1))
    params, state, xs = problem[:3]
    new, y = fast_jit(LSTM(4).step)(params, state, xs[0])
    net = Regularized(LSTM(4), **RATES)
    assert_close(fast_jit(net.step)(params, state, xs[0]), (new, y), 0)
    mean = Regularized(LSTM(4), zoneout_h=0.2, zoneout_c=0.5, expected_zoneout=True)
    got, y = fast_jit(mean.step)(params, state, xs[0])
    np.testing.assert_allclose(got.h, 0.2 * state.h + 0.8 * new.h, rtol=1e-12)
    np.testing.assert_allclose(got.c, 0.5 * state.c + 0.5 * new.c, rtol=1e-12)
    np.testing.assert_array_equal(y, got.h)

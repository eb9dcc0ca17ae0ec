"""Every room under the flags by which JAX users look for mistakes of their own: the same numbers as without.

A room or two under each flag are part of every run; ``pytest -m thorough tests/test_flags.py`` takes all,
and every cell in every engine.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax import analysis, data, decoding, fit, interop, networks, online, topologies
from rnnjax.engines.choice import UnfitError
from rnnjax.fit import OptimizerOptions
from rnnjax.lm import LanguageModel, evaluate, generate
from rnnjax.lm.train import Carry, update
from rnnjax.text.corpus import Chunk
from tests.cells_table import CELLS, NETWORKS, assert_close, loss_of, make_problem, unroll

FLAGS = {
    "strict_dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "raise_ranks": lambda: jax.numpy_rank_promotion("raise"),
    "debug_nans": lambda: jax.debug_nans(True),
    "enable_checks": lambda: jax.enable_checks(True),
    "tracer_leaks": jax.checking_leaks,
    "disable_jit": jax.disable_jit,
}
KEY, ADAM = jax.random.key(0), optax.adam(1e-2)
T, B, I, H, V = 4, 2, 3, 3, 5
GRU, LSTM = rnnjax.GRU(H), rnnjax.LSTM(H)
RNG = np.random.default_rng(0)
XS = jnp.asarray(RNG.normal(size=(T, B, I)), jnp.float32)
SYMBOLS = RNG.integers(V, size=(T, B))
LENGTHS = np.array([T, 2])
RESETS = np.arange(T * B).reshape(T, B) % 3 == 1
CUT = online.Cut()


def gradients(loss: Any, params: Any) -> Any:
    return jax.value_and_grad(loss)(params)


def classify() -> Any:
    cell = networks.Bidirectional((GRU,))
    model = topologies.ManyToOne(cell, output_size=2, vocab_size=V, embed_size=2, pooling="attention", dropout=0.1)

    def loss(params: Any) -> Any:
        logits = model.apply(params, SYMBOLS, lengths=LENGTHS, key=KEY)
        return topologies.softmax_loss(logits, np.array([0, 1]), label_smoothing=0.1, class_weights=np.ones(2))

    return gradients(loss, model.init(KEY))


def tag() -> Any:
    stack = networks.Regularized(
        rnnjax.Stack((LSTM, LSTM), residual=True, norm="rms"), zoneout_h=0.1, input_dropout=0.2
    )
    model = topologies.ManyToMany(stack, output_size=V, input_size=I)

    def loss(params: Any) -> Any:
        logits = model.apply(params, XS, resets=RESETS, key=KEY)
        penalty = networks.activation_regularization(logits, lengths=LENGTHS)
        penalty += networks.activation_regularization(logits, temporal=True, lengths=LENGTHS)
        loss = topologies.softmax_loss(logits, SYMBOLS, lengths=LENGTHS) + penalty
        return loss + topologies.huber_loss(logits[..., :I], XS, mask=RESETS) + topologies.mse_loss(logits[..., :I], XS)

    return gradients(loss, model.init(KEY))


def translate() -> Any:
    model = topologies.EncoderDecoder(
        LSTM, GRU, output_size=V, vocab_size=V, bridge="affine", attention=topologies.Attention()
    )
    params = model.init(KEY)

    def loss(params: Any) -> Any:
        logits = model.apply(params, SYMBOLS, SYMBOLS, lengths=LENGTHS, target_lengths=LENGTHS, sampling=0.5, key=KEY)
        return topologies.softmax_loss(logits, SYMBOLS, lengths=LENGTHS)

    source = model.encode(params, SYMBOLS, lengths=LENGTHS)
    step, state = model.stepper(params, source), model.start(params, source)
    beams = decoding.beam_search(step, state, 0, max_len=3, beam_size=2, stop=1, length_penalty=0.6)
    return gradients(loss, params), beams


def caption() -> Any:
    model = topologies.OneToMany(GRU, output_size=V, input_size=I)

    def loss(params: Any) -> Any:
        return topologies.softmax_loss(model.apply(params, XS[0], SYMBOLS, lengths=LENGTHS), SYMBOLS, lengths=LENGTHS)

    return gradients(loss, model.init(KEY))


def write() -> Any:
    params = rnnjax.GRU(V).init(KEY, V)

    def step(state: Any, symbols: Any) -> Any:
        return rnnjax.GRU(V).step(params, state, jax.nn.one_hot(symbols, V))

    state = rnnjax.GRU(V).initial_state((B,))
    best = decoding.greedy(step, state, [1, 2], max_len=3, stop=0, min_len=1, banned=(3,))
    return best, decoding.sample(step, state, [1, 2], key=KEY, max_len=3, temperature=0.7, top_k=3, top_p=0.9)


def in_chunks(border: Any = CUT, cell: Any = GRU) -> Any:
    params = cell.init(KEY, I)

    def loss(params: Any, state: Any, xs: Any) -> Any:
        state, ys = rnnjax.unroll(cell, params, state, xs)
        return jnp.mean(ys**2), state

    return rnnjax.tbptt(
        loss, ADAM, params, ADAM.init(params), cell.initial_state((B,)), XS, chunk_len=2, border=border
    )[:3]


def train() -> Any:
    model = topologies.OneToOne(GRU, output_size=1, input_size=I)
    arrays = {"x": np.reshape(np.sin(np.arange(6 * I)), (6, I)).astype(np.float32), "y": np.ones((6, 1), np.float32)}

    def loss(params: Any, batch: Any, *, key: Any) -> Any:
        return topologies.mse_loss(model.apply(params, batch["x"]), batch["y"])

    batches = data.ShuffledBatches(arrays, batch_size=2, key=KEY)
    return fit.fit(loss, model.init(KEY), ADAM, batches, steps=2, key=KEY).params


def language_model() -> Any:
    model = LanguageModel(V, rnnjax.Stack((LSTM, LSTM)), embed_size=2, dropout=0.1)
    options = OptimizerOptions()
    optimizer = options.make_optimizer()
    params = model.init(KEY)
    carry = Carry(params, optimizer.init(params), model.initial_state((B,)))
    chunk = Chunk(SYMBOLS.astype(np.int32), np.roll(SYMBOLS, 1).astype(np.int32), RESETS)
    params = update(model, optimizer, carry, chunk, jnp.float32(1e-2), KEY, jnp.int32(0))[0].params
    ids = np.arange(20) % V
    text = list(generate(model, params, [1, 2], key=KEY, length=3, temperature=0.7, top_k=2, banned=0))
    return params, evaluate(model, params, ids, streams=2, window=4, starts=np.array([0, 7])).loss, text


def look_inside() -> Any:
    params, state = LSTM.init(KEY, I), LSTM.initial_state((B,))
    given = (LSTM, params, state, XS)
    flow = analysis.gradient_flow(*given, lambda ys: (ys**2).sum(-1), max_lag=2)
    spectrum = analysis.lyapunov_spectrum(*given, num_exponents=2)
    points = analysis.find_fixed_points(LSTM, params, state, XS[0, 0], steps=2, polish_steps=2)
    jacobians = analysis.jacobian_spectrum(*given)
    return flow, spectrum, points.speed, jacobians, analysis.record(*given)


def other_frameworks() -> Any:
    params = GRU.init(KEY, I)
    cell, tree = interop.from_flax(*interop.to_flax(GRU, params))
    layer = interop.linen_layer(GRU, time_major=True)
    return layer.apply(layer.init(KEY, XS), XS), rnnjax.unroll(cell, tree, None, XS)


def online_borders() -> Any:
    return [
        in_chunks(online.Lookback(4)), in_chunks(online.RTRL(GRU)), in_chunks(online.UORO(KEY)),
        in_chunks(online.SnAp1(rnnjax.LRU(H)), rnnjax.LRU(H)), in_chunks(online.EProp(LSTM), LSTM),
    ]  # fmt: skip


ROOMS = {
    room.__name__: room
    for room in (
        classify, tag, translate, caption, write, in_chunks, online_borders, train, language_model, look_inside,
        other_frameworks,
    )
}  # fmt: skip


OFTEN = {(flag, "in_chunks") for flag in FLAGS}


def rooms() -> Any:
    marks = {False: [pytest.mark.thorough], True: [pytest.mark.quick]}
    names = [(flag, room) for room in ROOMS for flag in FLAGS]
    return [pytest.param(*pair, id="-".join(pair), marks=marks[pair in OFTEN]) for pair in names]


@functools.cache
def without(room: str) -> Any:
    return ROOMS[room]()


def numbers(tree: Any) -> Any:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if not isinstance(leaf, str)]  # names are the same


@pytest.mark.parametrize(("flag", "room"), rooms())
def test_rooms(flag, room):
    want = without(room)
    with FLAGS[flag]():
        got = ROOMS[room]()
    assert_close(numbers(got), numbers(want), 1e-4)


def gradients_of(row: Any, implementation: Any, problem: Any, reverse: bool = False, remat: Any = None) -> Any:
    """The initial values of a cell, and all gradients of an unroll with lengths and resets."""

    def loss(*given: Any) -> Any:
        ahead = unroll(
            row.cell, implementation, problem._replace(params=given[0], state=given[1], xs=given[2]), reverse, remat
        )
        return loss_of(*ahead)

    return row.cell.init(KEY, row.input_size, problem.xs.dtype), jax.grad(loss, (0, 1, 2))(*problem[:3])


ROWS = CELLS | NETWORKS


def cells() -> Any:
    pairs = [(name, dtype) for name in ROWS for dtype in (jnp.float32, jnp.bfloat16)]
    few = ("layernorm_lstm", jnp.bfloat16)  # its update has weights of its own, which meet states of a wider dtype
    return [
        pytest.param(*pair, id=f"{pair[0]}-{pair[1].__name__}", marks=[] if pair == few else [pytest.mark.thorough])
        for pair in pairs
    ]


@pytest.mark.parametrize(("name", "dtype"), cells())
def test_promotion_in_cells(name, dtype):
    """Nothing is computed: what JAX forbids, it forbids while it traces."""
    row = ROWS[name]
    problem = make_problem(row, (B,), T, dtype, dtype)
    traced, able = [], rnnjax.implementations(row.cell) if name != "regularized" else ("scan",)
    for implementation in able:
        for flag in ("strict_dtypes", "raise_ranks"):
            # "newton" takes no narrow states, and says so.
            with FLAGS[flag](), contextlib.suppress(UnfitError):
                jax.eval_shape(functools.partial(gradients_of, row, implementation, problem, True, 2))
                traced.append(implementation)
    assert [one for one in able if traced.count(one) != 2] == (
        ["newton"] if "newton" in able and dtype != jnp.float32 else []
    )


@pytest.mark.thorough
@pytest.mark.parametrize("flag", ["debug_nans", "enable_checks", "tracer_leaks", "disable_jit"])
@pytest.mark.parametrize("name", ROWS)
def test_cells(name, flag):
    row = ROWS[name]
    problem = make_problem(row, (B,), T)
    want = jax.jit(functools.partial(gradients_of, row, None))(problem)
    with FLAGS[flag]():
        got = gradients_of(row, None, problem)
    assert_close(got, want, 1e-4)


def test_the_flags_hold_for_what_a_user_writes():
    """The library may mix ranks and dtypes; a cell of the user's may not where the user says so."""

    @dataclasses.dataclass(frozen=True)
    class Mixed(rnnjax.Elman):
        def update(self, params, state, zx, zh):
            h = zx[0] + zh[0] + jnp.ones(H)
            return state._replace(h=h), h

    cell = Mixed(H)
    for flag, refused in (("raise_ranks", True), ("enable_checks", False)):
        with FLAGS[flag]():
            if refused:
                with pytest.raises(ValueError, match="rank_promotion"):
                    rnnjax.unroll(cell, cell.init(KEY, I), None, XS)
            else:
                rnnjax.unroll(cell, cell.init(KEY, I), None, XS)

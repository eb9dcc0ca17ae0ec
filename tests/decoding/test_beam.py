"""Beam search against all sequences, against a beam search in plain Python, and against `greedy`."""

import functools
import gc
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.decoding import beam_search, greedy
from rnnjax.decoding.beam import normalize_length
from tests.decoding import exact

V, H, B = 3, 5, 3
START = np.array([0, 2, 1])
H0 = np.random.default_rng(5).standard_normal((B, H)).astype(np.float32)


class State(NamedTuple):
    h: Any


def step(net: exact.Net, state: State, symbols: jax.Array) -> tuple[State, jax.Array]:
    h = jnp.tanh(jnp.asarray(net.embedding)[symbols] + state.h @ net.w)
    return State(h), h @ net.w_out


def bound(seed: int = 0) -> tuple[exact.Net, functools.partial]:
    net = exact.make_net(V, H, seed)
    return net, functools.partial(step, net)


def sequence(tokens: Any, length: Any) -> tuple[int, ...]:
    return tuple(np.asarray(tokens)[: int(length)].tolist())


def plain_search(
    net: exact.Net, h: np.ndarray, start: int, max_len: int, K: int, alpha: float, stop: tuple[int, ...], min_len: int
) -> list[tuple[float, float, tuple[int, ...]]]:
    """Beam search that never ends early and keeps all that finishes: (score, log-probability, symbols)."""
    live, done = [(0.0, ())], []
    for length in range(1, max_len + 1):
        candidates = []
        for total, symbols in live:
            gained = exact.log_probs_after(net, h, start, symbols)
            allowed = [v for v in range(V) if v not in stop or length >= min_len]
            candidates += [(total + gained[v], (*symbols, v)) for v in allowed]
        kept = sorted(candidates, reverse=True)[:K]
        leaving = [(total, symbols) for total, symbols in kept if symbols[-1] in stop or length == max_len]
        done += [(total / ((5 + length) / 6) ** alpha, total, symbols) for total, symbols in leaving]
        live = [(total, symbols) for total, symbols in kept if symbols[-1] not in stop]
    return sorted(done, reverse=True)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("alpha", "options"),
    [
        (0.0, {"stop": (1,)}),
        (1.3, {"stop": (1,)}),
        (0.7, {"stop": (2, 0), "min_len": 3}),
        (0.5, {"banned": (1,)}),
    ],
)
def test_a_beam_as_wide_as_the_space_is_exhaustive(alpha: float, options: dict) -> None:
    net, bound_step = bound()
    max_len, K = 4, 81
    beams = beam_search(bound_step, State(H0), START, max_len=max_len, beam_size=K, length_penalty=alpha, **options)
    beams = jax.tree.map(np.asarray, beams)
    sequences = list(exact.all_sequences(V, max_len, **options))
    for b in range(B):
        expected = exact.ranked(net, H0[b], START[b], sequences, alpha)
        n = len(expected)
        assert n > 4 and np.isneginf(beams.scores[b, n:]).all() and (beams.lengths[b, n:] == 0).all()
        assert not beams.finished[b, n:].any() and np.isneginf(beams.log_probs[b, n:]).all()
        np.testing.assert_allclose(beams.scores[b, :n], [score for score, _, _ in expected], rtol=1e-5, atol=1e-6)
        found = [sequence(*pair) for pair in zip(beams.tokens[b, :n], beams.lengths[b, :n])]
        assert sorted(found) == sorted(sequences)
        for i, symbols in enumerate(found):  # each with its own numbers
            value = exact.log_prob(net, H0[b], START[b], symbols)
            np.testing.assert_allclose(beams.log_probs[b, i], value, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                beams.scores[b, i], value / ((5 + len(symbols)) / 6) ** alpha, rtol=1e-5, atol=1e-6
            )
            stop = options.get("stop", ())
            assert beams.finished[b, i] == (symbols[-1] in stop)
            assert (beams.tokens[b, i, len(symbols) :] == (stop[0] if stop else 0)).all()
    if alpha != 1.3:
        return
    best = beam_search(
        bound_step, State(H0), START, max_len=max_len, beam_size=K, num_best=1, length_penalty=alpha, **options
    )
    np.testing.assert_array_equal(best.tokens, beams.tokens[:, :1])
    np.testing.assert_array_equal(best.scores, beams.scores[:, :1])


@pytest.mark.parametrize(
    ("K", "num_best", "alpha", "stop", "min_len"),
    [(2, 2, 0.0, (1,), 0), (3, 1, 1.0, (1,), 0), (3, 3, 0.6, (0, 2), 2), (4, 2, 3.0, (2,), 0)],
)
def test_narrow_beams_are_those_of_a_plain_search(
    K: int, num_best: int, alpha: float, stop: tuple[int, ...], min_len: int
) -> None:
    missed = 0
    for seed in range(6):
        net, bound_step = bound(seed)
        beams = beam_search(
            bound_step, State(H0), START, max_len=7, beam_size=K, num_best=num_best, length_penalty=alpha, stop=stop,
            min_len=min_len,
        )  # fmt: skip
        beams = jax.tree.map(np.asarray, beams)
        for b in range(B):
            expected = plain_search(net, H0[b], START[b], 7, K, alpha, stop, min_len)[:num_best]
            found = [sequence(*pair) for pair in zip(beams.tokens[b], beams.lengths[b])]
            assert found[: len(expected)] == [symbols for _, _, symbols in expected]
            np.testing.assert_allclose(
                beams.log_probs[b, : len(expected)], [x for _, x, _ in expected], rtol=1e-5, atol=1e-6
            )
            np.testing.assert_allclose(
                beams.scores[b, : len(expected)], [x for x, _, _ in expected], rtol=1e-5, atol=1e-6
            )
            greedily = plain_search(net, H0[b], START[b], 7, 1, alpha, stop, min_len)
            missed += greedily[0][2] != expected[0][2]
    assert missed > 2  # the test would notice a beam of one


@pytest.mark.quick
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_beam_of_one_is_greedy(alpha: float) -> None:
    options = {"max_len": 6, "stop": 1, "min_len": 2}
    lengths = set()
    for seed in range(8):
        _, bound_step = bound(seed)
        beams = beam_search(bound_step, State(H0), START, beam_size=1, length_penalty=alpha, **options)
        decoded = greedy(bound_step, State(H0), START, **options)
        np.testing.assert_array_equal(beams.tokens[:, 0], decoded.tokens)
        np.testing.assert_array_equal(beams.lengths[:, 0], decoded.lengths)
        np.testing.assert_array_equal(beams.finished[:, 0], decoded.finished)
        np.testing.assert_allclose(beams.log_probs[:, 0], decoded.log_probs, rtol=1e-6)
        np.testing.assert_allclose(beams.scores, normalize_length(beams.log_probs, beams.lengths, alpha), rtol=1e-6)
        lengths |= set(decoded.lengths.tolist())
    assert len(lengths) > 2  # among them some that stop


def test_rows_do_not_see_each_other_and_jit_changes_nothing() -> None:
    _, bound_step = bound(3)
    options = {"max_len": 6, "beam_size": 3, "stop": 1, "length_penalty": 0.8}
    together = beam_search(bound_step, State(H0), START, **options)
    for b in range(B):
        alone = beam_search(bound_step, State(H0[b : b + 1]), START[b : b + 1], **options)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[b])
        np.testing.assert_allclose(alone.scores[0], together.scores[b], rtol=1e-6)

    @jax.jit
    def inside(h: jax.Array) -> Any:
        return beam_search(
            lambda state, symbols: bound_step(State(h + state.h), symbols), State(0 * h), START, **options
        )

    def shifted(h, state, symbols):
        return step(bound_step.args[0], State(h + state.h), symbols)

    outside = beam_search(functools.partial(shifted, H0), State(0 * H0), START, **options)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), inside(H0), outside)


def test_one_compilation_serves_other_parameters_states_and_starts() -> None:
    traced = []

    def counted(net: exact.Net, state: State, symbols: jax.Array) -> tuple[State, jax.Array]:
        traced.append(1)
        return step(net, state, symbols)

    def run(seed: int) -> Any:
        net = exact.make_net(V, H, seed)
        return beam_search(functools.partial(counted, net), State(seed * H0), START, max_len=4, beam_size=2, stop=1)

    first = run(1)
    before = len(traced)
    second = run(2)
    assert len(traced) == before and (first.log_probs != second.log_probs).all()


class Remembering(NamedTuple):
    h: jax.Array
    memory: jax.Array  # [S, B, H]


def attend(w: jax.Array, memory: jax.Array, h: jax.Array, symbols: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = jax.nn.softmax(jnp.einsum("bh,sbh->bs", h, memory))
    h = jnp.tanh(jnp.einsum("bs,sbh->bh", weights, memory) + 0.5 * h + jax.nn.one_hot(symbols, H))
    return h, h @ w


def all_shapes(jaxpr: Any) -> list[tuple[int, ...]]:
    shapes = []
    for equation in jaxpr.eqns:
        shapes += [var.aval.shape for var in equation.outvars]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            shapes += all_shapes(inner) if hasattr(inner, "eqns") else []
    return shapes


def test_beams_share_what_the_step_binds_and_what_it_hands_back() -> None:
    S, K = 40, 3
    rng = np.random.default_rng(0)
    memory = rng.standard_normal((S, B, H)).astype(np.float32)
    w = 2 * rng.standard_normal((H, V)).astype(np.float32)
    options = {"max_len": 6, "beam_size": K, "stop": 1}

    def with_bound(w, memory, h, symbols):
        return attend(w, memory, h, symbols)

    def in_state(w, state, symbols):
        h, logits = attend(w, state.memory, state.h, symbols)
        return state._replace(h=h), logits

    def copied(w, state, symbols):  # a new array each time, gathered as any state; its leaves must be [B, ...]
        h, logits = attend(w, state.memory.swapaxes(0, 1), state.h, symbols)
        return Remembering(h, state.memory + 0), logits

    def search(step, state):
        return beam_search(step, state, START, **options)

    expected = search(functools.partial(copied, w), Remembering(H0, memory.swapaxes(0, 1)))
    runs = [
        (functools.partial(with_bound, w, memory), H0),
        (functools.partial(in_state, w), Remembering(H0, memory)),
    ]
    for step_, state in runs:
        found = search(step_, state)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        traced = jax.make_jaxpr(functools.partial(beam_search, step_, **options))(state, START)
        assert max(np.prod(shape) for shape in all_shapes(traced.jaxpr)) <= memory.size
    traced = jax.make_jaxpr(functools.partial(beam_search, functools.partial(copied, w), **options))
    repeated = all_shapes(traced(Remembering(H0, memory.swapaxes(0, 1)), START).jaxpr)
    assert max(np.prod(shape) for shape in repeated) >= K * memory.size  # the measure would notice


def test_memory_grows_by_two_integers_a_step_and_beam() -> None:
    _, bound_step = bound()
    sizes = []
    for max_len in (1000, 3000):
        search = jax.jit(
            lambda h, n=max_len: beam_search(bound_step, State(h), START, max_len=n, beam_size=4, num_best=1, stop=1)
        )
        sizes.append(search.lower(H0).compile().memory_analysis().temp_size_in_bytes)
    # Beyond the two buffers of B K integers, what the last pass over them stacks: B N.
    assert sizes[1] - sizes[0] <= 2000 * 4 * (2 * B * 4 + 2 * B) + 4096


def steps_taken(search: Any, next_of: jax.Array, **options: Any) -> tuple[Any, int]:
    """The result for a chain with these log-probabilities, and how many steps were computed."""
    seen = []

    def counting(table: jax.Array, t: jax.Array, symbols: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda t: seen.append(int(np.max(t))), t)
        return t + 1, table[symbols]

    result = search(functools.partial(counting, next_of), jnp.zeros((1,), jnp.int32), jnp.array([1]), **options)
    jax.effects_barrier()
    return result, 1 + max(seen)


def test_search_ends_when_nothing_live_can_win() -> None:
    # From 1: stop (0) with 0.6, go on with 0.4, and so on: the best sequence is [0], the second [1, 0], ...
    chain = jnp.log(jnp.array([[0.5, 0.5], [0.6, 0.4]]))
    options = {"max_len": 50, "beam_size": 2, "stop": 0}
    beams, steps = steps_taken(beam_search, chain, num_best=1, **options)
    assert (steps, beams.tokens[0, 0, :2].tolist()) == (1, [0, 0])
    beams, steps = steps_taken(beam_search, chain, **options)
    assert steps == 2 and beams.lengths.tolist() == [[1, 2]]
    np.testing.assert_allclose(jnp.exp(beams.log_probs), [[0.6, 0.24]], rtol=1e-6)
    # With a penalty of 1, t log(0.4) / (55 / 6) <= log(0.6) from t = 6 on: log(0.6) (55 / 6) / log(0.4) = 5.1.
    beams, steps = steps_taken(beam_search, chain, num_best=1, length_penalty=1.0, **options)
    assert steps == 6
    np.testing.assert_allclose(beams.scores, np.log([[0.6]]), rtol=1e-6)
    decoded, steps = steps_taken(greedy, chain, max_len=50, stop=0)
    assert steps == 1 and decoded.lengths.tolist() == [1]
    decoded, steps = steps_taken(greedy, chain, max_len=50, stop=0, min_len=4)
    assert steps == 4 and decoded.tokens[0, :5].tolist() == [1, 1, 1, 0, 0]


def test_a_beam_that_has_left_may_turn_to_nan() -> None:
    net, _ = bound(1)

    def fragile(net, state, symbols):  # nothing may be read behind the stop symbol 1
        state, logits = step(net, state, symbols)
        return state, jnp.where((symbols == 1)[:, None], jnp.nan, logits)

    options = {"max_len": 6, "stop": 1}
    start = np.array([0, 2, 2])
    for search in (greedy, functools.partial(beam_search, beam_size=4, length_penalty=1.0)):
        found = search(functools.partial(fragile, net), State(H0), start, **options)
        expected = search(functools.partial(step, net), State(H0), start, **options)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert found.finished.any()


def test_long_sequences_keep_small_differences() -> None:
    # A thousand steps of log(1/2) and more; then 0.5002 against 0.4998, less than float32 resolves in the sum.
    chain = jnp.log(jnp.array([[0.49998, 0.50002], [0.49998, 0.50002]]))
    beams = beam_search(functools.partial(_look_up, chain), (), jnp.array([1]), max_len=2000, beam_size=2)
    assert (beams.tokens[0, 0] == 1).all()


def _look_up(table: jax.Array, state: Any, symbols: jax.Array) -> tuple[Any, jax.Array]:
    return state, table[symbols]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"beam_size": 0}, ValueError, "beam_search: beam_size must be at least 1, got 0"),
        ({"beam_size": 2, "num_best": 3}, ValueError, "num_best must be at most beam_size = 2, got 3"),
        ({"length_penalty": -1.0}, ValueError, r"length_penalty must be a finite number of at least 0, got -1"),
        ({"length_penalty": float("nan")}, ValueError, "length_penalty must be"),
        ({"stop": V}, ValueError, "beam_search: stop must be ids from 0 to 2, got 3"),
    ],
)
def test_errors(options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        beam_search(bound()[1], State(H0), START, **{"max_len": 3, **options})


def test_the_program_of_a_step_that_was_made_for_a_call_goes_with_it():
    def made(weights, state, symbols):
        return state, jnp.zeros((len(symbols), 4)) + weights

    for _ in range(2):
        beam_search(functools.partial(made, jnp.ones(4)), State(0 * H0), START, max_len=2, beam_size=2, stop=1)
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None

"""Greedy decoding and sampling against loops in NumPy, and against the probabilities of all sequences."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import rnnjax
from rnnjax.decoding import adjust_logits, greedy, sample
from tests.decoding import exact

V, H, B = 4, 5, 3
NET = exact.make_net(V, H)
START = np.array([0, 2, 1])
H0 = np.random.default_rng(5).standard_normal((B, H)).astype(np.float32)
KEY = jax.random.key(3)


def step(net: exact.Net, h: jax.Array, symbols: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = jnp.tanh(jnp.asarray(net.embedding)[symbols] + h @ net.w)
    return h, h @ net.w_out


STEP = functools.partial(step, NET)


def check_row(decoded: Any, b: int, symbols: list[int], stop: tuple[int, ...]) -> None:
    n = len(symbols)
    assert decoded.tokens[b].tolist() == symbols + [stop[0] if stop else 0] * (decoded.tokens.shape[1] - n)
    assert decoded.lengths[b] == n and decoded.finished[b] == (symbols[-1] in stop)


@pytest.mark.quick
@pytest.mark.parametrize(
    "options", [{}, {"stop": (1,)}, {"stop": (3, 1), "min_len": 4}, {"stop": (1,), "banned": (0, 3)}]
)
def test_greedy_is_a_loop(options: dict) -> None:
    stop, banned, min_len = (
        options.get(name, default) for name, default in (("stop", ()), ("banned", ()), ("min_len", 0))
    )
    stopped = 0
    for seed in range(5):
        net = exact.make_net(V, H, seed)
        decoded = greedy(functools.partial(step, net), H0, START, max_len=7, **options)
        decoded = jax.tree.map(np.asarray, decoded)
        for b in range(B):
            symbols: list[int] = []
            total = 0.0
            while len(symbols) < 7 and not (symbols and symbols[-1] in stop):
                log_probs = exact.log_probs_after(net, H0[b], START[b], tuple(symbols))
                order = np.argsort(-log_probs)
                allowed = [v for v in order if v not in banned and (v not in stop or len(symbols) + 1 >= min_len)]
                total += log_probs[allowed[0]]
                symbols.append(int(allowed[0]))
            check_row(decoded, b, symbols, stop)
            np.testing.assert_allclose(decoded.log_probs[b], total, rtol=2e-5)
            stopped += len(symbols) < 7
    assert bool(stopped) == bool(stop)


def test_sampling_is_a_loop_with_a_key_for_each_place() -> None:
    options = {"temperature": 0.8, "top_k": 3, "top_p": 0.95}
    decoded = sample(STEP, H0, START, key=KEY, max_len=9, stop=(1, 3), banned=2, **options)
    raw = sample(STEP, H0, START, key=jax.random.key_data(KEY), max_len=9, stop=(1, 3), banned=2, **options)
    jax.tree.map(np.testing.assert_array_equal, raw, decoded)
    decoded = jax.tree.map(np.asarray, decoded)
    for b in range(B):
        symbols: list[int] = []
        while len(symbols) < 9 and not (symbols and symbols[-1] in (1, 3)):
            log_probs = exact.log_probs_after(NET, H0[b], START[b], tuple(symbols))
            logits = adjust_logits(jnp.array(log_probs, jnp.float32), banned=2, **options)
            key = jax.random.fold_in(jax.random.fold_in(KEY, b), len(symbols))
            symbols.append(int(jax.random.categorical(key, logits)))
        check_row(decoded, b, symbols, (1, 3))
        total = exact.log_prob(NET, H0[b], START[b], tuple(symbols))  # the model's own, not the adjusted
        np.testing.assert_allclose(decoded.log_probs[b], total, rtol=2e-5)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_k": 3, "top_p": 0.9}])
def test_sequences_come_as_often_as_they_should(options: dict) -> None:
    rows = 4000
    decoded = sample(
        STEP, np.tile(H0[:1], (rows, 1)), np.zeros(rows, int), key=KEY, max_len=3, stop=1, min_len=2, **options
    )
    found = zip(np.asarray(decoded.tokens).tolist(), decoded.lengths.tolist())
    counts = collections.Counter(tuple(tokens[:length]) for tokens, length in found)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    expected = {}
    for symbols in exact.all_sequences(V, 3, (1,), min_len=2):
        expected[symbols] = 1.0
        for t, symbol in enumerate(symbols):
            log_probs = exact.log_probs_after(NET, H0[0], 0, symbols[:t])
            expected[symbols] *= exact.exact_probs(log_probs, banned=1 if t == 0 else None, **settings)[symbol]
    assert sum(expected.values()) == pytest.approx(1)
    assert set(counts) <= {symbols for symbols, prob in expected.items() if prob > 0}
    often = [symbols for symbols, prob in expected.items() if rows * prob > 5]
    observed = np.array([*(counts[symbols] for symbols in often), 0])
    exactly = rows * np.array([*(expected[symbols] for symbols in often), 0])
    observed[-1], exactly[-1] = rows - observed.sum(), rows - exactly.sum()  # all the rare ones together
    kept = exactly > 1e-6
    assert len(often) > 4 and scipy.stats.chisquare(observed[kept], exactly[kept]).pvalue > 1e-3


def test_rows_do_not_see_each_other() -> None:
    keys = jax.random.split(KEY, B)
    together = sample(STEP, H0, START, key=keys, max_len=8, stop=1), greedy(STEP, H0, START, max_len=8, stop=1)
    for b in range(B):
        row = H0[b : b + 1], START[b : b + 1]
        alone = sample(STEP, *row, key=keys[b : b + 1], max_len=8, stop=1), greedy(STEP, *row, max_len=8, stop=1)
        for one, all_ in zip(alone, together):
            np.testing.assert_array_equal(one.tokens[0], all_.tokens[b])
            np.testing.assert_allclose(one.log_probs[0], all_.log_probs[b], rtol=1e-6)
    coldest = sample(STEP, H0, START, key=KEY, temperature=0, max_len=8, stop=1)
    jax.tree.map(np.testing.assert_array_equal, coldest, together[1])


def test_jit_and_vmap_change_nothing_and_compile_once() -> None:
    traced = []

    def counted(net: exact.Net, h: jax.Array, symbols: jax.Array) -> tuple[jax.Array, jax.Array]:
        traced.append(1)
        return step(net, h, symbols)

    bound = functools.partial(counted, NET)
    keys = jax.random.split(KEY, 2)
    expected = [sample(bound, H0, START, key=key, max_len=5, stop=1) for key in keys]
    before = len(traced)
    sample(functools.partial(counted, exact.make_net(V, H, 1)), 2 * H0, START[::-1], key=KEY, max_len=5, stop=1)
    assert len(traced) == before

    @jax.jit
    def inside(net, h, key):
        return sample(functools.partial(counted, net), h, START, key=key, max_len=5, stop=1)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, inside(NET, H0, keys[0]), expected[0])
    several = jax.vmap(lambda key: sample(bound, H0, START, key=key, max_len=5, stop=1))(keys)
    jax.tree.map(lambda found, *rows: close(found, np.stack(rows)), several, *expected)


def test_a_plain_function_may_change_what_it_captures() -> None:
    net = NET

    def captured(h: jax.Array, symbols: jax.Array) -> tuple[jax.Array, jax.Array]:
        return step(net, h, symbols)

    for seed in (0, 1):
        net = exact.make_net(V, H, seed)
        expected = greedy(functools.partial(step, net), H0, START, max_len=5)
        np.testing.assert_array_equal(greedy(captured, H0, START, max_len=5).tokens, expected.tokens)


def test_what_is_bound_besides_arrays_is_part_of_the_program() -> None:
    def scaled(net: exact.Net, h: jax.Array, symbols: jax.Array, *, factor: Any) -> tuple[jax.Array, jax.Array]:
        h, logits = step(net, h, symbols)
        return h, -logits if factor is True else factor * logits

    found = [
        greedy(functools.partial(scaled, NET, factor=factor), H0, START, max_len=5).log_probs
        for factor in (1, True, 1.0)
    ]
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[1]).all()  # although 1 == True


def test_dtypes_and_one_start_for_all() -> None:
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), NET)
    decoded = greedy(functools.partial(step, low), H0.astype(jnp.bfloat16), 2, max_len=4)
    assert decoded.log_probs.dtype == jnp.float32 and decoded.tokens.dtype == jnp.int32
    each = greedy(functools.partial(step, low), H0.astype(jnp.bfloat16), np.full(B, 2), max_len=4)
    jax.tree.map(np.testing.assert_array_equal, decoded, each)


def test_float64_stays(x64: None) -> None:
    net = jax.tree.map(lambda w: w.astype(np.float64), NET)
    decoded = greedy(functools.partial(step, net), H0.astype(np.float64), START, max_len=4)
    exactly = [exact.log_prob(NET, H0[b], START[b], tuple(decoded.tokens[b].tolist())) for b in range(B)]
    assert decoded.tokens.dtype == np.int32
    np.testing.assert_allclose(decoded.log_probs, exactly, rtol=1e-13)


def test_the_package_has_it() -> None:
    assert rnnjax.decoding.greedy is greedy


def wrong(h: jax.Array, symbols: jax.Array, what: str) -> Any:
    h, logits = STEP(h, symbols)
    return {
        "logits": logits,
        "structure": ((h, h), logits),
        "shape": (h[:, :2], logits),
        "dtype": (h.astype(jnp.bfloat16), logits),
        "batch": (h, logits[0]),
        "integers": (h, symbols[:, None]),
    }[what]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_len": 0}, ValueError, "greedy: max_len must be at least 1, got 0"),
        ({"max_len": 2.0}, TypeError, "greedy: max_len must be an int, got 2.0"),
        ({"min_len": 4}, ValueError, "greedy: min_len must be from 0 to max_len = 3, got 4"),
        ({"min_len": None}, TypeError, "greedy: min_len must be an int, got None"),
        ({"stop": V}, ValueError, "greedy: stop must be ids from 0 to 3, got 4"),
        ({"stop": [1, -1]}, ValueError, "greedy: stop must be ids 0 or above, got -1"),
        ({"stop": "a"}, TypeError, "greedy: stop must be a symbol's id, several of them or None, got 'a'"),
        ({"banned": [0, 9]}, ValueError, "greedy: banned must be ids from 0 to 3, got 9"),
        ({"banned": range(V)}, ValueError, "a symbol must be left to come, got all 4 of them banned"),
        ({"banned": (0, 1, 2), "stop": 3, "min_len": 2}, ValueError, "all 4 of them banned, or to stop with before"),
        ({"start": 0.5}, TypeError, r"greedy: start symbols must be integers, got 0.5"),
        ({"start": np.zeros((3, 1), int)}, ValueError, r"start must be one symbol or have shape \[B\]"),
        ({"start": np.zeros(2, int)}, ValueError, r"state must have shape \[B, ...\] with B = 2 \(from start\), got"),
        ({"state": (), "start": 0}, ValueError, "a single start symbol needs a state of leaves"),
        ({"step": 3}, TypeError, r"greedy: step must be a function \(state, symbols\) -> \(state, logits\), got 3"),
        ({"step": functools.partial(STEP, [object, {1}])}, TypeError, "must bind arrays .* got a set"),
        ({"what": "logits"}, TypeError, r"greedy: step must return \(state, logits\), got"),
        ({"what": "structure"}, ValueError, "step must return a state of the structure that it was given"),
        ({"what": "shape"}, ValueError, r"greedy: step must keep state at f32\[3,5\], got f32\[3,2\]"),
        ({"what": "dtype"}, ValueError, r"must keep state at f32\[3,5\], got bf16\[3,5\]"),
        ({"what": "batch"}, ValueError, r"step must return floating logits \[B, V\] with B = 3, got f32\[4\]"),
        ({"what": "integers"}, ValueError, r"floating logits \[B, V\] with B = 3, got i32\[3,1\]"),
    ],
)  # fmt: skip
def test_errors(options: dict, kind: type, message: str) -> None:
    options = {"state": H0, "start": START, "max_len": 3, "step": STEP, **options}
    if "what" in options:
        options["step"] = functools.partial(wrong, what=options.pop("what"))
    with pytest.raises(kind, match=message) as caught:
        greedy(options.pop("step"), options.pop("state"), options.pop("start"), **options)
    assert "\n" not in str(caught.value)


def test_errors_of_sampling() -> None:
    with pytest.raises(ValueError, match="sample: temperature must be"):
        sample(STEP, H0, START, key=KEY, max_len=3, temperature=-1.0)
    with pytest.raises(ValueError, match=r"sample: key must be one key or keys \[B\] with B = 3, got key<fry>\[2\]"):
        sample(STEP, H0, START, key=jax.random.split(KEY), max_len=3)

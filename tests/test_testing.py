"""`check_laws` finds what is wrong: each law against a cell or an implementation that breaks this law."""

import dataclasses
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.engines import Controls, Engine, Job, choose, register
from rnnjax.engines import choice as choice_module
from rnnjax.engines.choice import UnfitError
from rnnjax.engines.scan import select, unroll_scan
from rnnjax.testing import LAWS, check_laws, make_problem
from rnnjax.testing.problems import loop_with_gradients

CELL = rnnjax.GRU(3)


@pytest.fixture
def implementation(monkeypatch):
    """Registers an implementation for the time of a test, under a new name each time, as compiled ones are kept."""
    monkeypatch.setattr(choice_module, "_engines", choice_module._engines)
    counter = itertools.count()

    def add(fn, **options):
        name = f"broken{next(counter)}_{fn.__name__}"
        register(Engine(name, fn, **options))
        return name

    return add


def breaks(law, name, cell=CELL):
    """Whether this law, and the message, name the culprit."""
    with pytest.raises(AssertionError, match=re.escape(f"check_laws: {type(cell).__name__} breaks the law {law!r}")):
        check_laws(cell, laws=[law], implementations=[name])


def test_a_right_implementation_passes(implementation):
    def right(*args, **options):
        return unroll_scan(*args, **options)

    check_laws(CELL, implementations=[implementation(right)])


class CountState(NamedTuple):
    h: jax.Array
    n: jax.Array  # [*batch], of integers


@dataclasses.dataclass(frozen=True)
class Counting:
    """h' = tanh(x @ w_ih + h @ w_hh + b) / n, and the steps are counted; the derivative may be wrong by a factor."""

    hidden_size: int
    factor: float = 1.0

    def init(self, key, input_size, dtype=jnp.float32):
        return rnnjax.Elman(self.hidden_size).init(key, input_size, dtype)

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return CountState(jnp.zeros((*batch_shape, self.hidden_size), dtype), jnp.zeros(batch_shape, jnp.int32))

    def step(self, params, state, x):
        wide = jnp.promote_types(state.h.dtype, jnp.float32)
        z = (x @ params.w_ih + state.h.astype(params.w_hh.dtype) @ params.w_hh + params.b).astype(wide)
        z = self.factor * z + jax.lax.stop_gradient((1 - self.factor) * z)
        h = (jnp.tanh(z) / (state.n[..., None] + 1)).astype(state.h.dtype)
        return CountState(h, state.n + 1), h


def test_a_cell_that_counts():
    check_laws(Counting(3), laws=["loop", "valid", "resets", "dtypes", "derivative", "second_derivative", "remat"])
    with pytest.raises(AssertionError, match="breaks the law 'derivative'"):
        check_laws(Counting(3, factor=0.9), laws=["derivative"])


def without_resets(cell, params, state, xs, controls, **options):
    return unroll_scan(cell, params, state, xs, controls._replace(resets=None, fresh=None), **options)


def reset_one_step_late(cell, params, state, xs, controls, **options):
    resets = None if controls.resets is None else jnp.roll(controls.resets, 1, axis=0)
    return unroll_scan(cell, params, state, xs, controls._replace(resets=resets), **options)


def reset_to_the_state_passed_in(cell, params, state, xs, controls, **options):
    fresh = None if controls.fresh is None else state
    return unroll_scan(cell, params, state, xs, controls._replace(fresh=fresh), **options)


def final_state_of_the_padding(cell, params, state, xs, controls, **options):
    return unroll_scan(cell, params, state, xs, controls._replace(valid=None), **options)


def resets_in_the_padding(cell, params, state, xs, controls, **options):
    state, ys = unroll_scan(cell, params, state, xs, controls, **options)
    if controls.valid is None or controls.resets is None:
        return state, ys
    return select((controls.resets & ~controls.valid).any(axis=0), controls.fresh, state), ys


def resets_by_multiplication(cell, params, state, xs, controls, **options):
    """A state that is not finite survives: 0 * NaN is NaN."""
    if controls.resets is None:
        return unroll_scan(cell, params, state, xs, controls, **options)

    def step(carry, inputs):
        x, valid, reset = inputs
        keep = 1.0 - reset.astype(xs.dtype)[..., None]
        carry = jax.tree.map(lambda s, f: s * keep + f * (1 - keep), carry, controls.fresh)
        new, y = cell.step(params, carry, x)
        return (new if valid is None else select(valid, new, carry)), y

    return jax.lax.scan(step, state, (xs, controls.valid, controls.resets))


def no_gradient_of_the_state(cell, params, state, xs, controls, **options):
    return unroll_scan(cell, params, jax.lax.stop_gradient(state), xs, controls, **options)


def ignores_the_state(cell, params, state, xs, controls, **options):
    return unroll_scan(cell, params, jax.tree.map(jnp.zeros_like, state), xs, controls, **options)


def always_forward(cell, params, state, xs, controls, *, reverse, remat):
    return unroll_scan(cell, params, state, xs, controls, reverse=False, remat=remat)


def sees_the_next_input(cell, params, state, xs, controls, **options):
    return unroll_scan(cell, params, state, xs + 0.1 * jnp.roll(xs, -1, axis=0), controls, **options)


def bfloat16_gradient(cell, params, state, xs, controls, **options):
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(a.dtype), params)
    return unroll_scan(cell, params, state, xs, controls, **options)


def first_derivative_only(cell, params, state, xs, controls, **options):
    """Right values and gradients, whose own derivative is cut."""

    @jax.custom_vjp
    def layer(params, state, xs, controls):
        return unroll_scan(cell, params, state, xs, controls, **options)

    def forward(*args):
        return layer(*args), args

    def backward(args, d):
        *point, controls = args
        _, pull = jax.vjp(lambda *a: unroll_scan(cell, *a, controls, **options), *jax.lax.stop_gradient(point))
        return *pull(d), Controls(None, None, jax.tree.map(jnp.zeros_like, controls.fresh))

    layer.defvjp(forward, backward)
    return layer(params, state, xs, controls)


def other_numbers_with_remat(cell, params, state, xs, controls, *, reverse, remat):
    scale = 1.0 if remat is None else 1.001
    return unroll_scan(cell, params, state, xs * scale, controls, reverse=reverse, remat=None)


def mixes_the_batch(cell, params, state, xs, controls, **options):
    return unroll_scan(cell, params, state, xs - xs.mean(axis=tuple(range(1, xs.ndim - 1)), keepdims=True), controls)


def float32_output(cell, params, state, xs, controls, **options):
    state, ys = unroll_scan(cell, params, state, xs, controls, **options)
    return state, ys.astype(jnp.float32)


def begins_from_zeros(cell, params, state, xs, controls, **options):
    """Whose loop carries a counter, which lies on no device in particular."""
    flags = jnp.zeros(xs.shape[1 : xs.ndim - 1], bool)

    def count(seen, x):
        return seen | jnp.any(jnp.isnan(x), -1), None

    jax.lax.scan(count, flags, xs)
    return unroll_scan(cell, params, state, xs, controls, **options)


def stale(cell, params, state, xs, controls, *, reverse, remat, calls=itertools.count()):  # noqa: B008
    """Answers by how often it was traced."""
    return unroll_scan(cell, params, state, xs + next(calls), controls, reverse=reverse, remat=remat)


@pytest.mark.parametrize(
    ("fn", "law"),
    [
        (without_resets, "loop"),
        (reset_one_step_late, "loop"),
        (reset_to_the_state_passed_in, "loop"),
        (final_state_of_the_padding, "loop"),
        (no_gradient_of_the_state, "loop"),
        (always_forward, "valid"),
        (resets_in_the_padding, "padding"),
        (resets_by_multiplication, "resets"),
        (ignores_the_state, "scan"),
        (ignores_the_state, "chunks"),
        (reset_one_step_late, "chunks"),
        (sees_the_next_input, "causality"),
        (bfloat16_gradient, "scan"),
        (no_gradient_of_the_state, "derivative"),
        (first_derivative_only, "second_derivative"),
        (other_numbers_with_remat, "remat"),
        (mixes_the_batch, "vmap"),
        (mixes_the_batch, "batch_axes"),
        (float32_output, "dtypes"),
        (stale, "jit"),
        (begins_from_zeros, "sharded"),
        (begins_from_zeros, "shard_map"),
    ],
)
def test_a_broken_implementation(fn, law, implementation):
    breaks(law, implementation(fn))


@pytest.mark.parametrize("fn", [no_gradient_of_the_state, first_derivative_only])
def test_what_is_wrong_in_the_gradient_alone_keeps_the_laws_of_values(fn, implementation):
    name = implementation(fn)
    check_laws(CELL, laws=["scan", "chunks", "batch_axes"], implementations=[name])


@dataclasses.dataclass(frozen=True)
class Counts:
    """A plain cell with a setting that is no part of its value, and parameters without names."""

    hidden_size: int
    compared: bool = dataclasses.field(default=True, compare=False)
    named: bool = True

    def init(self, key, input_size, dtype=jnp.float32):
        w = jnp.ones((input_size, self.hidden_size), dtype)
        return {"w": w} if self.named else [w]

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return {"h": jnp.zeros((*batch_shape, self.hidden_size), dtype)}

    def step(self, params, state, x):
        h = jnp.tanh(state["h"] + x @ (params["w"] if self.named else params[0]))
        return {"h": h}, h


def test_a_plain_cell_of_dictionaries_passes():
    check_laws(Counts(2))


def test_an_implementation_may_refuse_in_its_own_name(implementation):
    def refuses(cell, params, state, xs, controls, **options):
        if controls.resets is not None:
            choose(Job(cell, resets=True), names[0])
        return unroll_scan(cell, params, state, xs, controls, **options)

    names = [implementation(unroll_scan, fits=lambda job: "needs resets to be None" if job.resets else "")]
    check_laws(CELL, laws=["loop", "scan"], implementations=names)
    names.append(implementation(refuses))
    with pytest.raises(UnfitError, match=f"'{names[0]}' needs resets to be None"):
        check_laws(CELL, laws=["padding"], implementations=names[1:])


def test_parameters_without_names():
    breaks("values", "scan", Counts(2, named=False))


class Identities(Counts):
    """Copies of it differ."""

    def __repr__(self):
        return object.__repr__(self)


def test_a_repr_that_does_not_describe():
    breaks("values", "scan", Identities(2))


class Untraceable(Counts):
    """Equal to nothing but itself."""

    def __eq__(self, other):
        return self is other

    __hash__ = Counts.__hash__


def test_a_cell_that_is_not_equal_to_its_copy():
    """Pitfall 17."""
    with pytest.raises(TypeError, match="check_cell"):
        check_laws(Untraceable(2))


def test_every_law_is_broken_by_something_above():
    (mark,) = test_a_broken_implementation.pytestmark
    assert {law for _, law in mark.args[1]} | {"values"} == set(LAWS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"laws": ["gravity"]}, "check_laws: there is no law 'gravity'; the laws are values, loop"),
        ({"implementations": ["warp"]}, "check_laws: no 'warp' implementation for GRU; available: scan, fused"),
        ({"input_size": 0}, "check_laws: input_size must be at least 1, got 0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_laws(CELL, **options)


def test_the_written_out_backpropagation_is_that_of_jax(x64):
    """The loop's gradients are summed by hand; a second opinion from JAX on the whole loop at once."""
    problem = make_problem(CELL, seq_len=4)

    def loss(params, state, xs):
        ys = np.zeros((4, 3, 3)).tolist()
        finals = []
        for b in range(3):
            single = jax.tree.map(lambda leaf, b=b: leaf[b], state)
            for t in range(int(problem.lengths[b])):
                single = CELL.initial_state((), xs.dtype) if problem.resets[t, b] else single
                single, ys[t][b] = CELL.step(params, single, xs[t, b])
            finals.append(single.h)
        ys = jnp.stack([jnp.stack([jnp.asarray(y) for y in row]) for row in ys])
        total = jnp.sum(jnp.cos(jnp.arange(ys.size, dtype=float)).reshape(ys.shape) * ys)
        h = jnp.stack(finals)
        return total + jnp.sum(jnp.cos(jnp.arange(h.size, dtype=float)).reshape(h.shape) * h)

    want = jax.grad(loss, argnums=(0, 1, 2))(*problem[:3])
    got = loop_with_gradients(CELL, problem).gradients
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)

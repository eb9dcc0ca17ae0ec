"""An update as scalar arithmetic: what is compiled computes what JAX computes, and what cannot be says why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import rnnjax
from rnnjax.engines.affine.emit_c import SCALAR, emit
from rnnjax.engines.affine.plan import make_plan
from rnnjax.engines.affine.program import Program, Refusal
from tests.cells_table import CELLS, VARIANTS
from tests.engines.programs import Update, needs_compiler, random_inputs, run_compiled, update_of

REFUSED = {"layernorm_lstm", "layernorm_gru", "layernorm_lstm_coarse", "layernorm_gru_coarse"}
AFFINE = {n: r.cell for n, r in (CELLS | VARIANTS).items() if isinstance(r.cell, rnnjax.AffineCell)}
SIZE = 6


def free(fn, own=()):
    """An update of three gates and one state that computes ``fn(a, b, c, *own)``."""
    unit = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    own = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in own]

    def update(own, state, seen):
        h = fn(*state, *seen, *own)
        return (h,), h

    return Update(update, own, (unit,), (unit, unit))


def positive(x):
    return jnp.abs(x) + 0.1


FUNCTIONS = {
    "exp": free(lambda a, b, c: jnp.exp(a) * jnp.exp2(b) + jnp.expm1(c)),
    "log": free(lambda a, b, c: jnp.log(positive(a)) + jnp.log1p(positive(b)) + jax.nn.log_sigmoid(c)),
    "tanh": free(lambda a, b, c: jnp.tanh(a) * jax.nn.sigmoid(b) + jax.nn.silu(c)),
    "sqrt": free(lambda a, b, c: jnp.sqrt(positive(a)) * jax.lax.rsqrt(positive(b)) + jnp.cbrt(c)),
    "erf": free(lambda a, b, c: jax.nn.gelu(a, approximate=False) + jax.scipy.special.erfc(b) + jax.nn.gelu(c)),
    "pow": free(lambda a, b, c: positive(a) ** b + c**3 + b**-2 + positive(c) ** 0.5 + a**0 + c**7),
    "select": free(lambda a, b, c: jnp.where((a > b) & ~(c <= 0.2) | (b == c), a * b, jnp.where(a != c, c, b))),
    "max": free(lambda a, b, c: jnp.maximum(a, b) - jnp.minimum(b, c) + jnp.clip(c, -0.5, 0.4) + jax.nn.relu6(a)),
    "sign": free(lambda a, b, c: jnp.abs(a) * jnp.sign(b) + jnp.square(c) - (a > 0) + (b >= 0).astype(int) * c),
    "trigonometry": free(lambda a, b, c: jnp.sin(a) + jnp.cos(b) * jnp.arctan(c) + jnp.sinh(a) / jnp.cosh(b)),
    "softplus": free(lambda a, b, c: jax.nn.softplus(a) + jax.nn.elu(b) + jnp.logaddexp(b, c) + jax.nn.hard_tanh(c)),
    "nested": free(jax.jit(lambda a, b, c: jax.checkpoint(lambda x: checkpoint_name(jnp.tanh(x), "n"))(a + b) * c)),
    "scalar": free(lambda a, b, c, s, t: jnp.tanh(a * s) + jax.nn.sigmoid(s) * b * t - c / t, ((), ())),
    "columns": free(lambda a, b, c, w: sum(jnp.split(w * jnp.concatenate([a, b, c]), 3)), ((3 * SIZE,),)),
    "slices": free(lambda a, b, c, w: w[:SIZE] * a + w[SIZE:] * b * c, ((2 * SIZE,),)),
    "scalar_of_columns": free(lambda a, b, c, s: sum(jnp.split(jnp.tanh(s * jnp.concatenate([a, b])), 2)) * c, ((),)),
    "constant": free(lambda a, b, c: a * jnp.full(SIZE, 0.5) + jnp.zeros(SIZE) + jnp.pi * b * np.ones(SIZE, "f") * c),
    "stopped": free(lambda a, b, c: jax.lax.stop_gradient(jnp.tanh(a)) * b + c),
}  # fmt: skip


def expected(update, inputs):
    own, state, seen, d_new, d_y = inputs
    (new, y), pull = jax.vjp(update.fn, own, state, seen)
    return [np.asarray(a) for a in jax.tree.leaves((new, y, pull((d_new, d_y))))]


@pytest.mark.quick
@needs_compiler
def test_compiled_programs_are_the_updates_and_their_derivatives(tmp_path, x64):
    """Cells of the library and functions that an author may use, in float64 by the C library's own functions."""
    updates = {n: update_of(cell, jnp.float64) for n, cell in AFFINE.items() if n not in REFUSED} | FUNCTIONS
    for update in FUNCTIONS.values():
        update.own, update.state, update.seen = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), (update.own, update.state, update.seen)
        )
    programs = {n: update.program() for n, update in updates.items()}
    refused = {n: p.reason for n, p in programs.items() if isinstance(p, Refusal)}
    assert not refused
    inputs = {n: random_inputs(update, seed) for seed, (n, update) in enumerate(updates.items())}
    found = run_compiled(list(programs.values()), list(inputs.values()), tmp_path)
    for (name, update), got in zip(updates.items(), found):
        want = expected(update, inputs[name])
        for k, (g, w) in enumerate(zip(got, want, strict=True)):
            np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-13, err_msg=f"{name}, output {k}")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_layer_norms_are_refused_with_the_place(name):
    program = update_of(AFFINE[name]).program()
    assert isinstance(program, Refusal)
    assert "reduce_sum (combined.py, line " in program.reason and "mixes units" in program.reason


MIXING = {
    "a sum": (lambda a, b, c: a * jnp.sum(b) + c, "reduce_sum (test_program.py, line "),
    "a product with itself": (lambda a, b, c: jnp.outer(b, c) @ a, "in it"),
    "a neighbour": (lambda a, b, c: a + jnp.roll(b, 1) * c, "in it"),
    "a part": (lambda a, b, c: a + b[0] * c, "in it"),
    "constants": (lambda a, b, c: a * jnp.asarray(np.arange(6.0), "float32") + b * c, "an array of constants"),
    "positions": (lambda a, b, c: a * jnp.arange(6.0) + b * c, "iota"),
    "half precision": (lambda a, b, c: (a + b).astype("bfloat16").astype("float32") * c, "stays in float32"),
    "whole numbers": (lambda a, b, c: a + jnp.floor(b).astype(int) * c, "stays in float32"),
    "bits": (lambda a, b, c: a * jax.lax.bitcast_convert_type(b, jnp.int32).astype("float32") + c, "in it"),
    "shifted bits": (
        lambda a, b, c: jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(a, "uint32") + 1, "float32"),
        "of bits in it",
    ),
    "a loop": (lambda a, b, c: jax.lax.fori_loop(0, 3, lambda i, x: x * b + c, a), "in it"),
    "noise": (lambda a, b, c: a + jax.random.normal(jax.random.key(0), (6,)) * b + c, "in it"),
    "a mean of a product of scalars": (lambda a, b, c: jnp.mean(a * b) * c, "reduce_sum"),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_is_not_pointwise_is_refused(name):
    fn, words = MIXING[name]
    program = free(fn).program()
    assert isinstance(program, Refusal)
    assert words in program.reason, program.reason


def test_a_parameter_that_is_a_matrix_is_refused():
    program = free(lambda a, b, c, w: a + b * c, ((SIZE, SIZE),)).program()
    assert program == Refusal("needs parameters of the update to be scalars or [n H], got [6, 6]")


def test_the_program_does_not_depend_on_the_hidden_size():
    assert update_of(rnnjax.LSTM(4)).program() == update_of(rnnjax.LSTM(1)).program()
    assert update_of(rnnjax.cells.MILSTM(4)).program() == update_of(rnnjax.cells.MILSTM(7)).program()
    assert update_of(rnnjax.LSTM(4)).program() != update_of(rnnjax.cells.CoupledLSTM(4)).program()


def test_the_program_does_not_depend_on_the_mesh():
    """Of a cell that is traced first within `jax.shard_map`; what is found there is kept for the whole process."""

    class New(rnnjax.LSTM):
        """A cell that nobody has traced."""

    found, cell, params = [], New(4), rnnjax.LSTM(4).init(jax.random.key(0), 3)
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("rows")

    def local(x):
        found.append(make_plan(cell, params, jnp.float32).program())
        return x

    jax.eval_shape(jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=split), jnp.ones(2))
    assert found == [make_plan(rnnjax.LSTM(4), params, jnp.float32).program()] and isinstance(found[0], Program)


def test_saved_values_are_the_gates():
    program = update_of(rnnjax.LSTM(4)).program()
    assert isinstance(program, Program)
    ops = [program.nodes[i] for i in program.saved()]
    assert sorted(node.op for node in ops) == ["input", "logistic", "logistic", "logistic", "tanh", "tanh"]
    assert [node.name for node in ops if node.op == "input"] == ["old[1]"]
    assert not any(program.on_cotangents()[i] for i in program.early())


def test_missing_input_is_reported():
    program = update_of(rnnjax.LSTM(4)).program()
    assert isinstance(program, Program)
    given = {i: name for i, name in program.names().items() if name != "old[1]"}
    with pytest.raises(ValueError, match=r"emit: old\[1\] is needed and not given"):
        emit(program, [(program.y, "y")], given, SCALAR)

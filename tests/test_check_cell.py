"""`check_cell`: good cells pass, and each way to break the contract is told in one sentence."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import rnnjax
from rnnjax import affine_step, check_cell
from rnnjax.traced import name_values


class State(NamedTuple):
    h: Any
    c: Any


class Params(NamedTuple):
    w_ih: Any
    w_hh: Any
    b: Any


@dataclasses.dataclass(frozen=True)
class Plain:
    """A correct cell that is not affine; the broken ones differ from it in one place."""

    hidden_size: int = 4

    def init(self, key, input_size, dtype=jnp.float32):
        return Params(
            jax.random.normal(key, (input_size, self.hidden_size), dtype),
            jnp.eye(self.hidden_size, dtype=dtype),
            jnp.zeros(self.hidden_size, dtype),
        )

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        zeros = jnp.zeros((*batch_shape, self.hidden_size), dtype)
        return State(zeros, zeros)

    def step(self, params, state, x):
        h = jnp.tanh(x @ params.w_ih + params.b + state.h @ params.w_hh)
        return State(h.astype(state.h.dtype), 0.5 * state.c), h.astype(state.h.dtype)


@dataclasses.dataclass(frozen=True)
class Affine(Plain):
    """A correct affine cell."""

    num_gates = 1

    def update(self, params, state, zx, zh):
        h, c = jnp.tanh(zx[0] + zh[0]), 0.5 * state.c
        name_values(h=h, c=c)
        return State(h, c), h

    step = affine_step


BROKEN: dict[str, tuple[type[Plain], type[Exception], str]] = {}


def broken(kind, sentence):
    """Adds a cell to the table, with the error that it deserves."""

    def add(cls):
        BROKEN[cls.__name__] = cls, kind, sentence
        return dataclasses.dataclass(frozen=True)(cls) if cls.__hash__ is not None else cls

    return add


@broken(ValueError, ".step changes the state: .c was bf16[4] and became f32[4]. Cast inside step.")
class DtypeDrift(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        return new._replace(c=new.c.astype(jnp.float32)), y


@broken(ValueError, ".step changes the state: .c was f32[4] and became f32[8]. Keep its shape.")
class ShapeDrift(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        return new._replace(c=jnp.concatenate([new.c, new.c], axis=-1)), y


@broken(ValueError, ".step: y must have shape [4], the batch axes and hidden_size, got f32[8].")
class WideOutput(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        return new, jnp.concatenate([y, y], axis=-1)


@broken(ValueError, ".step: y must have the dtype of the state, bfloat16, got f32[4]; cast it.")
class SilentlyFloat32(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        return new, y.astype(jnp.float32)


@broken(ValueError, ".step must return (state, y), got State.")
class ForgetsOutput(Plain):
    def step(self, params, state, x):
        return super().step(params, state, x)[0]


@broken(ValueError, ".step changes the structure of the state: .c is missing.")
class DropsLeaf(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        return new._replace(c=None), y


@broken(ValueError, ".step changes the structure of the state: it was State and became tuple.")
class ReturnsTuple(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        return tuple(new), y


@broken(ValueError, ".step disagrees with update: state.h differs by")
class Disagrees(Affine):
    def step(self, params, state, x):
        return affine_step(self, params._replace(b=params.b + 1), state, x)


@broken(ValueError, ".step mixes the examples of a batch: state.h differs by")
class MixesBatch(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        h = new.h - new.h.mean(axis=0)
        return new._replace(h=h), y


@broken(ValueError, ".step gives the name 'h' to a value that is not h of the new state")
class MisnamesTheState(Plain):
    def step(self, params, state, x):
        name_values(h=state.h)
        return super().step(params, state, x)


@broken(ValueError, ".step mixes the examples of a batch: y differs by")
class MixesBatchInTheOutput(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        return new, jnp.roll(y, 1, axis=0)


@broken(ValueError, ": the gradient with respect to params.w_ih is not finite three steps after")
class InfiniteGradient(Plain):
    def step(self, params, state, x):
        new, y = super().step(params, state, x)
        return new, y + jnp.sqrt(jnp.abs(new.c * params.w_ih[0]))


@broken(ValueError, ".init ignores dtype: .w_ih is f32[3,4] for dtype bfloat16; hand dtype to the initialisers.")
class InitIgnoresDtype(Plain):
    def init(self, key, input_size, dtype=jnp.float32):
        return super().init(key, input_size)


@broken(ValueError, ".initial_state(()) ignores dtype: .h is f32[4] for dtype bfloat16; hand dtype to jnp.zeros.")
class StateIgnoresDtype(Plain):
    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return super().initial_state(batch_shape)


@broken(ValueError, ".initial_state((3,)): .h must have shape [3, 4], got f32[4]; begin its shape with *batch_shape.")
class StateIgnoresBatch(Plain):
    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return super().initial_state((), dtype)


@broken(ValueError, ".initial_state must hold at least one array, got ().")
class Stateless(Plain):
    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return ()


@broken(ValueError, ".init: params.b must have shape [4] for num_gates = 1 and hidden_size = 4, got f32[2].")
class ShortBias(Affine):
    def init(self, key, input_size, dtype=jnp.float32):
        return super().init(key, input_size, dtype)._replace(b=jnp.zeros(2, dtype))


@broken(ValueError, "the state of StateWithoutH must have the field h, as StateWithoutH has update, got tuple; add it.")
class StateWithoutH(Affine):
    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return tuple(super().initial_state(batch_shape, dtype))


@broken(ValueError, ".step with batch shape () fails: Einstein sum subscript")
class NeedsABatch(Plain):
    def step(self, params, state, x):
        return super().step(params, state, jnp.einsum("bi,ij->bj", x, jnp.eye(3, dtype=x.dtype)))


@broken(TypeError, ".step must be callable as step(params, state, x), got step(params, x).")
class OtherArguments(Plain):
    def step(self, params, x):
        return x


@broken(TypeError, ".init must be callable as init(key, input_size, dtype) and also with 2 of these arguments, got ")
class DtypeWithoutDefault(Plain):
    def init(self, key, input_size, dtype):
        return super().init(key, input_size, dtype)


@broken(TypeError, " must have the method step(params, state, x), got None; add it.")
class NoStep(Plain):
    step = None


@broken(TypeError, " must have the method update(params, state, zx, zh), got None; add it.")
class NoUpdate(Plain):
    num_gates = 2


@broken(TypeError, " has update and so must have num_gates, got none; add it.")
class NoGates(Plain):
    def update(self, params, state, zx, zh):
        return state, state.h


@broken(TypeError, ": hidden_size must be an int, got 4.0.")
class FractionalSize(Plain):
    hidden_size: float = 4.0


@broken(TypeError, " must be hashable, got unhashable type: ")
class Unhashable(Plain):
    __hash__ = None


@broken(TypeError, " must compare by value, but a copy is not equal to it")
class ComparesByIdentity(Plain):
    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return id(self)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_cell(name):
    cls, kind, sentence = BROKEN[name]
    with pytest.raises(kind) as caught:
        check_cell(cls(), 3)
    message = str(caught.value)
    assert sentence in message
    assert message.startswith("check_cell: ") and name in message and "\n" not in message


@pytest.mark.quick
@pytest.mark.parametrize("cell", [Plain(), Affine()], ids=repr)
def test_good_cell(cell):
    check_cell(cell, 3)
    check_cell(cell, 1, batch_size=1)


def test_a_parameter_without_effect_is_allowed():
    class Unused(Plain):
        def step(self, params, state, x):
            return super().step(params._replace(b=jnp.zeros_like(params.b)), state, x)

    check_cell(Unused(), 3)


@pytest.mark.quick
def test_arguments():
    with pytest.raises(TypeError, match=r"^check_cell: cell must be an instance, got the class Plain; make one\.$"):
        check_cell(Plain, 3)
    with pytest.raises(ValueError, match=r"^check_cell: input_size must be at least 1, got 0\.$"):
        check_cell(Plain(), 0)
    with pytest.raises(TypeError, match=r"^check_cell: batch_size must be an int, got 1\.5\.$"):
        check_cell(Plain(), 3, batch_size=1.5)


def test_checked_affine_cell_runs_on_every_implementation():
    """What the author of a cell is promised: one file, and every engine takes it."""
    cell = Affine()
    params, state = cell.init(jax.random.key(0), 3), cell.initial_state((2,))
    xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
    names = rnnjax.implementations(cell)
    results = [rnnjax.unroll(cell, params, state, xs, implementation=name)[1] for name in names]
    assert all(jnp.allclose(results[0], ys, atol=1e-6) for ys in results)

"""Every error of `unroll` and of the cells: its kind and its one sentence, also under `jit`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Bidirectional, Elman, LearnedState, Stack
from rnnjax.cells import RecurrentHighway
from rnnjax.engines.choice import UnfitError

CELL = LSTM(4)
PARAMS = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: CELL.init(jax.random.key(0), 3))
)
STATE = CELL.initial_state((2,))
XS = jnp.ones((5, 2, 3))
STACK = Stack((LSTM(4), GRU(6)))
STACK_PARAMS = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: STACK.init(jax.random.key(0), 3))
)


DEEP = Stack((LearnedState(LSTM(4)),) * 3)
DEEP_PARAMS = jax.eval_shape(lambda: DEEP.init(jax.random.key(0), 3))
DEEP_PARAMS = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), DEEP_PARAMS)


def unroll(cell=CELL, params=PARAMS, state=STATE, xs=XS, **options):
    return rnnjax.unroll(cell, params, state, xs, **options)


# The arrays among these, by name, are traced in the second test.
CASES = {
    "xs_features": (
        {"xs": jnp.ones((5, 2, 7))},
        ValueError,
        "unroll: xs must have shape [T, 2, I] with I = 3 (from params.w_ih) and the batch axes of the state, "
        "got f32[5,2,7].",
    ),
    "xs_batch_first": (
        {"xs": jnp.ones((2, 5, 3))},
        ValueError,
        "unroll: xs must have shape [T, 2, I] with I = 3 (from params.w_ih) and the batch axes of the state, "
        "got f32[2,5,3]; time comes first, so pass jnp.swapaxes(xs, 0, 1).",
    ),
    "xs_without_batch": ({"xs": jnp.ones((5, 3))}, ValueError, "got f32[5,3]"),
    "xs_integers": (
        {"xs": jnp.ones((5, 2, 3), jnp.int32)},
        TypeError,
        "unroll: xs must be of a floating dtype, got i32[5,2,3]; one-hot encode or embed symbols.",
    ),
    "params_of_a_relative": (
        {"params": rnnjax.cells.lstm.PeepholeLSTMParams(*PARAMS, *[jnp.zeros(4)] * 3)},
        ValueError,
        "unroll: params must be what the init of this LSTM makes, got PeepholeLSTMParams with 6 arrays, "
        "not LSTMParams with 3.",
    ),
    "params_with_a_wrong_w_hh": (
        {"params": PARAMS._replace(w_hh=jnp.zeros((8, 16)))},
        ValueError,
        "unroll: params.w_hh must have shape [4, 16] for this LSTM, got f32[8,16]; take the params of this cell.",
    ),
    "params_of_another_depth": (
        {
            "cell": RecurrentHighway(4, depth=3),
            "params": RecurrentHighway(4, depth=2).init(jax.random.key(0), 3),
            "state": RecurrentHighway(4).initial_state((2,)),
        },
        ValueError,
        "for this RecurrentHighway, got f32[2,4,8]",
    ),
    "state_of_integers": (
        {"state": jax.tree.map(lambda leaf: leaf.astype(int), STATE)},
        TypeError,
        "unroll: every leaf of the state must be of a floating dtype, got i32[2,4].",
    ),
    "no_network": ({"cell": 3}, TypeError, "unroll: net must be a cell or a network, got 3."),
    "state_of_a_bidirectional_network": (
        {"cell": Bidirectional((LSTM(4),))},
        ValueError,
        "unroll: state must be what Bidirectional.initial_state makes, got LSTMState; start from None, or from",
    ),
    "xs_of_a_deep_stack": (
        {"cell": DEEP, "params": DEEP_PARAMS, "state": DEEP.initial_state((2,)), "xs": jnp.ones((5, 2, 8))},
        ValueError,
        "unroll: xs must have shape [T, 2, I] with I = 3 (from params.layers[0].cell.w_ih)",
    ),
    "xs_of_a_stack": (
        {"cell": STACK, "params": STACK_PARAMS, "state": STACK.initial_state((2,)), "xs": jnp.ones((5, 2, 4))},
        ValueError,
        "unroll: xs must have shape [T, 2, I] with I = 3 (from params.layers[0].w_ih)",
    ),
    "params_of_another_size": (
        {"cell": LSTM(8), "state": LSTM(8).initial_state((2,))},
        ValueError,
        "unroll: params.w_ih must have shape [3, 32] for this LSTM, got f32[3,16]; take the params of this cell.",
    ),
    "params_of_another_cell": (
        {"cell": GRU(4), "state": GRU(4).initial_state((2,))},
        ValueError,
        "unroll: params must be what the init of this GRU makes, got LSTMParams with 3 arrays, not GRUParams with 4.",
    ),
    "state_of_another_kind": (
        {"state": (STATE.h, STATE.c)},
        ValueError,
        "unroll: state must be what LSTM.initial_state makes, got tuple; start from None, or from "
        "initial_state(batch_shape).",
    ),
    "state_of_another_cell": (
        {"state": GRU(4).initial_state((2,))},
        ValueError,
        "unroll: state must be what LSTM.initial_state makes, got HiddenState",
    ),
    "no_state_and_no_axes": ({"state": None, "xs": jnp.ones(())}, ValueError, "unroll: xs must have shape [T, *batch,"),
    "state_of_another_size": (
        {"state": LSTM(8).initial_state((2,))},
        ValueError,
        "unroll: every leaf of the state must have the shape of LSTM.initial_state((2,)), [2, 4] here, got f32[2,8].",
    ),
    "state_with_two_batches": (
        {"state": STATE._replace(c=jnp.zeros((3, 4)))},
        ValueError,
        "unroll: every leaf of the state must have the shape of LSTM.initial_state((2,)), [2, 4] here, got f32[3,4].",
    ),
    "lengths_floating": (
        {"lengths": jnp.array([1.0, 2.0])},
        TypeError,
        "unroll: lengths must be integers, got f32[2].",
    ),
    "lengths_mask": ({"lengths": jnp.array([True, False])}, TypeError, "unroll: lengths must be integers, got bool["),
    "lengths_shape": (
        {"lengths": jnp.array([1, 2, 3])},
        ValueError,
        "unroll: lengths must have shape [2], got i32[3].",
    ),
    "resets_floating": (
        {"resets": jnp.zeros((5, 2))},
        TypeError,
        "unroll: resets must be bool, got f32[5,2]; compare with != 0 first.",
    ),
    "resets_batch_first": (
        {"resets": jnp.zeros((2, 5), bool)},
        ValueError,
        "unroll: resets must have shape [5, 2], as xs without features, got bool[2,5].",
    ),
    "implementation": (
        {"implementation": "palas"},
        ValueError,
        f"unroll: no 'palas' implementation for LSTM; available: {', '.join(rnnjax.implementations(CELL))}.",
    ),
    "remat_zero": (
        {"remat": 0},
        ValueError,
        "unroll: remat, if not None, True or a name, must be at least 1, got 0.",
    ),
    "remat_fraction": (
        {"remat": 2.5},
        TypeError,
        "unroll: remat, if not None, True or a name, must be an int, got 2.5.",
    ),
    "remat_name": (
        {"remat": "all", "implementation": "scan"},
        UnfitError,
        "unroll: 'scan' needs remat to be None, True ",
    ),
    "class": ({"cell": LSTM}, TypeError, "unroll: net must be an instance, got the class LSTM; make one."),
}


@pytest.mark.quick
@pytest.mark.parametrize(("arguments", "kind", "sentence"), CASES.values(), ids=CASES.keys())
def test_error(arguments, kind, sentence):
    with pytest.raises(kind) as caught:
        unroll(**arguments)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert sentence in message and message.startswith("unroll: ")
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(("arguments", "kind", "sentence"), CASES.values(), ids=CASES.keys())
def test_error_is_raised_when_a_caller_is_traced(arguments, kind, sentence):
    static = {key: arguments[key] for key in arguments.keys() & {"cell", "implementation", "remat"}}
    arrays = {key: value for key, value in arguments.items() if key not in static}
    with pytest.raises(kind) as caught:
        jax.eval_shape(lambda arrays: unroll(**arrays, **static), arrays)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("lengths", [[0, 6], [-1, 5], np.array([9, 9]), jnp.array([6, 1])], ids=str)
def test_lengths_out_of_range(lengths):
    sentence = r"^unroll: lengths must lie between 0 and 5, got (values from )?-?\d( to \d)?\.$"
    with pytest.raises(ValueError, match=sentence):
        unroll(lengths=lengths)


def test_values_of_traced_lengths_are_not_looked_at():
    """They cannot be, and so a length beyond T counts as T and one below 0 as 0."""
    params = jax.tree.map(jnp.ones_like, PARAMS)
    for reverse in (False, True):
        run = jax.jit(lambda lengths, reverse=reverse: unroll(params=params, lengths=lengths, reverse=reverse)[1])
        np.testing.assert_array_equal(run(jnp.array([7, -1])), run(jnp.array([5, 0])))
    jax.eval_shape(lambda length: unroll(lengths=[length, 2]), 3)


def test_lists_are_arrays():
    state, ys = unroll(lengths=[5, 2], xs=XS.tolist(), resets=np.zeros((5, 2), bool).tolist())
    assert ys.shape == (5, 2, 4) and state.h.shape == (2, 4)


@pytest.mark.quick
@pytest.mark.parametrize("make", [LSTM, GRU, Elman], ids=lambda make: make.__name__)
def test_sizes_of_cells(make):
    name = make.__name__
    for size in (0, -3):
        with pytest.raises(ValueError, match=rf"^{name}: hidden_size must be at least 1, got {size}\.$"):
            make(size)
    for size in (4.0, "4", None, True):
        with pytest.raises(TypeError, match=rf"^{name}: hidden_size must be an int, got {size!r}\.$"):
            make(size)
    with pytest.raises(ValueError, match=rf"^{name}\.init: input_size must be at least 1, got 0\.$"):
        make(4).init(jax.random.key(0), 0)
    with pytest.raises(TypeError, match=rf"^{name}\.init: input_size must be an int, got 3\.0\.$"):
        make(4).init(jax.random.key(0), 3.0)


def test_activation_of_an_elman_network():
    with pytest.raises(ValueError, match=r"^Elman: activation must be 'tanh' or 'relu', got 'gelu'\.$"):
        Elman(4, activation="gelu")

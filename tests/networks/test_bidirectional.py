"""`Bidirectional` against torch, against a NumPy loop, and against every document run by itself."""

import copy
import dataclasses
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax import GRU, LSTM, Bidirectional, Elman, LearnedState, Regularized, start_state, unroll
from rnnjax.engines import choice, engine
from rnnjax.networks import dropout
from rnnjax.networks.bidirectional import BidirectionalParams, BidirectionalState, Directions
from tests.cells_table import NAMES, assert_close, fast_jit, loss_of
from tests.references.numpy_core import numpy_elman, numpy_gru
from tests.references.test_torch import ours_from_torch, torch, torch_gradient_of, torch_loss

__all__ = ["torch"]  # a fixture

KEY = jax.random.key(0)


def fill(tree, rng):
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), tree)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_two_layers_over_packed_sequences_are_those_of_torch(torch, name, x64):
    """Pitfalls 6 and 7: outputs, final states and the gradients of parameters, initial states and inputs."""
    cell, module_name = {"lstm": (LSTM(4), "LSTM"), "gru": (GRU(4), "GRU")}[name]
    torch.manual_seed(0)
    module = getattr(torch.nn, module_name)(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    rng, lengths = np.random.default_rng(0), np.array([8, 3, 5])
    xs = torch.tensor(rng.normal(size=(8, 3, 3)), requires_grad=True)
    initial = [torch.tensor(rng.normal(size=(4, 3, 4)), requires_grad=True) for _ in cell.initial_state()]
    packed = torch.nn.utils.rnn.pack_padded_sequence(xs, lengths, enforce_sorted=False)
    ys, final = module(packed, tuple(initial) if name == "lstm" else initial[0])
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys)
    final = final if name == "lstm" else (final,)
    torch_loss(torch, ys, [leaf[i] for i in range(4) for leaf in final]).backward()

    numbers = {key: value.detach().numpy() for key, value in module.named_parameters()}
    gradients = {key: value.grad.numpy() for key, value in module.named_parameters()}
    places = [(layer, suffix) for layer in range(2) for suffix in ("", "_reverse")]  # torch's order of states too

    def pairs(entries):
        return tuple(Directions(*entries[i : i + 2]) for i in (0, 2))

    net = Bidirectional((cell, cell))
    params = BidirectionalParams(pairs([ours_from_torch(cell, numbers, *place) for place in places]))
    kind = type(cell.initial_state())
    state = BidirectionalState(
        pairs([kind(*(jnp.asarray(leaf[i].detach().numpy()) for leaf in initial)) for i in range(4)])
    )

    def loss(params, state, xs):
        state, ys = unroll(net, params, state, xs, lengths=jnp.asarray(lengths))
        return loss_of(state, ys), (state, ys)

    run = fast_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    (d_params, d_state, d_xs), (got_state, got) = run(params, state, jnp.asarray(xs.detach().numpy()))

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)

    close(got, ys.detach().numpy())
    close(d_xs, xs.grad.numpy())
    leaves = [leaf[i] for i in range(4) for leaf in final]
    for ours, theirs in zip(jax.tree.leaves(got_state), leaves, strict=True):
        close(ours, theirs.detach().numpy())
    leaves = [leaf.grad[i] for i in range(4) for leaf in initial]
    for ours, theirs in zip(jax.tree.leaves(d_state), leaves, strict=True):
        close(ours, theirs.numpy())
    for (layer, suffix), ours in zip(places, [d for pair in d_params.layers for d in pair], strict=True):
        for field, value in torch_gradient_of(cell, gradients, f"{layer}{suffix}").items():
            close(getattr(ours, field), value)


MERGES = {
    "concat": lambda a, z: np.concatenate([a, z]),
    "sum": lambda a, z: a + z,
    "mean": lambda a, z: (a + z) / 2,
    "product": lambda a, z: a * z,
}


def direction(step, params, state, xs, restarts, order):
    """One direction over one row in NumPy; before a step in `restarts` the state is zero."""
    ys = {}
    for t in order:
        if t in restarts:
            state = tuple(np.zeros_like(leaf) for leaf in state)
        state, ys[t] = step(params, state, xs[t])
    return state, ys


@pytest.mark.parametrize(
    ("merge", "implementation", "gaps"),
    [("concat", None, False), ("sum", "scan", False), ("product", "scan", True), ("mean", None, True)],
)
def test_ragged_documents_are_a_numpy_loop(merge, implementation, gaps, x64):
    """Two unlike layers: the backward direction restarts where it enters an earlier document, and nowhere else.

    With gaps, in which flags and inputs mean nothing, steps that count are neighbours across them.
    """
    cells = (GRU(4), (GRU(3), Elman(3)))
    net = Bidirectional(cells, merge=merge)
    rng = np.random.default_rng(0)
    params = fill(net.init(KEY, 2, jnp.float64), rng)
    state = fill(net.initial_state((4,), jnp.float64), rng)
    xs = rng.normal(size=(7, 4, 2))
    lengths = np.array([7, 5, 0, 1])
    starts = [{3, 4}, {0, 2, 5, 6}, {0, 1}, {0, 1}]  # also flags at step 0, just behind the end, and in the padding
    resets = np.array([[t in flags for flags in starts] for t in range(7)])
    valid = np.ones((7, 4), bool)
    if gaps:  # over flags and next to them, at both ends, and all that a row has
        valid[[1, 3, 6], 0], valid[[0, 2, 3], 1], valid[0, 3] = False, False, False
    counts = valid & (np.arange(7)[:, None] < lengths)
    padded = np.where(counts[..., None], xs, np.nan)
    run = fast_jit(
        lambda params, state, xs, lengths, resets, valid: unroll(
            net, params, state, xs, lengths=lengths, resets=resets, valid=valid, implementation=implementation
        )
    )
    arrays = map(jnp.asarray, (padded, lengths, resets))
    got_state, got = run(params, state, *arrays, jnp.asarray(valid) if gaps else None)
    assert got.shape == (7, 4, net.output_size) and net.output_size == (6 if merge == "concat" else 3)
    elman = lambda *arguments: numpy_elman(*arguments, phi=np.tanh)  # noqa: E731
    params, state, got_state, got = jax.tree.map(np.asarray, (params, state, got_state, got))
    for b in range(4):
        order = np.flatnonzero(counts[:, b]).tolist()
        ys = dict(enumerate(xs[:, b]))
        ends = {t for t, following in itertools.pairwise(order) if following in starts[b]}
        for depth, (up, down) in enumerate([(numpy_gru, numpy_gru), (numpy_gru, elman)]):
            p, s = params.layers[depth], jax.tree.map(lambda leaf, b=b: leaf[b], state.layers[depth])
            forward, a = direction(up, p.forward, s.forward, ys, starts[b], order)
            backward, z = direction(down, p.backward, s.backward, ys, ends, reversed(order))
            ys = {t: MERGES[merge](a[t], z[t]) for t in order}
            final = jax.tree.map(lambda leaf, b=b: leaf[b], got_state.layers[depth])
            np.testing.assert_allclose(final.forward.h, forward[0], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(final.backward.h, backward[0], rtol=1e-12, atol=1e-12)
        for t in range(7):
            np.testing.assert_allclose(got[t, b], ys[t] if t in order else 0, rtol=1e-12, atol=1e-12)


def test_documents_in_one_row_are_documents_by_themselves(x64):
    """Values and gradients, with learned initial states; only the outputs count, for a document ends with none."""
    net = Bidirectional(((LearnedState(GRU(4)), LSTM(3)), LearnedState(GRU(2))))
    rng = np.random.default_rng(0)
    params = fill(net.init(KEY, 2, jnp.float64), rng)
    documents = jnp.asarray(rng.normal(size=(4, 3, 2)))  # three of four steps
    row = jnp.concatenate([*jnp.moveaxis(documents, 1, 0), jnp.full((2, 2), jnp.nan)])  # and two of padding
    resets = jnp.asarray(np.isin(np.arange(14), [4, 8, 12]))

    def in_one_row(params):
        state = start_state(net, params, (), jnp.float64)
        _, ys = unroll(net, params, state, row, lengths=jnp.asarray(12), resets=resets)
        ys = jnp.stack(jnp.split(ys[:12], 3), axis=1)
        return loss_of(None, ys), ys

    def by_themselves(params):
        state = start_state(net, params, (3,), jnp.float64)
        _, ys = unroll(net, params, state, documents)
        return loss_of(None, ys), ys

    outcomes = [fast_jit(jax.grad(f, has_aux=True))(params) for f in (in_one_row, by_themselves)]
    assert_close(*outcomes)
    assert jnp.all(outcomes[0][0].layers[0].forward.start.h != 0)


def test_dropout_between_layers_of_a_bidirectional_network():
    """One mask over both directions' outputs; without a key none, and nothing behind the last layer."""
    net = Bidirectional((GRU(4), GRU(3)))
    rng = np.random.default_rng(0)
    params, state = fill(net.init(KEY, 2), rng), net.initial_state((3,))
    xs = jnp.asarray(rng.normal(size=(6, 3, 2)), jnp.float32)

    def part(depth, xs):
        one = Bidirectional(net.layers[depth : depth + 1])
        pick = lambda tree: tree._replace(layers=tree.layers[depth : depth + 1])  # noqa: E731
        return unroll(one, pick(params), pick(state), xs)[1]

    key = jax.random.split(KEY, (3, 2))[0, 1]  # of what the second layer sees
    for rate, thin in ((0.4, lambda ys: dropout(key, ys, 0.4)), (0.0, lambda ys: ys)):
        want = part(1, thin(part(0, xs)))
        _, got = unroll(dataclasses.replace(net, dropout=rate), params, state, xs, key=KEY)
        assert_close(got, want, 1e-6)
        _, got = unroll(dataclasses.replace(net, dropout=rate), params, state, xs)
        assert_close(got, part(1, part(0, xs)), 1e-6)


@pytest.mark.quick
def test_bidirectional_networks_are_values():
    net = Bidirectional([GRU(4), [GRU(3), LSTM(2)]])
    assert net == Bidirectional(((GRU(4), GRU(4)), (GRU(3), LSTM(2)))) != Bidirectional((GRU(4),))
    for twin in (eval(repr(net), NAMES), pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert twin == net and hash(twin) == hash(net)
    params = net.init(KEY, 2, jnp.bfloat16)
    assert not jnp.array_equal(params.layers[0].forward.w_hh, params.layers[0].backward.w_hh)
    assert params.layers[1].backward.w_ih.shape == (8, 8) and net.output_size == 5
    assert Bidirectional((GRU(4), GRU(3)), merge="sum").init(KEY, 2).layers[1].forward.w_ih.shape == (4, 9)
    state = net.initial_state((2,), jnp.bfloat16)
    state, ys = unroll(net, params, state, jnp.ones((0, 2, 2), jnp.bfloat16), resets=jnp.zeros((0, 2), bool))
    assert ys.shape == (0, 2, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state, ys))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("layers", "merge", "kind", "sentence"),
    [
        ((), "concat", ValueError, "Bidirectional: layers must hold at least one layer, got none."),
        (GRU(4), "concat", TypeError, "Bidirectional: layers must be a tuple of cells or pairs of cells, got GRU("),
        ((GRU(4), 3), "concat", TypeError, "Bidirectional: layers[1] must be a cell or a pair of cells, got 3."),
        (((GRU(4),),), "concat", TypeError, "Bidirectional: layers[0] must be a cell or a pair of cells, got (GRU("),
        ((GRU,), "concat", TypeError, "Bidirectional: layers[0] must be a cell or a pair of cells, got <class "),
        ((GRU(4),), "max", ValueError, "Bidirectional: merge must be 'concat', 'sum', 'mean' or 'product', got 'max'."),
        (
            ((GRU(4), GRU(3)),),
            "sum",
            ValueError,
            "Bidirectional: with merge='sum' both directions of layers[0] must have the same hidden_size, got 4 and 3;",
        ),
    ],
)
def test_errors_of_a_bidirectional_network(layers, merge, kind, sentence):
    with pytest.raises(kind) as caught:
        Bidirectional(layers, merge=merge)
    assert str(caught.value).startswith(sentence)


@pytest.mark.quick
def test_errors_of_running_a_bidirectional_network():
    net = Bidirectional((GRU(4), GRU(3)))
    params, state, xs = net.init(KEY, 2), net.initial_state((3,)), jnp.ones((5, 3, 2))
    with pytest.raises(ValueError, match=r"^unroll: params must be what the init of this Bidirectional makes, got"):
        unroll(net, params._replace(layers=params.layers[:1]), state, xs)
    with pytest.raises(
        ValueError, match=r"^unroll: state must be what Bidirectional.initial_state makes, got HiddenState"
    ):
        unroll(net, params, state.layers[0].forward, xs)
    entries = r"^Bidirectional: parameters and states must have one entry a layer in layers, 2 here, got 1 of "
    with pytest.raises(ValueError, match=entries):
        start_state(net, params._replace(layers=params.layers[:1]))
    with pytest.raises(ValueError, match=r"^Bidirectional: dropout must lie in \[0, 1\), got 1\."):
        Bidirectional((GRU(4),), dropout=1)
    with pytest.raises(ValueError, match=r"^unroll: resets must have shape \[5, 3\], as xs without features, got bool"):
        unroll(net, params, state, xs, resets=jnp.zeros((4, 3), bool))
    with pytest.raises(ValueError, match=r"^unroll: xs must have shape \[T, 3, I\] with I = 2 "):
        unroll(net, params, state, jnp.ones((5, 3, 4)))


def test_a_bidirectional_network_in_reverse_is_that_of_the_reversed_rows(x64):
    """Ragged documents, learned starts: what the mirror image of the time computes on the mirror image of each row."""
    net = Bidirectional(((LearnedState(GRU(4)), LSTM(3)), LearnedState(GRU(2))))
    rng = np.random.default_rng(0)
    params, state = fill(net.init(KEY, 2, jnp.float64), rng), fill(net.initial_state((3,), jnp.float64), rng)
    xs, lengths = rng.normal(size=(7, 3, 2)), np.array([7, 5, 0])
    resets = rng.random((7, 3)) < 0.4
    order = np.array([[length - 1 - t if t < length else t for length in lengths] for t in range(7)])
    turn = lambda a: np.take_along_axis(a, order.reshape(*order.shape, *(1,) * (a.ndim - 2)), 0)  # noqa: E731
    run = fast_jit(
        lambda xs, resets, reverse: unroll(net, params, state, xs, lengths=lengths, resets=resets, reverse=reverse),
        static_argnums=2,
    )
    got_state, got = run(xs, resets, True)
    want_state, want = run(turn(xs), turn(resets), False)
    np.testing.assert_allclose(got, turn(np.asarray(want)), rtol=1e-12, atol=1e-12)
    assert_close(got_state, want_state)


def test_each_direction_has_keys_of_its_own():
    """Pitfall 11: masks within the cells of four directions, none of them another's."""
    cell = Regularized(GRU(50), recurrent_dropout=0.5)
    net = Bidirectional((cell, cell))
    params = net.init(KEY, 50)
    same = jax.tree.map(lambda leaf: leaf, params.layers[0].forward)
    params = params._replace(layers=(Directions(same, same), params.layers[1]))
    state, xs = fill(net.initial_state((1,)), np.random.default_rng(0)), jnp.ones((1, 1, 50))
    state = state._replace(layers=(Directions(state.layers[0].forward, state.layers[0].forward), state.layers[1]))
    run = fast_jit(lambda key: unroll(net, params, state, xs, key=key)[0].layers[0])
    up, down = run(None)
    np.testing.assert_allclose(up.h, down.h, rtol=1e-6)  # one step, the same weights
    up, down = run(KEY)
    assert not np.allclose(up.h, down.h, atol=1e-2)


def test_an_engine_that_counts_on_lengths_runs_each_direction(monkeypatch):
    """Turned round, the mask of lengths is a mask of another kind."""

    def run(cell, params, state, xs, controls, **options):
        inside = jnp.arange(len(xs))[:, None] < controls.lengths
        return engine("scan").run(cell, params, state, xs, controls._replace(valid=inside), **options)

    monkeypatch.setattr(choice, "_engines", choice.registered())
    refusal = {"any": "needs lengths and no other mask"}
    choice.register(choice.Engine("lengths", run, lambda job: refusal.get(job.valid, ""), many=True))
    net, rng = Bidirectional((Elman(3),)), np.random.default_rng(0)
    params, xs = fill(net.init(KEY, 2), rng), rng.normal(size=(4, 3, 2)).astype(np.float32)
    got, want = (
        unroll(net, params, None, xs, lengths=np.array([4, 0, 2]), implementation=name) for name in ("lengths", "scan")
    )
    assert_close(got, want, 1e-6)

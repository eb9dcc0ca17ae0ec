"""The contract of a network: what `check_cell` refuses, and what is written once for all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, SLSTM, Bidirectional, Elman, LearnedState, Regularized, Stack
from rnnjax.network import Controls, free_state, leaves, output_shape, part_controls, walk
from tests.cells_table import Row, assert_close, make_problem, plain

KEY = jax.random.key(0)
NESTED = Stack((LearnedState(Stack((LSTM(4), GRU(3)))), Regularized(SLSTM(2), zoneout_h=0.1)))


@pytest.mark.quick
@pytest.mark.parametrize("net", [NESTED, Bidirectional((NESTED, GRU(3)), dropout=0.2)], ids=["stack", "bidirectional"])
def test_networks_keep_the_contract(net):
    rnnjax.check_cell(net, 3)


def broken(**methods):
    """A stack with other methods."""
    kind = type("Broken", (Stack,), methods)
    return dataclasses.dataclass(frozen=True)(kind)((GRU(3), GRU(3)), dropout=0.5)


def one_key(self, visit, params, state, xs, controls, *, reverse, key):
    states = []
    for (_, cell, p), (_, _, s), c in zip(self.parts(params), self.parts(state), part_controls(self, controls)):
        s, xs = visit(cell, p, s, xs, c, reverse=reverse, key=key)
        states.append(s)
    return self.join(states), xs


def whole_fresh(self, visit, params, state, xs, controls, *, reverse, key):
    states = []
    for (_, cell, p), (_, _, s) in zip(self.parts(params), self.parts(state)):
        s, xs = visit(cell, p, s, xs, controls, reverse=reverse, key=None)
        states.append(s)
    return self.join(states), xs


def once(self, visit, params, state, xs, controls, *, reverse, key):
    (_, cell, p), _ = self.parts(params)
    s, xs = visit(cell, p, state.layers[0], xs, part_controls(self, controls)[0], reverse=reverse, key=None)
    return self.join([s, s]), xs


def own_key(self, visit, params, state, xs, controls, *, reverse, key):
    return Stack.thread(self, visit, params, state, xs, controls, reverse=reverse, key=jax.random.key(3))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        ({"join": None}, "Broken is a network and must have the method join; add it."),
        ({"thread": one_key}, "Broken.thread must hand each part a key of its own; split the one it gets."),
        ({"thread": own_key}, "Broken.thread must not make a key where it gets none."),
        (
            {"thread": whole_fresh},
            "Broken.thread must hand each part its own fresh state, as part_controls does",
        ),
        ({"thread": once}, "Broken.thread must run each of its parts once by visit, 0, 1, got 1 runs."),
        ({"join": lambda self, parts: Stack.join(self, parts[::-1])}, "Broken.join must make a state again of what p"),
        (
            {"parts": lambda self, tree: tuple(("a", *part[1:]) for part in Stack.parts(self, tree))},
            "Broken.parts must give each part a name of its own, got ['a', 'a'].",
        ),
        ({"parts": lambda self, tree: ((0, GRU(3), None),)}, "Broken.parts must return tuples (name, cell, its part)"),
        (
            {
                "parts": lambda self, tree: tuple(
                    (n * (1 + (tree is None)), c, p) for n, c, p in Stack.parts(self, tree)
                )
            },
            "Broken.parts must name the same cells for params as for None.",
        ),
        (
            {"parts": lambda self, tree: tuple((n, GRU, p) for n, _, p in Stack.parts(self, tree))},
            "Broken.parts: part '0' must be a cell or a network, got <class",
        ),
        (
            {"parts": lambda self, tree: tuple((n, c, tree) for n, c, _ in Stack.parts(self, None))},
            "Broken.parts: '0' of a state must be a state of GRU, got StackState.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_breaks_the_contract_of_a_network(methods, sentence):
    with pytest.raises((TypeError, ValueError)) as caught:
        rnnjax.check_cell(broken(**methods), 3)
    assert str(caught.value).startswith(f"check_cell: {sentence}")


@pytest.mark.quick
def test_leaves_are_the_cells_with_their_parts():
    problem = make_problem(Row(NESTED))
    found = leaves(NESTED, problem.params)
    assert [(leaf.path, leaf.cell) for leaf in found] == [
        ("0.cell.0", LSTM(4)), ("0.cell.1", GRU(3)), ("1.cell", SLSTM(2)),
    ]  # fmt: skip
    inner = problem.params.layers[0].cell.layers
    assert [leaf.part for leaf in found] == [inner[0], inner[1], problem.params.layers[1]]
    free = free_state("test", NESTED, problem.state)
    assert free.layers[1].n is None and free.layers[1].h is problem.state.layers[1].h
    assert output_shape(Bidirectional((NESTED, GRU(3))), 3) == (6,)
    each = part_controls(NESTED, Controls(fresh=problem.state))
    assert [control.fresh for control in each] == list(problem.state.layers)


def test_a_state_of_none_is_the_start_state(x64):
    """Also with a batch of two axes, and without one."""
    for batch in ((), (3,), (2, 3)):
        problem = make_problem(Row(NESTED), batch=batch)
        start = rnnjax.start_state(NESTED, problem.params, batch, jnp.float64)
        options = {"lengths": problem.lengths, "resets": problem.resets}
        want = rnnjax.unroll(NESTED, problem.params, start, problem.xs, **options)
        assert_close(rnnjax.unroll(NESTED, problem.params, None, problem.xs, **options), want, 0)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    state, ys = rnnjax.unroll(NESTED, low, None, problem.xs.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((state, ys))} == {jnp.dtype("float32")}  # as states are by default


def test_a_document_ends_where_the_next_valid_step_begins_one(x64):
    """Resets and a mask with gaps: both directions of every document are those of the document by itself."""
    net = Bidirectional((GRU(3), Elman(2)))
    params = jax.tree.map(lambda leaf: leaf + 0.3, net.init(KEY, 2, jnp.float64))
    rng = np.random.default_rng(0)
    documents = [rng.normal(size=(length, 2)) for length in (3, 1, 2)]
    places = [1, 3, 4, 6, 9, 10]  # gaps between documents and within them
    xs, valid, resets = np.full((12, 2), np.nan), np.zeros(12, bool), np.zeros(12, bool)
    xs[places], valid[places] = np.concatenate(documents), True
    resets[[6, 9]] = True
    resets[[0, 2, 5, 11]] = True  # in the padding, where they do nothing
    for reverse in (False, True):
        flags = resets.copy()
        if reverse:  # a flag stands at the first step that is read
            flags[[6, 9]] = False
            flags[[4, 6]] = True
        _, ys = rnnjax.unroll(net, params, None, xs, valid=valid, resets=flags, reverse=reverse)
        want = [rnnjax.unroll(net, params, None, jnp.asarray(one), reverse=reverse)[1] for one in documents]
        np.testing.assert_allclose(np.asarray(ys)[places], np.concatenate(want), rtol=1e-10)
        assert not np.asarray(ys)[~valid].any()


@pytest.mark.quick
def test_walk_runs_the_cells_as_unroll_does(x64):
    """With a scan written by hand in the place of the engines."""
    problem = plain(make_problem(Row(NESTED)))

    def visit(cell, params, state, xs, controls, *, reverse, key):
        return jax.lax.scan(lambda s, x: cell.step(params, s, x), state, xs)

    assert_close(walk(visit, NESTED, *problem[:3]), rnnjax.unroll(NESTED, *problem[:3]))

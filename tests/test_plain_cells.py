"""The cells that are not affine: what they start from, what they reduce to, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, ConvLSTM, ProjectedLSTM, Stack
from rnnjax.cells import GRUResetBefore, RecurrentHighway
from rnnjax.initializers import Chrono
from rnnjax.network import input_shape, output_shape
from rnnjax.testing import assert_close, make_problem
from rnnjax.testing.problems import fast_jit, forward, loss_of, plain, with_gradients
from tests.cells_table import params_type, some_params

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "cell", [ConvLSTM(1, spatial_shape=(3, 2)), ConvLSTM(1, spatial_shape=(1, 2, 3))], ids=["2d", "3d"]
)
def test_images_and_volumes(cell, x64):
    """What depends on the number of axes: finite differences along a direction, and two batch axes."""
    six, along = (make_problem(cell, 2, (6,), seq_len=4, seed=seed) for seed in (0, 1))

    def fold(tree, axis):
        return jax.tree.map(lambda a: a.reshape(*a.shape[:axis], 2, 3, *a.shape[axis + 1 :]), tree)

    run = with_gradients(cell, "scan")

    def loss_at(step):
        point = jax.tree.map(lambda a, d: a + step * d, six[:3], along[:3])
        state, ys, _ = run(type(six)(*point, *six[3:]))
        return loss_of(state, ys)

    eps = 1e-5
    got = run(six)
    slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(got.gradients), jax.tree.leaves(along[:3])))
    np.testing.assert_allclose(slope, (loss_at(eps) - loss_at(-eps)) / (2 * eps), rtol=1e-7)
    two = type(six)(six.params, *(fold(part, axis) for part, axis in zip(six[1:], (0, 1, 0, 1))))
    assert_close(forward(cell, "scan")(two), (fold(got.state, 0), fold(got.ys, 1)))


def test_a_conv_lstm_of_one_place_at_a_time_is_an_lstm(x64):
    """With a kernel of one place, every place is an example of its own."""
    cell, lstm = ConvLSTM(2, spatial_shape=(3, 4), kernel_shape=1), LSTM(2)
    problem = plain(make_problem(cell, 3))
    params = params_type(lstm)(problem.params.w_ih[0, 0], problem.params.w_hh[0, 0], problem.params.b)
    want = forward(lstm, "scan")(problem._replace(params=params))
    assert_close(forward(cell, "scan")(problem), want)


def test_a_shifted_image_gives_a_shifted_output(x64):
    """Away from the border, which the kernel reaches from two places away after two steps."""
    cell = ConvLSTM(2, spatial_shape=(9,))
    problem = plain(make_problem(cell, 3, batch=(), seq_len=2))
    moved = problem._replace(state=jax.tree.map(lambda a: jnp.roll(a, 1, 0), problem.state))
    moved = moved._replace(xs=jnp.roll(problem.xs, 1, 1))
    ys, moved_ys = (forward(cell, "scan")(p)[1] for p in (problem, moved))
    assert_close(moved_ys[:, 3:7], ys[:, 2:6])


def test_a_projection_by_the_identity_is_an_lstm(x64):
    cell, lstm = ProjectedLSTM(4, cell_size=4), LSTM(4)
    problem = plain(make_problem(cell))
    problem = problem._replace(params=problem.params._replace(w_proj=jnp.eye(4)))
    params = params_type(lstm)(*problem.params[:3])
    assert_close(forward(cell, "scan")(problem), forward(lstm, "scan")(problem._replace(params=params)))


def test_the_two_resets_are_two_functions_unless_the_gate_is_open(x64):
    """Pitfall 1: with r = 1 the place of the reset does not matter, and else it does."""
    before, after = GRUResetBefore(4), GRU(4)
    problem = plain(make_problem(before))
    gap = []
    for b_r in (problem.params.b[:4], jnp.full(4, 50.0)):
        params = problem.params._replace(b=problem.params.b.at[:4].set(b_r))
        other = params_type(after)(*params, b_hn=jnp.zeros(4))
        ours, theirs = (
            forward(c, "scan")(problem._replace(params=p))[1] for c, p in ((before, params), (after, other))
        )
        gap.append(np.abs(ours - theirs).max())
    assert gap[0] > 0.01 and gap[1] < 1e-12


@pytest.mark.parametrize("depth", [2, 4])
def test_a_highway_of_another_depth_is_refused(depth):
    """An index past the end would be clamped to the last layer, and one short of it would leave layers out."""
    cell, params = RecurrentHighway(4, depth=3), some_params(RecurrentHighway(4, depth=depth), 3)
    sentence = (
        rf"^RecurrentHighway.step: params.w_hh must have shape \[3, H, 2H\] for depth = 3, got f32\[{depth},4,8\]"
    )
    with pytest.raises(ValueError, match=sentence):
        cell.step(params, cell.initial_state(), jnp.ones(3))


def test_shut_highways_keep_the_state(x64):
    cell = RecurrentHighway(4, depth=3)
    problem = plain(make_problem(cell))
    params = problem.params._replace(b=problem.params.b.at[:, 4:].set(-50.0))
    state, _ = forward(cell, "scan")(problem._replace(params=params))
    assert_close(state, problem.state)


@pytest.mark.quick
def test_initial_biases():
    def bias_of(cell):
        return fast_jit(lambda: cell.init(KEY, 1).b)()

    np.testing.assert_array_equal(bias_of(GRUResetBefore(2, update_bias=-1.0)), [0, 0, -1, -1, 0, 0])
    np.testing.assert_array_equal(bias_of(RecurrentHighway(2, depth=2)), [[0, 0, -2, -2]] * 2)
    for cell in (ProjectedLSTM(3, cell_size=2, forget_bias=3.0), ConvLSTM(2, spatial_shape=(4,), forget_bias=3.0)):
        np.testing.assert_array_equal(bias_of(cell), [0, 0, 3, 3, 0, 0, 0, 0])
    for cell in (
        GRUResetBefore(6, update_bias=Chrono(20)),
        ProjectedLSTM(1, cell_size=6, forget_bias=Chrono(20)),
        ConvLSTM(6, spatial_shape=(4,), kernel_shape=1, forget_bias=Chrono(20)),
    ):
        b = np.asarray(bias_of(cell)[6:12])
        assert len(set(b)) == 6 and 0 <= b.min() and b.max() <= np.log(19)


@pytest.mark.quick
def test_initial_weights_are_orthogonal_gate_by_gate():
    """Pitfall 5, for a kernel too: as a matrix from all that it sees to one gate."""
    params = ConvLSTM(4, spatial_shape=(5, 5)).init(KEY, 3)
    assert params.w_ih.shape == (3, 3, 3, 16)
    for gate in np.split(np.asarray(params.w_hh).reshape(36, 16), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(4), atol=1e-5)
    for layer in RecurrentHighway(4, depth=3).init(KEY, 3).w_hh:
        for gate in np.split(np.asarray(layer), 2, axis=1):
            np.testing.assert_allclose(gate.T @ gate, np.eye(4), atol=1e-5)
    for gate in np.split(np.asarray(ProjectedLSTM(3, cell_size=5).init(KEY, 2).w_hh), 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(3), atol=1e-5)


def test_sums_of_a_bfloat16_convolution_stay_in_float32():
    """541 products of one and a bias of -540 make 1; bfloat16, which knows 540 and 544, would make 0."""
    cell = ConvLSTM(1, spatial_shape=(3,), kernel_shape=3)
    shapes = jax.eval_shape(lambda: cell.init(KEY, 181, jnp.bfloat16))
    params = type(shapes)(*(jnp.full(leaf.shape, value, leaf.dtype) for leaf, value in zip(shapes, (1, 0, -540))))
    x = jnp.ones((3, 181)).at[1:, 180].set(0)
    state, _ = cell.step(params, cell.initial_state(), x)  # not within jit, which may leave a rounding out
    np.testing.assert_allclose(state.c[1, 0], np.tanh(1) / (1 + np.exp(-1)), rtol=1e-6)


def test_bfloat16_is_close_to_exact(x64):
    cell = ConvLSTM(2, spatial_shape=(3, 4))
    problem = plain(make_problem(cell, 3, dtype=jnp.bfloat16))
    run = with_gradients(cell, "scan")
    wide = jax.tree.map(lambda a: a.astype(float), problem)
    for got, want in zip(jax.tree.leaves(run(problem)), jax.tree.leaves(run(wide)), strict=True):
        want = np.asarray(want)
        np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=0.04 * max(1, np.abs(want).max()))


@pytest.mark.quick
def test_one_form_of_every_cell():
    """Pitfall 17: equal cells are equal, however they were written."""
    square = ConvLSTM(4, spatial_shape=(5, 6), kernel_shape=(3, 3))
    assert ConvLSTM(4, spatial_shape=[5, 6], kernel_shape=3) == square
    assert rnnjax.cells.cell_from_name("conv_lstm(spatial_shape=(5, 6))", 4) == square
    assert rnnjax.cells.cell_from_name("projected_lstm(cell_size=7)", 4) == ProjectedLSTM(4, cell_size=7)
    assert rnnjax.cells.cell_from_name("highway(depth=2)", 4) == RecurrentHighway(4, depth=2)
    assert ProjectedLSTM(4).initial_state().c.shape == (16,)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda: GRUResetBefore(0), ValueError, "GRUResetBefore: hidden_size must be at least 1, got 0."),
        (lambda: ProjectedLSTM(3, cell_size=0), ValueError, "ProjectedLSTM: cell_size must be at least 1, got 0."),
        (lambda: RecurrentHighway(3, depth=0), ValueError, "RecurrentHighway: depth must be at least 1, got 0."),
        (lambda: RecurrentHighway(3, depth=2.0), TypeError, "RecurrentHighway: depth must be an int, got 2.0."),
        (lambda: ConvLSTM(True, spatial_shape=(4,)), TypeError, "ConvLSTM: hidden_size must be an int, got True."),
        (
            lambda: ConvLSTM(3, spatial_shape=8),
            TypeError,
            "ConvLSTM: spatial_shape must be a tuple of ints, got 8; write (8,)",
        ),
        (
            lambda: ConvLSTM(3, spatial_shape=()),
            ValueError,
            "ConvLSTM: spatial_shape must have 1, 2 or 3 axes, got ().",
        ),
        (
            lambda: ConvLSTM(3, spatial_shape=(4, 0)),
            ValueError,
            "ConvLSTM: every size of spatial_shape must be at least 1, got 0.",
        ),
        (
            lambda: ConvLSTM(3, spatial_shape=(4,), kernel_shape=3.0),
            TypeError,
            "ConvLSTM: every size of kernel_shape must be an int, got 3.0.",
        ),
        (
            lambda: ConvLSTM(3, spatial_shape=(4, 4), kernel_shape=(3, 2)),
            ValueError,
            "ConvLSTM: every size of kernel_shape must be odd",
        ),
        (
            lambda: ConvLSTM(3, spatial_shape=(4, 4), kernel_shape=(3,)),
            ValueError,
            "ConvLSTM: kernel_shape must have one size for each of the 2",
        ),
        (
            lambda: ConvLSTM(3, spatial_shape=(4,)).init(KEY, 0),
            ValueError,
            "ConvLSTM.init: input_size must be at least 1, got 0.",
        ),
        (
            lambda: rnnjax.cells.cell_from_name("conv_lstm", 4),
            ValueError,
            "cell: 'conv_lstm' cannot be made: ",
        ),
    ],
)
def test_errors(make, kind, sentence):
    with pytest.raises(kind) as caught:
        make()
    message = str(caught.value)
    assert message.startswith(sentence) and message.endswith(".") and "\n" not in message


@pytest.mark.quick
@pytest.mark.parametrize("stacked", [False, True], ids=["cell", "stack"])
@pytest.mark.parametrize("shape", [(5, 2, 4, 3, 7), (5, 2, 3, 4, 3), (5, 2, 12, 3), (5, 4, 3, 3), (5,), ()], ids=str)
def test_xs_that_do_not_fit_an_image(stacked, shape):
    cell = ConvLSTM(1, spatial_shape=(4, 3))
    cell = Stack((cell,)) if stacked else cell
    params = some_params(cell, 3)
    with pytest.raises(ValueError) as caught:
        rnnjax.unroll(cell, params, cell.initial_state((2,)), jnp.zeros(shape))
    source = "params.layers[0].w_ih" if stacked else "params.w_ih"
    assert str(caught.value) == (
        f"unroll: xs must have shape [T, 2, 4, 3, I] with I = 3 (from {source}) and the batch axes of the state, "
        f"got f32[{','.join(map(str, shape))}]."
    )


@pytest.mark.quick
def test_shapes_of_inputs_and_outputs():
    assert input_shape(LSTM(4), 3) == (3,) and output_shape(LSTM(4), 3) == (4,)
    image = ConvLSTM(2, spatial_shape=(5, 4))
    for cell in (image, Stack((ConvLSTM(7, spatial_shape=(5, 4)), image))):
        assert input_shape(cell, 3) == (5, 4, 3) and output_shape(cell, 3) == (5, 4, 2)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("below", "above", "read", "written"),
    [
        (ConvLSTM(2, spatial_shape=(5, 4)), LSTM(3), [2], [5, 4, 2]),
        (LSTM(3), ConvLSTM(2, spatial_shape=(5, 4)), [5, 4, 3], [3]),
        (ConvLSTM(2, spatial_shape=(5, 4)), ConvLSTM(2, spatial_shape=(4, 5)), [4, 5, 2], [5, 4, 2]),
    ],
)
def test_layers_that_do_not_fit(below, above, read, written):
    names = type(below).__name__, type(above).__name__
    with pytest.raises(ValueError) as caught:
        Stack((below, above)).init(KEY, 3)
    assert str(caught.value) == (
        f"Stack.init: the output of {names[0]} must have shape {read}, which {names[1]} above it reads, got {written}; "
        "put layers that fit on each other."
    )


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of an image of four places, per channel: input and output differ in their axes."""

    hidden_size: int = 2
    shape: tuple[int, ...] = (4,)

    def input_shape(self, input_size):
        return (*self.shape, input_size)

    def init(self, key, input_size, dtype=jnp.float32):
        return {"w": jnp.ones((input_size, self.hidden_size), dtype)}

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return {"h": jnp.zeros((*batch_shape, self.hidden_size), dtype)}

    def step(self, params, state, x):
        h = (x.mean(-2) @ params["w"]).astype(state["h"].dtype)
        return {"h": h}, h


def test_a_cell_may_read_an_image_and_write_a_vector():
    cell = Mean()
    rnnjax.check_cell(cell, 3)
    assert output_shape(cell, 3) == (2,)
    xs = np.random.default_rng(0).normal(size=(5, 2, 4, 3)).astype(np.float32)
    lengths = np.array([5, 3])
    _, ys = rnnjax.unroll(cell, cell.init(KEY, 3), cell.initial_state((2,)), xs, lengths=lengths)
    want = np.repeat(xs.sum(-1).mean(-1)[..., None], 2, -1) * (np.arange(5)[:, None] < lengths)[..., None]
    np.testing.assert_allclose(ys, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"^unroll: xs must have shape \[T, 2, 4, I\] with I = 3 \(from params\['w'\]\) and the"
    ):
        rnnjax.unroll(cell, cell.init(KEY, 3), cell.initial_state((2,)), xs[:, :, :3])


def test_check_cell_looks_at_the_shapes():
    @dataclasses.dataclass(frozen=True)
    class Transposed(Mean):
        def step(self, params, state, x):
            state, h = super().step(params, state, x)
            return state, jnp.repeat(h[..., None], 3, -1)

    with pytest.raises(ValueError, match=r"^check_cell: Transposed.step: y must have shape \[2\], .* got f32\[2,3\]"):
        rnnjax.check_cell(Transposed(), 3)
    with pytest.raises(TypeError, match=r"^check_cell: Mean.input_shape fails: "):
        rnnjax.check_cell(Mean(shape=("four",)), 3)

"""The comparison with cells that other libraries compute in JAX."""

import jax

from rnnjax.testing import assert_close, make_problem
from rnnjax.testing.problems import Outcome, fast_jit, loss_of, plain, with_gradients


def assert_same_outcome(cell, theirs, input_size=3, tolerance=1e-10):
    """Compares values, final states and all gradients, in float64 within the fixture `x64`.

    `theirs(params, state, xs)` hands *our* parameters to the other library in its order, and returns its final state in
    ours. So its gradients, taken through that change of order, are those of our parameters.
    """
    problem = plain(make_problem(cell, input_size, seq_len=6))

    def loss(differentiable):
        final, ys = theirs(*differentiable)
        return loss_of(final, ys), (final, ys)

    @fast_jit
    def outcome(*differentiable):
        gradients, (final, ys) = jax.grad(loss, has_aux=True)(differentiable)
        return Outcome(final, ys, gradients)

    assert_close(with_gradients(cell, "scan")(problem), outcome(*problem[:3]), tolerance)

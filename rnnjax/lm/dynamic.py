r"""Dynamic evaluation: the parameters follow the text that they have read (Krause et al., 2018).

Every window is predicted first, and counted; then one step of gradient descent on it follows, which the next window is
predicted with. No symbol is ever used before it is predicted.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_ids, check_real, check_size, check_starts
from rnnjax.kinds import public
from rnnjax.lm.evaluate import Evaluation
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.text.corpus import Chunk
from rnnjax.text.windows import windows

__all__ = ["Dynamic", "evaluate_dynamic"]

_BLOCK = 64  # windows of one call on the device


@dataclasses.dataclass(frozen=True)
class Dynamic:
    r"""How the parameters follow the text, with ``g`` the gradient of the mean loss of a window.

        s      = mean of g^2 over the windows so far
        params = params - lr * g / (sqrt(s) + epsilon) + decay * (trained params - params)

    The paper takes ``s`` from the training text; here it is that of the text itself, so that nothing else is needed.

    Args:
        lr: the step of a parameter whose gradient is as large as ever.
        decay: the share of the way back to what was trained, a window.
        window: symbols between two steps.
        epsilon: for parameters that hardly have a gradient.

    Raises:
        ValueError: for numbers out of range.
    """

    lr: float = 2e-4
    decay: float = 1e-3
    window: int = 32
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        where = "Dynamic"
        object.__setattr__(self, "lr", check_real(where, "lr", self.lr, least=0.0))
        object.__setattr__(self, "decay", check_real(where, "decay", self.decay, least=0.0, most=1.0))
        object.__setattr__(self, "window", check_size(where, "window", self.window))
        object.__setattr__(self, "epsilon", check_real(where, "epsilon", self.epsilon, above=0.0))


@public
def evaluate_dynamic(
    model: LanguageModel,
    params: LMParams,
    ids: np.ndarray,
    *,
    options: Dynamic = Dynamic(),
    starts: np.ndarray | None = None,
) -> Evaluation:
    """The loss of every prediction of a text but its first symbol, by parameters that follow it; one stream.

    Args:
        model: the model.
        params: what it was trained to; they are left as they are.
        ids: integers `[n]`, from 0 to V - 1.
        options: how they follow.
        starts: positions where a document starts, sorted: there the state is reset, and the parameters go on.

    Raises:
        ValueError: for less than two symbols, an id outside of the vocabulary, or starts that are not sorted positions.
        TypeError: if ids or starts are not integers.

    >>> import jax, rnnjax
    >>> model = LanguageModel(vocab_size=3, stack=rnnjax.Stack((rnnjax.GRU(4),)))
    >>> text = np.tile(np.array([0, 1, 2, 1], np.uint8), 100)
    >>> found = evaluate_dynamic(model, model.init(jax.random.key(0)), text, options=Dynamic(lr=1e-1))
    >>> found.count, found.loss < 1
    (399, True)
    """
    ids = check_ids("evaluate_dynamic", ids, model.vocab_size)
    if len(ids) < 2:
        raise ValueError(f"evaluate_dynamic: ids must hold at least two symbols, got {len(ids)}; use a longer text.")
    starts = check_starts("evaluate_dynamic", starts, len(ids))
    count, size = len(ids) - 1, options.window * _BLOCK
    carry = (params, jax.tree.map(jnp.zeros_like, params), model.initial_state((1,)), jnp.zeros((), jnp.float32))
    total = 0.0
    cut: dict[str, Any] = {"streams": 1, "window": size, "warmup": 0, "starts": starts}
    for at, counted, resets in windows(0, count, **cut, where="evaluate_dynamic"):
        at = np.minimum(at, count - 1)
        arrays = (ids[at].astype(np.int32), ids[at + 1].astype(np.int32), resets, counted)
        block = tuple(np.reshape(a, (_BLOCK, options.window, 1)) for a in arrays)
        carry, losses = _follow(model, options, params, carry, block)
        total += float(np.sum(np.asarray(losses), dtype=np.float64))
    return Evaluation(total / count, count)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _follow(model: LanguageModel, options: Dynamic, trained: LMParams, carry: Any, block: Any) -> Any:
    def window(carry: Any, inputs: Any) -> Any:
        params, squares, state, n = carry
        symbols, targets, resets, counted = inputs

        def loss(params: LMParams) -> Any:
            new, losses = model.losses(params, state, Chunk(symbols, targets, resets))
            losses = losses * counted
            return jnp.sum(losses) / jnp.maximum(jnp.sum(counted), 1), (new, jnp.sum(losses))

        (_, (new, summed)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        n = n + 1
        squares = jax.tree.map(lambda s, g: s + (g * g - s) / n, squares, gradient)
        params = jax.tree.map(
            lambda p, g, s, p0: p - options.lr * g / (jnp.sqrt(s) + options.epsilon) + options.decay * (p0 - p),
            params, gradient, squares, trained,
        )  # fmt: skip
        return (params, squares, new, n), summed

    return jax.lax.scan(window, carry, block)

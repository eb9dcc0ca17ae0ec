"""Averages of the parameters: what is trained goes on as ever, and what is evaluated and kept is their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.checks import check_flag, check_optimizer, check_real
from rnnjax.kinds import public
from rnnjax.promotion import promoting

if TYPE_CHECKING:
    import optax

__all__ = ["AVERAGED", "AveragedState", "averaged", "judged", "judged_prefix"]

AVERAGED = "opt_state.averaged"  # how names of the averages begin in a checkpoint


class AveragedState(NamedTuple):
    """State of `averaged`."""

    averaged: Any  # the mean, a tree as the parameters
    number: jax.Array  # of the parameters in it
    averaging: jax.Array  # bool: whether it has begun
    inner: Any  # state of the optimizer


@public(but=("optimizer",))
def averaged(
    optimizer: optax.GradientTransformation, decay: float = 1.0, *, begun: bool = True
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer that keeps the mean of the parameters besides, which `fit` evaluates, saves and returns.

        n     <- n + 1
        mean  <- mean + max(1 / n, 1 - decay) * (params - mean)

    ``decay=1`` is the mean of all since it began, averaged SGD (Polyak and Juditsky, 1992); below one it is the mean of
    the first ``1 / (1 - decay)`` and from there on an exponential one. Until it has begun ``n`` is 0 and the mean is
    the parameters themselves. A program of its own finds the mean in ``opt_state.averaged``, and begins it by
    ``opt_state._replace(averaging=jnp.ones((), bool))``.

    Args:
        optimizer: any optax optimizer; this one goes around all others, so that it sees what they make of the
            parameters.
        decay: above 0, at most 1.
        begun: whether the mean begins with the first update.

    Raises:
        ValueError: for a decay out of range.
        TypeError: if ``optimizer`` is none.

    >>> import jax.numpy as jnp, optax
    >>> optimizer, params = averaged(optax.sgd(1.0)), jnp.zeros(())
    >>> state = optimizer.init(params)
    >>> for gradient in (-1.0, -2.0, -3.0):
    ...     updates, state = optimizer.update(jnp.float32(gradient), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> float(params), round(float(state.averaged), 4)  # of 1, 3 and 6
    (6.0, 3.3333)
    """
    check_optimizer("averaged", optimizer)
    decay = check_real("averaged", "decay", decay, above=0.0, most=1.0)
    begun = check_flag("averaged", "begun", begun)
    import optax  # not at the top: who only runs a network need not wait for it

    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> AveragedState:
        copy = jax.tree.map(jnp.array, params)  # whoever gives up its buffers gives up each once
        return AveragedState(copy, jnp.zeros((), jnp.int32), jnp.asarray(begun), inner.init(params))

    def update(
        updates: Any, state: AveragedState, params: Any = None, *, scale: Any = None, **more: Any
    ) -> tuple[Any, AveragedState]:
        if params is None:
            raise ValueError("averaged: params must be the parameters, got None; call update(updates, state, params).")
        updates, inner_state = inner.update(updates, state.inner, params, **more)
        if scale is not None:  # of a training that went back
            updates = jax.tree.map(lambda leaf: leaf * jnp.asarray(scale, leaf.dtype), updates)
        number = jnp.where(state.averaging, state.number + 1, 0)
        share = jnp.maximum(1.0 / jnp.maximum(number, 1), 1.0 - decay)
        share = jnp.where(state.averaging, share, 1.0)
        new = optax.apply_updates(params, updates)

        def moved(mean: jax.Array, now: jax.Array) -> jax.Array:
            return (mean + share * (now - mean)).astype(mean.dtype)

        mean = jax.tree.map(promoting(moved), state.averaged, new)
        return updates, AveragedState(mean, number, state.averaging, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def judged(params: Any, opt_state: Any) -> Any:
    """What is evaluated and kept: the mean, where there is one, else the parameters."""
    return opt_state.averaged if isinstance(opt_state, AveragedState) else params


def judged_prefix(names: Any) -> str:
    """How the names of what is judged begin in a checkpoint that holds these."""
    return AVERAGED if any(name.startswith(AVERAGED) for name in names) else "params"

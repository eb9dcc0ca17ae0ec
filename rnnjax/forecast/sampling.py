"""Forecasts: paths that might come, and quantiles of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_kind, check_real, check_size, short
from rnnjax.forecast.heads import Quantiles
from rnnjax.forecast.model import Forecaster, ForecasterParams
from rnnjax.forecast.series import Series, as_series
from rnnjax.forecast.windows import Frames, Window
from rnnjax.kinds import public
from rnnjax.topologies.parts import flat

__all__ = ["check_features", "check_levels", "quantiles", "sample"]

_AT_ONCE = 40_000  # paths that are drawn in one program, which bounds its memory


@public
def sample(
    model: Forecaster, params: Any, series: Any, *, horizon: int, num_samples: int = 200, key: jax.Array
) -> np.ndarray:
    """Draws what comes behind the end of every series: one compiled program, a scan over the steps.

    Args:
        model: what was trained.
        params: from `fit`.
        series: as for `fit`, up to the origin.
        horizon: steps ahead; of a direct model at most those of its training.
        num_samples: S, paths of every series.
        key: one a call.

    Returns:
        float32 ``[N, S, horizon]``. Paths of a direct model are right at each step; how steps hang together they do
        not tell.

    Raises:
        ValueError: for a horizon beyond what the known covariates or a direct model cover.
    """
    horizon, num_samples = check_size("sample", "horizon", horizon), check_size("sample", "num_samples", num_samples)
    return np.concatenate(list(_draws(model, params, series, horizon, num_samples, key)))


def check_levels(where: str, levels: Sequence[float]) -> tuple[float, ...]:
    """The levels of quantiles as plain numbers.

    Raises:
        TypeError: for what is no number.
        ValueError: for none, or one outside of (0, 1).
    """
    found = tuple(check_real(where, "every one of levels", level, above=0.0, below=1.0) for level in levels)
    if not found:
        raise ValueError(f"{where}: levels must hold at least one number, got {short(levels)}.")
    return found


def _draws(
    model: Forecaster, params: Any, series: Any, horizon: int, num_samples: int, key: jax.Array
) -> Iterator[np.ndarray]:
    """What `sample` returns, some series at a time."""
    for number, window, count in _windows("sample", model, params, series, horizon, num_samples):
        yield np.asarray(_draw(model, horizon, num_samples, params, window, jax.random.fold_in(key, number)))[:count]


@public
def quantiles(
    model: Forecaster,
    params: Any,
    series: Any,
    *,
    horizon: int,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
    num_samples: int = 200,
    key: jax.Array,
) -> np.ndarray:
    """Quantiles of what comes: exact where a direct model says `Quantiles`, else of drawn paths.

    Returns:
        float32 ``[N, L, horizon]``, in the order of the levels.

    Raises:
        ValueError: as `sample` does, or for levels outside of (0, 1).
    """
    levels, horizon = check_levels("quantiles", levels), check_size("quantiles", "horizon", horizon)
    if model.direct and isinstance(model.head, Quantiles):
        ends = _windows("quantiles", model, params, series, horizon, 20)
        found = [np.asarray(_levels(model, horizon, levels, params, window))[:count] for _, window, count in ends]
    else:  # of some series at a time: the paths of all might not fit into the memory
        draws = _draws(model, params, series, horizon, check_size("quantiles", "num_samples", num_samples), key)
        found = [np.moveaxis(np.quantile(paths, levels, axis=1), 0, 1).astype(np.float32) for paths in draws]
    return np.concatenate(found)


def _windows(
    where: str, model: Forecaster, params: Any, series: Any, horizon: int, num_samples: int
) -> Iterator[tuple[int, Window, int]]:
    """The ends of the series in batches of one size, with their number and how many rows of each are asked for."""
    check_kind(where, "params", params, ForecasterParams, "the params of fit's result")
    series = as_series(where, series)
    check_horizon(where, model, params, series, horizon)
    ahead = len(params.anchors) if model.direct else horizon
    frames = Frames(series, model.seasons, ahead)
    check_features(where, params, frames)
    size = min(len(series), max(1, _AT_ONCE // num_samples))
    for number, first in enumerate(range(0, len(series), size)):
        rows = np.arange(first, min(first + size, len(series)))
        padded = np.pad(rows, (0, size - len(rows)), mode="edge")  # one program for all
        window = frames.cut(padded.tolist(), series.lengths[padded].tolist(), model.reach, model.context_used, ahead)
        yield number, window, len(rows)


def check_horizon(where: str, model: Forecaster, params: ForecasterParams, series: Series, horizon: int) -> None:
    """Raises the ValueError of a horizon that is not covered."""
    if model.direct and horizon > len(params.anchors):
        raise ValueError(
            f"{where}: horizon must be at most {len(params.anchors)}, which the direct model was trained for, got "
            f"{horizon}; train for it, or with direct=False."
        )
    if series.future is not None and series.future < horizon:
        raise ValueError(
            f"{where}: horizon must be at most {series.future}, as far as the known covariates go, got {horizon}; "
            "append their future."
        )


def check_features(where: str, params: ForecasterParams, frames: Frames) -> None:
    """Raises the ValueError of series that are not of the kind that was trained on."""
    features = frames.sizes["features"]
    if features != len(params.center):
        raise ValueError(
            f"{where}: series must have the {len(params.center)} features that the model was trained with, got "
            f"{features}; give the same covariates and dates."
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _levels(model: Forecaster, horizon: int, levels: tuple[float, ...], params: Any, window: Window) -> Any:
    found = jax.tree.map(lambda a: a[0, :horizon], model.distributions(params, window)[0])  # [horizon, B, ...]
    values = [model.head.quantile(found, jnp.full(found.values.shape[:-1], level)) for level in levels]
    return jnp.transpose(jnp.stack(values), (2, 0, 1))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(model: Forecaster, horizon: int, samples: int, params: Any, window: Window, key: jax.Array) -> Any:
    """``[B, samples, horizon]``."""
    if model.direct:
        found = jax.tree.map(lambda a: a[0, :horizon], model.distributions(params, window)[0])  # [horizon, B, ...]
        many = jax.tree.map(lambda a: jnp.broadcast_to(a, (samples, *a.shape)), found)
        return jnp.transpose(model.head.draw(key, many), (2, 0, 1))
    history = model.read(params, window)
    z, shift, scale = model._scaled(window)
    C, origin = model.context_used, len(window.values) - len(window.features) + model.context_used
    B = z.shape[1]
    state = jax.tree.map(lambda a: jnp.repeat(a, samples, axis=0), history.state)  # [B * samples, ...]
    lags = np.array(model.lags_used)
    offsets = model.anchor_offsets(1)[0]
    back = np.unique(np.concatenate([lags, -offsets]))  # every look back, once
    steps = np.arange(horizon)[:, None] - back  # below 0: in the history
    past = jnp.moveaxis(z[origin + np.minimum(steps, -1)], -1, 1)  # [horizon, B, back]
    past_there = jnp.moveaxis(jnp.asarray(window.mask)[origin + np.minimum(steps, -1)], -1, 1)
    is_past = steps < 0
    of_lag, of_anchor = np.searchsorted(back, lags), np.searchsorted(back, -offsets)
    shift, scale = (jnp.repeat(leaf, samples) for leaf in (shift, scale))
    others = model.others(params, window)[C:]  # [horizon, B, R]

    def step(carry: Any, given: Any) -> Any:
        state, drawn = carry
        number, own, there, inside, rest, key = given
        ahead = jnp.stack([jnp.take(drawn, number - lag, axis=0, mode="clip") for lag in back.tolist()], -1)
        looked = jnp.where(inside, jnp.repeat(own, samples, axis=0), ahead)  # [B * samples, back]
        there = jnp.where(inside, jnp.repeat(there, samples, axis=0), True)
        parts = looked[:, of_lag], there[:, of_lag].astype(rest.dtype), jnp.repeat(rest, samples, axis=0)
        state, y = model.network.step(params.network, state, jnp.concatenate(parts, -1))
        anchors = model.anchored(looked[:, of_anchor], there[:, of_anchor])
        found = model.say_next(params, flat(model.network, y), anchors, shift, scale)
        value = model.head.draw(key, found)
        return (state, drawn.at[number].set((value - shift) / scale)), value

    keys = jax.random.split(key, horizon)
    given = (jnp.arange(horizon), past, past_there, jnp.asarray(is_past)[:, None], others, keys)
    _, values = jax.lax.scan(step, (state, jnp.zeros((horizon, B * samples), z.dtype)), given)
    return jnp.transpose(values.reshape(horizon, B, samples), (1, 2, 0))

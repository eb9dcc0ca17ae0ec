"""Training of a `Forecaster`, by the loop of `rnnjax.fit`."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_size
from rnnjax.fit import OptimizerOptions
from rnnjax.fit import fit as run
from rnnjax.fit.loop import Report
from rnnjax.fit.progress import Outcome
from rnnjax.forecast.model import Forecaster, ForecasterParams
from rnnjax.forecast.series import Series, as_series
from rnnjax.forecast.windows import Batches, Frames, Window
from rnnjax.kinds import public

__all__ = ["fit"]

EVAL_WINDOWS = 256  # of what is held out, at most
_ROOM = 4096  # steps that a window may reach beyond the longest series, at least
HOLDOUT = 5  # horizons, at most a fifth of a series


@public
def fit(
    model: Forecaster,
    series: Any,
    *,
    horizon: int,
    key: jax.Array,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 64,
    origins: int = 16,
    holdout: int | None = None,
    optimizer: OptimizerOptions | None = None,
    evals: int = 10,
    patience: int = 0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report: Report = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Trains one model on all series, and returns the parameters that forecast the held-out ends best.

    Args:
        model: what is trained.
        series: a list of arrays ``[T_n]``, NaN where a value is missing, or a `Series`.
        horizon: steps ahead.
        key: for parameters, windows and dropout.
        steps: the budget: updates; 1000 where ``minutes`` is not given either.
        minutes: the budget: wall-clock time.
        batch_size: windows of an update.
        origins: forecasts that a window begins, one step apart.
        holdout: values at the end of every series that are never trained on, and that evaluations forecast; None is
            5 horizons, but at most a fifth of a series. With 0 all is trained on, and the last parameters are returned.
        optimizer: None is AdamW at a peak learning rate of 0.003, with gradients clipped at 1.
        evals: evaluations over the budget.
        patience: stop after so many evaluations without a new best; 0 never does.
        folder: as in `rnnjax.fit.fit`.
        resume: as in `rnnjax.fit.fit`.
        report: gets every row as it comes, see `rnnjax.fit.Printer`.
        should_stop: True saves and returns.

    Returns:
        `rnnjax.fit.progress.Outcome`; its ``params`` are for `sample`, `quantiles` and `backtest`.

    Raises:
        ValueError: for series that are too short to train on, or as `rnnjax.fit.fit` does.
        TypeError: for a table, or arguments of another kind.
    """
    series = as_series("fit", series)
    horizon = check_size("fit", "horizon", horizon)
    origins = check_size("fit", "origins", origins)
    batch_size = check_size("fit", "batch_size", batch_size)
    longest = int(series.lengths.max())
    if model.reach + model.context_used > 4 * longest + _ROOM:
        raise ValueError(
            f"fit: season and context must lie within a series, of {longest} values at most, got a season of "
            f"{model.seasons[-1]} and a context of {model.context_used}; lower them."
        )
    frames = Frames(series, model.seasons, horizon + origins)
    kept = _holdout(series, horizon, holdout)
    ends = series.lengths - kept
    if not (ends > 1).any():
        raise ValueError(
            f"fit: a series must be longer than the {int(kept.max())} values that are held out and one more, got at "
            f"most {int(series.lengths.max())}; lower holdout=, or the horizon."
        )
    key_init, key_data, key_train = jax.random.split(key, 3)
    sizes = frames.sizes
    params = model.init(key_init, horizon=horizon, **sizes)
    params = _with_statistics(params, frames, ends, int(kept.max()))
    options = OptimizerOptions() if optimizer is None else optimizer
    batches = Batches(
        frames,
        ends,
        model.reach,
        model.context_used,
        horizon + origins - 1,
        batch_size,
        key_data,
        _identity(series, repr((model, options, horizon, origins, batch_size, ends.tolist()))),
    )
    evaluate: Callable[[Any], float] | None = None
    if kept.any():
        windows, loss = jax.device_put(_held_out(model, frames, ends, kept, horizon)), jax.jit(model.loss)

        def evaluate(params: Any) -> float:
            return float(loss(params, windows))

    return run(
        model.loss,
        params,
        options.make_optimizer(),
        batches,
        steps=1000 if steps is None and minutes is None else steps,
        minutes=minutes,
        evaluate=evaluate,
        evals=evals,
        patience=patience if evaluate is not None else 0,
        key=key_train,
        folder=folder,
        resume=resume,
        learning_rate=options.learning_rate,
        explosion=math.inf,  # a window of a flat context may have any loss, and gradients are clipped
        report=report,
        should_stop=should_stop,
    )


def _identity(series: Series, settings: str) -> str:
    """What makes a training this one, in a few letters: a folder must not go on as another, whatever it says."""
    found = hashlib.sha256(re.sub("0x[0-9a-f]+", "", settings).encode())  # without addresses in the memory
    for part in (series.values, series.known or (), series.observed or (), [np.asarray(series.static)]):
        for row in part:
            found.update(np.ascontiguousarray(row).tobytes())
    return found.hexdigest()[:16]


def _holdout(series: Series, horizon: int, holdout: int | None) -> np.ndarray:
    """Values at the end of each series that are not trained on, int ``[N]``."""
    if holdout is None:
        return np.minimum(HOLDOUT * horizon, series.lengths // 5)
    return np.minimum(check_size("fit", "holdout", holdout, least=0), series.lengths)


def _with_statistics(params: ForecasterParams, frames: Frames, ends: np.ndarray, kept: int) -> ForecasterParams:
    """With mean and deviation of the features, of what is trained on."""
    rows = np.concatenate([row[:end] for row, end in zip(frames.features, ends, strict=True)])
    spread = rows.std(axis=0)
    dtype = params.center.dtype
    return params._replace(
        center=jnp.asarray(rows.mean(axis=0), dtype),
        spread=jnp.asarray(np.where(spread > 1e-6, spread, 1.0), dtype),
        holdout=jnp.asarray(kept, dtype),
    )


def _held_out(model: Forecaster, frames: Frames, ends: np.ndarray, kept: np.ndarray, horizon: int) -> Window:
    """Windows from the held-out ends, one horizon apart, spread over the series."""
    places = [
        (n, origin) for n in range(len(ends)) for origin in range(ends[n], ends[n] + kept[n], horizon) if origin > 0
    ]
    if len(places) > EVAL_WINDOWS:
        places = [places[k] for k in np.linspace(0, len(places) - 1, EVAL_WINDOWS).astype(int)]
    rows, origins = zip(*places, strict=True)
    return frames.cut(rows, origins, model.reach, model.context_used, horizon)

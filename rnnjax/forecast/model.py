r"""`Forecaster`: a recurrent network over many series, with a head that says how sure it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.cell import wide_dtype
from rnnjax.checks import check_size, short
from rnnjax.forecast.heads import NegativeBinomial
from rnnjax.forecast.windows import Window
from rnnjax.kinds import check_fields, public
from rnnjax.network import output_shape, start_state
from rnnjax.networks.masks import dropout
from rnnjax.topologies.parts import Dense, affine, check_network, flat, init_dense, split_key, with_dropout
from rnnjax.unroll import unroll

__all__ = ["Forecaster", "ForecasterParams", "History"]

_CONTEXT_SIZE = 16  # of what a direct decoder knows of the state, at one step


class Decoder(NamedTuple):
    """Parameters of a direct forecast: one hidden layer over the state, the step ahead and its features."""

    context: Dense  # w [F, H * D], b [H * D]
    hidden: Dense  # w [D + K + A, U], b [U]
    step: jax.Array  # [H, U]
    out: Dense  # w [U, O], b [O]


class ForecasterParams(NamedTuple):
    """Parameters of a `Forecaster`, and what training knew of its data."""

    network: Any
    embeddings: tuple[jax.Array, ...]  # [V_c, E], one a static category
    anchors: jax.Array  # [A], or [H, A] of a direct forecast
    head: Any  # Dense, or Decoder of a direct forecast
    center: jax.Array  # [K] of the features, not trained
    spread: jax.Array  # [K], not trained
    holdout: jax.Array  # [], values at the end of each series that were not trained on; not trained


class History(NamedTuple):
    """What is left of the past at an origin."""

    state: Any  # of the network, which has read all steps before the one that comes next
    shift: jax.Array  # [B]
    scale: jax.Array  # [B]


@dataclasses.dataclass(frozen=True)
class Forecaster:
    r"""One model for many series: scaled values, lags and covariates in; a distribution of the next value out.

        z_t        = (value_t - shift) / scale              of the context, see ``scale``
        x_t        = z at the lags of t, which are there, features of t, observed covariates of t - 1, categories
        state, y_t = network(state, x_t)
        location_t = anchors @ (z_{t-1}, z_{t-s}, ...)       at first the value of one season ago
        value_t    ~ head(w @ y_t + b, location_t)

    The state goes on from the history into the forecast. A model that is not ``direct`` forecasts step by step and
    feeds back what it has drawn (Salinas et al., 2020, DeepAR); a ``direct`` one says all steps ahead at once
    (Wen et al., 2017, MQ-RNN): faster, and nothing adds up, but its draws of different steps are independent.

    Args:
        network: a cell, also a `Stack`.
        head: `StudentT`, `Normal`, `NegativeBinomial` or `Quantiles`.
        season: steps of a season, or of several; 1 for none.
        direct: all steps ahead at once.
        context: steps of history that are read; 0 is two of the longest season, at least 32 steps.
        lags: steps back whose values are inputs; None is 1, and around one season and two.
        scale: what values are divided by: ``"mean_abs"``, the mean absolute value of the context, or ``"mean_std"``,
            its deviation, with its mean taken off before.
        embed_size: numbers for each static category.
        hidden_size: of the decoder of a direct forecast.
        dropout: between the layers and before the head.

    Raises:
        ValueError: for numbers out of range, or counts with another scale than ``"mean_abs"``.
        TypeError: if the network is no cell, or the head no head.

    >>> import rnnjax
    >>> model = Forecaster(rnnjax.LSTM(64), head=rnnjax.forecast.StudentT(), season=24)
    >>> model.lags_used, model.context_used
    ((1, 23, 24, 25, 48), 48)
    """

    network: Any
    head: Any
    season: int | tuple[int, ...] = 1
    _: dataclasses.KW_ONLY
    direct: bool = False
    context: int = 0
    lags: tuple[int, ...] | None = None
    scale: Literal["mean_abs", "mean_std"] = "mean_abs"
    embed_size: int = 4
    hidden_size: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_network("Forecaster", "network", self.network, flat=True)
        check_fields(self, least={"context": 0}, rates=("dropout",))
        needed = ("size", "distribution", "loss", "draw", "cdf")
        if isinstance(self.head, type) or not all(hasattr(self.head, name) for name in needed):
            raise TypeError(f"Forecaster: head must be one, as StudentT(), got {short(self.head)}.")
        seasons = self.season if isinstance(self.season, Sequence) else (self.season,)
        seasons = tuple(sorted({check_size("Forecaster", "season", one) for one in seasons}))
        object.__setattr__(self, "season", seasons[0] if len(seasons) == 1 else seasons)
        if self.lags is not None:
            if isinstance(self.lags, str | bytes) or not isinstance(self.lags, Sequence):
                raise TypeError(f"Forecaster: lags must be a tuple of steps, got {short(self.lags)}; write (1, 2).")
            lags = tuple(sorted({check_size("Forecaster", "lags", one) for one in self.lags}))
            object.__setattr__(self, "lags", lags)
        if not seasons or self.lags == ():
            raise ValueError("Forecaster: season and lags must hold at least one number each, got none.")
        if isinstance(self.head, NegativeBinomial) and self.scale != "mean_abs":
            raise ValueError('Forecaster: counts are scaled by scale="mean_abs", got "mean_std"; leave it out.')

    @property
    def seasons(self) -> tuple[int, ...]:
        """All of them, rising; (1,) for none."""
        return self.season if isinstance(self.season, tuple) else (self.season,)

    @property
    def lags_used(self) -> tuple[int, ...]:
        """Steps back whose values are inputs."""
        if self.lags is not None:
            return self.lags
        around = {lag for s in self.seasons if s > 1 for lag in (s - 1, s, s + 1, 2 * s)}
        return tuple(sorted({1} | around))

    @property
    def context_used(self) -> int:
        """Steps of history that are read."""
        return self.context or max(32, 2 * self.seasons[-1])

    @property
    def reach(self) -> int:
        """Values before the context that lags and anchors ask for."""
        return max(*self.lags_used, 2 * self.seasons[-1], 1)

    def anchor_offsets(self, horizon: int) -> np.ndarray:
        """Where values with the phase of each step ahead were seen last, ``[horizon, A]``, from the origin on, below 0.

        The first is the last value; then, for every season, the last one and the one before.
        """
        ahead = np.arange(horizon)[:, None]
        columns = [np.full((horizon, 1), -1)]
        for s in self.seasons:
            if s > 1:
                last = ahead - (ahead // s + 1) * s
                columns += [last, last - s]
        return np.concatenate(columns, axis=1)

    @public
    def init(
        self,
        key: jax.Array,
        *,
        features: int,
        observed: int = 0,
        categories: tuple[int, ...] = (),
        horizon: int = 1,
        dtype: Any = jnp.float32,
    ) -> ForecasterParams:
        """New parameters, for inputs of these sizes, see `Window`; ``horizon`` counts for a direct forecast alone."""
        key_network, key_head, key_hidden, key_out, key_embed = jax.random.split(key, 5)
        embed = tuple(
            jax.random.normal(k, (size, self.embed_size), dtype) * 0.3
            for k, size in zip(jax.random.split(key_embed, max(len(categories), 1)), categories, strict=False)
        )
        inputs = 2 * len(self.lags_used) + 1 + features + observed + self.embed_size * len(categories)
        size = math.prod(output_shape(self.network, 1))
        offsets = self.anchor_offsets(horizon if self.direct else 1)
        anchors = jnp.zeros(offsets.shape, dtype).at[:, 1 if offsets.shape[1] > 1 else 0].set(1.0)
        head: Any = _small(init_dense(key_head, size, self.head.size, dtype))
        if self.direct:
            D, U = _CONTEXT_SIZE, self.hidden_size
            head = Decoder(
                init_dense(key_head, size, horizon * D, dtype),
                init_dense(key_hidden, D + features + 2 * offsets.shape[1], U, dtype),
                jnp.zeros((horizon, U), dtype),
                _small(init_dense(key_out, U, self.head.size, dtype)),
            )
        return ForecasterParams(
            self.network.init(key_network, inputs, dtype),
            embed,
            anchors if self.direct else anchors[0],
            head,
            jnp.zeros(features, dtype),
            jnp.ones(features, dtype),
            jnp.zeros((), dtype),
        )

    @public
    def loss(self, params: ForecasterParams, window: Window, *, key: jax.Array | None = None) -> jax.Array:
        """The mean loss of the steps behind the context that have a value.

        The scale is of the context alone, so nothing in the loss of a step knows of any later one. A direct model
        forecasts from several origins: all those that leave room for its horizon.
        """
        losses, mask = self.losses(params, window, key=key)
        return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(jnp.sum(mask), 1)

    def losses(
        self, params: ForecasterParams, window: Window, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """``[steps, B]``, or ``[origins, horizon, B]`` of a direct model, and which of them count."""
        found, shift, scale, at = self.distributions(params, window, key=key)
        del shift
        value, mask = jnp.asarray(window.values)[at], jnp.asarray(window.mask)[at]
        return self.head.loss(found, value, scale), mask

    def distributions(
        self, params: ForecasterParams, window: Window, *, key: jax.Array | None = None
    ) -> tuple[Any, jax.Array, jax.Array, np.ndarray]:
        """Of every step behind the context, given the values before it; and the places of those steps in the window."""
        keys = split_key("Forecaster", key, 2)
        z, shift, scale = self._scaled(window)
        P, Q, C = len(window.values), len(window.features), self.context_used
        horizon = len(params.anchors) if self.direct else 1
        count = Q - C - horizon + 1  # origins
        if count < 1:
            raise ValueError(
                f"Forecaster: a window must hold a context of {C} and {horizon} steps behind it, got {Q} in all."
            )
        xs = self._inputs(params, window, z, C + count)
        network = self.network if key is None else with_dropout(self.network, self.dropout)
        start = start_state(self.network, params.network, (xs.shape[1],), wide_dtype(params.network))
        resets = jnp.asarray(window.start)[: C + count]
        _, ys = unroll(network, params.network, start, xs, resets=resets, key=keys[0])
        ys = dropout(keys[1], flat(self.network, ys[C:]), self.dropout)  # [origins, B, F]
        first = P - Q + C + np.arange(count)
        at = first[:, None] + np.arange(horizon) if self.direct else first
        found = self._say(params, ys, z, window, first, shift, scale)
        return found, shift, scale, at

    def read(self, params: ForecasterParams, window: Window) -> History:
        """The state behind the context of a window, to forecast from."""
        z, shift, scale = self._scaled(window)
        C = self.context_used
        start = start_state(self.network, params.network, (z.shape[1],), wide_dtype(params.network))
        xs = self._inputs(params, window, z, C)
        state, _ = unroll(self.network, params.network, start, xs, resets=jnp.asarray(window.start)[:C])
        return History(state, shift, scale)

    def _scaled(self, window: Window) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``z [P, B]``, zero where a value is missing, and shift and scale ``[B]`` of the context."""
        values, mask = jnp.asarray(window.values), jnp.asarray(window.mask)
        last = len(window.values) - len(window.features) + self.context_used
        own = slice(last - self.context_used, last)
        count = jnp.maximum(jnp.sum(mask[own], 0), 1)
        if self.scale == "mean_abs":
            shift = jnp.zeros(values.shape[1], values.dtype)
            scale = jnp.sum(jnp.where(mask[own], jnp.abs(values[own]), 0), 0) / count
        else:
            shift = jnp.sum(jnp.where(mask[own], values[own], 0), 0) / count
            scale = jnp.sqrt(jnp.sum(jnp.where(mask[own], (values[own] - shift) ** 2, 0), 0) / count)
        # A constant has no deviation, and zeros no mean: any scale will do.
        scale = jnp.where(scale > 1e-6 * (jnp.abs(shift) + 1e-6), scale, jnp.maximum(jnp.abs(shift), 1.0))
        return jnp.where(mask, (values - shift) / scale, 0), shift, scale

    def _inputs(self, params: ForecasterParams, window: Window, z: jax.Array, count: int) -> jax.Array:
        """``[count, B, I]``: of the first steps of the features."""
        first = len(window.values) - len(window.features)
        mask = jnp.asarray(window.mask)
        lagged = jnp.stack([z[first - lag : first - lag + count] for lag in self.lags_used], -1)
        there = jnp.stack([mask[first - lag : first - lag + count] for lag in self.lags_used], -1)
        dtype = wide_dtype(params.network)
        parts = [jnp.asarray(part, dtype) for part in (lagged, there)]
        return jnp.concatenate([*parts, self.others(params, window)[:count]], -1)

    def others(self, params: ForecasterParams, window: Window) -> jax.Array:
        """What the network reads at every step besides lagged values and which of them are there, ``[Q, B, R]``."""
        features, static = self._standard(params, window), jnp.asarray(window.static)
        tables = [jnp.take(table, static[:, c], axis=0) for c, table in enumerate(params.embeddings)]
        tables = [jnp.broadcast_to(table, (*features.shape[:-1], table.shape[-1])) for table in tables]
        fresh = jnp.asarray(window.start)[..., None]
        dtype = wide_dtype(params.network)
        parts = [fresh, features, jnp.asarray(window.observed), *tables]
        return jnp.concatenate([jnp.asarray(part, dtype) for part in parts], -1)

    def _standard(self, params: ForecasterParams, window: Window) -> jax.Array:
        center, spread = jax.lax.stop_gradient((params.center, params.spread))
        return (jnp.asarray(window.features) - center) / spread

    def anchored(self, z: Any, there: Any) -> Any:
        """Anchors ``[..., A]`` with the gaps filled by the next best: another season's, else the last value."""
        found = jnp.where(there, z, 0)
        known = jnp.any(there, -1, keepdims=True)
        mean = jnp.sum(found, -1, keepdims=True) / jnp.maximum(jnp.sum(there, -1, keepdims=True), 1)
        rest = 1.0 if self.scale == "mean_abs" else 0.0
        return jnp.where(there, found, jnp.where(known, mean, rest))

    def _say(
        self,
        params: ForecasterParams,
        ys: jax.Array,
        z: jax.Array,
        window: Window,
        first: np.ndarray,
        shift: jax.Array,
        scale: jax.Array,
    ) -> Any:
        """Distributions ``[origins, B]`` or ``[origins, horizon, B]``, from outputs of the network at the origins."""
        horizon = len(params.anchors) if self.direct else 1
        at = first[:, None, None] + self.anchor_offsets(horizon)  # [origins, horizon, A]
        there = jnp.moveaxis(jnp.asarray(window.mask)[at], -1, -2)  # [origins, horizon, B, A]
        anchors = self.anchored(jnp.moveaxis(z[at], -1, -2), there)
        if not self.direct:
            return self.say_next(params, ys, anchors[:, 0], shift, scale)
        features = self._standard(params, window)
        steps = first[:, None] - (len(window.values) - len(window.features)) + np.arange(horizon)
        return self.say_all(params, ys[:, None], anchors, there, features[steps], shift, scale)

    def say_next(self, params: ForecasterParams, ys: Any, anchors: Any, shift: Any, scale: Any) -> Any:
        """The distribution of the next value, from ``ys [..., F]`` and ``anchors [..., A]``."""
        return self.head.distribution(affine(params.head, ys), anchors @ params.anchors, shift, scale)

    def say_all(
        self, params: ForecasterParams, ys: Any, anchors: Any, there: Any, features: Any, shift: Any, scale: Any
    ) -> Any:
        """Distributions of all steps ahead: ``ys [origins, 1, B, F]``, ``anchors [origins, horizon, B, A]``."""
        decoder: Decoder = params.head
        own = affine(decoder.context, ys[:, 0])  # [origins, B, H * D]
        own = own.reshape(*own.shape[:-1], anchors.shape[1], _CONTEXT_SIZE)
        own = jnp.moveaxis(own, -2, 1)  # [origins, horizon, B, D]
        parts = [own, features, anchors, jnp.asarray(there, own.dtype)]
        hidden = jax.nn.gelu(affine(decoder.hidden, jnp.concatenate(parts, -1)) + decoder.step[:, None])
        location = jnp.sum(anchors * params.anchors[:, None], -1)
        return self.head.distribution(affine(decoder.out, hidden), location, shift, scale)


def _small(dense: Dense) -> Dense:
    """A head that begins by saying little."""
    return dense._replace(w=dense.w * 0.1)

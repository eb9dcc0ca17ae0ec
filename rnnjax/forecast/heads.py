r"""Heads: what a network says about a value that is still to come, as a distribution.

A head turns ``size`` raw numbers and a location (in units of the context's scale) into a distribution of its own kind,
in the units of the data. It has ``distribution``, ``loss`` (per value, in units of the scale), ``draw`` and ``cdf``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy import special, stats

from rnnjax.checks import check_real, short
from rnnjax.kinds import check_kinds

__all__ = ["Head", "NegativeBinomial", "Normal", "Quantiles", "StudentT"]

_SMALLEST = 1e-4  # of a spread, in units of the scale


class Head(Protocol):
    """What the model asks of a head."""

    @property
    def size(self) -> int:
        """Raw numbers for one value."""

    def distribution(self, raw: Any, location: Any, shift: Any, scale: Any) -> Any:
        """``raw [..., size]`` and the others ``[...]`` to a NamedTuple of arrays ``[...]`` or ``[..., Q]``."""

    def loss(self, found: Any, value: Any, scale: Any) -> Any:
        """``[...]``, the lower the better."""

    def draw(self, key: jax.Array, found: Any) -> Any:
        """``[...]``, one value each."""

    def cdf(self, found: Any, value: Any) -> Any:
        """``[...]``: the probability of a value that is no larger."""


class Located(NamedTuple):
    """A location and a spread in the units of the data, and degrees of freedom where there are any."""

    location: jax.Array
    spread: jax.Array
    freedom: Any = None


@dataclasses.dataclass(frozen=True)
class Normal:
    r"""``location + spread * e``, e standard normal.

    >>> found = Normal().distribution(jnp.zeros(2), jnp.ones(()), shift=0.0, scale=10.0)
    >>> float(found.location), round(float(Normal().cdf(found, 10.0)), 3)
    (10.0, 0.5)
    """

    size = 2

    def distribution(self, raw: Any, location: Any, shift: Any, scale: Any) -> Located:
        location = location + raw[..., 0]
        return Located(shift + scale * location, scale * (jax.nn.softplus(raw[..., 1]) + _SMALLEST))

    def loss(self, found: Located, value: Any, scale: Any) -> Any:
        return -stats.norm.logpdf(value, found.location, found.spread) - jnp.log(scale)

    def draw(self, key: jax.Array, found: Located) -> Any:
        return found.location + found.spread * jax.random.normal(key, found.location.shape, found.location.dtype)

    def cdf(self, found: Located, value: Any) -> Any:
        return stats.norm.cdf(value, found.location, found.spread)


@dataclasses.dataclass(frozen=True)
class StudentT:
    r"""``location + spread * e``, e of Student's t with more than two degrees of freedom, which are learned.

    Heavy tails: one outlier in the history moves what is learned less than under `Normal` (Alexandrov et al., 2020,
    GluonTS).
    """

    size = 3

    def distribution(self, raw: Any, location: Any, shift: Any, scale: Any) -> Located:
        freedom = 2.0 + jax.nn.softplus(raw[..., 2])
        return Normal().distribution(raw, location, shift, scale)._replace(freedom=freedom)

    def loss(self, found: Located, value: Any, scale: Any) -> Any:
        return -stats.t.logpdf(value, found.freedom, found.location, found.spread) - jnp.log(scale)

    def draw(self, key: jax.Array, found: Located) -> Any:
        shape = found.location.shape
        return found.location + found.spread * jax.random.t(key, found.freedom, shape, found.location.dtype)

    def cdf(self, found: Located, value: Any) -> Any:
        z = (value - found.location) / found.spread
        tail = 0.5 * special.betainc(found.freedom / 2, 0.5, found.freedom / (found.freedom + z**2))
        return jnp.where(z > 0, 1 - tail, tail)


class Counts(NamedTuple):
    """Mean and overdispersion: the variance is ``mean + dispersion * mean**2``."""

    mean: jax.Array
    dispersion: jax.Array


@dataclasses.dataclass(frozen=True)
class NegativeBinomial:
    r"""Counts 0, 1, 2, ... with a mean m and a variance ``m + a m**2`` (Salinas et al., 2020, DeepAR).

    The data must be counts, and the model scale by ``"mean_abs"``.
    """

    counts, size = True, 2

    def distribution(self, raw: Any, location: Any, shift: Any, scale: Any) -> Counts:
        # softplus(log(expm1(x))) is x: a location of one gives the context's mean.
        mean = jax.nn.softplus(0.5413 + 1.4 * (location - 1.0) + raw[..., 0])
        return Counts(scale * mean + 1e-6, jax.nn.softplus(raw[..., 1]) + _SMALLEST)

    def loss(self, found: Counts, value: Any, scale: Any) -> Any:
        r = 1 / found.dispersion
        logs = special.gammaln(value + r) - special.gammaln(r) - special.gammaln(value + 1)
        both = jnp.log(found.mean + r)
        return -(logs + r * (jnp.log(r) - both) + value * (jnp.log(found.mean) - both))

    def draw(self, key: jax.Array, found: Counts) -> Any:
        key_rate, key_count = jax.random.split(key)
        r = 1 / found.dispersion
        rate = jax.random.gamma(key_rate, r, found.mean.shape, found.mean.dtype) / r * found.mean
        return jax.random.poisson(key_count, rate, found.mean.shape).astype(found.mean.dtype)

    def cdf(self, found: Counts, value: Any) -> Any:
        r = 1 / found.dispersion
        inside = special.betainc(r, jnp.floor(jnp.maximum(value, 0.0)) + 1, r / (r + found.mean))
        return jnp.where(value < 0, 0.0, inside)


class Levels(NamedTuple):
    """Quantiles in the units of the data, in the order of the levels."""

    values: jax.Array  # [..., Q]


@dataclasses.dataclass(frozen=True)
class Quantiles:
    r"""Quantiles at given levels, learned by the pinball loss; they never cross.

        loss = mean over levels of 2 * max(level * (y - q), (level - 1) * (y - q)) / scale

    Draws and probabilities go in straight lines between the levels; beyond the outermost, tails are exponential.

    Args:
        levels: at least three, rising, within (0, 1); the middle one is where the location stands.

    Raises:
        ValueError: for other levels.
        TypeError: for what is no sequence of numbers.
    """

    levels: Sequence[float] = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)

    def __post_init__(self) -> None:
        check_kinds(self)
        levels = tuple(check_real("Quantiles", "every one of levels", level) for level in self.levels)
        rising = all(a < b for a, b in itertools.pairwise(levels))
        if len(levels) < 3 or not rising or not 0 < levels[0] < levels[-1] < 1:
            raise ValueError(f"Quantiles: levels must be three or more, rising, within (0, 1), got {short(levels)}.")
        object.__setattr__(self, "levels", levels)

    @property
    def size(self) -> int:
        return len(self.levels)

    def distribution(self, raw: Any, location: Any, shift: Any, scale: Any) -> Levels:
        middle = len(self.levels) // 2
        base = (location + raw[..., middle])[..., None]
        gaps = 0.5 * jax.nn.softplus(raw) + 0.1 * _SMALLEST
        below = jnp.flip(jnp.cumsum(jnp.flip(gaps[..., :middle], -1), -1), -1)
        above = jnp.cumsum(gaps[..., middle + 1 :], -1)
        values = jnp.concatenate([base - below, base, base + above], -1)
        return Levels(jnp.asarray(shift)[..., None] + jnp.asarray(scale)[..., None] * values)

    def loss(self, found: Levels, value: Any, scale: Any) -> Any:
        levels = jnp.asarray(self.levels, found.values.dtype)
        gap = jnp.asarray(value)[..., None] - found.values
        return jnp.mean(2 * jnp.maximum(levels * gap, (levels - 1) * gap), -1) / scale

    def draw(self, key: jax.Array, found: Levels) -> Any:
        least = jnp.finfo(found.values.dtype).tiny
        return self.quantile(found, jax.random.uniform(key, found.values.shape[:-1], found.values.dtype, least))

    def quantile(self, found: Levels, level: Any) -> Any:
        """The value at each ``level [...]``."""
        values, levels = found.values, jnp.asarray(self.levels, found.values.dtype)
        level = jnp.clip(level, 1e-6, 1 - 1e-6)
        right = jnp.clip(jnp.searchsorted(levels, level), 1, len(self.levels) - 1)
        low, high = (jnp.take_along_axis(values, at[..., None], -1)[..., 0] for at in (right - 1, right))
        share = (level - levels[right - 1]) / (levels[right] - levels[right - 1])
        inside = low + jnp.clip(share, 0.0, 1.0) * (high - low)
        down, up = self._tails(values)
        inside = inside + down * jnp.log(jnp.minimum(level / levels[0], 1.0))
        return inside - up * jnp.log(jnp.minimum((1 - level) / (1 - levels[-1]), 1.0))

    def cdf(self, found: Levels, value: Any) -> Any:
        values, levels = found.values, jnp.asarray(self.levels, found.values.dtype)
        value = jnp.asarray(value)
        right = jnp.clip(jnp.sum(values < value[..., None], -1), 1, len(self.levels) - 1)
        low, high = (jnp.take_along_axis(values, at[..., None], -1)[..., 0] for at in (right - 1, right))
        share = jnp.clip((value - low) / jnp.maximum(high - low, 1e-30), 0.0, 1.0)
        inside = levels[right - 1] + share * (levels[right] - levels[right - 1])
        down, up = self._tails(values)
        first, last = values[..., 0], values[..., -1]
        below = levels[0] * jnp.exp(jnp.minimum(value - first, 0.0) / down)
        above = 1 - (1 - levels[-1]) * jnp.exp(-jnp.maximum(value - last, 0.0) / up)
        return jnp.where(value < first, below, jnp.where(value > last, above, inside))

    def _tails(self, values: Any) -> tuple[Any, Any]:
        """Lengths over which the tails fall by e, so that the density goes on as it was in the outermost piece."""
        level = self.levels
        down = level[0] * (values[..., 1] - values[..., 0]) / (level[1] - level[0])
        up = (1 - level[-1]) * (values[..., -1] - values[..., -2]) / (level[-1] - level[-2])
        return jnp.maximum(down, 1e-30), jnp.maximum(up, 1e-30)

"""Bands that hold what they say: quantiles stretched about the median by what earlier forecasts missed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rnnjax.checks import short

__all__ = ["Calibration", "calibration_of"]

_MOST = 10.0  # times the width of before


class Calibration(NamedTuple):
    r"""How far each quantile has to stand from the median, in units of where the model puts it.

        q'_l = median + stretch_l * (q_l - median)

    with ``stretch_l`` such that a share ``l`` of known values lay below ``q'_l``: split conformal prediction (Vovk,
    Gammerman and Shafer, 2005; Romano, Patterson and Candes, 2019, for quantiles), one number a level for all steps and
    series, between a tenth and ten. It holds as far as what comes is like what it was made from.
    """

    levels: tuple[float, ...]
    stretch: np.ndarray  # float64 [L]

    def apply(self, quantiles: Any) -> np.ndarray:
        """Quantiles ``[..., L, horizon]`` at these levels, stretched; they still rise.

        Raises:
            ValueError: for another number of levels, or without the median among them.

        >>> found = np.array([[0.0], [10.0], [14.0]])
        >>> Calibration((0.1, 0.5, 0.9), np.array([1.0, 1.0, 2.0])).apply(found).ravel().tolist()
        [0.0, 10.0, 18.0]
        """
        quantiles = np.asarray(quantiles)
        if quantiles.ndim < 2 or quantiles.shape[-2] != len(self.levels):
            raise ValueError(
                f"Calibration.apply: quantiles must have shape [..., {len(self.levels)}, horizon], a row for each of "
                f"its levels {short(self.levels)}, got {quantiles.shape}."
            )
        if 0.5 not in self.levels:
            raise ValueError(f"Calibration.apply: 0.5 must be among the levels, got {short(self.levels)}.")
        middle = _middle(quantiles, self.levels)
        moved = middle + self.stretch[:, None] * (quantiles - middle)
        half = self.levels.index(0.5)
        above = np.maximum.accumulate(moved[..., half:, :], axis=-2)
        below = np.minimum.accumulate(moved[..., half::-1, :], axis=-2)[..., ::-1, :]
        return np.concatenate([below[..., :-1, :], above], axis=-2).astype(np.result_type(quantiles, np.float32))


def calibration_of(actual: Any, quantiles: Any, levels: tuple[float, ...]) -> Calibration:
    """The stretch that known values ask for.

    Args:
        actual: ``[..., horizon]``; NaN where a value is missing.
        quantiles: ``[..., L, horizon]``, NaN where nothing was said.
        levels: L, with 0.5 among them.
    """
    actual, quantiles = np.asarray(actual, float), np.asarray(quantiles, float)
    gaps = quantiles - _middle(quantiles, levels)
    misses = actual[..., None, :] - _middle(quantiles, levels)
    stretch = np.ones(len(levels))
    for n, level in enumerate(levels):
        gap, miss = gaps[..., n, :].ravel(), np.broadcast_to(misses, gaps.shape)[..., n, :].ravel()
        usable = np.isfinite(gap) & np.isfinite(miss) & (np.abs(gap) > 1e-12)
        if level == 0.5 or not usable.any():
            continue
        ratios = np.sort(miss[usable] / gap[usable])  # 1: the value lay at the quantile itself
        share = level if level > 0.5 else 1 - level
        rank = min(math.ceil((len(ratios) + 1) * share), len(ratios))
        stretch[n] = np.clip(ratios[rank - 1], 1 / _MOST, _MOST)
    return Calibration(tuple(levels), stretch)


def _middle(quantiles: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    at = levels.index(0.5)
    return quantiles[..., at : at + 1, :]

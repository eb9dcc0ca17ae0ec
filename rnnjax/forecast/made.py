"""A series for those who have none at hand: made by a formula, and measured nowhere."""

from __future__ import annotations

import numpy as np

from rnnjax.forecast.dates import Clock
from rnnjax.forecast.series import Series

__all__ = ["MADE", "made_series"]

MADE = "three meters, made: a day, a week, warmth and noise, with two faults in the second (nothing here is measured)"
_FAULTS = ((1, 1150, 0.25), (1, 1300, 1.8))  # series, hour, factor


def made_series() -> Series:
    """Nine weeks of hours at three meters; the warmth is a known covariate, and its future is there for a week."""
    hours, future = 24 * 63, 168
    at = np.arange(hours + future)
    draw = np.random.default_rng(20240101)
    warmth = 12 + 6 * np.sin(2 * np.pi * (at - 9) / 24) + 4 * np.sin(2 * np.pi * at / (24 * 17))
    values = []
    for meter in range(3):
        day = 1.0 + 0.5 * np.sin(2 * np.pi * (at - 8 - 2 * meter) / 24) + 0.2 * np.sin(4 * np.pi * (at - 6) / 24)
        week = np.where(at // 24 % 7 < 5, 1.0, (0.6, 1.25, 0.85)[meter])
        level = (40.0, 8.0, 150.0)[meter] * (1 + 0.0001 * at)
        noise = 1 + 0.04 * draw.standard_normal(len(at))
        values.append(level * (day * week + 0.02 * (18 - warmth)) * noise)
    for meter, hour, factor in _FAULTS:
        values[meter][hour] *= factor
    return Series(
        [row[:hours] for row in values],
        known=[warmth[:, None]] * 3,
        clock=[Clock(np.datetime64("2024-01-01T00:00:00"), 3600)] * 3,
        names=["office", "home", "works"],
    )

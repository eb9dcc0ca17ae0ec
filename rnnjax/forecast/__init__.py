"""Forecasts of many series of numbers: one recurrent network for all, which says how sure it is.

>>> import jax, numpy as np, rnnjax
>>> model = rnnjax.forecast.Forecaster(rnnjax.GRU(8), head=rnnjax.forecast.Normal(), season=12)
>>> series = [np.sin(np.arange(90) * 2 * np.pi / 12) + 2, np.cos(np.arange(70) * 2 * np.pi / 12) + 3]
>>> result = rnnjax.forecast.fit(model, series, horizon=6, key=jax.random.key(0), steps=2)
>>> rnnjax.forecast.sample(model, result.params, series, horizon=6, num_samples=9, key=jax.random.key(1)).shape
(2, 9, 6)
"""

from rnnjax.forecast import baselines, metrics
from rnnjax.forecast.backtesting import backtest, surprise
from rnnjax.forecast.dates import Clock
from rnnjax.forecast.heads import NegativeBinomial, Normal, Quantiles, StudentT
from rnnjax.forecast.marks import anomalies
from rnnjax.forecast.model import Forecaster
from rnnjax.forecast.sampling import quantiles, sample
from rnnjax.forecast.series import Series
from rnnjax.forecast.tables import from_table
from rnnjax.forecast.training import fit

__all__ = [
    "Clock",
    "Forecaster",
    "NegativeBinomial",
    "Normal",
    "Quantiles",
    "Series",
    "StudentT",
    "anomalies",
    "backtest",
    "baselines",
    "fit",
    "from_table",
    "metrics",
    "quantiles",
    "sample",
    "surprise",
]

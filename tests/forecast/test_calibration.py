"""Bands that are too narrow and are mended, and marks that are as rare as they say."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from rnnjax import forecast
from rnnjax.forecast import marks
from rnnjax.forecast.backtesting import Calibration, calibration_of
from tests.forecast.test_command import leaky, trained  # noqa: F401  (a fixture)

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)


def narrow(draw, windows):
    """Standard normal values, and quantiles that are half as wide below and a third as wide above."""
    shift = draw.normal(size=(windows, 1))
    actual = shift + draw.normal(size=(windows, 12))
    exact = stats.norm.ppf(LEVELS) * np.array([0.5, 0.5, 1, 1 / 3, 1 / 3])
    return actual, np.broadcast_to(shift[..., None] + exact[:, None], (windows, len(LEVELS), 12))


def test_stretch_is_what_the_width_lacks() -> None:
    draw = np.random.default_rng(0)
    actual, said = narrow(draw, 400)
    calibration = calibration_of(actual, said, LEVELS)
    np.testing.assert_allclose(calibration.stretch, [2, 2, 1, 3, 3], rtol=0.15)
    actual, said = narrow(draw, 400)
    for quantiles, inside in ((said, (0.35, 0.7)), (calibration.apply(said), (0.93, 0.97))):
        covered = np.mean((actual >= quantiles[:, 0]) & (actual <= quantiles[:, -1]))
        assert inside[0] < covered < inside[1]
    np.testing.assert_array_equal(calibration.apply(said)[:, 2], said[:, 2])  # the median stays
    whole = Calibration((0.1, 0.5, 0.9), np.array([1.5, 1, 1.5])).apply([[0], [1], [2]])
    assert whole.ravel().tolist() == [-0.5, 1, 2.5]  # of integers too


def test_stretched_quantiles_rise_and_missing_values_do_not_count() -> None:
    actual = np.array([[3.0, np.nan, 1.0]])
    said = np.array([[[-1.0] * 3, [0.0] * 3, [1.0] * 3]])
    calibration = calibration_of(actual, said, (0.1, 0.5, 0.9))
    assert calibration.stretch[2] == 3  # of two values, both have to lie within
    crossing = Calibration((0.1, 0.25, 0.5, 0.75, 0.9), np.array([0.5, 3, 1, 3, 0.5]))
    moved = crossing.apply(np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]]))
    assert moved.ravel().tolist() == [-3, -3, 0, 3, 3]
    with pytest.raises(ValueError, match=r"must have shape \[\.\.\., 5, horizon\]"):
        crossing.apply(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"0\.5 must be among the levels"):
        Calibration((0.1, 0.9), np.ones(2)).apply(np.zeros((2, 4)))


def test_each_window_is_calibrated_by_the_others(leaky) -> None:  # noqa: F811
    model, params, series = leaky
    options = {"horizon": 4, "windows": 3, "levels": (0.1, 0.5, 0.9)}
    raw = forecast.backtest(model, params, series, **options)
    table = forecast.backtest(model, params, series, calibrated=True, **options)
    actual = np.stack([row[58:] for row in series.values]).reshape(3, 3, 4).swapaxes(0, 1)  # [windows, N, horizon]
    ratios = (actual - raw.forecasts[:, :, 1]) / (raw.forecasts[:, :, 2] - raw.forecasts[:, :, 1])
    for k in range(3):
        known = np.sort(ratios[np.arange(3) != k].ravel())  # 24 of them: the 23rd is the least that holds 0.9 of 25
        wanted = raw.forecasts[k, :, 1] + known[22] * (raw.forecasts[k, :, 2] - raw.forecasts[k, :, 1])
        np.testing.assert_allclose(table.forecasts[k, :, 2], wanted, rtol=1e-5)
    np.testing.assert_array_equal(table.forecasts[:, :, 1], raw.forecasts[:, :, 1])
    assert raw.calibration is None and table.scores["model"]["mase"] == raw.scores["model"]["mase"]


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_limit_lets_as_many_false_alarms_pass_as_asked(scale) -> None:
    """Also of a model that is too sure of itself by a factor."""
    draw = np.random.default_rng(3)
    rows = scale * draw.exponential(1 / np.log(2), size=(40, 4000))
    count = [np.sum(bits >= marks.limit_of([bits], 2.0)) for bits in rows]
    assert 0.5 < np.mean(count) < 6
    assert marks.limit_of([draw.exponential(size=50)], 1.0) == 10  # too few to tell


def test_echo_of_a_fault_is_no_anomaly(leaky) -> None:  # noqa: F811
    """What is marked is hidden from the model, so that what comes after surprises as if the value were missing."""
    model, params, series = leaky
    spoilt = [row.copy() for row in series.values]
    spoilt[1][50] += 40
    found = forecast.anomalies(model, params, dataclasses.replace(series, values=spoilt))
    assert found.marked[1][50] and sum(row.sum() for row in found.marked) == 1 and found.bits[1][50] == 20
    spoilt[1][50] = np.nan
    without = forecast.surprise(model, params, dataclasses.replace(series, values=spoilt))
    np.testing.assert_array_equal(np.delete(found.bits[1], 50), np.delete(without[1], 50))


def test_a_fault_that_lasts_is_marked_to_its_end(leaky, monkeypatch) -> None:  # noqa: F811
    """It is longer than there are rounds; whatever is at the limit or above is marked, and nothing else is."""
    model, params, series = leaky

    def surprise(model, params, series):
        rows = [np.where(np.isfinite(row), 1.0, np.nan) for row in series.values]
        rows[0][20:60] = np.where(np.isnan(rows[0][20:60]), np.nan, 15.0)
        return rows

    monkeypatch.setattr(marks, "surprise", surprise)
    found = forecast.anomalies(model, params, series)
    assert 10 <= found.limit <= 15 and found.marked[0].sum() >= 35
    for bits, marked in zip(found.bits, found.marked, strict=True):
        np.testing.assert_array_equal(marked, np.nan_to_num(bits) >= found.limit)

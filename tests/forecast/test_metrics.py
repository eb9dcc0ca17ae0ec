"""The measures, beside loops written from the published formulae; and M4's published baselines to the last digit."""

import csv
import gzip
import os
import pathlib

import numpy as np
import pytest

from rnnjax.forecast import baselines, metrics

M4 = pathlib.Path(os.environ.get("RNNJAX_M4", pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "m4"))


@pytest.fixture
def data():
    draw = np.random.default_rng(0)
    history, actual = draw.normal(5, 2, (3, 40)), draw.normal(5, 2, (3, 7))
    return history, actual, actual + draw.normal(0, 1, actual.shape)


def scale(history, season, power):
    """The mean over t = season + 1, ..., n of the seasonal differences."""
    terms = [abs(history[t] - history[t - season]) ** power for t in range(season, len(history))]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("season", [1, 4])
def test_point_errors_are_those_of_the_formulae(data, season) -> None:
    history, actual, forecast = data
    for k in range(3):
        n = len(actual[k])
        errors = [abs(y - f) for y, f in zip(actual[k], forecast[k], strict=True)]
        mase = sum(errors) / n / scale(history[k], season, 1)
        rmsse = (sum(e**2 for e in errors) / n / scale(history[k], season, 2)) ** 0.5
        smape = 2 / n * sum(e / (abs(y) + abs(f)) for e, y, f in zip(errors, actual[k], forecast[k], strict=True)) * 100
        np.testing.assert_allclose(metrics.mase(actual, forecast, history, season)[k], mase)
        np.testing.assert_allclose(metrics.rmsse(actual, forecast, history, season)[k], rmsse)
        np.testing.assert_allclose(metrics.smape(actual, forecast)[k], smape)


def test_quantile_losses_are_those_of_the_formulae(data) -> None:
    history, actual, forecast = data
    levels = (0.1, 0.5, 0.9)
    quantiles = np.stack([forecast - 1, forecast, forecast + 2], axis=1)
    for k in range(3):
        total = 0.0
        for level, row in zip(levels, quantiles[k], strict=True):
            for y, q in zip(actual[k], row, strict=True):
                total += 2 * ((1 - level) * (q - y) if q > y else level * (y - q))
        np.testing.assert_allclose(
            metrics.wql(actual, quantiles, levels)[k], total / sum(map(abs, actual[k])) / len(levels)
        )
        low, high = quantiles[k, 0], quantiles[k, 2]
        interval = 0.0
        for y, l, u in zip(actual[k], low, high, strict=True):
            interval += u - l + (2 / 0.2 * (l - y) if y < l else 0) + (2 / 0.2 * (y - u) if y > u else 0)
        np.testing.assert_allclose(
            metrics.msis(actual, quantiles[:, 0], quantiles[:, 2], history, 4, level=0.8)[k],
            interval / 7 / scale(history[k], 4, 1),
        )
        inside = [l <= y <= u for y, l, u in zip(actual[k], low, high, strict=True)]
        assert metrics.coverage(actual, quantiles[:, 0], quantiles[:, 2])[k] == sum(inside) / 7


def test_crps_is_that_of_all_pairs_and_of_a_normal_distribution() -> None:
    draw = np.random.default_rng(1)
    samples, actual = draw.normal(size=(2, 30, 3)), draw.normal(size=(2, 3))
    found = metrics.crps(actual, samples)
    for k in range(2):
        terms = []
        for h in range(3):
            x = samples[k, :, h]
            terms.append(np.mean(np.abs(x - actual[k, h])) - np.mean(np.abs(x[:, None] - x[None])) / 2)
        np.testing.assert_allclose(found[k], np.mean(terms))
    # Closed form at the mean (Gneiting and Raftery, 2007): sd * (sqrt(2) - 1) / sqrt(pi).
    many = draw.normal(size=(1, 200_000, 1)) * 3
    np.testing.assert_allclose(metrics.crps(np.zeros((1, 1)), many)[0], 3 * (2**0.5 - 1) / np.pi**0.5, rtol=0.02)


def test_missing_values_do_not_count() -> None:
    y, f = np.array([1.0, np.nan, 3.0]), np.array([2.0, 9.0, 3.0])
    history = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    there = [0, 2]
    assert metrics.smape(y, f) == metrics.smape(y[there], f[there])
    assert metrics.mase(y, f, history) == 0.5 / 1.5  # of the pairs (1, 2) and (4, 6)
    assert metrics.coverage(y, f - 1, f + 1) == 1.0
    assert metrics.coverage(y, f + 5, f + 6) == 0.0
    assert metrics.smape(np.zeros(2), np.zeros(2)) == 0
    assert metrics.owa(5.0, 2.0, 10.0, 1.0) == 1.25
    np.testing.assert_array_equal(metrics.owa([5.0, 10.0], 2.0, 10.0, [1.0, 2.0]), [1.25, 1.0])
    with pytest.raises(TypeError, match=r"^owa: mase must be an array of numbers, got 'x'"):
        metrics.owa(5.0, "x", 10.0, 1.0)
    with pytest.raises(ValueError, match=r"^owa: all errors must be .* of one shape, got f64\[2\], f64\[3\]"):
        metrics.owa(np.ones(2), np.ones(3), 10.0, 1.0)


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"wql: forecast must have shape \[..., 2, 3\]"):
        metrics.wql(np.ones(3), np.ones((3, 2)), (0.1, 0.9))
    with pytest.raises(ValueError, match=r"wql: levels must lie within \(0, 1\), got \(0.1, 90"):
        metrics.wql(np.ones(3), np.ones((2, 3)), (0.1, 90))
    with pytest.raises(ValueError, match="find_season: every one of rows must have one axis"):
        baselines.find_season(np.ones(50))
    with pytest.raises(ValueError, match="must have the shape of actual"):
        metrics.smape(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="crps: samples"):
        metrics.crps(np.ones(3), np.ones((3, 2)))


def test_baselines_pass_over_what_is_missing() -> None:
    nan = np.nan
    assert baselines.seasonal_naive([1, 2, nan, 4, nan, nan], 4, season=3).tolist() == [4, 2, 4, 4]
    assert baselines.naive([1, nan], 2).tolist() == [1, 1]
    assert baselines.drift([nan, 1, nan, 3, nan], 2).tolist() == [5, 6]
    with pytest.raises(ValueError, match="must hold a value"):
        baselines.naive([nan], 1)


def test_naive2_takes_off_the_season_of_a_product() -> None:
    figure = np.array([0.5, 1.0, 1.5, 1.0])
    history = np.tile(figure, 10) * 8
    np.testing.assert_allclose(baselines.naive2(history, 6, 4), np.tile(figure, 2)[:6] * 8)
    assert baselines.naive2(np.arange(5.0), 2, 4).tolist() == [4, 4]  # too short for a test


def test_season_is_found_and_noise_has_none() -> None:
    at, draw = np.arange(24 * 60), np.random.default_rng(0)
    day, week = np.sin(2 * np.pi * at / 24), np.sin(2 * np.pi * at / 168)
    noise = draw.normal(size=len(at))
    assert baselines.find_season([day + 0.3 * noise + 0.01 * at]) == (24,)
    assert baselines.find_season([day + 0.7 * week + 0.1 * noise]) == (24, 168)
    assert baselines.find_season([noise]) == ()
    assert baselines.find_season([np.cumsum(noise)]) == ()
    assert baselines.find_season([np.ones(50)]) == ()
    assert baselines.find_season([np.ones(3)]) == ()


def m4(name):
    if not (M4 / f"{name}-train.csv.gz").is_file():
        pytest.skip(f"the M4 data are not in {M4}; name their folder in RNNJAX_M4")

    def rows(part):
        with gzip.open(M4 / f"{name}-{part}.csv.gz", "rt") as file:
            return [np.array([float(v) for v in row[1:] if v]) for row in list(csv.reader(file))[1:]]

    return rows("train"), rows("test")


# Makridakis et al. (2020), "Evaluation and Ranks" of the competition's repository.
@pytest.mark.parametrize(
    ("name", "method", "season", "smape", "mase"),
    [
        ("Hourly", "seasonal_naive", 24, 13.912, 1.193),
        ("Hourly", "naive2", 24, 18.383, 2.395),
        ("Hourly", "naive", 24, 43.003, 11.608),
        ("Weekly", "naive2", 1, 9.161, 2.777),
    ],
)
def test_baselines_of_m4_are_as_published(name, method, season, smape, mase) -> None:
    history, actual = m4(name)
    forecasts = [getattr(baselines, method)(row, len(actual[0]), season) for row in history]
    assert round(float(np.mean(metrics.smape(actual, forecasts))), 3) == smape
    found = [metrics.mase(y, f, row, season) for y, f, row in zip(actual, forecasts, history, strict=True)]
    assert round(float(np.mean(found)), 3) == mase

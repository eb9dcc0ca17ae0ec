"""The model: laws that windows, masks and the two ways to forecast must keep, and what may not be seen."""

import dataclasses

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax import forecast
from rnnjax.forecast.windows import Batches, Frames
from rnnjax.testing.problems import fast_jit

KEY = jax.random.key(0)
HEADS = [forecast.StudentT(), forecast.Normal(), forecast.NegativeBinomial(), forecast.Quantiles((0.1, 0.5, 0.9))]


def series(count=3, length=40, seed=0):
    draw = np.random.default_rng(seed)
    lengths = [length + 5 * n for n in range(count)]
    values = [draw.poisson(5 + n, size).astype(float) for n, size in enumerate(lengths)]
    values[0][7:9] = np.nan
    return forecast.Series(
        values,
        known=[draw.normal(size=(size + 8, 2)) for size in lengths],
        observed=[draw.normal(size=(size, 1)) for size in lengths],
        static=np.arange(count)[:, None] % 2,
        clock=[forecast.Clock(np.datetime64("2024-01-01"), 3600)] * count,
    )


def model(head=HEADS[1], **options):
    return forecast.Forecaster(rnnjax.GRU(5), head, season=4, context=12, embed_size=2, **options)


def params_of(forecaster, data, horizon=3):
    params = fast_jit(lambda: forecaster.init(KEY, horizon=horizon, **Frames(data, forecaster.seasons, 8).sizes))()
    # Nothing at zero, so that every part counts.
    params = jax.tree.map(lambda leaf, noise: leaf + 0.2 * noise, jax.device_get(params), normal_like(params))
    return params._replace(spread=np.abs(params.spread), holdout=np.zeros((), np.float32))


def normal_like(tree, seed=0):
    """Random numbers made by NumPy: each operation of JAX outside of a jit is compiled by itself."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), tree)


distributions = fast_jit(lambda forecaster, *arguments: forecaster.distributions(*arguments)[0], static_argnums=0)
loss_and_gradient = fast_jit(lambda forecaster, *a: jax.value_and_grad(forecaster.loss)(*a), static_argnums=0)


WAYS = [(HEADS[0], False), (HEADS[2], False), (HEADS[3], True)]


def ways(test):
    """Step by step with two heads, and all at once: what is tried is of the windows, and no matter of the head."""
    return pytest.mark.parametrize(("head", "direct"), WAYS)(test)


@ways
def test_loss_of_a_step_is_that_of_the_series_cut_off_before_it(head, direct) -> None:
    """Nothing behind a step, and no other series, has a part in what is said of it."""
    data = series()
    forecaster = model(head, direct=direct)
    params = params_of(forecaster, data)
    frames, origin, horizon = Frames(data, forecaster.seasons, 8), 20, 3
    ahead = 6
    window = frames.cut([0, 1, 2], [origin] * 3, forecaster.reach, 12, ahead)
    found = jax.eval_shape(forecaster.losses, params, window)[0]
    spoilt = dataclasses.replace(
        data,
        values=[np.where(np.arange(len(row)) >= origin + 2, 77.0, row) for row in data.values],
        observed=[np.where(np.arange(len(row))[:, None] >= origin, 99.0, row) for row in data.observed],
    )
    other = Frames(spoilt, forecaster.seasons, 8).cut([1, 2], [origin] * 2, forecaster.reach, 12, ahead)
    there = distributions(forecaster, params, window)
    here = distributions(forecaster, params, other)
    # Origins up to the spoilt values say the same of every step ahead of them.
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        a = a[:3, ..., 1:] if not isinstance(head, forecast.Quantiles) else a[:3, ..., 1:, :]
        np.testing.assert_allclose(a, b[:3], rtol=1e-4, atol=1e-5)
    assert found.shape == ((ahead - horizon + 1, horizon, 3) if direct else (ahead, 3))


@ways
def test_short_series_is_read_as_if_alone(head, direct) -> None:
    """Padding before the start of a series changes nothing, whatever the context."""
    data = forecast.Series([np.arange(1.0, 10.0), np.arange(2.0, 30.0)])
    forecaster = model(head, direct=direct)
    params = params_of(forecaster, data)
    longer = dataclasses.replace(forecaster, context=17)
    both = [
        distributions(
            forecaster_, params, Frames(data, (4,), 8).cut([0], [9], forecaster_.reach, forecaster_.context_used, 3)
        )
        for forecaster_ in (forecaster, longer)
    ]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_forecast_scales_with_its_series() -> None:
    data = forecast.Series([np.random.default_rng(0).normal(3, 1, 40)])
    for scale, shift in (("mean_abs", 0.0), ("mean_std", 50.0)):
        forecaster = model(scale=scale)
        params = params_of(forecaster, data)
        moved = forecast.Series([data.values[0] * 8 + shift])
        found = [forecast.sample(forecaster, params, one, horizon=5, num_samples=20, key=KEY) for one in (data, moved)]
        np.testing.assert_allclose(found[0] * 8 + shift, found[1], rtol=2e-3)


def test_constant_and_zero_series_have_finite_losses() -> None:
    data = forecast.Series([np.zeros(40), np.full(40, 3.0)])
    for scale in ("mean_abs", "mean_std"):
        forecaster = model(scale=scale)
        params = params_of(forecaster, data)
        window = Frames(data, (4,), 8).cut([0, 1], [30, 30], forecaster.reach, 12, 4)
        value, grads = loss_and_gradient(forecaster, params, window)
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_untrained_model_is_near_seasonal_naive() -> None:
    """The location begins as the value of one season ago."""
    row = np.tile([1.0, 4.0, 2.0, 8.0], 10)
    for direct in (False, True):
        forecaster = model(forecast.Quantiles(), direct=direct)
        params = forecaster.init(KEY, horizon=8, **Frames(forecast.Series([row]), (4,), 8).sizes)
        found = forecast.quantiles(forecaster, params, [row], horizon=8, levels=(0.5,), num_samples=400, key=KEY)[0, 0]
        assert np.corrcoef(found, row[:8])[0, 1] > 0.8


@pytest.mark.parametrize("head", [HEADS[0], HEADS[3]])
def test_drawn_paths_are_those_of_a_loop_of_one_step(head) -> None:
    """`sample` against the model run by hand: every step a window of its own, which ends in what was drawn so far."""
    data = series(count=2)
    forecaster = model(head)
    params = params_of(forecaster, data)
    horizon = 6  # beyond the season
    paths = forecast.sample(forecaster, params, data, horizon=horizon, num_samples=2, key=KEY)
    assert paths.shape == (2, 2, horizon) and len(np.unique(paths[:, :, 0])) > 1
    keys = jax.random.split(jax.random.fold_in(KEY, 0), horizon)
    for s in range(2):
        grown = [np.concatenate([row, path[s]]) for row, path in zip(data.values, paths, strict=True)]
        observed = [np.concatenate([o, np.full((horizon, 1), np.nan)]) for o in data.observed]
        longer = dataclasses.replace(data, values=grown, observed=observed)
        window = Frames(longer, forecaster.seasons, 2).cut([0, 1], data.lengths.tolist(), forecaster.reach, 12, horizon)
        found = jax.device_get(distributions(forecaster, params, window))
        for h in range(horizon):
            one = jax.tree.map(lambda a, h=h: np.repeat(a[h], 2, axis=0), found)
            drawn = head.draw(keys[h], one)[np.array([s, 2 + s])]
            np.testing.assert_allclose(paths[:, s, h], drawn, rtol=5e-3, atol=1e-3)


def test_direct_draws_follow_the_quantiles() -> None:
    data = series(count=2)
    forecaster = model(forecast.Quantiles((0.1, 0.5, 0.9)), direct=True)
    params = params_of(forecaster, data, horizon=6)
    levels = (0.1, 0.25, 0.5, 0.9)
    exact = forecast.quantiles(forecaster, params, data, horizon=6, levels=levels, key=KEY)
    paths = forecast.sample(forecaster, params, data, horizon=6, num_samples=4000, key=KEY)
    width = exact[:, 3] - exact[:, 0]
    drawn = np.moveaxis(np.quantile(paths, levels, axis=1), 0, 1)
    assert (np.abs(drawn - exact) < 0.1 * width[:, None]).all()


def test_batches_are_a_function_of_the_step_and_keep_to_the_training_part() -> None:
    data = series()
    frames = Frames(data, (4,), 8)
    ends = data.lengths - 10
    batches = Batches(frames, ends, 8, 12, 5, 16, KEY)
    one, again, other = batches(3), batches(3), batches(4)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one.values, other.values)
    last = [set(row[end:]) - set(row[:end]) for row, end in zip(data.values, ends, strict=True)]
    marked = dataclasses.replace(data, values=[row.copy() for row in data.values])
    for row, end in zip(marked.values, ends, strict=True):
        row[end:] = 1e6
    seen = np.concatenate([Batches(Frames(marked, (4,), 8), ends, 8, 12, 5, 16, KEY)(k).values for k in range(30)])
    assert seen.max() < 1e6 and last


def test_loss_trains_by_finite_differences(x64) -> None:
    data = series()
    for direct in (False, True):
        forecaster = model(direct=direct)
        params = jax.tree.map(lambda a: a.astype(np.float64), params_of(forecaster, data))
        window = Frames(data, (4,), 8).cut([0, 1], [25, 30], forecaster.reach, 12, 5)
        window = window._replace(
            values=window.values.astype(np.float64),
            features=window.features.astype(np.float64),
            observed=window.observed.astype(np.float64),
        )
        _, grads = jax.device_get(loss_and_gradient(forecaster, params, window))
        assert not np.any(grads.center) and not np.any(grads.holdout)
        direction = normal_like(params, seed=1)._replace(center=0 * params.center, spread=0 * params.spread)
        step = 1e-5
        up, down = (
            loss_and_gradient(forecaster, jax.tree.map(lambda a, d, s=s: a + s * d, params, direction), window)[0]
            for s in (step, -step)
        )
        along = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(along, (up - down) / (2 * step), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: forecast.Forecaster(rnnjax.GRU(3), forecast.Normal(), season=0), "season"),
        (lambda: forecast.Forecaster(rnnjax.GRU, forecast.Normal()), "network must be a cell"),
        (lambda: forecast.Forecaster(rnnjax.GRU(3), forecast.Normal), "head must be one"),
        (lambda: model(forecast.NegativeBinomial(), scale="mean_std"), "counts are scaled"),
        (lambda: model(scale="max"), "scale"),
        (lambda: model(lags=()), "at least one number"),
        (lambda: forecast.Series([]), "at least one series"),
        (lambda: forecast.Series([np.full(3, np.nan)]), "must hold a value"),
        (lambda: forecast.Series([[1.0, np.inf]]), "finite or NaN"),
        (lambda: forecast.Series([["a"]]), "must hold numbers"),
        (lambda: forecast.Series([np.ones(3)], known=[np.ones((2, 1))]), "at least 3 rows"),
        (lambda: forecast.Series([np.ones(3)], static=np.ones((1, 1))), "static must be integers"),
        (lambda: forecast.fit(model(), {"a": [1.0]}, horizon=2, key=KEY), "which column is what"),
        (lambda: forecast.fit(model(), [1.0, 2.0], horizon=2, key=KEY), "a list of arrays"),
        (lambda: forecast.fit(model(), [np.ones(9)], horizon=2, key=KEY, holdout=9), "longer than the 9"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(make, sentence) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


def test_horizons_that_are_not_covered_are_told() -> None:
    data = series()
    forecaster = model()
    params = params_of(forecaster, data)
    with pytest.raises(ValueError, match="at most 8, as far as the known covariates go, got 9"):
        forecast.sample(forecaster, params, data, horizon=9, key=KEY)
    direct = model(direct=True)
    with pytest.raises(ValueError, match="at most 3, which the direct model was trained for"):
        forecast.sample(direct, params_of(direct, data), data, horizon=4, key=KEY)
    with pytest.raises(ValueError, match="features that the model was trained with"):
        forecast.sample(forecaster, params, list(data.values), horizon=2, key=KEY)

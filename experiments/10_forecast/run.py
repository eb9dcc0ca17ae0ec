"""Can one small recurrent network forecast, and is it better than last year's value?

Without data: sunspots and CO2 (from statsmodels), each beside its baselines. With the M4 competition's files: one LSTM
for all hourly (or weekly) series at once, by the rules of the competition.

python -m experiments.10_forecast.run [--quick] [--data FOLDER/m4 [--part weekly]] [--out FOLDER] [--seed N]
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import rnnjax
from experiments import common
from rnnjax import forecast
from rnnjax.fit import OptimizerOptions
from rnnjax.forecast import baselines, metrics
from rnnjax.forecast.results import Panel, forecast_figure

from . import data

HERE = pathlib.Path(__file__).resolve().parent
DATASETS = {"m4": "Hourly-train.csv.gz and the like, of the repository Mcompetitions/M4-methods"}
LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)


class Settings(NamedTuple):
    """How long everything takes."""

    hidden: int = 32
    steps: int = 400
    batch_size: int = 32
    lr: float = 5e-3
    windows: int = 5
    series: int | None = None  # at most so many


# Fixed updates, so that the numbers do not hang on the speed of the machine.
M4 = {
    "hourly": Settings(hidden=64, steps=1200, batch_size=64, lr=3e-3),
    "weekly": Settings(hidden=48, steps=1500, batch_size=64, lr=3e-3),
}
QUICK = Settings(hidden=4, steps=2, batch_size=4, windows=1, series=3)


def model_of(settings: Settings, seasons: tuple[int, ...]) -> forecast.Forecaster:
    """An LSTM that says quantiles of all steps ahead at once."""
    return forecast.Forecaster(
        rnnjax.LSTM(settings.hidden), forecast.Quantiles(LEVELS), seasons, direct=True, scale="mean_std"
    )


def learn(case: data.Case, settings: Settings, seed: int) -> tuple[dict[str, Any], Panel]:
    """Trains on all but the last windows twice over: the first of them choose the parameters, the last measure them."""
    model, held = model_of(settings, case.season), settings.windows * case.horizon
    result = forecast.fit(
        model,
        case.series.until(case.series.lengths - held),
        horizon=case.horizon,
        key=jax.random.key(seed),
        steps=settings.steps,
        batch_size=settings.batch_size,
        holdout=held,
        evals=10,
        optimizer=OptimizerOptions(lr=settings.lr),
    )
    tested = forecast.backtest(
        model,
        result.params,
        case.series,
        horizon=case.horizon,
        windows=settings.windows,
        levels=LEVELS,
        calibrated=True,
    )
    raw = forecast.backtest(
        model, result.params, case.series, horizon=case.horizon, windows=settings.windows, levels=LEVELS
    )
    ahead = forecast.quantiles(
        model, result.params, case.series, horizon=case.horizon, levels=LEVELS, key=jax.random.key(seed)
    )
    ahead = tested.calibration.apply(ahead)
    values, clock = case.series.values[0], case.series.clock[0]
    times = clock.at(np.arange(len(values) + case.horizon))
    panel = Panel(f"{case.title} ({case.unit})", times, values, LEVELS, ahead[0], tested.forecasts[-1, 0])
    found = {"horizon": case.horizon, "windows": settings.windows, "values": int(case.series.lengths.sum())}
    found |= {"scores": tested.scores, "verdict": tested.verdict, "stretch": tested.calibration.stretch}
    found |= {"as_the_model_has_them": {name: raw.scores["model"][name] for name in ("wql", "cover80", "cover95")}}
    return found | {"best_step": result.best_step, "seconds": result.seconds}, panel


def scores(part: data.Competition, forecasts: Any) -> tuple[float, float]:
    """The competition's sMAPE and MASE: means over the series."""
    smape = float(np.mean(metrics.smape(part.future, forecasts)))
    rows = zip(part.future, forecasts, part.history, strict=True)
    return smape, float(np.mean([metrics.mase(y, f, past, part.season) for y, f, past in rows]))


def compete(part: data.Competition, settings: Settings, options: common.Options) -> tuple[dict[str, Any], list[Panel]]:
    """Trains one model on all series, forecasts what was kept back, and measures that by the rules."""
    history, future = part.history[: settings.series], part.future[: settings.series]
    part, horizon = part._replace(history=history, future=future), future.shape[1]
    model, cpu = model_of(settings, part.seasons), time.process_time()
    began = time.perf_counter()

    def report(row: dict[str, Any]) -> None:
        if row["kind"] == "train" and row["step"] % 200 == 0:
            common.say(options, f"step {row['step']:5}  loss {row['loss']:.4f}")

    result = forecast.fit(
        model,
        history,
        horizon=horizon,
        key=jax.random.key(options.seed),
        steps=settings.steps,
        batch_size=settings.batch_size,
        origins=24,
        holdout=0,
        optimizer=OptimizerOptions(lr=settings.lr),
        report=report,
    )
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - began}
    found = forecast.quantiles(
        model, result.params, history, horizon=horizon, levels=LEVELS, key=jax.random.key(options.seed)
    )
    rivals = {"naive": baselines.naive, "seasonal naive": baselines.seasonal_naive, "Naive2": baselines.naive2}
    measured = {
        name: scores(part, [rival(past, horizon, part.season) for past in history]) for name, rival in rivals.items()
    }
    measured["one LSTM"] = scores(part, found[:, LEVELS.index(0.5)])
    # Of the ends of what was trained on, since all of it was: the bands may come out a little too narrow still.
    ends = forecast.backtest(
        model, result.params, history, horizon=horizon, windows=settings.windows, levels=LEVELS, calibrated=True
    )

    def bands(found: Any) -> dict[str, float]:
        rows = zip(future, found, history, strict=True)
        width = [metrics.msis(y, q[0], q[-1], past, part.season) for y, q, past in rows]
        inside = {
            name: float(np.mean(metrics.coverage(future, found[:, low], found[:, -1 - low])))
            for name, low in (("cover80", 1), ("cover95", 0))
        }
        return {"msis": float(np.mean(width)), **inside}

    as_is, found = bands(found), ends.calibration.apply(found)
    panels = []
    for n in np.linspace(0, len(history) - 1, min(4, len(history))).astype(int):
        past = np.concatenate([history[n], future[n]])
        panels.append(Panel(f"series {n + 1}", np.arange(len(past)), past, LEVELS, None, found[n]))
    answer = {
        "series": len(history),
        "horizon": horizon,
        "measured": {name: {"smape": one[0], "mase": one[1]} for name, one in measured.items()},
        "published": {name: {"smape": one[0], "mase": one[1]} for name, one in part.published.items()},
        "bands": bands(found),
        "bands_as_the_model_has_them": as_is,
        "stretch": ends.calibration.stretch,
        "seconds_of_training": seconds,
    }
    return answer, panels


def main(argv: Sequence[str] | None = None) -> None:
    options = common.parse(
        argv,
        here=HERE,
        doc=__doc__,
        datasets=DATASETS,
        add=lambda parser: parser.add_argument("--part", choices=tuple(M4), default="hourly", help="of m4"),
    )
    question = "Can one small recurrent network forecast, and is it better than last year's value?"
    if options.data is None:
        settings = QUICK if options.quick else Settings()
        found, panels = {}, []
        for case in data.embedded():
            found[case.title], panel = learn(case, settings, options.seed)
            panels.append(panel)
            common.say(options, f"{case.title}: {found[case.title]['verdict']}")
        result = {"question": question, "settings": settings._asdict(), "cases": found}
        common.finish(options, result, {"forecast.png": forecast_figure(panels)})
        return
    name = options.extra["part"]
    settings = QUICK if options.quick else M4[name]
    found, panels = compete(data.m4(options.data, name), settings, options)
    for who, row in found["measured"].items():
        common.say(options, f"{who:16} sMAPE {row['smape']:.3f}  MASE {row['mase']:.3f}")
    result = {"question": question, "settings": settings._asdict(), **found}
    options = dataclasses.replace(options, dataset=f"m4_{name}")
    common.finish(options, result, {f"m4_{name}.png": forecast_figure(panels)})


if __name__ == "__main__":
    common.run(main)

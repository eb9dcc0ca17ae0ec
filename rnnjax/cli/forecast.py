"""``rnnjax forecast``: a file of series in; forecasts, a backtest, surprises and a page out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from typing import Annotated, Any, NamedTuple

import jax
import typer
from rich.console import Console

import rnnjax
from rnnjax.cells.registry import absolute_cell, cell_file
from rnnjax.checks import check_size
from rnnjax.cli.forecast_words import data_lines, facts, is_constant, say_results, which
from rnnjax.cli.options import FORECAST, SITE, TRUST_CODE, check_partners, given_options, options_command
from rnnjax.cli.training import claim, ran_on, settle, stop_on_signal
from rnnjax.files import digest, write_atomic
from rnnjax.fit import OptimizerOptions, Printer
from rnnjax.fit.checkpoint import find_checkpoints
from rnnjax.fit.folder import Replacement, check_code, own_folder, remember
from rnnjax.forecast.baselines import find_season
from rnnjax.forecast.files import Source, read_series
from rnnjax.forecast.results import compute_results, write_results
from rnnjax.forecast.run import ForecastConfig, ForecastOptions, ForecastPaths, make_forecaster
from rnnjax.forecast.series import Series, made_series
from rnnjax.forecast.tables import Columns
from rnnjax.forecast.training import fit
from rnnjax.options import option
from rnnjax.report.forecasts import forecast_page
from rnnjax.report.site import site_address
from rnnjax.user_code import code_digest

__all__ = ["forecast"]

_RESUMABLE = ("steps", "site")


class Data(NamedTuple):
    """Series, and what is known of where they are from."""

    series: Series
    source: Source | None  # None for the made ones
    sha256: str


class Begun(NamedTuple):
    """A run that is about to train; its folder belongs to this process."""

    paths: ForecastPaths
    config: ForecastConfig
    data: Data
    replaced: Replacement | None = None  # the run before it, until this one has its first checkpoint


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is forecast, and where it is written."""

    time: str | None = option(None, "Dates or numbers; by default the first column of dates.", "COLUMN")
    target: str | None = option(None, "What is forecast; by default the only column of numbers.", "COLUMN")
    by: str | None = option(None, "What tells several series apart.", "COLUMN")
    known: str | None = option(None, "Covariates whose future is known, separated by commas.", "COLUMNS")
    observed: str | None = option(None, "Covariates that are known up to now, separated by commas.", "COLUMNS")
    static: str | None = option(None, "Categories of the series, separated by commas.", "COLUMNS")
    horizon: int = option(48, "How far to forecast.", "STEPS")
    season: str | None = option(None, "Of a season, or of several (24,168), 1 for none; by default found.", "STEPS")
    out: str | None = option(None, "Folder of the run; by default runs/ and the time.", "FOLDER")
    force: bool = option(False, "Replace the run there.")
    resume: str | None = option(None, "Folder of a run to go on with, where it stopped.", "RUN")
    site: str | None = option(None, SITE, "ADDRESS")
    trust_code: bool = option(False, TRUST_CODE)


@options_command({"Options": _Task, "Model and training": ForecastOptions})
def forecast(
    call: typer.Context,
    file: Annotated[
        pathlib.Path | None,
        typer.Argument(
            metavar="FILE",
            help="A text file in columns (CSV, also gzip), the first line their names. None: series that are made.",
        ),
    ] = None,
    **options: Any,
) -> None:
    """Forecast series of numbers, and measure how good that is.

    One network learns from all series of the file. It forecasts what comes, with quantiles; what it said of the last
    windows, which it was not trained on, is compared with the naive, the seasonal naive and the drift forecast; and
    every value gets a number of bits by which it surprised.

    A gap in time or an empty field is a missing value. Rows behind the last value of the target bring the future of
    known covariates. The run folder holds forecasts and surprises as CSV, two pictures, a page, and the checkpoints.

    [bold]rnnjax forecast[/bold]                                  series that are made, as an example
    [bold]rnnjax forecast demand.csv --time date --target kwh --by meter --known holiday,price --horizon 48[/bold]
    [bold]rnnjax forecast --resume runs/demand --steps 3000[/bold]
    """
    given, resume = given_options(call), options["resume"]
    options["horizon"] = check_size("--horizon", "STEPS", options["horizon"])
    site_address(options["site"])
    if resume is not None and (wrong := sorted(given - {"resume", "trust_code", *_RESUMABLE})):
        raise ValueError(
            f"--{wrong[0].replace('_', '-')}: a run goes on with the options and the file that it began with, got "
            "another; leave it out, or start a new run."
        )
    with contextlib.ExitStack() as stack:
        begun = _begin(file, options, given, stack) if resume is None else _go_on(resume, options, given, stack)
        _run(begun, resume is not None, options["site"])


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _read(file: pathlib.Path | None, columns: Columns) -> Data:
    if file is None:
        if any([columns.target, columns.time, columns.by, columns.known, columns.observed, columns.static]):
            raise ValueError("forecast: columns are those of a file, got none; name the FILE.")
        series = made_series()
        return Data(series, None, digest([row.tolist() for row in series.values]))
    source = read_series(file, columns)
    return Data(source.series, source, source.sha256)


def _check_covariates(data: Data, horizon: int) -> None:
    """Raises the ValueError of known covariates that end before the horizon."""
    series, source = data.series, data.source
    if source is None or series.known is None:
        if source is None and series.future is not None and horizon > series.future:
            raise ValueError(f"--horizon: must be at most {series.future} for the made series, got {horizon}.")
        return
    for n, (row, values) in enumerate(zip(series.known, series.values, strict=True)):
        if len(row) - len(values) < horizon:
            raise ValueError(
                f"{source.place(source.ends[n].last)}: known covariates must go on for {horizon} steps behind the "
                f"last value, got {len(row) - len(values)}{which(series, n)}; append rows with an empty "
                f"{source.columns.target}, or lower --horizon."
            )


def _seasons(text: str | None, series: Series) -> tuple[int, ...]:
    if text is None:
        return find_season(series.values)
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < 1:
        raise ValueError(f"--season: must be steps as 24, or several as 24,168, got {text!r}.")
    return found


def _begin(file: pathlib.Path | None, options: dict[str, Any], given: set[str], stack: contextlib.ExitStack) -> Begun:
    """A new run; what was in its folder is put back if it does not get as far as its first checkpoint."""
    groups = (_split(options[name]) for name in ("known", "observed", "static"))
    data = _read(file, Columns(options["target"] or "", options["time"] or "", options["by"], *groups))
    horizon = options["horizon"]
    _check_covariates(data, horizon)
    own = {field.name: options[field.name] for field in dataclasses.fields(ForecastOptions)}
    chosen = ForecastOptions(**own | {"cell": absolute_cell(options["cell"])})
    check_partners(FORECAST, options, given)
    season = _seasons(options["season"], data.series)
    make_forecaster(chosen, season)
    _check_lengths(data, horizon)
    root, replaced = claim(options["out"], options["force"], "forecast", stack)
    paths = ForecastPaths(root)
    settle(root, replaced, "forecast", paths.names, stack)
    path = "" if data.source is None else os.path.abspath(data.source.path)
    columns = Columns("value") if data.source is None else data.source.columns
    about = {"season": "found by autocorrelation" if options["season"] is None else "as given", **ran_on()}
    about["rnnjax"] = rnnjax.__version__
    if (code := cell_file(chosen.cell)) is not None:
        about["code"] = code_digest(code)
    config = ForecastConfig(chosen, columns, horizon, season, path, data.sha256, about)
    config.write(paths.config)
    return Begun(paths, config, data, replaced)


def _check_lengths(data: Data, horizon: int) -> None:
    """Raises the ValueError of series that are too short, or never change."""
    series, source = data.series, data.source
    longest = int(series.lengths.argmax())
    least = 2 * horizon + 2
    if series.lengths[longest] < least:
        place = "forecast" if source is None else source.place(source.ends[longest].last)
        raise ValueError(
            f"{place}: a series must hold {least} values or more to learn {horizon} steps ahead, got at most "
            f"{int(series.lengths[longest])}; lower --horizon."
        )
    if all(is_constant(row) for row in series.values):
        place = "forecast" if source is None else source.place(source.ends[0].first)
        raise ValueError(
            f"{place}: a series must change from here on, got {series.values[0][0]:g} in all; there is "
            "nothing to learn."
        )


def _go_on(root: str, options: dict[str, Any], given: set[str], stack: contextlib.ExitStack) -> Begun:
    """The run in a folder, which must find its file as it was."""
    config, paths = ForecastConfig.read(root), ForecastPaths(pathlib.Path(root))
    stack.enter_context(own_folder(paths.root, "forecast"))
    paths.check("--resume")
    check_code(config.options.cell, config.about.get("code"), root, options["trust_code"])
    data = _read(pathlib.Path(config.path) if config.path else None, config.columns if config.path else Columns(""))
    if data.sha256 != config.file:
        raise ValueError(
            f"--resume: {config.path or 'the made series'} has changed since {root} was started; restore it, or "
            "start a new run."
        )
    if "steps" in given:
        chosen = dataclasses.replace(config.options, steps=options["steps"])
        config = dataclasses.replace(config, options=chosen)
    config.write(paths.config)
    return Begun(paths, config, data)


def _run(begun: Begun, resume: bool, site: str | None) -> None:
    paths, config, data, replaced = begun
    options, series, horizon = config.options, data.series, config.horizon
    model = make_forecaster(options, config.season)
    console = Console(highlight=False)
    about = facts(config, series, data.source, model)
    key_fit, key_results = jax.random.split(jax.random.key(options.seed))
    with Printer(console=console, log=paths.log) as printer:
        for line in data_lines(config, series, data.source, model):
            printer.say(line)
        printer.say(f"{about['model']}; run folder {paths.root}")

        def report(row: dict[str, Any]) -> None:
            if row["kind"] == "checkpoint" and replaced is not None:
                replaced.finish()
            printer(row)

        with stop_on_signal() as should_stop:
            result = fit(
                model,
                series,
                horizon=horizon,
                key=key_fit,
                steps=options.steps,
                batch_size=options.batch_size,
                holdout=min(options.windows * horizon, int(series.lengths.max()) // 2),
                optimizer=OptimizerOptions(lr=options.lr),
                folder=paths.root,
                resume=resume,
                report=report,
                should_stop=should_stop,
            )
        if result.reason == "stopped":
            printer.say(f"stopped, all is saved; go on with: rnnjax forecast --resume {paths.root}")
            return
        results = compute_results(
            model,
            result.params,
            series,
            horizon=horizon,
            windows=options.windows,
            samples=options.samples,
            key=key_results,
        )
        about["training"] = f"{result.step:,} updates, best at {result.best_step:,}, {result.seconds:.0f} seconds"
        write_results(results, paths, about)
        write_atomic(paths.report, forecast_page(paths, site).encode("utf-8"))
        say_results(results, printer)
        printer.say(
            f"forecasts {paths.forecast}, surprises {paths.surprise}, pictures {paths.picture} and "
            f"{paths.surprise_picture}, page {paths.report}"
        )
    found = find_checkpoints(paths.checkpoints)
    remember(paths.root, [f"checkpoints/{one.path.name}" for one in found])

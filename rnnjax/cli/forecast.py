"""``rnnjax forecast``: a file of series in; forecasts, a backtest, surprises and a page out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import platform
import time as clocks
from typing import Annotated, Any, NamedTuple

import jax
import typer
from rich.console import Console

import rnnjax
from rnnjax.cells.registry import absolute_cell, cell_file
from rnnjax.checks import check_size
from rnnjax.cli.forecast_words import data_lines, facts, is_constant, say_results, which
from rnnjax.cli.options import Site, TrustCode, options_command
from rnnjax.cli.partners import FORECAST, check_partners
from rnnjax.cli.stopping import stop_on_signal
from rnnjax.files import check_kind, digest, write_atomic
from rnnjax.fit import OptimizerOptions, Printer
from rnnjax.fit.checkpoint import find_checkpoints
from rnnjax.fit.folder import Replacement, own_folder, remember
from rnnjax.forecast.baselines import find_season
from rnnjax.forecast.files import Source, read_series
from rnnjax.forecast.made import made_series
from rnnjax.forecast.options import ForecastOptions, make_forecaster
from rnnjax.forecast.results import compute_results, write_results
from rnnjax.forecast.run import ForecastConfig, ForecastPaths
from rnnjax.forecast.series import Series
from rnnjax.forecast.tables import Columns
from rnnjax.forecast.training import fit
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


@options_command({"Model and training": ForecastOptions})
def forecast(
    call: typer.Context,
    file: Annotated[
        pathlib.Path | None,
        typer.Argument(
            metavar="FILE",
            help="A text file in columns (CSV, also gzip), the first line their names. None: series that are made.",
        ),
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Dates or numbers; by default the first column of dates.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="What is forecast; by default the only column of numbers.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="COLUMN", help="What tells several series apart.")] = None,
    known: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="Covariates whose future is known, separated by commas.")
    ] = None,
    observed: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="Covariates that are known up to now, separated by commas.")
    ] = None,
    static: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="Categories of the series, separated by commas.")
    ] = None,
    horizon: Annotated[int, typer.Option(metavar="STEPS", help="How far to forecast.")] = 48,
    season: Annotated[
        str | None,
        typer.Option(metavar="STEPS", help="Of a season, or of several (24,168), 1 for none; by default found."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of the run; by default runs/ and the time.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run there.")] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Folder of a run to go on with, where it stopped.")
    ] = None,
    site: Site = None,
    trust_code: TrustCode = False,
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
    given = {k for k in call.params if getattr(call.get_parameter_source(k), "name", "") == "COMMANDLINE"}
    horizon = check_size("--horizon", "STEPS", horizon)
    site_address(site)
    with contextlib.ExitStack() as stack:
        replaced = None
        if resume is not None:
            wrong = sorted(given - {"resume", "trust_code", *_RESUMABLE})
            if wrong:
                raise ValueError(
                    f"--{wrong[0].replace('_', '-')}: a run goes on with the options and the file that it began with, "
                    "got another; leave it out, or start a new run."
                )
            paths, config, data = _go_on(resume, options, given, trust_code, stack)
        else:
            columns = Columns(target or "", time or "", by, *map(_split, (known, observed, static)))
            data = _read(file, columns)
            _check_covariates(data, horizon)
            chosen = ForecastOptions(**{**options, "cell": absolute_cell(options["cell"])})
            check_partners(FORECAST, options, given)
            seasons = _seasons(season, data.series)
            about = {"season": "found by autocorrelation" if season is None else "as given"}
            paths, config, replaced = _begin(out, force, chosen, data, horizon, seasons, about, stack)
        _run(paths, config, data, resume is not None, replaced, site)


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


def _begin(
    out: str | None,
    force: bool,
    options: ForecastOptions,
    data: Data,
    horizon: int,
    season: tuple[int, ...],
    about: dict[str, str],
    stack: contextlib.ExitStack,
) -> tuple[ForecastPaths, ForecastConfig, Replacement | None]:
    """A new folder; what was in it is put back if the run does not get as far as its first checkpoint."""
    make_forecaster(options, season)
    _check_lengths(data, horizon)
    root = pathlib.Path(out or clocks.strftime("runs/%Y-%m-%d_%H-%M-%S"))
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and not force:
        raise ValueError(
            f"--out: {root} exists already; take another folder, --resume {root}, or --force to replace it."
        )
    if occupied and not root.is_dir():
        raise ValueError(f"--force: {root} is a file, which no run wrote, so it is left alone; take another folder.")
    replaced = None
    if occupied:
        replaced = Replacement(root, "--force")
        root = replaced.folder
        stack.enter_context(own_folder(root, "forecast"))
        stack.enter_context(replaced)
    stack.enter_context(own_folder(root, "forecast"))
    paths = ForecastPaths(root)
    remember(root, paths.names)
    path = "" if data.source is None else os.path.abspath(data.source.path)
    columns = Columns("value") if data.source is None else data.source.columns
    about |= {
        "started": clocks.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "rnnjax": rnnjax.__version__,
    }
    if (code := cell_file(options.cell)) is not None:
        about["code"] = code_digest(code)
    config = ForecastConfig(options, columns, horizon, season, path, data.sha256, about)
    config.write(paths.config)
    return paths, config, replaced


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


def _go_on(
    root: str, options: dict[str, Any], given: set[str], trust_code: bool, stack: contextlib.ExitStack
) -> tuple[ForecastPaths, ForecastConfig, Data]:
    """The run in a folder, which must find its file as it was."""
    config = ForecastConfig.read(root)
    stack.enter_context(own_folder(pathlib.Path(root), "forecast"))
    for name in ForecastPaths(pathlib.Path(root)).names:
        check_kind(pathlib.Path(root, name), "--resume")
    code = cell_file(config.options.cell)
    if code is not None and not trust_code:
        raise ValueError(
            f"--resume: the cell of {root} is Python code in {code}, which a run folder alone does not start; if you "
            "trust that file, add --trust-code."
        )
    if code is not None and code_digest(code) != config.about.get("code"):
        raise ValueError(f"--resume: the code in {code} is not what {root} began with; restore it, or start a new run.")
    data = _read(pathlib.Path(config.path) if config.path else None, config.columns if config.path else Columns(""))
    if data.sha256 != config.file:
        raise ValueError(
            f"--resume: {config.path or 'the made series'} has changed since {root} was started; restore it, or "
            "start a new run."
        )
    if "steps" in given:
        chosen = dataclasses.replace(config.options, steps=options["steps"])
        config = dataclasses.replace(config, options=chosen)
    paths = ForecastPaths(pathlib.Path(root))
    config.write(paths.config)
    return paths, config, data


def _run(
    paths: ForecastPaths,
    config: ForecastConfig,
    data: Data,
    resume: bool,
    replaced: Replacement | None,
    site: str | None,
) -> None:
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
                holdout=_holdout(series, options.windows * horizon),
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
    found = find_checkpoints(paths.root / "checkpoints")
    remember(paths.root, [f"checkpoints/{one.path.name}" for one in found])


def _holdout(series: Series, wanted: int) -> int:
    """Values that are held out: as wanted, but at most half of the longest series."""
    return min(wanted, int(series.lengths.max()) // 2)

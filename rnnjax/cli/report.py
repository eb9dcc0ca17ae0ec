"""``rnnjax report``: a trained run as one HTML file."""

from __future__ import annotations

import pathlib
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rnnjax.analysis.labels import label_from_name
from rnnjax.analysis.recording import leaves_of
from rnnjax.cli.analysis import RunText, read_text_of, symbol_model
from rnnjax.cli.options import Checkpoint, Site, TrustCode
from rnnjax.cli.output import echo
from rnnjax.files import write_atomic
from rnnjax.fit.folder import remember
from rnnjax.forecast.run import ForecastPaths, is_forecast_run
from rnnjax.lm.run import Run, open_run
from rnnjax.report import ReportOptions, collect_run, page
from rnnjax.report.collect import STEPS, ReportText, asked_units
from rnnjax.report.forecasts import forecast_page
from rnnjax.report.page import page_size
from rnnjax.report.site import site_address

__all__ = ["report"]

_LINE = 300  # symbols, within which a line should begin


def report(
    runs: Annotated[list[pathlib.Path], typer.Argument(metavar="RUN", help="Folders of trained runs.")],
    out: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="FILE", help="The file. By default report.html in the folder of the first run."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A file (also gzip) or folder to show; repeat it for several. None: the validation text.",
        ),
    ] = None,
    symbols: Annotated[
        int, typer.Option(help="At most so many symbols of the text, from its start; 0 for all.", min=0)
    ] = 20_000,
    units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="UNIT", help="Units (L1.c.137) or leaves (L1.c) that the page must hold; repeat it for several."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="What to rank units by: a name, re:PATTERN, or file.py:function; repeat it. None: all names that "
            "suit the text, code or prose.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Units in the ranking of each label.", min=1)] = 10,
    shifts: Annotated[int, typer.Option(help="Controls of the ranking: shifts of each label.", min=1)] = 99,
    streams: Annotated[
        int, typer.Option(help="Pieces of the text that the ranking reads side by side; 1 is exact, and slower.", min=1)
    ] = 16,
    megabytes: Annotated[float, typer.Option(help="Size of the file, at most.")] = 5.0,
    site: Site = None,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
) -> None:
    """Write a page that shows a trained run from within; it opens from disk, with no server and no network.

    The text in the colours of any unit, of how much each character surprised, or of what two runs disagree on; what the
    network expected next; units ranked for every label; losses, gradient norms and samples of the training; gradient by
    lag; saturation of gates; Lyapunov exponents. Several runs are compared.

    The values of all units would not fit: the page holds those that tell the labels best and those that stand out in
    each layer, as many as the size allows, and --units for more.

    [bold]rnnjax report runs/demo[/bold]
    [bold]rnnjax report runs/lstm runs/gru --text book.txt --units L1.c.137 --out compare.html[/bold]
    """
    site_address(site)  # what is wrong with it is said before anything is computed
    if any(map(is_forecast_run, runs)):
        _report_forecast(runs, out, site)
        return
    if not 0.2 <= megabytes <= 1000:
        raise ValueError(f"--megabytes: must lie between 0.2 and 1000, got {megabytes:g}.")
    opened = [open_run(run, checkpoint=checkpoint, trust_code=trust_code) for run in runs]
    path = opened[0].paths.root / "report.html" if out is None else out
    _check_target(path)
    asked = [label_from_name(name) for name in label or ()]
    wanted = _divide(opened, units or [])
    size = int((megabytes * 1e6 - page_size()) / len(opened))
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn())
    data = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for run, name, own in zip(opened, _names(runs), wanted, strict=True):
            task = progress.add_task(f"{name}: text", total=len(STEPS) + 1)
            source = read_text_of(run, text, symbols)
            if not text:
                source = source._replace(name=f"{source.name} of {run.provenance.get('sources') or 'the run'}")
            source = _at_a_line(source)
            chosen = asked or source.default_labels()
            shown = ReportText(source.name, source.ids, source.starts, {one.name: source.label(one) for one in chosen})
            options = ReportOptions(own, top, size, shifts, streams)

            def advance(step: str, task: object = task, name: str = name) -> None:
                progress.update(task, advance=1, description=f"{name}: {step}")  # type: ignore[arg-type]

            data.append(collect_run(name, run, symbol_model(run), shown, options, advance))
            progress.update(task, completed=len(STEPS) + 1, description=f"{name}: done")
    content = page(data, site)
    if out is None:
        remember(path.parent, [path.name])
    for one in data:
        echo(
            f"{one['name']}: {one['count']:,} symbols of {one['text']['name']}, values of {len(one['units']):,} of "
            f"{one['total']:,} units"
        )
    _write(path, content)


def _write(path: pathlib.Path, content: str) -> None:
    write_atomic(path, data := content.encode("utf-8"))
    echo(f"report {path} ({len(data) / 1e6:.1f} MB), opens in any browser")


def _check_target(path: pathlib.Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--out: must be a file in a folder that exists, got {str(path)!r}.")


def _at_a_line(source: RunText) -> RunText:
    """From the first line that begins in the text, if it begins within a line."""
    symbols = source.vocabulary.symbols
    ends = [k for k, symbol in enumerate(symbols) if symbol == "\n"]
    if source.starts is not None or not len(source.before) or not ends or source.before[-1] in ends:
        return source
    found = np.flatnonzero(np.isin(source.ids[:_LINE], ends))
    if not len(found) or len(source.ids) < 2 * _LINE:
        return source
    cut = int(found[0]) + 1
    return source._replace(ids=source.ids[cut:], before=np.concatenate([source.before, source.ids[:cut]]))


def _report_forecast(runs: list[pathlib.Path], out: pathlib.Path | None, site: str | None) -> None:
    """The page of one forecast, from what lies in its folder."""
    if len(runs) > 1:
        raise ValueError(f"report: a forecast has a page of its own, got {len(runs)} runs; name one.")
    paths = ForecastPaths(runs[0])
    path = paths.report if out is None else out
    _check_target(path)
    _write(path, forecast_page(paths, site))


def _divide(runs: list[Run], names: list[str]) -> list[tuple[str, ...]]:
    """For each run those of the names that it has; every name must be one of some run."""
    known = []
    for run in runs:
        model = symbol_model(run)
        known.append(leaves_of(model.cell, model.params, model.inputs[0]))
    result: list[list[str]] = [[] for _ in runs]
    for name in names:
        problems = []
        for leaves, own in zip(known, result, strict=True):
            try:
                asked_units([name], leaves)
                own.append(name)
            except ValueError as error:
                problems.append(error)
        if len(problems) == len(runs):
            raise problems[0]
    return [tuple(own) for own in result]


def _names(paths: list[pathlib.Path]) -> list[str]:
    """Names of folders, and whole paths where those are not enough to tell them apart."""
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]

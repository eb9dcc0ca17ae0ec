"""``rnnjax forecast`` from a file to its page, stopped, resumed and replaced; backtests and surprises."""

import concurrent.futures
import csv
import dataclasses
import errno
import json
import os
import re

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax import forecast
from rnnjax.files import read_json, write_json
from rnnjax.fit.folder import own_folder
from rnnjax.forecast import baselines, metrics
from rnnjax.forecast.run import ForecastConfig, ForecastOptions, ForecastPaths
from rnnjax.forecast.tables import Columns
from rnnjax.report.forecasts import forecast_page
from tests.lm import tiny_run
from tests.report.runs import headings, make_site

TINY = ["--horizon", 4, "--steps", 6, "--hidden", 4, "--windows", 2, "--batch-size", 4, "--lr", 0.01]


def write_demand(path, meters=("east", "west")):
    draw = np.random.default_rng(0)
    rows = [["date", "meter", "kwh", "holiday"]]
    for m, meter in enumerate(meters):
        for k in range(64):
            value = 10 + 4 * np.sin(2 * np.pi * k / 8) * (m + 1) + 0.3 * draw.normal()
            time = np.datetime64("2024-01-01T00") + np.timedelta64(k, "h")
            if k == 40 and m == 0:
                value = 90.0
            if k != 30:
                rows.append([str(time).replace("T", " ") + ":00", meter, f"{value:.3f}" if k < 60 else "", k % 8 == 0])
    rows = [[*row[:3], str(int(row[3])) if isinstance(row[3], bool) else row[3]] for row in rows]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run from a file, and what the command said."""
    folder = tmp_path_factory.mktemp("demand")
    write_demand(folder / "demand.csv")
    return folder


def test_from_a_file_to_a_page(run, capsys) -> None:
    out = run / "run"
    # The covariate is left out at hour 30, where all is: a known one has to be there.
    found = tiny_run.rnnjax(
        capsys, "forecast", run / "demand.csv", "--target", "kwh", "--by", "meter", "--out", out, *TINY
    )
    assert found.code == 0, found.err
    words = " ".join(found.out.split())
    for piece in (
        "126 rows between semicolons",
        "kwh: 2 series of 60 values",
        "every hour from 2024-01-01 00:00 to 2024-01-03 11:00",
        "2 times are left out and count as missing, the first before",
        "line 32 of series east",
        "season: 8, found by autocorrelation",
        "backtest of 2 windows of 4",
        "seasonal naive",
        "bits or more, where chance alone has half a one",
    ):
        assert piece in words, piece
    assert "is better" in words
    rows = list(csv.DictReader((out / "forecast.csv").read_text().splitlines()))
    assert len(rows) == 8 and rows[0]["time"] == "2024-01-03 12:00" and rows[4]["series"] == "west"
    quantiles = [[float(row[k]) for k in row if k.startswith("q")] for row in rows]
    assert all(row == sorted(row) for row in quantiles) and rows[0]["median"] == rows[0]["q0.5"]
    surprises = list(csv.DictReader((out / "surprise.csv").read_text().splitlines()))
    assert len(surprises) == 120
    most = max(surprises, key=lambda row: float(row["surprise"] or 0))
    assert most["series"] == "east" and most["time"] == "2024-01-02 16:00"  # the planted one
    assert most["marked"] == "1"
    page = (out / "report.html").read_text()
    assert "Backtest" in page and "seasonal naive" in page and "http" not in page.replace("http-equiv", "")
    heads = re.findall(r'<th title="[^"]+">([^<]+)</th>', page)
    assert len(heads) >= 5 and re.findall(r"<dt>([^<]+)</dt><dd>[^<]{10,}</dd>", page)[-len(heads) :] == heads
    site = make_site(run / "site")
    again = tiny_run.rnnjax(capsys, "report", out, "--out", run / "linked.html", "--site", site)
    assert again.code == 0, again.err
    links = re.findall(r'href="(file:[^"#]+)#([^"]+)"', (run / "linked.html").read_text())
    assert len(links) == 2 and "<a" not in page.partition("</nav>")[2]
    for address, heading in links:
        assert address == f"{site.as_uri()}/course/10-forecasting.html" and heading in headings()["10-forecasting"]
    for command in (["forecast", *TINY], ["report", out], ["forecast", "--resume", out]):
        refused = tiny_run.rnnjax(capsys, *command, "--site", run)
        assert refused.code == 2 and "--site: must be an address" in " ".join(refused.err.split())
    assert (out / "forecast.png").stat().st_size > 5000 and (out / "surprise.png").stat().st_size > 5000


def test_stopped_and_resumed_is_as_if_never_stopped(run, capsys, tmp_path, monkeypatch) -> None:
    write_demand(tmp_path / "demand.csv", ("east",))
    (tmp_path / "mine.py").write_text("import rnnjax\n\n\nclass Mine(rnnjax.GRU):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    command = ["forecast", "demand.csv", "--target", "kwh", "--cell", "mine.py:Mine"]
    whole = tiny_run.rnnjax(capsys, *command, "--out", tmp_path / "whole", *TINY)
    half = tiny_run.rnnjax(capsys, *command, "--out", tmp_path / "half", *TINY)
    assert whole.code == half.code == 0
    first = (tmp_path / "half" / "forecast.csv").read_text()
    assert (tmp_path / "whole" / "forecast.csv").read_text() == first  # the same seed, the same bits
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # file and cell are found from anywhere
    more = tiny_run.rnnjax(capsys, "forecast", "--resume", tmp_path / "half", "--trust-code", "--steps", 9)
    assert more.code == 0 and "9  done" in more.out, more.err
    assert (tmp_path / "half" / "forecast.csv").read_text() != first or "best at step" in more.out

    config = tmp_path / "half" / "config.json"
    kept = config.read_bytes()
    data = read_json(config, "test")
    write_json(config, data | {"options": data["options"] | {"lr": 0.5}})  # signed again, and another training
    other = tiny_run.rnnjax(capsys, "forecast", "--resume", tmp_path / "half", "--steps", 12, "--trust-code")
    assert other.code == 2 and "holds another run, whose batches is" in other.err
    config.write_bytes(kept)

    again = tiny_run.rnnjax(capsys, "forecast", "--resume", tmp_path / "half", "--hidden", 8)
    assert again.code == 2 and "--hidden: a run goes on with the options" in again.err
    (tmp_path / "demand.csv").write_text((tmp_path / "demand.csv").read_text().replace("90.000", "91.000"))
    monkeypatch.chdir(tmp_path)
    changed = tiny_run.rnnjax(capsys, "forecast", "--resume", tmp_path / "half", "--trust-code")
    assert changed.code == 2 and "has changed since" in changed.err
    occupied = tiny_run.rnnjax(capsys, *command, "--out", tmp_path / "half", *TINY)
    assert occupied.code == 2 and "exists already" in occupied.err
    replaced = tiny_run.rnnjax(capsys, *command, "--out", tmp_path / "half", "--force", *TINY)
    assert replaced.code == 0 and (tmp_path / "half" / "report.html").is_file()
    page = tiny_run.rnnjax(capsys, "report", tmp_path / "half", "--out", tmp_path / "page.html")
    assert page.code == 0 and (tmp_path / "page.html").read_text().count("<svg") >= 2
    (tmp_path / "half" / "forecast.png").unlink()
    (tmp_path / "half" / "forecast.png").symlink_to(tmp_path / "demand.csv")
    linked = tiny_run.rnnjax(capsys, "forecast", "--resume", tmp_path / "half")
    assert linked.code == 2 and "forecast.png must be a file of its own, got a link" in linked.err
    (tmp_path / "half" / "config.json").write_text("{}")
    assert tiny_run.rnnjax(capsys, "forecast", "--resume", tmp_path / "half").code == 2


class Killed(BaseException):
    """As if the process were gone."""


def test_cut_short_at_any_file_or_disk_full_it_goes_on_to_the_same_bits(run, capsys, tmp_path, monkeypatch) -> None:
    """A file is written in one move; before some of these moves the process ends, or the disk says that it is full."""
    moves, move = [], os.replace
    fatal: dict[int, BaseException] = {}

    def moved(source, target, **more):
        moves.append(str(target))
        if len(moves) in fatal:
            raise fatal[len(moves)]
        return move(source, target, **more)

    monkeypatch.setattr(os, "replace", moved)
    write_demand(tmp_path / "demand.csv", ("east",))
    command = ["forecast", tmp_path / "demand.csv", "--target", "kwh", *TINY, "--out"]
    assert tiny_run.rnnjax(capsys, *command, tmp_path / "whole").code == 0
    count = len(moves)
    assert count >= 8 and any(name.endswith("config.json") for name in moves)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for number, error in ((2, Killed()), (count // 2, Killed()), (count - 1, full)):
        out = tmp_path / f"run{number}"
        moves.clear()
        fatal[number] = error
        if isinstance(error, Killed):
            with pytest.raises(Killed):
                tiny_run.rnnjax(capsys, *command, out)
            capsys.readouterr()
        else:
            found = tiny_run.rnnjax(capsys, *command, out)
            assert found.code == 2 and found.err.count("\n") == 1 and "No space left" in found.err, found
        fatal.clear()
        again = tiny_run.rnnjax(capsys, "forecast", "--resume", out)
        if again.code:  # there was no checkpoint yet
            assert again.code == 2 and again.err.count("\n") == 1, again
            again = tiny_run.rnnjax(capsys, *command, out, "--force")
        assert again.code == 0, again
        for name in ("forecast.csv", "surprise.csv"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        owned = own_folder(out, "forecast")
        other.submit(owned.__enter__).result()
        second = tiny_run.rnnjax(capsys, "forecast", "--resume", out)
        other.submit(owned.__exit__, None, None, None).result()
    assert second.code == 2 and second.err.count("\n") == 1 and "is in use by" in second.err, second


def test_failed_start_leaves_the_old_run(run, capsys, tmp_path) -> None:
    """--force removes nothing before the file has been read and judged."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine.txt").write_text("mine")
    found = tiny_run.rnnjax(capsys, "forecast", "--out", tmp_path / "old", "--force", *TINY)
    assert found.code == 2 and "mine.txt" in found.err and (tmp_path / "old" / "mine.txt").read_text() == "mine"
    for name, words in (("nope.csv", "there is no file"), ("old", "must be a file, got a folder; name a text file")):
        found = tiny_run.rnnjax(capsys, "forecast", tmp_path / name, "--out", tmp_path / "new", *TINY)
        assert found.code == 2 and words in found.err and not (tmp_path / "new").exists()


def test_a_folder_that_says_something_else(tmp_path) -> None:
    """Signed, and of other kinds than what is written: one sentence, and no layer is made."""
    paths = ForecastPaths(tmp_path)
    config = ForecastConfig(ForecastOptions(), Columns("y"), 4, (8,), "", "0" * 64, {"jax": "0"})
    config.write(paths.config)
    assert ForecastConfig.read(tmp_path) == config
    good = read_json(paths.config, "test")
    for change in (
        {"horizon": "4"}, {"season": [0]}, {"season": 8}, {"path": 3}, {"about": {"jax": [1]}}, {"about": 3},
        {"columns": {"target": 1}}, {"options": {"layers": 2**31 - 1}}, {"options": {"hidden": 2**30}},
    ):  # fmt: skip
        write_json(paths.config, good | change)
        with pytest.raises(ValueError, match=r"^forecast: .*config\.json does not hold the options of a forecast \("):
            ForecastConfig.read(tmp_path)
    for data in ({}, {"facts": {}, "scores": 3}, {"facts": {"a": 1}}):
        write_json(paths.result, data)
        with pytest.raises(ValueError, match=r"^report: .*result\.json does not hold the result of a forecast \("):
            forecast_page(paths)


def trained(values, observed=None, **options):
    series = forecast.Series(values, observed=observed)
    model = forecast.Forecaster(
        rnnjax.GRU(4), forecast.Quantiles((0.1, 0.5, 0.9)), season=8, context=16, direct=True, **options
    )
    result = forecast.fit(model, series, horizon=4, key=jax.random.key(0), steps=8, batch_size=8, holdout=12)
    return model, result.params, series


@pytest.fixture(scope="module")
def leaky():
    """A covariate that holds the value four steps ahead: whoever reads it behind the origin knows the future."""
    draw = np.random.default_rng(0)
    values = [5 + np.sin(np.arange(70) * 2 * np.pi / 8) + draw.normal(size=70) for _ in range(3)]
    planted = [np.concatenate([row[4:], row[-4:]])[:, None] for row in values]
    return trained(values, planted)


def test_backtest_sees_nothing_behind_an_origin(leaky) -> None:
    model, params, series = leaky
    table = forecast.backtest(model, params, series, horizon=4, windows=3, levels=(0.1, 0.5, 0.9))
    for k, origin in enumerate((58, 62, 66)):
        # All that lies behind the origin is something else now, the covariate's last four values above all.
        other = dataclasses.replace(
            series,
            values=[np.where(np.arange(70) < origin, row, 1e5) for row in series.values],
            observed=[np.where(np.arange(70)[:, None] < origin, row, -1e5) for row in series.observed],
        )
        again = forecast.backtest(model, params, other, horizon=4, windows=3, levels=(0.1, 0.5, 0.9))
        np.testing.assert_array_equal(table.forecasts[k], again.forecasts[k])
        alone = forecast.quantiles(
            model, params, series.until([origin] * 3), horizon=4, levels=(0.1, 0.5, 0.9), key=jax.random.key(9)
        )
        np.testing.assert_array_equal(table.forecasts[k], alone)
    seen = dataclasses.replace(series, observed=[np.zeros_like(row) for row in series.observed])
    # And it does read what lies before.
    blind = forecast.backtest(model, params, seen, horizon=4, windows=3, levels=(0.1, 0.5, 0.9))
    assert (blind.forecasts != table.forecasts).any()


def test_backtest_measures_what_the_metrics_say(leaky) -> None:
    model, params, series = leaky
    table = forecast.backtest(model, params, series, horizon=4, windows=2, levels=(0.1, 0.5, 0.9))
    own, theirs = [], []
    for k in range(2):
        for n, row in enumerate(series.values):
            origin = 70 - (2 - k) * 4
            actual, past = row[origin : origin + 4], row[:origin]
            own.append(metrics.mase(actual, table.forecasts[k, n, 1], past, 8))
            theirs.append(metrics.mase(actual, baselines.seasonal_naive(past, 4, 8), past, 8))
    np.testing.assert_allclose(table.scores["model"]["mase"], np.mean(own))
    np.testing.assert_allclose(table.scores["seasonal naive"]["mase"], np.mean(theirs))
    assert 0 <= table.scores["model"]["cover80"] <= 1
    assert len(table.windows) == 6 and str(table).count("\n") == 5


def test_verdict_names_the_baseline_and_what_was_trained_on(leaky) -> None:
    model, params, series = leaky
    late = forecast.backtest(model, params, series, horizon=4, windows=5)
    assert (
        "was trained on all but the last 12 values" in late.verdict and "holdout=20, or take 3 windows" in late.verdict
    )
    perfect = forecast.Series([np.tile([1.0, 5.0, 2.0, 7.0, 3.0, 3.0, 9.0, 4.0], 9)], observed=[np.zeros((72, 1))])
    assert forecast.backtest(model, params, perfect, horizon=4, windows=3).verdict.startswith(
        "Seasonal naive is better"
    )
    with pytest.raises(ValueError, match="must be longer than 5 windows of 4"):
        forecast.backtest(model, params, series.until([5] * 3), horizon=4, windows=5)


def test_surprise_marks_the_planted_value_alone(leaky) -> None:
    model, params, series = leaky
    spoilt = [row.copy() for row in series.values]
    spoilt[1][50] += 40
    spoilt[2][33] = np.nan
    changed = dataclasses.replace(series, values=spoilt)
    before, after = (forecast.surprise(model, params, one) for one in (series, changed))
    assert after[1][50] == 20 and before[1][50] < 10
    assert np.isnan(after[2][33]) and np.isnan(before[0][:8]).all() and np.isfinite(before[0][8:]).all()
    # Values before it, and other series, surprise as they did.
    np.testing.assert_allclose(after[1][8:50], before[1][8:50], atol=1e-3)
    np.testing.assert_allclose(after[0][8:], before[0][8:], atol=1e-3)


def test_held_out_values_are_never_trained_on() -> None:
    draw = np.random.default_rng(1)
    values = [draw.normal(size=60) for _ in range(2)]
    other = [np.concatenate([row[:48], draw.normal(size=12) * 50]) for row in values]
    model = forecast.Forecaster(rnnjax.GRU(3), forecast.Normal(), season=4)
    # One evaluation alone, at the end, chooses nothing.
    params = [
        forecast.fit(model, one, horizon=4, key=jax.random.key(0), steps=4, batch_size=4, holdout=12, evals=1).params
        for one in (values, other)
    ]
    for a, b in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("head", ["counts", "quantiles"])
def test_result_of_every_head_is_json(tmp_path, capsys, head) -> None:
    path = tmp_path / "y.csv"
    path.write_text("y\n" + "".join(f"{v}\n" for v in np.random.default_rng(0).poisson(9, 50)))
    command = ["forecast", path, "--head", head, "--recursive", "--season", "1", "--out", tmp_path / "run", *TINY]
    found = tiny_run.rnnjax(capsys, *command, "--samples", 20)
    assert found.code == 0 and "forecasts " in found.out, found
    command.remove("--recursive")
    if head == "quantiles":  # all steps at once, and exact: nothing is drawn
        found = tiny_run.rnnjax(capsys, *command, "--force", "--samples", 20)
        assert found.code == 2 and "--samples: does nothing without a model that draws" in found.err
    data = json.loads((tmp_path / "run" / "result.json").read_text())
    assert np.isfinite(data["series"][0]["forecast"]).all() and data["scores"]["naive"]["mase"] > 0

"""Tables and files of series: what is found in them, and the sentence for everything that is wrong with one."""

import gzip
import io

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax import forecast
from rnnjax.forecast.dates import Clock, calendar
from rnnjax.forecast.files import read_series
from rnnjax.forecast.marks import Anomalies
from rnnjax.forecast.results import Panel, forecast_figure, surprise_figure
from rnnjax.forecast.tables import Columns
from rnnjax.forecast.windows import Frames
from tests.lm import tiny_run

HOURS = np.datetime_as_string(np.datetime64("2024-03-01T00", "h") + np.arange(60).astype("timedelta64[h]"), unit="m")


def write(tmp_path, text, name="d.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_long_table_becomes_series_on_a_grid() -> None:
    table = {
        "meter": ["b", "a", "b", "a", "b", "a", "b"],
        "day": ["2024-01-01", "2024-01-05", "2024-01-02", "2024-01-06", "2024-01-04", "2024-01-07", "2024-01-05"],
        "kwh": [1, 10, 2, None, 4, 30, None],
        "price": [1, 2, 3, 4, 5, 6, 7],
        "kind": ["flat", "house", "flat", "house", "flat", "house", "flat"],
    }
    found = forecast.from_table(table, target="kwh", time="day", by="meter", static=["kind"])
    assert found.names == ("b", "a") and found.lengths.tolist() == [4, 3]
    np.testing.assert_equal(found.values[0], [1, 2, np.nan, 4])
    np.testing.assert_equal(found.values[1], [10, np.nan, 30])
    assert found.static.tolist() == [[0], [1]]
    assert str(found.clock[0]) == "day" and found.clock[1].start == np.datetime64("2024-01-05")
    left_out = "row 4: known covariates must be there .* got no 'price' at a time that is left out before 2024-01-04"
    with pytest.raises(ValueError, match=f"{left_out}.*; add a row with it"):
        forecast.from_table(table, target="kwh", time="day", by="meter", known=["price"])
    with pytest.raises(ValueError, match=r"row 1: times must rise .*; sort the rows, or name the column that tells"):
        forecast.from_table({name: column[1:] for name, column in table.items()}, target="kwh", time="day")
    table = {name: column[:3:2] + column[4::2] for name, column in table.items()}
    dense = {"kwh": [1, 2, None], "price": [1.0, 2.0, 3.0]}
    known = forecast.from_table(dense, target="kwh", known=["price"])
    assert known.lengths.tolist() == [2] and known.future == 1 and known.known[0].ravel().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("times", "text"),
    [
        (["2024-01-31", "2024-02-29", "2024-03-31"], "month"),
        (["2020-01-01", "2021-01-01", "2022-01-01"], "year"),
        (["2024-01-01", "2024-04-01", "2024-07-01"], "3 months"),
        (["2024-01-01", "2024-01-08", "2024-01-15"], "7 days"),
        (["2024-01-01 00:00", "2024-01-01 00:15", "2024-01-01 00:30"], "15 minutes"),
        ([1700, 1701, 1703, 1704], "1"),
    ],
)
def test_steps_of_time_are_found(times, text) -> None:
    found = forecast.from_table({"t": times, "y": np.arange(len(times))}, target="y", time="t")
    assert str(found.clock[0]) == text
    clock = found.clock[0]
    expected = np.array(times, "datetime64[s]") if isinstance(times[0], str) else np.array([1700, 1701, 1702, 1703])
    assert (clock.at(np.arange(len(expected))) == expected).all()


def test_calendar_turns_with_the_days() -> None:
    hours = calendar(Clock(np.datetime64("2024-01-01T00:00:00"), 3600), 24 * 14)
    assert hours.shape[1] == 8  # hour, weekday, day of the month and of the year
    np.testing.assert_allclose(hours[:, 0], np.sin(2 * np.pi * np.arange(24 * 14) / 24), atol=1e-6)
    weekday = np.arctan2(hours[:, 1], hours[:, 5]) / (2 * np.pi) * 7 % 7
    np.testing.assert_allclose(weekday[::24], np.arange(14) % 7, atol=1e-5)  # Monday, the 1st of January 2024
    assert calendar(Clock(0, 1, "numbers"), 5).shape == (5, 0)
    assert calendar(Clock(np.datetime64("2024-01-01"), 1, "months"), 5).shape == (5, 2)


@pytest.mark.parametrize(
    ("text", "delimiter", "dates", "value"),
    [
        ("t,y\n2024-01-01,1.5\n2024-01-02,2\n", "commas", "ISO 8601", 1.5),
        ("t;y\n31.01.2024 13:00;1,5\n31.01.2024 14:00;1.002,25\n", "semicolons", "DD.MM.YYYY HH:MM", 1.5),
        ("t\ty\n20240131\t1.5\n20240201\t2\n", "tabs", "YYYYMMDD", 1.5),
        ("t|y\n01/13/2024|1.5\n01/14/2024|2\n", "bars", "MM/DD/YYYY", 1.5),
        ("t,y\n1700000000,1.5\n1700003600,2\n", "commas", "seconds since 1970 (UTC)", 1.5),
        ("y,t\n1.5,2024-01-01T00:00Z\n2,2024-01-01T01:00Z\n", "commas", "ISO 8601", 1.5),
        ("t,y\n2024-01,1.5\n2024-02,NA\n2024-03,2\n", "commas", "YYYY-MM", 1.5),
    ],
)
def test_form_of_a_file_is_found(tmp_path, text, delimiter, dates, value) -> None:
    found = read_series(write(tmp_path, text), Columns("y", "t"))
    assert (found.delimiter, found.dates) == (delimiter, dates) and found.series.values[0][0] == value
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32-le"):
        wide = tmp_path / "wide.csv"
        wide.write_bytes(text.encode(encoding))
        np.testing.assert_equal(read_series(wide, Columns("y", "t")).series.values[0], found.series.values[0])
    packed = tmp_path / "d.csv.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    np.testing.assert_equal(read_series(packed, Columns("y", "t")).series.values[0], found.series.values[0])


def test_columns_and_ambiguous_days_are_guessed_where_one_fits(tmp_path) -> None:
    rows = "".join(f"0{k}/02/2024;a;{k}\n" for k in range(1, 6))  # daily if the day is first
    found = read_series(write(tmp_path, "when;name;load\n" + rows), Columns("", ""))
    assert (found.columns.time, found.columns.target, found.dates) == ("when", "load", "DD/MM/YYYY")
    assert str(found.series.clock[0]) == "day"


def test_changing_zone_is_taken_in_utc(tmp_path) -> None:
    text = "t,y\n2024-03-31T01:00+01:00,1\n2024-03-31T03:00+02:00,2\n2024-03-31T04:00+02:00,3\n"
    found = read_series(write(tmp_path, text), Columns("y", "t"))
    assert found.series.lengths.tolist() == [3] and "in UTC" in found.notes[0] and "line 3" in found.notes[0]


GOOD = "".join(f"{HOURS[k]},{k % 7},{k % 2}\n" for k in range(60))
BAD = {
    "text in the target": (GOOD.replace(f"{HOURS[4]},4", f"{HOURS[4]},four"), [], "line 6: 'kwh' must hold numbers"),
    "a time twice": (GOOD.replace(HOURS[5], HOURS[4]), [], "line 7: times must come once"),
    "unsorted": (GOOD.replace(HOURS[5], "2024-02-01T00:00"), [], "line 7: times must rise in a series"),
    "off the grid": (GOOD.replace(HOURS[5], "2024-03-01T05:07"), [], "line 7: times must be whole steps of one hour"),
    "no date": (GOOD.replace(HOURS[5], "yesterday"), [], "line 7: times must be dates"),
    "mixed zones": (GOOD.replace(HOURS[5], HOURS[5] + "Z"), [], "line 7: all times or none must have a time zone"),
    "far away": (GOOD.replace(HOURS[59], "2099-03-01T05:00"), [], "line 61: gaps must be short"),
    "fields": (GOOD.replace(f"{HOURS[9]},2,1", f"{HOURS[9]},2"), [], "line 11: there must be 3 fields"),
    "infinite": (GOOD.replace(f"{HOURS[4]},4", f"{HOURS[4]},inf"), [], "line 6: 'kwh' must hold finite"),
    "constant": ("".join(f"{h},5,0\n" for h in HOURS), [], "line 2: a series must change"),
    "short": ("".join(GOOD.splitlines(True)[:9]), [], "line 10: a series must hold 10 values or more"),
    "no value": ("".join(f"{h},,0\n" for h in HOURS), [], "line 2: a series must hold a value"),
    "future of covariates": (GOOD, ["--known", "holiday"], "line 61: known covariates must go on for 4 steps"),
    "a gap in a covariate": (
        GOOD.replace(f"{HOURS[9]},2,1", f"{HOURS[9]},2,"),
        ["--known", "holiday"],
        "line 11: known covariates must be there at every time, also where the target is missing, got no 'holiday' "
        "here; fill it in",
    ),
    "no such column": (GOOD, ["--by", "metre"], "line 1: there must be a column 'metre'"),
    "a column twice": (GOOD, ["--by", "kwh"], "'kwh' as several"),
    "a category that changes": (GOOD, ["--static", "holiday"], "line 3: 'holiday' must stay the same"),
    "season": (GOOD, ["--season", "day"], "--season: must be steps"),
    "head": (GOOD, ["--head", "cauchy"], "--head must be"),
    "cell": (GOOD, ["--cell", "lsmt"], "did you mean 'lstm'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_end_with_one_sentence(tmp_path, capsys, what) -> None:
    rows, options, sentence = BAD[what]
    path = write(tmp_path, "date,kwh,holiday\n" + rows)
    command = ["forecast", path, "--time", "date", "--target", "kwh", "--horizon", 4, "--out", tmp_path / "run"]
    found = tiny_run.rnnjax(capsys, *command, *options)
    assert found.code == 2 and sentence in found.err and len(found.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there must be a line that names the columns"),
        ("1,2\n3,4\n", "line 1: the first line must name the columns"),
        ("a,a\n3,4\n", "'a' twice"),
        ("t,y,z\n2024-01-01,1,2\n", "line 1: target must name the column to forecast, got none and 2"),
        ('t,y\n2024-01-01,"1\n', "line 2: the fields cannot be told apart"),
        ("t,y\n03/04/2024,1\n03/05/2024,1\n04/06/2024,1\n", "day from month"),
    ],
)
def test_files_of_another_form_are_told(tmp_path, capsys, text, sentence) -> None:
    found = tiny_run.rnnjax(capsys, "forecast", write(tmp_path, text), "--out", tmp_path / "run")
    assert found.code == 2 and sentence in found.err


def test_other_bytes_are_told(tmp_path, capsys) -> None:
    for content, sentence in ((b"t,y\n1,2\n3,\xff\xe9\n", "line 3: the text must be UTF-8"), (b"\x1f\x8bxx", "gzip")):
        (tmp_path / "d.csv").write_bytes(content)
        found = tiny_run.rnnjax(capsys, "forecast", tmp_path / "d.csv", "--out", tmp_path / "run")
        assert found.code == 2 and sentence in found.err
    assert tiny_run.rnnjax(capsys, "forecast", tmp_path / "none.csv").code == 2


def test_numbers_that_float32_does_not_hold_or_tell_apart() -> None:
    hour = np.arange(60)
    with pytest.raises(
        ValueError, match=r"^Series: numbers must lie within \+-1e\+18, got 1e\+20 in values\[1\]; divide"
    ):
        forecast.Series([hour, np.full(3, 1e20)])
    with pytest.raises(ValueError, match=r"^Series: numbers must lie within .* in known\[0\]; divide the series"):
        forecast.Series([hour], known=[np.full((60, 1), -1e19)])
    with pytest.raises(ValueError, match=r"^Series: static must be below 1,048,576, a row of a table each, got 4,294"):
        forecast.Series([hour], static=np.array([[2**32]]))
    counter = 1_234_567_890 + hour  # 128 lie between two numbers of float32 there
    with pytest.raises(
        ValueError, match=r"^Series: values must change by more than float32 can tell apart, got .* of 1 "
    ):
        Frames(forecast.Series([counter]), (1,), 4)
    Frames(forecast.Series([counter - counter[0], np.full(9, 3e9)]), (1,), 4)  # what never changes is told elsewhere


def test_a_season_that_no_series_holds_takes_no_memory() -> None:
    model = forecast.Forecaster(rnnjax.GRU(2), forecast.Normal(), season=10**9)
    with pytest.raises(
        ValueError, match=r"^fit: season and context must lie within a series, of 60 values at most, got "
    ):
        forecast.fit(model, [np.sin(np.arange(60.0))], horizon=2, key=jax.random.key(0), steps=1)


def test_many_columns_are_read_at_once(tmp_path) -> None:
    names = [f"c{k}" for k in range(20_000)]
    rows = "\n".join(",".join(["x"] * len(names)) for _ in range(2))
    with pytest.raises(ValueError, match="got none and 0 columns of numbers"):
        read_series(write(tmp_path, f"{','.join(names)}\n{rows}\n"), Columns("", ""))


def test_a_name_is_no_formula_and_dates_may_lie_far_ahead() -> None:
    times = np.datetime64("9999-12-30T00", "s") + np.arange(8).astype("timedelta64[D]")
    panel = Panel(r"$\frac{", times, np.arange(6.0), (0.1, 0.5, 0.9), np.ones((3, 2)), None)
    odd = Anomalies([np.ones(6)], 10.0, [np.arange(6) > 4])
    for figure in (forecast_figure([panel]), surprise_figure([panel], odd)):
        figure.savefig(data := io.BytesIO(), format="svg")
        assert b"frac" in data.getvalue()

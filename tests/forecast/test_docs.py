"""The page on forecasting runs, and its forecasts are what it says they are."""

import numpy as np

from tests.pages import blocks


def test_page_runs_and_says_what_it_measures(capsys) -> None:
    page = {"__name__": "page"}
    for code in blocks("docs/forecasting.md"):
        exec(compile(code, "forecasting.md", "exec"), page)
    said = capsys.readouterr().out
    assert page["paths"].shape == (3, 100, 24) and "480 24 hour" in said
    scores = page["table"].scores
    assert scores["model"]["mase"] < 0.5 * scores["naive"]["mase"] and page["table"].verdict in said
    # A day of the same shape at every level, within the noise of a tenth.
    truth = np.sin(2 * np.pi * np.arange(24) / 24)
    for level, cut, paths in ((3.0, 0, page["paths"][0]), (500.0, 300, page["paths"][2])):
        phase = np.roll(truth, -((960 - cut) % 24))
        assert np.abs(np.median(paths, axis=0) / level - (1 + 0.5 * phase)).max() < 0.25
    assert 0.5 < float(page["mase"](page["actual"], page["naive"], page["past"], season=24)) < 2
    assert sum(row.sum() for row in page["odd"].marked) < 10 and page["odd"].limit >= 10
    assert page["ahead"].shape == (3, 5, 24) and (np.diff(page["ahead"], axis=1) >= 0).all()

"""The commands that look inside a run, from end to end on a tiny one."""

import json
import re

import numpy as np
import pytest

from rnnjax.analysis import text_values
from rnnjax.analysis.labels import LABELS, label_text
from rnnjax.cli.analysis import read_text_of, symbol_model
from rnnjax.fit.folder import written
from rnnjax.lm.options import ModelOptions
from rnnjax.lm.run import open_run
from tests.analysis.pairs import pairs
from tests.lm.tiny_run import TEXT, make_run, rnnjax

QUICK = ("--streams", 1, "--shifts", 9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", model=ModelOptions(embed=0, hidden=4, layers=2))


def refused(capsys, *arguments):
    result = rnnjax(capsys, *arguments)
    assert result.code == 2 and "Traceback" not in result.err
    return " ".join(result.err.split())


def test_cells_ranks_units_and_holds_the_best(run, capsys):
    found = rnnjax(capsys, "cells", run, "--label", "vowel", "--top", 3, "--ablate", "--json", *QUICK)
    assert found.code == 0, found.err
    data = json.loads(found.out)
    (label,) = data["labels"]
    assert (data["text"], data["symbols"], label["label"], label["score"]) == ("validation text", 200, "vowel", "auc")
    ids = open_run(run).vocabulary.encode(TEXT[600:800])
    truth = label_text(LABELS["vowel"], TEXT[600:800])
    assert label["share"] == truth[100:].mean() and len(label["units"]) == 3
    for unit in label["units"]:
        values = text_values(symbol_model(open_run(run)), ids, [unit["unit"]], streams=1)[:, 0]
        exact = pairs(unit["direction"] * values[100:], truth[100:])
        assert abs(unit["score"] - exact) <= unit["error"] + 1e-6
    assert [one["units"][0] for one in label["ablation"]] == [unit["unit"] for unit in label["units"]]
    before = label["ablation"][0]["before"]
    evaluated = json.loads(rnnjax(capsys, "eval", run, "--json").out)["results"][0]
    assert abs(before["loss"] - evaluated["loss"]) < 1e-5 and before["closing_end"] is None


def test_cells_shows_tables(run, capsys, tmp_path):
    shown = rnnjax(capsys, "cells", run, "--label", "position", "--out", tmp_path / "p.png", *QUICK)
    assert shown.code == 0, shown.err
    assert re.search(r"correlation +first half +p\n", shown.out) and "Bar: 0." in shown.out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    text = tmp_path / "other.txt"
    text.write_text("ab\nce " * 40)
    (tmp_path / "mine.py").write_text("def after_a(text):\n    return [c == 'a' for c in text]\n")
    names = ("--label", f"{tmp_path}/mine.py:after_a", "--label", "newline")
    shown = rnnjax(capsys, "cells", run, text, *names, *QUICK)
    assert shown.code == 0, shown.err
    assert re.search(r"^after_a +L[12]\.[hcifgo]\.[0-3] +AUC", shown.out, re.MULTILINE)
    assert "200 symbols" in shown.out  # the model knows no blank: left out


def test_color_writes_digits_or_colors(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    plain = rnnjax(capsys, "color", run, "--unit", "L2.c.1", "--length", 60, "--out", tmp_path / "page.png")
    assert plain.code == 0 and "\x1b" not in plain.out
    legend, *lines = plain.out.splitlines()
    expected = TEXT[600:660].removesuffix("\n").split("\n")
    assert lines[::2] == expected and legend.startswith("L2.c.1: 0 is")
    model, ids = symbol_model(open_run(run)), open_run(run).vocabulary.encode(TEXT[600:660])
    values = text_values(model, ids, ["L2.c.1"], streams=1)[:, 0]
    digits = [int(d) for d in "".join(lines[1::2])]
    assert len(digits) == 60 and np.argmax(values) in np.flatnonzero(np.array(digits) == max(digits))
    assert np.corrcoef(digits, values)[0, 1] > 0.98
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.delenv("NO_COLOR")
    for name, value in (("FORCE_COLOR", "1"), ("COLORTERM", "truecolor"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    colored = rnnjax(capsys, "color", run, "--unit", "L1.f.0", "--length", 60)
    assert "\x1b[30;48;2;" in colored.out
    bare = re.sub(r"\x1b\[[0-9;]*m", "", colored.out).split("\n", 1)[1]
    assert bare.replace("\N{DOWNWARDS ARROW WITH TIP LEFTWARDS}", "").rstrip("\n") == TEXT[600:660].rstrip("\n")


def test_ablate_holds_units(run, capsys):
    units = ("--unit", "L1.c.0", "--unit", "L2.h.3", "--unit", "L1.h.1")
    held = rnnjax(capsys, "ablate", run, *units, "--label", "vowel", "--streams", 1, "--value", 0, "--json")
    assert held.code == 0, held.err
    rows = json.loads(held.out)["units"]
    assert [row["units"] for row in rows] == [["L1.c.0"], ["L2.h.3"], ["L1.h.1"], ["L1.c.0", "L2.h.3", "L1.h.1"]]
    assert rows[0]["after"]["loss"] != rows[0]["before"]["loss"] == rows[3]["before"]["loss"]
    shown = rnnjax(capsys, "ablate", run, *units, "--label", "vowel", "--streams", 1)
    assert "3 together" in shown.out and " to " in shown.out


def test_labels_see_what_stands_before_the_text(run, tmp_path):
    opened = open_run(run)
    source = read_text_of(opened, None, 50)
    assert source.vocabulary.decode(source.before) + source.vocabulary.decode(source.ids) == TEXT[:650]
    since = source.label(LABELS["position"])
    assert since[0] == 600 - TEXT[:601].rfind("\n") and len(since) == 50


@pytest.mark.parametrize("level", ["byte", "word"])
def test_symbols_of_other_levels(level, tmp_path, capsys):
    folder = make_run(tmp_path / "run", model=ModelOptions(embed=4, hidden=3), level=level)
    source = read_text_of(open_run(folder), None, 0)
    label = source.label(LABELS["newline"])
    symbols = open_run(folder).vocabulary.symbols
    assert label.tolist() == [symbols[k][-1] == "\n" for k in source.ids]
    shown = rnnjax(capsys, "color", folder, "--unit", "L1.h.0", "--length", 5)
    assert shown.code == 0, shown.err


def test_dynamics_print_tables_and_draw(capsys, tmp_path):
    run = make_run(tmp_path / "run", model=ModelOptions(cell="elman", embed=0, hidden=3))
    small = ("--length", 24, "--batch-size", 2)
    flow = rnnjax(capsys, "gradflow", run, *small, "--out", tmp_path / "g.png")
    assert flow.code == 0, flow.err
    assert re.search(r"^ *10 +[0-9.e+-]+ +[0-9.e+-]+ +[0-9.e+-]+$", flow.out, re.MULTILINE)
    spectrum = rnnjax(capsys, "lyapunov", run, *small, "--warmup", 4, "--count", 3, "--json")
    assert spectrum.code == 0, spectrum.err
    data = json.loads(spectrum.out)
    assert len(data["exponents"]) == 3 and data["exponents"] == sorted(data["exponents"], reverse=True)
    points = rnnjax(capsys, "fixedpoints", run, "--starts", 4, "--steps", 50)
    assert points.code == 0, points.err
    assert "searches ended in these points" in points.out
    for picture in (tmp_path / "g.png", run / "lyapunov.png", run / "fixedpoints.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert {"lyapunov.png", "fixedpoints.png"} <= written(run)


def test_bad_input_is_named(run, capsys, tmp_path):
    assert "known: quote, triple" in refused(capsys, "cells", run, "--label", "quotes")
    assert "there is no run in" in refused(capsys, "cells", tmp_path, "--label", "quote")
    assert "must have one number" in refused(capsys, "cells", run, "--label", "quote", *QUICK)  # never in this text
    assert "L1.c.0 to L1.c.3" in refused(capsys, "color", run, "--unit", "L1.c.4")
    assert "layers are L1 to L2" in refused(capsys, "ablate", run, "--unit", "L3.c.4")
    assert "name a unit such as L1.h.0" in refused(capsys, "color", run)
    assert "must hold or not, got position" in refused(capsys, "ablate", run, "--unit", "L1.c.0", "--label", "position")
    assert "mean or a number" in refused(capsys, "ablate", run, "--unit", "L1.c.0", "--value", "x")
    assert "and 5,000 are needed" in refused(capsys, "lyapunov", run, "--length", 5000)
    assert "one of the 20 symbols" in refused(capsys, "fixedpoints", run, "--symbol", "Z")

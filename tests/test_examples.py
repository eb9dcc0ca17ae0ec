"""The gallery: examples run in two updates and draw their pictures; with ``-m thorough`` all of them, and whole."""

import functools
import os
import re
import runpy
import subprocess
import sys

import pytest

import rnnjax
from tests.pages import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ALONE = {"forecast", "two_processes"}  # the one runs in tests/test_readme.py, the other starts processes
ALWAYS = {"csv_sequences", "own_cell", "seq2seq", "text"}  # the others, which compile for as long, with -m thorough
# What a whole run prints: a pattern with one number, and what it is at least, or at most.
GOOD = {
    "anomaly": (r"(\d) of 3 faults", 3, 3),
    "control": (r"learned ([\d.]+)", 0, 0.1),
    "csv_sequences": (r"([\d.]+)% of 150", 90, 100),
    "forecast": (r"squared error ([\d.]+)", 0, 0.08),
    "own_cell": (r"Clocks: squared error ([\d.]+)", 0, 0.003),
    "reinforcement": (r"the last five (\d+)%", 70, 80),
    "seq2seq": (r"(\d+)% of \d+ times", 80, 100),
    "tagging": (r"([\d.]+)% of the characters", 95, 100),
    "text": (r"([\d.]+) nats", 1, 2),
    "two_processes": (r"norm of parameters ([\d.]+)", 1, 1e4),
}


def two_updates(fit, *arguments, **options):
    return fit(*arguments, **options | {"steps": 2, "epochs": None})


def test_there_are_ten_and_all_are_in_the_gallery():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert {path.stem for path in EXAMPLES} == set(GOOD) and len(GOOD) == 10
    for path in EXAMPLES:
        assert f"../examples/{path.name}" in page
        lines = path.read_text(encoding="utf-8").splitlines()
        assert 20 <= len(lines) <= 40  # all of it: what it is, its data, the training, the prediction, the picture
        assert lines[0].startswith('"""') and lines[2].startswith(f"python examples/{path.name} [PICTURE]")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in ALWAYS else pytest.mark.thorough)
        for path in EXAMPLES
        if path.stem not in ALONE
    ],
)
def test_an_example_runs(path, monkeypatch, tmp_path, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.setattr(rnnjax.fit, "fit", functools.partial(two_updates, rnnjax.fit.fit))
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "picture.png")])
    runpy.run_path(str(path), run_name="__main__")
    matplotlib.pyplot.close("all")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert re.search(GOOD[path.stem][0], capsys.readouterr().out)


@pytest.mark.thorough
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_solves_its_problem(path, tmp_path):
    env = os.environ | {"MPLBACKEND": "agg"}
    command = [sys.executable, path, tmp_path / "picture.png"]
    result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not result.returncode, result.stderr
    pattern, least, most = GOOD[path.stem]
    found = {float(number) for number in re.findall(pattern, result.stdout)}
    assert len(found) == 1 and least <= min(found) <= most  # of two processes: the same
    assert (tmp_path / "picture.png").stat().st_size > 5000

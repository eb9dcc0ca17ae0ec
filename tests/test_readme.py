"""The code in the README runs, and the cell that a stranger adds; so does the API on one screen."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import rnnjax
from benchmarks import commands
from rnnjax import cli
from tests.pages import ROOT, blocks, of_cells, run_fresh

BLOCKS = blocks("README.md")


@pytest.mark.long
def test_the_readme_runs_from_its_first_block_to_its_last(tmp_path):
    """In a fresh process: the forecast beats the same hour of last week, and the cell is approved."""
    run_fresh(
        "README.md",
        after="guess, truth = np.asarray(forecast).ravel(), load[1840:1936]\n"
        "assert np.mean((guess - truth) ** 2) < 0.8 * np.mean((load[1672:1768] - truth) ** 2)",
        cwd=tmp_path,
    )


def test_the_api_on_one_screen_runs(tmp_path):
    after = "assert result.info.loss.shape == (2,) and ys.shape == (20, 32, 128) and type(cell) is rnnjax.LSTM"
    run_fresh("docs/api.md", after=after, cwd=tmp_path)


def test_the_first_program_is_the_example():
    example = (ROOT / "examples" / "forecast.py").read_text(encoding="utf-8")
    assert BLOCKS[0] in example


@pytest.fixture
def janet(tmp_path, monkeypatch):
    """The folder of a stranger, with the README's cell in a file."""
    (code,) = [block for block in BLOCKS if "class Janet:" in block]
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    (tmp_path / "janet.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return rnnjax.cells.cell_from_name("janet.py:Janet", 5)


@pytest.mark.quick
def test_the_cell_in_the_readme(janet):
    """As the README says it: approved by both checks, taken by the engines of affine cells, equal to its equations."""
    (checks,) = [block for block in BLOCKS if "check_laws(Janet" in block]
    exec(of_cells(checks), {"rnnjax": rnnjax, "Janet": type(janet)})
    assert {"scan", "fused"} <= set(rnnjax.implementations(janet))  # and what this machine has besides
    params, xs = janet.init(jax.random.key(0), 3), np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    _, ys = rnnjax.unroll(janet, params, janet.initial_state((2,)), xs)
    w_ih, w_hh, b = (np.asarray(leaf, np.float64) for leaf in params)
    h = np.zeros((2, 5))
    for t in range(6):
        f, g = np.split(xs[t] @ w_ih + b + h @ w_hh, 2, axis=-1)
        f = 1 / (1 + np.exp(-f))
        h = f * h + (1 - f) * np.tanh(g)
        np.testing.assert_allclose(ys[t], h, atol=1e-5)


def test_the_cell_in_the_readme_trains(janet, capsys):
    """The command of the README, with a small text and few steps; the model then goes on from its own file."""
    Path("text.txt").write_text("the cat sat on the mat. " * 60)
    options = ["--hidden", "8", "--batch-size", "2", "--chunk-len", "8", "--steps", "3", "--sample-length", "0"]
    commands = re.findall(r"^rnnjax (train --cell .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    training = (commands[0], ["text.txt", *options, "--out", "run"])
    for command, more in (training, ("sample run --length 20 --trust-code", [])):
        with pytest.raises(SystemExit) as caught:
            cli.main([*command.split(), *more])
        assert not caught.value.code
    assert len(capsys.readouterr().out.strip()) > 20


def test_the_cell_in_the_readme_is_measured(janet):
    """The benchmark command of the README, on one small shape."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m (benchmarks --cells \S*janet\S*)", text, re.M)
    small = ["--sizes", "4,2,3,5", "--rounds", "1", "--compile-rounds", "1", "--rivals", "none", "--out", "rows.json"]
    with pytest.raises(SystemExit) as ended:
        commands.main([*command.split()[1:], *small])
    assert not ended.value.code
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert {row["cell"] for row in rows} == {"lstm", "janet.py:Janet"}

"""The pictures show the numbers that they are given, and importing the package needs no matplotlib."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rnnjax.analysis.fixed_points import FixedPoints
from rnnjax.analysis.gradient_flow import GradientFlow
from rnnjax.analysis.jacobians import LyapunovSpectrum
from rnnjax.analysis.plots import plot_fixed_points, plot_gradient_flow, plot_lyapunov


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()  # what cannot be drawn fails here
    return figure


def lines(axes):
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}


def make_flow(rate: float, chunk_len: int | None = None) -> GradientFlow:
    lags = np.arange(1, 31)
    norm = 3 * rate**lags
    layers = np.stack([norm, 2 * norm], axis=-1)
    lost = None if chunk_len is None else 0.25
    return GradientFlow(lags, norm, norm, ("L1.h", "L2.h"), layers, layers, np.array([40]), chunk_len, lost)


def test_gradient_flow():
    flows = {"Elman": make_flow(0.5, 10), "LSTM": make_flow(0.9, 10)}
    axes = drawn(plot_gradient_flow(flows, title="by lag")).axes[0]
    found = lines(axes)
    np.testing.assert_allclose(found["Elman"], np.stack([np.arange(1, 31), 0.5 ** np.arange(30)], axis=-1))
    np.testing.assert_allclose(found["cut at 10: 25 %, 25 % lost"][:, 0], 10)
    assert axes.get_yscale() == "log" and axes.get_title() == "by lag"
    single = drawn(plot_gradient_flow(make_flow(0.5), layers=True)).axes[0]
    assert set(lines(single)) == {"layer 1", "layer 2"}


def test_lyapunov():
    each = np.array([[0.2, -0.5, -np.inf], [0.1, -0.7, -np.inf]])
    spectrum = LyapunovSpectrum(each.mean(axis=0), each, np.tile(each.mean(axis=0), (9, 1)))
    ranks, settling = drawn(plot_lyapunov({"a": spectrum})).axes
    np.testing.assert_allclose(lines(ranks)["a"], [[1, 0.15], [2, -0.6], [3, np.nan]])
    np.testing.assert_allclose(settling.lines[0].get_ydata(), np.full(9, 0.15))


def test_fixed_points():
    points = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0.5, 0], [0, -0.5, 0.01]])
    eigenvalues = np.array([[0.5, 0.1, 0], [0.6, 0.1, 0], [1.5, 0.1, 0], [0.9 + 0.1j, 0.9 - 0.1j, 0]])
    stable, fixed = np.array([True, True, False, False]), np.array([True, True, True, False])
    found = FixedPoints(points, None, np.zeros(4), fixed, eigenvalues, stable, np.ones(4, int), np.zeros(4), 0, 0.0)
    plane, spectrum = drawn(plot_fixed_points(found, states=np.concatenate([points, -points]))).axes
    named = lines(plane)
    assert named["stable (2)"].shape == (2, 2) and len(named["visited"]) == 8
    np.testing.assert_allclose(np.abs(named["stable (2)"]), [[1, 0], [1, 0]], atol=0.02)  # along the first component
    np.testing.assert_allclose(np.abs(named["unstable (1)"]), [[0, 0.5]], atol=0.02)
    np.testing.assert_allclose(lines(spectrum)["unstable (1)"], [[1.5, 0], [0.1, 0], [0, 0]])
    rest = (np.ones(1, int), np.zeros(1), 0, 0.0)
    one = FixedPoints(points[:1, :1], None, np.zeros(1), fixed[:1], eigenvalues[:1, :1], stable[:1], *rest)
    drawn(plot_fixed_points(one))
    with pytest.raises(ValueError, match="at least one point"):
        plot_fixed_points(found._replace(points=points[:0]))


def test_nothing_to_draw():
    for plot in (plot_gradient_flow, plot_lyapunov):
        with pytest.raises(ValueError, match="at least one entry to draw"):
            plot({})


def test_missing_matplotlib(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plot_gradient_flow(make_flow(0.5))


def test_import_needs_no_matplotlib():
    code = "import sys, rnnjax.analysis, rnnjax.analysis.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

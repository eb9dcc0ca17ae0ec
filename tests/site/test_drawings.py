"""Drawings of cells: their lines are the equations of the papers, and none runs through a box."""

import importlib
import re

import pytest

from rnnjax.cells import CELLS
from tests.pages import ROOT

# What each value is computed from, by the equations of the papers; a prime is the new state.
_LSTM = {gate: "h x" for gate in "ifgo"} | {"c'": "c f g i", "h'": "c' o"}
_GRU = {"r": "h x", "z": "h x", "n": "h r x", "h'": "h n z"}
WIRING = {
    "lstm": _LSTM,
    "conv_lstm": _LSTM,
    "projected_lstm": _LSTM,
    "mi_lstm": _LSTM,
    "layernorm_lstm": _LSTM,
    "diagonal_lstm": _LSTM,
    "peephole_lstm": _LSTM | {"i": "c h x", "f": "c h x", "o": "c' h x"},
    "coupled_lstm": {"f": "h x", "g": "h x", "o": "h x", "c'": "c f g", "h'": "c' o"},
    "slstm": {
        "z_i": "h x", "z_f": "h x", "g": "h x", "o": "h x", "m'": "m z_f z_i", "i": "m' z_i", "f": "m m' z_f",
        "c'": "c f g i", "n'": "f i n", "h'": "c' n' o",
    },
    "gru": _GRU,
    "gru_reset_before": _GRU,
    "layernorm_gru": _GRU,
    "diagonal_gru": _GRU,
    "mgu": {"f": "h x", "n": "f h x", "h'": "f h n"},
    "minimal_rnn": {"z": "x", "u": "h z", "h'": "h u z"},
    "min_gru": {"keep": "x", "add": "x", "n": "x", "h'": "add h keep n"},
    "min_lstm": {"keep": "x", "add": "x", "g": "x", "h'": "add g h keep"},
    "sru": {"f": "x", "add": "x", "n": "x", "r": "x", "c'": "add c f n", "y": "c' r x"},
    "lru": {"re'": "im re x", "im'": "im re x", "y": "im' re' x"},
    "highway": {"n0": "h x", "t0": "h x", "s1": "h n0 t0", "n1": "s1", "t1": "s1", "h'": "n1 s1 t1"},
    "elman": {"z_h": "h x", "h'": "z_h"},
    "indrnn": {"z_h": "h x", "h'": "z_h"},
    "leaky": {"z_n": "h x", "n": "z_n", "h'": "h n"},
    "mi_rnn": {"h'": "h x"},
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    """The module of the site that draws, and a small cell of each name as the site takes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        module, generated = importlib.import_module("drawing"), importlib.import_module("generated")
    options = {name: {**generated.SPECIAL.get(name, {}), **generated.DRAWN.get(name, {})} for name in CELLS}
    return module, {name: make(4, **options[name]) for name, make in CELLS.items()}


@pytest.mark.parametrize("name", CELLS)
def test_lines_are_the_equations(drawn, name):
    module, cells = drawn
    values, _, output = module._trace(cells[name], 3)
    assert {value: " ".join(sorted(wanted)) for value, (_, wanted) in values.items()} == WIRING[name]
    assert output == ("y" if "y" in WIRING[name] else "h'")


def points(path):
    """Along a path of M, C and H, sixteen a curve."""
    place, found = (0.0, 0.0), []
    for kind, numbers in re.findall(r"([MCH])([^MCH]*)", path):
        at = [float(one) for one in re.findall(r"-?[\d.]+", numbers)]
        if kind == "C":
            corners = [place, (at[0], at[1]), (at[2], at[3]), (at[4], at[5])]
            for k in range(1, 17):
                t = k / 16
                shares = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
                found.append(tuple(sum(s * c[axis] for s, c in zip(shares, corners)) for axis in (0, 1)))
        elif kind == "H":
            found += [(place[0] + (at[0] - place[0]) * k / 8, place[1]) for k in range(1, 9)]
        else:
            found.append((at[0], at[1]))
        place = found[-1]
    return found


@pytest.mark.parametrize("name", CELLS)
def test_no_line_runs_through_a_box(drawn, name):
    module, cells = drawn
    svg = module.drawing(cells[name])
    boxes = [
        tuple(map(float, box))
        for box in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="(\d+)" height="(\d+)"', svg)
    ]
    lines = [points(path) for path in re.findall(r'<path class="\w+" d="(M[^"]+)" marker-end', svg)]
    assert len(lines) == sum(len(wanted.split()) for wanted in WIRING[name].values())
    for line in lines:
        for x, y, width, height in boxes:
            inside = [p for p in line if x + 1 < p[0] < x + width - 1 and y + 1 < p[1] < y + height - 1]
            assert not inside, f"a line runs through the box at {x}, {y}"
    for k, (x, y, width, height) in enumerate(boxes):
        for u, v, *_ in boxes[k + 1 :]:
            assert abs(x - u) >= width or abs(y - v) >= height + 14  # and there is room for a sign above each

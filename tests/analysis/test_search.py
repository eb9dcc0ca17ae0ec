"""The search on a cell whose units are known, AUCs against counted pairs, and ablations against closed forms."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import rnnjax
from rnnjax.analysis import SymbolModel, ablate, record, search_units, text_values
from rnnjax.analysis.ablation import step_clamped
from rnnjax.analysis.gates import unit_statistics
from rnnjax.analysis.plots import plot_ranking, plot_text
from tests.analysis.pairs import pairs
from tests.cells_table import fast_jit

QUOTE = 0  # the symbol that opens and closes
MULTIPLIERS = np.array([1291, 1453, 1607, 1753, 1931], np.float32)


class KnownState(NamedTuple):
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class Known:
    """Unit 0 is high within quotes, unit 1 low, unit 2 counts since the last quote, the others draw numbers."""

    hidden_size: int = 8

    def init(self, key, input_size, dtype=jnp.float32):
        return jnp.zeros((input_size,), dtype)

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        start = jnp.arange(0.0, 100 * self.hidden_size, 100, dtype).at[0].set(0).at[1].set(1).at[2].set(0)
        return KnownState(jnp.broadcast_to(start, (*batch_shape, self.hidden_size)))

    def step(self, params, state, x):
        quote, h = x[..., :1], state.h
        toggled = quote + (1 - 2 * quote) * h[..., :2]
        drawn = jnp.mod(MULTIPLIERS * h[..., 3:] + 7, 2039)  # whole numbers, exact in float32
        new = jnp.concatenate([toggled, (1 - quote) * (h[..., 2:3] + 1), drawn], axis=-1)
        new = checkpoint_name(new, "h")
        return KnownState(new), new


N, SHIFTS = 601, 19
READING: dict[str, Any] = {"streams": 1, "window": 64}
IDS = np.random.default_rng(0).choice(5, N, p=[0.1, 0.3, 0.2, 0.2, 0.2])
INSIDE = np.cumsum(IDS == QUOTE) % 2 == 1
SINCE = np.arange(N) - np.maximum.accumulate(np.where(IDS == QUOTE, np.arange(N), -1))
SINCE = SINCE.astype(np.float32) + np.random.default_rng(1).normal(size=N).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    cell = Known()
    # Predicts a quote where unit 0 is high, and looks at no other unit.
    w_out = jnp.zeros((8, 5)).at[0, QUOTE].set(3.0)
    return SymbolModel(cell, cell.init(jax.random.key(0), 5), jnp.eye(5), w_out, jnp.zeros(5))


@pytest.fixture(scope="module")
def found(model):
    return search_units(model, IDS, {"inside": INSIDE, "since": SINCE}, shifts=SHIFTS, **READING)


@pytest.fixture(scope="module")
def values(model):
    """Of all units over the text, by another way: one unroll."""
    return np.asarray(rnnjax.unroll(model.cell, model.params, model.cell.initial_state(), model.inputs[IDS])[1])


def test_the_units_that_know_are_found_and_pass_the_control(found):
    result = found["inside"]
    first, second = result.top(2)
    assert {first.unit, second.unit} == {"L1.h.0", "L1.h.1"}
    by_name = {unit.unit: unit for unit in result.top()}
    for name, direction in (("L1.h.0", 1), ("L1.h.1", -1)):
        unit = by_name[name]
        assert (unit.score, unit.first, unit.accuracy, unit.direction) == (1.0, 1.0, 1.0, direction)
        assert unit.p_value == 1 / (SHIFTS + 1) and unit.score > result.bar and unit.error < 1e-9
        assert 0 < unit.threshold <= 1
    for k in range(3, 8):  # noise: no better than what the best unit reaches by chance
        unit = by_name[f"L1.h.{k}"]
        assert unit.score < 0.62 and unit.p_value > 0.2
    assert result.share == INSIDE[N // 2 :].mean() and len(result.control) == SHIFTS
    assert found["since"].top(1)[0].unit == "L1.h.2" and found["since"].top(1)[0].p_value == 1 / (SHIFTS + 1)


def test_scores_are_those_of_all_values(found, values):
    half = N // 2
    result = found["inside"]
    assert result.units == tuple(f"L1.h.{k}" for k in range(8))
    np.testing.assert_allclose(result.mean, values.mean(axis=0), rtol=1e-4)
    for k in range(8):
        exact = np.array([pairs(values[part, k], INSIDE[part]) for part in (slice(0, half), slice(half, N))])
        exact = exact if exact[0] >= 0.5 else 1 - exact
        assert abs(result.first[k] - exact[0]) < 0.01
        assert abs(result.score[k] - exact[1]) <= result.error[k] + 1e-9 and result.error[k] < 0.02
        # Balanced accuracy, from the threshold and the direction that the first half chose.
        said = (values[half:, k] >= result.threshold[k]) == (result.direction[k] > 0)
        truth = INSIDE[half:]
        assert abs(result.accuracy[k] - (said[truth].mean() + 1 - said[~truth].mean()) / 2) < 0.02
        since = np.corrcoef(values[half:, k], SINCE[half:])[0, 1] * found["since"].direction[k]
        np.testing.assert_allclose(found["since"].score[k], since, atol=1e-4)
    np.testing.assert_allclose(result.accuracy[:2], 1)


def test_controls_are_scores_on_shifted_labels(model, found, values):
    half = N // 2
    size = N - half
    shift = np.random.default_rng(0).integers(size // 20 + 1, size - size // 20, SHIFTS)
    for j in range(0, SHIFTS, 6):
        inside, since = (np.roll(label[half:], shift[j]) for label in (INSIDE, SINCE))
        scores = [pairs(values[half:, k], inside) for k in range(8)]
        assert abs(found["inside"].control[j] - max(max(s, 1 - s) for s in scores)) < 0.01
        best = max(abs(np.corrcoef(values[half:, k], since)[0, 1]) for k in range(8))
        np.testing.assert_allclose(found["since"].control[j], best, atol=1e-4)
    with pytest.raises(ValueError, match="label 'flat' must have one number for each of 601 symbols and vary"):
        search_units(model, IDS, {"flat": np.zeros(N, bool)}, **READING)


def test_ablation_hurts_where_the_unit_matters(model):
    matters, useless = ablate(model, IDS, [["L1.h.0"], ["L1.h.4"]], label=INSIDE, closing=[QUOTE], **READING)
    assert useless.before == useless.after == matters.before

    def tally(h):  # h [n - 1]: unit 0 after each symbol but the last
        logits = np.zeros((N - 1, 5))
        logits[:, QUOTE] = 3 * h
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        nats = -np.log(p[np.arange(N - 1), IDS[1:]])
        now, end = INSIDE[:-1], INSIDE[:-1] & ~INSIDE[1:]
        return (
            *(nats.mean(), nats[now].mean(), nats[~now].mean()),
            *(p[end, QUOTE].mean(), p[now & ~end, QUOTE].mean()),
        )

    np.testing.assert_allclose(matters.before, tally(INSIDE[:-1].astype(float)), rtol=1e-4)
    np.testing.assert_allclose(matters.values, [INSIDE.mean()], rtol=1e-5)
    np.testing.assert_allclose(matters.after, tally(np.full(N - 1, INSIDE.mean())), rtol=1e-4)
    assert matters.after.closing_end < matters.before.closing_end - 0.2
    (zero,) = ablate(model, IDS, [["L1.h.0", "L1.h.1"]], value=0.0, **READING)
    np.testing.assert_allclose(zero.after.loss, np.log(5), rtol=1e-5)
    assert np.isnan(zero.after.closing_end) and np.isnan(zero.after.loss_inside) and zero.values == (0.0, 0.0)


def clamp(size, **units):
    """One unit of each leaf of layer 1."""
    masks = {}
    for leaf, (k, value) in units.items():
        masks[f"L1.{leaf}"] = (np.arange(size) == k, np.full(size, value, np.float32))
    return masks


def test_held_units_of_an_lstm_are_those_of_its_equations():
    cell = rnnjax.LSTM(3)
    params = cell.init(jax.random.key(0), 2)
    xs = np.asarray(jax.random.normal(jax.random.key(1), (4, 2)), np.float64)
    w_ih, w_hh, b = (np.asarray(p, np.float64) for p in params)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    for units in (
        {"c": (1, 0.7)},
        {"h": (2, -0.4)},
        {"f": (0, 0.25), "g": (1, -0.5)},
        {"c": (1, 0.7), "h": (0, 0.1), "f": (1, 1.0)},
    ):
        run = fast_jit(lambda s, x, units=units: step_clamped(cell, params, s, x, clamp(3, **units)))
        state = cell.initial_state()
        h = c = np.zeros(3)
        for x in xs:
            i, f, g, o = np.split(x @ w_ih + h @ w_hh + b, 4)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            for name, gate in (("f", f), ("g", g)):
                if name in units:
                    gate[units[name][0]] = units[name][1]
            c = f * c + i * g
            if "c" in units:
                c[units["c"][0]] = units["c"][1]
            h = o * np.tanh(c)
            if "h" in units:
                h[units["h"][0]] = units["h"][1]
            state, y = run(state, jnp.asarray(x, jnp.float32))
            for ours, theirs in ((state.h, h), (state.c, c), (y, h)):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_held_is_named(model):
    def hold(cell, units):
        params = cell.init(jax.random.key(0), 2)
        inputs = SymbolModel(cell, params, jnp.ones((5, 2)), jnp.ones((cell.hidden_size, 5)), jnp.zeros(5))
        return ablate(inputs, IDS[:9], [units], value=0.5, **READING)

    with pytest.raises(
        ValueError, match=r"L1.z_n cannot be held; of GRU L1.r, L1.z, L1.n, L1.h can, .*checkpoint_name"
    ):
        hold(rnnjax.GRU(2), ["L1.z_n.0"])

    class Unnamed(Known):
        def step(self, params, state, x):
            new = KnownState(state.h + x.mean())
            return new, new.h

    with pytest.raises(ValueError, match=r"L1.h cannot be held; of Unnamed nothing can, .*checkpoint_name\(f, 'f'\)"):
        hold(Unnamed(), ["L1.h.0"])
    with pytest.raises(ValueError, match="'mean' or a number"):
        ablate(model, IDS, [["L1.h.0"]], value="median")
    with pytest.raises(ValueError, match=r"L1\.h\.0 to L1\.h\.7"):
        ablate(model, IDS, [["L1.h.8"]])


def test_saturation_dead_and_redundant_units(model, values):
    cell = rnnjax.LSTM(3)
    params = cell.init(jax.random.key(0), 5)
    b = np.zeros((4, 3))
    b[1] = [9.0, -9.0, 0.0]  # the forget gate is open, closed, in between
    params = params._replace(b=jnp.array(b.ravel(), jnp.float32), w_hh=0 * params.w_hh, w_ih=0.1 * params.w_ih)
    lstm = SymbolModel(cell, params, jnp.eye(5), jnp.ones((3, 5)), jnp.zeros(5))
    found = unit_statistics(lstm, IDS, **READING)
    gate = found.leaves["L1.f"]
    assert gate.right.tolist() == [1, 0, 0] and gate.left.tolist() == [0, 1, 0]
    _, recorded = record(cell, params, cell.initial_state(), jnp.eye(5)[IDS], select=["L1.f", "L1.c"])
    for leaf, kept in recorded.items():
        np.testing.assert_allclose(found.leaves[leaf].mean, np.mean(kept, axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.leaves[leaf].deviation, np.std(kept, axis=0), rtol=1e-3, atol=1e-5)
    assert np.isnan(found.leaves["L1.g"].left).all()
    known = unit_statistics(model, IDS, **READING)
    assert known.redundant[0][:2] == ("L1.h.0", "L1.h.1") and abs(known.redundant[0][2] + 1) < 1e-3
    still = model._replace(inputs=jnp.zeros((5, 5)))  # without quotes nothing toggles
    assert unit_statistics(still, IDS, **READING).dead == ("L1.h.0", "L1.h.1")
    correlation = np.corrcoef(values.T)
    expected = {(f"L1.h.{a}", f"L1.h.{b}") for a in range(8) for b in range(a) if abs(correlation[a, b]) > 0.95}
    assert {(b, a) for a, b, _ in known.redundant} == expected


def test_pictures_hold_what_they_say(model, found):
    figure = plot_ranking(found["inside"], count=4)
    axes = figure.axes[0]
    assert sorted(label.get_text() for label in axes.get_yticklabels())[:2] == ["L1.h.0 +", "L1.h.1 -"]
    figure.canvas.draw() if hasattr(figure.canvas, "draw") else None
    inside = text_values(model, IDS[:30], ["L1.h.0"], **READING)[:, 0]
    text = "".join('"ab\nd'[k] for k in IDS[:30])
    axes = plot_text(text, inside, title="L1.h.0", kind="gate").axes[0]
    page, lines = axes.images[0].get_array(), text.split("\n")
    assert page.shape[0] == len(lines) - text.endswith("\n")
    for at, color in ((0.0, (0, 114, 178)), (1.0, (213, 94, 0))):
        k = int(np.flatnonzero(inside == at)[0])
        row = text[:k].count("\n")
        column = k - (text[:k].rfind("\n") + 1)
        assert tuple(page[row, column]) == color
    assert {t.get_text() for t in axes.texts} >= {'"', "a"}
    with pytest.raises(ValueError, match="one value a character"):
        plot_text("abc", inside)

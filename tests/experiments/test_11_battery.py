"""Each problem against a loop of its own, series against another integrator, and one that is learned."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import rnnjax
from experiments import common

grammars, lags, series, problems, tables, training, entries, run = (
    importlib.import_module(f"experiments.11_battery.{name}")
    for name in ("grammars", "lags", "series", "problems", "tables", "training", "entries", "run")
)
KEY = jax.random.key(3)
# The inner grammar as Reber drew it, by the names of its nodes.
INNER = {
    "start": {"T": "one", "P": "two"},
    "one": {"S": "one", "X": "three"},
    "two": {"T": "two", "V": "four"},
    "three": {"X": "two", "S": "end"},
    "four": {"P": "three", "V": "end"},
    "end": {"E": "over"},
}


def walk(symbols):
    """What may come at each place of a stream of embedded strings, and whether a string ends there; else a KeyError."""
    legal, place, node, branch = [], "B", None, None
    for symbol in symbols:
        if node is not None:
            legal.append(set(INNER[node]))
            node = INNER[node][symbol]
            if node == "over":
                node, place = None, "branch"
            continue
        wanted = {"B": "B", "choice": "TP", "inner": "B", "branch": branch, "E": "E"}[place]
        legal.append(set(wanted))
        assert symbol in wanted
        if place == "choice":
            branch = symbol
        place = {"B": "choice", "choice": "inner", "inner": None, "branch": "E", "E": "B"}[place]
        node = "start" if place is None else None
    return legal


@pytest.mark.parametrize("continual", [False, True])
def test_reber_strings_are_those_of_the_graph(continual):
    batch = jax.tree.map(np.asarray, grammars.embedded_reber(KEY, 60, 30, continual=continual))
    lengths = []
    for row in range(30):
        count = int(batch.asked[:, row].sum())
        said = [*batch.xs[:count, row].argmax(-1), batch.targets[count - 1, row]]
        letters = [grammars.REBER[one] for one in said]
        legal = walk(letters)
        found = [{grammars.REBER[i] for i in np.flatnonzero(one)} for one in batch.legal[:count, row]]
        assert found == legal[1:]
        assert [grammars.REBER[i] for i in batch.targets[:count, row]] == letters[1:]
        lengths.append(count)
    assert set(lengths) == {60} if continual else min(lengths) >= 8 and len(set(lengths)) > 5


@pytest.mark.parametrize("letters", [2, 3])
def test_counted_strings_and_what_may_come(letters):
    batch = jax.tree.map(np.asarray, grammars.counted(jnp.array([1, 3, 4]), letters, 4))
    for row, n in enumerate((1, 3, 4)):
        text = "S" + "".join(letter * n for letter in "abc"[:letters])
        count = int(batch.asked[:, row].sum())
        assert "".join(grammars.COUNTED[i] for i in batch.xs[:count, row].argmax(-1)) == text
        for t, symbols in enumerate(batch.targets[:count, row]):
            following = (text + "S")[t + 1]
            wanted = {"a", "b"} if 1 <= t <= n else {following}  # no one knows how many a will come
            assert {grammars.COUNTED[i] for i in np.flatnonzero(symbols)} == wanted


def test_memory_problems_ask_what_they_say():
    for product in (False, True):
        batch = jax.tree.map(np.asarray, lags.arithmetic(KEY, 9, 20, product=product))
        numbers, marks = batch.xs[..., 0], batch.xs[..., 1] == 1
        for row in range(20):
            a, b = numbers[marks[:, row], row]
            assert batch.targets[-1, row, 0] == pytest.approx(a * b if product else a + b)
            first, second = np.flatnonzero(marks[:, row])
            assert first < 4 <= second
        assert batch.asked.sum() == 20 and batch.asked[-1].all()

    batch = jax.tree.map(np.asarray, lags.order(KEY, 20, 30, places=((0.1, 0.2), (0.5, 0.6))))
    for row in range(30):
        said = [one - 4 for one in batch.xs[:, row].argmax(-1) if one in (4, 5)]
        assert len(said) == 2 and batch.targets[-1, row] == 2 * said[0] + said[1]

    batch = jax.tree.map(np.asarray, lags.noisy_lag(KEY, 40, 30, least=10, distractors=3))
    for row in range(30):
        said = batch.xs[:, row].argmax(-1).tolist()
        at = said.index(3)
        assert said[0] == 2 and at >= 12 and np.flatnonzero(batch.asked[:, row]).tolist() == [at]
        assert batch.targets[at, row] == said[1]

    batch = jax.tree.map(np.asarray, lags.selective_copy(KEY, 12, 30, copied=4, kinds=5))
    for row in range(30):
        said = batch.xs[:, row].argmax(-1)
        kept = [one for one in said if one < 5]
        assert len(kept) == 4 and batch.targets[batch.asked[:, row], row].tolist() == kept
        assert (said[12:] == 6).all()

    batch = jax.tree.map(np.asarray, lags.copy(KEY, 6, 30, copied=3, kinds=5))
    said = batch.xs.argmax(-1)
    np.testing.assert_array_equal(batch.targets[-3:], said[:3])
    assert (said[3:9] == 5).all() and (said[9] == 6).all() and batch.asked[-3:].all() and batch.asked.sum() == 90


def test_what_is_longer_in_full_is_also_tested_so():
    for problem in problems.PROBLEMS:
        for steps in {problem.steps, problem.full or problem.steps}:
            trained = jax.eval_shape(lambda key, p=problem, n=steps: p.draw(key, n, p.batch), KEY).xs.shape[0]
            tested = jax.eval_shape(lambda key, p=problem, n=steps: p.test(key, n), KEY).xs.shape[0]
            assert tested == trained or (problem.full is None and tested > trained), problem.name


def test_streams_are_those_of_a_loop():
    batch = jax.tree.map(np.asarray, lags.flip_flop(KEY, 40, 3))
    state = np.zeros((3, 3))
    for pulse, held in zip(batch.xs, batch.targets, strict=True):
        state = np.where(pulse != 0, pulse, state)
        np.testing.assert_array_equal(held, state)
    batch = jax.tree.map(np.asarray, lags.parity(KEY, 15, 4))
    odd = np.zeros(4, int)
    for bit, wanted in zip(batch.xs[..., 0] > 0, batch.targets, strict=True):
        odd ^= bit
        np.testing.assert_array_equal(wanted, odd)
    batch = jax.tree.map(np.asarray, lags.spikes(KEY, 60, 8, shortest=5, kinds=4))
    for row in range(8):
        times = np.flatnonzero(batch.xs[:, row, 0])
        assert times[0] == 0 and len(times) > 4
        values = [(-0.75, -0.25, 0.25, 0.75)[gap - 5] for gap in np.diff(times)]
        np.testing.assert_allclose(batch.targets[times[1:], row, 0], values, atol=1e-6)
        assert batch.asked[:, row].sum() == len(values)


def test_chaotic_series_are_those_of_another_integrator():
    def lorenz(_, s):
        return [10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]]

    found = solve_ivp(lorenz, (0, 35), [1, 1, 1.05], t_eval=np.arange(501, 601) * series.LORENZ_STEP, rtol=1e-10)
    x = series.lorenz()
    # Both are somewhere on the attractor by then; a step of the one leads where the equations say.
    mean, deviation = x.mean(0), x.std(0)
    np.testing.assert_allclose(mean, 0, atol=1e-3)
    np.testing.assert_allclose(deviation, 1, atol=1e-3)
    raw = found.y.T
    assert np.abs(raw[:, 2]).max() < 50 and np.abs(np.corrcoef(raw[:, 0], raw[:, 1])[0, 1] - 0.9) < 0.12
    assert np.abs(np.corrcoef(x[:, 0], x[:, 1])[0, 1] - 0.88) < 0.05
    coarse, fine = series.mackey_glass.__wrapped__(60), series.mackey_glass.__wrapped__(60, 17, 40)
    np.testing.assert_allclose(coarse, fine, atol=0.03)


def test_valid_time_ends_where_the_forecast_leaves_the_series():
    """A model that says what the increment is, but for a jump of one deviation after 20 steps of its own."""
    data = np.sin(np.arange(200) / 9)[:, None].astype(np.float32)
    scale = np.diff(data, axis=0).std(0)

    class Told:
        def start(self, params, batch):
            return jnp.zeros((), int)

        def advance(self, params, state, xs):
            return state + len(xs), self._say(state + jnp.arange(len(xs)))

        def step(self, params, state, x):
            return state + 1, self._say(state)

        def _say(self, at):
            grown = (data[1:] - data[:-1]) / scale
            return jnp.asarray(grown)[at][..., None, :] + jnp.where(at == 70, 1.0, 0.0)[..., None, None] / scale

    batch = problems.Batch(jnp.asarray(data[:101, None]), None, None)
    assert float(problems.valid_time(data, 2.0, 50, Told(), None, batch)) == pytest.approx(2.0 * 21)


def test_table_counts_seeds_and_names_verdicts(tmp_path):
    row = {"solved": [100] * 9 + [None], "score": [1.0] * 10, "seconds": 3.0}
    assert tables.verdict(row) == "reached" and tables.verdict(row | {"solved": [None, 5]}) == "partly"
    found = {"gru": {"reber": row}, "lstm": {"adding": row | {"solved": [None] * 10, "score": [0.02] * 10}}}
    text = tables.markdown(found, ["gru", "lstm"], "all.png")
    assert "| gru | **9** (1.00) |" in text and "| lstm |  |  | 0 (0.02) |" in text and "38 of these cells" in text
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- made: begin -->\nold\n<!-- made: end -->\nafter\n")
    assert "T = 50, not 100 to 110;" in text and "T = 105;" not in text
    full = tables.markdown(found, ["gru", "lstm"], "all.png", full=True)
    assert "T = 105;" in full and ", not 100" not in full and "ten times the updates" in full
    tables.write_page(page, text)
    assert page.read_text() == f"before\n<!-- made: begin -->\n{text}<!-- made: end -->\nafter\n"
    assert "| embedded Reber | 9 of 10 | reached | 1.00 | 100 | 3 |" in tables.row_of(found["gru"])
    assert set(rnnjax.cells.CELLS) - {one.spec for one in entries.ENTRIES} == set(entries.LEFT_OUT)


def test_cell_of_a_file_joins_learns_and_is_not_run_again(tmp_path, capsys, monkeypatch):
    """Parity is learned by a cell of three lines; what lies there is not made again."""
    (tmp_path / "mine.py").write_text("import rnnjax\n\n\nclass Mine(rnnjax.LSTM):\n    pass\n")
    monkeypatch.setitem(run.QUICK, "hidden", 32)
    monkeypatch.setattr(run, "QUICK_UPDATES", 400)
    command = ["--quick", "--cell", f"{tmp_path}/mine.py:Mine", "--problem", "parity", "--out", str(tmp_path / "out")]
    run.main(command)
    row = json.loads((tmp_path / "out" / "cells" / "Mine.json").read_text())["parity"]
    assert min(row["score"]) > 0.95 and row["setting"]["hidden"] == 32  # chance is 0.5
    assert "Mine" in capsys.readouterr().out and (tmp_path / "out" / "battery.png").stat().st_size > 5000
    monkeypatch.setattr(run, "train", lambda *a, **k: pytest.fail("made again"))
    run.main(command)
    with pytest.raises(ValueError, match="none is called 'nope'"):
        run.main(["--problem", "nope", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="conv_lstm has no part in this: it reads grids"):
        run.main(["--cell", "conv_lstm", "--out", str(tmp_path)])
    assert isinstance(common.parse(command, here=tmp_path, doc="", add=run.options).extra["cell"], list)

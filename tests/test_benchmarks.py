"""The benchmarks: what they compute, and what they write. No time that they measure decides a test."""

import importlib.util
import json
import math
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("rich", reason="the extra lm is not installed")

from benchmarks import grid, memory, parts, report, results_file, run_grid, timing
from benchmarks.commands import app, main, split
from benchmarks.contestants import RIVALS, build, make_problem
from benchmarks.contestants.torch_rnn import persistent_is_possible
from benchmarks.grid import Point, Sizes
from benchmarks.settings import OPTIONS
from benchmarks.summary import summary
from benchmarks.text import make_text

TINY = Sizes(4, 2, 3, 5)
OWN = "import rnnjax\n\n\nclass Mine(rnnjax.GRU):\n    pass\n"

RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def keep_caches(monkeypatch):
    """What other tests in this process have compiled stays."""
    monkeypatch.setattr(timing, "clear_caches", lambda: None)
    monkeypatch.setattr(run_grid, "clear_caches", lambda: None)


@pytest.fixture(autouse=True)
def no_peak(monkeypatch):
    """The peak takes half a second, and its number is of no interest here."""
    monkeypatch.setattr(run_grid, "matmul_peak", lambda dtype: {"size": 8, "jax": 1e9, "flops_per_second": 1e9})


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


ABSENT = {"elman": {"haiku", "equinox"}, "elman(activation='relu')": {"equinox"}}


@pytest.mark.parametrize(
    ("spec", "rivals"),
    [
        ("lstm", ["flax.linen", "flax.nnx", "haiku", "equinox", "keras", "torch", "bare scan"]),
        ("gru", ["flax.linen", "equinox", "keras", "torch", "bare scan"]),
        ("elman", ["flax.linen", "torch", "haiku", "equinox"]),
        ("elman(activation='relu')", ["flax.nnx", "keras", "haiku", "torch", "bare scan"]),
    ],
)
@pytest.mark.filterwarnings("default")  # of the rivals
def test_contestants_compute_the_same(spec, rivals):
    """Outputs, final state and every gradient, with our parameters."""
    problem = make_problem(Point(spec, TINY, "float32", "training"))
    (ours, *others), skipped = build(problem, ["default"], rivals)
    missing = {name for name, reason in skipped.items() if "not installed" in reason}
    assert skipped.keys() - missing == ABSENT.get(spec, set()) & set(rivals)
    assert {one.name for one in others} == set(rivals) - skipped.keys()
    want = ours.outputs()
    for one in others:
        got = one.outputs()
        for field in ("ys", "h", "xs_gradient"):
            np.testing.assert_allclose(
                getattr(got, field), getattr(want, field), atol=2e-6, err_msg=f"{one.name}, {field}"
            )
        assert got.loss_gradients.keys() == want.loss_gradients.keys()
        for field, value in got.loss_gradients.items():
            np.testing.assert_allclose(value, want.loss_gradients[field], atol=2e-6, err_msg=f"{one.name}, {field}")


@pytest.mark.filterwarnings("default")
def test_other_mathematics_is_said():
    problem = make_problem(Point("gru", TINY, "float32", "forward"))
    others, _ = build(problem, [], ["haiku", "flax.nnx"])
    assert all(one.outputs is None and one.note for one in others)


def test_the_bias_of_the_problem_is_not_zero():
    """Otherwise a contestant that loses one would pass."""
    problem = make_problem(Point("gru", TINY, "float32", "forward"))
    assert np.all(np.asarray(problem.params.b) != 0) and np.all(np.asarray(problem.params.b_hn) != 0)


def test_end_to_end(tmp_path):
    """Ours, flax and a stranger's cell; the file, resume, tables and pictures."""
    (tmp_path / "mine.py").write_text(OWN)
    out = tmp_path / "results.json"
    command = [
        "run", "--sizes", "4,2,3,5", "--cells", f"lstm,{tmp_path}/mine.py:Mine", "--rivals", "flax.linen",
        "--modes", "training", "--rounds", "2", "--compile-rounds", "1", "--burst-seconds", "0", "--out", str(out),
    ]  # fmt: skip
    output = run(*command)
    assert "without flax.linen: flax has no such cell" in output
    result = json.loads(out.read_text())
    assert [(row["cell"].rpartition(":")[2], row["contestant"]) for row in result["rows"]] == [
        ("lstm", "rnnjax fused"), ("lstm", "flax.linen"), ("Mine", "rnnjax fused"),
    ]  # fmt: skip
    fields = {"device", "cores", "python", "jax", "jaxlib", "version", "dtype", "commit", "date", "memory_reused"}
    for row in result["rows"]:
        assert fields <= row.keys() and all(row[field] is not None for field in fields - {"commit"})
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["compile_seconds"]["median"] > 0 and row["peak_bytes"] > 0 and row["rounds"] == 2
        assert row["steps_per_second"] == pytest.approx(4 / row["seconds"]["median"], rel=1e-3)
    assert result["rows"][0]["flops"] == 3 * 2 * 4 * 2 * (3 + 5) * 4 * 5
    assert result["provenance"]["flax"] == result["rows"][1]["version"]
    assert result["settings"]["rounds"] == 2 and "--sizes" not in result["provenance"]

    with pytest.raises(ValueError, match=r"exists; take another --out, or --resume"):
        run(*command)
    done = run(*command, "--resume")
    assert done.count("already measured") == 2
    again = json.loads(out.read_text())
    assert again["rows"] == result["rows"] and again["skipped"] == result["skipped"]
    # A row of another version is no longer that point: it alone is measured again.
    again["rows"][1]["version"] = "0.0"
    out.write_text(json.dumps(again))
    assert run(*command, "--resume").count("already measured") == 1
    assert json.loads(out.read_text())["rows"][-1]["version"] == result["rows"][1]["version"]

    table = run("tables", str(out))
    assert "| cell | T, B, I, H | rnnjax ms | flax.linen |" in table
    assert "| lstm | 4, 2, 3, 5 |" in table and "| Mine | 4, 2, 3, 5 |" in table and "geometric mean" in table
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        run("tables", str(out), "--readme", str(readme))
        text = readme.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        assert text.count("**Training, float32**") == 1
    run("plots", str(out), "--folder", str(tmp_path / "pictures"))
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["results_ratio_training_float32.png"]


def fake_rows(cell, sizes, times, peak=None, flops=100):
    """Rows as a run writes them; the first contestant is ours."""
    here = {"device": "d", "cores": 2, "python": "3", "jax": "0", "commit": "c", "date": "2026-01-01", "library": "x"}
    here |= {"note": None, "memory_reused": False}
    return [
        {
            "cell": cell, **sizes._asdict(), "dtype": "float32", "mode": "training", "contestant": name,
            "default": number == 0, "version": "1", "rounds": 15, "peak_bytes": peak, "flops": flops,
            "seconds": {"low": time, "median": time, "high": time},
            "compile_seconds": {"low": 1.0, "median": 1.0 + number, "high": 3.0}, **here,
        }
        for number, (name, time) in enumerate(times.items())
    ]  # fmt: skip


def test_numbers_of_the_tables():
    shapes = [TINY, TINY._replace(T=8)]
    rows = [
        *fake_rows("lstm", shapes[0], {"rnnjax fused": 1e-3, "torch": 2e-3}, peak=200),
        *fake_rows("lstm", shapes[1], {"rnnjax fused": 2e-3, "torch": 1e-3, "keras": 8e-3}, peak=200),
        *fake_rows("gru", shapes[0], {"rnnjax fused": 5e-4, "torch": 4e-3}, peak=150, flops=75),
    ]
    text = report.markdown(rows)
    assert "| lstm | 4, 2, 3, 5 | 1 | 2.00 |  |" in text
    assert "| lstm | 8, 2, 3, 5 | 2 | 0.50 | 4.00 |" in text
    assert "| geometric mean |  |  | **2.00** | **4.00** |" in text  # (2 * 0.5 * 8) ** (1/3)
    assert "| training | float32 | 4, 2, 3, 5 | 0.50 | 0.75 | 0.75 |" in text
    assert "| over rnnjax | 1.00 | 2.00 | 3.00 |" in text
    assert "| lstm training float32 | 8, 2, 3, 5 | 250 | 125 | 1e+03 |" in report.step_table(rows)
    elsewhere = [{**row, "device": "e", "note": "odd"} for row in rows[:2]]
    both = report.markdown([*rows, *elsewhere])  # the same points on another machine are another table
    assert both.startswith(text) and both.count("| lstm | 4, 2, 3, 5 | 1 | 2.00 |") == 2 and "torch (lstm): odd" in both
    assert math.isnan(report.geometric_mean([]))
    kept = [{**row, "memory_reused": True, "mode": "forward"} for row in rows[-2:]]
    short = summary([*rows, *kept])
    assert "|  | training | forward, after use_cores() |" in short
    assert "| the fastest JAX rival at each point: mean, worst | 4.00, 4.00 |  |" in short
    assert "| torch, GRU and Elman: mean, worst | 8.00, 8.00 | 8.00, 8.00 |" in short
    assert "| torch, LSTM (oneDNN): mean, worst | 1.00, 0.50, below 1 at 1 of 2 |  |" in short


def test_pictures_show_growth(tmp_path):
    plots = pytest.importorskip("benchmarks.plots", reason="matplotlib is not installed")
    rows = []
    for steps in (16, 8, 32):
        rows += fake_rows("lstm", TINY._replace(T=steps), {"rnnjax fused": steps * 1e-3, "torch": 1e-3})
    figure = plots.growth_figure(rows, "training", "float32")
    (line, other) = next(axes for axes in figure.axes if axes.get_xlabel() == "T").get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[8, 8], [16, 16], [32, 32]])
    np.testing.assert_allclose(other.get_ydata(), 1)
    heat = plots.ratio_figure(rows, "training", "float32").axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(heat), np.log2([[1 / 16], [1 / 8], [1 / 32]]))
    assert plots.growth_figure(rows[:2], "training", "float32") is None


def test_settings_are_known_to_the_compiler():
    """It reads those of a GPU everywhere, and a wrong name or value is an error everywhere."""
    for extra in [extra for options in OPTIONS.values() for extra in options.values()]:
        assert jax.jit(lambda x: x + 1, compiler_options=extra)(1.0) == 2
    with pytest.raises(RuntimeError, match="NOTHING"):
        jax.jit(lambda x: x + 2, compiler_options={"xla_gpu_enable_command_buffer": "NOTHING"})(1.0)


def test_turns_alternate():
    """A B C A B C, each as often; compilation as well, and what is not compiled is left out."""
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    found = timing.interleave(calls, rounds=3, burst_seconds=0, warmup=0)
    assert order == [*"abc", *"abc" * 3] and list(found) == [*"abc"]
    order.clear()
    prepared = {n: types.SimpleNamespace(compile=calls[n] if n != "b" else None) for n in "abc"}
    assert timing.compile_all(prepared, 2)["b"] is None and order == [*"acac"]


def test_operations():
    for spec, gates in (("lstm", 4), ("gru", 3), ("elman", 1)):
        problem = make_problem(Point(spec, TINY, "float32", "forward"))
        forward = 2 * TINY.T * TINY.B * (TINY.I + TINY.H) * gates * TINY.H
        assert timing.flops(problem, "forward") == forward and timing.flops(problem, "training") == 3 * forward


def test_a_peak_is_measured(monkeypatch):
    peak = timing.matmul_peak("float32", seconds=0)
    assert peak["flops_per_second"] >= peak["jax"] > 0 and peak["size"] == 256


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sizes", "1,2,3"], "sizes: must be four positive numbers T,B,I,H, got '1,2,3'."),
        (["--grid", "huge"], "grid: there is no 'huge'; known: quick, target"),
        (["--rivals", "mxnet"], "rivals: there is no 'mxnet'; known: flax.linen"),
        (["--dtype", "int8"], "dtype: there is no 'int8'"),
        (["--dtype", "tf32"], "dtype: tf32 exists on a GPU only; take float32."),
        (["--cells", "lstmm"], "cell: no cell is called 'lstmm'"),
        (["gpu"], "gpu: needs a GPU as JAX's backend, got 'cpu'."),
        (["graphs"], "gpu: measures settings of the GPU, but JAX runs on cpu."),
        (["--grid", "h200"], "run: the grid h200 needs a GPU as JAX's backend, got 'cpu'."),
        (["tables", "nowhere.json"], "results: there is no file 'nowhere.json'"),
    ],
)
def test_mistakes_are_said_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def broken(problem):
    raise RuntimeError("orthogonal: no such dtype\nand a long story")


def test_a_rival_that_fails_ends_nothing(monkeypatch):
    monkeypatch.setitem(RIVALS, "torch", broken)
    late = RIVALS["bare scan"]

    def fails_when_called(problem):
        made = late(problem)
        made.prepare = lambda mode: types.SimpleNamespace(compile=None, call=lambda: 1 / 0, memory=dict)
        return made

    monkeypatch.setitem(RIVALS, "bare scan", fails_when_called)
    settings = run_grid.Settings(("default",), ("torch", "bare scan"), rounds=1, compile_rounds=1, burst_seconds=0)
    file = run_grid.run_grid([Point("lstm", TINY, "float32", "forward")], settings, command="")
    assert [row["contestant"] for row in file.rows] == ["rnnjax fused"]
    reasons = file.header["skipped"]["lstm"]
    assert reasons["torch"] == "RuntimeError: orthogonal: no such dtype"
    assert reasons["bare scan, float32"].startswith("ZeroDivisionError: division by zero")


def test_a_readme_without_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match=r"must have the lines <!-- benchmarks:begin -->"):
        report.update_readme(path, "text")
    assert path.read_text() == "nothing\n"


def test_a_missing_package_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "haiku" else found(name))
    _, skipped = build(make_problem(Point("lstm", TINY, "float32", "forward")), [], ["haiku"])
    assert skipped == {"haiku": "dm-haiku is not installed: pip install dm-haiku"}
    problem = make_problem(Point("lstm", TINY, "float32", "forward"))
    assert "has no implementation of this name" in build(problem, ["warp"], [])[1]["rnnjax warp"]


def test_cells_are_cut_outside_parentheses():
    assert split("lstm, elman(activation='relu', recurrent_init=Identity());gru") == [
        "lstm", "elman(activation='relu', recurrent_init=Identity())", "gru",
    ]  # fmt: skip


def test_grids():
    assert len(grid.TARGET) == 7 and set(grid.TARGET) < set(grid.GRIDS["full"])
    for letter in "TBH":  # one size changes alone
        values = {getattr(sizes, letter) for sizes in grid.GRIDS["sweep"]}
        assert len(values) >= 6
    assert {sizes.H for sizes in grid.GRIDS["h200"]} == {512, 1024, 2048} and len(grid.GRIDS["h200"]) == 6
    assert persistent_is_possible((512, 16, 1024, 1024), "float16")
    for change in ((512, 16, 2048, 2048), (512, 15, 512, 512), (512, 16, 100, 512)):
        assert not persistent_is_possible(change, "float16")
    assert not persistent_is_possible((512, 16, 512, 512), "bfloat16")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results_file.write_json(path, {"rows": []})
    monkeypatch.setattr(results_file.os, "replace", lambda *arguments: sys.exit(1))
    with pytest.raises(SystemExit):
        results_file.write_json(path, {"rows": [1]})
    assert json.loads(path.read_text()) == {"rows": []}


def test_memory_and_latency(tmp_path, monkeypatch):
    """Checkpoints need less of what XLA plans, and TBPTT the same for any length."""
    monkeypatch.setattr(memory, "POLICIES", (("fused", None), ("fused", True)))
    out = tmp_path / "memory.json"
    run(
        "memory", "--hidden", "4", "--batch", "2", "--lengths", "256", "--tbptt-lengths", "200,400",
        "--tbptt-hidden", "4", "--chunk", "20", "--rounds", "1", "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    peak = {(row["implementation"], row["remat"]): row["temp_bytes"] for row in found["remat"]}
    assert peak["fused", True] < peak["fused", None] / 2
    short, long = found["tbptt"]
    # The stream itself, which XLA copies into the loop, and nothing beside it.
    assert long["temp_bytes"] - short["temp_bytes"] <= long["argument_bytes"] - short["argument_bytes"]
    assert long["argument_bytes"] - short["argument_bytes"] == 200 * 2 * 4
    out = tmp_path / "latency.json"
    run(
        "latency", "--cells", "elman", "--sizes", "1,3,4", "--rivals", "bare scan", "--rounds", "1",
        "--burst-seconds", "0", "--characters", "0", "--out", str(out),
    )  # fmt: skip
    steps = json.loads(out.read_text())["steps"]
    assert [row["contestant"] for row in steps] == ["rnnjax step", "rnnjax fused", "bare scan"]


def test_parts(tmp_path):
    """Every part is timed once a shape, and torch's beside those that it has."""
    out = tmp_path / "parts.json"
    run("parts", "--sizes", "5,2,3,4", "--rounds", "1", "--burst-seconds", "0", "--out", str(out))
    rows = json.loads(out.read_text())["parts"]
    assert {row["part"] for row in rows if row["library"] == "rnnjax"} == set(parts.PARTS)
    assert {row["library"] for row in rows if row["part"].startswith("whole")} == {"rnnjax", "torch"}
    table = report.parts_table(rows).splitlines()
    assert len(table) == 2 + len(parts.PARTS)
    milliseconds = 1e3 * next(row["seconds"]["median"] for row in rows if row["part"] == "loop alone")
    assert (
        next(line for line in table if "loop alone" in line) == f"| 5, 2, 3, 4 | loop alone | {milliseconds:.3g} |  |"
    )


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("parts", ["128, 32, 128, 128", "whole, training"]),
        ("latency", ["lstm", "1, 64, 128"]),
        ("cpu", ["gru", "training", "50, 50, 65, 128"]),
        ("memory", ["100,000", "fused", "True"]),
        ("lm_speed", ["2x128, batch 50x50"]),
    ],
)
def test_tables_of_the_committed_results(kind, cells, tmp_path):
    """Every row is there, with as many cells as the head, and the numbers are those of the file."""
    path = results_file.read_json(RESULTS / f"{kind}_2core.json")
    document = tmp_path / "page.md"
    name = kind.partition("_")[0]
    document.write_text(f"a\n<!-- benchmarks:{name}:begin -->\nold\n<!-- benchmarks:{name}:end -->\nz\n")
    run("tables", str(RESULTS / f"{kind}_2core.json"), "--readme", str(document))
    text = document.read_text()
    assert text.startswith("a\n") and text.endswith("z\n") and "old" not in text
    assert path["provenance"]["commit"] in text
    for table in re.findall(r"(?:\|.*\|\n)+", text):
        assert len({row.count("|") for row in table.splitlines()}) == 1
    row = next(row for row in text.splitlines() if row.startswith(f"| {' | '.join(cells)} |"))
    numbers = [float(cell.replace(",", "")) for cell in row.strip("| ").split(" | ")[len(cells) :] if cell.strip()]
    expected = {
        "parts": lambda: 1e3 * next(
            r["seconds"]["median"] for r in path["parts"] if (r["part"], r["library"]) == ("whole, training", "rnnjax")
        ),
        "latency": lambda: 1e6 * next(
            r["seconds"]["median"] for r in path["steps"] if r["cell"] == "lstm" and r["H"] == 128
        ),
        "cpu": lambda: 1e3 * next(
            r["seconds"]["median"] for r in path["rows"]
            if (r["cell"], r["mode"], r["T"], r["setting"]) == ("gru", "training", 50, "as it is")
        ),
        "memory": lambda: next(
            r["peak_bytes"] / 1e6 for r in path["remat"]
            if (r["T"], r["implementation"], r["remat"]) == (100_000, "fused", True)
        ),
        "lm_speed": lambda: path["training"][0]["rnnjax"]["characters_per_second"],
    }[kind]()  # fmt: skip
    assert numbers[0] == pytest.approx(expected, rel=0.01)


def test_every_rival_has_a_builder():
    assert list(RIVALS) == ["flax.linen", "flax.nnx", "haiku", "equinox", "keras", "torch", "bare scan"]


def test_tables_of_scale_and_of_texts(tmp_path):
    """Numbers by hand, between the markers of a page."""
    where = {"device": "a machine", "cores": 2, "python": "3", "jax": "1", "commit": "abc", "date": "today"}
    scale = {
        "provenance": where,
        "command": "python -m benchmarks scale --out x.json",
        "allreduce": [{"processes": 2, "bytes": 4_000_000, "seconds": 0.0042, "median": 0.006}],
        "updates": [{"processes": 2, "devices": 2, "seconds": 0.01, "median": 0.02}],
        "link": {"latency": 1e-4, "bandwidth": 1e9},
        **{"batch": 8, "steps": 16, "model": {"layers": 1, "hidden": 32, "embed": 4, "vocab": 9}},
    }
    row = {"level": "char", "vocabulary": 98, "open_anon": 10**8, "train_anon": 3 * 10**8, "train_file": 10**8}
    text = {"provenance": where, "command": "python -m benchmarks text", "texts": []}
    for size, seconds, more in ((10**6, 0.1, 0), (10**8, 2.0, 5 * 10**6)):
        for visit, factor in (("first", 1), ("again", 0.01)):
            found = {"bytes": size, "visit": visit, "seconds": seconds * factor, "cpu": seconds / 2, **row}
            text["texts"].append(found | {name: row[name] + more for name in ("open_anon", "train_anon", "train_file")})
    page = tmp_path / "page.md"
    marks = [f"<!-- benchmarks:{kind}:{end} -->\n" for kind in ("scale", "text") for end in ("begin", "end")]
    page.write_text("".join(marks))
    for name, document in (("scale", scale), ("text", text)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
        run("tables", str(tmp_path / f"{name}.json"), "--readme", str(page))
    written = page.read_text()
    # 2 (N - 1) (a + S / (N b)) = 2 (1e-4 + 4e6 / 2e9) seconds
    assert "| 4 MB | 2 | 4.20 ms | 6.00 ms | 4.20 ms |" in written and "| 2 | 2 | 10.0 ms | 20.0 ms |" in written
    assert "a = 100 us, b = 1.00 GB/s" in written and "1 LSTM layer(s) of 32 units on 8 x 16 symbols" in written
    assert "| 100 | char | 98 | 2.0 | 1.0 | 100 | 0.020 | 5 | 5 | 5 |" in written and "| 1 | char" not in written


def test_a_text_of_a_size(tmp_path):
    make_text(tmp_path / "text", 5_000_001)
    data = (tmp_path / "text").read_bytes()
    assert len(data) == 5_000_001 and b"import" in data[:10_000]

"""Exported functions are the cell, in a process that has never heard of rnnjax."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, LearnedState, Stack
from rnnjax.interop import export_cell
from rnnjax.lm.run import open_run
from rnnjax.saving import named_arrays
from rnnjax.testing.problems import fast_jit
from tests.lm import tiny_run

CELLS = {
    "stack": Stack((LearnedState(LSTM(4)), GRU(3)), norm="rms"),
    "gru": GRU(3),
}
# All that the other process runs: for each folder, the functions on inputs of a batch size that nobody has told them.
# Where the parameters are baked in, the code of the page of docs comes first.
PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "interop.md"
(READING,) = [
    code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S) if "deserialize" in code
]
SCRIPT = (
    f"READING = {READING!r}"
    + """
import pathlib, sys
import jax, numpy as np

def check(folder):
    given = dict(np.load(folder / "given.npz"))
    names = ("start", "step", "unroll")
    first = ({n[7:]: a for n, a in given.items() if n.startswith("params.")},) if "params." in str(list(given)) else ()
    start, step, unroll = (jax.export.deserialize((folder / f"{n}.jaxexport").read_bytes()).call for n in names)
    xs = given["xs"]
    state = start(*first, xs[0])
    final, ys = unroll(*first, state, xs)
    stepwise = []
    for x in xs:
        state, y = step(*first, state, x)
        stepwise.append(y)
    assert sorted(final) == sorted(state), (sorted(final), sorted(state))
    if not first:
        shown = {"folder": folder, "xs": xs}
        exec(READING, shown)
        np.testing.assert_allclose(shown["y"], ys[0], atol=1e-5)
        assert shown["ys"].shape == ys.shape and sorted(shown["state"]) == sorted(final)
    np.savez(folder / "result.npz", ys=ys, stepwise=np.stack(stepwise), **{f"state.{n}": a for n, a in final.items()})

for folder in sys.argv[1:]:
    check(pathlib.Path(folder))
assert not [name for name in sys.modules if name.split(".")[0] in ("rnnjax", "flax", "optax")]
"""
)


def random_params(cell, input_size):
    rng = np.random.default_rng(0)
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), like)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two cells and a language model, exported and run elsewhere, all in one process."""
    root = tmp_path_factory.mktemp("exported")
    xs = np.random.default_rng(1).normal(size=(5, 2, 3)).astype(np.float32)
    baked, passed = random_params(CELLS["stack"], 3), random_params(CELLS["gru"], 3)
    export_cell(root / "stack", CELLS["stack"], baked)
    np.savez(root / "stack" / "given.npz", xs=xs)
    export_cell(root / "gru", CELLS["gru"], passed, bake=False)
    np.savez(root / "gru" / "given.npz", xs=xs, **{f"params.{n}": a for n, a in named_arrays(passed).items()})
    run = tiny_run.make_run(root / "run")
    with pytest.raises(SystemExit) as ended:
        rnnjax_main("export", run, root / "lm", "--format", "stablehlo")
    assert not ended.value.code
    np.savez(root / "lm" / "given.npz", xs=np.random.default_rng(2).integers(0, 20, (5, 2)).astype(np.int32))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    names = [str(root / name) for name in ("stack", "gru", "lm")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return root


@functools.partial(fast_jit, static_argnums=0)
def expected(cell, params, xs):
    return rnnjax.unroll(cell, params, rnnjax.start_state(cell, params, (2,)), xs, implementation="scan")


def rnnjax_main(*arguments):
    from rnnjax.cli import main

    main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", CELLS)
def test_cell_runs_without_this_library(folders, name):
    cell = CELLS[name]
    given, got = np.load(folders / name / "given.npz"), np.load(folders / name / "result.npz")
    params = random_params(cell, 3)
    state, ys = jax.tree.map(np.asarray, expected(cell, params, given["xs"]))
    np.testing.assert_allclose(got["ys"], ys, atol=1e-6)
    np.testing.assert_allclose(got["stepwise"], ys, atol=1e-6)
    for path, leaf in named_arrays(state).items():
        np.testing.assert_allclose(got[f"state.{path}"], leaf, atol=1e-6)


def test_language_model_runs_without_this_library(folders):
    run = open_run(folders / "run")
    given, got = np.load(folders / "lm" / "given.npz"), np.load(folders / "lm" / "result.npz")
    state, logits = fast_jit(run.model.logits)(run.params, run.model.initial_state((2,)), jnp.asarray(given["xs"]))
    np.testing.assert_allclose(got["ys"], logits, atol=1e-5)
    np.testing.assert_allclose(got["stepwise"], logits, atol=1e-5)
    np.testing.assert_allclose(got["state.layers[1].c"], state.layers[1].c, atol=1e-5)
    described = json.loads((folders / "lm" / "config.json").read_text(encoding="utf-8"))
    assert described["vocabulary"] == run.vocabulary.to_json()


def test_batch_size_and_length_are_open(folders):
    for name, shapes in {"unroll": ("T", "B", "3"), "step": ("B", "3"), "start": ("B", "3")}.items():
        exported = jax.export.deserialize((folders / "stack" / f"{name}.jaxexport").read_bytes())
        assert tuple(map(str, exported.in_avals[-1].shape)) == shapes


def test_both_directions_have_no_step(tmp_path):
    net = rnnjax.Bidirectional((LSTM(4), rnnjax.ProjectedLSTM(2, cell_size=3)))
    params = random_params(net, 3)
    (tmp_path / "step.jaxexport").write_bytes(b"of another cell")
    start, unroll = export_cell(tmp_path, net, params)
    assert [start.name, unroll.name] == ["start.jaxexport", "unroll.jaxexport"] and len(list(tmp_path.iterdir())) == 2
    start, unroll = (jax.export.deserialize(path.read_bytes()).call for path in (start, unroll))
    xs = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    state, ys = unroll(start(xs[0]), xs)
    want, want_ys = fast_jit(lambda p, xs: rnnjax.unroll(net, p, None, xs))(params, xs)
    np.testing.assert_allclose(ys, want_ys, atol=1e-6)
    assert state.keys() == named_arrays(want).keys()
    for name, array in named_arrays(want).items():
        np.testing.assert_allclose(state[name], array, atol=1e-6)


def test_a_model_of_any_size_without_naming_an_engine(tmp_path):
    model = rnnjax.topologies.ManyToOne(rnnjax.Bidirectional((LSTM(4), GRU(3))), output_size=2, input_size=3)
    params = model.init(jax.random.key(0))
    T, B = jax.export.symbolic_shape("T, B")
    given = jax.ShapeDtypeStruct((T, B, 3), jnp.float32), jax.ShapeDtypeStruct((B,), jnp.int32)
    function = fast_jit(lambda xs, lengths: model.apply(params, xs, lengths=lengths))
    exported = jax.export.export(function)(*given)
    xs = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    for length in (6, 4):  # each row as if it were alone, by the default engine
        alone = function(xs[:length, :1], np.array([length], np.int32))
        both = exported.call(xs, np.array([length, 3], np.int32))
        np.testing.assert_allclose(both[:1], alone, atol=1e-6)
    with pytest.raises(ValueError, match=r"'fused' needs numbers of steps and rows that are known, got T and \(B,\)"):
        jax.export.export(jax.jit(lambda xs: model.apply(params, xs, implementation="fused")))(given[0])
    with pytest.raises(TypeError, match=r"^export_cell: cell must be a cell or a network, got ManyToOne.*jax\.export"):
        export_cell(tmp_path, model, params)


def test_other_platforms(tmp_path):
    cell = GRU(3)
    (path, *_) = export_cell(tmp_path, cell, random_params(cell, 2), platforms=("cuda", "tpu"))
    assert jax.export.deserialize(pathlib.Path(path).read_bytes()).platforms == ("cuda", "tpu")


def test_what_the_command_refuses(folders, capsys):
    for options, sentence in (
        (["--format", "torch"], "--format: must be safetensors, stablehlo or onnx, got 'torch'."),
        (["--platforms", "cuda"], "--platforms: only functions are made for a platform"),
        (["--format", "stablehlo", "--platforms", "cpu,abacus"], "--platforms: must be some of cpu, cuda, rocm, tpu"),
        (["--format", "stablehlo"], "must be empty or new, got files in it"),
    ):
        target = folders / "lm"
        result = tiny_run.rnnjax(capsys, "export", folders / "run", target, *options)
        assert result.code == 2 and sentence in result.err

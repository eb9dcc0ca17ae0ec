"""A trained run as ONNX, in another runtime: the logits and states of every step are those of JAX."""

import json
import sys

import jax
import numpy as np
import pytest

from rnnjax.lm.run import open_run
from rnnjax.saving import named_arrays
from tests.lm import tiny_run


@pytest.mark.thorough
def test_a_run_in_onnx_runtime(tmp_path, capsys):
    pytest.importorskip("jax2onnx", reason="pip install jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    folder = tiny_run.make_run(tmp_path / "run")
    found = tiny_run.rnnjax(capsys, "export", folder, tmp_path / "onnx", "--format", "onnx")
    assert found.code == 0 and "step.onnx" in found.out, found.err
    run = open_run(folder)
    session = runtime.InferenceSession(str(tmp_path / "onnx" / "step.onnx"))
    described = json.loads((tmp_path / "onnx" / "config.json").read_text(encoding="utf-8"))
    theirs = {name: np.stack([value] * 3).astype(np.float32) for name, value in described["start"].items()}
    ours = run.model.initial_state((3,))
    for symbols in np.random.default_rng(0).integers(run.model.vocab_size, size=(5, 3)).astype(np.int32):
        logits, *state = session.run(None, {"symbols": symbols, **theirs})
        ours, expected = run.model.logits(run.params, ours, symbols[None])
        np.testing.assert_allclose(logits, expected[0], atol=1e-5)
        theirs = dict(zip(theirs, state, strict=True))
        for name, array in named_arrays(ours).items():
            np.testing.assert_allclose(theirs[name], array, atol=1e-5)
    assert jax.tree.leaves(ours)[0].shape[0] == 3


def test_without_the_exporter_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    folder = tiny_run.make_run(tmp_path / "run")
    found = tiny_run.rnnjax(capsys, "export", folder, tmp_path / "onnx", "--format", "onnx")
    assert found.code == 2 and "jax2onnx" in found.err and "Traceback" not in found.err
    assert not (tmp_path / "onnx").exists()

"""`rnnjax convert`: what comes out is what went in, and the report says what went where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from safetensors import numpy as safetensors

import rnnjax
from rnnjax import GRU, LSTM, Bidirectional, Elman, Stack
from rnnjax.interop import from_torch, to_flax
from rnnjax.interop.files import save_torch
from rnnjax.lm.export import export
from rnnjax.lm.run import open_run
from tests.lm import tiny_run


def state_dict(gates, layers=1, directions=1, dtype=np.float32, prefix="", bias=True):
    """What torch.nn.LSTM(3, 4) and the like save."""
    rng = np.random.default_rng(0)
    arrays = {}
    for layer in range(layers):
        for end in ("", "_reverse")[:directions]:
            width = 3 if layer == 0 else 4 * directions
            for name, shape in (
                ("weight_ih", (4 * gates, width)),
                ("weight_hh", (4 * gates, 4)),
                ("bias_ih", (4 * gates,)),
                ("bias_hh", (4 * gates,)),
            ):
                if bias or "bias" not in name:
                    arrays[f"{prefix}{name}_l{layer}{end}"] = rng.normal(size=shape).astype(dtype)
    return arrays


def rows(text):
    """The lines of the report, as lists of words with the shapes put together."""
    return [line.replace(", ", ",").split() for line in text.splitlines()]


@pytest.fixture
def convert(capsys):
    return lambda *arguments: tiny_run.rnnjax(capsys, "convert", *arguments)


def test_torch_there_and_back(tmp_path, convert):
    theirs = state_dict(3, layers=2, prefix="rnn.") | {"out.weight": np.ones((2, 4), np.float32)}
    theirs["steps"] = np.arange(3)
    safetensors.save_file(theirs, tmp_path / "gru.safetensors")
    result = convert(tmp_path / "gru.safetensors", tmp_path / "net.safetensors")
    assert result.code == 0, result.err
    cell, params = rnnjax.load(tmp_path / "net.safetensors")
    assert cell == Stack((GRU(4), GRU(4)))
    np.testing.assert_array_equal(params.layers[1].w_ih, theirs["rnn.weight_ih_l1"].T)
    np.testing.assert_array_equal(params.layers[0].b_hn, theirs["rnn.bias_hh_l0"][8:])
    lines = rows(result.out)
    assert ["rnn.weight_ih_l1", "[12,4]", "layers[1].w_ih", "[4,12]"] in lines
    assert ["rnn.bias_hh_l0", "[12]", "layers[0].b", "[12]"] in lines
    assert ["rnn.bias_hh_l0", "[12]", "layers[0].b_hn", "[4]"] in lines
    assert not [line for line in lines if line and line[0] in ("out.weight", "steps")]
    # What goes back has its biases summed, so it is compared after another way here.
    result = convert(tmp_path / "net.safetensors", tmp_path / "back.safetensors")
    assert result.code == 0, result.err
    assert ["bias_hh_l1", "[12]", "layers[1].b_hn", "[4]"] in rows(result.out)
    again, same = from_torch(tmp_path / "back.safetensors")
    assert again == cell
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_float64_stays(tmp_path, convert):
    safetensors.save_file(state_dict(1, dtype=np.float64), tmp_path / "rnn.safetensors")
    assert convert(tmp_path / "rnn.safetensors", tmp_path / "net.safetensors", "--activation", "relu").code == 0
    with jax.enable_x64(True):
        cell, params = rnnjax.load(tmp_path / "net.safetensors")
        assert cell == Elman(4, activation="relu") and params.w_ih.dtype == jnp.float64


def test_a_torch_lstm_in_one_line(tmp_path):
    """A file that torch itself wrote, against what torch computes."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from safetensors.torch import load_file, save_file

    lstm = torch.nn.LSTM(3, 4, bidirectional=True)
    save_file(lstm.state_dict(), tmp_path / "lstm.safetensors")
    net, params = from_torch(tmp_path / "lstm.safetensors")
    xs = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    _, ys = rnnjax.unroll(net, params, net.initial_state((2,)), xs)
    with torch.no_grad():
        np.testing.assert_allclose(ys, lstm(torch.from_numpy(xs))[0].numpy(), atol=1e-6)
    save_torch(tmp_path / "back.safetensors", net, params)
    other = torch.nn.LSTM(3, 4, bidirectional=True)
    other.load_state_dict(load_file(tmp_path / "back.safetensors"))
    with torch.no_grad():
        np.testing.assert_allclose(ys, other(torch.from_numpy(xs))[0].numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_keras_there_and_back(tmp_path, convert, ending):
    keras = pytest.importorskip("keras", reason="keras is not installed")
    rng = np.random.default_rng(0)
    cell = Stack((LSTM(4), GRU(2))) if ending == ".keras" else Bidirectional((GRU(4),))
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), like)
    rnnjax.save(tmp_path / "net.safetensors", cell, params)
    theirs, back = tmp_path / f"model{ending}", tmp_path / "back.safetensors"
    result = convert(tmp_path / "net.safetensors", theirs)
    assert result.code == 0, result.err
    if ending == ".keras":
        xs = rng.normal(size=(2, 5, 3)).astype(np.float32)
        _, ys = rnnjax.unroll(cell, params, cell.initial_state((2,)), xs.swapaxes(0, 1))
        np.testing.assert_allclose(keras.saving.load_model(theirs)(xs), ys.swapaxes(0, 1), atol=1e-6)
        assert ["layers[1]/bias", "[2,6]", "layers[1].b_hn", "[2]"] in rows(result.out)
        refused = convert(theirs, back)
        assert refused.code == 2 and "choose by name" in refused.err
        layers = [layer.name for layer in keras.saving.load_model(theirs).layers]
        options = [part for layer in layers for part in ("--name", layer)]
    else:
        layers, options = ["layers/bidirectional"], ["--merge", "concat"]
    result = convert(theirs, back, *options)
    assert result.code == 0, result.err
    end = "" if ending == ".keras" else "/backward_layer"
    ours = "layers[0].w_ih" if ending == ".keras" else "layers[0].backward.w_ih"
    shape = "[3,16]" if ending == ".keras" else "[3,12]"
    assert [f"{layers[0]}{end}/kernel", shape, ours, shape] in rows(result.out)
    again, same = rnnjax.load(back)
    assert again == cell
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_what_is_refused(tmp_path, convert):
    net, torch, other = (tmp_path / f"{name}.safetensors" for name in ("net", "torch", "other"))
    cell = Elman(4)
    rnnjax.save(net, cell, cell.init(jax.random.key(0), 3))
    safetensors.save_file(state_dict(4), torch)
    (tmp_path / "lstm.pt").write_bytes(b"")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "broken.keras").write_bytes(b"broken")
    for arguments, sentence in (
        ((tmp_path / "nowhere.keras", other), "convert: there is no file"),
        ((torch, net), "net.safetensors must be new, got one that is there; take another name or --force."),
        ((tmp_path / "lstm.pt", other), "SRC must end in .safetensors, .keras or .weights.h5, got 'lstm.pt' (a .pt"),
        ((tmp_path / "broken.safetensors", other), "broken.safetensors is truncated or damaged"),
        ((tmp_path / "broken.keras", other), "must be a .keras file"),
        (
            (torch, tmp_path / "net.npz"),
            "DST must end in .keras or .weights.h5 for Keras, in .msgpack for flax, else in .safetensors",
        ),
        ((torch, tmp_path / "net.keras", "--to", "torch"), "DST must end in .keras or .weights.h5 for Keras"),
        ((torch, other, "--to", "torch"), "SRC and DST must be of two kinds, got torch twice"),
        ((torch, other, "--to", "onnx"), "--to: must be one of rnnjax, torch, keras, flax, got 'onnx'."),
        ((torch, other, "--merge", "sum"), "--merge: a file of torch says it"),
        ((net, other, "--activation", "tanh"), "--activation: a file of rnnjax says it"),
        ((torch, other, "--prefix", "encoder."), "from_torch: the state_dict must hold 'encoder.weight_ih_l0'"),
    ):
        result = convert(*arguments)
        assert result.code == 2 and sentence in result.err, (sentence, result)
        assert len(result.err.splitlines()) == 1 and not other.exists()
    assert convert(torch, net, "--force").code == 0
    assert rnnjax.load(net)[0] == LSTM(4)


def test_the_layers_of_a_run_and_of_its_export(tmp_path, convert):
    """A trained language model gives its layers to torch; embedding and output stay behind."""
    folder = tiny_run.make_run(tmp_path / "run")
    run = open_run(folder)
    export(run, tmp_path / "export")
    for source in (folder, tmp_path / "export"):
        result = convert(source, tmp_path / f"{source.name}.safetensors")
        assert result.code == 0, result.err
        cell, params = from_torch(tmp_path / f"{source.name}.safetensors")
        assert cell == run.model.stack
        for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(run.params.stack), strict=True):
            np.testing.assert_array_equal(one, two)
    result = convert(tmp_path / "export/model.safetensors", tmp_path / "other.safetensors")
    assert result.code == 2 and "is a part of an export; name its folder" in result.err


def test_a_run_for_flax(tmp_path, convert):
    """The file holds what `to_flax` makes, which other tests hold against flax."""
    folder = tiny_run.make_run(tmp_path / "run")
    result = convert(folder, tmp_path / "net.msgpack")
    assert result.code == 0 and "flax.linen.OptimizedLSTMCell(8)" in result.out, result.err
    found = serialization.msgpack_restore((tmp_path / "net.msgpack").read_bytes())
    assert sorted(found["params"]) == ["layers_0", "layers_1"]
    run = open_run(folder)
    for depth, (cell, params) in enumerate(zip(run.model.stack.cells, run.params.stack.layers, strict=True)):
        jax.tree.map(np.testing.assert_array_equal, found["params"][f"layers_{depth}"], to_flax(cell, params)[1])
    back = convert(tmp_path / "net.msgpack", tmp_path / "net.safetensors")
    assert back.code == 2 and "from_flax(module, params)" in back.err
    wrong = convert(folder, tmp_path / "net.safetensors", "--to", "flax")
    assert wrong.code == 2 and "must end in .msgpack" in wrong.err

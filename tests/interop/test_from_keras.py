"""Weights from and to Keras on its JAX backend: outputs, final states and all gradients, files, and what is refused."""

import json
import sys
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import GRU, LSTM, Bidirectional, Elman, Stack
from rnnjax.cells import GRUResetBefore
from rnnjax.interop import from_keras, to_keras
from rnnjax.interop.files import save_keras
from rnnjax.interop.keras import to_keras_layer
from rnnjax.network import input_shape
from rnnjax.testing.problems import fast_jit, loss_of
from tests.interop.agreement import TOLERANCE, difference, filled, outcome, parameters, record

T, B, I, H = 4, 2, 3, 4
CASES = {  # the layer, its options, and the cell or network that it is here
    "SimpleRNN": ("SimpleRNN", {}, Elman(H)),
    "SimpleRNN (relu), no bias": ("SimpleRNN", {"activation": "relu", "use_bias": False}, Elman(H, activation="relu")),
    "LSTM": ("LSTM", {}, LSTM(H)),
    "GRU (reset_after)": ("GRU", {"reset_after": True}, GRU(H)),
    "GRU (reset_after), no bias": ("GRU", {"reset_after": True, "use_bias": False}, GRU(H)),
    "GRU (reset before)": ("GRU", {"reset_after": False}, GRUResetBefore(H)),
    "Bidirectional (concat) of LSTM": ("LSTM", {}, Bidirectional((LSTM(H),))),
    "Bidirectional (sum) of GRU": ("GRU", {}, Bidirectional((GRU(H),), merge="sum")),
    "Bidirectional (ave) of GRU": ("GRU", {}, Bidirectional((GRU(H),), merge="mean")),
    "ConvLSTM2D": (
        "ConvLSTM2D",
        {"kernel_size": (3, 1), "padding": "same"},
        rnnjax.ConvLSTM(H, spatial_shape=(3, 2), kernel_shape=(3, 1)),
    ),
    "Bidirectional (mul) of SimpleRNN": ("SimpleRNN", {}, Bidirectional((Elman(H),), merge="product")),
}


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # read, and a file written, when it is imported
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        return pytest.importorskip("keras", reason="keras is not installed on this Python")


def weights_of(layer):
    return [weight.value for weight in layer.weights]


def fill(layer, seed=0):
    """No weight is left at zero, where a wrong place would not show."""
    layer.set_weights([np.asarray(w) for w in filled(weights_of(layer), seed=seed)])


def make(keras, name):
    kind, options, cell = CASES[name]
    layer = getattr(keras.layers, kind)(H, return_sequences=True, return_state=True, **options)
    if isinstance(cell, Bidirectional):
        layer = keras.layers.Bidirectional(
            layer, merge_mode={"mean": "ave", "product": "mul"}.get(cell.merge, cell.merge)
        )
    layer.build((None, None, *input_shape(cell, I)))
    fill(layer)
    return layer


def theirs(layer, like):
    """Outputs, final state and gradients of a layer as a function of its weights, state and inputs; compiled."""
    others = [variable.value for variable in layer.non_trainable_variables]

    def loss(weights, state, xs):
        states = jax.tree.leaves(state)  # Keras has them in the order of our leaves: h, c, and forward before backward
        (ys, *final), _ = layer.stateless_call(weights, others, jnp.swapaxes(xs, 0, 1), initial_state=states)
        final, ys = jax.tree.unflatten(jax.tree.structure(like), final), jnp.swapaxes(ys, 0, 1)
        return loss_of(final, ys), (final, ys)

    return fast_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("name", CASES)
def test_both_ways(keras, name):
    """In float32, since the activations of Keras return that on its JAX backend whatever they get."""
    cell, use_bias = CASES[name][2], CASES[name][1].get("use_bias", True)
    layer = make(keras, name)
    state = filled(cell.initial_state((B,)))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, *input_shape(cell, I))), jnp.float32)
    run = theirs(layer, state)

    def compare(params, weights):
        got = outcome(cell)(params, state, xs)
        (d_weights, *d_others), (final, ys) = run(weights, state, xs)
        mine = to_keras(cell, got.gradients[0])
        if not use_bias:
            mine = [w for w in mine if w.shape[-2:] != (2, 3 * H) and w.ndim == 2]
        for k, w in enumerate(mine):
            if w.shape == (2, 3 * H):  # of two biases that are summed, the gradients are equal, and one is enough
                mine[k] = w.at[1, : 2 * H].set(d_weights[k][1, : 2 * H])
        return difference((got.ys, got.state, *got.gradients[1:], mine), (ys, final, *d_others, d_weights))

    got_cell, params = from_keras(layer)
    assert got_cell == cell
    found = compare(params, weights_of(layer))
    record("keras", name, "from", "float32", found)
    assert found < TOLERANCE["float32"]

    params = filled(params, seed=1)
    if not use_bias:  # what Keras does not have is zero
        params = jax.tree.map(lambda leaf: leaf * (leaf.ndim == 2), params)
    weights = to_keras(cell, params, use_bias=use_bias)
    found = compare(params, weights)
    record("keras", name, "to", "float32", found)
    assert found < TOLERANCE["float32"]

    made = to_keras_layer(cell, params, use_bias=use_bias, return_sequences=True, name="mine")
    assert type(made) is type(layer) and made.name == "mine" and made.return_sequences
    assert difference(weights_of(made), [np.asarray(w) for w in weights]) == 0
    again, back = from_keras(made)
    assert again == cell and difference(back, params) == 0


@pytest.fixture(scope="module")
def model(keras, tmp_path_factory):
    """A model with several recurrent layers, one of them in a model within, and its two files."""
    layers = keras.layers
    inner = keras.Sequential([layers.LSTM(2, return_sequences=True, name="deep")], name="inner")
    model = keras.Sequential(
        [
            layers.Input((None, I)),
            layers.LSTM(H, return_sequences=True, name="low"),
            layers.LSTM(H, return_sequences=True, name="high"),
            inner,
            layers.RNN(layers.GRUCell(H, reset_after=False), return_sequences=True, name="wrapped"),
            layers.Bidirectional(layers.GRU(H, return_sequences=True), merge_mode="sum", name="both"),
            layers.Dense(2),
            layers.SimpleRNN(2, activation="relu", use_bias=False, name="plain"),
        ]
    )
    fill(model)
    folder = tmp_path_factory.mktemp("files")
    files = str(folder / "model.keras"), str(folder / "model.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, for how Keras makes arrays
        model.save(files[0])
        model.save_weights(files[1])
    return model, *files


NAMES = {  # the names in the model and in its weights
    "low": ("layers/lstm", {}),
    "high": ("layers/lstm_1", {}),
    "deep": ("layers/sequential/layers/lstm", {}),
    "wrapped": ("layers/rnn", {}),
    "both": ("layers/bidirectional", {"merge": "sum"}),
    "plain": ("layers/simple_rnn", {"activation": "relu"}),
}


def test_files(model, monkeypatch):
    """Each layer from the model, from its file and from its weights; for files, Keras need not be there."""
    model, file, weights = model
    want = {name: from_keras(model, name=name) for name in NAMES}
    assert (
        want["wrapped"][0] == GRUResetBefore(H)
        and want["deep"][0] == LSTM(2)
        and want["plain"][0] == Elman(2, activation="relu")
    )
    assert want["both"][0] == Bidirectional((GRU(H),), merge="sum")
    np.testing.assert_array_equal(want["high"][1].w_ih, weights_of(model.get_layer("high"))[0])
    monkeypatch.setitem(sys.modules, "keras", None)
    for name, (path, told) in NAMES.items():
        for got in (from_keras(file, name=name), from_keras(weights, name=path, **told)):
            assert got[0] == want[name][0]
            assert difference(got[1], want[name][1]) == 0
    cell, params = from_keras(file, name=("low", "high"))
    assert cell == Stack((LSTM(H), LSTM(H)))
    assert difference(params.layers, (want["low"][1], want["high"][1])) == 0
    with pytest.raises(
        ModuleNotFoundError, match=r"^from_keras: keras is needed, which is not installed; pip install ke"
    ):
        from_keras(model)


def test_sequential(keras, model):
    """`to_keras` of a stack is what a model of its layers takes."""
    cell, params = from_keras(model[0], name=("low", "high"))
    params = filled(params, seed=2)
    layers = [keras.layers.LSTM(H, return_sequences=True) for _ in range(2)]
    stack = keras.Sequential([keras.layers.Input((None, I)), *layers])
    stack.set_weights([np.asarray(w) for w in to_keras(cell, params)])
    for layer, want in zip(layers, params.layers, strict=True):
        assert difference(from_keras(layer)[1], want) == 0


def test_names_and_files_that_do_not_fit(model, tmp_path):
    model, file, weights = model
    for source, name, message in (
        (
            file,
            None,
            "without name there must be one recurrent layer, got 'low', 'high', 'deep', 'wrapped', 'both', 'pla",
        ),
        (model, "lstm", "name must be of one recurrent layer, got 'lstm'; there are 'low'"),
        (file, (), "name must hold at least one name"),
        (file, ("low", "both"), "must all be Bidirectional, and merged alike, or none"),
        (weights, "layers/simple_rnn", "does not tell the activation of 'layers/simple_rnn'; give activation='tanh'"),
        (
            weights,
            "layers/bidirectional",
            "does not tell the merge_mode of 'layers/bidirectional'; give merge='concat'",
        ),
    ):
        with pytest.raises(ValueError, match=rf"^from_keras: .*{message}"):
            from_keras(source, name=name)
    with pytest.raises(ValueError, match=r"^from_keras: merge is for .weights.h5 files"):
        from_keras(file, name="both", merge="sum")
    with pytest.raises(
        TypeError, match=r"^from_keras: it takes a layer or model of Keras or the path of a file, got 3"
    ):
        from_keras(3)
    with pytest.raises(FileNotFoundError):
        from_keras(str(tmp_path / "none.keras"))
    for name in ("bad.keras", "bad.weights.h5"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(OSError, match=r"^from_keras: '.*bad.*' must .*Keras 3"):
            from_keras(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "odd.keras", "w") as odd, zipfile.ZipFile(file) as good:
        odd.writestr("config.json", json.dumps({"config": {"layers": [{"class_name": "LSTM", "config": {}}]}}))
        odd.writestr("model.weights.h5", good.read("model.weights.h5"))
    with pytest.raises(OSError, match=r"must hold a configuration of Keras 3, not this: KeyError\('name'\)"):
        from_keras(tmp_path / "odd.keras")


def test_weights_that_point_elsewhere(model, tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "link.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/lstm/cell/vars")
        group["0"] = h5py.ExternalLink(model[2], "layers/lstm/cell/vars/0")
    with pytest.raises(ValueError, match=r"must hold its own weights, layers/lstm/cell/vars/0 points elsewhere"):
        from_keras(path)


def test_announced_sizes_are_not_believed(model, tmp_path):
    """16 GiB in a file of some kilobytes, 64 MiB of zeros packed into some more, and JSON nested too deeply."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "large.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_group("layers/lstm/cell/vars").create_dataset("0", (2**32,), "f4", chunks=(2**20,))
    with pytest.raises(ValueError, match=r"announces 17,179,869,184 bytes for layers/lstm/cell/vars/0 and holds 0"):
        from_keras(path)
    for name, config, weights, message in (
        ("packed", b"{}", bytes(1 << 26), "announces 67,108,864 bytes for model.weights.h5"),
        ("deep", b"[" * 200_000, b"", "nested too deeply"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.keras", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("config.json", config)
            file.writestr("model.weights.h5", weights)
        with pytest.raises((OSError, ValueError), match=message):
            from_keras(tmp_path / f"{name}.keras")


def test_weights_without_a_bias_and_in_bfloat16(tmp_path):
    """Written as Keras writes them: only its bfloat16 carries its name beside it."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "gru.weights.h5"
    kernel, recurrent = filled([jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((I, 3 * H), (H, 3 * H))])
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/gru/cell/vars")
        for name, array in (("0", kernel), ("1", recurrent)):
            group.create_dataset(name, data=np.asarray(array)).attrs["dtype"] = "bfloat16"
    with pytest.raises(ValueError, match="does not tell reset_after of 'layers/gru'; give reset_after=True or False"):
        from_keras(path)
    for reset_after, cell in ((True, GRU(H)), (False, GRUResetBefore(H))):
        got, params = from_keras(path, reset_after=reset_after)
        assert got == cell and {leaf.dtype for leaf in params} == {jnp.dtype("bfloat16")}
        z, r, n = np.split(np.float32(recurrent), 3, axis=1)
        np.testing.assert_array_equal(np.float32(params.w_hh), np.concatenate([r, z, n], axis=1))
        assert not np.float32(params.b).any()


def test_classes_of_others_in_a_file_are_left_alone(model, tmp_path):
    """A class of another module is neither imported nor taken for Keras's."""
    with zipfile.ZipFile(model[1]) as good, zipfile.ZipFile(tmp_path / "own.keras", "w") as own:
        config = json.loads(good.read("config.json"))
        for layer in config["config"]["layers"]:
            if layer["config"]["name"] == "low":
                layer |= {"module": "antigravity", "registered_name": "LSTM"}
        own.writestr("config.json", json.dumps(config))
        own.writestr("model.weights.h5", good.read("model.weights.h5"))
    with pytest.raises(ValueError, match="got 'low'; there are 'high'"):
        from_keras(tmp_path / "own.keras", name="low")
    assert "antigravity" not in sys.modules
    _, params = from_keras(tmp_path / "own.keras", name="high")
    assert difference(params, from_keras(model[1], name="high")[1]) == 0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "LSTM",
            {"activation": "relu"},
            r"the activation 'relu' of '.*' has no exact counterpart: for LSTM it is tanh",
        ),
        ("SimpleRNN", {"activation": "gelu"}, "for SimpleRNN it is tanh or relu here"),
        (
            "GRU",
            {"recurrent_activation": "hard_sigmoid"},
            "recurrent_activation='hard_sigmoid' of .*the gates here have",
        ),
        ("LSTM", {"go_backwards": True}, "go_backwards=True of .*run unroll\\(reverse=True\\)"),
        ("LSTM", {"merge_mode": None}, "the merge_mode None of .* here the directions are merged"),
        ("ConvLSTM1D", {"kernel_size": 3}, "padding='valid' of .* counterpart: a ConvLSTM here has 'same'"),
        ("ConvLSTM1D", {"kernel_size": 3, "padding": "same", "dilation_rate": 2}, "dilation_rate=.* has no exact"),
        ("ConvLSTM1D", {"kernel_size": 2, "padding": "same"}, "every size of kernel_shape must be odd"),
    ],
)
def test_what_is_no_cell_here(keras, kind, options, message):
    layer = getattr(keras.layers, kind)(H, **{key: value for key, value in options.items() if key != "merge_mode"})
    if "merge_mode" in options:
        layer = keras.layers.Bidirectional(layer, merge_mode=options["merge_mode"])
    layer.build((None, None, I) if kind != "ConvLSTM1D" else (None, None, 6, I))
    with pytest.raises(ValueError, match=rf"^(from_keras|ConvLSTM): .*{message}"):
        from_keras(layer)


def test_images_in_files(keras, tmp_path):
    """The sizes of the images are in a .keras file, and in no file of weights; both directions are read."""
    cell = Bidirectional((rnnjax.ConvLSTM(2, spatial_shape=(5,)),))
    params, path = filled(parameters(cell)), tmp_path / "images.keras"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, for how Keras makes arrays
        save_keras(path, cell, params)
        save_keras(tmp_path / "images.weights.h5", cell, params)
    layer = to_keras_layer(cell, params)
    for got, back in (
        from_keras(path),
        from_keras(tmp_path / "images.weights.h5", merge="concat", spatial_shape=(5,)),
        from_keras(layer),
    ):
        assert got == cell and difference(back, params) == 0
    assert from_keras(path, spatial_shape=(9,))[0].layers[0][0].spatial_shape == (9,)
    with pytest.raises(ValueError, match=r"^from_keras: the sizes of the images are not known of .*; give spatial_sha"):
        from_keras(tmp_path / "images.weights.h5", merge="concat")


def test_what_keras_does_not_have(keras):
    for cell, options, message in (
        (rnnjax.cells.MGU(H), {}, "MGU has no exact counterpart: Keras has only"),
        (Stack((GRU(H),) * 2, norm="rms"), {}, "neither residual connections nor norms"),
        (LSTM(H), {"use_bias": False}, r"use_bias=False for LSTM\(.*its biases are not zero"),
    ):
        with pytest.raises(ValueError, match=rf"^to_keras: .*{message}"):
            to_keras(cell, parameters(cell), **options)
    with pytest.raises(ValueError, match=r"^to_keras: b must have shape \[16\] \(from LSTM.*, got f32\[12\]"):
        to_keras(LSTM(H), parameters(LSTM(H))._replace(b=jnp.zeros(12)))
    with pytest.raises(ValueError, match=r"^to_keras_layer: Stack.*a layer of Keras is one layer"):
        cell = Stack((GRU(H),) * 2)
        to_keras_layer(cell, parameters(cell))
    with pytest.raises(ValueError, match=r"must have a kernel, .* got 0 arrays; build the layer first"):
        from_keras(keras.layers.LSTM(H))

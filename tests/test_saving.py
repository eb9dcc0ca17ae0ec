"""A saved cell is the cell: every kind of it, every dtype, and a damaged file says what is wrong with it."""

import dataclasses
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from safetensors import numpy as safetensors

import rnnjax
from rnnjax import GRU, LSTM, Bidirectional, Elman, LearnedState, Stack, topologies
from rnnjax import arrays as arrays_file
from rnnjax.arrays import seal, write_arrays
from rnnjax.cells import describable
from rnnjax.cells.registry import cell_from_repr
from rnnjax.files import FileWarning, save_figure, write_atomic
from rnnjax.fit.checkpoint import open_checkpoint
from rnnjax.initializers import Chrono
from rnnjax.lm.model import LanguageModel
from rnnjax.saving import CheckpointError, named_arrays
from rnnjax.topologies.bridge import ContextState
from tests.cells_table import CELLS, VARIANTS

pytestmark = pytest.mark.quick
NETWORKS = {
    "bidirectional": Bidirectional((LSTM(4), (GRU(3), Elman(2, activation="relu")))),
    "bidirectional_sum": Bidirectional((LSTM(4),), merge="sum"),
    "context": ContextState(Stack((LSTM(4), GRU(4))), activation="tanh"),
    "nested": Stack((LearnedState(Stack((GRU(4, update_bias=Chrono(max_lag=20)),) * 3, norm="rms")), LSTM(2))),
}


def random_params(cell, input_size, dtype=jnp.float32):
    """Numbers without an initialiser, since those compile."""
    rng = np.random.default_rng(0)
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, dtype))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), like)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


def test_every_cell_is_what_its_repr_says():
    for cell in (*(row.cell for row in (*CELLS.values(), *VARIANTS.values())), *NETWORKS.values()):
        assert cell_from_repr(repr(cell)) == cell


@pytest.mark.parametrize("name", [*CELLS, *NETWORKS])
def test_every_cell_there_and_back(name, tmp_path):
    cell, input_size = CELLS.get(name) or (NETWORKS[name], 3)
    params = random_params(cell, input_size)
    rnnjax.save(tmp_path / "net.safetensors", cell, params)
    loaded, arrays = rnnjax.load(tmp_path / "net.safetensors")
    assert loaded == cell
    assert_same(arrays, params)


MODELS = {
    "many_to_one": topologies.ManyToOne(
        Bidirectional((LSTM(4),)), 2, vocab_size=5, embed_size=3, pooling="attention", dropout=0.5
    ),
    "one_to_one": topologies.OneToOne(Elman(4), 2, input_size=3),
    "many_to_many": topologies.ManyToMany(Stack((LSTM(4), GRU(2))), 2, vocab_size=5),
    "one_to_many": topologies.OneToMany(GRU(4), 6, input_size=3, output_embed_size=2),
    "encoder_decoder": topologies.EncoderDecoder(
        Bidirectional((GRU(4),)), LSTM(6), 5, vocab_size=7, attention=topologies.Attention("general")
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_topology_there_and_back(name, tmp_path):
    """Their ``init`` takes no input size."""
    model = MODELS[name]
    params = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, leaf.size, leaf.dtype), jax.eval_shape(model.init, jax.random.key(0))
    )
    rnnjax.save(tmp_path / "net.safetensors", model, params)
    loaded, arrays = rnnjax.load(tmp_path / "net.safetensors")
    assert loaded == model
    assert_same(arrays, params)
    with pytest.raises(CheckpointError, match=r"but .* has f32"):
        rnnjax.load(tmp_path / "net.safetensors", dataclasses.replace(model, output_size=9))


def test_a_language_model_there_and_back(tmp_path):
    """Whatever has an ``init``, also one that takes a key alone."""
    model = LanguageModel(5, Stack((GRU(4),)))
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(model.init, jax.random.key(0)))
    rnnjax.save(tmp_path / "net.safetensors", model, params)
    loaded, arrays = rnnjax.load(tmp_path / "net.safetensors", model)
    assert loaded == model
    assert_same(arrays, params)


def test_the_file_is_readable_without_this_library(tmp_path):
    path = tmp_path / "net.safetensors"
    cell = Stack((LSTM(4), GRU(2)))
    params = random_params(cell, 3)
    rnnjax.save(path, cell, params)
    arrays = safetensors.load_file(path)
    assert set(arrays) == {f"layers[0].{n}" for n in ("w_ih", "w_hh", "b")} | {
        f"layers[1].{n}" for n in ("w_ih", "w_hh", "b", "b_hn")
    }
    np.testing.assert_array_equal(arrays["layers[1].w_hh"], params.layers[1].w_hh)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["cell"] == repr(cell)


def test_dtypes_are_kept(tmp_path):
    path, cell = tmp_path / "net.safetensors", Elman(4)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        params = random_params(cell, 3, dtype)
        rnnjax.save(path, cell, params)
        assert_same(rnnjax.load(path)[1], params)
    mixed = random_params(cell, 3, jnp.bfloat16)._replace(b=jnp.arange(4.0))
    rnnjax.save(path, cell, mixed)
    assert_same(rnnjax.load(path)[1], mixed)


def test_float64_is_never_cut_down(tmp_path):
    path, cell = tmp_path / "net.safetensors", Elman(4)
    with jax.enable_x64(True):
        params = random_params(cell, 3, jnp.float64)
        rnnjax.save(path, cell, params)
        assert_same(rnnjax.load(path)[1], params)
    with pytest.raises(ValueError, match=r"leaf '\w+' is f64\[.*cut down to float32; load it under jax.enable_x64"):
        rnnjax.load(path)


@dataclasses.dataclass(frozen=True)
class Mine(GRU):
    leak: float = 0.5


Impostor = dataclasses.make_dataclass("Elman", [], bases=(Elman,), frozen=True)  # one of our names, and not ours


def test_a_cell_of_somebody_else_is_passed(tmp_path):
    path = tmp_path / "net.safetensors"
    for cell, name in ((Mine(4), "Mine"), (Impostor(4), "Elman"), (Stack((Impostor(4),)), "Stack")):
        params = random_params(cell, 3)
        rnnjax.save(path, cell, params)
        with pytest.raises(ValueError, match=rf"was saved from {name}\(.*none of rnnjax's cells.*pass cell="):
            rnnjax.load(path)
        loaded, arrays = rnnjax.load(path, cell=cell)
        assert loaded is cell
        assert_same(arrays, params)


def test_describable(tmp_path, monkeypatch):
    from rnnjax.cells import registry

    monkeypatch.setattr(registry, "_DESCRIBABLE", dict(registry._DESCRIBABLE))
    describable(Mine)
    cell = Stack((Mine(4, leak=0.25),))
    rnnjax.save(tmp_path / "net.safetensors", cell, random_params(cell, 3))
    assert rnnjax.load(tmp_path / "net.safetensors")[0] == cell
    with pytest.raises(ValueError, match="name of a class must be new, got 'Elman', which rnnjax"):
        describable(Impostor)
    with pytest.raises(TypeError, match="a frozen dataclass is needed"):
        describable(lambda: None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "describes no cell"),
        ("LSTM", "it must be a call of a class"),
        ("8", "it must be a call of a class"),
        ("Mine(hidden_size=8)", "Mine is none of rnnjax's cells"),
        ("Chrono(max_lag=20)", "Chrono is none of rnnjax's cells"),
        ("LSTM(hidden_size=0)", "LSTM: hidden_size must be at least 1, got 0."),
        ("LSTM(hidden_size=size)", "size is no literal"),
        ("LSTM(size=3)", "LSTM: no option is called 'size'"),
        ("LSTM(hidden_size=3, forget_bias=nan)", "LSTM: forget_bias must be a finite number, got nan"),
        ("LSTM(hidden_size=3, forget_bias=-inf)", "LSTM: forget_bias must be a finite number, got -inf"),
        ("LSTM(**{'hidden_size': 3})", "describes no cell"),
        ("Stack(cells=(Mine(hidden_size=8),))", "Mine is no class of rnnjax"),
        ("Stack(cells=(LSTM(8), __import__('os').getcwd()))", "describes no cell"),
        ("LSTM(hidden_size=print(1))", "print is no class of rnnjax"),
        ("LSTM(hidden_size=(lambda: 3)())", "describes no cell"),
        ("LSTM(hidden_size=8, forget_bias=np.float64(1.0))", "describes no cell"),
        ("f.<locals>.LSTM(hidden_size=8)", "describes no cell"),
        ("Stack((" * 500 + "LSTM(4)" + ",))" * 500, "describes no cell"),
    ],
)
def test_error_of_cell_from_repr(text, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        cell_from_repr(text)
    assert str(caught.value).startswith("cell_from_repr: ") and "\n" not in str(caught.value)


def test_damage_is_named(tmp_path):
    path, cell = tmp_path / "net.safetensors", Stack((GRU(4), LSTM(2)))
    params = random_params(cell, 3)
    rnnjax.save(path, cell, params)
    good, arrays = path.read_bytes(), named_arrays(params)
    metadata = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]

    def message(data, cell=None):
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            rnnjax.load(path, cell=cell)
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"load: {path}")
        return str(caught.value)

    for size in (0, 5, len(good) // 2, len(good) - 1):
        assert "is truncated or damaged" in message(good[:size])
    assert "is truncated or damaged" in message(b"PK" + good[2:])

    plain = {name: text for name, text in metadata.items() if not name.startswith(("rnnjax.sha", "rnnjax.arrays"))}
    for place in np.random.default_rng(0).choice(len(good), 150, replace=False):
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(place) % 8
        assert "damaged" in message(bytes(flipped)), place
    for change in ({"input_size": "4"}, {"cell": "GRU(hidden_size=4)"}, {"more": "words"}):
        assert "does not match its checksum" in message(arrays_file.encode(arrays, metadata | change))

    def encode(arrays, metadata):
        return arrays_file.encode(arrays, arrays_file.seal(arrays, metadata))

    def changed(**more):
        return encode({**arrays, **more}, plain)

    without = {name: array for name, array in arrays.items() if name != "layers[1].b"}
    text = message(encode(without, plain))
    assert "there is no leaf 'layers[1].b'; it was saved from Stack(cells=(GRU(hidden_size=4" in text
    text = message(changed(**{"layers[0].w_ih": np.zeros((5, 12), np.float32)}))
    assert "leaf 'layers[0].w_ih' is f32[5,12], but Stack has f32[3,12]" in text
    text = message(changed(**{"layers[1].w_hh": np.zeros((2, 8), np.int32)}))
    assert "leaf 'layers[1].w_hh' is i32[2,8], but Stack has f32[2,8]" in text
    assert "leaf 'more' is none of Stack's" in message(changed(more=np.zeros(1)))
    text = message(good, cell=Stack((GRU(4), LSTM(3))))
    assert "leaf 'layers[1].w_ih' is f32[4,8], but Stack has f32[4,12]" in text
    assert "there is no leaf 'w_ih'" in message(good, cell=GRU(4))
    for change, part in (
        ({"rnnjax.format": "3"}, "must be of format 2, got '3'; install a newer rnnjax"),
        ({"cell": "Unheard(of=3)"}, "describes a cell that cannot be made here"),
    ):
        assert part in message(encode(arrays, plain | change))


def test_a_file_without_description(tmp_path):
    """What another program wrote under our names loads with `cell`; its input size is found out."""
    path, cell = tmp_path / "net.safetensors", Stack((rnnjax.cells.SRU(4), GRU(2)))
    for input_size in (3, 4):  # an SRU has one matrix less where I is H
        params = random_params(cell, input_size)
        safetensors.save_file(named_arrays(params), path)
        with pytest.warns(UserWarning, match="holds no checksums, so damage would not be noticed") as warned:
            assert_same(rnnjax.load(path, cell=cell)[1], params)
        assert len(warned) == 1
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="describes no cell; pass cell="):
        rnnjax.load(path)


def test_arrays_of_every_shape_there_and_back(tmp_path):
    """Also without elements, of one number, transposed, and of the other byte order; other readers agree."""
    arrays = {
        "none": np.zeros((0, 3)),
        "one": np.array(2.5, np.float32),
        "turned": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "big": np.arange(3, dtype=">i4"),
    }
    arrays_file.write_arrays(tmp_path / "a", arrays, {"made": "here"})
    theirs, (ours, metadata) = safetensors.load_file(tmp_path / "a"), arrays_file.read_arrays(tmp_path / "a", where="t")
    assert metadata == {"made": "here"} and theirs.keys() == ours.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[name], array, strict=name != "big")
        np.testing.assert_array_equal(theirs[name], ours[name], strict=True)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"},
        {"a": {"dtype": "Q8", "shape": [2], "data_offsets": [0, 8]}},
        {"a": 3},
        {"__metadata__": {"a": 3}},
        [],
    ],
)
def test_a_header_is_not_believed(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        rnnjax.load(tmp_path / "a")
    text = json.dumps({"a": {"dtype": "x" * 10_000, "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match=r"'a' has no dtype, shape and place that there are: .{0,80}\)") as caught:
        rnnjax.load(tmp_path / "a")
    assert len(str(caught.value)) < 500
    (tmp_path / "a").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        rnnjax.load(tmp_path / "a")


def test_what_save_refuses(tmp_path):
    path, params = tmp_path / "net.safetensors", random_params(LSTM(4), 3)
    with pytest.raises(ValueError, match=r"save: leaf 'w_ih' is f32\[3,16\], but GRU has f32\[3,12\]; take params"):
        rnnjax.save(path, GRU(4), params)
    with pytest.raises(ValueError, match=r"save: there is no leaf 'layers\[0\]\.w_ih'"):
        rnnjax.save(path, Stack((LSTM(4),)), params)
    with pytest.raises(TypeError, match=r"save: cell must be a cell, as rnnjax.LSTM\(8\)"):
        rnnjax.save(path, LSTM, params)
    with pytest.raises(TypeError, match="load: cell must be a cell"):
        rnnjax.save(path, LSTM(4), params)
        rnnjax.load(path, cell="lstm")
    with pytest.raises(FileNotFoundError, match=r"load: there is no file .*nowhere"):
        rnnjax.load(tmp_path / "nowhere")
    assert not list(tmp_path.glob(".*"))


def test_a_file_is_replaced_in_one_move(tmp_path, monkeypatch):
    path, cell = tmp_path / "net.safetensors", Elman(4)
    rnnjax.save(path, cell, random_params(cell, 3))
    before = path.read_bytes()

    def fail(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            rnnjax.save(path, cell, random_params(cell, 5))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_picture_replaces_a_link_and_a_device_stays_one(tmp_path):
    """A link in a stranger's folder leads to a file of one's own."""
    figure = Figure()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "mine")
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "a.png").is_symlink()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    save_figure(figure, tmp_path / "b.SVG")
    assert b"<svg" in (tmp_path / "b.SVG").read_bytes()
    write_atomic(pathlib.Path(os.devnull), [b"a", b"b"])
    assert pathlib.Path(os.devnull).is_char_device()
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(tmp_path / "nowhere" / "a", b"")
    assert caught.value.filename == str(tmp_path / "nowhere")


def test_older_files_of_cells_that_add_their_bias_elsewhere(tmp_path):
    """It was called as that of any other cell."""
    cell = Stack((GRU(3), rnnjax.cells.MILSTM(2), rnnjax.cells.LayerNormGRU(2)))
    params = random_params(cell, 3)
    arrays = {name.replace("bias", "b"): array for name, array in named_arrays(params).items()}
    assert sum(name.endswith(".b") for name in arrays) == 3
    metadata = {"rnnjax.format": "1", "cell": repr(cell), "rebuild": "yes", "input_size": "3"}
    write_atomic(tmp_path / "old.safetensors", arrays_file.encode(arrays, metadata))
    with pytest.warns(FileWarning):
        assert_same(rnnjax.load(tmp_path / "old.safetensors")[1], params)


def test_a_checkpoint_of_before_holds_the_same_biases(tmp_path):
    """Parameters, and the statistics of an optimizer, whose leaves are called like them."""
    params = random_params(rnnjax.cells.LayerNormLSTM(3), 3)
    tree = {"params": params, "optimizer": optax.adam(0.1).init(params)}
    arrays = {name.replace("bias", "b"): array for name, array in named_arrays(tree).items()}
    assert sum(name.endswith(".b") for name in arrays) == 3
    path = tmp_path / "step_00000001.safetensors"
    write_arrays(path, arrays, seal(arrays, {"rnnjax.checkpoint": "{}"}))
    with open_checkpoint(path) as stored:
        assert_same(jax.tree.map(jnp.asarray, stored.tree(tree)), tree)
        assert_same(jax.tree.map(jnp.asarray, stored.tree(params, "['params']")), params)
        with pytest.raises(CheckpointError, match=r"w_hh. is f32.3,12., but the model has f32.3,9."):
            stored.tree({"params": random_params(GRU(3), 3)._replace(w_ih=params.w_ih)})


def tree_of_an_agent():
    """What a training of one's own holds: parameters around a cell's, an optimizer, a state, a key and numbers."""
    net = LearnedState(Stack((GRU(4), LSTM(3))))
    params = {"net": random_params(net, 3), "pi": jnp.ones((3, 2), jnp.bfloat16)}
    state = rnnjax.start_state(net, params["net"], (2,))
    key = jax.random.split(jax.random.key(3, impl="rbg"), 2)
    return {"params": params, "opt": optax.adam(0.1).init(params), "state": state, "key": key, "n": 3, "done": [True]}


def test_any_tree_there_and_back(tmp_path):
    tree, path = tree_of_an_agent(), tmp_path / "agent.safetensors"
    rnnjax.save_tree(path, tree)
    for like in (tree, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))):
        again = rnnjax.load_tree(path, like)
        assert jax.random.key_impl(again["key"]) == jax.random.key_impl(tree["key"])
        again, want = ({**one, "key": jax.random.key_data(one["key"])} for one in (again, tree))
        assert_same(again, jax.tree.map(jnp.asarray, want))
    by_others = safetensors.load_file(path)  # the readers of other programs
    np.testing.assert_array_equal(by_others["['params']['net'].cell.layers[1].w_hh"], tree["params"]["net"][0][0][1][1])
    wide = {"a": np.array([1 + 1e-12])}
    rnnjax.save_tree(path, wide)
    assert rnnjax.load_tree(path, wide)["a"] == wide["a"]


def test_what_is_no_such_tree(tmp_path):
    tree, path = tree_of_an_agent(), tmp_path / "agent.safetensors"
    rnnjax.save_tree(path, tree)
    with pytest.raises(CheckpointError, match=r"leaf \"\['n'\]\" is i32\[\], but like has f32\[2\]"):
        rnnjax.load_tree(path, {**tree, "n": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match=r"load_tree: .*leaf \"\['done'\]\[0\]\" is none of like's"):
        rnnjax.load_tree(path, {name: part for name, part in tree.items() if name != "done"})
    with pytest.raises(CheckpointError, match=r"describes no cell; .*rnnjax\.load_tree"):
        rnnjax.load(path)
    with pytest.raises(TypeError, match="save_tree: a leaf must be an array, a number or a key, got 'text'"):
        rnnjax.save_tree(path, {"a": "text"})
    with pytest.raises(CheckpointError, match=r"save: there is no leaf .*rnnjax.save_tree"):
        rnnjax.save(path, GRU(4), tree["params"])
    rnnjax.save(path, GRU(3), random_params(GRU(3), 2))
    with pytest.raises(CheckpointError, match=r"was not written by rnnjax.save_tree; rnnjax.load"):
        rnnjax.load_tree(path, tree)
    with pytest.raises(FileNotFoundError, match=r"load_tree: there is no file"):
        rnnjax.load_tree(tmp_path / "none", tree)
    rnnjax.save_tree(path, tree)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        rnnjax.load_tree(path, tree)


def test_a_file_of_an_older_deep_stack_is_a_stack(tmp_path):
    """Files that were written when equal layers lay on top of each other; here one of them within another network."""
    rng = np.random.default_rng(0)
    layers = [random_params(GRU(4), 3), *(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
                                                      random_params(GRU(4), 4)) for _ in range(2))]  # fmt: skip
    scale = rng.normal(size=(2, 4)).astype(np.float32)
    arrays = {}
    for field in ("w_ih", "w_hh", "b", "b_hn"):
        first, *rest = (np.asarray(getattr(layer, field)) for layer in layers)
        arrays |= {f"layers[0].cell.first.{field}": first, f"layers[0].cell.rest.{field}": np.stack(rest)}
    start = rng.normal(size=(3, 4)).astype(np.float32)
    arrays |= {"layers[0].cell.norms.scale": scale, "layers[0].start.first.h": start[0]}
    arrays |= {"layers[0].start.rest.h": start[1:]}
    deep = f"DeepStack(cell={GRU(4)!r}, num_layers=3, residual=True, norm='rms')"
    described = f"Stack(cells=(LearnedState(cell={deep}),), residual=False, norm=None)"
    metadata = {"rnnjax.format": "1", "cell": described, "rebuild": "yes", "input_size": "3"}
    write_atomic(tmp_path / "old.safetensors", arrays_file.encode(arrays, metadata))
    with pytest.warns(FileWarning):  # nor did they hold checksums
        cell, params = rnnjax.load(tmp_path / "old.safetensors")
    assert cell == Stack((LearnedState(Stack((GRU(4),) * 3, residual=True, norm="rms")),))
    inner = params.layers[0].cell
    for got, want in zip(inner.layers, layers, strict=True):
        assert_same(got, jax.tree.map(jnp.asarray, want))
    np.testing.assert_array_equal([norm.scale for norm in inner.norms[1:]], scale)
    np.testing.assert_array_equal([state.h for state in params.layers[0].start.layers], start)


def test_a_place_that_cannot_hold_a_file_is_named(tmp_path):
    cell = GRU(3)
    params = cell.init(jax.random.key(0), 2)
    for where, write in (
        ("save", lambda p: rnnjax.save(p, cell, params)),
        ("save_tree", lambda p: rnnjax.save_tree(p, params)),
    ):
        with pytest.raises(FileNotFoundError, match=rf"^{where}: there is no folder '.*nowhere'; make it first\.$"):
            write(tmp_path / "nowhere" / "net.safetensors")
        with pytest.raises(IsADirectoryError, match=rf"^{where}: '.*' is a folder; name a file in it\.$"):
            write(tmp_path)
    assert list(tmp_path.iterdir()) == []

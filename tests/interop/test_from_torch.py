"""Weights from and to torch: outputs, final states and all gradients of both sides, and what is refused."""

import ast
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax.interop
from rnnjax import GRU, LSTM, Bidirectional, Elman, ProjectedLSTM, Stack
from rnnjax.interop import from_torch, from_torch_state, to_torch, to_torch_state
from tests.interop.agreement import TOLERANCE, difference, filled, outcome, parameters, record

T, B, I, H = 4, 2, 3, 4


def both(cell):
    return Bidirectional((cell, cell))


CASES = {  # the module, its options, and the cell or network that it is here
    "RNN (tanh)": ("RNN", {}, Elman(H)),
    "RNN (relu), 2 layers": (
        "RNN",
        {"nonlinearity": "relu", "num_layers": 2},
        Stack((Elman(H, activation="relu"),) * 2),
    ),
    "LSTM": ("LSTM", {}, LSTM(H)),
    "LSTM, no bias": ("LSTM", {"bias": False}, LSTM(H)),
    "LSTM, 2 layers, bidirectional": ("LSTM", {"num_layers": 2, "bidirectional": True}, both(LSTM(H))),
    "LSTM, proj_size, 2 layers": (
        "LSTM",
        {"num_layers": 2, "proj_size": 2},
        Stack((ProjectedLSTM(2, cell_size=H),) * 2),
    ),
    "GRU, 2 layers": ("GRU", {"num_layers": 2}, Stack((GRU(H),) * 2)),
    "GRU, bidirectional, no bias": ("GRU", {"bidirectional": True, "bias": False}, Bidirectional((GRU(H),))),
    "RNNCell (relu)": ("RNNCell", {"nonlinearity": "relu"}, Elman(H, activation="relu")),
    "LSTMCell": ("LSTMCell", {}, LSTM(H)),
    "GRUCell": ("GRUCell", {}, GRU(H)),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed on this Python")


def run_torch(torch, module, xs, state):
    """Outputs, final state and gradients: of the weights by their names, of the state, of the inputs."""
    xs = torch.tensor(np.asarray(xs), requires_grad=True)
    leaves = [torch.tensor(np.asarray(leaf), requires_grad=True) for leaf in state]
    if type(module).__name__.endswith("Cell"):
        final, outputs = [leaf[0] for leaf in leaves], []
        for x in xs:
            new = module(x, tuple(final) if len(final) == 2 else final[0])
            final = list(new) if len(final) == 2 else [new]
            outputs.append(final[0])
        ys, final = torch.stack(outputs), [leaf[None] for leaf in final]
    else:
        ys, final = module(xs, tuple(leaves) if len(leaves) == 2 else leaves[0])
        final = list(final) if len(leaves) == 2 else [final]
    total = 0
    for leaf in [
        ys,
        *(leaf[k] for k in range(len(final[0])) for leaf in final),
    ]:  # `loss_of`, in the order of our leaves
        total = total + (torch.cos(torch.arange(leaf.numel(), dtype=leaf.dtype)).reshape(leaf.shape) * leaf).sum()
    total.backward()
    weights = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    final = [leaf.detach().numpy() for leaf in final]
    return ys.detach().numpy(), final, weights, [leaf.grad.numpy() for leaf in leaves], xs.grad.numpy()


def run_ours(cell, params, xs, state):
    """The same of our side, in torch's form."""
    got = outcome(cell)(params, from_torch_state(cell, state), jnp.asarray(xs))
    d_params, d_state, d_xs = got.gradients
    final, d_state = (to_torch_state(cell, s, as_numpy=True) for s in (got.state, d_state))
    as_list = [list(s) if isinstance(s, tuple) else [s] for s in (final, d_state)]
    return got.ys, as_list[0], to_torch(cell, d_params, as_numpy=True), as_list[1], d_xs


def compare(cell, got, want):
    """The largest difference; of two biases that are summed, the gradients are equal, and one is enough."""
    d_weights = {}
    for name, value in want[2].items():
        key, _, end = name.partition("_l")
        mine = got[2][f"{key}_l{end or 0}"]
        if key == "bias_hh":
            last = slice(2 * H if "GRU" in repr(cell) else None, None if "GRU" in repr(cell) else 0)
            mine, value = mine[last], value[last]
        d_weights[name] = (mine, value)
    mine, theirs = ({name: pair[k] for name, pair in d_weights.items()} for k in (0, 1))
    return difference((*got[:2], mine, *got[3:]), (*want[:2], theirs, *want[3:]))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")  # of torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_both_ways(torch, name, dtype, x64):
    module_name, options, cell = CASES[name]
    as_cell, bias = module_name.endswith("Cell"), options.get("bias", True)
    torch.manual_seed(0)
    module = getattr(torch.nn, module_name)(I, H, dtype=getattr(torch, dtype), **options)
    got_cell, params = from_torch(module)
    assert got_cell == cell
    rng = np.random.default_rng(0)
    state = to_torch_state(cell, filled(cell.initial_state((B,)), dtype), as_numpy=True)
    state = list(state) if isinstance(state, tuple) else [state]
    xs = rng.normal(size=(T, B, I)).astype(dtype)
    found = compare(cell, run_ours(cell, params, xs, state), run_torch(torch, module, xs, state))
    record("torch", name, "from", dtype, found)
    assert found < TOLERANCE[dtype]

    params = filled(params, dtype, seed=1)
    if not bias:  # what torch does not have is zero
        params = jax.tree.map(lambda leaf: leaf * (leaf.ndim == 2), params)
    module = getattr(torch.nn, module_name)(I, H, dtype=getattr(torch, dtype), **options)
    module.load_state_dict(to_torch(cell, params, bias=bias, as_cell=as_cell))
    found = compare(cell, run_ours(cell, params, xs, state), run_torch(torch, module, xs, state))
    record("torch", name, "to", dtype, found)
    assert found < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "cell",
    [
        GRU(H),
        Stack((LSTM(H), Stack((LSTM(H), LSTM(H))))),
        Stack((GRU(H),) * 3),
        Bidirectional((ProjectedLSTM(2, cell_size=3),) * 2),
    ],
    ids=["gru", "stack", "deep_stack", "bidirectional"],
)
def test_there_and_back_is_exact(cell):
    """Without torch: every number comes back as it was, in the place of its layer and direction."""
    params = parameters(cell)
    state = filled(cell.initial_state((B,)), seed=1)
    named = to_torch(cell, params, as_numpy=True)
    got_cell, got = from_torch(named)
    assert difference(jax.tree.leaves(got), jax.tree.leaves(params)) == 0
    assert to_torch(got_cell, got, as_numpy=True).keys() == named.keys()
    back = from_torch_state(cell, to_torch_state(cell, state, as_numpy=True))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert difference(back, state) == 0


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_state_dicts(torch):
    """Of a larger model, with tensors or arrays, and with the kind told or found."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.LSTM(I, H, 2)
            self.out = torch.nn.Linear(H, 5)

    model = Model()
    want = from_torch(model.encoder)
    assert want[0] == Stack((LSTM(H), LSTM(H)))
    np.testing.assert_array_equal(want[1].layers[1].w_hh, model.encoder.weight_hh_l1.detach().numpy().T)
    tensors = model.state_dict()
    arrays = {name: value.numpy() for name, value in tensors.items()}
    for got in (
        from_torch(tensors),
        from_torch(arrays),
        from_torch(arrays, prefix="encoder.", kind="lstm"),
        from_torch(jax.tree.map(jnp.asarray, arrays)),
    ):
        assert got[0] == want[0]
        assert difference(got[1], want[1]) == 0
    with torch.no_grad():
        model.encoder.weight_ih_l0.zero_()
    assert want[1].layers[0].w_ih.any(), "the parameters must be copies"
    model.decoder = torch.nn.RNNCell(I, H)
    assert from_torch(model.state_dict(), prefix="decoder.", nonlinearity="relu")[0] == Elman(H, activation="relu")
    with pytest.raises(
        ValueError, match=r"one recurrent layer, got 2 with the prefixes 'encoder.', 'decoder.'; choose"
    ):
        from_torch(model.state_dict())
    with pytest.raises(ValueError, match=r"must hold 'x.weight_ih_l0' or 'x.weight_ih', got the .* 'encoder.', 'deco"):
        from_torch(model.state_dict(), prefix="x.")


def test_low_precision(torch):
    """bfloat16, which NumPy does not know; the sum of two biases is rounded once."""
    module = torch.nn.GRU(I, H, dtype=torch.bfloat16)
    cell, params = from_torch(module)
    assert {leaf.dtype for leaf in params} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(np.float32(params.w_ih.T), module.weight_ih_l0.detach().float().numpy())
    want = (module.bias_ih_l0.detach().float() + module.bias_hh_l0.detach().float()).to(torch.bfloat16)
    np.testing.assert_array_equal(np.float32(params.b[: 2 * H]), want[: 2 * H].float().numpy())
    back = to_torch(cell, params)
    assert {value.dtype for value in back.values()} == {torch.bfloat16}
    torch.testing.assert_close(back["weight_hh_l0"], module.weight_hh_l0.detach(), rtol=0, atol=0)


def weights(kind="lstm", **changes):
    cell = {"lstm": LSTM(H), "gru": GRU(H), "rnn": Elman(H)}[kind]
    cell = Stack((cell, cell))
    named = to_torch(cell, parameters(cell), as_numpy=True)
    named |= {name: np.zeros(shape, np.float32) for name, shape in changes.items() if shape is not None}
    return {name: value for name, value in named.items() if changes.get(name, ()) is not None}


REFUSED = {
    "missing": (weights(bias_hh_l1=None), {}, "must hold 'bias_hh_l1' beside its other weights"),
    "one_bias": (weights(bias_hh_l0=None, bias_hh_l1=None), {}, "must hold 'bias_hh_l0'"),
    "unknown": (weights(weight_ih_l3=(16, 4)), {}, "'weight_ih_l3' is no weight of a recurrent layer with 2 layers"),
    "none": ({"weight": np.zeros(3)}, {}, "must hold one recurrent layer, got 0"),
    "kind": (
        weights("gru"),
        {"kind": "lstm"},
        r"weight_hh_l0 must have shape \[G H, H\] with G = 4 for 'lstm', got f32\[12,4\]",
    ),
    "gates": (weights(weight_hh_l0=(8, 4)), {}, r"weight_hh_l0 must have shape .* 3 for a GRU .*, got f32\[8,4\]"),
    "rows": (weights(weight_ih_l0=(12, 3)), {}, r"weight_ih_l0 must have shape \[16, 3\] .*, got f32\[12,3\]"),
    "below": (weights(weight_ih_l1=(16, 8)), {}, r"weight_ih_l1 must have shape \[16, 4\] .*, got f32\[16,8\]"),
    "bias": (weights(bias_hh_l1=(12,)), {}, r"bias_hh_l1 must have shape \[16\] .*, got f32\[12\]"),
    "axes": (weights(bias_hh_l1=(16, 1)), {}, r"bias_hh_l1 must have 1 axes, got f32\[16,1\]"),
    "relu": (weights("rnn"), {}, "do not tell its nonlinearity; give nonlinearity='tanh' or 'relu'"),
    "name": (weights(), {"kind": "sru"}, "kind must be 'rnn', 'lstm' or 'gru', got 'sru'"),
    "activation": (weights("rnn"), {"nonlinearity": "elu"}, "nonlinearity must be 'tanh' or 'relu', got 'elu'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_state_dict_that_does_not_fit(name):
    source, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^from_torch: .*{message}"):
        from_torch(source, **options)


def test_a_pickle_is_not_read(tmp_path):
    for name in ("lstm.pt", "lstm.pth"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 what torch.save writes")
        sentence = rf"^from_torch: '.*{name}' must be a safetensors file; .*weights_only=True"
        with pytest.raises(ValueError, match=sentence):
            from_torch(tmp_path / name)


def test_integers_are_no_weights():
    with pytest.raises(TypeError, match=r"^from_torch: bias_hh_l1 must be an array of a floating dtype, got i32\[16\]"):
        from_torch(weights() | {"bias_hh_l1": np.zeros(16, np.int32)})


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        (rnnjax.cells.PeepholeLSTM(H), {}, "PeepholeLSTM has no exact counterpart: torch.nn has only"),
        (Stack((GRU(H),) * 2, residual=True), {}, "neither residual connections nor norms"),
        (Stack((GRU(H), GRU(2))), {}, "all layers and directions of a torch module are of one kind and size"),
        (Bidirectional((GRU(H),), merge="sum"), {}, "torch concatenates the two directions"),
        (Stack((GRU(H),) * 2), {"as_cell": True}, "as_cell=True is for one layer"),
        (LSTM(H), {"bias": False}, r"bias=False for LSTM\(.*its biases are not zero"),
    ],
)
def test_what_torch_does_not_have(cell, options, message):
    params = parameters(cell)
    with pytest.raises(ValueError, match=rf"^to_torch: .*{message}"):
        to_torch(cell, params, as_numpy=True, **options)


def test_params_of_another_cell():
    with pytest.raises(ValueError, match=r"^to_torch: w_ih must have shape \[3, 20\] \(from LSTM.*got f32\[3,16\]"):
        to_torch(LSTM(5), parameters(LSTM(H)), as_numpy=True)
    with pytest.raises(ValueError, match=r"^from_torch_state: the state must be h and c for LSTM.*got 1 arrays"):
        from_torch_state(LSTM(H), np.zeros((1, B, H)))
    with pytest.raises(ValueError, match=r"^from_torch_state: c must have shape \[1, 2, 4\] .*, got f64\[2,2,4\]"):
        from_torch_state(LSTM(H), (np.zeros((1, B, H)), np.zeros((2, B, H))))


def test_other_modules(torch):
    with pytest.raises(TypeError, match=r"^from_torch: it takes torch.nn.RNN, LSTM or GRU, .*, got Linear;"):
        from_torch(torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match="a module says them itself"):
        from_torch(torch.nn.LSTM(2, 3), kind="lstm")


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = r"^from_torch: torch is needed, which is not installed; pip install torch\.$"
    with pytest.raises(ModuleNotFoundError, match=message):
        from_torch(type("LSTM", (), {"__module__": "torch.nn"})())  # what says that it is of torch
    with pytest.raises(TypeError, match=r"^from_torch: it takes torch.nn.RNN, .* got object; hand"):
        from_torch(object())
    params = parameters(LSTM(H))
    with pytest.raises(ModuleNotFoundError, match="pip install torch"):
        to_torch(LSTM(H), params)
    cell, got = from_torch(to_torch(LSTM(H), params, as_numpy=True))
    assert cell == LSTM(H) and difference(got, params) == 0


def test_importing_imports_no_framework():
    """What `rnnjax.interop` imports outside of functions, there and in the modules of the folder that it imports so."""
    folder, found, seen, waiting = Path(rnnjax.interop.__file__).parent, set(), set(), ["__init__"]
    while waiting:
        seen.add(waiting[-1])
        nodes = list(ast.parse((folder / f"{waiting.pop()}.py").read_text(encoding="utf-8")).body)
        for node in nodes:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif not isinstance(node, ast.FunctionDef):
                nodes += ast.iter_child_nodes(node)
            found |= {name.split(".")[0] for name in names}
            inside = {name.split(".")[2] for name in names if name.startswith("rnnjax.interop.")}
            waiting += [name for name in inside - seen if (folder / f"{name}.py").exists()]
    assert {"torch", "keras", "cudnn"} <= seen
    assert found - sys.stdlib_module_names <= {"rnnjax", "jax", "numpy", "flax", "optax", "chex"}

"""Arguments of another kind or shape: one sentence that names the function, instead of an error from within JAX."""

import inspect
import pkgutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.cli.options import preset_options
from rnnjax.kinds import public
from rnnjax.lm import baselines
from rnnjax.lm.model import LanguageModel
from rnnjax.text import Vocabulary
from tests.cells_table import CELLS

pytestmark = pytest.mark.quick
KEY = jax.random.key(0)
GRU = rnnjax.GRU(4)
DIAGONAL = rnnjax.cells.DiagonalGRU(4)


@pytest.mark.parametrize(
    "name", [name for name, row in CELLS.items() if type(row.cell).__module__.startswith("rnnjax.cells")]
)
def test_step_checks_its_arguments(name):
    cell, size = CELLS[name].cell, CELLS[name].input_size
    like = jax.eval_shape(lambda: (cell.init(KEY, size), cell.initial_state((2,))))
    params, state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    shape = rnnjax.network.input_shape(cell, size)
    where = f"{type(cell).__name__}.step: "
    for arguments, kind in (
        ((state, params, jnp.zeros((2, *shape))), (TypeError, ValueError)),
        ((params, jnp.zeros((2, *shape)), state), TypeError),
        ((params, None, jnp.zeros((2, *shape))), TypeError),
        ((params, state, jnp.zeros((7, 2, *shape))), ValueError),
        ((params, state, jnp.zeros((3, *shape))), ValueError),
        ((params, state, "x"), TypeError),
        ((params, state, 1.0), ValueError),
    ):
        with pytest.raises(kind) as caught:
            cell.step(*arguments)
        assert str(caught.value).startswith(where), arguments
    if hasattr(params, "w_ih"):
        with pytest.raises(ValueError) as caught:
            cell.step(params, state, jnp.zeros((2, *shape[:-1], size + 1)))
        assert str(caught.value).startswith(
            f"{where}x must have shape [*batch, I] with I = {size} (from params.w_ih), "
        )


def test_unroll_knows_a_batch_that_came_first():
    cell = rnnjax.GRU(4)
    params, state = cell.init(KEY, 3), cell.initial_state((2,))
    with pytest.raises(ValueError, match=r"got f32\[2,7,3\]; time comes first, so pass jnp\.swapaxes\(xs, 0, 1\)\.$"):
        rnnjax.unroll(cell, params, state, jnp.zeros((2, 7, 3)))


class Listed:
    """A cell with a list, and so without a hash."""

    hidden_size, __hash__ = 4, None  # type: ignore[assignment]
    init, initial_state, step = rnnjax.GRU.init, rnnjax.GRU.initial_state, rnnjax.GRU.step


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda p, s, x: rnnjax.unroll(Listed(), p, s, x),
            TypeError,
            "unroll: net must be hashable, as compiled prog",
        ),
        (lambda p, s, x: rnnjax.unroll(3, p, s, x), TypeError, "unroll: net must be a cell or a network, got 3"),
        (
            lambda p, s, x: rnnjax.unroll(rnnjax.GRU(4), 3, s, x),
            TypeError,
            "unroll: params must be a tree of arrays, got 3",
        ),
        (
            lambda p, s, x: rnnjax.unroll(rnnjax.GRU(4), p, s, x, reverse="no"),
            TypeError,
            "unroll: reverse must be True",
        ),
        (
            lambda p, s, x: rnnjax.unroll(rnnjax.GRU(4), p, s, "text"),
            TypeError,
            "unroll: xs must be an array, got 'text'",
        ),
        (
            lambda p, s, x: rnnjax.unroll(rnnjax.GRU(4), p, s, x, implementation=3),
            TypeError,
            "unroll: implementation mu",
        ),
    ],
)
def test_sentences_of_unroll(call, kind, sentence):
    cell = rnnjax.GRU(4)
    with pytest.raises(kind) as caught:
        call(cell.init(KEY, 3), cell.initial_state((2,)), jnp.zeros((7, 2, 3)))
    assert str(caught.value).startswith(sentence)


def test_remat_takes_the_integers_of_numpy():
    cell = rnnjax.GRU(4)
    arguments = (cell, cell.init(KEY, 3), cell.initial_state((2,)), jnp.ones((7, 2, 3)))
    np.testing.assert_array_equal(
        rnnjax.unroll(*arguments, remat=np.int64(2))[1], rnnjax.unroll(*arguments, remat=2)[1]
    )


@public
def example(
    key: jax.Array, xs: jax.Array, size: int, rate: float = 0.5, *, loud: bool = False, name: str | None = None
):
    return type(xs).__name__, type(size), type(rate), loud, name


def test_annotations_are_what_is_checked():
    found = example(KEY, [[1.0, 2.0]], np.int64(3), np.float32(0.25), loud=np.bool_(True), name="a")
    assert found == ("ArrayImpl", int, float, True, "a")
    assert example(KEY, np.ones(2, np.uint8), 3)[0] == "ndarray"  # integers are judged where they are used
    for arguments, options, sentence in (
        ((0, [1.0], 3), {}, "example: key must be a key of jax.random, got 0; make it by jax.random.key(0)."),
        ((KEY, "x", 3), {}, "example: xs must be an array, got 'x'."),
        ((KEY, [1.0], 3.5), {}, "example: size must be an int, got 3.5."),
        ((KEY, [1.0], 3, "x"), {}, "example: rate must be a number, got 'x'."),
        ((KEY, [1.0], 3), {"loud": "no"}, "example: loud must be True or False, got 'no'."),
        ((KEY, [1.0], 3), {"name": 3}, "example: name must be a string, got 3."),
    ):
        with pytest.raises(TypeError) as caught:
            example(*arguments, **options)
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: rnnjax.fit.OptimizerOptions(optimizer="adma"), "adam"),
        (lambda: rnnjax.fit.OptimizerOptions(schedule="cosin"), "cosine"),
        (lambda: rnnjax.cells.cell_from_name("lsmt", 4), "lstm"),
        (lambda: rnnjax.cells.cell_from_name("lstm(forget_bais=1.0)", 4), "forget_bias"),
        (lambda: rnnjax.analysis.label_from_name("quotes"), "quote"),
        (lambda: rnnjax.engines.engine("fusd"), "fused"),
        (lambda: rnnjax.unroll(GRU, GRU.init(KEY, 3), None, jnp.ones((4, 2, 3)), implementation="scna"), "scan"),
        (lambda: rnnjax.topologies.many_to_one.pool(jnp.ones((4, 2, 3)), "means"), "mean"),
        (lambda: rnnjax.testing.check_laws(GRU, 3, laws=["remats"]), "remat"),
        (lambda: preset_options("widw"), "wide"),
    ],
)
def test_a_name_with_a_slip(call, meant):
    with pytest.raises((ValueError, TypeError), match=f"; did you mean '{meant}'\\?"):
        call()


class Scaled:
    """A cell that is found by what it is, and whose field somebody changes."""

    init, initial_state = GRU.init, GRU.initial_state

    def __init__(self, scale):
        self.hidden_size, self.scale = 4, scale

    def step(self, params, state, x):
        return state, self.scale * state.h


def test_a_cell_that_was_changed_is_no_longer_what_was_compiled():
    cell = Scaled(1.0)
    for net in (cell, rnnjax.Stack((cell,))):
        cell.scale, xs = 1.0, jnp.ones((3, 4))
        params = GRU.init(KEY, 4) if net is cell else rnnjax.Stack((GRU,)).init(KEY, 4)
        rnnjax.unroll(net, params, None, xs)
        cell.note = "more is no change"
        rnnjax.unroll(net, params, None, xs)
        cell.scale = 0.5
        with pytest.raises(ValueError, match=r"^unroll: Scaled must stay as it was .*, got another 'scale'; make"):
            rnnjax.unroll(net, params, None, xs)


KINDS = (None, 3, 1.5, "no", b"x", [], {}, object(), np.array(["a"]), rnnjax.LSTM, len)
# What is right in its place: a size of 3, a number or an empty list where an array is wanted, a name.
RIGHT = {
    "describable": [rnnjax.LSTM],
    "cell_file": ["no"],
    "assert_close": [None, [], {}],
    "TextOptions": [[]],
    "ReportOptions": [[]],
    "load_corpus": [None],
}


def right(name, thing, kind):
    wanted = [str(p.annotation) for p in needed(thing)]
    if all(any(word in hint for word in ("Array", "int", "float")) for hint in wanted):
        return isinstance(kind, int | float | list)
    return any(type(kind) is type(one) and str(kind) == str(one) for one in RIGHT.get(name, ()))


def needed(thing):
    """The arguments without which it cannot be called, or else its first one."""
    given = [p for p in inspect.signature(thing).parameters.values() if "VAR" not in p.kind.name]
    return [p for p in given if p.default is p.empty] or [p for p in given if p.kind is p.POSITIONAL_OR_KEYWORD][:1]


def public_things():
    """Every callable that a room offers, but protocols, errors, and records that hold what others made."""
    rooms = [module.name for module in pkgutil.iter_modules(rnnjax.__path__) if module.ispkg and module.name != "cli"]
    found = {}
    for room in ("", *rooms):
        module = getattr(rnnjax, room) if room else rnnjax
        for name in module.__all__:
            thing = getattr(module, name)
            kind = isinstance(thing, type)
            made = kind and (issubclass(thing, tuple | BaseException) or getattr(thing, "_is_protocol", False))
            if (inspect.isfunction(thing) or kind) and not made:
                found.setdefault(id(thing), (room, name, thing))
    return list(found.values())


def call_with(thing, kind):
    """All that it needs, or its first argument, is of this kind."""
    chosen = needed(thing)
    by_name = {p.name: kind for p in chosen if p.kind is p.KEYWORD_ONLY}
    return thing(*[kind] * (len(chosen) - len(by_name)), **by_name)


def test_every_public_callable_names_itself_when_it_gets_another_kind():
    """A wrong kind in the place of each argument: TypeError or ValueError, in a sentence that begins with the name."""
    wrong, called = [], 0
    for room, name, thing in public_things():
        for kind in KINDS:
            if not needed(thing):
                continue
            called += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    call_with(thing, kind)
            except (TypeError, ValueError, FileNotFoundError, RuntimeError) as error:
                # What is also an option of the command line says its name: cell, label, level.
                options = (name.partition("_")[0], *inspect.signature(thing).parameters)
                if not str(error).startswith((name, *(f"{option}: " for option in options))) or "\n" in str(error):
                    wrong.append(f"{room}.{name}({kind!r:.20}): {type(error).__name__}: {error}")
            except Exception as error:
                wrong.append(f"{room}.{name}({kind!r:.20}): {type(error).__name__}: {error}")
            else:
                if not right(name, thing, kind):
                    wrong.append(f"{room}.{name}({kind!r:.20}): nothing is said")
    assert not wrong, "\n".join(wrong)
    assert called > 1500


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: rnnjax.forecast.Forecaster(GRU, rnnjax.forecast.Normal(), lags=True), TypeError, "Forecaster: lags"),
        (lambda: rnnjax.forecast.Series([[1j, 2.0]]), TypeError, "Series: values[0] must hold numbers, got"),
        (lambda: Vocabulary("char", ("a",), None).decode([[0], [0, 0]]), TypeError, "Vocabulary.decode: ids must be"),
        (lambda: LanguageModel(5, rnnjax.Stack((GRU,)), dtype=np.ones(3)), ValueError, "LanguageModel: dtype must be"),
        (lambda: baselines.witten_bell(-1, np.array([0]), 3), ValueError, "witten_bell: train must have shape [n]"),
        (lambda: baselines.witten_bell(np.array([0]), [0], 3, max_symbols=0), ValueError, "witten_bell: max_symbols"),
        (lambda: rnnjax.analysis.newton_report(DIAGONAL, None, None, np.ones((4, 3))), ValueError, "unroll: par"),
        (lambda: rnnjax.analysis.newton_report(DIAGONAL, np.ones(3), None, np.ones((4, 3))), ValueError, "unroll: par"),
        (lambda: rnnjax.save("x", GRU, jax.random.key(0)), TypeError, "save: params must be a tree of arrays, got key"),
        (lambda: rnnjax.interop.export_cell("x", GRU, GRU.init(KEY, 3), dtype=0.5), TypeError, "export_cell: dtype"),
        (lambda: rnnjax.forecast.Series([[1.0]], clock=object()), TypeError, "Series: clock must be one for each of"),
        (lambda: rnnjax.forecast.Series([[1.0]], names=np.array(2)), TypeError, "Series: names must be one for each"),
        (lambda: rnnjax.forecast.Series([[1.0]], known=jnp.zeros(())), TypeError, "Series: known must be a list of"),
        (lambda: rnnjax.forecast.Quantiles(jax.random.key(0)), TypeError, "Quantiles: levels must be a sequence"),
        (lambda: rnnjax.data.ShuffledBatches(KEY, 2, key=KEY), TypeError, "ShuffledBatches: arrays must be arrays of"),
        (lambda: rnnjax.testing.problems.make_problem(GRU, 3, seq_len=-1), ValueError, "make_problem: seq_len must be"),
        (lambda: rnnjax.fit.fit(max, {}, optax.sgd(1.0), [1], steps=1, mode=GRU.init(KEY, 3)), ValueError, "fit: mode"),
        (lambda: rnnjax.tbptt(np.full((9, 9), 1), None, {}, {}, {}, {}, chunk_len=2), TypeError, "tbptt: loss_fn must"),
        (lambda: rnnjax.interop.export_cell("x", GRU, GRU.init(KEY, 3), platforms=(1,)), TypeError, "export_cell: pla"),
        (lambda: rnnjax.interop.export_cell("x", GRU, rnnjax.LSTM(4).init(KEY, 3)), ValueError, "unroll: params"),
        (lambda: rnnjax.fit.fit(max, {}, optax.sgd(1.0), [1], steps=len), TypeError, "fit: steps must be"),
        (lambda: rnnjax.testing.problems.make_problem(GRU, 3, seed=-1), ValueError, "make_problem: seed must be"),
        (lambda: rnnjax.forecast.baselines.find_season(np.array(2)), TypeError, "find_season: rows must be a list"),
    ],
)  # fmt: skip
def test_what_random_calls_have_found(call, kind, sentence):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize("name", ["to_flax", "to_haiku", "to_keras", "to_nnx", "to_torch", "to_equinox", "to_cudnn"])
def test_converters_look_at_all_parameters_first(name):
    host = {"to_haiku": "haiku", "to_equinox": "equinox"}.get(name, "rnnjax")
    pytest.importorskip(host, reason=f"{host} is not installed")
    convert = getattr(rnnjax.interop, name)
    cell = rnnjax.LSTM(4)
    params = cell.init(KEY, 3)
    for wrong, kind in (
        (np.ones(3), TypeError),
        (rnnjax.cells.DiagonalGRU(4).init(KEY, 3), ValueError),
        (rnnjax.LSTM(5).init(KEY, 3), ValueError),
        (params._replace(b=jnp.ones(3)), ValueError),
        (params._replace(w_hh=jax.random.split(KEY)), TypeError),
        (params._replace(b=np.arange(16)), TypeError),
    ):
        with pytest.raises(kind, match=f"^{name}: "):
            convert(cell, wrong)

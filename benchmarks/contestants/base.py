"""What a contestant is: a way to run one cell over one sequence, and how to read its numbers in our layout."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from benchmarks.grid import Point

__all__ = [
    "FAILURES",
    "Contestant",
    "JaxContestant",
    "Outputs",
    "Prepared",
    "Problem",
    "Skip",
    "array_dtype",
    "kind_of",
    "loss_of",
    "make_problem",
    "planned_bytes",
    "precision",
    "require",
    "version_of",
    "why",
]


# What libraries raise where they cannot do something; JAX's own errors are among these.
FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, MemoryError, ArithmeticError)


def why(error: Exception) -> str:
    """The first line of an error, for the record."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class Skip(Exception):  # noqa: N818  (no error: the run goes on without this contestant)
    """Why a contestant does not take part, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One cell with parameters, an initial state of zeros and inputs; every contestant gets the same numbers."""

    cell: Any
    params: Any
    state: Any
    xs: jax.Array  # [T, B, I]
    dtype: str

    @property
    def kind(self) -> str | None:
        """``lstm``, ``gru``, ``elman``, or None for a cell that other libraries do not have."""
        return kind_of(self.cell)


def kind_of(cell: Any) -> str | None:
    """The kind of cell that other libraries know, by its exact class."""
    return {rnnjax.LSTM: "lstm", rnnjax.GRU: "gru", rnnjax.Elman: "elman"}.get(type(cell))


def array_dtype(dtype: str) -> Any:
    """Of the arrays: TF32 is a way to multiply float32."""
    return jnp.dtype("float32" if dtype == "tf32" else dtype)


def make_problem(point: Point, seed: int = 0) -> Problem:
    """Parameters as the cell initialises them, but for biases, which are random so that none is ignored."""
    cell = rnnjax.cells.cell_from_name(point.cell, point.sizes.H)
    dtype = array_dtype(point.dtype)
    key = jax.random.key(seed)
    params = cell.init(key, point.sizes.I, dtype)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf if leaf.ndim > 1 else leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), params
    )
    xs = jnp.asarray(rng.normal(0, 1, (point.sizes.T, point.sizes.B, point.sizes.I)), dtype)
    return Problem(cell, params, cell.initial_state((point.sizes.B,), dtype), xs, point.dtype)


class Outputs(NamedTuple):
    """Results in our layout, as numpy arrays of float32, to compare contestants."""

    ys: np.ndarray  # [T, B, H]
    h: np.ndarray  # [B, H], of the final state
    loss_gradients: dict[str, np.ndarray] | None  # by the names of our parameters
    xs_gradient: np.ndarray | None  # [T, B, I]


@dataclasses.dataclass
class Prepared:
    """A contestant in one mode, ready to be compiled and called.

    Attributes:
        compile: makes it run at full speed, with options of XLA if there are any; the time this takes is the compile
            time. None where there is none.
        call: one forward pass, or one pass with gradients of parameters and inputs, waited for.
        memory: what is known of its memory after compilation, by the names of a result row.
        several: so many calls, of which only the last is waited for, as in a training loop on a GPU.
        lower: the first part of `compile`, which needs no device; `compile` goes on from there if it has been called.
        load: a first call after which nothing of it stays in the memory of the device but the program; None where
            `call` is as good.
    """

    compile: Callable[..., None] | None
    call: Callable[[], Any]
    memory: Callable[[], dict[str, int]]
    several: Callable[[int], None] | None = None
    lower: Callable[[], None] | None = None
    load: Callable[[], None] | None = None


@dataclasses.dataclass
class Contestant:
    """A library's way to run the cell.

    Attributes:
        name: in tables and on the command line.
        distribution: whose version goes into the row; None for what is part of this repository.
        detail: the class or function that was used.
        prepare: from a mode to `Prepared`.
        outputs: the results, to be compared; None where the mathematics differ, and then ``note`` says how.
        note: what a reader of the row must know.
    """

    name: str
    distribution: str | None
    detail: str
    prepare: Callable[[str], Prepared]
    outputs: Callable[[], Outputs] | None = None
    note: str | None = None

    @property
    def version(self) -> str | None:
        """Of the library."""
        return version_of(self.distribution) if self.distribution else rnnjax.__version__


def version_of(distribution: str) -> str | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def require(module: str, distribution: str) -> None:
    """Raises `Skip` with the install command unless the module can be imported."""
    if importlib.util.find_spec(module) is None:
        raise Skip(f"{distribution} is not installed: pip install {distribution}")


def loss_of(ys: Any, final: Any) -> jax.Array:
    """Mean squares of the outputs and of every array of the final state: the same in every layout."""
    total = jnp.mean(jnp.square(ys.astype(jnp.float32)))
    for leaf in jax.tree.leaves(final):
        total += jnp.mean(jnp.square(leaf.astype(jnp.float32)))
    return total


def JaxContestant(  # noqa: N802
    name: str,
    distribution: str | None,
    detail: str,
    apply: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    state: Any,
    xs: Any,
    *,
    ours: Callable[[Any], dict[str, Any]] | None,
    h_of: Callable[[Any], Any],
    batch_major: bool = False,
    note: str | None = None,
) -> Contestant:
    """A contestant that is a pure function of JAX: ``apply(params, state, xs) -> (ys, final)``.

    Args:
        name: see `Contestant`.
        distribution: see `Contestant`.
        detail: see `Contestant`.
        apply: the forward pass.
        params: in the layout of the library, made from ours.
        state: likewise.
        xs: likewise.
        ours: from the library's parameters (or gradients) to ours by name; None where the mathematics differ.
        h_of: the array ``h [B, H]`` of a final state.
        batch_major: whether ``xs`` and ``ys`` have the batch first.
        note: see `Contestant`.
    """

    def train(params, state, xs):
        return jax.grad(lambda params, xs: loss_of(*apply(params, state, xs)), argnums=(0, 1))(params, xs)

    functions = {"forward": apply, "training": train}

    def prepare(mode: str) -> Prepared:
        box: dict[str, Any] = {}

        def lower() -> None:
            box["lowered"] = jax.jit(functions[mode]).lower(params, state, xs)

        def compile_(**options: Any) -> None:
            if "lowered" not in box:
                lower()
            box["compiled"] = box.pop("lowered").compile(compiler_options=options or None)
            box.pop("args", None)

        def run() -> Any:
            if "args" not in box:
                # Where the function wants them, as in a training loop, where they come from the step before.
                box["args"] = jax.tree.map(jax.device_put, (params, state, xs), box["compiled"].input_shardings[0])
            return box["compiled"](*box["args"])

        def several(count: int) -> None:
            for _ in range(count):
                result = run()
            jax.block_until_ready(result)

        def load() -> None:
            jax.block_until_ready(run())
            del box["args"]

        call = lambda: jax.block_until_ready(run())  # noqa: E731
        return Prepared(compile_, call, lambda: planned_bytes(box["compiled"]), several, lower, load)

    def outputs() -> Outputs:
        def to_numpy(array):
            array = np.asarray(jnp.asarray(array, jnp.float32))
            return np.swapaxes(array, 0, 1) if batch_major and array.ndim == 3 else array

        def everything(params, state, xs):
            def loss(params, xs):
                ys, final = apply(params, state, xs)
                return loss_of(ys, final), (ys, final)

            return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

        # Unoptimised code compiles in half the time.
        jitted = jax.jit(everything, compiler_options={"xla_backend_optimization_level": 0})
        (d_params, d_xs), (ys, final) = jitted(params, state, xs)
        gradients = {key: np.asarray(value, np.float32) for key, value in ours(d_params).items()}
        return Outputs(to_numpy(ys), np.asarray(h_of(final), np.float32), gradients, to_numpy(d_xs))

    return Contestant(name, distribution, detail, prepare, outputs if ours else None, note)


def planned_bytes(compiled: Any) -> dict[str, int]:
    """What XLA plans for a compiled program; ``peak_bytes`` is arguments, results and temporaries together."""
    found = compiled.memory_analysis()
    if found is None:
        return {}
    sizes = {
        "argument_bytes": found.argument_size_in_bytes,
        "output_bytes": found.output_size_in_bytes,
        "temp_bytes": found.temp_size_in_bytes,
    }
    return {"peak_bytes": sum(sizes.values()) - found.alias_size_in_bytes, **sizes}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Float32 matmuls in float32 or in TF32, in JAX and in torch alike; on a CPU there is only float32."""
    allow = dtype == "tf32"
    if "torch" in sys.modules:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = allow
        torch.backends.cudnn.allow_tf32 = allow
    if jax.default_backend() == "cpu" or dtype not in ("float32", "tf32"):
        if allow:
            raise ValueError("dtype: 'tf32' exists on a GPU only; take float32.")
        yield
        return
    with jax.default_matmul_precision("tensorfloat32" if allow else "highest"):
        yield

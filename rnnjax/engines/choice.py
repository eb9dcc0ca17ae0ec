"""Which engines there are, which of them fit a piece of work, and which one is the default for it.

An engine is a value: a name, a function, and two questions about a `Job`, which is all that is known of a piece of work
before there are arrays. A refusal is the end of a sentence, so nobody has to read the text of an error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rnnjax.cell import batch_shape, state_like
from rnnjax.checks import check_kind, describe, did_you_mean
from rnnjax.engines.stacked import stackable
from rnnjax.kinds import check_kinds, public
from rnnjax.network import Controls, Network

__all__ = [
    "Controls",
    "Engine",
    "Job",
    "Run",
    "UnfitError",
    "choose",
    "engine",
    "implementations",
    "is_floating",
    "make_job",
    "register",
    "registered",
]


class Job(NamedTuple):
    """A piece of work as an engine sees it before there are arrays; hashable.

    Attributes:
        cell: what is unrolled.
        backend: `jax.default_backend`.
        steps: T.
        batch: the batch axes.
        input_size: I, the last axis of ``xs``.
        dtype: of the state; None if its leaves differ.
        param_dtype: of the parameters; None if they differ.
        input_dtype: of ``xs``.
        valid: how steps are masked: ``""`` not at all, ``"lengths"`` by the lengths of rows, ``"any"`` somehow.
        resets: whether there are resets.
        reverse: whether time runs from the last step to the first.
        remat: checkpointing through time: None, True, an int or a name.
        free: whether nobody has said where arrays lie: no mesh and no default device is set.
    """

    cell: Any
    backend: str = "cpu"
    steps: int = 64
    batch: tuple[int, ...] = (16,)
    input_size: int = 16
    dtype: Any = jnp.dtype("float32")
    param_dtype: Any = jnp.dtype("float32")
    input_dtype: Any = jnp.dtype("float32")
    valid: Literal["", "lengths", "any"] = ""
    resets: bool = False
    reverse: bool = False
    remat: bool | int | str | None = None
    free: bool = True


def make_job(
    cell: Any,
    params: Any,
    state: Any,
    xs: jax.Array,
    controls: Controls | None = None,
    *,
    reverse: bool = False,
    remat: bool | int | str | None = None,
) -> Job:
    """The job of an unroll of these arrays.

    Raises:
        TypeError: if ``cell`` is no instance of a cell, or ``xs`` no array.
    """
    if isinstance(cell, type) or not hasattr(cell, "init") or not hasattr(xs, "shape"):
        raise TypeError(f"make_job: cell must be a cell and xs an array, got {describe(cell)} and {describe(xs)}.")
    valid, resets, _, lengths, _ = controls or Controls()
    return Job(
        cell,
        jax.default_backend(),
        xs.shape[0],
        batch_shape(cell, state),
        xs.shape[-1],
        _common_dtype(state),
        _common_dtype(params),
        jnp.dtype(xs.dtype),
        "lengths" if lengths is not None else "" if valid is None else "any",
        resets is not None,
        reverse,
        remat,
        jax.sharding.get_abstract_mesh().empty and getattr(jax.config, "jax_default_device", None) is None,
    )


@functools.lru_cache(maxsize=1024)  # every choice asks, and tracing `initial_state` takes longer than a step
def is_floating(cell: Any, kind: Any) -> bool:
    """Whether ``cell`` is of that kind, and has a state of floating dtypes."""
    if not isinstance(cell, kind):
        return False
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in state_like(cell)[1])


def _common_dtype(tree: Any) -> Any:
    dtypes = {jnp.dtype(leaf.dtype) for leaf in jax.tree.leaves(tree)}
    return dtypes.pop() if len(dtypes) == 1 else None


class Run(Protocol):
    """The function of an engine: the final state and ``ys [T, *batch, H]`` of a cell over ``xs [T, *batch, I]``."""

    def __call__(
        self, cell: Any, params: Any, state: Any, xs: jax.Array, controls: Controls, *, reverse: bool, remat: Any
    ) -> tuple[Any, jax.Array]: ...


@dataclasses.dataclass(frozen=True)
class Engine:
    """One way to run cells over sequences.

    Attributes:
        name: what ``implementation=`` selects.
        run: the function; see `Run`. It must equal ``"scan"`` in values, final state and gradients.
        fits: ``""`` if it can do this job, else the end of a sentence, "needs resets to be None".
        rank: of the engines that fit a job, the one that ranks highest is the default. ``"scan"`` has 0; what ranks
            below is used only when named.
        iterative: whether it comes as near as it was told to, so that rounding may differ with what is beside, or comes
            later in, a sequence; laws that hold to the bit are not asked of it.
        many: whether networks that `jax.vmap` maps run side by side, in little more time than one of them takes.
        pieces: into how many pieces time is cut for a job and so many equal layers, which then run side by side, each
            on a piece of its own; 1 for layer after layer. See `rnnjax.engines.wavefront`.
    """

    name: str
    run: Run
    fits: Callable[[Job], str] = lambda job: ""
    rank: Callable[[Job], float] = lambda job: -1
    iterative: bool = False
    many: bool = False
    pieces: Callable[[Job, int], int] = lambda job, layers: 1

    def __post_init__(self) -> None:
        check_kinds(self)


@dataclasses.dataclass(frozen=True, eq=False)
class _Engines:
    """All engines at one time. A new one makes a new value, so what was compiled with the others is not taken again."""

    entries: tuple[Engine, ...] = ()


_engines = _Engines()


def register(entry: Engine) -> None:
    """Adds an engine, in place of the one of that name if there is one.

    An engine for affine cells is best made by `affine_engine` from a pair of loops.

    Raises:
        TypeError: if it is no `Engine`.
    """
    check_kind("register", "entry", entry, Engine, "an Engine")
    global _engines
    others = tuple(old for old in _engines.entries if old.name != entry.name)
    _engines = _Engines((*others, entry))


def registered() -> _Engines:
    """All engines there are now, as one hashable value."""
    return _engines


def engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        ValueError: if there is none.
    """
    for entry in _engines.entries:
        if entry.name == name:
            return entry
    known = [entry.name for entry in _engines.entries]
    raise ValueError(f"engine: none is called {name!r}{did_you_mean(name, known) or ';'} known: {', '.join(known)}.")


@public
def implementations(cell: Any) -> tuple[str, ...]:
    """The names that ``implementation=`` takes for this cell; of a network, those that all of its parts take.

    ``"stacked"`` is for a `Stack` of equal layers; see `rnnjax.engines.stacked`.

    A name may still be refused for a kind of work (``"cudnn"`` has no resets), in one sentence.

    >>> import rnnjax
    >>> "scan" in rnnjax.implementations(rnnjax.LSTM(8))
    True

    Raises:
        TypeError: for a class instead of an instance.
    """
    if isinstance(cell, type):
        raise TypeError(f"implementations: cell must be an instance, got the class {cell.__name__}; make one.")
    if isinstance(cell, Network):
        first, *others = (implementations(part) for _, part, _ in cell.parts(None))
        own = ("stacked",) if stackable(cell) else ()
        return (*(name for name in first if all(name in other for other in others) and name not in own), *own)
    job = Job(cell, jax.default_backend(), input_size=getattr(cell, "hidden_size", 1))
    return tuple(entry.name for entry in _engines.entries if not entry.fits(job))


class UnfitError(ValueError):
    """An engine that was asked for by name does not fit the job.

    Attributes:
        engine: its name.
        reason: what it answered: the end of a sentence.
    """

    def __init__(self, engine: str, reason: str):
        super().__init__(f"unroll: {engine!r} {reason}; take implementation=None.")
        self.engine, self.reason = engine, reason


def choose(job: Job, name: str | None = None) -> Engine:
    """The engine of that name, or with None the one that ranks highest among those that fit.

    Raises:
        UnfitError: if it does not fit.
        ValueError: if there is none of that name, or none that fits.
        TypeError: if ``job`` is none.
    """
    check_kind("choose", "job", job, Job, "a Job")
    if name is None:
        able = [entry for entry in _engines.entries if not entry.fits(job)]
        if able:
            return max(able, key=lambda entry: entry.rank(job))
        reasons = "; ".join(f"{entry.name!r} {entry.fits(job)}" for entry in _engines.entries)
        raise ValueError(f"unroll: no implementation can do this with {type(job.cell).__name__}: {reasons}.")
    for entry in _engines.entries:
        if entry.name == name:
            reason = entry.fits(job)
            if reason:
                raise UnfitError(name, reason)
            return entry
    raise no_such(name, job.cell, implementations(job.cell))


def no_such(name: str, net: Any, names: Sequence[str]) -> ValueError:
    """The error of an implementation of which nobody has heard."""
    guess = did_you_mean(name, names) or ";"
    return ValueError(
        f"unroll: no {name!r} implementation for {type(net).__name__}{guess} available: {', '.join(names)}."
    )

"""What all decoders share: the step of a model, how it is compiled, what is checked, and which symbols may come."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import check_size, describe, short
from rnnjax.decoding.adjust import symbol_ids
from rnnjax.programs import kept
from rnnjax.promotion import compute_dtype

__all__ = ["Rules", "Step", "StepInfo", "call", "first_symbols", "inspect_step", "make_rules"]

Step = Callable[[Any, jax.Array], tuple[Any, jax.Array]]
"""`(state, symbols [B]) -> (state, logits [B, V])`, a pure function; the leaves of the state are `[B, ...]`."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which symbols may come when; hashable, so that it is part of what a compiled program is found by."""

    max_len: int
    min_len: int
    stop: tuple[int, ...]
    banned: tuple[int, ...]

    @property
    def pad(self) -> int:
        """What stands behind the end."""
        return self.stop[0] if self.stop else 0

    def stops(self, symbols: jax.Array) -> jax.Array:
        """Whether each symbol ends its row."""
        return jnp.isin(symbols, jnp.asarray(self.stop, symbols.dtype))

    def check(self, where: str, vocab_size: int) -> None:
        """Raises unless V symbols fit and one of them is always left."""
        symbol_ids(where, "stop", self.stop, vocab_size)
        symbol_ids(where, "banned", self.banned, vocab_size)
        early = self.stop if self.min_len > 1 else ()
        if len({*self.banned, *early}) == vocab_size:
            what = "banned, or to stop with before min_len" if early else "banned"
            raise ValueError(f"{where}: a symbol must be left to come, got all {vocab_size} of them {what}.")

    def allow(self, t: jax.Array, logits: jax.Array) -> jax.Array:
        """Minus infinity for what may not come at place t, from 0, of `[..., V]`."""
        never, early = np.zeros((2, logits.shape[-1]), bool)
        never[list(self.banned)] = True
        early[list(self.stop)] = True
        if self.min_len > 1 and self.stop:
            return jnp.where(never | (early & (t + 1 < self.min_len)), -jnp.inf, logits)
        return jnp.where(never, -jnp.inf, logits) if self.banned else logits


def make_rules(
    where: str,
    max_len: int,
    min_len: int,
    stop: int | Iterable[int] | None,
    banned: int | Iterable[int] | None,
) -> Rules:
    """The rules, once the numbers are found to be in range."""
    max_len, min_len = check_size(where, "max_len", max_len), check_size(where, "min_len", min_len, least=0)
    if min_len > max_len:
        raise ValueError(f"{where}: min_len must be from 0 to max_len = {max_len}, got {min_len}.")
    return Rules(max_len, min_len, symbol_ids(where, "stop", stop), symbol_ids(where, "banned", banned))


def call(where: str, decode: Callable[..., Any], step: Step, *arrays: Any, settings: tuple[Any, ...]) -> Any:
    """`decode(step, *arrays, *settings)` as one compiled program.

    What `functools.partial` binds are arguments of the program, so it serves for other parameters too. The arrays that
    a plain function captures are out of sight and may be others the next time, so its program serves for one call.
    """
    if not callable(step):
        raise TypeError(f"{where}: step must be a function (state, symbols) -> (state, logits), got {short(step)}.")
    if not isinstance(step, functools.partial):
        return jax.jit(lambda *arrays: decode(step, *arrays, *settings))(*arrays)
    function: Any = step.func
    args = step.args
    if inspect.ismethod(function):  # equal models share a program, and a model that is a pytree has its arrays bound
        function, args = function.__func__, (function.__self__, *args)
    leaves, structure = jax.tree.flatten((args, step.keywords))
    bound = [leaf if isinstance(leaf, jax.Array | np.ndarray) else None for leaf in leaves]
    fixed = tuple((type(leaf), leaf) for leaf, array in zip(leaves, bound) if array is None)
    for value in (function, *(leaf for _, leaf in fixed)):
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{where}: functools.partial must bind arrays and hashable values to a hashable function, "
                f"got a {type(value).__name__}."
            ) from None
    if isinstance(function, types.FunctionType):  # one that is made for a call goes after it, and its program, too
        return kept(_bound, function, options=(decode, structure, fixed, settings))(bound, arrays)
    return _by_value(function, decode, structure, fixed, settings, bound, arrays)


def _bound(
    function: Callable[..., Any],
    decode: Callable[..., Any],
    structure: Any,
    fixed: tuple[Any, ...],
    settings: tuple[Any, ...],
    bound: list[Any],
    arrays: tuple[Any, ...],
) -> Any:
    others = iter(fixed)
    args, keywords = structure.unflatten([next(others)[1] if leaf is None else leaf for leaf in bound])
    return decode(functools.partial(function, *args, **keywords), *arrays, *settings)


_by_value = jax.jit(_bound, static_argnums=range(5))


def first_symbols(where: str, state: Any, symbols: jax.Array) -> jax.Array:
    """The first input of every row, int32 `[B]`; a single symbol is that of all rows of the state."""
    if symbols.ndim == 0:
        leaves = jax.tree.leaves(state)
        if not leaves or not jnp.ndim(leaves[0]):
            raise ValueError(
                f"{where}: a single start symbol needs a state of leaves [B, ...] to count the rows of, got "
                f"{describe(leaves[0]) if leaves else 'no leaf'}; give one start symbol for each row."
            )
        symbols = jnp.broadcast_to(symbols, (jnp.shape(leaves[0])[0],))
    if symbols.ndim != 1 or not symbols.size:
        raise ValueError(
            f"{where}: start must be one symbol or have shape [B] with B of 1 or more, got {describe(symbols)}."
        )
    return symbols


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """What a trial of the step says; nothing is computed for it."""

    vocab_size: int
    dtype: Any  # of log-probabilities: float32, or wider where the logits are
    constant: tuple[bool, ...]  # for every leaf of the state: whether the step hands it back as it is


def inspect_step(where: str, step: Step, state: Any, symbols: jax.Array) -> StepInfo:
    """Raises unless the step keeps the state's shapes and dtypes and returns logits for each row."""
    leaves = jax.tree.leaves(state)
    if leaves and all(jnp.shape(leaf)[:1] != symbols.shape for leaf in leaves):
        raise ValueError(
            f"{where}: the leaves of state must have shape [B, ...] with B = {len(symbols)} (from start), "
            f"got {describe(leaves[0])}."
        )
    constant: list[bool] = []

    def trial(state: Any, symbols: jax.Array) -> Any:
        result = step(state, symbols)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"{where}: step must return (state, logits), got {type(result).__name__}.")
        before: Any = jax.tree.structure(state)
        if before != jax.tree.structure(result[0]):
            raise ValueError(
                f"{where}: step must return a state of the structure that it was given, {before}, "
                f"got {jax.tree.structure(result[0])}."
            )
        constant.extend(new is old for new, old in zip(jax.tree.leaves(result[0]), jax.tree.leaves(state)))
        return result

    after, logits = jax.eval_shape(trial, state, symbols)
    before = jax.tree_util.tree_leaves_with_path(state)
    for (path, old), new, same in zip(before, jax.tree.leaves(after), constant):
        name = f"state{jax.tree_util.keystr(path)}"
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(f"{where}: step must keep {name} at {describe(old)}, got {describe(new)}.")
        if not same and old.shape[:1] != symbols.shape:
            raise ValueError(
                f"{where}: {name} must have shape [B, ...] with B = {len(symbols)} (from start), got {describe(old)}."
            )
    if getattr(logits, "shape", ())[:-1] != symbols.shape or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"{where}: step must return floating logits [B, V] with B = {len(symbols)}, got {describe(logits)}."
        )
    return StepInfo(logits.shape[-1], compute_dtype(logits.dtype), tuple(constant))

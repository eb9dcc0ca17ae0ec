"""Compiled programs that live as long as the functions they were made of."""

from __future__ import annotations

import functools
import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["kept"]

# The programs of `kept`, by the identities of the functions that they are made of.
_PROGRAMS: dict[Any, tuple[Any, list[Any]]] = {}


def kept(
    function: Callable[..., Any], *parts: Any, options: tuple[Any, ...] = (), donate_argnums: tuple[int, ...] = ()
) -> Any:
    """``jax.jit`` of ``function(*parts, *options, ...)``: the same one as long as its parts live.

    `jax.jit` with static arguments would keep them, and all that was compiled for them, for good: in a program that
    makes its losses as it goes along, memory would grow with each. Here a program goes when one of its parts does.

    Args:
        function: at the top of a module.
        parts: functions, or tuples of functions as an optax optimizer is; compared by identity.
        options: further leading arguments; compared by value, which must be hashable.
        donate_argnums: of the arguments that follow.
    """
    functions = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
    kinds = tuple((type(part), len(part)) if isinstance(part, tuple) else None for part in parts)
    key = function, kinds, options, donate_argnums, *map(_identity, functions)
    if (known := _PROGRAMS.get(key)) is not None:
        return known[0]

    def forget(_: Any) -> None:
        _PROGRAMS.pop(key, None)

    try:
        refs: list[Any] = [
            weakref.WeakMethod(one, forget) if inspect.ismethod(one) else weakref.ref(one, forget) for one in functions
        ]
    except TypeError:  # of a kind that nobody can refer to weakly: compiled for this call
        return jax.jit(functools.partial(function, *parts, *options), donate_argnums=donate_argnums)

    def program(*arrays: Any) -> Any:  # traced while the caller holds the parts
        alive = iter([ref() for ref in refs])
        made = [next(alive) if kind is None else kind[0](*itertools.islice(alive, kind[1])) for kind in kinds]
        return function(*made, *options, *arrays)

    program.__name__ = function.__name__.lstrip("_")  # what profiles call it
    compiled = jax.jit(program, donate_argnums=donate_argnums)
    _PROGRAMS[key] = compiled, refs
    return compiled


def _identity(one: Any) -> Any:
    return (id(one.__self__), id(one.__func__)) if inspect.ismethod(one) else id(one)

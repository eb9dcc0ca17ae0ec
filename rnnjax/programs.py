"""Compiled programs that live as long as the functions they were made of."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["kept"]

# The programs of `kept`, by the identities of the functions that they are made of.
_PROGRAMS: dict[Any, tuple[Any, tuple[Any, ...]]] = {}


def kept(
    function: Callable[..., Any],
    loss_fn: Callable[..., Any],
    optimizer: Any,
    *options: Any,
    donate_argnums: tuple[int, ...] = (),
) -> Any:
    """``jax.jit`` of ``function(loss_fn, optimizer, *options, ...)``, the same one as long as its functions live.

    `jax.jit` with static arguments would keep them, and all that was compiled for them, for good: in a program that
    makes its losses as it goes along, memory would grow with each. Here a program goes when the loss or the optimizer
    does. Both are compared by identity, and the options, which must be hashable, by value.

    Args:
        function: at the top of a module.
        loss_fn: any callable.
        optimizer: an optax optimizer.
        options: further leading arguments.
        donate_argnums: of the arguments that follow.
    """
    made_of: list[Any] = [loss_fn, *(optimizer if isinstance(optimizer, tuple) else [optimizer])]
    key = (function, type(optimizer), options, donate_argnums, *map(_identity, made_of))
    if (known := _PROGRAMS.get(key)) is not None:
        return known[0]

    def forget(_: Any) -> None:
        _PROGRAMS.pop(key, None)

    try:
        loss_ref, *refs = [
            weakref.WeakMethod(part, forget) if inspect.ismethod(part) else weakref.ref(part, forget)
            for part in made_of
        ]
    except TypeError:  # of a kind that nobody can refer to weakly: compiled for this call
        return jax.jit(functools.partial(function, loss_fn, optimizer, *options), donate_argnums=donate_argnums)
    rebuild: Any = type(optimizer) if isinstance(optimizer, tuple) else lambda *found: found[0]

    def program(*arrays: Any) -> Any:  # traced while the caller holds them all
        return function(loss_ref(), rebuild(*[ref() for ref in refs]), *options, *arrays)

    program.__name__ = function.__name__.lstrip("_")  # what profiles call it
    compiled = jax.jit(program, donate_argnums=donate_argnums)
    _PROGRAMS[key] = compiled, (loss_ref, *refs)
    return compiled


def _identity(part: Any) -> Any:
    return (id(part.__self__), id(part.__func__)) if inspect.ismethod(part) else id(part)

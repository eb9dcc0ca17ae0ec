r"""Fields of frozen dataclasses that are checked by their annotations, and the declaration of a cell."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from rnnjax.checks import check_choice, check_flag, check_init, check_real, check_size, describe, did_you_mean, short

__all__ = ["cell_class", "check_fields"]

Kind = TypeVar("Kind", bound=type[Any])


@typing.dataclass_transform(frozen_default=True)
def cell_class(kind: Kind) -> Kind:
    """Makes a frozen dataclass of a cell: ``hidden_size`` by position, options by name, fields checked.

    Options are declared behind ``_: dataclasses.KW_ONLY``, so that no number can be meant for another one. Fields are
    checked by their annotations (`check_fields`) before the ``__post_init__`` of the class, and the arguments of
    ``init`` before it draws.

    Raises:
        TypeError: when the cell is made with two sizes, as torch takes them, or with an option that it lacks.
    """
    own, draw = kind.__dict__.get("__post_init__"), kind.init

    def check(self: Any) -> None:
        check_fields(self)
        if own is not None:
            own(self)

    @functools.wraps(draw)
    def init(self: Any, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> Any:
        return draw(self, key, check_init(self, key, input_size, dtype), dtype)

    kind.__post_init__, kind.init = check, init
    made: Any = dataclasses.dataclass(frozen=True)(kind)
    plain = made.__init__
    options = [f.name for f in dataclasses.fields(made) if f.name != "hidden_size"]

    @functools.wraps(plain)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        if len(args) > 1:
            given = ", ".join(map(short, args))
            raise TypeError(
                f"{name}: hidden_size alone is given by position, got {name}({given}); the size of the input goes to "
                f"init, not first as in torch: {name}({short(args[1])}).init(key, {short(args[0])}). Options go by "
                f"name: {', '.join(options)}."
            )
        if type(self) is made and (unknown := [word for word in kwargs if word not in ("hidden_size", *options)]):
            guess = did_you_mean(unknown[0], options)
            raise TypeError(
                f"{name}: no option is called {unknown[0]!r}{guess or '.'} Its options: {', '.join(options)}."
            )
        plain(self, *args, **kwargs)

    made.__init__ = make
    return made


def check_fields(value: Any, where: str | None = None) -> None:
    """Checks the fields of a frozen dataclass by their annotations, and keeps each in one form.

    An ``int`` is a size (`check_size`), a ``float`` a finite number (`check_real`), a ``bool`` a switch, a ``Literal``
    one of its values; a protocol of calls, as ``Initializer``, takes an instance that can be called and hashed.
    Annotations of other kinds are left to the class.

    Raises:
        TypeError: for a value of another kind.
        ValueError: for one outside of its range.
    """
    where = type(value).__name__ if where is None else where
    kind: Any = type(value)
    for name, annotation in _annotations(kind):
        object.__setattr__(value, name, _checked(where, name, getattr(value, name), annotation))


@functools.lru_cache(maxsize=256)
def _annotations(kind: type) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((f.name, hints[f.name]) for f in dataclasses.fields(kind) if f.init)


def _checked(where: str, name: str, value: Any, annotation: Any) -> Any:
    if annotation is int:
        return check_size(where, name, value)
    if annotation is float:
        return check_real(where, name, value)
    if annotation is bool:
        return check_flag(where, name, value)
    if typing.get_origin(annotation) is typing.Literal:
        return check_choice(where, name, value, typing.get_args(annotation))
    if isinstance(annotation, type) and getattr(annotation, "_is_protocol", False):
        return _check_call(where, name, value)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return _check_union(where, name, value, typing.get_args(annotation))
    return value


def _check_call(where: str, name: str, value: Any) -> Any:
    if isinstance(value, type):
        raise TypeError(
            f"{where}: {name} must be an instance, got the class {value.__name__}; write {value.__name__}()."
        )
    if not callable(value):
        raise TypeError(f"{where}: {name} must be an initialiser such as Glorot(), got {describe(value)}.")
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{where}: {name} must be hashable, got {short(value)}; use a frozen dataclass.") from None
    return value


def _check_union(where: str, name: str, value: Any, members: tuple[Any, ...]) -> Any:
    """What one of the members takes; numbers last, as their sentences are the most precise."""
    if value is None and type(None) in members:
        return None
    classes = [m for m in members if isinstance(m, type) and m not in (int, float, bool, type(None))]
    if any(not dataclasses.is_dataclass(m) for m in classes) or any(not isinstance(m, type) for m in members):
        return value  # tuples and the like: the class knows
    if isinstance(value, tuple(classes)):
        return value
    for kind in classes:
        if value is kind:
            raise TypeError(
                f"{where}: {name} must be an instance, got the class {kind.__name__}; write {kind.__name__}(..)."
            )
    number = next((m for m in members if m in (int, float)), None)
    return value if number is None else _checked(where, name, value, number)

r"""Checks by annotation: of the fields of a frozen dataclass, of a cell's options, and of a function's arguments.

What a signature says is what is checked, once for all: nothing of it is repeated in the functions and classes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.checks import (
    check_choice,
    check_flag,
    check_init,
    check_ints,
    check_key,
    check_kind,
    check_real,
    check_size,
    describe,
    did_you_mean,
    is_traced,
    short,
)
from rnnjax.promotion import promoting

__all__ = ["cell_class", "check_fields", "check_kinds", "public"]

Kind = TypeVar("Kind", bound=type[Any])
Function = TypeVar("Function", bound=Callable[..., Any])
Check = Callable[[str, str, Any], Any]  # (where, name, value) -> the value in one form


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
    for name, method in list(vars(kind).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(kind, name, promoting(method))
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


def check_fields(
    value: Any, where: str | None = None, *, least: Mapping[str, int] | None = None, rates: Sequence[str] = ()
) -> None:
    """Checks the fields of a frozen dataclass by their annotations, and keeps each in one form.

    An ``int`` is a size (`check_size`), a ``float`` a finite number (`check_real`), a ``bool`` a switch, a ``Literal``
    one of its values; a protocol of calls, as ``Initializer``, takes an instance that can be called and hashed.
    Annotations of other kinds are left to the class.

    Args:
        value: the dataclass.
        where: the beginning of the sentences; None takes the name of the class.
        least: the smallest value of an ``int`` that is not 1.
        rates: the ``float`` fields that lie in [0, 1).

    Raises:
        TypeError: for a value of another kind.
        ValueError: for one outside of its range.
    """
    where = type(value).__name__ if where is None else where
    kind: Any = type(value)
    for name, annotation in _annotations(kind):
        field = getattr(value, name)
        if name in rates:
            field = check_real(where, name, field, least=0, below=1)
        elif least is not None and name in least:
            field = check_size(where, name, field, least=least[name])
        else:
            field = _checked(where, name, field, annotation)
        object.__setattr__(value, name, field)


@functools.lru_cache(maxsize=256)
def _annotations(kind: type) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((f.name, hints[f.name]) for f in dataclasses.fields(kind) if f.init)


def _checked(where: str, name: str, value: Any, annotation: Any) -> Any:
    if check := _FIELDS.get(annotation):
        return check(where, name, value)
    if typing.get_origin(annotation) is typing.Literal:
        return check_choice(where, name, value, typing.get_args(annotation))
    if isinstance(annotation, type) and getattr(annotation, "_is_protocol", False) and "__call__" in vars(annotation):
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
    return _hashable(where, name, value)


def _hashable(where: str, name: str, value: Any) -> Any:
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


def check_kinds(value: Any) -> None:
    """Checks the fields of a frozen dataclass as `public` checks the arguments of a function: kinds, no ranges.

    Raises:
        TypeError: for a field of another kind; the sentence begins with the name of the class.
    """
    kind: Any = type(value)
    for name, annotation in _annotations(kind):
        if check := _check_of(name, annotation):
            object.__setattr__(value, name, check(type(value).__name__, name, getattr(value, name)))


@typing.overload
def public(function: Function) -> Function: ...
@typing.overload
def public(*, but: Sequence[str]) -> Callable[[Function], Function]: ...
def public(function: Any = None, *, but: Sequence[str] = ()) -> Any:
    """Checks the kinds of a function's arguments by their annotations, before its first line.

    Sizes become plain ints and numbers plain floats (traced numbers stay), floating lists and NumPy arrays become
    arrays of JAX; integers stay as they came, for `check_ints` to judge. ``key`` must be a key, ``cell`` an instance,
    ``params`` and ``state`` trees of arrays. Ranges and shapes are the function's own business.

    Args:
        function: what is decorated.
        but: arguments that the function checks by itself.

    Raises:
        TypeError: when the function is called with an argument of another kind; the sentence names both.
    """
    if function is None:
        return functools.partial(public, but=but)
    signature = inspect.signature(function)
    positional = [
        p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    where = function.__qualname__.rpartition("<locals>.")[2]
    checks: dict[str, Check] = {}

    def prepare() -> None:
        # At the first call, as annotations may name what is defined further down.
        hints = _hints(function)
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for name, parameter in signature.parameters.items():
            if parameter.kind in variable or name not in hints or name in but:
                continue
            if check := _check_of(name, hints[name]):
                checks[name] = check
        checks.setdefault("", lambda where, name, value: value)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not checks:
            prepare()
        new = [checks[n](where, n, a) if n in checks else a for n, a in zip(positional, args)]
        for name in kwargs:
            if name in checks:
                kwargs[name] = checks[name](where, name, kwargs[name])
        return function(*new, *args[len(new) :], **kwargs)

    return call


def _hints(function: Any) -> dict[str, Any]:
    """The annotations of the arguments; without those whose names are imported for type checkers alone."""
    found = {}
    for name, annotation in function.__annotations__.items():
        try:
            found[name] = eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation
        except NameError:
            continue
    return found


def _check_of(name: str, annotation: Any) -> Check | None:
    """The check of one argument; None where any value will do."""
    if annotation in _BY_ANNOTATION:
        return _BY_ANNOTATION[annotation]
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        some = [m for m in members if m is not type(None)]
        check = _check_of(name, some[0]) if len(some) == 1 else None
        if check is None or len(some) == len(members):
            return check
        return lambda where, name, value: None if value is None else check(where, name, value)
    if name == "key" and annotation in (jax.Array, Any):
        return lambda where, name, value: check_key(where, value)
    if name == "keys" and annotation is jax.Array:
        return lambda where, name, value: check_key(where, value, name, several=True)
    if annotation is Any:
        return _BY_NAME.get(name)
    if annotation in (jax.Array, np.ndarray):
        return _array
    if origin is typing.Literal:
        return lambda where, name, value: check_choice(where, name, value, members)
    if origin in _BY_ORIGIN or annotation is Callable:
        return _BY_ORIGIN[origin or annotation]
    if isinstance(annotation, type) and getattr(annotation, "_is_protocol", False):
        return _cell if "step" in dir(annotation) else _function if "__call__" in vars(annotation) else None
    if isinstance(annotation, type) and annotation is not object:
        return _instance(annotation, f"{'an' if annotation.__name__[0] in 'AEIOU' else 'a'} {annotation.__name__}")
    return None


def _instance(kind: Any, wanted: str) -> Check:
    return lambda where, name, value: check_kind(where, name, value, kind, wanted)


def _number(where: str, name: str, value: Any) -> Any:
    """A number; infinity and NaN are for the function to judge."""
    if not isinstance(value, jax.core.Tracer) and not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            number = float(value) if np.ndim(value) == 0 and value is not None else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is not None and not np.isfinite(number):
            return number
    return check_real(where, name, value, traced=True)


def _function(where: str, name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{where}: {name} must be a function, got {describe(value)}.")
    return value


def _several(where: str, name: str, value: Any) -> Any:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0:
        raise TypeError(f"{where}: {name} must be a sequence, got {describe(value)}; write ({short(value)},).")
    return value


def _array(where: str, name: str, value: Any) -> Any:
    """An array: floating ones become JAX's, integers and Booleans stay as they are."""
    if isinstance(value, jax.Array):
        if (jnp.issubdtype(value.dtype, jnp.number) and not jnp.iscomplexobj(value)) or value.dtype == bool:
            return value
        raise TypeError(f"{where}: {name} must be an array of real numbers, got {describe(value)}.")
    if value is None or isinstance(value, str | bytes | Mapping) or callable(value):
        raise TypeError(f"{where}: {name} must be an array, got {describe(value)}.")
    if is_traced(value):
        return jnp.asarray(value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind not in "biufV" or array.dtype.names is not None:
        raise TypeError(f"{where}: {name} must be an array of numbers, got {describe(value)}.")
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and not hasattr(value, "dtype"):
        check_ints(where, name, value)  # integers of Python that int32 does not hold would overflow
    return value if array.dtype.kind in "biu" or not array.size else jnp.asarray(array)


def _cell(where: str, name: str, value: Any) -> Any:
    if isinstance(value, type):
        raise TypeError(f"{where}: {name} must be an instance, got the class {value.__name__}; make one.")
    if not callable(getattr(value, "init", None)):
        raise TypeError(f"{where}: {name} must be a cell, or a network of cells, got {describe(value)}.")
    return _hashable(where, name, value)


def _tree(where: str, name: str, value: Any) -> Any:
    """Parameters or a state: a tree of arrays, not the cell, a number or a key in their place."""
    if isinstance(value, str | bytes | int | float | type) or callable(value) or hasattr(value, "init"):
        what = f"the class {value.__name__}" if isinstance(value, type) else describe(value)
        raise TypeError(f"{where}: {name} must be a tree of arrays, got {what}.")
    for leaf in jax.tree.leaves(value):
        if (
            isinstance(leaf, str | bytes)
            or getattr(getattr(leaf, "dtype", None), "kind", "f") in "OUSM"
            or (name == "params" and jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.extended))
            or not (hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex))
        ):
            raise TypeError(f"{where}: {name} must be a tree of arrays, got {describe(leaf)} in it.")
    return value


_FIELDS: dict[Any, Check] = {int: check_size, float: check_real, bool: check_flag}
_BY_ANNOTATION: dict[Any, Check] = {
    int: lambda where, name, value: check_size(where, name, value, least=-(2**31)),
    float: _number,
    bool: check_flag,
    str: _instance(str, "a string"),
    str | bytes: _instance((str, bytes), "a string or bytes"),
    str | os.PathLike[str]: _instance((str, os.PathLike), "a path"),
}
_BY_ORIGIN: dict[Any, Check] = {
    Callable: _function,
    tuple: _instance((tuple, list), "a tuple"),
    Sequence: _several,
    Iterable: _several,
    Mapping: _instance(Mapping, "a mapping"),
    dict: _instance(Mapping, "a mapping"),
}
_BY_NAME: dict[str, Check] = {
    "cell": _cell,
    "net": _cell,
    "params": _tree,
    "state": _tree,
    "states": _tree,
    "visited": _tree,
}

"""Cells by name: ``lstm``, ``elman(activation='relu')``, or ``path/to/file.py:MyCell``; and by what repr wrote."""

from __future__ import annotations

import ast
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rnnjax import initializers
from rnnjax.cell import Cell
from rnnjax.checks import did_you_mean, short
from rnnjax.kinds import public
from rnnjax.user_code import load_module, user_line

__all__ = ["CELLS", "absolute_cell", "cell_file", "cell_from_name", "cell_from_repr", "describable"]

Kind = TypeVar("Kind", bound=type)

CELLS: dict[str, Callable[..., Cell]] = {}  # by name, as the room fills it
_INITIALIZERS: dict[str, Any] = {
    name: kind
    for name in initializers.__all__
    if isinstance(kind := getattr(initializers, name), type) and dataclasses.is_dataclass(kind)
}
_DESCRIBABLE: dict[str, Any] = {}  # cells and what is made of them, by the name of the class; see `describable`


def cell_from_name(spec: str, hidden_size: int) -> Cell:
    """Makes a cell from a name, with options as in a call.

    Args:
        spec: a name from `CELLS`, or ``file.py:Class``, either with keyword options in parentheses; options are
            literals or initialisers, nothing in them is executed.
        hidden_size: H.

    Raises:
        TypeError: if ``spec`` is no string.
        ValueError: for an unknown name or an option the cell does not take, or a file that raises anything.
        FileNotFoundError: if the file of a ``file.py:Class`` does not exist.

    >>> cell_from_name("elman(activation='relu', recurrent_init=Identity())", 8)  # doctest: +ELLIPSIS
    Elman(hidden_size=8, activation='relu', ..., recurrent_init=Identity(scale=1.0))
    """
    if not isinstance(spec, str):
        raise TypeError(f"cell_from_name: spec must be a name such as 'lstm', got {short(spec)}.")
    name, options = _parse(spec)
    if name.lower() in CELLS:
        make = CELLS[name.lower()]
    elif ".py:" in name:
        make = _from_file(name)
    else:
        raise ValueError(
            f"cell: no cell is called {name!r}{did_you_mean(name, CELLS) or ';'} known: {', '.join(sorted(CELLS))}, "
            "or path/to/file.py:Class."
        )
    try:
        return make(hidden_size=hidden_size, **options)
    except TypeError as error:
        if user_line(error):
            raise  # of the user's own code, not of its arguments
        fields: list[str] = [f.name for f in dataclasses.fields(make)] if dataclasses.is_dataclass(make) else []
        known = f" Its options: {', '.join(f for f in fields if f != 'hidden_size')}." if fields else ""
        reason = str(error).removesuffix(".")
        raise ValueError(f"cell: {spec!r} cannot be made: {reason}.{'' if known in f'{reason}.' else known}") from error


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    name, parenthesis, rest = spec.partition("(")
    if not parenthesis:
        return spec.strip(), {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("options must be name=value")
        return name.strip(), {str(k.arg): _value(k.value, _INITIALIZERS, _word) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"cell: cannot read {spec!r} ({error}); write it like lstm(forget_bias=2.0).") from error


def cell_from_repr(text: str) -> Any:
    """Makes the cell or network that ``repr`` described; nothing in the text is executed.

    Calls are those of our cells, of what is made of cells, of initialisers, and of classes marked by `describable`;
    everything else must be a literal.

    Args:
        text: for example ``repr(cell)``.

    Raises:
        TypeError: if ``text`` is no string.
        ValueError: if it is no such description.

    >>> cell_from_repr("LSTM(hidden_size=8, forget_bias=Chrono(max_lag=20))")  # doctest: +ELLIPSIS
    LSTM(hidden_size=8, forget_bias=Chrono(max_lag=20), ..., recurrent_init=Orthogonal(scale=1.0))
    """
    if not isinstance(text, str):
        raise TypeError(f"cell_from_repr: text must be what repr wrote, got {short(text)}.")
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("it must be a call of a class, as LSTM(hidden_size=8)")
        if call.func.id not in _DESCRIBABLE:
            raise ValueError(f"{call.func.id} is none of rnnjax's cells")
        return _value(call, {**_INITIALIZERS, **_DESCRIBABLE}, _number)
    # What the parser raises for text that is nested too deeply depends on the Python.
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        cut = text if len(text) <= 80 else f"{text[:77]}..."
        raise ValueError(f"cell_from_repr: {cut!r} describes no cell ({error}).") from error


def describable(kind: Kind) -> Kind:
    """Marks a frozen dataclass, so that `cell_from_repr`, and with it ``rnnjax.load``, makes it from its ``repr``.

    Raises:
        TypeError: if it is no dataclass.
        ValueError: if another class has this name.

    >>> import dataclasses, rnnjax
    >>> @describable
    ... @dataclasses.dataclass(frozen=True)
    ... class Halved(rnnjax.GRU):
    ...     factor: float = 0.5
    >>> cell_from_repr("Halved(hidden_size=4, factor=0.25)") == Halved(4, factor=0.25)
    True
    """
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise TypeError(f"describable: a frozen dataclass is needed, whose repr is a call, got {short(kind)}.")
    known = _DESCRIBABLE.get(kind.__name__, _INITIALIZERS.get(kind.__name__, kind))
    # The same name and module is the same class, read again.
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(
            f"describable: the name of a class must be new, got {short(kind.__name__)}, which {known.__module__} has; "
            "take another name."
        )
    _DESCRIBABLE[kind.__name__] = kind
    return kind


def _value(node: ast.expr, kinds: Mapping[str, Any], word: Callable[[str], Any]) -> Any:
    """A literal, or a call of one of the kinds with literals and such calls; ``word`` says what a bare word means."""
    if isinstance(node, ast.Name):
        return word(node.id)
    if isinstance(node, ast.Tuple | ast.List):
        items = [_value(item, kinds, word) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Name):
        return -word(node.operand.id)  # -inf; other negative numbers are literals
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id not in kinds:
            wanted = "initialiser" if kinds is _INITIALIZERS else "class of rnnjax"
            raise ValueError(f"{node.func.id} is no {wanted}")
        arguments = [_value(a, kinds, word) for a in node.args]
        return kinds[node.func.id](*arguments, **{str(k.arg): _value(k.value, kinds, word) for k in node.keywords})
    return ast.literal_eval(node)


def _word(word: str) -> Any:
    """A bare word is a string, as in ``elman(activation=relu)``, but for the floats that are words."""
    return _number(word) if word in ("inf", "nan") else word


def _number(word: str) -> float:
    """The floats that repr writes as words."""
    if word not in ("inf", "nan"):
        raise ValueError(f"{word} is no literal")
    return math.inf if word == "inf" else math.nan


@public
def cell_file(spec: str) -> pathlib.Path | None:
    """The file of Python code that a cell's name stands for, where it is a ``file.py:Class``; nothing is run.

    >>> cell_file("cells/mine.py:Mine(leak=0.5)").name
    'mine.py'
    """
    name = spec.partition("(")[0].strip()
    return pathlib.Path(name.rpartition(":")[0]).resolve() if ".py:" in name else None


def absolute_cell(spec: str) -> str:
    """The name of a cell, with the whole path where it is in a file: it holds when a run goes on from elsewhere.

    >>> absolute_cell("lstm(forget_bias=2.0)"), absolute_cell("/cells/mine.py:Mine(leak=0.5)")
    ('lstm(forget_bias=2.0)', '/cells/mine.py:Mine(leak=0.5)')
    """
    if (path := cell_file(spec)) is None:
        return spec
    name, parenthesis, rest = spec.partition("(")
    return f"{path}:{name.strip().rpartition(':')[2]}{parenthesis}{rest}"


def _from_file(name: str) -> Callable[..., Cell]:
    filename, _, attribute = name.rpartition(":")
    module = load_module(filename, "cell")
    found = getattr(module, attribute, None)
    if not callable(found):
        kinds = [word for word, value in vars(module).items() if isinstance(value, type)]
        raise ValueError(f"cell: {filename!r} has no class {attribute!r}{did_you_mean(attribute, kinds) or '.'}")
    return found

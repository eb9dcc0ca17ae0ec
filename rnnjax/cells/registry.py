"""Cells by name: ``lstm``, ``elman(activation='relu')``, or ``path/to/file.py:MyCell`` for a cell of your own."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from rnnjax import initializers
from rnnjax.cell import Cell
from rnnjax.cells.conv_lstm import ConvLSTM
from rnnjax.cells.elman import Elman
from rnnjax.cells.gru import GRU
from rnnjax.cells.gru_reset_before import GRUResetBefore
from rnnjax.cells.highway import RecurrentHighway
from rnnjax.cells.indrnn import IndRNN
from rnnjax.cells.layernorm import LayerNormGRU, LayerNormLSTM
from rnnjax.cells.leaky import LeakyRNN
from rnnjax.cells.lru import LRU
from rnnjax.cells.lstm import LSTM
from rnnjax.cells.lstm_variants import CoupledLSTM, PeepholeLSTM
from rnnjax.cells.mgu import MGU
from rnnjax.cells.minimal import MinGRU, MinLSTM
from rnnjax.cells.minimal_rnn import MinimalRNN
from rnnjax.cells.multiplicative import MILSTM, MIRNN
from rnnjax.cells.projected_lstm import ProjectedLSTM
from rnnjax.cells.slstm import SLSTM
from rnnjax.cells.sru import SRU

__all__ = ["CELLS", "cell_from_name"]

CELLS: dict[str, Callable[..., Cell]] = {
    "conv_lstm": ConvLSTM,
    "coupled_lstm": CoupledLSTM,
    "elman": Elman,
    "gru": GRU,
    "gru_reset_before": GRUResetBefore,
    "highway": RecurrentHighway,
    "indrnn": IndRNN,
    "layernorm_gru": LayerNormGRU,
    "layernorm_lstm": LayerNormLSTM,
    "leaky": LeakyRNN,
    "lru": LRU,
    "lstm": LSTM,
    "mgu": MGU,
    "mi_lstm": MILSTM,
    "mi_rnn": MIRNN,
    "min_gru": MinGRU,
    "min_lstm": MinLSTM,
    "minimal_rnn": MinimalRNN,
    "peephole_lstm": PeepholeLSTM,
    "projected_lstm": ProjectedLSTM,
    "slstm": SLSTM,
    "sru": SRU,
}


def cell_from_name(spec: str, hidden_size: int) -> Cell:
    """Makes a cell from a name, with options as in a call.

    Args:
        spec: a name from `CELLS`, or ``file.py:Class``, either with keyword options in parentheses; options are
            literals or initialisers, nothing in them is executed.
        hidden_size: H.

    Raises:
        ValueError: for an unknown name or an option the cell does not take.
        FileNotFoundError: if the file of a ``file.py:Class`` does not exist.

    >>> cell_from_name("elman(activation='relu', recurrent_init=Identity())", 8)  # doctest: +ELLIPSIS
    Elman(hidden_size=8, activation='relu', ..., recurrent_init=Identity(scale=1.0))
    """
    name, options = _parse(spec)
    if name.lower() in CELLS:
        make = CELLS[name.lower()]
    elif ".py:" in name:
        make = _from_file(name)
    else:
        raise ValueError(
            f"cell: no cell is called {name!r}; known: {', '.join(sorted(CELLS))}, or path/to/file.py:Class."
        )
    try:
        return make(hidden_size=hidden_size, **options)
    except TypeError as error:
        fields: list[str] = [f.name for f in dataclasses.fields(make)] if dataclasses.is_dataclass(make) else []
        known = f" Its options: {', '.join(f for f in fields if f != 'hidden_size')}." if fields else ""
        raise ValueError(f"cell: {spec!r} cannot be made: {error}.{known}") from error


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    name, parenthesis, rest = spec.partition("(")
    if not parenthesis:
        return spec.strip(), {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("options must be name=value")
        return name.strip(), {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"cell: cannot read {spec!r} ({error}); write it like lstm(forget_bias=2.0).") from error


def _literal(node: ast.expr) -> Any:
    """A literal, or a call of one of our initialisers with literals; a bare word counts as a string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        kind = getattr(initializers, node.func.id, None) if node.func.id in initializers.__all__ else None
        if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
            raise ValueError(f"{node.func.id} is no initialiser")
        arguments = [_literal(a) for a in node.args]
        return kind(*arguments, **{str(k.arg): _literal(k.value) for k in node.keywords})
    return ast.literal_eval(node)


def _from_file(name: str) -> Callable[..., Cell]:
    filename, _, attribute = name.rpartition(":")
    path = pathlib.Path(filename).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"cell: there is no file {filename!r}.")
    # Registered under a name of its own, so that its dataclasses resolve annotations and pickle, and read once, so
    # that two cells of it are equal.
    module_name = f"rnnjax_cell_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"cell: {filename!r} is not a Python file.")
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[module_name])
        except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError) as error:
            del sys.modules[module_name]
            raise ValueError(f"cell: {filename!r} cannot be run: {type(error).__name__}: {error}.") from error
    module = sys.modules[module_name]
    if not hasattr(module, attribute):
        raise ValueError(f"cell: {filename!r} has no class {attribute!r}.")
    return getattr(module, attribute)

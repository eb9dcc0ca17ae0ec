"""Help in words: what an option takes is called NUMBER, TEXT or PATH, and a flag takes nothing."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["WordedCommand", "WordedGroup"]

_WORDS = {"path": "PATH", "int": "NUMBER", "float": "NUMBER", "str": "TEXT", "text": "TEXT"}


def _word(param: Any) -> str | None:
    """Of the type, which releases of typer call differently."""
    if getattr(param, "is_flag", False):
        return ""
    kind = getattr(getattr(param, "type", None), "name", None) or (
        param.bare_type() if hasattr(param, "bare_type") else ""
    )
    return next((word for name, word in _WORDS.items() if name in str(kind).lower()), None)


def _nothing(ctx: Any) -> None:
    """No type."""


class _Worded:
    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if param.param_type_name == "option" and param.metavar is None:
                param.metavar = _word(param)
            elif param.param_type_name == "argument" and hasattr(param, "display_type_rich"):
                param.display_type_rich = _nothing  # its name says what it is
        return params


class WordedCommand(_Worded, TyperCommand):
    """A command whose help speaks in words."""


class WordedGroup(_Worded, TyperGroup):
    """The commands, whose help speaks in words."""

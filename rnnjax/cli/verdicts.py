"""How a command ends when something is wrong: an exit code, and one sentence on standard error."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

from rnnjax._start import INTERRUPTED
from rnnjax.text.shown import shown
from rnnjax.user_code import user_line

__all__ = ["Verdict", "complain", "speak_as", "spoken", "verdict"]

_speaker: list[str] = []  # stands before what is said, where several processes speak


class Verdict(NamedTuple):
    """The exit code, and what is said."""

    code: int
    sentence: str


def verdict(error: BaseException) -> Verdict | None:
    """How the command ends; None for what should not have happened."""
    import typer

    from rnnjax.fit.progress import TrainingFailedError

    usage_error: Any = typer.BadParameter.__mro__[2]  # whatever is wrong with options; not all versions export it
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Verdict(INTERRUPTED, "interrupted")
    if isinstance(error, usage_error):
        return Verdict(2, getattr(error, "format_message", error.__str__)())
    if isinstance(error, MemoryError):
        return Verdict(2, "there is not enough memory; lower --hidden, --batch-size or --chunk-len.")
    if isinstance(error, TrainingFailedError):
        return Verdict(1, str(error))
    sentence = _sentence(error) if isinstance(error, Exception) else None
    return None if sentence is None else Verdict(2, sentence)


def _sentence(error: Exception) -> str | None:
    """What is wrong, where it is not this program; None for what should not have happened."""
    from jax.errors import JaxRuntimeError

    from rnnjax.fit.processes import OtherProcessError

    if place := user_line(error):
        what = "".join(f": {line:.300}" for line in str(error).strip().splitlines()[:1])
        return f"{place[0]}, line {place[1]}: {type(error).__name__}{what}"
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror}." if error.strerror else str(error)
    if isinstance(error, ValueError | TypeError | ModuleNotFoundError | OtherProcessError):
        return str(error)
    if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return "the device has not enough memory; lower --hidden, --batch-size or --chunk-len."
    return None


def speak_as(name: str) -> None:
    """From now on every sentence begins with who says it."""
    _speaker[:] = [name] if name else []


def complain(sentence: str) -> None:
    """Says a sentence on standard error, in the words of the command."""
    words = " ".join(spoken(sentence).split())
    end = "" if words.endswith((".", "?", "...")) else "."
    who = "".join(f"[{name}] " for name in _speaker)
    print(f"rnnjax: {who}{shown(words)}{end}", file=sys.stderr)


# `ModelOptions: hidden must ...` is `--hidden must ...` on the command line.
_FIELD = re.compile(r"\b(?:Model|Optimizer|Train|Budget|Stream|Text|Forecast)Options: (\w+)( must )")
_KEYWORDS = {
    "batch_size": "--batch-size",
    "chunk_len": "--chunk-len",
    "BudgetOptions: exactly one of steps, epochs and minutes": "exactly one of --steps, --epochs and --minutes",
}

# `encoding='utf-16'` is `--encoding utf-16`, and `force=True` is `--force`.
_ARGUMENT = re.compile(
    r"(?<![\w.])(trust_code|encoding|level|unknown|glob|force|megabytes|symbols)=(?:'([^']*)'|True\b|(?=[.,;]))"
)


def spoken(sentence: str) -> str:
    """A sentence of the library with its fields as options.

    >>> spoken("TrainOptions: batch_size must be at least 1, got -2.")
    '--batch-size must be at least 1, got -2.'
    >>> spoken("load_corpus: pass encoding='utf-16', or read any bytes with level='byte'.")
    'load_corpus: pass --encoding utf-16, or read any bytes with --level byte.'
    """
    found = _FIELD.sub(lambda match: f"--{match[1].replace('_', '-')}{match[2]}", sentence)
    found = _ARGUMENT.sub(lambda match: f"--{match[1].replace('_', '-')} {match[2] or ''}".rstrip(), found)
    for word, option in _KEYWORDS.items():
        found = re.sub(rf"(?<![\w/\\-]){re.escape(word)}(?![\w(]|\.\w)", option, found)
    return found

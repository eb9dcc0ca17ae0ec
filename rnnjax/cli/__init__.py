"""The command ``rnnjax``: puts the commands of the language model, the analysis and the interchange together."""

from __future__ import annotations

import _thread
import contextlib
import importlib
import importlib.util
import itertools
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rnnjax._start import INTERRUPTED, leave, leave_when_interrupted
from rnnjax.cli.compiled import keep_compiled
from rnnjax.files import FileWarning

__all__ = ["COMMANDS", "main"]


class Command(NamedTuple):
    """A function of the same name; its docstring is the help."""

    module: str
    summary: str  # the first line of the help


# The commands of each module of this package, with the first line of their help: only the one asked for is imported.
_BY_MODULE = {
    "train": {"train": "Train a language model on text."},
    "language_model": {
        "sample": "Write text in the manner of a trained run, symbol by symbol, to standard output.",
        "eval": "Measure how well a trained run predicts text: mean loss a symbol in nats, bits and perplexity.",
        "info": "Show what a run is: its options, text, parameters, checkpoints and losses.",
    },
    "export": {"export": "Write a trained model for other programs."},
    "convert": {"convert": "Convert recurrent weights between files of torch, Keras and rnnjax, and to flax, exactly."},
    "card": {"card": "Show what a cell computes and costs, and which implementations and borders take it."},
    "analysis": {
        "cells": "Search every unit (h, c, gates of each layer) for what it tells about the text, and rank them.",
        "color": "Show a text in the colours of a unit: blue is low, white the middle, orange high.",
        "ablate": "Hold units at a constant and measure the loss, overall and where a label holds, and the closing "
        "symbol.",
    },
    "dynamics": {
        "gradflow": "Measure how the gradient of the loss shrinks on its way back through time, with the cut of the "
        "training.",
        "lyapunov": "Measure the Lyapunov exponents along a text: at what rates a small change of the state dies out "
        "or grows.",
        "fixedpoints": "Find the states at which the network rests while its input stands still, and whether they are "
        "stable.",
    },
    "forecast": {"forecast": "Forecast series of numbers, and measure how good that is."},
    "report": {
        "report": "Write a page that shows a trained run from within; it opens from disk, with no server and no "
        "network."
    },
    "completion": {"completion": "Print a script that completes commands, options and their values in a shell."},
}
COMMANDS = {
    name: Command(f"rnnjax.cli.{module}", summary)
    for module, commands in _BY_MODULE.items()
    for name, summary in commands.items()
}
_NEEDED = ("matplotlib", "rich", "typer")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; bad input ends with one sentence on standard error and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if arguments is None:
        leave_when_interrupted()
        keep_compiled()
        # JAX would take most of a GPU's memory at once, and nobody could sample from what another command trains.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # not all streams have an encoding
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    from rnnjax.cli.verdicts import complain

    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            complain(f"the command line needs {name}, which is not installed; pip install 'rnnjax[lm]'.")
            sys.exit(2)
    with warnings.catch_warnings():
        warnings.simplefilter("always", FileWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, FileWarning) or str(message).startswith("rnnjax: "):
                complain(f"warning: {str(message).removeprefix('rnnjax: ')}")
            else:
                others(message, category, *rest, **more)

        warnings.showwarning = show
        code = _run(words)
    if code == INTERRUPTED and arguments is None:
        # Threads of JAX may be at work still, and must not meet the end of the interpreter.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _run(words: list[str]) -> int:
    """The exit code."""
    from rnnjax.cli.verdicts import complain, verdict

    try:
        app = _app(words)
        with _interruptible():
            code = int(app(args=_explicit(words), prog_name="rnnjax", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # from Ctrl-C, of which typer makes an exit
            raise KeyboardInterrupt
        return code
    except BrokenPipeError:  # the reader of the output left, as `| head` does
        sys.stderr.close()
        return 0
    except (KeyboardInterrupt, Exception) as error:  # code of the user may raise anything
        found = verdict(error)
        if found is None:
            raise
        complain(found.sentence)
        return found.code


def _explicit(words: list[str]) -> list[str]:
    """``--distributed`` without an address stands for a cluster that is detected."""
    found = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        alone = word == "--distributed" and not re.fullmatch(r"\S+:[0-9]+", following)
        found.append("--distributed=detected" if alone else word)
    return found


def _app(words: list[str]) -> Any:
    """The commands, of which only the one that is asked for is imported."""
    import typer

    from rnnjax.cli.options import WordedCommand, WordedGroup, common_options

    app = typer.Typer(
        cls=WordedGroup,
        help="Recurrent networks in JAX: train a language model on any text, sample from it, look inside, forecast "
        "series of numbers, and convert weights from and to other frameworks.",
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    app.callback(invoke_without_command=True)(common_options)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        function: Callable[..., Any] = _nothing
        if name == asked:
            function = getattr(importlib.import_module(command.module), name)
        app.command(name, cls=WordedCommand, help=None if name == asked else command.summary)(function)
    return app


def _nothing() -> None:
    """Stands for the commands that are not asked for."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is an exception again; one that falls into a callback, where it would be lost, comes once more."""
    if signal.getsignal(signal.SIGINT) is not leave:
        yield
        return
    others = sys.unraisablehook

    def once_more(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            others(unraisable)

    sys.unraisablehook = once_more
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, leave)
        sys.unraisablehook = others

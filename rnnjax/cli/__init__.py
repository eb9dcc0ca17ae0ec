"""The command ``rnnjax``: puts the commands of the language model, the analysis and the interchange together."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]

# A command is a function of the same name, with a hyphen for an underscore, in this module; its docstring is the help.
COMMANDS = {
    "train": "rnnjax.cli.train",
    "sample": "rnnjax.cli.language_model",
    "eval": "rnnjax.cli.language_model",
    "info": "rnnjax.cli.language_model",
    "export": "rnnjax.cli.export",
    "convert": "rnnjax.cli.convert",
    "cells": "rnnjax.cli.analysis",
    "color": "rnnjax.cli.analysis",
    "ablate": "rnnjax.cli.analysis",
    "gradflow": "rnnjax.cli.dynamics",
    "lyapunov": "rnnjax.cli.dynamics",
    "fixedpoints": "rnnjax.cli.dynamics",
    "report": "rnnjax.cli.report",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; bad input ends with one sentence on standard error and exit code 2."""
    try:
        import matplotlib  # noqa: F401
        import orbax.checkpoint  # noqa: F401
        import rich  # noqa: F401
        import safetensors  # noqa: F401
        import typer
    except ModuleNotFoundError as error:
        _complain(f"the command line needs {error.name}, which is not installed; pip install 'rnnjax[lm]'.")
        sys.exit(2)

    # Failures reach the user as one sentence of ours; orbax would log a traceback beside it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    from jax.errors import JaxRuntimeError

    from rnnjax.fit.progress import TrainingFailedError

    app = typer.Typer(
        help="Recurrent networks in JAX: train a language model on any text, sample from it, look inside, and convert "
        "weights from and to other frameworks.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, module in COMMANDS.items():
        app.command(name)(getattr(importlib.import_module(module), name.replace("-", "_")))
    try:
        app(args=None if arguments is None else list(arguments), prog_name="rnnjax")
    except BrokenPipeError:  # the reader of the output left, as `| head` does
        sys.stderr.close()
        sys.exit(0)
    except MemoryError:
        _complain("there is not enough memory; lower --hidden, --batch-size or --chunk-len.")
        sys.exit(2)
    except OSError as error:
        _complain(f"{error.filename or 'output'}: {error.strerror}." if error.strerror else str(error))
        sys.exit(2)
    except (ValueError, TypeError, ModuleNotFoundError) as error:  # the last: a framework that is not installed
        _complain(str(error))
        sys.exit(2)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _complain("the device has not enough memory; lower --hidden, --batch-size or --chunk-len.")
        sys.exit(2)
    except TrainingFailedError as error:
        _complain(str(error))
        sys.exit(1)


def _complain(sentence: str) -> None:
    print(f"rnnjax: {sentence}", file=sys.stderr)

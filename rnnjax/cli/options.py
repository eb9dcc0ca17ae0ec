"""What commands have in common: how options are called, and sentences of the library in the words of the command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pathlib
import platform
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import typer

import rnnjax

__all__ = [
    "SITE",
    "TRUST_CODE",
    "Checkpoint",
    "Json",
    "RunArgument",
    "Site",
    "TrustCode",
    "common_options",
    "given_options",
    "options_command",
]

RunArgument = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
Checkpoint = Annotated[str, typer.Option(metavar="best|last", help="best (lowest validation loss) or last.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
SITE = (
    "Address of the documentation, or the folder where it is built (build/site): the page links its terms to the "
    "course there."
)
Site = Annotated[str | None, typer.Option(metavar="ADDRESS", help=SITE)]
TRUST_CODE = "Run the Python file that the run's cell is in (--cell file.py:Class)."
TrustCode = Annotated[bool, typer.Option("--trust-code", help=TRUST_CODE)]


def given_options(context: typer.Context) -> set[str]:
    """Names of the options that are on the command line."""
    return {k for k in context.params if getattr(context.get_parameter_source(k), "name", "") == "COMMANDLINE"}


def common_options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
    no_compilation_cache: Annotated[
        bool,
        typer.Option(
            "--no-compilation-cache", help="Compile everything anew, and keep nothing of it for the next command."
        ),
    ] = False,
) -> None:
    """Options before the name of a command."""
    if no_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    if version:
        typer.echo(f"rnnjax {rnnjax.__version__}, jax {jax.__version__}, Python {platform.python_version()}")
        raise typer.Exit


def options_command(
    groups: Mapping[str, type], *, defaults: Mapping[str, Any] | None = None, more_help: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options that are fields of dataclasses, in the place of its ``**options``.

    A field with help (`rnnjax.options.option`) becomes an option of its name, kind and default; a tuple comes as text.

    Args:
        groups: dataclasses by the title that their options stand under in the help; a field may name another.
        defaults: of the command, where they are not those of the fields.
        more_help: what the help of a field says besides.
    """
    parameters = []
    for title, kind in groups.items():
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if "help" in field.metadata:
                default = (defaults or {}).get(field.name, field.default)
                annotation = hints[field.name]
                if isinstance(default, tuple):
                    default, annotation = ",".join(map(str, default)), str
                flag = f"--{field.name.replace('_', '-')}"
                declared = typer.Option(
                    *([flag] if annotation is bool else []),
                    help=field.metadata["help"] + (more_help or {}).get(field.name, ""),
                    metavar=field.metadata["metavar"] or None,
                    rich_help_panel=field.metadata.get("panel", title),
                )
                parameters.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=default,
                        annotation=Annotated[annotation, declared],
                    )
                )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **options: Any) -> None:
            command(*args, **options)

        signature = inspect.signature(command, eval_str=True)
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        found = [*own, *parameters]
        run.__signature__ = signature.replace(parameters=found)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in found}
        del run.__wrapped__  # type: ignore[attr-defined]
        return run

    return decorate

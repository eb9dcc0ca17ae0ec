"""Options of commands: how they are declared and called, what they need beside them, and sets of them by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pathlib
import platform
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import typer
from typer.core import TyperCommand, TyperGroup

import rnnjax
from rnnjax.checks import did_you_mean

__all__ = [
    "EVAL",
    "FORECAST",
    "MACHINES",
    "PRESETS",
    "SITE",
    "TRAIN",
    "TRUST_CODE",
    "Checkpoint",
    "Json",
    "Partner",
    "RunArgument",
    "Site",
    "TrustCode",
    "WordedCommand",
    "WordedGroup",
    "check_partners",
    "common_options",
    "given_options",
    "options_command",
    "preset_options",
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


class Partner(NamedTuple):
    """An option, and what it needs."""

    option: str
    needs: str  # the end of a sentence
    works: Callable[[Mapping[str, Any]], bool]  # of the values of all options


MACHINES = (Partner("wait", "--distributed", lambda v: v["distributed"] is not None),)

TRAIN = (
    Partner("average_after", "--average", lambda v: v["average"] > 0),
    Partner("clip_by", "--clip above 0", lambda v: v["clip"] > 0),
    Partner("decay", "--schedule step or plateau", lambda v: v["schedule"] in ("step", "plateau")),
    Partner("decay_from", "--schedule step", lambda v: v["schedule"] == "step"),
    Partner("embed_dropout", "--embed, as one-hot symbols are not dropped", lambda v: v["embed"] != 0),
    Partner("locked", "--dropout or --embed-dropout", lambda v: max(v["dropout"], v["embed_dropout"]) > 0),
    Partner("min_count", "--level char or word, as there are 256 bytes", lambda v: v["level"] != "byte"),
    Partner("vocabulary_symbols", "--level char or word, as there are 256 bytes", lambda v: v["level"] != "byte"),
    Partner("encoding", "--level char or word, as bytes are read as they are", lambda v: v["level"] != "byte"),
    Partner("glob", "a folder as TEXT", lambda v: any(pathlib.Path(p).is_dir() for p in v["text"] or ())),
)  # fmt: skip

EVAL = (
    Partner("warmup", "--streams above 1", lambda v: v["streams"] != 1),
    Partner("dynamic_lr", "--dynamic", lambda v: v["dynamic"]),
    Partner("dynamic_decay", "--dynamic", lambda v: v["dynamic"]),
)

FORECAST = (
    Partner(
        "samples",
        "a model that draws, with --recursive or another --head",
        lambda v: v["recursive"] or v["head"] != "quantiles",
    ),
)


def check_partners(partners: Iterable[Partner], values: Mapping[str, Any], given: set[str]) -> None:
    """Raises for the first option on the command line that would do nothing.

    Args:
        partners: what needs what.
        values: of all options.
        given: names of those on the command line; one that is set to what switches it off may stand alone.

    Raises:
        ValueError: in one sentence with what is missing.
    """
    for option, needs, works in partners:
        off = values[option] in (0, False, None) or (option == "embed_dropout" and values[option] == -1)
        if option in given and not off and not works(values):
            raise ValueError(f"--{option.replace('_', '-')}: does nothing without {needs}; leave it out.")


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


PRESETS: dict[str, dict[str, Any]] = {
    # Karpathy's char-rnn (2015): its defaults, but for the budget, which was 50 epochs.
    "char-rnn": {
        "cell": "lstm",
        "layers": 2,
        "hidden": 128,
        "embed": 0,
        "batch_size": 50,
        "chunk_len": 50,
        "optimizer": "rmsprop",
        "lr": 2e-3,
        "schedule": "step",
        "decay": 0.97,
        "decay_from": 10,
        "warmup": 0.0,
        "clip": 5.0,
        "clip_by": "value",
    },
    # One wide layer, few large matmuls, a high rate that falls to almost nothing: more for the minute on few cores. The
    # decay of weights is worth a twentieth of a nat in one pass and more in many (docs/training.md).
    "wide": {
        "cell": "lstm",
        "layers": 1,
        "hidden": 512,
        "batch_size": 32,
        "chunk_len": 64,
        "optimizer": "adamw",
        "lr": 8e-3,
        "schedule": "cosine",
        "warmup": 0.02,
        "clip": 1.0,
        "clip_by": "norm",
        "weight_decay": 0.1,
    },
}
# The AWD-LSTM (Merity et al., 2018) with the rates of its small texts, on two layers that a few cores can train. Its
# rate of 30 without momentum is one of 3 with a momentum of 0.9.
PRESETS["awd"] = {
    "level": "word",
    "min_count": 10,
    "cell": "lstm",
    "layers": 2,
    "hidden": 256,
    "tie": True,
    "dropout": 0.3,
    "locked": True,
    "weight_dropout": 0.3,
    "ar": 2.0,
    "tar": 1.0,
    "batch_size": 32,
    "chunk_len": 64,
    "optimizer": "sgd",
    "lr": 3.0,
    "schedule": "constant",
    "warmup": 0.02,
    "clip": 0.25,
    "clip_by": "norm",
    "weight_decay": 1.2e-6,
    "average": 1.0,
    "average_after": 1,
}
# Without a test text, a tenth of the files is held out for validation.
PRESETS["demo"] = PRESETS["wide"] | {"minutes": 4.5, "evals": 9, "fractions": "0.9,0.1,0"}


def preset_options(name: str) -> dict[str, Any]:
    """The options of a preset.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in PRESETS:
        guess = did_you_mean(name, PRESETS) or "."
        raise ValueError(f"--preset: must be one of {', '.join(PRESETS)}, got {name!r}{guess}")
    return PRESETS[name]

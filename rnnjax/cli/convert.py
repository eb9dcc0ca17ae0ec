"""``rnnjax convert``: weights from one framework's file to another's, with a report of what went where."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from rnnjax.arrays import read_arrays
from rnnjax.cli.output import echo, echo_table
from rnnjax.interop._common import layers_of
from rnnjax.interop._keras_files import read_model, read_weights
from rnnjax.interop.files import save_flax, save_keras, save_torch
from rnnjax.interop.keras import from_keras, to_keras
from rnnjax.interop.torch import from_torch, to_torch
from rnnjax.lm.export import ARRAYS, load_export
from rnnjax.lm.run import open_run
from rnnjax.saving import load, named_arrays, save

__all__ = ["convert"]

_KINDS = ("rnnjax", "torch", "keras", "flax")
_KERAS = (".keras", ".h5")
# Lines of the report: an array of the other framework and its shape, and ours that it is part of, or that it has.
_Moves = list[tuple[str, ...]]


def convert(
    source: Annotated[pathlib.Path, typer.Argument(metavar="SRC", help="File to read.")],
    target: Annotated[pathlib.Path, typer.Argument(metavar="DST", help="File to write.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="rnnjax|torch|keras|flax",
            help="rnnjax, torch, keras or flax. By default by the ending, else torch from rnnjax, else rnnjax.",
        ),
    ] = "",
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER", help="Layer of a Keras file; several are layers on top of each other. None: the only one."
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="What names of torch begin with, as encoder.lstm. (None: the only layer)."),
    ] = None,
    activation: Annotated[
        str | None, typer.Option(metavar="tanh|relu", help="tanh or relu, of a plain RNN in a file that does not tell.")
    ] = None,
    reset_after: Annotated[
        bool | None, typer.Option("--reset-after/--reset-before", help="Of a GRU in a .weights.h5 file without bias.")
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(
            metavar="concat|sum|mean|product",
            help="concat, sum, mean or product, of Bidirectional layers in a .weights.h5 file.",
        ),
    ] = None,
    spatial_shape: Annotated[
        list[int] | None, typer.Option(help="Of the images of a ConvLSTM in a .weights.h5 file; once for each axis.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it is there.")] = False,
) -> None:
    """Convert recurrent weights between files of torch, Keras and rnnjax, and to flax, exactly.

    torch: a state_dict in safetensors. Keras: .keras or .weights.h5. rnnjax: what rnnjax.save writes, or the folder
    of a trained run or of an export, of which the recurrent layers are taken.

    [bold]rnnjax convert lstm.safetensors net.safetensors[/bold]   torch to rnnjax
    [bold]rnnjax convert model.keras net.safetensors --name lstm --name lstm_1[/bold]
    [bold]rnnjax convert net.safetensors lstm.safetensors --to torch[/bold]
    [bold]rnnjax convert runs/book lstm.msgpack[/bold]   for flax.serialization.msgpack_restore
    """
    if not source.exists():
        raise FileNotFoundError(f"convert: there is no file {str(source)!r}; name one of torch, Keras or rnnjax.")
    if target.exists() and not force:
        raise FileExistsError(f"convert: {target} must be new, got one that is there; take another name or --force.")
    origin = _kind_of_source(source)
    goal = _kind_of_target(target, to, origin)
    if goal == origin:
        raise ValueError(f"convert: SRC and DST must be of two kinds, got {goal} twice; copy the file, or give --to.")
    _check_options(
        origin,
        {"--name": name, "--merge": merge, "--reset-after": reset_after, "--spatial-shape": spatial_shape},
        {"--prefix": prefix},
        activation,
    )
    os.environ.setdefault("KERAS_BACKEND", "jax")  # the one backend that is here for sure
    moves: dict[str, _Moves] = {}  # by the other framework
    try:
        with jax.enable_x64(True):  # float64 stays what it is
            if origin == "rnnjax":
                cell, params = _load_ours(source)
            elif origin == "torch":
                cell, params = from_torch(source, prefix=prefix, nonlinearity=activation)  # type: ignore[arg-type]
                moves["torch"] = _moves_from_torch(source, params, prefix, activation)
            else:
                options: Any = {"activation": activation, "reset_after": reset_after, "merge": merge}
                shape = tuple(spatial_shape) if spatial_shape else None
                cell, params = from_keras(source, name=name or None, spatial_shape=shape, **options)
                moves["keras"] = _moves_of_keras(cell, params, _names_in(source, name))
            echo(f"{source} ({origin}): {cell!r}")
            if goal == "rnnjax":
                save(target, cell, params)
            elif goal == "flax":
                for module in save_flax(target, cell, params):
                    echo(f"    {module}")
            elif goal == "torch":
                save_torch(target, cell, params)
                moves["torch"] = _moves(params, lambda own: to_torch(cell, own, as_numpy=True))
            else:
                save_keras(target, cell, params)
                moves["keras"] = _moves_of_keras(cell, params, _names_of(layers_of("convert", cell, params)))
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    for kind, found in moves.items():
        echo_table((kind, "shape", "rnnjax", "shape"), found)
    echo(f"{target} ({goal})  {target.stat().st_size:,} bytes")


def _load_ours(source: pathlib.Path) -> tuple[Any, Any]:
    """What `rnnjax.save` wrote, or the layers of a language model from the folder of its run or of its export."""
    if not source.is_dir():
        return load(source)
    with jax.enable_x64(False):  # models are made in float32
        if (source / ARRAYS).is_file():
            model, params, _ = load_export(source)
        else:
            run = open_run(source)
            model, params = run.model, run.params
    return model.stack, params.stack


def _kind_of_source(path: pathlib.Path) -> str:
    if path.is_dir():
        return "rnnjax"
    if path.name.endswith(_KERAS):
        return "keras"
    if path.suffix != ".safetensors":
        pickle = " (a .pt file holds code; write it by safetensors.torch.save_file)" if ".pt" in path.suffix else ""
        if path.suffix == ".msgpack":
            raise ValueError(
                f"convert: a file of flax does not say which module it is of, got {path.name!r}; in Python, "
                "rnnjax.interop.from_flax(module, params) takes both."
            )
        raise ValueError(f"convert: SRC must end in .safetensors, .keras or .weights.h5, got {path.name!r}{pickle}.")
    _, metadata = read_arrays(path.resolve(), where=f"convert: {path}")
    if "rnnjax" in metadata:
        raise ValueError(f"convert: {path} is a part of an export; name its folder, {path.parent}.")
    return "rnnjax" if "rnnjax.format" in metadata else "torch"


def _kind_of_target(path: pathlib.Path, to: str, origin: str) -> str:
    if to and to not in _KINDS:
        raise ValueError(f"--to: must be one of {', '.join(_KINDS)}, got {to!r}.")
    if path.suffix == ".msgpack" and to in ("", "flax"):
        return "flax"
    if to == "flax":
        raise ValueError(f"convert: DST must end in .msgpack for flax, got {path.name!r}.")
    is_keras = path.name.endswith((".keras", ".weights.h5"))
    if (to and (to == "keras") != is_keras) or not (is_keras or path.suffix == ".safetensors"):
        raise ValueError(
            "convert: DST must end in .keras or .weights.h5 for Keras, in .msgpack for flax, else in .safetensors, "
            f"got {path.name!r}."
        )
    return "keras" if is_keras else to or ("torch" if origin == "rnnjax" else "rnnjax")


def _check_options(origin: str, keras: Mapping[str, Any], torch: Mapping[str, Any], activation: str | None) -> None:
    """Raises for an option that says something about another kind of file."""
    foreign = {"keras": torch, "torch": keras, "rnnjax": {**keras, **torch, "--activation": activation}}[origin]
    for option, value in foreign.items():
        if value not in (None, []):
            raise ValueError(f"{option}: a file of {origin} says it, or has no such thing; leave the option out.")


def _sources(
    function: Callable[[dict[str, Any]], Mapping[str, Any]], arrays: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What each array goes into, found by experiment: the results that are NaN where it alone is."""
    zeros = {key: np.broadcast_to(np.zeros((), array.dtype), array.shape) for key, array in arrays.items()}
    found = []
    for key, array in arrays.items():
        marked = function({**zeros, key: np.broadcast_to(np.asarray(np.nan, array.dtype), array.shape)})
        found += [(key, name) for name, result in marked.items() if np.isnan(np.asarray(result, np.float32)).any()]
    return found


def _moves_from_torch(path: pathlib.Path, params: Any, prefix: str | None, activation: Any) -> _Moves:
    arrays, _ = read_arrays(path.resolve(), where=f"convert: {path}")
    arrays = {
        name: array
        for name, array in arrays.items()
        if name.startswith(prefix or "") and jnp.issubdtype(array.dtype, jnp.floating)
    }

    def function(named: dict[str, Any]) -> dict[str, Any]:
        return named_arrays(from_torch(named, prefix=prefix, nonlinearity=activation)[1])

    return [_move(a, arrays, b, named_arrays(params)) for a, b in _sources(function, arrays)]


def _moves(params: Any, function: Callable[[Any], Mapping[str, Any]]) -> _Moves:
    """Where our parameters go, by what ``function`` makes of them."""
    ours, theirs, structure = named_arrays(params), function(params), jax.tree.structure(params)

    def of_named(named: dict[str, Any]) -> Mapping[str, Any]:
        return function(structure.unflatten(named.values()))  # type: ignore[attr-defined]

    return [_move(b, theirs, a, ours) for a, b in _sources(of_named, ours)]


def _move(foreign: str, theirs: Mapping[str, Any], name: str, ours: Mapping[str, Any]) -> tuple[str, ...]:
    return foreign, str([*theirs[foreign].shape]), name, str([*ours[name].shape])


def _moves_of_keras(cell: Any, params: Any, names: list[str]) -> _Moves:
    """Which of ours a weight of Keras has, whatever the direction: its list of weights is a function of ours."""
    fields = [f"{name}/{field}" for name in names for field in ("kernel", "recurrent_kernel", "bias")]
    return _moves(params, lambda own: dict(zip(fields, to_keras(cell, own), strict=True)))


def _names_of(layers: Iterable[Sequence[Any]], names: Sequence[str] | None = None) -> list[str]:
    """One name a direction, for layers of one or two directions."""
    ends = ("/forward_layer", "/backward_layer")
    return [
        f"{names[depth] if names else f'layers[{depth}]'}{end}"
        for depth, directions in enumerate(layers)
        for end in (ends if len(directions) == 2 else ("",))
    ]


def _names_in(path: pathlib.Path, chosen: list[str] | None) -> list[str]:
    """The layers of a Keras file that `from_keras` took, one name a direction."""
    read = read_model if path.name.endswith(".keras") else read_weights
    found = {layer.name: layer.directions for layer in read("convert", str(path))}
    names = chosen or list(found)
    return _names_of([found[name] for name in names], names)

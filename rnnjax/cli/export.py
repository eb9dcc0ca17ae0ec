"""``rnnjax export``: a trained language model for other programs, as arrays or as functions."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer

from rnnjax.cli.options import Checkpoint, RunArgument, TrustCode
from rnnjax.cli.output import echo
from rnnjax.extras import require
from rnnjax.files import write_atomic, write_json
from rnnjax.interop.exporting import export_functions
from rnnjax.lm.export import DESCRIPTION, describe_run, make_folder
from rnnjax.lm.export import export as write
from rnnjax.lm.run import Run, open_run
from rnnjax.network import start_state
from rnnjax.saving import named_arrays

__all__ = ["export", "export_onnx", "export_stablehlo"]


def export(
    run: RunArgument,
    folder: Annotated[pathlib.Path, typer.Argument(metavar="DST", help="Folder to write; made if it is not there.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="safetensors|stablehlo|onnx",
            help="safetensors: the arrays; stablehlo: the model as functions that need only jax; onnx: one step.",
        ),
    ] = "safetensors",
    platforms: Annotated[
        str,
        typer.Option(
            metavar="PLATFORMS", help="With stablehlo: where it is to run, as cpu,cuda,tpu. By default as here."
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
) -> None:
    """Write a trained model for other programs.

    safetensors: model.safetensors (arrays), config.json (all else) and a model card; in Python,
    rnnjax.lm.export.load_export(DST) gives model, parameters and vocabulary back.

    stablehlo: start.jaxexport, step.jaxexport and unroll.jaxexport, which jax.export.deserialize reads in a program
    without rnnjax, for any batch size, and config.json with the vocabulary.

    onnx: step.onnx, one step for any batch size, and config.json with the vocabulary; needs jax2onnx.
    """
    if format not in ("safetensors", "stablehlo", "onnx"):
        raise ValueError(f"--format: must be safetensors, stablehlo or onnx, got {format!r}.")
    if platforms and format != "stablehlo":
        raise ValueError(
            "--platforms: only functions are made for a platform; leave it out, or say --format stablehlo."
        )
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    if format == "safetensors":
        paths = write(opened, folder, force=force)
    elif format == "onnx":
        paths = export_onnx(opened, folder, force=force)
    else:
        names = tuple(name.strip() for name in platforms.split(",")) if platforms else None
        paths = export_stablehlo(opened, folder, platforms=names, force=force)
    for path in paths:
        echo(f"{path}  {path.stat().st_size:,} bytes")


def export_stablehlo(
    run: Run, folder: pathlib.Path, *, platforms: tuple[str, ...] | None = None, force: bool = False
) -> list[pathlib.Path]:
    """Writes a whole language model by `rnnjax.interop.exporting.export_functions`, with its parameters baked in.

    ``x`` is a symbol, int32 ``[B]``, and ``y`` the logits of the next one, ``[B, V]``; ``config.json`` says which
    symbol a number is.

    Raises:
        FileExistsError: if the folder is not empty and ``force`` is not set, or if it is a file.
        ValueError: for an unknown platform.
        OSError: if it cannot be written.
    """
    known = ("cpu", "cuda", "rocm", "tpu")
    for name in platforms or ():
        if name not in known:
            raise ValueError(f"--platforms: must be some of {', '.join(known)}, got {name!r}.")
    root = make_folder(folder, force=force)
    model = run.model

    def unroll(params: Any, state: Any, symbols: jax.Array) -> tuple[Any, jax.Array]:
        return model.logits(params, state, symbols, implementation="scan")

    def step(params: Any, state: Any, symbols: jax.Array) -> tuple[Any, jax.Array]:
        state, logits = unroll(params, state, symbols[None])
        return state, logits[0]

    paths = export_functions(
        root,
        run.params,
        jax.ShapeDtypeStruct((), jnp.int32),
        start=lambda params, batch: start_state(model.stack, params.stack, batch),
        step=step,
        unroll=unroll,
        platforms=platforms,
    )
    write_json(root / DESCRIPTION, describe_run(run))
    return [*paths, root / DESCRIPTION]


def export_onnx(run: Run, folder: pathlib.Path, *, force: bool = False) -> list[pathlib.Path]:
    """Writes one step of a language model as ONNX, by jax2onnx, with its parameters baked in.

    Inputs are ``symbols``, int32 ``[B]``, and the state's arrays ``[B, ...]`` by their names; outputs are the
    ``logits`` ``[B, V]`` of the next symbol, and ``next_`` with the name of each array of the state. The first state is
    in ``config.json``, under ``"start"``.

    Raises:
        ModuleNotFoundError: if jax2onnx is not there.
        FileExistsError: if the folder is not empty and ``force`` is not set, or if it is a file.
        OSError: if it cannot be written.
    """
    jax2onnx = require("jax2onnx", "jax2onnx", "export")
    jax.clear_caches()  # the exporter would take up programs that are there, and leaves some that JAX cannot run
    root = make_folder(folder, force=force)
    model = run.model
    start = start_state(model.stack, run.params.stack, (1,))
    structure: Any = jax.tree.structure(start)
    named = named_arrays(start)

    def step(symbols: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        new, logits = model.logits(run.params, structure.unflatten(state), symbols[None], implementation="scan")
        return (logits[0], *jax.tree.leaves(new))

    like = [jax.ShapeDtypeStruct(("B", *leaf.shape[1:]), leaf.dtype) for leaf in named.values()]  # type: ignore[arg-type]
    made = jax2onnx.to_onnx(
        step,
        [jax.ShapeDtypeStruct(("B",), jnp.int32), *like],  # type: ignore[arg-type]
        input_names=["symbols", *named],
        output_names=["logits", *(f"next_{name}" for name in named)],
    )
    jax.clear_caches()
    write_atomic(root / "step.onnx", made.SerializeToString())
    first = {name: jnp.asarray(leaf)[0].tolist() for name, leaf in named.items()}
    write_json(root / DESCRIPTION, {**describe_run(run), "start": first})
    return [root / "step.onnx", root / DESCRIPTION]

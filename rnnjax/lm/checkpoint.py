r"""Checkpoints: arrays and a few numbers, written by orbax; a half-written one never counts.

A run keeps its checkpoints in one folder, named ``step_00001200_val_1.4321``: the newest, from which training goes on,
and the one with the lowest validation loss. Arrays are saved from the host by name (``params.stack.layers[0].w_ih``),
so a checkpoint made on one kind of device loads on any other, and no code is stored or executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from rnnjax.cell import describe

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "best",
    "find_checkpoints",
    "load",
    "named_arrays",
    "prune",
    "restore",
    "save",
]

_NAME = re.compile(r"step_(\d+)(?:_val_(\d+\.\d+))?")


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says which and what to do."""


class Checkpoint(NamedTuple):
    """A complete checkpoint on disk."""

    path: pathlib.Path
    step: int
    val_loss: float  # infinity where none was measured


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree as host arrays, by readable path: ``{"layers[0].w_ih": ...}``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path).lstrip("."): np.asarray(leaf) for path, leaf in leaves}


def save(
    folder: pathlib.Path, tree: Any, meta: Mapping[str, Any], *, step: int, val_loss: float = math.inf
) -> Checkpoint:
    """Writes a checkpoint; it counts only once it is complete, and those of other steps stay as they are.

    Args:
        folder: the run's folder of checkpoints.
        tree: any pytree of arrays.
        meta: what JSON can hold.
        step: of the training.
        val_loss: of this step, in nats, for the name; not finite if it was not measured.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written.
    """
    suffix = f"_val_{val_loss:.4f}" if math.isfinite(val_loss) else ""
    path = folder.absolute() / f"step_{step:08d}{suffix}"
    arrays = named_arrays(tree)
    record = {**meta, "step": step, "val_loss": val_loss if suffix else None, }
    record["sha256"] = _digest(arrays, record)
    try:
        if path.exists():  # half-written by a killed run, or the same step again after one
            shutil.rmtree(path)
        items = ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(record))
        with _checkpointer() as checkpointer:
            checkpointer.save(path, items)
    except (OSError, ValueError, RuntimeError) as error:
        for part in folder.glob(f"{path.name}*"):
            shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint: step {step} cannot be written to {folder} ({_first_line(error)}); free some space there and "
            "resume: the checkpoint before it is unharmed."
        ) from error
    return Checkpoint(path, step, val_loss)


def find_checkpoints(folder: pathlib.Path) -> list[Checkpoint]:
    """The complete checkpoints of a folder, oldest first; half-written ones are passed over."""
    found = []
    for path in folder.glob("step_*"):
        match = _NAME.fullmatch(path.name)
        if match and ocp.utils.is_checkpoint_finalized(path.absolute()):
            found.append(Checkpoint(path, int(match[1]), float(match[2] or math.inf)))
    return sorted(found, key=lambda checkpoint: (checkpoint.step, math.isinf(checkpoint.val_loss)))


def best(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the lowest validation loss, the earliest of equals; the newest where none was measured."""
    measured = [checkpoint for checkpoint in checkpoints if math.isfinite(checkpoint.val_loss)]
    return min(measured, key=lambda checkpoint: checkpoint.val_loss) if measured else checkpoints[-1]


def prune(folder: pathlib.Path) -> None:
    """Removes all but the newest and the best checkpoint, and what killed runs left half-written."""
    checkpoints = find_checkpoints(folder)
    if checkpoints:
        keep = {checkpoints[-1].path, best(checkpoints).path}
        for path in folder.glob("step_*"):
            if path not in keep:
                shutil.rmtree(path, ignore_errors=True)


def load(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by name and the numbers of a checkpoint.

    Raises:
        CheckpointError: if it is truncated, edited or no checkpoint at all.
    """
    items = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(), meta=ocp.args.JsonRestore())
    try:
        with _checkpointer() as checkpointer:
            restored = checkpointer.restore(path.absolute(), items)
        arrays, meta = dict(restored["arrays"]), dict(restored["meta"])
        whole = meta.pop("sha256", None) == _digest(arrays, meta)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint: {path} cannot be read, it is truncated or damaged ({_first_line(error)}); "
            "remove that folder to use the checkpoint before it."
        ) from error
    if not whole:
        raise CheckpointError(
            f"checkpoint: the contents of {path} do not match their checksum, it was edited or damaged; "
            "remove that folder to use the checkpoint before it."
        )
    return arrays, meta


def restore(arrays: Mapping[str, np.ndarray], like: Any, *, prefix: str = "", where: str = "checkpoint") -> Any:
    """Fills the structure of ``like`` with arrays of the same names.

    Args:
        arrays: by name, as `named_arrays` makes them.
        like: a pytree of arrays or of shape-and-dtype records.
        prefix: of the names in ``arrays``, for a part of what was saved.
        where: opens the error message.

    Raises:
        CheckpointError: naming the first leaf that is missing, left over, or differs in shape or dtype.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    filled = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        name = prefix + name if prefix else name.lstrip(".")
        if name not in arrays:
            raise CheckpointError(f"{where}: there is no leaf {name!r}; it was saved from another model.")
        array = arrays[name]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise CheckpointError(
                f"{where}: leaf {name!r} is {describe(array)}, but the model has {describe(leaf)}; "
                "it was saved from another model."
            )
        filled.append(array)
    wanted = {prefix + n if prefix else n.lstrip(".") for n in (jax.tree_util.keystr(path) for path, _ in leaves)}
    if left_over := sorted(n for n in arrays.keys() - wanted if n.startswith(f"{prefix}." if prefix else "")):
        raise CheckpointError(
            f"{where}: leaf {left_over[0]!r} is none of the model's; it was saved from another model."
        )
    return jax.tree_util.tree_unflatten(structure, filled)


@contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    """An orbax checkpointer that fails quietly.

    When one array fails, orbax closes its event loop while others are under way, and those print a traceback each
    when they come back. After a failure such reports are dropped, and only such.
    """
    report = sys.unraisablehook

    def without_late_ones(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = without_late_ones
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        yield checkpointer
    sys.unraisablehook = report


def _digest(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]

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

import numpy as np

from rnnjax.saving import CheckpointError, named_arrays, restore

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "best",
    "find_checkpoints",
    "load",
    "named_arrays",
    "of_step",
    "prune",
    "restore",
    "save",
]

_NAME = re.compile(r"step_(\d+)(?:_val_(-?\d+\.\d+))?")


class Checkpoint(NamedTuple):
    """A complete checkpoint on disk."""

    path: pathlib.Path
    step: int
    val_loss: float  # the lower the better (minus a metric of which more is better); infinity where none was measured


def save(
    folder: pathlib.Path, tree: Any, meta: Mapping[str, Any], *, step: int, val_loss: float = math.inf
) -> Checkpoint:
    """Writes a checkpoint; it counts only once it is complete, and those of other steps stay as they are.

    Args:
        folder: the run's folder of checkpoints.
        tree: any pytree of arrays.
        meta: what JSON can hold.
        step: of the training.
        val_loss: of this step, the lower the better, for the name; not finite if it was not measured.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written.
        ModuleNotFoundError: if orbax is not installed; so do all others here that touch checkpoints.
    """
    ocp = _orbax()
    suffix = f"_val_{val_loss:.4f}" if math.isfinite(val_loss) else ""
    path = folder.absolute() / f"step_{step:08d}{suffix}"
    arrays = named_arrays(tree)
    record = {
        **meta,
        "step": step,
        "val_loss": val_loss if suffix else None,
    }
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
    ocp = _orbax()
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


def of_step(checkpoints: list[Checkpoint], step: int) -> Checkpoint | None:
    """The one with a validation loss of this step, or None."""
    return next((found for found in checkpoints if found.step == step and math.isfinite(found.val_loss)), None)


def prune(folder: pathlib.Path, best_step: int | None = None) -> None:
    """Removes all but the newest and the best checkpoint, and what killed runs left half-written.

    Args:
        folder: the run's folder of checkpoints.
        best_step: which is the best, for names have four digits alone; None goes by the names.
    """
    checkpoints = find_checkpoints(folder)
    if checkpoints:
        chosen = of_step(checkpoints, best_step) if best_step is not None else None
        keep = {checkpoints[-1].path, (chosen or best(checkpoints)).path}
        for path in folder.glob("step_*"):
            if path not in keep:
                shutil.rmtree(path, ignore_errors=True)


def load(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by name and the numbers of a checkpoint.

    Raises:
        CheckpointError: if it is truncated, edited or no checkpoint at all.
    """
    ocp = _orbax()
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


@contextmanager
def _checkpointer() -> Iterator[Any]:
    """An orbax checkpointer that fails quietly.

    When one array fails, orbax closes its event loop while others are under way, and those print a traceback each
    when they come back. After a failure such reports are dropped, and only such.
    """
    ocp = _orbax()
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


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("orbax"):
            raise
        raise ModuleNotFoundError(
            "checkpoint: orbax-checkpoint is not installed; pip install 'rnnjax[lm]', or train without a folder.",
            name=error.name,
        ) from error
    return ocp


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]

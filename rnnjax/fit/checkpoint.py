r"""Checkpoints: arrays and a few numbers in one file, written in one move; a half-written one never counts.

A run keeps its checkpoints in one folder, named ``step_00001200_val_1.4321.safetensors``: the newest, from which
training goes on, and the one with the lowest validation loss. Arrays are saved from the host by name
(``params.stack.layers[0].w_ih``), so a checkpoint made on one kind of device loads on any other; no code is stored or
executed, nothing is allocated that the file does not hold, and every array and number is checked by its digest.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from rnnjax.arrays import ArraysFile, seal, write_arrays
from rnnjax.files import CheckpointError, check_kind, first_line, open_regular, parse_json
from rnnjax.saving import named_arrays, restore, stored_names

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Stored",
    "best",
    "find_checkpoints",
    "load",
    "named_arrays",
    "of_step",
    "open_checkpoint",
    "prune",
    "restore",
    "save",
]

ENDING = ".safetensors"
_NAME = re.compile(r"step_([0-9]{1,18})(?:_val_(-?[0-9]+\.[0-9]+))?\.safetensors")
_OLD_NAME = re.compile(r"step_[0-9]+(_val_-?[0-9]+\.[0-9]+)?")  # of a folder: how checkpoints once were
_HALF_WRITTEN = re.compile(r"\.step_[0-9]+.*\.safetensors\..*")  # by `write_atomic`
_META = "rnnjax.checkpoint"  # key of the metadata


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
    """
    suffix = f"_val_{val_loss:.4f}" if math.isfinite(val_loss) else ""
    path = folder.absolute() / f"step_{step:08d}{suffix}{ENDING}"
    record = {**meta, "step": step, "val_loss": val_loss if suffix else None}
    arrays = named_arrays(tree)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays, seal(arrays, {_META: json.dumps(record)}))
    except (OSError, TypeError, ValueError) as error:
        advice = "free some space there and resume" if isinstance(error, OSError) else "resume without it"
        raise CheckpointError(
            f"checkpoint: step {step} cannot be written to {folder} ({first_line(error).rstrip('.')}); {advice}: the "
            "checkpoint before it is unharmed."
        ) from error
    return Checkpoint(path, step, val_loss)


def find_checkpoints(folder: pathlib.Path) -> list[Checkpoint]:
    """The complete checkpoints of a folder, oldest first; half-written ones are passed over.

    Raises:
        CheckpointError: if one of that name is a link or no file, or all are of a version that wrote folders.
    """
    if not check_kind(folder, "checkpoint", "folder"):
        return []
    found, old = [], None
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            check_kind(path, "checkpoint")
            found.append(Checkpoint(path.absolute(), int(match[1]), float(match[2] or math.inf)))
        elif _OLD_NAME.fullmatch(path.name):
            old = path
    if old is not None and not found:
        raise CheckpointError(
            f"checkpoint: {old} was written by another version of rnnjax, as a folder; start a new run, or go on with "
            "that version."
        )
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
        half_written = [path for path in folder.iterdir() if _HALF_WRITTEN.fullmatch(path.name)]
        for path in [*(found.path for found in checkpoints if found.path not in keep), *half_written]:
            path.unlink(missing_ok=True)


class Stored:
    """A checkpoint that stands open; `meta` are its numbers, which have been checked."""

    def __init__(self, file: ArraysFile) -> None:
        self._file = file
        file.read_sealed(())
        try:
            meta = parse_json(file.metadata[_META].encode(), file.where)
            self.meta: dict[str, Any] = dict(meta)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file.where} is no checkpoint of rnnjax ({error!r:.80}).") from error

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What the arrays are, by name, before any of them is read."""
        return {name: jax.ShapeDtypeStruct(info.shape, info.dtype) for name, info in self._file.infos.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return self._file.read_sealed()

    def tree(self, like: Any, prefix: str = "") -> Any:
        """The arrays in the structure of ``like``, or a part of it; shapes are compared before anything is read.

        Raises:
            CheckpointError: naming the first leaf that is missing, left over, or differs in shape or dtype; or if one
                does not match its digest.
        """
        shapes, where = self.shapes, self._file.where
        restore(shapes, like, prefix=prefix, where=where)
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
        names = [prefix + name if prefix else name.lstrip(".") for name in names]
        return restore(self._file.read_sealed(stored_names(names, shapes).values()), like, prefix=prefix, where=where)


@contextmanager
def open_checkpoint(path: pathlib.Path) -> Iterator[Stored]:
    """Opens a checkpoint.

    Raises:
        CheckpointError: if it is truncated, edited or no checkpoint at all.
    """
    where = f"checkpoint: {path}"
    try:
        file = open_regular(path, "checkpoint")
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read ({error.strerror}).") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        yield Stored(ArraysFile(file, size, where=where, advice="remove that file to use the checkpoint before it"))


def load(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by name and the numbers of a checkpoint.

    Raises:
        CheckpointError: if it is truncated, edited or no checkpoint at all.
    """
    with open_checkpoint(path) as stored:
        return stored.arrays(), stored.meta

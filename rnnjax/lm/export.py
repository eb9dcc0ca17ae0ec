"""A trained model as two plain files that other programs can read, and the way back; no code is stored or executed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import pathlib
from typing import Any

import jax

import rnnjax
from rnnjax.arrays import decode, encode, seal
from rnnjax.cells.registry import cell_file
from rnnjax.files import CheckpointError, check_kind, digest, read_json, read_regular, write_atomic, write_json
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.lm.options import ModelOptions
from rnnjax.lm.run import Run, make_model
from rnnjax.networks import Stack
from rnnjax.saving import named_arrays, restore
from rnnjax.text.shown import shown
from rnnjax.text.vocabulary import Vocabulary

__all__ = ["ARRAYS", "CARD", "DESCRIPTION", "card_text", "describe_run", "export", "load_export", "make_folder"]

ARRAYS = "model.safetensors"
DESCRIPTION = "config.json"
CARD = "README.md"


def export(run: Run, folder: str | os.PathLike[str], *, force: bool = False) -> list[pathlib.Path]:
    """Writes the parameters and what is needed to use them: ``model.safetensors``, ``config.json`` and a model card.

    Arrays are named as in `LMParams`, for example ``stack.layers[0].w_ih``. Each file is written in one move, and
    holds the checksum of the other, so a pair that was torn apart does not load.

    Args:
        run: from `open_run`.
        folder: made if it is not there.
        force: write into a folder that is not empty; other files in it stay as they are.

    Returns:
        The paths of the files.

    Raises:
        FileExistsError: if the folder is not empty, or a file.
        OSError: if it cannot be written.
    """
    root = make_folder(folder, force=force)
    arrays, described = named_arrays(run.params), describe_run(run)
    data = encode(arrays, seal(arrays, {"rnnjax": rnnjax.__version__, "description": digest(described)}))
    write_atomic(root / ARRAYS, data)
    write_json(root / DESCRIPTION, {**described, "arrays": hashlib.sha256(data).hexdigest()})
    write_atomic(root / CARD, card_text(run).encode())
    return [root / ARRAYS, root / DESCRIPTION, root / CARD]


def card_text(run: Run) -> str:
    """The model card: what the model is, what it has read, how good it is, and how it is used."""
    embed, text, found = run.model.embed_size, run.provenance, run.meta.get("val_loss")
    count = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    level, read = run.vocabulary.level, text.get("n_symbols", 0)  # 0: of a stream nobody counted them
    known = (
        f"{found:.4f} nats ({found / math.log(2):.4f} bits) a {level}" if isinstance(found, float) else "not measured"
    )
    rows = {
        "layers": ", ".join(repr(cell) for cell in run.model.stack.cells),
        "inputs": f"embedding of {embed} numbers" if embed else "one-hot",
        "parameters": f"{count:,}",
        "vocabulary": f"{len(run.vocabulary)} symbols, level {level}",
        "trained on": str(text.get("sources", "unknown")) + (f", {read:,} symbols" if read else ""),
        "validation loss": known,
        "step": str(run.meta.get("step", "unknown")),
        "written by": f"rnnjax {rnnjax.__version__}",
    }
    # A name of a file may hold anything: bars, ends of lines, bytes that are no UTF-8.
    cells = {name: " ".join(shown(value).split()).replace("|", r"\|") for name, value in rows.items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in cells.items())
    return f"""# A recurrent language model

| | |
|---|---|
{table}

`model.safetensors` holds the arrays, float32, under the names of the parameters; `config.json` all else.

```python
from rnnjax.lm.export import load_export

model, params, vocabulary = load_export("this folder")
state, logits = model.logits(params, model.initial_state((1,)), vocabulary.encode("text")[:, None])
```

`rnnjax convert FOLDER lstm.safetensors` makes a torch state_dict of the recurrent layers, `FOLDER lstm.keras` a Keras
model, and `FOLDER lstm.msgpack` parameters of flax.

It predicts what is likely in texts like the one that it was trained on, and nothing but its loss has been measured. It
may repeat passages of that text.
"""


def make_folder(folder: str | os.PathLike[str], *, force: bool = False) -> pathlib.Path:
    """Makes the folder to write into.

    Raises:
        FileExistsError: if it is not empty and ``force`` is not set, if it is a file, or the folder of a run.
    """
    root = pathlib.Path(folder)
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"export: {root} must be a folder, got a file; take another name.")
    if root.exists() and any(root.iterdir()) and not force:
        raise FileExistsError(f"export: {root} must be empty or new, got files in it; take another name or force=True.")
    if (root / "checkpoints").is_dir():
        raise FileExistsError(f"export: {root} is the folder of a run, whose {DESCRIPTION} would go; take another.")
    root.mkdir(parents=True, exist_ok=True)
    return root


def describe_run(run: Run) -> dict[str, Any]:
    """What else than arrays one needs to use a trained model, as JSON holds it."""
    return {
        "rnnjax": rnnjax.__version__,
        "model": dataclasses.asdict(run.config.model),
        "layers": [repr(cell) for cell in run.model.stack.cells],
        "step": run.meta.get("step"),
        "val_loss": run.meta.get("val_loss"),
        "provenance": run.provenance,
        "vocabulary": run.vocabulary.to_json(),
    }


def load_export(
    folder: str | os.PathLike[str], *, stack: Stack | None = None
) -> tuple[LanguageModel, LMParams, Vocabulary]:
    """The model that `export` wrote.

    Args:
        folder: what `export` was given.
        stack: the layers, for a model whose cell comes from a file of Python code: that is never run from here.

    Raises:
        FileNotFoundError: if a file is missing.
        CheckpointError: if a file is truncated or damaged, or an array is missing, left over or of another shape.
        ValueError: if the model's cell comes from a file and no ``stack`` is given.
    """
    root = pathlib.Path(folder)
    for name in (DESCRIPTION, ARRAYS):
        if not check_kind(root / name, "load_export"):
            raise FileNotFoundError(f"load_export: {root} must hold {name}, got none; write it with rnnjax export.")
    try:
        description = read_json(root / DESCRIPTION, "load_export")
        options = ModelOptions(**description["model"])
        vocabulary = Vocabulary.from_json(description["vocabulary"])
        known = description.pop("arrays")
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"load_export: {root / DESCRIPTION} is truncated or damaged ({error}); export the run again."
        ) from error
    data = read_regular(root / ARRAYS, "load_export")
    arrays, metadata = decode(data, where=f"load_export: {root / ARRAYS}", advice="export the run again")
    model = _make_model(options, len(vocabulary), stack)
    params = restore(arrays, jax.eval_shape(model.init, jax.random.key(0)), where=str(root / ARRAYS))
    if hashlib.sha256(data).hexdigest() != known or metadata.get("description") != digest(description):
        raise CheckpointError(
            f"load_export: {ARRAYS} and {DESCRIPTION} in {root} do not belong together; export the run again."
        )
    return model, jax.device_put(params), vocabulary


def _make_model(options: ModelOptions, vocab_size: int, stack: Stack | None) -> LanguageModel:
    if stack is not None:
        standard = make_model(dataclasses.replace(options, cell="lstm"), vocab_size)
        return dataclasses.replace(standard, stack=stack)
    if cell_file(options.cell) is not None:
        raise ValueError(
            f"load_export: the cell of this model is in a file of its own, {options.cell!r}, which is not run from "
            "here; pass stack=rnnjax.Stack(...) made of it."
        )
    return make_model(options, vocab_size)

"""The recurrent layers in the files of Keras, read with h5py alone and without running anything in them."""

from __future__ import annotations

import io
import itertools
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rnnjax.extras import require
from rnnjax.files import CheckpointError, first_line, parse_json

__all__ = ["BUILT", "GATES", "Direction", "Found", "read_model", "read_weights", "settings"]

MAX_RATIO = 64  # bytes of weights for a byte of the file
GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4} | {f"ConvLSTM{axes}D": 4 for axes in (1, 2, 3)}
BUILT = "built for"  # among the settings of a layer: the shape of the input that it was built for


class Direction(NamedTuple):
    """One layer that runs in one direction; what is not known about it is missing in the configuration."""

    kind: str | None
    config: Mapping[str, Any]
    arrays: Sequence[Any]


class Found(NamedTuple):
    """A recurrent layer, with two directions where it is a ``Bidirectional``."""

    name: str
    directions: tuple[Direction, ...]
    merge: Any = None


def settings(class_name: str, config: Mapping[str, Any], built: Any = None) -> tuple[str, Mapping[str, Any]]:
    """The kind of a recurrent layer or cell, and its configuration; an ``RNN`` is the cell in it."""
    config = {**config, BUILT: built.get("input_shape") if isinstance(built, Mapping) else None}
    if class_name == "RNN":
        inner = config["cell"]
        return settings(inner["class_name"], {**inner["config"], "go_backwards": config.get("go_backwards", False)})
    return class_name.removesuffix("Cell"), config


def read_model(where: str, path: str) -> list[Found]:
    """The recurrent layers of a ``.keras`` file: a zip archive with the configuration and the weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("config.json", "model.weights.h5"):
                info = archive.getinfo(name)
                _check_size(where, path, name, info.file_size, info.compress_size)
            config = parse_json(archive.read("config.json"), f"{where}: config.json in {path!r}")
            file = io.BytesIO(archive.read("model.weights.h5"))
    except CheckpointError:  # it says all
        raise
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise OSError(f"{where}: {path!r} must be a .keras file of Keras 3, it is not: {first_line(error)}") from error
    weights = _read_arrays(where, path, file)
    try:
        return list(_walk(config, "", weights))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise OSError(f"{where}: {path!r} must hold a configuration of Keras 3, not this: {error!r:.200}.") from error


def _check_size(where: str, path: str, name: str, announced: int, stored: int) -> None:
    """Refuses what would be much larger than the file that it comes from; weights hardly become smaller by packing."""
    if announced > MAX_RATIO * stored + (1 << 20):
        raise CheckpointError(
            f"{where}: {path!r} announces {announced:,} bytes for {name} and holds {stored:,} of them; no weights are "
            "packed like that, so it is not unpacked."
        )


def _walk(model: Mapping[str, Any], path: str, weights: Mapping[str, list[Any]]) -> Iterator[Found]:
    """The recurrent layers below a model's configuration; ``path`` is where Keras puts the weights of the model."""
    seen: Counter[str] = Counter()
    for layer in model["config"].get("layers", ()):
        class_name, config = layer["class_name"], layer["config"]
        # Keras names the weights by the class and a number, since the names of layers may differ from run to run.
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)).lower()
        here = f"{path}layers/{snake}" + (f"_{seen[snake]}" if seen[snake] else "")
        seen[snake] += 1
        if class_name == "Bidirectional" and _is_known(config["layer"]) and _is_known(config["backward_layer"]):
            pair = (("layer", "forward_layer"), ("backward_layer", "backward_layer"))
            parts = tuple(_direction(config[key], weights.get(f"{here}/{group}", ())) for key, group in pair)
            yield Found(config["name"], parts, config["merge_mode"])
        elif _is_known(layer):
            yield Found(config["name"], (_direction(layer, weights.get(here, ())),))
        elif isinstance(config, dict) and "layers" in config:
            yield from _walk(layer, f"{here}/", weights)


def _is_known(layer: Mapping[str, Any]) -> bool:
    """Whether a serialized layer or cell is one of Keras's own, of a kind that there is here."""
    if not str(layer.get("module", "keras")).startswith("keras"):
        return False
    if layer["class_name"] == "RNN":
        return _is_known(layer["config"]["cell"])
    return str(layer["class_name"]).removesuffix("Cell") in GATES and ">" not in str(layer.get("registered_name"))


def _direction(layer: Mapping[str, Any], arrays: Sequence[Any]) -> Direction:
    return Direction(*settings(layer["class_name"], layer["config"], layer.get("build_config")), arrays)


def read_weights(where: str, path: str) -> list[Found]:
    """The recurrent layers of a ``.weights.h5`` file, in the order of their paths."""
    with open(path, "rb") as file:  # for the usual errors of files
        weights = _read_arrays(where, path, file)
    found = []
    for name, arrays in weights.items():
        above, _, end = name.rpartition("/")
        if end == "forward_layer" and f"{above}/backward_layer" in weights:
            both = (arrays, weights[f"{above}/backward_layer"])
            found.append(Found(above, tuple(Direction(None, {}, part) for part in both)))
        elif end != "backward_layer":
            found.append(Found(name, (Direction(None, {}, arrays),)))
    return found


def _read_arrays(where: str, path: str, file: Any) -> dict[str, list[Any]]:
    """The weights of every group ``.../cell/vars``, by what the dots stand for; refuses what points out of the file."""
    h5py = require("h5py", "h5py", where)
    found: dict[str, list[Any]] = {}

    def visit(name: str, group: Any) -> None:
        if not (isinstance(group, h5py.Group) and name.endswith("/cell/vars")):
            return
        arrays = []
        for number in itertools.takewhile(group.__contains__, map(str, itertools.count())):
            own = isinstance(group.get(number, getlink=True), h5py.HardLink) and isinstance(group[number], h5py.Dataset)
            if not own or group[number].external or group[number].is_virtual:
                raise ValueError(f"{where}: {path!r} must hold its own weights, {name}/{number} points elsewhere.")
            announced = math.prod(group[number].shape or ()) * group[number].dtype.itemsize
            _check_size(where, path, f"{name}/{number}", announced, group[number].id.get_storage_size())
            narrow = group[number].attrs.get("dtype") == "bfloat16"  # which HDF5 has no name for
            arrays.append(np.array(group[number], dtype=jnp.bfloat16 if narrow else None))
        found[name.removesuffix("/cell/vars")] = arrays

    try:
        with h5py.File(file, "r") as h5:
            h5.visititems(visit)
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises for damage depends on the place
        raise OSError(
            f"{where}: {path!r} must hold weights in the HDF5 of Keras 3, it does not: {first_line(error)}."
        ) from error
    return found

r"""`save` and `load`: a cell and its parameters in one safetensors file, which every framework reads; nothing runs.

`save_tree` and `load_tree` do the same for any pytree of arrays. The file of a cell holds the arrays by readable names
(``layers[0].w_ih``) in their own dtypes, and in its metadata the ``repr`` of the cell and digests of all of these.
Beside the two pairs stands what other files of arrays need too: names and checks.
"""

from __future__ import annotations

import ast
import functools
import os
import pathlib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.arrays import ArraysFile, seal, write_arrays
from rnnjax.cell import describe, input_size_of, named_leaves, shapes_of
from rnnjax.cells.registry import cell_from_repr
from rnnjax.files import CheckpointError, FileWarning, open_regular
from rnnjax.kinds import public

__all__ = [
    "CheckpointError",
    "load",
    "load_tree",
    "named_arrays",
    "restore",
    "save",
    "save_tree",
]

_FORMAT = "2"  # of the metadata, with digests
_UNSEALED = "1"  # without digests
_TREE = "rnnjax.tree"  # key of the metadata of what `save_tree` writes


@public(but=("cell",))
def save(path: str | os.PathLike[str], cell: Any, params: Any) -> None:
    """Writes a cell and its parameters to a safetensors file, in one move: what stood there stays whole until then.

    Args:
        path: of the file; its folder must be there.
        cell: a cell, `Stack`, `Bidirectional` network, model of `rnnjax.topologies` or whatever else has an ``init``.
        params: from ``cell.init``, in any dtypes, which the file keeps. Parameters of your own around a cell's, states
            and whatever else is no cell's alone go into a file by `save_tree`.

    Raises:
        ValueError: if ``params`` are not those of the cell; it names the first leaf that disagrees.
        OSError: if the file cannot be written, or its folder is not there.

    >>> import pathlib, tempfile, jax, rnnjax
    >>> cell = rnnjax.Stack((rnnjax.LSTM(4), rnnjax.GRU(2)), residual=False)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rnnjax.save(pathlib.Path(folder, "net.safetensors"), cell, params)
    ...     loaded, arrays = rnnjax.load(pathlib.Path(folder, "net.safetensors"))
    >>> loaded == cell, bool((arrays.layers[0].w_ih == params.layers[0].w_ih).all())
    (True, True)
    """
    _check_cell("save", cell)
    arrays = named_arrays(params)
    input_size, _ = input_size_of(cell, arrays)
    restore(
        arrays,
        _like(cell, input_size, arrays),
        where="save",
        owner=type(cell).__name__,
        advice="take params that its init makes, or write any tree by rnnjax.save_tree",
    )
    metadata = {
        "rnnjax.format": _FORMAT,
        "cell": repr(cell),
        "rebuild": "yes" if _rebuilds(cell) else "no",
        "input_size": str(input_size),
    }
    write_arrays(_target("save", path), arrays, seal(arrays, metadata))


@public(but=("cell",))
def load(path: str | os.PathLike[str], cell: Any = None) -> tuple[Any, Any]:
    """The cell and the parameters that `save` wrote; nothing in the file is executed.

    Args:
        path: of the file.
        cell: takes the place of the cell that the file describes. It is needed where that one is of a class that
            `rnnjax.cells.describable` has not marked, and for a file with our names that something else wrote.

    Returns:
        The cell, and its parameters with the dtypes of the file.

    Raises:
        ValueError: if the file is truncated, edited or damaged, holds no description of a cell, or one that cannot be
            made here, or if an array is missing, left over, or of another shape than the cell's; the first is named.
        FileNotFoundError: if there is no such file.

    Warns:
        UserWarning: if the file holds no digests, so that damage cannot be seen; what `save` writes holds them.
    """
    file = pathlib.Path(path)
    where = f"load: {file}"
    if not file.is_file():
        raise FileNotFoundError(f"load: there is no file {str(file)!r}; name one that rnnjax.save has written.")
    arrays, metadata = _read(file, where)
    described = metadata.get("cell", "an unknown cell")
    if "DeepStack(" in described:
        arrays, metadata = _unpacked(arrays, metadata)
    if cell is None:
        if described.count("hidden_size=") > len(arrays):
            raise CheckpointError(f"{where} describes more cells than it holds arrays; it is no file of rnnjax.save.")
        cell = _described_cell(where, metadata)
    _check_cell("load", cell)
    size = metadata.get("input_size", "")
    input_size = int(size) if size.isascii() and size.isdigit() and 0 < int(size) else input_size_of(cell, arrays)[0]
    params = restore(
        arrays,
        _like(cell, input_size, arrays),
        where=where,
        owner=type(cell).__name__,
        advice=f"it was saved from {described:.200}",
    )
    for name, array in arrays.items():
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(
                f"{where}: leaf {name!r} is {describe(array)}, which jax would cut down to "
                f"{jax.dtypes.canonicalize_dtype(array.dtype)}; load it under jax.enable_x64(True)."
            )
    return cell, jax.tree.map(jnp.asarray, params)


@public
def save_tree(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes any pytree of arrays to a safetensors file, in one move: what stood there stays whole until then.

    For what is no cell's alone: parameters in a dict, the state that an agent or a stream is in, an optimizer's state.

    Args:
        path: of the file; its folder must be there.
        tree: of arrays, numbers and keys of `jax.random`, with readable paths: dicts, lists, tuples, NamedTuples.

    Raises:
        TypeError: for a leaf that is none of these, or of a dtype that safetensors does not have.
        OSError: if the file cannot be written, or its folder is not there.

    >>> import pathlib, tempfile, jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.GRU(4)
    >>> tree = {"cell": cell.init(jax.random.key(0), input_size=3), "state": cell.initial_state((2,)), "step": 7}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rnnjax.save_tree(pathlib.Path(folder, "agent.safetensors"), tree)
    ...     again = rnnjax.load_tree(pathlib.Path(folder, "agent.safetensors"), like=tree)
    >>> int(again["step"]), bool((again["cell"].w_ih == tree["cell"].w_ih).all())
    (7, True)
    """
    arrays = named_arrays(jax.tree.map(functools.partial(_stored, "save_tree"), tree))
    write_arrays(_target("save_tree", path), arrays, seal(arrays, {_TREE: "1"}))


def _target(where: str, given: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(given)
    if path.is_dir():
        raise IsADirectoryError(f"{where}: {str(path)!r} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{where}: there is no folder {str(path.parent)!r}; make it first.")
    return path


@public
def load_tree(path: str | os.PathLike[str], like: Any) -> Any:
    """What `save_tree` wrote, in the structure of ``like``.

    Args:
        path: of the file.
        like: a tree as the one that was written, of which only structure, shapes and dtypes count: new parameters, or
            what `jax.eval_shape` makes of the function that makes them.

    Returns:
        The tree, its leaves arrays of JAX, or of NumPy where JAX would cut them down (float64, without x64).

    Raises:
        ValueError: if the file is truncated, edited or damaged, or if an array is missing, left over, or of another
            shape or dtype than in ``like``; the first is named.
        FileNotFoundError: if there is no such file.
    """
    file = pathlib.Path(path)
    where = f"load_tree: {file}"
    if not file.is_file():
        raise FileNotFoundError(
            f"load_tree: there is no file {str(file)!r}; name one that rnnjax.save_tree has written."
        )
    shapes = jax.tree.map(functools.partial(_stored, "load_tree"), like)
    with open_regular(file.resolve(), "load_tree") as raw:
        stored = ArraysFile(raw, os.fstat(raw.fileno()).st_size, where=where)
        if _TREE not in stored.metadata:
            raise CheckpointError(f"{where} was not written by rnnjax.save_tree; rnnjax.load reads what save writes.")
        arrays = stored.read_sealed()
    found = restore(arrays, shapes, where=where, owner="like", advice="take a tree as the one that was saved")
    return jax.tree.map(_like_leaf, like, found)


def _stored(where: str, leaf: Any) -> Any:
    """What of a leaf a file holds: the data of a key, a number in the dtype that it has in JAX; shapes stay shapes."""
    if isinstance(leaf, bool | int | float | complex):
        return np.asarray(leaf, jax.dtypes.canonicalize_dtype(np.result_type(type(leaf))))
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise TypeError(f"{where}: a leaf must be an array, a number or a key, got {describe(leaf)}; leave it out.")
    if not _is_key(leaf):
        return leaf
    return jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(jax.random.key_data, leaf)


def _like_leaf(leaf: Any, array: np.ndarray) -> Any:
    if not _is_key(leaf):
        return jnp.asarray(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array
    kinds: list[Any] = []
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), leaf)  # which asks for more than a shape
    return jax.random.wrap_key_data(jnp.asarray(array), impl=kinds[0])


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _read(path: pathlib.Path, where: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a file, checked against its digests."""
    with open_regular(path.resolve(), "load") as raw:
        file = ArraysFile(raw, os.fstat(raw.fileno()).st_size, where=where)
        found = file.metadata.get("rnnjax.format", _UNSEALED)
        if found not in (_FORMAT, _UNSEALED):
            raise CheckpointError(f"{where} must be of format {_FORMAT}, got {found!r}; install a newer rnnjax.")
        if file.sealed or found == _FORMAT:
            return file.read_sealed(), file.metadata
        warnings.warn(
            f"{where} holds no checksums, so damage would not be noticed; load it and save it again to add them.",
            FileWarning,
            stacklevel=3,
        )
        return file.read_all(), file.metadata


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree as host arrays, by readable path: ``{"layers[0].w_ih": ...}``."""
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def stored_names(wanted: Sequence[str], have: Collection[str]) -> dict[str, str]:
    """What leaves are called where they are stored: the same, but that older files call ``b`` what is now a ``bias``.

    >>> stored_names(["layers[0].bias", "w_ih"], {"layers[0].b", "w_ih"})
    {'layers[0].bias': 'layers[0].b', 'w_ih': 'w_ih'}
    """

    def older(name: str) -> str:
        old = name.removesuffix("ias")
        renamed = name.rpartition(".")[2] == "bias" and name not in have and old in have and old not in known
        return old if renamed else name

    known = set(wanted)
    return {name: older(name) for name in wanted}


def restore(
    arrays: Mapping[str, Any],
    like: Any,
    *,
    prefix: str = "",
    where: str = "checkpoint",
    owner: str = "the model",
    advice: str = "it was saved from another model",
) -> Any:
    """Fills the structure of ``like`` with arrays of the same names.

    Args:
        arrays: by name, as `named_arrays` makes them.
        like: a pytree of arrays or of shape-and-dtype records.
        prefix: of the names in ``arrays``, for a part of what was saved.
        where: opens the error message.
        owner: whose leaves those of ``like`` are, for the message.
        advice: closes it.

    Raises:
        CheckpointError: naming the first leaf that is missing, left over, or differs in shape or dtype.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    names = [prefix + name if prefix else name.lstrip(".") for name in names]
    stored = stored_names(names, arrays)
    filled, wanted = [], set(stored.values())
    for name, (_, leaf) in zip(map(stored.__getitem__, names), leaves, strict=True):
        if name not in arrays:
            raise CheckpointError(f"{where}: there is no leaf {name!r}; {advice}.")
        array = arrays[name]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise CheckpointError(
                f"{where}: leaf {name!r} is {describe(array)}, but {owner} has {describe(leaf)}; {advice}."
            )
        filled.append(array)
    own = (f"{prefix}.", f"{prefix}[") if prefix else ""
    if left_over := sorted(name for name in arrays.keys() - wanted if name.startswith(own)):
        raise CheckpointError(f"{where}: leaf {left_over[0]!r} is none of {owner}'s; {advice}.")
    return jax.tree_util.tree_unflatten(structure, filled)


def _check_cell(where: str, cell: Any) -> None:
    if isinstance(cell, type) or not callable(getattr(cell, "init", None)):
        raise TypeError(f"{where}: cell must be a cell, as rnnjax.LSTM(8), got {describe(cell)}.")


def _described_cell(where: str, metadata: Mapping[str, str]) -> Any:
    described = metadata.get("cell")
    if described is None:
        raise CheckpointError(
            f"{where} describes no cell; pass cell=, read what save_tree wrote by rnnjax.load_tree, or take the "
            "converter of the framework that wrote it."
        )
    if metadata.get("rebuild") != "yes":
        raise CheckpointError(
            f"{where} was saved from {described:.200}, which is none of rnnjax's cells, and code is never run from "
            "here; pass cell= with one of your own."
        )
    try:
        return cell_from_repr(described)
    except ValueError as error:
        raise CheckpointError(f"{where} describes a cell that cannot be made here ({error}); pass cell=.") from error


class _Unpack(ast.NodeTransformer):
    """``DeepStack(cell=C, num_layers=L, ...)``, as older files say it, becomes ``Stack(cells=(C,) * L, ...)``."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if getattr(node.func, "id", None) != "DeepStack":
            return node
        given: dict[str, ast.expr] = {str(keyword.arg): keyword.value for keyword in node.keywords}
        cells = ast.Tuple([given.pop("cell")] * ast.literal_eval(given.pop("num_layers")), ast.Load())
        keywords = [ast.keyword("cells", cells), *(ast.keyword(*item) for item in given.items())]
        return ast.Call(ast.Name("Stack", ast.Load()), [], keywords)


def _unpacked(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a file of an older ``DeepStack`` holds, whose layers lay on top of each other, layer by layer."""
    found = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(|.*\.)(first|rest|norms)\.(.+)", name)
        if match is None:
            found[name] = array
        elif match[2] == "first":
            found[f"{match[1]}layers[0].{match[3]}"] = array
        else:
            field = "layers" if match[2] == "rest" else "norms"
            found |= {f"{match[1]}{field}[{k + 1}].{match[3]}": layer for k, layer in enumerate(array)}
    try:
        text = ast.unparse(_Unpack().visit(ast.parse(metadata["cell"], mode="eval")))
    except (SyntaxError, KeyError, ValueError, RecursionError):
        text = metadata["cell"]  # `_described_cell` says that it cannot be read
    return found, {**metadata, "cell": text}


def _rebuilds(cell: Any) -> bool:
    """Whether the cell equals what is made of its repr; a class of somebody else's may have one of our names."""
    try:
        return bool(cell_from_repr(repr(cell)) == cell)
    except ValueError:
        return False


def _like(cell: Any, input_size: int, arrays: Mapping[str, np.ndarray]) -> Any:
    """The leaves that the cell has, each in the dtype of the array of its name where both are of one kind."""
    like = shapes_of(cell, input_size)
    named = named_leaves(like)
    stored = stored_names(list(named), arrays)

    def leaf(name: str, wanted: Any) -> Any:
        array = arrays.get(stored[name], wanted)
        kinds = (jnp.floating, jnp.integer, jnp.complexfloating, jnp.bool_)
        alike = any(jnp.issubdtype(wanted.dtype, kind) and jnp.issubdtype(array.dtype, kind) for kind in kinds)
        return jax.ShapeDtypeStruct(wanted.shape, array.dtype) if alike else wanted

    return jax.tree.unflatten(jax.tree.structure(like), [leaf(name, wanted) for name, wanted in named.items()])

r"""Trained networks as StableHLO by `jax.export`: files that run wherever jax runs, without rnnjax.

A folder holds three functions, each in a file that `jax.export.deserialize` reads:

    start.jaxexport    state     = start(x)            reads only the batch size of x
    step.jaxexport     state, y  = step(state, x)      x [B, I]
    unroll.jaxexport   state, ys = unroll(state, xs)   xs [T, B, I]

A `Bidirectional` network, which needs the future, has no step. B and T are symbolic: one file serves every batch size
and length. States are dicts by readable names (``layers[0].h``), so the reader needs none of our classes.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.cell import input_size_of, named_leaves
from rnnjax.checks import check_dtype, short
from rnnjax.extras import require
from rnnjax.files import write_atomic
from rnnjax.kinds import public
from rnnjax.network import input_shape, start_state
from rnnjax.saving import named_arrays
from rnnjax.unroll import unroll

__all__ = ["SUFFIX", "export_cell", "export_functions"]

SUFFIX = ".jaxexport"


@public
def export_cell(
    folder: str | os.PathLike[str],
    cell: Any,
    params: Any,
    *,
    bake: bool = True,
    dtype: Any = jnp.float32,
    platforms: Sequence[str] | None = None,
) -> list[pathlib.Path]:
    """Writes a trained cell as the functions ``start``, ``step`` and ``unroll``, see `rnnjax.interop.exporting`.

    A `Bidirectional` network has no ``step``. All steps of all rows count: what has lengths is run a row at a time, or
    rows of one length together.

    In a program that knows nothing of rnnjax::

        import jax, pathlib
        start, step, unroll = (
            jax.export.deserialize(pathlib.Path(folder, f"{name}.jaxexport").read_bytes()).call
            for name in ("start", "step", "unroll")
        )
        state, y = step(start(x), x)

    Args:
        folder: made if it is not there; files of these names in it are replaced, each in one move.
        cell: any cell.
        params: its parameters.
        bake: whether the files hold the parameters. If not, every function takes them first, as a dict by the names
            that `rnnjax.save` writes.
        dtype: of the state and of ``x``.
        platforms: what to compile for, such as ``("cpu", "cuda")``; None is where this program runs.

    Returns:
        The paths of the files.

    Raises:
        TypeError: for a model of `rnnjax.topologies`, which `jax.export` takes as the function that it is.
        OSError: if they cannot be written.
        ModuleNotFoundError: if flatbuffers is not installed, with which jax writes and reads such files.

    >>> import pathlib, tempfile, jax, rnnjax
    >>> cell = rnnjax.GRU(4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = export_cell(folder, cell, params)
    ...     step = jax.export.deserialize(pathlib.Path(folder, "step.jaxexport").read_bytes())
    >>> state, y = step.call({"h": jax.numpy.zeros((5, 4))}, jax.numpy.ones((5, 3)))
    >>> y.shape, [path.name for path in paths]
    ((5, 4), ['start.jaxexport', 'step.jaxexport', 'unroll.jaxexport'])
    """
    check_dtype("export_cell", dtype)
    if hasattr(cell, "apply") and not hasattr(cell, "initial_state"):
        raise TypeError(
            f"export_cell: cell must be a cell or a network, got {short(cell)}; export the function of a model by "
            "jax.export.export(jax.jit(lambda xs: model.apply(params, xs)))."
        )
    shape = input_shape(cell, input_size_of(cell, named_arrays(params))[0])
    if platforms is not None and not all(isinstance(name, str) for name in platforms):
        raise TypeError(f"export_cell: platforms must be names, as ('cpu', 'cuda'), got {short(platforms)}.")
    jax.eval_shape(lambda: unroll(cell, params, None, jnp.zeros((1, 1, *shape), dtype)))  # says what does not fit
    return export_functions(
        folder,
        params,
        jax.ShapeDtypeStruct(shape, dtype),
        start=lambda p, batch: start_state(cell, p, batch, dtype),
        step=getattr(cell, "step", None),
        # The scan is the implementation whose program needs no kernel and no size to be known.
        unroll=lambda p, state, xs: unroll(cell, p, state, xs, implementation="scan"),
        bake=bake,
        platforms=platforms,
    )


@public
def export_functions(
    folder: str | os.PathLike[str],
    params: Any,
    x: jax.ShapeDtypeStruct,
    *,
    start: Callable[[Any, tuple[Any, ...]], Any],
    step: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]] | None,
    unroll: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]],
    bake: bool = True,
    platforms: Sequence[str] | None = None,
) -> list[pathlib.Path]:
    """`export_cell` for anything that steps, such as a whole model from symbols to probabilities.

    Args:
        folder: as in `export_cell`.
        params: any pytree.
        x: shape and dtype of one input, without batch axes.
        start: ``(params, batch_shape) -> state``.
        step: ``(params, state, x [B, ...]) -> (state, y)``; None where there is none, and no file for it.
        unroll: ``(params, state, xs [T, B, ...]) -> (state, ys)``.
        bake: as in `export_cell`.
        platforms: as in `export_cell`.

    Raises:
        OSError: if the files cannot be written.
        ModuleNotFoundError: if flatbuffers is not installed.
    """
    require("flatbuffers", "flatbuffers", "export_functions")  # jax writes its files with it
    T, B = jax.export.symbolic_shape("T, B")
    one = jax.ShapeDtypeStruct((B, *x.shape), x.dtype)
    many = jax.ShapeDtypeStruct((T, B, *x.shape), x.dtype)
    state = jax.eval_shape(lambda p: start(p, (B,)), params)
    arguments: dict[str, tuple[Callable[..., tuple[Any, ...]], tuple[Any, ...]]] = {
        "start": (lambda p, x: (start(p, x.shape[:1]),), (one,)),
        "unroll": (unroll, (state, many)),
    }
    root = pathlib.Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    if step is not None:
        arguments["step"] = (step, (state, one))
    else:
        (root / f"step{SUFFIX}").unlink(missing_ok=True)  # that of another cell
    paths = []
    for name, (function, given) in sorted(arguments.items()):
        plain = _without_classes(function, (params, *given))
        named = [_by_name(tree) for tree in (params, *given)]
        if bake:
            plain, named = functools.partial(plain, named[0]), named[1:]
        # An input that only gives its batch size would be dropped.
        jitted = jax.jit(plain, keep_unused=True)
        exported = jax.export.export(jitted, platforms=platforms)(
            *jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), named)
        )
        paths.append(root / f"{name}{SUFFIX}")
        write_atomic(paths[-1], bytes(exported.serialize()))
    return paths


def _by_name(tree: Any) -> Any:
    """A dict of the leaves by path, where there are paths; an array stays one."""
    return tree if hasattr(tree, "dtype") else named_leaves(tree)


def _without_classes(function: Callable[..., tuple[Any, ...]], like: tuple[Any, ...]) -> Callable[..., Any]:
    """The function with dicts by name instead of trees like these, in and out."""

    def plain(*named: Any) -> Any:
        trees = [_by_path(value, tree) for value, tree in zip(named, like, strict=True)]
        out = tuple(map(_by_name, function(*trees)))
        return out[0] if len(out) == 1 else out

    return plain


def _by_path(named: Any, like: Any) -> Any:
    if hasattr(like, "dtype"):
        return named
    return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in named_leaves(like)])

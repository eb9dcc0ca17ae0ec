r"""Checks of arguments: what a public function asks of its sizes, numbers, integers, keys and kinds.

Values are judged on the host, before any cast; what is traced has no value yet and passes. Each check hands back
what it was given in one form: a plain int, a plain float, an int32 array.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "check_choice",
    "check_dtype",
    "check_flag",
    "check_ids",
    "check_init",
    "check_ints",
    "check_key",
    "check_kind",
    "check_optimizer",
    "check_real",
    "check_size",
    "check_starts",
    "describe",
    "did_you_mean",
    "is_traced",
    "shape_of",
    "short",
]

_LARGEST = 2**31 - 1  # what int32 holds, in which JAX counts


def describe(x: Any) -> str:
    """``f32[3,4]`` for an array (or its shape-and-dtype record), ``repr`` for anything else."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype") or isinstance(x, type):
        return short(x)
    name = jnp.dtype(x.dtype).name if not jnp.issubdtype(x.dtype, jax.dtypes.extended) else str(x.dtype)
    name = re.sub("^(b?)(float|uint|int|complex)", lambda kind: kind[1] + kind[2][0], name)
    return f"{name}[{','.join(map(str, x.shape))}]"


def short(x: Any, most: int = 80) -> str:
    """``repr`` on one line, cut where it would fill the sentence; of arrays their shapes."""
    if hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, type):
        return describe(x)
    if isinstance(x, tuple | list | Mapping) and any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(x)):
        x = jax.tree.map(lambda leaf: _Shown(describe(leaf)), x)
    text = " ".join(repr(x).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


class _Shown(str):
    """Its own repr."""

    def __repr__(self) -> str:
        return str(self)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The end of a sentence: what may have been meant by a name that is none of those known; ``""`` where unclear.

    >>> did_you_mean("lsmt", ["lstm", "gru"])
    "; did you mean 'lstm'?"
    """
    names = {other.lower(): other for other in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.6)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def is_traced(tree: Any) -> bool:
    """Whether a value is not known yet, because JAX is tracing it; of a list, whether any of it is."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of an array, or of nested lists."""
    return tuple(x.shape) if hasattr(x, "shape") else jnp.asarray(x).shape if is_traced(x) else np.shape(x)


def check_size(where: str, name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """A whole number as a plain int: a hidden size, an input size and the like; numpy's integers are taken, too.

    Raises:
        TypeError: if it is none, also for a Boolean.
        ValueError: if it is below ``least``, or above ``most`` or what int32 holds.

    >>> import numpy as np
    >>> check_size("LSTM", "hidden_size", np.int64(5))
    5
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:  # also of a traced number
        raise TypeError(f"{where}: {name} must be an int, got {describe(value)}.") from None
    if most is not None and not least <= number <= most:
        raise ValueError(f"{where}: {name} must lie between {least} and {most}, got {number}.")
    if number < least:
        raise ValueError(f"{where}: {name} must be at least {least}, got {number}.")
    if number > _LARGEST:
        raise ValueError(f"{where}: {name} must be at most {_LARGEST}, got {number}.")
    return number


def check_real(
    where: str,
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    traced: bool = False,
) -> Any:
    """A finite number within bounds, as a plain float.

    Args:
        where: the beginning of the sentence.
        name: of the argument.
        value: a number of Python or numpy, or an array without axes.
        least: the lower bound, included.
        above: the lower bound, excluded.
        most: the upper bound, included.
        below: the upper bound, excluded.
        traced: whether a traced number may come; it is handed back as it is, as its value is not known.

    Raises:
        TypeError: if it is no number, or traced where that may not be.
        ValueError: if it lies outside, or is not finite.
    """
    if isinstance(value, jax.core.Tracer):
        if traced and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.floating):
            return value
        if traced and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer):
            return value.astype(jnp.float32)
        why = "must be a number" if traced else "must be a number that is known now, not a traced one"
        raise TypeError(f"{where}: {name} {why}, got {describe(value)}.")
    if isinstance(value, bool | np.bool_ | str | bytes | complex | np.complexfloating) or value is None:
        raise TypeError(f"{where}: {name} must be a number, got {short(value)}.")
    try:
        if np.ndim(value) != 0 or np.asarray(value).dtype.kind == "b":
            raise TypeError
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{where}: {name} must be a number, got {describe(value)}.") from None
    low, high = above if least is None else least, below if most is None else most
    lowest, highest = -math.inf if low is None else low, math.inf if high is None else high
    if not math.isfinite(number) or not lowest <= number <= highest or number in (above, below):
        if low is not None and high is not None:
            closed = f"{'[' if above is None else '('}{low:g}, {high:g}{']' if below is None else ')'}"
            bounds = f"lie in {closed}"
        elif low is not None:
            bounds = f"be a finite number {'of at least' if above is None else 'above'} {low:g}"
        elif high is not None:
            bounds = f"be a finite number {'of at most' if below is None else 'below'} {high:g}"
        else:
            bounds = "be a finite number"
        raise ValueError(f"{where}: {name} must {bounds}, got {number:g}.")
    return number


def check_flag(where: str, name: str, value: Any) -> bool:
    """A switch as a plain bool.

    Raises:
        TypeError: if it is none: ``"no"`` is true for Python.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{where}: {name} must be True or False, got {describe(value)}.")
    return bool(value)


def check_ints(
    where: str,
    name: str,
    value: Any,
    *,
    low: int | None = None,
    high: int | None = None,
    shape: tuple[int, ...] | None = None,
    but: int | None = None,
    judge: Any = True,
) -> jax.Array:
    """Integers of any width as an int32 array: lengths, symbols, labels, ids.

    Arithmetic in the dtype of the input would wrap: neither 255 + 1 nor -1 exists in uint8. So the values are judged
    as they came, and everybody computes in int32.

    Args:
        where: the beginning of the sentence.
        name: of the argument, in the plural.
        value: an array or nested lists of integers.
        low: the smallest value allowed; traced values are not judged, only held within int32.
        high: the largest.
        shape: what the shape must be; None for any.
        but: a value that is allowed although it lies outside.
        judge: bool, with the first axes of the values: which of them are judged; padding may hold anything.

    Raises:
        TypeError: if they are not integers, also for Booleans.
        ValueError: for another shape, or a value outside.

    >>> import numpy as np
    >>> check_ints("pool", "lengths", np.array([200, 3], np.uint8), low=0, high=300)
    Array([200,   3], dtype=int32)
    """
    array = _judged(where, name, value, low, high, shape, but, judge)
    if not isinstance(array, np.ndarray) and array.dtype.itemsize >= 4 and array.dtype != jnp.int32:
        # What int32 does not hold stays outside of every range instead of wrapping into it.
        array = jnp.minimum(array, _LARGEST)
        if jnp.issubdtype(array.dtype, jnp.signedinteger):
            array = jnp.maximum(array, -_LARGEST - 1)
    return jnp.asarray(array.astype(np.int32))


def _judged(
    where: str, name: str, value: Any, low: int | None, high: int | None, shape: Any = None, but: int | None = None,
    judge: Any = True, *, flat: bool = False,
) -> Any:  # fmt: skip
    """Integers as an array in their own dtype, of NumPy unless they are traced; see `check_ints`."""
    if is_traced(value):
        array: Any = jnp.asarray(value)
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):  # keys of random numbers, and lists of several lengths
            raise TypeError(f"{where}: {name} must be integers, got {short(value)}.") from None
        if array.size == 0 and not hasattr(value, "dtype"):
            array = array.astype(np.int32)  # an empty list has no kind
    if not np.issubdtype(array.dtype, np.integer):
        got = describe(array) if hasattr(value, "dtype") and array.dtype.kind in "fcb" else short(value)
        raise TypeError(f"{where}: {name} must be integers, got {got}.")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{where}: {name} must have shape {list(shape)}, got {describe(array)}.")
    if flat and array.ndim != 1:
        raise ValueError(f"{where}: {name} must have shape [n], got {describe(array)}.")
    if isinstance(array, np.ndarray):
        judged = array[judge] if isinstance(judge, np.ndarray) else array if judge else array.reshape(-1)[:0]
        judged = judged if but is None else judged[judged != but]
        if judged.size:
            first, last = int(judged.min()), int(judged.max())
            least, most = -_LARGEST - 1 if low is None else low, _LARGEST if high is None else high
            if first < least or last > most:
                if high is None and low is not None and last <= _LARGEST:
                    bounds = f"be at least {low}"
                else:
                    bounds = f"lie between {least} and {most}" + ("" if but is None else f", or be {but}")
                values = f"{first}" if first == last else f"values from {first} to {last}"
                raise ValueError(f"{where}: {name} must {bounds}, got {values}.")
    return array


def check_ids(where: str, ids: Any, size: int | None = None, name: str = "ids") -> np.ndarray:
    """Integers ``[n]`` of a text on the host, from 0 to ``size - 1``; they keep their dtype, as texts are long.

    Raises:
        TypeError: if they are not integers.
        ValueError: if they are not one axis, or one lies outside.
    """
    array: np.ndarray = _judged(where, name, ids, 0, None if size is None else size - 1, flat=True)
    return array if array.size else array.astype(np.int32)


def check_starts(where: str, starts: Any, length: int) -> np.ndarray | None:
    """Positions ``[d]`` where documents start in a text of ``length`` symbols, sorted; None for none.

    Raises:
        TypeError: if they are not integers.
        ValueError: if they are not sorted, or one lies outside of the text.
    """
    if starts is None:
        return None
    array = check_ids(where, starts, length, "starts")
    if (array[1:] < array[:-1]).any():
        raise ValueError(f"{where}: starts must be sorted, got {short(array.tolist())}.")
    return array


def check_key(where: str, key: Any, name: str = "key", *, several: bool = False) -> jax.Array:
    """One key of `jax.random`, of the new or the old kind, or with ``several`` an array of them.

    Raises:
        TypeError: if it is none; a bare seed is the commonest slip.
        ValueError: if there are several, and one is wanted.
    """
    dtype = getattr(key, "dtype", None)
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not new and not (dtype == jnp.uint32 and getattr(key, "ndim", 0) >= 1):
        raise TypeError(f"{where}: {name} must be a key of jax.random, got {short(key)}; make it by jax.random.key(0).")
    axes = key.shape if new else key.shape[:-1]  # an old key is a row of numbers
    if axes and not several:
        raise ValueError(f"{where}: {name} must be one key, got {describe(key)}; use jax.vmap for several.")
    return key


def check_dtype(where: str, dtype: Any, name: str = "dtype") -> None:
    """Raises TypeError unless ``dtype`` is a floating one."""
    try:
        value = isinstance(dtype, jax.Array | np.ndarray | np.generic | tuple | list)  # an array has one, and is none
        floating = dtype is not None and not value and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(f"{where}: {name} must be a floating dtype such as jnp.float32, got {short(dtype)}.")


def check_kind(where: str, name: str, value: Any, kind: Any, wanted: str) -> Any:
    """The value; raises TypeError unless it is an instance of ``kind``, for a class in its place with a hint.

    Args:
        where: the beginning of the sentence.
        name: of the argument.
        value: what came.
        kind: a class, a protocol that can be checked at runtime, or several.
        wanted: what to say is needed, "a cell" for example.
    """
    if isinstance(value, type):
        raise TypeError(f"{where}: {name} must be {wanted}, got the class {value.__name__}; make an instance of it.")
    if not isinstance(value, kind):
        raise TypeError(f"{where}: {name} must be {wanted}, got {describe(value)}.")
    return value


def check_choice(where: str, name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """One of several values.

    Raises:
        ValueError: if it is none of them.
    """
    if not isinstance(value, str | int | type(None)) or value not in choices:
        listed = [repr(choice) for choice in choices]
        known = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"
        # Of two or three the reader sees it, and none of them may have been meant.
        guess = did_you_mean(value, map(str, choices)) if len(choices) > 3 else ""
        raise ValueError(f"{where}: {name} must be {known}, got {short(value)}{guess or '.'}")
    return value


def check_init(cell: Any, key: Any, input_size: Any, dtype: Any, name: str = "input_size") -> int:
    """The arguments of a cell's or a network's ``init``; hands back the input size as a plain int.

    Raises:
        TypeError: if ``key`` is no key, ``input_size`` no int or ``dtype`` no floating one.
        ValueError: if the size is below one.
    """
    where = f"{type(cell).__name__}.init"
    check_key(where, key)
    check_dtype(where, dtype)
    return check_size(where, name, input_size)


def check_optimizer(where: str, optimizer: Any) -> None:
    """Raises unless ``optimizer`` is an optax optimizer, rather than the function that makes one."""
    if not isinstance(optimizer, type) and all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        return
    name = getattr(optimizer, "__name__", None)
    got = f"the function {name}; call it, as in optax.{name}(1e-3)" if name else f"{short(optimizer)}; see optax"
    raise TypeError(f"{where}: optimizer must be an optax optimizer such as optax.adam(1e-3), got {got}.")

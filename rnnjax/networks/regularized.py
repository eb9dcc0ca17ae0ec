"""`unroll_regularized`: any cell over a sequence, with dropout and zoneout on its way through time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import (
    AffineCell,
    Cell,
    batch_shape,
    cast_like,
    compute_dtype,
    project_input,
    project_state,
    start_state,
    widen,
)
from rnnjax.networks.regularization import check_rate, drop_connect, locked_dropout, locked_mask, scale_kept
from rnnjax.unroll import unroll

__all__ = ["unroll_regularized"]


def unroll_regularized(
    cell: Cell,
    params: Any,
    state: Any,
    xs: jax.Array,
    *,
    key: jax.Array | None = None,
    input_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    weight_dropout: float = 0.0,
    output_dropout: float = 0.0,
    expected_zoneout: bool = False,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    implementation: str | None = None,
    remat: bool | int | str | None = None,
) -> tuple[Any, jax.Array]:
    r"""Unrolls any cell with regularisers; without a key it is `unroll`, to the last bit.

        w_hh'  = w_hh * m_w / (1 - weight_dropout)                  m_w: once a call
        x'     = x[t] * m_x / (1 - input_dropout)                   m_x: once a sequence
        h'     = h * m_h / (1 - recurrent_dropout)                  m_h: once a sequence
        new, y = update(state, x' @ w_ih + b, h' @ w_hh')
        h      = h where z_h, else new.h                            z_h ~ Bernoulli(zoneout_h): every step
        c      = c where z_c, else new.c                            z_c ~ Bernoulli(zoneout_c): every step
        ys[t]  = y * m_y / (1 - output_dropout)                     m_y: once a sequence

    Every mask is new for each example and unit (``m_w``: for each weight). A sequence is a row of this call, or what
    lies between two resets. Recurrent dropout is that of Gal and Ghahramani (2016), with one mask for all gates:
    only the matmul sees ``h'``, not what a cell does with ``h`` besides, which would shrink or grow it step by step.
    Zoneout is that of Krueger et al. (2017): ``new.h`` comes from ``c`` before its zoneout, and where the cell's ``y``
    is its ``h``, ``y`` is the ``h`` after zoneout.
    A reset restores the fresh state before the step it marks, and zoneout keeps values of that one.

    With recurrent dropout or zoneout the cell runs step by step as in ``"scan"``; the rest does not slow it down.

    Args:
        cell: any cell; for recurrent dropout and ``zoneout_h`` its state has a field ``h``, for ``zoneout_c`` ``c``.
            For a `Stack`, `unroll_stack` takes the same options and applies them to every layer.
        params: from ``cell.init``.
        state: the state before the first step.
        xs: ``[T, *batch, I]``.
        key: one a call; without one nothing is random. Six keys of their own come from it: ``key_x, key_h, key_zh,
            key_zc, key_w, key_y = jax.random.split(key, 6)``.
        input_dropout: rate of `locked_dropout` on ``xs``.
        recurrent_dropout: rate of the mask on what the recurrent matmul sees.
        zoneout_h: probability that a unit of ``h`` keeps its value.
        zoneout_c: probability that a unit of ``c`` keeps its value; where ``c`` has a meaning only together with a
            normaliser ``n`` and a stabiliser ``m``, as in `SLSTM`, the unit keeps all three of them.
        weight_dropout: rate of `drop_connect` on ``w_hh``.
        output_dropout: rate of `locked_dropout` on ``ys``.
        expected_zoneout: without a key, states move by the mean of zoneout, ``rate * old + (1 - rate) * new``, as
            the paper evaluates; with a key it changes nothing. Not for ``zoneout_c`` of a cell with ``n`` and ``m``.
        lengths: as in `unroll`; the state of a row stands still in its padding.
        resets: as in `unroll`.
        reverse: as in `unroll`.
        implementation: as in `unroll`; with recurrent dropout or zoneout only None and ``"scan"``.
        remat: as in `unroll`.

    Returns:
        The final state and ``ys [T, *batch, H]``.

    Raises:
        ValueError: for a rate outside [0, 1), a state without the field, a cell whose recurrent matmul cannot be
            told from the rest of its step, an implementation that is not for this, or as `unroll` does.
        TypeError: as `unroll` does.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.LSTM(hidden_size=5)
    >>> params, state, xs = cell.init(jax.random.key(0), input_size=3), cell.initial_state((2,)), jnp.ones((7, 2, 3))
    >>> final, ys = rnnjax.unroll_regularized(
    ...     cell, params, state, xs, key=jax.random.key(1), recurrent_dropout=0.25, zoneout_c=0.5, zoneout_h=0.05)
    >>> ys.shape, bool((ys[-1] == final.h).all())
    ((7, 2, 5), True)
    """
    rates = {
        "input_dropout": input_dropout,
        "recurrent_dropout": recurrent_dropout,
        "zoneout_h": zoneout_h,
        "zoneout_c": zoneout_c,
        "weight_dropout": weight_dropout,
        "output_dropout": output_dropout,
    }
    for name, rate in rates.items():
        check_rate("unroll_regularized", name, rate)
    options: dict[str, Any] = {"lengths": lengths, "resets": resets, "reverse": reverse, "remat": remat}
    stepwise = bool(zoneout_h or zoneout_c) if key is None else bool(recurrent_dropout or zoneout_h or zoneout_c)
    if stepwise:
        _check_stepwise(cell, state, rates, implementation, expected_zoneout and key is None)
    if not any(rates.values()) or (key is None and not (expected_zoneout and stepwise)):
        return unroll(cell, params, state, xs, implementation=implementation, **options)
    xs = jnp.asarray(xs)
    # What is wrong with the arguments is said before they are changed, in the words of `unroll`.
    jax.eval_shape(lambda: unroll(cell, params, state, xs, implementation="scan" if stepwise else None, **options))
    resets = None if resets is None else jnp.asarray(resets)
    keys = _Keys(*((None,) * 6 if key is None else jax.random.split(key, 6)))
    xs = locked_dropout(keys.x, xs, input_dropout, resets=resets, reverse=reverse)
    if weight_dropout:
        params = drop_connect(keys.w, params, weight_dropout)
    if stepwise:
        batch = batch_shape(cell, state)
        drawn = _draw(keys, state, xs.shape[0], batch, rates, resets, reverse)
        wrapper = _Regularized(
            cell=cell,
            x_shape=xs.shape[1 + len(batch) :],
            masks=tuple((name, mask.shape[1 + len(batch) :]) for name, mask in drawn.items()),
            recurrent_dropout=float(recurrent_dropout),
            zoneout=(("h", float(zoneout_h)), ("c", float(zoneout_c))),
        )
        # Zeros and ones, exact in every dtype, pass through lengths, reverse and remat as further features of x.
        steps = xs.shape[: 1 + len(batch)]
        flat = [
            # The size by name: where there is no step or no row, -1 could be anything.
            part.reshape(*steps, math.prod(part.shape[len(steps) :])).astype(xs.dtype)
            for part in (xs, *drawn.values())
        ]
        state, ys = unroll(
            wrapper, _Wrapped(params), state, jnp.concatenate(flat, axis=-1), implementation="scan", **options
        )
    else:
        state, ys = unroll(cell, params, state, xs, implementation=implementation, **options)
    return state, locked_dropout(keys.y, ys, output_dropout, resets=resets, reverse=reverse)


class _Keys(NamedTuple):
    x: jax.Array | None
    h: jax.Array | None
    zh: jax.Array | None
    zc: jax.Array | None
    w: jax.Array | None
    y: jax.Array | None


def _together(state: Any, field: str) -> tuple[str, ...]:
    """The fields that keep their values as one: a ``c`` relative to a stabiliser is no memory beside another ``m``."""
    return ("c", "n", "m") if field == "c" and hasattr(state, "n") and hasattr(state, "m") else (field,)


def _check_stepwise(
    cell: Cell, state: Any, rates: dict[str, float], implementation: str | None, expected: bool
) -> None:
    for option, field in (("recurrent_dropout", "h"), ("zoneout_h", "h"), ("zoneout_c", "c")):
        if rates[option] and not hasattr(state, field):
            advice = "unroll_stack takes the option for every layer" if hasattr(cell, "cells") else "set it to 0"
            raise ValueError(
                f"unroll_regularized: {option} needs a state with a field {field}, got {type(state).__name__} of "
                f"{type(cell).__name__}; {advice}."
            )
    if expected and rates["zoneout_c"] and len(_together(state, "c")) > 1:
        raise ValueError(
            "unroll_regularized: expected_zoneout with zoneout_c needs a state whose c has a meaning by itself, got "
            f"{type(state).__name__} of {type(cell).__name__}, with c relative to m; leave expected_zoneout out."
        )
    if implementation not in (None, "scan"):
        raise ValueError(
            "unroll_regularized: implementation must be None or 'scan' with recurrent dropout or zoneout, "
            f"got {implementation!r}."
        )


def _draw(
    keys: _Keys,
    state: Any,
    length: int,
    batch: tuple[int, ...],
    rates: dict[str, float],
    resets: jax.Array | None,
    reverse: bool,
) -> dict[str, jax.Array]:
    """The masks that steps need, bool ``[T, *batch, ...]``: set where the matmul sees h, where h and c are kept."""
    drawn: dict[str, jax.Array] = {}
    if keys.h is None:
        return drawn
    if rate := rates["recurrent_dropout"]:
        shape = (length, *state.h.shape)
        drawn["seen"] = jnp.broadcast_to(locked_mask(keys.h, shape, rate, resets=resets, reverse=reverse), shape)
    for field, key in (("h", keys.zh), ("c", keys.zc)):
        if key is not None and (rate := rates[f"zoneout_{field}"]):
            drawn[field] = jax.random.bernoulli(key, rate, (length, *getattr(state, field).shape))
    return drawn


class _Wrapped(NamedTuple):
    """Hides ``w_ih`` from the check of the size of x, which masks have widened."""

    params: Any


@dataclasses.dataclass(frozen=True)
class _Regularized:
    """A cell whose x also carries the masks of the step, flat; without masks zoneout is its own mean."""

    cell: Cell
    x_shape: tuple[int, ...]
    masks: tuple[tuple[str, tuple[int, ...]], ...]
    recurrent_dropout: float
    zoneout: tuple[tuple[str, float], ...]

    @property
    def hidden_size(self) -> int:
        return self.cell.hidden_size

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> _Wrapped:
        del input_size  # counts the masks, too
        return _Wrapped(self.cell.init(key, self.x_shape[-1], dtype))

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Any:
        return self.cell.initial_state(batch_shape, dtype)

    def start_state(self, params: _Wrapped, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Any:
        return start_state(self.cell, params.params, batch_shape, dtype)

    def step(self, params: _Wrapped, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        batch = x.shape[:-1]
        shapes = [self.x_shape, *(shape for _, shape in self.masks)]
        cuts = [sum(math.prod(shape) for shape in shapes[: n + 1]) for n in range(len(self.masks))]
        x, *flat = (
            part.reshape(*batch, *shape) for part, shape in zip(jnp.split(x, cuts, axis=-1), shapes, strict=True)
        )
        masks = {name: mask != 0 for (name, _), mask in zip(self.masks, flat, strict=True)}
        new, y = self._dropped_step(params.params, state, x, masks.get("seen"))
        is_h = dict(self.zoneout)["h"] > 0 and _y_is_h(self.cell, params.params, state, x)
        for field, rate in self.zoneout:
            for part in _together(state, field) if rate else ():
                was, now = getattr(state, part), getattr(new, part)
                mean = rate * was + (1 - rate) * now
                new = new._replace(
                    **{part: jnp.where(masks[field], was, now) if self.masks else mean.astype(now.dtype)}
                )
        return new, new.h.astype(y.dtype) if is_h else y

    def _dropped_step(self, params: Any, state: Any, x: jax.Array, seen: jax.Array | None) -> tuple[Any, jax.Array]:
        """A step of the cell whose recurrent matmul sees only the units of h that are set in ``seen``."""
        from rnnjax.networks.start import LearnedState  # it stands above the stack, which stands above this

        cell = self.cell
        if seen is None:
            return cell.step(params, state, x)
        if isinstance(cell, LearnedState):
            return dataclasses.replace(self, cell=cell.cell)._dropped_step(params.cell, state, x, seen)
        h = scale_kept(seen, state.h, self.recurrent_dropout)
        if isinstance(cell, AffineCell) and getattr(params, "w_hh", None) is not None:
            dtype = compute_dtype(state.h.dtype)
            zx, zh = project_input(cell, params, x, dtype), project_state(cell, params, h, dtype)
            new, y = cell.update(params, widen(state, dtype), zx, zh)
            return cast_like(new, state), y.astype(state.h.dtype)
        jaxpr = jax.make_jaxpr(cell.step)(params, state, x).jaxpr
        before = len(jax.tree.leaves((params, state))) - len(jax.tree.leaves(state))
        position = next(n for n, leaf in enumerate(jax.tree.leaves(state)) if leaf is state.h)
        if not _only_in_matmuls(jaxpr, jaxpr.invars[before + position]):
            raise ValueError(
                "unroll_regularized: recurrent_dropout needs an affine cell with w_hh, or one whose step reads h in "
                f"matmuls alone, got {type(cell).__name__}; take zoneout_h or weight_dropout."
            )
        return cell.step(params, state._replace(h=h), x)


_CALLS = ("jit", "pjit")
_COPIES = ("convert_element_type", "reshape", "squeeze", "transpose", "broadcast_in_dim", "concatenate")
_MATMULS = ("dot_general", "conv_general_dilated")


def _only_in_matmuls(jaxpr: Any, variable: Any) -> bool:
    """Whether nothing but matmuls and convolutions reads the variable or copies of it."""
    if any(v is variable for v in jaxpr.outvars):
        return False
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        for position, v in enumerate(equation.invars):
            if v is not variable or name in _MATMULS:
                continue
            if name in _COPIES:
                inner, copy = jaxpr, equation.outvars[0]
            elif name in _CALLS:
                inner = equation.params["jaxpr"].jaxpr
                copy = inner.invars[position]
            else:
                return False
            if not _only_in_matmuls(inner, copy):
                return False
    return True


def _y_is_h(cell: Cell, params: Any, state: Any, x: jax.Array) -> bool:
    """Whether the output of a step is the new ``h``, so that zoneout of the one is zoneout of the other."""
    closed, (new, y) = jax.make_jaxpr(cell.step, return_shape=True)(params, state, x)
    labels = jax.tree.unflatten(jax.tree.structure((new, y)), closed.jaxpr.outvars)
    return _origin(closed.jaxpr, labels[0].h) is _origin(closed.jaxpr, labels[1])


def _origin(jaxpr: Any, variable: Any) -> Any:
    """The variable that this one is a cast of, also one within a jitted function."""
    for equation in jaxpr.eqns:
        for position, out in enumerate(equation.outvars):
            if out is variable and equation.primitive.name == "convert_element_type":
                return _origin(jaxpr, equation.invars[0])
            if out is variable and equation.primitive.name in _CALLS:
                inner = equation.params["jaxpr"].jaxpr
                return _origin(inner, inner.outvars[position])
    return variable

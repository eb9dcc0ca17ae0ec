"""`Regularized`: any cell or network, with dropout and zoneout on its way through time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rnnjax.cell import (
    AffineCell,
    Cell,
    cast_like,
    compute_dtype,
    project_input,
    project_state,
    widen,
)
from rnnjax.checks import check_kind
from rnnjax.kinds import check_fields
from rnnjax.network import Around, Controls, Network, Visit, leaves, walk
from rnnjax.networks.masks import drop_connect, dropout, locked_mask, scale_kept
from rnnjax.traced import name_values

__all__ = ["Regularized", "RegularizedCell"]


@dataclasses.dataclass(frozen=True)
class Regularized(Around):
    r"""A cell or network with masks on its way through time; without a key it is what is inside, to the last bit.

        w_hh'  = w_hh * m_w / (1 - weight_dropout)                  m_w: once a call
        x'     = x[t] * m_x / (1 - input_dropout)                   m_x: once a sequence
        h'     = h * m_h / (1 - recurrent_dropout)                  m_h: once a sequence
        new, y = update(state, x' @ w_ih + b, h' @ w_hh')
        h      = h where z_h, else new.h                            z_h ~ Bernoulli(zoneout_h): every step
        c      = c where z_c, else new.c                            z_c ~ Bernoulli(zoneout_c): every step
        ys[t]  = y * m_y / (1 - output_dropout)                     m_y: once a sequence

    Masks are drawn where `rnnjax.unroll` gets a ``key``; without one, and in ``step``, it is **evaluated**: a rate
    above zero then does nothing at all, so a training loop has to pass a key. Every mask is new for each example and
    unit (``m_w``: for each weight). A sequence is a row of a call, or what lies between two resets. Recurrent dropout
    is that of Gal and Ghahramani (2016), with one mask for all gates: only the matmul sees ``h'``, not what a cell does
    with ``h`` besides, which would shrink or grow it step by step. Zoneout is that of Krueger et al. (2017): ``new.h``
    comes from ``c`` before its zoneout, and where the cell's ``y`` is its ``h``, ``y`` is the ``h`` after zoneout. A
    reset restores the fresh state before the step it marks, and zoneout keeps values of that one.

    Parameters and state are those of the cell inside. Of a network, ``input_dropout`` and ``output_dropout`` act on its
    input and its output, the other rates on every cell in it, each with masks of its own. With recurrent dropout or
    zoneout the cells run step by step as in ``"scan"``; the rest does not slow them down.

    Args:
        cell: any cell, also a `Stack`; for recurrent dropout and ``zoneout_h`` the states have a field ``h``, for
            ``zoneout_c`` ``c``.
        input_dropout: rate of a locked `dropout` on ``xs``.
        recurrent_dropout: rate of the mask on what the recurrent matmul sees.
        zoneout_h: probability that a unit of ``h`` keeps its value.
        zoneout_c: probability that a unit of ``c`` keeps its value; where ``c`` has a meaning only together with a
            normaliser ``n`` and a stabiliser ``m``, as in `SLSTM`, the unit keeps all three of them.
        weight_dropout: rate of `drop_connect` on ``w_hh``.
        output_dropout: rate of a locked `dropout` on ``ys``.
        expected_zoneout: without a key, states move by the mean of zoneout, ``rate * old + (1 - rate) * new``, which is
            how the paper evaluates; False evaluates the cell as it is. With a key it changes nothing. Not for
            ``zoneout_c`` of a cell with ``n`` and ``m``.

    From the key of a call come ``key_x, key_w, key_y, key_cell = jax.random.split(key, 4)``, and from ``key_cell``, or
    of a network from what it hands to each of its cells, ``key_h, key_zh, key_zc = jax.random.split(key_cell, 3)``.

    Raises:
        TypeError: if ``cell`` is none.
        ValueError: for a rate outside [0, 1), a state without the field, or two of these around one cell that both
            have recurrent dropout or zoneout. `rnnjax.unroll` raises it for a cell whose recurrent matmul cannot be
            told from the rest of its step, and for an implementation other than ``"scan"`` where it runs step by
            step.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.Regularized(rnnjax.LSTM(5), recurrent_dropout=0.25, zoneout_c=0.5, zoneout_h=0.05)
    >>> params, xs = cell.init(jax.random.key(0), input_size=3), jnp.ones((7, 2, 3))
    >>> final, ys = rnnjax.unroll(cell, params, None, xs, key=jax.random.key(1))
    >>> ys.shape, bool((ys[-1] == final.h).all())
    ((7, 2, 5), True)
    """

    cell: Any  # a cell
    _: dataclasses.KW_ONLY
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    weight_dropout: float = 0.0
    output_dropout: float = 0.0
    expected_zoneout: bool = False

    def __post_init__(self) -> None:
        check_kind("Regularized", "cell", self.cell, Cell, "a cell")
        check_fields(self, rates=[field.name for field in dataclasses.fields(self)[1:-1]])
        for path, cell, state in leaves(self.cell, jax.eval_shape(self.cell.initial_state)):
            where = f" (cell {path})" if path else ""
            for option, field in (("recurrent_dropout", "h"), ("zoneout_h", "h"), ("zoneout_c", "c")):
                if getattr(self, option) and not hasattr(state, field):
                    raise ValueError(
                        f"Regularized: {option} needs a state with a field {field}, got {type(state).__name__} of "
                        f"{type(cell).__name__}{where}; set it to 0."
                    )
            if self.expected_zoneout and self.zoneout_c and len(_together(state, "c")) > 1:
                raise ValueError(
                    "Regularized: expected_zoneout with zoneout_c needs a state whose c has a meaning by itself, got "
                    f"{type(state).__name__} of {type(cell).__name__}{where}, with c relative to m; leave "
                    "expected_zoneout out."
                )
        if self._stepwise and any(other._stepwise for other in _inside(self.cell)):
            raise ValueError(
                "Regularized: recurrent dropout and zoneout must be set once around a cell, got them in another "
                "Regularized within this one, too; set them in one of the two."
            )

    @property
    def _stepwise(self) -> bool:
        return bool(self.recurrent_dropout or self.zoneout_h or self.zoneout_c)

    def thread(
        self,
        visit: Visit,
        params: Any,
        state: Any,
        xs: jax.Array,
        controls: Controls,
        *,
        reverse: bool,
        key: jax.Array | None,
    ) -> tuple[Any, jax.Array]:
        """Through the cell inside; see `rnnjax.Network`."""
        key_x, key_w, key_y, key = (None,) * 4 if key is None else jax.random.split(key, 4)
        locked = functools.partial(dropout, locked=True, resets=controls.restarts, reverse=reverse)
        if key_x is not None:
            xs = locked(key_x, xs, self.input_dropout)
        if key_w is not None and self.weight_dropout:
            params = drop_connect(key_w, params, self.weight_dropout)
        if self._stepwise and (key is not None or (self.expected_zoneout and (self.zoneout_h or self.zoneout_c))):
            visit = functools.partial(walk, functools.partial(self._masked, visit))
        state, ys = visit(self.cell, params, state, xs, controls, reverse=reverse, key=key)
        return state, ys if key_y is None else locked(key_y, ys, self.output_dropout)

    def _masked(
        self, visit: Visit, cell: Any, params: Any, state: Any, xs: jax.Array, controls: Any, *, reverse: bool, key: Any
    ) -> Any:
        """Runs one of the cells with the masks that its steps need; without a key zoneout is its own mean."""
        rates = RegularizedCell(
            cell, float(self.recurrent_dropout if key is not None else 0), float(self.zoneout_h), float(self.zoneout_c)
        )
        noise = None if key is None else rates.draw(key, xs.shape[0], state, controls.restarts, reverse)
        return visit(rates, params, state, xs, controls._replace(noise=noise), reverse=reverse, key=None)


def _inside(net: Any) -> Iterator[Regularized]:
    if isinstance(net, Regularized):
        yield net
    if isinstance(net, Network):
        for _, cell, _ in net.parts(None):
            yield from _inside(cell)


def _together(state: Any, field: str) -> tuple[str, ...]:
    """The fields that keep their values as one: a ``c`` relative to a stabiliser is no memory beside another ``m``."""
    return ("c", "n", "m") if field == "c" and hasattr(state, "n") and hasattr(state, "m") else (field,)


class Masks(NamedTuple):
    """What a step of a `RegularizedCell` gets as its noise, bool ``[T, *batch, ...]``; None for a rate of zero."""

    seen: jax.Array | None  # where the recurrent matmul sees h
    h: jax.Array | None  # where h keeps its value
    c: jax.Array | None  # where c does


@dataclasses.dataclass(frozen=True)
class RegularizedCell(Around):
    """What `Regularized` makes of each cell: a cell whose step takes the masks as its noise."""

    cell: Cell
    recurrent_dropout: float
    zoneout_h: float
    zoneout_c: float

    def draw(self, key: jax.Array, length: int, state: Any, resets: jax.Array | None, reverse: bool) -> Masks:
        """The masks of all steps."""
        key_h, key_zh, key_zc = jax.random.split(key, 3)
        seen = None
        if self.recurrent_dropout:
            shape = (length, *state.h.shape)
            seen = locked_mask(key_h, shape, self.recurrent_dropout, resets=resets, reverse=reverse)
            seen = jnp.broadcast_to(seen, shape)

        def kept(key: jax.Array, field: str, rate: float) -> jax.Array | None:
            return jax.random.bernoulli(key, rate, (length, *getattr(state, field).shape)) if rate else None

        return Masks(seen, kept(key_zh, "h", self.zoneout_h), kept(key_zc, "c", self.zoneout_c))

    def step(self, params: Any, state: Any, x: jax.Array, noise: Masks | None = None) -> tuple[Any, jax.Array]:
        """One step, with the masks of this step or, without, with the mean of zoneout."""
        new, y = self._dropped_step(params, state, x, None if noise is None else noise.seen)
        is_h = self.zoneout_h > 0 and _y_is_h(self.cell, params, state, x)
        for field, rate in (("h", self.zoneout_h), ("c", self.zoneout_c)):
            for part in _together(state, field) if rate else ():
                was, now = getattr(state, part), getattr(new, part)
                if noise is None:
                    value = (rate * was + (1 - rate) * now).astype(now.dtype)
                else:
                    value = jnp.where(getattr(noise, field), was, now)
                new = new._replace(**{part: value})
                name_values(**{part: value})  # which the state gets, in the place of what the cell named
        return new, new.h.astype(y.dtype) if is_h else y

    def _dropped_step(self, params: Any, state: Any, x: jax.Array, seen: jax.Array | None) -> tuple[Any, jax.Array]:
        """A step of the cell whose recurrent matmul sees only the units of h that are set in ``seen``."""
        cell = self.cell
        if seen is None:
            return cell.step(params, state, x)
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
                "Regularized: recurrent_dropout needs an affine cell with w_hh, or one whose step reads h in "
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

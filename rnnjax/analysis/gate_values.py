r"""What the gates of a cell do in a step, by name: before and after their nonlinearity.

A gate is recomputed from the state before the step, the input and, for some cells, the state after it; in one compiled
function the compiler merges the matmuls with those of the step itself. A new kind of cell joins by
``@gate_values.register``, or has an attribute ``gate_names`` where its gates are plain sums ``zx + zh``.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from rnnjax.cell import (
    AffineCell,
    Gates,
    LinearCell,
    cast_like,
    compute_dtype,
    matmul,
    project_input,
    project_state,
    split_gates,
    widen,
)
from rnnjax.cells import (
    GRU,
    LSTM,
    MGU,
    MILSTM,
    SLSTM,
    CoupledLSTM,
    GRUResetBefore,
    LayerNormGRU,
    LayerNormLSTM,
    MinimalRNN,
    PeepholeLSTM,
    ProjectedLSTM,
)

__all__ = ["CANDIDATES", "PLAIN_GATES", "Gate", "emit", "gate_values"]

CANDIDATES = ("g", "n")  # what is let in, through a tanh; every other gate is a sigmoid
# Cells whose gates are nonlinearities of zx + zh and of nothing else, in the order of zx; None is one that is not.
PLAIN_GATES: dict[type, tuple[str | None, ...]] = {
    LSTM: ("i", "f", "g", "o"),
    CoupledLSTM: ("f", "g", "o"),
    GRU: ("r", "z", None),
    MGU: ("f", None),
}


class Gate(NamedTuple):
    """One gate in one step (or in many at once), ``[..., H]``."""

    pre: jax.Array  # before the nonlinearity
    value: jax.Array | None  # after it; None where the cell does not say what its blocks are


@functools.singledispatch
def gate_values(cell: Any, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    r"""The gates of a step from ``old`` to ``new`` with the input ``x``.

        LSTM and its variants    i, f, g, o      g is the candidate, a tanh
        GRU and its variants     r, z, n         n is the candidate, a tanh
        MGU                      f, n
        sLSTM                    i, f, g, o      i and f as the stabilised exponentials of its equations, in [0, 1]
        MinimalRNN               u, z            z is a tanh
        minGRU, minLSTM, SRU     keep            the coefficient of the old state
        other affine cells       z0, z1, ...     zx + zh, without a nonlinearity

    Args:
        cell: any cell; one without gates, or of a class that nobody registered, has none.
        params: its parameters.
        old: the state before the step, ``[..., H]``.
        new: the state after it.
        x: ``[..., I]``.

    >>> import jax, jax.numpy as jnp, rnnjax
    >>> cell = rnnjax.GRU(4)
    >>> params, old, x = cell.init(jax.random.key(0), input_size=3), cell.initial_state(), jnp.ones(3)
    >>> gates = gate_values(cell, params, old, cell.step(params, old, x)[0], x)
    >>> sorted(gates), bool(jnp.allclose(gates["z"].value, jax.nn.sigmoid(gates["z"].pre)))
    (['n', 'r', 'z'], True)
    """
    if isinstance(cell, AffineCell):
        zx, zh = _project(cell, params, old, x)
        sums = _add(zx, zh) if zh else zx
        names = getattr(cell, "gate_names", None)
        return {f"z{k}": Gate(z, None) for k, z in enumerate(sums)} if names is None else _named(names, sums)
    if isinstance(cell, LinearCell):
        a = cell.coefficients(params, x, compute_dtype(jax.tree.leaves(old)[0].dtype))[0][0]
        if jnp.iscomplexobj(a) or a.ndim < x.ndim:
            return {}  # it does not depend on the input, so it gates nothing
        return {"keep": Gate(jnp.log(a) - jnp.log1p(-a), a)}
    return {}


def _project(cell: AffineCell, params: Any, old: Any, x: jax.Array) -> tuple[Gates, Gates]:
    dtype = compute_dtype(old.h.dtype)
    return project_input(cell, params, x, dtype), project_state(cell, params, old.h, dtype)


def _add(zx: Gates, zh: Gates) -> Gates:
    return tuple(a + b for a, b in zip(zx, zh, strict=True))


def _named(names: tuple[str, ...], sums: Gates) -> dict[str, Gate]:
    return {
        name: Gate(z, jnp.tanh(z) if name in CANDIDATES else sigmoid(z)) for name, z in zip(names, sums, strict=True)
    }


@gate_values.register(LSTM)
def _lstm(cell: LSTM, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    return _named(("i", "f", "g", "o"), _add(*_project(cell, params, old, x)))


@gate_values.register(CoupledLSTM)
def _coupled(cell: CoupledLSTM, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    return _named(("f", "g", "o"), _add(*_project(cell, params, old, x)))


@gate_values.register(PeepholeLSTM)
def _peephole(cell: PeepholeLSTM, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    i, f, g, o = _add(*_project(cell, params, old, x))
    return _named(("i", "f", "g", "o"), (i + params.p_i * old.c, f + params.p_f * old.c, g, o + params.p_o * new.c))


@gate_values.register(MILSTM)
def _mi_lstm(cell: MILSTM, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    zx, zh = (jnp.concatenate(z, axis=-1) for z in _project(cell, params, old, x))
    zx = zx - params.b  # `affine_step` adds it before the product, where it does not belong
    sums = params.alpha * zx * zh + params.beta_x * zx + params.beta_h * zh + params.b
    return _named(("i", "f", "g", "o"), split_gates(sums, 4))


def _norm(z: jax.Array, epsilon: float) -> jax.Array:
    centred = z - z.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)


@gate_values.register(LayerNormLSTM)
def _layernorm_lstm(cell: LayerNormLSTM, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    zx, zh = (jnp.concatenate(z, axis=-1) for z in _project(cell, params, old, x))
    sums = params.gain_x * _norm(zx - params.b, cell.epsilon) + params.gain_h * _norm(zh, cell.epsilon) + params.b
    return _named(("i", "f", "g", "o"), split_gates(sums, 4))


@gate_values.register(LayerNormGRU)
def _layernorm_gru(cell: LayerNormGRU, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    zx, zh = (jnp.concatenate(z, axis=-1) for z in _project(cell, params, old, x))
    cut = 2 * cell.hidden_size  # r and z are normalised together, n alone
    nx, nh = (
        jnp.concatenate([_norm(z[..., :cut], cell.epsilon), _norm(z[..., cut:], cell.epsilon)], axis=-1)
        for z in (zx - params.b, zh)
    )
    return _gru_like(split_gates(params.gain_x * nx + params.b, 3), split_gates(params.gain_h * nh, 3), params.b_hn)


def _gru_like(zx: Gates, zh: Gates, b_hn: jax.Array) -> dict[str, Gate]:
    return _named(("r", "z", "n"), (zx[0] + zh[0], zx[1] + zh[1], zx[2] + sigmoid(zx[0] + zh[0]) * (zh[2] + b_hn)))


@gate_values.register(GRU)
def _gru(cell: GRU, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    return _gru_like(*_project(cell, params, old, x), params.b_hn)


@gate_values.register(MGU)
def _mgu(cell: MGU, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    zx, zh = _project(cell, params, old, x)
    f = zx[0] + zh[0]
    return _named(("f", "n"), (f, zx[1] + (zh[1] if params.b_hn is None else sigmoid(f) * (zh[1] + params.b_hn))))


@gate_values.register(SLSTM)
def _slstm(cell: SLSTM, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    i, f, g, o = _add(*_project(cell, params, old, x))
    log_f = log_sigmoid(f) if cell.forget_gate == "sigmoid" else f
    add, keep = jnp.exp(i - new.m), jnp.exp(log_f + old.m - new.m)
    return {"i": Gate(i, add), "f": Gate(f, keep), "g": Gate(g, jnp.tanh(g)), "o": Gate(o, sigmoid(o))}


@gate_values.register(GRUResetBefore)
def _gru_reset_before(cell: GRUResetBefore, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    dtype = compute_dtype(old.h.dtype)
    h, size = old.h.astype(dtype), cell.hidden_size
    zx = split_gates(matmul(x, params.w_ih, dtype) + params.b.astype(dtype), 3)
    zr, zz = split_gates(matmul(h, params.w_hh[:, : 2 * size], dtype), 2)
    r = zx[0] + zr
    return _named(("r", "z", "n"), (r, zx[1] + zz, zx[2] + matmul(sigmoid(r) * h, params.w_hh[:, 2 * size :], dtype)))


@gate_values.register(ProjectedLSTM)
def _projected(cell: ProjectedLSTM, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    dtype = compute_dtype(old.h.dtype)
    z = matmul(x, params.w_ih, dtype) + params.b.astype(dtype) + matmul(old.h, params.w_hh, dtype)
    return _named(("i", "f", "g", "o"), split_gates(z, 4))


@gate_values.register(MinimalRNN)
def _minimal_rnn(cell: MinimalRNN, params: Any, old: Any, new: Any, x: jax.Array) -> dict[str, Gate]:
    dtype = compute_dtype(old.h.dtype)
    z = matmul(x, params.w_ih, dtype) + params.b_z
    u = matmul(old.h, params.w_hh, dtype) + matmul(jnp.tanh(z), params.w_zh, dtype) + params.b_u
    return {"u": Gate(u, sigmoid(u)), "z": Gate(z, jnp.tanh(z))}


def emit(cell: Any, params: Any, old: Any, new: Any, x: jax.Array) -> tuple[Any, jax.Array] | None:
    """What a cell writes where its memory after a step, ``new.c``, was changed by hand: the state and ``y``.

    None for a cell of which this is not known; there a change takes effect from the next step on.
    """
    if isinstance(cell, LinearCell):
        wide = widen(new, compute_dtype(jax.tree.leaves(new)[0].dtype))
        return new, cell.output(params, wide, x).astype(jax.tree.leaves(new)[0].dtype)
    if not isinstance(cell, LSTM | CoupledLSTM | PeepholeLSTM | MILSTM | LayerNormLSTM | SLSTM | ProjectedLSTM):
        return None
    o: Any = gate_values(cell, params, old, new, x)["o"].value
    wide = widen(new, compute_dtype(new.h.dtype))
    if isinstance(cell, SLSTM):
        h = o * wide.c / wide.n
    elif isinstance(cell, LayerNormLSTM):
        h = o * jnp.tanh(params.gain_c * _norm(wide.c, cell.epsilon) + params.b_c)
    else:
        h = o * jnp.tanh(wide.c)
    if isinstance(cell, ProjectedLSTM):
        h = matmul(h, params.w_proj, h.dtype)
    new = cast_like(wide._replace(h=h), new)
    return new, new.h

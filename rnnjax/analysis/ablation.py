r"""Ablation: units are held at a constant while the model reads a text; what does that do to its predictions?

Whatever the step of a cell names can be held, its gates and its state, where it is computed: what the step makes of it
changes with it. With ``c`` of an LSTM held, ``h`` and ``y`` of the same step are those of the held ``c``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rnnjax.analysis.recording import (
    SymbolModel,
    leaves_of,
    read_text,
    restart,
    step_layers,
)
from rnnjax.analysis.units import HOW_TO_NAME, parse_unit, select_units
from rnnjax.cell import batch_shape
from rnnjax.checks import check_ids, short
from rnnjax.kinds import public
from rnnjax.network import start_state
from rnnjax.text.windows import windows
from rnnjax.traced import observe

__all__ = ["Ablation", "Tally", "ablate", "step_clamped", "unit_means"]

Clamps = dict[str, tuple[Any, Any]]  # by leaf: which units are held, bool [n], and where, [n]


class Tally(NamedTuple):
    """Means over the predictions of a text; nan where there are none. Losses are in nats a symbol."""

    loss: float
    loss_inside: float  # where the label holds
    loss_outside: float
    closing_end: float  # probability of the closing symbols where the label holds and ends with the next symbol
    closing_within: float  # the same where it goes on


class Ablation(NamedTuple):
    """What holding ``units`` at ``values`` does."""

    units: tuple[str, ...]
    values: tuple[float, ...]
    before: Tally
    after: Tally


@public(but=("value",))
def ablate(
    model: SymbolModel,
    ids: np.ndarray,
    groups: Sequence[Sequence[str]],
    *,
    value: float | str = "mean",
    label: np.ndarray | None = None,
    closing: Sequence[int] = (),
    **reading: Any,
) -> list[Ablation]:
    r"""Holds units at a constant and measures the predictions of a text, overall and where a label holds.

    Args:
        model: the model.
        ids: integers ``[n]``.
        groups: of units that are held together, by name; one result each.
        value: where they are held: ``"mean"``, each at its own mean over the text, or a number.
        label: bool ``[n]``, what holds after each symbol.
        closing: the symbols whose probability, all together, is ``closing_end`` and ``closing_within``.
        **reading: options of `read_text`: ``streams``, ``window``, ``warmup``, ``starts``.

    Raises:
        ValueError: for a unit that there is not or that cannot be held, or fewer than two symbols.
    """
    ids = check_ids("ablate", ids, model.inputs.shape[0])
    closing = check_ids("ablate", list(closing), model.inputs.shape[0], "closing").tolist()
    if len(ids) < 2:
        raise ValueError(f"ablate: ids must hold at least two symbols, got {len(ids)}; use a longer text.")
    if value != "mean" and isinstance(value, str):
        raise ValueError(f"ablate: value must be 'mean' or a number, got {short(value)}.")
    leaves = leaves_of(model.cell, model.params, model.inputs[0])
    units = [[parse_unit(name, leaves) for name in group] for group in groups]
    names = sorted({name for group in groups for name in group})
    held = unit_means(model, ids, names, **reading) if value == "mean" else dict.fromkeys(names, float(value))
    flags = np.zeros(len(ids), bool) if label is None else np.asarray(label).astype(bool)
    before = _tally(model, ids, {}, flags, closing, reading)
    results = []
    for group, members in zip(groups, units, strict=True):
        clamps: Clamps = {}
        for leaf in sorted({unit.leaf for unit in members}):
            mask, at = np.zeros(leaves[leaf].size, bool), np.zeros(leaves[leaf].size, np.float32)
            for unit in members:
                if unit.leaf == leaf:
                    mask[unit.number], at[unit.number] = True, held[str(unit)]
            clamps[leaf] = (mask, at)
        after = _tally(model, ids, clamps, flags, closing, reading)
        results.append(Ablation(tuple(group), tuple(held[name] for name in group), before, after))
    return results


@public
def unit_means(model: SymbolModel, ids: np.ndarray, units: Sequence[str], **reading: Any) -> dict[str, float]:
    """The mean of each unit over a text, by name."""
    leaves = leaves_of(model.cell, model.params, model.inputs[0])
    selection = select_units(list(units), leaves)
    totals: dict[str, Any] = {leaf: 0.0 for leaf, _ in selection}
    for part in read_text(model, ids, select=list(units), **reading):
        for leaf, values in part.rows()[1].items():
            totals[leaf] += values.sum(axis=0, dtype=np.float64)
    return {
        f"{leaf}.{unit}": float(total) / len(ids)
        for leaf, kept in selection
        for unit, total in zip(kept or (), totals[leaf], strict=True)
    }


def _tally(
    model: SymbolModel, ids: np.ndarray, clamps: Clamps, label: np.ndarray, closing: Sequence[int], reading: Any
) -> Tally:
    options = {"streams": 16, "window": 128, "warmup": 256, "starts": None} | reading
    options["streams"] = min(options["streams"], max(1, len(ids) - 1))
    closes = np.zeros(model.inputs.shape[0], np.float32)
    closes[list(closing)] = 1
    sums, counts = np.zeros(5), np.zeros(5)
    state = None
    for at, counted, resets in windows(0, len(ids) - 1, **options, where="ablate"):
        state = start_state(model.cell, model.params, at.shape[1:]) if state is None else state
        at = np.clip(at, 0, len(ids) - 2)
        read = (ids[at].astype(np.int32), ids[at + 1].astype(np.int32), resets)
        state, nats, closed = _predict(model.cell, model[1:], state, read, clamps, jnp.asarray(closes))
        inside = counted & label[at]
        end = inside & ~label[at + 1]
        for k, (value, where) in enumerate(
            ((nats, counted), (nats, inside), (nats, counted & ~inside), (closed, end), (closed, inside & ~end))
        ):
            sums[k] += np.asarray(value).sum(where=where, dtype=np.float64)
            counts[k] += where.sum()
    means = [total / count if count else math.nan for total, count in zip(sums.tolist(), counts.tolist(), strict=True)]
    return Tally(*(means if len(closing) else [*means[:3], math.nan, math.nan]))


@functools.partial(jax.jit, static_argnames="cell")
def _predict(
    cell: Any, model: Any, state: Any, read: tuple[jax.Array, ...], clamps: Clamps, closes: jax.Array
) -> tuple[Any, jax.Array, jax.Array]:
    """The state, the nats of every next symbol, and the probability of those that close, ``[T, B]``."""
    params, inputs, w_out, b_out = model
    symbols, targets, resets = read

    def step(state: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        symbols, reset = now
        x = inputs[symbols]  # here, since the vectors of all steps may be many
        return step_clamped(cell, params, restart(cell, params, state, reset), x, clamps)

    def predict(now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        ys, targets = now  # [B, H], [B]
        logits = jnp.matmul(ys.astype(w_out.dtype), w_out, preferred_element_type=jnp.float32) + b_out
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return nats, jax.nn.softmax(logits) @ closes

    state, ys = jax.lax.scan(step, state, (symbols, resets))
    # So many steps at a time that the logits of a large vocabulary do not fill the memory.
    size = max(1, min(len(ys), 2**23 // (ys.shape[1] * w_out.shape[1])))
    return state, *jax.lax.map(predict, (ys, targets), batch_size=size)


def step_clamped(cell: Any, params: Any, state: Any, x: jax.Array, clamps: Clamps) -> tuple[Any, jax.Array]:
    """One step of a cell in which the units of ``clamps`` are held; see the words of the module.

    Raises:
        ValueError: for a leaf that cannot be held, as the step does not name it.
    """
    number = itertools.count(1)

    def visit(cell: Any, params: Any, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        layer, axes = f"L{next(number)}.", len(batch_shape(cell, state))
        mine = {leaf.removeprefix(layer): clamp for leaf, clamp in clamps.items() if leaf.startswith(layer)}

        def hold(value: jax.Array, mask: Any, at: Any) -> jax.Array:
            mask, at = (jnp.reshape(array, value.shape[axes:]) for array in (mask, at))
            return jnp.where(mask, at.astype(value.dtype), value)

        step = functools.partial(observe, cell.step, params, state, x)
        if not mine:
            return cell.step(params, state, x)
        names = list(step()[1])
        for name in mine:
            if name not in names:
                can = ", ".join(layer + known for known in names) or "nothing"
                raise ValueError(
                    f"ablate: {layer}{name} cannot be held; of {type(cell).__name__} {can} can, which its step names; "
                    f"take one of these, or {HOW_TO_NAME}."
                )
        return step(hold={name: functools.partial(hold, mask=m, at=at) for name, (m, at) in mine.items()})[0]

    return step_layers(cell, params, state, x, visit)

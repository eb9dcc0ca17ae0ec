r"""Searches every unit of a network for what it tells about a text: against labels, on held-out text, with a control.

The first half of the text chooses: the direction of a unit (high or low where the label holds), its threshold, and its
place in the ranking. The second half scores. The control scores the same units against the same labels, shifted
circularly by random lengths, which keeps all that is periodic or slow in a label and in a unit and breaks the tie
between the two. The *largest* score that any unit reaches on a shifted label is what a unit must beat: so the number
of units that were tried counts, however they depend on each other (Westfall and Young, 1993). Each
label has a p-value of its own: who tries many labels finds one in twenty below 0.05 by chance.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.analysis.recording import SymbolModel, leaves_of, read_text
from rnnjax.analysis.units import select_units
from rnnjax.kinds import public

__all__ = ["LabelSearch", "UnitScore", "search_units"]


class UnitScore(NamedTuple):
    """How well one unit tells a label."""

    unit: str
    score: float  # held out: the AUC in the unit's direction, or the correlation times the direction
    direction: int  # 1: high where the label is; -1: low
    first: float  # the score on the first half, by which the units are ranked
    p_value: float  # the share of controls in which the best of all units does as well
    accuracy: float  # balanced, held out, at the threshold; nan for a continuous label
    threshold: float  # of the unit's value, chosen on the first half
    error: float  # the score is exact up to this


@dataclasses.dataclass(frozen=True)
class LabelSearch:
    """The scores of all units for one label; arrays are ``[units]``, in the order of ``units``."""

    label: str
    binary: bool
    share: float  # of the second half where the label holds; the mean of a continuous label
    units: tuple[str, ...]
    score: np.ndarray
    direction: np.ndarray
    first: np.ndarray
    accuracy: np.ndarray
    threshold: np.ndarray
    error: np.ndarray
    control: np.ndarray  # [shifts]: the best score of any unit, in either direction, on every shifted label
    mean: np.ndarray  # of each unit, over the text

    @property
    def bar(self) -> float:
        """The best score of any unit in any control: what is not above it may be chance."""
        return float(self.control.max())

    def p_value(self, score: float) -> float:
        """The share of controls, the label itself counted among them, whose best unit reaches ``score``."""
        return float((1 + (self.control >= score).sum()) / (1 + len(self.control)))

    def top(self, count: int | None = None) -> list[UnitScore]:
        """The best units, ranked on the first half of the text; so the score on the second is not chosen for size."""
        p_values = np.array([self.p_value(score) for score in self.score.tolist()])
        columns = (self.score, self.direction, self.first, p_values, self.accuracy, self.threshold, self.error)
        order = np.argsort(-self.first, kind="stable")[:count].tolist()
        return [UnitScore(self.units[k], *(column[k].item() for column in columns)) for k in order]


@public
def search_units(
    model: SymbolModel,
    ids: np.ndarray,
    labels: Mapping[str, np.ndarray],
    *,
    select: Sequence[str] | None = None,
    bins: int = 256,
    shifts: int = 99,
    seed: int = 0,
    **reading: Any,
) -> dict[str, LabelSearch]:
    r"""Scores every unit against every label; see the words of the module for the protocol.

    Binary labels: AUC, from histograms of ``bins`` bins per unit. Values of one bin count as equal, so what it differs
    from the exact AUC is at most half the share of pairs within a bin, which is reported. Continuous labels: Pearson's
    correlation. The text is read once, and its second half once more for the control; memory depends on the units, the
    bins and the labels, and not on the text.

    Args:
        model: the model.
        ids: integers ``[n]``, of a text that the model was not trained on.
        labels: by name, bool ``[n]`` or float ``[n]``, as `label_text` makes them.
        select: which units, see `select_units`; by default all states and gates.
        bins: of each unit's histogram.
        shifts: K, controls for each label; the least p-value is 1 / (K + 1).
        seed: of the shifts.
        **reading: options of `read_text`: ``streams``, ``window``, ``warmup``, ``starts``. With one stream the second
            half is read from the start of the text on, so that it is exact too.

    Raises:
        ValueError: for a label that is constant in one half of the text or of another length, or as `read_text` does.
    """
    half = len(ids) // 2
    for name, label in labels.items():
        if len(label) != len(ids) or any(
            np.ptp(part.astype(np.float32)) == 0 for part in (label[:half], label[half:]) if len(part)
        ):
            raise ValueError(
                f"search: label {name!r} must have one number for each of {len(ids)} symbols and vary in both halves "
                f"of the text, got {len(label)} of them, mean {np.mean(label):g}; use a longer text, or leave it out."
            )
    for name, value, least in (("bins", bins, 2), ("shifts", shifts, 1), ("the text", len(ids), 40)):
        if value < least:
            raise ValueError(f"search: {name} must be at least {least}, got {value}.")
    leaves = leaves_of(model.cell, model.params, model.inputs[0])
    selection = select_units(select, leaves)
    kinds = tuple(leaves[leaf].kind for leaf, _ in selection)
    every = {leaf: range(leaves[leaf].size) if units is None else units for leaf, units in selection}
    names = tuple(f"{leaf}.{unit}" for leaf, units in every.items() for unit in units)
    if reading.get("streams") == 1:
        reading["warmup"] = len(ids)
    scanner = _Scanner(model, ids, kinds, bins, {"select": select, **reading})
    halves = [_score_half(scanner, labels, begin, end) for begin, end in ((0, half), (half, len(ids)))]
    shift = np.random.default_rng(seed).integers(
        (len(ids) - half) // 20 + 1, len(ids) - half - (len(ids) - half) // 20, shifts
    )
    controls = _control(scanner, labels, half, halves[1], shift)
    mean = sum(part.total for part in halves) / len(ids) + scanner.offset
    return {
        name: _summarize(
            scanner, name, label[half:], names, [part.parts[name] for part in halves], controls[name], mean
        )
        for name, label in labels.items()
    }


class _Binary(NamedTuple):
    ones: np.ndarray  # [units, bins]: how often, where the label holds
    zeros: np.ndarray

    def auc(self) -> tuple[np.ndarray, np.ndarray]:
        """The AUC where values of one bin are equal, and how far from the exact one it can be."""
        pairs = self.ones[0].sum() * self.zeros[0].sum()
        below = np.cumsum(self.zeros, axis=1) - self.zeros
        equal = (self.ones * self.zeros).sum(axis=1) / 2
        return ((self.ones * below).sum(axis=1) + equal) / pairs, equal / pairs

    def accuracy(self) -> np.ndarray:
        """``[units, bins]``: balanced accuracy of "the label holds from this bin on"."""
        hits = 1 - (np.cumsum(self.ones, axis=1) - self.ones) / self.ones[0].sum()
        return (hits + (np.cumsum(self.zeros, axis=1) - self.zeros) / self.zeros[0].sum()) / 2


class _Half(NamedTuple):
    counts: np.ndarray  # [units, bins]
    total: np.ndarray  # [units]: sums of the values above the scanner's offset
    parts: dict[str, Any]  # by label: `_Binary`, or the correlation [units]
    deviation: np.ndarray  # [units]: n times the variance


class _Scanner:
    """Reads a text, and puts every value in its bin."""

    def __init__(self, model: SymbolModel, ids: np.ndarray, kinds: tuple[str, ...], bins: int, options: Any) -> None:
        self.model, self.ids, self.kinds, self.bins, self.options = model, ids, kinds, bins, options
        # The first window that counts shows the range of every unit; values outside go to the outermost bins.
        part = next(part for part in read_text(model, ids, **options) if part.counted.any())
        values = tuple(part.values.values())
        joined = np.concatenate([v[part.counted] for v in values], axis=-1)  # [m, units]
        self.offset = joined.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.scale = np.median(np.abs(joined), axis=0) + 1e-6
        spread = np.asarray(_spread(values, self.scale, kinds))[part.counted]
        low, high = spread.min(axis=0), spread.max(axis=0)
        margin = 0.05 * (high - low) + 1e-6
        self.low, self.width = low - margin, (high - low + 2 * margin) / bins
        self.columns = np.cumsum([0, *(v.shape[-1] for v in values)])

    def read(self, begin: int, end: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Positions ``[m]``, weights ``[m]`` (1 counts, else 0), values ``[m, units]`` above the offset, and bins."""
        grid = (self.offset, self.scale, self.low, self.width)
        for part in read_text(self.model, self.ids, begin=begin, end=end, **self.options):
            values, places = _digitize(tuple(part.values.values()), grid, self.kinds, self.bins)
            units = values.shape[-1]
            at, weight = part.positions.ravel(), part.counted.ravel().astype(np.float32)
            yield at, weight, np.asarray(values).reshape(-1, units), np.asarray(places).reshape(-1, units)

    def thresholds(self, edge: np.ndarray) -> np.ndarray:
        """The values ``[units]`` at the lower edges of bins ``[units]``."""
        spread = self.low + edge * self.width
        out = self.scale * np.sinh(spread)
        for kind, start, stop in zip(self.kinds, self.columns, self.columns[1:]):
            if kind == "gate":
                out[start:stop] = 1 / (1 + np.exp(-spread[start:stop]))
            elif kind == "candidate":
                out[start:stop] = np.tanh(spread[start:stop])
        return out


def _spread(values: tuple[Any, ...], scale: Any, kinds: tuple[str, ...]) -> jax.Array:
    """All leaves side by side, on scales that draw apart where values crowd: at 0 and 1, at +-1, and around zero."""
    out, start = [], 0
    for value, kind in zip(values, kinds, strict=True):
        stop = start + value.shape[-1]
        if kind == "gate":
            inside = jnp.clip(value, 1e-7, 1 - 1e-7)
            out.append(jnp.log(inside) - jnp.log1p(-inside))
        elif kind == "candidate":
            out.append(jnp.arctanh(jnp.clip(value, -1 + 1e-7, 1 - 1e-7)))
        else:
            out.append(jnp.arcsinh(value / scale[start:stop]))
        start = stop
    return jnp.concatenate(out, axis=-1)


@functools.partial(jax.jit, static_argnames=("kinds", "bins"))
def _digitize(values: tuple[jax.Array, ...], grid: Any, kinds: tuple[str, ...], bins: int) -> tuple[Any, jax.Array]:
    offset, scale, low, width = grid
    spread = (_spread(values, scale, kinds) - low) / width
    return jnp.concatenate(values, axis=-1) - offset, jnp.clip(spread, 0, bins - 1).astype(jnp.int32)


def _score_half(scanner: _Scanner, labels: Mapping[str, np.ndarray], begin: int, end: int) -> _Half:
    """One reading of a half: histograms for binary labels, and what correlations are made of for the others."""
    units, bins = len(scanner.offset), scanner.bins
    rows = np.arange(units, dtype=np.int32) * bins
    binary = [name for name, label in labels.items() if label.dtype == bool]
    continuous = [name for name in labels if name not in binary]
    centres = {name: float(np.mean(labels[name][begin:end], dtype=np.float64)) for name in continuous}
    counts = np.zeros((units, bins), np.int64)
    ones = {name: np.zeros((units, bins), np.int64) for name in binary}
    sums = np.zeros((units, 1 + len(continuous)))
    squares = np.zeros(units)

    def histogram(places: np.ndarray) -> np.ndarray:
        return np.bincount(places.ravel(), minlength=units * bins).reshape(units, bins)

    for at, weight, values, places in scanner.read(begin, end):
        counted = weight > 0
        columns = [weight, *(weight * (labels[name][at] - centres[name]) for name in continuous)]
        sums += values.T @ np.stack(columns, axis=1).astype(np.float32)
        squares += weight @ (values * values)
        if binary:
            places = places + rows
            counts += histogram(places[counted])
        for name in binary:
            ones[name] += histogram(places[counted & labels[name][at]])
    deviation = np.maximum(squares - sums[:, 0] ** 2 / (end - begin), 0)
    parts: dict[str, Any] = {name: _Binary(ones[name], counts - ones[name]) for name in binary}
    for column, name in enumerate(continuous, 1):
        y = labels[name][begin:end].astype(np.float64) - centres[name]
        parts[name] = _divide(sums[:, column], np.sqrt(deviation * (y @ y)))
    return _Half(counts, sums[:, 0], parts, deviation)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a / b``, and 0 for a unit that never changes."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), 0.0)


def _control(
    scanner: _Scanner, labels: Mapping[str, np.ndarray], half: int, second: _Half, shift: np.ndarray
) -> dict[str, np.ndarray]:
    """The best score of any unit on each shifted label, ``[shifts]``, for every label.

    An AUC is linear in the label given the ranks of the values, so all of them are one matmul.
    """
    size, units = len(scanner.ids) - half, len(scanner.offset)
    before = np.cumsum(second.counts, axis=1) - second.counts
    ranks = ((before + second.counts / 2) / size).astype(np.float32)  # [units, bins]: the share of values below
    rows = np.arange(units, dtype=np.int32) * scanner.bins
    centred = {
        name: (label[half:] - np.mean(label[half:], dtype=np.float64)).astype(np.float32)
        for name, label in labels.items()
    }
    sums = {name: np.zeros((units, len(shift))) for name in labels}
    ranked = any(label.dtype == bool for label in labels.values())
    for at, weight, values, places in scanner.read(half, len(scanner.ids)):
        rank = ranks.ravel()[places + rows] - 0.5 if ranked else values
        shifted = (at[:, None] - half - shift) % size  # [m, shifts]
        for name, label in centred.items():
            sums[name] += (rank if labels[name].dtype == bool else values).T @ (label[shifted] * weight[:, None])
    best = {}
    for name, label in labels.items():
        y = centred[name].astype(np.float64)
        if label.dtype == bool:
            ones = int(label[half:].sum())
            # mean rank of the ones = (ones / 2 + zeros * auc) / size, and the centred label sums to zero
            scores = 0.5 + sums[name] * size / (ones * (size - ones))
            best[name] = np.maximum(scores, 1 - scores).max(axis=0)
        else:
            scores = _divide(sums[name], np.sqrt(second.deviation * (y @ y))[:, None])
            best[name] = np.abs(scores).max(axis=0)
    return best


def _summarize(
    scanner: _Scanner, name: str, label: np.ndarray, units: tuple[str, ...], parts: Sequence[Any], *found: np.ndarray
) -> LabelSearch:
    """The scores of a label from its ``parts`` in both halves; ``found`` is the control, and the mean of each unit."""
    first, second = parts
    share = float(np.mean(label, dtype=np.float64))
    if not isinstance(first, _Binary):
        direction = np.where(first < 0, -1, 1)
        nothing = np.full(len(units), np.nan)
        scores = (second * direction, direction, np.abs(first), nothing, nothing, np.zeros(len(units)))
        return LabelSearch(name, False, share, units, *scores, *found)
    (chosen, _), (held_out, error) = first.auc(), second.auc()
    direction = np.where(chosen < 0.5, -1, 1)

    def directed(score: np.ndarray) -> np.ndarray:
        way = direction.reshape(-1, *(1,) * (score.ndim - 1))
        return np.where(way > 0, score, 1 - score)

    accuracy = directed(first.accuracy())
    # Of equally good edges the middle one, if those between the first and the last are no worse.
    start, stop = np.argmax(accuracy, axis=1), accuracy.shape[1] - 1 - np.argmax(accuracy[:, ::-1], axis=1)
    rows, middle = np.arange(len(accuracy)), (start + stop) // 2
    edge = np.where(accuracy[rows, middle] == accuracy[rows, start], middle, start)
    accuracy = directed(second.accuracy())[rows, edge]
    scores = (directed(held_out), direction, directed(chosen), accuracy, scanner.thresholds(edge), error)
    return LabelSearch(name, True, share, units, *scores, *found)

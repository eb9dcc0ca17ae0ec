"""Where the boxes and lines of a small directed graph go: columns, an order in each, and heights.

The method of K. Sugiyama, S. Tagawa and M. Toda, Methods for Visual Understanding of Hierarchical System Structures,
1981, for graphs of some twenty boxes: a line that passes a column gets a lane there, the order in a column is the one
with the fewest crossings that moving single boxes finds from some starts, and every box comes as near to those it is
joined to as its neighbours in the column allow.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["Layout", "lay_out"]

BOX, LANE = 30.0, 9.0  # half of the height that a box and a lane take

Node = tuple[str, int]  # a value in a column: its box in its own column, its lane in those to the right


class Layout(NamedTuple):
    """Places of the boxes, and for each line the places that it passes."""

    column: dict[str, int]
    height: dict[Node, float]
    routes: list[tuple[str, str, list[Node]]]
    total: float


def lay_out(sources: Iterable[str], needs: Mapping[str, Iterable[str]]) -> Layout:
    """``needs`` says for each value, in an order in which it can be computed, what it is computed from."""
    column = dict.fromkeys(sources, 0)
    for name, wanted in needs.items():
        column[name] = 1 + max((column[one] for one in wanted), default=0)
    rank = {name: k for k, name in enumerate(column)}

    routes = []
    for name, wanted in needs.items():
        for one in sorted(wanted, key=rank.__getitem__):
            routes.append((one, name, [(one, c) for c in range(column[one], column[name])] + [(name, column[name])]))
    links = sorted({pair for _, _, stops in routes for pair in itertools.pairwise(stops)})
    nodes = {(name, c) for name, c in column.items()} | {node for pair in links for node in pair}
    columns = [sorted((node for node in nodes if node[1] == c), key=lambda node: rank[node[0]])
               for c in range(1 + max(column.values()))]  # fmt: skip
    _order(columns, links, rank)
    height = _heights(columns, links, column)
    low, high = min(height[n] - _half(n, column) for n in nodes), max(height[n] + _half(n, column) for n in nodes)
    return Layout(column, {node: y - low for node, y in height.items()}, routes, high - low)


def _half(node: Node, column: Mapping[str, int]) -> float:
    return BOX if column[node[0]] == node[1] else LANE


STARTS = 24


def _order(columns: list[list[Node]], links: list[tuple[Node, Node]], rank: Mapping[str, int]) -> None:
    """The order with the fewest crossings, and among those the one that is nearest to that of the names."""
    between: list[list[tuple[Node, Node]]] = [[] for _ in columns]
    for a, b in links:
        between[a[1]].append((a, b))

    def cost(columns: list[list[Node]], around: int | None = None) -> tuple[int, int]:
        """Of all columns, or of what one of them can change."""
        crossings = inversions = 0
        for gap in range(len(columns) - 1) if around is None else (around - 1, around):
            if 0 <= gap < len(columns) - 1:
                at = {node: k for side in (gap, gap + 1) for k, node in enumerate(columns[side])}
                ends = [(at[a], at[b]) for a, b in between[gap]]
                crossings += sum((p[0] - q[0]) * (p[1] - q[1]) < 0 for p, q in itertools.combinations(ends, 2))
        for nodes in columns if around is None else [columns[around]]:
            names = [rank[node[0]] for node in nodes]
            inversions += sum(p > q for p, q in itertools.combinations(names, 2))
        return crossings, inversions

    def improve(columns: list[list[Node]]) -> None:
        """Moves one box or lane after the other to its best place, until that changes nothing."""
        better = True
        while better:
            better = False
            for c, nodes in enumerate(columns):
                for node in list(nodes):
                    before, best = list(nodes), (cost(columns, c), nodes.index(node))
                    for k in range(len(nodes)):
                        nodes.remove(node)
                        nodes.insert(k, node)
                        best = min(best, (cost(columns, c), k), key=lambda one: one[0])
                    nodes.remove(node)
                    nodes.insert(best[1], node)
                    better = better or nodes != before

    mix, tries = random.Random(0), []
    for start in range(STARTS):
        one = [list(nodes) if start == 0 else mix.sample(nodes, len(nodes)) for nodes in columns]
        improve(one)
        tries.append(one)
    columns[:] = min(tries, key=cost)


def _heights(columns: list[list[Node]], links: list[tuple[Node, Node]], column: Mapping[str, int]) -> dict[Node, float]:
    """Every node near the mean of its neighbours; lanes pull more, so that long lines are straight."""
    height: dict[Node, float] = {}
    for nodes in columns:
        total, y = sum(2 * _half(node, column) for node in nodes), 0.0
        for node in nodes:
            height[node] = y + _half(node, column) - total / 2
            y += 2 * _half(node, column)
    joined: dict[Node, list[tuple[Node, float]]] = {node: [] for node in height}
    for a, b in links:
        weight = {2 * BOX: 1.0, BOX + LANE: 2.0, 2 * LANE: 8.0}[_half(a, column) + _half(b, column)]
        joined[a].append((b, weight))
        joined[b].append((a, weight))
    for _ in range(60):
        for nodes in (*columns, *reversed(columns)):
            wanted = []
            for node in nodes:
                weight = sum(w for _, w in joined[node])
                mean = sum(w * height[other] for other, w in joined[node]) / weight if weight else height[node]
                wanted.append((mean, weight or 1.0))
            for node, y in zip(nodes, _apart(wanted, [_half(node, column) for node in nodes]), strict=True):
                height[node] = y
    return height


def _apart(wanted: list[tuple[float, float]], halves: list[float]) -> list[float]:
    """The heights nearest to the wanted ones, by weight, in this order and without overlap (pooled neighbours)."""
    offsets = list(itertools.accumulate((a + b for a, b in itertools.pairwise(halves)), initial=0.0))
    blocks: list[list[float]] = []  # mean, weight, members
    for (y, weight), offset in zip(wanted, offsets, strict=True):
        blocks.append([y - offset, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            y2, w2, n2 = blocks.pop()
            y1, w1, n1 = blocks.pop()
            blocks.append([(y1 * w1 + y2 * w2) / (w1 + w2), w1 + w2, n1 + n2])
    means = [mean for mean, _, members in blocks for _ in range(int(members))]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]

"""Strings of formal languages, symbol by symbol, and which symbols may come next."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .batch import Batch

__all__ = ["COUNTED", "REBER", "counted", "embedded_reber", "reber_table"]

REBER = "BTPSXVE"
# From each node of Reber's graph: the symbol of an edge and the node that it leads to.
GRAPH = ((("T", 1), ("P", 2)), (("S", 1), ("X", 3)), (("T", 2), ("V", 4)), (("X", 2), ("S", 5)), (("P", 3), ("V", 5)))
COUNTED = "Sabc"  # the start, which is also what ends a string, and the letters


@functools.cache
def reber_table(continual: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The embedded grammar as an automaton: symbol and next node of both edges, and what is legal, ``[nodes, 7]``.

    >>> symbols, follow, legal = reber_table(False)
    >>> node, said = 0, ""
    >>> for edge in (0, 1, 0, 0, 1, 1, 0, 0, 0):  # edges 0 and 1 of every node on the way
    ...     said, node = said + REBER[symbols[node, edge]], int(follow[node, edge])
    >>> said
    'BPBTXSEPE'
    """
    edges: list[tuple[tuple[str, int], ...]] = [(("B", 1),), (("T", 2), ("P", 10))]
    for branch, first in (("T", 2), ("P", 10)):  # B, the six nodes of the graph, and the symbol of the branch
        edges.append((("B", first + 1),))
        edges += [tuple((symbol, first + 1 + node) for symbol, node in node_edges) for node_edges in GRAPH]
        edges += [(("E", first + 7),), ((branch, 18),)]
    edges.append((("E", 0 if continual else 19),))
    edges.append((("E", 19),))  # after the end
    symbols, follow = np.zeros((20, 2), np.int32), np.zeros((20, 2), np.int32)
    legal = np.zeros((20, len(REBER)), bool)
    for node, ways in enumerate(edges):
        for edge in (0, 1):
            symbol, to = ways[min(edge, len(ways) - 1)]
            symbols[node, edge], follow[node, edge] = REBER.index(symbol), to
            legal[node, REBER.index(symbol)] = True
    return symbols, follow, legal


def embedded_reber(key: Any, steps: int, batch: int, *, continual: bool) -> Batch:
    """Strings of the embedded grammar, one a row or one after the other; the next symbol is asked at every step."""
    symbols, follow, legal = (jnp.asarray(array) for array in reber_table(continual))
    edges = jax.random.bernoulli(key, 0.5, (steps + 1, batch)).astype(int)

    def walk(node: jax.Array, edge: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return follow[node, edge], (node, symbols[node, edge])

    nodes, said = jax.lax.scan(walk, jnp.zeros(batch, int), edges)[1]
    return Batch(
        xs=jax.nn.one_hot(said[:-1], len(REBER)),
        targets=said[1:],
        asked=nodes[1:] < 19,
        legal=legal[nodes[1:]],
    )


def counted(lengths: Any, letters: int, longest: int) -> Batch:
    """Strings a^n b^n, or a^n b^n c^n, of each length n ``[B]``; asked is which symbols may come next.

    >>> batch = counted(jnp.array([2]), 2, 2)
    >>> "".join(COUNTED[i] for i in batch.xs[:, 0].argmax(-1))
    'Saabb'
    >>> batch.targets[:, 0].astype(int).tolist()
    [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    """
    n = jnp.asarray(lengths)[None]
    t = jnp.arange(letters * longest + 1)[:, None]
    said = jnp.where(t == 0, 0, jnp.minimum((t - 1) // n + 1, letters))
    after = jnp.where(t >= letters * n, 0, t // n + 1)  # once the letters a are over, all is known
    legal = jax.nn.one_hot(jnp.where(t <= n, jnp.minimum(t, 1) + 1, after), len(COUNTED))
    legal = jnp.where(((t >= 1) & (t <= n))[..., None], legal.at[..., 1].set(1.0), legal)
    return Batch(
        xs=jax.nn.one_hot(said, len(COUNTED)),
        targets=legal,
        asked=t <= letters * n,
    )

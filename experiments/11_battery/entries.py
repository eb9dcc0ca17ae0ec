"""The cells that are judged, in the order in which they run, and how fast each of them learns."""

from typing import Any, NamedTuple

from rnnjax.cells import CELLS, cell_from_name

__all__ = ["ENTRIES", "LEFT_OUT", "Entry", "cell_of", "entry"]


class Entry(NamedTuple):
    """A cell as the command line names it, and its learning rate for all problems."""

    name: str  # of files and tables
    spec: str
    rate: float


SLOW, FAST = 3e-3, 1e-2  # for plain networks and the highway, and for cells with gates and the LRU
ENTRIES = (
    Entry("elman", "elman", SLOW),
    Entry("lstm", "lstm", FAST),
    Entry("gru", "gru", FAST),
    Entry("chrono_lstm", "lstm(forget_bias=Chrono(100))", FAST),
    Entry("peephole_lstm", "peephole_lstm", FAST),
    Entry("min_gru", "min_gru", FAST),
    Entry("lru", "lru", FAST),
    Entry("indrnn", "indrnn", SLOW),
    Entry("irnn", "elman(activation=relu, input_init=Glorot(0.1), recurrent_init=Identity())", 1e-3),
    Entry("slstm", "slstm", FAST),
    Entry("min_lstm", "min_lstm", FAST),
    Entry("sru", "sru", FAST),
    Entry("mgu", "mgu", FAST),
    Entry("coupled_lstm", "coupled_lstm", FAST),
    Entry("diagonal_lstm", "diagonal_lstm", FAST),
    Entry("diagonal_gru", "diagonal_gru", FAST),
    Entry("leaky", "leaky", SLOW),
    Entry("mi_lstm", "mi_lstm", FAST),
    Entry("mi_rnn", "mi_rnn", SLOW),
    Entry("minimal_rnn", "minimal_rnn", FAST),
    Entry("gru_reset_before", "gru_reset_before", FAST),
    Entry("projected_lstm", "projected_lstm", FAST),
    Entry("layernorm_lstm", "layernorm_lstm", FAST),
    Entry("layernorm_gru", "layernorm_gru", FAST),
    Entry("highway", "highway", SLOW),
)
LEFT_OUT = {"conv_lstm": "it reads grids, and these problems have none"}


def entry(spec: str) -> Entry:
    """A cell of the table, or any other that `rnnjax.cells.cell_from_name` knows, as ``file.py:Cell``."""
    for known in ENTRIES:
        if spec in (known.name, known.spec):
            return known
    short = spec.partition("(")[0].rpartition(":")[2] if ".py:" in spec else spec
    return Entry(short, spec, FAST)


def cell_of(found: Entry, hidden_size: int) -> Any:
    """The cell.

    Raises:
        ValueError: if there is none of this name, or it is left out.
    """
    name = found.spec.partition("(")[0]
    if name in LEFT_OUT and name in CELLS:
        raise ValueError(f"--cell: {name} has no part in this: {LEFT_OUT[name]}.")
    return cell_from_name(found.spec, hidden_size)

"""How the CUDA kernels are cut into blocks: every rule on sizes, with the measurements behind it.

All times are microseconds a step on one H200 (132 processors), T = 1024, LSTM, bfloat16, kernels alone.

* A group of ``rows`` rows of the batch is served by ``padded / units`` blocks, each of which owns ``units`` units with
  all their gates. The blocks of one group wait for each other, so they must all be on the card at once; groups that
  find no room wait until others are through, which takes twice the time (H=1024 B=16: 3.78 in two waves, 2.24 in one).
* Forward, best of those that were tried: 8 rows and 8 units where all blocks then have a processor (H=512 B=16 0.93,
  against 1.03 with 16 units), else 16 units, then 16 or 32 rows (H=768 B=64: 2.36 with 24 units and 16 rows).
  All points lie near ``0.78 + 0.0080 x`` for 8 rows and ``0.78 + 0.0113 x`` for more (within 3 % and 10 %), where x is
  the number of mma instructions that a quarter of a processor executes in a step.
* Backward: every block reads the cotangents of all gates, so a cluster of blocks shares that work. H=768 B=16: alone
  2.17 to 2.40, two 1.92 to 2.04, four 1.69 to 1.87, eight 1.81 to 2.08. Small ones are best alone: H=256 0.99 to 1.27
  against 1.41 to 1.54. At 64 rows: H=512 2.43, H=768 4.67, H=1024 7.83, the weakest part.
* Groups of 8 rows take what the formulas say, those of 16 and 32 rows 1.2 to 1.4 times as long. Of 142 candidates for
  23 kernels (H 128 to 2048, B 16 and 64, all formats), the choice with these factors is the fastest in 19, up to 15 %
  slower in the others; without them up to 1.6 times (H=1024 B=64 backward: 10.4 against 6.3, all in one call).
* Of 132 processors, 66 clusters of two, 30 of four (not 33) and 15 of eight fit.
* Small networks, forward: a cluster that serves 8 rows by itself, without memory between (`_alone`). A prototype of it
  took 0.71 at H=64 and at H=128, B=16, 0.72 at H=256, B=1, and there 0.88 at B=16 and 0.89 at B=64, where the exchange
  through memory takes 0.78 (H=128 B=16) and 0.79, 0.83 and 1.06 (H=256). **The kernel of this package has not run on a
  GPU yet**: what the rule says of it is a fit to those five points. Larger ones are slower that way (H=384 1.59, H=512
  2.27), and so was the backward pass but at one of the points measured (H=256 B=64: 1.65 against 1.84), so it has none.
* Large blocks are slower than that (H=768 B=16, an early version: 24 units 1.62, 32 2.28), hence a surcharge.
* 8 warps a block; 6 and 12 are within 5 %, 4 spill (1.74 against 1.34). As many weights as registers hold stay there;
  three products in TF32 need room for their parts (H=768: with 2 chunks in registers 2.65, with 4 3.70, which spilled).
* A cell without ``w_hh`` has a thread a unit and row. Not measured yet: an estimate from the bytes that steps read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

__all__ = ["Card", "Facts", "Tiles", "backward_tiles", "forward_tiles", "is_worth_it", "unit_tiles", "wave_pieces"]

_WARPS = 8
_REGISTERS = 250  # of a thread, at 8 warps
_WIDE = {False: {16: 1.3, 32: 1.2}, True: {16: 1.2, 32: 1.4}}  # groups of more than 8 rows take that much longer
_CLUSTERS = {1: 1.0, 2: 1.0, 4: 0.91, 8: 0.91}  # the part of the processors that clusters of that size can use


@dataclasses.dataclass(frozen=True)
class Card:
    """What is to be known about a GPU.

    Attributes:
        capability: compute capability, 90 for 9.0.
        processors: streaming multiprocessors.
        alone: whether clusters may serve rows by themselves; a trial has to say so.
    """

    capability: int
    processors: int
    alone: bool = False

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one block can have (CUDA C++ Programming Guide, technical specifications)."""
        kib = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
        return kib.get(self.capability, 99) * 1024

    @property
    def has_clusters(self) -> bool:
        """Whether blocks can read each other's shared memory."""
        return self.capability >= 90 and self.capability // 10 != 12


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the kernels need to know about a cell and a call.

    Attributes:
        gates: G.
        seen: numbers that the update sees of its projections: G, and one more for each gate not seen as a sum.
        states: leaves of the state besides ``h``.
        own: parameters of the update, one number a unit.
        hidden_size: H.
        rows: B of one network, all batch axes in one.
        format: what is multiplied: ``"bf16"``, ``"f16"``, ``"tf32"`` or ``"tf32x3"``.
        networks: with weights of their own that one launch runs.
    """

    gates: int
    seen: int
    states: int
    own: int
    hidden_size: int
    rows: int
    format: str
    networks: int = 1

    @property
    def item_bytes(self) -> int:
        """Bytes of a number that is multiplied."""
        return 2 if self.format in ("bf16", "f16") else 4


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a kernel is cut.

    Attributes:
        padded: H with padding.
        units: of a block.
        rows: of a group.
        warps: of a block.
        resident: chunks of weights that a warp keeps in registers.
        cluster: blocks of a cluster; forward those of a group, which exchange ``h`` among themselves.
        groups: of rows, of all networks.
        shared_bytes: dynamic shared memory of a block.
        cost: an estimate, microseconds a step.
    """

    padded: int
    units: int
    rows: int
    warps: int
    resident: int
    cluster: int
    groups: int
    shared_bytes: int
    cost: float

    @property
    def blocks(self) -> int:
        """Of the launch."""
        return self.padded // self.units * self.groups


def forward_tiles(facts: Facts, card: Card) -> Tiles | None:
    """The forward kernel's tiles; None where a group does not fit on the card."""
    found = list(_candidates(facts, card, backward=False))
    if card.alone and card.has_clusters:
        found += [tiles for cluster in (2, 4, 8) if (tiles := _alone(facts, card, cluster))]
    return min(found, key=lambda tiles: tiles.cost, default=None)


def backward_tiles(facts: Facts, card: Card) -> Tiles | None:
    """The backward kernel's tiles; None where a group does not fit on the card."""
    return min(_candidates(facts, card, backward=True), key=lambda tiles: tiles.cost, default=None)


def unit_tiles(facts: Facts) -> Tiles:
    """The tiles of both kernels of a cell without ``w_hh``: a thread has a unit of a row."""
    threads = 128
    every = facts.hidden_size * facts.rows * facts.networks
    pairs = _ceil(every, threads) * threads
    numbers = every * (2 * facts.seen + facts.states + 2)
    return Tiles(pairs, threads, 8, threads // 32, 1, 1, 1, 0, 0.1 + 4 * numbers / 3e6)


def is_worth_it(facts: Facts, card: Card) -> bool:
    """Whether both kernels together take less time than loops of XLA: not for batches of many thousands of rows.

    XLA's own is an estimate: 36 microseconds a step, forward and backward, where launches are all (H=768 B=16, and
    no less for smaller ones); beyond that three matmuls at 0.4 of the peak, and ten passes over the gates at 3 TB/s.
    """
    forward, backward = forward_tiles(facts, card), backward_tiles(facts, card)
    if forward is None or backward is None:
        return False
    peak = {"bf16": 1, "f16": 1, "tf32": 1 / 2, "tf32x3": 1 / 15}[facts.format] * 989e6 * card.processors / 132
    numbers = facts.networks * facts.rows * facts.gates * facts.hidden_size
    return forward.cost + backward.cost < 36 + 6 * numbers * facts.hidden_size / (0.4 * peak) + 40 * numbers / 3e6


def wave_pieces(facts: Facts, card: Card, layers: int, steps: int) -> int:
    """Into how many pieces of time equal layers are cut that share launches; 1 where one after the other is faster.

    Layer after layer takes ``L T c_1`` microseconds, where ``c_N`` is the cost of a step of N networks, forward and
    backward; C pieces take ``(C + L - 1) (T / C (1.04 c_L + m) + 100)``. This is an estimate, and no GPU has been asked
    yet, so waves must promise a gain of 15 %. 100 microseconds stand for what a wave has beside its steps: 15 launches
    forward and 17 backward besides the two of the kernels (counted in what XLA makes for an H200 of two layers), of 2
    to 3 microseconds each, and a turn of two loops. m stands for copies at 3 TB/s: what the backward pass needs goes
    into arrays of all waves and out again, and matmuls of several networks have them on the first axis, where the
    kernels have time. Of an LSTM of 256 units in training, B = 16, both directions took 2.88 us where one took 2.47;
    0.16 of it are such copies, about as much the matmuls of the second direction, and 1.04 is what is left. Pieces that
    leave no step over are preferred, since others need masks.

    Args:
        facts: of one layer.
        card: the GPU; all blocks of all layers must be there at once.
        layers: L.
        steps: T.
    """
    every = dataclasses.replace(facts, networks=layers)
    alone, together = ([forward_tiles(f, card), backward_tiles(f, card)] for f in (facts, every))
    one, many = (sum(tiles.cost for tiles in found if tiles) for found in (alone, together))
    if None in alone or any(tiles is None or tiles.blocks > _room(card, tiles.cluster) for tiles in together):
        return 1

    kept = facts.item_bytes * (facts.seen + 2) + 4 * facts.states  # bytes: what the update saw, h, x, other leaves
    turned = 8 * facts.gates + 2 * facts.item_bytes * (facts.gates + 3)  # zx; and dz, twice x, h
    many = 1.04 * many + layers * facts.rows * facts.hidden_size * (4 * kept + turned) / 3e6

    def spent(pieces: int) -> float:
        length = _ceil(steps, pieces)
        return (pieces + layers - 1) * (length * many + 100) * (1.03 if steps % pieces else 1)

    pieces = min(range(1, max(2, min(steps // 16, 64))), key=spent)
    return pieces if pieces > 1 and spent(pieces) < 0.85 * layers * steps * one else 1


def _room(card: Card, cluster: int) -> int:
    """Blocks that the card holds at once, in clusters of that size."""
    return int(card.processors * _CLUSTERS[cluster])


def _candidates(facts: Facts, card: Card, *, backward: bool) -> Iterator[Tiles]:
    clusters = (1, 2, 4) if backward and card.has_clusters else (1,)
    for units in (8, 16, 24, 32, 48, 64):
        if units % 16 and not backward and facts.gates % 2:  # a gate without partner fills tiles of 16 units
            continue
        for rows in (8, 16, 32):
            if rows > 8 and rows >= 2 * facts.rows:
                continue
            for cluster in clusters:
                tiles = _tiles(facts, card, units, rows, cluster, backward=backward)
                if tiles is not None:
                    yield tiles


def _tiles(facts: Facts, card: Card, units: int, rows: int, cluster: int, *, backward: bool) -> Tiles | None:
    chunk = 64 // facts.item_bytes
    step = _multiple(units * cluster, chunk)  # of cluster too, so that k can be shared out
    padded = _ceil(facts.hidden_size, step) * step
    blocks, groups = padded // units, _ceil(facts.rows, rows) * facts.networks
    if backward and facts.gates * padded // cluster % chunk:
        return None
    at_once = _room(card, cluster) // blocks
    if at_once < 1:
        return None
    row_tiles = rows // 8
    if backward:
        chunks = facts.gates * padded // cluster // chunk
        tiles = _ceil(cluster * units, 16)
        reduce_floats = _WARPS * tiles * 16 * (rows + 2)
        extra = 32 + (2 * cluster * rows * units * 4 if cluster > 1 else 0)
    else:
        chunks = padded // chunk
        quads, pairs, singles = facts.gates // 4, facts.gates % 4 // 2, facts.gates % 2
        tiles = units // 8 * (2 * quads + pairs) + units // 16 * singles
        reduce_floats = units * _WARPS * (quads * (4 * rows + 4) + pairs * (2 * rows + 2) + singles * (rows + 2))
        extra = 16 + 4 * facts.gates * units
    # A block of few chunks has warps without any; four do then.
    warps = _WARPS if chunks > 4 else 4
    reduce_floats = reduce_floats * warps // _WARPS
    share = _ceil(chunks, warps)
    pairs_of_thread = _ceil(units * rows, 32 * warps)
    taken = _registers(facts, pairs_of_thread, tiles * row_tiles, row_tiles * share)
    taken += 18 * pairs_of_thread if backward else 0
    resident = min(share, (_REGISTERS - taken) // (8 * tiles))
    if resident < 1:
        return None
    shared = extra + 8 * reduce_floats + (share - resident) * tiles * 2 * warps * 512
    if shared > card.shared_bytes:
        return None
    products = {"bf16": 1, "f16": 1, "tf32": 2, "tf32x3": 6}[facts.format]
    work = facts.gates * units / 16 * padded / 16 * row_tiles / 4 * products
    waves = _ceil(groups, at_once)
    if backward:
        reading = 0.0011 * facts.gates * padded / cluster * facts.item_bytes / 8 * row_tiles**0.5
        cost = 0.9 + (0.2 if cluster > 1 else 0) + 0.04 * cluster + 0.008 * work + reading * 0.7
    else:
        cost = 0.78 + (0.0080 if rows == 8 else 0.0113) * work
    cost = (cost + 0.03 * max(0, units - 16)) * _WIDE[backward].get(rows, 1)
    return Tiles(padded, units, rows, warps, resident, cluster, groups, shared, cost * waves)


def _alone(facts: Facts, card: Card, cluster: int, rows: int = 8) -> Tiles | None:
    """Forward, a cluster a group: every warp has 8 units, and all of k in registers.

    Microseconds a step ``0.54 + 0.0049 m + 0.00071 n``, and at least 0.71, for m mma instructions of a quarter of a
    processor and n messages of 16 bytes to a block.
    """
    chunk, item = 64 // facts.item_bytes, facts.item_bytes
    step = _multiple(8 * cluster, chunk)
    padded = _ceil(facts.hidden_size, step) * step
    units, groups = padded // cluster, _ceil(facts.rows, rows) * facts.networks
    warps, share, tiles, row_tiles = units // 8, padded // chunk, _ceil(facts.gates, 2), rows // 8
    at_once = _room(card, cluster) // cluster
    if warps > _WARPS or at_once < 1:
        return None
    resident = min(share, (_REGISTERS - _registers(facts, 2 * row_tiles, tiles * row_tiles, row_tiles)) // (8 * tiles))
    pitch = padded if padded * item % 128 == 64 else padded + chunk
    shared = 32 + 4 * facts.gates * units + 2 * rows * item * (pitch + units)
    if resident < share or shared > card.shared_bytes:
        return None
    work = 2 * tiles * row_tiles * share * _ceil(warps, 4) * (3 if facts.format == "tf32x3" else 1)
    messages = min(rows, facts.rows) * padded * item // 16
    cost = max(0.71, 0.54 + 0.0049 * work + 0.00071 * messages)
    waves = _ceil(groups, at_once)
    return Tiles(padded, units, rows, warps, resident, cluster, groups, shared, cost * waves)


def _registers(facts: Facts, pairs: int, tiles: int, loaded: int) -> int:
    """Of a thread, beside those of weights: pairs of a unit and row, tiles of sums, tiles of h under way."""
    taken = 26 + pairs * (2 * facts.gates + facts.seen + facts.states + facts.own)
    return taken + 4 * loaded + 4 * tiles * (1 if tiles >= 4 else 2) + (80 if facts.format == "tf32x3" else 0)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _multiple(a: int, b: int) -> int:
    """The least common multiple of two sizes of which one is a power of two."""
    step = a
    while step % b:
        step += a
    return step

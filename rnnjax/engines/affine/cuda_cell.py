"""What the CUDA kernels must be told about a cell: its update and the cotangents of it, as functions in C++.

The kernels know a cell by sizes, as macros, and by four functions of one unit of one row of the batch:

    cell_seen    what the update sees of zx and zh
    cell_update  the new state and y
    cell_early   what of the backward pass depends on no cotangent: computed while other blocks still work
    cell_pull    the rest: it stands between the arrival of dh and the departure of dz, so it should be short

The rest is short since cotangents pass through a step by multiplications: `_shortened` multiplies their factors with
each other beforehand. What remains of an LSTM is five multiplications and two additions.
"""

from __future__ import annotations

import dataclasses

from rnnjax.engines.affine.emit_c import SCALAR, emit
from rnnjax.engines.affine.program import Node, Program

__all__ = ["CellText", "cell_text"]

_TARGET = dataclasses.replace(SCALAR, real="float", scalar="float")
_TRUTHS = {"gt", "lt", "ge", "le", "eq", "ne", "and", "or", "not", "xor", "is_finite"}


@dataclasses.dataclass(frozen=True)
class CellText:
    """A cell for the kernels.

    Attributes:
        gates: G.
        seen: numbers that the update sees of its projections.
        states: leaves of the state besides ``h``.
        own: parameters of the update, one number a unit.
        summed: a gate: whether the update sees ``zx + zh`` alone.
        macros: the sizes as text.
        functions: the functions as text.
    """

    gates: int
    seen: int
    states: int
    own: int
    summed: tuple[bool, ...]
    macros: str
    functions: str


def cell_text(program: Program, summed: tuple[bool, ...], h: int) -> CellText:
    """The text of a cell.

    Args:
        program: the update and its pull.
        summed: a gate: whether the update sees ``zx + zh`` alone. What it sees is ordered by gates.
        h: which leaf of the state ``h`` is.
    """
    count = len(program.new)
    others = [i for i in range(count) if i != h]
    gates, seen, states, own = len(summed), len(program.d_seen), count - 1, program.num_own
    place = {"d_y": "dy", f"old[{h}]": "h", f"d_new[{h}]": "dh"}
    for k, i in enumerate(others):
        place |= {f"old[{i}]": f"s[{k}]", f"d_new[{i}]": f"ds[{k}]"}
    given = {i: place.get(name, name) for i, name in program.names().items()}

    lines, slot, apart = [], 0, 0
    d_seen: list[tuple[int, str]] = []
    for g, together in enumerate(summed):
        if together:
            lines.append(f"  seen[{slot}] = zx[{g}] + zh[{g}];")
            d_seen.append((program.d_seen[slot], f"dzh[{g}]"))
        else:
            lines.append(f"  seen[{slot}] = zx[{g}]; seen[{slot + 1}] = zh[{g}];")
            d_seen += [(program.d_seen[slot], f"dzx[{apart}]"), (program.d_seen[slot + 1], f"dzh[{g}]")]
            apart += 1
        slot += 1 if together else 2

    fresh = [(program.new[h], "hn"), *((program.new[i], f"sn[{k}]") for k, i in enumerate(others)), (program.y, "y")]
    back = [*d_seen, (program.d_old[h], "dhd"), *((program.d_old[i], f"d_old[{k}]") for k, i in enumerate(others))]
    back += [(d, f"d_own[{i}]") for i, d in enumerate(program.d_own)]
    short, roots = _shortened(program, [i for i, _ in back])
    back = [(i, where) for i, (_, where) in zip(roots, back, strict=True)]
    early = _read_by_late(short, roots)
    kinds = ["bool" if short.nodes[i].op in _TRUTHS else "float" for i in early]
    members = " ".join(f"{kind} k{n};" for n, kind in enumerate(kinds)) or "float unused;"
    late_given = {i: where for i, where in given.items() if not where.startswith(("h", "s[", "seen"))}
    late_given |= {i: f"k.k{n}" for n, i in enumerate(early)}

    own_in = "const float (&own)[NPN]"
    state_in = "const float (&seen)[NS], float h, const float (&s)[SN]"
    text = [
        "DEV void cell_seen(const float (&zx)[G], const float (&zh)[G], float (&seen)[NS]) {",
        *lines,
        "}",
        f"DEV void cell_update({own_in}, {state_in}, float& hn, float (&sn)[SN], float& y) {{",
        emit(program, fresh, given, _TARGET),
        "}",
        f"struct Early {{ {members} }};",
        f"DEV void cell_early({own_in}, {state_in}, Early& k) {{",
        emit(short, [(i, f"k.k{n}") for n, i in enumerate(early)], given, _TARGET),
        "}",
        f"DEV void cell_pull({own_in}, const Early& k, float dh, const float (&ds)[SN], float dy,",
        "                   float (&dzh)[G], float (&dzx)[NXN], float& dhd, float (&d_old)[SN], float (&d_own)[NPN]) {",
        emit(short, back, late_given, _TARGET),
        "}",
    ]
    macros = f"#define G {gates}\n#define NS {seen}\n#define S {states}\n#define NP {own}\n"
    return CellText(gates, seen, states, own, summed, macros, "\n".join(text) + "\n")


def _read_by_late(program: Program, roots: list[int]) -> list[int]:
    """What depends on no cotangent and is read by what does, or is a result itself; parameters are at hand anyway."""
    late = program.on_cotangents()
    wanted = sorted(program.needed(roots))
    found: dict[int, None] = {}
    for i in [*(j for k in wanted if late[k] for j in program.nodes[k].args), *roots]:
        node = program.nodes[i]
        if not late[i] and node.op != "constant" and not node.name.startswith("own"):
            found[i] = None
    return list(found)


def _shortened(program: Program, roots: list[int]) -> tuple[Program, list[int]]:
    """The same with every number that depends on a cotangent written as ``factor * base`` while it is only scaled.

    ``(d * a) * b`` becomes ``d * (a * b)``, of which ``a * b`` can be computed before ``d`` is there.
    """
    nodes = list(program.nodes)
    known = {node: i for i, node in enumerate(nodes)}
    late = list(program.on_cotangents())

    def add(op: str, *args: int) -> int:
        node = Node(op, args)
        if node not in known:
            known[node] = len(nodes)
            nodes.append(node)
            late.append(any(late[j] for j in args))
        return known[node]

    def scale(factor: int | None, by: int) -> int:
        return by if factor is None else add("mul", factor, by)

    Scaled = tuple[int | None, int]  # None stands for one
    scaled: dict[int, Scaled] = {}

    def build(pair: Scaled) -> int:
        return pair[1] if pair[0] is None else add("mul", pair[1], pair[0])

    def one() -> int:
        node = Node("constant", value=1.0)
        if node not in known:
            known[node] = len(nodes)
            nodes.append(node)
            late.append(False)
        return known[node]

    wanted = sorted(program.needed(roots))
    for i in wanted:
        node = program.nodes[i]
        if not late[i]:
            continue
        is_late = [late[j] for j in node.args]
        if node.op == "mul" and is_late == [True, False]:
            factor, base = scaled[node.args[0]]
            scaled[i] = (scale(factor, node.args[1]), base)
        elif node.op == "mul" and is_late == [False, True]:
            factor, base = scaled[node.args[1]]
            scaled[i] = (scale(factor, node.args[0]), base)
        elif node.op == "div" and is_late == [True, False]:
            factor, base = scaled[node.args[0]]
            scaled[i] = (add("div", one() if factor is None else factor, node.args[1]), base)
        elif node.op == "neg":
            factor, base = scaled[node.args[0]]
            scaled[i] = (add("neg", one() if factor is None else factor), base)
        elif node.op in ("add", "sub") and is_late == [True, True] and _same(scaled, node.args):
            (first, base), (second, _) = scaled[node.args[0]], scaled[node.args[1]]
            unit = one() if first is None or second is None else 0
            factors = (unit if first is None else first, unit if second is None else second)
            scaled[i] = (add(node.op, *factors), base)
        elif node.args:
            args = tuple(build(scaled[j]) if late[j] else j for j in node.args)
            scaled[i] = (None, i if args == node.args else add(node.op, *args))
        else:
            scaled[i] = (None, i)
    ends = [build(scaled[i]) if late[i] else i for i in roots]
    order = dataclasses.replace(program, nodes=tuple(nodes))
    return _sorted(order, ends)


def _same(scaled: dict[int, tuple[int | None, int]], args: tuple[int, ...]) -> bool:
    return scaled[args[0]][1] == scaled[args[1]][1]


def _sorted(program: Program, roots: list[int]) -> tuple[Program, list[int]]:
    """Nodes only read earlier ones: `emit` goes through them in order. Inputs keep their places."""
    place: dict[int, int] = {}
    nodes: list[Node] = []

    def visit(i: int) -> int:
        if i not in place:
            node = program.nodes[i]
            args = tuple(visit(j) for j in node.args)
            place[i] = len(nodes)
            nodes.append(dataclasses.replace(node, args=args))
        return place[i]

    for i in program.inputs:
        visit(i)
    ends = [visit(i) for i in roots]
    return dataclasses.replace(program, nodes=tuple(nodes)), ends

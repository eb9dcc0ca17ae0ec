"""A cell as C++ for the native CPU engine: its pointwise functions between the loops of ``cpp/``."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence

from rnnjax.engines.affine.emit_c import TRUTHS, Target, emit
from rnnjax.engines.affine.program import Program
from rnnjax.engines.affine.tracer import REAL

__all__ = ["Layout", "cell_text", "functions_text", "handler_text", "layout_of", "loops_text", "places_text"]

_VECTORS = Target("vf", "auto", "v_", "vset({})", "real", {"not": "~{0}"})
_LONG = REAL - {"add", "sub", "mul", "neg", "max", "min", "abs", "sign", "div", "floor", "ceil", "is_finite"}
_REALS = {4: "float", 8: "double"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the loops see a cell.

    A slot is an array that the update sees: first the input's part of the gates that are seen in two parts, then the
    gates that are seen as a sum, then the state's part of the former. So either matmul fills consecutive slots.

    Attributes:
        gate_x: the gate of a slot of the input, in order.
        gate_h: the gate of a slot of the state, in order; empty for a cell without ``w_hh``.
        slots: how many there are.
        seen: an entry of what the update sees, gate by gate: its slot.
        h: the position of the state that the matmul takes.
    """

    gate_x: tuple[int, ...]
    gate_h: tuple[int, ...]
    slots: int
    seen: tuple[int, ...]
    h: int

    @property
    def first_h(self) -> int:
        """The first slot that the state's matmul fills."""
        return self.slots - len(self.gate_h)

    @property
    def vectors(self) -> int:
        """Vectors of units in a tile of the forward loop: about four with all their gates."""
        return {1: 4, 2: 2}.get(len(self.gate_x), 1)


def layout_of(num_gates: int, summed: Sequence[bool], h: int) -> Layout:
    """The layout of a cell whose gates are summed as said; ``summed`` is empty for a cell without ``w_hh``."""
    gates = range(num_gates)
    if not summed:
        return Layout(tuple(gates), (), num_gates, tuple(gates), h)
    loose = [g for g in gates if not summed[g]]
    tight = [g for g in gates if summed[g]]
    gate_x, gate_h = (*loose, *tight), (*tight, *loose)
    slots = num_gates + len(loose)
    seen: list[int] = []
    for g in gates:
        seen.append(gate_x.index(g))
        if not summed[g]:
            seen.append(slots - num_gates + gate_h.index(g))
    return Layout(gate_x, gate_h, slots, tuple(seen), h)


def _source(name: str) -> str:
    return (importlib.resources.files(__package__) / "cpp" / name).read_text(encoding="utf-8")


def loops_text(size: int) -> str:
    """Both loops, for numbers of ``size`` bytes."""
    inside = "".join(map(_source, ("matmul.hpp", "forward.hpp", "backward.hpp")))
    head = f"#define REAL {_REALS[size]}\n#include <algorithm>\n#include <atomic>\n#include <thread>\n"
    return f"{head}{_source('abi.hpp')}{_source('vector.hpp')}namespace {{\n{inside}}}\n{_source('loops.cpp')}"


def handler_text() -> str:
    """What XLA calls."""
    return f"#include <algorithm>\n{_source('abi.hpp')}{places_text()}{_source('handler.cpp')}"


def places_text() -> str:
    """How threads find a processor of their own."""
    return _source("places.hpp")


def functions_text(size: int) -> str:
    """The elementary functions alone, of vectors of numbers of ``size`` bytes."""
    return f"#define REAL {_REALS[size]}\n{_source('abi.hpp')}{_source('vector.hpp')}{_source('math.hpp')}"


def cell_text(program: Program, layout: Layout, size: int) -> str:
    """A library of one cell: ``rnnjax_cell()`` is the address of its table."""
    S, P, N, UB = len(program.new), program.num_own, len(program.saved()), layout.vectors
    y_is_h = program.y == program.new[layout.h]
    own = "\n".join(f"    const vf own{p} = *(const vf *)((const real *)t.own[{p}] + u * VL);" for p in range(P))

    def numbers(values: Sequence[int]) -> str:
        return "{" + ", ".join(map(str, values or (0,))) + "}"

    return f"""#define REAL {_REALS[size]}
{_source("abi.hpp")}{_source("vector.hpp")}
namespace {{
{_source("math.hpp")}
constexpr int NS = {layout.slots}, UB = {UB};

void forward(const ForwardTile &t) {{
{_forward(program, layout, own, y_is_h, saving=False)}
}}
void forward_saving(const ForwardTile &t) {{
{_forward(program, layout, own, y_is_h, saving=True)}
}}
void backward(const BackwardTile &t) {{
{_backward(program, layout, own)}
}}
const int32_t gate_x[] = {numbers(layout.gate_x)}, gate_h[] = {numbers(layout.gate_h)};
const Cell cell = {{{len(layout.gate_x)}, {layout.slots}, {layout.first_h}, {S}, {P}, {N}, {layout.h}, {int(y_is_h)},
  {int(bool(layout.gate_h))}, UB, sizeof(real), VBYTES, ABI_VERSION, gate_x, gate_h,
  forward, forward_saving, backward}};
}}
extern "C" const void *rnnjax_cell() {{ return &cell; }}
"""


def _given(program: Program, layout: Layout, places: Mapping[str, str]) -> dict[int, str]:
    """The inputs of the program by expressions; ``places`` has templates for their kinds."""
    found = {}
    for i, name in program.names().items():
        kind, _, index = name.rstrip("]").partition("[")
        if kind in places:
            number = int(index or 0)
            slot = layout.seen[number] if kind == "seen" else number
            found[i] = places[kind].format(slot)
    return found


def _stages(program: Program, outputs: Sequence[int]) -> tuple[int, ...]:
    """Nodes that end a first stage: what the rest of the way to ``outputs`` is computed from; empty if there is one.

    The result of an elementary function is there dozens of cycles later. Where the argument of one depends on the
    result of another, as in ``tanh(c)``, a processor that waits for both has no room left to begin the next row. So a
    row's second stage is computed together with the next row's first one, which does not wait for it.
    """
    depth: list[int] = []
    for node in program.nodes:
        depth.append(max((depth[j] for j in node.args), default=0) + (node.op in _LONG))
    needed = program.needed(outputs)
    if max((depth[i] for i in needed), default=0) < 2:
        return ()
    late = {i for i in needed if depth[i] > 1}
    read = {j for i in late for j in program.nodes[i].args} | set(outputs)
    return tuple(sorted(j for j in read - late if program.nodes[j].op != "constant"))


def _forward(program: Program, layout: Layout, own: str, y_is_h: bool, *, saving: bool) -> str:
    old = "*(const vf *)((const real *)t.old[{}] + r * t.ld + u * VL)"
    given = _given(program, layout, {"own": "own{}", "old": old, "seen": "z[{} * UB]"})
    outputs = [(i, f"new{s}") for s, i in enumerate(program.new)]
    outputs += [] if y_is_h else [(program.y, "y")]
    saved = [(i, f"save[{n}]") for n, i in enumerate(program.saved())] if saving else []
    states = range(len(program.new))
    news = ", ".join(f"new{s}" for s in states)
    keep = " ".join(f"new{s} = {old.format(s)};" for s in states)
    puts = " ".join(f"*(vf *)((real *)t.fresh[{s}] + r * t.ld + u * VL) = new{s};" for s in states)
    y = f"new{layout.h}" if y_is_h else "y"
    save = f"vf *save = (vf *)((real *)t.save + u * t.save_vector) + r * {len(saved)};" if saving else ""
    carried = _stages(program, [i for i, _ in outputs])
    stage = "".join(f" {'vi' if program.nodes[i].op in TRUTHS else 'vf'} c{i};" for i in carried)
    first, early = "", program.needed(carried)
    if carried:
        at = [(i, f"next.c{i}") for i in carried] + [pair for pair in saved if pair[0] in early]
        first = emit(program, at, given, _VECTORS, indent=" " * 6)
        given |= {i: f"now.c{i}" for i in carried}
        saved = [pair for pair in saved if pair[0] not in early]
    return f"""  for (int u = 0; u < UB; u++) {{
    const int64_t n = t.units - t.unit - u * VL;
    if (n <= 0) break;
{own}
    struct Stage {{{stage} }};
    auto begin = [&](int64_t r) __attribute__((always_inline)) {{
      Stage next;
      const vf *z = (const vf *)t.z + r * NS * UB + u;
      {save if carried else ""}
{first}
      return next;
    }};
    Stage now;
    if (t.rows > 0) now = begin(0);
    for (int64_t r = 0; r < t.rows; r++) {{
      const vf *z = (const vf *)t.z + r * NS * UB + u;
      {save}
      Stage next;
      if (r + 1 < t.rows) next = begin(r + 1);
      vf {news}{"" if y_is_h else ", y"};
      if (t.valid && !t.valid[r]) {{
        {keep}{"" if y_is_h else f" y = new{layout.h};"}
      }} else {{
{emit(program, outputs + saved, given, _VECTORS, indent=" " * 8)}
      }}
      {puts}
      store((real *)t.y + r * t.ldy + u * VL, {y}, n);
      if (t.h) store((real *)t.h + r * t.ldy + u * VL, new{layout.h}, n);
      now = next;
    }}
  }}"""


def _backward(program: Program, layout: Layout, own: str) -> str:
    state = "*(vf *)((real *)t.d_state[{}] + r * t.ld + u * VL)"
    d_y = "load((const real *)t.d_y + r * t.ldy + u * VL, n)"
    given = _given(program, layout, {"own": "own{}", "d_new": state, "d_y": d_y})
    given |= {i: f"save[{n}]" for n, i in enumerate(program.saved())}
    outputs = [(i, f"*(vf *)(dz + {layout.seen[j]} * t.dz_slot)") for j, i in enumerate(program.d_seen)]
    outputs += [(i, state.format(s)) for s, i in enumerate(program.d_old)]
    outputs += [(i, f"total{p}") for p, i in enumerate(program.d_own)]
    columns = range(program.num_own)
    totals = "".join(f" vf total{p}, sum{p} = {{}};" for p in columns)
    add = "".join(f" sum{p} += total{p};" for p in columns)
    put = "".join(f"\n    *(vf *)((real *)t.d_own[{p}] + u * VL) += sum{p};" for p in columns)
    return f"""  for (int u = 0; u < BU; u++) {{
    const int64_t n = t.units - t.unit - u * VL;
    const bool there = n > 0;
    if (!there) {{
      for (int s = 0; s < NS; s++)
        for (int64_t r = 0; r < t.rows; r++) *(vf *)((real *)t.dz + s * t.dz_slot + r * PW + u * VL) = vf{{}};
      continue;
    }}
{own}
   {totals}
    for (int64_t r = 0; r < t.rows; r++) {{
      real *dz = (real *)t.dz + r * PW + u * VL;
      if (t.valid && !t.valid[r]) {{
        for (int s = 0; s < NS; s++) *(vf *)(dz + s * t.dz_slot) = vf{{}};
        continue;
      }}
      const vf *save = (const vf *)((const real *)t.save + u * t.save_vector) + r * {len(program.saved())};
{emit(program, outputs, given, _VECTORS, indent=" " * 6)}
     {add}
    }}{put}
  }}"""

"""The two CUDA kernels as functions of arrays: text, operands in their layouts, and the call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.engines.affine import nvrtc
from rnnjax.engines.affine.cuda_cell import CellText
from rnnjax.engines.affine.cuda_rules import Card, Tiles

__all__ = ["Kept", "Kernel", "Setting", "launch", "make_kernel", "run_backward", "run_forward"]

_FORMATS = {"bf16": 0, "f16": 1, "tf32": 2, "tf32x3": 3}
_STATES = {"bfloat16": 0, "float16": 1, "float32": 2}
_SPIN = 1 << 21  # looks of about 0.4 microseconds: a second
_TARGET = "__gpu$xla.gpu.ptx"  # XLA's own call of a kernel given as text


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that the text of a kernel depends on, besides its tiles.

    Attributes:
        text: the cell.
        dense: whether it has a ``w_hh``. The kernels of one without have no matmul and nothing to exchange.
        hidden_size: H.
        format: what is multiplied: ``"bf16"``, ``"f16"``, ``"tf32"`` or ``"tf32x3"``.
        state_dtype: of ``h``, ``y`` and their cotangents in memory.
        valid: whether there are steps that leave a row's state alone.
        resets: whether rows begin anew.
        reverse: whether time runs from the last step to the first.
        card: the GPU.
        networks: with weights of their own that one launch runs; their rows follow each other in every array.
    """

    text: CellText
    dense: bool
    hidden_size: int
    format: str
    state_dtype: str
    valid: bool
    resets: bool
    reverse: bool
    card: Card
    networks: int = 1

    @property
    def dtype(self) -> Any:
        """Of what is multiplied, in memory."""
        return {"bf16": jnp.bfloat16, "f16": jnp.float16}.get(self.format, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel and how it is launched."""

    source: str
    name: str
    capability: int
    grid: int
    block: int
    shared_bytes: int
    cluster: int


class Kept(NamedTuple):
    """What the forward pass keeps, for steps in the order of time.

    Attributes:
        seen: what the update saw, ``[T, B, NS, H]``; None if it is to be computed again.
        h: before each step, ``[T, B, H]``.
        s: the other leaves of the state before each step, ``[S, T, B, H]`` in float32; None without any.
        broken: ``[1]``, whether the run was given up.
    """

    seen: jax.Array | None
    h: jax.Array
    s: jax.Array | None
    broken: jax.Array


def make_kernel(setting: Setting, tiles: Tiles, *, backward: bool, keep: bool = True, keep_seen: bool = True) -> Kernel:
    """The kernel of a setting, as text."""
    macros = {
        "DT": _FORMATS[setting.format],
        "HDT": _STATES[setting.state_dtype],
        "H": setting.hidden_size,
        "HP": tiles.padded,
        "U": tiles.units,
        "NB": tiles.rows,
        "W": tiles.warps,
        "NLR": tiles.resident,
        "CL": tiles.cluster,
        "NETS": setting.networks,
        "GROUPS": tiles.groups // setting.networks,
        "MASK": int(setting.valid),
        "RESET": int(setting.resets),
        "REV": int(setting.reverse),
        "SAVE": int(keep),
        "SAVE_SEEN": int(keep and keep_seen),
        "SPIN": f"{_SPIN}u",
    }
    head = setting.text.macros + "".join(f"#define {name} {value}\n" for name, value in macros.items())
    part = "backward" if backward else "forward"
    files = ["cluster.cu", "forward.cu"] if tiles.cluster > 1 else ["forward.cu"]
    if backward:
        files = ["backward.cu"]
    if not setting.dense:
        files = ["units.cu"]
    source = head + _text("common.cu") + setting.text.functions + "".join(map(_text, files))
    capability = setting.card.capability
    return Kernel(source, f"rnn_{part}", capability, tiles.blocks, 32 * tiles.warps, tiles.shared_bytes, tiles.cluster)


@functools.lru_cache(maxsize=8)
def _text(name: str) -> str:
    return (Path(__file__).parent / "kernels" / name).read_text()


def launch(
    kernel: Kernel, outs: Sequence[jax.ShapeDtypeStruct], args: Sequence[jax.Array], aliases: dict[int, int]
) -> Any:
    """A kernel as an operation of XLA: one pointer for every operand, then one for every result."""
    ptx = nvrtc.compile_ptx(kernel.source, kernel.capability)
    call = jax.ffi.ffi_call(_TARGET, tuple(outs), input_output_aliases=aliases, vmap_method=None)
    one = np.int32(1)
    return call(
        *args,
        name=kernel.name,
        kernel_type="ptx",
        kernel_data=ptx,
        grid_x=np.int32(kernel.grid),
        grid_y=one,
        grid_z=one,
        block_x=np.int32(kernel.block),
        block_y=one,
        block_z=one,
        shared_mem_bytes=np.int32(kernel.shared_bytes),
    )


def run_forward(
    setting: Setting,
    tiles: Tiles,
    w_hh: jax.Array | None,
    b: jax.Array,
    zx: jax.Array,
    state: jax.Array,
    own: jax.Array,
    flags: jax.Array | None,
    fresh: jax.Array | None,
    *,
    keep: bool,
    keep_seen: bool = True,
    launch: Callable[..., Any] = launch,
) -> tuple[jax.Array, jax.Array, Kept]:
    """All steps.

    Args:
        setting: of the kernel.
        tiles: of the kernel.
        w_hh: ``[N, H, G H]`` of N networks; None for a cell without.
        b: ``[N, G H]``.
        zx: ``[T, B, G H]`` in float32, without the bias; B counts the rows of all networks.
        state: ``[1 + S, B, H]`` in float32, ``h`` first; a restart before the first step has been done.
        own: ``[N, NP, H]`` in float32.
        flags: uint8 ``[T, B]``, 1 for valid, plus 2 for a restart before this step; None without masks.
        fresh: ``[1 + S, B, H]``, the state of a restart; None without resets.
        keep: whether the backward pass follows.
        keep_seen: whether what the update saw is kept for it too.
        launch: in place of `launch`.

    Returns:
        The final state as ``state``, ``ys [T, B, H]``, and what is kept.
    """
    text, H, dtype = setting.text, setting.hidden_size, setting.dtype
    steps, rows = zx.shape[:2]
    store = jnp.dtype(setting.state_dtype)
    wt = first = jnp.zeros((1,), dtype)
    exchange: tuple[int, ...] = (1,)
    if w_hh is not None:
        wt = _padded_weights(w_hh, text.gates, H, tiles.padded, dtype).transpose(0, 2, 3, 1)  # [N, G, HP, HP]
    if w_hh is not None and tiles.cluster == 1:  # within a cluster nothing goes through memory
        exchange = (steps, *_exchange_shape(tiles, tiles.padded, dtype))
        first = _to_exchange(state[0].reshape(setting.networks, -1, H), tiles, dtype)
    keep_seen = keep and keep_seen
    outs = [
        jax.ShapeDtypeStruct(exchange, dtype),
        jax.ShapeDtypeStruct((1,), jnp.uint32),
        jax.ShapeDtypeStruct((steps, rows, H), store),
        jax.ShapeDtypeStruct(state.shape, jnp.float32),
        jax.ShapeDtypeStruct((steps, rows, text.seen, H) if keep_seen else (1,), dtype),
        jax.ShapeDtypeStruct((steps, rows, H) if keep else (1,), store),
        jax.ShapeDtypeStruct((text.states, steps, rows, H) if keep and text.states else (1,), jnp.float32),
    ]
    args = [
        _sizes(steps, rows // setting.networks),
        wt,
        b.astype(jnp.float32),
        zx,
        first,
        state,
        _not_empty(own),
        _none() if flags is None else flags,
        _not_empty(fresh),
        _missing(exchange, dtype),
        jnp.zeros((1,), jnp.uint32),
    ]
    kernel = make_kernel(setting, tiles, backward=False, keep=keep, keep_seen=keep_seen)
    _, broken, ys, end, seen, h, s = launch(kernel, outs, args, {9: 0, 10: 1})
    end = jnp.where(broken[0] == 0, end, jnp.nan)
    return end, ys, Kept(seen if keep_seen else None, h, s if keep and text.states else None, broken)


def run_backward(
    setting: Setting,
    tiles: Tiles,
    w_hh: jax.Array | None,
    own: jax.Array,
    flags: jax.Array | None,
    kept: Kept,
    d_end: jax.Array,
    d_ys: jax.Array,
    *,
    launch: Callable[..., Any] = launch,
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array | None, jax.Array | None]:
    """All steps backwards.

    Args:
        setting: of the kernel.
        tiles: of the kernel.
        w_hh: ``[N, H, G H]`` of N networks; None for a cell without.
        own: ``[N, NP, H]`` in float32.
        flags: as in `run_forward`.
        kept: of the forward pass.
        d_end: cotangents of the final state, ``[1 + S, B, H]`` in float32.
        d_ys: those of the outputs, ``[T, B, H]``.
        launch: in place of `launch`.

    Returns:
        Cotangents: of zh ``[T, B, G H]`` (and of zx where the update sees a sum), of zx of the other gates
        ``[T, B, NX H]`` or None, of the state before the first step ``[1 + S, B, H]``, of ``own`` by rows
        ``[NP, B, H]`` or None, and of the fresh state ``[1 + S, B, H]`` or None.
    """
    text, H, dtype = setting.text, setting.hidden_size, setting.dtype
    steps, rows = d_ys.shape[:2]
    apart = text.seen - text.gates
    w = jnp.zeros((1,), dtype)
    exchange: tuple[int, ...] = (1,)
    if w_hh is not None:
        w = _padded_weights(w_hh, text.gates, H, tiles.padded, dtype)
        exchange = (steps, *_exchange_shape(tiles, text.gates * tiles.padded, dtype))
    leaves = (1 + text.states, rows, H)
    outs = [
        jax.ShapeDtypeStruct(exchange, dtype),
        jax.ShapeDtypeStruct((1,), jnp.uint32),
        jax.ShapeDtypeStruct((steps, rows, text.gates * H), dtype),
        jax.ShapeDtypeStruct((steps, rows, apart * H) if apart else (1,), dtype),
        jax.ShapeDtypeStruct(leaves, jnp.float32),
        jax.ShapeDtypeStruct((text.own, rows, H) if text.own else (1,), jnp.float32),
        jax.ShapeDtypeStruct(leaves if setting.resets else (1,), jnp.float32),
    ]
    args = [
        _sizes(steps, rows // setting.networks),
        w,
        kept.seen,
        kept.h,
        _not_empty(kept.s),
        _not_empty(own),
        _none() if flags is None else flags,
        d_ys.astype(setting.state_dtype),
        d_end,
        _missing(exchange, dtype),
        kept.broken,
    ]
    kernel = make_kernel(setting, tiles, backward=True)
    _, broken, dz, dx, d_state, d_own, d_fresh = launch(kernel, outs, args, {9: 0, 10: 1})
    d_state = jnp.where(broken[0] == 0, d_state, jnp.nan)
    return dz, dx if apart else None, d_state, d_own if text.own else None, d_fresh if setting.resets else None


def _padded_weights(w_hh: jax.Array, gates: int, size: int, padded: int, dtype: Any) -> jax.Array:
    """``[N, HP, G, HP]``: zeros at padding."""
    w = w_hh.astype(dtype).reshape(-1, size, gates, size)
    return jnp.pad(w, ((0, 0), (0, padded - size), (0, 0), (0, padded - size)))


def _exchange_shape(tiles: Tiles, width: int, dtype: Any) -> tuple[int, int, int]:
    lanes = 16 // jnp.dtype(dtype).itemsize
    return width // lanes, tiles.groups * tiles.rows, lanes


def _to_exchange(h: jax.Array, tiles: Tiles, dtype: Any) -> jax.Array:
    """``[N, B, H]`` in the layout in which blocks exchange it."""
    networks, rows, size = h.shape
    blocks, all_rows, lanes = _exchange_shape(tiles, tiles.padded, dtype)
    wide = jnp.pad(h.astype(dtype), ((0, 0), (0, all_rows // networks - rows), (0, tiles.padded - size)))
    return wide.reshape(all_rows, blocks, lanes).transpose(1, 0, 2)


def _missing(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """All bits set: what nobody has written yet."""
    bits = {2: jnp.uint16, 4: jnp.uint32}[jnp.dtype(dtype).itemsize]
    return jax.lax.bitcast_convert_type(jnp.full(shape, np.iinfo(bits).max, bits), dtype)


def _sizes(*sizes: int) -> jax.Array:
    """As an array that is made within the program: who divides rows among devices takes no constants."""
    return jnp.stack([jnp.full((), size, jnp.int32) for size in sizes])


def _none() -> jax.Array:
    return jnp.zeros((1,), jnp.uint8)


def _not_empty(array: jax.Array | None) -> jax.Array:
    return jnp.zeros((1,), jnp.float32) if array is None or array.size == 0 else array

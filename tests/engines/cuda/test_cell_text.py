"""The functions that the kernels are told of a cell, compiled on the host, compute what JAX computes."""

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.engines.affine import cuda_kernels
from tests.engines.cuda.cells import POINTWISE, plan_of, text_of
from tests.engines.cuda.emulator import COMPILER, compile_text

SIZES = dict(DT=2, HDT=2, H=8, HP=16, U=8, NB=8, W=4, NLR=1, CL=1, GROUPS=1, SPIN="1u")
WRAPPER = """
extern "C" void run_%d(const float* in, float* out) {
  float own[NPN], zx[G], zh[G], s[SN], ds[SN], seen[NS], sn[SN], dzh[G], dzx[NXN], d_old[SN], d_own[NPN];
  float h, dh, dy, hn, y, dhd;
  auto take = [&](float* to, int n) { for (int i = 0; i < n; ++i) to[i] = *in++; };
  auto give = [&](const float* from, int n) { for (int i = 0; i < n; ++i) *out++ = from[i]; };
  take(own, NP); take(zx, G); take(zh, G); take(&h, 1); take(s, S); take(&dh, 1); take(ds, S); take(&dy, 1);
  Early early;
  cell_seen(zx, zh, seen);
  cell_update(own, seen, h, s, hn, sn, y);
  cell_early(own, seen, h, s, early);
  cell_pull(own, early, dh, ds, dy, dzh, dzx, dhd, d_old, d_own);
  give(&hn, 1); give(sn, S); give(&y, 1); give(dzh, G); give(dzx, NX); give(&dhd, 1); give(d_old, S); give(d_own, NP);
}
"""


def compiled(texts, folder):
    source = ["#define HOSTEMU 1", texts[0].macros, *(f"#define {k} {v}" for k, v in SIZES.items())]
    source.append(cuda_kernels._text("common.cu"))
    for n, text in enumerate(texts):
        source += ["#undef G\n#undef NS\n#undef S\n#undef NP", text.macros]
        source += [f"namespace cell_{n} {{", text.functions, WRAPPER % n, "}"]
    path, library = folder / "cells.cpp", folder / "cells.so"
    path.write_text("\n".join(source))
    return ctypes.CDLL(str(compile_text(path, library)))


@pytest.mark.quick
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_update_and_pull_of_every_pointwise_cell(tmp_path, x64):
    texts = [text_of(cell) for cell in POINTWISE.values()]
    library = compiled(texts, tmp_path)
    for n, (name, cell) in enumerate(POINTWISE.items()):
        want, inputs = expected(cell, texts[n], np.random.default_rng(n))
        got = np.full_like(want, np.nan, dtype=np.float32)
        pointer = ctypes.POINTER(ctypes.c_float)
        for u in range(want.shape[0]):
            row = np.ascontiguousarray(inputs[u], np.float32)
            getattr(library, f"run_{n}")(row.ctypes.data_as(pointer), got[u].ctypes.data_as(pointer))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6, err_msg=name)


def expected(cell, text, rng):
    """Results of all units in the order of the wrapper, by `jax.vjp` in float64, and the numbers it reads."""
    H, G = cell.hidden_size, cell.num_gates
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32), jnp.float64)  # noqa: E731
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)
    state = jax.tree.map(lambda leaf: draw(H), cell.initial_state(()))
    if hasattr(state, "n"):
        state = state._replace(n=jnp.abs(state.n) + 1)
    zx, zh = (tuple(draw(H) for _ in range(G)) for _ in range(2))
    dense = bool(plan_of(cell).summed)
    if not dense:  # the kernels add a zh, which is 0
        zh = tuple(0 * z for z in zh)
    (new, y), pull = jax.vjp(cell.update, params, state, zx, zh if dense else ())
    d_new, d_y = jax.tree.map(lambda leaf: draw(H), (new, y))
    d_params, d_state, d_zx, d_zh = pull((d_new, d_y))

    d_zh = d_zh if dense else d_zx
    leaves = jax.tree.leaves(state)
    h = next(i for i, leaf in enumerate(leaves) if leaf is state.h)
    order = [h, *(i for i in range(len(leaves)) if i != h)]
    sort = lambda tree: [jax.tree.leaves(tree)[i] for i in order]  # noqa: E731
    read = iter(plan_of(cell).reads)
    names = [f for f in params._fields if getattr(params, f) is not None and next(read)]
    own = [c for f in names for c in columns(getattr(params, f), H)]
    # The cotangent of a scalar is the sum over units; its share of one unit is that of a scalar of its own.
    d_own = [
        c
        for f in names
        for c in shares(cell, params, f, state, zx, zh if dense else (), (d_new, d_y), H, getattr(d_params, f))
    ]
    apart = [d for d, together in zip(d_zx, text.summed) if not together]
    assert len(own) == text.own
    inputs = np.stack([*own, *zx, *zh, *sort(state), *sort(d_new), d_y], axis=1)
    want = np.stack([*sort(new), y, *d_zh, *apart, *sort(d_state), *d_own], axis=1)
    return want, inputs


def columns(leaf, H):
    return [jnp.broadcast_to(leaf, (H,))] if leaf.ndim == 0 else list(leaf.reshape(-1, H))


def shares(cell, params, name, state, zx, zh, cotangents, H, whole):
    if whole.ndim:
        return list(whole.reshape(-1, H))
    wide = getattr(params, name) * jnp.ones(H)
    _, pull = jax.vjp(lambda p: cell.update(params._replace(**{name: p}), state, zx, zh), wide)
    return [pull(cotangents)[0]]

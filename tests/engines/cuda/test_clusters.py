"""Clusters that serve rows by themselves: the kernel on the host, the rule that chooses it, what NVRTC makes of it."""

import dataclasses
import re
import types

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax.engines import Controls, engine
from rnnjax.engines.affine import cuda, cuda_kernels, cuda_rules, nvrtc
from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda_kernels import Setting, make_kernel
from rnnjax.engines.affine.cuda_rules import Card, Facts, backward_tiles, forward_tiles
from rnnjax.engines.affine.cuda_trial import cluster_trial
from tests.cells_table import some_params
from tests.engines.cuda import emulator
from tests.engines.cuda.cells import POINTWISE, Custom, plan_of, text_of
from tests.engines.cuda.test_emulated import _mapped, compare, emulated  # noqa: F401

H200 = Card(90, 132, alone=True)
needs_compiler = pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler here")
needs_nvrtc = pytest.mark.skipif(nvrtc.version() is None, reason="NVRTC is missing: pip install nvidia-cuda-nvrtc")
CASES = {
    # Two groups, of which one is not full; padding of H; all masks; time in reverse. Orders of warps and stores.
    "lstm": (rnnjax.LSTM(21), 6, (3, 3), "float32", dict(valid=True, resets=True, reverse=True), 2, (1, 2, 3)),
    # Gates computed again, no batch axis, three gates, of which one is seen apart.
    "gru": (rnnjax.GRU(70), 5, (), "bfloat16", dict(resets=True, remat="gates"), 2, (4,)),
    "custom": (Custom(35), 7, (9,), "float16", dict(valid=True, resets=True), 2, (5, 6)),
    "elman": (rnnjax.Elman(170), 5, (3,), "bfloat16", dict(valid=True), 4, (7,)),
    "wide state": (rnnjax.LSTM(40), 4, (2,), "bfloat16", dict(resets=True, state_dtype="float32"), 2, (8,)),
    "one step": (rnnjax.GRU(8), 1, (2,), "bfloat16", dict(resets=True), 2, (9,)),
    "tf32": (rnnjax.cells.CoupledLSTM(17), 4, (2,), "float32", dict(name="tf32"), 2, (10,)),
}


@needs_compiler
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.thorough] if c in ("one step", "tf32", "wide state") else []) for c in CASES],
)
def test_values_and_gradients(case, emulated, x64, monkeypatch):  # noqa: F811
    cell, steps, batch, dtype, options, cluster, seeds = CASES[case]
    for seed in seeds:
        monkeypatch.setattr(emulator, "SEEDS", [seed])
        emulator.CLUSTERS.clear()
        compare(emulated(H200), cell, steps, batch, dtype, **options)
        assert emulator.CLUSTERS[0] == cluster


@needs_compiler
def test_networks_side_by_side(emulated):  # noqa: F811
    emulator.CLUSTERS.clear()
    with jax.default_matmul_precision("highest"):
        got, want = (_mapped(run, rnnjax.GRU(8), "all") for run in (emulated(H200), engine("scan").run))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)
    assert emulator.RUNS == ["rnn_forward", "rnn_backward"] and emulator.CLUSTERS[0] == 2


@needs_compiler
def test_two_tiles_of_rows_and_weights_in_memory(emulated, x64, monkeypatch):  # noqa: F811
    """The rules choose neither; the kernel can."""

    def tiles(facts, card):
        found = cuda_rules._alone(facts, card, 4, rows=16)
        more = found.warps * 512 * 2 * 2 * (found.resident - 1)
        return dataclasses.replace(found, resident=1, shared_bytes=found.shared_bytes + more)

    monkeypatch.setattr(cuda, "forward_tiles", tiles)
    card = dataclasses.replace(H200, processors=1000)  # of its own: nothing prepared for another is taken
    compare(emulated(card), rnnjax.LSTM(70), 5, (19,), "bfloat16", resets=True, valid=True)


@needs_compiler
@pytest.mark.parametrize("lost", [0, 1])
def test_messages_that_get_lost_end_in_nan(lost, emulated, monkeypatch):  # noqa: F811
    """All warps of all blocks give up; nobody waits for ever."""
    monkeypatch.setattr(cuda_kernels, "_SPIN", 600)
    monkeypatch.setattr(emulator, "ABSENT", [lost])
    cell = rnnjax.Elman(24, activation="relu")
    params, state, xs = some_params(cell, 3), cell.initial_state((2,)), np.ones((4, 2, 3), np.float32)
    card = dataclasses.replace(H200, processors=100)  # of its own, since the limit is part of the text
    final, ys = jax.jit(lambda: emulated(card)(cell, params, state, xs, Controls()))()
    assert emulator.CLUSTERS[-1] == 2
    assert np.isnan(final.h).all() and np.isnan(ys[1:]).all() and np.isfinite(ys[0]).all()


@needs_compiler
def test_the_trial_sees_messages_of_eight_blocks():
    emulator.CLUSTERS.clear()
    assert cluster_trial(CudaLoops(H200, emulator.launch)) == ""
    assert emulator.CLUSTERS == [8]

    def wrong(kernel, outs, args, aliases):
        """The recurrence does without one row of the weights."""
        return emulator.launch(kernel, outs, [args[0], args[1].at[..., 30].set(0), *args[2:]], aliases)

    assert cluster_trial(CudaLoops(H200, wrong)) == "wrong numbers"


@pytest.mark.parametrize("passes", [True, False])
def test_clusters_are_trusted_after_their_trial(passes, monkeypatch):
    """A GPU that JAX lists; without clusters the engine goes on as it was."""
    client = types.SimpleNamespace(platform_version="cuda 13000")
    device = types.SimpleNamespace(compute_capability="9.0", core_count=132, client=client)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(cuda, "_missing", lambda capability: "")
    monkeypatch.setattr(cuda, "trial", lambda loops: "wrong" if loops.card.alone else "")
    monkeypatch.setattr(cuda, "cluster_trial", lambda loops: "" if loops.card.alone and passes else "wrong")
    cuda._card.cache_clear()
    try:
        if passes:
            assert cuda._card() == H200
        else:
            with pytest.warns(UserWarning, match=r"a trial of clusters failed \(wrong\); the engine 'cuda' runs"):
                assert cuda._card() == Card(90, 132)
        device.compute_capability = "8.9"
        cuda._card.cache_clear()
        assert cuda._card() == Card(89, 132)
    finally:
        cuda._card.cache_clear()


def test_the_rule():
    """As the prototype's measurements say: small networks, and of middle ones the smallest and the largest batches."""

    def blocks(size, rows, card=H200, form="bf16", gates=4):
        return forward_tiles(Facts(gates, gates, 1, 0, size, rows, form), card).cluster

    assert blocks(64, 16) == 2 and blocks(128, 16) == 4 and blocks(256, 1) == blocks(256, 64) == 8
    assert blocks(256, 16) == blocks(384, 16) == blocks(512, 64) == blocks(1024, 1) == 1
    assert blocks(256, 1, form="tf32") == blocks(256, 64, form="tf32x3") == 1  # no room in registers
    assert blocks(128, 16, Card(90, 132)) == blocks(128, 16, Card(120, 132, alone=True)) == 1
    assert blocks(256, 1, Card(90, 7, alone=True)) == 4 and blocks(32, 16, Card(90, 4, alone=True)) == 2
    assert backward_tiles(Facts(4, 4, 1, 0, 128, 16, "bf16"), H200) == backward_tiles(
        Facts(4, 4, 1, 0, 128, 16, "bf16"), Card(90, 132)
    )


@pytest.mark.parametrize("form", ["bf16", "tf32", "tf32x3"])
def test_tiles_respect_the_card(form):
    for gates in (1, 3, 4):
        for size in (1, 33, 130, 256, 384):
            for cluster in (2, 4, 8):
                tiles = cuda_rules._alone(Facts(gates, gates + 1, 1, 1, size, 100, form), H200, cluster)
                if tiles is None:
                    assert size > 33
                    continue
                assert tiles.padded == tiles.units * cluster >= size and tiles.units == 8 * tiles.warps
                assert tiles.padded * (2 if form == "bf16" else 4) % 64 == 0 and tiles.groups * tiles.rows >= 100
                assert tiles.shared_bytes <= H200.shared_bytes and tiles.warps <= 8


DTYPES = {"bf16": "bfloat16", "f16": "float16", "tf32": "float32", "tf32x3": "float32"}
COMPILED = [("lstm", "bf16", 90, 256, 64), ("gru", "tf32x3", 100, 40, 16), ("custom", "f16", 100, 120, 3)]
DENSE = [name for name, cell in POINTWISE.items() if plan_of(cell).summed]
EVERYTHING = [(name, form, c, 60, 16) for name in DENSE for form in DTYPES for c in (90, 100)]


def compiled(name, form, capability, size, rows):
    text, card = text_of(POINTWISE[name]), dataclasses.replace(H200, capability=capability)
    facts = Facts(text.gates, text.seen, text.states, text.own, size, rows, form)
    tiles = forward_tiles(facts, card)
    kernel = make_kernel(Setting(text, True, size, form, DTYPES[form], True, True, True, card), tiles, backward=False)
    return tiles, kernel, nvrtc.compile_ptx(kernel.source, capability)


@needs_nvrtc
@pytest.mark.parametrize("name, form, capability, size, rows", COMPILED)
def test_kernels_compile(name, form, capability, size, rows):
    tiles, kernel, ptx = compiled(name, form, capability, size, rows)
    assert tiles.cluster > 1 and f".reqnctapercluster {tiles.cluster}, 1, 1" in ptx
    assert "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32" in ptx
    _, log = nvrtc.compile_cubin(kernel.source, capability)
    assert re.findall(r"(\d+) bytes spill stores", log) == ["0"], log


@needs_nvrtc
@pytest.mark.thorough
@pytest.mark.parametrize("name, form, capability, size, rows", EVERYTHING)
def test_every_cell_compiles(name, form, capability, size, rows):
    _, kernel, ptx = compiled(name, form, capability, size, rows)
    assert f".entry {kernel.name}(" in ptx

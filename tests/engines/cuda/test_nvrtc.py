"""What NVRTC and XLA make of the kernels; neither needs a GPU for that."""

import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import rnnjax
from rnnjax.engines import Controls
from rnnjax.engines.affine import cuda_kernels, nvrtc
from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda_kernels import Setting, make_kernel
from rnnjax.engines.affine.cuda_rules import Card, Facts, backward_tiles, forward_tiles, unit_tiles
from rnnjax.engines.affine.recurrence import affine_engine
from tests.engines.cuda.cells import POINTWISE, plan_of, text_of

pytestmark = pytest.mark.skipif(nvrtc.version() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
CARDS = {80: Card(80, 108), 86: Card(86, 84), 90: Card(90, 132), 100: Card(100, 148)}
DTYPES = {"bf16": "bfloat16", "f16": "float16", "tf32": "float32", "tf32x3": "float32"}
VERSIONS = {80: "7.8", 86: "7.8", 90: "8.1", 100: "8.6"}
EVERYTHING = list(itertools.product(POINTWISE, DTYPES, (80, 90, 100)))
SOME = [("lstm", "bf16", 90), ("gru", "tf32x3", 80), ("custom", "f16", 100), ("elman", "tf32", 86)]
SOME += [("indrnn", "bf16", 80)]


def kernels(name, form, card, size, rows, masks=True):
    text, dense = text_of(POINTWISE[name]), bool(plan_of(POINTWISE[name]).summed)
    facts = Facts(text.gates, text.seen, text.states, text.own, size, rows, form)
    setting = Setting(text, dense, size, form, DTYPES[form], masks, masks, masks, card)
    tiles_of = (forward_tiles(facts, card), backward_tiles(facts, card)) if dense else (unit_tiles(facts),) * 2
    for backward, tiles in zip((False, True), tiles_of):
        assert tiles is not None
        assert tiles.shared_bytes <= card.shared_bytes
        yield make_kernel(setting, tiles, backward=backward)


@pytest.mark.parametrize("name, form, capability", SOME)
def test_kernels_compile(name, form, capability):
    for kernel in kernels(name, form, CARDS[capability], 250, 12):
        ptx = nvrtc.compile_ptx(kernel.source, capability)
        assert f".entry {kernel.name}(" in ptx
        assert f".target sm_{capability}" in ptx
        assert f".version {VERSIONS[capability]}\n" in ptx  # older drivers take it too


@pytest.mark.thorough
@pytest.mark.parametrize("name, form, capability", EVERYTHING)
def test_every_cell_compiles_for_every_card(name, form, capability):
    for size, masks in ((70, False), (512, True)):
        for kernel in kernels(name, form, CARDS[capability], size, 16, masks):
            assert f".entry {kernel.name}(" in nvrtc.compile_ptx(kernel.source, capability)


@pytest.mark.parametrize("name, size, rows", [("lstm", 768, 16), ("gru", 512, 64)])
def test_weights_stay_in_registers(name, size, rows):
    for kernel in kernels(name, "bf16", CARDS[90], size, rows):
        _, log = nvrtc.compile_cubin(kernel.source, 90)
        spilled = re.findall(r"(\d+) bytes spill stores", log)
        assert spilled and all(int(n) <= 16 for n in spilled), log


def test_what_the_compiler_says_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(nvrtc.CompileError, match=r"^cuda: NVRTC refused a kernel; its log is in .*\.log\.$") as caught:
        nvrtc.compile_ptx("__global__ void f() { nothing; }", 90)
    path = str(caught.value).removesuffix(".").split(" in ")[1]
    assert path.startswith(str(tmp_path))
    assert 'identifier "nothing" is undefined' in Path(path).read_text()


@pytest.mark.quick
def test_the_program_for_a_gpu_holds_one_call_a_direction():
    cell = rnnjax.GRU(40)
    run = affine_engine("cuda", CudaLoops(CARDS[90]), -1).run
    params, state = cell.init(jax.random.key(0), 3), cell.initial_state((5,))

    def loss(params, xs):
        final, ys = run(cell, params, state, xs, Controls())
        return jnp.sum(ys) + jnp.sum(final.h)

    lowered = jax.jit(jax.grad(loss)).trace(params, jnp.ones((7, 5, 3))).lower(lowering_platforms=("cuda",))
    string = r'"(?:[^"\\]|\\.)*"'
    pattern = rf"@__gpu\$xla\.gpu\.ptx\(.*?mhlo\.backend_config = \{{((?:{string}|[^\"}}])*)\}}"
    calls = re.findall(pattern, lowered.as_text())
    assert len(calls) == 2
    for call, name in zip(calls, ("rnn_forward", "rnn_backward")):
        keys = dict(re.findall(rf"(\w+) = ({string}|\d+ : i32)", call))
        sizes = {f"{kind}_{axis}" for kind in ("grid", "block") for axis in "xyz"}
        assert set(keys) == sizes | {"name", "kernel_type", "kernel_data", "shared_mem_bytes"}
        assert json.loads(keys["name"]) == name and json.loads(keys["kernel_type"]) == "ptx"
        assert f".entry {name}(" in keys["kernel_data"]
        assert keys["grid_y"] == keys["block_z"] == "1 : i32"
    assert "output_operand_aliases" in lowered.as_text()


def test_no_kernel_without_a_gpu():
    cell = rnnjax.LSTM(8)
    assert "cuda" not in rnnjax.implementations(cell) or jax.default_backend() == "gpu"
    assert cuda_kernels._text("common.cu").startswith("// What the forward and the backward kernel share")

"""What the engine says where it cannot run."""

import types
import warnings

import jax
import jax.numpy as jnp
import pytest

import rnnjax
from rnnjax.engines import Job, engine
from rnnjax.engines.affine import cuda, nvrtc
from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda_rules import Card, Facts, backward_tiles, forward_tiles
from rnnjax.engines.affine.recurrence import affine_engine
from rnnjax.engines.choice import UnfitError

BF16 = jnp.dtype("bfloat16")
H200 = affine_engine("cuda on an H200", CudaLoops(Card(90, 132)), -1)


def lstm(**options):
    return Job(rnnjax.LSTM(options.pop("size", 64)), "gpu", **options)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (lstm(), ""),
        (lstm(resets=True, valid="any", reverse=True, remat="gates", batch=()), ""),
        (lstm(size=2048, dtype=BF16, param_dtype=BF16), ""),
        (
            lstm(size=2500, dtype=BF16, param_dtype=BF16),
            "needs recurrent weights that fit into the processors of the GPU",
        ),
        (lstm(dtype=jnp.dtype("float64"), param_dtype=jnp.dtype("float64")), "needs a state of float32 or narrower"),
        (lstm(dtype=None), "needs one dtype for the parameters and one for the state"),
        (lstm(param_dtype=jnp.dtype("float64")), "needs bfloat16, float16 or float32, got parameters of float64"),
        (Job(rnnjax.cells.IndRNN(3000), "gpu", batch=(500,), dtype=BF16, param_dtype=BF16), ""),
        (Job(rnnjax.cells.LayerNormLSTM(8), "gpu"), "needs a pointwise update, got reduce_sum (combined.py, line "),
        (Job(rnnjax.cells.MinGRU(8), "gpu"), "needs an affine cell"),
        (lstm(remat="layers"), "needs remat to be None, True, an int or 'gates', got 'layers'"),
    ],
    ids=range(11),
)
def test_reasons(job, reason, x64):
    found = H200.fits(job)
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_by_name_it_is_a_sentence():
    cell = rnnjax.GRU(4)
    arguments = cell.init(jax.random.key(0), 3), cell.initial_state((2,)), jnp.ones((5, 2, 3))
    if jax.default_backend() == "cpu":
        with pytest.raises(UnfitError, match=r"^unroll: 'cuda' needs an NVIDIA GPU, got the backend 'cpu'; take"):
            rnnjax.unroll(cell, *arguments, implementation="cuda")


@pytest.fixture
def pretend(monkeypatch):
    """A GPU that JAX lists; nothing runs on it."""
    device = types.SimpleNamespace(
        compute_capability="9.0", core_count=132, client=types.SimpleNamespace(platform_version="cuda 13000")
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    caches = (cuda._card, cuda._fits)
    for cache in caches:
        cache.cache_clear()
    yield device
    for cache in caches:
        cache.cache_clear()


MISSING = {
    "compiler": ("version", None, "needs NVRTC: pip install nvidia-cuda-nvrtc"),
    "driver": ("driver_version", (12, 0), "needs a driver for CUDA 12.1 or newer, got 12.0"),
    "old": ("capability", "7.5", "needs compute capability 8.0 or higher, got 7.5"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_said_once(what, pretend, monkeypatch):
    name, value, reason = MISSING[what]
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "driver_version", lambda: (13, 0))
    if name == "capability":
        pretend.compute_capability = value
    else:
        monkeypatch.setattr(nvrtc, name, lambda: value)
    with pytest.warns(UserWarning) as caught:
        assert engine("cuda").fits(lstm()) == reason
    assert [str(w.message) for w in caught] == [
        f"rnnjax: the engine 'cuda' {reason}; XLA runs recurrent cells instead."
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine("cuda").fits(lstm(steps=9)) == reason


def test_a_card_that_fails_its_trial_is_not_used(pretend, monkeypatch):
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "driver_version", lambda: None)
    monkeypatch.setattr(nvrtc, "compile_ptx", lambda source, capability: "")
    with pytest.warns(UserWarning, match=r"a trial of the engine 'cuda' failed \(\w*Error: .*\); XLA runs"):
        assert engine("cuda").fits(lstm()) == "needs a GPU on which its trial gives the right numbers"


def test_the_default_is_the_fastest(monkeypatch):
    """But for thousands of rows, which would go in many turns; and nobody has said where arrays lie."""
    monkeypatch.setattr(cuda, "_card", lambda: Card(90, 132))
    cuda._rank.cache_clear()
    for size in (1, 128, 768, 2048):
        for rows in (1, 16, 64):
            assert cuda.rank(lstm(size=size, batch=(rows,), dtype=BF16, param_dtype=BF16)) > 5
    assert 0 < cuda.rank(lstm(size=768, batch=(128, 128), dtype=BF16, param_dtype=BF16)) < 5
    with jax.default_device(jax.devices("cpu")[0]):
        assert cuda.rank(lstm()) < 0
    cuda._rank.cache_clear()


@pytest.mark.parametrize("card", [Card(80, 108), Card(86, 84), Card(89, 128), Card(90, 132), Card(100, 148)], ids=str)
@pytest.mark.parametrize("form", ["bf16", "tf32x3"])
def test_tiles_respect_the_card(card, form):
    """A group is on the card at once, and a block has what it needs; a small network fits on any card."""
    for gates in (1, 3, 4):
        for size in (1, 33, 256, 768, 1024, 3000):
            for rows in (1, 16, 100):
                facts = Facts(gates, gates + 1, 1, 1, size, rows, form)
                for tiles in (forward_tiles(facts, card), backward_tiles(facts, card)):
                    if tiles is None:
                        assert size > 256
                        continue
                    assert tiles.padded >= size and tiles.padded % tiles.units == 0
                    assert tiles.padded * facts.item_bytes % 64 == 0 and tiles.groups * tiles.rows >= rows
                    assert tiles.blocks // tiles.groups <= card.processors
                    assert tiles.shared_bytes <= card.shared_bytes and tiles.resident >= 1
                    assert tiles.cluster == 1 or card.has_clusters

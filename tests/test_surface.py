"""What `import rnnjax` offers: names at the top, rooms that load when they are used, and sentences for the rest."""

import pkgutil
import subprocess
import sys

import pytest

import rnnjax
from rnnjax import networks

ROOMS = sorted(module.name for module in pkgutil.iter_modules(rnnjax.__path__) if module.ispkg and module.name != "cli")

HEAVY = (
    "optax",
    "rnnjax.analysis",
    "rnnjax.interop",
    "rnnjax.lm",
    "rnnjax.fit",
    "rnnjax.report",
    "rnnjax.cli",
    "rnnjax.data",
)
FRESH = f"""
import sys, rnnjax
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()  # so that a program can still say how many devices it wants
rnnjax.testing.check_laws, rnnjax.interop.from_torch, rnnjax.lm.LanguageModel, rnnjax.analysis.gradient_flow
rnnjax.data.pad_sequences, rnnjax.decoding.beam_search, rnnjax.fit.fit, rnnjax.cells.MGU, rnnjax.text.corpus
from rnnjax import online, report
print("rooms")
"""


@pytest.mark.quick
def test_rooms_load_in_a_fresh_process_when_they_are_used():
    result = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert result.stdout == "rooms\n", result.stderr


def test_every_package_is_a_room():
    """But the command line, which is no library."""
    assert set(ROOMS) <= set(dir(rnnjax))
    assert "initializers" in dir(rnnjax) and "LSTM" in dir(rnnjax)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lstm", "rnnjax has no 'lstm'; did you mean 'LSTM'?"),
        ("RNN", "rnnjax has no 'RNN'; did you mean 'Elman'?"),
        ("GRUCell", "rnnjax has no 'GRUCell'; did you mean 'GRU'?"),
        ("unrol", "rnnjax has no 'unrol'; did you mean 'unroll'?"),
        ("analysys", "rnnjax has no 'analysys'; did you mean 'analysis'?"),
        ("PeepholeLSTM", "rnnjax has no 'PeepholeLSTM'; write rnnjax.cells.PeepholeLSTM."),
        ("dropout", "rnnjax has no 'dropout'; write rnnjax.networks.dropout."),
        ("pad_sequences", "rnnjax has no 'pad_sequences'; write rnnjax.data.pad_sequences."),
        ("qqq", "rnnjax has no 'qqq'."),
    ],
)
def test_a_name_that_is_elsewhere_or_nowhere(name, sentence):
    with pytest.raises(AttributeError) as caught:
        getattr(rnnjax, name)
    assert str(caught.value) == sentence
    assert not hasattr(rnnjax, "__qqq__")


def test_the_top_is_small():
    """A name for every program; what some programs need has a room."""
    assert len(rnnjax.__all__) <= 34
    assert not set(rnnjax.__all__) & set(networks.__all__) - {"Bidirectional", "LearnedState", "Regularized", "Stack"}


def test_a_thing_has_one_room():
    """Besides the top, which offers the best of all rooms; and they are few enough to be looked through."""
    listed = [(name, id(getattr(module, name))) for module in map(rnnjax.__getattr__, ROOMS) for name in module.__all__]
    assert not {name for name, thing in listed if listed.count((name, thing)) > 1}
    assert len({*listed, *((name, id(getattr(rnnjax, name))) for name in rnnjax.__all__)}) <= 175

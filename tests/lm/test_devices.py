"""A batch that is split over devices is the same batch."""

import json

import jax
import numpy as np
import pytest

from rnnjax.cli import main
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit import devices
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, TrainOptions
from rnnjax.text.corpus import TextOptions
from tests.lm import children
from tests.processes import run_program

OPTIONS = (
    "--epochs 1 --evals 1 --log-every 3 --batch-size 16 --chunk-len 16 --hidden 8 --layers 1 --sample-length 0 "
    "--no-baselines --document-separator ."
).split()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(np.random.default_rng(0).choice(list("abcd .\n"), 5000)))
    return path


def two_devices():
    jax.config.update("jax_num_cpu_devices", 2)


def train(folder, *arguments):
    """In a process of its own, since JAX learns once how many CPU devices there are."""
    ended = children.run(folder, ["train", *arguments], two_devices)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def rows(folder, *fields):
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [[line[name] for name in fields if name in line] for line in lines if line["kind"] in ("train", "eval")]


@pytest.mark.long
def test_two_devices_train_what_one_trains(text, tmp_path):
    """Losses, norms and parameters but for rounding; and a run goes on, on another number of devices."""
    assert main_code("train", text, *OPTIONS, "--devices", 1, "--out", tmp_path / "one") == 0
    said = train(tmp_path, text, *OPTIONS, "--devices", 0, "--out", tmp_path / "two")
    assert "the batch split over 2 devices" in " ".join(said.split())
    fields = ("step", "loss", "grad_norm", "val_loss")
    for one, two in zip(rows(tmp_path / "one", *fields), rows(tmp_path / "two", *fields), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5)
    stored = [
        checkpoints.load(checkpoints.find_checkpoints(tmp_path / name / "checkpoints")[-1].path)[0]
        for name in ("one", "two")
    ]
    assert stored[0].keys() == stored[1].keys()
    for name, array in stored[0].items():
        np.testing.assert_allclose(stored[1][name], array, rtol=1e-3, atol=1e-5, err_msg=name)
    again = ("--epochs", 2, "--resume")
    assert main_code("train", *again, tmp_path / "one") == 0
    assert main_code("train", "--devices", 1, *again, tmp_path / "two") == 0
    last_of_one, last_of_two = (rows(tmp_path / name, *fields)[-1] for name in ("one", "two"))
    np.testing.assert_allclose(last_of_two, last_of_one, rtol=1e-4)


BORDERS = """
import sys, pathlib, jax, numpy as np
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.optimizers import OptimizerOptions
from rnnjax.lm.options import BudgetOptions, ModelOptions, RunConfig, TrainOptions
from rnnjax.lm.run import RunPaths
from rnnjax.lm.train import train
from rnnjax.text.corpus import TextOptions, load_corpus
text = TextOptions((sys.argv[1],), document_separator=".", fractions=(0.98, 0.01, 0.01))
corpus, place, weights = load_corpus(text), pathlib.Path(sys.argv[2]), []
for border in ("immediate", "lookback:10", "snap1", "rtrl", "cut"):
    found = []
    for devices in (1, 2):
        options = TrainOptions(batch_size=4, chunk_len=5, border=border, devices=devices, evals=1, sample_length=0)
        config = RunConfig(text, ModelOptions("gru", hidden=3, embed=2), OptimizerOptions(), options, BudgetOptions(8))
        folder = place / f"{border.partition(':')[0]}{devices}"
        train(config, RunPaths(folder), corpus)
        found.append(checkpoints.load(checkpoints.find_checkpoints(folder / "checkpoints")[-1].path)[0])
    one, two = found
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=1e-3, atol=1e-5, err_msg=f"{border} {name}")
    weights.append(one["params.stack.layers[0].w_hh"])
assert min(np.abs(a - b).max() for i, a in enumerate(weights) for b in weights[:i]) > 1e-5  # they differ
print("same")
"""


@pytest.mark.long
def test_what_crosses_a_border_is_split_as_the_rows_are(text, tmp_path):
    """Parameters, optimizer, states and traces after eight updates, on one device and on two."""
    assert run_program(BORDERS, text, tmp_path, devices=2).endswith("same\n")


def main_code(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.parametrize(
    ("batch_size", "cores", "count"),
    [(32, 2, 2), (50, 2, 2), (50, 4, 2), (8, 2, 1), (33, 2, 1), (64, 16, 4), (1, 4, 1)],
)
def test_devices_that_fit_the_batch(batch_size, cores, count, monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: cores)
    assert devices.choose_devices(0, batch_size) == count


def test_all_accelerators_that_share_the_batch_evenly(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("jax.device_count", lambda: 8)
    assert [devices.choose_devices(0, batch_size) for batch_size in (64, 36, 7, 5, 11)] == [8, 6, 7, 5, 1]


def test_devices_that_do_not_fit(monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"devices must be at most 4, which JAX has here \(cpu\), got 5; take 0"):
        devices.choose_devices(5, 50)
    with pytest.raises(ValueError, match="devices must share 50 streams evenly, got 4; take one of 1, 2, or another"):
        devices.choose_devices(4, 50)
    assert devices.choose_devices(2, 2) == 2


def test_jax_is_told_the_devices(monkeypatch):
    """What the user has told it stays; nobody gets more devices than cores."""
    told = []
    monkeypatch.setattr("jax.config.update", lambda name, value: told.append((name, value)))
    with monkeypatch.context() as untold:
        untold.setattr(devices, "devices_are_set", lambda: False)
        untold.setattr(devices, "available_cores", lambda: 2)
        devices.prepare_devices(0, 32)
        devices.prepare_devices(0, 15)
        devices.prepare_devices(1000, 2000)
    assert told == [("jax_num_cpu_devices", count) for count in (2, 1, 2)]
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    devices.prepare_devices(1, 32)
    assert len(told) == 3


@pytest.mark.parametrize(("option", "sentence"), [(10**6, "--devices must be at m"), (-1, "--devices must be at l")])
def test_devices_that_are_not_there(option, sentence, text, tmp_path, capsys):
    """Nothing is begun."""
    assert main_code("train", text, *OPTIONS, "--devices", option, "--out", tmp_path / "run") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_there_were_devices():
    groups = (TextOptions(), ModelOptions(), OptimizerOptions(), TrainOptions(devices=2), BudgetOptions(steps=1))
    options = RunConfig(*groups).to_json()
    assert RunConfig.from_json(options).train.devices == 2
    del options["train"]["devices"]
    assert RunConfig.from_json(options).train.devices == 1

"""A run that is killed and resumed is the run that was never killed: in subprocesses, with SIGKILL."""

import functools
import importlib
import itertools
import json
import os
import resource
import signal

import numpy as np
import pytest

from rnnjax.fit import checkpoint as checkpoints
from rnnjax.lm.run import RunPaths
from tests.lm import children

# Where a child meets its end: a module by name, and what in it is called there.
PLACES = {
    "update": ("rnnjax.lm.train", "update"),
    "before the checkpoint": ("rnnjax.fit.checkpoint", "save"),
    "inside the checkpoint": ("rnnjax.arrays", "_bytes_of"),  # once for its digest, once to write it
    "after the checkpoint": ("rnnjax.fit.checkpoint", "prune"),
}
OPTIONS = (
    "--steps 60 --evals 5 --log-every 3 --batch-size 4 --chunk-len 12 --hidden 10 --layers 2 --dropout 0.2 --lr 0.01 "
    "--schedule plateau --decay 0.5 --sample-length 30 --no-baselines --seed 5"
).split()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))


def act_at(place, at, action):
    """In a child: the action before the `at`-th call."""
    module, path = PLACES[place]
    *owners, name = path.split(".")
    target = functools.reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(target, name), itertools.count(1)

    def patched(*args, **kwargs):
        if next(calls) == at:
            action()
        return original(*args, **kwargs)

    setattr(target, name, patched)


@pytest.fixture
def child(tmp_path):
    def run(arguments, place="", at=1, action=kill):
        prepare = functools.partial(act_at, place, at, action) if place else None
        return children.run(tmp_path, arguments, prepare)

    return run


def what_counts(folder):
    """Arrays of the last checkpoint, metrics without clocks, samples."""
    paths = RunPaths(folder)
    arrays, meta = checkpoints.load(checkpoints.find_checkpoints(paths.checkpoints)[-1].path)
    rows = [json.loads(line) for line in paths.metrics.read_text().splitlines()]
    assert meta.pop("logs").keys() == {"metrics", "samples"}  # of bytes that hold clocks
    for row in [*rows, meta["progress"]]:
        for clock in ("seconds", "symbols_per_second"):
            row.pop(clock, None)
    return arrays, meta, rows, paths.samples.read_text()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(np.random.default_rng(0).choice(list("abcdef \n"), 2500)))
    return str(path)


def test_a_killed_run_resumes_to_the_same_bits(child, text, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = [*OPTIONS, "--border", "snap1"]
    assert child(["train", text, "--out", str(straight), *options]).returncode == 0
    first = child(["train", text, "--out", str(killed), *options], "update", 2)
    assert first.returncode == -signal.SIGKILL, first.stderr
    for place, at in (
        ("update", 17),  # there is one checkpoint by then
        ("inside the checkpoint", 0),
        ("after the checkpoint", 1),
        ("before the checkpoint", 1),
    ):
        if place == "inside the checkpoint":  # after what is read, and the digests of what is written
            arrays, _ = checkpoints.load(checkpoints.find_checkpoints(killed / "checkpoints")[-1].path)
            at = 2 * len(arrays) + 5
        result = child(["train", "--resume", str(killed), "--no-baselines"], place, at)
        assert result.returncode == -signal.SIGKILL, (place, result.returncode, result.stderr)
        assert place != "inside the checkpoint" or list((killed / "checkpoints").glob(".step_*"))
    last = child(["train", "--resume", str(killed), "--no-baselines"])
    assert last.returncode == 0, last.stderr
    left, right = what_counts(straight), what_counts(killed)
    assert left[1:] == right[1:]
    for name in left[0]:
        assert np.array_equal(left[0][name], right[0][name]), name
    assert len(checkpoints.find_checkpoints(killed / "checkpoints")) == len(list((killed / "checkpoints").iterdir()))


def test_a_full_disk_leaves_the_checkpoint_before_it(child, text, tmp_path):
    """The second checkpoint meets a file size limit far below its size, which the system reports like a full disk."""
    folder = tmp_path / "run"
    result = child(["train", text, "--out", str(folder), *OPTIONS], "before the checkpoint", 2, limit_files)
    assert result.returncode == 2
    assert "checkpoint: step 24 cannot be written" in result.stderr and "Traceback" not in result.stderr
    (survivor,) = checkpoints.find_checkpoints(folder / "checkpoints")
    assert survivor.step == 12
    checkpoints.load(survivor.path)


def test_ctrl_c_saves_and_says_how_to_go_on(child, text, tmp_path):
    folder = tmp_path / "run"
    result = child(["train", text, "--out", str(folder), *OPTIONS], "update", 8, interrupt)
    assert result.returncode == 0, result.stderr
    assert f"rnnjax train --resume {folder}" in result.stdout.replace("\n", "")
    assert [saved.step for saved in checkpoints.find_checkpoints(folder / "checkpoints")] == [9]
    assert os.path.exists(folder / "loss.png")

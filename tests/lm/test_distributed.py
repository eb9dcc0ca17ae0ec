"""Several processes on this machine train what one process with as many devices trains, to the bit."""

import functools
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rnnjax.fit import checkpoint as checkpoints

sys.path.insert(0, os.path.dirname(__file__))
from children import Running, run

STEPS = 60
OPTIONS = (
    f"--steps {STEPS} --evals 3 --log-every 4 --batch-size 8 --chunk-len 8 --hidden 8 --sample-length 20 "
    "--no-baselines --document-separator ."
).split()
PATIENCE = 300  # seconds, on a machine that has other things to do


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(np.random.default_rng(0).choice(list("abcd .\n"), 4000)))
    return path


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def prepare(devices=1, at=None, number=None, pause=0.0):
    """Before a command: so many devices, no engine that needs the only one; then slow, and a signal at an update."""
    import jax

    from rnnjax.fit.processes import Clock

    os.environ["RNNJAX_NATIVE"] = "0"
    jax.config.update("jax_num_cpu_devices", devices)
    counted = Clock.counted

    def slowly(clock, real):
        time.sleep(pause)
        if clock.updates + 1 == at:
            os.kill(os.getpid(), number)
        return counted(clock, real)

    Clock.counted = slowly


def train(folder, count, *arguments, others=None, wait=60, only=None, **hooks):
    """All processes of one training, as they ended; ``hooks`` are of the last, ``others`` its other arguments."""
    port, running = free_port(), []
    for index in range(count):
        place = Path(folder) / f"process{index}"
        place.mkdir(parents=True, exist_ok=True)
        last = index == count - 1
        words = [*(others if others and last else arguments), "--wait", wait, "--distributed", f"127.0.0.1:{port}"]
        words += ["--processes", count, "--process", index]
        running.append(Running(place, ["train", *words], functools.partial(prepare, **hooks if last else {})))
    return [process.wait(PATIENCE) for process in running]


def one(folder, *arguments, devices=2):
    Path(folder).mkdir(parents=True, exist_ok=True)
    ended = run(Path(folder), ["train", *arguments], functools.partial(prepare, devices), timeout=PATIENCE)
    assert ended.returncode == 0, ended
    return ended


def left(folder):
    """What a run left, without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in line.items() if k not in ("seconds", "symbols_per_second")} for line in lines]
    arrays = checkpoints.load(checkpoints.find_checkpoints(folder / "checkpoints")[-1].path)[0]
    return rows, (folder / "samples.txt").read_text(), {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.long
def test_stopped_on_two_processes_and_resumed_on_one(text, tmp_path):
    """A slow second process gets SIGTERM; one process with two devices goes on, to the bits of one that did it all."""
    one(tmp_path / "at_one", text, *OPTIONS, "--devices", 2, "--out", tmp_path / "whole")
    run = tmp_path / "run"
    lead, other = train(tmp_path / "at_two", 2, text, *OPTIONS, "--out", run, at=9, number=signal.SIGTERM, pause=0.1)
    assert (lead.returncode, other.returncode) == (0, 0), (lead, other)
    assert "of 2 processes; run folder" in " ".join(lead.stdout.split())
    assert "all is saved; go on with: rnnjax train --resume" in lead.stdout
    assert "rnnjax" not in other.stdout + other.stderr
    stopped = checkpoints.find_checkpoints(run / "checkpoints")[-1].step
    assert 8 <= stopped < STEPS
    one(tmp_path / "at_one", "--resume", run)
    assert left(run) == left(tmp_path / "whole")


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_others(text, tmp_path):
    """At once and with one sentence; what has been saved is whole."""
    run = tmp_path / "run"
    lead, other = train(tmp_path / "at", 2, text, *OPTIONS, "--out", run, at=45, number=signal.SIGKILL, pause=0.01)
    assert (lead.returncode, other.returncode) == (1, -signal.SIGKILL), (lead, other)
    said = [line for line in lead.stderr.splitlines() if line.startswith("rnnjax")]
    assert said == [
        "rnnjax: [process 0] process 1 has ended without a word (killed, or its machine is out of reach)."
    ], lead
    assert checkpoints.load(checkpoints.find_checkpoints(run / "checkpoints")[-1].path)


def test_processes_that_read_different_texts(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("a", "b"))
    ended = train(
        tmp_path / "at",
        2,
        text,
        *OPTIONS,
        "--out",
        tmp_path / "run",
        others=[other, *OPTIONS, "--out", tmp_path / "run"],
    )
    for index, process in enumerate(ended):
        assert process.returncode == 2, process
        said = [line for line in process.stderr.splitlines() if line.startswith(f"rnnjax: [process {index}] ")]
        assert len(said) == 1 and "all processes must have the same text (by its sha256), got " in said[0], process
    assert not (tmp_path / "run").exists()

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


def prepare(devices=1, at=None, number=None, pause=0.0, elsewhere=None, variables=None, silence=None):
    """Before a command: so many devices, no engine that needs the only one; then slow, and a signal at an update.

    Where the run folder is looked for is another place if ``elsewhere`` names one.
    """
    import pathlib

    import jax

    from rnnjax.cli import rendezvous, start
    from rnnjax.fit.processes import Clock

    os.environ["RNNJAX_NATIVE"] = "0"
    os.environ.update(variables or {})
    start.SEEN = 1.0
    if silence is not None:
        rendezvous.SILENCE = silence
    if elsewhere is not None:
        shared = start._require_shared
        start._require_shared = lambda paths: shared(type(paths)(pathlib.Path(elsewhere)))
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


def one(folder, *arguments, devices=2, stop=None):
    Path(folder).mkdir(parents=True, exist_ok=True)
    hooks = functools.partial(prepare, devices, stop, signal.SIGINT)
    ended = run(Path(folder), ["train", *arguments], hooks, timeout=PATIENCE)
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


@pytest.mark.long
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_is_missed(text, tmp_path, stopped):
    """It still has its connections; the other ends with a sentence all the same."""
    port, running = free_port(), []
    words = [text, *OPTIONS, "--steps", 10**6, "--out", tmp_path / "run", "--distributed", f"127.0.0.1:{port}"]
    for index in range(2):
        place = tmp_path / f"process{index}"
        place.mkdir()
        hooks = {"at": 9, "number": signal.SIGSTOP} if index == stopped else {}
        prepared = functools.partial(prepare, silence=6.0, **hooks)
        running.append(Running(place, ["train", *words, "--processes", 2, "--process", index], prepared))
    try:
        ended = running[1 - stopped].wait(PATIENCE)
    finally:
        running[stopped].process.kill()
    assert ended.returncode == 1, ended
    assert [line for line in ended.stderr.splitlines() if line.startswith("rnnjax")] == [
        f"rnnjax: [process {1 - stopped}] process {stopped} has not answered for 6 seconds (stopped, or out of reach)."
    ], ended


@pytest.mark.thorough
@pytest.mark.parametrize("border", ["snap1", "lookback:16"])
def test_what_crosses_a_border_is_split_over_processes(text, tmp_path, border):
    """To the bits of one process with two devices; and it goes on with one."""
    options = [*OPTIONS, "--steps", 16, "--border", border]
    one(tmp_path / "at_one", text, *options, "--devices", 2, "--out", tmp_path / "whole")
    ended = train(tmp_path / "at_two", 2, text, *options, "--out", tmp_path / "run")
    assert [process.returncode for process in ended] == [0, 0], ended
    assert left(tmp_path / "run") == left(tmp_path / "whole")
    for folder in ("run", "whole"):
        one(tmp_path / "at_one", "--resume", tmp_path / folder, "--steps", 24)
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_a_batch_that_the_processes_do_not_divide(text, tmp_path):
    ended = train(tmp_path / "at", 2, text, *OPTIONS, "--batch-size", 7, "--out", tmp_path / "run")
    for index, process in enumerate(ended):
        assert process.returncode == 2, process
        said = [line for line in process.stderr.splitlines() if line.startswith(f"rnnjax: [process {index}] ")]
        assert len(said) == 1 and "--batch-size must be a multiple of 2" in said[0], process
    assert not (tmp_path / "run").exists()


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


@pytest.mark.thorough
def test_without_process_0_the_others_end(text, tmp_path):
    """It holds the folder, the clock and JAX's own coordination."""
    port, run = free_port(), tmp_path / "run"
    processes = []
    for index, hooks in enumerate(({"at": 45, "number": signal.SIGKILL, "pause": 0.01}, {}, {})):
        place = tmp_path / f"process{index}"
        place.mkdir()
        words = ["train", text, *OPTIONS, "--batch-size", 9, "--out", run, "--wait", 60]
        words += ["--distributed", f"127.0.0.1:{port}", "--processes", 3, "--process", index]
        processes.append(Running(place, words, functools.partial(prepare, **hooks)))
    lead, *others = [process.wait(PATIENCE) for process in processes]
    assert lead.returncode == -signal.SIGKILL
    for index, other in enumerate(others, 1):
        assert other.returncode == 1, other
        said = [line for line in other.stderr.splitlines() if line.startswith("rnnjax")]
        assert said == [
            f"rnnjax: [process {index}] process 0 has ended without a word (killed, or its machine is out of reach)."
        ], other
    assert checkpoints.load(checkpoints.find_checkpoints(run / "checkpoints")[-1].path)


@pytest.mark.thorough
def test_a_run_goes_on_with_any_number_of_processes(text, tmp_path):
    """1, 2, 4 and 1 again: the same losses but for rounding."""
    run, fields = tmp_path / "run", ("step", "loss", "val_loss")
    one(tmp_path / "at", text, *OPTIONS, "--devices", 1, "--out", tmp_path / "whole", devices=1)
    one(tmp_path / "at", text, *OPTIONS, "--devices", 1, "--out", run, devices=1, stop=5)
    for count in (2, 4):
        ended = train(tmp_path / f"at{count}", count, "--resume", run, at=5, number=signal.SIGTERM, pause=0.05)
        assert [process.returncode for process in ended] == [0] * count, ended
        assert "all is saved; go on with" in ended[0].stdout
        assert "sums are rounded differently" in " ".join(ended[0].stdout.split())
    one(tmp_path / "at", "--resume", run, devices=1)
    rows = [
        [[row.get(name, 0.0) for name in fields] for row in left(folder)[0]] for folder in (run, tmp_path / "whole")
    ]
    np.testing.assert_allclose(*rows, rtol=1e-4)


@pytest.mark.thorough
def test_minutes_are_those_of_process_0(text, tmp_path):
    """The second process is slow, and its clock says nothing."""
    options = [*OPTIONS[2:], "--minutes", 0.1]
    ended = train(tmp_path / "at", 2, text, *options, "--out", tmp_path / "run", pause=0.05)
    assert [process.returncode for process in ended] == [0, 0], ended
    rows = left(tmp_path / "run")[0]
    assert rows[-1]["kind"] == "done" and rows[-1]["reason"] == "budget", rows
    assert sum(row["kind"] == "eval" for row in rows) >= 1


@pytest.mark.thorough
def test_ctrl_c_on_one_process_stops_all(text, tmp_path):
    ended = train(tmp_path / "at", 2, text, *OPTIONS, "--out", tmp_path / "run", at=9, number=signal.SIGINT, pause=0.05)
    assert [process.returncode for process in ended] == [0, 0], ended
    assert "all is saved; go on with" in ended[0].stdout
    assert checkpoints.find_checkpoints(tmp_path / "run" / "checkpoints")[-1].step == 12  # at the end of the interval


@pytest.mark.thorough
def test_a_folder_that_one_process_sees(text, tmp_path):
    folders = tmp_path / "here" / "run", tmp_path / "there" / "run"
    others = [text, *OPTIONS, "--out", folders[1]]
    ended = train(tmp_path / "at", 2, text, *OPTIONS, "--out", folders[0], others=others, elsewhere=str(folders[1]))
    for process in ended:
        assert process.returncode == 2, process
        said = [line for line in process.stderr.splitlines() if line.startswith("rnnjax")]
        assert (
            len(said) == 1
            and "must be one that all processes see, and what process 0 wrote there is not here" in (said[0])
        ), process


@pytest.mark.thorough
def test_a_cluster_that_is_detected(text, tmp_path):
    """SLURM's variables are enough; without a cluster it is a sentence."""
    alone = run(tmp_path, ["train", text, "--distributed", "--out", tmp_path / "run"], timeout=PATIENCE)
    assert alone.returncode == 2 and "JAX detects no cluster here (SLURM, " in alone.stderr, alone
    job, processes = 20000 + os.getpid() % 20000, []
    for index in range(2):
        variables = {
            "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index), "SLURM_STEP_NUM_NODES": "1",
        }  # fmt: skip
        place = tmp_path / f"process{index}"
        place.mkdir()
        words = ["train", "--distributed", text, *OPTIONS, "--out", tmp_path / "run"]
        processes.append(Running(place, words, functools.partial(prepare, variables=variables)))
    ended = [process.wait(PATIENCE) for process in processes]
    assert [process.returncode for process in ended] == [0, 0], ended
    assert "of 2 processes; run folder" in " ".join(ended[0].stdout.split())
    assert "rnnjax" not in ended[1].stdout + ended[1].stderr

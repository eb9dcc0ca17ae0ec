"""A run folder has one owner, is replaced only by what stands, and is believed only where it is what was written."""

import functools
import json
import os
import shutil
import signal
import threading

import numpy as np
import pytest

from rnnjax.files import CheckpointError, FileWarning, digest, read_json, write_json
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.fit.folder import aside_of, foreign, own_folder, remember
from rnnjax.fit.logs import Log
from rnnjax.lm.options import ModelOptions
from rnnjax.lm.run import open_run
from tests.lm import children, tiny_run
from tests.lm.test_resume import act_at, kill

SMALL = (
    "--steps 6 --evals 2 --log-every 2 --batch-size 2 --chunk-len 8 --hidden 4 --sample-length 20 --no-baselines "
    "--devices 1"
).split()
CODE = """
import rnnjax

class Mine(rnnjax.GRU):
    def step(self, params, state, x):
        {body}
"""


FAILS = """
import dataclasses
import jax.numpy as jnp
import rnnjax

@dataclasses.dataclass(frozen=True)
class Mine:
    hidden_size: int

    def init(self, key, input_size, dtype=jnp.float32):
        return rnnjax.GRU(self.hidden_size).init(key, input_size, dtype)

    def initial_state(self, batch_shape=(), dtype=jnp.float32):
        return rnnjax.GRU(self.hidden_size).initial_state(batch_shape, dtype)

    def step(self, params, state, x):
        if x.shape[:1] == (7,):
            raise KeyError("k")
        return rnnjax.GRU(self.hidden_size).step(params, state, x)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(np.random.default_rng(0).choice(list("abcdef \n"), 600)))
    return str(path)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    ended = children.run(folder, ["train", text, "--out", folder / "run", *SMALL])
    assert ended.returncode == 0, ended.stderr
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture
def tiny(opened, tmp_path):
    shutil.copytree(opened, tmp_path / "tiny")
    return tmp_path / "tiny"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.lock"}


def refusal(ended):
    """The one sentence of a command that is refused."""
    assert ended.returncode == 2, (ended.returncode, ended.stderr)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("rnnjax: ")
    return line


def take_and_die(folder):
    with own_folder(folder, "test"):
        kill()


def test_a_folder_has_one_owner(run, tmp_path):
    before = contents(run)
    with own_folder(run, "test"):
        with own_folder(run, "test"):  # the owner itself
            pass
        said = refusal(children.run(tmp_path, ["train", "--resume", run, "--steps", 9]))
        assert f"{run} is in use by process {os.getpid()} on this machine since 2" in said
        said = refusal(children.run(tmp_path, ["train", "--out", run, "--force", *SMALL]))
        assert "is in use by process" in said
        failed = []

        def other():
            try:
                with own_folder(run, "fit"):
                    pass
            except CheckpointError as error:
                failed.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(failed) == 1 and failed[0].startswith(f"fit: {run} is in use")
    assert contents(run) == before
    died = children.run(tmp_path, ["--version"], functools.partial(take_and_die, run))
    assert died.returncode == -signal.SIGKILL
    with own_folder(run, "test"):  # nothing is stale
        pass


def test_force_touches_only_what_was_written(text, run, tmp_path):
    for name in ("checkpoints/notes.txt", "tensorboard/thesis.txt", "checkpoints/step_1/more"):
        path = run / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        before = contents(run)
        said = refusal(children.run(tmp_path, ["train", text, "--out", run, "--force", *SMALL]))
        assert f"--force: {run} holds {name}, which no run wrote, so it is left alone" in said
        assert contents(run) == before and not (run / "run.lock.x").exists()
        path.unlink()
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    for name in ("train.log", "metrics.jsonl", "config.json"):
        (other / name).write_text('{"rnnjax": 1}')
    said = refusal(children.run(tmp_path, ["train", text, "--out", other, "--force", *SMALL]))
    assert "holds config.json and 2 more, which no run wrote" in said and not (other / "run.lock").exists()


def test_the_old_run_goes_when_the_new_one_has_a_checkpoint(text, run, tmp_path):
    before, cell = contents(run), tmp_path / "c.py"
    again = ["train", text, "--out", run, "--force", *SMALL]
    # As long as the contract is checked the cell works, and it fails in the training.
    cell.write_text(FAILS)
    said = refusal(children.run(tmp_path, [*again, "--cell", f"{cell}:Mine", "--batch-size", "7"]))
    assert f"{cell}, line 18: KeyError: 'k'" in said
    assert contents(run) == before and not aside_of(run).exists()
    killed = children.run(tmp_path, again, functools.partial(act_at, "before the checkpoint", 1, kill))
    assert killed.returncode == -signal.SIGKILL and contents(aside_of(run)) == before
    shutil.rmtree(run)  # as if it had been killed between the two moves
    said = refusal(children.run(tmp_path, ["train", text, "--out", run, *SMALL]))
    assert f"{aside_of(run)} is the run that was in {run}" in said
    assert f"move back the one that was to be replaced, {aside_of(run)}" in refusal(
        children.run(tmp_path, ["info", run])
    )
    assert children.run(tmp_path, again).returncode == 0
    assert not aside_of(run).exists() and 0 < open_run(run).meta["step"] <= 6
    assert foreign(run) == []


def test_logs_are_never_silently_shorter(run, tmp_path):
    before = contents(run)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:10])
    (run / "samples.txt").unlink()
    ended = children.run(tmp_path, ["train", "--resume", run, "--steps", 8])
    assert ended.returncode == 0, ended.stderr
    said = ended.stderr.splitlines()
    assert len(said) == 2 and all(line.startswith("rnnjax: warning: train: ") for line in said)
    assert "metrics.jsonl was shortened or removed" in said[0] and "samples.txt was shortened or removed" in said[1]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][:2] == [json.loads(line)["step"] for line in lines[:2]]
    assert rows[-1]["kind"] == "done" and "step 8" in (run / "samples.txt").read_text()
    assert before[next(p for p in before if p.name == "samples.txt")]


def test_a_log_of_two_names_stays_under_the_other(tmp_path):
    log = Log(tmp_path / "log", "test")
    log.append("one\n")
    mark = log.mark
    log.append("two\n")
    os.link(tmp_path / "log", tmp_path / "other")
    again = Log(tmp_path / "log", "test")
    again.cut(mark)
    assert (tmp_path / "log").read_text() == "one\n" and (tmp_path / "other").read_text() == "one\ntwo\n"
    (tmp_path / "log").write_text("One\ntw")
    with pytest.warns(FileWarning, match="was edited or damaged since the checkpoint was written, of 4 bytes then"):
        again.cut(mark)
    assert (tmp_path / "log").read_text() == "One\n"


@pytest.mark.parametrize("name", ["samples.txt", "metrics.jsonl", "vocabulary.json", "config.json", "checkpoints"])
def test_links_and_pipes_are_refused(tiny, tmp_path, capsys, name):
    path, kept = tiny / name, tmp_path / "kept"
    if path.exists():
        path.rename(kept)
    else:
        kept.write_text("precious")
    path.symlink_to(kept)
    sentence = f"{path} must be a {'folder' if name == 'checkpoints' else 'file'} of its own, got a link"
    for command in (["info", tiny], ["sample", tiny], ["train", "--resume", tiny]):
        result = tiny_run.rnnjax(capsys, *command)
        assert result.code == 2 and sentence in result.err, result.err
    path.unlink()
    os.mkfifo(path)
    result = tiny_run.rnnjax(capsys, "sample", tiny)
    assert result.code == 2 and "got a pipe or device" in result.err


def test_a_text_from_a_pipe_is_gone(tiny, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    config = read_json(tiny / "config.json", "test")
    config["options"]["text"]["paths"] = [str(tmp_path / "pipe")]
    write_json(tiny / "config.json", config)
    for command in (["eval", tiny], ["cells", tiny], ["train", "--resume", tiny]):
        result = tiny_run.rnnjax(capsys, *command)
        assert result.code == 2 and "pipe, a pipe or device, and is gone; name a text" in result.err


def test_edited_files_are_not_believed(tiny):
    whole = {name: read_json(tiny / name, "test") for name in ("config.json", "vocabulary.json")}
    text = (tiny / "vocabulary.json").read_text()
    (tiny / "vocabulary.json").write_text(text.replace('"a"', '"A"'))
    with pytest.raises(CheckpointError, match=r"vocabulary.json does not match its checksum: it was edited or damaged"):
        open_run(tiny)
    symbols = whole["vocabulary.json"]["symbols"]
    symbols[1], symbols[2] = symbols[2], symbols[1]
    write_json(tiny / "vocabulary.json", whole["vocabulary.json"])  # signed anew
    with pytest.raises(CheckpointError, match=r"vocabulary\.json and .* do not belong together"):
        open_run(tiny)
    (tiny / "vocabulary.json").write_text(text)
    open_run(tiny)
    for group, name, value in (
        ("optimizer", "lr", 0.5),
        ("train", "seed", 3),
        ("train", "chunk_len", 17),
        ("model", "dropout", 0.25),
        ("text", "fractions", [0.8, 0.1, 0.1]),
    ):
        data = json.loads(json.dumps(whole["config.json"]))
        data["options"][group][name] = value
        write_json(tiny / "config.json", data)
        with pytest.raises(CheckpointError, match="do not belong together: the options are not those of the training"):
            open_run(tiny)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("cell", value) for value in (7, None, ["lstm"], "lstm(", "nothing")),
        *(("hidden", value) for value in (2**40, 2**62, 8.0, True)),
        *(("embed", 2**50), ("layers", 10**9), ("tie", "yes"), ("dropout", "0.1"), ("more", 1)),
    ],
)
def test_options_of_other_kinds(tiny, capsys, name, value):
    """Whatever a file says, nothing is allocated or raised by it but one sentence."""
    data = read_json(tiny / "config.json", "test")
    data["options"]["model"][name] = value
    write_json(tiny / "config.json", data)
    for command in ("info", "sample"):
        result = tiny_run.rnnjax(capsys, command, tiny)
        assert result.code == 2 and len(result.err.splitlines()) == 1, result.err


def test_json_nested_too_deeply(tiny, capsys):
    (tiny / "config.json").write_text("[" * 200_000)
    result = tiny_run.rnnjax(capsys, "info", tiny)
    assert result.code == 2 and "config.json is damaged: it is nested too deeply" in result.err


def test_an_older_folder_of_checkpoints_says_so(tiny):
    for path in (tiny / "checkpoints").iterdir():
        path.unlink()
    (tiny / "checkpoints/step_00000006_val_1.2345").mkdir()
    with pytest.raises(CheckpointError, match="was written by another version of rnnjax, as a folder; start a new run"):
        open_run(tiny)


def test_code_in_a_run_is_run_only_where_it_is_trusted(tmp_path, capsys):
    source = tmp_path / "c.py"
    source.write_text(CODE.format(body="return super().step(params, state, x)"))
    folder = tiny_run.make_run(tmp_path / "run", model=ModelOptions(cell=f"{source}:Mine", hidden=4))
    trap = "import pathlib\npathlib.Path(__file__).with_name('was_run').touch()\n"
    for change, flags, part in (
        ("", [], "is Python code in"),
        (trap, [], "is Python code in"),
        (trap, ["--trust-code"], "is not what"),
    ):
        source.write_text(change + CODE.format(body="return super().step(params, state, x)"))
        for command in ("sample", "eval", "export", "cells", "color", "gradflow", "report", "lyapunov", "fixedpoints"):
            more = [tmp_path / "out"] if command == "export" else []
            result = tiny_run.rnnjax(capsys, command, folder, *more, *flags)
            assert result.code == 2 and part in result.err and (flags or "say so with --trust-code" in result.err)
        result = tiny_run.rnnjax(capsys, "train", "--resume", folder, *flags)
        assert result.code == 2 and part in result.err
    assert not (tmp_path / "was_run").exists()
    result = tiny_run.rnnjax(capsys, "info", folder)  # it shows what the checkpoint holds
    assert result.code == 0 and "stack.layers[0].w_hh" in result.out and "not run without --trust-code" in result.out
    source.write_text(CODE.format(body="return super().step(params, state, x)"))
    result = tiny_run.rnnjax(capsys, "sample", folder, "--trust-code", "--length", "5")
    assert result.code == 0, result.err


def test_a_manifest_is_signed(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    remember(tmp_path, ["config.json"])
    assert foreign(tmp_path) == ["thesis.txt"]
    data = json.loads((tmp_path / "written.json").read_text())
    (tmp_path / "written.json").write_text(json.dumps(data | {"files": ["thesis.txt"]}))
    assert foreign(tmp_path) == ["thesis.txt"]
    assert data["sha256"] == digest({"files": ["config.json"]})


def test_one_bit_of_a_checkpoint(tiny):
    (path, _) = sorted((tiny / "checkpoints").iterdir())
    whole = path.read_bytes()
    for place in np.random.default_rng(0).choice(len(whole), 60, replace=False):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(place) % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="remove that file"):
            checkpoints.load(path)

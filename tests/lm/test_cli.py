"""The command line from end to end, and what it says to bad input."""

import dataclasses
import gzip
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from rnnjax.cli import main
from rnnjax.cli.options import TRAIN, check_partners
from rnnjax.files import write_json
from rnnjax.fit import checkpoint as checkpoints
from rnnjax.lm.options import KINDS
from tests.lm import children

SMALL = (
    "--steps 120 --evals 3 --log-every 20 --batch-size 4 --chunk-len 16 --hidden 32 --lr 0.03 --sample-length 40"
).split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(["the ", "café ", "sat ", "on ", "a ", "mat.\n"], 1500)
    path.write_text("".join(words), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert call("train", text, "--out", folder, "--tensorboard", *SMALL) == 0
    return folder


def call(*arguments):
    """The exit code of a command that runs in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def refused(capsys, *arguments):
    """The sentence of a command that is refused."""
    capsys.readouterr()
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.replace("│", " ").split())


def test_train_leaves_everything_a_run_needs(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.json",
        "vocabulary.json",
        "metrics.jsonl",
        "samples.txt",
        "checkpoints",
        "loss.png",
        "train.log",
        "tensorboard",
        "baselines.json",
    }
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "done" and rows[-1]["val_loss"] < 2.0
    baselines = json.loads((trained / "baselines.json").read_text())["nats"]
    assert 0 < baselines["witten_bell"] < baselines["unigram"] < math.log(40)
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_a_module_run_is_the_command(text, tmp_path, capfdbinary):
    """As users start it, in a process of its own, from standard input."""
    command = [sys.executable, "-m", "rnnjax", "train", "-", "--out", str(tmp_path / "run"), *SMALL]
    result = subprocess.run(command, input=text.read_bytes(), capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert b"rnnjax sample" in result.stdout
    command = ["sample", str(tmp_path / "run"), "--length", "50", "--seed", "3"]
    first = children.run(tmp_path, command)
    capfdbinary.readouterr()
    assert call(*command) == 0  # in this process it writes the same
    assert first.returncode == 0 and len(first.stdout) >= 50
    assert first.stdout.encode() == capfdbinary.readouterr().out


def test_sample_eval_info_export(trained, tmp_path, capfd):
    assert call("sample", trained, "--prime", "the c", "--length", 60, "--seed", 1, "--temperature", 0.5) == 0
    sample = capfd.readouterr().out
    assert sample.startswith("the c") and "café" in sample
    assert call("eval", trained, "--json") == 0
    results = {(r["text"], r["state"][:4]): r["loss"] for r in json.loads(capfd.readouterr().out)["results"]}
    done = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert results["valid", "carr"] == pytest.approx(done["val_loss"], rel=1e-3)
    assert results["test", "carr"] == pytest.approx(done["test_loss"], rel=1e-3)
    assert results["valid", "cold"] > results["valid", "carr"]
    assert call("info", trained) == 0
    shown = capfd.readouterr().out
    assert "w_hh" in shown and "LSTM(hidden_size=32" in shown.replace("\n", "")
    assert call("export", trained, tmp_path / "export") == 0
    assert (tmp_path / "export" / "model.safetensors").exists()


def test_a_finished_run_goes_on_with_a_larger_budget(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    assert call("train", "--resume", folder, "--steps", 140) == 0
    assert checkpoints.find_checkpoints(folder / "checkpoints")[-1].step == 140


def test_levels_and_compressed_files(text, tmp_path):
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    for level in ("byte", "word"):
        assert call("train", packed, "--level", level, "--out", tmp_path / level, "--no-baselines", *SMALL) == 0
    shown = json.loads((tmp_path / "byte" / "vocabulary.json").read_text())
    assert shown["level"] == "byte"


def test_documents_mode(text, tmp_path):
    options = ["--document-separator", "\\n", "--no-baselines", *SMALL]
    assert call("train", text, "--out", tmp_path / "run", *options) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["options"]["text"]["document_separator"] == "\n"


def test_options_are_the_fields_of_the_configuration(text, tmp_path, capsys):
    """Written once: every field with help is an option of the same default, and its value reaches the field."""
    assert call("train", "--help") == 0
    page = " ".join(capsys.readouterr().out.split())
    given = {"decay_from": 3, "schedule": "step", "sample_length": 7, "clip_by": "value", "minutes": None, "tie": True}
    options = ["--decay-from", 3, "--schedule", "step", "--sample-length", 7, "--clip-by", "value", "--tie"]
    assert call("train", text, "--out", tmp_path / "run", *options, "--no-baselines", *SMALL) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    others = [*SMALL[::2], "--paths", "--rows", "--devices", "--baselines"]
    for group, kind in KINDS.items():
        for field in dataclasses.fields(kind):
            name = f"--{field.name.replace('_', '-')}"
            assert (name in page) == ("help" in field.metadata)
            if name not in others:
                wanted = given.get(field.name, field.default)
                assert saved[group][field.name] == (list(wanted) if isinstance(wanted, tuple) else wanted), name
    assert saved["train"]["baselines"] is False


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ("--average-after 3", "--average"),
        ("--average 0 --average-after 3", "--average"),
        ("--decay 0.5", "--schedule step or plateau"),
        ("--decay-from 3 --schedule plateau", "--schedule step"),
        ("--clip-by value --clip 0", "--clip above 0"),
        ("--embed-dropout 0.5 --embed 0", "--embed, as one-hot symbols are not dropped"),
        ("--locked --weight-dropout 0.5", "--dropout or --embed-dropout"),
        ("--min-count 2 --level byte", "--level char or word, as there are 256 bytes"),
        ("--encoding latin-1 --level byte", "--level char or word, as bytes are read as they are"),
        ("--glob *.txt", "a folder as TEXT"),
        ("--wait 5", "--distributed"),
    ],
)
def test_an_option_that_would_do_nothing_says_so(text, tmp_path, capsys, options, needs):
    assert call("train", text, "--out", tmp_path / "run", *options.split(), *SMALL) == 2
    sentence = f"rnnjax: {options.split()[0]}: does nothing without {needs}; leave it out.\n"
    if not options.startswith("--average 0"):
        assert capsys.readouterr().err == sentence
    assert not (tmp_path / "run").exists()


def test_partners_that_are_there(tmp_path):
    values = {"average": 1.0, "clip": 1.0, "schedule": "step", "embed": -1, "dropout": 0.0, "embed_dropout": 0.1}
    values |= {"level": "char", "text": [str(tmp_path)], "decay": 0.5, "decay_from": 2, "clip_by": "norm"}
    values |= {
        "average_after": 1,
        "locked": True,
        "min_count": 2,
        "vocabulary_symbols": 9,
        "encoding": "utf-8",
        "glob": "*",
    }
    check_partners(TRAIN, values, set(values))
    switched_off = values | {"average": 0.0, "average_after": 0, "dropout": 0.0, "embed_dropout": -1.0, "locked": False}
    check_partners(TRAIN, switched_off, set(values))


BAD_OPTIONS = [
    (["--hidden", "0"], "--hidden must be at least 1, got 0"),
    (["--batch-size", "-2"], "--batch-size must be at least 1, got -2"),
    (["--lr", "0"], "--lr must be a finite number above 0, got 0"),
    (["--cell", "lstn"], "no cell is called 'lstn'; did you mean 'lstm'? known: conv_lstm, coupled_lstm, diagonal_gru"),
    (["--cell", "lstm(bias=1)"], "cannot be made"),
    (["--optimizer", "adamm"], "--optimizer must be 'adamw'"),
    (["--preset", "best"], "--preset: must be one of char-rnn"),
    (["--level", "letter"], "--level must be 'char', 'byte' or 'word', got 'letter'"),
    (["--steps", "0"], "--steps must be at least 1, got 0"),
    (["--steps", "5", "--minutes", "1"], "exactly one of --steps, --epochs and --minutes must be given, got steps"),
    (["--fractions", "0.5,0.6"], "--fractions must be three numbers"),
    (["--fractions", "a,b,c"], "--fractions: must be three numbers like"),
    (["--chunk-len", "100000"], "use --chunk-len at most 160"),
    (["--encoding", "utf-99"], "--encoding must be a text encoding"),
    (["--hidden", "many"], "Invalid value for '--hidden'"),
    (["--hiden", "3"], "No such option"),
    (["--tie", "--embed", "7"], "tied weights need embed_size"),
    (["--dropout", "1.0"], "--dropout must lie in [0, 1), got 1"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[" ".join(o) for o, _ in BAD_OPTIONS])
def test_bad_options_leave_nothing_behind(text, tmp_path, capsys, options, message):
    assert message in refused(capsys, "train", text, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_bad_texts(tmp_path, capsys):
    empty, short, binary = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    empty.write_text("")
    short.write_text("too short")
    binary.write_bytes(b"good so far \xff\xfe and then " * 100)
    (tmp_path / "d").mkdir()
    for path, message in (
        (empty, "at least one symbol"),
        (short, "symbols are needed, got"),
        (binary, "--level byte"),
        (tmp_path / "e.txt", "a path must exist"),
        (tmp_path / "d", "must hold a file that matches '*'"),
    ):
        assert message in refused(capsys, "train", path, "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()
    short.write_text("long enough " * 1000)
    assert "named once" in refused(capsys, "train", short, short, "--out", tmp_path / "run")


def test_an_existing_folder_is_kept(trained, text, tmp_path, capsys):
    before = (trained / "metrics.jsonl").read_bytes()
    assert "--force to replace it" in refused(capsys, "train", text, "--out", trained, *SMALL)
    assert "--hidden must be at least 1" in refused(capsys, "train", text, "--out", trained, "--force", "--hidden", 0)
    assert "must exist" in refused(capsys, "train", tmp_path / "nothing", "--out", trained, "--force", *SMALL)
    assert (trained / "metrics.jsonl").read_bytes() == before
    samples = trained / "samples.txt"
    assert "copy it out first" in refused(capsys, "train", samples, "--out", trained, "--force", *SMALL)
    for name in ("precious.txt", "config.json"):
        (tmp_path / name[:2]).mkdir()
        (tmp_path / name[:2] / name).write_text("not a run")
        refusal = refused(capsys, "train", text, "--out", tmp_path / name[:2], "--force", *SMALL)
        assert f"holds {name}, which no run wrote" in refusal


def test_resume_refuses_another_text_or_model(trained, text, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    assert "was trained with --hidden 32, got 48" in refused(capsys, "train", "--resume", folder, "--hidden", 48)
    assert "was trained with --lr 0.03" in refused(capsys, "train", "--resume", folder, "--lr", 0.5)
    assert "does not go together with --resume" in refused(capsys, "train", "--resume", folder, "--out", tmp_path)
    changed = tmp_path / "changed.txt"
    changed.write_text(text.read_text() + "more")
    assert "the text has changed" in refused(capsys, "train", changed, "--resume", folder)
    assert "no run in" in refused(capsys, "train", "--resume", tmp_path / "nowhere")
    same = tmp_path / "moved.txt"
    shutil.copy(text, same)
    assert call("train", same, "--resume", folder, "--steps", 130) == 0
    assert checkpoints.find_checkpoints(folder / "checkpoints")[-1].step == 130


def test_a_run_may_lie_in_the_folder_of_its_text(text, tmp_path):
    shutil.copy(text, tmp_path / "text.txt")
    assert call("train", tmp_path, "--out", tmp_path / "run", "--no-baselines", *SMALL) == 0
    assert call("train", "--resume", tmp_path / "run", "--steps", 130, "--no-baselines") == 0
    assert call("eval", tmp_path / "run", "--json") == 0


def damage(folder, kind):
    (arrays,) = (folder / "checkpoints").glob("step_*")
    data = arrays.read_bytes()
    if kind == "truncated":
        arrays.write_bytes(data[: len(data) // 2])
    else:
        with checkpoints.open_checkpoint(arrays) as stored:
            middle = stored._file.infos["params.w_out"].start
        arrays.write_bytes(data[:middle] + bytes(b ^ 0xFF for b in data[middle : middle + 8]) + data[middle + 8 :])


@pytest.mark.parametrize("kind", ["truncated", "edited"])
def test_damaged_checkpoints_are_named(trained, tmp_path, capsys, kind):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for path in (folder / "checkpoints").iterdir():
        if path != checkpoints.find_checkpoints(folder / "checkpoints")[-1].path:
            path.unlink()
    damage(folder, kind)
    for command in (["sample", folder], ["train", "--resume", folder, "--steps", 200]):
        sentence = refused(capsys, *command)
        assert "step_00000120" in sentence and "damaged" in sentence and "remove that file" in sentence


def test_options_that_are_not_those_of_the_checkpoint(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    config["options"]["model"]["hidden"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json does not match its checksum" in refused(capsys, "sample", folder)
    del config["sha256"]
    write_json(folder / "config.json", config)  # signed anew: the checkpoint knows better
    assert "do not belong together: the options are not those of the training" in refused(capsys, "sample", folder)


def test_damaged_run_files(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "config.json").write_text("{ half")
    assert "damaged" in refused(capsys, "info", folder)
    shutil.rmtree(folder / "checkpoints")
    shutil.copy(trained / "config.json", folder / "config.json")
    assert "no complete checkpoint" in refused(capsys, "sample", folder)


def test_unknown_characters_in_a_prime_are_a_choice(trained, capsys):
    assert "Ω" in refused(capsys, "sample", trained, "--prime", "the Ω", "--length", 5)
    assert call("sample", trained, "--prime", "the Ω", "--unknown", "skip", "--length", 5) == 0


def test_help_explains(capsys):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("train", "sample", "eval", "info", "export"))
    assert call("train", "--help") == 0
    shown = capsys.readouterr().out
    assert "--chunk-len" in shown and "Budget" in shown

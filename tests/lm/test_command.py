"""The command itself: how it starts and stops, what it says, and what it does not send to a terminal."""

import importlib
import io
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

import rnnjax
from rnnjax import cli
from rnnjax.analysis.labels import label_from_name
from rnnjax.cells import cell_from_name
from rnnjax.cli import COMMANDS, language_model, main
from rnnjax.cli.verdicts import spoken
from rnnjax.files import FileWarning
from rnnjax.lm.options import ModelOptions
from rnnjax.text.corpus import TextOptions, load_corpus
from rnnjax.text.shown import shown
from tests.lm import tiny_run


def test_what_steers_a_terminal_is_shown(tmp_path, capsys):
    text = "a\x1b[2J\x07\x9b\x7f\u202e\udc80\tb\n"
    assert shown(text) == "a␛[2J␇\\x9b␡\\u202e\\udc80\tb\n"
    name = tmp_path / "\x1b]0;title\x07"
    for command in (["info", name], ["train", name], ["sample", name], ["train", "--cell", f"\x1b[31m{name}"]):
        result = tiny_run.rnnjax(capsys, *command)
        assert result.code == 2 and "\x1b" not in result.err and "\x07" not in result.err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_no_learned_escapes(tmp_path, monkeypatch, capsys):
    """A pipe gets the text, byte for byte."""
    folder = tiny_run.make_run(tmp_path / "run", level="byte", model=ModelOptions(hidden=4, embed=0))
    piped = tiny_run.rnnjax(capsys, "sample", folder, "--length", 400, "--seed", 1).out
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal := Terminal())
        with pytest.raises(SystemExit):
            main(["sample", str(folder), "--length", "400", "--seed", "1"])
    assert set(piped) & set("\x1b\x07\x08\x0c\x7f")
    assert terminal.getvalue() == shown(piped) + "\n" and not set(terminal.getvalue()) & set("\x1b\x07\x08\x0c\x7f")


@pytest.mark.parametrize("encoding", ["cp949", "latin-1"])
def test_a_console_of_another_encoding(tmp_path, monkeypatch, encoding):
    """What it cannot show is replaced."""
    folder = tiny_run.make_run(tmp_path / "run")
    text = "aé€ß😀 b"
    monkeypatch.setattr(language_model, "stream_text", lambda *a, **k: iter([text]))
    raw = io.BytesIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream := io.TextIOWrapper(raw, encoding=encoding))
        with pytest.raises(SystemExit) as ended:
            main(["sample", str(folder), "--length", "5", "--seed", "1"])
        stream.flush()
    assert not ended.value.code and raw.getvalue() == text.encode(encoding, "replace")


@pytest.mark.parametrize("after", [0.15, 0.5, 1.0])
def test_ctrl_c_while_it_starts(tmp_path, after):
    """One line and 130, at whatever import it falls; a process that was done before says nothing of it."""
    code = "import sys; sys.argv[0] = 'rnnjax'; print(1, flush=True); from rnnjax.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "info", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1].decode()
    assert "Traceback" not in error and "Error" not in error
    # 2: it was done; killed: it had put all handlers away, which Python does last.
    if process.returncode not in (2, -signal.SIGINT):
        assert process.returncode == 130 and error.strip() in ("rnnjax: interrupted.", "")


def test_help_and_version_are_fast_and_whole(capsys):
    """Help of all commands without importing any of them; the lines are those of the commands."""
    loaded = "[name for name in sys.modules if 'matplotlib.' in name or 'rnnjax.lm' in name]"
    code = f"import sys; from rnnjax.cli import main\ntry: main(['--help'])\nexcept SystemExit: print({loaded})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.rstrip().endswith("[]") and all(name in result.stdout for name in COMMANDS)
    result = tiny_run.rnnjax(capsys, "--version")
    assert result.code == 0 and result.out.startswith(f"rnnjax {rnnjax.__version__}, jax 0.")
    for name, command in COMMANDS.items():
        function = getattr(importlib.import_module(command.module), name.replace("-", "_"))
        assert (function.__doc__ or "").strip().splitlines()[0] == command.summary


def test_what_an_engine_warns_of_is_one_sentence(monkeypatch, capsys):
    """No path of a module, and no line of its code."""

    def run(words):
        warnings.warn("rnnjax: the engine 'cuda' needs NVRTC; XLA runs recurrent cells instead.", stacklevel=1)
        warnings.warn("load: it is old.", FileWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_run", run)
    with pytest.raises(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["info"])
    assert capsys.readouterr().err.splitlines() == [
        "rnnjax: warning: the engine 'cuda' needs NVRTC; XLA runs recurrent cells instead.",
        "rnnjax: warning: load: it is old.",
    ]


def test_commands_share_the_memory_of_a_gpu(monkeypatch):
    """One trains while another samples from what there is; who has said otherwise is heard."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    for given, found in ((None, "false"), ("true", "true")):
        monkeypatch.setenv(name, given or "")
        if given is None:
            monkeypatch.delenv(name)
        monkeypatch.setattr(sys, "argv", ["rnnjax", "--version"])
        for function in ("leave_when_interrupted", "keep_compiled"):
            monkeypatch.setattr(cli, function, lambda: None)
        monkeypatch.setattr(cli, "_run", lambda words: 0)
        with pytest.raises(SystemExit):
            main()
        assert os.environ[name] == found


def test_sentences_speak_of_options():
    assert spoken("TrainOptions: batch_size must be at least 1.") == "--batch-size must be at least 1."
    assert spoken("use chunk_len at most 5") == "use --chunk-len at most 5"
    assert spoken("the text /a/chunk_len.txt is gone") == "the text /a/chunk_len.txt is gone"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise RuntimeError('boom')", "line 2: RuntimeError: boom"),
        ("raise KeyError('x')", "line 2: KeyError: 'x'"),
        ("1 / 0", "line 2: ZeroDivisionError"),
        ("raise SystemExit(3)", "line 2: SystemExit: 3"),
        ("open('/nowhere/of/that/name')", "line 2: FileNotFoundError"),
        ("def f(:", "line 2: SyntaxError"),
        ("import nothing_of_that_name", "line 2: ModuleNotFoundError"),
    ],
)
def test_files_that_raise(tmp_path, capsys, body, sentence):
    file = tmp_path / "c.py"
    file.write_text(f"\n{body}\n")
    for make in (lambda: cell_from_name(f"{file}:Foo", 4), lambda: label_from_name(f"{file}:f")):
        with pytest.raises(ValueError, match=r"c\.py' cannot be run") as caught:
            make()
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_mended_is_read_again(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("raise RuntimeError('boom')\n")
    with pytest.raises(ValueError, match="boom"):
        cell_from_name(f"{file}:Foo", 4)
    source = "import dataclasses, rnnjax\n@dataclasses.dataclass(frozen=True)\nclass Foo(rnnjax.GRU): leak: float = {}"
    file.write_text(source.format(0.5))
    first = cell_from_name(f"{file}:Foo", 4)
    assert cell_from_name(f"{file}:Foo", 4) == first and first.leak == 0.5
    file.write_text(source.format(0.25))
    assert cell_from_name(f"{file}:Foo", 4).leak == 0.25
    (tmp_path / "__pycache__").mkdir(exist_ok=True)
    assert not list((tmp_path / "__pycache__").iterdir())  # nothing compiled is written, or read


def test_a_label_that_raises_while_it_runs(tmp_path, capsys):
    folder, file = tiny_run.make_run(tmp_path / "run"), tmp_path / "l.py"
    file.write_text("def f(text):\n    return {}['x']\n")
    result = tiny_run.rnnjax(capsys, "cells", folder, "--label", f"{file}:f", "--shifts", 2)
    assert result.code == 2 and result.err == f"rnnjax: {file}, line 2: KeyError: 'x'.\n"


def test_texts_as_people_have_them(tmp_path, capsys):
    text = "one fox.\nlazy dog.\n\n" * 60

    def corpus(data, **options):
        (tmp_path / "t.txt").write_bytes(data)
        return load_corpus(TextOptions((str(tmp_path / "t.txt"),), **options))

    plain = corpus(text.encode())
    for data, encoding in ((b"\xef\xbb\xbf" + text.encode(), "utf-8"), (text.encode("utf-16"), "utf-16")):
        marked = corpus(data, encoding=encoding)
        assert marked.vocabulary == plain.vocabulary and np.array_equal(marked.train, plain.train)
    assert corpus(text.encode(), document_separator="\n\n").documents == 60 and plain.documents is None
    windows = corpus(text.replace("\n", "\r\n").encode(), document_separator="\n\n")
    assert windows.documents == 1 and len(windows.notes) == 2
    assert "end in \\r\\n" in windows.notes[0] and "does not occur" in windows.notes[1]
    with pytest.raises(ValueError, match="looks like utf-16-le without a mark; pass encoding='utf-16-le'"):
        corpus(text.encode("utf-16-le"))
    assert "characters of this text are NUL" in corpus(b"a\0bc\0\0d" * 60).notes[0]
    rare = corpus(text.encode() + b"QWE", min_count=2)
    assert rare.n_unknown == 3 and plain.n_unknown == 0 and plain.notes == ()
    with pytest.raises(
        ValueError, match=r"at byte 0 \(invalid start byte\); it begins like utf-16: pass encoding='utf-"
    ):
        corpus(text.encode("utf-16"))
    folder = tiny_run.make_run(tmp_path / "run")
    (tmp_path / "w.txt").write_bytes("abcabc".encode("utf-16-be"))
    wide = tiny_run.rnnjax(capsys, "sample", folder, "--prime-file", tmp_path / "w.txt")
    assert wide.code == 2 and wide.err.endswith("got what looks like utf-16-be without a mark; write it in utf-8.\n")
    wide = tiny_run.rnnjax(capsys, "eval", folder, tmp_path / "w.txt")
    assert wide.code == 2 and wide.err.endswith("without a mark; write it in utf-8, as the run reads it.\n")
    (tmp_path / "p.txt").write_bytes("\ufeffab\r\nc".encode())
    (tmp_path / "q.txt").write_bytes(b"ab\nc")
    said = [
        tiny_run.rnnjax(capsys, "sample", folder, "--prime-file", tmp_path / name, "--length", 9, "--seed", 1)
        for name in ("p.txt", "q.txt")
    ]
    assert said[0].code == 0 and said[0].out == said[1].out and "end in \\r\\n; they are read as" in said[0].err


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("abc" * 50)
    original = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match=r"closed cannot be read \(Permission denied\); it is left out"):
        assert load_corpus(TextOptions((str(tmp_path),))).n_symbols == 150

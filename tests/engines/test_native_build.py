"""Compilers that do not work and folders that cannot be used: one sentence, and XLA runs."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax.engines import Job, choose, engine
from rnnjax.engines.affine import native, native_build
from tests.engines.programs import needs_compiler

pytestmark = needs_compiler
ROOT = Path(__file__).parents[2]
JOB = Job(rnnjax.Elman(64), "cpu", 64, (16,), 32)
TEXT = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """An empty cache folder, and nothing remembered of what was compiled before."""

    def forget():
        native._prepared.cache_clear()
        native._compiled.cache_clear()
        native_build._version.cache_clear()
        native._failures.clear()
        native_build._loaded.clear()

    monkeypatch.setenv("RNNJAX_NATIVE_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def answer():
    ((_, library),) = native_build.libraries({"answer": TEXT}).values()
    return library.answer()


def compiler(folder, text):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def assert_falls_back(sentence):
    """XLA is chosen, and gives the numbers; from then on the refusal says why."""
    assert choose(JOB).name == "fused"
    assert engine("native").fits(JOB).startswith(sentence)
    assert "native" not in rnnjax.implementations(JOB.cell)
    with pytest.raises(ValueError, match=r"^unroll: 'native' needs "):
        choose(JOB, "native")
    params = JOB.cell.init(jax.random.key(0), 32)
    xs = jax.random.normal(jax.random.key(1), (64, 16, 32))
    state = JOB.cell.initial_state((16,))
    _, ys = jax.jit(lambda xs: rnnjax.unroll(JOB.cell, params, state, xs))(xs)
    want = rnnjax.unroll(JOB.cell, params, state, xs, implementation="scan")[1]
    np.testing.assert_allclose(ys, want, rtol=1e-4, atol=1e-5)


def test_no_compiler(anew, monkeypatch):
    monkeypatch.setenv("CXX", "no-program-of-this-name")
    assert_falls_back("needs a C++ compiler, and none of CXX, c++, g++ and clang++ is a program here")


def test_switched_off(anew, monkeypatch):
    monkeypatch.setenv("RNNJAX_NATIVE", "0")
    assert_falls_back("needs the environment variable RNNJAX_NATIVE not to be 0")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 1", "--version returned 1"),
        ('case "$*" in *--version*) echo 1.0;; *) echo "out of luck"; exit 1;; esac', "out of luck"),
    ],
    ids=["nothing works", "nothing compiles"],
)
def test_broken_compiler(anew, monkeypatch, script, words):
    monkeypatch.setenv("CXX", compiler(anew, script))
    assert_falls_back("needs a C++ compiler that works")
    assert words in engine("native").fits(JOB)
    assert not list((anew / "cache").glob("*/*"))  # nothing half done is left


def test_folder_that_cannot_be_made(anew, monkeypatch):
    (anew / "file").write_text("")
    monkeypatch.setenv("RNNJAX_NATIVE_CACHE", str(anew / "file" / "cache"))
    assert_falls_back("needs a cache folder, and ")


def test_folder_without_room(anew, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native_build.os, "replace", full)
    assert_falls_back("needs a cache folder that can be written to")
    assert "No space left on device" in engine("native").fits(JOB)


def test_folder_that_others_can_write_to(anew):
    (anew / "cache").mkdir()
    (anew / "cache").chmod(0o777)
    assert_falls_back("needs a cache folder that nobody else can write to")


def test_library_that_is_spoilt_is_made_again(anew):
    assert answer() == 42
    (path,) = (anew / "cache").glob("answer-*.so")
    assert path.stat().st_mode & 0o077 == 0
    whole = path.read_bytes()
    for spoilt in (whole[:-1], whole[: len(whole) // 2], b"", whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]):
        other = path.with_suffix(".new")  # the loaded file stays as it is
        other.write_bytes(spoilt)
        os.replace(other, path)
        native_build._loaded.clear()
        assert answer() == 42
        assert path.read_bytes()[-38:-32] == b"rnnjax"
        assert native_build._read(path)


def test_what_is_in_the_cache_needs_no_room(anew, monkeypatch):
    assert answer() == 42
    native_build._loaded.clear()
    monkeypatch.setattr(native_build, "_compile", None)
    assert answer() == 42


def test_other_flags_make_another_library(anew, monkeypatch):
    answer()
    monkeypatch.setenv("RNNJAX_NATIVE_FLAGS", "-O0")
    answer()
    assert len(list((anew / "cache").glob("answer-*.so"))) == 2


def test_two_processes_at_once(anew):
    program = f"from rnnjax.engines.affine import native_build as b\nprint(b.libraries({{'answer': {TEXT!r}}})"
    program += "['answer'][1].answer())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in both] == ["42\n", "42\n"]
    assert [path.suffix for path in (anew / "cache").iterdir()] == [".so"]

"""Compiled programs that one command leaves for the next one."""

import os
import subprocess
import sys
import time
import types
import warnings

import pytest

from rnnjax.cli import compiled
from tests.lm.tiny_run import make_run

PROGRAM = """
import jax
from rnnjax.cli.compiled import keep_compiled
keep_compiled()
print(jax.jit(lambda x: x * 2 + 1)(3.0), jax.config.jax_compilation_cache_dir)
"""


def run(folder, **environment):
    left = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    left |= {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=left | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_programs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compiled.compiled_folder()
    assert folder.parent == tmp_path / "rnnjax" / "compiled"
    assert run(tmp_path) == ["7.0", str(folder)]
    kept = sorted(folder.iterdir())
    assert any("jit" in path.name for path in kept) and folder.stat().st_mode & 0o077 == 0
    assert run(tmp_path) == ["7.0", str(folder)]
    assert {path.name for path in kept} <= {path.name for path in folder.iterdir()}
    assert run(tmp_path / "none", JAX_ENABLE_COMPILATION_CACHE="0") == ["7.0", "None"]
    assert not (tmp_path / "none").exists()


def test_a_command_keeps_nothing_if_told_so(tmp_path):
    left = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    left |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    folder = make_run(tmp_path / "run")
    kept, said = [], []
    for options in (["--no-compilation-cache"], []):
        command = [sys.executable, "-m", "rnnjax", *options, "sample", str(folder), "--length", "5", "--seed", "1"]
        said.append(subprocess.run(command, env=left, capture_output=True, text=True, check=True).stdout)
        kept.append([path for path in (tmp_path / "rnnjax").rglob("*") if path.is_file()])
    assert not kept[0] and kept[1] and said[0] == said[1]


@pytest.mark.parametrize("case", ["free", "named", "off", "shared"])
def test_what_the_user_says_goes(case, tmp_path, monkeypatch):
    """A folder that JAX has been told of stays, none is none, and one that others can write to is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compiled.compiled_folder()
    if case == "shared":
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    told = {}
    config = types.SimpleNamespace(
        jax_compilation_cache_dir="mine" if case == "named" else None,
        jax_enable_compilation_cache=case != "off",
        update=told.__setitem__,
    )
    monkeypatch.setattr(compiled, "jax", types.SimpleNamespace(config=config))
    with warnings.catch_warnings():
        compiled.keep_compiled()
    assert told.get("jax_compilation_cache_dir") == (str(folder) if case == "free" else None)


def test_what_nobody_reads_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "jax", types.SimpleNamespace(config=types.SimpleNamespace(
        jax_compilation_cache_dir=None, jax_enable_compilation_cache=True, update=lambda *_: None)))  # fmt: skip
    folder = compiled.compiled_folder()
    folder.mkdir(parents=True, mode=0o700)
    other = folder.parent / "another"
    other.mkdir()
    tried = folder / "xla_gpu_per_fusion_autotune_cache_dir"
    tried.mkdir()
    ages = {folder / "new": 1, folder / "old": 40, other / "old": 40, other / "new": 29, tried / "old": 40, tried: 50}
    for path, days in ages.items():
        if path != tried:
            path.touch()
        os.utime(path, (time.time() - 86400 * days,) * 2)
    strange = tmp_path / "strange" / "letter"
    strange.parent.mkdir()
    strange.touch()
    os.utime(strange, (0, 0))
    (folder.parent / "link").symlink_to(strange.parent)
    with warnings.catch_warnings():
        compiled.keep_compiled()
    assert strange.exists()
    (folder.parent / "link").unlink()
    left = sorted(path.name for path in folder.parent.glob("*/**/*"))
    assert left == ["new", "new", "xla_gpu_per_fusion_autotune_cache_dir"]

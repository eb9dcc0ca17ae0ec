"""What is handed out: wheel and sdist are built and checked, and the wheel runs in an environment of its own."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.pages import ROOT

pytestmark = pytest.mark.release


def run(*words, **options):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # of the checkout
    result = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, env=env, **options)
    assert not result.returncode, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("build.__main__", reason="pip install build twine")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_wheel_and_sdist_hold_what_they_must(built):
    wheel, sdist = built
    pytest.importorskip("twine", reason="pip install build twine")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    assert wheel.name.endswith("-py3-none-any.whl")  # pure Python
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rnnjax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package <= inside  # scripts of the page and texts of kernels too
    assert not [name for name in inside if name.split("/")[0] not in ("rnnjax",) and ".dist-info/" not in name]
    (root,) = {name.split("/")[0] for name in tarfile.open(sdist).getnames()}
    files = set(tarfile.open(sdist).getnames())
    assert {f"{root}/{name}" for name in ("README.md", "LICENSE", "pyproject.toml", "rnnjax/__init__.py")} <= files


def test_a_clean_environment_trains(built, tmp_path):
    """Installed as a user does it, away from the checkout; the demo makes its first twenty steps."""
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{built[0]}[lm]")
    out = run(python, "-c", "import rnnjax; print(rnnjax.__version__, rnnjax.__file__)", cwd=tmp_path)
    assert str(tmp_path) in out
    command = tmp_path / "env" / "bin" / "rnnjax"
    run(command, *"train --preset demo --steps 20 --evals 1 --sample-length 20 --out run".split(), cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert rows[-1]["step"] == 20 and losses[-1] < 4  # of ln 108 = 4.7
    assert len(run(command, "sample", "run", "--length", 20, cwd=tmp_path)) >= 20

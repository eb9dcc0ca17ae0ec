"""What a shell offers behind Tab: commands, their options, and the values of some."""

import shutil
import subprocess

import pytest

from rnnjax.cells import CELLS
from rnnjax.cli import COMMANDS
from tests.lm.tiny_run import rnnjax


def script(capsys, shell):
    found = rnnjax(capsys, "completion", shell)
    assert found.code == 0, found.err
    return found.out


def offered(text, *words):
    """What bash offers for the last of the words."""
    line = "\n".join(
        [
            text,
            f"COMP_WORDS=({' '.join(repr(word) for word in ('rnnjax', *words))})",
            f"COMP_CWORD={len(words)}",
            "_rnnjax",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
    )
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    return result.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(capsys):
    text = script(capsys, "bash")
    assert set(offered(text, "")) == {*COMMANDS, "--version", "--help"}
    assert offered(text, "tr") == ["train"]
    assert offered(text, "train", "book.txt", "--chunk") == ["--chunk-len"]
    assert set(offered(text, "train", "--cell", "")) == set(CELLS) - {"conv_lstm"}
    assert offered(text, "train", "--cell", "peep") == ["peephole_lstm"]
    assert offered(text, "convert", "a", "b", "--reset") == ["--reset-after", "--reset-before"]
    assert offered(text, "completion", "f") == ["fish"]
    assert offered(text, "sample", "ru") == []  # files, which bash offers by itself


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_every_option(capsys, shell):
    text = script(capsys, shell)
    for name in COMMANDS:
        assert name in text
    for option in ("temperature", "chunk-len", "shifts", "horizon", "reset-after"):
        assert (f"--{option}:" if shell == "zsh" else f"-l {option} ") in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes(capsys):
    text = script(capsys, "fish")

    def offered(line):
        asked = f"{text}\ncomplete -C '{line}'"
        found = subprocess.run(["fish", "--no-config", "-c", asked], capture_output=True, text=True, check=True)
        return [one.partition("\t")[0] for one in found.stdout.splitlines()]

    assert offered("rnnjax tr") == ["train"]
    assert sorted(offered("rnnjax completion ")) == ["bash", "fish", "zsh"]
    assert offered("rnnjax train --chunk") == ["--chunk-len"]
    assert offered("rnnjax train --cell peep") == ["peephole_lstm"]
    assert offered("rnnjax --v") == ["--version"]


def test_another_shell_is_refused(capsys):
    found = rnnjax(capsys, "completion", "tcsh")
    assert found.code == 2 and "bash, zsh, fish, got 'tcsh'" in found.err


def test_help_speaks_in_words(capsys):
    found = rnnjax(capsys, "sample", "--help").out
    assert "NUMBER" in found and "TEXT" in found and "FILE" in found and "best|last" in found
    for word in ("<", "INTEGER", "FLOAT", "BOOL"):
        assert word not in found

"""Random command lines: python -m tests.fuzz.fuzz_cli [--calls 2000] [--seed 0] [--workers 2].

Options and their kinds are read off the commands, so a new option joins by itself. Values are of the right kind and of
wrong ones; texts, runs and cells are good, empty, damaged, missing or of somebody else. Every answer must be one of the
documented kinds (`tests.fuzz.harness`), and no command but ``train`` may change the run that it is given.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import importlib
import inspect
import os
import random
import shutil
import sys
import tempfile
import traceback
import typing
from pathlib import Path
from typing import Any

from rnnjax.cli import COMMANDS
from tests.fuzz.harness import Answer, call, finding, keep_programs, preload

WHOLE: list[Any] = [-1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, 10**30, "many", "", "1.5", "nan", "0x10"]
REAL: list[Any] = [-1, 0, 0.25, 1, 1.5, 1e-3, 1e30, "inf", "-inf", "nan", "x", "", "1e999"]
WORDS = """char byte word lstm gru elman(activation=relu) lstm(forget_bias=nan) mgu( conv_lstm highway(depth=2)
lstm(hidden_size=3) c.py:Good c.py:Raises c.py:Missing broken.py:X none.py:X adamw adam sgd cosine step plateau norm
value tail columns 0.9,0.05,0.05 1,0,0 0,0,1 a,b best last first safetensors stablehlo quote position c.py:label
c.py:bad_label L1.h.0 L1.c.2 L1.c L9.h.0 L1.h.99999 L1.gates.i.0 mean 0.5 replace skip error utf-8 utf-16 latin-1 hex
rot13 *.txt ** ../* [ demo char-rnn wide float32 bfloat16 cpu cpu,tpu torch keras rnnjax 1.0 True None""".split()
ODD = [
    "",
    " ",
    "\n",
    "\\n",
    "\x1b[2J\x1b]0;x\x07",
    "é€😀",
    "\udcff",
    "-",
    "--",
    "/",
    ".",
    "..",
    "~",
    "$HOME",
    "a" * 5000,
]
TEXTS = [
    "en.txt",
    "bom.txt",
    "crlf.txt",
    "utf16.txt",
    "bytes.bin",
    "empty.txt",
    "short.txt",
    "texts",
    "empty_folder",
    "en.txt.gz",
    "torn.gz",
    "missing.txt",
    "run",
    "/dev/null",
    "\x1b[31mred.txt",
]
RUNS = ["run", "run", "run", "run", "stranger", "no_run", "missing", "en.txt", "torn_run", "empty_folder", ""]
FILES = [
    "run/checkpoints",
    "net.safetensors",
    "torn.safetensors",
    "model.keras",
    "w.weights.h5",
    "en.txt",
    "new/out.png",
    "out.png",
    "out.txt",
    "out.safetensors",
    "out.keras",
    "out.weights.h5",
    "folder",
    "missing/x",
    "texts",
    "",
]
TABLES = """good.csv good.csv good.csv semicolon.csv utf16.csv bom.csv packed.csv.gz torn.csv.gz header.csv twice.csv
falling.csv infinite.csv huge.csv counter.csv escape.csv ragged.csv quote.csv nul.csv wide.csv one.csv binary.csv
words.csv latin.csv long.csv duplicate.csv late.csv empty.txt en.txt missing.csv folder run /dev/null""".split()
COLUMNS = ["t", "y", "shop", "price", "nope", "", "y,price", "t,t", "\x1b[31my", "é", "y\n", "price,", "kind"]
FORECASTS = ["frun", "frun", "frun", "torn_frun", "run", "missing", "no_run", "en.txt", ""]
# What would run for long by right, and says nothing about the program.
SMALL = {
    "samples",
    "windows",
    "horizon",
    "context",
    "length",
    "count",
    "steps",
    "epochs",
    "minutes",
    "symbols",
    "starts",
    "shifts",
    "layers",
    "sample_length",
}
BASE = {
    "train": "--steps 2 --hidden 4 --batch-size 2 --chunk-len 4 --no-baselines --sample-length 3 --evals 1",
    "forecast": "--horizon 3 --steps 2 --hidden 2 --windows 1 --batch-size 2 --season 4",
    "sample": "--length 5",
    "cells": "--shifts 2 --symbols 200",
    "ablate": "--unit L1.h.0 --symbols 200",
    "color": "--unit L1.h.0 --length 20",
    "gradflow": "--length 16 --batch-size 2",
    "lyapunov": "--length 16 --warmup 4",
    "fixedpoints": "--starts 2 --steps 20",
    "report": "--shifts 2 --symbols 200 --megabytes 1",
}

CODE = """
import rnnjax, numpy as np

class Good(rnnjax.GRU):
    pass

class Raises(rnnjax.GRU):
    def step(self, params, state, x):
        raise KeyError("kernel")

def label(text):
    return np.array([c == "a" for c in text])

def bad_label(text):
    return 1 / 0
"""


def prepare(folder: Path) -> None:
    """Texts, runs and files, good and bad."""
    rng = random.Random(0)
    text = "".join(rng.choice(["the ", "cat ", "'sat' ", "on ", "a ", "mat.\n", "\n\n"]) for _ in range(500))
    for name, data in {
        "en.txt": text.encode(),
        "bom.txt": b"\xef\xbb\xbf" + text.encode(),
        "empty.txt": b"",
        "short.txt": b"ab",
        "crlf.txt": text.replace("\n", "\r\n").encode(),
        "utf16.txt": text.encode("utf-16"),
        "bytes.bin": bytes(range(256)) * 8,
        "en.txt.gz": gzip.compress(text.encode()),
        "torn.gz": gzip.compress(text.encode())[:-20],
        "c.py": CODE.encode(),
        "broken.py": b"import nothing_here\n",
        "\x1b[31mred.txt": text.encode(),
        "torn.safetensors": b'\x10\0\0\0\0\0\0\0{"a":',
        "model.keras": b"PK\x03\x04",
        "w.weights.h5": b"\x89HDF\r\n",
    }.items():
        (folder / name).write_bytes(data)
    tables(folder)
    for name in ("texts", "empty_folder", "no_run", "folder"):
        (folder / name).mkdir()
    (folder / "texts/one.txt").write_text(text)
    (folder / "texts/two.txt").write_text(text[::-1])
    (folder / "no_run/config.json").write_text("{}")
    for name, cell in (("run", "lstm"), ("stranger", "c.py:Good")):
        small = "--steps 3 --hidden 4 --batch-size 2 --chunk-len 8 --no-baselines --evals 1 --sample-length 5".split()
        made = call(["train", "en.txt", "--out", name, "--cell", cell, *small], folder, "prepare")
        if made.code:
            raise SystemExit(f"no run to begin with: {made.err}")
    words = ["good.csv", "--target", "y", "--by", "shop", "--known", "price", "--out", "frun"]
    made = call(["forecast", *words, *BASE["forecast"].split()], folder, "prepare")
    if made.code:
        raise SystemExit(f"no forecast to begin with: {made.err}")
    shutil.copytree(folder / "frun", folder / "torn_frun")
    (folder / "torn_frun/result.json").write_bytes(b"{")
    shutil.copytree(folder / "run", folder / "torn_run")
    (folder / "torn_run/vocabulary.json").write_bytes(b"{")


def tables(folder: Path) -> None:
    """Files of series, good and bad."""
    rng = random.Random(1)
    head = ["t", "y", "shop", "price", "kind"]
    rows = [
        [f"2024-01-{1 + k // 24:02d} {k % 24:02d}:00", f"{5 + k % 4 + rng.random():.3f}" if k < 44 else "", s, k % 3, s]
        for s in ("a", "b")
        for k in range(48)
    ]
    rows = [list(map(str, row)) for row in rows]

    def text(rows: list[list[str]], sign: str = ",", head: list[str] = head, end: str = "\n") -> str:
        return end.join(sign.join(row) for row in [head, *rows]) + end

    def edited(column: int, at: int, word: str) -> str:
        changed = [list(row) for row in rows]
        changed[at][column] = word
        return text(changed)

    wide = [f"c{k}" for k in range(3000)]
    plain = text(rows)
    for name, data in {
        "good.csv": plain.encode(),
        "semicolon.csv": text([[row[0], row[1].replace(".", ","), *row[2:]] for row in rows], ";", end="\r\n").encode(),
        "utf16.csv": plain.encode("utf-16"),
        "bom.csv": b"\xef\xbb\xbf" + plain.encode(),
        "packed.csv.gz": gzip.compress(plain.encode()),
        "torn.csv.gz": gzip.compress(plain.encode())[:-9],
        "header.csv": text([]).encode(),
        "twice.csv": text([rows[0], *rows]).encode(),
        "falling.csv": text(rows[::-1]).encode(),
        "infinite.csv": edited(1, 5, rng.choice(["inf", "-inf", "1e999"])).encode(),
        "huge.csv": text([[r[0], f"{r[1]}e300" if r[1] else "", *r[2:]] for r in rows]).encode(),
        "counter.csv": text([[r[0], str(10**12 + k), *r[2:]] for k, r in enumerate(rows)]).encode(),
        "escape.csv": plain.replace("y,", "\x1b[31my,", 1).replace(",a,", ",\x1b]0;x\x07,").encode(),
        "ragged.csv": text([row[: 5 - k % 2] for k, row in enumerate(rows)]).encode(),
        "quote.csv": plain.replace("shop", '"shop', 1).encode(),
        "nul.csv": plain.replace("a", "\0").encode(),
        "wide.csv": text([["1"] * 3000] * 3, head=wide).encode(),
        "one.csv": text(rows[:1]).encode(),
        "binary.csv": bytes(range(256)) * 20,
        "words.csv": edited(1, 7, "many").encode(),
        "latin.csv": plain.replace("shop", "caf\xe9").encode("latin-1"),
        "long.csv": edited(2, 3, "x" * 200_000).encode(),
        "duplicate.csv": plain.replace("price", "y", 1).encode(),
        "late.csv": plain.replace("2024-01-0", "9999-12-0").encode(),
    }.items():
        (folder / name).write_bytes(data)


def options_of(command: str) -> dict[str, tuple[bool, Any]]:
    """The parameters of a command: whether each is an argument, and its kind."""
    function = getattr(importlib.import_module(COMMANDS[command].module), command)
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for name in inspect.signature(function).parameters:
        kind = hints[name]
        if typing.get_origin(kind) is not typing.Annotated:
            continue
        base, info = typing.get_args(kind)[:2]
        found[name] = type(info).__name__ == "ArgumentInfo", base
    return found


def value_of(command: str, name: str, kind: Any, rng: random.Random) -> str:
    members = [k for k in typing.get_args(kind) if k is not type(None)] or [kind]
    first = typing.get_args(members[0])[0] if typing.get_origin(members[0]) is list else members[0]
    if rng.random() < 0.1:
        return rng.choice(ODD)
    if name == "file":
        return rng.choice(TABLES)
    if name in ("time", "target", "by", "known", "observed", "static"):
        return rng.choice(COLUMNS)
    if name in ("run", "runs", "resume"):
        return rng.choice(FORECASTS if command == "forecast" or rng.random() < 0.1 else RUNS)
    if name in ("text", "prime_file"):
        return rng.choice(TEXTS)
    if first is int:
        pool = [v for v in WHOLE if name not in SMALL or not isinstance(v, int) or v < 100 or v > 2**62]
        if name in ("length", "count"):
            pool = [v for v in pool if not isinstance(v, int) or v < 100]
        return str(rng.choice(pool))
    if first is float:
        pool = [v for v in REAL if name != "minutes" or not isinstance(v, float | int) or not 0 < v < 1e9]
        pool = [v for v in pool if name != "epochs" or not isinstance(v, float | int) or not 1.4 < v < 1e9]
        return str(rng.choice(pool))
    return rng.choice(FILES if first is Path or name in ("out", "source", "target", "folder") else WORDS)


def command_line(rng: random.Random) -> list[str]:
    """A random call."""
    command = rng.choice([*COMMANDS, "train", "train", "sample", "forecast", "forecast"])
    words = [command]
    params = options_of(command)
    for name, (argument, kind) in params.items():
        if argument and rng.random() < 0.95:
            good = {"run": "run", "runs": "run", "source": "net.safetensors", "target": "out.safetensors"}
            good |= {"file": "good.csv"} if command == "forecast" else {"cell": "gru"} if command == "card" else {}
            bad = rng.random() < 0.3
            words.append(value_of(command, name, kind, rng) if bad or name not in good else good[name])
    words += BASE.get(command, "").split()
    if command == "forecast" and rng.random() < 0.8:
        words += ["--target", "y", "--by", "shop"]
    options = [name for name, (argument, _) in params.items() if not argument]
    chosen = rng.sample(options, k=min(len(options), rng.choice([0, 1, 1, 2, 3])))
    for name in chosen:
        flag = f"--{'json' if name == 'as_json' else name.replace('_', '-')}"
        if rng.random() < 0.03:
            flag = flag[:-1] + "x"
        words.append(flag)
        if params[name][1] not in (bool, bool | None) or rng.random() < 0.02:
            words.append(value_of(command, name, params[name][1], rng))
    if command in ("train", "forecast") and "--resume" not in words and "--out" not in words:
        words += ["--out", f"new_{rng.randrange(10**9)}"]
    if rng.random() < 0.03:
        words = rng.choice(
            [[], ["--help"], ["--version"], ["-h"], ["tarin"], ["--nope"], [command, "--help"], ["--", "x"]]
        )
    return [word.replace("\0", "") for word in words]


def state_of(folder: Path) -> str:
    """The digest of all that a run holds and no command may change."""
    found = hashlib.sha256()
    for path in sorted(p for name in ("run", "frun") for p in (folder / name).rglob("*")):
        if (
            path.is_file()
            and path.suffix in (".json", ".jsonl", ".safetensors", ".txt")
            and path.name != "written.json"
        ):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def one(number: int, seed: int, folder: Path, slot: str) -> tuple[list[str], Answer, str]:
    """A call and what is wrong with its answer."""
    rng = random.Random(f"{seed} {number}")
    words = command_line(rng)
    before = state_of(folder)
    answer = call(words, folder, slot)
    wrong = finding(answer)
    changed = state_of(folder) != before
    if changed:
        for name in ("run", "frun"):
            shutil.rmtree(folder / name)
            shutil.copytree(folder / f"kept_{name}", folder / name)
        if words[:1] not in (["train"], ["forecast"]):
            wrong = wrong or "the run has changed"
    text, kept = folder / "en.txt", folder / "kept_en.txt"  # a call may be told to write there
    if not text.is_file() or text.read_bytes() != kept.read_bytes():
        shutil.rmtree(text, ignore_errors=True) if text.is_dir() else text.unlink(missing_ok=True)
        shutil.copyfile(kept, text)
    for path in folder.glob("new_*"):
        shutil.rmtree(path, ignore_errors=True)
    return words, answer, wrong


def work(slot: int, arguments: argparse.Namespace, folder: Path) -> int:
    """One worker's share, in a folder of its own; prints what it finds."""
    mine = folder / f"worker_{slot}"
    mine.mkdir()
    keep_programs(mine / ".programs")
    prepare(mine)
    for name in ("run", "frun"):
        shutil.copytree(mine / name, mine / f"kept_{name}")
    shutil.copyfile(mine / "en.txt", mine / "kept_en.txt")
    codes: collections.Counter[Any] = collections.Counter()
    findings = 0
    for number in range(slot, arguments.calls, arguments.workers):
        words, answer, wrong = one(number, arguments.seed, mine, f"w{slot}")
        codes[answer.code] += 1
        if sum(codes.values()) % 100 == 0:
            print(f"worker {slot}: {sum(codes.values())} calls, {findings} findings", flush=True)
        if arguments.verbose:
            print(number, words, answer.code, f"{answer.seconds:.1f} s", answer.err[-200:], flush=True)
        if wrong:
            findings += 1
            print(f"FINDING call {number}: {wrong}\n  rnnjax {words!r}\n  {answer.err[-1500:]}", flush=True)
    print(f"worker {slot}: {sum(codes.values())} calls, exit codes {dict(codes)}, {findings} findings", flush=True)
    return findings


def main() -> None:
    """Forks the workers; the exit code says whether anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    preload()
    with tempfile.TemporaryDirectory(prefix="rnnjax-fuzz-") as name:
        children = []
        for slot in range(arguments.workers):
            child = os.fork()
            if not child:
                try:
                    os._exit(min(work(slot, arguments, Path(name)), 100))
                except BaseException:
                    traceback.print_exc()
                    os._exit(101)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(f"fuzz_cli: {arguments.calls} calls, seed {arguments.seed}: {sum(codes)} findings")
    sys.exit(bool(sum(codes)))


if __name__ == "__main__":
    main()

"""Damaged run folders and files: python -m tests.fuzz.fuzz_damage [--damages 1000] [--seed 0].

Bits are flipped, files are cut, swapped, emptied, removed, replaced by links, pipes and folders; JSON is edited, with
and without a new signature, to other kinds, huge numbers and deep nests. What is opened then must be what was saved, to
the last bit, or be refused in one sentence. Never another result, a traceback of another kind, a hang, much memory,
or a line of code that ran.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rnnjax
from rnnjax.arrays import ArraysFile, seal, write_arrays
from rnnjax.cli.language_model import _describe
from rnnjax.files import CheckpointError, digest
from rnnjax.forecast.run import ForecastConfig, ForecastPaths
from rnnjax.lm.export import export, load_export
from rnnjax.lm.plots import loss_curve, read_metrics
from rnnjax.lm.run import open_run
from rnnjax.report.forecasts import forecast_page
from tests.fuzz.harness import MEMORY, call, finding, preload

SECONDS = 60  # of the processor, of one opening
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**31,
    2**40,
    2**63,
    10**400,
    "",
    "x" * 10_000,
    "\x1b[2J",
    "../../etc/passwd",
    "lstm(",
    "gru",
    "evil.py:Evil",
    "Stack((LSTM(4),))",
    [],
    [1],
    {},
    {"a": 1},
]
TRAIN_ROW = {"kind": "train", "loss": 1.0, "grad_norm": 1.0, "grad_norm_max": 1.0, "lr": 1.0, "step": 9, "symbols": 99}
EVIL = "import pathlib\npathlib.Path('was_run').touch()\nimport rnnjax\nclass Evil(rnnjax.LSTM): pass\n"


def prepare(folder: Path) -> None:
    """A run, its export, and a saved network."""
    rng = random.Random(0)
    (folder / "text.txt").write_text("".join(rng.choice("abcde fgh\n") for _ in range(2000)))
    small = "--steps 6 --hidden 4 --batch-size 2 --chunk-len 8 --no-baselines --evals 2 --sample-length 9 --log-every 2"
    made = call(["train", "text.txt", "--out", "run", *small.split()], folder, "prepare")
    if made.code:
        raise RuntimeError(f"no run to begin with: {made.err}")
    rows = "\n".join(f"{5 + k % 4 + rng.random():.3f}" for k in range(40))
    (folder / "series.csv").write_text(f"y\n{rows}\n")
    small = "--horizon 3 --steps 4 --hidden 2 --windows 1 --batch-size 2 --season 4 --out frun"
    made = call(["forecast", "series.csv", *small.split()], folder, "prepare")
    if made.code:
        raise RuntimeError(f"no forecast to begin with: {made.err}")
    (folder / "evil.py").write_text(EVIL)


def save_more(folder: Path) -> None:
    """What needs JAX in this process."""
    export(open_run(folder / "run"), folder / "export")
    cell = rnnjax.Stack((rnnjax.LSTM(4), rnnjax.GRU(3)))
    (folder / "net").mkdir()
    rnnjax.save(folder / "net/net.safetensors", cell, cell.init(jax.random.key(0), 5))


def open_all(folder: Path, kind: str) -> list[Any]:
    """What there is to see, as values that can be compared."""
    if kind == "run":
        run = open_run(folder / "run")
        # Of what is shown alone, nothing but that it is there.
        loss_curve([*read_metrics(run.paths.metrics), TRAIN_ROW], {})
        _describe(folder / "run", False)
        found: list[Any] = [run.config.identity(), run.vocabulary, run.model, run.params]
    elif kind == "frun":
        paths = ForecastPaths(folder / "frun")
        found = [ForecastConfig.read(paths.root), forecast_page(paths)]
    elif kind == "export":
        found = list(load_export(folder / "export"))
    else:
        found = list(rnnjax.load(folder / "net/net.safetensors"))
    return found


def same(one: list[Any], two: list[Any]) -> bool:
    leaves = [jax.tree.leaves(found) for found in (one, two)]
    if len(leaves[0]) != len(leaves[1]):
        return False
    return all(
        np.array_equal(a, b) and a.dtype == b.dtype if hasattr(a, "dtype") and hasattr(b, "dtype") else a == b
        for a, b in zip(*leaves, strict=True)
    )


def edit_json(data: Any, rng: random.Random) -> Any:
    """The data with one value, somewhere, replaced, removed or nested."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(data)
    node, key = rng.choice(places)
    choice = rng.random()
    if choice < 0.15:
        del node[key]
    elif choice < 0.25 and isinstance(node, dict):
        node[f"{key}_"] = node[key]
    elif choice < 0.35 and isinstance(node, list) and len(node) > 1:
        other = rng.randrange(len(node))
        node[key], node[other] = node[other], node[key]
    elif choice < 0.5 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = rng.choice([node[key] * 2, -node[key], node[key] + 1, float(node[key])])
    else:
        node[key] = rng.choice(ODD)
    return data


def damage(path: Path, rng: random.Random) -> str:
    """Damages one file; returns how."""
    data = path.read_bytes()
    kinds = [
        "flip",
        "flip",
        "flip",
        "cut",
        "empty",
        "insert",
        "drop",
        "zeros",
        "random",
        "gone",
        "link",
        "pipe",
        "folder",
    ]
    if path.suffix == ".json":
        kinds += ["edit"] * 4 + ["sign"] * 10 + ["nest"]
    if path.suffix == ".jsonl":
        kinds += ["rows"] * 20
    if path.suffix == ".safetensors":
        kinds += ["header"] * 4 + ["seal"] * 4 + ["nest"]
    kind = rng.choice(kinds)
    at = rng.randrange(max(len(data), 1))
    new: bytes | None = None
    if kind == "flip":
        bits = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
        new = bytes(bits)
    elif kind == "cut":
        new = data[:at]
    elif kind == "empty":
        new = b""
    elif kind == "insert":
        new = data[:at] + rng.randbytes(rng.choice([1, 8, 100])) + data[at:]
    elif kind == "drop":
        new = data[:at] + data[at + rng.choice([1, 4, 64]) :]
    elif kind == "zeros":
        new = data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    elif kind == "random":
        new = rng.randbytes(len(data))
    elif kind in ("edit", "sign"):
        edited = edit_json(json.loads(data), rng)
        if kind == "sign" and isinstance(edited, dict):
            edited.pop("sha256", None)
            edited["sha256"] = digest(edited)
        new = json.dumps(edited).encode()
    elif kind == "rows":
        rows = [json.loads(line) for line in data.splitlines()]
        new = b"".join(json.dumps(row).encode() + b"\n" for row in edit_json(rows, rng))
    elif kind == "nest":
        deep = rng.choice([b"[", b'{"a":']) * 100_000
        new = deep if path.suffix == ".json" else len(deep).to_bytes(8, "little") + deep
    elif kind == "header":
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(edit_json(json.loads(data[8 : 8 + size]), rng)).encode()
        new = len(header).to_bytes(8, "little") + header + data[8 + size :]
    elif kind == "seal":  # other arrays or metadata under a signature that fits
        with path.open("rb") as raw:
            file = ArraysFile(raw, len(data), where="fuzz")
            arrays, metadata = file.read_all(), dict(file.metadata)
        metadata = {k: v for k, v in metadata.items() if k not in ("rnnjax.arrays", "rnnjax.sha256")}
        name = rng.choice(sorted(arrays))
        change = rng.random()
        if change < 0.3:
            arrays[name] = arrays[name].ravel()[:1]
        elif change < 0.5:
            del arrays[name]
        elif change < 0.7:
            arrays[f"{name}x"] = arrays[name]
        else:
            key = rng.choice(sorted(metadata))
            metadata[key] = str(rng.choice(ODD))
        write_arrays(path, arrays, seal(arrays, metadata))
    else:
        path.unlink()
        if kind == "link":
            path.symlink_to("/etc/passwd" if rng.random() < 0.5 else path.with_name("other"))
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
    if new is not None:
        path.write_bytes(new)
    return kind


def one(number: int, seed: int, folder: Path, whole: dict[str, list[Any]]) -> tuple[str, str, str]:
    """A damage: what it was, what came of it, and what is wrong with that."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(["run", "run", "run", "frun", "export", "net"])
    target = folder / kind
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "kept" / kind, target)
    names = ("config.json", "vocabulary.json", "metrics.jsonl") if kind == "run" else ("",)
    files = [p for p in sorted(target.rglob("*")) if p.is_file() and (p.name in names or p.suffix == ".safetensors")]
    if kind == "frun":
        files = [target / "config.json", target / "result.json"]
    files = files if kind in ("run", "frun") else [p for p in sorted(target.rglob("*")) if p.is_file()]
    path = rng.choice(files)
    what = f"{path.relative_to(folder)}: {damage(path, rng)}"
    if kind == "frun" and what.endswith("sign"):  # compared where it goes on, with its checkpoints
        return what, "not opened", ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(60 * SECONDS)  # for what waits
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = open_all(folder, kind)
        if same(found, whole[kind]):
            return what, "the same", ""
        # A file without digests loads with a warning, and is the one thing that may differ.
        return what, "other", "" if warned and kind == "net" else "another result, and not a word"
    except (CheckpointError, FileNotFoundError, IsADirectoryError, OSError, ValueError) as error:
        sentence = str(error)
        wrong = ""
        if "\n" in sentence or not sentence.strip() or len(sentence) > 2000:
            wrong = f"no sentence: {sentence!r:.300}"
        return what, "refused", wrong
    except BaseException as error:
        return what, "raised", f"{type(error).__name__}: {traceback.format_exc()[-1500:]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def resumed(number: int, seed: int, folder: Path) -> tuple[str, str, str]:
    """A damage to any file of a run, and the command that goes on with it."""
    rng = random.Random(f"{seed} resumed {number}")
    name = rng.choice(["run", "run", "frun"])
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "kept" / name, target)
    path = rng.choice([p for p in sorted(target.rglob("*")) if p.is_file() and p.suffix not in (".png", ".lock")])
    before = path.read_bytes()
    how = damage(path, rng)
    words = ["train", "--resume", "run", "--steps", "8", "--no-baselines"]
    answer = call(words if name == "run" else ["forecast", "--resume", "frun", "--steps", "6"], folder, "resumed")
    what, wrong = f"{path.relative_to(folder)}: {how}, resumed", finding(answer)
    if not wrong and answer.code == 0 and path.suffix in (".jsonl", ".txt"):
        kept = path.read_bytes()[: len(before)] == before
        if not kept and "rnnjax: warning: " not in answer.err and path.name == "samples.txt":
            wrong = "a log with a hole, and not a word"
    return what, f"exit {answer.code}", f"{wrong}\n{answer.err[-1500:]}" if wrong else ""


def work(first: int, arguments: argparse.Namespace, folder: Path, log: Path) -> None:
    """Opens one damage after the other, in this process; what it finds goes to the log, line by line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    whole = {}
    for kind in ("run", "frun", "export", "net"):
        shutil.rmtree(folder / kind, ignore_errors=True)
        shutil.copytree(folder / "kept" / kind, folder / kind)
        whole[kind] = open_all(folder, kind)
    with log.open("a") as file:
        for number in range(first, arguments.damages):
            file.write(json.dumps({"begin": number}) + "\n")
            file.flush()
            what, came, wrong = one(number, arguments.seed, folder, whole)
            if (folder / "was_run").exists() or Path("was_run").exists():
                wrong = "code has run"
            file.write(json.dumps({"number": number, "what": what, "came": came, "wrong": wrong}) + "\n")


def main() -> None:
    """Prints the counts; the exit code says whether anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--resumes", type=int, default=100, help="How many of any file, with train --resume.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    preload()
    with tempfile.TemporaryDirectory(prefix="rnnjax-fuzz-") as name:
        folder, log = Path(name), Path(name, "log")
        prepare(folder)
        counts: collections.Counter[str] = collections.Counter()
        findings = []
        (folder / "kept").mkdir()
        for kind in ("run", "frun"):
            shutil.copytree(folder / kind, folder / "kept" / kind)
        for number in range(arguments.resumes):  # by forks, so before JAX runs in this process
            what, came, wrong = resumed(number, arguments.seed, folder)
            counts[came] += 1
            findings += [f"resume {number}: {what}: {wrong}"] if wrong else []
        shutil.rmtree(folder / "run")
        shutil.copytree(folder / "kept/run", folder / "run")
        _forked(save_more, folder)
        for kind in ("export", "net"):
            shutil.copytree(folder / kind, folder / "kept" / kind)
        first = 0
        while first < arguments.damages:
            code = _forked(work, first, arguments, folder, log)
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            begun = max(row["begin"] for row in rows if "begin" in row)
            if code == 0:
                break
            findings.append(f"damage {begun}: the process ended with {code}")
            first = begun + 1
        for row in rows:
            if "what" in row:
                counts[row["came"]] += 1
                findings += [f"damage {row['number']}: {row['what']}: {row['wrong']}"] if row["wrong"] else []
    for found in findings:
        print(f"FINDING {found}")
    total = arguments.damages + arguments.resumes
    print(f"fuzz_damage: {total} damages, seed {arguments.seed}: {dict(counts)}, {len(findings)} findings")
    sys.exit(bool(findings))


def _forked(function: Any, *arguments: Any) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            function(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()

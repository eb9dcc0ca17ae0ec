"""What every experiment shares: its options, its errors, and the file of its results.

An experiment is `experiments/NN_name/run.py`, started from the project's root as ``python -m experiments.NN_name.run``.
"""

import argparse
import dataclasses
import datetime
import io
import json
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

import rnnjax
from rnnjax.files import write_atomic

__all__ = ["DataError", "Options", "fail", "finish", "parse", "plain", "run", "say"]

DEFAULT = "default"


class DataError(ValueError):
    """A data file that cannot be used; the message names file and line.

    >>> str(DataError(pathlib.Path("names.csv"), 17, "needs a label, got an empty one; remove the line"))
    'names.csv, line 17: needs a label, got an empty one; remove the line.'
    """

    def __init__(self, path: pathlib.Path | str, line: int | None, problem: str) -> None:
        at = "" if line is None else f", line {line}"
        super().__init__(f"{path}{at}: {problem}.")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line of an experiment says."""

    quick: bool  # a few seconds: whether it runs, not what comes out
    dataset: str  # "default" for what is embedded, else the name of the folder given
    data: pathlib.Path | None  # that folder
    out: pathlib.Path  # where result.json and the pictures go
    seed: int
    began: float = dataclasses.field(default_factory=time.perf_counter)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # options of this experiment alone

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.began


def parse(
    argv: Sequence[str] | None,
    *,
    here: pathlib.Path,
    doc: str,
    datasets: Mapping[str, str] | None = None,
    add: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> Options:
    """Reads the command line.

    Args:
        argv: arguments; None for those of the process.
        here: the experiment's folder, where results go by default.
        doc: the docstring of the experiment.
        datasets: names of the real data sets that it takes, with a line of description each.
        add: adds options of its own, found in ``options.extra``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{here.name}.run",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds: whether it runs, not what comes out")
    parser.add_argument("--out", type=pathlib.Path, default=here, help="folder of result.json and the pictures")
    parser.add_argument("--seed", type=int, default=0)
    if datasets:
        listed = "; ".join(f"{name}: {what}" for name, what in datasets.items())
        parser.add_argument("--data", type=pathlib.Path, help=f"folder of a real data set, known by its name. {listed}")
    add(parser)
    values = vars(parser.parse_args(argv))
    data = values.pop("data", None)
    name = DEFAULT if data is None else data.resolve().name
    if data is not None and name not in (datasets or {}):
        fail(f"--data: must be a folder named {' or '.join(datasets or ())}, got {data}.")
    if data is not None and not data.is_dir():
        fail(f"--data: there is no folder {data}; leave --data out for the embedded data.")
    known = {key: values.pop(key) for key in ("quick", "out", "seed")}
    return Options(dataset=name, data=data, extra=values, **known)


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Runs an experiment; bad input ends it with one sentence and exit code 2."""
    try:
        main(argv)
    except (ValueError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; nothing was written.", code=130)


def fail(sentence: str, *, code: int = 2) -> NoReturn:
    """Ends the program with a sentence on standard error."""
    print(sentence, file=sys.stderr)
    raise SystemExit(code)


def say(options: Options, text: str) -> None:
    """A line on the terminal, with the seconds since the start."""
    print(f"[{options.seconds:6.0f} s] {text}", flush=True)


def finish(options: Options, result: Mapping[str, Any], pictures: Mapping[str, Any] | None = None) -> pathlib.Path:
    """Writes result.json and the pictures; results of other data sets that are in the file stay there.

    Args:
        options: of this run.
        result: what was found: numbers, strings, lists, dicts and arrays.
        pictures: matplotlib figures by file name.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in (pictures or {}).items():
        _save_picture(figure, options.out / name, dpi=40 if options.quick else 110)
    path = options.out / "result.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found[options.dataset] = {**plain(dict(result)), "quick": options.quick, "made_with": _made_with(options)}
    write_atomic(path, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    say(options, f"wrote {', '.join(str(options.out / name) for name in ('result.json', *(pictures or {})))}")
    return path


def _save_picture(figure: Any, path: pathlib.Path, dpi: int) -> None:
    """A PNG of 256 colours: a third of the size of one with all of them, and nobody sees the difference."""
    from PIL import Image  # comes with matplotlib

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _made_with(options: Options) -> dict[str, Any]:
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "seconds": round(options.seconds, 1),
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cores": cores,
        "seed": options.seed,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "rnnjax": rnnjax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def plain(value: Any) -> Any:
    """What JSON holds: five digits of every number, null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value

"""``rnnjax sample``, ``eval`` and ``info``: what one does with a trained run."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
import secrets
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import numpy as np
import typer

from rnnjax.cell import check_size
from rnnjax.cells.registry import cell_file
from rnnjax.cli.interactive import converse
from rnnjax.cli.options import EVAL, Checkpoint, Json, RunArgument, TrustCode, check_partners
from rnnjax.cli.output import echo, echo_json, echo_table, nats
from rnnjax.cli.reading import read_for_run
from rnnjax.files import FileWarning, first_line
from rnnjax.fit.checkpoint import best, find_checkpoints, open_checkpoint, restore
from rnnjax.fit.folder import check_code
from rnnjax.fit.printer import duration
from rnnjax.lm.evaluate import Dynamic, Evaluation, evaluate, evaluate_dynamic, evaluate_windows
from rnnjax.lm.plots import read_metrics
from rnnjax.lm.run import (
    Run,
    make_model,
    open_run,
    own_text,
    read_config,
)
from rnnjax.lm.sample import Session, default_prime, generate, stream_text
from rnnjax.summary import title
from rnnjax.text.shown import shown
from rnnjax.text.wide import check_wide

__all__ = ["eval", "info", "sample"]

_Parts = dict[str, tuple[np.ndarray, np.ndarray | None]]  # ids and document starts of texts, by name
SEPARATOR = "-" * 40


def sample(
    run: RunArgument,
    prime: Annotated[str, typer.Option(help="Text to go on from; it is printed first. None: a new line.")] = "",
    prime_file: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE", help="File to go on from, of any length; it is not printed.")
    ] = None,
    length: Annotated[int, typer.Option(help="Symbols to write: characters, bytes or words, as trained.")] = 1000,
    temperature: Annotated[
        float, typer.Option(help="1: as the model predicts; below: safer; above: wilder; 0: as --greedy.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from the K likeliest symbols only; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the fewest likeliest symbols that have probability P together.")
    ] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest symbol.")] = False,
    stop: Annotated[str, typer.Option(help="End before the first place where this text would stand.")] = "",
    count: Annotated[int, typer.Option(help=f"Samples; between them stands a line {SEPARATOR[:8]}...")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same text. By default random, shown on stderr.")
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            help="Read lines from standard input, and answer each with one: up to a new line (or --stop), or --length "
            "symbols. The state goes on from line to line.",
        ),
    ] = False,
    unknown: Annotated[
        str,
        typer.Option(
            metavar="error|skip|replace",
            help="Prime symbols that the model does not know: error, skip, or replace by its unknown symbol.",
        ),
    ] = "error",
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
) -> None:
    r"""Write text in the manner of a trained run, symbol by symbol, to standard output.

    [bold]rnnjax sample runs/book --prime "It was" --temperature 0.8[/bold]
    [bold]rnnjax sample runs/book --length 100000 --seed 1 > text.txt[/bold]
    [bold]rnnjax sample runs/book --count 5 --stop "."[/bold]
    [bold]rnnjax sample runs/book --interactive[/bold]
    """
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    vocabulary = opened.vocabulary
    ids = _prime_ids(opened, prime, prime_file, unknown)
    if seed is not None and not 0 <= seed < 1 << 31:
        raise ValueError(f"--seed: must be from 0 to {(1 << 31) - 1}, got {seed}.")
    used_seed = secrets.randbelow(1 << 31) if seed is None else seed
    for name, value, off in (("--temperature", temperature, 1), ("--top-k", top_k, 0), ("--top-p", top_p, 1)):
        if greedy and value not in (off, 0):
            raise ValueError(f"{name}: does not go together with --greedy, which draws nothing; leave one of them out.")
    if interactive:
        if count != 1:
            raise ValueError(f"--count: one conversation goes on, got {count}; leave it out.")
        check_size("--length", "the symbols of an answer", length)
        heat, key = 0.0 if greedy else temperature, jax.random.key(used_seed)
        session = Session(opened.model, opened.params, vocabulary, key, temperature=heat, top_k=top_k, top_p=top_p)
        if seed is None:
            echo(f"seed {used_seed}", err=True)
        converse(session, vocabulary, ids, length, stop or "\n", unknown)
        return

    def one_sample(number: int) -> Iterator[np.ndarray]:
        blocks = generate(
            opened.model,
            opened.params,
            ids if len(ids) else default_prime(vocabulary),
            key=jax.random.key(used_seed),
            length=length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            greedy=greedy,
            first=number,
            banned=vocabulary.unknown,
        )
        return (block[0] for block in blocks)

    check_size("--count", "the number of samples", count)
    first = one_sample(0)  # checks the options before anything is printed
    if seed is None:
        echo(f"seed {used_seed}", err=True)
    pieces = (
        itertools.chain(
            [f"\n{SEPARATOR}\n{prime}" if number else prime],
            stream_text(vocabulary, one_sample(number) if number else first, stop=stop),
        )
        for number in range(count)
    )
    _print_all(itertools.chain.from_iterable(pieces))


def _prime_ids(run: Run, prime: str, prime_file: pathlib.Path | None, unknown: str) -> np.ndarray:
    if prime and prime_file is not None:
        raise ValueError("sample: give --prime or --prime-file, got both; leave one out.")
    text: str | bytes = prime
    if prime_file is not None:
        encoding = run.config.text.encoding
        try:
            text = prime_file.read_bytes()
            if run.vocabulary.level != "byte":
                check_wide("--prime-file", str(prime_file), text, encoding, f"write it in {encoding}")
                text = text.decode(encoding).removeprefix("\ufeff")  # a mark of the byte order is no text
                if "\r\n" in text and "\r" not in "".join(run.vocabulary.symbols):
                    said = f"Lines of {prime_file} end in \\r\\n; they are read as the \\n of the training."
                    warnings.warn(said, FileWarning, stacklevel=2)
                    text = text.replace("\r\n", "\n")
        except UnicodeError as error:
            raise ValueError(
                f"--prime-file: {prime_file} must be {encoding} text, got what is not: {first_line(error)}."
            ) from error
        except OSError as error:
            raise ValueError(f"--prime-file: {prime_file} cannot be read ({error.strerror}); name a file.") from error
    ids = run.vocabulary.encode(text, unknown)
    if text and not len(ids):
        raise ValueError("sample: the prime must hold a symbol that the model knows, got none; take another text.")
    return ids


def _print_all(pieces: Iterator[str]) -> None:
    """Prints pieces as they come; a reader that leaves, as ``| head`` does, ends it without complaint."""
    terminal = sys.stdout.isatty()
    try:
        for piece in pieces:
            typer.echo(shown(piece) if terminal else piece, nl=False)
        if terminal:
            typer.echo()
    except BrokenPipeError:
        # What is buffered would be flushed, and fail again, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def eval(
    run: RunArgument,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Files (also gzip), folders, - for standard input. None: validation and test text."
        ),
    ] = None,
    streams: Annotated[
        int, typer.Option(help="Pieces of the text that are read side by side; 1 is exact, and slower.")
    ] = 1,
    warmup: Annotated[
        int | None, typer.Option(help="Symbols that each of several pieces reads before its beginning: 256.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Symbols of a cold window. By default as in training, --chunk-len.")
    ] = None,
    unknown: Annotated[
        str | None,
        typer.Option(
            metavar="replace|skip|error",
            help="Symbols that the model does not know: replace, skip or error. By default replaced where the model "
            "has an unknown symbol, else skipped; they are counted.",
        ),
    ] = None,
    dynamic: Annotated[
        bool,
        typer.Option("--dynamic", help="Also with parameters that follow the text they have read; much slower."),
    ] = False,
    dynamic_lr: Annotated[
        float | None, typer.Option(help=f"Of --dynamic: the step of a parameter a window: {Dynamic.lr:g}.")
    ] = None,
    dynamic_decay: Annotated[
        float | None,
        typer.Option(help=f"Of --dynamic: the share of the way back to what was trained, a window: {Dynamic.decay:g}."),
    ] = None,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Measure how well a trained run predicts text: mean loss a symbol in nats, bits and perplexity.

    Carried: the state goes through the whole text. Cold: every window starts from the initial state. Dynamic: carried,
    and after every 32 symbols the parameters take a step towards what they have read (Krause et al., 2018).

    [bold]rnnjax eval runs/book[/bold]                    validation and test text of the run
    [bold]rnnjax eval runs/book other.txt --json[/bold]   a text of your own
    """
    check_partners(EVAL, locals(), {name for name, value in locals().items() if value is not None})
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    if unknown is None:
        unknown = "skip" if opened.vocabulary.unknown is None else "replace"
    parts, missing = _read_foreign(opened, tuple(text), unknown) if text else _read_own(opened, unknown)
    window = opened.config.train.chunk_len if window is None else window
    warmup = 256 if warmup is None else warmup
    rates: dict[str, Any] = {"lr": dynamic_lr, "decay": dynamic_decay}
    follow = Dynamic(**{name: rate for name, rate in rates.items() if rate is not None})
    results: list[dict[str, Any]] = []
    for name, (ids, starts) in parts.items():
        carried = evaluate(opened.model, opened.params, ids, streams=streams, warmup=warmup, starts=starts)
        cold = evaluate_windows(opened.model, opened.params, ids, window=window)
        results.append({"text": name, "state": "carried", **_numbers(carried)})
        results.append({"text": name, "state": f"cold, windows of {window}", **_numbers(cold)})
        if dynamic:
            found = evaluate_dynamic(opened.model, opened.params, ids, options=follow, starts=starts)
            results.append({"text": name, "state": "dynamic", **_numbers(found)})
            if not found.loss < 2 * max(carried.loss, math.log(opened.model.vocab_size)):
                echo(f"The parameters ran away from what was trained on {name}; lower --dynamic-lr.", err=True)
    if as_json:
        step = opened.meta.get("step")
        echo_json({"run": str(run), "step": step, "unknown_symbols": missing, "results": results})
        return
    if missing:
        done = {"replace": "replaced by the unknown symbol", "skip": "left out"}[unknown]
        echo(f"Symbols that the model does not know: {missing:,}; they were {done}.", err=True)
    level = opened.vocabulary.level
    echo_table(
        ("text", "state", f"nats/{level}", f"bits/{level}", "perplexity", "predictions"),
        [
            (r["text"], r["state"], f"{r['loss']:.4f}", f"{r['bits']:.4f}", f"{r['perplexity']:.4g}", f"{r['count']:,}")
            for r in results
        ],
    )


def _numbers(result: Evaluation) -> dict[str, Any]:
    return {"loss": result.loss, "bits": result.bpc, "perplexity": result.perplexity, "count": result.count}


def _read_own(run: Run, unknown: str) -> tuple[_Parts, int]:
    """The validation and test text of the run, read again, and how many of their symbols are the unknown one."""
    options = own_text(run.config, "eval")
    corpus = read_for_run(options, run.vocabulary, unknown, run.provenance.get("sha256", ""))
    parts = {"valid": (corpus.valid, corpus.valid_starts), "test": (corpus.test, corpus.test_starts)}
    parts = {name: part for name, part in parts.items() if len(part[0]) > 1}
    if not parts:
        raise ValueError("eval: the run has neither validation nor test text (--fractions); name a text.")
    symbol = run.vocabulary.unknown
    return parts, 0 if symbol is None else sum(_count(ids, symbol) for ids, _ in parts.values())


def _count(ids: np.ndarray, symbol: int, block: int = 1 << 24) -> int:
    """How often a symbol occurs, in the memory of a block."""
    return sum(int(np.count_nonzero(ids[n : n + block] == symbol)) for n in range(0, len(ids), block))


def _read_foreign(run: Run, paths: tuple[str, ...], unknown: str) -> tuple[_Parts, int]:
    """A text that the run was not trained on, and how many of its symbols the model does not know."""
    options = dataclasses.replace(run.config.text, paths=paths, split="tail", fractions=(0.0, 0.0, 1.0))
    corpus = read_for_run(options, run.vocabulary, unknown)
    return {corpus.sources: (corpus.test, corpus.test_starts)}, corpus.n_missing


def info(run: RunArgument, trust_code: TrustCode = False, as_json: Json = False) -> None:
    """Show what a run is: its options, text, parameters, checkpoints and losses."""
    facts = _describe(run, trust_code)
    if as_json:
        echo_json(facts)
        return
    for group, values in (*facts["options"].items(), ("provenance", facts["provenance"])):
        line = f"{group}: {_inline(values) if isinstance(values, dict) else values}"
        _echo_wrapped(line)
    echo(f"vocabulary: {facts['vocabulary']['size']} symbols, level {facts['vocabulary']['level']}\n")
    rows = [*facts["parameters"], {"name": "total", "shape": "", "dtype": "", **facts["total"]}]
    echo_table(
        ("parameter", "shape", "dtype", "count", "bytes"),
        [(p["name"], str(p["shape"]), p["dtype"], f"{p['count']:,}", f"{p['bytes']:,}") for p in rows],
    )
    echo(f"\nlayers: {facts['network']}")
    for kind in ("train", "eval", "done"):
        if facts["last"][kind]:
            _echo_wrapped(f"last {kind}: {_inline(facts['last'][kind])}")
    if facts["best"]:
        echo(f"best: step {facts['best']['step']}, validation {nats(facts['best']['val_loss'])} a symbol")
    if facts["seconds"] is not None:
        echo(f"training time: {duration(facts['seconds'])}")
    for saved in facts["checkpoints"]:
        echo(f"checkpoint: step {saved['step']}, validation {nats(saved['val_loss'])}, {saved['path']}")
    if not facts["checkpoints"]:
        echo("checkpoint: none yet")


def _describe(run: pathlib.Path, trust_code: bool) -> dict[str, Any]:
    """All that is known; what the files say of each other is compared, and code is run only where it is trusted."""
    described = read_config(run)
    paths, config, provenance, vocabulary = described
    saved = find_checkpoints(paths.checkpoints)
    model, losses, layers = None, {}, [f"{config.model.cell}, not run without --trust-code"]
    network = layers[0]
    if trust_code or cell_file(config.model.cell) is None:
        check_code(config.model.cell, provenance.get("code"), run, trust_code)
        model = make_model(config.model, len(vocabulary))
        layers = [repr(cell) for cell in model.stack.cells]
        alike = [(text, len([*same])) for text, same in itertools.groupby(map(title, model.stack.cells))]
        network = ", ".join(text if count == 1 else f"{count} x {text}" for text, count in alike)
    shapes: dict[str, Any] = {}
    for one in saved:
        with open_checkpoint(one.path) as stored:
            described.check(stored, one.path)
            shapes = {k.removeprefix("params."): v for k, v in stored.shapes.items() if k.startswith("params.")}
        losses[one.step] = stored.meta["val_loss"]
    if saved and model is not None:
        like = jax.eval_shape(model.init, jax.random.key(0))
        restore(shapes, like, where=f"info: {saved[-1].path}")
        leaves = jax.tree_util.tree_leaves_with_path(like)
        shapes = {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in leaves}
    parameters = [
        {
            "name": name,
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "count": leaf.size,
            "bytes": leaf.size * leaf.dtype.itemsize,
        }
        for name, leaf in shapes.items()
    ]
    lowest = best(saved) if any(math.isfinite(one.val_loss) for one in saved) else None
    rows = read_metrics(paths.metrics) if paths.metrics.is_file() else []
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "eval", "done")}
    return {
        "options": config.to_json(),
        "provenance": provenance,
        "vocabulary": {"level": vocabulary.level, "size": len(vocabulary)},
        "layers": layers,
        "network": network,
        "parameters": parameters,
        "total": {name: sum(p[name] for p in parameters) for name in ("count", "bytes")},
        "best": {"step": lowest.step, "val_loss": losses[lowest.step]} if lowest is not None else None,
        "last": {kind: found[-1] if found else None for kind, found in kinds.items()},
        "seconds": next((row["seconds"] for row in rows[::-1] if isinstance(row.get("seconds"), float)), None),
        "checkpoints": [{"path": str(c.path), "step": c.step, "val_loss": c.val_loss} for c in saved],
    }


def _echo_wrapped(line: str) -> None:
    echo(textwrap.fill(line, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def _inline(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value!r}" if isinstance(value, str) else f"{name} {value}" for name, value in values.items()
    )

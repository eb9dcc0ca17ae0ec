"""``rnnjax cells``, ``color`` and ``ablate``: what the units of a trained run know."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import typer
from rich.console import Console
from rich.style import Style
from rich.text import Text

from rnnjax.analysis.ablation import Ablation
from rnnjax.analysis.ablation import ablate as ablate_units
from rnnjax.analysis.labels import Label, default_labels, label_from_name, label_text, varying
from rnnjax.analysis.plots import color_of, plot_ranking, plot_text, value_scale
from rnnjax.analysis.recording import OneHot, SymbolModel, leaves_of, text_values
from rnnjax.analysis.search import LabelSearch, search_units
from rnnjax.analysis.units import parse_unit
from rnnjax.cli.options import Checkpoint, Json, RunArgument, TrustCode
from rnnjax.cli.output import echo, echo_json, echo_table
from rnnjax.cli.reading import read_for_run
from rnnjax.files import save_figure
from rnnjax.lm.run import Run, open_run, own_text
from rnnjax.text.vocabulary import Vocabulary

__all__ = ["RunText", "ablate", "cells", "color", "read_text_of", "symbol_model"]

TextArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="Files (also gzip), folders, - for standard input. None: the validation text."),
]
Symbols = Annotated[int, typer.Option(help="At most so many symbols of the text, from its start; 0 for all.")]
Out = Annotated[
    pathlib.Path | None, typer.Option(metavar="FILE", help="Also draw a picture into this file (.png, .pdf, .svg).")
]
LOOK_BACK = 1 << 24  # symbols before a text that labels look at, at most
_HELD = 3  # units that `cells --ablate` holds, one by one
_Streams = Annotated[int, typer.Option(help="Pieces of the text that are read side by side; 1 is exact, and slower.")]


def cells(
    run: RunArgument,
    text: TextArgument = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="What to look for: a name, re:PATTERN, or file.py:function. Repeat it for several; none: all names "
            "that suit the text, code or prose.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Units to show, with one label.")] = 20,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Hold the three best units at their mean, and measure what that does.")
    ] = False,
    symbols: Symbols = 200_000,
    shifts: Annotated[int, typer.Option(help="Controls: the label shifted along the text so many times.")] = 99,
    streams: _Streams = 16,
    out: Out = None,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    r"""Search every unit (h, c, gates of each layer) for what it tells about the text, and rank them.

    The first half of the text ranks the units and picks their thresholds, the second half gives the score: AUC for
    labels that hold or not, correlation for numbers. The bar is the best score that any unit reaches on the label
    shifted along the text; p is how often that is as good.

    [bold]rnnjax cells runs/demo --label quote[/bold]
    [bold]rnnjax cells runs/demo other.py --label mine.py:in_loop --ablate[/bold]
    [bold]rnnjax cells runs/demo --label 're:\bself\b'[/bold]
    """
    chosen = [label_from_name(name) for name in label or ()]
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    model, source = symbol_model(opened), read_text_of(opened, text, symbols)
    chosen = chosen or source.default_labels()
    known = {one.name: source.label(one) for one in chosen}
    known, left_out = (known, []) if label else varying(known)
    found = search_units(model, source.ids, known, shifts=shifts, streams=streams, starts=source.starts)
    effects: dict[str, list[Ablation]] = {}
    for one in chosen if ablate else ():
        if one.name in known and found[one.name].binary:
            groups = [[unit.unit] for unit in found[one.name].top(_HELD)]
            effects[one.name] = _ablate(opened, model, source, groups, one, "mean", streams)
    if out is not None:
        save_figure(plot_ranking(found[next(iter(found))], count=top), out)
    if as_json:
        echo_json(
            {
                "run": str(run),
                "step": opened.meta.get("step"),
                "text": source.name,
                "symbols": len(source.ids),
                "labels": [_search_json(found[name], top, effects.get(name)) for name in found],
                "left_out": left_out,
            }
        )
        return
    echo(f"{source.name}, {len(source.ids):,} symbols, {len(next(iter(found.values())).units):,} units\n")
    if len(found) == 1:
        _echo_ranking(next(iter(found.values())), top)
    else:
        _echo_best(found)
    if left_out:
        echo(f"\nIn half of this text always the same, so left out: {', '.join(left_out)}.")
    for name, results in effects.items():
        echo(f"\nheld at their mean, with the label {name}:")
        _echo_ablation(results)
    if out is not None:
        echo(f"\npicture {out}")


def color(
    run: RunArgument,
    text: TextArgument = None,
    unit: Annotated[
        str, typer.Option(metavar="UNIT", help="Such as L1.c.137: layer, leaf (h, c, gates), number.")
    ] = "",
    start: Annotated[int, typer.Option(help="Symbols of the text that are read and not shown.", min=0)] = 0,
    length: Annotated[int, typer.Option(help="Symbols to show; 0 for all.", min=0)] = 2000,
    out: Out = None,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
) -> None:
    """Show a text in the colours of a unit: blue is low, white the middle, orange high.

    Without colours (in a pipe, or with NO_COLOR set) a line of digits stands below every line of text, 0 for low and 9
    for high. A newline is shown too, as its own symbol where there are colours.

    [bold]rnnjax color runs/demo some.py --unit L1.c.137[/bold]
    """
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    model = symbol_model(opened)
    leaves = leaves_of(model.cell, model.params, model.inputs[0])
    if not unit:
        raise ValueError(f"--unit: name a unit such as {next(iter(leaves))}.0; leaves are {', '.join(leaves)}.")
    kind = leaves[parse_unit(unit, leaves).leaf].kind
    source = read_text_of(opened, text, start + length if length else 0)
    if start >= len(source.ids):
        raise ValueError(f"--start: the text has {len(source.ids):,} symbols, got {start:,}; take less.")
    values = text_values(model, source.ids, [unit], streams=1, starts=source.starts)[start:, 0]
    shown, sizes = symbols_text(opened.vocabulary, source.ids[start:])
    values = values if sizes is None else np.repeat(values, sizes)
    middle, reach = value_scale(values, kind)
    console = Console(highlight=False, soft_wrap=True)
    legend = f"{unit}: blue {middle - reach:.3g}, white {middle:.3g}, orange {middle + reach:.3g}"
    if console.color_system is None or console.no_color:
        echo(legend.replace("blue", "0 is").replace("white", "4 to 5").replace("orange", "9"))
        echo(_digits(shown, (values - middle) / reach))
    else:
        console.print(Text(legend))
        console.print(_colored(shown, (values - middle) / reach), end="")
    if out is not None:
        save_figure(plot_text(shown, values, title=unit, kind=kind), out)


def ablate(
    run: RunArgument,
    text: TextArgument = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(metavar="UNIT", help="Such as L1.c.137. Several are held one by one, then all together."),
    ] = None,
    label: Annotated[
        str,
        typer.Option(
            metavar="LABEL",
            help="Where to look: a name, re:PATTERN, or file.py:function; see rnnjax cells. By default quote in code, "
            "prose_quote in prose.",
        ),
    ] = "",
    value: Annotated[str, typer.Option(metavar="VALUE", help="Where they are held: mean, or a number.")] = "mean",
    symbols: Symbols = 100_000,
    streams: _Streams = 16,
    checkpoint: Checkpoint = "best",
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Hold units at a constant and measure the loss, overall and where a label holds, and the closing symbol.

    [bold]rnnjax ablate runs/demo --unit L1.c.137 --label quote[/bold]
    """
    chosen = label_from_name(label) if label else None
    opened = open_run(run, checkpoint=checkpoint, trust_code=trust_code)
    model = symbol_model(opened)
    leaves = leaves_of(model.cell, model.params, model.inputs[0])
    if not unit:
        raise ValueError(f"--unit: name a unit such as {next(iter(leaves))}.0; leaves are {', '.join(leaves)}.")
    unit = list(dict.fromkeys(unit))  # one that is named twice is one
    for name in unit:
        parse_unit(name, leaves)
    try:
        at: float | str = value if value == "mean" else float(value)
    except ValueError as error:
        raise ValueError(f"--value: must be mean or a number, got {value!r}.") from error
    source = read_text_of(opened, text, symbols)
    one = chosen or source.default_labels()[0]
    groups = [[name] for name in unit] + ([list(unit)] if len(unit) > 1 else [])
    results = _ablate(opened, model, source, groups, one, at, streams)
    if as_json:
        rows = [_ablation_json(result) for result in results]
        echo_json({"run": str(run), "text": source.name, "symbols": len(source.ids), "label": one.name, "units": rows})
        return
    echo(f"{source.name}, {len(source.ids):,} symbols, label {one.name}\n")
    _echo_ablation(results)


class RunText(NamedTuple):
    """A text as a run reads it, with what stands before it, which only labels look at."""

    name: str
    ids: np.ndarray
    starts: np.ndarray | None  # of documents
    before: np.ndarray
    vocabulary: Vocabulary

    def label(self, label: Label) -> np.ndarray:
        """The values of a label for the ids."""
        text, sizes = symbols_text(self.vocabulary, np.concatenate([self.before, self.ids]))
        starts = None
        if self.starts is not None:
            starts = self.starts + len(self.before)
            starts = starts if sizes is None else np.concatenate([[0], np.cumsum(sizes)])[starts]
        return label_text(label, text, starts=starts, lengths=sizes)[len(self.before) :]

    def default_labels(self) -> list[Label]:
        """Those that suit the text."""
        return list(default_labels(symbols_text(self.vocabulary, self.ids)[0]))


def symbol_model(run: Run) -> SymbolModel:
    """The network of a run as the analyses see it, with the weights in the dtype of its matmuls."""
    model = run.model
    low = jax.tree.map(lambda w: w.astype(model.dtype) if w.ndim > 1 else w, run.params)
    inputs = OneHot(model.vocab_size, model.dtype) if low.embedding is None else low.embedding
    return SymbolModel(model.stack, low.stack, inputs, low.embedding.T if model.tie else low.w_out, low.b_out)


def read_text_of(run: Run, text: Sequence[str] | None, limit: int) -> RunText:
    """The validation text of a run (the test text where there is none), or other files, up to ``limit`` symbols."""
    if limit < 0:
        raise ValueError(f"--symbols: must not be negative, got {limit}.")
    options = run.config.text
    unknown = "skip" if run.vocabulary.unknown is None else "replace"
    nothing = np.zeros(0, run.vocabulary.dtype)
    if text:
        options = dataclasses.replace(options, paths=tuple(text), split="tail", fractions=(0.0, 0.0, 1.0))
        corpus = read_for_run(options, run.vocabulary, unknown)
        name, ids, starts, before = corpus.sources, corpus.test, corpus.test_starts, nothing
    else:
        corpus = read_for_run(own_text(run.config, "cells"), run.vocabulary, unknown, run.provenance.get("sha256", ""))
        name, ids, starts = "validation text", corpus.valid, corpus.valid_starts
        before = corpus.train[-LOOK_BACK:] if options.split == "tail" else nothing
        if len(ids) < 2:
            name, ids, starts = "test text", corpus.test, corpus.test_starts
    if limit:
        ids = ids[:limit]
    if len(ids) < 2:
        raise ValueError("cells: the text must have at least two symbols that the model knows; name another text.")
    starts = None if starts is None else starts[starts < len(ids)]
    return RunText(name, ids, starts, nothing if starts is not None else before, run.vocabulary)


def symbols_text(vocabulary: Vocabulary, ids: np.ndarray) -> tuple[str, np.ndarray | None]:
    """The text of ids, with one character a byte at that level, and how long each symbol is; None: one character."""
    if vocabulary.level == "byte":
        return np.asarray(ids, np.uint8).tobytes().decode("latin-1"), None
    text = vocabulary.decode(ids)
    if vocabulary.level == "char":
        return text, None
    return text, np.array([len(symbol) for symbol in vocabulary.symbols])[ids]


def _ablate(
    run: Run,
    model: SymbolModel,
    source: RunText,
    groups: list[list[str]],
    label: Label,
    value: float | str,
    streams: int,
) -> list[Ablation]:
    values = source.label(label)
    if values.dtype != bool:
        raise ValueError(f"--label: must hold or not, got {label.name}, which is a number; take another label.")
    closing = [k for k, symbol in enumerate(run.vocabulary.symbols) if symbol in tuple(label.closing)]
    options: dict[str, Any] = {"streams": streams, "starts": source.starts}
    return ablate_units(model, source.ids, groups, value=value, label=values, closing=closing, **options)


def _echo_ranking(found: LabelSearch, top: int) -> None:
    score = "AUC" if found.binary else "correlation"
    rows = []
    best = found.top(top)
    for unit in best:
        row = [unit.unit, "high" if unit.direction > 0 else "low", f"{unit.score:.4f}", f"{unit.first:.4f}"]
        if found.binary:
            row += [f"{unit.accuracy:.4f}", f"{unit.threshold:.4g}"]
        rows.append([*row, f"{unit.p_value:.2f}"])
    middle = ("balanced accuracy", "threshold") if found.binary else ()
    echo_table(("unit", "where it holds" if found.binary else "sign", score, "first half", *middle, "p"), rows)
    what = f"holds after {100 * found.share:.1f} % of the symbols" if found.binary else f"mean {found.share:.3g}"
    echo(
        f"\n{found.label}: {what}. Bar: {found.bar:.4f}, the best of all units on {len(found.control)} shifted labels."
        + (f" {score} exact to {max(unit.error for unit in best):.4f}." if found.binary else "")
    )


def _echo_best(found: dict[str, LabelSearch]) -> None:
    rows = []
    for name, one in found.items():
        (unit,) = one.top(1)
        accuracy = f"{unit.accuracy:.4f}" if one.binary else ""
        kind = "AUC" if one.binary else "correlation"
        rows.append((name, unit.unit, kind, f"{unit.score:.4f}", accuracy, f"{one.bar:.4f}", f"{unit.p_value:.2f}"))
    echo_table(("label", "best unit", "score", "held out", "balanced accuracy", "bar", "p"), rows)


def _echo_ablation(results: list[Ablation]) -> None:
    def change(before: float, after: float) -> str:
        return "-" if math.isnan(before) else f"{before:.4f} to {after:.4f}"

    rows = []
    for one in results:
        name = one.units[0] if len(one.units) == 1 else f"{len(one.units)} together"
        pairs = zip(one.before, one.after, strict=True)
        rows.append((name, *(change(before, after) for before, after in pairs)))
    echo_table(("unit", "loss", "label holds", "does not", "P(closing) at its end", "P(closing) within"), rows)
    echo("\nLosses in nats a symbol.")


def _search_json(found: LabelSearch, top: int, effects: list[Ablation] | None) -> dict[str, Any]:
    data = {
        "label": found.label,
        "score": "auc" if found.binary else "correlation",
        "share": found.share,
        "bar": found.bar,
        "shifts": len(found.control),
        "units": [unit._asdict() for unit in found.top(top)],
    }
    return data if effects is None else data | {"ablation": [_ablation_json(one) for one in effects]}


def _ablation_json(one: Ablation) -> dict[str, Any]:
    tallies = {name: getattr(one, name)._asdict() for name in ("before", "after")}
    return {"units": one.units, "values": one.values, **tallies}


def _printable(character: str) -> str:
    return character if character.isprintable() else "\N{MIDDLE DOT}"


def _digits(text: str, shares: np.ndarray) -> str:
    """Every line of the text, and below it 0 (low) to 9 (high) for every character and its newline."""
    levels = "".join(map(str, np.clip((shares + 1) * 5, 0, 9).astype(int).tolist()))
    out, at = [], 0
    for line in text.removesuffix("\n").split("\n"):
        out += ["".join(map(_printable, line)), levels[at : at + len(line) + 1]]
        at += len(line) + 1
    return "\n".join(out)


def _colored(text: str, shares: np.ndarray) -> Text:
    """The text on coloured ground, black or white, whichever is read better."""
    page = Text()
    for character, share in zip(text, shares.tolist(), strict=True):
        red, green, blue = color_of(share)
        ink = "black" if red + green + blue > 330 else "white"
        shown = "\N{DOWNWARDS ARROW WITH TIP LEFTWARDS}" if character == "\n" else _printable(character)
        page.append(shown, Style.parse(f"{ink} on rgb({red},{green},{blue})"))
        if character == "\n":
            page.append("\n")
    return page.append("\n") if text[-1:] != "\n" else page

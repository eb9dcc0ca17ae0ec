"""From files to ids: counted, encoded, kept in memory or in a file, and found again in the cache."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from rnnjax.files import digest
from rnnjax.text.encoding import Counts, Piece, Sink, count_symbols, encode, opened
from rnnjax.text.sources import Source, Tally, read_symbols, signature
from rnnjax.text.stored import IDS_VERSION, Stored, TextCache, cache_folder, text_name
from rnnjax.text.vocabulary import UNKNOWN, Vocabulary

__all__ = ["IN_MEMORY", "Facts", "Reading", "Recipe", "read_ids"]

IN_MEMORY = 1 << 24  # bytes of ids up to which they stand in memory and in no file


class Reading(NamedTuple):
    """How far the reading of a text is."""

    stage: str  # "counting" its symbols, "encoding" it, or "checking" what was encoded before
    done: int  # bytes of files
    total: int  # of all files, 0 where that is not known
    seconds: float  # since this stage began


class Recipe(NamedTuple):
    """What makes a text of files: all that changes its ids."""

    level: str
    min_count: int
    encoding: str
    separator: str | None  # between documents
    layout: list[float] | None  # of a split that changes the order of the ids
    unknown: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a text that has been read."""

    sha256: str
    n_bytes: int
    count: int  # of ids
    missing: int  # symbols that the vocabulary lacks
    unknown: int  # symbols that are the unknown one
    windows: bool  # whether lines end in \r\n
    nuls: int
    documents: int | None
    notes: tuple[str, ...] = ()


def read_ids(
    sources: Sequence[Source],
    recipe: Recipe,
    vocabulary: Vocabulary | None,
    cut: Callable[[int], list[Piece]],
    described: str,
    keep: bool,
    report: Callable[[Reading], None] | None,
) -> tuple[np.ndarray, np.ndarray | None, Facts, Vocabulary]:
    """The ids of a text, train before valid before test, the document starts, the facts, and the vocabulary.

    Args:
        sources: the files.
        recipe: how they are read.
        vocabulary: of a trained model; None makes one.
        cut: from the number of symbols to the pieces of the text.
        described: the files, in messages.
        keep: whether ids are looked for and kept in the cache folder.
        report: is told how far the reading is.

    Raises:
        ValueError: an empty text, one that changes meanwhile, or symbols that are not known.
        OSError: no room for a file.
    """
    known = signature(sources)
    total = 0 if known is None else known[1]
    began = time.time_ns()
    cache = TextCache(cache_folder(), _stage("checking", report)) if keep else None
    if cache is not None and known is not None:
        name = cache.seen(_key(known, recipe, vocabulary), known[2])
        found = cache.open(name, _read_facts) if name else None
        if found is not None:
            return *_taken(found), Vocabulary.from_json(found.facts["vocabulary"])

    separator = "\n" if recipe.separator is None else recipe.separator

    def read(tally: Tally) -> Iterator[Sequence[str]]:
        return read_symbols(sources, recipe.level, encoding=recipe.encoding, separator=separator, tally=tally)

    tally = Tally(_stage("counting", report), total)
    counts = count_symbols(read(tally))
    asked = vocabulary
    if vocabulary is None:
        vocabulary = Vocabulary.from_counts(recipe.level, counts, recipe.min_count)
    elif recipe.unknown == "add":
        vocabulary = vocabulary.extended(counts, recipe.min_count)
    elif recipe.unknown == "error" or (recipe.unknown == "replace" and vocabulary.unknown is None):
        vocabulary.require_known(symbol for symbol, _ in counts.items())
    facts = _facts(counts, tally, vocabulary, recipe)
    if not facts.count:
        raise ValueError(
            f"load_corpus: the text must hold at least one symbol, got none from {described}; name another text."
        )
    del counts
    symbols, unknown = vocabulary, "replace" if recipe.unknown == "add" else recipe.unknown

    def fill(sink: Sink) -> dict[str, Any]:
        marks = recipe.separator
        if marks is not None and recipe.level == "byte":
            marks = marks.encode("utf-8").decode("latin-1")
        again = Tally(_stage("encoding", report), total)
        documents = encode(read(again), symbols, unknown, facts.count, cut(facts.count), marks, sink)
        if again.sha256 != tally.sha256:
            raise ValueError(
                f"load_corpus: the text must not change while it is read, got a change in {described}; copy it first."
            )
        found = dataclasses.asdict(facts) | {"documents": documents}
        return {"facts": found, "vocabulary": symbols.to_json()}

    dtype = vocabulary.dtype
    if facts.count * dtype.itemsize <= IN_MEMORY:
        kept = _unnamed(io.BytesIO(), facts.count, dtype, fill, recipe.separator is not None)
        return *_taken(kept), vocabulary
    notes = []
    stored = None
    if cache is not None:
        name = _name(facts, vocabulary, recipe)
        stored = cache.open(name, _read_facts)
        try:
            if stored is None:
                stored = cache.write(name, facts.count, dtype, fill, recipe.separator is not None)
                what = "were damaged, and are made again" if cache.damaged else f"are kept, {_size(stored)}"
                notes.append(f"The ids of this text in {cache.folder} {what}.")
            if known is not None:
                for key in _keys(known, recipe, asked, vocabulary, facts):
                    cache.remember(key, name, began)
        except OSError as error:
            if error.errno is None:  # no room: one sentence already
                raise
            notes.append(f"The ids are in a temporary file, as {cache.folder} cannot be written: {error.strerror}.")
    if stored is None:
        with tempfile.TemporaryFile(prefix="rnnjax-ids-") as file:  # which is there as long as its arrays
            stored = _unnamed(file, facts.count, dtype, fill, recipe.separator is not None)
    ids, starts, facts = _taken(stored)
    return ids, starts, dataclasses.replace(facts, notes=tuple(notes)), vocabulary


def _facts(counts: Counts, tally: Tally, vocabulary: Vocabulary, recipe: Recipe) -> Facts:
    known = set(vocabulary.symbols)
    total, missing, unknown, windows, nuls = 0, 0, 0, False, 0
    for symbol, count in counts.items():
        total += count
        missing += count if symbol not in known else 0
        unknown += count if vocabulary.unknown is not None and symbol == UNKNOWN else 0
        if recipe.level != "byte":
            windows = windows or ("\r" in symbol and symbol.isspace())
            nuls += count if symbol == "\0" else 0
    if recipe.unknown == "skip":
        total -= missing
    unknown += missing if recipe.unknown != "skip" else 0
    return Facts(tally.sha256, tally.n_bytes, total, missing, unknown, windows, nuls, None)


def _taken(stored: Stored) -> tuple[np.ndarray, np.ndarray | None, Facts]:
    return stored.ids, stored.starts, _read_facts(stored.facts)


def _read_facts(data: dict[str, Any]) -> Facts:
    return Facts(**{k: v for k, v in data["facts"].items() if k != "notes"})


def _unnamed(
    file: IO[bytes], count: int, dtype: np.dtype, fill: Callable[[Sink], dict[str, Any]], documents: bool
) -> Stored:
    sink = Sink(file, count, dtype)
    found = fill(sink)
    sink.finish()
    return Stored(*opened(file, count, dtype, sink.num_starts if documents else None), found)


def _key(known: tuple[list[list[Any]], int, int], recipe: Recipe, vocabulary: Vocabulary | None) -> str:
    """Of the files as they are, and how they are to be read."""
    symbols = None if vocabulary is None else digest(vocabulary.to_json())
    asked = recipe if vocabulary is None or recipe.unknown == "add" else recipe._replace(min_count=0)
    parts = [IDS_VERSION, _unicode(recipe), known[0], asked, symbols]
    return digest(parts)[:40]


def _keys(known: Any, recipe: Recipe, asked: Vocabulary | None, made: Vocabulary, facts: Facts) -> set[str]:
    """All keys by which the same ids may be asked for the next time, also with the vocabulary that was made."""
    found = {(asked, recipe.unknown)}
    if not facts.missing:
        found |= {
            (one, unknown) for one in {made, None if asked is None else made} for unknown in ("replace", "skip", "add")
        }
    elif recipe.unknown in ("replace", "add"):
        found.add((made, "replace"))
    return {_key(known, recipe._replace(unknown=unknown), one) for one, unknown in found}


def _name(facts: Facts, vocabulary: Vocabulary, recipe: Recipe) -> str:
    left_out = recipe.unknown == "skip" and facts.missing > 0
    return text_name(
        {
            "text": facts.sha256,
            "vocabulary": digest(vocabulary.to_json()),
            "encoding": None if recipe.level == "byte" else recipe.encoding,
            "separator": recipe.separator,
            "layout": recipe.layout,
            "left_out": left_out,
            "unicode": _unicode(recipe),
        }
    )


def _unicode(recipe: Recipe) -> str:
    """What tells words apart."""
    return unicodedata.unidata_version if recipe.level == "word" else ""


def _size(stored: Stored) -> str:
    size = stored.ids.nbytes + (0 if stored.starts is None else stored.starts.nbytes)
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _stage(stage: str, report: Callable[[Reading], None] | None) -> Callable[[int, int], None]:
    """Takes what is done, and all there is to do."""
    start: list[float] = []

    def progress(done: int, total: int) -> None:
        if not start:
            start.append(time.monotonic())
        if report is not None:
            report(Reading(stage, done, total, time.monotonic() - start[0]))

    return progress

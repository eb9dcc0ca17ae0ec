"""``rnnjax train --stream``: what goes together with a text that is read as it comes, and what does not."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from rnnjax.lm.batches import HELD_OUT, SEGMENT, LiveBatches, Validation, corpus_of
from rnnjax.lm.options import RunConfig
from rnnjax.text.corpus import Corpus, load_corpus
from rnnjax.text.live import LiveText
from rnnjax.text.vocabulary import Vocabulary

__all__ = ["check_live", "describe_live", "open_live", "progress_words"]

_SENSELESS = {
    "epochs": "a text without an end is read once; give --steps or --minutes",
    "split": "validation text is held out as the text comes; leave it out",
    "fractions": "one part in 20 is held out, or give --valid FILE; leave it out",
    "glob": "there is no folder to read; leave it out",
    "baselines": "simple models need a text that can be read again; leave it out",
    "no_cache": "nothing is kept of the text anyway; leave it out",
    "init_from": "the symbols of another run would not be those of the text; leave it out",
    "distributed": "one process reads the text; leave it out",
}


def check_live(values: dict[str, Any], given: set[str]) -> None:
    """Raises the ValueError of options that do not go together with ``--stream``, or need it.

    Args:
        values: of all options.
        given: names of those on the command line.
    """
    if not values["stream"]:
        for name in sorted(given & {"valid", "vocabulary_symbols"}):
            raise ValueError(f"--{name.replace('_', '-')}: goes together with --stream; add it, or leave it out.")
        return
    for name, why in _SENSELESS.items():
        if name in given and values[name] not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')}: does not go together with --stream: {why}.")
    paths = values["text"] if "text" in values else values["paths"]
    if not paths or len(paths) != 1:
        raise ValueError(f"--stream: reads one text, - or the name of a pipe, got {len(paths or ())}; name it.")
    if paths[0] != "-" and not pathlib.Path(paths[0]).exists():
        raise ValueError(f"--stream: there is no {paths[0]}; make it with mkfifo, or take - for standard input.")
    if paths[0] != "-" and pathlib.Path(paths[0]).is_dir():
        raise ValueError(f"--stream: {paths[0]} is a folder, which ends; leave --stream out.")
    if values["valid"] is None and not values["eval_symbols"]:
        raise ValueError("--eval-symbols: must be at least 1 with --stream, as so many are held out, got 0.")
    if values["valid"] is not None and not pathlib.Path(values["valid"]).is_file():
        raise ValueError(f"--valid: there is no file {values['valid']}; give another, or leave it out.")


def open_live(config: RunConfig, vocabulary: Vocabulary | None = None) -> tuple[Corpus, LiveBatches]:
    """What is known of the text, and its batches.

    Args:
        config: all options.
        vocabulary: of a run that goes on; None: of the first symbols.

    Raises:
        ValueError: if the text ends before there is something to train on, or is not in the encoding.
    """
    text, train = config.text, config.train
    room = 2 * train.batch_size * (SEGMENT * train.chunk_len + 1)
    live = LiveText(text.paths[0], text.level, text.encoding, text.document_separator, room)
    if vocabulary is None:
        vocabulary = live.learn(config.stream.vocabulary_symbols, text.min_count)
    live.vocabulary = vocabulary
    valid = None
    if config.stream.valid is not None:
        options = dataclasses.replace(text, paths=(config.stream.valid,), split="tail", fractions=(0.0, 1.0, 0.0))
        found = load_corpus(options, vocabulary=vocabulary)
        valid = Validation(found.valid, found.valid_starts)
    batches = LiveBatches(
        live, train.batch_size, train.chunk_len, held=train.eval_symbols, seed=train.seed, valid=valid
    )
    batches.require()
    return corpus_of(vocabulary, live), batches


def describe_live(config: RunConfig, corpus: Corpus) -> str:
    """What is read, and how."""
    held = f"one of {HELD_OUT} is held out for validation"
    if config.stream.valid is not None:
        held = f"validation on {config.stream.valid}"
    return (
        f"{corpus.sources}: {config.text.level}s, {len(corpus.vocabulary)} symbols; segments of "
        f"{SEGMENT * config.train.chunk_len:,}, {held}"
    )


def progress_words(row: dict[str, Any]) -> str:
    """How far a stream is: what a line of metrics says of it; nothing for other texts.

    >>> progress_words({"read": 5_000_000, "behind": 131_072, "text_waits": True})
    '5,000,000 symbols read, 131,072 ahead of the network, for which the text waits'
    """
    if "read" not in row:
        return ""
    waits = ", for which the text waits" if row["text_waits"] else ""
    return f"{row['read']:,} symbols read, {row['behind']:,} ahead of the network{waits}"

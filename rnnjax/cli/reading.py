"""How far the reading of a text is, where it takes longer than one would wait without a word."""

from __future__ import annotations

import contextlib
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rnnjax.files import FileWarning
from rnnjax.fit.printer import duration
from rnnjax.text.corpus import Corpus, TextOptions, load_corpus
from rnnjax.text.reading import Reading
from rnnjax.text.vocabulary import Vocabulary

__all__ = ["read_for_run", "read_text", "reading_line"]

_ANOTHER = re.compile(r"pass (the right )?encoding=('[^']*')?, or read any bytes with level='byte'")
_PATIENCE = 1.0  # seconds without a word
_WORTH = 1 << 24  # bytes of a text below which nothing is said, however slow the machine
_PLAIN = 30.0  # seconds between two lines where there is no terminal
_STAGES = {
    "counting": "counting the symbols of the text",
    "encoding": "writing its ids",
    "checking": "checking the ids that are kept",
}


def read_text(
    options: TextOptions,
    *,
    vocabulary: Vocabulary | None = None,
    unknown: str = "replace",
    cache: bool = True,
    quiet: bool = False,
) -> Corpus:
    """`load_corpus`, with its progress on standard error once it has taken a second.

    Args:
        options: which text, and how.
        vocabulary: of a trained run.
        unknown: what becomes of symbols that are not in it.
        cache: whether ids are kept in the user's cache folder.
        quiet: say nothing, as processes do of which another one speaks.
    """
    with _shown(quiet) as report:
        return load_corpus(options, vocabulary=vocabulary, unknown=unknown, cache=cache, report=report)


def read_for_run(options: TextOptions, vocabulary: Vocabulary, unknown: str, trained: str | None = None) -> Corpus:
    """`read_text` for a run that is trained: every text is read as its own, in its encoding.

    Args:
        options: which text.
        vocabulary: of the run.
        unknown: what becomes of symbols that are not in it.
        trained: the SHA-256 of its own text, if that is to be read again; one that has changed is worth a warning.

    Raises:
        ValueError: as `load_corpus` does; other encodings are no option here.
    """
    try:
        corpus = read_text(options, vocabulary=vocabulary, unknown=unknown)
    except ValueError as error:
        if not _ANOTHER.search(str(error)):
            raise
        raise ValueError(_ANOTHER.sub(f"write it in {options.encoding}, as the run reads it", str(error))) from error
    if trained is not None and corpus.sha256 != trained:
        warnings.warn(
            f"The text has changed since the training ({corpus.sources}): it is not what the run was validated on, and "
            "may hold what it was trained on.",
            FileWarning,
            stacklevel=2,
        )
    return corpus


def reading_line(reading: Reading) -> str:
    """What is done, of how much, how fast, and what is left.

    >>> reading_line(Reading("counting", 250_000_000, 1_000_000_000, 2.0))
    'counting the symbols of the text: 0.25 of 1.00 GB, 125 MB/s, 0:06 left'
    """
    speed = reading.done / max(reading.seconds, 1e-9)
    done = f"{reading.done / 1e9:.2f}{f' of {reading.total / 1e9:.2f}' if reading.total else ''} GB"
    left = f", {duration((reading.total - reading.done) / max(speed, 1e-9))} left" if reading.total else ""
    return f"{_STAGES[reading.stage]}: {done}, {speed / 1e6:.0f} MB/s{left}"


@contextlib.contextmanager
def _shown(quiet: bool) -> Iterator[Callable[[Reading], None]]:
    console = Console(stderr=True, highlight=False, quiet=quiet)
    begun, said, live = time.monotonic(), -math.inf, Live(console=console, auto_refresh=False, transient=True)

    def report(reading: Reading) -> None:
        nonlocal said
        now = time.monotonic()
        pause = 0.2 if console.is_terminal else _PLAIN
        if max(reading.done, reading.total) < _WORTH or now < max(begun + _PATIENCE, said + pause):
            return
        said = now
        if not console.is_terminal:
            console.print(reading_line(reading), soft_wrap=True)
            return
        live.start()
        live.update(Text(reading_line(reading)), refresh=True)

    try:
        yield report
    finally:
        live.stop()

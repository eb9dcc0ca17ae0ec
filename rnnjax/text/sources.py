r"""Where a text comes from: files, directories, gzip, the standard input, the standard library.

Everything is read in blocks, so a text never stands in memory as a whole.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import itertools
import os
import pathlib
import shutil
import sys
import sysconfig
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from rnnjax.files import FileWarning, first_line
from rnnjax.text.vocabulary import tokenize
from rnnjax.text.wide import check_wide, wide_encoding

__all__ = ["LONGEST_WORD", "Source", "Tally", "open_sources", "read_symbols", "signature", "stdlib_files"]

_BLOCK_BYTES = 1 << 18
LONGEST_WORD = 1_000_000  # characters
_GZIP_MAGIC = b"\x1f\x8b"
_NO_STDLIB = frozenset({"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages", "__pycache__"})


class Source(NamedTuple):
    """A file to read, the name to call it by in messages, and whether it is a copy that goes away."""

    name: str
    path: pathlib.Path
    copied: bool = False

    def blocks(self, tally: Tally | None = None) -> Iterator[bytes]:
        """The content in blocks, decompressed where it is gzip (by its first two bytes or the suffix .gz)."""
        with self.path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC or self.path.suffix == ".gz"
            raw.seek(0)
            file: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if compressed else raw
            at = 0
            try:
                while block := file.read(_BLOCK_BYTES):
                    if tally is not None:
                        before, at = at, raw.tell()
                        tally.saw(at - before)
                    yield block
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(
                    f"load_corpus: {self.name} must be a whole gzip file, got a corrupt one ({error}); "
                    f"test it with gzip -t, or rename it if it is not gzip."
                ) from error


class Tally:
    """The SHA-256 and the number of the bytes that went by.

    Args:
        progress: is told of bytes of files as they are read, before they are decompressed: what is done, and ``total``.
        total: of all files.
    """

    def __init__(self, progress: Callable[[int, int], None] = lambda done, total: None, total: int = 0) -> None:
        self._hash = hashlib.sha256()
        self.n_bytes = self._done = 0
        self._progress, self._total = progress, total

    def saw(self, count: int) -> None:
        """Bytes of a file that have been read."""
        self._done += count
        self._progress(self._done, self._total)

    def update(self, data: bytes) -> None:
        """Takes the next bytes in."""
        self._hash.update(data)
        self.n_bytes += len(data)

    @property
    def sha256(self) -> str:
        """The hexadecimal digest so far."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def open_sources(paths: Sequence[str], glob: str = "*") -> Iterator[tuple[list[Source], str]]:
    r"""The files behind the paths, for as long as the context lasts, and one line that describes them.

    Args:
        paths: files, directories, or `"-"` for the standard input. None at all: `stdlib_files()`. What cannot
            be read twice (the standard input, a pipe) is copied to a temporary file first.
        glob: which files of a directory to read, at any depth, in sorted order, hidden ones left out.

    Raises:
        FileNotFoundError: a path that does not exist, or a directory without a match.
        ValueError: a file that is named twice, or a standard input that is closed.
    """
    with contextlib.ExitStack() as stack:
        if not paths:
            library = [Source(str(path), path) for path in stdlib_files()]
            version = ".".join(map(str, sys.version_info[:3]))
            yield library, f"Python {version} standard library, {len(library)} files"
            return
        sources: list[Source] = []
        described = []
        for name in paths:
            path, is_stdin = pathlib.Path(name), name == "-"
            if is_stdin and sys.stdin is None:
                raise ValueError("load_corpus: standard input must be open, got one that is closed; name a file.")
            if not is_stdin and not path.exists():
                raise FileNotFoundError(
                    f"load_corpus: a path must exist, got {name}; check the spelling and the folder."
                )
            if not is_stdin and path.is_dir():
                found = _list_directory(path, glob)
                described.append(f"{name} ({len(found)} files)")
            elif not is_stdin and path.is_file():
                found = [Source(name, path)]
                described.append(name)
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rnnjax-"))
                spool = pathlib.Path(folder, "text")
                # The standard input is not ours to close.
                once = contextlib.nullcontext(sys.stdin.buffer) if is_stdin else path.open("rb")
                with once as original, spool.open("wb") as copy:
                    shutil.copyfileobj(original, copy)
                found = [Source("standard input" if is_stdin else name, spool, copied=True)]
                described.append(found[0].name)
            sources += found
            if len(paths) > 1:
                _refuse_twice(sources)
        yield sources, ", ".join(described)


def _refuse_twice(sources: Iterable[Source]) -> None:
    known: set[pathlib.Path] = set()
    for path in (source.path.resolve() for source in sources):
        if path in known:
            raise ValueError(
                f"load_corpus: every file must be named once, got {path} twice; what is in the text twice is in the "
                "validation text too."
            )
        known.add(path)


def signature(sources: Iterable[Source]) -> tuple[list[list[Any]], int, int] | None:
    """What is known of files without reading them, their size in bytes, and when the last of them was changed.

    Returns:
        None for sources that go away; times are in nanoseconds since 1970.
    """
    found: list[list[Any]] = []
    size, changed = 0, 0
    for source in sources:
        if source.copied:
            return None
        status = source.path.stat()
        size, changed = size + status.st_size, max(changed, status.st_mtime_ns, status.st_ctime_ns)
        path = os.path.abspath(source.path)
        found.append([path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    return found, size, changed


def stdlib_files(max_bytes: int = 4_000_000) -> list[pathlib.Path]:
    r"""Source files of the running Python's standard library, about `max_bytes` in all.

    A text that is always at hand. Tests and installed packages are left out, and so is what is not UTF-8. The
    order is that of the SHA-256 of the relative paths: as good as shuffled, so that every split sees every
    kind of module, and the same on every machine.

    Raises:
        FileNotFoundError: the installation has no library sources.
    """
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    names = [name for name in names if not _NO_STDLIB.intersection(name.parts)]
    names.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    files, total = [], 0
    for name in names:
        if total >= max_bytes:
            break
        content = (root / name).read_bytes()
        with contextlib.suppress(UnicodeDecodeError):
            content.decode("utf-8")
            files.append(root / name)
            total += len(content)
    if not total:
        raise FileNotFoundError(
            f"stdlib_files: the standard library must have .py files, got none under {root}; name a text."
        )
    return files


def read_symbols(
    sources: Iterable[Source],
    level: str,
    *,
    encoding: str = "utf-8",
    separator: str = "\n",
    tally: Tally | None = None,
) -> Iterator[Sequence[str]]:
    r"""Reads the sources as one text, in blocks of symbols.

    Between two sources stands `separator`, unless the first ends with it already. A byte order mark at the start of
    a source is left out (not at the byte level). Newlines are kept as they are.

    Args:
        sources: what to read.
        level: `"char"`, `"byte"` (then `encoding` plays no part) or `"word"`.
        encoding: of the text, as Python names it.
        separator: stands between two sources.
        tally: takes in the bytes read (decompressed, separators included).

    Yields:
        Blocks of symbols, not empty, each a `str` or, for words, a list of tokens.

    Raises:
        ValueError: bytes that are not in `encoding`, corrupt gzip.
    """
    if level == "byte":
        encoding, separator = "latin-1", separator.encode("utf-8").decode("latin-1")
    tally = Tally() if tally is None else tally
    blocks = _gathered(_read_text(sources, encoding, separator, tally, level == "byte"))
    if level != "word":
        yield from blocks
        return
    rest = ""
    for text in blocks:
        tokens = tokenize(rest + text)
        rest = tokens.pop()
        if len(rest) > LONGEST_WORD:
            raise ValueError(
                f"load_corpus: a word must have at most {LONGEST_WORD:,} characters, got one that begins with "
                f"{rest[:40]!r}; this is no text of words, read it with level='char' or level='byte'."
            )
        if tokens:
            yield tokens
    if rest:
        yield [rest]


def _gathered(blocks: Iterable[str]) -> Iterator[str]:
    """The same text in blocks that are not small, as those of thousands of small files would be."""
    waiting: list[str] = []
    size = 0
    for text in blocks:
        waiting.append(text)
        size += len(text)
        if size >= _BLOCK_BYTES // 2:
            yield "".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield "".join(waiting)


def _list_directory(directory: pathlib.Path, glob: str) -> list[Source]:
    closed: list[OSError] = []
    # What training runs wrote is no text: a run that lies in the folder of its own text could not be resumed.
    runs = {
        pathlib.Path(folder).relative_to(directory)
        for folder, folders, files in os.walk(directory, onerror=closed.append)
        if {"config.json", "vocabulary.json"} <= {*files} and "checkpoints" in folders
    }
    if closed:  # `rglob` passes them over
        more = f", nor can {len(closed) - 1} other folders" if len(closed) > 1 else ""
        warnings.warn(
            f"load_corpus: {closed[0].filename} cannot be read ({closed[0].strerror}){more}; it is left out.",
            FileWarning,
            stacklevel=4,
        )
    try:
        relative = sorted(path.relative_to(directory) for path in directory.rglob(glob) if path.is_file())
    except (NotImplementedError, ValueError) as error:  # absolute, or ** beside other characters
        raise ValueError(
            f"load_corpus: glob must be a pattern below the directory, got {glob!r} ({error}); use for example '*.txt'."
        ) from error
    visible = [
        name
        for name in relative
        if not any(part.startswith(".") for part in name.parts) and runs.isdisjoint(name.parents)
    ]
    if not visible:
        raise FileNotFoundError(
            f"load_corpus: a directory must hold a file that matches {glob!r}, got none in {directory}; change glob=."
        )
    return [Source(str(directory / name), directory / name) for name in visible]


def _read_text(sources: Iterable[Source], encoding: str, separator: str, tally: Tally, bytewise: bool) -> Iterator[str]:
    # What the text so far ends with, as far as the separator reaches; before the first source none is needed.
    tail = separator
    for source in sources:
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        offset, started, marked = 0, False, encoding != "latin-1"
        for raw in itertools.chain(source.blocks(tally), (b"",)):
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeError as error:
                got, reason = f"what is not: {first_line(error)}", ""
                if isinstance(error, UnicodeDecodeError):
                    got = f"{error.object[error.start]:#04x} at byte {offset - pending + error.start}"
                    reason = f" ({error.reason})"
                begins = wide_encoding(raw) if offset == 0 else ""
                looks = f"it begins like {begins}: pass encoding='{begins}'" if begins else "pass the right encoding="
                raise ValueError(
                    f"load_corpus: {source.name} must be {encoding} text, got {got}{reason}; {looks}, or read any "
                    "bytes with level='byte'."
                ) from error
            if offset == 0 and not bytewise:
                check_wide("load_corpus", source.name, raw, encoding)
            # A mark of the byte order at the start is none of the text.
            if not started and text:
                started, text = True, text.removeprefix("\ufeff") if marked else text
            if offset == 0 and raw and tail != separator:
                tally.update(separator.encode(encoding))
                yield separator
            offset += len(raw)
            tally.update(raw)
            if text:
                tail = (tail + text[-len(separator) :])[-len(separator) :]
                yield text

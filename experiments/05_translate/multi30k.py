"""Multi30k: captions of photographs, German and English line by line in gzip files."""

import gzip
import itertools
import pathlib
import zlib

from experiments.common import DataError

__all__ = ["PARTS", "read_lines", "read_pairs"]

PARTS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}


def read_lines(path: pathlib.Path) -> list[str]:
    """The lines of a gzip file, none of them empty."""
    if not path.is_file():
        raise DataError(path, None, "there is no such file; the folder needs PART.de.gz and PART.en.gz of each part")
    lines = []
    try:
        with gzip.open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8").strip()
                except UnicodeDecodeError as error:
                    raise DataError(path, number, f"must be UTF-8, got {error.reason}; convert the file") from error
                if not line:
                    raise DataError(path, number, "needs a sentence, got an empty line; remove it on both sides")
                lines.append(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path, len(lines) + 1, f"cannot be unpacked ({error}); fetch the file again") from error
    if not lines:
        raise DataError(path, None, "needs at least one sentence, got an empty file")
    return lines


def read_pairs(folder: pathlib.Path, part: str, source: str = "de", target: str = "en") -> list[tuple[str, str]]:
    """Pairs of sentences of a part: "train", "valid" or "test".

    Raises:
        DataError: for a file that is missing or damaged, an empty line, and files with unequal numbers of lines.
    """
    paths = [folder / f"{PARTS[part]}.{language}.gz" for language in (source, target)]
    lines = [read_lines(path) for path in paths]
    for number, pair in enumerate(itertools.zip_longest(*lines), 1):
        if None in pair:
            short, long = paths if pair[0] is None else paths[::-1]
            raise DataError(short, number, f"needs a sentence, as {long.name} has one; the files must be parallel")
    return list(zip(*lines))

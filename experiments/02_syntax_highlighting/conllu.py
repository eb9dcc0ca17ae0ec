"""Words and their parts of speech from CoNLL-U files."""

import gzip
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.common import DataError

__all__ = ["TAGS", "UNKNOWN", "Encoder", "Sentence", "read_conllu", "read_treebank"]

# https://universaldependencies.org/u/pos/
TAGS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
COLUMNS = 10
UNKNOWN = 0  # of words and of characters


class Sentence(NamedTuple):
    """Words as they are written, and a tag each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_conllu(path: pathlib.Path) -> list[Sentence]:
    """The sentences of a file, also gzip: single tokens with columns 2 (form) and 4 (UPOS).

    Ranges of several words (``3-4``) and empty nodes (``8.1``) are skipped.

    Raises:
        DataError: for a line without its columns, form or tag, and for a sentence without words.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(path, None, f"must be a whole gzip file, got a corrupt one ({error})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(path, line, "must be UTF-8; convert the file") from error
    sentences: list[Sentence] = []
    found: list[tuple[str, str]] = []
    number, open_since = 0, 0  # whether there has been any line of the sentence, be it a comment
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.startswith("#"):
            open_since = open_since or number
        elif line:
            open_since = open_since or number
            if token := _token(path, number, line):
                found.append(token)
        else:
            sentences.append(_sentence(path, open_since or number, found))
            found, open_since = [], 0
    if open_since:
        sentences.append(_sentence(path, open_since, found))
    return sentences


def _token(path: pathlib.Path, number: int, line: str) -> tuple[str, str] | None:
    columns = line.split("\t")
    if len(columns) != COLUMNS:
        raise DataError(path, number, f"needs {COLUMNS} columns with a tab between them, got {len(columns)}")
    place, form, tag = columns[0], columns[1], columns[3]
    if "-" in place or "." in place:
        return None
    if not form:
        raise DataError(path, number, "needs a word in column 2, got an empty one")
    if tag not in TAGS:
        raise DataError(path, number, f"needs one of the 17 universal tags in column 4, got {tag!r}")
    return form, tag


def _sentence(path: pathlib.Path, number: int, found: Sequence[tuple[str, str]]) -> Sentence:
    if not found:
        raise DataError(path, number, "begins a sentence without words; remove it")
    words, tags = zip(*found)
    return Sentence(words, tags)


def read_treebank(folder: pathlib.Path) -> dict[str, list[Sentence]]:
    """The sentences of ``train``, ``dev`` and ``test``."""
    parts = {}
    for part in ("train", "dev", "test"):
        paths = sorted(folder.glob(f"*-ud-{part}.conllu*"))
        if len(paths) != 1:
            raise DataError(folder, None, f"needs one file *-ud-{part}.conllu or .conllu.gz, got {len(paths)}")
        parts[part] = read_conllu(paths[0])
    return parts


class Encoder:
    """Ids of words and characters.

    A word is known in lower case, with every digit as 0, if training has it at least ``min_count`` times; its
    characters are read as they are, of a long word the first ``first`` and the last ``last`` alone.
    """

    def __init__(self, train: Sequence[Sentence], min_count: int = 2, first: int = 4, last: int = 8) -> None:
        counts: dict[str, int] = {}
        for sentence in train:
            for word in sentence.words:
                counts[_folded(word)] = counts.get(_folded(word), 0) + 1
        kept = sorted(word for word, count in counts.items() if count >= min_count)
        self.words: Mapping[str, int] = {word: i for i, word in enumerate(kept, start=UNKNOWN + 1)}
        self.counts = np.array([0, *(counts[word] for word in kept)])  # [V]
        characters = sorted({character for sentence in train for word in sentence.words for character in word})
        self.characters = {character: i for i, character in enumerate(characters, start=UNKNOWN + 1)}
        self.first, self.last = first, last

    def spell(self, forms: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Characters ``[N, first + last]`` of these words, -1 in the padding, and lengths ``[N]``."""
        ids = np.full((len(forms), self.first + self.last), -1, np.int32)
        lengths = np.zeros(len(forms), np.int32)
        for row, form in enumerate(forms):
            if len(form) > self.first + self.last:
                form = form[: self.first] + form[-self.last :]
            lengths[row] = len(form)
            ids[row, : len(form)] = [self.characters.get(character, UNKNOWN) for character in form]
        return ids, lengths

    def encode(self, sentences: Sequence[Sentence], forms: Mapping[str, int], seq_len: int) -> dict[str, np.ndarray]:
        """``words``, ``forms`` and ``tags`` ``[N, seq_len]``, -1 in the padding, and ``lengths [N]``."""
        shape = (len(sentences), seq_len)
        arrays = {name: np.full(shape, -1, np.int32) for name in ("words", "forms", "tags")}
        for row, sentence in enumerate(sentences):
            size = len(sentence.words)
            arrays["words"][row, :size] = [self.words.get(_folded(word), UNKNOWN) for word in sentence.words]
            arrays["forms"][row, :size] = [forms[word] for word in sentence.words]
            arrays["tags"][row, :size] = [TAGS.index(tag) for tag in sentence.tags]
        return {**arrays, "lengths": np.array([len(sentence.words) for sentence in sentences], np.int32)}


def _folded(word: str) -> str:
    return "".join("0" if character.isdigit() else character for character in word.lower())

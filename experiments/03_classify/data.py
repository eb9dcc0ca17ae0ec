"""The three data sets as one thing: texts cut into symbols, a class each, and three parts that share no example."""

import dataclasses
import hashlib
import pathlib
import re
import sysconfig
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.common import DataError

__all__ = [
    "PACKAGES",
    "UNITS",
    "UNKNOWN",
    "Examples",
    "encode",
    "read_library",
    "read_names",
    "read_polarity",
    "snippets",
    "split_stratified",
    "vocabulary",
]

PARTS = ("train", "valid", "test")
UNKNOWN = 0  # the id of every symbol that the training part does not have
# Packages of Python 3.11 to 3.13 of at least six files. A trimmed installation may lack some.
PACKAGES = (
    *("asyncio", "ctypes", "email", "encodings", "importlib"),
    *("multiprocessing", "unittest", "urllib", "wsgiref", "xml"),
)
# Words stand between blanks; pieces of code are parts of names, digits and single other characters.
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]|[^\sa-zA-Z0-9]")
UNITS: dict[str, Callable[[str], Sequence[str]]] = {
    "characters": lambda text: text,
    "words": str.split,
    "pieces": lambda text: [piece.lower() for piece in _PIECE.findall(text)],
}
_NO_PACKAGE = frozenset({"test", "tests", "__pycache__"})


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts with a class each."""

    texts: tuple[str, ...]
    labels: np.ndarray  # int [N]
    part: np.ndarray  # int [N]: 0 train, 1 valid, 2 test
    classes: tuple[str, ...]
    unit: str = "characters"  # what a symbol is, one of UNITS

    def symbols(self, text: str) -> Sequence[str]:
        """What the network reads, one a step."""
        return UNITS[self.unit](text)

    def of(self, *parts: str) -> tuple[list[str], np.ndarray]:
        """The texts and labels of these parts."""
        chosen = np.flatnonzero(np.isin(self.part, [PARTS.index(name) for name in parts]))
        return [self.texts[i] for i in chosen], self.labels[chosen]


def _lines(path: pathlib.Path, encoding: str, what: str) -> list[str]:
    """The lines of a file, which end with a newline and nothing else, stripped; none of them is empty."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(path, None, "must exist and does not; give the folder that holds it") from None
    lines = []
    for number, raw in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            line = raw.decode(encoding).strip()
        except UnicodeDecodeError:
            raise DataError(path, number, f"must be {encoding}, got {raw[:30]!r}; convert the file") from None
        if not line:
            raise DataError(path, number, f"needs {what}, got an empty line; remove it")
        lines.append(line)
    return lines


def split_stratified(labels: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """The part of every example, 0, 1, ..: each part has its fraction of every class, rounded.

    >>> split_stratified(np.array([0] * 10 + [1] * 5), (0.6, 0.2, 0.2), seed=0).tolist().count(0)
    9
    """
    rng, part = np.random.default_rng(seed), np.zeros(len(labels), int)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(fractions)[:-1] * len(rows)).astype(int)
        for index, chosen in enumerate(np.split(rows, cuts)):
            part[chosen] = index
    return part


def read_names(folder: pathlib.Path, seed: int) -> Examples:
    """Surnames: a file ``Language.txt`` a language, a name a line. A fifth is held out, a tenth validates."""
    paths = sorted(path for path in folder.glob("*.txt") if path.name not in ("SOURCE.txt", "README.txt"))
    if len(paths) < 2:
        raise DataError(folder, None, f"needs a file Language.txt for each of at least two languages, got {len(paths)}")
    texts, labels = [], []
    for label, path in enumerate(paths):
        names = _lines(path, "utf-8", "a name")
        if len(names) < 10:
            raise DataError(path, len(names), f"needs at least 10 names to be split into parts, got {len(names)}")
        texts += names
        labels += [label] * len(names)
    part = split_stratified(np.array(labels), (0.7, 0.1, 0.2), seed)
    return Examples(tuple(texts), np.array(labels), part, tuple(path.stem for path in paths))


def read_polarity(folder: pathlib.Path, seed: int, fold: int, folds: int = 10) -> Examples:
    """Sentences of film reviews, negative and positive. One fold of ten is held out, the next one validates."""
    texts, labels = [], []
    for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos")):
        found = _lines(folder / name, "latin-1", "a sentence")  # a single byte each: 0x85 must not end a line
        texts += found
        labels += [label] * len(found)
    place = split_stratified(np.array(labels), (1 / folds,) * folds, seed)
    part = np.where(place == fold % folds, 2, np.where(place == (fold + 1) % folds, 1, 0))
    return Examples(tuple(texts), np.array(labels), part, ("negative", "positive"), "words")


def snippets(source: str, size: int) -> list[str]:
    """The source cut at ends of lines, as soon as a piece has ``size`` characters; what is left over is dropped.

    >>> snippets("ab\\ncd\\n\\nefghi\\nj\\n", size=4)
    ['ab\\ncd', 'efghi']
    """
    pieces, piece = [], ""
    for line in source.splitlines(keepends=True):
        piece += line
        if len(piece.strip()) >= size:
            pieces.append(piece.strip("\n")[: 2 * size])
            piece = ""
    return pieces


def _split_files(sizes: Mapping[str, int]) -> dict[str, int]:
    """Whole files to parts: about a fifth of the characters is held out, a tenth validates; none of them empty."""
    order = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())
    total, parts = sum(sizes.values()), dict.fromkeys(order, 0)
    for part, share in ((2, 0.2), (1, 0.1)):
        taken = 0
        for name in order:
            if parts[name] == 0 and (taken + sizes[name] <= 1.25 * share * total):
                parts[name], taken = part, taken + sizes[name]
        if not taken:
            parts[min((name for name in order if parts[name] == 0), key=sizes.__getitem__)] = part
    return parts


def read_library(seed: int, packages: Sequence[str] = PACKAGES, size: int = 160, most: int = 900) -> Examples:
    """Snippets of the running Python's standard library; the class is the package, and whole files are held out."""
    root, rng = pathlib.Path(sysconfig.get_path("stdlib")), np.random.default_rng(seed)
    texts, labels, parts, classes = [], [], [], []
    for package in packages:
        sources = {}
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root)
            if not _NO_PACKAGE.intersection(name.parts):
                source = path.read_text(encoding="utf-8", errors="replace")
                if len(source) >= size:
                    sources[name.as_posix()] = source
        if len(sources) < 3:
            continue
        split = _split_files({name: len(source) for name, source in sources.items()})
        found = [(piece, split[name]) for name, source in sources.items() for piece in snippets(source, size)]
        chosen = rng.permutation(len(found))[:most]
        texts += [found[i][0] for i in chosen]
        parts += [found[i][1] for i in chosen]
        labels += [len(classes)] * len(chosen)
        classes.append(package)
    if len(classes) < 2:
        raise DataError(root, None, "needs the sources of the standard library; this installation has none")
    return Examples(tuple(texts), np.array(labels), np.array(parts), tuple(classes), "pieces")


def vocabulary(examples: Examples, min_count: int = 1) -> dict[str, int]:
    """Ids of the symbols that the training part has at least so often, from 1; all else is `UNKNOWN`."""
    counts: dict[str, int] = {}
    for text in examples.of("train")[0]:
        for symbol in examples.symbols(text):
            counts[symbol] = counts.get(symbol, 0) + 1
    kept = sorted(symbol for symbol, count in counts.items() if count >= min_count)
    return {symbol: i for i, symbol in enumerate(kept, start=UNKNOWN + 1)}


def encode(
    examples: Examples, texts: Sequence[str], known: Mapping[str, int], seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids ``[N, seq_len]``, -1 in the padding, and lengths ``[N]``."""
    rows = [[known.get(symbol, UNKNOWN) for symbol in examples.symbols(text)] for text in texts]
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), seq_len), -1, np.int32)
    for row, found in enumerate(rows):
        ids[row, : len(found)] = found
    return ids, lengths

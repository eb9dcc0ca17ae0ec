r"""Arrays by name in one file, in the format of safetensors: a header in JSON, then the bytes, and nothing that runs.

    8 bytes    N, the length of the header, little-endian
    N bytes    {"__metadata__": {"key": "text"}, "name": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}
    the rest   the arrays, one after the other

The format is that of huggingface/safetensors, whose readers read these files. Everything that a header announces is
compared with the length of the file before anything is allocated. `seal` adds a digest for every array and one for the
metadata, so a file can be checked in parts; other readers take them for metadata of any kind.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from rnnjax.checks import short
from rnnjax.files import CheckpointError, digest, open_regular, parse_json, write_atomic

__all__ = ["ArraysFile", "Info", "decode", "encode", "read_arrays", "seal", "write_arrays"]

MAX_HEADER = 100_000_000  # bytes, as other readers have it
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "C64": np.complex64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_CODES = {np.dtype(kind): code for code, kind in _DTYPES.items()}
_TABLE, _SEAL = "rnnjax.arrays", "rnnjax.sha256"  # keys of the metadata: digests by name, and that of the metadata


class Info(NamedTuple):
    """What the header says of an array, and where its bytes stand in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    stop: int


class ArraysFile:
    """A file of arrays, of which the header has been read and checked; the arrays are read when they are asked for.

    Args:
        file: stands open as long as this is used.
        size: of the file in bytes.
        where: opens the error message.
        advice: closes it.

    Raises:
        CheckpointError: if the file is truncated, damaged or something else.
    """

    def __init__(self, file: BinaryIO, size: int, *, where: str, advice: str = "write it again") -> None:
        self._file, self.where, self.advice = file, where, advice
        self.metadata: dict[str, str] = {}
        self.infos: dict[str, Info] = {}
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise self._damaged(f"a header of {length:,} bytes in a file of {size:,}")
        header = file.read(length)
        try:
            table = parse_json(header, "header")
        except CheckpointError as error:
            raise self._damaged(str(error).rstrip(".")) from None
        if not isinstance(table, dict):
            raise self._damaged("the header is no JSON object")
        metadata = table.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._damaged("the metadata are no texts by name")
        self.metadata = metadata
        start = 8 + length
        for name, entry in table.items():
            self.infos[name] = self._info(name, entry, start, size)
        edges = sorted((info.start, info.stop) for info in self.infos.values())
        ends = [start, *(stop for _, stop in edges)]
        if [low for low, _ in edges] != ends[:-1] or ends[-1] != size:
            raise self._damaged("the arrays do not fill the file one after the other")

    def _info(self, name: str, entry: Any, start: int, size: int) -> Info:
        try:
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            shape, (low, high) = tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, low, high))
        except (KeyError, TypeError, ValueError):
            raise self._damaged(f"{name[:80]!r} has no dtype, shape and place that there are: {short(entry)}") from None
        if not whole or len(shape) > 64 or math.prod(shape) * dtype.itemsize != high - low or start + high > size:
            raise self._damaged(f"{name[:80]!r} of shape {str(list(shape))[:80]} does not fit its {size:,} bytes")
        return Info(shape, dtype, start + low, start + high)

    def read(self, name: str) -> np.ndarray:
        """One array, its bytes as they stand in the file."""
        info = self.infos[name]
        data = np.empty(info.stop - info.start, np.uint8)
        self._file.seek(info.start)
        if self._file.readinto(data.data) != data.size:  # type: ignore[attr-defined]
            raise self._damaged("it ends too early")
        return data.view(info.dtype).reshape(info.shape)

    def read_all(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {name: self.read(name) for name in self.infos}

    @property
    def sealed(self) -> bool:
        """Whether the file holds digests; one that `seal` has not made, or a version before it, does not."""
        return _SEAL in self.metadata or _TABLE in self.metadata

    def read_sealed(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """The arrays of these names, or all, which are what `seal` has seen.

        Raises:
            CheckpointError: if the metadata, the list of the arrays or one of these was edited or damaged.
        """
        rest = {key: value for key, value in self.metadata.items() if key != _SEAL}
        try:
            table = parse_json(self.metadata[_TABLE].encode(), "digests")
            whole = self.metadata[_SEAL] == digest(rest) and table.keys() == self.infos.keys()
        except (CheckpointError, KeyError, AttributeError, UnicodeEncodeError):
            whole = False
        if not whole:
            raise self._edited()
        arrays = {}
        for name in self.infos if names is None else names:
            arrays[name] = self.read(name)
            if table[name] != _digest_of(name, arrays[name]):
                raise self._edited()
        return arrays

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.where} is truncated or damaged ({reason}); {self.advice}.")

    def _edited(self) -> CheckpointError:
        return CheckpointError(f"{self.where} does not match its checksum, it was edited or damaged; {self.advice}.")


def seal(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with a digest for every array, and one for all of these."""
    table = {name: _digest_of(name, array) for name, array in sorted(arrays.items())}
    sealed = {**metadata, _TABLE: json.dumps(table)}
    return {**sealed, _SEAL: digest(sealed)}


def encode(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file."""
    return b"".join(_pieces(arrays, metadata))


def decode(data: bytes, *, where: str, advice: str = "write it again") -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by name, of every dtype, and the metadata of a file.

    Args:
        data: the bytes of the file.
        where: opens the error message.
        advice: closes it.

    Raises:
        CheckpointError: if the bytes are truncated, damaged or something else.

    >>> arrays, metadata = decode(encode({"a": np.arange(3.0)}, {"made": "here"}), where="test")
    >>> arrays["a"].tolist(), metadata
    ([0.0, 1.0, 2.0], {'made': 'here'})
    """
    file = ArraysFile(io.BytesIO(data), len(data), where=where, advice=advice)
    return file.read_all(), file.metadata


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file in one move, without a second copy of the arrays in memory."""
    write_atomic(path, _pieces(arrays, metadata))


def read_arrays(path: pathlib.Path, *, where: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As `decode`, of a regular file.

    Raises:
        CheckpointError: if it is truncated, damaged or something else.
        OSError: if it cannot be read.
    """
    with open_regular(path, where) as raw:
        file = ArraysFile(raw, os.fstat(raw.fileno()).st_size, where=where)
        return file.read_all(), file.metadata


def _pieces(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    # The widest first, so that every array stands at a multiple of its width.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in names:
        array = arrays[name]
        dtype = _native(array.dtype)
        if dtype not in _CODES:
            raise TypeError(f"arrays: {name!r} must be of a dtype that safetensors has, got {array.dtype}; cast it.")
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _bytes_of(arrays[name])


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _bytes_of(array: np.ndarray) -> memoryview:
    array = array.astype(_native(array.dtype), copy=False)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _digest_of(name: str, array: np.ndarray) -> str:
    # JSON knows half of a surrogate pair, UTF-8 does not.
    start = f"{name} {array.dtype.name} {array.shape};".encode("utf-8", "surrogatepass")
    found = hashlib.sha256(start)
    found.update(_bytes_of(array))
    return found.hexdigest()

"""The head of a GGUF file: its metadata and where its tensors lie. Read with bounds; the file is hostile.

    magic "GGUF", version u32, tensor count u64, pair count u64
    pairs:    key string, type u32, value
    tensors:  name string, dimension count u32, dimensions u64 each, type u32, offset u64
    padding to general.alignment, then the data, at the offsets given

A string is a u64 length and UTF-8 bytes; all numbers are little-endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from headpond.errors import ModelFileError

MAX_PAIRS = 4096
MAX_TENSORS = 1 << 17
MAX_STRING_BYTES = 1 << 24
MAX_ARRAY_ITEMS = 1 << 22
MAX_DIMENSIONS = 4
MIN_VERSION, MAX_VERSION = 2, 3
DEFAULT_ALIGNMENT = 32

STRING, ARRAY, UINT32 = 8, 9, 4
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    UINT32: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    30: (1, 2),  # BF16
}
"""Type number -> elements and bytes of one block, for the types whose size is checked here."""

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """shape: the fastest dimension first. offset: in bytes, from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size_bytes(self) -> int | None:
        """None for a type that is not known here."""
        block = _BLOCKS.get(self.type)
        return None if block is None else self.elements // block[0] * block[1]


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """metadata: key -> value. pairs: key -> first and past-the-last byte of the raw pair in the file. size_bytes: of
    the whole file."""

    version: int
    metadata: dict[str, Value]
    pairs: dict[str, tuple[int, int]]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int
    size_bytes: int = 0

    def text(self, key: str, default: str = "") -> str:
        value = self.metadata.get(key, default)
        return value if isinstance(value, str) else default

    def integer(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def items(self, key: str) -> list[Scalar]:
        value = self.metadata.get(key, [])
        return value if isinstance(value, list) else []


def read_header(path: Path) -> GgufHeader:
    """Read and check the head of `path`; the tensors that it names must lie inside the file, and apart.

    Raises ModelFileError for a file that is missing, unreadable, truncated, or not GGUF.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise ModelFileError(f"{path} has {size} bytes: too short for a GGUF model. Fetch it again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(data, path).header()
    except FileNotFoundError as error:
        raise ModelFileError(
            f"No model file at {path}. Correct the path, or fetch a model with: headpond models prepare"
        ) from error
    except OSError as error:
        raise ModelFileError(f"Cannot read the model file {path}: {error.strerror}") from error


def tensor_extents(header: GgufHeader) -> list[tuple[int, int]]:
    """First byte, and byte after the last, of each tensor in the file, by place; empty tensors are left out.

    One of a type whose size is not known here reaches to the next, or to the end of the file.
    """
    return [extent for _, extent in _placed(header)]


def _placed(header: GgufHeader) -> list[tuple[str, tuple[int, int]]]:
    """Names and extents, by place. They may overlap; of an unknown type each has one byte at least."""
    held = sorted((t for t in header.tensors if t.elements), key=lambda tensor: tensor.offset)
    following = [tensor.offset for tensor in held[1:]] + [header.size_bytes - header.data_start]
    placed = []
    for tensor, upto in zip(held, following, strict=False):  # without a tensor, none
        size = tensor.size_bytes
        length = max(1, upto - tensor.offset) if size is None else size
        begin = header.data_start + tensor.offset
        if length:
            placed.append((tensor.name, (begin, begin + length)))
    return placed


class _Cursor:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def header(self) -> GgufHeader:
        if self._data[:4] != b"GGUF":
            raise ModelFileError(
                f"{self._path} is not a GGUF model (its first bytes are {self._data[:4]!r}). "
                "Convert the model to GGUF, or correct the path."
            )
        self._at = 4
        version = self._number(UINT32)
        if not MIN_VERSION <= version <= MAX_VERSION:
            raise self._bad(f"GGUF version {version}; {MIN_VERSION} to {MAX_VERSION} can be read")
        tensor_count = self._count("tensors", MAX_TENSORS)
        pair_count = self._count("metadata pairs", MAX_PAIRS)
        metadata: dict[str, Value] = {}
        pairs: dict[str, tuple[int, int]] = {}
        for _ in range(pair_count):
            start = self._at
            key = self._string()
            if key in metadata:
                raise self._bad(f"the key '{key[:100]}' occurs twice")
            metadata[key] = self._value(self._number(UINT32))
            pairs[key] = (start, self._at)
        tensors = tuple(self._tensor() for _ in range(tensor_count))
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self._bad(f"general.alignment is {alignment!r}, not a power of two")
        data_start = -(-self._at // alignment) * alignment
        header = GgufHeader(version, metadata, pairs, tensors, alignment, data_start, len(self._data))
        self._check_extent(header)
        return header

    def _check_extent(self, header: GgufHeader) -> None:
        end = len(self._data)
        for tensor in header.tensors:
            last = header.data_start + tensor.offset + (tensor.size_bytes or 1)
            if last > end:
                raise ModelFileError(
                    f"{self._path} is truncated: '{tensor.name[:100]}' ends at byte {last}, the file at {end}. "
                    "Fetch it again."
                )
        at, before = 0, ""
        for name, (begin, end) in _placed(header):
            if begin < at:
                raise self._bad(f"'{name[:100]}' overlaps '{before[:100]}' (byte {begin} of the file)")
            at, before = end, name

    def _tensor(self) -> TensorInfo:
        name = self._string()
        dimensions = self._number(UINT32)
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise self._bad(f"'{name[:100]}' has {dimensions} dimensions")
        shape = tuple(self._number(10) for _ in range(dimensions))
        return TensorInfo(name, shape, self._number(UINT32), self._number(10))

    def _value(self, kind: int) -> Value:
        if kind != ARRAY:
            return self._scalar(kind)
        item = self._number(UINT32)
        count = self._count("items of an array", MAX_ARRAY_ITEMS)
        if item == STRING:
            return [self._string() for _ in range(count)]
        form = self._form(item)
        raw = self._take(form.size * count)
        return [value for (value,) in form.iter_unpack(raw)]

    def _scalar(self, kind: int) -> Scalar:
        if kind == STRING:
            return self._string()
        form = self._form(kind)
        value: int | float | bool = form.unpack(self._take(form.size))[0]
        return value

    def _form(self, kind: int) -> struct.Struct:
        form = _SCALARS.get(kind)
        if form is None:
            raise self._bad(f"a value of the unknown type {kind}")
        return form

    def _number(self, kind: int) -> int:
        form = _SCALARS[kind]
        return int(form.unpack(self._take(form.size))[0])

    def _count(self, what: str, limit: int) -> int:
        count = self._number(10)
        if count > limit:
            raise self._bad(f"{count} {what}; the limit is {limit}")
        return count

    def _string(self) -> str:
        size = self._number(10)
        if size > MAX_STRING_BYTES:
            raise self._bad(f"a string of {size} bytes; the limit is {MAX_STRING_BYTES}")
        # A vocabulary may hold pieces that are no valid UTF-8; they must survive a round trip.
        return self._take(size).decode("utf-8", "surrogateescape")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise ModelFileError(f"{self._path} is truncated inside its header. Fetch it again.")
        part = self._data[self._at : end]
        self._at = end
        return part

    def _bad(self, reason: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is not a valid GGUF model: {reason}. Fetch it again.")

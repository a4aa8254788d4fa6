"""The head of a safetensors file: where its tensors lie. Read with bounds; the file is hostile.

header length u64 (little-endian)
header JSON, UTF-8, begins with "{": {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {...}}
the data: every byte of it belongs to exactly one tensor; offsets count from its start
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from headpond.errors import ModelFileError
from headpond_workers.engines.formats.model_files import open_regular, parse_json_object, unreadable

MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""
MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 8
MAX_NAME_CHARS = 1024

_LENGTH_BYTES = 8
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """shape: the slowest dimension first. begin, end: bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """tensors: name -> entry. size_bytes: of the whole file. data_start: byte at which the data begins."""

    tensors: dict[str, TensorEntry]
    size_bytes: int
    data_start: int


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read and check the head of a file, so that no loader can be led outside of it, or to allocate more than it holds.

    Raises ModelFileError for a file that is missing, unreadable, truncated, or not safetensors.
    """
    with open_regular(path) as file:
        try:
            size_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size_bytes < _LENGTH_BYTES + 2:
                raise _bad(path, f"{size_bytes} bytes are too short for it")
            if length > min(MAX_HEADER_BYTES, size_bytes - _LENGTH_BYTES):
                raise _bad(
                    path, f"a header of {length} bytes in a file of {size_bytes}; the limit is {MAX_HEADER_BYTES}"
                )
            content = file.read(length)
        except OSError as error:
            raise unreadable(path, error) from error
    if len(content) != length or not content.startswith(b"{"):
        raise _bad(path, "its header is no JSON object")
    entries = parse_json_object(content, path)
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise _bad(path, f"{len(entries)} tensors; the limit is {MAX_TENSORS}")
    tensors = {name: _entry(name, entry, path) for name, entry in entries.items()}
    _check_extent(tensors, size_bytes - _LENGTH_BYTES - length, path)
    return SafetensorsHeader(tensors, size_bytes, _LENGTH_BYTES + length)


def _entry(name: str, entry: object, path: Path) -> TensorEntry:
    if not isinstance(entry, dict) or len(name) > MAX_NAME_CHARS:
        raise _bad(path, f"{name[:100]!r} is described by something else than an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _bad(path, f"{name[:100]!r} has the unknown type {str(dtype)[:50]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _bad(path, f"{name[:100]!r} has the shape {str(shape)[:100]}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _bad(path, f"{name[:100]!r} has the offsets {str(offsets)[:100]}")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _bad(path, f"{name[:100]!r} of {dtype} {shape} cannot lie at the bytes {begin} to {end}")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_extent(tensors: dict[str, TensorEntry], data_bytes: int, path: Path) -> None:
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if tensor.begin != at:
            fault = "overlaps the tensor before it" if tensor.begin < at else "leaves a hole before it"
            raise _bad(path, f"{name[:100]!r} {fault} (byte {tensor.begin} of the data)")
        at = tensor.end
    if at > data_bytes:
        raise ModelFileError(
            f"{path} is truncated: its tensors end at byte {at} of the data, the data at {data_bytes}. Fetch it again."
        )
    if at < data_bytes:
        raise _bad(path, f"{data_bytes - at} bytes after its last tensor")


def _bad(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path} is not a valid safetensors file: {reason}. Fetch it again.")

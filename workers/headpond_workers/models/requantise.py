"""A GGUF model in another quantisation: the same metadata, the same tensors, another number of bits.

Every matrix is converted, but for those that the source keeps in eight bits when four are asked for: the tied
embedding of a small model is shipped so because it decides every token. Norms and other vectors stay as they are.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from headpond.errors import EngineUnavailable, ModelFileError
from headpond_workers.engines.formats.gguf_header import UINT32, GgufHeader, TensorInfo, read_header

CONVERTER_VERSION = 1
"""Raised whenever the same input may give other bytes."""

FILE_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_1": 3}
"""Quantisation -> general.file_type, for those that `requantise` writes."""

_FILE_TYPE_KEY = "general.file_type"
_CONVERTIBLE = ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0")
_QUANTISED_BLOCK = 32

Progress = Callable[[str, int, int], None]
"""Takes the name of a stage, how many bytes of it are done, and how many there are (0: unknown)."""


def requantise(source: Path, target: Path, quantisation: str, *, progress: Progress) -> str:
    """Write `source` to the new file `target` in another quantisation, down to the disk (fsync).

    quantisation: a key of FILE_TYPES. Returns the SHA-256 of the file, in hex. Raises ModelFileError for a
    source that cannot be converted, EngineUnavailable without the `gguf` package; OSError passes through.
    """
    gguf = _gguf()
    header = read_header(source)
    plan = [(tensor, _target_type(gguf, tensor, quantisation)) for tensor in header.tensors]
    sizes = [_size_bytes(gguf, tensor, kind) for tensor, kind in plan]
    with (
        source.open("rb") as read,
        mmap.mmap(read.fileno(), 0, access=mmap.ACCESS_READ) as data,
        target.open("xb") as write,
    ):
        out = _HashedWriter(write)
        _write_head(out, data, header, plan, sizes, FILE_TYPES[quantisation])
        done, total = 0, sum(sizes)
        for (tensor, kind), size in zip(plan, sizes, strict=True):
            out.pad(header.alignment)
            out.write(_tensor_bytes(gguf, data, header, tensor, kind, size))
            done += size
            progress(f"converting to {quantisation}", done, total)
        out.pad(header.alignment)
        write.flush()
        os.fsync(write.fileno())
    return out.digest.hexdigest()


def _gguf() -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise EngineUnavailable(
            f"Converting a model needs the package gguf ({error}). Install it with: pip install 'headpond[llama]'"
        ) from error
    return gguf


def _target_type(gguf: Any, tensor: TensorInfo, quantisation: str) -> int:
    try:
        present = gguf.GGMLQuantizationType(tensor.type).name
    except ValueError:
        present = f"type {tensor.type}"
    if len(tensor.shape) < 2 or tensor.shape[0] % _QUANTISED_BLOCK or "norm" in tensor.name:
        return tensor.type
    if present not in _CONVERTIBLE:
        raise ModelFileError(f"'{tensor.name[:100]}' is {present}; only {', '.join(_CONVERTIBLE)} can be converted.")
    if present == "Q8_0":
        return tensor.type
    return int(gguf.GGMLQuantizationType[quantisation])


def _size_bytes(gguf: Any, tensor: TensorInfo, kind: int) -> int:
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return int(tensor.elements // elements * size)


def _tensor_bytes(gguf: Any, data: mmap.mmap, header: GgufHeader, tensor: TensorInfo, kind: int, size: int) -> bytes:
    start = header.data_start + tensor.offset
    raw = data[start : start + _size_bytes(gguf, tensor, tensor.type)]
    if kind == tensor.type:
        return raw
    import numpy as np

    rows = tensor.elements // tensor.shape[0]
    blocks = np.frombuffer(raw, dtype=np.uint8).reshape(rows, -1)
    source_type = gguf.GGMLQuantizationType(tensor.type)
    if source_type.name in ("F32", "F16"):
        # The package dequantises plain floats only from an array that has their type.
        floats = np.frombuffer(raw, dtype="<f4" if source_type.name == "F32" else "<f2").reshape(rows, -1)
        floats = floats.astype(np.float32)
    else:
        floats = gguf.quants.dequantize(blocks, source_type)
    converted: bytes = gguf.quants.quantize(floats, gguf.GGMLQuantizationType(kind)).tobytes()
    if len(converted) != size:
        raise ModelFileError(f"'{tensor.name[:100]}' converted to {len(converted)} bytes instead of {size}.")
    return converted


class _HashedWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.written = 0

    def write(self, part: bytes) -> None:
        self._file.write(part)
        self.digest.update(part)
        self.written += len(part)

    def pad(self, alignment: int) -> None:
        self.write(bytes(-self.written % alignment))


def _write_head(
    out: _HashedWriter,
    data: mmap.mmap,
    header: GgufHeader,
    plan: list[tuple[TensorInfo, int]],
    sizes: list[int],
    file_type: int,
) -> None:
    # Pairs are copied as raw bytes: a vocabulary or template that went through a parser could come out altered.
    pairs = [data[start:end] for key, (start, end) in header.pairs.items() if key != _FILE_TYPE_KEY]
    pairs.append(_string(_FILE_TYPE_KEY) + struct.pack("<II", UINT32, file_type))
    out.write(struct.pack("<4sIQQ", b"GGUF", header.version, len(plan), len(pairs)))
    for pair in pairs:
        out.write(pair)
    offset = 0
    for (tensor, kind), size in zip(plan, sizes, strict=True):
        dimensions = len(tensor.shape)
        out.write(_string(tensor.name))
        out.write(struct.pack(f"<I{dimensions}QIQ", dimensions, *tensor.shape, kind, offset))
        offset += size + (-size % header.alignment)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw

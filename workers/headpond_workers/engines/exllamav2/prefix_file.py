"""A file of a prompt's keys and values: safetensors with one possible header for given contents.

docs/kv-format.md describes it. Nothing here knows an engine: tensors are bytes of a known layout. A file is hostile
until its digest is checked; before that nothing is allocated that this engine's own layout does not account for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from headpond_workers.engines.prefix_header import (
    LENGTH_BYTES,
    NO_DIGEST,
    HeaderTensor,
    Part,
    Unfit,
    header_bytes,
    not_written,
    open_prefix,
    pack_ids,
    read_own_header,
    refusing,
    shown,
    whole_or_absent,
)

_READ_BYTES = 8 << 20
_ITEM_BYTES = {"U8": 1, "F16": 2, "I64": 8}


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One tensor of a file, shape (tokens, *token_shape). dtype: U8, F16 or I64."""

    name: str
    dtype: str
    token_shape: tuple[int, ...]

    @property
    def token_bytes(self) -> int:
        return math.prod(self.token_shape) * _ITEM_BYTES[self.dtype]


IDS = TensorLayout("ids", "I64", ())


@dataclass(frozen=True, slots=True)
class StoredPrefix:
    """What a checked file held. data: all tensors, `ids` first. begins: name -> first byte of a tensor in data."""

    ids: tuple[int, ...]
    data: bytearray
    begins: Mapping[str, int]


def write_prefix_file(
    path: Path,
    *,
    fingerprint: Mapping[str, Part],
    ids: Sequence[int],
    layout: Sequence[TensorLayout],
    tensors: Iterable[memoryview],
) -> int:
    """Write ids, shape (n,), and the bytes of the tensors of `layout`, in its order. Returns the file's size in bytes.

    The file appears under its name whole or not at all, also after a kill; mode 0600. Raises EngineError if the folder
    cannot be written to.
    """
    tokens = len(ids)
    header = _header(fingerprint, tokens, layout, digest=NO_DIGEST)
    expected = len(header) + tokens * _bytes_a_token(layout)
    digest = hashlib.sha256(header)
    try:
        with whole_or_absent(path) as file:
            file.write(header)
            for block in (memoryview(pack_ids(ids)), *tensors):
                digest.update(block)
                file.write(block)
            if file.tell() != expected:
                raise ValueError(f"the tensors have {file.tell() - len(header)} bytes, not {expected - len(header)}")
            file.seek(0)
            file.write(_header(fingerprint, tokens, layout, digest=digest.hexdigest()))
    except OSError as error:
        raise not_written(path, error) from error
    return expected


def read_prefix_file(
    path: Path, *, fingerprint: Mapping[str, Part], layout: Sequence[TensorLayout], max_tokens: int
) -> StoredPrefix:
    """Read and check a file that must have this fingerprint and layout, and at most max_tokens tokens.

    Holds the file once in memory. Raises PrefixRefused with the reason for any other file.
    """
    with refusing(path), open_prefix(path) as file:
        return _read(file, fingerprint, layout, max_tokens)


def _read(
    file: BufferedReader, fingerprint: Mapping[str, Part], layout: Sequence[TensorLayout], max_tokens: int
) -> StoredPrefix:
    header = read_own_header(file, fingerprint, max_tokens)
    content, tokens, digest = header.content, header.tokens, header.digest
    if content != _header(fingerprint, tokens, layout, digest=digest)[LENGTH_BYTES:]:
        _compare_tensors(json.loads(content), tokens, layout)
        raise Unfit("its header is not written as this format asks")
    data_bytes = tokens * _bytes_a_token(layout)
    size = os.fstat(file.fileno()).st_size
    expected = LENGTH_BYTES + len(content) + data_bytes
    if size != expected:
        raise Unfit(f"it has {size} bytes, and its header speaks of {expected}")

    hasher = hashlib.sha256(_header(fingerprint, tokens, layout, digest=NO_DIGEST))
    data = bytearray(data_bytes)
    unread = memoryview(data)
    while unread:
        count = file.readinto(unread[:_READ_BYTES])
        if not count:
            raise Unfit("it became shorter while it was read")
        hasher.update(unread[:count])
        unread = unread[count:]
    if hasher.hexdigest() != digest:
        raise Unfit("it is damaged: its content has another digest than its header says")
    begins = {}
    at = 0
    for tensor in (IDS, *layout):
        begins[tensor.name] = at
        at += tokens * tensor.token_bytes
    return StoredPrefix(struct.unpack_from(f"<{tokens}q", data), data, begins)


def _header(fingerprint: Mapping[str, Part], tokens: int, layout: Sequence[TensorLayout], *, digest: str) -> bytes:
    tensors = [
        HeaderTensor(tensor.name, tensor.dtype, (tokens, *tensor.token_shape), tokens * tensor.token_bytes)
        for tensor in layout
    ]
    return header_bytes(fingerprint, tokens, tensors, digest=digest)


def _bytes_a_token(layout: Sequence[TensorLayout]) -> int:
    return sum(tensor.token_bytes for tensor in (IDS, *layout))


def _compare_tensors(document: Mapping[str, object], tokens: int, layout: Sequence[TensorLayout]) -> None:
    for tensor in (IDS, *layout):
        found = document.get(tensor.name)
        expected = [tensor.dtype, [tokens, *tensor.token_shape]]
        if not isinstance(found, dict):
            raise Unfit(f"it has no tensor {tensor.name}")
        if [found.get("dtype"), found.get("shape")] != expected:
            found_text = f"{shown(found.get('dtype'))} {shown(found.get('shape'))}"
            raise Unfit(f"its tensor {tensor.name} is {found_text}, and this cache has {expected[0]} {expected[1]}")
    if len(document) > len(layout) + 2:
        raise Unfit(f"it has {len(document) - 1} tensors, and this cache has {len(layout) + 1}")

"""A file of a prompt's keys and values: safetensors with one possible header for given contents.

docs/kv-format.md describes it. Nothing here knows an engine: tensors are bytes of a known layout. A file is hostile
until its digest is checked; before that nothing is allocated that this engine's own layout does not account for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from headpond.errors import EngineError, PrefixRefused

FORMAT = "headpond/kv-prefix"
VERSION = "1"
MAX_HEADER_BYTES = 1 << 20

Part = str | int | float | None
"""One part of a fingerprint."""

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_NO_DIGEST = "0" * 64
_READ_BYTES = 8 << 20
_ITEM_BYTES = {"U8": 1, "F16": 2, "I64": 8}
_SHOWN_CHARS = 80


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
    header = _header(fingerprint, tokens, layout, digest=_NO_DIGEST)
    expected = len(header) + tokens * _bytes_a_token(layout)
    digest = hashlib.sha256(header)
    try:
        with _whole_or_absent(path) as file:
            file.write(header)
            for block in (memoryview(struct.pack(f"<{tokens}q", *ids)), *tensors):
                digest.update(block)
                file.write(block)
            if file.tell() != expected:
                raise ValueError(f"the tensors have {file.tell() - len(header)} bytes, not {expected - len(header)}")
            file.seek(0)
            file.write(_header(fingerprint, tokens, layout, digest=digest.hexdigest()))
    except OSError as error:
        raise EngineError(
            f"Keys and values were not written to {path}: {error.strerror or error}. Make room there, or give this "
            "user the right to write; until then prompts are prefilled."
        ) from error
    return expected


def read_prefix_file(
    path: Path, *, fingerprint: Mapping[str, Part], layout: Sequence[TensorLayout], max_tokens: int
) -> StoredPrefix:
    """Read and check a file that must have this fingerprint and layout, and at most max_tokens tokens.

    Holds the file once in memory. Raises PrefixRefused with the reason for any other file.
    """
    with _refusing(path), _open(path) as file:
        return _read(file, fingerprint, layout, max_tokens)


def read_fingerprint(path: Path) -> dict[str, object]:
    """What made a file, by its own account: nothing of it is checked but the format. Raises PrefixRefused."""
    with _refusing(path), _open(path) as file:
        return _stored_fingerprint(_metadata(_read_header(file)))


class _Unfit(Exception):
    """Why a file is refused."""


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (_Unfit, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PrefixRefused(f"{path} was not loaded: {reason}. Its prompt is prefilled instead.") from error


def _read(
    file: BufferedReader, fingerprint: Mapping[str, Part], layout: Sequence[TensorLayout], max_tokens: int
) -> StoredPrefix:
    content = _read_header(file)
    metadata = _metadata(content)
    _compare_fingerprints(_stored_fingerprint(metadata), fingerprint)
    tokens = _tokens(metadata, max_tokens)
    digest = metadata.get("digest", "")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise _Unfit("its digest is not one of SHA-256")
    if content != _header(fingerprint, tokens, layout, digest=digest)[_LENGTH_BYTES:]:
        _compare_tensors(json.loads(content), tokens, layout)
        raise _Unfit("its header is not written as this format asks")
    data_bytes = tokens * _bytes_a_token(layout)
    size = os.fstat(file.fileno()).st_size
    expected = _LENGTH_BYTES + len(content) + data_bytes
    if size != expected:
        raise _Unfit(f"it has {size} bytes, and its header speaks of {expected}")

    hasher = hashlib.sha256(_header(fingerprint, tokens, layout, digest=_NO_DIGEST))
    data = bytearray(data_bytes)
    unread = memoryview(data)
    while unread:
        count = file.readinto(unread[:_READ_BYTES])
        if not count:
            raise _Unfit("it became shorter while it was read")
        hasher.update(unread[:count])
        unread = unread[count:]
    if hasher.hexdigest() != digest:
        raise _Unfit("it is damaged: its content has another digest than its header says")
    begins = {}
    at = 0
    for tensor in (IDS, *layout):
        begins[tensor.name] = at
        at += tokens * tensor.token_bytes
    return StoredPrefix(struct.unpack_from(f"<{tokens}q", data), data, begins)


def _header(fingerprint: Mapping[str, Part], tokens: int, layout: Sequence[TensorLayout], *, digest: str) -> bytes:
    """The first bytes of a file, its length included. The size does not depend on the digest."""
    document: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "tokens": str(tokens),
            "digest": digest,
            "fingerprint": json.dumps(dict(fingerprint), sort_keys=True),
        }
    }
    at = 0
    for tensor in (IDS, *layout):
        end = at + tokens * tensor.token_bytes
        document[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": [tokens, *tensor.token_shape],
            "data_offsets": [at, end],
        }
        at = end
    content = json.dumps(document, separators=(",", ":")).encode("ascii")
    content += b" " * (-len(content) % _ALIGNMENT)
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


def _bytes_a_token(layout: Sequence[TensorLayout]) -> int:
    return sum(tensor.token_bytes for tensor in (IDS, *layout))


def _open(path: Path) -> BufferedReader:
    """Never waits on a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _Unfit("it is no regular file")
    return os.fdopen(descriptor, "rb")


def _read_header(file: BufferedReader) -> bytes:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(_LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
        raise _Unfit(f"it has {size} bytes, too few for its header")
    if length > MAX_HEADER_BYTES:
        raise _Unfit(f"its header has {length} bytes, and the limit is {MAX_HEADER_BYTES}")
    content = file.read(length)
    if len(content) < length:
        raise _Unfit("it became shorter while it was read")
    return content


def _metadata(content: bytes) -> dict[str, str]:
    metadata = _object(content, "its header").get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Unfit("its header has no metadata")
    if metadata.get("format") != FORMAT:
        raise _Unfit(f"its format is {_shown(metadata.get('format'))}, not {_shown(FORMAT)}")
    if metadata.get("version") != VERSION:
        raise _Unfit(f"its version is {_shown(metadata.get('version'))}, and this headpond reads {_shown(VERSION)}")
    return metadata


def _stored_fingerprint(metadata: Mapping[str, str]) -> dict[str, object]:
    return _object(metadata.get("fingerprint", "").encode(errors="replace"), "its fingerprint")


def _object(content: bytes, what: str) -> dict[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Unfit(f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise _Unfit(f"{what} is not a JSON object")
    return value


def _tokens(metadata: Mapping[str, str], max_tokens: int) -> int:
    written = metadata.get("tokens", "")
    if not re.fullmatch("[1-9][0-9]{0,11}", written):
        raise _Unfit(f"it covers {_shown(written)} tokens, which is no number of them")
    if int(written) > max_tokens:
        raise _Unfit(f"it covers {written} tokens, and this cache holds {max_tokens}")
    return int(written)


def _compare_fingerprints(stored: Mapping[str, object], own: Mapping[str, Part]) -> None:
    differences = [
        f"{name.replace('_', ' ')} {_shown(stored.get(name))}, this model has {_shown(value)}"
        for name, value in own.items()
        if name not in stored or stored[name] != value or type(stored[name]) is not type(value)
    ]
    unknown = sorted(stored.keys() - own.keys())
    if unknown:
        differences.append(f"{_shown(unknown[0])}, which this headpond does not know")
    if differences:
        raise _Unfit(f"it was made with {'; '.join(differences)}")


def _compare_tensors(document: Mapping[str, object], tokens: int, layout: Sequence[TensorLayout]) -> None:
    for tensor in (IDS, *layout):
        found = document.get(tensor.name)
        expected = [tensor.dtype, [tokens, *tensor.token_shape]]
        if not isinstance(found, dict):
            raise _Unfit(f"it has no tensor {tensor.name}")
        if [found.get("dtype"), found.get("shape")] != expected:
            found_text = f"{_shown(found.get('dtype'))} {_shown(found.get('shape'))}"
            raise _Unfit(f"its tensor {tensor.name} is {found_text}, and this cache has {expected[0]} {expected[1]}")
    if len(document) > len(layout) + 2:
        raise _Unfit(f"it has {len(document) - 1} tensors, and this cache has {len(layout) + 1}")


def _shown(value: object) -> str:
    """For a message: on one line, without control characters, not too long."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


@contextmanager
def _whole_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when the block ends well, and goes away when it does not."""
    descriptor, temporary = tempfile.mkstemp(prefix=".kv-", suffix=".partial", dir=path.parent)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

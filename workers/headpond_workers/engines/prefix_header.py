"""What files of keys and values have in common: a safetensors header with one possible form for given contents.

docs/kv-format.md describes it. `exllamav2.prefix_file` has one tensor for each part of a cache,
`llamacpp.slot_file` all of it in one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from headpond.errors import EngineError, PrefixRefused

FORMAT = "headpond/kv-prefix"
VERSION = "1"
MAX_HEADER_BYTES = 1 << 20
MAX_TOKENS = 1 << 24
"""That any context holds."""
LENGTH_BYTES = 8
NO_DIGEST = "0" * 64
IDS_NAME, IDS_DTYPE, ID_BYTES = "ids", "I64", 8

Part = str | int | float | None
"""One part of a fingerprint."""

_ALIGNMENT = 8
_SHOWN_CHARS = 80
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HeaderTensor:
    """One tensor of a file, as its header names it. size_bytes: of its data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PrefixHead:
    """What a file says of itself. Nothing of it is checked but the format: good for choosing a file, not for using one.

    fingerprint: digest of what made it. ids: shape (n,).
    """

    fingerprint: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnHeader:
    """content: without its length. digest: of the file, by its own account; nothing is checked against it yet."""

    content: bytes
    tokens: int
    digest: str


def read_fingerprint(path: Path) -> dict[str, object]:
    """What made a file, by its own account: nothing of it is checked but the format. Raises PrefixRefused."""
    with refusing(path), open_prefix(path) as file:
        return stored_fingerprint(metadata_of(read_header(file)))


def read_head(path: Path) -> PrefixHead:
    """Raises PrefixRefused."""
    with refusing(path), open_prefix(path) as file:
        metadata = metadata_of(read_header(file))
        tokens = tokens_of(metadata, MAX_TOKENS)
        # Before anything is allocated for them.
        if os.fstat(file.fileno()).st_size < tokens * ID_BYTES:
            raise Unfit(f"it covers {tokens} tokens, and does not have their ids")
        packed = file.read(tokens * ID_BYTES)
        if len(packed) < tokens * ID_BYTES:
            raise Unfit("it became shorter while it was read")
        return PrefixHead(digest_of_parts(stored_fingerprint(metadata)), struct.unpack(f"<{tokens}q", packed))


def check_digest(path: Path) -> None:
    """Whether a file is as it was written, whatever it is of. Raises PrefixRefused."""
    with refusing(path), open_prefix(path) as file:
        content = read_header(file)
        digest = _digest_in(metadata_of(content))
        hasher = hashlib.sha256(len(content).to_bytes(LENGTH_BYTES, "little"))
        hasher.update(content.replace(digest.encode(), NO_DIGEST.encode(), 1))
        while block := file.read(_READ_BYTES):
            hasher.update(block)
        if hasher.hexdigest() != digest:
            raise Unfit("it is damaged: its content has another digest than its header says")


def digest_of_parts(fingerprint: Mapping[str, object]) -> str:
    """SHA-256 in hex: two fingerprints with one digest are equal."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}q", *ids)


def header_bytes(
    fingerprint: Mapping[str, Part], tokens: int, tensors: Sequence[HeaderTensor], *, digest: str
) -> bytes:
    """The first bytes of a file, its length included. The size does not depend on the digest.

    tensors: those after `ids`, in the order of their data.
    """
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
    for tensor in (HeaderTensor(IDS_NAME, IDS_DTYPE, (tokens,), tokens * ID_BYTES), *tensors):
        end = at + tensor.size_bytes
        document[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    content = json.dumps(document, separators=(",", ":")).encode("ascii")
    content += b" " * (-len(content) % _ALIGNMENT)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


class Unfit(Exception):
    """Why a file is refused."""


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (Unfit, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PrefixRefused(f"{path} was not loaded: {reason}. Its prompt is prefilled instead.") from error


def open_prefix(path: Path) -> BufferedReader:
    """Never waits on a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unfit("it is no regular file")
    return os.fdopen(descriptor, "rb")


def read_header(file: BufferedReader) -> bytes:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > size - LENGTH_BYTES:
        raise Unfit(f"it has {size} bytes, too few for its header")
    if length > MAX_HEADER_BYTES:
        raise Unfit(f"its header has {length} bytes, and the limit is {MAX_HEADER_BYTES}")
    content = file.read(length)
    if len(content) < length:
        raise Unfit("it became shorter while it was read")
    return content


def read_own_header(file: BufferedReader, fingerprint: Mapping[str, Part], max_tokens: int) -> OwnHeader:
    """The header of a file that must have this fingerprint, and at most max_tokens tokens. Raises Unfit."""
    content = read_header(file)
    metadata = metadata_of(content)
    compare_fingerprints(stored_fingerprint(metadata), fingerprint)
    return OwnHeader(content, tokens_of(metadata, max_tokens), _digest_in(metadata))


def _digest_in(metadata: Mapping[str, str]) -> str:
    digest = metadata.get("digest", "")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise Unfit("its digest is not one of SHA-256")
    return digest


def metadata_of(content: bytes) -> dict[str, str]:
    metadata = object_of(content, "its header").get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Unfit("its header has no metadata")
    if metadata.get("format") != FORMAT:
        raise Unfit(f"its format is {shown(metadata.get('format'))}, not {shown(FORMAT)}")
    if metadata.get("version") != VERSION:
        raise Unfit(f"its version is {shown(metadata.get('version'))}, and this headpond reads {shown(VERSION)}")
    return metadata


def stored_fingerprint(metadata: Mapping[str, str]) -> dict[str, object]:
    return object_of(metadata.get("fingerprint", "").encode(errors="replace"), "its fingerprint")


def object_of(content: bytes, what: str) -> dict[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise Unfit(f"{what} is not a JSON object")
    return value


def tokens_of(metadata: Mapping[str, str], max_tokens: int) -> int:
    written = metadata.get("tokens", "")
    if not re.fullmatch("[1-9][0-9]{0,11}", written):
        raise Unfit(f"it covers {shown(written)} tokens, which is no number of them")
    if int(written) > max_tokens:
        raise Unfit(f"it covers {written} tokens, and this cache holds {max_tokens}")
    return int(written)


def compare_fingerprints(stored: Mapping[str, object], own: Mapping[str, Part]) -> None:
    differences = [
        f"{name.replace('_', ' ')} {shown(stored.get(name))}, this model has {shown(value)}"
        for name, value in own.items()
        if name not in stored or stored[name] != value or type(stored[name]) is not type(value)
    ]
    unknown = sorted(stored.keys() - own.keys())
    if unknown:
        differences.append(f"{shown(unknown[0])}, which this headpond does not know")
    if differences:
        raise Unfit(f"it was made with {'; '.join(differences)}")


def shown(value: object) -> str:
    """For a message: on one line, without control characters, not too long."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def not_written(path: Path, error: OSError) -> EngineError:
    """What to raise where the system refuses to write a file of keys and values."""
    return EngineError(
        f"Keys and values were not written to {path}: {error.strerror or error}. Make room there, or give this "
        "user the right to write; until then prompts are prefilled."
    )


@contextmanager
def whole_or_absent(path: Path) -> Iterator[BinaryIO]:
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

"""A file of what one slot of llama.cpp holds: llama.cpp's own file, in the container of docs/kv-format.md.

llama.cpp checks next to nothing of its file, and takes flipped bits for keys and values. So it is only ever shown a
copy that was made, byte by byte, while the digest of the container was checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path

from headpond.errors import EngineError
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

SLOT = "slot"
"""The one tensor beside `ids`: the bytes of llama.cpp's file."""
_BLOCK_BYTES = 1 << 20
_MAGIC, _VERSION = 0x67677371, 4
"""Of llama.cpp's file, in the pinned build: `ggsq`, then its version, a count, and so many numbers of 32 bits: -1, 1,
how many ids, these, and what is not of interest here."""
_TOKENS_MARK = (-1, 1)


def slot_ids(file: BufferedReader) -> tuple[int, ...]:
    """The token ids of llama.cpp's own file, from where it begins. Raises ValueError for another form."""
    start = file.read(24)
    if len(start) < 24:
        raise ValueError("it is too short")
    magic, version, count, *mark, tokens = struct.unpack("<3I3i", start)
    if (magic, version) != (_MAGIC, _VERSION) or tuple(mark) != _TOKENS_MARK or not 0 <= tokens <= count - 3:
        raise ValueError(f"it begins with {magic:#x}, {version}, {count}, {mark}, {tokens}")
    packed = file.read(4 * tokens)
    if len(packed) < 4 * tokens:
        raise ValueError("it is too short for its ids")
    return struct.unpack(f"<{tokens}i", packed)


def write_slot_file(path: Path, *, fingerprint: Mapping[str, Part], ids: Sequence[int], body: Path) -> int:
    """Write ids, shape (n,), and the bytes of `body`, llama.cpp's own file. Returns the file's size in bytes.

    Whole or absent, also after a kill; mode 0600. Raises EngineError if that fails.
    """
    try:
        with body.open("rb") as source, whole_or_absent(path) as file:
            size = os.fstat(source.fileno()).st_size
            header = _header(fingerprint, len(ids), size, digest=NO_DIGEST)
            digest = hashlib.sha256(header)
            file.write(header)
            for block in (pack_ids(ids), *_blocks(source)):
                digest.update(block)
                file.write(block)
            written = file.tell() - len(header) - len(pack_ids(ids))
            if written != size:
                raise EngineError(f"{body} had {size} bytes, and {written} when it was copied.")
            file.seek(0)
            file.write(_header(fingerprint, len(ids), size, digest=digest.hexdigest()))
    except OSError as error:
        raise not_written(path, error) from error
    return len(header) + len(pack_ids(ids)) + size


def read_slot_file(path: Path, *, fingerprint: Mapping[str, Part], max_tokens: int, into: Path) -> tuple[int, ...]:
    """Check a file, and write the llama.cpp file that it holds to `into`, mode 0600. Returns its token ids.

    Needs a few MiB of memory, whatever the file says. Raises PrefixRefused with the reason for a file that is damaged,
    has another fingerprint or more than max_tokens tokens; nothing is left at `into` then.
    """
    try:
        with refusing(path), open_prefix(path) as file:
            ids = _check_and_copy(file, fingerprint, max_tokens, into)
            with into.open("rb") as copy:
                try:
                    found = slot_ids(copy)
                except ValueError as error:
                    raise Unfit(f"what it holds is no file of this llama.cpp: {error}") from error
            if found != ids:
                raise Unfit("the ids that llama.cpp would take from it are not those that it names")
            return ids
    except BaseException:
        into.unlink(missing_ok=True)
        raise


def _check_and_copy(
    file: BufferedReader, fingerprint: Mapping[str, Part], max_tokens: int, into: Path
) -> tuple[int, ...]:
    header = read_own_header(file, fingerprint, max_tokens)
    content, tokens, digest = header.content, header.tokens, header.digest
    size = _slot_bytes(json.loads(content))
    if content != _header(fingerprint, tokens, size, digest=digest)[LENGTH_BYTES:]:
        raise Unfit("its header is not written as this format asks")
    packed_bytes = len(pack_ids([0])) * tokens
    found, expected = os.fstat(file.fileno()).st_size, LENGTH_BYTES + len(content) + packed_bytes + size
    if found != expected:
        raise Unfit(f"it has {found} bytes, and its header speaks of {expected}")
    packed = file.read(packed_bytes)
    hasher = hashlib.sha256(_header(fingerprint, tokens, size, digest=NO_DIGEST))
    hasher.update(packed)
    descriptor = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as copy:
        for block in _blocks(file):
            hasher.update(block)
            copy.write(block)
        if copy.tell() != size:
            raise Unfit("its length changed while it was read")
    if hasher.hexdigest() != digest:
        raise Unfit("it is damaged: its content has another digest than its header says")
    return struct.unpack(f"<{tokens}q", packed)


def _slot_bytes(document: Mapping[str, object]) -> int:
    found = document.get(SLOT)
    if not isinstance(found, dict):
        raise Unfit(f"it has no tensor {SLOT}")
    shape = found.get("shape")
    if not (isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and 0 < shape[0] < 1 << 53):
        raise Unfit(f"its tensor {SLOT} has the shape {shown(shape)}")
    size: int = shape[0]
    return size


def _header(fingerprint: Mapping[str, Part], tokens: int, size: int, *, digest: str) -> bytes:
    return header_bytes(fingerprint, tokens, [HeaderTensor(SLOT, "U8", (size,), size)], digest=digest)


def _blocks(file: BufferedReader) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block

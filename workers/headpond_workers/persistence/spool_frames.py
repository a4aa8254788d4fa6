"""Frames of a spool file: each a body with its length and checksum, so that a torn end is seen. Pure.

    frame   magic (4 bytes, "HPS1"), length of the body (u32, little-endian), CRC-32 of length and body (u32), body

A frame is appended with one write and then synced, and nothing is appended behind a frame that is not whole. So only
the last one can be torn: by a crash amid its write, or by a loss of power before its sync. What is torn is not there.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

MAGIC = b"HPS1"
_LENGTH = struct.Struct("<I")
_HEADER = struct.Struct("<4sII")
HEADER_BYTES = _HEADER.size
MAX_BODY_BYTES = 64 << 20


def frame(body: bytes) -> bytes:
    """Raises ValueError if the body is longer than any frame may be."""
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"{len(body)} bytes; a frame holds at most {MAX_BODY_BYTES}")
    return _HEADER.pack(MAGIC, len(body), _crc(body)) + body


def read_frame(file: BinaryIO) -> bytes | None:
    """The body of the next frame; None at the end of what is whole. Bounded: no length is believed above the most."""
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    magic, length, crc = _HEADER.unpack(header)
    if magic != MAGIC or length > MAX_BODY_BYTES:
        return None
    body = file.read(length)
    return body if len(body) == length and _crc(body) == crc else None


def _crc(body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(_LENGTH.pack(len(body))))

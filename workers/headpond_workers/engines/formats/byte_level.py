"""The byte-level alphabet of GPT-2, in which byte-level BPE writes its pieces: one character a byte."""

from __future__ import annotations


def piece_bytes(piece: str) -> bytes:
    """The bytes that a piece stands for. A character outside the alphabet stands for its own UTF-8."""
    return b"".join(_BYTE_OF[char] if char in _BYTE_OF else raw_bytes(char) for char in piece)


def raw_bytes(text: str) -> bytes:
    """UTF-8. Bytes that were no UTF-8 when text was read (`surrogateescape`) come out as they were."""
    return text.encode("utf-8", "surrogateescape")


def _alphabet() -> dict[str, bytes]:
    """Printable Latin-1 stands for itself, every other byte for a character from U+0100 on."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in itself)
    table = {chr(byte): bytes([byte]) for byte in itself}
    table.update({chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)})
    return table


_BYTE_OF = _alphabet()

"""The vocabulary of a GGUF model: the bytes of each token, and what surrounds a prompt.

tokenizer.ggml.model "gpt2": pieces are written in the byte-level alphabet of GPT-2, one character a byte.
"llama" (SentencePiece): U+2581 stands for a space, and <0xAB> for a single byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from headpond.errors import EngineUnavailable, ModelFileError
from headpond_workers.engines.formats.byte_level import piece_bytes, raw_bytes
from headpond_workers.engines.formats.gguf_header import GgufHeader


class TokenType(IntEnum):
    """tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_SILENT = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED)
_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """token_bytes: shape (vocabulary,), empty for tokens that add no text.

    bos_token, eos_token: their text, empty if the model has none. chat_template: Jinja source, or empty.
    """

    token_bytes: tuple[bytes, ...]
    bos_token: str
    eos_token: str
    adds_bos: bool
    chat_template: str


def read_vocabulary(header: GgufHeader) -> Vocabulary:
    """Raises EngineUnavailable for a kind of tokenizer that is not known, ModelFileError for a broken one."""
    kind = header.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise EngineUnavailable(
            f"The model's tokenizer is of the kind '{kind[:50] or 'none'}'; headpond reads 'gpt2' (byte-level BPE) "
            "and 'llama' (SentencePiece). Choose a model with one of these."
        )
    pieces = [_text(piece) for piece in header.items("tokenizer.ggml.tokens")]
    if not pieces:
        raise ModelFileError("The model has no vocabulary (tokenizer.ggml.tokens). Convert it again, with one.")
    types = header.items("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(pieces)
    if len(types) != len(pieces):
        raise ModelFileError(f"The model has {len(pieces)} tokens, but {len(types)} token types. Convert it again.")
    translate = _byte_level if kind == "gpt2" else _sentence_piece
    adds_bos = header.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")
    return Vocabulary(
        token_bytes=tuple(translate(piece, kind) for piece, kind in zip(pieces, types, strict=True)),
        bos_token=_special(header, pieces, "tokenizer.ggml.bos_token_id"),
        eos_token=_special(header, pieces, "tokenizer.ggml.eos_token_id"),
        adds_bos=adds_bos is True,
        chat_template=header.text("tokenizer.chat_template"),
    )


def _special(header: GgufHeader, pieces: list[str], key: str) -> str:
    token_id = header.integer(key)
    return pieces[token_id] if token_id is not None and 0 <= token_id < len(pieces) else ""


def _text(piece: object) -> str:
    if not isinstance(piece, str):
        raise ModelFileError("The model's vocabulary holds something that is no text. Convert it again.")
    return piece


def _byte_level(piece: str, kind: object) -> bytes:
    if kind in _SILENT:
        return b""
    if kind == TokenType.USER_DEFINED:
        return raw_bytes(piece)
    return piece_bytes(piece)


def _sentence_piece(piece: str, kind: object) -> bytes:
    if kind in _SILENT:
        return b""
    if kind == TokenType.BYTE and (match := _BYTE_PIECE.fullmatch(piece)):
        return bytes([int(match[1], 16)])
    if kind == TokenType.USER_DEFINED:
        return raw_bytes(piece)
    return raw_bytes(piece.replace(_SPACE, " "))

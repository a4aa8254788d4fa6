"""tokenizer.json, the file of Hugging Face's `tokenizers`: what it encodes, and the bytes of each of its tokens.

    added_tokens   [{id, content, special}]
    model          {type: "BPE", vocab: {piece: id}, unk_token, ...}
    decoder        how pieces become text: ByteLevel; or Replace U+2581 by a space, ByteFallback, Fuse, Strip

The file is a stranger's: it is bounded and checked here before `tokenizers` reads it, which may still panic on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from headpond.errors import EngineUnavailable, ModelFileError, SequenceFailed
from headpond_workers.engines.formats.byte_level import piece_bytes, raw_bytes
from headpond_workers.engines.formats.model_files import parse_json_object, read_bounded

MAX_TOKENIZER_BYTES = 1 << 27
"""The largest known are of about 40 MB. Parsed, a hostile file may take twenty times its size."""
MAX_TOKENS = 1 << 21

_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceStyle(Enum):
    """How a vocabulary writes bytes and spaces."""

    BYTE_LEVEL = "byte-level"
    SENTENCE_PIECE = "SentencePiece"


@dataclass(frozen=True, slots=True)
class HfTokenizer:
    """token_bytes: shape (highest id + 1,), empty for tokens that add no text. ids: token text -> id.

    plain, rendered: `tokenizers.Tokenizer`s; the first takes special tokens in a text for plain text. Both are
    thread-safe, and neither cuts nor pads.
    """

    token_bytes: tuple[bytes, ...]
    ids: dict[str, int]
    plain: Any
    rendered: Any


def read_hf_tokenizer(path: Path) -> HfTokenizer:
    """Read and check a tokenizer.json.

    Raises ModelFileError for a broken file, EngineUnavailable for a kind that is not known, or without `tokenizers`.
    """
    content = read_bounded(path, max_bytes=MAX_TOKENIZER_BYTES)
    document = parse_json_object(content, path)
    model, style = _model(document, path), _style(document)
    vocabulary, added = _vocabulary(model, path), _added_tokens(document, path)
    rendered, plain = _load(content, path), _load(content, path)
    plain.encode_special_tokens = True
    _check_ids(rendered, added, path)
    unknown = model.get("unk_token")
    table = [b""] * (1 + max([*vocabulary.values(), *added], default=-1))
    translate = piece_bytes if style is PieceStyle.BYTE_LEVEL else _sentence_piece
    for piece, number in vocabulary.items():
        table[number] = b"" if piece == unknown else translate(piece)
    for number, (text, special) in added.items():
        # Of a byte-level vocabulary, added tokens are plain text; of the other kind, they pass the same decoder.
        shown = raw_bytes(text) if style is PieceStyle.BYTE_LEVEL else _sentence_piece(text)
        table[number] = b"" if special else shown
    ids = vocabulary | {text: number for number, (text, _) in added.items()}
    return HfTokenizer(token_bytes=tuple(table), ids=ids, plain=plain, rendered=rendered)


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Token ids of text. Raises SequenceFailed if the tokenizer breaks on it (a hostile regular expression, say)."""
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    except BaseException as error:
        if not _is_of_tokenizers(error):
            raise
        raise SequenceFailed(
            "The model's tokenizer cannot read this text. Change the text, or convert the model again."
        ) from error
    return ids


def token_id(value: object, what: str, path: Path) -> int:
    """value, if it is a token id. Raises ModelFileError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_TOKENS:
        raise _bad(path, f"{what} is {str(value)[:50]!r}, not a token id from 0 to {MAX_TOKENS - 1}")
    return value


def _load(content: bytes, path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EngineUnavailable(
            f"Reading {path.name} needs the package tokenizers ({error}). "
            "Install it with: pip install 'headpond[exllamav2]'"
        ) from error
    try:
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except BaseException as error:
        if not _is_of_tokenizers(error):
            raise
        raise _bad(path, f"tokenizers refuses it ({str(error)[:200]})") from error
    return tokenizer


def _is_of_tokenizers(error: BaseException) -> bool:
    # A panic of Rust code is a BaseException of a module that cannot be imported.
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"


def _check_ids(tokenizer: Any, added: dict[int, tuple[str, bool]], path: Path) -> None:
    # tokenizers numbers added tokens by itself: an id that the file gives may be ignored without a word.
    found = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
    for number, (text, _) in added.items():
        if found.get(number) != text:
            raise _bad(path, f"its added token {text[:50]!r} has the id {number}, but tokenizers gives it another")


def _model(document: dict[str, object], path: Path) -> dict[str, object]:
    model = document.get("model")
    if not isinstance(model, dict):
        raise _bad(path, "it has no model")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise EngineUnavailable(_unknown(f"model '{str(kind)[:50]}'"))
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise EngineUnavailable(_unknown(f"model 'BPE' with {key}"))
    if model.get("dropout"):
        raise EngineUnavailable(
            "The model's tokenizer draws lots (dropout), so that a text has no fixed tokens. "
            "Set dropout to null in tokenizer.json."
        )
    return model


def _vocabulary(model: dict[str, object], path: Path) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise _bad(path, "it has no vocabulary")
    for piece, number in vocabulary.items():
        token_id(number, f"the id of {piece[:50]!r}", path)
    if len(set(vocabulary.values())) != len(vocabulary):
        raise _bad(path, "two pieces of its vocabulary have the same id")
    return vocabulary


def _added_tokens(document: dict[str, object], path: Path) -> dict[int, tuple[str, bool]]:
    """Id -> text, and whether it is special."""
    items = document.get("added_tokens") or []
    if not isinstance(items, list):
        raise _bad(path, "added_tokens is no list")
    added: dict[int, tuple[str, bool]] = {}
    for item in items:
        text = item.get("content") if isinstance(item, dict) else None
        special = item.get("special", False) if isinstance(item, dict) else None
        if not isinstance(text, str) or not isinstance(special, bool):
            raise _bad(path, "an entry of added_tokens has no content, or a special that is neither true nor false")
        number = token_id(item.get("id"), f"the id of {text[:50]!r}", path)
        if number in added:
            raise _bad(path, f"two added tokens have the id {number}")
        if text:  # tokenizers passes over empty ones
            added[number] = (text, special)
    return added


def _style(document: dict[str, object]) -> PieceStyle:
    steps = list(_steps(document.get("decoder"), depth=0))
    if steps == ["ByteLevel"]:
        return PieceStyle.BYTE_LEVEL
    if ("Replace" in steps or "Metaspace" in steps) and set(steps) <= _SENTENCE_PIECE_STEPS:
        return PieceStyle.SENTENCE_PIECE
    raise EngineUnavailable(_unknown(f"decoder '{', '.join(steps)[:100] or 'none'}'"))


_IS_SENTENCE_PIECE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "Replace": lambda step: step.get("pattern") == {"String": _SPACE} and step.get("content") == " ",
    "Metaspace": lambda step: step.get("replacement") == _SPACE,
    "ByteFallback": lambda step: True,
    "Fuse": lambda step: True,
    # The space before the first word of a whole text. An answer goes on after a prompt: its spaces are its own.
    "Strip": lambda step: step.get("content") == " " and not step.get("stop"),
}
_SENTENCE_PIECE_STEPS = frozenset(_IS_SENTENCE_PIECE)


def _steps(decoder: object, *, depth: int) -> Iterator[str]:
    """The kinds of a decoder's steps in their order; one that does something else than expected has a '?' after it."""
    if not isinstance(decoder, dict):
        return
    kind = str(decoder.get("type"))
    parts = decoder.get("decoders")
    if kind == "Sequence" and isinstance(parts, list) and depth < 4:
        for part in parts[:16]:
            yield from _steps(part, depth=depth + 1)
    elif kind in _IS_SENTENCE_PIECE and not _IS_SENTENCE_PIECE[kind](decoder):
        yield f"{kind}?"
    else:
        yield kind


def _sentence_piece(piece: str) -> bytes:
    if match := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return raw_bytes(piece.replace(_SPACE, " "))


def _unknown(what: str) -> str:
    return (
        f"The model's tokenizer has the {what}; headpond reads byte-level BPE (as of Llama 3 and Qwen) and BPE in the "
        "manner of SentencePiece (as of Llama 2, Mistral and Gemma). Choose a model with one of these."
    )


def _bad(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path} is not a valid tokenizer: {reason}. Fetch it again.")

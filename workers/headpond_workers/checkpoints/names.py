"""Keys of versions in storage, and which paths a version may hold. Pure. docs/checkpoint-format.md."""

from __future__ import annotations

import re
import unicodedata

from headpond.errors import InvalidRequest, ModelFileError
from headpond.tables import version_source

MAX_PART_BYTES = 255
MAX_PATH_BYTES = 1024
GC_STATE = "gc/state"
INTENTS = "intents/"
CHUNKS = "chunks/"
CONDEMNED = "gc/condemned/"
ALIAS_NAME = version_source.ALIAS_NAME
VERSION_NUMBER = version_source.VERSION_NUMBER
PROD = version_source.PROD


def chunk_key(epoch: int, sha256: str) -> str:
    """Of an object that holds chunks. sha256: 64 hex digits, of the object."""
    return f"{CHUNKS}{epoch:06d}/{sha256[:2]}/{sha256}"


def epoch_of(key: str) -> int | None:
    """The epoch under which a chunk object was put; None for any other key."""
    match = re.fullmatch(r"chunks/([0-9]{6,15})/[0-9a-f]{2}/[0-9a-f]{64}", key)
    return int(match[1]) if match else None


def manifest_key(model: str, txn: str) -> str:
    return f"models/{model}/manifests/{txn}"


def version_key(model: str, number: int) -> str:
    return f"models/{model}/versions/{number:010d}"


def versions_prefix(model: str) -> str:
    return f"models/{model}/versions/"


def alias_key(model: str, alias: str) -> str:
    return f"models/{model}/aliases/{alias}"


def aliases_prefix(model: str) -> str:
    return f"models/{model}/aliases/"


def intent_key(txn: str) -> str:
    return f"{INTENTS}{txn}"


def condemned_key(round_number: int) -> str:
    return f"{CONDEMNED}{round_number:06d}"


def check_alias(alias: str) -> str:
    """Raises InvalidRequest."""
    if not ALIAS_NAME.fullmatch(alias):
        raise InvalidRequest(
            f"'{alias[:100]}' cannot name an alias. A name starts with a small letter and has up to 32 small letters, "
            "digits and '-'.",
            field="alias",
        )
    return alias


def check_path(path: str) -> str:
    """A path inside a version, relative, with `/`. Raises ModelFileError for one that could lead elsewhere."""
    parts = path.split("/")
    size = len(path.encode("utf-8", "surrogateescape"))
    if not path or size > MAX_PATH_BYTES or any(not _is_good(part) for part in parts):
        raise ModelFileError(
            f"{path[:200]!r} cannot be the path of a file of a version: parts of 1 to {MAX_PART_BYTES} bytes, joined "
            "by '/', without '.', '..', a backslash or control characters. Rename the file."
        )
    return path


def _is_good(part: str) -> bool:
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        return False
    return (
        0 < size <= MAX_PART_BYTES
        and part not in (".", "..")
        and not any(letter == "\\" or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in part)
    )

"""What reading and writing a document in storage takes: a txn, a time, and an error that names the object."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from headpond.errors import BlobCorrupt, MalformedDocument, UnsupportedSchema

T = TypeVar("T")


def new_txn() -> str:
    return secrets.token_hex(16)


def now_ms() -> int:
    return int(time.time() * 1000)


def checked(key: str, unpack: Callable[[], T]) -> T:
    """What `unpack` makes of an object. Raises BlobCorrupt with its key for what is no such document."""
    try:
        return unpack()
    except UnsupportedSchema:
        raise
    except MalformedDocument as error:
        raise BlobCorrupt(key, str(error)) from error

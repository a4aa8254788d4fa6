"""Which weights a file holds: its SHA-256, remembered in a sidecar for as long as the file is untouched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PART_BYTES = 1 << 20
_SHA256_HEX = 64


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is known of a prepared file. size_bytes and mtime_ns tell cheaply whether it is still that file."""

    sha256: str
    size_bytes: int
    mtime_ns: int
    source: str
    origin_sha256: str
    converter_version: int


def sidecar_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar of a prepared file, or None if there is none that fits its size and time of change."""
    try:
        sidecar = Sidecar(**json.loads(sidecar_path(path).read_bytes()))
        status = path.stat()
    except (OSError, ValueError, TypeError):
        # Missing or mangled are the same: the file is then hashed or made anew.
        return None
    fits = (sidecar.size_bytes, sidecar.mtime_ns) == (status.st_size, status.st_mtime_ns)
    return sidecar if fits and isinstance(sidecar.sha256, str) and len(sidecar.sha256) == _SHA256_HEX else None


def digest_of(path: Path) -> str:
    """SHA-256 of a model file, in hex: from its sidecar if that still fits the file, else from its bytes."""
    sidecar = read_sidecar(path)
    return sidecar.sha256 if sidecar is not None else sha256_of(path)


def sha256_of(path: Path, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """on_bytes: told how many bytes are done, and of how many."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        done = 0
        while part := file.read(_PART_BYTES):
            digest.update(part)
            done += len(part)
            if on_bytes is not None:
                on_bytes(done, total)
    return digest.hexdigest()

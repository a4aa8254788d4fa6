"""Which weights a file holds: its SHA-256, remembered for as long as the file is untouched.

A prepared file has a sidecar beside it. The files of a checkpoint folder, which headpond does not write to, have
their digests in a folder of their own: one small JSON document a file, named by the file's real path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from headpond.errors import ModelFileError
from headpond_workers.engines.formats.model_files import open_regular, unreadable

log = logging.getLogger(__name__)

DigestOf = Callable[[Path], str]
"""The SHA-256 of a file, in hex."""

_PART_BYTES = 1 << 20
_SHA256_HEX = 64
_LOGGED_FROM_BYTES = 1 << 30
_SETTLED_NS = 100_000_000
"""File systems round times down to some milliseconds: a file this new may change again and show the same time."""


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
    with path.open("rb") as file:
        return _sha256(file, on_bytes)


def _sha256(file: BinaryIO, on_bytes: Callable[[int, int], None] | None = None) -> str:
    digest = hashlib.sha256()
    total = os.fstat(file.fileno()).st_size
    done = 0
    while part := file.read(_PART_BYTES):
        digest.update(part)
        done += len(part)
        if on_bytes is not None:
            on_bytes(done, total)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A file's digest, and by what to tell that it is still that file. ctime_ns: cannot be set back, mtime can."""

    path: str
    sha256: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str, status: os.stat_result, sha256: str) -> _Remembered:
        return cls(path, sha256, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def remembered_digest_of(path: Path, *, digest_cache: Path) -> str:
    """SHA-256 of a file, in hex: from the folder `digest_cache` if the file is untouched, else from its bytes.

    Links are followed. The folder is made if need be (0700); one that cannot be used costs time, nothing else.
    Raises ModelFileError for a file that is unreadable, or changes while it is read.
    """
    real = os.path.realpath(path)
    entry = _entry_of(path, digest_cache)
    try:
        usable = _is_private(digest_cache)
    except OSError as error:
        log.warning("digest_cache_unusable path=%s error=%r", digest_cache, error.strerror)
        usable = False
    with open_regular(path) as file:
        status, seen_ns = os.fstat(file.fileno()), time.time_ns()
        known = _recall(entry) if usable else None
        if known is not None and known == _Remembered.of(real, status, known.sha256):
            return known.sha256
        started = time.monotonic()
        try:
            sha256 = _sha256(file)
        except OSError as error:
            raise unreadable(path, error) from error
        found = _Remembered.of(real, status, sha256)
        if found != _Remembered.of(real, os.fstat(file.fileno()), sha256):
            raise ModelFileError(f"{path} changed while it was read. Start again when nothing writes to it.")
    if status.st_size >= _LOGGED_FROM_BYTES:
        seconds = time.monotonic() - started
        log.info("weights_hashed file=%r gb=%.1f seconds=%.1f", path.name, status.st_size / 1e9, seconds)
    if usable and seen_ns - status.st_ctime_ns > _SETTLED_NS:
        _remember(entry, found)
    return sha256


def _is_private(folder: Path) -> bool:
    """Make the folder. Whoever else may write there could pass off other weights as these."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    private = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not private:
        log.warning("digest_cache_unusable path=%s error='others may write there'", folder)
    return private


def _recall(entry: Path) -> _Remembered | None:
    try:
        known = _Remembered(**json.loads(entry.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        # Missing or mangled are the same: the file is hashed again.
        return None
    return known if isinstance(known.sha256, str) and len(known.sha256) == _SHA256_HEX else None


def _remember(entry: Path, found: _Remembered) -> None:
    new = None
    try:
        handle, new = tempfile.mkstemp(prefix=".new-", dir=entry.parent)  # mkstemp makes it 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(found), file, indent=1)
        os.replace(new, entry)
    except OSError as error:
        log.warning("digest_not_remembered path=%s error=%r", entry, error.strerror)
        if new is not None:
            Path(new).unlink(missing_ok=True)


def remember_digest(path: Path, sha256: str, *, digest_cache: Path) -> None:
    """Note what a file holds, which the caller has just checked, so that `remembered_digest_of` does not read it.

    A folder that cannot be used costs time, nothing else. Raises OSError if the file is not there.
    """
    entry = _entry_of(path, digest_cache)
    found = _Remembered.of(os.path.realpath(path), path.stat(), sha256)
    try:
        usable = _is_private(digest_cache)
    except OSError as error:
        log.warning("digest_cache_unusable path=%s error=%r", digest_cache, error.strerror)
        return
    if usable and _recall(entry) != found:
        _remember(entry, found)


def forget_digest(path: Path, *, digest_cache: Path) -> None:
    """Of a file that is about to be removed."""
    _entry_of(path, digest_cache).unlink(missing_ok=True)


def _entry_of(path: Path, digest_cache: Path) -> Path:
    return digest_cache / f"{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()}.json"

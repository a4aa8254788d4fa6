"""One version in the cache of this machine: its folder, and how to tell that it is as it was when it was checked.

<digest>/                the digest of the version; complete from the moment it has this name
  files/                 the files of the version
  entry.json             sizes, times and digests of these; its own time is when the version was last used
  names/<storage>/       what number it is in which storage: numbers never change, so this does neither
    chat@3.version       the document of the version, and
    chat@3.manifest      its manifest, as they stand in storage
<digest>.making/         half of an entry: files/, and `size`, the bytes that it will have
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from headpond.errors import MalformedDocument, ModelFileError
from headpond_workers.checkpoints.manifest import MAX_MANIFEST_BYTES, Manifest, digest_of_files
from headpond_workers.checkpoints.pulls.fetching import sync_folder
from headpond_workers.checkpoints.version_document import MAX_VERSION_BYTES, VersionDocument
from headpond_workers.engines.formats.model_files import read_bounded, read_json_object
from headpond_workers.engines.formats.weights_digest import (
    Sidecar,
    forget_digest,
    read_sidecar,
    remember_digest,
    sidecar_path,
)

logger = logging.getLogger(__name__)

SCHEMA = "headpond/cached-version"
VERSION = 1
FILES, ENTRY, NAMES, SIZE = "files", "entry.json", "names", "size"
MAKING = ".making"
MAX_ENTRY_BYTES = 64 << 20
_GGUF = ".gguf"
_OLD = ".old-"
_LARGE_BYTES = 1 << 20
"""Smaller files are hashed sooner than their digest is looked up."""
_DIGEST_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _KeptFile:
    """size, mtime_ns: tell cheaply whether it is still the file that was checked. sha256: 64 hex digits."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class CacheEntry:
    """The version with this digest, whether it is there or not. No method takes a lock: see `cache`."""

    def __init__(self, folder: Path, model_digest: str) -> None:
        self.model_digest = model_digest
        self.folder = folder / model_digest
        self.making = folder / f"{model_digest}{MAKING}"

    @property
    def files(self) -> Path:
        return self.folder / FILES

    def is_sound(self) -> bool:
        """Whether every file has the size and the time that it had when it was checked. Contents are not read."""
        kept = self._kept()
        if kept is None:
            return False
        for file in kept:
            try:
                status = (self.files / file.path).lstat()
            except OSError:
                return False
            if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
                logger.warning("cached_version_altered digest=%s file=%r", self.model_digest, file.path)
                return False
        return True

    def complete(self, manifest: Manifest) -> None:
        """Give what was fetched to `making` its name. Whatever stood there before is removed. Raises OSError."""
        kept = [
            _KeptFile(file.path, file.size, (self.making / FILES / file.path).stat().st_mtime_ns, file.sha256.hex())
            for file in manifest.files
        ]
        document = {"schema": SCHEMA, "v": VERSION, "files": [asdict(file) for file in kept]}
        _write(self.making / ENTRY, json.dumps(document).encode())
        with contextlib.suppress(FileNotFoundError):
            (self.making / SIZE).unlink()
        sync_folder(self.making)
        self.discard()
        self.making.rename(self.folder)
        sync_folder(self.folder.parent)

    def tell_engines(self, *, digest_cache: Path, source: str) -> None:
        """Have engines find the digests of large files where they look for them, so that none is hashed again. source:
        for people. Raises OSError."""
        kept = self._kept() or []
        for file in kept:
            if file.size >= _LARGE_BYTES:
                remember_digest(self.files / file.path, file.sha256, digest_cache=digest_cache)
        # llama.cpp's engine looks beside the file, where the version may have a file of its own.
        models = [file for file in kept if file.path.endswith(_GGUF)]
        if len(models) == 1 and not any(file.path == sidecar_path(Path(models[0].path)).as_posix() for file in kept):
            path, model = self.files / models[0].path, models[0]
            if read_sidecar(path) is None:
                known = Sidecar(model.sha256, model.size, model.mtime_ns, source, model.sha256, converter_version=0)
                _write(sidecar_path(path), json.dumps(asdict(known), indent=1).encode())

    def begin(self, size_bytes: int) -> Path:
        """Claim room for what is to be fetched, and return the folder to fetch to. Raises OSError."""
        self.making.mkdir(mode=0o700, exist_ok=True)
        _write(self.making / SIZE, str(size_bytes).encode())
        return self.making / FILES

    def discard(self) -> None:
        """Remove the complete entry. Processes that have its files open keep them. Raises OSError."""
        if not self.folder.exists():
            return
        # Out of sight first: a kill amid the removal leaves no entry that lacks files.
        doomed = self.folder.with_name(f"{self.model_digest}{_OLD}{secrets.token_hex(8)}")
        self.folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)  # what is left of it is swept with the next pull

    def remove(self, *, digest_cache: Path) -> None:
        """Remove all of it, half-made or complete. Raises OSError."""
        for file in self._kept() or ():
            forget_digest(self.files / file.path, digest_cache=digest_cache)
        self.discard()
        if self.making.exists():
            shutil.rmtree(self.making)

    def touch(self) -> None:
        """It is used now. What cannot be noted costs an entry its place in the order, nothing else."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / ENTRY)

    def used_ns(self) -> int:
        """When it was last used; 0 for one that is half-made."""
        try:
            return (self.folder / ENTRY).stat().st_mtime_ns
        except OSError:
            return 0

    def size_bytes(self) -> int:
        """Of its files, and of those that are on their way."""
        coming = 0
        with contextlib.suppress(ValueError, ModelFileError):
            coming = int(read_bounded(self.making / SIZE, max_bytes=20))
        return coming + sum(path.lstat().st_size for path in self.files.rglob("*") if not path.is_dir())

    def usable_path(self, manifest: Manifest) -> Path:
        """What an engine loads: the one GGUF file or the only file of a version, else the folder."""
        paths = [file.path for file in manifest.files]
        whole = [path for path in paths if path.endswith(_GGUF)] if len(paths) > 1 else paths
        return self.files / whole[0] if len(whole) == 1 else self.files

    def note_name(self, storage: str, document: VersionDocument, manifest: Manifest) -> None:
        """What it is called in a storage, for the time when that is away. Raises OSError."""
        version = f"{document.model}@{document.number}"
        if self.named(storage, document.model, document.number) == (document, manifest):
            return
        folder = self.folder / NAMES / storage
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(folder / f"{version}.manifest", manifest.pack())
        _write(folder / f"{version}.version", document.pack())

    def forget_name(self, storage: str, model: str, number: int) -> None:
        """Raises OSError."""
        for kind in ("version", "manifest"):
            (self.folder / NAMES / storage / f"{model}@{number}.{kind}").unlink(missing_ok=True)

    def named(self, storage: str, model: str, number: int) -> tuple[VersionDocument, Manifest] | None:
        """The documents of that version, if it is this one as far as is known here. Damaged ones are none."""
        path = self.folder / NAMES / storage / f"{model}@{number}"
        try:
            document = VersionDocument.unpack(
                read_bounded(path.with_name(path.name + ".version"), max_bytes=MAX_VERSION_BYTES)
            )
            manifest = Manifest.unpack(
                read_bounded(path.with_name(path.name + ".manifest"), max_bytes=MAX_MANIFEST_BYTES)
            )
        except (ModelFileError, MalformedDocument):
            return None
        fits = (document.model, document.number, document.model_digest) == (model, number, self.model_digest)
        return (document, manifest) if fits and manifest.model_digest == self.model_digest else None

    def _kept(self) -> list[_KeptFile] | None:
        """The files as they were checked; None for an entry that is not there, or is damaged."""
        try:
            found = read_json_object(self.folder / ENTRY, max_bytes=MAX_ENTRY_BYTES)
            if (found["schema"], found["v"]) != (SCHEMA, VERSION) or not isinstance(found["files"], list):
                return None
            kept = [_KeptFile(**file) for file in found["files"]]
            digest = digest_of_files((file.path, file.size, bytes.fromhex(file.sha256)) for file in kept)
        except (ModelFileError, KeyError, TypeError, ValueError):
            return None
        # It vouches for itself: whatever else it says, these are the files of this digest.
        return kept if digest == self.model_digest else None


def sweep(folder: Path) -> None:
    """Remove what a killed process left of entries that it was removing. Raises OSError."""
    for name in os.listdir(folder):
        if _OLD in name:
            shutil.rmtree(folder / name, ignore_errors=True)


def entries_of(folder: Path) -> list[CacheEntry]:
    """Those that are there, complete or half-made, the one whose use is longest ago first. Raises OSError."""
    digests = {name.removesuffix(MAKING) for name in os.listdir(folder)}
    found = [CacheEntry(folder, digest) for digest in sorted(digests) if _DIGEST_NAME.fullmatch(digest)]
    return sorted(found, key=CacheEntry.used_ns)


def _write(path: Path, content: bytes) -> None:
    """On the disk, whole or not at all."""
    new = path.with_name(f".{path.name}.new-{os.getpid()}")
    with new.open("wb") as file:
        os.chmod(new, 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)

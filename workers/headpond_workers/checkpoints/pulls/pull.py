"""A version pulled into a new folder of whoever asks. The folder has its name only once all of it is checked.

DIR                        the version, complete from the moment it has this name
.DIR.pull-<digest>/        what is being pulled there; locked (flock) by the one process that does so. Of a killed
                           one: the next pull of the same version goes on there, one of another version removes it
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headpond.errors import InvalidRequest, ModelFileError
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.pulls.fetching import Progress, disk_error, fetch, sync_folder
from headpond_workers.checkpoints.quarantine import sound_manifest
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument

_DIGEST_SHOWN = 16


@dataclass(frozen=True, slots=True)
class Pulled:
    """What stands in `folder` now."""

    folder: Path
    document: VersionDocument
    manifest: Manifest


def pull(registry: Registry, number: int, folder: Path, *, progress: Progress) -> Pulled:
    """Pull a version into `folder`, which is not there yet, or empty.

    Safe to repeat after a kill at any point, and while storage is away. Raises VersionMissing, VersionUnusable (also
    for one that turns out to be damaged), InvalidRequest for a folder that holds something, ModelFileError if the
    disk refuses or another process pulls there, StorageUnavailable.
    """
    folder = Path(os.path.abspath(folder.expanduser()))
    _check_target(folder)
    document = registry.complete(number)
    manifest = sound_manifest(registry, document)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _partial(folder, document.model_digest) as partial:
            fetch(registry, document, manifest, partial, progress=progress)
            _check_target(folder)
            partial.rename(folder)
            sync_folder(folder.parent)
    except OSError as error:
        raise disk_error(error, f"pull {registry.model}@{number} into", folder) from error
    return Pulled(folder, document, manifest)


def _check_target(folder: Path) -> None:
    """Raises InvalidRequest for anything but an empty folder."""
    try:
        empty = not any(folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        empty = False
    except OSError as error:
        raise disk_error(error, "look into", folder) from error
    if not empty or folder.is_symlink():
        raise InvalidRequest(
            f"{folder} is there already, and a version is pulled into a new folder. Name another one, or remove it.",
            field="folder",
        )


@contextlib.contextmanager
def _partial(folder: Path, model_digest: str) -> Iterator[Path]:
    """The folder to pull into, held by this process. Those of other versions that nobody holds are removed."""
    prefix = f".{folder.name}.pull-"
    own = folder.with_name(prefix + model_digest[:_DIGEST_SHOWN])
    own.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as held:
        if not _lock(own, held):
            raise ModelFileError(f"Another process pulls into {folder} just now. Wait for it, or name another folder.")
        for other in folder.parent.iterdir():
            if other.name.startswith(prefix) and other != own and other.is_dir() and not other.is_symlink():
                with contextlib.ExitStack() as removing:
                    if _lock(other, removing):
                        shutil.rmtree(other, ignore_errors=True)
        yield own


def _lock(folder: Path, held: contextlib.ExitStack) -> bool:
    """Hold a folder until `held` is closed; the kernel lets go of it when the process ends. False if another does, or
    has just given it its final name."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        return False

"""Where stored prefixes stand on a machine.

STATE_FOLDER/kv/<model>/
  purges                            which purges this machine has followed: see `purges`
  slots/<instance>-<pid>/           of one running worker: what an engine writes on the way to a file and back
  <fingerprint>/                    64 hex digits, of all that decides keys and values
    <name>.kv                       a prefix; its modification time is when it was used last
    outbox/<name>.kv                a link to one that the persister is to upload
    rates.json                      what was measured: see `rates`
    uses/<instance>.json            what was counted: see `counts`
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KV = "kv"
SUFFIX = ".kv"
OUTBOX = "outbox"
SLOTS = "slots"
USES = "uses"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[0-9a-f]{32}")
_PARTIAL = re.compile(r"\.kv-.*\.partial")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """used_ns: modification time."""

    path: Path
    size_bytes: int
    used_ns: int


def kv_folder(state_folder: Path) -> Path:
    return state_folder / KV


def make_private(folder: Path) -> None:
    """Make a folder and those above it that are missing, each with the mode 0700."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def is_fingerprint(text: str) -> bool:
    return _FINGERPRINT.fullmatch(text) is not None


def fingerprint_folders(kv: Path, model: str) -> list[Path]:
    """Of all builds and versions of a model, sorted. Empty if there are none."""
    return [folder for folder in _folders(kv / model) if is_fingerprint(folder.name)]


def models_in(kv: Path) -> list[str]:
    return [folder.name for folder in _folders(kv)]


def prefixes_in(folder: Path) -> list[StoredFile]:
    """The prefixes of one folder, in no order. Nothing in it is opened."""
    return [found for found in files_in(folder) if is_prefix_file(found.path)]


def partials_in(folder: Path) -> list[StoredFile]:
    """What killed writers left, and what others are writing just now."""
    return [found for found in files_in(folder) if _PARTIAL.fullmatch(found.path.name)]


def is_prefix_file(path: Path) -> bool:
    return path.suffix == SUFFIX and _NAME.fullmatch(path.stem) is not None


def files_in(folder: Path) -> list[StoredFile]:
    """Regular files; those that go away meanwhile are left out."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append(StoredFile(Path(entry.path), status.st_size, status.st_mtime_ns))
    return found


def slot_folder(kv: Path, model: str, instance: str) -> Path:
    """A new, empty folder of this process, mode 0700. Those of processes of this instance that are gone are removed:
    there may be parts of prompts in them."""
    slots = kv / model / SLOTS
    make_private(slots)
    for folder in _folders(slots):
        owner, _, pid = folder.name.rpartition("-")
        if owner == instance and pid.isdecimal() and (int(pid) == os.getpid() or not _runs(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)
    own = slots / f"{instance}-{os.getpid()}"
    own.mkdir(mode=0o700)
    return own


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _folders(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return iter(())
    return map(Path, found)

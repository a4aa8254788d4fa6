"""The files that a push takes: listed, refused if they are no plain files, and read as they were listed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headpond.errors import ModelFileError
from headpond.terminal import escape_controls
from headpond_workers.checkpoints.manifest import MAX_FILES
from headpond_workers.checkpoints.names import check_path
from headpond_workers.engines.formats.checkpoint_folder import refuse_pickle
from headpond_workers.engines.formats.model_files import unreadable


@dataclass(frozen=True, slots=True)
class SourceFile:
    """path: in the version. at: on this machine. stamp: tells whether it is still the file that was listed."""

    path: str
    at: Path
    size: int
    stamp: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Source:
    """root: as it was named. files: sorted by path. left_out: hidden entries of folders, which no loader reads."""

    root: Path
    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def check_unchanged(self) -> None:
        """Raises ModelFileError if a file came, went or changed since the files were listed."""
        now = {file.path: file for file in list_source(self.root).files}
        before = {file.path: file for file in self.files}
        for path in sorted(now.keys() | before.keys()):
            if now.get(path) != before.get(path):
                raise changed((before.get(path) or now[path]).at)


def list_source(path: Path) -> Source:
    """What a push of `path`, a file or a folder, takes. The path itself may be a link; nothing below it may.

    Raises ModelFileError for a link, a device, a name that no version may hold, what may be a pickle, too many files,
    or none.
    """
    try:
        real = path.resolve(strict=True)
        found = real.stat()
    except FileNotFoundError as error:
        raise ModelFileError(f"Nothing is at {path}. Correct the path: it names a file or a folder to push.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ModelFileError(f"Cannot read {path}: {error}. Correct the path.") from error
    left_out: list[str] = []
    if stat.S_ISDIR(found.st_mode):
        files = sorted(_walk(real, "", left_out), key=lambda file: file.path)
    else:
        refuse_pickle(real.parent, path.name)
        files = [_file(real, check_path(path.absolute().name), found)]
    if not files:
        raise ModelFileError(f"{path} holds no files that could be pushed. Correct the path.")
    return Source(path, tuple(files), tuple(left_out))


def _walk(folder: Path, prefix: str, left_out: list[str]) -> Iterator[SourceFile]:
    """The files in and below a folder. prefix: its path in the version, with `/` at its end."""
    pending = [(folder, prefix)]
    count = 0
    while pending:
        folder, prefix = pending.pop()
        for entry in _entries(folder):
            path = prefix + entry.name
            if entry.name.startswith("."):
                left_out.append(path)
                continue
            at = folder / entry.name
            check_path(path)
            if entry.is_dir(follow_symlinks=False):
                pending.append((at, f"{path}/"))
                continue
            count += 1
            if count > MAX_FILES:
                raise ModelFileError(f"There are more than {MAX_FILES} files. Give the model a folder of its own.")
            refuse_pickle(folder, entry.name)
            yield _file(at, path, _status(entry, at))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error


def _status(entry: os.DirEntry[str], at: Path) -> os.stat_result:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError as error:
        raise unreadable(at, error) from error


def _file(at: Path, path: str, status: os.stat_result) -> SourceFile:
    shown = escape_controls(str(at))
    if stat.S_ISLNK(status.st_mode):
        raise ModelFileError(
            f"{shown} is a link. A version holds plain files only, so that it is the same wherever it is pulled. Push "
            "a copy without links, made with: cp -rL FOLDER COPY"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{shown} is no regular file, so it cannot be part of a version. Move it elsewhere.")
    return SourceFile(path, at, status.st_size, _stamp(status))


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    # The time of change of the inode cannot be set back, that of the content can.
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


@contextmanager
def opened(file: SourceFile) -> Iterator[int]:
    """A descriptor of a listed file, which is checked to be still that file at the beginning and at the end.

    Raises ModelFileError if it is not, or cannot be read.
    """
    try:
        # Whoever put a pipe or a link in its place is not waited for, nor followed.
        descriptor = os.open(file.at, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise changed(file.at) from error
    try:
        _check(descriptor, file)
        yield descriptor
        _check(descriptor, file)
    finally:
        os.close(descriptor)


def _check(descriptor: int, file: SourceFile) -> None:
    if _stamp(os.fstat(descriptor)) != file.stamp:
        raise changed(file.at)


def read_range(descriptor: int, buffer: memoryview, offset: int, *, of: SourceFile) -> None:
    """Fill `buffer` with the bytes of a file from `offset` on. Raises ModelFileError if the file ends before."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise unreadable(of.at, error) from error
        if not count:
            raise changed(of.at)
        done += count


def changed(at: Path) -> ModelFileError:
    return ModelFileError(
        f"{escape_controls(str(at))} changed while it was pushed. No version was made. Push again when nothing writes "
        "to it."
    )

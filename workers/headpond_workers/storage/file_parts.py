"""A local file, read in parts of one size."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from headpond.errors import ModelFileError


class FileParts:
    """size: in bytes, as the file was opened; count: how many parts. Each read raises ModelFileError if the file cannot
    be read, or has become shorter. Threads may read at once."""

    def __init__(self, path: Path, *, part_bytes: int, max_parts: int) -> None:
        """Opens a regular file. Raises ModelFileError.

        part_bytes: of each part but the last; more where they would be more than max_parts.
        """
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self._unreadable(error) from error
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._file)
            raise ModelFileError(f"{path} is no regular file; only such a file can be stored.")
        self.size = found.st_size
        self.part_bytes = max(part_bytes, -(-self.size // max_parts))
        self.count = -(-self.size // self.part_bytes)
        self._digests: dict[int, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def whole(self) -> bytes:
        return self._read(0, self.size)

    def part(self, number: int) -> bytes:
        """number: from 0."""
        start = number * self.part_bytes
        body = self._read(start, min(self.part_bytes, self.size - start))
        self._digests[number] = hashlib.sha256(body).digest()
        return body

    def checksum(self, number: int) -> str:
        """The SHA-256 of a part as it was read last, in the way S3 writes it."""
        if number not in self._digests:
            self.part(number)
        return base64.b64encode(self._digests[number]).decode()

    def checksum_of_all(self) -> str:
        """What S3 makes of the parts' SHA-256: theirs, hashed again, and how many."""
        for number in range(self.count):
            self.checksum(number)
        joined = b"".join(self._digests[number] for number in range(self.count))
        return f"{base64.b64encode(hashlib.sha256(joined).digest()).decode()}-{self.count}"

    def _read(self, start: int, size: int) -> bytes:
        pieces, missing = [], size
        while missing:
            try:
                piece = os.pread(self._file, missing, start + size - missing)
            except OSError as error:
                raise self._unreadable(error) from error
            if not piece:
                raise ModelFileError(
                    f"{self._path} has become shorter while it was read. Leave it alone, and try again."
                )
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _unreadable(self, error: OSError) -> ModelFileError:
        return ModelFileError(f"Cannot read {self._path}: {error.strerror}.")

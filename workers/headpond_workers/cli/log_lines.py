"""Lines of the programs' logs, for a terminal: the last ones, then those that come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from headpond.errors import DeploymentError
from headpond.settings import Settings
from headpond.terminal import escape_controls
from headpond_workers.supervision.private_files import last_lines
from headpond_workers.supervision.programs import LOG_FOLDER, split_worker_name

POLL_INTERVAL_S = 0.2
LONGEST_LINE_BYTES = 65_536


def log_files(settings: Settings, name: str) -> list[Path]:
    """The logs of a model's workers, or of one program. Raises DeploymentError naming those that there are."""
    folder = settings.state_folder / LOG_FOLDER
    by_model: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.log")):
        program = path.name.removesuffix(".log")
        split = split_worker_name(program)
        by_model.setdefault(split[0] if split else program, []).append(path)
        if split:
            by_model.setdefault(program, []).append(path)
    if name in by_model:
        return by_model[name]
    known = ", ".join(sorted(by_model)) or "none yet; start the deployment with: headpond up"
    raise DeploymentError(f"There is no log of '{escape_controls(name)}'. Logs: {known}")


def recent(paths: list[Path], count: int) -> Iterator[str]:
    """The last `count` lines of each log, safe for a terminal, each behind its program's name if there are several."""
    for path in paths:
        for line in filter(None, last_lines(path, count).split("\n") if count else ()):
            yield _labelled(path, line, several=len(paths) > 1)


def coming(paths: list[Path]) -> Iterator[str]:
    """Lines as they are written from now on, for ever; logs may be rotated meanwhile."""
    tails = [_Tail(path) for path in paths]
    while True:
        found = [_labelled(tail.path, line, several=len(tails) > 1) for tail in tails for line in tail.lines()]
        yield from found
        if not found:
            time.sleep(POLL_INTERVAL_S)


@dataclass(slots=True)
class _Tail:
    """Follows one log from its end."""

    path: Path
    _file: BinaryIO | None = None
    _rest: bytes = b""
    _opened: bool = field(default=False)

    def lines(self) -> list[str]:
        """Whole lines that were written since the last call."""
        data = self._read()
        if self._rotated():
            if self._file is not None:
                self._file.close()
            self._file = None
            data += self._read()
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE_BYTES:
            whole.append(self._rest)
            self._rest = b""
        return [line.decode("utf-8", errors="replace") for line in whole]

    def _read(self) -> bytes:
        if self._file is None:
            try:
                self._file = self.path.open("rb")
            except FileNotFoundError:
                return b""
            if not self._opened:
                self._file.seek(0, os.SEEK_END)
            self._opened = True
        return self._file.read()

    def _rotated(self) -> bool:
        if self._file is None:
            return False
        try:
            now, opened = self.path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:  # between the two steps of a rotation
            return False
        return (now.st_ino, now.st_dev) != (opened.st_ino, opened.st_dev) or now.st_size < self._file.tell()


def _labelled(path: Path, line: str, *, several: bool) -> str:
    label = f"{path.name.removesuffix('.log')} | " if several else ""
    return label + escape_controls(line)

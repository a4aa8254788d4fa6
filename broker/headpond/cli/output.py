"""What a command prints: an error in writing it is told apart from an error of any other file."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class OutputError(Exception):
    """What the command prints cannot be written, as on a full disk. reader_left: as `head` does.

    No OSError: what parses the command line makes an exit code of its own of some.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.reader_left = isinstance(error, BrokenPipeError)


class _Output(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error) from None


def watched(stream: TextIO) -> TextIO:
    """The same output, whose writes raise OutputError where they fail. One that is no file of the system stays."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = _Output(stream.fileno(), "w", closefd=False)
    # Unbuffered Python (-u) has no buffer here either.
    below = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        below,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def give_up_output() -> None:
    """Whatever is printed from here on is dropped, also what is in a buffer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

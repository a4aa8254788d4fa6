"""Files that came with a model: opened only if they are regular, read only within a bound."""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path

from headpond.errors import ModelFileError


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, following links. Never waits on a pipe or a device.

    Raises ModelFileError if it is missing, unreadable, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelFileError(f"{path} is no regular file, and no link to one. Remove it, or fetch the model again.")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """The content of a small file. Raises ModelFileError, before reading, for one that is larger than max_bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ModelFileError(f"{path} has {size} bytes; the limit is {max_bytes}. Choose another model.")
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise unreadable(path, error) from error
    if len(content) > max_bytes:
        raise ModelFileError(f"{path} grew while it was read. Start again when nothing writes to it.")
    return content


def read_json_object(path: Path, *, max_bytes: int) -> dict[str, object]:
    """The JSON object that a file holds. Raises ModelFileError for anything else."""
    return parse_json_object(read_bounded(path, max_bytes=max_bytes), path)


def parse_json_object(content: bytes, path: Path) -> dict[str, object]:
    """path: for the error's text. Raises ModelFileError if content is no JSON object in UTF-8."""
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ModelFileError(f"{path} nests its values too deep. Fetch it again.") from error
    except ValueError as error:  # also UnicodeDecodeError
        raise ModelFileError(f"{path} is not valid JSON: {str(error)[:200]}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a {type(value).__name__}, not a JSON object. Fetch it again.")
    return value


def unreadable(path: Path, error: OSError) -> ModelFileError:
    if isinstance(error, FileNotFoundError):
        return ModelFileError(f"No file at {path}. Correct the model's path, or fetch the model again.")
    return ModelFileError(f"Cannot read {path}: {error.strerror or error}. Give this user the right to read it.")

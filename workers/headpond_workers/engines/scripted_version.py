"""What the scripted engine takes for weights: a file `scripted.json`, which a version in storage may hold.

    {"answer_tokens": 40, "tokens_per_s": 200, "salt": "b", "fail": "load"}

Every key is optional. `salt` makes other tokens of the same prompt, so that an answer shows which version made it.
`fail` is how it does not load, as versions of real engines do not: "load", "oom", "crash", "template".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from headpond.errors import ModelFileError
from headpond_workers.engines.formats.model_files import read_json_object

FILE_NAME = "scripted.json"
MAX_FILE_BYTES = 64 << 10
MAX_SALT_CHARS = 1000


class LoadFailure(StrEnum):
    """Why a version does not load."""

    LOAD = "load"
    OUT_OF_MEMORY = "oom"
    CRASH = "crash"
    """The process kills itself (SIGKILL) while it loads."""
    TEMPLATE = "template"
    """Its files are refused, as a bad chat template is."""


@dataclass(frozen=True, slots=True)
class ScriptedVersion:
    """answer_tokens, tokens_per_s: None as the table has them."""

    answer_tokens: int | None = None
    tokens_per_s: float | None = None
    salt: str = ""
    fail: LoadFailure | None = None


def read_scripted_version(path: Path) -> ScriptedVersion:
    """path: the file, or a folder with one. Raises ModelFileError that names the file and what is wrong with it."""
    file = path / FILE_NAME if path.is_dir() else path
    fields = read_json_object(file, max_bytes=MAX_FILE_BYTES)
    known = set(ScriptedVersion.__dataclass_fields__)
    if strange := sorted(fields.keys() - known):
        raise ModelFileError(f"{file} has an unknown key {strange[0][:60]!r}; known: {', '.join(sorted(known))}.")
    answer, speed, salt, fail = (fields.get(key) for key in ("answer_tokens", "tokens_per_s", "salt", "fail"))
    if answer is not None and (type(answer) is not int or answer < 1):
        raise _refused(file, "answer_tokens", answer, "a whole number from 1 on")
    if speed is not None and not (type(speed) in (int, float) and 0 < _number(speed) <= 1e6):
        raise _refused(file, "tokens_per_s", speed, "a number above 0, at most 1000000")
    if salt is not None and not (isinstance(salt, str) and len(salt) <= MAX_SALT_CHARS and salt.isprintable()):
        raise _refused(file, "salt", salt, f"a text of at most {MAX_SALT_CHARS} printable characters")
    if fail is not None and fail not in list(LoadFailure):
        raise _refused(file, "fail", fail, f"one of {', '.join(LoadFailure)}")
    return ScriptedVersion(
        answer if type(answer) is int else None,
        None if speed is None else _number(speed),
        salt if isinstance(salt, str) else "",
        None if fail is None else LoadFailure(str(fail)),
    )


def _number(value: object) -> float:
    """nan for what is none, which no bound holds of."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def _refused(file: Path, key: str, value: object, wanted: str) -> ModelFileError:
    return ModelFileError(f"{file} is not valid: {key} is {str(value)[:50]!r}, not {wanted}. Correct the file.")

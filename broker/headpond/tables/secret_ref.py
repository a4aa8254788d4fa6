"""Where a secret stands. The secret itself is read only by the process that needs it, and held by nothing here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, model_validator

from headpond.errors import ConfigError
from headpond.tables.table import Table

_REFERENCE = 'a secret is a reference: {env = "NAME"} or {file = "PATH"}'


class SecretRef(Table):
    """Where a secret stands: an environment variable or a file. Never the secret."""

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_the_secret(cls, value: object) -> object:
        if isinstance(value, SecretRef) or (isinstance(value, dict) and value.keys() <= {"env", "file"}):
            return value
        raise ValueError(_REFERENCE)

    @model_validator(mode="after")
    def _one_place(self) -> SecretRef:
        if (self.env is None) == (self.file is None):
            raise ValueError(_REFERENCE)
        return self

    def resolve(self, *, where: str) -> str:
        """Read the secret. Raises ConfigError, naming the reference and never the value."""
        if self.env is not None:
            value = os.environ.get(self.env)
            if not value:
                raise ConfigError(f"the environment variable {self.env} is not set", where=where)
            return value
        try:
            value = (self.file or Path()).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"cannot read the secret file {self.file}: {error.strerror}", where=where) from None
        except UnicodeDecodeError:
            raise ConfigError(f"the secret file {self.file} is not text", where=where) from None
        if not value:
            raise ConfigError(f"the secret file {self.file} is empty", where=where)
        return value


def secrets_of(value: Any) -> Iterator[SecretRef]:
    """Every secret reference in a table, also in its inner tables and lists."""
    match value:
        case SecretRef():
            yield value
        case BaseModel():
            yield from secrets_of(dict(value))
        case Mapping():
            for inner in value.values():
                yield from secrets_of(inner)
        case list() | tuple():
            for inner in value:
                yield from secrets_of(inner)

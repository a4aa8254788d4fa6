"""Where a secret stands. The secret itself is read only by the process that needs it, and held by nothing here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, field_validator, model_validator

from headpond.errors import ConfigError
from headpond.tables.table import Table

_REFERENCE = 'a secret is a reference: {env = "NAME"} or {file = "PATH"}'
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
MAX_SECRET_BYTES = 1 << 16
NO_SECRETS = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM", "VIRTUAL_ENV",
        "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "NO_PROXY",
        "no_proxy", "OPENBLAS_NUM_THREADS", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ROCM_HOME", "CXX",
        "PYTHONPATH", "PYTHONHOME", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "HEADPOND_REDIS_URL",
        "HEADPOND_CACHE", "HEADPOND_DEBUG", "HEADPOND_SETTINGS_DIGEST",
    }
)  # fmt: skip
"""Variables that processes need, or that hold headpond's own settings: as a secret they would be kept from others."""


class SecretRef(Table):
    """Where a secret stands: an environment variable or a file. Never the secret."""

    env: str | None = None
    """An environment variable; not one that holds a setting."""
    file: Path | None = None
    """A file with the secret alone; white space around it is no part of it."""

    @model_validator(mode="before")
    @classmethod
    def _not_the_secret(cls, value: object) -> object:
        if isinstance(value, SecretRef) or (isinstance(value, dict) and value.keys() <= {"env", "file"}):
            return value
        raise ValueError(_REFERENCE)

    @field_validator("env")
    @classmethod
    def _of_a_secret(cls, name: str | None) -> str | None:
        if name is None:
            return None
        if not _VARIABLE.fullmatch(name):
            # Not repeated: the secret itself may stand there.
            raise ValueError("names no variable: a name has letters, digits and '_', and begins with no digit")
        if name in NO_SECRETS or (name.upper().startswith("HEADPOND_") and "__" in name):
            raise ValueError(f"{name} holds a setting and no secret; put the secret into a variable of its own")
        return name

    @model_validator(mode="after")
    def _one_place(self) -> SecretRef:
        if (self.env is None) == (self.file is None):
            raise ValueError(_REFERENCE)
        return self

    def resolve(self, *, where: str, learn: Callable[[str], object] | None = None) -> str:
        """Read the secret. learn: told of it, for instance so that it is kept out of logs.

        Raises ConfigError, naming the reference and never the value.
        """
        value = self._of_environment(where) if self.env is not None else self._of_file(where)
        if learn is not None:
            learn(value)
        return value

    def _of_environment(self, where: str) -> str:
        value = os.environ.get(self.env or "")
        if not value:
            raise ConfigError(f"the environment variable {self.env} is not set", where=where)
        return value

    def _of_file(self, where: str) -> str:
        try:
            with (self.file or Path()).open("rb") as file:
                raw = file.read(MAX_SECRET_BYTES + 1)
            value = raw.decode("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"cannot read the secret file {self.file}: {error.strerror}", where=where) from None
        except UnicodeDecodeError:
            raise ConfigError(f"the secret file {self.file} is not text", where=where) from None
        except ValueError:
            raise ConfigError(f"{str(self.file)!r} cannot be the name of a secret file", where=where) from None
        if not value:
            raise ConfigError(f"the secret file {self.file} is empty", where=where)
        if len(raw) > MAX_SECRET_BYTES:
            raise ConfigError(f"the secret file {self.file} has more than {MAX_SECRET_BYTES} bytes", where=where)
        return value


def secret_references(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], SecretRef]]:
    """Every reference in a table, at any depth, with its path: in tables, in free tables and in lists."""
    inner: Mapping[str, object] = {}
    if isinstance(value, SecretRef):
        yield path, value
    elif isinstance(value, BaseModel):
        inner = dict(value)
    elif isinstance(value, Mapping):
        inner = {str(key): each for key, each in value.items()}
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = {str(index): each for index, each in enumerate(value)}
    for key, each in inner.items():
        yield from secret_references(each, (*path, key))


def secrets_of(value: object) -> Iterator[SecretRef]:
    """Every reference in a table, at any depth."""
    return (reference for _, reference in secret_references(value))

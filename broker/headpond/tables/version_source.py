"""Where a model's weights come from when they are a version in storage: `s3:chat@prod`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from headpond.errors import InvalidRequest
from headpond.jobs import check_model_name

SCHEME = "s3:"
ALIAS_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
"""Begins with a letter, so that `chat@3` is never an alias."""
VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
PROD = "prod"
"""The alias that is meant where none is named."""


@dataclass(frozen=True, slots=True)
class VersionSource:
    """A version by its number, or the alias that names one. name: of the model in storage. Either alias or number is
    None."""

    name: str
    alias: str | None = PROD
    number: int | None = None

    def __post_init__(self) -> None:
        if (self.alias is None) == (self.number is None):
            raise ValueError("a source has an alias or a number, exactly one")

    def __str__(self) -> str:
        """As it stands in a configuration, its alias always named."""
        return f"{SCHEME}{self.version}"

    @property
    def version(self) -> str:
        """As commands take it: `chat@prod`, `chat@3`."""
        return f"{self.name}@{self.alias if self.number is None else self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `s3:NAME`, `s3:NAME@ALIAS` or `s3:NAME@3`. Raises InvalidRequest."""
        if not is_version_source(text):
            raise InvalidRequest(
                f"'{text[:100]}' is no version in storage: write s3:NAME@{PROD} for what an alias names, s3:NAME@3 for "
                "one version.",
                field="source",
            )
        return cls.parse_version(text.removeprefix(SCHEME))

    @classmethod
    def parse_version(cls, text: str) -> Self:
        """Of `NAME`, `NAME@ALIAS` or `NAME@3`. Raises InvalidRequest."""
        name, at, version = text.partition("@")
        check_model_name(name)
        if not at:
            return cls(name)
        if VERSION_NUMBER.fullmatch(version):
            return cls(name, None, int(version))
        if ALIAS_NAME.fullmatch(version):
            return cls(name, version)
        raise InvalidRequest(
            f"'{text[:100]}' names no version: after the @ stands a number from 1 on, such as {name}@3, or an alias "
            f"of up to 32 small letters, digits and '-', the first a letter, such as {name}@{PROD}.",
            field="source",
        )


def is_version_source(text: str) -> bool:
    """Whether a model's `source` means a version in storage, and not a model of the catalogue."""
    return text.startswith(SCHEME)

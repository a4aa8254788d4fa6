"""Versions of models, and what moves them."""

from __future__ import annotations

from datetime import UTC, datetime

from headpond.errors.base import HeadpondError
from headpond.errors.blobs import BlobError


class AliasMoved(BlobError):
    """An alias names another version than the one that it was to be moved from. Nothing was changed."""

    def __init__(self, key: str, *, alias: str, expected: int, found: int) -> None:
        super().__init__(
            key, f"'{alias}' names version {found or 'none'} now, not {expected or 'none'}; nothing was moved"
        )
        self.alias, self.expected, self.found = alias, expected, found


class PushOvertaken(BlobError):
    """A push that took longer than the grace of the collector, which then dropped its intent."""

    retry = True

    def __init__(self, key: str) -> None:
        super().__init__(key, "the push took so long that a collector dropped its intent; it has to begin anew")


class CollectionUnderWay(BlobError):
    """Another collector is at work. holder: which; until_ms: when its lease ends, by its clock."""

    retry = True

    def __init__(self, holder: str, *, until_ms: int) -> None:
        until = datetime.fromtimestamp(until_ms / 1000, tz=UTC)
        super().__init__(
            "gc/state",
            f"{holder} collects just now, until {until:%Y-%m-%d %H:%M:%S} UTC at the latest. Try again "
            "when it is done, or then if it was killed",
        )
        self.holder, self.until_ms = holder, until_ms


class VersionError(HeadpondError):
    """A version of a model cannot be used as was asked. version: `chat@3` or `chat@prod`."""

    def __init__(self, version: str, message: str) -> None:
        super().__init__(f"{version}: {message}")
        self.version = version


class VersionMissing(VersionError):
    """There is no such version or alias."""


class VersionUnusable(VersionError):
    """A version that is quarantined, deleted or not complete."""


class VersionInUse(VersionError):
    """It cannot be deleted: an alias names it."""

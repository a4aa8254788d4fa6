"""What a survey finds in storage: versions with the hashes of all their bytes, aliases, and what is stored. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

Hashes = tuple[tuple[str, int, str], ...]
"""Path, bytes and SHA-256 (hex) of each file, by path."""


@dataclass(frozen=True, slots=True)
class VersionFound:
    """note: names the push that made it. files: of the bytes that storage gives; empty where nothing says that they
    are still there. broken: why they could not be read; empty if they could."""

    model: str
    number: int
    state: str
    note: str
    files: Hashes = field(default=(), repr=False)
    broken: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}@{self.number}"


@dataclass(frozen=True, slots=True)
class MoveFound:
    """left, to: version numbers, 0 for none."""

    seq: int
    left: int
    to: int


@dataclass(frozen=True, slots=True)
class AliasFound:
    """moves: its history, the newest last."""

    model: str
    alias: str
    to: int
    previous: int
    seq: int
    moves: tuple[MoveFound, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.model}@{self.alias}"


@dataclass(frozen=True, slots=True)
class Survey:
    """All of storage at a moment when nothing else ran. intents: txns. rounds: of the collector, that are not over.
    stored: keys of chunks and manifests. needed: those that a version leads to which is not deleted. reachable: these,
    and what an intent names, which may be yet to come. unreadable: documents, and why. bytes_read: of objects, each
    once."""

    versions: tuple[VersionFound, ...]
    aliases: tuple[AliasFound, ...]
    intents: tuple[str, ...]
    rounds: tuple[int, ...]
    stored: frozenset[str] = field(repr=False)
    needed: frozenset[str] = field(repr=False)
    reachable: frozenset[str] = field(repr=False)
    unreadable: tuple[str, ...]
    bytes_read: int

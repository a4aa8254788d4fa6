"""Which stored prefix has the most in common with a prompt. Derived: whoever holds files or documents fills it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from headpond_workers.prefixes.blocks import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Found:
    """A stored prefix. tokens: that it has in common with the prompt, whole blocks; it may have more. size_bytes: of
    all of it."""

    name: str
    tokens: int
    size_bytes: int


class PrefixIndex:
    """Thread-safe. Its memory is that of the hashes, 16 bytes for 64 tokens."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[tuple[bytes, ...], int]] = {}
        self._at: dict[bytes, set[str]] = {}
        self._lock = threading.Lock()

    def names(self) -> set[str]:
        with self._lock:
            return set(self._entries)

    def put(self, name: str, hashes: Sequence[bytes], size_bytes: int) -> None:
        with self._lock:
            self._drop(name)
            self._entries[name] = (tuple(hashes), size_bytes)
            for each in hashes:
                self._at.setdefault(each, set()).add(name)

    def keep(self, names: Collection[str]) -> None:
        """Drop all others."""
        with self._lock:
            for name in self._entries.keys() - set(names):
                self._drop(name)

    def find(self, hashes: Sequence[bytes]) -> Found | None:
        """The prefix with the most blocks in common, of several the smallest; None if there is none with any."""
        with self._lock:
            for count in range(len(hashes), 0, -1):
                names = self._at.get(hashes[count - 1])
                if names:
                    size, name = min((self._entries[name][1], name) for name in names)
                    return Found(name, count * BLOCK_TOKENS, size)
        return None

    def _drop(self, name: str) -> None:
        hashes, _ = self._entries.pop(name, ((), 0))
        for each in hashes:
            names = self._at[each]
            names.discard(name)
            if not names:
                del self._at[each]

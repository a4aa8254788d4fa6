"""Keys of a model's state in storage.

    state/<model>/head
    state/<model>/segments/<epoch>-<seq>
    state/<model>/snapshots/<epoch>-<seq>
    state/<model>/parts/<txn>-<n>

Numbers have 10 digits or more.
"""

from __future__ import annotations

import re

from headpond.errors import BlobCorrupt
from headpond.jobs import check_model_name

_NUMBERED = re.compile(r".*/([0-9]{10,16})-([0-9]{10,16})", re.DOTALL)
_PART = re.compile(r"[0-9a-f]{32}-[0-9]{10,16}")


class StateKeys:
    """Those of one model. A document leads to no other object than one of its model: others are BlobCorrupt."""

    def __init__(self, model: str) -> None:
        self.model = check_model_name(model)
        self.prefix = f"state/{model}/"
        self.head = f"{self.prefix}head"
        self.segments = f"{self.prefix}segments/"
        self.snapshots = f"{self.prefix}snapshots/"
        self.parts = f"{self.prefix}parts/"

    def segment(self, *, epoch: int, seq: int) -> str:
        return f"{self.segments}{epoch:010d}-{seq:010d}"

    def snapshot(self, *, epoch: int, seq: int) -> str:
        return f"{self.snapshots}{epoch:010d}-{seq:010d}"

    def part(self, *, txn: str, number: int) -> str:
        return f"{self.parts}{txn}-{number:010d}"

    def parse_segment(self, key: str, *, found_in: str) -> tuple[int, int]:
        """Epoch and seq. Raises BlobCorrupt."""
        epoch, seq = _numbers(key)
        if key != self.segment(epoch=epoch, seq=seq):
            raise BlobCorrupt(found_in, f"{key[:200]!r} is no segment of '{self.model}'")
        return epoch, seq

    def parse_snapshot(self, key: str, *, found_in: str) -> tuple[int, int]:
        """Epoch and seq. Raises BlobCorrupt."""
        epoch, seq = _numbers(key)
        if key != self.snapshot(epoch=epoch, seq=seq):
            raise BlobCorrupt(found_in, f"{key[:200]!r} is no snapshot of '{self.model}'")
        return epoch, seq

    def check_part(self, key: str, *, found_in: str) -> None:
        """Raises BlobCorrupt."""
        if not key.startswith(self.parts) or _PART.fullmatch(key.removeprefix(self.parts)) is None:
            raise BlobCorrupt(found_in, f"{key[:200]!r} is no part of a snapshot of '{self.model}'")


def _numbers(key: str) -> tuple[int, int]:
    match = _NUMBERED.fullmatch(key)
    return (int(match[1]), int(match[2])) if match else (0, 0)

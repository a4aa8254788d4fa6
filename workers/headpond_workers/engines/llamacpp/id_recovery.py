"""Ids that a text-based stream left out, found again from the text they made.

llama.cpp's server streams text: while a character is incomplete it sends nothing, and then one message with
the whole character and the id of its last token only. The message also counts the tokens, so the missing
ids are a way to write the rest of the text in so many tokens. Where there is exactly one, that is proof.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

_REPLACEMENT = "\ufffd"
MAX_GROUP_BYTES = 64


class IdRecovery:
    """Of one vocabulary. Immutable, so thread-safe."""

    def __init__(self, token_bytes: Seq[bytes]) -> None:
        """token_bytes: shape (vocabulary,)."""
        self._token_bytes = token_bytes
        self._ids: dict[bytes, list[int]] = {}
        for token_id, piece in enumerate(token_bytes):
            self._ids.setdefault(piece, []).append(token_id)
        self._longest = max(map(len, token_bytes), default=0)

    def missing(self, text: str, *, last: int, count: int) -> list[int] | None:
        """The `count` ids before `last` that together with it made `text`; None unless there is just one way."""
        if _REPLACEMENT in text or not 0 <= last < len(self._token_bytes):
            return None  # the replacement character hides the bytes that were there
        whole, tail = text.encode(), self._token_bytes[last]
        if len(whole) > MAX_GROUP_BYTES or not whole.endswith(tail):
            return None
        ways: list[list[int]] = []
        self._collect(whole[: len(whole) - len(tail)], count, [], ways)
        return ways[0] if len(ways) == 1 else None

    def _collect(self, rest: bytes, count: int, before: list[int], ways: list[list[int]]) -> None:
        """Append to ways each way to write rest in count tokens, until there are two."""
        if count == 0:
            if not rest:
                ways.append(before)
            return
        if len(rest) > count * self._longest:
            return
        for size in range(min(len(rest), self._longest) + 1):
            for token_id in self._ids.get(rest[:size], ()):
                self._collect(rest[size:], count - 1, [*before, token_id], ways)
                if len(ways) > 1:
                    return

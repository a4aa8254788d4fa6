"""The text of one constrained sequence, followed beside llama.cpp, and the grammar of each of its requests.

llama.cpp begins a grammar anew with every request. What is sent is therefore what the text so far has left of it;
amid a character, where no grammar can begin, all tokens are banned but those that go on with the character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence as Seq
from typing import Any

from headpond.errors import SequenceFailed
from headpond_workers.engines.grammar.gbnf_state import GrammarState, Program, TooAmbiguous

_CONTINUATION = range(0x80, 0xC0)
_MAX_MISFITS = 8


class ConstrainedText:
    """Not thread-safe."""

    def __init__(self, program: Program, token_bytes: Seq[bytes], generated: Seq[int]) -> None:
        """generated: ids that earlier attempts made. Raises SequenceFailed if their text does not fit."""
        self._token_bytes = token_bytes
        self._pending = b""
        self._banned: set[int] = set()
        self._banned_opening: int | None = None
        self._misfits = 0
        try:
            self._state = GrammarState(program)
        except TooAmbiguous as error:
            raise _refused(error) from error
        if not self.take(generated):
            raise SequenceFailed(
                "The text so far is none of this request's constraint, so nothing can follow. Submit the job again."
            )

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, and nothing more could follow."""
        return self._state.is_complete and not self._pending

    @property
    def one_token_only(self) -> bool:
        """Whether the next request may make one token: amid a character, and after a misfit."""
        return bool(self._pending) or self._banned_opening is not None

    def take(self, ids: Seq[int]) -> bool:
        """Take the next ids. False, with none taken, for a misfit; then the next request bans what made it.

        llama.cpp's grammar reads the name of a control token as text, and a character in more bytes than it has as
        that character. Raises SequenceFailed if there are too many readings, or one misfit after the other.
        """
        silent = {token_id for token_id in ids if not self._token_bytes[token_id]}
        data = self._pending + b"".join(self._token_bytes[token_id] for token_id in ids)
        try:
            text, used = codecs.utf_8_decode(data)
            fits = not silent and self._state.advance(text)
        except UnicodeDecodeError as error:
            fits, self._banned_opening = False, data[error.start]
        except TooAmbiguous as error:
            raise _refused(error) from error
        if fits:
            self._pending, self._banned_opening, self._misfits = data[used:], None, 0
            return True
        self._banned |= silent
        self._misfits += 1
        if self._misfits > _MAX_MISFITS:
            raise SequenceFailed("llama.cpp makes text that does not fit this request's constraint. Make it simpler.")
        return False

    def fields(self) -> dict[str, Any]:
        """Of the next request's body: a grammar, and tokens that are banned.

        Raises SequenceFailed if no token goes on with the character.
        """
        if not self._pending:
            banned = {*self._banned, *self._openings()}
            return {"grammar": self._state.residual(), "logit_bias": [[token_id, False] for token_id in sorted(banned)]}
        fitting = {token_id for token_id, piece in enumerate(self._token_bytes) if self._goes_on(piece)}
        if not fitting:
            raise SequenceFailed("No token of this model completes the character at which the text was cut off.")
        # llama.cpp lets no token that begins amid a character through a grammar, and aborts when none is left.
        return {
            "logit_bias": [[token_id, False] for token_id in range(len(self._token_bytes)) if token_id not in fitting]
        }

    def _openings(self) -> list[int]:
        """Tokens that end with the first byte of the character that was a misfit."""
        if self._banned_opening is None:
            return []
        return [n for n, piece in enumerate(self._token_bytes) if piece and piece[-1] == self._banned_opening]

    def _goes_on(self, piece: bytes) -> bool:
        """Whether a token goes on with the character that is not whole, and with the constraint."""
        if not piece or piece[0] not in _CONTINUATION:
            return False
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            text = decoder.decode(self._pending + piece)
        except UnicodeDecodeError:
            return False
        stacks = self._state.stacks
        try:
            if not self._state.advance(text):
                return False
            rest = decoder.getstate()[0]
            return not rest or self._admits_partial(rest)
        finally:
            self._state.stacks = stacks

    def _admits_partial(self, begun: bytes) -> bool:
        """Whether a character that begins with these bytes may come next."""
        low, high = _span(begun)
        return any(first <= high and low <= last for ranges in self._state.due() for first, last in ranges)


def _span(begun: bytes) -> tuple[int, int]:
    """The lowest and the highest code point whose UTF-8 begins with these bytes."""
    length = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
    value = begun[0] & (0xFF >> (length + 1))
    for byte in begun[1:]:
        value = value << 6 | byte & 0x3F
    bits = 6 * (length - len(begun))
    return max(value << bits, (0, 0, 0x80, 0x800, 0x10000)[length]), (value << bits) | ((1 << bits) - 1)


def _refused(error: TooAmbiguous) -> SequenceFailed:
    return SequenceFailed(f"The constraint of this request cannot be kept to any longer: {error}. Make it simpler.")

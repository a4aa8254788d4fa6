"""Text from token ids: one incremental UTF-8 decoder, and the stop strings. No I/O."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Released:
    """Tokens whose text is settled. ids, pieces: shape (n,); a piece is the text that its token completes."""

    ids: tuple[int, ...] = ()
    pieces: tuple[str, ...] = ()


class Detokenizer:
    """Turns the ids of one sequence into text as they come.

    A character may span tokens: it belongs to the token that completes it. A token whose text may be the
    beginning of a stop string is held back until that is known, so a stop string is never part of the text, and
    never cut from it by mistake. A stop token is never part of it either. Once `stopped`, nothing more is released.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        stop: Sequence[str] = (),
        stop_ids: Iterable[int] = (),
        prior: Iterable[int] = (),
    ) -> None:
        """prior: ids of earlier attempts; a character that they began is completed here.

        prior_text: all text of prior. What was shown of it is less where it was cut at a stop string.
        """
        self._token_bytes = token_bytes
        self._stop = tuple(stop)
        self._stop_ids = frozenset(stop_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.prior_text = "".join(self._decoder.decode(token_bytes(token_id)) for token_id in prior)
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self.stopped = False

    def feed(self, ids: Sequence[int]) -> Released:
        """Take the next ids; return what may be shown now."""
        if self.stopped:
            return Released()
        if self._stop_ids and not self._stop_ids.isdisjoint(ids):
            return self._cut_at_stop_id(ids)
        if not self._stop:
            # The usual case, and the hot path: nothing is ever held back.
            decode, token_bytes = self._decoder.decode, self._token_bytes
            return Released(tuple(ids), tuple([decode(token_bytes(token_id)) for token_id in ids]))
        for token_id in ids:
            self._ids.append(token_id)
            self._pieces.append(self._decoder.decode(self._token_bytes(token_id)))
            if self._cut_at_stop():
                return self._release(len(self._ids))
        return self._release(self._settled())

    def _cut_at_stop_id(self, ids: Sequence[int]) -> Released:
        """What comes before the first stop token, with all that was held back: no stop string can follow."""
        end = next(at for at, token_id in enumerate(ids) if token_id in self._stop_ids)
        before = self.feed(ids[:end])
        if self.stopped:
            return before
        self.stopped = True
        rest = self.flush()
        return Released(before.ids + rest.ids, before.pieces + rest.pieces)

    def flush(self) -> Released:
        """The sequence ended: what was held back is text after all."""
        return self._release(len(self._ids))

    def _cut_at_stop(self) -> bool:
        """If the held text holds a stop string, keep what comes before it, and stop."""
        text = "".join(self._pieces)
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if not found:
            return False
        cut, start, kept = min(found), 0, 0
        for piece in self._pieces:
            # A token without text that ends at the cut is not part of the stop string: fed alone, it went before.
            if start > cut or (start == cut and piece):
                break
            self._pieces[kept] = piece[: cut - start]
            start += len(piece)
            kept += 1
        del self._ids[kept:], self._pieces[kept:]
        self.stopped = True
        return True

    def _settled(self) -> int:
        """How many held tokens end before anything that may become a stop string."""
        text = "".join(self._pieces)
        longest = max(map(len, self._stop)) - 1
        candidates = range(min(longest, len(text)), 0, -1)
        held = next((n for n in candidates if any(s.startswith(text[-n:]) for s in self._stop)), 0)
        if held == 0:
            return len(self._ids)
        end, count = 0, 0
        for piece in self._pieces:
            end += len(piece)
            if end > len(text) - held:
                break
            count += 1
        return count

    def _release(self, count: int) -> Released:
        released = Released(tuple(self._ids[:count]), tuple(self._pieces[:count]))
        del self._ids[:count], self._pieces[:count]
        return released

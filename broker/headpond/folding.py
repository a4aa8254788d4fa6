"""From the entries of a job's stream to what a reader gets: chunks, or all valid tokens. Rules: Q9, P2. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from headpond.jobs import Chunk, Result
from headpond.replies import StreamEntry
from headpond.wire import Ended, Rewound, TokenRun, unpack_event, unpack_tokens


@dataclass(slots=True)
class StreamFold:
    """Turns entries, in their order, into the chunks that one reader has not been given.

    given: tokens of the job that the reader has. A chunk never repeats one, but after a rewound that made some
    of them void: then the next chunk begins there and says `restarted`.
    """

    given: int = 0
    ended: Ended | None = None
    rewinds: list[tuple[str, int]] = field(default_factory=list)
    """Entry id and offset of each rewound that made tokens void."""
    to_verify: bool = False
    """A rewound followed an earlier one. A server that went back in time may have forgotten that, and hold again what
    it made void: whoever reads looks whether `rewinds` are still there, and says so to `verified`."""
    _restarted: bool = field(default=False)

    def feed(self, fields: dict[bytes, bytes], entry_id: str = "") -> Chunk | None:
        """Raises MalformedDocument."""
        if b"t" in fields:
            return self._tokens(unpack_tokens(fields[b"t"]))
        if b"e" in fields:
            event = unpack_event(fields[b"e"])
            if isinstance(event, Ended):
                self.ended = event
            elif isinstance(event, Rewound):
                self.to_verify = bool(self.rewinds)
                if event.offset < self.given:
                    self.given, self._restarted = event.offset, True
                    self.rewinds.append((entry_id, event.offset))
        return None

    def verified(self, forgotten: Iterable[int]) -> bool:
        """forgotten: offsets of the rewinds that the stream no longer has. Returns whether to read it from its start:
        then what follows the lowest of them is void, and what was void is given again."""
        self.to_verify = False
        lowest = min(forgotten, default=None)
        if lowest is None:
            return False
        if lowest < self.given:
            self.given, self._restarted = lowest, True
        self.rewinds.clear()
        return True

    def end_with(self, result: Result) -> Chunk | None:
        """Take the rest from the result of an ended job whose stream has been folded into it."""
        self.ended = Ended(result.state, len(result.token_ids))
        return self._tokens(TokenRun(0, result.token_ids, result.pieces))

    def _tokens(self, run: TokenRun) -> Chunk | None:
        if run.end <= self.given:
            return None
        new = run.after(self.given)
        chunk = Chunk(new.offset, "".join(new.pieces), new.ids, self._restarted)
        self.given, self._restarted = new.end, False
        return chunk


def fold_tokens(entries: Iterable[StreamEntry]) -> TokenRun:
    """All valid tokens of a stream, from the first one on."""
    ids: list[int] = []
    pieces: list[str] = []
    for _, fields in entries:
        if b"t" in fields:
            run = unpack_tokens(fields[b"t"])
            if run.end > len(ids):
                new = run.after(len(ids))
                ids += new.ids
                pieces += new.pieces
        elif b"e" in fields:
            event = unpack_event(fields[b"e"])
            if isinstance(event, Rewound):
                del ids[event.offset :], pieces[event.offset :]
    return TokenRun(0, tuple(ids), tuple(pieces))

"""Reading the token stream of a job: what stands in `events:<id>`, folded into chunks. Rules: Q9, P2."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from headpond.connections import BLOCK_S, Patience
from headpond.errors import InvalidRequest, JobGone, RedisUnavailable
from headpond.jobs import Chunk
from headpond.queue import JobQueue
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
    _restarted: bool = field(default=False)

    def feed(self, fields: dict[bytes, bytes]) -> Chunk | None:
        """Raises MalformedDocument."""
        if b"t" in fields:
            return self._tokens(unpack_tokens(fields[b"t"]))
        if b"e" in fields:
            event = unpack_event(fields[b"e"])
            if isinstance(event, Ended):
                self.ended = event
            elif isinstance(event, Rewound) and event.offset < self.given:
                self.given, self._restarted = event.offset, True
        return None

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


def check_after(after: int) -> int:
    if after < 0:
        raise InvalidRequest(f"after={after}: a token offset is 0 or more", field="after")
    return after


def read_stream(queue: JobQueue, job_id: str, *, after: int = 0, known: bool = False) -> Iterator[Chunk]:
    """Chunks from a token offset on, as they come, until the job ends; an outage of the server is borne.

    known: the job was there a moment ago; its absence is noticed at the first time-out all the same.

    Raises JobGone, RedisUnavailable."""
    fold, last, patience = StreamFold(check_after(after)), "0-0", Patience()
    if not known and queue.run_row(job_id) is None:
        raise JobGone(job_id)
    while fold.ended is None:
        try:
            entries = queue.wait_for_events(job_id, after=last, block_s=BLOCK_S)
            if not entries:
                # A waiting reader keeps time moving where no worker is alive (Q8).
                queue.tick()
                if queue.run_row(job_id) is None:
                    raise JobGone(job_id)
        except RedisUnavailable as error:
            time.sleep(patience.delay_s(error))
            continue
        patience.answered()
        for entry_id, fields in entries:
            last = entry_id
            chunk = fold.feed(fields)
            if chunk is not None:
                yield chunk

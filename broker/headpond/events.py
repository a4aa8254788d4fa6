"""Reading the token stream of a job, as it is made or afterwards. Rules: Q9, P2."""

from __future__ import annotations

import time
from collections.abc import Iterator

from headpond.connections import BLOCK_S, Patience
from headpond.errors import InvalidRequest, RedisUnavailable
from headpond.folding import StreamFold
from headpond.jobs import Chunk, Result
from headpond.queue import JobQueue
from headpond.results import build_result

AT_ONCE_S = 0.001


def check_after(after: int) -> int:
    if after < 0:
        raise InvalidRequest(f"after={after}: a token offset is 0 or more", field="after")
    return after


def read_stream(queue: JobQueue, job_id: str, *, after: int = 0, known: bool = False) -> Iterator[Chunk]:
    """Chunks from a token offset on, as they come, until the job ends; an outage of the server is borne.

    known: the job was there a moment ago; its absence is noticed at the first time-out all the same.

    Raises JobGone, RedisUnavailable."""
    fold, last, patience = StreamFold(check_after(after)), "0-0", Patience()
    row = None if known else queue.run_row(job_id)
    if row is None and not known:
        raise queue.absence(job_id)
    # The stream of a job that ended long ago is gone, so waiting for it would be in vain.
    block_s = AT_ONCE_S if row is not None and row.state.ended else BLOCK_S
    while fold.ended is None:
        rest = None
        try:
            if fold.to_verify and fold.verified([at for i, at in fold.rewinds if not queue.has_event(job_id, i)]):
                last = "0-0"
            entries = queue.wait_for_events(job_id, after=last, block_s=block_s)
            if not entries:
                # A waiting reader keeps time moving where no worker is alive (Q8).
                queue.tick()
                result = ended_result(queue, job_id)
                rest = None if result is None else fold.end_with(result)
        except RedisUnavailable as error:
            time.sleep(patience.delay_s(error))
            continue
        patience.answered()
        if rest is not None:
            yield rest
        for entry_id, fields in entries:
            last = entry_id
            chunk = fold.feed(fields, entry_id)
            if chunk is not None:
                yield chunk
            if fold.to_verify:
                break


def ended_result(queue: JobQueue, job_id: str) -> Result | None:
    """The result of a job; None if it has not ended. Raises JobGone, RedisUnavailable."""
    row = queue.run_row(job_id)
    if row is None:
        raise queue.absence(job_id)
    if not row.state.ended:
        return None
    document = queue.result(job_id)
    return build_result(job_id, row, document, [] if document is not None else queue.events(job_id))

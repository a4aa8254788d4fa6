"""From an item of storage to what the queue is told of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headpond.folding import fold_tokens
from headpond.jobs import JobState
from headpond.replies import StreamEntry
from headpond.restoring import StoredJob
from headpond.wire import TokenRun, unpack_result, unpack_run
from headpond_workers.persistence.items import DroppedItem, JobItem

NO_TOKENS = TokenRun(0, (), ())


def stored_job(item: JobItem | DroppedItem) -> StoredJob | None:
    """None for a job whose request storage does not have.

    Of an ended one without its tokens: they are in its result. Raises MalformedDocument for a row that is none.
    """
    if isinstance(item, DroppedItem):
        return StoredJob("dropped", item.id)
    if not item.data:
        return None
    row = unpack_run(item.row) if item.row else None
    if item.state is not None:
        return StoredJob(item.state.value, item.id, item.data, item.row, result=item.result)
    delayed = item.due_ms and (row is None or row.state is JobState.DELAYED)
    tokens = TokenRun(0, item.ids, item.pieces)
    return StoredJob(
        "delayed" if delayed else "queued", item.id, item.data, item.row, item.due_ms, item.deadline_ms, tokens,
        common=len(item.ids),
    )  # fmt: skip


def beside_stream(job: StoredJob, entries: Sequence[StreamEntry]) -> StoredJob:
    """The same job where the server has a stream of it. Readers may have all of that: those tokens which storage has
    others for are void."""
    if not entries:
        return job
    if job.result:
        result = unpack_result(job.result, durable=True)
        job = replace(job, tokens=TokenRun(0, result.token_ids, result.pieces))
    here = fold_tokens(entries).ids
    common = next((n for n, (a, b) in enumerate(zip(here, job.tokens.ids, strict=False)) if a != b), None)
    if common is None:
        common = min(len(here), len(job.tokens.ids))
    return replace(job, common=common, last_event=entries[-1][0])

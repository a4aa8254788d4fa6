"""From an item of storage to what the queue is told of it. Pure.

Storage has rows and documents as Redis had them, so one may be damaged as it was there. It costs its own job, session
or commit what it says, and no other anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from headpond.commits import unpack_commit, unpack_session
from headpond.errors import MalformedDocument
from headpond.folding import fold_tokens
from headpond.jobs import JobState
from headpond.replies import StreamEntry
from headpond.restoring import StoredJob
from headpond.wire import TokenRun, unpack_result, unpack_run
from headpond_workers.persistence.items import CommitItem, DroppedItem, JobItem, SessionItem

T = TypeVar("T")
NO_TOKENS = TokenRun(0, (), ())


def stored_job(item: JobItem | DroppedItem) -> StoredJob | None:
    """None for a job whose request storage does not have. A row that cannot be read counts as none.

    Of an ended one without its tokens: they are in its result.
    """
    if isinstance(item, DroppedItem):
        return StoredJob("dropped", item.id)
    if not item.data:
        return None
    row = _readable(unpack_run, item.row)
    packed = b"" if row is None else item.row
    if item.state is not None:
        return StoredJob(item.state.value, item.id, item.data, packed, result=item.result)
    delayed = item.due_ms and (row is None or row.state is JobState.DELAYED)
    tokens = TokenRun(0, item.ids, item.pieces)
    return StoredJob(
        "delayed" if delayed else "queued", item.id, item.data, packed, item.due_ms, item.deadline_ms, tokens,
        common=len(item.ids),
    )  # fmt: skip


def stored_turn(item: CommitItem) -> StoredJob | None:
    """None for a commit that cannot be read."""
    commit = _readable(partial(unpack_commit, item.id), item.document)
    return None if commit is None else StoredJob("turn", item.id, item.document, commit.parent.encode())


def stored_session(item: SessionItem) -> StoredJob | None:
    """None for a session whose row cannot be read."""
    row = _readable(partial(unpack_session, item.id), item.row)
    return None if row is None else StoredJob("session", item.id, row=item.row)


def beside_stream(job: StoredJob, entries: Sequence[StreamEntry]) -> StoredJob:
    """The same job where the server has a stream of it. Readers may have all of that: those tokens which storage has
    others for are void."""
    if not entries:
        return job
    if (result := _readable(partial(unpack_result, durable=True), job.result)) is not None:
        job = replace(job, tokens=TokenRun(0, result.token_ids, result.pieces))
    here = fold_tokens(entries).ids
    common = next((n for n, (a, b) in enumerate(zip(here, job.tokens.ids, strict=False)) if a != b), None)
    if common is None:
        common = min(len(here), len(job.tokens.ids))
    return replace(job, common=common, last_event=entries[-1][0])


def _readable(unpack: Callable[[bytes], T], packed: bytes) -> T | None:
    try:
        return unpack(packed) if packed else None
    except MalformedDocument:
        return None

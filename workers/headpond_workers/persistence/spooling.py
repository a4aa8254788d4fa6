"""What the persister does while storage is away, and once it is back (S6).

Away: past a number of entries the journal goes to this host's disk. A batch is appended and synced, then one script
takes its entries out of the journal and writes into the queue's meta whose spool has them. From then on nobody commits,
on no host, before that spool is in storage: what came later would raise the watermark above what waits.

Back: the batches are committed in their order, as they would have been, then the journal goes on. Killed anywhere, the
same is done again:

| killed | then |
|---|---|
| before the sync | the frame is torn or not there; the journal still has the entries |
| between sync and script | both have them; those in the spool are committed, and left out of the journal's next batch |
| amid the replay | batches at or below the head's watermark are left out |
| between the last commit and the script that says so | all are left out, and the script is called again |
| between that script and the removal of the file | all are left out |
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headpond import upkeep
from headpond.errors import HistoryMismatch, SpoolDamaged, SpoolError, StaleIncarnation
from headpond.queue import JobQueue
from headpond.spooled import Spooled
from headpond.upkeep import SpoolAnswer
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.journal import Journal, elsewhere
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import EndRecord
from headpond_workers.persistence.segment_cuts import cut
from headpond_workers.persistence.segments import HeadAt, StateStore
from headpond_workers.persistence.spool import Spool, total_bytes
from headpond_workers.persistence.spool_document import SpoolDocument
from headpond_workers.persistence.spool_frames import frame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpoolPolicy:
    """root: of the spools of all models of this host. after_entries: of a journal that stay in Redis. max_bytes: of all
    spools of the host together. host: its name, for people."""

    root: Path
    after_entries: int
    max_bytes: int
    host: str


def spool_outage(journal: Journal, spool: Spool, policy: SpoolPolicy, *, writer: str, since_ms: int) -> None:
    """Storage is away: note that, and move what the journal holds beyond the high-water mark to the spool.

    since_ms: the server's time before it was asked, which may be long ago.
    Raises SpoolElsewhere if another host has begun, SpoolBusy, SpoolDamaged, BlobCorrupt, RedisUnavailable.
    """
    queue = journal.queue
    queue.run(upkeep.storage_away(since_ms))
    if not policy.max_bytes or queue.journal_length() <= policy.after_entries:
        return
    if queue.meta().get("state") in ("restoring", "reconciling"):
        # What of these entries counts is known once storage's part is back.
        return
    try:
        with spool.locked():
            _check_owner(queue, spool)
            lineage = queue.meta().get("lineage", "")
            # Without one nobody has opened the queue yet: what it holds belongs to no history.
            while lineage and queue.journal_length() > policy.after_entries:
                if not _spool_batch(journal, spool, policy, lineage=lineage, writer=writer):
                    return
    except OSError as error:
        # A disk that is full, or gone: the entries stay in Redis, and a second later it is tried again.
        logger.error("spool_failed model=%s folder=%s error=%s", queue.name, spool.folder, error)


def _spool_batch(journal: Journal, spool: Spool, policy: SpoolPolicy, *, lineage: str, writer: str) -> bool:
    """False where there is nothing to move, or no room for it. Raises OSError."""
    queue = journal.queue
    batch = journal.read_batch()
    if batch is None or batch.last is None:
        return False
    frames = _frames(batch, spool, lineage=lineage, writer=writer)
    whole = _fits(frames, policy)
    if not whole:
        # Tokens stay in the streams, and the first commit takes them from there: only the journal has to go.
        frames = _frames(replace(batch, progress=(), fair=None), spool, lineage=lineage, writer=writer)
    if not _fits(frames, policy):
        logger.error("spool_full model=%s max_bytes=%d", queue.name, policy.max_bytes)
        return False
    if frames:
        spool.append(frames, last=max(spool.last, batch.last))
    trouble = queue.storage_trouble()
    known = None if trouble is None else trouble.spooled
    since_ms = batch.as_of_ms if trouble is None or trouble.away_since_ms is None else trouble.away_since_ms
    now = Spooled(
        spool.id, policy.host, str(spool.folder), first=str(batch.first) if known is None else known.first,
        last=str(max(spool.last, batch.last)), since_ms=since_ms if known is None else known.since_ms,
        bytes=spool.size_bytes,
    )  # fmt: skip
    answer = queue.run(upkeep.take_to_spool(now, inc=batch.inc, through=str(batch.last)))
    if answer is not SpoolAnswer.OK:
        logger.warning("spool_not_taken model=%s answer=%s", queue.name, answer)
        return False
    if whole:
        journal.stored()
    logger.info("spooled model=%s records=%d through=%s", queue.name, len(batch.records), batch.last)
    return True


def _frames(batch: Batch, spool: Spool, *, lineage: str, writer: str) -> list[bytes]:
    """One for each piece of the batch that the spool does not have yet."""
    return [
        frame(
            SpoolDocument(
                txn=secrets.token_hex(16),
                created_ms=batch.as_of_ms,
                writer=writer,
                model=spool.model,
                lineage=lineage,
                batch=piece,
            ).pack()
        )
        for piece in cut(batch, watermark=spool.last)
    ]


def _fits(frames: Sequence[bytes], policy: SpoolPolicy) -> bool:
    return total_bytes(policy.root) + sum(map(len, frames)) <= policy.max_bytes


def replay(
    queue: JobQueue, spool: Spool, store: StateStore, *, writer: str, sync: Callable[[], None] | None = None
) -> None:
    """Storage is back: commit what the spool of this host holds, in its order.

    Raises SpoolElsewhere, SpoolDamaged, SpoolBusy, BlobCorrupt, HistoryMismatch, CommitLost, StorageUnavailable,
    RedisUnavailable: all of it is still there, to be replayed again.
    """
    try:
        with spool.locked():
            ours = _check_owner(queue, spool)
            if spool.has_frames:
                at = store.read_head()
                if at is None:
                    raise HistoryMismatch(store.head_key, found="no history", wanted=f"that of {spool.path}")
                _replay(queue, spool, store, at, ours=ours, writer=writer, sync=sync)
            if ours is not None:
                queue.run(upkeep.spool_replayed(spool.id, last=ours.last))
            spool.clear()
            logger.info("spool_replayed model=%s", queue.name)
    except OSError as error:
        raise SpoolError(queue.name, f"{spool.folder} cannot be used: {error.strerror or error}") from error


def _replay(
    queue: JobQueue,
    spool: Spool,
    store: StateStore,
    at: HeadAt,
    *,
    ours: Spooled | None,
    writer: str,
    sync: Callable[[], None] | None,
) -> None:
    # The incarnation is read before anything is committed: a server that goes back in time makes each trim stale.
    inc = int(queue.meta().get("inc", "0"))
    there = _committed(spool, at.head.watermark)
    logger.info("spool_replayed_from model=%s frame=%d bytes=%d", spool.model, there, spool.size_bytes)
    for number, document in enumerate(spool.documents()):
        batch = document.batch
        if document.lineage != at.head.lineage:
            raise HistoryMismatch(
                store.head_key, found=f"lineage {at.head.lineage}", wanted=f"lineage {document.lineage} of {spool.path}"
            )
        if number >= there:
            try:
                at = store.commit(at, batch, writer=writer)
            except StaleIncarnation:
                if ours is not None:
                    raise
                # It was given up, or the model was restored without it: history has gone on.
                aside = spool.set_aside()
                logger.error("spool_superseded model=%s kept_at=%s", spool.model, aside)
                return
        if sync is not None:
            sync()
        if ours is not None and batch.last is not None:
            ended = [record.id for record in batch.records if isinstance(record, EndRecord)]
            if not queue.run(upkeep.trim(inc=inc, through=str(batch.last), ended=ended)):
                raise SpoolError(spool.model, f"the server came back amid the replay of {spool.path}; it is repeated")


def _committed(spool: Spool, watermark: JournalId) -> int:
    """How many frames are in storage: those up to the last one whose entries are."""
    there = 0
    for number, document in enumerate(spool.documents(), start=1):
        if document.batch.last is not None and document.batch.last <= watermark:
            there = number
    return there


def _check_owner(queue: JobQueue, spool: Spool) -> Spooled | None:
    """What the queue's meta says of this spool; None if nothing. Raises SpoolElsewhere, SpoolDamaged."""
    trouble = queue.storage_trouble()
    named = None if trouble is None else trouble.spooled
    if named is None:
        return None
    if named.id != spool.id:
        raise elsewhere(queue.name, named)
    if spool.last < JournalId.parse(named.last):
        raise SpoolDamaged(queue.name, path=str(spool.path), found=str(spool.last), wanted=named.last)
    return named

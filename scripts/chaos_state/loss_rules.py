"""What may be gone once all of Redis was lost and restored, and what may not: each rule says what is wrong. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from headpond.jobs import Chunk, JobState


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A submit that returned. at_ms: when, by the machine's clock, which is Redis's too. stored: it had waited for
    storage."""

    at_ms: int
    stored: bool


@dataclass(frozen=True, slots=True)
class Held:
    """A reader amid a job when Redis was lost. tokens: up to which offset it had them. chunks: how many it had been
    given by then."""

    id: str
    tokens: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Loss:
    """One time that all of Redis was lost.

    head_ms: `as_of_ms` of the head when nobody could commit any more. stated_ms: of what was restored, as the command
    said. emptied_ms: when the empty server came up. stored: tokens that storage had of each job that had not ended.
    durable: results that Redis had said to be durable, as documents. restored_ended: ended jobs that came back, as the
    command counted them.
    """

    head_ms: int
    stated_ms: int
    emptied_ms: int
    restored_ended: int
    stored: Mapping[str, int] = field(repr=False)
    durable: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Found:
    """What Redis has of a job after a restore; state: None if it does not know it. result: document, empty without."""

    state: JobState | None
    result: bytes = field(default=b"", repr=False)


def judge_loss(loss: Loss, acknowledged: Mapping[str, Acknowledged], found: Mapping[str, Found]) -> Iterator[str]:
    """acknowledged: all that was, up to the end of the restore, but for what an earlier loss took. found: the same."""
    if loss.stated_ms < loss.head_ms:
        yield f"the restore says that all up to {loss.stated_ms} is back, and the head had all up to {loss.head_ms}"
    for job_id, one in acknowledged.items():
        if found[job_id].state is None and (why := why_kept(loss, one)):
            yield f"{job_id}: lost with Redis, and {why}"
    for job_id, document in loss.durable.items():
        if job_id in found and found[job_id].result != document:
            yield f"{job_id}: its result had been durable, and is not the same after the restore"


def why_kept(loss: Loss, one: Acknowledged) -> str:
    """Why a job has to be there after a loss; empty if it need not be."""
    if one.at_ms >= loss.emptied_ms:
        return "it was submitted after the loss"
    if one.stored:
        return "its submit had waited for storage"
    if one.at_ms < loss.stated_ms:
        return f"it was acknowledged {loss.stated_ms - one.at_ms} ms before the time that is stated"
    return ""


def judge_reader(loss: Loss, held: Held, chunks: tuple[Chunk, ...]) -> Iterator[str]:
    """chunks: all that the reader was given, before the loss and after. It went on to the job's end."""
    stored = loss.stored.get(held.id)
    if stored is None or held.tokens <= stored:
        return
    if not any(chunk.restarted and chunk.offset <= stored for chunk in chunks[held.chunks :]):
        yield (
            f"{held.id}: a reader had {held.tokens} tokens when Redis was lost, storage {stored}, and it was not "
            "restarted"
        )

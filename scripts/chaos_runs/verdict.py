"""What is wrong with a run: each rule looks at the evidence and says so in words. No I/O.

A rule that finds nothing yields nothing. The promises are P1 (nothing acknowledged is lost, each job has one end)
and P2 (readers see each token once, in order).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evidence import Answer, JobEvidence, QueueEvidence, Reading, WorkerEvidence

from headpond.jobs import JobState
from headpond.terminal import escape_controls
from headpond.wire import Ended, Rewound, TokenRun

ERROR_MARKS = (" ERROR ", " CRITICAL ", "Traceback ")
"""In a worker's log. An outage is a warning there; an error is a defect, also where a retry hides it."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """id: the job that it is about; "" for the whole queue or a process."""

    id: str
    what: str

    def __str__(self) -> str:
        return f"{self.id}: {self.what}" if self.id else self.what


def judge(
    jobs: Sequence[JobEvidence],
    readings: Sequence[Reading],
    queue: QueueEvidence,
    workers: Sequence[WorkerEvidence],
    undisturbed: Mapping[str, Answer] | None,
) -> list[Wrong]:
    """All that is wrong. undisturbed: the answers that each job has where nothing goes wrong; None where the engine
    does not promise the same tokens."""
    found: list[Wrong] = []
    by_id = {job.id: job for job in jobs}
    for job in jobs:
        found += _end_of(job)
        found += _stream_of(job)
        if undisturbed is not None:
            found += _compared(job, undisturbed.get(job.id))
    for reading in readings:
        found += _reading(reading, by_id.get(reading.id))
    found += _counts(jobs, queue)
    found += _left_behind(queue)
    for worker in workers:
        found += _worker(worker)
    return found


def _end_of(job: JobEvidence) -> Iterator[Wrong]:
    """Acknowledged, so known, finished, and ended once."""
    if job.state is None:
        yield Wrong(job.id, "lost: it was acknowledged, and the server does not know it")
        return
    if job.state is JobState.DEAD:
        yield Wrong(job.id, f"an innocent job was quarantined after {job.attempts} leases: {job.reason}")
    elif job.state is not JobState.FINISHED:
        yield Wrong(job.id, f"it is {job.state.value} instead of finished ({job.reason or 'no reason'})")
    ends = [event for event in job.events if isinstance(event, Ended)]
    if job.remade and not job.events:
        # What it came back with is its result.
        pass
    elif len(ends) != 1:
        yield Wrong(job.id, f"{len(ends)} ends in its stream instead of one")
    elif job.events[-1] is not ends[0]:
        yield Wrong(job.id, "its stream goes on after its end")
    elif ends[0].state is not job.state:
        yield Wrong(job.id, f"its stream ends as {ends[0].state.value}, its row as {job.state.value}")
    if job.state is JobState.FINISHED and job.answer is None:
        yield Wrong(job.id, "finished without a result")


def _stream_of(job: JobEvidence) -> Iterator[Wrong]:
    """No token lost, none repeated, and the same as the result."""
    if job.remade and not job.events:
        return
    ids: list[int] = []
    pieces: list[str] = []
    for event in job.events:
        match event:
            case TokenRun():
                if event.offset > len(ids):
                    yield Wrong(job.id, f"tokens {len(ids)} to {event.offset - 1} are not in its stream")
                    return
                if event.offset < len(ids):
                    yield Wrong(job.id, f"its stream repeats tokens from {event.offset} on, after {len(ids)}")
                    return
                ids += event.ids
                pieces += event.pieces
            case Rewound():
                if event.offset > len(ids):
                    yield Wrong(job.id, f"its stream is rewound to {event.offset}, and has {len(ids)} tokens")
                    return
                del ids[event.offset :], pieces[event.offset :]
            case Ended():
                if event.offset != len(ids):
                    yield Wrong(job.id, f"its end says {event.offset} tokens, its stream has {len(ids)}")
    if job.answer is not None:
        if tuple(ids) != job.answer.ids:
            yield Wrong(job.id, f"stream and result differ: {_first_difference(ids, job.answer.ids)}")
        elif "".join(pieces) != job.answer.text:
            yield Wrong(job.id, "the text of its stream is not that of its result")


def _compared(job: JobEvidence, undisturbed: Answer | None) -> Iterator[Wrong]:
    if undisturbed is None:
        yield Wrong(job.id, "the undisturbed run has no answer to compare with")
    elif job.answer is not None and job.answer.ids != undisturbed.ids:
        differs = _first_difference(job.answer.ids, undisturbed.ids)
        yield Wrong(job.id, f"result and undisturbed run differ: {differs}")
    elif job.answer is not None and job.answer.text != undisturbed.text:
        yield Wrong(job.id, "the text of its result is not that of the undisturbed run")


def _reading(reading: Reading, job: JobEvidence | None) -> Iterator[Wrong]:
    """A reader's chunks are contiguous, from where it began to the end; restarted only where a rewound says so.

    A reader that begins amid a stream is restarted by a rewound below its offset, also an old one: nobody knows when
    it was given what it has. One that was given tokens in this reading is restarted only if the stream lost some.
    """
    if job is None:
        yield Wrong(reading.id, "it was read, and is none of the acknowledged jobs")
        return
    who = f"a reader from {reading.after} on"
    rewinds = {event.offset for event in job.events if isinstance(event, Rewound)}
    lossy = _lossy_rewinds(job)
    given: list[int] = []
    text: list[tuple[int, str]] = []
    # Where the reader's first token stands: a rewound may move it below what the reader said it has.
    start = end = reading.after
    for chunk in reading.chunks:
        if chunk.restarted:
            if chunk.offset >= end or (chunk.offset not in rewinds and not job.remade):
                yield Wrong(reading.id, f"{who} was restarted at {chunk.offset}, and no rewound says so")
                return
            if chunk.offset >= reading.after and chunk.offset not in lossy and not job.remade:
                yield Wrong(reading.id, f"{who} was given tokens from {chunk.offset} on that the server then lost")
                return
            start = min(start, chunk.offset)
            del given[chunk.offset - start :]
            text = [(at, piece) for at, piece in text if at < chunk.offset]
        elif chunk.offset != end:
            lost = "lost" if chunk.offset > end else "was given again"
            yield Wrong(reading.id, f"{who} {lost} tokens: {chunk.offset} came where {end} was due")
            return
        given += chunk.token_ids
        text.append((chunk.offset, chunk.text))
        end = chunk.offset + len(chunk.token_ids)
    if not reading.whole:
        yield Wrong(reading.id, f"{who} was given {len(given)} tokens and never the job's end")
    elif job.answer is not None:
        if tuple(given) != job.answer.ids[start:]:
            yield Wrong(reading.id, f"{who} was given other tokens: {_first_difference(given, job.answer.ids[start:])}")
        elif not job.answer.text.endswith("".join(piece for _, piece in text)):
            yield Wrong(reading.id, f"{who} was given another text than that of the result")


def _lossy_rewinds(job: JobEvidence) -> set[int]:
    """Offsets of the rewinds that made tokens of the stream void. The others came after a restart of the server."""
    end, lossy = 0, set()
    for event in job.events:
        match event:
            case TokenRun():
                end = event.end
            case Rewound():
                if event.offset < end:
                    lossy.add(event.offset)
                end = event.offset
            case Ended():
                pass
    return lossy


def _counts(jobs: Sequence[JobEvidence], queue: QueueEvidence) -> Iterator[Wrong]:
    """Each id was ended once: by the queue's own counters."""
    for state in JobState:
        if state.ended:
            ended = sum(job.state is state for job in jobs)
            counted = queue.counts.get(state.value, 0)
            if ended != counted:
                yield Wrong("", f"{ended} jobs are {state.value}, and the queue counted {counted}")


def _left_behind(queue: QueueEvidence) -> Iterator[Wrong]:
    for what, ids in (("waits", queue.waiting), ("is leased", queue.leased), ("is held by a worker", queue.held)):
        for job_id in ids:
            yield Wrong(job_id, f"it still {what} after all is over")


def _worker(worker: WorkerEvidence) -> Iterator[Wrong]:
    """It is there until it is killed or told to leave, and logs no error."""
    for how in worker.left:
        yield Wrong("", f"worker {worker.number} {how}")
    for line in worker.log.split("\n"):
        if any(mark in line for mark in ERROR_MARKS):
            yield Wrong("", f"worker {worker.number} logged: {escape_controls(line.strip())}")


def _first_difference(found: Sequence[int], wanted: Sequence[int]) -> str:
    for at, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one != other:
            return f"token {at} is {one}, not {other}"
    return f"{len(found)} tokens instead of {len(wanted)}"

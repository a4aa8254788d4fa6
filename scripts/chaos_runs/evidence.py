"""What a run leaves to be judged: orders, ends, streams, readings, and what the queue still holds. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headpond.jobs import Chunk, JobState
from headpond.wire import Ended, Rewound, TokenRun

Event = TokenRun | Rewound | Ended


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of a job and the text that they make. ids: shape (n,)."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class JobEvidence:
    """One acknowledged job. state: None if the server does not know it. answer: of its result; None without one.
    events: its whole stream, in order. remade: it was put into a server that had lost all; of its earlier life it has
    the tokens and no rewinds, and no stream if it had ended."""

    id: str
    state: JobState | None
    attempts: int
    strikes: int
    reason: str
    answer: Answer | None
    events: tuple[Event, ...]
    remade: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader was given of one job. after: tokens that it said it has. whole: it came to the job's end."""

    id: str
    after: int
    chunks: tuple[Chunk, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class QueueEvidence:
    """What the queue holds once all is over. counts: ended jobs by state, of its meta. waiting, leased: ids.
    held: leases that rows of workers still name."""

    counts: Mapping[str, int]
    waiting: tuple[str, ...]
    leased: tuple[str, ...]
    held: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerEvidence:
    """One place for a worker, and what its processes left. left: how those ended that were not killed, in words.
    log: all that they logged."""

    number: int
    left: tuple[str, ...]
    log: str

"""What a producer asks for and what it gets: requests, sampling, chunks, results. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product

from ulid import ULID

from headpond.errors import InvalidRequest
from headpond.provenance import Provenance
from headpond.turns import Turn

MODEL_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")
JOB_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
RESERVED_NAMES = frozenset({"persistence", "models"})
ADAPTER_NAME = r"^[a-z][a-z0-9._-]{0,62}$"
TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@:-]{0,62}$"
TENANT_NAME = re.compile(TENANT_PATTERN)
VERSION_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class JobState(StrEnum):
    """Where a job stands. The last five are ends: an ended state never changes."""

    DELAYED = "delayed"
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"

    @property
    def ended(self) -> bool:
        return self not in (JobState.DELAYED, JobState.QUEUED, JobState.RUNNING)


class Priority(StrEnum):
    """The band in which a job waits: all of a band come before the next one, but for a share of `batch`."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"
    """May be parked for interactive jobs, and goes on later where it stopped."""


class FinishReason(StrEnum):
    """Why the tokens of a job end."""

    STOP = "stop"
    """The model ended its answer, or a stop string was met (it is not part of the text)."""
    LENGTH = "length"
    """`max_tokens` or the context was used up."""
    ERROR = "error"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""The digits of a ULID."""


@dataclass(frozen=True, slots=True)
class JobId:
    """`<model>/<slug>`: names the job, its queue, and is its idempotency key."""

    model: str
    slug: str

    def __str__(self) -> str:
        return f"{self.model}/{self.slug}"

    @classmethod
    def new(cls, model: str) -> JobId:
        return cls(check_model_name(model), str(ULID()))

    @classmethod
    def many(cls, model: str) -> Iterator[JobId]:
        """New ids without end, rising in their order. Each is a ULID; neighbours share time and randomness but for a
        counter in the last four characters, so that a thousand take no longer than the first."""
        check_model_name(model)
        while True:
            stem = str(ULID())[:-4]
            for counter in product(_CROCKFORD, repeat=4):
                yield cls(model, stem + "".join(counter))

    @classmethod
    def parse(cls, text: str) -> JobId:
        """Raises InvalidRequest if text is not `<model>/<slug>`."""
        model, slash, slug = text.partition("/")
        if not slash or not MODEL_NAME.fullmatch(model) or not JOB_SLUG.fullmatch(slug):
            raise InvalidRequest(
                f"'{text[:200]}' is not a job id. An id is <model>/<slug>, such as chat/order-17: the model's "
                "name, a slash, then 1 to 127 letters, digits, '.', '_' or '-'.",
                field="id",
            )
        return cls(model, slug)


def check_model_name(name: str) -> str:
    """Return name if it can name a model. Raises InvalidRequest."""
    if not MODEL_NAME.fullmatch(name):
        raise InvalidRequest(
            f"'{name[:100]}' cannot name a model. A name starts with a small letter and has up to 63 small "
            "letters, digits, '.', '_' and '-'.",
            field="model",
        )
    if name in RESERVED_NAMES:
        raise InvalidRequest(f"'{name}' is a reserved name; choose another for the model.", field="model")
    return name


UNNAMED_TOKEN = -1
"""Stands for the id of a token in what a proxy passes on: its server gives text, and names no ids. It counts like any
other in offsets; one may stand for a text of several tokens."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One or more tokens of a job, in order.

    offset: how many tokens of the job come before this chunk.
    text: the text that these tokens complete, and nothing else.
    token_ids: shape (n,). Each is UNNAMED_TOKEN (-1) where a proxy's server does not name them.
    restarted: text that was given from `offset` on is void and replaced by what follows.
    """

    offset: int
    text: str
    token_ids: tuple[int, ...]
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one job. completion_tokens counts the tokens of the answer, without the end token.

    Of a proxy, both are what its server says; where it says nothing, pieces of text are counted.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of the job's last attempt.

    queued_s: from submit to the lease. first_token_s: from the lease to the attempt's first token; None
    without one. generate_s: from the lease to the end. tokens_per_s: over the attempt's tokens after the
    first; None with fewer than two.
    """

    queued_s: float = 0.0
    first_token_s: float | None = None
    generate_s: float = 0.0
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended, with its text and tokens.

    version: which model version answered. attempts: how often the job was leased. durable: this result
    is committed to storage. error: why it failed; None for an answer. pieces: the text that each token completes,
    shape (n,), of n tokens; together they are `text`. embeddings: of a job that embeds, one vector a text, shape
    (texts, dimensions), in single precision; None of any other job. provenance: what made it; None if no worker ended
    the job, or one of an older release. turn: its place in a session; None of a job without one.
    """

    id: str
    state: JobState
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    model: str = ""
    version: str = ""
    attempts: int = 0
    durable: bool = False
    error: str | None = None
    pieces: tuple[str, ...] = field(default=(), repr=False)
    embeddings: tuple[tuple[float, ...], ...] | None = field(default=None, repr=False)
    provenance: Provenance | None = field(default=None, repr=False, hash=False)
    turn: Turn | None = field(default=None, repr=False)

    @property
    def commit(self) -> str | None:
        """Id of the commit of its session that holds this answer; None without one."""
        return None if self.turn is None else self.turn.commit

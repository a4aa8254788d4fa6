"""What a producer asks for and what it gets: requests, sampling, chunks, results. No I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ulid import ULID

from headpond.codec import pack
from headpond.errors import InvalidRequest

MODEL_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")
JOB_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
RESERVED_NAMES = frozenset({"persistence", "models"})
ADAPTER_NAME = r"^[a-z][a-z0-9._-]{0,62}$"
TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@:-]{0,62}$"
TENANT_NAME = re.compile(TENANT_PATTERN)
VERSION_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
MAX_BODY_BYTES = 1 << 20
"""Upper bound of one request's text, in UTF-8 bytes."""
MAX_TOKENS_LIMIT = 1 << 20
JSON_ALLOWANCE_BYTES = 1 << 16
"""More than a request has as JSON beside its texts, with as many stop texts and tokens as it may have."""


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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Message(_Frozen):
    """One turn of a conversation, rendered by the model's own chat template."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Sampling(_Frozen):
    """How the next token is chosen. Names and ranges are those of OpenAI's API."""

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    """None: derived from the job's id, so that every attempt of a job draws alike."""


class JobRequest(_Frozen):
    """What one job asks of a model. Exactly one of `prompt` and `messages` is given.

    A prompt is shown to the model as one user message when the model has a chat template.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_LIMIT)] = 256
    sampling: Sampling = Sampling()
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=16)] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...], Field(max_length=64)] = ()
    """Tokens that end the answer, beside the model's own; they are not part of it."""
    adapter: Annotated[str, Field(pattern=ADAPTER_NAME)] | None = None
    """A LoRA adapter of the model's table, by its name there."""

    @field_validator("messages", "stop", "stop_token_ids", mode="before")
    @classmethod
    def _lists_are_welcome(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_input(self) -> JobRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt or messages, exactly one of them")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.messages is not None and not any(m.content.strip() for m in self.messages):
            raise ValueError("the messages are empty")
        try:
            size = self.text_bytes() + sum(len(text.encode()) for text in self.stop)
        except UnicodeEncodeError:
            raise ValueError("the text is not valid Unicode (it holds a lone surrogate)") from None
        # As JSON a character has at most six bytes for each of its own in UTF-8. What may pass the bound is measured.
        if size * 6 + len(self.messages or ()) * 40 + JSON_ALLOWANCE_BYTES > MAX_BODY_BYTES:
            size = len(json.dumps(self.model_dump(mode="json"), ensure_ascii=False).encode())
        if size > MAX_BODY_BYTES:
            raise ValueError(f"the request has {size} bytes; the limit is {MAX_BODY_BYTES}")
        return self

    def text_bytes(self) -> int:
        """Of the prompt or of all messages, in UTF-8."""
        if self.prompt is not None:
            return len(self.prompt.encode())
        return sum(len(message.content.encode()) for message in self.messages or ())

    def asked(self) -> dict[str, Any]:
        """The fields that are asked for, as JSON has them. One that is left out has its default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def digest(self) -> str:
        """32 hex digits that two requests share exactly if they ask for the same.

        A field that is not asked for does not count, so that a release with more fields knows the older requests.
        """
        return digest_of(self.asked())

    def chat(self) -> tuple[Message, ...]:
        """The conversation to render, a prompt being one user message."""
        if self.messages is not None:
            return self.messages
        return (Message(role="user", content=self.prompt or ""),)

    def cost_tokens(self) -> int:
        """What this request may take of a model, estimated without its tokenizer: four bytes of text a token."""
        return -(-self.text_bytes() // 4) + self.max_tokens

    def seed_for(self, job_id: str) -> int:
        """The seed of every attempt of this job: the one given, else one that follows from the id."""
        if self.sampling.seed is not None:
            return self.sampling.seed
        return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big")


def digest_of(asked: Mapping[str, Any], *, pinned: str = "") -> str:
    """Of what a request asks for, and of the version that it is pinned to: 32 hex digits.

    asked: `JobRequest.asked()`, whose fields have one order, so that the same request packs to the same bytes.
    """
    return hashlib.sha256(pack([asked, pinned] if pinned else asked)).hexdigest()[:32]


def parse_request(fields: object) -> JobRequest:
    """Validate untrusted fields into a JobRequest. Raises InvalidRequest naming the first bad field."""
    try:
        return JobRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "request"
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"{name}: {message}", field=name) from None


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


@dataclass(frozen=True, slots=True)
class Chunk:
    """One or more tokens of a job, in order.

    offset: how many tokens of the job come before this chunk.
    text: the text that these tokens complete, and nothing else.
    token_ids: shape (n,).
    restarted: text that was given from `offset` on is void and replaced by what follows.
    """

    offset: int
    text: str
    token_ids: tuple[int, ...]
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one job. completion_tokens counts the tokens of the answer, without the end token."""

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
    shape (n,), of n tokens; together they are `text`.
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

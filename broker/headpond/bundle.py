"""The document `headpond/bundle`: all that is needed to see what became of one job, and to run it again elsewhere.

It is JSON, for a person may want to read it, and it is bounded and checked before it is believed: a bundle comes from
another machine, and holds what a producer sent.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headpond.errors import BundleError, InvalidRequest, MalformedDocument, UnsupportedSchema
from headpond.jobs import UNNAMED_TOKEN, JobId, JobState, Priority
from headpond.requests import MAX_INPUTS, MAX_TOKENS_LIMIT, JobRequest
from headpond.wire import MAX_EMBEDDING_BYTES, pack_vectors, unpack_vectors

BUNDLE_SCHEMA = "headpond/bundle"
BUNDLE_VERSION = 1
MAX_BUNDLE_BYTES = 64 << 20
MAX_BUNDLE_ATTEMPTS = 64
MAX_WORD_CHARS = 300
"""Of a name: a host, a boot, a version, a fingerprint."""
MAX_REASON_CHARS = 4000

_Word = Annotated[str, Field(max_length=MAX_WORD_CHARS)]
_Reason = Annotated[str, Field(max_length=MAX_REASON_CHARS)]
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_TokenId = Annotated[int, Field(ge=UNNAMED_TOKEN, lt=1 << 32)]


class _Part(BaseModel):
    # A field that a later release added is passed over; what changes a meaning takes a new version.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class BundleAttempt(_Part):
    """One lease of the job. worker: boot of its process. version, fingerprint: of its model. how: as in
    `headpond.wire.Attempt`; of the last lease also the job's own state. from_offset, to_offset: tokens of the job when
    it began and ended. ended_ms: 0 if it goes on."""

    attempt: _Count
    worker: _Word
    host: _Word
    version: _Word
    fingerprint: _Word
    claimed_ms: _Count
    ended_ms: _Count
    how: _Word
    from_offset: _Count
    to_offset: _Count
    reason: _Reason

    @field_validator("worker", "host", "version", "fingerprint", "how", mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return value[:MAX_WORD_CHARS] if isinstance(value, str) else value

    @field_validator("reason", mode="before")
    @classmethod
    def _cut(cls, value: object) -> object:
        return value[:MAX_REASON_CHARS] if isinstance(value, str) else value


class BundleVectors(_Part):
    """What a job that embeds gave. float32: in base64, the vectors one after the other, little-endian."""

    dimensions: Annotated[int, Field(ge=1, le=MAX_EMBEDDING_BYTES // 4)]
    float32: Annotated[str, Field(min_length=1, max_length=-(-MAX_EMBEDDING_BYTES // 3) * 4)]

    @model_validator(mode="after")
    def _are_vectors(self) -> BundleVectors:
        try:
            vectors = self.vectors()
        except (binascii.Error, ValueError, MalformedDocument) as error:
            raise ValueError(f"the vectors cannot be read: {error}") from None
        if len(vectors) > MAX_INPUTS:
            raise ValueError(f"{len(vectors)} vectors; one job has at most {MAX_INPUTS}")
        return self

    @classmethod
    def of(cls, vectors: Sequence[Sequence[float]]) -> BundleVectors:
        dimensions, data = pack_vectors(vectors)
        return cls(dimensions=dimensions, float32=base64.b64encode(data).decode("ascii"))

    def vectors(self) -> tuple[tuple[float, ...], ...]:
        """Shape (texts, dimensions)."""
        return unpack_vectors([self.dimensions, base64.b64decode(self.float32, validate=True)])


class Bundle(_Part):
    """One job. Times are ms of the server's clock; 0 is not yet.

    headpond: release that wrote it. seed: the effective one. token_ids: shape (n,), those made so far; text: theirs.
    fingerprint, version: of the model that made them; '' if none did. leases: how often it was leased; attempts: what
    is still known of these. embeddings: of a job that embeds, once it has ended.
    """

    headpond: _Word
    exported_ms: _Count
    id: _Word
    state: JobState
    tenant: _Word
    priority: Priority
    pinned: _Word
    request: JobRequest
    seed: Annotated[int, Field(ge=0, lt=1 << 32)]
    token_ids: Annotated[tuple[_TokenId, ...], Field(max_length=MAX_TOKENS_LIMIT)]
    text: Annotated[str, Field(max_length=MAX_BUNDLE_BYTES)]
    fingerprint: _Word
    version: _Word
    submitted_ms: _Count
    ended_ms: _Count
    leases: _Count
    strikes: _Count
    faults: _Count
    attempts: Annotated[tuple[BundleAttempt, ...], Field(max_length=MAX_BUNDLE_ATTEMPTS)]
    last_error: _Reason
    embeddings: BundleVectors | None = None

    @field_validator("id")
    @classmethod
    def _is_an_id(cls, value: str) -> str:
        try:
            return str(JobId.parse(value))
        except InvalidRequest as error:
            raise ValueError(str(error)) from None

    @field_validator("last_error", mode="before")
    @classmethod
    def _cut(cls, value: object) -> object:
        return value[:MAX_REASON_CHARS] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _seed_is_the_jobs(self) -> Bundle:
        if self.seed != self.request.seed_for(self.id):
            raise ValueError("the seed is not the one that follows from the request and the id")
        return self

    @property
    def model(self) -> str:
        return JobId.parse(self.id).model

    def document(self) -> dict[str, Any]:
        """With `schema` and `v`, as it is written."""
        return {"schema": BUNDLE_SCHEMA, "v": BUNDLE_VERSION, **self.model_dump(mode="json")}


class _Head(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    kind: _Word = Field(alias="schema")
    v: Annotated[int, Field(ge=1, lt=1 << 31)]


def release() -> str:
    """The release of this headpond."""
    return version("headpond")


def new_bundle(*, attempts: Sequence[Mapping[str, Any]], **fields: Any) -> Bundle:
    """Check the fields of a bundle that is about to be written. Raises MalformedDocument naming the first bad one."""
    try:
        return Bundle(attempts=tuple(BundleAttempt(**attempt) for attempt in attempts), **fields)
    except ValidationError as error:
        raise _malformed(error) from None


def pack_bundle(bundle: Bundle) -> bytes:
    """A field a line, in ASCII: control characters of a prompt are escapes, whoever prints it."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in bundle.document().items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def parse_bundle(data: bytes) -> Bundle:
    """Raises MalformedDocument, UnsupportedSchema."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise MalformedDocument(BUNDLE_SCHEMA, f"more than {MAX_BUNDLE_BYTES} bytes; no more are read")
    try:
        head = _Head.model_validate_json(data)
        if head.kind != BUNDLE_SCHEMA:
            raise MalformedDocument(BUNDLE_SCHEMA, f"its schema is {head.kind[:100]!r}")
        if head.v > BUNDLE_VERSION:
            raise UnsupportedSchema(BUNDLE_SCHEMA, found=head.v, supported=BUNDLE_VERSION)
        return Bundle.model_validate_json(data)
    except ValidationError as error:
        raise _malformed(error) from None


def _malformed(error: ValidationError) -> MalformedDocument:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    message = first["msg"].removeprefix("Value error, ")[:300]
    return MalformedDocument(BUNDLE_SCHEMA, f"{where}: {message}" if where else message)


def read_bundle(path: Path) -> Bundle:
    """Read a file, no further than MAX_BUNDLE_BYTES. Raises BundleError."""
    try:
        # A pipe without a writer would be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError("no regular file. A bundle from a pipe is read with: -", where=str(path))
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    return checked_bundle(data, where=str(path))


def checked_bundle(data: bytes, *, where: str) -> Bundle:
    """As `parse_bundle`, of a named source. Raises BundleError."""
    try:
        return parse_bundle(data)
    except MalformedDocument as error:
        raise BundleError(str(error), where=where) from error


def write_bundle(bundle: Bundle, path: Path, *, force: bool) -> None:
    """Write a file that its owner alone may read. force: one that is there is replaced, whole or not at all.

    Raises BundleError.
    """
    try:
        if force:
            handle, written = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of the mode 0600
        else:
            handle, written = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), str(path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(pack_bundle(bundle))
                file.flush()
                os.fsync(file.fileno())
            if force:
                os.replace(written, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(written)
            raise
    except FileExistsError as error:
        raise BundleError("it exists, and is not overwritten without --force", where=str(path)) from error
    except OSError as error:
        raise BundleError(f"cannot be written: {error.strerror or error}", where=str(path)) from error

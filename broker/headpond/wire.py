"""What stands in Redis and in storage: its classes, and how each is packed and unpacked. No I/O.

docs/format.md describes all of it. Values, documents and rows are `headpond.codec`'s, the rows that scripts write are
`headpond.rows`'; both are imported from here.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from headpond.codec import (
    MAX_DOCUMENT_BYTES,
    ROW_VERSION,
    pack,
    pack_document,
    pack_for_script,
    split_first,
    unpack,
    unpack_document,
    unpack_raw,
    unpack_row,
    unpack_versioned,
)
from headpond.errors import MalformedDocument
from headpond.jobs import FinishReason, JobState, Result, Timings, Usage
from headpond.provenance import Provenance
from headpond.rows import RUN_HEAD, Attempt, RunRow, unpack_attempts, unpack_run

__all__ = [
    "EMBEDDED_NUMBER_BYTES",
    "MAX_DOCUMENT_BYTES",
    "MAX_EMBEDDING_BYTES",
    "RESULT_SCHEMA",
    "ROW_VERSION",
    "RUN_HEAD",
    "Attempt",
    "Call",
    "Ended",
    "Header",
    "Rewound",
    "RunRow",
    "TokenRun",
    "pack",
    "pack_checked",
    "pack_data",
    "pack_document",
    "pack_for_script",
    "pack_result",
    "pack_tokens",
    "pack_vectors",
    "unpack",
    "unpack_attempts",
    "unpack_data",
    "unpack_document",
    "unpack_entry",
    "unpack_event",
    "unpack_header",
    "unpack_raw",
    "unpack_result",
    "unpack_run",
    "unpack_tokens",
    "unpack_vectors",
    "unpack_versioned",
]


@dataclass(frozen=True, slots=True)
class Call:
    """What a worker is asked to run: an actor and its arguments. The body of a `data` entry."""

    actor: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    timestamp_ms: int


def pack_data(
    call: Call, *, digest: str, tenant: str = "", band: str = "normal", pinned: str = "", cost: int = 1
) -> bytes:
    """A `data` entry: a header that scripts read, then the body that they do not.

    pinned: the one version that may run it. cost: in tokens, as its tenant pays it.
    """
    return pack([ROW_VERSION, digest, tenant, band, pinned, cost]) + _pack_call(call)


def _pack_call(call: Call) -> bytes:
    return pack([ROW_VERSION, call.actor, call.args, call.kwargs, call.options, call.timestamp_ms])


_PLAIN_HEADER = pack([ROW_VERSION, "", "", "normal", "", 1])


def pack_checked(call: Call) -> bytes:
    """The `data` entry of another actor's message.

    Raises MalformedDocument for what a worker could not read: a dict with keys that are no strings, for one.
    """
    body = _pack_call(call)
    unpack(body, kind="call")
    return _PLAIN_HEADER + body


def unpack_data(data: bytes) -> Call:
    """The call in a `data` entry. Raises MalformedDocument."""
    return unpack_entry(data)[1]


@dataclass(frozen=True, slots=True)
class Header:
    """What scripts read of a `data` entry."""

    digest: str
    tenant: str
    band: str
    pinned: str
    cost: int


def unpack_header(first: bytes) -> Header:
    """The first value of a `data` entry. Raises MalformedDocument."""
    _, digest, tenant, band, pinned, cost = unpack_row(first, kind="data header", length=6)[:6]
    if not all(isinstance(text, str) for text in (digest, tenant, band, pinned)) or type(cost) is not int:
        raise MalformedDocument("data header", "a field has the wrong type")
    return Header(digest, tenant, band, pinned, cost)


def unpack_entry(data: bytes) -> tuple[Header, Call]:
    """Both parts of a `data` entry. Raises MalformedDocument."""
    first, rest = split_first(data, kind="data entry")
    header = unpack_header(first)
    row = unpack_row(rest, kind="call", length=6)
    _, actor, args, kwargs, options, timestamp_ms = row[:6]
    if not (
        isinstance(actor, str) and isinstance(args, list) and isinstance(kwargs, dict) and isinstance(options, dict)
        and isinstance(timestamp_ms, int)
    ):  # fmt: skip
        raise MalformedDocument("call", "a field has the wrong type")
    return header, Call(actor, tuple(args), kwargs, options, timestamp_ms)


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Tokens as they stand in one stream entry.

    offset: tokens of the job before these. ids: shape (n,), n >= 1. pieces: shape (n,); the text that each
    token completes, so that a reader can begin amid an entry.
    """

    offset: int
    ids: tuple[int, ...]
    pieces: tuple[str, ...]

    @property
    def end(self) -> int:
        return self.offset + len(self.ids)

    def after(self, offset: int) -> TokenRun:
        """The part from `offset` on; self if all of it is."""
        skip = offset - self.offset
        if skip <= 0:
            return self
        return TokenRun(offset, self.ids[skip:], self.pieces[skip:])


def pack_tokens(run: TokenRun) -> bytes:
    return pack([ROW_VERSION, run.offset, run.ids, run.pieces])


def unpack_tokens(data: bytes) -> TokenRun:
    row = unpack_row(data, kind="token entry", length=4)
    _, offset, ids, pieces = row[:4]
    if not isinstance(offset, int) or offset < 0 or not isinstance(ids, list) or not isinstance(pieces, list):
        raise MalformedDocument("token entry", "a field has the wrong type")
    if len(ids) != len(pieces):
        raise MalformedDocument("token entry", f"{len(ids)} ids with {len(pieces)} pieces")
    if not all(isinstance(i, int) for i in ids) or not all(isinstance(p, str) for p in pieces):
        raise MalformedDocument("token entry", "an id or a piece has the wrong type")
    return TokenRun(offset, tuple(ids), tuple(pieces))


@dataclass(frozen=True, slots=True)
class Rewound:
    """Tokens from `offset` on are void and will be made again."""

    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The last entry of a stream."""

    state: JobState
    offset: int


def unpack_event(data: bytes) -> Rewound | Ended:
    row = unpack_row(data, kind="stream event", length=4)
    _, name, offset, text = row[:4]
    if not isinstance(offset, int) or offset < 0 or not isinstance(text, str):
        raise MalformedDocument("stream event", "a field has the wrong type")
    if name == "rewound":
        return Rewound(offset, text)
    if name == "ended":
        try:
            return Ended(JobState(text), offset)
        except ValueError as error:
            raise MalformedDocument("stream event", str(error)) from error
    raise MalformedDocument("stream event", f"unknown event {str(name)[:40]!r}")


RESULT_SCHEMA = "headpond/result"
MAX_EMBEDDING_BYTES = 16 << 20
"""Of all vectors of one job, at 4 bytes a number: 1024 of 4096 dimensions."""
EMBEDDED_NUMBER_BYTES = 4


def pack_vectors(vectors: Sequence[Sequence[float]]) -> tuple[int, bytes]:
    """(dimensions, the vectors one after the other as little-endian float32).

    Not an array of floats: that takes more than twice the bytes, and no script reads it.
    """
    numbers = array("f", chain.from_iterable(vectors))
    if numbers.itemsize * len(numbers) > MAX_EMBEDDING_BYTES:
        raise MalformedDocument(RESULT_SCHEMA, f"vectors of more than {MAX_EMBEDDING_BYTES} bytes")
    if sys.byteorder == "big":
        numbers.byteswap()
    return len(vectors[0]) if vectors else 0, numbers.tobytes()


def unpack_vectors(packed: object) -> tuple[tuple[float, ...], ...]:
    """Shape (texts, dimensions). Raises MalformedDocument."""
    if not isinstance(packed, list) or len(packed) != 2:
        raise MalformedDocument(RESULT_SCHEMA, "embeddings are not dimensions and bytes")
    dimensions, data = packed
    if type(dimensions) is not int or not isinstance(data, bytes) or len(data) > MAX_EMBEDDING_BYTES:
        raise MalformedDocument(RESULT_SCHEMA, "embeddings have the wrong type or size")
    if dimensions < 1 or not data or len(data) % (dimensions * EMBEDDED_NUMBER_BYTES):
        raise MalformedDocument(RESULT_SCHEMA, f"{len(data)} bytes are no vectors of {dimensions} dimensions")
    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return tuple(tuple(numbers[at : at + dimensions]) for at in range(0, len(numbers), dimensions))


def pack_result(result: Result) -> bytes:
    """A worker's result. `durable` is not in it: only the commit knows."""
    t = result.timings
    # An older reader passes over a field that it does not know, so that these took no new version.
    vectors = {} if result.embeddings is None else {"embeddings": pack_vectors(result.embeddings)}
    made_by = {} if result.provenance is None else {"provenance": result.provenance.fields()}
    return pack_document(
        RESULT_SCHEMA,
        1,
        {
            "id": result.id,
            "state": result.state.value,
            "pieces": result.pieces,
            "token_ids": result.token_ids,
            "finish_reason": result.finish_reason.value,
            "usage": [result.usage.prompt_tokens, result.usage.completion_tokens],
            "timings": [t.queued_s, t.first_token_s, t.generate_s, t.tokens_per_s],
            "model": result.model,
            "version": result.version,
            "attempts": result.attempts,
            "error": result.error,
            **vectors,
            **made_by,
        },
    )


def unpack_result(data: bytes, *, durable: bool) -> Result:
    fields = unpack_document(data, schema=RESULT_SCHEMA, v=1)
    try:
        return Result(
            id=fields["id"],
            state=JobState(fields["state"]),
            text="".join(fields["pieces"]),
            token_ids=tuple(fields["token_ids"]),
            finish_reason=FinishReason(fields["finish_reason"]),
            usage=Usage(*fields["usage"]),
            timings=Timings(*fields["timings"]),
            model=fields["model"],
            version=fields["version"],
            attempts=fields["attempts"],
            durable=durable,
            error=fields["error"],
            pieces=tuple(fields["pieces"]),
            embeddings=None if fields.get("embeddings") is None else unpack_vectors(fields["embeddings"]),
            provenance=None if fields.get("provenance") is None else Provenance.of_fields(fields["provenance"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedDocument(RESULT_SCHEMA, repr(error)) from error

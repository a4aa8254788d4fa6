"""The only codec: what stands in Redis and in storage, as msgpack.

Documents are maps with `schema` and `v`. Rows that scripts read or that are written for each token are
arrays whose first element is their version. docs/format.md describes them all. A reader refuses a newer
major version, and bounds a document before it unpacks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from headpond.errors import MalformedDocument, UnsupportedSchema
from headpond.jobs import FinishReason, JobState, Result, Timings, Usage

MAX_DOCUMENT_BYTES = 64 << 20
ROW_VERSION = 1


def pack(value: object) -> bytes:
    return cast("bytes", msgpack.packb(value, use_bin_type=True))


def pack_for_script(value: object) -> bytes:
    """As `pack`, with bytes as msgpack's old raw type: cmsgpack, which scripts have, knows no other."""
    return cast("bytes", msgpack.packb(value, use_bin_type=False))


def unpack_raw(data: bytes, *, kind: str) -> Any:
    """What a script packed: all its text is bytes, for cmsgpack knows no difference. Raises MalformedDocument."""
    try:
        return msgpack.unpackb(data, raw=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MalformedDocument(kind, f"{type(error).__name__}: {str(error)[:200]}") from error


def unpack(data: bytes, *, kind: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Any:
    """Unpack one value. Raises MalformedDocument; allocates no more than len(data) allows."""
    if len(data) > max_bytes:
        raise MalformedDocument(kind, f"{len(data)} bytes; at most {max_bytes} are read")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise MalformedDocument(kind, f"{type(error).__name__}: {str(error)[:200]}") from error


def pack_document(schema: str, v: int, fields: Mapping[str, object]) -> bytes:
    return pack({"schema": schema, "v": v, **fields})


def unpack_document(data: bytes, *, schema: str, v: int, max_bytes: int = MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """The fields of a document, without `schema` and `v`. Raises MalformedDocument, UnsupportedSchema."""
    document = unpack(data, kind=schema, max_bytes=max_bytes)
    if not isinstance(document, dict) or document.get("schema") != schema:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise MalformedDocument(schema, f"found {str(found)[:100]!r}")
    version = document.get("v")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise MalformedDocument(schema, f"v={version!r}")
    if version > v:
        raise UnsupportedSchema(schema, found=version, supported=v)
    return {key: value for key, value in document.items() if key not in ("schema", "v")}


def _list(data: bytes, *, kind: str, length: int) -> list[Any]:
    found = unpack(data, kind=kind)
    if not isinstance(found, list):
        raise MalformedDocument(kind, f"{type(found).__name__} instead of an array")
    if len(found) < length:
        raise MalformedDocument(kind, f"{len(found)} elements instead of {length}")
    return found


def _row(data: bytes, *, kind: str, length: int) -> list[Any]:
    row = _list(data, kind=kind, length=1)
    if not isinstance(row[0], int):
        raise MalformedDocument(kind, "not an array with a version")
    if row[0] > ROW_VERSION:
        raise UnsupportedSchema(kind, found=row[0], supported=ROW_VERSION)
    if len(row) < length:
        raise MalformedDocument(kind, f"{len(row)} elements instead of {length}")
    return row


def _first(data: bytes, *, kind: str) -> tuple[bytes, bytes]:
    """The first value of several that stand one after the other, still packed, and the rest."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=True, max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    try:
        unpacker.skip()
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise MalformedDocument(kind, str(error)) from error
    return data[: unpacker.tell()], data[unpacker.tell() :]


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


def unpack_entry(data: bytes) -> tuple[Header, Call]:
    """Both parts of a `data` entry. Raises MalformedDocument."""
    first, rest = _first(data, kind="data entry")
    header = _row(first, kind="data header", length=6)
    row = _row(rest, kind="call", length=6)
    _, actor, args, kwargs, options, timestamp_ms = row[:6]
    if not (
        isinstance(actor, str) and isinstance(args, list) and isinstance(kwargs, dict) and isinstance(options, dict)
        and isinstance(timestamp_ms, int)
    ):  # fmt: skip
        raise MalformedDocument("call", "a field has the wrong type")
    _, digest, tenant, band, pinned, cost = header[:6]
    if not all(isinstance(text, str) for text in (digest, tenant, band, pinned)) or not isinstance(cost, int):
        raise MalformedDocument("data header", "a field has the wrong type")
    return Header(digest, tenant, band, pinned, cost), Call(actor, tuple(args), kwargs, options, timestamp_ms)


@dataclass(frozen=True, slots=True)
class RunRow:
    """Where one job stands: the entry of `run`, written by scripts alone. Field order is that of the row."""

    state: JobState
    fence: str
    gen: int
    offset: int
    entries: int
    claimed_offset: int
    band: str
    attempt: int
    strikes: int
    worker: str
    tag: float
    lane: str
    submitted_ms: int
    claimed_ms: int
    ended_ms: int
    durable: bool
    reason: str
    parked: str
    fingerprint: str
    host: str
    faults: int
    struck: str
    pinned: str
    served_by: str


RUN_HEAD = 8
"""Elements of a run row's first array, its version included. The others are in a second array behind it."""


def unpack_run(data: bytes) -> RunRow:
    head, rest = _first(data, kind="run row")
    row = [*_row(head, kind="run row", length=RUN_HEAD)[:RUN_HEAD], *_list(rest, kind="run row", length=17)[:17]]
    try:
        fields: list[Any] = [JobState(row[1]), *row[2:16], bool(row[16]), *row[17:25]]
        return RunRow(*fields)
    except ValueError as error:
        raise MalformedDocument("run row", str(error)) from error


@dataclass(frozen=True, slots=True)
class Attempt:
    """One lease of a job that ended without an end of the job.

    boot: of the worker's process. host: where that was. version, fingerprint: of its model. how: 'expired' or
    'failed' (faults), 'parked', 'preempted', 'unnamed' or 'left'. from_offset, to_offset: tokens of the job when it
    began and ended.
    """

    attempt: int
    boot: str
    host: str
    version: str
    fingerprint: str
    claimed_ms: int
    ended_ms: int
    how: str
    from_offset: int
    to_offset: int
    reason: str


def unpack_attempts(data: bytes) -> tuple[Attempt, ...]:
    """The log of a job's attempts, oldest first. Raises MalformedDocument."""
    row = _row(data, kind="attempts", length=1)
    try:
        return tuple(Attempt(*record[:11]) for record in row[1:])
    except TypeError as error:
        raise MalformedDocument("attempts", str(error)) from error


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
    row = _row(data, kind="token entry", length=4)
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
    row = _row(data, kind="stream event", length=4)
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


def pack_result(result: Result) -> bytes:
    """A worker's result. `durable` is not in it: only the commit knows."""
    t = result.timings
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
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedDocument(RESULT_SCHEMA, repr(error)) from error

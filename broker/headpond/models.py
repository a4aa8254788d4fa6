"""What stands in `headpond:models`: the models that are configured on a server, worker alive or not, and who holds
their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headpond.errors import MalformedDocument
from headpond.wire import pack_document, unpack_document

MODEL_SCHEMA = "headpond/model"
_HOLDER_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Holder:
    """A deployment that serves a name, or means to. deployment: its id. folder: of its configuration, on `host`.
    since_ms: server time at which it took the name."""

    deployment: str
    host: str
    folder: str
    since_ms: int = 0

    def __str__(self) -> str:
        return f"{self.deployment} ({self.host}, {self.folder})"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """engine: its name in the configuration. max_queued: jobs that may wait; 0 is no bound. storage: whether
    its queue is journaled. context_tokens: 0 if not known before loading. spec: what the name means, see
    `headpond.spec`; empty if nobody said. holders: who may not be surprised by another spec."""

    engine: str
    max_queued: int
    storage: bool
    context_tokens: int
    spec: str = ""
    holders: tuple[Holder, ...] = ()


def pack_model(row: ModelRow) -> bytes:
    """As scripts read and write it: holders are one flat array."""
    holders: list[str | int] = []
    for holder in row.holders:
        holders += (holder.deployment, holder.host, holder.folder, holder.since_ms)
    return pack_document(
        MODEL_SCHEMA,
        1,
        {
            "engine": row.engine,
            "max_queued": row.max_queued,
            "storage": row.storage,
            "context_tokens": row.context_tokens,
            "spec": row.spec,
            "holders": holders,
        },
    )


def unpack_model(data: bytes) -> ModelRow:
    """Raises MalformedDocument, UnsupportedSchema."""
    fields = unpack_document(data, schema=MODEL_SCHEMA, v=1)
    try:
        return ModelRow(
            str(fields["engine"]),
            int(fields["max_queued"]),
            bool(fields["storage"]),
            int(fields["context_tokens"]),
            _text(fields.get("spec", "")),
            _holders(fields.get("holders", [])),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MalformedDocument(MODEL_SCHEMA, repr(error)) from error


def _holders(flat: Any) -> tuple[Holder, ...]:
    if not isinstance(flat, list) or len(flat) % _HOLDER_FIELDS:
        raise ValueError("holders is no array of fours")
    return tuple(
        Holder(_text(flat[i]), _text(flat[i + 1]), _text(flat[i + 2]), int(flat[i + 3]))
        for i in range(0, len(flat), _HOLDER_FIELDS)
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} should be a text")
    return value

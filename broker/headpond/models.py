"""What stands in `headpond:models`: the models that are configured on a server, worker alive or not."""

from __future__ import annotations

from dataclasses import dataclass

from headpond.errors import MalformedDocument
from headpond.wire import pack_document, unpack_document

MODEL_SCHEMA = "headpond/model"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """engine: its name in the configuration. max_queued: jobs that may wait; 0 is no bound. storage: whether
    its queue is journaled. context_tokens: 0 if not known before loading."""

    engine: str
    max_queued: int
    storage: bool
    context_tokens: int


def pack_model(row: ModelRow) -> bytes:
    return pack_document(
        MODEL_SCHEMA,
        1,
        {
            "engine": row.engine,
            "max_queued": row.max_queued,
            "storage": row.storage,
            "context_tokens": row.context_tokens,
        },
    )


def unpack_model(data: bytes) -> ModelRow:
    fields = unpack_document(data, schema=MODEL_SCHEMA, v=1)
    try:
        return ModelRow(
            str(fields["engine"]), int(fields["max_queued"]), bool(fields["storage"]), int(fields["context_tokens"])
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MalformedDocument(MODEL_SCHEMA, repr(error)) from error

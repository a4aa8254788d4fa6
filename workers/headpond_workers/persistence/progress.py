"""Tokens of a job that has not ended, as a segment adds them to what the chain has. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from headpond_workers.persistence.records import MAX_RECORD_BYTES, SEGMENT_SCHEMA
from headpond_workers.storage.sealed import MAX_TEXT, Fields, check_counts, check_tokens, require


@dataclass(frozen=True, slots=True)
class Progress:
    """The tokens of job `id` are those that the chain has up to `offset`, and then these.

    ids, pieces: shape (n,), n >= 0; as in a token entry of Redis. row: the job's run row; read in one step with them.
    """

    id: str
    row: bytes = field(repr=False)
    offset: int
    ids: tuple[int, ...] = field(repr=False)
    pieces: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        require(0 < len(self.id) <= MAX_TEXT, SEGMENT_SCHEMA, f"an id of {len(self.id)} characters")
        require(len(self.row) <= MAX_RECORD_BYTES, SEGMENT_SCHEMA, f"'{self.id}' has a row of {len(self.row)} bytes")
        check_counts(SEGMENT_SCHEMA, offset=self.offset)
        check_tokens(SEGMENT_SCHEMA, self.ids, self.pieces)

    def size(self) -> int:
        """About how many bytes it takes in a segment."""
        return 60 + len(self.id) + len(self.row) + tokens_bytes(self.ids, self.pieces)

    def pack(self) -> dict[str, object]:
        return {"id": self.id, "row": self.row, "offset": self.offset, "ids": self.ids, "pieces": self.pieces}

    @classmethod
    def unpack(cls, fields: Fields) -> Progress:
        """Raises MalformedDocument."""
        return cls(
            fields.take("id", str),
            fields.take("row", bytes),
            fields.take("offset", int),
            tuple(fields.take_list("ids", int)),
            tuple(fields.take_list("pieces", str)),
        )


def tokens_bytes(ids: tuple[int, ...], pieces: tuple[str, ...]) -> int:
    """About how many bytes tokens take in a document."""
    return 7 * len(ids) + sum(map(len, pieces))

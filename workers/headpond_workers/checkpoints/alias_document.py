"""The document `headpond/alias`: which version a name means, and what it meant before. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from headpond.errors import MalformedDocument
from headpond_workers.checkpoints.names import ALIAS_NAME
from headpond_workers.checkpoints.version_document import MAX_NOTE_CHARS, MAX_NUMBER
from headpond_workers.storage.sealed import Fields, check_common, check_counts, check_texts, is_txn, require, seal

SCHEMA = "headpond/alias"
VERSION = 1
MAX_ALIAS_BYTES = 512 << 10
MAX_HISTORY = 64
MAX_WHO_CHARS = 256
WHOLE_PERMILLE = 1000


class Cause(StrEnum):
    """What moved an alias."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    AUTOMATIC = "automatic"
    """A version did not load, or a canary passed its bounds or failed them."""
    CANARY = "canary"
    """A trial began or ended; `to` stayed."""


@dataclass(frozen=True, slots=True)
class Move:
    """One change of an alias. left, to: version numbers, 0 for none. at_ms: for people. txn: random, of this change: by
    it the one who made it finds it again; empty if it is not known."""

    seq: int
    left: int
    to: int
    who: str
    at_ms: int
    cause: Cause
    note: str = ""
    txn: str = ""


@dataclass(frozen=True, slots=True)
class TrialBounds:
    """When a canary decides by itself: once both sides have least_jobs ended jobs. It is rolled back if its share of
    failed jobs is above that of the other by more than error_points (percentage points), or if its median time to first
    token or time per token is more than slower_percent above; the intervals must say so, not the medians alone.
    It is promoted once neither is so for jobs_to_promote jobs."""

    least_jobs: int = 50
    jobs_to_promote: int = 200
    error_points: float = 1.0
    slower_percent: float = 20.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A canary: this share of unpinned jobs goes to another version. bounds: None lets people decide."""

    version: int
    share_permille: int
    since_ms: int
    bounds: TrialBounds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasDocument:
    """to, previous: version numbers, 0 for none. seq: raised by each change; 0: it was
    never moved. history: the newest last."""

    txn: str
    created_ms: int
    writer: str
    model: str
    alias: str
    to: int
    previous: int
    seq: int
    trial: Trial | None = None
    history: tuple[Move, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_common(SCHEMA, self.txn, self.created_ms, self.writer)
        check_texts(SCHEMA, model=self.model)
        require(ALIAS_NAME.fullmatch(self.alias) is not None, SCHEMA, f"alias {self.alias[:80]!r}")
        require(max(self.to, self.previous) <= MAX_NUMBER, SCHEMA, f"to={self.to} previous={self.previous}")
        check_counts(SCHEMA, to=self.to, previous=self.previous, seq=self.seq)
        require(len(self.history) <= MAX_HISTORY, SCHEMA, f"{len(self.history)} moves")
        if self.trial is not None:
            fits = 1 <= self.trial.share_permille < WHOLE_PERMILLE and 1 <= self.trial.version <= MAX_NUMBER
            require(fits and self.trial.version != self.to, SCHEMA, f"trial {self.trial}")
        for move in self.history:
            require(len(move.note) <= MAX_NOTE_CHARS, SCHEMA, "a note is too long")
            require(len(move.who) <= MAX_WHO_CHARS, SCHEMA, "the name of a mover is too long")
            require(not move.txn or is_txn(move.txn), SCHEMA, f"txn {move.txn[:40]!r} of a move")
            check_counts(SCHEMA, seq=move.seq, left=move.left, to=move.to, at_ms=move.at_ms)

    def pack(self) -> bytes:
        return seal(
            SCHEMA,
            VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "model": self.model,
                "alias": self.alias,
                "to": self.to,
                "previous": self.previous,
                "seq": self.seq,
                "trial": None if self.trial is None else _pack_trial(self.trial),
                "history": [
                    {
                        "seq": m.seq, "from": m.left, "to": m.to, "who": m.who, "at_ms": m.at_ms,
                        "cause": m.cause.value, "note": m.note, "txn": m.txn,
                    }
                    for m in self.history
                ],
            },
            max_bytes=MAX_ALIAS_BYTES,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=SCHEMA, v=VERSION, max_bytes=MAX_ALIAS_BYTES)
        trial = fields.take_optional("trial", dict)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            model=fields.take("model", str),
            alias=fields.take("alias", str),
            to=fields.take("to", int),
            previous=fields.take("previous", int),
            seq=fields.take("seq", int),
            trial=None if trial is None else _unpack_trial(Fields(SCHEMA, trial)),
            history=tuple(_unpack_move(move) for move in fields.take_maps("history")),
        )


def _pack_trial(trial: Trial) -> dict[str, object]:
    bounds = trial.bounds
    return {
        "version": trial.version,
        "share_permille": trial.share_permille,
        "since_ms": trial.since_ms,
        "bounds": None
        if bounds is None
        else {
            "least_jobs": bounds.least_jobs,
            "jobs_to_promote": bounds.jobs_to_promote,
            "error_points": float(bounds.error_points),
            "slower_percent": float(bounds.slower_percent),
        },
    }


def _unpack_trial(fields: Fields) -> Trial:
    bounds = fields.take_optional("bounds", dict)
    inner = None if bounds is None else Fields(SCHEMA, bounds)
    return Trial(
        fields.take("version", int),
        fields.take("share_permille", int),
        fields.take("since_ms", int),
        None
        if inner is None
        else TrialBounds(
            inner.take("least_jobs", int),
            inner.take("jobs_to_promote", int),
            inner.take("error_points", float),
            inner.take("slower_percent", float),
        ),
    )


def _unpack_move(fields: Fields) -> Move:
    try:
        cause = Cause(fields.take("cause", str))
    except ValueError as error:
        raise MalformedDocument(SCHEMA, f"unknown cause of a move: {str(error)[:80]}") from error
    return Move(
        fields.take("seq", int),
        fields.take("from", int),
        fields.take("to", int),
        fields.take("who", str),
        fields.take("at_ms", int),
        cause,
        fields.take("note", str),
        fields.take_optional("txn", str) or "",
    )

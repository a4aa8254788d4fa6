"""The documents of the collector: `headpond/gc`, its one mutable object, and `headpond/condemned`. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from headpond_workers.storage.sealed import Fields, check_common, check_counts, require, seal

GC_SCHEMA = "headpond/gc"
CONDEMNED_SCHEMA = "headpond/condemned"
VERSION = 1
MAX_GC_BYTES = 256 << 10
MAX_CONDEMNED_BYTES = 64 << 20
MAX_ROUNDS = 256


@dataclass(frozen=True, slots=True)
class Round:
    """What one collection condemned. list: key of the document with the keys. epoch: the highest that it condemned of.
    not_before_ms: when it may be carried out, by the clock of a collector."""

    number: int
    list: str
    epoch: int
    condemned_ms: int
    not_before_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GcState:
    """epoch: under which new objects are put; above that of every round. holder, until_ms: the lease, empty and 0
    without one. next_round: the number of the round to come."""

    txn: str
    created_ms: int
    writer: str
    epoch: int
    next_round: int
    holder: str = ""
    until_ms: int = 0
    rounds: tuple[Round, ...] = ()

    def __post_init__(self) -> None:
        check_common(GC_SCHEMA, self.txn, self.created_ms, self.writer)
        check_counts(GC_SCHEMA, epoch=self.epoch, next_round=self.next_round, until_ms=self.until_ms)
        require(self.epoch >= 1 and len(self.rounds) <= MAX_ROUNDS, GC_SCHEMA, f"epoch={self.epoch}")
        numbers = [r.number for r in self.rounds]
        rising = numbers == sorted(set(numbers)) and all(0 < n < self.next_round for n in numbers)
        require(rising, GC_SCHEMA, f"rounds {numbers} before {self.next_round}")
        require(all(r.epoch < self.epoch for r in self.rounds), GC_SCHEMA, "a round is not below the epoch")

    def pack(self) -> bytes:
        return seal(
            GC_SCHEMA,
            VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "epoch": self.epoch,
                "next_round": self.next_round,
                "holder": self.holder,
                "until_ms": self.until_ms,
                "rounds": [
                    {
                        "round": r.number, "list": r.list, "epoch": r.epoch, "condemned_ms": r.condemned_ms,
                        "not_before_ms": r.not_before_ms,
                    }
                    for r in self.rounds
                ],
            },
            max_bytes=MAX_GC_BYTES,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=GC_SCHEMA, v=VERSION, max_bytes=MAX_GC_BYTES)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            epoch=fields.take("epoch", int),
            next_round=fields.take("next_round", int),
            holder=fields.take("holder", str),
            until_ms=fields.take("until_ms", int),
            rounds=tuple(
                Round(
                    r.take("round", int), r.take("list", str), r.take("epoch", int), r.take("condemned_ms", int),
                    r.take("not_before_ms", int),
                )
                for r in fields.take_maps("rounds")
            ),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Condemned:
    """Keys that nothing led to when the round was made."""

    txn: str
    created_ms: int
    writer: str
    round: int
    keys: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_common(CONDEMNED_SCHEMA, self.txn, self.created_ms, self.writer)
        check_counts(CONDEMNED_SCHEMA, round=self.round)

    def pack(self) -> bytes:
        return seal(
            CONDEMNED_SCHEMA,
            VERSION,
            {
                "txn": self.txn,
                "created_ms": self.created_ms,
                "writer": self.writer,
                "round": self.round,
                "keys": list(self.keys),
            },
            max_bytes=MAX_CONDEMNED_BYTES,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises MalformedDocument, UnsupportedSchema."""
        fields = Fields.unseal(data, schema=CONDEMNED_SCHEMA, v=VERSION, max_bytes=MAX_CONDEMNED_BYTES)
        return cls(
            txn=fields.take("txn", str),
            created_ms=fields.take("created_ms", int),
            writer=fields.take("writer", str),
            round=fields.take("round", int),
            keys=tuple(fields.take_list("keys", str)),
        )

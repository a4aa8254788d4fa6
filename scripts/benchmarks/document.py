"""The file of one benchmark: its raw samples, what they were taken from, and on what. JSON.

Nothing that can be worked out from the samples is stored: `report` does that, so a table can never differ from them.

    schema, v          "headpond/benchmark", 1
    benchmark          "queue", "generate", "engine", "peers", "storage" or "state"
    quick, seed, only  how it was run; only: names of the measurements that were asked for, none for all
    started, seconds   UTC, and how long it took in all
    machine            see machine.Machine
    not_run            peers that were left out, each with the reason; absent where there are none to leave out
    measurements       each: kind, name, workload, headpond, peer (what the sides are), pairs
    pairs              each: first (the side that ran first), headpond, peer: the samples by name and unit; empty
                       for a peer where there is none
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from machine import describe_machine
from pairs import Order, Pair

from headpond.errors import MalformedDocument

SCHEMA = "headpond/benchmark"
VERSION = 1
Samples = dict[str, Any]
"""What one side of one pair measured, by name and unit, such as {"pickup_ms": [1.9, 2.1]}."""


class Kind(StrEnum):
    """What a measurement compares; decides how it is reported."""

    PICKUP = "pickup"
    SLOT_GAP = "slot_gap"
    ENQUEUE = "enqueue"
    ENQUEUE_MANY = "enqueue_many"
    NO_OP = "no_op"
    APPEND = "append"
    READER = "reader"
    RECOVERY = "recovery"
    IDLE = "idle"
    MEMORY = "memory"
    CLAIM = "claim"
    THROUGHPUT = "throughput"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a word of an answer, not a secret
    STEP_GAP = "step_gap"
    PEERS_1 = "jobs_1"
    PEERS_4 = "jobs_4"
    PEERS_8 = "jobs_8"
    PEERS_CRASH = "crash"
    PUSH = "push"
    PULL = "pull"
    CHANGED = "changed"
    PUSH_AGAIN = "push_again"
    ALIAS = "alias"
    ROLLOVER = "rollover"
    PERSISTING_SCRIPTED = "persisting_scripted"
    PERSISTING_LLAMACPP = "persisting_llamacpp"
    OUTAGE_SCRIPTED = "outage_scripted"
    OUTAGE_LLAMACPP = "outage_llamacpp"
    LOSS_WINDOW = "loss_window"
    PUTS = "puts"
    RESTORE = "restore"
    STORED_PREFIX = "stored_prefix"


@dataclass(frozen=True, slots=True)
class Measurement:
    """headpond, peer: what the two sides are, in words. workload: what both do, in words, with all its numbers."""

    kind: Kind
    name: str
    workload: str
    headpond: str
    peer: str
    pairs: list[Pair[Samples]]


@dataclass(frozen=True, slots=True)
class Document:
    benchmark: str
    quick: bool
    seed: int
    started: str
    seconds: float
    machine: dict[str, Any]
    measurements: list[Measurement]
    only: list[str] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    """Peers that were left out, with the reason."""


def measure(
    benchmark: str, *, quick: bool, seed: int, run: Callable[[], Sequence[Measurement]], only: Sequence[str] = ()
) -> Document:
    """Describe the machine, run the benchmark, and put both together."""
    machine = asdict(describe_machine())
    started, began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    measurements = list(run())
    seconds = round(time.monotonic() - began, 1)
    return Document(benchmark, quick, seed, started, seconds, machine, measurements, list(only))


def to_json(document: Document) -> str:
    fields = {"schema": SCHEMA, "v": VERSION, **asdict(document)}
    text = json.dumps(fields, indent=1, ensure_ascii=False)
    # One line for each list of numbers: a diff then shows runs, not samples.
    return re.sub(r"\[[\d\s.,eE+-]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text) + "\n"


def from_json(text: str, *, where: str) -> Document:
    """Raises MalformedDocument."""
    try:
        fields = json.loads(text)
        if fields.pop("schema") != SCHEMA or fields.pop("v") != VERSION:
            raise MalformedDocument(SCHEMA, f"{where} has another schema or version")
        measurements = [_measurement(raw) for raw in fields.pop("measurements")]
        return Document(measurements=measurements, **fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedDocument(SCHEMA, f"{where}: {error!r}") from error


def _measurement(raw: dict[str, Any]) -> Measurement:
    pairs = [Pair(Order(pair["first"]), pair["headpond"], pair["peer"]) for pair in raw.pop("pairs")]
    return Measurement(kind=Kind(raw.pop("kind")), pairs=pairs, **raw)


def load_document(path: Path) -> Document | None:
    """None if it was never written. Raises MalformedDocument."""
    try:
        return from_json(path.read_text(encoding="utf-8"), where=path.name)
    except FileNotFoundError:
        return None

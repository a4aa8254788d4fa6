"""Which version each worker of a model serves while an alias moves, and how jobs ended while a trial was on. No I/O.

The alias in storage decides. The queue keeps a copy of it (`switch`), which only rises by the alias's `seq`; workers
ask the queue, so that they move one at a time, and also where storage is away. Rules: docs/states.md, "Switching
versions". `headpond.queue.JobQueue` sends these operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headpond.codec import unpack_row
from headpond.errors import MalformedDocument
from headpond.jobs import JobState
from headpond.operations import Operation

MAX_PERMILLE = 999
MAX_REASON_CHARS = 380
_OUTCOME_ELEMENTS = 8


class Serve(StrEnum):
    """What a worker claims."""

    ALL = "all"
    """Jobs for any version, and those of its own."""
    OWN_LANE = "own lane"
    """Those of its own version alone: a trial's share, or what an old version has left."""


@dataclass(frozen=True, slots=True)
class Switch:
    """The queue's copy of an alias, and how far its workers are.

    seq: of the alias. target, previous, trial: names of versions, '' for none. permille: the trial's share. since_ms:
    server time of the last change of target. turn: the worker (`who`) that may change its version now, turn_to which
    one it goes for, turn_until_ms until when. refused: version -> why it did not load. tries: who -> the version that
    it began to load and has not served, and the boots that began.
    """

    seq: int
    target: str
    previous: str = ""
    trial: str = ""
    permille: int = 0
    since_ms: int = 0
    turn: str = ""
    turn_to: str = ""
    turn_until_ms: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    tries: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def effective(self) -> str:
        """The version that workers go for: the target, or the previous one where the target alone was refused."""
        refused = self.refused
        return (
            self.previous if self.target in refused and self.previous and self.previous not in refused else self.target
        )


@dataclass(frozen=True, slots=True)
class SwitchReply:
    """seq: of the copy after the call; above the one that was sent if that was stale. left: jobs that may still stand
    in lanes of trials that are over. While it is not 0, the same call moves more of them; a sweep does so too."""

    seq: int
    left: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """version: to serve; '' if the queue knows no switch yet: read the alias, and call `switch`. serve: what to claim
    meanwhile. move: leave what is served for `version`, now. seq: of the alias; 0 without a switch."""

    version: str
    serve: Serve
    move: bool
    seq: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one job ended under a version. state: FINISHED, FAILED or DEAD. first_token_ms: from its last lease to the
    first token of that; None without one, or if the worker did not say. tokens: of the job. made: of these, under the
    last lease. generate_ms: from that lease to the end."""

    id: str
    version: str
    state: JobState
    first_token_ms: int | None
    tokens: int
    made: int
    generate_ms: int


def switch(*, seq: int, target: str, previous: str = "", trial: str = "", permille: int = 0) -> Operation[SwitchReply]:
    """Bring the queue's copy of an alias to this state, if seq is not below what it has.

    trial: a version that gets `permille` (1 to 999) of the jobs that no version is named for; '' for none. Raises
    ValueError for a share that is none.
    """
    if trial and not 0 < permille <= MAX_PERMILLE:
        raise ValueError(f"a trial's share is 1 to {MAX_PERMILLE} permille, not {permille}")
    args = (seq, target, previous, trial, permille if trial else 0)
    return Operation("switch", args, lambda r: SwitchReply(int(r[0]), int(r[1])))


def assign(*, boot: str, who: str, version: str, busy: int = 0, loading: str = "") -> Operation[Assignment]:
    """What a worker of an alias is to serve; asked before it loads, and about twice a second while it serves.

    who: `<deployment>/<host>/<instance>`, which outlives the process. version: what it serves; '' before it has loaded.
    busy: leases that it holds. loading: the version that it loads by now, if it asks meanwhile; '' asks which one to
    load, and counts as a try of this boot.
    """
    return Operation("assign", (boot, who, version, busy, loading), _parse_assignment)


def _parse_assignment(reply: list[Any]) -> Assignment:
    version, serve, move, seq = reply
    return Assignment(_text(version), Serve(_text(serve)), int(move) == 1, int(seq))


def refuse(*, who: str, version: str, reason: str) -> Operation[None]:
    """A version did not load. Nobody goes for it any more until the alias is moved to it anew."""
    return Operation("refuse", (who, version, reason[:MAX_REASON_CHARS]), lambda _: None)


def parse_switch(fields: Mapping[bytes, bytes]) -> Switch | None:
    """From the hash `switch`; None if nobody has said one. Raises MalformedDocument."""
    if b"seq" not in fields:
        return None
    plain: dict[str, str] = {}
    refused: dict[str, str] = {}
    tries: dict[str, tuple[str, tuple[str, ...]]] = {}
    try:
        for name, value in ((name.decode(), value.decode()) for name, value in fields.items()):
            kind, colon, rest = name.partition(":")
            if not colon:
                plain[name] = value
            elif kind == "refused":
                refused[rest] = value
            elif kind == "tries":
                version, _, boots = value.split(":", 2)
                tries[rest] = version, tuple(boots.split(","))
        numbers = {key: int(plain.get(key) or 0) for key in ("seq", "permille", "since", "turn_until")}
    except ValueError as error:
        raise MalformedDocument("switch", str(error)[:200]) from error
    return Switch(
        seq=numbers["seq"],
        target=plain.get("target", ""),
        previous=plain.get("previous", ""),
        trial=plain.get("trial", ""),
        permille=numbers["permille"],
        since_ms=numbers["since"],
        turn=plain.get("turn", ""),
        turn_to=plain.get("turn_to", ""),
        turn_until_ms=numbers["turn_until"],
        refused=refused,
        tries=tries,
    )


def parse_outcomes(fields: Mapping[bytes, bytes]) -> list[Outcome]:
    """From the hash `outcomes`, in no order. Raises MalformedDocument."""
    found = []
    for name, value in fields.items():
        if b":" not in name:
            continue  # how many there were of a version
        _, job_id, version, state, *numbers = unpack_row(value, kind="outcome", length=_OUTCOME_ELEMENTS)
        if not all(type(text) is str for text in (job_id, version, state)):
            raise MalformedDocument("outcome", "id, version and state are no texts")
        if not all(type(number) is int for number in numbers[:4]):
            raise MalformedDocument("outcome", "its figures are no integers")
        first_token_ms, tokens, made, generate_ms = numbers[:4]
        try:
            ended = JobState(state)
        except ValueError as error:
            raise MalformedDocument("outcome", str(error)) from error
        first = None if first_token_ms < 0 else first_token_ms
        found.append(Outcome(job_id, version, ended, first, tokens, made, generate_ms))
    return found


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

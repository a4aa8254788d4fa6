"""What worker processes know. A server that goes back in time takes nothing of it away."""

from __future__ import annotations

from dataclasses import dataclass, field

from headpond.operations import LeaseStatus


@dataclass(slots=True)
class Writing:
    """One lease as its worker has it. tokens: all that it knows of the job, its own included. sent: how many of them
    the server said that it holds. mark: makes the tokens of one lease differ from those of all others."""

    id: str
    fence: str
    seq: int
    mark: int
    tokens: list[int]
    sent: int
    over: LeaseStatus | None = None

    @property
    def pair(self) -> tuple[str, str]:
        return self.id, self.fence

    def decode_until(self, end: int) -> None:
        """The engine goes on until there are `end` tokens."""
        while len(self.tokens) < end:
            self.tokens.append(self.mark * 100_000 + len(self.tokens))


@dataclass(slots=True)
class Process:
    """One life of one worker process. seq: of the last claim whose reply it has. unanswered: whether a claim under the
    next seq was made, and its reply lost. loads: whether it says that it loads its model. own_lane: whether it
    claims what waits for its version alone."""

    boot: str
    seat: int
    version: str
    fingerprint: str
    slots: int
    seq: int = 0
    unanswered: bool = False
    held: list[Writing] = field(default_factory=list)
    loads: bool = False
    own_lane: bool = False

    @property
    def lanes(self) -> list[str]:
        own = [self.version, f"suspect@{self.version}"] if self.version else []
        return own if self.own_lane else ["any", "suspect", *own]

    @property
    def newest(self) -> list[Writing]:
        """Of each job that it holds, the last lease. A client never settles two of one job in one call: it has the
        answer to the first before it claims on."""
        return list({writing.id: writing for writing in self.held}.values())

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self.held))

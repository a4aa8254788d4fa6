"""What came back from storage, counted. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from headpond.restoring import PutIn, StoredJob

NAMED_IDS = 100
"""Ids that are told by name; of more, how many there are."""


@dataclass(slots=True)
class Tally:
    """ended: how many by state. resumed: of the queued ones, those that have tokens; tokens: of these. merged: jobs
    that were submitted meanwhile, and are now as storage has them. conflicts: ids of jobs of other requests that were
    here under an id of storage, and are gone. kept: that are here as they should be. dropped: that were removed here
    too. unusable: ids of jobs whose request storage does not have, and of sessions and commits that cannot be read.
    sessions, turns: of conversations."""

    queued: int = 0
    delayed: int = 0
    resumed: int = 0
    tokens: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    merged: int = 0
    kept: int = 0
    dropped: int = 0
    conflicts: int = 0
    unusable: int = 0
    sessions: int = 0
    turns: int = 0
    conflict_ids: list[str] = field(default_factory=list)
    unusable_ids: list[str] = field(default_factory=list)

    @property
    def jobs(self) -> int:
        return self.queued + self.delayed + sum(self.ended.values())

    def note(self, job: StoredJob, answer: PutIn) -> None:
        """One job was put in, or would be."""
        if job.of_session:
            self.turns += job.what == "turn"
            self.sessions += job.what == "session" and bool(job.row)
        elif answer is PutIn.DROPPED:
            self.dropped += 1
        elif answer is PutIn.KEPT:
            self.kept += 1
        else:
            self._count(job)
            self.merged += answer is PutIn.MERGED
            if answer is PutIn.CONFLICT:
                self.conflicts += 1
                _name(self.conflict_ids, job.id)

    def note_unusable(self, name: str) -> None:
        self.unusable += 1
        _name(self.unusable_ids, name)

    def _count(self, job: StoredJob) -> None:
        if job.what == "queued":
            self.queued += 1
            self.resumed += bool(job.tokens.ids)
            self.tokens += len(job.tokens.ids)
        elif job.what == "delayed":
            self.delayed += 1
        else:
            self.ended[job.what] = self.ended.get(job.what, 0) + 1


def _name(ids: list[str], job_id: str) -> None:
    if len(ids) < NAMED_IDS:
        ids.append(job_id)

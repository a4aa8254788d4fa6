"""What a proxy remembers of jobs that did not go well: so that none of them is tried without end. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

REMEMBERED_JOBS = 1024
MAX_PUT_BACKS = 100
"""How often one worker puts a job back for which the server is too busy, while it serves others."""
MAX_BREAKS = 3
"""How often a server may go away amid the same request before the request is suspected to be the reason."""


@dataclass(slots=True)
class JobCounts:
    """How often something happened to each job, of those to which it happened last."""

    counts: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def add(self, job_id: str) -> int:
        count = self.counts.pop(job_id, 0) + 1
        self.counts[job_id] = count
        if len(self.counts) > REMEMBERED_JOBS:
            self.counts.popitem(last=False)
        return count

    def forget(self, job_id: str) -> None:
        self.counts.pop(job_id, None)


@dataclass(slots=True)
class JobMemory:
    """cuts: answers that broke off. put_backs: the server was too busy for the job. breaks: it went away amid it."""

    cuts: JobCounts = field(default_factory=JobCounts)
    put_backs: JobCounts = field(default_factory=JobCounts)
    breaks: JobCounts = field(default_factory=JobCounts)

    def forget(self, job_id: str) -> None:
        """The job was answered."""
        for counts in (self.cuts, self.put_backs, self.breaks):
            counts.forget(job_id)
